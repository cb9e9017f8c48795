//! Integer tiles for x86-64: SSE4.1, AVX2, AVX-512 with and without VNNI. Without VNNI, bytes are widened to 16
//! bits first, because the instruction that multiplies bytes saturates.

use super::tile::{Columns, Finish, Layout, Sums, Tile, TileFn, Tiles, finish, tile};
use std::arch::x86_64::*;

/// Sums of AVX-512 VNNI.
#[derive(Clone, Copy)]
struct Vnni(__m512i);

impl Sums for Vnni {
    const N: usize = 16;
    const BYTES: usize = 64;
    type Left = __m512i;
    type Right = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: promised by the caller.
        Vnni(unsafe { _mm512_setzero_si512() })
    }

    #[inline(always)]
    unsafe fn left(from: *const u8) -> __m512i {
        // SAFETY: promised by the caller.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn right(from: *const u8) -> __m512i {
        // SAFETY: promised by the caller.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: __m512i, b: __m512i) -> Self {
        // SAFETY: promised by the caller.
        Vnni(unsafe { _mm512_dpbusd_epi32(self.0, a, b) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
}

impl Sums for __m512i {
    const N: usize = 16;
    const BYTES: usize = 32;
    type Left = __m512i;
    type Right = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn left(from: *const u8) -> __m512i {
        // SAFETY: promised by the caller.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn right(from: *const u8) -> __m512i {
        // SAFETY: promised by the caller.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: __m512i, b: __m512i) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm512_add_epi32(self, _mm512_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe { _mm512_storeu_si512(to.cast(), self) }
    }
}

impl Sums for __m256i {
    const N: usize = 8;
    const BYTES: usize = 16;
    type Left = __m256i;
    type Right = __m256i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn left(from: *const u8) -> __m256i {
        // SAFETY: promised by the caller.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn right(from: *const u8) -> __m256i {
        // SAFETY: promised by the caller.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: __m256i, b: __m256i) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm256_add_epi32(self, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe { _mm256_storeu_si256(to.cast(), self) }
    }
}

impl Sums for __m128i {
    const N: usize = 4;
    const BYTES: usize = 8;
    type Left = __m128i;
    type Right = __m128i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm_setzero_si128() }
    }

    #[inline(always)]
    unsafe fn left(from: *const u8) -> __m128i {
        // SAFETY: promised by the caller.
        unsafe { _mm_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn right(from: *const u8) -> __m128i {
        // SAFETY: promised by the caller.
        unsafe { _mm_cvtepi8_epi16(_mm_loadl_epi64(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: __m128i, b: __m128i) -> Self {
        // SAFETY: promised by the caller.
        unsafe { _mm_add_epi32(self, _mm_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe { _mm_storeu_si128(to.cast(), self) }
    }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "sse4.1")]
unsafe fn sse41<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<__m128i, R, V>(t) }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<__m256i, R, V>(t) }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<__m512i, R, V>(t) }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn vnni<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: promised by the caller.
    unsafe { tile::<Vnni, R, V>(t) }
}

/// # Safety
/// As for [`finish`].
#[target_feature(enable = "sse4.1")]
unsafe fn sse41_finish(f: &Finish, c: &Columns) {
    // SAFETY: promised by the caller.
    unsafe { finish(f, c) }
}

/// # Safety
/// As for [`finish`].
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_finish(f: &Finish, c: &Columns) {
    // SAFETY: promised by the caller.
    unsafe { finish(f, c) }
}

/// # Safety
/// As for [`finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512_finish(f: &Finish, c: &Columns) {
    // SAFETY: promised by the caller.
    unsafe { finish(f, c) }
}

pub(super) static SSE41: Tiles = Tiles {
    layout: Layout::Pairs,
    nr: 8,
    full: &[sse41::<1, 2>, sse41::<2, 2>, sse41::<3, 2>, sse41::<4, 2>, sse41::<5, 2>, sse41::<6, 2>],
    wide: (2, sse41::<1, 4>),
    finish: sse41_finish,
};

pub(super) static AVX2: Tiles = Tiles {
    layout: Layout::Pairs,
    nr: 16,
    full: &[avx2::<1, 2>, avx2::<2, 2>, avx2::<3, 2>, avx2::<4, 2>, avx2::<5, 2>, avx2::<6, 2>],
    wide: (4, avx2::<1, 8>),
    finish: avx2_finish,
};

pub(super) static AVX512: Tiles = Tiles {
    layout: Layout::Pairs,
    nr: 32,
    full: AVX512_ROWS,
    wide: (4, avx512::<1, 8>),
    finish: avx512_finish,
};

pub(super) static VNNI: Tiles = Tiles {
    layout: Layout::Quads { signed: false },
    nr: 32,
    full: VNNI_ROWS,
    wide: (4, vnni::<1, 8>),
    finish: avx512_finish,
};

const AVX512_ROWS: &[TileFn] = &[
    avx512::<1, 2>,
    avx512::<2, 2>,
    avx512::<3, 2>,
    avx512::<4, 2>,
    avx512::<5, 2>,
    avx512::<6, 2>,
    avx512::<7, 2>,
    avx512::<8, 2>,
    avx512::<9, 2>,
    avx512::<10, 2>,
    avx512::<11, 2>,
    avx512::<12, 2>,
];

const VNNI_ROWS: &[TileFn] = &[
    vnni::<1, 2>,
    vnni::<2, 2>,
    vnni::<3, 2>,
    vnni::<4, 2>,
    vnni::<5, 2>,
    vnni::<6, 2>,
    vnni::<7, 2>,
    vnni::<8, 2>,
    vnni::<9, 2>,
    vnni::<10, 2>,
    vnni::<11, 2>,
    vnni::<12, 2>,
    vnni::<13, 2>,
    vnni::<14, 2>,
];
