//! The poolings of images with the channels last: `[images, height, width, channels]`, vectorised over the channels.
//! In the [`PoolShape`]s here `planes` counts images. Results do not depend on instruction set and threads.

use super::{Ordered, PoolShape, TASK_LEN};
use crate::Cpu;
use crate::wide::{Loops, wide};

/// The greatest number in each window and channel; as [`super::max_pool`].
///
/// # Panics
/// When `shape` is impossible or a slice does not fit it.
pub fn max_pool<T: Ordered>(cpu: &Cpu, shape: &PoolShape, channels: usize, input: &[T], out: &mut [T]) {
    slide(cpu, shape, channels, input, out, T::LEAST, |most, x| if x > most { x } else { most }, |_, _| {});
}

/// The mean of each window and channel; as [`super::average_pool`].
///
/// # Panics
/// When `shape` is impossible or a slice does not fit it.
pub fn average_pool(
    cpu: &Cpu,
    shape: &PoolShape,
    channels: usize,
    input: &[f32],
    out: &mut [f32],
    count_padding: bool,
) {
    let [rows, cols] = shape.window_counts(count_padding);
    let mean = |y: usize, row: &mut [f32]| {
        for (pixel, wide) in row.chunks_exact_mut(channels.max(1)).zip(&cols) {
            let count = (rows[y] * wide) as f32;
            pixel.iter_mut().for_each(|x| *x /= count);
        }
    };
    slide(cpu, shape, channels, input, out, 0.0, |sum, x| sum + x, mean);
}

/// The sum of the bytes in each window and channel; those beyond the borders are left out.
///
/// # Panics
/// When `shape` is impossible or a slice does not fit it, or a window has more than 2^23 taps.
pub fn sum_pool<T: Copy + Into<i32> + Sync>(
    cpu: &Cpu,
    shape: &PoolShape,
    channels: usize,
    input: &[T],
    out: &mut [i32],
) {
    assert!(shape.kernel[0].saturating_mul(shape.kernel[1]) <= MOST_BYTES, "too many bytes to a sum");
    slide(cpu, shape, channels, input, out, 0, |sum, x| sum + x.into(), |_, _| {});
}

/// The mean of each channel of images of `len` pixels.
///
/// # Panics
/// When `input` does not have `len` numbers for each of `out`, or `out` is not a number of images.
pub fn global_average_pool(cpu: &Cpu, len: usize, channels: usize, input: &[f32], out: &mut [f32]) {
    each_channel(cpu, len, channels, input, out, 0.0, |sum, x| sum + x, |sum, part| sum + part);
    for part in out {
        *part /= len as f32;
    }
}

/// The sum of the bytes of each channel of images of `len` pixels.
///
/// # Panics
/// When `input` does not have `len` bytes for each of `out`, or `out` is not a number of images; when `len` is above
/// 2^23.
pub fn global_sum_pool<T: Copy + Into<i32> + Sync>(
    cpu: &Cpu,
    len: usize,
    channels: usize,
    input: &[T],
    out: &mut [i32],
) {
    assert!(len <= MOST_BYTES, "too many bytes to a sum");
    each_channel(cpu, len, channels, input, out, 0, |sum, x| sum + x.into(), |sum, part| sum + part);
}

/// So many bytes have a sum that fits 32 bits.
pub const MOST_BYTES: usize = 1 << 23;

/// Channels that are folded in one go.
const STRIP: usize = 64;

/// Pixels that are folded before they are joined to the others.
const RUN: usize = 64;

#[allow(clippy::too_many_arguments)]
fn each_channel<T: Copy + Sync, A: Copy + Send + Sync>(
    cpu: &Cpu,
    len: usize,
    channels: usize,
    input: &[T],
    out: &mut [A],
    start: A,
    join: impl Fn(A, T) -> A + Sync,
    merge: impl Fn(A, A) -> A + Sync,
) {
    assert_eq!(out.len().checked_mul(len), Some(input.len()), "length of the input");
    assert!(out.is_empty() || channels > 0 && out.len().is_multiple_of(channels), "length of the output");
    let share = (TASK_LEN / len.max(1)).next_multiple_of(STRIP).max(STRIP);
    let isa = cpu.isa();
    cpu.pool().for_chunks_mut(out, share, |task, mut part| {
        let mut at = task * share;
        while !part.is_empty() {
            // A strip of channels of one image.
            let (image, channel) = (at / channels, at % channels);
            let (strip, rest) = part.split_at_mut(part.len().min(channels - channel).min(STRIP));
            at += strip.len();
            part = rest;
            let input = &input[image * len * channels..][..len * channels];
            wide(isa, Strip { input, channels, channel, out: strip, start, join: &join, merge: &merge });
        }
    });
}

