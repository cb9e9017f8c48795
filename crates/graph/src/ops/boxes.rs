//! Operators of object detection: `NonMaxSuppression`, `RoiAlign`, `MaxRoiPool`.
//! <https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::gather::place;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// `NonMaxSuppression`: the best boxes of each class, without those that overlap a better one.
#[derive(Debug)]
pub struct NonMaxSuppression {
    attrs: Attrs,
    center: bool,
}

/// `RoiAlign`, `MaxRoiPool`: regions of images, each made into a grid of one size.
#[derive(Debug)]
pub struct RoiPool {
    line: usize,
    attrs: Attrs,
    size: [usize; 2],
    scale: f32,
    /// Samples of each bin along an axis; as many as pixels when zero.
    samples: usize,
    max: bool,
    half_pixel: bool,
}

fn align(r: &Reader, line: usize) -> Result<Arc<dyn Op>> {
    let a = r.attrs;
    let size = |name| positive(name, a.int_or(name, 1)?);
    let half_pixel = line == 2 && a.text_or("coordinate_transformation_mode", "half_pixel")? == "half_pixel";
    let max = match a.text_or("mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return Err(Error::invalid(format!("there is no mode {other:?}"))),
    };
    let samples = a.int_or("sampling_ratio", 0)?;
    Ok(Arc::new(RoiPool {
        line,
        attrs: a.clone(),
        size: [size("output_height")?, size("output_width")?],
        scale: a.float_or("spatial_scale", 1.0)?,
        samples: if samples == 0 { 0 } else { positive("sampling_ratio", samples)? },
        max,
        half_pixel,
    }))
}

fn positive(name: &str, n: i64) -> Result<usize> {
    let size = usize::try_from(n).ok().filter(|&n| n > 0 && n < 1 << 24);
    size.ok_or_else(|| Error::invalid(format!("{name} is {n}")))
}

fn regions() -> Vec<Tensor> {
    let boxes = Tensor::vector(&[0f32, 0.0, 3.0, 2.0, 1.0, 1.0, 4.0, 4.0]).reshaped(&[2, 4]);
    vec![ramp(&[1, 2, 5, 6]), boxes.unwrap_or(ramp(&[1])), Tensor::vector(&[0i64, 0])]
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "NonMaxSuppression",
        10,
        |r| {
            let center = r.attrs.flag_or("center_point_box", false)?;
            Ok(Arc::new(NonMaxSuppression { attrs: r.attrs.clone(), center }))
        },
        || {
            let of = |attrs| {
                let inputs =
                    vec![ramp(&[1, 5, 4]), ramp(&[1, 2, 5]), Tensor::scalar(3i64), Tensor::scalar(0.5f32)];
                Sample::read(&DEFS[0], attrs, inputs)
            };
            vec![of(Attrs::new()), of(Attrs::new().int("center_point_box", 1))]
        },
    ),
    OpDef::onnx(
        "RoiAlign",
        10,
        |r| align(r, 1),
        || vec![Sample::read(&DEFS[1], Attrs::new().int("output_width", 2), regions())],
    ),
    OpDef::onnx(
        "RoiAlign",
        16,
        |r| align(r, 2),
        || {
            let attrs = Attrs::new().int("output_height", 2).text("mode", "max").int("sampling_ratio", 2);
            vec![Sample::read(&DEFS[2], attrs, regions())]
        },
    ),
    OpDef::onnx(
        "MaxRoiPool",
        1,
        |r| {
            let size = match r.attrs.opt_ints("pooled_shape")?.as_deref() {
                Some(&[h, w]) => [positive("pooled_shape", h)?, positive("pooled_shape", w)?],
                _ => return Err(Error::invalid("pooled_shape must hold two sizes")),
            };
            let scale = r.attrs.float_or("spatial_scale", 1.0)?;
            let attrs = r.attrs.clone();
            Ok(Arc::new(RoiPool { line: 3, attrs, size, scale, samples: 0, max: true, half_pixel: false }))
        },
        || {
            let boxes = Tensor::vector(&[0f32, 0.0, 1.0, 3.0, 4.0]).reshaped(&[1, 5]);
            let inputs = vec![ramp(&[1, 2, 5, 6]), boxes.unwrap_or(ramp(&[1]))];
            vec![Sample::read(&DEFS[3], Attrs::new().ints("pooled_shape", &[2, 2]), inputs)]
        },
    ),
];

