//! Tables of tokens without the rows that nobody needs. The model still takes every token: a small table at its input
//! says which row stands for it, its own, that of the unknown token, or the one most like it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use graph::op::{Reader, WeightKind};
use graph::{Attrs, DType, Graph, Node, NodeId, Tensor, ValueId};
use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;
use serde::{Deserialize, Serialize};

use crate::matrix::Matrix;
use crate::observe::observe;
use crate::pass::Context;
use crate::walk::Example;
use crate::weights::{Weight, weights};
use crate::{Error, Result};

/// Token ids in ascending order. In a plan: `0-999 1012 1996-1999`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Ids(Vec<u32>);

impl Ids {
    /// These ids, in order and each once.
    pub fn new(ids: impl IntoIterator<Item = u32>) -> Ids {
        let mut ids: Vec<u32> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Ids(ids)
    }

    /// The ids.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        let run = |r: &[u32]| match r {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        };
        f.write_str(&runs.map(run).collect::<Vec<_>>().join(" "))
    }
}

/// Most tokens of a vocabulary that a plan can speak of: more is a damaged plan.
const MOST: u32 = 1 << 24;

impl FromStr for Ids {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Ids, String> {
        let mut ids = Vec::new();
        for run in text.split_whitespace() {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            match (first.parse::<u32>(), last.parse::<u32>()) {
                (Ok(first), Ok(last)) if first <= last && last < MOST && ids.len() < MOST as usize => {
                    ids.extend(first..=last);
                }
                _ => return Err(format!("{run:?} is no run of token ids; say 17 or 100-200")),
            }
        }
        Ok(Ids::new(ids))
    }
}

impl From<Ids> for String {
    fn from(ids: Ids) -> String {
        ids.to_string()
    }
}

impl TryFrom<String> for Ids {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Ids, String> {
        text.parse()
    }
}

/// What stands for a token whose row is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lost {
    /// The row of this token, which is kept in any case.
    Unknown(u32),
    /// The kept row nearest to its own.
    Nearest,
}

/// A table that keeps some of its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The table.
    pub table: String,
    /// The tokens whose rows are kept.
    pub keep: Ids,
    /// What stands for the others.
    pub lost: Lost,
}

/// How often each row of a table is looked up; all 0 when the examples do not tell.
///
/// # Errors
/// When the model cannot be run.
pub fn counts(graph: &Graph, table: &Weight, examples: &[Example], cpu: &Cpu) -> Result<Vec<u64>> {
    let rows = graph.constant(table.value).and_then(|t| t.shape().first().copied()).unwrap_or(0);
    let mut counts = vec![0u64; rows];
    let indices: Vec<ValueId> =
        lookups(graph, table.value).iter().filter_map(|n| graph.node(*n)?.input(1)).collect();
    let mut add = |tensor: &Tensor| -> Result<()> {
        for id in tensor.to_ints()? {
            let at = if id < 0 { id + rows as i64 } else { id };
            if let Some(count) = usize::try_from(at).ok().and_then(|at| counts.get_mut(at)) {
                *count += 1;
            }
        }
        Ok(())
    };
    if indices.is_empty() || examples.is_empty() {
        return Ok(counts);
    }
    observe(graph, &indices, examples, cpu, &mut |found| {
        found.iter().try_for_each(|datum| add(datum.tensor()?))
    })?;
    Ok(counts)
}

/// The tokens that were seen at least so often, and these special ones.
pub fn seen(counts: &[u64], least: u64, special: impl IntoIterator<Item = u32>) -> Ids {
    let special = special.into_iter().filter(|id| (*id as usize) < counts.len());
    let often = counts.iter().enumerate().filter(|(_, count)| **count >= least.max(1));
    Ids::new(often.map(|(id, _)| id as u32).chain(special))
}

/// The nodes that look up rows of a table.
fn lookups(graph: &Graph, table: ValueId) -> Vec<NodeId> {
    let is = |node: &Node| {
        node.kind() == "Gather"
            && node.op.domain().is_empty()
            && node.input(0) == Some(table)
            && node.op.attrs().int_or("axis", 0).is_ok_and(|a| a == 0)
    };
    graph.nodes().filter(|(_, node)| is(node)).map(|(id, _)| id).collect()
}

