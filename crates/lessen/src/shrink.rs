//! Makes a model smaller and proves that it still does its job: data are split so that what is measured at the end
//! was seen by neither calibration nor search, and the result comes with a [`Receipt`].

use std::cell::RefCell;
use std::collections::HashMap;

use graph::Datum;
use learn::Input;
use learn::data::{Dataset, Target, split};
use learn::score::{self, Interval};
use meter::{Machine, Stopwatch, interleave};
use serde::Serialize;
pub use shrink::quantize::coded::{Form, Ranges, Rounding};
pub use shrink::{Choice, Goal, Plan, Step};
use shrink::{Judge, Part, Score};

use crate::answer::{Answer, Answerer, Options, Task};
use crate::eval::{Judged, SEED};
use crate::receipt::Number;
use crate::{Cpu, Error, Model, Result};

/// Most examples that calibration looks at.
const CALIBRATION: usize = 256;
/// Most examples that the harm of each single weight is measured on.
const PROBE: usize = 64;
/// Models become this many times smaller by weights of 8 bits, however small they are.
const INT8: f64 = 3.5;
/// Runs of each model when their speed is compared.
const ROUNDS: usize = 25;

/// Everything that is known of a shrunken model.
#[derive(Clone, Debug, Serialize)]
pub struct Receipt {
    /// Version of lessen that wrote it.
    pub lessen: &'static str,
    /// The original's file.
    pub original: String,
    /// What was asked for.
    pub asked: Asked,
    /// True when all of it holds.
    pub met: bool,
    /// Why not, when not.
    pub missed: Vec<String>,
    /// Size of the original's file with that of its weights; of its ONNX form when it was a folder.
    pub bytes_before: Number,
    /// Size of the ONNX file that was made.
    pub bytes_after: Number,
    /// How many times smaller.
    pub smaller: Number,
    /// Whether the loss is certain to be within what is allowed; `None` when nothing was allowed or measured.
    pub proof: Option<Proof>,
    /// How it does, on examples that neither calibration nor search has seen; `None` without data.
    pub quality: Option<Quality>,
    /// Time of one run on the first of these examples, measured here, both in turn; `None` without data.
    pub speed: Option<Speed>,
    /// What the data are, and how they were shared out.
    pub data: Option<Shares>,
    /// What was done to each weight.
    pub plan: Plan,
    /// Weights that were given back to f32 because the loss was too great, most harmful first.
    pub given_back: Vec<String>,
    /// The machine that measured.
    pub machine: Machine,
    /// Time that it all took.
    pub took: Number,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Asked {
    /// At least this many times smaller.
    pub smaller: Option<f64>,
    /// At most this much of the metric lost.
    pub lose: Option<f64>,
}

/// Whether a loss is within a bound for certain: when the upper end of its 95 % interval is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Proof {
    /// The loss that is allowed, in the metric's own unit.
    pub bound: f64,
    /// The upper end of the 95 % interval of the loss.
    pub at_most: f64,
    /// True when the second is not above the first.
    pub holds: bool,
    /// Number of examples that would do, about, if the loss stays what it is; `None` when it holds already, and when
    /// no number would do.
    pub examples_needed: Option<usize>,
}

impl Proof {
    fn new(bound: f64, score: &Score) -> Proof {
        let (loss, at_most) = (score.loss(), score.lost.1);
        let holds = at_most <= bound;
        // Intervals shrink with the square root of the number of examples.
        let times = ((at_most - loss) / (bound - loss)).powi(2);
        let needed = (score.examples as f64 * times).ceil();
        let possible = !holds && loss < bound && needed.is_finite();
        Proof { bound, at_most, holds, examples_needed: possible.then_some(needed as usize) }
    }

    /// In a sentence.
    pub fn words(&self) -> String {
        let Proof { bound, at_most, .. } = self;
        match (self.holds, self.examples_needed) {
            (true, _) => format!("proven: loses at most {bound:.4} (95 %: at most {at_most:.4})"),
            (false, Some(n)) => format!(
                "not proven: the loss may be up to {at_most:.4}, more than {bound:.4}; about {n} examples to verify on \
                 would settle it"
            ),
            (false, None) => format!("not proven: the loss may be up to {at_most:.4}, more than {bound:.4}"),
        }
    }
}

/// The metric before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Quality {
    /// Its name.
    pub metric: String,
    /// Of the original.
    pub before: Number,
    /// Of the shrunken model.
    pub after: Number,
    /// The loss, with its 95 % interval over the same examples.
    pub lost: Number,
    /// Number of examples.
    pub examples: usize,
    /// Mean squared distance of the outputs, relative to the original's.
    pub distance: f64,
}

