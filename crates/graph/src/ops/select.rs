<<<<<<< HEAD
//! `Where`: one of two tensors, element by element. <https://onnx.ai/onnx/operators/onnx__Where.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer::{self, broadcast_sizes};
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::broadcast::Walk;
use crate::{Attrs, DType, Dim, Element, Error, Fact, Op, Result, Tensor, ValueId};

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
=======
//! Elements by whether they hold: `NonZero`, `Compress`, `OneHot`, `Unique`.
//! <https://onnx.ai/onnx/operators/onnx__NonZero.html>

use std::any::Any;
use std::cmp::Ordering;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{advance, filled};
use crate::ops::gather::gather;
use crate::ops::number::{Number, by_type};
use crate::ops::scatter::{Reduction, put_runs};
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// `NonZero`: the indices of the elements that are not zero, a column each.
#[derive(Debug)]
pub struct NonZero;

/// `Compress`: the slices of an axis for which a condition holds; of all elements without an axis.
#[derive(Debug)]
pub struct Compress {
    attrs: Attrs,
    axis: Option<i64>,
}

/// `OneHot`: a new axis on which one element is on.
#[derive(Debug)]
pub struct OneHot {
    attrs: Attrs,
    axis: i64,
}

/// `Unique`: each element, or slice, once; where it stood first; which it is for each; how often.
#[derive(Debug)]
pub struct Unique {
    attrs: Attrs,
    axis: Option<i64>,
    sorted: bool,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "NonZero",
        9,
        |_| Ok(Arc::new(NonZero)),
        || vec![Sample::new(NonZero, vec![Tensor::vector(&[1i64, 0, 3])]), Sample::new(NonZero, vec![ramp(&[2, 2])])],
    ),
    OpDef::onnx(
        "Compress",
        9,
        |r| Ok(Arc::new(Compress { attrs: r.attrs.clone(), axis: r.attrs.opt_int("axis")? })),
        || {
            let of = |attrs| {
                let yes = Tensor::bools(&[2], &[false, true]).unwrap_or(Tensor::scalar(0u8));
                Sample::read(&DEFS[1], attrs, vec![ramp(&[3, 2]), yes])
            };
            vec![of(Attrs::new()), of(Attrs::new().int("axis", 0)), of(Attrs::new().int("axis", -1))]
        },
    ),
    OpDef::onnx(
        "OneHot",
        9,
        |r| Ok(Arc::new(OneHot { attrs: r.attrs.clone(), axis: r.attrs.int_or("axis", -1)? })),
        || {
            let of = |attrs| {
                let ids = Tensor::vector(&[0i64, -1, 7]);
                Sample::read(&DEFS[2], attrs, vec![ids, Tensor::scalar(4i64), Tensor::vector(&[1f32, 5.0])])
            };
            vec![of(Attrs::new()), of(Attrs::new().int("axis", 0))]
        },
    ),
    OpDef::onnx(
        "Unique",
        11,
        |r| {
            let (axis, sorted) = (r.attrs.opt_int("axis")?, r.attrs.flag_or("sorted", true)?);
            Ok(Arc::new(Unique { attrs: r.attrs.clone(), axis, sorted }))
        },
        || {
            let x = || Tensor::vector(&[3f32, 1.0, 3.0, 2.0]).reshaped(&[2, 2]).unwrap_or(ramp(&[1]));
            let of = |attrs| Sample::read(&DEFS[3], attrs, vec![x()]).outputs(4);
            vec![of(Attrs::new()), of(Attrs::new().int("sorted", 0)), of(Attrs::new().int("axis", 1))]
        },
    ),
];

/// Which elements are not zero.
fn truths(x: &Tensor) -> Result<Vec<bool>> {
    fn of<T: Number>(x: &Tensor) -> Result<Vec<bool>> {
        Ok(x.as_slice::<T>()?.iter().map(|v| *v != T::default()).collect())
    }
    match x.dtype() {
        DType::Bool => Ok(x.bytes().iter().map(|&b| b != 0).collect()),
        DType::String => Ok(x.as_strings()?.iter().map(|s| !s.is_empty()).collect()),
        _ => by_type!(x.dtype(), of(x)),
    }
}

