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

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use format::safetensors::checkpoint::Entry;
use format::safetensors::compressed::{Scheme, pack_columns, pack_rows, pack_scales};
use format::safetensors::shard::{Piece, by_width, shard_name, write_index, write_shard};
use format::safetensors::{Checkpoint, ElementType, read_json};
use kernel::Cpu;
use meter::time::Stopwatch;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shrink::job::{Job, Key, Store};
use shrink::matrix::Matrix;
use shrink::quantize::coded::Form;
use shrink::quantize::rows::{Inputs, Loss, Scale, Solver, Target};

use crate::{Error, Result};

/// Version of the arithmetic: results of another are not mixed in.
const ARITHMETIC: u32 = 1;
/// Bytes of a strip of rows in f32.
const STRIP: usize = 128 << 20;
/// Rows of a strip are a multiple of it.
const ROWS: usize = 32;
/// Columns of the blocks of products that are used.
const BLOCK: usize = 4096;
/// Rows that are quantized to estimate the time.
const TRIED: usize = 64;
/// What was done, beside the result.
const RECORD: &str = "lessen.json";
/// Endings of files that hold weights in other forms: they are not taken along.
const WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "h5", "msgpack", "gguf", "onnx", "ot"];

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
        return Ok(Receipt { plan, made, found, seconds, peak_memory: None, complete_before: true });
    }
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
    Ok(Receipt { plan, made, found, seconds, peak_memory: meter::memory::peak(), complete_before: false })
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

/// The number of a block in a name: its first part that is a number.
fn block_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Names in their natural order: numbers by their size.
fn natural(name: &str) -> Vec<(Option<usize>, &str)> {
    name.split('.').map(|part| (part.parse().ok(), part)).collect()
}

/// True for what few bits harm most: tables, norms, routers and heads.
fn is_delicate(name: &str) -> bool {
    const WHOLE: [&str; 8] = ["lm_head", "wte", "wpe", "gate", "router", "score", "classifier", "shared"];
    let name = name.to_ascii_lowercase();
    name.split('.').any(|part| WHOLE.contains(&part) || part.contains("embed") || part.contains("norm"))
}

fn float(dtype: ElementType) -> Option<Scale> {
    match dtype {
        ElementType::F32 => Some(Scale::F32),
        ElementType::F16 => Some(Scale::F16),
        ElementType::BF16 => Some(Scale::BF16),
        _ => None,
    }
}

/// The module of a weight.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// A request with what it finds.
struct Work<'a> {
    source: &'a Path,
    request: &'a Request,
    checkpoint: Checkpoint,
    stats: Option<Checkpoint>,
    config: Value,
    scheme: Scheme,
    plan: Plan,
    /// The lines of each shard.
    shards: Vec<Vec<usize>>,
}

