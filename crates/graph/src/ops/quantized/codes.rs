//! Integer codes of real numbers: ranges, rounding, and the parameters that operators take as tensors.

use kernel::conv::Bytes;

use crate::op::Inputs;
use crate::{DType, Element, Error, Result, Tensor};

/// 1.5 * 2^23: added to a number below 2^22, it leaves the nearest integer (halves to even) in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// The least and the greatest code of an integer type of at most 16 bits.
pub(crate) fn range(dtype: DType) -> Option<(i32, i32)> {
    use DType::*;
    Some(match dtype {
        U8 => (0, 255),
        I8 => (-128, 127),
        U16 => (0, 65535),
        I16 => (-32768, 32767),
        U4 => (0, 15),
        I4 => (-8, 7),
        U2 => (0, 3),
        I2 => (-2, 1),
        _ => return None,
    })
}

/// An element type that codes are kept in.
pub(crate) trait Code: Element + Copy {
    /// The low bits.
    fn from_i32(code: i32) -> Self;
}

macro_rules! codes {
    ($($t:ty)*) => { $(impl Code for $t { fn from_i32(code: i32) -> Self { code as $t } })* };
}
codes!(i8 u8 i16 u16);

/// Turns finished numbers, in units of the output's scale, into codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rounder {
    least: f32,
    most: f32,
    zero: i32,
}

impl Rounder {
    /// Codes within `lo..=hi` about a zero point in that range.
    pub fn new((lo, hi): (i32, i32), zero: i32) -> Rounder {
        Rounder { least: (lo - zero) as f32, most: (hi - zero) as f32, zero }
    }

    /// The code of a number; NaN gets the least.
    pub fn code(&self, x: f32) -> i32 {
        let x = if x > self.least { x } else { self.least };
        let x = if x < self.most { x } else { self.most };
        ((x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32).wrapping_add(self.zero)
    }
}

/// Scale and zero point of one tensor as 8-bit codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid8 {
    /// The step between two codes.
    pub scale: f32,
    /// The code of zero.
    pub zero: i32,
}

impl Grid8 {
    /// What the code stands for.
    pub fn real(&self, code: i32) -> f32 {
        (code - self.zero) as f32 * self.scale
    }
}

/// The elements of a tensor of bytes.
///
/// # Errors
/// [`Error::Unsupported`] for other types.
pub(crate) fn bytes(x: &Tensor) -> Result<Bytes<'_>> {
    match x.dtype() {
        DType::U8 => Ok(Bytes::U8(x.as_slice()?)),
        DType::I8 => Ok(Bytes::S8(x.as_slice()?)),
        other => Err(Error::unsupported(format!("elements of type {other} here; expected uint8 or int8"))),
    }
}

/// An element of a slice of bytes.
pub(crate) fn byte(x: Bytes, i: usize) -> i32 {
    match x {
        Bytes::U8(x) => i32::from(x[i]),
        Bytes::S8(x) => i32::from(x[i]),
    }
}

/// The scale of a whole tensor.
///
/// # Errors
/// When it is missing or not one number.
pub(crate) fn scale(inputs: &Inputs, at: usize) -> Result<f32> {
    match inputs.need(at)?.to_f32()?.as_ref() {
        [one] => Ok(*one),
        _ => Err(Error::invalid(format!("input {at} must be one number: the scale of a whole tensor"))),
    }
}

/// The zero point of a whole tensor; 0 when it is left out.
///
/// # Errors
/// When it is not one integer.
pub(crate) fn zero(inputs: &Inputs, at: usize) -> Result<i32> {
    let Some(found) = inputs.ints(at)? else { return Ok(0) };
    match found.as_slice() {
        [one] => i32::try_from(*one).map_err(|_| Error::invalid(format!("zero point {one} is out of range"))),
        _ => Err(Error::invalid(format!("input {at} must be one number: the zero point of a whole tensor"))),
    }
}

/// Scale and zero point at two neighbouring inputs, for a tensor of this type.
///
/// # Errors
/// As [`scale`] and [`zero`]; when the type is not one of 8 bits or the zero point lies outside.
pub(crate) fn grid8(inputs: &Inputs, scale_at: usize, zero_at: usize, dtype: DType) -> Result<Grid8> {
    let grid = Grid8 { scale: scale(inputs, scale_at)?, zero: zero(inputs, zero_at)? };
    in_range(dtype, grid.zero)?;
    Ok(grid)
}

/// Checks that a zero point is a code of its type.
///
/// # Errors
/// When it is not, or codes cannot have this type.
pub(crate) fn in_range(dtype: DType, zero: i32) -> Result<(i32, i32)> {
    let range = range(dtype).ok_or_else(|| Error::unsupported(format!("codes of type {dtype} here")))?;
    match (range.0..=range.1).contains(&zero) {
        true => Ok(range),
        false => Err(Error::invalid(format!("zero point {zero} is out of range for {dtype}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_even_and_ends_saturate() {
        let u8 = Rounder::new((0, 255), 3);
        let codes = [0.5, 1.5, -0.5, 2.5, -2.5, 1e9, -1e9, f32::NAN].map(|x| u8.code(x));
        assert_eq!(codes, [3, 5, 3, 5, 1, 255, 0, 0]);
        let u16 = Rounder::new((0, 65535), 65535);
        assert_eq!([-0.4, -70000.0, 1.0, -1.5].map(|x| u16.code(x)), [65535, 0, 65535, 65533]);
    }
}
