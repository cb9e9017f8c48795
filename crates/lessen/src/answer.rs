//! What a model answers to examples: scores of classes, vectors of texts, numbers.

use std::fmt;
use std::str::FromStr;

use graph::{DType, Datum, Fact, Tensor};
use learn::Input;
use learn::data::{Dataset, Target};
use serde::Serialize;

use crate::feed::{self, Batch, Feeder, Prepared};
use crate::model::{POOLING, TASK};
use crate::{Cpu, Error, Model, Result, Runner};

/// What a model is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// To name the class of an example.
    Classify,
    /// To name all labels that hold for an example, perhaps none.
    Multilabel,
    /// To say how much two texts mean the same: by the cosine of their vectors, or by a number of its own.
    Similarity,
    /// To answer as another model does.
    Agree,
}

impl Task {
    /// The task that the data's answers are for, or else the one that the model names.
    pub fn guess(model: &Model, data: &dyn Dataset) -> Task {
        match data.target(0) {
            Target::Class(_) => Task::Classify,
            Target::Labels(_) => Task::Multilabel,
            Target::Score(_) => Task::Similarity,
            Target::None => model.inner().metadata(TASK).and_then(|t| t.parse().ok()).unwrap_or(Task::Agree),
        }
    }

    /// Is the answer one class?
    pub(crate) fn is_class(self) -> bool {
        matches!(self, Task::Classify | Task::Agree)
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Task, String> {
        match text {
            "classify" => Ok(Task::Classify),
            "multilabel" => Ok(Task::Multilabel),
            "similarity" => Ok(Task::Similarity),
            "agree" => Ok(Task::Agree),
            _ => Err(format!("{text:?} is no task; tasks are classify, multilabel, similarity and agree")),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Classify => "classify",
            Task::Multilabel => "multilabel",
            Task::Similarity => "similarity",
            Task::Agree => "agree",
        })
    }
}

/// How examples are shown and answers read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How examples are shown.
    pub feed: feed::Options,
    /// The output that is the answer; chosen by the task when not given.
    pub output: Option<String>,
}

/// A model that answers examples.
pub struct Answerer {
    runner: Runner,
    cpu: Cpu,
    feeder: Feeder,
    task: Task,
    /// The outputs that are read, the most important first.
    outputs: Vec<usize>,
    first_token: bool,
    /// See [`Answer::bar`].
    bar: f32,
}

/// What a model answers to one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The outputs that are read, the most important first.
    pub outputs: Vec<Vec<f32>>,
    /// How much two texts mean the same, for [`Task::Similarity`].
    pub score: Option<f64>,
    /// True when the first output is a row of numbers, which may stand for classes; false for maps and sequences.
    pub is_row: bool,
    /// A label holds when its number is greater: 0 for logits, a half for probabilities.
    pub bar: f32,
}

impl Answer {
    /// The class with the greatest number; `None` when the output has less than two numbers, or NaN, or is no row.
    pub fn class(&self) -> Option<usize> {
        let values = self.outputs.first().filter(|v| v.len() > 1 && self.is_row)?;
        let mut best = 0;
        for (i, value) in values.iter().enumerate() {
            if value.is_nan() {
                return None;
            }
            if *value > values[best] {
                best = i;
            }
        }
        Some(best)
    }

    /// Whether each label holds, by index; `None` when there are no numbers, or NaN among them, or they are no row.
    pub fn labels(&self) -> Option<Vec<bool>> {
        let values = self.outputs.first().filter(|v| !v.is_empty() && self.is_row)?;
        (!values.iter().any(|v| v.is_nan())).then(|| values.iter().map(|v| *v > self.bar).collect())
    }
}

/// Most examples that are made ready at once: tokens are small, and the more, the less is padded.
const MANY: usize = 4096;
/// The same for images and arrays.
const FEW: usize = 64;

