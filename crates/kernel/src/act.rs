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
