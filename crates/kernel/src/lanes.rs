//! Code written once and compiled for each instruction set.
//!
//! A [`Body`] is plain Rust that is inlined into one function per instruction set; the compiler vectorises it
//! for the registers found there.

use std::marker::PhantomData;
use std::ops::Range;

use crate::{Cpu, Isa};

/// Elements from which on a row-wise kernel uses more than one thread.
pub(crate) const PARALLEL: usize = 1 << 15;

/// What a [`Body`] may know about the instruction set that it is compiled for.
pub(crate) trait Set: Copy {
    /// Fused multiply-add is one instruction.
    const FMA: bool;
    /// `f32` lanes of a register.
    const WIDTH: usize;
}

/// A register of `W` lanes, with fused multiply-add or without.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<const W: usize, const FMA: bool>;

impl<const W: usize, const FMA: bool> Set for Lanes<W, FMA> {
    const FMA: bool = FMA;
    const WIDTH: usize = W;
}

/// Plain Rust: no particular registers.
pub(crate) type Plain = Lanes<1, false>;

/// A piece of work to be compiled for each instruction set. `run` and all it calls must be `#[inline(always)]`.
pub(crate) trait Body {
    /// What it returns.
    type Out;
    /// Does it.
    fn run<S: Set>(self) -> Self::Out;
}

/// Runs `body` as compiled for `cpu`'s instruction set.
pub(crate) fn run<B: Body>(cpu: &Cpu, body: B) -> B::Out {
    match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` only holds an instruction set that the processor has.
        Isa::Avx512 | Isa::Avx512Vnni => unsafe { avx512(body) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2(body) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Sse41 => unsafe { sse41(body) },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => body.run::<Lanes<4, true>>(),
        _ => body.run::<Plain>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512<B: Body>(body: B) -> B::Out {
    body.run::<Lanes<16, true>>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<B: Body>(body: B) -> B::Out {
    body.run::<Lanes<8, true>>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.1")]
fn sse41<B: Body>(body: B) -> B::Out {
    body.run::<Lanes<4, false>>()
}

/// A slice whose disjoint parts are written by different tasks.
pub(crate) struct Parts<'a, T> {
    ptr: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: `Parts` only hands out parts, which `part`'s contract keeps disjoint.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Takes the slice for as long as its parts are in use.
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Parts { ptr: data.as_mut_ptr(), len: data.len(), life: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two live parts overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies in the slice; the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

/// Calls `work` with ranges that together cover `0..count`, items of about `cost` elements each: one call for
/// little work, otherwise tasks on the pool. The ranges do not depend on the number of threads.
pub(crate) fn split(cpu: &Cpu, count: usize, cost: usize, work: impl Fn(Range<usize>) + Sync) {
    if count == 0 {
        return;
    }
    let step = (PARALLEL / 2 / cost.max(1)).max(1);
    if count.saturating_mul(cost) < PARALLEL || count <= step {
        return work(0..count);
    }
    cpu.pool().run(count.div_ceil(step), |i| work(i * step..((i + 1) * step).min(count)));
}
