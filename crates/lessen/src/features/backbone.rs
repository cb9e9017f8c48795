//! The part of a trained model that is used again: all that leads to its features, one row of numbers an example.

use graph::op::WeightUse;
use graph::{Attrs, DType, Dim, Graph, Node, Tensor, ValueId, tidy};
use shrink::prune::blocks::blocks;

use crate::answer::{Task, selected};
use crate::feed::{Role, role};
use crate::inspect::mul_adds;
use crate::model::POOLING;
use crate::{Error, Model, Result, shapes};

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
    /// The values of the original that they are, or are pooled of.
    pub nodes: Vec<String>,
}

impl Backbone {
    /// Numbers of an example, when the graph says.
    pub fn width(&self) -> Option<usize> {
        let graph = &self.model.inner().graph;
        graph.value(*graph.outputs.first()?).fact.shape()?.last().and_then(Dim::size)
    }
}

/// Where features can be taken.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tap {
    /// The name of the value that they are made of.
    pub node: String,
    /// Is it what a backbone ends with when nothing is said, and not between blocks?
    pub end: bool,
    /// The part of the multiply-adds that lies before it.
    pub share: f64,
    /// Numbers of an example.
    pub columns: usize,
}

/// Cuts a model behind its features: what the named node makes, or what the last weights of a classifier read, or else the
/// vector of a text or image. Vectors of tokens and channels of images are averaged.
///
/// # Errors
/// When there is no such node, or it makes no features.
pub(crate) fn backbone(model: &Model, features: Option<&str>) -> Result<Backbone> {
    let mut opened = Opened::new(model)?;
    let from = opened.end(features)?;
    let first_token = opened.first_token;
    let rows = opened.rows(from, first_token)?;
    opened.backbone(&[from], rows)
}

/// Cuts a model behind these taps, whose features follow one another.
///
/// # Errors
/// As [`backbone`].
pub(crate) fn tapped(model: &Model, taps: &[&Tap]) -> Result<Backbone> {
    let mut opened = Opened::new(model)?;
    let (mut nodes, mut parts) = (Vec::new(), Vec::new());
    for tap in taps {
        let from = opened.end(Some(&tap.node))?;
        // Before the model's end the first token knows little of the others.
        let first_token = opened.first_token && tap.end;
        parts.push(opened.rows(from, first_token)?);
        nodes.push(from);
    }
    let rows = match parts.as_slice() {
        &[rows] => rows,
        parts => opened.graph().append(FEATURES, "Concat", OLDEST, &Attrs::new().int("axis", 1), parts)?,
    };
    opened.backbone(&nodes, rows)
}

/// Where features can be taken of a model: between its blocks, which cost less than the whole, and at its end, which is the
/// last one. The end alone where there are no blocks, or features were chosen before.
///
/// # Errors
/// When the model has no features.
pub(crate) fn taps(model: &Model) -> Result<Vec<Tap>> {
    let mut opened = Opened::new(model)?;
    let end = opened.end(None)?;
    let first_token = opened.first_token;
    let rows = opened.rows(end, first_token)?;
    let graph = opened.graph();
    let node = graph.value(end).name.clone();
    let whole = |columns| vec![Tap { node, end: true, share: 1.0, columns }];
    let Some(columns) = graph.value(rows).fact.shape().and_then(|s| s.last()?.size()) else {
        return Ok(whole(0));
    };
    if graph.find(FEATURES).is_some() {
        return Ok(whole(columns));
    }
    let mut values: Vec<ValueId> = Vec::new();
    for value in blocks(graph).iter().flat_map(|block| [block.input, block.output]) {
        if value != end && graph.producer(value).is_some() && !values.contains(&value) {
            values.push(value);
        }
    }
    values.push(end);
    let Some(shares) = shares(graph, &values) else { return Ok(whole(columns)) };
    let mut found = Vec::new();
    for (&id, share) in values.iter().zip(shares).filter(|(id, _)| **id != end) {
        let value = graph.value(id);
        let axis = |shape: &[Dim]| shape.get(if shape.len() == 4 { 1 } else { shape.len() - 1 })?.size();
        if let Some(columns) = value.fact.shape().and_then(axis) {
            found.push(Tap { node: value.name.clone(), end: false, share, columns });
        }
    }
    found.sort_by(|a, b| a.share.total_cmp(&b.share));
    found.extend(whole(columns));
    Ok(found)
}

