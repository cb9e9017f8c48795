//! Rounding that looks at what the products become, not at the weights: element after element moves to the code that
//! makes the error of the outputs least with all others as they are, until none moves. The error is a quadratic form of
//! the sums of products of the inputs, so its gradient is exact and no example runs again (coordinate descent; Behdin
//! et al., "QuantEase", 2023; the question is that of Nagel et al., "AdaRound", 2020).

use kernel::Cpu;

use crate::matrix::Matrix;

/// Most passes over a row.
const ROUNDS: usize = 8;

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
        let apart: Vec<f32> = out.iter().zip(w.row(row)).map(|(a, b)| a - b).collect();
        // Half the gradient: what each input's column says of the errors of all.
        let mut slope = vec![0f32; n];
        for (&d, products) in apart.iter().zip(products.chunks_exact(n)) {
            if d != 0.0 {
                slope.iter_mut().zip(products).for_each(|(s, p)| *s += d * p);
            }
        }
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

#[cfg(test)]
mod tests {
    use kernel::Isa;

    use super::*;
    use crate::gram::DAMP;
    use crate::gram::tests::{cpu, known_gram, known_weights};
    use crate::quantize::coded::tests::layer;

    fn products(gram: &crate::gram::Gram) -> Vec<f32> {
        let order: Vec<usize> = (0..gram.size()).collect();
        gram.damped(DAMP, &order).into_iter().map(|p| p as f32).collect()
    }

    #[test]
    fn nothing_that_one_element_could_do_is_left_undone() {
        let (gram, w) = (known_gram(), known_weights());
        let fix = |_: usize, _: usize, x: f32, _: &[f32]| (x * 4.0).round_ties_even().clamp(-3.0, 3.0) / 4.0;
        let start = Matrix::new(2, 8, w.data.iter().map(|&x| fix(0, 0, x, &[])).collect());
        let mut found = start.clone();
        descend(&cpu(), &w, &mut found, &products(&gram), &fix);
        let harm = |m: &Matrix| gram.harm(&cpu(), &w, m).0;
        assert!(harm(&found) < harm(&start), "{} {}", harm(&found), harm(&start));
        let h = products(&gram);
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
    fn threads_change_nothing() {
        let (gram, w) = layer(20, 60, 500);
        let fix = |_: usize, _: usize, x: f32, _: &[f32]| x.round_ties_even();
        let of = |threads| {
            let mut fixed = Matrix::new(20, 60, w.data.iter().map(|x| x.round_ties_even()).collect());
            descend(&Cpu::with_isa(Isa::best(), threads).unwrap(), &w, &mut fixed, &products(&gram), &fix);
            fixed
        };
        assert_eq!(of(1), of(3));
    }
}
