//! Reductions over one axis.
//!
//! Sums run in 32 lanes of `f32` over at most 32 elements each; these short sums are added in `f64`. The order is
//! the same on every instruction set and with any number of threads.

use crate::lanes::{Body, Parts, Set, run, split};
use crate::{Cpu, math};

/// What to make of the numbers along the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum; 0 of none.
    Sum,
    /// Their mean; NaN of none.
    Mean,
    /// The largest; NaN when one is NaN; -inf of none.
    Max,
    /// The smallest; NaN when one is NaN; inf of none.
    Min,
    /// Their product; 1 of none.
    Prod,
    /// Sum of squares.
    SumSquares,
    /// Sum of absolute values.
    SumAbs,
    /// Square root of the sum of squares.
    Norm,
    /// Logarithm of the sum.
    LogSum,
    /// `ln sum e^x`, without overflow; -inf of none.
    LogSumExp,
}

/// Reduces `input` = `[outer, axis, inner]` over `axis` to `output` = `[outer, inner]`.
///
/// # Panics
/// When a length does not fit `dims`.
pub fn reduce(cpu: &Cpu, op: Reduce, input: &[f32], dims: [usize; 3], output: &mut [f32]) {
    let [outer, axis, inner] = dims;
    check(input.len(), dims, output.len());
    let whole = outer == 1 && inner == 1 && axis >= PIECE;
    if whole && !matches!(op, Reduce::LogSumExp) {
        return output[0] = pieces(cpu, op, input);
    }
    let parts = Parts::new(output);
    let strips = inner.div_ceil(STRIP).max(1);
    split(cpu, outer * strips, axis.saturating_mul(inner.min(STRIP)), |items| {
        for item in items {
            let (o, first) = (item / strips, item % strips * STRIP);
            let width = STRIP.min(inner - first);
            // SAFETY: each item is one strip of one row of the output.
            let output = unsafe { parts.part(o * inner + first..o * inner + first + width) };
            let input = &input[o * axis * inner..(o + 1) * axis * inner];
            run(cpu, Strip { op, input, first, inner, output });
        }
    });
}

/// Position along `axis` of the largest (or smallest) of `input` = `[outer, axis, inner]`, the first such or the
/// last; NaN counts as beyond all numbers.
///
/// # Panics
/// When a length does not fit `dims`, or `axis` is 0 and `output` is not empty.
pub fn arg(cpu: &Cpu, op: Arg, input: &[f32], dims: [usize; 3], output: &mut [i64]) {
    let [outer, axis, inner] = dims;
    check(input.len(), dims, output.len());
    assert!(axis > 0 || output.is_empty(), "arg of no numbers");
    let parts = Parts::new(output);
    split(cpu, outer, axis.saturating_mul(inner), |items| {
        for o in items {
            // SAFETY: each item is one row of the output.
            let output = unsafe { parts.part(o * inner..(o + 1) * inner) };
            let input = &input[o * axis * inner..(o + 1) * axis * inner];
            if inner == 1 {
                output[0] = position(cpu, op, input) as i64;
            } else {
                columns(op, input, output);
            }
        }
    });
}

/// Which position [`arg`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// The largest, else the smallest.
    pub largest: bool,
    /// The last of equals, else the first.
    pub last: bool,
}

fn check(input: usize, [outer, axis, inner]: [usize; 3], output: usize) {
    let rows = outer.checked_mul(inner);
    assert_eq!(rows, Some(output));
    assert_eq!(rows.and_then(|rows| rows.checked_mul(axis)), Some(input));
}

fn position(cpu: &Cpu, op: Arg, row: &[f32]) -> usize {
    let best =
        if op.largest { run(cpu, Row(Reduce::Max, row)) } else { run(cpu, Row(Reduce::Min, row)) } as f32;
    let hit = |x: &f32| *x == best || (best.is_nan() && x.is_nan());
    if op.last { row.iter().rposition(hit) } else { row.iter().position(hit) }.unwrap_or(0)
}

