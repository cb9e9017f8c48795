//! Elements written by index: `Scatter`, `ScatterElements`, `ScatterND`, `TensorScatter`.
//! <https://onnx.ai/onnx/operators/onnx__ScatterElements.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{Cell, by_cell, pack, spread};
use crate::ops::gather::{element_places, slice_places};
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, Error, Fact, Op, Result, Tensor};

/// `Scatter`, `ScatterElements`: along an axis, each element goes where its index points.
#[derive(Debug)]
pub struct Scatter {
    line: usize,
    axis: Option<i64>,
    reduction: Option<Reduction>,
}

/// `ScatterND`: slices go where index vectors point.
#[derive(Debug)]
pub struct ScatterNd {
    reduction: Option<Reduction>,
}

/// `TensorScatter`: a cache with new entries written from a given place on, for each batch.
#[derive(Debug)]
pub struct TensorScatter {
    attrs: Attrs,
    axis: i64,
    circular: bool,
}

/// What happens where an element is already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// It is replaced.
    None,
    /// Sum.
    Add,
    /// Product.
    Mul,
    /// The greater one stays.
    Max,
    /// The smaller one stays.
    Min,
}

const REDUCTIONS: [(&str, Reduction); 5] = [
    ("none", Reduction::None),
    ("add", Reduction::Add),
    ("mul", Reduction::Mul),
    ("max", Reduction::Max),
    ("min", Reduction::Min),
];

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Scatter",
        9,
        |r| Ok(Arc::new(Scatter { line: 0, axis: r.attrs.opt_int("axis")?, reduction: None })),
        || {
            let inputs = vec![ramp(&[4]), Tensor::vector(&[1i64, 3]), ramp(&[2])];
            vec![Sample::read(&DEFS[0], Attrs::new(), inputs)]
        },
    ),
    OpDef::onnx(
        "ScatterElements",
        11,
        |r| {
            let reduction = reduction(r.attrs)?;
            Ok(Arc::new(Scatter { line: 1, axis: r.attrs.opt_int("axis")?, reduction }))
        },
        || {
            let each = REDUCTIONS.into_iter().map(|(_, reduction)| {
                let ids = Tensor::vector(&[1i64, -1, 1]).reshaped(&[1, 3]).unwrap_or(Tensor::scalar(0i64));
                Sample::new(Scatter::new(1, reduction), vec![ramp(&[2, 4]), ids, ramp(&[1, 3])])
            });
            each.collect()
        },
    ),
    OpDef::onnx(
        "ScatterND",
        11,
        |r| Ok(Arc::new(ScatterNd { reduction: reduction(r.attrs)? })),
        || {
            let each = REDUCTIONS.into_iter().map(|(_, reduction)| {
                let ids = Tensor::vector(&[1i64, -1]).reshaped(&[2, 1]).unwrap_or(Tensor::scalar(0i64));
                Sample::new(ScatterNd::new(reduction), vec![ramp(&[4, 3]), ids, ramp(&[2, 3])])
            });
            each.collect()
        },
    ),
    OpDef::onnx(
        "TensorScatter",
        24,
        |r| {
            let circular = match r.attrs.text_or("mode", "linear")? {
                "linear" => false,
                "circular" => true,
                other => return Err(Error::invalid(format!("there is no mode {other:?}"))),
            };
            let axis = r.attrs.int_or("axis", -2)?;
            Ok(Arc::new(TensorScatter { attrs: r.attrs.clone(), axis, circular }))
        },
        || {
            let of = |attrs, inputs| Sample::read(&DEFS[3], attrs, inputs);
            let (cache, new) = (ramp(&[2, 1, 4, 3]), ramp(&[2, 1, 2, 3]));
            vec![
                of(Attrs::new(), vec![cache.clone(), new.clone()]),
                of(Attrs::new(), vec![cache.clone(), new.clone(), Tensor::vector(&[0i64, 2])]),
                of(Attrs::new().text("mode", "circular"), vec![cache, new, Tensor::vector(&[3i64, 1])]),
            ]
        },
    ),
];

fn reduction(attrs: &Attrs) -> Result<Option<Reduction>> {
    let Some(name) = attrs.opt_text("reduction")? else { return Ok(None) };
    let found = REDUCTIONS.iter().find(|(n, _)| *n == name);
    found.map(|(_, r)| Some(*r)).ok_or_else(|| Error::invalid(format!("there is no reduction {name:?}")))
}

fn with_reduction(attrs: Attrs, reduction: Option<Reduction>) -> Attrs {
    let name = REDUCTIONS.iter().find(|(_, r)| Some(*r) == reduction);
    attrs.maybe("reduction", name.map(|(n, _)| Attr::from(*n)))
}

