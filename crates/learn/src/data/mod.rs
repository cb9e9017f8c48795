//! Data sets: examples to calibrate with and to judge a model by.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::image::DynamicImage;
use graph::Tensor;

use crate::{Error, Result};

mod arrays;
mod folder;
mod idx;
pub mod npy;
pub mod npz;
mod packed;
mod parquet;
pub mod rows;
mod source;
mod split;
mod table;

pub use arrays::concat;
pub use folder::decode;
pub use source::LIMIT;
#[cfg(feature = "text")]
pub(crate) use source::load;
pub use split::split;

/// What a model is shown.
#[derive(Clone, Debug)]
pub enum Input {
    /// Tensors by the name of the model's input, each of shape `[1, ..]`.
    Arrays(Vec<(String, Tensor)>),
    /// An image; [`crate::image::Preprocess`] makes a tensor of it.
    Image(DynamicImage),
    /// A text.
    Text(String),
    /// Two texts that belong together, such as premise and hypothesis.
    Pair(String, String),
}

/// The right answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The index of a class.
    Class(usize),
    /// The indices of all labels that hold, in ascending order; perhaps none.
    Labels(Arc<[usize]>),
    /// A number, such as how much two texts mean the same; always finite.
    Score(f64),
    /// Not known.
    None,
}

impl Target {
    /// The set of these labels, in whatever order and however often they are named.
    fn labels(mut held: Vec<usize>) -> Target {
        held.sort_unstable();
        held.dedup();
        Target::Labels(held.into())
    }
}

/// One example of a data set.
#[derive(Clone, Debug)]
pub struct Example {
    /// For reports: the file's name within the data set, or `line 7`, or `row 7`.
    pub id: String,
    /// What the model is shown.
    pub input: Input,
    /// The right answer.
    pub target: Target,
}

/// Examples in a fixed order.
pub trait Dataset: Send + Sync {
    /// Number of examples; never 0 for a data set that [`open`] made.
    fn len(&self) -> usize;

    /// The example at index `i`, read and decoded now.
    ///
    /// # Errors
    /// When there is no such example, or it cannot be read; the message names its file.
    fn get(&self, i: usize) -> Result<Example>;

    /// The right answer of example `i`, without decoding the example; [`Target::None`] when there is no such
    /// example.
    fn target(&self, i: usize) -> Target;

    /// The names of the classes by index, when they have names.
    fn classes(&self) -> Option<&[String]>;

    /// One line for people: what kind of data, how many, of how many classes.
    fn describe(&self) -> String;

    /// True when there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file of example `i`, when it has one of its own.
    fn file(&self, i: usize) -> Option<PathBuf> {
        let _ = i;
        None
    }

    /// Reads every example, counts those that fail and keeps the messages of the first `most`.
    fn check(&self, most: usize) -> Check {
        let mut check = Check { examples: self.len(), ..Check::default() };
        for error in (0..self.len()).filter_map(|i| self.get(i).err()) {
            check.unreadable += 1;
            if check.messages.len() < most {
                check.messages.push(error.to_string());
            }
        }
        check
    }
}

/// What [`Dataset::check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Number of examples.
    pub examples: usize,
    /// How many of them cannot be read.
    pub unreadable: usize,
    /// Why, for the first of them.
    pub messages: Vec<String>,
}

/// Where the labels of an example are, when it can have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Several {
    /// A column for each label, which holds 0 or 1.
    Columns(Vec<String>),
    /// One column that lists the names of those that hold, with `;` or `|` between; or an array of 0 and 1 of shape
    /// `[examples, labels]`.
    Listed(String),
}

impl Several {
    /// The names of the columns.
    pub fn names(&self) -> &[String] {
        match self {
            Several::Columns(names) => names,
            Several::Listed(name) => std::slice::from_ref(name),
        }
    }
}

/// How to read data whose names or labels are not the usual ones.
#[derive(Clone, Debug)]
pub struct Options {
    /// The column of the text, or of the first text of a pair.
    pub text: Option<String>,
    /// The column of the second text of a pair.
    pub text_b: Option<String>,
    /// The column or array of the class: `label` unless given.
    pub label: Option<String>,
    /// The column or array of the score: `score` unless given.
    pub score: Option<String>,
    /// Where the labels are, when an example can have several.
    pub several: Option<Several>,
    /// The file of labels that belongs to an IDX file of images, when its name does not tell.
    pub labels: Option<PathBuf>,
    /// The names of the classes in the order of the model's outputs; else names are sorted.
    pub classes: Option<Vec<String>>,
    /// The most bytes that a file may hold once unpacked.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            text: None,
            text_b: None,
            label: None,
            score: None,
            several: None,
            labels: None,
            classes: None,
            limit: LIMIT,
        }
    }
}

