//! How heads do on examples that they have not seen: who is left out when, what is lost there, and how sharp scores may be.

use super::Truth;
use crate::random::Random;

/// Up to so many examples, one part in ten is left out at a time.
const FEW: usize = 1_000;
/// With more examples than this, one part in five is left out, once.
const MANY: usize = 20_000;
/// The least probability that an answer is taken to have.
const FLOOR: f64 = 1e-7;
/// How many standard errors a stronger penalty may be worse by and is still taken.
const ERRORS: f64 = 0.5;

/// Scores of examples by heads that have not seen them.
#[derive(Clone, Debug, PartialEq)]
pub struct Unseen {
    /// Which examples.
    pub rows: Vec<usize>,
    /// Scores of each.
    pub outputs: usize,
    /// Their scores, row by row.
    pub scores: Vec<f32>,
}

impl Unseen {
    /// What it holds of these examples, which are all among its own; both in ascending order.
    pub(super) fn on(&self, rows: &[usize]) -> Unseen {
        if rows.len() == self.rows.len() {
            return self.clone();
        }
        let at = rows.iter().filter_map(|row| self.rows.binary_search(row).ok());
        let scores = at.flat_map(|i| &self.scores[i * self.outputs..][..self.outputs]).copied().collect();
        Unseen { rows: rows.to_vec(), outputs: self.outputs, scores }
    }

    /// The mean loss, each example counting as much as its mass: [`log_loss`], or the squared error of numbers.
    pub(super) fn loss(&self, truth: &Truth, masses: &[f64]) -> f64 {
        self.mean(masses, self.losses(1.0, &|row, scores| log_loss(truth, row, scores)))
    }

    /// The loss of each example with scores that are so much sharper.
    fn losses<'a>(
        &'a self,
        sharper: f64,
        loss: &'a dyn Fn(usize, &[f64]) -> f64,
    ) -> impl Iterator<Item = f64> + 'a {
        let mut scaled = vec![0f64; self.outputs];
        self.rows.iter().zip(self.scores.chunks_exact(self.outputs)).map(move |(&row, scores)| {
            scaled.iter_mut().zip(scores).for_each(|(scaled, &s)| *scaled = f64::from(s) * sharper);
            loss(row, &scaled)
        })
    }

    fn mean(&self, masses: &[f64], losses: impl Iterator<Item = f64>) -> f64 {
        let each = self.rows.iter().map(|&row| masses[row]).zip(losses);
        let (sum, all) = each.fold((0.0, 0.0), |(sum, all), (mass, loss)| (sum + mass * loss, all + mass));
        sum / all
    }

    /// The loss of an example when any answer may be right with a small probability: as much as two examples more give it
    /// (Platt, *Probabilistic outputs for support vector machines*, 1999). What tells few examples apart without fault is
    /// then not sure beyond measure.
    fn doubted<'a>(&self, truth: &'a Truth) -> impl Fn(usize, &[f64]) -> f64 + 'a {
        let doubt = 1.0 / (self.rows.len() as f64 + 2.0);
        // The loss, and its mean over all answers that could be right, which has no floor.
        let both = move |loss: f64, any: f64| (1.0 - doubt) * loss.min(-FLOOR.ln()) + doubt * any;
        move |row, scores| match truth {
            Truth::Classes { of, .. } => {
                let (sum, mean) = (log_sum(scores), scores.iter().sum::<f64>() / scores.len() as f64);
                both(sum - scores[of[row]], sum - mean)
            }
            Truth::Labels { of, count } => {
                let each = scores.iter().zip(&of[row * count..][..*count]).map(|(&s, &holds)| {
                    let s = if holds { s } else { -s };
                    let loss = log_sum(&[0.0, -s]);
                    both(loss, loss + s / 2.0)
                });
                each.sum()
            }
            Truth::Numbers(_) => log_loss(truth, row, scores),
        }
    }

    /// The loss of each example with such doubt, times its mass.
    pub(super) fn doubted_losses(&self, truth: &Truth, masses: &[f64]) -> Vec<f64> {
        let doubted = self.doubted(truth);
        let losses = self.losses(1.0, &doubted).zip(&self.rows);
        losses.map(|(loss, &row)| loss * masses[row]).collect()
    }

    /// Scales the scores so that the probabilities they stand for fit best, with some doubt; gives the factor (temperature
    /// scaling; Guo et al., 2017). Numbers stay as they are.
    pub(super) fn temper(&mut self, truth: &Truth, masses: &[f64]) -> f64 {
        if matches!(truth, Truth::Numbers(_)) {
            return 1.0;
        }
        // The loss has one minimum along the factor: golden section on its logarithm.
        let ratio = (5f64.sqrt() - 1.0) / 2.0;
        let (mut low, mut high) = (1e-4f64.ln(), 1e4f64.ln());
        let doubted = self.doubted(truth);
        let loss = |at: f64| self.mean(masses, self.losses(at.exp(), &doubted));
        let (mut a, mut b) = (high - ratio * (high - low), low + ratio * (high - low));
        let (mut at_a, mut at_b) = (loss(a), loss(b));
        while high - low > 0.02 {
            if at_a <= at_b {
                (high, b, at_b) = (b, a, at_a);
                a = high - ratio * (high - low);
                at_a = loss(a);
            } else {
                (low, a, at_a) = (a, b, at_b);
                b = low + ratio * (high - low);
                at_b = loss(b);
            }
        }
        let factor = ((low + high) / 2.0).exp();
        self.scores.iter_mut().for_each(|s| *s = (f64::from(*s) * factor) as f32);
        factor
    }
}

