//! Low rank: one product becomes two smaller ones. Products and convolutions are projected on the outputs that matter
//! ([`project`]), convolutions can lose input channels as well ([`tucker`]), tables of embeddings become a narrow table
//! and a product. All of it is plain ONNX, and the factors are weights that can be quantized after.

pub mod project;
pub mod tucker;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use graph::ir::Value;
use graph::op::{Reader, WeightKind};
use graph::{Attrs, Graph, Node, NodeId, Tensor, ValueId};
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use self::project::{Projection, product};
use self::tucker::Tucker;
use crate::gram::Gram;
use crate::matrix::{Layout, Matrix};
use crate::pass::Context;
use crate::prune::vocabulary;
use crate::walk::{Example, walk};
use crate::weights::{Weight, weights};
use crate::{Error, Result};

/// The rank of a weight. In a plan: `rank-64`, `energy-0.99`, `tucker-16-32`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Form {
    /// So many inner outputs.
    Rank(usize),
    /// As many as keep this share of the energy of the outputs.
    Energy(f64),
    /// Inner inputs and inner outputs of a convolution.
    Tucker([usize; 2]),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Rank(rank) => write!(f, "rank-{rank}"),
            Form::Energy(share) => write!(f, "energy-{share}"),
            Form::Tucker([inputs, outputs]) => write!(f, "tucker-{inputs}-{outputs}"),
        }
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Form, String> {
        let rank = |text: &str| text.parse::<usize>().ok().filter(|r| *r > 0);
        let form = match text.split_once('-') {
            Some(("rank", r)) => rank(r).map(Form::Rank),
            Some(("energy", s)) => s.parse().ok().filter(|s| *s > 0.0 && *s <= 1.0).map(Form::Energy),
            Some(("tucker", r)) => {
                r.split_once('-').and_then(|(i, o)| Some(Form::Tucker([rank(i)?, rank(o)?])))
            }
            _ => None,
        };
        form.ok_or_else(|| format!("{text:?} is no rank; say rank-64, energy-0.99 or tucker-16-32"))
    }
}

impl From<Form> for String {
    fn from(form: Form) -> String {
        form.to_string()
    }
}

impl TryFrom<String> for Form {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Form, String> {
        text.parse()
    }
}

/// A weight that becomes a product of smaller ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The node that uses the weight.
    pub node: String,
    /// The weight.
    pub weight: String,
    /// Its rank.
    pub form: Form,
}

/// What a weight becomes: applied from the last to the first.
struct Factors {
    /// The first of two, or of three.
    first: Matrix,
    core: Option<Matrix>,
    last: Matrix,
    error: f64,
}

impl Factors {
    fn new(w: &Matrix, gram: Option<&Gram>, form: Form, channels: usize, cpu: &Cpu) -> Result<Factors> {
        if let Form::Tucker(ranks) = form {
            let tucker = Tucker::new(w, channels, gram, ranks)?;
            let back = tucker.product();
            let error = gram.map_or_else(
                || w.distance(&back),
                |gram| {
                    let (harm, energy) = gram.harm(cpu, w, &back);
                    if energy > 0.0 { harm / energy } else { 0.0 }
                },
            );
            return Ok(Factors { first: tucker.first, core: Some(tucker.core), last: tucker.last, error });
        }
        let projection = Projection::new(w, gram)?;
        let rank = rank_in(form, &projection);
        let (last, first) = projection.factors(w, rank);
        Ok(Factors { first, core: None, last, error: projection.error(rank) })
    }

    fn product(&self) -> Matrix {
        match &self.core {
            Some(core) => {
                Tucker { first: self.first.clone(), core: core.clone(), last: self.last.clone() }.product()
            }
            None => product(&self.last, &self.first),
        }
    }
}

fn rank_in(form: Form, projection: &Projection) -> usize {
    match form {
        Form::Energy(share) => projection.rank_for(share),
        Form::Rank(rank) | Form::Tucker([_, rank]) => rank.min(projection.values.len()).max(1),
    }
}

/// As [`factor`], on the calibration examples.
///
/// # Errors
/// As there.
pub fn apply(graph: &mut Graph, cuts: &[Cut], cx: &Context) -> Result<Vec<f64>> {
    factor(graph, cuts, cx.examples()?, cx.cpu)
}

