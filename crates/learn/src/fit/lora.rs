//! Low-rank adaptation (Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021): beside a product with a
//! weight stands one with two small factors, which alone are trained and can be added to the weight in the end.

use graph::op::WeightKind;
use graph::{Attrs, DType, Graph, NodeId, Tensor, ValueId};

use crate::random::Random;
use crate::{Error, Result};

/// A weight and the factors beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The weight, a constant of the graph.
    pub weight: ValueId,
    /// Its name.
    pub name: String,
    /// `[inputs, rank]`, drawn at random.
    pub down: ValueId,
    /// `[rank, outputs]`, zeros.
    pub up: ValueId,
    /// Is the weight `[outputs, inputs]`, not `[inputs, outputs]`?
    pub transposed: bool,
}

/// Puts factors beside the products with a weight of two axes in f32 whose name `wanted` agrees with, times `scale`. What the
/// graph computes stays the same at first.
///
/// # Errors
/// When the rank is 0, or greater than what a weight reads or makes.
pub fn attach(
    graph: &mut Graph,
    rank: usize,
    scale: f32,
    seed: u64,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Pair>> {
    let mut random = Random::new(seed);
    let mut pairs: Vec<Pair> = Vec::new();
    for (node, weight, transposed) in products(graph) {
        let name = graph.value(weight).name.clone();
        if !wanted(&name) {
            continue;
        }
        let Some(&[rows, cols]) = graph.constant(weight).map(Tensor::shape) else { continue };
        let (inputs, outputs) = if transposed { (cols, rows) } else { (rows, cols) };
        if rank == 0 || rank > inputs.min(outputs) {
            return Err(Error::input(format!(
                "a rank of {rank} does not fit weight {name:?} of {inputs} inputs and {outputs} outputs"
            )));
        }
        // Two products with the same weight have the same factors.
        let known = pairs.iter().find(|pair| pair.weight == weight).cloned();
        let pair = match known {
            Some(pair) => pair,
            None => {
                // Even, up to the root of one over the inputs, as torch's layers start.
                let most = (inputs as f64).sqrt().recip();
                let drawn = (0..inputs * rank).map(|_| (most * (2.0 * random.unit() - 1.0)) as f32);
                let down = Tensor::new(&[inputs, rank], &drawn.collect::<Vec<_>>())?;
                let up = Tensor::new(&[rank, outputs], &vec![0f32; rank * outputs])?;
                let down = graph.add_constant(&format!("{name}.lora_A"), down);
                let up = graph.add_constant(&format!("{name}.lora_B"), up);
                let pair = Pair { weight, name, down, up, transposed };
                pairs.push(pair.clone());
                pair
            }
        };
        beside(graph, node, &pair, scale)?;
    }
    graph.sort()?;
    Ok(pairs)
}

/// Nodes that multiply with a constant weight of two axes, and whether it is transposed.
fn products(graph: &Graph) -> Vec<(NodeId, ValueId, bool)> {
    let readers = graph.readers();
    let mut found: Vec<(NodeId, ValueId, bool)> = Vec::new();
    for (id, node) in graph.nodes() {
        let Some(used) = node.op.weight().filter(|w| w.kind == WeightKind::MatMul && w.input == 1) else {
            continue;
        };
        let Some(weight) = node.input(1) else { continue };
        let fits = graph.constant(weight).is_some_and(|t| t.dtype() == DType::F32 && t.rank() == 2);
        // The axis of outputs is the last one, unless the weight is transposed.
        if fits && matches!(node.kind(), "MatMul" | "Gemm") {
            found.push((id, weight, matches!(used.out_axis, 0 | -2)));
        }
    }
    // What is also read otherwise, as a table that a head shares, would change there, too, once factors are merged.
    let alike = |weight, transposed| found.iter().filter(|f| (f.1, f.2) == (weight, transposed)).count();
    let keeps = |&&(_, weight, transposed): &&(NodeId, ValueId, bool)| {
        alike(weight, transposed) == readers[weight.index()].len()
    };
    found.iter().filter(keeps).copied().collect()
}

fn beside(graph: &mut Graph, node: NodeId, pair: &Pair, scale: f32) -> Result<()> {
    let Some((input, output)) = graph.node(node).and_then(|n| Some((n.input(0)?, n.output(0)?))) else {
        return Ok(());
    };
    let fact = graph.value(output).fact.clone();
    let none = Attrs::new;
    let factor = graph.add_constant("lora.scale", Tensor::scalar(scale));
    let low = graph.append("lora", "MatMul", 13, &none(), &[input, pair.down])?;
    let high = graph.append("lora", "MatMul", 13, &none(), &[low, pair.up])?;
    let scaled = graph.append("lora", "Mul", 13, &none(), &[high, factor])?;
    // Who read the product reads the sum.
    let made = graph.add_free(&graph.fresh_name("lora.product"), fact);
    let readers = graph.readers()[output.index()].clone();
    for reader in readers {
        let inputs: Vec<Option<ValueId>> = graph.node(reader).map(|n| n.inputs.to_vec()).unwrap_or_default();
        for (at, value) in inputs.into_iter().enumerate() {
            if value == Some(output) {
                graph.set_input(reader, at, Some(made));
            }
        }
    }
    let sum = graph.append("lora", "Add", 13, &none(), &[output, scaled])?;
    graph.replace_value(made, sum);
    for at in graph.outputs.iter_mut().filter(|at| **at == output) {
        *at = sum;
    }
    Ok(())
}

/// The weight with `scale` times the product of the factors added.
///
/// # Errors
/// When the shapes do not fit.
pub fn merged(weight: &Tensor, down: &Tensor, up: &Tensor, scale: f32, transposed: bool) -> Result<Tensor> {
    let (inputs, rank, outputs) = match (down.shape(), up.shape()) {
        (&[inputs, rank], &[same, outputs]) if rank == same => (inputs, rank, outputs),
        (down, up) => return Err(Error::input(format!("factors of {down:?} and {up:?} do not fit"))),
    };
    let shape = if transposed { [outputs, inputs] } else { [inputs, outputs] };
    if weight.shape() != shape || weight.dtype() != DType::F32 {
        return Err(Error::input(format!(
            "factors of {inputs} inputs and {outputs} outputs do not fit a weight of {:?} in {:?}",
            weight.shape(),
            weight.dtype()
        )));
    }
    let (down, up) = (down.to_f32()?, up.to_f32()?);
    let mut sum = weight.to_f32()?.into_owned();
    for i in 0..inputs {
        let row = &down[i * rank..][..rank];
        for o in 0..outputs {
            let add: f64 =
                row.iter().enumerate().map(|(r, a)| f64::from(*a) * f64::from(up[r * outputs + o])).sum();
            let at = if transposed { o * inputs + i } else { i * outputs + o };
            sum[at] = (f64::from(sum[at]) + f64::from(scale) * add) as f32;
        }
    }
    Ok(Tensor::new(&shape, &sum)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use graph::op::ramp;
    use graph::run::Session;
    use graph::{Datum, Dim, Fact};
    use kernel::Cpu;

    /// x w, relu, then Gemm with a transposed weight and a bias, and w again.
    fn network() -> Graph {
        let mut g = Graph::new("two");
        let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(4)])).unwrap();
        let (w, v, b) = (
            g.add_constant("w", ramp(&[4, 3])),
            g.add_constant("v", ramp(&[4, 3])),
            g.add_constant("b", ramp(&[4])),
        );
        let y = g.append("y", "MatMul", 13, &Attrs::new(), &[x, w]).unwrap();
        let y = g.append("r", "Relu", 14, &Attrs::new(), &[y]).unwrap();
        let z = g.append("z", "Gemm", 13, &Attrs::new().int("transB", 1), &[y, v, b]).unwrap();
        let u = g.append("u", "MatMul", 13, &Attrs::new(), &[z, w]).unwrap();
        g.outputs.push(u);
        g.infer().unwrap();
        g
    }

    fn run(graph: &Graph) -> Vec<f32> {
        let session = Session::new(graph.clone(), &Cpu::new(1).unwrap()).unwrap();
        let x = Datum::Tensor(ramp(&[5, 4]));
        session.run(vec![("x", x)]).unwrap()[0].tensor().unwrap().to_f32().unwrap().into_owned()
    }

    #[test]
    fn factors_beside_are_the_same_as_factors_merged() {
        let plain = network();
        let mut wide = plain.clone();
        let pairs = attach(&mut wide, 2, 0.5, 1, |_| true).unwrap();
        let names: Vec<(&str, bool)> = pairs.iter().map(|p| (p.name.as_str(), p.transposed)).collect();
        assert_eq!(names, [("w", false), ("v", true)]);
        assert_eq!(run(&wide), run(&plain), "nothing is added at first");
        let mut whole = plain.clone();
        for pair in &pairs {
            let up = ramp(wide.constant(pair.up).unwrap().shape());
            wide.set_constant(pair.up, up.clone());
            let weight = plain.constant(pair.weight).unwrap();
            let down = wide.constant(pair.down).unwrap();
            whole.set_constant(pair.weight, merged(weight, down, &up, 0.5, pair.transposed).unwrap());
        }
        let (a, b) = (run(&wide), run(&whole));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * b.abs().max(1.0)), "{a:?} {b:?}");
        assert_ne!(a, run(&plain));
        let only = attach(&mut plain.clone(), 2, 0.5, 1, |name| name == "v").unwrap();
        assert_eq!(only.len(), 1);
        // A weight that is looked up, too, gets none.
        let mut tied = plain.clone();
        let (w, row) = (tied.find("w").unwrap(), tied.add_constant("row", Tensor::scalar(1i64)));
        let row = tied.append("row", "Gather", 13, &Attrs::new(), &[w, row]).unwrap();
        tied.outputs.push(row);
        let names: Vec<String> =
            attach(&mut tied, 2, 0.5, 1, |_| true).unwrap().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["v"]);
    }

    #[test]
    fn ranks_and_factors_that_do_not_fit_are_refused() {
        assert!(attach(&mut network(), 0, 1.0, 1, |_| true).is_err());
        assert!(attach(&mut network(), 4, 1.0, 1, |_| true).unwrap_err().to_string().contains("\"w\""));
        let of = |shape: &[usize]| ramp(shape);
        assert!(merged(&of(&[4, 3]), &of(&[4, 2]), &of(&[3, 3]), 1.0, false).is_err());
        assert!(merged(&of(&[4, 3]), &of(&[4, 2]), &of(&[2, 3]), 1.0, true).is_err());
    }
}
