//! Checkpoints of any size in few bits: one tensor in memory at a time, in strips of rows; each finished one is on disk,
//! so that a run that is killed goes on where it was. No graph is built and nothing is run: what is known of the inputs
//! of a weight comes from a file of statistics, or nothing is known.
//!
//! The result is a folder that vLLM and transformers load: compressed-tensors, `pack-quantized`.
//!
//! # Statistics
//!
//! A safetensors file (or a folder of shards) with, for a weight `NAME` (with or without its last `.weight`), one of
//! these, F32, F16 or BF16; the first that is there is used:
//!
//! - `NAME.sample` `[tokens, n]`: inputs of the layer. GPTQ over all columns, in time and memory for so many tokens.
//! - `NAME.xtx` `[n, n]`: `X^T X` of the inputs, or anything in proportion to it. Blocks of 4,096 columns on the diagonal
//!   are used, each for a GPTQ of its own; `[k, b, b]`, `k b = n`, are `k` such blocks.
//! - `NAME.diag` `[n]`: mean squares of the inputs. Grids are searched for with them; each weight goes to its nearest code.

mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use format::safetensors::shard::shard_name;
use kernel::Cpu;
use meter::energy::{Meter, SENSORS, processor};
use meter::time::Stopwatch;
use meter::{Energy, Machine};
use serde::{Deserialize, Serialize};
use shrink::job::Job;

use crate::{Error, Result};
use work::Work;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Bits of a weight: 2, 4 or 8.
    pub bits: u32,
    /// Neighbours in a row that share a scale.
    pub group: usize,
    /// Without zero points.
    pub symmetric: bool,
    /// A file or folder of statistics.
    pub stats: Option<PathBuf>,
    /// Weights with one of these in their names stay as they are.
    pub keep: Vec<String>,
    /// Most bytes of a shard.
    pub shard: u64,
    /// Drops what an earlier run left unfinished.
    pub restart: bool,
}

impl Default for Request {
    fn default() -> Request {
        Request {
            bits: 4,
            group: 128,
            symmetric: true,
            stats: None,
            keep: Vec::new(),
            shard: 5_000_000_000,
            restart: false,
        }
    }
}

/// A tensor of the checkpoint, and what becomes of it.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// The number of its block, when its name has one.
    pub block: Option<usize>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Bytes now.
    pub bytes_before: u64,
    /// Bytes then.
    pub bytes_after: u64,
    /// How it is quantized, or why it stays as it is.
    pub what: What,
}

/// What becomes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Searched grids, nearest codes; nothing is known of its inputs.
    Searched,
    /// Searched grids with the importance of inputs, nearest codes.
    Weighed,
    /// GPTQ over all columns, on some inputs.
    Sample,
    /// GPTQ within blocks of columns, on sums of products of inputs.
    Products,
    /// Stays: no matrix of floats named `.weight`.
    NoMatrix,
    /// Stays: a table, a norm, a router or the head, which few bits harm most.
    Delicate,
    /// Stays: the caller says so.
    Kept,
    /// Stays: rows are no multiple of the group.
    Ragged,
}

impl What {
    fn is_quantized(self) -> bool {
        matches!(self, What::Searched | What::Weighed | What::Sample | What::Products)
    }
}

/// What will be done, and what it takes.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// All tensors, blocks in their order.
    pub lines: Vec<Line>,
    /// Bytes of all tensors now.
    pub bytes_before: u64,
    /// Bytes of all tensors then.
    pub bytes_after: u64,
    /// About the most memory in bytes.
    pub memory: u64,
    /// Room on the disk that is needed until the end, in bytes, when nothing is done yet.
    pub disk: u64,
    /// Number of shards that are written.
    pub shards: usize,
    /// About the seconds that all of it takes, from a try on some rows; `None` when statistics are too big for a try.
    pub seconds: Option<f64>,
}

/// What was done to a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// Relative squared error: of the outputs on the statistics when there are some, else of the weights.
    pub error: f64,
    /// Seconds that it took; left out of what is written beside the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// What was done, and what it took.
#[derive(Clone, Debug, Serialize)]
pub struct Receipt {
    /// What was planned.
    pub plan: Plan,
    /// The tensors that were quantized, in order.
    pub made: Vec<Made>,
    /// Of these, how many an earlier run had done.
    pub found: usize,
    /// Seconds of this run.
    pub seconds: f64,
    /// Energy of this run; `None` when an earlier one had done everything.
    pub energy: Option<Energy>,
    /// The most memory of this run in bytes, when the system says.
    pub peak_memory: Option<u64>,
    /// True when an earlier run had done everything.
    pub complete_before: bool,
}

/// The same for so many blocks.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Projection {
    /// Number of blocks.
    pub blocks: usize,
    /// Seconds for a block.
    pub seconds_per_block: f64,
    /// Seconds for all.
    pub seconds: f64,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
}

