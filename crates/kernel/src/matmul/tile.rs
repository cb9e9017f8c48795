//! Blocking: scratch memory, packing into panels, and how tiles are shared out among threads.

use crate::matmul::View;
use crate::{ALIGN, Buf, Pool};
use std::cell::Cell;
use std::ops::Range;

/// Number types without padding or invalid bit patterns, so that bytes can be viewed as them.
///
/// # Safety
/// Any bit pattern is a valid value, and [`ALIGN`] is a multiple of the alignment.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for i16 {}
// SAFETY: plain numbers.
unsafe impl Plain for i32 {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}

/// A buffer as numbers.
pub(crate) fn numbers<T: Plain>(buf: &Buf) -> &[T] {
    let bytes = buf.as_ref();
    // SAFETY: `T` is `Plain` and the buffer aligned; the length is rounded down.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// A buffer as numbers that can be written.
pub(crate) fn numbers_mut<T: Plain>(buf: &mut Buf) -> &mut [T] {
    let bytes = buf.as_mut();
    // SAFETY: as in `numbers`.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// Bytes for `len` numbers, rounded up to whole cache lines.
pub(crate) fn bytes_for<T>(len: usize) -> usize {
    len.checked_mul(size_of::<T>()).map_or(usize::MAX, |n| n.next_multiple_of(ALIGN))
}

thread_local! {
    static SCRATCH: Cell<Option<Buf>> = const { Cell::new(None) };
}

/// Calls `work` with two aligned scratch slices of this thread, which hold anything. Nested calls get their own.
pub(crate) fn scratch<T: Plain, U: Plain, R>(
    first: usize,
    second: usize,
    work: impl FnOnce(&mut [T], &mut [U]) -> R,
) -> R {
    let split = bytes_for::<T>(first);
    let len = split.saturating_add(bytes_for::<U>(second));
    let mut buf = SCRATCH.take().filter(|buf| buf.len() >= len).unwrap_or_else(|| Buf::zeroed(len));
    let (a, b) = buf.as_mut().split_at_mut(split);
    // SAFETY: both parts are aligned, long enough, and `Plain`.
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts_mut(a.as_mut_ptr().cast(), first),
            std::slice::from_raw_parts_mut(b.as_mut_ptr().cast(), second),
        )
    };
    let result = work(a, b);
    SCRATCH.set(Some(buf));
    result
}

/// Rows of the panels that `rows` rows are cut into, at most `most`: as even as can be.
pub(crate) fn panel_rows(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Packs the rows `lanes` of `source` side by side: `dst[p * width + l] = source[lanes.start + l, p]`. A left
/// operand is packed as it is, a right operand transposed.
pub(crate) fn pack_panel<T: Plain>(source: View<T>, lanes: Range<usize>, width: usize, dst: &mut [T]) {
    if lanes.is_empty() || source.cols == 0 {
        return;
    }
    let data = &source.data[lanes.start * source.row_stride..];
    let (count, steps) = (lanes.len(), source.cols);
    if source.row_stride == 1 {
        for (p, row) in dst.chunks_mut(width).take(steps).enumerate() {
            let from = p * source.col_stride;
            row[..count].copy_from_slice(&data[from..from + count]);
        }
    } else if source.col_stride == 1 {
        const STEPS: usize = 16;
        for start in (0..steps).step_by(STEPS) {
            let end = steps.min(start + STEPS);
            let dst = &mut dst[start * width..end.saturating_mul(width).min(steps * width)];
            for l in 0..count {
                let from = &data[l * source.row_stride + start..l * source.row_stride + end];
                for (&value, to) in from.iter().zip(dst[l..].iter_mut().step_by(width)) {
                    *to = value;
                }
            }
        }
    } else {
        for (p, row) in dst.chunks_mut(width).take(steps).enumerate() {
            for (l, to) in row[..count].iter_mut().enumerate() {
                *to = data[l * source.row_stride + p * source.col_stride];
            }
        }
    }
}

/// Shares out a grid of `rows` x `cols` tiles, each of which costs `work` multiply-adds: calls `each` with
/// rectangles of tiles that together cover the grid.
pub(crate) fn grid(
    pool: &Pool,
    rows: usize,
    cols: usize,
    work: usize,
    each: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    /// Below this many multiply-adds a second thread costs more than it brings.
    const WORTH: usize = 1 << 17;
    if rows == 0 || cols == 0 {
        return;
    }
    let total = work.saturating_mul(rows * cols);
    let parts = if pool.threads() == 1 { 1 } else { (pool.threads() * 4).min(total / WORTH).max(1) };
    let across = parts.min(cols);
    let down = parts.div_ceil(across).min(rows);
    let part = |len: usize, of: usize, i: usize| len * i / of..len * (i + 1) / of;
    pool.run(across * down, |i| each(part(rows, down, i / across), part(cols, across, i % across)));
}

/// Runs the body with `r` = 0, 1, .. as constants: a loop that the compiler did not unroll would keep the sums
/// in memory.
macro_rules! for_rows {
    ($r:ident < $rows:ident, $body:block) => { $crate::matmul::tile::for_rows!($r $rows $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13) };
    ($r:ident $rows:ident $body:block $($n:literal)*) => { $(if $n < $rows { const $r: usize = $n; $body })* };
}
pub(crate) use for_rows;
