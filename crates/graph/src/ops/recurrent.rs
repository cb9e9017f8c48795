//! `RNN`, `GRU`, `LSTM`: one state after another along a sequence, in one or both directions.
//! <https://onnx.ai/onnx/operators/onnx__LSTM.html>

use std::any::Any;
use std::sync::Arc;

use kernel::Cpu;
use kernel::f32::{Add, PackedB, Post, matmul};
use kernel::matmul::{Bias, View};

use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, WeightKind, WeightUse, ramp};
use crate::ops::gate::{Gate, read_gates};
use crate::ops::halves::{in_f32, widen};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// A recurrent network of one layer.
#[derive(Debug)]
pub struct Recurrent {
    kind: Kind,
    direction: Direction,
    hidden: Option<i64>,
    /// The functions as they were read.
    named: Named,
    /// The functions of all directions.
    gates: Vec<Gate>,
    clip: Option<f32>,
    /// The batch comes first.
    batch_first: bool,
}

/// Names of functions and their first and second parameters.
#[derive(Clone, Debug, Default)]
struct Named {
    names: Option<Vec<String>>,
    alpha: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
}

/// Which cell; the order is that of [`DEFS`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Rnn,
    /// Whether the reset gate comes after the product.
    Gru {
        linear: bool,
    },
    /// Whether the input gate is also the forget gate.
    Lstm {
        coupled: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    Forward,
    Reverse,
    Both,
}

impl Kind {
    fn gates(self) -> usize {
        match self {
            Kind::Rnn => 1,
            Kind::Gru { .. } => 3,
            Kind::Lstm { .. } => 4,
        }
    }

    fn functions(self) -> &'static [&'static str] {
        match self {
            Kind::Rnn => &["Tanh"],
            Kind::Gru { .. } => &["Sigmoid", "Tanh"],
            Kind::Lstm { .. } => &["Sigmoid", "Tanh", "Tanh"],
        }
    }

    fn read(self, r: &Reader) -> Result<Arc<dyn Op>> {
        let direction = match r.attrs.text_or("direction", "forward")? {
            "forward" => Direction::Forward,
            "reverse" => Direction::Reverse,
            "bidirectional" => Direction::Both,
            other => return Err(Error::invalid(format!("there is no direction {other:?}"))),
        };
        let named = Named {
            names: r.attrs.opt_texts("activations")?,
            alpha: r.attrs.opt_floats("activation_alpha")?,
            beta: r.attrs.opt_floats("activation_beta")?,
        };
        let clip = r.attrs.opt_float("clip")?;
        if clip.is_some_and(|c| c.is_nan() || c < 0.0) {
            return Err(Error::invalid("clip must not be negative"));
        }
        let default = self.functions();
        let names: Vec<&str> = match &named.names {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => default.repeat(if direction == Direction::Both { 2 } else { 1 }),
        };
        let count = default.len() * if direction == Direction::Both { 2 } else { 1 };
        if names.len() != count {
            return Err(Error::invalid(format!("{} activations instead of {count}", names.len())));
        }
        let gates = read_gates(&names, named.alpha.as_deref(), named.beta.as_deref())?;
        let hidden = r.attrs.opt_int("hidden_size")?;
        let batch_first = r.attrs.flag_or("layout", false)?;
        Ok(Arc::new(Recurrent { kind: self, direction, hidden, named, gates, clip, batch_first }))
    }

    fn samples(self) -> Vec<Sample> {
        let g = self.gates();
        let op = |direction, batch_first, clip| {
            let count = if direction == Direction::Both { 2 } else { 1 };
            let names = self.functions().repeat(count);
            let gates = read_gates(&names, None, None).unwrap_or_default();
            Recurrent {
                kind: self,
                direction,
                hidden: Some(4),
                named: Named::default(),
                gates,
                clip,
                batch_first,
            }
        };
        let weights = |d: usize| vec![ramp(&[d, 4 * g, 2]), ramp(&[d, 4 * g, 4]), ramp(&[d, 8 * g])];
        let outputs = if matches!(self, Kind::Lstm { .. }) { 3 } else { 2 };
        let inputs = |x: &[usize], d| [vec![ramp(x)], weights(d)].concat();
        let mut all = inputs(&[5, 3, 2], 2);
        all.extend([Tensor::vector(&[5i32, 0, 3]), ramp(&[2, 3, 4])]);
        if outputs == 3 {
            all.extend([ramp(&[2, 3, 4]), ramp(&[2, 12])]);
        }
        vec![
            Sample::new(op(Direction::Forward, false, None), inputs(&[5, 3, 2], 1)).outputs(outputs),
            Sample::new(op(Direction::Reverse, true, Some(0.5)), inputs(&[3, 5, 2], 1)).outputs(outputs),
            Sample::new(op(Direction::Both, false, None), all).outputs(outputs),
        ]
    }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef { name: "RNN", domain: "", since: 7, read: |r| Kind::Rnn.read(r), samples: || Kind::Rnn.samples() },
    OpDef {
        name: "GRU",
        domain: "",
        since: 7,
        read: |r| Kind::Gru { linear: r.attrs.flag_or("linear_before_reset", false)? }.read(r),
        samples: || [true, false].into_iter().flat_map(|linear| Kind::Gru { linear }.samples()).collect(),
    },
    OpDef {
        name: "LSTM",
        domain: "",
        since: 7,
        read: |r| Kind::Lstm { coupled: r.attrs.flag_or("input_forget", false)? }.read(r),
        samples: || [true, false].into_iter().flat_map(|coupled| Kind::Lstm { coupled }.samples()).collect(),
    },
];

