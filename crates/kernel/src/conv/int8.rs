//! Convolution of 8-bit tensors with exact 32-bit sums.
//!
//! A number `q` stands for `scale * (q - zero)`. Where the processor has a dot product of bytes (VNNI), four
//! input channels share a word, and the input's zero point is taken off afterwards: padding holds the zero
//! point too, so the correction is the same for every pixel of a channel. Elsewhere, and for weights with a
//! zero point that an `i8` cannot absorb, a word holds two 16-bit differences. Where a group has a single
//! input channel, a word holds neighbouring taps of the kernel's row instead of channels. All of them give the
//! same integers.

use super::depth::{self, Plan};
use super::driver::{Body, Geometry, Out, Panels, Span, View, run};
use super::field::Field;
use super::float::per_group;
use super::tile::{Tile, Words};
use super::{Activation, ConvShape, bounded};
use crate::wide::{Loops, gather, wide, zip_rows};
use crate::{Cpu, Isa};

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

/// A tensor of the output's shape that is added to it.
#[derive(Clone, Copy, Debug)]
pub struct ByteResidual<'a> {
    /// Its numbers.
    pub values: Bytes<'a>,
    /// Its zero point.
    pub zero: i32,
    /// Its scale over the output's scale.
    pub multiplier: f32,
}

/// How 32-bit sums become bytes again: `round((sum + bias) * multiplier + residual) + zero`, halves to even,
/// kept within `lo..=hi` and within the output's type.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// `[out_channels]`, in units of input scale times weight scale.
    pub bias: Option<&'a [i32]>,
    /// `[out_channels]`, or one for all: input scale times weight scale over output scale.
    pub multiplier: &'a [f32],
    /// Zero point of the output.
    pub zero: i32,
    /// The least output; the zero point for a fused relu.
    pub lo: i32,
    /// The greatest output.
    pub hi: i32,
    /// Added before rounding.
    pub residual: Option<ByteResidual<'a>>,
}

/// Where the sums go, in NCHW order.
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
    panels: Panels,
    isa: Isa,
    kernel: [usize; 2],
    inputs: usize,
    words: Words,
    /// Taps of a kernel row in a word; 1 where a word holds channels.
    along: usize,
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
        let (inputs, channels) = per_group(shape);
        let [height, width] = shape.kernel;
        let area = height * width;
        assert_eq!(weights.len(), shape.out_channels * inputs * area, "length of the weights");
        assert!(
            zeros.len() < 2 || zeros.len() == shape.out_channels,
            "one zero point, or one for each channel"
        );
        let range = -weights.offset()..256 - weights.offset();
        assert!(zeros.iter().all(|z| range.contains(z)), "zero points lie in the range of the weights");

        let (bytes, flip) = weights.raw();
        let zero = |channel: usize| zeros.get(channel).or(zeros.first()).map_or(0, |z| z + weights.offset());
        let middle = (0..shape.out_channels).all(|c| zeros.is_empty() && flip != 0 || zero(c) == 128);
        let words = match middle && Tile::exists(cpu.isa(), Words::Quad) {
            true => Words::Quad,
            false => Words::Pair,
        };
        let weight = |channel: usize, input: usize, tap: usize| -> i32 {
            let byte = bytes[(channel * inputs + input) * area + tap] ^ flip;
            let zero = if zeros.is_empty() { weights.offset() } else { zero(channel) };
            i32::from(byte) - zero
        };
        let lanes = lanes(words);
        let along = if inputs == 1 && width > 1 { lanes } else { 1 };
        let across = width.div_ceil(along);
        let word = |channel: usize, unit: usize, tap: usize| {
            join(words, |lane| match along {
                1 if unit * lanes + lane < inputs => weight(channel, unit * lanes + lane, tap),
                1 => 0,
                _ if tap % across * along + lane < width => {
                    weight(channel, 0, tap / across * width + tap % across * along + lane)
                }
                _ => 0,
            })
        };
        let units = if along > 1 { 1 } else { inputs.div_ceil(lanes) };
        let tile = Tile::select(cpu.isa(), words, channels);
        let panels = Panels::new(tile, shape.groups, [channels, units, height * across, height], word);
        let total = |channel: usize| {
            (0..inputs * area).fold(0i32, |sum, i| sum.wrapping_add(weight(channel, i / area, i % area)))
        };
        let totals = (0..shape.out_channels).map(total).collect();
        PackedByteConv { panels, isa: cpu.isa(), kernel: shape.kernel, inputs, words, along, totals }
    }

    /// Convolves `input`, whose zero point is `zero`, on the threads of `cpu` and with the instruction set that
    /// the weights were packed for; padding counts as the zero point. `shape` may have another batch, input
    /// size, stride, padding and dilation than before. Sums wrap around at 32 bits.
    ///
    /// # Panics
    /// When `shape` is impossible or does not fit the weights, a slice does not fit `shape`, or `zero` is not
    /// in the range of the input.
    pub fn run(&self, cpu: &Cpu, shape: &ConvShape, input: Bytes, zero: i32, out: ByteOutput) {
        let shape = shape.flat();
        let Some(out_size) = shape.out_size() else { panic!("an impossible convolution: {shape:?}") };
        let (inputs, channels) = per_group(&shape);
        let packed = (self.panels.groups, self.inputs, self.panels.channels, self.kernel);
        assert_eq!(
            packed,
            (shape.groups, inputs, channels, shape.kernel),
            "the shape fits the packed weights"
        );
        assert_eq!(input.len(), shape.in_len(), "length of the input");
        let zero = zero.wrapping_add(input.offset());
        assert!((0..256).contains(&zero), "the zero point lies in the range of the input");
        let sink = Sink::new(out, shape.out_channels, shape.out_len());
        let geometry = Geometry {
            batch: shape.batch,
            in_size: shape.in_size,
            out_size,
            stride: shape.stride,
            pad: shape.pad_begin.map(|p| p as isize),
            field: Field::new(shape.kernel, shape.dilation, shape.stride, out_size, self.along),
            direct: Plan::new(
                self.isa,
                self.words,
                &self.panels,
                &shape,
                [4 / lanes(self.words), self.along],
            ),
        };
        let body =
            ByteBody { packed: self, geometry: &geometry, dilation: shape.dilation[1], input, zero, sink };
        match &geometry.direct {
            Some(plan) => depth::run(cpu.pool(), &self.panels, plan, &body),
            None => run(cpu.pool(), &self.panels, &geometry, &body),
        }
    }
}

