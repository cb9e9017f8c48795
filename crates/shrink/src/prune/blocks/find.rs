//! Where a model's blocks begin and end.

use std::collections::HashSet;

use graph::{DType, Fact, Graph, Node, NodeId, Tensor, ValueId};

use crate::weights::{MIN_LEN, node_name};

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

/// The repeated blocks of a model, in order; where nothing repeats, each stretch with weights that keeps the shape.
pub fn blocks(graph: &Graph) -> Vec<Block> {
    let mut found = Vec::new();
    for run in elements(graph) {
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
pub fn parts(graph: &Graph) -> Vec<Block> {
    named(graph, elements(graph).iter().flatten().map(|e| (e.input, e.output)).collect())
}

fn named(graph: &Graph, mut ends: Vec<(ValueId, ValueId)>) -> Vec<Block> {
    let order: Vec<NodeId> = graph.node_ids();
    let place = |v: ValueId| graph.producer(v).map(|(id, _)| order.iter().position(|n| *n == id));
    ends.sort_by_key(|&(_, output)| place(output));
    let block = |(at, (input, output)): (usize, (ValueId, ValueId))| {
        let nodes = between(graph, input, output);
        let first = nodes.first().and_then(|id| graph.node(*id)).map(|n| node_name(graph, n));
        let all = nodes.iter().filter_map(|id| weight(graph, graph.node(*id)?));
        let elements = all.map(Tensor::len).sum();
        Block { name: format!("{at}:{}", first.unwrap_or_default()), input, output, nodes, elements }
    };
    ends.into_iter().enumerate().map(block).collect()
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

/// The weight of a node, in f32 or in codes.
fn weight<'a>(graph: &'a Graph, node: &Node) -> Option<&'a Tensor> {
    let (input, coded) = match node.kind() {
        "MatMulInteger" | "ConvInteger" => (1, true),
        "QLinearMatMul" | "QLinearConv" => (3, true),
        _ => (node.op.weight()?.input, false),
    };
    let value = node.input(input)?;
    let (value, coded) = match graph.producer(value) {
        Some((_, node)) if node.kind() == "DequantizeLinear" => (node.input(0)?, true),
        _ => (value, coded),
    };
    let weight = graph.constant(value).filter(|_| !graph.inputs.contains(&value))?;
    let fits = if coded { is_coded(weight) } else { weight.dtype() == DType::F32 };
    (fits && weight.rank() >= 2 && weight.len() >= MIN_LEN).then_some(weight)
}

/// Does a tensor hold codes of at most 8 bits?
fn is_coded(tensor: &Tensor) -> bool {
    (1..=8).contains(&tensor.dtype().bits()) && tensor.dtype() != DType::Bool
}

/// Elements that follow one another, in runs.
fn elements(graph: &Graph) -> Vec<Vec<Element>> {
    let heavy: HashSet<NodeId> =
        graph.nodes().filter(|(_, node)| weight(graph, node).is_some()).map(|(id, _)| id).collect();
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
    runs
}

fn class(graph: &Graph, nodes: &[NodeId]) -> String {
    let mut out = String::new();
    for node in nodes.iter().filter_map(|id| graph.node(*id)) {
        out.push_str(node.kind());
        let holds = |t: &&Tensor| t.dtype() == DType::F32 || (t.rank() >= 2 && is_coded(t));
        for tensor in node.reads().filter_map(|v| graph.constant(v)).filter(holds) {
            out.push_str(&format!("{:?}", tensor.shape()));
        }
        out.push(';');
    }
    out
}

/// True when two values are f32 tensors of one shape, as far as it is known, and of known width.
pub(super) fn keeps_shape(a: &Fact, b: &Fact) -> bool {
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
pub(super) fn between(graph: &Graph, input: ValueId, output: ValueId) -> Vec<NodeId> {
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
