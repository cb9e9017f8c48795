//! A [`Model`] as an ONNX file.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use graph::ir::Home;
use graph::{Attr, Dim, Error, Graph, Model, Node, Result, Type, Value, ValueId};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataLocation,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};
use super::tensor::tensor_to_proto;

/// Numbers of fields: `ModelProto.graph`, `GraphProto.initializer`, `TensorProto.raw_data`.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;
const RAW_DATA: u32 = 9;
/// Protobuf messages end at 2 GB; weights of bigger models go to a file beside, `NAME.data`.
const MAX_INSIDE: usize = 1 << 30;
/// Tensors smaller than this stay inside the message in any case.
const MIN_OUTSIDE: usize = 1 << 12;
/// Where a tensor outside starts: a multiple of this, so that vectors can be read where they lie.
const LINE: u64 = 1 << 6;
/// The same for tensors of [`BIG`] bytes and more, so that they can be mapped by themselves on every system.
const PAGE: u64 = 1 << 16;
/// From this size on a tensor outside starts at a [`PAGE`].
const BIG: usize = 1 << 20;

/// Writes a model as an ONNX file; weights of more than 1 GB in all go to a file beside it, `NAME.data`.
///
/// # Errors
/// When an operator has no ONNX form, or the files cannot be written.
pub fn write(model: &Model, path: &Path) -> crate::Result<()> {
    write_limited(model, path, MAX_INSIDE)
}

/// As [`write`], with the weights in a file beside however big they are; only those of less than 4 kB stay inside.
///
/// # Errors
/// As [`write`].
pub fn write_beside(model: &Model, path: &Path) -> crate::Result<()> {
    write_limited(model, path, 0)
}

/// As [`write`], with another size from which on the weights go to a file beside.
fn write_limited(model: &Model, path: &Path, inside: usize) -> crate::Result<()> {
    let mut proto = to_proto(model).map_err(crate::Error::model(path))?;
    if proto.encoded_len() > inside {
        write_outside(&mut proto, path)?;
        limited(&proto).map_err(crate::Error::model(path))?;
    }
    crate::file::write(path, |out| stream(proto, out))
}

/// Size in bytes of a model's ONNX file, with that of its weights if it has one.
///
/// # Errors
/// When an operator has no ONNX form.
pub fn size(model: &Model) -> Result<usize> {
    Ok(to_proto(model)?.encoded_len())
}

/// A model as the bytes of an ONNX file.
///
/// # Errors
/// When an operator has no ONNX form, or the model is too big for one file.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    let proto = to_proto(model)?;
    let mut bytes = Vec::with_capacity(limited(&proto)?);
    stream(proto, &mut bytes).map_err(|e| Error::invalid(format!("the model cannot be encoded: {e}")))?;
    Ok(bytes)
}

/// The size of a message in bytes, when messages may be that big.
fn limited(proto: &ModelProto) -> Result<usize> {
    match proto.encoded_len() {
        size if size > i32::MAX as usize => {
            Err(Error::unsupported("an ONNX file of more than 2 GB without a file for its weights"))
        }
        size => Ok(size),
    }
}

/// Writes a message with the initializers last, each from where it lies: there is never a copy of all of them.
fn stream(mut proto: ModelProto, out: &mut dyn Write) -> std::io::Result<()> {
    let mut graph = proto.graph.take().unwrap_or_default();
    let tensors = std::mem::take(&mut graph.initializer);
    let tensors: Vec<(Vec<u8>, Option<Bytes>)> = tensors
        .into_iter()
        .map(|mut tensor| {
            let raw = tensor.raw_data.take();
            (tensor.encode_to_vec(), raw)
        })
        .collect();
    let size = |(rest, raw): &(Vec<u8>, Option<Bytes>)| {
        rest.len() + raw.as_ref().map_or(0, |raw| start(RAW_DATA, raw.len()).len() + raw.len())
    };
    let graph = graph.encode_to_vec();
    let all = tensors.iter().map(&size).map(|size| start(INITIALIZER, size).len() + size);
    let all = graph.len() + all.sum::<usize>();
    out.write_all(&proto.encode_to_vec())?;
    out.write_all(&start(GRAPH, all))?;
    out.write_all(&graph)?;
    for tensor in &tensors {
        out.write_all(&start(INITIALIZER, size(tensor)))?;
        out.write_all(&tensor.0)?;
        if let Some(raw) = &tensor.1 {
            out.write_all(&start(RAW_DATA, raw.len()))?;
            out.write_all(raw)?;
        }
    }
    Ok(())
}

/// What stands before so many bytes of a field.
fn start(field: u32, size: usize) -> Vec<u8> {
    let mut start = Vec::new();
    encode_key(field, WireType::LengthDelimited, &mut start);
    encode_varint(size as u64, &mut start);
    start
}

