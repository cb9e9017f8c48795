//! `Resize`, `Upsample`: images of another size, axis by axis. <https://onnx.ai/onnx/operators/onnx__Resize.html>

use std::any::Any;
use std::sync::Arc;

use crate::axes::{Place, Port::Output};
use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::cells::{Cell, build, by_cell, moved};
use crate::ops::shape::sizes;
use crate::tensor::count;
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned};

mod weights;

use weights::{Coordinate, Filter, Nearest, Taps};

/// Fewest elements that a thread computes in one go.
const MIN_TASK: usize = 1 << 14;

/// `Resize` and `Upsample`.
#[derive(Debug)]
pub struct Resize {
    line: usize,
    attrs: Attrs,
    filter: Filter,
    axes: Option<Vec<i64>>,
    /// The proportions stay: the sizes are upper bounds (true) or lower bounds.
    policy: Option<bool>,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Upsample",
        7,
        |r| read(0, r),
        || {
            let old = Attrs::new().with("scales", crate::Attr::Floats(vec![1.0, 2.0, 1.5]));
            let scales = Tensor::vector(&[1f32, 2.0, 3.0]);
            vec![
                Sample::read(&DEFS[0], old, vec![ramp(&[1, 2, 4])]),
                Sample::read(&DEFS[0], Attrs::new().text("mode", "linear"), vec![ramp(&[1, 2, 2]), scales]),
            ]
        },
    ),
    OpDef::onnx(
        "Resize",
        10,
        |r| read(1, r),
        || vec![Sample::read(&DEFS[1], Attrs::new(), vec![ramp(&[2, 4]), Tensor::vector(&[1f32, 0.6])])],
    ),
    OpDef::onnx(
        "Resize",
        11,
        |r| read(2, r),
        || {
            let of = |attrs, scales: Option<&[f32]>, sizes: Option<&[i64]>| {
                let inputs = vec![
                    Some(ramp(&[1, 2, 4, 5]).into()),
                    None,
                    scales.map(|s| Tensor::vector(s).into()),
                    sizes.map(|s| Tensor::vector(s).into()),
                ];
                Sample::of_data(&DEFS[2], attrs, inputs)
            };
            let mode = |mode| Attrs::new().text("mode", mode);
            let axes = mode("linear").ints("axes", &[3, -2]).text("keep_aspect_ratio_policy", "not_larger");
            vec![
                of(mode("nearest"), Some(&[1.0, 1.0, 2.0, 0.7]), None),
                of(mode("linear"), None, Some(&[1, 2, 7, 3])),
                of(mode("linear").int("antialias", 1), Some(&[1.0, 1.0, 0.6, 0.5]), None),
                of(mode("cubic").int("exclude_outside", 1), Some(&[1.0, 1.0, 1.5, 0.8]), None),
                of(axes, None, Some(&[10, 6])),
            ]
        },
    ),
];

fn read(line: usize, r: &Reader) -> Result<Arc<dyn Op>> {
    let a = r.attrs;
    let mode = a.text_or("mode", "nearest")?;
    // Before version 11 there was one way to place the pixels.
    let coordinate =
        if line < 2 { "asymmetric" } else { a.text_or("coordinate_transformation_mode", "half_pixel")? };
    let nearest = match line {
        2.. => Nearest::named(a.text_or("nearest_mode", "round_prefer_floor")?)?,
        _ => Nearest::Inward,
    };
    let kernel = match mode {
        "nearest" => weights::Kernel::Nearest(nearest),
        "linear" | "bilinear" => weights::Kernel::Linear,
        "cubic" => weights::Kernel::Cubic(a.float_or("cubic_coeff_a", -0.75)?),
        other => return Err(Error::invalid(format!("there is no mode {other:?}"))),
    };
    let policy = match a.text_or("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => None,
        "not_larger" => Some(true),
        "not_smaller" => Some(false),
        other => return Err(Error::invalid(format!("there is no keep_aspect_ratio_policy {other:?}"))),
    };
    let filter = Filter {
        kernel,
        coordinate: Coordinate::named(coordinate)?,
        antialias: a.flag_or("antialias", false)?,
        exclude_outside: a.flag_or("exclude_outside", false)?,
        extrapolation: a.float_or("extrapolation_value", 0.0)?,
    };
    Ok(Arc::new(Resize { line, attrs: a.clone(), filter, axes: a.opt_ints("axes")?, policy }))
}

/// How big the output is, and how much bigger than the input, for each axis.
struct Target {
    sizes: Vec<usize>,
    scales: Vec<f32>,
}

/// What the inputs say.
struct Given {
    scales: Option<Vec<f32>>,
    sizes: Option<Vec<i64>>,
    region: Option<Vec<f32>>,
}

