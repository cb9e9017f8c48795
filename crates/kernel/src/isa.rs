//! Instruction sets: what the processor has, and which one to use.

use std::fmt;
use std::str::FromStr;

/// An instruction set for which kernels exist, from the plainest to the widest of each family.
///
/// An `Isa` other than [`Isa::Scalar`] must only be used after [`Isa::available`] has listed it;
/// [`crate::Cpu`] sees to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; the meaning of every kernel.
    Scalar,
    /// x86-64: SSE4.1, 16-byte registers.
    Sse41,
    /// x86-64: AVX2 and FMA, 32-byte registers.
    Avx2,
    /// x86-64: AVX-512 F, BW, DQ, VL, 64-byte registers.
    Avx512,
    /// [`Isa::Avx512`] and VNNI: four 8-bit products added to a 32-bit sum.
    Avx512Vnni,
    /// AArch64: NEON, 16-byte registers.
    Neon,
    /// [`Isa::Neon`] and the dot-product extension.
    NeonDot,
}

impl Isa {
    const ALL: [Isa; 7] =
        [Isa::Scalar, Isa::Sse41, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Neon, Isa::NeonDot];

    /// Does this processor have it?
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Sse41 => is_x86_feature_detected!("sse4.1"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// All instruction sets of this processor, [`Isa::Scalar`] first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The best one of this processor.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Scalar)
    }

    /// The one named by the environment variable `LESSEN_ISA`, or the best one when it is not set.
    ///
    /// # Errors
    /// A sentence when the variable names an unknown instruction set or one this processor lacks.
    pub fn from_env() -> Result<Isa, String> {
        match std::env::var("LESSEN_ISA") {
            Ok(name) if !name.is_empty() => {
                let isa: Isa = name.parse().map_err(|e| format!("LESSEN_ISA: {e}"))?;
                match isa.is_available() {
                    true => Ok(isa),
                    false => Err(format!("LESSEN_ISA={name}: this processor does not have it")),
                }
            }
            _ => Ok(Isa::best()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Sse41 => "sse4.1",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(text: &str) -> Result<Isa, String> {
        Isa::ALL.into_iter().find(|isa| isa.name() == text.to_ascii_lowercase()).ok_or_else(|| {
            let names: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
            format!("unknown instruction set {text:?}; one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_scalar_is_always_there() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert_eq!(Isa::available()[0], Isa::Scalar);
        assert!("mmx".parse::<Isa>().is_err());
    }
}
