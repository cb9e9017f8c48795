//! The nearest mean: of an example's distances to the means of the classes, the least. For an example that it has not seen,
//! the mean of the example's own class is that of the others.

use super::unseen::Unseen;
use super::{Fitted, Method, Problem, Truth};
use crate::{Error, Result};

pub(super) fn fit(problem: &Problem) -> Result<Fitted> {
    let Truth::Classes { of, count } = &problem.truth else {
        return Err(Error::input("means are of classes"));
    };
    let (basis, size) = (&problem.basis, problem.basis.size());
    let counts = problem.truth.counts();
    let mut sums = vec![0f64; count * size];
    for (i, &class) in of.iter().enumerate() {
        let row = sums[class * size..][..size].iter_mut().zip(basis.row(i));
        row.for_each(|(sum, &z)| *sum += f64::from(z));
    }
    let mean = |class: usize, at: usize| sums[class * size + at] / counts[class] as f64;
    let half: Vec<f64> =
        (0..*count).map(|c| (0..size).map(|j| mean(c, j).powi(2)).sum::<f64>() / 2.0).collect();
    let mut scores = vec![0f32; of.len() * count];
    problem.cpu.pool().for_chunks_mut(&mut scores, *count, |i, scores| {
        let row = basis.row(i);
        for (class, score) in scores.iter_mut().enumerate() {
            *score = if class == of[i] && counts[class] > 1 {
                let others = (counts[class] - 1) as f64;
                let each = row.iter().zip(&sums[class * size..]).map(|(&z, sum)| {
                    let (z, mean) = (f64::from(z), (sum - f64::from(z)) / others);
                    z * mean - mean * mean / 2.0
                });
                each.sum::<f64>() as f32
            } else if class == of[i] {
                0.0
            } else {
                let dot: f64 = row.iter().enumerate().map(|(j, &z)| f64::from(z) * mean(class, j)).sum();
                (dot - half[class]) as f32
            };
        }
    });
    let weight: Vec<f64> = (0..count * size).map(|k| mean(k / size, k % size)).collect();
    let bias: Vec<f64> = half.iter().map(|h| -h).collect();
    let unseen = Unseen { rows: (0..of.len()).collect(), outputs: *count, scores };
    Ok(Fitted { method: Method::Centroid, penalty: None, head: basis.head(&weight, &bias), unseen })
}