impl Resize {
    fn axes(&self, rank: usize) -> Result<Vec<usize>> {
        match &self.axes {
            Some(list) => {
                infer::axes(list, rank)?;
                list.iter().map(|&a| infer::axis(a, rank)).collect()
            }
            None => Ok((0..rank).collect()),
        }
    }

    fn scaled(size: usize, scale: f32) -> Result<usize> {
        let new = (size as f64 * f64::from(scale)).floor();
        if scale > 0.0 && new < 4e18 {
            return Ok(new as usize);
        }
        Err(Error::invalid(format!("size {size} cannot be scaled by {scale}")))
    }

    fn target(&self, shape: &[usize], scales: Option<&[f32]>, sizes: Option<&[i64]>) -> Result<Target> {
        let axes = self.axes(shape.len())?;
        let given = scales.map(<[f32]>::len).or(sizes.map(<[i64]>::len));
        if given != Some(axes.len()) {
            return Err(Error::invalid(format!("scales or sizes for {} axes are needed", axes.len())));
        }
        let mut target = Target { sizes: shape.to_vec(), scales: vec![1.0; shape.len()] };
        if let Some(scales) = scales {
            for (&axis, &scale) in axes.iter().zip(scales) {
                target.sizes[axis] = Resize::scaled(shape[axis], scale)?;
                target.scales[axis] = scale;
            }
            return Ok(target);
        }
        let wanted = self::sizes(sizes.unwrap_or_default())?;
        let ratio = |(&axis, &size): (&usize, &usize)| size as f32 / shape[axis] as f32;
        let common = self.policy.map(|smallest| {
            let ratios = axes.iter().zip(&wanted).map(ratio);
            if smallest { ratios.fold(f32::INFINITY, f32::min) } else { ratios.fold(0.0, f32::max) }
        });
        for (&axis, &size) in axes.iter().zip(&wanted) {
            let (scale, size) = match common {
                // The sizes follow from the common scale, rounded half up.
                Some(scale) => (scale, (scale * shape[axis] as f32 + 0.5).floor() as usize),
                None => (ratio((&axis, &size)), size),
            };
            (target.scales[axis], target.sizes[axis]) = (scale, size);
        }
        Ok(target)
    }

    fn given(&self, inputs: &Inputs) -> Result<Given> {
        let floats = |i: usize| -> Result<Option<Vec<f32>>> {
            let list = inputs.get(i)?.filter(|t| !t.is_empty());
            list.map(|t| Ok(t.to_f32()?.into_owned())).transpose()
        };
        if self.line < 2 {
            let fixed = self.attrs.opt_floats("scales")?;
            let scales = if fixed.is_some() { fixed } else { floats(1)? };
            return Ok(Given { scales, sizes: None, region: None });
        }
        let sizes = inputs.ints(3)?.filter(|s| !s.is_empty());
        Ok(Given { scales: floats(2)?, sizes, region: floats(1)? })
    }
}