/// Heads with weaker and weaker penalties, of which the strongest is taken that is hardly worse than the best on examples
/// that it has not seen: by few examples the best is found by chance (Breiman et al., *Classification and regression trees*,
/// 1984, by one standard error; here the errors are paired).
pub(super) struct Path<'a> {
    truth: &'a Truth,
    masses: &'a [f64],
    /// The strong ones first; the last is the best.
    kept: Vec<Trial>,
}

struct Trial {
    penalty: f64,
    mean: f64,
    /// The loss of each example, times its mass.
    losses: Vec<f64>,
    unseen: Unseen,
}

impl<'a> Path<'a> {
    pub fn new(truth: &'a Truth, masses: &'a [f64]) -> Path<'a> {
        Path { truth, masses, kept: Vec::new() }
    }

    /// Adds a penalty that is weaker than those before; says whether it is the best so far.
    pub fn add(&mut self, penalty: f64, unseen: Unseen) -> bool {
        let mut tempered = unseen.clone();
        tempered.temper(self.truth, self.masses);
        let losses = tempered.doubted_losses(self.truth, self.masses);
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        if !mean.is_finite() || self.kept.last().is_some_and(|best| mean >= best.mean) {
            return false;
        }
        self.kept.retain(|kept| hardly_worse(&kept.losses, &losses));
        self.kept.push(Trial { penalty, mean, losses, unseen });
        true
    }

    /// May the head with this penalty still be taken?
    pub fn keeps(&self, penalty: f64) -> bool {
        self.kept.iter().any(|trial| trial.penalty == penalty)
    }

    /// The penalty that is taken, and how its heads do.
    pub fn taken(self) -> Option<(f64, Unseen)> {
        self.kept.into_iter().next().map(|trial| (trial.penalty, trial.unseen))
    }
}

/// Are these losses greater than those of the best on the same examples by so little that it may be chance?
pub fn hardly_worse(losses: &[f64], best: &[f64]) -> bool {
    let (mean, error) = apart(losses, best);
    mean <= ERRORS * error
}

/// Are these losses greater than others on the same examples by less than this part of them, even when a standard error more?
pub fn surely_near(losses: &[f64], others: &[f64], part: f64) -> bool {
    let (mean, error) = apart(losses, others);
    mean + error <= part * others.iter().sum::<f64>() / others.len() as f64
}

