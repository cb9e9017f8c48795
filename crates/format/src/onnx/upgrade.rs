//! Raises the version of ONNX's own operators that a model uses.
//! <https://github.com/onnx/onnx/blob/main/docs/Changelog.md>

use std::sync::Arc;

use graph::op::Reader;
use graph::ops::call::Call;
use graph::{Attr, Attrs, DType, Error, Graph, Model, Node, NodeId, Op, Result, Tensor, ValueId, ops};
use half::{bf16, f16};

/// Versions that models are read in.
const READ: std::ops::RangeInclusive<i64> = 7..=28;
/// Versions that models are raised to.
const TO: std::ops::RangeInclusive<i64> = 13..=28;

/// The first version of the operators that needs each version of the file format.
const IR: &[(i64, i64)] = &[
    (7, 3),
    (9, 4),
    (10, 5),
    (11, 6),
    (12, 7),
    (15, 8),
    (19, 9),
    (21, 10),
    (23, 11),
    (24, 12),
    (25, 13),
    (28, 14),
];

/// A step between two versions of an operator: its name, the version that is new, and how a node gets there.
type Rule = (&'static str, i64, fn(&mut Step) -> Result<()>);

/// All steps at which an operator changed its form or its meaning; other steps only added types or attributes.
static RULES: &[Rule] = &[
    ("BatchNormalization", 9, batch_norm_per_channel),
    ("BatchNormalization", 14, batch_norm_does_not_train),
    ("Clip", 11, clip),
    ("DFT", 20, dft),
    ("Dropout", 10, dropout_mask),
    ("Dropout", 12, dropout_ratio),
    ("Erf", 13, |s| s.no_integers()),
    ("GridSample", 20, grid_sample),
    ("GroupNormalization", 21, group_norm_per_channel),
    ("Hardmax", 13, one_axis),
    ("LogSoftmax", 13, one_axis),
    ("Pad", 11, pad),
    ("ReduceL1", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceL2", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceLogSum", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceLogSum", 28, |s| s.no_integers()),
    ("ReduceLogSumExp", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceLogSumExp", 28, |s| s.no_integers()),
    ("ReduceMax", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceMean", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceMin", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceProd", 18, |s| s.ints_to_input("axes", 1)),
    ("ReduceSum", 13, |s| s.ints_to_input("axes", 1)),
    ("ReduceSumSquare", 18, |s| s.ints_to_input("axes", 1)),
    ("Resize", 11, resize_coordinates),
    ("Resize", 13, resize_either),
    ("RoiAlign", 16, |s| s.default("coordinate_transformation_mode", "output_half_pixel")),
    ("Scan", 9, |_| Err(Error::unsupported("a Scan over batches, as it was before version 9"))),
    ("Scatter", 11, |s| s.rename("ScatterElements")),
    ("Slice", 10, slice),
    ("Softmax", 13, one_axis),
    ("Split", 13, |s| s.ints_to_input("split", 1)),
    ("Split", 18, split_count),
    ("Squeeze", 13, |s| s.ints_to_input("axes", 1)),
    ("TopK", 10, top_k),
    ("Unsqueeze", 13, |s| s.ints_to_input("axes", 1)),
    ("Upsample", 9, upsample_scales),
    ("Upsample", 10, upsample_is_resize),
];

/// Operators that onnxruntime reads, and its optimizer writes, in models of versions that ONNX did not have them in
/// yet, with the version that has them.
const EARLY: &[(&str, i64)] = &[("LayerNormalization", 17)];

/// The version of ONNX's own operators that a model has to name for its nodes, those in bodies too, to be there: the
/// one that it names, or a newer one if onnxruntime's optimizer wrote newer nodes. 0 when neither says any.
pub fn needed(model: &Model) -> i64 {
    let named = model.opsets.get("").copied().unwrap_or(0);
    early(&model.graph).max(named)
}

/// The newest version that an operator of [`EARLY`] in a graph is of, or 0.
fn early(graph: &Graph) -> i64 {
    let of = |node: &Node| {
        let own = EARLY.iter().find(|(name, _)| node.op.domain().is_empty() && node.op.name() == *name);
        let inner = node.op.bodies().into_iter().map(|body| early(body)).max();
        own.map_or(0, |(_, since)| *since).max(inner.unwrap_or(0))
    };
    graph.nodes().map(|(_, node)| of(node)).max().unwrap_or(0)
}

/// Raises the version of ONNX's own operators to `to` (13 to 28), in the graph and in all bodies; the results stay
/// the same. A model that is there already is left as it is, and so are functions, which name versions of their own.
///
/// # Errors
/// When `to` or the model's version is out of range, or a node has no equal in the new version; names the node.
/// The model is then unchanged.
pub fn upgrade(model: &mut Model, to: i64) -> Result<()> {
    if !TO.contains(&to) {
        let range = format!("{} to {}", TO.start(), TO.end());
        return Err(Error::invalid(format!("models are raised to versions {range}, not {to}")));
    }
    let Some(&from) = model.opsets.get("") else { return Ok(()) };
    if !READ.contains(&from) {
        let what = format!("a model of version {from} of the ONNX operators (from {} on)", READ.start());
        return Err(Error::unsupported(what));
    }
    if from >= to {
        return Ok(());
    }
    let mut graph = model.graph.clone();
    raise(&mut graph, from, to)?;
    graph.check()?;
    model.graph = graph;
    model.opsets.insert(String::new(), to);
    let needs = IR.iter().filter(|(since, _)| *since <= to).map(|(_, ir)| *ir).max().unwrap_or(0);
    model.ir_version = model.ir_version.max(needs);
    Ok(())
}

fn raise(graph: &mut Graph, from: i64, to: i64) -> Result<()> {
    for id in graph.node_ids() {
        let Some(node) = graph.node(id) else { continue };
        let domain = node.op.domain();
        if domain == "lessen" || node.op.as_any().is::<Call>() {
            continue;
        }
        let (name, kind, own) = (node.name.clone(), node.kind().to_owned(), domain.is_empty());
        let at = |e: Error| e.at(&name, &kind);
        let (attrs, changed) = raise_bodies(&node.op.attrs(), from, to).map_err(at)?;
        if !own && !changed {
            continue;
        }
        let (domain, inputs) = (domain.to_owned(), node.inputs.clone());
        let mut step = Step { graph, id, to, kind: kind.clone(), attrs, inputs };
        if own {
            step.climb(from).map_err(at)?;
        }
        step.finish(&domain).map_err(at)?;
    }
    Ok(())
}

/// The attributes with all graphs in them raised; whether there are any.
fn raise_bodies(attrs: &Attrs, from: i64, to: i64) -> Result<(Attrs, bool)> {
    let body = |g: &Arc<Graph>| {
        let mut body = Graph::clone(g);
        raise(&mut body, from, to).map(|()| Arc::new(body))
    };
    let mut changed = false;
    let mut raised = Attrs::new();
    for (name, attr) in attrs.iter() {
        let attr = match attr {
            Attr::Graph(g) => Attr::Graph(body(g)?),
            Attr::Graphs(all) => Attr::Graphs(all.iter().map(body).collect::<Result<_>>()?),
            other => {
                raised.set(name, other.clone());
                continue;
            }
        };
        changed = true;
        raised.set(name, attr);
    }
    Ok((raised, changed))
}

/// A node on its way to a new version.
struct Step<'a> {
    graph: &'a mut Graph,
    id: NodeId,
    to: i64,
    kind: String,
    attrs: Attrs,
    inputs: Vec<Option<ValueId>>,
}

impl Step<'_> {
    fn climb(&mut self, from: i64) -> Result<()> {
        for version in from + 1..=self.to {
            let kind = self.kind.clone();
            for (_, _, rule) in RULES.iter().filter(|r| r.0 == kind && r.1 == version) {
                rule(self)?;
            }
        }
        Ok(())
    }

    fn finish(self, domain: &str) -> Result<()> {
        let outputs = self.node()?.outputs.len();
        let reader = Reader { attrs: &self.attrs, version: self.to, inputs: self.inputs.len(), outputs };
        let op = ops::read(domain, &self.kind, &reader)?;
        let inputs = self.inputs;
        if let Some(node) = self.graph.node_mut(self.id) {
            (node.op, node.inputs) = (op, inputs);
        }
        Ok(())
    }

    fn node(&self) -> Result<&Node> {
        self.graph.node(self.id).ok_or_else(|| Error::invalid("the node is gone"))
    }

    fn input(&self, i: usize) -> Result<ValueId> {
        let input = self.inputs.get(i).copied().flatten();
        input.ok_or_else(|| Error::invalid(format!("input {i} is missing")))
    }

    /// The element type of the first input.
    fn dtype(&self) -> Result<DType> {
        let unknown = || Error::unsupported("the element type of its input is not known");
        self.graph.value(self.input(0)?).fact.dtype().ok_or_else(unknown)
    }

    fn name_for(&self, what: &str) -> String {
        let made = self.node().ok().and_then(|n| n.output(0)).map(|id| self.graph.value(id).name.as_str());
        format!("{}_{what}", made.unwrap_or(&self.kind))
    }

    fn set_constant(&mut self, i: usize, what: &str, tensor: Tensor) {
        let name = self.name_for(what);
        let id = self.graph.add_constant(&name, tensor);
        self.set_input(i, Some(id));
    }

    fn set_input(&mut self, i: usize, value: Option<ValueId>) {
        if self.inputs.len() <= i {
            self.inputs.resize(i + 1, None);
        }
        self.inputs[i] = value;
    }

    /// Makes a list of integers an input, if it is there.
    fn ints_to_input(&mut self, attr: &str, i: usize) -> Result<()> {
        if let Some(ints) = self.attrs.opt_ints(attr)? {
            self.attrs.remove(attr);
            // An empty list stood for all axes, as an input that is left out does.
            if !ints.is_empty() {
                self.set_constant(i, attr, Tensor::vector(&ints));
            }
        }
        Ok(())
    }

    /// States what was the only meaning before.
    fn default(&mut self, attr: &str, value: &str) -> Result<()> {
        if self.attrs.get(attr).is_none() {
            self.attrs.set(attr, value.into());
        }
        Ok(())
    }

    fn rename(&mut self, kind: &str) -> Result<()> {
        self.kind = kind.into();
        Ok(())
    }

    fn no_integers(&mut self) -> Result<()> {
        match self.dtype()? {
            d if d.is_float() => Ok(()),
            d => Err(Error::unsupported(format!("version {} does not take {d} any more", self.to))),
        }
    }

    /// Adds a node before this one.
    fn before(&mut self, kind: &str, attrs: Attrs, inputs: &[ValueId]) -> Result<ValueId> {
        let reader = Reader { attrs: &attrs, version: self.to, inputs: inputs.len(), outputs: 1 };
        let op: Arc<dyn Op> = ops::read("", kind, &reader)?;
        let node = Node::new(op, inputs.iter().copied().map(Some).collect());
        let name = self.name_for(&kind.to_lowercase());
        let (_, made) = self.graph.add_with_outputs(&name, node, 1, Some(self.id))?;
        made.first().copied().ok_or_else(|| Error::invalid(format!("{kind} makes nothing")))
    }
}

/// A tensor of rank 0 of a floating-point type.
fn scalar(dtype: DType, value: f32) -> Result<Tensor> {
    Ok(match dtype {
        DType::F32 => Tensor::scalar(value),
        DType::F64 => Tensor::scalar(f64::from(value)),
        DType::F16 => Tensor::scalar(f16::from_f32(value)),
        DType::BF16 => Tensor::scalar(bf16::from_f32(value)),
        other => return Err(Error::invalid(format!("it does not take {other}"))),
    })
}

fn batch_norm_per_channel(s: &mut Step) -> Result<()> {
    if s.attrs.int_or("spatial", 1)? == 0 {
        return Err(Error::unsupported("normalisation by element instead of by channel (spatial = 0)"));
    }
    s.attrs.remove("spatial");
    Ok(())
}

fn batch_norm_does_not_train(s: &mut Step) -> Result<()> {
    match s.node()?.outputs.iter().skip(1).any(Option::is_some) {
        true => Err(Error::unsupported("a normalisation in training, as it was before version 14")),
        false => Ok(()),
    }
}

fn clip(s: &mut Step) -> Result<()> {
    for (i, bound) in [(1, "min"), (2, "max")] {
        if let Some(value) = s.attrs.opt_float(bound)? {
            let tensor = scalar(s.dtype()?, value)?;
            s.attrs.remove(bound);
            s.set_constant(i, bound, tensor);
        }
    }
    Ok(())
}

fn dft(s: &mut Step) -> Result<()> {
    let axis = s.attrs.int_or("axis", 1)?;
    s.attrs.remove("axis");
    s.set_constant(2, "axis", Tensor::scalar(axis));
    Ok(())
}

/// The mask became boolean; nearly always nobody reads it.
fn dropout_mask(s: &mut Step) -> Result<()> {
    let Some(mask) = s.node()?.output(1) else { return Ok(()) };
    let read = s.graph.nodes().any(|(_, n)| n.reads().any(|v| v == mask)) || s.graph.outputs.contains(&mask);
    match read {
        true => Err(Error::unsupported("a mask that is not boolean, as it was before version 10")),
        false => s.graph.set_output(s.id, 1, None),
    }
}

fn dropout_ratio(s: &mut Step) -> Result<()> {
    if let Some(ratio) = s.attrs.opt_float("ratio")? {
        s.attrs.remove("ratio");
        s.set_constant(1, "ratio", Tensor::scalar(ratio));
    }
    Ok(())
}

fn grid_sample(s: &mut Step) -> Result<()> {
    let mode = match s.attrs.text_or("mode", "bilinear")? {
        "bilinear" => "linear",
        "bicubic" => "cubic",
        other => other,
    };
    let mode = Attr::from(mode);
    s.attrs.set("mode", mode);
    Ok(())
}

/// Scale and bias went from one number a group to one a channel.
fn group_norm_per_channel(s: &mut Step) -> Result<()> {
    let groups = s.attrs.need_int("num_groups")?;
    let channels = s.graph.value(s.input(0)?).fact.shape().and_then(|shape| shape.get(1)?.int());
    let channels = channels.ok_or_else(|| Error::unsupported("the number of channels is not known"))?;
    let each = channels
        .checked_rem(groups)
        .filter(|&rest| rest == 0 && groups > 0)
        .map(|_| channels / groups)
        .ok_or_else(|| Error::invalid(format!("{channels} channels do not make {groups} groups")))?;
    for i in [1, 2] {
        let mut value = s.input(i)?;
        for (kind, shape) in
            [("Reshape", &[groups, 1][..]), ("Expand", &[groups, each]), ("Reshape", &[channels])]
        {
            let name = s.name_for("shape");
            let shape = s.graph.add_constant(&name, Tensor::vector(shape));
            value = s.before(kind, Attrs::new(), &[value, shape])?;
        }
        s.set_input(i, Some(value));
    }
    Ok(())
}

/// Before, all axes from `axis` on counted as one.
fn one_axis(s: &mut Step) -> Result<()> {
    let axis = s.attrs.int_or("axis", 1)?;
    let x = s.input(0)?;
    s.attrs.remove("axis");
    if let Some(shape) = s.graph.value(x).fact.shape() {
        let at = graph::infer::axis(axis, shape.len())?;
        if shape[at + 1..].iter().all(|d| d.int() == Some(1)) {
            s.attrs.set("axis", Attr::Int(axis));
            return Ok(());
        }
    } else if axis == -1 {
        return Ok(());
    }
    let shape = s.before("Shape", Attrs::new(), &[x])?;
    let flat = s.before("Flatten", Attrs::new().int("axis", axis), &[x])?;
    let (kind, attrs) = (s.kind.clone(), std::mem::take(&mut s.attrs));
    let made = s.before(&kind, attrs, &[flat])?;
    s.inputs = vec![Some(made), Some(shape)];
    // A size of 0 in the shape is one that is meant.
    if s.to >= 14 {
        s.attrs.set("allowzero", Attr::Int(1));
    }
    s.rename("Reshape")
}

fn pad(s: &mut Step) -> Result<()> {
    s.ints_to_input("pads", 1)?;
    if s.inputs.get(1).is_none() {
        s.set_constant(1, "pads", Tensor::vector::<i64>(&[]));
    }
    if let Some(value) = s.attrs.opt_float("value")? {
        s.attrs.remove("value");
        if value != 0.0 {
            let tensor = scalar(s.dtype()?, value)?;
            s.set_constant(2, "value", tensor);
        }
    }
    Ok(())
}

/// Positions were `out / scale`; the nearest was the one before when growing, the one after when shrinking.
fn resize_coordinates(s: &mut Step) -> Result<()> {
    let scales = s.input(1)?;
    if s.attrs.text_or("mode", "nearest")? == "nearest" && s.attrs.get("nearest_mode").is_none() {
        let unknown =
            || Error::unsupported("whether it grows or shrinks is not known: its scales are no constant");
        let numbers = s.graph.constant(scales).ok_or_else(unknown)?.to_f32()?.into_owned();
        let mode = match numbers {
            n if n.iter().all(|&n| n >= 1.0) => "floor",
            n if n.iter().all(|&n| n <= 1.0) => "ceil",
            _ => return Err(Error::unsupported("growing along one axis while shrinking along another")),
        };
        s.attrs.set("nearest_mode", mode.into());
    }
    s.attrs.set("coordinate_transformation_mode", "asymmetric".into());
    s.inputs = vec![s.inputs[0], None, Some(scales)];
    Ok(())
}

/// Region and scales that are not needed are left out; they were empty tensors.
fn resize_either(s: &mut Step) -> Result<()> {
    if s.attrs.text_or("coordinate_transformation_mode", "half_pixel")? == "tf_half_pixel_for_nn" {
        return Err(Error::unsupported(
            "the coordinates \"tf_half_pixel_for_nn\", which ended with version 13",
        ));
    }
    for i in [1, 2] {
        let value = s.inputs.get(i).copied().flatten();
        if value.and_then(|v| s.graph.constant(v)).is_some_and(Tensor::is_empty) {
            s.set_input(i, None);
        }
    }
    Ok(())
}

fn slice(s: &mut Step) -> Result<()> {
    for (i, attr) in [(1, "starts"), (2, "ends"), (3, "axes")] {
        if let Some(ints) = s.attrs.opt_ints(attr)? {
            s.attrs.remove(attr);
            s.set_constant(i, attr, Tensor::vector(&ints));
        }
    }
    Ok(())
}

fn split_count(s: &mut Step) -> Result<()> {
    if s.inputs.get(1).copied().flatten().is_none() {
        s.attrs.set("num_outputs", Attr::Int(s.node()?.outputs.len() as i64));
    }
    Ok(())
}

fn top_k(s: &mut Step) -> Result<()> {
    let k = s.attrs.need_int("k")?;
    s.attrs.remove("k");
    s.set_constant(1, "k", Tensor::vector(&[k]));
    Ok(())
}

fn upsample_scales(s: &mut Step) -> Result<()> {
    let missing = || Error::invalid("attribute \"scales\" is missing");
    let scales = s.attrs.opt_floats("scales")?.ok_or_else(missing)?;
    s.attrs.remove("scales");
    s.set_constant(1, "scales", Tensor::vector(&scales));
    Ok(())
}

fn upsample_is_resize(s: &mut Step) -> Result<()> {
    if s.attrs.text_or("mode", "nearest")? == "nearest" {
        s.attrs.set("nearest_mode", "floor".into());
    }
    s.rename("Resize")
}