/// Intersection over union of two boxes (low, high on each axis).
fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let area = |b: &[f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    let common = side(0) * side(1);
    let union = area(a) + area(b) - common;
    if union > 0.0 { common / union } else { 0.0 }
}

impl NonMaxSuppression {
    fn corners(&self, b: &[f32]) -> [f32; 4] {
        match self.center {
            true => [b[0] - b[2] / 2.0, b[1] - b[3] / 2.0, b[0] + b[2] / 2.0, b[1] + b[3] / 2.0],
            // Any two opposite corners will do.
            false => [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])],
        }
    }
}

impl Op for NonMaxSuppression {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, _: &Facts) -> Result<Vec<Fact>> {
        Ok(vec![Fact::tensor(DType::I64, vec![Dim::Unknown, Dim::Is(3)])])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let number = |i: usize| -> Result<Option<f32>> {
            Ok(inputs.get(i)?.map(|t| t.to_f32()).transpose()?.and_then(|v| v.first().copied()))
        };
        let most = inputs.ints(2)?.and_then(|v| v.first().copied()).unwrap_or(0).max(0) as usize;
        let (limit, least) = (number(3)?.unwrap_or(0.0), number(4)?);
        let (boxes, scores) = (inputs.need(0)?, inputs.need(1)?);
        let (batch, classes, n) = match (boxes.shape(), scores.shape()) {
            (&[b, n, 4], &[b2, classes, n2]) if b == b2 && n == n2 => (b, classes, n),
            (b, s) => return Err(Error::invalid(format!("boxes of shape {b:?} with scores of shape {s:?}"))),
        };
        let (boxes, scores) = (boxes.to_f32()?, scores.to_f32()?);
        let mut picked: Vec<i64> = Vec::new();
        for (row, scores) in scores.chunks_exact(n.max(1)).enumerate().take(batch * classes) {
            let (b, class) = (row / classes, row % classes);
            let corners = |i: usize| self.corners(&boxes[(b * n + i) * 4..][..4]);
            let mut order: Vec<usize> = (0..n).filter(|&i| least.is_none_or(|l| scores[i] > l)).collect();
            order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
            let mut kept: Vec<[f32; 4]> = Vec::new();
            for i in order {
                if kept.len() >= most {
                    break;
                }
                let own = corners(i);
                if kept.iter().all(|other| overlap(&own, other) <= limit) {
                    kept.push(own);
                    picked.extend([b as i64, class as i64, i as i64]);
                }
            }
        }
        Ok(vec![Tensor::new(&[picked.len() / 3, 3], &picked)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The four pixels around a place, with their weights; nothing beyond the borders.
fn corners(y: f32, x: f32, height: usize, width: usize) -> [(usize, f32); 4] {
    if y < -1.0 || y > height as f32 || x < -1.0 || x > width as f32 || y.is_nan() || x.is_nan() {
        return [(0, 0.0); 4];
    }
    let split = |v: f32, size: usize| {
        let low = v.max(0.0) as usize;
        if low + 1 >= size { (size - 1, size - 1, 0.0) } else { (low, low + 1, v.max(0.0) - low as f32) }
    };
    let ((y0, y1, ty), (x0, x1, tx)) = (split(y, height), split(x, width));
    [
        (y0 * width + x0, (1.0 - ty) * (1.0 - tx)),
        (y0 * width + x1, (1.0 - ty) * tx),
        (y1 * width + x0, ty * (1.0 - tx)),
        (y1 * width + x1, ty * tx),
    ]
}

impl RoiPool {
    /// Fills the grid of one region in one channel.
    fn align(&self, image: &[f32], width: usize, region: &[f32], out: &mut [f32]) {
        let height = image.len() / width;
        let shift = if self.half_pixel { 0.5 } else { 0.0 };
        let edge = |i: usize| region[i] * self.scale - shift;
        let least = if self.half_pixel { f32::NEG_INFINITY } else { 1.0 };
        let bin = |axis: usize| {
            let whole = (edge(axis + 2) - edge(axis)).max(least);
            let bin = whole / self.size[1 - axis] as f32;
            // No more samples than a few for each pixel are of use.
            let samples =
                if self.samples > 0 { self.samples } else { (bin.ceil().max(0.0) as usize).min(1 << 12) };
            (edge(axis), bin, samples)
        };
        let ((left, bin_x, nx), (top, bin_y, ny)) = (bin(0), bin(1));
        for (i, out) in out.iter_mut().enumerate() {
            let (row, column) = ((i / self.size[1]) as f32, (i % self.size[1]) as f32);
            let (mut sum, mut most) = (0.0f32, None::<f32>);
            for sy in 0..ny {
                let y = top + row * bin_y + (sy as f32 + 0.5) * bin_y / ny as f32;
                for sx in 0..nx {
                    let x = left + column * bin_x + (sx as f32 + 0.5) * bin_x / nx as f32;
                    let parts = corners(y, x, height, width).map(|(at, w)| image[at] * w);
                    sum += parts.iter().sum::<f32>();
                    let top = parts.into_iter().fold(f32::NEG_INFINITY, f32::max);
                    most = Some(most.map_or(top, |m| m.max(top)));
                }
            }
            *out = if self.max { most.unwrap_or(0.0) } else { sum / (nx * ny).max(1) as f32 };
        }
    }

    /// The same by the greatest pixel of each bin.
    fn pool(&self, image: &[f32], width: usize, region: &[f32], out: &mut [f32]) {
        let height = image.len() / width;
        let edge = |i: usize| (region[i] * self.scale).round();
        let bins = |axis: usize, i: usize, size: usize| {
            let start = edge(axis);
            let bin = (edge(axis + 2) - start + 1.0).max(1.0) / self.size[1 - axis] as f32;
            let place = |v: f32| (v + start).clamp(0.0, size as f32) as usize;
            place((i as f32 * bin).floor())..place(((i + 1) as f32 * bin).ceil())
        };
        for (i, out) in out.iter_mut().enumerate() {
            let columns = bins(0, i % self.size[1], width);
            let pixels = bins(1, i / self.size[1], height)
                .flat_map(|y| columns.clone().map(move |x| y * width + x))
                .map(|at| image[at]);
            *out = pixels.reduce(f32::max).unwrap_or(0.0);
        }
    }
}

impl Op for RoiPool {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let size = |s: Option<&[Dim]>, i: usize| s.and_then(|s| s.get(i)).cloned().unwrap_or_default();
        let (regions, channels) = (size(inputs.shape(1), 0), size(inputs.shape(0), 1));
        let shape = vec![regions, channels, self.size[0].into(), self.size[1].into()];
        Ok(vec![Fact::maybe(inputs.dtype(0), Some(shape))])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, rois) = (inputs.need(0)?, inputs.need(1)?);
        let &[batch, channels, height, width] = x.shape() else {
            return Err(Error::invalid(format!("expected images, got shape {:?}", x.shape())));
        };
        let n = rois.shape().first().copied().unwrap_or(0);
        let pooled = self.line == 3;
        let numbers = if pooled { 5 } else { 4 };
        if rois.shape() != [n, numbers] || (height * width == 0 && n > 0) {
            return Err(Error::invalid(format!("regions {:?} of images {:?}", rois.shape(), x.shape())));
        }
        let rois = rois.to_f32()?;
        let ids: Vec<i64> = match pooled {
            true => rois.chunks_exact(5).map(|r| r[0] as i64).collect(),
            false => inputs.need(2)?.to_ints()?,
        };
        if ids.len() != n {
            return Err(Error::invalid(format!("{} batch indices for {n} regions", ids.len())));
        }
        let dtype = x.dtype();
        let images = x.to_f32()?;
        let (pixels, area) = (height * width, self.size[0] * self.size[1]);
        let shape = [n, channels, self.size[0], self.size[1]];
        let y = Tensor::build(&shape, |to: &mut [f32]| {
            for (i, out) in to.chunks_exact_mut(area).enumerate() {
                let (roi, channel) = (i / channels, i % channels);
                let image = place(ids[roi], batch)? * channels + channel;
                let image = &images[image * pixels..(image + 1) * pixels];
                let region = &rois[roi * numbers..(roi + 1) * numbers];
                match pooled {
                    true => self.pool(image, width, &region[1..], out),
                    false => self.align(image, width, region, out),
                }
            }
            Ok(())
        })?;
        Ok(vec![cast(y, dtype, true)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
