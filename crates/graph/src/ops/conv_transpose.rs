//! `ConvTranspose`: each input is spread over the outputs that its window covers.
//! <https://onnx.ai/onnx/operators/onnx__ConvTranspose.html>

use std::any::Any;
use std::sync::Arc;

use kernel::conv::{ConvTransposeShape, Epilogue, PackedConvTranspose};

use crate::axes::Port::{Input, Output};
use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, RunCx, Sample, WeightKind, WeightUse, ramp};
use crate::ops::conv::{for_taps, groups, window};
use crate::ops::halves::{in_f32, is_half, widen};
use crate::ops::layout::Layout;
use crate::ops::number::Number;
use crate::ops::window::{AutoPad, Axis, Window};
use crate::{Attr, Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor};

/// Transposed convolution over any number of axes.
#[derive(Debug)]
pub struct ConvTranspose {
    window: Window,
    groups: usize,
    output_padding: Option<Vec<i64>>,
    output_shape: Option<Vec<i64>>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "ConvTranspose",
    domain: "",
    since: 1,
    read: |r| {
        let (padding, shape) = (r.attrs.opt_ints("output_padding")?, r.attrs.opt_ints("output_shape")?);
        if padding.iter().chain(&shape).flatten().any(|&v| v < 0) {
            return Err(Error::invalid("output_padding and output_shape must not be negative"));
        }
        Ok(Arc::new(ConvTranspose {
            window: Window::read(r.attrs)?,
            groups: groups(r.attrs)?,
            output_padding: padding,
            output_shape: shape,
        }))
    },
    samples: || {
        let op = |window: Window, groups| ConvTranspose {
            window,
            groups,
            output_padding: None,
            output_shape: None,
        };
        let same = Window { auto_pad: Some(AutoPad::SameLower), ..window(&[2, 2], &[], &[]) };
        let strided = || window(&[2, 3], &[1, 0, 0, 1], &[1, 2]);
        let padded = ConvTranspose { output_padding: Some(vec![1, 0]), ..op(strided(), 1) };
        let shaped = ConvTranspose { output_shape: Some(vec![9, 8]), ..op(window(&[2, 2], &[], &[]), 1) };
        let x = || ramp(&[2, 4, 4, 3]);
        let w = || ramp(&[4, 3, 3, 2]);
        let mut samples = vec![
            Sample::new(op(strided(), 1), vec![x(), w(), ramp(&[3])]),
            Sample::new(op(strided(), 2), vec![x(), w()]),
            Sample::new(op(same, 1), vec![x(), w()]),
            Sample::new(padded, vec![x(), w()]),
            Sample::new(shaped, vec![x(), w()]),
            Sample::new(op(window(&[2], &[], &[]), 1), vec![ramp(&[1, 2, 4]), ramp(&[2, 2, 3])]),
            Sample::new(op(window(&[], &[], &[]), 1), vec![ramp(&[1, 1, 2, 3, 2]), ramp(&[1, 2, 2, 2, 2])]),
        ];
        let wide = |t| crate::ops::cast::cast(t, DType::F64, true);
        if let (Ok(x), Ok(w)) = (wide(x()), wide(w())) {
            samples.push(Sample::new(op(strided(), 1), vec![x, w]));
        }
        samples
    },
}];

/// A transposed convolution is the gradient of a convolution: `axes` are those of that convolution, whose input
/// is this one's output. `extra` positions at the end of the output are seen by no window.
struct Sizes {
    batch: usize,
    in_channels: usize,
    out_channels: usize,
    axes: Vec<Axis>,
    extra: Vec<usize>,
}

impl ConvTranspose {
    /// The output size along an axis, the padding at both ends, and what is added at the end.
    fn axis(&self, i: usize, size: usize, kernel: usize) -> Result<(usize, [usize; 2], usize)> {
        let wrong = || Error::invalid("a transposed convolution has an impossible output size");
        let (stride, dilation, [begin, end]) = self.window.step(i);
        let extra = self.output_padding.as_ref().and_then(|p| p.get(i)).map_or(0, |&v| v as usize);
        let extent =
            kernel.checked_sub(1).and_then(|k| k.checked_mul(dilation)?.checked_add(1)).ok_or_else(wrong)?;
        let full =
            size.checked_sub(1).and_then(|n| n.checked_mul(stride)?.checked_add(extent)).ok_or_else(wrong)?;
        let padded = full.checked_add(extra).ok_or_else(wrong)?;
        let same = matches!(self.window.auto_pad, Some(AutoPad::SameUpper | AutoPad::SameLower));
        let target = match &self.output_shape {
            // The shape may name batch and channels too.
            Some(shape) => {
                let axes = self.window.kernel.as_ref().map_or(shape.len(), Vec::len);
                shape.get(shape.len().saturating_sub(axes) + i).map(|&v| v as usize)
            }
            None if same => size.checked_mul(stride),
            None => None,
        };
        let Some(target) = target else {
            let out = padded.checked_sub(begin).and_then(|n| n.checked_sub(end)).ok_or_else(wrong)?;
            return Ok((out, [begin, end], extra));
        };
        // A larger output than the inputs reach is padded with nothing but the bias.
        let total = padded.saturating_sub(target);
        let small = total / 2;
        let pads = match self.window.auto_pad {
            Some(AutoPad::SameUpper) => [small, total - small],
            _ => [total - small, small],
        };
        Ok((target, pads, extra + target.saturating_sub(padded)))
    }

