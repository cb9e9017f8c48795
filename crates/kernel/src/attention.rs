//! Scaled dot-product attention, tile by tile, without the matrix of scores.
//!
//! The running softmax is that of Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, as
//! used by Dao et al., "FlashAttention", 2022. Queries lie in the lanes of the registers: a panel of queries is
//! transposed once, keys and values are read where they lie, and maxima and sums need no work across lanes. The
//! query heads that share a key head share its panels.

use crate::lanes::{Body, Parts, Set, run, split};
use crate::{Cpu, math};

/// Steps, in elements, from one batch, head and row to the next; 0 repeats. The elements of a row are adjacent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// From one batch to the next.
    pub batch: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one query or key to the next.
    pub row: usize,
}

impl Strides {
    /// Of a dense `[batch, heads, rows, width]`.
    pub fn heads_first(heads: usize, rows: usize, width: usize) -> Strides {
        Strides { batch: heads * rows * width, head: rows * width, row: width }
    }

    /// Of a dense `[batch, rows, heads, width]`.
    pub fn rows_first(heads: usize, rows: usize, width: usize) -> Strides {
        Strides { batch: rows * heads * width, head: width, row: heads * width }
    }

    fn at(self, batch: usize, head: usize, row: usize) -> usize {
        batch * self.batch + head * self.head + row * self.row
    }

    /// Elements that `[batch, heads, rows, width]` spans; `None` when that is no `usize`.
    fn span(self, [batch, heads, rows, width]: [usize; 4]) -> Option<usize> {
        if batch == 0 || heads == 0 || rows == 0 || width == 0 {
            return Some(0);
        }
        let steps = [(batch, self.batch), (heads, self.head), (rows, self.row)];
        steps.iter().try_fold(width, |sum, &(count, step)| sum.checked_add((count - 1).checked_mul(step)?))
    }

    /// No element of `[batch, heads, rows, width]` lies on another.
    fn is_disjoint(self, [batch, heads, rows, width]: [usize; 4]) -> bool {
        let mut steps = [(self.batch, batch), (self.head, heads), (self.row, rows)];
        steps.sort_unstable();
        let mut span = width;
        for (step, count) in steps.into_iter().filter(|&(_, count)| count > 1) {
            if step < span {
                return false;
            }
            span += step * (count - 1);
        }
        true
    }
}

/// What is added to the scores, or which scores count: `[batch, heads, queries, keys]` by [`Strides`].
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Numbers to add.
    Add(&'a [f32], Strides),
    /// Non-zero: the key counts.
    Keep(&'a [u8], Strides),
}

/// Sizes and options of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Sequences.
    pub batch: usize,
    /// Heads of the queries; a multiple of `kv_heads`. Head `h` uses key head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Queries of a head.
    pub queries: usize,
    /// Keys (and values) of a head.
    pub keys: usize,
    /// Width of a query and of a key.
    pub width: usize,
    /// Width of a value and of a row of the output.
    pub value_width: usize,
    /// Factor of the scores, usually `1 / sqrt(width)`.
    pub scale: f32,
    /// When not 0, scores become `softcap tanh(score / softcap)` before the mask.
    pub softcap: f32,
    /// When given, query `i` sees the keys `j <= i + offset` only.
    pub causal: Option<isize>,
    /// Applied after scale and softcap.
    pub mask: Option<Mask<'a>>,
}

