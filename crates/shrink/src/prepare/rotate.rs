//! Rotations that cost nothing when the model runs: outliers are spread over the channels of the residual stream, and of
//! each head, by a randomised Hadamard matrix that is multiplied into the weights on both sides. Ashkboos et al., "QuaRot"
//! (2024); Tseng et al., "QuIP#" (2024). One that leaves the mean of the channels as it is passes through layer norms.

use std::collections::HashSet;

use graph::{Graph, Node, NodeId, Tensor, ValueId};
use learn::random::Random;
use serde::{Deserialize, Serialize};

use super::channels::{End, replace};
use super::heads::heads;
use crate::matrix::Layout;
use crate::quantize::bias;
use crate::weights::{Weight, node_name, weights};
use crate::{Error, Result};

/// Where rotations can be, in words.
pub(super) const LOOKED_FOR: &str =
    "a residual stream that only norms read, and heads of attention, whose values only products read";

/// The seed of the signs.
const SEED: u64 = 1;

/// Rotations, as a plan holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotate {
    /// Is the residual stream turned?
    pub stream: bool,
    /// Are the values of the heads of attention turned?
    pub heads: bool,
    /// Seed of the signs.
    pub seed: u64,
}

/// What can be turned in this graph.
///
/// # Errors
/// [`Error::Plan`] when nothing can: it says what stands in the way.
pub fn decide(graph: &Graph) -> Result<Rotate> {
    let heads = !heads(graph).is_empty();
    match Stream::find(graph) {
        Ok(_) => Ok(Rotate { stream: true, heads, seed: SEED }),
        Err(Error::Plan(_)) if heads => Ok(Rotate { stream: false, heads, seed: SEED }),
        Err(Error::Plan(what)) => Err(Error::Plan(format!("{what}; and there are no heads of attention"))),
        Err(other) => Err(other),
    }
}

/// Turns what is asked for. Gives the number of streams and attentions that were.
///
/// # Errors
/// [`Error::Plan`] when the residual stream cannot be turned, and why.
pub fn apply(graph: &mut Graph, rotate: &Rotate) -> Result<usize> {
    let mut count = 0;
    if rotate.stream {
        residual(graph, rotate.seed)?;
        count += 1;
    }
    if rotate.heads {
        count += values(graph, rotate.seed)?;
    }
    Ok(count)
}

/// A randomised Hadamard matrix of blocks: `n` is split into blocks of the greatest power of two that divides it.
#[derive(Clone, Debug)]
pub struct Rotation {
    block: usize,
    signs: Vec<f64>,
    /// A unit vector; what lies in its direction is mirrored at last.
    mirror: Option<Vec<f64>>,
}

impl Rotation {
    /// Of `n` numbers; another one for each seed.
    pub fn new(n: usize, seed: u64) -> Rotation {
        let mut random = Random::new(seed);
        let mut sign = || if random.bits() >> 63 == 0 { 1.0 } else { -1.0 };
        let block = if n == 0 { 1 } else { 1 << n.trailing_zeros() };
        Rotation { block, signs: (0..n).map(|_| sign()).collect(), mirror: None }
    }

    /// The same, mirrored so that it leaves the mean of the numbers as it is.
    pub fn keeping_mean(n: usize, seed: u64) -> Rotation {
        let mut rotation = Rotation::new(n, seed);
        let even = 1.0 / (n.max(1) as f64).sqrt();
        let mut apart = vec![even; n];
        rotation.turn(&mut apart);
        apart.iter_mut().for_each(|x| *x -= even);
        let length = apart.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length > 1e-9 {
            apart.iter_mut().for_each(|x| *x /= length);
            rotation.mirror = Some(apart);
        }
        rotation
    }

