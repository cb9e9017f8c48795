//! `Cast`, `CastLike`: other element types. <https://onnx.ai/onnx/operators/onnx__Cast.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::number::{Number, by_type};
use crate::tensor::{PowerRounding, encode_e8m0, encode_f4, encode_f8};
use crate::{Attr, Attrs, Axes, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// `Cast`: the elements as another type.
#[derive(Debug)]
pub struct Cast {
    /// The type to cast to.
    pub to: DType,
    saturate: bool,
    round_mode: Option<String>,
}

/// `CastLike`: the elements as the type of the second input.
#[derive(Debug)]
pub struct CastLike {
    saturate: bool,
}

impl Cast {
    /// A cast to a type.
    pub fn to(to: DType) -> Cast {
        Cast { to, saturate: true, round_mode: None }
    }
}

impl CastLike {
    /// A cast that saturates.
    pub fn new() -> CastLike {
        CastLike { saturate: true }
    }
}

impl Default for CastLike {
    fn default() -> CastLike {
        CastLike::new()
    }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "Cast",
        domain: "",
        since: 6,
        read: |r| {
            let number = r.attrs.need_int("to")?;
            let to = i32::try_from(number).ok().and_then(DType::from_onnx);
            let to = to.ok_or_else(|| Error::invalid(format!("there is no element type {number}")))?;
            let round_mode = r.attrs.opt_text("round_mode")?.map(str::to_owned);
            Ok(Arc::new(Cast { to, saturate: r.attrs.flag_or("saturate", true)?, round_mode }))
        },
        samples: || {
            [DType::I32, DType::F16, DType::F64, DType::Bool, DType::F8E4M3FN, DType::U4]
                .into_iter()
                .map(|to| Sample::new(Cast::to(to), vec![ramp(&[3, 5])]))
                .chain([Sample::new(Cast::to(DType::F32), vec![ramp(&[4])]).grads(&[0])])
                .collect()
        },
    },
    OpDef {
        name: "CastLike",
        domain: "",
        since: 15,
        read: |r| Ok(Arc::new(CastLike { saturate: r.attrs.flag_or("saturate", true)? })),
        samples: || vec![Sample::new(CastLike { saturate: true }, vec![ramp(&[3]), Tensor::vector(&[1i64])])],
    },
];

/// The tensor's elements as another type, by the rules of ONNX `Cast`: to integers fractions are cut off, to
/// 8-bit floats numbers saturate when `saturate`.
///
/// # Errors
/// [`Error::Unsupported`] for complex numbers; [`Error::Invalid`] for strings that are no numbers.
pub fn cast(x: Tensor, to: DType, saturate: bool) -> Result<Tensor> {
    if x.dtype() == to {
        return Ok(x);
    }
    let shape = x.shape().to_vec();
    match to {
        DType::Bool => {
            let truth: Vec<bool> = match x.dtype() {
                from if from.is_float() => x.to_f32()?.iter().map(|&v| v != 0.0).collect(),
                DType::String => parse::<f64>(&x)?.into_iter().map(|v| v != 0.0).collect(),
                _ => x.to_ints()?.into_iter().map(|v| v != 0).collect(),
            };
            Tensor::bools(&shape, &truth)
        }
        DType::String => Tensor::strings(&shape, texts(&x)?),
        DType::F4E2M1 => {
            let codes: Vec<u8> = x.to_f32()?.iter().map(|&v| encode_f4(v)).collect();
            Tensor::pack(to, &shape, &codes)
        }
        DType::I4 | DType::U4 | DType::I2 | DType::U2 => {
            let codes: Vec<u8> = match x.dtype().is_float() {
                true => x.to_f32()?.iter().map(|&v| v as i64 as u8).collect(),
                false => x.to_ints()?.into_iter().map(|v| v as u8).collect(),
            };
            Tensor::pack(to, &shape, &codes)
        }
        f8 if f8.is_f8() => {
            let codes: Vec<u8> = x.to_f32()?.iter().map(|&v| encode_f8(f8, v, saturate)).collect();
            Tensor::from_bytes(f8, &shape, codes.into())
        }
        _ => by_type!(to, number(&x)),
    }
}

/// `Cast` to powers of two, which alone has a rounding mode.
fn powers(x: &Tensor, saturate: bool, mode: &str) -> Result<Tensor> {
    let rounding = match mode {
        "up" => PowerRounding::Up,
        "down" => PowerRounding::Down,
        "nearest" => PowerRounding::Nearest,
        other => return Err(Error::invalid(format!("there is no round_mode {other:?}"))),
    };
    let codes: Vec<u8> = x.to_f32()?.iter().map(|&v| encode_e8m0(v, saturate, rounding)).collect();
    Tensor::from_bytes(DType::F8E8M0, x.shape(), codes.into()).map(Tensor::aligned)
}

