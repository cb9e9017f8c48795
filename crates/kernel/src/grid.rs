//! Numbers and their codes on affine grids, `x ~ scale * (code - zero)`: the sums that grids are fitted by, the codes,
//! and columns that are fixed one after the other.
//!
//! The sums are taken in one order and never fused, so that all instruction sets give the same bits: a grid does not
//! depend on the processor that found it.

use crate::Cpu;
use crate::lanes::{Body, Set, run};
use crate::math::fma;

/// Numbers that are summed side by side; slices of the sums are padded to a multiple of it.
pub const LANES: usize = 16;

/// The nearest whole number of one that is below 2^22 in size, ties to the even one: as `round_ties_even`, in two
/// additions that every processor does for many numbers at once.
#[inline(always)]
pub fn whole(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// As `clamp`, in the two instructions that it takes; NaN becomes `low`.
#[inline(always)]
fn within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Sums of what `term` makes of each pair.
#[inline(always)]
fn sums<const N: usize>(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0f32; LANES]; N];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            let terms = term(a[lane], b[lane]);
            for (sum, term) in lanes.iter_mut().zip(terms) {
                sum[lane] += term;
            }
        }
    }
    lanes.map(|lane| lane.iter().sum())
}

fn check(x: &[f32], weights: &[f32]) {
    assert!(x.len() == weights.len() && x.len().is_multiple_of(LANES), "slices are not padded alike");
}

/// `[sum u, sum u x, sum u c, sum u c c, sum u x c]` over numbers x with weights u, where c is the whole number nearest
/// to `(x - low) * steps` in 0 to `top`.
///
/// # Panics
/// When the slices are not equally long, or no multiple of [`LANES`].
pub fn regress(cpu: &Cpu, x: &[f32], weights: &[f32], low: f32, steps: f32, top: f32) -> [f32; 5] {
    check(x, weights);
    run(cpu, Regress { x, weights, low, steps, top })
}

struct Regress<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    low: f32,
    steps: f32,
    top: f32,
}

impl Body for Regress<'_> {
    type Out = [f32; 5];

    #[inline(always)]
    fn run<S: Set>(self) -> [f32; 5] {
        sums(self.x, self.weights, |x, u| {
            let code = whole(within((x - self.low) * self.steps, 0.0, self.top));
            let uc = u * code;
            [u, u * x, uc, uc * code, uc * x]
        })
    }
}

/// `[sum u x q, sum u q q]` over numbers x with weights u, where q is the whole number nearest to `x * inverse` in
/// `low` to `high`: their ratio is the scale that serves these q best.
///
/// # Panics
/// As [`regress`].
pub fn fit(cpu: &Cpu, x: &[f32], weights: &[f32], inverse: f32, low: f32, high: f32) -> [f32; 2] {
    check(x, weights);
    run(cpu, Fit { x, weights, inverse, low, high })
}

struct Fit<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    inverse: f32,
    low: f32,
    high: f32,
}

impl Body for Fit<'_> {
    type Out = [f32; 2];

    #[inline(always)]
    fn run<S: Set>(self) -> [f32; 2] {
        sums(self.x, self.weights, |x, u| {
            let q = whole(within(x * self.inverse, self.low, self.high));
            let uq = u * q;
            [uq * x, uq * q]
        })
    }
}

/// The weighted squared error of numbers that go to the nearest of `scale * q`, q whole in `low` to `high`.
///
/// # Panics
/// As [`regress`].
pub fn error(cpu: &Cpu, x: &[f32], weights: &[f32], scale: f32, low: f32, high: f32) -> f32 {
    check(x, weights);
    run(cpu, Error { x, weights, scale, low, high })
}

struct Error<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    scale: f32,
    low: f32,
    high: f32,
}

impl Body for Error<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Set>(self) -> f32 {
        let inverse = 1.0 / self.scale;
        let [error] = sums(self.x, self.weights, |x, u| {
            let d = x - whole(within(x * inverse, self.low, self.high)) * self.scale;
            [u * d * d]
        });
        error
    }
}

