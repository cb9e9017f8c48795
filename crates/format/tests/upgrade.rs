//! Models raised to newer versions of the ONNX operators give the same results. `upgrade/make.py` writes models in
//! old versions and what they must give, `LESSEN_UPGRADE_CASES` names the folder; `LESSEN_ONNX_NODES` names the one
//! that `onnx_nodes/export.py` writes. `upgrade/check.py` does the same with onnxruntime.

mod cases;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use graph::{Attr, Attrs, DType, Dim, Fact, Graph, Model, Node, Tensor, Value, op::Reader, ops};
use lessen_format as format;
use lessen_format::onnx::{needed, upgrade};

/// Cases that cannot be raised, with what they are refused for.
const REFUSED: &[(&str, &str)] = &[
    ("test_not_2d", "of version 1 of the ONNX operators"),
    ("test_not_3d", "of version 1 of the ONNX operators"),
    ("test_not_4d", "of version 1 of the ONNX operators"),
    ("test_scan_sum", "a Scan over batches"),
];

fn folders(variable: &str) -> Vec<PathBuf> {
    let Ok(folder) = std::env::var(variable) else {
        println!("skipped: {variable} names no folder");
        return Vec::new();
    };
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the folder can be read").map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn rewritten(model: &Model) -> Graph {
    format::onnx::read_bytes(format::onnx::to_bytes(model).unwrap().into()).unwrap().graph
}

fn check(folder: &Path, to: i64) -> Result<bool, String> {
    let Ok(model) = format::open(&folder.join("model.onnx")) else { return Ok(false) };
    if let Err(why) = cases::run(folder, model.graph.clone()) {
        println!("passed over: {}: {why}", folder.display());
        return Ok(false);
    }
    let mut raised = model.clone();
    upgrade(&mut raised, to).map_err(|e| e.to_string())?;
    cases::run(folder, rewritten(&raised))?;
    Ok(true)
}

#[test]
fn raised_models_give_the_same_results() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for folder in folders("LESSEN_UPGRADE_CASES").into_iter().chain(folders("LESSEN_ONNX_NODES")) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        for to in [13, 17, 18, 21, 28] {
            match check(&folder, to) {
                Ok(ran) => count += usize::from(ran),
                Err(e) if REFUSED.iter().any(|(n, why)| *n == name && e.contains(why)) => {}
                Err(e) => wrong.push(format!("{name} to {to}: {e}")),
            }
        }
    }
    println!("{count} raised models give the same results");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A model of one node with an input `x` of this shape.
fn one(kind: &str, version: i64, attrs: Attrs, shape: &[usize], outputs: usize) -> Model {
    let mut graph = Graph::new("g");
    let dims = shape.iter().map(|&d| Dim::from(d)).collect();
    let x = graph.add_input("x", Fact::tensor(DType::F32, dims)).unwrap();
    let reader = Reader { attrs: &attrs, version, inputs: 1, outputs };
    let mut node = Node::new(ops::read("", kind, &reader).unwrap(), vec![Some(x)]);
    node.name = "it".into();
    for i in 0..outputs {
        let y = graph.add_value(Value::named(&format!("y{i}"))).unwrap();
        node.outputs.push(Some(y));
        graph.outputs.push(y);
    }
    graph.add_node(node).unwrap();
    Model { graph, opsets: [(String::new(), version)].into(), ir_version: 3, ..Model::default() }
}

fn only(model: &Model) -> &Node {
    model.graph.nodes().next().unwrap().1
}

fn constant(model: &Model, input: usize) -> Option<&Tensor> {
    model.graph.constant(only(model).input(input)?)
}

#[test]
fn attributes_become_inputs() {
    let mut model = one("Squeeze", 11, Attrs::new().ints("axes", &[0]), &[1, 3], 1);
    upgrade(&mut model, 13).unwrap();
    assert_eq!(constant(&model, 1).unwrap().to_ints().unwrap(), [0]);
    assert!(only(&model).op.attrs().get("axes").is_none());
    assert_eq!((model.opsets[""], model.ir_version), (13, 7));

    let mut model = one("Clip", 7, Attrs::new().float("max", 6.0), &[2, 3], 1);
    upgrade(&mut model, 17).unwrap();
    assert_eq!(only(&model).input(1), None);
    assert_eq!(constant(&model, 2).unwrap().item::<f32>().unwrap(), 6.0);
}