/// Folds a strip of channels of an image, run by run of pixels.
struct Strip<'a, T, A, F, G> {
    input: &'a [T],
    channels: usize,
    channel: usize,
    out: &'a mut [A],
    start: A,
    join: &'a F,
    merge: &'a G,
}

impl<T: Copy, A: Copy, F: Fn(A, T) -> A, G: Fn(A, A) -> A> Loops for Strip<'_, T, A, F, G> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Strip { input, channels, channel, out, start, join, merge } = self;
        out.fill(start);
        for run in input.chunks(RUN * channels) {
            let mut folded = [start; STRIP];
            let folded = &mut folded[..out.len()];
            for pixel in run.chunks_exact(channels) {
                let pixel = &pixel[channel..][..folded.len()];
                folded.iter_mut().zip(pixel).for_each(|(a, &x)| *a = join(*a, x));
            }
            out.iter_mut().zip(&*folded).for_each(|(a, &b)| *a = merge(*a, b));
        }
    }
}

/// Joins every pixel of a window to `start`, then calls `finish` with the number of each row, and the row.
#[allow(clippy::too_many_arguments)]
fn slide<T: Copy + Sync, A: Copy + Send + Sync>(
    cpu: &Cpu,
    shape: &PoolShape,
    channels: usize,
    input: &[T],
    out: &mut [A],
    start: A,
    join: impl Fn(A, T) -> A + Sync,
    finish: impl Fn(usize, &mut [A]) + Sync,
) {
    let images = shape.planes;
    let deep = PoolShape { planes: images.saturating_mul(channels), ..*shape };
    let [before, _] = deep.check(input.len(), out.len());
    let [height, width] = shape.out_size;
    let row_len = width * channels;
    if out.is_empty() {
        return;
    }
    let [tall, wide_taps] = [shape.taps(0), shape.taps(1)];
    let share = (TASK_LEN / row_len).max(1);
    let isa = cpu.isa();
    cpu.pool().for_chunks_mut(out, share * row_len, |task, part| {
        for (nth, out) in part.chunks_exact_mut(row_len).enumerate() {
            let (image, y) = ((task * share + nth) / height, (task * share + nth) % height);
            let input = &input[image * before * channels..][..before * channels];
            out.fill(start);
            wide(isa, Row { shape, y, channels, tall: &tall, wide: &wide_taps, input, out, join: &join });
            finish(y, out);
        }
    });
}

/// A row of windows.
struct Row<'a, T, A, F> {
    shape: &'a PoolShape,
    y: usize,
    channels: usize,
    tall: &'a [(std::ops::Range<usize>, usize)],
    wide: &'a [(std::ops::Range<usize>, usize)],
    input: &'a [T],
    out: &'a mut [A],
    join: &'a F,
}

