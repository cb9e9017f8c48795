//! The one loop of GPTQ and SparseGPT: columns are fixed one after the other, and what each loses is made up for by
//! those that are still free (the optimal brain surgeon's update, with one factor of the inverse for all rows).
//! Frantar et al., "GPTQ" (2022) and "SparseGPT" (2023).

use std::ops::Range;

use kernel::Cpu;
use kernel::f32::{Add, Post, matmul};
use kernel::matmul::View;

use crate::matrix::Matrix;

/// Columns whose updates of later ones are put off and done as one product.
const BLOCK: usize = 128;
/// Rows that a task works on; a column of them is contiguous.
const STRIP: usize = 32;

/// Which elements become 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Zeros<'a> {
    /// None but what the grid makes so.
    Free,
    /// Those where the mask, row-major in the matrix's own order of columns, is false.
    Mask(&'a [bool]),
    /// This share of all, chosen block by block where it costs least.
    Share(f64),
    /// So many of each `of` neighbours in a row, in the order of the sweep.
    Pattern {
        /// Elements that become 0.
        zeros: usize,
        /// Of so many.
        of: usize,
    },
}

/// Fixes the columns of `w` in `order`, of which `factor` is the inverse's factor (`n x n`, in that order).
/// `fix(row, column, x)` says what an element becomes that has come to be `x`; it is not asked for zeros.
pub fn sweep(
    cpu: &Cpu,
    w: &mut Matrix,
    factor: &[f32],
    order: &[usize],
    zeros: Zeros,
    fix: &(impl Fn(usize, usize, f32) -> f32 + Sync),
) {
    let (rows, n) = (w.rows, w.cols);
    // In the order of the sweep, so that what is left of a row is contiguous.
    let mut free = Matrix::zeros(rows, n);
    for i in 0..rows {
        let (from, to) = (w.row(i), &mut free.data[i * n..][..n]);
        to.iter_mut().zip(order).for_each(|(to, &j)| *to = from[j]);
    }
    for start in (0..n).step_by(BLOCK) {
        let columns = start..(start + BLOCK).min(n);
        let width = columns.len();
        let dropped = match zeros {
            Zeros::Share(share) => cheapest(&free, factor, &columns, share),
            Zeros::Mask(mask) => {
                let at = |k: usize| !mask[k / width * n + order[columns.start + k % width]];
                (0..rows * width).map(at).collect()
            }
            _ => Vec::new(),
        };
        // Each strip gives back its fixed columns and its errors, both row-major.
        let mut done = vec![0f32; rows * width * 2];
        let block = Block { factor, n, columns: &columns, order, zeros, dropped: &dropped, fix };
        cpu.pool().for_chunks_mut(&mut done, STRIP * width * 2, |strip, out| {
            block.fix_strip(&free, strip * STRIP, out);
        });
        let mut errors = vec![0f32; rows * width];
        for i in 0..rows {
            let out = &done[i * width * 2..][..width * 2];
            for (k, &value) in out[..width].iter().enumerate() {
                w.data[i * n + order[columns.start + k]] = value;
            }
            errors[i * width..][..width].copy_from_slice(&out[width..]);
        }
        if columns.end < n && rows > 0 {
            let later = n - columns.end;
            let push = View::strided(&factor[columns.start * n + columns.end..], width, later, n, 1);
            let post = Post { alpha: -1.0, add: Add::Out, ..Post::default() };
            matmul(cpu, View::new(&errors, rows, width), push, &mut free.data[columns.end..], n, &post);
        }
    }
}

