//! Sizes for inputs whose shape the model leaves open, and made-up inputs to measure with.

use std::collections::HashMap;
use std::str::FromStr;

use graph::{DType, Dim, Fact, Graph, Tensor, Type};
use learn::random::Random;

use crate::{Error, Result};

/// Tokens of a made-up text.
pub const SEQUENCE: usize = 128;

/// The shape that one input is to have, written `input=1x3x224x224`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The input's name.
    pub input: String,
    /// Its sizes, outermost first.
    pub sizes: Vec<usize>,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Shape, String> {
        let wrong = || format!("{text:?} is not a shape; write it as input=1x3x224x224");
        let (input, sizes) = text.rsplit_once('=').ok_or_else(wrong)?;
        let sizes = match sizes {
            "" => Vec::new(),
            sizes => sizes
                .split('x')
                .map(str::parse)
                .collect::<std::result::Result<_, _>>()
                .map_err(|_| wrong())?,
        };
        Ok(Shape { input: input.into(), sizes })
    }
}

/// Gives every input of the graph a shape of known sizes and infers all other shapes from them. What `asked` does
/// not say is guessed: one example a batch, [`SEQUENCE`] tokens for token-like inputs.
///
/// # Errors
/// When `asked` names no input or contradicts the model, or a size is neither given nor can be guessed.
pub fn bind(graph: &mut Graph, asked: &[Shape]) -> Result<()> {
    let inputs: Vec<_> = graph.inputs.iter().copied().filter(|&id| graph.constant(id).is_none()).collect();
    let mut named: HashMap<String, usize> = HashMap::new();
    for shape in asked {
        let Some(&id) = inputs.iter().find(|&&id| graph.value(id).name == shape.input) else {
            let names: Vec<_> = inputs.iter().map(|&id| graph.value(id).name.as_str()).collect();
            let names = names.join(", ");
            return Err(Error::input(format!("the model has no input {:?}; it has {names}", shape.input)));
        };
        let fact = &graph.value(id).fact;
        let sizes = fact.shape().map(<[Dim]>::to_vec).unwrap_or(vec![Dim::Unknown; shape.sizes.len()]);
        let fits = sizes.len() == shape.sizes.len()
            && sizes.iter().zip(&shape.sizes).all(|(d, &n)| d.size().is_none_or(|m| m == n));
        if !fits {
            return Err(Error::input(format!(
                "input {:?} is {fact}, which cannot have the shape {}",
                shape.input,
                by(&shape.sizes)
            )));
        }
        for (dim, &size) in sizes.iter().zip(&shape.sizes) {
            if let Dim::Named(name) = dim
                && let Some(other) = named.insert(name.to_string(), size).filter(|&other| other != size)
            {
                return Err(Error::input(format!("size {name:?} cannot be both {other} and {size}")));
            }
        }
        graph.value_mut(id).fact.ty = Type::Tensor(fact.dtype(), Some(of(&shape.sizes)));
    }
    for id in inputs {
        let value = graph.value_mut(id);
        let Some(dims) = value.fact.shape() else {
            return Err(unknown(&value.name, &value.fact));
        };
        let sizes: Option<Vec<usize>> = dims
            .iter()
            .enumerate()
            .map(|(axis, dim)| match dim {
                Dim::Is(_) => dim.size(),
                Dim::Named(name) => named.get(&**name).copied().or_else(|| guess(axis, name, &value.fact)),
                Dim::Unknown => guess(axis, "", &value.fact),
            })
            .collect();
        let Some(sizes) = sizes else { return Err(unknown(&value.name, &value.fact)) };
        value.fact.ty = Type::Tensor(value.fact.dtype(), Some(of(&sizes)));
    }
    Ok(graph.reinfer()?)
}

fn of(sizes: &[usize]) -> Vec<Dim> {
    sizes.iter().map(|&n| n.into()).collect()
}

