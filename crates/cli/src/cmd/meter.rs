//! `lessen meter`: what a command costs in time, energy, carbon dioxide and money.

mod what_if;
mod written;

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use lessen::meter::energy::{Meter as Reader, processor};
use lessen::meter::{Cost, Energy, Machine, Place};
use serde::Serialize;

use super::Done;
use crate::flags::Common;

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
  lessen meter --idle 5 --country DEU --per-kwh 0.3 --csv emissions.csv -- python train.py"
)]
pub struct Meter {
    /// The command, after --.
    #[arg(last = true, required_unless_present = "what_if", value_name = "COMMAND")]
    command: Vec<String>,
    /// Run nothing; work out what a model that does not fit here takes, before and after shrinking.
    #[arg(long, value_name = "CASE.TOML", conflicts_with = "command")]
    what_if: Option<PathBuf>,
    /// Measure so many seconds before what the machine takes without the command.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    idle: f64,
    /// The country that the machine stands in, by its code of three letters, for the carbon of its electricity.
    #[arg(long, value_name = "CODE", default_value = "")]
    country: String,
    /// Grams of CO2 equivalent a kilowatt-hour [default: the country's, or 475, the world's].
    #[arg(long, value_name = "GRAMS")]
    intensity: Option<f64>,
    /// Energy that the building takes for each that its machines take, such as 1.58 in a data centre.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pue: f64,
    /// Money a kilowatt-hour.
    #[arg(long, value_name = "PRICE", default_value_t = 0.0)]
    per_kwh: f64,
    /// Money an hour of the machine.
    #[arg(long, value_name = "PRICE", default_value_t = 0.0)]
    per_hour: f64,
    /// Add a line to this file, in CodeCarbon's columns.
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
        for (flag, value, least) in [
            ("--idle", self.idle, 0.0),
            ("--pue", self.pue, 1.0),
            ("--per-kwh", self.per_kwh, 0.0),
            ("--per-hour", self.per_hour, 0.0),
            ("--intensity", self.intensity.unwrap_or(0.0), 0.0),
        ] {
            if !(value.is_finite() && value >= least) {
                bail!("{flag} {value}: it must be a number from {least}");
            }
        }
        let place = match self.intensity {
            Some(intensity) => {
                let given = Place::of("").map_err(anyhow::Error::msg)?;
                Place { country: self.country.to_uppercase(), intensity, source: "given".into(), ..given }
            }
            None => Place::of(&self.country).map_err(anyhow::Error::msg)?,
        };
        let place = Place { pue: self.pue, per_kwh: self.per_kwh, per_hour: self.per_hour, ..place };
        let machine = Machine::this();
        let [program, args @ ..] = self.command.as_slice() else { bail!("there is no command to run") };
        let rest = Duration::try_from_secs_f64(self.idle).context("--idle is too long")?;
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
        if let Some(path) = &self.csv {
            written::csv(path, &report).with_context(|| format!("{} cannot be written", path.display()))?;
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
    if let Some(above) = report.above_idle {
        text += &format!("above an idle machine: {above:.1} J\n");
    }
    text += &format!(
        "{:.3e} kWh with PUE {}, {:.3e} kg CO2e at {} g/kWh ({})\n",
        cost.kwh, place.pue, cost.co2, place.intensity, place.source
    );
    if place.per_kwh > 0.0 || place.per_hour > 0.0 {
        text += &format!("money: {:.6}\n", cost.money);
    }
    text
}
