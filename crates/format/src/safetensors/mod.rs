//! Hugging Face safetensors: <https://github.com/huggingface/safetensors>

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use bytes::Bytes;
use graph::{DType, Tensor};

pub mod checkpoint;
pub mod compressed;
pub mod shard;

pub use ::safetensors::Dtype as ElementType;
pub use checkpoint::Checkpoint;

use crate::{Error, Result};

/// Named tensors, views of their mapped files.
pub type Tensors = BTreeMap<String, Tensor>;

/// Biggest JSON file that is read.
pub(crate) const MAX_JSON: u64 = 64 << 20;

/// Reads the tensors of one file.
///
/// # Errors
/// When the file cannot be read or is broken.
pub fn read_file(path: &Path) -> Result<Tensors> {
    let bytes = crate::file::map(path)?;
    let parsed = SafeTensors::deserialize(&bytes).map_err(|e| Error::broken(path, e.to_string()))?;
    parsed.iter().map(|(name, view)| Ok((name.to_owned(), tensor(path, name, &bytes, &view)?))).collect()
}

fn tensor(path: &Path, name: &str, file: &Bytes, view: &::safetensors::tensor::TensorView) -> Result<Tensor> {
    let dtype = match view.dtype() {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::U8,
        Dtype::I8 => DType::I8,
        Dtype::I16 => DType::I16,
        Dtype::U16 => DType::U16,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::I64 => DType::I64,
        Dtype::U64 => DType::U64,
        Dtype::F8_E4M3 => DType::F8E4M3FN,
        Dtype::F8_E5M2 => DType::F8E5M2,
        other => {
            return Err(Error::broken(
                path,
                format!("tensor {name:?} has the type {other:?}, which is not supported"),
            ));
        }
    };
    let bytes = file.slice_ref(view.data());
    Tensor::from_bytes(dtype, view.shape(), bytes).map_err(Error::model(path))
}

/// Reads the tensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
///
/// # Errors
/// When a file cannot be read or is broken, or the folder has neither.
pub fn read_folder(folder: &Path) -> Result<Tensors> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        return read_file(&single);
    }
    let map = checkpoint::weight_map(&index)?;
    let mut shards: Vec<&str> = map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    let mut tensors = Tensors::new();
    for shard in shards {
        tensors.extend(read_file(&folder.join(shard))?);
    }
    match map.keys().find(|name| !tensors.contains_key(*name)) {
        Some(name) => Err(Error::broken(&index, format!("tensor {name:?} is in no shard"))),
        None => Ok(tensors),
    }
}

/// Writes tensors to a file, which is there as a whole or not at all.
///
/// # Errors
/// When a tensor is of a type that is not written, or the file cannot be.
pub fn write_file(path: &Path, tensors: &Tensors) -> Result<()> {
    let failed = |what: String| Error::broken(path, format!("tensors cannot be written: {what}"));
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            other => return Err(failed(format!("{name:?} is of type {other:?}"))),
        };
        let view = ::safetensors::tensor::TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes());
        views.push((name.as_str(), view.map_err(|e| failed(e.to_string()))?));
    }
    let bytes = ::safetensors::serialize(views, None).map_err(|e| failed(e.to_string()))?;
    crate::file::write(path, |out| out.write_all(&bytes))
}

/// Reads a JSON file of bounded size.
///
/// # Errors
/// When it cannot be read, is too big, or is no JSON.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    if std::fs::metadata(path).map_err(Error::io(path))?.len() > MAX_JSON {
        return Err(Error::broken(path, "it is too big for a JSON file of settings"));
    }
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|e| Error::broken(path, format!("it is not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn tensors_are_read_and_broken_files_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let good =
            file(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0, 0, 128, 63, 0, 0, 0, 64]);
        std::fs::write(&path, &good).unwrap();
        assert_eq!(read_file(&path).unwrap()["w"].values::<f32>().unwrap().as_ref(), [1.0, 2.0]);
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(read_file(&path).is_err(), "cut at {cut}");
        }
        for header in [
            r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
            r#"{"w":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
            r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}"#,
            r#"{"w":{"dtype":"X7","shape":[2],"data_offsets":[0,8]}}"#,
            "[]",
        ] {
            std::fs::write(&path, file(header, &[0; 8])).unwrap();
            assert!(read_file(&path).is_err(), "{header}");
        }
        std::fs::write(&path, [255u8; 64]).unwrap();
        assert!(read_file(&path).is_err());
    }
}
