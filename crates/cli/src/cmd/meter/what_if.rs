//! `lessen meter --what-if`: models that do not fit here, by calculation.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lessen::meter::what_if::{Answer, Case, Takes, what_if};
use lessen::receipt::bytes;

use crate::cmd::{Done, table, three};

/// Bytes that a case has at the most.
const MOST: u64 = 1 << 20;

pub fn run(path: &Path) -> Result<Done> {
    let read = || -> Result<Answer> {
        let size = std::fs::metadata(path)?.len();
        ensure!(size <= MOST, "{size} bytes are too many for a case");
        let case: Case = toml::from_str(&std::fs::read_to_string(path)?)?;
        what_if(&case).map_err(anyhow::Error::msg)
    };
    let answer = read().with_context(|| path.display().to_string())?;
    Done::new(told(&answer), &answer)
}

fn told(answer: &Answer) -> String {
    let unit = &answer.unit;
    let mut text = format!("{} (all of it estimated)\n", answer.name);
    if let Some(t) = &answer.trained {
        text += &format!(
            "training: {} MWh, {} t CO2e; running takes as much after {:.3e} {unit}, {:.0} % of all in its life\n",
            three(t.mwh),
            three(t.tonnes),
            t.parity_tokens,
            t.share_of_running * 100.0
        );
    }
    let (b, a) = (&answer.before, &answer.after);
    let waits = |takes: &Takes| if takes.waits_for_memory { "memory" } else { "arithmetic" }.to_owned();
    let row = |name: &str, b: String, a: String| vec![name.to_owned(), b, a];
    let rows = vec![
        row("", "before".into(), "after".into()),
        row("weights", bytes(b.bytes as u64), bytes(a.bytes as u64)),
        row("devices", format!("{}", b.devices), format!("{}", a.devices)),
        row(
            &format!("{unit} a second"),
            format!("{:.0}", b.tokens_per_second),
            format!("{:.0}", a.tokens_per_second),
        ),
        row("waits for", waits(b), waits(a)),
        row(
            &format!("kJ a million {unit}"),
            format!("{:.0}", b.joules_per_million / 1e3),
            format!("{:.0}", a.joules_per_million / 1e3),
        ),
        row(
            &format!("kg CO2e a million {unit}"),
            format!("{:.3}", b.co2_per_million),
            format!("{:.3}", a.co2_per_million),
        ),
        row(
            &format!("money a million {unit}"),
            format!("{:.2}", b.money_per_million),
            format!("{:.2}", a.money_per_million),
        ),
    ];
    text += &table(&rows);
    text += &format!("saved over its life: {:.0} kWh, {:.1} t CO2e", answer.saved_kwh, answer.saved_tonnes);
    text += &match answer.payback_tokens {
        Some(tokens) => format!("; shrinking is won back after {tokens:.2e} {unit}\n"),
        None => "; shrinking is never won back\n".into(),
    };
    answer.assumptions.iter().for_each(|assumption| text += &format!("assumed: {assumption}\n"));
    text
}
