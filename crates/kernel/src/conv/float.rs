//! Convolution in `f32`.

use super::depth::Weave;
use super::driver::{Block, Body, Pixels};
use super::tile::Words;
use super::weights::{Lined, Weights, per_group};
use super::{Activation, ConvShape, Out, bounded};
use crate::{Cpu, Isa};
use std::ops::Range;

/// A function of single values, applied to a slice of them.
pub type Then<'a> = &'a (dyn Fn(&mut [f32]) + Sync);

/// What follows the sums of a convolution, in this order: bias, residual, activation, `then`.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// `[out_channels]`, added to every pixel of its channel.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape, added pixel by pixel.
    pub residual: Option<&'a [f32]>,
    /// Bounds of the result.
    pub activation: Activation,
    /// Any other function of single values; called with every finished part of the output exactly once.
    pub then: Option<Then<'a>>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue { bias: None, residual: None, activation: Activation::None, then: None }
    }
}

/// The weights of an `f32` convolution, laid out for one instruction set.
pub struct PackedConv(Weights);

impl PackedConv {
    /// Packs `weights`, `[out_channels, in_channels / groups, kernel]`, for the instruction set of `cpu`. Only
    /// the channels, the groups and the kernel of `shape` matter.
    ///
    /// # Panics
    /// When the channels are no positive multiple of the groups, or `weights` has another length.
    pub fn new(cpu: &Cpu, shape: &ConvShape, weights: &[f32]) -> PackedConv {
        let (inputs, _) = per_group(shape);
        let taps = shape.kernel[0] * shape.kernel[1];
        assert_eq!(weights.len(), shape.out_channels * inputs * taps, "length of the weights");
        PackedConv(Weights::new(cpu, shape, Words::Real, |channel, tap, input| {
            weights[(channel * inputs + input) * taps + tap].to_bits()
        }))
    }

    /// Convolves `input`, `[batch, height, width, channels]`, into `out`, of the same order, on the threads of `cpu`
    /// and with the instruction set that the weights were packed for. `shape` may have another batch, input size,
    /// stride, padding and dilation than before.
    ///
    /// # Panics
    /// When `shape` is impossible or does not fit the weights, or a slice does not fit `shape`.
    pub fn run(&self, cpu: &Cpu, shape: &ConvShape, input: &[f32], out: &mut [f32], epilogue: &Epilogue) {
        let geometry = self.0.geometry(shape, input.len());
        assert_eq!(out.len(), shape.out_len(), "length of the output");
        let body = RealBody::new(self.0.isa(), input, out, epilogue, self.0.lined());
        self.0.run(cpu.pool(), geometry, &body);
    }
}

/// Input, output and epilogue of a run.
pub(super) struct RealBody<'a> {
    isa: Isa,
    input: &'a [f32],
    out: Out<'a, f32>,
    channels: usize,
    bias: Vec<f32>,
    epilogue: &'a Epilogue<'a>,
    bounds: [f32; 2],
}

impl<'a> RealBody<'a> {
    pub fn new(
        isa: Isa,
        input: &'a [f32],
        out: &'a mut [f32],
        epilogue: &'a Epilogue<'a>,
        lined: Lined,
    ) -> RealBody<'a> {
        let all = lined.groups * lined.channels;
        assert!(epilogue.bias.is_none_or(|b| b.len() == all), "length of the bias");
        assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "length of the residual");
        RealBody {
            isa,
            input,
            out: Out::new(out),
            channels: all,
            bias: match epilogue.bias {
                Some(bias) => lined.line(bias),
                None => vec![-0.0; lined.groups * lined.padded],
            },
            epilogue,
            bounds: epilogue.activation.bounds().unwrap_or([f32::NEG_INFINITY, f32::INFINITY]),
        }
    }
}

