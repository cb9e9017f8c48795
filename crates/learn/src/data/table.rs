//! Texts or numbers with labels or scores in tables, held in memory.

use std::path::{Path, PathBuf};

use graph::Tensor;

use super::rows::{Columns, Record, Rows};
use super::source::too_big;
use super::{
    Dataset, Example, Input, Options, Several, Target, class_index, class_number, describe_targets, no_such,
};
use crate::{Error, Place, Result};

/// The rows of one file.
pub(super) struct Table {
    path: PathBuf,
    rows: Vec<Row>,
    classes: Option<Vec<String>>,
}

struct Row {
    place: Place,
    shown: Shown,
    target: Target,
}

enum Shown {
    Text(String),
    Pair(String, String),
    Numbers(Tensor),
}

/// The name of a table's numbers among a model's inputs, where it has more than one.
const NUMBERS: &str = "numbers";

impl Table {
    pub(super) fn open(path: &Path, mut rows: Rows, options: &Options) -> Result<Table> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = rows.next_record()? {
            bytes += record.fields.iter().map(|field| field.len() as u64).sum::<u64>() + 1;
            // The last row of a table of lines may lack its end.
            if bytes > options.limit.saturating_add(1) {
                return Err(Error::file(path, too_big(options.limit)));
            }
            records.push(record);
        }
        if records.is_empty() {
            return Err(Error::file(path, "holds no examples"));
        }
        let columns = rows.columns();
        let wrong = |(place, what)| Error::Row { path: path.into(), place, what };
        let (targets, classes) = match &options.several {
            Some(several) => labels(&records, columns, several, options.classes.as_deref()),
            None => targets(&records, columns, options),
        }
        .map_err(wrong)?;
        let shown = |mut record: Record| {
            let mut take = |i: usize| std::mem::take(&mut record.fields[i]);
            Ok(match (columns.text, columns.text_b) {
                (Some(a), Some(b)) => Shown::Pair(take(a), take(b)),
                (Some(text), None) => Shown::Text(take(text)),
                (None, _) => Shown::Numbers(numbers(&record, columns, rows.names())?),
            })
        };
        let rows = records.into_iter().zip(targets).map(|(record, target)| {
            let place = record.place;
            Ok(Row { place, shown: shown(record).map_err(wrong)?, target })
        });
        Ok(Table { path: path.into(), rows: rows.collect::<Result<_>>()?, classes })
    }
}

type Parsed<T> = std::result::Result<T, (Place, String)>;

/// All fields of a row that are no answers, as `[1, numbers]`.
fn numbers(record: &Record, columns: &Columns, names: &[String]) -> Parsed<Tensor> {
    let shown = record.fields.iter().enumerate().filter(|(i, _)| !columns.is_answer(*i));
    let number = |(i, field): (usize, &String)| match field.trim().parse::<f32>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => {
            let what =
                if field.trim().is_empty() { "is empty".into() } else { format!("{field:?} is no number") };
            let name = names.get(i).map_or_else(|| i.to_string(), |name| format!("{name:?}"));
            Err((record.place, format!("column {name}: {what}; if a column is the text, name it")))
        }
    };
    let values = shown.map(number).collect::<Parsed<Vec<f32>>>()?;
    Tensor::new(&[1, values.len()], &values).map_err(|e| (record.place, e.to_string()))
}

/// What sets of labels are written with between them.
const BETWEEN: [char; 2] = [';', '|'];

