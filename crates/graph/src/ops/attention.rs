//! `Attention`: scaled dot-product attention with heads, masks and a cache of keys and values.
//! <https://onnx.ai/onnx/operators/onnx__Attention.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::halves::widen;
use crate::ops::heads::{Heads, Scores, attend};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// Scaled dot-product attention.
#[derive(Clone, Debug, Default)]
pub struct Attention {
    /// Whether a query sees no later keys.
    pub causal: bool,
    /// Heads of the queries, when they are not an axis.
    pub heads: Option<i64>,
    /// Heads of keys and values, when they are not an axis.
    pub kv_heads: Option<i64>,
    /// Factor of the scores; 1 over the square root of the width when absent.
    pub scale: Option<f32>,
    /// Bound of the scores; 0 is none.
    pub softcap: f32,
    qk_mode: i64,
    precision: Option<i64>,
    /// How far before and after its own place a query sees, when not everything.
    pub window: [Option<i64>; 2],
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Attention",
    domain: "",
    since: 23,
    read: |r| {
        let side = |name: &str| match r.attrs.int_or(name, -1)? {
            -1 => Ok(None),
            n if n >= 0 => Ok(Some(n)),
            n => Err(Error::invalid(format!("{name} must not be {n}"))),
        };
        Ok(Arc::new(Attention {
            causal: r.attrs.flag_or("is_causal", false)?,
            heads: r.attrs.opt_int("q_num_heads")?,
            kv_heads: r.attrs.opt_int("kv_num_heads")?,
            scale: r.attrs.opt_float("scale")?,
            softcap: r.attrs.float_or("softcap", 0.0)?,
            qk_mode: r.attrs.int_or("qk_matmul_output_mode", 0)?,
            precision: r.attrs.opt_int("softmax_precision")?,
            window: [side("left_window_size")?, side("right_window_size")?],
        }))
    },
    samples: || {
        let op = Attention::default;
        let flat = || Attention { heads: Some(4), kv_heads: Some(2), ..op() };
        let (q, k) = (|| ramp(&[2, 2, 3, 4]), || ramp(&[2, 2, 5, 4]));
        let wide = || vec![ramp(&[2, 3, 16]), ramp(&[2, 5, 8]), ramp(&[2, 5, 6])];
        let none = || None;
        let some = |t: Tensor| Some(t.into());
        let with = |op: Attention, inputs: Vec<Option<crate::Datum>>, outputs| Sample {
            inputs,
            outputs,
            ..Sample::new(op, vec![])
        };
        let cache = vec![
            some(q()),
            some(ramp(&[2, 1, 2, 4])),
            some(ramp(&[2, 1, 2, 4])),
            none(),
            some(ramp(&[2, 1, 3, 4])),
            some(ramp(&[2, 1, 3, 4])),
        ];
        let counted = vec![
            some(q()),
            some(k()),
            some(k()),
            some(ramp(&[3, 4])),
            none(),
            none(),
            some(Tensor::vector(&[4i64, 2])),
        ];
        let mut samples = vec![
            Sample::new(op(), vec![q(), k(), ramp(&[2, 2, 5, 3])]),
            Sample::new(Attention { causal: true, softcap: 0.5, ..flat() }, wide()),
            Sample::new(Attention { scale: Some(0.3), ..op() }, vec![q(), k(), k(), ramp(&[3, 5])]),
            with(Attention { causal: true, ..op() }, cache.clone(), 3),
            with(Attention { causal: true, ..op() }, counted, 1),
            with(Attention { window: [Some(1), Some(0)], qk_mode: 3, ..op() }, cache, 4),
        ];
        if let Ok(mask) = Tensor::bools(
            &[3, 5],
            &[
                true, false, true, true, false, false, false, false, false, false, true, true, true, true,
                true,
            ],
        ) {
            samples.push(Sample::new(op(), vec![q(), k(), k(), mask]));
        }
        if let (Ok(q), Ok(k)) = (cast(q(), DType::F16, true), cast(k(), DType::F16, true)) {
            samples.push(Sample::new(op(), vec![q, k.clone(), k]).tolerance(2e-3));
        }
        samples
    },
}];

