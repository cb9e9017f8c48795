//! Softmax and log-softmax, in place.
//!
//! As the ONNX reference computes them: the largest is subtracted first; a row of nothing but -inf (or with a NaN
//! or an inf) becomes NaN.

use crate::lanes::{Body, Parts, Set, run, split};
use crate::reduce::{Larger, Plus, STRIP, fold, fold_columns};
use crate::{Cpu, math};

/// Softmax over `axis` of `data` = `[outer, axis, inner]`.
///
/// # Panics
/// When the length of `data` does not fit `dims`.
pub fn softmax(cpu: &Cpu, data: &mut [f32], dims: [usize; 3]) {
    over(cpu, data, dims, false);
}

/// Logarithm of the softmax over `axis` of `data` = `[outer, axis, inner]`.
///
/// # Panics
/// When the length of `data` does not fit `dims`.
pub fn log_softmax(cpu: &Cpu, data: &mut [f32], dims: [usize; 3]) {
    over(cpu, data, dims, true);
}

/// Softmax of `scale x + mask(row)` over each row of `data` = `[rows, n]`; `mask` gives `n` numbers to add to a row,
/// or none.
///
/// # Panics
/// When `n` does not divide the length of `data`, or a mask row has another length than `n`.
pub fn softmax_masked<'a>(
    cpu: &Cpu,
    data: &mut [f32],
    n: usize,
    scale: f32,
    mask: impl Fn(usize) -> Option<&'a [f32]> + Sync,
) {
    if data.is_empty() {
        return;
    }
    assert!(n > 0 && data.len().is_multiple_of(n));
    let (rows, parts) = (data.len() / n, Parts::new(data));
    split(cpu, rows, n, |items| {
        for r in items {
            // SAFETY: each item is one row.
            let row = unsafe { parts.part(r * n..(r + 1) * n) };
            let mask = mask(r);
            assert!(mask.is_none_or(|mask| mask.len() == n));
            run(cpu, Row { row, scale, mask, log: false });
        }
    });
}

fn over(cpu: &Cpu, data: &mut [f32], [outer, axis, inner]: [usize; 3], log: bool) {
    let image = axis.checked_mul(inner);
    assert_eq!(image.and_then(|image| image.checked_mul(outer)), Some(data.len()));
    let image = axis * inner;
    let parts = Parts::new(data);
    split(cpu, outer, image, |items| {
        for o in items {
            // SAFETY: each item is one `[axis, inner]`.
            let data = unsafe { parts.part(o * image..(o + 1) * image) };
            if inner == 1 {
                run(cpu, Row { row: data, scale: 1.0, mask: None, log });
            } else if !data.is_empty() {
                run(cpu, Columns { data, inner, log });
            }
        }
    });
}

struct Row<'a> {
    row: &'a mut [f32],
    scale: f32,
    mask: Option<&'a [f32]>,
    log: bool,
}

impl Body for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let row = self.row;
        if let Some(mask) = self.mask {
            for (x, &m) in row.iter_mut().zip(mask) {
                *x = math::fma::<S>(*x, self.scale, m);
            }
        } else if self.scale != 1.0 {
            for x in row.iter_mut() {
                *x *= self.scale;
            }
        }
        let top = fold::<Larger>(row, |x| x) as f32;
        if self.log {
            let sum = fold::<Plus>(row, |x| math::exp_neg::<S>(x - top));
            let log = sum.ln() as f32;
            for x in row.iter_mut() {
                *x = (*x - top) - log;
            }
            return;
        }
        for x in row.iter_mut() {
            *x = math::exp_neg::<S>(*x - top);
        }
        let scale = (1.0 / fold::<Plus>(row, |x| x)) as f32;
        for x in row.iter_mut() {
            *x *= scale;
        }
    }
}

struct Columns<'a> {
    data: &'a mut [f32],
    inner: usize,
    log: bool,
}

