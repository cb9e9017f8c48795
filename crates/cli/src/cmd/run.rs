//! `lessen run`: a model's answer to arrays, images or texts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use lessen::answer::{Task, preview, selected};
use lessen::data::{self, Input, npy, npz};
use lessen::feed::Feeder;
use lessen::model::TASK;
use lessen::runner::check_finite;
use lessen::{Datum, Model, Runner, Tensor};
use serde_json::{Value, json};

use super::{Done, table};
use crate::flags::{Columns, Common, Opening, Showing};

/// Run a model on arrays, images or texts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen run model.onnx --input in.npz --output out.npz
  lessen run resnet.onnx cat.jpg dog.png
  lessen run minilm/ --text 'a text' --text 'another one' --json")]
pub struct Run {
    /// The model.
    model: PathBuf,
    /// What to run it on: images, .txt (one text a line), or one .npz or .npy.
    files: Vec<PathBuf>,
    /// The same, as a flag: .npz with arrays named as the model's inputs.
    #[arg(long, value_name = "FILE")]
    input: Vec<PathBuf>,
    /// A text to run it on.
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// Write the outputs to this .npz file, by name, instead of printing them.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    showing: Showing,
}

/// The outputs of one example, or of one file of arrays.
struct Ran {
    id: String,
    /// Was it an image? Then the answer is taken for the scores of classes.
    image: bool,
    outputs: Vec<(String, Datum)>,
}

impl Run {
    pub fn run(self, common: &Common) -> Result<Done> {
        let model = self.opening.open(&self.model)?;
        let runner = Runner::new(&model, &common.cpu()?)?;
        let files: Vec<&PathBuf> = self.files.iter().chain(&self.input).collect();
        let arrays = files.iter().find(|file| is_arrays(file));
        let mut ran = match (arrays, files.as_slice()) {
            (Some(file), [_]) if self.text.is_empty() => vec![self.on_arrays(file, &model, &runner)?],
            (Some(file), _) => bail!("{} holds arrays; it must be the only input", file.display()),
            (None, _) => self.on_examples(&files, &model, &runner)?,
        };
        if let Some(name) = &self.showing.output_name {
            for ran in &mut ran {
                ran.outputs.retain(|(n, _)| n == name);
                if ran.outputs.is_empty() {
                    let names: Vec<&str> = runner.outputs().into_iter().map(|(n, _)| n).collect();
                    bail!("the model has no output {name:?}; it has {}", names.join(", "));
                }
            }
        }
        match &self.output {
            Some(path) => write(path, &ran),
            None => show(&model, &runner, &ran),
        }
    }

    fn on_arrays(&self, file: &Path, model: &Model, runner: &Runner) -> Result<Ran> {
        let inputs = runner.inputs();
        let mut arrays = match file.extension().is_some_and(|e| e == "npy") {
            true => {
                let [(name, _)] = inputs.as_slice() else {
                    bail!("{} holds one array, the model takes {}", file.display(), inputs.len());
                };
                vec![(name.to_string(), npy::read(file, data::LIMIT)?)]
            }
            false => npz::read(file, data::LIMIT)?,
        };
        // Data to judge by hold the right answers too.
        let graph = &model.inner().graph;
        let known = |name: &str| graph.inputs.iter().any(|&id| graph.value(id).name == name);
        arrays.retain(|(name, _)| known(name) || !matches!(name.as_str(), "label" | "score"));
        if !self.showing.allow_nan {
            check_finite(&arrays).with_context(|| file.display().to_string())?;
        }
        let outputs = runner.run(&arrays).with_context(|| format!("{} does not fit", file.display()))?;
        Ok(Ran { id: file.display().to_string(), image: false, outputs })
    }

