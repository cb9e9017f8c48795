//! Convolution of 8-bit tensors with exact 32-bit sums.
//!
//! A number `q` stands for `scale * (q - zero)`. Where the processor has a dot product of bytes (VNNI), four
//! input channels share a word, and the input's zero point is taken off afterwards: padding holds the zero
//! point too, so the correction is the same for every pixel of a channel. Elsewhere, and for weights with a
//! zero point that an `i8` cannot absorb, a word holds two 16-bit differences. In a depthwise convolution a word
//! holds taps above each other instead of channels. All of them give the same integers.

use super::depth::Weave;
use super::driver::{Block, Body, Pixels};
use super::float::{Rows, put};
use super::tile::{Tile, Words, weave};
use super::weights::{Lined, Weights, per_group};
use super::{Activation, ConvShape, Out, bounded};
use crate::wide::{Loops, wide};
use crate::{Cpu, Isa};
use std::ops::Range;

/// Bytes, unsigned or signed.
#[derive(Clone, Copy, Debug)]
pub enum Bytes<'a> {
    /// `0..=255`.
    U8(&'a [u8]),
    /// `-128..=127`.
    S8(&'a [i8]),
}

impl<'a> Bytes<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Bytes::U8(x) => x.len(),
            Bytes::S8(x) => x.len(),
        }
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, and what to xor them with to make them unsigned, which adds [`Bytes::offset`].
    pub(crate) fn raw(self) -> (&'a [u8], u8) {
        match self {
            Bytes::U8(x) => (x, 0),
            // SAFETY: `i8` and `u8` have the same size and alignment, and any byte is a `u8`.
            Bytes::S8(x) => (unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) }, 0x80),
        }
    }

    pub(crate) fn offset(&self) -> i32 {
        match self {
            Bytes::U8(_) => 0,
            Bytes::S8(_) => 128,
        }
    }
}

/// How 32-bit sums become bytes again: `round((sum + bias) * multiplier + offset) + zero`, halves to even,
/// kept within `lo..=hi` and within the output's type.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// `[out_channels]`, in units of input scale times weight scale.
    pub bias: Option<&'a [i32]>,
    /// `[out_channels]`, or one for all: input scale times weight scale over output scale.
    pub multiplier: &'a [f32],
    /// `[out_channels]`, in units of the output scale: a bias that is no whole number of sums.
    pub offset: Option<&'a [f32]>,
    /// Zero point of the output.
    pub zero: i32,
    /// The least output; the zero point for a fused relu.
    pub lo: i32,
    /// The greatest output.
    pub hi: i32,
}

/// Where the sums go, in the order of the output.
pub enum ByteOutput<'a> {
    /// The sums as they are.
    Sums(&'a mut [i32]),
    /// `activation(sum * scale + bias)`.
    Real {
        /// The result.
        out: &'a mut [f32],
        /// `[out_channels]`, or one for all: input scale times weight scale.
        scale: &'a [f32],
        /// `[out_channels]`.
        bias: Option<&'a [f32]>,
        /// Bounds of the result.
        activation: Activation,
    },
    /// Unsigned bytes.
    U8(&'a mut [u8], Requant<'a>),
    /// Signed bytes.
    S8(&'a mut [i8], Requant<'a>),
}

/// The weights of an 8-bit convolution, laid out for one instruction set.
pub struct PackedByteConv {
    weights: Weights,
    /// Sum of each output channel's weights.
    totals: Vec<i32>,
}

impl PackedByteConv {
    /// Packs `weights`, `[out_channels, in_channels / groups, kernel]`, for the instruction set of `cpu`. Only
    /// the channels, the groups and the kernel of `shape` matter. `zeros` are the weights' zero points: none
    /// (all zero), one for all, or one for each output channel.
    ///
    /// # Panics
    /// When the channels are no positive multiple of the groups, a length does not fit, or a zero point is not in the
    /// range of the weights.
    pub fn new(cpu: &Cpu, shape: &ConvShape, weights: Bytes, zeros: &[i32]) -> PackedByteConv {
        let (inputs, _) = per_group(shape);
        let taps = shape.kernel[0] * shape.kernel[1];
        assert_eq!(weights.len(), shape.out_channels * inputs * taps, "length of the weights");
        assert!(
            zeros.len() < 2 || zeros.len() == shape.out_channels,
            "one zero point, or one for each channel"
        );
        let range = -weights.offset()..256 - weights.offset();
        assert!(zeros.iter().all(|z| range.contains(z)), "zero points lie in the range of the weights");

        let (bytes, flip) = weights.raw();
        let zero = |channel: usize| {
            zeros.get(channel).or(zeros.first()).map_or(weights.offset(), |z| z + weights.offset())
        };
        let is_small = (0..shape.out_channels).all(|channel| zero(channel) == 128);
        let kind = match is_small && Tile::has_quads(cpu.isa()) {
            true => Words::Quad,
            false => Words::Pair,
        };
        let weight = |channel: usize, tap: usize, input: usize| -> i32 {
            i32::from(bytes[(channel * inputs + input) * taps + tap] ^ flip) - zero(channel)
        };
        let mask = if kind == Words::Quad { 0xff } else { 0xffff };
        let bits = |channel: usize, tap: usize, input: usize| weight(channel, tap, input) as u32 & mask;
        let total = |channel: usize| {
            (0..inputs * taps).fold(0i32, |sum, i| sum.wrapping_add(weight(channel, i % taps, i / taps)))
        };
        let totals = (0..shape.out_channels).map(total).collect();
        PackedByteConv { weights: Weights::new(cpu, shape, kind, bits), totals }
    }

