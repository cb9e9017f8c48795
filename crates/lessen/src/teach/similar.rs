//! How much two texts mean the same: vectors whose cosines go with the scores that pairs of texts were given. A map of the
//! vectors is trained on what the model makes of the texts, which takes seconds, or its weights are.

use std::time::Instant;

use graph::{Attrs, DType, Datum, Dim, Fact, Graph, Tensor, ValueId};
use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::fit::{Hold, Inputs, Lessons, Network, Progress, Recipe, fit};
use learn::head::{Features, Method, Truth};
use learn::{Example, Input, Result as Read};
use meter::energy::Meter;

use super::tune::{self, Examples, Scores, Tuned};
use super::{Report, Request, Spent, Taught, judge, truth};
use crate::answer::{Task, selected};
use crate::features::{Backbone, FEATURES, Subset, Wanted, backbone, claim, learn};
use crate::leaks::{self, Leaks};
use crate::receipt::Number;
use crate::tasks::Purpose;
use crate::{Error, Model, Result};

/// The name of the new model's output.
const VECTOR: &str = "sentence_embedding";
/// Pairs of a step, which are all compared with each other, when only a map is trained.
const TOGETHER: usize = 128;
/// Steps of a map's training, at most; a quarter of them without a gain end it.
const STEPS: usize = 500;
/// The greatest step of a map, as a part of what its rows measure.
const RATE: f32 = 0.01;

/// Are these pairs of texts with scores?
pub(super) fn are_pairs(data: &dyn Dataset) -> bool {
    let pair = data.get(0).is_ok_and(|example| matches!(example.input, Input::Pair(..)));
    pair && matches!(data.target(0), Target::Score(_))
}

/// A model up to the vector of a text: what the named node makes, or all of it, for its last weights are no head.
pub(super) fn encoder(model: &Model, node: Option<&str>) -> Result<Backbone> {
    match node {
        Some(_) => backbone(model, node),
        None => backbone(model, Some(selected(&model.outputs(), Task::Similarity)?)),
    }
}

/// See [`super::teach`].
pub(super) fn teach(
    model: &Model,
    request: &Request,
    wanted: &Wanted,
    meter: Meter,
    cpu: &Cpu,
) -> Result<Taught> {
    let tuning = request.tuning.as_ref();
    let pointless = [
        (request.add.is_some(), "--add puts a head beside others, which vectors of texts have not"),
        (
            request.faster.is_some(),
            "--faster chooses features between blocks, which vectors of texts are not",
        ),
        (request.balanced, "--balanced lets classes count the same; these examples have none"),
        (
            tuning.is_some_and(|t| t.contrast),
            "--contrast tells classes apart; pairs with scores need --tune alone",
        ),
        (
            request.methods.len() < Method::ALL.len(),
            "--head is fitted to features; vectors of texts that are compared have none",
        ),
    ];
    if let Some((_, why)) = pointless.iter().find(|(is, _)| *is) {
        return Err(Error::input(format!("{why}; or say --cross, and both texts of a pair go in together")));
    }
    let data = wanted.data;
    // Texts stand in tables, which are read as a whole: none is left out.
    let rows: Vec<usize> = (0..data.len()).collect();
    let (all, _) = truth(data, &rows)?;
    let Truth::Numbers(scores) = &all else {
        return Err(Error::input("pairs of texts need a score each to learn how much they mean the same"));
    };
    if scores.iter().all(|score| *score == scores[0]) {
        return Err(Error::input(format!("all {} pairs have the score {}", scores.len(), scores[0])));
    }
    let shares = tune::shares(&all, false)?;
    let held_out = shares.1.clone();
    let held_out = Subset { data, rows: &held_out };
    let mut backbone = encoder(model, wanted.node)?;
    let before = judge(&backbone.model, Task::Similarity, &held_out, request, cpu)?;
    let (mut adapter, mut cached, mut map) = (None, false, None);
    let start = Instant::now();
    let (tuned, seconds) = match tuning {
        Some(tuning) => {
            let examples = Examples {
                data,
                rows: &rows,
                truth: &all,
                shares,
                masses: Vec::new(),
                logits: None,
                feed: wanted.feed.clone(),
            };
            let course = tune::pairs(&examples, scores);
            let mut trained = tune::train(&mut backbone.model, tuning, &course, cpu, request.progress)?;
            adapter = trained.adapter.take();
            (trained.told(tuning, &examples), 0.0)
        }
        None => {
            let wanted = Wanted { data: &Texts(data), ..wanted.clone() };
            let learnt = learn(&backbone, &wanted, None, cpu, request.progress)?;
            cached = learnt.cached;
            let seconds = start.elapsed().as_secs_f64();
            let pairs = Pairs { features: &learnt.features, scores, shares };
            let (found, tuned) = pairs.map(cpu, request.progress)?;
            map = Some(found).filter(|_| tuned.after < tuned.before);
            (tuned, seconds)
        }
    };
    let columns = backbone.width();
    let taught = with_vectors(&backbone.model, map.as_ref())?;
    let after = judge(&taught, Task::Similarity, &held_out, request, cpu)?;
    let (mut leaks, mut test) = (Leaks::default(), None);
    if let Some(others) = request.test {
        leaks = leaks::between(data, &rows, others, cpu)?;
        test = Some(judge(&taught, Task::Similarity, others, request, cpu)?);
    }
    let each = test.as_ref().unwrap_or(&after);
    let each = each.time.value / each.examples.max(1) as f64;
    let report = Report {
        data: data.describe(),
        examples: rows.len(),
        skipped: Vec::new(),
        nodes: backbone.nodes,
        taps: Vec::new(),
        features: columns.unwrap_or(0),
        cached,
        balanced: false,
        heads: Vec::new(),
        unseen: None,
        ways: Vec::new(),
        head_time: tuned.time,
        tuned: Some(tuned),
        before: Some(before),
        held_out: Some(after),
        test,
        leaked: leaks.count,
        leaks: leaks.first,
        feature_time: Number::measured(seconds, "s"),
        spent: Spent::until_now(meter, Some(each), request.place, cpu),
    };
    Ok(Taught { model: taught, adapter, report })
}

