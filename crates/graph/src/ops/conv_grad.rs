//! `lessen.ConvGrad`: the gradients of a convolution with respect to input, weight and bias.

use std::any::Any;
use std::sync::Arc;

use kernel::f32::{Add, Post, matmul};
use kernel::matmul::View;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::conv::{Sizes, for_taps, groups, window};
use crate::ops::window::Window;
use crate::{Attrs, Error, Fact, Op, Result, Tensor};

/// From input, weight and the gradient of the output, the gradients of input, weight and bias.
#[derive(Debug)]
pub struct ConvGrad {
    /// The window of the convolution.
    pub window: Window,
    /// Its groups.
    pub groups: usize,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "ConvGrad",
    domain: "lessen",
    since: 1,
    read: |r| Ok(Arc::new(ConvGrad { window: Window::read(r.attrs)?, groups: groups(r.attrs)? })),
    samples: || {
        let op = ConvGrad { window: window(&[2, 1], &[1, 0, 0, 1], &[]), groups: 2 };
        let inputs = vec![ramp(&[2, 4, 5, 4]), ramp(&[6, 2, 2, 3]), ramp(&[2, 6, 3, 3])];
        vec![Sample::new(op, inputs).outputs(3)]
    },
}];

impl Op for ConvGrad {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.window.write(Attrs::new()).int("group", self.groups as i64)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let channels = inputs.shape(1).and_then(|s| s.first().cloned()).unwrap_or_default();
        let bias = Fact::maybe(inputs.dtype(0), Some(vec![channels]));
        Ok([infer::like(inputs, 0)?, infer::like(inputs, 1)?, vec![bias]].concat())
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, w, dy) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let sizes = Sizes::new(&self.window, self.groups, x.shape(), w.shape())?;
        if dy.shape() != sizes.out() {
            return Err(Error::invalid(format!("the gradient has shape {:?}", dy.shape())));
        }
        let (mut dx, mut dw) = (Tensor::zeros(x.dtype(), x.shape())?, Tensor::zeros(w.dtype(), w.shape())?);
        let mut db = vec![0f32; sizes.out_channels];
        let (x, w, dy) = (x.as_slice::<f32>()?, w.as_slice::<f32>()?, dy.as_slice::<f32>()?);
        let (units, channels) = (sizes.in_channels / self.groups, sizes.out_channels / self.groups);
        let size: usize = sizes.axes.iter().map(|a| a.size).product();
        let taps: usize = sizes.axes.iter().map(|a| a.kernel).product();
        let outs: usize = sizes.axes.iter().map(|a| a.out).product();
        let mut places = Vec::new();
        for_taps(&sizes.axes, |to, tap, from| places.push((tap * outs + to, from)));
        let rows = units * taps;
        let columns = rows.checked_mul(outs).ok_or_else(|| Error::invalid("the convolution is too big"))?;
        let mut patches = Tensor::zeros(crate::DType::F32, &[columns])?;
        let patches = patches.as_mut_slice::<f32>()?;
        let (dx_all, dw_all) = (dx.as_mut_slice::<f32>()?, dw.as_mut_slice::<f32>()?);
        for item in 0..sizes.batch * self.groups {
            let group = item % self.groups;
            let x = &x[item * units * size..][..units * size];
            let dy = &dy[item * channels * outs..][..channels * outs];
            let dx = &mut dx_all[item * units * size..][..units * size];
            let w = &w[group * channels * rows..][..channels * rows];
            let dw = &mut dw_all[group * channels * rows..][..channels * rows];
            for (db, dy) in db[group * channels..].iter_mut().zip(dy.chunks(outs.max(1))) {
                *db += dy.iter().sum::<f32>();
            }
            patches.fill(0.0);
            for unit in 0..units {
                for &(to, from) in &places {
                    patches[unit * taps * outs + to] = x[unit * size + from];
                }
            }
            let dy = View::new(dy, channels, outs);
            let sum = Post { add: Add::Out, ..Post::default() };
            matmul(cx.cpu, dy, View::new(patches, rows, outs).t(), dw, rows, &sum);
            matmul(cx.cpu, View::new(w, channels, rows).t(), dy, patches, outs, &Post::default());
            for unit in 0..units {
                for &(to, from) in &places {
                    dx[unit * size + from] += patches[unit * taps * outs + to];
                }
            }
        }
        Ok(vec![dx, dw, Tensor::vector(&db)])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
