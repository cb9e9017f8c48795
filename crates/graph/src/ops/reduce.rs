//! `ReduceSum`, `ReduceMean`, `ReduceMax`, ...: one number of all along some axes; and `lessen.Spread`, which
//! repeats a reduced tensor to the shape it was reduced from.
//! <https://onnx.ai/onnx/operators/onnx__ReduceSum.html>

use std::any::Any;
use std::sync::Arc;

use kernel::Cpu;
use kernel::reduce::{self as kernels, Reduce as How};

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::Walk;
use crate::ops::family::family;
use crate::ops::number::{Number, by_type, map};
use crate::tensor::count;
use crate::{Attr, Attrs, DType, Dim, Element, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// Which axes are reduced, and what becomes of them.
#[derive(Clone, Debug)]
struct Axes {
    /// The attribute of older versions.
    list: Option<Vec<i64>>,
    /// Reduced axes stay, of size 1.
    keep: bool,
    /// No axes named means none, else all.
    none: bool,
}

/// A reduction over axes: an attribute before version 13 (of the sum) or 18 (of the others), an input since.
#[derive(Debug)]
pub struct Reduce {
    how: How,
    axes: Axes,
}

/// Repeats the first input, reduced over the axes, to the shape of the second; with `mean`, divided by how often.
#[derive(Debug)]
pub struct Spread {
    axes: Axes,
    mean: bool,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples;
    "ReduceSum" 1, "ReduceMean" 1, "ReduceMax" 1, "ReduceMin" 1, "ReduceProd" 1, "ReduceSumSquare" 1, "ReduceL1" 1,
    "ReduceL2" 1, "ReduceLogSum" 1, "ReduceLogSumExp" 1);

/// In the order of [`DEFS`].
const HOW: [How; 10] = [
    How::Sum,
    How::Mean,
    How::Max,
    How::Min,
    How::Prod,
    How::SumSquares,
    How::SumAbs,
    How::Norm,
    How::LogSum,
    How::LogSumExp,
];

pub(crate) static SPREAD: &[OpDef] = &[OpDef {
    name: "Spread",
    domain: "lessen",
    since: 1,
    read: |r| Ok(Arc::new(Spread { axes: Axes::read(r)?, mean: r.attrs.flag_or("mean", false)? })),
    samples: || {
        let op = |list: &[i64], keep, mean| Spread {
            axes: Axes { list: Some(list.to_vec()), keep, none: false },
            mean,
        };
        vec![
            Sample::new(op(&[1], false, false), vec![ramp(&[2, 4]), ramp(&[2, 3, 4])]),
            Sample::new(op(&[0, 2], true, true), vec![ramp(&[1, 3, 1]), ramp(&[2, 3, 4])]),
        ]
    },
}];

fn named(name: &str) -> Result<How> {
    let at = DEFS.iter().position(|d| d.name == name);
    at.map(|at| HOW[at]).ok_or_else(|| Error::unsupported(format!("reduction {name}")))
}

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Reduce { how: named(name)?, axes: Axes::read(r)? }))
}

fn samples(name: &str) -> Vec<Sample> {
    let Ok(how) = named(name) else { return Vec::new() };
    let op = |list: Option<&[i64]>, keep, none| Reduce {
        how,
        axes: Axes { list: list.map(<[i64]>::to_vec), keep, none },
    };
    let x = Tensor::new(&[2, 3, 2], &[0.3f32, 1.4, 0.9, 2.2, 0.55, 1.0, 1.8, 0.7, 2.6, 3.0, 1.25, 0.15]);
    let x = x.unwrap_or_else(|_| ramp(&[2, 3, 2]));
    let grads: &[usize] = if how == How::Prod { &[] } else { &[0] };
    let mut samples = vec![
        Sample::new(op(Some(&[1]), true, false), vec![x.clone()]).grads(grads),
        Sample::new(op(Some(&[-1, 0]), false, false), vec![x.clone()]).grads(grads),
        Sample::new(op(None, false, false), vec![x.clone(), Tensor::vector(&[1i64, 2])]).grads(grads),
        Sample::new(op(None, true, true), vec![x.clone()]).grads(grads),
        Sample::new(op(None, true, false), vec![x.clone()]),
        Sample::new(op(None, true, false), vec![ramp(&[2, 0, 4]), Tensor::vector(&[1i64])]),
    ];
    if how != How::LogSum && how != How::LogSumExp {
        samples.push(Sample::new(op(Some(&[0]), false, false), vec![Tensor::vector(&[3i64, -4, 0])]));
    }
    samples
}

