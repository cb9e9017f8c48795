//! `lessen meter`: what a command costs in time, energy, carbon dioxide and money.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use lessen::meter::energy::{Meter as Reader, processor};
use lessen::meter::{Cost, Energy, Machine, Place, carbon, what_if};
use lessen::receipt::bytes;
use serde::Serialize;

use super::{Done, table};
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
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let case: what_if::Case = toml::from_str(&text).with_context(|| path.display().to_string())?;
            let answer = what_if::what_if(&case).map_err(anyhow::Error::msg);
            let answer = answer.with_context(|| path.display().to_string())?;
            return Done::new(told_if(&answer), &answer);
        }
        for (flag, value) in [
            ("--idle", self.idle),
            ("--pue", self.pue),
            ("--per-kwh", self.per_kwh),
            ("--per-hour", self.per_hour),
            ("--intensity", self.intensity.unwrap_or(0.0)),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                bail!("{flag} {value}: it must be a number from 0");
            }
        }
        let known = Place::of(if self.intensity.is_some() { "" } else { &self.country });
        let known = known.map_err(anyhow::Error::msg)?;
        let place = Place {
            country: self.country.to_uppercase(),
            intensity: self.intensity.unwrap_or(known.intensity),
            pue: self.pue,
            per_kwh: self.per_kwh,
            per_hour: self.per_hour,
        };
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
            write_csv(path, &report).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        if let Some(path) = &self.prometheus {
            lessen::write_file(path, prometheus(&report).as_bytes())?;
        }
        // A signal's number is not known here: as a shell does, it is more than 128.
        let code = status.code().map_or(129, |code| u8::try_from(code).unwrap_or(1));
        Ok(Done { code, ..Done::new(told(&report), &report)? })
    }
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
    let from = match place.country.as_str() {
        "" => String::new(),
        country => format!(", {country}"),
    };
    text += &format!(
        "{:.3e} kWh with PUE {}, {:.3e} kg CO2e at {} g/kWh{from} ({}, {})\n",
        cost.kwh,
        place.pue,
        cost.co2,
        place.intensity,
        carbon::YEAR,
        carbon::SOURCE
    );
    if place.per_kwh > 0.0 || place.per_hour > 0.0 {
        text += &format!("money: {:.6}\n", cost.money);
    }
    text
}

fn told_if(answer: &what_if::Answer) -> String {
    let mut text = format!("{} (all of it estimated)\n", answer.name);
    if let Some(t) = &answer.trained {
        text += &format!(
            "training: {:.0} MWh, {:.0} t CO2e; running takes as much after {:.2e} tokens, {:.0} % of all in its life\n",
            t.mwh,
            t.tonnes,
            t.parity_tokens,
            t.share_of_running * 100.0
        );
    }
    let (b, a) = (&answer.before, &answer.after);
    let waits =
        |takes: &what_if::Takes| if takes.waits_for_memory { "memory" } else { "arithmetic" }.to_owned();
    let row = |name: &str, b: String, a: String| vec![name.to_owned(), b, a];
    let rows = vec![
        row("", "before".into(), "after".into()),
        row("weights", bytes(b.bytes as u64), bytes(a.bytes as u64)),
        row("devices", format!("{}", b.devices), format!("{}", a.devices)),
        row("tokens a second", format!("{:.0}", b.tokens_per_second), format!("{:.0}", a.tokens_per_second)),
        row("waits for", waits(b), waits(a)),
        row(
            "kJ a million tokens",
            format!("{:.0}", b.joules_per_million / 1e3),
            format!("{:.0}", a.joules_per_million / 1e3),
        ),
        row(
            "kg CO2e a million tokens",
            format!("{:.3}", b.co2_per_million),
            format!("{:.3}", a.co2_per_million),
        ),
        row(
            "money a million tokens",
            format!("{:.2}", b.money_per_million),
            format!("{:.2}", a.money_per_million),
        ),
    ];
    text += &table(&rows);
    text += &format!("saved over its life: {:.0} kWh, {:.1} t CO2e", answer.saved_kwh, answer.saved_tonnes);
    text += &match answer.payback_tokens {
        Some(tokens) => format!("; shrinking is won back after {tokens:.2e} tokens\n"),
        None => "; shrinking is never won back\n".into(),
    };
    answer.assumptions.iter().for_each(|assumption| text += &format!("assumed: {assumption}\n"));
    text
}