/// The tables of embeddings with at least so many rows, the longest first: where tokens are looked up.
///
/// # Errors
/// When a weight holds numbers that are not finite.
pub fn tables(graph: &Graph, least: usize) -> Result<Vec<Weight>> {
    let rows = |w: &Weight| graph.constant(w.value).and_then(|t| t.shape().first().copied()).unwrap_or(0);
    let mut found: Vec<Weight> = Vec::new();
    for weight in weights(graph)? {
        let twice = found.iter().any(|w| w.value == weight.value);
        if weight.used.kind == WeightKind::Embedding && !twice && rows(&weight) >= least {
            found.push(weight);
        }
    }
    found.sort_by_key(|w| (std::cmp::Reverse(rows(w)), w.node));
    Ok(found)
}

/// As [`trim`]. No data are needed.
///
/// # Errors
/// As there.
pub fn apply(graph: &mut Graph, cut: &Cut, cx: &Context) -> Result<f64> {
    trim(graph, cut, cx.cpu)
}

/// Takes rows out of a table. Gives the squared error of its rows, relative to their squares, all tokens counting alike.
/// An output head that shares the table, or that has one output for each of its rows, loses the same: its scores of
/// tokens that are gone are the least number, so that outputs keep their shape.
///
/// # Errors
/// [`Error::Plan`] when the graph has no such table, or a token is not in it; [`Error::Form`] when the table is used in
/// ways that cannot be written.
pub fn trim(graph: &mut Graph, cut: &Cut, cpu: &Cpu) -> Result<f64> {
    let fail = |what: &str| Error::Plan(format!("table {:?}: {what}", cut.table));
    let table = graph.find(&cut.table).ok_or_else(|| fail("the model has none of this name"))?;
    let tensor = graph.constant(table).filter(|t| t.rank() == 2).cloned();
    let tensor = tensor.ok_or_else(|| fail("it is no table of constant rows"))?;
    let (rows, cols) = (tensor.shape()[0], tensor.shape()[1]);
    let unknown = match cut.lost {
        Lost::Unknown(id) => Some(id),
        Lost::Nearest => None,
    };
    let keep = Ids::new(cut.keep.as_slice().iter().copied().chain(unknown));
    let keep: Vec<usize> = keep.as_slice().iter().map(|&id| id as usize).collect();
    match keep.last() {
        Some(&last) if last < rows => {}
        Some(last) => return Err(fail(&format!("there is no token {last} among its {rows}"))),
        None => return Err(fail("no token is kept")),
    }
    let readers = lookups(graph, table);
    if readers.is_empty() {
        return Err(fail("no node looks up its rows"));
    }
    if keep.len() == rows {
        return Ok(0.0);
    }
    let matrix = Matrix::new(rows, cols, tensor.values::<f32>()?.into_owned());
    let place = match unknown {
        Some(id) => {
            let own = keep.iter().position(|&k| k == id as usize).unwrap_or(0);
            places(rows, &keep, |_| own)
        }
        None => {
            let near = nearest(cpu, &matrix, &keep);
            places(rows, &keep, |id| near[id])
        }
    };
    let heads = heads(graph, table, rows)?;
    // Lookups.
    let map = remap(graph, &cut.table, &place, keep.len())?;
    let mut mapped: HashMap<ValueId, ValueId> = HashMap::new();
    let small = graph.add_constant(&cut.table, select(&tensor, 0, &keep)?);
    for id in readers {
        let Some(ids) = graph.node(id).and_then(|n| n.input(1)) else { continue };
        let indices = match mapped.get(&ids) {
            Some(&made) => made,
            None => {
                let name = format!("{}.row", cut.table);
                let mut made = add(graph, "Gather", &name, &[map, ids], Attrs::new(), Some(id))?;
                if graph.constant(map).is_some_and(|t| t.dtype() != DType::I32) {
                    let to = Attrs::new().int("to", i64::from(DType::I32.to_onnx()));
                    made = add(graph, "Cast", &name, &[made], to, Some(id))?;
                }
                mapped.insert(ids, made);
                made
            }
        };
        graph.set_input(id, 0, Some(small));
        graph.set_input(id, 1, Some(indices));
    }
    for head in heads {
        shorten(graph, &head, &keep, rows)?;
    }
    graph.sort()?;
    graph::tidy::remove_dead(graph);
    graph.infer()?;
    graph.check()?;
    let moved = (0..rows).flat_map(|id| matrix.row(keep[place[id]]).to_vec()).collect();
    Ok(matrix.distance(&Matrix::new(rows, cols, moved)))
}

/// For each token the place of the row that stands for it.
fn places(rows: usize, keep: &[usize], lost: impl Fn(usize) -> usize) -> Vec<usize> {
    (0..rows).map(|id| keep.binary_search(&id).unwrap_or_else(|_| lost(id))).collect()
}

