//! Few examples that stand for all: greedy choices by their features.

use std::collections::BinaryHeap;
use std::fmt;
use std::str::FromStr;

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;
use serde::Serialize;

use super::{dot, unit};
use crate::head::Features;
use crate::random::Random;

/// Examples that are looked at together; of more, each part gives its share. Facility location holds their similarities
/// to each other: 64 MB.
const PART: usize = 4096;

/// How examples are chosen that stand for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coreset {
    /// The farthest from those that are chosen, again and again (Sener and Savarese, 2018): none is far from a chosen one.
    KCenter,
    /// The one that brings the mean of the chosen nearest to the mean of all (Welling, 2009).
    Herding,
    /// The one that makes the others most similar to their nearest chosen one (facility location; Mirzasoleiman et al.,
    /// 2020).
    Facility,
}

impl Coreset {
    /// All of them.
    pub const ALL: [Coreset; 3] = [Coreset::KCenter, Coreset::Herding, Coreset::Facility];

    /// Chooses `count` of these rows, in ascending order. Features are compared by their direction (cosine).
    pub fn choose(
        self,
        features: &Features,
        rows: &[usize],
        count: usize,
        seed: u64,
        cpu: &Cpu,
    ) -> Vec<usize> {
        if count >= rows.len() {
            return rows.to_vec();
        }
        let mut mixed = rows.to_vec();
        Random::new(seed).shuffle(&mut mixed);
        let parts = mixed.len().div_ceil(PART);
        let of = |part: usize, of: usize| of * part / parts;
        let chosen = cpu.pool().map(parts, |part| {
            let mine = &mixed[of(part, mixed.len())..of(part + 1, mixed.len())];
            let count = of(part + 1, count) - of(part, count);
            let units = unit(&features.select(mine));
            let found = match self {
                Coreset::KCenter => k_center(&units, features.columns(), count),
                Coreset::Herding => herding(&units, features.columns(), count),
                Coreset::Facility => facility(&units, features.columns(), count, cpu),
            };
            found.into_iter().map(|at| mine[at]).collect::<Vec<_>>()
        });
        let mut chosen = chosen.concat();
        chosen.sort_unstable();
        chosen
    }
}

impl fmt::Display for Coreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Coreset::KCenter => "k-center",
            Coreset::Herding => "herding",
            Coreset::Facility => "facility",
        })
    }
}

impl FromStr for Coreset {
    type Err = String;

    fn from_str(text: &str) -> Result<Coreset, String> {
        let found = Coreset::ALL.into_iter().find(|c| c.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no coreset; they are k-center, herding and facility"))
    }
}

/// Rows from the first on, each time the farthest from all before.
fn k_center(units: &[f32], columns: usize, count: usize) -> Vec<usize> {
    let rows: Vec<&[f32]> = units.chunks_exact(columns).collect();
    let mut nearest = vec![f32::NEG_INFINITY; rows.len()];
    let mut chosen = Vec::with_capacity(count);
    let mut next = 0;
    while chosen.len() < count.min(rows.len()) {
        chosen.push(next);
        nearest[next] = f32::INFINITY;
        for (nearest, row) in nearest.iter_mut().zip(&rows) {
            *nearest = nearest.max(dot(row, rows[next]));
        }
        next = least(&nearest);
    }
    chosen
}

fn least(of: &[f32]) -> usize {
    (1..of.len()).fold(0, |best, i| if of[i] < of[best] { i } else { best })
}

/// Rows whose mean follows the mean of all.
fn herding(units: &[f32], columns: usize, count: usize) -> Vec<usize> {
    let rows: Vec<&[f32]> = units.chunks_exact(columns).collect();
    let mut mean = vec![0f32; columns];
    for row in &rows {
        mean.iter_mut().zip(*row).for_each(|(sum, x)| *sum += x / rows.len() as f32);
    }
    let mut wanted = mean.clone();
    let mut left: Vec<usize> = (0..rows.len()).collect();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count && !left.is_empty() {
        let score: Vec<f32> = left.iter().map(|&row| dot(rows[row], &wanted)).collect();
        let at = (1..score.len()).fold(0, |best, i| if score[i] > score[best] { i } else { best });
        let row = left.remove(at);
        for ((wanted, mean), x) in wanted.iter_mut().zip(&mean).zip(rows[row]) {
            *wanted += mean - x;
        }
        chosen.push(row);
    }
    chosen
}

/// What choosing a row gains, at most: greatest first, then the first row.
#[derive(PartialEq)]
struct Gain(f32, usize);

impl Eq for Gain {}

impl Ord for Gain {
    fn cmp(&self, other: &Gain) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(other.1.cmp(&self.1))
    }
}

