//! `DeformConv`: convolution whose taps are moved by an input (Dai et al., "Deformable Convolutional Networks", 2017;
//! Zhu et al., "Deformable ConvNets v2", 2018). <https://onnx.ai/onnx/operators/onnx__DeformConv.html>

use std::any::Any;
use std::sync::Arc;

use kernel::f32::{Post, matmul};
use kernel::matmul::{Bias, View};

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, WeightKind, WeightUse, ramp};
use crate::ops::conv::{Sizes, groups, window};
use crate::ops::halves::in_f32;
use crate::ops::window::Window;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// Convolution over two axes with moved taps.
#[derive(Debug)]
pub struct DeformConv {
    window: Window,
    groups: usize,
    offset_groups: usize,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "DeformConv",
    domain: "",
    since: 19,
    read: |r| {
        let offset_groups = usize::try_from(r.attrs.int_or("offset_group", 1)?).ok().filter(|&g| g > 0);
        let offset_groups = offset_groups.ok_or_else(|| Error::invalid("offset_group must be positive"))?;
        Ok(Arc::new(DeformConv { window: Window::read(r.attrs)?, groups: groups(r.attrs)?, offset_groups }))
    },
    samples: || {
        let op = DeformConv { window: window(&[1, 1], &[1, 0, 0, 0], &[]), groups: 2, offset_groups: 2 };
        let inputs = vec![
            ramp(&[1, 4, 4, 4]),
            ramp(&[2, 2, 2, 2]),
            ramp(&[1, 16, 4, 3]),
            ramp(&[2]),
            ramp(&[1, 8, 4, 3]),
        ];
        vec![Sample::new(op, inputs)]
    },
}];

/// The value between four pixels; pixels outside are zero.
fn between(plane: &[f32], [height, width]: [usize; 2], y: f32, x: f32) -> f32 {
    let pixel = |y: f32, x: f32| {
        let inside = y >= 0.0 && x >= 0.0 && y < height as f32 && x < width as f32;
        if inside { plane[y as usize * width + x as usize] } else { 0.0 }
    };
    let (top, left) = (y.floor(), x.floor());
    let (fy, fx) = (y - top, x - left);
    let upper = pixel(top, left) * (1.0 - fx) + pixel(top, left + 1.0) * fx;
    let lower = pixel(top + 1.0, left) * (1.0 - fx) + pixel(top + 1.0, left + 1.0) * fx;
    upper * (1.0 - fy) + lower * fy
}

impl Op for DeformConv {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        let attrs = self.window.write(Attrs::new()).int("group", self.groups as i64);
        attrs.int("offset_group", self.offset_groups as i64)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let (Some([batch, ..]), Some([channels, ..]), Some([_, _, size @ ..])) =
            (x.shape(), inputs.shape(1), inputs.shape(2))
        else {
            return Ok(vec![Fact::maybe(x.dtype(), None)]);
        };
        let shape: Vec<Dim> = [batch, channels].into_iter().chain(size).cloned().collect();
        Ok(vec![Fact::maybe(x.dtype(), Some(shape))])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| {
            let (x, w, offset) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
            if x.dtype() != DType::F32 {
                return Err(Error::unsupported(format!("DeformConv of {dtype}")));
            }
            let sizes = Sizes::new(&self.window, self.groups, x.shape(), w.shape())?;
            let [ay, ax] = sizes.axes[..] else {
                return Err(Error::unsupported("DeformConv over other than two spatial axes"));
            };
            let (taps, outs) = (ay.kernel * ax.kernel, ay.out * ax.out);
            let places = taps.checked_mul(self.offset_groups).and_then(|n| n.checked_mul(outs));
            let places = places.ok_or_else(|| Error::invalid("DeformConv has too many taps"))?;
            let (offsets, mask) =
                (offset.as_slice::<f32>()?, inputs.get(4)?.map(|m| m.as_slice::<f32>()).transpose()?);
            if offsets.len() != sizes.batch * places * 2
                || mask.is_some_and(|m| m.len() != sizes.batch * places)
                || !sizes.in_channels.is_multiple_of(self.offset_groups)
            {
                return Err(Error::invalid(format!("offset {:?} or mask do not fit", offset.shape())));
            }
            let bias = inputs.get(3)?.map(|b| b.as_slice::<f32>()).transpose()?;
            if bias.is_some_and(|b| b.len() != sizes.out_channels) {
                return Err(Error::invalid(format!("the bias must have {} numbers", sizes.out_channels)));
            }
            let (units, channels) = (sizes.in_channels / self.groups, sizes.out_channels / self.groups);
            let rows = units * taps;
            let mut patches = Tensor::zeros(DType::F32, &[rows, outs])?;
            let patches = patches.as_mut_slice::<f32>()?;
            let (data, weight) = (x.as_slice::<f32>()?, w.as_slice::<f32>()?);
            let plane = ay.size * ax.size;
            let y = Tensor::build(&sizes.out(), |out: &mut [f32]| {
                let part = (channels * outs).max(1);
                for (item, out) in out.chunks_mut(part).enumerate() {
                    let (image, group) = (item / self.groups, item % self.groups);
                    for (row, patch) in patches.chunks_mut(outs.max(1)).enumerate() {
                        let (channel, tap) = (group * units + row / taps, row % taps);
                        let moved = channel / (sizes.in_channels / self.offset_groups);
                        let pixels = &data[(image * sizes.in_channels + channel) * plane..][..plane];
                        let at = (image * self.offset_groups + moved) * taps + tap;
                        for (o, v) in patch.iter_mut().enumerate() {
                            let base = |a: &crate::ops::window::Axis, o: usize, k: usize| {
                                (o * a.stride + k * a.dilation) as f32 - a.begin as f32
                            };
                            let y = base(&ay, o / ax.out, tap / ax.kernel) + offsets[2 * at * outs + o];
                            let x = base(&ax, o % ax.out, tap % ax.kernel) + offsets[(2 * at + 1) * outs + o];
                            *v = between(pixels, [ay.size, ax.size], y, x)
                                * mask.map_or(1.0, |m| m[at * outs + o]);
                        }
                    }
                    let bias = bias.map_or(Bias::None, |b| Bias::Row(&b[group * channels..][..channels]));
                    let left = View::new(&weight[group * channels * rows..], channels, rows);
                    let post = Post { bias, ..Post::default() };
                    matmul(cx.cpu, left, View::new(patches, rows, outs), out, outs, &post);
                }
                Ok(())
            })?;
            Ok(vec![y])
        })
    }

    fn weight(&self) -> Option<WeightUse> {
        Some(WeightUse { input: 1, out_axis: 0, kind: WeightKind::Conv })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
