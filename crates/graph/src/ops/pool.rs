//! `MaxPool`, `AveragePool`, `LpPool`: what a window sees becomes one number; in the domain "lessen" the first two of
//! images with the channels last.
//! <https://onnx.ai/onnx/operators/onnx__MaxPool.html>

use std::any::Any;
use std::sync::Arc;

use kernel::Cpu;
use kernel::pool2d::{self, Ordered, PoolShape, last};

use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::conv::{for_taps, window};
use crate::ops::halves::in_f32;
use crate::ops::layout::Layout;
use crate::ops::number::Number;
use crate::ops::window::{AutoPad, Axis, Window, outs};
use crate::{
    Attr, Attrs, Axes, DType, Dim, Element, Error, Fact, Node, Op, Result, Tensor, TurnCx, Turned, ValueId,
};

/// A pooling over windows.
#[derive(Clone, Debug)]
pub struct Pool {
    /// What becomes of the elements.
    pub kind: Kind,
    /// The window.
    pub window: Window,
    /// Where the channels are.
    pub layout: Layout,
}

/// What becomes of the elements that a window sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The largest.
    Max {
        /// Whether `Indices` count along columns first.
        by_columns: bool,
    },
    /// Their mean.
    Average {
        /// Whether padding counts as zeros.
        padding_counts: bool,
    },
    /// Their norm.
    Lp {
        /// Its exponent.
        p: i64,
    },
}

impl Pool {
    fn read(kind: Kind, layout: Layout, r: &Reader) -> Result<Arc<dyn Op>> {
        let window = Window::read(r.attrs)?;
        window.need_kernel()?;
        Ok(Arc::new(Pool { kind, window, layout }))
    }

    /// The window along each axis of an input of this shape.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it does not fit.
    pub(crate) fn place(&self, shape: &[usize]) -> Result<Vec<Axis>> {
        let size = shape.get(self.layout.spatial(shape.len())).filter(|_| shape.len() > 1);
        let size = size.ok_or_else(|| Error::invalid(format!("cannot pool a tensor of shape {shape:?}")))?;
        self.window.place(size, self.window.need_kernel()?)
    }

    /// What the fast kernels make of an image, when there is one for it.
    fn fast(&self, cpu: &Cpu, x: &Tensor, axes: &[Axis]) -> Result<Option<Tensor>> {
        let shape = self.layout.first(x.shape())?;
        let (images, channels) = (shape[0], shape[1]);
        let planes = match self.layout {
            Layout::ChannelsFirst => images.saturating_mul(channels),
            Layout::ChannelsLast => images,
        };
        let Some(pool) = flat(axes, planes) else { return Ok(None) };
        let shape = self.layout.lay([&shape[..2], &outs(axes)].concat());
        match (self.kind, x.dtype()) {
            (Kind::Max { .. }, DType::F32) => self.greatest::<f32>(cpu, &pool, channels, x, &shape),
            (Kind::Max { .. }, DType::U8) => self.greatest::<u8>(cpu, &pool, channels, x, &shape),
            (Kind::Max { .. }, DType::I8) => self.greatest::<i8>(cpu, &pool, channels, x, &shape),
            (Kind::Average { padding_counts }, DType::F32) => Tensor::fill(&shape, |y| {
                let x = x.as_slice()?;
                match self.layout {
                    Layout::ChannelsFirst => pool2d::average_pool(cpu, &pool, x, y, padding_counts),
                    Layout::ChannelsLast => last::average_pool(cpu, &pool, channels, x, y, padding_counts),
                }
                Ok(())
            }),
            _ => return Ok(None),
        }
        .map(Some)
    }

    fn greatest<T: Ordered + Element>(
        &self,
        cpu: &Cpu,
        pool: &PoolShape,
        channels: usize,
        x: &Tensor,
        shape: &[usize],
    ) -> Result<Tensor> {
        Tensor::fill(shape, |y: &mut [T]| {
            match self.layout {
                Layout::ChannelsFirst => pool2d::max_pool(cpu, pool, x.as_slice()?, y),
                Layout::ChannelsLast => last::max_pool(cpu, pool, channels, x.as_slice()?, y),
            }
            Ok(())
        })
    }
}

