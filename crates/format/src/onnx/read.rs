//! An ONNX file as a [`Model`].

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use graph::ir::Home;
use graph::op::Reader;
use graph::ops::call::Call;
use graph::{
    Attr, Attrs, DType, Dim, Error, Fact, Function, Graph, Model, Node, Op, Result, Tensor, Type, Value,
    ValueId,
};
use prost::Message;

use super::external::{self, External};
use super::functions;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto::dimension, type_proto,
};
use super::tensor;

/// Reads an ONNX file. Weights stay views of the mapped file.
///
/// # Errors
/// When the file cannot be read or is broken; says at which node or tensor.
pub fn read(path: &Path) -> crate::Result<Model> {
    let bytes = crate::file::map(path)?;
    let proto = decode(bytes).map_err(|what| crate::Error::broken(path, what))?;
    let external = External::beside(path);
    Reading::new(&proto, Some(&external)).and_then(|r| r.model(&proto)).map_err(crate::Error::model(path))
}

/// The files that an ONNX model lies in: its own, and those beside with its weights.
///
/// # Errors
/// When the file cannot be read or is broken.
pub fn files(path: &Path) -> crate::Result<Vec<PathBuf>> {
    let proto = decode(crate::file::map(path)?).map_err(|what| crate::Error::broken(path, what))?;
    let mut beside = BTreeSet::new();
    proto.graph.iter().for_each(|graph| external::locations(graph, &mut beside));
    Ok(std::iter::once(path.into()).chain(beside.into_iter().map(|name| path.with_file_name(name))).collect())
}

/// Reads an ONNX model from memory.
///
/// # Errors
/// As [`read`]; data in other files are an error.
pub fn read_bytes(bytes: Bytes) -> Result<Model> {
    from_proto(&decode(bytes).map_err(Error::Invalid)?)
}

/// Reads a model from its message.
///
/// # Errors
/// As [`read_bytes`].
pub fn from_proto(proto: &ModelProto) -> Result<Model> {
    Reading::new(proto, None)?.model(proto)
}

fn decode(bytes: Bytes) -> std::result::Result<ModelProto, String> {
    let proto =
        ModelProto::decode(bytes).map_err(|e| format!("this is not an ONNX model, or it is damaged: {e}"))?;
    match proto.graph {
        Some(_) => Ok(proto),
        None => Err("this is not an ONNX model, or it is damaged: it has no graph".into()),
    }
}

/// Versions of ONNX's own operators. A later one may have changed the meaning of any operator.
const VERSIONS: std::ops::RangeInclusive<i64> = 1..=28;
/// Most nodes that all calls of functions may bring in together: hostile functions that call each other could
/// otherwise grow without bound.
const MAX_CALLED_NODES: usize = 1 << 14;
/// Most bytes, as the file has them, that all calls of functions may bring in together.
const MAX_CALLED_BYTES: usize = 1 << 28;
/// Deepest nesting of bodies and calls, so that no stack overflows.
const MAX_DEPTH: usize = 48;

type Key = (String, String, String);

struct Reading<'a> {
    external: Option<&'a External>,
    functions: HashMap<Key, (FunctionProto, Arc<Function>)>,
    called_nodes: Cell<usize>,
    called_bytes: Cell<usize>,
    depth: Cell<usize>,
}

/// What a graph is read in: the versions of the operators, and the names of the graphs around it.
struct Scope<'a> {
    opsets: &'a BTreeMap<String, i64>,
    outer: &'a dyn Fn(&str) -> Option<Fact>,
}

fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn entries(props: &[StringStringEntryProto]) -> Vec<(String, String)> {
    props.iter().map(|e| (e.key().into(), e.value().into())).collect()
}

