//! A model at work: what is known of it, and what choices make of it.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use graph::op::WeightKind;
use graph::{Graph, Model, ValueId, tidy};
use kernel::Cpu;

use super::codes::{self, Codes};
use super::{Goal, Judge, MIN_OPSET, Outcome, Part, Speed};
use crate::calibrate::{Stats, calibrate};
use crate::job::{self, Key};
use crate::lean;
use crate::pass::{self, Change, Context, Pass};
use crate::plan::{Choice, Plan, Step};
use crate::quantize::coded::{Ranges, Rounding};
use crate::quantize::int8::{self, Rounded};
use crate::quantize::{embedding, matmul_dynamic, qdq, weight_only};
use crate::repair::tune::{self, Tune};
use crate::weights::{Weight, is_product, weights};
use crate::{Error, Result};

/// Names of values and nodes are kept unless they make up more than this part of the file: one in a hundred.
const NAMES: usize = 100;

/// A model as it is written, and how it came about.
pub(super) struct Made {
    pub(super) model: Model,
    pub(super) plan: Plan,
    pub(super) given_back: Vec<String>,
}

/// A model, tidied and passed through passes; its weights and what calibration saw.
#[derive(Clone)]
pub(super) struct Work<'a> {
    pub(super) base: Model,
    /// The graph before all passes.
    original: Graph,
    pub(super) weights: Vec<Weight>,
    pub(super) passes: Vec<Pass>,
    changes: Vec<Change>,
    stats: Stats,
    /// The weights of 8 bits with fixed grids around them, once they are wanted.
    rounded: OnceCell<HashMap<ValueId, Rounded>>,
    pub(super) judge: &'a dyn Judge,
    pub(super) version: i64,
    pub(super) cpu: &'a Cpu,
}

