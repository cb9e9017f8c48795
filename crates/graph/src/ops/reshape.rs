//! The same elements in another shape: `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`.
//! <https://onnx.ai/onnx/operators/onnx__Reshape.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::{Place, Port::Output};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::shape::Shape;
use crate::{Attrs, Axes, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// Highest rank that inference follows.
pub(crate) const MAX_RANK: usize = 64;

/// Another shape for the same elements.
#[derive(Debug)]
pub struct Reshape {
    kind: Kind,
    attrs: Attrs,
    allow_zero: bool,
    axis: i64,
    axes: Option<Vec<i64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reshape,
    Flatten,
    Squeeze,
    Unsqueeze,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Reshape",
        5,
        |r| read(Kind::Reshape, r),
        || {
            let to =
                |shape: &[i64]| Sample::new(Reshape::new(), vec![ramp(&[2, 3, 4]), Tensor::vector(shape)]);
            let empty = vec![ramp(&[0, 3]), Tensor::vector(&[3i64, 0])];
            vec![
                to(&[4, 6]).grads(&[0]),
                to(&[0, -1]),
                to(&[-1]),
                Sample::read(&DEFS[0], Attrs::new().int("allowzero", 1), empty),
            ]
        },
    ),
    OpDef::onnx(
        "Flatten",
        1,
        |r| read(Kind::Flatten, r),
        || {
            let at = |attrs| Sample::read(&DEFS[1], attrs, vec![ramp(&[2, 3, 4])]);
            vec![
                at(Attrs::new()).grads(&[0]),
                at(Attrs::new().int("axis", -1)),
                at(Attrs::new().int("axis", 0)),
            ]
        },
    ),
    OpDef::onnx(
        "Squeeze",
        1,
        |r| read(Kind::Squeeze, r),
        || {
            let x = || ramp(&[1, 3, 1, 2]);
            vec![
                Sample::read(&DEFS[2], Attrs::new(), vec![x()]).grads(&[0]),
                Sample::read(&DEFS[2], Attrs::new(), vec![x(), Tensor::vector(&[-2i64])]),
                Sample::read(&DEFS[2], Attrs::new().ints("axes", &[0, 2]), vec![x()]),
                Sample::read(&DEFS[2], Attrs::new(), vec![Tensor::vector(&[7i64])]),
            ]
        },
    ),
    OpDef::onnx(
        "Unsqueeze",
        1,
        |r| read(Kind::Unsqueeze, r),
        || {
            vec![
                Sample::new(Reshape::unsqueeze(), vec![ramp(&[2, 3]), Tensor::vector(&[-1i64, 1])])
                    .grads(&[0]),
                Sample::read(&DEFS[3], Attrs::new().ints("axes", &[0]), vec![Tensor::scalar(3i64)]),
            ]
        },
    ),
];

fn read(kind: Kind, r: &Reader) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Reshape {
        kind,
        attrs: r.attrs.clone(),
        allow_zero: r.attrs.flag_or("allowzero", false)?,
        axis: r.attrs.int_or("axis", 1)?,
        axes: r.attrs.opt_ints("axes")?,
    }))
}

impl Reshape {
    fn of(kind: Kind) -> Reshape {
        Reshape { kind, attrs: Attrs::new(), allow_zero: false, axis: 1, axes: None }
    }

    /// `Reshape` to the shape that the second input holds.
    pub fn new() -> Reshape {
        Reshape::of(Kind::Reshape)
    }

    /// `Unsqueeze`, with the axes as second input.
    pub fn unsqueeze() -> Reshape {
        Reshape::of(Kind::Unsqueeze)
    }

    /// `Squeeze`, with the axes as second input.
    pub fn squeeze() -> Reshape {
        Reshape::of(Kind::Squeeze)
    }

