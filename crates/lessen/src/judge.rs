//! Judges models by the examples of a data set: how it is shared out, what both models answer, and how far apart that is.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use graph::Datum;
use learn::data::{Dataset, Target, split};
use learn::score::{self, Interval};
use meter::{Rounds, interleave};
use shrink::job::{Key, Store};
use shrink::walk::Example;
use shrink::{Judge, Part, Score};

use crate::answer::{Answer, Answerer, Options, Task};
use crate::eval::{Judged, SEED};
use crate::features::print;
use crate::kept;
use crate::lessons::{Training, singles};
use crate::made::Made;
use crate::measure::{Measure, Measured, is_share};
use crate::receipt::Number;
use crate::shrink::{Quality, Shares};
use crate::verify::{Answers, Verification};
use crate::{Cpu, Error, Model, Result, provenance};

/// Most examples that calibration looks at.
pub(crate) const CALIBRATION: usize = 256;
/// Examples made by lessen that decisions are taken on.
pub(crate) const DECIDING: usize = 256;
/// Share of the examples to train on, when there are no others.
const TRAINING: f64 = 0.4;
/// Most examples that the harm of each single weight is measured on.
pub(crate) const PROBE: usize = 64;
/// Real examples excite the last layers of a network more than those that lessen makes: ResNet-20's activations lie in
/// ranges up to 1.9 times as wide. This much for all of them halves the distance of the outputs.
const MARGIN: f32 = 1.25;
/// Runs of each model when their speed is compared: on a quiet machine few will do.
const ROUNDS: Rounds = Rounds { least: 12, time: Duration::from_secs(3), within: 0.02 };

fn judged(error: Error) -> shrink::Error {
    shrink::Error::Judge(Box::new(error))
}

/// Judges by the examples of a data set.
pub(crate) struct DataJudge<'a> {
    original: &'a Model,
    /// What decisions are taken on, and verified when [`Part::Verify`] is among the parts.
    data: Option<&'a dyn Dataset>,
    /// What calibration looks at.
    source: CalibrateOn<'a>,
    parts: HashMap<Part, Vec<usize>>,
    calibration: Vec<usize>,
    /// Examples of the data that calibration looks at as well, and that nothing else may therefore.
    seen: usize,
    training: Option<Training<'a>>,
    store: Option<Store>,
    task: Task,
    measure: &'a Measure,
    options: &'a Options,
    cpu: &'a Cpu,
    spill: Option<&'a Path>,
    /// When the search has to come to an end.
    until: Option<Instant>,
    progress: &'a dyn Fn(&str),
    /// The original's answers, made once.
    answers: RefCell<HashMap<Part, Vec<Answer>>>,
    /// The answers of the model that was verified last, and what came of them.
    verified: RefCell<Option<(Score, Vec<Answer>)>>,
}

/// What the search will do with examples.
#[derive(Clone, Copy)]
pub(crate) struct Needs<'a> {
    /// Most examples that calibration looks at, unless they are given.
    pub calibration: usize,
    /// Which these are.
    pub source: CalibrateOn<'a>,
    /// Examples to train on.
    pub training: TrainOn<'a>,
    /// The folder whose files hold what is carried from weight to weight; `None` is memory.
    pub spill: Option<&'a Path>,
    /// When it has to come to an end.
    pub until: Option<Instant>,
    /// The metric that what is lost is lost of.
    pub measure: &'a Measure,
}

impl Default for Needs<'_> {
    fn default() -> Self {
        Needs {
            calibration: CALIBRATION,
            source: CalibrateOn::Share,
            training: TrainOn::Nothing,
            spill: None,
            until: None,
            measure: &Measure::Usual,
        }
    }
}

/// Examples to calibrate on.
#[derive(Clone, Copy, Default)]
pub(crate) enum CalibrateOn<'a> {
    /// A share of the data.
    #[default]
    Share,
    /// Those that lessen made; without data, others of them are decided on.
    Made(&'a Made),
    /// All of another data set.
    Given(&'a dyn Dataset),
}

impl<'a> CalibrateOn<'a> {
    /// What they are of, unless it is the data.
    pub fn other(self) -> Option<&'a dyn Dataset> {
        match self {
            CalibrateOn::Share => None,
            CalibrateOn::Made(made) => Some(made),
            CalibrateOn::Given(given) => Some(given),
        }
    }

    /// What lessen made.
    pub fn made(self) -> Option<&'a Made> {
        match self {
            CalibrateOn::Made(made) => Some(made),
            _ => None,
        }
    }
}

/// Examples to train on.
#[derive(Clone, Copy, Default)]
pub(crate) enum TrainOn<'a> {
    /// Nothing is trained.
    #[default]
    Nothing,
    /// A share of the examples that all else is done with.
    Share,
    /// All examples of another data set.
    Other(&'a dyn Dataset),
}

