//! Cross-layer equalization: channels that are narrow beside others are widened where they are made and narrowed where
//! they are read, so that one grid serves all of them. Without data the ranges of the weights on both sides are made
//! equal (Nagel et al., "Data-Free Quantization", 2019); with data the ranges of activations, as far as the noise that
//! both activations and weights of 8 bits make becomes less.

use std::collections::HashMap;

use graph::{Graph, ValueId};
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use super::channels::{Class, Seen, classes, elements, is_product, look, scale};
use crate::Result;
use crate::walk::Example;

/// Cross-layer equalization, as a plan holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Equalize {
    /// Whose ranges become equal.
    pub ranges: Of,
}

/// Whose ranges become equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// Those of the weights on both sides; takes no data.
    Weights,
    /// Those of the activations between them.
    Activations,
}

/// Most rounds over all classes.
const ROUNDS: usize = 40;
/// Scales that change less than this are settled.
const SETTLED: f32 = 1e-4;
/// Channels are scaled by no more than this in all.
const MOST: f32 = 1024.0;
/// How much of the ranges is made equal: 0 is nothing, 1 all.
const SHARES: u32 = 10;

/// The channels that can be scaled whatever they hold: a `Clip` bounds none of them, and what calibration has seen of
/// those that one bounds is not all that there is.
fn free(graph: &Graph) -> impl Iterator<Item = Class> {
    classes(graph).into_iter().filter(|c| c.clipped.is_empty())
}

/// Makes the ranges of weights equal that make and read the same channels, without data: `s_i = sqrt(r1_i / r2_i)`,
/// over and over, which comes to the cube root of the product for depthwise triples. Gives the number of classes that
/// were scaled.
///
/// # Errors
/// When the graph breaks a rule.
pub fn weights(graph: &mut Graph) -> Result<usize> {
    let all: Vec<Class> = free(graph).filter(|c| c.makers.iter().any(|&m| is_product(graph, m))).collect();
    let mut total: Vec<Vec<f32>> = all.iter().map(|c| vec![1.0; c.len]).collect();
    for _ in 0..ROUNDS {
        let mut most = 0f32;
        for (class, total) in all.iter().zip(&mut total) {
            let (made, read) = (widest(graph, class, true)?, widest(graph, class, false)?);
            let mut by = vec![1f32; class.len];
            for (c, by) in by.iter_mut().enumerate() {
                let wanted = (read[c] / made[c]).sqrt();
                if wanted.is_normal() {
                    *by = (wanted * total[c]).clamp(1.0 / MOST, MOST) / total[c];
                    most = most.max((*by - 1.0).abs());
                    total[c] *= *by;
                }
            }
            scale(graph, class, &by)?;
        }
        if most < SETTLED {
            break;
        }
    }
    Ok(total.iter().filter(|t| t.iter().any(|&k| (k - 1.0).abs() > SETTLED)).count())
}

/// The greatest absolute weight of each channel, where it is made or where it is read.
fn widest(graph: &Graph, class: &Class, made: bool) -> Result<Vec<f32>> {
    let mut most = vec![0f32; class.len];
    let ends = if made { &class.makers } else { &class.readers };
    for &end in ends.iter().filter(|&&e| is_product(graph, e)) {
        for (row, channel, w) in elements(graph, end)? {
            let at = if made { row } else { channel };
            most[at] = most[at].max(w.abs());
        }
    }
    Ok(most)
}

/// Widens narrow channels of activations, as far as what 8 bits for activations and weights do to the products that
/// read them becomes less. Gives the number of classes that were scaled.
///
/// # Errors
/// When the graph cannot be run on the examples, or breaks a rule.
pub fn activations(graph: &mut Graph, examples: &[Example], cpu: &Cpu) -> Result<usize> {
    let all: Vec<Class> = free(graph).collect();
    let seen = look(graph, &all, examples, cpu)?;
    let mut count = 0;
    for class in &all {
        if !class.values.iter().all(|v| seen.contains_key(v)) {
            continue;
        }
        let room = room(class, &seen);
        let mut best = (noise(graph, class, &seen, &vec![1.0; class.len])?, None);
        for share in 1..=SHARES {
            let by: Vec<f32> = room.iter().map(|r| r.powf(share as f32 / SHARES as f32)).collect();
            let noise = noise(graph, class, &seen, &by)?;
            if noise < best.0 {
                best = (noise, Some(by));
            }
        }
        if let Some(by) = best.1 {
            scale(graph, class, &by)?;
            count += 1;
        }
    }
    Ok(count)
}

/// By how much each channel may be widened at most: until it is as wide as the widest.
fn room(class: &Class, seen: &HashMap<ValueId, Seen>) -> Vec<f32> {
    let range = |c: usize| class.values.iter().map(move |v| seen[v].high[c].max(-seen[v].low[c]));
    let widest: Vec<f32> = (0..class.len).map(|c| range(c).fold(0f32, f32::max)).collect();
    let most = widest.iter().copied().fold(0f32, f32::max);
    let room = |widest: f32| match most / widest {
        room if room.is_finite() && room > 1.0 => room.min(MOST),
        _ => 1.0,
    };
    widest.into_iter().map(room).collect()
}