/// Time of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// Of the original: median.
    pub before: Number,
    /// Of the shrunken model: median.
    pub after: Number,
    /// How many times faster: median of the ratios.
    pub faster: Number,
    /// Threads.
    pub threads: usize,
}

impl Speed {
    /// How many times faster or slower, in words.
    pub fn words(&self) -> String {
        match self.faster.value {
            ratio if ratio > 0.0 && ratio < 1.0 => format!("{:.2} times slower", 1.0 / ratio),
            ratio => format!("{ratio:.2} times faster"),
        }
    }
}

/// How the examples were shared out. No example is in two shares.
#[derive(Clone, Debug, Serialize)]
pub struct Shares {
    /// What the data are.
    pub data: String,
    /// Examples that ranges of activations were taken from.
    pub calibration: usize,
    /// Examples that decisions were taken on.
    pub search: usize,
    /// Examples that the receipt's numbers are from.
    pub verify: usize,
    /// Seed of the sharing.
    pub seed: u64,
}

/// A loss that is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lose {
    /// So many points of the metric: 0.5 is half a point of accuracy, or 0.005 of a correlation.
    Points(f64),
    /// So many per cent of the original's metric.
    Percent(f64),
}

impl std::str::FromStr for Lose {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Lose, String> {
        let (number, kind): (&str, fn(f64) -> Lose) = match text.trim().strip_suffix('%') {
            Some(number) => (number, Lose::Percent),
            None => (text.trim(), Lose::Points),
        };
        match number.trim().parse::<f64>() {
            Ok(n) if n.is_finite() && n >= 0.0 => Ok(kind(n)),
            _ => Err(format!(
                "{text:?} is no loss; say 0.5 for half a point or 1% for a hundredth of the metric"
            )),
        }
    }
}

/// What is asked for, and the data to prove it on.
#[derive(Default)]
pub struct Request<'a> {
    /// Examples. Without them only what needs none is done, and nothing is proven.
    pub data: Option<&'a dyn Dataset>,
    /// The file must become at least this many times smaller.
    pub smaller: Option<f64>,
    /// At most this much may be lost.
    pub lose: Option<Lose>,
    /// How weights of few bits go to their codes.
    pub rounding: Rounding,
    /// How the scales of weights of few bits are found.
    pub ranges: Ranges,
    /// What to do to each weight; it is searched for when not given.
    pub plan: Option<&'a Plan>,
    /// What the model is for; guessed from the data when not given.
    pub task: Option<Task>,
    /// How examples are shown and answers read.
    pub options: Options,
}

/// Shrinks a model. `progress` is told what is being done.
///
/// # Errors
/// When the data do not fit the model, the model cannot be run, or a weight is damaged. A goal that is missed is no
/// error: see [`Receipt::met`].
pub fn shrink(
    model: &Model,
    request: &Request,
    cpu: &Cpu,
    progress: &dyn Fn(&str),
) -> Result<(Model, Receipt)> {
    let Request { data, smaller, lose, rounding, ranges, plan, task, ref options } = *request;
    let watch = Stopwatch::start();
    let mut original = model.inner().clone();
    let few_bits = match plan {
        Some(plan) => plan.steps.iter().any(|s| matches!(s.choice, Choice::Bits(_))),
        None => smaller.is_some_and(|times| times > INT8),
    };
    let least = if few_bits { shrink::quantize::weight_only::MIN_OPSET } else { shrink::search::MIN_OPSET };
    let version = format::onnx::needed(&original).max(least);
    format::onnx::upgrade(&mut original, version)?;
    let original = model.with_inner(original);
    let judge = DataJudge::new(&original, data, task, options, cpu, progress)?;
    let metric = judge.metric_of_original()?;
    let allowed = lose.map(|lose| match lose {
        Lose::Points(points) => points / 100.0,
        Lose::Percent(percent) => percent / 100.0 * metric.unwrap_or(1.0).abs(),
    });
    let goal = Goal { smaller, lose: allowed, rounding, ranges };
    let outcome = match plan {
        Some(plan) => shrink::apply(original.inner(), plan, &goal, &judge, cpu),
        None => shrink::shrink(original.inner(), &goal, &judge, cpu),
    };
    let outcome = outcome.map_err(back)?;
    let proof = allowed.zip(outcome.score.as_ref()).map(|(bound, score)| Proof::new(bound, score));
    let small = model.with_inner(outcome.model);
    progress("timing both models");
    let receipt = Receipt {
        lessen: env!("CARGO_PKG_VERSION"),
        original: model.path().map_or_else(String::new, |p| p.display().to_string()),
        asked: Asked { smaller, lose: allowed },
        met: outcome.missed.is_empty(),
        missed: outcome.missed,
        bytes_before: Number::exact(outcome.bytes.0 as f64, "bytes"),
        bytes_after: Number::exact(outcome.bytes.1 as f64, "bytes"),
        smaller: Number::exact(outcome.bytes.0 as f64 / outcome.bytes.1.max(1) as f64, "x"),
        proof,
        quality: outcome.score.map(|score| judge.quality(score)),
        speed: judge.speed(&small)?,
        data: judge.shares(),
        plan: outcome.plan,
        given_back: outcome.given_back,
        machine: Machine::this(),
        took: Number::exact(watch.seconds(), "s"),
    };
    Ok((small, receipt))
}

