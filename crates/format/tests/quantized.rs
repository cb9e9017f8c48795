//! Quantised models compute what onnxruntime computes with them: as they are, and after integer operators have taken
//! the place of what lies between grids. `quantized/make.py` made the models and the numbers.

use std::path::Path;

use graph::run::Session;
use graph::{DType, Datum, Graph, Tensor, ops, tidy};
use kernel::Cpu;
use serde_json::Value;

fn tensor(value: &Value) -> Tensor {
    let list = |key: &str| value[key].as_array().into_iter().flatten();
    let shape: Vec<usize> = list("shape").map(|v| v.as_u64().unwrap() as usize).collect();
    let data: Vec<f32> = list("data").map(|v| v.as_f64().unwrap() as f32).collect();
    let dtype = match value["type"].as_str() {
        Some("uint8") => DType::U8,
        Some("int64") => DType::I64,
        _ => DType::F32,
    };
    ops::cast::cast(Tensor::new(&shape, &data).unwrap(), dtype, true).unwrap()
}

/// The greatest difference, in units of the greatest number; of bytes, in steps.
fn distance(got: &Datum, want: &Tensor) -> f32 {
    let got = got.tensor().unwrap();
    assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()));
    let (a, b) = (got.to_f32().unwrap(), want.to_f32().unwrap());
    let top = if want.dtype() == DType::F32 { b.iter().fold(0f32, |m, v| m.max(v.abs())) } else { 1.0 };
    assert!(top > 0.0 && a.iter().all(|v| v.is_finite()));
    a.iter().zip(b.iter()).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / top
}

/// The operators of a graph that compute in floating point what could be integers.
fn real_products(graph: &Graph) -> Vec<String> {
    let slow = ["Conv", "MatMul", "Gemm", "FusedConv", "Linear", "MatMulInteger", "ConvInteger"];
    graph.nodes().map(|(_, n)| n.kind().to_owned()).filter(|k| slow.contains(&k.as_str())).collect()
}

#[test]
fn models_compute_what_onnxruntime_computes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quantized");
    let text = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let mut wrong = Vec::new();
    for (name, case) in cases.as_object().unwrap() {
        let graph = lessen_format::open(&folder.join(format!("{name}.onnx"))).unwrap().graph;
        let inputs: Vec<(&str, Datum)> =
            case["inputs"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), tensor(v).into())).collect();
        let want = tensor(&case["outputs"][0]);
        let cpu = Cpu::new(2).unwrap();
        let mut tidied = graph.clone();
        tidy::run(&mut tidied, tidy::RUN, &cpu).unwrap();
        let left = real_products(&tidied);
        // What `quantize_dynamic` leaves: the products of two activations.
        let products = if name.starts_with("rows_dynamic") { 2 } else { 0 };
        if left.len() > products {
            wrong.push(format!("{name}: {left:?} were not rewritten"));
        }
        // Bytes: one step. A network: one step of its last grid; a single product: rounding.
        let limit = match (want.dtype(), name.contains("_dynamic") || name.starts_with("rows")) {
            (DType::U8, _) => 1.0,
            _ if name.starts_with("image") || name.starts_with("rows") => 0.015,
            _ => 1e-5,
        };
        for (way, graph) in [("as it is", graph), ("tidied", tidied)] {
            let got = Session::new(graph, &cpu).unwrap().run(inputs.clone());
            let far = match &got {
                Ok(got) => distance(&got[0], &want),
                Err(e) => {
                    wrong.push(format!("{name} {way}: {e}"));
                    continue;
                }
            };
            println!("{name} {way}: {far}");
            if far > limit {
                wrong.push(format!("{name} {way}: off by {far}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
