//! Functions of one quantised number, by a table of all bytes: onnxruntime's `QLinearLeakyRelu` and
//! `QLinearSigmoid`. <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::sync::Arc;

use super::codes::{Grid8, Rounder, grid8, in_range};
use super::pair::sample_bytes;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample};
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned, infer};

/// A function of each quantised number. Inputs: codes, scale, zero point; scale and zero point of the result.
#[derive(Debug)]
pub struct QFunction {
    kind: Kind,
    attrs: Attrs,
    alpha: f32,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    LeakyRelu,
    Sigmoid,
}

const fn def(
    name: &'static str,
    read: fn(&Reader) -> Result<Arc<dyn Op>>,
    samples: fn() -> Vec<Sample>,
) -> OpDef {
    OpDef { name, domain: "com.microsoft", since: 1, read, samples }
}

pub(crate) static DEFS: &[OpDef] = &[
    def("QLinearLeakyRelu", |r| read(r, Kind::LeakyRelu), || samples(Kind::LeakyRelu)),
    def("QLinearSigmoid", |r| read(r, Kind::Sigmoid), || samples(Kind::Sigmoid)),
];

fn read(r: &Reader, kind: Kind) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(QFunction { kind, alpha: r.attrs.float_or("alpha", 0.01)?, attrs: r.attrs.clone() }))
}

fn samples(kind: Kind) -> Vec<Sample> {
    let x = sample_bytes(&[3, 5]);
    let (scale, zero) = (|v: f32| Tensor::scalar(v), |v: u8| Tensor::scalar(v));
    let inputs = vec![x, scale(0.02), zero(120), scale(0.01), zero(5)];
    vec![Sample::new(QFunction { kind, attrs: Attrs::new(), alpha: 0.01 }, inputs)]
}

/// The bytes `0..=255` of a type, moved from one grid to another by a function.
pub(super) fn table(dtype: DType, from: Grid8, to: Grid8, f: impl Fn(f32) -> f32) -> Result<[u8; 256]> {
    let rounder = Rounder::new(in_range(dtype, to.zero)?, to.zero);
    Ok(std::array::from_fn(|i| {
        let code = if dtype == DType::I8 { i32::from(i as u8 as i8) } else { i as i32 };
        rounder.code(f(from.real(code)) / to.scale) as u8
    }))
}

/// The tensor with each byte replaced by its entry.
///
/// # Errors
/// For other types than bytes.
pub(super) fn look_up(mut x: Tensor, table: &[u8; 256]) -> Result<Tensor> {
    if x.dtype().bits() != 8 {
        return Err(Error::unsupported(format!("codes of type {} here", x.dtype())));
    }
    for byte in x.bytes_mut()? {
        *byte = table[usize::from(*byte)];
    }
    Ok(x)
}

impl Op for QFunction {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.kind as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let (from, to) = (grid8(&inputs, 1, 2, x.dtype())?, grid8(&inputs, 3, 4, x.dtype())?);
        let table = table(x.dtype(), from, to, |v| match self.kind {
            Kind::LeakyRelu => {
                if v < 0.0 {
                    v * self.alpha
                } else {
                    v
                }
            }
            Kind::Sigmoid => 1.0 / (1.0 + (-v).exp()),
        })?;
        Ok(vec![look_up(x, &table)?])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.first()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