/// The weights of all directions, packed.
struct Weights {
    directions: Vec<(PackedB, Vec<PackedB>)>,
    width: usize,
    hidden: usize,
}

impl Weights {
    fn new(cpu: &Cpu, kind: Kind, w: &Tensor, r: &Tensor) -> Result<Weights> {
        let g = kind.gates();
        let (&[d, rows, width], &[dr, rows_r, hidden]) = (w.shape(), r.shape()) else {
            return Err(Error::invalid(format!("weights of shapes {:?} and {:?}", w.shape(), r.shape())));
        };
        if d != dr || rows != rows_r || Some(rows) != hidden.checked_mul(g) {
            return Err(Error::invalid(format!("weights of shapes {:?} and {:?}", w.shape(), r.shape())));
        }
        let (w, r) = (w.as_slice::<f32>()?, r.as_slice::<f32>()?);
        // The last gate of a GRU is multiplied on its own.
        let parts: &[usize] = if let Kind::Gru { .. } = kind { &[2, 1] } else { &[g] };
        let directions = (0..d).map(|i| {
            let w = View::new(&w[i * rows * width..], rows, width).t();
            let mut at = i * rows * hidden;
            let r = parts.iter().map(|&n| {
                let part = View::new(&r[at..], n * hidden, hidden).t();
                at += n * hidden * hidden;
                PackedB::new(cpu, part)
            });
            (PackedB::new(cpu, w), r.collect())
        });
        Ok(Weights { directions: directions.collect(), width, hidden })
    }
}

/// An input `[directions, n]`, zeros when it is absent.
fn rows(inputs: &Inputs, i: usize, directions: usize, n: usize) -> Result<Vec<f32>> {
    let len = crate::tensor::count(&[directions, n])?;
    match inputs.get(i)? {
        None => Ok(vec![0.0; len]),
        Some(t) if t.len() == len => Ok(t.as_slice::<f32>()?.to_vec()),
        Some(t) => Err(Error::invalid(format!("input {i} has shape {:?}, not {len} numbers", t.shape()))),
    }
}

/// `[a, b, n]` as `[b, a, n]`.
fn swapped(data: &[f32], a: usize, b: usize, n: usize) -> Vec<f32> {
    (0..b).flat_map(|j| (0..a).flat_map(move |i| &data[(i * b + j) * n..][..n])).copied().collect()
}

/// One direction at work.
struct Pass<'a> {
    cpu: &'a Cpu,
    kind: Kind,
    gates: &'a [Gate],
    clip: Option<f32>,
    hidden: usize,
    recurrent: &'a [PackedB],
    /// Biases of the recurrent part, one a gate.
    bias: &'a [f32],
    peepholes: &'a [f32],
}

