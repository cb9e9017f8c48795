//! From a goal to a model: choose for each weight, measure, give back what costs too much.

mod bits;
mod codes;
mod cuts;
mod forecast;
mod prepare;
mod ranks;
mod reach;
mod work;
mod zeros;

use std::path::Path;

use graph::Model;
use kernel::Cpu;

use crate::job::{Key, Store};
use crate::pass::{Change, Pass};
use crate::plan::Plan;
use crate::prepare::Preparations;
use crate::prune::pattern::Pattern;
use crate::prune::zeros::Rule;
use crate::quantize::coded::{Ranges, Rounding};
use crate::quantize::weight_only;
use crate::repair::tune::Tune;
use crate::walk::Example;
use crate::{Error, Result};
use bits::Harms;
pub use forecast::{Forecast, forecast};
use reach::Reach;
use work::{Made, Work};

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Goal {
    /// The file shall be at least this many times smaller.
    pub smaller: Option<f64>,
    /// The file shall have at most this many bytes.
    pub size: Option<usize>,
    /// A run shall be at least this many times faster, measured on this machine.
    pub faster: Option<f64>,
    /// The metric may fall by at most this much (in the metric's own unit: 0.01 is one point of accuracy).
    pub lose: Option<f64>,
    /// Look for the smallest file whose loss is within `lose`, though its arithmetic be slower than that of 8 bits.
    pub smallest: bool,
    /// Measure files of many sizes, not only the one that is asked for.
    pub frontier: bool,
    /// At least so many times fewer multiply-adds, by channels that go.
    pub fewer: Option<f64>,
    /// So many blocks are left out.
    pub without: usize,
    /// Zeros in the weights of all products.
    pub zeros: Option<Sparse>,
    /// The weights are trained to answer as the original does, after all else that changes the graph.
    pub tune: Option<Tune>,
    /// What makes the weights easier to put in few bits, last of all.
    pub prepare: Preparations,
    /// How weights of few bits go to their codes.
    pub rounding: Rounding,
    /// How the scales of weights of few bits are found.
    pub ranges: Ranges,
}

impl Goal {
    /// The most bytes that the file may have, when the original has so many.
    fn bytes(&self, before: usize) -> Option<usize> {
        let smaller = self.smaller.map(|times| (before as f64 / times) as usize);
        [smaller, self.size].into_iter().flatten().min()
    }
}

/// Zeros that are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sparse {
    /// The shape that they have.
    pub pattern: Pattern,
    /// The share of all elements that become 0; patterns such as 2:4 have their own.
    pub share: f64,
    /// Which elements go.
    pub rule: Rule,
    /// Are the others refitted by least squares?
    pub refit: bool,
    /// How many each weight gets.
    pub allocation: Allocation,
}

/// How zeros are shared out among weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// By the harm that is measured.
    #[default]
    Harm,
    /// By how many of a weight's elements, times what they read, are far greater than the others: it keeps more (OWL; Yin et
    /// al., *Outlier weighed layerwise sparsity*, 2024). Much faster.
    Outliers,
    /// The same share for each.
    Even,
}

/// Which held-out examples to judge on. None is an example of calibration, and those of [`Part::Verify`] are in no
/// other part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// A few of [`Part::Search`], to rank weights by the harm they do.
    Probe,
    /// Those that decisions are taken on.
    Search,
    /// Those that nothing was decided on: the numbers of the receipt.
    Verify,
}

/// How a model does against the original.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// What is measured: "top-1 accuracy", "Spearman correlation", "agreement".
    pub metric: String,
    /// The original's metric.
    pub original: f64,
    /// This model's metric.
    pub value: f64,
    /// 95 % interval of `original - value`, over the same examples.
    pub lost: (f64, f64),
    /// Number of examples.
    pub examples: usize,
    /// Mean squared distance of the outputs from the original's, relative to theirs.
    pub distance: f64,
}

impl Score {
    /// How much of the metric is lost; negative when it rose.
    pub fn loss(&self) -> f64 {
        self.original - self.value
    }
}

/// How fast a model is beside the original, both measured in turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Median seconds of a run: of the original and of the model.
    pub seconds: (f64, f64),
    /// How many times faster the model is: the median.
    pub faster: f64,
    /// 95 % interval of that.
    pub interval: (f64, f64),
}

/// What the search asks of its caller, who has the data.
pub trait Judge {
    /// Hands calibration examples to `run`, as named inputs of the model, batch by batch.
    ///
    /// # Errors
    /// When an example cannot be read, or `run` fails.
    fn calibration(&self, run: &mut dyn FnMut(Example) -> Result<()>) -> Result<()>;

    /// True when there are calibration examples.
    fn can_calibrate(&self) -> bool;

    /// How many times greater activations may become than those of the calibration examples: 1 for real ones.
    fn margin(&self) -> f32 {
        1.0
    }

    /// Number of examples that a model may be trained on; they are in no [`Part`].
    fn training(&self) -> usize {
        0
    }

