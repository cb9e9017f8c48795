//! `CausalConvWithState`: a convolution of each channel that looks back only, and carries its last places along.
//! <https://onnx.ai/onnx/operators/onnx__CausalConvWithState.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::halves::in_f32;
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// The convolution.
#[derive(Debug)]
pub struct CausalConv {
    /// What `silu` is called in the model; `None` without an activation.
    silu: Option<String>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "CausalConvWithState",
    domain: "",
    since: 27,
    read: |r| match r.attrs.text_or("activation", "none")? {
        "none" => Ok(Arc::new(CausalConv { silu: None })),
        name @ ("silu" | "swish") => Ok(Arc::new(CausalConv { silu: Some(name.into()) })),
        other => Err(Error::unsupported(format!("activation {other:?}"))),
    },
    samples: || {
        let plain = || CausalConv { silu: None };
        let swish = CausalConv { silu: Some("swish".into()) };
        let (x, w, b, past) = (ramp(&[2, 3, 5]), ramp(&[3, 1, 4]), ramp(&[3]), ramp(&[2, 3, 3]));
        let some = |t: &Tensor| Some(t.clone().into());
        vec![
            Sample::new(plain(), vec![x.clone(), w.clone()]).outputs(2),
            Sample::new(swish, vec![x.clone(), w.clone(), b, past.clone()]).outputs(2),
            // Shorter than what is carried along.
            Sample {
                inputs: vec![some(&ramp(&[2, 3, 1])), some(&w), None, some(&past)],
                outputs: 2,
                ..Sample::new(plain(), vec![])
            },
            Sample::new(plain(), vec![x, ramp(&[3, 1, 1])]).outputs(2),
        ]
    },
}];

impl CausalConv {
    fn run_f32(&self, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let (x, w) = (inputs.need(0)?, inputs.need(1)?);
        let bad = || {
            Error::invalid(format!(
                "an input of shape {:?} and a weight of shape {:?}; they must be [batch, channels, length] and \
                 [channels, 1, kernel]",
                x.shape(),
                w.shape()
            ))
        };
        let (&[batch, channels, length], &[c, 1, kernel]) = (x.shape(), w.shape()) else { return Err(bad()) };
        if c != channels || kernel == 0 {
            return Err(bad());
        }
        let before = kernel - 1;
        let bias = inputs.get(2)?.map(|b| b.as_slice::<f32>()).transpose()?;
        let past = inputs.get(3)?;
        if bias.is_some_and(|b| b.len() != channels)
            || past.is_some_and(|p| p.shape() != [batch, channels, before])
        {
            return Err(Error::invalid("the bias or the past state does not fit the input"));
        }
        let past = past.map(|p| p.as_slice::<f32>()).transpose()?;
        let (x, w) = (x.as_slice::<f32>()?, w.as_slice::<f32>()?);
        let mut state = Tensor::zeros(DType::F32, &[batch, channels, before])?;
        let states = state.as_mut_slice::<f32>()?;
        let mut line = Vec::new();
        let y = Tensor::build(&[batch, channels, length], |y: &mut [f32]| {
            for row in 0..batch * channels {
                let channel = row % channels;
                line.clear();
                match past {
                    Some(past) => line.extend_from_slice(&past[row * before..][..before]),
                    None => line.resize(before, 0.0),
                }
                line.extend_from_slice(&x[row * length..][..length]);
                let taps = &w[channel * kernel..][..kernel];
                for (y, seen) in y[row * length..][..length].iter_mut().zip(line.windows(kernel)) {
                    let sum: f32 = seen.iter().zip(taps).map(|(x, w)| x * w).sum();
                    let sum = sum + bias.map_or(0.0, |b| b[channel]);
                    *y = if self.silu.is_some() { sum / (1.0 + (-sum).exp()) } else { sum };
                }
                states[row * before..][..before].copy_from_slice(&line[line.len() - before..]);
            }
            Ok(())
        })?;
        Ok(vec![y, state])
    }
}

impl Op for CausalConv {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("activation", self.silu.as_deref().map(Attr::from))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let state = x.shape().zip(inputs.shape(1)).and_then(|(x, w)| {
            let (Some([batch, channels]), Some(kernel)) = (x.get(..2), w.get(2)) else { return None };
            Some(vec![batch.clone(), channels.clone(), kernel.minus(&Dim::Is(1))])
        });
        let facts = [x.clone(), Fact::maybe(x.dtype(), state)];
        Ok(facts.into_iter().take(inputs.outputs.max(1)).collect())
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| self.run_f32(&inputs))
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let kernel = inputs.shape(1).and_then(|w| w.get(2)?.size()).unwrap_or(0);
        let y = outputs.first().and_then(Fact::count).unwrap_or(0);
        (y as u64).saturating_mul(kernel as u64)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
