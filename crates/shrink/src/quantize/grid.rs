//! Affine grids of few bits: `x ~ scale * (code - zero)`. <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>

use kernel::Cpu;
use kernel::grid::LANES;

/// Which codes a grid has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    low: i32,
    high: i32,
}

impl Kind {
    /// 0..=255 with a zero point: activations.
    pub const U8: Kind = Kind::unsigned(8);
    /// -127..=127, the zero point is 0: weights.
    pub const S8: Kind = Kind { low: -127, high: 127 };

    /// 0..2^bits with a zero point, for 1 to 8 bits.
    pub const fn unsigned(bits: u32) -> Kind {
        Kind { low: 0, high: (1 << bits) - 1 }
    }

    /// The greatest code.
    pub fn high(self) -> i32 {
        self.high
    }
}

/// A grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Distance of two neighbours; above zero.
    pub scale: f32,
    /// The code of 0.
    pub zero: i32,
    kind: Kind,
}

/// A scale that can be divided by.
fn usable(scale: f32) -> f32 {
    if scale.is_normal() { scale } else { 1.0 }
}

impl Grid {
    /// The grid of a scale, which must be above 0, and a code of 0.
    pub fn new(scale: f32, zero: i32, kind: Kind) -> Grid {
        Grid { scale: usable(scale), zero, kind }
    }

    /// The grid over a range, which is widened to hold 0, so that 0 stays exact.
    pub fn from_range(low: f32, high: f32, kind: Kind) -> Grid {
        let (low, high) = (low.min(0.0), high.max(0.0));
        if kind.low < 0 {
            return Grid { scale: usable(high.max(-low) / kind.high as f32), zero: 0, kind };
        }
        let scale = usable((high - low) / kind.high as f32);
        let zero = (-low / scale).round_ties_even().clamp(0.0, kind.high as f32) as i32;
        Grid { scale, zero, kind }
    }

    /// The code of a number: the nearest, ties to the even one; saturated.
    pub fn code(&self, x: f32) -> i32 {
        let code = ((x / self.scale).round_ties_even() as i32).saturating_add(self.zero);
        code.clamp(self.kind.low, self.kind.high)
    }

    /// The number of a code.
    pub fn value(&self, code: i32) -> f32 {
        (code - self.zero) as f32 * self.scale
    }

    /// The number nearest to `x` on the grid.
    pub fn round(&self, x: f32) -> f32 {
        self.value(self.code(x))
    }
}

/// The symmetric grid for a slice of weights that minimises the squared error, among ranges clipped by up to a
/// third. Weights must be finite.
pub fn search_s8<'a>(weights: impl Iterator<Item = &'a f32> + Clone) -> Grid {
    let top = weights.clone().fold(0f32, |m, w| m.max(w.abs()));
    let harm = |grid: &Grid| -> f64 { weights.clone().map(|&w| f64::from(w - grid.round(w)).powi(2)).sum() };
    least_harm(top, (0..=16).map(|step| 1.0 - 0.02 * step as f32), harm)
}

/// The grid with the least harm among ranges that are so many times `top`; of equal ones the first.
fn least_harm(top: f32, times: impl Iterator<Item = f32>, harm: impl Fn(&Grid) -> f64) -> Grid {
    let full = Grid::from_range(-top, top, Kind::S8);
    let mut best = (harm(&full), full);
    for times in times {
        let grid = Grid::from_range(-top * times, top * times, Kind::S8);
        let h = harm(&grid);
        if h < best.0 {
            best = (h, grid);
        }
    }
    best.1
}

/// The greatest sum of two codes of one sign that a processor without VNNI can multiply with codes up to 255: it adds
/// two products in 16 bits, which saturate (`vpmaddubsw`), and 255 * 128 is the last multiple below 2^15.
pub const PAIR: i32 = 128;

/// The codes of weights that lie side by side in a sum, so that no pair of products saturates in 16 bits: what is
/// too much is taken from both, where it does least harm. An odd one at the end stands alone.
pub fn pair_codes(grid: &Grid, weights: &[f32]) -> Vec<i8> {
    let mut codes: Vec<i8> = weights.iter().map(|&w| grid.code(w) as i8).collect();
    for (codes, weights) in codes.chunks_exact_mut(2).zip(weights.chunks_exact(2)) {
        if (i32::from(codes[0]) + i32::from(codes[1])).abs() > PAIR {
            let sign = i32::from(codes[0].signum());
            let apart = (weights[0].abs() - weights[1].abs()) / grid.scale;
            let first = ((apart + PAIR as f32) / 2.0).round_ties_even().clamp(1.0, 127.0) as i32;
            codes[0] = (sign * first) as i8;
            codes[1] = (sign * (PAIR - first)) as i8;
        }
    }
    codes
}

/// As [`search_s8`], for weights in the order of a sum whose codes are those of [`pair_codes`]: a somewhat wider range
/// can do less harm than what is taken from pairs.
pub fn search_pairs(weights: &[f32]) -> Grid {
    let top = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    let harm = |grid: &Grid| -> f64 {
        let codes = pair_codes(grid, weights);
        let apart = |(&w, &code): (&f32, &i8)| f64::from(w - f32::from(code) * grid.scale).powi(2);
        weights.iter().zip(&codes).map(apart).sum()
    };
    least_harm(top, (0..=58).map(|step| 1.98 - 0.02 * step as f32), harm)
}

