//! How hard examples are to learn: what happens to each while heads are trained by small steps.

use kernel::Cpu;
use serde::Serialize;

use crate::head::{Features, moments};
use crate::random::Random;
use crate::{Error, Result};

/// Heads that are trained, each in an order of its own.
const HEADS: usize = 10;
/// Passes over the examples of each.
const EPOCHS: usize = 20;
/// Passes after which the error is looked at: early, when easy examples are known and hard ones are not.
const EARLY: usize = 4;
/// Examples of a step.
const BATCH: usize = 16;
/// Length of the first step; the last are short.
const RATE: f64 = 0.1;
const MOMENTUM: f64 = 0.9;

/// How hard an example is; the mean over heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Difficulty {
    /// Length of the error of the probabilities early in the training (EL2N; Paul et al., *Deep Learning on a Data Diet*,
    /// 2021).
    pub error: f32,
    /// How often it was right after one pass and wrong after the next; as often as there are passes when it was never right
    /// (Toneva et al., 2019).
    pub forgotten: f32,
    /// The score of its class over the greatest of the others, the mean over all passes (Pleiss et al., 2020).
    pub margin: f32,
}

/// Trains softmax heads on standardised features and looks on. The same for any number of threads.
///
/// # Errors
/// When there are not as many classes as features, or fewer than two classes.
pub fn difficulty(
    features: &Features,
    of: &[usize],
    count: usize,
    seed: u64,
    cpu: &Cpu,
) -> Result<Vec<Difficulty>> {
    if of.len() != features.rows() || count < 2 || of.iter().any(|class| *class >= count) {
        return Err(Error::input(format!(
            "{} labels of {count} classes do not say how hard {} examples are",
            of.len(),
            features.rows()
        )));
    }
    let rows = standardised(features);
    let columns = features.columns();
    let each =
        cpu.pool().map(HEADS, |head| Training::new(&rows, columns, of, count).watch(seed + head as u64));
    let mut mean = vec![Difficulty::default(); of.len()];
    let part = 1.0 / HEADS as f32;
    for one in each {
        for (mean, one) in mean.iter_mut().zip(one) {
            mean.error += part * one.error;
            mean.forgotten += part * one.forgotten;
            mean.margin += part * one.margin;
        }
    }
    Ok(mean)
}

/// Columns of mean 0 and variance 1, over the square root of their number: rows have a length of about 1.
fn standardised(features: &Features) -> Vec<f32> {
    let (mean, spread) = moments(features, &vec![1.0; features.rows()]);
    let width = (features.columns() as f64).sqrt();
    let columns: Vec<(f64, f64)> = mean.into_iter().zip(spread).collect();
    let rows = features.values().chunks_exact(features.columns());
    rows.flat_map(|row| {
        row.iter().zip(&columns).map(|(&x, (mean, spread))| ((f64::from(x) - mean) / spread / width) as f32)
    })
    .collect()
}

/// A softmax head that learns by momentum.
struct Training<'a> {
    rows: Vec<&'a [f32]>,
    of: &'a [usize],
    count: usize,
    /// `[count, columns + 1]`; the last is the bias.
    weight: Vec<f32>,
    speed: Vec<f32>,
}

