//! Groups of coupled channels: what must go when one channel of a weight goes, through residual sums, concatenations,
//! depthwise convolutions, reshapes and attention heads. Indices of all axes of all values are elements of disjoint
//! sets; the operators say which are one ([`graph::Axes`]), and what anything unknown touches stays.
//! Fang et al., "DepGraph: towards any structural pruning" (2023), <https://arxiv.org/abs/2301.12900>.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use graph::axes::{Count, End, Fold, Place, Port};
use graph::op::{Facts, WeightKind};
use graph::{Axes, DType, Dim, Fact, Graph, Node, NodeId, Tensor, ValueId};

use crate::weights::node_name;
use crate::{Error, Result};

/// Axes longer than this are not followed: tables of words.
const LONGEST: usize = 1 << 18;

/// An axis of a value of the graph.
pub type Axis = (ValueId, usize);

/// Channels of one weight that can be taken away one by one, each with all that depends on it.
#[derive(Clone, Debug)]
pub struct Group {
    /// The name of the node whose weight makes the channels first.
    pub name: String,
    /// That node.
    pub node: NodeId,
    /// That weight and its axis of outputs.
    pub axis: Axis,
    /// The channels; heads are one channel each.
    pub units: Vec<Unit>,
    /// Weights that read the channels, in the order of the nodes: the node and the weight's axis of inputs.
    pub readers: Vec<(NodeId, Axis)>,
    /// Weights that make the channels, likewise.
    pub makers: Vec<(NodeId, Axis)>,
}

/// A channel and all that goes with it.
#[derive(Clone, Debug)]
pub struct Unit {
    /// True when it can be taken away.
    pub free: bool,
    /// The indices of each axis that go.
    pub indices: BTreeMap<Axis, Vec<u32>>,
}

impl Unit {
    /// What goes of an axis.
    pub fn of(&self, axis: Axis) -> &[u32] {
        self.indices.get(&axis).map_or(&[], Vec::as_slice)
    }
}

impl Group {
    /// Number of channels that can be taken away.
    pub fn free(&self) -> usize {
        self.units.iter().filter(|u| u.free).count()
    }
}

/// What all nodes say of their axes, by node.
struct Said(Vec<(NodeId, Option<Axes>)>);

impl Said {
    fn new(graph: &Graph) -> Said {
        let of = |node: &Node| {
            if !node.captures.is_empty() || !node.op.bodies().is_empty() {
                return None;
            }
            let inputs: Vec<Option<&Fact>> =
                node.inputs.iter().map(|v| v.map(|v| &graph.value(v).fact)).collect();
            let outputs: Option<Vec<Fact>> =
                node.outputs.iter().map(|v| v.map(|v| graph.value(v).fact.clone())).collect();
            node.op.axes(&Facts::new(&inputs, node.outputs.len()), &outputs?)
        };
        Said(graph.nodes().map(|(id, node)| (id, of(node))).collect())
    }
}

/// The axis of the graph that is an axis of a node.
fn resolve(node: &Node, end: End) -> Option<Axis> {
    let value = match end.0 {
        Port::Input(i) => node.input(i),
        Port::Output(i) => node.output(i),
    };
    Some((value?, end.1))
}

/// Disjoint sets of the indices of all axes.
struct Sets {
    /// Where an axis begins, and its size.
    places: HashMap<Axis, (usize, usize)>,
    parent: Vec<u32>,
    /// By root: nothing of the set can go.
    pinned: Vec<bool>,
}

impl Sets {
    fn new(graph: &Graph) -> Sets {
        let (mut places, mut at) = (HashMap::new(), 0);
        for (id, value) in graph.values() {
            for (axis, dim) in value.fact.shape().unwrap_or(&[]).iter().enumerate() {
                if let Some(size) = dim.size().filter(|n| (2..=LONGEST).contains(n)) {
                    places.insert((id, axis), (at, size));
                    at += size;
                }
            }
        }
        Sets { places, parent: (0..at as u32).collect(), pinned: vec![false; at] }
    }