impl Axes {
    fn read(r: &Reader) -> Result<Axes> {
        Ok(Axes {
            list: r.attrs.opt_ints("axes")?,
            keep: r.attrs.flag_or("keepdims", true)?,
            none: r.attrs.flag_or("noop_with_empty_axes", false)?,
        })
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().maybe("axes", self.list.clone().map(Attr::Ints));
        let attrs = attrs.maybe("keepdims", (!self.keep).then_some(Attr::Int(0)));
        attrs.maybe("noop_with_empty_axes", self.none.then_some(Attr::Int(1)))
    }

    /// The axes as sorted indices, given the input that names them, if there is one.
    fn of(&self, rank: usize, input: Option<&[i64]>) -> Result<Vec<usize>> {
        match input.or(self.list.as_deref()).unwrap_or(&[]) {
            [] if self.none => Ok(Vec::new()),
            [] => Ok((0..rank).collect()),
            list => infer::axes(list, rank),
        }
    }

    /// The shape that remains.
    fn reduce<T: Clone>(&self, shape: &[T], axes: &[usize], one: T) -> Vec<T> {
        let sizes = shape.iter().enumerate().filter(|(i, _)| self.keep || !axes.contains(i));
        sizes.map(|(i, d)| if axes.contains(&i) { one.clone() } else { d.clone() }).collect()
    }
}

impl Reduce {
    fn numbers<T: Number>(&self, x: &Tensor, dims: [usize; 3], shape: &[usize]) -> Result<Tensor> {
        let [_, axis, inner] = dims;
        let x = x.as_slice::<T>()?;
        Tensor::build(shape, |out: &mut [T]| {
            for (i, o) in out.iter_mut().enumerate() {
                let start = i / inner * axis * inner + i % inner;
                let along = (0..axis).map(|k| x[start + k * inner]);
                *o = match T::IS_FLOAT {
                    true => T::from_f64(float(self.how, along.map(T::to_f64))),
                    false => int::<T>(self.how, along),
                };
            }
            Ok(())
        })
    }
}

fn float(how: How, x: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let beyond = |a: f64, b: f64, better: bool| if better || b.is_nan() { b } else { a };
    match how {
        How::Sum => x.sum(),
        How::Mean => x.clone().sum::<f64>() / x.len() as f64,
        How::Max => x.fold(f64::NEG_INFINITY, |a, b| beyond(a, b, b > a)),
        How::Min => x.fold(f64::INFINITY, |a, b| beyond(a, b, b < a)),
        How::Prod => x.product(),
        How::SumSquares => x.map(|v| v * v).sum(),
        How::SumAbs => x.map(f64::abs).sum(),
        How::Norm => x.map(|v| v * v).sum::<f64>().sqrt(),
        How::LogSum => x.sum::<f64>().ln(),
        How::LogSumExp => {
            let top = x.clone().fold(f64::NEG_INFINITY, |a, b| beyond(a, b, b > a));
            let top = if top.is_infinite() { 0.0 } else { top };
            top + x.map(|v| (v - top).exp()).sum::<f64>().ln()
        }
    }
}

fn int<T: Number>(how: How, x: impl ExactSizeIterator<Item = T> + Clone) -> T {
    let wide = x.clone().map(T::to_i128);
    match how {
        How::Sum => T::from_i128(wide.sum()),
        How::Mean => T::from_i128(wide.sum::<i128>().checked_div(x.len() as i128).unwrap_or(0)),
        How::Max => x.reduce(|a, b| if b > a { b } else { a }).unwrap_or(T::from_f64(f64::NEG_INFINITY)),
        How::Min => x.reduce(|a, b| if b < a { b } else { a }).unwrap_or(T::from_f64(f64::INFINITY)),
        How::Prod => x.fold(T::from_i128(1), T::times),
        How::SumSquares => T::from_i128(wide.map(|v| v.wrapping_mul(v)).fold(0, i128::wrapping_add)),
        How::SumAbs => T::from_i128(wide.map(i128::abs).sum()),
        How::Norm | How::LogSum | How::LogSumExp => T::from_f64(float(how, x.map(T::to_f64))),
    }
}