    /// Convolves `input`, `[batch, height, width, channels]`, whose zero point is `zero`, on the threads of `cpu`
    /// and with the instruction set that the weights were packed for; padding counts as the zero point. `shape` may
    /// have another batch, input size, stride, padding and dilation than before. Sums wrap around at 32 bits.
    ///
    /// # Panics
    /// When `shape` is impossible or does not fit the weights, a slice does not fit `shape`, or `zero` is not
    /// in the range of the input.
    pub fn run(&self, cpu: &Cpu, shape: &ConvShape, input: Bytes, zero: i32, out: ByteOutput) {
        let geometry = self.weights.geometry(shape, input.len());
        let zero = zero.wrapping_add(input.offset());
        assert!((0..256).contains(&zero), "the zero point lies in the range of the input");
        let (bytes, flip) = input.raw();
        let words = self.weights.words();
        let correction = |channel: usize| match words {
            Words::Quad => self.totals[channel].wrapping_mul(-zero),
            _ => 0,
        };
        let body = ByteBody {
            isa: self.weights.isa(),
            words,
            input: bytes,
            flip,
            zero: zero as u8,
            channels: shape.out_channels,
            sink: Sink::new(out, self.weights.lined(), shape.out_len(), correction),
        };
        self.weights.run(cpu.pool(), geometry, &body);
    }
}

/// [`ByteOutput`], shared by the tasks; what belongs to channels is lined up with the tiles' vectors.
enum Sink<'a> {
    Sums(Out<'a, i32>, Vec<i32>),
    /// With a scale and a bias for each channel.
    Real {
        out: Out<'a, f32>,
        add: Vec<i32>,
        scale: Vec<[f32; 2]>,
        bounds: [f32; 2],
    },
    /// Bytes of either sign, with a scale and an offset for each channel.
    Bytes {
        out: Out<'a, u8>,
        add: Vec<i32>,
        scale: Vec<[f32; 2]>,
        zero: i32,
        least: f32,
        most: f32,
    },
}

impl<'a> Sink<'a> {
    fn new(out: ByteOutput<'a>, lined: Lined, len: usize, correction: impl Fn(usize) -> i32) -> Sink<'a> {
        let channels = lined.groups * lined.channels;
        let fits = |n: usize| assert_eq!(n, len, "length of the output");
        let scales = |s: &[f32], bias: Option<&[f32]>| {
            assert!(s.len() == 1 || s.len() == channels, "one scale, or one a channel");
            assert!(bias.is_none_or(|b| b.len() == channels), "length of the bias");
            let scale = |c: usize| if s.len() == 1 { s[0] } else { s[c] };
            let all: Vec<[f32; 2]> =
                (0..channels).map(|c| [scale(c), bias.map_or(-0.0, |bias| bias[c])]).collect();
            lined.line(&all)
        };
        let add = |bias: Option<&[i32]>| {
            assert!(bias.is_none_or(|b| b.len() == channels), "length of the bias");
            let bias = |channel: usize| bias.map_or(0, |b| b[channel]);
            let all: Vec<i32> = (0..channels).map(|c| correction(c).wrapping_add(bias(c))).collect();
            lined.line(&all)
        };
        let bytes = |out: &'a mut [u8], requant: &Requant, range: [i32; 2]| {
            fits(out.len());
            let lo = requant.lo.clamp(range[0], range[1]);
            let hi = requant.hi.clamp(lo, range[1]);
            Sink::Bytes {
                out: Out::new(out),
                add: add(requant.bias),
                scale: scales(requant.multiplier, requant.offset),
                zero: requant.zero,
                least: lo.saturating_sub(requant.zero) as f32,
                most: hi.saturating_sub(requant.zero) as f32,
            }
        };
        match out {
            ByteOutput::Sums(out) => {
                fits(out.len());
                Sink::Sums(Out::new(out), add(None))
            }
            ByteOutput::Real { out, scale, bias, activation } => {
                fits(out.len());
                Sink::Real {
                    out: Out::new(out),
                    add: add(None),
                    scale: scales(scale, bias),
                    bounds: activation.bounds().unwrap_or([f32::NEG_INFINITY, f32::INFINITY]),
                }
            }
            ByteOutput::U8(out, requant) => bytes(out, &requant, [0, 255]),
            ByteOutput::S8(out, requant) => {
                // SAFETY: `i8` and `u8` have the same size and alignment, and any byte is an `i8`.
                let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) };
                bytes(out, &requant, [-128, 127])
            }
        }
    }
}