    fn on_examples(&self, files: &[&PathBuf], model: &Model, runner: &Runner) -> Result<Vec<Ran>> {
        let feeder = Feeder::new(model, &self.showing.options().feed)?;
        let one = |id: String, input: &Input| -> Result<Ran> {
            let prepared = feeder.prepare(input).with_context(|| id.clone())?;
            let batches = feeder.batches_of(std::slice::from_ref(&prepared), 1)?;
            let batch = batches.first().context("there is nothing to run")?;
            let outputs = runner.run(&batch.arrays).with_context(|| id.clone())?;
            Ok(Ran { id, image: matches!(input, Input::Image(_)), outputs })
        };
        let mut ran = Vec::new();
        for file in files {
            let data = data::open(file, &Columns::default().options(model))?;
            for i in 0..data.len() {
                let example = data.get(i)?;
                let id = match data.len() {
                    1 => file.display().to_string(),
                    _ => format!("{}, {}", file.display(), example.id),
                };
                ran.push(one(id, &example.input)?);
            }
        }
        for text in &self.text {
            ran.push(one(format!("{text:?}"), &Input::Text(text.clone()))?);
        }
        if ran.is_empty() {
            let inputs: Vec<String> = runner.inputs().iter().map(|(n, f)| format!("{n:?} ({f})")).collect();
            bail!(
                "there is nothing to run on: give --input, files or --text; the model takes {}",
                inputs.join(", ")
            );
        }
        Ok(ran)
    }
}

fn is_arrays(file: &Path) -> bool {
    file.extension().is_some_and(|e| e == "npz" || e == "npy")
}

/// The tensors of an output; those of a sequence are numbered.
fn tensors(name: &str, datum: &Datum) -> Vec<(String, Tensor)> {
    match datum {
        Datum::Tensor(tensor) => vec![(name.to_owned(), tensor.clone())],
        Datum::Sequence(items) => {
            items.iter().enumerate().flat_map(|(i, item)| tensors(&format!("{name}.{i}"), item)).collect()
        }
        Datum::Optional(inner) => inner.iter().flat_map(|item| tensors(name, item)).collect(),
    }
}

fn write(path: &Path, ran: &[Ran]) -> Result<Done> {
    let mut arrays: Vec<(String, Vec<Tensor>)> = Vec::new();
    for (name, tensor) in ran.iter().flat_map(|r| &r.outputs).flat_map(|(n, d)| tensors(n, d)) {
        match arrays.iter_mut().find(|(n, _)| *n == name) {
            Some((_, list)) => list.push(tensor),
            None => arrays.push((name, vec![tensor])),
        }
    }
    let stack = |(name, list): (String, Vec<Tensor>)| -> Result<(String, Tensor)> {
        let tensor = match list.as_slice() {
            [one] => one.clone(),
            many => data::concat(&many.iter().collect::<Vec<_>>()).with_context(|| {
                format!("output {name:?} cannot be stacked over the examples; run one at a time")
            })?,
        };
        Ok((name, tensor))
    };
    let arrays = arrays.into_iter().map(stack).collect::<Result<Vec<_>>>()?;
    npz::write(path, &arrays).context("the outputs cannot be written")?;
    let mut text = format!("{}\n", path.display());
    let mut list = Vec::new();
    for (name, tensor) in &arrays {
        text += &format!("  {name:?}: {}{:?}\n", tensor.dtype(), tensor.shape());
        list.push(json!({"name": name, "type": tensor.dtype().to_string(), "shape": tensor.shape()}));
    }
    Done::new(text, json!({"output": path, "arrays": list}))
}

/// Rows of one file of arrays that are put into words.
const MOST_ROWS: usize = 10;
/// Numbers that JSON holds in full.
const MOST_VALUES: usize = 4096;
/// Best classes that are named.
const BEST: usize = 5;

fn show(model: &Model, runner: &Runner, ran: &[Ran]) -> Result<Done> {
    let names = model.classes();
    let main = selected(&runner.outputs(), Task::Classify)?;
    let classifies = names.is_some() || model.inner().metadata(TASK) == Some("classify");
    let mut text = String::new();
    let mut list = Vec::new();
    for ran in ran {
        if !text.is_empty() {
            text += "\n";
        }
        text += &format!("{}\n", ran.id);
        let mut outputs = Vec::new();
        let mut top = Vec::new();
        for (name, datum) in &ran.outputs {
            for (name, tensor) in tensors(name, datum) {
                let class_scores = (classifies || ran.image)
                    && name == main
                    && tensor.dtype().is_float()
                    && tensor.rank() >= 2
                    && tensor.len() > tensor.shape()[0];
                if class_scores {
                    let (words, rows) = in_words(&tensor, names.as_deref())?;
                    text += &words;
                    top = rows;
                } else {
                    text += &describe(&name, &tensor)?;
                }
                outputs.push(as_json(&name, &tensor)?);
            }
        }
        let mut entry = json!({"input": ran.id, "outputs": outputs});
        if !top.is_empty() {
            entry["top"] = Value::Array(top);
        }
        list.push(entry);
    }
    Done::new(text, json!({ "results": list }))
}

