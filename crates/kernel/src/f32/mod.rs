//! Single-precision products: `out = act(alpha * A * B + add + bias)`.
//!
//! Each element is a chain of sums over k in ascending order, cut into blocks of fixed length, so results do
//! not depend on the number of threads, on the tile an element falls into, or on the number of rows.

#[cfg(target_arch = "aarch64")]
mod arm;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::matmul::tile::{bytes_for, grid, numbers, numbers_mut, pack_panel, panel_rows, scratch};
use crate::matmul::{Act, Batch, Bias, View, extent, is_disjoint};
use crate::pool::Shares;
use crate::{Buf, Cpu, Isa, Pool};
use std::ops::Range;
use std::ptr;
use tile::{Tile, Tiles};

/// The longest chain of sums between two visits to the output.
const K_BLOCK: usize = 512;
/// Numbers of a left operand that stay in the second-level cache.
const CACHED: usize = 1 << 18;
/// Numbers of an operand that are packed at a time.
const PACKED: usize = 1 << 20;
/// Up to this many rows, a right operand with dense rows is read where it lies.
const FEW_ROWS: usize = 4;
/// The largest tile.
const TILE: usize = 14 * 32;

/// The tiles for an instruction set: the best of its family that is not above it.
fn tiles(isa: Isa) -> &'static Tiles {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &x86::AVX2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni => &x86::AVX512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => &arm::NEON,
        _ => &tile::SCALAR,
    }
}

/// A left operand packed once for many products, such as the weights of a convolution.
pub struct PackedA {
    data: Buf,
    rows: usize,
    cols: usize,
    panel: usize,
}

impl PackedA {
    /// Packs `a` for the instruction set of `cpu`.
    pub fn new(cpu: &Cpu, a: View<f32>) -> PackedA {
        let panel = panel_rows(a.rows, tiles(cpu.isa()).full.len());
        let mut data = Buf::zeroed(bytes_for::<f32>(a.rows * a.cols));
        pack(cpu.pool(), a, panel, true, &mut numbers_mut(&mut data)[..a.rows * a.cols]);
        PackedA { data, rows: a.rows, cols: a.cols, panel }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// A right operand packed once for many products, such as the weights of a linear layer.
pub struct PackedB {
    data: Buf,
    rows: usize,
    cols: usize,
    panel: usize,
}

impl PackedB {
    /// Packs `b` for the instruction set of `cpu`.
    pub fn new(cpu: &Cpu, b: View<f32>) -> PackedB {
        let panel = tiles(cpu.isa()).nr;
        let len = b.cols.next_multiple_of(panel) * b.rows;
        let mut data = Buf::zeroed(bytes_for::<f32>(len));
        pack(cpu.pool(), b.t(), panel, false, &mut numbers_mut(&mut data)[..len]);
        PackedB { data, rows: b.rows, cols: b.cols, panel }
    }

    /// Number of rows: the length of the sums.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// A left operand.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Packed when it is used.
    View(View<'a, f32>),
    /// Packed before, for a `Cpu` of the same instruction set.
    Packed(&'a PackedA),
}

/// A right operand.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// Packed when it is used.
    View(View<'a, f32>),
    /// Packed before, for a `Cpu` of the same instruction set.
    Packed(&'a PackedB),
    /// Made while it is packed.
    Made(Made<'a>),
}

/// Writes columns of a matrix into a panel of a given width.
pub type Fill<'a> = dyn Fn(Range<usize>, &mut [f32], usize) + Sync + 'a;

/// Changes finished numbers in place, each on its own.
pub type After<'a> = dyn Fn(&mut [f32]) + Sync + 'a;

/// A right operand that exists only as packed panels: the patches of an image under a convolution.
#[derive(Clone, Copy)]
pub struct Made<'a> {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `fill(columns, panel, width)` writes element (p, j) for all rows p and these columns j to
    /// `panel[p * width + (j - columns.start)]`; the panel holds anything before.
    pub fill: &'a Fill<'a>,
}

impl<'a> From<View<'a, f32>> for Left<'a> {
    fn from(view: View<'a, f32>) -> Self {
        Left::View(view)
    }
}

impl<'a> From<&'a PackedA> for Left<'a> {
    fn from(packed: &'a PackedA) -> Self {
        Left::Packed(packed)
    }
}

impl<'a> From<View<'a, f32>> for Right<'a> {
    fn from(view: View<'a, f32>) -> Self {
        Right::View(view)
    }
}

impl<'a> From<&'a PackedB> for Right<'a> {
    fn from(packed: &'a PackedB) -> Self {
        Right::Packed(packed)
    }
}

impl<'a> From<Made<'a>> for Right<'a> {
    fn from(made: Made<'a>) -> Self {
        Right::Made(made)
    }
}

