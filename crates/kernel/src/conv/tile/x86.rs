//! The inner loops for SSE4.1, AVX2, AVX-512 and AVX-512 VNNI.

use super::slide::sweep;
use super::{BLOCK, Lanes, Slide, Step, Sweep, Tile, Words, step};
use crate::Isa;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
struct Real256(__m256);

impl Lanes for Real256 {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX.
        Real256(unsafe { _mm256_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller has AVX, eight words are readable.
        Real256(unsafe { _mm256_loadu_ps(from.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: the caller has AVX, a word is readable.
        Real256(unsafe { _mm256_set1_ps(from.cast::<f32>().read()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        // SAFETY: the caller has FMA.
        Real256(unsafe { _mm256_fmadd_ps(weights.0, pixels.0, self.0) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller has AVX, eight words are writable.
        unsafe { _mm256_storeu_ps(to.cast(), self.0) }
    }
}

#[derive(Clone, Copy)]
struct Real512(__m512);

impl Lanes for Real512 {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX-512 F.
        Real512(unsafe { _mm512_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller has AVX-512 F, sixteen words are readable.
        Real512(unsafe { _mm512_loadu_ps(from.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: the caller has AVX-512 F, a word is readable.
        Real512(unsafe { _mm512_set1_ps(from.cast::<f32>().read()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        // SAFETY: the caller has AVX-512 F.
        Real512(unsafe { _mm512_fmadd_ps(weights.0, pixels.0, self.0) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller has AVX-512 F, sixteen words are writable.
        unsafe { _mm512_storeu_ps(to.cast(), self.0) }
    }
}

#[derive(Clone, Copy)]
struct Pair128(__m128i);

impl Lanes for Pair128 {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: SSE2 is part of x86-64.
        Pair128(unsafe { _mm_setzero_si128() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: four words are readable.
        Pair128(unsafe { _mm_loadu_si128(from.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: a word is readable.
        Pair128(unsafe { _mm_set1_epi32(from.cast::<i32>().read()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        // SAFETY: SSE2 is part of x86-64.
        Pair128(unsafe { _mm_add_epi32(self.0, _mm_madd_epi16(weights.0, pixels.0)) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: four words are writable.
        unsafe { _mm_storeu_si128(to.cast(), self.0) }
    }
}

#[derive(Clone, Copy)]
struct Pair256(__m256i);

impl Lanes for Pair256 {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX2.
        Pair256(unsafe { _mm256_setzero_si256() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller has AVX2, eight words are readable.
        Pair256(unsafe { _mm256_loadu_si256(from.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: the caller has AVX2, a word is readable.
        Pair256(unsafe { _mm256_set1_epi32(from.cast::<i32>().read()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        // SAFETY: the caller has AVX2.
        Pair256(unsafe { _mm256_add_epi32(self.0, _mm256_madd_epi16(weights.0, pixels.0)) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller has AVX2, eight words are writable.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }
}

/// Sixteen words; `QUAD` says whether they are four bytes (VNNI) or two 16-bit numbers.
#[derive(Clone, Copy)]
struct Int512<const QUAD: bool>(__m512i);

impl<const QUAD: bool> Lanes for Int512<QUAD> {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX-512 F.
        Int512(unsafe { _mm512_setzero_si512() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: the caller has AVX-512 F, sixteen words are readable.
        Int512(unsafe { _mm512_loadu_si512(from.cast()) })
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self {
        // SAFETY: the caller has AVX-512 F, a word is readable.
        Int512(unsafe { _mm512_set1_epi32(from.cast::<i32>().read()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, pixels: Self) -> Self {
        // SAFETY: the caller has AVX-512 BW, and VNNI where `QUAD` is set.
        Int512(unsafe {
            match QUAD {
                true => _mm512_dpbusd_epi32(self.0, pixels.0, weights.0),
                false => _mm512_add_epi32(self.0, _mm512_madd_epi16(weights.0, pixels.0)),
            }
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller has AVX-512 F, sixteen words are writable.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
}

#[target_feature(enable = "sse4.1")]
unsafe fn sse41<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { step::<V, R, N>(s) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { step::<V, R, N>(s) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { step::<V, R, N>(s) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn vnni<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { step::<V, R, N>(s) }
}

#[target_feature(enable = "sse4.1")]
unsafe fn sse41_sweep<V: Lanes, const KH: usize, const KW: usize, const R: usize, const S: usize>(s: &Sweep) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { sweep::<V, KH, KW, R, S>(s) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_sweep<V: Lanes, const KH: usize, const KW: usize, const R: usize, const S: usize>(s: &Sweep) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { sweep::<V, KH, KW, R, S>(s) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512_sweep<V: Lanes, const KH: usize, const KW: usize, const R: usize, const S: usize>(
    s: &Sweep,
) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { sweep::<V, KH, KW, R, S>(s) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn vnni_sweep<V: Lanes, const KH: usize, const KW: usize, const R: usize, const S: usize>(s: &Sweep) {
    // SAFETY: the features are enabled here; the pointers are the caller's promise.
    unsafe { sweep::<V, KH, KW, R, S>(s) }
}

type Quad512 = Int512<true>;
type Pair512 = Int512<false>;

/// By instruction set, words and rows.
pub(super) const TILES: &[(Isa, Words, Tile)] = &[
    (
        Isa::Sse41,
        Words::Pair,
        Tile {
            rows: 4,
            lanes: 4,
            run: &[sse41::<Pair128, 4, 1>, sse41::<Pair128, 4, 2>, sse41::<Pair128, 4, 3>],
        },
    ),
    (
        Isa::Sse41,
        Words::Pair,
        Tile {
            rows: 1,
            lanes: 4,
            run: &[
                sse41::<Pair128, 1, 1>,
                sse41::<Pair128, 1, 2>,
                sse41::<Pair128, 1, 3>,
                sse41::<Pair128, 1, 4>,
                sse41::<Pair128, 1, 5>,
                sse41::<Pair128, 1, 6>,
            ],
        },
    ),
    (
        Isa::Avx2,
        Words::Real,
        Tile {
            rows: 4,
            lanes: 8,
            run: &[avx2::<Real256, 4, 1>, avx2::<Real256, 4, 2>, avx2::<Real256, 4, 3>],
        },
    ),
    (
        Isa::Avx2,
        Words::Real,
        Tile {
            rows: 1,
            lanes: 8,
            run: &[
                avx2::<Real256, 1, 1>,
                avx2::<Real256, 1, 2>,
                avx2::<Real256, 1, 3>,
                avx2::<Real256, 1, 4>,
                avx2::<Real256, 1, 5>,
                avx2::<Real256, 1, 6>,
                avx2::<Real256, 1, 7>,
                avx2::<Real256, 1, 8>,
            ],
        },
    ),
    (
        Isa::Avx2,
        Words::Pair,
        Tile {
            rows: 4,
            lanes: 8,
            run: &[avx2::<Pair256, 4, 1>, avx2::<Pair256, 4, 2>, avx2::<Pair256, 4, 3>],
        },
    ),
    (
        Isa::Avx2,
        Words::Pair,
        Tile {
            rows: 1,
            lanes: 8,
            run: &[
                avx2::<Pair256, 1, 1>,
                avx2::<Pair256, 1, 2>,
                avx2::<Pair256, 1, 3>,
                avx2::<Pair256, 1, 4>,
                avx2::<Pair256, 1, 5>,
                avx2::<Pair256, 1, 6>,
                avx2::<Pair256, 1, 7>,
                avx2::<Pair256, 1, 8>,
            ],
        },
    ),
    (
        Isa::Avx512,
        Words::Real,
        Tile {
            rows: 8,
            lanes: 16,
            run: &[avx512::<Real512, 8, 1>, avx512::<Real512, 8, 2>, avx512::<Real512, 8, 3>],
        },
    ),
    (
        Isa::Avx512,
        Words::Real,
        Tile {
            rows: 1,
            lanes: 16,
            run: &[
                avx512::<Real512, 1, 1>,
                avx512::<Real512, 1, 2>,
                avx512::<Real512, 1, 3>,
                avx512::<Real512, 1, 4>,
                avx512::<Real512, 1, 5>,
                avx512::<Real512, 1, 6>,
                avx512::<Real512, 1, 7>,
                avx512::<Real512, 1, 8>,
            ],
        },
    ),
    (
        Isa::Avx512,
        Words::Pair,
        Tile {
            rows: 8,
            lanes: 16,
            run: &[avx512::<Pair512, 8, 1>, avx512::<Pair512, 8, 2>, avx512::<Pair512, 8, 3>],
        },
    ),
    (
        Isa::Avx512,
        Words::Pair,
        Tile {
            rows: 1,
            lanes: 16,
            run: &[
                avx512::<Pair512, 1, 1>,
                avx512::<Pair512, 1, 2>,
                avx512::<Pair512, 1, 3>,
                avx512::<Pair512, 1, 4>,
                avx512::<Pair512, 1, 5>,
                avx512::<Pair512, 1, 6>,
                avx512::<Pair512, 1, 7>,
                avx512::<Pair512, 1, 8>,
            ],
        },
    ),
    (
        Isa::Avx512Vnni,
        Words::Quad,
        Tile {
            rows: 8,
            lanes: 16,
            run: &[vnni::<Quad512, 8, 1>, vnni::<Quad512, 8, 2>, vnni::<Quad512, 8, 3>],
        },
    ),
    (
        Isa::Avx512Vnni,
        Words::Quad,
        Tile {
            rows: 1,
            lanes: 16,
            run: &[
                vnni::<Quad512, 1, 1>,
                vnni::<Quad512, 1, 2>,
                vnni::<Quad512, 1, 3>,
                vnni::<Quad512, 1, 4>,
                vnni::<Quad512, 1, 5>,
                vnni::<Quad512, 1, 6>,
                vnni::<Quad512, 1, 7>,
                vnni::<Quad512, 1, 8>,
            ],
        },
    ),
    (
        Isa::Avx512,
        Words::Real,
        Tile {
            rows: 4,
            lanes: 16,
            run: &[
                avx512::<Real512, 4, 1>,
                avx512::<Real512, 4, 2>,
                avx512::<Real512, 4, 3>,
                avx512::<Real512, 4, 4>,
                avx512::<Real512, 4, 5>,
                avx512::<Real512, 4, 6>,
            ],
        },
    ),
    (
        Isa::Avx512,
        Words::Pair,
        Tile {
            rows: 4,
            lanes: 16,
            run: &[
                avx512::<Pair512, 4, 1>,
                avx512::<Pair512, 4, 2>,
                avx512::<Pair512, 4, 3>,
                avx512::<Pair512, 4, 4>,
                avx512::<Pair512, 4, 5>,
            ],
        },
    ),
    (
        Isa::Avx512Vnni,
        Words::Quad,
        Tile {
            rows: 4,
            lanes: 16,
            run: &[
                vnni::<Quad512, 4, 1>,
                vnni::<Quad512, 4, 2>,
                vnni::<Quad512, 4, 3>,
                vnni::<Quad512, 4, 4>,
                vnni::<Quad512, 4, 5>,
                vnni::<Quad512, 4, 6>,
            ],
        },
    ),
];

/// By instruction set and words.
pub(super) const SLIDES: &[(Isa, Words, Slide)] = &[
    (
        Isa::Sse41,
        Words::Pair,
        Slide {
            lanes: 4,
            rows: [sse41_sweep::<Pair128, 3, 2, 1, 1>, sse41_sweep::<Pair128, 5, 3, 1, 1>],
            blocks: None,
        },
    ),
    (
        Isa::Avx2,
        Words::Real,
        Slide {
            lanes: 8,
            rows: [avx2_sweep::<Real256, 3, 3, 1, 1>, avx2_sweep::<Real256, 5, 5, 1, 1>],
            blocks: Some([
                [avx2_sweep::<Real256, 3, 3, BLOCK, 1>, avx2_sweep::<Real256, 5, 5, BLOCK, 1>],
                [avx2_sweep::<Real256, 3, 3, BLOCK, 2>, avx2_sweep::<Real256, 5, 5, BLOCK, 2>],
            ]),
        },
    ),
    (
        Isa::Avx2,
        Words::Pair,
        Slide {
            lanes: 8,
            rows: [avx2_sweep::<Pair256, 3, 2, 1, 1>, avx2_sweep::<Pair256, 5, 3, 1, 1>],
            blocks: None,
        },
    ),
    (
        Isa::Avx512,
        Words::Real,
        Slide {
            lanes: 16,
            rows: [avx512_sweep::<Real512, 3, 3, 1, 1>, avx512_sweep::<Real512, 5, 5, 1, 1>],
            blocks: Some([
                [avx512_sweep::<Real512, 3, 3, BLOCK, 1>, avx512_sweep::<Real512, 5, 5, BLOCK, 1>],
                [avx512_sweep::<Real512, 3, 3, BLOCK, 2>, avx512_sweep::<Real512, 5, 5, BLOCK, 2>],
            ]),
        },
    ),
    (
        Isa::Avx512,
        Words::Pair,
        Slide {
            lanes: 16,
            rows: [avx512_sweep::<Pair512, 3, 2, 1, 1>, avx512_sweep::<Pair512, 5, 3, 1, 1>],
            blocks: None,
        },
    ),
    (
        Isa::Avx512Vnni,
        Words::Quad,
        Slide {
            lanes: 16,
            rows: [vnni_sweep::<Quad512, 3, 1, 1, 1>, vnni_sweep::<Quad512, 5, 2, 1, 1>],
            blocks: None,
        },
    ),
];
