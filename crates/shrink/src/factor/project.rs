//! The best matrix of a rank: outputs are projected on the directions in which they vary most. With U the first
//! eigenvectors of `W H W^T`, H the mean products of the inputs, `W' = U U^T W` has the least squared error of the
//! outputs of all matrices of that rank, and the error is the sum of the eigenvalues left out (reduced-rank regression;
//! SVD-LLM of Wang et al., 2024, comes to the same). Without inputs H is 1: Eckart and Young.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use learn::linear::eigen;

use crate::gram::Gram;
use crate::matrix::Matrix;
use crate::{Error, Result};

/// Directions with less than this part of the greatest energy are taken for rounding.
const NOTHING: f64 = 1e-12;

/// Directions of a weight's outputs.
pub struct Projection {
    /// The energy of the outputs in each direction, in descending order.
    pub values: Vec<f64>,
    /// The directions as rows, each as long as there are outputs.
    basis: Mat<f64>,
}

/// Product of two matrices, by one thread.
pub(crate) fn times(a: MatRef<f64>, b: MatRef<f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// The matrix in f64.
pub(crate) fn wide(w: &Matrix) -> Mat<f64> {
    Mat::from_fn(w.rows, w.cols, |i, j| f64::from(w.data[i * w.cols + j]))
}

/// The matrix in f32.
pub(crate) fn narrow(m: MatRef<f64>) -> Matrix {
    let (rows, cols) = (m.nrows(), m.ncols());
    Matrix::new(rows, cols, (0..rows * cols).map(|k| m[(k / cols, k % cols)] as f32).collect())
}

/// Eigenvalues of a symmetric matrix in descending order, none below 0, and the eigenvectors as rows.
pub(crate) fn directions(m: MatRef<f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let n = m.nrows();
    if !m.is_all_finite() {
        return Err(Error::Calibration("a weight or its inputs hold numbers that are not finite".into()));
    }
    let (values, vectors) = eigen(&(0..n * n).map(|k| m[(k / n, k % n)]).collect::<Vec<_>>(), n)
        .ok_or_else(|| Error::Calibration("the eigenvalues of the statistics do not converge".into()))?;
    let values = values.into_iter().map(|v| v.max(0.0)).collect();
    Ok((values, Mat::from_fn(n, n, |i, j| vectors[i * n + j])))
}

/// The mean products of the inputs.
pub(crate) fn products(gram: &Gram) -> Mat<f64> {
    Mat::from_fn(gram.size(), gram.size(), |i, j| gram.mean_product(i, j))
}

impl Projection {
    /// The directions of a weight's outputs, for these inputs.
    ///
    /// # Errors
    /// When the statistics hold numbers that are not finite.
    pub fn new(w: &Matrix, gram: Option<&Gram>) -> Result<Projection> {
        let w64 = wide(w);
        let inputs = gram.map(products);
        if w.rows <= w.cols {
            let image = inputs.map(|h| times(w64.as_ref(), h.as_ref()));
            let image = image.as_ref().unwrap_or(&w64);
            let (values, basis) = directions(times(image.as_ref(), w64.transpose()).as_ref())?;
            return Ok(Projection { values, basis });
        }
        // More outputs than inputs: the eigenvectors of S^T S, for `W H W^T = S S^T`, lead to those wanted.
        let root = match inputs {
            Some(h) => {
                let (values, vectors) = directions(h.as_ref())?;
                let root = Mat::from_fn(w.cols, w.cols, |i, j| vectors[(j, i)] * values[j].sqrt());
                times(w64.as_ref(), root.as_ref())
            }
            None => w64,
        };
        let (values, vectors) = directions(times(root.transpose(), root.as_ref()).as_ref())?;
        let mut basis = times(vectors.as_ref(), root.transpose());
        let least = values.first().copied().unwrap_or(0.0) * NOTHING;
        for (i, &value) in values.iter().enumerate() {
            let by = if value > least { 1.0 / value.sqrt() } else { 0.0 };
            (0..w.rows).for_each(|j| basis[(i, j)] *= by);
        }
        Ok(Projection { values, basis })
    }

    /// The directions of the rows of a table of which each is looked up as often as `counts` says.
    ///
    /// # Errors
    /// When the table holds numbers that are not finite.
    pub fn of_table(table: &Matrix, counts: &[f64]) -> Result<Projection> {
        let total = counts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let count = |i: usize| counts.get(i).map_or(0.0, |c| c / total);
        let weighed = Mat::from_fn(table.rows, table.cols, |i, j| {
            f64::from(table.data[i * table.cols + j]) * count(i).sqrt()
        });
        let (values, basis) = directions(times(weighed.transpose(), weighed.as_ref()).as_ref())?;
        Ok(Projection { values, basis })
    }

    /// The squared error of the outputs at this rank, relative to their squares.
    pub fn error(&self, rank: usize) -> f64 {
        let total: f64 = self.values.iter().sum();
        if total > 0.0 { self.values.iter().skip(rank).sum::<f64>() / total } else { 0.0 }
    }

    /// The least rank that keeps this share of the energy of the outputs; at least 1.
    pub fn rank_for(&self, share: f64) -> usize {
        (1..self.values.len()).find(|&r| self.error(r) <= 1.0 - share).unwrap_or(self.values.len()).max(1)
    }

    /// `[rows, rank]` and `[rank, cols]`, whose product is the best matrix of this rank. The energy is shared out evenly
    /// between both, so that both can be put on grids of few bits.
    pub fn factors(&self, w: &Matrix, rank: usize) -> (Matrix, Matrix) {
        let basis = self.basis.as_ref().subrows(0, rank.min(self.values.len()));
        let right = times(basis, wide(w).as_ref());
        balance(basis.transpose().to_owned(), right, &self.values)
    }

    /// `[rows, rank]` and `[rank, cols]`, whose product stands for the table, shared out in the same way.
    pub fn table_factors(&self, table: &Matrix, rank: usize) -> (Matrix, Matrix) {
        let basis = self.basis.as_ref().subrows(0, rank.min(self.values.len()));
        let left = times(wide(table).as_ref(), basis.transpose());
        // What is in the table is large: the roles of both sides are exchanged.
        let (right, left) = balance(basis.transpose().to_owned(), left.transpose().to_owned(), &self.values);
        (left.transposed(), right.transposed())
    }
}

/// Columns of `left` and rows of `right`, of which the latter have these energies, scaled against one another so that
/// neither side has directions that are much greater than others, and both are equally great.
pub(crate) fn balance(mut left: Mat<f64>, mut right: Mat<f64>, energies: &[f64]) -> (Matrix, Matrix) {
    let rank = left.ncols();
    let first = energies.first().copied().filter(|e| *e > 0.0).unwrap_or(1.0);
    let by: Vec<f64> = energies.iter().map(|e| (e / first).max(NOTHING).sqrt().sqrt()).collect();
    let mean = |m: &Mat<f64>| m.squared_norm_l2() / (m.nrows() * m.ncols()).max(1) as f64;
    for (k, by) in by.iter().enumerate().take(rank) {
        (0..left.nrows()).for_each(|i| left[(i, k)] *= by);
        (0..right.ncols()).for_each(|j| right[(k, j)] /= by);
    }
    let ratio = (mean(&right) / mean(&left)).sqrt().sqrt();
    if ratio.is_normal() {
        (0..rank).for_each(|k| {
            (0..left.nrows()).for_each(|i| left[(i, k)] *= ratio);
            (0..right.ncols()).for_each(|j| right[(k, j)] /= ratio);
        });
    }
    (narrow(left.as_ref()), narrow(right.as_ref()))
}

/// The product of two factors.
pub fn product(left: &Matrix, right: &Matrix) -> Matrix {
    narrow(times(wide(left).as_ref(), wide(right).as_ref()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gram::tests::{cpu, known_gram, known_weights};
    use crate::quantize::coded::tests::layer;

    fn measured(gram: &Gram, w: &Matrix, (left, right): &(Matrix, Matrix)) -> f64 {
        let (harm, energy) = gram.harm(&cpu(), w, &product(left, right));
        harm / energy
    }

    #[test]
    fn rank_one_is_that_of_the_handbook() {
        let (gram, w) = (known_gram(), known_weights());
        let found = Projection::new(&w, Some(&gram)).unwrap();
        // The handbook's sums are twice the means.
        let roots: Vec<f64> = found.values.iter().map(|v| (2.0 * v).sqrt()).collect();
        assert!((roots[0] - 4.073105).abs() < 1e-5 && (roots[1] - 1.433649).abs() < 1e-5, "{roots:?}");
        assert!((found.error(1) - 0.11023287).abs() < 1e-7);
        assert!((measured(&gram, &w, &found.factors(&w, 1)) - 0.11023287).abs() < 1e-6);
    }

    #[test]
    fn the_error_said_is_the_error_made_and_plain_factors_are_worse() {
        // Fewer outputs than inputs, and more.
        for (rows, cols) in [(40, 96), (96, 40)] {
            let (gram, w) = layer(rows, cols, 2000);
            let (seeing, blind) =
                (Projection::new(&w, Some(&gram)).unwrap(), Projection::new(&w, None).unwrap());
            for rank in [1, 8, 20, 39] {
                let (a, b) = (seeing.error(rank), measured(&gram, &w, &seeing.factors(&w, rank)));
                assert!((a - b).abs() < 1e-3 * a + 1e-6, "{rows} {cols} rank {rank}: {a} {b}");
                let plain = measured(&gram, &w, &blind.factors(&w, rank));
                assert!(b <= plain * 1.001 + 1e-6, "{b} {plain}");
                assert!(rank != 8 || b < 0.5 * plain, "{b} {plain}");
                let (left, right) = blind.factors(&w, rank);
                let (a, b) = (blind.error(rank), w.distance(&product(&left, &right)));
                assert!((a - b).abs() < 1e-3 * a + 1e-6, "{a} {b}");
            }
            let whole = measured(&gram, &w, &seeing.factors(&w, 40));
            assert!(whole < 1e-6, "{whole}");
        }
    }

    #[test]
    fn ranks_keep_the_share_that_is_asked_for() {
        let (gram, w) = layer(30, 60, 500);
        let found = Projection::new(&w, Some(&gram)).unwrap();
        for share in [0.5, 0.9, 0.99] {
            let rank = found.rank_for(share);
            assert!(found.error(rank) <= 1.0 - share && (rank == 1 || found.error(rank - 1) > 1.0 - share));
        }
        assert_eq!((found.rank_for(0.0), found.rank_for(1.0)), (1, 30));
    }

    #[test]
    fn both_factors_are_equally_great() {
        let (gram, w) = layer(64, 48, 800);
        let (left, right) = Projection::new(&w, Some(&gram)).unwrap().factors(&w, 16);
        let mean = |m: &Matrix| m.data.iter().map(|x| x * x).sum::<f32>() / m.data.len() as f32;
        assert!((mean(&left) / mean(&right) - 1.0).abs() < 1e-3);
    }

    #[test]
    fn rows_that_are_looked_up_often_are_kept_best() {
        let (_, table) = layer(200, 24, 10);
        let counts: Vec<f64> = (0..200).map(|i| if i < 10 { 1000.0 } else { 1.0 }).collect();
        let error = |p: &Projection| {
            let (left, right) = p.table_factors(&table, 8);
            let back = product(&left, &right);
            let apart = |i: usize| -> f64 {
                table.row(i).iter().zip(back.row(i)).map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            let norm = |i: usize| -> f64 { table.row(i).iter().map(|a| f64::from(*a).powi(2)).sum() };
            let sum = |f: &dyn Fn(usize) -> f64| (0..200).map(|i| counts[i] * f(i)).sum::<f64>();
            sum(&apart) / sum(&norm)
        };
        let seeing = Projection::of_table(&table, &counts).unwrap();
        let blind = Projection::of_table(&table, &[1.0; 200]).unwrap();
        assert!((error(&seeing) - seeing.error(8)).abs() < 1e-5);
        assert!(error(&seeing) < 0.5 * error(&blind));
    }

    #[test]
    fn nothing_and_what_is_not_finite() {
        let zeros = Matrix::zeros(3, 5);
        let found = Projection::new(&zeros, None).unwrap();
        assert_eq!(found.error(1), 0.0);
        let (left, right) = found.factors(&zeros, 2);
        assert!(left.data.iter().chain(&right.data).all(|x| x.is_finite()));
        let bad = Matrix::new(2, 2, vec![f32::NAN; 4]);
        assert!(Projection::new(&bad, None).is_err());
    }
}
