//! Makes a model smaller and proves that it still does its job: data are split so that what is measured at the end
//! was seen by neither calibration nor search, and the result comes with a [`Receipt`].

use std::path::Path;
use std::time::{Duration, Instant};

use learn::data::Dataset;
use learn::fit::{Loss, Recipe, Which};
use meter::{Machine, Place, Stopwatch};
use serde::Serialize;
pub use shrink::prepare::Preparations;
pub use shrink::prune::pattern::Pattern;
pub use shrink::prune::zeros::Rule;
pub use shrink::quantize::coded::{Form, Ranges, Rounding};
use shrink::repair::tune::Tune;
pub use shrink::{Allocation, CalibrationData, Change, Choice, Goal, Plan, Sparse, Step};
use shrink::{Pass, Score};

use crate::answer::{Options, Task};
use crate::caveats::{Course, caveats};
use crate::eval::SEED;
use crate::judge::{CALIBRATION, CalibrateOn, DECIDING, DataJudge, Needs, TrainOn};
use crate::kept;
use crate::made::Made;
use crate::measure::Measure;
use crate::payback::Payback;
use crate::provenance::{self, Provenance};
use crate::receipt::{Memory, Number, Weighed};
use crate::storage::storage;
use crate::verify::Verification;
use crate::{Cpu, Error, Model, Result};

/// Most examples that calibration looks at where channels are cut, which refits many weights.
const CUTTING: usize = 1024;
/// What the scores of classes are divided by when they are learnt from.
const TEMPERATURE: f32 = 4.0;
/// What the values between blocks count beside the scores of classes. They say far more than the scores: on ResNet-56 with
/// half of its channels, a short training came twice as near with 1,000 as with 0, and no nearer with more.
const HINTS: f32 = 1000.0;
/// Models become this many times smaller by weights of 8 bits, however small they are.
const INT8: f64 = 3.5;

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
    /// Time of one run on the first of these examples, or on one that lessen made, measured here, both in turn; `None`
    /// without examples.
    pub speed: Option<Speed>,
    /// What became of the answers to these examples, beyond the metric; `None` without data.
    pub verification: Option<Verification>,
    /// The most memory that one run of each model holds, when known.
    pub memory: Option<Memory>,
    /// Where the bytes of both files are.
    pub weighed: Weighed,
    /// Hashes of all files, versions, seeds.
    pub provenance: Provenance,
    /// What the data are, or the examples that lessen made itself, and how they were shared out.
    pub data: Option<Shares>,
    /// What was done to the whole graph, in order.
    pub changes: Vec<Change>,
    /// What was done to each weight.
    pub plan: Plan,
    /// Files of other sizes that could be had, the smallest first, on the same examples as [`Receipt::quality`]; empty
    /// unless it was asked for.
    pub frontier: Vec<Point>,
    /// Weights that were given back to f32 because the loss was too great, most harmful first.
    pub given_back: Vec<String>,
    /// What has to be known beside the numbers: what was decided without looking at examples, and what they do not say.
    pub caveats: Vec<String>,
    /// The machine that measured.
    pub machine: Machine,
    /// Time that it all took.
    pub took: Number,
    /// Energy that it took, and after how many runs that is won back.
    pub payback: Payback,
}

/// A file that could be had.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// What it is: "int8", "7x".
    pub name: String,
    /// Its size.
    pub bytes: Number,
    /// How many times smaller than the original's file.
    pub smaller: Number,
    /// How it does.
    pub quality: Option<Quality>,
    /// How many times faster than the original a run of it is here.
    pub faster: Option<Number>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Asked {
    /// At least this many times smaller.
    pub smaller: Option<f64>,
    /// At most so many bytes.
    pub size: Option<usize>,
    /// At least this many times faster on this machine.
    pub faster: Option<f64>,
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
    /// How many these are more than there were.
    pub examples_more: Option<usize>,
    /// How likely it is, by these examples, that the loss is within what is allowed: from 0 to 1.
    pub probability: Option<f64>,
}

