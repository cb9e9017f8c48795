//! Pooling of NCHW planes: the greatest or the mean of a window (ONNX MaxPool, AveragePool, Global*Pool); in
//! [`last`] the same of images with the channels last.

use crate::conv::{Out, inside, out_len};
use crate::wide::{Loops, wide};
use crate::{Cpu, Isa};

pub mod last;

/// The sizes of a pooling window sliding over planes. Pairs are `[vertical, horizontal]`; one-dimensional
/// pooling has height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Images times channels.
    pub planes: usize,
    /// Height and width of a plane.
    pub in_size: [usize; 2],
    /// Height and width of the output. What [`PoolShape::floor_size`] says, or one more where the caller rounds
    /// up; windows that lie partly or wholly outside of the plane are allowed.
    pub out_size: [usize; 2],
    /// Height and width of the window, in taps; not zero.
    pub kernel: [usize; 2],
    /// Pixels from one window to the next; not zero.
    pub stride: [usize; 2],
    /// Padding above and left.
    pub pad_begin: [usize; 2],
    /// Padding below and right; only the mean that counts padding looks at it.
    pub pad_end: [usize; 2],
    /// Pixels from one tap to the next; not zero.
    pub dilation: [usize; 2],
}

impl PoolShape {
    /// The number of windows that lie inside the padded plane; `None` when the sizes do not fit together
    /// or are absurdly large.
    pub fn floor_size(&self) -> Option<[usize; 2]> {
        let axis = |a: usize| {
            if self.kernel[a] > MOST_TAPS {
                return None;
            }
            let pads = [self.pad_begin[a], self.pad_end[a]];
            out_len(self.in_size[a], self.kernel[a], self.stride[a], pads, self.dilation[a])
        };
        Some([axis(0)?, axis(1)?])
    }

    /// Can there be such a pooling? The poolings here panic when not.
    pub fn is_possible(&self) -> bool {
        let sane = |n: usize| n < 1 << 40;
        (0..2).all(|a| {
            let reach = (self.kernel[a].max(1) - 1).checked_mul(self.dilation[a]);
            let last = self.out_size[a].checked_mul(self.stride[a]);
            let sizes = [reach, last, Some(self.pad_begin[a]), Some(self.pad_end[a]), Some(self.in_size[a])];
            self.stride[a] > 0
                && (1..=MOST_TAPS).contains(&self.kernel[a])
                && sizes.iter().all(|n| n.is_some_and(sane))
        })
    }

    /// Elements of a plane before and after.
    fn check(&self, input: usize, out: usize) -> [usize; 2] {
        assert!(self.is_possible(), "an impossible pooling: {self:?}");
        let [before, after] = [self.in_size, self.out_size].map(|[h, w]| h.checked_mul(w));
        let [Some(before), Some(after)] = [before, after] else { panic!("an impossible pooling: {self:?}") };
        assert_eq!(before.checked_mul(self.planes), Some(input), "length of the input");
        assert_eq!(after.checked_mul(self.planes), Some(out), "length of the output");
        [before, after]
    }

    /// For each row and each column of windows, how many taps see a pixel (or padding, where that counts): the
    /// product is the number of each window.
    pub fn window_counts(&self, padding: bool) -> [Vec<usize>; 2] {
        assert!(self.is_possible(), "an impossible pooling: {self:?}");
        [0, 1].map(|axis| self.counts(axis, padding))
    }

    /// The taps of the window along one axis that see pixels: for each the windows that see a pixel, and the pixel of the first.
    fn taps(&self, axis: usize) -> Vec<(std::ops::Range<usize>, usize)> {
        let pad = self.pad_begin[axis] as isize;
        let tap = |k| {
            inside(
                self.in_size[axis],
                self.stride[axis],
                pad,
                k * self.dilation[axis],
                0,
                self.out_size[axis],
            )
        };
        (0..self.kernel[axis])
            .map(tap)
            .filter(|t: &(std::ops::Range<usize>, usize)| !t.0.is_empty())
            .collect()
    }

    /// For each window along one axis, how many of its taps see a pixel (or padding, where that counts).
    fn counts(&self, axis: usize, padding: bool) -> Vec<usize> {
        let before = if padding { self.pad_begin[axis] } else { 0 } as isize;
        let after = if padding { self.pad_end[axis] } else { 0 };
        let last = (self.in_size[axis] + after) as isize;
        let seen = |window: usize| {
            let first = (window * self.stride[axis]) as isize - self.pad_begin[axis] as isize;
            let at = |k: usize| first + (k * self.dilation[axis]) as isize;
            (0..self.kernel[axis]).filter(|&k| (-before..last).contains(&at(k))).count()
        };
        (0..self.out_size[axis]).map(seen).collect()
    }
}

