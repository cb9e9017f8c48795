//! Depthwise convolutions: each output channel sees one input channel, through a kernel of 3x3 or 5x5.
//!
//! A plane (or some rows of a large one) is copied once, with its padding, and the kernel slides over the copy.
//! Narrow planes are swept as one long row: the padding between two rows serves both, and the sums of outputs
//! that do not exist are dropped. Wide `f32` planes are swept in blocks of rows, so that a vector of pixels is
//! loaded once for several rows of outputs. Words of several neighbouring 8-bit pixels are read where they
//! stand, from as many offsets (phases) as outputs share a word.

use super::ConvShape;
use super::driver::{Panels, View, inside, with_scratch};
use super::tile::{BLOCK, Run, Slide, Sweep, Words};
use crate::wide::{Loops, gather};
use crate::{Isa, Pool};
use std::ops::Range;

/// Bytes of a copied tile and its sums.
const TILE_BYTES: usize = 32 << 10;
/// Products of a task.
const TASK_MACS: usize = 512 << 10;

/// How planes of one size are copied and swept.
pub(super) struct Plan {
    run: Run,
    batch: usize,
    in_size: [usize; 2],
    out_size: [usize; 2],
    stride: [usize; 2],
    pad: [isize; 2],
    /// Rows of outputs in a tile.
    rows: usize,
    /// Pixels of a line: a padded row, or those of its pixels that share a residue of the stride.
    line: usize,
    /// Where the lines of each padded row begin, in pixels.
    lines: Vec<usize>,
    /// From the line of one residue to that of the next, in pixels.
    residue_step: usize,
    /// For each residue, which pixels of a line lie inside of the input, and the column of the first.
    inside: Vec<(Range<usize>, usize)>,
    /// In bytes, as in [`Sweep`].
    row_offsets: Vec<usize>,
    cols: Vec<usize>,
    block_step: usize,
    phase_step: usize,
    vectors: usize,
    blocks: usize,
    /// As in [`Sweep`].
    pub phases: usize,
    /// As in [`Sweep`].
    pub phase_len: usize,
    row_len: usize,
    plane_words: usize,
}

impl Plan {
    /// A plan, when there are loops for this convolution. A pixel has `bytes` bytes, and a word `packed` of them.
    pub fn new(
        isa: Isa,
        words: Words,
        panels: &Panels,
        shape: &ConvShape,
        [bytes, packed]: [usize; 2],
    ) -> Option<Plan> {
        let kind = [[3, 3], [5, 5]].iter().position(|&k| k == shape.kernel)?;
        let [sy, sx] = shape.stride;
        let real = words == Words::Real;
        let fits = if real { sx <= 2 } else { packed * bytes == 4 && packed % sx == 0 };
        let alone = panels.units == 1
            && panels.tile.rows == 1
            && panels.taps == shape.kernel[0] * shape.kernel[1].div_ceil(packed);
        if !alone || shape.dilation != [1, 1] || sy > 2 || !fits {
            return None;
        }
        let slide = Slide::find(isa, words)?;
        let [height, width] = shape.out_size()?;
        let size = shape.kernel[0];
        let (residues, phases) = if real { (sx, 1) } else { (1, packed / sx) };
        let step = if real { 1 } else { sx };

        let reach = (width - 1) * step + size;
        let before = shape.pad_begin[1];
        let flat_line = match residues {
            1 => (before + shape.in_size[1]).min(reach).max(width * step).max(reach.saturating_sub(before)),
            _ => width + (size - 1) / sx,
        };
        let flat_line = flat_line.next_multiple_of(step);
        let long = ((height - 1) * (flat_line / step) + width).div_ceil(phases).div_ceil(slide.lanes);
        let wide = width.div_ceil(slide.lanes);
        let block_rows = (BLOCK - 1) * sy + size;
        let block_cost = height.div_ceil(BLOCK) * wide * (block_rows * size).max(BLOCK * size * size / 2);
        let blocks = slide.blocks.filter(|_| block_cost < long * size * size);
        let (run, line) = match blocks {
            Some(loops) => (loops[sy - 1][kind], wide * slide.lanes + size / sx + 16),
            None => (slide.rows[kind], flat_line),
        };
        let blocked = blocks.is_some();

        let row_bytes = line * residues * sy * bytes + line / step * 4;
        let most = (TILE_BYTES / row_bytes).max(1);
        let rows = height.div_ceil(height.div_ceil(most));
        let rows = if blocked { rows.next_multiple_of(BLOCK) } else { rows };
        let padded = (rows - 1) * sy + size;
        let per_residue = padded.div_ceil(sy);
        let lines: Vec<usize> = (0..padded)
            .map(|y| if blocked { y * residues * line } else { (y % sy * per_residue + y / sy) * line })
            .collect();
        let residue_step = if blocked { line } else { per_residue * sy * line };
        let row_offsets: Vec<usize> =
            lines[..if blocked { block_rows } else { size }].iter().map(|l| l * bytes).collect();
        let col = |x: usize| if real { x % sx * residue_step + x / sx } else { x * packed };
        let cols: Vec<usize> = (0..size.div_ceil(packed)).map(|x| col(x) * bytes).collect();

        let (count, vectors, row_len) = match blocked {
            true => (rows / BLOCK, wide, wide * slide.lanes),
            false => {
                let outputs = (rows - 1) * (line / step) + width;
                (1, outputs.div_ceil(phases).div_ceil(slide.lanes), line / step)
            }
        };
        let block_step = BLOCK * sy * residues * line * bytes;
        let phase_step = sx * bytes;
        let last = |offsets: &[usize]| offsets.iter().copied().max().unwrap_or(0);
        let read = last(&row_offsets)
            + last(&cols)
            + (count - 1) * block_step
            + (phases - 1) * phase_step
            + vectors * slide.lanes * 4;
        let plane_words = read.max((last(&lines) + residue_step * residues) * bytes).div_ceil(4) + 16;
        let phase_len = if blocked { rows * row_len } else { vectors * slide.lanes };
        let inside =
            (0..residues).map(|q| inside(shape.in_size[1], residues, before as isize, q, 0, line)).collect();
        Some(Plan {
            run,
            batch: shape.batch,
            in_size: shape.in_size,
            out_size: [height, width],
            stride: shape.stride,
            pad: shape.pad_begin.map(|p| p as isize),
            rows,
            line,
            lines,
            residue_step,
            inside,
            row_offsets,
            cols,
            block_step,
            phase_step,
            vectors,
            blocks: count,
            phases,
            phase_len,
            row_len,
            plane_words,
        })
    }
}

