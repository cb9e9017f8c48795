//! Examples that lessen makes itself for a model, to calibrate on where the user has no data: pictures, texts, token ids
//! or numbers, by what the model's inputs are. They are not what the model will see, and prove nothing.

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
    /// Any numbers below this one.
    Ids(usize),
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
                rows.filter(|rows| *rows > 0).ok_or_else(|| cannot("its greatest number is not known"))?,
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
                    What::Ids(end) => random.below(*end) as f64,
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
                    What::Ids(end) => Some(format!("token ids below {end}")),
                    _ => None,
                };
                arrays.iter().filter_map(of).collect::<Vec<_>>().join(", ")
            }
        };
        format!("made by lessen itself: {what}")
    }
}

#[cfg(test)]
mod tests {
    use graph::Attrs;
    use graph::op::ramp;

    use super::*;
    use crate::feed::{Feeder, Options};

    fn model(facts: &[(&str, Fact)], table: Option<usize>) -> Model {
        let mut graph = Graph::new("g");
        for (name, fact) in facts {
            graph.add_input(name, fact.clone()).unwrap();
        }
        let mut out = graph.inputs[0];
        if let Some(rows) = table {
            let rows = graph.add_constant("table", ramp(&[rows, 2]));
            out = graph.append("look", "Gather", 17, &Attrs::new(), &[rows, out]).unwrap();
        }
        graph.outputs.push(out);
        graph.infer().unwrap();
        Model::new(graph::Model { graph, ..graph::Model::default() }).unwrap()
    }

    fn fact(dtype: DType, sizes: &[Option<usize>]) -> Fact {
        Fact::tensor(dtype, sizes.iter().map(|s| s.map_or(Dim::Unknown, Dim::from)).collect())
    }

    /// The tensors of the first examples, as the model gets them.
    fn tensors(model: &Model, count: usize) -> Vec<Vec<(String, Tensor)>> {
        let made = Made::new(model, count).unwrap();
        let feeder = Feeder::new(model, &Options::default()).unwrap();
        let prepared = |i: usize| feeder.prepare(&made.get(i).unwrap().input).unwrap();
        let batch = |i: usize| feeder.batches(&[prepared(i)]).unwrap().remove(0).arrays;
        (0..made.len()).map(batch).collect()
    }

    #[test]
    fn pictures_have_the_shape_and_the_scale_that_the_model_takes() {
        let shape = [None, Some(3), Some(20), Some(12)];
        let mut of = model(&[("image", fact(DType::F32, &shape))], None);
        let made = Made::new(&of, 3).unwrap();
        assert!(made.guessed().unwrap().contains("guessed") && made.describe().contains("20 x 12"));
        let plain = tensors(&of, 3);
        assert!(plain.iter().all(|inputs| inputs[0].1.shape() == [1, 3, 20, 12]));
        assert_eq!(plain, tensors(&of, 3));
        assert_ne!(plain[0], plain[1]);
        let values = plain[0][0].1.as_slice::<f32>().unwrap();
        assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
        of.set_preprocess("mean=0.5,std=0.25".parse().unwrap()).unwrap();
        assert!(Made::new(&of, 3).unwrap().guessed().is_none());
        let scaled = tensors(&of, 1);
        let scaled = scaled[0][0].1.as_slice::<f32>().unwrap();
        assert!(values.iter().zip(scaled).all(|(a, b)| ((a - 0.5) / 0.25 - b).abs() < 1e-5));
    }

    #[test]
    fn token_ids_are_rows_of_the_table_and_what_goes_with_them_fits() {
        let ids = || fact(DType::I64, &[None, None]);
        let of =
            model(&[("input_ids", ids()), ("attention_mask", ids()), ("token_type_ids", ids())], Some(11));
        let all = tensors(&of, 40);
        let mut seen = [0; 11];
        for inputs in &all {
            let [found, mask, types] = [0, 1, 2].map(|k| inputs[k].1.to_ints().unwrap());
            assert!([16, 32, 64].contains(&found.len()));
            found.iter().for_each(|&id| seen[id as usize] += 1);
            assert!(mask == vec![1; found.len()] && types == vec![0; found.len()]);
        }
        assert!(seen.iter().all(|&n| n > 20), "{seen:?}");
        assert_eq!(all, tensors(&of, 40));
    }

    #[test]
    fn numbers_are_normal_and_inputs_that_nobody_knows_are_refused() {
        let of =
            model(&[("a", fact(DType::F32, &[None, Some(50)])), ("b", fact(DType::F64, &[Some(1)]))], None);
        let all = tensors(&of, 20);
        let numbers: Vec<f32> = all.iter().flat_map(|x| x[0].1.as_slice::<f32>().unwrap().to_vec()).collect();
        let square = numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32;
        assert!((0.85..1.15).contains(&square), "{square}");
        assert_eq!(all[0][1].1.shape(), [1]);
        for (dtype, sizes) in [
            (DType::I64, &[None, None][..]),
            (DType::I32, &[None, Some(4), Some(4)]),
            (DType::F32, &[None, None]),
            (DType::F32, &[None, Some(1 << 40), Some(1 << 20)]),
            (DType::F32, &[None, Some(3), Some(1 << 20), Some(8)]),
        ] {
            let error = Made::new(&model(&[("ids", fact(dtype, sizes))], None), 1).err().unwrap().to_string();
            assert!(error.contains("made"), "{error}");
        }
    }
}