/// The mean squared noise of the products that read a class, relative to what they are, when its channels are scaled:
/// activations have one step for all channels, weights one for each row.
fn noise(graph: &Graph, class: &Class, seen: &HashMap<ValueId, Seen>, by: &[f32]) -> Result<f64> {
    let mut sum = 0f64;
    for &end in &class.readers {
        let node = graph.node(end.node).and_then(|n| n.input(0));
        let Some(seen) = node.and_then(|x| seen.get(&x)) else { continue };
        let extreme =
            |of: &[f32], pick: fn(f32, f32) -> f32| of.iter().zip(by).map(|(x, k)| x * k).fold(0f32, pick);
        let step = (extreme(&seen.high, f32::max) - extreme(&seen.low, f32::min)) / 255.0;
        let all = elements(graph, end)?;
        let rows = all.iter().map(|e| e.0 + 1).max().unwrap_or(0);
        let (mut widest, mut inputs) = (vec![0f32; rows], vec![0f64; rows]);
        let (mut of_activations, mut energy) = (0f64, 0f64);
        for &(row, c, w) in &all {
            let scaled = w / by[c];
            widest[row] = widest[row].max(scaled.abs());
            inputs[row] += f64::from(by[c]).powi(2) * seen.square[c];
            of_activations += f64::from(scaled).powi(2);
            energy += f64::from(w).powi(2) * seen.square[c];
        }
        let of_weights: f64 =
            widest.iter().zip(&inputs).map(|(&w, x)| f64::from(w / 127.0).powi(2) * x).sum();
        if energy > 0.0 {
            sum += (of_activations * f64::from(step).powi(2) + of_weights) / 12.0 / energy;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use graph::Datum;

    use super::*;
    use crate::gram::tests::cpu;
    use crate::prepare::tests::{apart, examples_of, network, run};

    #[test]
    fn ranges_of_weights_become_equal_and_outputs_stay() {
        let before = network("Relu");
        let mut after = before.clone();
        // Two of the triple, the stream of the sum, the branch, and the way to the classifier.
        assert_eq!(weights(&mut after).unwrap(), 5);
        after.check().unwrap();
        assert!(apart(&run(&before), &run(&after)) < 1e-5);
        let found = classes(&after);
        let spread = |graph: &Graph| {
            let ratio = |class: &Class| {
                let (made, read) =
                    (widest(graph, class, true).unwrap(), widest(graph, class, false).unwrap());
                made.iter().zip(read).map(|(a, b)| (a / b).max(b / a)).fold(0f32, f32::max)
            };
            found.iter().map(ratio).fold(0f32, f32::max)
        };
        assert!(spread(&before) > 2.0 && spread(&after) < 1.05, "{} {}", spread(&before), spread(&after));
        // All three ranges of a depthwise triple are the same.
        let of = |graph: &Graph, class: usize, made| widest(graph, &found[class], made).unwrap();
        let uneven = |g: &Graph, c: usize| {
            let three = [of(g, 0, true)[c], of(g, 0, false)[c], of(g, 1, false)[c]];
            let (low, high) = three.iter().fold((f32::INFINITY, 0f32), |(l, h), &r| (l.min(r), h.max(r)));
            high / low
        };
        for c in 0..8 {
            assert!(uneven(&after, c) < 1.02, "{c}: {}", uneven(&after, c));
        }
        assert!((0..8).any(|c| uneven(&before, c) > 2.0));
    }

    #[test]
    fn what_a_clip_bounds_stays_also_for_numbers_that_calibration_has_not_seen() {
        let before = network("Clip");
        let examples = examples_of(&before);
        // A tenth of what is run later: the clips cut nothing that is seen here.
        let small: Vec<Example> = examples
            .iter()
            .map(|example| {
                let (name, datum) = &example[0];
                let mut x = datum.tensor().unwrap().clone();
                x.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|x| *x *= 0.1);
                vec![(name.clone(), Datum::Tensor(x))]
            })
            .collect();
        let found = classes(&before);
        assert!(found.iter().any(|c| !c.clipped.is_empty()));
        let seen = look(&before, &found, &examples, &cpu()).unwrap();
        let cuts = found.iter().flat_map(|c| &c.clipped);
        assert!(cuts.clone().any(|(v, bound)| seen[v].high.iter().any(|x| x > bound)));
        for data in [true, false] {
            let mut after = before.clone();
            let count = if data { activations(&mut after, &small, &cpu()) } else { weights(&mut after) };
            assert!(count.unwrap() > 0, "the stream of the sum bounds nothing");
            assert!(apart(&run(&before), &run(&after)) < 1e-5);
        }
    }
}
