//! What lies before the head learns, too: weights are trained by gradients from the examples, until those that were held out
//! are answered no better.

mod answers;
mod contrast;
mod pairs;

use std::fmt;
use std::str::FromStr;

use graph::ValueId;
use kernel::Cpu;
use learn::data::{Dataset, split};
use learn::fit::{Fitted, Hold, Inputs, Lessons, Network, Progress, Recipe, Which, fit, lora, trainable};
use learn::head::Truth;
use serde::Serialize;

use crate::adapter::{Adapter, Factors};
use crate::answer::{Options, Task};
use crate::feed;
use crate::lessons::Training;
use crate::receipt::Number;
use crate::{Error, Model, Result};
pub(super) use answers::answers;
pub(super) use contrast::contrast;
pub(super) use pairs::{Scores, pairs};

/// Share of the examples that are held out.
const HELD_OUT: f64 = 0.1;
/// Most examples that are held out.
const MOST: usize = 1_000;
/// Fewest examples to tune on.
const LEAST: usize = 16;
/// Fewest examples of which some are held out when they are compared with each other.
pub(super) const FEW: usize = 200;
/// Times that each example is seen when nothing else is said.
const EPOCHS: usize = 3;
/// The rank of factors, when none is given, and what their product is multiplied by.
pub(super) const RANK: usize = 8;
const SCALE: f32 = 2.0;
/// What the names of the head's weights begin with.
const HEAD: &str = "head.";

/// Which weights are trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// All of products and convolutions, what is added to them, and the factors of norms; not tables of tokens.
    All,
    /// What is added to products, and the factors of norms (BitFit; Ben Zaken et al., 2022).
    Small,
    /// This last share of all weights, counted from the first layer to the last.
    Last(f64),
    /// Two factors of this rank beside each product's weight: see [`lora`].
    Lora(usize),
}

impl FromStr for Depth {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Depth, String> {
        let percent = text.strip_suffix('%').and_then(|percent| percent.trim().parse::<f64>().ok());
        match (text, percent) {
            ("all", _) => Ok(Depth::All),
            ("small", _) => Ok(Depth::Small),
            ("lora", _) => Ok(Depth::Lora(RANK)),
            (_, Some(percent)) if percent > 0.0 && percent <= 100.0 => Ok(Depth::Last(percent / 100.0)),
            _ => match text.strip_prefix("lora=").and_then(|rank| rank.parse().ok()) {
                Some(rank) if rank > 0 => Ok(Depth::Lora(rank)),
                _ => Err(format!(
                    "{text:?} does not say which weights; say all, small, lora, lora=16, or the last share, such as 50%"
                )),
            },
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Depth::All => f.write_str("all"),
            Depth::Small => f.write_str("small"),
            Depth::Last(share) => write!(f, "{:.0}%", 100.0 * share),
            Depth::Lora(rank) => write!(f, "lora={rank}"),
        }
    }
}

/// How weights before the head are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// Which.
    pub depth: Depth,
    /// Is it trained before there is a head, until the features tell the classes apart?
    pub contrast: bool,
    /// Times that each example is seen, at most; 3 when not given, and more often for few examples that are compared.
    pub epochs: Option<usize>,
    /// The greatest step, as a part of what weights measure; of factors that begin at 0, the step itself.
    pub rate: f32,
}

impl Tuning {
    fn recipe(&self, examples: usize) -> Recipe {
        let usual = if self.contrast { contrast::epochs(examples) } else { EPOCHS };
        let (epochs, rate) = (self.epochs.unwrap_or(usual), self.rate);
        let relative = !matches!(self.depth, Depth::Lora(_));
        // Losses on what is trained on do not say when to stop.
        let patience = if self.contrast { epochs } else { 2 };
        Recipe { epochs, rate, batch: 32, relative, warmup: 0.1, patience, ..Recipe::default() }
    }
}

/// What came of the training.
#[derive(Clone, Debug, Serialize)]
pub struct Tuned {
    /// Which weights were trained; none but a map of vectors when not given.
    pub depth: Option<Depth>,
    /// Was it before there was a head, until the features told the classes apart?
    pub contrast: bool,
    /// How many numbers these are.
    pub weights: usize,
    /// Examples that were trained on.
    pub examples: usize,
    /// Examples that were held out.
    pub held_out: usize,
    /// The loss on those, or on all when none are held out, before the training.
    pub before: f64,
    /// The same after the training.
    pub after: f64,
    /// Each epoch.
    pub epochs: Vec<Progress>,
    /// Seconds that it took.
    pub time: Number,
}

/// Positions to train on and to hold out, both in ascending order. Of few examples that are compared with each other none are
/// held out.
///
/// # Errors
/// When there are too few.
pub(super) fn shares(truth: &Truth, contrast: bool) -> Result<(Vec<usize>, Vec<usize>)> {
    let count = truth.rows();
    if contrast && count < FEW {
        return Ok(((0..count).collect(), Vec::new()));
    }
    if count < LEAST {
        return Err(Error::input(format!("{count} examples are too few for --tune; give {LEAST} or more")));
    }
    let held_out = HELD_OUT.min(MOST as f64 / count as f64);
    let classes = match truth {
        Truth::Classes { of, .. } => Some(of.as_slice()),
        _ => None,
    };
    let mut shares = split(count, &[held_out, 1.0 - held_out], crate::eval::SEED, classes)?.into_iter();
    let mut next = || {
        let mut share = shares.next().unwrap_or_default();
        share.sort_unstable();
        share
    };
    let (held_out, train) = (next(), next());
    Ok((train, held_out))
}