/// `output = softmax(scale q k^T + mask) v`. A query without any key (none there, or all masked with -inf) gives a
/// row of zeros, as the ONNX operator Attention does.
///
/// # Panics
/// When a slice is shorter than its strides tell, `kv_heads` does not divide `heads`, or rows of the output overlap.
pub fn attention(
    cpu: &Cpu,
    shape: &Attention,
    (q, q_strides): (&[f32], Strides),
    (k, k_strides): (&[f32], Strides),
    (v, v_strides): (&[f32], Strides),
    (output, out_strides): (&mut [f32], Strides),
) {
    let Attention { batch, heads, kv_heads, queries, keys, width, value_width, .. } = *shape;
    let out_dims = [batch, heads, queries, value_width];
    let fits = |len: usize, strides: Strides, dims| strides.span(dims).is_some_and(|span| span <= len);
    assert!(fits(q.len(), q_strides, [batch, heads, queries, width]));
    assert!(fits(k.len(), k_strides, [batch, kv_heads, keys, width]));
    assert!(fits(v.len(), v_strides, [batch, kv_heads, keys, value_width]));
    assert!(fits(output.len(), out_strides, out_dims) && out_strides.is_disjoint(out_dims));
    assert!(match shape.mask {
        Some(Mask::Add(mask, strides)) => fits(mask.len(), strides, [batch, heads, queries, keys]),
        Some(Mask::Keep(mask, strides)) => fits(mask.len(), strides, [batch, heads, queries, keys]),
        None => true,
    });
    if out_dims.contains(&0) {
        return;
    }
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads));
    let group = heads / kv_heads;
    let output = Parts::new(output);
    let lanes = run(cpu, Lanes);
    let panels = (group * queries).div_ceil(lanes);
    let cost = lanes.saturating_mul(keys).saturating_mul(width + value_width) / 16;
    split(cpu, batch * kv_heads * panels, cost, |items| {
        let mut scratch = vec![0f32; lanes * (width + value_width + BLOCK)];
        for item in items {
            let (pair, panel) = (item / panels, item % panels);
            let (b, kv) = (pair / kv_heads, pair % kv_heads);
            let first = panel * lanes;
            run(
                cpu,
                Panel {
                    shape,
                    q,
                    q_strides,
                    k: &k[if keys > 0 { k_strides.at(b, kv, 0) } else { 0 }..],
                    k_row: k_strides.row,
                    v: &v[if keys > 0 { v_strides.at(b, kv, 0) } else { 0 }..],
                    v_row: v_strides.row,
                    output: &output,
                    out_strides,
                    batch: b,
                    first_head: kv * group,
                    first,
                    count: lanes.min(group * queries - first),
                    scratch: &mut scratch,
                },
            );
        }
    });
}

/// Keys of a tile.
const BLOCK: usize = 128;

/// Queries of a panel.
struct Lanes;

impl Body for Lanes {
    type Out = usize;

    #[inline(always)]
    fn run<S: Set>(self) -> usize {
        if S::WIDTH < 8 { 8 } else { 16 }
    }
}

struct Panel<'a> {
    shape: &'a Attention<'a>,
    q: &'a [f32],
    q_strides: Strides,
    /// From the first key of the head on.
    k: &'a [f32],
    k_row: usize,
    v: &'a [f32],
    v_row: usize,
    output: &'a Parts<'a, f32>,
    out_strides: Strides,
    batch: usize,
    /// The first query head of the key head.
    first_head: usize,
    /// The first query, counted through the query heads of the key head.
    first: usize,
    count: usize,
    scratch: &'a mut [f32],
}

impl Body for Panel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        // Larger tiles than these the compiler no longer unrolls.
        match S::WIDTH {
            8 | 16 => self.attend::<S, 16, 4>(),
            _ => self.attend::<S, 8, 4>(),
        }
    }
}