fn sample(kind: Kind) -> Vec<Sample> {
    let pool = |kernel: &[usize], w: Window| {
        let ceil = w.strides.as_deref() == Some(&[2, 2]);
        Pool {
            kind,
            window: Window { kernel: Some(kernel.to_vec()), ceil, ..w },
            layout: Layout::ChannelsFirst,
        }
    };
    let same = Window { auto_pad: Some(AutoPad::SameLower), ..window(&[2, 2], &[], &[]) };
    let x = || ramp(&[1, 2, 5, 6]);
    let grads: &[usize] = if matches!(kind, Kind::Lp { .. }) { &[] } else { &[0] };
    vec![
        Sample::new(pool(&[3, 2], window(&[2, 2], &[1, 0, 1, 1], &[])), vec![x()]).grads(grads),
        Sample::new(pool(&[2, 2], window(&[1, 2], &[], &[2, 1])), vec![x()]).grads(grads),
        Sample::new(pool(&[3, 2], same), vec![x()]),
        Sample::new(pool(&[3], window(&[], &[1, 1], &[])), vec![ramp(&[2, 3, 6])]),
        Sample::new(pool(&[2, 2, 2], window(&[], &[], &[])), vec![ramp(&[1, 1, 3, 3, 4])]),
    ]
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "MaxPool",
        domain: "",
        since: 1,
        read: |r| {
            let kind = Kind::Max { by_columns: r.attrs.flag_or("storage_order", false)? };
            Pool::read(kind, Layout::ChannelsFirst, r)
        },
        samples: || {
            let mut samples = sample(Kind::Max { by_columns: false });
            let kernel = Window { kernel: Some(vec![2, 2]), ..Window::default() };
            let layout = Layout::ChannelsFirst;
            for by_columns in [false, true] {
                let op = Pool { kind: Kind::Max { by_columns }, window: kernel.clone(), layout };
                samples.push(Sample::new(op, vec![ramp(&[1, 2, 3, 4])]).outputs(2));
            }
            let op = Pool { kind: Kind::Max { by_columns: false }, window: kernel, layout };
            if let Ok(x) = Tensor::new(&[1, 1, 2, 3], &[3u8, 200, 4, 7, 1, 9]) {
                samples.push(Sample::new(op, vec![x]));
            }
            samples
        },
    },
    OpDef {
        name: "AveragePool",
        domain: "",
        since: 1,
        read: |r| {
            let kind = Kind::Average { padding_counts: r.attrs.flag_or("count_include_pad", false)? };
            Pool::read(kind, Layout::ChannelsFirst, r)
        },
        samples: || {
            let [out, with] = [false, true].map(|padding_counts| sample(Kind::Average { padding_counts }));
            out.into_iter().chain(with).collect()
        },
    },
    OpDef {
        name: "LpPool",
        domain: "",
        since: 2,
        read: |r| Pool::read(Kind::Lp { p: r.attrs.int_or("p", 2)? }, Layout::ChannelsFirst, r),
        samples: || sample(Kind::Lp { p: 2 }).into_iter().chain(sample(Kind::Lp { p: 3 })).collect(),
    },
    OpDef {
        name: "MaxPool",
        domain: "lessen",
        since: 1,
        read: |r| Pool::read(Kind::Max { by_columns: false }, Layout::ChannelsLast, r),
        samples: || {
            let mut samples = sample_last(Kind::Max { by_columns: false });
            let window = Window { kernel: Some(vec![2, 2]), ..Window::default() };
            let op = Pool { kind: Kind::Max { by_columns: false }, window, layout: Layout::ChannelsLast };
            if let Ok(x) = Tensor::new(&[1, 2, 3, 2], &[3i8, -20, 4, 7, 1, 9, 5, 6, -7, -8, 9, 0]) {
                samples.push(Sample::new(op, vec![x]));
            }
            samples
        },
    },
    OpDef {
        name: "AveragePool",
        domain: "lessen",
        since: 1,
        read: |r| {
            let kind = Kind::Average { padding_counts: r.attrs.flag_or("count_include_pad", false)? };
            Pool::read(kind, Layout::ChannelsLast, r)
        },
        samples: || {
            let [out, with] =
                [false, true].map(|padding_counts| sample_last(Kind::Average { padding_counts }));
            out.into_iter().chain(with).collect()
        },
    },
];

