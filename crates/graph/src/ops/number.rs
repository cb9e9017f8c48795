//! Arithmetic over all element types: what generic operators are written with.

use half::{bf16, f16};

use crate::{DType, Element, Error, Result, Tensor};

/// An element type that operators compute with: integers wrap around, halves compute in f32.
pub(crate) trait Number: Element {
    /// The type that sums and functions are computed in.
    fn to_f64(self) -> f64;
    /// The nearest number of this type; integers saturate, fractions are cut off.
    fn from_f64(x: f64) -> Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// Division as ONNX has it: integers are cut towards zero; by zero gives zero.
    fn over(self, other: Self) -> Self;
    /// An integer as it is, a fraction cut off.
    fn to_i128(self) -> i128;
    /// The low bits of an integer; the nearest fraction.
    fn from_i128(x: i128) -> Self;
    const IS_FLOAT: bool;
}

macro_rules! floats {
    ($($t:ty, $wide:ty, $to:expr, $from:expr);*) => { $(impl Number for $t {
        const IS_FLOAT: bool = true;
        fn to_f64(self) -> f64 { f64::from($to(self)) }
        fn from_f64(x: f64) -> Self { $from(x as $wide) }
        fn plus(self, o: Self) -> Self { $from($to(self) + $to(o)) }
        fn minus(self, o: Self) -> Self { $from($to(self) - $to(o)) }
        fn times(self, o: Self) -> Self { $from($to(self) * $to(o)) }
        fn over(self, o: Self) -> Self { $from($to(self) / $to(o)) }
        fn to_i128(self) -> i128 { $to(self) as i128 }
        fn from_i128(x: i128) -> Self { $from(x as $wide) }
    })* };
}
floats!(f32, f32, std::convert::identity, std::convert::identity; f64, f64, std::convert::identity, std::convert::identity;
        f16, f32, f16::to_f32, f16::from_f32; bf16, f32, bf16::to_f32, bf16::from_f32);

macro_rules! ints {
    ($($t:ty)*) => { $(impl Number for $t {
        const IS_FLOAT: bool = false;
        fn to_f64(self) -> f64 { self as f64 }
        fn from_f64(x: f64) -> Self { x as $t }
        fn plus(self, o: Self) -> Self { self.wrapping_add(o) }
        fn minus(self, o: Self) -> Self { self.wrapping_sub(o) }
        fn times(self, o: Self) -> Self { self.wrapping_mul(o) }
        fn over(self, o: Self) -> Self { if o == 0 { 0 } else { self.wrapping_div(o) } }
        fn to_i128(self) -> i128 { self.into() }
        fn from_i128(x: i128) -> Self { x as $t }
    })* };
}
ints!(i8 i16 i32 i64 u8 u16 u32 u64);

/// Calls a generic function with the Rust type of an element type: `by_type!(dtype, f(args))` calls
/// `f::<T>(args)`, for the twelve types that numbers are computed in.
macro_rules! by_type {
    ($dtype:expr, $f:ident ( $($arg:expr),* )) => { match $dtype {
        $crate::DType::F32 => $f::<f32>($($arg),*), $crate::DType::F64 => $f::<f64>($($arg),*),
        $crate::DType::F16 => $f::<half::f16>($($arg),*), $crate::DType::BF16 => $f::<half::bf16>($($arg),*),
        $crate::DType::I8 => $f::<i8>($($arg),*), $crate::DType::I16 => $f::<i16>($($arg),*),
        $crate::DType::I32 => $f::<i32>($($arg),*), $crate::DType::I64 => $f::<i64>($($arg),*),
        $crate::DType::U8 => $f::<u8>($($arg),*), $crate::DType::U16 => $f::<u16>($($arg),*),
        $crate::DType::U32 => $f::<u32>($($arg),*), $crate::DType::U64 => $f::<u64>($($arg),*),
        other => Err($crate::ops::number::no_type(other)),
    } };
}
pub(crate) use by_type;

/// The error of [`by_type`] for a type that is no number.
pub(crate) fn no_type(dtype: DType) -> Error {
    Error::unsupported(format!("elements of type {dtype} here"))
}

/// Applies a function to each element, in place where the tensor is not shared.
pub(crate) fn map<T: Element>(mut x: Tensor, f: impl Fn(T) -> T) -> Result<Tensor> {
    for v in x.as_mut_slice::<T>()? {
        *v = f(*v);
    }
    Ok(x)
}
