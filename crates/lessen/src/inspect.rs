//! What a model is made of, what it costs to run, and what would make it smaller.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use graph::op::{Facts, WeightKind};
use graph::ops::opaque::Opaque;
use graph::{DType, Fact, Graph, Node, Tensor, tidy};
use serde::Serialize;

use crate::shapes::{self, Shape};
use crate::{Cpu, Model, Result};

/// What [`inspect`] finds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Where the model was opened.
    pub file: Option<String>,
    /// Bytes of that file, or of all files of that folder.
    pub file_bytes: Option<u64>,
    /// Name and version of the program that made the model.
    pub producer: String,
    /// Version of each operator domain.
    pub opsets: BTreeMap<String, i64>,
    /// What must be given.
    pub inputs: Vec<Port>,
    /// What comes back.
    pub outputs: Vec<Port>,
    /// The operators, the most frequent first; those in bodies of other operators included.
    pub operators: Vec<Operator>,
    /// Elements of all weights.
    pub parameters: u64,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// The weights by element type.
    pub weights_by_type: Vec<WeightType>,
    /// All weights, the biggest first.
    pub weights: Vec<Weight>,
    /// What one run costs, when all sizes are known.
    pub cost: Option<Cost>,
    /// Why the cost is not known.
    pub cost_unknown: Option<String>,
    /// What can make the weights smaller.
    pub shrinkers: Vec<Shrinker>,
    /// Free entries of the model.
    pub metadata: BTreeMap<String, String>,
}

/// An input or output.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Element type and shape, such as `float[batch, 3, 224, 224]`.
    pub fact: String,
}

/// How often an operator stands in the model.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Operator {
    /// Its domain; "" is ONNX's own.
    pub domain: String,
    /// Its name.
    pub name: String,
    /// How often.
    pub count: usize,
    /// Can it be run here?
    pub supported: bool,
}

/// The weights of one element type.
#[derive(Clone, Debug, Serialize)]
pub struct WeightType {
    /// The type.
    pub dtype: String,
    /// Number of weights.
    pub count: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One weight.
#[derive(Clone, Debug, Serialize)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
}

/// What one run costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The shapes of the inputs that this holds for.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Multiplications with an addition each, of operators outside bodies.
    pub multiply_adds: u64,
    /// The most bytes of activations alive at once, when every value has memory of its own. Estimated from the
    /// shapes, not measured.
    pub peak_activation_bytes: u64,
    /// Nodes whose shapes are known only when the model runs; they are not counted.
    pub nodes_not_counted: usize,
}

/// A way to make weights smaller.
#[derive(Clone, Debug, Serialize)]
pub struct Shrinker {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Number of weights it applies to.
    pub weights: usize,
    /// Their bytes now.
    pub bytes: u64,
    /// Their bytes afterwards, with their scales. Estimated.
    pub bytes_after: u64,
}

/// (name, what it does, weights it applies to)
const SHRINKERS: [(&str, &str, &[WeightKind]); 3] = [
    ("int8-dynamic", "8-bit weights, activations quantised as they come", &[WeightKind::MatMul]),
    (
        "int8-static",
        "8-bit weights and activations, ranges from calibration data",
        &[WeightKind::MatMul, WeightKind::Conv],
    ),
    ("int8-rows", "8-bit rows of tables that are looked up", &[WeightKind::Embedding]),
];

/// Looks a model over. `asked` gives sizes that the model leaves open; see [`shapes::bind`].
///
/// # Errors
/// When `asked` does not fit the model, or the graph breaks a rule.
pub fn inspect(model: &Model, asked: &[Shape], cpu: &Cpu) -> Result<Inspection> {
    let inner = model.inner();
    let graph = &inner.graph;
    let port = |(name, fact): (&str, &Fact)| Port { name: name.into(), fact: fact.to_string() };
    let mut counts = BTreeMap::new();
    count(graph, &mut counts);
    let mut operators: Vec<Operator> = counts
        .into_iter()
        .map(|((domain, name), (count, supported))| Operator { domain, name, count, supported })
        .collect();
    operators.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));

    let mut weights = Vec::new();
    collect(graph, &mut weights);
    weights.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    let mut by_type: BTreeMap<String, WeightType> = BTreeMap::new();
    for weight in &weights {
        let row = by_type.entry(weight.dtype.clone()).or_insert_with(|| WeightType {
            dtype: weight.dtype.clone(),
            count: 0,
            elements: 0,
            bytes: 0,
        });
        row.count += 1;
        row.elements += weight.shape.iter().product::<usize>() as u64;
        row.bytes += weight.bytes;
    }
    let mut weights_by_type: Vec<WeightType> = by_type.into_values().collect();
    weights_by_type.sort_by_key(|t| std::cmp::Reverse(t.bytes));

    let (cost, cost_unknown) = match cost(graph, asked, cpu) {
        Ok(cost) => (Some(cost), None),
        Err(error) if asked.is_empty() => (None, Some(error.to_string())),
        Err(error) => return Err(error),
    };
    let file = model.path();
    Ok(Inspection {
        file: file.map(|p| p.display().to_string()),
        file_bytes: file.map(bytes_of).transpose()?,
        producer: format!("{} {}", inner.producer.0, inner.producer.1).trim().into(),
        opsets: inner.opsets.iter().map(|(d, v)| (full_domain(d).into(), *v)).collect(),
        inputs: model.inputs().into_iter().map(port).collect(),
        outputs: model.outputs().into_iter().map(port).collect(),
        operators,
        parameters: weights_by_type.iter().map(|t| t.elements).sum(),
        weight_bytes: weights_by_type.iter().map(|t| t.bytes).sum(),
        weights_by_type,
        weights,
        cost,
        cost_unknown,
        shrinkers: shrinkers(graph, cpu)?,
        metadata: inner.metadata.iter().cloned().collect(),
    })
}

