//! Blocks that can be left out: stretches of a model whose output has the shape of their input, such as the blocks of a
//! transformer, or of a stage of a residual network. What read the output reads the input, or what a small linear map
//! makes of it, fitted by least squares: `output - input ~ A input + b`. Men et al., "ShortGPT" (2024).

mod bridge;
mod find;

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use graph::{Datum, Graph, Node, NodeId, ValueId};
use kernel::Cpu;
use serde::{Deserialize, Serialize};

pub use find::{Block, blocks, parts};

use crate::observe::observe;
use crate::pass::Context;
use crate::walk::Example;
use crate::{Error, Result};
use bridge::{build, finish, fit};
use find::{between, keeps_shape};

/// What stands in the place of blocks. In a plan: `none`, `linear`, `linear-48`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Bridge {
    /// Nothing.
    #[default]
    None,
    /// What a linear map makes is added to the input.
    Linear,
    /// The same, with a map of this rank.
    Rank(usize),
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bridge::None => f.write_str("none"),
            Bridge::Linear => f.write_str("linear"),
            Bridge::Rank(rank) => write!(f, "linear-{rank}"),
        }
    }
}

impl FromStr for Bridge {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Bridge, String> {
        match (text, text.strip_prefix("linear-").and_then(|r| r.parse().ok())) {
            ("none", _) => Ok(Bridge::None),
            ("linear", _) => Ok(Bridge::Linear),
            (_, Some(rank)) if rank > 0 => Ok(Bridge::Rank(rank)),
            _ => Err(format!("{text:?} is no bridge; say none, linear or linear-48")),
        }
    }
}

impl From<Bridge> for String {
    fn from(bridge: Bridge) -> String {
        bridge.to_string()
    }
}

impl TryFrom<String> for Bridge {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Bridge, String> {
        text.parse()
    }
}

/// A stretch that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The value that it begins with.
    pub input: String,
    /// The value that it makes.
    pub output: String,
    /// What stands in its place.
    #[serde(default)]
    pub bridge: Bridge,
}

impl Cut {
    /// Leaves out a block.
    pub fn of(graph: &Graph, block: &Block, bridge: Bridge) -> Cut {
        let name = |id| graph.value(id).name.clone();
        Cut { input: name(block.input), output: name(block.output), bridge }
    }
}

/// How much blocks change what goes through them: 1 minus the mean cosine of the vectors at their input and at their
/// output. The less, the less they matter.
///
/// # Errors
/// When the model cannot be run, or a block changes the shape.
pub fn influence(graph: &Graph, blocks: &[Block], examples: &[Example], cpu: &Cpu) -> Result<Vec<f64>> {
    let values: Vec<ValueId> = blocks.iter().flat_map(|b| [b.input, b.output]).collect();
    let mut sums = vec![(0f64, 0usize); blocks.len()];
    observe(graph, &values, examples, cpu, &mut |data| {
        for ((block, ends), sum) in blocks.iter().zip(data.chunks(2)).zip(&mut sums) {
            let image = is_image(graph, block.input, &block.nodes);
            let (x, width) = vectors(&ends[0], image)?;
            let (y, other) = vectors(&ends[1], image)?;
            if x.len() != y.len() || width != other {
                return Err(changes_shape(&block.name));
            }
            for (x, y) in x.chunks_exact(width.max(1)).zip(y.chunks_exact(width.max(1))) {
                let dot = |a: &[f32], b: &[f32]| -> f64 {
                    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
                };
                let norm = (dot(x, x) * dot(y, y)).sqrt();
                sum.0 += if norm > 0.0 { dot(x, y) / norm } else { 1.0 };
                sum.1 += 1;
            }
        }
        Ok(())
    })?;
    Ok(sums.into_iter().map(|(sum, count)| 1.0 - sum / count.max(1) as f64).collect())
}

fn changes_shape(name: &str) -> Error {
    Error::Form(format!("block {name:?}: its output has another shape than its input"))
}

/// True when channels lie along the second axis.
fn is_image(graph: &Graph, input: ValueId, nodes: &[NodeId]) -> bool {
    let mut nodes = nodes.iter().filter_map(|id| graph.node(*id));
    let folds = |node: &Node| node.kind().ends_with("Conv") || node.kind() == "ConvInteger";
    graph.value(input).fact.rank().is_some_and(|r| r >= 3) && nodes.any(folds)
}

/// The vectors of a tensor, one after the other, and their width.
fn vectors(datum: &Datum, image: bool) -> Result<(Vec<f32>, usize)> {
    let tensor = datum.tensor()?;
    let (data, shape) = (tensor.values::<f32>()?, tensor.shape());
    if !image {
        return Ok((data.into_owned(), shape.last().copied().unwrap_or(1)));
    }
    let channels = shape.get(1).copied().unwrap_or(1);
    let places: usize = shape.get(2..).unwrap_or_default().iter().product();
    let images = data.chunks_exact((channels * places).max(1));
    let at = |image: &[f32]| -> Vec<f32> {
        (0..channels * places).map(|k| image[k % channels * places + k / channels]).collect()
    };
    Ok((images.flat_map(at).collect(), channels))
}

/// As [`remove`], on the calibration examples.
///
/// # Errors
/// As there.
pub fn apply(graph: &mut Graph, cuts: &[Cut], cx: &Context) -> Result<Vec<f64>> {
    let needed = cuts.iter().any(|c| c.bridge != Bridge::None);
    let examples = if needed || cx.judge.can_calibrate() { cx.examples()?.all()? } else { Vec::new() };
    remove(graph, cuts, &examples, cx.cpu)
}

