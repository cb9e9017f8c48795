//! What is kept of the inputs of a weight: the sums of their products, `X^T X`. It is of bounded size however many
//! examples there are, and all that layer-wise methods need: the squared error of the outputs of W' instead of W is
//! `tr[(W - W') X^T X (W - W')^T]`.

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use crate::matrix::Matrix;
use crate::{Error, Result};
use learn::linear::{self, Cholesky};

/// Most rows whose products are summed in f32 before they go into the f64 sums.
const ROWS: usize = 4096;

/// The share of the mean of the diagonal that is added to it: the references' choice.
pub const DAMP: f64 = 0.01;

/// The part of an input's mean square below which its variance is taken for rounding.
const CONSTANT: f64 = 1e-6;

/// Sums of products of inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    n: usize,
    /// Number of rows added.
    count: u64,
    products: Vec<f64>,
    sums: Vec<f64>,
    most: Vec<f32>,
}

impl Gram {
    /// Of no rows yet, of `n` inputs each.
    pub fn new(n: usize) -> Gram {
        Gram { n, count: 0, products: vec![0.0; n * n], sums: vec![0.0; n], most: vec![0.0; n] }
    }

    /// Adds rows of n inputs, one after the other.
    pub fn add(&mut self, cpu: &Cpu, rows: &[f32]) {
        let n = self.n;
        if n == 0 {
            return;
        }
        let mut part = vec![0f32; n * n];
        for rows in rows.chunks(ROWS * n) {
            let count = rows.len() / n;
            let x = View::new(rows, count, n);
            matmul(cpu, x.t(), x, &mut part, n, &Post::default());
            self.products.iter_mut().zip(&part).for_each(|(sum, &p)| *sum += f64::from(p));
            for row in rows.chunks_exact(n) {
                for ((sum, most), &x) in self.sums.iter_mut().zip(&mut self.most).zip(row) {
                    *sum += f64::from(x);
                    *most = most.max(x.abs());
                }
            }
            self.count += count as u64;
        }
    }

    /// Number of inputs.
    pub fn size(&self) -> usize {
        self.n
    }

    /// Number of rows added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True when nothing was added, or nothing that is not finite.
    pub fn is_finite(&self) -> bool {
        self.sums.iter().all(|s| s.is_finite()) && self.diagonal().all(f64::is_finite)
    }

    /// Mean of the products of two inputs.
    pub fn mean_product(&self, i: usize, j: usize) -> f64 {
        self.products[i * self.n + j] / self.count.max(1) as f64
    }

    /// Mean square of each input: its importance.
    pub fn importance(&self) -> Vec<f64> {
        self.diagonal().map(|d| d / self.count.max(1) as f64).collect()
    }

    /// Mean of each input.
    pub fn mean(&self) -> Vec<f64> {
        self.sums.iter().map(|s| s / self.count.max(1) as f64).collect()
    }

    /// Greatest absolute value of each input.
    pub fn most(&self) -> &[f32] {
        &self.most
    }

    fn diagonal(&self) -> impl Iterator<Item = f64> {
        self.products.iter().step_by(self.n + 1).copied()
    }

    /// True for inputs that were 0 in all rows: what their weights are does not matter.
    pub fn is_dead(&self, input: usize) -> bool {
        self.products[input * (self.n + 1)] == 0.0
    }

    /// The mean products, with so much of the mean of the diagonal added to it; inputs in this order. Dead inputs
    /// have 1 on the diagonal.
    pub fn damped(&self, damp: f64, order: &[usize]) -> Vec<f64> {
        let scale = 1.0 / self.count.max(1) as f64;
        let level = damp * self.diagonal().sum::<f64>() * scale / self.n.max(1) as f64;
        let mut matrix = Vec::with_capacity(order.len() * order.len());
        for &i in order {
            let row = &self.products[i * self.n..][..self.n];
            for &j in order {
                let own = match (i == j, self.is_dead(i)) {
                    (true, true) => 1.0,
                    (true, false) => level,
                    _ => 0.0,
                };
                matrix.push(row[j] * scale + own);
            }
        }
        matrix
    }

    /// All that it holds, as numbers.
    pub fn sums(&self) -> impl Iterator<Item = f64> {
        let counts = [self.n as f64, self.count as f64].into_iter();
        counts.chain(self.products.iter().copied()).chain(self.sums.iter().copied())
    }