/// The name of a domain, in full.
pub fn full_domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

/// Bytes of all files that a model lies in.
pub(crate) fn bytes_of(path: &Path) -> Result<u64> {
    let size =
        |file: PathBuf| std::fs::metadata(&file).map(|data| data.len()).map_err(crate::Error::io(file));
    format::files(path)?.into_iter().map(size).sum()
}

fn count(graph: &Graph, counts: &mut BTreeMap<(String, String), (usize, bool)>) {
    for (_, node) in graph.nodes() {
        let supported = !node.op.as_any().is::<Opaque>();
        let key = (node.op.domain().to_owned(), node.op.name().to_owned());
        counts.entry(key).or_insert((0, supported)).0 += 1;
        for body in node.op.bodies() {
            count(body, counts);
        }
    }
}

/// The weights of a graph and of the bodies in it: constants that are no sizes, indices or single numbers.
fn collect(graph: &Graph, weights: &mut Vec<Weight>) {
    for (_, value) in graph.values() {
        let Some(tensor) = &value.constant else { continue };
        if matches!(tensor.dtype(), DType::I64 | DType::Bool | DType::String) || tensor.len() < 2 {
            continue;
        }
        weights.push(Weight {
            name: value.name.clone(),
            dtype: tensor.dtype().to_string(),
            shape: tensor.shape().to_vec(),
            bytes: tensor.bytes().len() as u64,
        });
    }
    for (_, node) in graph.nodes() {
        for body in node.op.bodies() {
            collect(body, weights);
        }
    }
}

/// What one run costs once all sizes are bound; of the graph as it runs.
///
/// # Errors
/// When a size is neither given nor can be guessed.
pub fn cost(graph: &Graph, asked: &[Shape], cpu: &Cpu) -> Result<Cost> {
    let mut graph = graph.clone();
    shapes::bind(&mut graph, asked)?;
    tidy::run(&mut graph, tidy::RUN, cpu)?;
    let inputs = graph.inputs.iter().map(|&id| graph.value(id)).filter(|v| v.constant.is_none());
    let shapes = inputs.filter_map(|v| Some((v.name.clone(), v.fact.sizes()?))).collect();

    let readers = graph.readers();
    let mut waits: Vec<usize> = readers.iter().map(Vec::len).collect();
    for output in &graph.outputs {
        waits[output.index()] += 1;
    }
    let bytes = |id: graph::ValueId| {
        graph.value(id).constant.is_none().then(|| graph.value(id).fact.bytes()).flatten()
    };
    let mut alive: u64 = graph.inputs.iter().filter_map(|&id| bytes(id)).map(|b| b as u64).sum();
    let (mut peak, mut multiply_adds, mut nodes_not_counted) = (alive, 0u64, 0);
    for (_, node) in graph.nodes() {
        let known = |id: graph::ValueId| graph.value(id).fact.sizes().is_some();
        let values = || node.inputs.iter().chain(&node.outputs).flatten();
        let counted = node.op.bodies().is_empty() && values().all(|&id| known(id));
        nodes_not_counted += usize::from(!counted);
        multiply_adds = multiply_adds.saturating_add(mul_adds(&graph, node));
        alive += node.outputs.iter().flatten().filter_map(|&v| bytes(v)).map(|b| b as u64).sum::<u64>();
        peak = peak.max(alive);
        for value in node.reads() {
            let wait = &mut waits[value.index()];
            *wait -= 1;
            if *wait == 0 {
                alive -= bytes(value).unwrap_or(0) as u64;
            }
        }
        for &value in node.outputs.iter().flatten().filter(|v| waits[v.index()] == 0) {
            alive -= bytes(value).unwrap_or(0) as u64;
        }
    }
    Ok(Cost { shapes, multiply_adds, peak_activation_bytes: peak, nodes_not_counted })
}

/// Multiplications with an addition each of a node, when its shapes are known.
pub(crate) fn mul_adds(graph: &Graph, node: &Node) -> u64 {
    let fact = |id: graph::ValueId| &graph.value(id).fact;
    let facts: Vec<Option<&Fact>> = node.inputs.iter().map(|id| id.map(fact)).collect();
    let outputs: Vec<Fact> =
        node.outputs.iter().map(|id| id.map(fact).cloned().unwrap_or_default()).collect();
    node.op.mul_adds(&Facts::new(&facts, outputs.len()), &outputs)
}

fn shrinkers(graph: &Graph, cpu: &Cpu) -> Result<Vec<Shrinker>> {
    let mut graph = graph.clone();
    tidy::run(&mut graph, tidy::PORTABLE, cpu)?;
    let weights = shrink::weights::weights(&graph)?;
    Ok(SHRINKERS
        .iter()
        .filter_map(|&(name, what, kinds)| {
            let mut seen = HashSet::new();
            let of = weights.iter().filter(|w| kinds.contains(&w.used.kind) && seen.insert(w.value));
            let tensors: Vec<_> =
                of.filter_map(|w| Some((graph.constant(w.value)?, w.used.out_axis))).collect();
            (!tensors.is_empty()).then(|| Shrinker {
                name,
                what,
                weights: tensors.len(),
                bytes: tensors.iter().map(|(t, _)| t.bytes().len() as u64).sum(),
                // A 4-byte scale for each output channel beside one byte an element.
                bytes_after: tensors.iter().map(|(t, axis)| (t.len() + 4 * channels(t, *axis)) as u64).sum(),
            })
        })
        .collect())
}

fn channels(tensor: &Tensor, axis: i64) -> usize {
    graph::infer::axis(axis, tensor.rank()).map_or(1, |axis| tensor.shape()[axis])
}
