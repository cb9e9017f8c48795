//! A walk through a model from its inputs on, for all examples at once: before each weight is changed its inputs are
//! seen as the changed weights before it make them, and each node runs once. Weights that do not depend on one another
//! are one stage. Memory is what is alive between two stages, unless it is carried in files, and the statistics of one
//! stage.

use std::collections::{HashMap, HashSet};

use graph::run::Session;
use graph::{Datum, Graph, NodeId, ValueId};
use kernel::Cpu;

use crate::carry::Examples;
use crate::gram::Gram;
use crate::matrix::{Layout, Matrix};
use crate::quantize::bias;
use crate::weights::Weight;
use crate::{Error, Result};

/// A weight that the walk has come to.
pub struct Stop<'a> {
    /// The weight.
    pub weight: &'a Weight,
    /// How it is seen as a matrix.
    pub layout: &'a Layout,
    /// The weight as it is.
    pub matrix: Matrix,
    /// What its inputs are like: one for each group of the layout.
    pub grams: &'a [Gram],
    /// What the bias of the product shall have more of, one number for each row; empty, as it comes, is nothing.
    pub shift: &'a mut Vec<f32>,
}

/// Named inputs of one run.
pub type Example = Vec<(String, Datum)>;

/// Walks through the graph on these examples. `change` is called for each weight that has a layout and whose inputs
/// can be seen, and gives what shall stand in its place. A weight that several nodes use is changed at the first.
/// Gives the graph with all changes.
///
/// # Errors
/// When the graph cannot be run, a weight's inputs are not finite (the weight is named), or `change` fails.
pub fn walk(
    graph: &Graph,
    weights: &[&Weight],
    examples: impl Into<Examples>,
    cpu: &Cpu,
    change: &mut dyn FnMut(Stop) -> Result<Option<Matrix>>,
) -> Result<Graph> {
    let mut graph = graph.clone();
    let stages = Stages::new(&graph, weights);
    let examples: Examples = examples.into();
    let mut states = examples.carried(&|e| Ok(stages.start(&graph, e)?.into_iter().collect()))?;
    drop(examples);
    let mut changed: HashSet<ValueId> = HashSet::new();
    for stage in 0..stages.count {
        let here: Vec<(&Weight, Layout)> = weights
            .iter()
            .filter(|w| stages.of_weight.get(&w.node) == Some(&stage) && !changed.contains(&w.value))
            .filter_map(|w| Some((*w, Layout::of(&graph, w)?)))
            .collect();
        let segment = stages.segment(&graph, stage);
        let session = segment.as_ref().map(|s| Session::new(s.clone(), cpu)).transpose()?;
        // Weights that read the same value in the same way share their statistics.
        let mut seen: HashMap<Key, (Vec<Gram>, bool)> = HashMap::new();
        for at in 0..states.len() {
            let mut state: State = states.take(at)?.into_iter().collect();
            if let Some(session) = &session {
                stages.advance(session, &mut state)?;
            }
            for (weight, layout) in &here {
                let Some(key) = Key::new(&graph, weight, layout) else { continue };
                if !seen.contains_key(&key) {
                    seen.insert(key.clone(), (vec![Gram::new(layout.cols); layout.groups], true));
                }
            }
            for (key, (grams, known)) in &mut seen {
                if let (true, Some(Datum::Tensor(x))) = (*known, state.get(&key.input)) {
                    let Some(node) = graph.node(key.node) else { continue };
                    let added =
                        node.op.weight_rows(x, &key.shape, &mut |group, rows| grams[group].add(cpu, rows));
                    *known = added.is_ok();
                }
            }
            if stage + 1 < stages.count {
                states.put(at, state.into_iter().collect())?;
            }
        }
        for (weight, layout) in &here {
            let found = Key::new(&graph, weight, layout).and_then(|key| seen.get(&key));
            let Some((grams, true)) = found else { continue };
            if changed.contains(&weight.value) || grams.iter().any(|g| g.count() == 0) {
                continue;
            }
            if !grams.iter().all(Gram::is_finite) {
                let what = "what it is multiplied with is not finite; check the data and the model".into();
                return Err(Error::Weight { weight: graph.value(weight.value).name.clone(), what });
            }
            let Some(tensor) = graph.constant(weight.value) else { continue };
            let matrix = layout.read(tensor)?;
            let mut shift = Vec::new();
            if let Some(new) = change(Stop { weight, layout, matrix, grams, shift: &mut shift })? {
                changed.insert(weight.value);
                graph.set_constant(weight.value, layout.write(&new)?);
                if !shift.is_empty() {
                    bias::add(&mut graph, weight, &shift)?;
                }
            }
        }
    }
    Ok(graph)
}