/// The texts of pairs, one after the other.
struct Texts<'a>(&'a dyn Dataset);

impl Dataset for Texts<'_> {
    fn len(&self) -> usize {
        2 * self.0.len()
    }

    fn get(&self, i: usize) -> Read<Example> {
        let example = self.0.get(i / 2)?;
        match example.input {
            Input::Pair(a, b) => {
                Ok(Example { input: Input::Text(if i.is_multiple_of(2) { a } else { b }), ..example })
            }
            _ => Err(learn::Error::input(format!("{} is not two texts", example.id))),
        }
    }

    fn target(&self, _: usize) -> Target {
        Target::None
    }

    fn classes(&self) -> Option<&[String]> {
        None
    }

    fn describe(&self) -> String {
        format!("both texts of {}", self.0.describe())
    }
}

/// What a model makes of the texts of pairs, two rows for each.
struct Pairs<'a> {
    features: &'a Features,
    scores: &'a [f64],
    /// Pairs to train on, and those held out.
    shares: (Vec<usize>, Vec<usize>),
}

impl Pairs<'_> {
    /// A map of the vectors, `[features, features]`, that begins as none and is trained until the cosines of pairs that
    /// were held out go no better with their scores.
    fn map(&self, cpu: &Cpu, progress: &dyn Fn(&str)) -> Result<(Tensor, Tuned)> {
        let start = Instant::now();
        let width = self.features.columns();
        let mut graph = Graph::new("map");
        let shape = vec![Dim::named("texts"), Dim::from(width)];
        let x = graph.add_input(FEATURES, Fact::tensor(DType::F32, shape))?;
        let mut same = vec![0f32; width * width];
        same.iter_mut().step_by(width + 1).for_each(|x| *x = 1.0);
        let map = graph.add_constant("map", Tensor::new(&[width, width], &same)?);
        let mapped = graph.append("mapped", "MatMul", 13, &Attrs::new(), &[x, map])?;
        graph.outputs.push(mapped);
        let loss = Scores::loss(&mut graph)?;
        let mut network = Network::new(&graph, loss, loss, &[(map, Hold::Free)], cpu)?;
        let epochs = STEPS.div_ceil(self.shares.0.len().div_ceil(TOGETHER).max(1));
        let recipe = Recipe {
            epochs,
            batch: TOGETHER,
            rate: RATE,
            relative: true,
            warmup: 0.1,
            patience: epochs.div_ceil(4),
            ..Recipe::default()
        };
        let mut watch = |p: &Progress| {
            progress(&format!("a map of the vectors: epoch {}, held out {:.4}", p.epoch, p.held_out));
            true
        };
        let fitted = fit(&mut network, &recipe, self, None, &mut watch)?;
        let tuned = Tuned {
            depth: None,
            contrast: false,
            weights: width * width,
            examples: self.shares.0.len(),
            held_out: self.shares.1.len(),
            before: fitted.before,
            after: fitted.after,
            epochs: fitted.epochs,
            time: Number::measured(start.elapsed().as_secs_f64(), "s"),
        };
        Ok((network.weights()[0].tensor.clone(), tuned))
    }

    fn batch(&self, pairs: &[usize]) -> learn::Result<(Inputs, usize)> {
        let texts: Vec<usize> = pairs.iter().flat_map(|&pair| [2 * pair, 2 * pair + 1]).collect();
        let rows = self.features.select(&texts);
        let rows = Tensor::new(&[texts.len(), rows.columns()], rows.values())?;
        let beside = Scores(self.scores).beside(&texts).map_err(|e| learn::Error::input(e.to_string()))?;
        let given = [(FEATURES.to_owned(), Datum::Tensor(rows))];
        Ok((given.into_iter().chain(beside).collect(), pairs.len()))
    }
}

impl Lessons for Pairs<'_> {
    fn len(&self) -> usize {
        self.shares.0.len()
    }

    fn lesson(&self, examples: &[usize], _: u64) -> learn::Result<Vec<(Inputs, usize)>> {
        let pairs: Vec<usize> = examples.iter().map(|&i| self.shares.0[i]).collect();
        Ok(vec![self.batch(&pairs)?])
    }

    fn exam(&self) -> learn::Result<Vec<(Inputs, usize)>> {
        self.shares.1.chunks(TOGETHER).map(|pairs| self.batch(pairs)).collect()
    }
}

/// A model whose answer is the vector of a text, of length 1, behind a map when there is one.
fn with_vectors(model: &Model, map: Option<&Tensor>) -> Result<Model> {
    let mut inner = model.inner().clone();
    let graph = &mut inner.graph;
    let mut vector: ValueId =
        graph.find(FEATURES).ok_or_else(|| Error::input("the model has no value with its features"))?;
    if let Some(map) = map {
        let map = graph.add_constant("head.map", map.clone());
        vector = graph.append("head.map", "MatMul", 13, &Attrs::new(), &[vector, map])?;
    }
    vector = graph.append(
        "head.unit",
        "LpNormalization",
        1,
        &Attrs::new().int("axis", -1).int("p", 2),
        &[vector],
    )?;
    claim(graph, vector, VECTOR)?;
    graph.outputs = vec![vector];
    graph.value_mut(vector).declared = true;
    let purpose = Purpose { task: Task::Similarity.to_string(), classes: None };
    model.with_inner(inner).with_purpose(&purpose)
}
