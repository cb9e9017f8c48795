//! Convolutions of quantised images: `ConvInteger`, `QLinearConv`, and `lessen.QConv`, to which quantised graphs
//! are rewritten before they run; with `channels_last`, its images are `[N, D1, .., C]`.
//! <https://onnx.ai/onnx/operators/onnx__QLinearConv.html>

use std::any::Any;
use std::sync::Arc;

use kernel::conv::{Activation, ByteOutput, ConvShape, PackedByteConv, Requant};

use super::codes::{bytes, grid8, in_range, zero};
use super::slots::{Bounds, Slot, Slots, place};
use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, ramp};
use crate::ops::conv::{Sizes, groups};
use crate::ops::layout::Layout;
use crate::ops::window::Window;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned};

/// One of the convolutions of quantised images.
#[derive(Debug)]
pub struct QConv {
    form: Form,
    attrs: Attrs,
    window: Window,
    groups: usize,
    bounds: Bounds,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Integer,
    Linear,
    Own,
}

use Slot::*;

impl Form {
    fn slots(self) -> Slots {
        match self {
            Form::Integer => &[A, B, AZero, BZero],
            Form::Linear => &[A, AScale, AZero, B, BScale, BZero, YScale, YZero, Bias],
            Form::Own => &[A, AScale, AZero, B, BScale, BZero, Bias, YScale, YZero],
        }
    }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "ConvInteger",
        domain: "",
        since: 10,
        read: |r| read(r, Form::Integer),
        samples: || samples(Form::Integer),
    },
    OpDef {
        name: "QLinearConv",
        domain: "",
        since: 10,
        read: |r| read(r, Form::Linear),
        samples: || samples(Form::Linear),
    },
    OpDef {
        name: "QConv",
        domain: "lessen",
        since: 1,
        read: |r| read(r, Form::Own),
        samples: || samples(Form::Own),
    },
];

fn new(attrs: &Attrs, form: Form) -> Result<QConv> {
    Ok(QConv {
        form,
        window: Window::read(attrs)?,
        groups: groups(attrs)?,
        bounds: Bounds {
            lo: attrs.float_or("lo", f32::NEG_INFINITY)?,
            hi: attrs.float_or("hi", f32::INFINITY)?,
        },
        layout: match form == Form::Own && attrs.flag_or("channels_last", false)? {
            true => Layout::ChannelsLast,
            false => Layout::ChannelsFirst,
        },
        attrs: attrs.clone(),
    })
}

fn read(r: &Reader, form: Form) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(new(r.attrs, form)?))
}

