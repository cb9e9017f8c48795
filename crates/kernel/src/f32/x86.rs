//! Tiles for x86-64: AVX2 with FMA, AVX-512.

use super::tile::{Lanes, Tile, TileFn, Tiles, tile};
use std::arch::x86_64::*;

impl Lanes for __m256 {
    const N: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn add(self, a: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm256_add_ps(self, a) }
    }

    #[inline(always)]
    unsafe fn clamp(self, lo: Self, hi: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm256_min_ps(hi, _mm256_max_ps(lo, self)) }
    }
}

impl Lanes for __m512 {
    const N: usize = 16;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn add(self, a: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm512_add_ps(self, a) }
    }

    #[inline(always)]
    unsafe fn clamp(self, lo: Self, hi: Self) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm512_min_ps(hi, _mm512_max_ps(lo, self)) }
    }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<__m256, R, V, 2>(t) }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<__m512, R, V, 2>(t) }
}

pub(super) static AVX2: Tiles = Tiles {
    lanes: 8,
    nr: 16,
    full: &avx2_rows::<2>(),
    half: &avx2_rows::<1>(),
    wide: &[(4, avx2::<1, 8>), (2, avx2::<2, 4>)],
};

pub(super) static AVX512: Tiles = Tiles {
    lanes: 16,
    nr: 32,
    full: &avx512_rows::<2>(),
    half: &avx512_rows::<1>(),
    wide: &[(4, avx512::<1, 8>), (4, avx512::<2, 8>), (3, avx512::<3, 6>), (2, avx512::<4, 4>)],
};

const fn avx2_rows<const V: usize>() -> [TileFn; 6] {
    [avx2::<1, V>, avx2::<2, V>, avx2::<3, V>, avx2::<4, V>, avx2::<5, V>, avx2::<6, V>]
}

const fn avx512_rows<const V: usize>() -> [TileFn; 14] {
    [
        avx512::<1, V>,
        avx512::<2, V>,
        avx512::<3, V>,
        avx512::<4, V>,
        avx512::<5, V>,
        avx512::<6, V>,
        avx512::<7, V>,
        avx512::<8, V>,
        avx512::<9, V>,
        avx512::<10, V>,
        avx512::<11, V>,
        avx512::<12, V>,
        avx512::<13, V>,
        avx512::<14, V>,
    ]
}
