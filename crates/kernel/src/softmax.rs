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
                let log = fold_columns::<Plus>(self.data, inner, first, width, exp).map(|sum| sum.ln() as f32);
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
