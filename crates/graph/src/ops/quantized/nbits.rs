//! onnxruntime's `MatMulNBits`: products with weights of 2 to 8 bits, with a scale for each block of inputs.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits>

use std::any::Any;
use std::sync::Arc;

use super::rows::times_rows;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// `MatMulNBits`: `a * ((b - zero) * scale)^T + bias`.
#[derive(Debug)]
pub struct MatMulNBits {
    attrs: Attrs,
    /// Inputs of a row of weights.
    pub k: usize,
    /// Rows of weights.
    pub n: usize,
    /// Bits of a weight.
    pub bits: usize,
    /// Inputs that share a scale.
    pub block: usize,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "MatMulNBits",
    domain: "com.microsoft",
    since: 1,
    read: |r| Ok(Arc::new(MatMulNBits::new(r)?)),
    samples: || [2, 4, 8].into_iter().flat_map(samples).flatten().collect(),
}];

/// An attribute that counts something.
pub(super) fn count_attr(attrs: &Attrs, name: &str) -> Result<usize> {
    let value = attrs.need_int(name)?;
    let count = usize::try_from(value).ok().filter(|&v| v > 0 && v < 1 << 40);
    count.ok_or_else(|| Error::invalid(format!("{name} is {value}; it must be positive")))
}

fn samples(bits: usize) -> [Option<Sample>; 4] {
    let (k, n, block) = (40usize, 3usize, 16usize);
    let blocks = k.div_ceil(block);
    let attrs = Attrs::new().int("K", k as i64).int("N", n as i64).int("bits", bits as i64);
    let attrs = attrs.int("block_size", block as i64);
    let bytes = |count: usize| Tensor::vector(&(0..count).map(|i| (i * 73 + 5) as u8).collect::<Vec<u8>>());
    let size = block * bits / 8;
    let one = |zero: Option<Tensor>, group: Option<Tensor>, bias: Option<Tensor>, a: &[usize]| {
        let reader = Reader { attrs: &attrs, version: 1, inputs: 6, outputs: 1 };
        let op = Arc::new(MatMulNBits::new(&reader).ok()?);
        let b = bytes(n * blocks * size).reshaped(&[n, blocks, size]).ok()?;
        let scales = ramp(&[n, blocks]);
        let inputs = [Some(ramp(a)), Some(b), Some(scales), zero, group, bias];
        let inputs = inputs.into_iter().map(|t| t.map(Into::into)).collect();
        Some(Sample { op, inputs, outputs: 1, grads: Vec::new(), tolerance: 1e-5 })
    };
    let zeros = bytes(n * (blocks * bits).div_ceil(8));
    let groups: Vec<i32> = (0..k).map(|i| (i % blocks) as i32).collect();
    [
        one(None, None, None, &[2, 5, k]),
        one(Some(zeros), None, Some(ramp(&[n])), &[1, k]),
        one(Some(ramp(&[n, blocks])), None, None, &[2, k]),
        one(None, Some(Tensor::vector(&groups)), None, &[2, k]),
    ]
}

/// The code at a place of a dense little-endian stream of `bits` wide codes.
pub(super) fn code(stream: &[u8], i: usize, bits: usize) -> u8 {
    let at = i * bits;
    let word = u16::from(stream[at / 8]) | u16::from(stream.get(at / 8 + 1).copied().unwrap_or(0)) << 8;
    (word >> (at % 8)) as u8 & (0xff >> (8 - bits))
}

enum Zeros<'a> {
    Same(f32),
    Packed(&'a [u8], usize),
    Real(Vec<f32>),
}

impl MatMulNBits {
    fn new(r: &Reader) -> Result<MatMulNBits> {
        let attrs = r.attrs;
        let bits = attrs.int_or("bits", 4)?;
        let block = count_attr(attrs, "block_size")?;
        if !(1..=8).contains(&bits) || !(block * bits as usize).is_multiple_of(8) {
            return Err(Error::unsupported(format!("weights of {bits} bits in blocks of {block}")));
        }
        if attrs.int_or("weight_prepacked", 0)? != 0 {
            return Err(Error::unsupported("weights that are laid out for a graphics processor"));
        }
        let (k, n) = (count_attr(attrs, "K")?, count_attr(attrs, "N")?);
        Ok(MatMulNBits { k, n, bits: bits as usize, block, attrs: attrs.clone() })
    }
}

