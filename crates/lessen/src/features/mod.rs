//! What a trained model makes of examples: a row of numbers for each, which heads are fitted to and examples are picked by.

mod backbone;
mod cache;
mod plain;

use std::path::Path;

use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::head::Features;
use learn::{Example, Input};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::answer::{Answerer, Options, Task, part_size};
use crate::{Error, Result, feed};
pub(crate) use backbone::{Backbone, FEATURES, Tap, answering, backbone, claim, tapped, taps};
pub use plain::plain;

/// Which features of which examples.
#[derive(Clone)]
pub struct Wanted<'a> {
    /// The examples.
    pub data: &'a dyn Dataset,
    /// The node or value that makes the features; chosen when not given.
    pub node: Option<&'a str>,
    /// How examples are shown to the model.
    pub feed: feed::Options,
    /// A folder where features are kept for the next time; what a run that was killed has made is there, too.
    pub cache: Option<&'a Path>,
}

/// An example that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// What it is called.
    pub example: String,
    /// Why.
    pub why: String,
}

/// Features of the examples that could be read.
pub(crate) struct Learnt {
    pub features: Features,
    /// Which examples they are of, in ascending order.
    pub rows: Vec<usize>,
    pub skipped: Vec<Skipped>,
    /// Were all of them there already?
    pub cached: bool,
}

impl Learnt {
    /// These and the features of other examples.
    ///
    /// # Errors
    /// When those have another number of features.
    pub fn and(self, others: Learnt) -> Result<Learnt> {
        let columns = self.features.columns();
        if others.features.columns() != columns {
            let (a, b) = (columns, others.features.columns());
            return Err(Error::input(format!("some examples have {a} features and others {b}")));
        }
        let both = [&self, &others];
        let mut order: Vec<(usize, usize, usize)> = Vec::new();
        for (which, learnt) in both.iter().enumerate() {
            order.extend(learnt.rows.iter().enumerate().map(|(at, &row)| (row, which, at)));
        }
        order.sort_unstable();
        let values = order.iter().flat_map(|&(_, which, at)| both[which].features.row(at)).copied().collect();
        Ok(Learnt {
            features: Features::new(columns, values)?,
            rows: order.iter().map(|(row, ..)| *row).collect(),
            cached: self.cached && others.cached,
            skipped: [self.skipped, others.skipped].concat(),
        })
    }
}

/// Computes features of some examples, in ascending order, or of all; or reads those that were kept.
///
/// # Errors
/// When no example can be read, the model cannot be run, or examples have different numbers of features.
pub(crate) fn learn(
    backbone: &Backbone,
    wanted: &Wanted,
    some: Option<&[usize]>,
    cpu: &Cpu,
    progress: &dyn Fn(&str),
) -> Result<Learnt> {
    let subset = some.map(|rows| Subset { data: wanted.data, rows });
    let data = subset.as_ref().map_or(wanted.data, |subset| subset);
    let row_of = |at: usize| some.map_or(at, |rows| rows[at]);
    let mut place =
        wanted.cache.map(|folder| cache::Place::open(folder, &backbone.model, data)).transpose()?;
    let mut kept = place.as_ref().map(cache::Place::load).unwrap_or_default();
    let mut skipped = Vec::new();
    let of = |i: usize, why: learn::Error| Skipped {
        example: format!("example {}", row_of(i)),
        why: why.to_string(),
    };
    let absent = (0..kept.examples).filter(|i| kept.rows.binary_search(i).is_err());
    skipped.extend(absent.filter_map(|i| Some(of(i, data.get(i).err()?))));
    let cached = kept.examples == data.len();
    // Not Similarity: two texts of a pair go in together.
    let options = Options { feed: wanted.feed.clone(), output: Some(FEATURES.into()) };
    let answerer = Answerer::new(&backbone.model, cpu, Task::Classify, &options)?;
    let mut columns = kept.columns.or_else(|| backbone.width());
    let left: Vec<usize> = (kept.examples..data.len()).collect();
    let readable = left.iter().position(|&i| data.get(i).is_ok());
    let size = readable.map_or(Ok(1), |first| part_size(data, &left[first..]))?;
    for part in left.chunks(size) {
        let (mut rows, mut inputs): (Vec<usize>, Vec<Input>) = Default::default();
        for (&i, read) in part.iter().zip(cpu.pool().map(part.len(), |i| data.get(part[i]))) {
            match read {
                Ok(Example { input, .. }) => {
                    rows.push(i);
                    inputs.push(input);
                }
                Err(e) => skipped.push(of(i, e)),
            }
        }
        let mut values = Vec::new();
        for answer in answerer.answers(&inputs)? {
            let row = answer.outputs.into_iter().next().unwrap_or_default();
            if *columns.get_or_insert(row.len()) != row.len() {
                return Err(Error::input(format!(
                    "{} gives {} numbers for one example and {} for another; features are as many for each",
                    backbone.nodes.join(" + "),
                    columns.unwrap_or(0),
                    row.len()
                )));
            }
            values.extend(row);
        }
        let examples = part[0]..part[part.len() - 1] + 1;
        if let Some(place) = &mut place {
            place.append(examples, columns.unwrap_or(0), &rows, &values)?;
        }
        kept.rows.extend(rows);
        kept.values.extend(values);
        progress(&format!("features of {} of {} examples", part[part.len() - 1] + 1, data.len()));
    }
    if kept.rows.is_empty() {
        return Err(data.get(0).err().map_or_else(|| Error::input("there are no examples"), Error::from));
    }
    let features = Features::new(columns.unwrap_or(0), kept.values)?;
    let rows = kept.rows.into_iter().map(row_of).collect();
    Ok(Learnt { features, rows, skipped, cached })
}

/// Some examples of a data set.
pub(crate) struct Subset<'a> {
    pub data: &'a dyn Dataset,
    /// In ascending order.
    pub rows: &'a [usize],
}

impl Dataset for Subset<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&self, i: usize) -> learn::Result<Example> {
        self.data.get(self.rows.get(i).copied().unwrap_or(usize::MAX))
    }

    fn target(&self, i: usize) -> Target {
        self.rows.get(i).map_or(Target::None, |&row| self.data.target(row))
    }

    fn classes(&self) -> Option<&[String]> {
        self.data.classes()
    }

    fn describe(&self) -> String {
        format!("{} of {}", self.len(), self.data.describe())
    }
}

/// What an example is, whatever the answer to it; texts are compared without regard to case and spaces.
pub(crate) fn print(input: &Input) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut text = |text: &str| {
        for word in text.split_whitespace() {
            hash.update(word.to_lowercase());
            hash.update([b' ']);
        }
        hash.update([0]);
    };
    match input {
        Input::Text(a) => text(a),
        Input::Pair(a, b) => [a, b].into_iter().for_each(|t| text(t)),
        Input::Image(image) => {
            hash.update(format!("{:?} {} {}", image.color(), image.width(), image.height()));
            hash.update(image.as_bytes());
        }
        Input::Arrays(arrays) => {
            for (name, tensor) in arrays {
                hash.update(name);
                hash.update(format!("{:?}", tensor.shape()));
                match tensor.to_f32() {
                    Ok(values) => values.iter().for_each(|x| hash.update(x.to_le_bytes())),
                    Err(_) => hash.update(format!("{tensor:?}")),
                }
            }
        }
    }
    hash.finalize().into()
}
