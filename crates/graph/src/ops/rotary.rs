//! `RotaryEmbedding`, in ONNX and of `com.microsoft`: pairs of columns turned by an angle that depends on the place
//! (Su et al., "RoFormer", 2021). <https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html>
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::halves::in_f32;
use crate::{Attr, Attrs, DType, Error, Fact, Op, Result, Tensor};

/// Turns pairs of columns.
#[derive(Debug)]
pub struct Rotary {
    /// Of `com.microsoft`: the places come second.
    ms: bool,
    interleaved: bool,
    heads: i64,
    dim: i64,
    scale: f32,
    packed: bool,
}

impl Rotary {
    fn read(r: &Reader, ms: bool) -> Result<Arc<dyn Op>> {
        Ok(Arc::new(Rotary {
            ms,
            interleaved: r.attrs.flag_or("interleaved", false)?,
            heads: r.attrs.int_or("num_heads", 0)?,
            dim: r.attrs.int_or("rotary_embedding_dim", 0)?,
            scale: r.attrs.float_or("scale", 1.0)?,
            packed: r.attrs.flag_or("is_packed_batching", false)?,
        }))
    }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "RotaryEmbedding",
        domain: "",
        since: 23,
        read: |r| Rotary::read(r, false),
        samples: || {
            let op = |interleaved, heads, dim| Rotary {
                ms: false,
                interleaved,
                heads,
                dim,
                scale: 1.0,
                packed: false,
            };
            let places = Tensor::new(&[2, 3], &[0i64, 1, 2, 3, 1, 0]);
            let mut samples = vec![
                Sample::new(op(false, 0, 0), vec![ramp(&[2, 2, 3, 4]), ramp(&[2, 3, 2]), ramp(&[2, 3, 2])]),
                Sample::new(op(true, 2, 4), vec![ramp(&[2, 3, 12]), ramp(&[2, 3, 2]), ramp(&[2, 3, 2])]),
            ];
            if let Ok(places) = places {
                samples.push(Sample::new(
                    op(false, 2, 0),
                    vec![ramp(&[2, 3, 8]), ramp(&[5, 2]), ramp(&[5, 2]), places],
                ));
            }
            samples
        },
    },
    OpDef {
        name: "RotaryEmbedding",
        domain: "com.microsoft",
        since: 1,
        read: |r| Rotary::read(r, true),
        samples: || {
            let op = |interleaved, heads, dim| Rotary {
                ms: true,
                interleaved,
                heads,
                dim,
                scale: 1.0,
                packed: false,
            };
            let first = Tensor::vector(&[1i64]);
            vec![
                Sample::new(
                    op(false, 0, 0),
                    vec![ramp(&[1, 3, 8]), first.clone(), ramp(&[5, 2]), ramp(&[5, 2])],
                ),
                Sample::new(op(true, 0, 0), vec![ramp(&[1, 2, 3, 4]), first, ramp(&[5, 2]), ramp(&[5, 2])]),
            ]
        },
    },
];

/// Turns the first `2 * angles` of each `width` columns; `row(batch, place)` names the row of both tables.
pub(crate) struct Turn<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    /// Length of a row of the tables: the number of pairs.
    pub pairs: usize,
    pub interleaved: bool,
}

impl Turn<'_> {
    /// # Errors
    /// [`Error::Invalid`] when the tables have no such row.
    pub fn one(&self, head: &mut [f32], row: usize) -> Result<()> {
        let at = row.checked_mul(self.pairs).and_then(|a| Some(a..a.checked_add(self.pairs)?));
        let (cos, sin) = (at.clone().and_then(|r| self.cos.get(r)), at.and_then(|r| self.sin.get(r)));
        let (Some(cos), Some(sin)) = (cos, sin) else {
            return Err(Error::invalid(format!("place {row} is beyond the tables of angles")));
        };
        for (i, (c, s)) in cos.iter().zip(sin).enumerate() {
            let (x, y) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + self.pairs) };
            let (a, b) = (head[x], head[y]);
            head[x] = c * a - s * b;
            head[y] = s * a + c * b;
        }
        Ok(())
    }
}

impl Op for Rotary {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(self.ms)]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .int("interleaved", self.interleaved.into())
            .maybe("is_packed_batching", self.packed.then_some(Attr::Int(1)))
            .maybe("num_heads", (self.heads != 0).then_some(Attr::Int(self.heads)))
            .maybe("rotary_embedding_dim", (self.dim != 0).then_some(Attr::Int(self.dim)))
            .maybe("scale", (self.scale != 1.0).then_some(Attr::Float(self.scale)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        if self.packed {
            return Err(Error::unsupported("RotaryEmbedding with is_packed_batching"));
        }
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |mut inputs| {
            let mut x = inputs.take(0)?;
            if x.dtype() != DType::F32 {
                return Err(Error::unsupported(format!("RotaryEmbedding of {dtype}")));
            }
            let (tables, places) = if self.ms { (2, inputs.ints(1)?) } else { (1, inputs.ints(3)?) };
            let (cos, sin) = (inputs.need(tables)?, inputs.need(tables + 1)?);
            let pairs =
                *cos.shape().last().ok_or_else(|| Error::invalid("the table of angles has no axes"))?;
            let bad = || Error::invalid("num_heads or rotary_embedding_dim do not fit the input");
            let (batch, rows, heads, width, rows_first) = match *x.shape() {
                [b, h, r, w] => (b, r, h, w, false),
                [b, r, hidden] => {
                    let heads = match (usize::try_from(self.heads), self.dim) {
                        (Ok(h), _) if h > 0 => h,
                        // onnxruntime reads the width of a head off the tables.
                        (_, 0) if self.ms && pairs > 0 => hidden / (2 * pairs),
                        _ => return Err(bad()),
                    };
                    if heads == 0 || hidden % heads != 0 {
                        return Err(bad());
                    }
                    (b, r, heads, hidden / heads, true)
                }
                _ => return Err(Error::invalid(format!("RotaryEmbedding of shape {:?}", x.shape()))),
            };
            if 2 * pairs > width
                || cos.shape() != sin.shape()
                || (self.dim > 0 && self.dim as usize != 2 * pairs)
            {
                return Err(bad());
            }
            let offset = places.as_ref().filter(|p| self.ms && p.len() == 1).map(|p| p[0]);
            if let Some(p) = places.as_ref().filter(|p| offset.is_none() && p.len() != batch * rows) {
                return Err(Error::invalid(format!("{} places for {batch} x {rows} rows", p.len())));
            }
            if places.is_none() && cos.len() != batch * rows * pairs {
                return Err(Error::invalid(
                    "without position_ids the tables need a row for each row of the input",
                ));
            }
            let turn =
                Turn { cos: cos.as_slice()?, sin: sin.as_slice()?, pairs, interleaved: self.interleaved };
            for (i, head) in x.as_mut_slice::<f32>()?.chunks_mut(width.max(1)).enumerate() {
                let (b, r) = match rows_first {
                    true => (i / heads / rows, i / heads % rows),
                    false => (i / rows / heads, i % rows),
                };
                let row = match (&places, offset) {
                    (_, Some(first)) => first + r as i64,
                    (Some(places), None) => places[b * rows + r],
                    (None, None) => (b * rows + r) as i64,
                };
                turn.one(head, usize::try_from(row).map_err(|_| Error::invalid("a place is negative"))?)?;
            }
            Ok(vec![x])
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
