//! The metric that a loss is a loss of: that of the task, or one that a few examples count more in, so that they cannot pay
//! for the others.

use std::fmt;
use std::str::FromStr;

use learn::score;

use crate::eval::{Judged, SEED, percent, rows};
use crate::receipt::Number;
use crate::{Error, Result};

/// Which metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// That of the task: accuracy, micro F1 of labels, correlation of scores, or agreement.
    #[default]
    Usual,
    /// The mean of F1 over the classes or labels.
    MacroF1,
    /// The mean over the classes of the share of their examples that are answered right.
    Balanced,
    /// The share of the examples of one class or label, by its name or number, that are found.
    Recall(String),
}

impl FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Measure, String> {
        match (text, text.strip_prefix("recall=")) {
            ("usual", _) => Ok(Measure::Usual),
            ("macro-f1", _) => Ok(Measure::MacroF1),
            ("balanced-accuracy", _) => Ok(Measure::Balanced),
            (_, Some(class)) if !class.is_empty() => Ok(Measure::Recall(class.into())),
            _ => Err(format!(
                "{text:?} is no metric; metrics are usual, macro-f1, balanced-accuracy and recall=CLASS"
            )),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::Usual => f.write_str("usual"),
            Measure::MacroF1 => f.write_str("macro-f1"),
            Measure::Balanced => f.write_str("balanced-accuracy"),
            Measure::Recall(class) => write!(f, "recall={class}"),
        }
    }
}

/// Answers and truths by a metric.
#[derive(Debug)]
pub(crate) struct Measured {
    judged: Judged,
    statistic: Statistic,
    /// The name of the metric.
    pub name: String,
}

#[derive(Clone, Copy, Debug)]
enum Statistic {
    Usual,
    Classes(score::Metric<usize>),
    MacroOfLabels,
}

impl Measure {
    /// Takes from answers and truths what the metric looks at; `names` are those of the classes.
    ///
    /// # Errors
    /// When the metric is not one of such answers, or none of the examples is of the class.
    pub(crate) fn of(&self, judged: Judged, names: Option<&[String]>) -> Result<Measured> {
        let (judged, statistic, name) = match (self, judged) {
            (Measure::Usual, judged) => {
                let name = judged.name().to_owned();
                (judged, Statistic::Usual, name)
            }
            (Measure::MacroF1, judged @ Judged::Classes(..)) => {
                (judged, Statistic::Classes(score::macro_f1), "macro F1".into())
            }
            (Measure::MacroF1, judged @ Judged::Labels(..)) => {
                (judged, Statistic::MacroOfLabels, "macro F1".into())
            }
            (Measure::Balanced, judged @ Judged::Classes(..)) => {
                (judged, Statistic::Classes(score::balanced_accuracy), "balanced accuracy".into())
            }
            (Measure::Recall(class), judged @ (Judged::Classes(..) | Judged::Labels(..))) => {
                let at = index(class, names)?;
                let (answers, truths): (Vec<usize>, Vec<usize>) = match judged {
                    Judged::Labels(answers, truths) => {
                        let holds = |of: &Vec<bool>| usize::from(of.get(at).is_some_and(|holds| *holds));
                        let each = answers.iter().zip(&truths).map(|(a, t)| (holds(a), holds(t)));
                        each.filter(|(_, truth)| *truth == 1).unzip()
                    }
                    Judged::Classes(answers, truths) => {
                        answers.into_iter().zip(truths).filter(|(_, truth)| *truth == at).unzip()
                    }
                    Judged::Scores(..) => (Vec::new(), Vec::new()),
                };
                if truths.is_empty() {
                    return Err(Error::input(format!(
                        "none of the examples to measure on is of class {class:?}; give more of them"
                    )));
                }
                (Judged::Classes(answers, truths), Statistic::Usual, format!("recall of {class}"))
            }
            (_, judged) => {
                let of = match judged {
                    Judged::Classes(..) => "classes",
                    Judged::Labels(..) => "labels, any of which may hold",
                    Judged::Scores(..) => "scores",
                };
                return Err(Error::input(format!("metric {self} is not one of {of}")));
            }
        };
        Ok(Measured { judged, statistic, name })
    }
}

/// The index of a class, by its name or number.
fn index(class: &str, names: Option<&[String]>) -> Result<usize> {
    let by_name = names.and_then(|names| names.iter().position(|name| name == class));
    by_name.or_else(|| class.parse().ok()).ok_or_else(|| {
        let known = names.map_or_else(|| "numbers, from 0".into(), |names| names.join(", "));
        Error::input(format!("there is no class {class:?} to measure; classes are {known}"))
    })
}

impl Measured {
    /// Number of examples that count.
    pub fn examples(&self) -> usize {
        match &self.judged {
            Judged::Classes(_, truths) => truths.len(),
            Judged::Labels(_, truths) => truths.len(),
            Judged::Scores(_, truths) => truths.len(),
        }
    }

    /// The metric with its interval.
    ///
    /// # Errors
    /// When there are too few examples.
    pub fn value(&self) -> Result<Number> {
        match (self.statistic, &self.judged) {
            (Statistic::Classes(metric), Judged::Classes(answers, truths)) => {
                Ok(percent(score::with_interval(metric, answers, truths, SEED)?))
            }
            (Statistic::MacroOfLabels, Judged::Labels(answers, truths)) => {
                let (answers, truths) = (rows(answers), rows(truths));
                Ok(percent(score::with_interval(score::label_macro_f1, &answers, &truths, SEED)?))
            }
            _ => Ok(self.judged.metric()?.1),
        }
    }

