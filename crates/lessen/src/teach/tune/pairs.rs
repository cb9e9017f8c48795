//! Vectors of texts whose cosines have the order of the scores of pairs.

use graph::{DType, Datum, Dim, Fact, Tensor, ValueId};
use kernel::Cpu;
use learn::fit::{Inputs, in_order};
use learn::head::Truth;

use super::{Course, Examples, Trained, Tuning, train};
use crate::{Error, Model, Result};

/// Pairs that are compared with each other.
const TOGETHER: usize = 16;
/// The names of which rows are a pair, and of which pair shall be the more alike, among the inputs of what is trained.
const PAIRS: &str = "lessen.pairs";
const ORDER: &str = "lessen.order";

/// The order that cosines shall have: that of these scores, one for each pair.
#[derive(Clone, Copy)]
pub(in crate::teach) struct Order<'a>(pub &'a [f64]);

impl Order<'_> {
    /// Adds what is to become small to a graph whose first output are vectors.
    pub fn loss(graph: &mut graph::Graph) -> Result<ValueId> {
        let vectors = graph.outputs[0];
        let square = || Fact::tensor(DType::F32, vec![Dim::named("one"), Dim::named("other")]);
        let pairs = graph.add_input(PAIRS, square())?;
        let order = graph.add_input(ORDER, square())?;
        Ok(in_order(graph, vectors, pairs, order)?)
    }

    /// What that reads beside these texts: those of a pair are twice its position, and the one behind.
    pub fn beside(self, texts: &[usize]) -> Result<Inputs> {
        let n = texts.len();
        let (mut pairs, mut order) = (vec![0f32; n * n], vec![0f32; n * n]);
        for (row, one) in texts.iter().enumerate().filter(|(_, text)| text.is_multiple_of(2)) {
            for (column, other) in texts.iter().enumerate() {
                pairs[row * n + column] = f32::from(u8::from(*other == one + 1));
                let less = other.is_multiple_of(2) && self.0[one / 2] < self.0[other / 2];
                order[row * n + column] = f32::from(u8::from(less));
            }
        }
        let square = |values: &[f32]| Ok::<_, Error>(Datum::Tensor(Tensor::new(&[n, n], values)?));
        Ok(vec![(PAIRS.into(), square(&pairs)?), (ORDER.into(), square(&order)?)])
    }
}

/// Trains the model whose first output are the vectors of texts.
///
/// # Errors
/// When the examples have no scores, an operator has no gradient (the node is named), or an example cannot be read.
pub(in crate::teach) fn order(
    model: &mut Model,
    tuning: &Tuning,
    examples: &Examples,
    cpu: &Cpu,
    progress: &dyn Fn(&str),
) -> Result<Trained> {
    let Truth::Numbers(scores) = examples.truth else {
        return Err(Error::input("how much two texts mean the same is a number; the examples have none"));
    };
    let course = Course {
        examples,
        loss: &Order::loss,
        beside: &|texts| Order(scores).beside(texts),
        together: Some(TOGETHER),
        pairs: true,
    };
    train(model, tuning, &course, cpu, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_their_order_are_told_wherever_their_texts_stand() {
        // The second text of the first pair, the second pair, the first text of the first pair.
        let inputs = Order(&[0.5, 0.75, 0.75]).beside(&[1, 2, 3, 0, 4, 5]).unwrap();
        let ones = |at: usize| -> Vec<(usize, usize)> {
            let values = inputs[at].1.tensor().unwrap().to_f32().unwrap().into_owned();
            let ones = values.iter().enumerate().filter(|(_, x)| **x == 1.0);
            ones.map(|(i, _)| (i / 6, i % 6)).collect()
        };
        assert_eq!(ones(0), [(1, 2), (3, 0), (4, 5)]);
        assert_eq!(ones(1), [(3, 1), (3, 4)], "equal scores have no order");
    }
}
