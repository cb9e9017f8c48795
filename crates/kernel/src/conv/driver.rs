//! Cuts a convolution into tasks and runs them.

use super::depth::Plan;
use super::field::Field;
use super::tile::{Step, Tile};
use crate::{Buf, Pool};
use std::cell::Cell;
use std::marker::PhantomData;

/// Weights in the order in which tiles read them: group, block of units, panel of `tile.rows` output
/// channels, tap, unit, channel of the panel. A unit is an input channel, or a pack of them in one word.
pub(super) struct Panels {
    words: Buf,
    pub tile: Tile,
    pub groups: usize,
    /// Output channels of a group.
    pub channels: usize,
    /// Units of a group.
    pub units: usize,
    pub taps: usize,
    block: usize,
}

impl Panels {
    /// Packs `word(output channel, unit, tap)`, the channel counted over all groups. `height` is the number
    /// of rows of the kernel.
    pub fn new(
        tile: Tile,
        groups: usize,
        [channels, units, taps, height]: [usize; 4],
        word: impl Fn(usize, usize, usize) -> u32,
    ) -> Panels {
        let most = (128 / height.max(1)).max(4);
        let block = units.div_ceil(units.div_ceil(most).max(1)).max(1);
        let panels = channels.div_ceil(tile.rows);
        let mut words = Buf::zeroed(groups * panels * tile.rows * units * taps * 4);
        let mut to = words_mut(&mut words).iter_mut();
        for group in 0..groups {
            for start in (0..units).step_by(block) {
                for panel in 0..panels {
                    for tap in 0..taps {
                        for unit in start..units.min(start + block) {
                            for row in 0..tile.rows {
                                let channel = panel * tile.rows + row;
                                let Some(to) = to.next() else { continue };
                                if channel < channels {
                                    *to = word(group * channels + channel, unit, tap);
                                }
                            }
                        }
                    }
                }
            }
        }
        Panels { words, tile, groups, channels, units, taps, block }
    }

    fn panels(&self) -> usize {
        self.channels.div_ceil(self.tile.rows)
    }

    /// The weights of one panel and block.
    pub fn part(&self, group: usize, panel: usize, unit: usize) -> &[u32] {
        let column = self.taps * self.tile.rows;
        let len = self.block.min(self.units - unit) * column;
        let start = (group * self.units + unit) * self.panels() * column + panel * len;
        &words(&self.words)[start..][..len]
    }
}

/// The sizes that a run adds to the packed weights.
pub(super) struct Geometry {
    pub batch: usize,
    pub in_size: [usize; 2],
    pub out_size: [usize; 2],
    pub stride: [usize; 2],
    /// Where the first output's first tap lies, as pixels before the input.
    pub pad: [isize; 2],
    pub field: Field,
    /// How to compute it without the driver, where that is faster.
    pub direct: Option<Plan>,
}

/// A rectangle of one image's output.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub image: usize,
    pub y: usize,
    pub x: usize,
    pub rows: usize,
    pub cols: usize,
    /// Sums from one row to the next.
    pub pitch: usize,
}

/// The part of a plane that lies inside the input.
pub(super) struct Span {
    /// First word of the plane in its unit.
    pub start: usize,
    /// The plane's first pixel, as in [`Field::origins`].
    pub origin: [usize; 2],
    /// Rows of the plane that lie inside, and the input row of the first.
    pub rows: std::ops::Range<usize>,
    pub y: usize,
    /// Columns of the plane that lie inside, and the input column of the first.
    pub cols: std::ops::Range<usize>,
    pub x: usize,
}

/// How a format reads its input and writes its output.
pub(super) trait Body: Sync {
    /// The word outside of the input.
    fn pad(&self) -> u32;
    /// Writes the inside of a unit's planes.
    fn fill(&self, planes: &mut [u32], view: &View, group: usize, unit: usize, spans: &[Span]);
    /// Takes the sums of an output channel (counted over all groups): `view.rows` rows of `view.cols`.
    fn finish(&self, sums: &[u32], view: &View, channel: usize);
}

/// Sizes of a task.
struct Cut {
    rows: usize,
    cols: usize,
    panels: usize,
    groups: usize,
}

const PLANE_WORDS: usize = 64 << 10;
const SUM_WORDS: usize = 64 << 10;
const ROW_WORDS: usize = 4 << 10;
const TASK_MACS: usize = 128 << 10;
const LEAST_PIXELS: usize = 192;
/// Planes that the first cache holds while all panels run over them.
const NEAR_WORDS: usize = 8 << 10;

