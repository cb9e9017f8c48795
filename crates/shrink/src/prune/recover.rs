//! Least-squares recovery: the original and the cut model run side by side, and each weight of the cut one is fitted, in
//! the order of the graph, to what the original makes there. The weight sees what the fitted weights before it make;
//! a constant 1 beside its inputs makes the bias part of the fit; where its output is added to a shortcut it also makes
//! up for what the shortcut lacks. Where `Relu` or `Clip` follows, only what comes through it counts. With F the inputs, R what is missing: `[W' b'] = [W b] + R F^T (F F^T + lam I)^-1`.

use std::collections::BTreeMap;

use graph::op::WeightKind;
use graph::run::Session;
use graph::{Datum, Graph, Node, NodeId, Tensor, ValueId};
use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use super::groups::{Axis, Kept};
use crate::carry::Examples;
use crate::matrix::{Layout, Matrix};
use crate::walk::{Example, Stages, State};
use crate::weights::{self, Weight};
use crate::{Error, Result};
use learn::linear::Cholesky;

/// The share of the mean of the diagonal that is added to it: the fit starts from the weights as they are.
const DAMP: f64 = 1e-2;
/// Weights with more inputs than this are fitted only when they lost some.
const WIDE: usize = 2048;
/// How often a weight is fitted whose output is cut off.
const PASSES: usize = 4;
/// Rows that are multiplied at once.
const ROWS: usize = 4096;

/// Fits the weights of `new`, of which `kept` is left of `old`. Ids are the same in both.
///
/// # Errors
/// When a model cannot be run, or what a weight reads is not finite.
pub fn recover(old: &Graph, new: &mut Graph, kept: &Kept, examples: &Examples, cpu: &Cpu) -> Result<()> {
    let found: Vec<Weight> =
        weights::weights(new)?.into_iter().filter(|w| is_reached(new, kept, w)).collect();
    let stops: Vec<&Weight> = found.iter().collect();
    let stages = Stages::new(new, &stops);
    let start = |graph: &Graph| examples.carried(&|e| Ok(stages.start(graph, e)?.into_iter().collect()));
    let (mut before, mut after) = (start(old)?, start(new)?);
    for stage in 0..stages.count {
        let session = |graph: &Graph| stages.segment(graph, stage).map(|s| Session::new(s, cpu)).transpose();
        let (first, second) = (session(old)?, session(new)?);
        let here = stops.iter().filter(|w| stages.of_weight.get(&w.node) == Some(&stage));
        let mut fits: Vec<Fit> = here.filter_map(|w| Fit::new(old, new, kept, w)).collect();
        for at in 0..before.len() {
            let [mut x, mut y]: [State; 2] =
                [before.take(at)?, after.take(at)?].map(|list| list.into_iter().collect());
            if let Some(session) = &first {
                stages.advance(session, &mut x)?;
            }
            if let Some(session) = &second {
                stages.advance(session, &mut y)?;
            }
            fits.iter_mut().try_for_each(|fit| fit.add(old, new, &x, &y, kept, cpu, &mut None))?;
            before.put(at, x.into_iter().collect())?;
            after.put(at, y.into_iter().collect())?;
        }
        fits.iter_mut().try_for_each(|fit| fit.step(new))?;
        // What is cut off depends on the fit: it is found step by step.
        for _ in 1..PASSES {
            for fit in fits.iter_mut().filter(|fit| fit.site.bounds.is_some()) {
                let mut piece = Some(0);
                for at in 0..before.len() {
                    let [x, y]: [State; 2] =
                        [before.get(at)?, after.get(at)?].map(|list| list.into_iter().collect());
                    fit.add(old, new, &x, &y, kept, cpu, &mut piece)?;
                }
                fit.step(new)?;
            }
        }
        fits.into_iter().try_for_each(|fit| fit.finish(new))?;
    }
    Ok(())
}

