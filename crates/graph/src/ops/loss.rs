//! `NegativeLogLikelihoodLoss`, `SoftmaxCrossEntropyLoss`, and `lessen.LossGrad`.
//! <https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html>

use std::any::Any;
use std::sync::Arc;

use kernel::softmax::log_softmax;

use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::family::family;
use crate::ops::softmax::{Softmax, SoftmaxGrad};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, ValueId, infer};

/// What becomes of the losses of all examples.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

/// The loss of `[n, classes, ...]` against the right classes `[n, ...]`, with a weight for each class or none.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The first input holds scores; else it holds logarithms of probabilities.
    scores: bool,
    reduction: Reduction,
    /// Examples of this class do not count.
    ignore: Option<i64>,
}

/// The gradient with respect to the logarithms of probabilities: from the loss's gradient, the first input, the
/// classes and the weights.
#[derive(Debug)]
pub struct LossGrad(Loss);

pub(crate) static DEFS: &[OpDef] =
    family!("", read, samples; "NegativeLogLikelihoodLoss" 12, "SoftmaxCrossEntropyLoss" 12);

pub(crate) static GRAD: &[OpDef] = family!("lessen", read_grad, samples_grad; "LossGrad" 1);

fn loss(r: &Reader, scores: bool) -> Result<Loss> {
    let reduction = match r.attrs.text_or("reduction", "mean")? {
        "none" => Reduction::None,
        "sum" => Reduction::Sum,
        "mean" => Reduction::Mean,
        other => return Err(Error::invalid(format!("reduction is {other:?}, none of none, sum and mean"))),
    };
    Ok(Loss { scores, reduction, ignore: r.attrs.opt_int("ignore_index")? })
}

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(loss(r, name == "SoftmaxCrossEntropyLoss")?))
}

fn read_grad(r: &Reader, _: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(LossGrad(loss(r, false)?)))
}

fn samples(name: &str) -> Vec<Sample> {
    let scores = name == "SoftmaxCrossEntropyLoss";
    let op = |reduction, ignore| Loss { scores, reduction, ignore };
    let classes = || Tensor::vector(&[2i64, 0, 1]);
    let weights = || Tensor::vector(&[0.5f32, 2.0, 0.25, 1.0]);
    let image = Tensor::new(&[2, 2], &[0i32, -1, 1, 2]).unwrap_or_else(|_| classes());
    let mut samples = vec![
        Sample::new(op(Reduction::Mean, None), vec![ramp(&[3, 4]), classes()]).grads(&[0]),
        Sample::new(op(Reduction::Mean, Some(0)), vec![ramp(&[3, 4]), classes(), weights()]).grads(&[0]),
        Sample::new(op(Reduction::Sum, Some(-1)), vec![ramp(&[2, 4, 2]), image.clone(), weights()])
            .grads(&[0]),
        Sample::new(op(Reduction::None, Some(-1)), vec![ramp(&[2, 4, 2]), image]).grads(&[0]),
    ];
    if scores {
        samples.push(Sample::new(op(Reduction::Mean, None), vec![ramp(&[3, 4]), classes()]).outputs(2));
    }
    samples
}

fn samples_grad(_: &str) -> Vec<Sample> {
    let op = LossGrad(Loss { scores: false, reduction: Reduction::Sum, ignore: None });
    vec![Sample::new(op, vec![Tensor::scalar(2f32), ramp(&[2, 4]), Tensor::vector(&[3i64, 0])])]
}

/// For each example the place of its right class in the first input and its weight; `None` when it does not count.
struct Picks(Vec<Option<(usize, f32)>>);

impl Loss {
    fn picks(&self, x: &[usize], classes: &Tensor, weights: Option<&[f32]>) -> Result<Picks> {
        let (&[n, c, ref rest @ ..], target) = (x, classes.shape()) else {
            return Err(Error::invalid(format!("a loss takes [n, classes, ...], not {x:?}")));
        };
        if target.first() != Some(&n) || target[1..] != *rest || weights.is_some_and(|w| w.len() != c) {
            return Err(Error::invalid(format!("classes {target:?} or their weights do not fit {x:?}")));
        }
        let inner: usize = rest.iter().product();
        let pick = |(i, class): (usize, i64)| {
            if self.ignore == Some(class) {
                return Ok(None);
            }
            let k = usize::try_from(class).ok().filter(|&k| k < c);
            let k = k.ok_or_else(|| Error::invalid(format!("class {class} is not one of {c}")))?;
            Ok(Some(((i / inner * c + k) * inner + i % inner, weights.map_or(1.0, |w| w[k]))))
        };
        classes.to_ints()?.into_iter().enumerate().map(pick).collect::<Result<_>>().map(Picks)
    }