    fn place(&self, x: &[usize], w: &[usize]) -> Result<Sizes> {
        let ([batch, in_channels, size @ ..], [rows, units, kernel @ ..]) = (x, w) else {
            return Err(Error::invalid(format!("cannot convolve {x:?} with {w:?}")));
        };
        self.window.check(size.len())?;
        let out_channels = units.checked_mul(self.groups).filter(|_| rows == in_channels);
        let out_channels = out_channels.filter(|_| in_channels % self.groups == 0);
        let (Some(out_channels), true) = (out_channels, size.len() == kernel.len()) else {
            return Err(Error::invalid(format!("{x:?} and {w:?} do not fit {} groups", self.groups)));
        };
        let (mut axes, mut extras) = (Vec::new(), Vec::new());
        for (i, (&n, &k)) in size.iter().zip(kernel).enumerate() {
            let (out, [begin, end], extra) = self.axis(i, n, k)?;
            let (stride, dilation, _) = self.window.step(i);
            axes.push(Axis { size: out, kernel: k, stride, dilation, begin, end, out: n });
            extras.push(extra);
        }
        Ok(Sizes { batch: *batch, in_channels: *in_channels, out_channels, axes, extra: extras })
    }

    fn plain<T: Number>(&self, inputs: &Inputs) -> Result<Tensor> {
        let (x, w) = (inputs.need(0)?, inputs.need(1)?);
        let sizes = self.place(x.shape(), w.shape())?;
        let bias = bias::<T>(inputs, sizes.out_channels)?;
        let (x, w) = (x.as_slice::<T>()?, w.as_slice::<T>()?);
        let product = |f: fn(&Axis) -> usize| sizes.axes.iter().map(f).product::<usize>();
        let (outs, ins, taps) = (product(|a| a.size), product(|a| a.out), product(|a| a.kernel));
        let (units, rows) = (sizes.out_channels / self.groups, sizes.in_channels / self.groups);
        let mut sums = vec![0f64; crate::tensor::count(&sizes.out())?];
        for_taps(&sizes.axes, |from, tap, to| {
            for image in 0..sizes.batch {
                for c in 0..sizes.in_channels {
                    let v = x[(image * sizes.in_channels + c) * ins + from].to_f64();
                    for unit in 0..units {
                        let channel = image * sizes.out_channels + c / rows * units + unit;
                        sums[channel * outs + to] += v * w[(c * units + unit) * taps + tap].to_f64();
                    }
                }
            }
        });
        let one = |(i, v): (usize, &f64)| {
            let bias = bias.map_or(0.0, |b| b[i / outs.max(1) % sizes.out_channels].to_f64());
            T::from_f64(v + bias)
        };
        Tensor::new(&sizes.out(), &sums.iter().enumerate().map(one).collect::<Vec<T>>())
    }

    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Tensor> {
        let x = inputs.need(0)?;
        let weight = cx.packed::<Weight>();
        let shape = match weight {
            Some(weight) => &weight.shape,
            None => inputs.need(1)?.shape(),
        };
        let sizes = self.place(x.shape(), shape)?;
        let Some(flat) = sizes.flat(self.groups) else {
            return self.plain::<f32>(inputs);
        };
        let bias = bias::<f32>(inputs, sizes.out_channels)?;
        let x = &Layout::ChannelsFirst.to_last(cx.cpu, x.clone())?;
        let y = Tensor::fill(&Layout::ChannelsLast.lay(sizes.out()), |out: &mut [f32]| {
            let epilogue = Epilogue { bias, ..Epilogue::default() };
            match weight {
                Some(weight) => weight.packed.run(cx.cpu, &flat, x.as_slice()?, out, &epilogue),
                None => PackedConvTranspose::new(cx.cpu, &flat, inputs.f32(1)?).run(
                    cx.cpu,
                    &flat,
                    x.as_slice()?,
                    out,
                    &epilogue,
                ),
            }
            Ok(())
        })?;
        Layout::ChannelsLast.to_first(cx.cpu, y)
    }
}

fn bias<T: Number>(inputs: &Inputs, channels: usize) -> Result<Option<&[T]>> {
    let bias = inputs.get(2)?.map(|b| b.as_slice::<T>()).transpose()?;
    if bias.is_some_and(|b| b.len() != channels) {
        return Err(Error::invalid(format!("the bias must have {channels} numbers")));
    }
    Ok(bias)
}

