//! Transfer learning: what a trained model knows, used again for a new task. The model's features of each example are
//! computed once, heads are fitted to them in seconds, and the one that does best on examples it has not seen becomes the
//! new model's last layer.

mod best;
mod similar;
mod suit;
pub(crate) mod taps;
mod teacher;
mod tune;

use std::path::Path;
use std::time::{Duration, Instant};

use graph::{Attrs, Tensor};
use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::head::{Fitted, Linear, Method, Problem, Truth};
use meter::energy::{Meter, SENSORS, processor};
use meter::{Energy, Machine, Place};
use serde::Serialize;

use crate::adapter::Adapter;
use crate::answer::{Answerer, Options, Task};
use crate::eval::{Eval, Judged, eval};
use crate::features::{FEATURES, Skipped, Subset, Wanted, claim, learn};
use crate::leaks::{self, Leak, Leaks};
use crate::model::MAX_TOKENS;
use crate::payback::Payback;
use crate::receipt::Number;
use crate::tasks::Purpose;
use crate::{Error, Model, Result};
pub use best::{Way, teach_best};
pub use suit::{Suit, suit};
use taps::Chosen;
pub use taps::Tapped;
use teacher::Answered;
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
    /// Features are to be so many times faster than all of the model.
    pub faster: Option<f64>,
    /// How weights before the head are trained; not at all when not given.
    pub tuning: Option<Tuning>,
    /// The name of the task, which then stands beside those that the model has; in their place when not given.
    pub add: Option<&'a str>,
    /// Are both texts of a pair shown to the model together (a cross-encoder), and not each alone to compare their vectors?
    pub cross: bool,
    /// A model whose answers are taken for right in the place of those of the examples.
    pub teacher: Option<&'a Model>,
    /// Where the machine stands, for what its energy costs.
    pub place: &'a Place,
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
    /// The values of the model that the features are of.
    pub nodes: Vec<String>,
    /// Where in the model they could be taken; nothing where there was no choice.
    pub taps: Vec<Tapped>,
    /// Numbers of an example.
    pub features: usize,
    /// Were the features there already?
    pub cached: bool,
    /// Does each class count the same?
    pub balanced: bool,
    /// The heads: first the one that was taken, which is the best or hardly worse, then the others by their loss. None where
    /// vectors of texts are compared.
    pub heads: Vec<Tried>,
    /// How the head does on examples of the data that it has not seen: each is judged by a head that was fitted without it.
    pub unseen: Option<Eval>,
    /// The ways of learning that were compared; none when it was said which.
    pub ways: Vec<Way>,
    /// What came of training weights before the head, or a map of the vectors of texts.
    pub tuned: Option<Tuned>,
    /// How the vectors of the model as it was do on the examples that were held out of that.
    pub before: Option<Eval>,
    /// How the new model does on the examples that were held out of that.
    pub held_out: Option<Eval>,
    /// How the new model does on the examples to judge it by.
    pub test: Option<Eval>,
    /// How many of those are among the examples that it was taught with, exactly or nearly.
    pub leaked: usize,
    /// The first of these.
    pub leaks: Vec<Leak>,
    /// Seconds for the features.
    pub feature_time: Number,
    /// Seconds for the heads, or for what was trained of vectors of texts.
    pub head_time: Number,
    /// What it took.
    #[serde(flatten)]
    pub spent: Spent,
}

/// What teaching took.
#[derive(Clone, Debug, Serialize)]
pub struct Spent {
    /// Energy that all of it took.
    pub energy: Energy,
    /// The same, and after how many runs of the new model these have taken as much.
    pub payback: Payback,
}

impl Spent {
    /// Until now; an example takes the new model so many seconds.
    fn until_now(meter: Meter, each: Option<f64>, place: &Place, cpu: &Cpu) -> Spent {
        let energy = meter.stop(&processor(&Machine::this()));
        Spent { payback: Payback::taught(&energy, each, cpu.pool().threads(), place), energy }
    }
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
    teach_metered(model, request, Meter::start(Path::new(SENSORS), Duration::ZERO), cpu)
}

