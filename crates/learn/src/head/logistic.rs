//! Logistic regression: the softmax or sigmoid of scores, penalties on the squares of weights. For examples that are left out
//! in turns it goes from strong penalties to weak ones, each beginning where the last ended; the head of all examples begins
//! near what these have found. Steps are those of L-BFGS (Liu and Nocedal, 1989), along coordinates that are scaled by how much
//! they vary.

use std::collections::VecDeque;

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::few;
use kernel::matmul::View;

use super::unseen::{Path, joined, others};
use super::{Fitted, Method, Problem, Truth};
use crate::{Error, Result};

/// Penalties on the squares of weights, features being of variance 1: 10 to these powers, halved, the strong ones first.
const POWERS: std::ops::RangeInclusive<i32> = -2..=10;
/// Steps that curvature is taken from.
const MEMORY: usize = 10;
/// Most steps for a penalty.
const STEPS: usize = 100;
/// A step that makes the loss smaller by a smaller part is the last.
const ENOUGH: f64 = 1e-6;
/// Penalties that are tried after the best.
const BEYOND: usize = 2;

fn penalty_at(power: i32) -> f64 {
    10f64.powf(f64::from(-power) / 2.0)
}

pub(super) fn fit(problem: &Problem) -> Result<Fitted> {
    let (rows, outputs) = (problem.rows(), problem.truth.outputs());
    let folds = &problem.folds;
    let mut paths: Vec<(Examples, Examples, Solver)> = folds
        .iter()
        .map(|fold| {
            let seen = Examples::new(problem, &others(rows, fold));
            (seen, Examples::new(problem, fold), Solver::new(problem.basis.size(), outputs))
        })
        .collect();
    let mut path = Path::new(&problem.truth, &problem.masses);
    let mut means: Vec<(f64, Vec<f64>)> = Vec::new();
    let mut since = 0;
    for penalty in POWERS.map(penalty_at) {
        let mut scores: Vec<Vec<f32>> = vec![Vec::new(); folds.len()];
        let mut both: Vec<_> = paths.iter_mut().zip(&mut scores).collect();
        problem.cpu.pool().for_chunks_mut(&mut both, 1, |_, each| {
            let ((seen, left_out, solver), scores) = &mut each[0];
            solver.solve(problem, seen, penalty);
            **scores = solver.scores(problem, left_out);
        });
        means.push((penalty, mean(paths.iter().map(|(.., solver)| &solver.at))));
        match path.add(penalty, joined(folds, scores, outputs)) {
            true => since = 0,
            false => since += 1,
        }
        means.retain(|(penalty, _)| path.keeps(*penalty));
        if since > BEYOND {
            break;
        }
    }
    drop(paths);
    let Some((penalty, unseen)) = path.taken() else {
        return Err(Error::input("logistic regression finds no finite weights"));
    };
    let all = Examples::new(problem, &(0..rows).collect::<Vec<_>>());
    // Near what the folds have found.
    let at = means.into_iter().find(|(each, _)| *each == penalty).map(|(_, at)| at);
    let mut solver =
        at.map_or_else(|| Solver::new(problem.basis.size(), outputs), |at| Solver { outputs, at });
    solver.solve(problem, &all, penalty);
    let (weight, bias) = solver.weights();
    Ok(Fitted {
        method: Method::Logistic,
        penalty: Some(penalty),
        head: problem.basis.head(weight, bias),
        unseen,
    })
}

/// The mean of vectors of one length.
fn mean<'a>(vectors: impl ExactSizeIterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let part = 1.0 / vectors.len() as f64;
    let mut mean = Vec::new();
    for vector in vectors {
        mean.resize(vector.len(), 0.0);
        mean.iter_mut().zip(vector).for_each(|(sum, x)| *sum += part * x);
    }
    mean
}

/// Coordinates and targets of some examples.
struct Examples {
    rows: usize,
    coordinates: Vec<f32>,
    targets: Vec<f32>,
    masses: Vec<f64>,
    total: f64,
}

