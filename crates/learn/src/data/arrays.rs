//! Arrays named as a model's inputs, the first axis counting examples.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use graph::Tensor;

use super::{
    Dataset, Example, Input, Options, Several, Target, class_index, class_number, describe_targets, no_such,
};
use crate::{Error, Result};

/// Arrays of one file.
pub(super) struct Arrays {
    path: PathBuf,
    arrays: Vec<(String, Tensor)>,
    targets: Vec<Target>,
    classes: Option<Vec<String>>,
    len: usize,
}

impl Arrays {
    pub(super) fn open(path: &Path, mut arrays: Vec<(String, Tensor)>, options: &Options) -> Result<Arrays> {
        let bad = |what: String| Error::file(path, what);
        let several = match &options.several {
            Some(Several::Listed(name)) => take(&mut arrays, Some(name), "").map_err(bad)?,
            Some(Several::Columns(_)) => {
                return Err(bad("holds arrays, which have no columns; name the array of labels".into()));
            }
            None => None,
        };
        let label = take(&mut arrays, options.label.as_deref(), "label").map_err(bad)?;
        let score = take(&mut arrays, options.score.as_deref(), "score").map_err(bad)?;
        let Some((first, tensor)) = arrays.first() else {
            return Err(bad("holds no array beside the labels".into()));
        };
        let len = *tensor.shape().first().ok_or_else(|| {
            bad(format!("array {first:?} is a single number; the first axis must count the examples"))
        })?;
        let all = arrays.iter().chain(&label).chain(&score).chain(&several);
        if let Some((name, other)) = all.into_iter().find(|(_, t)| t.shape().first() != Some(&len)) {
            return Err(bad(format!(
                "array {name:?} of shape {:?} does not hold {len} examples as {first:?} does",
                other.shape()
            )));
        }
        if len == 0 {
            return Err(bad("holds no examples".into()));
        }
        let targets = match (several, label, score) {
            (Some((name, labels)), ..) => labels_of(&labels, options.classes.as_deref())
                .map_err(|what| bad(format!("array {name:?}: {what}")))?,
            (None, Some((name, label)), _) => classes_of(&label, options.classes.as_deref(), len)
                .map_err(|what| bad(format!("array {name:?}: {what}")))?,
            (None, None, Some((name, score))) => {
                scores_of(&score, len).map_err(|what| bad(format!("array {name:?}: {what}")))?
            }
            (None, None, None) => vec![Target::None; len],
        };
        Ok(Arrays { path: path.into(), arrays, targets, classes: options.classes.clone(), len })
    }
}

/// Takes the array `wanted`, or `usual` if it is there.
fn take(
    arrays: &mut Vec<(String, Tensor)>,
    wanted: Option<&str>,
    usual: &str,
) -> std::result::Result<Option<(String, Tensor)>, String> {
    match (arrays.iter().position(|(name, _)| name == wanted.unwrap_or(usual)), wanted) {
        (Some(i), _) => Ok(Some(arrays.remove(i))),
        (None, None) => Ok(None),
        (None, Some(name)) => {
            let names: Vec<_> = arrays.iter().map(|(name, _)| name.as_str()).collect();
            Err(format!("holds no array {name:?}, only {}", names.join(", ")))
        }
    }
}

fn one_each(tensor: &Tensor, len: usize) -> std::result::Result<(), String> {
    match tensor.len() == len {
        true => Ok(()),
        false => Err(format!("shape {:?} is not one value for each example", tensor.shape())),
    }
}

pub(super) fn classes_of(
    tensor: &Tensor,
    names: Option<&[String]>,
    len: usize,
) -> std::result::Result<Vec<Target>, String> {
    one_each(tensor, len)?;
    let at = |i: usize, what: String| format!("row {i}: {what}");
    if let Ok(strings) = tensor.as_strings() {
        let names = names.ok_or("class names in an array need the classes in order")?;
        let index = |(i, s): (usize, &String)| class_index(names, s).map_err(|e| at(i, e));
        return strings.iter().enumerate().map(|pair| index(pair).map(Target::Class)).collect();
    }
    let ints = tensor.to_ints().map_err(|e| format!("{e}; classes are integers, scores go in `score`"))?;
    let index = |(i, label)| class_number(label, names).map_err(|e| at(i, e));
    ints.into_iter().enumerate().map(|pair| index(pair).map(Target::Class)).collect()
}