/// Queries, keys or values: `[batch, heads, rows, width]`, or `[batch, rows, heads * width]`.
fn heads(t: &Tensor, count: Option<i64>) -> Result<Heads> {
    let none = || Error::invalid("inputs of rank 3 need q_num_heads and kv_num_heads");
    match *t.shape() {
        [batch, heads, rows, width] => Ok(Heads { batch, heads, rows, width, rows_first: false }),
        [batch, rows, hidden] => {
            let heads = count.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0).ok_or_else(none)?;
            if hidden % heads != 0 {
                return Err(Error::invalid(format!("{hidden} columns are not {heads} heads")));
            }
            Ok(Heads { batch, heads, rows, width: hidden / heads, rows_first: true })
        }
        ref other => Err(Error::invalid(format!("attention over shape {other:?}"))),
    }
}

/// The mask as numbers to add, `[batch, heads, queries, keys]` or any shape that broadcasts to it; keys that it does
/// not name are not seen.
fn bias(mask: &Tensor, keys: usize) -> Result<Tensor> {
    let values: Vec<f32> = match mask.dtype() {
        DType::Bool => {
            mask.as_bools()?.iter().map(|&b| if b != 0 { 0.0 } else { f32::NEG_INFINITY }).collect()
        }
        _ => mask.to_f32()?.into_owned(),
    };
    let Some((&n, outer)) = mask.shape().split_last() else {
        return Tensor::new(&[1], &values);
    };
    if n >= keys {
        return Tensor::new(mask.shape(), &values);
    }
    let rows = mask.len() / n.max(1);
    let mut padded = Vec::with_capacity(rows.saturating_mul(keys));
    for row in values.chunks(n.max(1)) {
        padded.extend_from_slice(row);
        padded.resize(padded.len() + keys - n, f32::NEG_INFINITY);
    }
    Tensor::new(&[outer, &[keys]].concat(), &padded)
}

impl Attention {
    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let (q, k, v) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let queries = heads(q, self.heads)?;
        let (mut key, mut value) = (heads(k, self.kv_heads)?, heads(v, self.kv_heads)?);
        let past = inputs.get(4)?;
        let (mut k, mut v) = (k.clone(), v.clone());
        if let (Some(past_k), Some(past_v)) = (past, inputs.get(5)?) {
            (k, key) = key.after(past_k, &k)?;
            (v, value) = value.after(past_v, &v)?;
        } else if cx.outputs > 1 {
            (k, key) = (key.heads_first(&k)?, Heads { rows_first: false, ..key });
            (v, value) = (value.heads_first(&v)?, Heads { rows_first: false, ..value });
        }
        let counts = inputs.ints(6)?;
        let offsets: Vec<i64> = match (&counts, past) {
            (_, Some(past)) => vec![past.shape().get(2).map_or(0, |&n| n as i64); queries.batch],
            (Some(counts), None) => counts.iter().map(|n| n - queries.rows as i64).collect(),
            (None, None) => vec![0; queries.batch],
        };
        if offsets.len() != queries.batch {
            return Err(Error::invalid(format!("nonpad_kv_seqlen must have {} numbers", queries.batch)));
        }
        let scores = Scores {
            scale: self.scale.unwrap_or(1.0 / (queries.width as f32).sqrt()),
            softcap: self.softcap,
            bias: inputs.get(3)?.map(|m| bias(m, key.rows)).transpose()?,
            causal: self.causal,
            window: self.window,
            offsets,
            counts,
            sink: None,
        };
        let keep = (cx.outputs > 3).then_some(self.qk_mode);
        let (y, qk) = attend(cx.cpu, (&queries, q), (&key, &k), (&value, &v), &scores, keep)?;
        Ok([vec![y, k, v], qk.into_iter().collect()].concat())
    }
}

