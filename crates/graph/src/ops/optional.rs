//! Values that may be nothing: `Optional`, `OptionalGetElement`, `OptionalHasElement`.
//! <https://onnx.ai/onnx/operators/onnx__Optional.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::{Attrs, DType, Datum, Error, Fact, Op, Result, Tensor, Type};

/// An operator on values that may be nothing.
#[derive(Debug)]
pub struct Optional {
    kind: Kind,
    attrs: Attrs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Make,
    Get,
    Has,
}

fn read(kind: Kind, r: &Reader) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Optional { kind, attrs: r.attrs.clone() }))
}

fn sample(line: usize, input: Option<Datum>) -> Sample {
    Sample::of_data(&DEFS[line], Attrs::new(), vec![input])
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Optional",
        15,
        |r| read(Kind::Make, r),
        || vec![sample(0, Some(ramp(&[2]).into())), sample(0, None)],
    ),
    OpDef::onnx(
        "OptionalGetElement",
        15,
        |r| read(Kind::Get, r),
        || {
            let some = Datum::Optional(Some(Box::new(ramp(&[2]).into())));
            vec![sample(1, Some(some)), sample(1, Some(ramp(&[2]).into()))]
        },
    ),
    OpDef::onnx(
        "OptionalHasElement",
        15,
        |r| read(Kind::Has, r),
        || vec![sample(2, Some(Datum::Optional(None))), sample(2, Some(ramp(&[2]).into())), sample(2, None)],
    ),
];

impl Op for Optional {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.kind as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let ty = inputs.get(0).map(|f| f.ty.clone()).unwrap_or_default();
        let ty = match self.kind {
            Kind::Make => Type::Optional(Box::new(ty)),
            Kind::Get => match ty {
                Type::Optional(inner) => *inner,
                other => other,
            },
            Kind::Has => Type::Tensor(Some(DType::Bool), Some(vec![])),
        };
        Ok(vec![Fact { ty, ints: None }])
    }

    fn run_data(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Datum>> {
        let inner = match inputs.take_data(0) {
            Some(Datum::Optional(inner)) => inner.map(|d| *d),
            other => other,
        };
        Ok(vec![match self.kind {
            Kind::Make => Datum::Optional(inner.map(Box::new)),
            Kind::Get => inner.ok_or_else(|| Error::invalid("the optional holds nothing"))?,
            Kind::Has => Tensor::bools(&[], &[inner.is_some()])?.into(),
        }])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