/// A matrix that is added to the product.
#[derive(Clone, Copy, Debug, Default)]
pub enum Add<'a> {
    /// Nothing: the output may hold anything before.
    #[default]
    None,
    /// What the output holds.
    Out,
    /// Another matrix with dense rows, and its row stride (0 adds the same row everywhere).
    Rows(&'a [f32], usize),
}

/// What happens to a product before it is written.
#[derive(Clone, Copy)]
pub struct Post<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// Added to the product.
    pub add: Add<'a>,
    /// Added to the product.
    pub bias: Bias<'a>,
    /// Applied to the sum.
    pub act: Act,
    /// Applied to finished parts of rows while they are in the cache.
    pub after: Option<&'a After<'a>>,
}

impl Default for Post<'_> {
    fn default() -> Self {
        Post { alpha: 1.0, add: Add::None, bias: Bias::None, act: Act::None, after: None }
    }
}

/// `out = act(alpha * a * b + add + bias)`: `a` is `[m, k]`, `b` is `[k, n]`, row i of the output starts at
/// `out[i * row_stride]`.
///
/// # Panics
/// When shapes and lengths do not fit together, or an operand was packed for another instruction set.
pub fn matmul<'a>(
    cpu: &Cpu,
    a: impl Into<Left<'a>>,
    b: impl Into<Right<'a>>,
    out: &mut [f32],
    row_stride: usize,
    post: &Post,
) {
    let (a, b) = (a.into(), b.into());
    let product = Product::new(cpu.isa(), a, b, row_stride, &Batch::dense(1, 0, 0, 0), out.len(), post);
    let add = match post.add {
        Add::Rows(rows, _) => rows.as_ptr(),
        _ => ptr::null(),
    };
    product.run(cpu.pool(), a, b, &Shares::new(out), 0, add);
}

/// Many products of one shape: `a` and `b` show the first item, and their slices reach to the last; `batch`
/// says where the others are. `add_steps` are the steps of [`Add::Rows`] from item to item.
///
/// # Panics
/// As [`matmul`]; and when outputs overlap.
#[expect(clippy::too_many_arguments, reason = "two operands, an output, and where they lie")]
pub fn matmul_batch(
    cpu: &Cpu,
    batch: &Batch,
    a: View<f32>,
    b: View<f32>,
    out: &mut [f32],
    row_stride: usize,
    post: &Post,
    add_steps: [usize; 2],
) {
    let reach = |view: &View<f32>, steps: [usize; 2]| {
        let dims = [
            (batch.counts[0], steps[0]),
            (batch.counts[1], steps[1]),
            (view.rows, view.row_stride),
            (view.cols, view.col_stride),
        ];
        assert!(
            extent(&dims).is_some_and(|n| n <= view.data.len()),
            "an operand of a batch leaves its slice"
        );
    };
    reach(&a, batch.a);
    reach(&b, batch.b);
    let product = Product::new(cpu.isa(), a.into(), b.into(), row_stride, batch, out.len(), post);
    let add = match post.add {
        Add::Rows(rows, stride) => {
            reach(
                &View { data: rows, rows: a.rows, cols: b.cols, row_stride: stride, col_stride: 1 },
                add_steps,
            );
            rows.as_ptr()
        }
        _ => ptr::null(),
    };
    let add = Shares::from_ptr(add.cast_mut());
    let count = batch.counts[0] * batch.counts[1];
    let out = Shares::new(out);
    let item = |pool: &Pool, i: usize| {
        let a = View { data: &a.data[batch.offset(i, batch.a).min(a.data.len())..], ..a };
        let b = View { data: &b.data[batch.offset(i, batch.b).min(b.data.len())..], ..b };
        let add = match post.add {
            Add::Rows(..) => add.at(batch.offset(i, add_steps)).cast_const(),
            _ => ptr::null(),
        };
        product.run(pool, a.into(), b.into(), &out, batch.offset(i, batch.out), add);
    };
    if count >= 2 * cpu.pool().threads() {
        cpu.pool().run(count, |i| item(&Pool::solo(), i));
    } else {
        (0..count).for_each(|i| item(cpu.pool(), i));
    }
}

