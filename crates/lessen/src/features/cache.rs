//! Features that are kept in a folder: the same model and examples give the same, whatever the answers to them are. They
//! are appended part by part, each with its checksum, so that a run that was killed goes on where it was.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use learn::data::Dataset;
use sha2::{Digest, Sha256};

use super::print;
use crate::{Error, Model, Result};

/// Where the features of some examples by some model are kept.
pub(super) struct Place {
    file: PathBuf,
    /// Bytes of the parts that are whole.
    end: u64,
    /// Number of examples.
    examples: usize,
}

/// What was kept.
#[derive(Default)]
pub(super) struct Kept {
    /// Examples that were shown to the model, from the first on.
    pub examples: usize,
    /// Those of them that could be read.
    pub rows: Vec<usize>,
    pub columns: Option<usize>,
    pub values: Vec<f32>,
}

/// A part: a checksum of the rest, the first example and the one behind the last, numbers of a row, number of rows; then
/// which examples the rows are of, and the rows.
const HEAD: usize = 32 + 4 * 8;

impl Place {
    /// In this folder, which is made when it is not there.
    pub fn open(folder: &Path, model: &Model, data: &dyn Dataset) -> Result<Place> {
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
        let mut place = Place { file: folder.join(format!("{key}.features")), end: 0, examples: data.len() };
        place.end = place.read().1;
        Ok(place)
    }

    /// What is there and whole.
    pub fn load(&self) -> Kept {
        self.read().0
    }

    fn read(&self) -> (Kept, u64) {
        let mut kept = Kept::default();
        let bytes = std::fs::read(&self.file).unwrap_or_default();
        let mut rest = &bytes[..];
        while let Some(part) = kept.part(rest, self.examples) {
            rest = &rest[part..];
        }
        (kept, (bytes.len() - rest.len()) as u64)
    }

    /// Keeps the rows of these examples, of which some could be read, behind what is there.
    pub fn append(&mut self, of: Range<usize>, columns: usize, rows: &[usize], values: &[f32]) -> Result<()> {
        let head = [of.start, of.end, columns, rows.len()].map(|n| (n as u64).to_le_bytes()).concat();
        let rows = rows.iter().flat_map(|&row| (row as u64).to_le_bytes());
        let body: Vec<u8> =
            head.into_iter().chain(rows).chain(values.iter().flat_map(|x| x.to_le_bytes())).collect();
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.file)?;
            // What a run that was killed left half done goes.
            file.set_len(self.end)?;
            file.seek(SeekFrom::Start(self.end))?;
            file.write_all(&Sha256::digest(&body))?;
            file.write_all(&body)?;
            file.sync_data()
        };
        write()
            .map_err(|e| Error::input(format!("{}: features cannot be kept: {e}", self.file.display())))?;
        self.end += 32 + body.len() as u64;
        Ok(())
    }
}

impl Kept {
    /// Takes the first part of these bytes, when it is whole and goes on from what is here; the bytes it has.
    fn part(&mut self, bytes: &[u8], examples: usize) -> Option<usize> {
        let (check, rest) = bytes.split_first_chunk::<32>()?;
        let number = |i: usize| {
            let bytes = rest.get(8 * i..)?.first_chunk::<8>()?;
            usize::try_from(u64::from_le_bytes(*bytes)).ok()
        };
        let (from, to, columns, count) = (number(0)?, number(1)?, number(2)?, number(3)?);
        let fits = from == self.examples && from < to && to <= examples && count <= to - from;
        if !fits || self.columns.is_some_and(|known| known != columns && count > 0) {
            return None;
        }
        let len = columns.checked_mul(4)?.checked_add(8)?.checked_mul(count)?.checked_add(HEAD)?;
        let body = bytes.get(32..len)?;
        if Sha256::digest(body)[..] != check[..] {
            return None;
        }
        let (rows, values) = body[HEAD - 32..].split_at(8 * count);
        let rows: Vec<usize> =
            rows.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize).collect();
        self.values.extend(values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        self.rows.extend(rows);
        self.examples = to;
        if count > 0 {
            self.columns = Some(columns);
        }
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_read_again_and_what_is_not_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let place = || {
            let mut place = Place { file: folder.path().join("x.features"), end: 0, examples: 5 };
            place.end = place.read().1;
            place
        };
        assert_eq!(place().load().examples, 0);
        place().append(0..2, 3, &[0, 1], &[1., 2., 3., 4., 5., 6.]).unwrap();
        place().append(2..4, 3, &[3], &[7., 8., 9.]).unwrap();
        let file = place().file;
        let whole = std::fs::read(&file).unwrap();
        let kept = place().load();
        assert_eq!((kept.examples, kept.rows, kept.columns), (4, vec![0, 1, 3], Some(3)));
        assert_eq!(kept.values, [1., 2., 3., 4., 5., 6., 7., 8., 9.]);
        // Cut or changed anywhere in the second part, the first is still good; it goes on from there.
        let first = HEAD + 2 * (8 + 12);
        for cut in first..whole.len() {
            std::fs::write(&file, &whole[..cut]).unwrap();
            assert_eq!(place().load().examples, 2, "{cut}");
            let mut other = whole.clone();
            other[cut] ^= 4;
            std::fs::write(&file, &other).unwrap();
            assert_eq!(place().load().examples, 2, "{cut}");
        }
        place().append(2..5, 3, &[4], &[1., 1., 1.]).unwrap();
        let kept = place().load();
        assert_eq!((kept.examples, kept.rows, kept.values.len()), (5, vec![0, 1, 4], 9));
        // More examples than there are: they were others.
        let fewer = Place { examples: 1, ..place() };
        assert_eq!(fewer.load().examples, 0);
    }
}
