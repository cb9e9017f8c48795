//! Examples that lessen makes itself for a model, to calibrate on where the user has no data: pictures, texts, token ids
//! or numbers, by what the model's inputs are. They are not what the model will see, and prove nothing.

use std::ops::Range;
use std::sync::Arc;

use graph::{Dim, Fact, Graph, Tensor, ValueId};
use learn::data::{Dataset, Example, Target};
use learn::image::{Layout, Preprocess, Resize};
use learn::random::Random;
use learn::text::Tokenizer;
use learn::{Input, made};

use crate::eval::SEED;
use crate::feed::{Role, role};
use crate::shapes::{by, cast};
use crate::{DType, Error, Model, Result};

/// The side of a picture when neither the model nor its preprocessing says one, in pixels.
const SIDE: u32 = 224;
/// Longest made-up rows of token ids.
const TOKENS: usize = 64;

/// Examples for a model, made by lessen.
pub(crate) struct Made {
    count: usize,
    kind: Kind,
    /// What had to be guessed.
    guessed: Option<String>,
}

enum Kind {
    Pictures { height: u32, width: u32 },
    Texts(Arc<Tokenizer>),
    Arrays(Vec<Array>),
}

/// One input, of one example.
struct Array {
    name: String,
    dtype: DType,
    /// 0 where the number of tokens is open.
    sizes: Vec<usize>,
    what: What,
}

/// What an input's numbers are.
#[derive(Clone, Debug, PartialEq)]
enum What {
    Normal,
    Same(f32),
    Positions,
    /// Any of these.
    Ids(Range<usize>),
}

impl Made {
    /// So many examples for this model.
    ///
    /// # Errors
    /// When it has an input that no example can be made for.
    pub fn new(model: &Model, count: usize) -> Result<Made> {
        let inputs = model.inputs();
        let roles: Vec<Option<Role>> = inputs.iter().map(|(name, _)| role(name, inputs.len())).collect();
        let whole = |fact: &Fact| fact.dtype().is_some_and(DType::is_int) && fact.rank() == Some(2);
        let tokens = inputs.iter().all(|(_, fact)| whole(fact)) && roles.contains(&Some(Role::Ids));
        let made = |kind| Made { count, kind, guessed: None };
        if let [(_, fact)] = inputs.as_slice()
            && fact.rank() == Some(4)
            && let Some(made) = pictures(model, fact, count)?
        {
            return Ok(made);
        }
        if let (true, Some(tokenizer)) = (tokens && roles.iter().all(Option::is_some), model.tokenizer()) {
            return Ok(made(Kind::Texts(tokenizer.clone())));
        }
        let graph = &model.inner().graph;
        let array = |((name, fact), role): (&(&str, &Fact), &Option<Role>)| {
            array(graph, name, fact, role.filter(|_| tokens))
        };
        let arrays: Vec<Array> = inputs.iter().zip(&roles).map(array).collect::<Result<_>>()?;
        Ok(made(Kind::Arrays(arrays)))
    }

    /// What had to be guessed to make them, in a sentence.
    pub fn guessed(&self) -> Option<&str> {
        self.guessed.as_deref()
    }
}

/// Pictures for an input of four axes; `None` when it does not take images.
fn pictures(model: &Model, fact: &Fact, count: usize) -> Result<Option<Made>> {
    let shape: Vec<Option<usize>> = fact.shape().unwrap_or_default().iter().map(Dim::size).collect();
    let (preprocess, guessed) = match model.preprocess() {
        Some(preprocess) => (preprocess.clone(), None),
        None => match Preprocess::guess(&shape) {
            Ok((preprocess, told)) => (preprocess, Some(told)),
            Err(_) => return Ok(None),
        },
    };
    let own = match (preprocess.layout, shape.as_slice()) {
        (Layout::Nchw, &[_, _, h, w]) | (Layout::Nhwc, &[_, h, w, _]) => [h, w],
        _ => [None; 2],
    };
    let side = |size: Option<usize>| match size.map(u32::try_from) {
        None => Ok(SIDE),
        Some(Ok(side @ 1..=4096)) => Ok(side),
        Some(_) => Err(Error::input(format!("the model's images of {fact} are too great to be made up"))),
    };
    let [height, width] = match (preprocess.resize, preprocess.crop) {
        (Some(Resize::Exact(height, width)), _) => [height, width],
        (Some(Resize::Shorter(side)), _) => [side; 2],
        (None, Some((height, width))) => [height, width],
        (None, None) => [side(own[0])?, side(own[1])?],
    };
    Ok(Some(Made { count, kind: Kind::Pictures { height, width }, guessed }))
}

