//! The same elements more often: `Expand`, `Tile`. <https://onnx.ai/onnx/operators/onnx__Expand.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::{Place, Port::Output};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{Strided, steps};
use crate::ops::concat::Concat;
use crate::ops::reshape::{Reshape, like};
use crate::ops::shape::{ConstantOfShape, Shape, sizes};
use crate::ops::sum_to::SumTo;
use crate::tensor::count;
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// `Expand`: broadcast to a shape.
#[derive(Debug)]
pub struct Expand;

/// `Tile`: repeated along each axis.
#[derive(Debug)]
pub struct Tile;

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Expand",
        8,
        |_| Ok(Arc::new(Expand)),
        || {
            let to = |x, shape: &[i64]| Sample::new(Expand, vec![x, Tensor::vector(shape)]);
            vec![
                to(ramp(&[3, 1]), &[2, 1, 4]).grads(&[0]),
                to(ramp(&[3]), &[1]),
                to(Tensor::scalar(7i64), &[2]),
                to(Tensor::vector(&[true as u8]), &[0]),
            ]
        },
    ),
    OpDef::onnx(
        "Tile",
        6,
        |_| Ok(Arc::new(Tile)),
        || {
            let by = |x, repeats: &[i64]| Sample::new(Tile, vec![x, Tensor::vector(repeats)]);
            let mut samples = vec![
                by(ramp(&[2, 3]), &[2, 2]).grads(&[0]),
                by(ramp(&[2, 1, 3]), &[1, 0, 2]),
                by(Tensor::vector(&[1i64, 2]), &[2]),
            ];
            if let Ok(x) = Tensor::pack(DType::U4, &[3], &[1, 2, 3]) {
                samples.push(by(x, &[3]));
            }
            samples
        },
    ),
];

impl Op for Expand {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, to) = (inputs.need(0)?, inputs.need(1)?);
        let unknown = to.count().and_then(infer::unknown);
        let shape = infer::broadcast(x.shape(), to.ints.as_deref().or(unknown.as_deref()))?;
        let ints = match (x.ints.as_deref(), shape.as_deref()) {
            (Some([one]), Some([Dim::Is(n @ 0..=64)])) => Some(vec![one.clone(); *n as usize]),
            (Some(list), Some([Dim::Is(n)])) if list.len() as i64 == *n => Some(list.to_vec()),
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let to = sizes(&inputs.need(1)?.to_ints()?)?;
        Ok(vec![expand(x, &to)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        Ok(vec![Some(cx.graph.add_op("grad", SumTo, &[dy, x])?), None])
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        let (rank, out) = (inputs.rank(0)?, outputs.first()?.rank()?);
        let given = inputs.get(1)?.ints.as_ref()?;
        let mut axes = Axes::new();
        axes.along((0..rank).map(|a| (a, a + out.saturating_sub(rank))));
        let stated = given.iter().enumerate().filter(|(_, d)| **d != Dim::Is(1));
        stated.for_each(|(i, _)| {
            axes.size(Place::Input(1, i), (Output(0), i + out.saturating_sub(given.len())));
        });
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The tensor broadcast against a shape.
///
/// # Errors
/// When they cannot meet.
pub(crate) fn expand(x: Tensor, to: &[usize]) -> Result<Tensor> {
    let shape = infer::broadcast_sizes(x.shape(), to)?;
    if shape == x.shape() {
        return Ok(x);
    }
    let mut strides = vec![0; shape.len() - x.rank()];
    let own = x.shape().iter().zip(steps(x.shape()));
    strides.extend(own.map(|(&n, s)| if n == 1 { 0 } else { s as isize }));
    Strided { offset: 0, shape, steps: strides }.read(x)
}

impl Op for Tile {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, repeats) = (inputs.need(0)?, inputs.need(1)?);
        let shape = match (x.shape(), &repeats.ints) {
            (Some(dims), Some(list)) if dims.len() == list.len() => {
                Some(dims.iter().zip(list).map(|(d, r)| d.times(r)).collect())
            }
            (Some(dims), Some(list)) => {
                return Err(Error::invalid(format!("{} repeats for rank {}", list.len(), dims.len())));
            }
            (dims, _) => dims.map(|d| vec![Dim::Unknown; d.len()]),
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let repeats = sizes(&inputs.need(1)?.to_ints()?)?;
        if repeats.len() != x.rank() {
            return Err(Error::invalid(format!("{} repeats for rank {}", repeats.len(), x.rank())));
        }
        let whole =
            x.shape().iter().zip(&repeats).map(|(&d, &r)| count(&[d, r])).collect::<Result<Vec<_>>>()?;
        let shape = x.shape().iter().zip(&repeats).flat_map(|(&d, &r)| [r, d]).collect();
        let steps = steps(x.shape()).into_iter().flat_map(|s| [0, s as isize]).collect();
        Ok(vec![Strided { offset: 0, shape, steps }.read(x)?.reshaped(&whole)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        // With each repeat as an axis of its own, the sum over repeats is the sum over what was broadcast.
        let (x, repeats, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let g = &mut cx.graph;
        let shape = g.add_op("grad_shape", Shape::new(), &[x])?;
        let rank = g.add_op("grad_rank", Shape::new(), &[shape])?;
        let ones = g.add_op("grad_ones", ConstantOfShape::of(Tensor::vector(&[1i64])), &[rank])?;
        let axis = g.add_constant("grad_axis", Tensor::vector(&[1i64]));
        let flat = g.add_constant("grad_flat", Tensor::vector(&[-1i64]));
        let mut pairs = |first: ValueId| -> Result<ValueId> {
            let first = g.add_op("grad_pair", Reshape::unsqueeze(), &[first, axis])?;
            let second = g.add_op("grad_pair", Reshape::unsqueeze(), &[shape, axis])?;
            let both = g.add_op("grad_pairs", Concat::new(1), &[first, second])?;
            g.add_op("grad_pairs", Reshape::new(), &[both, flat])
        };
        let (apart, single) = (pairs(repeats)?, pairs(ones)?);
        let dy = g.add_op("grad", Reshape::new(), &[dy, apart])?;
        let target = g.add_op("grad", Reshape::new(), &[x, single])?;
        let sum = g.add_op("grad", SumTo, &[dy, target])?;
        Ok(vec![Some(like(cx, sum, x)?), None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