impl Panel<'_> {
    /// `(head, query)` of a lane; lanes beyond the last repeat it.
    #[inline(always)]
    fn query(&self, lane: usize) -> (usize, usize) {
        let n = self.first + lane.min(self.count - 1);
        (self.first_head + n / self.shape.queries, n % self.shape.queries)
    }

    /// Number of keys that a query may see.
    #[inline(always)]
    fn visible(&self, query: usize) -> usize {
        match self.shape.causal {
            Some(offset) => (query as isize).saturating_add(offset).saturating_add(1).max(0) as usize,
            None => self.shape.keys,
        }
        .min(self.shape.keys)
    }

    #[inline(always)]
    fn attend<S: Set, const W: usize, const R: usize>(mut self) {
        let Attention { width, value_width, scale, softcap, .. } = *self.shape;
        let scratch = std::mem::take(&mut self.scratch);
        let (q, scratch) = scratch.split_at_mut(width * W);
        let (o, scores) = scratch.split_at_mut(value_width * W);
        let (q, o, scores) =
            (q.as_chunks_mut::<W>().0, o.as_chunks_mut::<W>().0, scores.as_chunks_mut::<W>().0);
        let mut visible = [0; W];
        for lane in 0..W {
            let (head, query) = self.query(lane);
            visible[lane] = self.visible(query);
            let row = &self.q[self.q_strides.at(self.batch, head, query)..][..width];
            for (q, &x) in q.iter_mut().zip(row) {
                q[lane] = x * scale;
            }
        }
        o.fill([0.0; W]);
        let mut top = [f32::NEG_INFINITY; W];
        let mut sum = [0f32; W];
        let most = visible.into_iter().max().unwrap_or(0);
        let least = visible.into_iter().min().unwrap_or(0);
        for from in (0..most).step_by(BLOCK) {
            let to = most.min(from + BLOCK);
            let scores = &mut scores[..to - from];
            products::<S, W, R>(q, &self.k[from * self.k_row..], self.k_row, scores);
            if softcap != 0.0 {
                for x in scores.as_flattened_mut() {
                    *x = softcap * math::tanh::<S>(*x / softcap);
                }
            }
            self.mask::<W>(from, scores);
            if to > least {
                for (j, row) in scores.iter_mut().enumerate() {
                    for l in 0..W {
                        row[l] = if from + j < visible[l] { row[l] } else { f32::NEG_INFINITY };
                    }
                }
            }
            let mut high = top;
            for row in scores.iter() {
                for l in 0..W {
                    high[l] = if row[l] > high[l] { row[l] } else { high[l] };
                }
            }
            let mut shift = [0f32; W];
            let mut keep = [0f32; W];
            for l in 0..W {
                shift[l] = if high[l] == f32::NEG_INFINITY { 0.0 } else { high[l] };
                keep[l] = math::exp_neg::<S>(top[l] - shift[l]);
            }
            top = high;
            let mut more = [0f32; W];
            for row in scores.iter_mut() {
                for l in 0..W {
                    row[l] = math::exp_neg::<S>(row[l] - shift[l]);
                    more[l] += row[l];
                }
            }
            for l in 0..W {
                sum[l] = math::fma::<S>(sum[l], keep[l], more[l]);
            }
            combine::<S, W, R>(scores, &self.v[from * self.v_row..], self.v_row, keep, o);
        }
        for lane in 0..self.count {
            let (head, query) = self.query(lane);
            let start = self.out_strides.at(self.batch, head, query);
            // SAFETY: rows of the output are disjoint, and each belongs to one lane of one panel.
            let row = unsafe { self.output.part(start..start + value_width) };
            let factor = if sum[lane] == 0.0 { 0.0 } else { 1.0 / sum[lane] };
            for (y, o) in row.iter_mut().zip(o.iter()) {
                *y = o[lane] * factor;
            }
        }
    }

    /// Applies the mask to the scores of the keys from `from` on.
    #[inline(always)]
    fn mask<const W: usize>(&self, from: usize, scores: &mut [[f32; W]]) {
        match self.shape.mask {
            None => {}
            Some(Mask::Add(mask, strides)) => self.each::<W, _>(from, scores, mask, strides, |x, m| x + m),
            Some(Mask::Keep(mask, strides)) => self
                .each::<W, _>(from, scores, mask, strides, |x, m| if m != 0 { x } else { f32::NEG_INFINITY }),
        }
    }

    #[inline(always)]
    fn each<const W: usize, T: Copy>(
        &self,
        from: usize,
        scores: &mut [[f32; W]],
        mask: &[T],
        strides: Strides,
        f: impl Fn(f32, T) -> f32,
    ) {
        let rows: [&[T]; W] = std::array::from_fn(|lane| {
            let (head, query) = self.query(lane);
            &mask[strides.at(self.batch, head, query) + from..][..scores.len()]
        });
        if rows.iter().all(|row| std::ptr::eq(*row, rows[0])) {
            for (row, &m) in scores.iter_mut().zip(rows[0]) {
                for x in row {
                    *x = f(*x, m);
                }
            }
            return;
        }
        for (lane, mask) in rows.into_iter().enumerate() {
            for (row, &m) in scores.iter_mut().zip(mask) {
                row[lane] = f(row[lane], m);
            }
        }
    }
}

