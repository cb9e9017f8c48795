//! `lessen.LayerNormGrad`: the gradients of normalisations of the last axes.

use std::any::Any;
use std::sync::Arc;

use kernel::back::{NormGrads, norm};
use kernel::norm::Kind;

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

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, scale, dy) = (inputs.need(0)?, inputs.need(1)?, inputs.f32(2)?);
        let n = crate::tensor::count(&x.shape()[infer::axis(self.axis, x.rank())?..])?;
        if scale.len() != n || dy.len() != x.len() {
            return Err(Error::unsupported("the gradient of a normalisation whose scale is broadcast"));
        }
        let kind = if self.rms { Kind::Rms } else { Kind::Layer };
        let (mut dgamma, mut dbeta) = (vec![0f32; n], vec![0f32; n]);
        let dx = Tensor::build(x.shape(), |dx: &mut [f32]| {
            let to = NormGrads { x: dx, gamma: &mut dgamma, beta: &mut dbeta };
            norm(cx.cpu, kind, self.epsilon, x.as_slice()?, scale.as_slice()?, dy, to);
            Ok(())
        })?;
        Ok(vec![dx, Tensor::new(scale.shape(), &dgamma)?, Tensor::new(scale.shape(), &dbeta)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