/// Rows that are compared at once.
const TILE: usize = 1024;

/// For each row the place of the kept row nearest to it.
fn nearest(cpu: &Cpu, table: &Matrix, keep: &[usize]) -> Vec<usize> {
    let n = table.cols;
    let kept = Matrix::new(keep.len(), n, keep.iter().flat_map(|&id| table.row(id).to_vec()).collect());
    let halves: Vec<f32> = kept.each_row().map(|r| r.iter().map(|x| x * x).sum::<f32>() / 2.0).collect();
    let mut found = vec![0usize; table.rows];
    for first in (0..table.rows).step_by(TILE) {
        let count = TILE.min(table.rows - first);
        let mut products = vec![0f32; count * keep.len()];
        let x = View::new(&table.data[first * n..][..count * n], count, n);
        let y = View::new(&kept.data, keep.len(), n).t();
        matmul(cpu, x, y, &mut products, keep.len(), &Post::default());
        for (found, line) in found[first..].iter_mut().zip(products.chunks_exact(keep.len())) {
            let far = |k: usize| halves[k] - line[k];
            *found = (0..keep.len()).min_by(|&a, &b| far(a).total_cmp(&far(b))).unwrap_or(0);
        }
    }
    found
}

/// The table at the input: two bytes a token where they suffice.
fn remap(graph: &mut Graph, name: &str, place: &[usize], kept: usize) -> Result<ValueId> {
    let tensor = match u16::try_from(kept.saturating_sub(1)) {
        Ok(_) => Tensor::vector(&place.iter().map(|&p| p as u16).collect::<Vec<_>>()),
        Err(_) => Tensor::vector(&place.iter().map(|&p| p as i32).collect::<Vec<_>>()),
    };
    Ok(graph.add_constant(&format!("{name}.rows"), tensor))
}

/// Slices of an f32 tensor along an axis.
fn select(tensor: &Tensor, axis: usize, keep: &[usize]) -> Result<Tensor> {
    let data = tensor.values::<f32>()?;
    let mut shape = tensor.shape().to_vec();
    let inner: usize = shape[axis + 1..].iter().product();
    let step = shape[axis] * inner;
    shape[axis] = keep.len();
    let blocks = data.chunks_exact(step.max(1));
    let out: Vec<f32> =
        blocks.flat_map(|b| keep.iter().flat_map(|&k| b[k * inner..][..inner].to_vec())).collect();
    Ok(Tensor::new(&shape, &out)?)
}

/// A product with one output for each token.
struct Head {
    node: NodeId,
    /// The axis of the weight along which tokens lie.
    axis: usize,
    /// The node that adds a bias after it, and which of its inputs that is.
    bias: Option<(NodeId, usize)>,
    /// The scores.
    scores: ValueId,
}

/// The products that have one output for each row of the table: with the table itself as their weight, as it is or
/// turned, or with one of its size when its scores are an output.
fn heads(graph: &Graph, table: ValueId, rows: usize) -> Result<Vec<Head>> {
    let readers = graph.readers();
    let cols = graph.constant(table).and_then(|t| t.shape().get(1).copied()).unwrap_or(0);
    let turned = |id: &NodeId| graph.node(*id).filter(|n| n.kind() == "Transpose").and_then(|n| n.output(0));
    let mut tied: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
    let known = lookups(graph, table);
    for reader in readers[table.index()].iter().filter(|id| !known.contains(id)) {
        match turned(reader) {
            Some(value) => tied.insert(value, readers[value.index()].clone()),
            None => tied.insert(table, readers[table.index()].clone()),
        };
    }
    let mut found = Vec::new();
    let mut explained: Vec<NodeId> = known;
    for (id, node) in graph.nodes() {
        let used = node.op.weight().filter(|w| w.kind == WeightKind::MatMul && w.input == 1);
        let (Some(used), Some(weight), Some(made)) = (used, node.input(1), node.output(0)) else { continue };
        let shape = match graph.constant(weight) {
            Some(tensor) => tensor.shape().to_vec(),
            None if tied.contains_key(&weight) => vec![cols, rows],
            None => continue,
        };
        if shape.len() != 2 {
            continue;
        }
        let axis = graph::infer::axis(used.out_axis, 2)?;
        if shape[axis] != rows || shape[1 - axis] != cols {
            continue;
        }
        let (mut scores, mut bias) = (made, node.input(2).map(|_| (id, 2)));
        if let (None, &[sum]) = (bias, readers[made.index()].as_slice())
            && let Some(other) =
                graph.node(sum).filter(|n| n.kind() == "Add" && !graph.outputs.contains(&made))
        {
            let at = usize::from(other.input(0) == Some(made));
            if other.input(at).and_then(|b| graph.constant(b)).is_some_and(|b| b.len() == rows) {
                (bias, scores) = (Some((sum, at)), other.output(0).unwrap_or(made));
            }
        }
        if !tied.contains_key(&weight) && !graph.outputs.contains(&scores) {
            continue;
        }
        explained.push(id);
        found.push(Head { node: id, axis, bias, scores });
    }
    if tied.values().flatten().any(|id| !explained.contains(id) && turned(id).is_none()) {
        let name = &graph.value(table).name;
        let what = "it is read by nodes that neither look up rows nor score tokens";
        return Err(Error::Form(format!("table {name:?}: {what}")));
    }
    Ok(found)
}

