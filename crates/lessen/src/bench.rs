//! What a run of a model costs in time and memory, alone or beside another model.
//!
//! Each model runs in a process of its own, so that its peak memory is its own. The runs of two models take turns:
//! what else the machine does meets both alike, and their ratio is steadier than their times. Energy is that of blocks of
//! runs, in turns as well: sensors are too slow for single ones.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use meter::energy::{Meter, processor};
use meter::{Energy, Machine, Spread};
use serde::{Deserialize, Serialize};

use crate::eval::{SEED, number};
use crate::receipt::{How, Number};
use crate::shapes::{self, Shape};
use crate::{Cpu, Error, Model, Result, Runner};

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Runs of each model that are not counted.
    pub warmup: usize,
    /// Most runs of each model that are counted.
    pub runs: usize,
    /// Most time for all counted runs together; at least [`MIN_RUNS`] of each model are made.
    pub time: Duration,
    /// Whether to take the energy of runs, too, and how.
    pub energy: Option<Metering>,
}

/// How the energy of runs is taken.
#[derive(Clone, Copy, Debug)]
pub struct Metering {
    /// Time of all runs of both models that are made for it.
    pub time: Duration,
    /// So long, for each model, nothing runs, to know what the machine takes when idle.
    pub rest: Duration,
}

/// Blocks of runs of each model that energy is taken of.
const BLOCKS: u32 = 5;

/// Fewest counted runs of each model.
pub const MIN_RUNS: usize = 5;

impl Default for Options {
    fn default() -> Options {
        Options { warmup: 3, runs: 200, time: Duration::from_secs(10), energy: None }
    }
}

/// What [`bench`] measured.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// The models, in the order given.
    pub models: Vec<Row>,
    /// How many times as fast the first model is as the second: the median over the pairs of runs.
    pub speedup: Option<Number>,
    /// How many times less energy a run of the first model takes than one of the second: the median over the pairs of blocks.
    pub frugality: Option<Number>,
    /// The machine that this holds for.
    pub machine: Machine,
}

/// What one model costs.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The model's file.
    pub file: PathBuf,
    /// The shapes of its inputs.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Threads it ran on.
    pub threads: usize,
    /// The instruction set it ran with.
    pub isa: String,
    /// Counted runs.
    pub runs: usize,
    /// Median time of a run.
    pub latency_median: Number,
    /// Time that 95 % of the runs stay below.
    pub latency_p95: Number,
    /// Examples a second, at the mean time of a run.
    pub throughput: Number,
    /// Time to open the model and make it ready.
    pub load: Number,
    /// The most memory that the process held at once, where the system tells; with the model's mapped file and the program itself.
    pub peak_memory: Option<Number>,
    /// Size of the file.
    pub file_size: Number,
    /// Energy of a run, when it was asked for.
    pub energy: Option<RunEnergy>,
}

/// Energy of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunEnergy {
    /// Joules of the whole machine for the time of a run: the median of the blocks. Estimated unless all of them were measured.
    pub total: Number,
    /// Joules of a run beyond what the machine takes when idle; `None` when that is not known.
    pub above_idle: Option<Number>,
    /// Runs that it was taken of.
    pub runs: usize,
    /// Where it comes from, for people.
    pub source: String,
}

/// A block of runs.
#[derive(Debug, Serialize, Deserialize)]
struct Block {
    runs: usize,
    energy: Energy,
}

/// What the measuring process is asked for, a line each: a run, or, in milliseconds, to rest and to make runs.
const ENERGY: &str = "energy";

/// The first line that a measuring process writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hello {
    Ready(Ready),
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    load_ms: f64,
    threads: usize,
    isa: String,
    file_bytes: u64,
    shapes: BTreeMap<String, Vec<usize>>,
}

