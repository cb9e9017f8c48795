//! The inner loops of every convolution: a few pixels times a few vectors of output channels.
//!
//! Everything is made of 32-bit words: an `f32`, four bytes of four channels, or two 16-bit numbers of two
//! channels. A word of the image is broadcast, a vector of weight words (one for each output channel) is loaded,
//! and their product is added to a vector of 32-bit sums; what "product" means is the only difference between the
//! formats. In a depthwise convolution each channel has its own word of the image: that is loaded as a vector too.

use crate::Isa;
use crate::matmul::tile::for_rows;

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod x86;

/// What one word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// One `f32`.
    Real,
    /// Four unsigned image bytes, four signed weight bytes.
    Quad,
    /// Two signed 16-bit numbers.
    Pair,
}

impl Words {
    /// Channels (or, in depthwise convolutions, taps) of a word.
    pub fn lanes(self) -> usize {
        match self {
            Words::Real => 1,
            Words::Quad => 4,
            Words::Pair => 2,
        }
    }
}

/// The most rows of a tile.
pub(super) const ROWS: usize = 14;
/// The most vectors of a depthwise tile.
const VECTORS: usize = 8;
/// Sums of the largest tile.
pub(super) const SUMS: usize = ROWS * 2 * 16;

/// One call of a tile: `rows x (vectors * lanes)` sums over `runs * words` words each.
pub(super) struct Step<'a> {
    /// The first pixel.
    pub image: *const u8,
    /// Bytes from the words of one row of the tile to those of the next.
    pub pixel: usize,
    /// Where the runs of words begin, in bytes from `image`.
    pub runs: &'a [usize],
    /// Words of a run.
    pub words: usize,
    /// `[runs][words][vectors * lanes]` words.
    pub weights: *const u32,
    /// `[rows][vectors * lanes]` sums.
    pub sums: *mut u32,
}

/// One call of a depthwise tile: `rows x (vectors * lanes)` sums over the taps.
pub(super) struct DepthStep<'a> {
    /// The first pixel's first channel.
    pub image: *const u32,
    /// Words from one row of the tile to the next.
    pub pixel: usize,
    /// For each tap, where its words begin, from `image`, and its weights, from `weights`.
    pub taps: &'a [(usize, usize)],
    pub weights: *const u32,
    /// `[rows][vectors * lanes]` sums.
    pub sums: *mut u32,
}

/// The inner loops of one instruction set for one kind of words. All need the instruction set under which they are
/// listed, and pointers that reach as far as their steps say.
pub(super) struct Tile {
    /// Words of a vector.
    pub lanes: usize,
    /// `wide[r - 1]`: `r` rows of two vectors.
    pub wide: &'static [unsafe fn(&Step)],
    /// `narrow[r - 1]`: `r` rows of one vector.
    pub narrow: &'static [unsafe fn(&Step)],
    /// Depthwise, as `wide`.
    pub depth_wide: &'static [unsafe fn(&DepthStep)],
    /// Depthwise, as `narrow`.
    pub depth_narrow: &'static [unsafe fn(&DepthStep)],
    /// Depthwise: a row of many vectors (how many, and the function).
    pub depth_row: (usize, unsafe fn(&DepthStep)),
}

impl Tile {
    /// The best inner loops on `isa`, which must be available.
    pub fn select(isa: Isa, words: Words) -> &'static Tile {
        #[cfg(target_arch = "x86_64")]
        if let Some(tile) = x86::select(isa, words) {
            return tile;
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(tile) = arm::select(isa, words) {
            return tile;
        }
        let _ = isa;
        match words {
            Words::Real => &PLAIN_REAL,
            _ => &PLAIN_PAIR,
        }
    }

    /// Is there a dot product of bytes on `isa`?
    pub fn has_quads(isa: Isa) -> bool {
        isa == Isa::Avx512Vnni
    }
}

/// Makes words of the bytes of four rows that are as long as `to`, each byte xor `flip`, for tiles of
/// [`Words::Quad`] on `isa`.
#[inline(always)]
pub(super) fn weave(isa: Isa, rows: [&[u8]; 4], flip: u8, to: &mut [u32]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni {
        // SAFETY: tiles of quads are only selected for an available instruction set.
        done = unsafe { x86::weave(rows, flip, to) };
    }
    let _ = isa;
    let [a, b, c, d] = rows;
    for (i, to) in to.iter_mut().enumerate().skip(done) {
        *to = u32::from_le_bytes([a[i] ^ flip, b[i] ^ flip, c[i] ^ flip, d[i] ^ flip]);
    }
}

/// A vector of words.
trait Lanes: Copy {
    const LANES: usize;
    /// # Safety
    /// This and all other methods need the instruction set of the implementing type; `from` and `to` must be valid
    /// for `LANES` words (one for `splat`), at any address.
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const u32) -> Self;
    unsafe fn splat(from: *const u32) -> Self;
    unsafe fn mac(self, weights: Self, image: Self) -> Self;
    unsafe fn store(self, to: *mut u32);
}

/// `value`, of which the compiler forgets where it came from: addresses then stay sums of the registers at hand
/// instead of becoming a register each.
#[inline(always)]
fn opaque(value: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let mut value = value;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags))
        };
        value
    }
    #[cfg(not(target_arch = "x86_64"))]
    value
}

