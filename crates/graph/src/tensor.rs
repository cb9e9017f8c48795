//! Tensors, and the other data that flow through a graph.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use kernel::Buf;

use crate::{DType, Element, Error, Result};

mod small;

pub use small::{PowerRounding, decode_f4, decode_f8, encode_e8m0, encode_f4, encode_f8};

/// A dense, row-major tensor. Cloning shares the elements; writing to shared elements copies them first, so an
/// operator that is the last reader of its input may write into it.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone)]
enum Data {
    /// Memory of our own, aligned for every element type.
    Own(Arc<Buf>),
    /// Bytes of someone else, such as a mapped file; perhaps not aligned.
    View(Bytes),
    /// String elements.
    Text(Arc<Vec<String>>),
}

/// A buffer with an owner more.
struct Shared(Arc<Buf>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Own(buf) => buf.as_ref().as_ref(),
            Data::View(bytes) => bytes,
            Data::Text(_) => &[],
        }
    }
}

/// Number of elements of a shape.
///
/// # Errors
/// [`Error::Invalid`] when it overflows.
pub fn count(shape: &[usize]) -> Result<usize> {
    // Also without elements, the product of the other sizes fits, so that products of some sizes never overflow.
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as usize)
        .map(|n| if shape.contains(&0) { 0 } else { n })
        .ok_or_else(|| Error::invalid(format!("a tensor of shape {shape:?} is too big")))
}

