//! Cuts a convolution into tasks and runs them.

use super::ConvShape;
use super::tile::{ROWS, SUMS, Step, Tile, Words};
use crate::wide::{Loops, wide};
use crate::{Buf, Isa, Pool};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

/// Weights in the order in which tiles read them: group, panel of two vectors of output channels (one in the last
/// panel, when that is enough), tap, unit, channel. A unit is an input channel, or as many as a word holds.
pub(super) struct Panels {
    words: Buf,
    pub kind: Words,
    tile: &'static Tile,
    pub groups: usize,
    /// Output channels of a group.
    pub channels: usize,
    /// Input channels of a group.
    pub inputs: usize,
    taps: usize,
}

impl Panels {
    /// Packs `weight(output channel, tap, input channel)`, as the bits of a lane of a word; the output channel is
    /// counted over all groups.
    pub fn new(
        tile: &'static Tile,
        kind: Words,
        groups: usize,
        [channels, inputs, taps]: [usize; 3],
        weight: impl Fn(usize, usize, usize) -> u32,
    ) -> Panels {
        let mut panels = Panels { words: Buf::zeroed(0), kind, tile, groups, channels, inputs, taps };
        let units = inputs.div_ceil(kind.lanes());
        let mut words = Buf::zeroed(groups * panels.padded() * taps * units * 4);
        let mut to = words_mut(&mut words).iter_mut();
        let bits = 32 / kind.lanes();
        for group in 0..groups {
            for panel in panels.panels() {
                for tap in 0..taps {
                    for unit in 0..units {
                        for channel in panel.clone() {
                            let Some(to) = to.next() else { continue };
                            for lane in (0..kind.lanes()).take_while(|_| channel < channels) {
                                let input = unit * kind.lanes() + lane;
                                if input < inputs {
                                    *to |= weight(group * channels + channel, tap, input) << (lane * bits);
                                }
                            }
                        }
                    }
                }
            }
        }
        panels.words = words;
        panels
    }

    /// Output channels of a group, filled up to whole vectors.
    pub fn padded(&self) -> usize {
        self.channels.next_multiple_of(self.tile.lanes)
    }

    /// The channels of each panel of a group, with those that fill it up.
    fn panels(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (width, padded) = (2 * self.tile.lanes, self.padded());
        (0..padded).step_by(width).map(move |start| start..padded.min(start + width))
    }

    fn units(&self) -> usize {
        self.inputs.div_ceil(self.kind.lanes())
    }

    /// The weights from the panel that starts with this channel on.
    fn part(&self, group: usize, channel: usize) -> *const u32 {
        words(&self.words)[(group * self.padded() + channel) * self.taps * self.units()..].as_ptr()
    }
}

/// Pixels of the output, counted over all images, that follow each other at equal distances.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    pub first: usize,
    pub step: usize,
    pub count: usize,
}

impl Pixels {
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.count).map(move |i| self.first + i * self.step)
    }
}

/// A rectangle of sums, row by row: `width` of them for each pixel, of the output channels from `channel` on, of
/// which `count` exist; `padded` is `channel` when the channels of each group fill whole vectors.
pub(super) struct Block<'a> {
    pub sums: &'a [u32],
    pub width: usize,
    pub pixels: Pixels,
    pub channel: usize,
    pub padded: usize,
    pub count: usize,
}

/// How a format reads its input and writes its output.
pub(super) trait Body: Sync {
    /// The input, as bytes.
    fn input(&self) -> &[u8];
    /// Bytes of a channel of a pixel of the input.
    fn element(&self) -> usize;
    /// Can the tiles read the input as it is?
    fn is_words(&self) -> bool;
    /// The word outside of the image.
    fn pad(&self) -> u32;
    /// Brings pixels of `channels` elements into words: `to` has `pixel` bytes for each, which may be more.
    fn copy(&self, from: &[u8], channels: usize, to: &mut [u8], pixel: usize);
    /// The instruction set of the tiles.
    fn isa(&self) -> Isa;
    /// Takes finished sums. Every output comes exactly once. To be inlined, for the instruction set's sake.
    fn finish(&self, block: &Block);
    /// Called when these channels of these pixels are all finished.
    fn after(&self, pixels: Pixels, channels: Range<usize>);
}