/// The same with a meter that began before.
fn teach_metered(model: &Model, request: &Request, meter: Meter, cpu: &Cpu) -> Result<Taught> {
    let start = Instant::now();
    if let Some(name) = request.add {
        model.check_free(name)?;
        if request.tuning.is_some() {
            return Err(Error::input(
                "the other tasks use the weights that --tune and --contrast would change; leave --add away",
            ));
        }
    }
    let answered = request.teacher.map(|teacher| {
        Answered::by(teacher, request.wanted.data, &request.wanted.feed, cpu, request.progress)
    });
    let answered = answered.transpose()?;
    let data = answered.as_ref().map_or(request.wanted.data, |answered| answered);
    let mut wanted = Wanted { data, ..request.wanted.clone() };
    if !request.cross && similar::are_pairs(data) {
        return similar::teach(model, request, &wanted, meter, cpu);
    }
    let Chosen { mut backbone, mut learnt, each: feature_each, tried, problem } =
        features(model, request, &wanted, cpu)?;
    let (all, names) = truth(data, &learnt.rows)?;
    let task = task_of(&all);
    if request.balanced && task != Task::Classify {
        return Err(Error::input("--balanced lets classes count the same; these examples have none"));
    }
    let logits =
        answered.as_ref().map(|answered| answered.logits(&learnt.rows, all.outputs())).transpose()?;
    let cached = learnt.cached;
    // What is held out to say when training stops may teach the head nothing either.
    let tuning = request.tuning.as_ref();
    let shares = tuning.map(|tuning| tune::shares(&all, tuning.contrast)).transpose()?;
    let rows = learnt.rows.clone();
    let examples = shares.map(|shares| tune::Examples {
        data,
        rows: &rows,
        truth: &all,
        shares,
        masses: if request.balanced { all.masses().iter().map(|m| *m as f32).collect() } else { Vec::new() },
        logits: logits.flatten(),
        feed: wanted.feed.clone(),
    });
    let (mut tuned, mut adapter, mut held_out) = (None, None, None);
    if let Some((tuning, examples)) = tuning.zip(examples.as_ref()).filter(|(tuning, _)| tuning.contrast) {
        let course = tune::contrast(examples)?;
        let mut trained = tune::train(&mut backbone.model, tuning, &course, cpu, request.progress)?;
        adapter = trained.adapter.take();
        tuned = Some(trained.told(tuning, examples));
        // Such features are of no use to anybody else.
        wanted.cache = None;
        learnt = learn(&backbone, &wanted, None, cpu, request.progress)?;
    }
    let feature_time = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let (features, truth) = match &examples {
        Some(tune::Examples { shares: (train, _), .. }) => (learnt.features.select(train), all.select(train)),
        None => (learnt.features, all.clone()),
    };
    let problem = match problem {
        Some(problem) => problem,
        None => Problem::new(&features, &truth, request.balanced, crate::eval::SEED, cpu)?,
    };
    let fitted = problem.best(request.methods)?;
    let head_time = start.elapsed().as_secs_f64();

    let mut head = fitted[0].head.clone();
    if tuning.is_some_and(|tuning| !tuning.contrast) {
        head.calm(&features);
    }
    let base = if request.add.is_some() { &backbone.whole } else { &backbone.model };
    let mut taught = with_head(base, request.add, &head, &truth, names.as_deref())?;
    if let Some((tuning, examples)) = tuning.zip(examples.as_ref()) {
        if !tuning.contrast {
            let course = tune::answers(examples);
            let mut trained = tune::train(&mut taught, tuning, &course, cpu, request.progress)?;
            adapter = trained.adapter.take();
            tuned = Some(trained.told(tuning, examples));
        }
        let judges: Vec<usize> = examples.shares.1.iter().map(|&at| rows[at]).collect();
        if !judges.is_empty() {
            let judges = Subset { data, rows: &judges };
            held_out = Some(judge(&taught, task, &judges, request, cpu)?);
        }
    }
    let heads = fitted.iter().map(|fitted| {
        let (_, value) = judged(fitted, &truth)?.metric()?;
        let (method, penalty) = (fitted.method, fitted.penalty);
        Ok(Tried { method, penalty, loss: problem.loss(fitted), value })
    });
    let heads = heads.collect::<Result<Vec<_>>>()?;
    let unseen = Eval::of(task, &judged(&fitted[0], &truth)?, data, names.as_deref(), head_time)?;
    let mut leaks = Leaks::default();
    let test = match request.test {
        None => None,
        Some(test) => {
            leaks = leaks::between(data, &rows, test, cpu)?;
            let alone = request.add.map(|name| taught.only(name)).transpose()?;
            Some(judge(alone.as_ref().unwrap_or(&taught), task, test, request, cpu)?)
        }
    };
    // What an example takes: of those judged, else of those that nothing but features was computed of.
    let each = test.as_ref().or(held_out.as_ref()).map(|eval| eval.time.value / eval.examples.max(1) as f64);
    let plain = answered.is_none() && !tuning.is_some_and(|tuning| tuning.contrast);
    let each = each.or(feature_each.filter(|_| plain));
    let report = Report {
        data: data.describe(),
        examples: rows.len(),
        skipped: learnt.skipped,
        nodes: backbone.nodes,
        taps: tried,
        features: features.columns(),
        cached,
        balanced: request.balanced,
        heads,
        unseen: Some(unseen),
        ways: Vec::new(),
        tuned,
        before: None,
        held_out,
        test,
        leaked: leaks.count,
        leaks: leaks.first,
        feature_time: Number::measured(feature_time, "s"),
        head_time: Number::measured(head_time, "s"),
        spent: Spent::until_now(meter, each, request.place, cpu),
    };
    Ok(Taught { model: taught, adapter, report })
}

