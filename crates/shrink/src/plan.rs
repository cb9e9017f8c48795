//! A plan: what is done to each weight. It is written beside the result, can be edited, and replayed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::pass::Pass;
use crate::quantize::codebook;
use crate::quantize::coded::{Form, Ranges, Rounding};
use crate::{Error, Result};

/// What is done to one weight. In a plan: `keep`, `int8-static`, `int8-dynamic`, `int8-rows`, `w4`, `w3-g128`,
/// `k3-g128`, `nf4-g64`.
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
    /// Codes of few bits on grids, activations as they are.
    Bits(Form),
    /// Codes of few bits that name values of a table, activations as they are.
    Table(codebook::Form),
}

impl Choice {
    /// Bits of a code, where activations stay as they are.
    pub fn bits(self) -> Option<u32> {
        match self {
            Choice::Bits(form) => Some(form.bits),
            Choice::Table(form) => Some(form.codes.bits),
            _ => None,
        }
    }
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
            (Choice::Table(form), None) => form.fmt(f),
            (_, None) => Ok(()),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Choice, String> {
        match NAMES.iter().find(|(_, name)| *name == text) {
            Some((choice, _)) => Ok(*choice),
            None if ["k", "nf", "iq"].iter().any(|start| text.starts_with(start)) => {
                Ok(Choice::Table(text.parse()?))
            }
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

    fn try_from(text: String) -> std::result::Result<Choice, String> {
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
    #[serde(default)]
    pub elements: usize,
    /// What is done.
    pub choice: Choice,
    /// Squared error that was made, relative: of what the weight's products are, where calibration has seen their
    /// inputs and columns were swept (before codes were learnt); else of the weight itself.
    #[serde(default)]
    pub error: f64,
}

/// Where the examples come from that calibration looks at, when they are not of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CalibrationData {
    /// lessen makes them itself.
    SelfMade,
    /// They are given beside the data.
    Given,
}

/// What is done to each weight, in the order of the nodes. It is a file that people read and edit: see [`Plan::read`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// How weights of few bits go to their codes.
    #[serde(default)]
    pub rounding: Rounding,
    /// How the scales of weights of few bits are found.
    #[serde(default)]
    pub ranges: Ranges,
    /// The version of ONNX's operators that the model is raised to first; as low as can be when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opset: Option<i64>,
    /// Most examples that calibration looks at; as many as usual when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<usize>,
    /// Where those examples come from; from the data when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_data: Option<CalibrationData>,
    /// What is done to the whole graph before that, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<Pass>,
    /// What is done to each weight.
    #[serde(default)]
    pub steps: Vec<Step>,
}

impl Plan {
    /// A plan from a TOML file: `rounding`, `ranges`, a table `[[passes]]` for each pass, and `[[steps]]` for each weight. A step needs `node`,
    /// `weight` and `choice`; the rest is for people.
    ///
    /// # Errors
    /// [`Error::Plan`] that says where the text is wrong.
    pub fn read(text: &str) -> Result<Plan> {
        toml::from_str(text).map_err(|e| Error::Plan(e.to_string()))
    }

    /// The plan as a TOML file.
    ///
    /// # Errors
    /// [`Error::Plan`] when it cannot be written, which no plan of this crate should bring about.
    pub fn write(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::Plan(e.to_string()))
    }

    /// The weights that are changed.
    pub fn changed(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|s| s.choice != Choice::Keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::pattern::Pattern;
    use crate::prune::zeros;

    #[test]
    fn choices_are_written_as_they_are_read() {
        let form = Form { bits: 3, group: 64 };
        let tables =
            ["k3", "k3-g64", "k2-rows", "nf4-g64", "iq4-g32"].map(|t| Choice::Table(t.parse().unwrap()));
        for choice in NAMES.iter().map(|(c, _)| *c).chain([Choice::Bits(form)]).chain(tables) {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            assert_eq!(Choice::try_from(String::from(choice)), Ok(choice));
        }
        assert!(["int7", "k9", "k3-x", "nf3"].iter().all(|text| text.parse::<Choice>().is_err()));
    }

    #[test]
    fn plans_are_read_as_they_are_written_and_mistakes_are_shown() {
        let step =
            |choice| Step { node: "a/b".into(), weight: "w \"1\"".into(), elements: 7, choice, error: 1e-3 };
        let steps = vec![step(Choice::Keep), step(Choice::Bits(Form { bits: 4, group: 0 }))];
        let spot = zeros::Spot { node: "a".into(), weight: "w".into(), pattern: Pattern::Rows, share: 0.5 };
        let passes = vec![Pass::Zeros(zeros::Zeros { weights: vec![spot], ..zeros::Zeros::default() })];
        let plan = Plan {
            rounding: Rounding::Nearest,
            ranges: Ranges::MinMax,
            opset: Some(21),
            calibration: Some(9),
            calibration_data: Some(CalibrationData::SelfMade),
            passes,
            steps,
        };
        assert_eq!(Plan::read(&plan.write().unwrap()).unwrap(), plan);
        let short = Plan::read("[[steps]]\nnode = 'n'\nweight = 'w'\nchoice = 'w3-g64'\n").unwrap();
        assert_eq!((short.rounding, short.steps[0].choice), (Rounding::Sweep, "w3-g64".parse().unwrap()));
        for (text, part) in [
            ("[[steps]]\nnode = 'n'\nweight = 'w'\nchoice = 'w9'", "w9"),
            ("[[steps]]\nnode = 'n'\nchoice = 'keep'", "weight"),
            ("speed = 3", "speed"),
            ("calibration_data = 'bought'", "self-made"),
            ("steps = 3 4", "line 1"),
        ] {
            let error = Plan::read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