fn write_outside(proto: &mut ModelProto, path: &Path) -> crate::Result<()> {
    let missing = || crate::Error::broken(path, "this is not a name for a file");
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(missing)?;
    let location = format!("{name}.data");
    let data = path.with_file_name(&location);
    let mut tensors: Vec<&mut TensorProto> = Vec::new();
    if let Some(graph) = &mut proto.graph {
        tensors.extend(&mut graph.initializer);
        tensors.extend(graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.t.as_mut()));
    }
    crate::file::write(&data, |out| {
        let mut at = 0u64;
        for tensor in tensors {
            let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= MIN_OUTSIDE) else { continue };
            let start = at.next_multiple_of(if raw.len() < BIG { LINE } else { PAGE });
            out.write_all(&vec![0; (start - at) as usize])?;
            out.write_all(&raw)?;
            at = start + raw.len() as u64;
            let entry = |key: &str, value: String| StringStringEntryProto {
                key: Some(key.into()),
                value: Some(value),
            };
            tensor.external_data = vec![
                entry("location", location.clone()),
                entry("offset", start.to_string()),
                entry("length", raw.len().to_string()),
            ];
            tensor.data_location = Some(DataLocation::External.into());
        }
        Ok(())
    })
}

/// A model as its message. Weights are shared with the model, not copied.
///
/// # Errors
/// When an operator has no ONNX form.
pub fn to_proto(model: &Model) -> Result<ModelProto> {
    let import = |(domain, &version): (&String, &i64)| OperatorSetIdProto {
        domain: Some(domain.clone()),
        version: Some(version),
    };
    fn extra<M: Message + Default>(parts: &[(u32, Bytes)], field: u32) -> Result<Vec<M>> {
        let broken = |e: prost::DecodeError| Error::invalid(format!("field {field} is damaged: {e}"));
        parts.iter().filter(|p| p.0 == field).map(|p| M::decode(p.1.clone()).map_err(broken)).collect()
    }
    Ok(ModelProto {
        ir_version: Some(model.ir_version),
        opset_import: model.opsets.iter().map(import).collect(),
        producer_name: text(&model.producer.0),
        producer_version: text(&model.producer.1),
        domain: text(&model.domain),
        model_version: (model.version != 0).then_some(model.version),
        doc_string: text(&model.doc),
        graph: Some(graph(&model.graph)?),
        metadata_props: entries(&model.metadata),
        training_info: extra(&model.extra, 20)?,
        functions: {
            let broken = |e: prost::DecodeError| Error::invalid(format!("a function is damaged: {e}"));
            let decode = |f: &Bytes| Message::decode(f.clone()).map_err(broken);
            model.functions.iter().map(|f| decode(&f.encoded)).collect::<Result<_>>()?
        },
        configuration: extra(&model.extra, 26)?,
    })
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.into())
}

fn entries(entries: &[(String, String)]) -> Vec<StringStringEntryProto> {
    let entry =
        |(k, v): &(String, String)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) };
    entries.iter().map(entry).collect()
}

fn graph(graph: &Graph) -> Result<GraphProto> {
    let mut proto = GraphProto {
        name: Some(graph.name.clone()),
        doc_string: text(&graph.doc),
        metadata_props: entries(&graph.metadata),
        input: graph.inputs.iter().map(|&id| value_info(graph.value(id))).collect(),
        output: graph.outputs.iter().map(|&id| value_info(graph.value(id))).collect(),
        ..GraphProto::default()
    };
    for (field, bytes) in &graph.extra {
        if *field == 14 {
            let broken =
                |e: prost::DecodeError| Error::invalid(format!("a quantization annotation is damaged: {e}"));
            proto.quantization_annotation.push(Message::decode(bytes.clone()).map_err(broken)?);
        }
    }
    let used = used(graph);
    for (id, value) in graph.values() {
        let Some(constant) = &value.constant else {
            let apart = graph.inputs.contains(&id) || graph.outputs.contains(&id);
            if value.declared && value.producer().is_some() && !apart {
                proto.value_info.push(value_info(value));
            }
            continue;
        };
        if !used[id.index()] && !graph.inputs.contains(&id) {
            continue;
        }
        match &value.home {
            Home::Initializer => {
                let mut init = tensor_to_proto(&value.name, constant);
                init.doc_string = text(&value.doc);
                init.metadata_props = entries(&value.metadata);
                proto.initializer.push(init);
            }
            Home::Sparse(bytes) => {
                let broken =
                    |e: prost::DecodeError| Error::invalid(format!("a sparse tensor is damaged: {e}"));
                proto.sparse_initializer.push(Message::decode(bytes.clone()).map_err(broken)?);
            }
            Home::Node(name, attr) => proto.node.push(NodeProto {
                output: vec![value.name.clone()],
                name: text(name),
                op_type: Some("Constant".into()),
                attribute: vec![constant_attr(attr, constant)?],
                ..NodeProto::default()
            }),
        }
    }
    for (_, n) in graph.nodes() {
        proto.node.push(node(graph, n).map_err(|e| e.at(&n.name, n.kind()))?);
    }
    Ok(proto)
}

