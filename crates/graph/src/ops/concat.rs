//! `Concat` and `Split`: tensors put side by side along an axis, and taken apart again.
//! <https://onnx.ai/onnx/operators/onnx__Concat.html> <https://onnx.ai/onnx/operators/onnx__Split.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::{
    Place,
    Port::{Input, Output},
};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{Cell, Strided, build, by_cell, pack, spread, steps};
use crate::ops::shape::{Shape, zeros_like};
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Node, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// `Concat`: tensors side by side along an axis.
#[derive(Debug)]
pub struct Concat {
    axis: i64,
}

/// `Split`: a tensor taken apart along an axis. How it is cut comes from the attribute `split`, from the second
/// input, or is as even as can be.
#[derive(Debug)]
pub struct Split {
    attrs: Attrs,
    axis: i64,
    parts: Option<Vec<i64>>,
    count: Option<i64>,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Concat",
        4,
        |r| Ok(Arc::new(Concat { axis: r.attrs.need_int("axis")? })),
        || {
            let words = |w: &[&str]| Tensor::strings(&[w.len()], w.iter().map(|s| s.to_string()).collect());
            let mut samples = vec![
                Sample::new(Concat::new(1), vec![ramp(&[2, 3]), ramp(&[2, 1]), ramp(&[2, 2])]).grads(&[0, 1]),
                Sample::new(Concat::new(-2), vec![ramp(&[2, 3]), ramp(&[1, 3])]).grads(&[1]),
                Sample::new(Concat::new(0), vec![Tensor::vector(&[1i64]), Tensor::vector(&[2i64, 3])]),
                Sample::new(Concat::new(0), vec![ramp(&[0, 3]), ramp(&[2, 3])]),
            ];
            if let (Ok(a), Ok(b)) = (words(&["x", "y"]), words(&["z"])) {
                samples.push(Sample::new(Concat::new(0), vec![a, b]));
            }
            if let (Ok(a), Ok(b)) =
                (Tensor::pack(DType::I4, &[3], &[1, 2, 3]), Tensor::pack(DType::I4, &[2], &[4, 5]))
            {
                samples.push(Sample::new(Concat::new(0), vec![a, b]));
            }
            samples
        },
    ),
    OpDef::onnx(
        "Split",
        2,
        |r| {
            Ok(Arc::new(Split {
                attrs: r.attrs.clone(),
                axis: r.attrs.int_or("axis", 0)?,
                parts: r.attrs.opt_ints("split")?,
                count: r.attrs.opt_int("num_outputs")?,
            }))
        },
        || {
            let of = |attrs, inputs, n| Sample::read(&DEFS[1], attrs, inputs).outputs(n);
            let parts = Tensor::vector(&[1i64, 3, 0]);
            vec![
                of(Attrs::new(), vec![ramp(&[4, 3])], 2).grads(&[0]),
                of(Attrs::new().int("axis", 1).ints("split", &[1, 2]), vec![ramp(&[2, 3])], 2).grads(&[0]),
                of(Attrs::new().int("axis", -1), vec![ramp(&[2, 4]), parts], 3),
                of(Attrs::new().int("num_outputs", 3), vec![Tensor::vector(&[1i64, 2, 3, 4, 5, 6, 7])], 3),
            ]
        },
    ),
];

impl Concat {
    /// Side by side along this axis.
    pub fn new(axis: i64) -> Concat {
        Concat { axis }
    }

    /// The axis.
    pub fn axis(&self) -> i64 {
        self.axis
    }
}

/// The tensors side by side along an axis below their rank.
///
/// # Errors
/// When types, ranks or other sizes differ.
pub(crate) fn concat(tensors: Vec<Tensor>, axis: usize) -> Result<Tensor> {
    fn join<T: Cell>(tensors: &[Tensor], shape: &[usize], axis: usize) -> Result<Tensor> {
        let inner: usize = shape[axis + 1..].iter().product();
        let parts =
            tensors.iter().map(|t| Ok((T::of(t)?, t.shape()[axis] * inner))).collect::<Result<Vec<_>>>()?;
        build(tensors[0].dtype(), shape, |to: &mut [T]| {
            let mut at = 0;
            for outer in 0..shape[..axis].iter().product() {
                for &(from, n) in &parts {
                    to[at..at + n].clone_from_slice(&from[outer * n..(outer + 1) * n]);
                    at += n;
                }
            }
            Ok(())
        })
    }
    let Some(first) = tensors.first() else { return Err(Error::invalid("there is nothing to concatenate")) };
    let dtype = first.dtype();
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    for t in &tensors {
        let fits = t.dtype() == dtype
            && t.rank() == shape.len()
            && (0..shape.len()).all(|i| i == axis || t.shape()[i] == shape[i]);
        if !fits {
            return Err(Error::invalid(format!(
                "cannot put {}{:?} beside {dtype}{:?} along axis {axis}",
                t.dtype(),
                t.shape(),
                first.shape()
            )));
        }
        shape[axis] = shape[axis]
            .checked_add(t.shape()[axis])
            .ok_or_else(|| Error::invalid("the concatenated tensor is too big"))?;
    }
    let tensors = tensors.into_iter().map(spread).collect::<Result<Vec<_>>>()?;
    pack(dtype, by_cell!(tensors[0].dtype(), join(&tensors, &shape, axis))?)
}