/// The best classes of each row, for people and for programs.
fn in_words(tensor: &Tensor, names: Option<&[String]>) -> Result<(String, Vec<Value>)> {
    let values = tensor.to_f32()?;
    let rows = tensor.shape()[0];
    let classes = values.len() / rows.max(1);
    let mut text = String::new();
    let mut list = Vec::new();
    for (row, values) in values.chunks_exact(classes.max(1)).enumerate() {
        let shares = shares(values);
        let mut order: Vec<usize> = (0..classes).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order.truncate(BEST);
        let name = |c: usize| names.and_then(|n| n.get(c)).cloned().unwrap_or_else(|| format!("class {c}"));
        if row < MOST_ROWS {
            if rows > 1 {
                text += &format!(" row {row}\n");
            }
            let best = order.iter().map(|&c| {
                vec![name(c), format!("{:.2} %", 100.0 * shares[c]), format!("({:.4})", values[c])]
            });
            text += &table(&best.collect::<Vec<_>>());
        }
        let best: Vec<Value> = order
            .iter()
            .map(|&c| json!({"class": c, "name": name(c), "share": shares[c], "value": values[c]}))
            .collect();
        list.push(Value::Array(best));
    }
    if rows > MOST_ROWS {
        text += &format!(" .. and {} rows more; --json prints all, --output writes them\n", rows - MOST_ROWS);
    }
    Ok((text, list))
}

/// Shares that sum to 1: the values when they do so already, else their softmax.
fn shares(values: &[f32]) -> Vec<f64> {
    let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
    if (sum - 1.0).abs() < 1e-3 && values.iter().all(|&v| v >= 0.0) {
        return values.iter().map(|&v| f64::from(v)).collect();
    }
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = values.iter().map(|&v| f64::from(v - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

/// (least, greatest, mean) of the numbers of a tensor that has some.
fn spread(tensor: &Tensor) -> Result<Option<(f32, f32, f64)>> {
    if tensor.is_empty() || tensor.dtype() == lessen::DType::String {
        return Ok(None);
    }
    let values = tensor.to_f32()?;
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
    Ok(Some((least, most, mean)))
}

fn describe(name: &str, tensor: &Tensor) -> Result<String> {
    let mut text = format!("  {name:?}: {}{:?}\n", tensor.dtype(), tensor.shape());
    text += &format!("    {}\n", preview(tensor, 8));
    if let Some((least, most, mean)) = spread(tensor)? {
        text += &format!("    least {least:.5}, greatest {most:.5}, mean {mean:.5}\n");
    }
    Ok(text)
}

fn as_json(name: &str, tensor: &Tensor) -> Result<Value> {
    let mut value = json!({"name": name, "type": tensor.dtype().to_string(), "shape": tensor.shape()});
    if let Some((least, most, mean)) = spread(tensor)? {
        value["least"] = json!(least);
        value["greatest"] = json!(most);
        value["mean"] = json!(mean);
    }
    if tensor.len() <= MOST_VALUES {
        value["values"] = match tensor.dtype() {
            lessen::DType::String => json!(tensor.as_strings()?),
            dtype if dtype.is_float() => json!(tensor.to_f32()?),
            _ => json!(tensor.to_ints()?),
        };
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_logits_and_of_probabilities() {
        assert_eq!(shares(&[0.25, 0.75]), [0.25, 0.75]);
        let of_logits = shares(&[1000.0, 1000.0]);
        assert_eq!(of_logits, [0.5, 0.5]);
    }
}