fn prometheus(report: &Report) -> String {
    let Report { energy, cost, .. } = report;
    let measured = if energy.measured { 1.0 } else { 0.0 };
    let all = [
        ("duration_seconds", "Time that the command took.", Some(energy.seconds)),
        ("energy_joules", "Energy while it ran.", Some(energy.joules)),
        ("energy_above_idle_joules", "Energy beyond an idle machine.", report.above_idle),
        (
            "energy_is_measured",
            "1 when energy was read from a sensor, 0 when it is estimated.",
            Some(measured),
        ),
        ("co2_kilograms", "CO2 equivalent.", Some(cost.co2)),
        ("money", "Cost, in the currency of the prices given.", Some(cost.money)),
    ];
    let known = all.into_iter().filter_map(|(name, help, value)| Some((name, help, value?)));
    known
        .map(|(name, help, value)| {
            format!("# HELP lessen_{name} {help}\n# TYPE lessen_{name} gauge\nlessen_{name} {value}\n")
        })
        .collect()
}

/// Adds a line, and the names of the columns before the first.
fn write_csv(path: &Path, report: &Report) -> Result<()> {
    let Report { energy, cost, place, machine, .. } = report;
    let part = |names: [&str; 2]| -> f64 {
        energy.parts.iter().filter(|(name, _)| names.iter().any(|n| name.starts_with(n))).map(|p| p.1).sum()
    };
    let memory = part(["dram", "memory"]);
    let cpu = energy.joules - memory;
    let seconds = energy.seconds.max(f64::MIN_POSITIVE);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let gib = machine.memory.map_or(0.0, |bytes| bytes as f64 / (1u64 << 30) as f64);
    let project =
        report.command.first().map_or("", |c| Path::new(c).file_name().and_then(|n| n.to_str()).unwrap_or(c));
    let row: Vec<(&str, String)> = vec![
        ("timestamp", timestamp(now.as_secs())),
        ("project_name", project.into()),
        ("run_id", format!("{:x}", now.as_nanos())),
        ("experiment_id", String::new()),
        ("duration", energy.seconds.to_string()),
        ("emissions", cost.co2.to_string()),
        ("emissions_rate", (cost.co2 / seconds).to_string()),
        ("cpu_power", (cpu / seconds).to_string()),
        ("gpu_power", "0".into()),
        ("ram_power", (memory / seconds).to_string()),
        ("cpu_energy", (cpu / 3.6e6).to_string()),
        ("gpu_energy", "0".into()),
        ("ram_energy", (memory / 3.6e6).to_string()),
        ("energy_consumed", energy.kwh().to_string()),
        ("country_name", String::new()),
        ("country_iso_code", place.country.clone()),
        ("region", String::new()),
        ("cloud_provider", String::new()),
        ("cloud_region", String::new()),
        ("os", machine.os.clone()),
        ("python_version", String::new()),
        ("codecarbon_version", format!("lessen {}", env!("CARGO_PKG_VERSION"))),
        ("cpu_count", machine.threads.to_string()),
        ("cpu_model", machine.cpu.clone()),
        ("gpu_count", "0".into()),
        ("gpu_model", String::new()),
        ("longitude", String::new()),
        ("latitude", String::new()),
        ("ram_total_size", gib.to_string()),
        ("tracking_mode", if energy.measured { "machine" } else { "process" }.into()),
        ("on_cloud", "N".into()),
        ("pue", place.pue.to_string()),
    ];
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let is_new = file.metadata()?.len() == 0;
    let mut out = csv::Writer::from_writer(file);
    if is_new {
        out.write_record(row.iter().map(|(name, _)| *name))?;
    }
    out.write_record(row.iter().map(|(_, value)| value))?;
    Ok(out.flush()?)
}

/// Seconds since 1970 as `2026-01-31T12:00:00`, in UTC.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years start in March, so that the day that leap years add is the last; 400 years have 146,097 days.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, late) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + late;
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00");
        assert_eq!(timestamp(951_782_399), "2000-02-28T23:59:59");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(timestamp(1_709_251_200), "2024-03-01T00:00:00");
        assert_eq!(timestamp(1_767_225_599), "2025-12-31T23:59:59");
    }
}
