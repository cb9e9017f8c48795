//! Which examples are worth keeping: those that say something new, whose labels are right, and that stand for the others.
//! Each way to tell is a file.

pub mod coreset;
pub mod difficulty;
pub mod duplicates;
pub mod labels;
pub mod meaning;
pub mod pictures;
pub mod resemblance;

pub use coreset::Coreset;
pub use difficulty::Difficulty;
pub use duplicates::{Against, Duplicates, Fate, Near};
pub use labels::Issue;
pub use resemblance::Resemblance;

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use crate::head::Features;

/// Rows that are held against so many others at once.
const BLOCK: usize = 1_024;

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

/// The one of the others that is the nearest to each row, and the product of both, which of rows of length 1 is their cosine;
/// without others that is negative infinity. `rows` is `[n, columns]`, `others` `[m, columns]`.
///
/// # Panics
/// When rows have no columns.
pub fn nearest(rows: &[f32], others: &[f32], columns: usize, cpu: &Cpu) -> Vec<(usize, f32)> {
    let mut found = vec![(0, f32::NEG_INFINITY); rows.len() / columns];
    let mut products = vec![0f32; BLOCK * BLOCK.min(others.len() / columns)];
    for (start, others) in (0..).step_by(BLOCK).zip(others.chunks(BLOCK * columns)) {
        let k = others.len() / columns;
        let others = View::new(others, k, columns).t();
        for (rows, found) in rows.chunks(BLOCK * columns).zip(found.chunks_mut(BLOCK)) {
            let products = &mut products[..found.len() * k];
            matmul(cpu, View::new(rows, found.len(), columns), others, products, k, &Post::default());
            for (found, products) in found.iter_mut().zip(products.chunks_exact(k)) {
                let all = products.iter().enumerate().map(|(c, product)| (start + c, *product));
                *found = all.fold(*found, |best, next| if next.1 > best.1 { next } else { best });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn the_nearest_is_found_among_more_than_a_block() {
        let mut random = Random::new(4);
        let (columns, cpu) = (3, Cpu::new(2).unwrap());
        let mut normal =
            |rows: usize| (0..rows * columns).map(|_| random.normal() as f32).collect::<Vec<_>>();
        let (rows, others) = (normal(BLOCK + 20), normal(2 * BLOCK + 500));
        let found = nearest(&rows, &others, columns, &cpu);
        for (row, (at, product)) in rows.chunks_exact(columns).zip(&found) {
            let of = |other: &[f32]| dot(row, other);
            let best = others.chunks_exact(columns).map(of).fold(f32::NEG_INFINITY, f32::max);
            assert!(
                (best - product).abs() < 1e-4 && (of(&others[at * columns..][..columns]) - best).abs() < 1e-4
            );
        }
        assert!(found.iter().any(|(at, _)| *at >= 2 * BLOCK) && found.iter().any(|(at, _)| *at < BLOCK));
        assert_eq!(nearest(&rows[..columns], &[], columns, &cpu), [(0, f32::NEG_INFINITY)]);
        assert!(nearest(&[], &others, columns, &cpu).is_empty());
    }
}