/// Whether the weight reads or lost anything that changed.
fn is_reached(graph: &Graph, kept: &Kept, weight: &Weight) -> bool {
    let lost = kept.keys().any(|axis| axis.0 == weight.value);
    let narrow = graph.constant(weight.value).is_some_and(|t| {
        let rows = Layout::of(graph, weight).map_or(usize::MAX, |l| l.rows);
        t.len().checked_div(rows).is_some_and(|cols| cols <= WIDE)
    });
    lost || narrow
}

/// Where a node's bias stands.
#[derive(Clone, Copy)]
enum Bias {
    /// At the node's third input, if it is there.
    Input(Option<ValueId>),
    /// A constant that the only reader of the output adds.
    Added(NodeId, usize, ValueId),
}

/// What surrounds a weight that may be fitted.
pub(super) struct Site {
    bias: Option<Bias>,
    /// What its output is added to.
    beside: Option<ValueId>,
    /// Below and above which the sum is cut off, when nothing reads it but a function that does so.
    bounds: Option<[f32; 2]>,
    is_conv: bool,
}

impl Site {
    /// `None` when the node scales its product, or other nodes read the weight, too.
    pub(super) fn of(graph: &Graph, node: &Node, weight: &Weight, rows: usize) -> Option<Site> {
        let attrs = node.op.attrs();
        let plain = |name: &str| attrs.float_or(name, 1.0).is_ok_and(|v| v == 1.0);
        let readers = graph.readers();
        let reads = |v: ValueId| readers[v.index()].as_slice();
        if !plain("alpha") || !plain("beta") || reads(weight.value).len() != 1 {
            return None;
        }
        // The only node that reads a value, when it adds another to it.
        let adds = |v: ValueId| {
            let &[reader] = reads(v) else { return None };
            let add = graph.node(reader).filter(|n| n.kind() == "Add" && !graph.outputs.contains(&v))?;
            let at = usize::from(add.input(0) == Some(v));
            Some((reader, at, add.input(at)?, add.output(0)?))
        };
        let is_conv = weight.used.kind == WeightKind::Conv;
        let mut bias = (is_conv || node.kind() == "Gemm").then(|| Bias::Input(node.input(2)));
        if let Some(Bias::Input(Some(b))) = bias
            && graph.constant(b).is_none_or(|t| t.shape() != [rows])
        {
            return None;
        }
        let mut out = node.output(0)?;
        let (mut beside, mut odd) = (None, false);
        while let Some((reader, at, other, sum)) = adds(out) {
            match graph.constant(other) {
                Some(t) if bias.is_none() && t.shape() == [rows] && reads(other).len() == 1 => {
                    bias = Some(Bias::Added(reader, at, other));
                }
                Some(_) => odd = true,
                None => {
                    let shape = |v: ValueId| graph.value(v).fact.shape();
                    beside = shape(out).is_some_and(|s| shape(other) == Some(s)).then_some(other);
                    out = if beside.is_some() { sum } else { out };
                    break;
                }
            }
            out = sum;
        }
        let bounds = match reads(out) {
            &[reader] if !odd && !graph.outputs.contains(&out) => {
                graph.node(reader).and_then(|n| bounds(graph, n))
            }
            _ => None,
        };
        Some(Site { bias, beside, bounds, is_conv })
    }

    /// The bias; zeros when there is none yet.
    pub(super) fn bias(&self, graph: &Graph, rows: usize) -> Vec<f32> {
        let id = match self.bias {
            Some(Bias::Input(id)) => id,
            Some(Bias::Added(_, _, id)) => Some(id),
            None => None,
        };
        id.and_then(|id| constant_rows(graph, id)).unwrap_or_else(|| vec![0.0; rows])
    }

    /// Puts a fitted weight and its bias into the graph.
    pub(super) fn write(
        &self,
        graph: &mut Graph,
        node: NodeId,
        value: ValueId,
        tensor: Tensor,
        bias: &[f32],
    ) {
        graph.set_constant(value, tensor);
        let Some(place) = self.bias else { return };
        let name = format!("{}_bias", graph.value(value).name);
        let new = graph.add_constant(&name, Tensor::vector(bias));
        match place {
            Bias::Input(_) => graph.set_input(node, 2, Some(new)),
            Bias::Added(node, at, _) => graph.set_input(node, at, Some(new)),
        }
    }
}