/// Puts products of smaller weights in the place of weights, in the order of the model: each is made for the inputs
/// that those before it give. Without examples only the weights themselves are looked at. Gives for each cut the
/// relative squared error of what the weight makes (of the weight itself, where its inputs are not known). A weight that
/// several nodes use changes at all of them.
///
/// # Errors
/// [`Error::Plan`] when a cut names no weight of the model; [`Error::Form`] when a weight cannot be written like this;
/// when the model cannot be run.
pub fn factor(graph: &mut Graph, cuts: &[Cut], examples: Vec<Example>, cpu: &Cpu) -> Result<Vec<f64>> {
    let all = weights(graph)?;
    let mut wanted: Vec<&Weight> = Vec::new();
    let mut forms: HashMap<ValueId, Form> = HashMap::new();
    for cut in cuts {
        let weight = all.iter().find(|w| w.name == cut.node && graph.value(w.value).name == cut.weight);
        let weight = weight.ok_or_else(|| {
            Error::Plan(format!("the model has no weight {:?} at node {:?}", cut.weight, cut.node))
        })?;
        if let Err(what) = fits(graph, &all, weight, cut.form) {
            return Err(Error::Form(format!("weight {:?} at node {:?}: {what}", cut.weight, cut.node)));
        }
        if forms.insert(weight.value, cut.form).is_some() {
            return Err(Error::Plan(format!("the weight {:?} is named twice", cut.weight)));
        }
        wanted.push(weight);
    }
    let (tables, products): (Vec<&Weight>, Vec<&Weight>) =
        wanted.iter().copied().partition(|w| w.used.kind == WeightKind::Embedding);
    let mut made: HashMap<ValueId, Factors> = HashMap::new();
    let of = |w: &Weight, m: &Matrix, gram: Option<&Gram>, graph: &Graph| {
        Factors::new(m, gram, forms[&w.value], channels(graph, w), cpu)
    };
    for table in tables {
        let counts = vocabulary::counts(graph, table, &examples, cpu)?;
        made.insert(table.value, table_factors(graph, table, &counts, forms[&table.value])?);
    }
    if !examples.is_empty() && !products.is_empty() {
        walk(graph, &products, examples, cpu, &mut |stop| {
            let factors = of(stop.weight, &stop.matrix, stop.grams.first(), graph)?;
            let whole = factors.product();
            made.insert(stop.weight.value, factors);
            Ok(Some(whole))
        })?;
    }
    for weight in products {
        if !made.contains_key(&weight.value)
            && let Some(layout) = Layout::of(graph, weight)
            && let Some(tensor) = graph.constant(weight.value)
        {
            made.insert(weight.value, of(weight, &layout.read(tensor)?, None, graph)?);
        }
    }
    for weight in all.iter().filter(|w| made.contains_key(&w.value)) {
        rewrite(graph, weight, &made[&weight.value])?;
    }
    graph.sort()?;
    graph.infer()?;
    graph.check()?;
    Ok(wanted.iter().map(|w| made.get(&w.value).map_or(0.0, |f| f.error)).collect())
}

/// Input channels of a convolution; all inputs of others.
fn channels(graph: &Graph, weight: &Weight) -> usize {
    let shape = graph.constant(weight.value).map(Tensor::shape).unwrap_or_default();
    shape.get(1).copied().unwrap_or(0)
}

/// Why a weight cannot be factored, when it cannot.
pub(crate) fn fits(
    graph: &Graph,
    all: &[Weight],
    weight: &Weight,
    form: Form,
) -> std::result::Result<(), String> {
    let own = Layout::of(graph, weight).ok_or("it is no matrix")?;
    let users: Vec<&Weight> = all.iter().filter(|w| w.value == weight.value).collect();
    let readers = graph.readers()[weight.value.index()].len();
    if readers > users.len() || graph.outputs.contains(&weight.value) {
        return Err("other nodes read it, too".into());
    }
    for user in users {
        let node = graph.node(user.node).ok_or("its node is gone")?;
        let attrs = node.op.attrs();
        let plain = node.op.domain().is_empty();
        let is = match node.kind() {
            "MatMul" => user.used.input == 1,
            "Gemm" => user.used.input == 1 && attrs.int_or("transA", 0).is_ok_and(|t| t == 0),
            "Conv" => own.groups == 1,
            "Gather" => attrs.int_or("axis", 0).is_ok_and(|a| a == 0),
            _ => false,
        };
        if !is || !plain {
            return Err(format!(
                "it is used by a {} that cannot be split; products, convolutions of one group and lookups by row can",
                node.kind()
            ));
        }
        if Layout::of(graph, user).as_ref() != Some(&own) || user.used.kind != weight.used.kind {
            return Err("it is used in several ways".into());
        }
        if matches!(form, Form::Tucker(_)) && node.kind() != "Conv" {
            return Err("only convolutions have inner inputs; say a rank".into());
        }
    }
    Ok(())
}

/// A narrow table and what makes its rows wide again. A row that the examples never look up counts, too.
fn table_factors(graph: &Graph, table: &Weight, counts: &[u64], form: Form) -> Result<Factors> {
    let name = || graph.value(table.value).name.clone();
    let layout = Layout::of(graph, table);
    let (Some(layout), Some(tensor)) = (layout, graph.constant(table.value)) else {
        return Err(Error::Form(format!("table {:?} is no matrix", name())));
    };
    let matrix = layout.read(tensor)?;
    let mean = (counts.iter().sum::<u64>() as f64 / matrix.rows.max(1) as f64).max(f64::MIN_POSITIVE);
    let counts: Vec<f64> =
        (0..matrix.rows).map(|i| counts.get(i).map_or(0.0, |&c| c as f64 / mean) + 1.0).collect();
    let projection = Projection::of_table(&matrix, &counts)?;
    let rank = rank_in(form, &projection);
    let (last, first) = projection.table_factors(&matrix, rank);
    Ok(Factors { first, core: None, last, error: projection.error(rank) })
}

