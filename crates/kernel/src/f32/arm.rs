//! Tiles for AArch64: NEON.

use super::tile::{Lanes, Tile, TileFn, Tiles, tile};
use std::arch::aarch64::*;

impl Lanes for float32x4_t {
    const N: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { vfmaq_f32(self, a, b) }
    }

    #[inline(always)]
    unsafe fn add(self, a: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { vaddq_f32(self, a) }
    }

    #[inline(always)]
    unsafe fn clamp(self, lo: Self, hi: Self) -> Self {
        // SAFETY: promised by the caller; `fmax` and `fmin` keep a NaN.
        unsafe { vminq_f32(vmaxq_f32(self, lo), hi) }
    }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "neon")]
unsafe fn neon<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<float32x4_t, R, V, 2>(t) }
}

pub(super) static NEON: Tiles = Tiles {
    lanes: 4,
    nr: 8,
    full: &rows::<2>(),
    half: &rows::<1>(),
    wide: &[(4, neon::<1, 8>), (4, neon::<2, 8>), (3, neon::<3, 6>)],
};

const fn rows<const V: usize>() -> [TileFn; 12] {
    [
        neon::<1, V>,
        neon::<2, V>,
        neon::<3, V>,
        neon::<4, V>,
        neon::<5, V>,
        neon::<6, V>,
        neon::<7, V>,
        neon::<8, V>,
        neon::<9, V>,
        neon::<10, V>,
        neon::<11, V>,
        neon::<12, V>,
    ]
}
