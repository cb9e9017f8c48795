//! `CumSum`, `CumProd`: running sums and products along an axis.
//! <https://onnx.ai/onnx/operators/onnx__CumSum.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::family::family;
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, Error, Fact, Op, Result, Tensor, ValueId};

/// A running sum or product; the axis is the second input.
#[derive(Clone, Debug)]
pub struct Cumulative {
    product: bool,
    /// An element itself is not yet counted.
    exclusive: bool,
    /// From the end to the start.
    reverse: bool,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples; "CumSum" 11, "CumProd" 26);

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    let (exclusive, reverse) = (r.attrs.flag_or("exclusive", false)?, r.attrs.flag_or("reverse", false)?);
    Ok(Arc::new(Cumulative { product: name == "CumProd", exclusive, reverse }))
}

fn samples(name: &str) -> Vec<Sample> {
    let product = name == "CumProd";
    let op = |exclusive, reverse| Cumulative { product, exclusive, reverse };
    let grads: &[usize] = if product { &[] } else { &[0] };
    let with = |op, axis: i64| Sample::new(op, vec![ramp(&[2, 3, 2]), Tensor::scalar(axis)]).grads(grads);
    vec![
        with(op(false, false), 1),
        with(op(true, false), -1),
        with(op(true, true), 0),
        with(op(false, true), 1),
        Sample::new(op(false, false), vec![Tensor::vector(&[1i32, 2, 3]), Tensor::vector(&[0i32])]),
    ]
}

impl Cumulative {
    fn run_as<T: Number>(&self, x: &Tensor, axis: usize) -> Result<Tensor> {
        let (shape, data) = (x.shape(), x.as_slice::<T>()?);
        let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        Tensor::build(shape, |out: &mut [T]| {
            for row in 0..data.len().checked_div(size).unwrap_or(0) {
                let start = row / inner * size * inner + row % inner;
                let mut total = if self.product { 1.0 } else { 0.0 };
                let mut exact = T::from_f64(total);
                for k in 0..size {
                    let at = start + inner * if self.reverse { size - 1 - k } else { k };
                    let (before, v) = (if T::IS_FLOAT { T::from_f64(total) } else { exact }, data[at]);
                    match self.product {
                        true => (total, exact) = (total * v.to_f64(), exact.times(v)),
                        false => (total, exact) = (total + v.to_f64(), exact.plus(v)),
                    }
                    let after = if T::IS_FLOAT { T::from_f64(total) } else { exact };
                    out[at] = if self.exclusive { before } else { after };
                }
            }
            Ok(())
        })
    }
}

impl Op for Cumulative {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(self.product)]
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().maybe("exclusive", self.exclusive.then_some(Attr::Int(1)));
        attrs.maybe("reverse", self.reverse.then_some(Attr::Int(1)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        fn run<T: Number>(op: &Cumulative, x: &Tensor, axis: usize) -> Result<Tensor> {
            op.run_as::<T>(x, axis)
        }
        let x = inputs.need(0)?;
        let axes = inputs.ints(1)?.unwrap_or_default();
        let &[axis] = axes.as_slice() else {
            return Err(Error::invalid(format!("{} takes one axis", self.def().name)));
        };
        let axis = infer::axis(axis, x.rank())?;
        Ok(vec![by_type!(x.dtype(), run(self, x, axis))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.product {
            return Err(Error::unsupported("CumProd has no gradient"));
        }
        let (axis, dy) = (cx.input(1)?, cx.grad()?);
        let back = Cumulative { reverse: !self.reverse, ..self.clone() };
        Ok(vec![Some(cx.graph.add_op("grad", back, &[dy, axis])?), None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
