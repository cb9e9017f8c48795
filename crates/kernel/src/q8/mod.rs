//! Products of 8-bit integers with 32-bit sums, and what turns the sums into numbers again.
//!
//! With zero points, element (i, j) of a product is the sum over k of `(a[i, k] - a_zero[i]) * (b[k, j] -
//! b_zero[j])`, as in ONNX `MatMulInteger`; it is computed from the plain product and the sums of the rows and
//! columns (Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
//! inference", 2018, section 2.3). Sums wrap around at 32 bits. Integer sums are exact and every rounding is
//! prescribed, so all instruction sets and numbers of threads give the same bits.

#[cfg(target_arch = "aarch64")]
mod arm;
mod pack;
pub mod quantize;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use pack::Bytes;

use crate::matmul::tile::{grid, panel_rows, scratch};
use crate::matmul::{Act, Bias, View, extent, is_disjoint};
use crate::pool::Shares;
use crate::{Buf, Cpu, Isa, Pool};
use pack::{pack_left, pack_right, pack_right_panel, right_bytes};
use std::ops::Range;
use tile::{Columns, Finish, Layout, MAX_COLS, MAX_TILE, Row, Sink, Tile, Tiles};

/// Bytes of a left operand that stay in the second-level cache.
const CACHED: usize = 1 << 20;
/// Bytes of an operand that are packed at a time.
const PACKED: usize = 1 << 22;

/// The tiles for an instruction set: the best of its family that is not above it.
fn tiles(isa: Isa) -> &'static Tiles {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Sse41 => &x86::SSE41,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &x86::AVX2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &x86::AVX512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => &x86::VNNI,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &arm::NEON,
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => &arm::DOT,
        _ => &tile::SCALAR,
    }
}

/// A left operand packed once for many products, such as the weights of a convolution.
pub struct PackedA {
    data: Buf,
    sums: Vec<i32>,
    rows: usize,
    cols: usize,
    panel: usize,
    layout: Layout,
    signed: bool,
}

