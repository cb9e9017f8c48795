//! How probable answers are for linear maps of features, whatever their weights: the higher, the better a model suits a task
//! before anything is learnt (LogME; You et al., *LogME: practical assessment of pre-trained models for transfer learning*,
//! 2021). Features are standardised and answers centred, so that models of different features can be compared.

use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use super::Problem;

/// Most rounds in which the variances of weights and noise are estimated anew.
const ROUNDS: usize = 11;

/// Variances of weights and noise, as precisions, and what they make of the answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Evidence {
    pub weights: f64,
    pub noise: f64,
    /// The logarithm of the probability density of an answer, mean over the examples.
    pub value: f64,
}

impl Problem<'_> {
    /// The mean over examples and outputs of the logarithm of the evidence. To be compared between models on the same data.
    pub fn evidence(&self) -> f64 {
        let all = self.evidences();
        all.iter().map(|e| e.value).sum::<f64>() / all.len().max(1) as f64
    }

    /// The same for each output.
    pub(super) fn evidences(&self) -> Vec<Evidence> {
        let (rows, outputs, size) = (self.rows(), self.truth.outputs(), self.basis.size());
        let targets = self.truth.targets();
        let mean: Vec<f64> = (0..outputs)
            .map(|k| {
                targets.iter().skip(k).step_by(outputs).map(|&y| f64::from(y)).sum::<f64>() / rows as f64
            })
            .collect();
        let centred: Vec<f32> =
            targets.iter().enumerate().map(|(i, &y)| (f64::from(y) - mean[i % outputs]) as f32).collect();
        let mut products = vec![0f32; size * outputs];
        let z = View::new(&self.basis.coordinates, rows, size);
        let answers = View::new(&centred, rows, outputs);
        matmul(self.cpu, z.t(), answers, &mut products, outputs, &Post::default());
        let n = rows as f64;
        let squares: Vec<f64> = self.basis.values.iter().map(|v| v * n).collect();
        let each = |k: usize| {
            let along = products.iter().skip(k).step_by(outputs).zip(&squares);
            let along: Vec<f64> = along.map(|(&p, s)| f64::from(p).powi(2) / s).collect();
            let all: f64 = centred.iter().skip(k).step_by(outputs).map(|&y| f64::from(y).powi(2)).sum();
            evidence(n, &squares, &along, all)
        };
        (0..outputs).map(each).collect()
    }
}

/// `squares` are those of the features along each direction, `along` those of the answers, `all` those of all answers.
fn evidence(n: f64, squares: &[f64], along: &[f64], all: f64) -> Evidence {
    let outside = (all - along.iter().sum::<f64>()).max(0.0);
    let (mut weights, mut noise) = (1f64, 1f64);
    let parts = |ratio: f64| {
        let each = squares.iter().zip(along);
        let used: f64 = squares.iter().map(|s| s / (s + ratio)).sum();
        let size: f64 = each.clone().map(|(s, y)| s * y / (s + ratio).powi(2)).sum();
        let left: f64 = each.map(|(s, y)| y / (1.0 + s / ratio).powi(2)).sum::<f64>() + outside;
        (used, size.max(f64::MIN_POSITIVE), left.max(f64::MIN_POSITIVE))
    };
    for _ in 0..ROUNDS {
        let ratio = weights / noise;
        let (used, size, left) = parts(ratio);
        (weights, noise) = (used / size, (n - used) / left);
        if (weights / noise - ratio).abs() < 1e-3 * ratio {
            break;
        }
    }
    let (_, size, left) = parts(weights / noise);
    let k = squares.len() as f64;
    let volume: f64 = squares.iter().map(|s| (weights + noise * s).ln()).sum();
    let value = k * weights.ln() + n * noise.ln()
        - volume
        - noise * left
        - weights * size
        - n * (2.0 * std::f64::consts::PI).ln();
    Evidence { weights, noise, value: value / 2.0 / n }
}
