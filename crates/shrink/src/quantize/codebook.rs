//! Weights that share a few values: a code for each element says which value of a table it has, times a scale for each
//! group of neighbours in a row. Tables are fitted (optimal k-means in one dimension, weighted), or fixed ones: NF4
//! (Dettmers et al., "QLoRA", 2023) and llama.cpp's IQ4_NL, whose scales are searched for. With a penalty on the length
//! of codes the table becomes one for entropy coding (Chou, Lookabaugh and Gray, 1989).

use std::fmt;
use std::str::FromStr;

use kernel::Cpu;
use serde::{Deserialize, Serialize};

use super::coded::{self, Coded};
use super::descend::{descend, products};
use crate::Result;
use crate::gram::{DAMP, Gram};
use crate::matrix::Matrix;
use crate::obs::{Zeros, sweep};

/// The quantiles of a normal distribution over -1 to 1.
pub const NF4: [f32; 16] = [
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407,
    0.5626, 0.7230, 1.0,
];

/// Steps that grow outwards, for groups of 32.
pub const IQ4: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Where a table comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Fitted, one for the whole weight.
    Shared,
    /// Fitted, one for each row; no scales.
    Rows,
    /// [`NF4`].
    Nf4,
    /// [`IQ4`].
    Iq4,
}

/// The form of a weight with a table. In a plan: `k3`, `k3-g64`, `k3-rows`, `nf4-g64`, `iq4-g32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Form {
    /// Bits of a code, 1 to 8, and neighbours in a row that share a scale (0 for the whole row).
    pub codes: coded::Form,
    /// The table.
    pub table: Table,
}

impl Form {
    /// Bytes of a weight in this form: codes, f32 scales, f32 tables.
    pub fn bytes(&self, rows: usize, cols: usize) -> usize {
        let codes = (rows * cols * self.codes.bits as usize).div_ceil(8);
        let table = 4usize << self.codes.bits;
        match self.table {
            Table::Rows => codes + rows * table,
            _ => codes + table + 4 * rows * self.codes.groups(cols),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.table {
            Table::Nf4 => f.write_str("nf4")?,
            Table::Iq4 => f.write_str("iq4")?,
            _ => write!(f, "k{}", self.codes.bits)?,
        }
        match (self.table, self.codes.group) {
            (Table::Rows, _) => f.write_str("-rows"),
            (_, 0) => Ok(()),
            (_, group) => write!(f, "-g{group}"),
        }
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Form, String> {
        let wrong = || format!("{text:?} is no form of a table; say k3, k3-g64, k3-rows, nf4-g64 or iq4-g32");
        let (kind, rest) = text.split_once('-').unwrap_or((text, ""));
        let (kind, table) = match kind {
            "nf4" => ("4", Table::Nf4),
            "iq4" => ("4", Table::Iq4),
            other => (other.strip_prefix('k').ok_or_else(wrong)?, Table::Shared),
        };
        let (table, rest) = match (table, rest) {
            (Table::Shared, "rows") => (Table::Rows, ""),
            other => other,
        };
        if text.ends_with('-') {
            return Err(wrong());
        }
        let dash = if rest.is_empty() { "" } else { "-" };
        Ok(Form { codes: format!("w{kind}{dash}{rest}").parse().map_err(|_| wrong())?, table })
    }
}

impl From<Form> for String {
    fn from(form: Form) -> String {
        form.to_string()
    }
}

impl TryFrom<String> for Form {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Form, String> {
        text.parse()
    }
}

/// A weight whose elements share values.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    /// Codes and scales; there are no zero points.
    pub coded: Coded,
    /// Where the tables come from.
    pub table: Table,
    /// One table of ascending values, or one for each row.
    pub values: Vec<f32>,
}

impl Codebook {
    /// Codes, scales and values as bytes.
    pub fn write(&self) -> Vec<u8> {
        let values = Matrix::new(1, self.values.len(), self.values.clone());
        [(self.coded.codes.len() as u64).to_le_bytes().to_vec(), self.coded.write(), values.write()].concat()
    }

