//! Averages of quantised images: onnxruntime's `QLinearAveragePool` and `QLinearGlobalAveragePool`.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::sync::Arc;

use kernel::Cpu;
use kernel::conv::Bytes;
use kernel::pool2d::last;

use super::codes::{Grid8, Rounder, byte, bytes, grid8, in_range};
use super::pair::sample_bytes;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample};
use crate::ops::pool::flat;
use crate::ops::window::{Axis, Window};
use crate::{Attrs, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned};

/// An average over windows or whole images. Inputs: codes, scale, zero point; scale and zero point of the result.
#[derive(Debug)]
pub struct QAverage {
    attrs: Attrs,
    /// `None` averages whole images.
    window: Option<Window>,
    count_padding: bool,
    channels_last: bool,
}

const fn def(
    name: &'static str,
    read: fn(&Reader) -> Result<Arc<dyn Op>>,
    samples: fn() -> Vec<Sample>,
) -> OpDef {
    OpDef { name, domain: "com.microsoft", since: 1, read, samples }
}

pub(crate) static DEFS: &[OpDef] = &[
    def(
        "QLinearAveragePool",
        |r| Ok(Arc::new(new(r.attrs, true)?)),
        || {
            let attrs = Attrs::new().ints("kernel_shape", &[2, 3]).ints("strides", &[2, 1]);
            let padded = attrs.clone().ints("pads", &[0, 1, 1, 1]).int("ceil_mode", 1);
            let counted = padded.clone().int("count_include_pad", 1);
            let last = attrs.clone().int("channels_last", 1);
            [attrs, padded, counted, last].iter().filter_map(|a| sample(a, true)).collect()
        },
    ),
    def(
        "QLinearGlobalAveragePool",
        |r| Ok(Arc::new(new(r.attrs, false)?)),
        || {
            let last = Attrs::new().int("channels_last", 1);
            [Attrs::new(), last].iter().filter_map(|a| sample(a, false)).collect()
        },
    ),
];

fn new(attrs: &Attrs, windowed: bool) -> Result<QAverage> {
    Ok(QAverage {
        window: if windowed { Some(Window::read(attrs)?) } else { None },
        count_padding: attrs.flag_or("count_include_pad", false)?,
        channels_last: attrs.flag_or("channels_last", false)?,
        attrs: attrs.clone(),
    })
}

fn sample(attrs: &Attrs, windowed: bool) -> Option<Sample> {
    let (scale, zero) = (|v: f32| Tensor::scalar(v), |v: u8| Tensor::scalar(v));
    let inputs = vec![sample_bytes(&[2, 5, 4, 3]), scale(0.02), zero(120), scale(0.015), zero(100)];
    new(attrs, windowed).ok().map(|op| Sample::new(op, inputs))
}

impl QAverage {
    /// The average of whole images, channels first.
    pub fn global() -> QAverage {
        QAverage { attrs: Attrs::new(), window: None, count_padding: false, channels_last: false }
    }

    /// The average over windows, with the attributes of `AveragePool`.
    ///
    /// # Errors
    /// When the attributes are wrong.
    pub fn windowed(attrs: &Attrs) -> Result<QAverage> {
        new(attrs, true)
    }

    /// Puts the means of a flat image with the channels last into `y`, as fast as the kernels can; false when it is
    /// another image.
    fn fast(&self, cpu: &Cpu, x: &Tensor, axes: &[Axis], grid: &Averages, y: &mut [u8]) -> Result<bool> {
        let [images, .., channels] = *x.shape() else { return Ok(false) };
        let Some(pool) = flat(axes, images).filter(|_| self.channels_last) else { return Ok(false) };
        if pool.kernel[0].saturating_mul(pool.kernel[1]) > last::MOST_BYTES {
            return Ok(false);
        }
        let mut sums = vec![0; y.len()];
        let len = pool.in_size[0] * pool.in_size[1];
        match (bytes(x)?, &self.window) {
            (Bytes::U8(x), None) => last::global_sum_pool(cpu, len, channels, x, &mut sums),
            (Bytes::S8(x), None) => last::global_sum_pool(cpu, len, channels, x, &mut sums),
            (Bytes::U8(x), Some(_)) => last::sum_pool(cpu, &pool, channels, x, &mut sums),
            (Bytes::S8(x), Some(_)) => last::sum_pool(cpu, &pool, channels, x, &mut sums),
        }
        let counts = |padding: bool| {
            let [rows, cols] = pool.window_counts(padding);
            rows.into_iter().flat_map(|r| cols.iter().map(move |c| r * c).collect::<Vec<_>>()).collect()
        };
        let (seen, counted): (Vec<usize>, Vec<usize>) = (counts(false), counts(self.count_padding));
        let pixels = y.chunks_exact_mut(channels.max(1)).zip(sums.chunks_exact(channels.max(1)));
        for (i, (pixel, sums)) in pixels.enumerate() {
            let at = i % seen.len().max(1);
            let zeros = seen[at] as i64 * i64::from(grid.from.zero);
            for (y, &sum) in pixel.iter_mut().zip(sums) {
                *y = grid.code(i64::from(sum) - zeros, counted[at]);
            }
        }
        Ok(true)
    }

