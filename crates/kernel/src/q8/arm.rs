//! Integer tiles for AArch64: NEON with widened bytes, and the dot-product extension.

use super::tile::{Columns, Finish, Layout, Sums, Tile, TileFn, Tiles, finish, tile};
use std::arch::aarch64::*;
use std::arch::asm;

/// Eight sums of NEON.
#[derive(Clone, Copy)]
struct Wide(int32x4_t, int32x4_t);

impl Sums for Wide {
    const N: usize = 8;
    const BYTES: usize = 16;
    type Left = [i16; 2];
    type Right = [int16x8_t; 2];

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: promised by the caller.
        unsafe { Wide(vdupq_n_s32(0), vdupq_n_s32(0)) }
    }

    #[inline(always)]
    unsafe fn left(from: *const u8) -> [i16; 2] {
        // SAFETY: promised by the caller.
        unsafe { from.cast::<[i16; 2]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn right(from: *const u8) -> [int16x8_t; 2] {
        // SAFETY: promised by the caller.
        unsafe {
            let pairs = vld2_s8(from.cast());
            [vmovl_s8(pairs.0), vmovl_s8(pairs.1)]
        }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: [i16; 2], b: [int16x8_t; 2]) -> Self {
        // SAFETY: promised by the caller.
        unsafe {
            let low = vmlal_n_s16(vmlal_n_s16(self.0, vget_low_s16(b[0]), a[0]), vget_low_s16(b[1]), a[1]);
            let high = vmlal_high_n_s16(vmlal_high_n_s16(self.1, b[0], a[0]), b[1], a[1]);
            Wide(low, high)
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe {
            vst1q_s32(to, self.0);
            vst1q_s32(to.add(4), self.1);
        }
    }
}

/// Four sums of the dot-product extension.
#[derive(Clone, Copy)]
struct Dot(int32x4_t);

impl Sums for Dot {
    const N: usize = 4;
    const BYTES: usize = 16;
    type Left = int32x4_t;
    type Right = int8x16_t;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: promised by the caller.
        Dot(unsafe { vdupq_n_s32(0) })
    }

    #[inline(always)]
    unsafe fn left(from: *const u8) -> int32x4_t {
        // SAFETY: promised by the caller.
        unsafe { vdupq_n_s32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn right(from: *const u8) -> int8x16_t {
        // SAFETY: promised by the caller.
        unsafe { vld1q_s8(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: int32x4_t, b: int8x16_t) -> Self {
        let mut sum = self.0;
        // SAFETY: the extension is there; the instruction touches these registers alone.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Dot(sum)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe { vst1q_s32(to, self.0) }
    }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "neon")]
unsafe fn neon<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<Wide, R, V>(t) }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<Dot, R, V>(t) }
}

/// # Safety
/// As for [`finish`].
#[target_feature(enable = "neon")]
unsafe fn neon_finish(f: &Finish, c: &Columns) {
    // SAFETY: promised by the caller.
    unsafe { finish(f, c) }
}

pub(super) static NEON: Tiles = Tiles {
    layout: Layout::Pairs,
    nr: 16,
    full: &[neon::<1, 2>, neon::<2, 2>, neon::<3, 2>, neon::<4, 2>, neon::<5, 2>, neon::<6, 2>],
    wide: (2, neon::<1, 4>),
    finish: neon_finish,
};

pub(super) static DOT: Tiles = Tiles {
    layout: Layout::Quads { signed: true },
    nr: 8,
    full: DOT_ROWS,
    wide: (4, dot::<1, 8>),
    finish: neon_finish,
};

const DOT_ROWS: &[TileFn] = &[
    dot::<1, 2>,
    dot::<2, 2>,
    dot::<3, 2>,
    dot::<4, 2>,
    dot::<5, 2>,
    dot::<6, 2>,
    dot::<7, 2>,
    dot::<8, 2>,
    dot::<9, 2>,
    dot::<10, 2>,
    dot::<11, 2>,
    dot::<12, 2>,
];
