//! The inner loops for SSE4.1, AVX2, AVX-512 and AVX-512 VNNI.

use super::{DepthStep, Lanes, Step, Tile, Words, depth_step, step};
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
        Real256(unsafe { _mm256_set1_ps(from.cast::<f32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        // SAFETY: the caller has FMA.
        Real256(unsafe { _mm256_fmadd_ps(weights.0, image.0, self.0) })
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
        Real512(unsafe { _mm512_set1_ps(from.cast::<f32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        // SAFETY: the caller has AVX-512 F.
        Real512(unsafe { _mm512_fmadd_ps(weights.0, image.0, self.0) })
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
        Pair128(unsafe { _mm_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        // SAFETY: SSE2 is part of x86-64.
        Pair128(unsafe { _mm_add_epi32(self.0, _mm_madd_epi16(weights.0, image.0)) })
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
        Pair256(unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        // SAFETY: the caller has AVX2.
        Pair256(unsafe { _mm256_add_epi32(self.0, _mm256_madd_epi16(weights.0, image.0)) })
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
        Int512(unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn mac(self, weights: Self, image: Self) -> Self {
        // SAFETY: the caller has AVX-512 BW, and VNNI where `QUAD` is set.
        Int512(unsafe {
            match QUAD {
                true => _mm512_dpbusd_epi32(self.0, image.0, weights.0),
                false => _mm512_add_epi32(self.0, _mm512_madd_epi16(weights.0, image.0)),
            }
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: the caller has AVX-512 F, sixteen words are writable.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
}

/// # Safety
/// As for [`step`].
#[target_feature(enable = "sse4.1")]
unsafe fn sse41<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: promised by the caller.
    unsafe { step::<V, R, N>(s) }
}

/// # Safety
/// As for [`depth_step`].
#[target_feature(enable = "sse4.1")]
unsafe fn sse41_depth<V: Lanes, const R: usize, const N: usize>(s: &DepthStep) {
    // SAFETY: promised by the caller.
    unsafe { depth_step::<V, R, N>(s) }
}

/// # Safety
/// As for [`step`].
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: promised by the caller.
    unsafe { step::<V, R, N>(s) }
}

/// # Safety
/// As for [`depth_step`].
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_depth<V: Lanes, const R: usize, const N: usize>(s: &DepthStep) {
    // SAFETY: promised by the caller.
    unsafe { depth_step::<V, R, N>(s) }
}

/// # Safety
/// As for [`step`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: promised by the caller.
    unsafe { step::<V, R, N>(s) }
}

/// # Safety
/// As for [`depth_step`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn avx512_depth<V: Lanes, const R: usize, const N: usize>(s: &DepthStep) {
    // SAFETY: promised by the caller.
    unsafe { depth_step::<V, R, N>(s) }
}

/// # Safety
/// As for [`step`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn vnni<V: Lanes, const R: usize, const N: usize>(s: &Step) {
    // SAFETY: promised by the caller.
    unsafe { step::<V, R, N>(s) }
}

/// # Safety
/// As for [`depth_step`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn vnni_depth<V: Lanes, const R: usize, const N: usize>(s: &DepthStep) {
    // SAFETY: promised by the caller.
    unsafe { depth_step::<V, R, N>(s) }
}

/// Weaves the bytes of four rows, sixteen words at a time: `to[i] = [a[i], b[i], c[i], d[i]]`, each xor `flip`.
/// Returns how many words were made; the rows must be as long as `to`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in super::super) fn weave(rows: [&[u8]; 4], flip: u8, to: &mut [u32]) -> usize {
    let [a, b, c, d] = rows.map(|row| row[..to.len()].as_chunks::<16>().0);
    let to = to.as_chunks_mut::<16>().0;
    // Word i of the rows side by side, then byte i of each word. Hidden from the compiler, which would take the two
    // shuffles for one and make six of it.
    let [words, bytes] = std::hint::black_box([
        [0x0c080400u32, 0x0d090501, 0x0e0a0602, 0x0f0b0703],
        [0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703],
    ]);
    // SAFETY: each array has the size of the register.
    let (words, bytes) = unsafe {
        let words = _mm512_cvtepu8_epi32(_mm_loadu_si128(words.as_ptr().cast()));
        (words, _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())))
    };
    let flip = _mm512_set1_epi8(flip as i8);
    let count = to.len() * 16;
    for ((((to, a), b), c), d) in to.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        // SAFETY: each array has the size of the register that is loaded from it or stored to it.
        unsafe {
            let load = |row: &[u8; 16]| _mm_loadu_si128(row.as_ptr().cast());
            let all = _mm512_castsi128_si512(load(a));
            let all = _mm512_inserti32x4::<1>(all, load(b));
            let all = _mm512_inserti32x4::<2>(all, load(c));
            let all = _mm512_inserti32x4::<3>(all, load(d));
            let all = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, all), bytes);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(all, flip));
        }
    }
    count
}

