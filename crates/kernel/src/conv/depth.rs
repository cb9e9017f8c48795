//! Depthwise convolutions: each channel is convolved with a kernel of its own.
//!
//! Neighbouring channels are neighbouring lanes. In `f32`, taps outside of the image are left out; words that hold
//! several numbers hold those of taps above each other, woven together for one row of outputs at a time.

use super::driver::{Block, Body, Geometry, Sums, inside, with_scratch, words, words_mut};
use super::tile::{DepthStep, SUMS, Tile, Words};
use crate::wide::{Loops, wide};
use crate::{Buf, Pool};
use std::ops::Range;

/// Weights in the order in which tiles read them: rows of the kernel (as many as a word holds together), column of
/// the kernel, channel.
pub(super) struct DepthPanels {
    words: Buf,
    pub kind: Words,
    tile: &'static Tile,
    pub channels: usize,
}

impl DepthPanels {
    /// Packs `weight(channel, tap)`, as the bits of a lane of a word.
    pub fn new(
        tile: &'static Tile,
        kind: Words,
        channels: usize,
        kernel: [usize; 2],
        weight: impl Fn(usize, usize) -> u32,
    ) -> DepthPanels {
        let [height, width] = kernel;
        let bits = 32 / kind.lanes();
        let padded = channels.next_multiple_of(tile.lanes);
        let mut words = Buf::zeroed(height.div_ceil(kind.lanes()) * width * padded * 4);
        let columns = words_mut(&mut words).chunks_exact_mut(padded);
        for (column, to) in columns.enumerate() {
            let (first, x) = (column / width * kind.lanes(), column % width);
            for (channel, to) in to.iter_mut().enumerate().take(channels) {
                for y in first..height.min(first + kind.lanes()) {
                    *to |= weight(channel, y * width + x) << ((y - first) * bits);
                }
            }
        }
        DepthPanels { words, kind, tile, channels }
    }

    /// Channels, filled up to whole vectors.
    pub fn padded(&self) -> usize {
        self.channels.next_multiple_of(self.tile.lanes)
    }

    /// Cuts the channels into vectors, at most `most` together. The last may begin before the one before it ends.
    fn spans(&self, most: usize) -> Vec<Span> {
        let lanes = self.tile.lanes;
        let mut spans = Vec::new();
        let mut start = 0;
        while start < self.channels {
            let left = self.channels - start;
            let vectors = [most, 2, 1].into_iter().find(|&v| v <= most && v * lanes <= left).unwrap_or(1);
            let first = if left < lanes { self.channels.saturating_sub(lanes) } else { start };
            let count = (vectors * lanes).min(self.channels - first);
            spans.push(Span { start: first, vectors, count });
            start = first + count;
        }
        spans
    }
}

/// Channels that are computed together.
struct Span {
    start: usize,
    vectors: usize,
    count: usize,
}

/// What a format does for depthwise convolutions besides [`Body`].
pub(super) trait Weave: Body {
    /// Makes words of the elements that begin at `rows` and stand above each other: `None` is padding.
    fn weave(&self, rows: [Option<usize>; 4], to: &mut [u32]);
}

/// Rows of outputs whose words a task reads while they are near.
const TASK_WORDS: usize = 64 << 10;
/// Multiply-adds from which on a task is worth a thread.
const TASK_MACS: usize = 1 << 15;

