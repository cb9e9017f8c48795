//! Heads: linear maps from what a trained model makes of its inputs, its features, to the answers of a new task. They are
//! fitted in closed form or nearly so, in seconds, and each says how it does on examples that it has not seen.

mod basis;
mod centroid;
mod discriminant;
mod evidence;
mod logistic;
mod ridge;
#[cfg(test)]
mod tests;
mod unseen;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;
use serde::Serialize;

use crate::{Error, Result};
use basis::Basis;
pub(crate) use basis::moments;
pub use unseen::{Unseen, hardly_worse, log_loss, surely_near};

/// What a model makes of examples: a row of numbers for each.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    columns: usize,
    values: Vec<f32>,
}

impl Features {
    /// Rows one after the other.
    ///
    /// # Errors
    /// When there are none, they are of unequal length, or a number is not finite; the row is named.
    pub fn new(columns: usize, values: Vec<f32>) -> Result<Features> {
        if columns == 0 || values.is_empty() || !values.len().is_multiple_of(columns) {
            return Err(Error::input(format!("{} numbers are no rows of {columns} features", values.len())));
        }
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let (row, value) = (at / columns, values[at]);
            return Err(Error::input(format!("feature {} of example {row} is {value}", at % columns)));
        }
        Ok(Features { columns, values })
    }

    /// Number of examples.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// Numbers of an example.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows one after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The features of an example.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// The same with mean 0 and variance 1 in each column; a column of equal numbers becomes 0.
    pub fn standardized(&self) -> Features {
        let (mean, spread) = moments(self, &vec![1.0; self.rows()]);
        let scales = mean.iter().zip(&spread).cycle();
        let each = self.values.iter().zip(scales);
        let values = each.map(|(x, (mean, spread))| ((f64::from(*x) - mean) / spread) as f32).collect();
        Features { columns: self.columns, values }
    }

    /// Those in these columns, which follow one another.
    pub fn select_columns(&self, ranges: &[Range<usize>]) -> Features {
        let rows = self.values.chunks_exact(self.columns);
        let values =
            rows.flat_map(|row| ranges.iter().flat_map(|range| &row[range.clone()])).copied().collect();
        Features { columns: ranges.iter().map(Range::len).sum(), values }
    }

    /// Those of these examples.
    pub fn select(&self, rows: &[usize]) -> Features {
        Features { columns: self.columns, values: rows.iter().flat_map(|&i| self.row(i)).copied().collect() }
    }
}

/// The right answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// One of `count` classes for each example.
    Classes {
        /// The classes, by example.
        of: Vec<usize>,
        /// How many classes there are.
        count: usize,
    },
    /// Any number of `count` labels for each example.
    Labels {
        /// Whether a label holds, example by example.
        of: Vec<bool>,
        /// How many labels there are.
        count: usize,
    },
    /// A number for each example.
    Numbers(Vec<f64>),
}

impl Truth {
    /// Number of examples.
    pub fn rows(&self) -> usize {
        match self {
            Truth::Classes { of, .. } => of.len(),
            Truth::Labels { of, count } => of.len() / count.max(&1),
            Truth::Numbers(of) => of.len(),
        }
    }

    /// Numbers that a head gives for each example.
    pub fn outputs(&self) -> usize {
        match self {
            Truth::Classes { count, .. } | Truth::Labels { count, .. } => *count,
            Truth::Numbers(_) => 1,
        }
    }

    /// The answers of these examples.
    pub fn select(&self, rows: &[usize]) -> Truth {
        match self {
            Truth::Classes { of, count } => {
                Truth::Classes { of: rows.iter().map(|&i| of[i]).collect(), count: *count }
            }
            Truth::Labels { of, count } => {
                let labels = rows.iter().flat_map(|&i| &of[i * count..][..*count]);
                Truth::Labels { of: labels.copied().collect(), count: *count }
            }
            Truth::Numbers(of) => Truth::Numbers(rows.iter().map(|&i| of[i]).collect()),
        }
    }

    /// What scores are to be near to: 1 for what holds and 0 for what does not, or the number; row by row.
    pub fn targets(&self) -> Vec<f32> {
        match self {
            Truth::Classes { of, count } => {
                let mut targets = vec![0.0; of.len() * count];
                of.iter().enumerate().for_each(|(i, &class)| targets[i * count + class] = 1.0);
                targets
            }
            Truth::Labels { of, .. } => of.iter().map(|&holds| f32::from(u8::from(holds))).collect(),
            Truth::Numbers(of) => of.iter().map(|&x| x as f32).collect(),
        }
    }

    /// How much an example of each class counts when all classes count the same, 1 on average.
    pub fn masses(&self) -> Vec<f64> {
        let counts = self.counts();
        let mass = |&count: &usize| self.rows() as f64 / counts.len() as f64 / count.max(1) as f64;
        counts.iter().map(mass).collect()
    }

