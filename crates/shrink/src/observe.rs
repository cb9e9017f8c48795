//! Values inside a model, as examples make them: only what leads to them runs.

use graph::run::Session;
use graph::{Datum, Graph, ValueId};
use kernel::Cpu;

use crate::Result;
use crate::walk::Example;

/// The part of a graph that leads to some values, ready to run.
pub struct Observer(Session);

impl Observer {
    /// For these values.
    ///
    /// # Errors
    /// When the graph breaks a rule.
    pub fn new(graph: &Graph, values: &[ValueId], cpu: &Cpu) -> Result<Observer> {
        let mut part = graph.clone();
        part.outputs = values.to_vec();
        graph::tidy::remove_dead(&mut part);
        Ok(Observer(Session::new(part, cpu)?))
    }

    /// The values that an example makes, in order.
    ///
    /// # Errors
    /// When the model cannot be run on it.
    pub fn see(&self, example: &Example) -> Result<Vec<Datum>> {
        let inputs = example.iter().map(|(name, datum)| (name.as_str(), datum.clone())).collect();
        Ok(self.0.run(inputs)?)
    }
}

/// Hands over what these values are for each example.
///
/// # Errors
/// When the model cannot be run.
pub fn observe(
    graph: &Graph,
    values: &[ValueId],
    examples: &[Example],
    cpu: &Cpu,
    see: &mut dyn FnMut(Vec<Datum>) -> Result<()>,
) -> Result<()> {
    let observer = Observer::new(graph, values, cpu)?;
    examples.iter().try_for_each(|example| see(observer.see(example)?))
}