impl Op for Attention {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .maybe("is_causal", self.causal.then_some(Attr::Int(1)))
            .maybe("kv_num_heads", self.kv_heads.map(Attr::Int))
            .maybe("left_window_size", self.window[0].map(Attr::Int))
            .maybe("q_num_heads", self.heads.map(Attr::Int))
            .maybe("qk_matmul_output_mode", (self.qk_mode != 0).then_some(Attr::Int(self.qk_mode)))
            .maybe("right_window_size", self.window[1].map(Attr::Int))
            .maybe("scale", self.scale.map(Attr::Float))
            .maybe("softcap", (self.softcap != 0.0).then_some(Attr::Float(self.softcap)))
            .maybe("softmax_precision", self.precision.map(Attr::Int))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (q, k, v) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        // [batch, heads, rows, width]
        let split = |fact: &Fact, heads: Option<i64>| -> Option<[Dim; 4]> {
            match fact.shape()? {
                [b, h, r, w] => Some([b.clone(), h.clone(), r.clone(), w.clone()]),
                [b, r, w] => {
                    let heads = heads.map_or(Dim::Unknown, Dim::Is);
                    Some([b.clone(), heads.clone(), r.clone(), w.over(&heads)])
                }
                _ => None,
            }
        };
        let (sq, sk, sv) = (split(q, self.heads), split(k, self.kv_heads), split(v, self.kv_heads));
        let past = inputs.get(4);
        let grown = |s: &Option<[Dim; 4]>, past: Option<&Fact>| {
            s.clone().map(|[b, h, r, w]| {
                let before = match past {
                    None => Dim::Is(0),
                    Some(p) => p.shape().and_then(|s| s.get(2)).cloned().unwrap_or_default(),
                };
                [b, h, before.plus(&r), w]
            })
        };
        let (present_k, present_v) = (grown(&sk, past), grown(&sv, inputs.get(5)));
        let y = sq.clone().zip(sv).map(|([b, h, r, _], [.., w])| match q.rank() {
            Some(3) => vec![b, r, h.times(&w)],
            _ => vec![b, h, r, w],
        });
        let qk = sq.zip(present_k.clone()).map(|([b, h, r, _], [_, _, n, _])| vec![b, h, r, n]);
        let list = |s: Option<[Dim; 4]>| s.map(|s| s.to_vec());
        let facts = [
            Fact::maybe(q.dtype(), y),
            Fact::maybe(k.dtype(), list(present_k)),
            Fact::maybe(v.dtype(), list(present_v)),
            Fact::maybe(q.dtype(), qk),
        ];
        Ok(facts.into_iter().take(inputs.outputs.max(1)).collect())
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let types = [inputs.need(0)?.dtype(), inputs.need(1)?.dtype(), inputs.need(2)?.dtype()];
        // Masks and counts keep their types; all else is computed in f32.
        let mut wide = Vec::new();
        for i in 0..inputs.len() {
            wide.push(match inputs.take_data(i) {
                Some(d) if i != 3 && i != 6 => {
                    let t = d.into_tensor()?;
                    Some(if t.dtype() == DType::F64 { cast(t, DType::F32, true)? } else { widen(t)? }.into())
                }
                other => other,
            });
        }
        let outputs = self.run_f32(cx, &Inputs::new(wide))?;
        let to = [types[0], types[1], types[2], types[0]];
        outputs.into_iter().zip(to).map(|(t, to)| cast(t, to, true)).collect()
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let q = inputs.get(0).and_then(Fact::count).unwrap_or(0) as u64;
        let rows = inputs.shape(1).and_then(|s| s.get(s.len().checked_sub(2)?)?.size()).unwrap_or(0);
        let y = outputs.first().and_then(Fact::count).unwrap_or(0) as u64;
        q.saturating_add(y).saturating_mul(rows as u64)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
