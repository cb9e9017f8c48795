//! Vectors of texts whose cosines go with the scores of pairs.

use std::collections::HashMap;

use graph::{DType, Datum, Dim, Fact, Tensor, ValueId};
use learn::fit::{Inputs, correlated};

use super::{Batches, Course, Examples};
use crate::{Error, Result};

/// Pairs whose cosines are held beside their scores together.
const TOGETHER: usize = 16;
/// The names of which rows are a pair, and of what is wanted of its cosine, among the inputs of what is trained.
const PAIRS: &str = "lessen.pairs";
const WANTED: &str = "lessen.wanted";

/// The scores, one for each pair, that cosines shall go with.
#[derive(Clone, Copy)]
pub(in crate::teach) struct Scores<'a>(pub &'a [f64]);

impl Scores<'_> {
    /// Adds what is to become small to a graph whose first output are vectors.
    pub fn loss(graph: &mut graph::Graph) -> Result<ValueId> {
        let vectors = graph.outputs[0];
        let shape = |columns: Dim| Fact::tensor(DType::F32, vec![Dim::named("one"), columns]);
        let pairs = graph.add_input(PAIRS, shape(Dim::named("other")))?;
        let wanted = graph.add_input(WANTED, shape(Dim::Is(1)))?;
        Ok(correlated(graph, vectors, pairs, wanted)?)
    }

    /// What that reads beside these texts: those of a pair are twice its position, and the one behind.
    pub fn beside(self, texts: &[usize]) -> Result<Inputs> {
        let n = texts.len();
        let place: HashMap<usize, usize> = texts.iter().enumerate().map(|(row, &text)| (text, row)).collect();
        let firsts: Vec<usize> = (0..n).filter(|&row| texts[row].is_multiple_of(2)).collect();
        let score = |row: usize| self.0[texts[row] / 2];
        let mean = firsts.iter().map(|&row| score(row)).sum::<f64>() / firsts.len().max(1) as f64;
        let length = firsts.iter().map(|&row| (score(row) - mean).powi(2)).sum::<f64>().sqrt();
        let (mut pairs, mut wanted) = (vec![0f32; n * n], vec![0f32; n]);
        for &row in &firsts {
            if let Some(other) = place.get(&(texts[row] + 1)) {
                pairs[row * n + other] = 1.0;
            }
            wanted[row] = if length > 0.0 { ((score(row) - mean) / length) as f32 } else { 0.0 };
        }
        let tensor = |columns: usize, values: &[f32]| {
            Ok::<_, Error>(Datum::Tensor(Tensor::new(&[n, columns], values)?))
        };
        Ok(vec![(PAIRS.into(), tensor(n, &pairs)?), (WANTED.into(), tensor(1, &wanted)?)])
    }
}

/// Vectors of texts, the first output of a model, whose cosines go with these scores.
pub(in crate::teach) fn pairs<'a>(examples: &'a Examples<'a>, scores: &'a [f64]) -> Course<'a> {
    let beside = move |texts: &[usize]| Scores(scores).beside(texts);
    let batches = Batches::OfPairs(TOGETHER);
    Course { examples, loss: Box::new(Scores::loss), beside: Box::new(beside), batches }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_their_scores_are_told_wherever_their_texts_stand() {
        // The second text of the first pair, the second pair, the first text of the first pair, the third pair.
        let texts = [1, 2, 3, 0, 4, 5];
        let values = |scores: &[f64], at: usize| {
            Scores(scores).beside(&texts).unwrap()[at].1.tensor().unwrap().to_f32().unwrap().into_owned()
        };
        let pairs = values(&[1.0, 2.0, 0.0], 0);
        let ones = pairs.iter().enumerate().filter(|(_, x)| **x != 0.0).map(|(i, x)| (i / 6, i % 6, *x));
        assert_eq!(ones.collect::<Vec<_>>(), [(1, 2, 1.0), (3, 0, 1.0), (4, 5, 1.0)]);
        let half = 0.5f64.sqrt() as f32;
        assert_eq!(values(&[1.0, 2.0, 0.0], 1), [0.0, half, 0.0, 0.0, -half, 0.0]);
        assert_eq!(values(&[3.0; 3], 1), [0.0; 6], "equal scores want nothing");
    }
}
