//! `lessen meter`: what a command costs in time, energy, carbon dioxide and money.

mod what_if;
mod written;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lessen::meter::energy::{Meter as Reader, processor};
use lessen::meter::{Cost, Energy, Machine, Place};
use serde::Serialize;

use super::Done;
use crate::flags::{Common, Costs, least};

/// Run a command and say what it costs: seconds, joules, carbon dioxide, money. Joules are read from the processor's counters
/// (RAPL), a sensor or a battery where the system allows it, else estimated, and it is said which.
#[derive(Debug, Args)]
#[command(
    after_help = "The exit code is that of the command. Energy is that of the whole machine while the command runs; with
--idle, what the machine takes without it is measured before and told apart. Estimates are of this process and its
children: time that they worked, at the processor's thermal design power.

Examples:
  lessen meter -- lessen shrink resnet.onnx --data images/ -o small.onnx
  lessen meter --what-if examples/what-if/gpt3.toml
  lessen meter --idle 5 --country DEU --per-kwh 0.3 --csv emissions.csv -- python train.py
  lessen meter --country USA --region CAMX --prometheus /var/lib/node_exporter/lessen.prom -- lessen teach minilm/ ..."
)]
pub struct Meter {
    /// The command, after --.
    #[arg(last = true, required_unless_present = "what_if", value_name = "COMMAND")]
    command: Vec<String>,
    /// Run nothing; work out what a model that does not fit here takes, before and after shrinking.
    #[arg(long, value_name = "CASE.TOML", conflicts_with = "command")]
    what_if: Option<PathBuf>,
    /// Measure so many seconds before what the machine takes without the command.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, allow_negative_numbers = true)]
    idle: f64,
    #[command(flatten)]
    costs: Costs,
    /// Add a line to this file, in CodeCarbon's columns or, when it has lines, in its own of these.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write this file, in Prometheus' text format.
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
    /// Where the system shows its sensors.
    #[arg(long, value_name = "FOLDER", default_value = lessen::meter::energy::SENSORS, hide = true)]
    sensors: PathBuf,
}

/// What a command cost.
#[derive(Serialize)]
struct Report {
    command: Vec<String>,
    /// The exit code; `None` when a signal ended it.
    code: Option<i32>,
    energy: Energy,
    /// Joules beyond an idle machine.
    above_idle: Option<f64>,
    place: Place,
    cost: Cost,
    machine: Machine,
}

impl Meter {
    pub fn run(self, common: &Common) -> Result<Done> {
        if let Some(path) = &self.what_if {
            return what_if::run(path);
        }
        least("--idle", self.idle, 0.0)?;
        let place = self.costs.place()?;
        let machine = Machine::this();
        let [program, args @ ..] = self.command.as_slice() else { bail!("there is no command to run") };
        let rest = Duration::try_from_secs_f64(self.idle).context("--idle is too long")?;
        // Hours later is no time to find that there is no room for what they took.
        let table = self.csv.as_deref().map(written::Table::open).transpose()?;
        if let Some(path) = &self.prometheus {
            let folder = path.parent().filter(|folder| *folder != Path::new(""));
            ensure!(
                folder.is_none_or(Path::is_dir),
                "--prometheus {}: its folder is not there",
                path.display()
            );
        }
        let meter = Reader::start(&self.sensors, rest);
        let mut command = Command::new(program);
        command.args(args);
        if common.json {
            // What it prints must not get between what we print.
            command.stdout(Stdio::from(std::io::stderr()));
        }
        let status = command.status().with_context(|| format!("{program:?} cannot be run"))?;
        let energy = meter.stop(&processor(&machine));
        let cost = place.cost(&energy);
        let report = Report {
            command: self.command,
            code: status.code(),
            above_idle: energy.above_idle(),
            energy,
            place,
            cost,
            machine,
        };
        if let Some(table) = table {
            table.add(&report)?;
        }
        if let Some(path) = &self.prometheus {
            lessen::write_file(path, written::prometheus(&report).as_bytes())?;
        }
        Ok(Done { code: code(status), ..Done::new(told(&report), &report)? })
    }
}

/// The exit code as a shell gives it: 128 and the signal's number when a signal ended the command.
fn code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal: Option<i32> = None;
    let code = status.code().or(signal.map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn told(report: &Report) -> String {
    let Report { energy, place, cost, .. } = report;
    let how = if energy.measured { "measured" } else { "estimated" };
    let mut text = format!(
        "{:.1} s, {:.1} J ({:.1} W), {how}\n  {}\n",
        energy.seconds,
        energy.joules,
        energy.watts(),
        energy.source
    );
    for (part, joules) in &energy.parts {
        text += &format!("  {part}: {joules:.1} J\n");
    }
    text += &match report.above_idle {
        Some(above) => format!("beyond an idle machine: {above:.1} J\n"),
        None => "what an idle machine takes is in it: --idle SECONDS measures that\n".into(),
    };
    text += &format!(
        "{:.3e} kWh with PUE {}, {:.3e} kg CO2e at {} g/kWh ({})\n",
        cost.kwh, place.pue, cost.co2, place.intensity, place.source
    );
    if place.per_kwh > 0.0 || place.per_hour > 0.0 {
        text += &format!("money: {:.6}\n", cost.money);
    }
    text
}