impl<'a> Work<'a> {
    fn new(source: &'a Path, request: &'a Request) -> Result<Work<'a>> {
        if !matches!(request.bits, 2 | 4 | 8) {
            return Err(Error::input(format!(
                "weights of {} bits are not known to engines; say 2, 4 or 8",
                request.bits
            )));
        }
        if !(8..=1 << 16).contains(&request.group) {
            return Err(Error::input(format!(
                "groups of {} are too small or too big; say 128",
                request.group
            )));
        }
        if !source.is_dir() {
            return Err(Error::input(format!(
                "{} is no folder with config.json and safetensors",
                source.display()
            )));
        }
        let config_path = source.join("config.json");
        let config = read_json(&config_path)?;
        if !config.is_object() {
            return Err(Error::input(format!("{} is no JSON object", config_path.display())));
        }
        if config.get("quantization_config").is_some_and(|q| !q.is_null()) {
            return Err(Error::input(format!("the weights of {} are in few bits already", source.display())));
        }
        if config["model_type"] == "gpt2" {
            let what =
                "the weights of GPT-2 lie turned, [inputs, outputs], which engines cannot load in few bits";
            return Err(Error::input(format!("{}: {what}", source.display())));
        }
        let checkpoint = Checkpoint::open(source)?;
        let stats = request.stats.as_deref().map(Checkpoint::open).transpose()?;
        let scheme = Scheme { bits: request.bits, group: request.group, symmetric: request.symmetric };
        let plan = Plan {
            lines: Vec::new(),
            bytes_before: 0,
            bytes_after: 0,
            memory: 0,
            disk: 0,
            shards: 0,
            seconds: None,
        };
        let mut work = Work { source, request, checkpoint, stats, config, scheme, plan, shards: Vec::new() };
        work.lay_out()?;
        Ok(work)
    }

    /// Says what becomes of each tensor, and which shard it goes to.
    fn lay_out(&mut self) -> Result<()> {
        let mut entries: Vec<&Entry> = self.checkpoint.entries().collect();
        entries.sort_by_cached_key(|e| {
            natural(&e.name).into_iter().map(|(n, s)| (n, s.to_owned())).collect::<Vec<_>>()
        });
        let mut lines = Vec::new();
        for entry in entries {
            let what = self.what(entry)?;
            let mut line = Line {
                name: entry.name.clone(),
                block: block_of(&entry.name),
                shape: entry.shape.clone(),
                bytes_before: entry.bytes,
                bytes_after: entry.bytes,
                what,
            };
            if what.is_quantized() {
                line.bytes_after = self.parts(entry).iter().map(Piece::bytes).sum();
            }
            lines.push(line);
        }
        if !lines.iter().any(|l| l.what.is_quantized()) {
            return Err(Error::input(format!(
                "{} has no weight that can be quantized: matrices of F32, F16 or BF16, rows a multiple of {}",
                self.source.display(),
                self.request.group
            )));
        }
        let (mut shards, mut filled) = (vec![Vec::new()], 0u64);
        for (at, line) in lines.iter().enumerate() {
            if filled > 0 && filled + line.bytes_after > self.request.shard {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += line.bytes_after;
            shards.last_mut().into_iter().for_each(|shard| shard.push(at));
        }
        let bytes = |shard: &Vec<usize>| shard.iter().map(|&at| lines[at].bytes_after).sum::<u64>();
        let biggest = shards.iter().map(bytes).max().unwrap_or(0);
        let after = lines.iter().map(|l| l.bytes_after).sum::<u64>();
        self.plan = Plan {
            bytes_before: lines.iter().map(|l| l.bytes_before).sum(),
            bytes_after: after,
            memory: lines.iter().map(|l| self.memory(l)).max().unwrap_or(0) + (64 << 20),
            disk: after + biggest,
            shards: shards.len(),
            seconds: None,
            lines,
        };
        self.shards = shards;
        Ok(())
    }

    fn what(&self, entry: &Entry) -> Result<What> {
        let &[rows, cols] = entry.shape.as_slice() else { return Ok(What::NoMatrix) };
        if float(entry.dtype).is_none() || !entry.name.ends_with(".weight") || rows == 0 || cols == 0 {
            return Ok(What::NoMatrix);
        }
        if is_delicate(&entry.name) {
            return Ok(What::Delicate);
        }
        if self.request.keep.iter().any(|part| entry.name.contains(part.as_str())) {
            return Ok(What::Kept);
        }
        if !cols.is_multiple_of(self.request.group) {
            return Ok(What::Ragged);
        }
        let Some((kind, known)) = self.known(&entry.name) else { return Ok(What::Searched) };
        let fits = float(known.dtype).is_some()
            && match (kind, known.shape.as_slice()) {
                (What::Weighed, &[n]) => n == cols,
                (What::Sample, &[tokens, n]) => n == cols && tokens > 0,
                (What::Products, &[a, b]) => a == cols && b == cols,
                (What::Products, &[k, a, b]) => a == b && k.checked_mul(a) == Some(cols),
                _ => false,
            };
        match fits {
            true => Ok(kind),
            false => Err(Error::input(format!(
                "the statistics {:?}, {:?} {:?}, do not fit {:?} of {cols} inputs",
                known.name, known.dtype, known.shape, entry.name
            ))),
        }
    }

    /// The statistics of a weight.
    fn known(&self, name: &str) -> Option<(What, &Entry)> {
        let stats = self.stats.as_ref()?;
        let kinds = [("sample", What::Sample), ("xtx", What::Products), ("diag", What::Weighed)];
        kinds.into_iter().find_map(|(ending, kind)| {
            let of = |name: &str| stats.get(&format!("{name}.{ending}"));
            Some((kind, of(name).or_else(|| of(module(name)))?))
        })
    }

    /// The tensors that a weight becomes.
    fn parts(&self, entry: &Entry) -> Vec<Piece> {
        self.scheme.pieces(module(&entry.name), entry.shape[0], entry.shape[1], entry.dtype)
    }

    fn entry(&self, at: usize) -> Result<&Entry> {
        let name = &self.plan.lines[at].name;
        self.checkpoint.get(name).ok_or_else(|| Error::input(format!("tensor {name:?} is gone")))
    }

    /// What a line becomes in the result.
    fn pieces(&self, at: usize) -> Vec<Piece> {
        match self.entry(at) {
            Ok(entry) if self.plan.lines[at].what.is_quantized() => self.parts(entry),
            Ok(entry) => {
                vec![Piece { name: entry.name.clone(), dtype: entry.dtype, shape: entry.shape.clone() }]
            }
            Err(_) => Vec::new(),
        }
    }

    fn rows_of_strip(cols: usize) -> usize {
        (STRIP / 4 / cols.max(1) / ROWS).max(1) * ROWS
    }

    /// About the memory that a line takes.
    fn memory(&self, line: &Line) -> u64 {
        let &[rows, cols] = line.shape.as_slice() else { return 0 };
        if !line.what.is_quantized() {
            return 0;
        }
        let (rows, cols) = (rows as u64, cols as u64);
        let strip = rows.min(Self::rows_of_strip(line.shape[1]) as u64) * cols;
        let known = self.known(&line.name).map(|(_, known)| known.shape.iter().product::<usize>() as u64);
        let solver = match (line.what, known) {
            (What::Sample, Some(known)) => 16 * known + 8 * (known / cols).pow(2) + 128 * 4 * cols,
            (What::Products, Some(_)) => {
                let block = cols.min(BLOCK as u64);
                8 * cols * block + 40 * block * block
            }
            _ => 0,
        };
        // The rows in f32 and as they lie, codes, and one more copy where columns make up for one another.
        11 * strip + line.bytes_after + solver
    }

    /// All that the result depends on, for people to read; with the times of files when `exactly`.
    fn asked(&self, exactly: bool) -> BTreeMap<String, String> {
        let r = self.request;
        let mut asked = BTreeMap::from([
            ("lessen".to_owned(), format!("{}, arithmetic {ARITHMETIC}", env!("CARGO_PKG_VERSION"))),
            ("bits".into(), r.bits.to_string()),
            ("group".into(), r.group.to_string()),
            ("zero points".into(), if r.symmetric { "none" } else { "for each group" }.into()),
            ("keep".into(), format!("{:?}", r.keep)),
            ("bytes of a shard".into(), r.shard.to_string()),
            ("config.json".into(), Key::of(&[self.config.to_string().as_bytes()]).to_string()),
        ]);
        let of = [("source", Some(&self.checkpoint)), ("statistics", self.stats.as_ref())];
        for (what, checkpoint) in of {
            for shard in checkpoint.into_iter().flat_map(Checkpoint::shards) {
                let name = shard.path.file_name().unwrap_or_default().to_string_lossy();
                let mut about = format!("{} bytes, header {}", shard.bytes, Key::of(&[&shard.header]));
                if exactly {
                    about += &format!(", changed {}", shard.changed);
                }
                asked.insert(format!("{what} {name}"), about);
            }
        }
        asked
    }

    fn key(&self, at: usize) -> Key {
        Key::of(&[self.plan.lines[at].name.as_bytes()])
    }

    /// What a finished folder says about itself, when it is of this request.
    fn made_before(&self, output: &Path) -> Result<Vec<Made>> {
        let path = output.join(RECORD);
        let other = || {
            Error::input(format!(
                "{} exists, and is no result of this request; name another folder",
                output.display()
            ))
        };
        let record = read_json(&path).map_err(|_| other())?;
        if record["asked"] != json!(self.asked(false)) {
            return Err(other());
        }
        serde_json::from_value(record["tensors"].clone()).map_err(|_| other())
    }

    /// Refuses to begin what cannot end.
    fn check_room(&self, partial: &Path, result: &Path) -> Result<()> {
        let size = |folder: &Path| -> u64 {
            let files = fs::read_dir(folder).into_iter().flatten().flatten();
            files.filter_map(|f| f.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
        };
        let needed = self.plan.disk.saturating_sub(size(partial) + size(result));
        match meter::disk::free(partial) {
            Some(free) if free < needed => Err(Error::input(format!(
                "{} needs {} more on its disk, and {} are free; make room, or name a folder on another disk",
                partial.display(),
                crate::receipt::bytes(needed),
                crate::receipt::bytes(free)
            ))),
            _ => Ok(()),
        }
    }

    /// Quantizes a line, or finds that it is done: then the flag is true. `written` says that its shard is.
    fn make(&self, cpu: &Cpu, store: &Store, at: usize, written: bool) -> Result<(Made, bool)> {
        let key = self.key(at);
        let note = key.part("made");
        let there = || written || self.pieces(at).iter().all(|piece| store.has(&key.part(&piece.name)));
        if there()
            && let Some(bytes) = store.get(&note)?
            && let Ok(made) = serde_json::from_slice(&bytes)
        {
            return Ok((made, true));
        }
        let clock = Stopwatch::start();
        let entry = self.entry(at)?;
        let (results, loss) = self.quantize(cpu, entry)?;
        for (piece, bytes) in self.pieces(at).iter().zip(results) {
            store.put(&key.part(&piece.name), &bytes)?;
        }
        let made = Made { name: entry.name.clone(), error: loss.relative(), seconds: Some(clock.seconds()) };
        let text = json!(made).to_string();
        store.put(&note, text.as_bytes())?;
        // As a later run reads it, to the last digit.
        Ok((serde_json::from_str(&text).unwrap_or(made), false))
    }

    fn target(&self, entry: &Entry) -> Target {
        Target {
            form: Form { bits: self.request.bits, group: self.request.group },
            symmetric: self.request.symmetric,
            scale: float(entry.dtype).unwrap_or(Scale::F32),
        }
    }

    /// The bytes of the pieces of a weight, and its loss.
    fn quantize(&self, cpu: &Cpu, entry: &Entry) -> Result<(Vec<Vec<u8>>, Loss)> {
        let (rows, cols) = (entry.shape[0], entry.shape[1]);
        let target = self.target(entry);
        let solver = self.solver(cpu, entry)?;
        let groups = target.form.groups(cols);
        let size = |piece: &Piece| piece.bytes() as usize;
        let sizes: Vec<usize> = self.parts(entry).iter().map(size).collect();
        let mut packed = Vec::with_capacity(sizes[0]);
        let mut scales = Vec::with_capacity(sizes[1]);
        let mut zeros = Vec::with_capacity(if self.request.symmetric { 0 } else { rows * groups });
        let mut loss = Loss::default();
        let step = Self::rows_of_strip(cols);
        for start in (0..rows).step_by(step) {
            let end = (start + step).min(rows);
            let data = self.checkpoint.floats(cpu, entry, start * cols..end * cols)?;
            if let Some(bad) = data.iter().position(|x| !x.is_finite()) {
                return Err(Error::input(format!(
                    "weight {:?} has {} in row {}; it cannot be quantized",
                    entry.name,
                    data[bad],
                    start + bad / cols
                )));
            }
            let w = Matrix { rows: end - start, cols, data };
            let (coded, part) = solver.quantize(cpu, &w, target)?;
            packed.extend(pack_rows(&coded.codes, cols, target.form.bits));
            scales.extend(pack_scales(&coded.scales, entry.dtype));
            if !self.request.symmetric {
                zeros.extend(coded.zeros);
            }
            loss.add(part);
        }
        let shape = [rows as u64, cols as u64].map(u64::to_le_bytes).concat();
        let mut results = vec![packed, scales, shape];
        if !self.request.symmetric {
            results.push(pack_columns(&zeros, groups, target.form.bits));
        }
        Ok((results, loss))
    }

    /// What the rows of a weight need to know.
    fn solver(&self, cpu: &Cpu, entry: &Entry) -> Result<Solver> {
        let cols = entry.shape[1];
        let (Some(stats), Some((kind, known))) = (&self.stats, self.known(&entry.name)) else {
            return Ok(Solver::new(cpu, cols, Inputs::Unknown)?);
        };
        let count = known.shape.iter().product::<usize>();
        let made = match kind {
            What::Sample => Solver::new(cpu, cols, Inputs::Rows(stats.floats(cpu, known, 0..count)?)),
            What::Products => {
                let (sizes, whole) = match known.shape.as_slice() {
                    &[k, b, _] => (vec![b; k], false),
                    _ => ((0..cols).step_by(BLOCK).map(|at| BLOCK.min(cols - at)).collect(), true),
                };
                let read = |i: usize| -> shrink::Result<Vec<f32>> {
                    let size = sizes[i];
                    let lost = |e: format::Error| shrink::Error::Calibration(e.to_string());
                    if !whole {
                        return stats
                            .floats(cpu, known, i * size * size..(i + 1) * size * size)
                            .map_err(lost);
                    }
                    let mut block = Vec::with_capacity(size * size);
                    for row in i * BLOCK..i * BLOCK + size {
                        let start = row * cols + i * BLOCK;
                        block.extend(stats.floats(cpu, known, start..start + size).map_err(lost)?);
                    }
                    Ok(block)
                };
                Solver::new(cpu, cols, Inputs::Products { sizes: sizes.clone(), read: &read })
            }
            _ => {
                let squares = stats.floats(cpu, known, 0..count)?;
                Solver::new(cpu, cols, Inputs::Squares(squares.into_iter().map(f64::from).collect()))
            }
        };
        made.map_err(|e| Error::input(format!("statistics {:?}: {e}", known.name)))
    }

    /// About the seconds that all lines take, from a few rows of the biggest one.
    fn estimate(&self, cpu: &Cpu) -> Result<Option<f64>> {
        let lines = || self.plan.lines.iter().filter(|l| l.what.is_quantized());
        let elements = |l: &Line| l.shape.iter().product::<usize>() as f64;
        if lines().any(|l| l.what == What::Products) {
            return Ok(None);
        }
        let Some(biggest) = lines().max_by(|a, b| elements(a).total_cmp(&elements(b))) else {
            return Ok(None);
        };
        let Some(entry) = self.checkpoint.get(&biggest.name) else { return Ok(None) };
        let (rows, cols) = (entry.shape[0].min(TRIED), entry.shape[1]);
        let mut clock = Stopwatch::start();
        let solver = self.solver(cpu, entry)?;
        let prepared = clock.lap().as_secs_f64();
        let data = self.checkpoint.floats(cpu, entry, 0..rows * cols)?;
        solver.quantize(cpu, &Matrix { rows, cols, data }, self.target(entry))?;
        let tried = clock.lap().as_secs_f64();
        let time = |l: &Line| {
            prepared * l.shape[1] as f64 / cols as f64 + tried * elements(l) / (rows * cols) as f64
        };
        Ok(Some(lines().map(time).sum()))
    }

    /// Writes a shard from finished results, and from what is copied.
    fn write(&self, store: &Store, shard: &[usize], path: &Path) -> Result<()> {
        let mut owners = BTreeMap::new();
        let mut pieces = Vec::new();
        for &at in shard {
            for piece in self.pieces(at) {
                owners.insert(piece.name.clone(), at);
                pieces.push(piece);
            }
        }
        by_width(&mut pieces);
        let lost = |what: String| format::Error::Broken { path: path.into(), what };
        Ok(write_shard(path, &pieces, |number, out| {
            let name = &pieces[number].name;
            let at = *owners.get(name).ok_or_else(|| lost(format!("{name:?} belongs to nothing")))?;
            let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(format::Error::io(path));
            if !self.plan.lines[at].what.is_quantized() {
                let entry = self.entry(at).map_err(|e| lost(e.to_string()))?;
                return self.checkpoint.copy(entry, put);
            }
            match store.get(&self.key(at).part(name)) {
                Ok(Some(bytes)) => put(&bytes),
                Ok(None) => {
                    // It is damaged: the next run makes it anew.
                    let _ = store.remove(&self.key(at).part(name));
                    Err(lost(format!("what was kept of {name:?} is damaged; run again, and it is made anew")))
                }
                Err(e) => Err(lost(e.to_string())),
            }
        })?)
    }

    /// Writes all but the shards: index, settings, the record, and the files that go along.
    fn finish(&self, result: &Path, made: &[Made]) -> Result<()> {
        let pieces: Vec<Vec<Piece>> = self
            .shards
            .iter()
            .map(|shard| {
                let mut pieces: Vec<Piece> = shard.iter().flat_map(|&at| self.pieces(at)).collect();
                by_width(&mut pieces);
                pieces
            })
            .collect();
        if pieces.len() > 1 {
            write_index(result, &pieces)?;
        }
        let stays = |l: &&Line| {
            matches!(l.what, What::Delicate | What::Kept | What::Ragged) && l.name.ends_with(".weight")
        };
        let ignore: Vec<String> =
            self.plan.lines.iter().filter(stays).map(|l| module(&l.name).to_owned()).collect();
        let mut config = self.config.clone();
        config["quantization_config"] = self.scheme.config(&ignore, env!("CARGO_PKG_VERSION"));
        let write = |name: &str, value: &Value| {
            crate::write_file(&result.join(name), format!("{value:#}\n").as_bytes())
        };
        write("config.json", &config)?;
        let without_times: Vec<Made> = made.iter().map(|m| Made { seconds: None, ..m.clone() }).collect();
        write(RECORD, &json!({ "asked": self.asked(false), "tensors": without_times }))?;
        for entry in fs::read_dir(self.source).map_err(Error::io(self.source))? {
            let path = entry.map_err(Error::io(self.source))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            let made_here = name == "config.json" || name == RECORD || name.ends_with(".index.json");
            if !path.is_file() || made_here || name.starts_with('.') || WEIGHTS.contains(&ending) {
                continue;
            }
            let mut from = fs::File::open(&path).map_err(Error::io(&path))?;
            format::file::write(&result.join(&name), |out| std::io::copy(&mut from, out).map(|_| ()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
