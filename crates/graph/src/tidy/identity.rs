//! Takes out nodes that give back their input.

use kernel::Cpu;

use crate::ops::cast::Cast;
use crate::{Graph, Node, Result};

fn is_identity(graph: &Graph, node: &Node) -> bool {
    match node.kind() {
        "Identity" => true,
        // In training mode it draws numbers; without the third input it does not train.
        "Dropout" => node.input(2).is_none() && node.output(1).is_none(),
        "Cast" => {
            let from = node.input(0).and_then(|v| graph.value(v).fact.dtype());
            let cast = node.op.as_any().downcast_ref::<Cast>();
            cast.is_some_and(|c| from == Some(c.to))
        }
        _ => false,
    }
}

/// Takes out nodes that give back their input, unless they join an input of the graph to one of its outputs.
pub(super) fn remove(graph: &mut Graph, _: &Cpu) -> Result<usize> {
    let mut count = 0;
    for id in graph.node_ids() {
        let Some(node) = graph.node(id) else { continue };
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { continue };
        if !node.op.domain().is_empty() || !is_identity(graph, node) || graph.outputs.contains(&y) {
            continue;
        }
        graph.replace_value(y, x);
        graph.remove_node(id);
        count += 1;
    }
    Ok(count)
}