    /// This less that of `before`, over the same examples, with the unit of the metric, per cent as points.
    ///
    /// # Errors
    /// When there are too few examples, or those of `before` are of another kind.
    pub fn difference(&self, before: &Measured) -> Result<Number> {
        let samples = match (self.statistic, &before.judged, &self.judged) {
            (Statistic::Classes(metric), Judged::Classes(a, truths), Judged::Classes(b, _)) => {
                score::difference(metric, a, b, truths, SEED)?
            }
            (Statistic::MacroOfLabels, Judged::Labels(a, truths), Judged::Labels(b, _)) => {
                let [a, b, truths] = [a, b, truths].map(|of| rows(of));
                score::difference(score::label_macro_f1, &a, &b, &truths, SEED)?
            }
            _ => return self.judged.difference(&before.judged),
        };
        Ok(Number { unit: "points", ..percent(samples) })
    }

    /// The probability that this is at most `bound` below `before`, by these examples.
    ///
    /// # Errors
    /// As [`Measured::difference`].
    pub fn within(&self, before: &Measured, bound: f64) -> Result<f64> {
        let samples = match (self.statistic, &before.judged, &self.judged) {
            (Statistic::Usual, Judged::Classes(a, truths), Judged::Classes(b, _)) => {
                return Ok(score::loss_within(&score::flips(a, b, truths)?, bound, SEED)?);
            }
            (Statistic::Classes(metric), Judged::Classes(a, truths), Judged::Classes(b, _)) => {
                score::difference_samples(metric, a, b, truths, SEED)?
            }
            (_, Judged::Scores(a, truths), Judged::Scores(b, _)) => {
                score::difference_samples(score::spearman, a, b, truths, SEED)?
            }
            (statistic, Judged::Labels(a, truths), Judged::Labels(b, _)) => {
                let [a, b, truths] = [a, b, truths].map(|of| rows(of));
                let macro_f1 = matches!(statistic, Statistic::MacroOfLabels);
                let metric = if macro_f1 { score::label_macro_f1 } else { score::micro_f1 };
                score::difference_samples(metric, &a, &b, &truths, SEED)?
            }
            _ => return Err(Error::input("the models were judged by different tasks")),
        };
        Ok(samples.share_at_least(-bound))
    }
}

/// Is the metric of this name a share of the examples, so that its interval is Wilson's?
pub(crate) fn is_share(name: &str) -> bool {
    ["top-1 accuracy", "agreement"].contains(&name) || name.starts_with("recall of ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(measure: &str, answers: &[usize], truths: &[usize]) -> Result<Measured> {
        let names = ["no", "yes"].map(String::from);
        let judged = Judged::Classes(answers.to_vec(), truths.to_vec());
        measure.parse::<Measure>().unwrap().of(judged, Some(&names))
    }

    #[test]
    fn each_metric_counts_what_it_is_named_after() {
        let truths = [0, 0, 0, 0, 0, 0, 1, 1];
        let (before, after) = ([0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 1, 0]);
        for (measure, name, examples, value, loss) in [
            ("usual", "top-1 accuracy", 8, 87.5, 12.5),
            ("recall=yes", "recall of yes", 2, 50.0, 50.0),
            ("recall=1", "recall of 1", 2, 50.0, 50.0),
            ("recall=no", "recall of no", 6, 100.0, 0.0),
            ("balanced-accuracy", "balanced accuracy", 8, 75.0, 25.0),
            (
                "macro-f1",
                "macro F1",
                8,
                100.0 * (12.0 / 13.0 + 2.0 / 3.0) / 2.0,
                100.0 - 100.0 * (12.0 / 13.0 + 2.0 / 3.0) / 2.0,
            ),
        ] {
            let (a, b) =
                (measured(measure, &before, &truths).unwrap(), measured(measure, &after, &truths).unwrap());
            assert_eq!((b.name.as_str(), b.examples()), (name, examples));
            let change = b.difference(&a).unwrap();
            assert!((b.value().unwrap().value - value).abs() < 1e-9, "{measure}: {:?}", b.value());
            assert!((change.value + loss).abs() < 1e-9 && change.unit == "points", "{measure}: {change:?}");
            let (little, much) = (b.within(&a, 0.0).unwrap(), b.within(&a, 0.9).unwrap());
            assert!(little <= much && much > 0.9, "{measure}: {little} {much}");
            assert_eq!(measure.parse::<Measure>().unwrap().to_string(), measure);
        }
    }

    #[test]
    fn labels_have_recalls_too() {
        let sets = |sets: &[[bool; 2]]| sets.iter().map(|set| set.to_vec()).collect::<Vec<_>>();
        let truths = sets(&[[true, true], [false, true], [true, false]]);
        let judged = Judged::Labels(sets(&[[true, false], [true, true], [true, false]]), truths);
        let recall = Measure::Recall("1".into()).of(judged.clone(), None).unwrap();
        assert_eq!((recall.examples(), recall.value().unwrap().value), (2, 50.0));
        let macro_f1 = Measure::MacroF1.of(judged.clone(), None).unwrap().value().unwrap().value;
        assert!((macro_f1 - 100.0 * (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-9, "{macro_f1}");
        assert!(Measure::Balanced.of(judged, None).unwrap_err().to_string().contains("any of which"));
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        let fails = |measure, truths: &[usize]| measured(measure, &[0, 0], truths).unwrap_err().to_string();
        assert!(fails("recall=yes", &[0, 0]).contains("none of the examples"));
        assert!(fails("recall=perhaps", &[0, 0]).contains("no, yes"));
        let scores = Judged::Scores(vec![1.0, 2.0], vec![1.0, 2.0]);
        assert!(Measure::MacroF1.of(scores, None).unwrap_err().to_string().contains("scores"));
        for bad in ["", "f1", "recall", "recall="] {
            assert!(bad.parse::<Measure>().unwrap_err().contains("macro-f1"), "{bad}");
        }
    }
}