impl PackedA {
    /// Packs `a` for the instruction set of `cpu`.
    pub fn new<'a>(cpu: &Cpu, a: impl Into<Bytes<'a>>) -> PackedA {
        let a = a.into();
        let (rows, cols) = (a.view.rows, a.view.cols);
        let tiles = tiles(cpu.isa());
        let panel = panel_rows(rows, tiles.full.len());
        let mut data = Buf::zeroed(rows * cols.div_ceil(tiles.layout.group()) * 4);
        let mut sums = vec![0; rows];
        pack_left(cpu.pool(), a, 0..rows, panel, tiles.layout, data.as_mut(), &mut sums);
        PackedA { data, sums, rows, cols, panel, layout: tiles.layout, signed: a.signed }
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

/// A right operand packed once for many products, such as the weights of a linear layer, with the sums of its
/// columns.
pub struct PackedB {
    data: Buf,
    sums: Vec<i32>,
    rows: usize,
    cols: usize,
    panel: usize,
    layout: Layout,
    signed: bool,
}

impl PackedB {
    /// Packs `b` for the instruction set of `cpu`.
    pub fn new<'a>(cpu: &Cpu, b: impl Into<Bytes<'a>>) -> PackedB {
        let b = b.into();
        let (rows, cols) = (b.view.rows, b.view.cols);
        let tiles = tiles(cpu.isa());
        let panels = cols.div_ceil(tiles.nr);
        let mut data = Buf::zeroed(panels * right_bytes(rows, tiles.nr, tiles.layout));
        let mut sums = vec![0; panels * tiles.nr];
        pack_right(cpu.pool(), b, 0..cols, tiles.nr, tiles.layout, data.as_mut(), &mut sums);
        PackedB { data, sums, rows, cols, panel: tiles.nr, layout: tiles.layout, signed: b.signed }
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
    Bytes(Bytes<'a>),
    /// Packed before, for a `Cpu` of the same instruction set.
    Packed(&'a PackedA),
}

/// A right operand.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// Packed when it is used.
    Bytes(Bytes<'a>),
    /// Packed before, for a `Cpu` of the same instruction set.
    Packed(&'a PackedB),
    /// Made while it is packed.
    Made(Made<'a>),
}

/// Writes columns of a matrix into a panel of a given width.
pub type Fill<'a> = dyn Fn(Range<usize>, &mut [u8], usize) + Sync + 'a;

/// A right operand that exists only panel by panel: the patches of an image under a convolution.
#[derive(Clone, Copy)]
pub struct Made<'a> {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Are the bytes signed?
    pub signed: bool,
    /// `fill(columns, panel, width)` writes element (p, j) for all rows p and these columns j to
    /// `panel[p * width + (j - columns.start)]`; the panel holds anything before.
    pub fill: &'a Fill<'a>,
}

impl<'a, T> From<View<'a, T>> for Left<'a>
where
    Bytes<'a>: From<View<'a, T>>,
{
    fn from(view: View<'a, T>) -> Self {
        Left::Bytes(view.into())
    }
}

impl<'a> From<&'a PackedA> for Left<'a> {
    fn from(packed: &'a PackedA) -> Self {
        Left::Packed(packed)
    }
}

impl<'a, T> From<View<'a, T>> for Right<'a>
where
    Bytes<'a>: From<View<'a, T>>,
{
    fn from(view: View<'a, T>) -> Self {
        Right::Bytes(view.into())
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

/// One value for all rows (columns), or one for each.
#[derive(Clone, Copy, Debug)]
pub enum Per<'a, T> {
    /// The same for all.
    All(T),
    /// One for each.
    Each(&'a [T]),
}

impl<T: Copy> Per<'_, T> {
    fn at(&self, i: usize) -> T {
        match self {
            Per::All(value) => *value,
            Per::Each(values) => values[i],
        }
    }

    fn check(&self, len: usize) {
        if let Per::Each(values) = self {
            assert_eq!(values.len(), len, "one value for each row or column");
        }
    }
}

/// What the stored integers mean: zero points (in the numbers of the operand, signed or not) and scales.
#[derive(Clone, Copy, Debug)]
pub struct Grid<'a> {
    /// Zero points of the rows of the left operand.
    pub a_zero: Per<'a, i32>,
    /// Zero points of the columns of the right operand.
    pub b_zero: Per<'a, i32>,
    /// Scales of the rows; not used for [`Out::I32`].
    pub a_scale: Per<'a, f32>,
    /// Scales of the columns; not used for [`Out::I32`].
    pub b_scale: Per<'a, f32>,
}

impl Default for Grid<'_> {
    fn default() -> Self {
        Grid { a_zero: Per::All(0), b_zero: Per::All(0), a_scale: Per::All(1.0), b_scale: Per::All(1.0) }
    }
}

/// Where a product goes and in what form; row i starts at `out[i * row_stride]`.
pub enum Out<'a> {
    /// The sums.
    I32(&'a mut [i32]),
    /// `act(sum * (a_scale * b_scale) + bias)`, each operation rounded by itself.
    F32 {
        /// The output.
        out: &'a mut [f32],
        /// Added before the activation.
        bias: Bias<'a, f32>,
        /// Applied last.
        act: Act,
    },
    /// `clamp(round((sum + bias) * (a_scale * b_scale)) + zero, lo, hi)`, halves rounded to even; the scale of
    /// the output is to be divided into one of the scales before.
    U8 {
        /// The output.
        out: &'a mut [u8],
        /// Added to the sums.
        bias: Bias<'a, i32>,
        /// Zero point of the output.
        zero: u8,
        /// The least value: 0, or the zero point for a ReLU.
        lo: u8,
        /// The greatest value.
        hi: u8,
    },
    /// As [`Out::U8`], signed.
    I8 {
        /// The output.
        out: &'a mut [i8],
        /// Added to the sums.
        bias: Bias<'a, i32>,
        /// Zero point of the output.
        zero: i8,
        /// The least value.
        lo: i8,
        /// The greatest value.
        hi: i8,
    },
}

/// `a` times `b`: `a` is `[m, k]`, `b` is `[k, n]`, both of bytes, signed or not; `grid` says what the bytes
/// mean, `out` what becomes of the sums.
///
/// # Panics
/// When shapes and lengths do not fit together, or an operand was packed for another instruction set.
pub fn matmul<'a>(
    cpu: &Cpu,
    a: impl Into<Left<'a>>,
    b: impl Into<Right<'a>>,
    grid: &Grid,
    out: Out,
    row_stride: usize,
) {
    let (a, b) = (a.into(), b.into());
    let tiles = tiles(cpu.isa());
    let (m, k, a_signed) = match a {
        Left::Bytes(bytes) => (bytes.view.rows, bytes.view.cols, bytes.signed),
        Left::Packed(packed) => {
            assert!(
                packed.panel <= tiles.full.len() && packed.layout == tiles.layout,
                "left operand packed for another instruction set"
            );
            (packed.rows, packed.cols, packed.signed)
        }
    };
    let (rows, n, b_signed) = match b {
        Right::Bytes(bytes) => (bytes.view.rows, bytes.view.cols, bytes.signed),
        Right::Made(made) => (made.rows, made.cols, made.signed),
        Right::Packed(packed) => {
            assert!(
                packed.panel == tiles.nr && packed.layout == tiles.layout,
                "right operand packed for another instruction set"
            );
            (packed.rows, packed.cols, packed.signed)
        }
    };
    assert_eq!(k, rows, "columns of the left operand, rows of the right one");
    let (sink, len, bias) = match out {
        Out::I32(out) => (Sink::I32(out.as_mut_ptr()), out.len(), Biases::None),
        Out::F32 { out, bias, act } => {
            let (lo, hi) = act.range();
            (Sink::F32 { to: out.as_mut_ptr(), lo, hi }, out.len(), Biases::F32(bias))
        }
        Out::U8 { out, bias, zero, lo, hi } => {
            let to = out.as_mut_ptr();
            (Sink::Byte { to, zero: zero.into(), lo: lo.into(), hi: hi.into() }, out.len(), Biases::I32(bias))
        }
        Out::I8 { out, bias, zero, lo, hi } => {
            let to = out.as_mut_ptr().cast();
            (Sink::Byte { to, zero: zero.into(), lo: lo.into(), hi: hi.into() }, out.len(), Biases::I32(bias))
        }
    };
    let dims = [(m, row_stride), (n, 1)];
    assert!(extent(&dims).is_some_and(|reach| reach <= len), "the output leaves its slice");
    assert!(is_disjoint(&dims), "outputs overlap");
    grid.a_zero.check(m);
    grid.a_scale.check(m);
    grid.b_zero.check(n);
    grid.b_scale.check(n);
    match bias {
        Biases::F32(bias) => check_bias(&bias, m, n),
        Biases::I32(bias) => check_bias(&bias, m, n),
        Biases::None => {}
    }
    if m > 0 && n > 0 {
        Product { tiles, m, k, n, row_stride, sink, bias, grid, a_signed, b_signed }.run(cpu.pool(), a, b);
    }
}

#[derive(Clone, Copy)]
enum Biases<'a> {
    None,
    F32(Bias<'a, f32>),
    I32(Bias<'a, i32>),
}

fn check_bias<T>(bias: &Bias<T>, m: usize, n: usize) {
    match bias {
        Bias::None => {}
        Bias::Col(bias) => assert_eq!(bias.len(), n, "one bias a column"),
        Bias::Row(bias) => assert_eq!(bias.len(), m, "one bias a row"),
    }
}

/// A product whose shapes have been checked.
struct Product<'a> {
    tiles: &'static Tiles,
    m: usize,
    k: usize,
    n: usize,
    row_stride: usize,
    sink: Sink,
    bias: Biases<'a>,
    grid: &'a Grid<'a>,
    a_signed: bool,
    b_signed: bool,
}

// SAFETY: the pointers of `sink` are used for rectangles that no two tasks share.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    fn run(&self, pool: &Pool, a: Left, b: Right) {
        let Product { tiles, m, k, n, .. } = *self;
        let (nr, layout) = (tiles.nr, tiles.layout);
        let mr = match a {
            Left::Bytes(_) => panel_rows(m, tiles.full.len()),
            Left::Packed(packed) => packed.panel,
        };
        let row_bytes = k.div_ceil(layout.group()) * 4;
        let panel_bytes = right_bytes(k, nr, layout);
        let (m_panels, n_panels) = (m.div_ceil(mr), n.div_ceil(nr));
        let few = |panels: usize, bytes: usize| (PACKED / bytes.max(1)).clamp(1, panels);
        let m_step = match a {
            Left::Bytes(_) => few(m_panels, mr * row_bytes),
            Left::Packed(_) => m_panels,
        };
        let (n_step, made_bytes) = match b {
            Right::Packed(_) => (n_panels, 0),
            Right::Bytes(_) => (few(n_panels, panel_bytes), 0),
            Right::Made(_) => (few(n_panels, panel_bytes + k * nr), k * nr),
        };
        let a_len = if matches!(a, Left::Packed(_)) { 0 } else { m_step * mr * row_bytes };
        let b_len = if matches!(b, Right::Packed(_)) { 0 } else { n_step * (panel_bytes + made_bytes) };
        let (a_sums, b_sums) = (m_step * mr, n_step * nr);
        scratch(a_len + b_len, a_sums + b_sums, |bytes: &mut [u8], sums: &mut [i32]| {
            let (a_bytes, b_bytes) = bytes.split_at_mut(a_len);
            let (a_sums, b_sums) = sums.split_at_mut(a_sums);
            for n0 in (0..n_panels).step_by(n_step) {
                let n1 = n_panels.min(n0 + n_step);
                let (right, right_sums) = match b {
                    Right::Packed(packed) => (packed.data.as_ref(), &packed.sums[..]),
                    Right::Bytes(bytes) => {
                        pack_right(pool, bytes, n0 * nr..n.min(n1 * nr), nr, layout, b_bytes, b_sums);
                        (&*b_bytes, &*b_sums)
                    }
                    Right::Made(made) => {
                        let (packed, plain) = b_bytes.split_at_mut(n_step * panel_bytes);
                        make_right(pool, made, n0 * nr..n.min(n1 * nr), nr, layout, packed, plain, b_sums);
                        (&*packed, &*b_sums)
                    }
                };
                for m0 in (0..m_panels).step_by(m_step) {
                    let m1 = m_panels.min(m0 + m_step);
                    let (left, left_sums) = match a {
                        Left::Packed(packed) => (packed.data.as_ref(), &packed.sums[..]),
                        Left::Bytes(bytes) => {
                            if n0 == 0 || m_step < m_panels {
                                let rows = m0 * mr..m.min(m1 * mr);
                                pack_left(pool, bytes, rows, mr, layout, a_bytes, a_sums);
                            }
                            (&*a_bytes, &*a_sums)
                        }
                    };
                    let part = Part { product: self, mr, left, left_sums, m0, right, right_sums, n0 };
                    // Integer products are cheaper than the multiply-adds that `grid` counts.
                    grid(pool, m1 - m0, n1 - n0, mr * nr * k / 2, |rows, cols| {
                        // SAFETY: the operands cover these panels, and this rectangle of the output, which
                        // `matmul` checked, is this task's alone.
                        unsafe { part.run(m0 + rows.start..m0 + rows.end, n0 + cols.start..n0 + cols.end) }
                    });
                }
            }
        });
    }
}

