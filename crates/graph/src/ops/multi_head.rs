//! onnxruntime's operators of attention: `MultiHeadAttention` and `GroupQueryAttention` of `com.microsoft`.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MultiHeadAttention>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::combine;
use crate::ops::halves::in_f32;
use crate::ops::heads::{Heads, Scores, attend, masked};
use crate::ops::rotary::Turn;
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// `MultiHeadAttention`: attention of projected queries, keys and values, `[batch, rows, heads * width]` each.
#[derive(Debug)]
pub struct MultiHead {
    heads: i64,
    scale: Option<f32>,
    causal: bool,
    filter: Option<f32>,
}

/// `GroupQueryAttention`: causal attention with a cache, in which heads share keys.
#[derive(Debug)]
pub struct GroupQuery {
    heads: i64,
    kv_heads: i64,
    scale: Option<f32>,
    softcap: f32,
    /// Keys that a query sees, itself included.
    window: Option<i64>,
    rotary: bool,
    interleaved: bool,
}

fn positive(r: &Reader, name: &str) -> Result<i64> {
    let n = r.attrs.need_int(name)?;
    if (1..=1 << 20).contains(&n) { Ok(n) } else { Err(Error::invalid(format!("{name} must not be {n}"))) }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "MultiHeadAttention",
        domain: "com.microsoft",
        since: 1,
        read: |r| {
            Ok(Arc::new(MultiHead {
                heads: positive(r, "num_heads")?,
                scale: r.attrs.opt_float("scale")?.filter(|&s| s != 0.0),
                causal: r.attrs.flag_or("unidirectional", false)?,
                filter: r.attrs.opt_float("mask_filter_value")?,
            }))
        },
        samples: || {
            let op = |causal| MultiHead { heads: 2, scale: None, causal, filter: None };
            let (q, k) = (|| ramp(&[2, 3, 8]), || ramp(&[2, 5, 8]));
            let biased = vec![Some(q().into()), Some(k().into()), Some(k().into()), Some(ramp(&[24]).into())];
            vec![
                Sample::new(op(false), vec![q(), k(), ramp(&[2, 5, 6])]),
                Sample::new(op(true), vec![q(), q(), q()]),
                Sample { inputs: biased, ..Sample::new(op(false), vec![]) },
            ]
        },
    },
    OpDef {
        name: "GroupQueryAttention",
        domain: "com.microsoft",
        since: 1,
        read: |r| {
            if r.attrs.flag_or("smooth_softmax", false)? || r.attrs.int_or("qk_output", 0)? != 0 {
                return Err(Error::unsupported("GroupQueryAttention with smooth_softmax or qk_output"));
            }
            Ok(Arc::new(GroupQuery {
                heads: positive(r, "num_heads")?,
                kv_heads: positive(r, "kv_num_heads")?,
                scale: r.attrs.opt_float("scale")?.filter(|&s| s != 0.0),
                softcap: r.attrs.float_or("softcap", 0.0)?,
                window: r.attrs.opt_int("local_window_size")?.filter(|&n| n >= 0),
                rotary: r.attrs.flag_or("do_rotary", false)?,
                interleaved: r.attrs.flag_or("rotary_interleaved", false)?,
            }))
        },
        samples: || {
            let op = |window, rotary| GroupQuery {
                heads: 4,
                kv_heads: 2,
                scale: None,
                softcap: 0.0,
                window,
                rotary,
                interleaved: false,
            };
            let some = |t: Tensor| Some(t.into());
            let lengths =
                |last: i32, total: i32| [some(Tensor::vector(&[last])), some(Tensor::scalar(total))];
            let prompt = || vec![some(ramp(&[1, 3, 16])), some(ramp(&[1, 3, 8])), some(ramp(&[1, 3, 8]))];
            let with = |op: GroupQuery, inputs| Sample { inputs, outputs: 3, ..Sample::new(op, vec![]) };
            let first = [prompt(), vec![None, None], lengths(2, 3).into()].concat();
            let next = vec![
                some(ramp(&[1, 1, 16])),
                some(ramp(&[1, 1, 8])),
                some(ramp(&[1, 1, 8])),
                some(ramp(&[1, 2, 3, 4])),
                some(ramp(&[1, 2, 3, 4])),
            ];
            let tables = vec![some(ramp(&[8, 2])), some(ramp(&[8, 2]))];
            let next = [next, lengths(3, 4).into(), tables].concat();
            vec![with(op(None, false), first), with(op(Some(2), true), next)]
        },
    },
];

