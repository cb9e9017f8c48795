//! Images with their channels last. The kernels of convolutions want `[N, H, W, C]`: every convolution with a constant
//! weight is turned to that order, and with it as many of the operators around as make the transposes between both
//! orders cheapest. Which these are is a minimum cut: one side turned, the other not, and what is cut between them is
//! transposed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kernel::Cpu;

use super::cut::{ENDLESS, Network, SINK, SOURCE};
use super::fold::constant;
use super::pattern::replace;
use super::transposes::order;
use crate::op::Facts;
use crate::ops::conv::Conv;
use crate::ops::gather::Gather;
use crate::ops::quantized::conv::QConv;
use crate::ops::shape::{Shape, Size};
use crate::ops::transpose::{Transpose, transpose};
use crate::turn::{CHANNELS_LAST, Read, TurnCx, Turned};
use crate::{Dim, Fact, Graph, Node, NodeId, Result, Tensor, Value, ValueId};

/// The order that undoes [`CHANNELS_LAST`].
const CHANNELS_FIRST: [usize; 4] = [0, 3, 1, 2];

/// Turns convolutions, and what pays off beside them, to channels that come last; says how many nodes.
///
/// # Errors
/// When the graph breaks a rule.
pub(super) fn channels_last(graph: &mut Graph, cpu: &Cpu) -> Result<usize> {
    graph.infer()?;
    let mut plans = plans(graph);
    if !plans.values().any(|p| p.is_conv) {
        return Ok(0);
    }
    let side = chosen(graph, &plans);
    plans.retain(|id, _| side.contains(id));
    let mut turning = Turning { graph, cpu, last: HashMap::new(), unmade: Vec::new() };
    for id in turning.graph.node_ids() {
        match plans.remove(&id) {
            Some(plan) => turning.turn(id, plan.turned)?,
            None => turning.ask_shape(id)?,
        }
    }
    turning.finish()?;
    Ok(side.len())
}

/// How a node is turned.
struct Plan {
    turned: Turned,
    is_conv: bool,
}

/// The nodes that can be turned.
fn plans(graph: &Graph) -> HashMap<NodeId, Plan> {
    graph.nodes().filter_map(|(id, node)| Some((id, plan(graph, node)?))).collect()
}

fn plan(graph: &Graph, node: &Node) -> Option<Plan> {
    let is_image = |v: &Option<ValueId>| v.is_none_or(|v| graph.value(v).fact.rank() == Some(4));
    if !node.captures.is_empty() {
        return None;
    }
    let facts: Vec<Option<&Fact>> = node.inputs.iter().map(|v| v.map(|v| &graph.value(v).fact)).collect();
    let constants = node.inputs.iter().map(|v| v.and_then(|v| constant(graph, v)).cloned()).collect();
    let facts = Facts::new(&facts, node.outputs.len());
    let turned = node.op.turn(&TurnCx { order: &CHANNELS_LAST, facts, constants })?;
    if !turned.same_outputs && !node.outputs.iter().all(is_image) {
        return None;
    }
    let any = node.op.as_any();
    Some(Plan { turned, is_conv: any.is::<Conv>() || any.is::<QConv>() })
}

