//! Operators that give back their input when a model only runs: `Identity`, `Dropout`.
//! <https://onnx.ai/onnx/operators/onnx__Dropout.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::{Attrs, Axes, DType, Datum, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// `Identity`: any datum.
#[derive(Debug)]
pub struct Identity;

/// `Dropout`, which does nothing unless it is told to train. Its second output is the mask: all true.
#[derive(Debug)]
pub struct Dropout {
    attrs: Attrs,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "Identity",
        domain: "",
        since: 1,
        read: |_| Ok(Arc::new(Identity)),
        samples: || vec![Sample::new(Identity, vec![ramp(&[2, 3])]).grads(&[0])],
    },
    OpDef {
        name: "Dropout",
        domain: "",
        since: 1,
        read: |r| Ok(Arc::new(Dropout { attrs: r.attrs.clone() })),
        samples: || {
            vec![
                Sample::new(Dropout { attrs: Attrs::new() }, vec![ramp(&[2, 3])]),
                Sample::new(Dropout { attrs: Attrs::new().int("seed", 3) }, vec![ramp(&[2, 3])]).outputs(2),
            ]
        },
    },
];

impl Op for Identity {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        Ok(vec![inputs.need(0)?.clone()])
    }

    fn run_data(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Datum>> {
        Ok(vec![inputs.take_data(0).ok_or_else(|| Error::invalid("input 0 is missing"))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![Some(cx.grad()?)])
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

impl Op for Dropout {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let mask = Fact::maybe(Some(DType::Bool), x.shape().map(<[_]>::to_vec));
        Ok(vec![Fact { ty: x.ty.clone(), ints: None }, mask])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let training = inputs.get(2)?.is_some_and(|t| t.bytes().iter().any(|&b| b != 0));
        let ratio = match inputs.get(1)? {
            Some(t) => t.to_f32()?.first().copied().unwrap_or(0.5),
            None => self.attrs.float_or("ratio", 0.5)?,
        };
        if training && ratio != 0.0 {
            return Err(Error::unsupported(
                "Dropout in training mode draws random numbers; run the model for inference",
            ));
        }
        let x = inputs.take(0)?;
        let mut outputs = vec![x];
        if cx.outputs > 1 {
            let mut mask = Tensor::zeros(DType::Bool, outputs[0].shape())?;
            mask.bytes_mut()?.fill(1);
            outputs.push(mask);
        }
        Ok(outputs)
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        Axes::elementwise(inputs, outputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
