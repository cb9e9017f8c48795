//! How many channels of each group go, and which: so many multiply-adds are saved, and the harm to the outputs is least.
//! Within a group channels go one after the other, each time the one whose loss the others can make up for best
//! (optimal brain surgeon on whole channels: the least `tr W_c [H^-1]_cc^-1 W_c^T`, then W and H^-1 without it). What
//! a group without so many of its channels does to the model's outputs is measured; multiply-adds are shared out by it.

use std::collections::{BTreeMap, HashMap, HashSet};

use graph::op::Facts;
use graph::{Datum, Dim, Fact, Graph, NodeId, ValueId};
use kernel::Cpu;

use super::channels::{self, Channels};
use super::groups::{self, Axis, Group};
use super::recover::{self, Site};
use super::settle::settle;
use crate::allocate::{Offer, allocate};
use crate::carry::Examples;
use crate::gram::Gram;
use crate::matrix::{Layout, Matrix};
use crate::walk::{Example, Stop, walk};
use crate::weights::{self, Weight};
use crate::{Error, Result};
use learn::linear::Cholesky;

/// The share of the mean of the diagonal that is added to it when channels are ranked.
const DAMP: f64 = 1e-3;
/// Weights that read more inputs are ranked without looking again after each channel.
const WIDE: usize = 3072;
/// Most sizes of a group that are measured.
const LEVELS: usize = 8;

/// How much work choosing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Batches of examples that the outputs are measured on.
    pub probe: usize,
    /// How often a part of the channels goes and the others are refitted before the next are chosen.
    pub rounds: usize,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { probe: 4, rounds: 2 }
    }
}

/// Chooses the channels that stay so that at most `target` of the multiply-adds stay: see [`Survey`].
///
/// # Errors
/// As [`Survey::new`] and [`Survey::choose`].
pub fn choose(
    graph: &Graph,
    examples: &Examples,
    cpu: &Cpu,
    target: f64,
    effort: Effort,
) -> Result<Vec<Channels>> {
    let rounds = effort.rounds.max(1);
    let mut so_far: Vec<Channels> = Vec::new();
    let mut small = graph.clone();
    for round in 1..=rounds {
        let survey = Survey::of(graph, &small, examples, cpu, effort.probe)?;
        let share = target.powf(1.0 / rounds as f64);
        so_far = composed(&so_far, survey.choose(share)?);
        if round < rounds {
            small = graph.clone();
            channels::apply(&mut small, &so_far, examples.again()?, cpu)?;
        }
    }
    Ok(so_far)
}

/// Channels of what channels of a model stay, as channels of the model.
fn composed(first: &[Channels], then: Vec<Channels>) -> Vec<Channels> {
    let mut all: BTreeMap<String, Vec<u32>> =
        first.iter().map(|c| (c.group.clone(), c.keep.clone())).collect();
    for Channels { group, keep } in then {
        let keep = match all.get(&group) {
            Some(left) => keep.iter().filter_map(|&k| left.get(k as usize).copied()).collect(),
            None => keep,
        };
        all.insert(group, keep);
    }
    all.into_iter().map(|(group, keep)| Channels { group, keep }).collect()
}

/// What each group of a model costs and what the model is without some of it.
pub struct Survey {
    groups: Vec<Group>,
    /// Of the groups that could be measured.
    rankings: Vec<Option<Ranking>>,
    price: Price,
}

impl Survey {
    /// Ranks the channels of all groups on the examples (named inputs, batch by batch), and measures the outputs without
    /// the least of them on the first `probe` batches.
    ///
    /// # Errors
    /// When there are no examples, or the model cannot be run.
    pub fn new(graph: &Graph, examples: &Examples, cpu: &Cpu, probe: usize) -> Result<Survey> {
        Survey::of(graph, graph, examples, cpu, probe)
    }

