//! Tiny models as messages, and the pieces to build broken ones from.

use bytes::Bytes;
use lessen_format::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

pub const FLOAT: i32 = 1;
pub const INT64: i32 = 7;
pub const BOOL: i32 = 9;

pub fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

/// A node named after its first output.
pub fn node(kind: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        name: Some(format!("n_{}", outputs.first().unwrap_or(&""))),
        op_type: Some(kind.into()),
        input: strings(inputs),
        output: strings(outputs),
        attribute,
        ..NodeProto::default()
    }
}

pub fn info(name: &str, elem: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| Dimension { denotation: None, value: Some(dimension::Value::DimValue(d)) };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(elem), shape };
    let ty = TypeProto { denotation: None, value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..ValueInfoProto::default() }
}

pub fn raw(name: &str, elem: i32, dims: &[i64], data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(elem),
        dims: dims.to_vec(),
        raw_data: Some(data.into()),
        ..TensorProto::default()
    }
}

pub fn floats(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>();
    let data = (0..count).flat_map(|i| ((i * 37 % 11) as f32 / 8.0 - 0.5).to_le_bytes()).collect();
    raw(name, FLOAT, dims, data)
}

pub fn ints(name: &str, values: &[i64]) -> TensorProto {
    raw(name, INT64, &[values.len() as i64], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(kind.into()), ..AttributeProto::default() }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, AttributeType::Int) }
}

pub fn list(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, AttributeType::Ints) }
}

pub fn text(name: &str, s: &'static [u8]) -> AttributeProto {
    AttributeProto { s: Some(Bytes::from_static(s)), ..attribute(name, AttributeType::String) }
}

pub fn body(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g), ..attribute(name, AttributeType::Graph) }
}

pub fn graph(
    nodes: Vec<NodeProto>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) -> GraphProto {
    GraphProto {
        name: Some("g".into()),
        node: nodes,
        input: inputs,
        output: outputs,
        initializer,
        ..GraphProto::default()
    }
}

pub fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

pub fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset("", 17), opset("own", 1)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

pub fn function(name: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        domain: Some("own".into()),
        name: Some(name.into()),
        input: strings(&["a"]),
        output: strings(&["b"]),
        node: nodes,
        opset_import: vec![opset("", 17), opset("own", 1)],
        ..FunctionProto::default()
    }
}

pub fn call(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: Some("own".into()), ..node(name, inputs, outputs, Vec::new()) }
}

fn convolutions() -> ModelProto {
    let nodes = vec![
        node("Conv", &["x", "w", "b"], &["c"], vec![list("pads", &[1, 1, 1, 1]), list("strides", &[2, 2])]),
        node("BatchNormalization", &["c", "s", "s", "s", "v"], &["n"], Vec::new()),
        node("Relu", &["n"], &["r"], Vec::new()),
        node("MaxPool", &["r"], &["p"], vec![list("kernel_shape", &[2, 2])]),
        node("Shape", &["p"], &["shape"], Vec::new()),
        node("Gather", &["shape", "zero"], &["batch"], vec![int("axis", 0)]),
        node("Concat", &["batch", "rest"], &["to"], vec![int("axis", 0)]),
        node("Reshape", &["p", "to"], &["flat"], Vec::new()),
        node("Gemm", &["flat", "fc"], &["logits"], vec![int("transB", 1)]),
        node("Softmax", &["logits"], &["y"], vec![int("axis", -1)]),
    ];
    let mut variance = floats("v", &[3]);
    variance.raw_data = Some([1f32; 3].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into());
    model(graph(
        nodes,
        vec![info("x", FLOAT, &[1, 2, 8, 8])],
        vec![info("y", FLOAT, &[1, 4])],
        vec![
            floats("w", &[3, 2, 3, 3]),
            floats("b", &[3]),
            floats("s", &[3]),
            variance,
            ints("zero", &[0]),
            ints("rest", &[27]),
            floats("fc", &[4, 27]),
        ],
    ))
}

