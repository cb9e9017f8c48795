//! Channels that may be scaled together: what makes them can multiply each by a number of its own and what reads them
//! divide by it, and nothing else sees them. Sums tie channels of several values to one another; rectifiers let scales
//! above 0 through.

use std::collections::{BTreeMap, HashMap, HashSet};

use graph::op::WeightKind;
use graph::run::{Session, Watch};
use graph::{DType, Datum, Graph, Node, NodeId, Tensor, ValueId};
use kernel::Cpu;

use crate::walk::Example;
use crate::weights::node_name;
use crate::{Error, Result};

/// A weight at a node that makes or reads channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    /// The node.
    pub node: NodeId,
    /// Its input that is the weight: the gain of a norm, the term of a sum.
    pub input: usize,
}

/// Values whose channels are scaled by the same numbers.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// The values.
    pub values: Vec<ValueId>,
    /// Number of channels.
    pub len: usize,
    /// What makes the channels.
    pub makers: Vec<End>,
    /// What reads them.
    pub readers: Vec<End>,
    /// Values that a `Clip` reads, with its upper bound: scaled channels must stay below it.
    pub clipped: Vec<(ValueId, f32)>,
}

/// What calibration has seen of the channels of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The least of each channel, at most 0.
    pub low: Vec<f32>,
    /// The greatest of each channel, at least 0.
    pub high: Vec<f32>,
    /// The mean square of each channel.
    pub square: Vec<f64>,
    /// The mean of the absolute values of each channel.
    pub size: Vec<f64>,
    count: u64,
}

/// The axis of a value's channels: the second of images, the last of all else.
fn axis(rank: usize) -> usize {
    if rank > 2 && rank != 3 { 1 } else { rank.saturating_sub(1) }
}

/// Number of channels of a value; `None` when it is not known or the value is not f32.
fn channels(graph: &Graph, value: ValueId) -> Option<usize> {
    let fact = &graph.value(value).fact;
    let shape = fact.shape().filter(|s| s.len() > 1 && fact.dtype() == Some(DType::F32))?;
    shape[axis(shape.len())].size()
}

fn constant<'a>(graph: &'a Graph, node: &Node, input: usize) -> Option<&'a Tensor> {
    let value = node.input(input)?;
    let free = !graph.inputs.contains(&value) && !graph.outputs.contains(&value);
    graph.constant(value).filter(|t| free && t.dtype() == DType::F32)
}

/// How a node handles channels.
enum Role {
    /// It makes its output's channels from a weight at this input, out of channels that it reads.
    Product(usize),
    /// It makes them from the gain at this input and a shift at the next; what it reads stays as it is.
    Norm,
    /// It makes its output a constant's sum with an input: `(input, term)`.
    Shift(usize, usize),
    /// Its output has the scales of all that it reads.
    Same(Vec<usize>),
    /// The same, below a bound.
    Clip(f32),
    /// Anything else.
    Other,
}

