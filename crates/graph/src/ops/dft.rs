//! `DFT`, `STFT`: discrete Fourier transforms. Complex numbers are a last axis of two.
//! <https://onnx.ai/onnx/operators/onnx__DFT.html>
//!
//! Lengths that are powers of two by Cooley and Tukey (1965), all others by Bluestein's convolution (1970).

use std::any::Any;
use std::f64::consts::PI;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// The transform along one axis.
#[derive(Debug)]
pub struct Dft {
    inverse: bool,
    onesided: bool,
    /// The axis, while it was an attribute (before version 20).
    axis: Option<i64>,
}

/// Transforms of parts of a signal that overlap.
#[derive(Debug)]
pub struct Stft {
    onesided: bool,
}

fn read(r: &Reader, axis: Option<i64>) -> Result<Arc<dyn Op>> {
    let (inverse, onesided) = (r.attrs.flag_or("inverse", false)?, r.attrs.flag_or("onesided", false)?);
    Ok(Arc::new(Dft { inverse, onesided, axis }))
}

fn samples(axis: Option<i64>) -> Vec<Sample> {
    let op = |inverse, onesided| Dft { inverse, onesided, axis };
    let length = || Tensor::scalar(6i64);
    vec![
        Sample::new(op(false, false), vec![ramp(&[2, 5, 2])]),
        Sample::new(op(false, true), vec![ramp(&[2, 8, 1])]),
        Sample::new(op(true, false), vec![ramp(&[1, 7, 2]), length()]),
        Sample::new(op(true, true), vec![ramp(&[2, 5, 2])]),
    ]
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "DFT",
        domain: "",
        since: 17,
        read: |r| read(r, Some(r.attrs.int_or("axis", 1)?)),
        samples: || samples(Some(1)),
    },
    OpDef { name: "DFT", domain: "", since: 20, read: |r| read(r, None), samples: || samples(None) },
    OpDef {
        name: "STFT",
        domain: "",
        since: 17,
        read: |r| Ok(Arc::new(Stft { onesided: r.attrs.flag_or("onesided", true)? })),
        samples: || {
            let step = || Tensor::scalar(3i64);
            let some = |t: Tensor| Some(t.into());
            let framed = Sample {
                inputs: vec![some(ramp(&[1, 20, 2])), some(step()), None, some(Tensor::scalar(6i64))],
                ..Sample::new(Stft { onesided: false }, vec![])
            };
            vec![Sample::new(Stft { onesided: true }, vec![ramp(&[2, 16, 1]), step(), ramp(&[5])]), framed]
        },
    },
];

type Complex = (f64, f64);

