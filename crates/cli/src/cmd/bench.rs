//! `lessen bench`: what a run costs.

use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use lessen::bench::{self, Bench as Found, Metering, Options};
use lessen::meter::{Cost, Place};
use lessen::receipt::{How, Memory, Number, bytes};
use lessen::shapes::{Shape, by};
use serde::Serialize;

use super::{Done, table, three};
use crate::flags::{Common, Costs, least};

/// Measure time, memory and energy of a model, alone or in turns with another one.
#[derive(Debug, Args)]
#[command(
    after_help = "With --energy, blocks of runs are made once times are known, for as long as --seconds says. Their joules are
those of the whole machine (from counters, a sensor or a battery), or estimated and called so: see lessen meter --help.

Examples:
  lessen bench model.onnx
  lessen bench small.onnx --against big.onnx --threads 1
  lessen bench small.onnx --against big.onnx --energy --idle 5 --country FRA
  lessen bench detector.onnx --shape image=1x3x640x640 --runs 50 --json"
)]
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
    /// Take the energy of runs, too.
    #[arg(long)]
    energy: bool,
    /// Measure for so many seconds, for each model, what the machine takes while nothing runs.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.0,
        requires = "energy",
        allow_negative_numbers = true
    )]
    idle: f64,
    #[command(flatten)]
    costs: Costs,
    /// Where the system shows its sensors.
    #[arg(long, value_name = "FOLDER", default_value = lessen::meter::energy::SENSORS, hide = true)]
    sensors: PathBuf,
}

/// What was measured, and what it costs.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    bench: Found,
    /// Where the machine stands; only with energy.
    place: Option<Place>,
    /// What a million runs of each model cost; only with energy.
    million: Vec<Cost>,
}

impl Bench {
    pub fn run(self, common: &Common) -> Result<Done> {
        least("--idle", self.idle, 0.0)?;
        let place = self.costs.place()?;
        ensure!(self.energy || !self.costs.any(), "what energy costs is only known with --energy: add it");
        let program = std::env::current_exe()?;
        let command = |path: &Path| {
            let mut command = process::Command::new(&program);
            command.arg("bench-worker").arg(path).args(["--threads", &common.threads.to_string()]);
            command.arg("--sensors").arg(&self.sensors);
            for shape in &self.shape {
                command.arg("--shape").arg(format!("{}={}", shape.input, by(&shape.sizes)));
            }
            Ok(command)
        };
        let time = Duration::from_secs(self.seconds);
        let rest = Duration::try_from_secs_f64(self.idle).context("--idle is too long")?;
        let energy = self.energy.then_some(Metering { time, rest });
        let options = Options { warmup: self.warmup, runs: self.runs, time, energy };
        let models: Vec<PathBuf> = std::iter::once(self.model.clone()).chain(self.against.clone()).collect();
        let bench = bench::bench(&models, command, &options)?;
        let million = bench.models.iter().filter_map(|row| million(row, &place)).collect();
        let report = Report { bench, place: self.energy.then_some(place), million };
        Done::new(text(&report), report)
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
    let options = Options { warmup: 0, runs: 1, time: Duration::ZERO, energy: None };
    let found = bench::bench(&[before.into(), after.into()], command, &options);
    let found = found.inspect_err(|e| tracing::info!("memory was not measured: {e}")).ok()?;
    match found.models.as_slice() {
        [a, b] => Some(Memory { before: a.peak_memory?, after: b.peak_memory? }),
        _ => None,
    }
}

fn how(number: &Number) -> &'static str {
    if number.how == How::Measured { "measured" } else { "estimated" }
}

fn joules(number: &Number) -> String {
    let value = format!("{} J", three(number.value));
    match (number.low, number.high) {
        (Some(low), Some(high)) => format!("{value} ({} to {})", three(low), three(high)),
        _ => value,
    }
}

/// What a million runs cost.
fn million(row: &bench::Row, place: &Place) -> Option<Cost> {
    let run = row.energy.as_ref()?;
    let seconds = row.latency_median.value / 1e3 * 1e6;
    Some(place.cost_of(run.total.value * 1e6, seconds))
}