type Quad512 = Int512<true>;
type Pair512 = Int512<false>;

pub(super) fn select(isa: Isa, words: Words) -> Option<&'static Tile> {
    Some(match (isa, words) {
        (Isa::Sse41, Words::Pair) => &SSE41_PAIR,
        (Isa::Avx2, Words::Real) => &AVX2_REAL,
        (Isa::Avx2, Words::Pair) => &AVX2_PAIR,
        (Isa::Avx512Vnni, Words::Quad) => &VNNI_QUAD,
        (Isa::Avx512 | Isa::Avx512Vnni, Words::Real) => &AVX512_REAL,
        (Isa::Avx512 | Isa::Avx512Vnni, Words::Pair) => &AVX512_PAIR,
        _ => return None,
    })
}

static SSE41_PAIR: Tile = Tile {
    lanes: 4,
    wide: &[
        sse41::<Pair128, 1, 2>,
        sse41::<Pair128, 2, 2>,
        sse41::<Pair128, 3, 2>,
        sse41::<Pair128, 4, 2>,
        sse41::<Pair128, 5, 2>,
    ],
    narrow: &[
        sse41::<Pair128, 1, 1>,
        sse41::<Pair128, 2, 1>,
        sse41::<Pair128, 3, 1>,
        sse41::<Pair128, 4, 1>,
        sse41::<Pair128, 5, 1>,
        sse41::<Pair128, 6, 1>,
        sse41::<Pair128, 7, 1>,
        sse41::<Pair128, 8, 1>,
        sse41::<Pair128, 9, 1>,
        sse41::<Pair128, 10, 1>,
    ],
    depth_wide: &[
        sse41_depth::<Pair128, 1, 2>,
        sse41_depth::<Pair128, 2, 2>,
        sse41_depth::<Pair128, 3, 2>,
        sse41_depth::<Pair128, 4, 2>,
    ],
    depth_narrow: &[
        sse41_depth::<Pair128, 1, 1>,
        sse41_depth::<Pair128, 2, 1>,
        sse41_depth::<Pair128, 3, 1>,
        sse41_depth::<Pair128, 4, 1>,
    ],
    depth_row: (4, sse41_depth::<Pair128, 1, 4>),
};

static AVX2_REAL: Tile = Tile {
    lanes: 8,
    wide: &[
        avx2::<Real256, 1, 2>,
        avx2::<Real256, 2, 2>,
        avx2::<Real256, 3, 2>,
        avx2::<Real256, 4, 2>,
        avx2::<Real256, 5, 2>,
        avx2::<Real256, 6, 2>,
    ],
    narrow: &[
        avx2::<Real256, 1, 1>,
        avx2::<Real256, 2, 1>,
        avx2::<Real256, 3, 1>,
        avx2::<Real256, 4, 1>,
        avx2::<Real256, 5, 1>,
        avx2::<Real256, 6, 1>,
        avx2::<Real256, 7, 1>,
        avx2::<Real256, 8, 1>,
        avx2::<Real256, 9, 1>,
        avx2::<Real256, 10, 1>,
        avx2::<Real256, 11, 1>,
        avx2::<Real256, 12, 1>,
    ],
    depth_wide: &[
        avx2_depth::<Real256, 1, 2>,
        avx2_depth::<Real256, 2, 2>,
        avx2_depth::<Real256, 3, 2>,
        avx2_depth::<Real256, 4, 2>,
        avx2_depth::<Real256, 5, 2>,
    ],
    depth_narrow: &[
        avx2_depth::<Real256, 1, 1>,
        avx2_depth::<Real256, 2, 1>,
        avx2_depth::<Real256, 3, 1>,
        avx2_depth::<Real256, 4, 1>,
        avx2_depth::<Real256, 5, 1>,
    ],
    depth_row: (6, avx2_depth::<Real256, 1, 6>),
};

