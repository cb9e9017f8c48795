//! `lessen.MaxPoolGrad`, `lessen.AveragePoolGrad`: the gradients of poolings.

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::conv::for_taps;
use crate::ops::layout::Layout;
use crate::ops::pool::{Kind, Pool, argmax, padded_counts, seen_counts};
use crate::ops::window::{Window, outs};
use crate::{Attr, Attrs, Error, Fact, Op, Result, Tensor};

/// From the input and the gradient of the output, the gradient of the input.
#[derive(Debug)]
pub struct PoolGrad {
    /// The pooling.
    pub pool: Pool,
}

fn sample(kind: Kind) -> Vec<Sample> {
    let window = Window { kernel: Some(vec![2, 2]), pads: Some(vec![1, 0, 0, 0]), ..Window::default() };
    let inputs = vec![ramp(&[2, 1, 3, 4]), ramp(&[2, 1, 3, 3])];
    vec![Sample::new(PoolGrad { pool: Pool { kind, window, layout: Layout::ChannelsFirst } }, inputs)]
}

fn read(r: &Reader, kind: Kind) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(PoolGrad {
        pool: Pool { kind, window: Window::read(r.attrs)?, layout: Layout::ChannelsFirst },
    }))
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "MaxPoolGrad",
        domain: "lessen",
        since: 1,
        read: |r| read(r, Kind::Max { by_columns: false }),
        samples: || sample(Kind::Max { by_columns: false }),
    },
    OpDef {
        name: "AveragePoolGrad",
        domain: "lessen",
        since: 1,
        read: |r| read(r, Kind::Average { padding_counts: r.attrs.flag_or("count_include_pad", false)? }),
        samples: || {
            [true, false]
                .into_iter()
                .flat_map(|padding_counts| sample(Kind::Average { padding_counts }))
                .collect()
        },
    },
];

impl Op for PoolGrad {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(!matches!(self.pool.kind, Kind::Max { .. }))]
    }

    fn attrs(&self) -> Attrs {
        let counts = matches!(self.pool.kind, Kind::Average { padding_counts: true });
        self.pool.window.write(Attrs::new()).maybe("count_include_pad", counts.then_some(Attr::Int(1)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like(inputs, 0)
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, dy) = (inputs.need(0)?, inputs.need(1)?);
        let axes = self.pool.place(x.shape())?;
        let count = outs(&axes);
        if dy.shape() != [&x.shape()[..2], &count].concat() {
            return Err(Error::invalid(format!("the gradient has shape {:?}", dy.shape())));
        }
        let size: usize = axes.iter().map(|a| a.size).product::<usize>().max(1);
        let count: usize = count.iter().product::<usize>().max(1);
        let dx = Tensor::build(x.shape(), |dx: &mut [f32]| {
            let planes = dx.chunks_mut(size).zip(dy.as_slice::<f32>()?.chunks(count));
            if let Kind::Average { padding_counts } = self.pool.kind {
                let counts = if padding_counts { padded_counts(&axes) } else { seen_counts(&axes) };
                let mut places = Vec::new();
                for_taps(&axes, |to, _, from| places.push((from, to)));
                for (dx, dy) in planes {
                    for &(from, to) in &places {
                        dx[from] += dy[to] / counts[to] as f32;
                    }
                }
            } else {
                let found = argmax::<f32>(x, &axes)?;
                for ((dx, dy), found) in planes.zip(found.chunks(count)) {
                    for (&at, dy) in found.iter().zip(dy).filter(|(at, _)| **at != usize::MAX) {
                        dx[at] += dy;
                    }
                }
            }
            Ok(())
        })?;
        Ok(vec![dx])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
