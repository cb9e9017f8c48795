//! Products of many rows with few others, such as those of examples with the weights of a handful of classes: what is far
//! narrower than the tiles of [`crate::f32`].

use crate::Cpu;
use crate::lanes::{Body, Set, run};
use crate::math::fma;

/// Numbers that are summed side by side.
const LANES: usize = 32;
/// Rows whose parts share a write.
const TOGETHER: usize = 4;

/// `output[i][j]` = the sum over k of `x[i][k] * weights[j][k]`, plus `bias[j]`: `x` is `[rows, columns]`, `weights` `[outputs,
/// columns]`, `output` `[rows, outputs]`. On one thread.
///
/// # Panics
/// When the slices do not fit each other.
pub fn scores(cpu: &Cpu, x: &[f32], columns: usize, weights: &[f32], bias: &[f32], output: &mut [f32]) {
    check(x, columns, bias.len(), output, weights);
    run(cpu, Scores { x, columns, weights, bias, output });
}

/// `sums[j][k] +=` the sum over i of `errors[i][j] * x[i][k]`: `x` is `[rows, columns]`, `errors` `[rows, outputs]`, `sums`
/// `[outputs, columns]`. On one thread.
///
/// # Panics
/// When the slices do not fit each other.
pub fn add_products(cpu: &Cpu, x: &[f32], columns: usize, errors: &[f32], outputs: usize, sums: &mut [f32]) {
    check(x, columns, outputs, errors, sums);
    run(cpu, AddProducts { x, columns, errors, outputs, sums });
}

/// Panics unless `x` are rows, `narrow` has numbers for each of them, and `wide` a row for each of these.
fn check(x: &[f32], columns: usize, outputs: usize, narrow: &[f32], wide: &[f32]) {
    assert!(columns > 0 && outputs > 0 && x.len().is_multiple_of(columns));
    assert_eq!(narrow.len(), x.len() / columns * outputs);
    assert_eq!(wide.len(), outputs * columns);
}

struct Scores<'a> {
    x: &'a [f32],
    columns: usize,
    weights: &'a [f32],
    bias: &'a [f32],
    output: &'a mut [f32],
}

impl Body for Scores<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let (columns, outputs) = (self.columns, self.bias.len());
        for (x, out) in self.x.chunks_exact(columns).zip(self.output.chunks_exact_mut(outputs)) {
            for ((out, row), bias) in out.iter_mut().zip(self.weights.chunks_exact(columns)).zip(self.bias) {
                *out = dot::<S>(x, row) + bias;
            }
        }
    }
}

#[inline(always)]
fn dot<S: Set>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            sums[l] = fma::<S>(a[l], b[l], sums[l]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

struct AddProducts<'a> {
    x: &'a [f32],
    columns: usize,
    errors: &'a [f32],
    outputs: usize,
    sums: &'a mut [f32],
}

impl Body for AddProducts<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let (columns, outputs) = (self.columns, self.outputs);
        let errors = self.errors.chunks(TOGETHER * outputs);
        for (x, errors) in self.x.chunks(TOGETHER * columns).zip(errors) {
            for (j, sums) in self.sums.chunks_exact_mut(columns).enumerate() {
                match x.len() / columns {
                    TOGETHER => {
                        let parts = std::array::from_fn(|i| errors[i * outputs + j]);
                        add::<S, TOGETHER>(x, parts, sums);
                    }
                    rows => {
                        for i in 0..rows {
                            add::<S, 1>(&x[i * columns..][..columns], [errors[i * outputs + j]], sums);
                        }
                    }
                }
            }
        }
    }
}

/// Adds `N` rows, each times its part.
#[inline(always)]
fn add<S: Set, const N: usize>(x: &[f32], parts: [f32; N], sums: &mut [f32]) {
    let columns = sums.len();
    let (chunks, rest) = sums.as_chunks_mut::<LANES>();
    let row = |i: usize| &x[i * columns..][..columns];
    let rows: [&[[f32; LANES]]; N] = std::array::from_fn(|i| &row(i).as_chunks().0[..chunks.len()]);
    for (at, sums) in chunks.iter_mut().enumerate() {
        let mut now = *sums;
        for i in 0..N {
            let x = &rows[i][at];
            for l in 0..LANES {
                now[l] = fma::<S>(x[l], parts[i], now[l]);
            }
        }
        *sums = now;
    }
    let start = columns - rest.len();
    for (at, sum) in rest.iter_mut().enumerate() {
        (0..N).for_each(|i| *sum += row(i)[start + at] * parts[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn all_sets_agree_with_plain_sums_for_any_size() {
        let numbers = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 37 + seed * 11) % 29) as f32 / 14.0 - 1.0).collect()
        };
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            for (rows, columns, outputs) in
                [(1, 1, 1), (5, 16, 3), (9, 37, 2), (4, 100, 4), (7, 64, 9), (0, 8, 2)]
            {
                let (x, weights, bias) =
                    (numbers(rows * columns, 1), numbers(outputs * columns, 2), numbers(outputs, 3));
                let mut found = vec![f32::NAN; rows * outputs];
                scores(&cpu, &x, columns, &weights, &bias, &mut found);
                let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-4;
                for (i, j) in (0..rows).flat_map(|i| (0..outputs).map(move |j| (i, j))) {
                    let dot = |k: usize| f64::from(x[i * columns + k]) * f64::from(weights[j * columns + k]);
                    let want = (0..columns).map(dot).sum::<f64>() + f64::from(bias[j]);
                    assert!(near(found[i * outputs + j], want), "{isa:?} {rows} {columns} {outputs}");
                }
                let before = numbers(outputs * columns, 4);
                let mut sums = before.clone();
                add_products(&cpu, &x, columns, &found, outputs, &mut sums);
                for (j, k) in (0..outputs).flat_map(|j| (0..columns).map(move |k| (j, k))) {
                    let each = |i: usize| f64::from(found[i * outputs + j]) * f64::from(x[i * columns + k]);
                    let want = f64::from(before[j * columns + k]) + (0..rows).map(each).sum::<f64>();
                    assert!(near(sums[j * columns + k], want), "{isa:?} {rows} {columns} {outputs}");
                }
            }
        }
    }

    #[test]
    #[should_panic]
    fn what_does_not_fit_is_refused() {
        let cpu = Cpu::with_isa(Isa::Scalar, 1).unwrap();
        add_products(&cpu, &[0.0; 6], 3, &[0.0; 3], 2, &mut [0.0; 6]);
    }
}
