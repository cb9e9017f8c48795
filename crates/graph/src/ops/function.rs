//! Functions of one number: their meaning, their derivative, and the kernel that computes them fast.
//! <https://onnx.ai/onnx/operators/>

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use kernel::Cpu;
use kernel::act::{self, Act};

use crate::ops::number::{Number, by_type, map};
use crate::{DType, Element, Error, Result, Tensor};

/// Up to two parameters of a function, in the order of [`Kind::params`].
pub(crate) type Params = [f32; 2];

/// One function.
pub(crate) struct Kind {
    /// Its name in ONNX.
    pub name: &'static str,
    /// Names and defaults of its parameters.
    pub params: &'static [(&'static str, f32)],
    /// Its meaning.
    f: fn(f64, [f64; 2]) -> f64,
    /// Its derivative; `None` when that is zero wherever there is one.
    slope: Option<fn(f64, [f64; 2]) -> f64>,
    /// Its meaning for integers, when it keeps them integers.
    int: Option<fn(i128) -> i128>,
    /// The kernel, for f32.
    act: Option<fn(Params) -> Act>,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A function with its parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub kind: &'static Kind,
    pub params: Params,
}

type Slope = fn(f64, [f64; 2]) -> f64;

/// A smooth function without parameters.
const fn smooth(name: &'static str, f: fn(f64, [f64; 2]) -> f64, slope: Slope) -> Kind {
    Kind { name, params: &[], f, slope: Some(slope), int: None, act: None }
}

/// A function that is flat but for its steps.
const fn steps(name: &'static str, f: fn(f64, [f64; 2]) -> f64) -> Kind {
    Kind { name, params: &[], f, slope: None, int: None, act: None }
}

impl Kind {
    const fn params(self, params: &'static [(&'static str, f32)]) -> Kind {
        Kind { params, ..self }
    }

    const fn int(self, f: fn(i128) -> i128) -> Kind {
        Kind { int: Some(f), ..self }
    }

    const fn act(self, f: fn(Params) -> Act) -> Kind {
        Kind { act: Some(f), ..self }
    }
}