/// Where the outputs of a convolution lie in an image of the output.
#[derive(Clone, Copy)]
pub(super) struct Raster {
    pub first: [usize; 2],
    pub step: [usize; 2],
    pub size: [usize; 2],
}

impl Raster {
    pub fn whole(size: [usize; 2]) -> Raster {
        Raster { first: [0, 0], step: [1, 1], size }
    }
}

/// What a run needs to know of the sizes. Padding may be negative, and outputs are `out_size` whatever the input
/// has: what lies outside of the input is padding.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub batch: usize,
    pub in_size: [usize; 2],
    pub in_channels: usize,
    pub out_size: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub pad: [isize; 2],
    pub raster: Raster,
}

impl Geometry {
    pub fn new(shape: &ConvShape, out_size: [usize; 2]) -> Geometry {
        Geometry {
            batch: shape.batch,
            in_size: shape.in_size,
            in_channels: shape.in_channels,
            out_size,
            kernel: shape.kernel,
            stride: shape.stride,
            dilation: shape.dilation,
            pad: shape.pad_begin.map(|p| p as isize),
            raster: Raster::whole(out_size),
        }
    }

    /// All pixels of all images as one long row, when each output sees exactly the input above it.
    fn flat(self) -> Geometry {
        let same = self.in_size == self.out_size && self.raster.size == self.out_size;
        if !same || self.kernel != [1, 1] || self.stride != [1, 1] || self.pad != [0, 0] {
            return self;
        }
        let size = [1, self.batch * self.in_size[0] * self.in_size[1]];
        Geometry { batch: 1, in_size: size, out_size: size, raster: Raster::whole(size), ..self }
    }