impl Cut {
    fn new(packed: &Panels, geometry: &Geometry, threads: usize) -> Cut {
        let [height, width] = geometry.out_size;
        let margin = geometry.field.margin;
        let sums = packed.panels().max(1) * packed.tile.rows;
        let narrow = packed.units <= packed.block.min(64) && margin == [0, 0] && sums >= 96;
        let (planes_budget, sums_budget) = match packed.tile.rows {
            1 => (ROW_WORDS, ROW_WORDS),
            _ if narrow => (NEAR_WORDS * 3 / 4, usize::MAX),
            _ => (PLANE_WORDS, SUM_WORDS),
        };
        let planes = packed.block.min(packed.units).max(1) * geometry.field.origins.len().max(1);

        let most =
            (planes_budget / planes / (margin[0] + 1)).saturating_sub(margin[1]).min(sums_budget / sums);
        let most = (most / 48 * 48).max(48);
        let mut cols =
            if width <= most { width } else { even(width, width.div_ceil(most)).next_multiple_of(16) };
        let pitch = cols + margin[1];
        let most = (planes_budget / planes / pitch).saturating_sub(margin[0]).min(sums_budget / sums / pitch);
        let mut rows = even(height, height.div_ceil(most.max(1)));

        let want = if threads > 1 { 3 * threads } else { 1 };
        let tiles = |rows: usize, cols: usize| height.div_ceil(rows) * width.div_ceil(cols);
        let others = geometry.batch * packed.groups;
        if others * tiles(rows, cols) < want {
            let more = want.div_ceil(others.max(1));
            let least = LEAST_PIXELS.div_ceil(cols).min(rows);
            rows = even(height, more.max(height.div_ceil(rows))).max(least);
            if height == 1 {
                cols = cols.min(even(width, more).max(LEAST_PIXELS).next_multiple_of(16));
            }
        }
        let tasks = others * tiles(rows, cols);
        let chunks = want.div_ceil(tasks.max(1)).min(packed.panels().div_ceil(2)).max(1);
        let panels = packed.panels().div_ceil(chunks).max(1);

        let macs = (packed.units * packed.taps).saturating_mul(sums * rows * (cols + margin[1])).max(1);
        let groups = (TASK_MACS / macs).min(tasks / want).clamp(1, packed.groups.max(1));
        Cut { rows, cols, panels, groups }
    }
}

/// `len` cut into `parts` nearly equal parts: the longest.
fn even(len: usize, parts: usize) -> usize {
    len.div_ceil(parts.max(1)).max(1)
}

/// Computes the convolution: every output of every channel passes through `body.finish` exactly once.
pub(super) fn run(pool: &Pool, packed: &Panels, geometry: &Geometry, body: &impl Body) {
    let [height, width] = geometry.out_size;
    assert_eq!(packed.taps, geometry.field.taps.len(), "the kernel is the packed one");
    if geometry.batch * packed.groups * packed.channels * height * width == 0 {
        return;
    }
    let cut = Cut::new(packed, geometry, pool.threads());
    let over = [
        geometry.batch,
        packed.groups.div_ceil(cut.groups),
        height.div_ceil(cut.rows),
        width.div_ceil(cut.cols),
        packed.panels().div_ceil(cut.panels),
    ];
    pool.run(over.iter().product(), |task| {
        let mut rest = task;
        let mut next = |n: usize| {
            let digit = rest % n;
            rest /= n;
            digit
        };
        let [panels, x, y, groups, image] = [
            next(over[4]) * cut.panels,
            next(over[3]) * cut.cols,
            next(over[2]) * cut.rows,
            next(over[1]) * cut.groups,
            next(over[0]),
        ];
        let (rows, cols) = (cut.rows.min(height - y), cut.cols.min(width - x));
        let view = View { image, y, x, rows, cols, pitch: cols + geometry.field.margin[1] };
        let panels = panels..packed.panels().min(panels + cut.panels);
        let groups = groups..packed.groups.min(groups + cut.groups);
        task_of(packed, geometry, body, &view, panels, groups);
    });
}