/// Makes and packs the columns `cols` of a right operand; `plain` has room for all panels as they are made.
#[expect(clippy::too_many_arguments, reason = "as pack_right, and where the plain panels go")]
fn make_right(
    pool: &Pool,
    made: Made,
    cols: Range<usize>,
    nr: usize,
    layout: Layout,
    packed: &mut [u8],
    plain: &mut [u8],
    sums: &mut [i32],
) {
    let (k, size) = (made.rows, right_bytes(made.rows, nr, layout));
    let panels = cols.len().div_ceil(nr);
    assert!(packed.len() >= panels * size && plain.len() >= panels * k * nr && sums.len() >= panels * nr);
    let (packed, plain, sums) = (Shares::new(packed), Shares::new(plain), Shares::new(sums));
    pool.run(panels, |panel| {
        let first = cols.start + panel * nr;
        let lanes = first..cols.end.min(first + nr);
        // SAFETY: this panel's part of the slices, whose lengths are checked above, is this task's alone.
        let (packed, plain, sums) = unsafe {
            (
                std::slice::from_raw_parts_mut(packed.at(panel * size), size),
                std::slice::from_raw_parts_mut(plain.at(panel * k * nr), k * nr),
                std::slice::from_raw_parts_mut(sums.at(panel * nr), nr),
            )
        };
        (made.fill)(lanes.clone(), plain, nr);
        let bytes = Bytes { view: View::new(plain, k, nr), signed: made.signed };
        pack_right_panel(bytes, 0..lanes.len(), nr, layout, packed, sums);
    });
}