/// Samples with the channels last.
fn sample_last(kind: Kind) -> Vec<Sample> {
    let last = |kernel: &[usize], w: Window, x: Tensor| {
        let window = Window { kernel: Some(kernel.to_vec()), ..w };
        Sample::new(Pool { kind, window, layout: Layout::ChannelsLast }, vec![x])
    };
    let same = Window { auto_pad: Some(AutoPad::SameUpper), ceil: true, ..window(&[2, 2], &[], &[]) };
    vec![
        last(&[3, 2], window(&[2, 1], &[1, 0, 1, 1], &[]), ramp(&[2, 5, 6, 3])),
        last(&[3, 3], same, ramp(&[1, 5, 6, 2])),
        last(&[3], window(&[], &[1, 1], &[]), ramp(&[2, 6, 3])),
        last(&[2, 2, 2], window(&[], &[], &[]), ramp(&[1, 3, 3, 4, 2])),
    ]
}

/// A pooling over one or two axes, as the fast kernels take it; of so many planes or images.
pub(crate) fn flat(axes: &[Axis], planes: usize) -> Option<PoolShape> {
    let pair = |f: fn(&Axis) -> usize, one: usize| match axes {
        [x] => Some([one, f(x)]),
        [y, x] => Some([f(y), f(x)]),
        _ => None,
    };
    let shape = PoolShape {
        planes,
        in_size: pair(|a| a.size, 1)?,
        out_size: pair(|a| a.out, 1)?,
        kernel: pair(|a| a.kernel, 1)?,
        stride: pair(|a| a.stride, 1)?,
        pad_begin: pair(|a| a.begin, 0)?,
        pad_end: pair(|a| a.end, 0)?,
        dilation: pair(|a| a.dilation, 1)?,
    };
    shape.is_possible().then_some(shape)
}

/// How many positions each window of an average counts, padding included: those up to the end of the padding.
pub(crate) fn padded_counts(axes: &[Axis]) -> Vec<usize> {
    let mut counts = vec![1];
    for a in axes {
        let along = (0..a.out).map(|o| {
            let room = (a.size + a.begin + a.end).saturating_sub(o * a.stride);
            room.div_ceil(a.dilation).min(a.kernel)
        });
        let along: Vec<usize> = along.collect();
        counts = counts.iter().flat_map(|c| along.iter().map(move |a| c * a)).collect();
    }
    counts
}

/// How many positions of the input each window sees.
pub(crate) fn seen_counts(axes: &[Axis]) -> Vec<usize> {
    let mut counts = vec![1];
    for a in axes {
        let along: Vec<usize> = (0..a.out).map(|o| a.taps(o).1).collect();
        counts = counts.iter().flat_map(|c| along.iter().map(move |a| c * a)).collect();
    }
    counts
}

/// Pools each plane: `out` and `x` are its windows and positions.
fn planes<T: Element>(
    cpu: &Cpu,
    x: &[T],
    axes: &[Axis],
    out: &mut [T],
    pool: impl Fn(&[T], &[(usize, usize)], &mut [T]) + Sync,
) -> Result<()> {
    let size: usize = axes.iter().map(|a| a.size).product();
    let outs: usize = axes.iter().map(|a| a.out).product();
    if outs == 0 || out.is_empty() {
        return Ok(());
    }
    let mut places = Vec::new();
    for_taps(axes, |to, _, from| places.push((to, from)));
    cpu.pool().for_chunks_mut(out, outs, |plane, out| pool(&x[plane * size..][..size], &places, out));
    Ok(())
}

fn least<T: Number>() -> T {
    T::from_f64(f64::NEG_INFINITY)
}

/// Positions of the largest elements: of each window in its plane.
fn largest<T: Number>(x: &[T], places: &[(usize, usize)], out: &mut [usize]) {
    out.fill(usize::MAX);
    for &(to, from) in places {
        let best = out[to];
        if best == usize::MAX || x[from] > x[best] {
            out[to] = from;
        }
    }
}

/// The position of each window's largest element in its plane, plane by plane; `usize::MAX` where it sees none.
pub(crate) fn argmax<T: Number>(x: &Tensor, axes: &[Axis]) -> Result<Vec<usize>> {
    let size: usize = axes.iter().map(|a| a.size).product();
    let outs: usize = axes.iter().map(|a| a.out).product();
    let mut places = Vec::new();
    for_taps(axes, |to, _, from| places.push((to, from)));
    let mut found = Vec::new();
    for plane in x.as_slice::<T>()?.chunks(size.max(1)) {
        let at = found.len();
        found.resize(at + outs, usize::MAX);
        largest(plane, &places, &mut found[at..]);
    }
    Ok(found)
}