/// Computes the convolution: every output passes through `body.finish`.
pub(super) fn run(pool: &Pool, panels: &DepthPanels, g: &Geometry, body: &impl Weave) {
    let [height, width] = g.out_size;
    if g.batch * height * width == 0 {
        return;
    }
    let each = width * panels.channels;
    let macs = each.saturating_mul(g.kernel[0] * g.kernel[1]);
    let parts = match pool.threads() {
        1 => 1,
        threads => {
            (macs.saturating_mul(g.batch * height) / TASK_MACS).clamp(1, 4 * threads).div_ceil(g.batch)
        }
    };
    let rows = (TASK_WORDS / each).max(1).min(height.div_ceil(parts.min(height)));
    let chunks = height.div_ceil(rows);
    let direct = panels.kind == Words::Real && panels.channels >= panels.tile.lanes;
    let spans = [panels.spans(2), panels.spans(panels.tile.depth_row.0)];
    pool.run(g.batch * chunks, |task| {
        let image = task / chunks;
        for y in task % chunks * rows..height.min((task % chunks + 1) * rows) {
            let row = Row { panels, g, body, spans: &spans, image, y };
            if direct {
                wide(body.isa(), Direct(row));
            } else {
                with_scratch(row.woven_len(), |scratch| wide(body.isa(), Woven(row, scratch)));
            }
            body.after(g.pixels(image, y, 0, width), 0..panels.channels);
        }
    });
}

/// A row of outputs.
struct Row<'a, B> {
    panels: &'a DepthPanels,
    g: &'a Geometry,
    body: &'a B,
    spans: &'a [Vec<Span>; 2],
    image: usize,
    y: usize,
}

/// Reads the input where it lies.
struct Direct<'a, B>(Row<'a, B>);

impl<B: Weave> Loops for Direct<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let row = self.0;
        let (g, width) = (row.g, row.g.out_size[1]);
        let last = g.in_size[1] as isize - g.extent(1, 1) as isize + g.pad[1];
        let begin = (g.pad[1].max(0) as usize).div_ceil(g.stride[1]).min(width);
        let end = if last < 0 { 0 } else { last as usize / g.stride[1] + 1 }.clamp(begin, width);
        let mut taps = Vec::with_capacity(g.kernel[0] * g.kernel[1]);
        let mut x = 0;
        // Outputs that see the same taps, one by one at the borders.
        while x < width {
            let xs = if (begin..end).contains(&x) { x..end } else { x..x + 1 };
            let image = row.see(xs.start, &mut taps);
            x = xs.end;
            // SAFETY: every tap of every pixel lies in the input, with all its channels; an address is taken only
            // of what is read.
            unsafe { row.sums(xs, image, row.panels.channels, &taps) }
        }
    }
}

/// Weaves the rows of the input that the kernel sees into words.
struct Woven<'a, B>(Row<'a, B>, &'a mut [u32]);

impl<B: Weave> Loops for Woven<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Woven(row, scratch) = self;
        let (g, channels, lanes) = (row.g, row.panels.channels, row.panels.kind.lanes());
        let (pixel, size) = (row.woven_pixel(), g.extent(1, g.out_size[1]));
        let (xs, x) = inside(g.in_size[1], 1, g.pad[1], 0, 0, size);
        for (nth, to) in scratch.chunks_exact_mut(size * pixel).enumerate() {
            let mut rows = [None; 4];
            for (lane, to) in rows.iter_mut().enumerate().take(lanes) {
                *to = row.above(nth * lanes + lane).map(|y| row.start(y) + x * channels);
            }
            to[..xs.start * pixel].fill(row.body.pad());
            to[xs.end * pixel..].fill(row.body.pad());
            let to = &mut to[xs.start * pixel..xs.end * pixel];
            if pixel == channels {
                row.body.weave(rows, to);
            } else {
                for (i, to) in to.chunks_exact_mut(pixel).enumerate() {
                    row.body.weave(rows.map(|row| row.map(|row| row + i * channels)), &mut to[..channels]);
                }
            }
        }
        let count = g.kernel[0].div_ceil(lanes) * g.kernel[1];
        let mut taps = Vec::with_capacity(count);
        for tap in 0..count {
            let (nth, x) = (tap / g.kernel[1], tap % g.kernel[1]);
            taps.push(((nth * size + x * g.dilation[1]) * pixel, tap * row.panels.padded()));
        }
        // SAFETY: the last tap of the last pixel is the last pixel of the scratch, which is at least a vector wide.
        unsafe { row.sums(0..g.out_size[1], scratch.as_ptr(), pixel, &taps) }
    }
}

