//! Optimal clusters of numbers: the few values that many numbers are nearest to.

/// Most different numbers that k-means looks at: longer lists are put into so many bins.
const BINS: usize = 1 << 14;

/// Ascending numbers and what each counts.
struct Points {
    at: Vec<f64>,
    weight: Vec<f64>,
}

impl Points {
    /// Numbers that are not finite, and those that count nothing, are left out.
    fn new(values: &[f32], weights: &[f64]) -> Points {
        let weight = |i: usize| weights.get(i).copied().unwrap_or(1.0);
        let counts = |i: &usize| values[*i].is_finite() && weight(*i) > 0.0;
        let mut order: Vec<usize> = (0..values.len()).filter(counts).collect();
        if order.len() <= BINS {
            order.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then(a.cmp(&b)));
            let mut points = Points { at: Vec::new(), weight: Vec::new() };
            for i in order {
                let x = f64::from(values[i]);
                match (points.at.last(), points.weight.last_mut()) {
                    (Some(last), Some(sum)) if *last == x => *sum += weight(i),
                    _ => {
                        points.at.push(x);
                        points.weight.push(weight(i));
                    }
                }
            }
            return points;
        }
        let range =
            |(l, h): (f64, f64), &i: &usize| (l.min(f64::from(values[i])), h.max(f64::from(values[i])));
        let (low, high) = order.iter().fold((f64::INFINITY, f64::NEG_INFINITY), range);
        let scale = (BINS - 1) as f64 / (high - low).max(f64::MIN_POSITIVE);
        let (mut sums, mut weights) = (vec![0f64; BINS], vec![0f64; BINS]);
        for i in order {
            let x = f64::from(values[i]);
            let bin = (((x - low) * scale) as usize).min(BINS - 1);
            sums[bin] += weight(i) * x;
            weights[bin] += weight(i);
        }
        let filled: Vec<usize> = (0..BINS).filter(|&b| weights[b] > 0.0).collect();
        Points {
            at: filled.iter().map(|&b| sums[b] / weights[b]).collect(),
            weight: filled.iter().map(|&b| weights[b]).collect(),
        }
    }
}

/// Sums over the points before each place, so that the cost of any run of points is known at once.
struct Runs {
    weight: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Runs {
    fn new(points: &Points) -> Runs {
        let running = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let mut sum = 0.0;
            let each = points.at.iter().zip(&points.weight).map(|(&x, &u)| {
                sum += f(x, u);
                sum
            });
            std::iter::once(0.0).chain(each).collect()
        };
        Runs { weight: running(&|_, u| u), first: running(&|x, u| u * x), second: running(&|x, u| u * x * x) }
    }

    /// The squared distance of points from..to to their mean.
    fn cost(&self, from: usize, to: usize) -> f64 {
        let (u, x) = (self.weight[to] - self.weight[from], self.first[to] - self.first[from]);
        if u > 0.0 { (self.second[to] - self.second[from] - x * x / u).max(0.0) } else { 0.0 }
    }

    fn mean(&self, from: usize, to: usize) -> f64 {
        let u = self.weight[to] - self.weight[from];
        if u > 0.0 { (self.first[to] - self.first[from]) / u } else { 0.0 }
    }
}

