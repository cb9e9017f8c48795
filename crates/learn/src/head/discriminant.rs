//! Fisher's linear discriminant: `S^-1 m` for the mean m of each class, S the covariance within classes, shrunk towards a
//! multiple of 1 by the part that Ledoit and Wolf (*A well-conditioned estimator for large-dimensional covariance matrices*,
//! 2004) derive.

use super::basis::products;
use super::unseen::{joined, others};
use super::{Fitted, Method, Problem, Truth};
use crate::linear::Cholesky;
use crate::{Error, Result};

pub(super) fn fit(problem: &Problem) -> Result<Fitted> {
    let Truth::Classes { of, count } = &problem.truth else {
        return Err(Error::input("a discriminant is of classes"));
    };
    let size = problem.basis.size();
    let scores = problem.cpu.pool().map(problem.folds.len(), |k| {
        let fold = &problem.folds[k];
        let (weight, bias) = of_rows(problem, of, *count, &others(of.len(), fold))?;
        let score = |&i: &usize, class: usize| {
            let row = problem.basis.row(i).iter().zip(&weight[class * size..]);
            (row.map(|(&z, w)| f64::from(z) * w).sum::<f64>() + bias[class]) as f32
        };
        Ok(fold.iter().flat_map(|i| (0..*count).map(move |class| score(i, class))).collect())
    });
    let scores = scores.into_iter().collect::<Result<Vec<Vec<f32>>>>()?;
    let all: Vec<usize> = (0..of.len()).collect();
    let (weight, bias) = of_rows(problem, of, *count, &all)?;
    let head = problem.basis.head(&weight, &bias);
    Ok(Fitted {
        method: Method::Discriminant,
        penalty: None,
        head,
        unseen: joined(&problem.folds, scores, *count),
    })
}

/// Weights `[classes, coordinates]` and biases from these examples.
fn of_rows(problem: &Problem, of: &[usize], count: usize, rows: &[usize]) -> Result<(Vec<f64>, Vec<f64>)> {
    let (basis, size) = (&problem.basis, problem.basis.size());
    let mut means = vec![0f64; count * size];
    let mut shares = vec![0f64; count];
    for &i in rows {
        let (class, mass) = (of[i], problem.masses[i]);
        shares[class] += mass;
        let mean = means[class * size..][..size].iter_mut().zip(basis.row(i));
        mean.for_each(|(sum, &z)| *sum += mass * f64::from(z));
    }
    for (mean, share) in means.chunks_exact_mut(size).zip(&shares) {
        mean.iter_mut().for_each(|m| *m /= share.max(f64::MIN_POSITIVE));
    }
    let total: f64 = shares.iter().sum();
    let mut centred = vec![0f32; rows.len() * size];
    // The square root of its mass goes with each row.
    for (&i, out) in rows.iter().zip(centred.chunks_exact_mut(size)) {
        let (root, mean) = (problem.masses[i].sqrt(), &means[of[i] * size..]);
        let row = out.iter_mut().zip(basis.row(i)).zip(mean);
        row.for_each(|((out, &z), mean)| *out = (root * (f64::from(z) - mean)) as f32);
    }
    let mut within = products(&centred, size, 1.0 / total, problem.cpu);
    shrink(&mut within, &centred, size);
    let cholesky = Cholesky::new(&within, size)
        .ok_or_else(|| Error::input("the features do not vary within the classes"))?;
    let mut weight = means.clone();
    cholesky.solve(&mut weight);
    let bias = (0..count).map(|class| {
        let dot: f64 =
            weight[class * size..][..size].iter().zip(&means[class * size..]).map(|(w, m)| w * m).sum();
        // A class that is left out altogether is as rare as one example.
        (shares[class] / total).max(1.0 / (total + 1.0)).ln() - dot / 2.0
    });
    let bias = bias.collect();
    Ok((weight, bias))
}

/// Moves a covariance towards a multiple of 1.
fn shrink(covariance: &mut [f64], centred: &[f32], size: usize) {
    let (n, p) = ((centred.len() / size) as f64, size as f64);
    let fourth: f64 = centred
        .chunks_exact(size)
        .map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().powi(2))
        .sum::<f64>()
        / n;
    let squares: f64 = covariance.iter().map(|x| x * x).sum();
    let trace: f64 = (0..size).map(|i| covariance[i * size + i]).sum();
    let mean = trace / p;
    let spread = (squares - mean * trace) / p;
    let noise = (fourth - squares) / n / p;
    let part = if spread > 0.0 { (noise / spread).clamp(0.0, 1.0) } else { 1.0 };
    covariance.iter_mut().for_each(|x| *x *= 1.0 - part);
    // A little always, for directions in which nothing varies within classes.
    let added = mean * part.max(1e-6);
    (0..size).for_each(|i| covariance[i * size + i] += added);
}