    /// These of them as named inputs of the model, in batches, each with the number of its examples. With a seed they
    /// may be changed at random in ways that leave their meaning as it is.
    ///
    /// # Errors
    /// When an example cannot be read.
    fn lesson(&self, examples: &[usize], seed: Option<u64>) -> Result<Vec<(Example, usize)>> {
        let _ = seed;
        Err(Error::Calibration(format!(
            "there are no examples to train on; {} are asked for",
            examples.len()
        )))
    }

    /// Where what was found is kept until all is done, so that a run that was killed can go on.
    fn store(&self) -> Option<&Store> {
        None
    }

    /// The folder whose files hold what is carried from weight to weight; `None` is memory.
    fn spill(&self) -> Option<&Path> {
        None
    }

    /// A model that was kept under this key in an earlier run, and the number beside it.
    fn kept_model(&self, key: &Key) -> Option<(Model, f64)> {
        let _ = key;
        None
    }

    /// Keeps a model for another run, and a number beside it.
    fn keep_model(&self, key: &Key, model: &Model, number: f64) {
        let _ = (key, model, number);
    }

    /// Compares a model with the original on a part of the examples; `None` when there is nothing to judge on.
    ///
    /// # Errors
    /// When the model cannot be run.
    fn score(&self, model: &Model, part: Part) -> Result<Option<Score>>;

    /// How fast a run of the model is here beside one of the original; `None` when there is nothing to run on.
    ///
    /// # Errors
    /// When the model cannot be run.
    fn speed(&self, model: &Model) -> Result<Option<Speed>> {
        let _ = model;
        Ok(None)
    }

    /// Is the time over that the search may take? What is left to measure is then guessed or left out.
    fn out_of_time(&self) -> bool {
        false
    }

    /// Size of the original's file, in bytes; that of the model as it would be written when there is none.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn bytes_before(&self, original: &Model) -> Result<usize> {
        self.bytes(original)
    }

    /// Size of the model's file, in bytes.
    ///
    /// # Errors
    /// When the model cannot be written.
    fn bytes(&self, model: &Model) -> Result<usize>;

    /// Told what is being done, in a few words.
    fn progress(&self, what: &str) {
        let _ = what;
    }
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    /// The model.
    pub model: Model,
    /// What was done to each weight.
    pub plan: Plan,
    /// Names of the weights that were given back because the loss was too great, most harmful first.
    pub given_back: Vec<String>,
    /// How it does on examples that nothing was decided on.
    pub score: Option<Score>,
    /// How fast it is here beside the original.
    pub speed: Option<Speed>,
    /// Size of the file in bytes: before and after.
    pub bytes: (usize, usize),
    /// What the passes did, in order.
    pub changes: Vec<Change>,
    /// Files of other sizes, the smallest first; empty unless it was asked for.
    pub frontier: Vec<Point>,
    /// Why the goal is missed; empty when it is met.
    pub missed: Vec<String>,
}

/// A file that could be had.
#[derive(Clone, Debug)]
pub struct Point {
    /// What it is, in a word or two: "int8", "7x".
    pub name: String,
    /// Size of the file in bytes.
    pub bytes: usize,
    /// How it does on [`Part::Verify`].
    pub score: Option<Score>,
    /// How fast it is here beside the original.
    pub speed: Option<Speed>,
}

/// The least version of ONNX's operators that has a scale for each channel.
pub const MIN_OPSET: i64 = 13;

/// Shrinks a model: to 8 bits, and to fewer when it must become smaller than that makes it (the model must then name
/// version 21 of ONNX's operators).
///
/// # Errors
/// When the model cannot be run or changed, a weight is damaged, or the judge fails. A goal that is missed is no
/// error: see [`Outcome::missed`].
pub fn shrink(model: &Model, goal: &Goal, judge: &dyn Judge, cpu: &Cpu) -> Result<Outcome> {
    let before = judge.bytes_before(model)?;
    let mut work = Work::new(model, &[], judge, cpu)?;
    if goal.without > 0 {
        let what = format!("without {} blocks", goal.without);
        work.pass(&work.chosen(&what, |work| cuts::blocks(work, goal.without))?)?;
    }
    if let Some(fewer) = goal.fewer {
        let what = format!("{fewer} times fewer multiply-adds");
        work.pass(&work.chosen(&what, |work| cuts::fewer(work, fewer))?)?;
    }
    let mut slow = None;
    if let Some(faster) = goal.faster {
        // What is lost before training is not what is lost after it.
        let bound = goal.lose.filter(|_| goal.tune.is_none());
        (work, slow) = cuts::faster(work, faster, bound)?;
    }
    // Last, since the refit behind channels would fill them.
    if let Some(asked) = &goal.zeros {
        let what = format!("zeros {asked:?}");
        work.pass(&work.chosen(&what, |work| zeros::choose(work, asked).map(Pass::Zeros))?)?;
    }
    if let Some(tune) = &goal.tune {
        work.tune(tune)?;
    }
    let plain = (goal.prepare == Preparations::Measured).then(|| work.clone());
    work = prepare::prepare(work, goal, before)?;
    let done = work.passes.len();
    let mut found = Found::search(work, goal, before)?;
    // Preparations were measured in the bits of the model without them; now each has the bits that suit it.
    if let Some(plain) = plain.filter(|plain| plain.passes.len() < done && !judge.out_of_time()) {
        judge.progress("holding the prepared file against one that is not");
        let without = Found::search(plain, goal, before)?;
        if without.beats(&found, goal, before)? {
            found = without;
        }
    }
    let Found { work, made, frontier, hint } = found;
    let mut outcome = work.prove(before, goal, made)?;
    outcome.frontier = frontier;
    if !outcome.missed.is_empty() {
        outcome.missed.extend([slow, hint].into_iter().flatten());
    }
    Ok(outcome)
}