    /// The same of a model that was cut already, by what its outputs are to the original's.
    fn of(original: &Graph, graph: &Graph, examples: &Examples, cpu: &Cpu, probe: usize) -> Result<Survey> {
        let all = examples.all()?;
        let Some(first) = all.first() else {
            return Err(Error::Calibration("channels cannot be chosen without examples".into()));
        };
        let mut settled = graph.clone();
        settle(&mut settled)?;
        let graph = &settled;
        let found = groups::groups(graph);
        let probe = &all[..probe.clamp(1, all.len())];
        let answers = recover::answers(original, probe, cpu)?;
        let so_far = recover::from_answers(&answers, graph, probe, cpu)?;
        let mut rankings: Vec<Option<Ranking>> = found.iter().map(|_| None).collect();
        let mut measure = |at: usize, readers: Vec<Reader>| -> Result<()> {
            let group = &found[at];
            let mut ranking = Ranking { order: Vec::new(), levels: vec![(group.units.len(), 0.0)] };
            eliminate(group, readers, &levels(group), &mut |order, readers| {
                ranking.order = order.to_vec();
                let keep = ranking.keep(group.units.len() - order.len(), group.units.len());
                let mut small = graph.clone();
                groups::cut(&mut small, &[(group, &keep)])?;
                readers.iter().try_for_each(|reader| reader.write(&mut small, &keep))?;
                let harm = recover::from_answers(&answers, &small, probe, cpu)?;
                ranking.levels.push((keep.len(), (harm - so_far).max(0.0)));
                Ok(())
            })?;
            tracing::debug!(group = group.name, levels = ?ranking.levels, "channels");
            rankings[at] = Some(ranking);
            Ok(())
        };
        rank(graph, &found, examples, cpu, &mut measure)?;
        let price = Price::new(graph, &found, first)?;
        Ok(Survey { groups: found, rankings, price })
    }

    /// The channels that stay so that at most `target` of the multiply-adds stay.
    ///
    /// # Errors
    /// When the target is no share, or more must stay: says how much.
    pub fn choose(&self, target: f64) -> Result<Vec<Channels>> {
        if !(target > 0.0 && target <= 1.0) {
            let what = format!("{target} is no share of the multiply-adds that stay; say 0.5");
            return Err(Error::Plan(what));
        }
        let all: Vec<usize> = self.groups.iter().map(|g| g.units.len()).collect();
        let levels: Vec<Vec<(usize, f64)>> = self
            .rankings
            .iter()
            .zip(&all)
            .map(|(ranking, &all)| ranking.as_ref().map_or(vec![(all, 0.0)], |r| r.levels.clone()))
            .collect();
        let price = |sizes: &[usize]| {
            let gone: Vec<usize> = all.iter().zip(sizes).map(|(all, size)| all - size).collect();
            self.price.of(&gone)
        };
        let alone = |group: usize, size: usize| {
            let mut sizes = all.clone();
            sizes[group] = size;
            price(&sizes)
        };
        let total = price(&all);
        // What a group saves when it alone goes; together they save less where a weight has two of them.
        let offers: Vec<Vec<Offer>> = levels
            .iter()
            .enumerate()
            .map(|(g, l)| {
                let least = l.iter().map(|&(size, _)| alone(g, size)).min().unwrap_or(0);
                l.iter()
                    .map(|&(size, harm)| Offer { bytes: (alone(g, size) - least) as usize, harm })
                    .collect()
            })
            .collect();
        let full: usize = offers.iter().map(|o| o[0].bytes).sum();
        let goal = target * total as f64;
        let mut save = total as f64 - goal;
        for _ in 0..64 {
            if save > full as f64 {
                break;
            }
            let Some(chosen) = allocate(&offers, full - save as usize) else { break };
            let sizes: Vec<usize> = chosen.iter().zip(&levels).map(|(&c, l)| l[c].0).collect();
            let over = price(&sizes) as f64 - goal;
            if over <= 0.0 {
                return Ok(self.channels(&sizes));
            }
            save += over.max(1e-3 * goal);
        }
        let least: Vec<usize> =
            levels.iter().zip(&all).map(|(l, &all)| l.last().map_or(all, |l| l.0)).collect();
        let least = 100.0 * price(&least) as f64 / total.max(1) as f64;
        let what = format!(
            "{:.0} % were asked for, at least {least:.0} % of the multiply-adds must stay",
            100.0 * target
        );
        Err(Error::Plan(what))
    }