/// Values that a node reads or the graph gives back; by [`ValueId::index`].
fn used(graph: &Graph) -> Vec<bool> {
    let mut used = vec![false; graph.value_count()];
    for id in graph.nodes().flat_map(|(_, n)| n.reads()).chain(graph.outputs.iter().copied()) {
        used[id.index()] = true;
    }
    used
}

fn constant_attr(name: &str, constant: &graph::Tensor) -> Result<AttributeProto> {
    attr(
        name,
        &match name {
            "value_float" => Attr::Float(constant.item()?),
            "value_int" => Attr::Int(constant.item()?),
            "value_floats" => Attr::Floats(constant.values()?.into_owned()),
            "value_ints" => Attr::Ints(constant.values()?.into_owned()),
            "value_string" => Attr::from(constant.as_strings()?.first().map_or("", String::as_str)),
            "value_strings" => Attr::Texts(
                constant.as_strings()?.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect(),
            ),
            _ => Attr::Tensor(constant.clone()),
        },
    )
}

fn node(graph: &Graph, node: &Node) -> Result<NodeProto> {
    if node.op.domain() == "lessen" {
        return Err(Error::unsupported(
            "an operator of lessen's own in an ONNX file; save the graph before it is made ready to run",
        ));
    }
    let names = |ids: &[Option<ValueId>]| -> Vec<String> {
        let end = ids.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        ids[..end].iter().map(|id| id.map_or_else(String::new, |id| graph.value(id).name.clone())).collect()
    };
    let mut proto = NodeProto {
        input: names(&node.inputs),
        output: names(&node.outputs),
        name: text(&node.name),
        op_type: Some(node.kind().into()),
        domain: text(node.op.domain()),
        overload: text(node.op.overload()),
        attribute: node.op.attrs().iter().map(|(name, a)| attr(name, a)).collect::<Result<_>>()?,
        doc_string: text(&node.doc),
        metadata_props: entries(&node.metadata),
        ..NodeProto::default()
    };
    for (_, bytes) in &node.extra {
        let broken =
            |e: prost::DecodeError| Error::invalid(format!("a device configuration is damaged: {e}"));
        proto.device_configurations.push(Message::decode(bytes.clone()).map_err(broken)?);
    }
    Ok(proto)
}

fn attr(name: &str, attr: &Attr) -> Result<AttributeProto> {
    let mut proto = AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    let kind = match attr {
        Attr::Int(v) => {
            proto.i = Some(*v);
            AttributeType::Int
        }
        Attr::Float(v) => {
            proto.f = Some(*v);
            AttributeType::Float
        }
        Attr::Text(v) => {
            proto.s = Some(v.clone());
            AttributeType::String
        }
        Attr::Tensor(t) => {
            proto.t = Some(tensor_to_proto("", t));
            AttributeType::Tensor
        }
        Attr::Graph(g) => {
            proto.g = Some(graph(g)?);
            AttributeType::Graph
        }
        Attr::Ints(v) => {
            proto.ints = v.clone();
            AttributeType::Ints
        }
        Attr::Floats(v) => {
            proto.floats = v.clone();
            AttributeType::Floats
        }
        Attr::Texts(v) => {
            proto.strings = v.clone();
            AttributeType::Strings
        }
        Attr::Tensors(v) => {
            proto.tensors = v.iter().map(|t| tensor_to_proto("", t)).collect();
            AttributeType::Tensors
        }
        Attr::Graphs(v) => {
            proto.graphs = v.iter().map(|g| graph(g)).collect::<Result<_>>()?;
            AttributeType::Graphs
        }
        Attr::Ref(of, kind) => {
            proto.ref_attr_name = Some(of.clone());
            proto.r#type = Some(*kind);
            return Ok(proto);
        }
        Attr::Other(bytes) => {
            let broken =
                |e: prost::DecodeError| Error::invalid(format!("attribute {name:?} is damaged: {e}"));
            return Message::decode(bytes.clone()).map_err(broken);
        }
    };
    proto.r#type = Some(kind.into());
    Ok(proto)
}

