//! `CenterCropPad`: the middle of a tensor, or zeros around it. <https://onnx.ai/onnx/operators/onnx__CenterCropPad.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{Strided, steps};
use crate::ops::shape::sizes;
use crate::tensor::count;
use crate::{Attrs, Dim, Error, Fact, Op, Result, Tensor};

/// `CenterCropPad`.
#[derive(Debug)]
pub struct CenterCropPad {
    axes: Option<Vec<i64>>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef::onnx(
    "CenterCropPad",
    18,
    |r| Ok(Arc::new(CenterCropPad { axes: r.attrs.opt_ints("axes")? })),
    || {
        let of = |axes: Option<&[i64]>, to: &[i64]| {
            let op = CenterCropPad { axes: axes.map(<[i64]>::to_vec) };
            Sample::new(op, vec![ramp(&[4, 5, 3]), Tensor::vector(to)])
        };
        vec![of(None, &[7, 2, 3]), of(Some(&[-1, 0]), &[6, 1])]
    },
)];

impl CenterCropPad {
    fn axes(&self, rank: usize, given: usize) -> Result<Vec<usize>> {
        let axes = match &self.axes {
            Some(list) => {
                infer::axes(list, rank)?;
                list.iter().map(|&a| infer::axis(a, rank)).collect::<Result<Vec<_>>>()?
            }
            None => (0..rank).collect(),
        };
        if axes.len() == given {
            return Ok(axes);
        }
        Err(Error::invalid(format!("{given} sizes for {} axes", axes.len())))
    }
}

impl Op for CenterCropPad {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("axes", self.axes.clone().map(crate::Attr::Ints))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, to) = (inputs.need(0)?, inputs.need(1)?);
        let shape = match (x.shape(), &to.ints) {
            (Some(dims), Some(list)) => {
                let mut shape = dims.to_vec();
                for (axis, size) in self.axes(dims.len(), list.len())?.into_iter().zip(list) {
                    shape[axis] = size.clone();
                }
                Some(shape)
            }
            (dims, _) => dims.map(|d| vec![Dim::Unknown; d.len()]),
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let to = sizes(&inputs.need(1)?.to_ints()?)?;
        let x = inputs.take(0)?;
        let mut shape = x.shape().to_vec();
        for (axis, size) in self.axes(x.rank(), to.len())?.into_iter().zip(to) {
            shape[axis] = size;
        }
        let y = Tensor::zeros(x.dtype(), &shape)?;
        let kept: Vec<usize> = x.shape().iter().zip(&shape).map(|(a, b)| *a.min(b)).collect();
        if count(&kept)? == 0 {
            return Ok(vec![y]);
        }
        // Of an odd difference the smaller half lies before.
        let middle = |sizes: &[usize]| {
            let strides = steps(sizes);
            let offset = sizes.iter().zip(&kept).zip(&strides).map(|((n, k), s)| (n - k) / 2 * s).sum();
            Strided { offset, shape: kept.clone(), steps: strides.iter().map(|&s| s as isize).collect() }
        };
        let inner = middle(x.shape()).read(x)?;
        Ok(vec![middle(&shape).write(y, inner)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