fn role(graph: &Graph, node: &Node) -> Role {
    if !node.op.domain().is_empty() || node.outputs.iter().flatten().count() != 1 {
        return Role::Other;
    }
    let attrs = node.op.attrs();
    let one = |name: &str| attrs.float_or(name, 1.0).is_ok_and(|v| v == 1.0);
    let known = node.op.weight().is_some_and(|w| w.input == 1);
    match node.kind() {
        "Conv" if known && constant(graph, node, 1).is_some_and(|w| w.rank() == 4) => Role::Product(1),
        "MatMul" if known && constant(graph, node, 1).is_some_and(|w| w.rank() == 2) => Role::Product(1),
        "Gemm" if known && one("alpha") && one("beta") && attrs.int_or("transA", 0).is_ok_and(|t| t == 0) => {
            let bias = node.input(2).is_none()
                || constant(graph, node, 2).is_some_and(|b| b.rank() == 1 && b.len() > 1);
            if bias { Role::Product(1) } else { Role::Other }
        }
        "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization"
            if constant(graph, node, 1).is_some_and(|g| g.rank() == 1)
                && attrs.int_or("axis", -1).is_ok_and(|a| a == -1) =>
        {
            Role::Norm
        }
        "Add" => {
            for (x, term) in [(0, 1), (1, 0)] {
                if let Some(t) = constant(graph, node, term)
                    && let Some(len) = node.input(x).and_then(|v| channels(graph, v))
                {
                    let rank = node.input(x).and_then(|v| graph.value(v).fact.rank()).unwrap_or(0);
                    let after = rank - 1 - axis(rank);
                    let shape = t.shape();
                    let at = shape.len().checked_sub(1 + after);
                    let fits = at.is_some_and(|at| shape[at] == len) && t.len() == len && shape.len() <= rank;
                    return if fits { Role::Shift(x, term) } else { Role::Other };
                }
            }
            let shape = |i| graph.value(node.input(i)?).fact.shape().map(<[_]>::to_vec);
            let alike = match (shape(0), shape(1)) {
                (Some(a), Some(b)) => {
                    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.same(b) && a.size() != Some(1))
                        || a.len() == b.len()
                            && a.iter()
                                .zip(&b)
                                .skip(1)
                                .all(|(a, b)| a.size() == b.size() && a.size().is_some())
                }
                _ => false,
            };
            if alike { Role::Same(vec![0, 1]) } else { Role::Other }
        }
        "Relu" | "LeakyRelu" | "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool"
        | "Identity" => Role::Same(vec![0]),
        "Flatten" => {
            // Only where what is flattened beside the channels is one number.
            let shape = node.input(0).and_then(|v| graph.value(v).fact.shape());
            let flat = shape.is_some_and(|s| s.len() == 4 && s[2..].iter().all(|d| d.size() == Some(1)));
            let first = attrs.int_or("axis", 1).is_ok_and(|a| a == 1);
            if flat && first { Role::Same(vec![0]) } else { Role::Other }
        }
        "Clip" => {
            let bound = |i: usize, name: &str| match node.input(i) {
                Some(_) => constant(graph, node, i).and_then(|t| t.to_f32().ok()?.first().copied()),
                None => attrs.opt_float(name).ok().flatten(),
            };
            match (bound(1, "min"), bound(2, "max")) {
                (Some(0.0), Some(high)) if high > 0.0 => Role::Clip(high),
                _ => Role::Other,
            }
        }
        _ => Role::Other,
    }
}

