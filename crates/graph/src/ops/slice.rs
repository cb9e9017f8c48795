//! `Slice`: a part of a tensor, perhaps with steps, perhaps backwards; and `lessen.Unslice`, its gradient.
//! <https://onnx.ai/onnx/operators/onnx__Slice.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::{
    Place,
    Port::{Input, Output},
};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{Strided, steps};
use crate::{Attrs, Axes, Dim, Error, Fact, Node, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// A part of a tensor: `starts`, `ends`, `axes`, `steps` are attributes before version 10, inputs from then on.
#[derive(Clone, Debug)]
pub struct Slice {
    attrs: Attrs,
    fixed: Option<Bounds>,
}

/// `Unslice(dy, x, starts, ends, axes, steps)`: zeros of the shape of `x` with `dy` in the place of the slice.
#[derive(Debug)]
pub struct Unslice(Slice);

/// What to take.
#[derive(Clone, Debug)]
struct Bounds {
    starts: Vec<i64>,
    ends: Vec<i64>,
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Slice",
        1,
        |r| Ok(Arc::new(read(r.attrs)?)),
        || {
            let ints = |v: &[i64]| Tensor::vector(v);
            let slice = |inputs| Sample::read(&DEFS[0], Attrs::new(), inputs);
            let old = Attrs::new().ints("starts", &[0, -2]).ints("ends", &[1, 1000]).ints("axes", &[1, 0]);
            vec![
                slice(vec![ramp(&[4, 5]), ints(&[1]), ints(&[3])]).grads(&[0]),
                slice(vec![ramp(&[4, 5]), ints(&[-1]), ints(&[i64::MIN]), ints(&[1]), ints(&[-2])])
                    .grads(&[0]),
                slice(vec![Tensor::vector(&[5i64, 6, 7]), ints(&[1]), ints(&[i64::MAX])]),
                slice(vec![ramp(&[2, 3]), ints(&[5]), ints(&[9])]),
                Sample::read(&DEFS[0], old, vec![ramp(&[4, 5])]).grads(&[0]),
            ]
        },
    ),
    OpDef {
        name: "Unslice",
        domain: "lessen",
        since: 1,
        read: |r| Ok(Arc::new(Unslice(read(r.attrs)?))),
        samples: || {
            let ints = |v: &[i64]| Tensor::vector(v);
            let inputs = vec![ramp(&[2, 3]), ramp(&[4, 3]), ints(&[1]), ints(&[4]), ints(&[0]), ints(&[2])];
            vec![Sample::read(&DEFS[1], Attrs::new(), inputs).grads(&[0])]
        },
    },
];

fn read(attrs: &Attrs) -> Result<Slice> {
    let fixed = match (attrs.opt_ints("starts")?, attrs.opt_ints("ends")?) {
        (Some(starts), Some(ends)) => {
            Some(Bounds { starts, ends, axes: attrs.opt_ints("axes")?, steps: None })
        }
        _ => None,
    };
    Ok(Slice { attrs: attrs.clone(), fixed })
}

/// First index, number of elements and step on an axis of a known size, after numpy's rules.
fn range(size: usize, start: i64, end: i64, step: i64) -> (usize, usize, i64) {
    let n = size as i64;
    let (low, high) = if step < 0 { (-1, n - 1) } else { (0, n) };
    let place = |i: i64| if i < 0 { i.saturating_add(n) } else { i }.clamp(low, high);
    let (start, end) = (place(start), place(end));
    let span = if step < 0 { start - end } else { end - start };
    let count = if span <= 0 { 0 } else { (span as u64).div_ceil(step.unsigned_abs()) as usize };
    (start.max(0) as usize, count, step)
}

