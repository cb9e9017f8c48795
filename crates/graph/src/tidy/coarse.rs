//! Channels of quantised weights that are all but zero: in units of their tiny scale the bias is too big for 32 bits.
//! They get a scale in which it fits. What is lost is small beside the bias: a code is off by at most half the new
//! unit, 2^-29 of the bias, so that a sum of 1000 products of bytes is off by less than 2^-12 of it.

use crate::{DType, Tensor};

/// A bias may have this many units.
const MOST_UNITS: f32 = (1 << 29) as f32;

/// Quantised weights, with a scale for each channel.
pub(super) struct Weights<'a> {
    /// The codes.
    pub codes: &'a Tensor,
    /// One for each channel, one for all, or none.
    pub zeros: Vec<i64>,
    /// One for each channel.
    pub scales: &'a [f32],
    /// The axis of the channels.
    pub channel: usize,
}

impl Weights<'_> {
    /// Codes and scales for which a bias is below 2^29 units (the input's scale times the channel's), when the bias has
    /// more units in some channel.
    pub fn coarser(&self, input_scale: f32, bias: &[f32]) -> Option<(Tensor, Vec<f32>)> {
        let n = *self.codes.shape().get(self.channel)?;
        if self.scales.len() != n || bias.len() != n || ![0, 1, n].contains(&self.zeros.len()) {
            return None;
        }
        let factor = |c: usize| (bias[c] / (input_scale * self.scales[c]) / MOST_UNITS).abs().max(1.0);
        let factors: Vec<f32> = (0..n).map(factor).collect();
        if factors.iter().any(|f| !f.is_finite()) || factors.iter().all(|f| *f == 1.0) {
            return None;
        }
        let inner: usize = self.codes.shape()[self.channel + 1..].iter().product();
        let zero = |c: usize| self.zeros.get(c).or(self.zeros.first()).copied().unwrap_or(0);
        let recoded = self.codes.to_ints().ok()?.into_iter().enumerate().map(|(i, code)| {
            let c = i / inner % n;
            ((code - zero(c)) as f32 / factors[c]).round_ties_even() as i64 + zero(c)
        });
        let shape = self.codes.shape();
        let codes = match self.codes.dtype() {
            DType::I8 => Tensor::new(shape, &recoded.map(|c| c as i8).collect::<Vec<_>>()),
            DType::U8 => Tensor::new(shape, &recoded.map(|c| c as u8).collect::<Vec<_>>()),
            _ => return None,
        };
        let scales = self.scales.iter().zip(&factors).map(|(s, f)| s * f).collect();
        Some((codes.ok()?, scales))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faint_channels_change() {
        let codes = Tensor::new(&[3, 2], &[100i8, -100, 127, -7, 50, 3]).unwrap();
        let weights =
            Weights { codes: &codes, zeros: vec![0, 0, 3], scales: &[0.01, 1e-12, 1e-11], channel: 0 };
        let (new, scales) = weights.coarser(0.1, &[2.0, 3.0, 0.0]).unwrap();
        assert_eq!(new.as_slice::<i8>().unwrap(), [100, -100, 0, 0, 50, 3]);
        assert_eq!((scales[0], scales[2]), (0.01, 1e-11));
        assert!((3.0 / (0.1 * scales[1]) / MOST_UNITS - 1.0).abs() < 1e-3);
        assert!(weights.coarser(0.1, &[2.0, 0.0, 1e-4]).is_none());
    }
}