/// Packs the rows of `source` into panels of `width`; with `tight` the last panel is only as wide as it must be.
fn pack(pool: &Pool, source: View<f32>, width: usize, tight: bool, dst: &mut [f32]) {
    let k = source.cols;
    if k == 0 {
        return;
    }
    let panels = source.rows.div_ceil(width);
    let grain = ((1 << 14) / (k * width)).max(1);
    pool.for_chunks_mut(dst, grain * width * k, |chunk, dst| {
        for (i, dst) in dst.chunks_mut(width * k).enumerate() {
            let panel = chunk * grain + i;
            if panel < panels {
                let lanes = panel * width..source.rows.min((panel + 1) * width);
                let width = if tight { lanes.len() } else { width };
                pack_panel(source, lanes, width, dst);
            }
        }
    });
}

/// A product whose shapes have been checked.
struct Product<'a> {
    tiles: &'static Tiles,
    m: usize,
    k: usize,
    n: usize,
    row_stride: usize,
    post: &'a Post<'a>,
}

/// Packed panels of the right operand.
struct Panels {
    start: *const f32,
    step: usize,
    panel: usize,
    /// The last panel, when it is narrower than the others and these lie unpacked in a slice.
    tail: *const f32,
}

// SAFETY: shared slices under another name.
unsafe impl Sync for Panels {}

impl<'a> Product<'a> {
    fn new(
        isa: Isa,
        a: Left,
        b: Right,
        row_stride: usize,
        batch: &Batch,
        out_len: usize,
        post: &'a Post<'a>,
    ) -> Product<'a> {
        let tiles = tiles(isa);
        let (m, k) = match a {
            Left::View(view) => (view.rows, view.cols),
            Left::Packed(packed) => {
                assert!(packed.panel <= tiles.full.len(), "left operand packed for another instruction set");
                (packed.rows, packed.cols)
            }
        };
        let (rows, n) = match b {
            Right::View(view) => (view.rows, view.cols),
            Right::Made(made) => (made.rows, made.cols),
            Right::Packed(packed) => {
                assert_eq!(packed.panel, tiles.nr, "right operand packed for another instruction set");
                (packed.rows, packed.cols)
            }
        };
        assert_eq!(k, rows, "columns of the left operand, rows of the right one");
        let dims =
            [(batch.counts[0], batch.out[0]), (batch.counts[1], batch.out[1]), (m, row_stride), (n, 1)];
        assert!(extent(&dims).is_some_and(|len| len <= out_len), "the output leaves its slice");
        assert!(is_disjoint(&dims), "outputs overlap");
        match post.bias {
            Bias::None => {}
            Bias::Col(bias) => assert_eq!(bias.len(), n, "one bias a column"),
            Bias::Row(bias) => assert_eq!(bias.len(), m, "one bias a row"),
        }
        if let Add::Rows(rows, stride) = post.add {
            let dims = [(m, stride), (n, 1)];
            assert!(extent(&dims).is_some_and(|len| len <= rows.len()), "the added matrix leaves its slice");
        }
        Product { tiles, m, k, n, row_stride, post }
    }

    /// Computes one item, whose output starts at `out.at(offset)`; `add` is where [`Add::Rows`] starts for it.
    fn run(&self, pool: &Pool, a: Left, b: Right, out: &Shares<f32>, offset: usize, add: *const f32) {
        let (m, k, n, nr) = (self.m, self.k, self.n, self.tiles.nr);
        if m == 0 || n == 0 {
            return;
        }
        let mr = match a {
            Left::View(_) => panel_rows(m, self.tiles.full.len()),
            Left::Packed(packed) => packed.panel,
        };
        let (m_panels, n_panels) = (m.div_ceil(mr), n.div_ceil(nr));
        let few = |panels: usize, width: usize| (PACKED / (k * width).max(1)).clamp(1, panels);
        let (m_step, a_len) = match a {
            Left::View(_) => (few(m_panels, mr), few(m_panels, mr) * mr * k),
            Left::Packed(_) => (m_panels, 0),
        };
        let in_place = matches!(b, Right::View(view) if view.col_stride == 1 && m <= FEW_ROWS);
        let (n_step, b_len) = match b {
            Right::Packed(_) => (n_panels, 0),
            _ if in_place => (n_panels, nr * k),
            _ => (few(n_panels, nr), few(n_panels, nr) * nr * k),
        };
        let add = Shares::from_ptr(add.cast_mut());
        scratch(a_len, b_len, |a_scratch: &mut [f32], b_scratch: &mut [f32]| {
            for n0 in (0..n_panels).step_by(n_step) {
                let n1 = n_panels.min(n0 + n_step);
                let panels = pack_right(pool, b, n0 * nr..n.min(n1 * nr), nr, in_place, b_scratch);
                for m0 in (0..m_panels).step_by(m_step) {
                    let m1 = m_panels.min(m0 + m_step);
                    let left: &[f32] = match a {
                        Left::Packed(packed) => &numbers(&packed.data)[..m * k],
                        Left::View(view) => {
                            if n0 == 0 || m_step < m_panels {
                                let rows = m0 * mr..m.min(m1 * mr);
                                let len = rows.len() * k;
                                pack(pool, rows_of(view, rows), mr, true, &mut a_scratch[..len]);
                            }
                            a_scratch
                        }
                    };
                    grid(pool, m1 - m0, n1 - n0, mr * nr * k, |rows, cols| {
                        let part = Part {
                            product: self,
                            mr,
                            a: left,
                            m0,
                            b: &panels,
                            n0,
                            out: out.at(offset),
                            add: add.at(0).cast_const(),
                        };
                        // SAFETY: the operands cover these panels, and this rectangle of the output, which
                        // `new` checked, is this task's alone.
                        unsafe { part.run(m0 + rows.start..m0 + rows.end, n0 + cols.start..n0 + cols.end) }
                    });
                }
            }
        });
    }
}

