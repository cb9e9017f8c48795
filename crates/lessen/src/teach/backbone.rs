//! The part of a trained model that is used again: all that leads to its features, one row of numbers an example.

use graph::op::WeightUse;
use graph::{Attrs, DType, Dim, Graph, Node, Tensor, ValueId, tidy};

use crate::answer::{Task, selected};
use crate::feed::{Role, role};
use crate::model::POOLING;
use crate::{Error, Model, Result};

/// The name of the features in the backbone.
pub(super) const FEATURES: &str = "features";
/// The oldest version of ONNX's operators in which heads are written.
const OLDEST: i64 = 13;

/// What features are made of.
pub(super) struct Backbone {
    /// The model, whose one output are the features, `[examples, features]`.
    pub model: Model,
    /// The value of the original that they are, or are pooled of.
    pub node: String,
}

/// Cuts a model behind its features: what the named node makes, or what the last weights of a classifier read, or else the
/// vector of a text or image. Vectors of tokens and channels of images are averaged.
///
/// # Errors
/// When there is no such node, or it makes no features.
pub(super) fn backbone(model: &Model, features: Option<&str>) -> Result<Backbone> {
    let mut made = model.clone();
    if made.inner().opsets.get("").is_some_and(|version| *version < OLDEST) {
        made.upgrade(17)?;
    }
    let inputs: Vec<String> = made.inputs().iter().map(|(name, _)| (*name).to_owned()).collect();
    let first_token = made.inner().metadata(POOLING) == Some("cls");
    let graph = &mut made.inner_mut().graph;
    graph.infer()?;
    let from = match features {
        Some(name) => named(graph, name)?,
        None => {
            let outputs: Vec<_> = graph
                .outputs
                .iter()
                .map(|&id| (graph.value(id).name.as_str(), &graph.value(id).fact))
                .collect();
            let answer = selected(&outputs, Task::Similarity)?;
            let answer = graph.find(answer).ok_or_else(|| Error::input("the model's answer has no name"))?;
            read_by_last_weights(graph, answer).unwrap_or(answer)
        }
    };
    let node = graph.value(from).name.clone();
    let is_mask = |name: &&String| role(name, inputs.len()) == Some(Role::Mask);
    let mask = inputs.iter().find(is_mask).and_then(|name| graph.find(name));
    let rows = pooled(graph, from, mask, first_token)?;
    graph.outputs = vec![rows];
    tidy::remove_dead(graph);
    // Nobody has to give what only the old answer needs.
    let readers = graph.readers();
    let outputs = graph.outputs.clone();
    graph.inputs.retain(|id| !readers[id.index()].is_empty() || outputs.contains(id));
    claim(graph, rows, FEATURES)?;
    Ok(Backbone { model: made, node })
}

/// The value of this name, or what the node of this name makes.
fn named(graph: &Graph, name: &str) -> Result<ValueId> {
    let made = || graph.nodes().find(|(_, node)| node.name == name).and_then(|(_, node)| node.output(0));
    graph.find(name).or_else(made).ok_or_else(|| {
        let last: Vec<&str> = graph.nodes().rev().take(8).map(|(_, node)| node.name.as_str()).collect();
        Error::input(format!(
            "the model has no node or value {name:?}; its last nodes are {}",
            last.join(", ")
        ))
    })
}

/// What the weights read that make this answer, when nothing but rearrangements and probabilities lies between.
fn read_by_last_weights(graph: &Graph, answer: ValueId) -> Option<ValueId> {
    let mut at = answer;
    loop {
        let (_, node) = graph.producer(at)?;
        let weight = node.op.weight().filter(|w| node.input(w.input).is_some_and(|id| is_weight(graph, id)));
        at = match (node.kind(), weight) {
            ("Gemm" | "MatMul" | "Conv", Some(WeightUse { input, .. })) => {
                return node.input(1 - input.min(1));
            }
            ("Add", _) => other_than_weight(graph, node)?,
            (
                "Softmax" | "LogSoftmax" | "Sigmoid" | "Identity" | "Reshape" | "Flatten" | "Squeeze"
                | "DequantizeLinear" | "QuantizeLinear" | "Cast",
                _,
            ) => node.input(0)?,
            _ => return None,
        };
    }
}

