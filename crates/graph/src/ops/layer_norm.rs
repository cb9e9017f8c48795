//! Normalisation of the last axes: `LayerNormalization`, `RMSNormalization`, and onnxruntime's forms of them, which
//! add a second input first (`SkipLayerNormalization`, `SkipSimplifiedLayerNormalization`).
//! <https://onnx.ai/onnx/operators/onnx__LayerNormalization.html>
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.SkipLayerNormalization>

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use kernel::norm::{Extra, Kind, Norm, norm};

use crate::axes::Port::{Input, Output};
use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::{Walk, combine};
use crate::ops::cast::cast;
use crate::ops::halves::{is_half, widen};
use crate::ops::layer_norm_grad::LayerNormGrad;
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Node, Op, Result, Tensor, ValueId};

/// A normalisation of the last axes.
#[derive(Debug)]
pub struct LayerNorm {
    form: Form,
    /// The first axis that is normalised.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
    stash: i64,
}

/// The operator that it is written as; the order is that of [`DEFS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Layer,
    Rms,
    Simplified,
    SimplifiedMs,
    Skip,
    SkipSimplified,
}

impl Form {
    fn kind(self) -> Kind {
        match self {
            Form::Layer | Form::Skip => Kind::Layer,
            _ => Kind::Rms,
        }
    }

    fn is_skip(self) -> bool {
        matches!(self, Form::Skip | Form::SkipSimplified)
    }

    /// Which inputs are shift and the bias that is added before.
    fn shifts(self) -> (Option<usize>, Option<usize>) {
        match self {
            Form::Layer => (Some(2), None),
            Form::Skip => (Some(3), Some(4)),
            Form::SkipSimplified => (None, Some(3)),
            _ => (None, None),
        }
    }

    fn read(self, r: &Reader) -> Result<Arc<dyn Op>> {
        Ok(Arc::new(LayerNorm {
            form: self,
            axis: r.attrs.int_or("axis", -1)?,
            epsilon: r.attrs.float_or("epsilon", if self.is_skip() { 1e-12 } else { 1e-5 })?,
            stash: r.attrs.int_or("stash_type", 1)?,
        }))
    }

    fn samples(self) -> Vec<Sample> {
        let op = |axis, epsilon| LayerNorm { form: self, axis, epsilon, stash: 1 };
        let x = || ramp(&[2, 3, 5]);
        match self {
            Form::Skip => vec![
                Sample::new(op(-1, 1e-5), vec![x(), ramp(&[2, 3, 5]), ramp(&[5]), ramp(&[5]), ramp(&[5])])
                    .outputs(4),
                Sample::new(op(-1, 1e-5), vec![x(), ramp(&[1, 3, 5]), ramp(&[5])]),
            ],
            Form::SkipSimplified => {
                vec![Sample::new(op(-1, 1e-5), vec![x(), ramp(&[3, 5]), ramp(&[5]), ramp(&[5])]).outputs(4)]
            }
            Form::Layer => vec![
                Sample::new(op(-1, 1e-2), vec![x(), ramp(&[5]), ramp(&[5])]).grads(&[0, 1, 2]),
                Sample::new(op(1, 1e-2), vec![x(), ramp(&[3, 5])]).outputs(3).grads(&[0, 1]),
                Sample::new(op(0, 1e-5), vec![x(), ramp(&[1]), ramp(&[3, 1])]),
            ]
            .into_iter()
            .chain(self.narrow(op(-1, 1e-2)))
            .collect(),
            _ => vec![
                Sample::new(op(-1, 1e-2), vec![x(), ramp(&[5])]).grads(&[0, 1]),
                Sample::new(op(-2, 1e-5), vec![x(), ramp(&[3, 5])]),
            ],
        }
    }

    fn narrow(self, op: LayerNorm) -> Option<Sample> {
        let half = |s: &[usize]| cast(ramp(s), DType::F16, true).ok();
        Some(Sample::new(op, vec![half(&[2, 4])?, half(&[4])?]).outputs(3).tolerance(2e-3))
    }
}

const fn def(
    name: &'static str,
    domain: &'static str,
    since: i64,
    read: fn(&Reader) -> Result<Arc<dyn Op>>,
    samples: fn() -> Vec<Sample>,
) -> OpDef {
    OpDef { name, domain, since, read, samples }
}

