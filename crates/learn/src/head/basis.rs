//! Features seen along the directions in which they vary: standardised, centred and turned so that no two coordinates go
//! together. Penalties on squares of weights do not change by turning, and what is singular falls away.

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use super::{Features, Linear};
use crate::linear::eigen;
use crate::{Error, Result};

/// Directions whose variance is a smaller part of the greatest are taken for rounding.
const NOTHING: f64 = 3e-6;
/// Rows whose products are summed in f32 before they go into sums in f64.
const ROWS: usize = 4096;
/// Columns whose products with those before them are computed together.
const PANEL: usize = 192;

/// The directions, and the examples along them.
pub struct Basis {
    mean: Vec<f64>,
    spread: Vec<f64>,
    /// Row by row, in the space of standardised features.
    vectors: Vec<f32>,
    /// The variance of each coordinate.
    pub values: Vec<f64>,
    /// Row by row.
    pub coordinates: Vec<f32>,
}

impl Basis {
    /// Of these examples, of which each counts so much.
    pub fn new(features: &Features, masses: &[f64], cpu: &Cpu) -> Result<Basis> {
        let (rows, columns) = (features.rows(), features.columns());
        let (mean, spread) = moments(features, masses);
        let standard = |i: usize, part: f64, out: &mut [f32]| {
            let row = features.row(i).iter().zip(mean.iter().zip(&spread));
            out.iter_mut().zip(row).for_each(|(out, (x, (mean, spread)))| {
                *out = (part * (f64::from(*x) - mean) / spread) as f32;
            });
        };
        // The square root of its mass goes with each row.
        let mut weighed = vec![0f32; rows * columns];
        cpu.pool().for_chunks_mut(&mut weighed, columns, |i, out| standard(i, masses[i].sqrt(), out));
        let sound = |found: Option<(Vec<f64>, Vec<f64>)>| {
            let (values, vectors) =
                found.ok_or_else(|| Error::input("the statistics of the features have no directions"))?;
            let least =
                (values.first().copied().unwrap_or(0.0) * NOTHING).max(f64::from(f32::EPSILON).powi(2));
            let kept = values.iter().take_while(|v| **v > least).count();
            match kept {
                0 => Err(Error::input("the features of all examples are the same")),
                _ => Ok((values[..kept].to_vec(), vectors)),
            }
        };
        let part = 1.0 / rows as f64;
        let (values, vectors) = if columns <= rows {
            let products = products(&weighed, columns, part, cpu);
            let (values, vectors) = sound(eigen(&products, columns))?;
            let vectors = vectors[..values.len() * columns].iter().map(|&x| x as f32).collect();
            (values, vectors)
        } else {
            let mut inner = vec![0f32; rows * rows];
            let x = View::new(&weighed, rows, columns);
            matmul(cpu, x, x.t(), &mut inner, rows, &Post::default());
            let inner: Vec<f64> = inner.iter().map(|&x| f64::from(x) * part).collect();
            let (values, left) = sound(eigen(&inner, rows))?;
            let scaled: Vec<f32> = left
                .chunks_exact(rows)
                .zip(&values)
                .flat_map(|(u, value)| u.iter().map(move |&x| (x / (value * rows as f64).sqrt()) as f32))
                .collect();
            let mut vectors = vec![0f32; values.len() * columns];
            let u = View::new(&scaled, values.len(), rows);
            matmul(cpu, u, x, &mut vectors, columns, &Post::default());
            (values, vectors)
        };
        let mut standardised = weighed;
        cpu.pool().for_chunks_mut(&mut standardised, columns, |i, out| standard(i, 1.0, out));
        let mut coordinates = vec![0f32; rows * values.len()];
        let x = View::new(&standardised, rows, columns);
        let v = View::new(&vectors, values.len(), columns);
        matmul(cpu, x, v.t(), &mut coordinates, values.len(), &Post::default());
        Ok(Basis { mean, spread, vectors, values, coordinates })
    }

    /// Number of coordinates.
    pub fn size(&self) -> usize {
        self.values.len()
    }

    /// The coordinates of an example.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.coordinates[i * self.size()..][..self.size()]
    }

    /// Those of these examples.
    pub fn select(&self, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|&i| self.row(i)).copied().collect()
    }

    /// The head for features from one for coordinates: `weight` is `[outputs, coordinates]`.
    pub fn head(&self, weight: &[f64], bias: &[f64]) -> Linear {
        let (size, columns) = (self.size(), self.mean.len());
        let mut head = Linear { weight: Vec::with_capacity(bias.len() * columns), bias: Vec::new() };
        for (weight, &bias) in weight.chunks_exact(size).zip(bias) {
            let mut row = vec![0f64; columns];
            for (&w, vector) in weight.iter().zip(self.vectors.chunks_exact(columns)) {
                row.iter_mut().zip(vector).for_each(|(sum, &x)| *sum += w * f64::from(x));
            }
            row.iter_mut().zip(&self.spread).for_each(|(w, spread)| *w /= spread);
            let offset: f64 = row.iter().zip(&self.mean).map(|(w, mean)| w * mean).sum();
            head.weight.extend(row.iter().map(|&w| w as f32));
            head.bias.push((bias - offset) as f32);
        }
        head
    }
}

/// The sums of products of columns times `part`, for rows of `columns` numbers.
pub fn products(rows: &[f32], columns: usize, part: f64, cpu: &Cpu) -> Vec<f64> {
    let mut sums = vec![0f64; columns * columns];
    let mut block = vec![0f32; columns * PANEL.min(columns)];
    for rows in rows.chunks(ROWS * columns) {
        let x =
            |from: usize, width: usize| View::strided(&rows[from..], rows.len() / columns, width, columns, 1);
        // Those with itself and with the columns before it: the others are the same.
        for from in (0..columns).step_by(PANEL) {
            let width = PANEL.min(columns - from);
            let end = from + width;
            matmul(cpu, x(0, end).t(), x(from, width), &mut block, width, &Post::default());
            for (sums, block) in sums.chunks_exact_mut(columns).zip(block.chunks_exact(width)).take(end) {
                let sums = sums[from..end].iter_mut().zip(block);
                sums.for_each(|(sum, &x)| *sum += f64::from(x) * part);
            }
        }
    }
    for i in 0..columns {
        for j in 0..i {
            sums[i * columns + j] = sums[j * columns + i];
        }
    }
    sums
}

/// Mean and standard deviation of each column; 1 where a column is constant, or all but 0 beside the others.
pub fn moments(features: &Features, masses: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let columns = features.columns();
    let total: f64 = masses.iter().sum();
    let mut mean = vec![0f64; columns];
    for (row, mass) in features.values().chunks_exact(columns).zip(masses) {
        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += mass / total * f64::from(x));
    }
    let mut squares = vec![0f64; columns];
    for (row, mass) in features.values().chunks_exact(columns).zip(masses) {
        let row = squares.iter_mut().zip(row).zip(&mean);
        row.for_each(|((sum, &x), mean)| *sum += mass / total * (f64::from(x) - mean).powi(2));
    }
    // Features that are all but 0, as dead ones of a model are, would get weights that are all but infinite.
    let least = 1e-12 * squares.iter().copied().fold(0.0, f64::max).sqrt();
    let spread = squares.iter().zip(&mean).map(|(square, mean)| {
        let spread = square.sqrt();
        if spread > mean.abs() * 1e-6 && spread > least { spread } else { 1.0 }
    });
    let spread = spread.collect();
    (mean, spread)
}