/// How a format reads planes and writes outputs.
pub(super) trait Body: Sync {
    /// Fills a new copy with padding.
    fn clear(&self, plane: &mut [u32]);
    /// Copies what the outputs from row `y` on see of an input plane, counted over all images.
    fn copy(&self, plane: &mut [u32], plan: &Plan, input: usize, y: usize);
    /// Takes the sums of an output channel, [`Plan::phases`] times [`Plan::phase_len`] of them; sum `i` is the
    /// `i / phases`th of phase `i % phases`. `spare` has as many words.
    fn finish(&self, sums: &[u32], spare: &mut [u32], plan: &Plan, view: &View, channel: usize);
}

/// Computes the convolution: every output passes through `body.finish` exactly once.
pub(super) fn run(pool: &Pool, panels: &Panels, plan: &Plan, body: &impl Body) {
    let [height, width] = plan.out_size;
    let tiles = height.div_ceil(plan.rows);
    let items = plan.batch * panels.groups * tiles;
    let macs = plan.rows * width * panels.taps * panels.channels;
    let share = (TASK_MACS / macs.max(1)).max(1);
    let share = if pool.threads() > 1 { share.min(items.div_ceil(pool.threads())) } else { share }.max(1);
    let sums_len = plan.phases * plan.phase_len;
    pool.run(items.div_ceil(share), |task| {
        with_scratch(plan.plane_words + 2 * sums_len, |scratch| {
            let (plane, sums) = scratch.split_at_mut(plan.plane_words);
            let (sums, spare) = sums.split_at_mut(sums_len);
            body.clear(plane);
            for item in task * share..items.min((task + 1) * share) {
                let (input, y) = (item / tiles, item % tiles * plan.rows);
                let (image, group) = (input / panels.groups, input % panels.groups);
                body.copy(plane, plan, input, y);
                let rows = plan.rows.min(height - y);
                let view = View { image, y, x: 0, rows, cols: width, pitch: plan.row_len };
                for channel in 0..panels.channels {
                    let sweep = Sweep {
                        weights: panels.part(group, channel, 0).as_ptr(),
                        plane: plane.as_ptr().cast(),
                        rows: &plan.row_offsets,
                        cols: &plan.cols,
                        vectors: plan.vectors,
                        blocks: plan.blocks,
                        block_step: plan.block_step,
                        phases: plan.phases,
                        phase_step: plan.phase_step,
                        sums: sums.as_mut_ptr(),
                        row_len: plan.row_len,
                        phase_len: plan.phase_len,
                    };
                    // SAFETY: the loop was found for an available instruction set. A part has the kernel's
                    // words; `plane_words` covers the last vector of the last tap, phase and block, and
                    // `sums_len` the last vector of sums.
                    unsafe { (plan.run)(&sweep) }
                    body.finish(sums, spare, plan, &view, group * panels.channels + channel);
                }
            }
        });
    });
}

/// Copies a tile of a plane, for [`Body::copy`].
pub(super) struct Copy<'a, A, P, F> {
    pub plan: &'a Plan,
    /// The whole input.
    pub input: &'a [A],
    /// The plane, as in [`Body::copy`].
    pub nth: usize,
    pub y: usize,
    pub plane: &'a mut [P],
    pub padding: P,
    /// From a number of the input to a pixel of the copy.
    pub pixel: F,
}

impl<A: std::marker::Copy, P: std::marker::Copy, F: Fn(A) -> P> Loops for Copy<'_, A, P, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Copy { plan, input, nth, y, plane, padding, pixel } = self;
        let [height, width] = plan.in_size;
        let input = &input[nth * height * width..];
        for (residue, (cols, x)) in plan.inside.iter().enumerate() {
            for (row, line) in plan.lines.iter().enumerate() {
                let to = &mut plane[line + residue * plan.residue_step..];
                let at = (y * plan.stride[0] + row) as isize - plan.pad[0];
                if at < 0 || at >= height as isize {
                    to[..plan.line].fill(padding);
                } else if !cols.is_empty() {
                    let from = &input[at as usize * width + x..];
                    gather(&mut to[cols.clone()], [from], plan.inside.len(), |[x]| pixel(x));
                }
            }
        }
    }
}
