//! `Transpose`: axes in another order. <https://onnx.ai/onnx/operators/onnx__Transpose.html>

use std::any::Any;
use std::sync::Arc;

use kernel::Cpu;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{Strided, steps};
use crate::{Attr, Attrs, Axes, DType, Error, Fact, Op, Result, Tensor, ValueId};

/// Axes in another order: axis `perm[i]` becomes axis `i`. Reversed when there is no `perm`.
#[derive(Debug)]
pub struct Transpose {
    perm: Option<Vec<i64>>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef::onnx(
    "Transpose",
    1,
    |r| Ok(Arc::new(Transpose { perm: r.attrs.opt_ints("perm")? })),
    || {
        let names = Tensor::strings(&[2, 2], ["a", "b", "c", "d"].map(str::to_owned).to_vec());
        let codes = Tensor::pack(DType::U4, &[2, 3], &[1, 2, 3, 4, 5, 6]);
        let mut samples = vec![
            Sample::new(Transpose { perm: None }, vec![ramp(&[2, 3, 4])]).grads(&[0]),
            Sample::new(Transpose::new(&[0, 2, 1, 3]), vec![ramp(&[2, 3, 4, 5])]).grads(&[0]),
            Sample::new(Transpose::new(&[1, 2, 0]), vec![ramp(&[3, 1, 5])]),
            Sample::new(Transpose { perm: None }, vec![ramp(&[70, 33])]),
            Sample::new(Transpose { perm: None }, vec![Tensor::scalar(1i64)]),
        ];
        samples.extend(
            [names, codes].into_iter().flatten().map(|x| Sample::new(Transpose::new(&[1, 0]), vec![x])),
        );
        samples
    },
)];

impl Transpose {
    /// The axes in this order.
    pub fn new(perm: &[i64]) -> Transpose {
        Transpose { perm: Some(perm.to_vec()) }
    }

    /// The order of the axes, when it is given.
    pub fn perm(&self) -> Option<&[i64]> {
        self.perm.as_deref()
    }

    /// The axes of a tensor of this rank in their new order.
    ///
    /// # Errors
    /// When the order does not fit.
    pub(crate) fn order(&self, rank: usize) -> Result<Vec<usize>> {
        let Some(perm) = &self.perm else { return Ok((0..rank).rev().collect()) };
        if infer::axes(perm, rank)?.len() != rank {
            return Err(Error::invalid(format!("perm {perm:?} does not order {rank} axes")));
        }
        perm.iter().map(|&a| infer::axis(a, rank)).collect()
    }
}

/// The tensor with its axes in another order.
///
/// # Errors
/// When it cannot be had in memory. `order` must hold each axis once.
pub(crate) fn transpose(cpu: &Cpu, x: Tensor, order: &[usize]) -> Result<Tensor> {
    let shape: Vec<usize> = order.iter().map(|&a| x.shape()[a]).collect();
    // Axes of size one may move freely.
    let moving: Vec<usize> = order.iter().copied().filter(|&a| x.shape()[a] != 1).collect();
    if moving.is_sorted() {
        return x.reshaped(&shape);
    }
    let size = x.dtype().bits() / 8;
    if size == 0 {
        let from = steps(x.shape());
        let steps = order.iter().map(|&a| from[a] as isize).collect();
        return Strided { offset: 0, shape, steps }.read(x);
    }
    let mut y = Tensor::any(x.dtype(), &shape)?;
    kernel::transpose::transpose(cpu, size, x.bytes(), x.shape(), order, y.bytes_mut()?);
    Ok(y)
}

impl Op for Transpose {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("perm", self.perm.clone().map(Attr::Ints))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let turned = x
            .shape()
            .map(|s| Ok(self.order(s.len())?.into_iter().map(|a| s[a].clone()).collect()))
            .transpose()?;
        Ok(vec![Fact::maybe(x.dtype(), turned).with_ints(x.ints.clone())])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let order = self.order(x.rank())?;
        Ok(vec![transpose(cx.cpu, x, &order)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let dy = cx.grad()?;
        let back = match &self.perm {
            None => Transpose { perm: None },
            Some(perm) => {
                let order = self.order(perm.len())?;
                let mut back = vec![0; order.len()];
                for (i, a) in order.into_iter().enumerate() {
                    back[a] = i as i64;
                }
                Transpose::new(&back)
            }
        };
        Ok(vec![Some(cx.graph.add_op("grad", back, &[dy])?)])
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let order = self.order(inputs.rank(0)?).ok()?;
        let mut axes = Axes::new();
        axes.along(order.into_iter().enumerate().map(|(y, x)| (x, y)));
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
