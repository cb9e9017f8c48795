//! Weights of 8 bits for what their products become: the sums of products of the inputs say which codes keep the outputs
//! as they are, and the bias takes what is left of their means. A depthwise convolution has few weights whose products
//! nearly cancel; the nearest codes spoil its outputs a hundred times more than the weight itself.

use std::collections::HashMap;

use graph::op::WeightKind;
use graph::{Graph, Tensor, ValueId};
use kernel::Cpu;

use super::bias;
use super::descend::{descend, products};
use super::grid::{Grid, PAIR, pair_codes, search_pairs, search_s8};
use crate::Result;
use crate::gram::Gram;
use crate::job::{Key, kept};
use crate::matrix::{Layout, Matrix};
use crate::pass::Context;
use crate::walk::{Stop, walk};
use crate::weights::Weight;

/// What is added to the diagonal of the mean products, as a part of its mean: little, since outputs that nearly cancel
/// are what this is about.
const DAMP: f64 = 1e-4;

/// What the products of a weight with codes of activations are added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// 32 bits each, or no sums at all: depthwise convolutions, tables.
    Wide,
    /// Perhaps two by two in 16 bits, as processors without VNNI do, inputs in the order of the channels at each tap.
    Paired,
}

impl Sums {
    /// Those of a weight at its node.
    pub fn of(graph: &Graph, weight: &Weight) -> Sums {
        let outputs = graph.constant(weight.value).and_then(|t| t.shape().first().copied());
        let groups = graph.node(weight.node).and_then(|n| n.op.attrs().int_or("group", 1).ok());
        let depthwise = weight.used.kind == WeightKind::Conv
            && groups.and_then(|g| usize::try_from(g).ok()).filter(|g| *g > 1) == outputs;
        if depthwise { Sums::Wide } else { Sums::Paired }
    }

    /// The grid of the least squared error for these weights, in the order of the sum, and their codes.
    pub fn search(self, weights: &[f32], least: f32) -> (Grid, Vec<i8>) {
        let mut grid = match self {
            Sums::Wide => search_s8(weights.iter()),
            Sums::Paired => search_pairs(weights),
        };
        grid.scale = grid.scale.max(least);
        let codes = match self {
            Sums::Wide => weights.iter().map(|&w| grid.code(w) as i8).collect(),
            Sums::Paired => pair_codes(&grid, weights),
        };
        (grid, codes)
    }
}

/// The order in which engines add up the products of an output with so many weights, of so many taps: the channels of a
/// tap together.
pub fn order(len: usize, taps: usize) -> Vec<usize> {
    let inputs = len / taps.max(1);
    (0..len).map(|k| k % inputs * taps + k / inputs).collect()
}

/// A weight rounded to 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// The codes, s8, in the shape of the weight.
    pub codes: Tensor,
    /// A scale for each output.
    pub scales: Vec<f32>,
    /// What its bias shall have more of; empty when there is none.
    pub shift: Vec<f32>,
    /// Mean squared error of the outputs, relative to what they are.
    pub error: f64,
}

