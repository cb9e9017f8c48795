//! `BatchNormalization`: each channel with its own mean and variance, given or taken from the batch.
//! <https://onnx.ai/onnx/operators/onnx__BatchNormalization.html>

use std::any::Any;
use std::sync::Arc;

use kernel::vec::scale_shift;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::{Attrs, DType, Dim, Error, Fact, Node, Op, Result, Tensor, ValueId};

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
}

fn read(r: &Reader, old: bool) -> Result<Arc<dyn Op>> {
    if r.attrs.int_or("spatial", 1)? == 0 {
        return Err(Error::unsupported("BatchNormalization with a mean for every position (spatial = 0)"));
    }
    Ok(Arc::new(BatchNorm {
        epsilon: r.attrs.float_or("epsilon", 1e-5)?,
        momentum: r.attrs.float_or("momentum", 0.9)?,
        training: if old { r.outputs > 1 } else { r.attrs.flag_or("training_mode", false)? },
        old,
    }))
}

fn samples(old: bool) -> Vec<Sample> {
    let op = |training| BatchNorm { epsilon: 1e-2, momentum: 0.8, training, old };
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
        read: |r| read(r, true),
        samples: || samples(true),
    },
    OpDef {
        name: "BatchNormalization",
        domain: "",
        since: 14,
        read: |r| read(r, false),
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
}

impl Op for BatchNorm {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(!self.old)]
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().float("epsilon", self.epsilon).float("momentum", self.momentum);
        if self.old { attrs } else { attrs.int("training_mode", self.training.into()) }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let channels = match x.shape() {
            Some([_, c, ..]) => c.clone(),
            Some([_]) => Dim::Is(1),
            _ => Dim::Unknown,
        };
        let stats = Fact::maybe(inputs.dtype(3), Some(vec![channels]));
        let y = Fact::maybe(x.dtype(), x.shape().map(<[Dim]>::to_vec));
        Ok([vec![y], vec![stats; inputs.outputs.saturating_sub(1)]].concat())
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
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
        let scale: Vec<f32> = gamma
            .iter()
            .zip(&variance)
            .map(|(g, v)| (f64::from(*g) / (f64::from(*v) + f64::from(self.epsilon)).sqrt()) as f32)
            .collect();
        let shift: Vec<f32> = (0..channels).map(|c| beta[c] - mean[c] * scale[c]).collect();
        let y = Tensor::build(x.shape(), |y| {
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

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.training {
            return Err(Error::unsupported("the gradient of BatchNormalization in training mode"));
        }
        let inputs = [cx.input(0)?, cx.input(1)?, cx.input(3)?, cx.input(4)?, cx.grad()?].map(Some).to_vec();
        let node = Node::new(Arc::new(BatchNormGrad { epsilon: self.epsilon }), inputs);
        let (_, grads) = cx.graph.add_with_outputs("grad", node, 3, None)?;
        Ok(grads.into_iter().map(Some).chain([None, None]).collect())
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