fn rows_of<'a>(view: View<'a, f32>, rows: Range<usize>) -> View<'a, f32> {
    let start = (rows.start * view.row_stride).min(view.data.len());
    View { data: &view.data[start..], rows: rows.len(), ..view }
}

/// Brings the columns `cols` of a right operand into panels.
fn pack_right(
    pool: &Pool,
    b: Right,
    cols: Range<usize>,
    nr: usize,
    in_place: bool,
    scratch: &mut [f32],
) -> Panels {
    match b {
        Right::Packed(packed) => {
            let start = numbers::<f32>(&packed.data).as_ptr();
            Panels { start, step: nr, panel: nr * packed.rows, tail: ptr::null() }
        }
        Right::View(view) if in_place => {
            let tail = view.cols / nr * nr;
            if tail < view.cols {
                pack_panel(view.t(), tail..view.cols, nr, scratch);
            }
            Panels { start: view.data.as_ptr(), step: view.row_stride, panel: nr, tail: scratch.as_ptr() }
        }
        Right::View(view) => {
            let k = view.rows;
            let panels = cols.len().div_ceil(nr);
            pack(pool, rows_of(view.t(), cols), nr, false, &mut scratch[..panels * nr * k]);
            Panels { start: scratch.as_ptr(), step: nr, panel: nr * k, tail: ptr::null() }
        }
        Right::Made(made) => {
            let panels = cols.len().div_ceil(nr);
            let len = nr * made.rows;
            pool.for_chunks_mut(&mut scratch[..panels * len], len.max(1), |i, panel| {
                let start = cols.start + i * nr;
                (made.fill)(start..cols.end.min(start + nr), panel, nr);
            });
            Panels { start: scratch.as_ptr(), step: nr, panel: len, tail: ptr::null() }
        }
    }
}

/// What one task needs to know.
struct Part<'a> {
    product: &'a Product<'a>,
    mr: usize,
    /// Panels from `m0` on.
    a: &'a [f32],
    m0: usize,
    /// Panels from `n0` on.
    b: &'a Panels,
    n0: usize,
    out: *mut f32,
    add: *const f32,
}

