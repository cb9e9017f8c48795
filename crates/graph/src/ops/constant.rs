//! `Constant`: a number that a node holds. The ONNX reader turns such nodes into constants of the graph; elsewhere
//! the operator stands for itself. <https://onnx.ai/onnx/operators/onnx__Constant.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::{Attr, Attrs, Error, Fact, Op, Result, Tensor, ValueId};

/// A constant.
#[derive(Debug)]
pub struct Constant {
    attrs: Attrs,
    value: Tensor,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef::onnx(
    "Constant",
    1,
    |r| Ok(Arc::new(Constant { attrs: r.attrs.clone(), value: value(r.attrs)? })),
    || {
        let of = |attrs| Sample::read(&DEFS[0], attrs, vec![]);
        vec![
            of(Attrs::new().with("value", Attr::Tensor(ramp(&[2, 3])))),
            of(Attrs::new().int("value_int", 3)),
            of(Attrs::new().ints("value_ints", &[1, 2])),
            of(Attrs::new().float("value_float", 0.5)),
            of(Attrs::new().with("value_floats", Attr::Floats(vec![0.5, 1.5]))),
            of(Attrs::new().text("value_string", "word")),
            of(Attrs::new().with("value_strings", Attr::Texts(vec!["a".into(), "b".into()]))),
        ]
    },
)];

/// The tensor that the attributes of a `Constant` node stand for.
///
/// # Errors
/// [`Error::Invalid`] when there is none; [`Error::Unsupported`] for sparse ones.
pub fn value(attrs: &Attrs) -> Result<Tensor> {
    if let Some(tensor) = attrs.opt_tensor("value")? {
        return Ok(tensor.clone().aligned());
    }
    if let Some(list) = attrs.opt_floats("value_floats")? {
        return Ok(Tensor::vector(&list));
    }
    if let Some(list) = attrs.opt_ints("value_ints")? {
        return Ok(Tensor::vector(&list));
    }
    if let Some(list) = attrs.opt_texts("value_strings")? {
        return Tensor::strings(&[list.len()], list);
    }
    if let Some(number) = attrs.opt_float("value_float")? {
        return Ok(Tensor::scalar(number));
    }
    if let Some(number) = attrs.opt_int("value_int")? {
        return Ok(Tensor::scalar(number));
    }
    match attrs.opt_text("value_string")? {
        Some(text) => Tensor::strings(&[], vec![text.into()]),
        None if attrs.get("sparse_value").is_some() => {
            Err(Error::unsupported("Constant with a sparse value"))
        }
        None => Err(Error::invalid("Constant has no value")),
    }
}

impl Op for Constant {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, _: &Facts) -> Result<Vec<Fact>> {
        Ok(vec![Fact::of(&self.value)])
    }

    fn run(&self, _: &RunCx, _: Inputs) -> Result<Vec<Tensor>> {
        Ok(vec![self.value.clone()])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(Vec::new())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
