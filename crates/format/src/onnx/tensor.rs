//! `TensorProto` and `SparseTensorProto` from and to [`Tensor`].

use bytes::Bytes;
use graph::{DType, Error, Result, Tensor};

use super::external::External;
use super::proto::{SparseTensorProto, TensorProto, tensor_proto::DataLocation};

fn shape(dims: &[i64]) -> Result<Vec<usize>> {
    dims.iter()
        .map(|&d| usize::try_from(d).map_err(|_| Error::invalid(format!("a tensor has the size {d}"))))
        .collect()
}

/// The tensor of a `TensorProto`. Raw data stay a view of the bytes they were decoded from.
///
/// # Errors
/// When type, shape and data do not fit together.
pub fn tensor_from_proto(proto: &TensorProto) -> Result<Tensor> {
    from_proto(proto, None)
}

/// As [`tensor_from_proto`]; data in other files come from `external`.
pub(super) fn from_proto(proto: &TensorProto, external: Option<&External>) -> Result<Tensor> {
    let named = |e: Error| match proto.name() {
        "" => e,
        name => Error::invalid(format!("tensor {name:?}: {e}")),
    };
    decode(proto, external).map_err(named)
}

fn decode(proto: &TensorProto, external: Option<&External>) -> Result<Tensor> {
    let number = proto.data_type();
    let dtype =
        DType::from_onnx(number).ok_or_else(|| Error::unsupported(format!("element type {number}")))?;
    let shape = shape(&proto.dims)?;
    if proto.segment.is_some() {
        return Err(Error::unsupported("a tensor stored in segments"));
    }
    if proto.data_location() == DataLocation::External {
        let Some(external) = external else {
            return Err(Error::unsupported("data in another file, for a model that is not read from a file"));
        };
        let want = dtype.bytes_for(graph::tensor::count(&shape)?).unwrap_or(usize::MAX);
        return Tensor::from_bytes(dtype, &shape, external.bytes(proto, want)?);
    }
    if dtype == DType::String {
        let text = |b: &Bytes| {
            std::string::String::from_utf8(b.to_vec())
                .map_err(|_| Error::unsupported("a string that is not UTF-8"))
        };
        return Tensor::strings(&shape, proto.string_data.iter().map(text).collect::<Result<_>>()?);
    }
    if let Some(raw) = &proto.raw_data {
        return Tensor::from_bytes(dtype, &shape, raw.clone());
    }
    // Without raw data, elements stand in the field of a wider type.
    fn pack<A: Copy, const N: usize>(items: &[A], f: impl Fn(A) -> [u8; N]) -> Bytes {
        items.iter().flat_map(|&v| f(v)).collect::<Vec<u8>>().into()
    }
    use DType::*;
    let ints = &proto.int32_data;
    let bytes = match dtype {
        F32 | C64 => pack(&proto.float_data, f32::to_le_bytes),
        F64 | C128 => pack(&proto.double_data, f64::to_le_bytes),
        I64 => pack(&proto.int64_data, i64::to_le_bytes),
        U64 => pack(&proto.uint64_data, u64::to_le_bytes),
        U32 => pack(&proto.uint64_data, |v| (v as u32).to_le_bytes()),
        I32 => pack(ints, i32::to_le_bytes),
        I16 | U16 | F16 | BF16 => pack(ints, |v| (v as u16).to_le_bytes()),
        // Packed types stand as their packed bytes.
        _ => pack(ints, |v| [v as u8]),
    };
    Tensor::from_bytes(dtype, &shape, bytes)
}

/// A tensor as `TensorProto`, its elements as raw data (strings apart), which are shared and not copied.
pub fn tensor_to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        name: (!name.is_empty()).then(|| name.into()),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().to_onnx()),
        ..TensorProto::default()
    };
    match tensor.as_strings() {
        Ok(items) => proto.string_data = items.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect(),
        Err(_) => proto.raw_data = Some(tensor.shared_bytes()),
    }
    proto
}

/// Sparse tensors that take more memory than this when dense must have an element in [`MAX_SPARSITY`].
const MAX_DENSE: usize = 1 << 25;
/// See [`MAX_DENSE`].
const MAX_SPARSITY: usize = 1 << 10;

/// The dense tensor of a sparse one (coordinates, linear or by axis).
///
/// # Errors
/// When an index is out of range or the shapes do not fit.
pub(super) fn dense(proto: &SparseTensorProto, external: Option<&External>) -> Result<Tensor> {
    let missing = || Error::invalid("a sparse tensor lacks its values or indices");
    let values = from_proto(proto.values.as_ref().ok_or_else(missing)?, external)?;
    let indices = from_proto(proto.indices.as_ref().ok_or_else(missing)?, external)?;
    let shape = shape(&proto.dims)?;
    let total = graph::tensor::count(&shape)?;
    let size = values.dtype().bits() / 8;
    if size == 0 {
        return Err(Error::unsupported(format!("a sparse tensor of type {}", values.dtype())));
    }
    let dense = total.saturating_mul(size);
    if dense > MAX_DENSE && total / MAX_SPARSITY > values.len() {
        let (name, few) = (proto.values.as_ref().map_or("", |v| v.name()), values.len());
        let what = format!("sparse tensor {name:?}: {few} elements of {total} take too much memory");
        return Err(Error::unsupported(what));
    }
    let index = indices.to_ints()?;
    let linear = |at: usize| -> Option<usize> {
        let position = match indices.rank() {
            1 => usize::try_from(*index.get(at)?).ok()?,
            _ => {
                let row = index.get(at * shape.len()..(at + 1) * shape.len())?;
                row.iter().zip(&shape).try_fold(0usize, |sum, (&i, &n)| {
                    let i = usize::try_from(i).ok().filter(|&i| i < n)?;
                    sum.checked_mul(n)?.checked_add(i)
                })?
            }
        };
        (position < total).then_some(position)
    };
    let mut tensor = Tensor::zeros(values.dtype(), &shape)?;
    let out = tensor.bytes_mut()?;
    for (i, value) in values.bytes().chunks_exact(size).enumerate() {
        let at = linear(i)
            .ok_or_else(|| Error::invalid(format!("index {i} of a sparse tensor is out of range")))?;
        out[at * size..(at + 1) * size].copy_from_slice(value);
    }
    Ok(tensor)
}