impl Body for RealBody<'_> {
    fn input(&self) -> &[u8] {
        // SAFETY: any byte of an `f32` is a byte.
        unsafe { std::slice::from_raw_parts(self.input.as_ptr().cast(), self.input.len() * 4) }
    }

    fn element(&self) -> usize {
        4
    }

    fn is_words(&self) -> bool {
        true
    }

    fn pad(&self) -> u32 {
        0
    }

    fn copy(&self, from: &[u8], channels: usize, to: &mut [u8], pixel: usize) {
        if pixel == channels * 4 {
            return to.copy_from_slice(from);
        }
        for (to, from) in to.chunks_exact_mut(pixel).zip(from.chunks_exact(channels * 4)) {
            to[..from.len()].copy_from_slice(from);
        }
    }

    fn isa(&self) -> Isa {
        self.isa
    }

    #[inline(always)]
    fn finish(&self, block: &Block) {
        let bias = &self.bias[block.padded..][..block.width];
        let bounds = self.bounds;
        let rows = Rows { out: &self.out, channels: self.channels, block, more: None };
        match self.epilogue.residual {
            None => put(rows, block.sums, (bias, bias), |sum, bias, _, _| {
                bounded(f32::from_bits(sum) + bias, bounds)
            }),
            Some(_) => {
                let rows = Rows { more: self.epilogue.residual, ..rows };
                put(rows, block.sums, (bias, bias), |sum, bias, _, more| {
                    bounded(f32::from_bits(sum) + bias + more, bounds)
                });
            }
        }
    }

    fn after(&self, pixels: Pixels, channels: Range<usize>) {
        let Some(then) = self.epilogue.then else { return };
        // SAFETY: a task's pixels and channels are its own.
        unsafe {
            if pixels.step == 1 && channels.len() == self.channels {
                return then(self.out.slice(pixels.first * self.channels, pixels.count * self.channels));
            }
            for pixel in pixels.iter() {
                then(self.out.slice(pixel * self.channels + channels.start, channels.len()));
            }
        }
    }
}

impl Weave for RealBody<'_> {
    fn weave(&self, rows: [Option<usize>; 4], to: &mut [u32]) {
        match rows[0] {
            Some(row) => {
                for (to, from) in to.iter_mut().zip(&self.input[row..]) {
                    *to = from.to_bits();
                }
            }
            None => to.fill(0),
        }
    }
}

/// Brings a block of sums into an output of `channels` channels, sixteen at a time as long as possible:
/// `out = f(sum, a, b, more)`, where `a` and `b` belong to the channel, and `more` (zero without [`Rows::more`]) is
/// as large as the output.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
pub(super) fn put<T, A: Copy, B: Copy>(
    rows: Rows<T>,
    sums: &[u32],
    (a, b): (&[A], &[B]),
    f: impl Fn(u32, A, B, f32) -> T,
) {
    let Rows { out, channels, block, more } = rows;
    let count = block.count;
    let ((a, a_rest), (b, b_rest)) = (a[..count].as_chunks::<16>(), b[..count].as_chunks::<16>());
    let ((a4, a1), (b4, b1)) = (a_rest.as_chunks::<4>(), b_rest.as_chunks::<4>());
    let mut at = block.pixels.first * channels + block.channel;
    for sums in sums.chunks_exact(block.width) {
        // SAFETY: a task's pixels and channels are its own.
        let (out, rest) = unsafe { out.slice(at, count) }.as_chunks_mut::<16>();
        let (sums, sums_rest) = sums[..count].as_chunks::<16>();
        let more = more.map(|more| &more[at..][..count]);
        let chunk = |i: usize| more.map_or([0.0; 16], |more| *piece(more, i));
        for (i, (((out, sums), a), b)) in out.iter_mut().zip(sums).zip(a).zip(b).enumerate() {
            let more = chunk(16 * i);
            *out = std::array::from_fn(|i| f(sums[i], a[i], b[i], more[i]));
        }
        if !rest.is_empty() {
            let start = count - rest.len();
            let ((out4, out1), (sums4, sums1)) = (rest.as_chunks_mut::<4>(), sums_rest.as_chunks::<4>());
            for (i, (((out, sums), a), b)) in out4.iter_mut().zip(sums4).zip(a4).zip(b4).enumerate() {
                let more = more.map_or([0.0; 4], |more| *piece(more, start + 4 * i));
                *out = std::array::from_fn(|i| f(sums[i], a[i], b[i], more[i]));
            }
            let start = count - out1.len();
            for (i, (((out, sum), a), b)) in out1.iter_mut().zip(sums1).zip(a1).zip(b1).enumerate() {
                *out = f(*sum, *a, *b, more.map_or(0.0, |more| more[start + i]));
            }
        }
        at += block.pixels.step * channels;
    }
}

/// Where a block of sums goes.
pub(super) struct Rows<'a, T> {
    pub out: &'a Out<'a, T>,
    pub channels: usize,
    pub block: &'a Block<'a>,
    pub more: Option<&'a [f32]>,
}

/// The `N` values from `start` on.
#[inline(always)]
fn piece<const N: usize>(from: &[f32], start: usize) -> &[f32; N] {
    match from[start..].first_chunk() {
        Some(piece) => piece,
        None => panic!("a piece out of range"),
    }
}
