//! `GroupNormalization`, `InstanceNormalization`: groups of channels of one image, normalised together.
//! <https://onnx.ai/onnx/operators/onnx__GroupNormalization.html>

use std::any::Any;
use std::sync::Arc;

use kernel::norm::group_norm;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::halves::in_f32;
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor};

/// Normalisation of groups of channels.
#[derive(Debug)]
pub struct GroupNorm {
    form: Form,
    /// Added to the variance.
    pub epsilon: f32,
    stash: Option<i64>,
}

/// The operator that it is written as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Each channel is a group.
    Instance,
    /// Before version 21, scale and shift had a number for each group, not for each channel.
    Group { groups: usize, by_group: bool },
}

fn read(r: &Reader, by_group: bool) -> Result<Arc<dyn Op>> {
    let groups = r.attrs.need_int("num_groups")?;
    let groups = usize::try_from(groups).ok().filter(|&g| g > 0);
    let groups = groups.ok_or_else(|| Error::invalid("num_groups must be positive"))?;
    let stash = r.attrs.opt_int("stash_type")?;
    Ok(Arc::new(GroupNorm { form: Form::Group { groups, by_group }, epsilon: epsilon(r)?, stash }))
}

fn epsilon(r: &Reader) -> Result<f32> {
    r.attrs.float_or("epsilon", 1e-5)
}

fn samples(form: Form, numbers: usize) -> Vec<Sample> {
    let op = || GroupNorm { form, epsilon: 1e-3, stash: None };
    let doubles = |s: &[usize]| crate::ops::cast::cast(ramp(s), DType::F64, true);
    let mut samples = vec![
        Sample::new(op(), vec![ramp(&[2, 4, 3, 2]), ramp(&[numbers]), ramp(&[numbers])]),
        Sample::new(op(), vec![ramp(&[1, 4, 5]), ramp(&[numbers]), ramp(&[numbers])]),
    ];
    if let (Ok(x), Ok(s)) = (doubles(&[1, 4, 5]), doubles(&[numbers])) {
        samples.push(Sample::new(op(), vec![x, s.clone(), s]));
    }
    samples
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "InstanceNormalization",
        domain: "",
        since: 6,
        read: |r| Ok(Arc::new(GroupNorm { form: Form::Instance, epsilon: epsilon(r)?, stash: None })),
        samples: || samples(Form::Instance, 4),
    },
    OpDef {
        name: "GroupNormalization",
        domain: "",
        since: 18,
        read: |r| read(r, true),
        samples: || samples(Form::Group { groups: 2, by_group: true }, 2),
    },
    OpDef {
        name: "GroupNormalization",
        domain: "",
        since: 21,
        read: |r| read(r, false),
        samples: || samples(Form::Group { groups: 2, by_group: false }, 4),
    },
];

impl GroupNorm {
    /// One number for each channel.
    fn each<T: Copy>(&self, numbers: &[T], channels: usize) -> Result<Vec<T>> {
        let repeat = match self.form {
            Form::Group { groups, by_group: true } => channels / groups,
            _ => 1,
        };
        if numbers.len() * repeat != channels {
            return Err(Error::invalid(format!("{} numbers for {channels} channels", numbers.len())));
        }
        Ok(numbers.iter().flat_map(|&v| std::iter::repeat_n(v, repeat)).collect())
    }
}

impl Op for GroupNorm {
    fn def(&self) -> &'static OpDef {
        match self.form {
            Form::Instance => &DEFS[0],
            Form::Group { by_group: true, .. } => &DEFS[1],
            Form::Group { .. } => &DEFS[2],
        }
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().float("epsilon", self.epsilon);
        match self.form {
            Form::Instance => attrs,
            Form::Group { groups, .. } => {
                attrs.int("num_groups", groups as i64).maybe("stash_type", self.stash.map(crate::Attr::Int))
            }
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| {
            let (x, scale, shift) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
            let [_, channels, size @ ..] = x.shape() else {
                return Err(Error::invalid(format!("{} of shape {:?}", self.name(), x.shape())));
            };
            let groups = match self.form {
                Form::Instance => *channels,
                Form::Group { groups, .. } => groups,
            };
            if groups == 0 || channels % groups != 0 {
                return Err(Error::invalid(format!("{channels} channels are not {groups} groups")));
            }
            let inner: usize = size.iter().product();
            if x.dtype() == DType::F64 {
                let gamma = self.each(scale.as_slice::<f64>()?, *channels)?;
                let beta = self.each(shift.as_slice::<f64>()?, *channels)?;
                let mut y = x.clone();
                let part = channels / groups * inner;
                for (g, group) in y.as_mut_slice::<f64>()?.chunks_mut(part.max(1)).enumerate() {
                    let n = group.len() as f64;
                    let mean = group.iter().sum::<f64>() / n;
                    let variance = group.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                    let factor = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
                    let first = g % groups * (channels / groups);
                    for (c, row) in group.chunks_mut(inner.max(1)).enumerate() {
                        let (gamma, beta) = (gamma[first + c], beta[first + c]);
                        row.iter_mut().for_each(|v| *v = (*v - mean) * factor * gamma + beta);
                    }
                }
                return Ok(vec![y]);
            }
            let gamma = self.each(scale.as_slice::<f32>()?, *channels)?;
            let beta = self.each(shift.as_slice::<f32>()?, *channels)?;
            let y = Tensor::build(x.shape(), |y| {
                group_norm(cx.cpu, x.as_slice()?, inner, groups, &gamma, &beta, self.epsilon, y);
                Ok(())
            })?;
            Ok(vec![y])
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
