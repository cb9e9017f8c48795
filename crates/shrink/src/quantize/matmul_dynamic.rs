//! Dynamic 8-bit quantization of matrix products, in the form that engines know: the activations are put on a grid
//! found anew for each tensor (`DynamicQuantizeLinear`), multiplied in integers (`MatMulInteger`) and scaled back.

use std::collections::HashMap;

use graph::{Attrs, Graph, Tensor, ValueId};

use super::int8::Sums;
use super::qdq::{Codes, quantize_weight};
use super::{add, add_many};
use crate::Result;
use crate::weights::Weight;

/// What was made for the activations and weights seen so far, so that they are shared.
#[derive(Default)]
pub struct Shared {
    activations: HashMap<ValueId, Vec<ValueId>>,
    weights: HashMap<(ValueId, bool), (ValueId, ValueId, f64)>,
}

/// True when the node is a product that this form can express: `MatMul`, or `Gemm` without scaling or a transposed
/// first operand, of a weight with two axes.
pub fn fits(graph: &Graph, weight: &Weight) -> bool {
    let Some(node) = graph.node(weight.node) else { return false };
    let attrs = node.op.attrs();
    let plain = |name: &str| attrs.float_or(name, 1.0).is_ok_and(|v| v == 1.0);
    let two_axes = graph.constant(weight.value).is_some_and(|t| t.rank() == 2);
    let kind = match node.kind() {
        "MatMul" => true,
        "Gemm" => plain("alpha") && plain("beta") && attrs.int_or("transA", 0).is_ok_and(|t| t == 0),
        _ => false,
    };
    kind && two_axes && weight.used.input == 1 && node.op.domain().is_empty()
}

/// Rewrites one product. Gives the weight's relative squared error.
///
/// # Errors
/// When the graph cannot be changed.
pub fn rewrite(graph: &mut Graph, weight: &Weight, shared: &mut Shared, version: i64) -> Result<f64> {
    let Some(node) = graph.node(weight.node).cloned() else { return Ok(0.0) };
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Ok(0.0) };
    let transposed = node.kind() == "Gemm" && node.op.attrs().int_or("transB", 0)? != 0;
    let before = Some(weight.node);
    let name = weight.name.clone();
    let key = (weight.value, transposed);
    let (codes, scales, error) = match shared.weights.get(&key) {
        Some(&found) => found,
        None => {
            let Some(tensor) = graph.constant(weight.value).cloned() else { return Ok(0.0) };
            let tensor = if transposed { transpose(&tensor)? } else { tensor };
            let Codes { codes, scales, error, .. } = quantize_weight(&tensor, 1, &[], Sums::Paired)?;
            let like = graph.value(weight.value).name.clone();
            let made = (
                graph.add_constant(&format!("{like}.c"), codes),
                graph.add_constant(&format!("{like}.s"), scales),
                error,
            );
            shared.weights.insert(key, made);
            made
        }
    };
    let on_grid = match shared.activations.get(&x) {
        Some(found) => found.clone(),
        None => {
            let like = format!("{}.q", graph.value(x).name);
            let made =
                add_many(graph, "DynamicQuantizeLinear", version, &like, &[x], Attrs::new(), before, 3)?;
            shared.activations.insert(x, made.clone());
            made
        }
    };
    let sums = add(
        graph,
        "MatMulInteger",
        version,
        &format!("{name}.i"),
        &[on_grid[0], codes, on_grid[2]],
        Attrs::new(),
        before,
    )?;
    let to_float = Attrs::new().int("to", 1);
    let sums = add(graph, "Cast", version, &format!("{name}.f"), &[sums], to_float, before)?;
    let scale =
        add(graph, "Mul", version, &format!("{name}.k"), &[on_grid[1], scales], Attrs::new(), before)?;
    let mut result = add(graph, "Mul", version, &format!("{name}.y"), &[sums, scale], Attrs::new(), before)?;
    if let Some(bias) = node.input(2) {
        result = add(graph, "Add", version, &format!("{name}.b"), &[result, bias], Attrs::new(), before)?;
    }
    // The last node makes the value that the product made, under its name.
    let Some((last, _)) = graph.producer(result) else { return Ok(error) };
    graph.remove_node(weight.node);
    graph.set_output(last, 0, Some(y))?;
    Ok(error)
}

fn transpose(tensor: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (tensor.shape()[0], tensor.shape()[1]);
    let data = tensor.values::<f32>()?;
    Ok(Tensor::build(&[columns, rows], |out: &mut [f32]| {
        for (i, row) in data.chunks_exact(columns.max(1)).enumerate() {
            for (j, &v) in row.iter().enumerate() {
                out[j * rows + i] = v;
            }
        }
        Ok(())
    })?)
}
