//! Elementwise arithmetic of two operands, with the broadcasts that matter.

use crate::Cpu;
use crate::lanes::{Body, Parts, Set, run, split};
use crate::math::{max, min};

/// A function of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `max(a + b, 0)`
    AddRelu,
    /// `a - b`
    Sub,
    /// `b - a`
    SubFrom,
    /// `a b`
    Mul,
    /// `a / b`
    Div,
    /// `b / a`
    DivFrom,
    /// The larger; NaN when one is NaN.
    Max,
    /// The smaller; NaN when one is NaN.
    Min,
    /// `a^b`, by the library function of the platform.
    Pow,
}

/// How the second operand is laid along the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Right<'a> {
    /// One number for each element of `a`.
    Same(&'a [f32]),
    /// One number for all.
    Scalar(f32),
    /// A row of `n` numbers, repeated along `a` = `[rows, n]`.
    Row(&'a [f32]),
    /// One number for each of the `c` channels of `a` = `[n, c, inner]`.
    Channel(&'a [f32], usize),
}

impl Right<'_> {
    /// Panics when this operand does not fit `len` elements. Returns the items to share out and the elements of
    /// each; an item is never cut.
    fn items(&self, len: usize) -> (usize, usize) {
        match *self {
            Right::Same(b) => {
                assert_eq!(b.len(), len);
                (len, 1)
            }
            Right::Scalar(_) => (len, 1),
            Right::Row(b) => {
                assert!(if b.is_empty() { len == 0 } else { len.is_multiple_of(b.len()) });
                (len / b.len().max(1), b.len())
            }
            Right::Channel(b, inner) => {
                let image = b.len().checked_mul(inner);
                assert!(image.is_some_and(|image| if image == 0 {
                    len == 0
                } else {
                    len.is_multiple_of(image)
                }));
                (len / inner.max(1), inner)
            }
        }
    }
}

/// `output = op(a, b)`.
///
/// # Panics
/// When `output` and `a` differ in length, or `b` does not fit `a`.
pub fn binary(cpu: &Cpu, op: Binary, a: &[f32], b: Right, output: &mut [f32]) {
    assert_eq!(a.len(), output.len());
    let (count, cost) = b.items(a.len());
    let parts = Parts::new(output);
    split(cpu, count, cost, |items| {
        let range = items.start * cost..items.end * cost;
        // SAFETY: `split` hands out disjoint ranges.
        let data = Between { a: &a[range.clone()], output: unsafe { parts.part(range) } };
        run(cpu, Each { op, b, start: items.start, data });
    });
}

/// `a = op(a, b)`.
///
/// # Panics
/// When `b` does not fit `a`.
pub fn binary_assign(cpu: &Cpu, op: Binary, a: &mut [f32], b: Right) {
    let (count, cost) = b.items(a.len());
    let parts = Parts::new(a);
    split(cpu, count, cost, |items| {
        // SAFETY: `split` hands out disjoint ranges.
        let data = unsafe { parts.part(items.start * cost..items.end * cost) };
        run(cpu, Each { op, b, start: items.start, data });
    });
}

/// `output = scale[c] input + shift[c]` over `[n, c, inner]`: batch normalisation at inference, its statistics
/// folded into `scale` and `shift` by the caller.
///
/// # Panics
/// When the lengths do not fit.
pub fn scale_shift(cpu: &Cpu, input: &[f32], scale: &[f32], shift: &[f32], inner: usize, output: &mut [f32]) {
    assert!(input.len() == output.len() && scale.len() == shift.len());
    let (count, _) = Right::Channel(scale, inner).items(input.len());
    let parts = Parts::new(output);
    split(cpu, count, inner, |items| {
        for i in items {
            let range = i * inner..(i + 1) * inner;
            let c = i % scale.len();
            // SAFETY: `split` hands out disjoint ranges.
            let output = unsafe { parts.part(range.clone()) };
            run(cpu, Line { input: &input[range], scale: scale[c], shift: shift[c], output });
        }
    });
}

struct Line<'a> {
    input: &'a [f32],
    scale: f32,
    shift: f32,
    output: &'a mut [f32],
}

impl Body for Line<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        for (y, &x) in self.output.iter_mut().zip(self.input) {
            *y = crate::math::fma::<S>(x, self.scale, self.shift);
        }
    }
}

/// Where the first operand comes from and the result goes to.
trait Data {
    /// Elements.
    fn len(&self) -> usize;
    /// `f` of each element and its partner in `b`.
    fn pairs(&mut self, start: usize, b: &[f32], f: &impl Fn(f32, f32) -> f32);
    /// `f` of `len` elements and `b`.
    fn with(&mut self, start: usize, len: usize, b: f32, f: &impl Fn(f32, f32) -> f32);
}

impl Data for &mut [f32] {
    #[inline(always)]
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    #[inline(always)]
    fn pairs(&mut self, start: usize, b: &[f32], f: &impl Fn(f32, f32) -> f32) {
        for (x, &b) in self[start..start + b.len()].iter_mut().zip(b) {
            *x = f(*x, b);
        }
    }

    #[inline(always)]
    fn with(&mut self, start: usize, len: usize, b: f32, f: &impl Fn(f32, f32) -> f32) {
        for x in &mut self[start..start + len] {
            *x = f(*x, b);
        }
    }
}

struct Between<'a> {
    a: &'a [f32],
    output: &'a mut [f32],
}