impl PartialOrd for Gain {
    fn partial_cmp(&self, other: &Gain) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Rows that the others are most similar to. What a row gains only falls, so that one that was the best before and still
/// is need not be held against the rest (lazy greedy; Minoux, 1978).
fn facility(units: &[f32], columns: usize, count: usize, cpu: &Cpu) -> Vec<usize> {
    let n = units.len() / columns;
    let mut similar = vec![0f32; n * n];
    let view = View::new(units, n, columns);
    matmul(cpu, view, view.t(), &mut similar, n, &Post::default());
    let mut reached = vec![0f32; n];
    let gain = |row: usize, reached: &[f32]| {
        similar[row * n..][..n].iter().zip(reached).map(|(s, r)| (s - r).max(0.0)).sum::<f32>()
    };
    let mut heap: BinaryHeap<Gain> = (0..n).map(|row| Gain(gain(row, &reached), row)).collect();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count
        && let Some(Gain(_, row)) = heap.pop()
    {
        let now = Gain(gain(row, &reached), row);
        if heap.peek().is_some_and(|next| *next > now) {
            heap.push(now);
            continue;
        }
        reached.iter_mut().zip(&similar[row * n..][..n]).for_each(|(r, s)| *r = r.max(*s));
        chosen.push(row);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three heaps of 10, 20 and 30 points around directions of their own.
    fn heaps() -> Features {
        let mut random = Random::new(4);
        let mut values = Vec::new();
        for (heap, size) in [10, 20, 30].into_iter().enumerate() {
            for _ in 0..size {
                values
                    .extend((0..3).map(|c| (f64::from(u8::from(c == heap)) + 0.05 * random.normal()) as f32));
            }
        }
        Features::new(3, values).unwrap()
    }

    #[test]
    fn each_heap_is_stood_for() {
        let cpu = Cpu::new(2).unwrap();
        let all: Vec<usize> = (0..60).collect();
        for method in Coreset::ALL {
            let found = method.choose(&heaps(), &all, 6, 1, &cpu);
            assert!(found.len() == 6 && found.windows(2).all(|w| w[0] < w[1]), "{method} {found:?}");
            let heap = |row: &usize| usize::from(*row >= 10) + usize::from(*row >= 30);
            let of = |which| found.iter().filter(|row| heap(row) == which).count();
            assert!((0..3).all(|which| of(which) > 0), "{method} {found:?}");
            // The mean of all leans to the greatest heap.
            assert!(method != Coreset::Herding || of(2) == 3, "{found:?}");
            assert_eq!(method.choose(&heaps(), &all, 99, 1, &cpu), all);
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        assert!("nearest".parse::<Coreset>().is_err());
    }

    #[test]
    fn greedy_choices_of_a_small_example() {
        let units = [1.0, 0.0, 0.8, 0.6, 0.0, 1.0, -1.0, 0.0];
        // The farthest from the first is its opposite, then the one across.
        assert_eq!(k_center(&units, 2, 3), [0, 3, 2]);
        // The mean is (0.2, 0.4): the second is the nearest to it; then (-0.4, 0.2) is wanted.
        assert_eq!(herding(&units, 2, 2), [1, 3]);
        // The second is like its neighbours; then the last is like none.
        let cpu = Cpu::new(1).unwrap();
        assert_eq!(facility(&units, 2, 2, &cpu), [1, 3]);
        assert_eq!(facility(&units, 2, 9, &cpu).len(), 4);
    }

    #[test]
    fn parts_give_their_shares() {
        let mut random = Random::new(9);
        let values: Vec<f32> = (0..2 * 9_000).map(|_| random.normal() as f32).collect();
        let features = Features::new(2, values).unwrap();
        let rows: Vec<usize> = (0..9_000).step_by(1).collect();
        let one = Coreset::Herding.choose(&features, &rows, 1_000, 3, &Cpu::new(1).unwrap());
        assert_eq!(one.len(), 1_000);
        assert_eq!(Coreset::Herding.choose(&features, &rows, 1_000, 3, &Cpu::new(2).unwrap()), one);
    }
}
