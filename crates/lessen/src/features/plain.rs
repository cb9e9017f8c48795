//! Numbers that are their own features: no model has to make anything of them.

use graph::{Attrs, DType, Dim, Fact, Graph};
use learn::Input;
use learn::data::Dataset;

use super::backbone::{FEATURES, OLDEST};
use crate::{Error, Model, Result};

/// A model that gives the numbers of examples such as these as they are, one row of f32 an example.
///
/// # Errors
/// When the examples are no numbers, or more than one array each.
pub fn plain(data: &dyn Dataset) -> Result<Model> {
    let what = match data.get(0)?.input {
        Input::Arrays(arrays) => match <[_; 1]>::try_from(arrays) {
            Ok([(name, tensor)]) => {
                return of(&name, tensor.dtype(), tensor.shape().get(1..).unwrap_or_default());
            }
            Err(arrays) => format!("{} arrays", arrays.len()),
        },
        Input::Image(_) => "an image".into(),
        Input::Text(_) | Input::Pair(..) => "text".into(),
    };
    Err(Error::input(format!(
        "without a model an example must be one array of numbers, not {what}; name a model that makes features of it"
    )))
}

fn of(name: &str, dtype: DType, sizes: &[usize]) -> Result<Model> {
    let mut graph = Graph::new("features");
    let mut shape = vec![Dim::named("examples")];
    shape.extend(sizes.iter().map(|&size| Dim::from(size)));
    let mut x = graph.add_input(name, Fact::tensor(dtype, shape))?;
    if dtype != DType::F32 {
        x = graph.append("cast", "Cast", OLDEST, &Attrs::new().int("to", 1), &[x])?;
    }
    let rows = graph.append(FEATURES, "Flatten", OLDEST, &Attrs::new().int("axis", 1), &[x])?;
    super::claim(&mut graph, rows, FEATURES)?;
    graph.outputs.push(rows);
    let mut inner = graph::Model { graph, ir_version: 8, ..graph::Model::default() };
    inner.opsets.insert(String::new(), 17);
    Model::new(inner)
}
