//! `BatchNormalization`: each channel with its own mean and variance, given or taken from the batch; in the domain
//! "lessen" of images with the channels last.
//! <https://onnx.ai/onnx/operators/onnx__BatchNormalization.html>

use std::any::Any;
use std::sync::Arc;

use kernel::vec::{Binary, Right, binary_assign, scale_shift};

use crate::axes::Port::{Input, Output};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::layout::Layout;
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Node, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// Normalisation of each channel over the batch.
#[derive(Debug)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f32,
    momentum: f32,
    /// Whether mean and variance are those of the batch.
    pub training: bool,
    /// Before version 14, more than one output meant training, with five outputs.
    old: bool,
    layout: Layout,
}

fn read(r: &Reader, old: bool, layout: Layout) -> Result<Arc<dyn Op>> {
    if r.attrs.int_or("spatial", 1)? == 0 {
        return Err(Error::unsupported("BatchNormalization with a mean for every position (spatial = 0)"));
    }
    Ok(Arc::new(BatchNorm {
        epsilon: r.attrs.float_or("epsilon", 1e-5)?,
        momentum: r.attrs.float_or("momentum", 0.9)?,
        training: if old { r.outputs > 1 } else { r.attrs.flag_or("training_mode", false)? },
        old,
        layout,
    }))
}

fn samples(old: bool) -> Vec<Sample> {
    let op =
        |training| BatchNorm { epsilon: 1e-2, momentum: 0.8, training, old, layout: Layout::ChannelsFirst };
    let positive = || Tensor::vector(&[0.5f32, 1.5, 0.25]);
    let inputs = |x: &[usize]| vec![ramp(x), ramp(&[3]), ramp(&[3]), ramp(&[3]), positive()];
    let all = if old { 5 } else { 3 };
    vec![
        Sample::new(op(false), inputs(&[2, 3, 4, 2])).grads(&[0, 1, 2]),
        Sample::new(op(false), inputs(&[2, 3])),
        Sample::new(op(true), inputs(&[2, 3, 4])).outputs(all),
    ]
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "BatchNormalization",
        domain: "",
        since: 7,
        read: |r| read(r, true, Layout::ChannelsFirst),
        samples: || samples(true),
    },
    OpDef {
        name: "BatchNormalization",
        domain: "",
        since: 14,
        read: |r| read(r, false, Layout::ChannelsFirst),
        samples: || samples(false),
    },
    OpDef {
        name: "BatchNormalizationGrad",
        domain: "lessen",
        since: 1,
        read: |r| Ok(Arc::new(BatchNormGrad { epsilon: r.attrs.float_or("epsilon", 1e-5)? })),
        samples: || {
            let positive = Tensor::vector(&[0.5f32, 1.5, 0.25]);
            let inputs = vec![ramp(&[2, 3, 4]), ramp(&[3]), ramp(&[3]), positive, ramp(&[2, 3, 4])];
            vec![Sample::new(BatchNormGrad { epsilon: 1e-3 }, inputs).outputs(3)]
        },
    },
    OpDef {
        name: "BatchNormalization",
        domain: "lessen",
        since: 1,
        read: |r| read(r, false, Layout::ChannelsLast),
        samples: || {
            let (layout, positive) = (Layout::ChannelsLast, Tensor::vector(&[0.5f32, 1.5, 0.25]));
            let op = BatchNorm { epsilon: 1e-2, momentum: 0.8, training: false, old: false, layout };
            vec![Sample::new(op, vec![ramp(&[2, 4, 2, 3]), ramp(&[3]), ramp(&[3]), ramp(&[3]), positive])]
        },
    },
];

/// `lessen.BatchNormalizationGrad`: from input, scale, mean, variance and the gradient of the output, the gradients of
/// input, scale and shift, for a mean and a variance that are given.
#[derive(Debug)]
pub struct BatchNormGrad {
    epsilon: f32,
}

/// Channels, and positions of each.
fn sizes(x: &Tensor) -> Result<(usize, usize)> {
    match x.shape() {
        [_, c, size @ ..] => Ok((*c, size.iter().product())),
        [_] => Ok((1, 1)),
        [] => Err(Error::invalid("BatchNormalization of a tensor without axes")),
    }
}