    fn root(&mut self, mut at: usize) -> usize {
        while self.parent[at] as usize != at {
            self.parent[at] = self.parent[self.parent[at] as usize];
            at = self.parent[at] as usize;
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high] = low as u32;
        self.pinned[low] |= self.pinned[high];
    }

    fn pin(&mut self, axis: Axis) {
        let Some(&(start, size)) = self.places.get(&axis) else { return };
        for at in start..start + size {
            let root = self.root(at);
            self.pinned[root] = true;
        }
    }

    fn pin_value(&mut self, graph: &Graph, value: ValueId) {
        (0..graph.value(value).fact.rank().unwrap_or(0)).for_each(|axis| self.pin((value, axis)));
    }

    fn is_pinned(&mut self, at: usize) -> bool {
        let root = self.root(at);
        self.pinned[root]
    }
}

/// The groups of a graph that have at least two channels that can go, in the order of the nodes that make them.
/// Axes of which the size is not known have none.
pub fn groups(graph: &Graph) -> Vec<Group> {
    let said = Said::new(graph);
    let mut sets = Sets::new(graph);
    let fixed = graph.inputs.iter().chain(&graph.outputs);
    let captured = graph.captures.iter().map(|(_, v)| v);
    fixed.chain(captured).for_each(|&v| sets.pin_value(graph, v));
    let mut folds: Vec<(Axis, Vec<(Axis, usize)>)> = Vec::new();
    for (id, axes) in &said.0 {
        let Some(node) = graph.node(*id) else { continue };
        let empty = Axes::new();
        let axes = axes.as_ref().unwrap_or(&empty);
        let mut named: Vec<Axis> = Vec::new();
        for tie in &axes.ties {
            let [Some(a), Some(b)] = tie.ends.map(|end| resolve(node, end)) else { continue };
            match (sets.places.get(&a).copied(), sets.places.get(&b).copied()) {
                (Some((x, n)), Some((y, m))) => {
                    let (start, step, len) = match &tie.part {
                        None if n == m => ([0, 0], [1, 1], n),
                        None => continue,
                        Some(part) => (part.start, part.step, part.len),
                    };
                    let last = |k: usize| start[k] + len.saturating_sub(1) * step[k];
                    if last(0) >= n || last(1) >= m {
                        continue;
                    }
                    (0..len).for_each(|i| sets.join(x + start[0] + i * step[0], y + start[1] + i * step[1]));
                    named.extend([a, b]);
                }
                // Repeated along the other.
                (Some(_), None) if is_one(graph, b) => named.push(a),
                (None, Some(_)) if is_one(graph, a) => named.push(b),
                // Who knows whether it is repeated.
                _ => [a, b].into_iter().for_each(|axis| sets.pin(axis)),
            }
        }
        for Fold { whole, parts } in &axes.folds {
            let Some(whole) = resolve(node, *whole) else { continue };
            let parts: Option<Vec<(Axis, usize)>> =
                parts.iter().map(|(end, n)| Some((resolve(node, *end)?, *n))).collect();
            let Some(parts) = parts else { continue };
            named.push(whole);
            named.extend(parts.iter().map(|p| p.0));
            folds.push((whole, parts));
        }
        // A number that no constant holds cannot be changed.
        for Count { place, of, .. } in &axes.counts {
            if let (Place::Input(i, _), Some(of)) = (place, resolve(node, *of))
                && node.input(*i).is_none_or(|v| graph.constant(v).is_none() || graph.inputs.contains(&v))
            {
                sets.pin(of);
            }
        }
        for &value in node.inputs.iter().flatten().chain(node.outputs.iter().flatten()) {
            for axis in 0..graph.value(value).fact.rank().unwrap_or(0) {
                if !named.contains(&(value, axis)) {
                    sets.pin((value, axis));
                }
            }
        }
        node.captures.iter().for_each(|&v| sets.pin_value(graph, v));
    }
    for (whole, parts) in &folds {
        resolve_fold(&mut sets, *whole, parts);
    }
    collect(graph, &mut sets)
}