/// What one task needs to know.
struct Part<'a> {
    product: &'a Product<'a>,
    mr: usize,
    /// Panels from `m0` on, and the sums of their rows.
    left: &'a [u8],
    left_sums: &'a [i32],
    m0: usize,
    /// Panels from `n0` on, and the sums of their columns.
    right: &'a [u8],
    right_sums: &'a [i32],
    n0: usize,
}

impl Part<'_> {
    /// # Safety
    /// The panels `rows` and `cols` lie within the operands and the output, and nobody else uses this rectangle
    /// of the output.
    unsafe fn run(&self, rows: Range<usize>, cols: Range<usize>) {
        let p = self.product;
        let Product { tiles, m, k, n, .. } = *p;
        let nr = tiles.nr;
        let row_bytes = k.div_ceil(tiles.layout.group()) * 4;
        let panel_bytes = right_bytes(k, nr, tiles.layout);
        let cached = (CACHED / (row_bytes * self.mr).max(1)).max(1);
        let mut acc = [0i32; MAX_TILE];
        let mut columns = Columns::new();
        for start in rows.clone().step_by(cached) {
            let mut j = cols.start;
            while j < cols.end {
                let (panels, wide) = match tiles.wide {
                    (wide, tile) if m == 1 && j + wide <= cols.end => (wide, Some(tile)),
                    _ => (1, None),
                };
                let col = j * nr;
                let width = n.min((j + panels) * nr) - col;
                columns.set(p, col..col + width, &self.right_sums[col - self.n0 * nr..]);
                for i in start..rows.end.min(start + cached) {
                    let row = i * self.mr;
                    let count = self.mr.min(m - row);
                    let tile = Tile {
                        groups: row_bytes / 4,
                        a: self.left[(row - self.m0 * self.mr) * row_bytes..].as_ptr(),
                        b: self.right[(j - self.n0) * panel_bytes..].as_ptr(),
                        b_panel: panel_bytes,
                        c: acc.as_mut_ptr(),
                        c_stride: panels * nr,
                    };
                    // SAFETY: the panels hold `groups` groups, and `acc` the largest tile.
                    unsafe { wide.unwrap_or(tiles.full[count - 1])(&tile) };
                    let rows: [Row; 14] = std::array::from_fn(|r| match r < count {
                        true => p.row(row + r, self.left_sums[row - self.m0 * self.mr + r]),
                        false => Row::default(),
                    });
                    let at = row * p.row_stride + col;
                    let finish = Finish {
                        acc: &acc,
                        acc_stride: panels * nr,
                        rows: &rows[..count],
                        cols: width,
                        sink: p.sink.at(at),
                        stride: p.row_stride,
                    };
                    // SAFETY: the rectangle is in the output, and ours.
                    unsafe { (tiles.finish)(&finish, &columns) };
                }
                j += panels;
            }
        }
    }
}

