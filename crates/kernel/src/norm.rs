//! Normalisations over rows and over groups of channels.

use crate::lanes::{Body, Parts, Set, run, split};
use crate::reduce::{Plus, fold};
use crate::{Cpu, math};

/// What a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Less the mean, over `sqrt(variance + epsilon)` (Ba, Kiros, Hinton, "Layer Normalization", 2016).
    Layer,
    /// Over `sqrt(mean of squares + epsilon)` (Zhang, Sennrich, "Root Mean Square Layer Normalization", 2019).
    Rms,
    /// Over `max(sqrt(sum of squares), epsilon)`.
    L2,
}

/// A normalisation of rows of `n` numbers.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// What a row is divided by.
    pub kind: Kind,
    /// See [`Kind`].
    pub epsilon: f32,
    /// `n` factors for the result.
    pub gamma: Option<&'a [f32]>,
    /// `n` numbers added to the result.
    pub beta: Option<&'a [f32]>,
}

/// What else [`norm`] reads and writes.
#[derive(Debug, Default)]
pub struct Extra<'a> {
    /// Added to the input first; as many numbers as the input.
    pub skip: Option<&'a [f32]>,
    /// Receives `input + skip`.
    pub sum: Option<&'a mut [f32]>,
    /// Receives the mean of each row (0 unless [`Kind::Layer`]).
    pub mean: Option<&'a mut [f32]>,
    /// Receives the factor of each row: 1 over what it is divided by.
    pub inverse: Option<&'a mut [f32]>,
}

/// Normalises each row of `input` = `[rows, n]` into `output`.
///
/// # Panics
/// When a length does not fit.
pub fn norm(cpu: &Cpu, norm: Norm, input: &[f32], n: usize, extra: Extra, output: &mut [f32]) {
    assert_eq!(input.len(), output.len());
    let same = |len: Option<usize>, want: usize| assert!(len.is_none_or(|len| len == want));
    same(norm.gamma.map(<[f32]>::len), n);
    same(norm.beta.map(<[f32]>::len), n);
    same(extra.skip.map(<[f32]>::len), input.len());
    same(extra.sum.as_ref().map(|s| s.len()), input.len());
    if input.is_empty() {
        return;
    }
    assert!(n > 0 && input.len().is_multiple_of(n));
    let rows = input.len() / n;
    same(extra.mean.as_ref().map(|s| s.len()), rows);
    same(extra.inverse.as_ref().map(|s| s.len()), rows);
    let (output, sum) = (Parts::new(output), extra.sum.map(Parts::new));
    let (mean, inverse) = (extra.mean.map(Parts::new), extra.inverse.map(Parts::new));
    split(cpu, rows, n, |items| {
        for r in items {
            let at = r * n..(r + 1) * n;
            let skip = extra.skip.map(|skip| &skip[at.clone()]);
            // SAFETY: each item is one row of each output.
            let (y, sum) = unsafe { (output.part(at.clone()), sum.as_ref().map(|sum| sum.part(at.clone()))) };
            let (m, i) = run(cpu, Row { norm, input: &input[at], skip, sum, output: y });
            for (out, value) in [(&mean, m), (&inverse, i)] {
                if let Some(out) = out {
                    // SAFETY: each item has its own number.
                    unsafe { out.part(r..r + 1)[0] = value };
                }
            }
        }
    });
}

/// Group normalisation of `input` = `[n, c, inner]` (Wu, He, "Group Normalization", 2018): each of `groups` groups of
/// channels is normalised as by [`Kind::Layer`], then scaled and shifted by channel. `groups == c` is instance
/// normalisation.
///
/// # Panics
/// When a length does not fit, or `groups` does not divide `gamma.len()`.
#[allow(clippy::too_many_arguments)]
pub fn group_norm(
    cpu: &Cpu,
    input: &[f32],
    inner: usize,
    groups: usize,
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    output: &mut [f32],
) {
    assert!(input.len() == output.len() && gamma.len() == beta.len());
    if input.is_empty() {
        return;
    }
    assert!(groups > 0 && gamma.len().is_multiple_of(groups));
    let channels = gamma.len() / groups;
    let n = channels * inner;
    assert!(n > 0 && input.len().is_multiple_of(n * groups));
    let parts = Parts::new(output);
    split(cpu, input.len() / n, n, |items| {
        for i in items {
            let at = i * n..(i + 1) * n;
            let first = i % groups * channels;
            let (gamma, beta) = (&gamma[first..first + channels], &beta[first..first + channels]);
            // SAFETY: each item is one group of the output.
            let output = unsafe { parts.part(at.clone()) };
            run(cpu, Group { input: &input[at], inner, gamma, beta, epsilon, output });
        }
    });
}

/// The mean and the factor of a row.
#[inline(always)]
fn moments(kind: Kind, epsilon: f32, row: &[f32]) -> (f32, f32) {
    let n = row.len() as f64;
    match kind {
        Kind::Layer => {
            let mean = (fold::<Plus>(row, |x| x) / n) as f32;
            let variance = fold::<Plus>(row, |x| (x - mean) * (x - mean)) / n;
            (mean, (1.0 / (variance + epsilon as f64).sqrt()) as f32)
        }
        Kind::Rms => {
            let square = fold::<Plus>(row, |x| x * x) / n;
            (0.0, (1.0 / (square + epsilon as f64).sqrt()) as f32)
        }
        Kind::L2 => {
            let length = fold::<Plus>(row, |x| x * x).sqrt();
            (0.0, (1.0 / if length < epsilon as f64 { epsilon as f64 } else { length }) as f32)
        }
    }
}

struct Row<'a> {
    norm: Norm<'a>,
    input: &'a [f32],
    skip: Option<&'a [f32]>,
    sum: Option<&'a mut [f32]>,
    output: &'a mut [f32],
}

