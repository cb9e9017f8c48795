//! Rounding that looks at what the products become, not at the weights: element after element moves to the code that
//! makes the error of the outputs least with all others as they are, until none moves. The error is a quadratic form of
//! the sums of products of the inputs, so its gradient is exact and no example runs again (coordinate descent; Behdin
//! et al., "QuantEase", 2023; the question is that of Nagel et al., "AdaRound", 2020).

use kernel::Cpu;

use crate::gram::Gram;
use crate::matrix::Matrix;

/// Most passes over a row.
const ROUNDS: usize = 8;

/// Mean products of inputs, `n x n`, with `damp` of their mean square added to the diagonal.
pub fn products(gram: &Gram, damp: f64) -> Vec<f32> {
    let order: Vec<usize> = (0..gram.size()).collect();
    gram.damped(damp, &order).into_iter().map(|p| p as f32).collect()
}

/// Moves the elements of `fixed`, which stand for those of `w`, so that the mean squared change of the outputs falls.
/// `products` are the mean products of the inputs, `n x n`. `fix(row, column, x, others)` gives the code's number
/// nearest to `x` that the element may have; `others` is the row as it is.
pub fn descend(
    cpu: &Cpu,
    w: &Matrix,
    fixed: &mut Matrix,
    products: &[f32],
    fix: &(impl Fn(usize, usize, f32, &[f32]) -> f32 + Sync),
) {
    let n = w.cols;
    cpu.pool().for_chunks_mut(&mut fixed.data, n.max(1), |row, out| {
        let mut slope = slope(w.row(row), out, products);
        for _ in 0..ROUNDS {
            let mut moved = false;
            for j in 0..n {
                let own = products[j * n + j];
                let best = out[j] - slope[j] / own;
                if !best.is_finite() || own <= 0.0 {
                    continue;
                }
                let step = fix(row, j, best, out) - out[j];
                // What is gained must be more than the rounding of the sums.
                let change = step * (2.0 * slope[j] + step * own);
                if step != 0.0 && change < -1e-5 * step * step * own {
                    out[j] += step;
                    let products = &products[j * n..][..n];
                    slope.iter_mut().zip(products).for_each(|(s, p)| *s += step * p);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    });
}

/// Half the gradient of a row: what each input's column says of the errors of all.
fn slope(old: &[f32], new: &[f32], products: &[f32]) -> Vec<f32> {
    let mut slope = vec![0f32; old.len()];
    for ((a, b), products) in new.iter().zip(old).zip(products.chunks_exact(old.len())) {
        if a != b {
            slope.iter_mut().zip(products).for_each(|(s, p)| *s += (a - b) * p);
        }
    }
    slope
}

/// Stretches the groups of `fixed`, of `group` neighbours in a row, one after the other so that the mean squared change
/// of the outputs falls most. Gives the factors, a list for each row.
pub fn stretch(cpu: &Cpu, w: &Matrix, fixed: &mut Matrix, products: &[f32], group: usize) -> Vec<f32> {
    let (n, groups) = (w.cols, w.cols.div_ceil(group.max(1)));
    let mut rows = vec![0f32; w.rows * (n + groups)];
    cpu.pool().for_chunks_mut(&mut rows, (n + groups).max(1), |row, out| {
        let (out, factors) = out.split_at_mut(n);
        out.copy_from_slice(fixed.row(row));
        let mut slope = slope(w.row(row), out, products);
        for (g, factor) in factors.iter_mut().enumerate() {
            let columns = g * group..((g + 1) * group).min(n);
            // What the outputs' errors get of the group.
            let mut push = vec![0f32; n];
            for j in columns.clone().filter(|&j| out[j] != 0.0) {
                let products = &products[j * n..][..n];
                push.iter_mut().zip(products).for_each(|(s, p)| *s += out[j] * p);
            }
            let along: f32 = columns.clone().map(|j| out[j] * slope[j]).sum();
            let own: f32 = columns.clone().map(|j| out[j] * push[j]).sum();
            let step = -along / own;
            // No group turns over or vanishes.
            let step = if step.is_finite() && own > 0.0 { step.clamp(-0.5, 1.0) } else { 0.0 };
            *factor = 1.0 + step;
            out[columns].iter_mut().for_each(|x| *x *= *factor);
            slope.iter_mut().zip(&push).for_each(|(s, p)| *s += step * p);
        }
    });
    let mut factors = Vec::with_capacity(w.rows * groups);
    for (row, new) in rows.chunks_exact((n + groups).max(1)).enumerate() {
        fixed.data[row * n..][..n].copy_from_slice(&new[..n]);
        factors.extend_from_slice(&new[n..]);
    }
    factors
}

#[cfg(test)]
mod tests {
    use kernel::Isa;

    use super::*;
    use crate::gram::DAMP;
    use crate::gram::tests::{cpu, known_gram, known_weights};
    use crate::quantize::coded::tests::layer;

    #[test]
    fn nothing_that_one_element_could_do_is_left_undone() {
        let (gram, w) = (known_gram(), known_weights());
        let fix = |_: usize, _: usize, x: f32, _: &[f32]| (x * 4.0).round_ties_even().clamp(-3.0, 3.0) / 4.0;
        let start = Matrix::new(2, 8, w.data.iter().map(|&x| fix(0, 0, x, &[])).collect());
        let mut found = start.clone();
        descend(&cpu(), &w, &mut found, &products(&gram, DAMP), &fix);
        let harm = |m: &Matrix| gram.harm(&cpu(), &w, m).0;
        assert!(harm(&found) < harm(&start), "{} {}", harm(&found), harm(&start));
        let h = products(&gram, DAMP);
        let damped = |m: &Matrix| -> f64 {
            let d: Vec<f32> = m.data.iter().zip(&w.data).map(|(a, b)| a - b).collect();
            let term = |k: usize| {
                let (row, i) = (k / 64, k / 8 % 8);
                f64::from(d[row * 8 + i]) * f64::from(d[row * 8 + k % 8]) * f64::from(h[i * 8 + k % 8])
            };
            (0..128).map(term).sum()
        };
        let least = damped(&found);
        for k in 0..16 {
            for code in -3..=3 {
                let mut other = found.clone();
                other.data[k] = code as f32 / 4.0;
                assert!(damped(&other) >= least * 0.9999, "{k} {code}");
            }
        }
    }

    #[test]
    fn groups_are_stretched_to_where_the_error_is_least() {
        let (gram, w) = layer(5, 60, 500);
        let products = products(&gram, DAMP);
        let start = Matrix::new(5, 60, w.data.iter().map(|x| (x * 1.5).round_ties_even()).collect());
        let mut found = start.clone();
        let factors = stretch(&cpu(), &w, &mut found, &products, 25);
        assert_eq!(factors.len(), 15);
        for (k, x) in found.data.iter().enumerate() {
            let (row, col) = (k / 60, k % 60);
            assert_eq!(*x, start.data[k] * factors[row * 3 + col / 25]);
        }
        let harm = |m: &Matrix| gram.harm(&cpu(), &w, m).0;
        assert!(harm(&found) < 0.9 * harm(&start), "{} {}", harm(&found), harm(&start));
        // The last group of each row has the best factor of all, with the others as they are.
        for change in [0.98, 1.02] {
            let mut other = found.clone();
            other.data.chunks_exact_mut(60).for_each(|row| row[50..].iter_mut().for_each(|x| *x *= change));
            assert!(harm(&other) > harm(&found), "{change}");
        }
        let none = stretch(&cpu(), &w, &mut Matrix::zeros(5, 60), &products, 25);
        assert!(none.iter().all(|f| *f == 1.0));
    }

    #[test]
    fn threads_change_nothing() {
        let (gram, w) = layer(20, 60, 500);
        let fix = |_: usize, _: usize, x: f32, _: &[f32]| x.round_ties_even();
        let of = |threads| {
            let mut fixed = Matrix::new(20, 60, w.data.iter().map(|x| x.round_ties_even()).collect());
            descend(
                &Cpu::with_isa(Isa::best(), threads).unwrap(),
                &w,
                &mut fixed,
                &products(&gram, DAMP),
                &fix,
            );
            fixed
        };
        assert_eq!(of(1), of(3));
    }
}
