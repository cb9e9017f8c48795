//! `ArgMax`, `ArgMin`: where the largest or smallest is. <https://onnx.ai/onnx/operators/onnx__ArgMax.html>

use std::any::Any;
use std::sync::Arc;

use kernel::reduce::{Arg as How, arg};

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::family::family;
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// The position of the largest or smallest along an axis.
#[derive(Debug)]
pub struct Arg {
    how: How,
    axis: i64,
    keep: bool,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples; "ArgMax" 1, "ArgMin" 1);

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    let how = How { largest: name == "ArgMax", last: r.attrs.flag_or("select_last_index", false)? };
    Ok(Arc::new(Arg { how, axis: r.attrs.int_or("axis", 0)?, keep: r.attrs.flag_or("keepdims", true)? }))
}

fn samples(name: &str) -> Vec<Sample> {
    let op = |last, axis, keep| Arg { how: How { largest: name == "ArgMax", last }, axis, keep };
    vec![
        Sample::new(op(false, 1, true), vec![ramp(&[2, 5, 3])]),
        Sample::new(op(true, -1, false), vec![ramp(&[2, 5])]),
        Sample::new(op(true, 0, false), vec![Tensor::vector(&[1i64, 3, 3, 1])]),
        Sample::new(op(false, 0, true), vec![Tensor::vector(&[2f64, 1.0, f64::NAN])]),
    ]
}

fn positions<T: Number>(x: &Tensor, [_, axis, inner]: [usize; 3], how: How, out: &mut [i64]) -> Result<()> {
    let x = x.as_slice::<T>()?;
    for (i, o) in out.iter_mut().enumerate() {
        let start = i / inner * axis * inner + i % inner;
        let mut best = x[start];
        for k in 1..axis {
            let v = x[start + k * inner];
            #[allow(clippy::eq_op)]
            let (old, new) = (best != best, v != v);
            let better = if how.largest { v > best } else { v < best } || new && !old;
            if better || how.last && (v == best || new && old) {
                (best, *o) = (v, k as i64);
            }
        }
    }
    Ok(())
}

impl Op for Arg {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(!self.how.largest)]
    }

    fn attrs(&self) -> Attrs {
        let attrs =
            Attrs::new().int("axis", self.axis).maybe("keepdims", (!self.keep).then_some(Attr::Int(0)));
        attrs.maybe("select_last_index", self.how.last.then_some(Attr::Int(1)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let shape = inputs.need(0)?.shape().map(|shape| {
            let axis = infer::axis(self.axis, shape.len())?;
            let mut shape = shape.to_vec();
            shape[axis] = Dim::Is(1);
            if !self.keep {
                shape.remove(axis);
            }
            Ok::<_, Error>(shape)
        });
        Ok(vec![Fact::maybe(Some(DType::I64), shape.transpose()?)])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let axis = infer::axis(self.axis, x.rank())?;
        let mut shape = x.shape().to_vec();
        let size = |part: &[usize]| part.iter().product::<usize>();
        let dims = [size(&shape[..axis]), shape[axis], size(&shape[axis + 1..])];
        shape[axis] = 1;
        if !self.keep {
            shape.remove(axis);
        }
        if dims[1] == 0 && dims[0] * dims[2] > 0 {
            return Err(Error::invalid(format!("axis {axis} has no elements to choose from")));
        }
        let out = Tensor::build(&shape, |out: &mut [i64]| match x.dtype() {
            DType::F32 => {
                arg(cx.cpu, self.how, x.as_slice()?, dims, out);
                Ok(())
            }
            dtype => by_type!(dtype, positions(x, dims, self.how, out)),
        })?;
        Ok(vec![out])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
