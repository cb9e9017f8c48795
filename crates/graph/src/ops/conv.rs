//! `Conv`: convolution of `[N, C, D1, ..]` with `[M, C / group, k1, ..]`, and `com.microsoft.FusedConv` with a
//! residual (input 3) and an activation after it. `lessen.Conv` is the latter with the channels of its images last:
//! `[N, D1, .., C]`. <https://onnx.ai/onnx/operators/onnx__Conv.html>
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.FusedConv>

use std::any::Any;
use std::sync::Arc;

use kernel::conv::{ConvNd, ConvShape, Epilogue, PackedConv, conv_nd};
use kernel::{Act, Cpu};

use super::patches::patches;
use crate::axes::Port::{Input, Output};
use crate::op::{
    Facts, GradCx, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, WeightKind, WeightUse, ramp,
};
use crate::ops::conv_grad::ConvGrad;
use crate::ops::fuse;
use crate::ops::halves::{in_f32, widen};
use crate::ops::layout::Layout;
use crate::ops::window::{AutoPad, Axis, Window, advance, outs};
use crate::{Attrs, Axes, DType, Datum, Dim, Error, Fact, Node, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// Convolution over any number of axes.
#[derive(Clone, Debug)]
pub struct Conv {
    fused: bool,
    layout: Layout,
    /// The window.
    pub window: Window,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Applied to the result, after bias (input 2) and residual (input 3, of the output's shape).
    pub act: Act,
}

impl Conv {
    /// A convolution without activation.
    pub fn new(window: Window, groups: usize) -> Conv {
        Conv { fused: false, layout: Layout::ChannelsFirst, window, groups, act: Act::Identity }
    }

    /// The same, which may have a residual (input 3), followed by an activation.
    pub fn then(&self, act: Act) -> Conv {
        Conv { fused: true, act, ..self.clone() }
    }

    /// The same with residual and activation, on images with the channels last.
    fn last(&self) -> Conv {
        Conv { fused: true, layout: Layout::ChannelsLast, ..self.clone() }
    }

    fn read(fused: bool, layout: Layout, r: &Reader) -> Result<Conv> {
        Ok(Conv {
            fused,
            layout,
            window: Window::read(r.attrs)?,
            groups: groups(r.attrs)?,
            act: if fused { fuse::read(r.attrs)? } else { Act::Identity },
        })
    }
}

/// Reads the attribute `group`.
pub(crate) fn groups(attrs: &Attrs) -> Result<usize> {
    let group = attrs.int_or("group", 1)?;
    usize::try_from(group)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| Error::invalid(format!("group must not be {group}")))
}

pub(crate) fn window(strides: &[usize], pads: &[usize], dilations: &[usize]) -> Window {
    let list = |v: &[usize]| (!v.is_empty()).then(|| v.to_vec());
    Window { strides: list(strides), pads: list(pads), dilations: list(dilations), ..Window::default() }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "Conv",
        domain: "",
        since: 1,
        read: |r| Ok(Arc::new(Conv::read(false, Layout::ChannelsFirst, r)?)),
        samples: || {
            let same = Window { auto_pad: Some(AutoPad::SameUpper), ..window(&[2, 2], &[], &[]) };
            let conv = |w: Window, groups| Conv::new(w, groups);
            let plain = || conv(window(&[2, 1], &[1, 0, 0, 1], &[1, 2]), 1);
            let wide = |to, s: &[usize]| crate::ops::cast::cast(ramp(s), to, true);
            let mut samples = vec![
                Sample::new(plain(), vec![ramp(&[1, 2, 5, 6]), ramp(&[3, 2, 3, 2]), ramp(&[3])])
                    .grads(&[0, 1, 2]),
                Sample::new(conv(same, 1), vec![ramp(&[2, 3, 5, 6]), ramp(&[4, 3, 3, 2])]).grads(&[0]),
                Sample::new(
                    conv(window(&[], &[1; 4], &[]), 2),
                    vec![ramp(&[1, 4, 5, 5]), ramp(&[6, 2, 3, 3])],
                )
                .grads(&[0, 1]),
                Sample::new(
                    conv(window(&[], &[1; 4], &[]), 4),
                    vec![ramp(&[1, 4, 5, 5]), ramp(&[4, 1, 3, 3])],
                ),
                Sample::new(conv(window(&[2], &[1, 0], &[]), 1), vec![ramp(&[2, 3, 8]), ramp(&[2, 3, 3])])
                    .grads(&[1]),
                Sample::new(
                    conv(window(&[], &[], &[]), 1),
                    vec![ramp(&[1, 2, 3, 4, 3]), ramp(&[2, 2, 2, 2, 2])],
                )
                .grads(&[0, 1]),
            ];
            for (to, tolerance) in [(DType::F64, 1e-9), (DType::F16, 2e-3)] {
                if let (Ok(x), Ok(w)) = (wide(to, &[1, 2, 5, 6]), wide(to, &[3, 2, 3, 2])) {
                    samples.push(Sample::new(plain(), vec![x, w]).tolerance(tolerance));
                }
            }
            samples
        },
    },
    OpDef {
        name: "FusedConv",
        domain: "com.microsoft",
        since: 1,
        read: |r| Ok(Arc::new(Conv::read(true, Layout::ChannelsFirst, r)?)),
        samples: || {
            let conv = Conv::new(window(&[], &[1; 4], &[]), 1);
            let inputs = || vec![ramp(&[1, 2, 5, 6]), ramp(&[3, 2, 3, 3]), ramp(&[3]), ramp(&[1, 3, 5, 6])];
            let clip = Act::Clip { lo: -0.25, hi: 0.5 };
            [Act::Relu, clip, Act::HardSwish].map(|act| Sample::new(conv.then(act), inputs())).into()
        },
    },
    OpDef {
        name: "Conv",
        domain: "lessen",
        since: 1,
        read: |r| Ok(Arc::new(Conv::read(true, Layout::ChannelsLast, r)?)),
        samples: || {
            let conv = |strides: &[usize], groups| {
                let same = Window { auto_pad: Some(AutoPad::SameUpper), ..window(strides, &[], &[]) };
                Conv::new(same, groups).last()
            };
            vec![
                Sample::new(
                    conv(&[], 1).then(Act::HardSwish),
                    vec![ramp(&[1, 5, 6, 2]), ramp(&[3, 2, 3, 3]), ramp(&[3]), ramp(&[1, 5, 6, 3])],
                ),
                Sample::new(conv(&[2, 1], 2), vec![ramp(&[2, 5, 6, 4]), ramp(&[6, 2, 3, 2])]),
                Sample::new(conv(&[], 4), vec![ramp(&[1, 5, 6, 4]), ramp(&[4, 1, 3, 3]), ramp(&[4])]),
                Sample::new(conv(&[2], 1), vec![ramp(&[2, 8, 3]), ramp(&[2, 3, 3])]),
            ]
        },
    },
];

