//! From the examples of a data set to a model's inputs: images through their preprocessing, texts through the
//! tokenizer, arrays as they are; several examples a batch where the model allows it.

use std::sync::Arc;

use graph::{Dim, Fact, Tensor};
use learn::Input;
use learn::image::Preprocess;
use learn::text::{Encoded, Tokenizer, Tokens};

use crate::runner::check_finite;
use crate::shapes::cast;
use crate::{DType, Error, Model, Result};

/// How examples are shown to a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most examples a batch, when the model leaves that open.
    pub batch: usize,
    /// Are arrays with NaN or infinity let through?
    pub allow_nan: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { batch: 32, allow_nan: false }
    }
}

/// Most tokens of a batch of several texts.
const TOKENS: usize = 512;
/// Most numbers of a batch of several images or arrays; layers make more of them.
const NUMBERS: usize = 1 << 13;

/// Makes a model's inputs of examples.
pub struct Feeder {
    inputs: Vec<(String, Fact)>,
    preprocess: Option<Preprocess>,
    tokenizer: Option<Arc<Tokenizer>>,
    options: Options,
    /// The batch size that the model insists on.
    fixed: Option<usize>,
}

/// One example, ready to be put into a batch.
#[derive(Debug)]
pub enum Prepared {
    /// Tensors by name, the first size being 1.
    Arrays(Vec<(String, Tensor)>),
    /// The tokens of one text or two.
    Text(Encoded),
}

impl Prepared {
    /// Tokens of a text; 0 for others.
    pub(crate) fn length(&self) -> usize {
        match self {
            Prepared::Text(text) => text.len(),
            Prepared::Arrays(_) => 0,
        }
    }

    /// Are so many of them no more than a batch of several may be?
    fn fits(&self, count: usize) -> bool {
        let fits = |each: usize, most: usize| count.saturating_mul(each) <= most;
        match self {
            Prepared::Text(text) => fits(text.len(), TOKENS),
            Prepared::Arrays(arrays) => fits(arrays.iter().map(|(_, tensor)| tensor.len()).sum(), NUMBERS),
        }
    }
}

/// Several examples as one set of inputs.
#[derive(Debug)]
pub struct Batch {
    /// Which examples, by their index in what was given.
    pub rows: Vec<usize>,
    /// The inputs by name. Their first size can be greater than the number of rows when the model insists.
    pub arrays: Vec<(String, Tensor)>,
    /// For texts: 1 for tokens, 0 for padding, i64 of shape `[examples, tokens]`.
    pub mask: Option<Tensor>,
}

/// What an input of a model for texts takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    Ids,
    Mask,
    Types,
    Positions,
}

pub(crate) fn role(name: &str, inputs: usize) -> Option<Role> {
    let name = name.to_lowercase();
    if name.contains("mask") {
        Some(Role::Mask)
    } else if name.contains("type_id") || name.contains("segment") || name.contains("token_type") {
        Some(Role::Types)
    } else if name.contains("position") {
        Some(Role::Positions)
    } else if inputs == 1 || name.contains("ids") || name.contains("token") {
        Some(Role::Ids)
    } else {
        None
    }
}

impl Feeder {
    /// A feeder for this model.
    ///
    /// # Errors
    /// When the model's inputs contradict each other.
    pub fn new(model: &Model, options: &Options) -> Result<Feeder> {
        let inputs: Vec<(String, Fact)> =
            model.inputs().into_iter().map(|(name, fact)| (name.to_owned(), fact.clone())).collect();
        let first = |fact: &Fact| fact.shape().and_then(|s| s.first()).and_then(Dim::size);
        let fixed = inputs.iter().find_map(|(_, fact)| first(fact));
        if fixed == Some(0) {
            return Err(Error::input("the model takes batches of no examples"));
        }
        Ok(Feeder {
            inputs,
            preprocess: model.preprocess().cloned(),
            tokenizer: model.tokenizer().cloned(),
            options: options.clone(),
            fixed,
        })
    }

