//! What shrinking a model will give and cost, before any work is done: sizes from the file's form, time and memory
//! estimated from one run and from the sizes of the statistics.

use std::time::Instant;

use learn::data::Dataset;
use meter::Machine;
use meter::energy::Processor;
use serde::Serialize;

use crate::answer::Answerer;
use crate::inspect::inspect;
use crate::judge::{CALIBRATION, CalibrateOn, DECIDING, DataJudge, Needs};
use crate::made::Made;
use crate::receipt::Number;
use crate::shrink::{Goal, Request, ready};
use crate::{Cpu, Model, Result};

/// Floating-point operations a second that factors and sweeps reach on one core. Not measured.
const SPEED: f64 = 4e9;
/// The part of the activations of one run that is kept between two stages of the walk, of each example: a quarter.
const KEPT: usize = 4;
/// Copies of the weights that are there at once: the original, the changed graph, the one that is judged.
const COPIES: usize = 3;
/// What statistics cost beside the runs that they are taken in, in runs.
const STATISTICS: f64 = 2.0;

/// What can be said ahead.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Size of the original's file.
    pub bytes_before: Number,
    /// The file with as many bits for every weight, the most first.
    pub sizes: Vec<Size>,
    /// What the goal comes to, in words.
    pub goal: Option<String>,
    /// Time of one run of the original on one example, measured once; `None` without examples.
    pub run: Option<Number>,
    /// Memory of one run of the original: weights and activations, estimated from the shapes.
    pub memory: Option<Number>,
    /// Time that shrinking to few bits takes, estimated; `None` without examples.
    pub time: Option<Number>,
    /// Memory that it takes, estimated.
    pub work_memory: Number,
    /// Energy that it takes, estimated from the time and the threads: see [`meter::energy::estimate`].
    pub energy: Option<Number>,
}

/// A size that could be had.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Bits of every weight that can be put in few bits.
    pub bits: u32,
    /// Size of the file.
    pub bytes: Number,
    /// How many times smaller.
    pub smaller: Number,
}

/// Looks ahead. Nothing is changed or written; one example is run, of the data or, when asked for, made up.
///
/// # Errors
/// When there are data and examples are to be made as well, the data do not fit the model, no examples can be made for it, or a weight is damaged.
pub fn forecast(model: &Model, request: &Request, cpu: &Cpu) -> Result<Forecast> {
    request.check_examples()?;
    let original = ready(model, true, None)?;
    let made = request.self_made.then(|| Made::new(&original, CALIBRATION + DECIDING)).transpose()?;
    let source = made.as_ref().map_or(CalibrateOn::Share, CalibrateOn::Made);
    let needs = Needs { source, ..Needs::default() };
    let judge = DataJudge::new(&original, request.data, request.task, &request.options, cpu, needs, &|_| {})?;
    let goal = Goal { smaller: request.smaller, size: request.size, ..Goal::default() };
    let found = shrink::forecast(original.inner(), &goal, &judge, cpu)?;
    let bytes = |n: usize| Number::exact(n as f64, "bytes");
    let estimated = |n: usize| Number::estimated(n as f64, "bytes");
    let size = |&(bits, n): &(u32, usize)| Size {
        bits,
        bytes: bytes(n),
        smaller: Number::exact(found.before as f64 / n.max(1) as f64, "x"),
    };
    let words = found.target.map(|target| match found.sizes.iter().find(|(_, n)| *n <= target) {
        Some((8, _)) => "8 bits are enough".to_string(),
        Some((bits, _)) => format!("weights of {bits} bits and more, shared out by their harm"),
        None => match found.sizes.last() {
            Some((bits, n)) => format!(
                "out of reach: with {bits} bits for every weight the file has {n} bytes, {:.2} times less; zeros, \
                 fewer channels or blocks, or a packed file can go further",
                found.before as f64 / (*n).max(1) as f64
            ),
            None => "out of reach: the model has no weights that can be put in few bits".into(),
        },
    });
    let cost = inspect(&original, &[], cpu)?.cost;
    let activations = cost.map(|c| c.peak_activation_bytes as usize);
    let weights = found.before;
    let data = request.data.or(made.as_ref().map(|made| made as &dyn Dataset));
    let run = match (data, judge.shares()) {
        (Some(data), Some(shares)) => Some((seconds(&original, data, request, cpu, &judge)?, shares)),
        _ => None,
    };
    // Ranges; the walks for importance and for the sweep; the harm of each weight; the search's and the receipt's scores.
    let time = run.as_ref().map(|(one, shares)| {
        let probes = shares.search.min(crate::judge::PROBE) * (found.weights + 1);
        let walks = shares.calibration as f64 * (1.0 + 2.0 * (1.0 + STATISTICS));
        let runs = walks + probes as f64 + (2 * shares.search + 2 * shares.verify) as f64;
        runs * one + found.operations / SPEED
    });
    let kept = run.as_ref().map_or(0, |(_, shares)| shares.calibration) * activations.unwrap_or(0) / KEPT;
    let here = meter::energy::processor(&Machine::this());
    let processor = Processor { threads: cpu.pool().threads().min(here.threads), ..here };
    Ok(Forecast {
        bytes_before: bytes(found.before),
        sizes: found.sizes.iter().map(size).collect(),
        goal: words,
        run: run.as_ref().map(|(one, _)| Number::measured(one * 1e3, "ms")),
        memory: activations.map(|a| estimated(a + weights)),
        time: time.map(|s| Number::estimated(s, "s")),
        work_memory: estimated(COPIES * weights + found.statistics + kept),
        energy: time.map(|s| Number::estimated(meter::energy::estimate(&processor, s, None).joules, "J")),
    })
}

/// Time of one run on the first example, after one that warms up.
fn seconds(
    model: &Model,
    data: &dyn Dataset,
    request: &Request,
    cpu: &Cpu,
    judge: &DataJudge,
) -> Result<f64> {
    let answerer = Answerer::new(model, cpu, judge.task(), &request.options)?;
    let input = [data.get(0)?.input];
    answerer.answers(&input)?;
    let start = Instant::now();
    answerer.answers(&input)?;
    Ok(start.elapsed().as_secs_f64())
}