    /// Turns numbers in place: `x <- H D x`, in each block, and mirrors them.
    pub fn turn(&self, x: &mut [f64]) {
        x.iter_mut().zip(&self.signs).for_each(|(x, s)| *x *= s);
        let unit = 1.0 / (self.block as f64).sqrt();
        for x in x.chunks_exact_mut(self.block) {
            let mut half = 1;
            while half < x.len() {
                for pair in x.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
                }
                half *= 2;
            }
            x.iter_mut().for_each(|x| *x *= unit);
        }
        if let Some(mirror) = &self.mirror {
            let along: f64 = x.iter().zip(mirror).map(|(x, m)| x * m).sum();
            x.iter_mut().zip(mirror).for_each(|(x, m)| *x -= 2.0 * along * m);
        }
    }
}

/// Turns the values of each head of attention, and turns them back in the product that reads them: exact for every
/// attention. Gives the number of attentions.
///
/// # Errors
/// When the graph breaks a rule.
pub fn values(graph: &mut Graph, seed: u64) -> Result<usize> {
    let all = heads(graph);
    for (k, heads) in all.iter().enumerate() {
        let rotations: Vec<Rotation> = (0..heads.count)
            .map(|h| Rotation::new(heads.width, seed + (k * heads.count + h) as u64))
            .collect();
        let turn = |channels: &mut [f64]| {
            for (part, rotation) in channels.chunks_exact_mut(heads.width).zip(&rotations) {
                rotation.turn(part);
            }
        };
        // `[inputs, channels]` and the bias have channels last; `[channels, outputs]` has them first.
        for &end in &heads.class.makers {
            change(graph, end, heads.class.len, false, turn)?;
        }
        for &end in &heads.class.readers {
            change(graph, end, heads.class.len, true, turn)?;
        }
    }
    Ok(all.len())
}

/// Turns the channels of a constant, which come first or last in it.
fn change(graph: &mut Graph, end: End, len: usize, first: bool, turn: impl Fn(&mut [f64])) -> Result<()> {
    let value = graph.node(end.node).and_then(|n| n.input(end.input));
    let value = value.ok_or_else(gone)?;
    let tensor = graph.constant(value).filter(|t| len > 0 && t.len().is_multiple_of(len)).ok_or_else(gone)?;
    let data = tensor.values::<f32>()?;
    let others = data.len() / len;
    let at =
        |other: usize, channel: usize| if first { channel * others + other } else { other * len + channel };
    let mut turned = vec![0f32; data.len()];
    for other in 0..others {
        let mut channels: Vec<f64> = (0..len).map(|c| f64::from(data[at(other, c)])).collect();
        turn(&mut channels);
        channels.iter().enumerate().for_each(|(c, &x)| turned[at(other, c)] = x as f32);
    }
    let tensor = Tensor::new(tensor.shape(), &turned)?;
    replace(graph, end, tensor);
    Ok(())
}

/// Norms by the root of the mean square: every rotation passes through them.
const ROOTS: &[&str] = &["RMSNormalization", "SimplifiedLayerNormalization"];
/// A norm that subtracts the mean: a rotation that keeps the mean passes through it.
const LAYER: &str = "LayerNormalization";

