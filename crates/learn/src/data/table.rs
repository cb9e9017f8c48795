//! Texts with labels or scores in tables, held in memory.

use std::path::{Path, PathBuf};

use super::rows::{Columns, Record, Rows};
use super::{Dataset, Example, Input, Options, Target, class_index, class_number, describe_targets, no_such};
use crate::{Error, Result};

/// The texts of one file.
pub(super) struct Table {
    path: PathBuf,
    rows: Vec<Row>,
    classes: Option<Vec<String>>,
}

struct Row {
    line: u64,
    text: String,
    text_b: Option<String>,
    target: Target,
}

impl Table {
    pub(super) fn open(path: &Path, bytes: &[u8], options: &Options) -> Result<Table> {
        let mut rows = Rows::new(path, Box::new(bytes), options, usize::MAX)?;
        let mut records = Vec::new();
        while let Some(record) = rows.next_record()? {
            records.push(record);
        }
        if records.is_empty() {
            return Err(Error::file(path, "holds no examples"));
        }
        let columns = rows.columns();
        let (targets, classes) = targets(&records, columns, options).map_err(|(line, what)| Error::Row {
            path: path.into(),
            line,
            what,
        })?;
        let rows = records.into_iter().zip(targets).map(|(mut record, target)| {
            let mut take = |i: usize| std::mem::take(&mut record.fields[i]);
            let (text, text_b) = (take(columns.text), columns.text_b.map(take));
            Row { line: record.line, text, text_b, target }
        });
        Ok(Table { path: path.into(), rows: rows.collect(), classes })
    }
}

type Parsed<T> = std::result::Result<T, (u64, String)>;

/// The answers, and the names of the classes if they have names.
fn targets(
    records: &[Record],
    columns: Columns,
    options: &Options,
) -> Parsed<(Vec<Target>, Option<Vec<String>>)> {
    let given = options.classes.as_deref();
    let Some(answer) = columns.answer else {
        return Ok((vec![Target::None; records.len()], options.classes.clone()));
    };
    let answers = || records.iter().map(|r| (r.line, r.fields[answer].trim()));
    if let Some((line, _)) = answers().find(|(_, text)| text.is_empty()) {
        return Err((line, "the label or score is empty".into()));
    }
    let named = given.is_some_and(|names| answers().all(|(_, text)| names.iter().any(|n| n == text)));
    if !columns.score && !named && answers().all(|(_, text)| text.parse::<i64>().is_ok()) {
        let class = |(line, text): (u64, &str)| {
            let label = text.parse().map_err(|_| (line, format!("label {text:?} is no integer")))?;
            class_number(label, given).map(Target::Class).map_err(|what| (line, what))
        };
        return Ok((answers().map(class).collect::<Parsed<_>>()?, options.classes.clone()));
    }
    if columns.score || !named && answers().all(|(_, text)| text.parse::<f64>().is_ok()) {
        let score = |(line, text): (u64, &str)| match text.parse::<f64>() {
            Ok(score) if score.is_finite() => Ok(Target::Score(score)),
            _ => Err((line, format!("score {text:?} is not a finite number"))),
        };
        return Ok((answers().map(score).collect::<Parsed<_>>()?, None));
    }
    let names = given.map(<[String]>::to_vec).unwrap_or_else(|| {
        let mut names: Vec<String> = answers().map(|(_, text)| text.to_string()).collect();
        names.sort();
        names.dedup();
        names
    });
    let class = |(line, text)| class_index(&names, text).map(Target::Class).map_err(|what| (line, what));
    let targets = answers().map(class).collect::<Parsed<_>>()?;
    Ok((targets, Some(names)))
}

impl Dataset for Table {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&self, i: usize) -> Result<Example> {
        let row = self.rows.get(i).ok_or_else(|| no_such(i, self.len()))?;
        let input = match &row.text_b {
            Some(text_b) => Input::Pair(row.text.clone(), text_b.clone()),
            None => Input::Text(row.text.clone()),
        };
        Ok(Example { id: format!("line {}", row.line), input, target: row.target })
    }

    fn target(&self, i: usize) -> Target {
        self.rows.get(i).map_or(Target::None, |row| row.target)
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn describe(&self) -> String {
        let kind = match self.rows.first().is_some_and(|row| row.text_b.is_some()) {
            true => "pairs of texts",
            false => "texts",
        };
        let targets = match self.rows.iter().any(|row| row.target != Target::None) {
            true => describe_targets(self.rows.iter().map(|row| row.target), self.classes()),
            false => "no labels".into(),
        };
        format!("{}: {} {kind}, {targets}", self.path.display(), self.len())
    }
}
