//! onnxruntime's `MatMulBnb4`: products with weights in the 4-bit floats of bitsandbytes (FP4, NF4).
//! Dettmers et al., "QLoRA", 2023, appendix E; <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::sync::Arc;

use super::nbits::{count_attr, lines, with_last};
use super::rows::times_rows;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::{Attrs, Error, Fact, Op, Result, Tensor};

const FP4: [f32; 16] = [
    0.0,
    5.208_333_3e-3,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -5.208_333_3e-3,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// `MatMulBnb4`: `a * (b * absmax)^T`, the weights `[N, K]` in one stream of blocks, the high nibble first.
#[derive(Debug)]
pub struct MatMulBnb4 {
    attrs: Attrs,
    k: usize,
    n: usize,
    block: usize,
    normal: bool,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "MatMulBnb4",
    domain: "com.microsoft",
    since: 1,
    read: |r| Ok(Arc::new(MatMulBnb4::new(r)?)),
    samples: || {
        let attrs = Attrs::new().int("K", 24).int("N", 3).int("block_size", 16);
        let one = |kind: i64| {
            let attrs = attrs.clone().int("quant_type", kind);
            let reader = Reader { attrs: &attrs, version: 1, inputs: 3, outputs: 1 };
            let bytes: Vec<u8> = (0..36).map(|i| (i * 73 + 5) as u8).collect();
            let inputs = vec![ramp(&[2, 24]), Tensor::vector(&bytes), ramp(&[5])];
            MatMulBnb4::new(&reader).ok().map(|op| Sample::new(op, inputs))
        };
        [one(0), one(1)].into_iter().flatten().collect()
    },
}];

impl MatMulBnb4 {
    fn new(r: &Reader) -> Result<MatMulBnb4> {
        let attrs = r.attrs;
        if !attrs.flag_or("transB", true)? {
            return Err(Error::unsupported("MatMulBnb4 with transB = 0 (the backward pass of training)"));
        }
        let normal = match attrs.need_int("quant_type")? {
            0 => false,
            1 => true,
            other => return Err(Error::invalid(format!("quant_type {other} is unknown"))),
        };
        let (k, n) = (count_attr(attrs, "K")?, count_attr(attrs, "N")?);
        Ok(MatMulBnb4 { k, n, block: count_attr(attrs, "block_size")?, normal, attrs: attrs.clone() })
    }
}

impl Op for MatMulBnb4 {
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
        let (a, b, most) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let count = self.n.checked_mul(self.k);
        if !count.is_some_and(|c| c.div_ceil(2) == b.bytes().len() && c.div_ceil(self.block) == most.len()) {
            return Err(Error::invalid(format!("weights {b:?} and scales {most:?} do not fit")));
        }
        let (bytes, most) = (b.bytes(), most.to_f32()?);
        let table = if self.normal { &NF4 } else { &FP4 };
        let (m, shape) = lines(a, self.k, self.n)?;
        let y = times_rows(cx.cpu, &a.to_f32()?, [m, self.k, self.n], None, |n, out| {
            for (i, o) in out.iter_mut().enumerate() {
                let at = n * self.k + i;
                let code = bytes[at / 2] >> (4 * (1 - at % 2)) & 15;
                *o = table[usize::from(code)] * most[at / self.block];
            }
        })?;
        Ok(vec![cast(y.reshaped(&shape)?, a.dtype(), true)?])
    }

    fn mul_adds(&self, inputs: &Facts, _: &[Fact]) -> u64 {
        inputs.get(0).and_then(Fact::count).map_or(0, |count| (count as u64).saturating_mul(self.n as u64))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