/// Where a function cuts its input off.
fn bounds(graph: &Graph, node: &Node) -> Option<[f32; 2]> {
    let bound = |i: usize, or: f32| match node.input(i) {
        Some(v) => graph.constant(v)?.item::<f32>().ok(),
        None => Some(or),
    };
    match node.kind() {
        "Relu" => Some([0.0, f32::INFINITY]),
        "Clip" if node.op.attrs().get("min").is_none() && node.op.attrs().get("max").is_none() => {
            Some([bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?])
        }
        _ => None,
    }
}

/// A weight that is fitted.
struct Fit {
    node: NodeId,
    value: ValueId,
    /// How the weight lies in the cut model and in the original.
    layouts: [Layout; 2],
    /// The weight in the cut model, and the rows of the original's that stay.
    weights: [Matrix; 2],
    /// Which group of the original's inputs each group reads.
    groups: Vec<usize>,
    site: Site,
    /// The bias as it is fitted, and that of the original's rows that stay.
    biases: [Vec<f32>; 2],
    parts: Vec<Part>,
    /// What the original makes, shortcut included: a piece after the other, for a fit of several passes.
    wanted: Vec<Vec<f32>>,
    /// False when the inputs cannot be seen.
    known: bool,
}

/// The sums of one group of a weight's rows.
struct Part {
    /// Products of the inputs, a 1 appended when there is a bias.
    gram: Vec<f64>,
    factor: Option<Cholesky>,
    /// Products of what is missing with the inputs, row by row.
    cross: Vec<f64>,
    count: usize,
}

fn constant_rows(graph: &Graph, id: ValueId) -> Option<Vec<f32>> {
    Some(graph.constant(id)?.values::<f32>().ok()?.into_owned())
}

impl Fit {
    fn new(old: &Graph, new: &Graph, kept: &Kept, weight: &Weight) -> Option<Fit> {
        let layouts = [Layout::of(new, weight)?, Layout::of(old, weight)?];
        let read = |graph: &Graph, layout: &Layout| layout.read(graph.constant(weight.value)?).ok();
        let (now, was) = (read(new, &layouts[0])?, read(old, &layouts[1])?);
        let axis = graph::infer::axis(weight.used.out_axis, layouts[1].shape().len()).ok()?;
        let rows: Vec<usize> = match kept.get(&(weight.value, axis)) {
            Some(rows) => rows.iter().map(|&r| r as usize).collect(),
            None => (0..was.rows).collect(),
        };
        if rows.len() != now.rows {
            return None;
        }
        let mut stays = Matrix::zeros(now.rows, was.cols);
        rows.iter().enumerate().for_each(|(i, &r)| stays.row_mut(i).copy_from_slice(was.row(r)));
        let node = new.node(weight.node)?;
        let site = Site::of(new, node, weight, now.rows)?;
        let groups: Vec<usize> = (0..layouts[0].groups)
            .map(|g| {
                layouts[1].group_of(rows.get(g * now.rows / layouts[0].groups.max(1)).copied().unwrap_or(0))
            })
            .collect();
        let (m, n) = (now.rows / layouts[0].groups.max(1), now.cols + usize::from(site.bias.is_some()));
        let part = || Part { gram: vec![0.0; n * n], factor: None, cross: vec![0.0; m * n], count: 0 };
        let parts = groups.iter().map(|_| part()).collect();
        let weights = [now, stays];
        let (node, value) = (weight.node, weight.value);
        let biases = match site.bias {
            Some(Bias::Input(Some(id)) | Bias::Added(_, _, id)) => {
                let was = constant_rows(old, id)?;
                let was = match kept.get(&(id, 0)) {
                    Some(kept) => kept.iter().filter_map(|&k| was.get(k as usize).copied()).collect(),
                    None => was,
                };
                [constant_rows(new, id)?, was]
            }
            _ => [vec![0.0; weights[0].rows], vec![0.0; weights[0].rows]],
        };
        let fits = biases.iter().all(|b| b.len() == weights[0].rows);
        fits.then_some(Fit {
            node,
            value,
            layouts,
            weights,
            groups,
            site,
            biases,
            parts,
            wanted: Vec::new(),
            known: true,
        })
    }