impl Data for Between<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.a.len()
    }

    #[inline(always)]
    fn pairs(&mut self, start: usize, b: &[f32], f: &impl Fn(f32, f32) -> f32) {
        let range = start..start + b.len();
        for ((y, &a), &b) in self.output[range.clone()].iter_mut().zip(&self.a[range]).zip(b) {
            *y = f(a, b);
        }
    }

    #[inline(always)]
    fn with(&mut self, start: usize, len: usize, b: f32, f: &impl Fn(f32, f32) -> f32) {
        let range = start..start + len;
        for (y, &a) in self.output[range.clone()].iter_mut().zip(&self.a[range]) {
            *y = f(a, b);
        }
    }
}

struct Each<'a, D> {
    op: Binary,
    b: Right<'a>,
    /// The first item of `data`, in items of [`Right::items`].
    start: usize,
    data: D,
}

impl<D: Data> Each<'_, D> {
    #[inline(always)]
    fn each(mut self, f: impl Fn(f32, f32) -> f32) {
        let len = self.data.len();
        match self.b {
            Right::Same(b) => self.data.pairs(0, &b[self.start..self.start + len], &f),
            Right::Scalar(b) => self.data.with(0, len, b, &f),
            Right::Row(b) => {
                for row in 0..len / b.len().max(1) {
                    self.data.pairs(row * b.len(), b, &f);
                }
            }
            Right::Channel(b, inner) => {
                for i in 0..len / inner.max(1) {
                    self.data.with(i * inner, inner, b[(self.start + i) % b.len()], &f);
                }
            }
        }
    }
}

impl<D: Data> Body for Each<'_, D> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        match self.op {
            Binary::Add => self.each(|a, b| a + b),
            Binary::AddRelu => self.each(|a, b| if a + b < 0.0 { 0.0 } else { a + b }),
            Binary::Sub => self.each(|a, b| a - b),
            Binary::SubFrom => self.each(|a, b| b - a),
            Binary::Mul => self.each(|a, b| a * b),
            Binary::Div => self.each(|a, b| a / b),
            Binary::DivFrom => self.each(|a, b| b / a),
            Binary::Max => self.each(max),
            Binary::Min => self.each(min),
            Binary::Pow => self.each(f32::powf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    fn spec(op: Binary, a: f32, b: f32) -> f32 {
        match op {
            Binary::Add => a + b,
            Binary::AddRelu => (a + b).max(0.0),
            Binary::Sub => a - b,
            Binary::SubFrom => b - a,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::DivFrom => b / a,
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
            Binary::Pow => a.powf(b),
        }
    }

    const ALL: [Binary; 10] = [
        Binary::Add,
        Binary::AddRelu,
        Binary::Sub,
        Binary::SubFrom,
        Binary::Mul,
        Binary::Div,
        Binary::DivFrom,
        Binary::Max,
        Binary::Min,
        Binary::Pow,
    ];

    proptest! {
        #[test]
        fn every_broadcast_is_the_definition(
            which in 0..ALL.len(),
            form in 0usize..4,
            outer in prop_oneof![0usize..4, 900usize..1000],
            channels in 1usize..6,
            inner in 0usize..40,
        ) {
            let op = ALL[which];
            let numbers = |count: usize, step: usize| -> Vec<f32> {
                (0..count).map(|i| (i * step % 997) as f32 / 300.0 + 0.01).collect()
            };
            let len = outer * channels * inner;
            let a = numbers(len, 7919);
            let other = numbers(len.max(channels * inner), 104_729);
            let (right, at): (Right, Box<dyn Fn(usize) -> usize>) = match form {
                0 => (Right::Same(&other[..len]), Box::new(|i| i)),
                1 => (Right::Scalar(1.5), Box::new(|_| 0)),
                2 => (Right::Row(&other[..channels * inner]), Box::new(move |i| i % (channels * inner))),
                _ if inner == 0 => return Ok(()),
                _ => (Right::Channel(&other[..channels], inner), Box::new(move |i| i / inner % channels)),
            };
            for isa in Isa::available() {
                for threads in [1, 2] {
                    let cpu = Cpu::with_isa(isa, threads).unwrap();
                    let mut out = vec![9.0; len];
                    binary(&cpu, op, &a, right, &mut out);
                    let mut inside = a.clone();
                    binary_assign(&cpu, op, &mut inside, right);
                    prop_assert_eq!(&inside, &out);
                    for (i, &y) in out.iter().enumerate() {
                        let b = if form == 1 { 1.5 } else { other[at(i)] };
                        prop_assert_eq!(y, spec(op, a[i], b));
                    }
                }
            }
        }

        #[test]
        fn channels_are_scaled_and_shifted(n in 0usize..4, c in 1usize..5, inner in 0usize..40) {
            let input: Vec<f32> = (0..n * c * inner).map(|i| i as f32 * 0.25).collect();
            let (scale, shift): (Vec<f32>, Vec<f32>) = (0..c).map(|c| (c as f32 + 0.5, 2.0 - c as f32)).unzip();
            for isa in Isa::available() {
                let mut out = vec![9.0; input.len()];
                scale_shift(&Cpu::with_isa(isa, 2).unwrap(), &input, &scale, &shift, inner, &mut out);
                for (i, &y) in out.iter().enumerate() {
                    let c = i / inner % c;
                    prop_assert_eq!(y, input[i] * scale[c] + shift[c]);
                }
            }
        }
    }

    #[test]
    fn nan_wins() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            for op in [Binary::Max, Binary::Min, Binary::AddRelu] {
                let mut out = [0.0; 2];
                binary(&cpu, op, &[f32::NAN, 1.0], Right::Same(&[1.0, f32::NAN]), &mut out);
                assert!(out[0].is_nan() && out[1].is_nan());
            }
        }
    }
}
