//! Transposed convolution (ONNX ConvTranspose), as one ordinary convolution for each residue of the stride.
//!
//! Output `y` gets input `i` through tap `k` where `y = i * stride + k * dilation - pad`. The outputs of one
//! residue modulo the stride all use the same taps, evenly spaced, and see consecutive inputs: a convolution of
//! stride 1 whose outputs are written `stride` apart.

use super::driver::{Geometry, Panels, Raster, run};
use super::elements;
use super::float::{Epilogue, RealBody};
use super::tile::{Tile, Words};
use super::weights::Lined;
use crate::{Cpu, Isa};

/// The sizes of a two-dimensional transposed convolution.
///
/// Input `[batch, in_size, in_channels]`, weight `[in_channels, out_channels / groups, kernel]`, output
/// `[batch, out_size, out_channels]`. Pairs are `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvTransposeShape {
    /// Images.
    pub batch: usize,
    /// Channels of the input, a multiple of `groups`.
    pub in_channels: usize,
    /// Height and width of the input.
    pub in_size: [usize; 2],
    /// Channels of the output, a multiple of `groups`.
    pub out_channels: usize,
    /// Height and width of the kernel, in taps; not zero.
    pub kernel: [usize; 2],
    /// Output pixels from one input to the next; not zero.
    pub stride: [usize; 2],
    /// Pixels cut off above and left.
    pub pad_begin: [usize; 2],
    /// Pixels cut off below and right.
    pub pad_end: [usize; 2],
    /// Pixels added below and right.
    pub out_padding: [usize; 2],
    /// Output pixels from one tap to the next; not zero.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other; not zero.
    pub groups: usize,
}

impl ConvTransposeShape {
    /// Height and width of the output; `None` when the sizes do not fit together or are absurdly large.
    pub fn out_size(&self) -> Option<[usize; 2]> {
        let divisible = |n: usize| n > 0 && n.checked_rem(self.groups) == Some(0);
        if !divisible(self.in_channels) || !divisible(self.out_channels) {
            return None;
        }
        let mut out = [0; 2];
        for (a, size) in out.iter_mut().enumerate() {
            let sane = |n: &usize| *n < isize::MAX as usize / 16;
            let sizes =
                [self.stride[a], self.dilation[a], self.pad_begin[a], self.pad_end[a], self.out_padding[a]];
            if self.stride[a] == 0 || self.dilation[a] == 0 || !sizes.iter().all(sane) {
                return None;
            }
            let reach = self.kernel[a].checked_sub(1)?.checked_mul(self.dilation[a]).filter(sane)?;
            let last = self.in_size[a].checked_sub(1)?.checked_mul(self.stride[a]).filter(sane)?;
            let full = last + reach + 1 + self.out_padding[a];
            *size = full.checked_sub(self.pad_begin[a] + self.pad_end[a])?;
        }
        elements(&[self.batch, self.in_channels, self.in_size[0], self.in_size[1]])?;
        elements(&[self.batch, self.out_channels, out[0], out[1]])?;
        elements(&[self.out_channels, self.in_channels, self.kernel[0], self.kernel[1]])?;
        Some(out)
    }
}

/// The weights of a transposed convolution, laid out for one instruction set, stride and dilation.
pub struct PackedConvTranspose {
    isa: Isa,
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    phases: Vec<Phase>,
    /// A convolution without input, where the stride leaves outputs that no tap reaches.
    blank: Option<Panels>,
    groups: usize,
    inputs: usize,
    outputs: usize,
}

/// The taps that outputs of one residue use: along each axis, the first of them and how many.
struct Phase {
    residue: [usize; 2],
    taps: [Taps; 2],
    panels: Panels,
}

/// Taps `first, first + step, ...`; of two neighbours the later sees the input `spacing` pixels earlier.
#[derive(Clone, Copy)]
struct Taps {
    first: usize,
    count: usize,
    step: usize,
    spacing: usize,
}

