//! Gradients: nodes added to the same graph, so they are tidied and run like the rest.

use std::collections::HashMap;

use crate::op::GradCx;
use crate::ops::binary::Binary;
use crate::{Graph, Result, ValueId};

/// Adds to the graph the nodes that compute the gradients of `of` with respect to each value of `wrt`; `seed` is
/// the gradient of `of` itself. `None` for a value on which `of` does not depend.
///
/// # Errors
/// When an operator on the way has no gradient; names the node.
pub fn gradients(
    graph: &mut Graph,
    of: ValueId,
    seed: ValueId,
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    // Only nodes between `wrt` and `of` matter.
    let mut depends = vec![false; graph.value_count()];
    for value in wrt {
        depends[value.index()] = true;
    }
    let mut nodes = Vec::new();
    for (id, node) in graph.nodes() {
        if node.reads().any(|v| depends[v.index()]) {
            for output in node.outputs.iter().flatten() {
                depends[output.index()] = true;
            }
            nodes.push(id);
        }
    }
    let mut grads: HashMap<ValueId, ValueId> = HashMap::from([(of, seed)]);
    for id in nodes.into_iter().rev() {
        let Some(node) = graph.node(id) else { continue };
        let (op, name) = (node.op.clone(), node.name.clone());
        let (inputs, outputs) = (node.inputs.clone(), node.outputs.clone());
        let known: Vec<Option<ValueId>> =
            outputs.iter().map(|o| o.and_then(|o| grads.get(&o).copied())).collect();
        if known.iter().all(Option::is_none) {
            continue;
        }
        let mut cx = GradCx { graph, inputs: &inputs, outputs: &outputs, grads: &known };
        let found = op.grad(&mut cx).map_err(|e| e.at(&name, op.name()))?;
        for (input, grad) in inputs.iter().zip(found) {
            let (Some(input), Some(grad)) = (*input, grad) else { continue };
            let sum = match grads.get(&input) {
                Some(&old) => graph.add_op("grad_sum", Binary::named("Add")?, &[old, grad])?,
                None => grad,
            };
            grads.insert(input, sum);
        }
    }
    Ok(wrt.iter().map(|v| grads.get(v).copied()).collect())
}