/// Finds the classes of channels that can be scaled, in the order of the nodes that make them.
pub fn classes(graph: &Graph) -> Vec<Class> {
    let count = graph.value_count();
    let mut parent: Vec<usize> = (0..count).collect();
    fn root(parent: &mut [usize], mut v: usize) -> usize {
        while parent[v] != v {
            parent[v] = parent[parent[v]];
            v = parent[v];
        }
        v
    }
    let mut pinned: HashSet<usize> = HashSet::new();
    let ids: Vec<ValueId> = graph.values().map(|(id, _)| id).collect();
    let readers = graph.readers();
    let shared = |node: &Node, input: usize| {
        node.input(input).is_some_and(|v| readers[v.index()].len() > 1 || graph.outputs.contains(&v))
    };
    let (mut makers, mut users, mut clipped) = (Vec::new(), Vec::new(), Vec::new());
    pinned.extend(graph.inputs.iter().chain(&graph.outputs).map(|v| v.index()));
    for (id, node) in graph.nodes() {
        let role = role(graph, node);
        let output = node.output(0);
        // What a node reads in any other way than its role says cannot be scaled.
        let through: Vec<usize> = match &role {
            Role::Product(_) | Role::Clip(_) => vec![0],
            Role::Shift(x, _) => vec![*x],
            Role::Same(inputs) => inputs.clone(),
            Role::Norm | Role::Other => Vec::new(),
        };
        for (i, value) in node.inputs.iter().enumerate() {
            if let Some(value) = value
                && !through.contains(&i)
            {
                pinned.insert(value.index());
            }
        }
        pinned.extend(node.captures.iter().map(|v| v.index()));
        let Some(output) = output else { continue };
        match role {
            Role::Product(weight) => {
                let end = End { node: id, input: weight };
                makers.push((output, end));
                users.extend(node.input(0).map(|x| (x, end)));
                if shared(node, weight) {
                    pinned.insert(output.index());
                    pinned.extend(node.input(0).map(|x| x.index()));
                }
            }
            Role::Norm => makers.push((output, End { node: id, input: 1 })),
            Role::Shift(x, term) => {
                makers.push((output, End { node: id, input: term }));
                let (a, b) = (root(&mut parent, output.index()), node.input(x).map(|x| x.index()));
                if let Some(b) = b {
                    let b = root(&mut parent, b);
                    parent[a] = b;
                }
            }
            Role::Same(_) | Role::Clip(_) => {
                for x in through.iter().filter_map(|&i| node.input(i)) {
                    let (a, b) = (root(&mut parent, output.index()), root(&mut parent, x.index()));
                    parent[a] = b;
                }
                if let (Role::Clip(high), Some(x)) = (&role, node.input(0)) {
                    clipped.push((x, *high));
                }
            }
            Role::Other => pinned.extend(node.outputs.iter().flatten().map(|v| v.index())),
        }
    }
    let mut found: BTreeMap<usize, Class> = BTreeMap::new();
    let mut fixed: HashSet<usize> = pinned.into_iter().map(|v| root(&mut parent, v)).collect();
    for &id in &ids {
        let value = graph.value(id);
        let own = root(&mut parent, id.index());
        if value.constant.is_some() || value.producer().is_none() {
            continue;
        }
        let class = found.entry(own).or_default();
        match channels(graph, id) {
            Some(len) if class.values.is_empty() || class.len == len => class.len = len,
            _ => {
                fixed.insert(own);
            }
        }
        class.values.push(id);
    }
    for (value, end) in makers {
        found.entry(root(&mut parent, value.index())).or_default().makers.push(end);
    }
    for (value, end) in users {
        found.entry(root(&mut parent, value.index())).or_default().readers.push(end);
    }
    for (value, high) in clipped {
        found.entry(root(&mut parent, value.index())).or_default().clipped.push((value, high));
    }
    let free = |(own, class): (usize, Class)| {
        let both = !class.makers.is_empty() && !class.readers.is_empty();
        (both && !fixed.contains(&own)).then_some(class)
    };
    let mut classes: Vec<Class> = found.into_iter().filter_map(free).collect();
    classes.sort_by_key(|c| c.values.iter().min().copied());
    classes
}

/// The place of each element of a weight in channels of its node's input, and the group of rows that reads it.
struct Places {
    rows: usize,
    groups: usize,
    /// Inputs of a group.
    cols: usize,
    /// Numbers after the inputs: taps.
    taps: usize,
    /// Inputs come before outputs.
    turned: bool,
}

impl Places {
    fn new(node: &Node, tensor: &Tensor) -> Option<Places> {
        let used = node.op.weight()?;
        let shape = tensor.shape();
        let attrs = node.op.attrs();
        let groups = match used.kind {
            WeightKind::Conv => usize::try_from(attrs.int_or("group", 1).ok()?).ok().filter(|g| *g > 0)?,
            _ => 1,
        };
        let out = graph::infer::axis(used.out_axis, shape.len()).ok()?;
        let turned = out == 1;
        let (rows, cols) = if turned { (shape[1], shape[0]) } else { (shape[0], *shape.get(1)?) };
        let taps = shape[2..].iter().product();
        let fits = out < 2 && rows % groups == 0 && (!turned || taps == 1);
        fits.then_some(Places { rows, groups, cols, taps, turned })
    }

    /// `(row, channel)` of an element.
    fn of(&self, k: usize) -> (usize, usize) {
        let (row, col) = match self.turned {
            true => (k % self.rows, k / self.rows),
            false => (k / (self.cols * self.taps), k / self.taps % self.cols),
        };
        (row, row / (self.rows / self.groups).max(1) * self.cols + col)
    }
}