impl Answerer {
    /// Makes a model ready to answer.
    ///
    /// # Errors
    /// When the model cannot be run, or has no output to read.
    pub fn new(model: &Model, cpu: &Cpu, task: Task, options: &Options) -> Result<Answerer> {
        let runner = Runner::new(model, cpu)?;
        let outputs = match &options.output {
            Some(name) => {
                let at = runner.outputs().iter().position(|(n, _)| n == name);
                vec![at.ok_or_else(|| {
                    let names: Vec<&str> = runner.outputs().iter().map(|(n, _)| *n).collect();
                    Error::input(format!("the model has no output {name:?}; it has {}", names.join(", ")))
                })?]
            }
            None => select(&runner.outputs(), task)?,
        };
        let first_token = match model.inner().metadata(POOLING) {
            None | Some("mean") => false,
            Some("cls") => true,
            Some(other) => {
                return Err(Error::input(format!(
                    "the model's entry {POOLING:?} is {other:?}; known are mean and cls"
                )));
            }
        };
        let graph = &model.inner().graph;
        let main = outputs.first().and_then(|&i| graph.outputs.get(i));
        let probable = main.and_then(|&id| graph.producer(id)).is_some_and(|(_, n)| n.kind() == "Sigmoid");
        Ok(Answerer {
            bar: if probable { 0.5 } else { 0.0 },
            runner,
            cpu: cpu.clone(),
            feeder: Feeder::new(model, &options.feed)?,
            task,
            outputs,
            first_token,
        })
    }

    /// The model as it runs.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// What makes the model's inputs.
    pub fn feeder(&self) -> &Feeder {
        &self.feeder
    }

    /// The task.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Names of the outputs that are read, the most important first.
    pub fn outputs(&self) -> Vec<&str> {
        let all = self.runner.outputs();
        self.outputs.iter().map(|&i| all[i].0).collect()
    }

    /// True when the model takes both texts of a pair at once and answers with one number.
    fn is_cross(&self) -> bool {
        let outputs = self.runner.outputs();
        let shape = self.outputs.first().and_then(|&i| outputs[i].1.shape());
        shape.is_some_and(|s| s.len() == 2 && s[1].size() == Some(1))
    }

    /// The answers to these examples of a data set, in order; `each` gets them one by one with the index.
    ///
    /// # Errors
    /// When an example cannot be read or does not fit the model, or the model fails.
    pub fn each(
        &self,
        data: &dyn Dataset,
        indices: &[usize],
        mut each: impl FnMut(usize, Answer) -> Result<()>,
    ) -> Result<()> {
        for part in indices.chunks(part_size(data, indices)?) {
            let read = self.cpu.pool().map(part.len(), |i| Ok(data.get(part[i])?.input));
            let inputs = read.into_iter().collect::<Result<Vec<Input>>>()?;
            for (&i, answer) in part.iter().zip(self.answers(&inputs)?) {
                each(i, answer)?;
            }
        }
        Ok(())
    }

    /// The answers to these examples, in order.
    ///
    /// # Errors
    /// As [`Answerer::each`].
    pub fn answers(&self, inputs: &[Input]) -> Result<Vec<Answer>> {
        if self.task != Task::Similarity || self.is_cross() {
            let prepared = self.prepared(inputs)?;
            let outputs = self.run(&prepared)?.into_iter();
            let rank = self.outputs.first().and_then(|&i| self.runner.outputs()[i].1.rank());
            let is_row = rank.is_none_or(|rank| rank <= 2);
            return Ok(outputs
                .map(|outputs| {
                    let score = (self.task == Task::Similarity).then(|| first(&outputs));
                    Answer { outputs, score, is_row, bar: self.bar }
                })
                .collect());
        }
        let mut texts = Vec::with_capacity(2 * inputs.len());
        for input in inputs {
            let Input::Pair(a, b) = input else {
                return Err(Error::input("similarity needs examples of two texts: text_a and text_b"));
            };
            texts.extend([a, b].map(|text| Input::Text(text.clone())));
        }
        let prepared = self.prepared(&texts)?;
        let mut vectors = self.run(&prepared)?.into_iter().map(|outputs| outputs.into_iter().next());
        let mut answers = Vec::with_capacity(inputs.len());
        while let (Some(Some(a)), Some(Some(b))) = (vectors.next(), vectors.next()) {
            let score = Some(cosine(&a, &b));
            answers.push(Answer { outputs: vec![[a, b].concat()], score, is_row: true, bar: self.bar });
        }
        Ok(answers)
    }

    fn prepared(&self, inputs: &[Input]) -> Result<Vec<Prepared>> {
        self.cpu.pool().map(inputs.len(), |i| self.feeder.prepare(&inputs[i])).into_iter().collect()
    }