/// Trial steps of [`search`], relative to the range over the codes: from a little above to a good deal below.
const TRIALS: u32 = 20;

/// The grid for a group of weights that minimises the squared error, each weight counting as much as its importance
/// says (equally when `importance` is empty): from trial steps, scale and zero point are fitted by least squares and
/// the codes found anew (llama.cpp's search for its K-quants with an importance matrix).
pub fn search(cpu: &Cpu, weights: &[f32], importance: &[f64], bits: u32) -> Grid {
    best(cpu, weights, importance, Kind::unsigned(bits), None)
}

/// As [`search`], with the code of 0 in the middle: `2^(bits - 1)`.
pub fn search_symmetric(cpu: &Cpu, weights: &[f32], importance: &[f64], bits: u32) -> Grid {
    best(cpu, weights, importance, Kind::unsigned(bits), Some(1 << (bits - 1)))
}

/// The grid of a searched kind; `middle` is its zero point when that is given.
fn best(cpu: &Cpu, weights: &[f32], importance: &[f64], kind: Kind, middle: Option<i32>) -> Grid {
    let top = kind.high as f32;
    let (min, max) = weights.iter().fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
    let plain = match middle {
        // Half a step less than the codes reach to the one side, half a step more than to the other.
        Some(zero) => Grid { scale: usable(max.max(-min) / (top / 2.0)), zero, kind },
        None => Grid::from_range(min, max, kind),
    };
    let range = max - min;
    if range <= 0.0 || !range.is_finite() {
        return plain;
    }
    // Weights in units of the range and importance in units of its mean, so that no product of them is too small or
    // too great; what is added to fill the lanes counts nothing.
    let len = weights.len().next_multiple_of(LANES);
    let mean = importance.iter().sum::<f64>() / importance.len().max(1) as f64;
    let count = |i: usize| match importance.get(i) {
        Some(u) if mean > 0.0 => (u / mean) as f32,
        _ => 1.0,
    };
    let mut unit = vec![0f32; len];
    let mut counts = vec![0f32; len];
    for (i, &w) in weights.iter().enumerate() {
        (unit[i], counts[i]) = (w / range, count(i));
    }
    let reach = |zero: i32| (-zero as f32, (kind.high - zero) as f32);
    let harm = |grid: &Grid| -> f32 {
        let (low, high) = reach(grid.zero);
        kernel::grid::error(cpu, &unit, &counts, grid.scale, low, high)
    };
    let start = Grid { scale: usable(plain.scale / range), ..plain };
    let mut best = (harm(&start), start);
    for trial in 0..TRIALS {
        let steps = top + 0.8 - 1.8 * trial as f32 / (TRIALS - 1) as f32 * (1.0 + top / 8.0).min(3.0);
        if steps <= 0.25 {
            break;
        }
        let mut grid = match middle {
            Some(zero) => Grid { scale: start.scale * top / steps, zero, kind },
            None => match regressed(cpu, &unit, &counts, min / range, steps, kind) {
                Some(grid) => grid,
                None => continue,
            },
        };
        // With a zero point that is a whole number, the best scale is another.
        let (low, high) = reach(grid.zero);
        for _ in 0..2 {
            let [xq, qq] = kernel::grid::fit(cpu, &unit, &counts, 1.0 / grid.scale, low, high);
            let fitted = xq / qq;
            if qq > 0.0 && fitted.is_normal() && fitted > 0.0 {
                grid.scale = fitted;
            }
        }
        let h = harm(&grid);
        if h < best.0 {
            best = (h, grid);
        }
    }
    let scale = best.1.scale * range;
    if scale.is_normal() { Grid { scale, ..best.1 } } else { plain }
}

