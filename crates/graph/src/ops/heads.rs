//! Attention over tensors with heads: what all operators of attention share. The fast kernel when nobody wants to see
//! the scores, else plain products and a softmax.

use kernel::Cpu;
use kernel::attention::{Attention, Mask, Strides, attention};
use kernel::f32::{Post, matmul_batch};
use kernel::matmul::{Batch, View};

use crate::ops::broadcast::{Walk, combine};
use crate::{DType, Error, Result, Tensor};

/// The layout of queries, keys or values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Heads {
    pub batch: usize,
    pub heads: usize,
    pub rows: usize,
    pub width: usize,
    /// `[batch, rows, heads * width]`, else `[batch, heads, rows, width]`.
    pub rows_first: bool,
}

impl Heads {
    pub fn strides(&self) -> Strides {
        match self.rows_first {
            true => Strides::rows_first(self.heads, self.rows, self.width),
            false => Strides::heads_first(self.heads, self.rows, self.width),
        }
    }

    pub fn shape(&self) -> Vec<usize> {
        match self.rows_first {
            true => vec![self.batch, self.rows, self.heads * self.width],
            false => vec![self.batch, self.heads, self.rows, self.width],
        }
    }

    /// The same elements as `[batch, heads, rows, width]`.
    pub fn heads_first(&self, t: &Tensor) -> Result<Tensor> {
        self.after(&Tensor::zeros(DType::F32, &[self.batch, self.heads, 0, self.width])?, t).map(|(t, _)| t)
    }

    /// What came before, `[batch, heads, rows, width]`, and these rows after it.
    pub fn after(&self, past: &Tensor, t: &Tensor) -> Result<(Tensor, Heads)> {
        let before = match *past.shape() {
            [b, h, rows, w] if [b, h, w] == [self.batch, self.heads, self.width] => rows,
            ref other => {
                return Err(Error::invalid(format!(
                    "a cache of shape {other:?} for rows of {:?}",
                    self.shape()
                )));
            }
        };
        let all = Heads { rows: before + self.rows, rows_first: false, ..*self };
        let (s, w) = (self.strides(), self.width);
        let (old, new) = (past.as_slice::<f32>()?, t.as_slice::<f32>()?);
        let joined = Tensor::fill(&all.shape(), |out: &mut [f32]| {
            for (i, out) in out.chunks_mut((all.rows * w).max(1)).enumerate() {
                let (b, h) = (i / self.heads, i % self.heads);
                let (head, tail) = out.split_at_mut(before * w);
                head.copy_from_slice(&old[i * before * w..][..before * w]);
                for (r, row) in tail.chunks_mut(w.max(1)).enumerate() {
                    row.copy_from_slice(&new[b * s.batch + h * s.head + r * s.row..][..w]);
                }
            }
            Ok(())
        })?;
        Ok((joined, all))
    }
}

/// How scores come about from the products of queries and keys.
pub(crate) struct Scores {
    pub scale: f32,
    /// Bound of the scores; 0 is none.
    pub softcap: f32,
    /// Added; broadcasts to `[batch, heads, queries, keys]`.
    pub bias: Option<Tensor>,
    pub causal: bool,
    /// How far before and after its own place a query sees.
    pub window: [Option<i64>; 2],
    /// The place of the first query, for each batch.
    pub offsets: Vec<i64>,
    /// How many keys are real, for each batch.
    pub counts: Option<Vec<i64>>,
    /// The logarithm of a weight that each head gives to nothing.
    pub sink: Option<Vec<f32>>,
}

impl Scores {
    /// May query `i` of batch `b` see key `j`?
    fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        let (j, place) = (j as i64, self.offsets[b].saturating_add(i as i64));
        (!self.causal || j <= place)
            && self.window[0].is_none_or(|n| place - j <= n)
            && self.window[1].is_none_or(|n| j - place <= n)
            && self.counts.as_ref().is_none_or(|c| j < c[b])
    }

    fn is_plain(&self) -> bool {
        !self.causal && self.window == [None; 2] && self.counts.is_none()
    }
}

