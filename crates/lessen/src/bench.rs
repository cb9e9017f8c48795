//! What a run of a model costs in time and memory, alone or beside another model.
//!
//! Each model runs in a process of its own, so that its peak memory is its own. The runs of two models take turns:
//! what else the machine does meets both alike, and their ratio is steadier than their times.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use meter::{Machine, Spread};
use serde::{Deserialize, Serialize};

use crate::eval::{SEED, number};
use crate::receipt::Number;
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
}

/// Fewest counted runs of each model.
pub const MIN_RUNS: usize = 5;

impl Default for Options {
    fn default() -> Options {
        Options { warmup: 3, runs: 200, time: Duration::from_secs(10) }
    }
}

/// What [`bench`] measured.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// The models, in the order given.
    pub models: Vec<Row>,
    /// How many times as fast the first model is as the second: the median over the pairs of runs.
    pub speedup: Option<Number>,
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
}

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
/// and answers with its time in ms; at the end it writes its peak memory in bytes. Each answer is one line.
///
/// # Errors
/// When the caller is gone. What is wrong with the model is reported to the caller, not returned.
pub fn work(
    path: &Path,
    asked: &[Shape],
    threads: usize,
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
        line.map_err(gone)?;
        let start = Instant::now();
        let outputs = runner.run(&arrays);
        let time = start.elapsed().as_secs_f64() * 1e3;
        match outputs {
            Ok(outputs) => {
                drop(outputs);
                writeln!(output, "{time}")
            }
            Err(error) => writeln!(output, "{error}"),
        }
        .and_then(|()| output.flush())
        .map_err(gone)?;
    }
    let peak = meter::memory::peak().unwrap_or(0);
    writeln!(output, "{peak}").and_then(|()| output.flush()).map_err(gone)
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
                Ok(Worker { path: path.into(), child, ask: Some(ask), answers, ready, times: Vec::new() })
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
        if let Some(ask) = &mut self.ask {
            ask.write_all(b"\n").map_err(Error::io(&self.path))?;
        }
        let line = answer(&self.path, &mut self.answers)?;
        line.parse().map_err(|_| Error::Input(line))
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
        // Who goes first changes each round, so that neither always finds the other's traces in the caches.
        let first = round % workers.len().max(1);
        for i in 0..workers.len() {
            let at = (first + i) % workers.len();
            let time = workers[at].run()?;
            workers[at].times.push(time);
        }
    }
    let speedup = match workers.as_slice() {
        [a, b] => {
            let ratios: Vec<f64> = a.times.iter().zip(&b.times).map(|(a, b)| b / a).collect();
            Some(median(&ratios, "x")?)
        }
        _ => None,
    };
    let models = workers.iter_mut().map(row).collect::<Result<_>>()?;
    Ok(Bench { models, speedup, machine: Machine::this() })
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
    })
}

/// The median with its bootstrap interval.
fn median(values: &[f64], unit: &'static str) -> Result<Number> {
    let at = |sample: &[usize]| Spread::of(&sample.iter().map(|&i| values[i]).collect::<Vec<_>>()).median;
    let interval = learn::score::bootstrap(values.len(), SEED, |sample| Some(at(sample)))?;
    Ok(number(interval, unit))
}