fn lanes(words: Words) -> usize {
    if words == Words::Quad { 4 } else { 2 }
}

/// A word of `Quad` or `Pair` from its numbers.
#[inline(always)]
fn join(words: Words, number: impl Fn(usize) -> i32) -> u32 {
    match words {
        Words::Quad => u32::from_le_bytes(std::array::from_fn(|i| number(i) as u8)),
        _ => number(0) as u16 as u32 | (number(1) as u32) << 16,
    }
}

/// [`ByteOutput`], shared by the tasks.
enum Sink<'a> {
    Sums(Out<'a, i32>),
    Real(Out<'a, f32>, &'a [f32], Option<&'a [f32]>, Option<[f32; 2]>),
    U8(Out<'a, u8>, Requant<'a>),
    S8(Out<'a, i8>, Requant<'a>),
}

impl<'a> Sink<'a> {
    fn new(out: ByteOutput<'a>, channels: usize, len: usize) -> Sink<'a> {
        let fits = |n: usize| assert_eq!(n, len, "length of the output");
        let scales = |s: &[f32]| assert!(s.len() == 1 || s.len() == channels, "one scale, or one a channel");
        let requant = |r: &Requant| {
            scales(r.multiplier);
            assert!(r.bias.is_none_or(|b| b.len() == channels), "length of the bias");
            assert!(r.residual.is_none_or(|r| r.values.len() == len), "length of the residual");
        };
        match out {
            ByteOutput::Sums(out) => {
                fits(out.len());
                Sink::Sums(Out::new(out))
            }
            ByteOutput::Real { out, scale, bias, activation } => {
                fits(out.len());
                scales(scale);
                assert!(bias.is_none_or(|b| b.len() == channels), "length of the bias");
                Sink::Real(Out::new(out), scale, bias, activation.bounds())
            }
            ByteOutput::U8(out, r) => {
                fits(out.len());
                requant(&r);
                Sink::U8(Out::new(out), r)
            }
            ByteOutput::S8(out, r) => {
                fits(out.len());
                requant(&r);
                Sink::S8(Out::new(out), r)
            }
        }
    }
}

struct ByteBody<'a> {
    packed: &'a PackedByteConv,
    geometry: &'a Geometry,
    dilation: usize,
    input: Bytes<'a>,
    /// Of the input made unsigned.
    zero: i32,
    sink: Sink<'a>,
}

impl ByteBody<'_> {
    /// What is missing from the sums of an output channel.
    fn correction(&self, channel: usize) -> i32 {
        match self.packed.words {
            Words::Quad => self.packed.totals[channel].wrapping_mul(-self.zero),
            _ => 0,
        }
    }
}