/// The sizes of a convolution at hand.
pub(crate) struct Sizes {
    pub batch: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub groups: usize,
    pub axes: Vec<Axis>,
}

impl Sizes {
    /// # Errors
    /// [`Error::Invalid`] when input, weight and attributes do not fit together.
    pub fn new(window: &Window, groups: usize, x: &[usize], w: &[usize]) -> Result<Sizes> {
        let ([batch, in_channels, size @ ..], [out_channels, units, kernel @ ..]) = (x, w) else {
            return Err(Error::invalid(format!("cannot convolve {x:?} with {w:?}")));
        };
        if window.kernel.as_ref().is_some_and(|k| k != kernel) {
            return Err(Error::invalid(format!("kernel_shape {:?} is not that of {w:?}", window.kernel)));
        }
        if units.checked_mul(groups) != Some(*in_channels) || !out_channels.is_multiple_of(groups) {
            return Err(Error::invalid(format!("{x:?} and {w:?} do not fit {groups} groups of channels")));
        }
        let axes = window.place(size, kernel)?;
        Ok(Sizes { batch: *batch, in_channels: *in_channels, out_channels: *out_channels, groups, axes })
    }

    /// Shape of the output.
    pub fn out(&self) -> Vec<usize> {
        [vec![self.batch, self.out_channels], outs(&self.axes)].concat()
    }

    /// One or two axes, as the fast kernels take them.
    pub fn flat(&self) -> Option<ConvShape> {
        let pair = |f: fn(&Axis) -> usize, one: usize| match self.axes.as_slice() {
            [x] => Some([one, f(x)]),
            [y, x] => Some([f(y), f(x)]),
            _ => None,
        };
        let shape = ConvShape {
            batch: self.batch,
            in_channels: self.in_channels,
            in_size: pair(|a| a.size, 1)?,
            out_channels: self.out_channels,
            kernel: pair(|a| a.kernel, 1)?,
            stride: pair(|a| a.stride, 1)?,
            pad_begin: pair(|a| a.begin, 0)?,
            pad_end: pair(|a| a.end, 0)?,
            dilation: pair(|a| a.dilation, 1)?,
            groups: self.groups,
        };
        shape.out_size().map(|_| shape)
    }

