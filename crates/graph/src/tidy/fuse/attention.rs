//! Attention as exporters write it, with its transpositions, becomes one `Attention` that reads rows where they lie.
//! <https://onnx.ai/onnx/operators/onnx__Attention.html>

use std::sync::Arc;

use kernel::Cpu;

use super::compose::swap;
use crate::op::Reader;
use crate::ops;
use crate::tidy::pattern::{Match, Pattern, any, constant, either, op};
use crate::{Attrs, DType, Graph, Op, Result, ValueId};

/// `x` [batch, rows, heads * width] as [batch, heads, rows, width].
fn split(x: &'static str, reshape: &'static str, turn: &'static str) -> Pattern {
    op("Transpose", [op("Reshape", [any(x)]).named(reshape)]).named(turn)
}

fn pattern() -> Pattern {
    let query = split("q", "q.reshape", "q.turn");
    let key = either([
        op("Transpose", [split("k", "k.reshape", "k.turn")]).named("k.back"),
        split("k", "k.reshape", "k.turn"),
    ]);
    let scores = op("MatMul", [query, key]);
    let scaled = || {
        either([
            op("Div", [scores.clone(), constant("divisor")]),
            op("Mul", [scores.clone(), constant("factor")]),
            scores.clone(),
        ])
    };
    let masked = either([op("Add", [scaled(), any("mask")]), scaled()]);
    let weights = op("Softmax", [masked]).named("softmax");
    let mixed = op("MatMul", [weights, split("v", "v.reshape", "v.turn")]);
    op("Reshape", [op("Transpose", [mixed]).named("turn")]).named("join")
}

/// Fuses each attention.
pub(in crate::tidy) fn fuse(graph: &mut Graph, _: &Cpu) -> Result<usize> {
    if ops::find("", "Attention", 23).is_none() {
        return Ok(0);
    }
    let pattern = pattern();
    let mut count = 0;
    let mut readers = graph.readers();
    for id in graph.node_ids() {
        if graph.node(id).is_none_or(|n| n.kind() != "Reshape") {
            continue;
        }
        let Some(found) = pattern.find(graph, id, &readers) else { continue };
        let Some((op, inputs)) = make(graph, &found) else { continue };
        swap(graph, id, op, inputs, &found)?;
        readers = graph.readers();
        count += 1;
    }
    Ok(count)
}

fn make(graph: &Graph, m: &Match) -> Option<(Arc<dyn Op>, Vec<ValueId>)> {
    let perm = |name: &str, want: [i64; 4]| {
        let found = graph.node(m.node(name)?)?.op.attrs().opt_ints("perm").ok()??;
        (found == want).then_some(())
    };
    perm("q.turn", [0, 2, 1, 3])?;
    perm("v.turn", [0, 2, 1, 3])?;
    perm("turn", [0, 2, 1, 3])?;
    match m.node("k.back") {
        Some(_) => {
            perm("k.turn", [0, 2, 1, 3])?;
            perm("k.back", [0, 1, 3, 2])?;
        }
        None => perm("k.turn", [0, 2, 3, 1])?,
    }
    let last = graph.node(m.node("softmax")?)?.op.attrs().int_or("axis", -1).ok()?;
    if last != -1 && last != 3 {
        return None;
    }
    // All three are split alike, and joined to what they were.
    let heads = |name: &str| {
        let output = graph.node(m.node(name)?)?.output(0)?;
        let shape = graph.value(output).fact.shape()?;
        match shape {
            [_, _, heads, width] => Some((heads.size()?, width.size()?)),
            _ => None,
        }
    };
    let (count, width) = heads("q.reshape")?;
    if heads("k.reshape")? != (count, width) || heads("v.reshape")?.0 != count {
        return None;
    }
    let is_rows = |name: &str| graph.value(m.get(name)?).fact.rank().filter(|&r| r == 3);
    is_rows("q").and(is_rows("k")).and(is_rows("v"))?;
    let joined = graph.value(graph.node(m.node("join")?)?.output(0)?).fact.shape()?.to_vec();
    let value_width = heads("v.reshape")?.1;
    if joined.len() != 3 || joined[2].size() != Some(count * value_width) {
        return None;
    }
    let number =
        |name: &str| graph.constant(m.get(name)?)?.to_f32().ok().filter(|v| v.len() == 1).map(|v| v[0]);
    let scale = match (m.get("divisor"), m.get("factor")) {
        (Some(_), _) => 1.0 / number("divisor")?,
        (_, Some(_)) => number("factor")?,
        _ => 1.0,
    };
    let mut inputs = vec![m.get("q")?, m.get("k")?, m.get("v")?];
    if inputs.iter().any(|&v| graph.value(v).fact.dtype() != Some(DType::F32)) {
        return None;
    }
    if let Some(mask) = m.get("mask") {
        let fact = &graph.value(mask).fact;
        if fact.dtype() != Some(DType::F32) || fact.rank()? != 4 {
            return None;
        }
        inputs.push(mask);
    }
    let attrs =
        Attrs::new().int("q_num_heads", count as i64).int("kv_num_heads", count as i64).float("scale", scale);
    let reader = Reader { attrs: &attrs, version: 23, inputs: inputs.len(), outputs: 1 };
    Some((ops::read("", "Attention", &reader).ok()?, inputs))
}