impl Examples {
    fn new(problem: &Problem, rows: &[usize]) -> Examples {
        let masses: Vec<f64> = rows.iter().map(|&i| problem.masses[i]).collect();
        Examples {
            rows: rows.len(),
            coordinates: problem.basis.select(rows),
            targets: problem.truth.select(rows).targets(),
            total: masses.iter().sum(),
            masses,
        }
    }
}

/// Weights `[outputs, coordinates]` and, after them, biases `[outputs]`, on the way to the least loss.
struct Solver {
    outputs: usize,
    at: Vec<f64>,
}

impl Solver {
    fn new(size: usize, outputs: usize) -> Solver {
        Solver { outputs, at: vec![0.0; (size + 1) * outputs] }
    }

    /// `[outputs, coordinates]` and `[outputs]`.
    fn weights(&self) -> (&[f64], &[f64]) {
        self.at.split_at(self.at.len() - self.outputs)
    }

    fn scores(&self, problem: &Problem, examples: &Examples) -> Vec<f32> {
        let mut scores = vec![0f32; examples.rows * self.outputs];
        Narrow::new(&self.at, self.outputs).scores(problem.cpu, &examples.coordinates, &mut scores);
        scores
    }

    /// Goes on to the least loss at this penalty.
    fn solve(&mut self, problem: &Problem, examples: &Examples, penalty: f64) {
        // What a step along each coordinate is to be scaled by: the loss curves by at most a quarter of its variance.
        let scale = |variance: f64| 1.0 / (variance / 4.0 + penalty);
        let row: Vec<f64> = problem.basis.values.iter().map(|&v| scale(v)).collect();
        let mut shape = row.repeat(self.outputs);
        shape.resize(self.at.len(), scale(1.0));
        let value = |at: &[f64]| loss(problem, examples, at, penalty);
        let (mut here, mut gradient) = value(&self.at);
        let mut memory: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::new();
        for _ in 0..STEPS {
            let step = direction(&gradient, &memory, &shape);
            let slope = dot(&step, &gradient);
            if slope >= 0.0 || !slope.is_finite() {
                break;
            }
            // Halved until the loss falls by a part of what the slope promises.
            let mut length = 1.0;
            let found = loop {
                let next: Vec<f64> = self.at.iter().zip(&step).map(|(x, s)| x + length * s).collect();
                let (there, gradient) = value(&next);
                if there <= here + 1e-4 * length * slope {
                    break Some((next, there, gradient));
                }
                length /= 2.0;
                if length < 1e-4 {
                    break None;
                }
            };
            let Some((next, there, next_gradient)) = found else { break };
            let moved: Vec<f64> = next.iter().zip(&self.at).map(|(a, b)| a - b).collect();
            let turned: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
            let curve = dot(&moved, &turned);
            if curve > 1e-12 {
                memory.push_back((moved, turned, curve));
                if memory.len() > MEMORY {
                    memory.pop_front();
                }
            }
            let done = here - there < ENOUGH * here.abs().max(1e-3);
            (self.at, here, gradient) = (next, there, next_gradient);
            if done {
                break;
            }
        }
    }
}