#[test]
fn defaults_that_changed_are_stated() {
    let mut model = one("Split", 11, Attrs::new(), &[4, 3], 2);
    upgrade(&mut model, 17).unwrap();
    assert!(only(&model).op.attrs().get("num_outputs").is_none());
    upgrade(&mut model, 21).unwrap();
    assert!(matches!(only(&model).op.attrs().get("num_outputs"), Some(Attr::Int(2))));
    assert_eq!(model.ir_version, 10);

    let mut model = one("Softmax", 11, Attrs::new(), &[2, 3, 4], 1);
    upgrade(&mut model, 13).unwrap();
    let kinds: Vec<&str> = model.graph.nodes().map(|(_, n)| n.kind()).collect();
    assert_eq!(kinds, ["Shape", "Flatten", "Softmax", "Reshape"]);
    assert_eq!(model.graph.value(model.graph.outputs[0]).name, "y0");
}

#[test]
fn what_cannot_be_raised_names_the_node_and_changes_nothing() {
    let cases = [
        (one("BatchNormalization", 9, Attrs::new(), &[1, 2, 3], 3), "training"),
        (one("Dropout", 7, Attrs::new(), &[1, 2, 3], 2), "mask"),
    ];
    for (mut model, says) in cases {
        let before = model.opsets.clone();
        let error = upgrade(&mut model, 21).unwrap_err().to_string();
        assert!(error.contains("\"it\"") && error.contains(says), "{error}");
        assert_eq!(model.opsets, before);
    }
}

#[test]
fn versions_out_of_range_are_refused() {
    let mut model = one("Relu", 7, Attrs::new(), &[2], 1);
    for to in [i64::MIN, 0, 12, 29, i64::MAX] {
        assert!(upgrade(&mut model, to).is_err(), "{to}");
    }
    for from in [i64::MIN, -1, 0, 6, 29, i64::MAX] {
        model.opsets.insert(String::new(), from);
        assert!(upgrade(&mut model, 21).is_err(), "{from}");
    }
    model.opsets.insert(String::new(), 22);
    upgrade(&mut model, 21).unwrap();
    assert_eq!(model.opsets[""], 22);
    assert!(format::onnx::read_bytes(Bytes::new()).is_err());
}

#[test]
fn what_unknown_operators_hold_is_kept_and_raised() {
    // A graph in an operator of another domain reads a weight of the graph around it.
    let mut body = Graph::new("body");
    let w = body.add_free("w", Fact::default());
    body.captures.push(("w".into(), w));
    let attrs = Attrs::new().ints("axes", &[0]);
    let reader = Reader { attrs: &attrs, version: 11, inputs: 1, outputs: 1 };
    let squeeze = Node::new(ops::read("", "Squeeze", &reader).unwrap(), vec![Some(w)]);
    let (_, made) = body.add_with_outputs("o", squeeze, 1, None).unwrap();
    body.outputs.push(made[0]);
    let attrs = Attrs::new().with("body", Attr::Graph(body.into()));
    let mut graph = Graph::new("g");
    let w = graph.add_constant("w", Tensor::vector(&[1f32]));
    let reader = Reader { attrs: &attrs, version: 1, inputs: 0, outputs: 1 };
    let mut node = Node::new(ops::read("elsewhere", "Search", &reader).unwrap(), Vec::new());
    node.captures.push(w);
    let (_, made) = graph.add_with_outputs("y", node, 1, None).unwrap();
    graph.outputs.push(made[0]);
    let opsets = [(String::new(), 11), ("elsewhere".into(), 1)].into();
    let mut model = Model { graph, opsets, ir_version: 6, ..Model::default() };
    upgrade(&mut model, 13).unwrap();
    let again = rewritten(&model);
    assert!(again.find("w").is_some_and(|w| again.constant(w).is_some()), "the weight is written");
    let (_, node) = again.nodes().next().unwrap();
    let body = node.op.bodies()[0];
    let (_, squeeze) = body.nodes().next().unwrap();
    assert_eq!(squeeze.inputs.len(), 2);
    assert_eq!(body.captures[0].0, "w");
}

#[test]
fn a_newer_operator_that_onnxruntime_wrote_into_an_older_model_counts() {
    let model = one("LayerNormalization", 12, Attrs::new(), &[2, 3], 1);
    assert_eq!(needed(&model), 17);
    let mut raised = model.clone();
    upgrade(&mut raised, needed(&model)).unwrap();
    assert_eq!(raised.opsets[""], 17);
    for version in [17, 21] {
        assert_eq!(needed(&one("LayerNormalization", version, Attrs::new(), &[2, 3], 1)), version);
    }
    assert_eq!(needed(&one("Relu", 12, Attrs::new(), &[2], 1)), 12);
    let attrs = Attrs::new().with("body", Attr::Graph(model.graph.into()));
    let reader = Reader { attrs: &attrs, version: 1, inputs: 0, outputs: 0 };
    let mut graph = Graph::new("g");
    graph.add_node(Node::new(ops::read("elsewhere", "Search", &reader).unwrap(), Vec::new())).unwrap();
    let outer = Model { graph, opsets: [(String::new(), 12)].into(), ..Model::default() };
    assert_eq!(needed(&outer), 17, "a body counts");
}
