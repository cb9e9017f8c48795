//! The weights of a model: which nodes use them and how.

use graph::op::{WeightKind, WeightUse};
use graph::{DType, Graph, Node, NodeId, Tensor, ValueId};

use crate::{Error, Result};

/// A weight at its node.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The node that uses it.
    pub node: NodeId,
    /// The node's name, or that of its output when it has none.
    pub name: String,
    /// The weight.
    pub value: ValueId,
    /// How it is used.
    pub used: WeightUse,
    /// Its number of elements.
    pub len: usize,
}

/// Weights with fewer elements are not worth a scale of their own.
pub const MIN_LEN: usize = 64;

/// The f32 weights of a graph that shrinkers may touch, in the order of the nodes.
///
/// # Errors
/// When a weight holds numbers that are not finite: it is named.
pub fn weights(graph: &Graph) -> Result<Vec<Weight>> {
    let mut found = Vec::new();
    for (id, node) in graph.nodes() {
        let Some(used) = node.op.weight() else { continue };
        let Some(value) = node.input(used.input) else { continue };
        let Some(tensor) = graph.constant(value) else { continue };
        if tensor.dtype() != DType::F32
            || tensor.len() < MIN_LEN
            || tensor.rank() < 2
            || graph.inputs.contains(&value)
        {
            continue;
        }
        let bad = tensor.values::<f32>()?.iter().filter(|v| !v.is_finite()).count();
        if bad > 0 {
            let what = format!("{bad} of {} numbers are not finite; the model is damaged", tensor.len());
            return Err(Error::Weight { weight: graph.value(value).name.clone(), what });
        }
        found.push(Weight { node: id, name: node_name(graph, node), value, used, len: tensor.len() });
    }
    Ok(found)
}

/// A node's name, or that of its first output.
pub fn node_name(graph: &Graph, node: &Node) -> String {
    match (node.name.as_str(), node.output(0)) {
        ("", Some(output)) => graph.value(output).name.clone(),
        (name, _) => name.into(),
    }
}

/// A weight seen as channels, each with a scale of its own.
pub struct Channels {
    /// Number of channels.
    pub count: usize,
    /// The axis of the tensor along which they lie.
    pub axis: usize,
    inner: usize,
}

impl Channels {
    /// The channels of a weight along an axis, counted from the end when negative.
    ///
    /// # Errors
    /// When there is no such axis.
    pub fn new(tensor: &Tensor, axis: i64) -> Result<Channels> {
        let axis = graph::infer::axis(axis, tensor.rank())?;
        let inner = tensor.shape()[axis + 1..].iter().product::<usize>().max(1);
        Ok(Channels { count: tensor.shape()[axis], axis, inner })
    }

    /// The channel of an element.
    pub fn of(&self, element: usize) -> usize {
        element / self.inner % self.count
    }

    /// Where the elements of a channel are, of a tensor of so many.
    pub fn indices(&self, len: usize, channel: usize) -> impl Iterator<Item = usize> {
        let (inner, step) = (self.inner, (self.inner * self.count).max(1));
        let blocks = (0..len).step_by(step);
        blocks.flat_map(move |block| block + channel * inner..block + (channel + 1) * inner)
    }

    /// The elements of a channel.
    pub fn elements<'a>(&'a self, data: &'a [f32], channel: usize) -> impl Iterator<Item = &'a f32> + Clone {
        let step = self.inner * self.count;
        let blocks = data.chunks(step.max(1));
        let (from, to) = (channel * self.inner, (channel + 1) * self.inner);
        blocks.flat_map(move |block| block[from..to].iter())
    }
}

/// True when the weight multiplies activations that can be quantized too.
pub fn is_product(kind: WeightKind) -> bool {
    matches!(kind, WeightKind::MatMul | WeightKind::Conv)
}