/// The nodes to be turned.
fn chosen(graph: &Graph, plans: &HashMap<NodeId, Plan>) -> HashSet<NodeId> {
    let mut network = Network::new();
    let mut places: HashMap<NodeId, usize> = HashMap::new();
    // Who reads each value: a place that turns or not, or the sink, which never does.
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.value_count()];
    // Transposes to channels last: free behind what is turned.
    let mut gains: Vec<u64> = vec![0; graph.value_count()];
    for (id, node) in graph.nodes() {
        let reorder = order(graph, node);
        let mut place = None;
        if let Some(plan) = plans.get(&id) {
            let at = network.place();
            if plan.is_conv {
                network.edge(SOURCE, at, ENDLESS);
            }
            place = Some(at);
        } else if let Some((x, _)) = reorder.as_ref().filter(|(_, axes)| axes[..] == CHANNELS_FIRST) {
            // Turned, such a transpose does nothing.
            let at = network.place();
            network.edge(SOURCE, at, moved(&graph.value(*x).fact, 3));
            place = Some(at);
        }
        places.extend(place.map(|at| (id, at)));
        if let Some((x, axes)) = reorder {
            if axes[..] == CHANNELS_LAST {
                gains[x.index()] += moved(&graph.value(x).fact, 1);
            }
            continue;
        }
        if node.op.as_any().is::<Shape>() || node.op.as_any().is::<Size>() {
            continue;
        }
        for (at, value) in node.inputs.iter().enumerate() {
            let Some(value) = value else { continue };
            let turns = plans.get(&id).and_then(|p| p.turned.reads.get(at));
            match (turns, place) {
                (Some(Read::Turned), Some(place)) => readers[value.index()].push(place),
                (Some(Read::New(_) | Read::Absent), _) => {}
                _ => readers[value.index()].push(SINK),
            }
        }
        node.captures.iter().for_each(|value| readers[value.index()].push(SINK));
    }
    graph.outputs.iter().for_each(|value| readers[value.index()].push(SINK));
    for (id, value) in graph.values() {
        if value.fact.rank() != Some(4) || constant(graph, id).is_some() {
            continue;
        }
        let turns = |p: &NodeId| !plans.get(p).is_some_and(|plan| plan.turned.same_outputs);
        let maker = value.producer().filter(turns).and_then(|p| places.get(&p)).copied().unwrap_or(SINK);
        let weight = moved(&value.fact, 1);
        // Made turned and read as it was: one transpose serves all such readers; and the other way round.
        let (back, forth) = (network.place(), network.place());
        network.edge(maker, back, weight);
        network.edge(forth, maker, weight);
        for &reader in &readers[id.index()] {
            network.edge(back, reader, ENDLESS);
            network.edge(reader, forth, ENDLESS);
        }
        network.edge(SOURCE, maker, gains[id.index()]);
    }
    let side = network.cut();
    places.into_iter().filter(|(id, at)| side[*at] && plans.contains_key(id)).map(|(id, _)| id).collect()
}

/// What it costs to move a value's channels, which are at this axis now: its bytes, more or less, when sizes are not
/// known.
fn moved(fact: &Fact, channels: usize) -> u64 {
    /// A size that is not known; there is one image when nothing else is said.
    const USUAL: [usize; 4] = [1, 32, 32, 32];
    let Some([n, rest @ ..]) = fact.shape().filter(|s| s.len() == 4) else { return 1 };
    let size = |(dim, usual): (&Dim, usize)| dim.size().unwrap_or(usual) as u64;
    let sizes: Vec<u64> = rest.iter().zip(USUAL.into_iter().skip(1)).map(size).collect();
    let depth = sizes[channels - 1];
    let all = sizes.iter().fold(1u64, |all, &n| all.saturating_mul(n));
    if depth <= 1 || all == depth {
        return 1;
    }
    let bytes = fact.dtype().map_or(4, |d| (d.bits() / 8).max(1)) as u64;
    all.saturating_mul(bytes).saturating_mul(size((n, USUAL[0]))).clamp(1, 1 << 40) + 1
}

/// A graph of which nodes are being turned.
struct Turning<'a> {
    graph: &'a mut Graph,
    cpu: &'a Cpu,
    /// Values with the channels last, by those with the channels first.
    last: HashMap<ValueId, ValueId>,
    /// Values that nothing makes any more but a transpose that is still to be added.
    unmade: Vec<ValueId>,
}

