//! `lessen quantize`: a checkpoint of any size in few bits, tensor by tensor, with what is unfinished kept on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lessen::big::{self, Plan, Receipt, Request, What};
use lessen::receipt::bytes;
use serde_json::json;

use super::{Done, table};
use crate::flags::Common;

/// Put the weights of a checkpoint of any size on 4 bits, one tensor in memory at a time.
#[derive(Debug, Args)]
#[command(
    after_help = "FOLDER has config.json and model.safetensors, or shards with their index. The model is not run: what is known
of the inputs of its weights comes from --stats, a safetensors file with, for a weight NAME, one of
  NAME.sample [tokens, n]   inputs: GPTQ over all columns
  NAME.xtx [n, n]           X^T X of the inputs, or its blocks on the diagonal [k, b, b]: GPTQ within blocks
  NAME.diag [n]             mean squares of the inputs: the scales are searched for with them
Without it scales are searched for by the weights alone. Tables, norms, routers and the head stay as they are.

The result loads in vLLM and transformers (compressed-tensors, pack-quantized). Each finished tensor is kept in
OUTPUT.partial: a run that was killed goes on there, and ends with the same bytes.

Examples:
  lessen quantize opt-175b/ -o opt-175b-w4/ --plan
  lessen quantize opt-175b/ -o opt-175b-w4/
  lessen quantize llama/ --stats llama-inputs.safetensors --group 64 --zero-points -o llama-w4/"
)]
pub struct Quantize {
    /// The checkpoint.
    folder: PathBuf,
    /// The folder to write; it is complete or not there at all.
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Bits of a weight: 2, 4 or 8.
    #[arg(long, value_name = "N", default_value_t = 4)]
    bits: u32,
    /// Neighbours in a row that share a scale: 128, 64 or 32.
    #[arg(long, value_name = "N", default_value_t = 128)]
    group: usize,
    /// A zero point for each group, beside its scale.
    #[arg(long)]
    zero_points: bool,
    /// What is known of the inputs.
    #[arg(long, value_name = "PATH")]
    stats: Option<PathBuf>,
    /// Leave weights with this in their names as they are; may be repeated.
    #[arg(long, value_name = "TEXT")]
    keep: Vec<String>,
    /// Most gigabytes of a shard.
    #[arg(long, value_name = "GB", default_value_t = 5.0, value_parser = crate::parse::positive)]
    shard: f64,
    /// Say what the same would take with this many blocks.
    #[arg(long, value_name = "BLOCKS")]
    project: Option<usize>,
    /// Drop what an earlier run left unfinished.
    #[arg(long)]
    restart: bool,
    /// Only say what would be done, and what it takes.
    #[arg(long)]
    plan: bool,
}

impl Quantize {
    pub fn run(self, common: &Common) -> Result<Done> {
        let request = Request {
            bits: self.bits,
            group: self.group,
            symmetric: !self.zero_points,
            stats: self.stats,
            keep: self.keep,
            shard: (self.shard * 1e9) as u64,
            restart: self.restart,
        };
        let cpu = common.cpu()?;
        let plan = big::plan(&self.folder, &request, &cpu)?;
        let outline = outline(&plan);
        if self.plan {
            return Done::new(outline, plan);
        }
        if !common.quiet {
            eprint!("{outline}");
        }
        let bar = common.progress(plan.bytes_before as usize);
        let clock = std::time::Instant::now();
        let tell = |done: u64, of: u64, what: &str| {
            bar.set_position(done);
            let share = 100.0 * done as f64 / of.max(1) as f64;
            let line = format!("{:7.1} s {share:5.1} %  {what}", clock.elapsed().as_secs_f64());
            bar.suspend(|| {
                if !common.quiet {
                    eprintln!("{line}")
                }
            });
        };
        let receipt = big::quantize(&self.folder, &self.output, &request, &cpu, &tell)?;
        bar.finish_and_clear();
        let projection = self.project.and_then(|blocks| receipt.project(blocks));
        let mut text = words(&receipt);
        if let Some(p) = &projection {
            text += &format!(
                "{} blocks: {} -> {}, {} ({:.1} s a block)\n",
                p.blocks,
                bytes(p.bytes_before),
                bytes(p.bytes_after),
                time(p.seconds),
                p.seconds_per_block
            );
        }
        text += &format!("written: {}\n", self.output.display());
        let mut json = serde_json::to_value(&receipt)?;
        json["projection"] = json!(projection);
        json["output"] = json!(self.output);
        Ok(Done { text, json, code: 0 })
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} minutes", s / 60.0),
        s => format!("{:.1} hours", s / 3600.0),
    }
}

