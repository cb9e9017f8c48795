//! Channels as pixels and back: `DepthToSpace`, `SpaceToDepth`.
//! <https://onnx.ai/onnx/operators/onnx__DepthToSpace.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::transpose::transpose;
use crate::{Attrs, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// Blocks of channels as blocks of pixels, or the other way round.
#[derive(Debug)]
pub struct Depth {
    attrs: Attrs,
    line: usize,
    block: usize,
    /// Channels of a block follow each other ("CRD"), not blocks of channels ("DCR").
    columns: bool,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "DepthToSpace",
        1,
        |r| read(0, r),
        || {
            let of = |mode| {
                let attrs = Attrs::new().int("blocksize", 2).text("mode", mode);
                Sample::read(&DEFS[0], attrs, vec![ramp(&[1, 8, 2, 3])]).grads(&[0])
            };
            vec![of("DCR"), of("CRD")]
        },
    ),
    OpDef::onnx(
        "SpaceToDepth",
        1,
        |r| read(1, r),
        || {
            let attrs = Attrs::new().int("blocksize", 2);
            vec![Sample::read(&DEFS[1], attrs, vec![ramp(&[1, 2, 4, 6])]).grads(&[0])]
        },
    ),
];

fn read(line: usize, r: &Reader) -> Result<Arc<dyn Op>> {
    let block = r.attrs.need_int("blocksize")?;
    let columns = match r.attrs.text_or("mode", "DCR")? {
        "DCR" => false,
        "CRD" => true,
        other => return Err(Error::invalid(format!("there is no mode {other:?}"))),
    };
    let block = usize::try_from(block).ok().filter(|&b| b > 0 && b < 1 << 16);
    let block = block.ok_or_else(|| Error::invalid("the blocksize must be positive"))?;
    Ok(Arc::new(Depth { attrs: r.attrs.clone(), line, block, columns }))
}

impl Op for Depth {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let b = Dim::from(self.block);
        let square = b.times(&b);
        let shape = match x.shape() {
            Some([n, c, h, w]) if self.line == 0 => {
                Some(vec![n.clone(), c.over(&square), h.times(&b), w.times(&b)])
            }
            Some([n, c, h, w]) => Some(vec![n.clone(), c.times(&square), h.over(&b), w.over(&b)]),
            Some(other) => {
                return Err(Error::invalid(format!("expected an image, got rank {}", other.len())));
            }
            None => None,
        };
        Ok(vec![Fact::maybe(x.dtype(), shape)])
    }

    fn run(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let b = self.block;
        let &[n, c, h, w] = x.shape() else {
            return Err(Error::invalid(format!("expected an image, got shape {:?}", x.shape())));
        };
        let fits = if self.line == 0 { c % (b * b) == 0 } else { h % b == 0 && w % b == 0 };
        if !fits {
            return Err(Error::invalid(format!("shape {:?} is not made of blocks of {b}", x.shape())));
        }
        let y = match (self.line, self.columns) {
            (0, false) => transpose(cx.cpu, x.reshaped(&[n, b, b, c / b / b, h, w])?, &[0, 3, 4, 1, 5, 2])?,
            (0, true) => transpose(cx.cpu, x.reshaped(&[n, c / b / b, b, b, h, w])?, &[0, 1, 4, 2, 5, 3])?,
            // The inverse of the respective other.
            (_, false) => transpose(cx.cpu, x.reshaped(&[n, c, h / b, b, w / b, b])?, &[0, 3, 5, 1, 2, 4])?,
            (_, true) => transpose(cx.cpu, x.reshaped(&[n, c, h / b, b, w / b, b])?, &[0, 1, 3, 5, 2, 4])?,
        };
        let shape = if self.line == 0 { [n, c / b / b, h * b, w * b] } else { [n, c * b * b, h / b, w / b] };
        Ok(vec![y.reshaped(&shape)?])
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let dy = cx.grad()?;
        let back = Depth {
            attrs: self.attrs.clone(),
            line: 1 - self.line,
            block: self.block,
            columns: self.columns,
        };
        Ok(vec![Some(cx.graph.add_op("grad", back, &[dy])?)])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