impl Taps {
    /// All residues of the outputs that some tap reaches, and the taps `k` with `k * dilation = residue`
    /// modulo the stride.
    fn all(kernel: usize, stride: usize, dilation: usize) -> Vec<(usize, Taps)> {
        let common = divisor(stride, dilation);
        let step = stride / common;
        let from = |first: usize| Taps {
            first,
            count: (kernel - first).div_ceil(step),
            step,
            spacing: dilation / common,
        };
        (0..kernel.min(step)).map(|first| (first * dilation % stride, from(first))).collect()
    }
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

impl PackedConvTranspose {
    /// Packs `weights`, `[in_channels, out_channels / groups, kernel]`, for the instruction set of `cpu`. Only
    /// the channels, the groups, the kernel, the stride and the dilation of `shape` matter.
    ///
    /// # Panics
    /// When `shape` is impossible or `weights` has another length.
    pub fn new(cpu: &Cpu, shape: &ConvTransposeShape, weights: &[f32]) -> PackedConvTranspose {
        assert!(shape.out_size().is_some(), "an impossible convolution: {shape:?}");
        let (inputs, outputs) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
        let [kh, kw] = shape.kernel;
        assert_eq!(weights.len(), shape.in_channels * outputs * kh * kw, "length of the weights");
        let tile = Tile::select(cpu.isa(), Words::Real);
        let [rows, cols] = [0, 1].map(|a| Taps::all(shape.kernel[a], shape.stride[a], shape.dilation[a]));
        let phase = |residue: [usize; 2], taps: [Taps; 2]| {
            let [tall, wide] = taps;
            let weight = |channel: usize, tap: usize, unit: usize| {
                let ky = tall.first + (tall.count - 1 - tap / wide.count) * tall.step;
                let kx = wide.first + (wide.count - 1 - tap % wide.count) * wide.step;
                let plane = (channel / outputs * inputs + unit) * outputs + channel % outputs;
                weights[(plane * kh + ky) * kw + kx].to_bits()
            };
            let sizes = [outputs, inputs, tall.count * wide.count];
            Phase { residue, taps, panels: Panels::new(tile, Words::Real, shape.groups, sizes, weight) }
        };
        let reached = shape.stride[0].checked_mul(shape.stride[1]) == Some(rows.len() * cols.len());
        let phases =
            rows.iter().flat_map(|&(y, tall)| cols.iter().map(move |&(x, wide)| ([y, x], [tall, wide])));
        let empty = || Panels::new(tile, Words::Real, shape.groups, [outputs, 0, 1], |_, _, _| 0);
        PackedConvTranspose {
            isa: cpu.isa(),
            kernel: shape.kernel,
            stride: shape.stride,
            dilation: shape.dilation,
            phases: phases.map(|(residue, taps)| phase(residue, taps)).collect(),
            blank: (!reached).then(empty),
            groups: shape.groups,
            inputs,
            outputs,
        }
    }

