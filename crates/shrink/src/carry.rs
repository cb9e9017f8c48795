//! What is carried from one stage of a walk to the next, and the examples that it begins with: in memory or, when a folder
//! is given, in two files there that have no names, so that nothing stays behind however the process ends. Each stage
//! reads one of them and writes the other; memory is one batch.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use graph::{DType, Datum, Tensor};

use crate::walk::Example;
use crate::{Error, Result};

/// Lists of named values, one for each batch.
pub(crate) struct Carried<K> {
    files: Option<Files>,
    items: Vec<Item<K>>,
}

struct Item<K> {
    parts: Vec<(K, Part)>,
    place: Option<Place>,
}

enum Part {
    Held(Datum),
    /// A tensor whose bytes are in the file, after those of the parts before it.
    Filed(DType, Vec<usize>),
}

#[derive(Clone, Copy)]
struct Place {
    file: usize,
    at: u64,
}

impl<K: Clone> Carried<K> {
    /// None yet; kept in files of this folder, if there is one.
    ///
    /// # Errors
    /// [`Error::Spill`] when no file can be made there.
    pub fn new(folder: Option<&Path>) -> Result<Carried<K>> {
        Ok(Carried { files: folder.map(Files::open).transpose()?, items: Vec::new() })
    }

    /// Number of lists.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// One more list.
    ///
    /// # Errors
    /// As [`Carried::put`].
    pub fn push(&mut self, list: Vec<(K, Datum)>) -> Result<()> {
        self.items.push(Item { parts: Vec::new(), place: None });
        self.put(self.items.len() - 1, list)
    }

    /// A list, that stays.
    ///
    /// # Errors
    /// [`Error::Spill`] when it cannot be read.
    pub fn get(&self, i: usize) -> Result<Vec<(K, Datum)>> {
        let Item { parts, place } = &self.items[i];
        let mut file = match (&self.files, place) {
            (Some(files), Some(place)) => Some((files, files.at(*place)?)),
            _ => None,
        };
        let read = |(key, part): &(K, Part)| {
            let datum = match (part, &mut file) {
                (Part::Held(datum), _) => datum.clone(),
                (Part::Filed(dtype, shape), Some((files, file))) => files.read(file, *dtype, shape)?.into(),
                (Part::Filed(dtype, shape), None) => Tensor::zeros(*dtype, shape)?.into(),
            };
            Ok((key.clone(), datum))
        };
        parts.iter().map(read).collect()
    }

    /// A list, in whose place another will be put.
    ///
    /// # Errors
    /// As [`Carried::get`].
    pub fn take(&mut self, i: usize) -> Result<Vec<(K, Datum)>> {
        let list = self.get(i)?;
        self.items[i].parts.clear();
        Ok(list)
    }

    /// Puts a list in the place of one that was taken.
    ///
    /// # Errors
    /// [`Error::Spill`] when it cannot be written, as on a full disk.
    pub fn put(&mut self, i: usize, list: Vec<(K, Datum)>) -> Result<()> {
        let item = &mut self.items[i];
        let Some(files) = &mut self.files else {
            item.parts = list.into_iter().map(|(key, datum)| (key, Part::Held(datum))).collect();
            return Ok(());
        };
        let place = files.begin(item.place);
        let mut parts = Vec::with_capacity(list.len());
        for (key, datum) in list {
            let part = match datum {
                Datum::Tensor(t) if t.dtype() != DType::String => {
                    files.write(place, t.bytes())?;
                    Part::Filed(t.dtype(), t.shape().to_vec())
                }
                other => Part::Held(other),
            };
            parts.push((key, part));
        }
        files.end(item.place)?;
        *item = Item { parts, place: Some(place) };
        Ok(())
    }
}

/// Two files. What is read from one is written to the other; one that nothing is left in is cut to nothing.
struct Files {
    folder: PathBuf,
    files: [File; 2],
    /// Where each ends, in bytes.
    ends: [u64; 2],
    /// Number of lists in each.
    used: [usize; 2],
}

impl Files {
    fn open(folder: &Path) -> Result<Files> {
        let open = || Ok([tempfile::tempfile_in(folder)?, tempfile::tempfile_in(folder)?]);
        let files = open().map_err(spill(folder))?;
        Ok(Files { folder: folder.into(), files, ends: [0; 2], used: [0; 2] })
    }

    fn at(&self, place: Place) -> Result<&File> {
        let mut file = &self.files[place.file];
        file.seek(SeekFrom::Start(place.at)).map_err(spill(&self.folder))?;
        Ok(file)
    }

    fn read(&self, mut file: &File, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let mut tensor = Tensor::any(dtype, shape)?;
        file.read_exact(tensor.bytes_mut()?).map_err(spill(&self.folder))?;
        Ok(tensor)
    }

    /// Where a list goes that was there before.
    fn begin(&mut self, before: Option<Place>) -> Place {
        let file = before.map_or(0, |place| 1 - place.file);
        self.used[file] += 1;
        Place { file, at: self.ends[file] }
    }

