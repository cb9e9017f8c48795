//! `lessen plan`: what shrinking would give and cost, before any of it is done.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lessen::answer::Task;
use lessen::data::{self, Dataset};
use lessen::forecast::forecast;
use lessen::receipt::bytes;
use lessen::shrink::Request;

use super::{Done, table};
use crate::flags::{Columns, Common, Opening, Showing};
use crate::parse::{positive, size};

/// Look ahead: sizes that can be had, memory, time and energy that shrinking would take. Nothing is changed or written.
#[derive(Debug, Args)]
#[command(
    after_help = "Sizes are those of the files that would be written. Time, memory and energy are estimated: from one
run on an example, from the shapes, and from the watts of a core that the table names.

Examples:
  lessen plan resnet.onnx --data images/ --smaller 7
  lessen plan minilm/ --size 10MB"
)]
pub struct Plan {
    /// The model: an ONNX file, or a folder with config.json and model.safetensors.
    model: PathBuf,
    /// Examples, as for shrink.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Without data: look ahead to shrinking on examples that lessen makes itself.
    #[arg(long, conflicts_with = "data")]
    self_made: bool,
    /// The file is to become at least this many times smaller.
    #[arg(long, value_name = "TIMES", value_parser = positive)]
    smaller: Option<f64>,
    /// The file may have at most so many bytes: 25MB, 800kB.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    size: Option<usize>,
    /// What the model is for: classify, similarity or agree [default: what the data are for].
    #[arg(long, value_name = "TASK")]
    task: Option<Task>,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    showing: Showing,
}

impl Plan {
    pub fn run(self, common: &Common) -> Result<Done> {
        let model = self.opening.open(&self.model)?;
        let data =
            self.data.as_deref().map(|path| data::open(path, &self.columns.options(&model))).transpose()?;
        let request = Request {
            data: data.as_deref().map(|d| d as &dyn Dataset),
            self_made: self.self_made,
            smaller: self.smaller,
            size: self.size,
            task: self.task,
            options: self.showing.options(),
            ..Request::default()
        };
        let found = forecast(&model, &request, &common.cpu()?)?;
        let big = |n: f64| bytes(n as u64);
        let mut rows = vec![vec!["bits of every weight".into(), "size of the file".into(), String::new()]];
        rows.push(vec!["as it is".into(), big(found.bytes_before.value), String::new()]);
        for size in &found.sizes {
            rows.push(vec![
                size.bits.to_string(),
                big(size.bytes.value),
                format!("{:.2} times smaller", size.smaller.value),
            ]);
        }
        let mut text = table(&rows);
        if let Some(goal) = &found.goal {
            text += &format!("the goal: {goal}\n");
        }
        if let (Some(run), Some(time), Some(energy)) = (&found.run, &found.time, &found.energy) {
            text += &format!("one run of the original: {run:.2}, measured once\n");
            text += &format!("shrinking to few bits: about {time:.0}, {energy:.0} (estimated)\n");
        } else {
            text += "time and energy are not known without examples (--data PATH or --self-made)\n";
        }
        text += &format!("memory: about {} to shrink", big(found.work_memory.value));
        if let Some(memory) = &found.memory {
            text += &format!(", {} to run the original", big(memory.value));
        }
        text += " (estimated)\n";
        Done::new(text, found)
    }
}