/// `count` slices of a tensor along an axis, from `start` on.
///
/// # Errors
/// When the tensor has fewer.
pub(crate) fn part(x: Tensor, axis: usize, start: usize, count: usize) -> Result<Tensor> {
    if start.checked_add(count).is_none_or(|end| end > x.shape()[axis]) {
        return Err(Error::invalid(format!(
            "{:?} has no {count} slices from {start} on axis {axis}",
            x.shape()
        )));
    }
    let strides = steps(x.shape());
    let mut shape = x.shape().to_vec();
    shape[axis] = count;
    Strided { offset: start * strides[axis], shape, steps: strides.iter().map(|&s| s as isize).collect() }
        .read(x)
}

impl Op for Concat {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("axis", self.axis)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let facts = inputs.iter().flatten().collect::<Vec<_>>();
        let dtype = facts.iter().find_map(|f| f.dtype());
        let Some(rank) = facts.iter().find_map(|f| f.rank()) else {
            return Ok(vec![Fact::maybe(dtype, None)]);
        };
        let axis = infer::axis(self.axis, rank)?;
        let mut shape = vec![Dim::Unknown; rank];
        let mut sum = Dim::Is(0);
        for fact in &facts {
            let Some(dims) = fact.shape() else {
                sum = Dim::Unknown;
                continue;
            };
            if dims.len() != rank {
                return Err(Error::invalid(format!(
                    "ranks {rank} and {} cannot be concatenated",
                    dims.len()
                )));
            }
            sum = sum.plus(&dims[axis]);
            for (i, (known, dim)) in shape.iter_mut().zip(dims).enumerate().filter(|(i, _)| *i != axis) {
                match (known.int(), dim.int()) {
                    (Some(a), Some(b)) if a != b => {
                        return Err(Error::invalid(format!("sizes {a} and {b} of axis {i} differ")));
                    }
                    (Some(_), _) => {}
                    (None, Some(_)) => *known = dim.clone(),
                    (None, None) if *known == Dim::Unknown => *known = dim.clone(),
                    _ => {}
                }
            }
        }
        shape[axis] = sum;
        let ints = facts.iter().map(|f| match (&f.ints, f.count()) {
            (Some(ints), _) => Some(ints.clone()),
            (None, Some(n @ 0..=64)) if matches!(f.dtype(), Some(DType::I64 | DType::I32)) => {
                Some(vec![Dim::Unknown; n])
            }
            _ => None,
        });
        let ints: Option<Vec<Vec<Dim>>> = if rank == 1 { ints.collect() } else { None };
        Ok(vec![Fact::maybe(dtype, Some(shape)).with_ints(ints.map(|v| v.concat()))])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let tensors = (0..inputs.len()).map(|i| inputs.take(i)).collect::<Result<Vec<_>>>()?;
        let axis = infer::axis(self.axis, tensors.first().map_or(0, Tensor::rank))?;
        Ok(vec![concat(tensors, axis)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let dy = cx.grad()?;
        let mut sizes = Vec::new();
        for i in 0..cx.inputs.len() {
            let x = cx.input(i)?;
            sizes.push(cx.graph.add_op("grad_size", Shape::of_axis(self.axis), &[x])?);
        }
        let parts = cx.graph.add_op("grad_sizes", Concat::new(0), &sizes)?;
        let node = Node::new(Arc::new(Split::along(self.axis)), vec![Some(dy), Some(parts)]);
        let (_, grads) = cx.graph.add_with_outputs("grad", node, sizes.len(), None)?;
        Ok(grads.into_iter().map(Some).collect())
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        Some(cx.all()?.by(Concat { axis: cx.axis(self.axis)? }))
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let rank = inputs.rank(0)?;
        let own = infer::axis(self.axis, rank).ok()?;
        let (mut axes, mut at) = (Axes::new(), Some(0));
        for i in 0..inputs.len() {
            (0..rank).filter(|&a| a != own).for_each(|a| _ = axes.tie((Input(i), a), (Output(0), a)));
            let size = inputs.shape(i)?.get(own)?.size();
            if let (Some(start), Some(size)) = (at, size) {
                axes.part(((Input(i), own), 0), ((Output(0), own), start), size);
            }
            at = at.zip(size).map(|(start, size)| start + size);
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Split {
    /// Cut along this axis, into parts whose sizes the second input holds.
    pub fn along(axis: i64) -> Split {
        Split { attrs: Attrs::new().int("axis", axis), axis, parts: None, count: None }
    }

    /// The sizes of the parts of an axis of this size.
    fn cut(&self, size: usize, given: Option<Vec<i64>>, outputs: usize) -> Result<Vec<usize>> {
        let Some(parts) = given.or_else(|| self.parts.clone()) else {
            let n = match self.count {
                Some(n) => usize::try_from(n).ok().filter(|&n| n > 0 && n == outputs),
                None => Some(outputs).filter(|&n| n > 0 && size.is_multiple_of(n)),
            };
            let n =
                n.ok_or_else(|| Error::invalid(format!("size {size} cannot be cut into {outputs} parts")))?;
            let chunk = size.div_ceil(n);
            return Ok((0..n).map(|i| chunk.min(size.saturating_sub(i * chunk))).collect());
        };
        let cut = super::shape::sizes(&parts)?;
        if cut.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(size) {
            return Err(Error::invalid(format!("parts {cut:?} do not add up to size {size}")));
        }
        Ok(cut)
    }
}

impl Op for Split {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let (Some(shape), given) = (x.shape(), inputs.ints(1)) else {
            return Ok(vec![Fact::maybe(x.dtype(), None); inputs.outputs]);
        };
        let axis = infer::axis(self.axis, shape.len())?;
        let known = inputs.get(1).is_none() || given.is_some();
        let given = given.or_else(|| self.parts.clone());
        let cut: Option<Vec<Dim>> = match (shape[axis].size(), given) {
            (Some(size), given) if known => {
                Some(self.cut(size, given, inputs.outputs)?.into_iter().map(Dim::from).collect())
            }
            (None, Some(parts)) => Some(parts.into_iter().map(Dim::Is).collect()),
            _ => None,
        };
        let mut start = 0;
        let fact = |i: usize| {
            let mut part = shape.to_vec();
            part[axis] = cut.as_ref().and_then(|c| c.get(i)).cloned().unwrap_or_default();
            let size = part[axis].size();
            let ints = match (&x.ints, size) {
                (Some(ints), Some(n)) => ints.get(start..start + n).map(<[Dim]>::to_vec),
                _ => None,
            };
            start += size.unwrap_or(0);
            Fact::maybe(x.dtype(), Some(part)).with_ints(ints)
        };
        Ok((0..inputs.outputs).map(fact).collect())
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let given = inputs.ints(1)?;
        let x = inputs.take(0)?;
        let axis = infer::axis(self.axis, x.rank())?;
        let mut start = 0;
        let cut = self.cut(x.shape()[axis], given, cx.outputs)?;
        let each = cut.into_iter().map(|n| {
            let y = part(x.clone(), axis, start, n);
            start += n;
            y
        });
        each.collect()
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let mut parts = Vec::new();
        for i in 0..cx.outputs.len() {
            parts.push(match cx.grads.get(i).copied().flatten() {
                Some(grad) => grad,
                None => {
                    let y = cx.output(i)?;
                    zeros_like(cx, y)?
                }
            });
        }
        Ok(vec![Some(cx.graph.add_op("grad", Concat::new(self.axis), &parts)?), None])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let axis = cx.axis(self.axis)?;
        let (attrs, parts) = (self.attrs.clone().int("axis", axis), self.parts.clone());
        Some(cx.first()?.by(Split { attrs, axis, parts, count: self.count }))
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        let shape = inputs.shape(0)?;
        let own = infer::axis(self.axis, shape.len()).ok()?;
        let sizes: Option<Vec<usize>> = outputs.iter().map(|y| y.shape()?.get(own)?.size()).collect();
        let (mut axes, mut at) = (Axes::new(), 0);
        for (i, _) in outputs.iter().enumerate() {
            let others = (0..shape.len()).filter(|&a| a != own);
            others.for_each(|a| _ = axes.tie((Input(0), a), (Output(i), a)));
            let Some(sizes) = &sizes else { continue };
            axes.part(((Input(0), own), at), ((Output(i), own), 0), sizes[i]);
            at += sizes[i];
            match (inputs.get(1), &self.parts) {
                (Some(_), _) => _ = axes.size(Place::Input(1, i), (Output(i), own)),
                (None, Some(_)) => _ = axes.size(Place::Attrs("split", i), (Output(i), own)),
                // Nothing says how it is cut but that the parts are alike.
                (None, None) if sizes[i] == sizes[0] => _ = axes.tie((Output(0), own), (Output(i), own)),
                (None, None) => return None,
            }
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
