//! `LpNormalization`, `MeanVarianceNormalization`, `LRN`: normalisations without weights.
//! <https://onnx.ai/onnx/operators/onnx__LpNormalization.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::number::{Number, by_type};
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor};

/// A normalisation without weights.
#[derive(Debug)]
pub struct OtherNorm {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Along an axis, over the norm with exponent 1 or 2.
    Lp { axis: i64, p: i64 },
    /// Over some axes, less the mean, over the standard deviation.
    MeanVariance { axes: Vec<i64> },
    /// Over what neighbouring channels hold (Krizhevsky, Sutskever, Hinton, 2012).
    Response { size: i64, alpha: f32, beta: f32, bias: f32 },
}

fn sample(kind: Kind, shape: &[usize]) -> Sample {
    Sample::new(OtherNorm { kind }, vec![ramp(shape)])
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "LpNormalization",
        domain: "",
        since: 1,
        read: |r| {
            let (axis, p) = (r.attrs.int_or("axis", -1)?, r.attrs.int_or("p", 2)?);
            if p != 1 && p != 2 {
                return Err(Error::invalid(format!("LpNormalization with p = {p}; it must be 1 or 2")));
            }
            Ok(Arc::new(OtherNorm { kind: Kind::Lp { axis, p } }))
        },
        samples: || {
            let lp = |axis, p| sample(Kind::Lp { axis, p }, &[2, 3, 4]);
            vec![lp(-1, 2), lp(0, 1), lp(1, 2)]
        },
    },
    OpDef {
        name: "MeanVarianceNormalization",
        domain: "",
        since: 9,
        read: |r| {
            Ok(Arc::new(OtherNorm {
                kind: Kind::MeanVariance { axes: r.attrs.ints_or("axes", &[0, 2, 3])? },
            }))
        },
        samples: || {
            let over = |axes: &[i64]| sample(Kind::MeanVariance { axes: axes.to_vec() }, &[2, 3, 4, 2]);
            vec![over(&[0, 2, 3]), over(&[-1])]
        },
    },
    OpDef {
        name: "LRN",
        domain: "",
        since: 1,
        read: |r| {
            let size = r.attrs.need_int("size")?;
            if size < 1 {
                return Err(Error::invalid(format!("LRN over {size} channels")));
            }
            let (alpha, beta) = (r.attrs.float_or("alpha", 1e-4)?, r.attrs.float_or("beta", 0.75)?);
            let bias = r.attrs.float_or("bias", 1.0)?;
            Ok(Arc::new(OtherNorm { kind: Kind::Response { size, alpha, beta, bias } }))
        },
        samples: || {
            let lrn = |size| Kind::Response { size, alpha: 0.1, beta: 0.75, bias: 1.0 };
            vec![sample(lrn(3), &[2, 5, 2, 2]), sample(lrn(4), &[1, 5, 3])]
        },
    },
];

/// The group of each element, counted from 0, when the axes in `over` are joined; and the number of groups.
fn groups(shape: &[usize], over: &[usize]) -> (Vec<usize>, usize) {
    let mut groups = vec![0];
    let mut count = 1;
    for (axis, &size) in shape.iter().enumerate() {
        let joined = over.contains(&axis);
        groups = groups
            .iter()
            .flat_map(|g| (0..size).map(move |i| if joined { *g } else { g * size + i }))
            .collect();
        count *= if joined { 1 } else { size };
    }
    (groups, count)
}

fn normalise<T: Number>(kind: &Kind, x: &Tensor) -> Result<Tensor> {
    let shape = x.shape();
    let data: Vec<f64> = x.as_slice::<T>()?.iter().map(|v| v.to_f64()).collect();
    let y: Vec<f64> = match kind {
        Kind::Lp { axis, p } => {
            let (groups, count) = groups(shape, &[infer::axis(*axis, shape.len())?]);
            let mut sums = vec![0f64; count];
            for (v, &g) in data.iter().zip(&groups) {
                sums[g] += if *p == 1 { v.abs() } else { v * v };
            }
            let norm = |s: f64| if *p == 1 { s } else { s.sqrt() };
            let one = |(v, &g): (&f64, &usize)| if sums[g] == 0.0 { 0.0 } else { v / norm(sums[g]) };
            data.iter().zip(&groups).map(one).collect()
        }
        Kind::MeanVariance { axes } => {
            let (groups, count) = groups(shape, &infer::axes(axes, shape.len())?);
            let n = data.len() as f64 / count as f64;
            let (mut means, mut squares) = (vec![0f64; count], vec![0f64; count]);
            data.iter().zip(&groups).for_each(|(v, &g)| means[g] += v / n);
            data.iter().zip(&groups).for_each(|(v, &g)| squares[g] += (v - means[g]).powi(2) / n);
            let one = |(v, &g): (&f64, &usize)| (v - means[g]) / (squares[g].sqrt() + 1e-9);
            data.iter().zip(&groups).map(one).collect()
        }
        Kind::Response { size, alpha, beta, bias } => {
            let [_, channels, rest @ ..] = shape else {
                return Err(Error::invalid(format!("LRN of shape {shape:?}")));
            };
            let inner: usize = rest.iter().product();
            let reach = usize::try_from(*size).unwrap_or(1);
            let (before, after) = ((reach - 1) / 2, reach / 2);
            let one = |(i, v): (usize, &f64)| {
                let c = i / inner % channels;
                let first = c.saturating_sub(before);
                let last = c.saturating_add(after).min(channels - 1);
                let at = i - (c - first) * inner;
                let sum: f64 = (0..=last - first).map(|k| data[at + k * inner].powi(2)).sum();
                v / (f64::from(*bias) + f64::from(*alpha) / *size as f64 * sum).powf(f64::from(*beta))
            };
            data.iter().enumerate().map(one).collect()
        }
    };
    Tensor::new(shape, &y.into_iter().map(T::from_f64).collect::<Vec<T>>())
}

impl Op for OtherNorm {
    fn def(&self) -> &'static OpDef {
        match self.kind {
            Kind::Lp { .. } => &DEFS[0],
            Kind::MeanVariance { .. } => &DEFS[1],
            Kind::Response { .. } => &DEFS[2],
        }
    }

    fn attrs(&self) -> Attrs {
        match &self.kind {
            Kind::Lp { axis, p } => Attrs::new().int("axis", *axis).int("p", *p),
            Kind::MeanVariance { axes } => Attrs::new().ints("axes", axes),
            Kind::Response { size, alpha, beta, bias } => Attrs::new()
                .int("size", *size)
                .float("alpha", *alpha)
                .float("beta", *beta)
                .float("bias", *bias),
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        if !matches!(x.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
            return Err(Error::unsupported(format!("{} of {}", self.name(), x.dtype())));
        }
        Ok(vec![by_type!(x.dtype(), normalise(&self.kind, x))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
