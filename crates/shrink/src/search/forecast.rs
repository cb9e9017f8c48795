//! What shrinking will cost and give, before any of it is done.

use std::collections::HashMap;

use graph::Model;
use kernel::Cpu;

use super::codes::{Code, candidates};
use super::work::Work;
use super::{Goal, Judge};
use crate::Result;
use crate::plan::Choice;
use crate::quantize::coded::Form;
use crate::quantize::weight_only;

/// What can be said ahead.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// Size of the original's file in bytes.
    pub before: usize,
    /// The file with as many bits for every weight, the most first: bits and bytes.
    pub sizes: Vec<(u32, usize)>,
    /// The bytes that the goal allows.
    pub target: Option<usize>,
    /// Weights that can be put in few bits.
    pub weights: usize,
    /// Bytes of the statistics of the weight with the most inputs, with the factors that are made of them.
    pub statistics: usize,
    /// Floating-point operations of factoring statistics and sweeping weights.
    pub operations: f64,
}

/// Looks at a model and a goal; nothing is run.
///
/// # Errors
/// When the model cannot be changed, or a weight is damaged.
pub fn forecast(model: &Model, goal: &Goal, judge: &dyn Judge, cpu: &Cpu) -> Result<Forecast> {
    let before = judge.bytes_before(model)?;
    let work = Work::new(model, &[], judge, cpu)?;
    let candidates = candidates(&work);
    let mut sizes = Vec::new();
    if work.version >= weight_only::MIN_OPSET {
        for bits in [8, 6, 5, 4, 3, 2] {
            let form = |c: &super::codes::Candidate| {
                let grid = |choice: &Choice| matches!(choice, Choice::Bits(form) if form.bits == bits);
                let same = c.offers.iter().find(|(choice, _)| grid(choice));
                same.map_or(Choice::Bits(Form { bits, group: 0 }), |(choice, _)| *choice)
            };
            let forms: HashMap<_, _> = candidates.iter().map(|c| (c.weight.value, form(c))).collect();
            let sample = |(at, c): (usize, &super::codes::Candidate)| {
                Some((c.weight.value, Code::sample(form(c), &c.layout, at)?))
            };
            let codes = candidates.iter().enumerate().filter_map(sample).collect();
            let choice = |w: &crate::weights::Weight| forms.get(&w.value).copied().unwrap_or(Choice::Keep);
            let choices: Vec<Choice> = work.weights.iter().map(choice).collect();
            let (made, _) = work.build(&choices, &codes)?;
            sizes.push((bits, judge.bytes(&work.finish(made)?)?));
        }
    }
    let widest = candidates.iter().map(|c| c.layout.cols).max().unwrap_or(0);
    let operations = candidates
        .iter()
        .map(|c| {
            let (m, n) = (c.layout.rows as f64, c.layout.cols as f64);
            // A factor and its inverse for each group, and the updates of the columns that are still free.
            c.layout.groups as f64 * n.powi(3) + m * n * n
        })
        .sum();
    Ok(Forecast {
        before,
        sizes,
        target: goal.bytes(before),
        weights: candidates.len(),
        // f64 sums, their f32 part, the damped matrix and its factor in f64, the factor in f32.
        statistics: widest * widest * (8 + 4 + 8 + 8 + 4),
        operations,
    })
}