/// One number for each channel.
fn each(t: &Tensor, channels: usize) -> Result<Vec<f32>> {
    let values = t.to_f32()?;
    if values.len() != channels {
        return Err(Error::invalid(format!("{} numbers for {channels} channels", values.len())));
    }
    Ok(values.into_owned())
}

impl BatchNorm {
    /// Mean and variance of each channel.
    fn moments(x: &[f32], channels: usize, size: usize) -> (Vec<f32>, Vec<f32>) {
        let rows = |c: usize| x.chunks(size.max(1)).skip(c).step_by(channels);
        let n = (x.len() / channels.max(1)) as f64;
        (0..channels)
            .map(|c| {
                let mean = rows(c).flatten().map(|&v| f64::from(v)).sum::<f64>() / n;
                let variance = rows(c).flatten().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
                (mean as f32, variance as f32)
            })
            .unzip()
    }

    /// What each channel is multiplied with, and what is added then.
    fn line(&self, gamma: &[f32], beta: &[f32], mean: &[f32], variance: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let steep =
            |(g, v): (&f32, &f32)| (f64::from(*g) / (f64::from(*v) + f64::from(self.epsilon)).sqrt()) as f32;
        let scale: Vec<f32> = gamma.iter().zip(variance).map(steep).collect();
        let shift = (0..scale.len()).map(|c| beta[c] - mean[c] * scale[c]).collect();
        (scale, shift)
    }

    /// In `f32` with the channels last, with mean and variance given.
    fn run_last(&self, cx: &RunCx, mut x: Tensor, inputs: &Inputs) -> Result<Tensor> {
        let channels = x.shape()[x.rank() - 1];
        let number = |i: usize| each(inputs.need(i)?, channels);
        let (scale, shift) = self.line(&number(1)?, &number(2)?, &number(3)?, &number(4)?);
        if !x.is_empty() {
            let data = x.as_mut_slice::<f32>()?;
            binary_assign(cx.cpu, Binary::Mul, data, Right::Row(&scale));
            binary_assign(cx.cpu, Binary::Add, data, Right::Row(&shift));
        }
        Ok(x)
    }

    fn run_first(&self, cx: &RunCx, x: &Tensor, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let (channels, size) = sizes(x)?;
        let number = |i: usize| each(inputs.need(i)?, channels);
        let (gamma, beta, old_mean, old_variance) = (number(1)?, number(2)?, number(3)?, number(4)?);
        if x.dtype() == DType::F64 && !self.training {
            let part =
                |i: usize| Ok(cast(inputs.need(i)?.clone(), DType::F64, true)?.values::<f64>()?.into_owned());
            let parts: Result<Vec<Vec<f64>>> = (1..5).map(part).collect();
            let parts = parts?;
            let mut y = x.clone();
            for (i, row) in y.as_mut_slice::<f64>()?.chunks_mut(size.max(1)).enumerate() {
                let c = i % channels.max(1);
                let factor = parts[0][c] / (parts[3][c] + f64::from(self.epsilon)).sqrt();
                row.iter_mut().for_each(|v| *v = (*v - parts[2][c]) * factor + parts[1][c]);
            }
            return Ok(vec![y]);
        }
        let data = x.to_f32()?;
        let (mean, variance) = match self.training {
            true => BatchNorm::moments(&data, channels, size),
            false => (old_mean.clone(), old_variance.clone()),
        };
        let (scale, shift) = self.line(&gamma, &beta, &mean, &variance);
        let y = Tensor::fill(x.shape(), |y| {
            if !data.is_empty() {
                scale_shift(cx.cpu, &data, &scale, &shift, size, y);
            }
            Ok(())
        })?;
        let mut outputs = vec![cast(y, x.dtype(), true)?];
        if self.training {
            let running = |old: &[f32], new: &[f32]| {
                let mix = |(o, n): (&f32, &f32)| o * self.momentum + n * (1.0 - self.momentum);
                Tensor::vector(&old.iter().zip(new).map(mix).collect::<Vec<f32>>())
            };
            let stats = [
                running(&old_mean, &mean),
                running(&old_variance, &variance),
                Tensor::vector(&mean),
                Tensor::vector(&variance),
            ];
            let dtype = inputs.need(3)?.dtype();
            for t in stats.into_iter().take(cx.outputs.saturating_sub(1)) {
                outputs.push(cast(t, dtype, true)?);
            }
        }
        Ok(outputs)
    }
}

