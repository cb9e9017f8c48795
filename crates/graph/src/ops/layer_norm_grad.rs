//! `lessen.LayerNormGrad`: the gradients of normalisations of the last axes.

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::{Attrs, Error, Fact, Op, Result, Tensor};

/// From input, scale and the gradient of the output, the gradients of input, scale and shift.
#[derive(Debug)]
pub struct LayerNormGrad {
    /// Whether no mean is taken off.
    pub rms: bool,
    /// The first axis that is normalised.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "LayerNormGrad",
    domain: "lessen",
    since: 1,
    read: |r| {
        Ok(Arc::new(LayerNormGrad {
            rms: r.attrs.flag_or("rms", false)?,
            axis: r.attrs.int_or("axis", -1)?,
            epsilon: r.attrs.float_or("epsilon", 1e-5)?,
        }))
    },
    samples: || {
        [false, true]
            .map(|rms| {
                let op = LayerNormGrad { rms, axis: -1, epsilon: 1e-3 };
                Sample::new(op, vec![ramp(&[2, 3, 5]), ramp(&[5]), ramp(&[2, 3, 5])]).outputs(3)
            })
            .into()
    },
}];

impl Op for LayerNormGrad {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("rms", self.rms.into()).int("axis", self.axis).float("epsilon", self.epsilon)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let scale = infer::like(inputs, 1)?;
        Ok([infer::like(inputs, 0)?, scale.clone(), scale].concat())
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, scale, dy) = (inputs.need(0)?, inputs.need(1)?, inputs.f32(2)?);
        let n = crate::tensor::count(&x.shape()[infer::axis(self.axis, x.rank())?..])?;
        if scale.len() != n || dy.len() != x.len() {
            return Err(Error::unsupported("the gradient of a normalisation whose scale is broadcast"));
        }
        let gamma = scale.as_slice::<f32>()?;
        let (mut dgamma, mut dbeta) = (vec![0f64; n], vec![0f64; n]);
        let dx = Tensor::build(x.shape(), |dx: &mut [f32]| {
            let rows = x.as_slice::<f32>()?.chunks(n.max(1)).zip(dy.chunks(n.max(1)));
            for (dx, (x, dy)) in dx.chunks_mut(n.max(1)).zip(rows) {
                let mean = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
                let center = if self.rms { 0.0 } else { mean(&|i| x[i].into()) };
                let square = mean(&|i| (f64::from(x[i]) - center).powi(2));
                let factor = 1.0 / (square + f64::from(self.epsilon)).sqrt();
                let normal = |i: usize| (f64::from(x[i]) - center) * factor;
                let scaled = |i: usize| f64::from(dy[i]) * f64::from(gamma[i]);
                let along = mean(&|i| scaled(i) * normal(i));
                let shift = if self.rms { 0.0 } else { mean(&scaled) };
                for i in 0..n {
                    dx[i] = (factor * (scaled(i) - shift - normal(i) * along)) as f32;
                    dgamma[i] += f64::from(dy[i]) * normal(i);
                    dbeta[i] += f64::from(dy[i]);
                }
            }
            Ok(())
        })?;
        let narrow = |v: Vec<f64>| v.into_iter().map(|v| v as f32).collect::<Vec<_>>();
        let (dgamma, dbeta) = (narrow(dgamma), narrow(dbeta));
        Ok(vec![dx, Tensor::new(scale.shape(), &dgamma)?, Tensor::new(scale.shape(), &dbeta)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
