//! Training for the right answers, starting from the head that was fitted.

use graph::{DType, Datum, Dim, Fact, Tensor};
use kernel::Cpu;
use learn::fit::{Inputs, Lessons, Loss};
use learn::head::Truth;

use super::{Examples, Trained, Tuning, told, train};
use crate::answer::{Options, Task};
use crate::lessons::Training;
use crate::{Model, Result};

/// The name of the right answers among the inputs of what is trained.
const TARGET: &str = "lessen.target";

/// What a teacher's logits and the pupil's are divided by.
const TEMPERATURE: f32 = 2.0;

/// Trains the model that has a head already, whose first output are its scores.
///
/// # Errors
/// When an operator between a weight and the scores has no gradient (the node is named), or an example cannot be read.
pub(in crate::teach) fn answer(
    model: &mut Model,
    tuning: &Tuning,
    examples: &Examples,
    cpu: &Cpu,
    progress: &dyn Fn(&str),
) -> Result<Trained> {
    let outputs = examples.truth.outputs();
    let options = Options { feed: examples.feed.clone(), output: None };
    let training = Training::new(model, examples.data, examples.rows.to_vec(), Task::Classify, &options)?;
    let pupil = Pupil { examples, training, outputs };
    let loss = |graph: &mut graph::Graph| {
        let scores = graph.outputs[0];
        let shape = vec![Dim::named("examples"), Dim::from(outputs)];
        let target = graph.add_input(TARGET, Fact::tensor(DType::F32, shape))?;
        let loss = match examples.truth {
            Truth::Classes { .. } if examples.logits.is_some() => Loss::Distil { temperature: TEMPERATURE },
            Truth::Classes { .. } => Loss::CrossEntropy,
            Truth::Labels { .. } => Loss::Binary,
            Truth::Numbers(_) => Loss::Squared,
        };
        Ok(loss.add(graph, scores, target)?)
    };
    train(model, tuning, &loss, &pupil, cpu, progress)
}

struct Pupil<'a> {
    examples: &'a Examples<'a>,
    training: Training<'a>,
    outputs: usize,
}

impl Pupil<'_> {
    /// What the scores of these examples are to be near to, row by row.
    fn targets(&self, rows: &[usize]) -> Vec<f32> {
        let Examples { truth, masses, logits, .. } = self.examples;
        match (truth, logits) {
            (Truth::Classes { .. } | Truth::Labels { .. }, Some(logits)) => {
                let all = rows.iter().flat_map(|&at| &logits[at * self.outputs..][..self.outputs]);
                let share =
                    |x: f32| if matches!(truth, Truth::Labels { .. }) { 1.0 / (1.0 + (-x).exp()) } else { x };
                all.map(|&x| share(x)).collect()
            }
            (Truth::Classes { of, .. }, None) if !masses.is_empty() => {
                let mut targets = truth.select(rows).targets();
                let each = targets.chunks_exact_mut(self.outputs).zip(rows);
                each.for_each(|(row, &at)| row.iter_mut().for_each(|x| *x *= masses[of[at]]));
                targets
            }
            _ => truth.select(rows).targets(),
        }
    }

    /// Batches with their right answers beside.
    fn batches(&self, positions: &[usize], seed: Option<u64>) -> Result<Vec<(Inputs, usize)>> {
        let batches = self.training.batches(positions, seed)?;
        let with_target = batches.into_iter().map(|(mut inputs, rows)| {
            let rows: Vec<usize> = rows.into_iter().map(|row| positions[row]).collect();
            let target = self.targets(&rows);
            let target = Tensor::new(&[rows.len(), self.outputs], &target)?;
            inputs.push((TARGET.into(), Datum::Tensor(target)));
            Ok((inputs, rows.len()))
        });
        with_target.collect()
    }
}

impl Lessons for Pupil<'_> {
    fn len(&self) -> usize {
        self.examples.shares.0.len()
    }

    fn lesson(&self, examples: &[usize], seed: u64) -> learn::Result<Vec<(Inputs, usize)>> {
        let positions: Vec<usize> = examples.iter().map(|&i| self.examples.shares.0[i]).collect();
        self.batches(&positions, Some(seed)).map_err(told)
    }

    fn exam(&self) -> learn::Result<Vec<(Inputs, usize)>> {
        let parts = self.examples.shares.1.chunks(64).map(|part| self.batches(part, None));
        parts.collect::<Result<Vec<_>>>().map(|parts| parts.concat()).map_err(told)
    }
}