/// Which elements of these columns are cheapest to lose: exactly this share of them, row-major.
fn cheapest(free: &Matrix, factor: &[f32], columns: &Range<usize>, share: f64) -> Vec<bool> {
    let n = free.cols;
    let cost = |i: usize, j: usize| {
        let c = free.data[i * n + j] / factor[j * n + j];
        if c.is_nan() { f32::INFINITY } else { c * c }
    };
    let mut all: Vec<(f32, u32)> = Vec::with_capacity(free.rows * columns.len());
    for i in 0..free.rows {
        for j in columns.clone() {
            all.push((cost(i, j), all.len() as u32));
        }
    }
    let count = (all.len() as f64 * share.clamp(0.0, 1.0)).round() as usize;
    let mut dropped = vec![false; all.len()];
    if count > 0 {
        all.select_nth_unstable_by(count - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        all[..count].iter().for_each(|&(_, at)| dropped[at as usize] = true);
    }
    dropped
}

struct Block<'a, F> {
    factor: &'a [f32],
    n: usize,
    columns: &'a Range<usize>,
    order: &'a [usize],
    zeros: Zeros<'a>,
    /// Row-major over all rows and these columns; empty when nothing was chosen ahead.
    dropped: &'a [bool],
    fix: &'a F,
}

impl<F: Fn(usize, usize, f32) -> f32 + Sync> Block<'_, F> {
    /// Fixes the columns of the rows from `first` on; `out` has for each row the fixed elements, then their errors.
    fn fix_strip(&self, free: &Matrix, first: usize, out: &mut [f32]) {
        let (n, width) = (self.n, self.columns.len());
        let count = out.len() / (2 * width);
        // Column by column, so that the update of a column by another is a loop over contiguous numbers.
        let mut work = vec![0f32; width * count];
        for r in 0..count {
            for (k, j) in self.columns.clone().enumerate() {
                work[k * count + r] = free.data[(first + r) * n + j];
            }
        }
        let mut dropped = vec![false; width * count];
        if !self.dropped.is_empty() {
            for r in 0..count {
                for k in 0..width {
                    dropped[k * count + r] = self.dropped[(first + r) * width + k];
                }
            }
        }
        let mut error = vec![0f32; count];
        for k in 0..width {
            if let Zeros::Pattern { zeros, of } = self.zeros
                && k % of.max(1) == 0
            {
                self.drop_pattern(&work, &mut dropped, k..(k + of.max(1)).min(width), zeros, count);
            }
            let at = self.columns.start + k;
            let line = &self.factor[at * n..][..n];
            let (own, after) = work[k * count..].split_at_mut(count);
            for r in 0..count {
                let fixed = match dropped[k * count + r] {
                    true => 0.0,
                    false => (self.fix)(first + r, self.order[at], own[r]),
                };
                error[r] = (own[r] - fixed) / line[at];
                out[r * 2 * width + k] = fixed;
                out[r * 2 * width + width + k] = error[r];
            }
            for (other, &u) in after.chunks_exact_mut(count.max(1)).zip(&line[at + 1..self.columns.end]) {
                other.iter_mut().zip(&error).for_each(|(x, e)| *x -= e * u);
            }
        }
    }

    /// Chooses the zeros among a group of neighbours, row by row.
    fn drop_pattern(
        &self,
        work: &[f32],
        dropped: &mut [bool],
        group: Range<usize>,
        zeros: usize,
        count: usize,
    ) {
        let mut costs: Vec<(f32, usize)> = Vec::with_capacity(group.len());
        for r in 0..count {
            costs.clear();
            costs.extend(group.clone().map(|k| {
                let at = self.columns.start + k;
                ((work[k * count + r] / self.factor[at * self.n + at]).powi(2), k)
            }));
            costs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for &(_, k) in costs.iter().take(zeros) {
                dropped[k * count + r] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kernel::Isa;

    use super::*;
    use crate::gram::tests::{cpu, known_gram, known_weights};
    use crate::gram::{DAMP, Gram};

    fn natural(n: usize) -> Vec<usize> {
        (0..n).collect()
    }

    fn relative(gram: &Gram, old: &Matrix, new: &Matrix) -> f64 {
        let (harm, energy) = gram.harm(&cpu(), old, new);
        harm / energy
    }

    #[test]
    fn patterns_are_those_of_the_handbook() {
        let (gram, w) = (known_gram(), known_weights());
        let factor = gram.inverse_factor(DAMP, &natural(8)).unwrap();
        let mut pruned = w.clone();
        let zeros = Zeros::Pattern { zeros: 2, of: 4 };
        sweep(&cpu(), &mut pruned, &factor, &natural(8), zeros, &|_, _, x| x);
        let want = [
            [0.0, 0.0, 1.22252, -0.622457, 0.0, -1.705973, 0.0, 0.8235],
            [0.0, 0.0, -0.481834, 0.501162, 1.082619, -0.714291, 0.0, 0.0],
        ];
        for (got, want) in pruned.data.iter().zip(want.as_flattened()) {
            assert!((got - want).abs() < 1e-4, "{pruned:?}");
        }
        assert!((relative(&gram, &w, &pruned) - 0.07301431).abs() < 1e-5);
    }

    /// A matrix wider than a block, and inputs that hang together.
    fn wide() -> (Gram, Matrix) {
        let n = 300;
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let mut x = vec![0f32; 2000 * n];
        for row in x.chunks_mut(n) {
            let common = next();
            row.iter_mut().enumerate().for_each(|(j, v)| *v = next() + common * (1.0 + (j % 7) as f32));
        }
        let mut gram = Gram::new(n);
        gram.add(&cpu(), &x);
        (gram, Matrix::new(40, n, (0..40 * n).map(|_| next()).collect()))
    }

    #[test]
    fn errors_are_made_up_for_and_threads_change_nothing() {
        let (gram, w) = wide();
        let factor = gram.inverse_factor(DAMP, &natural(300)).unwrap();
        let nearest = |_: usize, _: usize, x: f32| (x * 4.0).round_ties_even() / 4.0;
        let plain = Matrix { data: w.data.iter().map(|&x| nearest(0, 0, x)).collect(), ..w.clone() };
        let swept = |threads| {
            let cpu = Cpu::with_isa(Isa::best(), threads).unwrap();
            let mut w = w.clone();
            sweep(&cpu, &mut w, &factor, &natural(300), Zeros::Free, &nearest);
            w
        };
        let one = swept(1);
        assert_eq!(one, swept(3));
        assert!(one.data.iter().all(|x| (x * 4.0).fract() == 0.0));
        let (a, b) = (relative(&gram, &w, &one), relative(&gram, &w, &plain));
        assert!(a < 0.5 * b, "{a} {b}");
    }

    #[test]
    fn the_share_of_zeros_is_met_exactly() {
        let (gram, w) = wide();
        let factor = gram.inverse_factor(DAMP, &natural(300)).unwrap();
        let mut pruned = w.clone();
        sweep(&cpu(), &mut pruned, &factor, &natural(300), Zeros::Share(0.5), &|_, _, x| x);
        assert_eq!(pruned.data.iter().filter(|x| **x == 0.0).count(), 40 * 150);
        // The same by magnitude, without any update.
        let mut sizes: Vec<f32> = w.data.iter().map(|x| x.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let least = sizes[40 * 150];
        let cut = |&x: &f32| if x.abs() < least { 0.0 } else { x };
        let magnitude = Matrix { data: w.data.iter().map(cut).collect(), ..w.clone() };
        let (a, b) = (relative(&gram, &w, &pruned), relative(&gram, &w, &magnitude));
        assert!(a < 0.5 * b, "{a} {b}");
        // A mask that is given is kept.
        let mask: Vec<bool> = magnitude.data.iter().map(|x| *x != 0.0).collect();
        let mut masked = w.clone();
        sweep(&cpu(), &mut masked, &factor, &natural(300), Zeros::Mask(&mask), &|_, _, x| x);
        assert!(masked.data.iter().zip(&mask).all(|(x, keep)| *keep || *x == 0.0));
        assert!(relative(&gram, &w, &masked) < 0.5 * b);
    }

    #[test]
    fn the_order_of_columns_is_undone() {
        let (gram, w) = wide();
        let order: Vec<usize> = (0..300).rev().collect();
        let factor = gram.inverse_factor(DAMP, &order).unwrap();
        let mut same = w.clone();
        sweep(&cpu(), &mut same, &factor, &order, Zeros::Free, &|_, _, x| x);
        assert_eq!(same, w);
    }
}