fn times(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

/// `e^(i angle)`
fn unit(angle: f64) -> Complex {
    (angle.cos(), angle.sin())
}

/// Transform of a power of two, in place; `sign` is -1, or 1 for the inverse without its factor.
fn radix2(x: &mut [Complex], sign: f64) {
    let n = x.len();
    let mut j = 0;
    for i in 1..n {
        let mut bit = n >> 1;
        while j & bit != 0 {
            j ^= bit;
            bit >>= 1;
        }
        j |= bit;
        if i < j {
            x.swap(i, j);
        }
    }
    let mut size = 2;
    while size <= n {
        let half = size / 2;
        let roots: Vec<Complex> = (0..half).map(|k| unit(sign * 2.0 * PI * k as f64 / size as f64)).collect();
        for block in x.chunks_mut(size) {
            for k in 0..half {
                let (a, b) = (block[k], times(block[k + half], roots[k]));
                block[k] = (a.0 + b.0, a.1 + b.1);
                block[k + half] = (a.0 - b.0, a.1 - b.1);
            }
        }
        size *= 2;
    }
}

/// Transform of any length; `sign` as for [`radix2`].
fn transform(x: &mut [Complex], sign: f64) {
    let n = x.len();
    if n.is_power_of_two() {
        return radix2(x, sign);
    }
    // The square is taken modulo 2n, where the chirp repeats.
    let chirp: Vec<Complex> = (0..n)
        .map(|k| unit(sign * PI * ((k as u128 * k as u128) % (2 * n as u128)) as f64 / n as f64))
        .collect();
    let m = (2 * n).next_power_of_two();
    let (mut a, mut b) = (vec![(0.0, 0.0); m], vec![(0.0, 0.0); m]);
    for k in 0..n {
        a[k] = times(x[k], chirp[k]);
        let conjugate = (chirp[k].0, -chirp[k].1);
        b[k] = conjugate;
        b[(m - k) % m] = conjugate;
    }
    radix2(&mut a, -1.0);
    radix2(&mut b, -1.0);
    a.iter_mut().zip(&b).for_each(|(a, &b)| *a = times(*a, b));
    radix2(&mut a, 1.0);
    for (k, x) in x.iter_mut().enumerate() {
        *x = times((a[k].0 / m as f64, a[k].1 / m as f64), chirp[k]);
    }
}

/// A length given by a tensor.
fn length(inputs: &Inputs, i: usize) -> Result<Option<usize>> {
    match inputs.ints(i)?.as_deref() {
        None => Ok(None),
        Some(&[n]) if (1..1 << 32).contains(&n) => Ok(Some(n as usize)),
        Some(other) => Err(Error::invalid(format!("a length must be one positive number, got {other:?}"))),
    }
}

/// Real and imaginary part of each element, along the last axis of one or two.
fn parts(shape: &[usize]) -> Result<usize> {
    match shape.last() {
        Some(&n @ (1 | 2)) => Ok(n),
        _ => Err(Error::invalid(format!("the last axis of {shape:?} must be 1 (real) or 2 (complex)"))),
    }
}

impl Dft {
    fn length(&self, n: usize) -> usize {
        if self.inverse && self.onesided { 2 * n.saturating_sub(1) } else { n }
    }

    fn compute<T: Number>(&self, x: &Tensor, axis: usize, length: usize) -> Result<Tensor> {
        let shape = x.shape();
        let (parts, size) = (parts(shape)?, shape[axis]);
        let inner: usize = shape[axis + 1..shape.len() - 1].iter().product();
        let outer: usize = shape[..axis].iter().product();
        let half = length / 2 + 1;
        let (count, depth) = match (self.onesided, self.inverse) {
            (true, false) => (half, 2),
            (true, true) => (length, 1),
            (false, _) => (length, 2),
        };
        let mut to = shape.to_vec();
        to[axis] = count;
        to[shape.len() - 1] = depth;
        let data = x.as_slice::<T>()?;
        let mut line = Vec::new();
        line.try_reserve_exact(length).map_err(|_| Error::Memory(length.saturating_mul(16)))?;
        Tensor::build(&to, |out: &mut [T]| {
            for item in 0..outer * inner {
                let (o, i) = (item / inner, item % inner);
                let at = |k: usize| {
                    let at = ((o * size + k) * inner + i) * parts;
                    (data[at].to_f64(), if parts == 2 { data[at + 1].to_f64() } else { 0.0 })
                };
                line.clear();
                let given = if self.onesided && self.inverse { size.min(half) } else { size.min(length) };
                line.extend((0..given).map(at));
                line.resize(length, (0.0, 0.0));
                if self.onesided && self.inverse {
                    // The other half is the mirror image.
                    for k in half..length {
                        let (re, im) = line[length - k];
                        line[k] = (re, -im);
                    }
                    line[0].1 = 0.0;
                    if length.is_multiple_of(2) {
                        line[length / 2].1 = 0.0;
                    }
                }
                transform(&mut line, if self.inverse { 1.0 } else { -1.0 });
                let factor = if self.inverse { 1.0 / length as f64 } else { 1.0 };
                for (k, (re, im)) in line.iter().take(count).enumerate() {
                    let to = ((o * count + k) * inner + i) * depth;
                    out[to] = T::from_f64(re * factor);
                    if depth == 2 {
                        out[to + 1] = T::from_f64(im * factor);
                    }
                }
            }
            Ok(())
        })
    }
}

impl Op for Dft {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(self.axis.is_none())]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .maybe("axis", self.axis.map(Attr::Int))
            .int("inverse", self.inverse.into())
            .int("onesided", self.onesided.into())
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let Some(shape) = x.shape() else { return Ok(vec![Fact::maybe(x.dtype(), None)]) };
        let mut to = vec![Dim::Unknown; shape.len()];
        let axis = match (self.axis, inputs.get(2)) {
            (Some(axis), _) => Some(axis),
            (None, None) => Some(-2),
            (None, Some(_)) => inputs.ints(2).and_then(|v| v.first().copied()),
        };
        if let Some(axis) = axis {
            let axis = infer::axis(axis, shape.len())?;
            to = shape.to_vec();
            let given = match inputs.get(1) {
                Some(_) => inputs.ints(1).and_then(|v| usize::try_from(*v.first()?).ok()),
                None => shape[axis].size().map(|n| self.length(n)),
            };
            to[axis] = match (given, self.onesided && !self.inverse) {
                (Some(n), true) => (n / 2 + 1).into(),
                (Some(n), false) => n.into(),
                _ => Dim::Unknown,
            };
        }
        if let Some(last) = to.last_mut() {
            *last = Dim::Is(if self.onesided && self.inverse { 1 } else { 2 });
        }
        Ok(vec![Fact::maybe(x.dtype(), Some(to))])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let axis = match (self.axis, inputs.ints(2)?.as_deref()) {
            (Some(axis), _) => axis,
            (None, None) => -2,
            (None, Some(&[axis])) => axis,
            (None, Some(other)) => return Err(Error::invalid(format!("DFT along axes {other:?}"))),
        };
        let axis = infer::axis(axis, x.rank())?;
        if axis + 1 == x.rank() {
            return Err(Error::invalid("DFT along the axis of real and imaginary parts"));
        }
        let length = length(&inputs, 1)?.unwrap_or_else(|| self.length(x.shape()[axis]));
        if length == 0 || !x.dtype().is_float() {
            return Err(Error::invalid(format!("DFT of length {length} of elements of type {}", x.dtype())));
        }
        fn go<T: Number>(op: &Dft, x: &Tensor, axis: usize, length: usize) -> Result<Tensor> {
            op.compute::<T>(x, axis, length)
        }
        Ok(vec![by_type!(x.dtype(), go(self, x, axis, length))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The windowed frames of a signal, `[batch, frames, length, parts]`.
fn frames<T: Number>(x: &Tensor, window: Option<&Tensor>, step: usize, length: usize) -> Result<Tensor> {
    let &[batch, size, parts] = x.shape() else {
        return Err(Error::invalid(format!("a signal of shape {:?}", x.shape())));
    };
    let count = size.checked_sub(length).map(|room| room / step + 1);
    let count = count.ok_or_else(|| Error::invalid(format!("a frame of {length} in a signal of {size}")))?;
    let weights = window.map(|w| w.as_slice::<T>()).transpose()?;
    if weights.is_some_and(|w| w.len() != length) {
        return Err(Error::invalid(format!("the window must have {length} numbers")));
    }
    let data = x.as_slice::<T>()?;
    Tensor::build(&[batch, count, length, parts], |out: &mut [T]| {
        for (i, frame) in out.chunks_mut((length * parts).max(1)).enumerate() {
            let (b, f) = (i / count, i % count);
            frame.copy_from_slice(&data[(b * size + f * step) * parts..][..length * parts]);
            if let Some(weights) = weights {
                frame
                    .chunks_mut(parts)
                    .zip(weights)
                    .for_each(|(v, w)| v.iter_mut().for_each(|v| *v = v.times(*w)));
            }
        }
        Ok(())
    })
}

impl Op for Stft {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("onesided", self.onesided.into())
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let batch = x.shape().and_then(|s| s.first().cloned()).unwrap_or_default();
        let length = match (inputs.get(3), inputs.get(2)) {
            (Some(_), _) => inputs.ints(3).and_then(|v| v.first().copied()),
            (None, Some(window)) => window.shape().and_then(|s| s.first()?.int()),
            (None, None) => x.shape().and_then(|s| s.get(1)?.int()),
        };
        let step = inputs.ints(1).and_then(|v| v.first().copied());
        let size = x.shape().and_then(|s| s.get(1)?.int());
        let frames = match (size, length, step) {
            (Some(n), Some(l), Some(s)) if s > 0 && l > 0 && l <= n => Dim::Is((n - l) / s + 1),
            _ => Dim::Unknown,
        };
        let bins = length.map_or(Dim::Unknown, |l| Dim::Is(if self.onesided { l / 2 + 1 } else { l }));
        Ok(vec![Fact::maybe(x.dtype(), Some(vec![batch, frames, bins, Dim::Is(2)]))])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (mut x, window) = (inputs.need(0)?.clone(), inputs.get(2)?);
        if x.rank() == 2 {
            let shape = [x.shape(), &[1]].concat();
            x = x.reshaped(&shape)?;
        }
        parts(x.shape())?;
        let step = length(&inputs, 1)?.ok_or_else(|| Error::invalid("STFT needs a frame_step"))?;
        let size = match (length(&inputs, 3)?, window) {
            (Some(n), _) => n,
            (None, Some(window)) => window.len(),
            (None, None) => x.shape().get(1).copied().unwrap_or(0),
        };
        if size == 0 || !matches!(x.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
            return Err(Error::invalid(format!("STFT of frames of {size} elements of type {}", x.dtype())));
        }
        fn go<T: Number>(op: &Stft, x: &Tensor, w: Option<&Tensor>, step: usize, n: usize) -> Result<Tensor> {
            let dft = Dft { inverse: false, onesided: op.onesided, axis: None };
            dft.compute::<T>(&frames::<T>(x, w, step, n)?, 2, n)
        }
        Ok(vec![by_type!(x.dtype(), go(self, &x, window, step, size))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_is_the_sum_that_defines_it() {
        for n in [1usize, 2, 3, 5, 8, 12, 17] {
            let x: Vec<Complex> = (0..n).map(|i| ((i * 7 % 5) as f64 - 2.0, (i * 3 % 4) as f64)).collect();
            for sign in [-1.0, 1.0] {
                let mut y = x.clone();
                transform(&mut y, sign);
                for (k, got) in y.iter().enumerate() {
                    let want = x.iter().enumerate().fold((0.0, 0.0), |sum: Complex, (j, &v)| {
                        let t = times(v, unit(sign * 2.0 * PI * (j * k) as f64 / n as f64));
                        (sum.0 + t.0, sum.1 + t.1)
                    });
                    assert!(
                        (got.0 - want.0).abs() + (got.1 - want.1).abs() < 1e-9,
                        "{n} {k}: {got:?} {want:?}"
                    );
                }
            }
        }
    }
}
