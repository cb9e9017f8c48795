//! `GridSample`, `AffineGrid`: images read at the places that a grid names.
//! <https://onnx.ai/onnx/operators/onnx__GridSample.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::cells::{advance, steps};
use crate::ops::number::{Number, by_type};
use crate::ops::shape::sizes;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// `GridSample`: images (of any number of axes) at the places of a grid, each axis of which is -1..1.
#[derive(Debug)]
pub struct GridSample {
    attrs: Attrs,
    mode: Mode,
    border: Border,
    corners: bool,
}

/// `AffineGrid`: the grid of an affine map.
#[derive(Debug)]
pub struct AffineGrid {
    attrs: Attrs,
    corners: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Linear,
    Nearest,
    Cubic,
}

/// What lies beyond the borders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Border {
    Zeros,
    Edge,
    Reflection,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "GridSample",
        16,
        |r| {
            let mode = match r.attrs.text_or("mode", "linear")? {
                "linear" | "bilinear" => Mode::Linear,
                "nearest" => Mode::Nearest,
                "cubic" | "bicubic" => Mode::Cubic,
                other => return Err(Error::invalid(format!("there is no mode {other:?}"))),
            };
            let border = match r.attrs.text_or("padding_mode", "zeros")? {
                "zeros" => Border::Zeros,
                "border" => Border::Edge,
                "reflection" => Border::Reflection,
                other => return Err(Error::invalid(format!("there is no padding_mode {other:?}"))),
            };
            let corners = r.attrs.flag_or("align_corners", false)?;
            Ok(Arc::new(GridSample { attrs: r.attrs.clone(), mode, border, corners }))
        },
        || {
            let of = |mode, border| {
                let attrs = Attrs::new().text("mode", mode).text("padding_mode", border);
                Sample::read(&DEFS[0], attrs, vec![ramp(&[1, 2, 3, 4]), ramp(&[1, 2, 3, 2])])
            };
            vec![of("linear", "zeros"), of("nearest", "border"), of("cubic", "reflection")]
        },
    ),
    OpDef::onnx(
        "AffineGrid",
        20,
        |r| {
            let corners = r.attrs.flag_or("align_corners", false)?;
            Ok(Arc::new(AffineGrid { attrs: r.attrs.clone(), corners }))
        },
        || {
            let of = |attrs, theta: &[usize], size: &[i64]| {
                Sample::read(&DEFS[1], attrs, vec![ramp(theta), Tensor::vector(size)])
            };
            vec![
                of(Attrs::new(), &[1, 2, 3], &[1, 2, 3, 4]),
                of(Attrs::new().int("align_corners", 1), &[2, 3, 4], &[2, 1, 2, 3, 2]),
            ]
        },
    ),
];

/// One axis of an image.
struct Axis {
    size: usize,
    step: usize,
    low: f64,
    high: f64,
}

impl Axis {
    fn reflect(&self, x: f64) -> f64 {
        let span = self.high - self.low;
        if span <= 0.0 {
            return self.low;
        }
        let folded = (x - self.low).rem_euclid(2.0 * span);
        self.low + folded.min(2.0 * span - folded)
    }
}

impl GridSample {
    /// Neighbours on an axis of the place `at` (-1..1), with their weights.
    fn taps(&self, axis: &Axis, at: f64, taps: &mut Vec<(Option<usize>, f64)>) {
        let size = axis.size as f64;
        let x = if self.corners { (at + 1.0) / 2.0 * (size - 1.0) } else { ((at + 1.0) * size - 1.0) / 2.0 };
        let mut x = x.clamp(-1e15, 1e15);
        if self.mode == Mode::Nearest {
            x = x.round_ties_even();
        }
        // A cubic keeps its place: only its neighbours are moved in.
        if self.mode != Mode::Cubic && (x < axis.low || x > axis.high) {
            x = match self.border {
                Border::Zeros => x,
                Border::Edge => x.clamp(0.0, size - 1.0),
                Border::Reflection => axis.reflect(x),
            };
        }
        let place = |i: f64| match self.border {
            Border::Zeros => (i >= 0.0 && i < size).then_some(i as usize * axis.step),
            Border::Edge => Some(i.clamp(0.0, size - 1.0) as usize * axis.step),
            Border::Reflection => Some(axis.reflect(i).clamp(0.0, size - 1.0) as usize * axis.step),
        };
        let (base, t) = (x.floor(), x - x.floor());
        taps.clear();
        match self.mode {
            Mode::Nearest => taps.push((place(x.trunc()), 1.0)),
            Mode::Linear => taps.extend([(place(base), 1.0 - t), (place(base + 1.0), t)]),
            Mode::Cubic => {
                const A: f64 = -0.75;
                let near = |d: f64| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
                let far = |d: f64| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
                let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
                taps.extend(weights.iter().enumerate().map(|(k, &w)| (place(base + k as f64 - 1.0), w)));
            }
        }
    }