    fn attributes(&self) -> Attrs {
        let attrs = match self.reduction {
            Reduction::None => Attrs::new().text("reduction", "none"),
            Reduction::Sum => Attrs::new().text("reduction", "sum"),
            Reduction::Mean => Attrs::new(),
        };
        attrs.maybe("ignore_index", self.ignore.map(Attr::Int))
    }
}

fn weights(inputs: &Inputs, i: usize) -> Result<Option<Vec<f32>>> {
    inputs.get(i)?.map(|w| Ok(w.to_f32()?.into_owned())).transpose()
}

impl Picks {
    /// The sum of the weights.
    fn total(&self) -> f64 {
        self.0.iter().flatten().map(|p| f64::from(p.1)).sum()
    }
}

impl Op for Loss {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(self.scores)]
    }

    fn attrs(&self) -> Attrs {
        self.attributes()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let shape = match self.reduction {
            Reduction::None => inputs.need(1)?.shape().map(<[Dim]>::to_vec),
            _ => Some(Vec::new()),
        };
        Ok(vec![Fact::maybe(x.dtype(), shape), Fact { ty: x.ty.clone(), ints: None }])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let dtype = x.dtype();
        if !dtype.is_float() {
            return Err(Error::invalid(format!("a loss takes fractions, not {dtype}")));
        }
        let (classes, weights) = (inputs.need(1)?, weights(&inputs, 2)?);
        let picks = self.picks(x.shape(), classes, weights.as_deref())?;
        let mut x = cast(x, DType::F32, true)?;
        if self.scores {
            let [n, c, rest @ ..] = x.shape() else {
                return Err(Error::invalid("a loss takes [n, classes, ...]"));
            };
            let dims = [*n, *c, rest.iter().product()];
            log_softmax(cx.cpu, x.as_mut_slice()?, dims);
        }
        let data = x.as_slice::<f32>()?;
        let loss = |p: &Option<(usize, f32)>| p.map_or(0.0, |(at, w)| -data[at] * w);
        let sum = || picks.0.iter().map(|p| f64::from(loss(p))).sum::<f64>();
        let out = match self.reduction {
            Reduction::None => Tensor::new(classes.shape(), &picks.0.iter().map(loss).collect::<Vec<_>>())?,
            Reduction::Sum => Tensor::scalar(sum() as f32),
            Reduction::Mean => Tensor::scalar((sum() / picks.total()) as f32),
        };
        let mut outputs = vec![cast(out, dtype, true)?];
        if self.scores && cx.outputs > 1 {
            outputs.push(cast(x, dtype, true)?);
        }
        Ok(outputs)
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, classes) = (cx.input(0)?, cx.input(1)?);
        let of_log = cx.grads.get(1).copied().flatten();
        let mut logs = match cx.grads.first().copied().flatten() {
            Some(dy) => {
                let inputs: Vec<ValueId> =
                    [dy, x, classes].into_iter().chain(cx.inputs.get(2).copied().flatten()).collect();
                Some(cx.graph.add_op("grad", LossGrad(self.clone()), &inputs)?)
            }
            None => None,
        };
        if !self.scores {
            return Ok(vec![logs, None, None]);
        }
        logs = match (logs, of_log) {
            (Some(a), Some(b)) => Some(cx.two("Add", a, b)?),
            (a, b) => a.or(b),
        };
        let Some(logs) = logs else { return Ok(vec![None; 3]) };
        let log_prob = match cx.outputs.get(1).copied().flatten() {
            Some(value) => value,
            None => cx.graph.add_op("log_prob", Softmax::log(1), &[x])?,
        };
        Ok(vec![Some(cx.graph.add_op("grad", SoftmaxGrad::of_log(1), &[log_prob, logs])?), None, None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for LossGrad {
    fn def(&self) -> &'static OpDef {
        &GRAD[0]
    }

    fn attrs(&self) -> Attrs {
        self.0.attributes()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 1)
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (dy, x, weights) = (inputs.need(0)?, inputs.need(1)?, weights(&inputs, 3)?);
        let picks = self.0.picks(x.shape(), inputs.need(2)?, weights.as_deref())?;
        let each = dy.to_f32()?;
        if each.len() != if self.0.reduction == Reduction::None { picks.0.len() } else { 1 } {
            return Err(Error::invalid(format!("a gradient {:?} does not fit the loss", dy.shape())));
        }
        let scale = if self.0.reduction == Reduction::Mean { 1.0 / picks.total() as f32 } else { 1.0 };
        let grad = Tensor::build(x.shape(), |out: &mut [f32]| {
            for (i, pick) in picks.0.iter().enumerate() {
                if let Some((at, weight)) = *pick {
                    out[at] = -weight * scale * each[if each.len() == 1 { 0 } else { i }];
                }
            }
            Ok(())
        })?;
        Ok(vec![cast(grad, x.dtype(), true)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