impl Tensor {
    /// A tensor of zeros (of empty strings for [`DType::String`]).
    ///
    /// # Errors
    /// [`Error::Memory`] when the machine cannot give that much.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let n = count(shape)?;
        let data = if dtype == DType::String {
            if n > 1 << 32 {
                return Err(Error::Memory(n.saturating_mul(24)));
            }
            Data::Text(Arc::new(vec![String::new(); n]))
        } else {
            let bytes = dtype.bytes_for(n).ok_or(Error::Memory(usize::MAX))?;
            Data::Own(Arc::new(Buf::try_zeroed(bytes).ok_or(Error::Memory(bytes))?))
        };
        Ok(Tensor { dtype, shape: shape.to_vec(), data })
    }

    /// A tensor of numbers that may be anything, for those who write all of them.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn any(dtype: DType, shape: &[usize]) -> Result<Tensor> {
        if dtype == DType::String {
            return Tensor::zeros(dtype, shape);
        }
        let bytes = dtype.bytes_for(count(shape)?).ok_or(Error::Memory(usize::MAX))?;
        let data = Data::Own(Arc::new(Buf::try_any(bytes).ok_or(Error::Memory(bytes))?));
        Ok(Tensor { dtype, shape: shape.to_vec(), data })
    }

    /// A tensor whose elements `fill` writes, all of them: they may be anything before.
    ///
    /// # Errors
    /// As [`Tensor::zeros`], and what `fill` returns.
    pub fn fill<T: Element>(shape: &[usize], fill: impl FnOnce(&mut [T]) -> Result<()>) -> Result<Tensor> {
        let mut tensor = Tensor::any(T::DTYPE, shape)?;
        fill(tensor.as_mut_slice()?)?;
        Ok(tensor)
    }

    /// A tensor whose elements `fill` writes (they are zero before).
    ///
    /// # Errors
    /// As [`Tensor::zeros`], and what `fill` returns.
    pub fn build<T: Element>(shape: &[usize], fill: impl FnOnce(&mut [T]) -> Result<()>) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(T::DTYPE, shape)?;
        fill(tensor.as_mut_slice()?)?;
        Ok(tensor)
    }

    /// A tensor with a copy of these elements, in row-major order.
    ///
    /// # Errors
    /// [`Error::Invalid`] when their number does not fit the shape.
    pub fn new<T: Element>(shape: &[usize], elements: &[T]) -> Result<Tensor> {
        if count(shape)? != elements.len() {
            return Err(Error::invalid(format!("{} elements do not fill shape {shape:?}", elements.len())));
        }
        Tensor::build(shape, |out| {
            out.copy_from_slice(elements);
            Ok(())
        })
    }

    /// A tensor of rank 1.
    pub fn vector<T: Element>(elements: &[T]) -> Tensor {
        let buf = Buf::copy_of(bytemuck::cast_slice(elements));
        Tensor { dtype: T::DTYPE, shape: vec![elements.len()], data: Data::Own(Arc::new(buf)) }
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(element: T) -> Tensor {
        Tensor { shape: Vec::new(), ..Tensor::vector(&[element]) }
    }

    /// A boolean tensor.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the number of elements does not fit the shape.
    pub fn bools(shape: &[usize], elements: &[bool]) -> Result<Tensor> {
        let bytes: Vec<u8> = elements.iter().map(|&b| b as u8).collect();
        Tensor::from_bytes(DType::Bool, shape, Bytes::from(bytes)).map(|t| t.aligned())
    }

    /// A tensor of strings.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the number of elements does not fit the shape.
    pub fn strings(shape: &[usize], elements: Vec<String>) -> Result<Tensor> {
        if count(shape)? != elements.len() {
            return Err(Error::invalid(format!("{} strings do not fill shape {shape:?}", elements.len())));
        }
        Ok(Tensor { dtype: DType::String, shape: shape.to_vec(), data: Data::Text(Arc::new(elements)) })
    }

    /// A tensor over bytes in little-endian order, which are not copied.
    ///
    /// # Errors
    /// [`Error::Invalid`] when their number does not fit type and shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Bytes) -> Result<Tensor> {
        let want = dtype.bytes_for(count(shape)?).filter(|_| dtype != DType::String);
        if want != Some(bytes.len()) {
            return Err(Error::invalid(format!("{} bytes are not a tensor {dtype}{shape:?}", bytes.len())));
        }
        Ok(Tensor { dtype, shape: shape.to_vec(), data: Data::View(bytes) })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as bytes (little-endian; packed types as stored); empty for strings.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// The elements as bytes, shared with the tensor and not copied; empty for strings.
    pub fn shared_bytes(&self) -> Bytes {
        match &self.data {
            Data::Own(buf) => Bytes::from_owner(Shared(buf.clone())),
            Data::View(bytes) => bytes.clone(),
            Data::Text(_) => Bytes::new(),
        }
    }

    /// The bytes, to be written to. Elements that are shared or only viewed are copied first.
    ///
    /// # Errors
    /// [`Error::Memory`] when a copy is needed and cannot be had.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        if !self.is_unique() {
            let old = self.data.bytes();
            let mut copy = Buf::try_any(old.len()).ok_or(Error::Memory(old.len()))?;
            copy.as_mut().copy_from_slice(old);
            self.data = Data::Own(Arc::new(copy));
        }
        match &mut self.data {
            Data::Own(buf) => match Arc::get_mut(buf) {
                Some(buf) => Ok(buf.as_mut()),
                None => Err(Error::invalid("tensor data are shared")),
            },
            _ => Err(Error::invalid("tensor data cannot be written")),
        }
    }

    /// The same tensor, copied when its bytes are not aligned for its element type.
    pub fn aligned(self) -> Tensor {
        match &self.data {
            Data::View(bytes)
                if !(bytes.as_ptr() as usize).is_multiple_of(self.dtype.align())
                    || !cfg!(target_endian = "little") =>
            {
                Tensor { data: Data::Own(Arc::new(Buf::copy_of(bytes))), ..self }
            }
            _ => self,
        }
    }

    /// True when the elements are bytes of a file or another owner, not memory of this tensor.
    pub fn is_view(&self) -> bool {
        matches!(self.data, Data::View(_))
    }

    /// True when nobody else holds the elements, so that writing to them copies nothing.
    pub fn is_unique(&self) -> bool {
        matches!(&self.data, Data::Own(buf) if Arc::strong_count(buf) == 1)
    }

    fn expect<T: Element>(&self) -> Result<()> {
        if self.dtype == T::DTYPE {
            return Ok(());
        }
        Err(Error::invalid(format!("expected elements of type {}, got {}", T::DTYPE, self.dtype)))
    }

    /// The elements. Tensors that the executor hands to operators are always aligned.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the element type is another, or the bytes are not aligned for it (see
    /// [`Tensor::values`], [`Tensor::aligned`]).
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.expect::<T>()?;
        bytemuck::try_cast_slice(self.bytes()).map_err(|_| Error::invalid("tensor data are not aligned"))
    }

    /// The elements, copied when they are not aligned.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the element type is another.
    pub fn values<T: Element>(&self) -> Result<Cow<'_, [T]>> {
        self.expect::<T>()?;
        Ok(match bytemuck::try_cast_slice(self.bytes()) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(self.bytes())),
        })
    }

    /// The elements, to be written to. Elements that are shared or only viewed are copied first.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the element type is another; [`Error::Memory`].
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect::<T>()?;
        bytemuck::try_cast_slice_mut(self.bytes_mut()?)
            .map_err(|_| Error::invalid("tensor data are not aligned"))
    }

    /// The elements of a boolean tensor, one byte each: zero is false, all else is true.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the element type is another.
    pub fn as_bools(&self) -> Result<&[u8]> {
        match self.dtype {
            DType::Bool => Ok(self.bytes()),
            other => Err(Error::invalid(format!("expected elements of type bool, got {other}"))),
        }
    }

    /// The elements of a string tensor.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the element type is another.
    pub fn as_strings(&self) -> Result<&[String]> {
        match &self.data {
            Data::Text(items) => Ok(items),
            _ => Err(Error::invalid(format!("expected elements of type string, got {}", self.dtype))),
        }
    }

    /// The elements of a string tensor, to be written to. Elements that are shared are copied first.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the element type is another.
    pub fn as_strings_mut(&mut self) -> Result<&mut [String]> {
        match &mut self.data {
            Data::Text(items) => Ok(Arc::make_mut(items).as_mut_slice()),
            _ => Err(Error::invalid(format!("expected elements of type string, got {}", self.dtype))),
        }
    }

    /// The only element of a tensor of one element.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are more or none, or of another type.
    pub fn item<T: Element>(&self) -> Result<T> {
        match self.values::<T>()?.as_ref() {
            [one] => Ok(*one),
            _ => Err(Error::invalid(format!("expected one element, got shape {:?}", self.shape))),
        }
    }

    /// The elements of an integer or boolean tensor of any width.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other element types.
    pub fn to_ints(&self) -> Result<Vec<i64>> {
        use DType::*;
        Ok(match self.dtype {
            I64 => self.values::<i64>()?.into_owned(),
            I32 => self.values::<i32>()?.iter().map(|&v| v.into()).collect(),
            I16 => self.values::<i16>()?.iter().map(|&v| v.into()).collect(),
            I8 => self.values::<i8>()?.iter().map(|&v| v.into()).collect(),
            U8 | Bool => self.bytes().iter().map(|&v| v.into()).collect(),
            U16 => self.values::<u16>()?.iter().map(|&v| v.into()).collect(),
            U32 => self.values::<u32>()?.iter().map(|&v| v.into()).collect(),
            U64 => self.values::<u64>()?.iter().map(|&v| v as i64).collect(),
            I4 | U4 | I2 | U2 => self.unpack()?.into_iter().map(i64::from).collect(),
            other => return Err(Error::invalid(format!("expected integers, got {other}"))),
        })
    }

    /// The elements of any numeric tensor as f32 (integers rounded to the nearest).
    ///
    /// # Errors
    /// [`Error::Invalid`] for strings and complex numbers.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        use DType::*;
        Ok(match self.dtype {
            F32 => self.values::<f32>()?,
            F64 => self.values::<f64>()?.iter().map(|&v| v as f32).collect(),
            F16 => self.values::<f16>()?.iter().map(|v| v.to_f32()).collect(),
            BF16 => self.values::<bf16>()?.iter().map(|v| v.to_f32()).collect(),
            U64 => self.values::<u64>()?.iter().map(|&v| v as f32).collect(),
            F4E2M1 => (0..self.len()).map(|i| decode_f4(self.bytes()[i / 2] >> (4 * (i % 2)) & 15)).collect(),
            f8 if f8.is_f8() => self.bytes().iter().map(|&b| decode_f8(f8, b)).collect(),
            _ => self.to_ints()?.into_iter().map(|v| v as f32).collect(),
        })
    }

    /// The elements of a packed integer tensor (4 or 2 bits), one each.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other element types.
    pub fn unpack(&self) -> Result<Vec<i8>> {
        let (bits, signed) = match self.dtype {
            DType::I4 => (4, true),
            DType::U4 => (4, false),
            DType::I2 => (2, true),
            DType::U2 => (2, false),
            other => return Err(Error::invalid(format!("expected integers of 2 or 4 bits, got {other}"))),
        };
        let per = 8 / bits;
        Ok((0..self.len())
            .map(|i| {
                let shifted = self.bytes()[i / per] >> (bits * (i % per)) << (8 - bits);
                if signed { shifted as i8 >> (8 - bits) } else { (shifted >> (8 - bits)) as i8 }
            })
            .collect())
    }

    /// A packed tensor (4 or 2 bits) from codes of which the low bits are kept.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the number of codes does not fit the shape or the type is not a packed one.
    pub fn pack(dtype: DType, shape: &[usize], codes: &[u8]) -> Result<Tensor> {
        if !dtype.is_packed() || count(shape)? != codes.len() {
            return Err(Error::invalid(format!("{} codes are not a tensor {dtype}{shape:?}", codes.len())));
        }
        let bits = dtype.bits();
        let mut tensor = Tensor::zeros(dtype, shape)?;
        for (byte, group) in tensor.bytes_mut()?.iter_mut().zip(codes.chunks(8 / bits)) {
            *byte = group.iter().enumerate().fold(0, |b, (i, c)| b | (c & ((1 << bits) - 1)) << (bits * i));
        }
        Ok(tensor)
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the number of elements differs.
    pub fn reshaped(self, shape: &[usize]) -> Result<Tensor> {
        if count(shape)? != self.len() {
            return Err(Error::invalid(format!("cannot reshape {:?} to {shape:?}", self.shape)));
        }
        Ok(Tensor { shape: shape.to_vec(), ..self })
    }

    /// The same bytes read as another element type of the same width.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the widths differ.
    pub fn reinterpreted(self, dtype: DType) -> Result<Tensor> {
        if dtype.bits() != self.dtype.bits() || dtype == DType::String {
            return Err(Error::invalid(format!("cannot read {} as {dtype}", self.dtype)));
        }
        Ok(Tensor { dtype, ..self })
    }
}