/// The way to go: minus the gradient, changed by the curvature that the last steps have met.
fn direction(gradient: &[f64], memory: &VecDeque<(Vec<f64>, Vec<f64>, f64)>, shape: &[f64]) -> Vec<f64> {
    let mut way: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut parts = Vec::with_capacity(memory.len());
    for (moved, turned, curve) in memory.iter().rev() {
        let part = dot(moved, &way) / curve;
        way.iter_mut().zip(turned).for_each(|(w, t)| *w -= part * t);
        parts.push(part);
    }
    let scale = memory.back().map_or(1.0, |(_, turned, curve)| {
        curve / turned.iter().zip(shape).map(|(t, s)| t * t * s).sum::<f64>().max(f64::MIN_POSITIVE)
    });
    way.iter_mut().zip(shape).for_each(|(w, s)| *w *= s * scale);
    for ((moved, turned, curve), part) in memory.iter().zip(parts.into_iter().rev()) {
        let back = part - dot(turned, &way) / curve;
        way.iter_mut().zip(moved).for_each(|(w, m)| *w += back * m);
    }
    way
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Rows whose scores, errors and products are made while they are at hand.
const ROWS: usize = 64;
/// Rows whose products are summed in f32 before they go into sums in f64.
const BLOCK: usize = 16 * ROWS;
/// Outputs that are too few for the tiles of a product of matrices.
const FEW: usize = 8;

/// Weights `[outputs, coordinates]` and biases `[outputs]`, as single numbers.
struct Narrow {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Narrow {
    fn new(at: &[f64], outputs: usize) -> Narrow {
        let mut weight: Vec<f32> = at.iter().map(|&x| x as f32).collect();
        let bias = weight.split_off(at.len() - outputs);
        Narrow { weight, bias }
    }

    fn size(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    /// Rows that are best worked on together.
    fn rows(&self) -> usize {
        if self.bias.len() <= FEW { ROWS } else { BLOCK }
    }

    /// The scores of these rows.
    fn scores(&self, cpu: &Cpu, x: &[f32], scores: &mut [f32]) {
        let (size, outputs) = (self.size(), self.bias.len());
        if outputs <= FEW {
            return few::scores(cpu, x, size, &self.weight, &self.bias, scores);
        }
        let post = Post { bias: kernel::matmul::Bias::Col(&self.bias), ..Post::default() };
        let weight = View::new(&self.weight, outputs, size);
        matmul(cpu, View::new(x, x.len() / size, size), weight.t(), scores, outputs, &post);
    }

    /// What errors in the scores of these rows say of the weights: added up where there are few, else put in their place.
    fn gather(&self, cpu: &Cpu, x: &[f32], errors: &[f32], sums: &mut [f32]) {
        let (size, outputs) = (self.size(), self.bias.len());
        if outputs <= FEW {
            return few::add_products(cpu, x, size, errors, outputs, sums);
        }
        let rows = x.len() / size;
        let (x, errors) = (View::new(x, rows, size), View::new(errors, rows, outputs));
        matmul(cpu, errors.t(), x, sums, size, &Post::default());
    }
}

/// What some examples add to the loss and to its gradient.
struct Part {
    loss: f64,
    /// `[outputs, coordinates]`.
    weight: Vec<f32>,
    bias: Vec<f64>,
}

impl Part {
    /// Of the block of examples that begins at this row.
    fn new(problem: &Problem, examples: &Examples, narrow: &Narrow, start: usize) -> Part {
        let (size, outputs, cpu) = (narrow.size(), narrow.bias.len(), problem.cpu);
        let softmax = matches!(problem.truth, Truth::Classes { .. });
        let mut part = Part { loss: 0.0, weight: vec![0.0; outputs * size], bias: vec![0.0; outputs] };
        let end = (start + BLOCK).min(examples.rows);
        let mut errors = vec![0f32; narrow.rows() * outputs];
        for start in (start..end).step_by(narrow.rows()) {
            let rows = narrow.rows().min(end - start);
            let errors = &mut errors[..rows * outputs];
            let x = &examples.coordinates[start * size..][..rows * size];
            narrow.scores(cpu, x, errors);
            let targets = examples.targets[start * outputs..].chunks_exact(outputs);
            let masses = &examples.masses[start..];
            for ((row, targets), mass) in errors.chunks_exact_mut(outputs).zip(targets).zip(masses) {
                let mass = mass / examples.total;
                let lost = if softmax { softmax_error(row, targets) } else { sigmoid_error(row, targets) };
                part.loss += mass * lost;
                for (error, bias) in row.iter_mut().zip(&mut part.bias) {
                    *error *= mass as f32;
                    *bias += f64::from(*error);
                }
            }
            narrow.gather(cpu, x, errors, &mut part.weight);
        }
        part
    }
}

/// The loss with its penalty, and its gradient.
fn loss(problem: &Problem, examples: &Examples, at: &[f64], penalty: f64) -> (f64, Vec<f64>) {
    let narrow = Narrow::new(at, problem.truth.outputs());
    let blocks = examples.rows.div_ceil(BLOCK);
    let parts = problem.cpu.pool().map(blocks, |i| Part::new(problem, examples, &narrow, i * BLOCK));
    let weight = &at[..narrow.weight.len()];
    let mut total = penalty / 2.0 * dot(weight, weight);
    let mut gradient: Vec<f64> = weight.iter().map(|w| penalty * w).collect();
    gradient.resize(at.len(), 0.0);
    for part in parts {
        total += part.loss;
        let found = part.weight.into_iter().map(f64::from).chain(part.bias);
        gradient.iter_mut().zip(found).for_each(|(sum, g)| *sum += g);
    }
    (total, gradient)
}

/// Makes of scores what they are apart from the targets, as probabilities; gives the loss.
fn softmax_error(row: &mut [f32], targets: &[f32]) -> f64 {
    let most = row.iter().copied().fold(f32::MIN, f32::max);
    let mut sum = 0f32;
    let mut wanted = 0f32;
    for (score, target) in row.iter_mut().zip(targets) {
        wanted += target * (*score - most);
        *score = (*score - most).exp();
        sum += *score;
    }
    row.iter_mut().zip(targets).for_each(|(p, target)| *p = *p / sum - target);
    f64::from(sum.ln() - wanted)
}

fn sigmoid_error(row: &mut [f32], targets: &[f32]) -> f64 {
    let mut lost = 0.0;
    for (score, target) in row.iter_mut().zip(targets) {
        let s = if *target > 0.5 { *score } else { -*score };
        lost += f64::from((-s.abs()).exp().ln_1p() + (-s).max(0.0));
        *score = 1.0 / (1.0 + (-*score).exp()) - target;
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::super::tests::{clouds, cpu};
    use super::*;
    use crate::random::Random;

    #[test]
    fn the_gradient_is_the_slope_and_vanishes_at_the_end() {
        let cpu = cpu();
        // Few outputs and many, and more examples than a block.
        for (rows, count) in [(60, 3), (BLOCK + 60, 3), (BLOCK + 60, FEW + 4)] {
            let (features, of) = clouds(rows, 5, count, 0.5, 2);
            let labels: Vec<bool> =
                of.iter().flat_map(|&class| (0..count).map(move |label| label % 3 == class % 3)).collect();
            for truth in [Truth::Classes { of, count }, Truth::Labels { of: labels, count }] {
                let problem = Problem::new(&features, &truth, false, 0, &cpu).unwrap();
                let all = Examples::new(&problem, &(0..problem.rows()).collect::<Vec<_>>());
                let mut solver = Solver::new(problem.basis.size(), count);
                let mut random = Random::new(9);
                let at: Vec<f64> = solver.at.iter().map(|_| 0.3 * random.normal()).collect();
                let gradient = loss(&problem, &all, &at, 0.01).1;
                for (k, gradient) in gradient.iter().enumerate() {
                    let moved = |by: f64| {
                        let mut at = at.clone();
                        at[k] += by;
                        loss(&problem, &all, &at, 0.01).0
                    };
                    let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                    assert!((slope - gradient).abs() < 1e-3, "{slope} {gradient}");
                }
                solver.solve(&problem, &all, 0.01);
                let most =
                    loss(&problem, &all, &solver.at, 0.01).1.iter().fold(0f64, |most, g| most.max(g.abs()));
                assert!(most < 1e-3, "{most}");
            }
        }
    }
}
