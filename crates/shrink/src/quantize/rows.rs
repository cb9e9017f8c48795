//! Weights that are too big to be held in f32: rows are quantized some at a time, as each is by itself once it is known
//! what the inputs are like.
//!
//! What GPTQ needs of the inputs, `X^T X`, has the size of the inputs squared, 9.7 GB for 49,152 of them. Two smaller
//! forms serve here. Of a few rows of inputs X, the sum is of low rank, and with a diagonal added (the shrinkage that
//! so few rows need in any case) the update of GPTQ has a closed form: with the errors `r = sum x_j e_j` of the columns
//! fixed so far, the best of a free column k is `w_k - x_k^T M^-1 r / d_k`, `M = I + sum x_j x_j^T / d_j` over the free
//! columns. That is GPTQ over all columns at once in the time and memory of the rows given. Of sums of products, the
//! blocks on the diagonal are used: columns of different blocks do not make up for each other's errors.

use kernel::Cpu;
use kernel::f32::{Add, Post, matmul};
use kernel::grid::{Columns, encode, join, whole};
use kernel::matmul::View;

use super::coded::{Coded, Form};
use super::grid::{Grid, Kind, search, search_symmetric};
use crate::gram::DAMP;
use crate::matrix::Matrix;
use crate::obs::{Zeros, sweep};
use crate::{Error, Result};
use learn::linear;

/// Columns whose errors are brought to the later ones in one product.
const BLOCK: usize = 128;
/// Rows that a task fixes at a time.
const STRIP: usize = 32;
/// Rows of each strip on which the error of the outputs is measured.
const MEASURED: usize = 128;

/// The numbers that scales are stored as. Codes are found for scales that are rounded already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As they are.
    F32,
    /// Half precision.
    F16,
    /// The upper half of an f32.
    BF16,
}

impl Scale {
    /// The storable number nearest to a scale; above zero, as scales are.
    fn store(self, scale: f32) -> f32 {
        match self {
            Scale::F32 => scale,
            Scale::F16 => {
                half::f16::from_f32(scale).clamp(half::f16::MIN_POSITIVE_SUBNORMAL, half::f16::MAX).to_f32()
            }
            Scale::BF16 => {
                half::bf16::from_f32(scale).clamp(half::bf16::MIN_POSITIVE, half::bf16::MAX).to_f32()
            }
        }
    }
}

/// What a weight becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Bits and groups.
    pub form: Form,
    /// The code of 0 is the middle one, for all groups.
    pub symmetric: bool,
    /// How scales are stored.
    pub scale: Scale,
}

/// What is known of the inputs of a weight.
pub enum Inputs<'a> {
    /// Nothing: each weight goes to its nearest code on a searched grid.
    Unknown,
    /// The mean square of each, or anything in proportion to it: grids are searched for with it.
    Squares(Vec<f64>),
    /// Some rows of inputs, one after the other: GPTQ over all columns.
    Rows(Vec<f32>),
    /// Blocks on the diagonal of `X^T X`, or of anything in proportion to it: GPTQ within each.
    Products {
        /// Columns of each block; their sum is the number of columns.
        sizes: Vec<usize>,
        /// Gives a block, row by row.
        read: &'a dyn Fn(usize) -> Result<Vec<f32>>,
    },
}

/// What the rows of a weight need of its inputs.
pub struct Solver {
    n: usize,
    /// For each column; empty when nothing is known.
    importance: Vec<f64>,
    rule: Rule,
}

enum Rule {
    Nearest,
    LowRank(LowRank),
    Blocks(Vec<Part>),
}

/// Everything in the order of the sweep.
struct LowRank {
    order: Vec<usize>,
    /// Number of rows of inputs.
    count: usize,
    /// `n x count`: the inputs of each column.
    inputs: Vec<f32>,
    /// `n x count`: what the sum of errors takes from each column.
    gains: Vec<f32>,
    /// What is added to the diagonal for each column.
    own: Vec<f64>,
    /// A matrix for each block of columns: see [`Columns::pull`].
    pulls: Vec<Vec<f32>>,
}

/// A block of columns with a factor of its own.
struct Part {
    start: usize,
    order: Vec<usize>,
    factor: Vec<f32>,
    products: Vec<f32>,
}

