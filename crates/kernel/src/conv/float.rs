//! Convolution in `f32`.

use super::depth::{self, Plan};
use super::driver::{Body, Geometry, Out, Panels, Span, View, as_reals, run};
use super::field::Field;
use super::tile::{Tile, Words};
use super::{Activation, ConvShape, bounded};
use crate::wide::{Loops, gather, wide, zip_rows};
use crate::{Cpu, Isa};

/// A function of single values, applied to a slice of them.
pub type Then<'a> = &'a (dyn Fn(&mut [f32]) + Sync);

/// What follows the sums of a convolution, in this order: bias, residual, activation, `then`.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// `[out_channels]`, added to every pixel of its channel.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape, added pixel by pixel.
    pub residual: Option<&'a [f32]>,
    /// Bounds of the result.
    pub activation: Activation,
    /// Any other function of single values; called with every finished part of the output exactly once.
    pub then: Option<Then<'a>>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue { bias: None, residual: None, activation: Activation::None, then: None }
    }
}

/// The weights of an `f32` convolution, laid out for one instruction set.
pub struct PackedConv {
    panels: Panels,
    isa: Isa,
    kernel: [usize; 2],
}

impl PackedConv {
    /// Packs `weights`, `[out_channels, in_channels / groups, kernel]`, for the instruction set of `cpu`. Only
    /// the channels, the groups and the kernel of `shape` matter.
    ///
    /// # Panics
    /// When the channels are no positive multiple of the groups, or `weights` has another length.
    pub fn new(cpu: &Cpu, shape: &ConvShape, weights: &[f32]) -> PackedConv {
        let (units, channels) = per_group(shape);
        let taps = shape.kernel[0] * shape.kernel[1];
        assert_eq!(weights.len(), shape.out_channels * units * taps, "length of the weights");
        let tile = Tile::select(cpu.isa(), Words::Real, channels);
        let word = |channel: usize, unit: usize, tap: usize| {
            weights[(channel * units + unit) * taps + tap].to_bits()
        };
        let panels = Panels::new(tile, shape.groups, [channels, units, taps, shape.kernel[0]], word);
        PackedConv { panels, isa: cpu.isa(), kernel: shape.kernel }
    }

    /// Convolves `input` into `out`, on the threads of `cpu` and with the instruction set that the weights
    /// were packed for. `shape` may have another batch, input size, stride, padding and dilation than before.
    ///
    /// # Panics
    /// When `shape` is impossible or does not fit the weights, or a slice does not fit `shape`.
    pub fn run(&self, cpu: &Cpu, shape: &ConvShape, input: &[f32], out: &mut [f32], epilogue: &Epilogue) {
        let shape = shape.flat();
        let Some(out_size) = shape.out_size() else { panic!("an impossible convolution: {shape:?}") };
        let panels = &self.panels;
        let packed = (panels.groups, panels.units, panels.channels, self.kernel);
        let (units, channels) = per_group(&shape);
        assert_eq!(
            packed,
            (shape.groups, units, channels, shape.kernel),
            "the shape fits the packed weights"
        );
        assert_eq!(input.len(), shape.in_len(), "length of the input");
        let geometry = Geometry {
            batch: shape.batch,
            in_size: shape.in_size,
            out_size,
            stride: shape.stride,
            pad: shape.pad_begin.map(|p| p as isize),
            field: Field::new(shape.kernel, shape.dilation, shape.stride, out_size, 1),
            direct: Plan::new(self.isa, Words::Real, panels, &shape, [4, 1]),
        };
        run_real(cpu, self.isa, panels, &geometry, input, out, epilogue, &Raster::whole(out_size));
    }
}

/// Input and output channels of a group.
pub(super) fn per_group(shape: &ConvShape) -> (usize, usize) {
    let (inputs, outputs, groups) = (shape.in_channels, shape.out_channels, shape.groups);
    assert!(
        groups > 0
            && inputs > 0
            && outputs > 0
            && inputs.is_multiple_of(groups)
            && outputs.is_multiple_of(groups),
        "{inputs} and {outputs} channels are positive multiples of {groups} groups"
    );
    (inputs / groups, outputs / groups)
}

/// Where the outputs of a convolution lie in a plane of the output tensor.
pub(super) struct Raster {
    pub first: [usize; 2],
    pub step: [usize; 2],
    pub size: [usize; 2],
}

impl Raster {
    pub fn whole(size: [usize; 2]) -> Raster {
        Raster { first: [0, 0], step: [1, 1], size }
    }
}