fn is_one(graph: &Graph, (value, axis): Axis) -> bool {
    graph.value(value).fact.shape().and_then(|s| s.get(axis)) == Some(&Dim::Is(1))
}

/// Ties the whole of a fold to the first of its parts that can lose indices; the others then cannot.
fn resolve_fold(sets: &mut Sets, whole: Axis, parts: &[(Axis, usize)]) {
    let size: usize = parts.iter().map(|p| p.1).product();
    let free =
        |sets: &mut Sets, (start, size): (usize, usize)| (start..start + size).any(|i| !sets.is_pinned(i));
    let place = sets.places.get(&whole).copied().filter(|p| p.1 == size);
    let open = place.filter(|&p| free(sets, p));
    let chosen = open.and_then(|_| {
        parts.iter().position(|(axis, n)| {
            let own = sets.places.get(axis).copied().filter(|p| p.1 == *n);
            own.is_some_and(|p| free(sets, p))
        })
    });
    for (i, (axis, _)) in parts.iter().enumerate() {
        if Some(i) != chosen {
            sets.pin(*axis);
        }
    }
    let (Some(at), Some((start, _))) = (chosen, open) else { return sets.pin(whole) };
    let (axis, n) = parts[at];
    let inner: usize = parts[at + 1..].iter().map(|p| p.1).product();
    let Some((own, _)) = sets.places.get(&axis).copied() else { return };
    (0..size).for_each(|i| sets.join(start + i, own + i / inner.max(1) % n));
}

/// A weight of the graph, with its axes of outputs and of inputs; `None` for what only passes channels on.
fn weight_axes(graph: &Graph, node: &Node) -> Option<(ValueId, [usize; 2])> {
    let used = node.op.weight()?;
    let value = node.input(used.input)?;
    let tensor = graph.constant(value).filter(|t| t.dtype() == DType::F32 && t.rank() >= 2)?;
    let out = graph::infer::axis(used.out_axis, tensor.rank()).ok()?;
    match used.kind {
        WeightKind::MatMul if tensor.rank() == 2 => Some((value, [out, 1 - out])),
        WeightKind::Conv if tensor.shape()[1] > 1 || node.op.attrs().int_or("group", 1).ok()? == 1 => {
            Some((value, [out, 1 - out]))
        }
        WeightKind::ConvTranspose if tensor.shape()[1] > 1 => Some((value, [out, 1 - out])),
        _ => None,
    }
}

fn collect(graph: &Graph, sets: &mut Sets) -> Vec<Group> {
    let mut found: Vec<Group> = Vec::new();
    let mut taken: HashSet<usize> = HashSet::new();
    let weights: Vec<(NodeId, (ValueId, [usize; 2]))> =
        graph.nodes().filter_map(|(id, node)| Some((id, weight_axes(graph, node)?))).collect();
    let mut homes: HashMap<usize, (usize, usize)> = HashMap::new();
    for (id, (value, [out, _])) in &weights {
        let axis = (*value, *out);
        let Some(&(start, size)) = sets.places.get(&axis) else { continue };
        let mut roots: Vec<usize> = Vec::new();
        for at in start..start + size {
            let root = sets.root(at);
            if !taken.contains(&root) && !roots.contains(&root) {
                roots.push(root);
            }
        }
        let free = roots.iter().filter(|&&root| !sets.pinned[root]).count();
        if free < 2 {
            continue;
        }
        taken.extend(&roots);
        let Some(node) = graph.node(*id) else { continue };
        let units =
            roots.iter().map(|&root| Unit { free: !sets.pinned[root], indices: BTreeMap::new() }).collect();
        homes.extend(roots.iter().enumerate().map(|(i, &root)| (root, (found.len(), i))));
        let (readers, makers) = (Vec::new(), Vec::new());
        found.push(Group { name: node_name(graph, node), node: *id, axis, units, readers, makers });
    }
    let mut axes: Vec<(Axis, (usize, usize))> = sets.places.iter().map(|(a, p)| (*a, *p)).collect();
    axes.sort();
    for (axis, (start, size)) in axes {
        for i in 0..size {
            let root = sets.root(start + i);
            if let Some(&(group, unit)) = homes.get(&root) {
                found[group].units[unit].indices.entry(axis).or_default().push(i as u32);
            }
        }
    }
    for group in &mut found {
        let touches = |axis: &Axis| group.units.iter().any(|u| u.free && u.indices.contains_key(axis));
        for (id, (value, [out, input])) in &weights {
            if touches(&(*value, *out)) {
                group.makers.push((*id, (*value, *out)));
            }
            if touches(&(*value, *input)) {
                group.readers.push((*id, (*value, *input)));
            }
        }
    }
    found
}

