//! `LinearAttention`: attention whose memory of all that was is one matrix for each head, updated place by place
//! (Yang et al., "Gated Delta Networks", 2024). <https://onnx.ai/onnx/operators/onnx__LinearAttention.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::halves::in_f32;
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// How the memory is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    name: &'static str,
    /// What was fades.
    gated: bool,
    /// Only what the memory does not say already is added.
    delta: bool,
}

const RULES: [Rule; 4] = [
    Rule { name: "linear", gated: false, delta: false },
    Rule { name: "gated", gated: true, delta: false },
    Rule { name: "delta", gated: false, delta: true },
    Rule { name: "gated_delta", gated: true, delta: true },
];

/// Attention with a matrix for a memory.
#[derive(Clone, Debug)]
pub struct LinearAttention {
    heads: i64,
    kv_heads: i64,
    rule: Rule,
    /// Factor of the output; 1 over the square root of the width when 0.
    scale: f32,
    chunk: Option<i64>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "LinearAttention",
    domain: "",
    since: 27,
    read: |r| {
        let name = r.attrs.text_or("update_rule", "gated_delta")?;
        let rule = RULES.into_iter().find(|rule| rule.name == name);
        Ok(Arc::new(LinearAttention {
            heads: r.attrs.need_int("q_num_heads")?,
            kv_heads: r.attrs.need_int("kv_num_heads")?,
            rule: rule.ok_or_else(|| Error::unsupported(format!("update rule {name:?}")))?,
            scale: r.attrs.float_or("scale", 0.0)?,
            chunk: r.attrs.opt_int("chunk_size")?,
        }))
    },
    samples: || {
        let op = |rule: usize, heads| LinearAttention {
            heads,
            kv_heads: 2,
            rule: RULES[rule],
            scale: 0.0,
            chunk: None,
        };
        let some = |shape: &[usize]| Some(ramp(shape).into());
        let with = |op: LinearAttention, queries: usize, more: Vec<Option<crate::Datum>>| {
            let first = [some(&[2, 3, queries]), some(&[2, 3, 8]), some(&[2, 3, 10])];
            let inputs = first.into_iter().chain(more).collect();
            Sample { inputs, outputs: 2, ..Sample::new(op, vec![]) }
        };
        let (past, each, head) = (some(&[2, 2, 4, 5]), some(&[2, 3, 8]), some(&[2, 3, 2]));
        vec![
            with(op(0, 2), 8, vec![]),
            with(LinearAttention { scale: 0.5, chunk: Some(16), ..op(1, 4) }, 16, vec![past.clone(), each]),
            with(op(2, 2), 8, vec![past, None, some(&[2, 3, 1])]),
            with(op(3, 4), 16, vec![None, head.clone(), head]),
        ]
    },
}];

/// A gate: one number a place, a head or an element, in rows of `width` a place.
struct Gate<'a> {
    values: &'a [f32],
    width: usize,
}

