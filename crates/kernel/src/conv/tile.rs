//! The inner loop of every convolution: a few output channels times a few vectors of pixels.
//!
//! Everything is made of 32-bit words: an `f32`, four bytes of four channels, or two 16-bit numbers of two
//! channels. A weight word is broadcast, a vector of consecutive pixel words is loaded, and their product is
//! added to a vector of 32-bit sums; what "product" means is the only difference between the formats.

use crate::Isa;

#[cfg(target_arch = "aarch64")]
mod arm;
mod slide;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use slide::{BLOCK, Run, Slide, Sweep};

/// What one word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// One `f32`.
    Real,
    /// Four unsigned pixel bytes, four signed weight bytes.
    Quad,
    /// Two signed 16-bit numbers.
    Pair,
}

/// One call of a [`Tile`]: `rows x (vectors * lanes)` sums over `taps x units` words each.
pub(super) struct Step<'a> {
    /// `[taps][units][rows]` words.
    pub weights: *const u32,
    /// The first pixel of unit 0.
    pub planes: *const u32,
    /// Where each tap's pixels begin, from `planes`.
    pub taps: &'a [usize],
    /// Channels (or packs of channels) to add up.
    pub units: usize,
    /// Words from one unit's planes to the next.
    pub unit_len: usize,
    /// The sum of row 0, pixel 0.
    pub sums: *mut u32,
    /// Words from one row of sums to the next.
    pub sums_len: usize,
    /// Overwrite the sums instead of adding to them.
    pub first: bool,
}

/// A family of inner loops of one instruction set; `run[v - 1]` computes `v` vectors of pixels.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Output channels of a step.
    pub rows: usize,
    /// Words of a vector.
    pub lanes: usize,
    /// By the number of vectors. Each reads `rows` weight words for each tap and unit, and
    /// `vectors * lanes` pixel words and sums, and needs the instruction set under which it is listed.
    pub run: &'static [unsafe fn(&Step)],
}

impl Tile {
    /// The best family for `rows` output channels on `isa`, which must be available.
    pub fn select(isa: Isa, words: Words, rows: usize) -> Tile {
        let isa = match isa {
            Isa::Avx512Vnni if words != Words::Quad => Isa::Avx512,
            Isa::NeonDot => Isa::Neon,
            isa => isa,
        };
        let cost = |tile: &Tile| {
            let row = match tile.rows {
                1 => 20,
                4 => 11,
                _ => 10,
            };
            rows.next_multiple_of(tile.rows) * row
        };
        let find = |isa: Isa| {
            let fits = ARCH.iter().chain(PLAIN).filter(|t| t.0 == isa && t.1 == words).map(|t| t.2);
            fits.min_by_key(cost)
        };
        find(isa).or_else(|| find(Isa::Scalar)).unwrap_or(PLAIN_ROW)
    }

    /// Are there inner loops for these words on `isa`?
    pub fn exists(isa: Isa, words: Words) -> bool {
        ARCH.iter().chain(PLAIN).any(|t| t.0 == isa && t.1 == words)
    }
}

/// A vector of words.
trait Lanes: Copy {
    const LANES: usize;
    /// # Safety
    /// This and all other methods need the instruction set of the implementing type; `from` and `to` must
    /// be valid for `LANES` words (one for `splat`). `load` takes any address.
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const u32) -> Self;
    unsafe fn splat(from: *const u32) -> Self;
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self;
    unsafe fn store(self, to: *mut u32);
}

/// # Safety
/// The pointers of `s` must be valid as described at [`Tile::run`], and the processor must have what `V` needs.
#[inline(always)]
unsafe fn step<V: Lanes, const ROWS: usize, const VECTORS: usize>(s: &Step) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[V::zero(); VECTORS]; ROWS];
        if !s.first {
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = V::load(s.sums.add(r * s.sums_len + v * V::LANES));
                }
            }
        }
        let mut weights = s.weights;
        for &tap in s.taps {
            let mut from = s.planes.add(tap);
            for _ in 0..s.units {
                let mut pixels = [V::zero(); VECTORS];
                for (v, pixel) in pixels.iter_mut().enumerate() {
                    *pixel = V::load(from.add(v * V::LANES));
                }
                for (r, row) in sums.iter_mut().enumerate() {
                    let weight = V::splat(weights.add(r));
                    for (sum, &pixel) in row.iter_mut().zip(&pixels) {
                        *sum = sum.mac(weight, pixel);
                    }
                }
                weights = weights.add(ROWS);
                from = from.wrapping_add(s.unit_len);
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                sum.store(s.sums.add(r * s.sums_len + v * V::LANES));
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
        PlainReal([unsafe { from.cast::<f32>().read() }; 4])
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        PlainReal(std::array::from_fn(|i| self.0[i] + weights.0[i] * pixels.0[i]))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: four words are writable.
        unsafe { to.cast::<[f32; 4]>().write(self.0) }
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
        PlainPair([unsafe { from.read() }; 4])
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        let half = |x: u32| [i32::from(x as u16 as i16), (x as i32) >> 16];
        PlainPair(std::array::from_fn(|i| {
            let (w, p) = (half(weights.0[i]), half(pixels.0[i]));
            self.0[i].wrapping_add((w[0] * p[0]).wrapping_add(w[1] * p[1]) as u32)
        }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: four words are writable.
        unsafe { to.cast::<[u32; 4]>().write(self.0) }
    }
}

unsafe fn plain<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: the plain vectors need nothing of the processor; the pointers are the caller's promise.
    unsafe { step::<V, R, N>(s) }
}

const PLAIN_ROW: Tile = Tile {
    rows: 1,
    lanes: 4,
    run: &[
        plain::<PlainReal, 1, 1>,
        plain::<PlainReal, 1, 2>,
        plain::<PlainReal, 1, 3>,
        plain::<PlainReal, 1, 4>,
    ],
};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH: &[(Isa, Words, Tile)] = &[];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH_SLIDES: &[(Isa, Words, Slide)] = &[];
#[cfg(target_arch = "aarch64")]
use arm::{SLIDES as ARCH_SLIDES, TILES as ARCH};
#[cfg(target_arch = "x86_64")]
use x86::{SLIDES as ARCH_SLIDES, TILES as ARCH};

/// By instruction set, words and rows.
const PLAIN: &[(Isa, Words, Tile)] = &[
    (
        Isa::Scalar,
        Words::Real,
        Tile {
            rows: 4,
            lanes: 4,
            run: &[plain::<PlainReal, 4, 1>, plain::<PlainReal, 4, 2>, plain::<PlainReal, 4, 3>],
        },
    ),
    (Isa::Scalar, Words::Real, PLAIN_ROW),
    (
        Isa::Scalar,
        Words::Pair,
        Tile { rows: 4, lanes: 4, run: &[plain::<PlainPair, 4, 1>, plain::<PlainPair, 4, 2>] },
    ),
    (
        Isa::Scalar,
        Words::Pair,
        Tile { rows: 1, lanes: 4, run: &[plain::<PlainPair, 1, 1>, plain::<PlainPair, 1, 2>] },
    ),
];