/// Squared error and squared size of the same, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Of the error.
    pub error: f64,
    /// Of what it is an error of.
    pub size: f64,
}

impl Loss {
    /// Adds that of other rows.
    pub fn add(&mut self, other: Loss) {
        self.error += other.error;
        self.size += other.size;
    }

    /// The error relative to the size; absolute when that is 0.
    pub fn relative(&self) -> f64 {
        if self.size > 0.0 { self.error / self.size } else { self.error }
    }
}

/// Most important first.
fn falling(importance: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..importance.len()).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]).then(a.cmp(&b)));
    order
}

fn finite(mut numbers: impl Iterator<Item = f64>) -> Result<()> {
    match numbers.all(|x| x.is_finite() && x >= 0.0) {
        true => Ok(()),
        false => Err(Error::Calibration(
            "the statistics hold numbers that are not finite, or squares below 0; make them anew".into(),
        )),
    }
}

impl Solver {
    /// Prepares for a weight of `n` columns.
    ///
    /// # Errors
    /// [`Error::Calibration`] when the statistics do not fit, are not finite, or cannot be factored.
    pub fn new(cpu: &Cpu, n: usize, inputs: Inputs) -> Result<Solver> {
        let wrong = |what: String| Err(Error::Calibration(what));
        match inputs {
            Inputs::Unknown => Ok(Solver { n, importance: Vec::new(), rule: Rule::Nearest }),
            Inputs::Squares(importance) => {
                finite(importance.iter().copied())?;
                if importance.len() != n {
                    return wrong(format!("there are {} squares for {n} columns", importance.len()));
                }
                Ok(Solver { n, importance, rule: Rule::Nearest })
            }
            Inputs::Rows(rows) => {
                if rows.is_empty() || !rows.len().is_multiple_of(n.max(1)) {
                    return wrong(format!("{} numbers are no rows of {n} inputs", rows.len()));
                }
                let count = rows.len() / n;
                let mut importance = vec![0f64; n];
                for row in rows.chunks_exact(n) {
                    importance.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
                }
                importance.iter_mut().for_each(|sum| *sum /= count as f64);
                finite(importance.iter().copied())?;
                let rule = Rule::LowRank(LowRank::new(cpu, &rows, &importance));
                Ok(Solver { n, importance, rule })
            }
            Inputs::Products { sizes, read } => {
                if sizes.iter().sum::<usize>() != n {
                    return wrong(format!("the blocks of products have {sizes:?} columns, not {n} in all"));
                }
                let (mut importance, mut parts) = (Vec::with_capacity(n), Vec::new());
                for (i, &size) in sizes.iter().enumerate() {
                    let part = Part::new(importance.len(), size, read(i)?)?;
                    importance.extend((0..size).map(|j| f64::from(part.products[j * (size + 1)])));
                    parts.push(part);
                }
                Ok(Solver { n, importance, rule: Rule::Blocks(parts) })
            }
        }
    }

    /// Quantizes some rows. The loss is that of the outputs on some of the rows, when enough is known of the inputs;
    /// else that of the weights, by their importance when it is known.
    ///
    /// # Errors
    /// [`Error::Form`] when the rows have another length, or the bits are not 1 to 8.
    pub fn quantize(&self, cpu: &Cpu, w: &Matrix, target: Target) -> Result<(Coded, Loss)> {
        let form = target.form;
        if w.cols != self.n || !(1..=8).contains(&form.bits) {
            return Err(Error::Form(format!(
                "rows of {} in {} bits do not fit {} columns in 1 to 8 bits",
                w.cols, form.bits, self.n
            )));
        }
        let grids = self.grids(cpu, w, target);
        let groups = form.groups(w.cols);
        let mut coded = Coded {
            form,
            rows: w.rows,
            cols: w.cols,
            codes: vec![0; w.rows * w.cols],
            scales: grids.iter().map(|g| g.scale).collect(),
            zeros: grids.iter().map(|g| g.zero as u8).collect(),
        };
        match &self.rule {
            Rule::Nearest => encode_all(cpu, w, &mut coded),
            Rule::LowRank(rule) => rule.fix(cpu, w, &mut coded),
            Rule::Blocks(parts) => {
                let mut fixed = w.clone();
                let (group, top) = (form.group_of(w.cols), ((1u32 << form.bits) - 1) as f32);
                for part in parts {
                    let size = part.order.len();
                    let mut own = Matrix::zeros(w.rows, size);
                    for i in 0..w.rows {
                        own.row_mut(i).copy_from_slice(&w.row(i)[part.start..][..size]);
                    }
                    let fix = |row: usize, col: usize, x: f32| {
                        let grid = &grids[row * groups + (part.start + col) / group];
                        let zero = grid.zero as f32;
                        whole((x / grid.scale).clamp(-zero, top - zero)) * grid.scale
                    };
                    sweep(cpu, &mut own, &part.factor, &part.order, Zeros::Free, &fix);
                    for i in 0..w.rows {
                        fixed.row_mut(i)[part.start..][..size].copy_from_slice(own.row(i));
                    }
                }
                encode_all(cpu, &fixed, &mut coded);
            }
        }
        let loss = self.loss(cpu, w, &coded);
        Ok((coded, loss))
    }