/// The mean by which these losses are greater, and its standard error.
fn apart(losses: &[f64], others: &[f64]) -> (f64, f64) {
    let count = losses.len() as f64;
    let apart = || losses.iter().zip(others).map(|(a, b)| a - b);
    let mean = apart().sum::<f64>() / count;
    let variance = apart().map(|d| (d - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, (variance / count).sqrt())
}

/// The logarithm of the sum of the exponentials.
fn log_sum(scores: &[f64]) -> f64 {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln()
}

/// The loss of an example's scores: minus the logarithm of the probability that they give to its class, or to all of its
/// labels; of a number, the squared error.
pub fn log_loss(truth: &Truth, row: usize, scores: &[f64]) -> f64 {
    match truth {
        Truth::Classes { of, .. } => (log_sum(scores) - scores[of[row]]).min(-FLOOR.ln()),
        Truth::Labels { of, count } => {
            let each = scores.iter().zip(&of[row * count..][..*count]);
            let lost = each.map(|(s, holds)| {
                let s = if *holds { *s } else { -s };
                -(1.0 / (1.0 + (-s).exp())).max(FLOOR).ln()
            });
            lost.sum()
        }
        Truth::Numbers(of) => (scores[0] - of[row]).powi(2),
    }
}

/// Examples that are left out together, in ascending order; classes are dealt out evenly.
pub(super) fn folds(truth: &Truth, seed: u64) -> Vec<Vec<usize>> {
    let rows = truth.rows();
    let (parts, used) = match rows {
        0..=FEW => (10.min(rows), 10),
        _ if rows <= MANY => (5, 5),
        _ => (5, 1),
    };
    let mut random = Random::new(seed);
    let groups: Vec<Vec<usize>> = match truth {
        Truth::Classes { of, count } => {
            let mut groups = vec![Vec::new(); *count];
            of.iter().enumerate().for_each(|(i, &class)| groups[class].push(i));
            groups
        }
        _ => vec![(0..rows).collect()],
    };
    let mut folds = vec![Vec::new(); parts];
    let mut next = 0;
    for mut group in groups {
        random.shuffle(&mut group);
        for row in group {
            folds[next % parts].push(row);
            next += 1;
        }
    }
    folds.iter_mut().for_each(|fold| fold.sort_unstable());
    folds.truncate(used);
    folds
}

/// Puts the scores of folds in the order of examples.
pub(super) fn joined(folds: &[Vec<usize>], scores: Vec<Vec<f32>>, outputs: usize) -> Unseen {
    let mut all: Vec<(usize, &[f32])> = folds
        .iter()
        .zip(&scores)
        .flat_map(|(rows, scores)| rows.iter().copied().zip(scores.chunks_exact(outputs)))
        .collect();
    all.sort_unstable_by_key(|(row, _)| *row);
    Unseen {
        rows: all.iter().map(|(row, _)| *row).collect(),
        outputs,
        scores: all.iter().flat_map(|(_, scores)| scores.iter().copied()).collect(),
    }
}

/// The examples that are not left out with this fold.
pub(super) fn others(rows: usize, fold: &[usize]) -> Vec<usize> {
    let mut out = fold.iter().peekable();
    (0..rows).filter(|row| out.next_if_eq(&row).is_none()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_few_examples_show_without_fault_is_doubted() {
        // All ten are right by 1: beyond measure sharp, were there no doubt.
        let truth = Truth::Classes { of: (0..10).map(|i| i % 2).collect(), count: 2 };
        let scores = (0..10).flat_map(|i| if i % 2 == 0 { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        let mut unseen = Unseen { rows: (0..10).collect(), outputs: 2, scores };
        let sharper = unseen.temper(&truth, &[1.0; 10]);
        // Each is wanted with 1 - 1 / 24.
        assert!((sharper / 23f64.ln() - 1.0).abs() < 0.02, "{sharper}");
        // Labels are doubted alike, one by one.
        let truth = Truth::Labels { of: (0..10).map(|i| i % 2 == 0).collect(), count: 1 };
        let scores = (0..10).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let mut unseen = Unseen { rows: (0..10).collect(), outputs: 1, scores };
        let sharper = unseen.temper(&truth, &[1.0; 10]);
        assert!((sharper / 23f64.ln() - 1.0).abs() < 0.02, "{sharper}");
    }

    #[test]
    fn a_stronger_penalty_is_taken_when_it_is_worse_by_chance_alone() {
        const COUNT: usize = 40;
        let (truth, masses) = (Truth::Numbers(vec![0.0; COUNT]), [1.0; COUNT]);
        // Squared errors of 1 each, and others that are more and less by turns.
        let errors = |more: f64, less: f64| {
            let error = |i: usize| (1.0 + if i.is_multiple_of(2) { more } else { -less }).sqrt() as f32;
            Unseen { rows: (0..COUNT).collect(), outputs: 1, scores: (0..COUNT).map(error).collect() }
        };
        let taken = |strong: Unseen| {
            let mut path = Path::new(&truth, &masses);
            assert!(path.add(10.0, strong) && path.add(1.0, errors(0.0, 0.0)));
            assert!(!path.add(0.1, errors(0.1, 0.0)), "a weaker one must be better");
            path.taken().unwrap().0
        };
        // Half a standard error of the mean is about 0.038.
        assert_eq!(taken(errors(0.5, 0.46)), 10.0);
        assert_eq!(taken(errors(0.5, 0.40)), 1.0);
        // What is always a little worse is no chance.
        assert_eq!(taken(errors(0.01, -0.01)), 1.0);
        assert!(Path::new(&truth, &masses).taken().is_none());
        let mut path = Path::new(&truth, &masses);
        assert!(!path.add(1.0, errors(f64::NAN, 0.0)), "it is no number");
    }
}