/// What is trained on: these rows of a data set, and the right answers to them.
pub(super) struct Examples<'a> {
    pub data: &'a dyn Dataset,
    pub rows: &'a [usize],
    pub truth: &'a Truth,
    /// Positions among the rows to train on, and to hold out.
    pub shares: (Vec<usize>, Vec<usize>),
    /// How much an example of each class counts; empty when all count the same.
    pub masses: Vec<f32>,
    /// A teacher's logits, row by row, when the answers are its own.
    pub logits: Option<Vec<f32>>,
    pub feed: feed::Options,
}

/// What came of a training.
pub(super) struct Trained {
    fitted: Fitted,
    /// How many numbers were trained.
    weights: usize,
    /// What was added to weights, when factors were trained.
    pub adapter: Option<Adapter>,
    seconds: f64,
}

impl Trained {
    pub fn told(self, tuning: &Tuning, examples: &Examples) -> Tuned {
        Tuned {
            depth: Some(tuning.depth),
            contrast: tuning.contrast,
            weights: self.weights,
            examples: examples.shares.0.len(),
            held_out: examples.shares.1.len(),
            before: self.fitted.before,
            after: self.fitted.after,
            epochs: self.fitted.epochs,
            time: Number::measured(self.seconds, "s"),
        }
    }
}

/// Adds to the graph what is to become small.
type AddLoss<'a> = dyn Fn(&mut graph::Graph) -> Result<ValueId> + 'a;
/// What the loss reads beside the examples at these positions, as named inputs.
type Beside<'a> = dyn Fn(&[usize]) -> Result<Inputs> + 'a;

/// What is to be learnt.
pub(super) struct Course<'a> {
    examples: &'a Examples<'a>,
    loss: Box<AddLoss<'a>>,
    beside: Box<Beside<'a>>,
    /// What has to be in one batch.
    batches: Batches,
}

/// What has to be in one batch.
#[derive(Clone, Copy, PartialEq)]
enum Batches {
    /// Nothing.
    Any,
    /// So many examples, which are compared with each other.
    Of(usize),
    /// Both texts of so many pairs. What the loss reads is then asked for texts: those of a pair are twice its position, and
    /// the one behind.
    OfPairs(usize),
}