/// The part of the last value's multiply-adds that lies before each; none when it cannot be said.
fn shares(graph: &Graph, values: &[ValueId]) -> Option<Vec<f64>> {
    let mut graph = graph.clone();
    shapes::bind(&mut graph, &[]).ok()?;
    let work: Vec<_> = graph.nodes().rev().map(|(_, node)| (node, mul_adds(&graph, node) as f64)).collect();
    let before = |value: &ValueId| {
        let mut needed = vec![false; graph.value_count()];
        needed[value.index()] = true;
        let mut sum = 0f64;
        for (node, work) in &work {
            if node.outputs.iter().flatten().any(|v| needed[v.index()]) {
                node.reads().for_each(|v| needed[v.index()] = true);
                sum += work;
            }
        }
        sum
    };
    let all: Vec<f64> = values.iter().map(before).collect();
    let whole = all.last().copied().filter(|whole| *whole > 0.0)?;
    Some(all.iter().map(|part| part / whole).collect())
}

/// A model that is about to be cut.
struct Opened {
    model: Model,
    mask: Option<ValueId>,
    /// Does the first token stand for a text?
    first_token: bool,
}

impl Opened {
    fn new(model: &Model) -> Result<Opened> {
        let mut model = model.clone();
        if model.inner().opsets.get("").is_some_and(|version| *version < OLDEST) {
            model.upgrade(17)?;
        }
        let inputs: Vec<String> = model.inputs().iter().map(|(name, _)| (*name).to_owned()).collect();
        let first_token = model.inner().metadata(POOLING) == Some("cls");
        let is_mask = |name: &&String| role(name, inputs.len()) == Some(Role::Mask);
        let graph = &mut model.inner_mut().graph;
        graph.infer()?;
        let mask = inputs.iter().find(is_mask).and_then(|name| graph.find(name));
        Ok(Opened { model, mask, first_token })
    }

    fn graph(&mut self) -> &mut Graph {
        &mut self.model.inner_mut().graph
    }

    /// The value of this name, or what the model ends with.
    fn end(&mut self, features: Option<&str>) -> Result<ValueId> {
        let graph = self.graph();
        let Some(name) = features else {
            let outputs: Vec<_> = graph
                .outputs
                .iter()
                .map(|&id| (graph.value(id).name.as_str(), &graph.value(id).fact))
                .collect();
            let answer = selected(&outputs, Task::Similarity)?;
            let answer = graph.find(answer).ok_or_else(|| Error::input("the model's answer has no name"))?;
            return Ok(read_by_last_weights(graph, answer).unwrap_or(answer));
        };
        named(graph, name)
    }

    /// One row an example of what this value holds.
    fn rows(&mut self, from: ValueId, first_token: bool) -> Result<ValueId> {
        let mask = self.mask;
        pooled(self.graph(), from, mask, first_token)
    }

    /// The model up to these rows, which these values have become.
    fn backbone(mut self, from: &[ValueId], rows: ValueId) -> Result<Backbone> {
        let graph = self.graph();
        let nodes = from.iter().map(|&id| graph.value(id).name.clone()).collect();
        claim(graph, rows, FEATURES)?;
        let whole = self.model.clone();
        answering(self.graph(), &[rows]);
        Ok(Backbone { model: self.model, whole, nodes })
    }
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
            // Sums of products of codes become numbers, which scales are multiplied with.
            ("Mul", _) => {
                [node.input(0), node.input(1)].into_iter().flatten().find(|&id| are_scaled_sums(graph, id))?
            }
            ("MatMulInteger" | "ConvInteger" | "QLinearMatMul" | "QLinearConv", _) => {
                let weight = if node.kind().starts_with("QLinear") { 3 } else { 1 };
                node.input(weight).filter(|&id| is_weight(graph, id))?;
                let (_, coded) = graph.producer(node.input(0)?)?;
                return match coded.kind() {
                    "DynamicQuantizeLinear" | "QuantizeLinear" => coded.input(0),
                    _ => None,
                };
            }
            (
                "Softmax" | "LogSoftmax" | "Sigmoid" | "Identity" | "Reshape" | "Flatten" | "Squeeze"
                | "DequantizeLinear" | "QuantizeLinear" | "Cast",
                _,
            ) => node.input(0)?,
            _ => return None,
        };
    }
}

/// Is a value the sums of products of codes, as numbers?
fn are_sums(graph: &Graph, id: ValueId) -> bool {
    let cast = graph.producer(id).filter(|(_, node)| node.kind() == "Cast");
    let sums = cast.and_then(|(_, node)| graph.producer(node.input(0)?));
    sums.is_some_and(|(_, node)| matches!(node.kind(), "MatMulInteger" | "ConvInteger"))
}