    /// Inputs along an axis that `len` outputs see.
    pub fn extent(&self, axis: usize, len: usize) -> usize {
        (len - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Does an output see anything outside of the input?
    fn is_padded(&self) -> bool {
        (0..2).any(|axis| {
            let end = self.extent(axis, self.out_size[axis]) as isize - self.pad[axis];
            self.pad[axis] > 0 || end > self.in_size[axis] as isize
        })
    }

    /// Pixels of the output from this one of an image on, along a row.
    pub fn pixels(&self, image: usize, y: usize, x: usize, count: usize) -> Pixels {
        let Raster { first, step, size } = self.raster;
        let row = image * size[0] + first[0] + y * step[0];
        Pixels { first: row * size[1] + first[1] + x * step[1], step: step[1], count }
    }
}

/// Bytes of the input that a task reads; they stay in the second-level cache while all panels run over them.
const TASK_BYTES: usize = 192 << 10;
/// Multiply-adds from which on a task is worth a thread.
const TASK_MACS: usize = 1 << 16;

/// Sizes of a task.
struct Cut {
    rows: usize,
    cols: usize,
    /// Panels of a group; all of them when there are several groups.
    panels: usize,
}

impl Cut {
    fn new(panels: &Panels, g: &Geometry, pixel: usize, threads: usize) -> Cut {
        let [height, width] = g.out_size;
        let tile = panels.tile.wide.len();
        let most = TASK_BYTES / (pixel * g.stride[0] * g.stride[1]).max(1);
        let mut cols = width.div_ceil(width.div_ceil(most.max(4 * tile))).next_multiple_of(tile).min(width);
        let mut rows = (most / cols).clamp(1, height);
        rows = height.div_ceil(height.div_ceil(rows));
        let tasks = |rows: usize, cols: usize| g.batch * height.div_ceil(rows) * width.div_ceil(cols);
        let each = (panels.taps * g.in_channels).saturating_mul(panels.padded());
        let macs = each.saturating_mul(g.batch * height * width);
        let want = if threads > 1 { (macs / TASK_MACS).clamp(1, 4 * threads) } else { 1 };
        let all = panels.padded().div_ceil(2 * panels.tile.lanes);
        // Where there are more weights than pixels, each thread had better read only some of the weights.
        let weights = panels.taps * panels.units() * panels.padded() * 4;
        let is_deep = panels.groups == 1 && weights > g.in_size[0] * g.in_size[1] * pixel;
        let mut parts = if is_deep { want.min(all) } else { 1 };
        let want = want.div_ceil(parts);
        if tasks(rows, cols) < want {
            if height > 1 {
                rows = height.div_ceil(want.div_ceil(g.batch * width.div_ceil(cols))).max(1);
            } else {
                cols = width.div_ceil(want.div_ceil(g.batch)).next_multiple_of(tile).min(width);
            }
            parts *= want.div_ceil(tasks(rows, cols));
        }
        let panels = if panels.groups > 1 { all } else { all.div_ceil(parts.min(all)) };
        Cut { rows, cols, panels }
    }
}

/// Where a task's pixels lie in memory.
struct Image {
    start: *const u8,
    /// Bytes from one row, and from one pixel, to the next.
    pitch: usize,
    pixel: usize,
}

/// Computes the convolution: every output of every channel passes through `body.finish` exactly once.
pub(super) fn run(pool: &Pool, panels: &Panels, geometry: Geometry, body: &impl Body) {
    let g = &geometry.flat();
    let [height, width] = g.out_size;
    if g.batch * height * width == 0 {
        return;
    }
    let whole = panels.inputs == panels.units() * panels.kind.lanes();
    let in_pixel = g.in_channels * body.element();
    // Rows of a tile that lie whole pages apart would all compete for the same few lines of the cache.
    let is_page = g.kernel == [1, 1] && in_pixel.is_multiple_of(2048);
    // Without channels there is nothing to read.
    let is_blank = panels.inputs == 0;
    let in_place = body.is_words() && !g.is_padded() && (whole || panels.kind == Words::Real) && !is_page;
    let pixel = match () {
        _ if in_place => in_pixel,
        _ if panels.groups > 1 => g.in_channels * 4 / panels.kind.lanes(),
        _ => panels.units() * 4 + if is_page { 64 } else { 0 },
    };
    let cut = Cut::new(panels, g, pixel, pool.threads());
    let all: Vec<Range<usize>> = panels.panels().collect();
    let chunks: Vec<&[Range<usize>]> = all.chunks(cut.panels).collect();
    let over = [g.batch, height.div_ceil(cut.rows), width.div_ceil(cut.cols), chunks.len()];
    pool.run(over.iter().product(), |task| {
        let chunk = chunks[task % over[3]];
        let x = task / over[3] % over[2] * cut.cols;
        let y = task / over[3] / over[2] % over[1] * cut.rows;
        let image = task / over[3] / over[2] / over[1];
        let view = View { image, y, x, rows: cut.rows.min(height - y), cols: cut.cols.min(width - x) };
        if is_blank {
            let image = Image { start: std::ptr::null(), pitch: 0, pixel: 0 };
            return wide(body.isa(), Task { panels, g, body, view: &view, chunk, image });
        }
        if in_place {
            let at = |axis: usize, first: usize| first * g.stride[axis] + (-g.pad[axis]) as usize;
            let row = image * g.in_size[0] + at(0, y);
            let start = body.input()[(row * g.in_size[1] + at(1, x)) * pixel..].as_ptr();
            let image = Image { start, pitch: g.in_size[1] * pixel, pixel };
            return wide(body.isa(), Task { panels, g, body, view: &view, chunk, image });
        }
        let size = [g.extent(0, view.rows), g.extent(1, view.cols)];
        // A word read at the last byte reaches three bytes further.
        let len = size[0] * size[1] * pixel + 4;
        with_scratch(len.div_ceil(4), |scratch| {
            stage(g, body, &view, size, pixel, scratch);
            let start = scratch.as_ptr().cast();
            let image = Image { start, pitch: size[1] * pixel, pixel };
            wide(body.isa(), Task { panels, g, body, view: &view, chunk, image });
        });
    });
}

/// A rectangle of one image's output.
pub(super) struct View {
    pub image: usize,
    pub y: usize,
    pub x: usize,
    pub rows: usize,
    pub cols: usize,
}

/// Copies the part of the input that `view` sees, of `size` pixels with its padding, into words.
fn stage(g: &Geometry, body: &impl Body, view: &View, size: [usize; 2], pixel: usize, to: &mut [u32]) {
    let (ys, y) = inside(g.in_size[0], 1, g.pad[0], view.y * g.stride[0], 0, size[0]);
    let (xs, x) = inside(g.in_size[1], 1, g.pad[1], view.x * g.stride[1], 0, size[1]);
    let pad = body.pad();
    let pitch = size[1] * pixel;
    let in_pixel = g.in_channels * body.element();
    let to = bytes_mut(to);
    let blank = |to: &mut [u8]| fill(to, pad);
    blank(&mut to[..ys.start * pitch]);
    let end = size[0] * pitch;
    for row in ys.clone() {
        let to = &mut to[row * pitch..][..pitch];
        let (before, to) = to.split_at_mut(xs.start * pixel);
        let (to, after) = to.split_at_mut(xs.len() * pixel);
        blank(before);
        let from = ((view.image * g.in_size[0] + y + row - ys.start) * g.in_size[1] + x) * in_pixel;
        body.copy(&body.input()[from..][..xs.len() * in_pixel], g.in_channels, to, pixel);
        blank(after);
    }
    blank(&mut to[ys.end * pitch..end]);
}

/// Fills `to` with the bytes of a word, from its first on.
fn fill(to: &mut [u8], word: u32) {
    let bytes = word.to_le_bytes();
    match bytes.iter().all(|&b| b == bytes[0]) {
        true => to.fill(bytes[0]),
        false => to.iter_mut().zip(bytes.iter().cycle()).for_each(|(to, &byte)| *to = byte),
    }
}

/// Some panels of a rectangle of the output.
struct Task<'a, B> {
    panels: &'a Panels,
    g: &'a Geometry,
    body: &'a B,
    view: &'a View,
    chunk: &'a [Range<usize>],
    image: Image,
}

impl<B: Body> Loops for Task<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Task { panels, g, body, view, chunk, image } = self;
        let units = panels.units();
        let [height, width] = g.kernel;
        let (runs, words): (Vec<usize>, usize) = match g.dilation[1] == 1 && image.pixel == units * 4 {
            true => ((0..height).map(|y| y * g.dilation[0] * image.pitch).collect(), width * units),
            false => {
                let at =
                    |y: usize, x: usize| y * g.dilation[0] * image.pitch + x * g.dilation[1] * image.pixel;
                ((0..height).flat_map(|y| (0..width).map(move |x| at(y, x))).collect(), units)
            }
        };
        let mut sums = Sums([0; SUMS]);
        for group in 0..panels.groups {
            let start = image.start.wrapping_add(group * panels.inputs * 4 / panels.kind.lanes());
            for panel in chunk {
                let weights = panels.part(group, panel.start);
                let tiles =
                    if panel.len() > panels.tile.lanes { panels.tile.wide } else { panels.tile.narrow };
                let parts = view.cols.div_ceil(tiles.len().min(ROWS));
                for y in 0..view.rows {
                    for part in 0..parts {
                        let x = part * view.cols / parts;
                        let count = (part + 1) * view.cols / parts - x;
                        let at = y * g.stride[0] * image.pitch + x * g.stride[1] * image.pixel;
                        let step = Step {
                            image: start.wrapping_add(at),
                            pixel: g.stride[1] * image.pixel,
                            runs: &runs,
                            words,
                            weights,
                            sums: sums.0.as_mut_ptr(),
                        };
                        // SAFETY: the tile was selected for an available instruction set. The last word is that of the
                        // last tap of the last pixel, which lies in the input, or in the staged part of it, whose words
                        // may reach three bytes past its end. The panel has `panel.len()` weights for each word, and
                        // `sums` has room for the largest tile.
                        unsafe { tiles[count - 1](&step) };
                        body.finish(&Block {
                            sums: &sums.0[..count * panel.len()],
                            width: panel.len(),
                            pixels: g.pixels(view.image, view.y + y, view.x + x, count),
                            channel: group * panels.channels + panel.start,
                            padded: group * panels.padded() + panel.start,
                            count: panels.channels.min(panel.end) - panel.start,
                        });
                    }
                }
            }
        }
        let channels = match (chunk.first(), chunk.last()) {
            (Some(first), Some(last)) if panels.groups == 1 => first.start..panels.channels.min(last.end),
            _ => 0..panels.groups * panels.channels,
        };
        for y in 0..view.rows {
            body.after(g.pixels(view.image, view.y + y, view.x, view.cols), channels.clone());
        }
    }
}

