//! onnxruntime's `GatherBlockQuantized`: rows of a quantised table as real numbers, such as embeddings.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized>

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use super::nbits::code;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, infer};

/// `GatherBlockQuantized`: table, indices, scales, zero points.
#[derive(Debug)]
pub struct GatherBlockQuantized {
    attrs: Attrs,
    gather_axis: i64,
    axis: i64,
    block: i64,
    bits: usize,
}

fn new(attrs: &Attrs) -> Result<GatherBlockQuantized> {
    let bits = attrs.int_or("bits", 4)?;
    if ![2, 4, 8].contains(&bits) {
        return Err(Error::unsupported(format!("a table of {bits} bits")));
    }
    Ok(GatherBlockQuantized {
        gather_axis: attrs.int_or("gather_axis", 0)?,
        axis: attrs.int_or("quantize_axis", 1)?,
        block: attrs.int_or("block_size", 128)?,
        bits: bits as usize,
        attrs: attrs.clone(),
    })
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "GatherBlockQuantized",
    domain: "com.microsoft",
    since: 1,
    read: |r| Ok(Arc::new(new(r.attrs)?)),
    samples: || {
        let codes: Vec<u8> = (0..4 * 24).map(|i| (i * 73 + 5) as u8).collect();
        let attrs = || Attrs::new().int("block_size", 16);
        let rows = || Tensor::new(&[2, 1], &[3i64, -4]);
        let nibbles = Tensor::pack(DType::U4, &[4, 24], &codes).ok().zip(rows().ok());
        let zeros = Tensor::pack(DType::U4, &[4, 2], &codes[..8]).ok();
        let bytes = Tensor::new(&[4, 24], &codes).ok().zip(rows().ok());
        let wide = attrs().int("gather_axis", 1).int("quantize_axis", 0);
        let mut found = Vec::new();
        if let (Some((data, rows)), Some(zeros), Ok(op)) = (nibbles, zeros, new(&attrs())) {
            found.push(Sample::new(op, vec![data.clone(), rows.clone(), ramp(&[4, 2]), zeros]));
            found.extend(new(&wide).ok().map(|op| Sample::new(op, vec![data, rows, ramp(&[1, 24])])));
        }
        if let Some((data, rows)) = bytes {
            let packed = new(&attrs())
                .ok()
                .map(|op| Sample::new(op, vec![data.clone(), rows.clone(), ramp(&[4, 3]), sample_zeros()]));
            let whole =
                new(&attrs().int("bits", 8)).ok().map(|op| Sample::new(op, vec![data, rows, ramp(&[4, 2])]));
            found.extend(packed.into_iter().chain(whole));
        }
        found
    },
}];

/// Packed zero points for a table of four rows of three blocks.
fn sample_zeros() -> Tensor {
    let zeros: Vec<u8> = (0..8).map(|i| i * 31 + 2).collect();
    Tensor::new(&[4, 2], &zeros).unwrap_or_else(|_| Tensor::vector(&zeros))
}

/// Codes of a tensor, several to a byte or not.
struct Codes<'a> {
    shape: Vec<usize>,
    values: Values<'a>,
}

enum Values<'a> {
    /// Bytes of each line along the last axis, and the bits of a code.
    Packed(&'a [u8], usize, usize),
    Real(Cow<'a, [f32]>),
}

impl Codes<'_> {
    fn new<'a>(x: &'a Tensor, bits: usize, last: Option<usize>) -> Result<Codes<'a>> {
        let mut shape = x.shape().to_vec();
        if x.dtype() != DType::U8 {
            return Ok(Codes { shape, values: Values::Real(x.to_f32()?) });
        }
        let line = shape.last().copied().ok_or_else(|| Error::invalid("a table has axes"))?;
        if let Some(size) = shape.last_mut() {
            let most = line.checked_mul(8 / bits).ok_or_else(|| Error::invalid("the table is too big"))?;
            *size = last.unwrap_or(most);
            if size.div_ceil(8 / bits) != line {
                return Err(Error::invalid(format!("{x:?} does not hold {size} codes in a line")));
            }
        }
        Ok(Codes { shape, values: Values::Packed(x.bytes(), line, bits) })
    }

    fn at(&self, i: usize) -> f32 {
        match &self.values {
            Values::Real(values) => values[i],
            Values::Packed(bytes, line, bits) => {
                let last = self.shape.last().copied().unwrap_or(1);
                f32::from(code(&bytes[i / last * line..][..*line], i % last, *bits))
            }
        }
    }
}

