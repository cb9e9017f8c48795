//! `DequantizeLinear`: codes as real numbers. <https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html>

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use kernel::Cpu;
use kernel::q8::quantize::{dequantize_s8, dequantize_u8};

use super::grid::{Grid, Params};
use super::quantize::dtype_attr;
use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned};

/// `DequantizeLinear`.
#[derive(Clone, Debug)]
pub struct DequantizeLinear {
    attrs: Attrs,
    form: usize,
    axis: i64,
    block: i64,
    dtype: Option<DType>,
}

fn read(r: &Reader, form: usize) -> Result<DequantizeLinear> {
    Ok(DequantizeLinear {
        form,
        axis: r.attrs.int_or("axis", 1)?,
        block: r.attrs.int_or("block_size", 0)?,
        dtype: dtype_attr(r.attrs, "output_dtype")?,
        attrs: r.attrs.clone(),
    })
}

impl DequantizeLinear {
    /// One scale for the whole tensor, or one for each slice along `axis`.
    pub fn along(axis: i64) -> DequantizeLinear {
        DequantizeLinear { attrs: Attrs::new().int("axis", axis), form: 0, axis, block: 0, dtype: None }
    }

    /// The axis along which scales differ.
    pub fn axis(&self) -> i64 {
        self.axis
    }

    /// Positions along the axis that share a scale; 0 when scales are not blocked.
    pub fn block_size(&self) -> i64 {
        self.block
    }

    /// Codes as real numbers.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn apply(&self, cpu: &Cpu, x: &Tensor, scale: &Tensor, zero: Option<&Tensor>) -> Result<Tensor> {
        let grid = Grid::new(x.shape(), scale.shape(), self.axis, self.block)?;
        if zero.is_some_and(|z| z.len() != scale.len()) {
            return Err(Error::invalid("scales and zero points differ in number"));
        }
        if zero.is_some_and(|z| z.dtype() != x.dtype()) {
            return Err(Error::invalid("the zero point's type is not that of the codes"));
        }
        let values = scale.to_f32()?;
        let zeros = match zero {
            Some(zero) => zero.to_f32()?,
            None => Cow::Owned(vec![0.0; values.len()]),
        };
        let real = Tensor::fill(x.shape(), |out: &mut [f32]| {
            let lines = Lines { grid: &grid, scales: &values, zeros: &zeros };
            match x.dtype() {
                DType::U8 if grid.is_single() => {
                    dequantize_u8(cpu, x.as_slice()?, values[0], zeros[0] as u8, out);
                }
                DType::I8 if grid.is_single() => {
                    dequantize_s8(cpu, x.as_slice()?, values[0], zeros[0] as i8, out);
                }
                DType::U8 => lines.decode(x.as_slice::<u8>()?, out),
                DType::I8 => lines.decode(x.as_slice::<i8>()?, out),
                _ => lines.decode(&x.to_f32()?, out),
            }
            Ok(())
        })?;
        let own = if scale.dtype().is_f8() { DType::F32 } else { scale.dtype() };
        cast(real, self.dtype.unwrap_or(own), true)
    }
}

struct Lines<'a> {
    grid: &'a Grid,
    scales: &'a [f32],
    zeros: &'a [f32],
}

impl Lines<'_> {
    fn decode<T: Copy + Into<f32>>(&self, x: &[T], out: &mut [f32]) {
        self.grid.runs(|elements, params| {
            let pairs = out[elements.clone()].iter_mut().zip(&x[elements]);
            match params {
                Params::One(p) => {
                    let (scale, zero) = (self.scales[p], self.zeros[p]);
                    pairs.for_each(|(o, &x)| *o = (x.into() - zero) * scale);
                }
                Params::From(p) => {
                    let params = self.scales[p..].iter().zip(&self.zeros[p..]);
                    pairs.zip(params).for_each(|((o, &x), (scale, zero))| *o = (x.into() - zero) * scale);
                }
            }
        });
    }
}

fn sample(form: usize, attrs: Attrs, inputs: Vec<Tensor>) -> Option<Sample> {
    let reader = Reader { attrs: &attrs, version: 28, inputs: inputs.len(), outputs: 1 };
    read(&reader, form).ok().map(|op| Sample::new(op, inputs))
}

fn samples(form: usize) -> Vec<Sample> {
    let none = Attrs::new;
    let codes = Tensor::new(&[2, 3], &[-128i8, 127, 5, 0, 1, -1]);
    let Ok(codes) = codes else { return Vec::new() };
    let scales = Tensor::vector(&[0.01f32, 0.02, 0.5]);
    let plain = [
        (none(), vec![Tensor::vector(&[0u8, 255, 7]), Tensor::scalar(0.1f32), Tensor::scalar(128u8)]),
        (none(), vec![codes.clone(), scales, Tensor::vector(&[1i8, -3, 0])]),
        (none().int("axis", 0), vec![codes.clone(), Tensor::vector(&[0.5f32, 0.25])]),
        (none(), vec![Tensor::vector(&[1i32 << 20, -7]), Tensor::scalar(0.1f32)]),
    ];
    let Ok(nibbles) = Tensor::pack(DType::U4, &[5], &[0, 15, 3, 4, 9]) else { return Vec::new() };
    let newer = [
        (none().int("axis", 1).int("block_size", 2), vec![codes.clone(), ramp(&[2, 2])]),
        (none(), vec![nibbles, Tensor::scalar(half::f16::from_f32(0.1))]),
        (none().int("output_dtype", 10), vec![codes, Tensor::scalar(0.1f32)]),
    ];
    let newer = newer.into_iter().filter(|_| form != 1);
    plain.into_iter().chain(newer).filter_map(|(attrs, inputs)| sample(form, attrs, inputs)).collect()
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "DequantizeLinear",
        domain: "",
        since: 10,
        read: |r| Ok(Arc::new(read(r, 0)?)),
        samples: || samples(0),
    },
    OpDef {
        name: "DequantizeLinear",
        domain: "com.microsoft",
        since: 1,
        read: |r| Ok(Arc::new(read(r, 1)?)),
        samples: || samples(1),
    },
];

impl Op for DequantizeLinear {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.form]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let own = inputs.dtype(1).map(|d| if d.is_f8() { DType::F32 } else { d });
        infer::like_as(inputs, 0, self.dtype.or(own))
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        Ok(vec![self.apply(cx.cpu, inputs.need(0)?, inputs.need(1)?, inputs.get(2)?)?])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        (self.block == 0).then_some(())?;
        if cx.facts.get(1)?.count() == Some(1) {
            return cx.first();
        }
        let axis = cx.axis(self.axis)?;
        Some(cx.first()?.by(DequantizeLinear {
            axis,
            attrs: self.attrs.clone().int("axis", axis),
            ..self.clone()
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