/// The measuring process: opens the model and says that it is ready; then makes a run for each line that comes in,
/// and answers with its time in ms, or, where energy is asked for, a block of runs, and answers with what these took by the
/// sensors under `class` (see [`Meter`]); at the end it writes its peak memory in bytes. Each answer is one line.
///
/// # Errors
/// When the caller is gone. What is wrong with the model is reported to the caller, not returned.
pub fn work(
    path: &Path,
    asked: &[Shape],
    threads: usize,
    class: &Path,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<()> {
    let gone = |e| Error::io(path)(e);
    let prepared = prepare(path, asked, threads);
    let hello = match &prepared {
        Ok((ready, ..)) => {
            Hello::Ready(Ready { shapes: ready.shapes.clone(), isa: ready.isa.clone(), ..*ready })
        }
        Err(error) => Hello::Failed(error.to_string()),
    };
    let text = serde_json::to_string(&hello).map_err(|e| Error::input(e.to_string()))?;
    writeln!(output, "{text}").and_then(|()| output.flush()).map_err(gone)?;
    let Ok((_, runner, arrays)) = prepared else { return Ok(()) };
    for line in input.lines() {
        let line = line.map_err(gone)?;
        let answer = match line.strip_prefix(ENERGY) {
            Some(times) => block(times, class, || runner.run(&arrays).map(drop)),
            None => {
                let start = Instant::now();
                let outputs = runner.run(&arrays);
                let time = start.elapsed().as_secs_f64() * 1e3;
                outputs.map(|outputs| {
                    drop(outputs);
                    time.to_string()
                })
            }
        };
        let answer = answer.unwrap_or_else(|error| error.to_string());
        writeln!(output, "{answer}").and_then(|()| output.flush()).map_err(gone)?;
    }
    let peak = meter::memory::peak().unwrap_or(0);
    writeln!(output, "{peak}").and_then(|()| output.flush()).map_err(gone)
}

/// Rests and runs for so many milliseconds each, at least once; what that took, as text.
fn block(times: &str, class: &Path, mut run: impl FnMut() -> Result<()>) -> Result<String> {
    let times: Vec<u64> = times.split_whitespace().filter_map(|t| t.parse().ok()).collect();
    let [rest, time] = times[..] else { return Err(Error::input(format!("{times:?} are no times"))) };
    let meter = Meter::start(class, Duration::from_millis(rest));
    let (start, mut runs) = (Instant::now(), 0);
    while runs == 0 || start.elapsed() < Duration::from_millis(time) {
        run()?;
        runs += 1;
    }
    let energy = meter.stop(&processor(&Machine::this()));
    serde_json::to_string(&Block { runs, energy }).map_err(|e| Error::input(e.to_string()))
}

type Prepared = (Ready, Runner, Vec<(String, crate::Tensor)>);

fn prepare(path: &Path, asked: &[Shape], threads: usize) -> Result<Prepared> {
    let cpu = Cpu::new(threads).map_err(Error::Input)?;
    let start = Instant::now();
    let model = Model::open(path)?;
    let runner = Runner::new(&model, &cpu)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut bound = model.inner().graph.clone();
    shapes::bind(&mut bound, asked)?;
    let arrays = shapes::made_up(&bound)?;
    let ready = Ready {
        load_ms,
        threads: cpu.pool().threads(),
        isa: format!("{:?}", cpu.isa()).to_lowercase(),
        file_bytes: crate::inspect::bytes_of(path)?,
        shapes: arrays.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect(),
    };
    Ok((ready, runner, arrays))
}

/// A measuring process, seen from outside.
struct Worker {
    path: PathBuf,
    child: Child,
    /// `None` once the process was told that no more runs come.
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    ready: Ready,
    times: Vec<f64>,
    blocks: Vec<Block>,
}

impl Worker {
    fn start(path: &Path, mut command: Command) -> Result<Worker> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(Error::io(path))?;
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::input("the measuring process has no streams"));
        };
        let mut answers = BufReader::new(answers);
        let line = answer(path, &mut answers);
        let ready = line.and_then(|line| match serde_json::from_str(&line) {
            Ok(Hello::Ready(ready)) => Ok(ready),
            Ok(Hello::Failed(error)) => Err(Error::Input(error)),
            Err(_) => Err(Error::input(format!("the measuring process answered {line:?}"))),
        });
        match ready {
            Ok(ready) => {
                let (times, blocks) = (Vec::new(), Vec::new());
                Ok(Worker { path: path.into(), child, ask: Some(ask), answers, ready, times, blocks })
            }
            Err(error) => {
                drop(ask);
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Makes one run; its time in ms.
    fn run(&mut self) -> Result<f64> {
        let line = self.asked("")?;
        line.parse().map_err(|_| Error::Input(line))
    }

    /// Makes a block of runs.
    fn block(&mut self, rest: Duration, time: Duration) -> Result<Block> {
        let line = self.asked(&format!("{ENERGY} {} {}", rest.as_millis(), time.as_millis()))?;
        serde_json::from_str(&line).map_err(|_| Error::Input(line))
    }

    fn asked(&mut self, what: &str) -> Result<String> {
        if let Some(ask) = &mut self.ask {
            writeln!(ask, "{what}").map_err(Error::io(&self.path))?;
        }
        answer(&self.path, &mut self.answers)
    }

    /// Ends the process; its peak memory in bytes.
    fn finish(&mut self) -> Result<f64> {
        self.ask = None;
        let line = answer(&self.path, &mut self.answers)?;
        line.parse().map_err(|_| Error::Input(line))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ask = None;
        let _ = self.child.wait();
    }
}

fn answer(path: &Path, answers: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    answers.read_line(&mut line).map_err(Error::io(path))?;
    match line.trim_end() {
        "" => Err(Error::input(format!("{}: the measuring process ended early", path.display()))),
        line => Ok(line.into()),
    }
}

/// Measures models, one run of each in turn. `command` makes the command that calls [`work`] for a model.
///
/// # Errors
/// When a process cannot be started, or a model not be opened or run.
pub fn bench(
    models: &[PathBuf],
    command: impl Fn(&Path) -> Result<Command>,
    options: &Options,
) -> Result<Bench> {
    let mut workers =
        models.iter().map(|path| Worker::start(path, command(path)?)).collect::<Result<Vec<_>>>()?;
    for _ in 0..options.warmup {
        workers.iter_mut().try_for_each(|w| w.run().map(drop))?;
    }
    let start = Instant::now();
    for round in 0..options.runs.max(1) {
        if round >= MIN_RUNS && start.elapsed() > options.time {
            break;
        }
        for at in turns(round, workers.len()) {
            let time = workers[at].run()?;
            workers[at].times.push(time);
        }
    }
    if let Some(metering) = &options.energy {
        let time = metering.time / (BLOCKS * workers.len().max(1) as u32);
        for round in 0..BLOCKS {
            for at in turns(round as usize, workers.len()) {
                let block = workers[at].block(metering.rest / BLOCKS, time)?;
                workers[at].blocks.push(block);
            }
        }
    }
    let (speedup, frugality) = match workers.as_slice() {
        [a, b] => {
            let ratios: Vec<f64> = a.times.iter().zip(&b.times).map(|(a, b)| b / a).collect();
            let each = |block: &Block| block.energy.joules / block.runs as f64;
            let energy: Vec<f64> = a.blocks.iter().zip(&b.blocks).map(|(a, b)| each(b) / each(a)).collect();
            let measured = a.blocks.iter().chain(&b.blocks).all(|block| block.energy.measured);
            let frugality = (!energy.is_empty()).then(|| told(&energy, "x", measured)).transpose()?;
            (Some(median(&ratios, "x")?), frugality)
        }
        _ => (None, None),
    };
    let models = workers.iter_mut().map(row).collect::<Result<_>>()?;
    Ok(Bench { models, speedup, frugality, machine: Machine::this() })
}

/// Who comes when in a round: who goes first changes, so that none always finds the other's traces in the caches.
fn turns(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| (round + i) % count)
}