    /// Examples of each class or label; none for numbers.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; if matches!(self, Truth::Numbers(_)) { 0 } else { self.outputs() }];
        match self {
            Truth::Classes { of, .. } => of.iter().for_each(|&class| counts[class] += 1),
            Truth::Labels { of, count } => {
                of.iter().enumerate().for_each(|(i, &holds)| counts[i % count] += usize::from(holds));
            }
            Truth::Numbers(_) => {}
        }
        counts
    }
}

/// How a head is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Least squares with a penalty on the squares of weights, which exact leave-one-out errors choose.
    Ridge,
    /// Fisher's linear discriminant, its covariance shrunk as Ledoit and Wolf (2004) say.
    Discriminant,
    /// Logistic regression with a penalty on the squares of weights.
    Logistic,
    /// The nearest mean of a class.
    Centroid,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 4] = [Method::Ridge, Method::Discriminant, Method::Logistic, Method::Centroid];

    /// Of methods that do alike the first is taken: by few examples those before did better on others.
    fn rank(self) -> usize {
        match self {
            Method::Logistic => 0,
            Method::Discriminant => 1,
            Method::Ridge => 2,
            Method::Centroid => 3,
        }
    }

    /// Can it answer so?
    pub fn answers(self, truth: &Truth) -> bool {
        match self {
            Method::Ridge => true,
            Method::Logistic => !matches!(truth, Truth::Numbers(_)),
            Method::Discriminant | Method::Centroid => matches!(truth, Truth::Classes { .. }),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Ridge => "ridge",
            Method::Discriminant => "discriminant",
            Method::Logistic => "logistic",
            Method::Centroid => "centroid",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Method, String> {
        let all = Method::ALL;
        all.into_iter().find(|m| m.to_string() == text).ok_or_else(|| {
            let names: Vec<String> = all.iter().map(Method::to_string).collect();
            format!("{text:?} is no way to fit a head; they are {}", names.join(", "))
        })
    }
}

/// A linear map: a score for each output, `weight * features + bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[outputs, features]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

impl Linear {
    /// The scores of each example, row by row.
    pub fn scores(&self, cpu: &Cpu, features: &Features) -> Vec<f32> {
        let outputs = self.bias.len();
        let mut scores = vec![0.0; features.rows() * outputs];
        let weight = View::new(&self.weight, outputs, features.columns);
        let rows = View::new(&features.values, features.rows(), features.columns);
        let post = Post { bias: kernel::matmul::Bias::Col(&self.bias), ..Post::default() };
        matmul(cpu, rows, weight.t(), &mut scores, outputs, &post);
        scores
    }

    /// Takes away the weights of features that hardly move beside the others: for as good as nothing they make gradients of
    /// what lies before them great.
    pub fn calm(&mut self, features: &Features) {
        const LEAST: f64 = 1e-4;
        let (_, spread) = moments(features, &vec![1.0; features.rows()]);
        // Columns that are constant have a spread of 1, and weights of 0.
        let most = spread.iter().copied().filter(|s| *s != 1.0).fold(0.0, f64::max);
        for row in self.weight.chunks_exact_mut(features.columns()) {
            row.iter_mut().zip(&spread).filter(|(_, s)| **s < LEAST * most).for_each(|(w, _)| *w = 0.0);
        }
    }

    fn scale(&mut self, factor: f64) {
        let all = self.weight.iter_mut().chain(&mut self.bias);
        all.for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}

/// What there is to learn from.
pub struct Problem<'a> {
    truth: Truth,
    /// How much each example counts; 1 on average.
    masses: Vec<f64>,
    basis: Basis,
    /// Examples that are left out together.
    folds: Vec<Vec<usize>>,
    cpu: &'a Cpu,
}

/// A head, and how it does.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// How it was fitted.
    pub method: Method,
    /// The penalty that was chosen, for features of variance 1; `None` when there is none to choose.
    pub penalty: Option<f64>,
    /// It itself. A softmax or sigmoid of its scores gives probabilities.
    pub head: Linear,
    /// The scores that heads like it give to examples which they have not seen.
    pub unseen: Unseen,
}

