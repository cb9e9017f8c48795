//! Tuning by distillation: weights are trained by gradients until the changed model answers as the original does. No
//! labels are needed. Elements that are 0 stay 0. (Hinton, Vinyals and Dean, 2015.)

use std::cell::RefCell;

use graph::ops::softmax::{Kind, Softmax};
use graph::run::Session;
use graph::{DType, Dim, Graph, ValueId, tidy};
use learn::fit::{
    Checkpoints, Fitted, Hold, Inputs, Lessons, Loss, Network, Recipe, Which, fit, trainable, weighted,
};
use serde::{Deserialize, Serialize};

use crate::job::{Epochs, Key};
use crate::pass::Context;
use crate::{Error, Result};

use super::hints::hints;

/// One example in so many is held out, to say when to stop.
const EXAM: usize = 10;
/// Most examples that are held out.
const MOST_EXAM: usize = 512;
/// Most examples on which it is found out which values of two models are the same.
const HINTED: usize = 64;
/// Least examples to tune on.
const LEAST: usize = 16;

/// How a model is tuned, as a plan holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tune {
    /// Which weights move.
    #[serde(default)]
    pub weights: Which,
    /// How far answers are from the original's.
    pub loss: Loss,
    /// What the values between the model's blocks count, in which the changed model is to be near to the original as well,
    /// beside its answers; relative squares (SquareHead; Kurtic et al., 2023). 0 for the answers alone.
    #[serde(default)]
    pub hints: f32,
    /// How it is trained.
    #[serde(flatten)]
    pub recipe: Recipe,
    /// Epochs after which it was stopped because the time was over; the rates are those of all epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<usize>,
}

/// Tunes the graph. Gives the loss on examples that were held out, before and after, and the epochs.
///
/// # Errors
/// When there are too few examples, or an operator between a weight and the outputs has no gradient; names the node.
pub fn apply(graph: &mut Graph, tune: &Tune, cx: &Context) -> Result<Fitted> {
    let count = cx.judge.training();
    if count < LEAST {
        let what = format!(
            "{count} examples to tune on are too few; give {LEAST} or more with --data or --tune-data"
        );
        return Err(Error::Calibration(what));
    }
    if tune.loss == Loss::CrossEntropy {
        let what = "cross-entropy takes right answers, and a tuning has only the original's: say distil, relative or squared";
        return Err(Error::Plan(what.into()));
    }
    if !(tune.hints >= 0.0 && tune.hints.is_finite()) {
        return Err(Error::Plan(format!("hints must be 0 or greater, not {}", tune.hints)));
    }
    let pupil = Pupil::new(graph, tune, cx, count)?;
    let mut student = graph.clone();
    let mut losses = Vec::new();
    for (i, (output, name)) in pupil.outputs.iter().enumerate() {
        let output = *output;
        let fact = student.value(output).fact.clone();
        let known = fact.shape().and_then(|s| s.last()).and_then(Dim::size).is_some_and(|n| n > 1);
        // Targets are values that nothing makes: inputs beside those of the model.
        let target = student.add_input(name, fact)?;
        let loss = match tune.loss {
            Loss::Distil { .. } if !known => Loss::Relative,
            loss => loss,
        };
        losses.push((loss.add(&mut student, output, target)?, 1.0 / pupil.outputs.len() as f32));
        tracing::debug!(output = i, ?loss, "tuning");
    }
    let judged = weighted(&mut student, &losses)?;
    for (value, name) in &pupil.hints {
        let target = student.add_input(name, student.value(*value).fact.clone())?;
        let loss = Loss::Relative.add(&mut student, *value, target)?;
        losses.push((loss, tune.hints / pupil.hints.len() as f32));
    }
    let loss = weighted(&mut student, &losses)?;
    let weights: Vec<(ValueId, Hold)> = trainable(graph, tune.weights);
    if weights.is_empty() {
        return Err(Error::Plan("the model has no weights that could be tuned".into()));
    }
    let mut network = Network::new(&student, loss, judged, &weights, cx.cpu)?;
    let epochs = tune.recipe.epochs;
    let mut watch = |p: &learn::fit::Progress| {
        cx.progress(&format!(
            "tuning: epoch {} of {epochs}, loss {:.5}, held out {:.5}",
            p.epoch, p.loss, p.held_out
        ));
        tune.stop.is_none_or(|stop| p.epoch < stop) && !cx.judge.out_of_time()
    };
    cx.progress("tuning");
    let mut kept = match cx.judge.store() {
        Some(store) => Some(Epochs { store, key: key(graph, tune, cx, count)? }),
        None => None,
    };
    let checkpoints = kept.as_mut().map(|kept| kept as &mut dyn Checkpoints);
    let fitted = fit(&mut network, &tune.recipe, &pupil, checkpoints, &mut watch);
    if let Some(error) = pupil.failed.into_inner() {
        return Err(error);
    }
    let fitted = fitted?;
    for weight in network.weights() {
        graph.set_constant(weight.value, weight.tensor.clone());
    }
    Ok(fitted)
}

/// What a training depends on.
fn key(graph: &Graph, tune: &Tune, cx: &Context, count: usize) -> Result<Key> {
    let recipe = toml::to_string(tune).map_err(|e| Error::Plan(e.to_string()))?;
    let key = Key::of(&[
        b"tune",
        recipe.as_bytes(),
        &count.to_le_bytes(),
        format!("{:?}", cx.cpu.isa()).as_bytes(),
    ]);
    Ok(key.graph(cx.original).graph(graph))
}

