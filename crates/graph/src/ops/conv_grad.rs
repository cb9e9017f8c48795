//! `lessen.ConvInputGrad`, `lessen.ConvWeightGrad`: the gradients of a convolution with respect to its input, and to
//! weight and bias.

use std::any::Any;
use std::sync::Arc;

use kernel::conv::{ConvTransposeShape, Epilogue, PackedConvTranspose, weight_grad};
use kernel::reduce::{Reduce, reduce};

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::conv::{Sizes, for_taps, groups, window};
use crate::ops::layout::Layout;
use crate::ops::window::{Axis, Window};
use crate::{Attrs, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned};

/// From input, weight and the gradient of the output, the gradient of the input, or those of weight and bias.
#[derive(Clone, Debug)]
pub struct ConvGrad {
    /// Of what.
    of: Of,
    /// The window of the convolution.
    window: Window,
    /// Its groups.
    groups: usize,
    /// Of input and output.
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Input,
    Weight,
}

fn read(of: Of, r: &Reader) -> Result<Arc<dyn Op>> {
    let last = r.attrs.flag_or("channels_last", false)?;
    let layout = if last { Layout::ChannelsLast } else { Layout::ChannelsFirst };
    Ok(Arc::new(ConvGrad { of, window: Window::read(r.attrs)?, groups: groups(r.attrs)?, layout }))
}

fn samples(of: Of) -> Vec<Sample> {
    let outputs = if of == Of::Input { 1 } else { 2 };
    let op = |window, groups| ConvGrad { of, window, groups, layout: Layout::ChannelsFirst };
    let cases = [
        (op(window(&[2, 1], &[1, 0, 0, 1], &[]), 2), [&[2, 4, 5, 4][..], &[6, 2, 2, 3], &[2, 6, 3, 3]]),
        (op(window(&[2], &[], &[2]), 1), [&[2, 3, 8], &[4, 3, 2], &[2, 4, 3]]),
        (op(window(&[], &[], &[]), 1), [&[2, 2, 3, 4, 3], &[3, 2, 2, 2, 2], &[2, 3, 2, 3, 2]]),
    ];
    let sample =
        |(op, shapes): (ConvGrad, [&[usize]; 3])| Sample::new(op, shapes.map(ramp).to_vec()).outputs(outputs);
    cases.map(sample).into()
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "ConvInputGrad",
        domain: "lessen",
        since: 1,
        read: |r| read(Of::Input, r),
        samples: || samples(Of::Input),
    },
    OpDef {
        name: "ConvWeightGrad",
        domain: "lessen",
        since: 1,
        read: |r| read(Of::Weight, r),
        samples: || samples(Of::Weight),
    },
];

impl ConvGrad {
    /// That of the input.
    pub(crate) fn input(window: &Window, groups: usize) -> ConvGrad {
        ConvGrad { of: Of::Input, window: window.clone(), groups, layout: Layout::ChannelsFirst }
    }

    /// Those of weight and bias.
    pub(crate) fn weight(window: &Window, groups: usize) -> ConvGrad {
        ConvGrad { of: Of::Weight, ..ConvGrad::input(window, groups) }
    }

    fn input_grad(&self, cx: &RunCx, x: &[usize], w: &Tensor, dy: Tensor, sizes: &Sizes) -> Result<Tensor> {
        let Some(flat) = transposed(sizes) else {
            return plain_input(sizes, w.as_slice()?, self.layout.to_first(cx.cpu, dy)?.as_slice()?)
                .and_then(|dx| self.layout.laid_from_first(cx.cpu, dx));
        };
        let dy = self.layout.to_last(cx.cpu, dy)?;
        let packed = PackedConvTranspose::new(cx.cpu, &flat, w.as_slice()?);
        let last = Layout::ChannelsLast.lay(self.layout.first(x)?);
        let dx = Tensor::fill(&last, |dx: &mut [f32]| {
            packed.run(cx.cpu, &flat, dy.as_slice()?, dx, &Epilogue::default());
            Ok(())
        })?;
        self.layout.laid_from_last(cx.cpu, dx)
    }

    fn weight_grads(
        &self,
        cx: &RunCx,
        x: Tensor,
        w: &[usize],
        dy: Tensor,
        sizes: &Sizes,
    ) -> Result<Vec<Tensor>> {
        let dy = self.layout.to_last(cx.cpu, dy)?;
        let channels = sizes.out_channels;
        let mut db = vec![0f32; channels];
        reduce(cx.cpu, Reduce::Sum, dy.as_slice()?, [1, dy.len() / channels.max(1), channels], &mut db);
        let dw = match sizes.flat() {
            Some(flat) => {
                let x = self.layout.to_last(cx.cpu, x)?;
                Tensor::build(w, |dw: &mut [f32]| {
                    weight_grad(cx.cpu, &flat, x.as_slice()?, dy.as_slice()?, dw);
                    Ok(())
                })?
            }
            None => {
                let x = self.layout.to_first(cx.cpu, x)?;
                let dy = Layout::ChannelsLast.to_first(cx.cpu, dy)?;
                plain_weight(sizes, w, x.as_slice()?, dy.as_slice()?)?
            }
        };
        Ok(vec![dw, Tensor::vector(&db)])
    }
}