impl Bounds {
    /// (axis, start, end, step) of each axis that is cut.
    fn each(&self, rank: usize) -> Result<Vec<(usize, i64, i64, i64)>> {
        let n = self.starts.len();
        let lengths = [Some(&self.ends), self.axes.as_ref(), self.steps.as_ref()];
        if lengths.iter().flatten().any(|v| v.len() != n) {
            return Err(Error::invalid("starts, ends, axes and steps differ in length"));
        }
        let all: Vec<i64> = (0..n as i64).collect();
        let axes = self.axes.as_ref().unwrap_or(&all);
        infer::axes(axes, rank)?;
        (0..n)
            .map(|i| {
                let step = self.steps.as_ref().map_or(1, |s| s[i]);
                if step == 0 {
                    return Err(Error::invalid("a slice with step 0"));
                }
                Ok((infer::axis(axes[i], rank)?, self.starts[i], self.ends[i], step))
            })
            .collect()
    }

    fn part(&self, shape: &[usize]) -> Result<Strided> {
        let dense = steps(shape);
        let mut part =
            Strided { offset: 0, shape: shape.to_vec(), steps: dense.iter().map(|&s| s as isize).collect() };
        for (axis, start, end, step) in self.each(shape.len())? {
            let (first, count, step) = range(shape[axis], start, end, step);
            part.offset += if count == 0 { 0 } else { first * dense[axis] };
            part.shape[axis] = count;
            // With a single element the step does not matter, and may be too big to multiply.
            part.steps[axis] = if count > 1 { dense[axis] as isize * step as isize } else { 0 };
        }
        Ok(part)
    }

    fn size(dim: &Dim, start: i64, end: i64, step: i64) -> Dim {
        const FAR: i64 = i32::MAX as i64;
        if let Some(size) = dim.size() {
            return range(size, start, end, step).1.into();
        }
        let whole = (step == 1 && start == 0 && end >= FAR) || (step == -1 && start == -1 && end <= -FAR);
        if whole { dim.clone() } else { Dim::Unknown }
    }
}

impl Slice {
    /// The bounds that inputs from `at` on hold, or the attributes.
    fn bounds(&self, inputs: &Inputs, at: usize) -> Result<Bounds> {
        if let Some(fixed) = &self.fixed {
            return Ok(fixed.clone());
        }
        Ok(Bounds {
            starts: inputs.need(at)?.to_ints()?,
            ends: inputs.need(at + 1)?.to_ints()?,
            axes: inputs.ints(at + 2)?,
            steps: inputs.ints(at + 3)?,
        })
    }

    fn known(&self, inputs: &Facts) -> Option<Bounds> {
        if let Some(fixed) = &self.fixed {
            return Some(fixed.clone());
        }
        let optional = |i: usize| match inputs.get(i) {
            Some(_) => inputs.ints(i).map(Some),
            None => Some(None),
        };
        Some(Bounds {
            starts: inputs.ints(1)?,
            ends: inputs.ints(2)?,
            axes: optional(3)?,
            steps: optional(4)?,
        })
    }
}

