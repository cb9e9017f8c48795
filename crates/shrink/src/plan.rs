//! A plan: what is done to each weight. It is written beside the result, can be edited, and replayed.

use serde::{Deserialize, Serialize};

/// What is done to one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// It stays f32.
    Keep,
    /// 8 bits, a scale for each channel; activations on a fixed 8-bit grid found by calibration.
    Int8Static,
    /// 8 bits, a scale for each channel; activations on an 8-bit grid that is found anew for each tensor.
    Int8Dynamic,
    /// A table looked up by row: 8 bits, a scale for each row.
    Int8Rows,
}

/// One line of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The node that uses the weight.
    pub node: String,
    /// The weight.
    pub weight: String,
    /// Number of elements.
    pub elements: usize,
    /// What is done.
    pub choice: Choice,
    /// Squared error of the weight, relative to its squared norm.
    pub error: f64,
}

/// What is done to each weight, in the order of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The lines.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The weights that are changed.
    pub fn changed(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|s| s.choice != Choice::Keep)
    }
}