pub(crate) static DEFS: &[OpDef] = &[
    def("LayerNormalization", "", 1, |r| Form::Layer.read(r), || Form::Layer.samples()),
    def("RMSNormalization", "", 23, |r| Form::Rms.read(r), || Form::Rms.samples()),
    def("SimplifiedLayerNormalization", "", 1, |r| Form::Simplified.read(r), || Form::Simplified.samples()),
    def(
        "SimplifiedLayerNormalization",
        "com.microsoft",
        1,
        |r| Form::SimplifiedMs.read(r),
        || Form::SimplifiedMs.samples(),
    ),
    def("SkipLayerNormalization", "com.microsoft", 1, |r| Form::Skip.read(r), || Form::Skip.samples()),
    def(
        "SkipSimplifiedLayerNormalization",
        "com.microsoft",
        1,
        |r| Form::SkipSimplified.read(r),
        || Form::SkipSimplified.samples(),
    ),
];

/// The elements of a tensor repeated to a shape; `None` when it does not broadcast to it.
pub(crate) fn spread<'a>(t: &'a Tensor, shape: &[usize]) -> Result<Option<Cow<'a, [f32]>>> {
    let data = t.as_slice::<f32>()?;
    let n = crate::tensor::count(shape)?;
    if t.shape() == shape || (data.len() == n && t.shape().last() == Some(&n)) {
        return Ok(Some(Cow::Borrowed(data)));
    }
    let Ok(walk) = Walk::new(shape, t.shape()) else { return Ok(None) };
    if walk.shape != shape {
        return Ok(None);
    }
    let mut out = vec![0f32; n];
    walk.apply(&vec![(); n], data, &mut out, |(), v| v);
    Ok(Some(Cow::Owned(out)))
}

impl LayerNorm {
    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let axis = infer::axis(self.axis, x.rank())?;
        let (outer, inner) = x.shape().split_at(axis);
        let n = crate::tensor::count(inner)?;
        let rows: usize = outer.iter().product();
        let scale = inputs.need(if self.form.is_skip() { 2 } else { 1 })?;
        let (shift, bias) = self.form.shifts();
        let shift = shift.map(|i| inputs.get(i)).transpose()?.flatten();
        let bias = bias.map(|i| inputs.get(i)).transpose()?.flatten();
        let misfit = |what: &str| Error::invalid(format!("the {what} does not broadcast to {:?}", x.shape()));
        let gamma = spread(scale, inner)?;
        let beta = match shift {
            Some(t) if gamma.is_some() => Some(spread(t, inner)?.ok_or_else(|| misfit("shift"))?),
            _ => None,
        };
        // What is added before: the second input, and perhaps a bias.
        let mut skip = None;
        if self.form.is_skip() {
            let mut sum = spread(inputs.need(1)?, x.shape())?.ok_or_else(|| misfit("second input"))?;
            if let Some(bias) = bias {
                let bias = spread(bias, inner)?.ok_or_else(|| misfit("bias"))?;
                for row in sum.to_mut().chunks_mut(n.max(1)) {
                    row.iter_mut().zip(bias.iter()).for_each(|(s, b)| *s += b);
                }
            }
            skip = Some(sum);
        }
        let stats: Vec<usize> = outer.iter().copied().chain(inner.iter().map(|_| 1)).collect();
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        let mut y = zeros(x.shape())?;
        let (mut mean, mut inverse) = (zeros(&stats)?, zeros(&stats)?);
        let mut sum = if cx.outputs > 3 { Some(zeros(x.shape())?) } else { None };
        if rows > 0 && n > 0 {
            let plan = Norm {
                kind: self.form.kind(),
                epsilon: self.epsilon,
                gamma: gamma.as_deref(),
                beta: beta.as_deref(),
            };
            let extra = Extra {
                skip: skip.as_deref(),
                sum: sum.as_mut().map(Tensor::as_mut_slice).transpose()?,
                mean: Some(mean.as_mut_slice()?),
                inverse: Some(inverse.as_mut_slice()?),
            };
            norm(cx.cpu, plan, x.as_slice()?, n, extra, y.as_mut_slice()?);
        }
        if gamma.is_none() {
            // The scale varies along the outer axes too.
            y = combine::<f32>(y, scale, |a, b| a * b)?;
            if let Some(shift) = shift {
                y = combine::<f32>(y, shift, |a, b| a + b)?;
            }
            if y.shape() != x.shape() {
                return Err(misfit("scale"));
            }
        }
        Ok(match self.form {
            Form::Simplified | Form::SimplifiedMs => vec![y, inverse],
            _ => [vec![y, mean, inverse], sum.into_iter().collect()].concat(),
        })
    }

    fn run_f64(&self, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let axis = infer::axis(self.axis, x.rank())?;
        let (outer, inner) = x.shape().split_at(axis);
        let n = crate::tensor::count(inner)?.max(1);
        let (mut means, mut inverses) = (Vec::new(), Vec::new());
        let mut y = x.clone();
        for row in y.as_mut_slice::<f64>()?.chunks_mut(n) {
            let mean = if self.form == Form::Layer { row.iter().sum::<f64>() / n as f64 } else { 0.0 };
            let square = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
            let inverse = 1.0 / (square + f64::from(self.epsilon)).sqrt();
            row.iter_mut().for_each(|v| *v = (*v - mean) * inverse);
            means.push(mean);
            inverses.push(inverse);
        }
        y = combine::<f64>(y, inputs.need(1)?, |a, b| a * b)?;
        if let Some(shift) = inputs.get(2)?.filter(|_| self.form == Form::Layer) {
            y = combine::<f64>(y, shift, |a, b| a + b)?;
        }
        if y.shape() != x.shape() {
            return Err(Error::invalid(format!("the scale does not broadcast to {:?}", x.shape())));
        }
        let stats: Vec<usize> = outer.iter().copied().chain(inner.iter().map(|_| 1)).collect();
        let stash = if self.stash == 11 { DType::F64 } else { DType::F32 };
        let mean = cast(Tensor::new(&stats, &means)?, stash, true)?;
        let inverse = cast(Tensor::new(&stats, &inverses)?, stash, true)?;
        Ok(match self.form {
            Form::Layer => vec![y, mean, inverse],
            _ => vec![y, inverse],
        })
    }
}