    fn channels(&self, sizes: &[usize]) -> Vec<Channels> {
        let groups = self.groups.iter().zip(&self.rankings).zip(sizes);
        let keep = |((group, ranking), &size): ((&Group, &Option<Ranking>), &usize)| {
            let ranking = ranking.as_ref().filter(|_| size < group.units.len())?;
            Some(Channels { group: group.name.clone(), keep: ranking.keep(size, group.units.len()) })
        };
        groups.filter_map(keep).collect()
    }
}

/// In which order the channels of a group go, and the harm with so many of them.
struct Ranking {
    order: Vec<u32>,
    /// Channels that stay, and the harm.
    levels: Vec<(usize, f64)>,
}

impl Ranking {
    /// The channels that stay when there shall be so many.
    fn keep(&self, size: usize, all: usize) -> Vec<u32> {
        let gone: HashSet<u32> = self.order.iter().take(all - size.min(all)).copied().collect();
        (0..all as u32).filter(|u| !gone.contains(u)).collect()
    }
}

/// The sizes of a group that are worth trying, from the second greatest to the least: multiples of what processors like.
fn levels(group: &Group) -> Vec<usize> {
    let (all, free) = (group.units.len(), group.free());
    let step = match all {
        0..16 => 1,
        16..32 => 2,
        32..128 => 4,
        _ => 8,
    };
    let most = (1..all).rev().filter(|n| n % step == 0 && *n >= all - free);
    let sizes: Vec<usize> = most.collect();
    let skip = sizes.len().div_ceil(LEVELS).max(1);
    sizes.into_iter().enumerate().filter(|(i, _)| (i + 1) % skip == 0 || skip == 1).map(|(_, n)| n).collect()
}

/// What a weight (or one of its groups of rows) reads of a group of channels.
struct Reader {
    weight: Weight,
    layout: Layout,
    /// The group of the weight's rows.
    part: usize,
    w: Vec<f64>,
    was: Vec<f64>,
    rows: usize,
    cols: usize,
    /// Inverse of the inputs' covariance.
    inverse: Option<Vec<f64>>,
    variance: Vec<f64>,
    mean: Vec<f64>,
    energy: f64,
    /// The columns of each channel.
    units: Vec<Vec<usize>>,
}

impl Reader {
    fn new(group: &Group, stop: &Stop, part: usize, gram: &Gram) -> Option<Reader> {
        let axis = group.readers.iter().find(|(node, _)| *node == stop.weight.node)?.1;
        let (layout, rows) = (stop.layout.clone(), stop.layout.rows / stop.layout.groups.max(1));
        let n = layout.cols;
        let block = n / layout.shape()[axis.1].max(1);
        let units = group.units.iter().map(|u| {
            u.of(axis)
                .iter()
                .flat_map(|&i| (i as usize * block..(i as usize + 1) * block).filter(|c| *c < n))
                .collect()
        });
        let w: Vec<f64> =
            stop.matrix.data[part * rows * n..][..rows * n].iter().map(|&v| f64::from(v)).collect();
        let order: Vec<usize> = (0..n).collect();
        let mean = gram.mean();
        let variance: Vec<f64> =
            gram.importance().iter().zip(&mean).map(|(s, m)| (s - m * m).max(0.0)).collect();
        let (inverse, energy) = match n <= WIDE {
            true => {
                let centred = |damp: f64| {
                    let mut h = gram.damped(damp, &order);
                    (0..n * n).for_each(|k| h[k] -= mean[k / n] * mean[k % n]);
                    h
                };
                let plain = centred(0.0);
                let energy = (0..rows).map(|i| quadratic(&plain, &w[i * n..][..n])).sum::<f64>();
                let factor =
                    [1.0, 10.0, 100.0, 1000.0].iter().find_map(|f| Cholesky::new(&centred(DAMP * f), n))?;
                let mut inverse = vec![0.0; n * n];
                (0..n).for_each(|i| inverse[i * (n + 1)] = 1.0);
                factor.solve(&mut inverse);
                (Some(inverse), energy)
            }
            false => {
                let square = |j: usize| (0..rows).map(|i| w[i * n + j].powi(2)).sum::<f64>();
                (None, (0..n).map(|j| square(j) * variance[j]).sum())
            }
        };
        Some(Reader {
            weight: stop.weight.clone(),
            layout,
            part,
            was: w.clone(),
            w,
            rows,
            cols: n,
            inverse,
            variance,
            mean,
            energy: energy.max(f64::MIN_POSITIVE),
            units: units.collect(),
        })
    }