fn columns(op: Arg, input: &[f32], output: &mut [i64]) {
    let inner = output.len();
    output.fill(0);
    for (i, row) in input.chunks_exact(inner).enumerate() {
        for (c, (&x, at)) in row.iter().zip(output.iter_mut()).enumerate() {
            let best = input[*at as usize * inner + c];
            let better = if op.largest { x > best } else { x < best } || (x.is_nan() && !best.is_nan());
            if better || (op.last && (x == best || (x.is_nan() && best.is_nan()))) {
                *at = i as i64;
            }
        }
    }
}

/// Elements of one task when a single long row is reduced.
const PIECE: usize = 1 << 15;

fn pieces(cpu: &Cpu, op: Reduce, input: &[f32]) -> f32 {
    let mut sums = vec![0f64; input.len().div_ceil(PIECE)];
    let parts = Parts::new(&mut sums);
    cpu.pool().run(input.len().div_ceil(PIECE), |i| {
        let piece = &input[i * PIECE..((i + 1) * PIECE).min(input.len())];
        // SAFETY: each task writes its own number.
        unsafe { parts.part(i..i + 1)[0] = run(cpu, Row(op, piece)) };
    });
    let total = match op {
        Reduce::Max => sums.into_iter().fold(f64::NEG_INFINITY, Larger::long),
        Reduce::Min => sums.into_iter().fold(f64::INFINITY, Smaller::long),
        Reduce::Prod => sums.into_iter().product(),
        _ => sums.into_iter().sum(),
    };
    finish(op, total, input.len())
}

/// The reduced value from the total.
fn finish(op: Reduce, total: f64, count: usize) -> f32 {
    match op {
        Reduce::Mean => (total / count as f64) as f32,
        Reduce::Norm => total.sqrt() as f32,
        Reduce::LogSum => total.ln() as f32,
        _ => total as f32,
    }
}

/// How two partial results become one.
pub(crate) trait Join {
    /// The result of nothing.
    const NONE: f32;
    /// In a short run.
    fn short(a: f32, b: f32) -> f32;
    /// Of short runs.
    fn long(a: f64, b: f64) -> f64;
}

pub(crate) struct Plus;
struct Times;
pub(crate) struct Larger;
struct Smaller;

impl Join for Plus {
    const NONE: f32 = 0.0;
    #[inline(always)]
    fn short(a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn long(a: f64, b: f64) -> f64 {
        a + b
    }
}

impl Join for Times {
    const NONE: f32 = 1.0;
    #[inline(always)]
    fn short(a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn long(a: f64, b: f64) -> f64 {
        a * b
    }
}

impl Join for Larger {
    const NONE: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn short(a: f32, b: f32) -> f32 {
        math::max(a, b)
    }
    #[inline(always)]
    fn long(a: f64, b: f64) -> f64 {
        if b > a || b.is_nan() { b } else { a }
    }
}

impl Join for Smaller {
    const NONE: f32 = f32::INFINITY;
    #[inline(always)]
    fn short(a: f32, b: f32) -> f32 {
        math::min(a, b)
    }
    #[inline(always)]
    fn long(a: f64, b: f64) -> f64 {
        if b < a || b.is_nan() { b } else { a }
    }
}

const LANES: usize = 32;
const BLOCK: usize = 32;

/// Joins `f` of each element of a row.
#[inline(always)]
pub(crate) fn fold<J: Join>(row: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut total = J::NONE as f64;
    for block in row.chunks(LANES * BLOCK) {
        let mut sums = [J::NONE; LANES];
        let (full, rest) = block.as_chunks::<LANES>();
        for chunk in full {
            for l in 0..LANES {
                sums[l] = J::short(sums[l], f(chunk[l]));
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum = J::short(*sum, f(x));
        }
        total = J::long(total, lanes::<J>(sums) as f64);
    }
    total
}

/// Joins the lanes, halving.
#[inline(always)]
pub(crate) fn lanes<J: Join>(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            sums[l] = J::short(sums[l], sums[l + half]);
        }
        half /= 2;
    }
    sums[0]
}

/// Columns reduced together.
pub(crate) const STRIP: usize = 64;

/// Joins `f(column, element)` of each of `width` columns from `first` on, over the rows of `input` = `[axis, inner]`.
#[inline(always)]
pub(crate) fn fold_columns<J: Join>(
    input: &[f32],
    inner: usize,
    first: usize,
    width: usize,
    f: impl Fn(usize, f32) -> f32,
) -> [f64; STRIP] {
    let mut totals = [J::NONE as f64; STRIP];
    for block in input.chunks(inner * BLOCK) {
        let mut sums = [J::NONE; STRIP];
        for row in block.chunks_exact(inner) {
            let row = &row[first..first + width];
            if let Ok(row) = <&[f32; STRIP]>::try_from(row) {
                for c in 0..STRIP {
                    sums[c] = J::short(sums[c], f(c, row[c]));
                }
            } else {
                for (c, &x) in row.iter().enumerate() {
                    sums[c] = J::short(sums[c], f(c, x));
                }
            }
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = J::long(*total, sum as f64);
        }
    }
    totals
}

/// The total of one row, not yet [`finish`]ed.
struct Row<'a>(Reduce, &'a [f32]);