    /// What [`Codebook::write`] wrote of a weight of this form and size; `None` when it did not.
    pub fn read(form: Form, rows: usize, cols: usize, bytes: &[u8]) -> Option<Codebook> {
        let codes = form.codes;
        let elements = rows.checked_mul(cols)?;
        let (count, rest) = bytes.split_first_chunk::<8>()?;
        let size = 1usize << codes.bits;
        let (scales, values) = match form.table {
            Table::Rows => (0, rows.checked_mul(size)?),
            _ => (rows.checked_mul(codes.groups(cols))?, size),
        };
        let (named, rest) = rest.split_at_checked(elements)?;
        let (scaled, table) = rest.split_at_checked(scales.checked_mul(4)?)?;
        let sound = u64::from_le_bytes(*count) == elements as u64
            && named.iter().all(|&code| usize::from(code) < size);
        let coded = Coded {
            form: codes,
            rows,
            cols,
            codes: named.to_vec(),
            scales: Matrix::read(1, scales, scaled)?.data,
            zeros: Vec::new(),
        };
        let values = Matrix::read(1, values, table)?.data;
        sound.then_some(Codebook { coded, table: form.table, values })
    }

    /// Any weight in this form, another one for each seed: to find out how many bytes it takes in a file.
    pub fn sample(form: Form, rows: usize, cols: usize, seed: usize) -> Codebook {
        let mut coded = Coded::sample(form.codes, rows, cols, seed);
        coded.zeros.clear();
        let size = 1usize << form.codes.bits;
        let values = match form.table {
            Table::Rows => {
                coded.scales.clear();
                rows * size
            }
            _ => size,
        };
        let values = (0..values).map(|k| (seed + k) as f32).collect();
        Codebook { coded, table: form.table, values }
    }

    /// The weight in f32.
    pub fn decode(&self) -> Matrix {
        let Coded { form, rows, cols, codes, scales, .. } = &self.coded;
        let (group, groups, size) = (form.group_of(*cols), form.groups(*cols), 1usize << form.bits);
        let at = |(k, &code): (usize, &u8)| match self.table {
            Table::Rows => self.values[k / cols * size + usize::from(code)],
            _ => self.values[usize::from(code)] * scales[k / cols * groups + k % cols / group],
        };
        Matrix::new(*rows, *cols, codes.iter().enumerate().map(at).collect())
    }
}

/// Values in ascending order, and where one becomes nearer than the one before.
struct Levels {
    values: Vec<f32>,
    middles: Vec<f32>,
}

impl Levels {
    fn new(values: &[f32]) -> Levels {
        let middles = values.windows(2).map(|w| w[0] + (w[1] - w[0]) / 2.0).collect();
        Levels { values: values.to_vec(), middles }
    }

    /// The place of the value nearest to `x`; the lower one of two that are equally near.
    fn code(&self, x: f32) -> usize {
        if self.middles.len() <= 16 {
            return self.middles.iter().map(|&m| usize::from(x > m)).sum();
        }
        self.middles.partition_point(|&m| x > m)
    }

