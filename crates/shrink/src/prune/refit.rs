//! The exact least-squares refit after any mask: what is kept of a row takes over what is gone, as far as the inputs
//! allow it. With H the mean products of the inputs, K what is kept and D what is gone,
//! `w'_K = w_K + H_KK^-1 H_KD w_D`.

use std::collections::HashMap;

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use crate::Result;
use crate::gram::Gram;
use crate::matrix::Matrix;
use learn::linear::Cholesky;

/// Multiply-adds of factors beyond which all rows are solved at once by conjugate gradients.
const FACTORS: f64 = 4e10;
/// Most steps of conjugate gradients.
const STEPS: usize = 60;
/// They end when each row's residual has become this small a part of what it was (squares).
const SMALL: f64 = 1e-9;

/// Zeros where the mask is false, and the rest of each row refitted. Rows with the same mask share the work.
///
/// # Errors
/// When the statistics cannot be factored.
pub fn refit(cpu: &Cpu, w: &Matrix, mask: &[bool], gram: &Gram, damp: f64) -> Result<Matrix> {
    let mut alike: HashMap<&[bool], Vec<usize>> = HashMap::new();
    for (i, mask) in mask.chunks_exact(w.cols.max(1)).enumerate() {
        alike.entry(mask).or_default().push(i);
    }
    let cost = |mask: &[bool]| (mask.iter().filter(|keep| **keep).count() as f64).powi(3) / 3.0;
    if alike.keys().map(|mask| cost(mask)).sum::<f64>() > FACTORS {
        return Ok(by_gradients(cpu, w, mask, gram, damp));
    }
    let mut groups: Vec<(&[bool], Vec<usize>)> = alike.into_iter().collect();
    groups.sort_by_key(|(_, rows)| rows[0]);
    let solved = cpu.pool().map(groups.len(), |at| {
        let (mask, rows) = &groups[at];
        solve(w, mask, rows, gram, damp)
    });
    let mut out = Matrix::zeros(w.rows, w.cols);
    for ((mask, rows), solved) in groups.iter().zip(solved) {
        let solved = solved?;
        let kept: Vec<usize> = (0..w.cols).filter(|&j| mask[j]).collect();
        for (row, values) in rows.iter().zip(solved.chunks(kept.len().max(1))) {
            for (&j, &value) in kept.iter().zip(values) {
                out.row_mut(*row)[j] = value as f32;
            }
        }
    }
    Ok(out)
}

/// The kept weights of these rows, which have one mask, row by row.
fn solve(w: &Matrix, mask: &[bool], rows: &[usize], gram: &Gram, damp: f64) -> Result<Vec<f64>> {
    let (kept, gone): (Vec<usize>, Vec<usize>) = (0..w.cols).partition(|&j| mask[j]);
    let mut right: Vec<f64> = Vec::with_capacity(rows.len() * kept.len());
    for &row in rows {
        let w = w.row(row);
        for &i in &kept {
            right.push(gone.iter().map(|&j| gram.mean_product(i, j) * f64::from(w[j])).sum());
        }
    }
    if !kept.is_empty() && !gone.is_empty() {
        let factor: Cholesky = gram.cholesky(damp, &kept)?;
        factor.solve(&mut right);
    }
    for (&row, change) in rows.iter().zip(right.chunks_mut(kept.len().max(1))) {
        change.iter_mut().zip(&kept).for_each(|(c, &j)| *c += f64::from(w.row(row)[j]));
    }
    Ok(right)
}

