//! The inner loop of depthwise convolutions: one kernel slides over one plane, its weights in registers.

use super::{ARCH_SLIDES, Lanes, PlainPair, PlainReal, Words};
use crate::Isa;

/// Rows of outputs that a loop of [`Slide::blocks`] computes at a time.
pub(in crate::conv) const BLOCK: usize = 4;

/// One sweep over a plane. Offsets are bytes.
pub(in crate::conv) struct Sweep<'a> {
    /// The kernel's words, row by row.
    pub weights: *const u32,
    /// The first pixel of the padded plane.
    pub plane: *const u8,
    /// Where the rows that a block of outputs reads begin.
    pub rows: &'a [usize],
    /// Where the words of a kernel row begin in a row.
    pub cols: &'a [usize],
    /// Vectors of sums in a row.
    pub vectors: usize,
    /// Blocks of rows.
    pub blocks: usize,
    /// From one block to the next.
    pub block_step: usize,
    /// Outputs that a word of pixels serves, each from another offset.
    pub phases: usize,
    /// From one phase to the next.
    pub phase_step: usize,
    /// The first sum: `[phase][row][word]`.
    pub sums: *mut u32,
    /// Sums of a row.
    pub row_len: usize,
    /// Sums of a phase.
    pub phase_len: usize,
}

/// A loop; it needs the instruction set under which it is listed, and a [`Sweep`] all of whose words are
/// readable and all of whose sums are writable.
pub(in crate::conv) type Run = unsafe fn(&Sweep);

/// The loops of an instruction set for kernels of 3x3 and 5x5.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Slide {
    /// Words of a vector.
    pub lanes: usize,
    /// One row at a time.
    pub rows: [Run; 2],
    /// [`BLOCK`] rows at a time, by stride (1, 2), then kernel.
    pub blocks: Option<[[Run; 2]; 2]>,
}

impl Slide {
    /// The loops for `isa`, which must be available, as [`super::Tile::select`] would choose them.
    pub fn find(isa: Isa, words: Words) -> Option<Slide> {
        let isa = match isa {
            Isa::Avx512Vnni if words != Words::Quad => Isa::Avx512,
            Isa::NeonDot => Isa::Neon,
            isa => isa,
        };
        let find = |isa| ARCH_SLIDES.iter().chain(PLAIN).find(|s| s.0 == isa && s.1 == words).map(|s| s.2);
        find(isa).or_else(|| find(Isa::Scalar))
    }
}

/// `ROWS` rows of outputs, `STRIDE` rows of pixels apart, with a kernel of `KH` rows of `KW` words.
///
/// # Safety
/// The processor must have what `V` needs, and `s` must be as [`Run`] says, with `(ROWS - 1) * STRIDE + KH`
/// rows and `KW` columns.
#[inline(always)]
pub(super) unsafe fn sweep<
    V: Lanes,
    const KH: usize,
    const KW: usize,
    const ROWS: usize,
    const STRIDE: usize,
>(
    s: &Sweep,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut weights = [[V::zero(); KW]; KH];
        for (y, row) in weights.iter_mut().enumerate() {
            for (x, weight) in row.iter_mut().enumerate() {
                *weight = V::splat(s.weights.add(y * KW + x));
            }
        }
        let rows = &s.rows[..(ROWS - 1) * STRIDE + KH];
        let cols: [usize; KW] = std::array::from_fn(|x| s.cols[x]);
        for block in 0..s.blocks {
            for phase in 0..s.phases {
                let plane = s.plane.add(block * s.block_step + phase * s.phase_step);
                let to = s.sums.add(phase * s.phase_len + block * ROWS * s.row_len);
                for vector in 0..s.vectors {
                    let plane = plane.add(vector * V::LANES * 4);
                    let mut sums = [V::zero(); ROWS];
                    for (y, &row) in rows.iter().enumerate() {
                        for (x, &col) in cols.iter().enumerate() {
                            let pixels = V::load(plane.add(row + col).cast());
                            for (r, sum) in sums.iter_mut().enumerate() {
                                let tap = y.wrapping_sub(r * STRIDE);
                                if tap < KH {
                                    *sum = sum.mac(weights[tap][x], pixels);
                                }
                            }
                        }
                    }
                    for (r, sum) in sums.iter().enumerate() {
                        sum.store(to.add(r * s.row_len + vector * V::LANES));
                    }
                }
            }
        }
    }
}

pub(super) unsafe fn plain<
    V: Lanes,
    const KH: usize,
    const KW: usize,
    const ROWS: usize,
    const STRIDE: usize,
>(
    s: &Sweep,
) {
    // SAFETY: the vectors need nothing that the target lacks; the rest is the caller's promise.
    unsafe { sweep::<V, KH, KW, ROWS, STRIDE>(s) }
}

const PLAIN: &[(Isa, Words, Slide)] = &[
    (
        Isa::Scalar,
        Words::Real,
        Slide {
            lanes: 4,
            rows: [plain::<PlainReal, 3, 3, 1, 1>, plain::<PlainReal, 5, 5, 1, 1>],
            blocks: None,
        },
    ),
    (
        Isa::Scalar,
        Words::Pair,
        Slide {
            lanes: 4,
            rows: [plain::<PlainPair, 3, 2, 1, 1>, plain::<PlainPair, 5, 3, 1, 1>],
            blocks: None,
        },
    ),
];