fn max<T: Number>(cx: &RunCx, x: &Tensor, axes: &[Axis], by_columns: bool) -> Result<Vec<Tensor>> {
    let shape = [&x.shape()[..2], &outs(axes)].concat();
    let data = x.as_slice::<T>()?;
    if cx.outputs < 2 {
        let pooled = Tensor::build(&shape, |out: &mut [T]| {
            planes(cx.cpu, data, axes, out, |x, places, out| {
                out.fill(least());
                for &(to, from) in places {
                    if x[from] > out[to] {
                        out[to] = x[from];
                    }
                }
            })
        })?;
        return Ok(vec![pooled]);
    }
    let size: usize = axes.iter().map(|a| a.size).product();
    let outs: usize = axes.iter().map(|a| a.out).product();
    let found = argmax::<T>(x, axes)?;
    let plane = |i: usize| i / outs.max(1);
    let value = |(i, &at): (usize, &usize)| {
        data.get((plane(i) * size).saturating_add(at)).copied().unwrap_or(least())
    };
    let values: Vec<T> = found.iter().enumerate().map(value).collect();
    let index = |(i, &at): (usize, &usize)| {
        let mut at = if at == usize::MAX { 0 } else { at };
        if by_columns {
            // Row-major position to column-major position.
            let (mut rest, mut turned) = (at, 0);
            let mut steps: Vec<usize> = Vec::with_capacity(axes.len());
            axes.iter().fold(1, |step, a| {
                steps.push(step);
                step * a.size
            });
            for (a, step) in axes.iter().zip(steps).rev() {
                turned += rest % a.size * step;
                rest /= a.size;
            }
            at = turned;
        }
        (plane(i) * size + at) as i64
    };
    let indices: Vec<i64> = found.iter().enumerate().map(index).collect();
    Ok(vec![Tensor::new(&shape, &values)?, Tensor::new(&shape, &indices)?])
}

/// Sums `f` of the elements of each window, then applies `finish(window, sum)`.
fn sums<T: Number>(
    cpu: &Cpu,
    x: &Tensor,
    axes: &[Axis],
    f: impl Fn(T) -> T + Sync,
    finish: impl Fn(usize, T) -> T + Sync,
) -> Result<Tensor> {
    let shape = [&x.shape()[..2], &outs(axes)].concat();
    let x = x.as_slice::<T>()?;
    Tensor::build(&shape, |out: &mut [T]| {
        planes(cpu, x, axes, out, |x, places, out| {
            for &(to, from) in places {
                out[to] = out[to].plus(f(x[from]));
            }
            for (i, v) in out.iter_mut().enumerate() {
                *v = finish(i, *v);
            }
        })
    })
}

impl Kind {
    fn float<T: Number>(self, cx: &RunCx, x: &Tensor, axes: &[Axis]) -> Result<Vec<Tensor>> {
        Ok(vec![match self {
            Kind::Max { by_columns } => return max::<T>(cx, x, axes, by_columns),
            Kind::Average { padding_counts } => {
                let counts = if padding_counts { padded_counts(axes) } else { seen_counts(axes) };
                let mean = |i: usize, sum: T| sum.over(T::from_f64(counts[i] as f64));
                sums::<T>(cx.cpu, x, axes, |v| v, mean)?
            }
            Kind::Lp { p: 1 } => sums::<T>(cx.cpu, x, axes, |v| T::from_f64(v.to_f64().abs()), |_, s| s)?,
            Kind::Lp { p: 2 } => {
                sums::<T>(cx.cpu, x, axes, |v| v.times(v), |_, s| T::from_f64(s.to_f64().sqrt()))?
            }
            Kind::Lp { p } => {
                let p = p as f64;
                let power = |v: T| T::from_f64(v.to_f64().abs().powf(p));
                sums::<T>(cx.cpu, x, axes, power, |_, s| T::from_f64(s.to_f64().powf(1.0 / p)))?
            }
        }])
    }
}

