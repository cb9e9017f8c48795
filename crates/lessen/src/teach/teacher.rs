//! A teacher: a model that knows the task already, and whose answers are taken for right, so that a smaller one learns to
//! answer alike from examples without labels (Hinton, Vinyals and Dean, *Distilling the knowledge in a neural network*,
//! 2015).

use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::score::{Kind, kind_of};
use learn::{Example, Result as Read};

use crate::answer::{Answerer, Options, Task};
use crate::model::TASK;
use crate::{Error, Model, Result, feed};

/// Examples with a teacher's answers in the place of their own.
pub(super) struct Answered<'a> {
    data: &'a dyn Dataset,
    targets: Vec<Target>,
    classes: Option<Vec<String>>,
    /// The teacher's logits for each example; none for numbers, and for examples that cannot be read.
    logits: Vec<Vec<f32>>,
}

impl<'a> Answered<'a> {
    /// Asks the teacher.
    ///
    /// # Errors
    /// When it cannot answer such examples, or with nothing that can be learnt.
    pub fn by(
        teacher: &Model,
        data: &'a dyn Dataset,
        feed: &feed::Options,
        cpu: &Cpu,
        progress: &dyn Fn(&str),
    ) -> Result<Answered<'a>> {
        let task = teacher.inner().metadata(TASK).and_then(|t| t.parse().ok()).unwrap_or(Task::Classify);
        let answerer = Answerer::new(teacher, cpu, task, &Options { feed: feed.clone(), output: None })?;
        let readable: Vec<usize> = (0..data.len()).filter(|&i| data.get(i).is_ok()).collect();
        let (mut targets, mut logits) = (vec![Target::None; data.len()], vec![Vec::new(); data.len()]);
        let mut done = 0;
        answerer.each(data, &readable, |i, answer| {
            let missing = || {
                let what = "with nothing that can be learnt: no classes, labels or number";
                Error::input(format!("the teacher answers example {i} {what}"))
            };
            targets[i] = match task {
                Task::Similarity => {
                    Target::Score(answer.score.filter(|s| s.is_finite()).ok_or_else(missing)?)
                }
                Task::Multilabel => {
                    let labels = answer.labels().ok_or_else(missing)?;
                    Target::Labels((0..labels.len()).filter(|&label| labels[label]).collect())
                }
                Task::Classify | Task::Agree => Target::Class(answer.class().ok_or_else(missing)?),
            };
            if task != Task::Similarity {
                logits[i] = answer.outputs.into_iter().next().unwrap_or_default();
                if task == Task::Multilabel && answer.bar > 0.0 {
                    logits[i].iter_mut().for_each(|p| *p = logit(*p));
                }
            }
            done += 1;
            if done % 64 == 0 {
                progress(&format!("the teacher has answered {done} of {} examples", readable.len()));
            }
            Ok(())
        })?;
        let known = || readable.iter().map(|&i| logits[i].as_slice());
        if task.is_class() && kind_of(known()) == Kind::Probabilities {
            logits.iter_mut().flatten().for_each(|p| *p = p.max(LEAST).ln());
        }
        Ok(Answered { data, targets, classes: teacher.classes(), logits })
    }

    /// The teacher's logits for these examples, so many for each, row by row; `None` for numbers.
    ///
    /// # Errors
    /// When the teacher knows other classes than these.
    pub fn logits(&self, rows: &[usize], outputs: usize) -> Result<Option<Vec<f32>>> {
        if rows.iter().all(|&row| self.logits[row].is_empty()) {
            return Ok(None);
        }
        if let Some(&row) = rows.iter().find(|&&row| self.logits[row].len() != outputs) {
            return Err(Error::input(format!(
                "the teacher knows {} classes, and names only the first {outputs} for these examples; give examples \
                 of the others, too",
                self.logits[row].len()
            )));
        }
        Ok(Some(rows.iter().flat_map(|&row| &self.logits[row]).copied().collect()))
    }
}

/// No probability is taken for less.
const LEAST: f32 = 1e-7;

fn logit(p: f32) -> f32 {
    let p = p.clamp(LEAST, 1.0 - LEAST);
    (p / (1.0 - p)).ln()
}

impl Dataset for Answered<'_> {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn get(&self, i: usize) -> Read<Example> {
        Ok(Example { target: self.target(i), ..self.data.get(i)? })
    }

    fn target(&self, i: usize) -> Target {
        self.targets.get(i).cloned().unwrap_or(Target::None)
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn describe(&self) -> String {
        format!("{}, answered by the teacher", self.data.describe())
    }
}
