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

/// A statistic of all examples, and what it was for samples of as many examples drawn with replacement.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// The statistic of all examples.
    pub value: f64,
    /// That of each sample for which it has a value, in ascending order; never empty.
    found: Vec<f64>,
}

impl Samples {
    /// The number below which this part of the samples lies, interpolated between two of them.
    pub fn quantile(&self, part: f64) -> f64 {
        let at = part.clamp(0.0, 1.0) * (self.found.len() - 1) as f64;
        let (low, high) = (self.found[at.floor() as usize], self.found[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    /// The 95 % interval: from the quantile of 2.5 % to that of 97.5 %.
    pub fn interval(&self) -> Interval {
        Interval { value: self.value, low: self.quantile(0.025), high: self.quantile(0.975) }
    }

    /// The share of samples that are at least `bound`.
    pub fn share_at_least(&self, bound: f64) -> f64 {
        let below = self.found.partition_point(|v| *v < bound);
        (self.found.len() - below) as f64 / self.found.len() as f64
    }
}

/// `statistic` of all `n` examples and of 2000 samples of `n` examples drawn with replacement. The same seed gives the
/// same samples.
///
/// # Errors
/// [`Error::Input`] when there are no examples, or the statistic has no value for them or for most samples.
pub fn resample(n: usize, seed: u64, statistic: impl Fn(&[usize]) -> Option<f64>) -> Result<Samples> {
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
    Ok(Samples { value, found })
}

/// [`resample`]'s value and interval.
///
/// # Errors
/// As [`resample`].
pub fn bootstrap(n: usize, seed: u64, statistic: impl Fn(&[usize]) -> Option<f64>) -> Result<Interval> {
    Ok(resample(n, seed, statistic)?.interval())
}

/// The mean with its bootstrap interval.
///
/// # Errors
/// [`Error::Input`] when there are no numbers, or one is not finite.
pub fn mean(values: &[f64], seed: u64) -> Result<Interval> {
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::input(format!("number {at} of {} is {}", values.len(), values[at])));
    }
    bootstrap(values.len(), seed, |sample| {
        Some(sample.iter().map(|&i| values[i]).sum::<f64>() / sample.len() as f64)
    })
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