static KINDS: &[Kind] = &[
    smooth("Abs", |x, _| x.abs(), |x, _| sign(x)).int(i128::abs).act(|_| Act::Abs),
    smooth("Acos", |x, _| x.acos(), |x, _| -1.0 / (1.0 - x * x).sqrt()),
    smooth("Acosh", |x, _| x.acosh(), |x, _| 1.0 / (x * x - 1.0).sqrt()),
    smooth("Asin", |x, _| x.asin(), |x, _| 1.0 / (1.0 - x * x).sqrt()),
    smooth("Asinh", |x, _| x.asinh(), |x, _| 1.0 / (x * x + 1.0).sqrt()),
    smooth("Atan", |x, _| x.atan(), |x, _| 1.0 / (1.0 + x * x)),
    smooth("Atanh", |x, _| x.atanh(), |x, _| 1.0 / (1.0 - x * x)),
    steps("Ceil", |x, _| x.ceil()).int(|x| x),
    smooth("Celu", celu, |x, [a, _]| if x < 0.0 { (x / a).exp() } else { 1.0 }).params(&[("alpha", 1.0)]),
    smooth("Cos", |x, _| x.cos(), |x, _| -x.sin()),
    smooth("Cosh", |x, _| x.cosh(), |x, _| x.sinh()),
    smooth("Elu", elu, |x, [a, _]| if x < 0.0 { a * x.exp() } else { 1.0 })
        .params(&[("alpha", 1.0)])
        .act(|[a, _]| Act::Elu(a)),
    smooth("Erf", |x, _| erf(x), |x, _| FRAC_2_SQRT_PI * (-x * x).exp()).act(|_| Act::Erf),
    smooth("Exp", |x, _| x.exp(), |x, _| x.exp()).act(|_| Act::Exp),
    steps("Floor", |x, _| x.floor()).int(|x| x),
    smooth(
        "Gelu",
        |x, _| x * normal(x),
        |x, _| normal(x) + x * (-0.5 * x * x).exp() * 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2,
    )
    .act(|_| Act::Gelu),
    smooth(
        "GeluTanh",
        |x, _| x * (0.5 + 0.5 * gelu_inner(x).tanh()),
        |x, _| {
            let t = gelu_inner(x).tanh();
            let inner = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
            0.5 + 0.5 * t + 0.5 * x * (1.0 - t * t) * inner
        },
    )
    .act(|_| Act::GeluTanh),
    smooth(
        "HardSigmoid",
        |x, [a, b]| between(a * x + b, 0.0, 1.0),
        |x, [a, b]| {
            if (0.0..1.0).contains(&(a * x + b)) { a } else { 0.0 }
        },
    )
    .params(&[("alpha", 0.2), ("beta", 0.5)])
    .act(|[alpha, beta]| Act::HardSigmoid { alpha, beta }),
    smooth(
        "HardSwish",
        |x, _| x * between(x / 6.0 + 0.5, 0.0, 1.0),
        |x, _| match x {
            x if x < -3.0 => 0.0,
            x if x > 3.0 => 1.0,
            x => x / 3.0 + 0.5,
        },
    )
    .act(|_| Act::HardSwish),
    smooth(
        "LeakyRelu",
        |x, [a, _]| if x < 0.0 { a * x } else { x },
        |x, [a, _]| if x < 0.0 { a } else { 1.0 },
    )
    .params(&[("alpha", 0.01)])
    .act(|[a, _]| Act::LeakyRelu(a)),
    smooth("Log", |x, _| x.ln(), |x, _| 1.0 / x).act(|_| Act::Ln),
    smooth(
        "Mish",
        |x, _| x * softplus(x).tanh(),
        |x, _| {
            let t = softplus(x).tanh();
            t + x * (1.0 - t * t) * sigmoid(x)
        },
    )
    .act(|_| Act::Mish),
    smooth("Neg", |x, _| -x, |_, _| -1.0).int(|x| -x).act(|_| Act::Neg),
    smooth("Reciprocal", |x, _| 1.0 / x, |x, _| -1.0 / (x * x)).act(|_| Act::Reciprocal),
    smooth("Relu", |x, _| if x < 0.0 { 0.0 } else { x }, |x, _| if x > 0.0 { 1.0 } else { 0.0 })
        .int(|x| x.max(0))
        .act(|_| Act::Relu),
    steps("Round", |x, _| x.round_ties_even()).int(|x| x),
    smooth("Selu", |x, [a, g]| g * elu(x, [a, 0.0]), |x, [a, g]| if x < 0.0 { g * a * x.exp() } else { g })
        .params(&[("alpha", 1.673_263_2), ("gamma", 1.050_701)]),
    smooth(
        "Shrink",
        |x, [bias, lambda]| match x {
            x if x < -lambda => x + bias,
            x if x > lambda => x - bias,
            x if x.is_nan() => x,
            _ => 0.0,
        },
        |x, [_, lambda]| if x.abs() > lambda { 1.0 } else { 0.0 },
    )
    .params(&[("bias", 0.0), ("lambd", 0.5)]),
    smooth("Sigmoid", |x, _| sigmoid(x), |x, _| sigmoid(x) * sigmoid(-x)).act(|_| Act::Sigmoid),
    steps("Sign", |x, _| sign(x)).int(i128::signum),
    smooth("Sin", |x, _| x.sin(), |x, _| x.cos()),
    smooth("Sinh", |x, _| x.sinh(), |x, _| x.cosh()),
    smooth("Softplus", |x, _| softplus(x), |x, _| sigmoid(x)).act(|_| Act::Softplus),
    smooth("Softsign", |x, _| x / (1.0 + x.abs()), |x, _| (1.0 + x.abs()).powi(-2)),
    smooth("Sqrt", |x, _| x.sqrt(), |x, _| 0.5 / x.sqrt()).act(|_| Act::Sqrt),
    smooth(
        "Swish",
        |x, [a, _]| x * sigmoid(a * x),
        |x, [a, _]| {
            let s = sigmoid(a * x);
            s + a * x * s * (1.0 - s)
        },
    )
    .params(&[("alpha", 1.0)])
    .act(|[a, _]| Act::Swish(a)),
    smooth("Tan", |x, _| x.tan(), |x, _| x.cos().powi(-2)),
    smooth("Tanh", |x, _| x.tanh(), |x, _| 1.0 - x.tanh().powi(2)).act(|_| Act::Tanh),
    smooth(
        "ThresholdedRelu",
        |x, [a, _]| if x <= a { 0.0 } else { x },
        |x, [a, _]| {
            if x > a { 1.0 } else { 0.0 }
        },
    )
    .params(&[("alpha", 1.0)]),
];

fn sign(x: f64) -> f64 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

/// `x` held to `lo..=hi`; NaN stays.
fn between(x: f64, lo: f64, hi: f64) -> f64 {
    if x < lo {
        lo
    } else if x > hi {
        hi
    } else {
        x
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    (-x.abs()).exp().ln_1p() + if x < 0.0 { 0.0 } else { x }
}

fn elu(x: f64, [a, _]: [f64; 2]) -> f64 {
    if x < 0.0 { a * x.exp_m1() } else { x }
}

fn celu(x: f64, [a, _]: [f64; 2]) -> f64 {
    let low = a * (x / a).exp_m1();
    if x.is_nan() { x } else { x.max(0.0) + low.min(0.0) }
}

fn gelu_inner(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)
}

/// The distribution function of the normal distribution.
fn normal(x: f64) -> f64 {
    0.5 + 0.5 * erf(x * FRAC_1_SQRT_2)
}