/// `softmax(scores) v`, laid out like the queries. With `keep`, also what becomes of the scores: 0 after the scale, 1
/// after the bound, 2 with mask, 3 after the softmax.
pub(crate) fn attend(
    cpu: &Cpu,
    (q, q_data): (&Heads, &Tensor),
    (k, k_data): (&Heads, &Tensor),
    (v, v_data): (&Heads, &Tensor),
    scores: &Scores,
    keep: Option<i64>,
) -> Result<(Tensor, Option<Tensor>)> {
    let fits = k.batch == q.batch
        && v.batch == q.batch
        && k.heads == v.heads
        && k.rows == v.rows
        && k.width == q.width
        && k.heads > 0
        && q.heads.is_multiple_of(k.heads);
    if !fits {
        let [q, k, v] = [q, k, v].map(Heads::shape);
        return Err(Error::invalid(format!(
            "queries {q:?}, keys {k:?} and values {v:?} do not fit together"
        )));
    }
    if scores.counts.as_ref().is_some_and(|c| c.len() != q.batch) {
        return Err(Error::invalid(format!("key counts must have {} numbers", q.batch)));
    }
    let out = Heads { width: v.width, ..*q };
    let full = [q.batch, q.heads, q.rows, k.rows];
    let one_offset = scores.offsets.windows(2).all(|w| w[0] == w[1]);
    let shared = scores.window == [None; 2] && scores.counts.is_none() && one_offset;
    if keep.is_none() && scores.sink.is_none() && (shared || scores.bias.is_none()) {
        // The kernel takes a causal offset, and either numbers to add or keys to keep.
        let marks: Vec<u8> = match shared {
            true => Vec::new(),
            false => {
                let at = |i: usize| scores.sees(i / (q.rows * k.rows), i / k.rows % q.rows, i % k.rows) as u8;
                (0..crate::tensor::count(&[q.batch, q.rows, k.rows])?).map(at).collect()
            }
        };
        let mask = match &scores.bias {
            Some(bias) => Some(Mask::Add(bias.as_slice()?, bias_strides(bias, full)?)),
            None if !shared => {
                Some(Mask::Keep(&marks, Strides { batch: q.rows * k.rows, head: 0, row: k.rows }))
            }
            None => None,
        };
        let offset = scores.offsets.first().copied().unwrap_or(0);
        if mask_rows_are_dense(&scores.bias, k.rows) {
            let shape = Attention {
                batch: q.batch,
                heads: q.heads,
                kv_heads: k.heads,
                queries: q.rows,
                keys: k.rows,
                width: q.width,
                value_width: v.width,
                scale: scores.scale,
                softcap: scores.softcap,
                causal: (scores.causal && shared).then_some(isize::try_from(offset).unwrap_or(isize::MAX)),
                mask,
            };
            let (q_data, k_data, v_data) = (q_data.as_slice()?, k_data.as_slice()?, v_data.as_slice()?);
            let y = Tensor::fill(&out.shape(), |y| {
                let (q, k, v) = ((q_data, q.strides()), (k_data, k.strides()), (v_data, v.strides()));
                attention(cpu, &shape, q, k, v, (y, out.strides()));
                Ok(())
            })?;
            return Ok((y, None));
        }
    }
    seen(cpu, (q, q_data), (k, k_data), (v, v_data), scores, keep, out)
}

fn mask_rows_are_dense(bias: &Option<Tensor>, keys: usize) -> bool {
    bias.as_ref().is_none_or(|b| b.shape().last() == Some(&keys))
}

/// The steps of a mask that broadcasts to `[batch, heads, queries, keys]`.
fn bias_strides(bias: &Tensor, full: [usize; 4]) -> Result<Strides> {
    let walk = Walk::new(&full, bias.shape())?;
    if walk.shape != full {
        return Err(Error::invalid(format!("a mask of shape {:?} for scores of {full:?}", bias.shape())));
    }
    let mut steps = [0; 4];
    let mut step = 1;
    for (i, &size) in bias.shape().iter().enumerate().rev() {
        steps[i + 4 - bias.rank()] = if size == 1 { 0 } else { step };
        step *= size;
    }
    Ok(Strides { batch: steps[0], head: steps[1], row: steps[2] })
}