    /// The new shape. `list` holds the second input's numbers, or the axes of the attribute. `None` when nothing
    /// is known.
    fn shape(&self, x: &[Dim], list: Option<&[Dim]>) -> Result<Option<Vec<Dim>>> {
        let ints = || list.map(|l| l.iter().map(Dim::int).collect::<Option<Vec<i64>>>());
        match self.kind {
            Kind::Reshape => list.map(|to| self.reshape(x, to)).transpose(),
            Kind::Flatten => {
                let at = if self.axis == x.len() as i64 { x.len() } else { infer::axis(self.axis, x.len())? };
                Ok(Some(vec![Dim::product(&x[..at]), Dim::product(&x[at..])]))
            }
            Kind::Squeeze => match ints() {
                None if x.iter().all(|d| matches!(d, Dim::Is(_))) => {
                    Ok(Some(x.iter().filter(|d| **d != Dim::Is(1)).cloned().collect()))
                }
                None | Some(None) => Ok(None),
                Some(Some(axes)) => {
                    let axes = infer::axes(&axes, x.len())?;
                    if let Some(&a) = axes.iter().find(|&&a| x[a].int().is_some_and(|n| n != 1)) {
                        return Err(Error::invalid(format!("axis {a} has size {}, not 1", x[a])));
                    }
                    let kept = x.iter().enumerate().filter(|(i, _)| !axes.contains(i));
                    Ok(Some(kept.map(|(_, d)| d.clone()).collect()))
                }
            },
            Kind::Unsqueeze => match ints() {
                None => Err(Error::invalid("Unsqueeze needs axes")),
                Some(None) => Ok(None),
                Some(Some(axes)) => {
                    let rank = x.len() + axes.len();
                    let axes = infer::axes(&axes, rank)?;
                    let mut rest = x.iter().cloned();
                    let size =
                        |i| if axes.contains(&i) { Dim::Is(1) } else { rest.next().unwrap_or_default() };
                    Ok(Some((0..rank).map(size).collect()))
                }
            },
        }
    }

    fn reshape(&self, x: &[Dim], to: &[Dim]) -> Result<Vec<Dim>> {
        let mut shape = Vec::new();
        let mut free = None;
        for (i, dim) in to.iter().enumerate() {
            shape.push(match dim {
                Dim::Is(0) if !self.allow_zero => x.get(i).cloned().ok_or_else(|| {
                    Error::invalid(format!("shape takes size {i} of an input of rank {}", x.len()))
                })?,
                Dim::Is(-1) if free.is_some() => {
                    return Err(Error::invalid("a shape may hold -1 only once"));
                }
                Dim::Is(-1) => {
                    free = Some(i);
                    Dim::Unknown
                }
                Dim::Is(n) if *n < 0 => return Err(Error::invalid(format!("{n} is no size"))),
                other => other.clone(),
            });
        }
        // Sizes that stand on both sides cancel out, whether they are known or named.
        let mut left: Vec<&Dim> = x.iter().collect();
        let mut right: Vec<&Dim> = Vec::new();
        for (_, dim) in shape.iter().enumerate().filter(|(i, _)| Some(*i) != free) {
            match left.iter().position(|l| l.same(dim)) {
                Some(at) => drop(left.swap_remove(at)),
                None => right.push(dim),
            }
        }
        // Of what is left on both sides, known numbers can be divided even where names stand beside them.
        let (known, names): (Vec<&Dim>, Vec<&Dim>) = left.iter().partition(|d| d.int().is_some());
        let want = Dim::product(right.iter().copied());
        let (known, names) = (Dim::product(known), Dim::product(names));
        let divides = matches!((known.int(), want.int()), (Some(a), Some(b)) if b != 0 && a % b == 0);
        let part = if divides { known.over(&want).times(&names) } else { Dim::Unknown };
        let have = known.times(&names);
        let wrong = || Error::invalid(format!("cannot reshape {have} elements into {want} (per part left)"));
        match (free, have.int(), want.int()) {
            (Some(_), Some(a), Some(b)) if b == 0 || a % b != 0 => return Err(wrong()),
            (Some(at), ..) => shape[at] = part,
            (None, Some(a), Some(b)) if a != b => return Err(wrong()),
            _ => {}
        }
        Ok(shape)
    }
}

impl Default for Reshape {
    fn default() -> Reshape {
        Reshape::new()
    }
}