/// What is left of the axes that lost indices: for each the indices that stay, in order.
pub type Kept = BTreeMap<Axis, Vec<u32>>;

/// Takes channels away: of each of these groups only these channels stay. All that depends on them is cut, numbers
/// that count them are changed, and the graph is checked. Ids of nodes and of values that nodes make stay as they are.
///
/// # Errors
/// [`Error::Plan`] when a list of channels is not in order, names one that is not there, or leaves out one that must
/// stay; when the graph does not fit together afterwards.
pub fn cut(graph: &mut Graph, cuts: &[(&Group, &[u32])]) -> Result<Kept> {
    let mut gone: BTreeMap<Axis, Vec<bool>> = BTreeMap::new();
    for (group, keep) in cuts {
        let plan = |what: String| Error::Plan(format!("channels of {:?}: {what}", group.name));
        if keep.is_empty() || !keep.is_sorted_by(|a, b| a < b) {
            return Err(plan(
                "those that stay must be in ascending order, and one at least must stay".into(),
            ));
        }
        if let Some(last) = keep.last().filter(|&&k| k as usize >= group.units.len()) {
            return Err(plan(format!("there is no channel {last}, only {}", group.units.len())));
        }
        for (i, unit) in group.units.iter().enumerate() {
            if keep.binary_search(&(i as u32)).is_ok() {
                continue;
            }
            if !unit.free {
                return Err(plan(format!("channel {i} cannot go: what reads or makes it needs it")));
            }
            for (&axis, indices) in &unit.indices {
                let size = graph.value(axis.0).fact.shape().and_then(|s| s.get(axis.1)?.size()).unwrap_or(0);
                let gone = gone.entry(axis).or_insert_with(|| vec![false; size]);
                indices.iter().for_each(|&k| gone[k as usize] = true);
            }
        }
    }
    let kept: Kept = gone
        .into_iter()
        .map(|(axis, gone)| (axis, (0..gone.len() as u32).filter(|&i| !gone[i as usize]).collect()))
        .collect();
    if let Some(((value, axis), _)) = kept.iter().find(|(_, kept)| kept.is_empty()) {
        let what = format!("nothing would be left of axis {axis} of {:?}", graph.value(*value).name);
        return Err(Error::Plan(what));
    }
    recount(graph, &kept)?;
    for (&(value, axis), kept) in &kept {
        match graph.constant(value) {
            Some(tensor) => {
                let part = take(tensor, axis, kept)?;
                graph.set_constant(value, part);
            }
            None => {
                let fact = &graph.value(value).fact;
                let Some(mut shape) = fact.shape().map(<[Dim]>::to_vec) else { continue };
                shape[axis] = kept.len().into();
                graph.value_mut(value).fact = Fact::maybe(fact.dtype(), Some(shape));
            }
        }
    }
    graph.infer()?;
    graph.check()?;
    Ok(kept)
}

