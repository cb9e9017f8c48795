//! Examples that mean the same: near each other in the space of a model's features (Abbas et al., *SemDeDup*, 2023).

use kernel::Cpu;

use super::{dot, nearest, unit};
use crate::head::Features;
use crate::random::Random;

/// Examples of a cluster, on average.
const CLUSTER: usize = 512;
/// Most clusters.
const MOST: usize = 4_096;
/// Rounds of k-means.
const ROUNDS: usize = 10;

/// An example that means the same as one that stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Twin {
    /// Which example.
    pub row: usize,
    /// The one that stays.
    pub of: usize,
    /// The cosine of their features.
    pub cosine: f32,
}

/// Of examples whose features have a cosine of at least `least` to each other all but one, in ascending order. They are
/// looked for within clusters (spherical k-means); the one that stays is the farthest from the middle of its cluster.
pub fn twins(features: &Features, least: f32, seed: u64, cpu: &Cpu) -> Vec<Twin> {
    let columns = features.columns();
    let units = unit(features);
    let (members, middles) = clusters(&units, columns, seed, cpu);
    let row = |i: usize| &units[i * columns..][..columns];
    let found = cpu.pool().map(members.len(), |c| {
        let middle = &middles[c * columns..][..columns];
        let mut order: Vec<(f32, usize)> = members[c].iter().map(|&i| (dot(row(i), middle), i)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut stay: Vec<usize> = Vec::new();
        let mut twins = Vec::new();
        for (_, i) in order {
            // The nearest of those that stay.
            let near = stay.iter().map(|&of| (dot(row(i), row(of)), of));
            match near.reduce(|best, next| if next.0 > best.0 { next } else { best }) {
                Some((cosine, of)) if cosine >= least => twins.push(Twin { row: i, of, cosine }),
                _ => stay.push(i),
            }
        }
        twins
    });
    let mut twins = found.concat();
    twins.sort_by_key(|twin| twin.row);
    twins
}

/// The rows of each cluster, and the directions of their middles.
fn clusters(units: &[f32], columns: usize, seed: u64, cpu: &Cpu) -> (Vec<Vec<usize>>, Vec<f32>) {
    let n = units.len() / columns;
    let k = n.div_ceil(CLUSTER).min(MOST);
    let mut first: Vec<usize> = (0..n).collect();
    Random::new(seed).shuffle(&mut first);
    let mut middles: Vec<f32> =
        first[..k].iter().flat_map(|&i| &units[i * columns..][..columns]).copied().collect();
    let mut of: Vec<usize> = Vec::new();
    for _ in 0..if k > 1 { ROUNDS } else { 1 } {
        of = nearest(units, &middles, columns, cpu).into_iter().map(|(c, _)| c).collect();
        let mut sums = vec![0f64; k * columns];
        for (&c, row) in of.iter().zip(units.chunks_exact(columns)) {
            sums[c * columns..][..columns].iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        for (middle, sum) in middles.chunks_exact_mut(columns).zip(sums.chunks_exact(columns)) {
            let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
            // A cluster that nothing is near to stays where it was.
            if norm > 0.0 {
                middle.iter_mut().zip(sum).for_each(|(m, x)| *m = (x / norm) as f32);
            }
        }
    }
    let mut members = vec![Vec::new(); k];
    of.iter().enumerate().for_each(|(row, &c)| members[c].push(row));
    (members, middles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_point_the_same_way_are_found_and_one_stays() {
        let mut random = Random::new(6);
        let (rows, columns) = (2_000, 24);
        let mut values: Vec<f32> = (0..rows * columns).map(|_| random.normal() as f32).collect();
        // Every tenth is followed by one that is nearly the same, but longer.
        let planted: Vec<usize> = (0..rows).step_by(10).collect();
        for &i in &planted {
            for c in 0..columns {
                values[(i + 1) * columns + c] = 3.0 * values[i * columns + c] + 0.05 * random.normal() as f32;
            }
        }
        let features = Features::new(columns, values).unwrap();
        let cpu = Cpu::new(2).unwrap();
        let found = twins(&features, 0.99, 1, &cpu);
        let right = |twin: &Twin| twin.row.abs_diff(twin.of) == 1 && twin.row.min(twin.of).is_multiple_of(10);
        assert!(found.iter().all(right), "{found:?}");
        // A pair may fall apart into two clusters.
        assert!(found.len() >= planted.len() * 95 / 100, "{}", found.len());
        assert_eq!(twins(&features, 0.99, 1, &Cpu::new(1).unwrap()), found);
        assert!(twins(&features, 1.1, 1, &cpu).is_empty());
    }

    #[test]
    fn many_of_a_kind_leave_one() {
        let features = Features::new(2, [[1.0, 0.0]; 50].concat()).unwrap();
        let found = twins(&features, 0.999, 1, &Cpu::new(1).unwrap());
        assert!(found.len() == 49 && found.iter().all(|twin| twin.of == 0));
        let zeros = Features::new(2, vec![0.0; 6]).unwrap();
        assert!(twins(&zeros, 0.5, 1, &Cpu::new(1).unwrap()).is_empty());
    }
}
