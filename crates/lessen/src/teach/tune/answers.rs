//! Training for the right answers, starting from the head that was fitted.

use graph::{DType, Datum, Dim, Fact, Tensor};
use learn::fit::Loss;
use learn::head::Truth;

use super::{Batches, Course, Examples};

/// The name of the right answers among the inputs of what is trained.
const TARGET: &str = "lessen.target";

/// What a teacher's logits and the pupil's are divided by.
const TEMPERATURE: f32 = 2.0;

/// Answers of a model that has a head already, whose first output are its scores.
pub(in crate::teach) fn answers<'a>(examples: &'a Examples<'a>) -> Course<'a> {
    let outputs = examples.truth.outputs();
    let loss = move |graph: &mut graph::Graph| {
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
    let beside = move |rows: &[usize]| {
        let target = Tensor::new(&[rows.len(), outputs], &targets(examples, rows))?;
        Ok(vec![(TARGET.into(), Datum::Tensor(target))])
    };
    Course { examples, loss: Box::new(loss), beside: Box::new(beside), batches: Batches::Any }
}

/// What the scores of the examples at these positions are to be near to, row by row.
fn targets(examples: &Examples, rows: &[usize]) -> Vec<f32> {
    let Examples { truth, masses, logits, .. } = examples;
    let outputs = truth.outputs();
    match (truth, logits) {
        (Truth::Classes { .. } | Truth::Labels { .. }, Some(logits)) => {
            let all = rows.iter().flat_map(|&at| &logits[at * outputs..][..outputs]).copied();
            match truth {
                Truth::Labels { .. } => all.map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
                _ => all.collect(),
            }
        }
        (Truth::Classes { of, .. }, None) if !masses.is_empty() => {
            let mut targets = truth.select(rows).targets();
            let each = targets.chunks_exact_mut(outputs).zip(rows);
            each.for_each(|(row, &at)| row.iter_mut().for_each(|x| *x *= masses[of[at]]));
            targets
        }
        _ => truth.select(rows).targets(),
    }
}
