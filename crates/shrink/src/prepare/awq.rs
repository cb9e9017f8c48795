//! AWQ (Lin et al., 2024): weights whose inputs are great are scaled up, so that rounding does less to them. Channels are
//! scaled between what makes them (a norm, a product, the values of attention) and the products that read them, by
//! `s_j = mean|X_j|^alpha`, with the alpha that does least harm in the bits that the weights will have.

use std::collections::HashMap;

use graph::{Graph, NodeId};
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use super::channels::{Class, Seen, look, scale};
use super::heads::sets;
use crate::matrix::Matrix;
use crate::quantize::coded::{Form, Ranges, nearest};
use crate::walk::{Example, Stop, walk};
use crate::weights::{Weight, node_name, weights};
use crate::{Error, Result};

/// Alphas that are tried, evenly from 0.
const STEPS: usize = 20;

/// AWQ, as a plan holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Awq {
    /// Where channels are scaled.
    pub places: Vec<Place>,
}

/// Channels that are scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The first product that reads them.
    pub node: String,
    /// The exponent of the scales: 0 to 1.
    pub alpha: f64,
}

/// The first product that reads a set of channels.
fn name(graph: &Graph, class: &Class) -> String {
    let first = class.readers.first().and_then(|end| graph.node(end.node));
    first.map(|node| node_name(graph, node)).unwrap_or_default()
}

/// Finds the alpha of each set of channels: that of the least error, relative and summed over the products that read
/// them, when these weights go to the nearest codes of their forms. Products of matrices only.
///
/// # Errors
/// When the graph cannot be run on the examples, or what it makes is not finite.
pub fn search(
    graph: &Graph,
    forms: &HashMap<NodeId, Form>,
    ranges: Ranges,
    examples: &[Example],
    cpu: &Cpu,
) -> Result<Awq> {
    let all = sets(graph);
    let seen = look(graph, &all, examples, cpu)?;
    let mut of_node: HashMap<NodeId, usize> = HashMap::new();
    for (at, class) in all.iter().enumerate() {
        of_node.extend(class.readers.iter().map(|end| (end.node, at)));
    }
    let mut errors = vec![[0f64; STEPS]; all.len()];
    let found = weights(graph)?;
    let fits = |w: &&Weight| of_node.contains_key(&w.node) && forms.contains_key(&w.node);
    let wanted: Vec<&Weight> = found.iter().filter(fits).collect();
    walk(graph, &wanted, examples.to_vec(), cpu, &mut |stop: Stop| {
        let node = stop.weight.node;
        let (Some(&at), Some(&form)) = (of_node.get(&node), forms.get(&node)) else { return Ok(None) };
        let ([gram], Some(seen)) = (stop.grams, all[at].seen(graph, &seen)) else { return Ok(None) };
        if stop.matrix.cols != seen.size.len() {
            return Ok(None);
        }
        let importance = gram.importance();
        for (step, error) in errors[at].iter_mut().enumerate() {
            let by = scales(seen, alpha_of(step));
            let times = |m: &Matrix, of: fn(f32) -> f32| {
                let data = m.data.iter().enumerate().map(|(k, w)| w * of(by[k % m.cols])).collect();
                Matrix::new(m.rows, m.cols, data)
            };
            let inputs = importance.iter().zip(&by);
            let inputs: Vec<f64> = inputs.map(|(u, s)| u / f64::from(*s).powi(2)).collect();
            let coded = nearest(cpu, &times(&stop.matrix, |s| s), &inputs, form, ranges);
            let (harm, energy) = gram.harm(cpu, &stop.matrix, &times(&coded.decode(), |s| 1.0 / s));
            *error += if energy > 0.0 { harm / energy } else { 0.0 };
        }
        Ok(None)
    })?;
    let place = |(class, errors): (&Class, &[f64; STEPS])| {
        let best = (0..STEPS).reduce(|a, b| if errors[b] < errors[a] { b } else { a })?;
        (best > 0).then(|| Place { node: name(graph, class), alpha: alpha_of(best) })
    };
    Ok(Awq { places: all.iter().zip(&errors).filter_map(place).collect() })
}