fn value_info(value: &Value) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(value.name.clone()),
        r#type: type_to_proto(&value.fact.ty),
        doc_string: text(&value.doc),
        metadata_props: entries(&value.metadata),
    }
}

fn type_to_proto(ty: &Type) -> Option<TypeProto> {
    let inner = |t: &Type| type_to_proto(t).map(Box::new);
    let value = match ty {
        Type::Unknown | Type::Tensor(None, _) => return None,
        Type::Tensor(Some(dtype), shape) => {
            let dim = |d: &Dim| Dimension {
                denotation: None,
                value: match d {
                    Dim::Is(n) => Some(dimension::Value::DimValue(*n)),
                    Dim::Named(name) => Some(dimension::Value::DimParam(name.to_string())),
                    Dim::Unknown => None,
                },
            };
            type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(dtype.to_onnx()),
                shape: shape.as_ref().map(|s| TensorShapeProto { dim: s.iter().map(dim).collect() }),
            })
        }
        Type::Sequence(t) => {
            type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type: inner(t) }))
        }
        Type::Optional(t) => {
            type_proto::Value::OptionalType(Box::new(type_proto::Optional { elem_type: inner(t) }))
        }
        Type::Other(bytes) => return TypeProto::decode(bytes.clone()).ok(),
    };
    Some(TypeProto { denotation: None, value: Some(value) })
}

#[cfg(test)]
mod tests {
    use graph::op::Reader;
    use graph::{DType, Fact, Tensor};

    use super::*;

    /// `x + small + first + second + third`, of which the last is made by a node and is the biggest.
    fn model() -> Model {
        let mut graph = Graph::new("g");
        let big: Vec<f32> = (0..175 * 1501).map(|i| i as f32).collect();
        let x = graph.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n")])).unwrap();
        let small = graph.add_constant("small", Tensor::scalar(1f32));
        let first = graph.add_constant("first", Tensor::vector(&big[..1501]));
        let second = graph.add_constant("second", Tensor::vector(&big[..1500]).reshaped(&[1500, 1]).unwrap());
        let third = graph.add_constant("third", Tensor::vector(&big).reshaped(&[175, 1, 1501]).unwrap());
        graph.value_mut(third).home = Home::Node("maker".into(), "value");
        let mut sum = x;
        for constant in [small, first, second, third] {
            let attrs = graph::Attrs::new();
            let reader = Reader { attrs: &attrs, version: 17, inputs: 2, outputs: 1 };
            let node =
                Node::new(graph::ops::read("", "Add", &reader).unwrap(), vec![Some(sum), Some(constant)]);
            sum = graph.add_with_outputs("sum", node, 1, None).unwrap().1[0];
        }
        graph.outputs.push(sum);
        Model { graph, opsets: [(String::new(), 17)].into(), ir_version: 8, ..Model::default() }
    }

    #[test]
    fn weights_beside_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let model = model();
        write_limited(&model, &path, 1000).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 1000);
        let data = std::fs::metadata(folder.path().join("m.onnx.data")).unwrap().len();
        // In the order of the file: 1501 and 1500 numbers, each on a line, and the third on a page.
        assert_eq!(data, PAGE + 4 * 175 * 1501, "{data} bytes beside");
        let again = super::super::read(&path).unwrap();
        for name in ["small", "first", "second", "third"] {
            let of = |m: &Model| m.graph.constant(m.graph.find(name).unwrap()).unwrap().clone();
            assert_eq!(of(&again), of(&model), "{name}");
        }
        // Over the files that the weights are mapped from.
        write_limited(&again, &path, 1000).unwrap();
        let third = super::super::read(&path).unwrap();
        assert_eq!(to_bytes(&third).unwrap(), to_bytes(&model).unwrap());
    }

    #[test]
    fn what_is_written_piece_by_piece_is_the_message() {
        let mut proto = to_proto(&model()).unwrap();
        let graph = proto.graph.as_mut().unwrap();
        graph.initializer[0].doc_string = Some("why".into());
        graph.initializer[1].raw_data = Some(Bytes::new());
        graph.initializer.push(TensorProto { string_data: vec![Bytes::from("s")], ..TensorProto::default() });
        graph
            .sparse_initializer
            .push(super::super::proto::SparseTensorProto { dims: vec![2], ..Default::default() });
        proto.metadata_props = entries(&[("k".into(), "v".into())]);
        let (mut bytes, size) = (Vec::new(), proto.encoded_len());
        stream(proto.clone(), &mut bytes).unwrap();
        assert_eq!((bytes.len(), ModelProto::decode(&bytes[..]).unwrap()), (size, proto));
    }

    #[test]
    fn small_models_stay_in_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        write(&model(), &path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size(&model()).unwrap() as u64);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), to_bytes(&model()).unwrap());
    }
}