/// The error function by its series of positive terms, `2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!`
/// (Abramowitz and Stegun, 7.1.6).
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= 2.0 * x * x / n;
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

impl Function {
    /// The function of this name with its default parameters.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none.
    pub fn named(name: &str) -> Result<Function> {
        let kind = KINDS.iter().find(|k| k.name == name);
        let kind = kind.ok_or_else(|| Error::unsupported(format!("function {name}")))?;
        let default = |i: usize| kind.params.get(i).map_or(0.0, |p| p.1);
        Ok(Function { kind, params: [default(0), default(1)] })
    }

    /// True when it has a derivative other than zero.
    pub fn is_smooth(&self) -> bool {
        self.kind.slope.is_some()
    }

    /// The kernel that computes it for f32, when there is one.
    pub fn act(&self) -> Option<Act> {
        self.kind.act.map(|act| act(self.params))
    }

    /// The function of each element.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for elements that are no numbers.
    pub fn apply(&self, cpu: &Cpu, mut x: Tensor) -> Result<Tensor> {
        fn each<T: Number>(f: &Function, x: Tensor) -> Result<Tensor> {
            let params = f.params.map(f64::from);
            match f.kind.int {
                Some(int) if !T::IS_FLOAT => map::<T>(x, |v| T::from_i128(int(v.to_i128()))),
                _ => map::<T>(x, |v| T::from_f64((f.kind.f)(v.to_f64(), params))),
            }
        }
        match self.act() {
            Some(act) if x.dtype() == DType::F32 => {
                act::apply(cpu, act, x.as_mut_slice()?);
                Ok(x)
            }
            _ => by_type!(x.dtype(), each(self, x)),
        }
    }

    /// `dy` times the derivative at each element of `x`.
    ///
    /// # Errors
    /// When the shapes or types differ, or the elements are no fractions.
    pub fn back(&self, cpu: &Cpu, x: &Tensor, mut dy: Tensor) -> Result<Tensor> {
        fn each<T: Number + Element>(f: &Function, x: &Tensor, mut dy: Tensor) -> Result<Tensor> {
            let params = f.params.map(f64::from);
            let slope = f.kind.slope.unwrap_or(|_, _| 0.0);
            for (d, &v) in dy.as_mut_slice::<T>()?.iter_mut().zip(x.as_slice::<T>()?) {
                *d = T::from_f64(d.to_f64() * slope(v.to_f64(), params));
            }
            Ok(dy)
        }
        if x.shape() != dy.shape() {
            return Err(Error::invalid(format!("shapes {:?} and {:?} differ", x.shape(), dy.shape())));
        }
        if let (DType::F32, Some(act)) = (x.dtype(), self.act())
            && kernel::back::act(cpu, act, x.as_slice()?, dy.as_mut_slice()?)
        {
            return Ok(dy);
        }
        by_type!(x.dtype(), each(self, x, dy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_function() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in
            [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (-7.0, -1.0)]
        {
            assert!((erf(x) - y).abs() < 1e-10, "{x}");
        }
    }

    #[test]
    fn derivatives_are_differences() {
        for kind in KINDS {
            let f = Function::named(kind.name).unwrap();
            let p = f.params.map(f64::from);
            let Some(slope) = kind.slope else { continue };
            for x in [-4.2, -0.31, 0.13, 0.77, 1.4, 5.0] {
                let (lo, hi) = ((kind.f)(x - 1e-6, p), (kind.f)(x + 1e-6, p));
                let (want, got) = ((hi - lo) / 2e-6, slope(x, p));
                if want.is_finite() {
                    assert!(
                        (want - got).abs() < 1e-4 * (1.0 + want.abs()),
                        "{} at {x}: {got}, not {want}",
                        kind.name
                    );
                }
            }
        }
    }

    #[test]
    fn kernels_mean_the_same() {
        for kind in KINDS {
            let f = Function::named(kind.name).unwrap();
            let Some(act) = kind.act else { continue };
            for i in -50..50 {
                let x = i as f32 * 0.13;
                let (a, b) = (act(f.params).of(x), (kind.f)(x.into(), f.params.map(f64::from)) as f32);
                assert!(
                    a == b || (a - b).abs() <= 2e-6 * (1.0 + b.abs()) || a.is_nan() && b.is_nan(),
                    "{} at {x}: {a}, not {b}",
                    kind.name
                );
            }
        }
    }

    #[test]
    fn large_integers_stay_exact() {
        let cpu = Cpu::new(1).unwrap();
        let x = Tensor::vector(&[i64::MIN + 1, i64::MAX]);
        let y = Function::named("Abs").unwrap().apply(&cpu, x).unwrap();
        assert_eq!(y.as_slice::<i64>().unwrap(), [i64::MAX, i64::MAX]);
    }
}