impl<'a> Training<'a> {
    fn new(rows: &'a [f32], columns: usize, of: &'a [usize], count: usize) -> Training<'a> {
        let zeros = vec![0f32; count * (columns + 1)];
        Training {
            rows: rows.chunks_exact(columns).collect(),
            of,
            count,
            weight: zeros.clone(),
            speed: zeros,
        }
    }

    /// The probabilities of an example, and its margin.
    fn answer(&self, row: usize, into: &mut [f32]) -> f32 {
        let x = self.rows[row];
        for (score, weight) in into.iter_mut().zip(self.weight.chunks_exact(x.len() + 1)) {
            *score = super::dot(&weight[..x.len()], x) + weight[x.len()];
        }
        let given = self.of[row];
        let others = into.iter().enumerate().filter(|(class, _)| *class != given);
        let margin = into[given] - others.map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
        let most = into.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        into.iter_mut().for_each(|score| *score = (*score - most).exp());
        let sum: f32 = into.iter().sum();
        into.iter_mut().for_each(|share| *share /= sum);
        margin
    }

    fn step(&mut self, batch: &[usize], rate: f32) {
        let mut shares = vec![0f32; self.count];
        self.speed.iter_mut().for_each(|v| *v *= MOMENTUM as f32);
        for &row in batch {
            self.answer(row, &mut shares);
            shares[self.of[row]] -= 1.0;
            let x = self.rows[row];
            for (speed, error) in self.speed.chunks_exact_mut(x.len() + 1).zip(&shares) {
                let by = -error * rate / batch.len() as f32;
                speed[..x.len()].iter_mut().zip(x).for_each(|(v, x)| *v += by * x);
                speed[x.len()] += by;
            }
        }
        self.weight.iter_mut().zip(&self.speed).for_each(|(w, v)| *w += v);
    }

    fn watch(mut self, seed: u64) -> Vec<Difficulty> {
        let n = self.rows.len();
        let mut random = Random::new(seed);
        let mut order: Vec<usize> = (0..n).collect();
        let mut found = vec![Difficulty::default(); n];
        let (mut right, mut ever) = (vec![false; n], vec![false; n]);
        let mut shares = vec![0f32; self.count];
        // Rows have a length of about 1, whatever the number of features: steps are as long as they are wide.
        let width = self.rows.first().map_or(1, |row| row.len()) as f64;
        for epoch in 0..EPOCHS {
            random.shuffle(&mut order);
            let left = 1.0 - epoch as f64 / EPOCHS as f64;
            let rate = (RATE * width.sqrt() * left) as f32;
            order.chunks(BATCH).for_each(|batch| self.step(batch, rate));
            for row in 0..n {
                let margin = self.answer(row, &mut shares);
                let one = &mut found[row];
                one.margin += margin / EPOCHS as f32;
                if epoch + 1 == EARLY {
                    shares[self.of[row]] -= 1.0;
                    one.error = shares.iter().map(|e| e * e).sum::<f32>().sqrt();
                }
                let now = margin > 0.0;
                one.forgotten += f32::from(u8::from(right[row] && !now));
                (right[row], ever[row]) = (now, ever[row] || now);
            }
        }
        let never = found.iter_mut().zip(&ever).filter(|(_, ever)| !**ever);
        never.for_each(|(one, _)| one.forgotten = EPOCHS as f32);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_the_wrong_side_is_hard_and_what_lies_far_off_is_easy() {
        let mut random = Random::new(8);
        let (mut values, mut of) = (Vec::new(), Vec::new());
        for row in 0..400 {
            let class = row % 2;
            let side = if class == 0 { -1.0 } else { 1.0 };
            // The first ten are on the wrong side, the next ten near the border.
            let at = if row < 10 {
                -2.0
            } else if row < 20 {
                0.1
            } else {
                2.0
            };
            values.extend([(side * at + 0.1 * random.normal()) as f32, random.normal() as f32]);
            of.push(class);
        }
        let features = Features::new(2, values).unwrap();
        let found = difficulty(&features, &of, 2, 1, &Cpu::new(2).unwrap()).unwrap();
        let mean = |of: fn(&Difficulty) -> f32, rows: std::ops::Range<usize>| {
            found[rows.clone()].iter().map(of).sum::<f32>() / rows.len() as f32
        };
        let error = |d: &Difficulty| d.error;
        assert!(mean(error, 0..10) > 0.9 && mean(error, 20..400) < 0.4, "{:?}", &found[..25]);
        assert!(mean(error, 10..20) > mean(error, 20..400));
        let (forgotten, margin) = (|d: &Difficulty| d.forgotten, |d: &Difficulty| d.margin);
        assert!(mean(forgotten, 0..10) > 19.0 && mean(forgotten, 20..400) < 0.1);
        assert!(mean(margin, 0..10) < 0.0 && mean(margin, 20..400) > mean(margin, 10..20));
        assert_eq!(difficulty(&features, &of, 2, 1, &Cpu::new(1).unwrap()).unwrap(), found);
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let features = Features::new(1, vec![1.0, 2.0]).unwrap();
        let cpu = Cpu::new(1).unwrap();
        assert!(difficulty(&features, &[0, 2], 2, 1, &cpu).is_err());
        assert!(difficulty(&features, &[0], 2, 1, &cpu).is_err());
        assert!(difficulty(&features, &[0, 0], 1, 1, &cpu).is_err());
    }
}
