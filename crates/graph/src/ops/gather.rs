//! Elements by index: `Gather`, `GatherElements`, `GatherND`; and `lessen.GatherGrad`, the gradient of the first.
//! <https://onnx.ai/onnx/operators/onnx__Gather.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::Port::{Input, Output};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, WeightKind, WeightUse, ramp};
use crate::ops::cells::{Cell, build, by_cell, pack, spread, steps};
use crate::ops::number::{Number, by_type};
use crate::ops::scatter::{Reduction, Scatter, ScatterNd};
use crate::ops::shape::zeros_like;
use crate::{Attr, Attrs, Axes, DType, Error, Fact, Op, Result, Tensor, ValueId};

/// `Gather`: slices along an axis. On a constant table this is an embedding.
#[derive(Debug)]
pub struct Gather {
    axis: Option<i64>,
}

/// `GatherElements`: along an axis, an element for each index.
#[derive(Debug)]
pub struct GatherElements {
    axis: Option<i64>,
}

/// `GatherND`: the last axis of the indices points into several axes at once.
#[derive(Debug)]
pub struct GatherNd {
    batch_dims: Option<i64>,
}

/// `GatherGrad(dy, x, indices)`: zeros of the shape of `x`, to which the slices of `dy` are added where `Gather`
/// took them.
#[derive(Debug)]
pub struct GatherGrad {
    axis: i64,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Gather",
        1,
        |r| Ok(Arc::new(Gather { axis: r.attrs.opt_int("axis")? })),
        || {
            let ids = Tensor::vector(&[2i64, 0, -1, 2]).reshaped(&[2, 2]).unwrap_or(Tensor::scalar(0i64));
            let mut samples = vec![
                Sample::new(Gather::new(0), vec![ramp(&[3, 4]), ids]).grads(&[0]),
                Sample::new(Gather::new(1), vec![ramp(&[2, 3, 2]), Tensor::vector(&[1i32, 1])]).grads(&[0]),
                Sample::new(Gather::new(-1), vec![Tensor::vector(&[5i64, 6, 7]), Tensor::scalar(-2i64)]),
                Sample::new(
                    Gather { axis: None },
                    vec![Tensor::vector(&[5i64, 6, 7]), Tensor::vector(&[1i64])],
                ),
            ];
            if let Ok(x) = Tensor::pack(DType::I4, &[3, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9]) {
                samples.push(Sample::new(Gather::new(0), vec![x, Tensor::vector(&[2i64, 1])]));
            }
            samples
        },
    ),
    OpDef::onnx(
        "GatherElements",
        11,
        |r| Ok(Arc::new(GatherElements { axis: r.attrs.opt_int("axis")? })),
        || {
            let ids = Tensor::vector(&[1i64, 0, -1, 1]).reshaped(&[2, 2]).unwrap_or(Tensor::scalar(0i64));
            vec![
                Sample::new(GatherElements { axis: Some(1) }, vec![ramp(&[2, 3]), ids.clone()]).grads(&[0]),
                Sample::new(GatherElements { axis: None }, vec![ramp(&[2, 3]), ids]),
            ]
        },
    ),
    OpDef::onnx(
        "GatherND",
        11,
        |r| Ok(Arc::new(GatherNd { batch_dims: r.attrs.opt_int("batch_dims")? })),
        || {
            let ids = Tensor::vector(&[1i64, -1]).reshaped(&[2, 1]).unwrap_or(Tensor::scalar(0i64));
            vec![
                Sample::new(GatherNd { batch_dims: None }, vec![ramp(&[2, 3]), ids.clone()]).grads(&[0]),
                Sample::new(GatherNd { batch_dims: Some(1) }, vec![ramp(&[2, 3, 2]), ids]),
                Sample::new(GatherNd { batch_dims: None }, vec![ramp(&[2, 3]), Tensor::vector(&[1i64, 2])]),
            ]
        },
    ),
    OpDef {
        name: "GatherGrad",
        domain: "lessen",
        since: 1,
        read: |r| Ok(Arc::new(GatherGrad { axis: r.attrs.int_or("axis", 0)? })),
        samples: || {
            let inputs = vec![ramp(&[2, 2]), ramp(&[2, 3]), Tensor::vector(&[2i64, 2])];
            vec![Sample::new(GatherGrad { axis: 1 }, inputs).grads(&[0])]
        },
    },
];

