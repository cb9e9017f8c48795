//! `Range`: numbers in equal steps. <https://onnx.ai/onnx/operators/onnx__Range.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample};
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, Dim, Error, Fact, Op, Result, Tensor};

/// The numbers from the first input up to (not including) the second, in steps of the third.
#[derive(Debug)]
pub struct Range {
    stash_type: Option<i64>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Range",
    domain: "",
    since: 11,
    read: |r| Ok(Arc::new(Range { stash_type: r.attrs.opt_int("stash_type")? })),
    samples: || {
        let ints = |a: i64, b: i64, c: i64| vec![Tensor::scalar(a), Tensor::scalar(b), Tensor::scalar(c)];
        vec![
            Sample::new(Range { stash_type: None }, ints(10, 4, -2)),
            Sample::new(Range { stash_type: None }, ints(3, 3, 1)),
            Sample::new(
                Range { stash_type: Some(1) },
                vec![Tensor::scalar(0.5f32), Tensor::scalar(2f32), Tensor::scalar(0.4f32)],
            ),
        ]
    },
}];

/// Number of integers from `a` to `b` in steps of `step`; `None` for a step of zero.
fn steps(a: i128, b: i128, step: i128) -> Option<i128> {
    let round = if step > 0 { step - 1 } else { step + 1 };
    Some((b - a + round).checked_div(step)?.max(0))
}

fn numbers<T: Number>(start: &Tensor, limit: &Tensor, step: &Tensor) -> Result<Tensor> {
    let one = |t: &Tensor| {
        let first = t.as_slice::<T>()?.first().copied();
        first.ok_or_else(|| Error::invalid("a bound of Range is empty"))
    };
    let (a, b, d) = (one(start)?, one(limit)?, one(step)?);
    let count = match T::IS_FLOAT {
        true => ((b.to_f64() - a.to_f64()) / d.to_f64()).ceil().max(0.0),
        false => steps(a.to_i128(), b.to_i128(), d.to_i128()).map_or(f64::NAN, |n| n as f64),
    };
    if d == T::default() || !count.is_finite() {
        return Err(Error::invalid(format!("a range from {a:?} to {b:?} in steps of {d:?} has no end")));
    }
    Tensor::build(&[count as usize], |out: &mut [T]| {
        for (i, o) in out.iter_mut().enumerate() {
            *o = match T::IS_FLOAT {
                true => T::from_f64(a.to_f64() + i as f64 * d.to_f64()),
                false => T::from_i128(a.to_i128() + i as i128 * d.to_i128()),
            };
        }
        Ok(())
    })
}

impl Op for Range {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("stash_type", self.stash_type.map(Attr::Int))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dtype = (0..3).find_map(|i| inputs.dtype(i));
        let at = |i: usize| inputs.get(i).and_then(|f| f.ints.as_ref()?.first().cloned()).unwrap_or_default();
        let (start, limit, step) = (at(0), at(1), at(2));
        let mut ints = None;
        let size = match (start.int(), limit.int(), step.int()) {
            (Some(a), Some(b), Some(d)) => {
                let count = steps(a.into(), b.into(), d.into()).and_then(|n| i64::try_from(n).ok());
                if let Some(n @ 0..=64) = count {
                    ints = Some(
                        (0..n)
                            .map(|i| {
                                i.checked_mul(d).and_then(|v| v.checked_add(a)).map_or(Dim::Unknown, Dim::Is)
                            })
                            .collect(),
                    );
                }
                count.map_or(Dim::Unknown, Dim::Is)
            }
            // A named size is not negative, so this many numbers are counted from zero.
            (Some(0), None, Some(1)) => limit,
            _ => Dim::Unknown,
        };
        Ok(vec![Fact::maybe(dtype, Some(vec![size])).with_ints(ints)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        if self.stash_type.is_some_and(|t| t != 1) {
            return Err(Error::unsupported("Range with a stash_type other than 1"));
        }
        let (start, limit, step) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        Ok(vec![by_type!(start.dtype(), numbers(start, limit, step))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
