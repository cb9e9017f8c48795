//! Transfer learning: what a trained model knows, used again for a new task. The model's features of each example are
//! computed once, heads are fitted to them in seconds, and the one that does best on examples it has not seen becomes the
//! new model's last layer.

mod backbone;
mod cache;

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use graph::{Attrs, Tensor};
use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::head::{Features, Fitted, Linear, Method, Problem, Truth};
use learn::{Example, Input};
use meter::energy::{Meter, SENSORS, processor};
use meter::{Energy, Machine};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::answer::{Answerer, Options, Task, part_size};
use crate::eval::{Eval, Judged, eval};
use crate::model::{CLASSES, TASK};
use crate::receipt::Number;
use crate::{Error, Model, Result, feed};
use backbone::{Backbone, backbone, claim};

/// What is asked for.
pub struct Request<'a> {
    /// Examples with their answers.
    pub data: &'a dyn Dataset,
    /// Examples to judge the new model by, which nothing is learnt from.
    pub test: Option<&'a dyn Dataset>,
    /// The node or value that makes the features; chosen when not given.
    pub features: Option<&'a str>,
    /// Ways to fit a head that are tried.
    pub methods: &'a [Method],
    /// Does each class count the same, however many examples it has?
    pub balanced: bool,
    /// How examples are shown to the model.
    pub feed: feed::Options,
    /// A folder where features are kept for the next time.
    pub cache: Option<&'a Path>,
}

/// How a head does on examples that it has not seen.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// How it was fitted.
    pub method: Method,
    /// Its penalty, for features of variance 1.
    pub penalty: Option<f64>,
    /// The mean logarithm of the probability that it does not give to the right answer; of numbers the squared error.
    pub loss: f64,
    /// The metric of the task.
    pub value: Number,
}

/// An example that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// What it is called.
    pub example: String,
    /// Why.
    pub why: String,
}

/// What was done and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the data are.
    pub data: String,
    /// Examples that were learnt from.
    pub examples: usize,
    /// Examples that could not be read.
    pub skipped: Vec<Skipped>,
    /// The value of the model that the features are of.
    pub node: String,
    /// Numbers of an example.
    pub features: usize,
    /// Were the features there already?
    pub cached: bool,
    /// Does each class count the same?
    pub balanced: bool,
    /// The heads, the best first, which is the one that was taken.
    pub heads: Vec<Tried>,
    /// How the head does on examples of the data that it has not seen: each is judged by a head that was fitted without it.
    pub unseen: Eval,
    /// How the new model does on the examples to judge it by.
    pub test: Option<Eval>,
    /// How many of those are among the examples that it was taught with.
    pub leaked: usize,
    /// Seconds for the features.
    pub feature_time: Number,
    /// Seconds for the heads.
    pub head_time: Number,
    /// Energy that all of it took.
    pub energy: Energy,
}

/// Teaches a model a new task.
///
/// # Errors
/// When the model has no features, the data have no answers or only one, or an answer is missing; the example is named.
pub fn teach(model: &Model, request: &Request, cpu: &Cpu) -> Result<(Model, Report)> {
    let meter = Meter::start(Path::new(SENSORS), Duration::ZERO);
    let start = Instant::now();
    let backbone = backbone(model, request.features)?;
    let learnt = learn(&backbone, request, cpu)?;
    let feature_time = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let (truth, names) = truth(request.data, &learnt.rows)?;
    let problem = Problem::new(&learnt.features, &truth, request.balanced, crate::eval::SEED, cpu)?;
    let fitted = problem.best(request.methods)?;
    let head_time = start.elapsed().as_secs_f64();

    let taught = with_head(&backbone, &fitted[0].head, &truth, names.as_deref())?;
    let task = if matches!(truth, Truth::Numbers(_)) { Task::Similarity } else { Task::Classify };
    let heads = fitted.iter().map(|fitted| {
        let (_, value) = judged(fitted, &truth)?.metric()?;
        let (method, penalty) = (fitted.method, fitted.penalty);
        Ok(Tried { method, penalty, loss: problem.loss(fitted), value })
    });
    let heads = heads.collect::<Result<Vec<_>>>()?;
    let unseen = Eval::of(task, &judged(&fitted[0], &truth)?, request.data, names.as_deref(), head_time)?;
    let mut leaked = 0;
    let test = match request.test {
        None => None,
        Some(test) => {
            leaked = shared(request.data, &learnt.rows, test);
            let answerer =
                Answerer::new(&taught, cpu, task, &Options { feed: request.feed.clone(), output: None })?;
            Some(eval(&answerer, test, |_| ())?)
        }
    };
    let report = Report {
        data: request.data.describe(),
        examples: learnt.rows.len(),
        skipped: learnt.skipped,
        node: backbone.node,
        features: learnt.features.columns(),
        cached: learnt.cached,
        balanced: request.balanced,
        heads,
        unseen,
        test,
        leaked,
        feature_time: Number::measured(feature_time, "s"),
        head_time: Number::measured(head_time, "s"),
        energy: meter.stop(&processor(&Machine::this())),
    };
    Ok((taught, report))
}

