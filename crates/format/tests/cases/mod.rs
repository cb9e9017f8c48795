//! Test cases in folders: `model.onnx`, tensors, and `case.json`, which says what is put in and what must come out.

use std::path::Path;

use graph::run::Session;
use graph::{DType, Datum, Graph, Tensor};
use kernel::Cpu;
use lessen_format::onnx::{proto::TensorProto, tensor_from_proto};
use prost::Message;
use serde_json::Value;

fn datum(folder: &Path, value: &Value) -> Result<Option<Datum>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(file) => {
            let bytes = std::fs::read(folder.join(file)).map_err(|e| e.to_string())?;
            let proto = TensorProto::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
            Ok(Some(tensor_from_proto(&proto).map_err(|e| format!("test data: {e}"))?.into()))
        }
        Value::Array(items) => {
            let items = items.iter().map(|v| datum(folder, v)?.ok_or("nothing in a sequence".to_string()));
            Ok(Some(Datum::Sequence(items.collect::<Result<_, _>>()?)))
        }
        other => Err(format!("test data {other}")),
    }
}

fn floats(t: &Tensor) -> Option<Vec<f64>> {
    match t.dtype() {
        DType::F64 | DType::C128 => Some(bytemuck::pod_collect_to_vec::<u8, f64>(t.bytes())),
        DType::C64 => {
            Some(bytemuck::pod_collect_to_vec::<u8, f32>(t.bytes()).into_iter().map(f64::from).collect())
        }
        d if d.is_float() => Some(t.to_f32().ok()?.iter().map(|&v| v.into()).collect()),
        _ => None,
    }
}

fn compare(got: &Datum, want: &Datum, rtol: f64, atol: f64) -> Result<(), String> {
    match (got, want) {
        (Datum::Optional(Some(got)), want) => compare(got, want, rtol, atol),
        (Datum::Sequence(a), Datum::Sequence(b)) if a.len() == b.len() => {
            a.iter().zip(b).try_for_each(|(a, b)| compare(a, b, rtol, atol))
        }
        (Datum::Tensor(a), Datum::Tensor(b)) => {
            if a.dtype() != b.dtype() || a.shape() != b.shape() {
                return Err(format!("got {a:?}, expected {b:?}"));
            }
            match (floats(a), floats(b)) {
                (Some(x), Some(y)) => {
                    let near = |x: f64, y: f64| {
                        x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= atol + rtol * y.abs()
                    };
                    match x.iter().zip(&y).position(|(&x, &y)| !near(x, y)) {
                        Some(i) => {
                            Err(format!("element {i} of {:?} is {}, expected {}", a.shape(), x[i], y[i]))
                        }
                        None => Ok(()),
                    }
                }
                _ if a == b => Ok(()),
                _ => Err(format!("got {a:?}, expected {b:?}")),
            }
        }
        _ => Err(format!("got {got:?}, expected {want:?}")),
    }
}

/// Runs the graph of a case and compares what comes out.
pub fn run(folder: &Path, graph: Graph) -> Result<(), String> {
    let case = std::fs::read(folder.join("case.json")).map_err(|e| e.to_string())?;
    let case: Value = serde_json::from_slice(&case).map_err(|e| e.to_string())?;
    let (rtol, atol) = (case["rtol"].as_f64().unwrap_or(1e-3), case["atol"].as_f64().unwrap_or(1e-7));
    let cpu = Cpu::new(1)?;
    let session = Session::new(graph, &cpu).map_err(|e| e.to_string())?;
    for set in case["sets"].as_array().into_iter().flatten() {
        let list = |key: &str| -> Result<Vec<Option<Datum>>, String> {
            set[key].as_array().into_iter().flatten().map(|v| datum(folder, v)).collect()
        };
        let names: Vec<String> =
            session.graph().inputs.iter().map(|&id| session.graph().value(id).name.clone()).collect();
        let inputs = list("inputs")?;
        let optional = |n: &String| {
            let fact = &session.graph().find(n).map(|id| session.graph().value(id).fact.clone());
            matches!(fact, Some(f) if matches!(f.ty, graph::Type::Optional(_)))
                .then_some(Datum::Optional(None))
        };
        let given = names
            .iter()
            .zip(inputs)
            .filter_map(|(n, d)| Some((n.as_str(), d.or_else(|| optional(n))?)))
            .collect();
        let outputs = session.run(given).map_err(|e| e.to_string())?;
        for (i, (got, want)) in outputs.iter().zip(list("outputs")?).enumerate() {
            if let Some(want) = want {
                compare(got, &want, rtol, atol).map_err(|e| format!("output {i}: {e}"))?;
            }
        }
    }
    Ok(())
}