/// A head with outputs for the kept tokens only, spread out again to the places of all.
fn shorten(graph: &mut Graph, head: &Head, keep: &[usize], rows: usize) -> Result<()> {
    let weight = graph.node(head.node).and_then(|n| n.input(1));
    let Some(weight) = weight else { return Ok(()) };
    let name = graph.value(weight).name.clone();
    let tensor = match (graph.constant(weight), graph.producer(weight).and_then(|(_, n)| n.input(0))) {
        (Some(tensor), _) => select(tensor, head.axis, keep)?,
        (None, Some(table)) => {
            let Some(table) = graph.constant(table) else { return Ok(()) };
            let part = select(table, 0, keep)?;
            let (n, cols) = (keep.len(), table.shape()[1]);
            let turned = Matrix::new(n, cols, part.values::<f32>()?.into_owned()).transposed();
            Tensor::new(&[cols, n], &turned.data)?
        }
        _ => return Ok(()),
    };
    let small = graph.add_constant(&name, tensor);
    graph.set_input(head.node, 1, Some(small));
    if let Some((node, at)) = head.bias
        && let Some(bias) = graph.node(node).and_then(|n| n.input(at))
        && let Some(tensor) = graph.constant(bias).filter(|t| t.shape().last() == Some(&rows)).cloned()
    {
        let like = graph.value(bias).name.clone();
        let small = graph.add_constant(&like, select(&tensor, tensor.rank() - 1, keep)?);
        graph.set_input(node, at, Some(small));
    }
    // One more score, the least there is, for all tokens that are gone.
    let maker = head.bias.map_or(head.node, |(node, _)| node);
    let Some(rank) = graph.value(head.scores).fact.rank() else {
        return Err(Error::Form(format!("the rank of {:?} is not known", graph.value(head.scores).name)));
    };
    let short = graph.fresh_name(&format!("{name}.scores"));
    let short = graph.add_value(graph::Value::named(&short))?;
    graph.set_output(maker, 0, Some(short))?;
    let mut pads = vec![0i64; 2 * rank];
    pads[2 * rank - 1] = 1;
    let pads = graph.add_constant("pads", Tensor::vector(&pads));
    let least = graph.add_constant("least", Tensor::scalar(f32::MIN));
    let place = places(rows, keep, |_| keep.len());
    let place = Tensor::vector(&place.into_iter().map(|p| p as i32).collect::<Vec<_>>());
    let place = graph.add_constant(&format!("{name}.places"), place);
    let attrs = Attrs::new().int("axis", rank as i64 - 1);
    let padded = add(graph, "Pad", &format!("{name}.padded"), &[short, pads, least], Attrs::new(), None)?;
    let mut spread = Node::new(read("Gather", &attrs, 2)?, vec![Some(padded), Some(place)]);
    spread.name = format!("{name}.spread");
    spread.outputs = vec![Some(head.scores)];
    graph.add_node(spread)?;
    Ok(())
}

fn read(kind: &str, attrs: &Attrs, inputs: usize) -> Result<std::sync::Arc<dyn graph::Op>> {
    Ok(graph::ops::read("", kind, &Reader { attrs, version: 13, inputs, outputs: 1 })?)
}

fn add(
    graph: &mut Graph,
    kind: &str,
    name: &str,
    inputs: &[ValueId],
    attrs: Attrs,
    before: Option<NodeId>,
) -> Result<ValueId> {
    let node = Node::new(read(kind, &attrs, inputs.len())?, inputs.iter().copied().map(Some).collect());
    Ok(graph.add_with_outputs(name, node, 1, before)?.1[0])
}

#[cfg(test)]
mod tests;
