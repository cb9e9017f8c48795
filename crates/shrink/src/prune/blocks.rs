//! Blocks that can be left out: stretches of a model whose output has the shape of their input, such as the blocks of a
//! transformer, or of a stage of a residual network. What read the output reads the input, or what a small linear map
//! makes of it, fitted by least squares: `output - input ~ A input + b`. Men et al., "ShortGPT" (2024).

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use faer::Mat;
use graph::op::Reader;
use graph::{Attrs, DType, Datum, Fact, Graph, Node, NodeId, Tensor, ValueId};
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use crate::factor::project::{directions, narrow, times};
use crate::gram::Gram;
use crate::linear::Cholesky;
use crate::matrix::Matrix;
use crate::observe::{Observer, observe};
use crate::pass::Context;
use crate::walk::Example;
use crate::weights::{node_name, weights};
use crate::{Error, Result};

/// A stretch of a graph that can be left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Its place among the blocks, and its first node.
    pub name: String,
    /// The value that it begins with.
    pub input: ValueId,
    /// The value that it makes.
    pub output: ValueId,
    /// Its nodes, in order.
    pub nodes: Vec<NodeId>,
    /// Elements of its weights.
    pub elements: usize,
}

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

/// The repeated blocks of a model, in order; where nothing repeats, each stretch with weights that keeps the shape.
///
/// # Errors
/// When a weight holds numbers that are not finite.
pub fn blocks(graph: &Graph) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    for run in elements(graph)? {
        let mut at = 0;
        while at < run.len() {
            let repeats = |p: usize| {
                let same = |r: &usize| (0..p).all(|k| run[at + k].class == run[at + r * p + k].class);
                (1..(run.len() - at) / p).take_while(same).count() + 1
            };
            let periods = (1..=(run.len() - at) / 2).map(|p| (repeats(p), p)).filter(|(r, _)| *r > 1);
            let best = periods.max_by_key(|&(r, p)| (r * p, std::cmp::Reverse(p)));
            let (repeats, period) = best.unwrap_or((1, 1));
            for part in run[at..at + repeats * period].chunks(period) {
                found.push((part[0].input, part[part.len() - 1].output));
            }
            at += repeats * period;
        }
    }
    named(graph, found)
}

/// The stretches that blocks are made of: an attention, a feed-forward network.
///
/// # Errors
/// As [`blocks`].
pub fn parts(graph: &Graph) -> Result<Vec<Block>> {
    named(graph, elements(graph)?.iter().flatten().map(|e| (e.input, e.output)).collect())
}

fn named(graph: &Graph, mut ends: Vec<(ValueId, ValueId)>) -> Result<Vec<Block>> {
    let order: Vec<NodeId> = graph.node_ids();
    let place = |v: ValueId| graph.producer(v).map(|(id, _)| order.iter().position(|n| *n == id));
    ends.sort_by_key(|&(_, output)| place(output));
    let all = weights(graph)?;
    let block = |(at, (input, output)): (usize, (ValueId, ValueId))| {
        let nodes = between(graph, input, output);
        let first = nodes.first().and_then(|id| graph.node(*id)).map(|n| node_name(graph, n));
        let elements = all.iter().filter(|w| nodes.contains(&w.node)).map(|w| w.len).sum();
        Block { name: format!("{at}:{}", first.unwrap_or_default()), input, output, nodes, elements }
    };
    Ok(ends.into_iter().enumerate().map(block).collect())
}

/// A stretch with weights, and what follows it without any.
struct Element {
    input: ValueId,
    output: ValueId,
    /// Its operators and the shapes of their constants.
    class: String,
}

/// A step of the way from one value to the next of the same shape.
struct Step {
    input: ValueId,
    output: ValueId,
    class: String,
    weighs: bool,
}

