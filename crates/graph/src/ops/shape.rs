//! Shapes as tensors and back: `Shape`, `Size`, `ConstantOfShape`.
//! <https://onnx.ai/onnx/operators/onnx__Shape.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::filled;
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// `Shape`: the sizes of a tensor, or some of them.
#[derive(Debug)]
pub struct Shape {
    attrs: Attrs,
    start: i64,
    end: Option<i64>,
}

/// `Size`: the number of elements.
#[derive(Debug)]
pub struct Size;

/// `ConstantOfShape`: a tensor of one number.
#[derive(Debug)]
pub struct ConstantOfShape {
    value: Option<Tensor>,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "Shape",
        1,
        |r| {
            let (start, end) = (r.attrs.int_or("start", 0)?, r.attrs.opt_int("end")?);
            Ok(Arc::new(Shape { attrs: r.attrs.clone(), start, end }))
        },
        || {
            vec![
                Sample::new(Shape::new(), vec![ramp(&[2, 3, 4])]),
                Sample::read(&DEFS[0], Attrs::new().int("start", -2).int("end", 9), vec![ramp(&[2, 3, 4])]),
                Sample::read(&DEFS[0], Attrs::new().int("start", 2).int("end", 1), vec![ramp(&[2, 3, 4])]),
            ]
        },
    ),
    OpDef::onnx("Size", 1, |_| Ok(Arc::new(Size)), || vec![Sample::new(Size, vec![ramp(&[2, 3])])]),
    OpDef::onnx(
        "ConstantOfShape",
        9,
        |r| Ok(Arc::new(ConstantOfShape { value: r.attrs.opt_tensor("value")?.cloned() })),
        || {
            let shape = || vec![Tensor::vector(&[2i64, 3])];
            vec![
                Sample::new(ConstantOfShape { value: None }, shape()),
                Sample::new(ConstantOfShape::of(Tensor::vector(&[7i64])), shape()),
                Sample::new(ConstantOfShape::of(Tensor::vector(&[1i64])), vec![Tensor::vector(&[3i64])]),
            ]
        },
    ),
];

impl Shape {
    /// All sizes.
    pub fn new() -> Shape {
        Shape { attrs: Attrs::new(), start: 0, end: None }
    }

    /// The size of one axis, as a tensor of one element.
    pub fn of_axis(axis: i64) -> Shape {
        let attrs = Attrs::new().int("start", axis);
        match axis {
            -1 => Shape { attrs, start: axis, end: None },
            _ => Shape { attrs: attrs.int("end", axis + 1), start: axis, end: Some(axis + 1) },
        }
    }

    /// Which axes of a tensor of this rank are asked for.
    pub(crate) fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let place = |i: i64| {
            let i = if i < 0 { i.saturating_add(rank as i64) } else { i };
            i.clamp(0, rank as i64) as usize
        };
        let (start, end) = (place(self.start), self.end.map_or(rank, place));
        start..end.max(start)
    }
}

impl Default for Shape {
    fn default() -> Shape {
        Shape::new()
    }
}

impl Op for Shape {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dims = inputs.need(0)?.shape().map(|s| s[self.range(s.len())].to_vec());
        let length = dims.as_ref().map_or(Dim::Unknown, |d| d.len().into());
        Ok(vec![Fact::tensor(DType::I64, vec![length]).with_ints(dims)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let shape = inputs.need(0)?.shape();
        let sizes: Vec<i64> = shape[self.range(shape.len())].iter().map(|&n| n as i64).collect();
        Ok(vec![Tensor::vector(&sizes)])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for Size {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let size = inputs.need(0)?.shape().map(|s| vec![Dim::product(s)]);
        Ok(vec![Fact::tensor(DType::I64, vec![]).with_ints(size)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::scalar(inputs.need(0)?.len() as i64)])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl ConstantOfShape {
    /// Tensors filled with the one element of this tensor.
    pub fn of(value: Tensor) -> ConstantOfShape {
        ConstantOfShape { value: Some(value) }
    }

    fn dtype(&self) -> DType {
        self.value.as_ref().map_or(DType::F32, Tensor::dtype)
    }
}

impl Op for ConstantOfShape {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("value", self.value.clone().map(Attr::Tensor))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let list = inputs.need(0)?;
        let shape = match (&list.ints, list.count()) {
            (Some(dims), _) => Some(dims.clone()),
            (None, Some(rank)) => infer::unknown(rank),
            (None, None) => None,
        };
        let number = self.value.as_ref().filter(|v| v.dtype().is_int()).and_then(|v| v.to_ints().ok());
        let ints = match (number.as_deref(), shape.as_deref()) {
            (Some(&[n]), Some([])) => Some(vec![Dim::Is(n)]),
            (Some(&[n]), Some([Dim::Is(size @ 0..=64)])) => Some(vec![Dim::Is(n); *size as usize]),
            _ => None,
        };
        Ok(vec![Fact::maybe(Some(self.dtype()), shape).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let list = inputs.need(0)?.to_ints()?;
        Ok(vec![filled(self.dtype(), &sizes(&list)?, self.value.as_ref())?])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Numbers of a tensor as sizes.
///
/// # Errors
/// [`Error::Invalid`] when one is negative.
pub(crate) fn sizes(list: &[i64]) -> Result<Vec<usize>> {
    let sizes: Option<Vec<usize>> = list.iter().map(|&n| usize::try_from(n).ok()).collect();
    sizes.ok_or_else(|| Error::invalid(format!("{list:?} is no shape")))
}

/// Adds a tensor of zeros of the type and shape of `x`.
///
/// # Errors
/// When the type of `x` is not known.
pub(crate) fn zeros_like(cx: &mut GradCx, x: ValueId) -> Result<ValueId> {
    let dtype = cx.graph.value(x).fact.dtype().unwrap_or(DType::F32);
    let shape = cx.graph.add_op("grad_shape", Shape::new(), &[x])?;
    cx.graph.add_op("grad_zeros", ConstantOfShape::of(Tensor::zeros(dtype, &[1])?), &[shape])
}
