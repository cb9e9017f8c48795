//! Least squares with a penalty, chosen by exact leave-one-out errors: with `h` the diagonal of the hat matrix, the error
//! that a head makes on an example which it has not seen is `e / (1 - h)`. One set of directions serves all penalties.

use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use super::unseen::{Path, Unseen};
use super::{Fitted, Method, Problem, Truth};
use crate::Result;

/// Penalties on the squares of weights, features being of variance 1: 10 to these powers, halved.
const POWERS: std::ops::RangeInclusive<i32> = -10..=4;
/// Scores of an example that are computed together, for several penalties.
const TOGETHER: usize = 64;

pub(super) fn fit(problem: &Problem) -> Result<Fitted> {
    let (basis, rows, outputs) = (&problem.basis, problem.rows(), problem.truth.outputs());
    let size = basis.size();
    let mut targets = problem.truth.targets();
    if matches!(problem.truth, Truth::Labels { .. }) {
        // A label holds whose score is above 0.
        targets.iter_mut().for_each(|y| *y = 2.0 * *y - 1.0);
    }
    let total = rows as f64;
    let mut mean = vec![0f64; outputs];
    for (row, mass) in targets.chunks_exact(outputs).zip(&problem.masses) {
        mean.iter_mut().zip(row).for_each(|(mean, &y)| *mean += mass / total * f64::from(y));
    }
    let centred = targets.chunks_exact(outputs).zip(&problem.masses).flat_map(|(row, mass)| {
        row.iter().zip(&mean).map(move |(&y, mean)| (mass * (f64::from(y) - mean)) as f32)
    });
    let centred: Vec<f32> = centred.collect();
    let mut products = vec![0f32; size * outputs];
    let z = View::new(&basis.coordinates, rows, size);
    let post = Post { alpha: (1.0 / total) as f32, ..Post::default() };
    matmul(problem.cpu, z.t(), View::new(&centred, rows, outputs), &mut products, outputs, &post);

    // With as many directions as examples leave, least squares without penalty makes no errors: then what the penalty adds
    // is computed, as what it leaves would be lost in rounding.
    let whole = size + 1 == rows;
    let mut path = Path::new(&problem.truth, &problem.masses);
    let powers: Vec<i32> = POWERS.rev().collect();
    for powers in powers.chunks((TOGETHER / outputs).max(1)) {
        let penalties: Vec<f64> = powers.iter().map(|&power| 10f64.powf(f64::from(power) / 2.0)).collect();
        let many = penalties.len();
        // For each direction, what each penalty leaves of it.
        let part = |v: f64, penalty: f64| match whole {
            true => penalty / v / (v + penalty),
            false => 1.0 / (v + penalty),
        };
        let parts: Vec<f64> = basis
            .values
            .iter()
            .flat_map(|&v| penalties.iter().map(move |&penalty| part(v, penalty)))
            .collect();
        let scaled = products.chunks_exact(outputs).zip(parts.chunks_exact(many));
        let weight: Vec<f32> = scaled
            .flat_map(|(row, parts)| {
                parts.iter().flat_map(move |s| row.iter().map(move |&q| (f64::from(q) * s) as f32))
            })
            .collect();
        let width = many * outputs;
        let mut scores = vec![0f32; rows * width];
        matmul(problem.cpu, z, View::new(&weight, size, width), &mut scores, width, &Post::default());
        problem.cpu.pool().for_chunks_mut(&mut scores, width, |i, scores| {
            let mut squares = vec![0f64; many];
            for (&z, parts) in basis.row(i).iter().zip(parts.chunks_exact(many)) {
                let square = f64::from(z).powi(2);
                squares.iter_mut().zip(parts).for_each(|(sum, part)| *sum += square * part);
            }
            let share = problem.masses[i] / total;
            for (scores, squares) in scores.chunks_exact_mut(outputs).zip(squares) {
                // What the hat matrix leaves of the example itself.
                let left = if whole { share * squares } else { (1.0 - share * (squares + 1.0)).max(1e-6) };
                for ((score, &y), mean) in scores.iter_mut().zip(&targets[i * outputs..]).zip(&mean) {
                    let (y, found) = (f64::from(y), f64::from(*score));
                    let error = if whole { found } else { y - mean - found };
                    *score = (y - error / left) as f32;
                }
            }
        });
        for (at, &penalty) in penalties.iter().enumerate() {
            let own = scores.chunks_exact(width).flat_map(|row| &row[at * outputs..][..outputs]);
            path.add(penalty, Unseen { rows: (0..rows).collect(), outputs, scores: own.copied().collect() });
        }
    }
    let (penalty, unseen) =
        path.taken().ok_or_else(|| crate::Error::input("no penalty gives finite errors"))?;
    let weight: Vec<f64> = (0..outputs * size)
        .map(|k| f64::from(products[k % size * outputs + k / size]) / (basis.values[k % size] + penalty))
        .collect();
    Ok(Fitted { method: Method::Ridge, penalty: Some(penalty), head: basis.head(&weight, &mean), unseen })
}
