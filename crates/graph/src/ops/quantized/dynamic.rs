//! `DynamicQuantizeLinear`: numbers as unsigned bytes on a grid that fits them.
//! <https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html>

use std::any::Any;
use std::sync::Arc;

use kernel::q8::quantize::quantize_dynamic;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::{Attrs, DType, Fact, Op, Result, Tensor};

/// `DynamicQuantizeLinear`: gives the codes, the scale and the zero point.
#[derive(Debug)]
pub struct DynamicQuantizeLinear;

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "DynamicQuantizeLinear",
    domain: "",
    since: 11,
    read: |_| Ok(Arc::new(DynamicQuantizeLinear)),
    samples: || {
        let positive = Tensor::vector(&[0.5f32, 3.0, 2.0]);
        [ramp(&[3, 4]), positive, Tensor::vector(&[0f32, 0.0])]
            .map(|x| Sample::new(DynamicQuantizeLinear, vec![x]).outputs(3))
            .into()
    },
}];

impl Op for DynamicQuantizeLinear {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let shape = inputs.need(0)?.shape().map(<[_]>::to_vec);
        Ok(vec![
            Fact::maybe(Some(DType::U8), shape),
            Fact::tensor(DType::F32, Vec::new()),
            Fact::tensor(DType::U8, Vec::new()),
        ])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let values = x.to_f32()?;
        let (mut scale, mut zero) = (1.0, 0);
        let codes = Tensor::fill(x.shape(), |out: &mut [u8]| {
            (scale, zero) = quantize_dynamic(cx.cpu, &values, out);
            Ok(())
        })?;
        Ok(vec![codes, Tensor::scalar(scale), Tensor::scalar(zero)])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