impl<'a> Gate<'a> {
    /// The gate of an input of shape `[batch, rows, width]` with one of these widths.
    fn of(t: Option<&'a Tensor>, what: &str, rows: [usize; 2], widths: [usize; 2]) -> Result<Gate<'a>> {
        let t = t.ok_or_else(|| Error::invalid(format!("the update rule needs {what}")))?;
        match *t.shape() {
            [b, r, width] if [b, r] == rows && widths.contains(&width) => {
                Ok(Gate { values: t.as_slice()?, width })
            }
            ref other => Err(Error::invalid(format!("{what} of shape {other:?} does not fit"))),
        }
    }

    /// The number of an element of a head at a place, among `heads` heads of `size` elements.
    fn at(&self, place: usize, head: usize, element: usize, [heads, size]: [usize; 2]) -> f32 {
        let within = match self.width {
            width if width == heads * size => head * size + element,
            width if width == heads => head,
            _ => 0,
        };
        self.values[place * self.width + within]
    }
}

impl LinearAttention {
    fn run_f32(&self, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let (q, k, v) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let bad = || {
            let shapes = [q, k, v].map(Tensor::shape);
            Error::invalid(format!(
                "{} and {} heads do not fit inputs of shapes {shapes:?}",
                self.heads, self.kv_heads
            ))
        };
        let count = |n: i64| usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(bad);
        let (heads, kv_heads) = (count(self.heads)?, count(self.kv_heads)?);
        let (&[batch, rows, of_q], &[_, _, of_k], &[_, _, of_v]) = (q.shape(), k.shape(), v.shape()) else {
            return Err(bad());
        };
        let (dk, dv, each) = (of_k / kv_heads, of_v / kv_heads, heads / kv_heads);
        let fits = heads % kv_heads == 0
            && of_q == heads * dk
            && of_k == kv_heads * dk
            && of_v == kv_heads * dv
            && [k, v].iter().all(|t| t.shape()[..2] == [batch, rows]);
        if !fits {
            return Err(bad());
        }
        let mut state = match inputs.get(3)? {
            None => Tensor::zeros(DType::F32, &[batch, kv_heads, dk, dv])?,
            Some(past) if past.shape() == [batch, kv_heads, dk, dv] => past.clone(),
            Some(past) => {
                return Err(Error::invalid(format!("a past state of shape {:?} does not fit", past.shape())));
            }
        };
        let Rule { gated, delta, .. } = self.rule;
        let at = [batch, rows];
        let decay = gated.then(|| Gate::of(inputs.get(4)?, "decay", at, [of_k, kv_heads])).transpose()?;
        let beta = delta.then(|| Gate::of(inputs.get(5)?, "beta", at, [kv_heads, 1])).transpose()?;
        let scale = if self.scale == 0.0 { 1.0 / (dk as f32).sqrt() } else { self.scale };
        let (q, k, v) = (q.as_slice::<f32>()?, k.as_slice::<f32>()?, v.as_slice::<f32>()?);
        let states = state.as_mut_slice::<f32>()?;
        let mut add = vec![0f32; dv];
        let y = Tensor::build(&[batch, rows, heads * dv], |y: &mut [f32]| {
            // All heads of a place before the next place: the memory of each goes on.
            for (place, head) in (0..batch * rows).flat_map(|p| (0..kv_heads).map(move |h| (p, h))) {
                let state = &mut states[(place / rows * kv_heads + head) * dk * dv..][..dk * dv];
                let k = &k[place * of_k + head * dk..][..dk];
                if let Some(decay) = &decay {
                    for (i, row) in state.chunks_exact_mut(dv.max(1)).enumerate() {
                        let keep = decay.at(place, head, i, [kv_heads, dk]).exp();
                        row.iter_mut().for_each(|s| *s *= keep);
                    }
                }
                add.copy_from_slice(&v[place * of_v + head * dv..][..dv]);
                if let Some(beta) = &beta {
                    for (row, k) in state.chunks_exact(dv.max(1)).zip(k) {
                        add.iter_mut().zip(row).for_each(|(a, s)| *a -= s * k);
                    }
                    let beta = beta.at(place, head, 0, [kv_heads, 1]);
                    add.iter_mut().for_each(|a| *a *= beta);
                }
                for (row, k) in state.chunks_exact_mut(dv.max(1)).zip(k) {
                    row.iter_mut().zip(&add).for_each(|(s, a)| *s += k * a);
                }
                for query in head * each..(head + 1) * each {
                    let q = &q[place * of_q + query * dk..][..dk];
                    let y = &mut y[(place * heads + query) * dv..][..dv];
                    for (row, q) in state.chunks_exact(dv.max(1)).zip(q) {
                        y.iter_mut().zip(row).for_each(|(y, s)| *y += q * scale * s);
                    }
                }
            }
            Ok(())
        })?;
        Ok(vec![y, state])
    }
}

impl Op for LinearAttention {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
            .maybe("chunk_size", self.chunk.map(Attr::Int))
            .int("kv_num_heads", self.kv_heads)
            .int("q_num_heads", self.heads)
            .maybe("scale", (self.scale != 0.0).then_some(Attr::Float(self.scale)))
            .text("update_rule", self.rule.name)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let q = inputs.need(0)?;
        let (heads, kv_heads) = (Dim::Is(self.heads), Dim::Is(self.kv_heads));
        let width = |i: usize| inputs.shape(i).and_then(|s| Some(s.get(2)?.over(&kv_heads)));
        let rows = q.shape().filter(|s| s.len() == 3);
        let y = rows.zip(width(2)).map(|(s, dv)| vec![s[0].clone(), s[1].clone(), heads.times(&dv)]);
        let state = rows.zip(width(1)).zip(width(2));
        let state = state.map(|((s, dk), dv)| vec![s[0].clone(), kv_heads.clone(), dk, dv]);
        let facts = [Fact::maybe(q.dtype(), y), Fact::maybe(inputs.dtype(3).or(q.dtype()), state)];
        Ok(facts.into_iter().take(inputs.outputs.max(1)).collect())
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| self.run_f32(&inputs))
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let y = outputs.first().and_then(Fact::count).unwrap_or(0) as u64;
        let width = inputs.shape(1).and_then(|s| s.get(2)?.size()).unwrap_or(0) as u64;
        let each = width / u64::try_from(self.kv_heads).unwrap_or(1).max(1);
        y.saturating_mul(each).saturating_mul(if self.rule.delta { 3 } else { 2 })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