    fn grids(&self, cpu: &Cpu, w: &Matrix, target: Target) -> Vec<Grid> {
        let form = target.form;
        let (group, groups) = (form.group_of(w.cols), form.groups(w.cols));
        let mut grids = vec![Grid::from_range(0.0, 0.0, Kind::unsigned(form.bits)); w.rows * groups];
        cpu.pool().for_chunks_mut(&mut grids, groups.max(1), |row, out| {
            for (g, grid) in out.iter_mut().enumerate() {
                let columns = g * group..((g + 1) * group).min(w.cols);
                let part = &w.row(row)[columns.clone()];
                let importance = self.importance.get(columns).unwrap_or_default();
                *grid = match target.symmetric {
                    true => search_symmetric(cpu, part, importance, form.bits),
                    false => search(cpu, part, importance, form.bits),
                };
                grid.scale = target.scale.store(grid.scale);
            }
        });
        grids
    }

    /// Rows are summed by themselves, and their sums in order.
    fn loss(&self, cpu: &Cpu, w: &Matrix, coded: &Coded) -> Loss {
        let rows = match self.rule {
            Rule::Nearest => w.rows,
            _ => w.rows.min(MEASURED),
        };
        let group = coded.form.group_of(w.cols);
        let groups = coded.form.groups(w.cols);
        let losses = cpu.pool().map(rows, |row| {
            let old = w.row(row);
            let codes = &coded.codes[row * w.cols..][..w.cols];
            let new: Vec<f32> = (0..w.cols)
                .map(|j| {
                    let g = row * groups + j / group;
                    (f32::from(codes[j]) - f32::from(coded.zeros[g])) * coded.scales[g]
                })
                .collect();
            self.loss_of(old, &new)
        });
        losses.into_iter().fold(Loss::default(), |mut sum, loss| {
            sum.add(loss);
            sum
        })
    }

    fn loss_of(&self, old: &[f32], new: &[f32]) -> Loss {
        let apart: Vec<f32> = old.iter().zip(new).map(|(a, b)| a - b).collect();
        match &self.rule {
            Rule::Nearest => {
                let size = |x: &[f32]| -> f64 {
                    let square = |(j, x): (usize, &f32)| {
                        self.importance.get(j).unwrap_or(&1.0) * f64::from(*x) * f64::from(*x)
                    };
                    x.iter().enumerate().map(square).sum()
                };
                Loss { error: size(&apart), size: size(old) }
            }
            Rule::LowRank(rule) => Loss { error: rule.energy(&apart), size: rule.energy(old) },
            Rule::Blocks(parts) => {
                let size = |x: &[f32]| parts.iter().map(|p| p.energy(&x[p.start..])).sum();
                Loss { error: size(&apart), size: size(old) }
            }
        }
    }
}

