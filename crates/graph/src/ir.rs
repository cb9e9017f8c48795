//! The graph, and the only functions that change it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::op::Reader;
use crate::{Attrs, Error, Fact, Op, Result, Tensor};

/// A model: a graph and what belongs to the whole.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The graph.
    pub graph: Graph,
    /// Version of each operator domain; "" is ONNX's own.
    pub opsets: BTreeMap<String, i64>,
    /// Version of the ONNX file format.
    pub ir_version: i64,
    /// Name and version of the program that made the model.
    pub producer: (String, String),
    /// Name space of the model, in reverse-DNS form.
    pub domain: String,
    /// The model's own version.
    pub version: i64,
    /// What the model is.
    pub doc: String,
    /// Free entries.
    pub metadata: Vec<(String, String)>,
    /// The functions that its nodes call.
    pub functions: Vec<Arc<Function>>,
    /// Parts of the file that are only passed on, encoded, by field number.
    pub extra: Vec<(u32, Bytes)>,
}

impl Model {
    /// The free entry of this name.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Adds a free entry, or replaces the one of the same name.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<String>) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.into(), value.into()));
    }
}

/// An operator that the model itself defines by a graph.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// Its domain.
    pub domain: String,
    /// Its name.
    pub name: String,
    /// Tells functions of one name apart.
    pub overload: String,
    /// What it is.
    pub doc: String,
    /// Names of its inputs.
    pub inputs: Vec<String>,
    /// Names of its outputs.
    pub outputs: Vec<String>,
    /// The whole function as the file has it, encoded. Each call holds a graph of its own, made from this with the
    /// call's attributes put in.
    pub encoded: Bytes,
}

/// The number of a node in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// The number of a value in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

impl ValueId {
    /// The number, for tables beside the graph.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    /// The number, for tables beside the graph.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value's constant stood in the file, so that it is written back there.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Home {
    /// Among the initializers.
    #[default]
    Initializer,
    /// Made by a `Constant` node with this name, of which the attribute is kept.
    Node(String, &'static str),
    /// Among the sparse initializers; the encoded `SparseTensorProto`.
    Sparse(Bytes),
}

/// A value: a constant, an input of the graph, or what a node makes.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// Its name; unique in its graph.
    pub name: String,
    /// What is known of it.
    pub fact: Fact,
    /// The number it always has.
    pub constant: Option<Tensor>,
    /// Where the constant stood in the file.
    pub home: Home,
    /// What it is.
    pub doc: String,
    /// Free entries.
    pub metadata: Vec<(String, String)>,
    /// True when the file states its type.
    pub declared: bool,
    producer: Option<NodeId>,
}

impl Value {
    /// A value of this name of which nothing else is known.
    pub fn named(name: &str) -> Value {
        Value { name: name.into(), ..Value::default() }
    }

    /// The node that makes it.
    pub fn producer(&self) -> Option<NodeId> {
        self.producer
    }
}

/// An operator at work: what it reads and what it makes.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name; may be empty, need not be unique.
    pub name: String,
    /// What it does.
    pub op: Arc<dyn Op>,
    /// What it reads; `None` for inputs that are left out.
    pub inputs: Vec<Option<ValueId>>,
    /// What it makes; `None` for outputs that are left out.
    pub outputs: Vec<Option<ValueId>>,
    /// What its bodies read of this graph, in the order of [`Op::bodies`] and [`Graph::captures`].
    pub captures: Vec<ValueId>,
    /// What it is.
    pub doc: String,
    /// Free entries.
    pub metadata: Vec<(String, String)>,
    /// Parts of the file that are only passed on, encoded, by field number.
    pub extra: Vec<(u32, Bytes)>,
}

impl Node {
    /// An unnamed node.
    pub fn new(op: Arc<dyn Op>, inputs: Vec<Option<ValueId>>) -> Node {
        Node {
            name: String::new(),
            op,
            inputs,
            outputs: Vec::new(),
            captures: Vec::new(),
            doc: String::new(),
            metadata: Vec::new(),
            extra: Vec::new(),
        }
    }