impl Op for NonZero {
>>>>>>> o2
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
<<<<<<< HEAD
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
=======
        let rank = inputs.rank(0).map_or(Dim::Unknown, Dim::from);
        Ok(vec![Fact::tensor(DType::I64, vec![rank, Dim::Unknown])])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let truths = truths(x)?;
        let mut rows = vec![Vec::new(); x.rank()];
        let mut index = vec![0; x.rank()];
        for &yes in &truths {
            if yes {
                rows.iter_mut().zip(&index).for_each(|(row, &i)| row.push(i as i64));
            }
            advance(&mut index, x.shape());
        }
        let count = truths.iter().filter(|&&t| t).count();
        Ok(vec![Tensor::new(&[x.rank(), count], &rows.concat())?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for Compress {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let shape = match (self.axis, x.shape()) {
            (None, _) => Some(vec![Dim::Unknown]),
            (Some(axis), Some(dims)) => {
                let mut shape = dims.to_vec();
                shape[infer::axis(axis, dims.len())?] = Dim::Unknown;
                Some(shape)
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let held = truths(inputs.need(1)?)?;
        let x = inputs.take(0)?;
        let flat = x.len();
        let (x, axis) = match self.axis {
            Some(axis) => {
                let axis = infer::axis(axis, x.rank())?;
                (x, axis)
            }
            None => (x.reshaped(&[flat])?, 0),
        };
        let ids = held.iter().enumerate().filter(|(_, held)| **held).map(|(i, _)| i as i64);
        Ok(vec![gather(x, &Tensor::vector(&ids.collect::<Vec<_>>()), axis)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for OneHot {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let ids = inputs.need(0)?.shape();
        let depth = inputs.get(1).and_then(|f| f.ints.as_ref()).and_then(|v| v.first()).cloned();
        let shape = match ids {
            Some(dims) => {
                let mut shape = dims.to_vec();
                shape.insert(infer::axis(self.axis, dims.len() + 1)?, depth.unwrap_or_default());
                Some(shape)
            }
            None => None,
        };
        Ok(vec![Fact::maybe(inputs.dtype(2), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let whole = |t: &Tensor| -> Result<Vec<i64>> {
            match t.dtype().is_float() {
                true => Ok(t.to_f32()?.iter().map(|&v| v as i64).collect()),
                false => t.to_ints(),
            }
        };
        let ids = inputs.need(0)?;
        let depth = match whole(inputs.need(1)?)?.as_slice() {
            &[n] => usize::try_from(n).map_err(|_| Error::invalid(format!("a depth of {n}")))?,
            other => return Err(Error::invalid(format!("{} depths", other.len()))),
        };
        let values = inputs.need(2)?;
        if values.shape() != [2] {
            return Err(Error::invalid(format!("values of shape {:?}, not [2]", values.shape())));
        }
        let axis = infer::axis(self.axis, ids.rank() + 1)?;
        let mut shape = ids.shape().to_vec();
        shape.insert(axis, depth);
        let inner: usize = shape[axis + 1..].iter().product();
        let y = filled(values.dtype(), &shape, Some(values))?;
        let mut places = Vec::new();
        for (i, id) in whole(ids)?.into_iter().enumerate() {
            // Indices out of range leave all off.
            let id = if id < 0 { id.saturating_add(depth as i64) } else { id };
            if (0..depth as i64).contains(&id) {
                places.push((i / inner * depth + id as usize) * inner + i % inner);
            }
        }
        let on = gather(values.clone(), &Tensor::scalar(1i64), 0)?;
        let on = filled(values.dtype(), &[places.len()], Some(&on))?;
        Ok(vec![put_runs(y, on, &places, 1, Reduction::None)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The order of the rows of a tensor of shape [rows, n], numbered; rows that are equal share a number. NaNs are
/// last.
fn ranks(x: &Tensor, rows: usize) -> Result<Vec<usize>> {
    fn rank<T: PartialOrd>(all: &[T], rows: usize) -> Vec<usize> {
        let n = all.len() / rows.max(1);
        let row = |i: usize| &all[i * n..(i + 1) * n];
        let item = |a: &T, b: &T| {
            // Only NaN differs from itself.
            a.partial_cmp(b).unwrap_or_else(|| a.partial_cmp(a).is_none().cmp(&b.partial_cmp(b).is_none()))
        };
        let order = |a: usize, b: usize| {
            let pairs = row(a).iter().zip(row(b)).map(|(x, y)| item(x, y));
            pairs.into_iter().find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
        };
        let mut sorted: Vec<usize> = (0..rows).collect();
        sorted.sort_by(|&a, &b| order(a, b));
        let (mut ranks, mut next) = (vec![0; rows], 0);
        for (k, &i) in sorted.iter().enumerate() {
            if k > 0 && order(sorted[k - 1], i).is_ne() {
                next += 1;
            }
            ranks[i] = next;
        }
        ranks
    }
    fn typed<T: Number>(x: &Tensor, rows: usize) -> Result<Vec<usize>> {
        Ok(rank(x.as_slice::<T>()?, rows))
    }
    match x.dtype() {
        DType::String => Ok(rank(x.as_strings()?, rows)),
        DType::Bool => Ok(rank(x.bytes(), rows)),
        _ => by_type!(x.dtype(), typed(x, rows)),
    }
}

impl Op for Unique {
    fn def(&self) -> &'static OpDef {
        &DEFS[3]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let shape = match (self.axis, x.shape()) {
            (None, _) => Some(vec![Dim::Unknown]),
            (Some(axis), Some(dims)) => {
                let mut shape = dims.to_vec();
                shape[infer::axis(axis, dims.len())?] = Dim::Unknown;
                Some(shape)
            }
            _ => None,
        };
        let list = || Fact::tensor(DType::I64, vec![Dim::Unknown]);
        Ok(vec![Fact::maybe(x.dtype(), shape), list(), list(), list()])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let flat = x.len();
        let (x, axis) = match self.axis {
            Some(axis) => {
                let axis = infer::axis(axis, x.rank())?;
                (x, axis)
            }
            None => (x.reshaped(&[flat])?, 0),
        };
        let rows = x.shape()[axis];
        let order: Vec<usize> = [axis].into_iter().chain((0..x.rank()).filter(|&a| a != axis)).collect();
        let ranks = ranks(&super::transpose::transpose(cx.cpu, x.clone(), &order)?, rows)?;
        let count = ranks.iter().max().map_or(0, |m| m + 1);
        let mut first = vec![usize::MAX; count];
        let mut counts = vec![0i64; count];
        for (i, &r) in ranks.iter().enumerate() {
            first[r] = first[r].min(i);
            counts[r] += 1;
        }
        // Kept in sorted order, or in that in which they first stand.
        let mut kept: Vec<usize> = (0..count).collect();
        if !self.sorted {
            kept.sort_by_key(|&r| first[r]);
        }
        let mut number = vec![0i64; count];
        for (k, &r) in kept.iter().enumerate() {
            number[r] = k as i64;
        }
        let first: Vec<i64> = kept.iter().map(|&r| first[r] as i64).collect();
        let inverse: Vec<i64> = ranks.iter().map(|&r| number[r]).collect();
        let counts: Vec<i64> = kept.iter().map(|&r| counts[r]).collect();
        let first = Tensor::vector(&first);
        Ok(vec![gather(x, &first, axis)?, first, Tensor::vector(&inverse), Tensor::vector(&counts)])
>>>>>>> o2
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