impl Op for LayerNorm {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.form as usize]
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().float("epsilon", self.epsilon);
        if self.form.is_skip() { attrs } else { attrs.int("axis", self.axis).int("stash_type", self.stash) }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let y = Fact::maybe(x.dtype(), x.shape().map(<[Dim]>::to_vec));
        let mut stats = Fact::maybe(None, None);
        if let Some(shape) = x.shape() {
            let axis = infer::axis(self.axis, shape.len())?;
            let shape = shape.iter().enumerate().map(|(i, d)| if i < axis { d.clone() } else { Dim::Is(1) });
            stats = Fact::maybe(None, Some(shape.collect()));
        }
        let all = match self.form {
            Form::Simplified | Form::SimplifiedMs => vec![y, stats],
            _ => vec![y.clone(), stats.clone(), stats, y],
        };
        Ok(all.into_iter().take(inputs.outputs.max(1)).collect())
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        if dtype == DType::F64 && !self.form.is_skip() {
            return self.run_f64(&inputs);
        }
        if !is_half(dtype) {
            return self.run_f32(cx, &inputs);
        }
        let mut wide = Vec::new();
        for i in 0..inputs.len() {
            wide.push(inputs.take_data(i).map(|d| widen(d.into_tensor()?).map(Into::into)).transpose()?);
        }
        // The statistics stay in f32.
        let stats = 1..if matches!(self.form, Form::Simplified | Form::SimplifiedMs) { 2 } else { 3 };
        let outputs = self.run_f32(cx, &Inputs::new(wide))?;
        let narrow = |(i, t)| if stats.contains(&i) { Ok(t) } else { cast(t, dtype, true) };
        outputs.into_iter().enumerate().map(narrow).collect()
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.form.is_skip() {
            return Err(Error::unsupported(format!("the gradient of {}", self.name())));
        }
        let op = LayerNormGrad { rms: self.form.kind() == Kind::Rms, axis: self.axis, epsilon: self.epsilon };
        let inputs = vec![Some(cx.input(0)?), Some(cx.input(1)?), Some(cx.grad()?)];
        let (_, grads) = cx.graph.add_with_outputs("grad", Node::new(Arc::new(op), inputs), 3, None)?;
        Ok(grads.into_iter().map(Some).take(cx.inputs.len()).collect())
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        if self.form.is_skip() {
            return None;
        }
        // What is normalised together cannot be had without one of its members.
        let mut axes = Axes::new();
        for a in 0..infer::axis(self.axis, inputs.rank(0)?).ok()? {
            (0..outputs.len()).for_each(|i| _ = axes.tie((Input(0), a), (Output(i), a)));
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
