//! Bytes in panels, with their sums.

use super::tile::Layout;
use crate::Pool;
use crate::matmul::View;
use crate::matmul::tile::pack_panel;
use crate::pool::Shares;
use std::ops::Range;

/// A matrix of bytes, signed or not.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    pub(super) view: View<'a, u8>,
    pub(super) signed: bool,
}

impl<'a> From<View<'a, u8>> for Bytes<'a> {
    fn from(view: View<'a, u8>) -> Self {
        Bytes { view, signed: false }
    }
}

impl<'a> From<View<'a, i8>> for Bytes<'a> {
    fn from(view: View<'a, i8>) -> Self {
        let View { data, rows, cols, row_stride, col_stride } = view;
        // SAFETY: the same bytes, seen as unsigned.
        let data = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) };
        Bytes { view: View { data, rows, cols, row_stride, col_stride }, signed: true }
    }
}

impl Bytes<'_> {
    /// What turns these bytes into unsigned ones.
    fn flip_to_unsigned(&self) -> u8 {
        if self.signed { 0x80 } else { 0 }
    }
}

/// Rows or columns that are packed by one task.
fn grain(panel_bytes: usize) -> usize {
    ((1 << 14) / panel_bytes.max(1)).max(1)
}

/// Packs the rows `rows` of a left operand into tight panels of `width` rows, as unsigned bytes (stored as
/// `layout` says); `sums` gets the sums of the unsigned rows.
pub(super) fn pack_left(
    pool: &Pool,
    a: Bytes,
    rows: Range<usize>,
    width: usize,
    layout: Layout,
    dst: &mut [u8],
    sums: &mut [i32],
) {
    let k = a.view.cols;
    let words = k.div_ceil(layout.group());
    assert!(dst.len() >= rows.len() * words * 4 && sums.len() >= rows.len());
    if k == 0 {
        return sums[..rows.len()].fill(0);
    }
    let flip = a.flip_to_unsigned();
    let stored = flip ^ if layout.offset() != 0 { 0x80 } else { 0 };
    let (out, row_sums) = (Shares::new(dst), Shares::new(sums));
    let panels = rows.len().div_ceil(width);
    pool.split(panels, grain(width * words * 4), |range| {
        for panel in range {
            let first = panel * width;
            let count = width.min(rows.len() - first);
            // SAFETY: this panel's part of both slices, whose lengths are checked above, is this task's alone.
            let (dst, sums) = unsafe {
                (
                    std::slice::from_raw_parts_mut(out.at(first * words * 4), count * words * 4),
                    std::slice::from_raw_parts_mut(row_sums.at(first), count),
                )
            };
            for (i, sum) in sums.iter_mut().enumerate() {
                let row = rows.start + first + i;
                *sum = pack_row(a.view, row, [flip, stored], layout, count, &mut dst[i * 4..]);
            }
        }
    });
}

/// Writes one row as words `stride` words apart; returns the sum of the unsigned bytes.
fn pack_row(
    view: View<u8>,
    row: usize,
    [flip, stored]: [u8; 2],
    layout: Layout,
    stride: usize,
    dst: &mut [u8],
) -> i32 {
    let k = view.cols;
    let data = &view.data[row * view.row_stride..];
    let words = dst.chunks_mut(4 * stride);
    if view.col_stride == 1 {
        let bytes = &data[..k];
        match layout {
            Layout::Quads { .. } => {
                let mask = u32::from_ne_bytes([stored; 4]);
                let (quads, rest) = bytes.as_chunks::<4>();
                let last = (!rest.is_empty()).then(|| {
                    let mut quad = [0; 4];
                    quad[..rest.len()].copy_from_slice(rest);
                    quad
                });
                for (word, quad) in words.zip(quads.iter().chain(&last)) {
                    word[..4].copy_from_slice(&(u32::from_ne_bytes(*quad) ^ mask).to_ne_bytes());
                }
            }
            Layout::Pairs => {
                for (word, pair) in words.zip(bytes.chunks(2)) {
                    let second = pair.get(1).map_or(0, |b| b ^ stored);
                    word[..4].copy_from_slice(&[pair[0] ^ stored, 0, second, 0]);
                }
            }
        }
        return bytes.iter().map(|&b| u32::from(b ^ flip)).fold(0, u32::wrapping_add) as i32;
    }
    let group = layout.group();
    let mut sum = 0u32;
    for (word, start) in words.zip((0..k).step_by(group)) {
        let mut bytes = [0; 4];
        for p in start..k.min(start + group) {
            let byte = data[p * view.col_stride];
            sum = sum.wrapping_add(u32::from(byte ^ flip));
            bytes[(p - start) * (4 / group)] = byte ^ stored;
        }
        word[..4].copy_from_slice(&bytes);
    }
    sum as i32
}

