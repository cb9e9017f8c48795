//! Which weights of a graph are trained.

use graph::op::WeightKind;
use graph::{DType, Graph, ValueId};
use serde::{Deserialize, Serialize};

use super::Hold;

/// Which weights are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// Those of convolutions and products, what is added to them, and the factors of norms; not tables of tokens.
    #[default]
    All,
    /// What is added to products, and the factors of norms.
    Small,
}

/// The weights of a graph that can be trained, in the order of its nodes, and what each is held to.
pub fn trainable(graph: &Graph, which: Which) -> Vec<(ValueId, Hold)> {
    /// Where what is added or multiplied can stand.
    const BESIDE: [&str; 10] = [
        "Add",
        "Mul",
        "Conv",
        "Gemm",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "RMSNormalization",
        "SkipLayerNormalization",
        "FusedConv",
        "PRelu",
    ];
    let mut found: Vec<(ValueId, Hold)> = Vec::new();
    for (_, node) in graph.nodes() {
        let weight = node.op.weight();
        for (at, value) in node.inputs.iter().enumerate() {
            let Some(value) = *value else { continue };
            let Some(tensor) = graph.constant(value).filter(|t| t.dtype() == DType::F32) else { continue };
            let main = weight.as_ref().is_some_and(|w| w.input == at && w.kind != WeightKind::Embedding);
            // A vector, whatever its place among axes of size one; a single number is a constant of the formula.
            let wide = tensor.shape().iter().filter(|n| **n > 1).count();
            let beside = wide == 1 && BESIDE.contains(&node.kind());
            let wanted = if main { which == Which::All } else { beside };
            if wanted && found.iter().all(|(v, _)| *v != value) {
                found.push((value, if wide > 1 { Hold::Zeros } else { Hold::Free }));
            }
        }
    }
    found
}
