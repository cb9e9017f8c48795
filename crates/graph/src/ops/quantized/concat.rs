//! onnxruntime's `QLinearConcat`: quantised tensors on different grids, one after another on one grid.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::sync::Arc;

use super::codes::grid8;
use super::pair::sample_bytes;
use super::table::table;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample};
use crate::{Attrs, Dim, Error, Fact, Op, Result, Tensor, TurnCx, Turned, infer};

/// `QLinearConcat`: scale and zero point of the result; codes, scale and zero point of each part.
#[derive(Debug)]
pub struct QConcat {
    axis: i64,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "QLinearConcat",
    domain: "com.microsoft",
    since: 1,
    read: |r| Ok(Arc::new(QConcat { axis: r.attrs.need_int("axis")? })),
    samples: || {
        let (scale, zero) = (|v: f32| Tensor::scalar(v), |v: u8| Tensor::scalar(v));
        let first = vec![scale(0.03), zero(7), sample_bytes(&[2, 3]), scale(0.02), zero(120)];
        let second = vec![sample_bytes(&[2, 2]), scale(0.03), zero(7)];
        vec![Sample::new(QConcat { axis: -1 }, [first, second].concat())]
    },
}];

impl QConcat {
    /// Parts one after another along an axis.
    pub fn along(axis: i64) -> QConcat {
        QConcat { axis }
    }
}

impl Op for QConcat {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().int("axis", self.axis)
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dtype = inputs.dtype(2);
        let Some(shape) = inputs.shape(2) else { return Ok(vec![Fact::maybe(dtype, None)]) };
        let mut shape = shape.to_vec();
        let axis = infer::axis(self.axis, shape.len())?;
        shape[axis] = Dim::Is(0);
        for at in (2..inputs.len()).step_by(3) {
            let size = inputs.shape(at).map(|s| s.get(axis).cloned().unwrap_or_default());
            shape[axis] = shape[axis].plus(&size.unwrap_or_default());
        }
        Ok(vec![Fact::maybe(dtype, Some(shape))])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let first = inputs.need(2)?;
        let (dtype, rank) = (first.dtype(), first.rank());
        let axis = infer::axis(self.axis, rank)?;
        let to = grid8(&inputs, 0, 1, dtype)?;
        let mut parts = Vec::new();
        let mut shape = first.shape().to_vec();
        shape[axis] = 0;
        for at in (2..inputs.len()).step_by(3) {
            let part = inputs.need(at)?;
            let fits = part.dtype() == dtype
                && part.rank() == rank
                && (0..rank).all(|i| i == axis || part.shape()[i] == shape[i]);
            if !fits {
                return Err(Error::invalid(format!("{part:?} cannot be joined to {first:?}")));
            }
            let from = grid8(&inputs, at + 1, at + 2, dtype)?;
            shape[axis] += part.shape()[axis];
            parts.push((part, table(dtype, from, to, |v| v)?));
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let mut whole = Tensor::any(dtype, &shape)?;
        let mut rest = whole.bytes_mut()?;
        for outer in 0..shape[..axis].iter().product() {
            for (part, table) in &parts {
                let run = part.shape()[axis] * inner;
                let (to, after) = rest.split_at_mut(run);
                for (to, &from) in to.iter_mut().zip(&part.bytes()[outer * run..]) {
                    *to = table[usize::from(from)];
                }
                rest = after;
            }
        }
        Ok(vec![whole])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        Some(cx.elements(|at| at >= 2 && at % 3 == 2)?.by(QConcat { axis: cx.axis(self.axis)? }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
