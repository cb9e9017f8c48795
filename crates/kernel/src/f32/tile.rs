//! The tile of the product that stays in registers: written once over [`Lanes`], compiled per instruction set.

use crate::matmul::tile::for_rows;

/// A register of `N` numbers.
pub(super) trait Lanes: Copy {
    /// Numbers in a register.
    const N: usize;
    /// # Safety
    /// The instruction set is there and `N` numbers can be read.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// The instruction set is there and `N` numbers can be written.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// The instruction set is there.
    unsafe fn splat(value: f32) -> Self;
    /// `self + a * b`.
    /// # Safety
    /// The instruction set is there.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// `self + a`.
    /// # Safety
    /// The instruction set is there.
    unsafe fn add(self, a: Self) -> Self;
    /// `min(max(self, lo), hi)`; a NaN stays.
    /// # Safety
    /// The instruction set is there.
    unsafe fn clamp(self, lo: Self, hi: Self) -> Self;
}

/// One tile: `c = clamp(alpha * a * b + add + bias)`, where a null pointer stands for "nothing".
pub(super) struct Tile {
    /// Length of the sums.
    pub k: usize,
    /// `[k][rows]`.
    pub a: *const f32,
    /// Panels of `[k][..]`.
    pub b: *const f32,
    /// From one step of `k` to the next within a panel of `b`.
    pub b_step: usize,
    /// From one panel of `b` to the next.
    pub b_panel: usize,
    pub c: *mut f32,
    pub c_stride: usize,
    pub add: *const f32,
    pub add_stride: usize,
    pub alpha: f32,
    pub col_bias: *const f32,
    pub row_bias: *const f32,
    pub lo: f32,
    pub hi: f32,
}

/// Computes a tile. Each element is one chain of sums over `k`, so it does not depend on the tile's size.
pub(super) type TileFn = unsafe fn(&Tile);

/// The body of every [`TileFn`]: `R` rows (at most 14), `V` registers of columns, `P` registers a panel of `b`.
///
/// # Safety
/// The instruction set of `L` is there, and all pointers of the tile reach as far as its sizes say.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, const R: usize, const V: usize, const P: usize>(t: &Tile) {
    // SAFETY: as above.
    unsafe {
        let mut acc = [[L::splat(0.0); V]; R];
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            let mut cols = [L::splat(0.0); V];
            for (v, col) in cols.iter_mut().enumerate() {
                *col = L::load(b.add(v / P * t.b_panel + v % P * L::N));
            }
            for_rows!(ROW < R, {
                let scale = L::splat(*a.add(ROW));
                for (sum, col) in acc[ROW].iter_mut().zip(cols) {
                    *sum = sum.add_product(scale, col);
                }
            });
            a = a.add(R);
            b = b.wrapping_add(t.b_step);
        }
        for_rows!(ROW < R, { finish(t, ROW, &acc[ROW]) });
    }
}

/// Brings one row of sums into the output.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn finish<L: Lanes, const V: usize>(t: &Tile, row: usize, sums: &[L; V]) {
    // SAFETY: promised by the caller.
    unsafe {
        let (alpha, lo, hi) = (L::splat(t.alpha), L::splat(t.lo), L::splat(t.hi));
        let row_bias = L::splat(if t.row_bias.is_null() { 0.0 } else { *t.row_bias.add(row) });
        for (v, &sum) in sums.iter().enumerate() {
            let mut start = row_bias;
            if !t.add.is_null() {
                start = start.add(L::load(t.add.add(row * t.add_stride + v * L::N)));
            }
            if !t.col_bias.is_null() {
                start = start.add(L::load(t.col_bias.add(v * L::N)));
            }
            start.add_product(alpha, sum).clamp(lo, hi).store(t.c.add(row * t.c_stride + v * L::N));
        }
    }
}

/// The tiles of one instruction set.
pub(super) struct Tiles {
    /// Numbers in a register.
    pub lanes: usize,
    /// Columns of a panel: two registers.
    pub nr: usize,
    /// `full[r - 1]`: `r` rows, one panel.
    pub full: &'static [TileFn],
    /// `half[r - 1]`: `r` rows, the first register of a panel.
    pub half: &'static [TileFn],
    /// `wide[r - 1]`: `r` rows, several panels (how many, and the function).
    pub wide: &'static [(usize, TileFn)],
}

impl Lanes for [f32; 4] {
    const N: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] + a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn add(self, a: Self) -> Self {
        std::array::from_fn(|i| self[i] + a[i])
    }

    #[inline(always)]
    unsafe fn clamp(self, lo: Self, hi: Self) -> Self {
        std::array::from_fn(|i| {
            let raised = if lo[i] > self[i] { lo[i] } else { self[i] };
            if hi[i] < raised { hi[i] } else { raised }
        })
    }
}

/// # Safety
/// As for [`tile`].
unsafe fn scalar<const R: usize, const V: usize, const P: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<[f32; 4], R, V, P>(t) }
}

pub(super) static SCALAR: Tiles = Tiles {
    lanes: 4,
    nr: 8,
    full: &[scalar::<1, 2, 2>, scalar::<2, 2, 2>, scalar::<3, 2, 2>, scalar::<4, 2, 2>],
    half: &[scalar::<1, 1, 2>, scalar::<2, 1, 2>, scalar::<3, 1, 2>, scalar::<4, 1, 2>],
    wide: &[(4, scalar::<1, 8, 2>)],
};
