//! Matrices by their diagonals: `EyeLike`, `Trilu`, and the determinant, `Det`.
//! <https://onnx.ai/onnx/operators/onnx__Trilu.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::number::{Number, by_type};
use crate::{Attr, Attrs, DType, Error, Fact, Op, Result, Tensor, ValueId};

/// `EyeLike`: ones on a diagonal, in a matrix of the input's size.
#[derive(Debug)]
pub struct EyeLike {
    dtype: Option<DType>,
    k: i64,
}

/// `Trilu`: the upper or lower triangle of each matrix; zeros elsewhere. The second input moves the diagonal.
#[derive(Debug)]
pub struct Trilu {
    upper: bool,
}

/// `Det`: the determinant of each matrix.
#[derive(Debug)]
pub struct Det;

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "EyeLike",
        domain: "",
        since: 9,
        read: |r| {
            let dtype = r.attrs.opt_int("dtype")?.map(dtype).transpose()?;
            Ok(Arc::new(EyeLike { dtype, k: r.attrs.int_or("k", 0)? }))
        },
        samples: || {
            vec![
                Sample::new(EyeLike { dtype: None, k: 0 }, vec![ramp(&[2, 3])]),
                Sample::new(EyeLike { dtype: Some(DType::I64), k: -1 }, vec![ramp(&[4, 2])]),
            ]
        },
    },
    OpDef {
        name: "Trilu",
        domain: "",
        since: 14,
        read: |r| Ok(Arc::new(Trilu { upper: r.attrs.flag_or("upper", true)? })),
        samples: || {
            vec![
                Sample::new(Trilu { upper: true }, vec![ramp(&[2, 3, 4])]).grads(&[0]),
                Sample::new(Trilu { upper: false }, vec![ramp(&[3, 3]), Tensor::scalar(-1i64)]).grads(&[0]),
            ]
        },
    },
    OpDef {
        name: "Det",
        domain: "",
        since: 11,
        read: |_| Ok(Arc::new(Det)),
        samples: || vec![Sample::new(Det, vec![ramp(&[3, 3])]), Sample::new(Det, vec![ramp(&[2, 1, 2, 2])])],
    },
];

/// The element type of this number.
///
/// # Errors
/// [`Error::Invalid`] when there is none.
pub(crate) fn dtype(number: i64) -> Result<DType> {
    let dtype = i32::try_from(number).ok().and_then(DType::from_onnx);
    dtype.ok_or_else(|| Error::invalid(format!("there is no element type {number}")))
}

impl Op for EyeLike {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::new().maybe("dtype", self.dtype.map(|d| Attr::Int(d.to_onnx().into())));
        attrs.maybe("k", (self.k != 0).then_some(Attr::Int(self.k)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 0, self.dtype.or(inputs.dtype(0)))
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let &[_, columns] = x.shape() else { return Err(Error::invalid("EyeLike takes a matrix")) };
        let eye = Tensor::build(x.shape(), |out: &mut [f32]| {
            for (i, row) in out.chunks_exact_mut(columns.max(1)).enumerate() {
                let at = (i as i64).checked_add(self.k).and_then(|j| usize::try_from(j).ok());
                if let Some(one) = at.and_then(|j| row.get_mut(j)) {
                    *one = 1.0;
                }
            }
            Ok(())
        })?;
        Ok(vec![cast(eye, self.dtype.unwrap_or(x.dtype()), true)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for Trilu {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().maybe("upper", (!self.upper).then_some(Attr::Int(0)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let mut x = inputs.take(0)?;
        let k = inputs.ints(1)?.and_then(|v| v.first().copied()).unwrap_or(0);
        let (&[.., rows, columns], width) = (x.shape(), x.dtype().bits() / 8) else {
            return Err(Error::invalid("Trilu takes matrices"));
        };
        if width == 0 {
            return Err(Error::unsupported(format!("Trilu of elements of type {}", x.dtype())));
        }
        if columns > 0 {
            for (i, row) in x.bytes_mut()?.chunks_exact_mut(columns * width).enumerate() {
                // The diagonal's place in this row, held to the row.
                let first = ((i % rows) as i64).saturating_add(k);
                let cut = |at: i64| at.clamp(0, columns as i64) as usize * width;
                match self.upper {
                    true => row[..cut(first)].fill(0),
                    false => row[cut(first.saturating_add(1))..].fill(0),
                }
            }
        }
        Ok(vec![x])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let inputs: Vec<ValueId> =
            [cx.grad()?].into_iter().chain(cx.inputs.get(1).copied().flatten()).collect();
        Ok(vec![Some(cx.graph.add_op("grad", Trilu { upper: self.upper }, &inputs)?), None])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The determinant by elimination, the largest pivot first.
fn determinant(mut m: Vec<f64>, n: usize) -> f64 {
    let mut det = 1.0;
    for k in 0..n {
        let best = (k..n).max_by(|&i, &j| m[i * n + k].abs().total_cmp(&m[j * n + k].abs())).unwrap_or(k);
        if m[best * n + k] == 0.0 {
            return 0.0;
        }
        if best != k {
            (0..n).for_each(|c| m.swap(k * n + c, best * n + c));
            det = -det;
        }
        det *= m[k * n + k];
        for i in k + 1..n {
            let factor = m[i * n + k] / m[k * n + k];
            (k..n).for_each(|c| m[i * n + c] -= factor * m[k * n + c]);
        }
    }
    det
}

impl Op for Det {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let shape = x.shape().map(|s| s[..s.len().saturating_sub(2)].to_vec());
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        fn each<T: Number>(x: &Tensor, shape: &[usize], n: usize) -> Result<Tensor> {
            let x = x.as_slice::<T>()?;
            Tensor::build(shape, |out: &mut [T]| {
                for (i, o) in out.iter_mut().enumerate() {
                    let matrix = x[i * n * n..(i + 1) * n * n].iter().map(|v| v.to_f64()).collect();
                    *o = T::from_f64(determinant(matrix, n));
                }
                Ok(())
            })
        }
        let x = inputs.need(0)?;
        match x.shape() {
            [outer @ .., n, m] if n == m => Ok(vec![by_type!(x.dtype(), each(x, outer, *n))?]),
            other => Err(Error::invalid(format!("Det takes square matrices, not {other:?}"))),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn determinants() {
        assert_eq!(determinant(vec![0.0, 2.0, 3.0, 4.0], 2), -6.0);
        assert_eq!(determinant(vec![], 0), 1.0);
        assert_eq!(determinant(vec![1.0, 2.0, 2.0, 4.0], 2), 0.0);
    }
}