/// The elements of a weight with their rows and channels: `(row, channel, element)`.
///
/// # Errors
/// When the weight is not what it was when the classes were found.
pub fn elements(graph: &Graph, end: End) -> Result<Vec<(usize, usize, f32)>> {
    let (node, tensor) = weight_of(graph, end)?;
    let places = Places::new(node, tensor).ok_or_else(|| no_weight(graph, node))?;
    let data = tensor.values::<f32>()?;
    Ok(data.iter().enumerate().map(|(k, &w)| (places.of(k).0, places.of(k).1, w)).collect())
}

fn no_weight(graph: &Graph, node: &Node) -> Error {
    Error::Graph(graph::Error::invalid(format!("node {:?} has no weight to scale", node_name(graph, node))))
}

fn weight_of(graph: &Graph, end: End) -> Result<(&Node, &Tensor)> {
    let node = graph.node(end.node);
    let node = node.ok_or_else(|| Error::Graph(graph::Error::invalid("a node to scale is gone")))?;
    let tensor = node.input(end.input).and_then(|v| graph.constant(v));
    Ok((node, tensor.ok_or_else(|| no_weight(graph, node))?))
}

/// True when an end is a weight of a product; else it is one number for each channel.
pub fn is_product(graph: &Graph, end: End) -> bool {
    graph.node(end.node).is_some_and(|n| n.op.weight().is_some())
}

/// Multiplies the channels of a class by these numbers, and divides by them where they are read.
///
/// # Errors
/// When the graph is not the one that the class was found in.
pub fn scale(graph: &mut Graph, class: &Class, by: &[f32]) -> Result<()> {
    if by.iter().all(|&k| k == 1.0) {
        return Ok(());
    }
    let usable = by.len() == class.len && by.iter().all(|k| k.is_normal() && *k > 0.0);
    if !usable {
        return Err(Error::Graph(graph::Error::invalid("scales of channels must be above 0, one for each")));
    }
    for &end in &class.makers {
        if is_product(graph, end) {
            change(graph, end, |row, _| by[row])?;
        } else {
            vector(graph, end, by)?;
        }
        // A bias, or the shift of a norm.
        let shift = End { input: end.input + 1, ..end };
        let kind = graph.node(end.node).map(|n| n.kind().to_string()).unwrap_or_default();
        if kind != "Add" && graph.node(end.node).is_some_and(|n| n.input(shift.input).is_some()) {
            vector(graph, shift, by)?;
        }
    }
    for &end in &class.readers {
        change(graph, end, |_, channel| 1.0 / by[channel])?;
    }
    Ok(())
}

/// Multiplies the elements of a weight that one node reads.
fn change(graph: &mut Graph, end: End, factor: impl Fn(usize, usize) -> f32) -> Result<()> {
    let (node, tensor) = weight_of(graph, end)?;
    let places = Places::new(node, tensor).ok_or_else(|| no_weight(graph, node))?;
    let data = tensor.values::<f32>()?;
    let times = |(k, &w): (usize, &f32)| {
        let (row, channel) = places.of(k);
        w * factor(row, channel)
    };
    let tensor = Tensor::new(tensor.shape(), &data.iter().enumerate().map(times).collect::<Vec<f32>>())?;
    if let Some(value) = node.input(end.input) {
        graph.set_constant(value, tensor);
    }
    Ok(())
}

/// Multiplies a vector of one number for each channel; a copy of it where others read it, too.
fn vector(graph: &mut Graph, end: End, by: &[f32]) -> Result<()> {
    let (node, tensor) = weight_of(graph, end)?;
    let data: Vec<f32> = tensor.values::<f32>()?.iter().zip(by).map(|(x, k)| x * k).collect();
    if tensor.len() != by.len() {
        return Err(no_weight(graph, node));
    }
    let tensor = Tensor::new(tensor.shape(), &data)?;
    replace(graph, end, tensor);
    Ok(())
}