/// Trains a model.
///
/// # Errors
/// When an operator between a weight and the loss has no gradient (the node is named), or an example cannot be read.
pub(super) fn train(
    model: &mut Model,
    tuning: &Tuning,
    course: &Course,
    cpu: &Cpu,
    progress: &dyn Fn(&str),
) -> Result<Trained> {
    let start = std::time::Instant::now();
    let examples = course.examples;
    let options = Options { feed: examples.feed.clone(), output: None };
    let rows = examples.rows.to_vec();
    let of = |task| Training::new(model, examples.data, rows, task, &options);
    let training = match course.batches {
        Batches::Any => of(Task::Classify)?,
        Batches::Of(together) => of(Task::Classify)?.together(together),
        Batches::OfPairs(together) => of(Task::Similarity)?.together(together).whole(),
    };
    let pupil = Pupil { course, training };
    let mut graph = model.inner().graph.clone();
    graph.infer()?;
    let loss = (course.loss)(&mut graph)?;
    let pairs = match tuning.depth {
        Depth::Lora(rank) => {
            let wanted = |name: &str| !name.starts_with(HEAD);
            lora::attach(&mut graph, rank, SCALE, crate::eval::SEED, wanted)?
        }
        _ => Vec::new(),
    };
    if matches!(tuning.depth, Depth::Lora(_)) && pairs.is_empty() {
        let what =
            "the model has no products with weights of f32 that factors could stand beside; say --tune all";
        return Err(Error::input(what));
    }
    let weights = chosen(&graph, tuning.depth, &pairs);
    if weights.is_empty() {
        return Err(Error::input("the model has no weights of f32 that could be trained; give the original"));
    }
    let mut network = Network::new(&graph, loss, loss, &weights, cpu)?;
    let recipe = tuning.recipe(pupil.len());
    let epochs = recipe.epochs;
    let mut watch = |p: &Progress| {
        progress(&format!(
            "tuning: epoch {} of {epochs}, loss {:.4}, held out {:.4}",
            p.epoch, p.loss, p.held_out
        ));
        true
    };
    progress("tuning");
    let fitted = fit(&mut network, &recipe, &pupil, None, &mut watch)?;
    let graph = &mut model.inner_mut().graph;
    let trained = |value: ValueId| network.weights().iter().find(|w| w.value == value).map(|w| &w.tensor);
    let mut adapter = Adapter::default();
    for pair in &pairs {
        // Factors that nothing depends on were not trained.
        let (Some(down), Some(up)) = (trained(pair.down), trained(pair.up)) else { continue };
        let Some(weight) = graph.constant(pair.weight) else { continue };
        let sum = lora::merged(weight, down, up, SCALE, pair.transposed)?;
        graph.set_constant(pair.weight, sum);
        let module = pair.name.strip_suffix(".weight").unwrap_or(&pair.name).to_owned();
        adapter.factors.push(Factors { module, down: down.clone(), up: up.clone(), scale: SCALE });
    }
    let factor = |value| pairs.iter().any(|pair| value == pair.down || value == pair.up);
    for weight in network.weights().iter().filter(|weight| !factor(weight.value)) {
        graph.set_constant(weight.value, weight.tensor.clone());
    }
    Ok(Trained {
        fitted,
        weights: network.weights().iter().map(|weight| weight.tensor.len()).sum(),
        adapter: (!adapter.factors.is_empty()).then_some(adapter),
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn chosen(graph: &graph::Graph, depth: Depth, pairs: &[lora::Pair]) -> Vec<(ValueId, Hold)> {
    let mut all = trainable(graph, if depth == Depth::Small { Which::Small } else { Which::All });
    match depth {
        Depth::Last(share) => drop(all.drain(..((1.0 - share) * all.len() as f64).round() as usize)),
        Depth::Lora(_) => all.retain(|(value, _)| {
            let of_head = graph.value(*value).name.starts_with(HEAD);
            of_head || pairs.iter().any(|pair| *value == pair.down || *value == pair.up)
        }),
        Depth::All | Depth::Small => {}
    }
    // Zeros are no pattern here: a weight that happens to be 0 may move.
    all.into_iter().map(|(value, _)| (value, Hold::Free)).collect()
}

struct Pupil<'a> {
    course: &'a Course<'a>,
    training: Training<'a>,
}

impl Pupil<'_> {
    /// Batches of the examples at these positions, with what the loss reads beside them.
    fn batches(&self, positions: &[usize], seed: Option<u64>) -> Result<Vec<(Inputs, usize)>> {
        let batches = self.training.batches(positions, seed)?.into_iter();
        let whole = batches.map(|(mut inputs, rows)| {
            let texts = if matches!(self.course.batches, Batches::OfPairs(_)) { 2 } else { 1 };
            let of = |row: usize| positions[row / texts] * texts + row % texts;
            let rows: Vec<usize> = rows.into_iter().map(of).collect();
            inputs.extend((self.course.beside)(&rows)?);
            Ok((inputs, rows.len() / texts))
        });
        whole.collect()
    }
}

impl Lessons for Pupil<'_> {
    fn len(&self) -> usize {
        self.course.examples.shares.0.len()
    }

    fn lesson(&self, examples: &[usize], seed: u64) -> learn::Result<Vec<(Inputs, usize)>> {
        let positions: Vec<usize> = examples.iter().map(|&i| self.course.examples.shares.0[i]).collect();
        self.batches(&positions, Some(seed)).map_err(told)
    }

    /// Those that are held out, or all when none are.
    fn exam(&self) -> learn::Result<Vec<(Inputs, usize)>> {
        let (train, held_out) = &self.course.examples.shares;
        let judges = if held_out.is_empty() { train } else { held_out };
        let parts = judges.chunks(64).map(|part| self.batches(part, None));
        parts.collect::<Result<Vec<_>>>().map(|parts| parts.concat()).map_err(told)
    }
}

fn told(error: Error) -> learn::Error {
    learn::Error::input(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_weights_are_said_in_a_word_or_a_share() {
        assert_eq!("all".parse(), Ok(Depth::All));
        assert_eq!("small".parse(), Ok(Depth::Small));
        assert_eq!("25%".parse(), Ok(Depth::Last(0.25)));
        assert_eq!("lora=4".parse(), Ok(Depth::Lora(4)));
        for bad in ["", "0%", "101%", "some", "NaN%", "5", "lora=0", "lora=x"] {
            assert!(bad.parse::<Depth>().unwrap_err().contains("50%"), "{bad}");
        }
        for depth in [Depth::All, Depth::Small, Depth::Last(0.5), Depth::Lora(RANK)] {
            assert_eq!(depth.to_string().parse(), Ok(depth));
        }
    }

    #[test]
    fn a_tenth_of_each_class_is_held_out() {
        let truth = Truth::Classes { of: (0..200).map(|i| i % 2).collect(), count: 2 };
        let (train, held_out) = shares(&truth, false).unwrap();
        assert_eq!((train.len(), held_out.len()), (180, 20));
        assert_eq!(held_out.iter().filter(|i| **i % 2 == 0).count(), 10);
        let mut all = [train, held_out].concat();
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
        assert!(shares(&Truth::Numbers(vec![0.0; 15]), false).is_err());
        let few = Truth::Classes { of: (0..16).map(|i| i % 2).collect(), count: 2 };
        assert_eq!(shares(&few, true).unwrap(), ((0..16).collect(), Vec::new()));
    }
}