/// The examples that are not among those given, in ascending order; those that cannot be read are for others to complain of.
fn unseen(data: &dyn Dataset, given: &dyn Dataset) -> Vec<usize> {
    let prints = |data: &dyn Dataset, i: usize| data.get(i).ok().map(|example| print(&example.input));
    let known: HashSet<[u8; 32]> = (0..given.len()).filter_map(|i| prints(given, i)).collect();
    (0..data.len()).filter(|&i| prints(data, i).is_none_or(|print| !known.contains(&print))).collect()
}

impl<'a> DataJudge<'a> {
    pub(crate) fn new(
        original: &'a Model,
        data: Option<&'a dyn Dataset>,
        task: Option<Task>,
        options: &'a Options,
        cpu: &'a Cpu,
        needs: Needs<'a>,
        progress: &'a dyn Fn(&str),
    ) -> Result<DataJudge<'a>> {
        let task = task.or_else(|| data.map(|d| Task::guess(original, d))).unwrap_or(Task::Agree);
        if task == Task::Agree && *needs.measure != Measure::Usual {
            return Err(Error::input(format!(
                "metric {} needs right answers to the examples",
                needs.measure
            )));
        }
        let (mut parts, mut calibration, mut training) = (HashMap::new(), Vec::new(), None);
        let mut seen = 0;
        if let Some(data) = data {
            let rows = match needs.source {
                CalibrateOn::Given(given) => unseen(data, given),
                _ => (0..data.len()).collect(),
            };
            let n = rows.len();
            seen = data.len() - n;
            if n < 8 {
                let but = if seen > 0 {
                    format!(", {seen} others being those to calibrate on")
                } else {
                    String::new()
                };
                return Err(Error::input(format!(
                    "{n} examples are too few to calibrate, decide and verify on{but}; give 8 or more"
                )));
            }
            let classes: Option<Vec<usize>> = rows
                .iter()
                .map(|&i| match data.target(i) {
                    Target::Class(class) => Some(class),
                    _ => None,
                })
                .collect();
            let own = matches!(needs.training, TrainOn::Share);
            let share = match (own, needs.source) {
                (true, _) => TRAINING,
                (false, CalibrateOn::Share) => (needs.calibration as f64 / n as f64).min(0.2),
                (false, _) => 0.0,
            };
            // What is trained on may not decide, and what decides may not prove.
            let verify = if own { 0.5 } else { (1.0 - share) / 2.0 };
            let fractions = [share, 1.0 - share - verify, verify];
            let shares = split(n, &fractions, SEED, classes.as_deref())?.into_iter();
            let of = |share: Vec<usize>| share.into_iter().map(|at| rows[at]).collect::<Vec<usize>>();
            let mut shares = shares.map(of);
            calibration = shares.next().unwrap_or_default();
            training = own.then(|| (data, calibration.clone()));
            calibration.truncate(needs.calibration);
            let search = shares.next().unwrap_or_default();
            parts.insert(Part::Probe, search.iter().copied().take(PROBE).collect());
            parts.insert(Part::Search, search);
            parts.insert(Part::Verify, shares.next().unwrap_or_default());
        }
        if let CalibrateOn::Given(given) = needs.source {
            calibration = (0..given.len()).collect();
        }
        if let Some(made) = needs.source.made() {
            let most = needs.calibration.min(made.len());
            calibration = (0..most).collect();
            if data.is_none() {
                let search: Vec<usize> = (most..made.len()).collect();
                parts.insert(Part::Probe, search.iter().copied().take(PROBE).collect());
                parts.insert(Part::Search, search);
            }
        }
        if let TrainOn::Other(other) = needs.training {
            training = Some((other, (0..other.len()).collect()));
        }
        let training =
            training.map(|(data, rows)| Training::new(original, data, rows, task, options)).transpose()?;
        let (answers, verified) = Default::default();
        Ok(DataJudge {
            original,
            data: data.or(needs.source.made().map(|made| made as &dyn Dataset)),
            source: needs.source,
            parts,
            calibration,
            seen,
            training,
            store: None,
            task,
            measure: needs.measure,
            options,
            cpu,
            spill: needs.spill,
            until: needs.until,
            progress,
            answers,
            verified,
        })
    }

    /// Keeps what was found in this store, and looks there first.
    pub(crate) fn keeping(self, store: Option<Store>) -> DataJudge<'a> {
        DataJudge { store, ..self }
    }

    /// What the model is for.
    pub(crate) fn task(&self) -> Task {
        self.task
    }

    /// What calibration looks at.
    fn calibrating(&self) -> Option<&'a dyn Dataset> {
        self.source.other().or(self.data)
    }

    fn answers(&self, model: &Model, part: Part) -> Result<Vec<Answer>> {
        let (Some(data), Some(rows)) = (self.data, self.parts.get(&part)) else { return Ok(Vec::new()) };
        let answerer = Answerer::new(model, self.cpu, self.task, self.options)?;
        let mut answers = Vec::new();
        answerer.each(data, rows, |_, answer| {
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
    pub(crate) fn metric_of_original(&self) -> Result<Option<f64>> {
        let Some(data) = self.data else { return Ok(None) };
        (self.progress)("measuring the original");
        if self.task == Task::Agree {
            return Ok(Some(1.0));
        }
        let number = self.measured(data, &self.of_original(Part::Search)?, Part::Search)?.value()?;
        Ok(Some(if number.unit == "%" { number.value / 100.0 } else { number.value }))
    }

    /// Names of the classes.
    fn names(&self, data: &dyn Dataset) -> Option<Vec<String>> {
        data.classes().map(<[String]>::to_vec).or_else(|| self.original.classes())
    }

    fn measured(&self, data: &dyn Dataset, answers: &[Answer], part: Part) -> Result<Measured> {
        let mut judged = Judged::new(self.task)?;
        for (&i, answer) in self.parts[&part].iter().zip(answers) {
            judged.add(|| format!("example {i}"), answer, data.target(i))?;
        }
        // Of so few examples perhaps none is of a class that the metric is of.
        let measure = if part == Part::Probe { &Measure::Usual } else { self.measure };
        measure.of(judged, self.names(data).as_deref())
    }

    fn compare(&self, inner: &graph::Model, part: Part) -> Result<Option<Score>> {
        let Some(data) = self.data.filter(|_| self.parts.contains_key(&part)) else { return Ok(None) };
        let of_small = self.answers(&self.original.with_inner(inner.clone()), part)?;
        let score = self.score_of(data, &of_small, part)?;
        if part == Part::Verify {
            *self.verified.borrow_mut() = Some((score.clone(), of_small));
        }
        Ok(Some(score))
    }

    fn score_of(&self, data: &dyn Dataset, of_small: &[Answer], part: Part) -> Result<Score> {
        let of_original = self.of_original(part)?;
        let distance = distance(&of_original, of_small);
        if self.task == Task::Agree {
            let examples = of_small.len();
            let (value, lost) = agreement(&of_original, of_small)?;
            return Ok(Score { metric: "agreement".into(), original: 1.0, value, lost, examples, distance });
        }
        let before = self.measured(data, &of_original, part)?;
        let after = self.measured(data, of_small, part)?;
        let (original, value) = (before.value()?, after.value()?);
        let change = after.difference(&before)?;
        let unit = if original.unit == "%" { 100.0 } else { 1.0 };
        let lost = (-change.high.unwrap_or(change.value) / unit, -change.low.unwrap_or(change.value) / unit);
        let (original, value) = (original.value / unit, value.value / unit);
        let (metric, examples) = (after.name.clone(), after.examples());
        Ok(Score { metric, original, value, lost, examples, distance })
    }

    /// What became of the answers of the model that got this score on [`Part::Verify`], and how likely it is that it
    /// loses no more than `bound`; `None` without data.
    pub(crate) fn verification(
        &self,
        score: &Score,
        small: &Model,
        bound: Option<f64>,
    ) -> Result<Option<(Verification, Option<f64>)>> {
        let Some(data) = self.data.filter(|_| self.parts.contains_key(&Part::Verify)) else {
            return Ok(None);
        };
        (self.progress)("looking at what changed for whom");
        let kept = self.verified.borrow_mut().take().filter(|(of, _)| of == score);
        let after = match kept {
            Some((_, answers)) => answers,
            None => self.answers(small, Part::Verify)?,
        };
        let before = self.of_original(Part::Verify)?;
        let names = self.names(data);
        let answers = Answers {
            task: self.task,
            data,
            rows: &self.parts[&Part::Verify],
            before: &before,
            after: &after,
            names: names.as_deref(),
            measure: self.measure,
        };
        let within = bound.map(|bound| answers.within(bound)).transpose()?.flatten();
        Ok(Some((answers.verify()?, within)))
    }

    /// A score as the receipt gives it: shares in per cent, with intervals.
    pub(crate) fn quality(&self, score: Score) -> Quality {
        let percent = self.task != Task::Similarity && !score.metric.starts_with("cosine");
        let (factor, unit, points) = if percent { (100.0, "%", "points") } else { (1.0, "", "") };
        let interval = |value: f64| match is_share(&score.metric) {
            true => {
                let hits = (value * score.examples as f64).round() as usize;
                let Interval { low, high, .. } = score::wilson(hits.min(score.examples), score.examples);
                Number::within(value, low, high, "").scaled(factor, unit)
            }
            false => Number::measured(value * factor, unit),
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

    pub(crate) fn shares(&self) -> Option<Shares> {
        let of = |part| self.parts.get(&part).map_or(0, Vec::len);
        self.data.map(|data| Shares {
            data: data.describe(),
            calibration_data: self.source.other().map(Dataset::describe),
            calibration: self.calibration.len(),
            seen: self.seen,
            training: self.training.as_ref().map_or(0, Training::len),
            training_data: self.training.as_ref().map(Training::describe),
            search: of(Part::Search),
            verify: of(Part::Verify),
            seed: SEED,
        })
    }

    /// See [`provenance::Provenance::answers_sha256`].
    pub(crate) fn answers_sha256(&self) -> Option<String> {
        let of = |part| self.parts.get(&part).map_or(&[][..], Vec::as_slice);
        let data = self.data?;
        let mut shares = vec![("calibration", self.calibrating().unwrap_or(data), &self.calibration[..])];
        shares.extend(self.training.as_ref().map(|t| ("training", t.data(), t.rows())));
        shares.extend([("search", data, of(Part::Search)), ("verify", data, of(Part::Verify))]);
        Some(provenance::answers(shares))
    }

    /// How fast both models are on an example, in turn.
    fn timing(&self, small: &Model) -> Result<Option<shrink::Speed>> {
        let Some(data) = self.data else { return Ok(None) };
        let rows = [Part::Verify, Part::Search].iter().find_map(|part| self.parts.get(part));
        let Some(&first) = rows.and_then(|rows| rows.first()) else { return Ok(None) };
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
        Ok(Some(shrink::Speed {
            seconds: (race.a.median, race.b.median),
            faster: race.ratio.median,
            interval: race.interval,
        }))
    }
}

impl Judge for DataJudge<'_> {
    fn calibration(
        &self,
        run: &mut dyn FnMut(Vec<(String, Datum)>) -> shrink::Result<()>,
    ) -> shrink::Result<()> {
        let Some(data) = self.calibrating() else { return Ok(()) };
        let feeder = crate::feed::Feeder::new(self.original, &self.options.feed).map_err(judged)?;
        for part in self.calibration.chunks(64) {
            let mut prepared = Vec::new();
            for &i in part {
                let input = data.get(i).map_err(|e| judged(e.into()))?.input;
                for input in &singles(input, self.task) {
                    prepared.push(feeder.prepare(input).map_err(judged)?);
                }
            }
            for batch in feeder.batches_of(&prepared, feeder.most()).map_err(judged)? {
                run(batch.arrays.into_iter().map(|(name, t)| (name, Datum::Tensor(t))).collect())?;
            }
        }
        Ok(())
    }

    fn can_calibrate(&self) -> bool {
        !self.calibration.is_empty()
    }

    fn margin(&self) -> f32 {
        if self.source.made().is_some() { MARGIN } else { 1.0 }
    }

    fn training(&self) -> usize {
        self.training.as_ref().map_or(0, Training::len)
    }

    fn lesson(&self, examples: &[usize], seed: Option<u64>) -> shrink::Result<Vec<(Example, usize)>> {
        let training = self.training.as_ref();
        let training = training.ok_or_else(|| judged(Error::input("there are no examples to train on")))?;
        training.lesson(examples, seed).map_err(judged)
    }

    fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    fn spill(&self) -> Option<&Path> {
        self.spill
    }

    fn kept_model(&self, key: &Key) -> Option<(graph::Model, f64)> {
        let bytes = self.store.as_ref()?.get(key).ok()??;
        let (number, file) = bytes.split_first_chunk::<8>()?;
        let model = format::onnx::read_bytes(file.to_vec().into()).ok()?;
        Some((model, f64::from_le_bytes(*number)))
    }

    fn keep_model(&self, key: &Key, model: &graph::Model, number: f64) {
        if let (Some(store), Ok(file)) = (&self.store, format::onnx::to_bytes(model)) {
            store.keep(key, &[&number.to_le_bytes()[..], &file].concat());
        }
    }

    fn score(&self, model: &graph::Model, part: Part) -> shrink::Result<Option<Score>> {
        // The answers of the last part are looked at again.
        let Some(store) = self.store.as_ref().filter(|_| part != Part::Verify) else {
            return self.compare(model, part).map_err(judged);
        };
        let key = Key::of(&[format!("score {part:?}").as_bytes(), &format::onnx::to_bytes(model)?]);
        if let Ok(Some(bytes)) = store.get(&key)
            && let Some(score) = kept::read(&bytes)
        {
            return Ok(Some(score));
        }
        let score = self.compare(model, part).map_err(judged)?;
        if let Some(score) = &score {
            store.keep(&key, &kept::write(score));
        }
        Ok(score)
    }

    fn speed(&self, model: &graph::Model) -> shrink::Result<Option<shrink::Speed>> {
        self.timing(&self.original.with_inner(model.clone())).map_err(judged)
    }

    fn out_of_time(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
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