/// Energy of a run; `None` when it was not taken.
fn energy(blocks: &[Block]) -> Result<Option<RunEnergy>> {
    let Some(first) = blocks.first() else { return Ok(None) };
    let estimated = blocks.iter().find(|block| !block.energy.measured);
    let each = |joules: &dyn Fn(&Energy) -> Option<f64>| -> Option<Vec<f64>> {
        blocks.iter().map(|block| Some(joules(&block.energy)? / block.runs as f64)).collect()
    };
    let total = each(&|energy| Some(energy.joules)).unwrap_or_default();
    let above = each(&Energy::above_idle);
    Ok(Some(RunEnergy {
        total: told(&total, "J", estimated.is_none())?,
        above_idle: above.map(|above| told(&above, "J", estimated.is_none())).transpose()?,
        runs: blocks.iter().map(|block| block.runs).sum(),
        source: estimated.unwrap_or(first).energy.source.clone(),
    }))
}

/// The median with its interval: what is estimated follows times, in which chance has a part.
fn told(values: &[f64], unit: &'static str, measured: bool) -> Result<Number> {
    let how = if measured { How::Measured } else { How::Estimated };
    Ok(Number { how, ..median(values, unit)? })
}

fn row(worker: &mut Worker) -> Result<Row> {
    let peak = worker.finish()?;
    let ready = &worker.ready;
    let times = &worker.times;
    let total: f64 = times.iter().sum();
    let batch = ready.shapes.values().find_map(|s| s.first()).copied().unwrap_or(1) as f64;
    Ok(Row {
        file: worker.path.clone(),
        shapes: ready.shapes.clone(),
        threads: ready.threads,
        isa: ready.isa.clone(),
        runs: times.len(),
        latency_median: median(times, "ms")?,
        latency_p95: Number::measured(Spread::of(times).p95, "ms"),
        throughput: Number::measured(batch * times.len() as f64 / total.max(1e-9) * 1e3, "examples/s"),
        load: Number::measured(ready.load_ms, "ms"),
        peak_memory: (peak > 0.0).then(|| Number::measured(peak, "bytes")),
        file_size: Number::exact(ready.file_bytes as f64, "bytes"),
        energy: energy(&worker.blocks)?,
    })
}

