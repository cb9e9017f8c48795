//! `Softmax`, `LogSoftmax`, `Hardmax`, and `lessen.SoftmaxGrad`.
//! <https://onnx.ai/onnx/operators/onnx__Softmax.html>

use std::any::Any;
use std::sync::Arc;

use kernel::softmax::{log_softmax, softmax};

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::number::{Number, by_type};
use crate::{Attrs, Axes, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// What is made of the numbers along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Their exponentials as shares of the sum.
    Soft,
    /// The logarithm of that.
    Log,
    /// 1 for the first largest, 0 for the others.
    Hard,
}

/// Shares along an axis; before version 13 along that axis and all after it.
#[derive(Clone, Debug)]
pub struct Softmax {
    /// What is made.
    pub kind: Kind,
    /// The axis; negative from the end.
    pub axis: i64,
    /// The axis stands for itself and all after it.
    pub flat: bool,
}

/// The gradient, from the output and its gradient.
#[derive(Debug)]
pub struct SoftmaxGrad(Softmax);

macro_rules! entries {
    ($($name:literal $kind:ident),*) => { &[$(
        OpDef { name: $name, domain: "", since: 1, read: |r| read(r, Kind::$kind, true), samples: || samples(Kind::$kind, true) },
        OpDef { name: $name, domain: "", since: 13, read: |r| read(r, Kind::$kind, false), samples: || samples(Kind::$kind, false) },
    )*] };
}
pub(crate) static DEFS: &[OpDef] = entries!("Softmax" Soft, "LogSoftmax" Log, "Hardmax" Hard);

pub(crate) static GRAD: &[OpDef] = &[OpDef {
    name: "SoftmaxGrad",
    domain: "lessen",
    since: 1,
    read: |r| {
        let kind = if r.attrs.flag_or("log", false)? { Kind::Log } else { Kind::Soft };
        let (axis, flat) = (r.attrs.int_or("axis", -1)?, r.attrs.flag_or("flat", false)?);
        Ok(Arc::new(SoftmaxGrad(Softmax { kind, axis, flat })))
    },
    samples: || {
        let op = |kind, axis, flat| SoftmaxGrad(Softmax { kind, axis, flat });
        let inputs = || vec![ramp(&[2, 3, 2]), ramp(&[2, 3, 2])];
        vec![
            Sample::new(op(Kind::Log, 1, false), inputs()),
            Sample::new(op(Kind::Soft, -1, true), inputs()),
            Sample::new(op(Kind::Log, -1, false), inputs()),
        ]
    },
}];

fn read(r: &Reader, kind: Kind, flat: bool) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Softmax { kind, axis: r.attrs.int_or("axis", if flat { 1 } else { -1 })?, flat }))
}

fn samples(kind: Kind, flat: bool) -> Vec<Sample> {
    let op = |axis| Softmax { kind, axis, flat };
    let double = cast(ramp(&[2, 4]), DType::F64, true).unwrap_or_else(|_| ramp(&[2, 4]));
    let half = cast(ramp(&[2, 4]), DType::F16, true).unwrap_or_else(|_| ramp(&[2, 4]));
    let grads: &[usize] = if kind == Kind::Hard { &[] } else { &[0] };
    vec![
        Sample::new(op(1), vec![ramp(&[2, 3, 2])]).grads(grads),
        Sample::new(op(-1), vec![ramp(&[2, 5])]).grads(grads),
        Sample::new(op(0), vec![double]),
        Sample::new(op(-1), vec![half]),
    ]
}

impl Softmax {
    /// The logarithm of the softmax over an axis.
    pub fn log(axis: i64) -> Softmax {
        Softmax { kind: Kind::Log, axis, flat: false }
    }

    fn dims(&self, shape: &[usize]) -> Result<[usize; 3]> {
        // Before version 13 the axis may be the rank: then there is one number in each row.
        let at = match self.flat && self.axis == shape.len() as i64 {
            true => shape.len(),
            false => infer::axis(self.axis, shape.len())?,
        };
        let size = |part: &[usize]| part.iter().product::<usize>();
        Ok(match self.flat {
            true => [size(&shape[..at]), size(&shape[at..]), 1],
            false => [size(&shape[..at]), shape[at], size(&shape[at + 1..])],
        })
    }
}

/// Calls `f` with the offsets of each row along the middle axis.
fn rows([outer, axis, inner]: [usize; 3], mut f: impl FnMut(&dyn Fn(usize) -> usize)) {
    for row in 0..outer * inner {
        let start = row / inner * axis * inner + row % inner;
        f(&|k| start + k * inner);
    }
}

