//! Convolution in `f32`.

use super::super::{ConvShape, bounded};
use super::super::float::{Epilogue, per_group};
use super::depth::{self, DepthPanels, Weave};
use super::driver::{Block, Body, Geometry, Panels, Pixels, as_reals, run};
use super::tile::{Tile, Words};
use crate::conv::Out;
use crate::wide::{Loops, wide};
use crate::{Cpu, Isa};
use std::ops::Range;

/// The weights of an `f32` convolution, laid out for one instruction set.
pub struct PackedConv {
    form: Form,
    isa: Isa,
    kernel: [usize; 2],
    groups: usize,
}

enum Form {
    Dense(Panels),
    Depth(DepthPanels),
}

impl PackedConv {
    /// Packs `weights`, `[out_channels, in_channels / groups, kernel]`, for the instruction set of `cpu`. Only
    /// the channels, the groups and the kernel of `shape` matter.
    ///
    /// # Panics
    /// When the channels are no positive multiple of the groups, or `weights` has another length.
    pub fn new(cpu: &Cpu, shape: &ConvShape, weights: &[f32]) -> PackedConv {
        let (inputs, channels) = per_group(shape);
        let taps = shape.kernel[0] * shape.kernel[1];
        assert_eq!(weights.len(), shape.out_channels * inputs * taps, "length of the weights");
        let tile = Tile::select(cpu.isa(), Words::Real);
        let weight = |channel: usize, tap: usize, input: usize| {
            weights[(channel * inputs + input) * taps + tap].to_bits()
        };
        let form = match shape.groups > 1 && inputs == 1 && channels == 1 {
            true => Form::Depth(DepthPanels::new(tile, Words::Real, shape.groups, shape.kernel, |c, t| {
                weight(c, t, 0)
            })),
            false => {
                let sizes = [channels, inputs, taps];
                Form::Dense(Panels::new(tile, Words::Real, shape.groups, sizes, weight))
            }
        };
        PackedConv { form, isa: cpu.isa(), kernel: shape.kernel, groups: shape.groups }
    }

    /// Convolves `input`, `[batch, height, width, channels]`, into `out`, of the same order, on the threads of `cpu`
    /// and with the instruction set that the weights were packed for. `shape` may have another batch, input size,
    /// stride, padding and dilation than before.
    ///
    /// # Panics
    /// When `shape` is impossible or does not fit the weights, or a slice does not fit `shape`.
    pub fn run(&self, cpu: &Cpu, shape: &ConvShape, input: &[f32], out: &mut [f32], epilogue: &Epilogue) {
        let Some(out_size) = shape.out_size() else { panic!("an impossible convolution: {shape:?}") };
        let (inputs, channels) = per_group(shape);
        let packed = match &self.form {
            Form::Dense(p) => (p.inputs, p.channels),
            Form::Depth(_) => (1, 1),
        };
        let sizes = (inputs, channels);
        assert!(
            sizes == packed && self.groups == shape.groups && self.kernel == shape.kernel,
            "the shape fits the packed weights"
        );
        assert_eq!(input.len(), shape.in_len(), "length of the input");
        let geometry = Geometry::new(shape, out_size);
        assert_eq!(out.len(), shape.out_len(), "length of the output");
        assert!(epilogue.bias.is_none_or(|b| b.len() == shape.out_channels), "length of the bias");
        assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "length of the residual");
        let padded = match &self.form {
            Form::Dense(p) => p.padded(),
            Form::Depth(p) => p.padded(),
        };
        let body = RealBody {
            isa: self.isa,
            input,
            out: Out::new(out),
            channels: shape.out_channels,
            bias: epilogue.bias.map(|bias| match &self.form {
                Form::Dense(p) => lined(bias, p.channels, padded),
                Form::Depth(p) => lined(bias, p.channels, padded),
            }),
            epilogue,
            bounds: epilogue.activation.bounds(),
        };
        match &self.form {
            Form::Dense(panels) => run(cpu.pool(), panels, geometry, &body),
            Form::Depth(panels) => depth::run(cpu.pool(), panels, &geometry, &body),
        }
    }
}

/// Values of each output channel, those of each group of `channels` filled up to `padded`.
pub(super) fn lined<T: Copy + Default>(values: &[T], channels: usize, padded: usize) -> Vec<T> {
    let mut lined = vec![T::default(); values.len() / channels.max(1) * padded];
    for (to, from) in lined.chunks_exact_mut(padded).zip(values.chunks_exact(channels)) {
        to[..channels].copy_from_slice(from);
    }
    lined
}

struct RealBody<'a> {
    isa: Isa,
    input: &'a [f32],
    out: Out<'a, f32>,
    channels: usize,
    bias: Option<Vec<f32>>,
    epilogue: &'a Epilogue<'a>,
    bounds: Option<[f32; 2]>,
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

    fn finish(&self, block: &Block) {
        wide(self.isa, Finish { body: self, block });
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

struct Finish<'a> {
    body: &'a RealBody<'a>,
    block: &'a Block<'a>,
}

impl Loops for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Finish { body, block } = self;
        let bias = body.bias.as_deref().map(|bias| &bias[block.padded..][..block.width]);
        let bounds = body.bounds.unwrap_or([f32::NEG_INFINITY, f32::INFINITY]);
        for (sums, pixel) in as_reals(block.sums).chunks_exact(block.width).zip(block.pixels.iter()) {
            let at = pixel * body.channels + block.channel;
            // SAFETY: a task's pixels and channels are its own.
            let out = unsafe { body.out.slice(at, block.count) };
            let residual = body.epilogue.residual.map(|residual| &residual[at..][..block.count]);
            put(out, &Real { sums, bias, residual, bounds });
        }
    }
}

struct Real<'a> {
    sums: &'a [f32],
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    bounds: [f32; 2],
}

impl Piece<f32> for Real<'_> {
    #[inline(always)]
    fn make<const N: usize>(&self, start: usize) -> [f32; N] {
        let mut out = piece::<f32, N>(self.sums, start);
        for more in [self.bias, self.residual].into_iter().flatten() {
            let more = piece::<f32, N>(more, start);
            for i in 0..N {
                out[i] += more[i];
            }
        }
        for out in &mut out {
            *out = bounded(*out, self.bounds);
        }
        out
    }
}

/// The `N` values from `start` on.
#[inline(always)]
pub(super) fn piece<T: Copy, const N: usize>(from: &[T], start: usize) -> [T; N] {
    match from[start..].first_chunk() {
        Some(piece) => *piece,
        None => panic!("a piece out of range"),
    }
}

/// What makes the outputs of a pixel. (A trait, since closures are not compiled for the instruction set of the
/// function they stand in.)
pub(super) trait Piece<T> {
    /// The `N` outputs from `start` on.
    fn make<const N: usize>(&self, start: usize) -> [T; N];
}

/// Makes `out`, sixteen at a time as long as possible.
#[inline(always)]
pub(super) fn put<T: Copy>(out: &mut [T], maker: &impl Piece<T>) {
    let mut start = 0;
    let (long, rest) = out.as_chunks_mut::<16>();
    for to in long {
        *to = maker.make(start);
        start += 16;
    }
    let (short, rest) = rest.as_chunks_mut::<4>();
    for to in short {
        *to = maker.make(start);
        start += 4;
    }
    for to in rest {
        [*to] = maker.make(start);
        start += 1;
    }
}