impl Body for Row<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Set>(self) -> f64 {
        let row = self.1;
        match self.0 {
            Reduce::Sum | Reduce::Mean | Reduce::LogSum => fold::<Plus>(row, |x| x),
            Reduce::SumSquares | Reduce::Norm => fold::<Plus>(row, |x| x * x),
            Reduce::SumAbs => fold::<Plus>(row, f32::abs),
            Reduce::Max => fold::<Larger>(row, |x| x),
            Reduce::Min => fold::<Smaller>(row, |x| x),
            Reduce::Prod => fold::<Times>(row, |x| x),
            Reduce::LogSumExp => {
                let top = finite(fold::<Larger>(row, |x| x) as f32);
                top as f64 + fold::<Plus>(row, |x| math::exp::<S>(x - top)).ln()
            }
        }
    }
}

/// What to subtract before `exp`: the largest, or 0 when that is infinite.
#[inline(always)]
fn finite(top: f32) -> f32 {
    if top.is_infinite() { 0.0 } else { top }
}

/// Some columns of one `[axis, inner]`.
struct Strip<'a> {
    op: Reduce,
    input: &'a [f32],
    first: usize,
    inner: usize,
    output: &'a mut [f32],
}

impl Strip<'_> {
    #[inline(always)]
    fn columns<J: Join>(&self, f: impl Fn(usize, f32) -> f32) -> [f64; STRIP] {
        fold_columns::<J>(self.input, self.inner, self.first, self.output.len(), f)
    }
}

