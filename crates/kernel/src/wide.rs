//! Plain loops, compiled once for each instruction set.

use crate::Isa;

/// Code to be compiled for several instruction sets. Mark `run` with `#[inline(always)]`: only then is it
/// compiled as part of the function that enables the instruction set.
pub(crate) trait Loops {
    /// What the loops return.
    type Output;
    /// The loops.
    fn run(self) -> Self::Output;
}

/// Runs the loops as compiled for `isa`, or for the plainest instruction set when the processor lacks it.
pub(crate) fn wide<L: Loops>(isa: Isa, loops: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<L: Loops>(loops: L) -> L::Output {
            loops.run()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<L: Loops>(loops: L) -> L::Output {
            loops.run()
        }
        #[target_feature(enable = "sse4.1")]
        fn sse41<L: Loops>(loops: L) -> L::Output {
            loops.run()
        }
        if isa.is_available() {
            // SAFETY: the processor has the instruction set.
            unsafe {
                match isa {
                    Isa::Avx512 | Isa::Avx512Vnni => return avx512(loops),
                    Isa::Avx2 => return avx2(loops),
                    Isa::Sse41 => return sse41(loops),
                    _ => {}
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    loops.run()
}

/// `to[i] = f(a[i], b[i])`, such that rows of a few numbers are fast too.
///
/// # Panics
/// When `a` or `b` is shorter than `to`.
#[inline(always)]
pub(crate) fn zip<A: Copy, B: Copy, C>(to: &mut [C], a: &[A], b: &[B], f: impl Fn(A, B) -> C) {
    let (a, b) = (&a[..to.len()], &b[..to.len()]);
    let long = to.len() / 16 * 16;
    let (to, to_rest) = to.split_at_mut(long);
    let (a, a_rest) = a.split_at(long);
    let (b, b_rest) = b.split_at(long);
    to.iter_mut().zip(a).zip(b).for_each(|((to, &a), &b)| *to = f(a, b));
    let (to, to_rest) = to_rest.as_chunks_mut::<4>();
    let (a, a_rest) = a_rest.as_chunks::<4>();
    let (b, b_rest) = b_rest.as_chunks::<4>();
    for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
        *to = [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])];
    }
    to_rest.iter_mut().zip(a_rest).zip(b_rest).for_each(|((to, &a), &b)| *to = f(a, b));
}

/// `to[y * width + x] = f(a[y * pitch + x], b[y * width + x])`, such that short rows are fast too.
///
/// # Panics
/// When `a` or `b` is too short, or `width` is zero and `to` is not empty.
#[inline(always)]
pub(crate) fn zip_rows<A: Copy, B: Copy, C>(
    to: &mut [C],
    width: usize,
    a: &[A],
    pitch: usize,
    b: &[B],
    f: impl Fn(A, B) -> C,
) {
    if pitch == width {
        return zip(to, a, b, f);
    }
    for (row, to) in to.chunks_exact_mut(width).enumerate() {
        zip(to, &a[row * pitch..], &b[row * width..], &f);
    }
}

/// `to[i] = f(from[0][i * stride], from[1][i * stride], ...)`.
///
/// # Panics
/// When a slice of `from` ends before `(to.len() - 1) * stride + 1`.
#[inline(always)]
pub(crate) fn gather<const N: usize, A: Copy, C>(
    to: &mut [C],
    from: [&[A]; N],
    stride: usize,
    f: impl Fn([A; N]) -> C,
) {
    let Some(last) = to.len().checked_sub(1) else { return };
    let from = from.map(|s| &s[..last * stride + 1]);
    match stride {
        1 => gather_by::<1, N, A, C>(to, from, f),
        2 => gather_by::<2, N, A, C>(to, from, f),
        _ => to.iter_mut().enumerate().for_each(|(i, to)| *to = f(from.map(|s| s[i * stride]))),
    }
}

#[inline(always)]
fn gather_by<const STRIDE: usize, const N: usize, A: Copy, C>(
    to: &mut [C],
    from: [&[A]; N],
    f: impl Fn([A; N]) -> C,
) {
    // SAFETY: `gather` cut the slices to `(to.len() - 1) * STRIDE + 1`.
    let at = |i: usize| f(from.map(|s| unsafe { *s.get_unchecked(i * STRIDE) }));
    let long = to.len() / 16 * 16;
    let (body, rest) = to.split_at_mut(long);
    body.iter_mut().enumerate().for_each(|(i, to)| *to = at(i));
    let (blocks, last) = rest.as_chunks_mut::<4>();
    let mut i = long;
    for to in blocks {
        *to = [at(i), at(i + 1), at(i + 2), at(i + 3)];
        i += 4;
    }
    last.iter_mut().enumerate().for_each(|(nth, to)| *to = at(i + nth));
}
