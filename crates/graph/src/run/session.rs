//! A model ready to run on inputs by name.

use std::sync::{Arc, Mutex};

use kernel::{Arena, Cpu};

use super::{Program, Watch};
use crate::{Datum, Error, Fact, Graph, Result};

/// A model ready to run.
#[derive(Debug)]
pub struct Session {
    program: Program,
    /// Memory of earlier runs, one for each that was under way at the same time.
    arenas: Mutex<Vec<Arena>>,
}

impl Session {
    /// Plans the graph as it is. See `tidy` for making it faster first.
    ///
    /// # Errors
    /// When the graph breaks a rule.
    pub fn new(graph: Graph, cpu: &Cpu) -> Result<Session> {
        graph.check()?;
        Ok(Session { program: Program::new(Arc::new(graph), cpu)?, arenas: Mutex::default() })
    }

    /// The graph that runs.
    pub fn graph(&self) -> &Graph {
        self.program.graph()
    }

    /// Names and facts of the inputs that must be given, in order.
    pub fn inputs(&self) -> Vec<(&str, &Fact)> {
        let graph = self.graph();
        let required = graph.inputs.iter().map(|&id| graph.value(id)).filter(|v| v.constant.is_none());
        required.map(|v| (v.name.as_str(), &v.fact)).collect()
    }

    /// Names and facts of the outputs, in order.
    pub fn outputs(&self) -> Vec<(&str, &Fact)> {
        let graph = self.graph();
        graph.outputs.iter().map(|&id| (graph.value(id).name.as_str(), &graph.value(id).fact)).collect()
    }

    /// Runs the model on inputs by name; gives the outputs in order.
    ///
    /// # Errors
    /// [`Error::Input`] when an input is missing, unknown, or of another type or shape; what a node reports.
    pub fn run(&self, inputs: Vec<(&str, Datum)>) -> Result<Vec<Datum>> {
        self.run_watched(inputs, &mut ())
    }

    /// As [`Session::run`]; `watch` looks at each node.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_watched(&self, inputs: Vec<(&str, Datum)>, watch: &mut dyn Watch) -> Result<Vec<Datum>> {
        let graph = self.graph();
        let mut data: Vec<Option<Datum>> = vec![None; graph.inputs.len()];
        for (name, datum) in inputs {
            let Some(at) = graph.inputs.iter().position(|&id| graph.value(id).name == name) else {
                let names: Vec<_> = self.inputs().into_iter().map(|(n, _)| n.to_owned()).collect();
                return Err(Error::Input(format!(
                    "the model has no input {name:?}; it has {}",
                    names.join(", ")
                )));
            };
            let fact = &graph.value(graph.inputs[at]).fact;
            fact.admits(&datum).map_err(|e| Error::Input(format!("input {name:?}: {e}")))?;
            data[at] = Some(datum);
        }
        let missing = graph.inputs.iter().zip(&data).map(|(&id, d)| (graph.value(id), d));
        if let Some((value, _)) = missing.into_iter().find(|(v, d)| d.is_none() && v.constant.is_none()) {
            return Err(Error::Input(format!("input {:?} ({}) is missing", value.name, value.fact)));
        }
        let arenas = || self.arenas.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut arena = arenas().pop().unwrap_or_default();
        let outputs = arena.run(|| self.program.run(data, Vec::new(), watch));
        arenas().push(arena);
        outputs
    }
}
