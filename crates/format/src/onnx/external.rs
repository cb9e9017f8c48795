//! Tensor data in other files: <https://github.com/onnx/onnx/blob/main/docs/ExternalData.md>

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use graph::{Error, Result};

use super::proto::{GraphProto, TensorProto};

/// The folder of a model, and those of its data files that were mapped so far.
pub(super) struct External {
    folder: PathBuf,
    files: RefCell<HashMap<String, Bytes>>,
}

impl External {
    /// Data files of the model at `path`.
    pub fn beside(path: &Path) -> External {
        External { folder: path.parent().unwrap_or(Path::new("")).into(), files: RefCell::default() }
    }

    /// The bytes of a tensor, `want` of them unless the file says another length.
    pub fn bytes(&self, proto: &TensorProto, want: usize) -> Result<Bytes> {
        let entry = |key: &str| proto.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
        let number = |key: &str| match entry(key) {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse::<usize>()
                .map(Some)
                .map_err(|_| Error::invalid(format!("{key} {text:?} is no number"))),
        };
        let location = entry("location").ok_or_else(|| Error::invalid("external data without a location"))?;
        let file = self.file(location)?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(want);
        let end = offset.checked_add(length).filter(|&end| end <= file.len()).ok_or_else(|| {
            Error::invalid(format!(
                "{length} bytes at offset {offset} lie outside {location:?}, which has {}",
                file.len()
            ))
        })?;
        Ok(file.slice(offset..end))
    }

    fn file(&self, location: &str) -> Result<Bytes> {
        if let Some(file) = self.files.borrow().get(location) {
            return Ok(file.clone());
        }
        let escapes =
            || Error::invalid(format!("external data at {location:?} lie outside the model's folder"));
        let relative = Path::new(location);
        if relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err(escapes());
        }
        let fail = |e: std::io::Error| Error::invalid(format!("external data {location:?}: {e}"));
        let folder = if self.folder.as_os_str().is_empty() { Path::new(".") } else { &self.folder };
        let folder = folder.canonicalize().map_err(fail)?;
        let path = folder.join(relative).canonicalize().map_err(fail)?;
        if !path.starts_with(&folder) {
            return Err(escapes());
        }
        let file = Bytes::from_owner(kernel::Map::open(&path).map_err(fail)?);
        self.files.borrow_mut().insert(location.into(), file.clone());
        Ok(file)
    }
}

/// Adds the names of all files that tensors of a graph and of the bodies in it lie in.
pub(super) fn locations(graph: &GraphProto, found: &mut BTreeSet<String>) {
    let attrs = || graph.node.iter().flat_map(|n| &n.attribute);
    let sparse = graph.sparse_initializer.iter().flat_map(|s| s.values.iter().chain(&s.indices));
    let tensors = graph.initializer.iter().chain(sparse);
    for tensor in tensors.chain(attrs().flat_map(|a| a.t.iter().chain(&a.tensors))) {
        let entries = tensor.external_data.iter().filter(|e| e.key() == "location");
        found.extend(entries.map(|e| e.value().to_owned()));
    }
    for body in attrs().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        locations(body, found);
    }
}
