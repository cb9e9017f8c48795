//! Gaussian error linear units and gates: `Gelu`, `SwiGLU`, and those of com.microsoft.
//! <https://onnx.ai/onnx/operators/onnx__Gelu.html>,
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::binary::Binary;
use crate::ops::family::family;
use crate::ops::function::Function;
use crate::ops::unary::Slope;
use crate::{Attr, Attrs, Axes, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// A function of the first input, to which a bias is added before or which is multiplied with a second input.
#[derive(Debug)]
pub struct Gated {
    function: Function,
    def: &'static OpDef,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples; "Gelu" 20, "SwiGLU" 28);
pub(crate) static CONTRIB: &[OpDef] = family!("com.microsoft", read_contrib, samples_contrib; "Gelu" 1, "FastGelu" 1, "BiasGelu" 1, "QuickGelu" 1);

fn find(defs: &'static [OpDef], name: &str) -> &'static OpDef {
    defs.iter().find(|d| d.name == name).unwrap_or(&defs[0])
}

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    let function = match (name, r.attrs.text_or("approximate", "none")?) {
        ("SwiGLU", _) => swish(r, 1.0)?,
        (_, "none") => Function::named("Gelu")?,
        (_, "tanh") => Function::named("GeluTanh")?,
        (_, other) => return Err(Error::invalid(format!("approximate is {other:?}, neither none nor tanh"))),
    };
    Ok(Arc::new(Gated { function, def: find(DEFS, name) }))
}

fn read_contrib(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    let function = match name {
        "QuickGelu" => swish(r, QUICK)?,
        "FastGelu" => Function::named("GeluTanh")?,
        _ => Function::named("Gelu")?,
    };
    Ok(Arc::new(Gated { function, def: find(CONTRIB, name) }))
}

/// The default `alpha` of `QuickGelu`.
const QUICK: f32 = 1.702;

fn swish(r: &Reader, default: f32) -> Result<Function> {
    Ok(Function { params: [r.attrs.float_or("alpha", default)?, 0.0], ..Function::named("Swish")? })
}

fn sample(function: &str, alpha: f32, def: &'static OpDef, inputs: Vec<Tensor>) -> Option<Sample> {
    let function = Function { params: [alpha, 0.0], ..Function::named(function).ok()? };
    let grads: Vec<usize> = (0..inputs.len()).collect();
    Some(Sample::new(Gated { function, def }, inputs).grads(&grads))
}

fn samples(name: &str) -> Vec<Sample> {
    let def = find(DEFS, name);
    let (x, y) = (ramp(&[2, 3]), Tensor::new(&[2, 3], &[0.4f32, -1.0, 0.3, 2.0, -0.7, 0.2]));
    let y = y.unwrap_or_else(|_| x.clone());
    match name {
        "SwiGLU" => {
            [sample("Swish", 1.0, def, vec![x.clone(), y.clone()]), sample("Swish", 1.5, def, vec![x, y])]
        }
        _ => [sample("Gelu", 0.0, def, vec![x]), sample("GeluTanh", 0.0, def, vec![y])],
    }
    .into_iter()
    .flatten()
    .collect()
}

fn samples_contrib(name: &str) -> Vec<Sample> {
    let def = find(CONTRIB, name);
    let (x, bias) = (ramp(&[2, 3]), ramp(&[3]));
    match name {
        "QuickGelu" => vec![sample("Swish", QUICK, def, vec![x.clone()]), sample("Swish", 1.0, def, vec![x])],
        "FastGelu" => {
            vec![sample("GeluTanh", 0.0, def, vec![x.clone()]), sample("GeluTanh", 0.0, def, vec![x, bias])]
        }
        "BiasGelu" => vec![sample("Gelu", 0.0, def, vec![x, bias])],
        _ => vec![sample("Gelu", 0.0, def, vec![x])],
    }
    .into_iter()
    .flatten()
    .collect()
}

impl Gated {
    /// True when the second input multiplies; else it is a bias.
    fn gates(&self) -> bool {
        self.def.name == "SwiGLU"
    }
}

impl Op for Gated {
    fn def(&self) -> &'static OpDef {
        self.def
    }

    fn attrs(&self) -> Attrs {
        let alpha = self.function.params[0];
        match (self.def.name, self.def.domain) {
            ("SwiGLU", _) => Attrs::new().maybe("alpha", (alpha != 1.0).then_some(Attr::Float(alpha))),
            ("QuickGelu", _) => Attrs::new().maybe("alpha", (alpha != QUICK).then_some(Attr::Float(alpha))),
            ("Gelu", "") if self.function.kind.name == "GeluTanh" => Attrs::new().text("approximate", "tanh"),
            _ => Attrs::new(),
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let mut x = inputs.take(0)?;
        let Some(other) = inputs.take_data(1) else { return Ok(vec![self.function.apply(cx.cpu, x)?]) };
        let other = other.into_tensor()?;
        let (shape, fits) = (x.shape().to_vec(), if self.gates() { x.rank() } else { 1 });
        if other.rank() != fits || !shape.ends_with(other.shape()) {
            return Err(Error::invalid(format!("{:?} does not fit {shape:?}", other.shape())));
        }
        let two = |name: &str, a: Tensor, b: Tensor| -> Result<Tensor> {
            let inputs = Inputs::new(vec![Some(a.into()), Some(b.into())]);
            Ok(Binary::named(name)?.run(cx, inputs)?.remove(0))
        };
        if self.gates() {
            return Ok(vec![two("Mul", self.function.apply(cx.cpu, x)?, other)?]);
        }
        x = two("Add", x, other)?;
        Ok(vec![self.function.apply(cx.cpu, x)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, dy) = (cx.input(0)?, cx.grad()?);
        let slope = |cx: &mut GradCx, x, dy| cx.graph.add_op("grad", Slope::of(self.function), &[x, dy]);
        let Some(other) = cx.inputs.get(1).copied().flatten() else {
            return Ok(vec![Some(slope(cx, x, dy)?)]);
        };
        if self.gates() {
            let gate = cx.graph.add_op("grad", super::unary::Unary::of(self.function), &[x])?;
            let (other_grad, inner) = (cx.two("Mul", dy, gate)?, cx.two("Mul", dy, other)?);
            return Ok(vec![Some(slope(cx, x, inner)?), Some(other_grad)]);
        }
        let sum = cx.two("Add", x, other)?;
        let dx = slope(cx, sum, dy)?;
        Ok(vec![Some(dx), Some(cx.summed(dx, other)?)])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        // The second input is not broadcast as others are.
        let alike = (0..cx.facts.len()).all(|at| cx.facts.shape(at) == cx.facts.shape(0));
        cx.all().filter(|_| alike)
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        Axes::elementwise(inputs, outputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