impl PartialEq for Tensor {
    /// Equal type, shape and bits (so NaN equals itself, and 0 differs from -0).
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && match (&self.data, &other.data) {
                (Data::Text(a), Data::Text(b)) => a == b,
                (a, b) => a.bytes() == b.bytes(),
            }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.len() > 16 {
            return Ok(());
        }
        match &self.data {
            Data::Text(items) => write!(f, " {items:?}"),
            _ if self.dtype.is_int() => write!(f, " {:?}", self.to_ints().unwrap_or_default()),
            _ => write!(f, " {:?}", self.to_f32().unwrap_or_default()),
        }
    }
}

/// What flows along an edge of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// A tensor; nearly always.
    Tensor(Tensor),
    /// A sequence.
    Sequence(Vec<Datum>),
    /// A value or nothing.
    Optional(Option<Box<Datum>>),
}

impl Datum {
    /// The tensor.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is something else.
    pub fn tensor(&self) -> Result<&Tensor> {
        match self {
            Datum::Tensor(t) => Ok(t),
            other => Err(Error::invalid(format!("expected a tensor, got a {}", other.kind()))),
        }
    }

    /// The tensor, by value.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is something else.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Datum::Tensor(t) => Ok(t),
            other => Err(Error::invalid(format!("expected a tensor, got a {}", other.kind()))),
        }
    }

    /// "tensor", "sequence" or "optional".
    pub fn kind(&self) -> &'static str {
        match self {
            Datum::Tensor(_) => "tensor",
            Datum::Sequence(_) => "sequence",
            Datum::Optional(_) => "optional",
        }
    }
}