/// An index counted from the end when negative, as one below `size`.
///
/// # Errors
/// [`Error::Invalid`] when there is no such element.
pub(crate) fn place(index: i64, size: usize) -> Result<usize> {
    let at = if index < 0 { index.checked_add(size as i64) } else { Some(index) };
    at.and_then(|i| usize::try_from(i).ok())
        .filter(|&i| i < size)
        .ok_or_else(|| Error::invalid(format!("index {index} is out of range for size {size}")))
}

/// Where each element of `indices` points in a tensor of shape `shape`, when along `axis` the index is taken and
/// along the others the element's own place.
///
/// # Errors
/// When an index is out of range, or `indices` is larger than the tensor on another axis.
pub(crate) fn element_places(shape: &[usize], indices: &Tensor, axis: usize) -> Result<Vec<usize>> {
    let ids = indices.to_ints()?;
    let size = indices.shape();
    if size.len() != shape.len() || (0..shape.len()).any(|i| i != axis && size[i] > shape[i]) {
        return Err(Error::invalid(format!("indices of shape {size:?} do not fit {shape:?} on axis {axis}")));
    }
    let strides = steps(shape);
    let mut index = vec![0usize; shape.len()];
    let mut places = Vec::with_capacity(ids.len());
    for id in ids {
        let own = index.iter().zip(&strides).enumerate().filter(|(i, _)| *i != axis);
        let base: usize = own.map(|(_, (i, s))| i * s).sum();
        places.push(base + place(id, shape[axis])? * strides[axis]);
        super::cells::advance(&mut index, size);
    }
    Ok(places)
}

/// Where each index vector of `indices` (its last axis) points, as the place of the first element of a slice, and
/// the length of the slices. The first `batch` axes of both run together.
///
/// # Errors
/// When an index is out of range, or the shapes do not fit.
pub(crate) fn slice_places(shape: &[usize], indices: &Tensor, batch: usize) -> Result<(Vec<usize>, usize)> {
    let ids = indices.to_ints()?;
    let size = indices.shape();
    let depth = size.last().copied().unwrap_or(0);
    let fits = batch < size.len() && depth <= shape.len().saturating_sub(batch) && shape.len() >= batch;
    if !fits || size[..batch] != shape[..batch] {
        return Err(Error::invalid(format!("indices of shape {size:?} do not fit {shape:?}")));
    }
    let strides = steps(shape);
    let slice: usize = shape[batch + depth..].iter().product();
    let batches: usize = shape[..batch].iter().product();
    let vectors: usize = size[..size.len() - 1].iter().product();
    let per = vectors.checked_div(batches).unwrap_or(0);
    let volume: usize = shape[batch..].iter().product();
    let mut places = room(vectors)?;
    for v in 0..vectors {
        let own = &ids[v * depth..(v + 1) * depth];
        let mut at = v / per.max(1) * volume;
        for (k, &id) in own.iter().enumerate() {
            at += place(id, shape[batch + k])? * strides[batch + k];
        }
        places.push(at);
    }
    Ok((places, slice))
}

/// An empty list with room for so many places.
fn room(n: usize) -> Result<Vec<usize>> {
    let mut places = Vec::new();
    places.try_reserve_exact(n).map_err(|_| Error::Memory(n.saturating_mul(size_of::<usize>())))?;
    Ok(places)
}

