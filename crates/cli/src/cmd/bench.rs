//! `lessen bench`: what a run costs.

use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use lessen::bench::{self, Bench as Found, Options};
use lessen::receipt::{Memory, bytes};
use lessen::shapes::{Shape, by};

use super::{Done, table};
use crate::flags::Common;

/// Measure time and memory of a model, alone or in turns with another one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen bench model.onnx
  lessen bench small.onnx --against big.onnx --threads 1
  lessen bench detector.onnx --shape image=1x3x640x640 --runs 50 --json")]
pub struct Bench {
    /// The model.
    model: PathBuf,
    /// Another model, measured in turns with the first.
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// The shape of an input, where the model leaves it open.
    #[arg(long, value_name = "INPUT=1x3x224x224")]
    shape: Vec<Shape>,
    /// Most runs of each model.
    #[arg(long, value_name = "N", default_value_t = 200)]
    runs: usize,
    /// Runs of each model before those that count.
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: usize,
    /// Most seconds for all runs that count.
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
}

impl Bench {
    pub fn run(self, common: &Common) -> Result<Done> {
        let program = std::env::current_exe()?;
        let command = |path: &Path| {
            let mut command = process::Command::new(&program);
            command.arg("bench-worker").arg(path).args(["--threads", &common.threads.to_string()]);
            for shape in &self.shape {
                command.arg("--shape").arg(format!("{}={}", shape.input, by(&shape.sizes)));
            }
            Ok(command)
        };
        let options =
            Options { warmup: self.warmup, runs: self.runs, time: Duration::from_secs(self.seconds) };
        let models: Vec<PathBuf> = std::iter::once(self.model.clone()).chain(self.against.clone()).collect();
        let found = bench::bench(&models, command, &options)?;
        Done::new(text(&found), found)
    }
}

/// The most memory that a run of each of two models holds, each in a process of its own; `None` when one cannot be run
/// on made-up inputs, or the system does not tell.
pub(super) fn memory(common: &Common, before: &Path, after: &Path) -> Option<Memory> {
    let program = std::env::current_exe().ok()?;
    let command = |path: &Path| {
        let mut command = process::Command::new(&program);
        command.arg("bench-worker").arg(path).args(["--threads", &common.threads.to_string()]);
        Ok(command)
    };
    let options = Options { warmup: 0, runs: 1, time: Duration::ZERO };
    let found = bench::bench(&[before.into(), after.into()], command, &options);
    let found = found.inspect_err(|e| tracing::info!("memory was not measured: {e}")).ok()?;
    match found.models.as_slice() {
        [a, b] => Some(Memory { before: a.peak_memory?, after: b.peak_memory? }),
        _ => None,
    }
}

fn text(found: &Found) -> String {
    let mut text = format!("{}\n", found.machine);
    if let Some(row) = found.models.first() {
        let shapes: Vec<String> = row.shapes.iter().map(|(n, s)| format!("{n}={}", by(s))).collect();
        let (threads, isa, runs) = (row.threads, &row.isa, row.runs);
        text += &format!("{}, {threads} thread(s), {isa}, {runs} runs\n\n", shapes.join(" "));
    }
    let cells = |f: &dyn Fn(&bench::Row) -> String| found.models.iter().map(f).collect::<Vec<_>>();
    let size = |n: &lessen::receipt::Number| bytes(n.value as u64);
    let rows = [
        ("", cells(&|r| r.file.display().to_string())),
        ("median", cells(&|r| format!("{:.3}", r.latency_median))),
        ("95 % below", cells(&|r| format!("{:.3}", r.latency_p95))),
        ("throughput", cells(&|r| format!("{:.1}", r.throughput))),
        ("load", cells(&|r| format!("{:.1}", r.load))),
        ("peak memory", cells(&|r| r.peak_memory.as_ref().map_or("not known".into(), size))),
        ("file", cells(&|r| size(&r.file_size))),
    ];
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, cells)| std::iter::once(name.into()).chain(cells).collect()).collect();
    text += &table(&rows);
    if let (Some(speedup), [_, other]) = (&found.speedup, found.models.as_slice()) {
        text += &format!("\n{:.2} times as fast as {}", speedup.value, other.file.display());
        if let (Some(low), Some(high)) = (speedup.low, speedup.high) {
            text += &format!(" ({low:.2} to {high:.2})");
        }
        text += "\n";
    }
    text
}

/// Measure one model for `bench`, which asks for each run through stdin.
#[derive(Debug, Args)]
pub struct Worker {
    model: PathBuf,
    #[arg(long)]
    shape: Vec<Shape>,
}

impl Worker {
    pub fn run(self, common: &Common) -> Result<Done> {
        let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
        bench::work(&self.model, &self.shape, common.threads, input, output)?;
        Ok(Done::default())
    }
}