/// Elements that follow one another, in runs.
fn elements(graph: &Graph) -> Result<Vec<Vec<Element>>> {
    let heavy: HashSet<NodeId> = weights(graph)?.into_iter().map(|w| w.node).collect();
    let way = trunk(graph);
    let mut shapes: Vec<Vec<ValueId>> = Vec::new();
    for value in way {
        let fact = &graph.value(value).fact;
        if !keeps_shape(fact, fact) {
            continue;
        }
        match shapes.iter_mut().find(|s| keeps_shape(&graph.value(s[0]).fact, fact)) {
            Some(alike) => alike.push(value),
            None => shapes.push(vec![value]),
        }
    }
    let mut runs = Vec::new();
    for values in shapes {
        let step = |ends: &[ValueId]| {
            let nodes = between(graph, ends[0], ends[1]);
            let weighs = nodes.iter().any(|id| heavy.contains(id));
            Step { input: ends[0], output: ends[1], class: class(graph, &nodes), weighs }
        };
        let steps: Vec<Step> = values.windows(2).map(step).collect();
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            match found.last_mut() {
                _ if step.weighs => found.push((at, at)),
                Some((_, last)) => *last = at,
                None => {}
            }
        }
        // What follows belongs to an element only if it follows all elements of its kind.
        let alike = |a: &(usize, usize), b: &(usize, usize)| steps[a.0].class == steps[b.0].class;
        let tail = |e: &(usize, usize)| e.1 - e.0;
        let trimmed: Vec<(usize, usize)> = found
            .iter()
            .map(|e| (e.0, e.0 + found.iter().filter(|o| alike(e, o)).map(tail).min().unwrap_or(0)))
            .collect();
        let mut run: Vec<Element> = Vec::new();
        for (from, to) in trimmed {
            let class = steps[from..=to].iter().map(|s| s.class.as_str()).collect();
            let element = Element { input: steps[from].input, output: steps[to].output, class };
            if run.last().is_some_and(|last| last.output != element.input) {
                runs.push(std::mem::take(&mut run));
            }
            run.push(element);
        }
        runs.extend((!run.is_empty()).then_some(run));
    }
    Ok(runs)
}

fn class(graph: &Graph, nodes: &[NodeId]) -> String {
    let mut out = String::new();
    for node in nodes.iter().filter_map(|id| graph.node(*id)) {
        out.push_str(node.kind());
        for tensor in node.reads().filter_map(|v| graph.constant(v)).filter(|t| t.dtype() == DType::F32) {
            out.push_str(&format!("{:?}", tensor.shape()));
        }
        out.push(';');
    }
    out
}

/// True when two values are f32 tensors of one shape, as far as it is known, and of known width.
fn keeps_shape(a: &Fact, b: &Fact) -> bool {
    let (Some(x), Some(y)) = (a.shape(), b.shape()) else { return false };
    a.dtype() == Some(DType::F32)
        && b.dtype() == Some(DType::F32)
        && x.len() >= 2
        && x == y
        && (x.last().and_then(|d| d.size()).is_some() || x.get(1).and_then(|d| d.size()).is_some())
}

/// The values that each way from an input to an output passes, for the input with most of them: the chain of its
/// immediate post-dominators.
fn trunk(graph: &Graph) -> Vec<ValueId> {
    let (values, exit) = (graph.value_count(), graph.value_count() + graph.node_slots());
    let mut next: Vec<Option<usize>> = vec![None; exit + 1];
    let mut depth = vec![0usize; exit + 1];
    let meet = |next: &[Option<usize>], depth: &[usize], a: usize, b: usize| {
        let (mut a, mut b) = (a, b);
        while a != b {
            if depth[a] < depth[b] {
                std::mem::swap(&mut a, &mut b);
            }
            a = next[a].unwrap_or(exit);
        }
        a
    };
    let readers = graph.readers();
    let mut settle = |at: usize, after: &mut dyn Iterator<Item = usize>| {
        let alive = after.filter(|&s| s == exit || next[s].is_some()).collect::<Vec<_>>();
        let joined = alive.into_iter().reduce(|a, b| meet(&next, &depth, a, b));
        if let Some(joined) = joined {
            next[at] = Some(joined);
            depth[at] = depth[joined] + 1;
        }
    };
    let value = |id: ValueId, settle: &mut dyn FnMut(usize, &mut dyn Iterator<Item = usize>)| {
        let out = graph.outputs.contains(&id).then_some(exit);
        settle(
            id.index(),
            &mut out.into_iter().chain(readers[id.index()].iter().map(|n| values + n.index())),
        );
    };
    for (id, node) in graph.nodes().rev() {
        for &output in node.outputs.iter().flatten() {
            value(output, &mut settle);
        }
        settle(values + id.index(), &mut node.outputs.iter().flatten().map(|v| v.index()));
    }
    for &input in &graph.inputs {
        value(input, &mut settle);
    }
    let ids: Vec<ValueId> = graph.values().map(|(id, _)| id).collect();
    let way = |input: &ValueId| -> Vec<ValueId> {
        let steps = std::iter::successors(Some(input.index()), |at| next[*at].filter(|n| *n != exit));
        steps.filter_map(|at| ids.get(at).copied()).collect()
    };
    graph.inputs.iter().map(way).reduce(|a, b| if b.len() > a.len() { b } else { a }).unwrap_or_default()
}