/// The versions of the operators, by domain.
fn opsets(imports: &[super::proto::OperatorSetIdProto]) -> Result<BTreeMap<String, i64>> {
    let all: BTreeMap<_, _> = imports.iter().map(|o| (domain(o.domain()).to_owned(), o.version())).collect();
    match all.get("") {
        Some(version) if !VERSIONS.contains(version) => {
            let (first, last) = (VERSIONS.start(), VERSIONS.end());
            let what = format!("version {version} of the ONNX operators; {first} to {last} are known");
            Err(Error::unsupported(what))
        }
        _ => Ok(all),
    }
}

impl<'a> Reading<'a> {
    fn new(proto: &ModelProto, external: Option<&'a External>) -> Result<Reading<'a>> {
        let mut functions = HashMap::new();
        for f in &proto.functions {
            let function = Function {
                domain: domain(f.domain()).into(),
                name: f.name().into(),
                overload: f.overload().into(),
                doc: f.doc_string().into(),
                inputs: f.input.clone(),
                outputs: f.output.clone(),
                encoded: f.encode_to_vec().into(),
            };
            let key = (function.domain.clone(), function.name.clone(), function.overload.clone());
            functions.insert(key, (f.clone(), Arc::new(function)));
        }
        let (called_nodes, called_bytes, depth) = Default::default();
        Ok(Reading { external, functions, called_nodes, called_bytes, depth })
    }

    fn model(&self, proto: &ModelProto) -> Result<Model> {
        let opsets = opsets(&proto.opset_import)?;
        let empty = GraphProto::default();
        let scope = Scope { opsets: &opsets, outer: &|_| None };
        let graph = self.graph(proto.graph.as_ref().unwrap_or(&empty), &scope)?;
        graph.check()?;
        let key =
            |f: &FunctionProto| (domain(f.domain()).to_owned(), f.name().to_owned(), f.overload().to_owned());
        let functions =
            proto.functions.iter().filter_map(|f| Some(self.functions.get(&key(f))?.1.clone())).collect();
        let mut extra: Vec<(u32, Bytes)> = Vec::new();
        extra.extend(proto.training_info.iter().map(|t| (20, t.encode_to_vec().into())));
        extra.extend(proto.configuration.iter().map(|c| (26, c.encode_to_vec().into())));
        Ok(Model {
            graph,
            opsets,
            ir_version: proto.ir_version(),
            producer: (proto.producer_name().into(), proto.producer_version().into()),
            domain: proto.domain().into(),
            version: proto.model_version(),
            doc: proto.doc_string().into(),
            metadata: entries(&proto.metadata_props),
            functions,
            extra,
        })
    }

    fn graph(&self, proto: &GraphProto, scope: &Scope) -> Result<Graph> {
        let depth = self.depth.get();
        if depth >= MAX_DEPTH {
            return Err(Error::unsupported(format!("bodies and functions nested {MAX_DEPTH} deep")));
        }
        self.depth.set(depth + 1);
        let graph = self.graph_inside(proto, scope);
        self.depth.set(depth);
        graph
    }

    fn graph_inside(&self, proto: &GraphProto, scope: &Scope) -> Result<Graph> {
        let mut graph = Graph::new(proto.name());
        graph.doc = proto.doc_string().into();
        graph.metadata = entries(&proto.metadata_props);
        graph.extra = proto.quantization_annotation.iter().map(|q| (14, q.encode_to_vec().into())).collect();
        let declared: HashMap<&str, &ValueInfoProto> =
            proto.value_info.iter().chain(&proto.output).map(|v| (v.name(), v)).collect();
        for input in &proto.input {
            let id = graph.add_value(value(input))?;
            graph.inputs.push(id);
        }
        for init in &proto.initializer {
            let doc = init.doc_string().to_owned();
            let metadata = entries(&init.metadata_props);
            let constant = tensor::from_proto(init, self.external)?;
            let id = define(&mut graph, init.name(), &declared)?;
            set_constant(&mut graph, id, constant, Home::Initializer)?;
            let value = graph.value_mut(id);
            if !doc.is_empty() || !metadata.is_empty() {
                (value.doc, value.metadata) = (doc, metadata);
            }
        }
        for init in &proto.sparse_initializer {
            let name = init.values.as_ref().map_or("", |v| v.name()).to_owned();
            let constant = tensor::dense(init, self.external)?;
            let id = define(&mut graph, &name, &declared)?;
            set_constant(&mut graph, id, constant, Home::Sparse(init.encode_to_vec().into()))?;
        }
        let is_constant =
            |n: &NodeProto| n.op_type() == "Constant" && domain(n.domain()).is_empty() && n.output.len() == 1;
        for node in &proto.node {
            let at = |e: Error| e.at(node.name(), node.op_type());
            if is_constant(node) {
                let (constant, attr) = self.constant(node).map_err(at)?;
                let id = define(&mut graph, &node.output[0], &declared).map_err(at)?;
                set_constant(&mut graph, id, constant, Home::Node(node.name().into(), attr)).map_err(at)?;
                continue;
            }
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                let new = declared.get(output.as_str()).map_or_else(|| Value::named(output), |v| value(v));
                graph.add_value(new).map_err(at)?;
            }
        }
        for node in proto.node.iter().filter(|n| !is_constant(n)) {
            self.node(&mut graph, node, scope).map_err(|e| e.at(node.name(), node.op_type()))?;
        }
        for output in &proto.output {
            let id = resolve(&mut graph, output.name(), scope);
            graph.value_mut(id).declared = true;
            graph.outputs.push(id);
        }
        graph.sort()?;
        graph.infer()?;
        Ok(graph)
    }

