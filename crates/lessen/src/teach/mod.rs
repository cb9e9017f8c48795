//! Transfer learning: what a trained model knows, used again for a new task. The model's features of each example are
//! computed once, heads are fitted to them in seconds, and the one that does best on examples it has not seen becomes the
//! new model's last layer.

mod tune;

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use graph::{Attrs, Tensor};
use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::head::{Fitted, Linear, Method, Problem, Truth};
use meter::energy::{Meter, SENSORS, processor};
use meter::{Energy, Machine};
use serde::Serialize;

use crate::adapter::Adapter;
use crate::answer::{Answerer, Options, Task};
use crate::eval::{Eval, Judged, eval};
use crate::features::{Backbone, Skipped, Subset, Wanted, backbone, claim, learn, print};
use crate::model::{CLASSES, TASK};
use crate::payback::Payback;
use crate::receipt::Number;
use crate::{Error, Model, Result};
pub use tune::{Depth, Tuned, Tuning};

/// What is asked for.
pub struct Request<'a> {
    /// Examples with their answers, and what is made of them.
    pub wanted: Wanted<'a>,
    /// Examples to judge the new model by, which nothing is learnt from.
    pub test: Option<&'a dyn Dataset>,
    /// Ways to fit a head that are tried.
    pub methods: &'a [Method],
    /// Does each class count the same, however many examples it has?
    pub balanced: bool,
    /// How weights before the head are trained; not at all when not given.
    pub tuning: Option<Tuning>,
    /// Told what is being done, in a few words.
    pub progress: &'a dyn Fn(&str),
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
    /// What came of training weights before the head.
    pub tuned: Option<Tuned>,
    /// How the new model does on the examples that were held out of that.
    pub held_out: Option<Eval>,
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
    /// The same, and after how many runs of the new model these have taken as much.
    pub payback: Payback,
}

/// A model that was taught.
pub struct Taught {
    /// The new model.
    pub model: Model,
    /// What was added to its weights, when factors were trained.
    pub adapter: Option<Adapter>,
    /// What was done and what came of it.
    pub report: Report,
}

/// Teaches a model a new task.
///
/// # Errors
/// When the model has no features, the data have no answers or only one, or an answer is missing; the example is named.
pub fn teach(model: &Model, request: &Request, cpu: &Cpu) -> Result<Taught> {
    let meter = Meter::start(Path::new(SENSORS), Duration::ZERO);
    let start = Instant::now();
    let backbone = backbone(model, request.wanted.node)?;
    let learnt = learn(&backbone, &request.wanted, cpu, request.progress)?;
    let feature_time = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let (all, names) = truth(request.wanted.data, &learnt.rows)?;
    let task = if matches!(all, Truth::Numbers(_)) { Task::Similarity } else { Task::Classify };
    // What is held out to say when training stops may teach the head nothing either.
    let shares = request.tuning.as_ref().map(|_| tune::shares(&all)).transpose()?;
    let (features, truth) = match &shares {
        Some((train, _)) => (learnt.features.select(train), all.select(train)),
        None => (learnt.features, all.clone()),
    };
    let problem = Problem::new(&features, &truth, request.balanced, crate::eval::SEED, cpu)?;
    let fitted = problem.best(request.methods)?;
    let head_time = start.elapsed().as_secs_f64();

    let mut head = fitted[0].head.clone();
    if request.tuning.is_some() {
        head.calm(&features);
    }
    let mut taught = with_head(&backbone, &head, &truth, names.as_deref())?;
    let options = Options { feed: request.wanted.feed.clone(), output: None };
    let (mut tuned, mut adapter, mut held_out) = (None, None, None);
    if let Some((tuning, shares)) = request.tuning.as_ref().zip(shares) {
        let counts = truth.counts();
        let mass = |&count: &usize| truth.rows() as f32 / counts.len() as f32 / count.max(1) as f32;
        let rows: Vec<usize> = shares.1.iter().map(|&at| learnt.rows[at]).collect();
        let examples = tune::Examples {
            data: request.wanted.data,
            rows: &learnt.rows,
            truth: &all,
            shares,
            masses: if request.balanced { counts.iter().map(mass).collect() } else { Vec::new() },
            feed: request.wanted.feed.clone(),
        };
        let (found, factors) = tune::tune(&mut taught, tuning, &examples, cpu, request.progress)?;
        (tuned, adapter) = (Some(found), factors);
        let judges = Subset { data: request.wanted.data, rows: &rows };
        held_out = Some(eval(&Answerer::new(&taught, cpu, task, &options)?, &judges, |_| ())?);
    }
    let heads = fitted.iter().map(|fitted| {
        let (_, value) = judged(fitted, &truth)?.metric()?;
        let (method, penalty) = (fitted.method, fitted.penalty);
        Ok(Tried { method, penalty, loss: problem.loss(fitted), value })
    });
    let heads = heads.collect::<Result<Vec<_>>>()?;
    let unseen =
        Eval::of(task, &judged(&fitted[0], &truth)?, request.wanted.data, names.as_deref(), head_time)?;
    let mut leaked = 0;
    let test = match request.test {
        None => None,
        Some(test) => {
            leaked = shared(request.wanted.data, &learnt.rows, test);
            Some(eval(&Answerer::new(&taught, cpu, task, &options)?, test, |_| ())?)
        }
    };
    // What an example takes: of those judged, else of those whose features were computed.
    let answered =
        test.as_ref().or(held_out.as_ref()).map(|eval| eval.time.value / eval.examples.max(1) as f64);
    let made = (!learnt.cached).then(|| feature_time / learnt.rows.len().max(1) as f64);
    let energy = meter.stop(&processor(&Machine::this()));
    let report = Report {
        data: request.wanted.data.describe(),
        examples: learnt.rows.len(),
        skipped: learnt.skipped,
        node: backbone.node,
        features: features.columns(),
        cached: learnt.cached,
        balanced: request.balanced,
        heads,
        unseen,
        tuned,
        held_out,
        test,
        leaked,
        feature_time: Number::measured(feature_time, "s"),
        head_time: Number::measured(head_time, "s"),
        payback: Payback::taught(&energy, answered.or(made), cpu.pool().threads()),
        energy,
    };
    Ok(Taught { model: taught, adapter, report })
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
    let backbone = backbone(model, request.wanted.node)?;
    let learnt = learn(&backbone, &request.wanted, cpu, request.progress)?;
    let (truth, _) = truth(request.wanted.data, &learnt.rows)?;
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

/// The answers to these examples, and the names of the classes.
pub(crate) fn truth(data: &dyn Dataset, rows: &[usize]) -> Result<(Truth, Option<Vec<String>>)> {
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