impl Receipt {
    /// Notes what was written, so that the result can be told by its hash.
    ///
    /// # Errors
    /// When a file of the result cannot be read.
    pub fn seal(&mut self, result: &Path) -> Result<()> {
        self.provenance.result = provenance::model(result)?;
        Ok(())
    }
}

impl Proof {
    fn new(bound: f64, score: &Score) -> Proof {
        let (loss, at_most) = (score.loss(), score.lost.1);
        let holds = at_most <= bound;
        // Intervals shrink with the square root of the number of examples.
        let times = ((at_most - loss) / (bound - loss)).powi(2);
        let needed = (score.examples as f64 * times).ceil();
        let possible = !holds && loss < bound && needed.is_finite();
        let examples_needed = possible.then_some(needed as usize);
        let examples_more = examples_needed.map(|n| n.saturating_sub(score.examples));
        Proof { bound, at_most, holds, examples_needed, examples_more, probability: None }
    }

    /// In a sentence.
    pub fn words(&self) -> String {
        let Proof { bound, at_most, .. } = self;
        match (self.holds, self.examples_needed.zip(self.examples_more)) {
            (true, _) => format!("proven: loses at most {bound:.4} (95 %: at most {at_most:.4})"),
            (false, Some((n, more))) => format!(
                "not proven: the loss may be up to {at_most:.4}, more than {bound:.4}; about {n} examples to verify on \
                 would settle it, {more} more than there were"
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
    /// How many times faster: median of the ratios of runs in turn, with its 95 % interval.
    pub faster: Number,
    /// Threads.
    pub threads: usize,
}

impl Speed {
    fn new(speed: &shrink::Speed, cpu: &Cpu) -> Speed {
        let ms = |seconds: f64| Number::measured(seconds * 1e3, "ms");
        let (before, after) = (ms(speed.seconds.0), ms(speed.seconds.1));
        Speed { before, after, faster: times_faster(speed), threads: cpu.pool().threads() }
    }

    /// How many times faster or slower, in words.
    pub fn words(&self) -> String {
        match self.faster.value {
            ratio if ratio > 0.0 && ratio < 1.0 => format!("{:.2} times slower", 1.0 / ratio),
            ratio => format!("{ratio:.2} times faster"),
        }
    }
}

fn times_faster(speed: &shrink::Speed) -> Number {
    Number::within(speed.faster, speed.interval.0, speed.interval.1, "x")
}

/// How the examples were shared out. No example is in two of calibration or training, search and verify.
#[derive(Clone, Debug, Serialize)]
pub struct Shares {
    /// What the data are; what lessen made itself when there were none.
    pub data: String,
    /// What calibration looked at, when that is other than the data.
    pub calibration_data: Option<String>,
    /// Examples that ranges of activations were taken from.
    pub calibration: usize,
    /// Examples of the data that are among those given to calibrate on, and that nothing was measured on therefore.
    pub seen: usize,
    /// Examples that weights were trained on. When they are of the same data, those of the calibration are among them.
    pub training: usize,
    /// What data those are.
    pub training_data: Option<String>,
    /// Examples that decisions were taken on.
    pub search: usize,
    /// Examples that the receipt's numbers are from; none when there were no data.
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

/// How weights are trained to answer as the original does.
#[derive(Clone, Copy, Default)]
pub struct Tuning<'a> {
    /// Examples to train on, which need no labels. When not given, part of the others are.
    pub data: Option<&'a dyn Dataset>,
    /// Times that each example is seen, at most.
    pub epochs: Option<usize>,
    /// The greatest step, as a part of what a weight measures.
    pub rate: Option<f32>,
    /// Only what is added to products, and the factors of norms.
    pub small: bool,
}

impl Tuning<'_> {
    /// The recipe: classes are learnt by their shares, all else by the outputs themselves. Text encoders take smaller
    /// steps than convolutions.
    fn tune(&self, model: &graph::Model, task: Task) -> Tune {
        let convolutional = model.graph.nodes().any(|(_, n)| n.kind() == "Conv");
        let usual = Recipe::default();
        let rate = if convolutional { 0.015 } else { 1e-3 };
        let (loss, hints) = match task {
            Task::Classify => (Loss::Distil { temperature: TEMPERATURE }, HINTS),
            Task::Multilabel | Task::Similarity | Task::Agree => (Loss::Relative, 0.0),
        };
        let (epochs, rate) = (self.epochs.unwrap_or(usual.epochs), self.rate.unwrap_or(rate));
        let recipe = Recipe { epochs, rate, relative: true, ..usual };
        let weights = if self.small { Which::Small } else { Which::All };
        Tune { weights, loss, hints, recipe, stop: None }
    }
}

/// What is asked for, and the data to prove it on.
#[derive(Default)]
pub struct Request<'a> {
    /// Examples. Without them only what needs none is done, unless lessen makes some, and nothing is proven.
    pub data: Option<&'a dyn Dataset>,
    /// lessen makes the examples that calibration looks at and decisions are taken on itself; only without data. A plan
    /// says that on its own.
    pub self_made: bool,
    /// Where they are, for the receipt.
    pub data_path: Option<&'a Path>,
    /// Examples that calibration looks at in the place of a share of the data; no others are measured on.
    pub calibrate_on: Option<&'a dyn Dataset>,
    /// Where they are, for the receipt.
    pub calibration_path: Option<&'a Path>,
    /// Where the examples of [`Tuning::data`] are, for the receipt.
    pub tune_path: Option<&'a Path>,
    /// A folder for what the search finds, so that it can go on there when it is killed; see [`kept::discard`].
    pub work: Option<&'a Path>,
    /// A folder in whose files what calibration carries from weight to weight is kept, in the place of memory; the files
    /// have no names and nothing of them stays.
    pub spill: Option<&'a Path>,
    /// The file must become at least this many times smaller.
    pub smaller: Option<f64>,
    /// The file may have at most so many bytes.
    pub size: Option<usize>,
    /// A run must be at least this many times faster, measured on this machine.
    pub faster: Option<f64>,
    /// At most this much may be lost.
    pub lose: Option<Lose>,
    /// Of which metric.
    pub measure: Measure,
    /// Look for the smallest file whose loss is within `lose`, though its arithmetic be slower than that of 8 bits.
    pub smallest: bool,
    /// Measure files of many sizes, not only the one that is asked for.
    pub frontier: bool,
    /// At least so many times fewer multiply-adds, by channels, neurons and heads that go.
    pub fewer: Option<f64>,
    /// So many blocks are left out.
    pub without: usize,
    /// Zeros in the weights of all products.
    pub zeros: Option<Sparse>,
    /// Weights are trained to answer as the original does.
    pub tune: Option<Tuning<'a>>,
    /// What makes the weights easier to put in few bits, after all else that changes the graph.
    pub prepare: Preparations,
    /// Time that the search may take; what is left to measure then is guessed or left out.
    pub time: Option<Duration>,
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
    /// Where the machine stands, for what its energy costs.
    pub place: Place,
}

impl Request<'_> {
    /// Fails when there are data, and examples are to be made as well.
    pub(crate) fn check_examples(&self) -> Result<()> {
        if self.self_made && self.data.is_some() {
            return Err(Error::input(
                "there are data, and examples made by lessen are asked for as well; leave out one of them",
            ));
        }
        if self.calibrate_on.is_some() && (self.self_made || self.data.is_none()) {
            return Err(Error::input(
                "examples to calibrate on stand beside data to measure on, and beside none that lessen makes",
            ));
        }
        Ok(())
    }
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
    let Request {
        data,
        data_path,
        smaller,
        size,
        faster,
        lose,
        rounding,
        ranges,
        plan,
        task,
        ref options,
        ..
    } = *request;
    let watch = Stopwatch::start();
    let energy = meter::energy::Meter::start(Path::new(meter::energy::SENSORS), Duration::ZERO);
    let until = request.time.map(|time| Instant::now() + time);
    let few_bits = match plan {
        Some(plan) => plan.steps.iter().any(|s| s.choice.bits().is_some()),
        None => {
            let much = smaller.is_some_and(|times| times > INT8);
            much || size.is_some() || request.smallest || request.frontier
        }
    };
    let original = ready(model, few_bits, plan.and_then(|plan| plan.opset))?;
    let trains = match plan {
        Some(plan) => plan.passes.iter().any(|pass| matches!(pass, Pass::Tune(_))),
        None => request.tune.is_some(),
    };
    let calibration = match plan {
        Some(plan) => plan.calibration,
        None => request.fewer.map(|_| CUTTING),
    };
    let training = match request.tune.and_then(|tune| tune.data) {
        Some(data) => TrainOn::Other(data),
        None if trains => TrainOn::Share,
        None => TrainOn::Nothing,
    };
    let most = calibration.unwrap_or(CALIBRATION);
    let given = request.calibrate_on.map(|_| CalibrationData::Given);
    let calibration_data = match plan {
        Some(plan) => given.or(plan.calibration_data),
        None => given.or(request.self_made.then_some(CalibrationData::SelfMade)),
    };
    request.check_examples()?;
    let made = calibration_data == Some(CalibrationData::SelfMade);
    let made = made.then(|| Made::new(&original, most + DECIDING)).transpose()?;
    let source = match (calibration_data, request.calibrate_on, &made) {
        (Some(CalibrationData::Given), None, _) => {
            return Err(Error::input(
                "the plan is one of calibration on examples beside the data; give them, too, with --calibrate-on",
            ));
        }
        (_, Some(given), _) => CalibrateOn::Given(given),
        (_, None, Some(made)) => CalibrateOn::Made(made),
        (_, None, None) => CalibrateOn::Share,
    };
    if made.is_some() && data.is_none() && task.is_some_and(|task| task != Task::Agree) {
        return Err(Error::input(
            "examples made by lessen have no right answers: the task can only be agree without data",
        ));
    }
    let needs =
        Needs { calibration: most, source, training, spill: request.spill, until, measure: &request.measure };
    if needs.spill.is_some() {
        // A folder that does not serve is said before work begins.
        shrink::Examples::new(needs.spill)?;
    }
    let depends = format!(
        "{task:?} {options:?} {:?} {trains} {calibration:?} {calibration_data:?} {}",
        cpu.isa(),
        request.measure
    );
    let kept = request.work.map(|folder| kept::Work::open(folder, &original, request, &depends));
    let kept = kept.transpose()?.flatten();
    let store = kept.as_ref().and_then(kept::Work::store);
    // A damaged weight is named before its answers are.
    shrink::weights::weights(&original.inner().graph).map_err(back)?;
    let judge = DataJudge::new(&original, data, task, options, cpu, needs, progress)?.keeping(store);
    let metric = judge.metric_of_original()?;
    let allowed = lose.map(|lose| match lose {
        Lose::Points(points) => points / 100.0,
        Lose::Percent(percent) => percent / 100.0 * metric.unwrap_or(1.0).abs(),
    });
    let goal = Goal {
        smaller,
        size,
        faster,
        lose: allowed,
        smallest: request.smallest,
        frontier: request.frontier,
        fewer: request.fewer,
        without: request.without,
        zeros: request.zeros,
        tune: request.tune.map(|tune| tune.tune(original.inner(), judge.task())),
        prepare: request.prepare.clone(),
        rounding,
        ranges,
    };
    let outcome = match plan {
        Some(plan) => shrink::apply(original.inner(), plan, &goal, &judge, cpu),
        None => shrink::shrink(original.inner(), &goal, &judge, cpu),
    };
    let outcome = outcome.map_err(back)?;
    let out_of_time = shrink::Judge::out_of_time(&judge);
    let before = outcome.bytes.0 as f64;
    let point = |point: shrink::Point| Point {
        name: point.name,
        bytes: Number::exact(point.bytes as f64, "bytes"),
        smaller: Number::exact(before / point.bytes.max(1) as f64, "x"),
        quality: point.score.map(|score| judge.quality(score)),
        faster: point.speed.as_ref().map(times_faster),
    };
    let frontier = outcome.frontier.into_iter().map(point).collect();
    let mut proof = allowed.zip(outcome.score.as_ref()).map(|(bound, score)| Proof::new(bound, score));
    let small = model.with_inner(outcome.model);
    let mut verification = None;
    if let Some(score) = &outcome.score
        && let Some((found, within)) = judge.verification(score, &small, allowed)?
    {
        verification = Some(found);
        proof = proof.map(|proof| Proof { probability: within, ..proof });
    }
    let weighed = Weighed {
        before: storage(&original.inner().graph, outcome.bytes.0 as u64).unwrap_or_default(),
        after: storage(&small.inner().graph, outcome.bytes.1 as u64).unwrap_or_default(),
    };
    let provenance = Provenance {
        original: model.path().map(provenance::model).transpose()?.unwrap_or_default(),
        result: Vec::new(),
        data: data_path.map(provenance::content).transpose()?,
        calibration: request.calibration_path.map(provenance::content).transpose()?,
        training: request.tune_path.map(provenance::content).transpose()?,
        answers_sha256: judge.answers_sha256(),
        opset: small.inner().opsets.get("").copied().unwrap_or_default(),
        isa: format!("{:?}", cpu.isa()).to_lowercase(),
        seed: SEED,
    };
    let made = made.as_ref();
    let course = Course { plan: &outcome.plan, data: data.is_some(), made, task: judge.task(), out_of_time };
    let caveats = caveats(&course);
    let speed = outcome.speed.map(|speed| Speed::new(&speed, cpu));
    let energy = energy.stop(&meter::energy::processor(&Machine::this()));
    let receipt = Receipt {
        lessen: env!("CARGO_PKG_VERSION"),
        original: model.path().map_or_else(String::new, |p| p.display().to_string()),
        asked: Asked { smaller, size, faster, lose: allowed },
        met: outcome.missed.is_empty(),
        missed: outcome.missed,
        bytes_before: Number::exact(outcome.bytes.0 as f64, "bytes"),
        bytes_after: Number::exact(outcome.bytes.1 as f64, "bytes"),
        smaller: Number::exact(outcome.bytes.0 as f64 / outcome.bytes.1.max(1) as f64, "x"),
        proof,
        quality: outcome.score.map(|score| judge.quality(score)),
        payback: Payback::new(&energy, speed.as_ref(), &request.place),
        speed,
        verification,
        memory: estimated(&original, &small, cpu),
        weighed,
        provenance,
        data: judge.shares(),
        changes: outcome.changes,
        plan: Plan {
            opset: original.inner().opsets.get("").copied(),
            calibration,
            calibration_data,
            ..outcome.plan
        },
        frontier,
        given_back: outcome.given_back,
        caveats,
        machine: Machine::this(),
        took: Number::measured(watch.seconds(), "s"),
    };
    Ok((small, receipt))
}

