//! `GlobalAveragePool`, `GlobalMaxPool`, `GlobalLpPool`: each channel becomes one number; in the domain "lessen" the
//! first two of images with the channels last.
//! <https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html>

use std::any::Any;
use std::sync::Arc;

use kernel::pool2d::last;
use kernel::reduce::{Reduce, reduce};

use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::halves::in_f32;
use crate::ops::layout::Layout;
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Node, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// A pooling over all positions.
#[derive(Debug)]
pub struct GlobalPool {
    kind: Kind,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Average,
    Max,
    Lp { p: i64 },
}

impl GlobalPool {
    fn new(kind: Kind, layout: Layout) -> GlobalPool {
        GlobalPool { kind, layout }
    }

    /// In `f32` with the channels last.
    fn run_last(&self, cx: &RunCx, x: &Tensor) -> Result<Tensor> {
        let spatial = self.layout.spatial(x.rank());
        let (len, channels) = (x.shape()[spatial.clone()].iter().product(), x.shape()[x.rank() - 1]);
        let mut shape = x.shape().to_vec();
        shape[spatial].fill(1);
        Tensor::fill(&shape, |out| {
            match self.kind {
                Kind::Max => reduce(cx.cpu, Reduce::Max, x.as_slice()?, [x.shape()[0], len, channels], out),
                _ => last::global_average_pool(cx.cpu, len, channels, x.as_slice()?, out),
            }
            Ok(())
        })
    }

    fn run_first(&self, cx: &RunCx, x: &Tensor) -> Result<Tensor> {
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
        Ok(match (x.dtype(), op) {
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
        })
    }
}

fn sample(kind: Kind, layout: Layout) -> Vec<Sample> {
    let x = [ramp(&[2, 3, 4, 5]), ramp(&[1, 2, 7])];
    let doubles = crate::ops::cast::cast(ramp(&[1, 2, 4]), DType::F64, true);
    let grads: &[usize] = if (kind, layout) == (Kind::Average, Layout::ChannelsFirst) { &[0] } else { &[] };
    x.into_iter()
        .chain(doubles)
        .map(|x| Sample::new(GlobalPool::new(kind, layout), vec![x]))
        .enumerate()
        .map(|(i, s)| if i == 0 { s.grads(grads) } else { s })
        .collect()
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "GlobalAveragePool",
        domain: "",
        since: 1,
        read: |_| Ok(Arc::new(GlobalPool::new(Kind::Average, Layout::ChannelsFirst))),
        samples: || sample(Kind::Average, Layout::ChannelsFirst),
    },
    OpDef {
        name: "GlobalMaxPool",
        domain: "",
        since: 1,
        read: |_| Ok(Arc::new(GlobalPool::new(Kind::Max, Layout::ChannelsFirst))),
        samples: || sample(Kind::Max, Layout::ChannelsFirst),
    },
    OpDef {
        name: "GlobalLpPool",
        domain: "",
        since: 2,
        read: |r| {
            Ok(Arc::new(GlobalPool::new(Kind::Lp { p: r.attrs.int_or("p", 2)? }, Layout::ChannelsFirst)))
        },
        samples: || {
            sample(Kind::Lp { p: 2 }, Layout::ChannelsFirst)
                .into_iter()
                .chain(sample(Kind::Lp { p: 3 }, Layout::ChannelsFirst))
                .collect()
        },
    },
    OpDef {
        name: "GlobalAveragePoolGrad",
        domain: "lessen",
        since: 1,
        read: |_| Ok(Arc::new(AverageGrad)),
        samples: || vec![Sample::new(AverageGrad, vec![ramp(&[2, 3, 4]), ramp(&[2, 3, 1])])],
    },
    OpDef {
        name: "GlobalAveragePool",
        domain: "lessen",
        since: 1,
        read: |_| Ok(Arc::new(GlobalPool::new(Kind::Average, Layout::ChannelsLast))),
        samples: || sample(Kind::Average, Layout::ChannelsLast),
    },
    OpDef {
        name: "GlobalMaxPool",
        domain: "lessen",
        since: 1,
        read: |_| Ok(Arc::new(GlobalPool::new(Kind::Max, Layout::ChannelsLast))),
        samples: || sample(Kind::Max, Layout::ChannelsLast),
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
        match (self.kind, self.layout) {
            (Kind::Average, Layout::ChannelsFirst) => &DEFS[0],
            (Kind::Max, Layout::ChannelsFirst) => &DEFS[1],
            (Kind::Lp { .. }, _) => &DEFS[2],
            (Kind::Average, Layout::ChannelsLast) => &DEFS[4],
            (Kind::Max, Layout::ChannelsLast) => &DEFS[5],
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
        let pooled = |s: &[Dim]| {
            let spatial = self.layout.spatial(s.len());
            let one = |(i, d): (usize, &Dim)| if spatial.contains(&i) { Dim::Is(1) } else { d.clone() };
            s.iter().enumerate().map(one).collect()
        };
        let shape = x.shape().map(pooled);
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |mut inputs| {
            let x = inputs.take(0)?;
            let y = match (self.layout, x.shape()) {
                (Layout::ChannelsLast, [_, .., _]) if x.dtype() == DType::F32 => self.run_last(cx, &x)?,
                (layout, _) => {
                    let x = layout.to_first(cx.cpu, x)?;
                    layout.laid_from_first(cx.cpu, self.run_first(cx, &x)?)?
                }
            };
            Ok(vec![y])
        })
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.kind != Kind::Average || self.layout != Layout::ChannelsFirst {
            return Err(Error::unsupported(format!("{} has no gradient", self.name())));
        }
        let inputs = vec![Some(cx.input(0)?), Some(cx.grad()?)];
        let (_, grads) =
            cx.graph.add_with_outputs("grad", Node::new(Arc::new(AverageGrad), inputs), 1, None)?;
        Ok(vec![Some(grads[0])])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let known = matches!(cx.facts.dtype(0), Some(DType::F32 | DType::F16 | DType::BF16));
        let turns = cx.is_channels_last() && self.layout == Layout::ChannelsFirst && known;
        let op = GlobalPool::new(self.kind, Layout::ChannelsLast);
        cx.first().filter(|_| turns && !matches!(self.kind, Kind::Lp { .. })).map(|t| t.by(op))
    }

    fn axes(&self, _: &Facts, _: &[Fact]) -> Option<Axes> {
        let mut axes = Axes::new();
        axes.along([(0, 0), (1, 1)]);
        Some(axes).filter(|_| self.layout == Layout::ChannelsFirst)
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