fn samples(form: Form) -> Vec<Sample> {
    let codes = |shape: &[usize]| {
        let codes: Vec<i8> = ramp(shape)
            .as_slice::<f32>()
            .map_or(Vec::new(), |x| x.iter().map(|v| (v * 127.0) as i8).collect());
        Tensor::new(shape, &codes)
            .and_then(|t| if shape.len() > 3 { t.reinterpreted(DType::U8) } else { Ok(t) })
    };
    let make = |attrs: Attrs, x: &[usize], w: &[usize], wide: bool, real: bool| {
        let (x, w) = (codes(x).ok()?, codes(w).ok()?.reinterpreted(DType::I8).ok()?);
        let channels = w.shape()[0];
        let find = |slot| match slot {
            A => Some(x.clone()),
            B => Some(w.clone()),
            AScale => Some(Tensor::scalar(0.02f32)),
            BScale if wide => Some(Tensor::vector(&vec![0.01f32; channels])),
            BScale => Some(Tensor::scalar(0.01f32)),
            AZero if x.dtype() == DType::U8 => Some(Tensor::scalar(130u8)),
            AZero => Some(Tensor::scalar(-3i8)),
            BZero if wide && form != Form::Integer => Some(Tensor::vector(&vec![0i8; channels])),
            BZero => Some(Tensor::scalar(0i8)),
            Bias if real => Some(ramp(&[channels])),
            Bias => Some(Tensor::vector(&vec![100i32; channels])),
            YScale | YZero if real => None,
            YScale => Some(Tensor::scalar(0.05f32)),
            YZero => Some(Tensor::scalar(9u8)),
        };
        let op = Arc::new(new(&attrs, form).ok()?);
        let inputs = form.slots().iter().map(|&s| find(s).map(Into::into)).collect();
        Some(Sample { op, inputs, outputs: 1, grads: Vec::new(), tolerance: 1e-5 })
    };
    let plain = Attrs::new;
    let same = Attrs::new().text("auto_pad", "SAME_UPPER").ints("strides", &[2, 2]);
    let grouped = Attrs::new().int("group", 2).ints("pads", &[1, 0, 2, 1]).ints("dilations", &[1, 2]);
    let own = Attrs::new().float("lo", 0.0).float("hi", 0.6);
    let last = Attrs::new().int("channels_last", 1).ints("pads", &[1, 1, 0, 0]);
    [
        make(plain(), &[2, 3, 5, 4], &[4, 3, 3, 3], false, false),
        make(plain(), &[0, 3, 5, 4], &[4, 3, 3, 3], false, false),
        make(same, &[1, 2, 5, 6], &[3, 2, 3, 3], true, false),
        make(grouped, &[1, 4, 5, 6], &[4, 2, 3, 3], true, false),
        make(plain(), &[2, 3, 7], &[4, 3, 3], true, false),
        make(own.clone(), &[1, 3, 5, 4], &[4, 3, 1, 1], true, true).filter(|_| form == Form::Own),
        make(own, &[1, 3, 5, 4], &[4, 3, 1, 1], true, false).filter(|_| form == Form::Own),
        make(last.clone(), &[2, 5, 4, 3], &[4, 3, 3, 2], true, false).filter(|_| form == Form::Own),
        make(last.int("group", 3), &[1, 5, 4, 3], &[3, 1, 3, 3], true, true).filter(|_| form == Form::Own),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Weights packed ahead.
struct Ready {
    packed: PackedByteConv,
    shape: Vec<usize>,
}

/// One or two axes.
fn flat(sizes: &Sizes) -> Result<ConvShape> {
    let unfit = || Error::unsupported(format!("a quantised convolution over {} axes", sizes.axes.len()));
    sizes.flat().ok_or_else(unfit)
}

impl QConv {
    /// `lessen.QConv` with the attributes of `Conv` and bounds; its inputs are image, scale, zero point; weights,
    /// scales, zero points; bias (32-bit sums, or real); scale and zero point of the output when it is quantised.
    ///
    /// # Errors
    /// When the attributes are wrong.
    pub fn own(attrs: &Attrs, bounds: Bounds) -> Result<QConv> {
        new(&attrs.clone().float("lo", bounds.lo).float("hi", bounds.hi), Form::Own)
    }

    fn place(&self, slot: Slot) -> usize {
        place(self.form.slots(), slot)
    }

    fn pack(&self, cpu: &kernel::Cpu, w: &Tensor, zeros: Option<&Tensor>) -> Result<PackedByteConv> {
        let shape = w.shape();
        if w.is_empty() {
            return Err(Error::unsupported(format!(
                "a quantised convolution with weights of shape {shape:?}"
            )));
        }
        // Weights fit an image of their own size whatever the window.
        let image: Vec<usize> = shape
            .iter()
            .enumerate()
            .map(|(i, &n)| match i {
                0 => Ok(1),
                1 => n.checked_mul(self.groups).ok_or_else(|| Error::invalid("too many channels")),
                _ => Ok(n),
            })
            .collect::<Result<_>>()?;
        let sizes = Sizes::new(&Window::default(), self.groups, &image, shape)?;
        let conv = flat(&sizes)?;
        let zeros: Vec<i32> = match zeros {
            Some(zeros) => zeros.to_ints()?.into_iter().map(|v| v as i32).collect(),
            None => vec![0],
        };
        zeros.iter().try_for_each(|&z| in_range(w.dtype(), z).map(|_| ()))?;
        if ![1, shape[0]].contains(&zeros.len()) || !shape[0].is_multiple_of(self.groups) {
            return Err(Error::invalid(format!(
                "weights of shape {shape:?}: zero points or groups do not fit"
            )));
        }
        // One zero point for all and none at all are the same when it is zero.
        let zeros = if zeros.iter().all(|&z| z == 0) && w.dtype() == DType::I8 { Vec::new() } else { zeros };
        Ok(PackedByteConv::new(cpu, &conv, bytes(w)?, &zeros))
    }

    fn compute(&self, cx: &RunCx, inputs: &mut Inputs) -> Result<Tensor> {
        let x = inputs.take(self.place(A))?;
        let first = self.layout.first(x.shape())?;
        let x = &self.layout.to_last(cx.cpu, x)?;
        let made;
        let (packed, w_shape) = match cx.packed::<Ready>() {
            Some(ready) => (&ready.packed, ready.shape.as_slice()),
            None => {
                let w = inputs.need(self.place(B))?;
                made = self.pack(cx.cpu, w, inputs.get(self.place(BZero))?)?;
                (&made, w.shape())
            }
        };
        let sizes = Sizes::new(&self.window, self.groups, &first, w_shape)?;
        let (shape, out) = (flat(&sizes)?, Layout::ChannelsLast.lay(sizes.out()));
        let x_zero = zero(inputs, self.place(AZero))?;
        in_range(x.dtype(), x_zero)?;
        if self.form == Form::Integer {
            let mut sums = Tensor::any(DType::I32, &out)?;
            packed.run(cx.cpu, &shape, bytes(x)?, x_zero, ByteOutput::Sums(sums.as_mut_slice()?));
            return Ok(sums);
        }
        let x_scale = super::codes::scale(inputs, self.place(AScale))?;
        let w_scale = inputs.need(self.place(BScale))?.to_f32()?;
        if ![1, shape.out_channels].contains(&w_scale.len()) {
            return Err(Error::invalid("there must be one scale of the weights, or one for each channel"));
        }
        let scale: Vec<f32> = w_scale.iter().map(|w| x_scale * w).collect();
        let at = |channel: usize| if scale.len() == 1 { scale[0] } else { scale[channel] };
        let bias = inputs.get(self.place(Bias))?;
        if bias.is_some_and(|b| b.len() != shape.out_channels) {
            return Err(Error::invalid("there must be one bias for each channel"));
        }
        if inputs.get(self.place(YScale))?.is_none() {
            let bias: Option<Vec<f32>> = match bias {
                Some(b) if b.dtype() == DType::I32 => {
                    Some(b.values::<i32>()?.iter().enumerate().map(|(c, &b)| b as f32 * at(c)).collect())
                }
                Some(b) => Some(b.to_f32()?.into_owned()),
                None => None,
            };
            let activation = match self.bounds {
                Bounds::NONE => Activation::None,
                Bounds { lo, hi } => Activation::Clip { lo, hi },
            };
            let y = Tensor::fill(&out, |out: &mut [f32]| {
                let output = ByteOutput::Real { out, scale: &scale, bias: bias.as_deref(), activation };
                packed.run(cx.cpu, &shape, bytes(x)?, x_zero, output);
                Ok(())
            })?;
            return Ok(y);
        }
        let (sums, real) = match bias {
            Some(b) if b.dtype() == DType::I32 => (Some(b.values::<i32>()?), None),
            Some(b) => (None, Some(b.to_f32()?)),
            None => (None, None),
        };
        let y_zero = inputs.get(self.place(YZero))?.map(Tensor::dtype);
        let dtype = self.dtype(Some(x.dtype()), true, y_zero).unwrap_or(DType::U8);
        let y = grid8(inputs, self.place(YScale), self.place(YZero), dtype)?;
        let (lo, hi) = self.bounds.codes(y.scale, y.zero, in_range(dtype, y.zero)?);
        let multiplier: Vec<f32> = scale.iter().map(|s| s / y.scale).collect();
        let offset: Option<Vec<f32>> = real.map(|b| b.iter().map(|b| b / y.scale).collect());
        let requant = Requant {
            bias: sums.as_deref(),
            multiplier: &multiplier,
            offset: offset.as_deref(),
            zero: y.zero,
            lo,
            hi,
        };
        let mut codes = Tensor::any(dtype, &out)?;
        let output = match dtype {
            DType::U8 => ByteOutput::U8(codes.as_mut_slice()?, requant),
            DType::I8 => ByteOutput::S8(codes.as_mut_slice()?, requant),
            other => return Err(Error::unsupported(format!("a quantised convolution to {other}"))),
        };
        packed.run(cx.cpu, &shape, bytes(x)?, x_zero, output);
        Ok(codes)
    }

    fn dtype(&self, x: Option<DType>, quantised: bool, y_zero: Option<DType>) -> Option<DType> {
        match self.form {
            Form::Integer => Some(DType::I32),
            _ if quantised => y_zero.or(x),
            _ => Some(DType::F32),
        }
    }
}

impl Op for QConv {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.form as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let quantised = inputs.get(self.place(YScale)).is_some();
        let dtype = self.dtype(inputs.dtype(self.place(A)), quantised, inputs.dtype(self.place(YZero)));
        let (x, w) = (inputs.shape(self.place(A)), inputs.shape(self.place(B)));
        let shape = match (x, w) {
            (Some(x), Some(w)) if x.len() == w.len() && x.len() > 2 => {
                let x = self.layout.first(x)?;
                let mut shape = vec![x[0].clone(), w[0].clone()];
                shape.extend(self.window.infer(&x[2..], &w[2..])?);
                Some(self.layout.lay(shape))
            }
            (Some(x), None) if x.len() > 2 => {
                Some([vec![x[0].clone()], vec![Dim::Unknown; x.len() - 1]].concat())
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(dtype, shape)])
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        let (at, zero_at) = (self.place(B), self.place(BZero));
        let (Some(w), zeros) = (cx.constant(at), cx.constant(zero_at)) else { return Ok(None) };
        if zeros.is_none() && cx.facts.get(zero_at).is_some() {
            return Ok(None);
        }
        let ready = Ready { packed: self.pack(cx.cpu, w, zeros)?, shape: w.shape().to_vec() };
        Ok(Some(Packed::new(ready, &[at, zero_at])))
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let y = self.compute(cx, &mut inputs)?;
        Ok(vec![self.layout.laid_from_last(cx.cpu, y)?])
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let weights = inputs.get(self.place(B)).and_then(Fact::sizes);
        let taps = weights.map(|w| w.iter().skip(1).product::<usize>() as u64);
        let count = outputs.first().and_then(Fact::count);
        taps.zip(count).map_or(0, |(taps, n)| taps.saturating_mul(n as u64))
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let fixed = cx.constants.get(self.place(B)).is_some_and(Option::is_some);
        let turns =
            cx.is_channels_last() && self.layout == Layout::ChannelsFirst && self.form == Form::Own && fixed;
        let op = new(&self.attrs.clone().int("channels_last", 1), Form::Own).ok().filter(|_| turns)?;
        Some(cx.first()?.by(op))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