/// The examples, with what the original answers.
struct Pupil<'a> {
    cx: &'a Context<'a>,
    /// The outputs of the changed graph that are compared, and the names of their targets.
    outputs: Vec<(ValueId, String)>,
    /// The same of values between blocks.
    hints: Vec<(ValueId, String)>,
    /// The original up to the same outputs, then values.
    teacher: Session,
    train: Vec<usize>,
    exam: Vec<usize>,
    /// What went wrong on the judge's side.
    failed: RefCell<Option<Error>>,
}

impl<'a> Pupil<'a> {
    fn new(graph: &Graph, tune: &Tune, cx: &'a Context<'a>, count: usize) -> Result<Pupil<'a>> {
        let mut teacher = cx.original.clone();
        if teacher.outputs.len() != graph.outputs.len() {
            return Err(Error::Plan("the changed model has not as many outputs as the original".into()));
        }
        let logits = matches!(tune.loss, Loss::Distil { .. });
        let (mut outputs, mut theirs) = (Vec::new(), Vec::new());
        for (&own, &original) in graph.outputs.iter().zip(&cx.original.outputs) {
            let fact = &graph.value(own).fact;
            if fact.dtype() != Some(DType::F32) || graph.constant(own).is_some() {
                continue;
            }
            let pair = (before_softmax(graph, own), before_softmax(cx.original, original));
            let (own, original) = match pair {
                (Some(own), Some(original)) if logits => (own, original),
                _ => (own, original),
            };
            outputs.push(own);
            theirs.push(original);
        }
        if outputs.is_empty() {
            return Err(Error::Plan("the model has no output of type f32 that could be learnt from".into()));
        }
        let mut order: Vec<usize> = (0..count).collect();
        learn::random::Random::new(tune.recipe.seed).shuffle(&mut order);
        let exam = order.split_off(count - (count / EXAM).clamp(1, MOST_EXAM));
        let mut compared = Vec::new();
        if tune.hints > 0.0 {
            let examples = cx.judge.lesson(&exam[..exam.len().min(HINTED)], None)?;
            let Some((examples, _)) = examples.first() else {
                return Err(Error::Calibration("there are no examples to compare the models on".into()));
            };
            for hint in hints(graph, cx.original, &outputs, examples, cx.cpu)? {
                theirs.push(hint.add(&mut teacher)?);
                compared.push(hint.own);
            }
        }
        tracing::debug!(hints = compared.len(), "tuning");
        teacher.outputs = theirs;
        tidy::run(&mut teacher, tidy::RUN, cx.cpu)?;
        let named = |values: Vec<ValueId>, like: &str| -> Vec<(ValueId, String)> {
            let name = |(i, value)| (value, graph.fresh_name(&format!("{like}.{i}")));
            values.into_iter().enumerate().map(name).collect()
        };
        let (outputs, hints) = (named(outputs, "target"), named(compared, "hint"));
        let teacher = Session::new(teacher, cx.cpu)?;
        Ok(Pupil { cx, outputs, hints, teacher, train: order, exam, failed: RefCell::default() })
    }

    /// Examples with the original's answers; in an exam without the values between blocks.
    fn batches(&self, examples: &[usize], seed: Option<u64>) -> Result<Vec<(Inputs, usize)>> {
        let mut batches = self.cx.judge.lesson(examples, seed)?;
        let (teacher, questions) = (&self.teacher, &batches);
        let answers = self.cx.cpu.pool().map(batches.len(), |i| {
            let named = questions[i].0.iter().map(|(name, datum)| (name.as_str(), datum.clone()));
            teacher.run(named.collect())
        });
        for ((inputs, _), answers) in batches.iter_mut().zip(answers) {
            let hints = if seed.is_some() { self.hints.as_slice() } else { &[] };
            let names = self.outputs.iter().chain(hints).map(|(_, name)| name.clone());
            inputs.extend(names.zip(answers?));
        }
        Ok(batches)
    }

    fn kept(&self, batches: Result<Vec<(Inputs, usize)>>) -> learn::Result<Vec<(Inputs, usize)>> {
        batches.map_err(|error| {
            let said = learn::Error::input(error.to_string());
            *self.failed.borrow_mut() = Some(error);
            said
        })
    }
}

/// What a softmax at the end reads.
fn before_softmax(graph: &Graph, output: ValueId) -> Option<ValueId> {
    let (_, node) = graph.producer(output)?;
    let softmax = node.op.as_any().downcast_ref::<Softmax>()?;
    matches!(softmax.kind, Kind::Soft | Kind::Log).then(|| node.input(0)).flatten()
}

impl Lessons for Pupil<'_> {
    fn len(&self) -> usize {
        self.train.len()
    }

    fn lesson(&self, examples: &[usize], seed: u64) -> learn::Result<Vec<(Inputs, usize)>> {
        let examples: Vec<usize> = examples.iter().map(|&i| self.train[i]).collect();
        self.kept(self.batches(&examples, Some(seed)))
    }

    fn exam(&self) -> learn::Result<Vec<(Inputs, usize)>> {
        let parts = self.exam.chunks(64).map(|part| self.batches(part, None));
        self.kept(parts.collect::<Result<Vec<_>>>().map(|parts| parts.concat()))
    }
}