impl Body for ByteBody<'_> {
    fn pad(&self) -> u32 {
        match self.packed.words {
            Words::Quad => join(Words::Quad, |_| self.zero),
            _ => 0,
        }
    }

    fn fill(&self, planes: &mut [u32], view: &View, group: usize, unit: usize, spans: &[Span]) {
        match self.packed.words {
            Words::Quad => wide(self.packed.isa, Fill::<4> { body: self, planes, view, group, unit, spans }),
            _ => wide(self.packed.isa, Fill::<2> { body: self, planes, view, group, unit, spans }),
        }
    }

    fn finish(&self, sums: &[u32], view: &View, channel: usize) {
        wide(self.packed.isa, Finish { body: self, sums, view, channel });
    }
}

impl depth::Body for ByteBody<'_> {
    fn clear(&self, plane: &mut [u32]) {
        plane.fill(self.pad());
    }

    fn copy(&self, plane: &mut [u32], plan: &Plan, nth: usize, y: usize) {
        let (input, flip) = self.input.raw();
        let zero = self.zero;
        match self.packed.words {
            Words::Quad => {
                let plane = parts_mut::<u8>(plane);
                let pixel = |x: u8| x ^ flip;
                wide(self.packed.isa, depth::Copy { plan, input, nth, y, plane, padding: zero as u8, pixel });
            }
            _ => {
                let plane = parts_mut::<i16>(plane);
                let pixel = |x: u8| (i32::from(x ^ flip) - zero) as i16;
                wide(self.packed.isa, depth::Copy { plan, input, nth, y, plane, padding: 0, pixel });
            }
        }
    }

    fn finish(&self, sums: &[u32], spare: &mut [u32], plan: &Plan, view: &View, channel: usize) {
        wide(self.packed.isa, FinishPhases { body: self, sums, spare, plan, view, channel });
    }
}

/// Words as smaller integers.
fn parts_mut<T: Part>(words: &mut [u32]) -> &mut [T] {
    let len = size_of_val(words) / size_of::<T>();
    // SAFETY: the same memory; a `Part` is aligned in any word, and any bits are one.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}

/// An integer no larger than a word.
trait Part {}
impl Part for u8 {}
impl Part for i16 {}

struct Fill<'a, const LANES: usize> {
    body: &'a ByteBody<'a>,
    planes: &'a mut [u32],
    view: &'a View,
    group: usize,
    unit: usize,
    spans: &'a [Span],
}

impl<const LANES: usize> Loops for Fill<'_, LANES> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Fill { body, planes, view, group, unit, spans } = self;
        let [height, width] = body.geometry.in_size;
        let stride = body.geometry.stride;
        let inputs = body.packed.inputs;
        let (bytes, flip) = body.input.raw();
        let first = (view.image * body.packed.panels.groups + group) * inputs;
        let along = body.packed.along > 1;
        let channels: [&[u8]; LANES] = std::array::from_fn(|lane| {
            let channel = if along { 0 } else { (unit * LANES + lane).min(inputs - 1) };
            &bytes[(first + channel) * height * width..][..height * width]
        });
        let zero = body.zero as u8;
        let word = |x: [u8; LANES]| word(x, flip, zero);
        for span in spans {
            let x = (view.x * stride[1]) as isize + span.origin[1] as isize - body.geometry.pad[1];
            let outside = zero ^ flip;
            let mut rows =
                Along { x, stride: stride[1], dilation: body.dilation, outside, line: [outside; 1024] };
            for (nth, row) in span.rows.clone().enumerate() {
                let y = (span.y + nth * stride[0]) * width;
                let to = &mut planes[span.start + row * view.pitch..][..view.pitch];
                if along {
                    rows.spread(to, &channels[0][y..][..width], word);
                    continue;
                }
                let to = &mut to[span.cols.clone()];
                let Some(last) = to.len().checked_sub(1) else { continue };
                let len = last * stride[1] + 1;
                let from: [&[u8]; LANES] = channels.map(|c| &c[y + span.x..][..len]);
                gather(to, from, stride[1], word);
            }
        }
    }
}

/// A word of unsigned bytes (four lanes) or of 16-bit differences from the zero point (two).
#[inline(always)]
fn word<const LANES: usize>(x: [u8; LANES], flip: u8, zero: u8) -> u32 {
    match LANES {
        4 => (0..LANES).fold(0, |word, i| word | u32::from(x[i]) << (8 * i)) ^ u32::from_ne_bytes([flip; 4]),
        _ => join(Words::Pair, |i| i32::from(x[i] ^ flip) - i32::from(zero)),
    }
}

