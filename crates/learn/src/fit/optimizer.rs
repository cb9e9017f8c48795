//! Optimizers: from gradients to steps.

use serde::{Deserialize, Serialize};

/// How a weight is moved against its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "optimizer", rename_all = "kebab-case")]
pub enum Optimizer {
    /// Adam with weight decay apart from the gradient (Loshchilov and Hutter, *Decoupled weight decay regularization*,
    /// 2019).
    AdamW {
        /// How much of the mean gradient stays at each step.
        beta1: f32,
        /// How much of the mean squared gradient stays at each step.
        beta2: f32,
        /// Added to the root of the mean square.
        epsilon: f32,
        /// Part of a weight, times the rate, that goes at each step. Only tensors of two or more axes decay.
        decay: f32,
    },
    /// Gradient descent with Nesterov's momentum.
    Momentum {
        /// How much of the last step stays.
        momentum: f32,
        /// As above.
        decay: f32,
    },
}

impl Default for Optimizer {
    fn default() -> Optimizer {
        Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.01 }
    }
}

impl Optimizer {
    /// Tensors of the weight's size that it keeps from step to step.
    pub fn moments(self) -> usize {
        match self {
            Optimizer::AdamW { .. } => 2,
            Optimizer::Momentum { .. } => 1,
        }
    }

    /// Moves `weight` by a step. It is cut into as many equal slices as there are rates, one for each; `moments` are those
    /// of the steps before, `step` counts from 1, and `decays` says whether the weight decays.
    ///
    /// # Panics
    /// When the lengths differ, the slices are not equal, or there are not as many moments as [`Optimizer::moments`] says.
    pub fn step(
        self,
        rates: &[f32],
        step: u64,
        decays: bool,
        weight: &mut [f32],
        grad: &[f32],
        moments: &mut [Vec<f32>],
    ) {
        assert!(weight.len() == grad.len() && moments.iter().all(|m| m.len() == grad.len()));
        assert!(weight.len().is_multiple_of(rates.len()), "slices are not equal");
        let slice = (weight.len() / rates.len().max(1)).max(1);
        let parts = weight.chunks_exact_mut(slice).zip(grad.chunks_exact(slice)).zip(rates);
        match (self, moments) {
            (Optimizer::AdamW { beta1, beta2, epsilon, decay }, [mean, square]) => {
                let steps = i32::try_from(step).unwrap_or(i32::MAX);
                let first = (1.0 - f64::from(beta1).powi(steps)) as f32;
                let second = (1.0 - f64::from(beta2).powi(steps)) as f32;
                let moments = mean.chunks_exact_mut(slice).zip(square.chunks_exact_mut(slice));
                for (((weight, grad), &rate), (mean, square)) in parts.zip(moments) {
                    let shrink = if decays { 1.0 - rate * decay } else { 1.0 };
                    for ((w, &g), (m, v)) in weight.iter_mut().zip(grad).zip(mean.iter_mut().zip(square)) {
                        *m += (1.0 - beta1) * (g - *m);
                        *v += (1.0 - beta2) * (g * g - *v);
                        *w = *w * shrink - rate * (*m / first) / ((*v / second).sqrt() + epsilon);
                    }
                }
            }
            (Optimizer::Momentum { momentum, decay }, [speed]) => {
                let decay = if decays { decay } else { 0.0 };
                for (((weight, grad), &rate), speed) in parts.zip(speed.chunks_exact_mut(slice)) {
                    for ((w, &g), s) in weight.iter_mut().zip(grad).zip(speed) {
                        let g = g + decay * *w;
                        *s = momentum * *s + g;
                        *w -= rate * (g + momentum * *s);
                    }
                }
            }
            (other, moments) => panic!("{} moments for {other:?}", moments.len()),
        }
    }
}

/// The size of each slice of a weight along its first axis (the channels that a convolution makes): the root of its mean
/// square, and no less than a tenth of the whole weight's or a thousandth, so that what is all but 0 can grow. A vector is
/// one slice. (Shazeer and Stern, *Adafactor*, 2018, section 8, of whole weights.)
pub(super) fn sizes(weight: &[f32], shape: &[usize]) -> Vec<f32> {
    let root = |part: &[f32]| {
        (part.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / part.len().max(1) as f64).sqrt() as f32
    };
    let least = (0.1 * root(weight)).max(1e-3);
    let slices = if shape.len() > 1 { shape[0].max(1) } else { 1 };
    weight.chunks((weight.len() / slices).max(1)).map(|part| root(part).max(least)).collect()
}