impl Part<'_> {
    /// # Safety
    /// The panels `rows` and `cols` lie within the operands and the output, and nobody else uses this rectangle
    /// of the output.
    unsafe fn run(&self, rows: Range<usize>, cols: Range<usize>) {
        let p = self.product;
        let blocks = p.k.div_ceil(K_BLOCK).max(1);
        let cached = (CACHED / (p.k.div_ceil(blocks) * self.mr).max(1)).max(1);
        for start in rows.clone().step_by(cached) {
            for block in 0..blocks {
                let mut j = cols.start;
                while j < cols.end {
                    let wide = match p.tiles.wide.get(p.m - 1) {
                        Some(&(wide, tile)) if j + wide <= cols.end && (j + wide) * p.tiles.nr <= p.n => {
                            Some((wide, tile))
                        }
                        _ => None,
                    };
                    for i in start..rows.end.min(start + cached) {
                        // SAFETY: promised by the caller.
                        unsafe { self.tile(i, j, wide.map(|(_, tile)| tile), block, blocks) }
                    }
                    j += wide.map_or(1, |(wide, _)| wide);
                }
            }
        }
        if let Some(after) = p.post.after {
            let (left, right) = (cols.start * p.tiles.nr, p.n.min(cols.end * p.tiles.nr));
            for row in rows.start * self.mr..p.m.min(rows.end * self.mr) {
                // SAFETY: this part of a row is ours.
                after(unsafe {
                    std::slice::from_raw_parts_mut(self.out.add(row * p.row_stride + left), right - left)
                });
            }
        }
    }

    /// One tile (several panels wide when `wide` is given) and one block of `k`.
    ///
    /// # Safety
    /// As for [`Part::run`].
    unsafe fn tile(&self, i: usize, j: usize, wide: Option<tile::TileFn>, block: usize, blocks: usize) {
        let p = self.product;
        let nr = p.tiles.nr;
        let (row, col) = (i * self.mr, j * nr);
        let (rows, cols) = (self.mr.min(p.m - row), nr.min(p.n - col));
        let (k0, k1) = (p.k * block / blocks, p.k * (block + 1) / blocks);
        let last = block + 1 == blocks;
        let a = self.a[(i - self.m0) * self.mr * p.k + k0 * rows..].as_ptr();
        // SAFETY: the pointers stay within the slices they come from, as the caller promises; a narrow tile is
        // computed in `edge`, which has room for all its columns.
        unsafe {
            let (b, b_step) = match cols < nr && !self.b.tail.is_null() {
                true => (self.b.tail.add(k0 * nr), nr),
                false => (self.b.start.add((j - self.n0) * self.b.panel + k0 * self.b.step), self.b.step),
            };
            let c = self.out.add(row * p.row_stride + col);
            let (add, add_stride) = match p.post.add {
                _ if block > 0 => (c.cast_const(), p.row_stride),
                Add::None => (ptr::null(), 0),
                Add::Out => (c.cast_const(), p.row_stride),
                Add::Rows(_, stride) => (self.add.add(row * stride + col), stride),
            };
            let (lo, hi) = if last { p.post.act.range() } else { Act::None.range() };
            let (col_bias, row_bias) = match p.post.bias {
                Bias::Col(bias) if last => (bias[col..].as_ptr(), ptr::null()),
                Bias::Row(bias) if last => (ptr::null(), bias[row..].as_ptr()),
                _ => (ptr::null(), ptr::null()),
            };
            let mut tile = Tile {
                k: k1 - k0,
                a,
                b,
                b_step,
                b_panel: self.b.panel,
                c,
                c_stride: p.row_stride,
                add,
                add_stride,
                alpha: p.post.alpha,
                col_bias,
                row_bias,
                lo,
                hi,
            };
            let full = if cols <= p.tiles.lanes { p.tiles.half[rows - 1] } else { p.tiles.full[rows - 1] };
            if let Some(wide) = wide {
                return wide(&tile);
            }
            if cols == nr || cols == p.tiles.lanes {
                return full(&tile);
            }
            let (mut edge, mut bias) = ([0f32; TILE], [0f32; 64]);
            let (edge, bias) = (edge.as_mut_ptr(), bias.as_mut_ptr());
            if !add.is_null() {
                for r in 0..rows {
                    ptr::copy_nonoverlapping(add.add(r * add_stride), edge.add(r * nr), cols);
                }
                (tile.add, tile.add_stride) = (edge, nr);
            }
            if !col_bias.is_null() {
                ptr::copy_nonoverlapping(col_bias, bias, cols);
                tile.col_bias = bias;
            }
            (tile.c, tile.c_stride) = (edge, nr);
            full(&tile);
            for r in 0..rows {
                ptr::copy_nonoverlapping(edge.add(r * nr), c.add(r * p.row_stride), cols);
            }
        }
    }
}

#[cfg(test)]
mod tests;
