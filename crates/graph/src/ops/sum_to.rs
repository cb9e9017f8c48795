//! `lessen.SumTo`: sums a tensor over the axes along which another one was broadcast. The gradient of broadcasting.

use std::any::Any;
use std::sync::Arc;

use kernel::Cpu;
use kernel::reduce::{Reduce, reduce};

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::broadcast::Walk;
use crate::ops::number::{Number, by_type};
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor, ValueId};

/// Sums the first input to the shape of the second.
#[derive(Debug)]
pub struct SumTo;

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "SumTo",
    domain: "lessen",
    since: 1,
    read: |_| Ok(Arc::new(SumTo)),
    samples: || {
        let sample = |from: &[usize], to: &[usize]| Sample::new(SumTo, vec![ramp(from), ramp(to)]);
        vec![
            sample(&[2, 3], &[2, 3]).grads(&[0]),
            sample(&[2, 3], &[3]).grads(&[0]),
            sample(&[2, 3, 4], &[3, 1]).grads(&[0]),
            sample(&[2, 3], &[]),
            sample(&[2, 3, 4, 5], &[1, 3, 1, 5]).grads(&[0]),
            sample(&[2, 3, 4, 5], &[2, 1, 1, 1]),
            sample(&[2, 1, 4], &[1, 1, 4]),
        ]
    },
}];

fn sum_to<T: Number>(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let walk = Walk::new(x.shape(), shape)?;
    if walk.shape != x.shape() {
        return Err(Error::invalid(format!("cannot sum {:?} to {shape:?}", x.shape())));
    }
    let target: Vec<usize> = (0..crate::tensor::count(shape)?).collect();
    let mut places = vec![0usize; x.len()];
    walk.apply(x.as_slice::<T>()?, &target, &mut places, |_, place| place);
    let mut sums = vec![0f64; target.len()];
    for (v, place) in x.as_slice::<T>()?.iter().zip(places) {
        sums[place] += v.to_f64();
    }
    let sums: Vec<T> = sums.into_iter().map(T::from_f64).collect();
    Tensor::new(shape, &sums)
}

/// The same for f32, one stretch of axes after the other.
fn sum_to_f32(cpu: &Cpu, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let lost = x.rank().checked_sub(shape.len());
    let wide = |lost: usize| [&vec![1; lost], shape].concat();
    let target = lost.map(wide).unwrap_or_default();
    if target.len() != x.rank() || x.shape().iter().zip(&target).any(|(a, b)| a != b && *b != 1) {
        return Err(Error::invalid(format!("cannot sum {:?} to {shape:?}", x.shape())));
    }
    let mut sums = x.as_slice::<f32>()?.to_vec();
    let mut sizes = x.shape().to_vec();
    let mut end = sizes.len();
    while let Some(last) = (0..end).rev().find(|&a| sizes[a] != target[a]) {
        let first = (0..last).rev().find(|&a| sizes[a] == target[a] && sizes[a] != 1).map_or(0, |a| a + 1);
        let size = |axes: &[usize]| axes.iter().product::<usize>();
        let dims = [size(&sizes[..first]), size(&sizes[first..=last]), size(&sizes[last + 1..])];
        let mut out = vec![0f32; dims[0] * dims[2]];
        reduce(cpu, Reduce::Sum, &sums, dims, &mut out);
        sums = out;
        sizes[first..=last].fill(1);
        end = first;
    }
    Tensor::new(shape, &sums)
}

impl Op for SumTo {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 1, inputs.dtype(0))
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let like = inputs.need(1)?;
        if x.shape() == like.shape() {
            return Ok(vec![x]);
        }
        if x.dtype() == DType::F32 {
            return Ok(vec![sum_to_f32(cx.cpu, &x, like.shape())?]);
        }
        Ok(vec![by_type!(x.dtype(), sum_to(&x, like.shape()))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        // The gradient is repeated along the summed axes: added to zeros of the input's shape.
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        let zeros = cx.graph.add_op("grad", super::binary::Binary::named("Sub")?, &[x, x])?;
        Ok(vec![Some(cx.graph.add_op("grad", super::binary::Binary::named("Add")?, &[zeros, dy])?), None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