/// The set of labels of each row of 0 and 1.
fn labels_of(tensor: &Tensor, names: Option<&[String]>) -> std::result::Result<Vec<Target>, String> {
    let &[_, count] = tensor.shape() else {
        return Err(format!("shape {:?} is not one row of labels for each example", tensor.shape()));
    };
    if let Some(names) = names.filter(|names| names.len() != count) {
        return Err(format!("has {count} labels, {} are given", names.len()));
    }
    let ints = tensor.to_ints().map_err(|e| format!("{e}; labels are 0 or 1"))?;
    if let Some(at) = ints.iter().position(|x| !(0..=1).contains(x)) {
        return Err(format!("row {}: {} is no label; labels are 0 or 1", at / count.max(1), ints[at]));
    }
    let held = |row: &[i64]| Target::labels((0..count).filter(|&i| row[i] == 1).collect());
    Ok(ints.chunks_exact(count.max(1)).map(held).collect())
}

fn scores_of(tensor: &Tensor, len: usize) -> std::result::Result<Vec<Target>, String> {
    one_each(tensor, len)?;
    let values: Vec<f64> = match tensor.values::<f64>() {
        Ok(values) => values.into_owned(),
        Err(_) => tensor.to_f32().map_err(|e| e.to_string())?.iter().map(|&v| v.into()).collect(),
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(format!("row {i}: score {} is not a finite number", values[i])),
        None => Ok(values.into_iter().map(Target::Score).collect()),
    }
}

/// Row `i` of the first axis, with shape `[1, ..]`.
fn row(tensor: &Tensor, i: usize) -> Result<Tensor> {
    let mut shape = tensor.shape().to_vec();
    let rows = std::mem::replace(&mut shape[0], 1);
    let width = tensor.bytes().len() / rows;
    let bytes = Bytes::copy_from_slice(&tensor.bytes()[i * width..(i + 1) * width]);
    Ok(Tensor::from_bytes(tensor.dtype(), &shape, bytes)?.aligned())
}

/// Tensors one after another along the first axis: examples made into a batch.
///
/// # Errors
/// [`Error::Input`] when there are none, or types or the other sizes differ.
pub fn concat(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some((first, rest)) = tensors.split_first() else {
        return Err(Error::input("a batch of nothing"));
    };
    let inner = |t: &Tensor| t.shape().get(1..).map(<[usize]>::to_vec);
    if first.dtype().is_packed() || first.as_strings().is_ok() || first.rank() == 0 {
        return Err(Error::input(format!("tensors like {}{:?} make no batch", first.dtype(), first.shape())));
    }
    if let Some(other) = rest.iter().find(|t| t.dtype() != first.dtype() || inner(t) != inner(first)) {
        return Err(Error::input(format!(
            "{}{:?} and {}{:?} make no batch: all but the first size must be equal",
            first.dtype(),
            first.shape(),
            other.dtype(),
            other.shape()
        )));
    }
    let mut shape = first.shape().to_vec();
    shape[0] = tensors.iter().map(|t| t.shape()[0]).sum();
    let mut out = Tensor::zeros(first.dtype(), &shape)?;
    let mut left = out.bytes_mut()?;
    for tensor in tensors {
        let (now, later) = left.split_at_mut(tensor.bytes().len());
        now.copy_from_slice(tensor.bytes());
        left = later;
    }
    Ok(out)
}

impl Dataset for Arrays {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, i: usize) -> Result<Example> {
        if i >= self.len {
            return Err(no_such(i, self.len));
        }
        let arrays =
            self.arrays.iter().map(|(name, t)| Ok((name.clone(), row(t, i)?))).collect::<Result<_>>()?;
        Ok(Example { id: format!("row {i}"), input: Input::Arrays(arrays), target: self.target(i) })
    }

    fn target(&self, i: usize) -> Target {
        self.targets.get(i).cloned().unwrap_or(Target::None)
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn describe(&self) -> String {
        let arrays: Vec<_> =
            self.arrays.iter().map(|(n, t)| format!("{n} {}{:?}", t.dtype(), t.shape())).collect();
        let targets = describe_targets(self.targets.iter().cloned(), self.classes());
        format!("{}: {} examples, {}, {targets}", self.path.display(), self.len, arrays.join(", "))
    }
}