impl Body for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let inner = self.inner;
        for first in (0..inner).step_by(STRIP) {
            let width = STRIP.min(inner - first);
            let top = fold_columns::<Larger>(self.data, inner, first, width, |_, x| x).map(|top| top as f32);
            let exp = |c: usize, x: f32| math::exp_neg::<S>(x - top[c]);
            if self.log {
                let log =
                    fold_columns::<Plus>(self.data, inner, first, width, exp).map(|sum| sum.ln() as f32);
                for row in self.data.chunks_exact_mut(inner) {
                    for (c, x) in row[first..first + width].iter_mut().enumerate() {
                        *x = (*x - top[c]) - log[c];
                    }
                }
                continue;
            }
            for row in self.data.chunks_exact_mut(inner) {
                for (c, x) in row[first..first + width].iter_mut().enumerate() {
                    *x = exp(c, *x);
                }
            }
            let scale =
                fold_columns::<Plus>(self.data, inner, first, width, |_, x| x).map(|sum| (1.0 / sum) as f32);
            for row in self.data.chunks_exact_mut(inner) {
                for (x, scale) in row[first..first + width].iter_mut().zip(scale) {
                    *x *= scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    fn spec(data: &[f32], [outer, axis, inner]: [usize; 3], log: bool) -> Vec<f64> {
        let mut output = vec![0.0; data.len()];
        for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
            let at = |a: usize| (o * axis + a) * inner + i;
            let top = (0..axis).map(|a| data[at(a)] as f64).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..axis).map(|a| (data[at(a)] as f64 - top).exp()).sum();
            for a in 0..axis {
                let x = data[at(a)] as f64 - top;
                output[at(a)] = if log { x - sum.ln() } else { x.exp() / sum };
            }
        }
        output
    }

    proptest! {
        #[test]
        fn every_instruction_set_is_the_definition(
            outer in 0usize..4,
            axis in prop_oneof![0usize..40, 1000usize..1100],
            inner in prop_oneof![Just(1usize), 0usize..70, 128usize..150],
            spread in 0.1f32..60.0,
            log in any::<bool>(),
        ) {
            let dims = [outer, axis, inner];
            let data: Vec<f32> =
                (0..outer * axis * inner).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 * spread).collect();
            let want = spec(&data, dims, log);
            for isa in Isa::available() {
                let results = [1, 2].map(|threads| {
                    let cpu = Cpu::with_isa(isa, threads).unwrap();
                    let mut data = data.clone();
                    if log { log_softmax(&cpu, &mut data, dims) } else { softmax(&cpu, &mut data, dims) }
                    data
                });
                prop_assert_eq!(&results[0], &results[1]);
                for (y, w) in results[0].iter().zip(&want) {
                    // What the sum's rounding moves in proportion, it moves in the logarithm by as much outright.
                    let loose = if log { 4e-6 } else { 1e-37 };
                    prop_assert!((*y as f64 - w).abs() <= 4e-6 * w.abs() + loose, "{}: {} for {}", isa, y, w);
                }
            }
        }
    }

    #[test]
    fn masks_and_infinities() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            let none = f32::NEG_INFINITY;
            let mut data = vec![1.0, 2.0, 3.0, none, none, none, none, 5.0, 5.0, f32::NAN, 1.0, 1.0];
            softmax(&cpu, &mut data, [4, 3, 1]);
            assert!(data[3..6].iter().chain(&data[9..]).all(|x| x.is_nan()));
            assert_eq!(data[6..9], [0.0, 0.5, 0.5]);
            let mask = [0.0, none, 0.0];
            let mut data = vec![1.0, 2.0, 1.0, 4.0, 4.0, 4.0];
            softmax_masked(&cpu, &mut data, 3, 0.5, |row| (row == 0).then_some(&mask[..]));
            assert_eq!(data[..3], [0.5, 0.0, 0.5]);
            assert!(data[3..].iter().all(|x| (x - 1.0 / 3.0).abs() < 1e-7));
        }
    }
}