    /// The share of the output's variance that is lost with each of these channels, when the others make up for it.
    fn scores(&self, units: &[usize]) -> Vec<f64> {
        let n = self.cols;
        let mut squares = vec![0.0; n];
        for row in self.w.chunks_exact(n.max(1)) {
            squares.iter_mut().zip(row).for_each(|(s, w)| *s += w * w);
        }
        let lost = |&unit: &usize| match (&self.inverse, self.units[unit].as_slice()) {
            (_, []) => 0.0,
            (None, cols) => cols.iter().map(|&j| squares[j] * self.variance[j]).sum::<f64>(),
            (Some(inverse), &[j]) => squares[j] / inverse[j * (n + 1)].max(f64::MIN_POSITIVE),
            (Some(inverse), cols) => {
                let Some(factor) = Cholesky::new(&corner(inverse, n, cols), cols.len()) else {
                    return f64::MAX;
                };
                let of = |row: &[f64]| cols.iter().map(|&j| row[j]).collect::<Vec<_>>();
                let right: Vec<f64> = self.w.chunks_exact(n).flat_map(of).collect();
                let mut solved = right.clone();
                factor.solve(&mut solved);
                right.iter().zip(&solved).map(|(a, b)| a * b).sum()
            }
        };
        units.iter().map(|unit| lost(unit) / self.energy).collect()
    }

    /// Takes a channel away; the others make up for it.
    fn drop(&mut self, unit: usize) {
        let (cols, n) = (self.units[unit].clone(), self.cols);
        let k = cols.len();
        let Some(inverse) = &mut self.inverse else {
            (0..self.rows).for_each(|i| cols.iter().for_each(|&j| self.w[i * n + j] = 0.0));
            return;
        };
        let own = corner(inverse, n, &cols);
        let Some(factor) = Cholesky::new(&own, k) else { return };
        // S = [H^-1]_cc^-1 [H^-1]_c,: row by row of its transpose.
        let slice: Vec<f64> =
            (0..n).flat_map(|j| cols.iter().map(|&c| inverse[c * n + j]).collect::<Vec<_>>()).collect();
        let mut solved = slice.clone();
        factor.solve(&mut solved);
        for row in self.w.chunks_exact_mut(n) {
            let own: Vec<f64> = cols.iter().map(|&c| row[c]).collect();
            for (v, s) in row.iter_mut().zip(solved.chunks_exact(k.max(1))) {
                *v -= own.iter().zip(s).map(|(a, b)| a * b).sum::<f64>();
            }
            cols.iter().for_each(|&c| row[c] = 0.0);
        }
        for i in 0..n {
            let left = &slice[i * k..][..k];
            if left.iter().all(|v| *v == 0.0) {
                continue;
            }
            for (v, s) in inverse[i * n..][..n].iter_mut().zip(solved.chunks_exact(k.max(1))) {
                *v -= left.iter().zip(s).map(|(a, b)| a * b).sum::<f64>();
            }
        }
        for &c in &cols {
            (0..n).for_each(|j| (inverse[c * n + j], inverse[j * n + c]) = (0.0, 0.0));
        }
    }