impl Body for Strip<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        if self.output.is_empty() {
            return;
        }
        let axis = self.input.len() / self.inner;
        if self.inner == 1 {
            self.output[0] = finish(self.op, Row(self.op, self.input).run::<S>(), axis);
            return;
        }
        let totals = match self.op {
            Reduce::Sum | Reduce::Mean | Reduce::LogSum => self.columns::<Plus>(|_, x| x),
            Reduce::SumSquares | Reduce::Norm => self.columns::<Plus>(|_, x| x * x),
            Reduce::SumAbs => self.columns::<Plus>(|_, x| x.abs()),
            Reduce::Max => self.columns::<Larger>(|_, x| x),
            Reduce::Min => self.columns::<Smaller>(|_, x| x),
            Reduce::Prod => self.columns::<Times>(|_, x| x),
            Reduce::LogSumExp => {
                let top = self.columns::<Larger>(|_, x| x).map(|top| finite(top as f32));
                let mut sums = self.columns::<Plus>(|c, x| math::exp::<S>(x - top[c]));
                for (sum, top) in sums.iter_mut().zip(top) {
                    *sum = sum.ln() + top as f64;
                }
                sums
            }
        };
        for (y, total) in self.output.iter_mut().zip(totals) {
            *y = finish(self.op, total, axis);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    const ALL: [Reduce; 10] = [
        Reduce::Sum,
        Reduce::Mean,
        Reduce::Max,
        Reduce::Min,
        Reduce::Prod,
        Reduce::SumSquares,
        Reduce::SumAbs,
        Reduce::Norm,
        Reduce::LogSum,
        Reduce::LogSumExp,
    ];

    fn spec(op: Reduce, x: &[f64]) -> f64 {
        let sum: f64 = x.iter().sum();
        let squares: f64 = x.iter().map(|x| x * x).sum();
        match op {
            Reduce::Sum => sum,
            Reduce::Mean => sum / x.len() as f64,
            Reduce::Max => x.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Reduce::Min => x.iter().copied().fold(f64::INFINITY, f64::min),
            Reduce::Prod => x.iter().product(),
            Reduce::SumSquares => squares,
            Reduce::SumAbs => x.iter().map(|x| x.abs()).sum(),
            Reduce::Norm => squares.sqrt(),
            Reduce::LogSum => sum.ln(),
            Reduce::LogSumExp => x.iter().map(|x| x.exp()).sum::<f64>().ln(),
        }
    }

    fn check(op: Reduce, input: &[f32], [outer, axis, inner]: [usize; 3]) {
        for isa in Isa::available() {
            let results = [1, 2].map(|threads| {
                let mut out = vec![9.0; outer * inner];
                reduce(&Cpu::with_isa(isa, threads).unwrap(), op, input, [outer, axis, inner], &mut out);
                out
            });
            for (i, (&y, &again)) in results[0].iter().zip(&results[1]).enumerate() {
                assert_eq!(y.to_bits(), again.to_bits());
                let at = |a: usize| (i / inner * axis + a) * inner + i % inner;
                let column: Vec<f64> = (0..axis).map(|a| input[at(a)] as f64).collect();
                let want = spec(op, &column);
                let scale = want.abs().max(column.iter().map(|x| x.abs()).sum::<f64>() * 0.3);
                let loose = if matches!(op, Reduce::LogSum | Reduce::LogSumExp) { 1.0 } else { scale };
                let same = y as f64 == want || (y.is_nan() && want.is_nan());
                assert!(
                    same || (y as f64 - want).abs() <= 1e-6 * loose.max(want.abs()),
                    "{op:?} on {isa}: {y} for {want}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_is_the_definition(
            which in 0..ALL.len(),
            outer in 0usize..4,
            axis in prop_oneof![0usize..40, 1000usize..1100],
            inner in prop_oneof![Just(1usize), 0usize..70, 128usize..150],
        ) {
            let op = ALL[which];
            // Products stay in range; sums of which the logarithm is taken do not cancel.
            let base = if matches!(op, Reduce::Prod) { 0.97 } else if op == Reduce::LogSum { 0.1 } else { -0.8 };
            let width = if matches!(op, Reduce::Prod) { 0.06 } else { 3.0 };
            let input: Vec<f32> =
                (0..outer * axis * inner).map(|i| base + ((i * 7919) % 1013) as f32 / 1013.0 * width).collect();
            check(op, &input, [outer, axis, inner]);
        }

        #[test]
        fn positions(
            cells in prop::collection::vec(0u8..12, 1..400),
            inner in 1usize..5,
            largest in any::<bool>(),
            last in any::<bool>(),
        ) {
            let axis = cells.len() / inner;
            prop_assume!(axis > 0);
            // 11 stands for NaN, which lies beyond all.
            let value = |x: u8| if x == 11 { f32::NAN } else { x as f32 };
            let input: Vec<f32> = cells[..axis * inner].iter().map(|&x| value(x)).collect();
            let key = |x: u8| if x == 11 { 100 } else if largest { x as i32 } else { -(x as i32) };
            for isa in Isa::available() {
                let mut out = vec![-1i64; inner];
                arg(&Cpu::with_isa(isa, 1).unwrap(), Arg { largest, last }, &input, [1, axis, inner], &mut out);
                for (c, &at) in out.iter().enumerate() {
                    let column: Vec<i32> = (0..axis).map(|a| key(cells[a * inner + c])).collect();
                    let top = column.iter().max().unwrap();
                    let want = if last { column.iter().rposition(|x| x == top) } else { column.iter().position(|x| x == top) };
                    prop_assert_eq!(Some(at as usize), want);
                }
            }
        }
    }

    #[test]
    fn long_rows_and_nan() {
        let mut input: Vec<f32> = (0..200_003).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 + 0.5).collect();
        for op in ALL.into_iter().filter(|&op| op != Reduce::Prod) {
            check(op, &input, [1, input.len(), 1]);
        }
        input[100_000] = f32::NAN;
        for isa in Isa::available() {
            for op in ALL {
                let mut out = [0.0];
                reduce(&Cpu::with_isa(isa, 2).unwrap(), op, &input, [1, input.len(), 1], &mut out);
                assert!(out[0].is_nan(), "{op:?}");
            }
        }
    }
}