impl<T: Copy, A: Copy, F: Fn(A, T) -> A> Loops for Row<'_, T, A, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Row { shape, y, channels, tall, wide, input, out, join } = self;
        let row_len = shape.in_size[1] * channels;
        for (rows, top) in tall.iter().filter(|t| t.0.contains(&y)) {
            let row = &input[(top + (y - rows.start) * shape.stride[0]) * row_len..][..row_len];
            for (cols, left) in wide {
                let out = &mut out[cols.start * channels..cols.end * channels];
                let from = &row[left * channels..];
                if shape.stride[1] == 1 {
                    out.iter_mut().zip(from).for_each(|(a, &x)| *a = join(*a, x));
                    continue;
                }
                let pixels = from.chunks(shape.stride[1] * channels);
                for (out, pixel) in out.chunks_exact_mut(channels).zip(pixels) {
                    out.iter_mut().zip(&pixel[..channels]).for_each(|(a, &x)| *a = join(*a, x));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::shapes;
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    /// `[images, len, channels]` as `[images, channels, len]`.
    fn first<T: Copy>(x: &[T], len: usize, channels: usize) -> Vec<T> {
        let mut planes = Vec::new();
        for image in x.chunks(len * channels) {
            planes.extend((0..channels).flat_map(|c| image.iter().skip(c).step_by(channels).copied()));
        }
        planes
    }

    proptest! {
        #[test]
        fn pools_agree_with_those_of_planes(shape in shapes(), channels in 1usize..70, seed in 0u64..1000) {
            let area = |size: [usize; 2]| size[0] * size[1];
            let (before, after) = (area(shape.in_size).max(1), area(shape.out_size).max(1));
            let len = shape.planes * area(shape.in_size) * channels;
            let input: Vec<f32> = (0..len as u64).map(|i| ((i * 2654435761 + seed * 97) % 23) as f32 - 9.0).collect();
            let bytes: Vec<i8> = input.iter().map(|&x| x as i8).collect();
            let count = shape.planes * area(shape.out_size) * channels;
            let planes = PoolShape { planes: shape.planes * channels, ..shape };
            let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                let (mut got, mut want) = (vec![0.0; count], vec![0.0; count]);
                super::super::max_pool(&cpu, &planes, &first(&input, before, channels), &mut want);
                max_pool(&cpu, &shape, channels, &input, &mut got);
                prop_assert_eq!(first(&got, after, channels), want.clone());
                let (mut got_bytes, mut want_bytes) = (vec![0i8; count], vec![0i8; count]);
                super::super::max_pool(&cpu, &planes, &first(&bytes, before, channels), &mut want_bytes);
                max_pool(&cpu, &shape, channels, &bytes, &mut got_bytes);
                prop_assert_eq!(first(&got_bytes, after, channels), want_bytes);
                for padding in [false, true] {
                    super::super::average_pool(&cpu, &planes, &first(&input, before, channels), &mut want, padding);
                    average_pool(&cpu, &shape, channels, &input, &mut got, padding);
                    prop_assert!(same(&first(&got, after, channels), &want));
                }
                let mut sums = vec![0; count];
                sum_pool(&cpu, &shape, channels, &bytes, &mut sums);
                let [rows, cols] = shape.window_counts(false);
                for (i, (sum, mean)) in first(&sums, after, channels).iter().zip(&want_means(&cpu, &planes, &first(&bytes, before, channels))).enumerate() {
                    let at = i % after;
                    let n = (rows[at / cols.len()] * cols[at % cols.len()]) as f32;
                    prop_assert!(n == 0.0 || (*sum as f32 - mean * n).abs() < 1e-2);
                }
            }
        }

        #[test]
        fn global_pools_agree_with_those_of_planes(images in 0usize..4, len in 1usize..200, channels in 1usize..150) {
            let input: Vec<f32> = (0..images * len * channels).map(|i| (i * 37 % 41) as f32 - 20.0).collect();
            let bytes: Vec<u8> = input.iter().map(|&x| (x + 100.0) as u8).collect();
            let count = images * channels;
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                let (mut got, mut want) = (vec![0.0; count], vec![0.0; count]);
                global_average_pool(&cpu, len, channels, &input, &mut got);
                super::super::global_average_pool(&cpu, len, &first(&input, len, channels), &mut want);
                prop_assert_eq!(&got, &want);
                let mut sums = vec![0; count];
                global_sum_pool(&cpu, len, channels, &bytes, &mut sums);
                let planes = first(&bytes, len, channels);
                for (sum, plane) in sums.iter().zip(planes.chunks(len)) {
                    prop_assert_eq!(*sum, plane.iter().map(|&b| i32::from(b)).sum::<i32>());
                }
            }
        }
    }

    fn want_means(cpu: &Cpu, planes: &PoolShape, bytes: &[i8]) -> Vec<f32> {
        let real: Vec<f32> = bytes.iter().map(|&b| b.into()).collect();
        let mut means = vec![0.0; planes.planes * planes.out_size[0] * planes.out_size[1]];
        super::super::average_pool(cpu, planes, &real, &mut means, false);
        means
    }
}