    /// Convolves `input` into `out`, on the threads of `cpu` and with the instruction set that the weights
    /// were packed for. `shape` may have another batch, input size and padding than before.
    ///
    /// # Panics
    /// When `shape` is impossible or does not fit the weights, or a slice does not fit `shape`.
    pub fn run(
        &self,
        cpu: &Cpu,
        shape: &ConvTransposeShape,
        input: &[f32],
        out: &mut [f32],
        epilogue: &Epilogue,
    ) {
        let Some(size) = shape.out_size() else { panic!("an impossible convolution: {shape:?}") };
        let packed = (self.groups, self.groups * self.inputs, self.groups * self.outputs);
        assert_eq!(packed, (shape.groups, shape.in_channels, shape.out_channels), "the packed channels");
        let packed = (self.kernel, self.stride, self.dilation);
        assert_eq!(
            packed,
            (shape.kernel, shape.stride, shape.dilation),
            "the packed kernel, stride, dilation"
        );
        let in_len = shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1];
        assert_eq!(input.len(), in_len, "length of the input");
        let whole = Geometry {
            batch: shape.batch,
            in_size: shape.in_size,
            in_channels: shape.in_channels,
            out_size: size,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pad: [0, 0],
            raster: Raster::whole(size),
        };
        let mut compute = |panels: &Panels, geometry: Geometry| {
            let body = RealBody::new(self.isa, input, &mut *out, epilogue, Lined::of(panels));
            run(cpu.pool(), panels, geometry, &body);
        };
        if let Some(panels) = &self.blank {
            compute(panels, whole);
        }
        for phase in &self.phases {
            let mut first = [0; 2];
            let mut count = [0; 2];
            let mut pad = [0; 2];
            for a in 0..2 {
                let (stride, taps) = (shape.stride[a], phase.taps[a]);
                let start = shape.pad_begin[a] % stride;
                first[a] = (phase.residue[a] + stride - start) % stride;
                count[a] = size[a].saturating_sub(first[a]).div_ceil(stride);
                let highest = (taps.first + taps.count.saturating_sub(1) * taps.step) * shape.dilation[a];
                pad[a] = (highest as isize - (first[a] + shape.pad_begin[a]) as isize) / stride as isize;
            }
            let geometry = Geometry {
                out_size: count,
                kernel: phase.taps.map(|t| t.count),
                dilation: phase.taps.map(|t| t.spacing),
                pad,
                raster: Raster { first, step: shape.stride, size },
                ..whole
            };
            compute(&phase.panels, geometry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{last, reals};
    use super::super::{Activation, bounded};
    use super::*;
    use proptest::prelude::*;

    fn shapes() -> impl Strategy<Value = ConvTransposeShape> {
        let pair = |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
        let channels = (1usize..=3, 1usize..=4, prop_oneof![1usize..=4, Just(17)]);
        let grid =
            (pair(1..=7), pair(1..=5), pair(1..=4), pair(0..=3), pair(0..=3), pair(0..=2), pair(1..=4));
        (0usize..=2, channels, grid).prop_filter_map("fits", |(batch, (groups, inputs, outputs), grid)| {
            let (in_size, kernel, stride, pad_begin, pad_end, out_padding, dilation) = grid;
            let shape = ConvTransposeShape {
                batch,
                in_channels: groups * inputs,
                in_size,
                out_channels: groups * outputs,
                kernel,
                stride,
                pad_begin,
                pad_end,
                out_padding,
                dilation,
                groups,
            };
            shape.out_size().map(|_| shape)
        })
    }

    /// Every input pixel through every tap.
    fn scatter(s: &ConvTransposeShape, input: &[f32], weights: &[f32]) -> Vec<f32> {
        let [h, w] = s.out_size().unwrap();
        let (inputs, outputs) = (s.in_channels / s.groups, s.out_channels / s.groups);
        let mut out = vec![0.0; s.batch * s.out_channels * h * w];
        for (i, x) in input.iter().enumerate() {
            let (ix, iy) = (i % s.in_size[1], i / s.in_size[1] % s.in_size[0]);
            let plane = i / s.in_size[1] / s.in_size[0];
            let (image, channel) = (plane / s.in_channels, plane % s.in_channels);
            for j in 0..outputs * s.kernel[0] * s.kernel[1] {
                let (kx, ky) = (j % s.kernel[1], j / s.kernel[1] % s.kernel[0]);
                let output = channel / inputs * outputs + j / s.kernel[1] / s.kernel[0];
                let y = (iy * s.stride[0] + ky * s.dilation[0]).checked_sub(s.pad_begin[0]);
                let x_out = (ix * s.stride[1] + kx * s.dilation[1]).checked_sub(s.pad_begin[1]);
                if let (Some(y), Some(x_out)) = (y.filter(|&y| y < h), x_out.filter(|&x| x < w)) {
                    let weight = weights[channel * outputs * s.kernel[0] * s.kernel[1] + j];
                    out[((image * s.out_channels + output) * h + y) * w + x_out] += x * weight;
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn transposed_convolutions_agree_with_scattering(shape in shapes()) {
            let input = reals(1, shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1]);
            let outputs = shape.out_channels / shape.groups;
            let weights = reals(2, shape.in_channels * outputs * shape.kernel[0] * shape.kernel[1]);
            let bias = reals(3, shape.out_channels);
            let mut want = scatter(&shape, &input, &weights);
            let residual = reals(4, want.len());
            let plane = (want.len() / shape.out_channels / shape.batch.max(1)).max(1);
            let bounds = [-1.0, 1.5];
            for (i, want) in want.iter_mut().enumerate() {
                *want = bounded(*want + bias[i / plane % shape.out_channels] + residual[i], bounds) * 2.0;
            }
            let want = last(&want, shape.batch, shape.out_channels);
            let residual = last(&residual, shape.batch, shape.out_channels);
            let input = last(&input, shape.batch, shape.in_channels);
            let then = |out: &mut [f32]| out.iter_mut().for_each(|x| *x *= 2.0);
            let epilogue = Epilogue {
                bias: Some(&bias),
                residual: Some(&residual),
                activation: Activation::Clip { lo: bounds[0], hi: bounds[1] },
                then: Some(&then),
            };
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                let mut out = vec![f32::NAN; want.len()];
                PackedConvTranspose::new(&cpu, &shape, &weights).run(&cpu, &shape, &input, &mut out, &epilogue);
                for (got, want) in out.iter().zip(&want) {
                    prop_assert!((got - want).abs() < 1e-4, "{}: {}, not {}, {:?}", isa, got, want, shape);
                }
            }
        }
    }
}
