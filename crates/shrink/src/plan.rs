//! A plan: what is done to each weight. It is written beside the result, can be edited, and replayed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::quantize::coded::Form;

/// What is done to one weight. In a plan: `keep`, `int8-static`, `int8-dynamic`, `int8-rows`, `w4`, `w3-g128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Choice {
    /// It stays f32.
    Keep,
    /// 8 bits, a scale for each channel; activations on a fixed 8-bit grid found by calibration.
    Int8Static,
    /// 8 bits, a scale for each channel; activations on an 8-bit grid that is found anew for each tensor.
    Int8Dynamic,
    /// A table looked up by row: 8 bits, a scale for each row.
    Int8Rows,
    /// Codes of few bits, activations as they are.
    Bits(Form),
}

/// The choices that have a name of their own.
const NAMES: [(Choice, &str); 4] = [
    (Choice::Keep, "keep"),
    (Choice::Int8Static, "int8-static"),
    (Choice::Int8Dynamic, "int8-dynamic"),
    (Choice::Int8Rows, "int8-rows"),
];

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, NAMES.iter().find(|(choice, _)| choice == self)) {
            (_, Some((_, name))) => f.write_str(name),
            (Choice::Bits(form), None) => form.fmt(f),
            (_, None) => Ok(()),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        match NAMES.iter().find(|(_, name)| *name == text) {
            Some((choice, _)) => Ok(*choice),
            None => Ok(Choice::Bits(text.parse()?)),
        }
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> String {
        choice.to_string()
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Choice, String> {
        text.parse()
    }
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
    /// Squared error that was made, relative: of what the weight's products are, where calibration has seen their
    /// inputs and columns were swept; else of the weight itself.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_written_as_they_are_read() {
        let form = Form { bits: 3, group: 64 };
        for choice in NAMES.iter().map(|(c, _)| *c).chain([Choice::Bits(form)]) {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            assert_eq!(Choice::try_from(String::from(choice)), Ok(choice));
        }
        assert!("int7".parse::<Choice>().is_err());
    }
}