    /// Puts the weight as it is now into a graph where only these channels are left.
    fn write(&self, graph: &mut Graph, keep: &[u32]) -> Result<()> {
        let Some(layout) = Layout::of(graph, &self.weight) else { return Ok(()) };
        let gone: HashSet<usize> = (0..self.units.len())
            .filter(|u| keep.binary_search(&(*u as u32)).is_err())
            .flat_map(|u| self.units[u].iter().copied())
            .collect();
        let kept: Vec<usize> = (0..self.cols).filter(|j| !gone.contains(j)).collect();
        let Some(tensor) = graph.constant(self.weight.value) else { return Ok(()) };
        let mut matrix: Matrix = layout.read(tensor)?;
        // Rows that this group has lost, too, are not fitted here.
        if kept.len() != matrix.cols || matrix.rows != self.layout.rows {
            return Ok(());
        }
        let mut shift = vec![0f32; matrix.rows];
        for i in 0..self.rows {
            let row = self.part * self.rows + i;
            let (now, was) = (&self.w[i * self.cols..][..self.cols], &self.was[i * self.cols..][..self.cols]);
            matrix.row_mut(row).iter_mut().zip(&kept).for_each(|(v, &j)| *v = now[j] as f32);
            shift[row] =
                was.iter().zip(now).zip(&self.mean).map(|((a, b), m)| (a - b) * m).sum::<f64>() as f32;
        }
        let Some(node) = graph.node(self.weight.node) else { return Ok(()) };
        if let Some(site) = Site::of(graph, node, &self.weight, matrix.rows) {
            let tensor = layout.write(&matrix)?;
            let bias = site.bias(graph, matrix.rows);
            let bias: Vec<f32> = bias.iter().zip(&shift).map(|(b, s)| b + s).collect();
            site.write(graph, self.weight.node, self.weight.value, tensor, &bias);
        }
        Ok(())
    }
}

/// The rows and columns of a symmetric matrix that these columns are.
fn corner(matrix: &[f64], n: usize, cols: &[usize]) -> Vec<f64> {
    cols.iter().flat_map(|&i| cols.iter().map(move |&j| matrix[i * n + j])).collect()
}

fn quadratic(h: &[f64], v: &[f64]) -> f64 {
    let n = v.len();
    let image = |i: usize| h[i * n..][..n].iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
    (0..n).map(|i| v[i] * image(i)).sum()
}

/// Told which channels went so far, and what is left of their readers.
type Reached<'a> = dyn FnMut(&[u32], &[Reader]) -> Result<()> + 'a;

/// Takes channels away one by one until the least of the sizes is left; at each size says which went so far.
fn eliminate(group: &Group, mut readers: Vec<Reader>, sizes: &[usize], reached: &mut Reached) -> Result<()> {
    let mut left: Vec<usize> = (0..group.units.len()).filter(|&u| group.units[u].free).collect();
    let mut order: Vec<u32> = Vec::new();
    for &size in sizes {
        while group.units.len() - order.len() > size {
            let mut scores = vec![0.0; left.len()];
            for reader in &readers {
                scores.iter_mut().zip(reader.scores(&left)).for_each(|(sum, s)| *sum += s);
            }
            let least = scores.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
            let Some((at, _)) = least else { return Ok(()) };
            let unit = left.remove(at);
            readers.iter_mut().for_each(|r| r.drop(unit));
            order.push(unit as u32);
        }
        reached(&order, &readers)?;
    }
    Ok(())
}

/// Sees what reads each group, and hands it over when all of it was seen.
fn rank(
    graph: &Graph,
    found: &[Group],
    examples: &Examples,
    cpu: &Cpu,
    measure: &mut dyn FnMut(usize, Vec<Reader>) -> Result<()>,
) -> Result<()> {
    let wanted: HashSet<NodeId> = found.iter().flat_map(|g| g.readers.iter().map(|r| r.0)).collect();
    let all = weights::weights(graph)?;
    let stops: Vec<&Weight> = all.iter().filter(|w| wanted.contains(&w.node)).collect();
    let mut seen: HashMap<usize, (usize, Vec<Reader>)> = HashMap::new();
    walk(graph, &stops, examples.again()?, cpu, &mut |stop: Stop| {
        for (at, group) in found.iter().enumerate() {
            if !group.readers.iter().any(|(node, _)| *node == stop.weight.node) {
                continue;
            }
            let (count, readers) = seen.entry(at).or_default();
            *count += 1;
            let parts = stop.grams.iter().enumerate();
            readers.extend(parts.filter_map(|(part, gram)| Reader::new(group, &stop, part, gram)));
            if *count == group.readers.len()
                && let Some((_, readers)) = seen.remove(&at)
            {
                measure(at, readers)?;
            }
        }
        Ok(None)
    })?;
    let mut rest: Vec<(usize, (usize, Vec<Reader>))> = seen.into_iter().collect();
    rest.sort_by_key(|r| r.0);
    rest.into_iter().filter(|(_, r)| !r.1.is_empty()).try_for_each(|(at, (_, readers))| measure(at, readers))
}