fn text(report: &Report) -> String {
    let found = &report.bench;
    let mut text = format!("{}\n", found.machine);
    if let Some(row) = found.models.first() {
        let shapes: Vec<String> = row.shapes.iter().map(|(n, s)| format!("{n}={}", by(s))).collect();
        let (threads, isa, runs) = (row.threads, &row.isa, row.runs);
        text += &format!("{}, {threads} thread(s), {isa}, {runs} runs\n\n", shapes.join(" "));
    }
    let cells = |f: &dyn Fn(&bench::Row) -> String| found.models.iter().map(f).collect::<Vec<_>>();
    let size = |n: &Number| bytes(n.value as u64);
    let rows = [
        ("", cells(&|r| r.file.display().to_string())),
        ("median", cells(&|r| format!("{:.3}", r.latency_median))),
        ("95 % below", cells(&|r| format!("{:.3}", r.latency_p95))),
        ("throughput", cells(&|r| format!("{:.1}", r.throughput))),
        ("load", cells(&|r| format!("{:.1}", r.load))),
        ("peak memory", cells(&|r| r.peak_memory.as_ref().map_or("not known".into(), size))),
        ("file", cells(&|r| size(&r.file_size))),
    ];
    let mut rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, cells)| std::iter::once(name.into()).chain(cells).collect()).collect();
    let energies: Vec<&bench::RunEnergy> = found.models.iter().filter_map(|r| r.energy.as_ref()).collect();
    if let Some(place) = &report.place {
        let line = |name: &str, cells: Vec<String>| std::iter::once(name.to_owned()).chain(cells).collect();
        let total = energies.iter().map(|e| format!("{}, {}", joules(&e.total), how(&e.total))).collect();
        rows.push(line("energy of a run", total));
        let above = |e: &&bench::RunEnergy| e.above_idle.as_ref().map_or("not known: --idle".into(), joules);
        rows.push(line("beyond idling", energies.iter().map(above).collect()));
        let costs = |f: &dyn Fn(&Cost) -> String| report.million.iter().map(f).collect();
        rows.push(line(
            "a million runs",
            costs(&|c| format!("{} kWh, {} kg CO2e", three(c.kwh), three(c.co2))),
        ));
        if place.per_kwh > 0.0 || place.per_hour > 0.0 {
            rows.push(line("money for them", costs(&|c| three(c.money))));
        }
    }
    text += &table(&rows);
    if let (Some(place), Some(first)) = (&report.place, energies.first()) {
        text += &format!(
            "energy: {}\nPUE {}, {} g CO2e a kWh ({})\n",
            first.source, place.pue, place.intensity, place.source
        );
    }
    if let [_, other] = found.models.as_slice() {
        let times = |n: &Number| match (n.low, n.high) {
            (Some(low), Some(high)) => (format!("{:.2}", n.value), format!(" ({low:.2} to {high:.2})")),
            _ => (format!("{:.2}", n.value), String::new()),
        };
        let other = other.file.display();
        if let Some((value, interval)) = found.speedup.as_ref().map(times) {
            text += &format!("\n{value} times as fast as {other}{interval}\n");
        }
        if let Some(frugality) = &found.frugality {
            let (value, interval) = times(frugality);
            text += &format!("{value} times less energy than {other}{interval}, {}\n", how(frugality));
        }
    }
    text
}

/// Measure one model for `bench`, which asks for each run through stdin.
#[derive(Debug, Args)]
pub struct Worker {
    model: PathBuf,
    #[arg(long)]
    shape: Vec<Shape>,
    #[arg(long, default_value = lessen::meter::energy::SENSORS)]
    sensors: PathBuf,
}

impl Worker {
    pub fn run(self, common: &Common) -> Result<Done> {
        let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
        bench::work(&self.model, &self.shape, common.threads, &self.sensors, input, output)?;
        Ok(Done::default())
    }
}