    fn axes(&self, sizes: &[usize]) -> Result<Vec<Axis>> {
        match &self.window {
            Some(window) => window.place(sizes, window.need_kernel()?),
            None => Window::default().place(sizes, sizes),
        }
    }
}

impl Op for QAverage {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(self.window.is_none())]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let Some(shape) = x.shape().filter(|s| s.len() > 2) else {
            return Ok(vec![Fact::maybe(x.dtype(), None)]);
        };
        let first = if self.channels_last { 1 } else { 2 };
        let mut out = shape.to_vec();
        let spatial = first..first + shape.len() - 2;
        let sizes = match &self.window {
            Some(window) => {
                let kernel: Vec<Dim> = window.need_kernel()?.iter().map(|&k| k.into()).collect();
                window.infer(&shape[spatial.clone()], &kernel)?
            }
            None => vec![Dim::Is(1); shape.len() - 2],
        };
        out.splice(spatial, sizes);
        Ok(vec![Fact::maybe(x.dtype(), Some(out))])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let (dtype, shape) = (x.dtype(), x.shape());
        if shape.len() < 3 {
            return Err(Error::invalid(format!("{x:?} is no image")));
        }
        let (from, to) = (grid8(&inputs, 1, 2, dtype)?, grid8(&inputs, 3, 4, dtype)?);
        let grid = Averages { from, to, rounder: Rounder::new(in_range(dtype, to.zero)?, to.zero) };
        let first = if self.channels_last { 1 } else { 2 };
        let spatial = first..first + shape.len() - 2;
        let axes = self.axes(&shape[spatial.clone()])?;
        let planes: usize = shape[..first].iter().product();
        let depth: usize = shape[spatial.end..].iter().product();
        let sizes = &shape[spatial.clone()];
        let mut out_shape = shape.to_vec();
        out_shape.splice(spatial, axes.iter().map(|a| a.out));
        let area: usize = sizes.iter().product();
        let data = bytes(x)?;
        let mut y = Tensor::any(dtype, &out_shape)?;
        let outs: usize = axes.iter().map(|a| a.out).product();
        let codes = y.bytes_mut()?;
        if self.fast(cx.cpu, x, &axes, &grid, codes)? {
            return Ok(vec![y]);
        }
        for place in 0..outs {
            let (pixels, padded) = window_at(&axes, place);
            let count = if self.count_padding { padded } else { pixels.len() };
            for (plane, channel) in (0..planes).flat_map(|p| (0..depth).map(move |c| (p, c))) {
                let code = |p: &usize| byte(data, (plane * area + p) * depth + channel) - from.zero;
                let sum: i64 = pixels.iter().map(|p| i64::from(code(p))).sum();
                codes[(plane * outs + place) * depth + channel] = grid.code(sum, count);
            }
        }
        Ok(vec![y])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let turns = cx.is_channels_last() && !self.channels_last;
        let op =
            new(&self.attrs.clone().int("channels_last", 1), self.window.is_some()).ok().filter(|_| turns)?;
        Some(cx.first()?.by(op))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// From codes to the codes of means.
struct Averages {
    from: Grid8,
    to: Grid8,
    rounder: Rounder,
}

impl Averages {
    /// The code of the mean of `count` codes that are so far above the zero point together.
    fn code(&self, sum: i64, count: usize) -> u8 {
        let mean = (sum as f64 * f64::from(self.from.scale) / count.max(1) as f64) as f32;
        self.rounder.code(mean / self.to.scale) as u8
    }
}

/// The offsets of the pixels that the window at a place sees, and how many there are with padding.
fn window_at(axes: &[Axis], mut place: usize) -> (Vec<usize>, usize) {
    let mut pixels = vec![0usize];
    let (mut step, mut count) = (1, 1usize);
    for axis in axes.iter().rev() {
        let at = place % axis.out;
        place /= axis.out;
        let (_, taps, first) = axis.taps(at);
        let inside = (0..taps).map(|t| (first + t * axis.dilation) * step);
        pixels = inside.flat_map(|p| pixels.iter().map(move |o| o + p)).collect();
        let room = (axis.begin + axis.size + axis.end).saturating_sub(at * axis.stride);
        count = axis.kernel.min(room.div_ceil(axis.dilation)).saturating_mul(count);
        step *= axis.size;
    }
    (pixels, count)
}
