//! A model and what belongs to it: its file, its tokenizer, how its images are prepared.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph::{DType, Fact};
use learn::image::Preprocess;
use learn::text::Tokenizer;

use crate::feed::{Role, role};
use crate::{Error, Result};

pub use learn::image::METADATA_KEY as PREPROCESS;
/// The entry that says how the vectors of a text's tokens become one: `mean` or `cls`.
pub const POOLING: &str = "lessen.pooling";
/// The entry that says how many tokens of a text the model takes.
pub const MAX_TOKENS: &str = "lessen.max_tokens";
/// The entry that says what the model is for: `classify`, `multilabel`, `similarity` or `agree`.
pub const TASK: &str = "lessen.task";
/// The entries that name the classes: a JSON list, or one name a line.
pub const CLASSES: [&str; 2] = ["lessen.classes", "classes"];

/// A trained model.
#[derive(Clone)]
pub struct Model {
    inner: graph::Model,
    path: Option<PathBuf>,
    tokenizer: Option<Arc<Tokenizer>>,
    tokenizer_path: Option<PathBuf>,
    preprocess: Option<Preprocess>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({:?}, {} nodes)", self.path, self.inner.graph.nodes().count())
    }
}

impl Model {
    /// Opens a model file or folder. A `tokenizer.json` in the same folder is the model's tokenizer, if it takes tokens.
    ///
    /// # Errors
    /// When the file cannot be read, is of no known kind, or is broken; likewise for the tokenizer.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        let path = path.as_ref();
        let mut model = Model::new(format::open(path)?)?;
        model.path = Some(path.into());
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        let tokenizer = folder.map(|f| f.join("tokenizer.json")).filter(|t| t.is_file());
        if let Some(tokenizer) = tokenizer.filter(|_| model.takes_tokens()) {
            model.set_tokenizer(&tokenizer, None)?;
        }
        Ok(model)
    }

    /// A model that is in memory already.
    ///
    /// # Errors
    /// When its entries contradict the format.
    pub fn new(inner: graph::Model) -> Result<Model> {
        let preprocess = inner
            .metadata(PREPROCESS)
            .map(|text| {
                serde_json::from_str(text).map_err(|e| {
                    Error::input(format!("the model's entry {PREPROCESS:?} cannot be understood: {e}"))
                })
            })
            .transpose()?;
        Ok(Model { inner, path: None, tokenizer: None, tokenizer_path: None, preprocess })
    }

    /// Writes the model. The file is complete or not there at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(format::save(&self.inner, path.as_ref())?)
    }

    /// As [`Model::save`], with the weights in a file beside, `NAME.data`, as models of more than 1 GB have them always.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_beside(&self, path: impl AsRef<Path>) -> Result<()> {
        format::check_name(path.as_ref())?;
        Ok(format::onnx::write_beside(&self.inner, path.as_ref())?)
    }

    /// Raises the version of ONNX's own operators to `to` (13 to 28); the results stay the same.
    ///
    /// # Errors
    /// When the version is out of range or lower than the model's, or a node has no equal in it.
    pub fn upgrade(&mut self, to: i64) -> Result<()> {
        if let Some(from) = self.inner.opsets.get("").filter(|from| **from > to) {
            return Err(Error::input(format!(
                "the model is of version {from} of the ONNX operators already; versions are raised, not lowered to {to}"
            )));
        }
        Ok(format::onnx::upgrade(&mut self.inner, to)?)
    }

    /// The graph and what the file says about it.
    pub fn inner(&self) -> &graph::Model {
        &self.inner
    }

    /// The same, to be changed.
    pub fn inner_mut(&mut self) -> &mut graph::Model {
        &mut self.inner
    }

    /// Where the model was opened.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Names and facts of the inputs that must be given, in order.
    pub fn inputs(&self) -> Vec<(&str, &Fact)> {
        let graph = &self.inner.graph;
        let values = graph.inputs.iter().map(|&id| graph.value(id));
        values.filter(|v| v.constant.is_none()).map(|v| (v.name.as_str(), &v.fact)).collect()
    }

    /// Does it take the ids of a text's tokens?
    fn takes_tokens(&self) -> bool {
        let inputs = self.inputs();
        inputs.iter().any(|(name, fact)| {
            let whole = fact.dtype().is_none_or(|dtype| matches!(dtype, DType::I64 | DType::I32));
            whole && role(name, inputs.len()) == Some(Role::Ids)
        })
    }

    /// Names and facts of the outputs, in order.
    pub fn outputs(&self) -> Vec<(&str, &Fact)> {
        let graph = &self.inner.graph;
        graph.outputs.iter().map(|&id| (graph.value(id).name.as_str(), &graph.value(id).fact)).collect()
    }

    /// What makes tokens of texts.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// Takes another tokenizer: a `tokenizer.json`, a `vocab.txt`, or a folder with one of them. Texts are cut to
    /// `max_tokens`, else to what the model's inputs, its entries or the tokenizer say.
    ///
    /// # Errors
    /// When the file cannot be read or is no tokenizer.
    pub fn set_tokenizer(&mut self, path: &Path, max_tokens: Option<usize>) -> Result<()> {
        let fixed = self.inputs().into_iter().find_map(|(_, fact)| fact.shape()?.get(1)?.size());
        let said = self.inner.metadata(MAX_TOKENS).and_then(|text| text.parse().ok());
        self.tokenizer = Some(Arc::new(Tokenizer::open(path, max_tokens.or(fixed).or(said))?));
        self.tokenizer_path = Some(path.into());
        Ok(())
    }

    /// Cuts texts to `max_tokens`.
    ///
    /// # Errors
    /// When the model has no tokenizer, or so few tokens leave no room for a text.
    pub fn limit_tokens(&mut self, max_tokens: Option<usize>) -> Result<()> {
        match self.tokenizer_path.clone() {
            Some(path) => self.set_tokenizer(&path, max_tokens),
            None => Err(Error::input("the model has no tokenizer whose tokens could be limited")),
        }
    }

    /// Puts a copy of the model's tokenizer where a model that is saved to `path` finds it, if it has one. What is there
    /// already is not replaced: false when that is not the same tokenizer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_tokenizer(&self, path: &Path) -> Result<bool> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(true) };
        let (there, own) = (path.with_file_name("tokenizer.json"), tokenizer.file()?);
        if there.exists() {
            if std::fs::read(&there).is_ok_and(|bytes| bytes == own.as_bytes()) {
                return Ok(true);
            }
            let other = Tokenizer::open(&there, None).and_then(|other| other.file());
            return Ok(other.is_ok_and(|other| other == own));
        }
        crate::write_file(&there, own.as_bytes())?;
        Ok(true)
    }

    /// Takes what this model lacks from another one: the tokenizer, the preprocessing.
    pub fn take_from(&mut self, other: &Model) {
        if self.tokenizer.is_none() {
            self.tokenizer.clone_from(&other.tokenizer);
            self.tokenizer_path.clone_from(&other.tokenizer_path);
        }
        if self.preprocess.is_none() {
            self.preprocess.clone_from(&other.preprocess);
        }
    }

    /// The same model with another graph: tokenizer, preprocessing and file stay those of this one.
    pub fn with_inner(&self, inner: graph::Model) -> Model {
        Model { inner, ..self.clone() }
    }

    /// What makes tensors of images.
    pub fn preprocess(&self) -> Option<&Preprocess> {
        self.preprocess.as_ref()
    }

    /// Takes another way to prepare images, and keeps it in the model's entries.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn set_preprocess(&mut self, preprocess: Preprocess) -> Result<()> {
        let text = serde_json::to_string(&preprocess)
            .map_err(|e| Error::input(format!("the preprocessing cannot be kept: {e}")))?;
        self.inner.set_metadata(PREPROCESS, text);
        self.preprocess = Some(preprocess);
        Ok(())
    }

    /// The names of the classes by index, when the model has them.
    pub fn classes(&self) -> Option<Vec<String>> {
        let text = CLASSES.iter().find_map(|key| self.inner.metadata(key))?;
        let names = serde_json::from_str(text).unwrap_or_else(|_| text.lines().map(str::to_owned).collect());
        Some(names).filter(|names: &Vec<String>| !names.is_empty())
    }
}