impl Turning<'_> {
    /// The value with the channels last.
    fn last(&mut self, value: ValueId, before: NodeId) -> Result<ValueId> {
        if let Some(&found) = self.last.get(&value) {
            return Ok(found);
        }
        let name = format!("{}.last", self.graph.value(value).name);
        let made = match constant(self.graph, value) {
            Some(image) => {
                let rank = image.rank();
                let shape = [&vec![1; 4usize.saturating_sub(rank)], image.shape()].concat();
                let image = image.clone().aligned().reshaped(&shape)?;
                let turned = transpose(self.cpu, image, &CHANNELS_LAST)?;
                self.graph.add_constant(&name, turned)
            }
            None => {
                let op = Transpose::new(&CHANNELS_LAST.map(|a| a as i64));
                let node = Node::new(Arc::new(op), vec![Some(value)]);
                self.graph.add_with_outputs(&name, node, 1, Some(before))?.1[0]
            }
        };
        self.last.insert(value, made);
        Ok(made)
    }

    /// Turns a node.
    fn turn(&mut self, id: NodeId, turned: Turned) -> Result<()> {
        let Some(old) = self.graph.node(id).cloned() else { return Ok(()) };
        let mut inputs = Vec::new();
        for (at, read) in turned.reads.into_iter().enumerate() {
            inputs.push(match (read, old.input(at)) {
                (Read::Turned, Some(value)) => Some(self.last(value, id)?),
                (Read::Same, value) => value,
                (Read::New(tensor), _) => Some(self.graph.add_constant(&old.name, tensor)),
                (Read::Turned, None) | (Read::Absent, _) => None,
            });
        }
        if turned.same_outputs {
            let op = turned.op.unwrap_or(old.op.clone());
            self.graph.remove_node(id);
            return self.graph.add_node(Node { op, inputs, ..old }).map(|_| ());
        }
        let mut outputs = Vec::new();
        for value in old.outputs.iter().copied() {
            let Some(value) = value else {
                outputs.push(None);
                continue;
            };
            let Value { name, fact, .. } = self.graph.value(value);
            let turned = fact.shape().filter(|s| s.len() == 4);
            let turned = turned.map(|s| CHANNELS_LAST.iter().map(|&a| s[a].clone()).collect::<Vec<Dim>>());
            let fact = Fact::maybe(fact.dtype(), turned);
            let name = self.graph.fresh_name(&format!("{name}.last"));
            let made = self.graph.add_value(Value::named(&name))?;
            self.graph.value_mut(made).fact = fact;
            self.last.insert(value, made);
            self.unmade.push(value);
            outputs.push(Some(made));
        }
        let op = turned.op.unwrap_or(old.op.clone());
        self.graph.add_node_before(id, Node { op, inputs, outputs, ..old })?;
        self.graph.remove_node(id);
        Ok(())
    }

    /// Makes a node that asks for the shape of a value ask that with the channels last.
    fn ask_shape(&mut self, id: NodeId) -> Result<()> {
        let Some(node) = self.graph.node(id) else { return Ok(()) };
        let Some(x) = node.input(0).filter(|x| self.unmade.contains(x)) else { return Ok(()) };
        let Some(&last) = self.last.get(&x) else { return Ok(()) };
        if node.op.as_any().is::<Size>() {
            self.graph.set_input(id, 0, Some(last));
        } else if let Some(shape) = node.op.as_any().downcast_ref::<Shape>() {
            let places: Vec<i64> = CHANNELS_FIRST[shape.range(4)].iter().map(|&a| a as i64).collect();
            let whole = Node::new(Arc::new(Shape::new()), vec![Some(last)]);
            let (_, sizes) = self.graph.add_with_outputs("shape", whole, 1, Some(id))?;
            let places = self.graph.add_constant("axes", Tensor::vector(&places));
            let picked = Node::new(Arc::new(Gather::new(0)), vec![Some(sizes[0]), Some(places)]);
            replace(self.graph, id, picked)?;
        }
        Ok(())
    }

    /// Adds the transposes back to channels that come first, for those who still read them so.
    fn finish(self) -> Result<()> {
        let readers = self.graph.readers();
        for value in self.unmade {
            if readers[value.index()].is_empty() && !self.graph.outputs.contains(&value) {
                continue;
            }
            let op = Transpose::new(&CHANNELS_FIRST.map(|a| a as i64));
            let mut node = Node::new(Arc::new(op), vec![self.last.get(&value).copied()]);
            node.name = format!("{}.first", self.graph.value(value).name);
            node.outputs = vec![Some(value)];
            self.graph.add_node(node)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