/// Splits one node.
fn rewrite(graph: &mut Graph, weight: &Weight, factors: &Factors) -> Result<()> {
    let Some(node) = graph.node(weight.node).cloned() else { return Ok(()) };
    let name = graph.value(weight.value).name.clone();
    let shape = graph.constant(weight.value).map(|t| t.shape().to_vec()).unwrap_or_default();
    let mut split = Split { graph, at: weight.node, name };
    match node.kind() {
        "Gather" => {
            let Some(y) = node.output(0) else { return Ok(()) };
            let narrow = split.constant("u", &[factors.last.rows, factors.last.cols], &factors.last.data)?;
            let wide = split.constant("v", &[factors.first.rows, factors.first.cols], &factors.first.data)?;
            split.after(narrow, wide, y)
        }
        "Conv" => {
            let ends = |m: &Matrix| -> Vec<usize> {
                [m.rows, m.cols]
                    .into_iter()
                    .chain(std::iter::repeat_n(1, shape.len().saturating_sub(2)))
                    .collect()
            };
            let plain = || Attrs::new();
            let window = node.op.clone();
            let Some(mut x) = node.input(0) else { return Ok(()) };
            let middle = match &factors.core {
                Some(core) => {
                    let first = split.constant("v", &ends(&factors.first), &factors.first.data)?;
                    x = split.before(Node::new(conv(plain())?, vec![Some(x), Some(first)]))?;
                    (core, "g", factors.first.rows)
                }
                None => (&factors.first, "v", shape.get(1).copied().unwrap_or(0)),
            };
            let (inner, end, channels) = middle;
            let sizes: Vec<usize> =
                [inner.rows, channels].iter().chain(shape.get(2..).unwrap_or_default()).copied().collect();
            let inner = split.constant(end, &sizes, &inner.data)?;
            x = split.before(Node::new(window, vec![Some(x), Some(inner)]))?;
            let last = split.constant("u", &ends(&factors.last), &factors.last.data)?;
            split.replace(x, last, Some(conv(plain())?));
            Ok(())
        }
        kind => {
            let turned = kind == "MatMul" || node.op.attrs().int_or("transB", 0)? == 0;
            let Some(x) = node.input(0) else { return Ok(()) };
            let first = factors.first.transposed();
            let first = split.constant("v", &[first.rows, first.cols], &first.data)?;
            let x = split.before(Node::new(onnx("MatMul", Attrs::new(), 2)?, vec![Some(x), Some(first)]))?;
            let last = if turned { factors.last.transposed() } else { factors.last.clone() };
            let last = split.constant("u", &[last.rows, last.cols], &last.data)?;
            split.replace(x, last, None);
            Ok(())
        }
    }
}

fn onnx(kind: &str, attrs: Attrs, inputs: usize) -> Result<std::sync::Arc<dyn graph::Op>> {
    Ok(graph::ops::read("", kind, &Reader { attrs: &attrs, version: 13, inputs, outputs: 1 })?)
}

fn conv(attrs: Attrs) -> Result<std::sync::Arc<dyn graph::Op>> {
    onnx("Conv", attrs, 2)
}

/// A node that is being split.
struct Split<'a> {
    graph: &'a mut Graph,
    at: NodeId,
    name: String,
}

impl Split<'_> {
    /// A factor; nodes that share the weight share its factors.
    fn constant(&mut self, end: &str, shape: &[usize], data: &[f32]) -> Result<ValueId> {
        let (name, tensor) = (format!("{}.{end}", self.name), Tensor::new(shape, data)?);
        if let Some(id) = self.graph.find(&name).filter(|id| self.graph.constant(*id) == Some(&tensor)) {
            return Ok(id);
        }
        Ok(self.graph.add_constant(&name, tensor))
    }

    /// A new node before the one that is split.
    fn before(&mut self, node: Node) -> Result<ValueId> {
        let name = format!("{}.x", self.name);
        Ok(self.graph.add_with_outputs(&name, node, 1, Some(self.at))?.1[0])
    }

    /// The node itself, on another input and weight.
    fn replace(&mut self, x: ValueId, weight: ValueId, op: Option<std::sync::Arc<dyn graph::Op>>) {
        self.graph.set_input(self.at, 0, Some(x));
        self.graph.set_input(self.at, 1, Some(weight));
        if let (Some(op), Some(node)) = (op, self.graph.node_mut(self.at)) {
            node.op = op;
        }
    }

    /// The node looks up `narrow`, and a product with `wide` makes `y` of it.
    fn after(&mut self, narrow: ValueId, wide: ValueId, y: ValueId) -> Result<()> {
        self.graph.set_input(self.at, 0, Some(narrow));
        let name = self.graph.fresh_name(&format!("{}.x", self.name));
        let rows = self.graph.add_value(Value::named(&name))?;
        self.graph.set_output(self.at, 0, Some(rows))?;
        let mut node = Node::new(onnx("MatMul", Attrs::new(), 2)?, vec![Some(rows), Some(wide)]);
        node.name = format!("{}.y", self.name);
        node.outputs = vec![Some(y)];
        self.graph.add_node(node)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
