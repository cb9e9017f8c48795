//! `BitCast`: the same bits read as another element type of the same width.
//! <https://onnx.ai/onnx/operators/onnx__BitCast.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor};

/// `BitCast`.
#[derive(Debug)]
pub struct BitCast {
    to: DType,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef::onnx(
    "BitCast",
    26,
    |r| {
        let number = r.attrs.need_int("to")?;
        let to = i32::try_from(number).ok().and_then(DType::from_onnx);
        let to = to.ok_or_else(|| Error::invalid(format!("there is no element type {number}")))?;
        Ok(Arc::new(BitCast { to }))
    },
    || vec![Sample::new(BitCast { to: DType::I32 }, vec![ramp(&[2, 3])])],
)];

impl Op for BitCast {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("to", self.to.to_onnx().into())
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 0, Some(self.to))
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        Ok(vec![inputs.take(0)?.reinterpreted(self.to)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
