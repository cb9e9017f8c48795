//! `QuantizeLinear`: real numbers as codes. <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use half::{bf16, f16};
use kernel::Cpu;
use kernel::q8::quantize::{quantize_s8, quantize_u8};

use super::codes::{Code, Rounder, in_range, range};
use super::grid::{Grid, Params};
use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::tensor::{encode_f4, encode_f8};
use crate::{Attrs, DType, Error, Fact, Op, Result, Tensor, TurnCx, Turned};

/// `QuantizeLinear`.
#[derive(Clone, Debug)]
pub struct QuantizeLinear {
    attrs: Attrs,
    form: usize,
    axis: i64,
    block: i64,
    saturate: bool,
    dtype: Option<DType>,
    /// The type that the division is rounded to; `None` for that of the scale.
    precision: Option<DType>,
}

/// An attribute that names an element type; 0 stands for none.
pub(super) fn dtype_attr(attrs: &Attrs, name: &str) -> Result<Option<DType>> {
    match attrs.int_or(name, 0)? {
        0 => Ok(None),
        number => match i32::try_from(number).ok().and_then(DType::from_onnx) {
            Some(dtype) => Ok(Some(dtype)),
            None => Err(Error::invalid(format!("there is no element type {number}"))),
        },
    }
}

fn read(r: &Reader, form: usize) -> Result<QuantizeLinear> {
    Ok(QuantizeLinear {
        form,
        axis: r.attrs.int_or("axis", 1)?,
        block: r.attrs.int_or("block_size", 0)?,
        saturate: r.attrs.flag_or("saturate", true)?,
        dtype: dtype_attr(r.attrs, "output_dtype")?,
        precision: dtype_attr(r.attrs, "precision")?,
        attrs: r.attrs.clone(),
    })
}

impl QuantizeLinear {
    /// One scale for the whole tensor, or one for each slice along `axis`.
    pub fn along(axis: i64) -> QuantizeLinear {
        let attrs = Attrs::new().int("axis", axis);
        QuantizeLinear { attrs, form: 0, axis, block: 0, saturate: true, dtype: None, precision: None }
    }
}

fn sample(form: usize, attrs: Attrs, inputs: Vec<Tensor>) -> Option<Sample> {
    let reader = Reader { attrs: &attrs, version: 28, inputs: inputs.len(), outputs: 1 };
    read(&reader, form).ok().map(|op| Sample::new(op, inputs))
}

fn samples(form: usize) -> Vec<Sample> {
    let none = Attrs::new;
    let dtype = |d: DType| none().int("output_dtype", d.to_onnx().into());
    let scales = Tensor::vector(&[0.01f32, 0.02, 0.5]);
    let plain = [
        (none(), vec![ramp(&[4, 3]), Tensor::scalar(0.01f32), Tensor::scalar(7u8)]),
        (none(), vec![ramp(&[4, 3]), scales.clone(), Tensor::vector(&[1i8, -3, 0])]),
        (none().int("axis", 0), vec![ramp(&[3, 2, 2]), scales.clone()]),
        (none(), vec![ramp(&[2, 3]), scales, Tensor::vector(&[1u16, 300, 0])]),
    ];
    let newer = [
        (none().int("axis", 0).int("block_size", 2), vec![ramp(&[3, 2]), ramp(&[2, 2])]),
        (dtype(DType::I4), vec![ramp(&[5]), Tensor::scalar(0.1f32)]),
        (dtype(DType::F8E4M3FN), vec![ramp(&[5]), Tensor::scalar(0.1f32)]),
        (dtype(DType::F4E2M1), vec![ramp(&[5]), Tensor::scalar(0.1f32)]),
        (none(), vec![ramp(&[5]), Tensor::scalar(f16::from_f32(0.01))]),
    ];
    let newer = newer.into_iter().filter(|_| form != 2);
    plain.into_iter().chain(newer).filter_map(|(attrs, inputs)| sample(form, attrs, inputs)).collect()
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "QuantizeLinear",
        domain: "",
        since: 10,
        read: |r| Ok(Arc::new(read(r, 0)?)),
        samples: || samples(0),
    },
    // Since 23 the division has the precision of the scale's type.
    OpDef {
        name: "QuantizeLinear",
        domain: "",
        since: 23,
        read: |r| Ok(Arc::new(read(r, 1)?)),
        samples: || samples(1),
    },
    OpDef {
        name: "QuantizeLinear",
        domain: "com.microsoft",
        since: 1,
        read: |r| Ok(Arc::new(read(r, 2)?)),
        samples: || samples(2),
    },
];

/// A number as the nearest of a narrower type.
fn narrowed(to: DType) -> Result<fn(f32) -> f32> {
    match to {
        DType::F16 => Ok(|x| f16::from_f32(x).to_f32()),
        DType::BF16 => Ok(|x| bf16::from_f32(x).to_f32()),
        DType::F32 | DType::F64 | DType::F8E8M0 => Ok(|x| x),
        other => Err(Error::unsupported(format!("a division in {other}"))),
    }
}