/// How well a model suits a task.
#[derive(Clone, Debug, Serialize)]
pub struct Suit {
    /// The value of the model that the features are of.
    pub node: String,
    /// Numbers of an example.
    pub features: usize,
    /// The logarithm of the evidence (LogME), the higher the better.
    pub evidence: f64,
    /// How a ridge head on the features does on examples it has not seen, each left out once.
    pub head: Tried,
    /// The name of the metric.
    pub metric: &'static str,
    /// Seconds that all of it took.
    pub time: Number,
}

/// Says how well a model suits a task, before it is taught.
///
/// # Errors
/// As [`teach`].
pub fn suit(model: &Model, request: &Request, cpu: &Cpu) -> Result<Suit> {
    let start = Instant::now();
    let backbone = backbone(model, request.features)?;
    let learnt = learn(&backbone, request, cpu)?;
    let (truth, _) = truth(request.data, &learnt.rows)?;
    let problem = Problem::new(&learnt.features, &truth, request.balanced, crate::eval::SEED, cpu)?;
    let fitted = problem.fit(Method::Ridge)?;
    let (metric, value) = judged(&fitted, &truth)?.metric()?;
    Ok(Suit {
        node: backbone.node,
        features: learnt.features.columns(),
        evidence: problem.evidence(),
        head: Tried { method: fitted.method, penalty: fitted.penalty, loss: problem.loss(&fitted), value },
        metric,
        time: Number::measured(start.elapsed().as_secs_f64(), "s"),
    })
}

/// Features of the examples that could be read.
struct Learnt {
    features: Features,
    rows: Vec<usize>,
    skipped: Vec<Skipped>,
    cached: bool,
}

fn learn(backbone: &Backbone, request: &Request, cpu: &Cpu) -> Result<Learnt> {
    let data = request.data;
    let place = request.cache.map(|folder| cache::Place::new(folder, &backbone.model, data)).transpose()?;
    if let Some(features) = place.as_ref().and_then(|place| place.load(data.len())) {
        return Ok(Learnt { features, rows: (0..data.len()).collect(), skipped: Vec::new(), cached: true });
    }
    // Not Similarity: two texts of a pair go in together.
    let options = Options { feed: request.feed.clone(), output: Some(backbone::FEATURES.into()) };
    let answerer = Answerer::new(&backbone.model, cpu, Task::Classify, &options)?;
    let mut skipped = Vec::new();
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    let mut columns = backbone::width(&backbone.model.inner().graph);
    let all: Vec<usize> = (0..data.len()).collect();
    let first = all.iter().position(|&i| data.get(i).is_ok());
    let Some(first) = first else {
        return Err(data.get(0).err().map_or_else(|| Error::input("there are no examples"), Error::from));
    };
    for part in all.chunks(part_size(data, &all[first..])?) {
        let mut inputs: Vec<Input> = Vec::with_capacity(part.len());
        for &i in part {
            match data.get(i) {
                Ok(Example { input, .. }) => {
                    rows.push(i);
                    inputs.push(input);
                }
                Err(e) => skipped.push(Skipped { example: format!("example {i}"), why: e.to_string() }),
            }
        }
        for answer in answerer.answers(&inputs)? {
            let row = answer.outputs.into_iter().next().unwrap_or_default();
            if *columns.get_or_insert(row.len()) != row.len() {
                return Err(Error::input(format!(
                    "{:?} gives {} numbers for one example and {} for another; features are as many for each",
                    backbone.node,
                    columns.unwrap_or(0),
                    row.len()
                )));
            }
            values.extend(row);
        }
    }
    let features = Features::new(columns.unwrap_or(0), values)?;
    if let Some(place) = place.filter(|_| skipped.is_empty()) {
        place.save(&features)?;
    }
    Ok(Learnt { features, rows, skipped, cached: false })
}