/// Sums of a tile.
#[repr(align(64))]
pub(super) struct Sums(pub [u32; SUMS]);

/// Calls `work` with `len` words of this thread, which hold anything.
pub(super) fn with_scratch(len: usize, work: impl FnOnce(&mut [u32])) {
    thread_local! {
        static SCRATCH: Cell<Option<Buf>> = const { Cell::new(None) };
    }
    SCRATCH.with(|cell| {
        let mut scratch = cell.take().unwrap_or_else(|| Buf::zeroed(0));
        if scratch.len() < len * 4 {
            scratch = Buf::zeroed(len * 4);
        }
        work(&mut words_mut(&mut scratch)[..len]);
        cell.set(Some(scratch));
    })
}

pub(super) fn words(buf: &Buf) -> &[u32] {
    let bytes = buf.as_ref();
    // SAFETY: a `Buf` is aligned to 64 bytes, and any four bytes are a word.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 4) }
}

pub(super) fn words_mut(buf: &mut Buf) -> &mut [u32] {
    let bytes = buf.as_mut();
    // SAFETY: as in `words`; the slice is unique because `buf` is.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 4) }
}

/// Words as their bytes.
pub(super) fn bytes_mut(words: &mut [u32]) -> &mut [u8] {
    // SAFETY: bytes have no alignment, and any byte is part of a word.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 4) }
}