/// The runs of `n` elements that start at these places, one after the other.
pub(crate) fn take_runs(x: Tensor, places: &[usize], n: usize, shape: &[usize]) -> Result<Tensor> {
    fn take<T: Cell>(x: &Tensor, places: &[usize], n: usize, shape: &[usize]) -> Result<Tensor> {
        let from = T::of(x)?;
        build(x.dtype(), shape, |to: &mut [T]| {
            if n == 1 {
                for (t, &at) in to.iter_mut().zip(places) {
                    *t = from[at].clone();
                }
            } else if n > 0 {
                for (t, &at) in to.chunks_exact_mut(n).zip(places) {
                    t.clone_from_slice(&from[at..at + n]);
                }
            }
            Ok(())
        })
    }
    let dtype = x.dtype();
    let x = spread(x)?;
    pack(dtype, by_cell!(x.dtype(), take(&x, places, n, shape))?)
}

/// Slices of `x` along an axis, in the order of the indices.
///
/// # Errors
/// When an index is out of range.
pub(crate) fn gather(x: Tensor, indices: &Tensor, axis: usize) -> Result<Tensor> {
    let size = x.shape()[axis];
    let ids = indices.to_ints()?.into_iter().map(|i| place(i, size)).collect::<Result<Vec<_>>>()?;
    let (outer, inner) = (&x.shape()[..axis], &x.shape()[axis + 1..]);
    let shape = [outer, indices.shape(), inner].concat();
    let (outer, inner): (usize, usize) = (outer.iter().product(), inner.iter().product());
    if crate::tensor::count(&shape)? == 0 {
        return Tensor::zeros(x.dtype(), &shape);
    }
    let mut places = room(outer * ids.len())?;
    places.extend((0..outer).flat_map(|o| ids.iter().map(move |id| (o * size + id) * inner)));
    take_runs(x, &places, inner, &shape)
}

impl Gather {
    /// Slices along this axis.
    pub fn new(axis: i64) -> Gather {
        Gather { axis: Some(axis) }
    }

    /// The axis.
    pub fn axis(&self) -> i64 {
        self.axis.unwrap_or(0)
    }
}

