//! `lessen apply`: what a plan says, done to a model.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use lessen::answer::Task;
use lessen::measure::Measure;
use lessen::shrink::{Lose, Plan, Request};

use super::Done;
use super::shrink::{Source, make};
use crate::flags::{Columns, Common, Costs, Opening, Showing};
use crate::parse::positive;

/// Most bytes of a plan that are read.
const MOST: u64 = 64 << 20;

/// Do to a model what a plan says, and measure what comes out.
#[derive(Debug, Args)]
#[command(
    after_help = "A plan is the .toml file that shrink writes beside a model. It names what is done to each weight: keep,
int8-static, int8-dynamic, int8-rows, or a number of bits with the length of the groups that share a scale, such as w4
or w3-g128. Weights that it does not name are kept. Before that come its passes: zeros,
channels, blocks, rank, vocabulary, tune. The same plan, model and data give the same file, byte by byte.
A plan that was calibrated on examples made by lessen makes them again; --data then only measures.

Examples:
  lessen apply resnet.onnx small.toml --data images/ -o small.onnx
  lessen apply resnet.onnx edited.toml --data images/ --lose 1% -o other.onnx"
)]
pub struct Apply {
    /// The model: an ONNX file, or a folder with config.json and model.safetensors.
    model: PathBuf,
    /// The plan.
    plan: PathBuf,
    /// Labelled or unlabelled examples, as for shrink.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Examples that calibration looks at, when the plan calibrates on others than those of --data.
    #[arg(long, value_name = "PATH", requires = "data")]
    calibrate_on: Option<PathBuf>,
    /// Examples to train on, when the plan trains on others than those of --data.
    #[arg(long, value_name = "PATH")]
    tune_data: Option<PathBuf>,
    /// The file to write. The receipt (.html) and the plan (.toml) go beside it, and a tokenizer, unless one is there.
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// The file must become at least this many times smaller.
    #[arg(long, value_name = "TIMES", value_parser = positive)]
    smaller: Option<f64>,
    /// At most this much may be lost: 0.5 is half a point of accuracy, 1% a hundredth of the original's metric.
    #[arg(long, value_name = "LOSS")]
    lose: Option<Lose>,
    /// What --lose is a loss of, and the search looks at: usual (that of the task), macro-f1, balanced-accuracy, or
    /// recall=CLASS, so that a class of few examples does not pay for the others.
    #[arg(long, value_name = "METRIC", default_value_t)]
    metric: Measure,
    /// Keep what calibration carries from weight to weight in files of this folder in the place of memory, which is then
    /// that of one batch. The files have no names and nothing of them stays.
    #[arg(long, value_name = "FOLDER")]
    spill: Option<PathBuf>,
    /// Write the model even when a goal is missed.
    #[arg(long)]
    force: bool,
    /// What the model is for: classify, similarity or agree [default: what the data are for].
    #[arg(long, value_name = "TASK")]
    task: Option<Task>,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    showing: Showing,
    #[command(flatten)]
    costs: Costs,
}

impl Apply {
    pub fn run(self, common: &Common) -> Result<Done> {
        let place = || format!("plan {}", self.plan.display());
        let size = std::fs::metadata(&self.plan).with_context(place)?.len();
        anyhow::ensure!(size <= MOST, "{}: {size} bytes are too many for a plan", place());
        let plan =
            Plan::read(&std::fs::read_to_string(&self.plan).with_context(place)?).with_context(place)?;
        let request = Request {
            spill: self.spill.as_deref(),
            smaller: self.smaller,
            lose: self.lose,
            measure: self.metric,
            plan: Some(&plan),
            task: self.task,
            options: self.showing.options(),
            place: self.costs.place()?,
            ..Request::default()
        };
        let source = Source {
            model: &self.model,
            data: self.data.as_deref(),
            tune_data: self.tune_data.as_deref(),
            calibrate_on: self.calibrate_on.as_deref(),
            columns: &self.columns,
        };
        make(common, &source, &self.opening, request, &self.output, self.force)
    }
}
