//! Quantization: weights and activations on grids of few bits.

pub mod bias;
pub mod codebook;
pub mod coded;
pub mod descend;
pub mod embedding;
pub mod grid;
pub mod int8;
pub mod kmeans;
pub mod learned;
pub mod matmul_dynamic;
pub mod qdq;
pub mod rows;
pub mod weight_only;

use graph::op::Reader;
use graph::{Attrs, Graph, Node, NodeId, Tensor, ValueId};

use crate::Result;

/// Adds a node of ONNX's own operators with one output of this name.
fn add(
    graph: &mut Graph,
    kind: &str,
    version: i64,
    name: &str,
    inputs: &[ValueId],
    attrs: Attrs,
    before: Option<NodeId>,
) -> Result<ValueId> {
    Ok(add_many(graph, kind, version, name, inputs, attrs, before, 1)?[0])
}

/// As [`add`], with several outputs.
#[allow(clippy::too_many_arguments)]
fn add_many(
    graph: &mut Graph,
    kind: &str,
    version: i64,
    name: &str,
    inputs: &[ValueId],
    attrs: Attrs,
    before: Option<NodeId>,
    outputs: usize,
) -> Result<Vec<ValueId>> {
    let reader = Reader { attrs: &attrs, version, inputs: inputs.len(), outputs };
    let op = graph::ops::read("", kind, &reader)?;
    let node = Node::new(op, inputs.iter().copied().map(Some).collect());
    let (id, made) = graph.add_with_outputs(name, node, outputs, before)?;
    // Names of nodes are for people, and cost bytes in small models: those of the outputs say enough.
    if let Some(node) = graph.node_mut(id) {
        node.name.clear();
    }
    Ok(made)
}

/// Constants by their number, so that equal ones are kept once.
#[derive(Default)]
struct Constants(Vec<(Tensor, ValueId)>);

impl Constants {
    /// The constant of this number, added under a name like this when there is none yet.
    fn get(&mut self, graph: &mut Graph, like: &str, tensor: Tensor) -> ValueId {
        if let Some((_, id)) = self.0.iter().find(|(t, _)| *t == tensor) {
            return *id;
        }
        let id = graph.add_constant(like, tensor.clone());
        self.0.push((tensor, id));
        id
    }
}