/// `[batch, rows, heads * width]`.
fn flat(t: &Tensor, heads: i64) -> Result<Heads> {
    match (t.shape(), usize::try_from(heads)) {
        (&[batch, rows, hidden], Ok(heads)) if heads > 0 && hidden % heads == 0 => {
            Ok(Heads { batch, heads, rows, width: hidden / heads, rows_first: true })
        }
        (other, _) => Err(Error::unsupported(format!("attention of {heads} heads over shape {other:?}"))),
    }
}

fn scale(given: Option<f32>, q: &Heads) -> f32 {
    given.unwrap_or(1.0 / (q.width as f32).sqrt())
}

fn attention_facts(inputs: &Facts, v_width: Option<Dim>) -> Result<Vec<Fact>> {
    let q = inputs.need(0)?;
    let shape = match (q.shape(), v_width) {
        (Some([b, r, _]), Some(w)) => Some(vec![b.clone(), r.clone(), w]),
        (Some(s), _) => Some(vec![Dim::Unknown; s.len()]),
        _ => None,
    };
    let cache = Fact::maybe(q.dtype(), Some(vec![Dim::Unknown; 4]));
    let facts = [Fact::maybe(q.dtype(), shape), cache.clone(), cache];
    Ok(facts.into_iter().take(inputs.outputs.max(1)).collect())
}

impl MultiHead {
    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Vec<Tensor>> {
        if (inputs.len() > 8 && inputs.get(8)?.is_some()) || cx.outputs > 3 {
            return Err(Error::unsupported(
                "MultiHeadAttention with a shared cache or with its scores as an output",
            ));
        }
        let parts = [inputs.need(0)?, inputs.need(1)?, inputs.need(2)?];
        let mut data = parts.map(Clone::clone);
        if let Some(bias) = inputs.get(3)? {
            let mut at = 0;
            for t in &mut data {
                let n = t.shape().last().copied().unwrap_or(0);
                let part = bias.as_slice::<f32>()?.get(at..at + n);
                let part =
                    part.ok_or_else(|| Error::invalid(format!("a bias of shape {:?}", bias.shape())))?;
                *t = combine::<f32>(t.clone(), &Tensor::vector(part), |a, b| a + b)?;
                at += n;
            }
        }
        let [q, mut k, mut v] = data;
        let queries = flat(&q, self.heads)?;
        let (mut key, mut value) = (flat(&k, self.heads)?, flat(&v, self.heads)?);
        let mut before = 0;
        if let (Some(past_k), Some(past_v)) = (inputs.get(6)?, inputs.get(7)?) {
            before = past_k.shape().get(2).copied().unwrap_or(0);
            (k, key) = key.after(past_k, &k)?;
            (v, value) = value.after(past_v, &v)?;
        } else if cx.outputs > 1 {
            (k, key) = (key.heads_first(&k)?, Heads { rows_first: false, ..key });
            (v, value) = (value.heads_first(&v)?, Heads { rows_first: false, ..value });
        }
        let mut bias = inputs.get(5)?.cloned();
        let mut counts = None;
        if let Some(mask) = inputs.get(4)? {
            let marks = mask.to_ints()?;
            let shape = match *mask.shape() {
                [b] if b == queries.batch => None,
                [b, n] if n == key.rows => Some(vec![b, 1, 1, n]),
                [b, m, n] if n == key.rows => Some(vec![b, 1, m, n]),
                ref other => {
                    return Err(Error::unsupported(format!("a key padding mask of shape {other:?}")));
                }
            };
            match shape {
                None => counts = Some(marks),
                Some(shape) => {
                    bias = Some(masked(bias, &marks, &shape, self.filter)?);
                }
            }
        }
        let scores = Scores {
            scale: scale(self.scale, &queries),
            softcap: 0.0,
            bias,
            causal: self.causal,
            window: [None; 2],
            offsets: vec![before as i64; queries.batch],
            counts,
            sink: None,
        };
        let (y, _) = attend(cx.cpu, (&queries, &q), (&key, &k), (&value, &v), &scores, None)?;
        Ok(vec![y, k, v])
    }
}