    fn round(&self, x: f32) -> f32 {
        self.values[self.code(x)]
    }
}

/// Most different numbers that k-means looks at: longer lists are put into so many bins.
const BINS: usize = 1 << 14;

/// Ascending numbers and what each counts.
struct Points {
    at: Vec<f64>,
    weight: Vec<f64>,
}

impl Points {
    /// Numbers that are not finite, and those that count nothing, are left out.
    fn new(values: &[f32], weights: &[f64]) -> Points {
        let weight = |i: usize| weights.get(i).copied().unwrap_or(1.0);
        let counts = |i: &usize| values[*i].is_finite() && weight(*i) > 0.0;
        let mut order: Vec<usize> = (0..values.len()).filter(counts).collect();
        if order.len() <= BINS {
            order.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then(a.cmp(&b)));
            let mut points = Points { at: Vec::new(), weight: Vec::new() };
            for i in order {
                let x = f64::from(values[i]);
                match (points.at.last(), points.weight.last_mut()) {
                    (Some(last), Some(sum)) if *last == x => *sum += weight(i),
                    _ => {
                        points.at.push(x);
                        points.weight.push(weight(i));
                    }
                }
            }
            return points;
        }
        let range =
            |(l, h): (f64, f64), &i: &usize| (l.min(f64::from(values[i])), h.max(f64::from(values[i])));
        let (low, high) = order.iter().fold((f64::INFINITY, f64::NEG_INFINITY), range);
        let scale = (BINS - 1) as f64 / (high - low).max(f64::MIN_POSITIVE);
        let (mut sums, mut weights) = (vec![0f64; BINS], vec![0f64; BINS]);
        for i in order {
            let x = f64::from(values[i]);
            let bin = (((x - low) * scale) as usize).min(BINS - 1);
            sums[bin] += weight(i) * x;
            weights[bin] += weight(i);
        }
        let filled: Vec<usize> = (0..BINS).filter(|&b| weights[b] > 0.0).collect();
        Points {
            at: filled.iter().map(|&b| sums[b] / weights[b]).collect(),
            weight: filled.iter().map(|&b| weights[b]).collect(),
        }
    }
}

/// Sums over the points before each place, so that the cost of any run of points is known at once.
struct Runs {
    weight: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Runs {
    fn new(points: &Points) -> Runs {
        let running = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let mut sum = 0.0;
            let each = points.at.iter().zip(&points.weight).map(|(&x, &u)| {
                sum += f(x, u);
                sum
            });
            std::iter::once(0.0).chain(each).collect()
        };
        Runs { weight: running(&|_, u| u), first: running(&|x, u| u * x), second: running(&|x, u| u * x * x) }
    }

    /// The squared distance of points from..to to their mean.
    fn cost(&self, from: usize, to: usize) -> f64 {
        let (u, x) = (self.weight[to] - self.weight[from], self.first[to] - self.first[from]);
        if u > 0.0 { (self.second[to] - self.second[from] - x * x / u).max(0.0) } else { 0.0 }
    }

    fn mean(&self, from: usize, to: usize) -> f64 {
        let u = self.weight[to] - self.weight[from];
        if u > 0.0 { (self.first[to] - self.first[from]) / u } else { 0.0 }
    }
}

/// The `count` values with the least weighted squared distance of all numbers to the nearest of them, in ascending
/// order: the exact optimum by dynamic programming over sorted numbers, rows by divide and conquer as the best last cut
/// never moves back (Wu, 1991). `weights` has a number for each value, or is empty. Where there are fewer different
/// numbers, the last is repeated.
pub fn kmeans(values: &[f32], weights: &[f64], count: usize) -> Vec<f32> {
    let points = Points::new(values, weights);
    let n = points.at.len();
    if n == 0 || count == 0 {
        return vec![0.0; count];
    }
    let runs = Runs::new(&points);
    let clusters = count.min(n);
    // best[i]: the least cost of the first i points in so many clusters.
    let mut best: Vec<f64> = (0..=n).map(|i| runs.cost(0, i)).collect();
    let mut cuts: Vec<Vec<u32>> = Vec::new();
    for _ in 1..clusters {
        let (mut next, mut cut) = (vec![0f64; n + 1], vec![0u32; n + 1]);
        // Ranges of ends, and where their last cuts can lie.
        let mut open = vec![(1usize, n, 0usize, n)];
        while let Some((low, high, from, to)) = open.pop() {
            if low > high {
                continue;
            }
            let end = (low + high) / 2;
            let mut found = (f64::INFINITY, from);
            for (start, before) in best.iter().enumerate().take(to.min(end) + 1).skip(from) {
                let cost = before + runs.cost(start, end);
                if cost < found.0 {
                    found = (cost, start);
                }
            }
            (next[end], cut[end]) = (found.0, found.1 as u32);
            open.push((low, end - 1, from, found.1));
            open.push((end + 1, high, found.1, to));
        }
        best = next;
        cuts.push(cut);
    }
    let (mut end, mut table) = (n, Vec::new());
    for cut in cuts.iter().rev() {
        let start = cut[end] as usize;
        if start < end {
            table.push(runs.mean(start, end) as f32);
        }
        end = start;
    }
    if end > 0 {
        table.push(runs.mean(0, end) as f32);
    }
    table.reverse();
    let last = table.last().copied().unwrap_or(0.0);
    table.resize(count, last);
    table
}