/// No window is larger along an axis.
const MOST_TAPS: usize = 1 << 20;

/// A number whose greatest can be asked for: `f32`, `u8`, `i8`.
pub trait Ordered: Copy + PartialOrd + Send + Sync {
    /// Not above any other.
    const LEAST: Self;
}

impl Ordered for f32 {
    const LEAST: f32 = f32::NEG_INFINITY;
}

impl Ordered for u8 {
    const LEAST: u8 = u8::MIN;
}

impl Ordered for i8 {
    const LEAST: i8 = i8::MIN;
}

/// The greatest number in each window; the least there is where a window sees no pixel. NaN is passed over.
///
/// # Panics
/// When `shape` is impossible or a slice does not fit it.
pub fn max_pool<T: Ordered>(cpu: &Cpu, shape: &PoolShape, input: &[T], out: &mut [T]) {
    slide(cpu, shape, input, out, T::LEAST, |most, x| if x > most { x } else { most }, |_| {});
}

/// [`max_pool`], and for each window the index in `input` of the first pixel, in the order of the rows, that
/// has the greatest number; `-1` where a window sees none above [`Ordered::LEAST`].
///
/// # Panics
/// When `shape` is impossible or a slice does not fit it.
pub fn max_pool_indices<T: Ordered>(
    cpu: &Cpu,
    shape: &PoolShape,
    input: &[T],
    out: &mut [T],
    indices: &mut [i64],
) {
    let [before, after] = shape.check(input.len(), out.len());
    assert_eq!(indices.len(), out.len(), "length of the indices");
    let [height, width] = shape.out_size;
    let (rows, cols) = (shape.taps(0), shape.taps(1));
    let (out, indices) = (Out::new(out), Out::new(indices));
    cpu.pool().run(shape.planes, |plane| {
        // SAFETY: every task has its own plane.
        let (out, indices) =
            unsafe { (out.slice(plane * after, after), indices.slice(plane * after, after)) };
        out.fill(T::LEAST);
        indices.fill(-1);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let at = y * width + x;
            for (tall, top) in rows.iter().filter(|r| r.0.contains(&y)) {
                let row = plane * before + (top + (y - tall.start) * shape.stride[0]) * shape.in_size[1];
                for (wide, left) in cols.iter().filter(|c| c.0.contains(&x)) {
                    let from = row + left + (x - wide.start) * shape.stride[1];
                    if input[from] > out[at] || (indices[at] < 0 && input[from] == out[at]) {
                        (out[at], indices[at]) = (input[from], from as i64);
                    }
                }
            }
        }
    });
}

/// The mean of each window, over its pixels or, with `count_padding`, over its pixels and padding (as zeros).
/// What a window sees beyond the padding never counts; a window that sees nothing is NaN.
///
/// # Panics
/// When `shape` is impossible or a slice does not fit it.
pub fn average_pool(cpu: &Cpu, shape: &PoolShape, input: &[f32], out: &mut [f32], count_padding: bool) {
    let [rows, cols] = shape.window_counts(count_padding);
    let mean = |out: &mut [f32]| {
        for (row, &tall) in out.chunks_exact_mut(cols.len().max(1)).zip(&rows) {
            row.iter_mut().zip(&cols).for_each(|(x, &wide)| *x /= (tall * wide) as f32);
        }
    };
    slide(cpu, shape, input, out, 0.0, |sum, x| sum + x, mean);
}

/// The mean of each plane of `len` numbers; the same bits on every instruction set.
///
/// # Panics
/// When `input` does not have `len` numbers for each of `out`.
pub fn global_average_pool(cpu: &Cpu, len: usize, input: &[f32], out: &mut [f32]) {
    each_plane(cpu, len, input, out, |plane| {
        wide(cpu.isa(), Fold { plane, start: 0.0, join: |sum, x| sum + x }) / len as f32
    });
}