/// What is divided by what.
struct Division<'a> {
    x: Cow<'a, [f32]>,
    scale: Cow<'a, [f32]>,
    grid: Grid,
    narrow: Option<fn(f32) -> f32>,
}

impl Division<'_> {
    /// Calls `put(element, quotient, parameter)` for all elements.
    fn each(&self, mut put: impl FnMut(usize, f32, usize)) {
        let narrow = self.narrow.unwrap_or(|x| x);
        self.grid.runs(|elements, params| {
            for (i, at) in elements.enumerate() {
                let param = match params {
                    Params::One(p) => p,
                    Params::From(p) => p + i,
                };
                put(at, narrow(narrow(self.x[at]) / narrow(self.scale[param])), param);
            }
        });
    }

    fn codes<T: Code>(&self, shape: &[usize], rounders: &[Rounder]) -> Result<Tensor> {
        Tensor::fill(shape, |out: &mut [T]| {
            self.each(|at, x, param| out[at] = T::from_i32(rounders[param].code(x)));
            Ok(())
        })
    }

    /// Bytes with one scale for all, if that is the case.
    fn bytes(&self, cpu: &Cpu, dtype: DType, zero: i64, shape: &[usize]) -> Result<Option<Tensor>> {
        if !self.grid.is_single() || self.narrow.is_some() {
            return Ok(None);
        }
        let scale = self.scale[0];
        let made = match dtype {
            DType::U8 => Tensor::fill(shape, |out| {
                quantize_u8(cpu, &self.x, scale, zero as u8, out);
                Ok(())
            }),
            DType::I8 => Tensor::fill(shape, |out| {
                quantize_s8(cpu, &self.x, scale, zero as i8, out);
                Ok(())
            }),
            _ => return Ok(None),
        };
        made.map(Some)
    }
}

impl Op for QuantizeLinear {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.form]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dtype = match inputs.get(2) {
            Some(zero) => zero.dtype(),
            None => Some(self.dtype.unwrap_or(DType::U8)),
        };
        infer::like_as(inputs, 0, dtype)
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, scale, zero) = (inputs.need(0)?, inputs.need(1)?, inputs.get(2)?);
        let dtype = zero.map_or(self.dtype.unwrap_or(DType::U8), Tensor::dtype);
        if self.dtype.is_some_and(|d| d != dtype) {
            return Err(Error::invalid(format!("output_dtype is not the zero point's type {dtype}")));
        }
        if zero.is_some_and(|z| z.len() != scale.len()) {
            return Err(Error::invalid("scales and zero points differ in number"));
        }
        let precision = self.precision.or((self.form == 1).then_some(scale.dtype()));
        let narrow = precision.filter(|d| *d != DType::F32).map(narrowed).transpose()?;
        let grid = Grid::new(x.shape(), scale.shape(), self.axis, self.block)?;
        let division = Division { x: x.to_f32()?, scale: scale.to_f32()?, grid, narrow };
        if range(dtype).is_some() {
            let zeros = match zero {
                Some(zero) => zero.to_ints()?,
                None => vec![0; division.grid.len],
            };
            let rounders: Vec<Rounder> = zeros
                .iter()
                .map(|&z| Ok(Rounder::new(in_range(dtype, z as i32)?, z as i32)))
                .collect::<Result<_>>()?;
            if let Some(bytes) = division.bytes(cx.cpu, dtype, zeros[0], x.shape())? {
                return Ok(vec![bytes]);
            }
            return Ok(vec![match dtype {
                DType::U8 => division.codes::<u8>(x.shape(), &rounders)?,
                DType::I8 => division.codes::<i8>(x.shape(), &rounders)?,
                DType::U16 => division.codes::<u16>(x.shape(), &rounders)?,
                DType::I16 => division.codes::<i16>(x.shape(), &rounders)?,
                packed => {
                    let codes = division.codes::<u8>(x.shape(), &rounders)?;
                    Tensor::pack(packed, x.shape(), codes.as_slice()?)?
                }
            }]);
        }
        if zero.is_some_and(|z| z.to_f32().is_ok_and(|z| z.iter().any(|&v| v != 0.0))) {
            return Err(Error::unsupported(format!("a zero point other than zero for {dtype}")));
        }
        let mut codes = vec![0u8; x.len()];
        match dtype {
            DType::F4E2M1 => division.each(|at, x, _| codes[at] = encode_f4(x)),
            f8 if f8.is_f8() => division.each(|at, x, _| codes[at] = encode_f8(f8, x, self.saturate)),
            other => return Err(Error::unsupported(format!("QuantizeLinear to {other}"))),
        }
        Ok(vec![match dtype {
            DType::F4E2M1 => Tensor::pack(dtype, x.shape(), &codes)?,
            _ => Tensor::from_bytes(dtype, x.shape(), codes.into())?.aligned(),
        }])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        (self.block == 0).then_some(())?;
        if cx.facts.get(1)?.count() == Some(1) {
            return cx.first();
        }
        let axis = cx.axis(self.axis)?;
        Some(cx.first()?.by(QuantizeLinear {
            axis,
            attrs: self.attrs.clone().int("axis", axis),
            ..self.clone()
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