/// The same with all scores in memory.
fn seen(
    cpu: &Cpu,
    (q, q_data): (&Heads, &Tensor),
    (k, k_data): (&Heads, &Tensor),
    (v, v_data): (&Heads, &Tensor),
    scores: &Scores,
    keep: Option<i64>,
    out: Heads,
) -> Result<(Tensor, Option<Tensor>)> {
    let full = [q.batch, q.heads, q.rows, k.rows];
    let mut s = Tensor::zeros(DType::F32, &full)?;
    let (rows, keys, group) = (q.rows, k.rows, q.heads / k.heads);
    let (qs, ks, vs, os) = (q.strides(), k.strides(), v.strides(), out.strides());
    let (q_data, k_data, v_data) =
        (q_data.as_slice::<f32>()?, k_data.as_slice::<f32>()?, v_data.as_slice::<f32>()?);
    let empty = rows == 0 || keys == 0 || q.batch == 0 || q.heads == 0;
    // One call a batch: the heads of a group share their key head.
    let calls = if empty { 0 } else { q.batch };
    for b in 0..calls {
        let batch = Batch {
            counts: [k.heads, group],
            a: [group * qs.head, qs.head],
            b: [ks.head, 0],
            out: [group * rows * keys, rows * keys],
        };
        let a = View::strided(&q_data[b * qs.batch..], rows, q.width, qs.row, 1);
        let kt = View::strided(&k_data[b * ks.batch..], keys, k.width, ks.row, 1).t();
        let post = Post { alpha: scores.scale, ..Post::default() };
        let part = &mut s.as_mut_slice::<f32>()?[b * q.heads * rows * keys..][..q.heads * rows * keys];
        matmul_batch(cpu, &batch, a, kt, part, keys, &post, [0, 0]);
    }
    let mut kept = (keep == Some(0)).then(|| s.clone());
    if scores.softcap > 0.0 {
        let cap = scores.softcap;
        s.as_mut_slice::<f32>()?.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
    }
    if keep == Some(1) {
        kept = Some(s.clone());
    }
    let mut bias = Tensor::zeros(DType::F32, &full)?;
    if let Some(given) = &scores.bias {
        let walk = Walk::new(&full, given.shape())?;
        if walk.shape != full {
            return Err(Error::invalid(format!(
                "a mask of shape {:?} for scores of {full:?}",
                given.shape()
            )));
        }
        walk.apply(&vec![(); s.len()], given.as_slice::<f32>()?, bias.as_mut_slice()?, |(), m: f32| m);
    }
    let limits = bias.as_mut_slice::<f32>()?;
    if !scores.is_plain() {
        for (i, m) in limits.iter_mut().enumerate() {
            if !scores.sees(i / (q.heads * rows * keys), i / keys % rows, i % keys) {
                *m = f32::NEG_INFINITY;
            }
        }
    }
    let data = s.as_mut_slice::<f32>()?;
    data.iter_mut().zip(limits.iter()).for_each(|(v, m)| *v += m);
    if keep == Some(2) {
        kept = Some(Tensor::new(&full, data)?);
    }
    for (r, (row, limits)) in data.chunks_mut(keys.max(1)).zip(limits.chunks(keys.max(1))).enumerate() {
        // A query that sees no key gives zeros.
        if limits.iter().all(|&m| m == f32::NEG_INFINITY) {
            row.fill(0.0);
            continue;
        }
        let sink = scores.sink.as_ref().and_then(|s| s.get(r / rows % q.heads)).copied();
        let max = row.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sum = sink.map_or(0.0, |s| (s - max).exp());
        for v in row.iter_mut() {
            *v = (*v - max).exp();
            sum += *v;
        }
        if sum != 0.0 {
            row.iter_mut().for_each(|v| *v /= sum);
        }
    }
    if keep == Some(3) {
        kept = Some(s.clone());
    }
    let weights = s.as_slice::<f32>()?;
    let y = Tensor::build(&out.shape(), |y: &mut [f32]| {
        for b in 0..if v.width == 0 { 0 } else { calls } {
            let batch = Batch {
                counts: [k.heads, group],
                a: [group * rows * keys, rows * keys],
                b: [vs.head, 0],
                out: [group * os.head, os.head],
            };
            let a = View::new(&weights[b * q.heads * rows * keys..], rows, keys);
            let values = View::strided(&v_data[b * vs.batch..], keys, v.width, vs.row, 1);
            matmul_batch(
                cpu,
                &batch,
                a,
                values,
                &mut y[b * os.batch..][..q.heads * rows * v.width],
                os.row,
                &Post::default(),
                [0, 0],
            );
        }
        Ok(())
    })?;
    Ok((y, kept))
}

/// The bias of attention's scores with padding masked out: `filter` (-10000 when not given) is added where a mark is
/// not positive. The marks have this shape, which broadcasts to `[batch, heads, queries, keys]`.
///
/// # Errors
/// When the marks do not fill the shape, or the shapes cannot meet.
pub(crate) fn masked(
    bias: Option<Tensor>,
    marks: &[i64],
    shape: &[usize],
    filter: Option<f32>,
) -> Result<Tensor> {
    let filter = filter.unwrap_or(-10000.0);
    let numbers: Vec<f32> = marks.iter().map(|&m| if m > 0 { 0.0 } else { filter }).collect();
    let numbers = Tensor::new(shape, &numbers)?;
    match bias {
        Some(bias) => combine::<f32>(bias, &numbers, |a, b| a + b),
        None => Ok(numbers),
    }
}
