//! Answers as probabilities of classes: how far those of two models are apart, and how honest they are.

use serde::Serialize;

use super::interval::{Interval, mean, resample};
use crate::{Error, Result};

/// Number of bins of the calibration error.
pub const BINS: usize = 15;

/// No probability is taken for less: a class that a model excludes makes no divergence infinite.
const FLOOR: f64 = 1e-10;

/// What the numbers for classes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any numbers; a softmax makes probabilities of them.
    Logits,
    /// Probabilities already.
    Probabilities,
}

/// [`Kind::Probabilities`] when no number of any answer is below 0 and each answer's sum is 1, to a thousandth.
pub fn kind_of<'a>(mut answers: impl Iterator<Item = &'a [f32]>) -> Kind {
    let sums_to_one = |row: &[f32]| {
        let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
        row.iter().all(|v| *v >= 0.0) && (sum - 1.0).abs() <= 1e-3
    };
    if answers.all(sums_to_one) { Kind::Probabilities } else { Kind::Logits }
}

/// Probabilities from a row of numbers for classes, none below 1e-10; `None` when there are less than two, or NaN or
/// infinities among them.
pub fn shares(row: &[f32], kind: Kind) -> Option<Vec<f64>> {
    if row.len() < 2 || row.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let raw: Vec<f64> = match kind {
        Kind::Logits => row.iter().map(|v| (f64::from(*v) - f64::from(most)).exp()).collect(),
        Kind::Probabilities => row.iter().map(|v| f64::from(*v)).collect(),
    };
    let sum: f64 = raw.iter().sum();
    let floored: Vec<f64> = raw.iter().map(|v| (v / sum).max(FLOOR)).collect();
    let sum: f64 = floored.iter().sum();
    Some(floored.iter().map(|v| v / sum).collect())
}

/// The Kullback-Leibler divergence of `after` from `before`, in nats: how many the second wastes on what the first
/// says. 0 when they are the same.
pub fn divergence(before: &[f64], after: &[f64]) -> f64 {
    before.iter().zip(after).map(|(p, q)| if *p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum::<f64>().max(0.0)
}

/// The expected calibration error: how far the confidence of answers and the share of right ones are apart, averaged
/// over `bins` bins of as many examples, by confidence (M. P. Naeini et al., *Obtaining well calibrated probabilities
/// using Bayesian binning*, 2015; bins of equal mass). Equal confidences are in one bin. `None` when there are no
/// answers or a confidence is not in 0 to 1.
pub fn calibration_error(confidence: &[f64], right: &[bool], bins: usize) -> Option<f64> {
    let order = by_confidence(confidence, right)?;
    error_of(&order, confidence, right, &vec![1; confidence.len()], bins)
}

/// The calibration errors of two models on the same examples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Of the first model.
    pub before: f64,
    /// Of the second model.
    pub after: f64,
    /// The second less the first, with its paired bootstrap interval.
    pub change: Interval,
}

/// The [`calibration_error`]s of two models; each gives the confidences of its answers and which are right.
///
/// # Errors
/// [`Error::Input`] when the lengths differ or are 0, or a confidence is not in 0 to 1.
pub fn calibration(before: (&[f64], &[bool]), after: (&[f64], &[bool]), seed: u64) -> Result<Calibration> {
    let n = before.0.len();
    if after.0.len() != n {
        return Err(Error::input(format!("{n} and {} answers cannot be paired", after.0.len())));
    }
    let ordered = |(confidence, right): (&[f64], &[bool])| {
        by_confidence(confidence, right)
            .ok_or_else(|| Error::input(format!("{n} answers without confidences in 0 to 1 for all of them")))
    };
    let orders = (ordered(before)?, ordered(after)?);
    let samples = resample(n, seed, |sample| {
        let mut counts = vec![0u32; n];
        sample.iter().for_each(|&i| counts[i] += 1);
        let of = |order: &[usize], (confidence, right): (&[f64], &[bool])| {
            error_of(order, confidence, right, &counts, BINS)
        };
        Some(of(&orders.1, after)? - of(&orders.0, before)?)
    })?;
    let whole = |order: &[usize], (confidence, right): (&[f64], &[bool])| {
        error_of(order, confidence, right, &vec![1; n], BINS).unwrap_or(f64::NAN)
    };
    Ok(Calibration {
        before: whole(&orders.0, before),
        after: whole(&orders.1, after),
        change: samples.interval(),
    })
}

fn by_confidence(confidence: &[f64], right: &[bool]) -> Option<Vec<usize>> {
    let possible = confidence.iter().all(|c| (0.0..=1.0 + 1e-9).contains(c));
    if confidence.is_empty() || confidence.len() != right.len() || !possible {
        return None;
    }
    let mut order: Vec<usize> = (0..confidence.len()).collect();
    order.sort_by(|&a, &b| confidence[a].total_cmp(&confidence[b]));
    Some(order)
}

/// The error of a sample in which example `i` is `counts[i]` times.
fn error_of(order: &[usize], confidence: &[f64], right: &[bool], counts: &[u32], bins: usize) -> Option<f64> {
    let total: f64 = counts.iter().map(|&c| f64::from(c)).sum();
    let (mut done, mut bin, mut gap, mut error) = (0.0, 1.0, 0.0, 0.0);
    for (at, &i) in order.iter().enumerate() {
        let count = f64::from(counts[i]);
        done += count;
        gap += count * (confidence[i] - f64::from(u8::from(right[i])));
        let last = order.get(at + 1).is_none_or(|&next| confidence[next] > confidence[i]);
        if last && done >= bin * total / bins.max(1) as f64 {
            error += gap.abs();
            gap = 0.0;
            bin = (done * bins as f64 / total).floor() + 1.0;
        }
    }
    (total > 0.0).then(|| (error + gap.abs()) / total)
}

