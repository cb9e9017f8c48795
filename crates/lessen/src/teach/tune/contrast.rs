//! Features that tell classes apart: weights are trained until what a model makes of examples of one class lies in one
//! direction, and what it makes of those of others in another (SetFit; Tunstall et al., *Efficient few-shot learning
//! without prompts*, 2022). Each step compares all examples of a batch with each other.

use graph::{DType, Datum, Dim, Fact, Tensor};
use learn::fit::alike;
use learn::head::Truth;

use super::{Batches, Course, Examples};
use crate::{Error, Result};

/// Examples that are compared with each other.
const TOGETHER: usize = 16;
/// The names of what each pair of examples is to be, and how much it counts, among the inputs of what is trained.
const WANTED: &str = "lessen.wanted";
const COUNTS: &str = "lessen.counts";
/// Such batches that are seen in all, unless it is said how often each example is.
const BATCHES: usize = 60;

/// Times that each example is seen when nothing else is said: the fewer there are, the more often.
pub(super) fn epochs(examples: usize) -> usize {
    (BATCHES * TOGETHER).div_ceil(examples.max(1))
}

/// Features, the first output of a model, that tell classes apart.
///
/// # Errors
/// When the examples have no classes.
pub(in crate::teach) fn contrast<'a>(examples: &'a Examples<'a>) -> Result<Course<'a>> {
    let Truth::Classes { of, .. } = examples.truth else {
        return Err(Error::input("--contrast tells classes apart; the examples have none"));
    };
    let loss = |graph: &mut graph::Graph| {
        let features = graph.outputs[0];
        let square = || Fact::tensor(DType::F32, vec![Dim::named("one"), Dim::named("other")]);
        let wanted = graph.add_input(WANTED, square())?;
        let counts = graph.add_input(COUNTS, square())?;
        Ok(alike(graph, features, wanted, counts)?)
    };
    let beside = move |rows: &[usize]| {
        let classes: Vec<usize> = rows.iter().map(|&at| of[at]).collect();
        let (wanted, counts) = pairs(&classes);
        let square = |values: &[f32]| {
            Ok::<_, Error>(Datum::Tensor(Tensor::new(&[classes.len(), classes.len()], values)?))
        };
        Ok::<_, Error>(vec![(WANTED.into(), square(&wanted)?), (COUNTS.into(), square(&counts)?)])
    };
    Ok(Course { examples, loss: Box::new(loss), beside: Box::new(beside), batches: Batches::Of(TOGETHER) })
}

/// What the cosine of each pair of examples is to be, 1 or 0, and how much it counts: pairs of one class as much as those
/// of two, all together 1, and an example beside itself nothing.
fn pairs(classes: &[usize]) -> (Vec<f32>, Vec<f32>) {
    let n = classes.len();
    let each = || (0..n * n).map(|at| (at / n, at % n));
    let same = |(a, b): (usize, usize)| classes[a] == classes[b];
    let alike = each().filter(|&(a, b)| a != b && same((a, b))).count();
    let other = each().filter(|&pair| !same(pair)).count();
    let kinds = [alike, other].iter().filter(|count| **count > 0).count() as f32;
    let share = |count: usize| 1.0 / kinds.max(1.0) / count.max(1) as f32;
    let count = |(a, b)| match same((a, b)) {
        _ if a == b => 0.0,
        true => share(alike),
        false => share(other),
    };
    (each().map(|pair| f32::from(u8::from(same(pair)))).collect(), each().map(count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_one_class_count_as_much_as_those_of_two() {
        let (wanted, counts) = pairs(&[0, 0, 1]);
        assert_eq!(wanted, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{counts:?}");
        near(counts.iter().sum(), 1.0);
        near(counts[1] + counts[3], 0.5);
        assert_eq!((counts[0], counts[4], counts[8]), (0.0, 0.0, 0.0));
        // Where there is one class only, its pairs are all that counts.
        near(pairs(&[2, 2]).1.iter().sum(), 1.0);
        assert_eq!(pairs(&[7]).1, [0.0]);
    }
}