/// Leaves out stretches of a graph. Those that follow one another are one, with the bridge of the first. Bridges are
/// fitted to what the changed graph gives them, so that they make what the original had there. Gives for each stretch
/// the squared error of its output, relative to its squares; 0 without examples.
///
/// # Errors
/// [`Error::Plan`] when a stretch is none of this graph; [`Error::Form`] when it changes the shape;
/// [`Error::Calibration`] when there are no examples to fit a bridge to.
pub fn remove(graph: &mut Graph, cuts: &[Cut], examples: &[Example], cpu: &Cpu) -> Result<Vec<f64>> {
    let spans = spans(graph, cuts)?;
    let original = graph.clone();
    let mut errors = Vec::new();
    for span in &spans {
        let bridge = fit(&original, graph, span, examples, cpu)?;
        errors.push(bridge.as_ref().map_or(0.0, |b| b.error));
        let ends_rectified = graph.producer(span.output).is_some_and(|(_, n)| n.kind() == "Relu");
        for &id in &span.nodes {
            graph.remove_node(id);
        }
        match bridge.and_then(|b| b.map) {
            Some(map) => build(graph, span, &map, ends_rectified)?,
            None if graph.outputs.contains(&span.output) => {
                finish(graph, "Identity", &[span.input], span.output)?;
            }
            None => graph.replace_value(span.output, span.input),
        }
        graph.sort()?;
        graph::tidy::remove_dead(graph);
    }
    graph.infer()?;
    graph.check()?;
    Ok(errors)
}

/// A stretch to be left out.
struct Span {
    input: ValueId,
    output: ValueId,
    nodes: Vec<NodeId>,
    bridge: Bridge,
    image: bool,
}

fn spans(graph: &Graph, cuts: &[Cut]) -> Result<Vec<Span>> {
    let find = |name: &str| {
        graph.find(name).ok_or_else(|| Error::Plan(format!("the model has no value {name:?} to cut at")))
    };
    let order = graph.node_ids();
    let mut ends: Vec<(Option<usize>, ValueId, ValueId, Bridge)> = Vec::new();
    for cut in cuts {
        let (input, output) = (find(&cut.input)?, find(&cut.output)?);
        let place = graph.producer(output).and_then(|(id, _)| order.iter().position(|n| *n == id));
        ends.push((place, input, output, cut.bridge));
    }
    ends.sort_by_key(|e| e.0);
    let mut spans: Vec<Span> = Vec::new();
    for (_, input, output, bridge) in ends {
        let (input, bridge) = match spans.pop_if(|last| last.output == input) {
            Some(last) => (last.input, last.bridge),
            None => (input, bridge),
        };
        let nodes = between(graph, input, output);
        let name = |id: ValueId| &graph.value(id).name;
        let fail =
            |what: &str| Err(Error::Plan(format!("from {:?} to {:?}: {what}", name(input), name(output))));
        let inside: HashSet<NodeId> = nodes.iter().copied().collect();
        if inside.is_empty() {
            return fail("nothing leads from one to the other");
        }
        if spans.iter().any(|s| s.nodes.iter().any(|n| inside.contains(n))) {
            return fail("stretches that are cut out overlap");
        }
        let readers = graph.readers();
        let made = nodes.iter().filter_map(|id| graph.node(*id)).flat_map(|n| n.outputs.iter().flatten());
        for &value in made.filter(|v| **v != output) {
            if graph.outputs.contains(&value) || readers[value.index()].iter().any(|n| !inside.contains(n)) {
                return fail(&format!("{:?} in between is read from outside", name(value)));
            }
        }
        let (a, b) = (&graph.value(input).fact, &graph.value(output).fact);
        if !keeps_shape(a, b) {
            return Err(Error::Form(format!(
                "{:?} is {a} and {:?} is {b}: only what keeps the shape can be left out",
                name(input),
                name(output)
            )));
        }
        let image = is_image(graph, input, &nodes);
        spans.push(Span { input, output, nodes, bridge, image });
    }
    Ok(spans)
}

/// Leaves out blocks one after the other, each time the one without which the model does best: `harm` says how bad a
/// model is. It ends after `count` blocks, or when each would make the harm greater than `most`. Gives what is left out,
/// with the harm of the model after each.
///
/// # Errors
/// When a block cannot be left out, or `harm` fails.
#[allow(clippy::too_many_arguments)]
pub fn greedy(
    graph: &Graph,
    blocks: &[Block],
    bridge: Bridge,
    count: usize,
    most: f64,
    examples: &[Example],
    cpu: &Cpu,
    harm: &mut dyn FnMut(&Graph) -> Result<f64>,
) -> Result<Vec<(Cut, f64)>> {
    // Without bridges one example shows that shapes are kept.
    let examples = if bridge == Bridge::None { examples.get(..1).unwrap_or_default() } else { examples };
    let mut chosen: Vec<(&Block, f64)> = Vec::new();
    while chosen.len() < count {
        let mut best: Option<(&Block, f64)> = None;
        for block in blocks {
            let taken = |b: &Block| b.nodes.iter().any(|n| block.nodes.contains(n));
            if chosen.iter().any(|(b, _)| taken(b)) {
                continue;
            }
            let all = chosen.iter().map(|(b, _)| *b).chain([block]);
            let cuts: Vec<Cut> = all.map(|b| Cut::of(graph, b, bridge)).collect();
            let mut less = graph.clone();
            remove(&mut less, &cuts, examples, cpu)?;
            let harm = harm(&less)?;
            if best.is_none_or(|(_, least)| harm < least) {
                best = Some((block, harm));
            }
        }
        match best {
            Some(best) if best.1 <= most => chosen.push(best),
            _ => break,
        }
    }
    Ok(chosen.into_iter().map(|(b, harm)| (Cut::of(graph, b, bridge), harm)).collect())
}

#[cfg(test)]
mod tests;
