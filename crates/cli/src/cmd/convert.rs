//! `lessen convert`: one file format to another.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use lessen::adapter::Adapter;
use lessen::inspect::{Inspection, inspect};
use lessen::receipt::bytes;
use lessen::{Cpu, Model};
use serde_json::json;

use super::Done;
use crate::flags::{Common, keep_tokenizer};

/// Read a model, check it, and write it as ONNX.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen convert minilm/ minilm.onnx
  lessen convert old.onnx new.onnx --opset 21
  lessen convert minilm/ film.onnx --adapter films/ --adapter books/=0.5
  lessen convert big.onnx big2.onnx --external --json")]
pub struct Convert {
    /// The model: an ONNX file, or a folder with config.json and model.safetensors.
    input: PathBuf,
    /// The file to write. It is complete or not there at all. A tokenizer goes beside, unless one is there.
    output: PathBuf,
    /// Raise the version of the ONNX operators to this one, 13 to 28.
    #[arg(long, value_name = "N")]
    opset: Option<i64>,
    /// Put the weights into a file beside, OUTPUT.data, as is done with models of more than 1 GB in any case.
    #[arg(long)]
    external: bool,
    /// Add an adapter of PEFT (LoRA) to the weights; FOLDER=0.5 adds half of it. Several are added one after the other.
    #[arg(long, value_name = "FOLDER[=SHARE]", value_parser = share)]
    adapter: Vec<(PathBuf, f32)>,
}

/// A folder, and how much of what is in it.
fn share(text: &str) -> std::result::Result<(PathBuf, f32), String> {
    let Some((folder, share)) = text.rsplit_once('=') else { return Ok((text.into(), 1.0)) };
    match share.parse::<f32>() {
        Ok(share) if share.is_finite() => Ok((folder.into(), share)),
        _ => Err(format!("{share:?} is no share of an adapter; give a number, such as 0.5")),
    }
}

impl Convert {
    pub fn run(self, common: &Common) -> Result<Done> {
        let cpu = common.cpu()?;
        let mut model = Model::open(&self.input)?;
        let before = inspect(&model, &[], &cpu)?;
        if let Some(to) = self.opset {
            model.upgrade(to).with_context(|| format!("the model cannot be raised to version {to}"))?;
        }
        for (folder, share) in &self.adapter {
            let adapter = Adapter::read(folder).context("the adapter cannot be read")?;
            adapter.add_to(&mut model, *share).context("the adapter does not fit the model")?;
        }
        match self.external {
            true => model.save_beside(&self.output),
            false => model.save(&self.output),
        }
        .context("the model cannot be written")?;
        keep_tokenizer(&model, &self.output, common)?;
        let after = look(&self.output, &cpu).context("the file that was written cannot be read back")?;
        let added =
            |(folder, share): &(PathBuf, f32)| format!("weights: {share} of {} added", folder.display());
        let mut changes: Vec<String> = self.adapter.iter().map(added).collect();
        changes.extend(differences(&before, &after));
        let size = |i: &Inspection| i.file_bytes.unwrap_or(0);
        let mut text = format!(
            "{} -> {}\n{} -> {}\n",
            self.input.display(),
            self.output.display(),
            bytes(size(&before)),
            bytes(size(&after))
        );
        if changes.is_empty() {
            text += "operators, weights, inputs, outputs and entries are the same\n";
        }
        for change in &changes {
            text += &format!("changed: {change}\n");
        }
        Done::new(
            text,
            json!({
                "input": self.input,
                "output": self.output,
                "bytes": {"before": size(&before), "after": size(&after), "unit": "bytes"},
                "changes": changes,
            }),
        )
    }
}

fn look(path: &std::path::Path, cpu: &Cpu) -> lessen::Result<Inspection> {
    inspect(&Model::open(path)?, &[], cpu)
}

fn differences(before: &Inspection, after: &Inspection) -> Vec<String> {
    let mut changes = Vec::new();
    let counts = |i: &Inspection| -> BTreeMap<String, usize> {
        i.operators.iter().map(|o| (format!("{} {}", o.domain, o.name), o.count)).collect()
    };
    let (was, is) = (counts(before), counts(after));
    for name in was.keys().chain(is.keys().filter(|name| !was.contains_key(*name))) {
        let count = |of: &BTreeMap<String, usize>| of.get(name).copied().unwrap_or(0);
        if count(&was) != count(&is) {
            changes.push(format!("operator {}: {} -> {}", name.trim(), count(&was), count(&is)));
        }
    }
    let ports = |ports: &[lessen::inspect::Port]| {
        ports.iter().map(|p| format!("{} {}", p.name, p.fact)).collect::<Vec<_>>().join("; ")
    };
    let mut pair = |what: &str, was: String, is: String| {
        if was != is {
            changes.push(format!("{what}: {was} -> {is}"));
        }
    };
    pair("inputs", ports(&before.inputs), ports(&after.inputs));
    pair("outputs", ports(&before.outputs), ports(&after.outputs));
    pair("weights", before.weights.len().to_string(), after.weights.len().to_string());
    pair("bytes of weights", before.weight_bytes.to_string(), after.weight_bytes.to_string());
    pair("versions", format!("{:?}", before.opsets), format!("{:?}", after.opsets));
    pair("entries", format!("{:?}", before.metadata), format!("{:?}", after.metadata));
    changes
}