struct ByteBody<'a> {
    isa: Isa,
    words: Words,
    input: &'a [u8],
    /// Makes the input unsigned.
    flip: u8,
    /// Zero point of the unsigned input.
    zero: u8,
    channels: usize,
    sink: Sink<'a>,
}

impl Body for ByteBody<'_> {
    fn input(&self) -> &[u8] {
        self.input
    }

    fn element(&self) -> usize {
        1
    }

    fn is_words(&self) -> bool {
        self.words == Words::Quad && self.flip == 0
    }

    fn pad(&self) -> u32 {
        match self.words {
            Words::Quad => u32::from_ne_bytes([self.zero; 4]),
            _ => 0,
        }
    }

    fn copy(&self, from: &[u8], channels: usize, to: &mut [u8], pixel: usize) {
        wide(self.isa, Stage { body: self, from, channels, to, pixel });
    }

    fn isa(&self) -> Isa {
        self.isa
    }

    #[inline(always)]
    fn finish(&self, block: &Block) {
        let span = block.padded..block.padded + block.width;
        let exact = |sum: u32, add: i32| (sum as i32).wrapping_add(add);
        let (channels, sums, more) = (self.channels, block.sums, None);
        match &self.sink {
            Sink::Sums(out, add) => {
                let rows = Rows { out, channels, block, more };
                let add = &add[span.clone()];
                put(rows, sums, (add, add), |sum, add, _, _| exact(sum, add));
            }
            Sink::Real { out, add, scale, bounds } => {
                let rows = Rows { out, channels, block, more };
                put(rows, sums, (&add[span.clone()], &scale[span]), |sum, add, [scale, bias], _| {
                    bounded(exact(sum, add) as f32 * scale + bias, *bounds)
                });
            }
            Sink::Bytes { out, add, scale, zero, least, most } => {
                let rows = Rows { out, channels, block, more };
                put(rows, sums, (&add[span.clone()], &scale[span]), |sum, add, [scale, offset], _| {
                    let x = exact(sum, add) as f32 * scale + offset;
                    let x = if x > *least { x } else { *least };
                    let x = if x < *most { x } else { *most };
                    // SAFETY: `x` is no NaN (it would have become `least`) and less than 2^31 from zero.
                    let x = unsafe { x.round_ties_even().to_int_unchecked::<i32>() };
                    x.wrapping_add(*zero) as u8
                });
            }
        }
    }

    fn after(&self, _: Pixels, _: Range<usize>) {}
}

struct Stage<'a> {
    body: &'a ByteBody<'a>,
    from: &'a [u8],
    channels: usize,
    to: &'a mut [u8],
    pixel: usize,
}

impl Loops for Stage<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Stage { body, from, channels, to, pixel } = self;
        let (flip, zero) = (body.flip, i16::from(body.zero));
        if body.words == Words::Quad {
            if pixel == channels {
                return to.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ flip);
            }
            if channels == 3 && pixel == 4 {
                for (to, from) in to.as_chunks_mut::<4>().0.iter_mut().zip(from.as_chunks::<3>().0) {
                    *to = [from[0] ^ flip, from[1] ^ flip, from[2] ^ flip, 0];
                }
                return;
            }
            for (to, from) in to.chunks_exact_mut(pixel).zip(from.chunks_exact(channels)) {
                let (to, rest) = to.split_at_mut(channels);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ flip);
                rest.fill(0);
            }
            return;
        }
        for (to, from) in to.chunks_exact_mut(pixel).zip(from.chunks_exact(channels)) {
            let (to, rest) = to.split_at_mut(2 * channels);
            for (to, from) in to.as_chunks_mut::<2>().0.iter_mut().zip(from) {
                *to = (i16::from(from ^ flip) - zero).to_le_bytes();
            }
            rest.fill(0);
        }
    }
}

impl Weave for ByteBody<'_> {
    fn weave(&self, rows: [Option<usize>; 4], to: &mut [u32]) {
        wide(self.isa, WeaveRows { body: self, rows, to });
    }
}

/// Numbers of four rows that follow each other in a word, or of two.
struct WeaveRows<'a> {
    body: &'a ByteBody<'a>,
    rows: [Option<usize>; 4],
    to: &'a mut [u32],
}

impl Loops for WeaveRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let WeaveRows { body, rows, to } = self;
        let (flip, zero) = (body.flip, body.zero);
        const LINE: usize = 256;
        let blank = [zero ^ flip; LINE];
        let count = to.len();
        for (nth, to) in to.chunks_mut(LINE).enumerate() {
            let start = nth * LINE;
            let len = LINE.min(count - start);
            let line = |row: Option<usize>| match row {
                Some(row) => &body.input[row + start..][..len],
                None => &blank[..len],
            };
            let [a, b, c, d] = [line(rows[0]), line(rows[1]), line(rows[2]), line(rows[3])];
            if body.words == Words::Quad {
                weave(body.isa, [a, b, c, d], flip, to);
            } else {
                let part = |x: u8| (i32::from(x ^ flip) - i32::from(zero)) as u32;
                for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
                    *to = part(*a) & 0xffff | part(*b) << 16;
                }
            }
        }
    }
}
