//! `Pad`: more elements at the borders, or fewer. <https://onnx.ai/onnx/operators/onnx__Pad.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::{
    Place,
    Port::{Input, Output},
};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::cells::{Cell, Strided, advance, build, by_cell, filled, moved, steps};
use crate::ops::unary::Unary;
use crate::tensor::count;
use crate::{Attr, Attrs, Axes, Dim, Error, Fact, Node, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// `Pad`. The pads are an attribute before version 11, an input from then on, and may then be for some axes only.
#[derive(Debug)]
pub struct Pad {
    attrs: Attrs,
    mode: Mode,
    pads: Option<Vec<i64>>,
    value: f32,
}

/// Where the elements beyond the borders come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

const MODES: [(&str, Mode); 4] =
    [("constant", Mode::Constant), ("reflect", Mode::Reflect), ("edge", Mode::Edge), ("wrap", Mode::Wrap)];

pub(crate) static DEFS: &[OpDef] = &[OpDef::onnx(
    "Pad",
    2,
    |r| {
        let name = r.attrs.text_or("mode", "constant")?;
        let mode = MODES.iter().find(|(n, _)| *n == name).map(|(_, m)| *m);
        Ok(Arc::new(Pad {
            attrs: r.attrs.clone(),
            mode: mode.ok_or_else(|| Error::invalid(format!("there is no mode {name:?}")))?,
            pads: r.attrs.opt_ints("pads")?,
            value: r.attrs.float_or("value", 0.0)?,
        }))
    },
    || {
        let of = |attrs, inputs| Sample::read(&DEFS[0], attrs, inputs);
        let pads = Tensor::vector(&[1i64, 0, 2, 1]);
        let cut = Tensor::vector(&[-1i64, 2, 0, -1]);
        let mut samples: Vec<Sample> = MODES
            .iter()
            .map(|(name, _)| of(Attrs::new().text("mode", name), vec![ramp(&[3, 4]), pads.clone()]))
            .collect();
        samples.extend([
            of(Attrs::new(), vec![ramp(&[3, 4]), cut, Tensor::scalar(9f32)]).grads(&[0]),
            of(
                Attrs::new(),
                vec![
                    ramp(&[3, 4]),
                    Tensor::vector(&[1i64, 1]),
                    Tensor::scalar(0f32),
                    Tensor::vector(&[-1i64]),
                ],
            )
            .grads(&[0]),
            of(Attrs::new().ints("pads", &[0, 1, 0, 1]).float("value", 2.0), vec![ramp(&[2, 3])]).grads(&[0]),
            of(Attrs::new(), vec![Tensor::vector(&[1i32, 2]), Tensor::vector(&[1i64, 1])]),
        ]);
        samples
    },
)];

/// What happens to one axis.
#[derive(Clone, Copy)]
struct Border {
    /// Elements of the input that stay: from, count.
    from: usize,
    kept: usize,
    /// Elements added before them, and the new size.
    before: usize,
    size: usize,
}

fn border(size: usize, begin: i64, end: i64) -> Result<Border> {
    let cut = |pad: i64| usize::try_from(pad.min(0).unsigned_abs()).unwrap_or(usize::MAX);
    let add = |pad: i64| pad.max(0) as usize;
    let from = cut(begin).min(size);
    let kept = (size - from).saturating_sub(cut(end));
    let missing = cut(begin).saturating_add(cut(end)).saturating_sub(size);
    let new = kept.checked_add(add(begin)).and_then(|n| n.checked_add(add(end)));
    match new {
        Some(new) if missing == 0 => Ok(Border { from, kept, before: add(begin), size: new }),
        _ => Err(Error::invalid(format!("pads {begin} and {end} do not fit size {size}"))),
    }
}

impl Mode {
    /// The element of the kept ones that stands at place `i` of the output.
    fn source(self, i: usize, b: &Border) -> usize {
        let (p, n) = (i as i64 - b.before as i64, b.kept as i64);
        let at = match self {
            Mode::Reflect if n > 1 => {
                let q = p.rem_euclid(2 * (n - 1));
                q.min(2 * (n - 1) - q)
            }
            Mode::Wrap => p.rem_euclid(n),
            _ => p.clamp(0, n - 1),
        };
        b.from + at as usize
    }
}

fn repeat_borders<T: Cell>(x: &Tensor, borders: &[Border], mode: Mode) -> Result<Tensor> {
    let from = T::of(x)?;
    let shape: Vec<usize> = borders.iter().map(|b| b.size).collect();
    let strides = steps(x.shape());
    build(x.dtype(), &shape, |to: &mut [T]| {
        if to.is_empty() {
            return Ok(());
        }
        let maps: Vec<Vec<usize>> = borders
            .iter()
            .zip(&strides)
            .map(|(b, s)| (0..b.size).map(|i| mode.source(i, b) * s).collect())
            .collect();
        let Some((last, outer)) = maps.split_last() else {
            to.clone_from_slice(from);
            return Ok(());
        };
        let mut index = vec![0; outer.len()];
        for row in to.chunks_exact_mut(last.len()) {
            let base: usize = index.iter().zip(outer).map(|(&i, m)| m[i]).sum();
            for (t, at) in row.iter_mut().zip(last) {
                *t = from[base + at].clone();
            }
            advance(&mut index, &shape[..outer.len()]);
        }
        Ok(())
    })
}

impl Pad {
    fn mode(&self) -> Mode {
        self.mode
    }

    fn apply(&self, x: Tensor, pads: &[i64], axes: &[usize], value: Option<&Tensor>) -> Result<Tensor> {
        if pads.len() != 2 * axes.len() {
            return Err(Error::invalid(format!("{} pads for {} axes", pads.len(), axes.len())));
        }
        let mut borders = x.shape().iter().map(|&n| border(n, 0, 0)).collect::<Result<Vec<_>>>()?;
        for (i, &axis) in axes.iter().enumerate() {
            borders[axis] = border(x.shape()[axis], pads[i], pads[axes.len() + i])?;
        }
        let shape: Vec<usize> = borders.iter().map(|b| b.size).collect();
        if self.mode() != Mode::Constant {
            if count(&shape)? > 0 && borders.iter().any(|b| b.kept == 0) {
                return Err(Error::invalid(format!("nothing to repeat in shape {:?}", x.shape())));
            }
            return moved(x, |x| by_cell!(x.dtype(), repeat_borders(x, &borders, self.mode())));
        }
        let kept: Vec<usize> = borders.iter().map(|b| b.kept).collect();
        let value = match value {
            Some(value) => value.clone(),
            None if self.value == 0.0 => Tensor::zeros(x.dtype(), &[])?,
            None => cast(Tensor::scalar(self.value), x.dtype(), true)?,
        };
        if value.dtype() != x.dtype() {
            return Err(Error::invalid(format!("a {} with pads of {}", x.dtype(), value.dtype())));
        }
        let whole = filled(x.dtype(), &shape, Some(&value))?;
        if count(&kept)? == 0 {
            return Ok(whole);
        }
        let part = |sizes: &[usize], start: fn(&Border) -> usize| {
            let strides = steps(sizes);
            let offset = borders.iter().zip(&strides).map(|(b, s)| start(b) * s).sum();
            Strided { offset, shape: kept.clone(), steps: strides.iter().map(|&s| s as isize).collect() }
        };
        let inner = if kept == x.shape() { x } else { part(x.shape(), |b| b.from).read(x)? };
        part(&shape, |b| b.before).write(whole, inner)
    }
}

impl Op for Pad {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let Some(dims) = x.shape() else { return Ok(vec![Fact::maybe(x.dtype(), None)]) };
        let fixed = self.pads.as_ref().map(|p| p.iter().map(|&n| Dim::Is(n)).collect::<Vec<_>>());
        let pads = fixed.or_else(|| inputs.get(1)?.ints.clone());
        let axes = match inputs.get(3) {
            Some(_) => match inputs.ints(3) {
                Some(list) => {
                    Some(list.iter().map(|&a| infer::axis(a, dims.len())).collect::<Result<Vec<_>>>()?)
                }
                None => None,
            },
            None => Some((0..dims.len()).collect()),
        };
        let mut shape = dims.to_vec();
        match (pads, axes) {
            (Some(pads), Some(axes)) if pads.len() == 2 * axes.len() => {
                for (i, &axis) in axes.iter().enumerate() {
                    shape[axis] = dims[axis].plus(&pads[i]).plus(&pads[axes.len() + i]);
                }
            }
            (Some(pads), Some(axes)) => {
                return Err(Error::invalid(format!("{} pads for {} axes", pads.len(), axes.len())));
            }
            (_, Some(axes)) => axes.into_iter().for_each(|a| shape[a] = Dim::Unknown),
            _ => shape.fill(Dim::Unknown),
        }
        Ok(vec![Fact::maybe(x.dtype(), Some(shape))])
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let pads = match &self.pads {
            Some(pads) => pads.clone(),
            None => inputs.need(1)?.to_ints()?,
        };
        let axes = match inputs.ints(3)? {
            Some(list) => {
                infer::axes(&list, x.rank())?;
                list.iter().map(|&a| infer::axis(a, x.rank())).collect::<Result<Vec<_>>>()?
            }
            None => (0..x.rank()).collect(),
        };
        Ok(vec![self.apply(x, &pads, &axes, inputs.get(2)?)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.mode() != Mode::Constant {
            return Err(Error::unsupported("the gradient of Pad in another mode than \"constant\""));
        }
        // What was added is cut away, and zeros stand where something was cut away.
        let dy = cx.grad()?;
        let node = match &self.pads {
            Some(pads) => {
                let back: Vec<i64> = pads.iter().map(|p| p.saturating_neg()).collect();
                let attrs = Attrs::new().with("pads", Attr::Ints(back.clone()));
                let pad = Pad { attrs, mode: self.mode, pads: Some(back), value: 0.0 };
                Node::new(Arc::new(pad), vec![Some(dy)])
            }
            None => {
                let pads = cx.input(1)?;
                let back = cx.graph.add_op("grad_pads", Unary::named("Neg")?, &[pads])?;
                let pad = Pad { attrs: Attrs::new(), mode: self.mode, pads: None, value: 0.0 };
                let axes = cx.inputs.get(3).copied().flatten();
                Node::new(Arc::new(pad), vec![Some(dy), Some(back), None, axes])
            }
        };
        let (_, outputs) = cx.graph.add_with_outputs("grad", node, 1, None)?;
        Ok(vec![Some(outputs[0])])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let all = match &self.pads {
            Some(pads) => pads.len() / 2,
            None => cx.order.len(),
        };
        Some(cx.first()?.with_ints(3, &cx.axes_input(3, all)?))
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let shape = inputs.shape(0)?;
        let pads = match inputs.get(1) {
            Some(_) => inputs.ints(1)?,
            None => self.pads.clone()?,
        };
        let named: Vec<usize> = match inputs.get(3) {
            Some(_) => inputs
                .ints(3)?
                .into_iter()
                .map(|a| infer::axis(a, shape.len()).ok())
                .collect::<Option<_>>()?,
            None => (0..shape.len()).collect(),
        };
        let n = named.len();
        let place = |i: usize| match inputs.get(1) {
            Some(_) => Place::Input(1, i),
            None => Place::Attrs("pads", i),
        };
        let mut axes = Axes::new();
        for (axis, dim) in shape.iter().enumerate() {
            let at = named.iter().position(|a| *a == axis);
            let [begin, end] = match at {
                Some(at) => [*pads.get(at)?, *pads.get(at + n)?],
                None => [0, 0],
            };
            match (at, dim.size(), usize::try_from(begin), usize::try_from(end)) {
                (_, _, Ok(0), Ok(0)) => _ = axes.along([(axis, axis)]),
                (Some(at), Some(size), Ok(begin), Ok(end)) if self.mode == Mode::Constant => {
                    let y = (Output(0), axis);
                    axes.part(((Input(0), axis), 0), (y, begin), size);
                    axes.count(place(at), y, 0..begin);
                    axes.count(place(at + n), y, begin + size..begin + size + end);
                }
                _ => {}
            }
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_repeat_as_numpy_has_them() {
        let x = Tensor::vector(&[1i64, 2, 3]);
        let pad = |mode| {
            let pad = Pad { attrs: Attrs::new(), mode, pads: None, value: 0.0 };
            pad.apply(x.clone(), &[3, 4], &[0], None).unwrap().to_ints().unwrap()
        };
        assert_eq!(pad(Mode::Constant), [0, 0, 0, 1, 2, 3, 0, 0, 0, 0]);
        assert_eq!(pad(Mode::Edge), [1, 1, 1, 1, 2, 3, 3, 3, 3, 3]);
        assert_eq!(pad(Mode::Wrap), [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(pad(Mode::Reflect), [2, 3, 2, 1, 2, 3, 2, 1, 2, 3]);
        assert!(border(2, -2, -1).is_err());
        assert!(border(2, i64::MAX, i64::MAX).is_err() || usize::BITS > 63);
    }
}
