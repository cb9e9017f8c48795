//! What does not matter: which connections or whole channels go, and how the others make up for them.

pub mod blocks;
pub mod channels;
pub mod choose;
pub mod groups;
pub mod pattern;
pub mod recover;
pub mod refit;
pub mod settle;
pub mod vocabulary;
pub mod zeros;

use crate::gram::Gram;
use crate::matrix::Matrix;

/// The size of each weight: Han et al., "Learning both weights and connections" (2015).
pub fn magnitude(w: &Matrix) -> Matrix {
    Matrix { data: w.data.iter().map(|x| x.abs()).collect(), ..w.clone() }
}

/// The size of each weight times that of its input: Sun et al., "A simple and effective pruning approach" (Wanda, 2023).
/// To be compared within rows.
pub fn wanda(w: &Matrix, gram: &Gram) -> Matrix {
    let norms: Vec<f32> = gram.importance().iter().map(|x| x.sqrt() as f32).collect();
    let mut scores = magnitude(w);
    for row in scores.data.chunks_exact_mut(w.cols.max(1)) {
        row.iter_mut().zip(&norms).for_each(|(score, norm)| *score *= norm);
    }
    scores
}
