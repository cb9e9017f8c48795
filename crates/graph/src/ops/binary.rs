//! Arithmetic of two tensors, broadcast against each other: `Add`, `Sub`, `Mul`, `Div`.
//! <https://onnx.ai/onnx/repo-docs/Broadcasting.html>

use std::any::Any;
use std::sync::Arc;

use kernel::vec;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::{combine, combine_f32, ints};
use crate::ops::family::family;
use crate::ops::number::{Number, by_type};
use crate::ops::unary::Unary;
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// Arithmetic of two tensors.
#[derive(Debug)]
pub struct Binary {
    kind: Kind,
}

/// Which arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Sub,
    Mul,
    Div,
}

fn samples(name: &str) -> Vec<Sample> {
    let Ok(Binary { kind }) = Binary::named(name) else { return Vec::new() };
    let op = || Binary { kind };
    let away_from_zero = Tensor::vector(&[1.5f32, -0.7, 2.0]);
    vec![
        Sample::new(op(), vec![ramp(&[2, 3]), away_from_zero.clone()]).grads(&[0, 1]),
        Sample::new(op(), vec![ramp(&[2, 1, 3]), ramp(&[4, 1])]),
        Sample::new(op(), vec![ramp(&[3]), ramp(&[2, 3])]),
        Sample::new(
            op(),
            vec![
                ramp(&[2, 3, 4]),
                away_from_zero.clone().reshaped(&[3, 1]).unwrap_or(away_from_zero.clone()),
            ],
        )
        .grads(&[1]),
        Sample::new(op(), vec![ramp(&[2, 3, 4]), Tensor::scalar(3f32)]),
        Sample::new(op(), vec![ramp(&[2, 3, 2, 4]), ramp(&[2, 1, 1, 4])]),
        Sample::new(op(), vec![ramp(&[2, 1, 4]), ramp(&[3, 1])]),
        Sample::new(op(), vec![Tensor::vector(&[7i64, -7]), Tensor::vector(&[2i64, 2])]),
        Sample::new(op(), vec![Tensor::vector(&[200u8, 3]), Tensor::scalar(100u8)]),
    ]
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples; "Add" 7, "Sub" 7, "Mul" 7, "Div" 7);

fn read(_: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Binary::named(name)?))
}

impl Binary {
    /// The arithmetic of this ONNX name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none.
    pub fn named(name: &str) -> Result<Binary> {
        let kind = match name {
            "Add" => Kind::Add,
            "Sub" => Kind::Sub,
            "Mul" => Kind::Mul,
            "Div" => Kind::Div,
            _ => return Err(Error::unsupported(format!("arithmetic {name}"))),
        };
        Ok(Binary { kind })
    }
}

impl Kind {
    fn apply<T: Number>(self, a: Tensor, b: Tensor) -> Result<Tensor> {
        // The operand that already has the output's shape is the one whose memory can be used again.
        let turned = a.len() < b.len();
        match (self, turned) {
            (Kind::Add, true) => combine::<T>(b, &a, |y, x| x.plus(y)),
            (Kind::Add, false) => combine::<T>(a, &b, T::plus),
            (Kind::Mul, true) => combine::<T>(b, &a, |y, x| x.times(y)),
            (Kind::Mul, false) => combine::<T>(a, &b, T::times),
            (Kind::Sub, true) => combine::<T>(b, &a, |y, x| x.minus(y)),
            (Kind::Sub, false) => combine::<T>(a, &b, T::minus),
            (Kind::Div, true) => combine::<T>(b, &a, |y, x| x.over(y)),
            (Kind::Div, false) => combine::<T>(a, &b, T::over),
        }
    }

    /// The kernel for f32, and the one for swapped operands.
    fn kernel(self) -> (vec::Binary, vec::Binary) {
        match self {
            Kind::Add => (vec::Binary::Add, vec::Binary::Add),
            Kind::Sub => (vec::Binary::Sub, vec::Binary::SubFrom),
            Kind::Mul => (vec::Binary::Mul, vec::Binary::Mul),
            Kind::Div => (vec::Binary::Div, vec::Binary::DivFrom),
        }
    }

    /// The same on the numbers that shapes are computed from.
    fn ints(self, a: &Dim, b: &Dim) -> Dim {
        match self {
            Kind::Add => a.plus(b),
            Kind::Sub => a.minus(b),
            Kind::Mul => a.times(b),
            // Quotients of negative numbers are rounded differently; shapes have none.
            Kind::Div => match (a.int(), b.int()) {
                (Some(a), Some(b)) if b != 0 => a.checked_div(b).map_or(Dim::Unknown, Dim::Is),
                (None, Some(1)) => a.clone(),
                _ => Dim::Unknown,
            },
        }
    }
}

impl Op for Binary {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.kind as usize]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        let shape = infer::broadcast(a.shape(), b.shape())?;
        let ints = ints(inputs, |x, y| self.kind.ints(x, y));
        Ok(vec![Fact::maybe(a.dtype().or(b.dtype()), shape).with_ints(ints)])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let (a, b) = (inputs.take(0)?, inputs.take(1)?);
        if (a.dtype(), b.dtype()) == (DType::F32, DType::F32) {
            let (op, turned) = self.kind.kernel();
            return Ok(vec![combine_f32(cx.cpu, op, turned, a, b)?]);
        }
        fn apply<T: Number>(kind: Kind, a: Tensor, b: Tensor) -> Result<Tensor> {
            kind.apply::<T>(a, b)
        }
        Ok(vec![by_type!(a.dtype(), apply(self.kind, a, b))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let g = &mut cx.graph;
        let mut op = |name: &str, x, y| g.add_op("grad", Binary::named(name)?, &[x, y]);
        let (da, db) = match self.kind {
            Kind::Add => (dy, dy),
            Kind::Sub => (dy, g.add_op("grad", Unary::named("Neg")?, &[dy])?),
            Kind::Mul => (op("Mul", dy, b)?, op("Mul", dy, a)?),
            Kind::Div => {
                let da = op("Div", dy, b)?;
                let quotient = op("Div", a, b)?;
                let product = op("Mul", da, quotient)?;
                (da, g.add_op("grad", Unary::named("Neg")?, &[product])?)
            }
        };
        Ok(vec![Some(cx.summed(da, a)?), Some(cx.summed(db, b)?)])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_and_f64_agree_for_all_broadcasts() {
        let cpu = kernel::Cpu::new(1).unwrap();
        let shapes: [&[usize]; 9] =
            [&[2, 3, 4], &[4], &[3, 1], &[2, 1, 4], &[2, 1, 1], &[], &[1, 3, 4], &[2, 3, 1], &[1, 1, 1]];
        for name in ["Add", "Sub", "Mul", "Div"] {
            for (sa, sb) in shapes.iter().flat_map(|a| shapes.iter().map(move |b| (a, b))) {
                let op = Binary::named(name).unwrap();
                let run = |dtype| {
                    let input =
                        |s: &[usize]| Some(crate::ops::cast::cast(ramp(s), dtype, true).unwrap().into());
                    let inputs = Inputs::new(vec![input(sa), input(sb)]);
                    op.run(&RunCx::new(&cpu, 1), inputs).unwrap().remove(0)
                };
                let (got, want) = (run(DType::F32), run(DType::F64));
                assert_eq!(got.shape(), want.shape());
                for (x, y) in got.to_f32().unwrap().iter().zip(want.to_f32().unwrap().iter()) {
                    assert!((x - y).abs() <= 1e-6 * (1.0 + y.abs()), "{name} {sa:?} {sb:?}: {x}, not {y}");
                }
            }
        }
    }
}