impl Op for Gather {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("axis", self.axis.map(Attr::Int))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, ids) = (inputs.need(0)?, inputs.need(1)?);
        let (Some(a), Some(b)) = (x.shape(), ids.shape()) else {
            return Ok(vec![Fact::maybe(x.dtype(), None)]);
        };
        let axis = infer::axis(self.axis(), a.len())?;
        let shape = [&a[..axis], b, &a[axis + 1..]].concat();
        let ints = match (&x.ints, inputs.ints(1)) {
            (Some(list), Some(ids)) if a.len() == 1 => {
                Some(ids.iter().map(|&i| Ok(list[place(i, list.len())?].clone())).collect::<Result<_>>()?)
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), Some(shape)).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let axis = infer::axis(self.axis(), x.rank())?;
        Ok(vec![gather(x, inputs.need(1)?, axis)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, ids, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        Ok(vec![Some(cx.graph.add_op("grad", GatherGrad { axis: self.axis() }, &[dy, x, ids])?), None])
    }

    fn weight(&self) -> Option<WeightUse> {
        Some(WeightUse { input: 0, out_axis: self.axis(), kind: WeightKind::Embedding })
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let (x, ids) = (inputs.rank(0)?, inputs.rank(1)?);
        let own = infer::axis(self.axis(), x).ok()?;
        let mut axes = Axes::new();
        axes.along((0..x).filter(|&a| a != own).map(|a| (a, if a < own { a } else { a + ids - 1 })));
        (0..ids).for_each(|a| _ = axes.tie((Input(1), a), (Output(0), own + a)));
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for GatherElements {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("axis", self.axis.map(Attr::Int))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 1, inputs.dtype(0))
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let ids = inputs.need(1)?;
        let axis = infer::axis(self.axis.unwrap_or(0), x.rank())?;
        let places = element_places(x.shape(), ids, axis)?;
        Ok(vec![take_runs(x, &places, 1, ids.shape())?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, ids, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let zeros = zeros_like(cx, x)?;
        let add = Scatter::new(self.axis.unwrap_or(0), Reduction::Add);
        Ok(vec![Some(cx.graph.add_op("grad", add, &[zeros, ids, dy])?), None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl GatherNd {
    fn batch(&self) -> Result<usize> {
        let n = self.batch_dims.unwrap_or(0);
        usize::try_from(n).map_err(|_| Error::invalid(format!("batch_dims is {n}")))
    }
}

impl Op for GatherNd {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("batch_dims", self.batch_dims.map(Attr::Int))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, ids) = (inputs.need(0)?, inputs.need(1)?);
        let shape = match (x.shape(), ids.shape()) {
            (Some(a), Some([outer @ .., depth])) => match depth.size() {
                Some(depth) => match a.get(self.batch()?.saturating_add(depth)..) {
                    Some(slice) => Some([outer, slice].concat()),
                    None => return Err(Error::invalid("GatherND indexes more axes than there are")),
                },
                None => None,
            },
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let ids = inputs.need(1)?;
        let batch = self.batch()?;
        let (places, n) = slice_places(x.shape(), ids, batch)?;
        let (outer, depth) = (&ids.shape()[..ids.rank() - 1], ids.shape()[ids.rank() - 1]);
        let shape: Vec<usize> = [outer, &x.shape()[batch + depth..]].concat();
        Ok(vec![take_runs(x, &places, n, &shape)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.batch()? != 0 {
            return Err(Error::unsupported("the gradient of GatherND with batch_dims"));
        }
        let (x, ids, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let zeros = zeros_like(cx, x)?;
        Ok(vec![Some(cx.graph.add_op("grad", ScatterNd::new(Reduction::Add), &[zeros, ids, dy])?), None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for GatherGrad {
    fn def(&self) -> &'static OpDef {
        &DEFS[3]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("axis", self.axis)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 1, inputs.dtype(0))
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        fn add<T: Number>(dy: &Tensor, ids: &[usize], shape: &[usize], axis: usize) -> Result<Tensor> {
            let inner: usize = shape[axis + 1..].iter().product();
            let dy = dy.as_slice::<T>()?;
            Tensor::build(shape, |to: &mut [T]| {
                let rows = dy.chunks_exact(inner.max(1)).enumerate();
                for (i, row) in rows.take_while(|_| inner > 0) {
                    let (outer, id) = (i / ids.len(), ids[i % ids.len()]);
                    let at = (outer * shape[axis] + id) * inner;
                    for (t, v) in to[at..at + inner].iter_mut().zip(row) {
                        *t = t.plus(*v);
                    }
                }
                Ok(())
            })
        }
        let (dy, x, ids) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let axis = infer::axis(self.axis, x.rank())?;
        let want = [&x.shape()[..axis], ids.shape(), &x.shape()[axis + 1..]].concat();
        if dy.shape() != want {
            return Err(Error::invalid(format!("gradient of shape {:?}, expected {want:?}", dy.shape())));
        }
        let size = x.shape()[axis];
        let ids = ids.to_ints()?.into_iter().map(|i| place(i, size)).collect::<Result<Vec<_>>>()?;
        Ok(vec![by_type!(dy.dtype(), add(dy, &ids, x.shape(), axis))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (ids, dy) = (cx.input(2)?, cx.grad()?);
        Ok(vec![Some(cx.graph.add_op("grad", Gather::new(self.axis), &[dy, ids])?), None, None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_out_of_range_are_errors() {
        assert!(gather(ramp(&[3]), &Tensor::vector(&[3i64]), 0).is_err());
        assert!(gather(ramp(&[3]), &Tensor::vector(&[i64::MIN]), 0).is_err());
        assert!(gather(ramp(&[0]), &Tensor::vector(&[0i64]), 0).is_err());
        assert!(slice_places(&[2, 2], &Tensor::vector(&[0i64, 0, 0]), 0).is_err());
        assert!(element_places(&[2], &Tensor::vector(&[0i64, 1, 0]), 0).is_ok());
    }
}