    fn nd(&self) -> ConvNd {
        let list = |f: fn(&Axis) -> usize| self.axes.iter().map(f).collect();
        ConvNd {
            batch: self.batch,
            in_channels: self.in_channels,
            in_size: list(|a| a.size),
            out_channels: self.out_channels,
            kernel: list(|a| a.kernel),
            stride: list(|a| a.stride),
            pad_begin: list(|a| a.begin),
            pad_end: list(|a| a.end),
            dilation: list(|a| a.dilation),
            groups: self.groups,
        }
    }
}

/// A constant weight.
struct Weight {
    packed: PackedConv,
    shape: Vec<usize>,
}

impl Weight {
    /// Packs a weight for one or two axes.
    fn new(cpu: &Cpu, shape: &[usize], groups: usize, data: &[f32]) -> Option<Weight> {
        let (out_channels, units, kernel) = match *shape {
            [m, c, x] => (m, c, [1, x]),
            [m, c, y, x] => (m, c, [y, x]),
            _ => return None,
        };
        let fits = out_channels.is_multiple_of(groups) && !kernel.contains(&0);
        let whole = ConvShape {
            batch: 1,
            in_channels: units.checked_mul(groups).filter(|_| fits)?,
            in_size: kernel,
            out_channels,
            kernel,
            stride: [1, 1],
            pad_begin: [0, 0],
            pad_end: [0, 0],
            dilation: [1, 1],
            groups,
        };
        whole.out_size()?;
        Some(Weight { packed: PackedConv::new(cpu, &whole, data), shape: shape.to_vec() })
    }
}

/// Adds what follows a convolution that the fast kernels do not do.
fn finish(cpu: &Cpu, act: Act, residual: Option<&[f32]>, out: &mut [f32]) {
    if let Some(residual) = residual {
        for (o, r) in out.iter_mut().zip(residual) {
            *o += r;
        }
    }
    kernel::act::apply(cpu, act, out);
}