/// How an input's numbers are made. Token ids are those of the table that they are looked up in.
fn array(graph: &Graph, name: &str, fact: &Fact, role: Option<Role>) -> Result<Array> {
    let cannot = |why: &str| {
        Error::input(format!(
            "no examples can be made for input {name:?} ({fact}): {why}; give data with --data"
        ))
    };
    let dtype = fact.dtype().ok_or_else(|| cannot("its type is not known"))?;
    let what = match role {
        Some(Role::Mask) => What::Same(1.0),
        Some(Role::Types) => What::Same(0.0),
        Some(Role::Positions) => What::Positions,
        Some(Role::Ids) => {
            let rows = graph.find(name).and_then(|id| table(graph, id));
            What::Ids(
                0..rows.filter(|rows| *rows > 0).ok_or_else(|| cannot("its greatest number is not known"))?,
            )
        }
        None if dtype.is_float() => What::Normal,
        None => return Err(cannot("what its numbers mean is not known")),
    };
    let dims = fact.shape().ok_or_else(|| cannot("its shape is not known"))?;
    let size = |(axis, dim): (usize, &Dim)| match (axis, dim.size()) {
        (0, _) => Ok(1),
        (_, Some(size)) => Ok(size),
        (1, None) if what != What::Normal => Ok(0),
        _ => Err(cannot("its size is not known")),
    };
    let sizes: Vec<usize> = dims.iter().enumerate().map(size).collect::<Result<_>>()?;
    if graph::tensor::count(&sizes)? > 1 << 28 {
        return Err(cannot("it is too great"));
    }
    Ok(Array { name: name.into(), dtype, sizes, what })
}

/// Rows of the constant table that a value's numbers name the rows of.
fn table(graph: &Graph, ids: ValueId) -> Option<usize> {
    let mut same = vec![ids];
    for (_, node) in graph.nodes() {
        let read = |i: usize| node.input(i).is_some_and(|v| same.contains(&v));
        if node.kind() == "Gather" && read(1) {
            let rows = node.input(0).and_then(|v| graph.constant(v)).and_then(|t| t.shape().first().copied());
            if rows.is_some() {
                return rows;
            }
        }
        if ["Cast", "Identity", "Reshape"].contains(&node.kind()) && read(0) {
            same.extend(node.output(0));
        }
    }
    None
}

impl Array {
    fn tensor(&self, random: &mut Random, tokens: usize) -> Result<Tensor> {
        let mut sizes = self.sizes.clone();
        if let Some(open @ 0) = sizes.get_mut(1) {
            *open = tokens;
        }
        let width = sizes.get(1).copied().unwrap_or(1).max(1);
        let exact = Tensor::build::<f64>(&sizes, |out| {
            for (i, v) in out.iter_mut().enumerate() {
                *v = match &self.what {
                    What::Normal => random.normal(),
                    What::Same(value) => f64::from(*value),
                    What::Positions => (i % width) as f64,
                    What::Ids(range) => (range.start + random.below(range.len())) as f64,
                };
            }
            Ok(())
        })?;
        cast(&exact, self.dtype)
    }
}

impl Dataset for Made {
    fn len(&self) -> usize {
        self.count
    }

    fn get(&self, i: usize) -> learn::Result<Example> {
        let input = match &self.kind {
            Kind::Pictures { height, width } => Input::Image(made::picture(SEED, i, *height, *width)),
            Kind::Texts(tokenizer) => {
                let odd = |random: &mut Random| tokenizer.word(random.below(tokenizer.vocabulary()));
                Input::Text(made::sentences(SEED, i, &odd))
            }
            Kind::Arrays(arrays) => {
                let mut random = made::random(SEED, i);
                // Few lengths, so that examples share a batch.
                let tokens = TOKENS >> random.below(3);
                let tensor = |array: &Array| {
                    let tensor = array.tensor(&mut random, tokens);
                    let tensor = tensor.map_err(|e| learn::Error::input(format!("{}: {e}", array.name)))?;
                    Ok((array.name.clone(), tensor))
                };
                Input::Arrays(arrays.iter().map(tensor).collect::<learn::Result<_>>()?)
            }
        };
        Ok(Example { id: format!("made {i}"), input, target: Target::None })
    }

    fn target(&self, _: usize) -> Target {
        Target::None
    }

    fn classes(&self) -> Option<&[String]> {
        None
    }

    fn describe(&self) -> String {
        let what = match &self.kind {
            Kind::Pictures { height, width } => format!("pictures of {height} x {width} pixels"),
            Kind::Texts(_) => "sentences of a small grammar with words of the model's vocabulary".into(),
            Kind::Arrays(arrays) => {
                let of = |array: &Array| match &array.what {
                    What::Normal => Some(format!("normal numbers of {}", by(&array.sizes))),
                    What::Ids(range) => Some(format!("token ids below {}", range.end)),
                    _ => None,
                };
                arrays.iter().filter_map(of).collect::<Vec<_>>().join(", ")
            }
        };
        format!("made by lessen itself: {what}")
    }
}