    fn constant(&self, node: &NodeProto) -> Result<(Tensor, &'static str)> {
        let [attr] = node.attribute.as_slice() else {
            return Err(Error::invalid("a Constant needs exactly one attribute"));
        };
        Ok(match attr.name() {
            "value" => {
                let proto =
                    attr.t.as_ref().ok_or_else(|| Error::invalid("attribute \"value\" must be a tensor"))?;
                (tensor::from_proto(proto, self.external)?, "value")
            }
            "sparse_value" => {
                let proto = attr.sparse_tensor.as_ref();
                let proto = proto
                    .ok_or_else(|| Error::invalid("attribute \"sparse_value\" must be a sparse tensor"))?;
                (tensor::dense(proto, self.external)?, "value")
            }
            "value_float" => (Tensor::scalar(attr.f()), "value_float"),
            "value_int" => (Tensor::scalar(attr.i()), "value_int"),
            "value_floats" => (Tensor::vector(&attr.floats), "value_floats"),
            "value_ints" => (Tensor::vector(&attr.ints), "value_ints"),
            "value_string" => {
                (texts(&[], std::slice::from_ref(attr.s.as_ref().unwrap_or(&Bytes::new())))?, "value_string")
            }
            "value_strings" => (texts(&[attr.strings.len()], &attr.strings)?, "value_strings"),
            other => return Err(Error::invalid(format!("a Constant has no attribute {other:?}"))),
        })
    }

    fn node(&self, graph: &mut Graph, proto: &NodeProto, scope: &Scope) -> Result<()> {
        let op = self.op(graph, proto, scope)?;
        let mut captures = Vec::new();
        let names: Vec<String> =
            op.bodies().iter().flat_map(|b| b.captures.iter().map(|(name, _)| name.clone())).collect();
        for name in names {
            captures.push(resolve(graph, &name, scope));
        }
        let inputs =
            proto.input.iter().map(|name| (!name.is_empty()).then(|| resolve(graph, name, scope))).collect();
        let outputs = proto.output.iter().map(|name| graph.find(name)).collect();
        let node = Node {
            name: proto.name().into(),
            outputs,
            captures,
            doc: proto.doc_string().into(),
            metadata: entries(&proto.metadata_props),
            extra: proto.device_configurations.iter().map(|d| (10, d.encode_to_vec().into())).collect(),
            ..Node::new(op, inputs)
        };
        graph.add_node(node)?;
        Ok(())
    }