/// The code of each number: the nearest of `scale * (code - zero)`, codes from 0 to `top` (at most 255).
///
/// # Panics
/// When the slices differ in length.
pub fn encode(cpu: &Cpu, x: &[f32], scale: f32, zero: f32, top: f32, codes: &mut [u8]) {
    assert_eq!(x.len(), codes.len());
    run(cpu, Encode { x, scale, zero, top, codes });
}

struct Encode<'a> {
    x: &'a [f32],
    scale: f32,
    zero: f32,
    top: f32,
    codes: &'a mut [u8],
}

impl Body for Encode<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let (low, high) = (-self.zero, self.top - self.zero);
        for (code, &x) in self.codes.iter_mut().zip(self.x) {
            *code = (whole(within(x / self.scale, low, high)) + self.zero) as i32 as u8;
        }
    }
}

/// A block of columns that [`Columns::fix`] fixes: `width` columns of `rows` numbers each, column by column.
pub struct Columns<'a> {
    /// Numbers in a column.
    pub rows: usize,
    /// What the elements have come to be; becomes their errors, fixed less `old`.
    pub work: &'a mut [f32],
    /// The elements as they were.
    pub old: &'a [f32],
    /// Becomes the codes.
    pub codes: &'a mut [u8],
    /// `width x width`: what an error of the column of the row takes from the column of the column.
    pub pull: &'a [f32],
    /// The group of each column.
    pub groups: &'a [usize],
    /// Scales of the groups, `rows` for each.
    pub scales: &'a [f32],
    /// Zero points of the groups, as the scales.
    pub zeros: &'a [f32],
    /// The greatest code.
    pub top: f32,
}

impl Columns<'_> {
    /// Fixes the columns one after the other to their grids, and takes from the later ones what each error pulls.
    ///
    /// # Panics
    /// When the slices do not fit together.
    pub fn fix(self, cpu: &Cpu) {
        let (width, count) = (self.groups.len(), self.groups.len() * self.rows);
        assert!(self.work.len() == count && self.old.len() == count && self.codes.len() == count);
        assert!(self.pull.len() == width * width && self.scales.len() == self.zeros.len());
        assert!(self.groups.iter().all(|&g| (g + 1) * self.rows <= self.scales.len()));
        if count > 0 {
            run(cpu, self);
        }
    }
}

impl Body for Columns<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let (rows, width) = (self.rows, self.groups.len());
        let columns = self.old.chunks_exact(rows).zip(self.codes.chunks_exact_mut(rows));
        for (k, (old, codes)) in columns.enumerate() {
            let (done, later) = self.work.split_at_mut((k + 1) * rows);
            let own = &mut done[k * rows..];
            let grids = self.groups[k] * rows..(self.groups[k] + 1) * rows;
            let (scales, zeros) = (&self.scales[grids.clone()], &self.zeros[grids]);
            for r in 0..rows {
                let q = whole(within(own[r] / scales[r], -zeros[r], self.top - zeros[r]));
                codes[r] = (q + zeros[r]) as i32 as u8;
                own[r] = q * scales[r] - old[r];
            }
            for (other, &pull) in later.chunks_exact_mut(rows).zip(&self.pull[k * width + k + 1..]) {
                for (x, &e) in other.iter_mut().zip(own.iter()) {
                    *x = fma::<S>(-pull, e, *x);
                }
            }
        }
    }
}

/// One step of Sherman and Morrison: with `p` the inverse of a symmetric `n x n` matrix M, makes it that of
/// `M + x x^T / d`, and gives `p x / d` of the new one in `out`.
///
/// # Panics
/// When the slices do not fit together.
pub fn join(cpu: &Cpu, p: &mut [f64], x: &[f64], d: f64, out: &mut [f64]) {
    assert!(x.len() == out.len() && p.len() == x.len() * x.len());
    run(cpu, Join { p, x, d, out });
}

struct Join<'a> {
    p: &'a mut [f64],
    x: &'a [f64],
    d: f64,
    out: &'a mut [f64],
}