    /// Makes this example ready.
    ///
    /// # Errors
    /// When the model does not take such examples, or a tokenizer or array is missing.
    pub fn prepare(&self, input: &Input) -> Result<Prepared> {
        match input {
            Input::Arrays(arrays) => self.arrays(arrays).map(Prepared::Arrays),
            Input::Image(image) => {
                let tensor = match &self.preprocess {
                    Some(preprocess) => preprocess.apply(image)?,
                    None => self.guessed()?.apply(image)?,
                };
                self.image(&tensor).map(Prepared::Arrays)
            }
            Input::Text(_) | Input::Pair(..) => Ok(Prepared::Text(self.tokenizer()?.encode(input)?)),
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_deref().ok_or_else(|| {
            Error::input(
                "a text needs a tokenizer: put tokenizer.json beside the model, or give it with --tokenizer",
            )
        })
    }

    fn arrays(&self, arrays: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        if !self.options.allow_nan {
            check_finite(arrays)?;
        }
        // An array without a name of its own is for the only input there is.
        if let ([(_, tensor)], [(name, _)]) = (arrays, self.inputs.as_slice()) {
            return Ok(vec![(name.clone(), tensor.clone())]);
        }
        let found = self.inputs.iter().map(|(name, fact)| {
            let array = arrays.iter().find(|(n, _)| n == name);
            array.cloned().ok_or_else(|| {
                let have: Vec<&str> = arrays.iter().map(|(n, _)| n.as_str()).collect();
                let have = have.join(", ");
                Error::input(format!("input {name:?} ({fact}) is missing; the data have the arrays {have}"))
            })
        });
        found.collect()
    }

    /// The tensor of an image as the model's only input.
    fn image(&self, tensor: &Tensor) -> Result<Vec<(String, Tensor)>> {
        match self.inputs.as_slice() {
            [(name, fact)] => Ok(vec![(name.clone(), cast(tensor, fact.dtype().unwrap_or(DType::F32))?)]),
            inputs => {
                let names: Vec<&str> = inputs.iter().map(|(n, _)| n.as_str()).collect();
                Err(Error::input(format!("an image is one input, the model takes {}", names.join(", "))))
            }
        }
    }

    fn guessed(&self) -> Result<Preprocess> {
        let fact = self.inputs.first().map(|(_, fact)| fact);
        let shape: Vec<Option<usize>> =
            fact.and_then(Fact::shape).unwrap_or_default().iter().map(Dim::size).collect();
        let (preprocess, said) = Preprocess::guess(&shape)?;
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| tracing::warn!("{said}; say it with --preprocess"));
        Ok(preprocess)
    }

    /// The number of tokens that the model insists on.
    fn fixed_tokens(&self) -> Option<usize> {
        self.inputs.iter().find_map(|(_, fact)| fact.shape()?.get(1)?.size())
    }

    /// Does the model insist on a number of examples?
    pub fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// Most examples a batch.
    pub fn most(&self) -> usize {
        self.fixed.unwrap_or(self.options.batch).max(1)
    }

    /// Fewest examples a batch: fewer would be filled up by a model that insists on a batch size.
    pub fn least(&self) -> usize {
        self.fixed.unwrap_or(1).max(1)
    }

    /// Puts examples into batches for a thread each: those of equal shape together, texts by their tokens so that little is
    /// padded, and few large ones so that what lies between the layers stays in the caches.
    ///
    /// # Errors
    /// When examples do not fit the model.
    pub fn batches(&self, prepared: &[Prepared]) -> Result<Vec<Batch>> {
        let most = self.most();
        self.packed(prepared, &|rows| {
            // Of those in order the last is the longest.
            let fits = |&count: &usize| self.is_fixed() || prepared[rows[count - 1]].fits(count);
            (1..=rows.len().min(most)).take_while(fits).last().unwrap_or(1)
        })
    }

    /// Puts examples into batches of at most so many.
    ///
    /// # Errors
    /// As [`Feeder::batches`].
    pub fn batches_of(&self, prepared: &[Prepared], most: usize) -> Result<Vec<Batch>> {
        self.packed(prepared, &|_| most.max(1))
    }

