//! Checkpoints without a graph: `config.json` says the architecture, [`spec`] has a row for each family, and the graph
//! is built from ONNX operators.

mod build;
mod encoder;
pub mod spec;

use std::path::Path;

use graph::Model;
use serde_json::Value;

use crate::safetensors::{compressed, read_folder, read_json};
use crate::{Error, Result};

/// Opens a folder with `config.json` and safetensors.
///
/// # Errors
/// When a file is missing or broken, or the architecture is not known.
pub fn open(folder: &Path) -> Result<Model> {
    let path = folder.join("config.json");
    let config = read_json(&path)?;
    let kind = config["model_type"].as_str().unwrap_or("");
    let Some(family) = spec::FAMILIES.iter().find(|f| f.model_types.contains(&kind)) else {
        let known: Vec<&str> = spec::FAMILIES.iter().flat_map(|f| f.model_types.iter().copied()).collect();
        return Err(Error::broken(
            &path,
            format!("model_type {kind:?} is not supported; known are {}", known.join(", ")),
        ));
    };
    let tensors = compressed::decode(&path, &config, read_folder(folder)?)?;
    let pooling = pooling(folder)?;
    let mut model = encoder::build(family, &config, tensors, pooling).map_err(Error::model(folder))?;
    if let Some(names) = classes(&config) {
        model.set_metadata("classes", names);
    }
    if let Some(length) = max_length(folder, &config) {
        model.set_metadata("lessen.max_tokens", length.to_string());
    }
    Ok(model)
}

/// How token vectors become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over tokens that are not padding.
    Mean,
    /// The first token.
    First,
}

/// What `modules.json` of sentence-transformers asks for: pooling, and whether to give vectors the length 1.
fn pooling(folder: &Path) -> Result<Option<(Pooling, bool)>> {
    let path = folder.join("modules.json");
    if !path.exists() {
        return Ok(None);
    }
    let modules = read_json(&path)?;
    let modules: Vec<&Value> = modules.as_array().into_iter().flatten().collect();
    let of = |end: &str| modules.iter().find(|m| m["type"].as_str().is_some_and(|t| t.ends_with(end)));
    let Some(module) = of("Pooling") else { return Ok(None) };
    let inner = module["path"].as_str().unwrap_or("1_Pooling");
    if Path::new(inner).file_name().is_none_or(|name| name != inner) {
        return Err(Error::broken(
            &path,
            format!("module path {inner:?} is not the name of a folder beside it"),
        ));
    }
    let config_path = folder.join(inner).join("config.json");
    let config = read_json(&config_path)?;
    let on = |key: &str| config[key].as_bool() == Some(true);
    let kind = match () {
        () if on("pooling_mode_mean_tokens") => Pooling::Mean,
        () if on("pooling_mode_cls_token") => Pooling::First,
        () => return Err(Error::broken(&config_path, "only mean and cls pooling are supported")),
    };
    Ok(Some((kind, of("Normalize").is_some())))
}

/// Names of the classes, as a JSON list.
fn classes(config: &Value) -> Option<String> {
    let map = config["id2label"].as_object()?;
    let names: Vec<&Value> = (0..map.len()).map(|i| map.get(&i.to_string())).collect::<Option<_>>()?;
    serde_json::to_string(&names).ok()
}

/// Most tokens of one text.
fn max_length(folder: &Path, config: &Value) -> Option<u64> {
    let sentence = read_json(&folder.join("sentence_bert_config.json")).ok();
    let stated = sentence.and_then(|c| c["max_seq_length"].as_u64());
    stated.or_else(|| config["max_position_embeddings"].as_u64())
}