fn bodies() -> ModelProto {
    let branch = |name: &str, kind: &str| {
        body(
            name,
            graph(
                vec![node(kind, &["x"], &["o"], Vec::new())],
                Vec::new(),
                vec![info("o", FLOAT, &[2, 3])],
                Vec::new(),
            ),
        )
    };
    let step = graph(
        vec![
            node("Add", &["state", "y"], &["next"], Vec::new()),
            node("Identity", &["go"], &["on"], Vec::new()),
            node("ReduceSum", &["next", "axes"], &["sum"], vec![int("keepdims", 0)]),
        ],
        vec![info("i", INT64, &[]), info("go", BOOL, &[]), info("state", FLOAT, &[2, 3])],
        vec![info("on", BOOL, &[]), info("next", FLOAT, &[2, 3]), info("sum", FLOAT, &[2])],
        vec![ints("axes", &[1])],
    );
    let nodes = vec![
        node("If", &["cond"], &["y"], vec![branch("then_branch", "Relu"), branch("else_branch", "Neg")]),
        node("Loop", &["trips", "cond", "x"], &["last", "sums"], vec![body("body", step)]),
    ];
    let outputs = vec![info("last", FLOAT, &[2, 3]), info("sums", FLOAT, &[3, 2])];
    let inputs = vec![info("x", FLOAT, &[2, 3]), info("cond", BOOL, &[])];
    model(graph(nodes, inputs, outputs, vec![raw("trips", INT64, &[], 3i64.to_le_bytes().to_vec())]))
}

fn functions() -> ModelProto {
    let inner = function("Inner", vec![node("Tanh", &["a"], &["b"], Vec::new())]);
    let outer =
        function("Outer", vec![call("Inner", &["a"], &["t"]), node("Mul", &["t", "a"], &["b"], Vec::new())]);
    let nodes = vec![call("Outer", &["x"], &["h"]), call("Outer", &["h"], &["y"])];
    let graph = graph(nodes, vec![info("x", FLOAT, &[2, 3])], vec![info("y", FLOAT, &[2, 3])], Vec::new());
    ModelProto { functions: vec![outer, inner], ..model(graph) }
}

pub fn sparse(dims: &[i64]) -> SparseTensorProto {
    SparseTensorProto {
        values: Some(floats("w", &[2])),
        indices: Some(ints("", &[1, 5])),
        dims: dims.to_vec(),
    }
}

fn quantized() -> ModelProto {
    let nodes = vec![
        node("QuantizeLinear", &["x", "s", "z"], &["q"], Vec::new()),
        node("DequantizeLinear", &["q", "s", "z"], &["d"], Vec::new()),
        node("DequantizeLinear", &["w8", "ws"], &["wd"], vec![int("axis", 0)]),
        node("MatMul", &["d", "wd"], &["m"], Vec::new()),
        node("Slice", &["m", "from", "to"], &["part"], Vec::new()),
        node("Transpose", &["part"], &["turned"], vec![list("perm", &[1, 0])]),
        node("MatMul", &["turned", "w"], &["y"], Vec::new()),
    ];
    let mut graph = graph(
        nodes,
        vec![info("x", FLOAT, &[2, 3])],
        vec![info("y", FLOAT, &[4, 3])],
        vec![
            raw("s", FLOAT, &[], 0.02f32.to_le_bytes().to_vec()),
            raw("z", 3, &[], vec![3]),
            raw("w8", 3, &[3, 4], (0..12).map(|i| i * 20).collect()),
            floats("ws", &[3]),
            ints("from", &[0, 0]),
            ints("to", &[2, 4]),
        ],
    );
    graph.sparse_initializer.push(sparse(&[2, 3]));
    model(graph)
}

/// Models that read and run, by name.
pub fn good() -> Vec<(&'static str, ModelProto)> {
    vec![
        ("convolutions", convolutions()),
        ("bodies", bodies()),
        ("functions", functions()),
        ("quantized", quantized()),
    ]
}