impl Body for Row<'_> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<S: Set>(self) -> (f32, f32) {
        let y = self.output;
        match self.skip {
            Some(skip) => {
                for ((y, &x), &s) in y.iter_mut().zip(self.input).zip(skip) {
                    *y = x + s;
                }
            }
            None => y.copy_from_slice(self.input),
        }
        if let Some(sum) = self.sum {
            sum.copy_from_slice(y);
        }
        let (mean, factor) = moments(self.norm.kind, self.norm.epsilon, y);
        match (self.norm.gamma, self.norm.beta) {
            (Some(gamma), Some(beta)) => {
                for ((y, &g), &b) in y.iter_mut().zip(gamma).zip(beta) {
                    *y = math::fma::<S>((*y - mean) * factor, g, b);
                }
            }
            (gamma, beta) => {
                for y in y.iter_mut() {
                    *y = (*y - mean) * factor;
                }
                for (y, &g) in y.iter_mut().zip(gamma.into_iter().flatten()) {
                    *y *= g;
                }
                for (y, &b) in y.iter_mut().zip(beta.into_iter().flatten()) {
                    *y += b;
                }
            }
        }
        (mean, factor)
    }
}

struct Group<'a> {
    input: &'a [f32],
    inner: usize,
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
    output: &'a mut [f32],
}

impl Body for Group<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let (mean, factor) = moments(Kind::Layer, self.epsilon, self.input);
        let channels = self.input.chunks_exact(self.inner).zip(self.output.chunks_exact_mut(self.inner));
        for ((x, y), (&gamma, &beta)) in channels.zip(self.gamma.iter().zip(self.beta)) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = math::fma::<S>((x - mean) * factor, gamma, beta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 0.7).collect()
    }

    fn spec(kind: Kind, epsilon: f64, row: &[f64]) -> (f64, f64) {
        let n = row.len() as f64;
        let mean = if kind == Kind::Layer { row.iter().sum::<f64>() / n } else { 0.0 };
        let squares: f64 = row.iter().map(|x| (x - mean).powi(2)).sum();
        (
            mean,
            if kind == Kind::L2 {
                1.0 / squares.sqrt().max(epsilon)
            } else {
                1.0 / (squares / n + epsilon).sqrt()
            },
        )
    }

    proptest! {
        #[test]
        fn rows_are_as_defined(
            rows in prop_oneof![0usize..5, 60usize..70],
            n in prop_oneof![1usize..70, 1000usize..1100],
            kind in prop_oneof![Just(Kind::Layer), Just(Kind::Rms), Just(Kind::L2)],
            (with_gamma, with_beta, with_skip) in (any::<bool>(), any::<bool>(), any::<bool>()),
        ) {
            let (input, skip) = (numbers(rows * n, 1), numbers(rows * n, 2));
            let (gamma, beta) = (numbers(n, 3), numbers(n, 4));
            let what = Norm {
                kind,
                epsilon: 1e-3,
                gamma: with_gamma.then_some(&gamma[..]),
                beta: with_beta.then_some(&beta[..]),
            };
            for isa in Isa::available() {
                let results = [1, 2].map(|threads| {
                    let cpu = Cpu::with_isa(isa, threads).unwrap();
                    let mut out = vec![9.0; rows * n];
                    let (mut sum, mut mean, mut inverse) = (out.clone(), vec![9.0; rows], vec![9.0; rows]);
                    let extra = Extra {
                        skip: with_skip.then_some(&skip[..]),
                        sum: Some(&mut sum),
                        mean: Some(&mut mean),
                        inverse: Some(&mut inverse),
                    };
                    norm(&cpu, what, &input, n, extra, &mut out);
                    (out, sum, mean, inverse)
                });
                prop_assert_eq!(&results[0], &results[1]);
                let (out, sum, mean, inverse) = &results[0];
                for r in 0..rows {
                    let row: Vec<f64> = (r * n..(r + 1) * n)
                        .map(|i| if with_skip { input[i] + skip[i] } else { input[i] } as f64)
                        .collect();
                    let (m, f) = spec(kind, 1e-3, &row);
                    prop_assert!((mean[r] as f64 - m).abs() < 1e-6 && (inverse[r] as f64 - f).abs() < 2e-6 * f);
                    for (c, &x) in row.iter().enumerate() {
                        let g = if with_gamma { gamma[c] as f64 } else { 1.0 };
                        let b = if with_beta { beta[c] as f64 } else { 0.0 };
                        prop_assert_eq!(sum[r * n + c] as f64, x);
                        prop_assert!((out[r * n + c] as f64 - ((x - m) * f * g + b)).abs() < 2e-5);
                    }
                }
            }
        }

        #[test]
        fn groups_are_as_defined(n in 0usize..3, groups in 1usize..4, per in 1usize..4, inner in 0usize..40) {
            let c = groups * per;
            let (input, gamma, beta) = (numbers(n * c * inner, 1), numbers(c, 2), numbers(c, 3));
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                let mut out = vec![9.0; input.len()];
                group_norm(&cpu, &input, inner, groups, &gamma, &beta, 1e-3, &mut out);
                for (i, &y) in out.iter().enumerate() {
                    let (group, channel) = (i / (per * inner), i / inner % c);
                    let row: Vec<f64> =
                        input[group * per * inner..(group + 1) * per * inner].iter().map(|&x| x as f64).collect();
                    let (m, f) = spec(Kind::Layer, 1e-3, &row);
                    let want = (input[i] as f64 - m) * f * gamma[channel] as f64 + beta[channel] as f64;
                    prop_assert!((y as f64 - want).abs() < 2e-5);
                }
            }
        }
    }
}
