//! Functions of one number: `Abs`, `Exp`, `Sigmoid`, ... each applied to every element.
//! <https://onnx.ai/onnx/operators/>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::number::{Number, by_type, map};
use crate::{Attrs, Error, Fact, Op, Result, Tensor, ValueId};

/// A function applied to each element.
#[derive(Debug)]
pub struct Unary {
    kind: &'static Kind,
}

/// One function: its name, its meaning in f64, and for signed integers.
struct Kind {
    name: &'static str,
    f: fn(f64) -> f64,
    /// The gradient, written with other operators, when there is one.
    grad: Option<fn(&mut GradCx) -> Result<ValueId>>,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

static KINDS: &[Kind] = &[
    Kind { name: "Abs", f: f64::abs, grad: None },
    Kind { name: "Exp", f: f64::exp, grad: None },
    Kind { name: "Neg", f: |x| -x, grad: Some(grad_neg) },
];

fn grad_neg(cx: &mut GradCx) -> Result<ValueId> {
    let dy = cx.grad()?;
    cx.graph.add_op("neg", Unary::named("Neg")?, &[dy])
}

const fn def(
    name: &'static str,
    read: fn(&Reader) -> Result<Arc<dyn Op>>,
    samples: fn() -> Vec<Sample>,
) -> OpDef {
    OpDef { name, domain: "", since: 1, read, samples }
}

fn at(i: usize) -> Unary {
    Unary { kind: &KINDS[i] }
}

fn sample(i: usize) -> Vec<Sample> {
    let sample = Sample::new(at(i), vec![ramp(&[3, 5])]);
    vec![if KINDS[i].grad.is_some() { sample.grads(&[0]) } else { sample }]
}

pub(crate) static DEFS: &[OpDef] = &[
    def("Abs", |_| Ok(Arc::new(at(0))), || sample(0)),
    def("Exp", |_| Ok(Arc::new(at(1))), || sample(1)),
    def("Neg", |_| Ok(Arc::new(at(2))), || sample(2)),
];

impl Unary {
    /// The function of this ONNX name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none.
    pub fn named(name: &str) -> Result<Unary> {
        let kind = KINDS.iter().find(|k| k.name == name);
        kind.map(|kind| Unary { kind }).ok_or_else(|| Error::unsupported(format!("function {name}")))
    }
}

impl Op for Unary {
    fn def(&self) -> &'static OpDef {
        DEFS.iter().find(|d| d.name == self.kind.name).unwrap_or(&DEFS[0])
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn apply<T: Number>(x: Tensor, f: fn(f64) -> f64) -> Result<Tensor> {
            map::<T>(x, |v| T::from_f64(f(v.to_f64())))
        }
        let x = inputs.take(0)?;
        Ok(vec![by_type!(x.dtype(), apply(x, self.kind.f))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        match self.kind.grad {
            Some(grad) => Ok(vec![Some(grad(cx)?)]),
            None => Err(Error::unsupported(format!("{} has no gradient", self.kind.name))),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