/// The `count` values with the least weighted squared distance of all numbers to the nearest of them, in ascending
/// order: the exact optimum by dynamic programming over sorted numbers, rows by divide and conquer as the best last cut
/// never moves back (Wu, 1991). `weights` has a number for each value, or is empty. Where there are fewer different
/// numbers, the last is repeated.
pub fn kmeans(values: &[f32], weights: &[f64], count: usize) -> Vec<f32> {
    let points = Points::new(values, weights);
    let n = points.at.len();
    if n == 0 || count == 0 {
        return vec![0.0; count];
    }
    let runs = Runs::new(&points);
    let clusters = count.min(n);
    // best[i]: the least cost of the first i points in so many clusters.
    let mut best: Vec<f64> = (0..=n).map(|i| runs.cost(0, i)).collect();
    let mut cuts: Vec<Vec<u32>> = Vec::new();
    for _ in 1..clusters {
        let (mut next, mut cut) = (vec![0f64; n + 1], vec![0u32; n + 1]);
        // Ranges of ends, and where their last cuts can lie.
        let mut open = vec![(1usize, n, 0usize, n)];
        while let Some((low, high, from, to)) = open.pop() {
            if low > high {
                continue;
            }
            let end = (low + high) / 2;
            let mut found = (f64::INFINITY, from);
            for (start, before) in best.iter().enumerate().take(to.min(end) + 1).skip(from) {
                let cost = before + runs.cost(start, end);
                if cost < found.0 {
                    found = (cost, start);
                }
            }
            (next[end], cut[end]) = (found.0, found.1 as u32);
            open.push((low, end - 1, from, found.1));
            open.push((end + 1, high, found.1, to));
        }
        best = next;
        cuts.push(cut);
    }
    let (mut end, mut table) = (n, Vec::new());
    for cut in cuts.iter().rev() {
        let start = cut[end] as usize;
        if start < end {
            table.push(runs.mean(start, end) as f32);
        }
        end = start;
    }
    if end > 0 {
        table.push(runs.mean(0, end) as f32);
    }
    table.reverse();
    let last = table.last().copied().unwrap_or(0.0);
    table.resize(count, last);
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn cost(values: &[f32], weights: &[f64], table: &[f32]) -> f64 {
        let weigh = |i: usize| weights.get(i).copied().unwrap_or(1.0);
        let one = |(i, &x): (usize, &f32)| {
            weigh(i) * table.iter().map(|v| f64::from(x - v).powi(2)).fold(f64::INFINITY, f64::min)
        };
        values.iter().enumerate().map(one).sum()
    }

    /// Numbers of a normal distribution, by Box and Muller.
    pub(crate) fn normal(n: usize) -> Vec<f32> {
        let mut state = 3u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let one = |_| ((-2.0 * next().ln()).sqrt() * (std::f64::consts::TAU * next()).cos()) as f32;
        (0..n).map(one).collect()
    }

    #[test]
    fn the_table_is_the_best_of_all() {
        let values: Vec<f32> = normal(14);
        let weights: Vec<f64> = (0..14).map(|i| 1.0 + (i * 5 % 7) as f64).collect();
        let mut order: Vec<usize> = (0..14).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mean = |run: &[usize]| -> f32 {
            let (u, x) = run
                .iter()
                .fold((0.0, 0.0), |(u, x), &i| (u + weights[i], x + weights[i] * f64::from(values[i])));
            (x / u) as f32
        };
        // All ways to cut 14 numbers into 4 runs.
        let mut least = f64::INFINITY;
        for a in 1..12 {
            for b in a + 1..13 {
                for c in b + 1..14 {
                    let table = [&order[..a], &order[a..b], &order[b..c], &order[c..]].map(mean);
                    least = least.min(cost(&values, &weights, &table));
                }
            }
        }
        let found = kmeans(&values, &weights, 4);
        assert!((cost(&values, &weights, &found) / least - 1.0).abs() < 1e-5);
        assert!(found.windows(2).all(|w| w[0] <= w[1]));
    }

    #[test]
    fn a_normal_distribution_has_the_table_of_lloyd_and_max() {
        // Max, "Quantizing for minimum distortion" (1960): errors of 2, 4, 8 and 16 values.
        let values = normal(200_000);
        for (count, want) in [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)] {
            let error = cost(&values, &[], &kmeans(&values, &[], count)) / 200_000.0;
            assert!((error / want - 1.0).abs() < 0.02, "{count}: {error} {want}");
        }
    }

    #[test]
    fn few_numbers_are_met_exactly_and_those_that_are_none_are_left_out() {
        assert_eq!(kmeans(&[2.0, 1.0, 2.0], &[], 4), [1.0, 2.0, 2.0, 2.0]);
        assert_eq!(kmeans(&[], &[], 2), [0.0, 0.0]);
        assert_eq!(kmeans(&[f32::NAN, 5.0, f32::INFINITY], &[], 1), [5.0]);
        assert_eq!(kmeans(&[1.0, 9.0], &[1.0, 0.0], 1), [1.0]);
    }
}
