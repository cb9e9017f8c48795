//! Where the channels of an image stand among its axes.

use std::ops::Range;
use std::slice::from_ref;

use kernel::Cpu;

use crate::ops::transpose::transpose;
use crate::{Error, Result, Tensor};

/// The order of an image's axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `[N, C, D1, D2, ..]`, as in ONNX.
    #[default]
    ChannelsFirst,
    /// `[N, D1, D2, .., C]`, as the kernels like it.
    ChannelsLast,
}

impl Layout {
    /// The spatial axes of an image of this rank.
    pub fn spatial(self, rank: usize) -> Range<usize> {
        match self {
            Layout::ChannelsFirst => 2.min(rank)..rank,
            Layout::ChannelsLast => 1.min(rank)..rank.max(2) - 1,
        }
    }

    /// The sizes of an image as they are with the channels first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for less than two axes.
    pub fn first<T: Clone>(self, shape: &[T]) -> Result<Vec<T>> {
        match (self, shape) {
            (Layout::ChannelsFirst, [_, _, ..]) => Ok(shape.to_vec()),
            (Layout::ChannelsLast, [n, size @ .., c]) => Ok([&[n.clone(), c.clone()], size].concat()),
            _ => Err(Error::invalid(format!("a tensor of rank {} is no image", shape.len()))),
        }
    }

    /// What [`Layout::first`] turns round.
    pub fn lay<T: Clone>(self, shape: Vec<T>) -> Vec<T> {
        match (self, shape.as_slice()) {
            (Layout::ChannelsLast, [n, c, size @ ..]) => [from_ref(n), size, from_ref(c)].concat(),
            _ => shape,
        }
    }

    /// An image with the channels first.
    ///
    /// # Errors
    /// When memory is short.
    pub(crate) fn to_first(self, cpu: &Cpu, x: Tensor) -> Result<Tensor> {
        self.turn(Layout::ChannelsFirst, cpu, x)
    }

    /// What [`Layout::to_first`] turns round.
    ///
    /// # Errors
    /// When memory is short.
    pub(crate) fn laid_from_first(self, cpu: &Cpu, x: Tensor) -> Result<Tensor> {
        Layout::ChannelsFirst.turn(self, cpu, x)
    }

    /// An image with the channels last.
    ///
    /// # Errors
    /// When memory is short.
    pub(crate) fn to_last(self, cpu: &Cpu, x: Tensor) -> Result<Tensor> {
        self.turn(Layout::ChannelsLast, cpu, x)
    }

    /// What [`Layout::to_last`] turns round.
    ///
    /// # Errors
    /// When memory is short.
    pub(crate) fn laid_from_last(self, cpu: &Cpu, x: Tensor) -> Result<Tensor> {
        Layout::ChannelsLast.turn(self, cpu, x)
    }

    fn turn(self, to: Layout, cpu: &Cpu, x: Tensor) -> Result<Tensor> {
        let axes: Vec<usize> = (0..x.rank()).collect();
        match (self, to) {
            (Layout::ChannelsLast, Layout::ChannelsFirst) => transpose(cpu, x, &self.first(&axes)?),
            (Layout::ChannelsFirst, Layout::ChannelsLast) => transpose(cpu, x, &to.lay(axes)),
            _ => Ok(x),
        }
    }
}
