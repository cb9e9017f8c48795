//! The tile of integer sums that stays in registers, and how it is brought into the output.

use crate::matmul::tile::for_rows;

/// How operands lie in their panels. Four bytes of a row of the left operand are always one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Words of four left bytes; right panels are `[k / 4][columns][4]`. The left bytes are stored with the
    /// highest bit turned over (as signed numbers) when `signed`.
    Quads {
        /// Left bytes are signed.
        signed: bool,
    },
    /// Words of two left numbers of 16 bits; right panels are `[k / 2][columns][2]`.
    Pairs,
}

impl Layout {
    /// Steps of k that lie together.
    pub fn group(self) -> usize {
        match self {
            Layout::Quads { .. } => 4,
            Layout::Pairs => 2,
        }
    }

    /// What the stored left numbers are short of the unsigned bytes they stand for.
    pub fn offset(self) -> i32 {
        if self == (Layout::Quads { signed: true }) { 128 } else { 0 }
    }
}

/// A register of `N` sums of 32 bits.
pub(super) trait Sums: Copy {
    /// Sums in a register.
    const N: usize;
    /// Bytes of one group of `N` columns in a right panel.
    const BYTES: usize;
    /// A word of the left operand in every lane.
    type Left: Copy;
    /// A group of `N` columns of the right operand.
    type Right: Copy;
    /// # Safety
    /// The instruction set is there.
    unsafe fn zero() -> Self;
    /// # Safety
    /// The instruction set is there and four bytes can be read.
    unsafe fn left(from: *const u8) -> Self::Left;
    /// # Safety
    /// The instruction set is there and `BYTES` bytes can be read.
    unsafe fn right(from: *const u8) -> Self::Right;
    /// Adds the products of a group, wrapping around.
    /// # Safety
    /// The instruction set is there.
    unsafe fn add_products(self, a: Self::Left, b: Self::Right) -> Self;
    /// # Safety
    /// The instruction set is there and `N` sums can be written.
    unsafe fn store(self, to: *mut i32);
}

/// One tile of sums.
pub(super) struct Tile {
    /// Groups of k.
    pub groups: usize,
    /// `[groups][rows]` words.
    pub a: *const u8,
    /// Panels.
    pub b: *const u8,
    /// Bytes from one panel of `b` to the next.
    pub b_panel: usize,
    /// `[rows][c_stride]`.
    pub c: *mut i32,
    pub c_stride: usize,
}

/// Computes a tile.
pub(super) type TileFn = unsafe fn(&Tile);

/// The body of every [`TileFn`]: `R` rows (at most 14), `V` registers of columns, two registers a panel.
///
/// # Safety
/// The instruction set of `S` is there, and all pointers of the tile reach as far as its sizes say.
#[inline(always)]
pub(super) unsafe fn tile<S: Sums, const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: as above.
    unsafe {
        let mut acc = [[S::zero(); V]; R];
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.groups {
            let mut cols = [S::right(b); V];
            for (v, col) in cols.iter_mut().enumerate().skip(1) {
                *col = S::right(b.add(v / 2 * t.b_panel + v % 2 * S::BYTES));
            }
            for_rows!(ROW < R, {
                let word = S::left(a.add(4 * ROW));
                for (sum, col) in acc[ROW].iter_mut().zip(cols) {
                    *sum = sum.add_products(word, col);
                }
            });
            a = a.add(4 * R);
            b = b.add(2 * S::BYTES);
        }
        for_rows!(ROW < R, {
            for (v, sum) in acc[ROW].iter().enumerate() {
                sum.store(t.c.add(ROW * t.c_stride + v * S::N));
            }
        });
    }
}

/// The tiles of one instruction set.
pub(super) struct Tiles {
    pub layout: Layout,
    /// Columns of a panel: two registers.
    pub nr: usize,
    /// `full[r - 1]`: `r` rows, one panel.
    pub full: &'static [TileFn],
    /// One row and several panels (how many, and the function).
    pub wide: (usize, TileFn),
    pub finish: unsafe fn(&Finish, &Columns),
}