/// An error of this crate that went through the search comes out as it was.
fn back(error: shrink::Error) -> Error {
    match error {
        shrink::Error::Judge(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => Error::input(other.to_string()),
        },
        other => Error::from(other),
    }
}

fn judged(error: Error) -> shrink::Error {
    shrink::Error::Judge(Box::new(error))
}

/// Judges by the examples of a data set.
struct DataJudge<'a> {
    original: &'a Model,
    data: Option<&'a dyn Dataset>,
    parts: HashMap<Part, Vec<usize>>,
    calibration: Vec<usize>,
    task: Task,
    options: &'a Options,
    cpu: &'a Cpu,
    progress: &'a dyn Fn(&str),
    /// The original's answers, made once.
    answers: RefCell<HashMap<Part, Vec<Answer>>>,
}

impl<'a> DataJudge<'a> {
    fn new(
        original: &'a Model,
        data: Option<&'a dyn Dataset>,
        task: Option<Task>,
        options: &'a Options,
        cpu: &'a Cpu,
        progress: &'a dyn Fn(&str),
    ) -> Result<DataJudge<'a>> {
        let task = task.or_else(|| data.map(|d| Task::guess(original, d))).unwrap_or(Task::Agree);
        let (mut parts, mut calibration) = (HashMap::new(), Vec::new());
        if let Some(data) = data {
            let n = data.len();
            if n < 8 {
                return Err(Error::input(format!(
                    "{n} examples are too few to calibrate, decide and verify on; give 8 or more"
                )));
            }
            let classes: Option<Vec<usize>> = (0..n)
                .map(|i| match data.target(i) {
                    Target::Class(class) => Some(class),
                    _ => None,
                })
                .collect();
            let share = (CALIBRATION as f64 / n as f64).min(0.2);
            let rest = (1.0 - share) / 2.0;
            let mut shares = split(n, &[share, rest, rest], SEED, classes.as_deref())?.into_iter();
            calibration = shares.next().unwrap_or_default();
            let search = shares.next().unwrap_or_default();
            parts.insert(Part::Probe, search.iter().copied().take(PROBE).collect());
            parts.insert(Part::Search, search);
            parts.insert(Part::Verify, shares.next().unwrap_or_default());
        }
        let answers = RefCell::default();
        Ok(DataJudge { original, data, parts, calibration, task, options, cpu, progress, answers })
    }

    fn answers(&self, model: &Model, part: Part) -> Result<Vec<Answer>> {
        let Some(data) = self.data else { return Ok(Vec::new()) };
        let answerer = Answerer::new(model, self.cpu, self.task, self.options)?;
        let mut answers = Vec::new();
        answerer.each(data, &self.parts[&part], |_, answer| {
            answers.push(answer);
            Ok(())
        })?;
        Ok(answers)
    }

    fn of_original(&self, part: Part) -> Result<Vec<Answer>> {
        if let Some(answers) = self.answers.borrow().get(&part) {
            return Ok(answers.clone());
        }
        let answers = self.answers(self.original, part)?;
        self.answers.borrow_mut().insert(part, answers.clone());
        Ok(answers)
    }

    /// The original's metric on the examples that decisions are taken on; `None` without data.
    fn metric_of_original(&self) -> Result<Option<f64>> {
        let Some(data) = self.data else { return Ok(None) };
        (self.progress)("measuring the original");
        if self.task == Task::Agree {
            return Ok(Some(1.0));
        }
        let judged = self.judge_all(data, &self.of_original(Part::Search)?, Part::Search)?;
        let (_, number) = judged.metric()?;
        Ok(Some(if number.unit == "%" { number.value / 100.0 } else { number.value }))
    }

    fn judge_all(&self, data: &dyn Dataset, answers: &[Answer], part: Part) -> Result<Judged> {
        let mut judged = Judged::new(self.task)?;
        for (&i, answer) in self.parts[&part].iter().zip(answers) {
            judged.add(|| format!("example {i}"), answer, data.target(i))?;
        }
        Ok(judged)
    }

    fn compare(&self, inner: &graph::Model, part: Part) -> Result<Option<Score>> {
        let Some(data) = self.data else { return Ok(None) };
        let of_original = self.of_original(part)?;
        let of_small = self.answers(&self.original.with_inner(inner.clone()), part)?;
        let distance = distance(&of_original, &of_small);
        let examples = of_small.len();
        if self.task == Task::Agree {
            let (value, lost) = agreement(&of_original, &of_small)?;
            return Ok(Some(Score {
                metric: "agreement".into(),
                original: 1.0,
                value,
                lost,
                examples,
                distance,
            }));
        }
        let before = self.judge_all(data, &of_original, part)?;
        let after = self.judge_all(data, &of_small, part)?;
        let ((metric, original), (_, value)) = (before.metric()?, after.metric()?);
        let change = after.difference(&before)?;
        let unit = if original.unit == "%" { 100.0 } else { 1.0 };
        let lost = (-change.high.unwrap_or(change.value) / unit, -change.low.unwrap_or(change.value) / unit);
        let (original, value) = (original.value / unit, value.value / unit);
        Ok(Some(Score { metric: metric.into(), original, value, lost, examples, distance }))
    }

    /// A score as the receipt gives it: shares in per cent, with intervals.
    fn quality(&self, score: Score) -> Quality {
        let share = self.task != Task::Similarity && !score.metric.starts_with("cosine");
        let (factor, unit, points) = if share { (100.0, "%", "points") } else { (1.0, "", "") };
        let interval = |value: f64| match share {
            true => {
                let hits = (value * score.examples as f64).round() as usize;
                let Interval { low, high, .. } = score::wilson(hits.min(score.examples), score.examples);
                Number::within(value, low, high, "").scaled(factor, unit)
            }
            false => Number::exact(value, unit),
        };
        Quality {
            before: interval(score.original),
            after: interval(score.value),
            lost: Number::within(score.loss(), score.lost.0, score.lost.1, "").scaled(factor, points),
            metric: score.metric,
            examples: score.examples,
            distance: score.distance,
        }
    }

    fn shares(&self) -> Option<Shares> {
        let of = |part| self.parts.get(&part).map_or(0, Vec::len);
        self.data.map(|data| Shares {
            data: data.describe(),
            calibration: self.calibration.len(),
            search: of(Part::Search),
            verify: of(Part::Verify),
            seed: SEED,
        })
    }

    fn speed(&self, small: &Model) -> Result<Option<Speed>> {
        let Some(data) = self.data else { return Ok(None) };
        let Some(&first) = self.parts[&Part::Verify].first() else { return Ok(None) };
        let input = [data.get(first)?.input];
        let before = Answerer::new(self.original, self.cpu, self.task, self.options)?;
        let after = Answerer::new(small, self.cpu, self.task, self.options)?;
        before.answers(&input)?;
        after.answers(&input)?;
        let mut failed = None;
        let mut run = |answerer: &Answerer| {
            if let Err(e) = answerer.answers(&input) {
                failed = Some(e);
            }
        };
        let run = RefCell::new(&mut run);
        let race = interleave(ROUNDS, || run.borrow_mut()(&before), || run.borrow_mut()(&after));
        if let Some(e) = failed {
            return Err(e);
        }
        let ms = |seconds: f64| Number::exact(seconds * 1e3, "ms");
        Ok(Some(Speed {
            before: ms(race.a.median),
            after: ms(race.b.median),
            faster: Number::within(race.ratio.median, race.ratio.p5, race.ratio.p95, "x"),
            threads: self.cpu.pool().threads(),
        }))
    }
}