impl From<Tensor> for Datum {
    fn from(tensor: Tensor) -> Datum {
        Datum::Tensor(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_copies_only_what_is_shared() {
        let mut a = Tensor::vector(&[1f32, 2.0]);
        let before = a.bytes().as_ptr();
        a.as_mut_slice::<f32>().unwrap()[0] = 5.0;
        assert_eq!(a.bytes().as_ptr(), before);
        let b = a.clone();
        a.as_mut_slice::<f32>().unwrap()[0] = 7.0;
        assert_eq!(b.as_slice::<f32>().unwrap(), [5.0, 2.0]);
        assert_eq!(a.as_slice::<f32>().unwrap(), [7.0, 2.0]);
    }

    #[test]
    fn unaligned_views_are_read_by_value() {
        let bytes = Bytes::from(vec![9u8, 0, 0, 128, 63, 0, 0, 0, 64]);
        let view = Tensor::from_bytes(DType::F32, &[2], bytes.slice(1..)).unwrap();
        assert_eq!(view.values::<f32>().unwrap().as_ref(), [1.0, 2.0]);
        assert_eq!(view.aligned().as_slice::<f32>().unwrap(), [1.0, 2.0]);
        // What an element takes is enough.
        let bytes = Bytes::from_owner(Buf::copy_of(&[0u8; 64]));
        let view =
            |dtype, at: usize| Tensor::from_bytes(dtype, &[1], bytes.slice(at..at + dtype.align())).unwrap();
        assert!(view(DType::F32, 4).aligned().is_view() && !view(DType::F64, 4).aligned().is_view());
        assert!(view(DType::C128, 16).aligned().is_view() && !view(DType::C128, 8).aligned().is_view());
    }

    #[test]
    fn absurd_shapes_are_errors() {
        assert!(Tensor::zeros(DType::F32, &[usize::MAX, 2]).is_err());
        assert!(Tensor::zeros(DType::F32, &[1 << 50]).is_err());
        assert!(Tensor::zeros(DType::F32, &[0, 1 << 40, 1 << 40]).is_err());
        assert!(Tensor::from_bytes(DType::F32, &[3], Bytes::from(vec![0; 8])).is_err());
    }

    #[test]
    fn packed_integers() {
        let t = Tensor::pack(DType::I4, &[3], &[1, 0xf, 8]).unwrap();
        assert_eq!(t.bytes(), [0xf1, 0x08]);
        assert_eq!(t.unpack().unwrap(), [1, -1, -8]);
        assert_eq!(t.reinterpreted(DType::U4).unwrap().unpack().unwrap(), [1, 15, 8]);
        assert_eq!(
            Tensor::pack(DType::I2, &[5], &[0, 1, 2, 3, 1]).unwrap().unpack().unwrap(),
            [0, 1, -2, -1, 1]
        );
    }
}
