//! Sums and products of two quantised tensors: onnxruntime's `QLinearAdd` and `QLinearMul`, and `lessen.QAdd`, a
//! sum with a fused activation. <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::sync::Arc;

use kernel::Cpu;

use super::codes::{Code, Grid8, Rounder, grid8, in_range};
use super::slots::Bounds;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::Walk;
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned, infer};

/// A sum or a product of two quantised tensors. Inputs: codes, scale and zero point of both and of the result.
#[derive(Debug)]
pub struct QPair {
    kind: Kind,
    attrs: Attrs,
    bounds: Bounds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Mul,
    OwnAdd,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "QLinearAdd",
        domain: "com.microsoft",
        since: 1,
        read: |r| read(r, Kind::Add),
        samples: || samples(Kind::Add),
    },
    OpDef {
        name: "QLinearMul",
        domain: "com.microsoft",
        since: 1,
        read: |r| read(r, Kind::Mul),
        samples: || samples(Kind::Mul),
    },
    OpDef {
        name: "QAdd",
        domain: "lessen",
        since: 1,
        read: |r| read(r, Kind::OwnAdd),
        samples: || samples(Kind::OwnAdd),
    },
];

fn read(r: &Reader, kind: Kind) -> Result<Arc<dyn Op>> {
    let lo = r.attrs.float_or("lo", f32::NEG_INFINITY)?;
    let hi = r.attrs.float_or("hi", f32::INFINITY)?;
    Ok(Arc::new(QPair { kind, bounds: Bounds { lo, hi }, attrs: r.attrs.clone() }))
}

/// Bytes for samples.
pub(super) fn sample_bytes(shape: &[usize]) -> Tensor {
    let codes: Vec<u8> = ramp(shape)
        .as_slice::<f32>()
        .map_or(Vec::new(), |x| x.iter().map(|v| (v * 127.0 + 128.0) as u8).collect());
    Tensor::new(shape, &codes).unwrap_or_else(|_| Tensor::vector(&codes))
}

fn samples(kind: Kind) -> Vec<Sample> {
    let attrs = if kind == Kind::OwnAdd { Attrs::new().float("lo", 0.0) } else { Attrs::new() };
    let one = |a: &[usize], b: &[usize]| {
        let op = read(&Reader { attrs: &attrs, version: 1, inputs: 8, outputs: 1 }, kind).ok()?;
        let (scale, zero) = (|v: f32| Tensor::scalar(v), |v: u8| Tensor::scalar(v));
        let inputs = vec![
            sample_bytes(a),
            scale(0.02),
            zero(120),
            sample_bytes(b),
            scale(0.01),
            zero(3),
            scale(0.03),
            zero(100),
        ];
        let inputs = inputs.into_iter().map(|t| Some(t.into())).collect();
        Some(Sample { op, inputs, outputs: 1, grads: Vec::new(), tolerance: 0.0 })
    };
    [one(&[2, 3], &[2, 3]), one(&[2, 3, 2], &[3, 1]), one(&[3], &[2, 3])].into_iter().flatten().collect()
}

impl QPair {
    /// `lessen.QAdd` with these bounds.
    pub fn add(bounds: Bounds) -> QPair {
        let attrs = Attrs::new().float("lo", bounds.lo).float("hi", bounds.hi);
        QPair { kind: Kind::OwnAdd, attrs, bounds }
    }

    fn combine<T: Code + Into<i32>>(
        &self,
        cpu: &Cpu,
        a: &Tensor,
        b: &Tensor,
        [ga, gb, gy]: [Grid8; 3],
    ) -> Result<Tensor> {
        let range = self.bounds.codes(gy.scale, gy.zero, in_range(T::DTYPE, gy.zero)?);
        let rounder = Rounder::new(range, gy.zero);
        let (ra, rb) = (ga.scale / gy.scale, gb.scale / gy.scale);
        let factor = ga.scale * gb.scale / gy.scale;
        let add = |x: T, y: T| {
            let sum = (x.into() - ga.zero) as f32 * ra + (y.into() - gb.zero) as f32 * rb;
            T::from_i32(rounder.code(sum))
        };
        let multiply = |x: T, y: T| {
            T::from_i32(rounder.code(((x.into() - ga.zero) * (y.into() - gb.zero)) as f32 * factor))
        };
        match self.kind {
            Kind::Add | Kind::OwnAdd => elements(cpu, a, b, add),
            Kind::Mul => elements(cpu, a, b, multiply),
        }
    }
}

/// Both tensors' elements combined; on all threads when the shapes are equal.
fn elements<T: Code>(cpu: &Cpu, a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Sync) -> Result<Tensor> {
    const CHUNK: usize = 1 << 14;
    let walk = Walk::new(a.shape(), b.shape())?;
    let (x, y) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    Tensor::fill(&walk.shape, |out: &mut [T]| {
        if a.shape() != b.shape() {
            walk.apply(x, y, out, f);
            return Ok(());
        }
        cpu.pool().for_chunks_mut(out, CHUNK, |i, out| {
            let pairs = x[i * CHUNK..].iter().zip(&y[i * CHUNK..]);
            out.iter_mut().zip(pairs).for_each(|(o, (&x, &y))| *o = f(x, y));
        });
        Ok(())
    })
}

impl Op for QPair {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.kind as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (a, b) = (inputs.need(0)?, inputs.need(3)?);
        Ok(vec![Fact::maybe(a.dtype().or(b.dtype()), infer::broadcast(a.shape(), b.shape())?)])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (a, b) = (inputs.need(0)?, inputs.need(3)?);
        let grid = |at| grid8(&inputs, at, at + 1, a.dtype());
        let grids = [grid(1)?, grid(4)?, grid(6)?];
        Ok(vec![match a.dtype() {
            DType::U8 => self.combine::<u8>(cx.cpu, a, b, grids)?,
            DType::I8 => self.combine::<i8>(cx.cpu, a, b, grids)?,
            other => return Err(Error::unsupported(format!("{} of {other}", self.name()))),
        }])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.elements(|at| at == 0 || at == 3)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
