//! `ReverseSequence`: the first elements of each sequence of a batch, backwards.
//! <https://onnx.ai/onnx/operators/onnx__ReverseSequence.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{advance, steps};
use crate::ops::gather::take_runs;
use crate::{Attrs, Error, Fact, Op, Result, Tensor};

/// `ReverseSequence`.
#[derive(Debug)]
pub struct ReverseSequence {
    attrs: Attrs,
    time: usize,
    batch: usize,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef::onnx(
    "ReverseSequence",
    10,
    |r| {
        let axis = |name, default| match r.attrs.int_or(name, default)? {
            0 => Ok(0),
            1 => Ok(1),
            other => Err(Error::invalid(format!("{name} is 0 or 1, not {other}"))),
        };
        let (time, batch) = (axis("time_axis", 0)?, axis("batch_axis", 1)?);
        if time == batch {
            return Err(Error::invalid("time_axis and batch_axis must differ"));
        }
        Ok(Arc::new(ReverseSequence { attrs: r.attrs.clone(), time, batch }))
    },
    || {
        let of = |attrs, lengths: &[i64]| {
            Sample::read(&DEFS[0], attrs, vec![ramp(&[3, 3, 2]), Tensor::vector(lengths)])
        };
        let turned = Attrs::new().int("time_axis", 1).int("batch_axis", 0);
        vec![of(Attrs::new(), &[1, 2, 3]), of(turned, &[3, 0, 2])]
    },
)];

impl Op for ReverseSequence {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let lengths = inputs.need(1)?.to_ints()?;
        let x = inputs.take(0)?;
        let shape = x.shape().to_vec();
        if shape.len() < 2 || lengths.len() != shape[self.batch] {
            return Err(Error::invalid(format!("{} lengths for shape {shape:?}", lengths.len())));
        }
        if let Some(n) = lengths.iter().find(|&&n| n < 0 || n as usize > shape[self.time]) {
            return Err(Error::invalid(format!("length {n} of a sequence of {}", shape[self.time])));
        }
        if x.is_empty() {
            return Ok(vec![x]);
        }
        let strides = steps(&shape);
        let mut index = [0, 0];
        let mut places = Vec::new();
        for _ in 0..shape[0] * shape[1] {
            let (time, length) = (index[self.time], lengths[index[self.batch]] as usize);
            let time = if time < length { length - 1 - time } else { time };
            places.push(time * strides[self.time] + index[self.batch] * strides[self.batch]);
            advance(&mut index, &shape[..2]);
        }
        Ok(vec![take_runs(x, &places, strides[1], &shape)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