/// Numbers coded with a table that was made for entropy coding.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// The values, in ascending order; those that no number has are gone.
    pub values: Vec<f32>,
    /// The code of each number.
    pub codes: Vec<u8>,
    /// Bits of a number, when codes are coded by their frequency.
    pub bits: f64,
    /// Weighted squared error.
    pub error: f64,
}

/// Rounds of [`entropy_constrained`], at most.
const ROUNDS: usize = 30;

/// Values and codes with the least sum of weighted squared error and `lambda` times the bits of all codes, when codes are
/// coded by their frequency: from the best table for the error alone, codes, values and frequencies are found in turn.
/// `count` is the number of values to begin with, at most 256.
pub fn entropy_constrained(values: &[f32], weights: &[f64], count: usize, lambda: f64) -> Shared {
    let points = Points::new(values, weights);
    let mut counts: Vec<f64> = Vec::new();
    let mut table: Vec<f64> =
        kmeans(values, weights, count.clamp(1, 256)).into_iter().map(f64::from).collect();
    table.dedup();
    let price = |x: f64, u: f64, table: &[f64], bits: &[f64]| -> usize {
        let cost = |k: usize| u * (x - table[k]).powi(2) + bits.get(k).map_or(0.0, |b| lambda * b);
        (0..table.len()).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(0)
    };
    // How many numbers a point stands for is not known: its share of the weight is taken for it.
    let lengths = |counts: &[f64]| -> Vec<f64> {
        let total: f64 = counts.iter().sum();
        counts.iter().map(|&c| if c > 0.0 { (total / c).log2() } else { 64.0 }).collect()
    };
    let numbers = |weights: f64| weights / points.weight.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mean = points.weight.iter().sum::<f64>() / values.len().max(1) as f64;
    for round in 0..ROUNDS {
        let bits = if round == 0 { Vec::new() } else { lengths(&counts) };
        let (mut sums, mut shares) = (vec![0f64; table.len()], vec![0f64; table.len()]);
        for (&x, &u) in points.at.iter().zip(&points.weight) {
            let k = price(x, mean, &table, &bits);
            sums[k] += u * x;
            shares[k] += u;
        }
        let kept: Vec<usize> = (0..table.len()).filter(|&k| shares[k] > 0.0).collect();
        let next: Vec<f64> = kept.iter().map(|&k| sums[k] / shares[k]).collect();
        let same = next.len() == table.len() && next.iter().zip(&table).all(|(a, b)| (a - b).abs() < 1e-9);
        table = next;
        counts = kept.iter().map(|&k| numbers(shares[k])).collect();
        if same && round > 0 {
            break;
        }
    }
    let bits = lengths(&counts);
    let weight = |i: usize| weights.get(i).copied().unwrap_or(1.0);
    let codes: Vec<u8> = values
        .iter()
        .enumerate()
        .map(|(i, &x)| price(f64::from(x), weight(i), &table, &bits) as u8)
        .collect();
    let mut used = vec![0f64; table.len()];
    codes.iter().for_each(|&c| used[usize::from(c)] += 1.0);
    let total = codes.len().max(1) as f64;
    let rate = used.iter().filter(|c| **c > 0.0).map(|c| c / total * (total / c).log2()).sum();
    let values32: Vec<f32> = table.iter().map(|&v| v as f32).collect();
    let apart = |(i, &c): (usize, &u8)| weight(i) * f64::from(values[i] - values32[usize::from(c)]).powi(2);
    let error = codes.iter().enumerate().map(apart).sum();
    Shared { values: values32, codes, bits: rate, error }
}