/// Each element to its nearest code.
fn encode_all(cpu: &Cpu, w: &Matrix, coded: &mut Coded) {
    let (group, groups) = (coded.form.group_of(w.cols), coded.form.groups(w.cols));
    let top = ((1u32 << coded.form.bits) - 1) as f32;
    let (scales, zeros) = (&coded.scales, &coded.zeros);
    cpu.pool().for_chunks_mut(&mut coded.codes, w.cols.max(1), |row, codes| {
        for ((codes, x), g) in codes.chunks_mut(group).zip(w.row(row).chunks(group)).zip(row * groups..) {
            encode(cpu, x, scales[g], f32::from(zeros[g]), top, codes);
        }
    });
}

impl LowRank {
    /// `rows` are inputs one row after the other, `importance` their mean squares.
    fn new(cpu: &Cpu, rows: &[f32], importance: &[f64]) -> LowRank {
        let n = importance.len();
        let count = rows.len() / n;
        let order = falling(importance);
        let shrink = shrinkage(cpu, rows, importance);
        let mean = importance.iter().sum::<f64>() / n as f64;
        let scale = ((1.0 - shrink) / count as f64).sqrt();
        let mut inputs = vec![0f32; n * count];
        cpu.pool().for_chunks_mut(&mut inputs, count, |at, out| {
            let column = rows[order[at]..].iter().step_by(n);
            out.iter_mut().zip(column).for_each(|(to, &x)| *to = (f64::from(x) * scale) as f32);
        });
        // From the last column to the first, more and more of them are free.
        let mut inverse = vec![0f64; count * count];
        inverse.iter_mut().step_by(count + 1).for_each(|x| *x = 1.0);
        let mut gains = vec![0f32; n * count];
        let mut gain = vec![0f64; count];
        let own: Vec<f64> = order.iter().map(|&j| shrink * importance[j] + 1e-6 * mean).collect();
        for (at, &d) in own.iter().enumerate().rev() {
            let x: Vec<f64> = inputs[at * count..][..count].iter().map(|&x| f64::from(x)).collect();
            if d > 0.0 {
                join(cpu, &mut inverse, &x, d, &mut gain);
                let to = &mut gains[at * count..][..count];
                to.iter_mut().zip(&gain).for_each(|(to, &g)| *to = g as f32);
            }
        }
        let pulls = (0..n).step_by(BLOCK).map(|start| {
            let width = BLOCK.min(n - start);
            let part = |of: &[f32]| of[start * count..][..width * count].to_vec();
            let (x, g) = (part(&inputs), part(&gains));
            let mut pull = vec![0f32; width * width];
            let (x, g) = (View::new(&x, width, count), View::new(&g, width, count));
            matmul(cpu, x, g.t(), &mut pull, width, &Post::default());
            pull
        });
        let pulls = pulls.collect();
        LowRank { order, count, inputs, gains, own, pulls }
    }

