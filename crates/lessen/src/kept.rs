//! What a search keeps, so that a run that was killed can go on: how scores are written, and what they depend on.

use std::path::Path;

use sha2::{Digest, Sha256};
use shrink::Score;
use shrink::job::{Job, Key, Store};

use crate::shrink::Request;
use crate::{Model, Result, provenance};

/// Numbers of a score.
const NUMBERS: usize = 5;

/// A score as bytes, to the last bit.
pub(crate) fn write(score: &Score) -> Vec<u8> {
    let Score { original, value, lost, distance, .. } = *score;
    let numbers: [f64; NUMBERS] = [original, value, lost.0, lost.1, distance];
    let examples = (score.examples as u64).to_le_bytes();
    let numbers = numbers.iter().flat_map(|x| x.to_le_bytes());
    examples.into_iter().chain(numbers).chain(score.metric.bytes()).collect()
}

/// What [`write`] wrote; `None` when it did not.
pub(crate) fn read(bytes: &[u8]) -> Option<Score> {
    let (examples, rest) = bytes.split_first_chunk::<8>()?;
    let (numbers, metric) = rest.split_at_checked(8 * NUMBERS)?;
    let [original, value, low, high, distance] = *numbers.as_chunks::<8>().0 else { return None };
    let number = f64::from_le_bytes;
    Some(Score {
        metric: std::str::from_utf8(metric).ok()?.into(),
        original: number(original),
        value: number(value),
        lost: (number(low), number(high)),
        examples: usize::try_from(u64::from_le_bytes(*examples)).ok()?,
        distance: number(distance),
    })
}

/// A folder for what a search finds; nobody else works in it as long as this lives. When nothing was found there is none.
pub(crate) struct Work {
    job: Option<Job>,
    base: Key,
}

impl Work {
    /// Opens it; `None` when it is not known what the data are. `depends` says what else findings depend on.
    ///
    /// # Errors
    /// When another process works in it, the folder is something else, or cannot be written to.
    pub fn open(folder: &Path, original: &Model, request: &Request, depends: &str) -> Result<Option<Work>> {
        let lessons = request.tune.is_some_and(|tune| tune.data.is_some());
        let data = [
            (request.data.is_some(), request.data_path),
            (lessons, request.tune_path),
            (request.calibrate_on.is_some(), request.calibration_path),
        ];
        let mut base = Key::of(&[
            env!("CARGO_PKG_VERSION").as_bytes(),
            &Sha256::digest(format::onnx::to_bytes(original.inner())?),
            format!("{:?} {depends}", original.preprocess()).as_bytes(),
        ]);
        for (given, path) in data {
            match path {
                Some(path) => base = base.part(&provenance::content(path)?.sha256),
                None if given => return Ok(None),
                None => {}
            }
        }
        let asked = [("work".to_owned(), "what a search has found so far".to_owned())].into();
        Ok(Some(Work { job: Some(Job::open(folder, &asked)?), base }))
    }

    /// Where findings are put.
    pub fn store(&self) -> Option<Store> {
        self.job.as_ref().map(|job| job.store().within(self.base))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(Err(e)) = self.job.take().map(Job::leave) {
            tracing::warn!("{e}");
        }
    }
}

/// Removes what was kept in a folder, when all is done and written.
///
/// # Errors
/// When another process works in it, or it cannot be removed.
pub fn discard(folder: &Path) -> Result<()> {
    Ok(Job::discard(folder)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_read_as_they_are_written() {
        let score = Score {
            metric: "top-1 accuracy".into(),
            original: 0.1 + 0.2,
            value: f64::NAN,
            lost: (-0.0, 1e-300),
            examples: 12_345,
            distance: std::f64::consts::PI,
        };
        let bytes = write(&score);
        assert_eq!(write(&read(&bytes).unwrap()), bytes);
        assert_eq!(read(&bytes).unwrap().metric, score.metric);
        for end in [0, 7, 8, 40, 47] {
            assert!(read(&bytes[..end]).is_none(), "{end}");
        }
    }
}
