//! Checkpoints of any size: the headers of all shards are read, the tensors only when they are asked for, in parts.
//! Nothing stays in memory, unlike with mapped files, whose pages count as long as they are mapped.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ::safetensors::{Dtype, SafeTensors};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kernel::Cpu;

use super::read_json;
use crate::{Error, Result};

/// Elements that a task converts.
const STEP: usize = 1 << 16;
/// Bytes that are copied at a time.
const COPIED: u64 = 16 << 20;

/// A tensor of a checkpoint, and where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Number of its bytes.
    pub bytes: u64,
    file: usize,
    start: u64,
}

/// A file of a checkpoint, as it was when it was opened.
#[derive(Debug)]
pub struct Shard {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970; 0 where the system does not say.
    pub changed: u128,
    /// Its header: names, types and places of its tensors.
    pub header: Vec<u8>,
    file: File,
}

/// A folder of safetensors, opened.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Opens one file, or the files of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json`
    /// names.
    ///
    /// # Errors
    /// When a file is missing or broken, the index names a file elsewhere or a tensor that is not where it says, or two
    /// shards have tensors of one name.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { shards: Vec::new(), entries: BTreeMap::new() };
        if !path.is_dir() {
            checkpoint.add(path)?;
            return Ok(checkpoint);
        }
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        if single.exists() || !index.exists() {
            checkpoint.add(&single)?;
            return Ok(checkpoint);
        }
        let map = weight_map(&index)?;
        let mut names: Vec<&str> = map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            checkpoint.add(&path.join(name))?;
        }
        for (tensor, shard) in &map {
            let found = checkpoint.entries.get(tensor).map(|e| &checkpoint.shards[e.file].path);
            if found.is_none_or(|found| found.file_name().is_none_or(|name| name != shard.as_str())) {
                return Err(Error::broken(&index, format!("tensor {tensor:?} is not in {shard:?}")));
            }
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mapped = crate::file::map(path)?;
        let (length, header) =
            SafeTensors::read_metadata(&mapped).map_err(|e| Error::broken(path, e.to_string()))?;
        let file = File::open(path).map_err(Error::io(path))?;
        let about = file.metadata().map_err(Error::io(path))?;
        if about.len() != mapped.len() as u64 {
            return Err(Error::broken(path, "it changes while it is read"));
        }
        let changed = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let number = self.shards.len();
        for (name, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            let entry = Entry {
                name: name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: (to - from) as u64,
                file: number,
                start: (8 + length + from) as u64,
            };
            match self.entries.entry(name) {
                Slot::Vacant(slot) => slot.insert(entry),
                Slot::Occupied(slot) => {
                    let other = self.shards[slot.get().file].path.display();
                    return Err(Error::broken(path, format!("tensor {:?} is in {other}, too", slot.key())));
                }
            };
        }
        self.shards.push(Shard {
            path: path.into(),
            bytes: about.len(),
            changed: changed.map_or(0, |t| t.as_nanos()),
            header: mapped[8..8 + length].to_vec(),
            file,
        });
        Ok(())
    }

    /// The tensors, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The files.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Fills `out` with the bytes of a tensor from `start` on.
    ///
    /// # Errors
    /// When they are more than the tensor has, or the file cannot be read.
    pub fn read(&self, entry: &Entry, start: u64, out: &mut [u8]) -> Result<()> {
        let shard = self
            .shards
            .get(entry.file)
            .filter(|_| start.checked_add(out.len() as u64).is_some_and(|end| end <= entry.bytes));
        let Some(shard) = shard else {
            let what = format!("tensor {:?} has {} bytes, more are asked for", entry.name, entry.bytes);
            return Err(Error::broken(Path::new(&entry.name), what));
        };
        read_at(&shard.file, entry.start + start, out).map_err(Error::io(&shard.path))
    }

    /// Hands the bytes of a tensor on, in parts.
    ///
    /// # Errors
    /// When the file cannot be read, and what `take` returns.
    pub fn copy(&self, entry: &Entry, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut part = vec![0u8; entry.bytes.min(COPIED) as usize];
        let mut at = 0;
        while at < entry.bytes {
            let part = &mut part[..(entry.bytes - at).min(COPIED) as usize];
            self.read(entry, at, part)?;
            take(part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Elements of an F32, F16 or BF16 tensor as f32.
    ///
    /// # Errors
    /// When the tensor has fewer elements or another type, or the file cannot be read.
    pub fn floats(&self, cpu: &Cpu, entry: &Entry, elements: Range<usize>) -> Result<Vec<f32>> {
        let size = if entry.dtype == Dtype::F32 { 4 } else { 2 };
        if elements.start > elements.end || elements.end as u64 > entry.bytes / size {
            let what = format!("tensor {:?} has no elements {elements:?}", entry.name);
            return Err(Error::broken(Path::new(&entry.name), what));
        }
        let start = elements.start as u64 * size;
        let mut out = vec![0f32; elements.len()];
        match entry.dtype {
            Dtype::F32 => self.read(entry, start, bytemuck::cast_slice_mut(&mut out))?,
            Dtype::F16 => {
                let mut raw = vec![f16::ZERO; elements.len()];
                self.read(entry, start, bytemuck::cast_slice_mut(&mut raw))?;
                let part = |i: usize, out: &mut [f32]| raw[i * STEP..][..out.len()].convert_to_f32_slice(out);
                cpu.pool().for_chunks_mut(&mut out, STEP, part);
            }
            Dtype::BF16 => {
                let mut raw = vec![bf16::ZERO; elements.len()];
                self.read(entry, start, bytemuck::cast_slice_mut(&mut raw))?;
                let part = |i: usize, out: &mut [f32]| raw[i * STEP..][..out.len()].convert_to_f32_slice(out);
                cpu.pool().for_chunks_mut(&mut out, STEP, part);
            }
            other => {
                let what = format!("tensor {:?} is {other:?}, not F32, F16 or BF16", entry.name);
                return Err(Error::broken(Path::new(&entry.name), what));
            }
        }
        Ok(out)
    }
}

/// The shard of each tensor, by an index. Shards are names of files in the same folder.
pub(super) fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json(index)?;
    let map =
        json["weight_map"].as_object().ok_or_else(|| Error::broken(index, "it has no \"weight_map\""))?;
    let mut found = BTreeMap::new();
    for (tensor, shard) in map {
        let Some(name) = shard.as_str() else {
            return Err(Error::broken(index, format!("the shard of {tensor:?} is no text")));
        };
        if Path::new(name).file_name().is_none_or(|own| own != name) {
            let what = format!("shard {name:?} is not the name of a file in the same folder");
            return Err(Error::broken(index, what));
        }
        found.insert(tensor.clone(), name.to_owned());
    }
    Ok(found)
}

#[cfg(unix)]
fn read_at(file: &File, start: u64, out: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, start)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, start: u64, out: &mut [u8]) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::shard::{Piece, write_shard};

    fn cpu() -> Cpu {
        Cpu::with_isa(kernel::Isa::best(), 2).unwrap()
    }

    fn shard(path: &Path, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
        let piece = Piece { name: name.into(), dtype, shape: shape.to_vec() };
        write_shard(path, &[piece], |_, out| out.write_all(bytes).map_err(Error::io(path))).unwrap();
    }

    fn index(folder: &Path, map: &str) {
        std::fs::write(folder.join("model.safetensors.index.json"), format!("{{\"weight_map\":{map}}}"))
            .unwrap();
    }

    #[test]
    fn parts_of_tensors_are_read_from_shards() {
        let dir = tempfile::tempdir().unwrap();
        let values: Vec<f32> = (0..12).map(|i| i as f32 - 3.5).collect();
        let half: Vec<u8> = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let brain: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let full: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        shard(&dir.path().join("a.safetensors"), "h", Dtype::F16, &[3, 4], &half);
        shard(&dir.path().join("b.safetensors"), "b", Dtype::BF16, &[12], &brain);
        shard(&dir.path().join("c.safetensors"), "f", Dtype::F32, &[2, 6], &full);
        index(dir.path(), r#"{"h":"a.safetensors","b":"b.safetensors","f":"c.safetensors"}"#);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for name in ["h", "b", "f"] {
            let entry = checkpoint.get(name).unwrap();
            assert_eq!(checkpoint.floats(&cpu(), entry, 4..9).unwrap(), values[4..9]);
            assert!(checkpoint.floats(&cpu(), entry, 4..13).is_err());
            assert!(checkpoint.floats(&cpu(), entry, usize::MAX - 1..usize::MAX).is_err());
            let mut whole: Vec<u8> = Vec::new();
            checkpoint
                .copy(entry, |part| {
                    whole.extend(part);
                    Ok(())
                })
                .unwrap();
            assert_eq!(whole.len() as u64, entry.bytes);
        }
        assert_eq!(checkpoint.shards().len(), 3);
    }

    #[test]
    fn indices_that_lie_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        shard(&at("a.safetensors"), "x", Dtype::U8, &[1], &[1]);
        shard(&at("b.safetensors"), "x", Dtype::U8, &[1], &[1]);
        std::fs::create_dir(at("sub")).unwrap();
        shard(&at("sub/c.safetensors"), "z", Dtype::U8, &[1], &[1]);
        for (map, word) in [
            (r#"{"x":"a.safetensors","y":"b.safetensors"}"#, "too"),
            (r#"{"x":"a.safetensors","y":"a.safetensors"}"#, "not in"),
            (r#"{"x":"missing.safetensors"}"#, "missing.safetensors"),
            (r#"{"z":"sub/c.safetensors"}"#, "same folder"),
            (r#"{"z":"../c.safetensors"}"#, "same folder"),
            (r#"{"z":".."}"#, "same folder"),
            (r#"{"z":"/etc/passwd"}"#, "same folder"),
            (r#"{"z":""}"#, "same folder"),
            (r#"{"z":7}"#, "no text"),
            ("[]", "weight_map"),
        ] {
            index(dir.path(), map);
            let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(word), "{map}: {error}");
        }
        index(dir.path(), r#"{"x":"a.safetensors"}"#);
        assert!(Checkpoint::open(dir.path()).is_ok());
    }

    #[test]
    fn broken_headers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let file = |length: u64, header: &str, data: usize| {
            [&length.to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
        };
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
            )
        };
        let good = two("[0,8]", "[8,16]");
        std::fs::write(&path, file(good.len() as u64, &good, 16)).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().entries().count(), 2);
        for header in [
            two("[0,8]", "[0,8]"),
            two("[0,8]", "[4,12]"),
            two("[0,8]", "[16,24]"),
            two("[0,8]", "[8,18446744073709551615]"),
            good.replace("[2]", "[2,4611686018427387904,4]"),
        ] {
            std::fs::write(&path, file(header.len() as u64, &header, 16)).unwrap();
            assert!(Checkpoint::open(&path).is_err(), "{header}");
        }
        for length in [0, 1, good.len() as u64 + 1, 99_999_999, 1 << 40, u64::MAX] {
            std::fs::write(&path, file(length, &good, 16)).unwrap();
            assert!(Checkpoint::open(&path).is_err(), "{length}");
        }
        std::fs::write(&path, file(good.len() as u64, &good, 15)).unwrap();
        assert!(Checkpoint::open(&path).is_err());
    }
}