/// Opens a data set; its kind is told by what `path` is:
///
/// - a folder of images (PNG, JPEG, BMP, GIF, WebP), one sub-folder a class, or without sub-folders for images
///   without labels; or one image;
/// - a folder with `labels.u8` and `NAME_0.png`, `NAME_1.png`..: each row of pixels is one square image;
/// - `.npz` or `.npy`: arrays named as the model's inputs, the first axis counting examples, and `label` (integers)
///   or `score` (floating point);
/// - a table (CSV, TSV, a JSON object a line, or Parquet) with the columns `text` or `text_a` and `text_b`, and `label` or
///   `score`; other usual names are known, [`Options`] can give them; without a header row: text and label, or two
///   texts and score. Where there is no text, all columns but the answers are numbers, one input. TSV is read
///   without quotes. A `.txt` file holds one text a line;
/// - an IDX file (MNIST) or a folder with one of images.
///
/// Tables and IDX files may be packed with gzip, but for Parquet, which packs its columns.
///
/// # Errors
/// When nothing can be read there, the data contradict themselves, or they unpack to more than
/// [`Options::limit`] bytes.
pub fn open(path: &Path, options: &Options) -> Result<Box<dyn Dataset>> {
    let load = |path| source::load(path, options.limit);
    Ok(match Form::of(path)? {
        Form::Packed => Box::new(packed::Packed::open(path, options)?),
        Form::Folder => match idx::images_in(path)? {
            Some(file) => idx::open(&file, load(&file)?, options)?,
            None => Box::new(folder::Folder::open(path, options)?),
        },
        Form::Npz => Box::new(arrays::Arrays::open(path, npz::read(path, options.limit)?, options)?),
        Form::Npy => {
            let array = ("input".to_string(), npy::read(path, options.limit)?);
            Box::new(arrays::Arrays::open(path, vec![array], options)?)
        }
        Form::Image => Box::new(folder::Folder::single(path)?),
        Form::Idx => idx::open(path, load(path)?, options)?,
        Form::Table => Box::new(match rows::Kind::at(path)? {
            rows::Kind::Parquet => table::Table::open(path, rows::Rows::open(path, options)?, options)?,
            _ => {
                let bytes = load(path)?;
                let rows = rows::Rows::new(path, Box::new(&bytes[..]), options, usize::MAX)?;
                table::Table::open(path, rows, options)?
            }
        }),
    })
}

/// Is this a table, which [`rows::Rows`] reads row by row?
///
/// # Errors
/// When it cannot be read.
pub fn is_table(path: &Path) -> Result<bool> {
    Ok(Form::of(path)? == Form::Table)
}

/// What a path holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Packed,
    Folder,
    Npz,
    Npy,
    Image,
    Idx,
    Table,
}

impl Form {
    /// By what the folder or the first bytes are; a table when they are nothing else.
    fn of(path: &Path) -> Result<Form> {
        if path.is_dir() {
            return Ok(if packed::is_packed(path) { Form::Packed } else { Form::Folder });
        }
        let head = source::head(path)?;
        Ok(if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            Form::Npz
        } else if head.starts_with(npy::MAGIC) {
            Form::Npy
        } else if folder::is_image(&head) {
            Form::Image
        } else {
            let unpacked = source::read_up_to(&mut rows::unpacked(path)?, 4).map_err(Error::io(path))?;
            if idx::is_idx(&unpacked) { Form::Idx } else { Form::Table }
        })
    }
}

/// "3 classes", "no labels" and so on, for [`Dataset::describe`].
fn describe_targets(targets: impl Iterator<Item = Target>, classes: Option<&[String]>) -> String {
    let (mut scores, mut sets) = (0usize, 0usize);
    let mut greatest = None;
    for target in targets {
        match target {
            Target::Class(c) => greatest = greatest.max(Some(c)),
            Target::Score(_) => scores += 1,
            Target::Labels(held) => {
                sets += 1;
                greatest = greatest.max(held.last().copied());
            }
            Target::None => {}
        }
    }
    match (greatest, classes) {
        (_, Some(names)) if sets > 0 => format!("any of {} labels", names.len()),
        (greatest, None) if sets > 0 => format!("any of {} labels", greatest.map_or(0, |last| last + 1)),
        (_, Some(names)) => format!("{} classes", names.len()),
        (Some(greatest), None) => format!("classes 0 to {greatest}"),
        (None, None) if scores > 0 => "with scores".into(),
        (None, None) => "no labels".into(),
    }
}

/// The index of class `name` in `names`.
fn class_index(names: &[String], name: &str) -> std::result::Result<usize, String> {
    names
        .iter()
        .position(|n| n == name)
        .ok_or_else(|| format!("class {name:?} is not among the {} classes given", names.len()))
}

/// A class index from an integer; with class names it must be one of theirs.
fn class_number(label: i64, names: Option<&[String]>) -> std::result::Result<usize, String> {
    let index = usize::try_from(label).map_err(|_| format!("label {label}: class indices start at 0"))?;
    match names {
        Some(names) if index >= names.len() => {
            Err(format!("label {label}: only {} classes are given", names.len()))
        }
        _ => Ok(index),
    }
}

/// The error for an index past the end.
fn no_such(i: usize, len: usize) -> Error {
    Error::input(format!("example {i} is asked for, but there are only {len}"))
}

#[cfg(test)]
mod tests;