static AVX2_PAIR: Tile = Tile {
    lanes: 8,
    wide: &[
        avx2::<Pair256, 1, 2>,
        avx2::<Pair256, 2, 2>,
        avx2::<Pair256, 3, 2>,
        avx2::<Pair256, 4, 2>,
        avx2::<Pair256, 5, 2>,
    ],
    narrow: &[
        avx2::<Pair256, 1, 1>,
        avx2::<Pair256, 2, 1>,
        avx2::<Pair256, 3, 1>,
        avx2::<Pair256, 4, 1>,
        avx2::<Pair256, 5, 1>,
        avx2::<Pair256, 6, 1>,
        avx2::<Pair256, 7, 1>,
        avx2::<Pair256, 8, 1>,
        avx2::<Pair256, 9, 1>,
        avx2::<Pair256, 10, 1>,
    ],
    depth_wide: &[
        avx2_depth::<Pair256, 1, 2>,
        avx2_depth::<Pair256, 2, 2>,
        avx2_depth::<Pair256, 3, 2>,
        avx2_depth::<Pair256, 4, 2>,
    ],
    depth_narrow: &[
        avx2_depth::<Pair256, 1, 1>,
        avx2_depth::<Pair256, 2, 1>,
        avx2_depth::<Pair256, 3, 1>,
        avx2_depth::<Pair256, 4, 1>,
    ],
    depth_row: (4, avx2_depth::<Pair256, 1, 4>),
};

static AVX512_REAL: Tile = Tile {
    lanes: 16,
    wide: &[
        avx512::<Real512, 1, 2>,
        avx512::<Real512, 2, 2>,
        avx512::<Real512, 3, 2>,
        avx512::<Real512, 4, 2>,
        avx512::<Real512, 5, 2>,
        avx512::<Real512, 6, 2>,
        avx512::<Real512, 7, 2>,
        avx512::<Real512, 8, 2>,
        avx512::<Real512, 9, 2>,
        avx512::<Real512, 10, 2>,
        avx512::<Real512, 11, 2>,
        avx512::<Real512, 12, 2>,
        avx512::<Real512, 13, 2>,
        avx512::<Real512, 14, 2>,
    ],
    narrow: &[
        avx512::<Real512, 1, 1>,
        avx512::<Real512, 2, 1>,
        avx512::<Real512, 3, 1>,
        avx512::<Real512, 4, 1>,
        avx512::<Real512, 5, 1>,
        avx512::<Real512, 6, 1>,
        avx512::<Real512, 7, 1>,
        avx512::<Real512, 8, 1>,
        avx512::<Real512, 9, 1>,
        avx512::<Real512, 10, 1>,
        avx512::<Real512, 11, 1>,
        avx512::<Real512, 12, 1>,
        avx512::<Real512, 13, 1>,
        avx512::<Real512, 14, 1>,
    ],
    depth_wide: &[
        avx512_depth::<Real512, 1, 2>,
        avx512_depth::<Real512, 2, 2>,
        avx512_depth::<Real512, 3, 2>,
        avx512_depth::<Real512, 4, 2>,
        avx512_depth::<Real512, 5, 2>,
        avx512_depth::<Real512, 6, 2>,
        avx512_depth::<Real512, 7, 2>,
        avx512_depth::<Real512, 8, 2>,
    ],
    depth_narrow: &[
        avx512_depth::<Real512, 1, 1>,
        avx512_depth::<Real512, 2, 1>,
        avx512_depth::<Real512, 3, 1>,
        avx512_depth::<Real512, 4, 1>,
        avx512_depth::<Real512, 5, 1>,
        avx512_depth::<Real512, 6, 1>,
        avx512_depth::<Real512, 7, 1>,
        avx512_depth::<Real512, 8, 1>,
    ],
    depth_row: (8, avx512_depth::<Real512, 1, 8>),
};

