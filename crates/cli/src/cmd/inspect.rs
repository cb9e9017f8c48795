//! `lessen inspect`: what a model is made of.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lessen::Model;
use lessen::inspect::{Inspection, inspect};
use lessen::receipt::{bytes, count};
use lessen::shapes::Shape;

use super::{Done, table};
use crate::flags::Common;

/// Show what a model is made of, what it costs to run, and what would make it smaller.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen inspect model.onnx
  lessen inspect detector.onnx --shape image=1x3x640x640
  lessen inspect model.onnx --json | jq '.operators[] | select(.supported | not)'")]
pub struct Inspect {
    /// The model.
    model: PathBuf,
    /// The shape of an input, where the model leaves it open.
    #[arg(long, value_name = "INPUT=1x3x224x224")]
    shape: Vec<Shape>,
    /// How many of the biggest weights to show.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
}

impl Inspect {
    pub fn run(self, common: &Common) -> Result<Done> {
        let mut found = inspect(&Model::open(&self.model)?, &self.shape, &common.cpu()?)?;
        let text = self.text(&found);
        found.weights.truncate(self.top);
        Done::new(text, found)
    }

    fn text(&self, found: &Inspection) -> String {
        let mut text = format!("{}", self.model.display());
        if let Some(size) = found.file_bytes {
            text += &format!(", {}", bytes(size));
        }
        if !found.producer.is_empty() {
            text += &format!(", made by {}", found.producer);
        }
        let opsets: Vec<String> = found.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
        text += &format!("\nversions: {}\n", opsets.join(", "));
        for (kind, ports) in [("input", &found.inputs), ("output", &found.outputs)] {
            for port in ports {
                text += &format!("{kind} {:?}: {}\n", port.name, port.fact);
            }
        }
        let nodes: usize = found.operators.iter().map(|o| o.count).sum();
        text += &format!("\n{nodes} operators\n");
        let mark = |supported: bool| if supported { "" } else { "NOT SUPPORTED" };
        let name = |o: &lessen::inspect::Operator| match o.domain.as_str() {
            "" => o.name.clone(),
            domain => format!("{domain}.{}", o.name),
        };
        let rows: Vec<Vec<String>> = found
            .operators
            .iter()
            .map(|o| vec![name(o), o.count.to_string(), mark(o.supported).into()])
            .collect();
        text += &table(&rows);

        text += &format!(
            "\n{} weights, {} parameters, {}\n",
            found.weights.len(),
            count(found.parameters),
            bytes(found.weight_bytes)
        );
        let rows: Vec<Vec<String>> = found
            .weights_by_type
            .iter()
            .map(|t| vec![t.dtype.clone(), t.count.to_string(), count(t.elements), bytes(t.bytes)])
            .collect();
        text += &table(&rows);
        let biggest = found.weights.iter().take(self.top);
        let rows: Vec<Vec<String>> = biggest
            .map(|w| vec![w.name.clone(), format!("{}{:?}", w.dtype, w.shape), bytes(w.bytes)])
            .collect();
        if !rows.is_empty() {
            text += &format!("\nthe biggest\n{}", table(&rows));
        }

        match (&found.cost, &found.cost_unknown) {
            (Some(cost), _) => {
                let shapes: Vec<String> =
                    cost.shapes.iter().map(|(n, s)| format!("{n}={}", lessen::shapes::by(s))).collect();
                text += &format!("\none run at {}\n", shapes.join(" "));
                text += &format!("  {} multiply-adds\n", count(cost.multiply_adds));
                text += &format!(
                    "  {} of activations at most, estimated from the shapes\n",
                    bytes(cost.peak_activation_bytes)
                );
                if cost.nodes_not_counted > 0 {
                    text += &format!(
                        "  {} nodes are not counted: their shapes are known only when they run\n",
                        cost.nodes_not_counted
                    );
                }
            }
            (None, Some(why)) => text += &format!("\nthe cost of a run is not known: {why}\n"),
            (None, None) => {}
        }

        let rows: Vec<Vec<String>> = found
            .shrinkers
            .iter()
            .map(|s| {
                let saved = format!("{} -> about {}", bytes(s.bytes), bytes(s.bytes_after));
                vec![s.name.into(), s.weights.to_string(), saved, s.what.into()]
            })
            .collect();
        text += match rows.is_empty() {
            true => "\nno shrinker applies\n",
            false => "\nshrinkers that apply, with the number of weights\n",
        };
        text + &table(&rows)
    }
}