    /// Batches are run side by side, each on one thread, when there are enough of them; those of long texts come first, so
    /// that no thread is left alone with one.
    fn run(&self, prepared: &[Prepared]) -> Result<Vec<Vec<Vec<f32>>>> {
        let mut batches = self.feeder.batches(prepared)?;
        batches.reverse();
        let pool = self.cpu.pool();
        let found = match batches.len() >= pool.threads() {
            true => pool.map(batches.len(), |i| self.outputs_of(&batches[i], prepared)),
            false => batches.iter().map(|batch| self.outputs_of(batch, prepared)).collect(),
        };
        let mut answers = vec![Vec::new(); prepared.len()];
        for (batch, found) in batches.iter().zip(found) {
            batch.rows.iter().zip(found?).for_each(|(&row, found)| answers[row] = found);
        }
        Ok(answers)
    }

    /// The outputs for each example of a batch.
    fn outputs_of(&self, batch: &Batch, prepared: &[Prepared]) -> Result<Vec<Vec<Vec<f32>>>> {
        if let Some(found) = self.run_batch(batch)? {
            return Ok(found);
        }
        // The first size of an output is not that of the batch: one example at a time.
        let alone = |row: &usize| {
            let single = self.feeder.batches_of(std::slice::from_ref(&prepared[*row]), 1)?;
            let found = single.first().map(|single| self.run_batch(single)).transpose()?.flatten();
            let found = found.and_then(|found| found.into_iter().next());
            found.ok_or_else(|| Error::input("the model's outputs cannot be told apart by example"))
        };
        batch.rows.iter().map(alone).collect()
    }

    /// `None` when the outputs cannot be shared out among the examples.
    fn run_batch(&self, batch: &Batch) -> Result<Option<Vec<Vec<Vec<f32>>>>> {
        let given = batch.arrays.first().and_then(|(_, t)| t.shape().first().copied()).unwrap_or(1);
        let outputs = self.runner.run(&batch.arrays)?;
        let mut found: Vec<Vec<Vec<f32>>> = vec![Vec::new(); batch.rows.len()];
        for &i in &self.outputs {
            let (name, datum) = &outputs[i];
            let Datum::Tensor(tensor) = datum else {
                return Err(Error::input(format!("output {name:?} is a {}, not a tensor", datum.kind())));
            };
            let values = tensor.to_f32()?;
            let shared = tensor.shape().first() == Some(&given);
            if !shared && given > 1 {
                return Ok(None);
            }
            let each = if shared && given > 0 { values.len() / given } else { values.len() };
            for (row, found) in found.iter_mut().enumerate() {
                let values = &values[row * each..(row + 1) * each];
                found.push(match &batch.mask {
                    Some(mask) if tensor.rank() == 3 && self.task == Task::Similarity => {
                        let (tokens, width) = (tensor.shape()[1], tensor.shape()[2]);
                        let mask = mask.as_slice::<i64>()?.get(row * tokens..(row + 1) * tokens);
                        self.pool(values, width, mask.unwrap_or_default())
                    }
                    _ => values.to_vec(),
                });
            }
        }
        Ok(Some(found))
    }

    /// One vector of length 1 from the vectors of a text's tokens, padding left out.
    fn pool(&self, values: &[f32], width: usize, mask: &[i64]) -> Vec<f32> {
        let used = if self.first_token { 1 } else { mask.len() };
        let vectors = values.chunks_exact(width.max(1)).zip(mask).filter(|(_, m)| **m != 0).take(used);
        let mut sum = vec![0f64; width];
        for (vector, _) in vectors {
            sum.iter_mut().zip(vector).for_each(|(s, v)| *s += f64::from(*v));
        }
        let norm = sum.iter().map(|s| s * s).sum::<f64>().sqrt().max(1e-12);
        sum.iter().map(|s| (s / norm) as f32).collect()
    }
}

/// How many examples of a data set to make ready at once.
pub(crate) fn part_size(data: &dyn Dataset, indices: &[usize]) -> Result<usize> {
    let first = indices.first().map(|&i| data.get(i)).transpose()?;
    Ok(match first.map(|e| e.input) {
        Some(Input::Text(_) | Input::Pair(..)) => MANY,
        _ => FEW,
    })
}

fn first(outputs: &[Vec<f32>]) -> f64 {
    outputs.first().and_then(|o| o.first()).map_or(f64::NAN, |&v| f64::from(v))
}

