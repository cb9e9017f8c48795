//! The work on one checkpoint: what each tensor becomes, in which shard it lies, and how it is made and written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use format::safetensors::checkpoint::Entry;
use format::safetensors::compressed::{Scheme, pack_columns, pack_rows, pack_scales};
use format::safetensors::shard::{Piece, by_width, write_index, write_shard};
use format::safetensors::{Checkpoint, ElementType, read_json};
use kernel::Cpu;
use meter::time::Stopwatch;
use serde_json::{Value, json};
use shrink::job::{Key, Store};
use shrink::matrix::Matrix;
use shrink::quantize::coded::Form;
use shrink::quantize::rows::{Inputs, Loss, Scale, Solver, Target};

use super::{Line, Made, Plan, Request, What};
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

/// A request with what it finds.
pub(super) struct Work<'a> {
    source: &'a Path,
    request: &'a Request,
    checkpoint: Checkpoint,
    stats: Option<Checkpoint>,
    config: Value,
    scheme: Scheme,
    pub plan: Plan,
    /// The lines of each shard.
    pub shards: Vec<Vec<usize>>,
}

impl<'a> Work<'a> {
    pub(super) fn new(source: &'a Path, request: &'a Request) -> Result<Work<'a>> {
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
    pub(super) fn pieces(&self, at: usize) -> Vec<Piece> {
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
    pub(super) fn asked(&self, exactly: bool) -> BTreeMap<String, String> {
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

    pub(super) fn key(&self, at: usize) -> Key {
        Key::of(&[self.plan.lines[at].name.as_bytes()])
    }

    /// What a finished folder says about itself, when it is of this request.
    pub(super) fn made_before(&self, output: &Path) -> Result<Vec<Made>> {
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
    pub(super) fn check_room(&self, partial: &Path, result: &Path) -> Result<()> {
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
    pub(super) fn make(&self, cpu: &Cpu, store: &Store, at: usize, written: bool) -> Result<(Made, bool)> {
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
    pub(super) fn estimate(&self, cpu: &Cpu) -> Result<Option<f64>> {
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
    pub(super) fn write(&self, store: &Store, shard: &[usize], path: &Path) -> Result<()> {
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
    pub(super) fn finish(&self, result: &Path, made: &[Made]) -> Result<()> {
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

/// The number of a block in a name: its first part that is a number.
pub(super) fn block_of(name: &str) -> Option<usize> {
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