/// The greatest number of each plane of `len` numbers.
///
/// # Panics
/// When `input` does not have `len` numbers for each of `out`.
pub fn global_max_pool<T: Ordered>(cpu: &Cpu, len: usize, input: &[T], out: &mut [T]) {
    let join = |most, x| if x > most { x } else { most };
    each_plane(cpu, len, input, out, |plane| wide(cpu.isa(), Fold { plane, start: T::LEAST, join }));
}

/// Planes that make a task worth its while.
const TASK_LEN: usize = 16 << 10;

fn each_plane<T: Ordered>(
    cpu: &Cpu,
    len: usize,
    input: &[T],
    out: &mut [T],
    value: impl Fn(&[T]) -> T + Sync,
) {
    assert_eq!(out.len().checked_mul(len), Some(input.len()), "length of the input");
    let share = (TASK_LEN / len.max(1)).max(1);
    let planes = out.len();
    let out = Out::new(out);
    cpu.pool().run(planes.div_ceil(share), |task| {
        let first = task * share;
        // SAFETY: every task has its own planes.
        let out = unsafe { out.slice(first, share.min(planes - first)) };
        for (nth, out) in out.iter_mut().enumerate() {
            *out = value(&input[(first + nth) * len..][..len]);
        }
    });
}

/// Folds a plane in sixteen strands, so that the order does not depend on the instruction set.
struct Fold<'a, T, F> {
    plane: &'a [T],
    start: T,
    join: F,
}

impl<T: Copy, F: Fn(T, T) -> T> Loops for Fold<'_, T, F> {
    type Output = T;

    #[inline(always)]
    fn run(self) -> T {
        let (blocks, rest) = self.plane.as_chunks::<16>();
        let mut strands = [self.start; 16];
        for block in blocks {
            strands.iter_mut().zip(block).for_each(|(s, &x)| *s = (self.join)(*s, x));
        }
        strands.iter_mut().zip(rest).for_each(|(s, &x)| *s = (self.join)(*s, x));
        strands.into_iter().fold(self.start, |a, b| (self.join)(a, b))
    }
}

/// Joins every pixel of a window to `start`, then calls `finish` with each plane.
fn slide<T: Ordered>(
    cpu: &Cpu,
    shape: &PoolShape,
    input: &[T],
    out: &mut [T],
    start: T,
    join: impl Fn(T, T) -> T + Sync,
    finish: impl Fn(&mut [T]) + Sync,
) {
    let [before, after] = shape.check(input.len(), out.len());
    let (rows, cols) = (shape.taps(0), shape.taps(1));
    let share = (TASK_LEN / after.max(before).max(1)).max(1);
    let isa: Isa = cpu.isa();
    let out = Out::new(out);
    cpu.pool().run(shape.planes.div_ceil(share), |task| {
        for plane in task * share..shape.planes.min((task + 1) * share) {
            let input = &input[plane * before..][..before];
            // SAFETY: every task has its own planes.
            let out = unsafe { out.slice(plane * after, after) };
            out.fill(start);
            wide(isa, Slide { shape, rows: &rows, cols: &cols, input, out, join: &join });
            finish(out);
        }
    });
}

struct Slide<'a, T, F> {
    shape: &'a PoolShape,
    rows: &'a [(std::ops::Range<usize>, usize)],
    cols: &'a [(std::ops::Range<usize>, usize)],
    input: &'a [T],
    out: &'a mut [T],
    join: &'a F,
}

