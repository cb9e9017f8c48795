//! What a command cost, as files that other programs read.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

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

/// Adds a line in CodeCarbon's columns, and their names before the first.
pub fn csv(path: &Path, report: &Report) -> Result<()> {
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
    let mut out = ::csv::Writer::from_writer(file);
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
