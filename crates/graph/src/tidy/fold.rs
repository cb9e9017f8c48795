//! Computes ahead what is constant.

use kernel::Cpu;

use crate::op::{Facts, Inputs, RunCx};
use crate::{DType, Datum, Dim, Error, Graph, Node, Result, Tensor, ValueId};

/// A constant may grow this much when it is computed ahead, in bytes: above, a `Tile` or `Expand` of a small
/// constant is better left to the run.
const MAX_GROWTH: usize = 1 << 20;

/// Computes nodes whose inputs are all constant, and integer vectors that inference knows. Weights stay quantized:
/// see [`fold_all`].
pub(super) fn fold(graph: &mut Graph, cpu: &Cpu) -> Result<usize> {
    fold_where(graph, cpu, |node| node.kind() != "DequantizeLinear")
}

/// As [`fold`], weights that are still quantized included: no integer kernel wants them.
pub(super) fn fold_all(graph: &mut Graph, cpu: &Cpu) -> Result<usize> {
    fold_where(graph, cpu, |_| true)
}

fn fold_where(graph: &mut Graph, cpu: &Cpu, wanted: impl Fn(&Node) -> bool) -> Result<usize> {
    let mut count = 0;
    graph.infer()?;
    for id in graph.node_ids() {
        let Some(node) = graph.node(id) else { continue };
        if !wanted(node) || !node.op.is_pure() || !node.op.bodies().is_empty() {
            continue;
        }
        let outputs = node.outputs.clone();
        let Some(tensors) = known(graph, node).or(computed(graph, node, cpu)?) else { continue };
        graph.remove_node(id);
        for (output, tensor) in outputs.into_iter().zip(tensors) {
            if let Some(output) = output {
                graph.set_constant(output, tensor);
            }
        }
        count += 1;
    }
    Ok(count)
}

/// The node's one output, when inference knows all its numbers.
fn known(graph: &Graph, node: &Node) -> Option<Vec<Tensor>> {
    let [Some(output)] = node.outputs.as_slice() else { return None };
    let fact = &graph.value(*output).fact;
    let ints: Vec<i64> = fact.ints.as_ref()?.iter().map(Dim::int).collect::<Option<_>>()?;
    let shape = fact.sizes()?;
    match fact.dtype()? {
        DType::I64 => Tensor::new(&shape, &ints).ok().map(|t| vec![t]),
        _ => None,
    }
}

/// The constant of a value that is not also an input of the graph, which could override it.
pub(super) fn constant(graph: &Graph, id: ValueId) -> Option<&Tensor> {
    graph.constant(id).filter(|_| !graph.inputs.contains(&id))
}

fn computed(graph: &Graph, node: &Node, cpu: &Cpu) -> Result<Option<Vec<Tensor>>> {
    let fixed = node.inputs.iter().flatten().all(|&id| constant(graph, id).is_some());
    if !fixed || node.op.domain() == "lessen" {
        return Ok(None);
    }
    let data: Vec<Option<Datum>> = node
        .inputs
        .iter()
        .map(|id| Some(Datum::Tensor(constant(graph, (*id)?)?.clone().aligned())))
        .collect();
    let before: usize = data.iter().flatten().filter_map(|d| d.tensor().ok()).map(|t| t.bytes().len()).sum();
    let facts: Vec<_> = node.inputs.iter().map(|id| id.map(|id| &graph.value(id).fact)).collect();
    let facts =
        node.op.infer(&Facts::new(&facts, node.outputs.len())).map_err(|e| e.at(&node.name, node.kind()))?;
    let is_weight = node.kind() == "DequantizeLinear";
    let after: Option<usize> = facts.iter().map(|f| f.bytes()).sum();
    if !is_weight && after.is_none_or(|after| after > before.saturating_add(MAX_GROWTH)) {
        return Ok(None);
    }
    let cx = RunCx::new(cpu, node.outputs.len());
    match node.op.run_data(&cx, Inputs::new(data)) {
        // An operator that cannot run says so when the model runs, if it is needed at all.
        Err(Error::Unsupported(_)) => Ok(None),
        Err(e) => Err(e.at(&node.name, node.kind())),
        Ok(outputs) => Ok(outputs.into_iter().map(|d| d.into_tensor().ok()).collect()),
    }
}