/// Changes the numbers that count what went.
fn recount(graph: &mut Graph, kept: &Kept) -> Result<()> {
    for (id, axes) in Said::new(graph).0 {
        let (Some(axes), Some(node)) = (axes, graph.node(id).cloned()) else { continue };
        let left = |end: End, range: Option<&Range<usize>>| {
            let kept = kept.get(&resolve(&node, end)?)?;
            let inside = |&&i: &&u32| range.is_none_or(|r| r.contains(&(i as usize)));
            Some(kept.iter().filter(inside).count())
        };
        let mut inputs: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        for count in &axes.counts {
            let (Place::Input(i, at), Some(n)) = (count.place, left(count.of, count.range.as_ref())) else {
                continue;
            };
            let tensor = node.input(i).and_then(|v| graph.constant(v));
            let tensor = tensor
                .ok_or_else(|| Error::Plan(format!("node {:?}: input {i} is no constant", node.name)))?;
            let list = match inputs.entry(i) {
                std::collections::btree_map::Entry::Occupied(list) => list.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => place.insert(tensor.to_ints()?),
            };
            if let Some(place) = list.get_mut(at) {
                *place = n as i64;
            }
        }
        let sizes = [node.inputs.len(), node.outputs.len()];
        if let Some(op) = axes.recount(&node.op, sizes, &left)?
            && let Some(node) = graph.node_mut(id)
        {
            node.op = op;
        }
        // Other nodes may read the old numbers.
        for (i, list) in inputs {
            let Some(old) = node.input(i) else { continue };
            let (name, tensor) = (graph.value(old).name.clone(), graph.constant(old));
            let Some(tensor) = tensor.filter(|t| t.to_ints().is_ok_and(|l| l != list)) else { continue };
            let new = match tensor.dtype() {
                DType::I32 => {
                    let list: Vec<i32> = list.iter().map(|&n| n as i32).collect();
                    Tensor::new(tensor.shape(), &list)?
                }
                _ => Tensor::new(tensor.shape(), &list)?,
            };
            let new = graph.add_constant(&name, new);
            graph.set_input(id, i, Some(new));
        }
    }
    Ok(())
}

/// The slices of a tensor along an axis.
pub(super) fn take(tensor: &Tensor, axis: usize, kept: &[u32]) -> Result<Tensor> {
    let unit = tensor.dtype().bits() / 8;
    if unit == 0 {
        return Err(Error::Graph(graph::Error::unsupported(format!("slices of {}", tensor.dtype()))));
    }
    let shape = tensor.shape();
    let inner = shape[axis + 1..].iter().product::<usize>() * unit;
    let block = inner * shape[axis];
    let mut out = Vec::with_capacity(tensor.bytes().len() / shape[axis].max(1) * kept.len());
    for block in tensor.bytes().chunks_exact(block.max(1)) {
        kept.iter().for_each(|&k| out.extend_from_slice(&block[k as usize * inner..][..inner]));
    }
    let mut shape = shape.to_vec();
    shape[axis] = kept.len();
    Ok(Tensor::from_bytes(tensor.dtype(), &shape, out.into())?.aligned())
}

#[cfg(test)]
pub(crate) mod tests {
    use graph::Attrs;
    use graph::op::{Reader, ramp};
    use graph::run::Session;

    use super::*;
    use crate::gram::tests::cpu;

    pub(crate) fn add(
        g: &mut Graph,
        kind: &str,
        name: &str,
        inputs: &[ValueId],
        attrs: Attrs,
        outputs: usize,
    ) -> Vec<ValueId> {
        let reader = Reader { attrs: &attrs, version: 17, inputs: inputs.len(), outputs };
        let op = graph::ops::read("", kind, &reader).unwrap();
        let node = Node::new(op, inputs.iter().copied().map(Some).collect());
        g.add_with_outputs(name, node, outputs, None).unwrap().1
    }

