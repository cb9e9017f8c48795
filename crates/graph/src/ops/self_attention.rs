//! `Attention` and `EmbedLayerNormalization` of `com.microsoft`: the two operators that onnxruntime makes of BERT.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.Attention>

use std::any::Any;
use std::sync::Arc;

use kernel::f32::{Post, matmul};
use kernel::matmul::{Bias, View};
use kernel::norm::{Extra, Kind, Norm, norm};

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, WeightKind, WeightUse, ramp};
use crate::ops::halves::in_f32;
use crate::ops::heads::{Heads, Scores, attend, masked};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// Attention with the projections of queries, keys and values in it.
#[derive(Debug)]
pub struct SelfAttention {
    heads: usize,
    causal: bool,
    scale: Option<f32>,
    filter: Option<f32>,
    /// Columns of queries, keys and values, when they differ.
    sizes: Option<Vec<i64>>,
}

/// Sum of the embeddings of words, places and segments, normalised.
#[derive(Debug)]
pub struct EmbedLayerNorm {
    epsilon: f32,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "Attention",
        domain: "com.microsoft",
        since: 1,
        read: |r| {
            if r.attrs.flag_or("do_rotary", false)? || r.attrs.flag_or("past_present_share_buffer", false)? {
                return Err(Error::unsupported("com.microsoft.Attention with do_rotary or a shared cache"));
            }
            let heads = usize::try_from(r.attrs.need_int("num_heads")?).ok().filter(|&h| h > 0);
            Ok(Arc::new(SelfAttention {
                heads: heads.ok_or_else(|| Error::invalid("num_heads must be positive"))?,
                causal: r.attrs.flag_or("unidirectional", false)?,
                scale: r.attrs.opt_float("scale")?.filter(|&s| s != 0.0),
                filter: r.attrs.opt_float("mask_filter_value")?,
                sizes: r.attrs.opt_ints("qkv_hidden_sizes")?,
            }))
        },
        samples: || {
            let op = |causal| SelfAttention { heads: 2, causal, scale: None, filter: None, sizes: None };
            let inputs = || vec![ramp(&[2, 3, 8]), ramp(&[8, 24]), ramp(&[24])];
            vec![Sample::new(op(false), inputs()), Sample::new(op(true), inputs()).outputs(2)]
        },
    },
    OpDef {
        name: "EmbedLayerNormalization",
        domain: "com.microsoft",
        since: 1,
        read: |r| {
            if r.attrs.int_or("mask_index_type", 0)? != 0 && r.inputs > 7 {
                return Err(Error::unsupported("EmbedLayerNormalization with mask_index_type"));
            }
            Ok(Arc::new(EmbedLayerNorm { epsilon: r.attrs.float_or("epsilon", 1e-12)? }))
        },
        samples: || {
            let ids = Tensor::new(&[1, 3], &[1i32, 0, 2]);
            let tables = || vec![ramp(&[4, 6]), ramp(&[5, 6]), ramp(&[3, 6]), ramp(&[6]), ramp(&[6])];
            let sample = |ids: Tensor| {
                let op = EmbedLayerNorm { epsilon: 1e-5 };
                Sample::new(op, [vec![ids.clone(), ids], tables()].concat()).outputs(3)
            };
            ids.into_iter().map(sample).collect()
        },
    },
];

