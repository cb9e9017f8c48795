//! Questions asked of each element: `Not`, `IsNaN`, `IsInf`. <https://onnx.ai/onnx/operators/onnx__IsInf.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample};
use crate::{Attr, Attrs, Axes, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// `Not`, `IsNaN` or `IsInf`.
#[derive(Debug)]
pub enum Predicate {
    /// Turns truth around.
    Not,
    /// True for NaN.
    IsNan,
    /// True for the infinities that are asked for.
    IsInf {
        /// Asks for -inf.
        negative: bool,
        /// Asks for +inf.
        positive: bool,
    },
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "Not",
        domain: "",
        since: 1,
        read: |_| Ok(Arc::new(Predicate::Not)),
        samples: || {
            let truth = Tensor::bools(&[2], &[true, false]);
            truth.map(|t| vec![Sample::new(Predicate::Not, vec![t])]).unwrap_or_default()
        },
    },
    OpDef {
        name: "IsNaN",
        domain: "",
        since: 9,
        read: |_| Ok(Arc::new(Predicate::IsNan)),
        samples: || {
            vec![Sample::new(Predicate::IsNan, vec![Tensor::vector(&[1f32, f32::NAN, f32::INFINITY])])]
        },
    },
    OpDef {
        name: "IsInf",
        domain: "",
        since: 10,
        read: |r| {
            let (negative, positive) =
                (r.attrs.flag_or("detect_negative", true)?, r.attrs.flag_or("detect_positive", true)?);
            Ok(Arc::new(Predicate::IsInf { negative, positive }))
        },
        samples: || {
            let x = Tensor::vector(&[1f64, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
            let sample =
                |negative, positive| Sample::new(Predicate::IsInf { negative, positive }, vec![x.clone()]);
            vec![sample(true, true), sample(true, false), sample(false, true)]
        },
    },
];

impl Op for Predicate {
    fn def(&self) -> &'static OpDef {
        match self {
            Predicate::Not => &DEFS[0],
            Predicate::IsNan => &DEFS[1],
            Predicate::IsInf { .. } => &DEFS[2],
        }
    }

    fn attrs(&self) -> Attrs {
        let no = |asked: bool| (!asked).then_some(Attr::Int(0));
        match self {
            Predicate::IsInf { negative, positive } => {
                Attrs::new().maybe("detect_negative", no(*negative)).maybe("detect_positive", no(*positive))
            }
            _ => Attrs::new(),
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 0, Some(DType::Bool))
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let ask = |f: &dyn Fn(f64) -> bool| -> Result<Vec<bool>> {
            Ok(match x.dtype() {
                DType::F64 => x.as_slice::<f64>()?.iter().map(|&v| f(v)).collect(),
                _ => x.to_f32()?.iter().map(|&v| f(v.into())).collect(),
            })
        };
        let truth: Vec<bool> = match *self {
            Predicate::Not if x.dtype() == DType::Bool => x.bytes().iter().map(|&b| b == 0).collect(),
            Predicate::Not => return Err(Error::invalid(format!("Not takes booleans, got {}", x.dtype()))),
            Predicate::IsNan => ask(&f64::is_nan)?,
            Predicate::IsInf { negative, positive } => {
                ask(&|v| negative && v == f64::NEG_INFINITY || positive && v == f64::INFINITY)?
            }
        };
        Ok(vec![Tensor::bools(x.shape(), &truth)?])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![None])
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