/// A tensor and `[outer, axis, inner]`, such that reducing its middle axis reduces the given axes of `x`.
pub(crate) fn gathered(cpu: &Cpu, x: Tensor, axes: &[usize]) -> Result<(Tensor, [usize; 3])> {
    let shape = x.shape().to_vec();
    let size = |part: &[usize]| part.iter().product::<usize>();
    let long: Vec<usize> = axes.iter().copied().filter(|&a| shape[a] != 1).collect();
    let (Some(&first), Some(&last)) = (long.first(), long.last()) else {
        return Ok((x, [size(&shape), 1, 1]));
    };
    let other = |a: &usize| !long.contains(a) && shape[*a] != 1;
    if !(first..last).any(|a| other(&a)) {
        return Ok((x, [size(&shape[..first]), size(&shape[first..=last]), size(&shape[last + 1..])]));
    }
    let perm: Vec<usize> =
        (0..shape.len()).filter(|a| !axes.contains(a)).chain(axes.iter().copied()).collect();
    let turned: Vec<usize> = perm.iter().map(|&a| shape[a]).collect();
    let mut out = Tensor::zeros(x.dtype(), &turned)?;
    kernel::transpose::transpose(cpu, x.dtype().bits() / 8, x.bytes(), &shape, &perm, out.bytes_mut()?);
    let kept = size(&turned[..shape.len() - axes.len()]);
    let reduced = size(&turned[shape.len() - axes.len()..]);
    Ok((out, [kept, reduced, 1]))
}