/// The nodes on the ways from one value to another, in order.
fn between(graph: &Graph, input: ValueId, output: ValueId) -> Vec<NodeId> {
    let mut after = vec![false; graph.value_count()];
    after[input.index()] = true;
    let mut nodes = Vec::new();
    for (id, node) in graph.nodes() {
        if node.reads().any(|v| after[v.index()]) {
            node.outputs.iter().flatten().for_each(|v| after[v.index()] = true);
            nodes.push(id);
        }
    }
    let mut before = vec![false; graph.value_count()];
    before[output.index()] = true;
    let leads = |id: &NodeId, before: &mut Vec<bool>| {
        let Some(node) = graph.node(*id) else { return false };
        let leads = node.outputs.iter().flatten().any(|v| before[v.index()]);
        if leads {
            node.reads().filter(|v| *v != input).for_each(|v| before[v.index()] = true);
        }
        leads
    };
    let mut kept: Vec<NodeId> = nodes.into_iter().rev().filter(|id| leads(id, &mut before)).collect();
    kept.reverse();
    kept
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
    graph.value(input).fact.rank().is_some_and(|r| r >= 3) && nodes.any(|n| n.kind().ends_with("Conv"))
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

/// `y - x ~ A x + b`.
struct Map {
    /// From the input on: one matrix, or two. Each `[outputs, inputs]`.
    factors: Vec<Matrix>,
    bias: Vec<f32>,
}

struct Fit {
    map: Option<Map>,
    error: f64,
}

/// Shares of the mean of the diagonal that are tried as ridge.
const RIDGES: [f64; 5] = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5];

