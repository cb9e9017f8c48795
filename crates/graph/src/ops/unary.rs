//! Functions of one number, each applied to every element: `Abs`, `Exp`, `Sigmoid`, `LeakyRelu`, ...; and
//! `lessen.Slope`, their gradient. <https://onnx.ai/onnx/operators/>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::family::family;
use crate::ops::function::Function;
use crate::{Attr, Attrs, Axes, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// A function applied to each element.
#[derive(Debug)]
pub struct Unary {
    function: Function,
}

/// The gradient of a function: its derivative at each element of the first input, times the second input.
#[derive(Debug)]
pub struct Slope {
    function: Function,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples;
    "Abs" 6, "Acos" 7, "Acosh" 9, "Asin" 7, "Asinh" 9, "Atan" 7, "Atanh" 9, "Ceil" 6, "Celu" 12, "Cos" 7,
    "Cosh" 9, "Elu" 6, "Erf" 9, "Exp" 6, "Floor" 6, "HardSigmoid" 6, "HardSwish" 14, "LeakyRelu" 6, "Log" 6,
    "Mish" 18, "Neg" 6, "Reciprocal" 6, "Relu" 6, "Round" 11, "Selu" 6, "Shrink" 9, "Sigmoid" 6, "Sign" 9,
    "Sin" 7, "Sinh" 9, "Softplus" 1, "Softsign" 1, "Sqrt" 6, "Swish" 24, "Tan" 7, "Tanh" 6, "ThresholdedRelu" 10,
);

pub(crate) static SLOPE: &[OpDef] = &[OpDef {
    name: "Slope",
    domain: "lessen",
    since: 1,
    read: |r| {
        Ok(Arc::new(Slope { function: params(r, Function::named(r.attrs.text_or("function", "")?)?)? }))
    },
    samples: || {
        let function = |name| Function::named(name).map(|function| Slope { function });
        let ops = ["Sigmoid", "Selu", "Swish"].into_iter().filter_map(|name| function(name).ok());
        ops.map(|op| Sample::new(op, vec![ramp(&[2, 3]), ramp(&[2, 3])])).collect()
    },
}];

fn params(r: &Reader, mut function: Function) -> Result<Function> {
    for ((name, default), value) in function.kind.params.iter().zip(&mut function.params) {
        *value = r.attrs.float_or(name, *default)?;
    }
    Ok(function)
}

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Unary { function: params(r, Function::named(name)?)? }))
}

fn samples(name: &str) -> Vec<Sample> {
    let Ok(op) = Unary::named(name) else { return Vec::new() };
    let x = match name {
        "Acosh" => Tensor::vector(&[1.2f32, 1.7, 3.0]),
        "Log" | "Sqrt" | "Reciprocal" => Tensor::vector(&[0.4f32, 1.7, 3.0, 0.8]),
        "Asin" | "Acos" | "Atanh" => Tensor::vector(&[0.1f32, -0.4, 0.7, -0.63]),
        _ => Tensor::vector(&[0.13f32, -0.4, 0.74, -2.2, 1.9, -0.81, 0.3, 4.0, -5.0]),
    };
    let grads: &[usize] = if op.function.is_smooth() { &[0] } else { &[] };
    let mut bent = op.function;
    bent.params[..bent.kind.params.len()].iter_mut().for_each(|p| *p += 0.25);
    let mut samples =
        vec![Sample::new(op, vec![x.clone()]).grads(grads), Sample::new(Unary { function: bent }, vec![x])];
    if bent.kind.params.is_empty() {
        samples.truncate(1);
    }
    if matches!(name, "Abs" | "Neg" | "Sign" | "Relu") {
        samples.push(Sample::new(Unary { function: bent }, vec![Tensor::vector(&[-3i64, 0, 5])]));
    }
    samples
}

impl Unary {
    /// The function of this ONNX name, its parameters the defaults.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none.
    pub fn named(name: &str) -> Result<Unary> {
        Ok(Unary { function: Function::named(name)? })
    }

    /// This function, applied to each element.
    pub(crate) fn of(function: Function) -> Unary {
        Unary { function }
    }

    /// The kernel that computes the function, when there is one, for passes that fuse it into its producer.
    pub fn act(&self) -> Option<kernel::act::Act> {
        self.function.act()
    }
}

impl Slope {
    /// The gradient of a function.
    pub(crate) fn of(function: Function) -> Slope {
        Slope { function }
    }
}

/// The parameters that differ from the defaults.
fn attrs(attrs: Attrs, function: &Function) -> Attrs {
    let differ =
        function.kind.params.iter().zip(function.params).filter(|((_, default), value)| default != value);
    differ.fold(attrs, |attrs, ((name, _), value)| attrs.float(name, value))
}

impl Op for Unary {
    fn def(&self) -> &'static OpDef {
        DEFS.iter().find(|d| d.name == self.function.kind.name).unwrap_or(&DEFS[0])
    }

    fn attrs(&self) -> Attrs {
        attrs(Attrs::new(), &self.function)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let facts = infer::like(inputs, 0)?;
        let numbers = inputs.need(0)?.ints.as_ref().filter(|_| self.function.kind.name == "Neg");
        let ints = numbers.map(|v| v.iter().map(|d| Dim::Is(0).minus(d)).collect());
        Ok(facts.into_iter().map(|f| f.with_ints(ints.clone())).collect())
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        Ok(vec![self.function.apply(cx.cpu, inputs.take(0)?)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if !self.function.is_smooth() {
            return Ok(vec![None]);
        }
        // Where the output is as good, the input need not be kept: what makes it can go into one node with this one.
        let x = if self.function.kind.name == "Relu" { cx.output(0)? } else { cx.input(0)? };
        let dy = cx.grad()?;
        Ok(vec![Some(cx.graph.add_op("grad", Slope { function: self.function }, &[x, dy])?)])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.first()
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        Axes::elementwise(inputs, outputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for Slope {
    fn def(&self) -> &'static OpDef {
        &SLOPE[0]
    }

    fn attrs(&self) -> Attrs {
        attrs(Attrs::new().with("function", Attr::from(self.function.kind.name)), &self.function)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let dy = inputs.take(1)?;
        let x = inputs.need(0)?;
        if !x.dtype().is_float() {
            return Err(Error::invalid(format!("there is no derivative for elements of type {}", x.dtype())));
        }
        Ok(vec![self.function.back(cx.cpu, x, dy)?])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.all()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