    /// Batches of so many of the first of these rows, which are in order.
    fn packed(&self, prepared: &[Prepared], fit: &dyn Fn(&[usize]) -> usize) -> Result<Vec<Batch>> {
        // Without a mask the model would take padding for text.
        let masked = self.inputs.iter().any(|(name, _)| role(name, self.inputs.len()) == Some(Role::Mask));
        let together = |a: &Prepared, b: &Prepared| match (a, b) {
            (Prepared::Text(_), Prepared::Text(_)) => masked,
            (Prepared::Arrays(a), Prepared::Arrays(b)) => {
                a.iter().map(|(_, t)| t.shape()).eq(b.iter().map(|(_, t)| t.shape()))
            }
            _ => false,
        };
        let mut order: Vec<usize> = (0..prepared.len()).collect();
        order.sort_by_key(|&i| prepared[i].length());
        let mut batches = Vec::new();
        for mut rows in order.chunk_by(|&a, &b| together(&prepared[a], &prepared[b])) {
            while !rows.is_empty() {
                let (batch, rest) = rows.split_at(fit(rows).min(rows.len()));
                batches.push(self.pack(batch, prepared)?);
                rows = rest;
            }
        }
        Ok(batches)
    }

    fn pack(&self, rows: &[usize], prepared: &[Prepared]) -> Result<Batch> {
        // A model that insists on a batch size gets the last example as often as needed.
        let wanted = self.fixed.unwrap_or(rows.len()).max(rows.len());
        let filled = rows.iter().chain(std::iter::repeat(&rows[rows.len() - 1])).take(wanted);
        let mut texts = Vec::new();
        let mut arrays: Vec<(&str, Vec<&Tensor>)> = Vec::new();
        for &row in filled {
            match &prepared[row] {
                Prepared::Text(text) => texts.push(text),
                Prepared::Arrays(of) => {
                    for (i, (name, tensor)) in of.iter().enumerate() {
                        match arrays.get_mut(i) {
                            Some((_, list)) => list.push(tensor),
                            None => arrays.push((name, vec![tensor])),
                        }
                    }
                }
            }
        }
        let rows = rows.to_vec();
        if texts.is_empty() {
            let stack = |(name, list): (&str, Vec<&Tensor>)| match list.as_slice() {
                [one] => Ok((name.to_owned(), (*one).clone())),
                many => Ok((name.to_owned(), learn::data::concat(many)?)),
            };
            let arrays = arrays.into_iter().map(stack).collect::<Result<_>>()?;
            return Ok(Batch { rows, arrays, mask: None });
        }
        let mut tokens = self.tokenizer()?.batch(&texts)?;
        if let Some(width) = self.fixed_tokens() {
            for tensor in [&mut tokens.input_ids, &mut tokens.attention_mask, &mut tokens.token_type_ids] {
                *tensor = widened(tensor, width)?;
            }
        }
        let input = |(name, fact): &(String, Fact)| self.token_input(name, fact, &tokens);
        let arrays = self.inputs.iter().map(input).collect::<Result<_>>()?;
        Ok(Batch { rows, arrays, mask: Some(tokens.attention_mask) })
    }

    fn token_input(&self, name: &str, fact: &Fact, tokens: &Tokens) -> Result<(String, Tensor)> {
        let tensor = match role(name, self.inputs.len()) {
            Some(Role::Ids) => tokens.input_ids.clone(),
            Some(Role::Mask) => tokens.attention_mask.clone(),
            Some(Role::Types) => tokens.token_type_ids.clone(),
            Some(Role::Positions) => {
                let shape = tokens.input_ids.shape();
                let width = shape.get(1).copied().unwrap_or(0).max(1);
                Tensor::build::<i64>(shape, |out| {
                    out.iter_mut().enumerate().for_each(|(i, v)| *v = (i % width) as i64);
                    Ok(())
                })?
            }
            None => {
                return Err(Error::input(format!("input {name:?} ({fact}) cannot be made of a text")));
            }
        };
        Ok((name.to_owned(), cast(&tensor, fact.dtype().unwrap_or(DType::I64))?))
    }
}