/// The rate at a step, counted from 0, of so many: it rises over the first part, and falls by half a cosine to nothing.
pub fn cosine(rate: f32, step: u64, steps: u64, warmup: f32) -> f32 {
    let (at, all) = (step as f64 + 1.0, steps.max(1) as f64);
    let rise = (all * f64::from(warmup)).max(1.0);
    let part = if at < rise {
        at / rise
    } else {
        let done = ((at - rise) / (all - rise + 1.0).max(1.0)).clamp(0.0, 1.0);
        0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    };
    rate * part as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adamw_after_its_paper() {
        let adam = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, decay: 0.5 };
        let (mut w, mut moments) = (vec![1.0f32], vec![vec![0.0]; 2]);
        // The first step goes by the rate, whatever the gradient; decay takes rate * decay of the weight.
        adam.step(&[0.1], 1, true, &mut w, &[3.0], &mut moments);
        assert!((w[0] - (0.95 - 0.1)).abs() < 1e-6, "{w:?}");
        let (mut m, mut v) = (0.1 * 3.0f64, 0.01 * 9.0f64);
        adam.step(&[0.1], 2, false, &mut w, &[-1.0], &mut moments);
        (m, v) = (0.9 * m - 0.1, 0.99 * v + 0.01);
        let want = 0.85 - 0.1 * (m / (1.0 - 0.81)) / (v / (1.0 - 0.9801)).sqrt();
        assert!((f64::from(w[0]) - want).abs() < 1e-6, "{w:?} {want}");
    }

    #[test]
    fn slices_move_at_their_own_rates() {
        let weight = [3.0, 4.0, 0.3, 0.4, 0.0, 0.0];
        let whole = (25.25f32 / 6.0).sqrt();
        let found = sizes(&weight, &[3, 2, 1]);
        for (size, want) in found.iter().zip([12.5f32.sqrt(), 0.125f32.sqrt(), 0.1 * whole]) {
            assert!((size - want).abs() < 1e-6, "{found:?}");
        }
        assert_eq!((sizes(&weight, &[6]).len(), sizes(&[0.0; 2], &[2])), (1, vec![1e-3]));
        for optimizer in [Optimizer::default(), Optimizer::Momentum { momentum: 0.9, decay: 0.1 }] {
            let mut moments = vec![vec![0.0; 6]; optimizer.moments()];
            let (mut together, mut apart) = (weight, weight);
            optimizer.step(&found, 1, true, &mut together, &[1.0; 6], &mut moments);
            for (slice, rate) in apart.chunks_exact_mut(2).zip(&found) {
                let mut moments = vec![vec![0.0; 2]; optimizer.moments()];
                optimizer.step(&[*rate], 1, true, slice, &[1.0; 2], &mut moments);
            }
            assert_eq!(together, apart);
        }
    }

    #[test]
    fn both_find_the_bottom_of_a_valley() {
        for (optimizer, rate) in [
            (Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.0 }, 0.05),
            (Optimizer::Momentum { momentum: 0.9, decay: 0.0 }, 0.02),
        ] {
            let mut w = vec![3.0f32, -2.0];
            let mut moments = vec![vec![0.0; 2]; optimizer.moments()];
            for step in 0..600 {
                let grad = [w[0] - 1.0, 10.0 * (w[1] - 0.5)];
                let rate = cosine(rate, step, 600, 0.1);
                optimizer.step(&[rate, rate], step + 1, true, &mut w, &grad, &mut moments);
            }
            assert!((w[0] - 1.0).abs() < 1e-2 && (w[1] - 0.5).abs() < 1e-2, "{optimizer:?}: {w:?}");
        }
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let rates: Vec<f32> = (0..100).map(|s| cosine(2.0, s, 100, 0.1)).collect();
        assert!((rates[0] - 0.2).abs() < 1e-6 && (rates[9] - 2.0).abs() < 1e-6);
        assert!(rates[9..].windows(2).all(|w| w[1] < w[0]) && rates[99] > 0.0 && rates[99] < 0.01);
        assert!((cosine(1.0, 0, 1, 0.0) - 1.0).abs() < 1e-6);
    }
}
