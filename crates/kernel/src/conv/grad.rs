//! The gradient of a convolution with respect to its weight. (That with respect to its input is a transposed
//! convolution.) Sums run over the pixels of a strip of rows, where the input's rows lie in a copy with their padding:
//! for each tap and a few channels of both sides all sums are in registers.

use super::ConvShape;
use crate::Cpu;
use crate::lanes::{Body, Parts, Set, run};
use crate::math::fma;
use crate::reduce::{Reduce, reduce};

/// Output channels whose sums are in registers together.
const ROWS: usize = 6;
/// Input channels whose sums are in registers together; the copy of the input has a multiple of [`HALF`].
const LANES: usize = 16;
const HALF: usize = 8;
/// Output channels of one task, which share a copy of the input.
const TASK: usize = 4 * ROWS;
/// Floats of the copied input that should stay in the nearest memory.
const STRIP: usize = 4096;
/// Parts of the batch whose sums are made apart from each other.
const PARTS: usize = 8;
/// Most floats for the sums of all parts.
const SUMS: usize = 1 << 24;

/// From the input `x`, `[batch, height, width, in_channels]`, and the gradient of the output `dy`, the gradient of the
/// weight, `[out_channels, in_channels / groups, kernel]`. Sums do not depend on the number of threads.
///
/// # Panics
/// When `shape` is impossible, or a slice does not fit it.
pub fn weight_grad(cpu: &Cpu, shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let Some(out) = shape.out_size() else { panic!("an impossible convolution: {shape:?}") };
    assert_eq!(x.len(), shape.in_len(), "length of the input");
    assert_eq!(dy.len(), shape.out_len(), "length of the output's gradient");
    assert_eq!(dw.len(), shape.weight_len(), "length of the weight's gradient");
    dw.fill(0.0);
    if x.is_empty() || dy.is_empty() {
        return;
    }
    let taps = shape.kernel[0] * shape.kernel[1];
    let (inputs, outputs) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    // Groups of one channel each are seen side by side.
    let deep = inputs == 1 && outputs == 1;
    let width = if deep { LANES } else { inputs.next_multiple_of(HALF) };
    let row = taps * width;
    let (chunks, per_chunk) = match deep {
        true => (shape.groups.div_ceil(LANES), row),
        false => (shape.groups * outputs.div_ceil(TASK), TASK.min(outputs) * row),
    };
    // The group of a chunk, and the first of the group's outputs that it has.
    let each = outputs.div_ceil(TASK);
    let place = |chunk: usize| (chunk / each, chunk % each * TASK);
    let parts = PARTS.min(shape.batch).min((SUMS / (chunks * per_chunk)).max(1));
    let mut sums = vec![0f32; parts * chunks * per_chunk];
    let shared = Parts::new(&mut sums);
    cpu.pool().run(parts * chunks, |task| {
        let (part, chunk) = (task / chunks, task % chunks);
        // SAFETY: each task has its own sums.
        let sums = unsafe { shared.part(task * per_chunk..(task + 1) * per_chunk) };
        let images = shape.batch * part / parts..shape.batch * (part + 1) / parts;
        let (first_in, first_out, count_in, count_out) = if deep {
            let count = LANES.min(shape.groups - chunk * LANES);
            (chunk * LANES, chunk * LANES, count, count)
        } else {
            let (group, at) = place(chunk);
            (group * inputs, group * outputs + at, inputs, TASK.min(outputs - at))
        };
        run(
            cpu,
            Task { shape, out, x, dy, images, first_in, first_out, count_in, count_out, deep, width, sums },
        );
    });
    let mut total = vec![0f32; chunks * per_chunk];
    reduce(cpu, Reduce::Sum, &sums, [1, parts, chunks * per_chunk], &mut total);
    for (chunk, sums) in total.chunks(per_chunk).enumerate() {
        if deep {
            for (channel, dw) in dw.chunks_mut(taps).skip(chunk * LANES).take(LANES).enumerate() {
                dw.iter_mut().enumerate().for_each(|(tap, dw)| *dw = sums[tap * LANES + channel]);
            }
            continue;
        }
        let (group, at) = place(chunk);
        let own = &mut dw[(group * outputs + at) * inputs * taps..];
        let rows = own.chunks_mut(inputs * taps).zip(sums.chunks(row)).take(TASK.min(outputs - at));
        for (dw, sums) in rows {
            for (input, dw) in dw.chunks_mut(taps).enumerate() {
                dw.iter_mut().enumerate().for_each(|(tap, dw)| *dw = sums[tap * width + input]);
            }
        }
    }
}