/// Rounds these weights in the order of the model, each on what the rounded weights before it make of the examples. A
/// weight that several nodes use, that is no matrix, or that no example reaches is left out.
///
/// # Errors
/// When the model cannot be run on the examples, or what a weight reads is not finite.
pub fn round(graph: &Graph, weights: &[&Weight], cx: &Context) -> Result<HashMap<ValueId, Rounded>> {
    let readers = graph.readers();
    let alone: Vec<&Weight> =
        weights.iter().copied().filter(|w| readers[w.value.index()].len() == 1).collect();
    let mut found = HashMap::new();
    let cpu = cx.cpu;
    walk(graph, &alone, cx.examples()?, cpu, &mut |stop: Stop| {
        let Stop { weight, layout, matrix, grams, shift } = stop;
        let biased = bias::fits(graph, weight);
        let (mut parts, mut scales) = (Vec::new(), Vec::new());
        let (mut harm, mut energy) = (0f64, 0f64);
        for (group, gram) in grams.iter().enumerate() {
            let old = layout.part(&matrix, group);
            // The bias takes the mean of what is apart.
            let felt = if biased { &gram.centred() } else { gram };
            let sums = Sums::of(graph, weight);
            let what = || format!("int8 {sums:?} {:?} {DAMP} {:?}", layout.shape(), cpu.isa());
            let (new, steps) = kept(
                cx.judge.store(),
                || Key::of(&[what().as_bytes()]).matrix(&old, felt),
                |bytes| read(old.rows, old.cols, bytes),
                |(new, steps)| [new.write(), Matrix::new(old.rows, 1, steps.clone()).write()].concat(),
                || Ok(one(cpu, &old, felt, layout, sums)),
            )?;
            (harm, energy) = (harm + felt.harm(cpu, &old, &new).0, energy + gram.energy(cpu, &old));
            if biased {
                shift.extend(bias::shift(&old, &new, &gram.mean()));
            }
            parts.extend(new.data);
            scales.extend(steps);
        }
        let new = Matrix::new(layout.rows, layout.cols, parts);
        let at = |k: usize, x: &f32| (x / scales[k / layout.cols]).round();
        let codes = new.data.iter().enumerate().map(|(k, x)| at(k, x)).collect();
        let codes = layout.write(&Matrix::new(layout.rows, layout.cols, codes))?;
        let codes: Vec<i8> = codes.values::<f32>()?.iter().map(|&c| c as i8).collect();
        let rounded = Rounded {
            codes: Tensor::new(layout.shape(), &codes)?,
            scales,
            shift: shift.clone(),
            error: if energy > 0.0 { harm / energy } else { 0.0 },
        };
        found.insert(weight.value, rounded);
        Ok(Some(new))
    })?;
    Ok(found)
}

/// Rows on their grids and their scales, as they were kept.
fn read(rows: usize, cols: usize, bytes: &[u8]) -> Option<(Matrix, Vec<f32>)> {
    let (new, steps) = bytes.split_at_checked(rows.checked_mul(cols)?.checked_mul(4)?)?;
    Some((Matrix::read(rows, cols, new)?, Matrix::read(rows, 1, steps)?.data))
}

/// The rows of a group on their grids, and the scale of each.
fn one(cpu: &Cpu, old: &Matrix, gram: &Gram, layout: &Layout, sums: Sums) -> (Matrix, Vec<f32>) {
    let n = old.cols;
    let taps = layout.shape()[2..].iter().product::<usize>().max(1);
    let order = order(n, taps);
    // The neighbour of each input in the sum.
    let mut partner = vec![None; n];
    if sums == Sums::Paired {
        for pair in order.chunks_exact(2) {
            (partner[pair[0]], partner[pair[1]]) = (Some(pair[1]), Some(pair[0]));
        }
    }
    let mut new = old.clone();
    let grids: Vec<Grid> = cpu.pool().map(old.rows, |row| {
        let weights: Vec<f32> = order.iter().map(|&j| old.row(row)[j]).collect();
        sums.search(&weights, 0.0).0
    });
    for (row, grid) in grids.iter().enumerate() {
        let weights: Vec<f32> = order.iter().map(|&j| old.row(row)[j]).collect();
        let codes = match sums {
            Sums::Wide => weights.iter().map(|&w| grid.code(w) as i8).collect(),
            Sums::Paired => pair_codes(grid, &weights),
        };
        for (&j, code) in order.iter().zip(codes) {
            new.row_mut(row)[j] = f32::from(code) * grid.scale;
        }
    }
    descend(cpu, old, &mut new, &products(gram, DAMP), &|row, j, x, others| {
        // What is 0 stays so: zeros may be there on purpose.
        if old.row(row)[j] == 0.0 {
            return 0.0;
        }
        let grid = &grids[row];
        let mut code = grid.code(x);
        if let Some(partner) = partner[j] {
            let other = (others[partner] / grid.scale).round() as i32;
            if (code + other).abs() > PAIR && code.signum() == other.signum() {
                code = code.signum() * (PAIR - other.abs());
            }
        }
        grid.value(code)
    });
    (new, grids.iter().map(|g| g.scale).collect())
}