impl SelfAttention {
    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let (x, w) = (inputs.need(0)?, inputs.need(1)?);
        let (&[batch, rows, hidden], &[depth, columns]) = (x.shape(), w.shape()) else {
            return Err(Error::invalid(format!("attention of {:?} with weights {:?}", x.shape(), w.shape())));
        };
        let sizes: Vec<usize> = match &self.sizes {
            Some(sizes) => sizes.iter().filter_map(|&n| usize::try_from(n).ok()).collect(),
            None => vec![columns / 3; 3],
        };
        let bias = inputs.get(2)?.map(|b| b.as_slice::<f32>()).transpose()?;
        if sizes.len() != 3
            || sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(columns)
            || sizes.iter().any(|n| n % self.heads != 0)
            || depth != hidden
            || bias.is_some_and(|b| b.len() != columns)
        {
            return Err(Error::invalid(format!(
                "weights of shape {:?} do not fit {} heads",
                w.shape(),
                self.heads
            )));
        }
        let (x, w) = (View::new(x.as_slice()?, batch * rows, hidden), w.as_slice::<f32>()?);
        let mut at = 0;
        let mut project = |n: usize| -> Result<(Tensor, Heads)> {
            let layout = Heads { batch, heads: self.heads, rows, width: n / self.heads, rows_first: true };
            let post =
                Post { bias: bias.map_or(Bias::None, |b| Bias::Col(&b[at..at + n])), ..Post::default() };
            let part = View::strided(&w[at.min(w.len())..], hidden, n, columns, 1);
            let y = Tensor::fill(&layout.shape(), |y| {
                matmul(cx.cpu, x, part, y, n, &post);
                Ok(())
            })?;
            at += n;
            Ok((y, layout))
        };
        let (q, queries) = project(sizes[0])?;
        let (mut k, mut key) = project(sizes[1])?;
        let (mut v, mut value) = project(sizes[2])?;
        let mut before = 0;
        let mut outputs = Vec::new();
        let past = if inputs.len() > 4 { inputs.get(4)? } else { None };
        if past.is_some() || cx.outputs > 1 {
            let none = || Tensor::zeros(DType::F32, &[2, batch, self.heads, 0, key.width]);
            let past = past.cloned().map_or_else(none, Ok)?;
            let &[2, b, h, n, width] = past.shape() else {
                return Err(Error::invalid(format!("a cache of shape {:?}", past.shape())));
            };
            let half = past.len() / 2;
            let data = past.as_slice::<f32>()?;
            let old = |part: &[f32]| Tensor::new(&[b, h, n, width], part);
            (k, key) = key.after(&old(&data[..half])?, &k)?;
            (v, value) = value.after(&old(&data[half..])?, &v)?;
            before = n;
            let both = [k.as_slice::<f32>()?, v.as_slice::<f32>()?].concat();
            if k.shape() == v.shape() {
                outputs.push(Tensor::new(&[&[2], k.shape()].concat(), &both)?);
            }
        }
        let mut bias = if inputs.len() > 5 { inputs.get(5)?.cloned() } else { None };
        let mut counts = None;
        if let Some(mask) = inputs.get(3)? {
            let marks = mask.to_ints()?;
            let shape = match *mask.shape() {
                [b] if b == batch => None,
                [b, n] if b == batch && n == key.rows => Some(vec![b, 1, 1, n]),
                [b, m, n] if b == batch && m == rows && n == key.rows => Some(vec![b, 1, m, n]),
                ref other => return Err(Error::unsupported(format!("a mask_index of shape {other:?}"))),
            };
            match shape {
                None => counts = Some(marks),
                Some(shape) => {
                    bias = Some(masked(bias, &marks, &shape, self.filter)?);
                }
            }
        }
        let scores = Scores {
            scale: self.scale.unwrap_or(1.0 / (queries.width as f32).sqrt()),
            softcap: 0.0,
            bias,
            causal: self.causal,
            window: [None; 2],
            offsets: vec![before as i64; batch],
            counts,
            sink: None,
        };
        let (y, _) = attend(cx.cpu, (&queries, &q), (&key, &k), (&value, &v), &scores, None)?;
        outputs.insert(0, y);
        Ok(outputs)
    }
}

impl Op for SelfAttention {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .int("num_heads", self.heads as i64)
            .maybe("mask_filter_value", self.filter.map(Attr::Float))
            .maybe("qkv_hidden_sizes", self.sizes.clone().map(Attr::Ints))
            .maybe("scale", self.scale.map(Attr::Float))
            .maybe("unidirectional", self.causal.then_some(Attr::Int(1)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let width = match &self.sizes {
            Some(sizes) => sizes.get(2).map_or(Dim::Unknown, |&n| Dim::Is(n)),
            None => inputs.shape(1).and_then(|s| s.get(1)).map_or(Dim::Unknown, |n| n.over(&Dim::Is(3))),
        };
        let shape = match x.shape() {
            Some([b, r, _]) => Some(vec![b.clone(), r.clone(), width]),
            _ => None,
        };
        let cache = Fact::maybe(x.dtype(), Some(vec![Dim::Unknown; 5]));
        Ok([Fact::maybe(x.dtype(), shape), cache].into_iter().take(inputs.outputs.max(1)).collect())
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| self.run_f32(cx, &inputs))
    }

