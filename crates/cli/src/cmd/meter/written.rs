//! What a command cost, as files that other programs read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::Report;

/// Prometheus' text format, as its node exporter collects from files.
pub fn prometheus(report: &Report) -> String {
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

/// A file in CodeCarbon's columns.
pub struct Table {
    path: PathBuf,
    file: File,
    /// The columns that it has; none when it is new.
    columns: Vec<String>,
}

impl Table {
    /// Opens a file, or makes one, to add to.
    ///
    /// # Errors
    /// When it cannot be written, or has other columns than those of CodeCarbon.
    pub fn open(path: &Path) -> Result<Table> {
        let open = || -> Result<Table> {
            let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
            let mut columns = Vec::new();
            let length = file.metadata()?.len();
            if length > 0 {
                let mut reader = ::csv::ReaderBuilder::new().from_reader(&mut file);
                columns = reader.headers()?.iter().map(str::to_owned).collect();
                for needed in ["duration", "emissions", "energy_consumed"] {
                    ensure!(
                        columns.iter().any(|c| c == needed),
                        "it has lines, but no column {needed:?}: name another file"
                    );
                }
                let mut last = [0];
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    file.write_all(b"\n")?;
                }
            }
            Ok(Table { path: path.into(), file, columns })
        };
        open().with_context(|| format!("--csv {} cannot be added to", path.display()))
    }

    /// Adds a line; before the first the columns.
    pub fn add(self, report: &Report) -> Result<()> {
        let row = row(report);
        let add = || -> Result<()> {
            let mut out = ::csv::Writer::from_writer(self.file);
            if self.columns.is_empty() {
                out.write_record(row.iter().map(|(name, _)| *name))?;
                out.write_record(row.iter().map(|(_, value)| value))?;
            } else {
                let value =
                    |column: &String| row.iter().find(|(name, _)| name == column).map_or("", |(_, v)| v);
                out.write_record(self.columns.iter().map(value))?;
            }
            Ok(out.flush()?)
        };
        add().with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

/// The columns of CodeCarbon 3 and what goes there; nothing where it is not known. As there, energies are with what the
/// building takes, powers without.
fn row(report: &Report) -> Vec<(&'static str, String)> {
    let Report { energy, cost, place, machine, .. } = report;
    let part = |names: [&str; 2]| -> f64 {
        energy.parts.iter().filter(|(name, _)| names.iter().any(|n| name.starts_with(n))).map(|p| p.1).sum()
    };
    let memory = part(["dram", "memory"]);
    let cpu = energy.joules - memory;
    let seconds = energy.seconds.max(f64::MIN_POSITIVE);
    let kwh = |joules: f64| (joules / 3.6e6 * place.pue).to_string();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let gib = machine.memory.map_or(0.0, |bytes| bytes as f64 / (1u64 << 30) as f64);
    let project =
        report.command.first().map_or("", |c| Path::new(c).file_name().and_then(|n| n.to_str()).unwrap_or(c));
    let unknown = String::new;
    vec![
        ("timestamp", timestamp(now.as_secs())),
        ("project_name", project.into()),
        ("run_id", format!("{:x}", now.as_nanos())),
        ("experiment_id", unknown()),
        ("duration", energy.seconds.to_string()),
        ("emissions", cost.co2.to_string()),
        ("emissions_rate", (cost.co2 / seconds).to_string()),
        ("cpu_power", (cpu / seconds).to_string()),
        ("gpu_power", "0".into()),
        ("ram_power", (memory / seconds).to_string()),
        ("cpu_energy", kwh(cpu)),
        ("gpu_energy", "0".into()),
        ("ram_energy", kwh(memory)),
        ("energy_consumed", cost.kwh.to_string()),
        ("water_consumed", unknown()),
        ("country_name", place.name.clone()),
        ("country_iso_code", place.country.clone()),
        ("region", place.region.clone()),
        ("cloud_provider", unknown()),
        ("cloud_region", unknown()),
        ("os", machine.os.clone()),
        ("python_version", unknown()),
        ("codecarbon_version", format!("lessen {}", env!("CARGO_PKG_VERSION"))),
        ("cpu_count", machine.threads.to_string()),
        ("cpu_model", machine.cpu.clone()),
        ("gpu_count", "0".into()),
        ("gpu_model", unknown()),
        ("longitude", unknown()),
        ("latitude", unknown()),
        ("ram_total_size", gib.to_string()),
        ("tracking_mode", if energy.measured { "machine" } else { "process" }.into()),
        ("cpu_utilization_percent", unknown()),
        ("gpu_utilization_percent", unknown()),
        ("ram_utilization_percent", unknown()),
        ("ram_used_gb", unknown()),
        ("on_cloud", "N".into()),
        ("pue", place.pue.to_string()),
        ("wue", unknown()),
    ]
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