    fn op(&self, graph: &Graph, proto: &NodeProto, scope: &Scope) -> Result<Arc<dyn Op>> {
        let domain = domain(proto.domain());
        let inner = |name: &str| {
            graph.find(name).map(|id| graph.value(id).fact.clone()).or_else(|| (scope.outer)(name))
        };
        let inner = Scope { opsets: scope.opsets, outer: &inner };
        let attrs: Attrs = proto
            .attribute
            .iter()
            .map(|a| Ok((a.name().to_owned(), self.attr(a, &inner)?)))
            .collect::<Result<_>>()?;
        let key = (domain.to_owned(), proto.op_type().to_owned(), proto.overload().to_owned());
        if let Some((function, shared)) = self.functions.get(&key) {
            return self.call(function, shared, proto, attrs);
        }
        let version = match scope.opsets.get(domain) {
            Some(&version) => version,
            None if domain.is_empty() => {
                return Err(Error::invalid("the model names no version of the ONNX operators"));
            }
            None => 1,
        };
        let reader =
            Reader { attrs: &attrs, version, inputs: proto.input.len(), outputs: proto.output.len() };
        graph::ops::read(domain, proto.op_type(), &reader)
    }

    fn call(
        &self,
        function: &FunctionProto,
        shared: &Arc<Function>,
        proto: &NodeProto,
        attrs: Attrs,
    ) -> Result<Arc<dyn Op>> {
        let nodes = self.called_nodes.get() + functions::size(&function.node);
        let bytes = self.called_bytes.get() + shared.encoded.len();
        if nodes > MAX_CALLED_NODES || bytes > MAX_CALLED_BYTES {
            return Err(Error::unsupported("functions that are called so often"));
        }
        self.called_nodes.set(nodes);
        self.called_bytes.set(bytes);
        let opsets = opsets(&function.opset_import)?;
        let body = functions::instantiate(function, proto);
        let body = self.graph(&body, &Scope { opsets: &opsets, outer: &|_| None })?;
        Ok(Arc::new(Call::new(shared.clone(), attrs, Arc::new(body))))
    }

