//! The commands, one file each: its flags, its text for `--help`, what it does.

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use crate::flags::Common;

mod apply;
mod bench;
mod compare;
mod convert;
mod eval;
mod inspect;
mod meter;
mod ops;
mod pack;
mod pick;
mod plan;
mod quantize;
mod run;
mod shrink;
mod suit;
mod teach;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    Inspect(inspect::Inspect),
    Run(run::Run),
    Eval(eval::Eval),
    Compare(compare::Compare),
    Bench(bench::Bench),
    Convert(convert::Convert),
    Ops(ops::Ops),
    Shrink(shrink::Shrink),
    Teach(teach::Teach),
    Suit(suit::Suit),
    Pick(pick::Pick),
    Meter(meter::Meter),
    Plan(plan::Plan),
    Apply(apply::Apply),
    Quantize(quantize::Quantize),
    Pack(pack::Pack),
    Unpack(pack::Unpack),
    #[command(hide = true)]
    BenchWorker(bench::Worker),
}

impl Command {
    /// Does it.
    pub fn run(self, common: &Common) -> Result<Done> {
        match self {
            Command::Inspect(command) => command.run(common),
            Command::Run(command) => command.run(common),
            Command::Eval(command) => command.run(common),
            Command::Compare(command) => command.run(common),
            Command::Bench(command) => command.run(common),
            Command::Convert(command) => command.run(common),
            Command::Ops(command) => command.run(common),
            Command::Shrink(command) => command.run(common),
            Command::Teach(command) => command.run(common),
            Command::Suit(command) => command.run(common),
            Command::Pick(command) => command.run(common),
            Command::Meter(command) => command.run(common),
            Command::Plan(command) => command.run(common),
            Command::Apply(command) => command.run(common),
            Command::Quantize(command) => command.run(common),
            Command::Pack(command) => command.run(),
            Command::Unpack(command) => command.run(),
            Command::BenchWorker(command) => command.run(common),
        }
    }
}

/// What a command has to say, for people and for programs.
#[derive(Debug, Default)]
pub struct Done {
    /// For people.
    pub text: String,
    /// For programs: an object.
    pub json: serde_json::Value,
    /// The exit code.
    pub code: u8,
}

impl Done {
    /// Success.
    pub fn new(text: String, json: impl Serialize) -> Result<Done> {
        Ok(Done { text, json: serde_json::to_value(json)?, code: 0 })
    }
}

/// A number with three digits, or all before the point.
pub fn three(n: f64) -> String {
    let size = n.abs().log10().floor();
    let digits = if size.is_finite() { (2.0 - size).clamp(0.0, 12.0) as usize } else { 0 };
    format!("{n:.digits$}")
}

/// Lines of columns, each as wide as its widest cell. The first column is left-aligned, the others right-aligned.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = if c == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            line += &format!(" {cell} ");
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}