impl Conv {
    fn run_f32(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Tensor> {
        let (x, residual) = (inputs.take(0)?, inputs.take_data(3).map(Datum::into_tensor).transpose()?);
        let weight = cx.packed::<Weight>();
        let shape = match weight {
            Some(weight) => &weight.shape,
            None => inputs.need(1)?.shape(),
        };
        let sizes = Sizes::new(&self.window, self.groups, &self.layout.first(x.shape())?, shape)?;
        let out_shape = self.layout.lay(sizes.out());
        let bias = bias(inputs.get(2)?, sizes.out_channels)?;
        if let Some(r) = residual.as_ref().filter(|r| r.shape() != out_shape) {
            return Err(Error::invalid(format!("the residual has shape {:?}, not {out_shape:?}", r.shape())));
        }
        if out_shape.contains(&0) {
            return Tensor::zeros(DType::F32, &out_shape);
        }
        let fresh;
        let packed = match weight {
            Some(weight) => Some(weight),
            None => {
                fresh = Weight::new(cx.cpu, shape, self.groups, inputs.f32(1)?);
                fresh.as_ref()
            }
        };
        let Some((flat, weight)) = sizes.flat().zip(packed) else {
            let x = self.layout.to_first(cx.cpu, x)?;
            let residual = residual.map(|r| self.layout.to_first(cx.cpu, r)).transpose()?;
            let nd = sizes.nd();
            nd.out_size().ok_or_else(|| Error::invalid("the convolution is too big"))?;
            let y = Tensor::build(&sizes.out(), |out: &mut [f32]| {
                conv_nd(cx.cpu, &nd, x.as_slice()?, inputs.f32(1)?, bias, out);
                finish(cx.cpu, self.act, residual.as_ref().map(|r| r.as_slice()).transpose()?, out);
                Ok(())
            })?;
            return self.layout.laid_from_first(cx.cpu, y);
        };
        let x = self.layout.to_last(cx.cpu, x)?;
        let residual = residual.map(|r| self.layout.to_last(cx.cpu, r)).transpose()?;
        let tile = |part: &mut [f32]| self.act.tile(cx.cpu, part);
        let activation = fuse::in_conv(self.act);
        let epilogue = Epilogue {
            bias,
            residual: residual.as_ref().map(|r| r.as_slice()).transpose()?,
            activation: activation.unwrap_or(kernel::conv::Activation::None),
            then: if activation.is_some() { None } else { Some(&tile) },
        };
        let y = Tensor::fill(&Layout::ChannelsLast.lay(sizes.out()), |out: &mut [f32]| {
            weight.packed.run(cx.cpu, &flat, x.as_slice()?, out, &epilogue);
            Ok(())
        })?;
        self.layout.laid_from_last(cx.cpu, y)
    }

    fn run_f64(&self, inputs: &Inputs) -> Result<Tensor> {
        let (x, w) = (inputs.need(0)?, inputs.need(1)?);
        let sizes = Sizes::new(&self.window, self.groups, x.shape(), w.shape())?;
        let bias = inputs.get(2)?.map(|b| b.as_slice::<f64>()).transpose()?;
        if bias.is_some_and(|b| b.len() != sizes.out_channels) {
            return Err(Error::invalid("the bias must have a number for each output channel"));
        }
        let (x, w) = (x.as_slice::<f64>()?, w.as_slice::<f64>()?);
        let taps: usize = sizes.axes.iter().map(|a| a.kernel).product();
        let size: usize = sizes.axes.iter().map(|a| a.size).product();
        let out_size: usize = sizes.axes.iter().map(|a| a.out).product();
        let (units, channels) = (sizes.in_channels / sizes.groups, sizes.out_channels / sizes.groups);
        Tensor::build(&sizes.out(), |out: &mut [f64]| {
            for_taps(&sizes.axes, |to, tap, from| {
                for plane in 0..sizes.batch * sizes.out_channels {
                    let (image, channel) = (plane / sizes.out_channels, plane % sizes.out_channels);
                    let first = image * sizes.in_channels + channel / channels * units;
                    let sum: f64 = (0..units)
                        .map(|u| x[(first + u) * size + from] * w[(channel * units + u) * taps + tap])
                        .sum();
                    out[plane * out_size + to] += sum;
                }
            });
            if let Some(bias) = bias {
                for (plane, out) in out.chunks_mut(out_size.max(1)).enumerate() {
                    out.iter_mut().for_each(|v| *v += bias[plane % sizes.out_channels]);
                }
            }
            Ok(())
        })
    }
}

fn bias(bias: Option<&Tensor>, channels: usize) -> Result<Option<&[f32]>> {
    let bias = bias.map(|b| b.as_slice::<f32>()).transpose()?;
    match bias {
        Some(b) if b.len() != channels => {
            Err(Error::invalid(format!("a bias of {} numbers for {channels} channels", b.len())))
        }
        other => Ok(other),
    }
}

/// Calls `visit(output, tap, input)` for each tap of each window that lies on the input; places as offsets in a plane.
pub(crate) fn for_taps(axes: &[Axis], mut visit: impl FnMut(usize, usize, usize)) {
    let outs = outs(axes);
    if outs.contains(&0) {
        return;
    }
    let mut o = vec![0; axes.len()];
    let mut to = 0;
    loop {
        let taps: Vec<(usize, usize, usize)> = axes.iter().zip(&o).map(|(a, &o)| a.taps(o)).collect();
        let counts: Vec<usize> = taps.iter().map(|t| t.1).collect();
        if !counts.contains(&0) {
            let mut j = vec![0; axes.len()];
            loop {
                let (mut tap, mut from) = (0, 0);
                for ((axis, &(first, _, at)), &j) in axes.iter().zip(&taps).zip(&j) {
                    tap = tap * axis.kernel + first + j;
                    from = from * axis.size + at + j * axis.dilation;
                }
                visit(to, tap, from);
                if !advance(&mut j, &counts) {
                    break;
                }
            }
        }
        to += 1;
        if !advance(&mut o, &outs) {
            return;
        }
    }
}

impl Op for Conv {
    fn def(&self) -> &'static OpDef {
        match (self.layout, self.fused) {
            (Layout::ChannelsFirst, false) => &DEFS[0],
            (Layout::ChannelsFirst, true) => &DEFS[1],
            (Layout::ChannelsLast, _) => &DEFS[2],
        }
    }