/// The body of the wide and narrow tiles.
///
/// # Safety
/// The pointers of `s` must be valid as described there, and the processor must have what `V` needs.
#[inline(always)]
unsafe fn step<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[V::zero(); N]; R];
        let (one, three) = (s.pixel, opaque(3 * s.pixel));
        let mut weights = s.weights;
        for &run in s.runs {
            let first = s.image.add(run) as usize;
            let mut bases = [first, opaque(first + 5 * one), opaque(first + 10 * one)];
            for _ in 0..s.words {
                let mut cols = [V::zero(); N];
                for (v, col) in cols.iter_mut().enumerate() {
                    *col = V::load(weights.add(v * V::LANES));
                }
                for_rows!(ROW < R, {
                    let base = bases[ROW / 5];
                    let at = match ROW % 5 {
                        0 => base,
                        1 => base + one,
                        2 => base + 2 * one,
                        3 => base + three,
                        _ => base + 4 * one,
                    };
                    let word = V::splat(at as *const u32);
                    for (sum, col) in sums[ROW].iter_mut().zip(cols) {
                        *sum = sum.mac(col, word);
                    }
                });
                bases = bases.map(|base| base + 4);
                weights = weights.add(N * V::LANES);
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                sum.store(s.sums.add((r * N + v) * V::LANES));
            }
        }
    }
}

/// The body of the depthwise tiles.
///
/// # Safety
/// As for [`step`].
#[inline(always)]
unsafe fn depth_step<V: Lanes, const R: usize, const N: usize>(s: &DepthStep) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[V::zero(); N]; R];
        for &(image, weights) in s.taps {
            let (image, weights) = (s.image.add(image), s.weights.add(weights));
            let mut cols = [V::zero(); N];
            for (v, col) in cols.iter_mut().enumerate() {
                *col = V::load(weights.add(v * V::LANES));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, (sum, col)) in row.iter_mut().zip(cols).enumerate() {
                    *sum = sum.mac(col, V::load(image.add(r * s.pixel + v * V::LANES)));
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                sum.store(s.sums.add((r * N + v) * V::LANES));
            }
        }
    }
}

#[derive(Clone, Copy)]
struct PlainReal([f32; 4]);

impl Lanes for PlainReal {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        PlainReal([0.0; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: four words are readable.
        PlainReal(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: a word is readable.
        PlainReal([unsafe { from.cast::<f32>().read_unaligned() }; 4])
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        PlainReal(std::array::from_fn(|i| self.0[i] + weights.0[i] * image.0[i]))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: four words are writable.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
}

#[derive(Clone, Copy)]
struct PlainPair([u32; 4]);

impl Lanes for PlainPair {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        PlainPair([0; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: four words are readable.
        PlainPair(unsafe { from.cast::<[u32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: a word is readable.
        PlainPair([unsafe { from.read_unaligned() }; 4])
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        let half = |x: u32| [i32::from(x as u16 as i16), (x as i32) >> 16];
        PlainPair(std::array::from_fn(|i| {
            let (w, p) = (half(weights.0[i]), half(image.0[i]));
            self.0[i].wrapping_add((w[0] * p[0]).wrapping_add(w[1] * p[1]) as u32)
        }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: four words are writable.
        unsafe { to.cast::<[u32; 4]>().write_unaligned(self.0) }
    }
}

/// # Safety
/// As for [`step`], but for the processor.
unsafe fn plain<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: the vectors need nothing of the processor; the pointers are the caller's promise.
    unsafe { step::<V, R, N>(s) }
}

/// # Safety
/// As for [`depth_step`], but for the processor.
unsafe fn plain_depth<V: Lanes, const R: usize, const N: usize>(s: &DepthStep) {
    // SAFETY: as above.
    unsafe { depth_step::<V, R, N>(s) }
}

static PLAIN_REAL: Tile = Tile {
    lanes: 4,
    wide: &[
        plain::<PlainReal, 1, 2>,
        plain::<PlainReal, 2, 2>,
        plain::<PlainReal, 3, 2>,
        plain::<PlainReal, 4, 2>,
    ],
    narrow: &[
        plain::<PlainReal, 1, 1>,
        plain::<PlainReal, 2, 1>,
        plain::<PlainReal, 3, 1>,
        plain::<PlainReal, 4, 1>,
    ],
    depth_wide: &[plain_depth::<PlainReal, 1, 2>, plain_depth::<PlainReal, 2, 2>],
    depth_narrow: &[plain_depth::<PlainReal, 1, 1>, plain_depth::<PlainReal, 2, 1>],
    depth_row: (4, plain_depth::<PlainReal, 1, 4>),
};

static PLAIN_PAIR: Tile = Tile {
    lanes: 4,
    wide: &[plain::<PlainPair, 1, 2>, plain::<PlainPair, 2, 2>],
    narrow: &[plain::<PlainPair, 1, 1>, plain::<PlainPair, 2, 1>, plain::<PlainPair, 3, 1>],
    depth_wide: &[plain_depth::<PlainPair, 1, 2>, plain_depth::<PlainPair, 2, 2>],
    depth_narrow: &[plain_depth::<PlainPair, 1, 1>, plain_depth::<PlainPair, 2, 1>],
    depth_row: (4, plain_depth::<PlainPair, 1, 4>),
};

const _: () = assert!(VECTORS * 16 <= SUMS);