/// Trial scales of a group.
const TRIALS: usize = 12;

/// The scale of a group for which the nearest values of the table have the least squared error, weighed by importance
/// (empty when all count alike): trial scales of both signs, each fitted by least squares and the codes found anew.
fn search_scale(part: &[f32], importance: &[f64], table: &Levels) -> f32 {
    let (low, high) = part.iter().fold((0f32, 0f32), |(l, h), &x| (l.min(x), h.max(x)));
    let top = high.max(-low);
    let reach = table.values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if !(top > 0.0 && top.is_finite() && reach > 0.0) {
        return 1.0;
    }
    let weigh = |i: usize| importance.get(i).map_or(1.0, |&u| u as f32);
    let start = top / reach;
    // Gives the error and the scale that fits these codes best.
    let look = |scale: f32| -> (f32, f32) {
        let inverse = 1.0 / scale;
        let (mut error, mut xt, mut tt) = (0f32, 0f32, 0f32);
        for (i, &x) in part.iter().enumerate() {
            let (t, u) = (table.round(x * inverse), weigh(i));
            let apart = x - t * scale;
            error += u * apart * apart;
            xt += u * x * t;
            tt += u * t * t;
        }
        (error, if tt > 0.0 { xt / tt } else { scale })
    };
    let usable = |s: f32| s.is_normal() && (1.0 / s).is_finite();
    let mut best = (f32::INFINITY, start);
    for trial in 0..TRIALS {
        let size = start * (0.5 + 0.9 * trial as f32 / (TRIALS - 1) as f32);
        for scale in [size, -size] {
            let (error, fitted) = look(scale);
            if error < best.0 && usable(scale) {
                best = (error, scale);
            }
            if usable(fitted) {
                let (error, again) = look(fitted);
                if error < best.0 {
                    best = (error, fitted);
                }
                if usable(again) {
                    let (error, _) = look(again);
                    if error < best.0 {
                        best = (error, again);
                    }
                }
            }
        }
    }
    if usable(best.1) { best.1 } else { 1.0 }
}

/// Tables and scales for a weight, before anything is rounded.
struct Books {
    form: Form,
    tables: Vec<Levels>,
    scales: Vec<f32>,
    cols: usize,
}

/// Rounds in which a shared table and the scales of the groups are found in turn.
const TURNS: usize = 3;

impl Books {
    fn new(cpu: &Cpu, w: &Matrix, importance: &[f64], form: Form) -> Books {
        let (group, groups) = (form.codes.group_of(w.cols), form.codes.groups(w.cols));
        let size = 1usize << form.codes.bits;
        let books = |tables: Vec<Levels>, scales| Books { form, tables, scales, cols: w.cols };
        if form.table == Table::Rows {
            let mut tables: Vec<Vec<f32>> = vec![Vec::new(); w.rows];
            cpu.pool().for_chunks_mut(&mut tables, 1, |row, out| {
                out[0] = kmeans(w.row(row), importance, size);
            });
            return books(tables.iter().map(|t| Levels::new(t)).collect(), Vec::new());
        }
        let part = |g: usize| g * group..((g + 1) * group).min(w.cols);
        let search = |table: &Levels| -> Vec<f32> {
            let mut scales = vec![1f32; w.rows * groups];
            cpu.pool().for_chunks_mut(&mut scales, groups.max(1), |row, out| {
                for (g, scale) in out.iter_mut().enumerate() {
                    let columns = part(g);
                    let importance = importance.get(columns.clone()).unwrap_or_default();
                    *scale = search_scale(&w.row(row)[columns], importance, table);
                }
            });
            scales
        };
        let fixed = match form.table {
            Table::Nf4 => Some(Levels::new(&NF4)),
            Table::Iq4 => Some(Levels::new(&IQ4)),
            _ => None,
        };
        if let Some(table) = fixed {
            let scales = search(&table);
            return books(vec![table], scales);
        }
        // From the greatest of each group on.
        let mut scales: Vec<f32> = (0..w.rows * groups)
            .map(|k| {
                let top = w.row(k / groups)[part(k % groups)].iter().fold(0f32, |m, x| m.max(x.abs()));
                if top.is_normal() { top } else { 1.0 }
            })
            .collect();
        let mut table = Levels::new(&[0.0]);
        for _ in 0..TURNS {
            let scale = |k: usize| scales[k / w.cols * groups + k % w.cols / group];
            let values: Vec<f32> = w.data.iter().enumerate().map(|(k, x)| x / scale(k)).collect();
            let weigh = |k: usize| importance.get(k % w.cols).copied().unwrap_or(1.0);
            let weights: Vec<f64> =
                (0..w.data.len()).map(|k| weigh(k) * f64::from(scale(k)).powi(2)).collect();
            table = Levels::new(&kmeans(&values, &weights, size));
            scales = search(&table);
        }
        books(vec![table], scales)
    }

