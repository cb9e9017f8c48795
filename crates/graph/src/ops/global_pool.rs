//! `GlobalAveragePool`, `GlobalMaxPool`, `GlobalLpPool`: each channel becomes one number.
//! <https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html>

use std::any::Any;
use std::sync::Arc;

use kernel::reduce::{Reduce, reduce};

use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::halves::in_f32;
use crate::{Attrs, DType, Dim, Error, Fact, Node, Op, Result, Tensor, ValueId};

/// A pooling over all positions.
#[derive(Debug)]
pub struct GlobalPool {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Average,
    Max,
    Lp { p: i64 },
}

fn sample(kind: Kind) -> Vec<Sample> {
    let x = [ramp(&[2, 3, 4, 5]), ramp(&[1, 2, 7])];
    let doubles = crate::ops::cast::cast(ramp(&[1, 2, 4]), DType::F64, true);
    let grads: &[usize] = if kind == Kind::Average { &[0] } else { &[] };
    x.into_iter()
        .chain(doubles)
        .map(|x| Sample::new(GlobalPool { kind }, vec![x]))
        .enumerate()
        .map(|(i, s)| if i == 0 { s.grads(grads) } else { s })
        .collect()
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "GlobalAveragePool",
        domain: "",
        since: 1,
        read: |_| Ok(Arc::new(GlobalPool { kind: Kind::Average })),
        samples: || sample(Kind::Average),
    },
    OpDef {
        name: "GlobalMaxPool",
        domain: "",
        since: 1,
        read: |_| Ok(Arc::new(GlobalPool { kind: Kind::Max })),
        samples: || sample(Kind::Max),
    },
    OpDef {
        name: "GlobalLpPool",
        domain: "",
        since: 2,
        read: |r| Ok(Arc::new(GlobalPool { kind: Kind::Lp { p: r.attrs.int_or("p", 2)? } })),
        samples: || sample(Kind::Lp { p: 2 }).into_iter().chain(sample(Kind::Lp { p: 3 })).collect(),
    },
    OpDef {
        name: "GlobalAveragePoolGrad",
        domain: "lessen",
        since: 1,
        read: |_| Ok(Arc::new(AverageGrad)),
        samples: || vec![Sample::new(AverageGrad, vec![ramp(&[2, 3, 4]), ramp(&[2, 3, 1])])],
    },
];

/// `lessen.GlobalAveragePoolGrad`: from the input and the gradient of the output, the gradient of the input.
#[derive(Debug)]
pub struct AverageGrad;

impl Kind {
    fn f64(self, row: &[f64]) -> f64 {
        match self {
            Kind::Average => row.iter().sum::<f64>() / row.len() as f64,
            Kind::Max => row.iter().fold(f64::NEG_INFINITY, |m, &v| if v > m || v.is_nan() { v } else { m }),
            Kind::Lp { p } => row.iter().map(|v| v.abs().powf(p as f64)).sum::<f64>().powf(1.0 / p as f64),
        }
    }
}

/// Number of channels over all images and the number of positions.
fn planes(shape: &[usize]) -> Result<(usize, usize)> {
    match shape {
        [n, c, size @ ..] => Ok((n * c, size.iter().product())),
        _ => Err(Error::invalid(format!("cannot pool a tensor of shape {shape:?}"))),
    }
}

impl Op for GlobalPool {
    fn def(&self) -> &'static OpDef {
        match self.kind {
            Kind::Average => &DEFS[0],
            Kind::Max => &DEFS[1],
            Kind::Lp { .. } => &DEFS[2],
        }
    }

    fn attrs(&self) -> Attrs {
        match self.kind {
            Kind::Lp { p } => Attrs::new().int("p", p),
            _ => Attrs::new(),
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let one = |(i, d): (usize, &Dim)| if i < 2 { d.clone() } else { Dim::Is(1) };
        let shape = x.shape().map(|s| s.iter().enumerate().map(one).collect());
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| {
            let x = inputs.need(0)?;
            let (rows, size) = planes(x.shape())?;
            let shape: Vec<usize> =
                x.shape().iter().enumerate().map(|(i, &d)| if i < 2 { d } else { 1 }).collect();
            let op = match self.kind {
                Kind::Average => Some(Reduce::Mean),
                Kind::Max => Some(Reduce::Max),
                Kind::Lp { p: 1 } => Some(Reduce::SumAbs),
                Kind::Lp { p: 2 } => Some(Reduce::Norm),
                Kind::Lp { .. } => None,
            };
            let y = match (x.dtype(), op) {
                (DType::F32, Some(op)) => Tensor::build(&shape, |out| {
                    reduce(cx.cpu, op, x.as_slice()?, [rows, size, 1], out);
                    Ok(())
                })?,
                (DType::F32, None) => Tensor::build(&shape, |out: &mut [f32]| {
                    for (out, row) in out.iter_mut().zip(x.as_slice::<f32>()?.chunks(size.max(1))) {
                        let row: Vec<f64> = row.iter().map(|&v| v.into()).collect();
                        *out = self.kind.f64(&row) as f32;
                    }
                    Ok(())
                })?,
                (DType::F64, _) => Tensor::build(&shape, |out: &mut [f64]| {
                    for (out, row) in out.iter_mut().zip(x.as_slice::<f64>()?.chunks(size.max(1))) {
                        *out = self.kind.f64(row);
                    }
                    Ok(())
                })?,
                (other, _) => return Err(Error::unsupported(format!("{} of {other}", self.name()))),
            };
            Ok(vec![y])
        })
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.kind != Kind::Average {
            return Err(Error::unsupported(format!("{} has no gradient", self.name())));
        }
        let inputs = vec![Some(cx.input(0)?), Some(cx.grad()?)];
        let (_, grads) =
            cx.graph.add_with_outputs("grad", Node::new(Arc::new(AverageGrad), inputs), 1, None)?;
        Ok(vec![Some(grads[0])])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for AverageGrad {
    fn def(&self) -> &'static OpDef {
        &DEFS[3]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        crate::infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, dy) = (inputs.need(0)?, inputs.f32(1)?);
        let (rows, size) = planes(x.shape())?;
        if dy.len() != rows {
            return Err(Error::invalid(format!("{} gradients for {rows} channels", dy.len())));
        }
        let dx = Tensor::build(x.shape(), |dx: &mut [f32]| {
            for (dx, dy) in dx.chunks_mut(size.max(1)).zip(dy) {
                dx.fill(dy / size as f32);
            }
            Ok(())
        })?;
        Ok(vec![dx])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
