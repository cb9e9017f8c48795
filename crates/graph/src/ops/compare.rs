//! Comparisons and logic of two tensors, broadcast against each other: `Equal`, `Greater`, `Less`, `And`, ...
//! <https://onnx.ai/onnx/operators/onnx__Equal.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::{Walk, compare, ints};
use crate::ops::family::family;
use crate::ops::number::{Number, by_type};
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// A comparison of two tensors, or logic of two boolean ones.
#[derive(Debug)]
pub struct Compare {
    name: &'static str,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples;
    "Equal" 7, "Greater" 7, "GreaterOrEqual" 12, "Less" 7, "LessOrEqual" 12, "And" 7, "Or" 7, "Xor" 7,
);

fn read(_: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Compare::named(name)?))
}

fn samples(name: &str) -> Vec<Sample> {
    let sample = |inputs| Compare::named(name).map(|op| Sample::new(op, inputs));
    let truth = |v: &[bool]| Tensor::bools(&[v.len()], v);
    let texts = |v: &[&str]| Tensor::strings(&[v.len()], v.iter().map(|s| s.to_string()).collect());
    let logic = || {
        let pair = vec![truth(&[true, true, false, false])?, truth(&[true, false, true, false])?];
        Ok::<_, Error>(vec![sample(pair)?])
    };
    let numbers = || {
        let integers = vec![Tensor::vector(&[1i64, 2, 3]), Tensor::scalar(2i64)];
        let mut found = vec![sample(vec![ramp(&[2, 1, 3]), ramp(&[4, 1])])?, sample(integers)?];
        if name == "Equal" {
            found.push(sample(vec![texts(&["a", "b"])?, texts(&["b"])?])?);
        }
        Ok(found)
    };
    if matches!(name, "And" | "Or" | "Xor") { logic() } else { numbers() }.unwrap_or_default()
}

impl Compare {
    /// The comparison of this ONNX name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none.
    pub fn named(name: &str) -> Result<Compare> {
        let def = DEFS.iter().find(|d| d.name == name);
        def.map(|d| Compare { name: d.name }).ok_or_else(|| Error::unsupported(format!("comparison {name}")))
    }

    fn holds<T: PartialOrd>(&self, a: &T, b: &T) -> bool {
        match self.name {
            "Equal" => a == b,
            "Greater" => a > b,
            "GreaterOrEqual" => a >= b,
            "Less" => a < b,
            _ => a <= b,
        }
    }

    fn numbers<T: Number>(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self.name {
            "Equal" => compare::<T>(a, b, |x, y| x == y),
            "Greater" => compare::<T>(a, b, |x, y| x > y),
            "GreaterOrEqual" => compare::<T>(a, b, |x, y| x >= y),
            "Less" => compare::<T>(a, b, |x, y| x < y),
            "LessOrEqual" => compare::<T>(a, b, |x, y| x <= y),
            _ => Err(Error::invalid(format!("{} takes boolean tensors", self.name))),
        }
    }

    fn truths(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let f = match self.name {
            "And" => |x: u8, y: u8| x & y,
            "Or" => |x, y| x | y,
            "Xor" => |x, y| x ^ y,
            "Equal" => |x, y| u8::from(x == y),
            _ => return Err(Error::invalid(format!("{} does not take boolean tensors", self.name))),
        };
        let walk = Walk::new(a.shape(), b.shape())?;
        let mut out = Tensor::zeros(DType::Bool, &walk.shape)?;
        walk.apply(a.bytes(), b.bytes(), out.bytes_mut()?, f);
        Ok(out)
    }

    fn texts(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (x, y) = (a.as_strings()?, b.as_strings()?);
        let (at, bt): (Vec<usize>, Vec<usize>) = ((0..x.len()).collect(), (0..y.len()).collect());
        let walk = Walk::new(a.shape(), b.shape())?;
        let mut out = Tensor::zeros(DType::Bool, &walk.shape)?;
        walk.apply(&at, &bt, out.bytes_mut()?, |i, j| u8::from(self.holds(&x[i], &y[j])));
        Ok(out)
    }
}

impl Op for Compare {
    fn def(&self) -> &'static OpDef {
        DEFS.iter().find(|d| d.name == self.name).unwrap_or(&DEFS[0])
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let shape = infer::broadcast(inputs.need(0)?.shape(), inputs.need(1)?.shape())?;
        // Truth as 0 and 1, so that shapes chosen by a condition stay known.
        let ints = ints(inputs, |a, b| match (self.name, a, b) {
            ("And" | "Or" | "Xor", ..) => Dim::Unknown,
            (_, Dim::Is(a), Dim::Is(b)) => Dim::Is(self.holds(a, b).into()),
            ("Equal", Dim::Named(_), Dim::Is(n)) | ("Equal", Dim::Is(n), Dim::Named(_)) if *n < 0 => {
                Dim::Is(0)
            }
            _ => Dim::Unknown,
        });
        Ok(vec![Fact::maybe(Some(DType::Bool), shape).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        if a.dtype() != b.dtype() {
            return Err(Error::invalid(format!("cannot compare {} with {}", a.dtype(), b.dtype())));
        }
        let out = match a.dtype() {
            DType::Bool => self.truths(a, b)?,
            DType::String => self.texts(a, b)?,
            dtype => {
                fn numbers<T: Number>(op: &Compare, a: &Tensor, b: &Tensor) -> Result<Tensor> {
                    op.numbers::<T>(a, b)
                }
                by_type!(dtype, numbers(self, a, b))?
            }
        };
        Ok(vec![out])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![None, None])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        cx.all()
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        Axes::elementwise(inputs, outputs)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
