//! `Mod`: what is left of a division. <https://onnx.ai/onnx/operators/onnx__Mod.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample};
use crate::ops::broadcast::{combine, ints};
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, Dim, Fact, Op, Result, Tensor, TurnCx, Turned};

/// The remainder: with the sign of the divisor, or (`fmod`) with that of the dividend.
#[derive(Debug)]
pub struct Mod {
    fmod: bool,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Mod",
    domain: "",
    since: 10,
    read: |r| Ok(Arc::new(Mod { fmod: r.attrs.flag_or("fmod", false)? })),
    samples: || {
        let sample = |fmod, a, b| Sample::new(Mod { fmod }, vec![a, b]);
        let (x, y) = (Tensor::vector(&[-4.3f32, 7.2, 5.0]), Tensor::vector(&[2.1f32, -3.4, 8.0]));
        vec![
            sample(true, x.clone(), y.clone()),
            sample(false, x, y),
            sample(false, Tensor::vector(&[-4i64, 7, 5]), Tensor::scalar(3i64)),
            sample(true, Tensor::vector(&[-4i8, 7, 5]), Tensor::scalar(-3i8)),
        ]
    },
}];

fn float(a: f64, b: f64, fmod: bool) -> f64 {
    let rest = a % b;
    match rest {
        _ if fmod => rest,
        _ if rest == 0.0 => 0f64.copysign(b),
        _ if (rest < 0.0) != (b < 0.0) => rest + b,
        _ => rest,
    }
}

fn int(a: i128, b: i128, fmod: bool) -> i128 {
    match a.checked_rem(b).unwrap_or(0) {
        rest if !fmod && rest != 0 && (rest < 0) != (b < 0) => rest + b,
        rest => rest,
    }
}

impl Op for Mod {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("fmod", self.fmod.then_some(Attr::Int(1)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        let ints = ints(inputs, |a, b| match (a.int(), b.int()) {
            (Some(a), Some(b)) => {
                i64::try_from(int(a.into(), b.into(), self.fmod)).map_or(Dim::Unknown, Dim::Is)
            }
            _ => Dim::Unknown,
        });
        let shape = infer::broadcast(a.shape(), b.shape())?;
        Ok(vec![Fact::maybe(a.dtype().or(b.dtype()), shape).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn run<T: Number>(fmod: bool, a: Tensor, b: &Tensor) -> Result<Tensor> {
            match T::IS_FLOAT {
                true => combine::<T>(a, b, |x, y| T::from_f64(float(x.to_f64(), y.to_f64(), fmod))),
                false => combine::<T>(a, b, |x, y| T::from_i128(int(x.to_i128(), y.to_i128(), fmod))),
            }
        }
        let a = inputs.take(0)?;
        Ok(vec![by_type!(a.dtype(), run(self.fmod, a, inputs.need(1)?))?])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.all()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