/// Puts a constant in the place of the one at an end; other nodes that read that keep it.
pub fn replace(graph: &mut Graph, end: End, tensor: Tensor) {
    let Some(value) = graph.node(end.node).and_then(|node| node.input(end.input)) else { return };
    if graph.readers()[value.index()].len() > 1 {
        let like = graph.value(value).name.clone();
        let copy = graph.add_constant(&like, tensor);
        graph.set_input(end.node, end.input, Some(copy));
    } else {
        graph.set_constant(value, tensor);
    }
}

impl Class {
    /// What was seen where the channels are read, or, of heads, where they are made; `None` when no example got there.
    pub fn seen<'a>(&self, graph: &Graph, seen: &'a HashMap<ValueId, Seen>) -> Option<&'a Seen> {
        let read = |end: &End| seen.get(&graph.node(end.node)?.input(0)?);
        self.readers.iter().find_map(read).or_else(|| seen.get(self.values.first()?))
    }
}

struct Watcher<'a> {
    wanted: &'a HashMap<ValueId, usize>,
    seen: HashMap<ValueId, Seen>,
}

impl Watch for Watcher<'_> {
    fn after(&mut self, _: NodeId, node: &Node, outputs: &[Datum]) {
        for (id, datum) in node.outputs.iter().zip(outputs) {
            let (Some(id), Datum::Tensor(x)) = (id, datum) else { continue };
            let (Some(&len), Ok(data)) = (self.wanted.get(id), x.values::<f32>()) else { continue };
            let inner: usize = x.shape().get(axis(x.rank()) + 1..).unwrap_or_default().iter().product();
            let seen = self.seen.entry(*id).or_insert_with(|| Seen {
                low: vec![0.0; len],
                high: vec![0.0; len],
                square: vec![0.0; len],
                size: vec![0.0; len],
                count: 0,
            });
            for (k, part) in data.chunks_exact(inner.max(1)).enumerate() {
                let c = k % len.max(1);
                let (mut low, mut high, mut square, mut size) = (0f32, 0f32, 0f32, 0f32);
                for &x in part {
                    (low, high) = (low.min(x), high.max(x));
                    (square, size) = (square + x * x, size + x.abs());
                }
                (seen.low[c], seen.high[c]) = (seen.low[c].min(low), seen.high[c].max(high));
                seen.square[c] += f64::from(square);
                seen.size[c] += f64::from(size);
            }
            seen.count += (data.len() / len.max(1)) as u64;
        }
    }
}

/// Runs the graph on examples and looks at the channels of all values of these classes.
///
/// # Errors
/// When the graph cannot be run on them, or one of the values is not finite: it is named.
pub fn look(
    graph: &Graph,
    classes: &[Class],
    examples: &[Example],
    cpu: &Cpu,
) -> Result<HashMap<ValueId, Seen>> {
    let wanted: HashMap<ValueId, usize> =
        classes.iter().flat_map(|c| c.values.iter().map(|&v| (v, c.len))).collect();
    let mut watcher = Watcher { wanted: &wanted, seen: HashMap::new() };
    if wanted.is_empty() {
        return Ok(watcher.seen);
    }
    let session = Session::new(graph.clone(), cpu)?;
    for example in examples {
        let inputs = example.iter().map(|(name, datum)| (name.as_str(), datum.clone())).collect();
        session.run_watched(inputs, &mut watcher)?;
    }
    let odd = watcher.seen.iter().filter(|(_, seen)| seen.square.iter().any(|s| !s.is_finite()));
    if let Some(value) = odd.map(|(value, _)| *value).min() {
        let name = &graph.value(value).name;
        let what = format!("value {name:?} holds numbers that are not finite; check the data and the model");
        return Err(Error::Calibration(what));
    }
    for seen in watcher.seen.values_mut() {
        let count = seen.count.max(1) as f64;
        seen.square.iter_mut().chain(&mut seen.size).for_each(|s| *s /= count);
    }
    Ok(watcher.seen)
}
