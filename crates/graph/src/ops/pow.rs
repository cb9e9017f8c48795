//! `Pow`: powers. <https://onnx.ai/onnx/operators/onnx__Pow.html>

use std::any::Any;
use std::sync::Arc;

use kernel::act::{self, Act};
use kernel::vec::{self, Right};

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::broadcast::{Walk, combine_as};
use crate::ops::number::{Number, by_type};
use crate::{Attrs, Axes, DType, Fact, Op, Result, Tensor, TurnCx, Turned, ValueId};

/// The first input to the power of the second.
#[derive(Debug)]
pub struct Pow;

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Pow",
    domain: "",
    since: 7,
    read: |_| Ok(Arc::new(Pow)),
    samples: || {
        let x = Tensor::vector(&[0.5f32, 1.2, 2.0]);
        vec![
            Sample::new(Pow, vec![x.clone(), Tensor::scalar(2f32)]).grads(&[0]),
            Sample::new(Pow, vec![x, Tensor::vector(&[1.5f32, -1.0, 0.3])]).grads(&[0, 1]),
            Sample::new(Pow, vec![ramp(&[2, 3]), Tensor::vector(&[2i64, 3, 0])]),
            Sample::new(Pow, vec![Tensor::vector(&[2i32, -3]), Tensor::vector(&[3i32, 3])]),
            Sample::new(Pow, vec![Tensor::vector(&[2i64, 9]), Tensor::scalar(0.5f32)]),
        ]
    },
}];

/// Powers of integers wrap around; by a negative exponent they are fractions, which are cut off.
fn power<A: Number, B: Number>(a: A, b: B) -> A {
    if A::IS_FLOAT || B::IS_FLOAT || b.to_i128() < 0 {
        return A::from_f64(a.to_f64().powf(b.to_f64()));
    }
    let (mut base, mut left, mut result) = (a, b.to_i128(), A::from_i128(1));
    while left > 0 {
        if left & 1 == 1 {
            result = result.times(base);
        }
        base = base.times(base);
        left >>= 1;
    }
    result
}

fn base<A: Number>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    fn both<A: Number, B: Number>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        combine_as::<A, B, A>(a, b, power)
    }
    macro_rules! exponent {
        ($($dtype:ident $t:ty),*) => { match b.dtype() {
            $(DType::$dtype => both::<A, $t>(a, b),)*
            other => Err(crate::ops::number::no_type(other)),
        } };
    }
    exponent!(F32 f32, F64 f64, F16 half::f16, BF16 half::bf16, I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16,
              U32 u32, U64 u64)
}

impl Op for Pow {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        Ok(vec![Fact::maybe(a.dtype(), infer::broadcast(a.shape(), b.shape())?)])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let mut a = inputs.take(0)?;
        let b = inputs.need(1)?;
        if a.dtype() == DType::F32 && b.len() == 1 && b.rank() <= a.rank() && b.dtype() != DType::F64 {
            match b.to_f32()?[0] {
                2.0 => act::apply(cx.cpu, Act::Square, a.as_mut_slice()?),
                e => vec::binary_assign(cx.cpu, vec::Binary::Pow, a.as_mut_slice()?, Right::Scalar(e)),
            }
            return Ok(vec![a]);
        }
        if (a.dtype(), b.dtype()) == (DType::F32, DType::F32) {
            let walk = Walk::new(a.shape(), b.shape())?;
            if let Some(right) = walk.right(b.as_slice()?).filter(|_| walk.shape == a.shape()) {
                vec::binary_assign(cx.cpu, vec::Binary::Pow, a.as_mut_slice()?, right);
                return Ok(vec![a]);
            }
        }
        Ok(vec![by_type!(a.dtype(), base(&a, b))?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (x, exponent, y, dy) = (cx.input(0)?, cx.input(1)?, cx.output(0)?, cx.grad()?);
        let whole = !cx.dtype(exponent).is_float();
        let e = cx.graph.add_op("grad", super::cast::CastLike::new(), &[exponent, x])?;
        let one = cx.number(1.0, x)?;
        let less = cx.two("Sub", e, one)?;
        let power = cx.graph.add_op("grad", Pow, &[x, less])?;
        let slope = cx.two("Mul", e, power)?;
        let dx = cx.two("Mul", dy, slope)?;
        let dx = cx.summed(dx, x)?;
        if whole {
            return Ok(vec![Some(dx), None]);
        }
        let log = cx.one("Log", x)?;
        let slope = cx.two("Mul", y, log)?;
        let de = cx.two("Mul", dy, slope)?;
        let de = cx.summed(de, e)?;
        Ok(vec![Some(dx), Some(cx.graph.add_op("grad", super::cast::CastLike::new(), &[de, exponent])?)])
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