impl Sizes {
    fn out(&self) -> Vec<usize> {
        [self.batch, self.out_channels].into_iter().chain(self.axes.iter().map(|a| a.size)).collect()
    }

    /// One or two axes, as the fast kernel takes them.
    fn flat(&self, groups: usize) -> Option<ConvTransposeShape> {
        let pair = |f: &dyn Fn(usize) -> usize, one: usize| match self.axes.len() {
            1 => Some([one, f(0)]),
            2 => Some([f(0), f(1)]),
            _ => None,
        };
        let axes = &self.axes;
        let shape = ConvTransposeShape {
            batch: self.batch,
            in_channels: self.in_channels,
            in_size: pair(&|i| axes[i].out, 1)?,
            out_channels: self.out_channels,
            kernel: pair(&|i| axes[i].kernel, 1)?,
            stride: pair(&|i| axes[i].stride, 1)?,
            pad_begin: pair(&|i| axes[i].begin, 0)?,
            pad_end: pair(&|i| axes[i].end, 0)?,
            out_padding: pair(&|i| self.extra[i], 0)?,
            dilation: pair(&|i| axes[i].dilation, 1)?,
            groups,
        };
        let want = pair(&|i| axes[i].size, 1);
        let empty = shape.batch == 0 || shape.in_channels == 0 || shape.out_channels == 0;
        let fits = !empty && shape.out_size().is_some() && shape.out_size() == want;
        (fits && want.is_some_and(|w| !w.contains(&0))).then_some(shape)
    }
}

/// A constant weight.
struct Weight {
    packed: PackedConvTranspose,
    shape: Vec<usize>,
}

impl Op for ConvTranspose {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        let list = |l: &Option<Vec<i64>>| l.clone().map(Attr::Ints);
        let attrs = self.window.write(Attrs::new()).int("group", self.groups as i64);
        attrs
            .maybe("output_padding", list(&self.output_padding))
            .maybe("output_shape", list(&self.output_shape))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, w) = (inputs.need(0)?, inputs.need(1)?);
        let dtype = x.dtype().or(w.dtype());
        let Some([batch, _, size @ ..]) = x.shape() else { return Ok(vec![Fact::maybe(dtype, None)]) };
        let units = w.shape().and_then(|w| w.get(1)).cloned().unwrap_or_default();
        let mut shape = vec![batch.clone(), units.times(&Dim::Is(self.groups as i64))];
        for (i, n) in size.iter().enumerate() {
            let kernel = w.shape().and_then(|w| w.get(i + 2)?.size());
            shape.push(match (n.size(), kernel) {
                (Some(n), Some(k)) => self.axis(i, n, k)?.0.into(),
                _ => Dim::Unknown,
            });
        }
        Ok(vec![Fact::maybe(dtype, Some(shape))])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| match inputs.need(0)?.dtype() {
            DType::F32 => Ok(vec![self.run_f32(cx, &inputs)?]),
            DType::F64 => Ok(vec![self.plain::<f64>(&inputs)?]),
            other => Err(Error::unsupported(format!("ConvTranspose of {other}"))),
        })
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        // Packed for the sizes of a known input, so that the fast kernel is certain to take them.
        let (Some(w), Some(x)) = (cx.constant(1), cx.facts.get(0).and_then(Fact::sizes)) else {
            return Ok(None);
        };
        if w.dtype() != DType::F32 && !is_half(w.dtype()) {
            return Ok(None);
        }
        let w = widen(w.clone())?;
        let Some(flat) = self.place(&x, w.shape())?.flat(self.groups) else { return Ok(None) };
        let packed = PackedConvTranspose::new(cx.cpu, &flat, w.as_slice()?);
        Ok(Some(Packed::new(Weight { packed, shape: w.shape().to_vec() }, &[1])))
    }

    fn weight(&self) -> Option<WeightUse> {
        Some(WeightUse { input: 1, out_axis: 1, kind: WeightKind::ConvTranspose })
    }

    fn mul_adds(&self, inputs: &Facts, _: &[Fact]) -> u64 {
        let x = inputs.get(0).and_then(Fact::count).unwrap_or(0) as u64;
        let taps = inputs.shape(1).and_then(|w| w.get(1..)?.iter().map(Dim::size).product::<Option<usize>>());
        x.saturating_mul(taps.unwrap_or(0) as u64)
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let w = |axis| (Input(1), axis);
        let size = |axis: usize| inputs.shape(1)?.get(axis)?.size();
        let mut axes = Axes::new();
        axes.along([(0, 0)]).tie((Input(0), 1), w(0));
        if inputs.get(2).is_some() {
            axes.tie((Input(2), 0), (Output(0), 1));
        }
        // The same as a convolution from the output to the input.
        axes.grouped(self.groups, [(Output(0), 1), w(1), (Input(0), 1)], size(1), size(0))?;
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