/// What decides about the statistics of a weight's inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    input: ValueId,
    node: NodeId,
    shape: Vec<usize>,
}

impl Key {
    fn new(graph: &Graph, weight: &Weight, layout: &Layout) -> Option<Key> {
        let node = graph.node(weight.node)?;
        let input = node.input(0).filter(|_| weight.used.input == 1)?;
        // The first node that reads this value through a weight of this shape, when it is of the same kind.
        let how = format!("{:?}", node.op);
        let alike = |other: &graph::Node| {
            other.input(0) == Some(input)
                && other.kind() == node.kind()
                && format!("{:?}", other.op) == how
                && other.input(1).and_then(|w| graph.constant(w)).is_some_and(|w| w.shape() == layout.shape())
        };
        let first = graph.nodes().find(|(_, other)| alike(other)).map_or(weight.node, |(id, _)| id);
        Some(Key { input, node: first, shape: layout.shape().to_vec() })
    }
}

/// Values that are alive in one example's run.
pub(crate) type State = HashMap<ValueId, Datum>;

/// Which nodes run when.
pub(crate) struct Stages {
    pub(crate) count: usize,
    /// When the inputs of a weight are there.
    pub(crate) of_weight: HashMap<NodeId, usize>,
    /// When a node runs; `None` when no weight needs it.
    of_node: HashMap<NodeId, usize>,
    /// The last stage at which a value is read.
    last_read: HashMap<ValueId, usize>,
}

impl Stages {
    pub(crate) fn new(graph: &Graph, weights: &[&Weight]) -> Stages {
        let stops: HashSet<NodeId> = weights.iter().filter(|w| w.used.input == 1).map(|w| w.node).collect();
        let mut of_value: HashMap<ValueId, usize> = HashMap::new();
        let (mut of_weight, mut of_node) = (HashMap::new(), HashMap::new());
        for (id, node) in graph.nodes() {
            let mut stage = node.reads().filter_map(|v| of_value.get(&v).copied()).max().unwrap_or(0);
            if stops.contains(&id) {
                of_weight.insert(id, stage);
                stage += 1;
            }
            of_node.insert(id, stage);
            of_value.extend(node.outputs.iter().flatten().map(|&v| (v, stage)));
        }
        // Only what leads to a weight's input runs.
        let mut wanted: HashSet<ValueId> = HashSet::new();
        let mut last_read: HashMap<ValueId, usize> = HashMap::new();
        for (id, node) in graph.nodes().rev() {
            let needed = node.outputs.iter().flatten().any(|v| wanted.contains(v));
            if let Some(&stage) = of_weight.get(&id)
                && let Some(x) = node.input(0)
            {
                wanted.insert(x);
                let last = last_read.entry(x).or_insert(stage);
                *last = stage.max(*last);
            }
            if !needed {
                of_node.remove(&id);
                continue;
            }
            let stage = of_node[&id];
            for v in node.reads() {
                wanted.insert(v);
                let last = last_read.entry(v).or_insert(stage);
                *last = stage.max(*last);
            }
        }
        let count = of_weight.values().max().map_or(0, |last| last + 1);
        Stages { count, of_weight, of_node, last_read }
    }