    /// Fixes all columns of the rows.
    fn fix(&self, cpu: &Cpu, w: &Matrix, coded: &mut Coded) {
        let (rows, n, count) = (w.rows, w.cols, self.count);
        let (group, groups) = (coded.form.group_of(n), coded.form.groups(n));
        let top = ((1u32 << coded.form.bits) - 1) as f32;
        // Group by group, so that those of a strip of rows are contiguous.
        let turned = |at: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let mut out = Vec::with_capacity(rows * groups);
            for start in (0..rows).step_by(STRIP) {
                for g in 0..groups {
                    out.extend((start..(start + STRIP).min(rows)).map(|row| at(row * groups + g)));
                }
            }
            out
        };
        let scales = turned(&|k| coded.scales[k]);
        let zeros = turned(&|k| f32::from(coded.zeros[k]));
        let mut sums = vec![0f32; rows * count];
        let mut taken = vec![0f32; rows * BLOCK];
        let mut done = vec![(0f32, 0u8); rows * BLOCK];
        let mut errors = vec![0f32; rows * BLOCK];
        for (start, pull) in (0..n).step_by(BLOCK).zip(&self.pulls) {
            let columns = &self.order[start..(start + BLOCK).min(n)];
            let width = columns.len();
            let grids: Vec<usize> = columns.iter().map(|j| j / group).collect();
            let [inputs, gains] = [&self.inputs, &self.gains]
                .map(|of| View::new(&of[start * count..][..width * count], width, count));
            matmul(cpu, View::new(&sums, rows, count), gains.t(), &mut taken, width, &Post::default());
            let done = &mut done[..rows * width];
            cpu.pool().for_chunks_mut(done, STRIP * width, |strip, out| {
                let first = strip * STRIP;
                let here = out.len() / width;
                let mut old = vec![0f32; out.len()];
                let mut work = vec![0f32; out.len()];
                for r in 0..here {
                    let (row, taken) = (w.row(first + r), &taken[(first + r) * width..][..width]);
                    for (k, (&j, &t)) in columns.iter().zip(taken).enumerate() {
                        old[k * here + r] = row[j];
                        work[k * here + r] = row[j] - t;
                    }
                }
                let mut codes = vec![0u8; out.len()];
                let own = first * groups..(first + here) * groups;
                let block = Columns {
                    rows: here,
                    work: &mut work,
                    old: &old,
                    codes: &mut codes,
                    pull,
                    groups: &grids,
                    scales: &scales[own.clone()],
                    zeros: &zeros[own],
                    top,
                };
                block.fix(cpu);
                for r in 0..here {
                    for k in 0..width {
                        out[r * width + k] = (work[k * here + r], codes[k * here + r]);
                    }
                }
            });
            for (i, row) in done.chunks_exact(width).enumerate() {
                let codes = &mut coded.codes[i * n..][..n];
                for ((&(error, code), &j), to) in row.iter().zip(columns).zip(&mut errors[i * width..]) {
                    (codes[j], *to) = (code, error);
                }
            }
            let post = Post { add: Add::Out, ..Post::default() };
            matmul(cpu, View::new(&errors, rows, width), inputs, &mut sums, count, &post);
        }
    }

    /// Mean squared output of a row, by the statistics with their diagonal.
    fn energy(&self, row: &[f32]) -> f64 {
        let mut sums = vec![0f32; self.count];
        let mut energy = 0f64;
        for ((x, &j), own) in self.inputs.chunks_exact(self.count).zip(&self.order).zip(&self.own) {
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x * row[j]);
            energy += own * f64::from(row[j]).powi(2);
        }
        energy + sums.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>()
    }
}

/// How much of the correlations of inputs is chance when so few rows are known: the weight of the diagonal that makes
/// their estimate best. Schäfer and Strimmer, "A Shrinkage Approach to Large-Scale Covariance Matrix Estimation"
/// (2005), with `1 / rows` for the variance of a correlation. At least a hundredth, as in GPTQ.
fn shrinkage(cpu: &Cpu, rows: &[f32], importance: &[f64]) -> f64 {
    let n = importance.len();
    let count = rows.len() / n;
    let unit: Vec<f32> = importance
        .iter()
        .map(|&h| if h > 0.0 { (1.0 / (h * count as f64).sqrt()) as f32 } else { 0.0 })
        .collect();
    let scaled: Vec<f32> = rows.iter().enumerate().map(|(k, &x)| x * unit[k % n]).collect();
    // The squares of all correlations sum to those of the products of rows, which are fewer.
    let mut products = vec![0f32; count * count];
    let x = View::new(&scaled, count, n);
    matmul(cpu, x, x.t(), &mut products, count, &Post::default());
    let live = importance.iter().filter(|h| **h > 0.0).count() as f64;
    let squares = products.iter().map(|&p| f64::from(p).powi(2)).sum::<f64>() - live;
    let chance = live * (live - 1.0) / count as f64;
    if squares > 0.0 { (chance / squares).clamp(DAMP, 1.0) } else { 1.0 }
}

impl Part {
    fn new(start: usize, size: usize, products: Vec<f32>) -> Result<Part> {
        if products.len() != size * size {
            return Err(Error::Calibration(format!(
                "{} numbers are no products of {size} columns",
                products.len()
            )));
        }
        let importance: Vec<f64> = (0..size).map(|j| f64::from(products[j * (size + 1)])).collect();
        finite(importance.iter().copied())?;
        let order = falling(&importance);
        let mean = importance.iter().sum::<f64>() / size.max(1) as f64;
        let mut damp = DAMP;
        let factor = loop {
            let at = |k: usize| {
                let (i, j) = (order[k / size], order[k % size]);
                let own = if i != j { 0.0 } else { damp * mean + f64::from(u8::from(importance[i] == 0.0)) };
                f64::from(products[i * size + j]) + own
            };
            let matrix: Vec<f64> = (0..size * size).map(at).collect();
            match linear::inverse_factor(&matrix, size) {
                Some(factor) => break factor,
                None if damp < 1.0 => damp *= 10.0,
                None => {
                    let what = "products of inputs are not positive definite; are they X^T X?";
                    return Err(Error::Calibration(what.into()));
                }
            }
        };
        Ok(Part { start, order, factor, products })
    }

