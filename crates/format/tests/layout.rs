//! Real models whose images are turned to channels that come last: they compute the same, and few transposes are
//! left. The models are in `models` of the folder that `LESSEN_SHARED` names; without them nothing is tested.

use std::path::{Path, PathBuf};

use graph::run::Session;
use graph::{Datum, Graph, Tensor, tidy};
use kernel::Cpu;

/// A model of the shared folder.
fn shared(name: &str) -> Option<Graph> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("LESSEN_SHARED").map_or(beside, PathBuf::from);
    let path = folder.join("models").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(lessen_format::open(&path).unwrap().graph)
}

/// A picture of noise for the only input; unknown sizes are one.
fn picture(graph: &Graph) -> Vec<(String, Datum)> {
    let inputs = graph.inputs.iter().map(|&id| graph.value(id)).filter(|v| v.constant.is_none());
    let noise =
        |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 37 + i / 7) % 101) as f32 / 50.0 - 1.0).collect() };
    inputs
        .map(|v| {
            let shape: Vec<usize> = v.fact.shape().unwrap().iter().map(|d| d.size().unwrap_or(1)).collect();
            let tensor = Tensor::new(&shape, &noise(shape.iter().product())).unwrap();
            (v.name.clone(), tensor.into())
        })
        .collect()
}

#[test]
fn only_the_borders_are_transposed() {
    let cpu = Cpu::new(2).unwrap();
    for name in ["resnet20.onnx", "resnet56.onnx", "efficientnet_lite0.onnx"] {
        let Some(graph) = shared(name) else { continue };
        let run = |stages: &[&[tidy::Pass]]| {
            let mut graph = graph.clone();
            tidy::run(&mut graph, stages, &cpu).unwrap();
            let kinds: Vec<String> = graph.nodes().map(|(_, n)| n.kind().to_owned()).collect();
            let inputs = picture(&graph);
            let inputs = inputs.iter().map(|(n, d)| (n.as_str(), d.clone())).collect();
            let out = Session::new(graph, &cpu).unwrap().run(inputs).unwrap().remove(0);
            (kinds, out.tensor().unwrap().to_f32().unwrap().into_owned())
        };
        let ((_, want), (kinds, got)) = (run(&tidy::RUN[..1]), run(tidy::RUN));
        let transposes = kinds.iter().filter(|k| *k == "Transpose").count();
        assert!(transposes <= 1, "{name}: {transposes} transposes in {kinds:?}");
        let top = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-4 * top), "{name}");
    }
}