/// `scores[j] = sum_c keys[j][c] q[c]`, `R` keys at a time.
#[inline(always)]
fn products<S: Set, const W: usize, const R: usize>(
    q: &[[f32; W]],
    keys: &[f32],
    step: usize,
    scores: &mut [[f32; W]],
) {
    let (full, rest) = scores.as_chunks_mut::<R>();
    let done = full.len() * R;
    for (i, out) in full.iter_mut().enumerate() {
        *out = dots::<S, W, R>(q, keys, i * R, step);
    }
    for (j, out) in rest.iter_mut().enumerate() {
        [*out] = dots::<S, W, 1>(q, keys, done + j, step);
    }
}

#[inline(always)]
fn dots<S: Set, const W: usize, const R: usize>(
    q: &[[f32; W]],
    keys: &[f32],
    first: usize,
    step: usize,
) -> [[f32; W]; R] {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &keys[(first + r) * step..][..q.len()]);
    let mut sums = [[0f32; W]; R];
    for (c, q) in q.iter().enumerate() {
        for r in 0..R {
            let key = rows[r][c];
            for l in 0..W {
                sums[r][l] = math::fma::<S>(key, q[l], sums[r][l]);
            }
        }
    }
    sums
}

/// `o[c] = keep o[c] + sum_j values[j][c] weights[j]`, `R` columns at a time.
#[inline(always)]
fn combine<S: Set, const W: usize, const R: usize>(
    weights: &[[f32; W]],
    values: &[f32],
    step: usize,
    keep: [f32; W],
    o: &mut [[f32; W]],
) {
    let (full, rest) = o.as_chunks_mut::<R>();
    let done = full.len() * R;
    for (i, o) in full.iter_mut().enumerate() {
        gather::<S, W, R>(weights, values, i * R, step, keep, o);
    }
    for (c, o) in rest.iter_mut().enumerate() {
        gather::<S, W, 1>(weights, values, done + c, step, keep, std::array::from_mut(o));
    }
}

