//! Computes ahead what is constant.

use kernel::Cpu;

use crate::op::{Facts, Inputs, RunCx};
use crate::{DType, Datum, Dim, Error, Fact, Graph, Node, Result, Tensor, ValueId};

/// A constant may grow this much when it is computed ahead, in bytes: above, a `Tile` or `Expand` of a small
/// constant is better left to the run.
const MAX_GROWTH: usize = 1 << 20;

/// What is computed ahead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// What hardly grows by it. Weights stay quantized.
    Small,
    /// What has no more elements then, however many bytes each takes, as weights that are put together from their
    /// codes; and all weights that are still quantized.
    Weights,
}

/// Computes nodes whose inputs are all constant, and integer vectors that inference knows. Weights stay quantized:
/// see [`fold_all`].
pub(super) fn fold(graph: &mut Graph, cpu: &Cpu) -> Result<usize> {
    fold_where(graph, cpu, What::Small)
}

/// As [`fold`], weights that are still quantized included: no integer kernel wants them.
pub(super) fn fold_all(graph: &mut Graph, cpu: &Cpu) -> Result<usize> {
    fold_where(graph, cpu, What::Weights)
}

fn fold_where(graph: &mut Graph, cpu: &Cpu, what: What) -> Result<usize> {
    let mut count = 0;
    graph.infer()?;
    let mut readers: Vec<usize> = graph.readers().iter().map(Vec::len).collect();
    for id in graph.node_ids() {
        let Some(node) = graph.node(id) else { continue };
        let stays = what == What::Small && node.kind() == "DequantizeLinear";
        if stays || !node.op.is_pure() || !node.op.bodies().is_empty() {
            continue;
        }
        let outputs = node.outputs.clone();
        let Some(tensors) = known(graph, node).or(computed(graph, node, what, cpu)?) else { continue };
        let read: Vec<ValueId> = node.reads().collect();
        graph.remove_node(id);
        // Constants that nobody reads any more would only take memory.
        for value in read {
            readers[value.index()] -= 1;
            if readers[value.index()] == 0
                && !graph.inputs.contains(&value)
                && !graph.outputs.contains(&value)
            {
                graph.value_mut(value).constant = None;
            }
        }
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

fn computed(graph: &Graph, node: &Node, what: What, cpu: &Cpu) -> Result<Option<Vec<Tensor>>> {
    let fixed = node.inputs.iter().flatten().all(|&id| constant(graph, id).is_some());
    if !fixed || node.op.domain() == "lessen" {
        return Ok(None);
    }
    let data: Vec<Option<Datum>> = node
        .inputs
        .iter()
        .map(|id| Some(Datum::Tensor(constant(graph, (*id)?)?.clone().aligned())))
        .collect();
    let tensors: Vec<&Tensor> = data.iter().flatten().filter_map(|d| d.tensor().ok()).collect();
    let bytes: usize = tensors.iter().map(|t| t.bytes().len()).sum();
    let elements: usize = tensors.iter().map(|t| t.len()).sum();
    let facts: Vec<_> = node.inputs.iter().map(|id| id.map(|id| &graph.value(id).fact)).collect();
    let facts =
        node.op.infer(&Facts::new(&facts, node.outputs.len())).map_err(|e| e.at(&node.name, node.kind()))?;
    let after = |size: &dyn Fn(&Fact) -> Option<usize>| facts.iter().map(size).sum::<Option<usize>>();
    let small = after(&|f| f.bytes()).is_some_and(|after| after <= bytes.saturating_add(MAX_GROWTH));
    let no_more = what == What::Weights && after(&|f| f.count()).is_some_and(|after| after <= elements);
    if !(small || no_more) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attrs;
    use crate::run::Session;
    use crate::tidy::{self, PORTABLE, RUN};

    /// A weight of many codes that name the values of a table, and a small constant that is repeated, both added up.
    fn graph() -> Graph {
        const SIZE: usize = 1 << 18;
        let mut g = Graph::new("g");
        let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(1)])).unwrap();
        let codes: Vec<u8> = (0..SIZE).map(|k| (k * 7 % 4) as u8).collect();
        let codes = g.add_constant("codes", Tensor::vector(&codes));
        let table = g.add_constant("table", Tensor::vector(&[-1.5f32, 0.0, 0.5, 2.0]));
        let times = g.add_constant("times", Tensor::vector(&[2 * SIZE as i64]));
        let one = g.add_constant("one", Tensor::vector(&[1f32]));
        let mut add =
            |kind: &str, inputs: &[ValueId], attrs| g.append(kind, kind, 17, &attrs, inputs).unwrap();
        let wide = add("Cast", &[codes], Attrs::new().int("to", 7));
        let weight = add("Gather", &[table, wide], Attrs::new());
        let many = add("Expand", &[one, times], Attrs::new());
        let weight = add("ReduceSum", &[weight], Attrs::new());
        let many = add("ReduceSum", &[many], Attrs::new());
        let sum = add("Add", &[weight, x], Attrs::new());
        let sum = add("Add", &[sum, many], Attrs::new());
        g.outputs.push(sum);
        g.infer().unwrap();
        g
    }

    fn kinds(graph: &Graph) -> Vec<String> {
        graph.nodes().map(|(_, node)| node.kind().to_owned()).collect()
    }

    #[test]
    fn weights_are_put_together_from_codes_before_a_run_and_stay_codes_in_a_file() {
        let cpu = Cpu::new(1).unwrap();
        let mut written = graph();
        tidy::run(&mut written, PORTABLE, &cpu).unwrap();
        assert!(kinds(&written).iter().any(|kind| kind == "Cast"), "{:?}", kinds(&written));
        let mut run = graph();
        tidy::run(&mut run, RUN, &cpu).unwrap();
        assert!(kinds(&run).iter().all(|kind| kind != "Cast" && kind != "Gather"), "{:?}", kinds(&run));
        // What would only grow is left to the run.
        assert!(kinds(&run).iter().any(|kind| kind == "Expand"), "{:?}", kinds(&run));
        let bytes: usize =
            run.values().filter_map(|(_, v)| v.constant.as_ref()).map(|t| t.bytes().len()).sum();
        assert!(bytes < 100, "{bytes} bytes of constants are left");
        let answer = |graph: Graph| -> f32 {
            let session = Session::new(graph, &cpu).unwrap();
            let made = session.run(vec![("x", Datum::Tensor(Tensor::vector(&[0.25f32])))]).unwrap();
            made[0].tensor().unwrap().as_slice::<f32>().unwrap()[0]
        };
        let right = 0.25 + (1 << 18) as f32 * 0.25 + (1 << 19) as f32;
        assert_eq!((answer(run), answer(written)), (right, right));
    }
}
