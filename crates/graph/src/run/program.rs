//! A graph made ready to run: the order of its nodes, the last reader of each value, prepared constants.

use std::collections::HashSet;
use std::sync::Arc;

use kernel::Cpu;

use super::Watch;
use crate::op::{Facts, Inputs, PackCx, Packed, RunCx};
use crate::{Datum, Error, Graph, NodeId, Result, Tensor, ValueId};

/// A graph that is ready to run.
pub struct Program {
    graph: Arc<Graph>,
    cpu: Cpu,
    steps: Vec<Step>,
    /// Constants that some node reads when it runs, aligned; by value.
    constants: Vec<Option<Tensor>>,
}

struct Step {
    node: NodeId,
    packed: Option<Packed>,
    /// For each input: what to hand over.
    reads: Vec<Option<Read>>,
    captures: Vec<Read>,
}

#[derive(Clone, Copy)]
struct Read {
    value: ValueId,
    /// No later node reads it, and it is no output: it can be given up.
    last: bool,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({:?}, {} steps)", self.graph.name, self.steps.len())
    }
}

impl Program {
    /// Plans a graph. Nodes whose outputs nobody needs are left out.
    ///
    /// # Errors
    /// When the graph breaks a rule, or a constant does not fit its operator.
    pub fn new(graph: Arc<Graph>, cpu: &Cpu) -> Result<Program> {
        let needed = needed(&graph);
        let outputs: HashSet<ValueId> = graph.outputs.iter().copied().collect();
        let mut steps = Vec::new();
        let mut constants: Vec<Option<Tensor>> = vec![None; graph.value_count()];
        let constant = |constants: &[Option<Tensor>], value: ValueId| {
            let ready = constants[value.index()].clone();
            ready.or_else(|| graph.constant(value).cloned().map(Tensor::aligned))
        };
        for (id, node) in graph.nodes().filter(|(id, _)| needed[id.index()]) {
            let fixed = |v: &Option<ValueId>| {
                v.filter(|v| !graph.inputs.contains(v)).and_then(|v| constant(&constants, v))
            };
            let own = match node.inputs.iter().flatten().any(|&v| graph.constant(v).is_some())
                || !node.op.bodies().is_empty()
            {
                true => node.inputs.iter().map(fixed).collect(),
                false => vec![None; node.inputs.len()],
            };
            let facts: Vec<_> = node.inputs.iter().map(|v| v.map(|v| &graph.value(v).fact)).collect();
            let cx = PackCx { cpu, constants: own, facts: Facts::new(&facts, node.outputs.len()) };
            let packed = node.op.prepack(&cx).map_err(|e| e.at(&node.name, node.kind()))?;
            let replaced = packed.as_ref().map_or(&[][..], |p| &p.replaces);
            let read = |value| Read { value, last: false };
            let kept = |i: usize, v: &Option<ValueId>| v.filter(|_| !replaced.contains(&i));
            let kept: Vec<_> = node.inputs.iter().enumerate().map(|(i, v)| kept(i, v)).collect();
            for (value, own) in kept.iter().zip(cx.constants) {
                if let Some(value) = value.filter(|_| own.is_some()) {
                    constants[value.index()] = own;
                }
            }
            let reads = kept.into_iter().map(|v| v.map(read)).collect();
            let captures = node.captures.iter().copied().map(read).collect();
            steps.push(Step { node: id, packed, reads, captures });
        }
        let mut seen = vec![false; graph.value_count()];
        for step in steps.iter_mut().rev() {
            // Captures and inputs of one step: only the first mention from the back may give the value up.
            for read in step.captures.iter_mut().rev().chain(step.reads.iter_mut().rev().flatten()) {
                let at = read.value.index();
                read.last = !seen[at] && !outputs.contains(&read.value);
                seen[at] = true;
                if constants[at].is_none() {
                    constants[at] = constant(&constants, read.value);
                }
            }
        }
        for &output in graph.outputs.iter().chain(&graph.inputs) {
            if constants[output.index()].is_none() {
                constants[output.index()] = constant(&constants, output);
            }
        }
        Ok(Program { graph, cpu: cpu.clone(), steps, constants })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What it runs on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Runs the graph. `inputs` are in the order of [`Graph::inputs`]; one that is `None` takes its constant as
    /// default, and may lack when no node reads it. `captures` are in the order of [`Graph::captures`].
    ///
    /// # Errors
    /// When the inputs do not fit, or a node fails; names the node.
    pub fn run(
        &self,
        inputs: Vec<Option<Datum>>,
        captures: Vec<Datum>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Datum>> {
        let graph = &self.graph;
        let mut table: Vec<Option<Datum>> = vec![None; graph.value_count()];
        if inputs.len() > graph.inputs.len() || captures.len() != graph.captures.len() {
            return Err(Error::Input(format!(
                "the graph takes {} inputs and {} captured values, got {} and {}",
                graph.inputs.len(),
                graph.captures.len(),
                inputs.len(),
                captures.len()
            )));
        }
        let mut inputs = inputs.into_iter();
        for &id in &graph.inputs {
            let datum =
                inputs.next().flatten().or_else(|| self.constants[id.index()].clone().map(Datum::Tensor));
            table[id.index()] = datum.map(|datum| match datum {
                Datum::Tensor(t) => Datum::Tensor(t.aligned()),
                other => other,
            });
        }
        for ((_, id), datum) in graph.captures.iter().zip(captures) {
            table[id.index()] = Some(datum);
        }
        for step in &self.steps {
            let Some(node) = graph.node(step.node) else { continue };
            self.step(step, node, &mut table, watch).map_err(|e| e.at(&node.name, node.kind()))?;
        }
        // The same value may be given back twice.
        let outputs = graph.outputs.iter().map(|id| {
            let made = table[id.index()].clone();
            made.or_else(|| self.constants[id.index()].clone().map(Datum::Tensor))
                .ok_or_else(|| Error::invalid(format!("output {:?} was not made", graph.value(*id).name)))
        });
        outputs.collect()
    }

    fn step(
        &self,
        step: &Step,
        node: &crate::Node,
        table: &mut [Option<Datum>],
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let mut fetch = |read: &Read| -> Result<Datum> {
            let at = read.value.index();
            let made = if read.last { table[at].take() } else { table[at].clone() };
            made.or_else(|| self.constants[at].clone().map(Datum::Tensor)).ok_or_else(|| {
                Error::invalid(format!("{:?} was not made", self.graph.value(read.value).name))
            })
        };
        let data =
            step.reads.iter().map(|r| r.as_ref().map(&mut fetch).transpose()).collect::<Result<Vec<_>>>()?;
        let captures = step.captures.iter().map(&mut fetch).collect::<Result<Vec<_>>>()?;
        watch.before(step.node, node, &data);
        let cx =
            RunCx { cpu: &self.cpu, outputs: node.outputs.len(), packed: step.packed.as_ref(), captures };
        let outputs = node.op.run_data(&cx, Inputs::new(data))?;
        if outputs.len() < node.outputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1) {
            return Err(Error::invalid(format!("made {} outputs of {}", outputs.len(), node.outputs.len())));
        }
        watch.after(step.node, node, &outputs);
        for (id, datum) in node.outputs.iter().zip(outputs) {
            if let Some(id) = id {
                table[id.index()] = Some(datum);
            }
        }
        Ok(())
    }
}

/// Which nodes are needed for the outputs; by [`NodeId::index`].
fn needed(graph: &Graph) -> Vec<bool> {
    let mut value = vec![false; graph.value_count()];
    let mut node_needed = vec![false; graph.node_slots()];
    for id in &graph.outputs {
        value[id.index()] = true;
    }
    for (id, node) in graph.nodes().rev() {
        if node.outputs.iter().flatten().any(|v| value[v.index()]) {
            node_needed[id.index()] = true;
            for v in node.reads() {
                value[v.index()] = true;
            }
        }
    }
    node_needed
}
