//! How good a model is on data whose answers are known.

use std::time::Instant;

use learn::data::{Dataset, Target};
use learn::score::{self, Interval};
use serde::Serialize;

use crate::answer::{Answer, Answerer, Task};
use crate::receipt::Number;
use crate::{Error, Result};

/// The seed of every bootstrap.
pub(crate) const SEED: u64 = 1;

/// How good a model is.
#[derive(Clone, Debug, Serialize)]
pub struct Eval {
    /// What it was asked to do.
    pub task: Task,
    /// What the data are.
    pub data: String,
    /// Number of examples.
    pub examples: usize,
    /// The name of [`Eval::value`].
    pub metric: &'static str,
    /// The metric.
    pub value: Number,
    /// The mean of F1 over the classes or labels, for [`Task::Classify`] and [`Task::Multilabel`].
    pub macro_f1: Option<Number>,
    /// What became of each class or label.
    pub classes: Vec<Class>,
    /// Time that all examples took, with reading them.
    pub time: Number,
}

/// What became of one class.
#[derive(Clone, Debug, Serialize)]
pub struct Class {
    /// Its index.
    pub class: usize,
    /// Its name.
    pub name: Option<String>,
    /// Number of its examples.
    pub examples: usize,
    /// How many of them were answered right.
    pub recall: Number,
}

/// Answers and truths of all examples of a task.
#[derive(Clone, Debug)]
pub enum Judged {
    /// Classes.
    Classes(Vec<usize>, Vec<usize>),
    /// Whether each label holds.
    Labels(Vec<Vec<bool>>, Vec<Vec<bool>>),
    /// Scores.
    Scores(Vec<f64>, Vec<f64>),
}

impl Judged {
    /// No examples yet.
    ///
    /// # Errors
    /// For [`Task::Agree`], which needs a second model.
    pub fn new(task: Task) -> Result<Judged> {
        match task {
            Task::Classify => Ok(Judged::Classes(Vec::new(), Vec::new())),
            Task::Multilabel => Ok(Judged::Labels(Vec::new(), Vec::new())),
            Task::Similarity => Ok(Judged::Scores(Vec::new(), Vec::new())),
            Task::Agree => Err(Error::input(
                "the data have neither labels nor scores to judge by; compare with another model instead: \
                 lessen compare A B --data PATH",
            )),
        }
    }

    /// Adds the answer to an example of this name.
    ///
    /// # Errors
    /// When the answer or the truth is not of the task's kind.
    pub fn add(&mut self, id: impl Fn() -> String, answer: &Answer, target: Target) -> Result<()> {
        match (self, target) {
            (Judged::Classes(answers, truths), Target::Class(truth)) => {
                let numbers = answer.outputs.first().map_or(0, Vec::len);
                let class = answer.class().ok_or_else(|| {
                    Error::input(match numbers {
                        0 | 1 => format!(
                            "the model answers with {numbers} number(s) an example; to classify it takes one for each class"
                        ),
                        _ => format!("the model answers {} with NaN", id()),
                    })
                })?;
                if truth >= numbers {
                    return Err(Error::input(format!(
                        "{} is of class {truth}, but the model knows only {numbers} classes",
                        id()
                    )));
                }
                answers.push(class);
                truths.push(truth);
            }
            (Judged::Labels(answers, truths), Target::Labels(held)) => {
                let answer = answer.labels().ok_or_else(|| {
                    Error::input(format!(
                        "the model answers {} with no row of numbers, one for each label",
                        id()
                    ))
                })?;
                if let Some(label) = held.iter().find(|label| **label >= answer.len()) {
                    let known = answer.len();
                    let id = id();
                    return Err(Error::input(format!(
                        "{id} has label {label}, but the model knows only {known}"
                    )));
                }
                truths.push((0..answer.len()).map(|label| held.binary_search(&label).is_ok()).collect());
                answers.push(answer);
            }
            (Judged::Scores(answers, truths), Target::Score(truth)) => {
                answers.push(answer.score.filter(|s| s.is_finite()).ok_or_else(|| {
                    Error::input(format!("the model answers {} with no finite number", id()))
                })?);
                truths.push(truth);
            }
            // Classes that are degrees, such as 0 to 5.
            (Judged::Scores(answers, truths), Target::Class(truth)) => {
                answers.push(answer.score.unwrap_or(f64::NAN));
                truths.push(truth as f64);
            }
            (Judged::Classes(..), _) => {
                return Err(Error::input(format!("{} has no class to judge by", id())));
            }
            (Judged::Labels(..), _) => {
                return Err(Error::input(format!("{} has no set of labels to judge by", id())));
            }
            (Judged::Scores(..), _) => {
                return Err(Error::input(format!("{} has no score to judge by", id())));
            }
        }
        Ok(())
    }