/// The model with the version of ONNX's operators that few bits, or 8 bits, take, or a later one that is asked for.
///
/// # Errors
/// When it cannot be raised to that version.
pub(crate) fn ready(model: &Model, few_bits: bool, opset: Option<i64>) -> Result<Model> {
    let mut original = model.inner().clone();
    let least = if few_bits { shrink::quantize::weight_only::MIN_OPSET } else { shrink::search::MIN_OPSET };
    let version = format::onnx::needed(&original).max(least).max(opset.unwrap_or(0));
    format::onnx::upgrade(&mut original, version)?;
    Ok(model.with_inner(original))
}

/// Weights and the activations alive at once, worked out from the shapes; `None` when these are not known.
fn estimated(original: &Model, small: &Model, cpu: &Cpu) -> Option<Memory> {
    let of = |model: &Model| {
        let graph = &model.inner().graph;
        let constants =
            graph.values().filter_map(|(_, v)| v.constant.as_ref()).map(|t| t.bytes().len() as u64);
        let activations = crate::inspect::cost(graph, &[], cpu).ok()?.peak_activation_bytes;
        Some(Number::estimated((constants.sum::<u64>() + activations) as f64, "bytes"))
    };
    Some(Memory { before: of(original)?, after: of(small)? })
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
        assert_eq!(proof.examples_more, Some(300));
        assert!(proof.words().contains("about 400 examples") && proof.words().contains("300 more"));
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
