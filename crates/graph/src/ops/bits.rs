//! Integers as bits: `BitwiseAnd`, `BitwiseOr`, `BitwiseXor`, `BitwiseNot`, `BitShift`.
//! <https://onnx.ai/onnx/operators/onnx__BitShift.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample};
use crate::ops::broadcast::combine;
use crate::ops::family::family;
use crate::ops::number::{Number, by_type, map};
use crate::{Attrs, Error, Fact, Op, Result, Tensor, TurnCx, Turned};

/// An operation on bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bits {
    /// Bits set in both.
    And,
    /// Bits set in one or both.
    Or,
    /// Bits set in one.
    Xor,
    /// Bits that are not set.
    Not,
    /// Moves bits towards the high end, else towards the low end.
    Shift {
        /// Towards the high end.
        left: bool,
    },
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples;
    "BitwiseAnd" 18, "BitwiseOr" 18, "BitwiseXor" 18, "BitwiseNot" 18, "BitShift" 11);

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(match name {
        "BitwiseAnd" => Bits::And,
        "BitwiseOr" => Bits::Or,
        "BitwiseXor" => Bits::Xor,
        "BitwiseNot" => Bits::Not,
        _ => match r.attrs.text_or("direction", "")? {
            "LEFT" => Bits::Shift { left: true },
            "RIGHT" => Bits::Shift { left: false },
            other => return Err(Error::invalid(format!("direction {other:?} is neither LEFT nor RIGHT"))),
        },
    }))
}

fn samples(name: &str) -> Vec<Sample> {
    let bytes = || vec![Tensor::vector(&[0x5au8, 3, 255]), Tensor::vector(&[1u8])];
    let pair = |op: Bits| {
        vec![
            Sample::new(op, bytes()),
            Sample::new(op, vec![Tensor::vector(&[-5i64, 6]), Tensor::vector(&[1i64, 70])]),
        ]
    };
    match name {
        "BitwiseAnd" => pair(Bits::And),
        "BitwiseOr" => pair(Bits::Or),
        "BitwiseXor" => pair(Bits::Xor),
        "BitwiseNot" => vec![Sample::new(Bits::Not, vec![Tensor::vector(&[-5i16, 6])])],
        _ => [true, false].into_iter().flat_map(|left| pair(Bits::Shift { left })).collect(),
    }
}

impl Bits {
    fn run_as<T: Number>(self, a: Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        if T::IS_FLOAT {
            return Err(Error::invalid(format!("{} has no bits to work on, only integers do", T::DTYPE)));
        }
        let width = T::DTYPE.bits() as i128;
        let pair = |x: i128, y: i128| match self {
            Bits::And => x & y,
            Bits::Or => x | y,
            Bits::Xor => x ^ y,
            Bits::Not => !x,
            Bits::Shift { left: true } if (0..width).contains(&y) => x << y,
            Bits::Shift { left: false } if (0..width).contains(&y) => x >> y,
            Bits::Shift { left } => {
                if x < 0 && !left {
                    -1
                } else {
                    0
                }
            }
        };
        match b {
            None => map::<T>(a, |x| T::from_i128(pair(x.to_i128(), 0))),
            Some(b) => combine::<T>(a, b, |x, y| T::from_i128(pair(x.to_i128(), y.to_i128()))),
        }
    }
}

impl Op for Bits {
    fn def(&self) -> &'static OpDef {
        match self {
            Bits::And => &DEFS[0],
            Bits::Or => &DEFS[1],
            Bits::Xor => &DEFS[2],
            Bits::Not => &DEFS[3],
            Bits::Shift { .. } => &DEFS[4],
        }
    }

    fn attrs(&self) -> Attrs {
        match self {
            Bits::Shift { left } => Attrs::new().text("direction", if *left { "LEFT" } else { "RIGHT" }),
            _ => Attrs::new(),
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        if *self == Bits::Not {
            return infer::like(inputs, 0);
        }
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        Ok(vec![Fact::maybe(a.dtype().or(b.dtype()), infer::broadcast(a.shape(), b.shape())?)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn run<T: Number>(op: Bits, a: Tensor, b: Option<&Tensor>) -> Result<Tensor> {
            op.run_as::<T>(a, b)
        }
        let a = inputs.take(0)?;
        let b = if *self == Bits::Not { None } else { Some(inputs.need(1)?) };
        Ok(vec![by_type!(a.dtype(), run(*self, a, b))?])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.all()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