impl Body for Join<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let n = self.x.len();
        if n == 0 {
            return;
        }
        self.out.fill(0.0);
        for (row, &x) in self.p.chunks_exact(n).zip(self.x) {
            for (sum, &p) in self.out.iter_mut().zip(row) {
                *sum += x * p;
            }
        }
        let whole = self.d + self.x.iter().zip(self.out.iter()).map(|(x, y)| x * y).sum::<f64>();
        for (row, i) in self.p.chunks_exact_mut(n).zip(0..) {
            let factor = self.out[i] / whole;
            for (p, &y) in row.iter_mut().zip(self.out.iter()) {
                *p -= factor * y;
            }
        }
        self.out.iter_mut().for_each(|y| *y /= whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 7919 % 1013) as f32 / 506.0 - 1.0).collect()
    }

    #[test]
    fn whole_numbers_are_the_nearest() {
        for i in -4000..4000 {
            let x = i as f32 / 16.0;
            assert_eq!(whole(x), x.round_ties_even());
        }
    }

    #[test]
    fn sums_are_the_same_bits_on_all_instruction_sets() {
        let (x, u) = (numbers(160), numbers(160).iter().map(|x| x + 1.5).collect::<Vec<_>>());
        let all = |isa| {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            let regress = regress(&cpu, &x, &u, -1.0, 7.4, 15.0);
            (regress, fit(&cpu, &x, &u, 7.1, -8.0, 7.0), error(&cpu, &x, &u, 0.14, -8.0, 7.0))
        };
        let want = all(Isa::Scalar);
        for isa in Isa::available() {
            assert_eq!(all(isa), want, "{isa:?}");
        }
        let exact: f64 = x.iter().zip(&u).map(|(x, u)| f64::from(x * u)).sum();
        assert!((f64::from(want.0[1]) - exact).abs() < 1e-4);
        let q = |x: f32| f64::from((x * 7.1).round_ties_even().clamp(-8.0, 7.0));
        let exact: f64 = x.iter().zip(&u).map(|(&x, &u)| f64::from(u) * q(x) * q(x)).sum();
        assert!((f64::from(want.1[1]) / exact - 1.0).abs() < 1e-5);
    }

    #[test]
    fn codes_are_the_nearest_and_saturate() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            let x = [-99.0, -0.8, -0.05, 0.0, 0.05, 0.149, 0.151, 99.0, f32::NAN, f32::INFINITY];
            let mut codes = [0u8; 10];
            encode(&cpu, &x, 0.1, 8.0, 15.0, &mut codes);
            assert_eq!(codes[..8], [0, 0, 8, 8, 8, 9, 10, 15], "{isa:?}");
            assert_eq!(codes[9], 15);
        }
    }

    #[test]
    fn errors_pull_later_columns() {
        // Two columns of one row: 0.4 goes to 0, the error of -0.4 times 0.5 is taken from the second.
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            let (mut work, mut codes) = ([0.4, 1.4], [9u8; 2]);
            let block = Columns {
                rows: 1,
                work: &mut work,
                old: &[0.4, 1.4],
                codes: &mut codes,
                pull: &[9.0, 0.5, 9.0, 9.0],
                groups: &[1, 0],
                scales: &[1.0, 1.0],
                zeros: &[3.0, 8.0],
                top: 15.0,
            };
            block.fix(&cpu);
            assert_eq!(codes, [8, 5]);
            assert!((work[0] + 0.4).abs() < 1e-6 && (work[1] - 0.6).abs() < 1e-6, "{work:?}");
        }
    }

    #[test]
    fn joining_keeps_the_inverse() {
        let n = 5;
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            let mut p: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
            let mut m = p.clone();
            let mut out = vec![0.0; n];
            for t in 0..7 {
                let x: Vec<f64> = numbers(40)[t * n..][..n].iter().map(|&x| f64::from(x)).collect();
                let d = 0.1 + t as f64;
                join(&cpu, &mut p, &x, d, &mut out);
                (0..n * n).for_each(|k| m[k] += x[k / n] * x[k % n] / d);
                for i in 0..n {
                    let image: f64 = (0..n).map(|j| p[i * n + j] * x[j]).sum();
                    assert!((image / d - out[i]).abs() < 1e-12);
                    for j in 0..n {
                        let one: f64 = (0..n).map(|k| p[i * n + k] * m[k * n + j]).sum();
                        assert!((one - f64::from(u8::from(i == j))).abs() < 1e-10);
                    }
                }
            }
        }
    }
}