impl Judge for DataJudge<'_> {
    fn calibration(
        &self,
        run: &mut dyn FnMut(Vec<(String, Datum)>) -> shrink::Result<()>,
    ) -> shrink::Result<()> {
        let Some(data) = self.data else { return Ok(()) };
        let feeder = crate::feed::Feeder::new(self.original, &self.options.feed).map_err(judged)?;
        for part in self.calibration.chunks(64) {
            let mut prepared = Vec::new();
            for &i in part {
                let input = data.get(i).map_err(|e| judged(e.into()))?.input;
                // Texts of a pair are read one by one where the task compares their vectors.
                let singles = match input {
                    Input::Pair(a, b) if self.task == Task::Similarity => {
                        vec![Input::Text(a), Input::Text(b)]
                    }
                    other => vec![other],
                };
                for input in &singles {
                    prepared.push(feeder.prepare(input).map_err(judged)?);
                }
            }
            for batch in feeder.batches(&prepared).map_err(judged)? {
                run(batch.arrays.into_iter().map(|(name, t)| (name, Datum::Tensor(t))).collect())?;
            }
        }
        Ok(())
    }

    fn can_calibrate(&self) -> bool {
        !self.calibration.is_empty()
    }

    fn score(&self, model: &graph::Model, part: Part) -> shrink::Result<Option<Score>> {
        self.compare(model, part).map_err(judged)
    }

    fn bytes_before(&self, original: &graph::Model) -> shrink::Result<usize> {
        match self.original.path().filter(|path| path.is_file()) {
            Some(file) => Ok(crate::inspect::bytes_of(file).map_err(judged)? as usize),
            None => self.bytes(original),
        }
    }

    fn bytes(&self, model: &graph::Model) -> shrink::Result<usize> {
        Ok(format::onnx::size(model)?)
    }

    fn progress(&self, what: &str) {
        (self.progress)(what);
    }
}

