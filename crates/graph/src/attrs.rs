//! The attributes of an operator, after ONNX `AttributeProto`.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Error, Graph, Result, Tensor};

/// The value of one attribute.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Attr {
    Int(i64),
    Float(f32),
    /// Bytes; nearly always UTF-8.
    Text(Bytes),
    Tensor(Tensor),
    Graph(Arc<Graph>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Arc<Graph>>),
    /// The attribute of the calling node with this name and type number, inside a function's body.
    Ref(String, i32),
    /// Kinds that are only passed on (types, sparse tensors): the encoded `AttributeProto`.
    Other(Bytes),
}

impl From<&str> for Attr {
    fn from(text: &str) -> Attr {
        Attr::Text(Bytes::copy_from_slice(text.as_bytes()))
    }
}

/// The attributes of one operator by name, in the order they were read or set.
#[derive(Clone, Debug, Default)]
pub struct Attrs(Vec<(String, Attr)>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Attrs {
        Attrs::default()
    }

    /// The attribute of this name.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, a)| a)
    }

    /// Adds an attribute, or replaces the one of the same name.
    pub fn set(&mut self, name: impl Into<String>, attr: Attr) {
        let name = name.into();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = attr,
            None => self.0.push((name, attr)),
        }
    }

    /// The same attributes and one more.
    pub fn with(mut self, name: &str, attr: Attr) -> Attrs {
        self.set(name, attr);
        self
    }

    /// The same attributes and an integer.
    pub fn int(self, name: &str, value: i64) -> Attrs {
        self.with(name, Attr::Int(value))
    }

    /// The same attributes and a number.
    pub fn float(self, name: &str, value: f32) -> Attrs {
        self.with(name, Attr::Float(value))
    }

    /// The same attributes and a list of integers.
    pub fn ints(self, name: &str, values: &[i64]) -> Attrs {
        self.with(name, Attr::Ints(values.to_vec()))
    }

    /// The same attributes and a text.
    pub fn text(self, name: &str, value: &str) -> Attrs {
        self.with(name, value.into())
    }

    /// The same attributes and, when there is a value, one more.
    pub fn maybe(self, name: &str, attr: Option<Attr>) -> Attrs {
        match attr {
            Some(attr) => self.with(name, attr),
            None => self,
        }
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attr)> {
        self.0.iter().map(|(n, a)| (n.as_str(), a))
    }

    /// Removes an attribute.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }

    fn wrong<T>(&self, name: &str, want: &str) -> Result<T> {
        match self.get(name) {
            Some(Attr::Ref(of, _)) => {
                Err(Error::invalid(format!("attribute {name:?} refers to {of:?}, which has no value")))
            }
            Some(_) => Err(Error::invalid(format!("attribute {name:?} must be {want}"))),
            None => Err(Error::invalid(format!("attribute {name:?} ({want}) is missing"))),
        }
    }

    /// An integer, if there is one.
    ///
    /// # Errors
    /// This and all that follow: [`Error::Invalid`] when the attribute has another kind, or is missing and needed.
    pub fn opt_int(&self, name: &str) -> Result<Option<i64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Int(v)) => Ok(Some(*v)),
            _ => self.wrong(name, "an integer"),
        }
    }

    /// An integer, or the default.
    pub fn int_or(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }

    /// An integer that must be there.
    pub fn need_int(&self, name: &str) -> Result<i64> {
        self.opt_int(name)?.map_or_else(|| self.wrong(name, "an integer"), Ok)
    }

    /// An integer read as truth, or the default.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.int_or(name, default.into())? != 0)
    }

    /// A number, if there is one.
    pub fn opt_float(&self, name: &str) -> Result<Option<f32>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Float(v)) => Ok(Some(*v)),
            _ => self.wrong(name, "a number"),
        }
    }

    /// A number, or the default.
    pub fn float_or(&self, name: &str, default: f32) -> Result<f32> {
        Ok(self.opt_float(name)?.unwrap_or(default))
    }

    /// A list of integers, if there is one.
    pub fn opt_ints(&self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Ints(v)) => Ok(Some(v.clone())),
            // An empty list carries no elements that would tell its kind.
            Some(Attr::Floats(v)) if v.is_empty() => Ok(Some(Vec::new())),
            _ => self.wrong(name, "a list of integers"),
        }
    }

    /// A list of integers, or the default.
    pub fn ints_or(&self, name: &str, default: &[i64]) -> Result<Vec<i64>> {
        Ok(self.opt_ints(name)?.unwrap_or_else(|| default.to_vec()))
    }

    /// A list of numbers, if there is one.
    pub fn opt_floats(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Floats(v)) => Ok(Some(v.clone())),
            Some(Attr::Ints(v)) if v.is_empty() => Ok(Some(Vec::new())),
            _ => self.wrong(name, "a list of numbers"),
        }
    }

    /// A text, if there is one.
    pub fn opt_text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Text(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => self.wrong(name, "a text in UTF-8"),
            },
            _ => self.wrong(name, "a text"),
        }
    }

    /// A text, or the default.
    pub fn text_or<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str> {
        Ok(self.opt_text(name)?.unwrap_or(default))
    }

    /// A list of texts, if there is one.
    pub fn opt_texts(&self, name: &str) -> Result<Option<Vec<String>>> {
        let text = |b: &Bytes| {
            std::str::from_utf8(b).map(str::to_owned).or_else(|_| self.wrong(name, "texts in UTF-8"))
        };
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Texts(v)) => v.iter().map(text).collect::<Result<_>>().map(Some),
            Some(Attr::Ints(v)) if v.is_empty() => Ok(Some(Vec::new())),
            _ => self.wrong(name, "a list of texts"),
        }
    }

    /// A tensor, if there is one.
    pub fn opt_tensor(&self, name: &str) -> Result<Option<&Tensor>> {
        match self.get(name) {
            None => Ok(None),
            Some(Attr::Tensor(t)) => Ok(Some(t)),
            _ => self.wrong(name, "a tensor"),
        }
    }

    /// A graph that must be there.
    pub fn need_graph(&self, name: &str) -> Result<Arc<Graph>> {
        match self.get(name) {
            Some(Attr::Graph(g)) => Ok(g.clone()),
            _ => self.wrong(name, "a graph"),
        }
    }
}

impl FromIterator<(String, Attr)> for Attrs {
    fn from_iter<I: IntoIterator<Item = (String, Attr)>>(items: I) -> Attrs {
        Attrs(items.into_iter().collect())
    }
}
