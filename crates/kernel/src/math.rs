//! Elementary functions in straight-line code, so that a loop over them becomes vector code.
//!
//! Polynomials are minimax fits (Lawson's iteration on Chebyshev nodes) of our own; the arguments are reduced
//! after Cody and Waite, "Software Manual for the Elementary Functions", 1980.

#![allow(clippy::excessive_precision)]

use crate::lanes::Set;

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn fma<S: Set>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `c[0] + c[1] x + c[2] x^2 + ...`
#[inline(always)]
fn poly<S: Set, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[N - 1];
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = fma::<S>(sum, x, c[i]);
    }
    sum
}

/// The larger; NaN when one is NaN.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// The smaller; NaN when one is NaN.
#[inline(always)]
pub(crate) fn min(a: f32, b: f32) -> f32 {
    if b < a || b.is_nan() { b } else { a }
}

/// `x` held to `lo..=hi`; NaN stays NaN; `hi` wins when the bounds cross.
#[inline(always)]
pub(crate) fn clip(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

/// 1.5 * 2^23: adding it rounds to a whole number, found in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// `(n, e^r - 1)` with `x = n ln 2 + r`, `|r| <= ln 2 / 2`, for `|x| <= 104`.
#[inline(always)]
fn reduce<S: Set>(x: f32) -> (i32, f32) {
    let t = fma::<S>(x, std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = fma::<S>(n, -0.693_359_375, x);
    let r = fma::<S>(n, 2.121_944_4e-4, r);
    let p = poly::<S, 5>(r, [0.49999994, 0.1666652, 0.041668408, 0.008368899, 0.0013814219]);
    (t.to_bits().wrapping_sub(ROUND.to_bits()) as i32, fma::<S>(r * r, p, r))
}

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `e^x`, within 2 ulp; subnormal results included.
#[inline(always)]
pub(crate) fn exp<S: Set>(x: f32) -> f32 {
    let (n, em1) = reduce::<S>(clip(x, -104.0, 89.0));
    let half = n >> 1;
    (em1 + 1.0) * pow2(half) * pow2(n.wrapping_sub(half))
}

/// `e^x` for `x <= 0` (or NaN), within 2 ulp; 0 where that is below 2^-125.
#[inline(always)]
pub(crate) fn exp_neg<S: Set>(x: f32) -> f32 {
    const LEAST: f32 = -86.643_4;
    let (n, em1) = reduce::<S>(if x < LEAST { LEAST } else { x });
    let y = fma::<S>(em1, pow2(n), pow2(n));
    if x < LEAST { 0.0 } else { y }
}

/// `e^x - 1`, with a small relative error, for `|x| <= 80`.
#[inline(always)]
pub(crate) fn expm1<S: Set>(x: f32) -> f32 {
    let (n, em1) = reduce::<S>(x);
    let scale = pow2(n);
    fma::<S>(em1, scale, scale - 1.0)
}

/// Natural logarithm, within 2 ulp away from 1 and 3e-7 relative near it; -inf at 0, NaN below.
#[inline(always)]
pub(crate) fn ln<S: Set>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let bits = (if tiny { x * 8_388_608.0 } else { x }).to_bits();
    // Exponent counted so that the mantissa lies in sqrt(1/2) .. sqrt(2).
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let n = (shifted as i32) >> 23;
    let f = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    let n = n.wrapping_sub(if tiny { 23 } else { 0 }) as f32;
    let q = poly::<S, 8>(
        f,
        [0.3333333, -0.25000837, 0.20001292, -0.16622764, 0.141997, -0.13164198, 0.12779088, -0.076460376],
    );
    let low = fma::<S>(n, -2.121_944_4e-4, fma::<S>(f * f, fma::<S>(f, q, -0.5), f));
    let y = fma::<S>(n, 0.693_359_375, low);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// `ln(1 + u)` for `u >= 0`.
#[inline(always)]
fn ln_1p<S: Set>(u: f32) -> f32 {
    let w = 1.0 + u;
    ln::<S>(w) + (u - (w - 1.0)) / w
}

/// Hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Set>(x: f32) -> f32 {
    let a = x.abs();
    let e = expm1::<S>(2.0 * if a > 10.0 { 10.0 } else { a });
    (e / (e + 2.0)).copysign(x)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Set>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

/// The error function, as `1 - e^(-t G(t))` with `t = |x|`.
#[inline(always)]
pub(crate) fn erf<S: Set>(x: f32) -> f32 {
    let a = x.abs();
    let t = if a > 4.0 { 4.0 } else { a };
    let g = poly::<S, 8>(
        t,
        [
            std::f32::consts::FRAC_2_SQRT_PI,
            0.6366165,
            0.1028143,
            -0.019321473,
            2.0538620e-4,
            0.0012519771,
            -3.8107974e-4,
            4.0718430e-5,
        ],
    );
    (-expm1::<S>(-t * g)).copysign(x)
}

/// `ln(1 + e^x)`.
#[inline(always)]
pub(crate) fn softplus<S: Set>(x: f32) -> f32 {
    let positive = if x < 0.0 { 0.0 } else { x };
    positive + ln_1p::<S>(exp_neg::<S>(-x.abs()))
}

/// `x tanh(ln(1 + e^x))`.
#[inline(always)]
pub(crate) fn mish<S: Set>(x: f32) -> f32 {
    let e = exp::<S>(if x > 30.0 { 30.0 } else { x });
    let n = e * (e + 2.0);
    x * (n / (n + 2.0))
}