    /// The same of what the inputs are apart from their means: what counts when a bias takes the rest. Inputs that do
    /// not vary are dead in it.
    pub fn centred(&self) -> Gram {
        let (n, mean) = (self.n, self.mean());
        let count = self.count as f64;
        let mut products = self.products.clone();
        for i in 0..n {
            for j in 0..n {
                products[i * n + j] -= mean[i] * mean[j] * count;
            }
        }
        for i in 0..n {
            // What is left of a constant is the rounding of its sums.
            if products[i * n + i] <= CONSTANT * self.products[i * n + i] {
                for j in 0..n {
                    (products[i * n + j], products[j * n + i]) = (0.0, 0.0);
                }
            }
        }
        Gram { n, count: self.count, products, sums: vec![0.0; n], most: self.most.clone() }
    }

    /// The factor of the inverse, with inputs in this order: see [`linear::inverse_factor`]. When the damped matrix
    /// is not positive definite, ten times more is added, and again, up to the mean of the diagonal.
    ///
    /// # Errors
    /// When even that does not help: the statistics hold numbers that are not finite.
    pub fn inverse_factor(&self, damp: f64, order: &[usize]) -> Result<Vec<f32>> {
        let tries =
            self.dampings(damp).find_map(|d| linear::inverse_factor(&self.damped(d, order), order.len()));
        tries.ok_or_else(Gram::singular)
    }

    /// The factor for solving with these inputs; damped as [`Gram::inverse_factor`].
    ///
    /// # Errors
    /// As there.
    pub fn cholesky(&self, damp: f64, order: &[usize]) -> Result<Cholesky> {
        let tries = self.dampings(damp).find_map(|d| Cholesky::new(&self.damped(d, order), order.len()));
        tries.ok_or_else(Gram::singular)
    }

    fn dampings(&self, damp: f64) -> impl Iterator<Item = f64> {
        std::iter::successors(Some(damp), |d| (*d < 1.0).then(|| (d.max(1e-6) * 10.0).min(1.0)))
    }

    fn singular() -> Error {
        Error::Calibration("the statistics of a weight's inputs are singular; check the data".into())
    }

    /// Mean squared change of the outputs when the rows of `new` stand for those of `old`, and the mean squared
    /// outputs of `old`: both summed over the rows.
    pub fn harm(&self, cpu: &Cpu, old: &Matrix, new: &Matrix) -> (f64, f64) {
        let apart = Matrix {
            data: old.data.iter().zip(&new.data).map(|(a, b)| a - b).collect(),
            ..Matrix::zeros(old.rows, old.cols)
        };
        (self.energy(cpu, &apart), self.energy(cpu, old))
    }