    fn attrs(&self) -> Attrs {
        let attrs = self.window.write(Attrs::new()).int("group", self.groups as i64);
        if self.fused { fuse::write(attrs, self.act) } else { attrs }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (x, w) = (inputs.need(0)?, inputs.need(1)?);
        let dtype = x.dtype().or(w.dtype());
        let Some(dims) = x.shape() else { return Ok(vec![Fact::maybe(dtype, None)]) };
        let dims = self.layout.first(dims)?;
        let [batch, _, size @ ..] = dims.as_slice() else {
            return Err(Error::invalid(format!("cannot convolve a tensor of rank {}", dims.len())));
        };
        let (channels, kernel) = match w.shape() {
            Some([m, _, kernel @ ..]) if kernel.len() == size.len() => (m.clone(), kernel.to_vec()),
            Some(other) => {
                return Err(Error::invalid(format!(
                    "input of rank {} and weight of rank {} cannot be convolved",
                    dims.len(),
                    other.len()
                )));
            }
            None => {
                let kernel = self.window.kernel.as_ref();
                let kernel = kernel.map_or(vec![], |k| k.iter().map(|&k| k.into()).collect());
                (Dim::Unknown, kernel)
            }
        };
        let mut shape = vec![batch.clone(), channels];
        shape.extend(self.window.infer(size, &kernel)?);
        Ok(vec![Fact::maybe(dtype, Some(self.layout.lay(shape)))])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| {
            let y = match inputs.need(0)?.dtype() {
                DType::F32 => self.run_f32(cx, inputs)?,
                DType::F64 if !self.fused => self.run_f64(&inputs)?,
                other => return Err(Error::unsupported(format!("{} of {other}", self.name()))),
            };
            Ok(vec![y])
        })
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        let Some(w) = cx.constant(1) else { return Ok(None) };
        let w = widen(w.clone())?;
        if w.dtype() != DType::F32 {
            return Ok(None);
        }
        let weight = Weight::new(cx.cpu, w.shape(), self.groups, w.as_slice()?);
        Ok(weight.map(|weight| Packed::new(weight, &[1])))
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.fused {
            return Err(Error::unsupported("the gradient of FusedConv"));
        }
        let inputs = vec![Some(cx.input(0)?), Some(cx.input(1)?), Some(cx.grad()?)];
        let input = Node::new(Arc::new(ConvGrad::input(&self.window, self.groups)), inputs.clone());
        let weight = Node::new(Arc::new(ConvGrad::weight(&self.window, self.groups)), inputs);
        let (_, mut grads) = cx.graph.add_with_outputs("grad", input, 1, None)?;
        grads.extend(cx.graph.add_with_outputs("grad", weight, 2, None)?.1);
        Ok(grads.into_iter().map(Some).take(cx.inputs.len()).collect())
    }

    fn weight(&self) -> Option<WeightUse> {
        Some(WeightUse { input: 1, out_axis: 0, kind: WeightKind::Conv })
    }

    fn weight_rows(&self, x: &Tensor, weight: &[usize], emit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        if self.layout != Layout::ChannelsFirst {
            return Err(Error::unsupported("the patches of an image with its channels last"));
        }
        let sizes = Sizes::new(&self.window, self.groups, x.shape(), weight)?;
        patches(&sizes, x.as_slice()?, emit);
        Ok(())
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let out = outputs.first().and_then(Fact::count).unwrap_or(0) as u64;
        let taps = inputs.shape(1).and_then(|w| w.get(1..)?.iter().map(Dim::size).product::<Option<usize>>());
        out.saturating_mul(taps.unwrap_or(0) as u64)
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let in_f32 = matches!(cx.facts.dtype(0), Some(DType::F32 | DType::F16 | DType::BF16));
        let turns = cx.is_channels_last() && self.layout == Layout::ChannelsFirst && in_f32;
        turns.then(|| cx.elements(|at| at == 0 || at == 3))?.map(|t| t.by(self.last()))
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        if self.layout != Layout::ChannelsFirst {
            return None;
        }
        let (x, w) = ((Input(0), 1), |axis| (Input(1), axis));
        let size = |axis: usize| inputs.shape(1)?.get(axis)?.size();
        let mut axes = Axes::new();
        axes.along([(0, 0)]).tie(w(0), (Output(0), 1));
        if inputs.get(2).is_some() {
            axes.tie((Input(2), 0), (Output(0), 1));
        }
        if inputs.get(3).is_some() {
            axes.tie((Input(3), 0), (Output(0), 0)).tie((Input(3), 1), (Output(0), 1));
        }
        axes.grouped(self.groups, [x, w(1), (Output(0), 1)], size(1), size(0))?;
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
