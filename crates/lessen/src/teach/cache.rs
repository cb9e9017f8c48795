//! Features that are kept in a folder: the same model and examples give the same, whatever the answers to them are.

use std::path::{Path, PathBuf};

use learn::data::Dataset;
use learn::head::Features;
use sha2::{Digest, Sha256};

use super::print;
use crate::{Error, Model, Result, write_file};

/// Where the features of some examples by some model are kept.
pub(super) struct Place(PathBuf);

impl Place {
    /// In this folder, which is made when it is not there.
    pub fn new(folder: &Path, model: &Model, data: &dyn Dataset) -> Result<Place> {
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::input(format!("{}: features cannot be kept there: {e}", folder.display())))?;
        let mut hash = Sha256::new();
        hash.update(env!("CARGO_PKG_VERSION"));
        hash.update(format::onnx::to_bytes(model.inner())?);
        hash.update(format!("{:?}", model.preprocess()));
        if let Some(tokenizer) = model.tokenizer() {
            hash.update(tokenizer.describe()?);
        }
        // What the examples are, not where: other columns of the same file are other examples.
        for i in 0..data.len() {
            hash.update(data.get(i).map_or([0; 32], |example| print(&example.input)));
        }
        let key: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
        Ok(Place(folder.join(format!("{key}.features"))))
    }

    /// The features of so many examples, when they are there and whole.
    pub fn load(&self, rows: usize) -> Option<Features> {
        let bytes = std::fs::read(&self.0).ok()?;
        let (check, rest) = bytes.split_first_chunk::<32>()?;
        if Sha256::digest(rest)[..] != check[..] {
            return None;
        }
        let (columns, values) = rest.split_first_chunk::<8>()?;
        let columns = usize::try_from(u64::from_le_bytes(*columns)).ok()?;
        let values = values.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        Features::new(columns, values).ok().filter(|features| features.rows() == rows)
    }

    /// Keeps them.
    pub fn save(&self, features: &Features) -> Result<()> {
        let columns = (features.columns() as u64).to_le_bytes();
        let values = features.values().iter().flat_map(|x| x.to_le_bytes());
        let body: Vec<u8> = columns.into_iter().chain(values).collect();
        write_file(&self.0, &[Sha256::digest(&body).as_slice(), &body].concat())
    }
}