/// The bridge for a stretch, fitted on half of the examples with each ridge, and on all with the one that does best on
/// the other half. `None` without examples.
fn fit(original: &Graph, graph: &Graph, span: &Span, examples: &[Example], cpu: &Cpu) -> Result<Option<Fit>> {
    let name = &original.value(span.output).name;
    if examples.is_empty() {
        let known =
            original.value(span.input).fact.shape().is_some_and(|s| !s.contains(&graph::Dim::Unknown));
        return match (span.bridge, known) {
            (Bridge::None, true) => Ok(None),
            (Bridge::None, false) => {
                let what = "it is not known whether what is left out keeps the shape; give data with --data";
                Err(Error::Calibration(format!("{name:?}: {what}")))
            }
            _ => Err(Error::Calibration("a bridge is fitted to examples; give data with --data".into())),
        };
    }
    let (before, after) =
        (Observer::new(graph, &[span.input], cpu)?, Observer::new(original, &[span.output], cpu)?);
    let mut halves: Option<[Gram; 2]> = None;
    let mut width = 0;
    for (at, example) in examples.iter().enumerate() {
        let (x, y) = (before.see(example)?, after.see(example)?);
        let (Some(x), Some(y)) = (x.first(), y.first()) else { continue };
        if x.tensor()?.shape() != y.tensor()?.shape() {
            return Err(changes_shape(name));
        }
        let ((x, d), (y, _)) = (vectors(x, span.image)?, vectors(y, span.image)?);
        width = d;
        let halves = halves.get_or_insert_with(|| [Gram::new(2 * d + 1), Gram::new(2 * d + 1)]);
        let mut rows = Vec::with_capacity(x.len() / d.max(1) * (2 * d + 1));
        for (x, y) in x.chunks_exact(d.max(1)).zip(y.chunks_exact(d.max(1))) {
            rows.extend_from_slice(x);
            rows.extend(x.iter().zip(y).map(|(x, y)| y - x));
            rows.push(1.0);
        }
        halves[at % 2].add(cpu, &rows);
    }
    let Some(halves) = halves else { return Ok(None) };
    if !halves.iter().all(Gram::is_finite) {
        let what = format!("{name:?} holds numbers that are not finite; check the data and the model");
        return Err(Error::Calibration(what));
    }
    let [even, odd] = [&halves[0], &halves[1]].map(|g| Moments::new(width, g));
    let all = even.plus(&odd);
    if span.bridge == Bridge::None {
        return Ok(Some(Fit { map: None, error: all.error(None) }));
    }
    let rank = match span.bridge {
        Bridge::Rank(rank) if 2 * rank < width => Some(rank),
        _ => None,
    };
    let mut best = (f64::INFINITY, RIDGES[0]);
    for ridge in RIDGES {
        let error = odd.error(Some(&even.solve(ridge, rank)?));
        if error < best.0 {
            best = (error, ridge);
        }
    }
    let map = all.solve(best.1, rank)?;
    Ok(Some(Fit { error: all.error(Some(&map)), map: Some(map) }))
}

/// Sums of products of inputs x, of what is to be added d, and of 1, in this order.
struct Moments {
    width: usize,
    sums: Mat<f64>,
}

impl Moments {
    fn new(width: usize, gram: &Gram) -> Moments {
        let count = gram.count() as f64;
        let n = gram.size();
        Moments { width, sums: Mat::from_fn(n, n, |i, j| gram.mean_product(i, j) * count) }
    }

    fn plus(&self, other: &Moments) -> Moments {
        Moments { width: self.width, sums: &self.sums + &other.sums }
    }

    /// Covariance of two of the numbers.
    fn covariance(&self, i: usize, j: usize) -> f64 {
        let one = 2 * self.width;
        let count = self.sums[(one, one)].max(1.0);
        (self.sums[(i, j)] - self.sums[(i, one)] * self.sums[(one, j)] / count) / count
    }

    /// The map with the least squared error and so much of a ridge.
    fn solve(&self, ridge: f64, rank: Option<usize>) -> Result<Map> {
        let d = self.width;
        let inputs = Mat::from_fn(d, d, |i, j| self.covariance(i, j));
        let mean = (0..d).map(|i| inputs[(i, i)]).sum::<f64>() / d.max(1) as f64;
        let own = (ridge * mean).max(f64::MIN_POSITIVE);
        let damped: Vec<f64> =
            (0..d * d).map(|k| inputs[(k / d, k % d)] + if k / d == k % d { own } else { 0.0 }).collect();
        let factor = Cholesky::new(&damped, d).ok_or_else(|| {
            Error::Calibration("the statistics for a bridge are singular; check the data".into())
        })?;
        let mut rows: Vec<f64> = (0..d * d).map(|k| self.covariance(d + k / d, k % d)).collect();
        factor.solve(&mut rows);
        let mut map = Mat::from_fn(d, d, |i, j| rows[i * d + j]);
        let mut factors = vec![narrow(map.as_ref())];
        if let Some(rank) = rank {
            let image = times(times(map.as_ref(), inputs.as_ref()).as_ref(), map.transpose());
            let (_, vectors) = directions(image.as_ref())?;
            let basis = vectors.subrows(0, rank.min(d));
            let inner = times(basis, map.as_ref());
            map = times(basis.transpose(), inner.as_ref());
            factors = vec![narrow(inner.as_ref()), narrow(basis.transpose())];
        }
        let count = self.sums[(2 * d, 2 * d)].max(1.0);
        let at = |i: usize| self.sums[(i, 2 * d)] / count;
        let bias = |i: usize| at(d + i) - (0..d).map(|j| map[(i, j)] * at(j)).sum::<f64>();
        Ok(Map { factors, bias: (0..d).map(|i| bias(i) as f32).collect() })
    }