fn other_than_weight(graph: &Graph, node: &Node) -> Option<ValueId> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    match (is_weight(graph, a), is_weight(graph, b)) {
        (false, true) => Some(a),
        (true, false) => Some(b),
        _ => None,
    }
}

/// A constant, or one in few bits.
fn is_weight(graph: &Graph, id: ValueId) -> bool {
    let dequantized = graph.producer(id).filter(|(_, node)| node.kind() == "DequantizeLinear");
    match dequantized {
        Some((_, node)) => node.input(0).is_some_and(|id| graph.constant(id).is_some()),
        None => graph.constant(id).is_some(),
    }
}

/// One row of f32 an example.
fn pooled(graph: &mut Graph, from: ValueId, mask: Option<ValueId>, first_token: bool) -> Result<ValueId> {
    let value = graph.value(from);
    let name = value.name.clone();
    let Some(rank) = value.fact.rank() else {
        return Err(Error::input(format!(
            "the shape of {name:?} is not known, so it cannot be taken for features"
        )));
    };
    if value.fact.dtype().is_some_and(|d| !d.is_float()) {
        return Err(Error::input(format!("{name:?} holds {}, no features", value.fact)));
    }
    let wide = value.fact.dtype() == Some(DType::F32);
    let mut add = |kind: &str, attrs: Attrs, inputs: &[ValueId]| {
        Ok::<_, Error>(graph.append(FEATURES, kind, OLDEST, &attrs, inputs)?)
    };
    let none = Attrs::new;
    let x = if wide { from } else { add("Cast", none().int("to", 1), &[from])? };
    match (rank, mask) {
        (2, _) => Ok(x),
        (4, _) => {
            let mean = add("GlobalAveragePool", none(), &[x])?;
            add("Flatten", none().int("axis", 1), &[mean])
        }
        (3, _) if first_token => {
            let zero = graph.add_constant("first", Tensor::scalar(0i64));
            Ok(graph.append(FEATURES, "Gather", OLDEST, &none().int("axis", 1), &[x, zero])?)
        }
        (3, None) => add("ReduceMean", none().ints("axes", &[1]).int("keepdims", 0), &[x]),
        (3, Some(mask)) => {
            let constant = |graph: &mut Graph, values: &[i64]| {
                Ok::<_, Error>(graph.add_constant("axis", Tensor::new(&[values.len()], values)?))
            };
            let (last, tokens) = (constant(graph, &[-1])?, constant(graph, &[1])?);
            let least = graph.add_constant("least", Tensor::scalar(1e-9f32));
            let mut add = |kind: &str, attrs: Attrs, inputs: &[ValueId]| {
                graph.append(FEATURES, kind, OLDEST, &attrs, inputs)
            };
            let mask = add("Cast", none().int("to", 1), &[mask])?;
            let mask = add("Unsqueeze", none(), &[mask, last])?;
            let kept = add("Mul", none(), &[x, mask])?;
            let sum = add("ReduceSum", none().int("keepdims", 0), &[kept, tokens])?;
            let count = add("ReduceSum", none().int("keepdims", 0), &[mask, tokens])?;
            let count = add("Max", none(), &[count, least])?;
            Ok(add("Div", none(), &[sum, count])?)
        }
        _ => Err(Error::input(format!(
            "{name:?} has {rank} axes; features are rows, vectors of tokens, or channels of images"
        ))),
    }
}

/// Gives a value this name; who has it gets another.
pub(super) fn claim(graph: &mut Graph, id: ValueId, name: &str) -> Result<()> {
    if let Some(owner) = graph.find(name).filter(|owner| *owner != id) {
        let other = graph.fresh_name(name);
        graph.rename(owner, &other)?;
    }
    Ok(graph.rename(id, name)?)
}

/// Numbers of an example, when the graph says.
pub(super) fn width(graph: &Graph) -> Option<usize> {
    graph.value(*graph.outputs.first()?).fact.shape()?.last().and_then(Dim::size)
}