    /// Adds what one example shows. In later passes `piece` counts the pieces that are already known.
    #[expect(clippy::too_many_arguments, reason = "both models and what they made")]
    fn add(
        &mut self,
        old: &Graph,
        new: &Graph,
        x: &State,
        y: &State,
        kept: &Kept,
        cpu: &Cpu,
        piece: &mut Option<usize>,
    ) -> Result<()> {
        let Some(node) = new.node(self.node) else { return Ok(()) };
        let input = |state: &State| match state.get(&node.input(0)?) {
            Some(Datum::Tensor(t)) => Some(t.clone()),
            _ => None,
        };
        let (Some(was), Some(now)) = (input(x), input(y)) else {
            self.known = false;
            return Ok(());
        };
        let shortcut = self.site.beside.and_then(|v| match (x.get(&v)?, y.get(&v)?) {
            (Datum::Tensor(a), Datum::Tensor(b)) => narrowed(v, a, b, kept).ok().map(|a| [b.clone(), a]),
            _ => None,
        });
        // Without the shortcut nothing is known of where the sum is cut off.
        let bounds = self.site.bounds.filter(|_| self.site.beside.is_none() || shortcut.is_some());
        // An image at a time, so that the rows of both models come in the same order.
        let is_conv = self.site.is_conv;
        let images = if is_conv { now.shape()[0] } else { 1 };
        let image = |t: &Tensor, i: usize| -> Result<Tensor> {
            if !is_conv {
                return Ok(t.clone());
            }
            let mut shape = t.shape().to_vec();
            shape[0] = 1;
            let size = t.len() / images.max(1);
            Ok(Tensor::new(&shape, &t.as_slice::<f32>()?[i * size..][..size])?)
        };
        let (id, shapes) = (self.node, self.layouts.each_ref().map(|l| l.shape().to_vec()));
        let rows_of = |graph: &Graph, t: &Tensor, which: usize, into: &mut Vec<Vec<f32>>| -> Result<()> {
            let node = graph.node(id).ok_or_else(|| Error::Plan("a node is gone".into()))?;
            Ok(node.op.weight_rows(t, &shapes[which], &mut |g, rows| {
                if let Some(into) = into.get_mut(g) {
                    into.extend_from_slice(rows);
                }
            })?)
        };
        let count = self.layouts.each_ref().map(|l| l.groups);
        let empty = |which: usize| vec![Vec::new(); count[which]];
        let (mut news, mut olds, mut beside) = (empty(0), empty(1), [Vec::new(), Vec::new()]);
        let (mut known, m) = (true, self.weights[0].rows);
        let first = piece.is_none();
        for i in 0..images {
            known &= rows_of(new, &image(&now, i)?, 0, &mut news).is_ok();
            if first {
                known &= rows_of(old, &image(&was, i)?, 1, &mut olds).is_ok();
            }
            if !known {
                break;
            }
            for (shortcut, beside) in shortcut.iter().flatten().zip(&mut beside) {
                let shortcut = image(shortcut, i)?;
                let data = shortcut.as_slice::<f32>()?;
                match is_conv {
                    true => {
                        let plane = data.len() / m.max(1);
                        beside.extend((0..data.len()).map(|k| data[k % m * plane + k / m]));
                    }
                    false => beside.extend_from_slice(data),
                }
            }
            let rows = news.first().map_or(0, |n: &Vec<f32>| n.len() / self.weights[0].cols.max(1));
            if rows >= ROWS || i + 1 == images {
                self.sums(cpu, &news, &olds, &beside, bounds, piece)?;
                (news, olds, beside) = (empty(0), empty(1), [Vec::new(), Vec::new()]);
            }
        }
        self.known &= known;
        Ok(())
    }

