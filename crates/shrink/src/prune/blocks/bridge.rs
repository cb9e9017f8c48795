//! What stands in the place of blocks: a linear map of what they read, fitted to what they made.

use faer::Mat;
use graph::op::Reader;
use graph::{Attrs, Graph, Node, NodeId, Tensor, ValueId};
use kernel::Cpu;

use super::{Bridge, Span, changes_shape, vectors};
use crate::factor::project::{directions, narrow, times};
use crate::gram::Gram;
use crate::matrix::Matrix;
use crate::observe::Observer;
use crate::walk::Example;
use crate::{Error, Result};
use learn::linear::Cholesky;

/// `y - x ~ A x + b`.
pub(super) struct Map {
    /// From the input on: one matrix, or two. Each `[outputs, inputs]`.
    factors: Vec<Matrix>,
    bias: Vec<f32>,
}

/// A bridge, and how well it does.
pub(super) struct Fit {
    /// `None` when nothing stands there.
    pub map: Option<Map>,
    /// The squared error of the output, relative to its squares.
    pub error: f64,
}

/// Shares of the mean of the diagonal that are tried as ridge.
const RIDGES: [f64; 5] = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5];

/// The bridge for a stretch, fitted on half of the examples with each ridge, and on all with the one that does best on
/// the other half. `None` without examples.
pub(super) fn fit(
    original: &Graph,
    graph: &Graph,
    span: &Span,
    examples: &[Example],
    cpu: &Cpu,
) -> Result<Option<Fit>> {
    let name = &original.value(span.output).name;
    if examples.is_empty() {
        let known =
            original.value(span.input).fact.shape().is_some_and(|s| !s.contains(&graph::Dim::Unknown));
        return match (span.bridge, known) {
            (Bridge::None, true) => Ok(None),
            (Bridge::None, false) => {
                let what = "it is not known whether what is left out keeps the shape; give data with --data";
                Err(Error::Calibration(format!("{name:?}: {what}")))
            }
            _ => Err(Error::Calibration("a bridge is fitted to examples; give data with --data".into())),
        };
    }
    let (before, after) =
        (Observer::new(graph, &[span.input], cpu)?, Observer::new(original, &[span.output], cpu)?);
    let mut halves: Option<[Gram; 2]> = None;
    let mut width = 0;
    for (at, example) in examples.iter().enumerate() {
        let (x, y) = (before.see(example)?, after.see(example)?);
        let (Some(x), Some(y)) = (x.first(), y.first()) else { continue };
        if x.tensor()?.shape() != y.tensor()?.shape() {
            return Err(changes_shape(name));
        }
        let ((x, d), (y, _)) = (vectors(x, span.image)?, vectors(y, span.image)?);
        width = d;
        let halves = halves.get_or_insert_with(|| [Gram::new(2 * d + 1), Gram::new(2 * d + 1)]);
        let mut rows = Vec::with_capacity(x.len() / d.max(1) * (2 * d + 1));
        for (x, y) in x.chunks_exact(d.max(1)).zip(y.chunks_exact(d.max(1))) {
            rows.extend_from_slice(x);
            rows.extend(x.iter().zip(y).map(|(x, y)| y - x));
            rows.push(1.0);
        }
        halves[at % 2].add(cpu, &rows);
    }
    let Some(halves) = halves else { return Ok(None) };
    if !halves.iter().all(Gram::is_finite) {
        let what = format!("{name:?} holds numbers that are not finite; check the data and the model");
        return Err(Error::Calibration(what));
    }
    let [even, odd] = [&halves[0], &halves[1]].map(|g| Moments::new(width, g));
    let all = even.plus(&odd);
    if span.bridge == Bridge::None {
        return Ok(Some(Fit { map: None, error: all.error(None) }));
    }
    let rank = match span.bridge {
        Bridge::Rank(rank) if 2 * rank < width => Some(rank),
        _ => None,
    };
    let mut best = (f64::INFINITY, RIDGES[0]);
    for ridge in RIDGES {
        let error = odd.error(Some(&even.solve(ridge, rank)?));
        if error < best.0 {
            best = (error, ridge);
        }
    }
    let map = all.solve(best.1, rank)?;
    Ok(Some(Fit { error: all.error(Some(&map)), map: Some(map) }))
}

/// Sums of products of inputs x, of what is to be added d, and of 1, in this order.
struct Moments {
    width: usize,
    sums: Mat<f64>,
}

impl Moments {
    fn new(width: usize, gram: &Gram) -> Moments {
        let count = gram.count() as f64;
        let n = gram.size();
        Moments { width, sums: Mat::from_fn(n, n, |i, j| gram.mean_product(i, j) * count) }
    }

    fn plus(&self, other: &Moments) -> Moments {
        Moments { width: self.width, sums: &self.sums + &other.sums }
    }

    /// Covariance of two of the numbers.
    fn covariance(&self, i: usize, j: usize) -> f64 {
        let one = 2 * self.width;
        let count = self.sums[(one, one)].max(1.0);
        (self.sums[(i, j)] - self.sums[(i, one)] * self.sums[(one, j)] / count) / count
    }