static AVX512_PAIR: Tile = Tile {
    lanes: 16,
    wide: &[
        avx512::<Pair512, 1, 2>,
        avx512::<Pair512, 2, 2>,
        avx512::<Pair512, 3, 2>,
        avx512::<Pair512, 4, 2>,
        avx512::<Pair512, 5, 2>,
        avx512::<Pair512, 6, 2>,
        avx512::<Pair512, 7, 2>,
        avx512::<Pair512, 8, 2>,
        avx512::<Pair512, 9, 2>,
        avx512::<Pair512, 10, 2>,
        avx512::<Pair512, 11, 2>,
        avx512::<Pair512, 12, 2>,
    ],
    narrow: &[
        avx512::<Pair512, 1, 1>,
        avx512::<Pair512, 2, 1>,
        avx512::<Pair512, 3, 1>,
        avx512::<Pair512, 4, 1>,
        avx512::<Pair512, 5, 1>,
        avx512::<Pair512, 6, 1>,
        avx512::<Pair512, 7, 1>,
        avx512::<Pair512, 8, 1>,
        avx512::<Pair512, 9, 1>,
        avx512::<Pair512, 10, 1>,
        avx512::<Pair512, 11, 1>,
        avx512::<Pair512, 12, 1>,
        avx512::<Pair512, 13, 1>,
        avx512::<Pair512, 14, 1>,
    ],
    depth_wide: &[
        avx512_depth::<Pair512, 1, 2>,
        avx512_depth::<Pair512, 2, 2>,
        avx512_depth::<Pair512, 3, 2>,
        avx512_depth::<Pair512, 4, 2>,
        avx512_depth::<Pair512, 5, 2>,
        avx512_depth::<Pair512, 6, 2>,
        avx512_depth::<Pair512, 7, 2>,
        avx512_depth::<Pair512, 8, 2>,
    ],
    depth_narrow: &[
        avx512_depth::<Pair512, 1, 1>,
        avx512_depth::<Pair512, 2, 1>,
        avx512_depth::<Pair512, 3, 1>,
        avx512_depth::<Pair512, 4, 1>,
        avx512_depth::<Pair512, 5, 1>,
        avx512_depth::<Pair512, 6, 1>,
        avx512_depth::<Pair512, 7, 1>,
        avx512_depth::<Pair512, 8, 1>,
    ],
    depth_row: (8, avx512_depth::<Pair512, 1, 8>),
};

static VNNI_QUAD: Tile = Tile {
    lanes: 16,
    wide: &[
        vnni::<Quad512, 1, 2>,
        vnni::<Quad512, 2, 2>,
        vnni::<Quad512, 3, 2>,
        vnni::<Quad512, 4, 2>,
        vnni::<Quad512, 5, 2>,
        vnni::<Quad512, 6, 2>,
        vnni::<Quad512, 7, 2>,
        vnni::<Quad512, 8, 2>,
        vnni::<Quad512, 9, 2>,
        vnni::<Quad512, 10, 2>,
        vnni::<Quad512, 11, 2>,
        vnni::<Quad512, 12, 2>,
        vnni::<Quad512, 13, 2>,
        vnni::<Quad512, 14, 2>,
    ],
    narrow: &[
        vnni::<Quad512, 1, 1>,
        vnni::<Quad512, 2, 1>,
        vnni::<Quad512, 3, 1>,
        vnni::<Quad512, 4, 1>,
        vnni::<Quad512, 5, 1>,
        vnni::<Quad512, 6, 1>,
        vnni::<Quad512, 7, 1>,
        vnni::<Quad512, 8, 1>,
        vnni::<Quad512, 9, 1>,
        vnni::<Quad512, 10, 1>,
        vnni::<Quad512, 11, 1>,
        vnni::<Quad512, 12, 1>,
        vnni::<Quad512, 13, 1>,
        vnni::<Quad512, 14, 1>,
    ],
    depth_wide: &[
        vnni_depth::<Quad512, 1, 2>,
        vnni_depth::<Quad512, 2, 2>,
        vnni_depth::<Quad512, 3, 2>,
        vnni_depth::<Quad512, 4, 2>,
        vnni_depth::<Quad512, 5, 2>,
        vnni_depth::<Quad512, 6, 2>,
        vnni_depth::<Quad512, 7, 2>,
        vnni_depth::<Quad512, 8, 2>,
    ],
    depth_narrow: &[
        vnni_depth::<Quad512, 1, 1>,
        vnni_depth::<Quad512, 2, 1>,
        vnni_depth::<Quad512, 3, 1>,
        vnni_depth::<Quad512, 4, 1>,
        vnni_depth::<Quad512, 5, 1>,
        vnni_depth::<Quad512, 6, 1>,
        vnni_depth::<Quad512, 7, 1>,
        vnni_depth::<Quad512, 8, 1>,
    ],
    depth_row: (8, vnni_depth::<Quad512, 1, 8>),
};