/// The sums of some output channels over some images.
struct Task<'a> {
    shape: &'a ConvShape,
    out: [usize; 2],
    x: &'a [f32],
    dy: &'a [f32],
    images: std::ops::Range<usize>,
    first_in: usize,
    first_out: usize,
    count_in: usize,
    count_out: usize,
    deep: bool,
    /// Channels of the copied input.
    width: usize,
    /// `[output, tap, width]`; `[tap, LANES]` for groups of one channel.
    sums: &'a mut [f32],
}

impl Body for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let shape = self.shape;
        let [stride_y, stride_x] = shape.stride;
        let [reach_y, reach_x] = [0, 1].map(|a| (shape.kernel[a] - 1) * shape.dilation[a] + 1);
        let [height, across] = self.out;
        let line = ((across - 1) * stride_x + reach_x) * self.width;
        let high = (STRIP / (line * stride_y)).clamp(1, height);
        let mut copy = vec![0f32; line * ((high - 1) * stride_y + reach_y)];
        let mut last = vec![0f32; if self.deep { across * LANES } else { 0 }];
        for image in self.images {
            for top in (0..height).step_by(high) {
                let high = high.min(height - top);
                let rows = (high - 1) * stride_y + reach_y;
                for (at, to) in copy.chunks_exact_mut(line).take(rows).enumerate() {
                    let from = (top * stride_y + at).checked_sub(shape.pad_begin[0]);
                    let from = from.filter(|&y| y < shape.in_size[0]);
                    copy_row(shape, self.x, image, from, self.first_in, self.count_in, self.width, to);
                }
                for y in 0..high {
                    let dy = ((image * height + top + y) * across) * shape.out_channels + self.first_out;
                    let dy = &self.dy[dy..];
                    if self.deep {
                        for (to, from) in last.chunks_exact_mut(LANES).zip(dy.chunks(shape.out_channels)) {
                            to[..self.count_out].copy_from_slice(&from[..self.count_out]);
                        }
                    }
                    for ky in 0..shape.kernel[0] {
                        let row = &copy[(y * stride_y + ky * shape.dilation[0]) * line..][..line];
                        for kx in 0..shape.kernel[1] {
                            let tap = ky * shape.kernel[1] + kx;
                            let x = &row[kx * shape.dilation[1] * self.width..];
                            let step = stride_x * self.width;
                            if self.deep {
                                let sums = &mut self.sums[tap * LANES..][..LANES];
                                side_by_side::<S>(x, step, &last, sums);
                            } else {
                                let sums = &mut self.sums[tap * self.width..];
                                let next = shape.kernel[0] * shape.kernel[1] * self.width;
                                let dy = Pixels { of: dy, step: shape.out_channels, count: across };
                                all::<S>(x, step, dy, self.count_out, self.width, sums, next);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Copies a row of the input's channels, with the padding at its sides; `None` is a row of padding.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn copy_row(
    shape: &ConvShape,
    x: &[f32],
    image: usize,
    from: Option<usize>,
    first: usize,
    count: usize,
    width: usize,
    to: &mut [f32],
) {
    let Some(y) = from else { return to.fill(0.0) };
    let [height, across] = shape.in_size;
    let row = &x[(image * height + y) * across * shape.in_channels..][..across * shape.in_channels];
    let left = shape.pad_begin[1] * width;
    let (before, inside) = to.split_at_mut(left.min(to.len()));
    before.fill(0.0);
    let here = (across * width).min(inside.len());
    let (inside, after) = inside.split_at_mut(here);
    after.fill(0.0);
    for (to, from) in inside.chunks_exact_mut(width).zip(row.chunks_exact(shape.in_channels)) {
        to[..count].copy_from_slice(&from[first..first + count]);
    }
}

/// The output's gradient in a row: pixels `step` apart.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    of: &'a [f32],
    step: usize,
    count: usize,
}

/// Adds the products of a row for one tap: sums of the outputs lie `next` apart.
#[inline(always)]
fn all<S: Set>(
    x: &[f32],
    step: usize,
    dy: Pixels,
    outputs: usize,
    width: usize,
    sums: &mut [f32],
    next: usize,
) {
    let mut at = 0;
    while at < outputs {
        let here = Pixels { of: &dy.of[at..], ..dy };
        let sums = &mut sums[at * next..];
        match outputs - at {
            1 => inputs::<S, 1>(x, step, here, width, sums, next),
            2 => inputs::<S, 2>(x, step, here, width, sums, next),
            3 => inputs::<S, 3>(x, step, here, width, sums, next),
            4 => inputs::<S, 4>(x, step, here, width, sums, next),
            5 => inputs::<S, 5>(x, step, here, width, sums, next),
            _ => inputs::<S, ROWS>(x, step, here, width, sums, next),
        }
        at += ROWS;
    }
}

#[inline(always)]
fn inputs<S: Set, const R: usize>(
    x: &[f32],
    step: usize,
    dy: Pixels,
    width: usize,
    sums: &mut [f32],
    next: usize,
) {
    let mut at = 0;
    while at + LANES <= width {
        block::<S, R, LANES>(&x[at..], step, dy, &mut sums[at..], next);
        at += LANES;
    }
    if at < width {
        block::<S, R, HALF>(&x[at..], step, dy, &mut sums[at..], next);
    }
}

/// `sums[r][l] += dy[p][r] * x[p][l]` over all pixels `p`.
#[inline(always)]
fn block<S: Set, const R: usize, const L: usize>(
    x: &[f32],
    step: usize,
    dy: Pixels,
    sums: &mut [f32],
    next: usize,
) {
    let mut held = [[0f32; L]; R];
    for (r, held) in held.iter_mut().enumerate() {
        held.copy_from_slice(&sums[r * next..][..L]);
    }
    let last = dy.count - 1;
    assert!(x.len() >= last * step + L && dy.of.len() >= last * dy.step + R);
    for p in 0..dy.count {
        // SAFETY: the last pixel's are in bounds, as asserted, so all are.
        let (x, dy) = unsafe {
            (
                &*x.as_ptr().add(p * step).cast::<[f32; L]>(),
                &*dy.of.as_ptr().add(p * dy.step).cast::<[f32; R]>(),
            )
        };
        for r in 0..R {
            for l in 0..L {
                held[r][l] = fma::<S>(dy[r], x[l], held[r][l]);
            }
        }
    }
    for (r, held) in held.iter().enumerate() {
        sums[r * next..][..L].copy_from_slice(held);
    }
}

/// `sums[l] += dy[p][l] * x[p][l]` over all pixels `p`.
#[inline(always)]
fn side_by_side<S: Set>(x: &[f32], step: usize, dy: &[f32], sums: &mut [f32]) {
    let mut held = [0f32; LANES];
    held.copy_from_slice(sums);
    for (p, dy) in dy.chunks_exact(LANES).enumerate() {
        let x = &x[p * step..][..LANES];
        for l in 0..LANES {
            held[l] = fma::<S>(dy[l], x[l], held[l]);
        }
    }
    sums.copy_from_slice(&held);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 53 + 11) % 211) as f32 / 100.0 - 1.0).collect()
    }

    fn plain(shape: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f64> {
        let out = shape.out_size().unwrap();
        let (inputs, outputs) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
        let [kh, kw] = shape.kernel;
        let mut dw = vec![0f64; shape.weight_len()];
        for image in 0..shape.batch {
            for (oy, ox) in (0..out[0]).flat_map(|y| (0..out[1]).map(move |x| (y, x))) {
                for (ky, kx) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
                    let at = |o: usize, k: usize, a: usize| {
                        (o * shape.stride[a] + k * shape.dilation[a])
                            .checked_sub(shape.pad_begin[a])
                            .filter(|&at| at < shape.in_size[a])
                    };
                    let (Some(y), Some(xx)) = (at(oy, ky, 0), at(ox, kx, 1)) else { continue };
                    for m in 0..shape.out_channels {
                        for c in 0..inputs {
                            let channel = m / outputs * inputs + c;
                            let pixel = (image * shape.in_size[0] + y) * shape.in_size[1] + xx;
                            let v = x[pixel * shape.in_channels + channel];
                            let d = dy[((image * out[0] + oy) * out[1] + ox) * shape.out_channels + m];
                            dw[((m * inputs + c) * kh + ky) * kw + kx] += f64::from(v) * f64::from(d);
                        }
                    }
                }
            }
        }
        dw
    }

    #[test]
    fn every_shape_on_every_instruction_set_and_number_of_threads() {
        let usual = ConvShape {
            batch: 3,
            in_channels: 16,
            in_size: [9, 7],
            out_channels: 16,
            kernel: [3, 3],
            stride: [1, 1],
            pad_begin: [1, 1],
            pad_end: [1, 1],
            dilation: [1, 1],
            groups: 1,
        };
        let shapes = [
            usual,
            ConvShape { in_channels: 11, out_channels: 29, stride: [2, 2], ..usual },
            ConvShape { in_channels: 3, out_channels: 7, stride: [2, 1], pad_end: [0, 2], ..usual },
            ConvShape { in_channels: 24, out_channels: 5, dilation: [2, 1], pad_begin: [0, 3], ..usual },
            ConvShape {
                kernel: [1, 1],
                in_channels: 40,
                out_channels: 60,
                pad_begin: [0, 0],
                pad_end: [0, 0],
                ..usual
            },
            ConvShape { in_channels: 12, out_channels: 12, groups: 12, ..usual },
            ConvShape {
                in_channels: 37,
                out_channels: 37,
                groups: 37,
                kernel: [5, 5],
                stride: [2, 2],
                ..usual
            },
            ConvShape { in_channels: 6, out_channels: 12, groups: 3, ..usual },
            ConvShape {
                batch: 19,
                in_size: [1, 30],
                kernel: [1, 4],
                pad_begin: [0, 0],
                pad_end: [0, 0],
                ..usual
            },
            ConvShape { batch: 1, in_size: [70, 70], ..usual },
        ];
        for shape in shapes {
            let (x, dy) = (numbers(shape.in_len(), 1), numbers(shape.out_len(), 2));
            let want = plain(&shape, &x, &dy);
            for isa in Isa::available() {
                let mut first: Option<Vec<f32>> = None;
                for threads in [1, 3] {
                    let cpu = Cpu::with_isa(isa, threads).unwrap();
                    let mut dw = vec![7.0; shape.weight_len()];
                    weight_grad(&cpu, &shape, &x, &dy, &mut dw);
                    for (i, (got, want)) in dw.iter().zip(&want).enumerate() {
                        assert!(
                            (f64::from(*got) - want).abs() < 2e-3 + 2e-5 * want.abs(),
                            "{shape:?} {isa:?} [{i}]: {got}, not {want}"
                        );
                    }
                    assert_eq!(first.get_or_insert(dw.clone()), &dw, "{threads} threads");
                }
            }
        }
    }
}