impl<'a> Problem<'a> {
    /// These examples; with `balanced`, each class counts the same, however many examples it has. `seed` is what folds are
    /// drawn from.
    ///
    /// # Errors
    /// When there are not as many answers as examples, fewer than two, or they are all the same.
    pub fn new(
        features: &Features,
        truth: &Truth,
        balanced: bool,
        seed: u64,
        cpu: &'a Cpu,
    ) -> Result<Problem<'a>> {
        let rows = features.rows();
        if truth.rows() != rows {
            return Err(Error::input(format!("{} answers for {rows} examples", truth.rows())));
        }
        check(truth)?;
        let masses = match truth {
            Truth::Classes { of, .. } if balanced => {
                let masses = truth.masses();
                of.iter().map(|&class| masses[class]).collect()
            }
            _ => vec![1.0; rows],
        };
        let basis = Basis::new(features, &masses, cpu)?;
        Ok(Problem { truth: truth.clone(), masses, basis, folds: unseen::folds(truth, seed), cpu })
    }

    /// Fits a head.
    ///
    /// # Errors
    /// When the method cannot give such answers, or the statistics of the features are singular.
    pub fn fit(&self, method: Method) -> Result<Fitted> {
        if !method.answers(&self.truth) {
            let all = Method::ALL.into_iter().filter(|m| m.answers(&self.truth));
            let all: Vec<String> = all.map(|m| m.to_string()).collect();
            return Err(Error::input(format!("{method} does not answer so; {} do", all.join(", "))));
        }
        let mut fitted = match method {
            Method::Ridge => ridge::fit(self),
            Method::Discriminant => discriminant::fit(self),
            Method::Logistic => logistic::fit(self),
            Method::Centroid => centroid::fit(self),
        }?;
        let sharper = fitted.unseen.temper(&self.truth, &self.masses);
        fitted.head.scale(sharper);
        Ok(fitted)
    }

    /// Fits each of these methods that can give such answers. The first does best on examples it has not seen, or hardly
    /// worse than the best, which by few examples is found by chance, and is of a kind that does well more often; the
    /// others follow by their loss.
    ///
    /// # Errors
    /// As [`Problem::fit`].
    pub fn best(&self, methods: &[Method]) -> Result<Vec<Fitted>> {
        let can = methods.iter().filter(|m| m.answers(&self.truth));
        let mut all = can.map(|&method| self.fit(method)).collect::<Result<Vec<_>>>()?;
        // On the same examples, as some methods leave out fewer than others.
        let fewest = all.iter().map(|f| &f.unseen.rows).min_by_key(|rows| rows.len()).cloned();
        let Some(rows) = fewest else { return Err(Error::input("no method is named that answers so")) };
        let loss = |f: &Fitted| f.unseen.on(&rows).loss(&self.truth, &self.masses);
        all.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        let losses = |f: &Fitted| f.unseen.on(&rows).doubted_losses(&self.truth, &self.masses);
        let best = losses(&all[0]);
        let may = |at: &usize| unseen::hardly_worse(&losses(&all[*at]), &best);
        let taken = (0..all.len()).filter(may).min_by_key(|&at| all[at].method.rank()).unwrap_or(0);
        all[..=taken].rotate_right(1);
        Ok(all)
    }

    /// The mean loss of a head on examples that it has not seen, as [`log_loss`] or squared error.
    pub fn loss(&self, fitted: &Fitted) -> f64 {
        fitted.unseen.loss(&self.truth, &self.masses)
    }

    /// The loss of each example that such heads have not seen, some doubt included, as [`hardly_worse`] compares.
    pub fn losses(&self, fitted: &Fitted) -> Vec<f64> {
        fitted.unseen.doubted_losses(&self.truth, &self.masses)
    }

    fn rows(&self) -> usize {
        self.masses.len()
    }
}

/// Fails when there is nothing to learn.
fn check(truth: &Truth) -> Result<()> {
    let rows = truth.rows();
    if rows < 2 {
        return Err(Error::input(format!("{rows} examples are too few to learn from")));
    }
    match truth {
        Truth::Classes { of, count } => {
            if let Some(class) = of.iter().find(|c| *c >= count) {
                return Err(Error::input(format!("class {class} of {count}: classes are counted from 0")));
            }
            let counts = truth.counts();
            if counts.iter().filter(|c| **c > 0).count() < 2 {
                return Err(Error::input(format!(
                    "all {rows} examples are of class {}; there must be examples of at least two",
                    of[0]
                )));
            }
            if let Some(class) = counts.iter().position(|c| *c == 0) {
                return Err(Error::input(format!(
                    "of class {class} of {count} there is no example to learn from"
                )));
            }
        }
        Truth::Labels { count, .. } => {
            let counts = truth.counts();
            if let Some(at) = counts.iter().position(|&c| c == 0 || c == rows) {
                let how = if counts[at] == 0 { "none" } else { "each" };
                return Err(Error::input(format!(
                    "label {at} of {count} holds for {how} of {rows} examples"
                )));
            }
        }
        Truth::Numbers(of) => {
            if let Some(at) = of.iter().position(|x| !x.is_finite()) {
                return Err(Error::input(format!("the answer to example {at} is {}", of[at])));
            }
            if of.iter().all(|x| *x == of[0]) {
                return Err(Error::input(format!("the answer to all {rows} examples is {}", of[0])));
            }
        }
    }
    Ok(())
}