/// Turns the residual stream of a model: tables and products that write into it, and products that read it. The gains of
/// the norms go into the products behind them, and what norms add into the biases of these. Gives the number of channels
/// of the stream.
///
/// # Errors
/// [`Error::Plan`] when something else reads or writes the stream: it is named, and nothing is changed.
pub fn residual(graph: &mut Graph, seed: u64) -> Result<usize> {
    let stream = Stream::find(graph)?;
    let kinds = stream.norms.iter().filter_map(|(norm, _)| graph.node(*norm));
    let layer = kinds.map(|n| n.kind()).any(|kind| kind == LAYER);
    for &(norm, ref products) in &stream.norms {
        let vector = |input| graph.node(norm)?.input(input).and_then(|v| graph.constant(v));
        let gain = vector(1).ok_or_else(gone)?.values::<f32>()?.into_owned();
        let shift = vector(2).map(|shift| shift.values::<f32>().map(|s| s.into_owned())).transpose()?;
        if let Some(shift) = shift {
            for weight in weights(graph)?.iter().filter(|w| products.iter().any(|p| p.node == w.node)) {
                let more = product_of(graph, weight, &shift)?;
                bias::add(graph, weight, &more)?;
            }
            let zeros = graph.add_constant("zeros", Tensor::vector(&vec![0f32; stream.len]));
            graph.set_input(norm, 2, Some(zeros));
        }
        for &product in products {
            let first = is_first(graph, product, true);
            change(graph, product, stream.len, first, |channels| {
                channels.iter_mut().zip(&gain).for_each(|(x, &g)| *x *= f64::from(g));
            })?;
        }
        let ones = graph.add_constant("ones", Tensor::vector(&vec![1f32; stream.len]));
        graph.set_input(norm, 1, Some(ones));
    }
    let new = if layer { Rotation::keeping_mean } else { Rotation::new };
    let rotation = new(stream.len, seed);
    for &end in &stream.writers {
        let first = is_first(graph, end, false);
        change(graph, end, stream.len, first, |channels| rotation.turn(channels))?;
    }
    for &end in stream.norms.iter().flat_map(|(_, products)| products).chain(&stream.readers) {
        let first = is_first(graph, end, true);
        change(graph, end, stream.len, first, |channels| rotation.turn(channels))?;
    }
    Ok(stream.len)
}

/// What a weight makes of these inputs.
fn product_of(graph: &Graph, weight: &Weight, inputs: &[f32]) -> Result<Vec<f32>> {
    let (layout, tensor) = (Layout::of(graph, weight), graph.constant(weight.value));
    let (layout, tensor) = layout.zip(tensor).ok_or_else(gone)?;
    let row =
        |row: &[f32]| row.iter().zip(inputs).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32;
    Ok(layout.read(tensor)?.each_row().map(row).collect())
}

fn gone() -> Error {
    Error::Graph(graph::Error::invalid("a weight to turn is gone"))
}

/// Do the channels that a product reads, or those that it makes, come first in its weight?
fn is_first(graph: &Graph, end: End, read: bool) -> bool {
    let node = graph.node(end.node);
    let turned = node.is_some_and(|n| n.op.attrs().int_or("transB", 0).is_ok_and(|t| t != 0));
    let product = node.is_some_and(|n| n.kind() == "MatMul" || n.kind() == "Gemm");
    product && end.input == 1 && read != turned
}

/// What writes into the residual stream, and what reads it.
struct Stream {
    len: usize,
    writers: Vec<End>,
    /// Norms with the products that read what they make.
    norms: Vec<(NodeId, Vec<End>)>,
    readers: Vec<End>,
}

