//! Calibration: the model runs on examples, and a histogram of each wanted value is kept. Memory is one run and the
//! histograms, however many examples there are.

use std::collections::{HashMap, HashSet};

use graph::run::{Session, Watch};
use graph::{Datum, Graph, Node, NodeId, ValueId};
use kernel::Cpu;

use crate::stats::Histogram;
use crate::{Error, Judge, Result};

/// Histograms of the values that were asked for.
pub type Stats = HashMap<ValueId, Histogram>;

struct Collector<'a> {
    graph: &'a Graph,
    wanted: &'a HashSet<ValueId>,
    stats: Stats,
    odd: Option<String>,
}

impl Collector<'_> {
    fn add(&mut self, id: ValueId, datum: &Datum) {
        let Datum::Tensor(tensor) = datum else { return };
        let Ok(values) = tensor.values::<f32>() else { return };
        if self.stats.entry(id).or_default().add(&values) > 0 && self.odd.is_none() {
            self.odd = Some(self.graph.value(id).name.clone());
        }
    }
}

impl Watch for Collector<'_> {
    fn before(&mut self, _: NodeId, node: &Node, inputs: &[Option<Datum>]) {
        // Inputs of the graph are made by no node: they are seen at their readers, once.
        for (id, datum) in node.inputs.iter().zip(inputs) {
            if let (Some(id), Some(datum)) = (id, datum)
                && self.graph.inputs.contains(id)
                && self.wanted.contains(id)
            {
                self.add(*id, datum);
            }
        }
    }

    fn after(&mut self, _: NodeId, node: &Node, outputs: &[Datum]) {
        for (id, datum) in node.outputs.iter().zip(outputs) {
            if let Some(id) = id
                && self.wanted.contains(id)
            {
                self.add(*id, datum);
            }
        }
    }
}

/// Runs the graph on the judge's calibration examples and keeps histograms of the wanted values.
///
/// # Errors
/// When the model cannot be run, there are no examples, or a wanted value is not finite (it is named).
pub fn calibrate(graph: &Graph, wanted: &HashSet<ValueId>, judge: &dyn Judge, cpu: &Cpu) -> Result<Stats> {
    if wanted.is_empty() {
        return Ok(Stats::new());
    }
    let session = Session::new(graph.clone(), cpu)?;
    let mut collector = Collector { graph, wanted, stats: Stats::new(), odd: None };
    let mut runs = 0usize;
    judge.calibration(&mut |inputs| {
        runs += 1;
        let inputs = inputs.iter().map(|(name, datum)| (name.as_str(), datum.clone())).collect();
        session.run_watched(inputs, &mut collector)?;
        Ok(())
    })?;
    if let Some(name) = collector.odd {
        let what = format!("value {name:?} holds numbers that are not finite; check the data and the model");
        return Err(Error::Calibration(what));
    }
    if runs == 0 {
        return Err(Error::Calibration("there are no examples; give data with --data".into()));
    }
    let margin = judge.margin();
    Ok(collector.stats.into_iter().map(|(id, histogram)| (id, histogram.scaled(margin))).collect())
}
