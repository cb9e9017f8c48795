//! Convolutions of images whose channels come last (NHWC), in `f32` and in 8 bits.
//!
//! One driver serves all of them. A tile of sums is a few neighbouring pixels times two vectors of output channels;
//! the convolution is a matrix product whose left side is never built: the words of a tap are those of the input,
//! read where they lie, or from a copy with its padding. Sums of one output always run over the same taps, then
//! channels, so results depend neither on the tiles nor on the threads.

mod depth;
mod driver;
mod float;
mod grad;
mod int8;
mod nd;
mod tile;
mod transpose;
mod weights;

pub(crate) use driver::{Out, inside};
pub use float::{Epilogue, PackedConv, Then};
pub use grad::weight_grad;
pub use int8::{ByteOutput, Bytes, PackedByteConv, Requant};
pub use nd::{ConvNd, conv_nd};
pub use transpose::{ConvTransposeShape, PackedConvTranspose};

/// The sizes of a two-dimensional convolution; one-dimensional ones have height 1.
///
/// Input `[batch, in_size, in_channels]`, weight `[out_channels, in_channels / groups, kernel]`, output
/// `[batch, out_size, out_channels]`. Pairs are `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Channels of the input, a multiple of `groups`; not zero.
    pub in_channels: usize,
    /// Height and width of the input.
    pub in_size: [usize; 2],
    /// Channels of the output, a multiple of `groups`; not zero.
    pub out_channels: usize,
    /// Height and width of the kernel, in taps; not zero.
    pub kernel: [usize; 2],
    /// Input pixels from one output to the next; not zero.
    pub stride: [usize; 2],
    /// Padding above and left.
    pub pad_begin: [usize; 2],
    /// Padding below and right.
    pub pad_end: [usize; 2],
    /// Input pixels from one tap to the next; not zero.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other; not zero.
    pub groups: usize,
}

impl ConvShape {
    /// Height and width of the output; `None` when the sizes do not fit together or are absurdly large.
    pub fn out_size(&self) -> Option<[usize; 2]> {
        let divisible = |n: usize| n > 0 && n.checked_rem(self.groups) == Some(0);
        if !divisible(self.in_channels) || !divisible(self.out_channels) {
            return None;
        }
        let mut out = [0; 2];
        for (axis, size) in out.iter_mut().enumerate() {
            let pads = [self.pad_begin[axis], self.pad_end[axis]];
            *size =
                out_len(self.in_size[axis], self.kernel[axis], self.stride[axis], pads, self.dilation[axis])?;
        }
        elements(&[self.batch, self.in_channels, self.in_size[0], self.in_size[1]])?;
        elements(&[self.batch, self.out_channels, out[0], out[1]])?;
        elements(&[self.out_channels, self.in_channels, self.kernel[0], self.kernel[1]])?;
        Some(out)
    }

    /// Elements of the input; 0 when [`ConvShape::out_size`] is `None`.
    pub fn in_len(&self) -> usize {
        self.out_size().map_or(0, |_| self.batch * self.in_channels * self.in_size[0] * self.in_size[1])
    }

    /// Elements of the weight; 0 when [`ConvShape::out_size`] is `None`.
    pub fn weight_len(&self) -> usize {
        self.out_size().map_or(0, |_| {
            self.out_channels * (self.in_channels / self.groups) * self.kernel[0] * self.kernel[1]
        })
    }

    /// Elements of the output; 0 when [`ConvShape::out_size`] is `None`.
    pub fn out_len(&self) -> usize {
        self.out_size().map_or(0, |[h, w]| self.batch * self.out_channels * h * w)
    }
}

/// Outputs along one axis; `None` when the window does not fit or a size is zero where it must not be.
pub(crate) fn out_len(
    size: usize,
    kernel: usize,
    stride: usize,
    pads: [usize; 2],
    dilation: usize,
) -> Option<usize> {
    let extent = kernel.checked_sub(1)?.checked_mul(dilation.max(1))?.checked_add(1)?;
    let padded = size.checked_add(pads[0])?.checked_add(pads[1])?;
    let sane = |n: usize| n < isize::MAX as usize / 8;
    if dilation == 0 || stride == 0 || !sane(extent) || !sane(padded) || !sane(stride) {
        return None;
    }
    Some(padded.checked_sub(extent)? / stride + 1)
}

/// The product of `sizes`, where it is small enough for a tensor.
pub(crate) fn elements(sizes: &[usize]) -> Option<usize> {
    let product = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    product.filter(|&n| n < isize::MAX as usize / 16)
}

/// What happens to a finished sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, lo), hi)`; relu6 is `0..6`.
    Clip {
        /// The least value.
        lo: f32,
        /// The greatest value.
        hi: f32,
    },
}

impl Activation {
    /// The bounds it sets; NaN passes through all of them.
    fn bounds(self) -> Option<[f32; 2]> {
        match self {
            Activation::None => None,
            Activation::Relu => Some([0.0, f32::INFINITY]),
            Activation::Clip { lo, hi } => Some([lo, hi]),
        }
    }
}

/// `x` between two bounds, NaN kept.
#[inline(always)]
fn bounded(x: f32, [lo, hi]: [f32; 2]) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

#[cfg(test)]
mod tests;