impl Op for Reduce {
    fn def(&self) -> &'static OpDef {
        &DEFS[HOW.iter().position(|&h| h == self.how).unwrap_or(0)]
    }

    fn attrs(&self) -> Attrs {
        self.axes.attrs()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let list = inputs.get(1).map(|_| inputs.ints(1));
        let shape = match (x.shape(), list) {
            (Some(shape), Some(Some(list))) => {
                Some(self.axes.reduce(shape, &self.axes.of(shape.len(), Some(&list))?, Dim::Is(1)))
            }
            (Some(shape), None) => {
                Some(self.axes.reduce(shape, &self.axes.of(shape.len(), None)?, Dim::Is(1)))
            }
            (Some(shape), Some(None)) if self.axes.keep => Some(vec![Dim::Unknown; shape.len()]),
            _ => None,
        };
        let whole = x.rank() == Some(1) && shape.as_ref().is_some_and(|s| s.iter().all(|d| *d == Dim::Is(1)));
        let ints = x.ints.as_ref().filter(|_| whole && !self.axes.none).and_then(|v| match self.how {
            How::Prod => Some(vec![Dim::product(v)]),
            How::Sum => Some(vec![v.iter().fold(Dim::Is(0), |a, b| a.plus(b))]),
            _ => None,
        });
        Ok(vec![Fact::maybe(x.dtype(), shape).with_ints(ints)])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let axes = self.axes.of(x.rank(), inputs.ints(1)?.as_deref())?;
        let shape = self.axes.reduce(x.shape(), &axes, 1);
        let dtype = x.dtype();
        let (x, dims) = gathered(cx.cpu, x, &axes)?;
        fn numbers<T: Number>(op: &Reduce, x: &Tensor, dims: [usize; 3], shape: &[usize]) -> Result<Tensor> {
            op.numbers::<T>(x, dims, shape)
        }
        let out = match (dtype, self.how) {
            (DType::F32, how) => Tensor::build(&shape, |out| {
                kernels::reduce(cx.cpu, how, x.as_slice()?, dims, out);
                Ok(())
            })?,
            (DType::Bool, How::Max | How::Min) => {
                let bytes = self.numbers::<u8>(&x.reinterpreted(DType::U8)?, dims, &shape)?;
                map::<u8>(bytes, |b| b.min(1))?.reinterpreted(DType::Bool)?
            }
            _ => by_type!(dtype, numbers(self, &x, dims, &shape))?,
        };
        Ok(vec![out])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, y, dy) = (cx.input(0)?, cx.output(0)?, cx.grad()?);
        let axes = cx.inputs.get(1).copied().flatten();
        let spread = |cx: &mut GradCx, v, mean| {
            let inputs: Vec<ValueId> = [v, x].into_iter().chain(axes).collect();
            cx.graph.add_op("grad", Spread { axes: self.axes.clone(), mean }, &inputs)
        };
        let d = spread(cx, dy, self.how == How::Mean)?;
        let dx = match self.how {
            How::Sum | How::Mean => d,
            How::Max | How::Min => {
                // Those that are the largest share the gradient.
                let top = spread(cx, y, false)?;
                let hit = cx.equal(x, top)?;
                let inputs: Vec<ValueId> = [hit].into_iter().chain(axes).collect();
                let hits =
                    cx.graph.add_op("grad", Reduce { how: How::Sum, axes: self.axes.clone() }, &inputs)?;
                let hits = spread(cx, hits, false)?;
                let share = cx.two("Div", d, hits)?;
                cx.two("Mul", share, hit)?
            }
            How::Prod => return Err(Error::unsupported("ReduceProd has no gradient")),
            How::SumSquares => {
                let twice = cx.two("Add", x, x)?;
                cx.two("Mul", d, twice)?
            }
            How::SumAbs => {
                let sign = cx.one("Sign", x)?;
                cx.two("Mul", d, sign)?
            }
            How::Norm => {
                let norm = spread(cx, y, false)?;
                let slope = cx.two("Div", x, norm)?;
                cx.two("Mul", d, slope)?
            }
            How::LogSum => {
                let log = spread(cx, y, false)?;
                let sum = cx.one("Exp", log)?;
                cx.two("Div", d, sum)?
            }
            How::LogSumExp => {
                let log = spread(cx, y, false)?;
                let rest = cx.two("Sub", x, log)?;
                let share = cx.one("Exp", rest)?;
                cx.two("Mul", d, share)?
            }
        };
        Ok(vec![Some(dx), None])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        self.axes.keep.then_some(())?;
        if cx.facts.get(1).is_some() {
            return Some(cx.first()?.with_ints(1, &cx.axes_input(1, 0)?));
        }
        let list = match &self.axes.list {
            Some(list) => Some(cx.axes(list)?),
            None => None,
        };
        Some(cx.first()?.by(Reduce { how: self.how, axes: Axes { list, ..self.axes.clone() } }))
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<crate::Axes> {
        let rank = inputs.rank(0)?;
        let named = match inputs.get(1) {
            Some(_) => Some(inputs.ints(1)?),
            None => None,
        };
        let gone = self.axes.of(rank, named.as_deref()).ok()?;
        let kept = (0..rank).filter(|a| !gone.contains(a)).enumerate();
        let mut axes = crate::Axes::new();
        axes.along(kept.map(|(at, a)| (a, if self.axes.keep { a } else { at })));
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for Spread {
    fn def(&self) -> &'static OpDef {
        &SPREAD[0]
    }

    fn attrs(&self) -> Attrs {
        self.axes.attrs().maybe("mean", self.mean.then_some(Attr::Int(1)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 1, inputs.dtype(0))
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn spread<T: Number + Element>(x: &Tensor, shape: &[usize], by: f64) -> Result<Tensor> {
            let walk = Walk::new(x.shape(), shape)?;
            let blank = vec![(); count(shape)?];
            Tensor::build(shape, |out: &mut [T]| {
                walk.apply(x.as_slice::<T>()?, &blank, out, |v, ()| {
                    if by == 1.0 { v } else { T::from_f64(v.to_f64() / by) }
                });
                Ok(())
            })
        }
        let x = inputs.take(0)?;
        let shape = inputs.need(1)?.shape().to_vec();
        let axes = self.axes.of(shape.len(), inputs.ints(2)?.as_deref())?;
        let kept = Axes { keep: true, ..self.axes.clone() }.reduce(&shape, &axes, 1);
        let times: usize = axes.iter().map(|&a| shape[a]).product();
        let x = x.reshaped(&kept)?;
        Ok(vec![by_type!(x.dtype(), spread(&x, &shape, if self.mean { times as f64 } else { 1.0 }))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
