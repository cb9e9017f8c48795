//! From a goal to a model: choose for each weight, measure, give back what costs too much.

mod bits;

use std::collections::HashSet;

use graph::op::WeightKind;
use graph::{Graph, Model, tidy};
use kernel::Cpu;

use crate::calibrate::{Stats, calibrate};
use crate::lean;
use crate::plan::{Choice, Plan, Step};
use crate::quantize::coded::{Ranges, Rounding};
use crate::quantize::{embedding, matmul_dynamic, qdq, weight_only};
use crate::walk::Example;
use crate::weights::{Weight, is_product, weights};
use crate::{Context, Error, Result};
use bits::Codes;

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Goal {
    /// The file shall be at least this many times smaller.
    pub smaller: Option<f64>,
    /// The metric may fall by at most this much (in the metric's own unit: 0.01 is one point of accuracy).
    pub lose: Option<f64>,
    /// How weights of few bits go to their codes.
    pub rounding: Rounding,
    /// How the scales of weights of few bits are found.
    pub ranges: Ranges,
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

/// What the search asks of its caller, who has the data.
pub trait Judge {
    /// Hands calibration examples to `run`, as named inputs of the model, batch by batch.
    ///
    /// # Errors
    /// When an example cannot be read, or `run` fails.
    fn calibration(&self, run: &mut dyn FnMut(Example) -> Result<()>) -> Result<()>;

    /// True when there are calibration examples.
    fn can_calibrate(&self) -> bool;

    /// Compares a model with the original on a part of the examples; `None` when there is nothing to judge on.
    ///
    /// # Errors
    /// When the model cannot be run.
    fn score(&self, model: &Model, part: Part) -> Result<Option<Score>>;

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
    /// Size of the file in bytes: before and after.
    pub bytes: (usize, usize),
    /// Why the goal is missed; empty when it is met.
    pub missed: Vec<String>,
}

/// The least version of ONNX's operators that has a scale for each channel.
pub const MIN_OPSET: i64 = 13;

/// Names of values and nodes are kept unless they make up more than this part of the file: one in a hundred.
const NAMES: usize = 100;

/// Shrinks a model: to 8 bits, and to fewer when it must become smaller than that makes it (the model must then name
/// version 21 of ONNX's operators).
///
/// # Errors
/// When the model cannot be run or changed, a weight is damaged, or the judge fails. A goal that is missed is no
/// error: see [`Outcome::missed`].
pub fn shrink(model: &Model, goal: &Goal, judge: &dyn Judge, cpu: &Cpu) -> Result<Outcome> {
    let before = judge.bytes_before(model)?;
    let work = Work::new(model, judge, cpu)?;
    let mut choices = work.defaults();
    let mut made = work.build(&choices, &Codes::default())?;
    let mut given_back = Vec::new();
    if let Some(bound) = goal.lose
        && judge.score(&made.0, Part::Search)?.is_some_and(|score| score.loss() > bound)
    {
        judge.progress("the loss is too great: looking for the weights that hurt");
        (choices, given_back) = work.give_back(&choices, bound)?;
        made = work.build(&choices, &Codes::default())?;
    }
    let (mut model, mut plan) = (work.finish(made.0)?, made.1);
    let target = goal.smaller.map(|smaller| (before as f64 / smaller) as usize);
    if let Some(target) = target.filter(|&target| work.version >= weight_only::MIN_OPSET && target > 0)
        && judge.bytes(&model)? > target
    {
        given_back.clear();
        let choices = bits::choose(&work, target)?;
        (model, plan) = work.make(&choices, goal.rounding, goal.ranges)?;
    }
    work.prove(before, goal, model, plan, given_back)
}

/// Does to a model what a plan says; the goal is only held against what comes out. The same plan, model and data give
/// the same bytes.
///
/// # Errors
/// As [`shrink`]; [`Error::Plan`] when the plan names weights that the model does not have, or what cannot be done to
/// them.
pub fn apply(model: &Model, plan: &Plan, goal: &Goal, judge: &dyn Judge, cpu: &Cpu) -> Result<Outcome> {
    let before = judge.bytes_before(model)?;
    let work = Work::new(model, judge, cpu)?;
    let choices = work.choices_of(plan)?;
    let (model, plan) = work.make(&choices, plan.rounding, plan.ranges)?;
    work.prove(before, goal, model, plan, Vec::new())
}

struct Work<'a> {
    base: Model,
    weights: Vec<Weight>,
    stats: Stats,
    judge: &'a dyn Judge,
    version: i64,
    cpu: &'a Cpu,
}