/// The outputs `first..first + len` of a plane whose pixel lies inside the input, and the pixel of the first.
pub(crate) fn inside(
    size: usize,
    stride: usize,
    pad: isize,
    origin: usize,
    first: usize,
    len: usize,
) -> (std::ops::Range<usize>, usize) {
    let stride = stride as isize;
    let at = first as isize * stride + origin as isize - pad;
    let ceil = |n: isize| if n <= 0 { 0 } else { (n as usize).div_ceil(stride as usize) };
    let begin = ceil(-at).min(len);
    let end = ceil(size as isize - at).clamp(begin, len);
    match begin < end {
        true => (begin..end, (at + begin as isize * stride) as usize),
        false => (0..0, 0),
    }
}

/// An output that tasks write to side by side.
pub(crate) struct Out<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: `Out` gives access to `T`s only through `slice`, whose callers keep the parts apart.
unsafe impl<T: Send> Sync for Out<'_, T> {}

impl<'a, T> Out<'a, T> {
    pub fn new(out: &'a mut [T]) -> Self {
        Out { start: out.as_mut_ptr(), len: out.len(), borrow: PhantomData }
    }

    /// A part of the output.
    ///
    /// # Safety
    /// No two living parts may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "a part of the output lies inside it");
        // SAFETY: inside the borrowed slice; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