/// The rows of an i64 matrix with zeros up to this width.
fn widened(tensor: &Tensor, width: usize) -> Result<Tensor> {
    let (rows, used) = (tensor.shape()[0], tensor.shape()[1]);
    if used > width {
        return Err(Error::input(format!("a text has {used} tokens, the model takes {width}")));
    }
    let values = tensor.values::<i64>()?;
    Ok(Tensor::build::<i64>(&[rows, width], |out| {
        for row in 0..rows {
            out[row * width..row * width + used].copy_from_slice(&values[row * used..(row + 1) * used]);
        }
        Ok(())
    })?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn feeder(names: &[&str], fixed: Option<usize>, batch: usize) -> Feeder {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nincomprehensibilities\n";
        std::fs::write(folder.path().join("vocab.txt"), vocabulary).unwrap();
        let fact = Fact::tensor(DType::I64, vec![Dim::Unknown; 2]);
        Feeder {
            inputs: names.iter().map(|name| ((*name).to_owned(), fact.clone())).collect(),
            preprocess: None,
            tokenizer: Some(Arc::new(Tokenizer::open(folder.path(), None).unwrap())),
            options: Options { batch, allow_nan: false },
            fixed,
        }
    }

    fn rows(batches: &[Batch]) -> Vec<Vec<usize>> {
        batches.iter().map(|batch| batch.rows.clone()).collect()
    }

    #[test]
    fn texts_go_together_by_their_tokens() {
        let of = feeder(&["input_ids", "attention_mask"], None, 32);
        let text = |words: &str, times: usize| Input::Text([words].repeat(times).join(" "));
        // The first has the most letters and the fewest tokens.
        let inputs = [text("incomprehensibilities", 3), text("a", 9), text("a", 4), text("a", 8)];
        let prepared: Vec<Prepared> = inputs.iter().map(|input| of.prepare(input).unwrap()).collect();
        assert_eq!(rows(&of.batches_of(&prepared, 2).unwrap()), [[0, 2], [3, 1]]);
        let whole = of.batches(&prepared).unwrap().remove(0);
        assert_eq!((whole.rows, whole.arrays[0].1.shape()), (vec![0, 2, 3, 1], &[4, 11][..]));
        let mask = whole.mask.unwrap();
        let counts: Vec<i64> =
            mask.as_slice::<i64>().unwrap().chunks(11).map(|row| row.iter().sum()).collect();
        assert_eq!(counts, [5, 6, 10, 11]);

        // Without a mask nothing may be padded; without a tokenizer there are no tokens.
        let bare = feeder(&["input_ids"], None, 32);
        assert_eq!(bare.batches(&prepared).unwrap().len(), 4);
        let without = Feeder { tokenizer: None, ..bare };
        assert!(without.prepare(&inputs[0]).unwrap_err().to_string().contains("--tokenizer"));
    }

    #[test]
    fn batches_of_long_texts_and_large_arrays_are_small() {
        let of = feeder(&["input_ids", "attention_mask"], None, 32);
        let lengths = (0..100).map(|i| 3 * i % 100).chain([TOKENS]);
        let texts = lengths.map(|length| of.prepare(&Input::Text(["a"].repeat(length).join(" "))).unwrap());
        let texts: Vec<Prepared> = texts.collect();
        let batches = of.batches(&texts).unwrap();
        let seen: BTreeSet<usize> = batches.iter().flat_map(|batch| batch.rows.clone()).collect();
        assert_eq!(seen.len(), texts.len());
        for batch in &batches {
            let shape = batch.arrays[0].1.shape();
            assert!(shape[0] <= 32 && (shape[0] * shape[1] <= TOKENS || shape[0] == 1), "{shape:?}");
        }
        assert_eq!(batches.last().unwrap().rows, [100], "more than all others may have together");
        assert_eq!(batches[0].rows.len(), 22, "of up to 23 tokens");

        let array = |size: usize| {
            Prepared::Arrays(vec![("x".into(), Tensor::new(&[1, size], &vec![0f32; size]).unwrap())])
        };
        let counts = |of: &Feeder, size: usize| -> Vec<usize> {
            let arrays: Vec<Prepared> = (0..40).map(|_| array(size)).collect();
            of.batches(&arrays).unwrap().iter().map(|batch| batch.rows.len()).collect()
        };
        assert_eq!(counts(&of, 10), [32, 8]);
        assert_eq!(counts(&of, NUMBERS / 16), [16, 16, 8]);
        assert_eq!(counts(&of, 2 * NUMBERS), [1; 40]);
        // A model that insists on a number of examples gets it.
        assert_eq!(counts(&feeder(&["x"], Some(20), 32), 2 * NUMBERS), [20, 20]);
    }
}