impl Stream {
    /// From the first norm on: all values that sums tie to what it reads.
    fn find(graph: &Graph) -> Result<Stream> {
        let norm = |n: &Node| ROOTS.contains(&n.kind()) || n.kind().ends_with(LAYER);
        let first = graph.nodes().find(|(_, n)| norm(n)).and_then(|(_, n)| n.input(0));
        let refuse = |node: &Node, why: &str| {
            let (kind, name) = (node.kind(), node_name(graph, node));
            Error::Plan(format!("the residual stream cannot be turned: {kind} at node {name:?} {why}"))
        };
        let none = || {
            Error::Plan("the residual stream cannot be turned: the model has no norm that reads one".into())
        };
        let first = first.ok_or_else(none)?;
        let len = graph.value(first).fact.shape().and_then(|s| s.last()?.size()).ok_or_else(none)?;
        let mut stream = Stream { len, writers: Vec::new(), norms: Vec::new(), readers: Vec::new() };
        let readers = graph.readers();
        let fixed = |v: ValueId| !graph.inputs.contains(&v) && !graph.outputs.contains(&v);
        let constant = |v: Option<ValueId>| v.filter(|&v| fixed(v)).and_then(|v| graph.constant(v));
        let last = |v: Option<ValueId>| constant(v).is_some_and(|t| t.shape().last() == Some(&len));
        let set = |node: &Node, name: &str| node.op.attrs().int_or(name, 0).is_ok_and(|t| t != 0);
        // Does a product's weight have the stream's channels, on the side that it reads or on the one that it makes?
        let fits = |node: &Node, read: bool| {
            let first = read != set(node, "transB");
            let shape = constant(node.input(1)).map(Tensor::shape).filter(|s| s.len() == 2);
            matches!(node.kind(), "MatMul" | "Gemm") && shape.is_some_and(|s| s[usize::from(!first)] == len)
        };
        let product = |id: NodeId, node: &Node, x: ValueId| -> Result<End> {
            let only = node.inputs.iter().flatten().filter(|&&v| v == x).count() == 1;
            if fits(node, true) && !set(node, "transA") && only && node.input(0) == Some(x) {
                return Ok(End { node: id, input: 1 });
            }
            Err(refuse(node, "reads it, or a norm of it, otherwise than a product with a weight does"))
        };
        let all = weights(graph)?;
        let (mut open, mut known) = (vec![first], HashSet::from([first]));
        while let Some(value) = open.pop() {
            if graph.inputs.contains(&value) || graph.outputs.contains(&value) {
                let name = &graph.value(value).name;
                let what = format!("the residual stream cannot be turned: {name:?} is seen from outside");
                return Err(Error::Plan(what));
            }
            let mut meet = |v: Option<ValueId>, open: &mut Vec<ValueId>| {
                open.extend(v.filter(|&v| graph.constant(v).is_none() && known.insert(v)));
            };
            let (id, node) = graph.producer(value).ok_or_else(none)?;
            match node.kind() {
                "Add" => {
                    for i in 0..2 {
                        match node.input(i).and_then(|v| graph.constant(v)) {
                            Some(_) if last(node.input(i)) => stream.writers.push(End { node: id, input: i }),
                            Some(_) => return Err(refuse(node, "adds what is no number for each channel")),
                            None => meet(node.input(i), &mut open),
                        }
                    }
                }
                "Gather" if last(node.input(0)) && !set(node, "axis") => {
                    stream.writers.push(End { node: id, input: 0 });
                }
                "MatMul" | "Gemm"
                    if fits(node, false) && (node.input(2).is_none() || last(node.input(2))) =>
                {
                    stream.writers.push(End { node: id, input: 1 });
                    let bias = node.input(2).is_some();
                    stream.writers.extend(bias.then_some(End { node: id, input: 2 }));
                }
                _ => return Err(refuse(node, "writes into it")),
            }
            for &id in &readers[value.index()] {
                let Some(node) = graph.node(id) else { continue };
                if node.kind() == "Add" {
                    meet(node.output(0), &mut open);
                } else if norm(node) && node.input(0) == Some(value) {
                    let of_last = node.op.attrs().int_or("axis", -1).is_ok_and(|a| a == -1);
                    let known = ROOTS.contains(&node.kind()) || node.kind() == LAYER;
                    if !known || !of_last || node.outputs.iter().flatten().count() != 1 {
                        return Err(refuse(node, "is no plain norm of the last axis"));
                    }
                    let vector = |v| constant(v).is_some_and(|t| t.shape() == [len]);
                    let plain = vector(node.input(1)) && (node.input(2).is_none() || vector(node.input(2)));
                    let made = node.output(0).filter(|v| plain && !graph.outputs.contains(v));
                    let made = made.ok_or_else(|| refuse(node, "has no constant gain, or is an output"))?;
                    let behind = readers[made.index()].iter().filter_map(|&id| Some((id, graph.node(id)?)));
                    let products: Vec<End> =
                        behind.map(|(id, node)| product(id, node, made)).collect::<Result<_>>()?;
                    let takes = |end: &End| all.iter().any(|w| w.node == end.node && bias::fits(graph, w));
                    if node.input(2).is_some() && !products.iter().all(takes) {
                        return Err(refuse(node, "adds what the products behind it have no bias to take"));
                    }
                    stream.norms.push((id, products));
                } else {
                    stream.readers.push(product(id, node, value)?);
                }
            }
        }
        stream.writers.sort();
        stream.writers.dedup();
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::tests::{after_norm, apart, block, language, network, run};

    #[test]
    fn rotations_keep_lengths_and_spread_outliers() {
        let rotation = Rotation::new(24, 3);
        assert_eq!(rotation.block, 8);
        let mut x: Vec<f64> = (0..24).map(|i| if i == 5 { 8.0 } else { 0.0 }).collect();
        rotation.turn(&mut x);
        assert!((x.iter().map(|x| x * x).sum::<f64>() - 64.0).abs() < 1e-9);
        assert!(x[..8].iter().all(|x| (x.abs() - 8f64.sqrt()).abs() < 1e-9));
        assert!(x[8..].iter().all(|x| *x == 0.0));
        // Order 2: the known matrix, up to signs.
        let mut y = [3.0, 1.0];
        let pair = Rotation { block: 2, signs: vec![1.0, -1.0], mirror: None };
        pair.turn(&mut y);
        assert!((y[0] - 2f64.sqrt()).abs() < 1e-12 && (y[1] - 8f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_mirrored_rotation_keeps_length_and_mean() {
        for n in [1, 6, 24, 64] {
            let rotation = Rotation::keeping_mean(n, 9);
            let old: Vec<f64> = (0..n).map(|i| if i == n / 2 { 8.0 } else { (i % 5) as f64 - 1.0 }).collect();
            let mut new = old.clone();
            rotation.turn(&mut new);
            let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
            assert!((square(&old) - square(&new)).abs() < 1e-9);
            assert!((old.iter().sum::<f64>() - new.iter().sum::<f64>()).abs() < 1e-9, "{n}");
            let most = |x: &[f64]| x.iter().fold(0f64, |m, x| m.max(x.abs()));
            assert!(n < 64 || most(&new) < 0.7 * most(&old), "{n}: {new:?}");
        }
    }

    #[test]
    fn turned_heads_compute_the_same() {
        let before = block("LayerNormalization");
        let mut after = before.clone();
        assert_eq!(values(&mut after, 7).unwrap(), 1);
        after.check().unwrap();
        let weight = |g: &Graph, name: &str| g.constant(g.find(name).unwrap()).unwrap().clone();
        assert!(
            weight(&before, "wv") != weight(&after, "wv") && weight(&before, "wo") != weight(&after, "wo")
        );
        assert!(apart(&run(&before), &run(&after)) < 1e-5);
    }

    #[test]
    fn a_turned_stream_computes_the_same() {
        for norm in ["RMSNormalization", "LayerNormalization"] {
            let before = language(norm);
            let mut after = before.clone();
            assert_eq!(residual(&mut after, 5).unwrap(), 8);
            after.infer().unwrap();
            after.check().unwrap();
            let weight = |g: &Graph, name: &str| g.constant(g.find(name).unwrap()).unwrap().clone();
            for name in ["table", "wq", "wo", "bo", "up", "down", "head"] {
                assert!(weight(&before, name) != weight(&after, name), "{norm} {name}");
            }
            let apart = apart(&run(&before), &run(&after));
            assert!(apart < 1e-4, "{norm}: {apart}");
        }
    }

    #[test]
    fn what_does_not_let_a_rotation_through_is_named() {
        for (graph, part) in [
            (block("RMSNormalization"), "seen from outside"),
            (network("Relu"), "no norm"),
            (after_norm(), "Add at node"),
        ] {
            let mut after = graph.clone();
            let error = residual(&mut after, 1).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(run(&graph), run(&after));
        }
        assert_eq!(
            decide(&block("RMSNormalization")).unwrap(),
            Rotate { stream: false, heads: true, seed: SEED }
        );
        let error = decide(&network("Relu")).unwrap_err().to_string();
        assert!(error.contains("no norm") && error.contains("no heads"), "{error}");
    }
}