impl Op for GatherBlockQuantized {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (data, indices) = (inputs.need(0)?, inputs.need(1)?);
        let dtype = inputs.dtype(2);
        let (Some(shape), Some(indices), Some(kind)) = (data.shape(), indices.shape(), data.dtype()) else {
            return Ok(vec![Fact::maybe(dtype, None)]);
        };
        let mut shape = shape.to_vec();
        if let (DType::U8, Some(last)) = (kind, shape.last_mut()) {
            *last = last.times(&Dim::from(8 / self.bits));
        }
        let axis = infer::axis(self.gather_axis, shape.len())?;
        shape.splice(axis..=axis, indices.iter().cloned());
        Ok(vec![Fact::maybe(dtype, Some(shape))])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (data, indices, scales) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let table = Codes::new(data, self.bits, None)?;
        let shape = &table.shape;
        let (rank, bytes) = (shape.len(), data.dtype() == DType::U8);
        let (gather, axis) = (infer::axis(self.gather_axis, rank)?, infer::axis(self.axis, rank)?);
        let block = match usize::try_from(self.block) {
            Ok(0) => shape[axis].max(1),
            Ok(block) => block,
            Err(_) => return Err(Error::invalid(format!("block_size {} is negative", self.block))),
        };
        let fits = scales.rank() == rank
            && (0..rank).all(|i| match i == axis {
                true => scales.shape()[i] == shape[i].div_ceil(block),
                false => scales.shape()[i] == shape[i] || scales.shape()[i] == 1 && data.dtype().is_float(),
            });
        if !fits {
            return Err(Error::invalid(format!("scales {scales:?} do not fit the table {data:?}")));
        }
        let zeros =
            inputs.get(3)?.map(|z| Codes::new(z, self.bits, scales.shape().last().copied())).transpose()?;
        if zeros.as_ref().is_some_and(|z| z.shape != scales.shape()) {
            return Err(Error::invalid("there must be a zero point for each scale"));
        }
        let middle = if bytes { (1u32 << (self.bits - 1)) as f32 } else { 0.0 };
        let size = shape[gather];
        let picks = (indices.to_ints()?.into_iter())
            .map(|i| {
                let at = if i < 0 { i + size as i64 } else { i };
                usize::try_from(at)
                    .ok()
                    .filter(|&a| a < size)
                    .ok_or_else(|| Error::invalid(format!("index {i} is out of range for an axis of {size}")))
            })
            .collect::<Result<Vec<usize>>>()?;
        let mut out_shape = shape.clone();
        out_shape.splice(gather..=gather, indices.shape().iter().copied());
        let outer: usize = shape[..gather].iter().product();
        let inner: usize = shape[gather + 1..].iter().product();
        let values = scales.to_f32()?;
        let mut steps = vec![0; rank];
        let mut step = 1;
        for i in (0..rank).rev() {
            steps[i] = if scales.shape()[i] == 1 { 0 } else { step };
            step *= scales.shape()[i];
        }
        let y = Tensor::fill(&out_shape, |out: &mut [f32]| {
            let places = (0..outer).flat_map(|o| picks.iter().map(move |p| (o * size + p) * inner));
            for (first, line) in places.zip(out.chunks_mut(inner.max(1))) {
                for (i, o) in line.iter_mut().enumerate() {
                    let (mut rest, mut at) = (first + i, 0);
                    for k in (0..rank).rev() {
                        let index = rest % shape[k];
                        rest /= shape[k];
                        at += steps[k] * if k == axis { index / block } else { index };
                    }
                    let zero = zeros.as_ref().map_or(middle, |z| z.at(at));
                    *o = (table.at(first + i) - zero) * values[at];
                }
            }
            Ok(())
        })?;
        Ok(vec![cast(y, scales.dtype(), true)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