    /// All values it reads: inputs and captures.
    pub fn reads(&self) -> impl Iterator<Item = ValueId> {
        self.inputs.iter().flatten().chain(&self.captures).copied()
    }

    /// An input that is there.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// An output that is there.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    /// The operator's name.
    pub fn kind(&self) -> &str {
        self.op.name()
    }
}

/// Nodes and the values between them.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Its name.
    pub name: String,
    /// What it is.
    pub doc: String,
    /// Free entries.
    pub metadata: Vec<(String, String)>,
    /// Parts of the file that are only passed on, encoded, by field number.
    pub extra: Vec<(u32, Bytes)>,
    /// What it is called with. An input may be a constant too: its default.
    pub inputs: Vec<ValueId>,
    /// What it gives back.
    pub outputs: Vec<ValueId>,
    /// Values of the surrounding graph that it reads: their names there, and the values that stand for them here.
    pub captures: Vec<(String, ValueId)>,
    nodes: Vec<Option<Node>>,
    order: Vec<NodeId>,
    values: Vec<Value>,
    names: HashMap<String, ValueId>,
}

impl Graph {
    /// A graph without nodes.
    pub fn new(name: &str) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// The value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// The value, to be changed.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.index()]
    }

    /// All values, used or not.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(i, v)| (ValueId(i as u32), v))
    }

    /// Number of values ever made: the length of tables by [`ValueId::index`].
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// Number of nodes ever made: the length of tables by [`NodeId::index`].
    pub fn node_slots(&self) -> usize {
        self.nodes.len()
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The node, unless it was removed.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index()).and_then(Option::as_ref)
    }

    /// The node, to be changed, unless it was removed. Inputs are changed with [`Graph::set_input`].
    pub fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.index()).and_then(Option::as_mut)
    }

    /// All nodes, each after those whose outputs it reads.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.order.iter().filter_map(|&id| Some((id, self.node(id)?)))
    }

    /// The ids of all nodes, in order.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes().map(|(id, _)| id).collect()
    }

    /// The constant that a value always is.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        self.value(id).constant.as_ref()
    }

    /// The node that makes a value.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, &Node)> {
        let node = self.value(id).producer?;
        Some((node, self.node(node)?))
    }

    /// Who reads each value: nodes (with multiplicity), by [`ValueId::index`].
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.values.len()];
        for (id, node) in self.nodes() {
            for value in node.reads() {
                readers[value.index()].push(id);
            }
        }
        readers
    }

    /// A name that is not taken yet, like this one.
    pub fn fresh_name(&self, like: &str) -> String {
        if !like.is_empty() && !self.names.contains_key(like) {
            return like.into();
        }
        let stem = if like.is_empty() { "value" } else { like };
        (self.values.len()..)
            .map(|i| format!("{stem}_{i}"))
            .find(|name| !self.names.contains_key(name))
            .unwrap_or_default()
    }

    /// Adds a value.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is taken.
    pub fn add_value(&mut self, value: Value) -> Result<ValueId> {
        let id = ValueId(u32::try_from(self.values.len()).map_err(|_| Error::invalid("too many values"))?);
        if self.names.insert(value.name.clone(), id).is_some() {
            return Err(Error::invalid(format!("two values are named {:?}", value.name)));
        }
        self.values.push(value);
        Ok(id)
    }

    /// Adds an input.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is taken.
    pub fn add_input(&mut self, name: &str, fact: Fact) -> Result<ValueId> {
        let id = self.add_value(Value { name: name.into(), fact, declared: true, ..Value::default() })?;
        self.inputs.push(id);
        Ok(id)
    }

    /// Adds a constant under a name like this one.
    pub fn add_constant(&mut self, like: &str, tensor: Tensor) -> ValueId {
        let name = self.fresh_name(like);
        let fact = Fact::of(&tensor);
        let id = ValueId(self.values.len() as u32);
        self.names.insert(name.clone(), id);
        self.values.push(Value { name, fact, constant: Some(tensor), ..Value::default() });
        id
    }

    /// Adds a value that nothing makes: what a body captures. The name must be free.
    pub fn add_free(&mut self, name: &str, fact: Fact) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.names.insert(name.into(), id);
        self.values.push(Value { name: name.into(), fact, ..Value::default() });
        id
    }

    /// Replaces the number of a constant.
    pub fn set_constant(&mut self, id: ValueId, tensor: Tensor) {
        let value = self.value_mut(id);
        value.fact = Fact::of(&tensor);
        value.constant = Some(tensor);
        match &mut value.home {
            Home::Sparse(_) => value.home = Home::Initializer,
            Home::Node(_, attr) => *attr = "value",
            Home::Initializer => {}
        }
    }

    /// Adds a node after all others, with the outputs it names.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an output is already made by another node, is an input, or is a constant.
    pub fn add_node(&mut self, node: Node) -> Result<NodeId> {
        let id = self.store(node)?;
        self.order.push(id);
        Ok(id)
    }

    /// Adds a node in the order just before another.
    ///
    /// # Errors
    /// As [`Graph::add_node`].
    pub fn add_node_before(&mut self, before: NodeId, node: Node) -> Result<NodeId> {
        let id = self.store(node)?;
        let at = self.order.iter().position(|&n| n == before).unwrap_or(self.order.len());
        self.order.insert(at, id);
        Ok(id)
    }

    fn store(&mut self, node: Node) -> Result<NodeId> {
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| Error::invalid("too many nodes"))?);
        for &output in node.outputs.iter().flatten() {
            let value = self.value(output);
            if value.producer.is_some() || value.constant.is_some() || self.inputs.contains(&output) {
                return Err(Error::invalid(format!("value {:?} is made twice", value.name)));
            }
            self.value_mut(output).producer = Some(id);
        }
        self.nodes.push(Some(node));
        Ok(id)
    }

    /// Adds an operator after all others; its one output gets a name like this one and the fact that inference
    /// finds.
    ///
    /// # Errors
    /// When inference finds that the inputs do not fit.
    pub fn add_op(&mut self, like: &str, op: impl Op + 'static, inputs: &[ValueId]) -> Result<ValueId> {
        let node = Node::new(Arc::new(op), inputs.iter().copied().map(Some).collect());
        let (_, outputs) = self.add_with_outputs(like, node, 1, None)?;
        Ok(outputs[0])
    }

    /// Adds ONNX's own operator of this name and version after all others; its one output gets a name like this one.
    ///
    /// # Errors
    /// When there is no such operator, or the attributes or inputs do not fit it.
    pub fn append(
        &mut self,
        like: &str,
        kind: &str,
        version: i64,
        attrs: &Attrs,
        inputs: &[ValueId],
    ) -> Result<ValueId> {
        let reader = Reader { attrs, version, inputs: inputs.len(), outputs: 1 };
        let node =
            Node::new(crate::ops::read("", kind, &reader)?, inputs.iter().copied().map(Some).collect());
        Ok(self.add_with_outputs(like, node, 1, None)?.1[0])
    }

    /// Adds a node with `count` new outputs named like this, at the end or before another node.
    ///
    /// # Errors
    /// When inference finds that the inputs do not fit.
    pub fn add_with_outputs(
        &mut self,
        like: &str,
        mut node: Node,
        count: usize,
        before: Option<NodeId>,
    ) -> Result<(NodeId, Vec<ValueId>)> {
        let facts = crate::infer::node_facts(self, &node, count)?;
        let mut outputs = Vec::new();
        for fact in facts {
            let name = self.fresh_name(like);
            outputs.push(self.add_value(Value { name, fact, ..Value::default() })?);
        }
        node.outputs = outputs.iter().copied().map(Some).collect();
        if node.name.is_empty() {
            // Engines refuse nodes of one name; its values have names of their own.
            node.name = outputs.first().map_or(like, |&id| &self.value(id).name).into();
        }
        let id = match before {
            Some(before) => self.add_node_before(before, node)?,
            None => self.add_node(node)?,
        };
        Ok((id, outputs))
    }

    /// Makes a node read another value at one input.
    pub fn set_input(&mut self, node: NodeId, input: usize, value: Option<ValueId>) {
        if let Some(node) = self.node_mut(node) {
            while node.inputs.len() <= input {
                node.inputs.push(None);
            }
            node.inputs[input] = value;
        }
    }

    /// Makes a node produce `value` at one output in place of what it produced there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another node makes that value.
    pub fn set_output(&mut self, node: NodeId, output: usize, value: Option<ValueId>) -> Result<()> {
        if let Some(v) = value
            && self.value(v).producer.is_some_and(|p| p != node)
        {
            return Err(Error::invalid(format!("value {:?} is made twice", self.value(v).name)));
        }
        let Some(n) = self.node_mut(node) else { return Ok(()) };
        while n.outputs.len() <= output {
            n.outputs.push(None);
        }
        let old = std::mem::replace(&mut n.outputs[output], value);
        if let Some(old) = old {
            self.value_mut(old).producer = None;
        }
        if let Some(value) = value {
            self.value_mut(value).producer = Some(node);
        }
        Ok(())
    }

    /// Makes all readers of `old`, and the graph's outputs, use `new` instead.
    pub fn replace_value(&mut self, old: ValueId, new: ValueId) {
        for node in self.nodes.iter_mut().flatten() {
            for read in node.inputs.iter_mut().flatten().chain(&mut node.captures) {
                if *read == old {
                    *read = new;
                }
            }
        }
        for output in &mut self.outputs {
            if *output == old {
                *output = new;
            }
        }
    }

    /// Removes a node; its outputs are then made by nobody.
    pub fn remove_node(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(id.index()).and_then(Option::take) else { return };
        for output in node.outputs.into_iter().flatten() {
            self.values[output.index()].producer = None;
        }
    }

    /// Renames a value.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is taken.
    pub fn rename(&mut self, id: ValueId, name: &str) -> Result<()> {
        if self.names.contains_key(name) {
            return Err(Error::invalid(format!("two values are named {name:?}")));
        }
        let old = std::mem::replace(&mut self.value_mut(id).name, name.into());
        self.names.remove(&old);
        self.names.insert(name.into(), id);
        Ok(())
    }

    /// Puts the nodes in an order in which each comes after those whose outputs it reads; the order they have is
    /// kept where it can be.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the graph has a cycle; names a node in it.
    pub fn sort(&mut self) -> Result<()> {
        let ids = self.node_ids();
        let mut waits = vec![0usize; self.nodes.len()];
        let mut readers = vec![Vec::new(); self.nodes.len()];
        let mut sorted = true;
        let mut seen = vec![false; self.nodes.len()];
        for &id in &ids {
            let Some(node) = self.node(id) else { continue };
            let mut makers: Vec<NodeId> = node.reads().filter_map(|v| self.value(v).producer).collect();
            makers.sort();
            makers.dedup();
            sorted &= makers.iter().all(|m| seen[m.index()]);
            seen[id.index()] = true;
            waits[id.index()] = makers.len();
            for maker in makers {
                readers[maker.index()].push(id);
            }
        }
        if sorted {
            return Ok(());
        }
        let place: HashMap<NodeId, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let mut ready: std::collections::BTreeSet<usize> =
            ids.iter().filter(|id| waits[id.index()] == 0).map(|id| place[id]).collect();
        let mut order = Vec::with_capacity(ids.len());
        while let Some(at) = ready.pop_first() {
            order.push(ids[at]);
            for reader in &readers[ids[at].index()] {
                waits[reader.index()] -= 1;
                if waits[reader.index()] == 0 {
                    ready.insert(place[reader]);
                }
            }
        }
        if order.len() < ids.len() {
            let stuck = ids.iter().find(|id| waits[id.index()] > 0).and_then(|&id| self.node(id));
            let name = stuck.map(|n| format!("{} ({})", n.name, n.kind())).unwrap_or_default();
            return Err(Error::invalid(format!("the graph has a cycle through node {name:?}")));
        }
        self.order = order;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