/// The median with its bootstrap interval.
fn median(values: &[f64], unit: &'static str) -> Result<Number> {
    let at = |sample: &[usize]| Spread::of(&sample.iter().map(|&i| values[i]).collect::<Vec<_>>()).median;
    let interval = learn::score::bootstrap(values.len(), SEED, |sample| Some(at(sample)))?;
    Ok(number(interval, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(joules: f64, idle: Option<f64>, measured: bool) -> Block {
        let source = if measured { "RAPL" } else { "estimated" }.to_owned();
        Block { runs: 10, energy: Energy { joules, idle, seconds: 1.0, measured, source, parts: Vec::new() } }
    }

    #[test]
    fn one_estimated_block_makes_all_of_it_estimated() {
        assert!(energy(&[]).unwrap().is_none());
        let measured = [20.0, 30.0, 40.0].map(|joules| block(joules, Some(5.0), true));
        let found = energy(&measured).unwrap().unwrap();
        assert_eq!((found.total.value, found.total.how, found.runs), (3.0, How::Measured, 30));
        assert_eq!(found.above_idle.unwrap().value, 2.5);
        assert!(found.total.low.unwrap() >= 2.0 && found.total.high.unwrap() <= 4.0);
        let mixed = [block(20.0, None, true), block(30.0, Some(5.0), false)];
        let found = energy(&mixed).unwrap().unwrap();
        assert_eq!((found.total.how, found.above_idle), (How::Estimated, None));
        assert!(found.total.low.is_some() && found.source == "estimated");
    }

    #[test]
    fn turns_change() {
        let all: Vec<Vec<usize>> = (0..3).map(|round| turns(round, 2).collect()).collect();
        assert_eq!(all, [[0, 1], [1, 0], [0, 1]]);
        assert_eq!(turns(7, 0).count(), 0);
    }
}