    /// The name of the metric of the task.
    pub fn name(&self) -> &'static str {
        match self {
            Judged::Classes(..) => "top-1 accuracy",
            Judged::Labels(..) => "micro F1",
            Judged::Scores(..) => "Spearman correlation",
        }
    }

    /// The metric of the task: its name, and its value with an interval.
    ///
    /// # Errors
    /// When there are too few examples.
    pub fn metric(&self) -> Result<(&'static str, Number)> {
        let value = match self {
            Judged::Classes(answers, truths) => percent(score::accuracy_interval(answers, truths)?),
            Judged::Labels(answers, truths) => {
                percent(score::with_interval(score::micro_f1, &rows(answers), &rows(truths), SEED)?)
            }
            Judged::Scores(answers, truths) => {
                number(score::with_interval(score::spearman, answers, truths, SEED)?, "")
            }
        };
        Ok((self.name(), value))
    }

    /// This metric less that of `before`, over the same examples.
    ///
    /// # Errors
    /// When there are too few examples, or those of `before` are of another kind.
    pub fn difference(&self, before: &Judged) -> Result<Number> {
        Ok(match (before, self) {
            (Judged::Classes(a, truths), Judged::Classes(b, _)) => {
                Number { unit: "points", ..percent(score::accuracy_difference(a, b, truths)?) }
            }
            (Judged::Labels(a, truths), Judged::Labels(b, _)) => {
                let [a, b, truths] = [a, b, truths].map(|of| rows(of));
                Number {
                    unit: "points",
                    ..percent(score::difference(score::micro_f1, &a, &b, &truths, SEED)?)
                }
            }
            (Judged::Scores(a, truths), Judged::Scores(b, _)) => {
                number(score::difference(score::spearman, a, b, truths, SEED)?, "")
            }
            _ => return Err(Error::input("the models were judged by different tasks")),
        })
    }
}

/// Sets of labels as the rows that metrics take.
pub(crate) fn rows(sets: &[Vec<bool>]) -> Vec<&[bool]> {
    sets.iter().map(Vec::as_slice).collect()
}

/// An interval as a number of this unit.
pub fn number(interval: Interval, unit: &'static str) -> Number {
    Number::within(interval.value, interval.low, interval.high, unit)
}

/// A share as per cent.
pub fn percent(share: Interval) -> Number {
    number(share, "").scaled(100.0, "%")
}

/// Judges a model on all examples of a data set. `progress` is told how many are done.
///
/// # Errors
/// When an example cannot be read, does not fit the model, or has no known answer.
pub fn eval(answerer: &Answerer, data: &dyn Dataset, mut progress: impl FnMut(usize)) -> Result<Eval> {
    let start = Instant::now();
    let mut judged = Judged::new(answerer.task())?;
    let all: Vec<usize> = (0..data.len()).collect();
    let mut done = 0;
    answerer.each(data, &all, |i, answer| {
        judged.add(|| name_of(data, i), &answer, data.target(i))?;
        done += 1;
        progress(done);
        Ok(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    Eval::of(answerer.task(), &judged, data, data.classes(), seconds)
}

impl Eval {
    /// What came of answers that were judged: those to `data`, or some of them.
    ///
    /// # Errors
    /// When there are too few examples.
    pub(crate) fn of(
        task: Task,
        judged: &Judged,
        data: &dyn Dataset,
        names: Option<&[String]>,
        seconds: f64,
    ) -> Result<Eval> {
        let (metric, value) = judged.metric()?;
        let (counts, macro_f1, examples) = match judged {
            Judged::Scores(answers, _) => (Vec::new(), None, answers.len()),
            Judged::Labels(answers, truths) => {
                let (answers, truths) = (rows(answers), rows(truths));
                let f1 = score::with_interval(score::label_macro_f1, &answers, &truths, SEED)?;
                let counts = score::by_label(&answers, &truths).into_iter().enumerate().collect();
                (counts, Some(percent(f1)), answers.len())
            }
            Judged::Classes(answers, truths) => {
                let f1 = score::with_interval(score::macro_f1, answers, truths, SEED)?;
                (score::by_class(answers, truths), Some(percent(f1)), answers.len())
            }
        };
        let class = |(class, count): (usize, score::ClassCount)| Class {
            class,
            name: names.and_then(|n| n.get(class)).cloned(),
            examples: count.truth,
            recall: percent(score::wilson(count.right, count.truth)),
        };
        let classes = counts.into_iter().filter(|(_, count)| count.truth > 0).map(class).collect();
        Ok(Eval {
            task,
            data: data.describe(),
            examples,
            metric,
            value,
            macro_f1,
            classes,
            time: Number::measured(seconds, "s"),
        })
    }
}

/// What an example is called in reports.
pub(crate) fn name_of(data: &dyn Dataset, i: usize) -> String {
    data.get(i).map_or_else(|_| format!("example {i}"), |e| e.id)
}
