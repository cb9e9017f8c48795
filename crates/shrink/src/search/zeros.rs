//! How many zeros each weight gets: the harm of each is measured at the share that is asked for and carried over to
//! others by the error of its outputs; the elements that stay are shared out where they do most good.

use std::collections::HashSet;

use super::bits::{Guess, error, harm_per_error, importance};
use super::work::Work;
use crate::allocate::{Offer, allocate};
use crate::matrix::{Layout, Matrix};
use crate::prune::pattern::Pattern;
use crate::prune::zeros::{Spot, Zeros, masked};
use crate::weights::{Weight, is_product};
use crate::{Error, Result};

/// How far from the share that is asked for a single weight may be, in steps of a twentieth.
const STEPS: i32 = 5;
/// Weights whose outputs read fewer inputs are left alone: depthwise convolutions.
const LEAST: usize = 16;

/// Zeros for all products of the model, of this share in all.
pub(super) fn choose(work: &Work, asked: &super::Sparse) -> Result<Zeros> {
    let graph = &work.base.graph;
    let mut seen = HashSet::new();
    let weights: Vec<(&Weight, Layout)> = work
        .weights
        .iter()
        .filter(|w| is_product(w.used.kind) && w.used.input == 1 && seen.insert(w.value))
        .filter_map(|w| Some((w, Layout::of(graph, w).filter(|l| l.cols >= LEAST)?)))
        .collect();
    if weights.is_empty() {
        return Err(Error::Plan("the model has no products with weights that zeros could be put in".into()));
    }
    let spot = |w: &Weight, share| Spot {
        node: w.name.clone(),
        weight: graph.value(w.value).name.clone(),
        pattern: asked.pattern,
        share,
    };
    let zeros = |weights| Zeros { rule: asked.rule, refit: asked.refit, weights };
    let own = matches!(asked.pattern, Pattern::Neighbours { .. });
    if own || asked.even || !work.judge.can_calibrate() {
        return Ok(zeros(weights.iter().map(|(w, _)| spot(w, asked.share)).collect()));
    }
    let shares: Vec<f64> = (-STEPS..=STEPS)
        .map(|step| asked.share + 0.05 * f64::from(step))
        .filter(|s| (0.0..=0.98).contains(s))
        .collect();
    let names: Vec<&Weight> = weights.iter().map(|(w, _)| *w).collect();
    let importance = importance(work, &names)?;
    let mut offers = Vec::new();
    let mut guess = Guess::default();
    for (at, (weight, layout)) in weights.iter().enumerate() {
        work.judge.progress(&format!("measuring the harm of zeros, weight {} of {}", at + 1, weights.len()));
        let Some(tensor) = graph.constant(weight.value) else { continue };
        let matrix = layout.read(tensor)?;
        let weigh: &[Vec<f64>] = importance.get(&weight.value).map_or(&[], Vec::as_slice);
        let pruned = |share| masked(&matrix, &asked.pattern.mask(&scores(&matrix, layout, weigh), share));
        let scale =
            harm_per_error(work, weight, (layout, weigh), (&matrix, &pruned(asked.share)), &mut guess)?;
        let offer = |&share: &f64| Offer {
            bytes: ((1.0 - share) * matrix.data.len() as f64) as usize,
            harm: scale * error(layout, weigh, &matrix, &pruned(share)),
        };
        offers.push(shares.iter().map(offer).collect::<Vec<_>>());
    }
    let all: usize = weights.iter().map(|(w, _)| w.len).sum();
    let stay = ((1.0 - asked.share) * all as f64).ceil() as usize;
    let chosen = allocate(&offers, stay);
    let share = |at: usize| chosen.as_ref().map_or(asked.share, |c| shares[c[at]]);
    Ok(zeros(weights.iter().enumerate().map(|(at, (w, _))| spot(w, share(at))).collect()))
}

/// The size of each element times that of its input.
fn scores(w: &Matrix, layout: &Layout, importance: &[Vec<f64>]) -> Matrix {
    let score = |(k, x): (usize, &f32)| {
        let inputs = importance.get(layout.group_of(k / w.cols));
        x.abs() * inputs.map_or(1.0, |u| u[k % w.cols].sqrt() as f32)
    };
    Matrix { data: w.data.iter().enumerate().map(score).collect(), ..w.clone() }
}