    fn sample<T: Number>(&self, x: &Tensor, grid: &[f32], out: &[usize]) -> Result<Tensor> {
        let image = &x.shape()[2..];
        let pixels: usize = image.iter().product();
        let axes: Vec<Axis> = image
            .iter()
            .zip(steps(image))
            .map(|(&size, step)| {
                let half = if self.corners { 0.0 } else { 0.5 };
                Axis { size, step, low: -half, high: size as f64 - 1.0 + half }
            })
            .collect();
        let places: usize = out[2..].iter().product();
        let channels = out[1];
        let from = x.as_slice::<T>()?;
        Tensor::build(out, |to: &mut [T]| {
            let mut own = vec![Vec::new(); axes.len()];
            let mut all: Vec<(usize, f64)> = Vec::new();
            for (i, at) in grid.chunks_exact(axes.len()).enumerate().take(out[0] * places) {
                let (batch, place) = (i / places, i % places);
                // The grid names the innermost axis first.
                for ((axis, &at), taps) in axes.iter().zip(at.iter().rev()).zip(&mut own) {
                    self.taps(axis, f64::from(at), taps);
                }
                all.clear();
                all.push((0, 1.0));
                for taps in &own {
                    let pairs = all.iter().flat_map(|&(base, w)| {
                        taps.iter().filter_map(move |&(at, v)| Some((base + at?, w * v)))
                    });
                    all = pairs.collect();
                }
                for channel in 0..channels {
                    let base = (batch * channels + channel) * pixels;
                    let sum: f64 = all.iter().map(|&(at, w)| from[base + at].to_f64() * w).sum();
                    to[(batch * channels + channel) * places + place] = T::from_f64(sum);
                }
            }
            Ok(())
        })
    }
}

impl Op for GridSample {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, grid) = (inputs.need(0)?, inputs.need(1)?);
        let shape = match (x.shape(), grid.shape()) {
            (Some([n, c, ..]), Some([_, places @ .., _])) => {
                Some([&[n.clone(), c.clone()][..], places].concat())
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, grid) = (inputs.need(0)?, inputs.need(1)?);
        let (a, b) = (x.shape(), grid.shape());
        if a.len() < 3 || b.len() != a.len() || a[0] != b[0] || b[b.len() - 1] != a.len() - 2 {
            return Err(Error::invalid(format!("a grid of shape {b:?} for images of shape {a:?}")));
        }
        if a.len() > 6 {
            return Err(Error::unsupported(format!("GridSample on {} axes", a.len() - 2)));
        }
        let out = [&a[..2], &b[1..b.len() - 1]].concat();
        if a[2..].contains(&0) && !out.contains(&0) {
            return Err(Error::invalid(format!("cannot sample images of shape {a:?}")));
        }
        fn typed<T: Number>(op: &GridSample, x: &Tensor, grid: &[f32], out: &[usize]) -> Result<Tensor> {
            op.sample::<T>(x, grid, out)
        }
        let grid = grid.to_f32()?;
        Ok(vec![by_type!(x.dtype(), typed(self, x, &grid, &out))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for AffineGrid {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let shape = match inputs.need(1)?.ints.as_deref() {
            Some([n, _, places @ ..]) => {
                Some([&[n.clone()][..], places, &[Dim::from(places.len())]].concat())
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(inputs.dtype(0), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let theta = inputs.need(0)?;
        let size = sizes(&inputs.need(1)?.to_ints()?)?;
        let rank = size.len().saturating_sub(2);
        if !(2..=3).contains(&rank) || theta.shape() != [size[0], rank, rank + 1] {
            return Err(Error::invalid(format!("a map of shape {:?} for images {size:?}", theta.shape())));
        }
        let dtype = theta.dtype();
        let theta = cast(theta.clone(), DType::F64, true)?;
        let theta = theta.as_slice::<f64>()?;
        let image = &size[2..];
        let shape = [&[size[0]], image, &[rank]].concat();
        let place = |i: usize, n: usize| match (self.corners, n) {
            (true, 1) => 0.0,
            (true, n) => -1.0 + 2.0 * i as f64 / (n - 1) as f64,
            (false, n) => -1.0 + (2.0 * i as f64 + 1.0) / n as f64,
        };
        let grid = Tensor::build(&shape, |to: &mut [f64]| {
            let per: usize = image.iter().product();
            let mut index = vec![0; rank];
            for (i, out) in to.chunks_exact_mut(rank).enumerate() {
                let map = &theta[i / per.max(1) * rank * (rank + 1)..];
                for (row, out) in map.chunks_exact(rank + 1).zip(out) {
                    // The innermost axis is the first coordinate.
                    let at = index.iter().zip(image).rev().map(|(&i, &n)| place(i, n));
                    *out = row[rank] + at.zip(row).map(|(x, w)| x * w).sum::<f64>();
                }
                advance(&mut index, image);
            }
            Ok(())
        })?;
        Ok(vec![cast(grid, dtype, true)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against grid_sample of PyTorch.
    #[test]
    fn cubic_keeps_places_beyond_the_border() -> Result<()> {
        let op = GridSample { attrs: Attrs::new(), mode: Mode::Cubic, border: Border::Edge, corners: false };
        let image: Vec<f32> = (0..12u8).map(f32::from).collect();
        let found =
            op.sample::<f32>(&Tensor::new(&[1, 1, 3, 4], &image)?, &[-1.2, 0.3, 1.6, -0.9], &[1, 1, 1, 2])?;
        for (found, expected) in found.as_slice::<f32>()?.iter().zip([6.1769, 2.5564]) {
            assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
        }
        Ok(())
    }
}
