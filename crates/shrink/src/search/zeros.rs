//! How many zeros each weight gets: the harm of each is measured at the share that is asked for and carried over to
//! others by the error of its outputs; the elements that stay are shared out where they do most good.

use std::collections::HashSet;

use super::Allocation;
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
/// How many times the mean of its weight an element's score is to be an outlier.
const OUTLYING: f64 = 5.0;
/// How far from the share that is asked for a weight may be by its outliers.
const APART: f64 = 0.08;

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
    if own || asked.allocation == Allocation::Even || !work.judge.can_calibrate() {
        return Ok(zeros(weights.iter().map(|(w, _)| spot(w, asked.share)).collect()));
    }
    let shares: Vec<f64> = (-STEPS..=STEPS)
        .map(|step| asked.share + 0.05 * f64::from(step))
        .filter(|s| (0.0..=0.98).contains(s))
        .collect();
    let names: Vec<&Weight> = weights.iter().map(|(w, _)| *w).collect();
    let importance = importance(work, &names)?;
    if asked.allocation == Allocation::Outliers {
        let measure = |(weight, layout): &(&Weight, Layout)| {
            let matrix = graph.constant(weight.value).map(|tensor| layout.read(tensor)).transpose()?;
            let weigh: &[Vec<f64>] = importance.get(&weight.value).map_or(&[], Vec::as_slice);
            let part = matrix.map_or(0.0, |matrix| outlying(&scores(&matrix, layout, weigh).data));
            Ok::<_, Error>((part, weight.len))
        };
        let measured = weights.iter().map(measure).collect::<Result<Vec<_>>>()?;
        let shares = by_outliers(&measured, asked.share);
        return Ok(zeros(weights.iter().zip(shares).map(|((w, _), share)| spot(w, share)).collect()));
    }
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

/// The part of these scores that are so many times their mean.
fn outlying(scores: &[f32]) -> f64 {
    let mean = scores.iter().map(|s| f64::from(*s)).sum::<f64>() / scores.len().max(1) as f64;
    let far = scores.iter().filter(|s| f64::from(**s) > OUTLYING * mean).count();
    far as f64 / scores.len().max(1) as f64
}

/// The share of zeros of weights with such parts of outliers and so many elements: `share` of all elements, and for none of
/// them much more or less.
fn by_outliers(weights: &[(f64, usize)], share: f64) -> Vec<f64> {
    let (low, high) = weights
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (part, _)| (low.min(*part), high.max(*part)));
    let spread = if high > low { 2.0 * APART / (high - low) } else { 0.0 };
    let kept = |part: f64| spread * (part - low);
    let all: usize = weights.iter().map(|(_, len)| len).sum();
    let mean = weights.iter().map(|&(part, len)| kept(part) * len as f64).sum::<f64>() / all.max(1) as f64;
    weights.iter().map(|&(part, _)| (share + mean - kept(part)).clamp(0.0, 0.98)).collect()
}

/// The size of each element times that of its input.
fn scores(w: &Matrix, layout: &Layout, importance: &[Vec<f64>]) -> Matrix {
    let score = |(k, x): (usize, &f32)| {
        let inputs = importance.get(layout.group_of(k / w.cols));
        x.abs() * inputs.map_or(1.0, |u| u[k % w.cols].sqrt() as f32)
    };
    Matrix { data: w.data.iter().enumerate().map(score).collect(), ..w.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_with_more_outliers_keep_more() {
        let mut scores = vec![1f32; 99];
        scores.push(50.0);
        assert_eq!(outlying(&scores), 0.01);
        assert_eq!(outlying(&[1.0; 8]), 0.0);
        let shares = by_outliers(&[(0.00, 100), (0.01, 100), (0.02, 200)], 0.5);
        let all = 0.25 * shares[0] + 0.25 * shares[1] + 0.5 * shares[2];
        assert!((all - 0.5).abs() < 1e-12 && shares[0] > shares[1] && shares[1] > shares[2], "{shares:?}");
        assert!((shares[0] - shares[2] - 2.0 * APART).abs() < 1e-12, "{shares:?}");
        assert_eq!(by_outliers(&[(0.3, 10), (0.3, 20)], 0.6), [0.6, 0.6]);
        assert!(by_outliers(&[(0.0, 10), (1.0, 10)], 0.97).iter().all(|s| *s <= 0.98));
    }
}