/// Columns of the widest tile.
pub(super) const MAX_COLS: usize = 128;
/// Sums of the largest tile, and room for the last of its chunks.
pub(super) const MAX_TILE: usize = 14 * 32 + CHUNK;

/// What belongs to the columns of a tile.
pub(super) struct Columns {
    /// Sums over k of the right operand.
    pub sums: [i32; MAX_COLS],
    /// Zero points of the right operand.
    pub zeros: [i32; MAX_COLS],
    /// Is any of these not zero?
    pub any_zero: bool,
    pub scales: [f32; MAX_COLS],
    pub bias: [f32; MAX_COLS],
    pub int_bias: [i32; MAX_COLS],
}

/// What belongs to a row.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    /// Factor of the sums of the columns.
    pub zero: i32,
    /// Factor of the zero points of the columns.
    pub sum: i32,
    pub scale: f32,
    pub bias: f32,
    pub int_bias: i32,
}

/// Where a finished tile goes.
#[derive(Clone, Copy)]
pub(super) enum Sink {
    I32(*mut i32),
    F32 {
        to: *mut f32,
        lo: f32,
        hi: f32,
    },
    /// `zero`, `lo` and `hi` as signed or unsigned numbers; only the low byte is written.
    Byte {
        to: *mut u8,
        zero: i32,
        lo: i32,
        hi: i32,
    },
}

/// A tile of raw sums and its place in the output.
pub(super) struct Finish<'a> {
    pub acc: &'a [i32],
    pub acc_stride: usize,
    pub rows: &'a [Row],
    pub cols: usize,
    pub sink: Sink,
    pub stride: usize,
}

/// Columns that are finished at a time.
const CHUNK: usize = 16;

/// Corrects the sums of a tile for the zero points and brings them into the output.
///
/// Products and sums are rounded one by one, and halves to even, so all instruction sets agree to the bit.
///
/// # Safety
/// The sink has room for the rows and columns.
#[inline(always)]
pub(super) unsafe fn finish(f: &Finish, c: &Columns) {
    // SAFETY: promised by the caller.
    unsafe {
        match f.sink {
            Sink::I32(to) => each_chunk(f, c, to, &Raw),
            Sink::F32 { to, lo, hi } => each_chunk(f, c, to, &Scaled { lo, hi }),
            Sink::Byte { to, zero, lo, hi } => {
                let (least, most) = ((lo - zero) as f32, (hi - zero) as f32);
                each_chunk(f, c, to, &Rounded { zero, least, most });
            }
        }
    }
}

/// What a chunk of corrected sums becomes. (A trait, since closures are not compiled for the instruction set of
/// the function they stand in.)
trait Make {
    type To: Copy;
    fn make(&self, acc: &[i32; CHUNK], row: &Row, c: &Columns, start: usize) -> [Self::To; CHUNK];
}

struct Raw;

impl Make for Raw {
    type To = i32;

    #[inline(always)]
    fn make(&self, acc: &[i32; CHUNK], _: &Row, _: &Columns, _: usize) -> [i32; CHUNK] {
        *acc
    }
}

struct Scaled {
    lo: f32,
    hi: f32,
}

impl Make for Scaled {
    type To = f32;

    #[inline(always)]
    fn make(&self, acc: &[i32; CHUNK], row: &Row, c: &Columns, start: usize) -> [f32; CHUNK] {
        let (scales, bias) = (chunk(&c.scales, start), chunk(&c.bias, start));
        let mut out = [0.0; CHUNK];
        for i in 0..CHUNK {
            let value = acc[i] as f32 * (row.scale * scales[i]) + (row.bias + bias[i]);
            let value = if self.lo > value { self.lo } else { value };
            out[i] = if self.hi < value { self.hi } else { value };
        }
        out
    }
}

struct Rounded {
    zero: i32,
    least: f32,
    most: f32,
}

impl Make for Rounded {
    type To = u8;

