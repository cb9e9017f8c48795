//! The part of a trained model that is used again: all that leads to its features, one row of numbers an example.

use graph::op::WeightUse;
use graph::{Attrs, DType, Dim, Graph, Node, Tensor, ValueId, tidy};

use crate::answer::{Task, selected};
use crate::feed::{Role, role};
use crate::model::POOLING;
use crate::{Error, Model, Result};

/// The name of the features in the backbone.
pub(crate) const FEATURES: &str = "features";
/// The oldest version of ONNX's operators in which heads are written.
pub(super) const OLDEST: i64 = 13;

/// What features are made of.
pub(crate) struct Backbone {
    /// The model, whose one output are the features, `[examples, features]`.
    pub model: Model,
    /// The model with all of its answers, and a value of the name `features` that they are.
    pub whole: Model,
    /// The value of the original that they are, or are pooled of.
    pub node: String,
}

impl Backbone {
    /// Numbers of an example, when the graph says.
    pub fn width(&self) -> Option<usize> {
        let graph = &self.model.inner().graph;
        graph.value(*graph.outputs.first()?).fact.shape()?.last().and_then(Dim::size)
    }
}

/// Cuts a model behind its features: what the named node makes, or what the last weights of a classifier read, or else the
/// vector of a text or image. Vectors of tokens and channels of images are averaged.
///
/// # Errors
/// When there is no such node, or it makes no features.
pub(crate) fn backbone(model: &Model, features: Option<&str>) -> Result<Backbone> {
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
    claim(graph, rows, FEATURES)?;
    let whole = made.clone();
    answering(&mut made.inner_mut().graph, &[rows]);
    Ok(Backbone { model: made, whole, node })
}