    pub(crate) fn start(&self, graph: &Graph, example: Example) -> Result<State> {
        let mut state = State::new();
        for (name, datum) in example {
            let id = graph.find(&name).filter(|id| graph.inputs.contains(id));
            let id = id.ok_or_else(|| Error::Calibration(format!("the model has no input {name:?}")))?;
            state.insert(id, datum);
        }
        Ok(state)
    }

    /// The part of the graph that runs at a stage; `None` when nothing does.
    pub(crate) fn segment(&self, graph: &Graph, stage: usize) -> Option<Graph> {
        let mut part = graph.clone();
        let here: HashSet<NodeId> =
            self.of_node.iter().filter(|(_, s)| **s == stage).map(|(id, _)| *id).collect();
        for id in graph.node_ids() {
            if !here.contains(&id) {
                part.remove_node(id);
            }
        }
        let made: HashSet<ValueId> =
            part.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied()).collect();
        let mut inputs: Vec<ValueId> = Vec::new();
        for (_, node) in part.nodes() {
            for v in node.reads() {
                if !made.contains(&v) && !inputs.contains(&v) && graph.constant(v).is_none() {
                    inputs.push(v);
                }
            }
        }
        let read_by_weight = |v: &ValueId| self.last_read.get(v).is_some_and(|&last| last > stage);
        let stops: HashSet<ValueId> = self
            .of_weight
            .iter()
            .filter(|(_, s)| **s == stage)
            .filter_map(|(id, _)| graph.node(*id)?.input(0))
            .collect();
        let mut outputs: Vec<ValueId> =
            made.iter().copied().filter(|v| read_by_weight(v) || stops.contains(v)).collect();
        outputs.sort();
        if outputs.is_empty() {
            return None;
        }
        (part.inputs, part.outputs) = (inputs, outputs);
        Some(part)
    }

    /// Runs a segment, and forgets what no later stage reads.
    pub(crate) fn advance(&self, session: &Session, state: &mut State) -> Result<()> {
        let graph = session.graph();
        let inputs = graph
            .inputs
            .iter()
            .filter_map(|id| Some((graph.value(*id).name.as_str(), state.get(id)?.clone())));
        let made = session.run(inputs.collect())?;
        let stage = graph.nodes().filter_map(|(id, _)| self.of_node.get(&id)).max().copied().unwrap_or(0);
        state.extend(graph.outputs.iter().copied().zip(made));
        state.retain(|id, _| self.last_read.get(id).is_some_and(|&last| last >= stage));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;
    use graph::{Attrs, DType, Dim, Fact};

    use super::*;
    use crate::gram::tests::cpu;
    use crate::weights::weights;

    fn add(g: &mut Graph, kind: &str, name: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        g.append(name, kind, 17, &attrs, inputs).unwrap()
    }

    /// A convolution, a grouped one beside it, their sum, a product of both with a third, and a classifier.
    fn network() -> Graph {
        let mut g = Graph::new("net");
        let size = vec![Dim::named("n"), Dim::Is(4), Dim::Is(6), Dim::Is(6)];
        let x = g.add_input("x", Fact::tensor(DType::F32, size)).unwrap();
        let pads = || Attrs::new().ints("pads", &[1; 4]);
        let [a, b, c] = [[8, 4, 3, 3], [8, 2, 3, 3], [8, 8, 1, 1]].map(|s| g.add_constant("w", ramp(&s)));
        let left = add(&mut g, "Conv", "left", &[x, a], pads());
        let right = add(&mut g, "Conv", "right", &[x, b], pads().int("group", 2));
        let sum = add(&mut g, "Add", "sum", &[left, right], Attrs::new());
        let sum = add(&mut g, "Relu", "relu", &[sum], Attrs::new());
        let deep = add(&mut g, "Conv", "deep", &[sum, c], Attrs::new());
        let sum = add(&mut g, "Add", "residual", &[deep, sum], Attrs::new());
        let flat = add(&mut g, "Flatten", "flat", &[sum], Attrs::new());
        let w = g.add_constant("w", ramp(&[288, 5]));
        let y = add(&mut g, "Gemm", "last", &[flat, w], Attrs::new());
        g.outputs.push(y);
        g.infer().unwrap();
        g
    }

    fn examples() -> Vec<Example> {
        let all = ramp(&[3, 4, 6, 6]);
        let one = |i: usize| {
            let data = &all.as_slice::<f32>().unwrap()[i * 144..][..144];
            vec![("x".to_string(), Datum::Tensor(graph::Tensor::new(&[1, 4, 6, 6], data).unwrap()))]
        };
        (0..3).map(one).collect()
    }

    #[test]
    fn stops_are_made_in_order_with_the_inputs_that_changed_weights_make() {
        let g = network();
        let found = weights(&g).unwrap();
        let wanted: Vec<&Weight> = found.iter().collect();
        let mut order = Vec::new();
        let mut energies = Vec::new();
        let halve = |stop: Stop, order: &mut Vec<String>, energies: &mut Vec<f64>, factor: f32| {
            order.push(stop.weight.name.clone());
            assert_eq!(stop.grams.len(), stop.layout.groups);
            energies.push(stop.grams.iter().map(|g| g.importance().iter().sum::<f64>()).sum());
            let data = stop.matrix.data.iter().map(|x| x * factor).collect();
            Ok(Some(Matrix { data, ..stop.matrix }))
        };
        walk(&g, &wanted, examples(), &cpu(), &mut |s| halve(s, &mut order, &mut energies, 1.0)).unwrap();
        assert_eq!(order, ["left", "right", "deep", "last"]);
        let (mut again, mut halved) = (Vec::new(), Vec::new());
        let small =
            walk(&g, &wanted, examples(), &cpu(), &mut |s| halve(s, &mut again, &mut halved, 0.5)).unwrap();
        // The first two read the input itself; what the third reads is half as great, its energy a quarter.
        assert!(energies[0] == halved[0] && energies[1] == halved[1]);
        assert!((energies[2] / halved[2] - 4.0).abs() < 1e-3, "{energies:?} {halved:?}");
        assert!(energies[3] / halved[3] > 4.0);
        let id = g.find("w").unwrap();
        let first = |g: &Graph| g.constant(id).unwrap().as_slice::<f32>().unwrap()[0];
        assert_eq!(first(&small), 0.5 * first(&g));
    }

    #[test]
    fn what_is_carried_in_files_gives_the_same() {
        let g = network();
        let found = weights(&g).unwrap();
        let wanted: Vec<&Weight> = found.iter().collect();
        let place = tempfile::tempdir().unwrap();
        let mut filed = Examples::new(Some(place.path())).unwrap();
        examples().into_iter().for_each(|e| filed.push(e).unwrap());
        let run = |examples: Examples| {
            let mut sums = Vec::new();
            let small = walk(&g, &wanted, examples, &cpu(), &mut |stop| {
                assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
                sums.extend(stop.grams.iter().flat_map(|g| g.sums().map(f64::to_bits).collect::<Vec<_>>()));
                let data = stop.matrix.data.iter().map(|x| x * 0.5).collect();
                Ok(Some(Matrix { data, ..stop.matrix }))
            });
            small.unwrap();
            sums
        };
        let held = run(examples().into());
        assert!(held.len() > 1000 && held == run(filed));
    }

    #[test]
    fn inputs_that_are_not_finite_are_said_with_the_weight() {
        let g = network();
        let found = weights(&g).unwrap();
        let wanted: Vec<&Weight> = found.iter().collect();
        let mut bad = ramp(&[1, 4, 6, 6]);
        bad.as_mut_slice::<f32>().unwrap()[7] = f32::NAN;
        let examples = vec![vec![("x".to_string(), Datum::Tensor(bad))]];
        let error = walk(&g, &wanted, examples, &cpu(), &mut |_| Ok(None)).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
        let examples = vec![vec![("z".to_string(), Datum::Tensor(ramp(&[1])))]];
        assert!(walk(&g, &wanted, examples, &cpu(), &mut |_| Ok(None)).is_err());
    }
}