    pub(crate) fn one(g: &mut Graph, kind: &str, name: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        add(g, kind, name, inputs, attrs, 1)[0]
    }

    fn weight(g: &mut Graph, shape: &[usize]) -> ValueId {
        g.add_constant("w", ramp(shape))
    }

    fn ints(g: &mut Graph, list: &[i64]) -> ValueId {
        g.add_constant("ints", Tensor::vector(list))
    }

    fn conv(g: &mut Graph, name: &str, x: ValueId, shape: [usize; 4], group: i64, stride: i64) -> ValueId {
        let (w, b) = (weight(g, &shape), weight(g, &shape[..1]));
        let pad = shape[2] as i64 / 2;
        let attrs = Attrs::new().ints("pads", &[pad; 4]).int("group", group).ints("strides", &[stride; 2]);
        one(g, "Conv", name, &[x, w, b], attrs)
    }

    fn finish(mut g: Graph, y: ValueId) -> Graph {
        g.outputs.push(y);
        g.infer().unwrap();
        g.check().unwrap();
        g
    }

    /// Residual blocks, one of them with a shortcut of padded slices, an inverted bottleneck, and a classifier.
    fn residual() -> Graph {
        let mut g = Graph::new("residual");
        let size = vec![Dim::named("n"), Dim::Is(3), Dim::Is(8), Dim::Is(8)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let none = Attrs::new;
        let stem = conv(&mut g, "stem", x, [8, 3, 3, 3], 1, 1);
        let stem = one(&mut g, "Relu", "r0", &[stem], none());
        let a = conv(&mut g, "a1", stem, [8, 8, 3, 3], 1, 1);
        let a = one(&mut g, "Relu", "r1", &[a], none());
        let a = conv(&mut g, "a2", a, [8, 8, 3, 3], 1, 1);
        let sum = one(&mut g, "Add", "sum1", &[a, stem], none());
        let sum = one(&mut g, "Relu", "r2", &[sum], none());
        let b = conv(&mut g, "b1", sum, [16, 8, 3, 3], 1, 2);
        let b = one(&mut g, "Relu", "r3", &[b], none());
        let b = conv(&mut g, "b2", b, [16, 16, 3, 3], 1, 1);
        let [start, end, axes, steps] = [[0, 0], [i64::MAX; 2], [2, 3], [2, 2]].map(|l| ints(&mut g, &l));
        let short = one(&mut g, "Slice", "slice", &[sum, start, end, axes, steps], none());
        let pads = ints(&mut g, &[0, 4, 0, 0, 0, 4, 0, 0]);
        let short = one(&mut g, "Pad", "pad", &[short, pads], none());
        let sum = one(&mut g, "Add", "sum2", &[b, short], none());
        let c = conv(&mut g, "c1", sum, [24, 16, 1, 1], 1, 1);
        let c = one(&mut g, "HardSwish", "h1", &[c], none());
        let c = conv(&mut g, "c2", c, [24, 1, 3, 3], 24, 1);
        let c = one(&mut g, "HardSwish", "h2", &[c], none());
        let c = conv(&mut g, "c3", c, [16, 24, 1, 1], 1, 1);
        let sum = one(&mut g, "Add", "sum3", &[c, sum], none());
        let y = one(&mut g, "GlobalAveragePool", "pool", &[sum], none());
        let y = one(&mut g, "Flatten", "flat", &[y], none());
        let (w, b) = (weight(&mut g, &[5, 16]), weight(&mut g, &[5]));
        let y = one(&mut g, "Gemm", "last", &[y, w, b], none().int("transB", 1));
        finish(g, y)
    }

    /// Concatenation, a split, a grouped convolution, and an image that is flattened.
    fn joined() -> Graph {
        let mut g = Graph::new("joined");
        let size = vec![Dim::named("n"), Dim::Is(3), Dim::Is(4), Dim::Is(4)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let none = Attrs::new;
        let a = conv(&mut g, "a", x, [6, 3, 3, 3], 1, 1);
        let b = conv(&mut g, "b", x, [4, 3, 1, 1], 1, 1);
        let y = one(&mut g, "Concat", "join", &[a, b], none().int("axis", 1));
        let c = conv(&mut g, "c", y, [8, 10, 1, 1], 1, 1);
        let d = conv(&mut g, "d", c, [8, 4, 3, 3], 2, 1);
        let parts = ints(&mut g, &[5, 5]);
        let parts = add(&mut g, "Split", "split", &[y, parts], none().int("axis", 1), 2);
        let e = conv(&mut g, "e", parts[1], [8, 5, 1, 1], 1, 1);
        let y = one(&mut g, "Mul", "gate", &[d, e], none());
        let shape = ints(&mut g, &[0, 128]);
        let y = one(&mut g, "Reshape", "flat", &[y, shape], none());
        let w = weight(&mut g, &[128, 5]);
        let y = one(&mut g, "MatMul", "f", &[y, w], none());
        finish(g, y)
    }

    /// A block of attention and a feed-forward of neurons, with normalisation after each.
    pub(crate) fn attention() -> Graph {
        let mut g = Graph::new("attention");
        let size = vec![Dim::named("n"), Dim::named("t"), Dim::Is(12)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let none = Attrs::new;
        let linear = |g: &mut Graph, name: &str, x: ValueId, shape: [usize; 2]| {
            let (w, b) = (weight(g, &shape), weight(g, &shape[1..]));
            let y = one(g, "MatMul", name, &[x, w], Attrs::new());
            one(g, "Add", &format!("{name}_bias"), &[y, b], Attrs::new())
        };
        let heads = |g: &mut Graph, name: &str, perm: &[i64; 4]| {
            let y = linear(g, name, x, [12, 12]);
            let shape = ints(g, &[0, 0, 3, 4]);
            let y = one(g, "Reshape", "heads", &[y, shape], Attrs::new());
            one(g, "Transpose", "turned", &[y], Attrs::new().ints("perm", perm))
        };
        let q = heads(&mut g, "q", &[0, 2, 1, 3]);
        let k = heads(&mut g, "k", &[0, 2, 3, 1]);
        let v = heads(&mut g, "v", &[0, 2, 1, 3]);
        let scores = one(&mut g, "MatMul", "scores", &[q, k], none());
        let scores = one(&mut g, "Softmax", "shares", &[scores], none().int("axis", -1));
        let y = one(&mut g, "MatMul", "mixed", &[scores, v], none());
        let y = one(&mut g, "Transpose", "back", &[y], none().ints("perm", &[0, 2, 1, 3]));
        let shape = ints(&mut g, &[0, 0, 12]);
        let y = one(&mut g, "Reshape", "joined", &[y, shape], none());
        let y = linear(&mut g, "o", y, [12, 12]);
        let y = one(&mut g, "Add", "sum", &[y, x], none());
        let (scale, bias) = (weight(&mut g, &[12]), weight(&mut g, &[12]));
        let y = one(&mut g, "LayerNormalization", "norm", &[y, scale, bias], none());
        let up = linear(&mut g, "up", y, [12, 20]);
        let half = g.add_constant("half", Tensor::scalar(0.5f32));
        let gate = one(&mut g, "Erf", "erf", &[up], none());
        let gate = one(&mut g, "Mul", "half_gate", &[gate, half], none());
        let up = one(&mut g, "Mul", "gated", &[up, gate], none());
        let down = linear(&mut g, "down", up, [20, 12]);
        let y = one(&mut g, "Add", "sum2", &[down, y], none());
        finish(g, y)
    }

    fn run(graph: &Graph) -> Tensor {
        let fact = &graph.value(graph.inputs[0]).fact;
        let shape: Vec<usize> = fact.shape().unwrap().iter().map(|d| d.size().unwrap_or(2)).collect();
        let session = Session::new(graph.clone(), &cpu()).unwrap();
        session.run(vec![("x", ramp(&shape).into())]).unwrap()[0].tensor().unwrap().clone()
    }

    /// Zeros in the columns of all weights that read a channel.
    fn silence(graph: &mut Graph, group: &Group, unit: usize) {
        for (_, axis) in &group.readers {
            let mut tensor = graph.constant(axis.0).unwrap().clone();
            let shape = tensor.shape().to_vec();
            let inner: usize = shape[axis.1 + 1..].iter().product();
            for (k, v) in tensor.as_mut_slice::<f32>().unwrap().iter_mut().enumerate() {
                if group.units[unit].of(*axis).contains(&((k / inner % shape[axis.1]) as u32)) {
                    *v = 0.0;
                }
            }
            graph.set_constant(axis.0, tensor);
        }
    }

    fn named<'a>(groups: &'a [Group], name: &str) -> &'a Group {
        groups.iter().find(|g| g.name == name).unwrap_or_else(|| panic!("no group {name}"))
    }

    #[test]
    fn a_model_without_a_channel_is_the_model_that_does_not_read_it() {
        for graph in [residual(), joined(), attention()] {
            let found = groups(&graph);
            for group in &found {
                for unit in (0..group.units.len()).filter(|&u| group.units[u].free) {
                    let what = format!("{} without {unit} of {}", graph.name, group.name);
                    let mut silent = graph.clone();
                    silence(&mut silent, group, unit);
                    let mut small = graph.clone();
                    let keep: Vec<u32> =
                        (0..group.units.len() as u32).filter(|&u| u as usize != unit).collect();
                    cut(&mut small, &[(group, &keep)]).unwrap_or_else(|e| panic!("{what}: {e}"));
                    let (a, b) = (run(&silent), run(&small));
                    assert_eq!(a.shape(), b.shape(), "{what}");
                    let (a, b) = (a.as_slice::<f32>().unwrap(), b.as_slice::<f32>().unwrap());
                    let most = a.iter().fold(1f32, |m, v| m.max(v.abs()));
                    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * most), "{what}: {a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn channels_are_free_where_nothing_holds_them() {
        let found = groups(&residual());
        let sizes: Vec<(&str, usize, usize)> =
            found.iter().map(|g| (g.name.as_str(), g.units.len(), g.free())).collect();
        // Channels of the first stage go on into the second through the padded shortcut; the rest of the second's
        // are made by its own convolution.
        assert_eq!(sizes, [("stem", 8, 8), ("a1", 8, 8), ("b1", 16, 16), ("b2", 8, 8), ("c1", 24, 24)]);
        let stem = named(&found, "stem");
        assert_eq!((stem.makers.len(), stem.readers.len()), (4, 4));
        let found = groups(&joined());
        // The grouped convolution loses the same places of its groups.
        assert_eq!(named(&found, "c").free(), 4);
        assert_eq!(named(&found, "a").free() + named(&found, "b").free(), 10);
        let found = groups(&attention());
        let sizes: Vec<(&str, usize)> = found.iter().map(|g| (g.name.as_str(), g.free())).collect();
        assert_eq!(sizes, [("q", 3), ("up", 20)]);
        assert_eq!(named(&found, "q").makers.len(), 3);
    }

    #[test]
    fn what_cannot_go_is_said() {
        let mut g = residual();
        let found = groups(&g);
        let stem = named(&found, "stem");
        for (keep, want) in [(vec![], "must stay"), (vec![3, 1], "ascending"), (vec![0, 8], "no channel 8")] {
            let error = cut(&mut g, &[(stem, &keep)]).unwrap_err().to_string();
            assert!(error.contains("\"stem\"") && error.contains(want), "{error}");
        }
        let mut held = stem.clone();
        held.units[2].free = false;
        assert!(cut(&mut g, &[(&held, &[0, 1])]).unwrap_err().to_string().contains("channel 2 cannot go"));
    }
}