    fn level(&self, row: usize) -> &Levels {
        &self.tables[if self.tables.len() == 1 { 0 } else { row }]
    }

    fn scale(&self, row: usize, col: usize) -> f32 {
        let groups = self.form.codes.groups(self.cols);
        let at = row * groups + col / self.form.codes.group_of(self.cols);
        self.scales.get(at).copied().unwrap_or(1.0)
    }

    fn code(&self, row: usize, col: usize, x: f32) -> u8 {
        self.level(row).code(x / self.scale(row, col)) as u8
    }

    fn round(&self, row: usize, col: usize, x: f32) -> f32 {
        let scale = self.scale(row, col);
        self.level(row).round(x / scale) * scale
    }

    fn finish(self, fixed: &Matrix) -> Codebook {
        let at = |(k, &x): (usize, &f32)| self.code(k / fixed.cols, k % fixed.cols, x);
        let codes = fixed.data.iter().enumerate().map(at).collect();
        Codebook {
            coded: Coded {
                form: self.form.codes,
                rows: fixed.rows,
                cols: fixed.cols,
                codes,
                scales: self.scales,
                zeros: Vec::new(),
            },
            table: self.form.table,
            values: self.tables.into_iter().flat_map(|t| t.values).collect(),
        }
    }
}

/// Each element goes to the nearest value. `importance` has a number for each column, or is empty.
pub fn nearest(cpu: &Cpu, w: &Matrix, importance: &[f64], form: Form) -> Codebook {
    Books::new(cpu, w, importance, form).finish(w)
}

/// Columns go to values one after the other, and the free ones make up for the errors: as [`coded::gptq`], with tables.
///
/// # Errors
/// When the statistics cannot be factored.
pub fn gptq(cpu: &Cpu, w: &Matrix, gram: &Gram, form: Form) -> Result<Codebook> {
    let importance = gram.importance();
    let books = Books::new(cpu, w, &importance, form);
    let mut order: Vec<usize> = (0..w.cols).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]).then(a.cmp(&b)));
    let factor = gram.inverse_factor(DAMP, &order)?;
    let mut fixed = w.clone();
    sweep(cpu, &mut fixed, &factor, &order, Zeros::Free, &|row, col, x| books.round(row, col, x));
    descend(cpu, w, &mut fixed, &products(gram, DAMP), &|row, col, x, _| books.round(row, col, x));
    Ok(books.finish(&fixed))
}

#[cfg(test)]
mod tests {
    use kernel::Isa;

    use super::*;
    use crate::gram::tests::cpu;
    use crate::quantize::coded::tests::layer;
    use crate::quantize::coded::{Ranges, gptq as affine};

    fn cost(values: &[f32], weights: &[f64], table: &[f32]) -> f64 {
        let levels = Levels::new(table);
        let weigh = |i: usize| weights.get(i).copied().unwrap_or(1.0);
        let one = |(i, &x): (usize, &f32)| weigh(i) * f64::from(x - levels.round(x)).powi(2);
        values.iter().enumerate().map(one).sum()
    }

