//! Convolution over any number of axes, as plain loops: the meaning of the fast ones.

use super::{elements, out_len};
use crate::Cpu;

/// The sizes of a convolution over any number of axes; all lists have one entry for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvNd {
    /// Images.
    pub batch: usize,
    /// Channels of the input, a multiple of `groups`; not zero.
    pub in_channels: usize,
    /// Size of the input.
    pub in_size: Vec<usize>,
    /// Channels of the output, a multiple of `groups`; not zero.
    pub out_channels: usize,
    /// Taps of the kernel; not zero.
    pub kernel: Vec<usize>,
    /// Input pixels from one output to the next; not zero.
    pub stride: Vec<usize>,
    /// Padding before the first pixel.
    pub pad_begin: Vec<usize>,
    /// Padding after the last pixel.
    pub pad_end: Vec<usize>,
    /// Input pixels from one tap to the next; not zero.
    pub dilation: Vec<usize>,
    /// Groups of channels that do not see each other; not zero.
    pub groups: usize,
}

impl ConvNd {
    /// Size of the output; `None` when the sizes do not fit together or are absurdly large.
    pub fn out_size(&self) -> Option<Vec<usize>> {
        let rank = self.in_size.len();
        let lists = [&self.kernel, &self.stride, &self.pad_begin, &self.pad_end, &self.dilation];
        let divisible = |n: usize| n > 0 && n.checked_rem(self.groups) == Some(0);
        if !divisible(self.in_channels)
            || !divisible(self.out_channels)
            || lists.iter().any(|list| list.len() != rank)
        {
            return None;
        }
        let out: Option<Vec<usize>> = (0..rank)
            .map(|a| {
                let pads = [self.pad_begin[a], self.pad_end[a]];
                out_len(self.in_size[a], self.kernel[a], self.stride[a], pads, self.dilation[a])
            })
            .collect();
        let out = out?;
        elements(&[&[self.batch, self.in_channels][..], &self.in_size].concat())?;
        elements(&[&[self.out_channels, self.in_channels][..], &self.kernel].concat())?;
        elements(&[&[self.batch, self.out_channels][..], &out].concat())?;
        Some(out)
    }
}

/// Convolves `input` (`[batch, in_channels, in_size]`) with `weights` (`[out_channels, in_channels / groups,
/// kernel]`) into `out` (`[batch, out_channels, out_size]`), with an optional bias for each output channel.
///
/// # Panics
/// When `shape` is impossible or a slice does not fit it.
pub fn conv_nd(
    cpu: &Cpu,
    shape: &ConvNd,
    input: &[f32],
    weights: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let Some(size) = shape.out_size() else { panic!("an impossible convolution: {shape:?}") };
    let in_len: usize = shape.in_size.iter().product();
    let taps: usize = shape.kernel.iter().product();
    let out_len: usize = size.iter().product();
    let units = shape.in_channels / shape.groups;
    assert_eq!(input.len(), shape.batch * shape.in_channels * in_len, "length of the input");
    assert_eq!(weights.len(), shape.out_channels * units * taps, "length of the weights");
    assert_eq!(out.len(), shape.batch * shape.out_channels * out_len, "length of the output");
    assert!(bias.is_none_or(|b| b.len() == shape.out_channels), "length of the bias");
    if out.is_empty() {
        return;
    }
    let rank = size.len();
    let whole = super::driver::Out::new(out);
    cpu.pool().run(shape.batch * shape.out_channels, |plane| {
        let (image, channel) = (plane / shape.out_channels, plane % shape.out_channels);
        let group = channel / (shape.out_channels / shape.groups);
        let first = image * shape.in_channels + group * units;
        // SAFETY: every task has its own plane.
        let out = unsafe { whole.slice(plane * out_len, out_len) };
        let mut at = vec![0; rank];
        let mut seen: Vec<(usize, usize)> = Vec::with_capacity(taps);
        for out in out {
            seen.clear();
            seen.extend((0..taps).filter_map(|tap| Some((tap, pixel(shape, &at, tap)?))));
            let mut sum = 0.0;
            for unit in 0..units {
                let input = &input[(first + unit) * in_len..][..in_len];
                let weights = &weights[(channel * units + unit) * taps..][..taps];
                sum += seen.iter().map(|&(tap, pixel)| input[pixel] * weights[tap]).sum::<f32>();
            }
            *out = sum + bias.map_or(0.0, |b| b[channel]);
            for axis in (0..rank).rev() {
                at[axis] += 1;
                if at[axis] < size[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
    });
}

/// The input pixel that a tap of the output at `at` sees; `None` in the padding.
fn pixel(shape: &ConvNd, at: &[usize], tap: usize) -> Option<usize> {
    let (mut rest, mut index, mut scale) = (tap, 0, 1);
    for axis in (0..at.len()).rev() {
        let k = rest % shape.kernel[axis];
        rest /= shape.kernel[axis];
        let x =
            (at[axis] * shape.stride[axis] + k * shape.dilation[axis]).checked_sub(shape.pad_begin[axis])?;
        if x >= shape.in_size[axis] {
            return None;
        }
        index += x * scale;
        scale *= shape.in_size[axis];
    }
    Some(index)
}