fn called(what: What) -> &'static str {
    match what {
        What::Searched => "searched scales",
        What::Weighed => "searched scales, weighed by inputs",
        What::Sample => "GPTQ on samples of inputs",
        What::Products => "GPTQ on products of inputs, in blocks",
        What::NoMatrix => "stays: no matrix of floats",
        What::Delicate => "stays: table, norm, router or head",
        What::Kept => "stays: as you say",
        What::Ragged => "stays: rows are no multiple of the group",
    }
}

fn outline(plan: &Plan) -> String {
    let mut kinds: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
    for line in &plan.lines {
        let kind = kinds.entry(called(line.what)).or_default();
        *kind = (kind.0 + 1, kind.1 + line.bytes_before, kind.2 + line.bytes_after);
    }
    let head = ["", "tensors", "before", "after"].map(str::to_owned).to_vec();
    let row = |name: &str, count: usize, before: u64, after: u64| {
        vec![name.to_owned(), count.to_string(), bytes(before), bytes(after)]
    };
    let mut rows = vec![head];
    rows.extend(kinds.iter().map(|(name, &(count, before, after))| row(name, count, before, after)));
    rows.push(row("all", plan.lines.len(), plan.bytes_before, plan.bytes_after));
    let blocks: std::collections::BTreeSet<usize> = plan.lines.iter().filter_map(|l| l.block).collect();
    let seconds = plan
        .seconds
        .map_or("time not known ahead with these statistics".into(), |s| format!("about {}", time(s)));
    format!(
        "{}{} blocks, {} shards; peak memory about {}, {} of disk until the end, {seconds}\n",
        table(&rows),
        blocks.len(),
        plan.shards,
        bytes(plan.memory),
        bytes(plan.disk)
    )
}

fn words(receipt: &Receipt) -> String {
    let plan = &receipt.plan;
    if receipt.complete_before {
        return "an earlier run of the same request has done all of it\n".into();
    }
    let seconds: BTreeMap<&str, f64> =
        receipt.made.iter().filter_map(|m| Some((m.name.as_str(), m.seconds?))).collect();
    let errors: BTreeMap<&str, f64> = receipt.made.iter().map(|m| (m.name.as_str(), m.error)).collect();
    let mut blocks: BTreeMap<usize, (u64, u64, f64, f64)> = BTreeMap::new();
    for line in &plan.lines {
        if let Some(number) = line.block {
            let block = blocks.entry(number).or_default();
            block.0 += line.bytes_before;
            block.1 += line.bytes_after;
            block.2 += seconds.get(line.name.as_str()).copied().unwrap_or(0.0);
            block.3 = block.3.max(errors.get(line.name.as_str()).copied().unwrap_or(0.0));
        }
    }
    let mut rows = vec![["block", "before", "after", "time", "greatest error"].map(str::to_owned).to_vec()];
    for (number, (before, after, seconds, error)) in blocks {
        let cells = [number.to_string(), bytes(before), bytes(after), time(seconds), format!("{error:.2e}")];
        rows.push(cells.to_vec());
    }
    let mut text = table(&rows);
    let smaller = plan.bytes_before as f64 / plan.bytes_after.max(1) as f64;
    text += &format!(
        "{} -> {}: {smaller:.2} times smaller, in {}",
        bytes(plan.bytes_before),
        bytes(plan.bytes_after),
        time(receipt.seconds)
    );
    if let Some(energy) = &receipt.energy {
        text += &format!(", {}", energy.words());
    }
    if let Some(peak) = receipt.peak_memory {
        text += &format!(", peak memory {}", bytes(peak));
    }
    if receipt.found > 0 {
        text += &format!("; {} of {} tensors were done before", receipt.found, receipt.made.len());
    }
    text + "\n"
}