/// Bytes of a right panel of `width` columns and `k` rows.
pub(super) fn right_bytes(k: usize, width: usize, layout: Layout) -> usize {
    k.next_multiple_of(layout.group()) * width
}

/// Packs the columns `cols` of a right operand into panels of `width` columns, as signed bytes; `sums` gets the
/// sums of the signed columns, with room for whole panels.
pub(super) fn pack_right(
    pool: &Pool,
    b: Bytes,
    cols: Range<usize>,
    width: usize,
    layout: Layout,
    dst: &mut [u8],
    sums: &mut [i32],
) {
    let size = right_bytes(b.view.rows, width, layout);
    let panels = cols.len().div_ceil(width);
    assert!(dst.len() >= panels * size && sums.len() >= panels * width);
    let (out, col_sums) = (Shares::new(dst), Shares::new(sums));
    pool.split(panels, grain(size), |range| {
        for panel in range {
            let first = cols.start + panel * width;
            let lanes = first..cols.end.min(first + width);
            // SAFETY: this panel's part of both slices, whose lengths are checked above, is this task's alone.
            let (dst, sums) = unsafe {
                (
                    std::slice::from_raw_parts_mut(out.at(panel * size), size),
                    std::slice::from_raw_parts_mut(col_sums.at(panel * width), width),
                )
            };
            pack_right_panel(b, lanes, width, layout, dst, sums);
        }
    });
}

/// One panel of [`pack_right`].
pub(super) fn pack_right_panel(
    b: Bytes,
    lanes: Range<usize>,
    width: usize,
    layout: Layout,
    dst: &mut [u8],
    sums: &mut [i32],
) {
    let flip = if b.signed { 0 } else { 0x80 };
    let (k, group) = (b.view.rows, layout.group());
    sums.fill(0);
    // `block` groups of plain rows at a time, which stay in the first-level cache.
    const ROWS: usize = 32;
    let mut rows = [0u8; ROWS * MAX_WIDTH];
    for (start, dst) in (0..k).step_by(ROWS).zip(dst.chunks_mut(ROWS * width)) {
        let end = k.min(start + ROWS);
        let rows = &mut rows[..ROWS * width];
        rows.fill(flip);
        let part = View {
            data: &b.view.data[start * b.view.row_stride..],
            rows: end - start,
            cols: b.view.cols,
            row_stride: b.view.row_stride,
            col_stride: b.view.col_stride,
        };
        pack_panel(part.t(), lanes.clone(), width, rows);
        for row in rows.chunks(width) {
            for (sum, &byte) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(i32::from((byte ^ flip) as i8));
            }
        }
        match group {
            4 => interleave::<4>(rows, width, flip, dst),
            _ => interleave::<2>(rows, width, flip, dst),
        }
    }
}

/// The widest right panel.
const MAX_WIDTH: usize = 32;

/// Brings groups of `G` rows of `width` bytes together column by column.
fn interleave<const G: usize>(rows: &[u8], width: usize, flip: u8, dst: &mut [u8]) {
    for (rows, dst) in rows.chunks_exact(G * width).zip(dst.chunks_exact_mut(G * width)) {
        for (j, to) in dst.as_chunks_mut::<G>().0.iter_mut().enumerate() {
            *to = std::array::from_fn(|g| rows[g * width + j] ^ flip);
        }
    }
}