    fn attr(&self, proto: &AttributeProto, scope: &Scope) -> Result<Attr> {
        if !proto.ref_attr_name().is_empty() {
            return Ok(Attr::Ref(proto.ref_attr_name().into(), proto.r#type.unwrap_or(0)));
        }
        // Operators use these as they are, so they are aligned here; they are small.
        let tensor = |t| tensor::from_proto(t, self.external).map(Tensor::aligned);
        let missing = || Error::invalid(format!("attribute {:?} has no value", proto.name()));
        Ok(match attr_type(proto) {
            AttributeType::Int => Attr::Int(proto.i()),
            AttributeType::Float => Attr::Float(proto.f()),
            AttributeType::String => Attr::Text(proto.s.clone().unwrap_or_default()),
            AttributeType::Ints => Attr::Ints(proto.ints.clone()),
            AttributeType::Floats => Attr::Floats(proto.floats.clone()),
            AttributeType::Strings => Attr::Texts(proto.strings.clone()),
            AttributeType::Tensor => Attr::Tensor(tensor(proto.t.as_ref().ok_or_else(missing)?)?),
            AttributeType::Tensors => Attr::Tensors(proto.tensors.iter().map(tensor).collect::<Result<_>>()?),
            AttributeType::Graph => {
                Attr::Graph(Arc::new(self.graph(proto.g.as_ref().ok_or_else(missing)?, scope)?))
            }
            AttributeType::Graphs => Attr::Graphs(
                proto.graphs.iter().map(|g| Ok(Arc::new(self.graph(g, scope)?))).collect::<Result<_>>()?,
            ),
            _ => Attr::Other(proto.encode_to_vec().into()),
        })
    }
}

/// The kind of an attribute; files of old did not state it.
fn attr_type(proto: &AttributeProto) -> AttributeType {
    if proto.r#type.is_some() && proto.r#type() != AttributeType::Undefined {
        return proto.r#type();
    }
    match proto {
        a if a.i.is_some() => AttributeType::Int,
        a if a.f.is_some() => AttributeType::Float,
        a if a.s.is_some() => AttributeType::String,
        a if a.t.is_some() => AttributeType::Tensor,
        a if a.g.is_some() => AttributeType::Graph,
        a if !a.floats.is_empty() => AttributeType::Floats,
        a if !a.strings.is_empty() => AttributeType::Strings,
        a if !a.tensors.is_empty() => AttributeType::Tensors,
        a if !a.graphs.is_empty() => AttributeType::Graphs,
        _ => AttributeType::Ints,
    }
}

fn texts(shape: &[usize], items: &[Bytes]) -> Result<Tensor> {
    let text = |b: &Bytes| {
        String::from_utf8(b.to_vec()).map_err(|_| Error::unsupported("a string that is not UTF-8"))
    };
    Tensor::strings(shape, items.iter().map(text).collect::<Result<_>>()?)
}

/// The value of this name, or a new one for a constant.
fn define(graph: &mut Graph, name: &str, declared: &HashMap<&str, &ValueInfoProto>) -> Result<ValueId> {
    match graph.find(name) {
        Some(id) if graph.value(id).constant.is_none() && graph.inputs.contains(&id) => Ok(id),
        _ => graph.add_value(declared.get(name).map_or_else(|| Value::named(name), |v| value(v))),
    }
}

fn set_constant(graph: &mut Graph, id: ValueId, constant: Tensor, home: Home) -> Result<()> {
    let is_input = graph.inputs.contains(&id);
    let value = graph.value_mut(id);
    if is_input {
        // Only a default: the caller may give another.
        value
            .fact
            .admits(&constant.clone().into())
            .map_err(|e| Error::invalid(format!("{:?}: {e}", value.name)))?;
    } else {
        value.fact = Fact::of(&constant);
    }
    value.constant = Some(constant);
    value.home = home;
    Ok(())
}

/// The value of this name: of the graph itself, or one that it captures from around it, or one that nothing makes
/// (which the verifier then reports at its reader).
fn resolve(graph: &mut Graph, name: &str, scope: &Scope) -> ValueId {
    if let Some(id) = graph.find(name) {
        return id;
    }
    let outer = (scope.outer)(name);
    let id = graph.add_free(name, outer.clone().unwrap_or_default());
    if outer.is_some() {
        graph.captures.push((name.into(), id));
    }
    id
}

fn value(info: &ValueInfoProto) -> Value {
    let mut value = Value::named(info.name());
    value.fact = Fact { ty: info.r#type.as_ref().map_or(Type::Unknown, type_of), ints: None };
    value.doc = info.doc_string().into();
    value.metadata = entries(&info.metadata_props);
    value.declared = true;
    value
}

fn type_of(proto: &TypeProto) -> Type {
    let inner = |t: &Option<Box<TypeProto>>| Box::new(t.as_deref().map_or(Type::Unknown, type_of));
    match &proto.value {
        None => Type::Unknown,
        Some(type_proto::Value::TensorType(t)) => {
            let dim = |d: &super::proto::tensor_shape_proto::Dimension| match &d.value {
                Some(dimension::Value::DimValue(n)) if *n >= 0 => Dim::Is(*n),
                // "?" is what some exporters write for sizes that have nothing to do with each other.
                Some(dimension::Value::DimParam(p)) if !p.is_empty() && p != "?" => Dim::named(p),
                _ => Dim::Unknown,
            };
            let shape = t.shape.as_ref().map(|s| s.dim.iter().map(dim).collect());
            Type::Tensor(DType::from_onnx(t.elem_type()), shape)
        }
        Some(type_proto::Value::SequenceType(s)) => Type::Sequence(inner(&s.elem_type)),
        Some(type_proto::Value::OptionalType(o)) => Type::Optional(inner(&o.elem_type)),
        Some(_) => Type::Other(proto.encode_to_vec().into()),
    }
}
