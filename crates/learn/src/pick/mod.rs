//! Which examples are worth keeping: those that say something new, whose labels are right, and that stand for the others.
//! Each way to tell is a file.

pub mod coreset;
pub mod difficulty;
pub mod duplicates;
pub mod labels;
pub mod meaning;
pub mod resemblance;

pub use coreset::Coreset;
pub use difficulty::Difficulty;
pub use duplicates::{Duplicates, Fate, Near};
pub use labels::Issue;
pub use resemblance::Resemblance;

use crate::head::Features;

/// Rows of length 1; rows of zeros stay.
fn unit(features: &Features) -> Vec<f32> {
    let mut rows = features.values().to_vec();
    for row in rows.chunks_exact_mut(features.columns()) {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
    }
    rows
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0f32; LANES];
    for (a, b) in a.0.iter().zip(b.0) {
        (0..LANES).for_each(|i| sums[i] = a[i].mul_add(b[i], sums[i]));
    }
    sums.iter().sum::<f32>() + a.1.iter().zip(b.1).map(|(a, b)| a * b).sum::<f32>()
}
