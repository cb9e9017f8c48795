//! Tables that are looked up by row, such as embeddings: 8 bits and a scale for each row. A lookup takes the codes of
//! its rows and their scales: `Cast(Gather(codes)) * Gather(scales)`.

use std::collections::HashMap;

use graph::{Attrs, Graph, ValueId};

use super::add;
use super::int8::Sums;
use super::qdq::{Codes, quantize_weight};
use crate::Result;
use crate::weights::Weight;

/// The tables made so far, so that they are shared.
pub type Shared = HashMap<ValueId, (ValueId, ValueId, f64)>;

/// True when the node looks up rows of a table: `Gather` along the first of two axes.
pub fn fits(graph: &Graph, weight: &Weight) -> bool {
    let Some(node) = graph.node(weight.node) else { return false };
    let rows = node.op.attrs().int_or("axis", 0).is_ok_and(|a| a == 0);
    node.kind() == "Gather"
        && node.op.domain().is_empty()
        && rows
        && graph.constant(weight.value).is_some_and(|t| t.rank() == 2)
}

/// Rewrites one lookup. Gives the table's relative squared error.
///
/// # Errors
/// When the graph cannot be changed.
pub fn rewrite(graph: &mut Graph, weight: &Weight, shared: &mut Shared, version: i64) -> Result<f64> {
    let Some(node) = graph.node(weight.node).cloned() else { return Ok(0.0) };
    let (Some(indices), Some(y)) = (node.input(1), node.output(0)) else { return Ok(0.0) };
    let (codes, scales, error) = match shared.get(&weight.value) {
        Some(&found) => found,
        None => {
            let Some(tensor) = graph.constant(weight.value).cloned() else { return Ok(0.0) };
            let rows = tensor.shape()[0];
            let Codes { codes, scales, error, .. } = quantize_weight(&tensor, 0, &[], Sums::Wide)?;
            let column = scales.reshaped(&[rows, 1])?;
            let like = graph.value(weight.value).name.clone();
            let made = (
                graph.add_constant(&format!("{like}.c"), codes),
                graph.add_constant(&format!("{like}.s"), column),
                error,
            );
            shared.insert(weight.value, made);
            made
        }
    };
    let before = Some(weight.node);
    let name = &weight.name;
    let mut lookup = |table, end: &str| {
        add(graph, "Gather", version, &format!("{name}{end}"), &[table, indices], Attrs::new(), before)
    };
    let (row, scale) = (lookup(codes, ".c")?, lookup(scales, ".s")?);
    let row = add(graph, "Cast", version, &format!("{name}.f"), &[row], Attrs::new().int("to", 1), before)?;
    let result = add(graph, "Mul", version, &format!("{name}.y"), &[row, scale], Attrs::new(), before)?;
    let Some((last, _)) = graph.producer(result) else { return Ok(error) };
    graph.remove_node(weight.node);
    graph.set_output(last, 0, Some(y))?;
    Ok(error)
}