/// The bits of all weights that were found for a goal.
struct Found<'a> {
    work: Work<'a>,
    made: Made,
    frontier: Vec<Point>,
    hint: Option<String>,
}

impl<'a> Found<'a> {
    /// Puts the weights in 8 bits, and in fewer when the goal asks for that.
    fn search(mut work: Work<'a>, goal: &Goal, before: usize) -> Result<Found<'a>> {
        work.calibrate()?;
        let judge = work.judge;
        let mut made = work.eight_bits(goal.lose)?;
        let eight = judge.bytes(&made.model)?;
        let can_code = work.version >= weight_only::MIN_OPSET;
        let too_big = match goal.bytes(before) {
            Some(target) if target > 0 && eight > target => Some(target),
            _ => None,
        };
        let (mut frontier, mut hint) = (Vec::new(), None);
        if !can_code || (too_big.is_none() && !goal.smallest && !goal.frontier) {
            return Ok(Found { work, made, frontier, hint });
        }
        let harms = Harms::new(&work)?;
        let reach = Reach { work: &work, harms: &harms, goal };
        if goal.frontier {
            frontier = reach.frontier(before, &made.model)?;
        }
        if let Some(target) = too_big {
            made = reach.of_size(target)?;
            if let Some(pass) = harms.ranks(&work, target)?.filter(|_| !judge.out_of_time()) {
                judge.progress("trying products of smaller weights");
                if let Some((work, made)) = nearer(&work, &pass, target, goal, &made)? {
                    return Ok(Found { work, made, frontier, hint });
                }
            }
            hint = reach.nearest(&made.model, (target, eight), before)?;
        } else if let (true, Some(bound)) = (goal.smallest, goal.lose) {
            made = reach.smallest(bound, made)?;
        }
        drop(harms);
        Ok(Found { work, made, frontier, hint })
    }

    /// Is this file rather what the goal asks for? The size comes first, then how near the answers are to the
    /// original's.
    fn beats(&self, other: &Found, goal: &Goal, before: usize) -> Result<bool> {
        let judge = self.work.judge;
        let bytes = (judge.bytes(&self.made.model)?, judge.bytes(&other.made.model)?);
        let fits = |bytes| goal.bytes(before).is_none_or(|target| bytes <= target);
        if fits(bytes.0) != fits(bytes.1) {
            return Ok(fits(bytes.0));
        }
        if goal.smallest && bytes.0 != bytes.1 {
            return Ok(bytes.0 < bytes.1);
        }
        is_nearer(&self.work, &self.made, &other.made)
    }
}

/// The file of at most so many bytes after a pass more, when its answers are nearer to the original's than those of
/// `without`.
fn nearer<'a>(
    work: &Work<'a>,
    pass: &Pass,
    target: usize,
    goal: &Goal,
    without: &Made,
) -> Result<Option<(Work<'a>, Made)>> {
    let mut other = work.clone();
    other.pass(pass)?;
    other.calibrate()?;
    let made = Reach { work: &other, harms: &Harms::new(&other)?, goal }.of_size(target)?;
    let fits = work.judge.bytes(&made.model)? <= target;
    Ok((fits && is_nearer(work, &made, without)?).then_some((other, made)))
}

/// Are the answers of one model nearer to the original's than those of another? Not without data.
fn is_nearer(work: &Work, one: &Made, other: &Made) -> Result<bool> {
    Ok(matches!((work.distance(one)?, work.distance(other)?), (Some(one), Some(other)) if one < other))
}

/// Does to a model what a plan says; the goal is only held against what comes out. The same plan, model and data give
/// the same bytes.
///
/// # Errors
/// As [`shrink`]; [`crate::Error::Plan`] when the plan names weights that the model does not have, or what cannot be
/// done to them.
pub fn apply(model: &Model, plan: &Plan, goal: &Goal, judge: &dyn Judge, cpu: &Cpu) -> Result<Outcome> {
    let before = judge.bytes_before(model)?;
    let mut work = Work::new(model, &plan.passes, judge, cpu)?;
    work.calibrate()?;
    let choices = work.choices_of(plan)?;
    let made = work.make(&choices, plan.rounding, plan.ranges)?;
    work.prove(before, goal, made)
}