/// The mean of divergences with its interval, and the ends of their spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergences {
    /// The mean.
    pub mean: Interval,
    /// 95 % are below.
    pub p95: f64,
    /// The greatest.
    pub max: f64,
}

/// The [`divergence`]s of many examples in short.
///
/// # Errors
/// [`Error::Input`] when there are none, or one is not finite.
pub fn divergences(found: &[f64], seed: u64) -> Result<Divergences> {
    let mean = mean(found, seed)?;
    let mut sorted = found.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = (0.95 * (sorted.len() - 1) as f64).ceil() as usize;
    Ok(Divergences { mean, p95: sorted[at], max: sorted[sorted.len() - 1] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn probabilities_are_told_from_logits() {
        let rows = |rows: &[&[f32]]| kind_of(rows.iter().copied());
        assert_eq!(rows(&[&[0.25, 0.75], &[1.0, 0.0]]), Kind::Probabilities);
        assert_eq!(rows(&[&[0.25, 0.75], &[1.0, 0.5]]), Kind::Logits);
        assert_eq!(rows(&[&[1.5, -0.5]]), Kind::Logits);
        let found = shares(&[0.0, 2f32.ln(), 1.0f32.ln()], Kind::Logits).unwrap();
        assert!((found[1] - 0.5).abs() < 1e-7, "{found:?}");
        // Far logits neither overflow nor exclude a class.
        let far = shares(&[1e4, -1e4], Kind::Logits).unwrap();
        assert!(far[0] > 0.999_999 && far[1] > 0.0);
        for bad in [&[1.0][..], &[f32::NAN, 0.0], &[f32::INFINITY, 0.0], &[]] {
            assert!(shares(bad, Kind::Logits).is_none());
        }
    }

    /// The numbers of scipy.stats.entropy.
    #[test]
    fn divergences_of_known_shares() {
        near(divergence(&[0.5, 0.5], &[0.9, 0.1]), 0.510_825_623_765_990_7);
        near(divergence(&[0.9, 0.1], &[0.5, 0.5]), 0.368_064_207_168_497_1);
        near(divergence(&[0.2, 0.3, 0.5], &[0.2, 0.3, 0.5]), 0.0);
        let one = shares(&[1.0, 0.0], Kind::Probabilities).unwrap();
        let other = shares(&[0.0, 1.0], Kind::Probabilities).unwrap();
        assert!(divergence(&one, &other).is_finite());
        let found = divergences(&(1..=100).map(f64::from).collect::<Vec<_>>(), 1).unwrap();
        assert_eq!((found.mean.value, found.p95, found.max), (50.5, 96.0, 100.0));
        assert!(found.mean.low < 50.5 && found.mean.high > 50.5);
        assert!(divergences(&[], 1).is_err() && divergences(&[1.0, f64::NAN], 1).is_err());
    }

    #[test]
    fn calibration_errors_by_hand() {
        // Two bins: confidences 0.6 and 0.7 with one right of two, 0.8 and 0.9 with both right.
        let (confidence, right) = ([0.9, 0.6, 0.8, 0.7], [true, false, true, true]);
        near(calibration_error(&confidence, &right, 2).unwrap(), (0.15 + 0.15) / 2.0);
        near(calibration_error(&confidence, &right, 1).unwrap(), 0.0);
        // As many bins as examples: the mean distance from right.
        near(calibration_error(&confidence, &right, 4).unwrap(), (0.1 + 0.6 + 0.2 + 0.3) / 4.0);
        // All of one confidence are in one bin, in whatever order they come.
        let right: Vec<bool> = (0..100).map(|i| i < 80).collect();
        near(calibration_error(&[0.8; 100], &right, 15).unwrap(), 0.0);
        near(calibration_error(&[1.0], &[true], 15).unwrap(), 0.0);
        assert_eq!(calibration_error(&[], &[], 15), None);
        assert_eq!(calibration_error(&[f64::NAN], &[true], 15), None);
        assert_eq!(calibration_error(&[0.5, 0.5], &[true], 15), None);
        assert_eq!(calibration_error(&[1.5], &[true], 15), None);
    }

    #[test]
    fn over_confidence_is_seen_and_its_change_has_an_interval() {
        let right: Vec<bool> = (0..400).map(|i| i % 4 != 0).collect();
        let spread = |around: f64| (0..400).map(|i| around + f64::from(i % 7) * 1e-3).collect::<Vec<_>>();
        let (honest, sure) = (spread(0.75), spread(0.95));
        let found = calibration((&honest, &right), (&sure, &right), 1).unwrap();
        assert!(found.before < 0.15 && (found.after - 0.203).abs() < 0.01, "{found:?}");
        assert!(found.change.low > 0.03 && found.change.high < 0.25, "{found:?}");
        let same = calibration((&sure, &right), (&sure, &right), 1).unwrap();
        assert_eq!((same.change.value, same.change.low, same.change.high), (0.0, 0.0, 0.0));
        assert!(calibration((&sure, &right), (&sure[1..], &right), 1).is_err());
        assert!(calibration((&[], &[]), (&[], &[]), 1).is_err());
    }
}
