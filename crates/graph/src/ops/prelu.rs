//! `PRelu`: a rectifier with a learned slope. <https://onnx.ai/onnx/operators/onnx__PRelu.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::broadcast::combine;
use crate::ops::compare::Compare;
use crate::ops::number::{Number, by_type};
use crate::{Attrs, Axes, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// `x` when it is not negative, else `slope x`; the slope is broadcast to `x`.
#[derive(Debug)]
pub struct PRelu;

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "PRelu",
    domain: "",
    since: 7,
    read: |_| Ok(Arc::new(PRelu)),
    samples: || {
        vec![
            Sample::new(PRelu, vec![ramp(&[2, 3]), ramp(&[3])]).grads(&[0, 1]),
            Sample::new(PRelu, vec![ramp(&[2, 3, 4]), ramp(&[3, 1])]),
            Sample::new(PRelu, vec![Tensor::vector(&[-2i64, 3]), Tensor::scalar(3i64)]),
        ]
    },
}];

impl Op for PRelu {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn prelu<T: Number>(x: Tensor, slope: &Tensor) -> Result<Tensor> {
            combine::<T>(x, slope, |x, s| if x < T::default() { x.times(s) } else { x })
        }
        let x = inputs.take(0)?;
        let (shape, slope) = (x.shape().to_vec(), inputs.need(1)?);
        let y = by_type!(x.dtype(), prelu(x, slope))?;
        if y.shape() != shape {
            return Err(Error::invalid(format!("slopes {:?} do not fit {shape:?}", slope.shape())));
        }
        Ok(vec![y])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, slope, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let zero = cx.number(0.0, x)?;
        let low = cx.graph.add_op("grad", Compare::named("Less")?, &[x, zero])?;
        let (sloped, steep) = (cx.two("Mul", dy, slope)?, cx.two("Mul", dy, x)?);
        let (dx, ds) = (cx.pick(low, sloped, dy)?, cx.pick(low, steep, zero)?);
        Ok(vec![Some(dx), Some(cx.summed(ds, slope)?)])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.all()
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        Axes::elementwise(inputs, outputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