impl Op for Reshape {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.kind as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let attr: Option<Vec<Dim>> = self.axes.as_ref().map(|a| a.iter().map(|&i| Dim::Is(i)).collect());
        let given = inputs.get(1);
        let list = match given {
            Some(fact) => fact.ints.clone(),
            None => attr,
        };
        let shape = match x.shape() {
            Some(dims) if given.is_none() || list.is_some() => self.shape(dims, list.as_deref())?,
            _ => None,
        };
        // Without the numbers of the second input, its length still tells the rank.
        let length = given.and_then(Fact::count).filter(|&n| n <= MAX_RANK);
        let rank = || match (self.kind, x.rank(), length) {
            (Kind::Reshape, _, Some(n)) => Some(n),
            (Kind::Squeeze, Some(r), Some(n)) => r.checked_sub(n),
            (Kind::Unsqueeze, Some(r), Some(n)) => r.checked_add(n),
            (Kind::Flatten, ..) => Some(2),
            _ => None,
        };
        let shape = shape.or_else(|| infer::unknown(rank()?));
        let ints = x.ints.clone().filter(|_| shape.as_ref().is_some_and(|s| s.len() <= 1));
        Ok(vec![Fact::maybe(x.dtype(), shape).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let list = match inputs.ints(1)? {
            Some(list) => Some(list),
            None => self.axes.clone(),
        };
        let list: Option<Vec<Dim>> = list.map(|l| l.into_iter().map(Dim::Is).collect());
        let dims: Vec<Dim> = x.shape().iter().map(|&n| n.into()).collect();
        let shape =
            self.shape(&dims, list.as_deref())?.ok_or_else(|| Error::invalid("input 1 is missing"))?;
        let sizes: Option<Vec<usize>> = shape.iter().map(Dim::size).collect();
        let sizes = sizes.ok_or_else(|| Error::invalid(format!("cannot reshape {:?}", x.shape())))?;
        Ok(vec![x.reshaped(&sizes)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        Ok(vec![Some(like(cx, dy, x)?)])
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        // Which axes go away then depends on their sizes.
        if self.kind == Kind::Squeeze && inputs.get(1).is_none() && self.axes.is_none() {
            return None;
        }
        let mut axes = Axes::reshaped(inputs.shape(0)?, outputs.first()?.shape()?);
        if self.kind == Kind::Reshape {
            // A number for each axis of the output, but for those that are taken over or follow from the rest.
            let given = inputs.get(1)?.ints.as_ref()?;
            let stated = given.iter().enumerate().filter(|(_, d)| !matches!(d, Dim::Is(i64::MIN..=0)));
            stated.for_each(|(i, _)| _ = axes.size(Place::Input(1, i), (Output(0), i)));
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Adds the nodes that bring `value` into the shape of `x`.
///
/// # Errors
/// When inference finds that they cannot fit.
pub(crate) fn like(cx: &mut GradCx, value: ValueId, x: ValueId) -> Result<ValueId> {
    let shape = cx.graph.add_op("grad_shape", Shape::new(), &[x])?;
    cx.graph.add_op("grad", Reshape::new(), &[value, shape])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infer(x: &[Dim], to: &[Dim]) -> Vec<Dim> {
        Reshape::new().reshape(x, to).unwrap()
    }

    #[test]
    fn named_sizes_survive() {
        let (n, t) = (Dim::named("batch"), Dim::named("sequence"));
        let x = [n.clone(), t.clone(), Dim::Is(768)];
        let heads = infer(&x, &[n.clone(), Dim::Is(-1), Dim::Is(12), Dim::Is(64)]);
        assert_eq!(heads, [n.clone(), t.clone(), Dim::Is(12), Dim::Is(64)]);
        assert_eq!(infer(&heads, &[Dim::Is(0), Dim::Is(0), Dim::Is(-1)]), x);
        assert_eq!(infer(&x, &[Dim::Is(-1), Dim::Is(768)]), [Dim::Unknown, Dim::Is(768)]);
        assert!(Reshape::new().reshape(&[Dim::Is(6)], &[Dim::Is(4), Dim::Is(-1)]).is_err());
        assert!(Reshape::new().reshape(&[Dim::Is(6)], &[Dim::Is(-2)]).is_err());
        assert!(Reshape::new().reshape(&[Dim::Is(6)], &[Dim::Is(3)]).is_err());
    }
}