impl Op for BatchNorm {
    fn def(&self) -> &'static OpDef {
        match (self.layout, self.old) {
            (Layout::ChannelsFirst, old) => &DEFS[usize::from(!old)],
            (Layout::ChannelsLast, _) => &DEFS[3],
        }
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().float("epsilon", self.epsilon).float("momentum", self.momentum);
        if self.old { attrs } else { attrs.int("training_mode", self.training.into()) }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let channels = match (self.layout, x.shape()) {
            (Layout::ChannelsFirst, Some([_, c, ..])) | (Layout::ChannelsLast, Some([_, .., c])) => c.clone(),
            (_, Some([_])) => Dim::Is(1),
            _ => Dim::Unknown,
        };
        let stats = Fact::maybe(inputs.dtype(3), Some(vec![channels]));
        let y = Fact::maybe(x.dtype(), x.shape().map(<[Dim]>::to_vec));
        Ok([vec![y], vec![stats; inputs.outputs.saturating_sub(1)]].concat())
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        if self.layout == Layout::ChannelsLast && x.dtype() == DType::F32 && !self.training && x.rank() > 1 {
            return Ok(vec![self.run_last(cx, x, &inputs)?]);
        }
        let mut outputs = self.run_first(cx, &self.layout.to_first(cx.cpu, x)?, &inputs)?;
        let y = outputs.remove(0);
        outputs.insert(0, self.layout.laid_from_first(cx.cpu, y)?);
        Ok(outputs)
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.training || self.layout != Layout::ChannelsFirst {
            return Err(Error::unsupported(
                "the gradient of BatchNormalization in training mode or with the channels last",
            ));
        }
        let inputs = [cx.input(0)?, cx.input(1)?, cx.input(3)?, cx.input(4)?, cx.grad()?].map(Some).to_vec();
        let node = Node::new(Arc::new(BatchNormGrad { epsilon: self.epsilon }), inputs);
        let (_, grads) = cx.graph.add_with_outputs("grad", node, 3, None)?;
        Ok(grads.into_iter().map(Some).chain([None, None]).collect())
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let turns = cx.is_channels_last()
            && self.layout == Layout::ChannelsFirst
            && !self.training
            && cx.facts.dtype(0) == Some(DType::F32);
        let op = BatchNorm { old: false, layout: Layout::ChannelsLast, ..*self };
        cx.first().filter(|_| turns).map(|t| t.by(op))
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        if outputs.len() > 1 || self.training || self.layout != Layout::ChannelsFirst {
            return None;
        }
        let mut axes = Axes::new();
        axes.along((0..inputs.rank(0)?).map(|a| (a, a)));
        (1..5).for_each(|i| _ = axes.tie((Input(i), 0), (Output(0), 1)));
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for BatchNormGrad {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().float("epsilon", self.epsilon)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let scale = infer::like(inputs, 1)?;
        Ok([infer::like(inputs, 0)?, scale.clone(), scale].concat())
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, dy) = (inputs.need(0)?, inputs.f32(4)?);
        let (channels, size) = sizes(x)?;
        let number = |i: usize| each(inputs.need(i)?, channels);
        let (gamma, mean, variance) = (number(1)?, number(2)?, number(3)?);
        if dy.len() != x.len() {
            return Err(Error::invalid(format!("{} gradients for {} elements", dy.len(), x.len())));
        }
        let (mut dgamma, mut dbeta) = (vec![0f32; channels], vec![0f32; channels]);
        let dx = Tensor::build(x.shape(), |dx: &mut [f32]| {
            let rows = x.as_slice::<f32>()?.chunks(size.max(1)).zip(dy.chunks(size.max(1)));
            for (i, (dx, (x, dy))) in dx.chunks_mut(size.max(1)).zip(rows).enumerate() {
                let c = i % channels;
                let factor = 1.0 / (variance[c] + self.epsilon).sqrt();
                for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                    *dx = dy * gamma[c] * factor;
                    dgamma[c] += dy * (x - mean[c]) * factor;
                    dbeta[c] += dy;
                }
            }
            Ok(())
        })?;
        Ok(vec![dx, Tensor::vector(&dgamma), Tensor::vector(&dbeta)])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