    /// Adds rows of inputs of both models, and of what both shortcuts make (of all rows of the weight).
    fn sums(
        &mut self,
        cpu: &Cpu,
        news: &[Vec<f32>],
        olds: &[Vec<f32>],
        beside: &[Vec<f32>; 2],
        bounds: Option<[f32; 2]>,
        piece: &mut Option<usize>,
    ) -> Result<()> {
        let [now, was] = &self.weights;
        let m = now.rows / self.parts.len().max(1);
        for (g, part) in self.parts.iter_mut().enumerate() {
            let (x, y) = (&olds[self.groups[g]], &news[g]);
            let (n, wide) = (now.cols, was.cols);
            let count = y.len() / n.max(1);
            let made = |x: &[f32], which: usize| {
                let (mut out, w) = (vec![0f32; count * m], &self.weights[which]);
                let rows = View::new(&w.data[g * m * w.cols..], m, w.cols).t();
                matmul(cpu, View::new(x, count, w.cols), rows, &mut out, m, &Post::default());
                for (k, v) in out.iter_mut().enumerate() {
                    let (t, row) = (k / m, g * m + k % m);
                    *v += self.biases[which][row]
                        + beside[which].get(t * now.rows + row).copied().unwrap_or(0.0);
                }
                out
            };
            let is = made(y, 0);
            let wanted = match piece {
                Some(at) => {
                    *at += 1;
                    self.wanted.get(*at - 1).cloned().unwrap_or_default()
                }
                None if x.len() == count * wide => made(x, 1),
                None => Vec::new(),
            };
            if wanted.len() != is.len() || beside.iter().any(|b| !b.is_empty() && b.len() != count * now.rows)
            {
                return Err(Error::Graph(graph::Error::invalid(
                    "the two models differ in the rows of a weight",
                )));
            }
            let missing = |(&wanted, &is): (&f32, &f32)| match bounds {
                // What is cut off anyway may lie anywhere beyond.
                Some([low, _]) if wanted <= low => (low - is).min(0.0),
                Some([_, high]) if wanted >= high => (high - is).max(0.0),
                _ => wanted - is,
            };
            let missing: Vec<f32> = wanted.iter().zip(&is).map(missing).collect();
            if piece.is_none() && bounds.is_some() {
                self.wanted.push(wanted);
            }
            let width = n + usize::from(self.site.bias.is_some());
            let mut inputs = Vec::with_capacity(count * width);
            for row in y.chunks_exact(n.max(1)) {
                inputs.extend_from_slice(row);
                inputs.extend((width > n).then_some(1.0f32));
            }
            let f = View::new(&inputs, count, width);
            let mut cross = vec![0f32; m * width];
            matmul(cpu, View::new(&missing, count, m).t(), f, &mut cross, width, &Post::default());
            part.cross.iter_mut().zip(&cross).for_each(|(s, &v)| *s += f64::from(v));
            if piece.is_none() {
                let mut gram = vec![0f32; width * width];
                matmul(cpu, f.t(), f, &mut gram, width, &Post::default());
                part.gram.iter_mut().zip(&gram).for_each(|(s, &v)| *s += f64::from(v));
                part.count += count;
            }
        }
        Ok(())
    }

    /// Changes weight and bias by what is missing.
    fn step(&mut self, graph: &Graph) -> Result<()> {
        let (cols, m) = (self.weights[0].cols, self.weights[0].rows / self.parts.len().max(1));
        let n = cols + usize::from(self.site.bias.is_some());
        for (g, part) in self.parts.iter_mut().enumerate().filter(|_| self.known) {
            if !part.gram.iter().chain(&part.cross).all(|v| v.is_finite()) {
                let what = "what it is multiplied with is not finite; check the data and the model".into();
                return Err(Error::Weight { weight: graph.value(self.value).name.clone(), what });
            }
            let Some(change) = part.solve(n) else { continue };
            for (i, change) in change.chunks_exact(n).enumerate() {
                let row = g * m + i;
                self.weights[0].row_mut(row).iter_mut().zip(change).for_each(|(w, c)| *w += *c as f32);
                self.biases[0][row] += change.get(cols).map_or(0.0, |c| *c as f32);
            }
        }
        Ok(())
    }