/// Features of the named value, or of where they do best; of the model's end when the weights before it are trained, and when
/// other tasks have the same.
fn features<'a>(model: &Model, request: &Request, wanted: &Wanted, cpu: &'a Cpu) -> Result<Chosen<'a>> {
    let fixed = [
        (wanted.node.is_some(), "--features names them"),
        (request.tuning.is_some(), "--tune and --contrast train all that lies before them"),
        (request.add.is_some(), "--add lets tasks share them"),
    ];
    match fixed.iter().find(|(is, _)| *is) {
        None => taps::choose(model, wanted, request.balanced, request.faster, cpu, request.progress),
        Some((_, why)) if request.faster.is_some() => {
            Err(Error::input(format!("--faster chooses the features, but {why}; leave one away")))
        }
        Some(_) => Chosen::fixed(model, wanted, cpu, request.progress),
    }
}

/// How a model does on examples.
fn judge(model: &Model, task: Task, data: &dyn Dataset, request: &Request, cpu: &Cpu) -> Result<Eval> {
    let options = Options { feed: request.wanted.feed.clone(), output: None };
    eval(&Answerer::new(model, cpu, task, &options)?, data, |_| ())
}

/// Most labels of all examples together that a head is fitted to.
const MOST_LABELS: usize = 1 << 30;

fn task_of(truth: &Truth) -> Task {
    match truth {
        Truth::Classes { .. } => Task::Classify,
        Truth::Labels { .. } => Task::Multilabel,
        Truth::Numbers(_) => Task::Similarity,
    }
}

