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
