//! `TopK`: the largest or smallest along an axis, and where they are.
//! <https://onnx.ai/onnx/operators/onnx__TopK.html>

use std::any::Any;
use std::cmp::Ordering;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// The `k` largest or smallest; always sorted, equals in the order they stand in. NaN counts as the largest.
#[derive(Debug)]
pub struct TopK {
    /// The attribute of version 1; an input since.
    k: Option<i64>,
    axis: i64,
    largest: bool,
    sorted: bool,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "TopK",
    domain: "",
    since: 1,
    read: |r| {
        Ok(Arc::new(TopK {
            k: r.attrs.opt_int("k")?,
            axis: r.attrs.int_or("axis", -1)?,
            largest: r.attrs.flag_or("largest", true)?,
            sorted: r.attrs.flag_or("sorted", true)?,
        }))
    },
    samples: || {
        let op = |k, axis, largest, sorted| TopK { k, axis, largest, sorted };
        vec![
            Sample::new(op(Some(2), -1, true, true), vec![ramp(&[3, 5])]).outputs(2),
            Sample::new(op(None, 1, false, true), vec![ramp(&[2, 4, 3]), Tensor::vector(&[3i64])]).outputs(2),
            Sample::new(
                op(None, 0, true, false),
                vec![Tensor::vector(&[1i64, 1, 5, 1]), Tensor::vector(&[4i64])],
            )
            .outputs(2),
        ]
    },
}];

fn order<T: Number>(a: T, b: T) -> Ordering {
    #[allow(clippy::eq_op)]
    a.partial_cmp(&b).unwrap_or_else(|| (a != a).cmp(&(b != b)))
}

fn top<T: Number>(op: &TopK, x: &Tensor, axis: usize, shape: &[usize]) -> Result<Vec<Tensor>> {
    let (size, k) = (x.shape()[axis], shape[axis]);
    let inner: usize = shape[axis + 1..].iter().product();
    let data = x.as_slice::<T>()?;
    let (mut values, mut places) = (Tensor::zeros(T::DTYPE, shape)?, Tensor::zeros(DType::I64, shape)?);
    let (v, p) = (values.as_mut_slice::<T>()?, places.as_mut_slice::<i64>()?);
    let mut list: Vec<usize> = Vec::with_capacity(size);
    for row in 0..v.len().checked_div(k).unwrap_or(0) {
        let (start, to) = (row / inner * size * inner + row % inner, row / inner * k * inner + row % inner);
        let better = |&i: &usize, &j: &usize| {
            let order = order(data[start + i * inner], data[start + j * inner]);
            if op.largest { order.reverse() } else { order }.then(i.cmp(&j))
        };
        list.clear();
        list.extend(0..size);
        if k < size {
            list.select_nth_unstable_by(k, better);
        }
        list[..k].sort_unstable_by(better);
        for (n, &i) in list[..k].iter().enumerate() {
            (v[to + n * inner], p[to + n * inner]) = (data[start + i * inner], i as i64);
        }
    }
    Ok(vec![values, places])
}

impl Op for TopK {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().int("axis", self.axis).maybe("k", self.k.map(Attr::Int));
        let attrs = attrs.maybe("largest", (!self.largest).then_some(Attr::Int(0)));
        attrs.maybe("sorted", (!self.sorted).then_some(Attr::Int(0)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let shape = match x.shape() {
            Some(shape) => {
                let axis = infer::axis(self.axis, shape.len())?;
                let known = inputs.get(1).and_then(|f| f.ints.as_ref()?.first().cloned());
                let mut shape = shape.to_vec();
                shape[axis] = self.k.map(Dim::Is).or(known).unwrap_or_default();
                Some(shape)
            }
            None => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape.clone()), Fact::maybe(Some(DType::I64), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let axis = infer::axis(self.axis, x.rank())?;
        let input = inputs.ints(1)?.and_then(|v| v.first().copied());
        let k = input.or(self.k).ok_or_else(|| Error::invalid("TopK is not told how many"))?;
        let mut shape = x.shape().to_vec();
        let fits = usize::try_from(k).ok().filter(|&k| k <= shape[axis]);
        shape[axis] = fits
            .ok_or_else(|| Error::invalid(format!("cannot take the top {k} of {} elements", shape[axis])))?;
        by_type!(x.dtype(), top(self, x, axis, &shape))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
