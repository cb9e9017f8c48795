//! A model made ready to run.

use std::collections::{BTreeMap, HashMap};

use graph::ops::opaque::Opaque;
use graph::run::{Session, Watch};
use graph::{DType, Datum, Dim, Fact, Graph, Tensor, tidy};

use crate::{Cpu, Error, Model, Result};

/// A model made ready to run: optimised, planned, its weights prepared for this processor.
#[derive(Debug)]
pub struct Runner {
    session: Session,
}

impl Runner {
    /// Makes a model ready to run.
    ///
    /// # Errors
    /// When the graph breaks a rule, or uses operators that cannot be run: all of them are named.
    pub fn new(model: &Model, cpu: &Cpu) -> Result<Runner> {
        let mut graph = model.inner().graph.clone();
        tidy::run(&mut graph, tidy::RUN, cpu)?;
        supported(&graph)?;
        Ok(Runner { session: Session::new(graph, cpu)? })
    }

    /// The graph that runs.
    pub fn graph(&self) -> &Graph {
        self.session.graph()
    }

    /// Names and facts of the inputs that must be given, in order.
    pub fn inputs(&self) -> Vec<(&str, &Fact)> {
        self.session.inputs()
    }

    /// Names and facts of the outputs, in order.
    pub fn outputs(&self) -> Vec<(&str, &Fact)> {
        self.session.outputs()
    }

    /// Runs the model on arrays by name; gives the outputs by name, in order.
    ///
    /// # Errors
    /// When an input is missing, unknown, of another type or shape, or contradicts another input; what a node
    /// reports.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Datum)>> {
        self.run_watched(inputs, &mut ())
    }

    /// As [`Runner::run`]; `watch` looks at each node.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn run_watched(
        &self,
        inputs: &[(String, Tensor)],
        watch: &mut dyn Watch,
    ) -> Result<Vec<(String, Datum)>> {
        self.agree(inputs)?;
        let data = inputs.iter().map(|(name, t)| (name.as_str(), Datum::Tensor(t.clone()))).collect();
        let outputs = self.session.run_watched(data, watch)?;
        let names = self.session.outputs().into_iter().map(|(name, _)| name.to_owned());
        Ok(names.zip(outputs).collect())
    }

    /// Checks that inputs with a size of the same name agree on it.
    fn agree(&self, inputs: &[(String, Tensor)]) -> Result<()> {
        let facts: HashMap<&str, &Fact> = self.inputs().into_iter().collect();
        let mut sizes: HashMap<&str, (usize, &str)> = HashMap::new();
        for (name, tensor) in inputs {
            let Some(dims) = facts.get(name.as_str()).and_then(|f| f.shape()) else { continue };
            for (dim, &size) in dims.iter().zip(tensor.shape()) {
                let Dim::Named(symbol) = dim else { continue };
                let (other, of) = *sizes.entry(symbol).or_insert((size, name));
                if other != size {
                    return Err(Error::input(format!(
                        "inputs {of:?} and {name:?} must agree on the size {symbol:?}, but have {other} and {size}"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// What to do about operators that only some exporters write, by how their names start.
static ADVICE: &[(&str, &str)] = &[
    ("ai.onnx.ml.ZipMap", "export the model with the option zipmap=False"),
    ("com.microsoft.Nhwc", ONE_PROCESSOR),
    ("com.microsoft.QLinearConv", ONE_PROCESSOR),
    ("com.microsoft.nchwc.", ONE_PROCESSOR),
];

const ONE_PROCESSOR: &str = "onnxruntime saved the model for one kind of processor; take the model from before that, or \
                             have it saved with graph_optimization_level ORT_ENABLE_EXTENDED";

/// Checks that every operator can be run.
fn supported(graph: &Graph) -> Result<()> {
    let mut missing: BTreeMap<String, (usize, &str)> = BTreeMap::new();
    for (_, node) in graph.nodes().filter(|(_, n)| n.op.as_any().is::<Opaque>()) {
        let dot = if node.op.domain().is_empty() { "" } else { "." };
        let name = format!("{}{dot}{}", node.op.domain(), node.op.name());
        missing.entry(name).or_insert((0, &node.name)).0 += 1;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing
        .iter()
        .map(|(name, (count, first))| match count {
            1 => format!("{name} (node {first:?})"),
            _ => format!("{name} ({count} nodes, first {first:?})"),
        })
        .collect();
    let advice = ADVICE.iter().find(|(start, _)| missing.keys().any(|name| name.starts_with(start)));
    let advice = advice.map_or_else(String::new, |(_, text)| format!("; {text}"));
    Err(Error::input(format!("the model cannot be run here: not supported: {}{advice}", list.join(", "))))
}

/// Checks that arrays hold neither NaN nor infinity.
///
/// # Errors
/// Names the array and the first such element.
pub fn check_finite(arrays: &[(String, Tensor)]) -> Result<()> {
    for (name, tensor) in arrays.iter().filter(|(_, t)| t.dtype().is_float()) {
        let found = match tensor.dtype() {
            DType::F64 => tensor.values::<f64>()?.iter().position(|v| !v.is_finite()),
            _ => tensor.to_f32()?.iter().position(|v| !v.is_finite()),
        };
        if let Some(at) = found {
            let mut rest = at;
            let mut index: Vec<String> = Vec::new();
            for &size in tensor.shape().iter().rev() {
                index.insert(0, (rest % size).to_string());
                rest /= size;
            }
            let value = tensor.to_f32()?[at];
            return Err(Error::input(format!(
                "array {name:?} holds {value} at index [{}]; allow it with --allow-nan",
                index.join(", ")
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_nan_is_named() {
        let mut values = vec![0f32; 6];
        assert!(check_finite(&[("x".into(), Tensor::new(&[2, 3], &values).unwrap())]).is_ok());
        values[5] = f32::NAN;
        let error = check_finite(&[("x".into(), Tensor::new(&[2, 3], &values).unwrap())]).unwrap_err();
        assert!(error.to_string().contains("\"x\" holds NaN at index [1, 2]"), "{error}");
    }

    #[test]
    fn operators_of_one_exporter_come_with_advice() -> graph::Result<()> {
        let mut graph = Graph::default();
        let x = graph.add_input("x", Fact::tensor(DType::F32, vec![Dim::Unknown]))?;
        graph.add_op("a", Opaque::new("com.microsoft.nchwc", "Conv", graph::Attrs::new()), &[x])?;
        let error = supported(&graph).unwrap_err().to_string();
        assert!(error.contains("com.microsoft.nchwc.Conv (node "), "{error}");
        assert!(error.ends_with("graph_optimization_level ORT_ENABLE_EXTENDED"), "{error}");
        Ok(())
    }
}
