//! Writing shards: all sizes are known ahead, so that the header comes first and tensors stream after it.

use std::io::Write;
use std::path::Path;

use ::safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Piece {
    /// Number of its bytes.
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() as u64 * self.dtype.bitsize() as u64).div_ceil(8)
    }
}

/// The order of tensors in a shard: those of wide elements first, so that all are aligned.
pub fn by_width(pieces: &mut [Piece]) {
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.dtype.bitsize()));
}

/// The name of a shard, the first being 0. A checkpoint of one shard has no numbers.
pub fn shard_name(number: usize, of: usize) -> String {
    match of {
        0 | 1 => "model.safetensors".into(),
        _ => format!("model-{:05}-of-{of:05}.safetensors", number + 1),
    }
}

/// Writes a shard; it is complete or not there. `fill` writes the bytes of the piece of a number, in order.
///
/// # Errors
/// When the file cannot be written, `fill` fails, or it writes more or fewer bytes than the piece has.
pub fn write_shard(
    path: &Path,
    pieces: &[Piece],
    mut fill: impl FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut at = 0u64;
    for piece in pieces {
        let end = at + piece.bytes();
        let entry = json!({ "dtype": piece.dtype, "shape": piece.shape, "data_offsets": [at, end] });
        if header.insert(piece.name.clone(), entry).is_some() {
            return Err(Error::broken(path, format!("two tensors are named {:?}", piece.name)));
        }
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut failed = None;
    let written = crate::file::write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for (number, piece) in pieces.iter().enumerate() {
            let mut counted = Counted { out, left: piece.bytes() };
            let done = fill(number, &mut counted).and_then(|()| match counted.left {
                0 => Ok(()),
                left => Err(Error::broken(path, format!("{left} bytes of {:?} are missing", piece.name))),
            });
            if let Err(error) = done {
                failed = Some(error);
                return Err(std::io::Error::other("a tensor cannot be written"));
            }
        }
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}

/// Writes the index of a checkpoint of several shards.
///
/// # Errors
/// When it cannot be written.
pub fn write_index(folder: &Path, shards: &[Vec<Piece>]) -> Result<()> {
    let size: u64 = shards.iter().flatten().map(Piece::bytes).sum();
    let mut map = Map::new();
    for (number, pieces) in shards.iter().enumerate() {
        for piece in pieces {
            map.insert(piece.name.clone(), shard_name(number, shards.len()).into());
        }
    }
    let index = json!({ "metadata": { "total_size": size }, "weight_map": map });
    let text = format!("{index:#}\n");
    crate::file::write(&folder.join("model.safetensors.index.json"), |out| out.write_all(text.as_bytes()))
}

/// Refuses more bytes than are due.
struct Counted<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(std::io::Error::other("a tensor has more bytes than its shape says"));
        }
        let written = self.out.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::{Checkpoint, read_folder};

    #[test]
    fn shards_are_read_back_and_wrong_sizes_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut pieces = vec![
            Piece { name: "b".into(), dtype: Dtype::U8, shape: vec![3] },
            Piece { name: "s".into(), dtype: Dtype::I64, shape: vec![2] },
            Piece { name: "e".into(), dtype: Dtype::F32, shape: vec![0, 4] },
        ];
        by_width(&mut pieces);
        assert_eq!(pieces[0].name, "s");
        let shards = [pieces.clone(), vec![Piece { name: "t".into(), dtype: Dtype::U8, shape: vec![1] }]];
        for (number, pieces) in shards.iter().enumerate() {
            let path = dir.path().join(shard_name(number, 2));
            write_shard(&path, pieces, |k, out| {
                out.write_all(&vec![k as u8; pieces[k].bytes() as usize]).map_err(Error::io(&path))
            })
            .unwrap();
        }
        write_index(dir.path(), &shards).unwrap();
        let tensors = read_folder(dir.path()).unwrap();
        assert_eq!(tensors.len(), 4);
        assert_eq!(tensors["b"].bytes(), [2, 2, 2]);
        assert_eq!(Checkpoint::open(dir.path()).unwrap().get("s").unwrap().bytes, 16);
        let path = dir.path().join("bad.safetensors");
        for count in [0, 1, 17] {
            let result = write_shard(&path, &pieces[..1], |_, out| {
                out.write_all(&vec![0; count]).map_err(Error::io(&path))
            });
            assert!(result.is_err(), "{count}");
        }
        let twice = [pieces[0].clone(), pieces[0].clone()];
        assert!(write_shard(&path, &twice, |_, _| Ok(())).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
