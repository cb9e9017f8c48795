//! Any number of tensors, broadcast against each other: `Min`, `Max`, `Sum`, `Mean`.
//! <https://onnx.ai/onnx/operators/onnx__Max.html>

use std::any::Any;
use std::sync::Arc;

use kernel::vec;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::{combine, combine_f32};
use crate::ops::family::family;
use crate::ops::number::{Number, by_type, map};
use crate::{Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// One tensor made of many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variadic {
    /// The smallest; NaN when one is NaN.
    Min,
    /// The largest; NaN when one is NaN.
    Max,
    /// The sum.
    Sum,
    /// The mean.
    Mean,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples; "Min" 6, "Max" 6, "Sum" 6, "Mean" 6);

fn named(name: &str) -> Variadic {
    match name {
        "Min" => Variadic::Min,
        "Max" => Variadic::Max,
        "Sum" => Variadic::Sum,
        _ => Variadic::Mean,
    }
}

fn read(_: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(named(name)))
}

fn samples(name: &str) -> Vec<Sample> {
    let op = named(name);
    let far = Tensor::vector(&[0.35f32, -1.6, 0.05]);
    let mut samples = vec![
        Sample::new(op, vec![ramp(&[2, 3]), far, Tensor::scalar(0.1f32)]).grads(&[0, 1, 2]),
        Sample::new(op, vec![ramp(&[3])]).grads(&[0]),
        Sample::new(op, vec![ramp(&[2, 1, 3]), ramp(&[4, 1]), ramp(&[1])]),
        Sample::new(op, vec![Tensor::vector(&[1f64, f64::NAN]), Tensor::vector(&[3f64, 2.0])]),
    ];
    if matches!(op, Variadic::Min | Variadic::Max) {
        samples.push(Sample::new(op, vec![Tensor::vector(&[1u64, 7]), Tensor::vector(&[3u64, 2])]));
    }
    samples
}

impl Variadic {
    fn pair<T: Number>(self, a: Tensor, b: Tensor) -> Result<Tensor> {
        let (a, b) = if a.len() < b.len() { (b, a) } else { (a, b) };
        // A NaN is not equal to itself.
        #[allow(clippy::eq_op)]
        let nan = |x: T| x != x;
        match self {
            Variadic::Min => combine::<T>(a, &b, |x, y| if y < x || nan(y) { y } else { x }),
            Variadic::Max => combine::<T>(a, &b, |x, y| if y > x || nan(y) { y } else { x }),
            Variadic::Sum | Variadic::Mean => combine::<T>(a, &b, T::plus),
        }
    }

    fn kernel(self) -> vec::Binary {
        match self {
            Variadic::Min => vec::Binary::Min,
            Variadic::Max => vec::Binary::Max,
            Variadic::Sum | Variadic::Mean => vec::Binary::Add,
        }
    }
}

impl Op for Variadic {
    fn def(&self) -> &'static OpDef {
        &DEFS[*self as usize]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let mut shape = Some(Vec::new());
        for i in 0..inputs.len() {
            shape = infer::broadcast(shape.as_deref(), inputs.need(i)?.shape())?;
        }
        let dtype = (0..inputs.len()).find_map(|i| inputs.dtype(i));
        let ints = crate::ops::broadcast::ints(inputs, |a, b| match (self, a.int(), b.int()) {
            (Variadic::Min, Some(a), Some(b)) => Dim::Is(a.min(b)),
            (Variadic::Max, Some(a), Some(b)) => Dim::Is(a.max(b)),
            _ => Dim::Unknown,
        });
        Ok(vec![Fact::maybe(dtype, shape).with_ints(ints.filter(|_| inputs.len() == 2))])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn pair<T: Number>(op: Variadic, a: Tensor, b: Tensor) -> Result<Tensor> {
            op.pair::<T>(a, b)
        }
        fn scale<T: Number>(x: Tensor, by: f64) -> Result<Tensor> {
            map::<T>(x, |v| T::from_f64(v.to_f64() / by))
        }
        let count = inputs.len();
        let mut sum = inputs.take(0)?;
        for i in 1..count {
            let next = inputs.take(i)?;
            sum = match (sum.dtype(), next.dtype()) {
                (DType::F32, DType::F32) => combine_f32(cx.cpu, self.kernel(), self.kernel(), sum, next)?,
                (dtype, other) if dtype == other => by_type!(dtype, pair(*self, sum, next))?,
                (a, b) => return Err(Error::invalid(format!("element types {a} and {b} differ"))),
            };
        }
        if *self == Variadic::Mean && count > 1 {
            sum = by_type!(sum.dtype(), scale(sum, count as f64))?;
        }
        Ok(vec![sum])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (y, dy) = (cx.output(0)?, cx.grad()?);
        let inputs = (0..cx.inputs.len()).map(|i| cx.input(i)).collect::<Result<Vec<_>>>()?;
        let shares = match self {
            Variadic::Sum => vec![dy; inputs.len()],
            Variadic::Mean => {
                let count = cx.number(inputs.len() as f32, dy)?;
                vec![cx.two("Div", dy, count)?; inputs.len()]
            }
            // Those that are the largest share the gradient.
            Variadic::Min | Variadic::Max => {
                let hits = inputs.iter().map(|&x| cx.equal(y, x)).collect::<Result<Vec<_>>>()?;
                let count = cx.graph.add_op("grad", Variadic::Sum, &hits)?;
                let share = cx.two("Div", dy, count)?;
                hits.into_iter().map(|hit| cx.two("Mul", share, hit)).collect::<Result<Vec<_>>>()?
            }
        };
        shares.into_iter().zip(inputs).map(|(share, x)| cx.summed(share, x).map(Some)).collect()
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