impl Op for MatMulNBits {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        Ok(vec![with_last(inputs.need(0)?, self.k, self.n)?])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (a, b, scales) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let blocks = self.k.div_ceil(self.block);
        let size = self.block * self.bits / 8;
        let count = self.n.checked_mul(blocks).filter(|c| c.checked_mul(size) == Some(b.len()));
        let count = count.filter(|&c| c == scales.len() && b.dtype() == DType::U8);
        let count =
            count.ok_or_else(|| Error::invalid(format!("weights {b:?} and scales {scales:?} do not fit")))?;
        let scales = scales.to_f32()?;
        let row = (blocks * self.bits).div_ceil(8);
        let zeros = match inputs.get(3)? {
            None => Zeros::Same((1u32 << (self.bits - 1)) as f32),
            Some(z) if z.dtype() == DType::U8 && z.len() == self.n * row => Zeros::Packed(z.bytes(), row),
            Some(z) if z.dtype().is_float() && z.len() == count => Zeros::Real(z.to_f32()?.into_owned()),
            Some(z) => return Err(Error::invalid(format!("zero points {z:?} do not fit"))),
        };
        let groups = match inputs.ints(4)? {
            None => None,
            Some(g) if g.len() >= self.k && g.iter().all(|g| (0..blocks as i64).contains(g)) => Some(g),
            Some(_) => return Err(Error::invalid("g_idx does not name a block for each input")),
        };
        let bias = match inputs.get(5)? {
            Some(bias) if bias.len() != self.n => return Err(Error::invalid("the bias does not fit")),
            bias => bias.map(Tensor::to_f32).transpose()?,
        };
        let zero = |n: usize, block: usize| match &zeros {
            Zeros::Same(zero) => *zero,
            Zeros::Packed(bytes, row) => f32::from(code(&bytes[n * row..][..*row], block, self.bits)),
            Zeros::Real(values) => values[n * blocks + block],
        };
        let codes = b.bytes();
        let decode = |n: usize, out: &mut [f32]| {
            for (block, out) in out.chunks_mut(self.block).enumerate() {
                let stream = &codes[(n * blocks + block) * size..][..size];
                let (scale, zero) = (scales[n * blocks + block], zero(n, block));
                match self.bits {
                    4 => {
                        for (pair, &byte) in out.chunks_mut(2).zip(stream) {
                            pair[0] = (f32::from(byte & 15) - zero) * scale;
                            if let Some(second) = pair.get_mut(1) {
                                *second = (f32::from(byte >> 4) - zero) * scale;
                            }
                        }
                    }
                    bits => {
                        for (i, o) in out.iter_mut().enumerate() {
                            *o = (f32::from(code(stream, i, bits)) - zero) * scale;
                        }
                    }
                }
            }
        };
        let grouped = |n: usize, out: &mut [f32]| {
            for (i, (o, &group)) in out.iter_mut().zip(groups.iter().flatten()).enumerate() {
                let stream = &codes[(n * blocks + i / self.block) * size..][..size];
                let real = f32::from(code(stream, i % self.block, self.bits)) - zero(n, group as usize);
                *o = real * scales[n * blocks + group as usize];
            }
        };
        let (m, shape) = lines(a, self.k, self.n)?;
        let sizes = [m, self.k, self.n];
        let (values, bias) = (a.to_f32()?, bias.as_deref());
        let y = match groups.is_some() {
            true => times_rows(cx.cpu, &values, sizes, bias, grouped)?,
            false => times_rows(cx.cpu, &values, sizes, bias, decode)?,
        };
        Ok(vec![cast(y.reshaped(&shape)?, a.dtype(), true)?])
    }

    fn mul_adds(&self, inputs: &Facts, _: &[Fact]) -> u64 {
        inputs.get(0).and_then(Fact::count).map_or(0, |count| (count as u64).saturating_mul(self.n as u64))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The fact of a tensor whose last axis of size `from` becomes one of size `to`.
pub(super) fn with_last(x: &Fact, from: usize, to: usize) -> Result<Fact> {
    let Some(shape) = x.shape() else { return Ok(Fact::maybe(x.dtype(), None)) };
    match shape.split_last() {
        Some((last, rest)) if last.size().is_none_or(|n| n == from) => {
            Ok(Fact::maybe(x.dtype(), Some([rest, &[Dim::from(to)]].concat())))
        }
        _ => Err(Error::invalid(format!("{x} does not end in {from} elements"))),
    }
}

/// The rows of a tensor whose last axis has size `from`, and its shape when that becomes `to`.
pub(super) fn lines(x: &Tensor, from: usize, to: usize) -> Result<(usize, Vec<usize>)> {
    match x.shape().split_last() {
        Some((last, rest)) if *last == from => Ok((rest.iter().product(), [rest, &[to]].concat())),
        _ => Err(Error::invalid(format!("{x:?} does not end in {from} elements"))),
    }
}