impl<T: Copy, F: Fn(T, T) -> T> Loops for Slide<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Slide { shape, rows, cols, input, out, join } = self;
        for y in 0..shape.out_size[0] {
            let out = &mut out[y * shape.out_size[1]..][..shape.out_size[1]];
            for (tall, top) in rows.iter().filter(|r| r.0.contains(&y)) {
                let row = (top + (y - tall.start) * shape.stride[0]) * shape.in_size[1];
                let row = &input[row..][..shape.in_size[1]];
                for (wide, left) in cols {
                    let out = &mut out[wide.clone()];
                    let from = &row[*left..];
                    match shape.stride[1] {
                        1 => out.iter_mut().zip(from).for_each(|(out, &x)| *out = join(*out, x)),
                        2 => (0..out.len()).for_each(|i| out[i] = join(out[i], from[2 * i])),
                        n => out
                            .iter_mut()
                            .zip(from.iter().step_by(n))
                            .for_each(|(out, &x)| *out = join(*out, x)),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn shapes() -> impl Strategy<Value = PoolShape> {
        let pair = |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
        let grid = (pair(0..=12), pair(1..=4), pair(1..=3), pair(0..=3), pair(0..=3), pair(1..=3));
        (0usize..4, grid, pair(0..=1)).prop_filter_map("fits", |(planes, grid, extra)| {
            let (in_size, kernel, stride, pad_begin, pad_end, dilation) = grid;
            let out_size = [0; 2];
            let shape = PoolShape { planes, in_size, out_size, kernel, stride, pad_begin, pad_end, dilation };
            let [h, w] = shape.floor_size()?;
            Some(PoolShape { out_size: [h + extra[0], w + extra[1]], ..shape })
        })
    }

    /// Index (or `None` for padding) of each tap inside the padded plane, for one window.
    fn window(s: &PoolShape, plane: usize, y: usize, x: usize) -> Vec<Option<usize>> {
        let mut seen = Vec::new();
        for (ky, kx) in (0..s.kernel[0]).flat_map(|ky| (0..s.kernel[1]).map(move |kx| (ky, kx))) {
            let at = [(y, ky, 0), (x, kx, 1)].map(|(o, k, a)| {
                ((o * s.stride[a] + k * s.dilation[a]) as isize - s.pad_begin[a] as isize, a)
            });
            if at.iter().all(|&(p, a)| p < (s.in_size[a] + s.pad_end[a]) as isize) {
                let real = at.iter().all(|&(p, a)| (0..s.in_size[a] as isize).contains(&p));
                let index = || (plane * s.in_size[0] + at[0].0 as usize) * s.in_size[1] + at[1].0 as usize;
                seen.push(real.then(index));
            }
        }
        seen
    }

    proptest! {
        #[test]
        fn pools_agree_with_their_definition(shape in shapes(), seed in 0u64..1000) {
            let len = shape.planes * shape.in_size[0] * shape.in_size[1];
            let input: Vec<f32> = (0..len as u64).map(|i| ((i * 2654435761 + seed * 97) % 23) as f32 - 9.0).collect();
            let bytes: Vec<i8> = input.iter().map(|&x| x as i8).collect();
            let [h, w] = shape.out_size;
            let count = shape.planes * h * w;
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                let (mut most, mut again, mut indices) = (vec![0.0; count], vec![0.0; count], vec![0; count]);
                let (mut mean, mut padded) = (vec![0.0; count], vec![0.0; count]);
                let mut most_byte = vec![0; count];
                max_pool(&cpu, &shape, &input, &mut most);
                max_pool(&cpu, &shape, &bytes, &mut most_byte);
                max_pool_indices(&cpu, &shape, &input, &mut again, &mut indices);
                average_pool(&cpu, &shape, &input, &mut mean, false);
                average_pool(&cpu, &shape, &input, &mut padded, true);
                for i in 0..count {
                    let seen = window(&shape, i / w / h, i / w % h, i % w);
                    let real: Vec<usize> = seen.iter().flatten().copied().collect();
                    let mut best = None;
                    for &at in &real {
                        if best.is_none_or(|b: usize| input[at] > input[b]) {
                            best = Some(at);
                        }
                    }
                    prop_assert_eq!(most[i], best.map_or(f32::NEG_INFINITY, |b| input[b]));
                    prop_assert_eq!(most_byte[i], best.map_or(i8::MIN, |b| bytes[b]));
                    prop_assert_eq!(again[i], most[i]);
                    prop_assert_eq!(indices[i], best.map_or(-1, |b| b as i64));
                    let sum: f32 = real.iter().map(|&at| input[at]).sum();
                    let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
                    prop_assert!(same(mean[i], sum / real.len() as f32));
                    prop_assert!(same(padded[i], sum / seen.len() as f32));
                }
            }
        }

        #[test]
        fn global_pools_agree_with_their_definition(planes in 0usize..5, len in 1usize..70) {
            let input: Vec<f32> = (0..planes * len).map(|i| (i * 37 % 41) as f32 - 20.0).collect();
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                let (mut mean, mut most) = (vec![0.0; planes], vec![0.0; planes]);
                global_average_pool(&cpu, len, &input, &mut mean);
                global_max_pool(&cpu, len, &input, &mut most);
                for (plane, numbers) in input.chunks(len).enumerate() {
                    prop_assert_eq!(mean[plane], numbers.iter().sum::<f32>() / len as f32);
                    prop_assert_eq!(most[plane], numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                }
            }
        }
    }
}
