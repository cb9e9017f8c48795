//! Passes that keep a graph's meaning. Those of [`PORTABLE`] leave ONNX operators, so the graph can be written
//! afterwards; those of [`RUN`] also use operators of lessen's own, for a graph that is only run.

use kernel::Cpu;

use crate::{Graph, Result};

mod batchnorm;
mod cut;
mod fold;
mod fuse;
mod identity;
mod layout;
pub mod pattern;
mod quantized;
mod transposes;

/// A pass.
pub struct Pass {
    /// Its name, for logs and errors.
    pub name: &'static str,
    /// Changes the graph; says how many changes it made.
    pub apply: fn(&mut Graph, &Cpu) -> Result<usize>,
}

/// Passes after which the graph can still be written as ONNX, in this order: what is constant is computed, so that
/// the later ones see weights; batch normalisation goes into the convolution before it.
pub static PORTABLE: &[&[Pass]] = &[&[
    Pass { name: "identity", apply: identity::remove },
    Pass { name: "fold", apply: fold::fold },
    Pass { name: "batchnorm", apply: batchnorm::fold },
]];

/// Passes for a graph that is only run: first those that make it smaller, then those that say how its images lie in
/// memory, which no other pass needs to know.
pub static RUN: &[&[Pass]] = &[
    &[
        Pass { name: "identity", apply: identity::remove },
        Pass { name: "fold", apply: fold::fold },
        Pass { name: "batchnorm", apply: batchnorm::fold },
        Pass { name: "quantized", apply: quantized::quantized },
        Pass { name: "dequantize", apply: fold::fold_all },
        Pass { name: "compose", apply: fuse::compose::fuse },
        Pass { name: "attention", apply: fuse::attention::fuse },
        Pass { name: "epilogue", apply: fuse::epilogue::fuse },
    ],
    &[
        Pass { name: "layout", apply: layout::channels_last },
        Pass { name: "transposes", apply: transposes::merge },
    ],
];

/// Most rounds of all passes of a stage: each round may make way for the next.
const MAX_ROUNDS: usize = 4;

/// Runs the passes of each stage over a graph until nothing changes any more. The graph is checked before and after
/// each.
///
/// # Errors
/// When the graph breaks a rule; says which pass broke it.
pub fn run(graph: &mut Graph, stages: &[&[Pass]], cpu: &Cpu) -> Result<()> {
    graph.check()?;
    for passes in stages {
        for _ in 0..MAX_ROUNDS {
            if !round(graph, passes, cpu)? {
                break;
            }
        }
    }
    graph.infer()
}

/// Runs all passes of a stage once; says whether they changed anything.
fn round(graph: &mut Graph, passes: &[Pass], cpu: &Cpu) -> Result<bool> {
    let mut changed = false;
    for pass in passes {
        let made = (pass.apply)(graph, cpu).map_err(|e| e.at(pass.name, "pass"))?;
        if made > 0 {
            tracing::debug!(pass = pass.name, changes = made, "tidy");
            graph.sort()?;
            remove_dead(graph);
            graph.check().map_err(|e| e.at(pass.name, "pass"))?;
        }
        changed |= made > 0;
    }
    Ok(changed)
}

/// Removes nodes that no output needs.
pub fn remove_dead(graph: &mut Graph) {
    let mut needed = vec![false; graph.value_count()];
    for id in &graph.outputs {
        needed[id.index()] = true;
    }
    let mut dead = Vec::new();
    for (id, node) in graph.nodes().rev() {
        if node.outputs.iter().flatten().any(|v| needed[v.index()]) {
            for v in node.reads() {
                needed[v.index()] = true;
            }
        } else {
            dead.push(id);
        }
    }
    for id in dead {
        graph.remove_node(id);
    }
}
