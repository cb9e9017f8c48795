//! 95 % intervals: Wilson's for shares (E. B. Wilson, 1927), the percentile bootstrap for the rest (B. Efron,
//! 1979).

use serde::Serialize;

use super::{Metric, same_length};
use crate::random::Random;
use crate::{Error, Result};

/// The quantile of the normal distribution that leaves 2.5 % on each side.
const Z: f64 = 1.959_963_984_540_054;

/// How many times the bootstrap draws anew.
const ROUNDS: usize = 2000;

/// A number and the 95 % interval around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The measured number.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The share `hits / n` with Wilson's interval, which is right for few examples and for shares near 0 and 1;
/// 0 to 1 when `n` is 0.
pub fn wilson(hits: usize, n: usize) -> Interval {
    if n == 0 {
        return Interval { value: f64::NAN, low: 0.0, high: 1.0 };
    }
    let (p, n) = (hits as f64 / n as f64, n as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Interval { value: p, low: (centre - half).clamp(0.0, p), high: (centre + half).clamp(p, 1.0) }
}

/// `statistic` of all `n` examples, and the interval in which it falls for 95 % of 2000 samples of `n` examples
/// drawn with replacement. The same seed gives the same interval.
///
/// # Errors
/// [`Error::Input`] when there are no examples, or the statistic has no value for them or for most samples.
pub fn bootstrap(n: usize, seed: u64, statistic: impl Fn(&[usize]) -> Option<f64>) -> Result<Interval> {
    let none = || Error::input(format!("{n} examples are too few or too alike for this metric"));
    let mut sample: Vec<usize> = (0..n).collect();
    let value = statistic(&sample).filter(|_| n > 0).ok_or_else(none)?;
    let mut random = Random::new(seed);
    let mut found = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        sample.fill_with(|| random.below(n));
        found.extend(statistic(&sample));
    }
    if found.len() < ROUNDS / 2 {
        return Err(none());
    }
    found.sort_unstable_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = q * (found.len() - 1) as f64;
        let (low, high) = (found[at.floor() as usize], found[at.ceil() as usize]);
        low + (high - low) * at.fract()
    };
    Ok(Interval { value, low: quantile(0.025), high: quantile(0.975) })
}

/// A metric with its bootstrap interval.
///
/// # Errors
/// As [`bootstrap`]; when the lengths differ.
pub fn with_interval<T: Copy>(metric: Metric<T>, answers: &[T], truth: &[T], seed: u64) -> Result<Interval> {
    same_length(answers, truth)?;
    bootstrap(truth.len(), seed, |sample| metric(&pick(answers, sample), &pick(truth, sample)))
}

/// The items at these indices.
pub(super) fn pick<T: Copy>(items: &[T], indices: &[usize]) -> Vec<T> {
    indices.iter().map(|&i| items[i]).collect()
}