impl<B: Weave> Row<'_, B> {
    /// The row of the input that a row of the kernel sees.
    #[inline(always)]
    fn above(&self, tap: usize) -> Option<usize> {
        let g = self.g;
        let y = (self.y * g.stride[0] + tap * g.dilation[0]) as isize - g.pad[0];
        (tap < g.kernel[0] && (0..g.in_size[0] as isize).contains(&y)).then_some(y as usize)
    }

    /// Element of the input where a row begins.
    #[inline(always)]
    fn start(&self, y: usize) -> usize {
        (self.image * self.g.in_size[0] + y) * self.g.in_size[1] * self.panels.channels
    }

    /// Words from one woven pixel to the next.
    fn woven_pixel(&self) -> usize {
        self.panels.channels.max(self.panels.tile.lanes)
    }

    /// Words of all that the row sees.
    fn woven_len(&self) -> usize {
        let size = self.g.extent(1, self.g.out_size[1]);
        self.g.kernel[0].div_ceil(self.panels.kind.lanes()) * size * self.woven_pixel()
    }

    /// The taps that lie inside the image for output `x`, from the first pixel that they see.
    fn see(&self, x: usize, taps: &mut Vec<(usize, usize)>) -> *const u32 {
        let (g, channels) = (self.g, self.panels.channels);
        let left = (x * g.stride[1]) as isize - g.pad[1];
        let seen = |tap: usize| left + (tap * g.dilation[1]) as isize;
        let first = (0..g.kernel[1]).find(|&tap| seen(tap) >= 0).unwrap_or(g.kernel[1]);
        let at = seen(first).max(0) as usize;
        taps.clear();
        for tap_y in 0..g.kernel[0] {
            let Some(y) = self.above(tap_y) else { continue };
            for tap in (first..g.kernel[1]).filter(|&tap| seen(tap) < g.in_size[1] as isize) {
                let image = self.start(y) + (tap - first) * g.dilation[1] * channels;
                taps.push((image, (tap_y * g.kernel[1] + tap) * self.panels.padded()));
            }
        }
        self.body.input().as_ptr().cast::<u32>().wrapping_add(at * channels)
    }

    /// Computes the outputs `xs`, of which the first sees the pixel at `image`.
    ///
    /// # Safety
    /// All taps of all these outputs can be read.
    #[inline(always)]
    unsafe fn sums(&self, xs: Range<usize>, image: *const u32, pixel: usize, taps: &[(usize, usize)]) {
        let (g, tile) = (self.g, self.panels.tile);
        let weights = words(&self.panels.words);
        let mut sums = Sums([0; SUMS]);
        let spans = if xs.len() == 1 { &self.spans[1] } else { &self.spans[0] };
        let parts = xs.len().div_ceil(tile.depth_wide.len());
        let pixel = g.stride[1] * pixel;
        for part in 0..parts {
            let x = part * xs.len() / parts;
            let rows = (part + 1) * xs.len() / parts - x;
            for span in spans {
                let step = DepthStep {
                    image: image.wrapping_add(x * pixel + span.start),
                    pixel,
                    taps,
                    weights: weights[span.start..].as_ptr(),
                    sums: sums.0.as_mut_ptr(),
                };
                let run = match span.vectors {
                    1 => tile.depth_narrow[rows - 1],
                    2 => tile.depth_wide[rows - 1],
                    _ => tile.depth_row.1,
                };
                // SAFETY: the tile was selected for an available instruction set; the caller's promise holds for
                // the channels of the span, which are a whole number of vectors; there are as many weights for
                // each tap.
                unsafe { run(&step) };
                let width = span.vectors * tile.lanes;
                self.body.finish(&Block {
                    sums: &sums.0[..rows * width],
                    width,
                    pixels: g.pixels(self.image, self.y, xs.start + x, rows),
                    channel: span.start,
                    padded: span.start,
                    count: span.count,
                });
            }
        }
    }
}
