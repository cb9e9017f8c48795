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
        || {
            vec![
                Sample::new(NonZero, vec![Tensor::vector(&[1i64, 0, 3])]),
                Sample::new(NonZero, vec![ramp(&[2, 2])]),
            ]
        },
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
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
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

/// The shape of some slices of `x` along an axis, nobody knows how many; without an axis, of some of its elements.
fn some_of(x: &Fact, axis: Option<i64>) -> Result<Option<Vec<Dim>>> {
    Ok(match (axis, x.shape()) {
        (None, _) => Some(vec![Dim::Unknown]),
        (Some(axis), Some(dims)) => {
            let mut shape = dims.to_vec();
            shape[infer::axis(axis, dims.len())?] = Dim::Unknown;
            Some(shape)
        }
        _ => None,
    })
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
        let shape = some_of(x, self.axis)?;
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
        let shape = some_of(x, self.axis)?;
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
        if x.is_empty() && rows > 0 {
            return Err(Error::unsupported(format!(
                "unique slices of an empty tensor of shape {:?}",
                x.shape()
            )));
        }
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
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