impl Receipt {
    /// Time and size of the same model with so many blocks; `None` when there are none in this one, or times are not
    /// known. Tensors are counted with the time of writing them.
    pub fn project(&self, blocks: usize) -> Option<Projection> {
        let seconds: BTreeMap<&str, f64> =
            self.made.iter().filter_map(|m| Some((m.name.as_str(), m.seconds?))).collect();
        let known: BTreeSet<usize> = self.plan.lines.iter().filter_map(|l| l.block).collect();
        if known.is_empty() || self.made.is_empty() || seconds.len() < self.made.len() {
            return None;
        }
        let sum = |inside: bool, of: &dyn Fn(&Line) -> f64| -> f64 {
            self.plan.lines.iter().filter(|l| l.block.is_some() == inside).map(of).sum()
        };
        let times = blocks as f64 / known.len() as f64;
        let all = |of: &dyn Fn(&Line) -> f64| sum(false, of) + sum(true, of) * times;
        let time = |l: &Line| seconds.get(l.name.as_str()).copied().unwrap_or(0.0);
        Some(Projection {
            blocks,
            seconds_per_block: sum(true, &time) / known.len() as f64,
            seconds: all(&time),
            bytes_before: all(&|l| l.bytes_before as f64) as u64,
            bytes_after: all(&|l| l.bytes_after as f64) as u64,
        })
    }
}

/// Says what would be done to a folder of safetensors.
///
/// # Errors
/// When the folder or the statistics cannot be read, or do not fit.
pub fn plan(source: &Path, request: &Request, cpu: &Cpu) -> Result<Plan> {
    let work = Work::new(source, request)?;
    let mut plan = work.plan.clone();
    plan.seconds = work.estimate(cpu)?;
    Ok(plan)
}

/// Quantizes a folder of safetensors into a new folder, `output`. Unfinished work is kept beside it, in
/// `OUTPUT.partial`; a run of the same request goes on with it, and ends with the same bytes. `tell` hears of each
/// tensor: bytes done, of so many, and a few words.
///
/// # Errors
/// When files cannot be read or do not fit; when there is not enough room on the disk; when `output` exists and is no
/// result of the same request.
pub fn quantize(
    source: &Path,
    output: &Path,
    request: &Request,
    cpu: &Cpu,
    tell: &dyn Fn(u64, u64, &str),
) -> Result<Receipt> {
    let clock = Stopwatch::start();
    let work = Work::new(source, request)?;
    let partial = beside(output);
    if output.exists() {
        let made = work.made_before(output)?;
        if partial.exists() {
            Job::discard(&partial)?;
        }
        let found = made.len();
        let (plan, seconds) = (work.plan, clock.seconds());
        let nothing =
            Receipt { plan, made, found, seconds, energy: None, peak_memory: None, complete_before: true };
        return Ok(nothing);
    }
    let meter = Meter::start(Path::new(SENSORS), Duration::ZERO);
    if request.restart {
        Job::discard(&partial)?;
    }
    let job = Job::open(&partial, &work.asked(true))?;
    let result = partial.join("result");
    fs::create_dir_all(&result).map_err(Error::io(&result))?;
    work.check_room(&partial, &result)?;
    let (mut made, mut found, mut done) = (Vec::new(), 0, 0u64);
    for (number, shard) in work.shards.iter().enumerate() {
        let path = result.join(shard_name(number, work.shards.len()));
        let written = path.exists();
        for &at in shard {
            let line = &work.plan.lines[at];
            if line.what.is_quantized() {
                let (one, was_there) = work.make(cpu, job.store(), at, written)?;
                found += usize::from(was_there);
                tell(done + line.bytes_before, work.plan.bytes_before, &words(&one, was_there));
                made.push(one);
            }
            done += line.bytes_before;
        }
        if !written {
            tell(done, work.plan.bytes_before, &format!("writing {}", path.display()));
            work.write(job.store(), shard, &path)?;
        }
        for &at in shard {
            let key = work.key(at);
            work.pieces(at).iter().try_for_each(|piece| job.store().remove(&key.part(&piece.name)))?;
        }
    }
    work.finish(&result, &made)?;
    fs::rename(&result, output).map_err(Error::io(output))?;
    job.finish()?;
    let (plan, seconds) = (work.plan, clock.seconds());
    let energy = Some(meter.stop(&processor(&Machine::this())));
    let peak_memory = meter::memory::peak();
    Ok(Receipt { plan, made, found, seconds, energy, peak_memory, complete_before: false })
}

fn words(made: &Made, was_there: bool) -> String {
    let time = match (was_there, made.seconds) {
        (true, _) => "done before".to_owned(),
        (false, seconds) => format!("{:.1} s", seconds.unwrap_or(0.0)),
    };
    format!("{}: error {:.2e}, {time}", made.name, made.error)
}

/// Where unfinished work is kept.
fn beside(output: &Path) -> PathBuf {
    let mut name: OsString = output.file_name().unwrap_or_default().into();
    name.push(".partial");
    output.with_file_name(name)
}

#[cfg(test)]
mod tests;