/// The answers to these examples, and the names of the classes.
fn truth(data: &dyn Dataset, rows: &[usize]) -> Result<(Truth, Option<Vec<String>>)> {
    let missing = |i: usize, what: &str| {
        Error::input(format!("{} has no {what} to learn from", crate::eval::name_of(data, i)))
    };
    match data.target(rows[0]) {
        Target::Class(_) => {
            let class = |&i: &usize| match data.target(i) {
                Target::Class(class) => Ok(class),
                _ => Err(missing(i, "class")),
            };
            let of = rows.iter().map(class).collect::<Result<Vec<_>>>()?;
            let greatest = of.iter().max().map_or(0, |c| c + 1);
            let names = data.classes().map(<[String]>::to_vec);
            let count = names.as_ref().map_or(greatest, Vec::len).max(greatest);
            const MOST: usize = 1 << 16;
            if count > MOST {
                return Err(Error::input(format!("class {} is more than {MOST} classes", count - 1)));
            }
            Ok((Truth::Classes { of, count }, names))
        }
        Target::Score(_) => {
            let number = |&i: &usize| match data.target(i) {
                Target::Score(score) => Ok(score),
                _ => Err(missing(i, "score")),
            };
            Ok((Truth::Numbers(rows.iter().map(number).collect::<Result<_>>()?), None))
        }
        Target::None => Err(missing(rows[0], "class and no score")),
    }
}

/// What a head answers to examples that it has not seen, beside what is right.
fn judged(fitted: &Fitted, truth: &Truth) -> Result<Judged> {
    let unseen = &fitted.unseen;
    let scores = unseen.scores.chunks_exact(unseen.outputs);
    Ok(match truth {
        Truth::Classes { of, .. } => {
            let best =
                |row: &[f32]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            Judged::Classes(scores.map(best).collect(), unseen.rows.iter().map(|&i| of[i]).collect())
        }
        Truth::Numbers(of) => {
            let answers = scores.map(|row| f64::from(row[0])).collect();
            Judged::Scores(answers, unseen.rows.iter().map(|&i| of[i]).collect())
        }
        Truth::Labels { .. } => {
            return Err(Error::input(
                "examples with several labels cannot be judged; give each one class or number",
            ));
        }
    })
}

/// The backbone with a head behind it: `logits` and `probabilities`, or a `score`.
fn with_head(backbone: &Backbone, head: &Linear, truth: &Truth, names: Option<&[String]>) -> Result<Model> {
    let mut inner = backbone.model.inner().clone();
    let graph = &mut inner.graph;
    let outputs = head.bias.len();
    let features = graph.outputs[0];
    let weight = graph
        .add_constant("head.weight", Tensor::new(&[outputs, head.weight.len() / outputs], &head.weight)?);
    let bias = graph.add_constant("head.bias", Tensor::new(&[outputs], &head.bias)?);
    let scores =
        graph.append("head", "Gemm", 13, &Attrs::new().int("transB", 1), &[features, weight, bias])?;
    graph.outputs = vec![scores];
    let task = match truth {
        Truth::Numbers(_) => {
            claim(graph, scores, "score")?;
            Task::Similarity
        }
        _ => {
            claim(graph, scores, "logits")?;
            let shares =
                graph.append("head.softmax", "Softmax", 13, &Attrs::new().int("axis", -1), &[scores])?;
            claim(graph, shares, "probabilities")?;
            graph.outputs.push(shares);
            Task::Classify
        }
    };
    for id in graph.outputs.clone() {
        graph.value_mut(id).declared = true;
    }
    inner.set_metadata(TASK, task.to_string());
    for key in CLASSES {
        inner.metadata.retain(|(name, _)| name != key);
    }
    if let Some(names) = names {
        let text = serde_json::to_string(names)
            .map_err(|e| Error::input(format!("the classes have odd names: {e}")))?;
        inner.set_metadata(CLASSES[0], text);
    }
    Ok(backbone.model.with_inner(inner))
}

/// How many examples of the test set are among those that were learnt from; texts are compared without regard to case and
/// spaces.
fn shared(data: &dyn Dataset, rows: &[usize], test: &dyn Dataset) -> usize {
    let seen: HashSet<[u8; 32]> =
        rows.iter().filter_map(|&i| Some(print(&data.get(i).ok()?.input))).collect();
    (0..test.len()).filter(|&i| test.get(i).is_ok_and(|e| seen.contains(&print(&e.input)))).count()
}

fn print(input: &Input) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut text = |text: &str| {
        for word in text.split_whitespace() {
            hash.update(word.to_lowercase());
            hash.update([b' ']);
        }
        hash.update([0]);
    };
    match input {
        Input::Text(a) => text(a),
        Input::Pair(a, b) => [a, b].into_iter().for_each(|t| text(t)),
        Input::Image(image) => hash.update(image.as_bytes()),
        Input::Arrays(arrays) => {
            for (name, tensor) in arrays {
                hash.update(name);
                hash.update(format!("{:?}", tensor.shape()));
                match tensor.to_f32() {
                    Ok(values) => values.iter().for_each(|x| hash.update(x.to_le_bytes())),
                    Err(_) => hash.update(format!("{tensor:?}")),
                }
            }
        }
    }
    hash.finalize().into()
}