/// The same, times a scale or not.
fn are_scaled_sums(graph: &Graph, id: ValueId) -> bool {
    let scaled = graph.producer(id).filter(|(_, node)| node.kind() == "Mul");
    are_sums(graph, id) || scaled.is_some_and(|(_, node)| node.reads().any(|id| are_sums(graph, id)))
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
    let decoded = graph.producer(id).filter(|(_, node)| node.kind() == "DequantizeLinear");
    let id = decoded.map_or(Some(id), |(_, node)| node.input(0));
    id.is_some_and(|id| graph.constant(id).is_some())
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
        // In 8 bits.
        let small = model(DType::F32, &[8], false, 17, |g, x| {
            let x = relu(g, x);
            let y = coded(g, x);
            let b = g.add_constant("b", ramp(&[8]));
            let y = g.append("z", "Add", 14, &Attrs::new(), &[y, b]).unwrap();
            g.append("z", "Softmax", 13, &Attrs::new(), &[y]).unwrap()
        });
        assert_eq!(backbone(&small, None).unwrap().nodes, ["y"]);
        // What is cast and multiplied need not be sums.
        let gated = model(DType::F32, &[8], false, 17, |g, x| {
            let y = plain(g, x);
            let gate = g.append("h", "Sigmoid", 13, &Attrs::new(), &[y]).unwrap();
            let gate = g.append("f", "Cast", 13, &Attrs::new().int("to", 1), &[gate]).unwrap();
            g.append("z", "Mul", 14, &Attrs::new(), &[x, gate]).unwrap()
        });
        assert_eq!(backbone(&gated, None).unwrap().nodes, ["z"]);
        // What lies behind other functions is no row of scores.
        let made = backbone(&classifier("Tanh"), None).unwrap();
        assert_eq!(made.width(), Some(3));
    }

    /// A product in f32.
    fn plain(g: &mut Graph, x: ValueId) -> ValueId {
        let w = g.add_constant("w", ramp(&[8, 8]));
        g.append("m", "MatMul", 13, &Attrs::new(), &[x, w]).unwrap()
    }

    /// A product of 8-bit codes.
    fn coded(g: &mut Graph, x: ValueId) -> ValueId {
        let w = g.add_constant("w", Tensor::new(&[8, 8], &[3i8; 64]).unwrap());
        let op = graph::op::Reader { attrs: &Attrs::new(), version: 13, inputs: 1, outputs: 3 };
        let op = graph::ops::read("", "DynamicQuantizeLinear", &op).unwrap();
        let codes = g.add_with_outputs("q", Node::new(op, vec![Some(x)]), 3, None).unwrap().1;
        let none = Attrs::new();
        let zero = g.add_constant("zero", Tensor::scalar(0i8));
        let y = g.append("i", "MatMulInteger", 13, &none, &[codes[0], w, codes[2], zero]).unwrap();
        let y = g.append("f", "Cast", 13, &Attrs::new().int("to", 1), &[y]).unwrap();
        g.append("m", "Mul", 14, &none, &[y, codes[1]]).unwrap()
    }

    /// Three blocks with a product each, and a last one to two numbers.
    fn deep(product: fn(&mut Graph, ValueId) -> ValueId) -> Model {
        model(DType::F32, &[8], false, 17, |g, x| {
            let mut x = relu(g, x);
            for _ in 0..3 {
                let y = product(g, x);
                let y = g.append("t", "Tanh", 13, &Attrs::new(), &[y]).unwrap();
                x = g.append("a", "Add", 14, &Attrs::new(), &[x, y]).unwrap();
            }
            let w = g.add_constant("w", ramp(&[8, 2]));
            g.append("z", "MatMul", 13, &Attrs::new(), &[x, w]).unwrap()
        })
    }

    #[test]
    fn between_blocks_lie_taps_that_cost_less() {
        let found = taps(&deep(coded)).unwrap();
        let about: Vec<f64> = found.iter().map(|t| (3.0 * t.share).round()).collect();
        assert_eq!(about, [0.0, 1.0, 2.0, 3.0], "in 8 bits");
        let deep = deep(plain);
        let found = taps(&deep).unwrap();
        let about: Vec<(bool, f64, usize)> =
            found.iter().map(|t| (!t.end, (3.0 * t.share).round(), t.columns)).collect();
        assert_eq!(about, [(true, 0.0, 8), (true, 1.0, 8), (true, 2.0, 8), (false, 3.0, 8)]);
        let several = tapped(&deep, &[&found[0], &found[1]]).unwrap();
        assert_eq!((several.width(), several.nodes.len()), (Some(16), 2));
        let graph = &several.model.inner().graph;
        assert_eq!(graph.nodes().count(), 1 + 3 + 1, "a block of three and the joint");
        // Of what was tapped once, the features stay what they are.
        let again = taps(&several.whole).unwrap();
        assert_eq!(again.len(), 1);
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