    /// Mean squared outputs of a matrix, summed over its rows.
    pub fn energy(&self, cpu: &Cpu, matrix: &Matrix) -> f64 {
        let (rows, n) = (matrix.rows, self.n);
        let scale = 1.0 / self.count.max(1) as f64;
        let products: Vec<f32> = self.products.iter().map(|p| (p * scale) as f32).collect();
        let mut image = vec![0f32; rows * n];
        let w = View::new(&matrix.data, rows, n);
        matmul(cpu, w, View::new(&products, n, n), &mut image, n, &Post::default());
        image.iter().zip(&matrix.data).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>().max(0.0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kernel::Isa;

    use super::*;

    pub(crate) fn cpu() -> Cpu {
        Cpu::with_isa(Isa::best(), 1).unwrap()
    }

    /// The inputs of the handbook's known answers: 16 rows of 8 numbers.
    pub(crate) fn known_inputs() -> Vec<f32> {
        let first = |t: usize, j: usize| {
            let x = ((7 * t * (j + 1) + 3 * j * j + t * t) % 23) as f64;
            (x - 11.0) / 11.0 * if j == 2 { 4.0 } else { 1.0 }
        };
        let at = |t, j| first(t, j) + if j > 0 { 0.7 * first(t, j - 1) } else { 0.0 };
        (0..16 * 8).map(|k| at(k / 8, k % 8) as f32).collect()
    }

    /// The weights of the handbook's known answers, 2 x 8.
    pub(crate) fn known_weights() -> Matrix {
        let at = |i: usize, j: usize| ((5 * i * (j + 2) + 3 * j + 11 * j * j) % 17) as f32;
        Matrix::new(2, 8, (0..16).map(|k| (at(k / 8, k % 8) - 8.0) / 8.0).collect())
    }

    pub(crate) fn known_gram() -> Gram {
        let mut gram = Gram::new(8);
        gram.add(&cpu(), &known_inputs());
        gram
    }

    #[test]
    fn sums_are_those_of_the_handbook() {
        let gram = known_gram();
        // The handbook's H is twice the mean.
        let want = [0.600207, 0.912076, 12.281312, 6.520785, 1.253461, 1.031653, 0.566643, 1.339122];
        for (got, want) in gram.importance().iter().zip(want) {
            assert!((2.0 * got - want).abs() < 1e-5, "{got} {want}");
        }
        let order: Vec<usize> = (0..8).collect();
        let u = gram.inverse_factor(DAMP, &order).unwrap();
        let want = [2.14356, 1.341539, 1.101464, 0.414488, 1.136775, 1.049848, 1.557906, 0.854435];
        for (i, want) in want.into_iter().enumerate() {
            let got = u[i * 9] / 2f32.sqrt();
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }

    #[test]
    fn parts_add_up_to_the_whole_and_means_are_kept() {
        let rows = known_inputs();
        let mut parts = Gram::new(8);
        parts.add(&cpu(), &rows[..40]);
        parts.add(&cpu(), &rows[40..]);
        let whole = known_gram();
        assert_eq!((parts.count(), whole.count()), (16, 16));
        for i in 0..8 {
            assert!((parts.mean()[i] - whole.mean()[i]).abs() < 1e-6);
            assert!(parts.most()[i] == whole.most()[i]);
            for j in 0..8 {
                assert!((parts.mean_product(i, j) - whole.mean_product(i, j)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn centred_sums_are_those_of_inputs_without_their_means() {
        let (mut rows, gram) = (known_inputs(), known_gram());
        let mean = gram.mean();
        rows.iter_mut().enumerate().for_each(|(k, x)| *x -= mean[k % 8] as f32);
        let mut apart = Gram::new(8);
        apart.add(&cpu(), &rows);
        let centred = gram.centred();
        for (i, j) in (0..64).map(|k| (k / 8, k % 8)) {
            assert!((centred.mean_product(i, j) - apart.mean_product(i, j)).abs() < 1e-5);
        }
        let mut constant = Gram::new(2);
        constant.add(&cpu(), &[0.1, 3.0, 0.1, 4.0, 0.1, 5.0]);
        assert!(constant.centred().is_dead(0) && !constant.centred().is_dead(1));
    }

    #[test]
    fn singular_statistics_are_damped_until_they_can_be_factored() {
        let mut gram = Gram::new(3);
        // One row only, and an input that is always 0.
        gram.add(&cpu(), &[1.0, 2.0, 0.0]);
        let order = [0, 1, 2];
        assert!(gram.is_dead(2) && !gram.is_dead(0));
        assert!(gram.inverse_factor(0.0, &order).unwrap().iter().all(|v| v.is_finite()));
        gram.add(&cpu(), &[f32::NAN, 0.0, 0.0]);
        assert!(!gram.is_finite());
        assert!(gram.inverse_factor(DAMP, &order).is_err());
    }

    #[test]
    fn harm_is_the_mean_squared_change_of_outputs() {
        let (gram, w) = (known_gram(), known_weights());
        let mut other = w.clone();
        other.data[3] += 0.5;
        other.data[9] -= 0.25;
        let outputs = |w: &Matrix| -> Vec<f64> {
            let x = known_inputs();
            let dot = |t: usize, i: usize| {
                (0..8).map(|j| f64::from(x[t * 8 + j]) * f64::from(w.row(i)[j])).sum::<f64>()
            };
            (0..32).map(|k| dot(k / 2, k % 2)).collect()
        };
        let (a, b) = (outputs(&w), outputs(&other));
        let apart: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / 16.0;
        let norm: f64 = a.iter().map(|a| a * a).sum::<f64>() / 16.0;
        let (harm, energy) = gram.harm(&cpu(), &w, &other);
        assert!((harm / apart - 1.0).abs() < 1e-4 && (energy / norm - 1.0).abs() < 1e-4);
    }
}