impl Pass<'_> {
    fn gate(&self, gate: usize, part: &mut [f32]) {
        if let Some(clip) = self.clip {
            part.iter_mut().for_each(|v| *v = v.clamp(-clip, clip));
        }
        self.gates[gate].apply(self.cpu, part);
    }

    /// The next state of each sequence, from what the inputs contribute.
    fn step(&self, mut x: Vec<f32>, h: &[f32], c: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let n = self.hidden;
        let (batch, wide) = (h.len() / n.max(1), self.kind.gates() * n);
        let state = View::new(h, batch, n);
        let sum = Post { add: Add::Out, ..Post::default() };
        match self.kind {
            Kind::Rnn => {
                matmul(self.cpu, state, &self.recurrent[0], &mut x, wide, &sum);
                self.gate(0, &mut x);
                (x, c.to_vec())
            }
            Kind::Gru { linear } => {
                matmul(self.cpu, state, &self.recurrent[0], &mut x, wide, &sum);
                let bias = Bias::Col(&self.bias[2 * n..]);
                let mut turned = vec![0f32; batch * n];
                let mut next = Vec::with_capacity(batch * n);
                for row in x.chunks_mut(wide) {
                    self.gate(0, &mut row[..2 * n]);
                }
                if linear {
                    let post = Post { bias, ..Post::default() };
                    matmul(self.cpu, state, &self.recurrent[1], &mut turned, n, &post);
                    for (row, t) in x.chunks(wide).zip(turned.chunks_mut(n)) {
                        (0..n).for_each(|i| t[i] = row[2 * n + i] + row[n + i] * t[i]);
                    }
                } else {
                    let kept: Vec<f32> = x
                        .chunks(wide)
                        .zip(h.chunks(n))
                        .flat_map(|(row, h)| (0..n).map(|i| row[n + i] * h[i]))
                        .collect();
                    for (row, t) in x.chunks(wide).zip(turned.chunks_mut(n)) {
                        t.copy_from_slice(&row[2 * n..]);
                    }
                    let post = Post { add: Add::Out, bias, ..Post::default() };
                    matmul(self.cpu, View::new(&kept, batch, n), &self.recurrent[1], &mut turned, n, &post);
                }
                self.gate(1, &mut turned);
                for ((row, t), h) in x.chunks(wide).zip(turned.chunks(n)).zip(h.chunks(n)) {
                    next.extend((0..n).map(|i| (1.0 - row[i]) * t[i] + row[i] * h[i]));
                }
                (next, c.to_vec())
            }
            Kind::Lstm { coupled } => {
                matmul(self.cpu, state, &self.recurrent[0], &mut x, wide, &sum);
                let (mut cells, mut hs) = (Vec::with_capacity(batch * n), Vec::with_capacity(batch * n));
                for (row, c) in x.chunks_mut(wide).zip(c.chunks(n)) {
                    let (head, candidate) = row.split_at_mut(3 * n);
                    let (input, rest) = head.split_at_mut(n);
                    let (output, forget) = rest.split_at_mut(n);
                    let peep = |part: &mut [f32], k: usize, c: &[f32]| {
                        let weights = &self.peepholes[k * n..][..n];
                        part.iter_mut().zip(weights).zip(c).for_each(|((v, p), c)| *v += p * c);
                    };
                    peep(input, 0, c);
                    self.gate(0, input);
                    if coupled {
                        forget.iter_mut().zip(&*input).for_each(|(f, i)| *f = 1.0 - i);
                    } else {
                        peep(forget, 2, c);
                        self.gate(0, forget);
                    }
                    self.gate(1, candidate);
                    let cell: Vec<f32> = (0..n).map(|i| forget[i] * c[i] + input[i] * candidate[i]).collect();
                    peep(output, 1, &cell);
                    self.gate(0, output);
                    let mut h = cell.clone();
                    self.gate(2, &mut h);
                    h.iter_mut().zip(&*output).for_each(|(h, o)| *h *= o);
                    cells.extend(cell);
                    hs.extend(h);
                }
                (hs, cells)
            }
        }
    }
}