/// Scale and zero point by least squares, for the codes that these steps from the lowest weight give.
fn regressed(cpu: &Cpu, unit: &[f32], counts: &[f32], low: f32, steps: f32, kind: Kind) -> Option<Grid> {
    let top = kind.high as f32;
    let [u1, ux, ul, ull, uxl] = kernel::grid::regress(cpu, unit, counts, low, steps, top);
    let determinant = u1 * ull - ul * ul;
    let scale = (u1 * uxl - ux * ul) / determinant;
    let offset = (ull * ux - ul * uxl) / determinant;
    if determinant <= 0.0 || !scale.is_normal() || scale <= 0.0 {
        return None;
    }
    let zero = (-offset / scale).round_ties_even().clamp(0.0, top);
    Some(Grid { scale, zero: zero as i32, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gram::tests::cpu;

    #[test]
    fn zero_is_exact_and_the_ends_saturate() {
        for (low, high) in [(-1.0, 3.0), (0.5, 3.0), (-3.0, -1.0), (0.0, 0.0)] {
            for kind in [Kind::U8, Kind::S8, Kind::unsigned(2), Kind::unsigned(3)] {
                let grid = Grid::from_range(low, high, kind);
                assert_eq!(grid.round(0.0), 0.0);
                assert!(grid.scale > 0.0);
                assert!((grid.round(low) - low).abs() <= grid.scale, "{low} {high} {kind:?}");
            }
        }
        let grid = Grid::from_range(-1.0, 1.0, Kind::U8);
        assert_eq!((grid.code(9.0), grid.code(-9.0)), (255, 0));
        assert_eq!(Grid::from_range(-1.0, 1.0, Kind::S8).code(-9.0), -127);
    }

    #[test]
    fn ties_go_to_the_even_code() {
        let grid = Grid::from_range(-127.0, 127.0, Kind::S8);
        assert_eq!([0.5f32, 1.5, 2.5, -0.5].map(|x| grid.code(x)), [0, 2, 2, 0]);
    }

    #[test]
    fn clipping_an_outlier_pays_only_when_it_lowers_the_error() {
        let mut weights: Vec<f32> = (0..4096).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let plain = search_s8(weights.iter());
        assert!(plain.scale > 0.95 / 127.0);
        weights.push(1.3);
        assert!(search_s8(weights.iter()).scale < 1.3 / 127.0);
    }

    #[test]
    fn no_pair_of_products_saturates_and_the_change_is_least() {
        let unit = Grid::from_range(-127.0, 127.0, Kind::S8);
        let codes = pair_codes(&unit, &[100.0, 60.0, -127.0, -127.0, 127.0, -127.0, -3.0, -126.0, 127.0]);
        assert_eq!(codes, [84, 44, -64, -64, 127, -127, -2, -126, 127]);
        let weights: Vec<f32> = (0..512).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 506.0).collect();
        let grid = search_pairs(&weights);
        let codes = pair_codes(&grid, &weights);
        for pair in codes.chunks_exact(2) {
            for (a, b) in [(0, 255), (255, 255), (255, 0)] {
                let sum = a * i32::from(pair[0]) + b * i32::from(pair[1]);
                assert!(i16::try_from(sum).is_ok(), "{pair:?}");
            }
        }
        // Neither the range as it is nor one without pairs that are too great is better.
        let harm = |grid: &Grid| -> f64 {
            let codes = pair_codes(grid, &weights);
            weights.iter().zip(codes).map(|(w, c)| f64::from(w - f32::from(c) * grid.scale).powi(2)).sum()
        };
        for times in [1.0, 1.98] {
            assert!(harm(&grid) <= harm(&Grid::from_range(-times, times, Kind::S8)));
        }
        assert_eq!(search_pairs(&[]).scale, 1.0);
    }

    /// Sums of three numbers each: like a bell.
    fn bell(n: usize) -> Vec<f32> {
        let one = |i: usize| (i * 7919 % 1013) as f32 / 506.0 - 1.0;
        (0..n).map(|i| one(i) + one(3 * i + 5) + one(11 * i + 17)).collect()
    }

    fn error(weights: &[f32], importance: &[f64], grid: &Grid) -> f64 {
        let weigh = |i: usize| importance.get(i).copied().unwrap_or(1.0);
        weights.iter().enumerate().map(|(i, &w)| weigh(i) * f64::from(w - grid.round(w)).powi(2)).sum()
    }

    #[test]
    fn a_search_is_never_worse_than_the_range_and_much_better_at_few_bits() {
        let weights = bell(64);
        let (min, max) = weights.iter().fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
        for bits in 1..=8 {
            let found = search(&cpu(), &weights, &[], bits);
            let plain = Grid::from_range(min, max, Kind::unsigned(bits));
            let (a, b) = (error(&weights, &[], &found), error(&weights, &[], &plain));
            assert!(a <= b * 1.0001, "{bits} bits: {a} {b}");
            assert!(bits != 2 || a < 0.8 * b, "{a} {b}");
            assert!(found.round(0.0) == 0.0);
        }
    }

    #[test]
    fn importance_pulls_the_grid() {
        let weights = bell(64);
        let importance: Vec<f64> = (0..64).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
        let (blind, seeing) = (search(&cpu(), &weights, &[], 3), search(&cpu(), &weights, &importance, 3));
        let (a, b) = (error(&weights, &importance, &seeing), error(&weights, &importance, &blind));
        assert!(a < b, "{a} {b}");
    }

    #[test]
    fn odd_groups_have_usable_grids() {
        for weights in [vec![0.0; 8], vec![1e-38; 8], vec![3e38, -3e38], vec![5.0], vec![-0.25; 3], vec![]] {
            for bits in [1, 2, 4, 8] {
                let grid = search(&cpu(), &weights, &[], bits);
                assert!(grid.scale > 0.0 && grid.scale.is_finite(), "{weights:?} {grid:?}");
                assert!(weights.iter().all(|&w| (grid.round(w) - w).abs() <= w.abs() + f32::MIN_POSITIVE));
            }
        }
        // Nothing is important: nothing is known.
        assert_eq!(search(&cpu(), &bell(16), &[0.0; 16], 4), search(&cpu(), &bell(16), &[], 4));
    }
}