/// The same by conjugate gradients with the diagonal as preconditioner, all rows at once: each step is one product of
/// the rows with the mean products.
fn by_gradients(cpu: &Cpu, w: &Matrix, mask: &[bool], gram: &Gram, damp: f64) -> Matrix {
    let (rows, n) = (w.rows, w.cols);
    let order: Vec<usize> = (0..n).collect();
    let damped: Vec<f32> = gram.damped(damp, &order).into_iter().map(|v| v as f32).collect();
    let plain: Vec<f32> = gram.damped(0.0, &order).into_iter().map(|v| v as f32).collect();
    let times = |h: &[f32], x: &[f32]| -> Vec<f32> {
        let mut out = vec![0f32; rows * n];
        matmul(cpu, View::new(x, rows, n), View::new(h, n, n), &mut out, n, &Post::default());
        out.iter_mut().zip(mask).filter(|(_, keep)| !**keep).for_each(|(v, _)| *v = 0.0);
        out
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let gone: Vec<f32> = w.data.iter().zip(mask).map(|(&x, &keep)| if keep { 0.0 } else { x }).collect();
    let mut residual = times(&plain, &gone);
    let precondition = |r: &[f32]| -> Vec<f32> {
        r.iter().enumerate().map(|(k, &v)| v / damped[k % n * (n + 1)].max(f32::MIN_POSITIVE)).collect()
    };
    let mut z = precondition(&residual);
    let mut direction = z.clone();
    let row = |k: usize| k * n..(k + 1) * n;
    let mut size: Vec<f64> = (0..rows).map(|k| dot(&residual[row(k)], &z[row(k)])).collect();
    let goal: Vec<f64> = size.iter().map(|s| s * SMALL).collect();
    let mut change = vec![0f32; rows * n];
    for _ in 0..STEPS {
        if size.iter().zip(&goal).all(|(s, g)| s <= g) {
            break;
        }
        let image = times(&damped, &direction);
        for k in 0..rows {
            let curve = dot(&direction[row(k)], &image[row(k)]);
            if curve <= 0.0 || size[k] <= goal[k] {
                continue;
            }
            let step = (size[k] / curve) as f32;
            for at in row(k) {
                change[at] += step * direction[at];
                residual[at] -= step * image[at];
            }
        }
        z = precondition(&residual);
        for k in 0..rows {
            let next = dot(&residual[row(k)], &z[row(k)]);
            let keep = if size[k] > goal[k] && size[k] > 0.0 { (next / size[k]) as f32 } else { 0.0 };
            for at in row(k) {
                direction[at] = z[at] + keep * direction[at];
            }
            size[k] = next;
        }
    }
    let data = w.data.iter().zip(mask).zip(&change).map(|((&x, &keep), &c)| if keep { x + c } else { 0.0 });
    Matrix::new(rows, n, data.collect())
}

#[cfg(test)]
mod tests {
    use kernel::Isa;

    use super::*;
    use crate::gram::DAMP;
    use crate::gram::tests::{cpu, known_gram, known_weights};
    use crate::prune::pattern::Pattern;
    use crate::prune::{magnitude, wanda};
    use crate::quantize::coded::tests::layer;

    fn relative(gram: &Gram, old: &Matrix, new: &Matrix) -> f64 {
        let (harm, energy) = gram.harm(&cpu(), old, new);
        harm / energy
    }

    fn masked(w: &Matrix, mask: &[bool]) -> Matrix {
        let data = w.data.iter().zip(mask).map(|(&x, &keep)| if keep { x } else { 0.0 });
        Matrix::new(w.rows, w.cols, data.collect())
    }

    #[test]
    fn the_refit_is_that_of_the_handbook() {
        let (gram, w) = (known_gram(), known_weights());
        let mask = Pattern::Rows.mask(&wanda(&w, &gram), 0.5);
        let kept = |row: usize| (0..8).filter(|j| mask[row * 8 + j]).collect::<Vec<_>>();
        assert_eq!((kept(0), kept(1)), (vec![2, 4, 5, 7], vec![2, 3, 4, 5]));
        assert!((relative(&gram, &w, &masked(&w, &mask)) - 0.09405915).abs() < 1e-5);
        let fitted = refit(&cpu(), &w, &mask, &gram, DAMP).unwrap();
        let apart = relative(&gram, &w, &fitted);
        assert!((apart - 0.05018569).abs() < 1e-5, "{apart} {fitted:?}");
    }

    #[test]
    fn a_refit_more_than_halves_the_error_of_every_mask() {
        let (gram, w) = layer(40, 160, 3000);
        for pattern in ["anywhere", "rows", "2:4", "4:8", "4x1", "16x1"] {
            for scores in [magnitude(&w), wanda(&w, &gram)] {
                let mask = pattern.parse::<Pattern>().unwrap().mask(&scores, 0.5);
                let fitted = refit(&cpu(), &w, &mask, &gram, DAMP).unwrap();
                assert!(fitted.data.iter().zip(&mask).all(|(x, keep)| *keep || *x == 0.0));
                let (a, b) = (relative(&gram, &w, &fitted), relative(&gram, &w, &masked(&w, &mask)));
                assert!(a < 0.5 * b, "{pattern}: {a} {b}");
                // Conjugate gradients come to the same.
                let other = relative(&gram, &w, &by_gradients(&cpu(), &w, &mask, &gram, DAMP));
                assert!((other / a - 1.0).abs() < 0.05, "{pattern}: {other} {a}");
            }
        }
    }

    #[test]
    fn threads_change_nothing_and_the_ends_hold() {
        let (gram, w) = layer(20, 60, 500);
        let mask = Pattern::Anywhere.mask(&wanda(&w, &gram), 0.6);
        let of =
            |threads| refit(&Cpu::with_isa(Isa::best(), threads).unwrap(), &w, &mask, &gram, DAMP).unwrap();
        assert_eq!(of(1), of(3));
        assert_eq!(refit(&cpu(), &w, &vec![true; 1200], &gram, DAMP).unwrap(), w);
        let none = refit(&cpu(), &w, &vec![false; 1200], &gram, DAMP).unwrap();
        assert!(none.data.iter().all(|x| *x == 0.0));
    }
}