/// The sets of labels, and their names.
fn labels(
    records: &[Record],
    columns: &Columns,
    several: &Several,
    given: Option<&[String]>,
) -> Parsed<(Vec<Target>, Option<Vec<String>>)> {
    match several {
        Several::Columns(names) => {
            let all = given.unwrap_or(names);
            let of = |record: &Record| {
                let mut held = Vec::new();
                for (name, &at) in names.iter().zip(&columns.several) {
                    let holds = match record.fields[at].trim() {
                        "0" | "0.0" | "false" | "False" => false,
                        "1" | "1.0" | "true" | "True" => true,
                        other => {
                            let what =
                                format!("column {name:?} holds {other:?}; a label's column holds 0 or 1");
                            return Err((record.place, what));
                        }
                    };
                    if holds {
                        held.push(class_index(all, name).map_err(|what| (record.place, what))?);
                    }
                }
                Ok(Target::labels(held))
            };
            Ok((records.iter().map(of).collect::<Parsed<_>>()?, Some(all.to_vec())))
        }
        Several::Listed(_) => {
            let answer = columns.answer.unwrap_or(0);
            let listed = |record: &'_ Record| -> Vec<String> {
                let parts = record.fields[answer].split(BETWEEN).map(str::trim);
                parts.filter(|name| !name.is_empty()).map(str::to_owned).collect()
            };
            let names = given.map(<[String]>::to_vec).unwrap_or_else(|| {
                let mut names: Vec<String> = records.iter().flat_map(listed).collect();
                names.sort();
                names.dedup();
                names
            });
            let of = |record: &Record| {
                let index = |name: &String| class_index(&names, name).map_err(|what| (record.place, what));
                Ok(Target::labels(listed(record).iter().map(index).collect::<Parsed<_>>()?))
            };
            let targets = records.iter().map(of).collect::<Parsed<_>>()?;
            Ok((targets, Some(names)))
        }
    }
}

/// The answers, and the names of the classes if they have names.
fn targets(
    records: &[Record],
    columns: &Columns,
    options: &Options,
) -> Parsed<(Vec<Target>, Option<Vec<String>>)> {
    let given = options.classes.as_deref();
    let Some(answer) = columns.answer else {
        return Ok((vec![Target::None; records.len()], options.classes.clone()));
    };
    let answers = || records.iter().map(|r| (r.place, r.fields[answer].trim()));
    if let Some((place, _)) = answers().find(|(_, text)| text.is_empty()) {
        return Err((place, "the label or score is empty".into()));
    }
    let named = given.is_some_and(|names| answers().all(|(_, text)| names.iter().any(|n| n == text)));
    if !columns.score && !named && answers().all(|(_, text)| text.parse::<i64>().is_ok()) {
        let class = |(place, text): (Place, &str)| {
            let label = text.parse().map_err(|_| (place, format!("label {text:?} is no integer")))?;
            class_number(label, given).map(Target::Class).map_err(|what| (place, what))
        };
        return Ok((answers().map(class).collect::<Parsed<_>>()?, options.classes.clone()));
    }
    if columns.score || !named && answers().all(|(_, text)| text.parse::<f64>().is_ok()) {
        let score = |(place, text): (Place, &str)| match text.parse::<f64>() {
            Ok(score) if score.is_finite() => Ok(Target::Score(score)),
            _ => Err((place, format!("score {text:?} is not a finite number"))),
        };
        return Ok((answers().map(score).collect::<Parsed<_>>()?, None));
    }
    let names = given.map(<[String]>::to_vec).unwrap_or_else(|| {
        let mut names: Vec<String> = answers().map(|(_, text)| text.to_string()).collect();
        names.sort();
        names.dedup();
        names
    });
    let class = |(place, text)| class_index(&names, text).map(Target::Class).map_err(|what| (place, what));
    let targets = answers().map(class).collect::<Parsed<_>>()?;
    Ok((targets, Some(names)))
}

impl Dataset for Table {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&self, i: usize) -> Result<Example> {
        let row = self.rows.get(i).ok_or_else(|| no_such(i, self.len()))?;
        let input = match &row.shown {
            Shown::Pair(a, b) => Input::Pair(a.clone(), b.clone()),
            Shown::Text(text) => Input::Text(text.clone()),
            Shown::Numbers(numbers) => Input::Arrays(vec![(NUMBERS.into(), numbers.clone())]),
        };
        Ok(Example { id: row.place.to_string(), input, target: row.target.clone() })
    }

    fn target(&self, i: usize) -> Target {
        self.rows.get(i).map_or(Target::None, |row| row.target.clone())
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn describe(&self) -> String {
        let kind = match self.rows.first().map(|row| &row.shown) {
            Some(Shown::Pair(..)) => "pairs of texts".into(),
            Some(Shown::Numbers(numbers)) => format!("rows of {} numbers", numbers.len()),
            _ => "texts".into(),
        };
        let targets = match self.rows.iter().any(|row| row.target != Target::None) {
            true => describe_targets(self.rows.iter().map(|row| row.target.clone()), self.classes()),
            false => "no labels".into(),
        };
        format!("{}: {} {kind}, {targets}", self.path.display(), self.len())
    }
}