impl Recurrent {
    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let fresh;
        let weights = match cx.packed::<Weights>() {
            Some(weights) => weights,
            None => {
                fresh = Weights::new(cx.cpu, self.kind, inputs.need(1)?, inputs.need(2)?)?;
                &fresh
            }
        };
        let x = inputs.need(0)?;
        let &[first, second, width] = x.shape() else {
            return Err(Error::invalid(format!("a sequence of shape {:?}", x.shape())));
        };
        let (d, n, g) = (weights.directions.len(), weights.hidden, self.kind.gates());
        if width != weights.width || d != if self.direction == Direction::Both { 2 } else { 1 } || n == 0 {
            return Err(Error::invalid(format!(
                "input of shape {:?} for weights of {d} directions and width {}",
                x.shape(),
                weights.width
            )));
        }
        let data = x.as_slice::<f32>()?;
        let (steps, batch) = if self.batch_first { (second, first) } else { (first, second) };
        let turned;
        let data = match self.batch_first {
            true => {
                turned = swapped(data, batch, steps, width);
                &turned
            }
            false => data,
        };
        let lengths = match inputs.ints(4)? {
            Some(lengths) => {
                let one = |&v: &i64| usize::try_from(v).ok().filter(|&v| v <= steps);
                let all: Option<Vec<usize>> = lengths.iter().map(one).collect();
                all.filter(|l| l.len() == batch).ok_or_else(|| {
                    Error::invalid(format!("sequence_lens {lengths:?} for {batch} x {steps} steps"))
                })?
            }
            None => vec![steps; batch],
        };
        let bias = rows(inputs, 3, d, 2 * g * n)?;
        let state = |i: usize| -> Result<Vec<f32>> {
            let given = rows(inputs, i, d, batch * n)?;
            Ok(if self.batch_first { swapped(&given, batch, d, n) } else { given })
        };
        let is_lstm = matches!(self.kind, Kind::Lstm { .. });
        let mut h = state(5)?;
        let mut c = if is_lstm { state(6)? } else { vec![0.0; d * batch * n] };
        let peepholes = if is_lstm { rows(inputs, 7, d, 3 * n)? } else { vec![] };
        let mut y = Tensor::zeros(DType::F32, &[steps, d, batch, n])?;
        let out = y.as_mut_slice::<f32>()?;
        let per = self.kind.functions().len();
        for (i, (w, r)) in weights.directions.iter().enumerate() {
            let (bw, br) = bias[i * 2 * g * n..][..2 * g * n].split_at(g * n);
            let pass = Pass {
                cpu: cx.cpu,
                kind: self.kind,
                gates: &self.gates[i * per..],
                clip: self.clip,
                hidden: n,
                recurrent: r,
                bias: br,
                peepholes: peepholes.get(i * 3 * n..).unwrap_or_default(),
            };
            // All inputs at once; a GRU adds the last recurrent bias to the recurrent part.
            let alone = matches!(self.kind, Kind::Gru { .. });
            let both = |(k, (a, b)): (usize, (&f32, &f32))| if alone && k >= 2 * n { *a } else { a + b };
            let both: Vec<f32> = bw.iter().zip(br).enumerate().map(both).collect();
            let mut gates = Tensor::zeros(DType::F32, &[steps, batch, g * n])?;
            let gates = gates.as_mut_slice::<f32>()?;
            let post = Post { bias: Bias::Col(&both), ..Post::default() };
            matmul(cx.cpu, View::new(data, steps * batch, width), w, gates, g * n, &post);
            let backwards = i == 1 || self.direction == Direction::Reverse;
            let (h, c) = (&mut h[i * batch * n..][..batch * n], &mut c[i * batch * n..][..batch * n]);
            for s in 0..lengths.iter().copied().max().unwrap_or(0) {
                let place = |b: usize| if backwards { lengths[b].saturating_sub(s + 1) } else { s };
                let x = (0..batch).flat_map(|b| &gates[(place(b) * batch + b) * g * n..][..g * n]).copied();
                let (next_h, next_c) = pass.step(x.collect(), h, c);
                for b in (0..batch).filter(|&b| s < lengths[b]) {
                    let at = b * n..(b + 1) * n;
                    h[at.clone()].copy_from_slice(&next_h[at.clone()]);
                    c[at.clone()].copy_from_slice(&next_c[at.clone()]);
                    out[((place(b) * d + i) * batch + b) * n..][..n].copy_from_slice(&next_h[at]);
                }
            }
        }
        let mut shape = [d, batch, n];
        if self.batch_first {
            y = Tensor::new(&[batch, steps, d, n], &swapped(out, steps * d, batch, n))?;
            shape = [batch, d, n];
            h = swapped(&h, d, batch, n);
            c = swapped(&c, d, batch, n);
        }
        let mut outputs = vec![y, Tensor::new(&shape, &h)?];
        if is_lstm {
            outputs.push(Tensor::new(&shape, &c)?);
        }
        Ok(outputs)
    }
}