    /// Squared outputs of a row.
    fn energy(&self, row: &[f32]) -> f64 {
        let row = &row[..self.order.len()];
        let lines = self.products.chunks_exact(row.len().max(1));
        lines
            .zip(row)
            .map(|(line, &x)| f64::from(x) * f64::from(line.iter().zip(row).map(|(a, b)| a * b).sum::<f32>()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use kernel::Isa;

    use super::*;
    use crate::gram::tests::cpu;
    use crate::quantize::coded::tests::{inputs, layer};

    const G64: Form = Form { bits: 4, group: 64 };

    fn target(symmetric: bool) -> Target {
        Target { form: G64, symmetric, scale: Scale::F16 }
    }

    fn solver(n: usize, rows: &[f32]) -> Solver {
        Solver::new(&cpu(), n, Inputs::Rows(rows.to_vec())).unwrap()
    }

    #[test]
    fn the_closed_form_is_the_sweep() {
        let n = 300;
        let (x, w) = inputs(20, n, 40);
        let Solver { importance, rule: Rule::LowRank(rule), .. } = solver(n, &x) else { panic!() };
        // The same statistics as a full matrix, factored.
        let mean = importance.iter().sum::<f64>() / n as f64;
        let shrink = shrinkage(&cpu(), &x, &importance);
        assert!(shrink > 0.02 && shrink < 0.9, "{shrink}");
        let line = |at: usize| &rule.inputs[at * 40..][..40];
        let matrix: Vec<f64> = (0..n * n)
            .map(|k| {
                let (i, j) = (k / n, k % n);
                let own = if i == j { shrink * importance[rule.order[i]] + 1e-6 * mean } else { 0.0 };
                line(i).iter().zip(line(j)).map(|(a, b)| f64::from(a * b)).sum::<f64>() + own
            })
            .collect();
        let factor = linear::inverse_factor(&matrix, n).unwrap();
        let mut swept = w.clone();
        sweep(&cpu(), &mut swept, &factor, &rule.order, Zeros::Free, &|_, _, x| {
            (x * 4.0).round_ties_even().clamp(-8.0, 7.0) / 4.0
        });
        let mut coded = Coded {
            form: G64,
            rows: 20,
            cols: n,
            codes: vec![0; 20 * n],
            scales: vec![0.25; 20 * 5],
            zeros: vec![8; 20 * 5],
        };
        rule.fix(&cpu(), &w, &mut coded);
        let other = coded.decode().data.iter().zip(&swept.data).filter(|(a, b)| a != b).count();
        assert!(other < 20 * n / 200, "{other} of {} differ", 20 * n);
    }

    #[test]
    fn what_is_known_of_the_inputs_lowers_the_loss() {
        let n = 320;
        let (x, w) = inputs(24, n, 400);
        let (known, rest) = x.split_at(100 * n);
        let judge = solver(n, rest);
        let harm = |inputs: Inputs, symmetric| {
            let solver = Solver::new(&cpu(), n, inputs).unwrap();
            let (coded, _) = solver.quantize(&cpu(), &w, target(symmetric)).unwrap();
            assert!(!symmetric || coded.zeros.iter().all(|&z| z == 8));
            let new = coded.decode();
            let mut loss = Loss::default();
            (0..24).for_each(|i| loss.add(judge.loss_of(w.row(i), new.row(i))));
            loss.relative()
        };
        let squares = solver(n, known).importance;
        let products = |_: usize| -> Result<Vec<f32>> {
            let at = |k: usize| known.chunks(n).map(|row| row[k / n] * row[k % n]).sum::<f32>();
            Ok((0..n * n).map(at).collect())
        };
        for symmetric in [false, true] {
            let plain = harm(Inputs::Unknown, symmetric);
            let weighed = harm(Inputs::Squares(squares.clone()), symmetric);
            let swept = harm(Inputs::Rows(known.to_vec()), symmetric);
            let blocks = harm(Inputs::Products { sizes: vec![n], read: &products }, symmetric);
            assert!(weighed < 0.8 * plain, "{weighed} {plain}");
            assert!(swept < 0.5 * weighed, "{swept} {weighed}");
            assert!(blocks < 0.6 * weighed, "{blocks} {weighed}");
        }
    }

    #[test]
    fn strips_of_rows_and_threads_change_nothing() {
        let n = 320;
        let (x, w) = inputs(70, n, 50);
        let products = |_: usize| -> Result<Vec<f32>> {
            let at = |k: usize| x.chunks(n).map(|row| row[k / 160] * row[k % 160]).sum::<f32>();
            Ok((0..160 * 160).map(at).collect())
        };
        let squares: Vec<f64> = (0..n).map(|j| 1.0 + j as f64).collect();
        for kind in 0..4 {
            let of = |cpu: &Cpu, step: usize| {
                let inputs = match kind {
                    0 => Inputs::Unknown,
                    1 => Inputs::Squares(squares.clone()),
                    2 => Inputs::Rows(x.clone()),
                    _ => Inputs::Products { sizes: vec![160, 160], read: &products },
                };
                let solver = Solver::new(cpu, n, inputs).unwrap();
                let parts = w.data.chunks(step * n).map(|data| {
                    let part = Matrix::new(data.len() / n, n, data.to_vec());
                    solver.quantize(cpu, &part, target(false)).unwrap().0
                });
                Coded::stack(parts.collect()).unwrap()
            };
            let whole = of(&cpu(), 70);
            assert_eq!(whole, of(&Cpu::with_isa(Isa::best(), 3).unwrap(), 70), "{kind}");
            assert_eq!(whole, of(&cpu(), 32), "{kind}");
        }
    }

    #[test]
    fn scales_are_those_that_are_stored() {
        let (_, mut w) = inputs(2, 64, 1);
        w.data[..64].iter_mut().for_each(|x| *x *= 1e-9);
        for scale in [Scale::F32, Scale::F16, Scale::BF16] {
            let target = Target { scale, ..target(true) };
            let solver = Solver::new(&cpu(), 64, Inputs::Unknown).unwrap();
            let (coded, _) = solver.quantize(&cpu(), &w, target).unwrap();
            assert!(coded.scales.iter().all(|&s| s > 0.0 && scale.store(s) == s), "{:?}", coded.scales);
        }
    }

    #[test]
    fn statistics_that_do_not_fit_are_refused() {
        let n = 8;
        let none = |_: usize| -> Result<Vec<f32>> { Ok(vec![f32::NAN; 64]) };
        let negative = |_: usize| -> Result<Vec<f32>> {
            Ok((0..64).map(|k| if k / 8 == k % 8 { 1.0 } else { 50.0 * (k % 8) as f32 }).collect())
        };
        for inputs in [
            Inputs::Squares(vec![1.0; 7]),
            Inputs::Squares(vec![-1.0; 8]),
            Inputs::Squares(vec![f64::NAN; 8]),
            Inputs::Rows(vec![]),
            Inputs::Rows(vec![1.0; 9]),
            Inputs::Rows(vec![f32::INFINITY; 8]),
            Inputs::Products { sizes: vec![4], read: &none },
            Inputs::Products { sizes: vec![8], read: &none },
            Inputs::Products { sizes: vec![8], read: &negative },
            Inputs::Products { sizes: vec![4, 4], read: &none },
        ] {
            assert!(Solver::new(&cpu(), n, inputs).is_err());
        }
        // Inputs that are always 0 are no error.
        let solver = Solver::new(&cpu(), n, Inputs::Rows(vec![0.0; 16])).unwrap();
        let (coded, loss) = solver.quantize(&cpu(), &layer(2, 8, 4).1, target(true)).unwrap();
        assert!(loss.error == 0.0 && coded.scales.iter().all(|s| s.is_finite()));
        assert!(solver.quantize(&cpu(), &Matrix::zeros(1, 9), target(true)).is_err());
    }
}
