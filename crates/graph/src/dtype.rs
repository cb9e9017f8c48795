//! Element types, after ONNX `TensorProto.DataType`.

use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
    String,
    C64,
    C128,
    /// Two elements a byte, the first in the low half; so with the other types of 4 bits. Of 2 bits: four a byte.
    I4,
    U4,
    I2,
    U2,
    F4E2M1,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
}

/// (type, ONNX number, ONNX name, bits)
const TABLE: [(DType, i32, &str, usize); 26] = [
    (DType::F32, 1, "float", 32),
    (DType::U8, 2, "uint8", 8),
    (DType::I8, 3, "int8", 8),
    (DType::U16, 4, "uint16", 16),
    (DType::I16, 5, "int16", 16),
    (DType::I32, 6, "int32", 32),
    (DType::I64, 7, "int64", 64),
    (DType::String, 8, "string", 0),
    (DType::Bool, 9, "bool", 8),
    (DType::F16, 10, "float16", 16),
    (DType::F64, 11, "double", 64),
    (DType::U32, 12, "uint32", 32),
    (DType::U64, 13, "uint64", 64),
    (DType::C64, 14, "complex64", 64),
    (DType::C128, 15, "complex128", 128),
    (DType::BF16, 16, "bfloat16", 16),
    (DType::F8E4M3FN, 17, "float8e4m3fn", 8),
    (DType::F8E4M3FNUZ, 18, "float8e4m3fnuz", 8),
    (DType::F8E5M2, 19, "float8e5m2", 8),
    (DType::F8E5M2FNUZ, 20, "float8e5m2fnuz", 8),
    (DType::U4, 21, "uint4", 4),
    (DType::I4, 22, "int4", 4),
    (DType::F4E2M1, 23, "float4e2m1", 4),
    (DType::F8E8M0, 24, "float8e8m0", 8),
    (DType::U2, 25, "uint2", 2),
    (DType::I2, 26, "int2", 2),
];

impl DType {
    fn row(self) -> &'static (DType, i32, &'static str, usize) {
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The type with this number in ONNX `TensorProto.DataType`.
    pub fn from_onnx(number: i32) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    /// The type's number in ONNX `TensorProto.DataType`.
    pub fn to_onnx(self) -> i32 {
        self.row().1
    }

    /// Bits of one element; 0 for strings.
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// Bytes that an element's address is a multiple of where elements are read as numbers: those that it takes, up to 16.
    pub fn align(self) -> usize {
        (self.bits() / 8).clamp(1, 16)
    }

    /// Bytes that `count` elements take; `None` on overflow. Types under 8 bits are packed, the last byte padded.
    pub fn bytes_for(self, count: usize) -> Option<usize> {
        match self.bits() {
            bits @ 1..8 => Some(count.div_ceil(8 / bits)),
            bits => count.checked_mul(bits / 8),
        }
    }

    /// True for all floating-point types (not complex).
    pub fn is_float(self) -> bool {
        use DType::*;
        matches!(self, F32 | F64 | F16 | BF16 | F4E2M1) || self.is_f8()
    }

    /// True for the five 8-bit floating-point types.
    pub fn is_f8(self) -> bool {
        use DType::*;
        matches!(self, F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0)
    }

    /// True for signed and unsigned integers of any width.
    pub fn is_int(self) -> bool {
        use DType::*;
        matches!(self, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64 | I4 | U4 | I2 | U2)
    }

    /// True when several elements share a byte.
    pub fn is_packed(self) -> bool {
        matches!(self.bits(), 1..8)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// A Rust type that is the element of some tensors.
pub trait Element: Pod + PartialOrd + fmt::Debug + Default + Send + Sync {
    /// Its element type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
elements!(f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
          u8 => U8, u16 => U16, u32 => U32, u64 => U64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_sizes() {
        for row in TABLE {
            assert_eq!(DType::from_onnx(row.0.to_onnx()), Some(row.0));
        }
        assert_eq!(DType::from_onnx(0), None);
        assert_eq!(DType::I4.bytes_for(3), Some(2));
        assert_eq!(DType::U2.bytes_for(5), Some(2));
        assert_eq!(DType::F64.bytes_for(usize::MAX / 4), None);
    }
}
