//! How good a model's answers are, and how two models differ, always with an interval.

use crate::{Error, Result};

mod interval;
mod labels;
mod paired;
mod posterior;
mod shares;

pub use interval::{Interval, Samples, bootstrap, mean, resample, wilson, with_interval};
pub use labels::{by_label, label_macro_f1, micro_f1};
pub use paired::{
    ClassChange, Flips, accuracy_difference, agreement, class_changes, difference, difference_samples, flips,
    mcnemar,
};
pub use posterior::{loss_within, share_within};
pub use shares::{
    BINS, Calibration, Divergences, Kind, calibration, calibration_error, divergence, divergences, kind_of,
    shares,
};

/// A metric: from answers and truths, index by index, to a number; `None` when it has no value for them.
pub type Metric<T> = fn(&[T], &[T]) -> Option<f64>;

/// Fails unless there are as many answers as truths, and at least one.
fn same_length<T>(answers: &[T], truth: &[T]) -> Result<()> {
    match answers.len() == truth.len() && !truth.is_empty() {
        true => Ok(()),
        false => Err(Error::input(format!("{} answers for {} examples", answers.len(), truth.len()))),
    }
}

/// The share of right classes.
pub fn accuracy(answers: &[usize], truth: &[usize]) -> Option<f64> {
    same_length(answers, truth).ok()?;
    let right = answers.iter().zip(truth).filter(|(a, t)| a == t).count();
    Some(right as f64 / truth.len() as f64)
}

/// [`accuracy`] with its 95 % interval after Wilson.
///
/// # Errors
/// [`Error::Input`] when the lengths differ or are 0.
pub fn accuracy_interval(answers: &[usize], truth: &[usize]) -> Result<Interval> {
    same_length(answers, truth)?;
    let right = answers.iter().zip(truth).filter(|(a, t)| a == t).count();
    Ok(wilson(right, truth.len()))
}

/// What became of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCount {
    /// Examples of the class.
    pub truth: usize,
    /// Answers that named it.
    pub answered: usize,
    /// Of those, the right ones.
    pub right: usize,
}

impl ClassCount {
    /// The share of the class's examples that were answered right; `None` when there are no examples.
    pub fn recall(&self) -> Option<f64> {
        (self.truth > 0).then(|| self.right as f64 / self.truth as f64)
    }

    /// The share of the answers naming the class that were right; `None` when there are no such answers.
    pub fn precision(&self) -> Option<f64> {
        (self.answered > 0).then(|| self.right as f64 / self.answered as f64)
    }

    /// Harmonic mean of precision and recall; `None` when the class neither occurs nor is named.
    pub fn f1(&self) -> Option<f64> {
        let both = self.truth + self.answered;
        (both > 0).then(|| 2.0 * self.right as f64 / both as f64)
    }
}

/// The counts of every class that occurs or is named, in ascending order of class.
pub fn by_class(answers: &[usize], truth: &[usize]) -> Vec<(usize, ClassCount)> {
    let mut counts = std::collections::BTreeMap::<usize, ClassCount>::new();
    for (&answer, &class) in answers.iter().zip(truth) {
        counts.entry(class).or_default().truth += 1;
        let answered = counts.entry(answer).or_default();
        answered.answered += 1;
        answered.right += usize::from(answer == class);
    }
    counts.into_iter().collect()
}

/// The mean over the classes that occur of the share of their examples that were answered right (balanced accuracy).
pub fn balanced_accuracy(answers: &[usize], truth: &[usize]) -> Option<f64> {
    same_length(answers, truth).ok()?;
    let recalls = by_class(answers, truth).into_iter().filter_map(|(_, count)| count.recall());
    let (sum, count) = recalls.fold((0.0, 0usize), |(sum, n), recall| (sum + recall, n + 1));
    Some(sum / count as f64)
}

/// The mean of F1 over the classes that occur or are named.
pub fn macro_f1(answers: &[usize], truth: &[usize]) -> Option<f64> {
    same_length(answers, truth).ok()?;
    let f1s = |counts: &mut dyn Iterator<Item = ClassCount>| {
        let (sum, count) = counts.filter_map(|c| c.f1()).fold((0.0, 0usize), |(s, n), f1| (s + f1, n + 1));
        Some(sum / count as f64)
    };
    let greatest = answers.iter().chain(truth).copied().max()?;
    if greatest > answers.len() {
        return f1s(&mut by_class(answers, truth).into_iter().map(|(_, count)| count));
    }
    // An interval takes thousands of these: with no more classes than examples, a list is faster than a map.
    let mut counts = vec![ClassCount::default(); greatest + 1];
    for (&answer, &class) in answers.iter().zip(truth) {
        counts[class].truth += 1;
        counts[answer].answered += 1;
        counts[answer].right += usize::from(answer == class);
    }
    f1s(&mut counts.into_iter())
}

/// Pearson's correlation; `None` when a side is constant or not finite, or fewer than two values.
pub fn pearson(answers: &[f64], truth: &[f64]) -> Option<f64> {
    same_length(answers, truth).ok()?;
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mean_a, mean_t) = (mean(answers), mean(truth));
    let (mut products, mut squares_a, mut squares_t) = (0.0, 0.0, 0.0);
    for (a, t) in answers.iter().zip(truth) {
        let (a, t) = (a - mean_a, t - mean_t);
        products += a * t;
        squares_a += a * a;
        squares_t += t * t;
    }
    let constant = |v: &[f64]| v.iter().all(|x| *x == v[0]);
    let r = products / (squares_a.sqrt() * squares_t.sqrt());
    (r.is_finite() && !constant(answers) && !constant(truth)).then(|| r.clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank; `None` as [`pearson`].
pub fn spearman(answers: &[f64], truth: &[f64]) -> Option<f64> {
    let finite = answers.iter().chain(truth).all(|v| v.is_finite());
    if finite { pearson(&ranks(answers), &ranks(truth)) } else { None }
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = before as f64 + (group.len() as f64 + 1.0) / 2.0;
        group.iter().for_each(|&i| ranks[i] = rank);
        before += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests;
