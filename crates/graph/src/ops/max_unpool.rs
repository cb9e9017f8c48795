//! `MaxUnpool`: puts the results of a `MaxPool` back where they came from.
//! <https://onnx.ai/onnx/operators/onnx__MaxUnpool.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::number::{Number, by_type};
use crate::ops::window::{Window, advance};
use crate::{Attrs, Dim, Error, Fact, Op, Result, Tensor};

/// The inverse of a `MaxPool`, as far as there is one.
#[derive(Debug)]
pub struct MaxUnpool {
    window: Window,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "MaxUnpool",
    domain: "",
    since: 9,
    read: |r| {
        let window = Window::read(r.attrs)?;
        window.need_kernel()?;
        Ok(Arc::new(MaxUnpool { window }))
    },
    samples: || {
        let op = || MaxUnpool {
            window: Window { kernel: Some(vec![2, 2]), strides: Some(vec![2, 2]), ..Window::default() },
        };
        let places = Tensor::new(&[1, 1, 2, 2], &[5i64, 7, 13, 15]);
        let shape = Tensor::vector(&[1i64, 1, 5, 5]);
        places
            .into_iter()
            .flat_map(|p| {
                let inputs = vec![ramp(&[1, 1, 2, 2]), p];
                [inputs.clone(), [inputs, vec![shape.clone()]].concat()]
            })
            .map(|inputs| Sample::new(op(), inputs))
            .collect()
    },
}];

impl MaxUnpool {
    /// The size that the pooling's input had, along one axis.
    fn size(&self, axis: usize, n: i64) -> Option<i64> {
        let kernel = self.window.kernel.as_ref()?.get(axis)?;
        let (stride, _, [begin, end]) = self.window.step(axis);
        let full = n.checked_sub(1)?.checked_mul(stride as i64)?.checked_add(*kernel as i64)?;
        full.checked_sub(begin as i64)?.checked_sub(end as i64).filter(|&v| v >= 0)
    }
}

fn scatter<T: Number>(x: &Tensor, places: &[i64], from: &[usize], shape: &[usize]) -> Result<Tensor> {
    let data = x.as_slice::<T>()?;
    if places.len() != data.len() {
        return Err(Error::invalid(format!("{} indices for {} elements", places.len(), data.len())));
    }
    let mut small = Tensor::zeros(x.dtype(), from)?;
    let out = small.as_mut_slice::<T>()?;
    for (&v, &place) in data.iter().zip(places) {
        let len = out.len();
        let place = usize::try_from(place).ok().and_then(|p| out.get_mut(p));
        *place.ok_or_else(|| Error::invalid(format!("an index is beyond the {len} outputs")))? = v;
    }
    if from == shape {
        return Ok(small);
    }
    if from.len() != shape.len() || from.iter().zip(shape).any(|(a, b)| a > b) {
        return Err(Error::invalid(format!("output_shape {shape:?} is smaller than {from:?}")));
    }
    Tensor::build(shape, |big: &mut [T]| {
        let mut index = vec![0; from.len()];
        for &v in small.as_slice::<T>()? {
            big[index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i)] = v;
            advance(&mut index, from);
        }
        Ok(())
    })
}

impl Op for MaxUnpool {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.window.write(Attrs::new())
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let shape = match (x.shape(), inputs.get(2)) {
            (_, Some(shape)) => shape.ints.clone().or(x.rank().map(|r| vec![Dim::Unknown; r])),
            (Some([n, c, size @ ..]), None) => {
                let one = |(i, d): (usize, &Dim)| {
                    d.int().and_then(|d| self.size(i, d)).map_or(Dim::Unknown, Dim::Is)
                };
                Some([n.clone(), c.clone()].into_iter().chain(size.iter().enumerate().map(one)).collect())
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, places) = (inputs.need(0)?, inputs.need(1)?.to_ints()?);
        let [n, c, size @ ..] = x.shape() else {
            return Err(Error::invalid(format!("MaxUnpool of shape {:?}", x.shape())));
        };
        self.window.check(size.len())?;
        let one = |(i, &d): (usize, &usize)| {
            let size = self.size(i, d as i64).and_then(|v| usize::try_from(v).ok());
            size.ok_or_else(|| Error::invalid("MaxUnpool has an impossible output size"))
        };
        let mut from = vec![*n, *c];
        from.extend(size.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?);
        let shape = match inputs.ints(2)? {
            Some(shape) => {
                let size =
                    |&v: &i64| usize::try_from(v).map_err(|_| Error::invalid("output_shape is negative"));
                shape.iter().map(size).collect::<Result<Vec<_>>>()?
            }
            None => from.clone(),
        };
        Ok(vec![by_type!(x.dtype(), scatter(x, &places, &from, &shape))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
