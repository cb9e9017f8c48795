//! `Col2Im`: columns of blocks added up to images. <https://onnx.ai/onnx/operators/onnx__Col2Im.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cells::{advance, steps};
use crate::ops::number::{Number, by_type};
use crate::ops::shape::sizes;
use crate::tensor::count;
use crate::{Attrs, Dim, Error, Fact, Op, Result, Tensor};

/// `Col2Im`.
#[derive(Debug)]
pub struct Col2Im {
    attrs: Attrs,
    dilations: Option<Vec<i64>>,
    pads: Option<Vec<i64>>,
    strides: Option<Vec<i64>>,
}

pub(crate) static DEFS: &[OpDef] = &[OpDef::onnx(
    "Col2Im",
    18,
    |r| {
        let list = |name| r.attrs.opt_ints(name);
        let (dilations, pads, strides) = (list("dilations")?, list("pads")?, list("strides")?);
        Ok(Arc::new(Col2Im { attrs: r.attrs.clone(), dilations, pads, strides }))
    },
    || {
        let inputs = vec![ramp(&[1, 8, 4]), Tensor::vector(&[3i64, 3]), Tensor::vector(&[2i64, 2])];
        vec![Sample::read(&DEFS[0], Attrs::new(), inputs)]
    },
)];

/// How the blocks lie on one axis of the image.
struct Axis {
    image: usize,
    stride: usize,
    dilation: usize,
    pad: usize,
    blocks: usize,
}

impl Col2Im {
    fn axes(&self, image: &[usize], block: &[usize]) -> Result<Vec<Axis>> {
        let rank = image.len();
        let list = |given: &Option<Vec<i64>>, n: usize, default: i64| {
            let list = sizes(given.as_ref().unwrap_or(&vec![default; n]))?;
            match list.len() == n && list.iter().all(|&v| v < 1 << 31 && (default == 0 || v > 0)) {
                true => Ok(list),
                false => Err(Error::invalid(format!("strides, dilations or pads {list:?}"))),
            }
        };
        let (dilations, strides) = (list(&self.dilations, rank, 1)?, list(&self.strides, rank, 1)?);
        let pads = list(&self.pads, 2 * rank, 0)?;
        if block.len() != rank || block.iter().chain(image).any(|&n| n == 0 || n >= 1 << 31) {
            return Err(Error::invalid(format!("blocks {block:?} of images {image:?}")));
        }
        let axis = |i: usize| {
            let whole = image[i] + pads[i] + pads[rank + i];
            let span = dilations[i] * (block[i] - 1) + 1;
            let blocks = whole.checked_sub(span).map(|rest| rest / strides[i] + 1);
            let blocks =
                blocks.ok_or_else(|| Error::invalid(format!("blocks {block:?} of images {image:?}")))?;
            Ok(Axis { image: image[i], stride: strides[i], dilation: dilations[i], pad: pads[i], blocks })
        };
        (0..rank).map(axis).collect()
    }
}

fn add<T: Number>(x: &Tensor, axes: &[Axis], block: &[usize], shape: &[usize]) -> Result<Tensor> {
    let from = x.as_slice::<T>()?;
    let blocks: Vec<usize> = axes.iter().map(|a| a.blocks).collect();
    let image: Vec<usize> = axes.iter().map(|a| a.image).collect();
    let (strides, pixels, columns) = (steps(&image), count(&image)?, count(&blocks)?);
    Tensor::build(shape, |to: &mut [T]| {
        let mut inside = vec![0; block.len()];
        for (row, values) in from.chunks_exact(columns).enumerate() {
            let base = row / count(block)? * pixels;
            let mut at = vec![0; blocks.len()];
            for &value in values {
                let place =
                    axes.iter().zip(&strides).zip(inside.iter().zip(&at)).try_fold(base, |sum, part| {
                        let ((axis, step), (i, b)) = part;
                        let p = (b * axis.stride + i * axis.dilation).checked_sub(axis.pad)?;
                        (p < axis.image).then_some(sum + p * step)
                    });
                if let Some(place) = place {
                    to[place] = to[place].plus(value);
                }
                advance(&mut at, &blocks);
            }
            advance(&mut inside, block);
        }
        Ok(())
    })
}

impl Op for Col2Im {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let image = inputs.get(1).and_then(|f| f.ints.clone());
        let shape = match (x.shape(), image) {
            (Some([n, rows, _]), Some(image)) => {
                let block = inputs.get(2).and_then(|f| f.ints.as_ref());
                let channels = block.map_or(Dim::Unknown, |b| rows.over(&Dim::product(b)));
                Some([&[n.clone(), channels][..], &image].concat())
            }
            _ => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let image = sizes(&inputs.need(1)?.to_ints()?)?;
        let block = sizes(&inputs.need(2)?.to_ints()?)?;
        let axes = self.axes(&image, &block)?;
        let columns = count(&axes.iter().map(|a| a.blocks).collect::<Vec<_>>())?;
        let area = count(&block)?;
        let shape = match *x.shape() {
            [n, rows, l] if l == columns && rows % area == 0 => [&[n, rows / area], &image[..]].concat(),
            _ => {
                return Err(Error::invalid(format!(
                    "shape {:?} does not hold {columns} blocks of {block:?}",
                    x.shape()
                )));
            }
        };
        Ok(vec![by_type!(x.dtype(), add(x, &axes, &block, &shape))?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
