//! The inner loops for NEON, which every AArch64 processor has.

use super::{Lanes, Tile, Words, plain, plain_depth};
use crate::Isa;
use std::arch::aarch64::*;

#[derive(Clone, Copy)]
struct Real(float32x4_t);

impl Lanes for Real {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: NEON is part of AArch64.
        Real(unsafe { vdupq_n_f32(0.0) })
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: four words are readable.
        Real(unsafe { vld1q_f32(from.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: a word is readable.
        Real(unsafe { vld1q_dup_f32(from.cast()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        // SAFETY: NEON is part of AArch64.
        Real(unsafe { vfmaq_f32(self.0, weights.0, image.0) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: four words are writable.
        unsafe { vst1q_f32(to.cast(), self.0) }
    }
}

#[derive(Clone, Copy)]
struct Pair(int32x4_t);

impl Lanes for Pair {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: NEON is part of AArch64.
        Pair(unsafe { vdupq_n_s32(0) })
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: four words are readable.
        Pair(unsafe { vld1q_s32(from.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: a word is readable.
        Pair(unsafe { vld1q_dup_s32(from.cast()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        // SAFETY: NEON is part of AArch64.
        Pair(unsafe {
            let (w, p) = (vreinterpretq_s16_s32(weights.0), vreinterpretq_s16_s32(image.0));
            let low = vmull_s16(vget_low_s16(w), vget_low_s16(p));
            vaddq_s32(self.0, vpaddq_s32(low, vmull_high_s16(w, p)))
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: four words are writable.
        unsafe { vst1q_s32(to.cast(), self.0) }
    }
}

pub(super) fn select(isa: Isa, words: Words) -> Option<&'static Tile> {
    Some(match (isa, words) {
        (Isa::Neon | Isa::NeonDot, Words::Real) => &REAL,
        (Isa::Neon | Isa::NeonDot, Words::Pair) => &PAIR,
        _ => return None,
    })
}

static REAL: Tile = Tile {
    lanes: 4,
    wide: &[
        plain::<Real, 1, 2>,
        plain::<Real, 2, 2>,
        plain::<Real, 3, 2>,
        plain::<Real, 4, 2>,
        plain::<Real, 5, 2>,
        plain::<Real, 6, 2>,
        plain::<Real, 7, 2>,
        plain::<Real, 8, 2>,
        plain::<Real, 9, 2>,
        plain::<Real, 10, 2>,
    ],
    narrow: &[
        plain::<Real, 1, 1>,
        plain::<Real, 2, 1>,
        plain::<Real, 3, 1>,
        plain::<Real, 4, 1>,
        plain::<Real, 5, 1>,
        plain::<Real, 6, 1>,
        plain::<Real, 7, 1>,
        plain::<Real, 8, 1>,
        plain::<Real, 9, 1>,
        plain::<Real, 10, 1>,
        plain::<Real, 11, 1>,
        plain::<Real, 12, 1>,
        plain::<Real, 13, 1>,
        plain::<Real, 14, 1>,
    ],
    depth_wide: &[
        plain_depth::<Real, 1, 2>,
        plain_depth::<Real, 2, 2>,
        plain_depth::<Real, 3, 2>,
        plain_depth::<Real, 4, 2>,
        plain_depth::<Real, 5, 2>,
        plain_depth::<Real, 6, 2>,
        plain_depth::<Real, 7, 2>,
        plain_depth::<Real, 8, 2>,
    ],
    depth_narrow: &[
        plain_depth::<Real, 1, 1>,
        plain_depth::<Real, 2, 1>,
        plain_depth::<Real, 3, 1>,
        plain_depth::<Real, 4, 1>,
        plain_depth::<Real, 5, 1>,
        plain_depth::<Real, 6, 1>,
        plain_depth::<Real, 7, 1>,
        plain_depth::<Real, 8, 1>,
    ],
    depth_row: (8, plain_depth::<Real, 1, 8>),
};

static PAIR: Tile = Tile {
    lanes: 4,
    wide: &[
        plain::<Pair, 1, 2>,
        plain::<Pair, 2, 2>,
        plain::<Pair, 3, 2>,
        plain::<Pair, 4, 2>,
        plain::<Pair, 5, 2>,
        plain::<Pair, 6, 2>,
        plain::<Pair, 7, 2>,
        plain::<Pair, 8, 2>,
    ],
    narrow: &[
        plain::<Pair, 1, 1>,
        plain::<Pair, 2, 1>,
        plain::<Pair, 3, 1>,
        plain::<Pair, 4, 1>,
        plain::<Pair, 5, 1>,
        plain::<Pair, 6, 1>,
        plain::<Pair, 7, 1>,
        plain::<Pair, 8, 1>,
        plain::<Pair, 9, 1>,
        plain::<Pair, 10, 1>,
        plain::<Pair, 11, 1>,
        plain::<Pair, 12, 1>,
    ],
    depth_wide: &[
        plain_depth::<Pair, 1, 2>,
        plain_depth::<Pair, 2, 2>,
        plain_depth::<Pair, 3, 2>,
        plain_depth::<Pair, 4, 2>,
        plain_depth::<Pair, 5, 2>,
        plain_depth::<Pair, 6, 2>,
    ],
    depth_narrow: &[
        plain_depth::<Pair, 1, 1>,
        plain_depth::<Pair, 2, 1>,
        plain_depth::<Pair, 3, 1>,
        plain_depth::<Pair, 4, 1>,
        plain_depth::<Pair, 5, 1>,
        plain_depth::<Pair, 6, 1>,
    ],
    depth_row: (6, plain_depth::<Pair, 1, 6>),
};