fn shares<T: Number>(kind: Kind, mut x: Tensor, dims: [usize; 3]) -> Result<Tensor> {
    let data = x.as_mut_slice::<T>()?;
    rows(dims, |at| {
        let get = |data: &[T], k| data[at(k)].to_f64();
        let top = (0..dims[1]).fold(f64::NEG_INFINITY, |m, k| m.max(get(data, k)));
        let sum: f64 = (0..dims[1]).map(|k| (get(data, k) - top).exp()).sum();
        let first = (0..dims[1]).find(|&k| get(data, k) == top);
        for k in 0..dims[1] {
            let v = get(data, k) - top;
            data[at(k)] = T::from_f64(match kind {
                Kind::Soft => v.exp() / sum,
                Kind::Log => v - sum.ln(),
                Kind::Hard => f64::from(first == Some(k)),
            });
        }
    });
    Ok(x)
}

fn back<T: Number>(kind: Kind, y: &Tensor, mut dy: Tensor, dims: [usize; 3]) -> Result<Tensor> {
    let (y, d) = (y.as_slice::<T>()?, dy.as_mut_slice::<T>()?);
    rows(dims, |at| {
        let along = (0..dims[1]).map(at);
        let weight = |i: usize| if kind == Kind::Log { 1.0 } else { y[i].to_f64() };
        let sum: f64 = along.clone().map(|i| d[i].to_f64() * weight(i)).sum();
        for i in along {
            let (v, g) = (y[i].to_f64(), d[i].to_f64());
            d[i] = T::from_f64(if kind == Kind::Log { g - v.exp() * sum } else { v * (g - sum) });
        }
    });
    Ok(dy)
}

impl Op for Softmax {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.kind as usize * 2 + usize::from(!self.flat)]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("axis", self.axis)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let mut x = inputs.take(0)?;
        let dims = self.dims(x.shape())?;
        let dtype = x.dtype();
        if self.kind != Kind::Hard && matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            x = cast(x, DType::F32, true)?;
            let run = if self.kind == Kind::Log { log_softmax } else { softmax };
            run(cx.cpu, x.as_mut_slice()?, dims);
            return Ok(vec![cast(x, dtype, true)?]);
        }
        if self.kind != Kind::Hard && !dtype.is_float() {
            return Err(Error::invalid(format!("{} takes fractions, not {dtype}", self.def().name)));
        }
        Ok(vec![by_type!(dtype, shares(self.kind, x, dims))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.kind == Kind::Hard {
            return Ok(vec![None]);
        }
        let (y, dy) = (cx.output(0)?, cx.grad()?);
        Ok(vec![Some(cx.graph.add_op("grad", SoftmaxGrad(self.clone()), &[y, dy])?)])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        (!self.flat).then_some(())?;
        Some(cx.first()?.by(Softmax { axis: cx.axis(self.axis)?, ..self.clone() }))
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let rank = inputs.rank(0)?;
        let own = infer::axis(self.axis, rank).ok()?;
        let mut axes = Axes::new();
        axes.along((0..rank).filter(|&a| a < own || (a > own && !self.flat)).map(|a| (a, a)));
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl SoftmaxGrad {
    /// The gradient of [`Softmax::log`].
    pub(crate) fn of_log(axis: i64) -> SoftmaxGrad {
        SoftmaxGrad(Softmax::log(axis))
    }
}

impl Op for SoftmaxGrad {
    fn def(&self) -> &'static OpDef {
        &GRAD[0]
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().int("axis", self.0.axis).int("flat", self.0.flat.into());
        attrs.int("log", (self.0.kind == Kind::Log).into())
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let mut dy = inputs.take(1)?;
        let y = inputs.need(0)?;
        if y.shape() != dy.shape() {
            return Err(Error::invalid(format!("shapes {:?} and {:?} differ", y.shape(), dy.shape())));
        }
        let dims = self.0.dims(y.shape())?;
        if y.dtype() == DType::F32 && dims[2] == 1 {
            let log = self.0.kind == Kind::Log;
            kernel::back::softmax(cx.cpu, y.as_slice()?, dy.as_mut_slice()?, dims[1], log);
            return Ok(vec![dy]);
        }
        Ok(vec![by_type!(y.dtype(), back(self.0.kind, y, dy, dims))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_shares() {
        let cpu = kernel::Cpu::new(1).unwrap();
        for def in DEFS {
            for shape in [[2, 0], [0, 3]] {
                let reader = Reader { attrs: &Attrs::new(), version: def.since, inputs: 1, outputs: 1 };
                let op = (def.read)(&reader).unwrap();
                let inputs = Inputs::new(vec![Some(ramp(&shape).into())]);
                assert_eq!(op.run(&RunCx::new(&cpu, 1), inputs).unwrap()[0].shape(), shape);
            }
        }
    }
}
