//! Factors and solutions of symmetric systems, in f64. One thread does the work, so that the number of threads never
//! changes a result.

use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::prelude::ReborrowMut;
use faer::{Mat, MatMut, MatRef, Par, Side};

/// A symmetric positive definite matrix, factored: `L L^T`.
pub struct Cholesky(Mat<f64>);

impl Cholesky {
    /// Factors the `n x n` matrix, of which the lower half is read; `None` when it is not positive definite.
    pub fn new(matrix: &[f64], n: usize) -> Option<Cholesky> {
        // Row-major and symmetric: the same as column-major, with the halves exchanged.
        let view = MatRef::from_row_major_slice(matrix, n, n);
        let factor = view.llt(Side::Lower).ok()?;
        let lower = factor.L().to_owned();
        let sound = (0..n).all(|i| lower[(i, i)].is_finite() && lower[(i, i)] > 0.0);
        sound.then_some(Cholesky(lower))
    }

    /// Solves for each of the right-hand sides, rows of length n that are overwritten by the solutions.
    pub fn solve(&self, rows: &mut [f64]) {
        let n = self.0.nrows();
        // Rows one after the other are the columns of a column-major matrix.
        let mut right = MatMut::from_column_major_slice_mut(rows, n, rows.len() / n.max(1));
        solve_lower_triangular_in_place(self.0.as_ref(), right.rb_mut(), Par::Seq);
        solve_upper_triangular_in_place(self.0.transpose(), right, Par::Seq);
    }

    /// The inverse of L: row-major, lower triangular.
    fn inverse_of_factor(&self) -> Mat<f64> {
        let n = self.0.nrows();
        let mut inverse = Mat::<f64>::identity(n, n);
        solve_lower_triangular_in_place(self.0.as_ref(), inverse.as_mut(), Par::Seq);
        inverse
    }
}

/// The upper triangular U with `H^-1 = U^T U`, row-major: what sweeps over columns need (algorithms: optimal brain
/// surgeon; one factor serves all rows). With J the reversal of an order, `J H J = L L^T` and `U = J L^-1 J`.
/// `None` when H is not positive definite.
pub fn inverse_factor(matrix: &[f64], n: usize) -> Option<Vec<f32>> {
    let reversed: Vec<f64> = matrix.iter().rev().copied().collect();
    let inverse = Cholesky::new(&reversed, n)?.inverse_of_factor();
    let mut upper = vec![0f32; n * n];
    for i in 0..n {
        for j in i..n {
            upper[i * n + j] = inverse[(n - 1 - i, n - 1 - j)] as f32;
        }
    }
    Some(upper)
}

/// Eigenvalues in descending order, and the eigenvectors as rows, of a symmetric matrix; `None` when the iteration does
/// not converge, as with numbers that are not finite.
pub fn eigen(matrix: &[f64], n: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    let found = MatRef::from_row_major_slice(matrix, n, n).self_adjoint_eigen(Side::Lower).ok()?;
    let (values, vectors) = (found.S().column_vector(), found.U());
    let mut rows = vec![0f64; n * n];
    for (row, j) in rows.chunks_exact_mut(n.max(1)).zip((0..n).rev()) {
        row.iter_mut().zip(vectors.col(j).iter()).for_each(|(out, &x)| *out = x);
    }
    Some(((0..n).rev().map(|j| values[j]).collect(), rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix.
    fn sample(n: usize) -> Vec<f64> {
        let x = |t: usize, j: usize| ((7 * t * (j + 1) + 3 * j * j + t * t) % 23) as f64 / 11.0 - 1.0;
        let at = |i, j| (0..2 * n).map(|t| x(t, i) * x(t, j)).sum::<f64>() + if i == j { 0.5 } else { 0.0 };
        (0..n * n).map(|k| at(k / n, k % n)).collect()
    }

    #[test]
    fn solutions_solve() {
        let n = 7;
        let h = sample(n);
        let want: Vec<f64> = (0..2 * n).map(|i| i as f64 - 3.0).collect();
        let times =
            |x: &[f64]| -> Vec<f64> { (0..n).map(|i| (0..n).map(|j| h[i * n + j] * x[j]).sum()).collect() };
        let mut rows: Vec<f64> = want.chunks(n).flat_map(times).collect();
        Cholesky::new(&h, n).unwrap().solve(&mut rows);
        assert!(rows.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-9), "{rows:?}");
    }

    #[test]
    fn the_inverse_is_the_product_of_its_factor() {
        let n = 9;
        let h = sample(n);
        let u = inverse_factor(&h, n).unwrap();
        for i in 0..n {
            for j in 0..n {
                let inverse = |r: usize, c: usize| -> f64 {
                    (0..n).map(|k| f64::from(u[k * n + r]) * f64::from(u[k * n + c])).sum()
                };
                let one: f64 = (0..n).map(|k| h[i * n + k] * inverse(k, j)).sum();
                assert!((one - f64::from(u8::from(i == j))).abs() < 1e-5, "{i} {j} {one}");
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        assert!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(inverse_factor(&[1.0, f64::NAN, f64::NAN, 1.0], 2).is_none());
    }

    #[test]
    fn eigenvectors_are_only_stretched() {
        let n = 6;
        let h = sample(n);
        let (values, vectors) = eigen(&h, n).unwrap();
        assert!(values.windows(2).all(|w| w[0] >= w[1]));
        for (value, v) in values.iter().zip(vectors.chunks(n)) {
            for i in 0..n {
                let image: f64 = (0..n).map(|j| h[i * n + j] * v[j]).sum();
                assert!((image - value * v[i]).abs() < 1e-9);
            }
        }
    }
}
