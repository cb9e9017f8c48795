//! onnxruntime's `QLinearSoftmax`. <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::sync::Arc;

use super::codes::{Rounder, grid8, in_range};
use super::pair::sample_bytes;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample};
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor, infer};

/// `QLinearSoftmax`: codes, scale, zero point; scale and zero point of the result.
#[derive(Debug)]
pub struct QSoftmax {
    attrs: Attrs,
    axis: i64,
    /// As `Softmax` before version 13: all axes from `axis` on are one.
    flat: bool,
}

fn read(attrs: &Attrs) -> Result<QSoftmax> {
    let flat = attrs.int_or("opset", 13)? < 13;
    let axis = attrs.int_or("axis", if flat { 1 } else { -1 })?;
    Ok(QSoftmax { axis, flat, attrs: attrs.clone() })
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "QLinearSoftmax",
    domain: "com.microsoft",
    since: 1,
    read: |r| Ok(Arc::new(read(r.attrs)?)),
    samples: || {
        let inputs = || {
            let (scale, zero) = (|v: f32| Tensor::scalar(v), |v: u8| Tensor::scalar(v));
            vec![sample_bytes(&[2, 3, 4]), scale(0.02), zero(120), scale(1.0 / 256.0), zero(0)]
        };
        let attrs = |opset, axis| Attrs::new().int("opset", opset).int("axis", axis);
        let ops = [read(&attrs(13, 1)), read(&attrs(11, 1)), read(&attrs(13, -1))];
        ops.into_iter().flatten().map(|op| Sample::new(op, inputs())).collect()
    },
}];

impl Op for QSoftmax {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let mut x = inputs.take(0)?;
        let dtype = x.dtype();
        if dtype.bits() != 8 {
            return Err(Error::unsupported(format!("QLinearSoftmax of {dtype}")));
        }
        let (from, to) = (grid8(&inputs, 1, 2, dtype)?, grid8(&inputs, 3, 4, dtype)?);
        let rounder = Rounder::new(in_range(dtype, to.zero)?, to.zero);
        let axis = infer::axis(self.axis, x.rank())?;
        let end = if self.flat { x.rank() } else { axis + 1 };
        let len: usize = x.shape()[axis..end].iter().product();
        let inner: usize = x.shape()[end..].iter().product();
        let code = |byte: u8| if dtype == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) };
        if x.is_empty() {
            return Ok(vec![x]);
        }
        for block in x.bytes_mut()?.chunks_mut(len * inner) {
            for i in 0..inner {
                let top = block[i..].iter().step_by(inner).map(|&b| code(b)).max().unwrap_or(0);
                let power = |byte: u8| ((code(byte) - top) as f32 * from.scale).exp();
                let sum: f32 = block[i..].iter().step_by(inner).map(|&b| power(b)).sum();
                for byte in block[i..].iter_mut().step_by(inner) {
                    *byte = rounder.code(power(*byte) / sum / to.scale) as u8;
                }
            }
        }
        Ok(vec![x])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
