//! `Where`: one of two tensors, element by element. <https://onnx.ai/onnx/operators/onnx__Where.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer::{self, broadcast_sizes};
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::broadcast::Walk;
use crate::{Attrs, Axes, DType, Dim, Element, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// The second input where the first holds, else the third.
#[derive(Debug)]
pub struct Where;

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Where",
    domain: "",
    since: 9,
    read: |_| Ok(Arc::new(Where)),
    samples: || {
        let condition = |v: &[bool], shape: &[usize]| Tensor::bools(shape, v);
        let all = || {
            let texts = |v: [&str; 2]| Tensor::strings(&[2], v.iter().map(|s| s.to_string()).collect());
            Ok::<_, Error>(vec![
                Sample::new(Where, vec![condition(&[true, false], &[2, 1])?, ramp(&[2, 3]), ramp(&[3])])
                    .grads(&[1, 2]),
                Sample::new(
                    Where,
                    vec![condition(&[true, false, true], &[3])?, ramp(&[3]), Tensor::scalar(5f32)],
                ),
                Sample::new(
                    Where,
                    vec![
                        condition(&[true, false], &[2])?,
                        Tensor::vector(&[1i64, 2]),
                        Tensor::vector(&[3i64, 4]),
                    ],
                ),
                Sample::new(
                    Where,
                    vec![condition(&[true, false], &[2])?, texts(["a", "b"])?, texts(["c", "d"])?],
                ),
            ])
        };
        all().unwrap_or_default()
    },
}];

/// The elements' positions, repeated to a shape: a step of 0 for one element, of 1 for all.
fn spread<T: Copy + Default>(from: &[T], shape: &[usize], to: &[usize]) -> Result<(Vec<T>, usize)> {
    if from.len() == 1 || shape == to {
        return Ok((Vec::new(), usize::from(shape == to && from.len() != 1)));
    }
    let walk = Walk::new(shape, to)?;
    let blank = vec![(); walk.shape.iter().product()];
    let mut out = vec![T::default(); blank.len()];
    walk.apply(from, &blank, &mut out, |x, ()| x);
    Ok((out, 1))
}

fn choose<T: Element>(condition: &Tensor, x: &Tensor, y: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let (c, a, b) = (condition.bytes(), x.as_slice::<T>()?, y.as_slice::<T>()?);
    let (cs, ct) = spread(c, condition.shape(), shape)?;
    let (xs, xt) = spread(a, x.shape(), shape)?;
    let (ys, yt) = spread(b, y.shape(), shape)?;
    let c = if cs.is_empty() { c } else { &cs };
    let a = if xs.is_empty() { a } else { &xs };
    let b = if ys.is_empty() { b } else { &ys };
    Tensor::build(shape, |out: &mut [T]| {
        for (i, o) in out.iter_mut().enumerate() {
            *o = if c[i * ct] != 0 { a[i * xt] } else { b[i * yt] };
        }
        Ok(())
    })
}

impl Op for Where {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (c, x, y) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let shape = infer::broadcast(x.shape(), y.shape())?;
        let shape = infer::broadcast(c.shape(), shape.as_deref())?;
        let ints = match (&c.ints, &x.ints, &y.ints) {
            (Some(c), Some(x), Some(y)) => {
                let n = c.len().max(x.len()).max(y.len());
                let at = |v: &[Dim], i: usize| {
                    v.get(if v.len() == 1 { 0 } else { i }).cloned().unwrap_or_default()
                };
                let pick = |i| match at(c, i) {
                    Dim::Is(1) => at(x, i),
                    Dim::Is(0) => at(y, i),
                    _ if at(x, i).same(&at(y, i)) => at(x, i),
                    _ => Dim::Unknown,
                };
                Some((0..n).map(pick).collect())
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype().or(y.dtype()), shape).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let (c, x, y) = (inputs.take(0)?, inputs.take(1)?, inputs.take(2)?);
        if c.dtype() != DType::Bool || x.dtype() != y.dtype() {
            let types = (c.dtype(), x.dtype(), y.dtype());
            return Err(Error::invalid(format!("Where({}, {}, {}) does not fit", types.0, types.1, types.2)));
        }
        let shape = broadcast_sizes(c.shape(), &broadcast_sizes(x.shape(), y.shape())?)?;
        let dtype = x.dtype();
        if dtype == DType::String {
            let places = |start: usize, t: &Tensor| -> Result<Tensor> {
                let numbers: Vec<u64> = (start..start + t.len()).map(|i| i as u64).collect();
                Tensor::new(t.shape(), &numbers)
            };
            let (xs, ys) = (x.as_strings()?, y.as_strings()?);
            let picked = choose::<u64>(&c, &places(0, &x)?, &places(xs.len(), &y)?, &shape)?;
            let text = |&i: &u64| xs.get(i as usize).unwrap_or_else(|| &ys[i as usize - xs.len()]).clone();
            return Ok(vec![Tensor::strings(&shape, picked.as_slice::<u64>()?.iter().map(text).collect())?]);
        }
        let as_bits = |bits: DType| -> Result<(Tensor, Tensor)> {
            Ok((x.clone().reinterpreted(bits)?, y.clone().reinterpreted(bits)?))
        };
        let out = match dtype.bits() {
            8 => as_bits(DType::U8).and_then(|(x, y)| choose::<u8>(&c, &x, &y, &shape))?,
            16 => as_bits(DType::U16).and_then(|(x, y)| choose::<u16>(&c, &x, &y, &shape))?,
            32 => as_bits(DType::U32).and_then(|(x, y)| choose::<u32>(&c, &x, &y, &shape))?,
            64 => as_bits(DType::U64).and_then(|(x, y)| choose::<u64>(&c, &x, &y, &shape))?,
            _ => return Err(Error::unsupported(format!("Where of elements of type {dtype}"))),
        };
        Ok(vec![out.reinterpreted(dtype)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (c, x, y, dy) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.grad()?);
        let zero = cx.number(0.0, dy)?;
        let (dx, other) = (cx.pick(c, dy, zero)?, cx.pick(c, zero, dy)?);
        Ok(vec![None, Some(cx.summed(dx, x)?), Some(cx.summed(other, y)?)])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.all()
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        Axes::elementwise(inputs, outputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