/// Leaves a graph these outputs alone, and what leads to them.
pub(crate) fn answering(graph: &mut Graph, outputs: &[ValueId]) {
    graph.outputs = outputs.to_vec();
    tidy::remove_dead(graph);
    // Nobody has to give what only other answers need.
    let readers = graph.readers();
    graph.inputs.retain(|id| !readers[id.index()].is_empty() || outputs.contains(id));
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
pub(crate) fn claim(graph: &mut Graph, id: ValueId, name: &str) -> Result<()> {
    match graph.find(name) {
        Some(owner) if owner == id => return Ok(()),
        Some(owner) => {
            let other = graph.fresh_name(name);
            graph.rename(owner, &other)?;
        }
        None => {}
    }
    Ok(graph.rename(id, name)?)
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;
    use graph::{Datum, Fact};

    use super::*;
    use crate::{Cpu, Runner};

    /// A model of an input `x` of these sizes, with a mask beside or not, and what `make` makes of it.
    fn model(
        dtype: DType,
        sizes: &[usize],
        mask: bool,
        opset: i64,
        make: impl FnOnce(&mut Graph, ValueId) -> ValueId,
    ) -> Model {
        let mut graph = Graph::new("test");
        let mut shape = vec![Dim::named("n")];
        shape.extend(sizes.iter().map(|&size| Dim::from(size)));
        let x = graph.add_input("x", Fact::tensor(dtype, shape)).unwrap();
        if mask {
            let shape = vec![Dim::named("n"), Dim::from(sizes[0])];
            graph.add_input("attention_mask", Fact::tensor(DType::I64, shape)).unwrap();
        }
        let made = make(&mut graph, x);
        graph.outputs.push(made);
        let mut inner = graph::Model { graph, ir_version: 8, ..graph::Model::default() };
        inner.opsets.insert(String::new(), opset);
        Model::new(inner).unwrap()
    }

    fn relu(graph: &mut Graph, x: ValueId) -> ValueId {
        graph.append("y", "Relu", 14, &Attrs::new(), &[x]).unwrap()
    }

    /// The features that the backbone gives once it was written and read again.
    fn features(model: &Model, inputs: &[(&str, Tensor)]) -> Vec<f32> {
        let made = backbone(model, None).unwrap();
        let bytes = format::onnx::to_bytes(made.model.inner()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, bytes).unwrap();
        let runner = Runner::new(&Model::open(&path).unwrap(), &Cpu::new(1).unwrap()).unwrap();
        let inputs: Vec<(String, Tensor)> = inputs.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        let (name, Datum::Tensor(rows)) = runner.run(&inputs).unwrap().remove(0) else { panic!("a tensor") };
        assert!(name == FEATURES && rows.rank() == 2);
        rows.to_f32().unwrap().into_owned()
    }

    fn near(found: &[f32], want: &[f32]) {
        assert!(
            found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5),
            "{found:?}"
        );
    }

    const ROWS: [f32; 12] = [1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12.];

    #[test]
    fn tokens_are_averaged_without_their_padding() {
        let x = Tensor::new(&[2, 3, 2], &ROWS).unwrap();
        for opset in [13, 17, 21] {
            let with = model(DType::F32, &[3, 2], true, opset, relu);
            let mask = Tensor::new(&[2, 3], &[1i64, 1, 0, 1, 0, 0]).unwrap();
            near(&features(&with, &[("x", x.clone()), ("attention_mask", mask)]), &[2., 3., 7., 8.]);
            let without = model(DType::F32, &[3, 2], false, opset, relu);
            near(&features(&without, &[("x", x.clone())]), &[3., 4., 9., 10.]);
            let mut first = without.clone();
            first.inner_mut().set_metadata(POOLING, "cls");
            near(&features(&first, &[("x", x.clone())]), &[1., 2., 7., 8.]);
        }
    }

    #[test]
    fn channels_are_averaged_and_halves_become_whole() {
        let x = Tensor::new(&[1, 3, 2, 2], &ROWS).unwrap();
        near(&features(&model(DType::F32, &[3, 2, 2], false, 17, relu), &[("x", x)]), &[2.5, 6.5, 10.5]);
        let x = Tensor::new(&[2, 2], &[1f32, 2., 3., 4.].map(half::f16::from_f32)).unwrap();
        near(&features(&model(DType::F16, &[2], false, 17, relu), &[("x", x)]), &[1., 2., 3., 4.]);
    }

    #[test]
    fn a_classifier_is_cut_before_its_last_weights() {
        let classifier = |last: &'static str| {
            model(DType::F32, &[2], false, 17, move |g, x| {
                let x = relu(g, x);
                let (w, b) = (g.add_constant("w", ramp(&[2, 3])), g.add_constant("b", ramp(&[3])));
                let y = g.append("z", "MatMul", 13, &Attrs::new(), &[x, w]).unwrap();
                let y = g.append("z", "Add", 14, &Attrs::new(), &[b, y]).unwrap();
                g.append("z", last, 13, &Attrs::new(), &[y]).unwrap()
            })
        };
        let x = Tensor::new(&[1, 2], &[3f32, 4.]).unwrap();
        near(&features(&classifier("Softmax"), &[("x", x.clone())]), &[3., 4.]);
        // What lies behind other functions is no row of scores.
        let made = backbone(&classifier("Tanh"), None).unwrap();
        assert_eq!(made.width(), Some(3));
    }

    #[test]
    fn what_makes_no_features_is_named() {
        let fails = |model: &Model, name: Option<&str>| backbone(model, name).err().unwrap().to_string();
        let deep = model(DType::F32, &[2, 2, 2, 2], false, 17, relu);
        assert!(fails(&deep, None).contains("has 5 axes"));
        let whole = model(DType::F32, &[2], false, 17, |g, x| {
            let y = relu(g, x);
            g.append("n", "Cast", 13, &Attrs::new().int("to", 7), &[y]).unwrap()
        });
        assert!(fails(&whole, Some("n")).contains("no features"));
        assert!(fails(&whole, Some("nowhere")).contains("last nodes"));
    }
}