impl Op for Resize {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let Some(dims) = x.shape() else { return Ok(vec![Fact::maybe(x.dtype(), None)]) };
        let mut shape = vec![Dim::Unknown; dims.len()];
        let axes = self.axes(dims.len())?;
        for (axis, dim) in dims.iter().enumerate().filter(|(a, _)| !axes.contains(a)) {
            shape[axis] = dim.clone();
        }
        let wanted = inputs.get(3).filter(|_| self.line == 2 && self.policy.is_none());
        if let Some(list) = wanted.and_then(|f| f.ints.as_ref()).filter(|l| l.len() == axes.len()) {
            for (&axis, dim) in axes.iter().zip(list) {
                shape[axis] = dim.clone();
            }
        }
        if let (Some(scales), Some(sizes)) = (self.attrs.opt_floats("scales")?, x.sizes())
            && scales.len() == axes.len()
        {
            for (&axis, &scale) in axes.iter().zip(&scales) {
                shape[axis] = Resize::scaled(sizes[axis], scale)?.into();
            }
        }
        Ok(vec![Fact::maybe(x.dtype(), Some(shape))])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let given = self.given(&inputs)?;
        let x = inputs.take(0)?;
        let target = self.target(x.shape(), given.scales.as_deref(), given.sizes.as_deref())?;
        count(&target.sizes)?;
        let axes = self.axes(x.rank())?;
        let crops = self.filter.coordinate == Coordinate::Crop;
        let roi = given.region.filter(|_| crops);
        if crops && roi.as_ref().is_none_or(|r| r.len() != 2 * axes.len()) {
            return Err(Error::invalid("tf_crop_and_resize needs a region of interest"));
        }
        let mut taps = Vec::new();
        for axis in 0..x.rank() {
            let (old, new, scale) = (x.shape()[axis], target.sizes[axis], target.scales[axis]);
            let place = axes.iter().position(|&a| a == axis);
            let region = match (&roi, place) {
                (Some(r), Some(i)) => (r[i], r[axes.len() + i]),
                _ => (0.0, 1.0),
            };
            if place.is_none() || (old == new && scale == 1.0 && !crops) {
                continue;
            }
            if old == 0 && new > 0 {
                return Err(Error::invalid(format!("cannot resize shape {:?}", x.shape())));
            }
            // A plan has entries for each element of the axis, also when other axes are empty.
            if new > 1 << 28 {
                return Err(Error::unsupported(format!("resizing an axis to {new} elements")));
            }
            taps.push((axis, self.filter.taps(old, new, scale, region)));
        }
        if let weights::Kernel::Nearest(_) = self.filter.kernel
            && !crops
        {
            let picked = taps
                .into_iter()
                .try_fold(x, |x, (axis, taps)| moved(x, |x| by_cell!(x.dtype(), pick(x, axis, &taps))))?;
            return Ok(vec![picked]);
        }
        let dtype = x.dtype();
        let shape = x.shape().to_vec();
        let y = if dtype == DType::F64 {
            let mut y = x.values::<f64>()?.into_owned();
            let mut shape = shape;
            for (axis, taps) in taps {
                y = weights::resample(&y, &mut shape, axis, &taps)?;
            }
            Tensor::new(&shape, &y)?
        } else {
            let mut y = cast(x, DType::F32, true)?;
            for (axis, taps) in taps {
                y = resample(cx, &y, axis, &taps)?;
            }
            y
        };
        Ok(vec![match dtype.is_int() {
            true => cast(round(y)?, dtype, true)?,
            false => cast(y, dtype, true)?,
        }])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        // Scales, sizes and regions are listed in the order of the axes that are named.
        let all: Vec<i64> = (0..cx.order.len() as i64).collect();
        let axes = cx.axes(self.axes.as_deref().unwrap_or(&all))?;
        let attrs = self.attrs.clone().ints("axes", &axes);
        let (line, filter, policy) = (self.line, self.filter, self.policy);
        Some(cx.first()?.by(Resize { line, attrs, filter, axes: Some(axes), policy }))
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        // Axes of unchanged size can lose indices; so those that are images in all models there are stay.
        let (x, y) = (inputs.shape(0)?, outputs.first()?.shape()?);
        let named = self.axes(x.len()).ok()?;
        let mut axes = Axes::new();
        for a in (0..x.len().min(2)).filter(|&a| x[a].same(&y[a])) {
            axes.along([(a, a)]);
            if let (Some(i), Some(_)) = (named.iter().position(|n| *n == a), inputs.get(3)) {
                axes.size(Place::Input(3, i), (Output(0), a));
            }
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Integers come from the truncated result; halves of rounding noise are smoothed away first.
fn round(y: Tensor) -> Result<Tensor> {
    crate::ops::number::map::<f32>(y, |v| if (v - v.round()).abs() < 1e-4 { v.round() } else { v })
}

/// The slices of an axis that the first tap of each place names.
fn pick<T: Cell>(x: &Tensor, axis: usize, taps: &Taps) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    let (old, new) = (shape[axis], taps.len());
    shape[axis] = new;
    let inner: usize = shape[axis + 1..].iter().product();
    let from = T::of(x)?;
    build(x.dtype(), &shape, |to: &mut [T]| {
        if to.is_empty() {
            return Ok(());
        }
        for (o, out) in to.chunks_exact_mut(new * inner).enumerate() {
            let from = &from[o * old * inner..(o + 1) * old * inner];
            if inner == 1 {
                for (t, at) in out.iter_mut().zip(taps.firsts()) {
                    *t = from[at].clone();
                }
                continue;
            }
            for (row, at) in out.chunks_exact_mut(inner).zip(taps.firsts()) {
                row.clone_from_slice(&from[at * inner..(at + 1) * inner]);
            }
        }
        Ok(())
    })
}

/// Weighted sums along one axis.
fn resample(cx: &RunCx, x: &Tensor, axis: usize, taps: &Taps) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    let old = shape[axis];
    shape[axis] = taps.len();
    let inner: usize = shape[axis + 1..].iter().product();
    let (from_size, to_size) = (old * inner, taps.len() * inner);
    let from = x.as_slice::<f32>()?;
    Tensor::build(&shape, |to: &mut [f32]| {
        if !to.is_empty() {
            // As many planes a task as make it worth the hand-over.
            let planes = (MIN_TASK / to_size).max(1);
            cx.cpu.pool().for_chunks_mut(to, planes * to_size, |task, to| {
                let from = &from[task * planes * from_size..];
                for (from, to) in from.chunks_exact(from_size).zip(to.chunks_exact_mut(to_size)) {
                    weights::apply(from, to, inner, taps);
                }
            });
        }
        Ok(())
    })
}