/// Writes the runs of `n` elements of `updates` to these places of `x`, one after the other.
pub(crate) fn put_runs(
    x: Tensor,
    updates: Tensor,
    places: &[usize],
    n: usize,
    reduction: Reduction,
) -> Result<Tensor> {
    fn put<T: Cell>(x: &mut Tensor, updates: &Tensor, places: &[usize], n: usize) -> Result<()> {
        let (to, from) = (T::of_mut(x)?, T::of(updates)?);
        for (from, &at) in from.chunks_exact(n).zip(places) {
            to[at..at + n].clone_from_slice(from);
        }
        Ok(())
    }
    fn merge<T: Number>(
        mut x: Tensor,
        updates: &Tensor,
        places: &[usize],
        n: usize,
        how: Reduction,
    ) -> Result<Tensor> {
        let (to, from) = (x.as_mut_slice::<T>()?, updates.as_slice::<T>()?);
        for (from, &at) in from.chunks_exact(n).zip(places) {
            for (t, &v) in to[at..at + n].iter_mut().zip(from) {
                *t = match how {
                    Reduction::None => v,
                    Reduction::Add => t.plus(v),
                    Reduction::Mul => t.times(v),
                    Reduction::Max => {
                        if v > *t {
                            v
                        } else {
                            *t
                        }
                    }
                    Reduction::Min => {
                        if v < *t {
                            v
                        } else {
                            *t
                        }
                    }
                };
            }
        }
        Ok(x)
    }
    if updates.dtype() != x.dtype() || updates.len() != places.len() * n {
        return Err(Error::invalid(format!(
            "updates {}{:?} do not fit the indices, or the type of {}{:?}",
            updates.dtype(),
            updates.shape(),
            x.dtype(),
            x.shape()
        )));
    }
    if n == 0 {
        return Ok(x);
    }
    if reduction != Reduction::None {
        return by_type!(x.dtype(), merge(x, &updates, places, n, reduction));
    }
    let dtype = x.dtype();
    let (mut x, updates) = (spread(x)?, spread(updates)?);
    by_cell!(x.dtype(), put(&mut x, &updates, places, n))?;
    pack(dtype, x)
}

impl Scatter {
    /// `ScatterElements` along this axis.
    pub fn new(axis: i64, reduction: Reduction) -> Scatter {
        Scatter { line: 1, axis: Some(axis), reduction: Some(reduction) }
    }
}

impl Op for Scatter {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        with_reduction(Attrs::new().maybe("axis", self.axis.map(Attr::Int)), self.reduction)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, updates) = (inputs.take(0)?, inputs.take(2)?);
        let ids = inputs.need(1)?;
        if updates.shape() != ids.shape() {
            return Err(Error::invalid(format!(
                "{:?} indices for updates {:?}",
                ids.shape(),
                updates.shape()
            )));
        }
        let axis = infer::axis(self.axis.unwrap_or(0), x.rank())?;
        let places = element_places(x.shape(), ids, axis)?;
        Ok(vec![put_runs(x, updates, &places, 1, self.reduction.unwrap_or(Reduction::None))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl ScatterNd {
    /// `ScatterND`.
    pub fn new(reduction: Reduction) -> ScatterNd {
        ScatterNd { reduction: Some(reduction) }
    }
}

impl Op for ScatterNd {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        with_reduction(Attrs::new(), self.reduction)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, updates) = (inputs.take(0)?, inputs.take(2)?);
        let (places, n) = slice_places(x.shape(), inputs.need(1)?, 0)?;
        Ok(vec![put_runs(x, updates, &places, n, self.reduction.unwrap_or(Reduction::None))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for TensorScatter {
    fn def(&self) -> &'static OpDef {
        &DEFS[3]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, updates) = (inputs.take(0)?, inputs.take(1)?);
        let axis = infer::axis(self.axis, x.rank())?;
        let (old, new) = (x.shape(), updates.shape());
        if axis == 0 || new.len() != old.len() || (0..old.len()).any(|i| i != axis && old[i] != new[i]) {
            return Err(Error::invalid(format!("update of shape {new:?} does not fit cache {old:?}")));
        }
        if updates.is_empty() {
            return Ok(vec![x]);
        }
        let starts = inputs.ints(2)?.unwrap_or_else(|| vec![0; old[0]]);
        if starts.len() != old[0] {
            return Err(Error::invalid(format!("{} write indices for a batch of {}", starts.len(), old[0])));
        }
        let (size, count) = (old[axis], new[axis]);
        let n: usize = old[axis + 1..].iter().product();
        let per_batch: usize = old[1..axis].iter().product();
        let mut places = Vec::new();
        for (batch, &start) in starts.iter().enumerate() {
            let start = usize::try_from(start).map_err(|_| Error::invalid(format!("write index {start}")))?;
            if !self.circular && start.checked_add(count).is_none_or(|end| end > size) {
                return Err(Error::invalid(format!(
                    "{count} entries from {start} on exceed the cache of {size}"
                )));
            }
            for row in 0..per_batch {
                let base = (batch * per_batch + row) * size;
                places.extend((0..count).map(|i| (base + (start % size.max(1) + i) % size.max(1)) * n));
            }
        }
        Ok(vec![put_runs(x, updates, &places, n, Reduction::None)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
