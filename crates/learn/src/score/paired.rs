//! Two models on the same examples: what changed for whom, and whether chance explains it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::interval::{Interval, Samples, pick, resample, wilson};
use super::{Metric, same_length};
use crate::Result;

/// What became of each example when model `b` answered instead of model `a`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Flips {
    /// Both right.
    pub both: usize,
    /// `a` right, `b` wrong.
    pub lost: usize,
    /// `a` wrong, `b` right.
    pub won: usize,
    /// Both wrong.
    pub neither: usize,
    /// Answers that differ, right or wrong.
    pub changed: usize,
    /// How likely a difference as great as that of `lost` and `won` is by chance: [`mcnemar`].
    pub p: f64,
}

impl Flips {
    fn add(&mut self, a: usize, b: usize, truth: usize) {
        let count = match (a == truth, b == truth) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.lost,
            (false, true) => &mut self.won,
            (false, false) => &mut self.neither,
        };
        *count += 1;
        self.changed += usize::from(a != b);
    }
}

/// Counts what changed from model `a` to model `b`.
///
/// # Errors
/// [`crate::Error::Input`] when the lengths differ or are 0.
pub fn flips(a: &[usize], b: &[usize], truth: &[usize]) -> Result<Flips> {
    same_length(a, truth)?;
    same_length(b, truth)?;
    let mut flips = Flips::default();
    for ((a, b), truth) in a.iter().zip(b).zip(truth) {
        flips.add(*a, *b, *truth);
    }
    flips.p = mcnemar(flips.lost, flips.won);
    Ok(flips)
}

/// McNemar's exact test, two-sided: the probability that fair coins fall as unevenly as `lost` to `won` (Q. McNemar,
/// 1947); 1 when both are 0.
pub fn mcnemar(lost: usize, won: usize) -> f64 {
    let n = lost + won;
    // Logarithms, since the binomial coefficients of thousands of examples leave the range of f64.
    let mut log_choose = 0.0f64;
    let mut tail = 0.0;
    for i in 0..=lost.min(won) {
        tail += (log_choose - n as f64 * std::f64::consts::LN_2).exp();
        log_choose += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

/// Accuracy of model `b` less that of model `a`, with the 95 % interval for paired shares (R. G. Newcombe,
/// *Improved confidence intervals for the difference between binomial proportions based on paired data*, 1998,
/// method 10). Unlike the bootstrap it does not shrink to nothing when no answer changed.
///
/// # Errors
/// As [`flips`].
pub fn accuracy_difference(a: &[usize], b: &[usize], truth: &[usize]) -> Result<Interval> {
    let flips = flips(a, b, truth)?;
    Ok(newcombe(&flips, truth.len()))
}

fn newcombe(flips: &Flips, n: usize) -> Interval {
    let (was, now) = (wilson(flips.both + flips.lost, n), wilson(flips.both + flips.won, n));
    let [both, lost, won, neither] = [flips.both, flips.lost, flips.won, flips.neither].map(|c| c as f64);
    let margins = (both + lost) * (won + neither) * (both + won) * (lost + neither);
    let cross = both * neither - lost * won;
    let corrected = if cross > 0.0 { (cross - n as f64 / 2.0).max(0.0) } else { cross };
    let phi = if margins > 0.0 { corrected / margins.sqrt() } else { 0.0 };
    let reach = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
    let value = (won - lost) / n as f64;
    Interval {
        value,
        low: value - reach(now.value - now.low, was.high - was.value),
        high: value + reach(now.high - now.value, was.value - was.low),
    }
}

/// What became of the examples of one class when model `b` answered instead of model `a`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassChange {
    /// The class.
    pub class: usize,
    /// Number of its examples.
    pub examples: usize,
    /// The share that `a` answers right.
    pub before: Interval,
    /// The share that `b` answers right.
    pub after: Interval,
    /// The second less the first, as [`accuracy_difference`].
    pub change: Interval,
    /// Examples of the class that `a` answers right and `b` wrong.
    pub lost: usize,
    /// Examples of the class that `a` answers wrong and `b` right.
    pub won: usize,
    /// [`mcnemar`] of these, times the number of classes, at most 1 (Bonferroni): of many classes one always looks
    /// bad.
    pub p: f64,
}

/// What became of each class that has examples, in ascending order.
///
/// # Errors
/// As [`flips`].
pub fn class_changes(a: &[usize], b: &[usize], truth: &[usize]) -> Result<Vec<ClassChange>> {
    same_length(a, truth)?;
    same_length(b, truth)?;
    let mut of: BTreeMap<usize, Flips> = BTreeMap::new();
    for ((a, b), truth) in a.iter().zip(b).zip(truth) {
        of.entry(*truth).or_default().add(*a, *b, *truth);
    }
    let classes = of.len() as f64;
    let changes = of.into_iter().map(|(class, flips)| {
        let examples = flips.both + flips.lost + flips.won + flips.neither;
        ClassChange {
            class,
            examples,
            before: wilson(flips.both + flips.lost, examples),
            after: wilson(flips.both + flips.won, examples),
            change: newcombe(&flips, examples),
            lost: flips.lost,
            won: flips.won,
            p: (mcnemar(flips.lost, flips.won) * classes).min(1.0),
        }
    });
    Ok(changes.collect())
}

/// Any metric of model `b` less that of model `a`, with its paired bootstrap interval: both are judged on the same
/// samples.
///
/// # Errors
/// As [`bootstrap`]; when the lengths differ.
pub fn difference<T: Copy>(metric: Metric<T>, a: &[T], b: &[T], truth: &[T], seed: u64) -> Result<Interval> {
    Ok(difference_samples(metric, a, b, truth, seed)?.interval())
}

/// The samples behind [`difference`].
///
/// # Errors
/// As [`difference`].
pub fn difference_samples<T: Copy>(
    metric: Metric<T>,
    a: &[T],
    b: &[T],
    truth: &[T],
    seed: u64,
) -> Result<Samples> {
    same_length(a, truth)?;
    same_length(b, truth)?;
    resample(truth.len(), seed, |sample| {
        let truth = pick(truth, sample);
        Some(metric(&pick(b, sample), &truth)? - metric(&pick(a, sample), &truth)?)
    })
}

/// The share of examples to which both models give the same answer, right or wrong, with Wilson's interval.
///
/// # Errors
/// [`crate::Error::Input`] when the lengths differ or are 0.
pub fn agreement(a: &[usize], b: &[usize]) -> Result<Interval> {
    super::accuracy_interval(a, b)
}