/// A shape as it is written for `--shape`.
pub fn by(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// The usual size of a dimension of this name and place; `None` when there is no usual one.
fn guess(axis: usize, name: &str, fact: &Fact) -> Option<usize> {
    let name = name.to_lowercase();
    let tokens = fact.dtype().is_some_and(DType::is_int) && fact.rank() == Some(2);
    match axis {
        0 => Some(1),
        _ if name.contains("past") => Some(0),
        _ if tokens || name.contains("seq") || name.contains("token") => Some(SEQUENCE),
        _ => None,
    }
}

fn unknown(name: &str, fact: &Fact) -> Error {
    let example = fact.shape().map_or("1x3x224x224".into(), |dims| {
        let size = |(axis, dim): (usize, &Dim)| dim.size().unwrap_or(if axis == 0 { 1 } else { 224 });
        by(&dims.iter().enumerate().map(size).collect::<Vec<_>>())
    });
    Error::input(format!("input {name:?} is {fact}: give its size, for example --shape {name}={example}"))
}

/// Made-up inputs for a graph whose inputs have known shapes: masks are ones, other integers name the token or
/// the position 1, numbers are random in -1..1, always the same ones.
///
/// # Errors
/// When an input has no known type and shape, or the machine cannot give that much memory.
pub fn made_up(graph: &Graph) -> Result<Vec<(String, Tensor)>> {
    let inputs = graph.inputs.iter().map(|&id| graph.value(id)).filter(|v| v.constant.is_none());
    inputs
        .map(|value| match (value.fact.dtype(), value.fact.sizes()) {
            (Some(dtype), Some(sizes)) => Ok((value.name.clone(), tensor(&value.name, dtype, &sizes)?)),
            _ => Err(unknown(&value.name, &value.fact)),
        })
        .collect()
}

fn tensor(name: &str, dtype: DType, sizes: &[usize]) -> Result<Tensor> {
    let name = name.to_lowercase();
    let mut random = Random::new(1);
    let mut number = || (random.bits() >> 40) as f64 / f64::from(1 << 23) - 1.0;
    let constant = if name.contains("mask") {
        Some(1.0)
    } else if name.contains("type") || name.contains("segment") {
        Some(0.0)
    } else {
        (!dtype.is_float()).then_some(1.0)
    };
    let n = graph::tensor::count(sizes)?;
    let mut next = || constant.unwrap_or_else(&mut number);
    Ok(match dtype {
        DType::F64 => Tensor::build::<f64>(sizes, |out| fill(out, &mut next))?,
        DType::Bool => Tensor::bools(sizes, &vec![constant != Some(0.0); n])?,
        DType::String => Tensor::strings(sizes, vec!["a".into(); n])?,
        _ => {
            let exact = Tensor::build::<f32>(sizes, |out| {
                out.iter_mut().for_each(|v| *v = next() as f32);
                Ok(())
            })?;
            cast(&exact, dtype)?
        }
    })
}

fn fill(out: &mut [f64], next: &mut dyn FnMut() -> f64) -> graph::Result<()> {
    out.iter_mut().for_each(|v| *v = next());
    Ok(())
}

/// The same numbers in another type, for the types that models take as inputs.
///
/// # Errors
/// For types that are no plain numbers.
pub fn cast(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    use graph::Element;
    fn to<T: Element>(from: &Tensor, f: impl Fn(f32) -> T) -> graph::Result<Tensor> {
        let values = from.to_f32()?;
        Tensor::build::<T>(from.shape(), |out| {
            out.iter_mut().zip(values.iter()).for_each(|(o, &v)| *o = f(v));
            Ok(())
        })
    }
    Ok(match dtype {
        _ if dtype == tensor.dtype() => tensor.clone(),
        DType::F32 => to(tensor, |v| v)?,
        DType::F64 => to(tensor, f64::from)?,
        DType::F16 => to(tensor, half::f16::from_f32)?,
        DType::BF16 => to(tensor, half::bf16::from_f32)?,
        DType::I8 => to(tensor, |v| v as i8)?,
        DType::I16 => to(tensor, |v| v as i16)?,
        DType::I32 => to(tensor, |v| v as i32)?,
        DType::I64 => to(tensor, |v| v as i64)?,
        DType::U8 => to(tensor, |v| v as u8)?,
        DType::U16 => to(tensor, |v| v as u16)?,
        DType::U32 => to(tensor, |v| v as u32)?,
        DType::U64 => to(tensor, |v| v as u64)?,
        other => return Err(Error::input(format!("inputs of type {other} cannot be made"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(facts: &[(&str, Fact)]) -> Graph {
        let mut graph = Graph::new("g");
        for (name, fact) in facts {
            let id = graph.add_input(name, fact.clone()).unwrap();
            graph.outputs.push(id);
        }
        graph
    }

    fn sizes(graph: &Graph, name: &str) -> Vec<usize> {
        graph.value(graph.find(name).unwrap()).fact.sizes().unwrap()
    }

    #[test]
    fn shapes_are_written_with_x() {
        let shape: Shape = "a=b=1x3".parse().unwrap();
        assert_eq!((shape.input.as_str(), shape.sizes), ("a=b", vec![1, 3]));
        assert_eq!("s=".parse::<Shape>().unwrap().sizes, [0usize; 0]);
        assert!("a=1x-3".parse::<Shape>().is_err());
        assert!("1x3".parse::<Shape>().is_err());
    }

    #[test]
    fn names_bind_together_and_the_rest_is_guessed() {
        let text = || Fact::tensor(DType::I64, vec![Dim::named("batch"), Dim::named("s")]);
        let mut g = graph(&[("ids", text()), ("mask", text())]);
        bind(&mut g, &["ids=2x7".parse().unwrap()]).unwrap();
        assert_eq!(sizes(&g, "mask"), [2, 7]);
        let inputs = made_up(&g).unwrap();
        assert_eq!(inputs[1].1.to_ints().unwrap(), vec![1; 14]);

        let mut g = graph(&[("ids", text())]);
        bind(&mut g, &[]).unwrap();
        assert_eq!(sizes(&g, "ids"), [1, SEQUENCE]);
    }

    #[test]
    fn sizes_nobody_knows_are_asked_for() {
        let image =
            || Fact::tensor(DType::F32, vec![Dim::Unknown, Dim::Is(3), Dim::named("h"), Dim::named("w")]);
        let error = bind(&mut graph(&[("x", image())]), &[]).unwrap_err().to_string();
        assert!(error.contains("--shape x=1x3x224x224"), "{error}");
        for wrong in ["x=1x4x8x8", "x=1x3x8", "y=1"] {
            assert!(bind(&mut graph(&[("x", image())]), &[wrong.parse().unwrap()]).is_err(), "{wrong}");
        }
        let both = ["x=1x3x8x8".parse().unwrap(), "y=1x3x9x8".parse().unwrap()];
        let error = bind(&mut graph(&[("x", image()), ("y", image())]), &both).unwrap_err().to_string();
        assert!(error.contains("cannot be both 8 and 9"), "{error}");
    }
}