impl<'a> Work<'a> {
    /// The model, tidied, after these passes.
    pub(super) fn new(
        model: &Model,
        passes: &[Pass],
        judge: &'a dyn Judge,
        cpu: &'a Cpu,
    ) -> Result<Work<'a>> {
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
        let (stats, passes_done, changes) = (Stats::new(), Vec::new(), Vec::new());
        let (original, rounded) = (base.graph.clone(), OnceCell::new());
        let mut work = Work {
            base,
            original,
            weights,
            passes: passes_done,
            changes,
            stats,
            rounded,
            judge,
            version,
            cpu,
        };
        for pass in passes {
            work.pass(pass)?;
        }
        Ok(work)
    }

    /// Changes the graph by a pass.
    pub(super) fn pass(&mut self, pass: &Pass) -> Result<()> {
        let before = pass::elements(&self.base.graph)?;
        let key =
            || Ok::<_, Error>(self.key(&Plan { passes: vec![pass.clone()], ..Plan::default() }.write()?));
        let key = self.judge.store().map(|_| key()).transpose()?;
        if let Some((model, error)) = key.and_then(|key| self.judge.kept_model(&key)) {
            return self.passed(model.graph, pass.clone(), error, before);
        }
        let mut graph = self.base.graph.clone();
        let error = pass.apply(&mut graph, &self.context())?;
        self.passed(graph, pass.clone(), error, before)?;
        if let Some(key) = key {
            self.judge.keep_model(&key, &self.base, error);
        }
        Ok(())
    }

    /// The pass that `choose` chooses, from an earlier run when it is kept; `what` says what was asked for.
    pub(super) fn chosen(&self, what: &str, choose: impl FnOnce(&Work) -> Result<Pass>) -> Result<Pass> {
        let plan = job::kept(
            self.judge.store(),
            || self.key(what),
            |bytes| Plan::read(str::from_utf8(bytes).ok()?).ok().filter(|plan| plan.passes.len() == 1),
            |plan| plan.write().unwrap_or_default().into_bytes(),
            || Ok(Plan { passes: vec![choose(self)?], ..Plan::default() }),
        )?;
        plan.passes.into_iter().next().ok_or_else(|| Error::Plan(format!("{what}: nothing was chosen")))
    }

    /// The key of what is made of the model as it is now.
    fn key(&self, what: &str) -> Key {
        Key::of(&[what.as_bytes(), format!("{:?}", self.cpu.isa()).as_bytes()])
            .graph(&self.original)
            .graph(&self.base.graph)
    }

    /// Tunes the weights; the plan says when the time was over before the epochs were.
    pub(super) fn tune(&mut self, tune: &Tune) -> Result<()> {
        let before = pass::elements(&self.base.graph)?;
        let mut graph = self.base.graph.clone();
        let fitted = tune::apply(&mut graph, tune, &self.context())?;
        let stop = self.judge.out_of_time().then_some(fitted.epochs.len());
        self.passed(graph, Pass::Tune(Tune { stop, ..tune.clone() }), fitted.after, before)
    }

    fn passed(&mut self, mut graph: Graph, pass: Pass, error: f64, before: usize) -> Result<()> {
        graph.sort()?;
        graph.infer()?;
        graph.check()?;
        self.base.graph = graph;
        self.rounded = OnceCell::new();
        self.weights = weights(&self.base.graph)?;
        let elements = (before, pass::elements(&self.base.graph)?);
        self.changes.push(Change::of(&pass, error, elements));
        self.passes.push(pass);
        Ok(())
    }

    /// Finds the ranges of the activations that are to lie on fixed grids.
    pub(super) fn calibrate(&mut self) -> Result<()> {
        let products: Vec<&Weight> = self.weights.iter().filter(|w| self.is_static(w)).collect();
        if self.judge.can_calibrate() && !products.is_empty() {
            self.judge.progress("calibrating");
            let wanted = qdq::values(&self.base.graph, &products);
            self.stats = calibrate(&self.base.graph, &wanted, self.judge, self.cpu)?;
        }
        Ok(())
    }

    /// 8 bits for all weights but those that cost more than may be lost.
    pub(super) fn eight_bits(&self, lose: Option<f64>) -> Result<Made> {
        let mut choices = self.defaults();
        let mut made = self.build(&choices, &Codes::default())?;
        let mut given_back = Vec::new();
        if let Some(bound) = lose
            && self.judge.score(&made.0, Part::Search)?.is_some_and(|score| score.loss() > bound)
        {
            self.judge.progress("the loss is too great: looking for the weights that hurt");
            (choices, given_back) = self.give_back(&choices, bound)?;
            made = self.build(&choices, &Codes::default())?;
        }
        Ok(Made { model: self.finish(made.0)?, plan: made.1, given_back })
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context { judge: self.judge, original: &self.original, cpu: self.cpu }
    }

    /// Products that get a fixed grid for their activations: convolutions, and the products of models that have
    /// any (a classifier's last layer). In models without convolutions, such as text encoders, activations have
    /// outliers that a fixed grid cannot hold.
    fn is_static(&self, weight: &Weight) -> bool {
        let convolutional = self.weights.iter().any(|w| w.used.kind == WeightKind::Conv);
        is_product(weight.used.kind) && convolutional && weight.used.input == 1
    }

    pub(super) fn defaults(&self) -> Vec<Choice> {
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

    /// The weights that can have 8 bits with activations on fixed grids, rounded for what calibration has seen.
    fn rounded(&self) -> Result<&HashMap<ValueId, Rounded>> {
        if let Some(rounded) = self.rounded.get() {
            return Ok(rounded);
        }
        let products: Vec<&Weight> =
            self.weights.iter().filter(|w| self.is_static(w) && self.reached(w)).collect();
        self.judge.progress("rounding the weights");
        let rounded = int8::round(&self.base.graph, &products, &self.context())?;
        Ok(self.rounded.get_or_init(|| rounded))
    }

    /// What a plan says of each weight. Weights that it does not name are kept.
    pub(super) fn choices_of(&self, plan: &Plan) -> Result<Vec<Choice>> {
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
                Choice::Bits(_) | Choice::Table(_) => self.version >= weight_only::MIN_OPSET,
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
    pub(super) fn make(&self, choices: &[Choice], rounding: Rounding, ranges: Ranges) -> Result<Made> {
        let codes = codes::code(self, choices, rounding, ranges)?;
        let (model, plan) = self.build(choices, &codes)?;
        let plan = Plan { rounding, ranges, ..plan };
        Ok(Made { model: self.finish(model)?, plan, given_back: Vec::new() })
    }

    /// How far the answers are from the original's on the examples that decide; `None` without data.
    pub(super) fn distance(&self, made: &Made) -> Result<Option<f64>> {
        Ok(self.judge.score(&made.model, Part::Search)?.map(|score| score.distance))
    }

    /// Measures what was made, and holds it against the goal.
    pub(super) fn prove(&self, before: usize, goal: &Goal, made: Made) -> Result<Outcome> {
        let Made { model, plan, given_back } = made;
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
        if let Some(size) = goal.size.filter(|&size| after > size) {
            missed.push(format!("the file has {after} bytes, more than {size}"));
        }
        self.judge.progress("timing both models");
        let speed = self.judge.speed(&model)?;
        if let Some(faster) = goal.faster {
            match speed {
                Some(speed) if speed.faster >= faster => {}
                Some(Speed { faster: speed, .. }) => {
                    missed.push(format!("a run is {speed:.2} times faster on this machine, not {faster}"));
                }
                None => {
                    missed.push("the speed cannot be measured without data; give some with --data".into())
                }
            }
        }
        let changes = self.changes.clone();
        let frontier = Vec::new();
        let bytes = (before, after);
        Ok(Outcome { model, plan, given_back, score, speed, bytes, changes, frontier, missed })
    }

    pub(super) fn build(&self, choices: &[Choice], codes: &Codes) -> Result<(Model, Plan)> {
        let mut model = self.base.clone();
        let graph: &mut Graph = &mut model.graph;
        let with = |choice| -> Vec<&Weight> {
            self.weights.iter().zip(choices).filter(|(_, c)| **c == choice).map(|(w, _)| w).collect()
        };
        let products = with(Choice::Int8Static);
        let none = HashMap::new();
        let rounded = if products.is_empty() { &none } else { self.rounded()? };
        let mut errors = qdq::rewrite(graph, &products, &self.stats, rounded, self.version)?;
        let mut shared = matmul_dynamic::Shared::default();
        for weight in with(Choice::Int8Dynamic) {
            errors.insert(weight.node, matmul_dynamic::rewrite(graph, weight, &mut shared, self.version)?);
        }
        let mut tables = embedding::Shared::default();
        for weight in with(Choice::Int8Rows) {
            errors.insert(weight.node, embedding::rewrite(graph, weight, &mut tables, self.version)?);
        }
        codes::correct(self, graph, codes)?;
        codes::rewrite(self, graph, choices, codes)?;
        graph.sort()?;
        graph.infer()?;
        graph.check()?;
        let step = |(w, &choice): (&Weight, &Choice)| Step {
            node: w.name.clone(),
            weight: self.base.graph.value(w.value).name.clone(),
            elements: w.len,
            choice,
            error: match choice {
                Choice::Bits(_) | Choice::Table(_) => codes.get(&w.value).map_or(0.0, |code| code.error),
                _ => errors.get(&w.node).copied().unwrap_or(0.0),
            },
        };
        let steps = self.weights.iter().zip(choices).map(step).collect();
        let plan = Plan { passes: self.passes.clone(), steps, ..Plan::default() };
        Ok((model, plan))
    }

    /// The model as it is written: without what its meaning does not need.
    pub(super) fn finish(&self, mut model: Model) -> Result<Model> {
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