    #[inline(always)]
    fn make(&self, acc: &[i32; CHUNK], row: &Row, c: &Columns, start: usize) -> [u8; CHUNK] {
        let (scales, bias) = (chunk(&c.scales, start), chunk(&c.int_bias, start));
        let mut out = [0; CHUNK];
        for i in 0..CHUNK {
            let sum = acc[i].wrapping_add(row.int_bias).wrapping_add(bias[i]);
            out[i] = (round(sum as f32 * (row.scale * scales[i]), self.least, self.most) + self.zero) as u8;
        }
        out
    }
}

/// Writes all chunks of a tile as `maker` makes them.
///
/// # Safety
/// `to` has room for the rows and columns.
#[inline(always)]
unsafe fn each_chunk<M: Make>(f: &Finish, c: &Columns, to: *mut M::To, maker: &M) {
    for start in (0..f.cols).step_by(CHUNK) {
        let (sums, zeros) = (chunk(&c.sums, start), chunk(&c.zeros, start));
        let count = CHUNK.min(f.cols - start);
        for (r, row) in f.rows.iter().enumerate() {
            let mut acc = *chunk(f.acc, r * f.acc_stride + start);
            for i in 0..CHUNK {
                acc[i] = acc[i].wrapping_sub(sums[i].wrapping_mul(row.zero));
            }
            if c.any_zero {
                for i in 0..CHUNK {
                    acc[i] = acc[i].wrapping_sub(zeros[i].wrapping_mul(row.sum));
                }
            }
            let out = maker.make(&acc, row, c, start);
            // SAFETY: promised by the caller: the tile is in the output, and so are `count` numbers from here.
            unsafe {
                let to = to.add(r * f.stride + start);
                if count == CHUNK {
                    to.cast::<[M::To; CHUNK]>().write_unaligned(out);
                } else {
                    std::ptr::copy_nonoverlapping(out.as_ptr(), to, count);
                }
            }
        }
    }
}

/// The chunk from `start` on; the slice has to be long enough.
#[inline(always)]
fn chunk<T>(from: &[T], start: usize) -> &[T; CHUNK] {
    match from[start..].first_chunk() {
        Some(chunk) => chunk,
        None => panic!("a chunk out of range"),
    }
}

/// The whole number nearest to `value`, halves to the even one, within `least..=most`, which are whole and
/// less than 2^22 from zero. A NaN gives `least`.
#[inline(always)]
pub(super) fn round(value: f32, least: f32, most: f32) -> i32 {
    /// Adding it leaves no room for a fraction, so the processor rounds, and the low bits are the number.
    const MAGIC: f32 = 12_582_912.0;
    let value = if value > least { value } else { least };
    let value = if value < most { value } else { most };
    (value + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}

/// Four sums in plain Rust.
impl Sums for [i32; 4] {
    const N: usize = 4;
    const BYTES: usize = 16;
    type Left = [u8; 4];
    type Right = [[i8; 4]; 4];

    #[inline(always)]
    unsafe fn zero() -> Self {
        [0; 4]
    }

    #[inline(always)]
    unsafe fn left(from: *const u8) -> [u8; 4] {
        // SAFETY: promised by the caller.
        unsafe { from.cast::<[u8; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn right(from: *const u8) -> [[i8; 4]; 4] {
        // SAFETY: promised by the caller.
        unsafe { from.cast::<[[i8; 4]; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: [u8; 4], b: [[i8; 4]; 4]) -> Self {
        std::array::from_fn(|j| {
            let dot: i32 = a.iter().zip(b[j]).map(|(&a, b)| i32::from(a) * i32::from(b)).sum();
            self[j].wrapping_add(dot)
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe { to.cast::<[i32; 4]>().write_unaligned(self) }
    }
}

/// # Safety
/// As for [`tile`].
unsafe fn scalar<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<[i32; 4], R, V>(t) }
}

/// # Safety
/// As for [`finish`].
unsafe fn scalar_finish(f: &Finish, c: &Columns) {
    // SAFETY: promised by the caller.
    unsafe { finish(f, c) }
}

pub(super) static SCALAR: Tiles = Tiles {
    layout: Layout::Quads { signed: false },
    nr: 8,
    full: &[scalar::<1, 2>, scalar::<2, 2>, scalar::<3, 2>, scalar::<4, 2>],
    wide: (2, scalar::<1, 4>),
    finish: scalar_finish,
};