impl Op for Recurrent {
    fn def(&self) -> &'static OpDef {
        match self.kind {
            Kind::Rnn => &DEFS[0],
            Kind::Gru { .. } => &DEFS[1],
            Kind::Lstm { .. } => &DEFS[2],
        }
    }

    fn attrs(&self) -> Attrs {
        let Named { names, alpha, beta } = self.named.clone();
        let texts = |v: Vec<String>| Attr::Texts(v.into_iter().map(Into::into).collect());
        let direction = match self.direction {
            Direction::Forward => None,
            Direction::Reverse => Some(Attr::from("reverse")),
            Direction::Both => Some(Attr::from("bidirectional")),
        };
        let attrs = Attrs::new()
            .maybe("activation_alpha", alpha.map(Attr::Floats))
            .maybe("activation_beta", beta.map(Attr::Floats))
            .maybe("activations", names.map(texts))
            .maybe("clip", self.clip.map(Attr::Float))
            .maybe("direction", direction)
            .maybe("hidden_size", self.hidden.map(Attr::Int))
            .maybe("layout", self.batch_first.then_some(Attr::Int(1)));
        match self.kind {
            Kind::Gru { linear: true } => attrs.int("linear_before_reset", 1),
            Kind::Lstm { coupled: true } => attrs.int("input_forget", 1),
            _ => attrs,
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let d = Dim::Is(if self.direction == Direction::Both { 2 } else { 1 });
        let hidden = inputs.shape(2).and_then(|s| s.get(2)).cloned();
        let hidden = hidden.filter(|h| *h != Dim::Unknown).or(self.hidden.map(Dim::Is)).unwrap_or_default();
        let (full, state) = match (x.shape(), self.batch_first) {
            (Some([steps, batch, _]), false) => (
                Some(vec![steps.clone(), d.clone(), batch.clone(), hidden.clone()]),
                Some(vec![d, batch.clone(), hidden]),
            ),
            (Some([batch, steps, _]), true) => (
                Some(vec![batch.clone(), steps.clone(), d.clone(), hidden.clone()]),
                Some(vec![batch.clone(), d, hidden]),
            ),
            _ => (None, None),
        };
        let state = Fact::maybe(x.dtype(), state);
        let facts = [Fact::maybe(x.dtype(), full), state.clone(), state];
        Ok(facts.into_iter().take(inputs.outputs.max(1)).collect())
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        if dtype == DType::F64 {
            return Err(Error::unsupported(format!("{} of double", self.name())));
        }
        in_f32(dtype, inputs, |inputs| self.run_f32(cx, &inputs))
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        let (Some(w), Some(r)) = (cx.constant(1), cx.constant(2)) else { return Ok(None) };
        let (w, r) = (widen(w.clone())?, widen(r.clone())?);
        if w.dtype() != DType::F32 || r.dtype() != DType::F32 {
            return Ok(None);
        }
        Ok(Some(Packed::new(Weights::new(cx.cpu, self.kind, &w, &r)?, &[1, 2])))
    }

    fn weight(&self) -> Option<WeightUse> {
        Some(WeightUse { input: 1, out_axis: 1, kind: WeightKind::Recurrent })
    }

    fn mul_adds(&self, inputs: &Facts, _: &[Fact]) -> u64 {
        let count = |i: usize| inputs.get(i).and_then(Fact::count).unwrap_or(0) as u64;
        let rows =
            inputs.shape(0).and_then(|s| s.first()?.size()?.checked_mul(s.get(1)?.size()?)).unwrap_or(0);
        count(1).saturating_add(count(2)).saturating_mul(rows as u64)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