impl Op for MultiHead {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .int("num_heads", self.heads)
            .maybe("mask_filter_value", self.filter.map(Attr::Float))
            .maybe("scale", self.scale.map(Attr::Float))
            .maybe("unidirectional", self.causal.then_some(Attr::Int(1)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let value = inputs.shape(2).filter(|s| s.len() == 3).map(|s| s[2].clone());
        attention_facts(inputs, value)
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| self.run_f32(cx, &inputs))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl GroupQuery {
    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Vec<Tensor>> {
        if (9..inputs.len()).any(|i| inputs.data(i).is_some()) {
            return Err(Error::unsupported("GroupQueryAttention with position_ids, attention_bias or sinks"));
        }
        let (Some(k), Some(v)) = (inputs.get(1)?, inputs.get(2)?) else {
            return Err(Error::unsupported("GroupQueryAttention with queries, keys and values in one input"));
        };
        let (mut q, mut k, mut v) = (inputs.need(0)?.clone(), k.clone(), v.clone());
        let queries = flat(&q, self.heads)?;
        let (mut key, mut value) = (flat(&k, self.kv_heads)?, flat(&v, self.kv_heads)?);
        // The index of each sequence's last key.
        let last = inputs.need(5)?.to_ints()?;
        let past = inputs.get(3)?;
        let before = past.map_or(0, |p| p.shape().get(2).copied().unwrap_or(0));
        let whole = (before + queries.rows) as i64;
        if last.len() != queries.batch || last.iter().any(|&l| l + 1 != whole) {
            return Err(Error::unsupported(
                "GroupQueryAttention with sequences of different lengths or a padded cache",
            ));
        }
        if self.rotary {
            let (cos, sin) = (inputs.need(7)?, inputs.need(8)?);
            let pairs = cos.shape().last().copied().unwrap_or(0);
            let turn =
                Turn { cos: cos.as_slice()?, sin: sin.as_slice()?, pairs, interleaved: self.interleaved };
            for (t, layout) in [(&mut q, queries), (&mut k, key)] {
                if 2 * pairs > layout.width {
                    return Err(Error::invalid("the tables of angles are wider than a head"));
                }
                for (i, head) in t.as_mut_slice::<f32>()?.chunks_mut(layout.width.max(1)).enumerate() {
                    turn.one(head, before + i / layout.heads % layout.rows)?;
                }
            }
        }
        match (past, inputs.get(4)?) {
            (Some(past_k), Some(past_v)) => {
                (k, key) = key.after(past_k, &k)?;
                (v, value) = value.after(past_v, &v)?;
            }
            _ => {
                (k, key) = (key.heads_first(&k)?, Heads { rows_first: false, ..key });
                (v, value) = (value.heads_first(&v)?, Heads { rows_first: false, ..value });
            }
        }
        let scores = Scores {
            scale: scale(self.scale, &queries),
            softcap: self.softcap,
            bias: None,
            causal: true,
            window: [self.window.map(|n| n - 1), None],
            offsets: vec![before as i64; queries.batch],
            counts: None,
            sink: None,
        };
        let (y, _) = attend(cx.cpu, (&queries, &q), (&key, &k), (&value, &v), &scores, None)?;
        Ok(vec![y, k, v])
    }
}

impl Op for GroupQuery {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .int("do_rotary", self.rotary.into())
            .int("kv_num_heads", self.kv_heads)
            .maybe("local_window_size", self.window.map(Attr::Int))
            .int("num_heads", self.heads)
            .int("rotary_interleaved", self.interleaved.into())
            .maybe("scale", self.scale.map(Attr::Float))
            .maybe("softcap", (self.softcap != 0.0).then_some(Attr::Float(self.softcap)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let whole =
            inputs.get(1).and_then(|_| inputs.shape(0)).filter(|s| s.len() == 3).map(|s| s[2].clone());
        attention_facts(inputs, whole)
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        if dtype == DType::F64 {
            return Err(Error::unsupported("GroupQueryAttention of double"));
        }
        in_f32(dtype, inputs, |inputs| self.run_f32(cx, &inputs))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