    fn write(&mut self, place: Place, bytes: &[u8]) -> Result<()> {
        let at = self.ends[place.file];
        self.at(Place { at, ..place })?.write_all(bytes).map_err(spill(&self.folder))?;
        self.ends[place.file] += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what was there before.
    fn end(&mut self, before: Option<Place>) -> Result<()> {
        let Some(Place { file, .. }) = before else { return Ok(()) };
        self.used[file] -= 1;
        if self.used[file] == 0 {
            self.files[file].set_len(0).map_err(spill(&self.folder))?;
            self.ends[file] = 0;
        }
        Ok(())
    }
}

fn spill(folder: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Spill { folder: folder.into(), source }
}

/// Calibration examples, as named inputs batch by batch, and where what becomes of them is carried.
pub struct Examples {
    folder: Option<PathBuf>,
    list: Carried<String>,
}

impl Examples {
    /// None yet; kept in files of this folder, if there is one.
    ///
    /// # Errors
    /// [`Error::Spill`] when no file can be made there.
    pub fn new(folder: Option<&Path>) -> Result<Examples> {
        Ok(Examples { folder: folder.map(Into::into), list: Carried::new(folder)? })
    }

    /// One more batch.
    ///
    /// # Errors
    /// [`Error::Spill`] when it cannot be written.
    pub fn push(&mut self, example: Example) -> Result<()> {
        self.list.push(example)
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.list.len() == 0
    }

    /// The first of them; `None` when there are none.
    ///
    /// # Errors
    /// [`Error::Spill`] when it cannot be read.
    pub fn first(&self) -> Result<Option<Example>> {
        if self.is_empty() { Ok(None) } else { self.list.get(0).map(Some) }
    }

    /// All of them, in memory.
    ///
    /// # Errors
    /// [`Error::Spill`] when they cannot be read.
    pub fn all(&self) -> Result<Vec<Example>> {
        (0..self.list.len()).map(|i| self.list.get(i)).collect()
    }

    /// The same, once more.
    ///
    /// # Errors
    /// As [`Examples::all`] and [`Examples::push`].
    pub fn again(&self) -> Result<Examples> {
        let mut copy = Examples::new(self.folder())?;
        (0..self.list.len()).try_for_each(|i| copy.push(self.list.get(i)?))?;
        Ok(copy)
    }

    /// Where what becomes of them is carried; `None` is memory.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// What `start` makes of each.
    ///
    /// # Errors
    /// What it returns, and [`Error::Spill`].
    pub(crate) fn carried<K: Clone>(
        &self,
        start: &dyn Fn(Example) -> Result<Vec<(K, Datum)>>,
    ) -> Result<Carried<K>> {
        let mut carried = Carried::new(self.folder())?;
        (0..self.list.len()).try_for_each(|i| carried.push(start(self.list.get(i)?)?))?;
        Ok(carried)
    }
}

impl From<Vec<Example>> for Examples {
    /// In memory.
    fn from(list: Vec<Example>) -> Examples {
        let held = |example: Example| Item {
            parts: example.into_iter().map(|(name, datum)| (name, Part::Held(datum))).collect(),
            place: None,
        };
        let items = list.into_iter().map(held).collect();
        Examples { folder: None, list: Carried { files: None, items } }
    }
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;

    use super::*;

    fn lists(i: usize) -> Vec<(usize, Datum)> {
        let text = Tensor::strings(&[2], vec!["a".into(), "ß".into()]).unwrap();
        let codes = Tensor::new::<i8>(&[3 + i], &vec![i as i8 - 2; 3 + i]).unwrap();
        let flags = Tensor::bools(&[2], &[true, false]).unwrap();
        vec![
            (7, Datum::Tensor(ramp(&[2, i]))),
            (3, Datum::Tensor(text)),
            (0, Datum::Tensor(codes)),
            (4, Datum::Sequence(vec![Datum::Tensor(ramp(&[1]))])),
            (9, Datum::Tensor(flags)),
            (1, Datum::Tensor(ramp(&[5, 4]))),
        ]
    }

    #[test]
    fn what_is_put_into_files_comes_back_and_no_file_is_to_be_seen() {
        let place = tempfile::tempdir().unwrap();
        let mut carried = Carried::new(Some(place.path())).unwrap();
        (0..4).for_each(|i| carried.push(lists(i)).unwrap());
        for round in 0..5 {
            for i in 0..4 {
                assert_eq!(carried.take(i).unwrap(), lists(i + round));
                carried.put(i, lists(i + round + 1)).unwrap();
            }
            assert_eq!(carried.get(2).unwrap(), carried.get(2).unwrap());
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        // A file that was read to its end is empty.
        let files = carried.files.as_ref().unwrap();
        let sizes = [0, 1].map(|i| files.files[i].metadata().unwrap().len());
        assert_eq!(sizes, files.ends);
        assert!(sizes.contains(&0) && sizes.iter().any(|&n| n > 300), "{sizes:?}");
    }

    #[test]
    fn folders_that_cannot_be_written_to_are_said() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for bad in [place.path().join("none"), file] {
            let error = Examples::new(Some(&bad)).err().unwrap().to_string();
            assert!(error.contains("--spill") && error.contains(bad.to_str().unwrap()), "{error}");
        }
    }
}