    /// Puts the fitted weight into the graph.
    fn finish(self, graph: &mut Graph) -> Result<()> {
        if self.known {
            let tensor = self.layouts[0].write(&self.weights[0])?;
            self.site.write(graph, self.node, self.value, tensor, &self.biases[0]);
        }
        Ok(())
    }
}

impl Part {
    /// The change of the rows that explains most of what is missing, which is forgotten.
    fn solve(&mut self, n: usize) -> Option<Vec<f64>> {
        if n == 0 || self.count == 0 {
            return None;
        }
        let level = (0..n).map(|i| self.gram[i * (n + 1)]).sum::<f64>() / n as f64;
        let mut damp = DAMP;
        while self.factor.is_none() && damp <= 1.0 && level > 0.0 {
            let mut damped = self.gram.clone();
            (0..n).for_each(|i| damped[i * (n + 1)] += damp * level);
            self.factor = Cholesky::new(&damped, n);
            damp *= 10.0;
        }
        let empty = vec![0.0; self.cross.len()];
        let mut change = std::mem::replace(&mut self.cross, empty);
        self.factor.as_ref()?.solve(&mut change);
        Some(change)
    }
}

/// A value of the original without what the cut model has no more.
fn narrowed(value: ValueId, old: &Tensor, new: &Tensor, kept: &Kept) -> Result<Tensor> {
    let mut old = old.clone();
    for axis in 0..old.rank() {
        if let Some(kept) = kept.get(&(value, axis) as &Axis) {
            old = super::groups::take(&old, axis, kept)?;
        }
    }
    if old.shape() != new.shape() {
        return Err(Error::Graph(graph::Error::invalid("the shortcuts differ in shape")));
    }
    Ok(old)
}

/// The squared distance of the outputs of two models on examples, relative to those of the first; of outputs that are
/// not f32 nothing is said.
///
/// # Errors
/// When a model cannot be run.
pub fn distance(old: &Graph, new: &Graph, examples: &[Example], cpu: &Cpu) -> Result<f64> {
    let answers = answers(old, examples, cpu)?;
    from_answers(&answers, new, examples, cpu)
}

/// What a model makes of the examples, for [`from_answers`].
///
/// # Errors
/// When the model cannot be run.
pub fn answers(graph: &Graph, examples: &[Example], cpu: &Cpu) -> Result<Vec<Vec<Datum>>> {
    let mut graph = graph.clone();
    graph::tidy::run(&mut graph, graph::tidy::RUN, cpu)?;
    let session = Session::new(graph, cpu)?;
    examples
        .iter()
        .map(|e| Ok(session.run(e.iter().map(|(name, datum)| (name.as_str(), datum.clone())).collect())?))
        .collect()
}

/// The squared distance of a model's outputs from these, relative to them.
///
/// # Errors
/// When the model cannot be run.
pub fn from_answers(old: &[Vec<Datum>], graph: &Graph, examples: &[Example], cpu: &Cpu) -> Result<f64> {
    let new = answers(graph, examples, cpu)?;
    let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (old, new) in old.iter().zip(&new) {
        for (i, pair) in old.iter().zip(new).enumerate() {
            let (Datum::Tensor(a), Datum::Tensor(b)) = pair else { continue };
            let (Ok(a), Ok(b)) = (a.values::<f32>(), b.values::<f32>()) else { continue };
            let sum = sums.entry(i).or_default();
            for (&a, &b) in a.iter().zip(b.iter()) {
                sum.0 += f64::from(a - b).powi(2);
                sum.1 += f64::from(a).powi(2);
            }
        }
    }
    // The mean over outputs, each relative to itself.
    let parts: Vec<f64> = sums.values().filter(|s| s.1 > 0.0).map(|s| s.0 / s.1).collect();
    Ok(parts.iter().sum::<f64>() / parts.len().max(1) as f64)
}