impl Op for Slice {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let Some(dims) = x.shape() else { return Ok(vec![Fact::maybe(x.dtype(), None)]) };
        let mut shape = dims.to_vec();
        let Some(bounds) = self.known(inputs) else {
            let axes = inputs.ints(3).filter(|_| inputs.get(3).is_some());
            match axes {
                // Only these axes are cut.
                Some(axes) => {
                    infer::axes(&axes, dims.len())?.into_iter().for_each(|a| shape[a] = Dim::Unknown)
                }
                None => shape.fill(Dim::Unknown),
            }
            return Ok(vec![Fact::maybe(x.dtype(), Some(shape))]);
        };
        for (axis, start, end, step) in bounds.each(dims.len())? {
            shape[axis] = Bounds::size(&dims[axis], start, end, step);
        }
        let ints = match (&x.ints, dims.len()) {
            (Some(ints), 1) => {
                let part = bounds.part(&[ints.len()])?;
                let step = part.steps[0];
                let at = |i: usize| (part.offset as isize + i as isize * step) as usize;
                Some((0..part.shape[0]).filter_map(|i| ints.get(at(i)).cloned()).collect())
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), Some(shape)).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let part = self.bounds(&inputs, 1)?.part(x.shape())?;
        // Nothing is cut away: steps are as before, or of axes whose one element stays.
        let forward = part.steps.iter().zip(&part.shape).all(|(&s, &n)| s > 0 || n <= 1);
        if part.shape == x.shape() && forward {
            return Ok(vec![x]);
        }
        Ok(vec![part.read(x)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        let inputs = [Some(dy), Some(x)].into_iter().chain(cx.inputs.iter().copied().skip(1)).collect();
        let node = Node::new(Arc::new(Unslice(self.clone())), inputs);
        let (_, outputs) = cx.graph.add_with_outputs("grad", node, 1, None)?;
        Ok(vec![Some(outputs[0])])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        match &self.fixed {
            Some(bounds) => {
                let all: Vec<i64> = (0..bounds.starts.len() as i64).collect();
                let axes = cx.axes(bounds.axes.as_ref().unwrap_or(&all))?;
                let attrs = self.attrs.clone().ints("axes", &axes);
                Some(
                    cx.first()?
                        .by(Slice { attrs, fixed: Some(Bounds { axes: Some(axes), ..bounds.clone() }) }),
                )
            }
            None => {
                let count = cx.facts.shape(1)?.first()?.size()?;
                Some(cx.first()?.with_ints(3, &cx.axes_input(3, count)?))
            }
        }
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let shape = inputs.shape(0)?;
        let cut = self.known(inputs)?.each(shape.len()).ok()?;
        let place = |what: usize, i: usize| match &self.fixed {
            Some(_) => Place::Attrs(["starts", "ends"][what], i),
            None => Place::Input(1 + what, i),
        };
        let mut axes = Axes::new();
        axes.along((0..shape.len()).filter(|a| cut.iter().all(|c| c.0 != *a)).map(|a| (a, a)));
        for (i, &(axis, start, end, step)) in cut.iter().enumerate() {
            let Some(size) = shape[axis].size() else { continue };
            let (first, count, step) = range(size, start, end, step);
            if step != 1 {
                continue;
            }
            axes.part(((Input(0), axis), first), ((Output(0), axis), 0), count);
            if (first, count) != (0, size) || end < 0 {
                axes.count(place(0, i), (Input(0), axis), 0..first);
                axes.count(place(1, i), (Input(0), axis), 0..first + count);
            }
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for Unslice {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        self.0.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 1, inputs.dtype(0))
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let dy = inputs.take(0)?;
        let x = inputs.need(1)?;
        let part = self.0.bounds(&inputs, 2)?.part(x.shape())?;
        Ok(vec![part.write(Tensor::zeros(dy.dtype(), x.shape())?, dy)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let inputs = [Some(cx.grad()?)].into_iter().chain(cx.inputs.iter().copied().skip(2)).collect();
        let node = Node::new(Arc::new(self.0.clone()), inputs);
        let (_, outputs) = cx.graph.add_with_outputs("grad", node, 1, None)?;
        Ok(vec![Some(outputs[0]), None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn ranges_are_numpys() {
        assert_eq!(range(5, 1, 4, 2), (1, 2, 2));
        assert_eq!(range(5, -1, i64::MIN, -1), (4, 5, -1));
        assert_eq!(range(5, 10, -3, -1), (4, 2, -1));
        assert_eq!(range(5, 4, 2, 1).1, 0);
        assert_eq!(range(0, 0, 9, 1).1, 0);
        assert_eq!(range(0, -1, i64::MIN, -1).1, 0);
    }

    #[test]
    fn names_and_numbers_go_through() {
        let whole = Bounds::size(&Dim::named("n"), 0, i64::MAX, 1);
        assert_eq!(whole, Dim::named("n"));
        assert_eq!(Bounds::size(&Dim::named("n"), 1, i64::MAX, 1), Dim::Unknown);
        let x = Fact::tensor(DType::I64, vec![Dim::Is(3)]).with_ints(Some(vec![
            Dim::named("n"),
            Dim::Is(2),
            Dim::Unknown,
        ]));
        let (start, end) = (Fact::of(&Tensor::vector(&[0i64])), Fact::of(&Tensor::vector(&[2i64])));
        let slice = read(&Attrs::new()).unwrap();
        let found = slice.infer(&Facts::new(&[Some(&x), Some(&start), Some(&end)], 1)).unwrap();
        assert_eq!(found[0].ints, Some(vec![Dim::named("n"), Dim::Is(2)]));
    }
}