    /// The squared error of the outputs x + d when this stands for d, relative to their squares.
    fn error(&self, map: Option<&Map>) -> f64 {
        let d = self.width;
        let energy = |rows: &Mat<f64>| -> f64 {
            let image = times(rows.as_ref(), self.sums.as_ref());
            (0..d).map(|i| (0..2 * d + 1).map(|j| image[(i, j)] * rows[(i, j)]).sum::<f64>()).sum()
        };
        let one = |i: usize, j: usize| f64::from(u8::from(i == j));
        let whole = map.map(|m| match m.factors.as_slice() {
            [inner, outer] => crate::factor::project::product(outer, inner),
            _ => m.factors[0].clone(),
        });
        let apart = Mat::from_fn(d, 2 * d + 1, |i, j| match (&whole, map) {
            (Some(whole), _) if j < d => -f64::from(whole.data[i * d + j]),
            (_, Some(map)) if j == 2 * d => -f64::from(map.bias[i]),
            _ if j >= d && j < 2 * d => one(i, j - d),
            _ => 0.0,
        });
        let output = Mat::from_fn(d, 2 * d + 1, |i, j| if j < 2 * d { one(i, j % d) } else { 0.0 });
        let all = energy(&output);
        if all > 0.0 { (energy(&apart) / all).max(0.0) } else { 0.0 }
    }
}

fn add(graph: &mut Graph, kind: &str, inputs: &[ValueId]) -> Result<(NodeId, ValueId)> {
    let attrs = Attrs::new();
    let reader = Reader { attrs: &attrs, version: 13, inputs: inputs.len(), outputs: 1 };
    let node = Node::new(graph::ops::read("", kind, &reader)?, inputs.iter().copied().map(Some).collect());
    let (id, made) = graph.add_with_outputs("bridge", node, 1, None)?;
    Ok((id, made[0]))
}

fn finish(graph: &mut Graph, kind: &str, inputs: &[ValueId], output: ValueId) -> Result<()> {
    let (id, _) = add(graph, kind, inputs)?;
    Ok(graph.set_output(id, 0, Some(output))?)
}

/// Adds the nodes of a bridge, the last of which makes the output.
fn build(graph: &mut Graph, span: &Span, map: &Map, rectified: bool) -> Result<()> {
    let rank = graph.value(span.input).fact.rank().unwrap_or(2);
    let mut x = span.input;
    let bias = graph.add_constant("bridge.b", Tensor::vector(&map.bias));
    for (at, factor) in map.factors.iter().enumerate() {
        let last = at + 1 == map.factors.len();
        if span.image {
            let shape: Vec<usize> =
                [factor.rows, factor.cols].into_iter().chain(std::iter::repeat_n(1, rank - 2)).collect();
            let weight = graph.add_constant("bridge.w", Tensor::new(&shape, &factor.data)?);
            let inputs = [x, weight, bias];
            x = add(graph, "Conv", if last { &inputs } else { &inputs[..2] })?.1;
        } else {
            let turned = factor.transposed();
            let weight = Tensor::new(&[turned.rows, turned.cols], &turned.data)?;
            let weight = graph.add_constant("bridge.w", weight);
            x = add(graph, "MatMul", &[x, weight])?.1;
        }
    }
    if !span.image {
        x = add(graph, "Add", &[x, bias])?.1;
    }
    if rectified {
        x = add(graph, "Add", &[span.input, x])?.1;
        return finish(graph, "Relu", &[x], span.output);
    }
    finish(graph, "Add", &[span.input, x], span.output)
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