/// The multiply-adds of each node, as functions of how many channels of each group stay.
struct Price {
    nodes: Vec<(u64, Vec<Part>)>,
}

/// An axis that multiply-adds are proportional to: for each group what a channel of it is of the whole axis.
type Part = Vec<(usize, f64)>;

impl Price {
    fn new(graph: &Graph, found: &[Group], example: &Example) -> Result<Price> {
        let mut axes: BTreeMap<Axis, Part> = BTreeMap::new();
        for (g, group) in found.iter().enumerate() {
            let mut counts: BTreeMap<Axis, usize> = BTreeMap::new();
            for (&axis, indices) in group.units.iter().flat_map(|u| &u.indices) {
                *counts.entry(axis).or_default() += indices.len();
            }
            for (axis, count) in counts {
                let size = graph.value(axis.0).fact.shape().and_then(|s| s.get(axis.1)?.size()).unwrap_or(1);
                let each = count as f64 / (size * group.units.len()) as f64;
                axes.entry(axis).or_default().push((g, each));
            }
        }
        let mut nodes = Vec::new();
        for (id, cost) in costs(graph, example)?.into_iter().filter(|c| c.1 > 0) {
            let Some(node) = graph.node(id) else { continue };
            let weight =
                node.op.weight().and_then(|w| node.input(w.input)).filter(|v| graph.constant(*v).is_some());
            let parts = match weight {
                Some(weight) => {
                    axes.range((weight, 0)..=(weight, usize::MAX)).map(|(_, p)| p.clone()).collect()
                }
                // A product of two activations: the heads, once.
                None => {
                    let touched =
                        |v: ValueId| axes.range((v, 0)..=(v, usize::MAX)).next().map(|(_, p)| p.clone());
                    node.reads().find_map(touched).into_iter().collect()
                }
            };
            nodes.push((cost, parts));
        }
        Ok(Price { nodes })
    }

    /// Those of all nodes.
    fn of(&self, gone: &[usize]) -> u64 {
        let share = |part: &Part| 1.0 - part.iter().map(|&(g, each)| each * gone[g] as f64).sum::<f64>();
        let cost = |(cost, parts): &(u64, Vec<Part>)| *cost as f64 * parts.iter().map(share).product::<f64>();
        self.nodes.iter().map(cost).sum::<f64>() as u64
    }
}

/// The multiply-adds of each node on inputs of these shapes.
fn costs(graph: &Graph, example: &Example) -> Result<Vec<(NodeId, u64)>> {
    let mut bound = graph.clone();
    for (name, datum) in example {
        if let (Some(id), Datum::Tensor(t)) = (graph.find(name), datum) {
            let shape: Vec<Dim> = t.shape().iter().map(|&n| n.into()).collect();
            bound.value_mut(id).fact = Fact::tensor(t.dtype(), shape);
        }
    }
    bound.reinfer()?;
    let cost = |node: &graph::Node| {
        let facts: Vec<Option<&Fact>> = node.inputs.iter().map(|v| v.map(|v| &bound.value(v).fact)).collect();
        let made: Vec<Fact> =
            node.outputs.iter().map(|v| v.map_or(Fact::default(), |v| bound.value(v).fact.clone())).collect();
        node.op.mul_adds(&Facts::new(&facts, made.len()), &made)
    };
    Ok(bound.nodes().map(|(id, node)| (id, cost(node))).collect())
}