fn task_of(
    packed: &Panels,
    geometry: &Geometry,
    body: &impl Body,
    view: &View,
    panels: std::ops::Range<usize>,
    groups: std::ops::Range<usize>,
) {
    let tile = packed.tile;
    let field = &geometry.field;
    let plane_rows = view.rows + field.margin[0];
    let plane_len = view.pitch * plane_rows;
    let unit_len = odd_lines(plane_len * field.origins.len());
    let pixels = (view.rows - 1) * view.pitch + view.cols;
    let vectors = pixels.div_ceil(tile.lanes);
    let sums_len = odd_lines(vectors * tile.lanes);
    let planes_len = packed.block.min(packed.units) * unit_len + 64;
    let near = planes_len <= NEAR_WORDS;
    let alone = near && packed.units <= packed.block;
    let total = planes_len + if alone { 1 } else { panels.len() } * tile.rows * sums_len;
    with_scratch(total, |scratch| {
        let (planes, sums) = scratch.split_at_mut(planes_len);

        let taps: Vec<usize> =
            field.taps.iter().map(|t| t.plane * plane_len + t.shift[0] * view.pitch + t.shift[1]).collect();
        let spans: Vec<Span> = field
            .origins
            .iter()
            .enumerate()
            .map(|(plane, &origin)| {
                let inside = |axis: usize, first: usize, len: usize| {
                    inside(
                        geometry.in_size[axis],
                        geometry.stride[axis],
                        geometry.pad[axis],
                        origin[axis],
                        first,
                        len,
                    )
                };
                let (rows, y) = inside(0, view.y, plane_rows);
                let (cols, x) = inside(1, view.x, view.pitch);
                Span { start: plane * plane_len, origin, rows, y, cols, x }
            })
            .collect();
        if spans.iter().any(|s| s.rows != (0..plane_rows) || s.cols != (0..view.pitch)) {
            planes.fill(body.pad());
        }

        let parts = vectors.div_ceil(tile.run.len());
        let finish = |sums: &[u32], panel: usize, group: usize| {
            let first = panel * tile.rows;
            for row in 0..tile.rows.min(packed.channels - first) {
                body.finish(&sums[row * sums_len..][..pixels], view, group * packed.channels + first + row);
            }
        };
        for group in groups {
            let mut start = 0;
            while start < packed.units.max(1) {
                let units = packed.block.min(packed.units - start);
                for unit in 0..units {
                    let planes = &mut planes[unit * unit_len..][..unit_len];
                    body.fill(planes, view, group, start + unit, &spans);
                }
                let step = |sums: &mut [u32], panel: usize, part: usize| {
                    let from = part * vectors / parts;
                    let count = (part + 1) * vectors / parts - from;
                    let row = if alone { 0 } else { (panel - panels.start) * tile.rows * sums_len };
                    let step = Step {
                        weights: packed.part(group, panel, start).as_ptr(),
                        planes: planes.as_ptr().wrapping_add(from * tile.lanes),
                        taps: &taps,
                        units,
                        unit_len,
                        sums: sums[row + from * tile.lanes..].as_mut_ptr(),
                        sums_len,
                        first: start == 0,
                    };
                    // SAFETY: the tile was selected for an available instruction set. The part of the weights has
                    // `taps * units * rows` words. The last pixel read is that of the last tap of the last unit:
                    // its plane reaches `pixels` words past the tap, the vectors fewer than 16 words more, and 64
                    // words follow the last unit. The last sum lies `sums_len >= vectors * lanes` words after its
                    // row's start, and each panel has `rows` rows.
                    unsafe { tile.run[count - 1](&step) }
                };
                if near {
                    for panel in panels.clone() {
                        (0..parts).for_each(|part| step(sums, panel, part));
                        if alone {
                            finish(sums, panel, group);
                        }
                    }
                } else {
                    for part in 0..parts {
                        panels.clone().for_each(|panel| step(sums, panel, part));
                    }
                }
                start += packed.block;
            }
            if !alone {
                for (nth, panel) in panels.clone().enumerate() {
                    finish(&sums[nth * tile.rows * sums_len..], panel, group);
                }
            }
        }
    });
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

/// At least `len` words, an odd number of cache lines: rows that far apart do not share cache sets.
fn odd_lines(len: usize) -> usize {
    (len.div_ceil(16) | 1) * 16
}

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

fn words(buf: &Buf) -> &[u32] {
    let bytes = buf.as_ref();
    // SAFETY: a `Buf` is aligned to 64 bytes, and any four bytes are a word.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 4) }
}

fn words_mut(buf: &mut Buf) -> &mut [u32] {
    let bytes = buf.as_mut();
    // SAFETY: as in `words`; the slice is unique because `buf` is.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 4) }
}

/// Sums read as what they are.
pub(super) fn as_reals(sums: &[u32]) -> &[f32] {
    // SAFETY: `f32` and `u32` have the same size and alignment, and any word is an `f32`.
    unsafe { std::slice::from_raw_parts(sums.as_ptr().cast(), sums.len()) }
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