/// Runs the driver with an `f32` input and output.
#[allow(clippy::too_many_arguments)]
pub(super) fn run_real(
    cpu: &Cpu,
    isa: Isa,
    panels: &Panels,
    geometry: &Geometry,
    input: &[f32],
    out: &mut [f32],
    epilogue: &Epilogue,
    raster: &Raster,
) {
    let channels = panels.groups * panels.channels;
    assert_eq!(
        out.len(),
        geometry.batch * channels * raster.size[0] * raster.size[1],
        "length of the output"
    );
    assert!(
        epilogue.bias.is_none_or(|b| b.len() == channels),
        "the bias has a value for each output channel"
    );
    assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "the residual has the output's length");
    let body = Real { isa, input, out: Out::new(out), panels, geometry, epilogue, raster };
    match &geometry.direct {
        Some(plan) => depth::run(cpu.pool(), panels, plan, &body),
        None => run(cpu.pool(), panels, geometry, &body),
    }
}

struct Real<'a> {
    isa: Isa,
    input: &'a [f32],
    out: Out<'a, f32>,
    panels: &'a Panels,
    geometry: &'a Geometry,
    epilogue: &'a Epilogue<'a>,
    raster: &'a Raster,
}

impl Body for Real<'_> {
    fn pad(&self) -> u32 {
        0
    }

    fn fill(&self, planes: &mut [u32], view: &View, group: usize, unit: usize, spans: &[Span]) {
        let [height, width] = self.geometry.in_size;
        let channel = (view.image * self.panels.groups + group) * self.panels.units + unit;
        let input = &self.input[channel * height * width..][..height * width];
        wide(self.isa, Fill { input, width, stride: self.geometry.stride, planes, pitch: view.pitch, spans });
    }

    fn finish(&self, sums: &[u32], view: &View, channel: usize) {
        wide(self.isa, Finish { body: self, sums: as_reals(sums), view, channel });
    }
}

impl depth::Body for Real<'_> {
    fn clear(&self, plane: &mut [u32]) {
        plane.fill(0);
    }

    fn copy(&self, plane: &mut [u32], plan: &Plan, nth: usize, y: usize) {
        let pixel = |x: f32| x.to_bits();
        wide(self.isa, depth::Copy { plan, input: self.input, nth, y, plane, padding: 0, pixel });
    }

    fn finish(&self, sums: &[u32], _: &mut [u32], _: &Plan, view: &View, channel: usize) {
        Body::finish(self, sums, view, channel);
    }
}

struct Fill<'a> {
    input: &'a [f32],
    width: usize,
    stride: [usize; 2],
    planes: &'a mut [u32],
    pitch: usize,
    spans: &'a [Span],
}

impl Loops for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for span in self.spans {
            let cols = span.cols.len();
            if cols == 0 {
                continue;
            }
            for (nth, row) in span.rows.clone().enumerate() {
                let from = &self.input[(span.y + nth * self.stride[0]) * self.width + span.x..];
                let to = &mut self.planes[span.start + row * self.pitch + span.cols.start..][..cols];
                gather(to, [from], self.stride[1], |[x]| x.to_bits());
            }
        }
    }
}

struct Finish<'a> {
    body: &'a Real<'a>,
    sums: &'a [f32],
    view: &'a View,
    channel: usize,
}

impl Loops for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Finish { body, sums, view, channel } = self;
        let Raster { first, step, size } = *body.raster;
        let epilogue = body.epilogue;
        let channels = body.panels.groups * body.panels.channels;
        let plane = (view.image * channels + channel) * size[0] * size[1];
        let bias = epilogue.bias.map_or(0.0, |b| b[channel]);
        // Whole rows lie side by side in the output.
        let whole = view.cols == size[1] && step == [1, 1];
        let (rows, cols) = if whole { (1, view.rows * view.cols) } else { (view.rows, view.cols) };
        let len = (cols - 1) * step[1] + 1;
        for row in 0..rows {
            let sums = &sums[row * view.pitch..];
            let at = plane + ((view.y + row) * step[0] + first[0]) * size[1] + view.x * step[1] + first[1];
            // SAFETY: tasks compute different outputs, and their ranges do not interleave.
            let out = unsafe { body.out.slice(at, len) };
            let residual = epilogue.residual.map(|r| &r[at..][..len]);
            let bounds = epilogue.activation.bounds();
            let width = view.cols;
            if step[1] > 1 {
                for (i, (out, sum)) in out.iter_mut().step_by(step[1]).zip(sums).enumerate() {
                    let x = sum + bias + residual.map_or(0.0, |r| r[i * step[1]]);
                    *out = bounds.map_or(x, |b| bounded(x, b));
                    if let Some(then) = epilogue.then {
                        then(std::slice::from_mut(out));
                    }
                }
                continue;
            }
            match (residual, bounds) {
                (None, None) => zip_rows(out, width, sums, view.pitch, sums, |sum, _| sum + bias),
                (None, Some(b)) => {
                    zip_rows(out, width, sums, view.pitch, sums, |sum, _| bounded(sum + bias, b))
                }
                (Some(r), None) => zip_rows(out, width, sums, view.pitch, r, |sum, r| sum + bias + r),
                (Some(r), Some(b)) => {
                    zip_rows(out, width, sums, view.pitch, r, |sum, r| bounded(sum + bias + r, b))
                }
            }
            if let Some(then) = epilogue.then {
                then(out);
            }
        }
    }
}