/// The multiply-adds of a model on inputs of these shapes.
///
/// # Errors
/// When the inputs do not fit the model.
pub fn mul_adds(graph: &Graph, example: &Example) -> Result<u64> {
    Ok(costs(graph, example)?.iter().map(|c| c.1).sum())
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;
    use graph::{Attrs, DType, Dim, Tensor};

    use super::*;
    use crate::gram::tests::cpu;
    use crate::prune::channels::apply;
    use crate::prune::groups::tests::one;

    /// Three convolutions. Between the first two, half of the channels are nearly copies of the other half.
    fn network() -> Graph {
        let mut g = Graph::new("net");
        let size = vec![Dim::named("n"), Dim::Is(3), Dim::Is(6), Dim::Is(6)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let mut first = ramp(&[12, 3, 3, 3]);
        let data = first.as_mut_slice::<f32>().unwrap();
        (0..6 * 27).for_each(|i| data[6 * 27 + i] = data[i] + 0.01 * data[6 * 27 + i]);
        let pads = || Attrs::new().ints("pads", &[1; 4]);
        let mut y = x;
        for (name, w) in [("a", first), ("b", ramp(&[12, 12, 3, 3])), ("c", ramp(&[4, 12, 3, 3]))] {
            let w = g.add_constant("w", w);
            y = one(&mut g, "Conv", name, &[y, w], pads());
            if name != "c" {
                y = one(&mut g, "Relu", "relu", &[y], Attrs::new());
            }
        }
        g.outputs.push(y);
        g.infer().unwrap();
        g
    }

    fn examples() -> Examples {
        let one = |k: usize| {
            let data: Vec<f32> =
                (0..8 * 108).map(|i| ((i * i + 7 * i * k + 31 * k) % 97) as f32 / 48.0 - 1.0).collect();
            vec![("x".to_string(), Datum::Tensor(Tensor::new(&[8, 3, 6, 6], &data).unwrap()))]
        };
        (1..5).map(one).collect::<Vec<_>>().into()
    }

    #[test]
    fn the_target_is_met_where_it_hurts_least() {
        let graph = network();
        let before = mul_adds(&graph, &examples().all().unwrap()[0]).unwrap();
        assert_eq!(before, 8 * 36 * 9 * (3 * 12 + 12 * 12 + 12 * 4));
        let chosen = choose(&graph, &examples(), &cpu(), 0.6, Effort { probe: 2, rounds: 1 }).unwrap();
        let a = chosen.iter().find(|c| c.group == "a").unwrap();
        // One of each pair of copies goes before anything else does.
        assert!((0..6).all(|i| a.keep.contains(&i) || a.keep.contains(&(i + 6))), "{chosen:?}");
        let mut small = graph.clone();
        let error = apply(&mut small, &chosen, examples(), &cpu()).unwrap();
        let after = mul_adds(&small, &examples().all().unwrap()[0]).unwrap();
        assert!(after as f64 <= 0.603 * before as f64, "{after} of {before}");
        assert!(error < 0.1, "{error}");
        assert_eq!(chosen, choose(&graph, &examples(), &cpu(), 0.6, Effort { probe: 2, rounds: 1 }).unwrap());
    }

    #[test]
    fn rounds_go_on_from_what_stays() {
        let keep = |group: &str, keep: &[u32]| Channels { group: group.into(), keep: keep.to_vec() };
        let first = [keep("a", &[1, 4, 6, 7]), keep("b", &[0, 2])];
        let all = composed(&first, vec![keep("a", &[0, 3]), keep("c", &[5])]);
        assert_eq!(all, [keep("a", &[1, 7]), keep("b", &[0, 2]), keep("c", &[5])]);
        let graph = network();
        let chosen = choose(&graph, &examples(), &cpu(), 0.5, Effort { probe: 2, rounds: 2 }).unwrap();
        let mut small = graph.clone();
        apply(&mut small, &chosen, examples(), &cpu()).unwrap();
        let shares = [&small, &graph].map(|g| mul_adds(g, &examples().all().unwrap()[0]).unwrap() as f64);
        assert!(shares[0] <= 0.503 * shares[1], "{shares:?}");
    }

    #[test]
    fn what_cannot_be_met_is_said() {
        let graph = network();
        assert!(choose(&graph, &Examples::from(Vec::new()), &cpu(), 0.5, Effort::default()).is_err());
        for bad in [0.0, -1.0, 2.0, f64::NAN] {
            assert!(choose(&graph, &examples(), &cpu(), bad, Effort::default()).is_err());
        }
        let error = choose(&graph, &examples(), &cpu(), 1e-3, Effort { probe: 1, rounds: 1 })
            .unwrap_err()
            .to_string();
        assert!(error.contains("must stay"), "{error}");
    }
}