fn alpha_of(step: usize) -> f64 {
    step as f64 / STEPS as f64
}

/// Scales the channels at these places. Gives their number.
///
/// # Errors
/// [`Error::Plan`] when the graph has no such place, or an alpha is not within 0 and 1; when the graph cannot be run on
/// the examples, or what it makes is not finite.
pub fn apply(graph: &mut Graph, awq: &Awq, examples: &[Example], cpu: &Cpu) -> Result<usize> {
    let all = sets(graph);
    let mut at = Vec::new();
    for Place { node, alpha } in &awq.places {
        if !(0.0..=1.0).contains(alpha) {
            let what = format!("the alpha of awq at node {node:?} is {alpha}; it must be within 0 and 1");
            return Err(Error::Plan(what));
        }
        let class = all.iter().find(|class| name(graph, class) == *node);
        let none = || Error::Plan(format!("awq finds no channels that node {node:?} is the first to read"));
        at.push((class.ok_or_else(none)?, *alpha));
    }
    let seen = look(graph, &all, examples, cpu)?;
    for (class, alpha) in at {
        if let Some(seen) = class.seen(graph, &seen) {
            let by: Vec<f32> = scales(seen, alpha).into_iter().map(|s| 1.0 / s).collect();
            scale(graph, class, &by)?;
        }
    }
    Ok(awq.places.len())
}

/// `mean|X_j|^alpha`, so that the greatest and the least are as far from 1.
fn scales(seen: &Seen, alpha: f64) -> Vec<f32> {
    let all: Vec<f32> = seen.size.iter().map(|x| x.powf(alpha).max(1e-4) as f32).collect();
    let (low, high) = all.iter().fold((f32::INFINITY, 0f32), |(l, h), &s| (l.min(s), h.max(s)));
    let middle = (low * high).sqrt();
    let one = |s: f32| if (s / middle).is_normal() { s / middle } else { 1.0 };
    all.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gram::tests::cpu;
    use crate::prepare::tests::{apart, block, examples, run};

    #[test]
    fn scales_are_found_that_make_less_of_an_error_and_keep_what_is_computed() {
        let form = Form { bits: 3, group: 0 };
        for norm in ["LayerNormalization", "RMSNormalization"] {
            let before = block(norm);
            let forms = weights(&before).unwrap().iter().map(|w| (w.node, form)).collect();
            let awq = search(&before, &forms, Ranges::MinMax, &examples(), &cpu()).unwrap();
            assert!(!awq.places.is_empty() && awq.places.iter().all(|p| p.alpha > 0.0), "{awq:?}");
            let mut after = before.clone();
            assert_eq!(apply(&mut after, &awq, &examples(), &cpu()).unwrap(), awq.places.len());
            assert!(apart(&run(&before), &run(&after)) < 1e-5);
            // What the search says: less error in these bits, over the products of the first place alone.
            let first = Awq { places: vec![awq.places[0].clone()] };
            let mut after = before.clone();
            apply(&mut after, &first, &examples(), &cpu()).unwrap();
            let class = sets(&before).into_iter().find(|c| name(&before, c) == awq.places[0].node).unwrap();
            let error = |graph: &Graph| {
                let found = weights(graph).unwrap();
                let wanted: Vec<&Weight> =
                    found.iter().filter(|w| class.readers.iter().any(|end| end.node == w.node)).collect();
                let mut sum = 0.0;
                walk(graph, &wanted, examples(), &cpu(), &mut |stop: Stop| {
                    let coded = nearest(&cpu(), &stop.matrix, &[], form, Ranges::MinMax);
                    let (harm, energy) = stop.grams[0].harm(&cpu(), &stop.matrix, &coded.decode());
                    sum += harm / energy;
                    Ok(None)
                })
                .unwrap();
                sum
            };
            assert!(error(&after) < error(&before), "{} {}", error(&before), error(&after));
        }
        // Nothing is rounded: nothing is gained.
        let graph = block("RMSNormalization");
        let awq = search(&graph, &HashMap::new(), Ranges::MinMax, &examples(), &cpu()).unwrap();
        assert!(awq.places.is_empty());
    }
}