/// Mean squared distance of answers, relative to those of the original.
fn distance(before: &[Answer], after: &[Answer]) -> f64 {
    let of = |(a, b): (&Answer, &Answer)| {
        let pairs = a.outputs.iter().flatten().zip(b.outputs.iter().flatten());
        let (mut apart, mut norm) = (0f64, 0f64);
        for (x, y) in pairs {
            apart += f64::from(x - y).powi(2);
            norm += f64::from(*x).powi(2);
        }
        if norm > 0.0 { apart / norm } else { apart }
    };
    before.iter().zip(after).map(of).sum::<f64>() / before.len().max(1) as f64
}

/// How often both name the same class; for answers that are no classes, the mean cosine of the outputs.
fn agreement(before: &[Answer], after: &[Answer]) -> Result<(f64, (f64, f64))> {
    let classes = |answers: &[Answer]| answers.iter().map(Answer::class).collect::<Option<Vec<usize>>>();
    if let (Some(a), Some(b)) = (classes(before), classes(after)) {
        let Interval { value, low, high } = score::agreement(&a, &b)?;
        return Ok((value, (1.0 - high, 1.0 - low)));
    }
    let flat = |a: &Answer| a.outputs.concat();
    let cosines: Vec<f64> =
        before.iter().zip(after).map(|(a, b)| crate::answer::cosine(&flat(a), &flat(b))).collect();
    let mean =
        |rows: &[usize]| Some(rows.iter().map(|&i| cosines[i]).sum::<f64>() / rows.len().max(1) as f64);
    let Interval { value, low, high } = score::bootstrap(cosines.len(), SEED, mean)?;
    Ok((value, (1.0 - high, 1.0 - low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_proven_by_the_end_of_the_interval_or_says_what_it_takes() {
        let score = |loss: f64, high: f64| Score {
            metric: "top-1 accuracy".into(),
            original: 0.9,
            value: 0.9 - loss,
            lost: (2.0 * loss - high, high),
            examples: 100,
            distance: 0.0,
        };
        let proof = Proof::new(0.01, &score(0.002, 0.008));
        assert!(proof.holds && proof.examples_needed.is_none() && proof.words().starts_with("proven"));
        // Half the width is needed: four times the examples.
        let proof = Proof::new(0.01, &score(0.0, 0.02));
        assert!(!proof.holds);
        assert_eq!(proof.examples_needed, Some(400));
        assert!(proof.words().contains("about 400 examples"));
        let proof = Proof::new(0.01, &score(0.03, 0.05));
        assert!(!proof.holds && proof.examples_needed.is_none());
    }

    #[test]
    fn losses_are_points_or_per_cent() {
        assert_eq!("1%".parse(), Ok(Lose::Percent(1.0)));
        assert_eq!(" 0.5 ".parse(), Ok(Lose::Points(0.5)));
        for bad in ["", "%", "-1", "nan", "x%"] {
            assert!(bad.parse::<Lose>().is_err(), "{bad}");
        }
    }
}