/// The gradient of the input as a transposed convolution of one or two axes.
fn transposed(sizes: &Sizes) -> Option<ConvTransposeShape> {
    let conv = sizes.flat()?;
    let out = conv.out_size()?;
    let reached = |a: usize| {
        let end = conv.pad_begin[a] + conv.pad_end[a];
        ((out[a] - 1) * conv.stride[a] + (conv.kernel[a] - 1) * conv.dilation[a] + 1).checked_sub(end)
    };
    let over = |a: usize| conv.in_size[a].checked_sub(reached(a)?);
    let shape = ConvTransposeShape {
        batch: conv.batch,
        in_channels: conv.out_channels,
        in_size: out,
        out_channels: conv.in_channels,
        kernel: conv.kernel,
        stride: conv.stride,
        pad_begin: conv.pad_begin,
        pad_end: conv.pad_end,
        out_padding: [over(0)?, over(1)?],
        dilation: conv.dilation,
        groups: conv.groups,
    };
    (shape.out_size() == Some(conv.in_size)).then_some(shape)
}

/// Elements of a plane of the input, taps, elements of a plane of the output.
fn planes(sizes: &Sizes) -> [usize; 3] {
    let product = |f: fn(&Axis) -> usize| sizes.axes.iter().map(f).product();
    [product(|a| a.size), product(|a| a.kernel), product(|a| a.out)]
}

/// Calls `visit(place in x, in w, in dy)` for each product of a convolution, all with the channels first.
fn products(sizes: &Sizes, mut visit: impl FnMut(usize, usize, usize)) {
    let [size, taps, outs] = planes(sizes);
    let (units, channels) = (sizes.in_channels / sizes.groups, sizes.out_channels / sizes.groups);
    for_taps(&sizes.axes, |to, tap, from| {
        for image in 0..sizes.batch {
            for m in 0..sizes.out_channels {
                for u in 0..units {
                    let c = image * sizes.in_channels + m / channels * units + u;
                    let y = (image * sizes.out_channels + m) * outs + to;
                    visit(c * size + from, (m * units + u) * taps + tap, y);
                }
            }
        }
    });
}

fn narrow(shape: &[usize], sums: &[f64]) -> Result<Tensor> {
    Tensor::new(shape, &sums.iter().map(|&v| v as f32).collect::<Vec<_>>())
}

fn plain_input(sizes: &Sizes, w: &[f32], dy: &[f32]) -> Result<Tensor> {
    let shape: Vec<usize> =
        [sizes.batch, sizes.in_channels].into_iter().chain(sizes.axes.iter().map(|a| a.size)).collect();
    let mut dx = vec![0f64; crate::tensor::count(&shape)?];
    products(sizes, |at_x, at_w, at_y| dx[at_x] += f64::from(w[at_w]) * f64::from(dy[at_y]));
    narrow(&shape, &dx)
}

fn plain_weight(sizes: &Sizes, shape: &[usize], x: &[f32], dy: &[f32]) -> Result<Tensor> {
    let mut dw = vec![0f64; crate::tensor::count(shape)?];
    products(sizes, |at_x, at_w, at_y| dw[at_w] += f64::from(x[at_x]) * f64::from(dy[at_y]));
    narrow(shape, &dw)
}

impl Op for ConvGrad {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(self.of == Of::Weight)]
    }

    fn attrs(&self) -> Attrs {
        let last = (self.layout == Layout::ChannelsLast).then_some(crate::Attr::Int(1));
        self.window.write(Attrs::new()).int("group", self.groups as i64).maybe("channels_last", last)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        if self.of == Of::Input {
            return infer::like(inputs, 0);
        }
        let channels = inputs.shape(1).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
        let bias = Fact::maybe(inputs.dtype(0), Some(vec![channels]));
        Ok([infer::like(inputs, 1)?, vec![bias]].concat())
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let dy = inputs.take(2)?;
        let (x, w) = (inputs.need(0)?, inputs.need(1)?);
        let sizes = Sizes::new(&self.window, self.groups, &self.layout.first(x.shape())?, w.shape())?;
        if dy.shape() != self.layout.lay(sizes.out()) {
            return Err(Error::invalid(format!("the gradient has shape {:?}", dy.shape())));
        }
        if dy.is_empty() || x.is_empty() {
            let zeros = |t: &Tensor| Tensor::zeros(t.dtype(), t.shape());
            return match self.of {
                Of::Input => Ok(vec![zeros(x)?]),
                Of::Weight => Ok(vec![zeros(w)?, Tensor::zeros(w.dtype(), &[sizes.out_channels])?]),
            };
        }
        match self.of {
            Of::Input => Ok(vec![self.input_grad(cx, x.shape(), w, dy, &sizes)?]),
            Of::Weight => self.weight_grads(cx, x.clone(), w.shape(), dy, &sizes),
        }
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let turns = cx.is_channels_last() && self.layout == Layout::ChannelsFirst;
        let last = ConvGrad { layout: Layout::ChannelsLast, ..self.clone() };
        let turned = turns.then(|| cx.elements(|at| at != 1))??.by(last);
        Some(if self.of == Of::Weight { turned.with_outputs_as_they_were() } else { turned })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
