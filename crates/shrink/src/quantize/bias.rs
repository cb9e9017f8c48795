//! Bias correction: what rounding a weight takes from the mean of its outputs, `(W - W') E[x]`, is put into the bias,
//! where it costs nothing. Nagel et al., "Data-Free Quantization" (2019).

use graph::{DType, Graph, NodeId, Tensor, ValueId};

use crate::Result;
use crate::matrix::Matrix;
use crate::weights::Weight;

/// What must be added to each output so that its mean stays, for rows that read inputs of these means.
pub fn shift(old: &Matrix, new: &Matrix, mean: &[f64]) -> Vec<f32> {
    let row = |(a, b): (&[f32], &[f32])| -> f32 {
        let terms = a.iter().zip(b).zip(mean).map(|((&a, &b), &m)| (f64::from(a) - f64::from(b)) * m);
        terms.sum::<f64>() as f32
    };
    old.each_row().zip(new.each_row()).map(row).collect()
}

/// Where the bias of a product is: a node, its input, and what stands there.
fn place(graph: &Graph, weight: &Weight) -> Option<(NodeId, usize, Option<ValueId>)> {
    let node = graph.node(weight.node).filter(|n| n.op.domain().is_empty())?;
    let readers = graph.readers();
    // What another node makes of the weight would miss it.
    if node.input(weight.used.input) == Some(weight.value) && readers[weight.value.index()].len() > 1 {
        return None;
    }
    let rows = |value: ValueId| {
        let tensor = graph.constant(value).filter(|_| !graph.inputs.contains(&value))?;
        (tensor.dtype() == DType::F32).then_some(tensor.shape())
    };
    match node.kind() {
        "Conv" => match node.input(2) {
            Some(bias) => rows(bias).map(|_| (weight.node, 2, Some(bias))),
            None => Some((weight.node, 2, None)),
        },
        "Gemm" => {
            let unscaled = node.op.attrs().float_or("beta", 1.0).is_ok_and(|b| b == 1.0);
            let bias = node.input(2).filter(|_| unscaled)?;
            Some((weight.node, 2, Some(bias))).filter(|_| rows(bias).is_some_and(|s| s.len() == 1))
        }
        "MatMul" => {
            let made = node.output(0).filter(|v| !graph.outputs.contains(v))?;
            let &[sum] = readers[made.index()].as_slice() else { return None };
            let node = graph.node(sum).filter(|n| n.kind() == "Add" && n.op.domain().is_empty())?;
            let input = usize::from(node.input(0) == Some(made));
            let term = node.input(input)?;
            Some((sum, input, Some(term))).filter(|_| rows(term).is_some_and(|s| s.len() == 1))
        }
        _ => None,
    }
}

/// Is there a bias that can take what is to be added to a product's outputs?
pub fn fits(graph: &Graph, weight: &Weight) -> bool {
    place(graph, weight).is_some()
}

/// Adds a number to each output of a weight's product, in its bias. Nothing happens where none [`fits`].
///
/// # Errors
/// When the graph breaks a rule.
pub fn add(graph: &mut Graph, weight: &Weight, shift: &[f32]) -> Result<()> {
    if shift.is_empty() {
        return Ok(());
    }
    let Some((node, input, old)) = place(graph, weight) else { return Ok(()) };
    let sum: Vec<f32> = match old.and_then(|b| graph.constant(b)) {
        Some(bias) if bias.len() == shift.len() => {
            bias.values::<f32>()?.iter().zip(shift).map(|(b, s)| b + s).collect()
        }
        Some(_) => return Ok(()),
        None => shift.to_vec(),
    };
    let like = old.map_or_else(|| format!("{}.bias", weight.name), |b| graph.value(b).name.clone());
    let bias = graph.add_constant(&like, Tensor::vector(&sum));
    graph.set_input(node, input, Some(bias));
    Ok(())
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;
    use graph::run::Session;
    use graph::{Attrs, Datum, Dim, Fact};

    use super::*;
    use crate::gram::Gram;
    use crate::gram::tests::{cpu, known_inputs, known_weights};
    use crate::weights::weights;

    #[test]
    fn means_stay_where_they_were() {
        let (x, w) = (known_inputs(), known_weights());
        let mut gram = Gram::new(8);
        gram.add(&cpu(), &x);
        let new = Matrix::new(2, 8, w.data.iter().map(|x| x.round()).collect());
        let shift = shift(&w, &new, &gram.mean());
        for (i, shift) in shift.into_iter().enumerate() {
            let mean = |w: &Matrix| -> f32 {
                x.chunks(8).map(|x| x.iter().zip(w.row(i)).map(|(a, b)| a * b).sum::<f32>()).sum::<f32>()
                    / 16.0
            };
            assert!((mean(&new) + shift - mean(&w)).abs() < 1e-5);
        }
    }

    /// A product of this kind on inputs of 8 channels, with a bias or without.
    fn product(kind: &str, bias: bool) -> Graph {
        let mut g = Graph::new("g");
        let conv = kind == "Conv";
        let size = if conv { vec![2, 8, 3, 3] } else { vec![2, 8] };
        let x = g.add_input("x", Fact::tensor(DType::F32, size.into_iter().map(Dim::Is).collect())).unwrap();
        let w = g.add_constant("w", ramp(if conv { &[8, 8, 1, 1] } else { &[8, 8] }));
        let b = g.add_constant("b", ramp(&[8]));
        let mut add =
            |kind: &str, inputs: &[ValueId]| g.append("y", kind, 17, &Attrs::new(), inputs).unwrap();
        let inside = bias && kind != "MatMul";
        let mut y = if inside { add(kind, &[x, w, b]) } else { add(kind, &[x, w]) };
        if bias && !inside {
            y = add("Add", &[y, b]);
        }
        g.outputs.push(y);
        g.infer().unwrap();
        g
    }

    #[test]
    fn biases_of_products_take_what_is_added() {
        for (kind, bias, holds) in [
            ("Conv", true, true),
            ("Conv", false, true),
            ("Gemm", true, true),
            ("Gemm", false, false),
            ("MatMul", true, true),
            ("MatMul", false, false),
        ] {
            let before = product(kind, bias);
            let weight = weights(&before).unwrap().remove(0);
            let mut after = before.clone();
            let shift: Vec<f32> = (0..8).map(|i| i as f32).collect();
            add(&mut after, &weight, &shift).unwrap();
            after.infer().unwrap();
            after.check().unwrap();
            assert_eq!(fits(&before, &weight), holds, "{kind} {bias}");
            let run = |g: &Graph| -> Vec<f32> {
                let shape = g.value(g.inputs[0]).fact.sizes().unwrap();
                let session = Session::new(g.clone(), &cpu()).unwrap();
                let y = session.run(vec![("x", Datum::Tensor(ramp(&shape)))]).unwrap();
                y[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
            };
            let inner = if kind == "Conv" { 9 } else { 1 };
            for (k, (a, b)) in run(&before).iter().zip(run(&after)).enumerate() {
                let want = if holds { (k / inner % 8) as f32 } else { 0.0 };
                assert!((b - a - want).abs() < 1e-4, "{kind} {bias}: {k}");
            }
        }
    }
}