/// The rows of a plane, continued on both sides, as words of pixels at `x`, `x + dilation`, ...; `x` moves by
/// `stride` from word to word.
struct Along {
    x: isize,
    stride: usize,
    dilation: usize,
    outside: u8,
    line: [u8; 1024],
}

impl Along {
    /// Writes the words of one row.
    #[inline(always)]
    fn spread<const LANES: usize>(&mut self, to: &mut [u32], row: &[u8], word: impl Fn([u8; LANES]) -> u32) {
        let size = row.len() as isize;
        let need = (to.len() - 1) * self.stride + (LANES - 1) * self.dilation + 1;
        if need > self.line.len() {
            for (i, to) in to.iter_mut().enumerate() {
                let first = self.x + (i * self.stride) as isize;
                let inside = |x: isize| if x >= 0 && x < size { row[x as usize] } else { self.outside };
                *to = word(std::array::from_fn(|lane| inside(first + (lane * self.dilation) as isize)));
            }
            return;
        }
        let line = &mut self.line[..need];
        let begin = (-self.x).clamp(0, need as isize);
        let end = (size - self.x).clamp(begin, need as isize);
        if begin < end {
            let from = (self.x + begin) as usize;
            let inside = &mut line[begin as usize..end as usize];
            let len = inside.len();
            inside.copy_from_slice(&row[from..from + len]);
        }
        let line = &*line;
        gather(to, std::array::from_fn(|lane| &line[lane * self.dilation..]), self.stride, word);
    }
}

struct Finish<'a> {
    body: &'a ByteBody<'a>,
    sums: &'a [u32],
    view: &'a View,
    channel: usize,
}

impl Loops for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Finish { body, sums, view, channel } = self;
        let size = body.geometry.out_size;
        let plane = (view.image * body.packed.totals.len() + channel) * size[0] * size[1];
        let correction = body.correction(channel);
        // Whole rows lie side by side in the output.
        let whole = view.cols == size[1];
        let (rows, cols) = if whole { (1, view.rows * view.cols) } else { (view.rows, view.cols) };
        let (width, pitch) = (view.cols, view.pitch);
        for row in 0..rows {
            let sums = &sums[row * pitch..];
            let at = plane + (view.y + row) * size[1] + view.x;
            let exact = |s: u32| (s as i32).wrapping_add(correction);
            let bytes = Requantize { sums, pitch, width, correction, channel, at };
            // SAFETY: tasks compute different outputs.
            unsafe {
                match &body.sink {
                    Sink::Sums(out) => {
                        zip_rows(out.slice(at, cols), width, sums, pitch, sums, |s, _| exact(s))
                    }
                    Sink::Real(out, scale, bias, bounds) => {
                        let bias = bias.map_or(0.0, |b| b[channel]);
                        let scale = of(scale, channel);
                        let [lo, hi] = bounds.unwrap_or([f32::NEG_INFINITY, f32::INFINITY]);
                        zip_rows(out.slice(at, cols), width, sums, pitch, sums, |s, _| {
                            bounded(exact(s) as f32 * scale + bias, [lo, hi])
                        });
                    }
                    Sink::U8(out, r) => bytes.write(out.slice(at, cols), r, [0, 255], |x| x as u8),
                    Sink::S8(out, r) => bytes.write(out.slice(at, cols), r, [-128, 127], |x| x as i8),
                }
            }
        }
    }
}

/// [`Finish`] for sums whose neighbours lie in different phases.
struct FinishPhases<'a> {
    body: &'a ByteBody<'a>,
    sums: &'a [u32],
    spare: &'a mut [u32],
    plan: &'a Plan,
    view: &'a View,
    channel: usize,
}

impl Loops for FinishPhases<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let FinishPhases { body, sums, spare, plan, view, channel } = self;
        let size = body.geometry.out_size;
        let at = ((view.image * body.packed.totals.len() + channel) * size[0] + view.y) * size[1];
        let len = view.rows * view.cols;
        let correction = body.correction(channel);
        // SAFETY: tasks compute different outputs.
        unsafe {
            match &body.sink {
                Sink::U8(out, r) if r.residual.is_none() => {
                    let rounding = Rounding::new(r, [0, 255], correction, channel);
                    let bytes = pack(sums, spare, plan, |s| rounding.finish(rounding.scaled(s)) as u8);
                    zip_rows(out.slice(at, len), view.cols, bytes, view.pitch, bytes, |x, _| x);
                }
                Sink::S8(out, r) if r.residual.is_none() => {
                    let rounding = Rounding::new(r, [-128, 127], correction, channel);
                    let bytes = pack(sums, spare, plan, |s| rounding.finish(rounding.scaled(s)) as u8);
                    zip_rows(out.slice(at, len), view.cols, bytes, view.pitch, bytes, |x, _| x as i8);
                }
                _ => {
                    for (phase, sums) in sums.chunks_exact(plan.phase_len).enumerate() {
                        let to = spare[phase..].iter_mut().step_by(plan.phases);
                        to.zip(sums).for_each(|(to, &sum)| *to = sum);
                    }
                    Finish { body, sums: spare, view, channel }.run();
                }
            }
        }
    }
}