    /// Numbers of a normal distribution, by Box and Muller.
    fn normal(n: usize) -> Vec<f32> {
        let mut state = 3u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let one = |_| ((-2.0 * next().ln()).sqrt() * (std::f64::consts::TAU * next()).cos()) as f32;
        (0..n).map(one).collect()
    }

    #[test]
    fn codes_and_tables_are_read_as_they_are_written() {
        let (gram, w) = layer(16, 32, 200);
        for text in ["k3", "k2-g16", "k4-rows", "nf4-g16", "iq4-g32"] {
            let form: Form = text.parse().unwrap();
            let book = gptq(&cpu(), &w, &gram, form).unwrap();
            let bytes = book.write();
            assert_eq!(Codebook::read(form, w.rows, w.cols, &bytes).as_ref(), Some(&book), "{text}");
            for end in [0, 7, 8, bytes.len() / 2, bytes.len() - 1] {
                assert!(Codebook::read(form, w.rows, w.cols, &bytes[..end]).is_none(), "{text}, {end} bytes");
            }
            assert!(Codebook::read(form, w.rows, w.cols + 1, &bytes).is_none());
            let mut bad = bytes.clone();
            bad[8] = 0xff;
            assert!(
                Codebook::read(form, w.rows, w.cols, &bad).is_none(),
                "a code that the table does not have"
            );
            let sample = Codebook::sample(form, w.rows, w.cols, 1);
            assert_eq!(sample.write().len(), bytes.len());
        }
    }

    #[test]
    fn the_table_is_the_best_of_all() {
        let values: Vec<f32> = normal(14);
        let weights: Vec<f64> = (0..14).map(|i| 1.0 + (i * 5 % 7) as f64).collect();
        let mut order: Vec<usize> = (0..14).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mean = |run: &[usize]| -> f32 {
            let (u, x) = run
                .iter()
                .fold((0.0, 0.0), |(u, x), &i| (u + weights[i], x + weights[i] * f64::from(values[i])));
            (x / u) as f32
        };
        // All ways to cut 14 numbers into 4 runs.
        let mut least = f64::INFINITY;
        for a in 1..12 {
            for b in a + 1..13 {
                for c in b + 1..14 {
                    let table = [&order[..a], &order[a..b], &order[b..c], &order[c..]].map(mean);
                    least = least.min(cost(&values, &weights, &table));
                }
            }
        }
        let found = kmeans(&values, &weights, 4);
        assert!((cost(&values, &weights, &found) / least - 1.0).abs() < 1e-5);
        assert!(found.windows(2).all(|w| w[0] <= w[1]));
    }

