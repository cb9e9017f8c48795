//! `HannWindow`, `HammingWindow`, `BlackmanWindow`, `MelWeightMatrix`: what short-time spectra are made with.
//! <https://onnx.ai/onnx/operators/onnx__HannWindow.html> <https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html>

use std::any::Any;
use std::f64::consts::PI;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample};
use crate::ops::cast::cast;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// A window function.
#[derive(Debug)]
pub struct WindowFunction {
    shape: Shape,
    to: DType,
    periodic: bool,
}

/// A sum of cosines; the order is that of [`DEFS`].
#[derive(Clone, Copy, Debug)]
enum Shape {
    Hann,
    Hamming,
    Blackman,
}

/// `MelWeightMatrix`: sums the bins of a spectrum to bands of equal width in mel.
#[derive(Debug)]
pub struct MelWeights {
    to: DType,
}

fn to(r: &Reader) -> Result<DType> {
    let number = r.attrs.int_or("output_datatype", 1)?;
    i32::try_from(number)
        .ok()
        .and_then(DType::from_onnx)
        .ok_or_else(|| Error::invalid(format!("there is no element type {number}")))
}

impl Shape {
    fn read(self, r: &Reader) -> Result<Arc<dyn Op>> {
        Ok(Arc::new(WindowFunction { shape: self, to: to(r)?, periodic: r.attrs.flag_or("periodic", true)? }))
    }

    fn samples(self) -> Vec<Sample> {
        let op = |to, periodic| WindowFunction { shape: self, to, periodic };
        let n = |n: i64| vec![Tensor::scalar(n)];
        vec![
            Sample::new(op(DType::F32, true), n(10)),
            Sample::new(op(DType::F64, false), n(7)),
            Sample::new(op(DType::F32, false), n(1)),
        ]
    }

    fn terms(self) -> [f64; 3] {
        match self {
            Shape::Hann => [0.5, 0.5, 0.0],
            Shape::Hamming => [25.0 / 46.0, 21.0 / 46.0, 0.0],
            Shape::Blackman => [0.42, 0.5, 0.08],
        }
    }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "HannWindow",
        domain: "",
        since: 17,
        read: |r| Shape::Hann.read(r),
        samples: || Shape::Hann.samples(),
    },
    OpDef {
        name: "HammingWindow",
        domain: "",
        since: 17,
        read: |r| Shape::Hamming.read(r),
        samples: || Shape::Hamming.samples(),
    },
    OpDef {
        name: "BlackmanWindow",
        domain: "",
        since: 17,
        read: |r| Shape::Blackman.read(r),
        samples: || Shape::Blackman.samples(),
    },
    OpDef {
        name: "MelWeightMatrix",
        domain: "",
        since: 17,
        read: |r| Ok(Arc::new(MelWeights { to: to(r)? })),
        samples: || {
            let n = |n: i64| Tensor::scalar(n);
            let inputs = vec![n(8), n(16), n(8192), Tensor::scalar(0f32), Tensor::scalar(4096f32)];
            vec![Sample::new(MelWeights { to: DType::F32 }, inputs)]
        },
    },
];

/// One integer that must be there.
fn size(inputs: &Inputs, i: usize) -> Result<i64> {
    match inputs.ints(i)?.as_deref() {
        Some(&[n]) if n >= 0 => Ok(n),
        other => {
            Err(Error::invalid(format!("input {i} must be one number that is not negative, got {other:?}")))
        }
    }
}

impl Op for WindowFunction {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.shape as usize]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("output_datatype", self.to.to_onnx().into()).int("periodic", self.periodic.into())
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let ints = inputs.need(0)?.ints.clone();
        let size = ints.and_then(|v| v.into_iter().next()).unwrap_or_default();
        Ok(vec![Fact::maybe(Some(self.to), Some(vec![size]))])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let n = usize::try_from(size(&inputs, 0)?).map_err(|_| Error::invalid("the window is too long"))?;
        let whole = if self.periodic { n } else { n.saturating_sub(1) };
        let [a, b, c] = self.shape.terms();
        let values = Tensor::build(&[n], |out: &mut [f64]| {
            for (i, v) in out.iter_mut().enumerate() {
                let angle = 2.0 * PI * i as f64 / whole.max(1) as f64;
                *v = if whole == 0 { 1.0 } else { a - b * angle.cos() + c * (2.0 * angle).cos() };
            }
            Ok(())
        })?;
        Ok(vec![cast(values, self.to, true)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for MelWeights {
    fn def(&self) -> &'static OpDef {
        &DEFS[3]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("output_datatype", self.to.to_onnx().into())
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let one = |i: usize| inputs.ints(i).and_then(|v| v.first().copied()).filter(|&v| v >= 0);
        let bins = one(1).map_or(Dim::Unknown, |n| Dim::Is(n / 2 + 1));
        Ok(vec![Fact::maybe(Some(self.to), Some(vec![bins, one(0).map_or(Dim::Unknown, Dim::Is)]))])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (bands, length, rate) = (size(&inputs, 0)?, size(&inputs, 1)?, size(&inputs, 2)?);
        let edge = |i: usize| -> Result<f64> {
            let value = inputs.need(i)?.to_f32()?;
            match value.as_ref() {
                &[v] if v >= 0.0 && v.is_finite() => Ok(v.into()),
                _ => Err(Error::invalid(format!("input {i} must be one frequency"))),
            }
        };
        let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
        let (low, high) = (mel(edge(3)?), mel(edge(4)?));
        let sizes = (usize::try_from(bands), usize::try_from(length));
        let (Ok(bands), Ok(length), true) = (sizes.0, sizes.1, rate > 0) else {
            return Err(Error::invalid("MelWeightMatrix needs a positive sample rate"));
        };
        let bins = length / 2 + 1;
        let step = (high - low) / (bands as f64 + 2.0);
        let bin = |i: usize| {
            let hertz = 700.0 * (10f64.powf((i as f64 * step + low) / 2595.0) - 1.0);
            ((length as f64 + 1.0) * hertz / rate as f64).floor().max(0.0) as usize
        };
        let weights = Tensor::build(&[bins, bands], |out: &mut [f64]| {
            for band in 0..bands {
                let (left, center, right) = (bin(band), bin(band + 1), bin(band + 2));
                if center >= bins || right > bins {
                    return Err(Error::invalid("the upper edge is beyond half the sample rate"));
                }
                let mut set = |row: usize, v: f64| out[row * bands + band] = v;
                if center == left {
                    set(center, 1.0);
                }
                for j in left..=center.min(bins - 1) {
                    if center > left {
                        set(j, (j - left) as f64 / (center - left) as f64);
                    }
                }
                for j in center..right {
                    set(j, (right - j) as f64 / (right - center) as f64);
                }
            }
            Ok(())
        })?;
        Ok(vec![cast(weights, self.to, true)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