/// Makes bytes of sums and brings those of all phases into one row.
#[inline(always)]
fn pack<'a>(sums: &[u32], spare: &'a mut [u32], plan: &Plan, byte: impl Fn(u32) -> u8) -> &'a [u8] {
    let len = plan.phase_len;
    let bytes = parts_mut::<u8>(spare);
    let byte = |s: u32| u32::from(byte(s));
    match plan.phases {
        4 => {
            let [a, b, c, d] = [0, 1, 2, 3].map(|phase| &sums[phase * len..][..len]);
            for (i, to) in bytes.as_chunks_mut::<4>().0[..len].iter_mut().enumerate() {
                let word = byte(a[i]) | byte(b[i]) << 8 | byte(c[i]) << 16 | byte(d[i]) << 24;
                *to = word.to_le_bytes();
            }
        }
        2 => {
            let [a, b] = [0, 1].map(|phase| &sums[phase * len..][..len]);
            for (i, to) in bytes.as_chunks_mut::<2>().0[..len].iter_mut().enumerate() {
                *to = ((byte(a[i]) | byte(b[i]) << 8) as u16).to_le_bytes();
            }
        }
        _ => bytes[..len].iter_mut().zip(sums).for_each(|(to, &s)| *to = byte(s) as u8),
    }
    bytes
}

/// One number for all channels, or that of the channel.
fn of(list: &[f32], channel: usize) -> f32 {
    if list.len() == 1 { list[0] } else { list[channel] }
}

/// Rows of sums of one channel, `pitch` apart, on their way to the bytes at `at`.
struct Requantize<'a> {
    sums: &'a [u32],
    pitch: usize,
    width: usize,
    correction: i32,
    channel: usize,
    at: usize,
}

impl Requantize<'_> {
    #[inline(always)]
    fn write<T>(self, out: &mut [T], requant: &Requant, range: [i32; 2], cast: impl Fn(i32) -> T) {
        let Requantize { sums, pitch, width, correction, channel, at } = self;
        let rounding = Rounding::new(requant, range, correction, channel);
        let Some(residual) = requant.residual else {
            return zip_rows(out, width, sums, pitch, sums, |s, _| cast(rounding.finish(rounding.scaled(s))));
        };
        let (bytes, flip) = residual.values.raw();
        let zero = residual.zero.wrapping_add(residual.values.offset());
        let other = |r: u8| i32::from(r ^ flip).wrapping_sub(zero) as f32 * residual.multiplier;
        zip_rows(out, width, sums, pitch, &bytes[at..], |s, r| {
            cast(rounding.finish(rounding.scaled(s) + other(r)))
        });
    }
}

/// [`Requant`] of one channel, without the residual.
struct Rounding {
    add: i32,
    multiplier: f32,
    zero: f32,
    least: f32,
    most: f32,
}

impl Rounding {
    #[inline(always)]
    fn new(requant: &Requant, range: [i32; 2], correction: i32, channel: usize) -> Rounding {
        let lo = requant.lo.clamp(range[0], range[1]);
        let hi = requant.hi.clamp(lo, range[1]);
        Rounding {
            add: correction.wrapping_add(requant.bias.map_or(0, |b| b[channel])),
            multiplier: of(requant.multiplier, channel),
            zero: requant.zero as f32,
            least: lo as f32,
            most: hi as f32,
        }
    }

    #[inline(always)]
    fn scaled(&self, sum: u32) -> f32 {
        (sum as i32).wrapping_add(self.add) as f32 * self.multiplier
    }

    #[inline(always)]
    fn finish(&self, x: f32) -> i32 {
        let x = x.round_ties_even() + self.zero;
        let x = if x > self.least { x } else { self.least };
        let x = if x < self.most { x } else { self.most };
        // SAFETY: `x` is no NaN (it would have become `least`) and lies between two bytes.
        unsafe { x.to_int_unchecked::<i32>() }
    }
}
