//! Activation functions and other functions of one number, over slices.

use crate::lanes::{Body, Parts, Plain, Set, run, split};
use crate::{Cpu, math};

/// A function of one `f32`. NaN in, NaN out. The errors named are against the exact result.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
#[non_exhaustive]
pub enum Act {
    /// `x`
    #[default]
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x` when `x >= 0`, else `alpha x`
    LeakyRelu(f32),
    /// `x` held to `lo..=hi`; `hi` wins when they cross.
    Clip {
        /// Least result.
        lo: f32,
        /// Greatest result.
        hi: f32,
    },
    /// `x (1 + erf(x / sqrt 2)) / 2`, the exact GELU; error below 3e-7 (1 + |x|).
    Gelu,
    /// `x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`; error below 3e-7 (1 + |x|).
    GeluTanh,
    /// `x sigmoid(x)`
    Silu,
    /// `x sigmoid(alpha x)`, "quick GELU" with alpha 1.702.
    Swish(f32),
    /// `x max(0, min(1, x / 6 + 1/2))`
    HardSwish,
    /// `max(0, min(1, alpha x + beta))`
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// `1 / (1 + e^-x)`; relative error below 1e-6 (results below 1e-38 become 0).
    Sigmoid,
    /// Hyperbolic tangent; relative error below 1e-6.
    Tanh,
    /// `x` when `x >= 0`, else `alpha (e^x - 1)`
    Elu(f32),
    /// `ln(1 + e^x)`
    Softplus,
    /// `x tanh(ln(1 + e^x))`
    Mish,
    /// Error function; relative error below 1e-6.
    Erf,
    /// `e^x`, within 2 ulp.
    Exp,
    /// Natural logarithm.
    Ln,
    /// Square root, correctly rounded.
    Sqrt,
    /// `1 / sqrt x`
    Rsqrt,
    /// `1 / x`
    Reciprocal,
    /// `x^2`
    Square,
    /// `|x|`
    Abs,
    /// `-x`
    Neg,
}

impl Act {
    /// The function of one number, as the scalar instruction set computes it.
    pub fn of(self, x: f32) -> f32 {
        let mut one = [x];
        Each { act: self, data: &mut one[..] }.run::<Plain>();
        one[0]
    }

    /// Replaces each element, on the calling thread: for a tile that is still in the cache.
    pub fn tile(self, cpu: &Cpu, data: &mut [f32]) {
        if self != Act::Identity {
            run(cpu, Each { act: self, data });
        }
    }
}

/// Replaces each element of `data` by `act` of it, on all threads when there are many.
pub fn apply(cpu: &Cpu, act: Act, data: &mut [f32]) {
    if act == Act::Identity {
        return;
    }
    let (len, parts) = (data.len(), Parts::new(data));
    // SAFETY: `split` hands out disjoint ranges.
    split(cpu, len, 1, |range| act.tile(cpu, unsafe { parts.part(range) }));
}

/// Writes `act` of each element of `input` to `output`.
///
/// # Panics
/// When the lengths differ.
pub fn map(cpu: &Cpu, act: Act, input: &[f32], output: &mut [f32]) {
    assert_eq!(input.len(), output.len());
    let parts = Parts::new(output);
    split(cpu, input.len(), 1, |range| {
        // SAFETY: `split` hands out disjoint ranges.
        let output = unsafe { parts.part(range.clone()) };
        run(cpu, Each { act, data: (&input[range], output) });
    });
}

/// Where the numbers come from and go to.
trait Data {
    fn each(self, f: impl Fn(f32) -> f32);
}

impl Data for &mut [f32] {
    #[inline(always)]
    fn each(self, f: impl Fn(f32) -> f32) {
        for x in self {
            *x = f(*x);
        }
    }
}

impl Data for (&[f32], &mut [f32]) {
    #[inline(always)]
    fn each(self, f: impl Fn(f32) -> f32) {
        for (y, &x) in self.1.iter_mut().zip(self.0) {
            *y = f(x);
        }
    }
}

struct Each<D> {
    act: Act,
    data: D,
}

impl<D: Data> Body for Each<D> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        use math::{clip, erf, exp, expm1, fma, ln, mish, sigmoid, softplus, tanh};
        let data = self.data;
        match self.act {
            Act::Identity => data.each(|x| x),
            Act::Relu => data.each(|x| if x < 0.0 { 0.0 } else { x }),
            Act::LeakyRelu(alpha) => data.each(|x| if x < 0.0 { alpha * x } else { x }),
            Act::Clip { lo, hi } => data.each(|x| clip(x, lo, hi)),
            Act::Gelu => data.each(|x| {
                let half = 0.5 * x;
                fma::<S>(half, erf::<S>(x * std::f32::consts::FRAC_1_SQRT_2), half)
            }),
            Act::GeluTanh => data.each(|x| {
                const C: f32 = 2.0 * 0.797_884_6;
                x * sigmoid::<S>(x * fma::<S>(C * 0.044_715, x * x, C))
            }),
            Act::Silu => data.each(|x| x * sigmoid::<S>(x)),
            Act::Swish(alpha) => data.each(|x| x * sigmoid::<S>(alpha * x)),
            Act::HardSwish => data.each(|x| x * clip(fma::<S>(x, 1.0 / 6.0, 0.5), 0.0, 1.0)),
            Act::HardSigmoid { alpha, beta } => data.each(|x| clip(fma::<S>(alpha, x, beta), 0.0, 1.0)),
            Act::Sigmoid => data.each(|x| sigmoid::<S>(x)),
            Act::Tanh => data.each(|x| tanh::<S>(x)),
            Act::Elu(alpha) => data.each(|x| {
                let e = alpha * expm1::<S>(clip(x, -20.0, 0.0));
                if x < 0.0 { e } else { x }
            }),
            Act::Softplus => data.each(|x| softplus::<S>(x)),
            Act::Mish => data.each(|x| mish::<S>(x)),
            Act::Erf => data.each(|x| erf::<S>(x)),
            Act::Exp => data.each(|x| exp::<S>(x)),
            Act::Ln => data.each(|x| ln::<S>(x)),
            Act::Sqrt => data.each(f32::sqrt),
            Act::Rsqrt => data.each(|x| 1.0 / x.sqrt()),
            Act::Reciprocal => data.each(|x| 1.0 / x),
            Act::Square => data.each(|x| x * x),
            Act::Abs => data.each(f32::abs),
            Act::Neg => data.each(|x| -x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    const ALL: [Act; 22] = [
        Act::Identity,
        Act::Relu,
        Act::LeakyRelu(0.1),
        Act::Clip { lo: -1.0, hi: 6.0 },
        Act::Gelu,
        Act::GeluTanh,
        Act::Silu,
        Act::Swish(1.702),
        Act::HardSwish,
        Act::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Act::Sigmoid,
        Act::Tanh,
        Act::Elu(1.5),
        Act::Softplus,
        Act::Mish,
        Act::Erf,
        Act::Exp,
        Act::Square,
        Act::Abs,
        Act::Neg,
        Act::Reciprocal,
        Act::Sqrt,
    ];

    /// The error function by its Taylor series (small arguments) or Lentz' continued fraction.
    fn erf64(x: f64) -> f64 {
        let t = x.abs();
        if t < 3.0 {
            let (mut term, mut sum) = (t, t);
            for n in 1..200 {
                term *= -t * t / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            return (sum * std::f64::consts::FRAC_2_SQRT_PI).copysign(x);
        }
        let mut fraction = t;
        for n in (1..60).rev() {
            fraction = t + n as f64 / 2.0 / fraction;
        }
        (1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
    }

    fn spec(act: Act, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        if x.is_nan() {
            return x;
        }
        match act {
            Act::Identity => x,
            Act::Relu => x.max(0.0),
            Act::LeakyRelu(a) => {
                if x < 0.0 {
                    a as f64 * x
                } else {
                    x
                }
            }
            Act::Clip { lo, hi } => x.max(lo as f64).min(hi as f64),
            Act::Gelu => 0.5 * x * (1.0 + erf64(x / 2f64.sqrt())),
            Act::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Act::Silu => x * sigmoid(x),
            Act::Swish(a) => x * sigmoid(a as f64 * x),
            Act::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Act::HardSigmoid { alpha, beta } => (alpha as f64 * x + beta as f64).clamp(0.0, 1.0),
            Act::Sigmoid => sigmoid(x),
            Act::Tanh => x.tanh(),
            Act::Elu(a) => {
                if x < 0.0 {
                    a as f64 * x.exp_m1()
                } else {
                    x
                }
            }
            Act::Softplus => softplus(x),
            Act::Mish => x * softplus(x).tanh(),
            Act::Erf => erf64(x),
            Act::Exp => x.exp(),
            Act::Ln => x.ln(),
            Act::Sqrt => x.sqrt(),
            Act::Rsqrt => 1.0 / x.sqrt(),
            Act::Reciprocal => 1.0 / x,
            Act::Square => x * x,
            Act::Abs => x.abs(),
            Act::Neg => -x,
        }
    }

    fn close(act: Act, x: f32, y: f32) -> bool {
        let want = spec(act, x as f64);
        if want.is_nan() || !(want as f32).is_finite() {
            return want.is_nan() == y.is_nan() && (y.is_nan() || y == want as f32);
        }
        let error = (y as f64 - want).abs();
        let loose = match act {
            Act::Gelu | Act::GeluTanh | Act::Silu | Act::Swish(_) | Act::Mish | Act::HardSwish => {
                3e-7 * (1.0 + x.abs() as f64)
            }
            Act::HardSigmoid { .. } => 1e-7,
            // Results near the least normal number may become 0.
            _ => 3e-38,
        };
        error <= loose.max(1e-6 * want.abs())
    }

    fn check(act: Act, input: &[f32]) {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            let mut output = vec![0.0; input.len()];
            map(&cpu, act, input, &mut output);
            for (&x, &y) in input.iter().zip(&output) {
                assert!(
                    close(act, x, y),
                    "{act:?} on {isa}: f({x:e}) = {y:e}, not {:e}",
                    spec(act, x as f64)
                );
            }
            let mut inside = input.to_vec();
            apply(&cpu, act, &mut inside);
            assert!(inside.iter().zip(&output).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan()));
        }
    }

    #[test]
    fn all_magnitudes_and_special_values() {
        let mut input: Vec<f32> = (-1200..1200).map(|i| i as f32 * 0.0917).collect();
        for power in -40..6 {
            input.extend([1.37, 1.9, -1.37, -1.01].map(|m| m * 2f32.powi(power)));
        }
        input.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        for act in ALL {
            let swishes = matches!(
                act,
                Act::Gelu | Act::GeluTanh | Act::Silu | Act::Swish(_) | Act::Mish | Act::HardSwish
            );
            // -inf * 0 is NaN in the reference, too; very large arguments are left to the other functions.
            let input: Vec<f32> =
                input.iter().copied().filter(|x| !swishes || *x != f32::NEG_INFINITY).collect();
            check(act, &input);
        }
        let positive: Vec<f32> = (0..4000).map(|i| f32::from_bits(i * 534_000)).collect();
        for act in [Act::Ln, Act::Sqrt, Act::Rsqrt] {
            check(act, &positive);
            check(act, &[-1.0, f32::NAN, f32::INFINITY, 0.0, 1.0, 0.99999, 1.00001]);
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let input: Vec<f32> = (-1_060_000..900_000).map(|i| i as f32 * 1e-4).collect();
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, 1).unwrap();
            let mut output = vec![0.0; input.len()];
            map(&cpu, Act::Exp, &input, &mut output);
            for (&x, &y) in input.iter().zip(&output) {
                let want = (x as f64).exp() as f32;
                assert!(want.to_bits().abs_diff(y.to_bits()) <= 2, "{isa}: exp({x}) = {y:e}, not {want:e}");
            }
        }
    }

    #[test]
    fn one_number_is_as_a_slice_and_threads_change_nothing() {
        for act in ALL {
            let data: Vec<f32> = (0..70_001).map(|i| (i % 613) as f32 * 0.03 - 9.0).collect();
            let plain = Cpu::with_isa(Isa::Scalar, 1).unwrap();
            let mut one = data.clone();
            apply(&plain, act, &mut one);
            assert!(data.iter().zip(&one).take(700).all(|(&x, &y)| act.of(x).to_bits() == y.to_bits()));
            for isa in Isa::available() {
                let (mut one, mut two) = (data.clone(), data.clone());
                apply(&Cpu::with_isa(isa, 1).unwrap(), act, &mut one);
                apply(&Cpu::with_isa(isa, 2).unwrap(), act, &mut two);
                assert!(one.iter().zip(&two).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    proptest! {
        #[test]
        fn ragged_lengths(input in prop::collection::vec(-12f32..12.0, 0..70), which in 0..ALL.len()) {
            check(ALL[which], &input);
        }
    }
}