impl Op for Pool {
    fn def(&self) -> &'static OpDef {
        match (self.kind, self.layout) {
            (Kind::Max { .. }, Layout::ChannelsFirst) => &DEFS[0],
            (Kind::Average { .. }, Layout::ChannelsFirst) => &DEFS[1],
            (Kind::Lp { .. }, _) => &DEFS[2],
            (Kind::Max { .. }, Layout::ChannelsLast) => &DEFS[3],
            (Kind::Average { .. }, Layout::ChannelsLast) => &DEFS[4],
        }
    }

    fn attrs(&self) -> Attrs {
        let attrs = self.window.write(Attrs::new());
        match self.kind {
            Kind::Max { by_columns } => attrs.maybe("storage_order", by_columns.then_some(Attr::Int(1))),
            Kind::Average { padding_counts } => {
                attrs.maybe("count_include_pad", padding_counts.then_some(Attr::Int(1)))
            }
            Kind::Lp { p } => attrs.int("p", p),
        }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let shape = match x.shape() {
            None => None,
            Some(shape) => {
                let shape = self.layout.first(shape)?;
                let kernel: Vec<Dim> = self.window.need_kernel()?.iter().map(|&k| k.into()).collect();
                let sizes = self.window.infer(&shape[2..], &kernel)?;
                Some(self.layout.lay([&shape[..2], &sizes].concat()))
            }
        };
        let facts = [Fact::maybe(x.dtype(), shape.clone()), Fact::maybe(Some(DType::I64), shape)];
        Ok(facts.into_iter().take(inputs.outputs.clamp(1, 2)).collect())
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        let axes = self.place(inputs.need(0)?.shape())?;
        in_f32(dtype, inputs, |mut inputs| {
            let x = inputs.take(0)?;
            if cx.outputs < 2
                && let Some(y) = self.fast(cx.cpu, &x, &axes)?
            {
                return Ok(vec![y]);
            }
            let x = &self.layout.to_first(cx.cpu, x)?;
            let outputs = match (x.dtype(), self.kind) {
                (DType::F32, kind) => kind.float::<f32>(cx, x, &axes),
                (DType::F64, kind) => kind.float::<f64>(cx, x, &axes),
                (DType::I8, Kind::Max { by_columns }) => max::<i8>(cx, x, &axes, by_columns),
                (DType::U8, Kind::Max { by_columns }) => max::<u8>(cx, x, &axes, by_columns),
                (other, _) => Err(Error::unsupported(format!("{} of {other}", self.name()))),
            };
            outputs?.into_iter().map(|y| self.layout.laid_from_first(cx.cpu, y)).collect()
        })
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if matches!(self.kind, Kind::Lp { .. }) || self.layout != Layout::ChannelsFirst {
            return Err(Error::unsupported(format!("the gradient of {:?}", self.def())));
        }
        let inputs = vec![Some(cx.input(0)?), Some(cx.grad()?)];
        let node = Node::new(Arc::new(super::pool_grad::PoolGrad { pool: self.clone() }), inputs);
        let (_, grads) = cx.graph.add_with_outputs("grad", node, 1, None)?;
        Ok(vec![Some(grads[0])])
    }

    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let known = match self.kind {
            Kind::Max { .. } => &[DType::F32, DType::F16, DType::BF16, DType::U8, DType::I8][..],
            Kind::Average { .. } => &[DType::F32, DType::F16, DType::BF16],
            Kind::Lp { .. } => &[],
        };
        let turns = cx.is_channels_last()
            && self.layout == Layout::ChannelsFirst
            && cx.facts.outputs < 2
            && cx.facts.dtype(0).is_some_and(|d| known.contains(&d));
        cx.first().filter(|_| turns).map(|t| t.by(Pool { layout: Layout::ChannelsLast, ..self.clone() }))
    }

    fn axes(&self, _: &Facts, outputs: &[Fact]) -> Option<Axes> {
        // The second output counts places in the whole input.
        let first = self.layout == Layout::ChannelsFirst && outputs.len() == 1;
        let mut axes = Axes::new();
        axes.along([(0, 0), (1, 1)]);
        Some(axes).filter(|_| first)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceil_mode_counts_only_padding_that_is_there() {
        let window =
            Window { kernel: Some(vec![3]), pads: Some(vec![1, 1]), ceil: true, ..window(&[2], &[], &[]) };
        let kind = Kind::Average { padding_counts: true };
        let pool = Pool { kind, window, layout: Layout::ChannelsFirst };
        let cpu = Cpu::with_isa(kernel::Isa::Scalar, 1).unwrap();
        let x = Tensor::new(&[1, 1, 4], &[1f32, 2.0, 3.0, 4.0]).unwrap();
        let y = pool.run(&RunCx::new(&cpu, 1), Inputs::new(vec![Some(x.into())])).unwrap();
        // Windows (pad, 1, 2), (2, 3, 4), (4, pad): the last one ends with the padding.
        assert_eq!(y[0].as_slice::<f32>().unwrap(), [1.0, 3.0, 2.0]);
    }
}