/// The answers to these examples, and the names of the classes.
pub(crate) fn truth(data: &dyn Dataset, rows: &[usize]) -> Result<(Truth, Option<Vec<String>>)> {
    let missing = |i: usize, what: &str| {
        Error::input(format!("{} has no {what} to learn from", crate::eval::name_of(data, i)))
    };
    let Some(&first) = rows.first() else { return Err(Error::input("there are no examples to learn from")) };
    match data.target(first) {
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
        Target::Labels(_) => {
            let held = |&i: &usize| match data.target(i) {
                Target::Labels(held) => Ok(held),
                _ => Err(missing(i, "labels")),
            };
            let held = rows.iter().map(held).collect::<Result<Vec<_>>>()?;
            let greatest = held.iter().filter_map(|held| held.last()).max().map_or(0, |last| last + 1);
            let names = data.classes().map(<[String]>::to_vec);
            let count = names.as_ref().map_or(greatest, Vec::len).max(greatest);
            if count == 0 {
                return Err(Error::input("no example has a label to learn from"));
            }
            if count.saturating_mul(rows.len()) > MOST_LABELS {
                return Err(Error::input(format!("{count} labels for {} examples are too many", rows.len())));
            }
            let mut of = vec![false; count * rows.len()];
            of.chunks_exact_mut(count)
                .zip(&held)
                .for_each(|(of, held)| held.iter().for_each(|&l| of[l] = true));
            Ok((Truth::Labels { of, count }, names))
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
        Truth::Labels { of, count } => {
            let answers = scores.map(|row| row.iter().map(|score| *score > 0.0).collect()).collect();
            Judged::Labels(answers, unseen.rows.iter().map(|&i| of[i * count..][..*count].to_vec()).collect())
        }
    })
}

/// A model with a head behind its features: `logits` and `probabilities` of classes or labels, or a `score`; beside what it
/// answers already when the task has a name, which begins the names of these outputs, and else in its place.
fn with_head(
    model: &Model,
    task: Option<&str>,
    head: &Linear,
    truth: &Truth,
    names: Option<&[String]>,
) -> Result<Model> {
    let mut inner = model.inner().clone();
    // Texts are cut where those were that the head has learnt from.
    if let Some(limit) = model.tokenizer().and_then(|tokenizer| tokenizer.limit()) {
        inner.set_metadata(MAX_TOKENS, limit.to_string());
    }
    let graph = &mut inner.graph;
    let outputs = head.bias.len();
    let features =
        graph.find(FEATURES).ok_or_else(|| Error::input("the model has no value with its features"))?;
    let named = |name: &str| task.map_or_else(|| name.to_owned(), |task| format!("{task}.{name}"));
    let head_of =
        |name: &str| task.map_or_else(|| format!("head{name}"), |task| format!("head.{task}{name}"));
    let weight = Tensor::new(&[outputs, head.weight.len() / outputs], &head.weight)?;
    let weight = graph.add_constant(&head_of(".weight"), weight);
    let bias = graph.add_constant(&head_of(".bias"), Tensor::new(&[outputs], &head.bias)?);
    let product = Attrs::new().int("transB", 1);
    let scores = graph.append(&head_of(""), "Gemm", 13, &product, &[features, weight, bias])?;
    if task.is_none() {
        graph.outputs.clear();
    }
    graph.outputs.push(scores);
    match truth {
        Truth::Numbers(_) => claim(graph, scores, &named("score"))?,
        _ => {
            claim(graph, scores, &named("logits"))?;
            let shares = match truth {
                Truth::Labels { .. } => {
                    graph.append(&head_of(".sigmoid"), "Sigmoid", 13, &Attrs::new(), &[scores])?
                }
                _ => {
                    let last = Attrs::new().int("axis", -1);
                    graph.append(&head_of(".softmax"), "Softmax", 13, &last, &[scores])?
                }
            };
            claim(graph, shares, &named("probabilities"))?;
            graph.outputs.push(shares);
        }
    }
    for id in graph.outputs.clone() {
        graph.value_mut(id).declared = true;
    }
    let purpose = Purpose { task: task_of(truth).to_string(), classes: names.map(<[String]>::to_vec) };
    match task {
        Some(task) => {
            let mut made = model.with_inner(inner);
            made.add_task(task, purpose)?;
            Ok(made)
        }
        None => {
            let made = model.with_inner(inner);
            made.with_purpose(&purpose)
        }
    }
}
