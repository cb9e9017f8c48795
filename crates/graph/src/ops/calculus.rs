//! Short forms that gradients are written with.

use super::binary::Binary;
use super::cast::{CastLike, cast};
use super::choose::Where;
use super::sum_to::SumTo;
use super::unary::Unary;
use crate::op::GradCx;
use crate::{DType, Result, Tensor, ValueId};

impl GradCx<'_> {
    /// The element type of a value; f32 when it is not known.
    pub(crate) fn dtype(&self, value: ValueId) -> DType {
        self.graph.value(value).fact.dtype().unwrap_or(DType::F32)
    }

    /// A number of the same element type as a value.
    pub(crate) fn number(&mut self, number: f32, like: ValueId) -> Result<ValueId> {
        let tensor = cast(Tensor::scalar(number), self.dtype(like), true)?;
        Ok(self.graph.add_constant("number", tensor))
    }

    /// A function of one number by its name.
    pub(crate) fn one(&mut self, name: &str, x: ValueId) -> Result<ValueId> {
        self.graph.add_op("grad", Unary::named(name)?, &[x])
    }

    /// Arithmetic of two tensors by its name.
    pub(crate) fn two(&mut self, name: &str, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.graph.add_op("grad", Binary::named(name)?, &[a, b])
    }

    /// `x` where the condition holds, else `y`.
    pub(crate) fn pick(&mut self, condition: ValueId, x: ValueId, y: ValueId) -> Result<ValueId> {
        self.graph.add_op("grad", Where, &[condition, x, y])
    }

    /// Ones where two tensors are equal, else zeros, of the first one's type.
    pub(crate) fn equal(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        let equal = self.graph.add_op("grad", super::compare::Compare::named("Equal")?, &[a, b])?;
        self.graph.add_op("grad", CastLike::new(), &[equal, a])
    }

    /// A gradient summed over the axes along which `like` was broadcast.
    pub(crate) fn summed(&mut self, grad: ValueId, like: ValueId) -> Result<ValueId> {
        let shape = |v: ValueId| self.graph.value(v).fact.shape();
        if let (Some(a), Some(b)) = (shape(grad), shape(like))
            && a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| a.same(b))
        {
            return Ok(grad);
        }
        self.graph.add_op("grad", SumTo, &[grad, like])
    }
}