    fn weight(&self) -> Option<WeightUse> {
        Some(WeightUse { input: 1, out_axis: 1, kind: WeightKind::MatMul })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Adds the rows of a table that `ids` name.
fn add_rows(sum: &mut [f32], width: usize, table: &Tensor, ids: impl Iterator<Item = i64>) -> Result<()> {
    let data = table.as_slice::<f32>()?;
    if table.shape().last() != Some(&width) {
        return Err(Error::invalid(format!("a table of shape {:?} for rows of {width}", table.shape())));
    }
    for (row, id) in sum.chunks_mut(width.max(1)).zip(ids) {
        let at = usize::try_from(id).ok().and_then(|id| id.checked_mul(width));
        let found = at.and_then(|at| data.get(at..)?.get(..width));
        let found =
            found.ok_or_else(|| Error::invalid(format!("there is no row {id} in {:?}", table.shape())))?;
        row.iter_mut().zip(found).for_each(|(s, v)| *s += v);
    }
    Ok(())
}

impl Op for EmbedLayerNorm {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().float("epsilon", self.epsilon)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let width = inputs.shape(2).and_then(|s| s.get(1)).cloned().unwrap_or_default();
        let ids = inputs.shape(0).filter(|s| s.len() == 2);
        let full = ids.map(|s| vec![s[0].clone(), s[1].clone(), width]);
        let mask = Fact::maybe(Some(DType::I32), ids.map(|s| vec![s[0].clone()]));
        let y = Fact::maybe(inputs.dtype(2), full);
        Ok([y.clone(), mask, y].into_iter().take(inputs.outputs.max(1)).collect())
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(2)?.dtype();
        in_f32(dtype, inputs, |inputs| {
            let ids = inputs.need(0)?;
            let &[batch, rows] = ids.shape() else {
                return Err(Error::invalid(format!("word ids of shape {:?}", ids.shape())));
            };
            let (words, gamma) = (inputs.need(2)?, inputs.f32(5)?);
            let width = gamma.len();
            let beta = inputs.f32(6)?;
            if beta.len() != width {
                return Err(Error::invalid("scale and shift differ in length"));
            }
            let mut sum = Tensor::zeros(DType::F32, &[batch, rows, width])?;
            let data = sum.as_mut_slice::<f32>()?;
            add_rows(data, width, words, ids.to_ints()?.into_iter())?;
            let places = if inputs.len() > 8 { inputs.ints(8)? } else { None };
            match places {
                Some(p) if p.len() == rows => {
                    add_rows(data, width, inputs.need(3)?, p.iter().copied().cycle().take(batch * rows))?;
                }
                Some(p) if p.len() == batch * rows => add_rows(data, width, inputs.need(3)?, p.into_iter())?,
                Some(p) => {
                    return Err(Error::invalid(format!("{} places for {batch} x {rows} words", p.len())));
                }
                None => {
                    let own = (0..batch).flat_map(|_| 0..rows as i64);
                    add_rows(data, width, inputs.need(3)?, own)?;
                }
            }
            if let (Some(segments), Some(table)) = (inputs.ints(1)?, inputs.get(4)?) {
                if segments.len() != batch * rows {
                    return Err(Error::invalid("segment ids differ in shape from word ids"));
                }
                add_rows(data, width, table, segments.into_iter())?;
            }
            let y = Tensor::fill(sum.shape(), |y| {
                let plan =
                    Norm { kind: Kind::Layer, epsilon: self.epsilon, gamma: Some(gamma), beta: Some(beta) };
                norm(cx.cpu, plan, sum.as_slice()?, width, Extra::default(), y);
                Ok(())
            })?;
            let counts: Vec<i32> = match inputs.ints(7)? {
                Some(mask) if mask.len() == batch * rows => mask
                    .chunks(rows.max(1))
                    .map(|row| row.iter().filter(|&&m| m == 1).count() as i32)
                    .collect(),
                Some(mask) => return Err(Error::invalid(format!("a mask of {} numbers", mask.len()))),
                None => vec![0; batch],
            };
            let counts = Tensor::new(&[batch], &counts)?;
            Ok(vec![y, counts, sum].into_iter().take(cx.outputs.max(1)).collect())
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