impl<'a> Work<'a> {
    fn new(model: &Model, judge: &'a dyn Judge, cpu: &'a Cpu) -> Result<Work<'a>> {
        let version = model.opsets.get("").copied().unwrap_or(MIN_OPSET);
        if version < MIN_OPSET {
            let what = format!("the model uses version {version} of ONNX's operators; {MIN_OPSET} is needed");
            return Err(Error::Graph(graph::Error::Unsupported(what)));
        }
        let mut base = model.clone();
        tidy::run(&mut base.graph, tidy::PORTABLE, cpu)?;
        if lean::biases(&mut base.graph)? > 0 {
            tidy::run(&mut base.graph, tidy::PORTABLE, cpu)?;
        }
        let weights = weights(&base.graph)?;
        let mut work = Work { base, weights, stats: Stats::new(), judge, version, cpu };
        let products: Vec<&Weight> = work.weights.iter().filter(|w| work.is_static(w)).collect();
        if judge.can_calibrate() && !products.is_empty() {
            judge.progress("calibrating");
            let wanted = qdq::values(&work.base.graph, &products);
            work.stats = calibrate(&work.base.graph, &wanted, judge, cpu)?;
        }
        Ok(work)
    }

    fn context(&self) -> Context<'_> {
        Context { judge: self.judge, cpu: self.cpu }
    }

    /// Products that get a fixed grid for their activations: convolutions, and the products of models that have
    /// any (a classifier's last layer). In models without convolutions, such as text encoders, activations have
    /// outliers that a fixed grid cannot hold.
    fn is_static(&self, weight: &Weight) -> bool {
        let convolutional = self.weights.iter().any(|w| w.used.kind == WeightKind::Conv);
        is_product(weight.used.kind) && convolutional && weight.used.input == 1
    }

    fn defaults(&self) -> Vec<Choice> {
        let choose = |w: &Weight| match w.used.kind {
            _ if self.is_static(w) && self.reached(w) => Choice::Int8Static,
            WeightKind::MatMul if matmul_dynamic::fits(&self.base.graph, w) => Choice::Int8Dynamic,
            WeightKind::Embedding if embedding::fits(&self.base.graph, w) => Choice::Int8Rows,
            _ => Choice::Keep,
        };
        self.weights.iter().map(choose).collect()
    }

    /// Did calibration see what the product reads?
    fn reached(&self, weight: &Weight) -> bool {
        let input = self.base.graph.node(weight.node).and_then(|n| n.input(0));
        input.is_some_and(|x| self.stats.contains_key(&x))
    }

    /// What a plan says of each weight. Weights that it does not name are kept.
    fn choices_of(&self, plan: &Plan) -> Result<Vec<Choice>> {
        let mut choices = vec![Choice::Keep; self.weights.len()];
        for step in &plan.steps {
            let name = |w: &Weight| &self.base.graph.value(w.value).name;
            let at = self.weights.iter().position(|w| w.name == step.node && *name(w) == step.weight);
            let Some(at) = at else {
                let what = format!("the model has no weight {:?} at node {:?}", step.weight, step.node);
                return Err(Error::Plan(what));
            };
            let weight = &self.weights[at];
            let fits = match step.choice {
                Choice::Keep => true,
                Choice::Int8Static => self.is_static(weight) && self.reached(weight),
                Choice::Int8Dynamic => matmul_dynamic::fits(&self.base.graph, weight),
                Choice::Int8Rows => embedding::fits(&self.base.graph, weight),
                Choice::Bits(_) => self.version >= weight_only::MIN_OPSET,
            };
            if !fits {
                let what =
                    format!("weight {:?} at node {:?} cannot be {}", step.weight, step.node, step.choice);
                return Err(Error::Plan(what));
            }
            choices[at] = step.choice;
        }
        Ok(choices)
    }

    /// The model as it is written, with these choices.
    fn make(&self, choices: &[Choice], rounding: Rounding, ranges: Ranges) -> Result<(Model, Plan)> {
        let codes = bits::code(self, choices, rounding, ranges)?;
        let (model, plan) = self.build(choices, &codes)?;
        Ok((self.finish(model)?, Plan { rounding, ranges, ..plan }))
    }

    /// Measures what was made, and holds it against the goal.
    fn prove(
        &self,
        before: usize,
        goal: &Goal,
        model: Model,
        plan: Plan,
        given_back: Vec<String>,
    ) -> Result<Outcome> {
        self.judge.progress("measuring on examples that nothing was decided on");
        let score = self.judge.score(&model, Part::Verify)?;
        let after = self.judge.bytes(&model)?;
        let mut missed = Vec::new();
        match (goal.lose, &score) {
            (Some(_), None) => {
                missed.push("the loss cannot be measured without data; give some with --data".to_string());
            }
            (Some(bound), Some(score)) if score.loss() > bound => missed.push(format!(
                "{} falls by {:.4} on {} held-out examples, more than {bound:.4}",
                score.metric,
                score.loss(),
                score.examples
            )),
            _ => {}
        }
        let ratio = before as f64 / after.max(1) as f64;
        if let Some(smaller) = goal.smaller.filter(|&s| ratio < s) {
            missed.push(format!("the file becomes {ratio:.2} times smaller, not {smaller}"));
        }
        Ok(Outcome { model, plan, given_back, score, bytes: (before, after), missed })
    }

    fn build(&self, choices: &[Choice], codes: &Codes) -> Result<(Model, Plan)> {
        let mut model = self.base.clone();
        let graph: &mut Graph = &mut model.graph;
        let with = |choice| -> Vec<&Weight> {
            self.weights.iter().zip(choices).filter(|(_, c)| **c == choice).map(|(w, _)| w).collect()
        };
        let mut errors = qdq::rewrite(graph, &with(Choice::Int8Static), &self.stats, self.version)?;
        let mut shared = matmul_dynamic::Shared::default();
        for weight in with(Choice::Int8Dynamic) {
            errors.insert(weight.node, matmul_dynamic::rewrite(graph, weight, &mut shared, self.version)?);
        }
        let mut tables = embedding::Shared::default();
        for weight in with(Choice::Int8Rows) {
            errors.insert(weight.node, embedding::rewrite(graph, weight, &mut tables, self.version)?);
        }
        weight_only::rewrite(graph, &bits::items(self, choices, codes), self.version)?;
        graph.sort()?;
        graph.infer()?;
        graph.check()?;
        let step = |(w, &choice): (&Weight, &Choice)| Step {
            node: w.name.clone(),
            weight: self.base.graph.value(w.value).name.clone(),
            elements: w.len,
            choice,
            error: match choice {
                Choice::Bits(_) => codes.get(&w.value).map_or(0.0, |code| code.error),
                _ => errors.get(&w.node).copied().unwrap_or(0.0),
            },
        };
        let plan = Plan { steps: self.weights.iter().zip(choices).map(step).collect(), ..Plan::default() };
        Ok((model, plan))
    }

    /// The model as it is written: without what its meaning does not need.
    fn finish(&self, mut model: Model) -> Result<Model> {
        lean::lean(&mut model.graph, self.version)?;
        if lean::name_bytes(&model.graph) * NAMES > self.judge.bytes(&model)? {
            lean::shorten(&mut model.graph)?;
        }
        model.graph.infer()?;
        model.graph.check()?;
        Ok(model)
    }

    /// Gives weights back to f32, the most harmful first, until the loss is within the bound: as few as will do.
    fn give_back(&self, choices: &[Choice], bound: f64) -> Result<(Vec<Choice>, Vec<String>)> {
        let mut harm = Vec::new();
        let changed: Vec<usize> = (0..choices.len()).filter(|&i| choices[i] != Choice::Keep).collect();
        for &i in &changed {
            let mut alone = vec![Choice::Keep; choices.len()];
            alone[i] = choices[i];
            let score = self.judge.score(&self.build(&alone, &Codes::default())?.0, Part::Probe)?;
            harm.push((score.map_or(0.0, |s| s.distance), i));
        }
        harm.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let without = |k: usize| {
            let mut fewer = choices.to_vec();
            harm[..k].iter().for_each(|&(_, i)| fewer[i] = Choice::Keep);
            fewer
        };
        let holds = |k: usize| -> Result<bool> {
            let score = self.judge.score(&self.build(&without(k), &Codes::default())?.0, Part::Search)?;
            Ok(score.is_none_or(|s| s.loss() <= bound))
        };
        // Doubling, then bisection: the loss falls with the number given back, nearly.
        let (mut low, mut high) = (0, 1);
        while high < harm.len() && !holds(high)? {
            (low, high) = (high, high * 2);
        }
        high = high.min(harm.len());
        while high - low > 1 {
            let middle = (low + high) / 2;
            if holds(middle)? { high = middle } else { low = middle }
        }
        let names = harm[..high].iter().map(|&(_, i)| self.weights[i].name.clone());
        let names: Vec<String> = names.collect::<HashSet<_>>().into_iter().collect();
        let order = |name: &String| harm.iter().position(|&(_, i)| self.weights[i].name == *name);
        let mut names = names;
        names.sort_by_key(order);
        Ok((without(high), names))
    }
}