#[inline(always)]
fn gather<S: Set, const W: usize, const R: usize>(
    weights: &[[f32; W]],
    values: &[f32],
    first: usize,
    step: usize,
    keep: [f32; W],
    o: &mut [[f32; W]; R],
) {
    let mut sums = *o;
    for sum in &mut sums {
        for l in 0..W {
            sum[l] *= keep[l];
        }
    }
    for (j, weight) in weights.iter().enumerate() {
        let row = &values[j * step + first..][..R];
        for r in 0..R {
            for l in 0..W {
                sums[r][l] = math::fma::<S>(row[r], weight[l], sums[r][l]);
            }
        }
    }
    *o = sums;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 1.0).collect()
    }

    /// One query after the other, in `f64`.
    fn spec(
        shape: &Attention,
        data: [&[f32]; 3],
        strides: [Strides; 3],
        out: &mut [f32],
        out_strides: Strides,
    ) {
        let [q, k, v] = data;
        for b in 0..shape.batch {
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads);
                for i in 0..shape.queries {
                    let q = &q[strides[0].at(b, h, i)..][..shape.width];
                    let scores: Vec<f64> = (0..shape.keys)
                        .map(|j| {
                            let k = &k[strides[1].at(b, kv, j)..][..shape.width];
                            let dot: f64 = q.iter().zip(k).map(|(&q, &k)| q as f64 * k as f64).sum();
                            let mut score = dot * shape.scale as f64;
                            if shape.softcap != 0.0 {
                                score = shape.softcap as f64 * (score / shape.softcap as f64).tanh();
                            }
                            let hidden = match shape.mask {
                                Some(Mask::Keep(mask, s)) => mask[s.at(b, h, i) + j] == 0,
                                _ => false,
                            } || shape.causal.is_some_and(|o| j as isize > i as isize + o);
                            if let Some(Mask::Add(mask, s)) = shape.mask {
                                score += mask[s.at(b, h, i) + j] as f64;
                            }
                            if hidden { f64::NEG_INFINITY } else { score }
                        })
                        .collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for c in 0..shape.value_width {
                        let y: f64 =
                            (0..shape.keys).map(|j| weights[j] * v[strides[2].at(b, kv, j) + c] as f64).sum();
                        out[out_strides.at(b, h, i) + c] =
                            if top == f64::NEG_INFINITY { 0.0 } else { (y / sum) as f32 };
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_is_the_sum_written_out(
            batch in 1usize..3,
            (kv_heads, group) in (1usize..3, 1usize..4),
            queries in prop_oneof![Just(1usize), 1usize..40],
            keys in prop_oneof![Just(0usize), 1usize..20, 120usize..300],
            (width, value_width) in (1usize..20, 1usize..20),
            (softcap, causal) in (prop_oneof![Just(0f32), Just(2.0)], prop::option::of(-3isize..5)),
            (mask, repeat, rows_first) in (0usize..3, 0usize..3, any::<bool>()),
        ) {
            let heads = kv_heads * group;
            let lay = if rows_first { Strides::rows_first } else { Strides::heads_first };
            let added: Vec<f32> = numbers(batch * heads * queries * keys, 4)
                .into_iter()
                .map(|x| if x > 0.7 { f32::NEG_INFINITY } else { 2.0 * x })
                .collect();
            let kept: Vec<u8> = added.iter().map(|&x| (x < 0.5) as u8).collect();
            let mask_strides = match repeat {
                0 => Strides::heads_first(heads, queries, keys),
                1 => Strides { batch: keys, head: 0, row: 0 },
                _ => Strides { batch: 0, head: 0, row: keys },
            };
            let shape = Attention {
                batch, heads, kv_heads, queries, keys, width, value_width, softcap, causal,
                scale: 0.7,
                mask: match mask {
                    0 => None,
                    1 => Some(Mask::Add(&added, mask_strides)),
                    _ => Some(Mask::Keep(&kept, mask_strides)),
                },
            };
            let q = numbers(batch * heads * queries * width, 1);
            let k = numbers(batch * kv_heads * keys * width, 2);
            let v = numbers(batch * kv_heads * keys * value_width, 3);
            let strides = [lay(heads, queries, width), lay(kv_heads, keys, width), lay(kv_heads, keys, value_width)];
            let out_strides = Strides::rows_first(heads, queries, value_width);
            let mut want = vec![7f32; batch * heads * queries * value_width];
            spec(&shape, [&q, &k, &v], strides, &mut want, out_strides);
            for isa in Isa::available() {
                let results = [1, 2].map(|threads| {
                    let cpu = Cpu::with_isa(isa, threads).unwrap();
                    let mut out = vec![9f32; want.len()];
                    attention(
                        &cpu, &shape, (&q, strides[0]), (&k, strides[1]), (&v, strides[2]), (&mut out, out_strides),
                    );
                    out
                });
                prop_assert_eq!(&results[0], &results[1]);
                for (y, w) in results[0].iter().zip(&want) {
                    prop_assert!((y - w).abs() < 3e-6, "{}: {} for {}", isa, y, w);
                }
            }
        }
    }

    #[test]
    #[should_panic]
    fn overlapping_output_rows_are_refused() {
        let cpu = Cpu::with_isa(Isa::Scalar, 1).unwrap();
        let shape = Attention {
            batch: 1,
            heads: 1,
            kv_heads: 1,
            queries: 2,
            keys: 1,
            width: 2,
            value_width: 2,
            scale: 1.0,
            softcap: 0.0,
            causal: None,
            mask: None,
        };
        let s = Strides { batch: 0, head: 0, row: 1 };
        attention(&cpu, &shape, (&[0.0; 4], s), (&[0.0; 4], s), (&[0.0; 4], s), (&mut [0.0; 4], s));
    }
}