    #[test]
    fn a_normal_distribution_has_the_table_of_lloyd_and_max() {
        // Max, "Quantizing for minimum distortion" (1960): errors of 2, 4, 8 and 16 values.
        let values = normal(200_000);
        for (count, want) in [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)] {
            let error = cost(&values, &[], &kmeans(&values, &[], count)) / 200_000.0;
            assert!((error / want - 1.0).abs() < 0.02, "{count}: {error} {want}");
        }
    }

    #[test]
    fn few_numbers_are_met_exactly_and_odd_ones_do_no_harm() {
        assert_eq!(kmeans(&[2.0, 1.0, 2.0], &[], 4), [1.0, 2.0, 2.0, 2.0]);
        assert_eq!(kmeans(&[], &[], 2), [0.0, 0.0]);
        assert_eq!(kmeans(&[f32::NAN, 5.0, f32::INFINITY], &[], 1), [5.0]);
        assert_eq!(kmeans(&[1.0, 9.0], &[1.0, 0.0], 1), [1.0]);
        let w = Matrix::new(2, 8, vec![0.0, 1e-39, 3e38, -3e38, 0.0, 0.0, 0.0, 0.0]);
        for form in ["k2", "k2-rows", "k3-g4", "nf4-g4", "iq4"] {
            let book = nearest(&cpu(), &w, &[], form.parse().unwrap());
            assert!(book.decode().data.iter().all(|x| x.is_finite()), "{form}");
        }
    }

    /// Squared error of a normal distribution in groups of 32.
    fn of_normal(form: &str) -> f64 {
        let w = Matrix::new(256, 512, normal(256 * 512));
        w.distance(&nearest(&cpu(), &w, &[], form.parse().unwrap()).decode())
    }

    #[test]
    fn fixed_tables_do_what_the_handbook_says() {
        // The handbook: 0.0056 for IQ4_NL with searched scales, 0.00768 for NF4 with the scale of the greatest.
        let (iq4, nf4) = (of_normal("iq4-g32"), of_normal("nf4-g32"));
        assert!((0.0050..0.0058).contains(&iq4), "{iq4}");
        assert!(nf4 < 0.00768 && nf4 > iq4, "{nf4}");
        let fitted = of_normal("k4-g32");
        assert!(fitted < 1.02 * iq4, "{fitted} {iq4}");
    }

    #[test]
    fn a_penalty_on_length_pays_when_codes_are_coded_by_frequency() {
        let values = normal(20_000);
        let plain = entropy_constrained(&values, &[], 4, 0.0);
        assert!((plain.bits - 1.911).abs() < 0.02, "{}", plain.bits);
        // As many bits from more values.
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..20 {
            let middle = (low + high) / 2.0;
            let bits = entropy_constrained(&values, &[], 16, middle).bits;
            if bits > plain.bits { low = middle } else { high = middle }
        }
        let better = entropy_constrained(&values, &[], 16, high);
        assert!(better.bits <= plain.bits && better.error < 0.9 * plain.error, "{better:?}");
        let coded = |s: &Shared| -> f64 {
            let at = |(x, &c): (&f32, &u8)| f64::from(x - s.values[usize::from(c)]).powi(2);
            values.iter().zip(&s.codes).map(at).sum()
        };
        assert!((coded(&better) / better.error - 1.0).abs() < 1e-9);
    }

    #[test]
    fn tables_beat_grids_at_few_bits_after_the_sweep_as_well() {
        let (gram, w) = layer(48, 160, 2000);
        let relative = |new: &Matrix| {
            let (harm, energy) = gram.harm(&cpu(), &w, new);
            harm / energy
        };
        for bits in [2, 3] {
            let grid = coded::Form { bits, group: 0 };
            let a = affine(&cpu(), &w, &gram, grid, Ranges::Searched, false, false).unwrap();
            let form = Form { codes: grid, table: Table::Shared };
            let b = gptq(&cpu(), &w, &gram, form).unwrap();
            let plain = nearest(&cpu(), &w, &gram.importance(), form);
            let (a, b, plain) = (relative(&a.decode()), relative(&b.decode()), relative(&plain.decode()));
            assert!(b < a && b < 0.7 * plain, "{bits}: {b} {a} {plain}");
        }
    }

    #[test]
    fn threads_change_nothing_and_forms_are_written_as_they_are_read() {
        let (gram, w) = layer(20, 64, 400);
        for form in ["k2", "k3-g16", "k3-rows", "nf4-g32", "iq4"] {
            let form: Form = form.parse().unwrap();
            assert_eq!(form.to_string().parse(), Ok(form));
            let of = |threads| {
                let cpu = Cpu::with_isa(Isa::best(), threads).unwrap();
                gptq(&cpu, &w, &gram, form).unwrap()
            };
            assert_eq!(of(1), of(3));
            assert!(of(1).coded.codes.iter().all(|&c| u32::from(c) < 1 << form.codes.bits));
        }
        for bad in ["", "k", "k9", "k0", "k3-rows-g2", "nf4-rows", "nf5", "w3", "k3-", "k3-g"] {
            assert!(bad.parse::<Form>().is_err(), "{bad}");
        }
        let form: Form = "k3-g32".parse().unwrap();
        assert_eq!(form.bytes(10, 64), 240 + 32 + 80);
    }
}
