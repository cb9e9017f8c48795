//! The inner loops for NEON, which every AArch64 processor has.

use super::slide::plain as sweep;
use super::{BLOCK, Lanes, Slide, Tile, Words, plain};
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
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        // SAFETY: NEON is part of AArch64.
        Real(unsafe { vfmaq_f32(self.0, weights.0, pixels.0) })
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
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        // SAFETY: NEON is part of AArch64.
        Pair(unsafe {
            let (w, p) = (vreinterpretq_s16_s32(weights.0), vreinterpretq_s16_s32(pixels.0));
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

/// By instruction set, words and rows.
pub(super) const TILES: &[(Isa, Words, Tile)] = &[
    (
        Isa::Neon,
        Words::Real,
        Tile { rows: 8, lanes: 4, run: &[plain::<Real, 8, 1>, plain::<Real, 8, 2>, plain::<Real, 8, 3>] },
    ),
    (
        Isa::Neon,
        Words::Real,
        Tile {
            rows: 1,
            lanes: 4,
            run: &[
                plain::<Real, 1, 1>,
                plain::<Real, 1, 2>,
                plain::<Real, 1, 3>,
                plain::<Real, 1, 4>,
                plain::<Real, 1, 5>,
                plain::<Real, 1, 6>,
                plain::<Real, 1, 7>,
                plain::<Real, 1, 8>,
            ],
        },
    ),
    (Isa::Neon, Words::Pair, Tile { rows: 8, lanes: 4, run: &[plain::<Pair, 8, 1>, plain::<Pair, 8, 2>] }),
    (
        Isa::Neon,
        Words::Pair,
        Tile {
            rows: 1,
            lanes: 4,
            run: &[
                plain::<Pair, 1, 1>,
                plain::<Pair, 1, 2>,
                plain::<Pair, 1, 3>,
                plain::<Pair, 1, 4>,
                plain::<Pair, 1, 5>,
                plain::<Pair, 1, 6>,
            ],
        },
    ),
];

/// By instruction set and words.
pub(super) const SLIDES: &[(Isa, Words, Slide)] = &[
    (
        Isa::Neon,
        Words::Real,
        Slide {
            lanes: 4,
            rows: [sweep::<Real, 3, 3, 1, 1>, sweep::<Real, 5, 5, 1, 1>],
            blocks: Some([
                [sweep::<Real, 3, 3, BLOCK, 1>, sweep::<Real, 5, 5, BLOCK, 1>],
                [sweep::<Real, 3, 3, BLOCK, 2>, sweep::<Real, 5, 5, BLOCK, 2>],
            ]),
        },
    ),
    (
        Isa::Neon,
        Words::Pair,
        Slide { lanes: 4, rows: [sweep::<Pair, 3, 2, 1, 1>, sweep::<Pair, 5, 3, 1, 1>], blocks: None },
    ),
];
