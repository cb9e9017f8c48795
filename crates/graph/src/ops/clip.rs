//! `Clip`: numbers held between two bounds. <https://onnx.ai/onnx/operators/onnx__Clip.html>

use std::any::Any;
use std::sync::Arc;

use kernel::act::{self, Act};

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::number::{Number, by_type, map};
use crate::{Attr, Attrs, Axes, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// Numbers held between bounds: attributes before version 11, inputs since. The upper one wins when they cross.
#[derive(Debug)]
pub struct Clip {
    /// The attribute `min`.
    pub min: Option<f32>,
    /// The attribute `max`.
    pub max: Option<f32>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Clip",
    domain: "",
    since: 6,
    read: |r| Ok(Arc::new(Clip { min: r.attrs.opt_float("min")?, max: r.attrs.opt_float("max")? })),
    samples: || {
        let inputs = || Clip { min: None, max: None };
        let mut absent =
            Sample::new(inputs(), vec![ramp(&[7]), Tensor::scalar(0f32), Tensor::scalar(0.5f32)]);
        absent.inputs[1] = None;
        vec![
            Sample::new(Clip { min: Some(-0.4), max: None }, vec![ramp(&[2, 3])]).grads(&[0]),
            Sample::new(inputs(), vec![ramp(&[2, 5]), Tensor::scalar(-0.5f32), Tensor::scalar(0.3f32)])
                .grads(&[0]),
            Sample::new(inputs(), vec![Tensor::vector(&[1i64, 5, i64::MAX]), Tensor::scalar(2i64)]),
            absent,
        ]
    },
}];

impl Clip {
    fn bound<T: Number>(inputs: &Inputs, i: usize, attr: Option<f32>) -> Result<Option<T>> {
        let Some(bound) = inputs.get(i)? else { return Ok(attr.map(|v| T::from_f64(v.into()))) };
        let one = bound.as_slice::<T>()?.first().copied();
        one.map(Some).ok_or_else(|| Error::invalid("a bound of Clip is empty"))
    }
}

impl Op for Clip {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("min", self.min.map(Attr::Float)).maybe("max", self.max.map(Attr::Float))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn clip<T: Number>(op: &Clip, x: Tensor, inputs: &Inputs) -> Result<Tensor> {
            let (lo, hi) = (Clip::bound::<T>(inputs, 1, op.min)?, Clip::bound::<T>(inputs, 2, op.max)?);
            map::<T>(x, |v| {
                let v = lo.map_or(v, |lo| if v < lo { lo } else { v });
                hi.map_or(v, |hi| if v > hi { hi } else { v })
            })
        }
        let mut x = inputs.take(0)?;
        if x.dtype() == DType::F32 {
            let lo = Clip::bound(&inputs, 1, self.min)?.unwrap_or(f32::NEG_INFINITY);
            let hi = Clip::bound(&inputs, 2, self.max)?.unwrap_or(f32::INFINITY);
            act::apply(cx.cpu, Act::Clip { lo, hi }, x.as_mut_slice()?);
            return Ok(vec![x]);
        }
        Ok(vec![by_type!(x.dtype(), clip(self, x, &inputs))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, y, dy) = (cx.input(0)?, cx.output(0)?, cx.grad()?);
        let kept = cx.equal(x, y)?;
        Ok(vec![Some(cx.two("Mul", dy, kept)?)])
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