    /// The map with the least squared error and so much of a ridge.
    fn solve(&self, ridge: f64, rank: Option<usize>) -> Result<Map> {
        let d = self.width;
        let inputs = Mat::from_fn(d, d, |i, j| self.covariance(i, j));
        let mean = (0..d).map(|i| inputs[(i, i)]).sum::<f64>() / d.max(1) as f64;
        let own = (ridge * mean).max(f64::MIN_POSITIVE);
        let damped: Vec<f64> =
            (0..d * d).map(|k| inputs[(k / d, k % d)] + if k / d == k % d { own } else { 0.0 }).collect();
        let factor = Cholesky::new(&damped, d).ok_or_else(|| {
            Error::Calibration("the statistics for a bridge are singular; check the data".into())
        })?;
        let mut rows: Vec<f64> = (0..d * d).map(|k| self.covariance(d + k / d, k % d)).collect();
        factor.solve(&mut rows);
        let mut map = Mat::from_fn(d, d, |i, j| rows[i * d + j]);
        let mut factors = vec![narrow(map.as_ref())];
        if let Some(rank) = rank {
            let image = times(times(map.as_ref(), inputs.as_ref()).as_ref(), map.transpose());
            let (_, vectors) = directions(image.as_ref())?;
            let basis = vectors.subrows(0, rank.min(d));
            let inner = times(basis, map.as_ref());
            map = times(basis.transpose(), inner.as_ref());
            factors = vec![narrow(inner.as_ref()), narrow(basis.transpose())];
        }
        let count = self.sums[(2 * d, 2 * d)].max(1.0);
        let at = |i: usize| self.sums[(i, 2 * d)] / count;
        let bias = |i: usize| at(d + i) - (0..d).map(|j| map[(i, j)] * at(j)).sum::<f64>();
        Ok(Map { factors, bias: (0..d).map(|i| bias(i) as f32).collect() })
    }

    /// The squared error of the outputs x + d when this stands for d, relative to their squares.
    fn error(&self, map: Option<&Map>) -> f64 {
        let d = self.width;
        let energy = |rows: &Mat<f64>| -> f64 {
            let image = times(rows.as_ref(), self.sums.as_ref());
            (0..d).map(|i| (0..2 * d + 1).map(|j| image[(i, j)] * rows[(i, j)]).sum::<f64>()).sum()
        };
        let one = |i: usize, j: usize| f64::from(u8::from(i == j));
        let whole = map.map(|m| match m.factors.as_slice() {
            [inner, outer] => crate::factor::project::product(outer, inner),
            _ => m.factors[0].clone(),
        });
        let apart = Mat::from_fn(d, 2 * d + 1, |i, j| match (&whole, map) {
            (Some(whole), _) if j < d => -f64::from(whole.data[i * d + j]),
            (_, Some(map)) if j == 2 * d => -f64::from(map.bias[i]),
            _ if j >= d && j < 2 * d => one(i, j - d),
            _ => 0.0,
        });
        let output = Mat::from_fn(d, 2 * d + 1, |i, j| if j < 2 * d { one(i, j % d) } else { 0.0 });
        let all = energy(&output);
        if all > 0.0 { (energy(&apart) / all).max(0.0) } else { 0.0 }
    }
}

fn add(graph: &mut Graph, kind: &str, inputs: &[ValueId]) -> Result<(NodeId, ValueId)> {
    let attrs = Attrs::new();
    let reader = Reader { attrs: &attrs, version: 13, inputs: inputs.len(), outputs: 1 };
    let node = Node::new(graph::ops::read("", kind, &reader)?, inputs.iter().copied().map(Some).collect());
    let (id, made) = graph.add_with_outputs("bridge", node, 1, None)?;
    Ok((id, made[0]))
}

pub(super) fn finish(graph: &mut Graph, kind: &str, inputs: &[ValueId], output: ValueId) -> Result<()> {
    let (id, _) = add(graph, kind, inputs)?;
    Ok(graph.set_output(id, 0, Some(output))?)
}

/// Adds the nodes of a bridge, the last of which makes the output.
pub(super) fn build(graph: &mut Graph, span: &Span, map: &Map, rectified: bool) -> Result<()> {
    let rank = graph.value(span.input).fact.rank().unwrap_or(2);
    let mut x = span.input;
    let bias = graph.add_constant("bridge.b", Tensor::vector(&map.bias));
    for (at, factor) in map.factors.iter().enumerate() {
        let last = at + 1 == map.factors.len();
        if span.image {
            let shape: Vec<usize> =
                [factor.rows, factor.cols].into_iter().chain(std::iter::repeat_n(1, rank - 2)).collect();
            let weight = graph.add_constant("bridge.w", Tensor::new(&shape, &factor.data)?);
            let inputs = [x, weight, bias];
            x = add(graph, "Conv", if last { &inputs } else { &inputs[..2] })?.1;
        } else {
            let turned = factor.transposed();
            let weight = Tensor::new(&[turned.rows, turned.cols], &turned.data)?;
            let weight = graph.add_constant("bridge.w", weight);
            x = add(graph, "MatMul", &[x, weight])?.1;
        }
    }
    if !span.image {
        x = add(graph, "Add", &[x, bias])?.1;
    }
    if rectified {
        x = add(graph, "Add", &[span.input, x])?.1;
        return finish(graph, "Relu", &[x], span.output);
    }
    finish(graph, "Add", &[span.input, x], span.output)
}