impl Product<'_> {
    /// The constants of row `i`, whose unsigned bytes have this sum.
    fn row(&self, i: usize, sum: i32) -> Row {
        let zero = self.grid.a_zero.at(i).wrapping_add(if self.a_signed { 128 } else { 0 });
        let (bias, int_bias) = match self.bias {
            Biases::F32(Bias::Row(bias)) => (bias[i], 0),
            Biases::I32(Bias::Row(bias)) => (0.0, bias[i]),
            _ => (0.0, 0),
        };
        Row {
            zero: zero.wrapping_sub(self.tiles.layout.offset()),
            sum: sum.wrapping_sub((self.k as i32).wrapping_mul(zero)),
            scale: self.grid.a_scale.at(i),
            bias,
            int_bias,
        }
    }
}

impl Columns {
    fn new() -> Columns {
        Columns {
            sums: [0; MAX_COLS],
            zeros: [0; MAX_COLS],
            any_zero: false,
            scales: [0.0; MAX_COLS],
            bias: [0.0; MAX_COLS],
            int_bias: [0; MAX_COLS],
        }
    }

    /// Takes what belongs to these columns; `sums` starts with theirs.
    fn set(&mut self, p: &Product, cols: Range<usize>, sums: &[i32]) {
        let len = cols.len();
        self.sums[..len].copy_from_slice(&sums[..len]);
        let shift = if p.b_signed { 0 } else { -128 };
        for (zero, j) in self.zeros.iter_mut().zip(cols.clone()) {
            *zero = p.grid.b_zero.at(j).wrapping_add(shift);
        }
        self.any_zero = self.zeros[..len].iter().any(|&zero| zero != 0);
        for (scale, j) in self.scales.iter_mut().zip(cols.clone()) {
            *scale = p.grid.b_scale.at(j);
        }
        match p.bias {
            Biases::F32(Bias::Col(bias)) => self.bias[..len].copy_from_slice(&bias[cols]),
            Biases::I32(Bias::Col(bias)) => self.int_bias[..len].copy_from_slice(&bias[cols]),
            _ => {}
        }
    }
}

impl Sink {
    /// The sink from element `i` on.
    fn at(self, i: usize) -> Sink {
        match self {
            Sink::I32(to) => Sink::I32(to.wrapping_add(i)),
            Sink::F32 { to, lo, hi } => Sink::F32 { to: to.wrapping_add(i), lo, hi },
            Sink::Byte { to, zero, lo, hi } => Sink::Byte { to: to.wrapping_add(i), zero, lo, hi },
        }
    }
}

#[cfg(test)]
mod tests;