fn parse<T: std::str::FromStr>(x: &Tensor) -> Result<Vec<T>> {
    let one = |s: &String| s.trim().parse().map_err(|_| Error::invalid(format!("{s:?} is not a number")));
    x.as_strings()?.iter().map(one).collect()
}

fn number<T: Number>(x: &Tensor) -> Result<Tensor> {
    use DType::*;
    let shape = x.shape();
    let wide = |v: f64| T::from_f64(v);
    // Integers wrap, as a conversion in C does; going through i64 keeps their low bits.
    let int = |v: i64| match T::DTYPE {
        I8 => T::from_f64(f64::from(v as i8)),
        I16 => T::from_f64(f64::from(v as i16)),
        I32 => T::from_f64(f64::from(v as i32)),
        U8 => T::from_f64(f64::from(v as u8)),
        U16 => T::from_f64(f64::from(v as u16)),
        U32 => T::from_f64(f64::from(v as u32)),
        _ => T::from_f64(v as f64),
    };
    match x.dtype() {
        F64 => convert(shape, &x.values::<f64>()?, wide),
        String => convert(shape, &parse::<f64>(x)?, wide),
        from if from.is_float() => convert(shape, &x.to_f32()?, |v: f32| wide(f64::from(v))),
        I64 | U64 if matches!(T::DTYPE, I64 | U64) => {
            Tensor::from_bytes(T::DTYPE, shape, bytes::Bytes::copy_from_slice(x.bytes())).map(Tensor::aligned)
        }
        U64 if T::IS_FLOAT => convert(shape, &x.values::<u64>()?, |v| wide(v as f64)),
        _ => convert(shape, &x.to_ints()?, int),
    }
}

fn convert<A: Copy, B: Number>(shape: &[usize], from: &[A], f: impl Fn(A) -> B) -> Result<Tensor> {
    Tensor::build(shape, |to: &mut [B]| {
        for (b, &a) in to.iter_mut().zip(from) {
            *b = f(a);
        }
        Ok(())
    })
}

/// Numbers as texts, as numpy prints them.
fn texts(x: &Tensor) -> Result<Vec<String>> {
    fn float(v: f64) -> String {
        match v {
            v if v.is_nan() => "NaN".into(),
            v if v.is_infinite() => {
                if v > 0.0 {
                    "INF".into()
                } else {
                    "-INF".into()
                }
            }
            v => v.to_string(),
        }
    }
    Ok(match x.dtype() {
        DType::F64 => x.values::<f64>()?.iter().map(|&v| float(v)).collect(),
        DType::F32 => x
            .values::<f32>()?
            .iter()
            .map(|&v| if v.is_finite() { v.to_string() } else { float(v.into()) })
            .collect(),
        d if d.is_float() => {
            x.to_f32()?.iter().map(|&v| if v.is_finite() { v.to_string() } else { float(v.into()) }).collect()
        }
        _ => x.to_ints()?.iter().map(i64::to_string).collect(),
    })
}

impl Op for Cast {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().int("to", self.to.to_onnx().into());
        let attrs = attrs.maybe("saturate", (!self.saturate).then_some(Attr::Int(0)));
        attrs.maybe("round_mode", self.round_mode.as_deref().map(Attr::from))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let facts = infer::like_as(inputs, 0, Some(self.to))?;
        let ints = inputs.need(0)?.ints.clone().filter(|_| matches!(self.to, DType::I64 | DType::I32));
        Ok(facts.into_iter().map(|f| f.with_ints(ints.clone())).collect())
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        if self.to == DType::F8E8M0 {
            let x = inputs.need(0)?;
            return Ok(vec![powers(x, self.saturate, self.round_mode.as_deref().unwrap_or("up"))?]);
        }
        Ok(vec![cast(inputs.take(0)?, self.to, self.saturate)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let from = cx.graph.value(cx.input(0)?).fact.dtype();
        match from {
            Some(from) if from.is_float() && self.to.is_float() => {
                let dy = cx.grad()?;
                Ok(vec![Some(cx.graph.add_op("cast_grad", Cast::to(from), &[dy])?)])
            }
            _ => Ok(vec![None]),
        }
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.first()
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        Axes::elementwise(inputs, outputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for CastLike {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("saturate", (!self.saturate).then_some(Attr::Int(0)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 0, inputs.need(1)?.dtype())
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let to = inputs.need(1)?.dtype();
        Ok(vec![cast(inputs.take(0)?, to, self.saturate)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