/// The cosine of the angle between two vectors; 0 when one of them has no length.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let norm = (dot(a, a) * dot(b, b)).sqrt();
    if norm > 0.0 { dot(a, b) / norm } else { 0.0 }
}

/// The name of the output that is the answer to a task.
///
/// # Errors
/// When no output holds numbers.
pub fn selected<'a>(outputs: &[(&'a str, &Fact)], task: Task) -> Result<&'a str> {
    Ok(outputs[select(outputs, task)?[0]].0)
}

/// The outputs to read for a task, the most important first.
fn select(outputs: &[(&str, &Fact)], task: Task) -> Result<Vec<usize>> {
    let is_number = |fact: &Fact| fact.dtype().is_none_or(DType::is_float);
    let numbers: Vec<usize> = (0..outputs.len()).filter(|&i| is_number(outputs[i].1)).collect();
    let name = |i: &usize| outputs[*i].0.to_lowercase();
    let rank = |i: &usize| outputs[*i].1.rank();
    let find = |test: &dyn Fn(&usize) -> bool| numbers.iter().copied().find(|i| test(i));
    let main = match task {
        // A model may give the vector of a text beside those of its tokens; a "pooler" is for another task.
        Task::Similarity => find(&|i| name(i).contains("embedding") && rank(i) == Some(2))
            .or_else(|| find(&|i| rank(i) == Some(2) && !name(i).contains("pooler")))
            .or_else(|| find(&|i| name(i).contains("last_hidden_state")))
            .or_else(|| find(&|i| rank(i) == Some(3))),
        Task::Classify | Task::Multilabel | Task::Agree => {
            find(&|i| name(i) == "logits").or_else(|| find(&|i| rank(i) == Some(2)))
        }
    };
    let Some(main) = main.or(numbers.first().copied()) else {
        return Err(Error::input("the model has no output of floating-point numbers"));
    };
    Ok(match task {
        Task::Agree => std::iter::once(main).chain(numbers.into_iter().filter(|&i| i != main)).collect(),
        _ => vec![main],
    })
}

/// The first numbers of a tensor, for people.
pub fn preview(tensor: &Tensor, most: usize) -> String {
    let list = |items: Vec<String>| {
        let more = if tensor.len() > most { ", .." } else { "" };
        format!("[{}{more}]", items.join(", "))
    };
    match tensor.dtype() {
        DType::String => list(tensor.as_strings().unwrap_or_default().iter().take(most).cloned().collect()),
        dtype if dtype.is_float() => {
            let values = tensor.to_f32().unwrap_or_default();
            list(values.iter().take(most).map(|v| format!("{v:.5}")).collect())
        }
        _ => {
            let values = tensor.to_ints().unwrap_or_default();
            list(values.iter().take(most).map(i64::to_string).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use graph::Dim;

    fn fact(dtype: DType, rank: usize) -> Fact {
        Fact::tensor(dtype, vec![Dim::Unknown; rank])
    }

    #[test]
    fn the_vector_of_a_text_is_found_among_outputs() {
        let (ints, two, three) = (fact(DType::I64, 2), fact(DType::F32, 2), fact(DType::F32, 3));
        let choose = |outputs: &[(&str, &Fact)], task| select(outputs, task).unwrap();
        let exported = [("output", &ints), ("463", &ints), ("422", &three), ("461", &two)];
        assert_eq!(choose(&exported, Task::Similarity), [3]);
        let plain = [("last_hidden_state", &three), ("pooler_output", &two)];
        assert_eq!(choose(&plain, Task::Similarity), [0]);
        assert_eq!(
            choose(&[("token_embeddings", &three), ("sentence_embedding", &two)], Task::Similarity),
            [1]
        );
        assert_eq!(choose(&[("hidden", &three), ("logits", &two)], Task::Classify), [1]);
        assert_eq!(choose(&[("a", &three), ("n", &ints), ("b", &two)], Task::Agree), [2, 0]);
        assert!(select(&[("n", &ints)], Task::Agree).is_err());
    }

    #[test]
    fn classes_are_the_first_greatest() {
        let class = |values: &[f32]| {
            Answer { outputs: vec![values.to_vec()], score: None, is_row: true, bar: 0.0 }.class()
        };
        assert_eq!(class(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(class(&[1.0]), None);
        assert_eq!(class(&[1.0, f32::NAN]), None);
    }
}
