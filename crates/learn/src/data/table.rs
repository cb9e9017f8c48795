//! Texts with labels or scores in tables: CSV (RFC 4180), TSV without quotes, one JSON object a line, plain lines.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::{Dataset, Example, Input, Options, Target, class_index, class_number, describe_targets, no_such};
use crate::{Error, Result};

const TEXT: &[&str] = &["text", "sentence", "tweet", "review", "content"];
const TEXT_A: &[&str] = &["text_a", "sentence1", "premise", "question1"];
const TEXT_B: &[&str] = &["text_b", "sentence2", "hypothesis", "question2"];
const LABEL: &[&str] = &["label", "class", "category", "sentiment"];
const SCORE: &[&str] = &["score", "similarity", "similarity_score"];

/// More class names than this, without a header that says so, are taken for texts.
const MAX_GUESSED_CLASSES: usize = 1000;

/// One record of a table: the line it starts at, from 1, and its fields.
struct Record {
    line: u64,
    fields: Vec<String>,
}

/// Where the text, the second text and the answer are among a record's fields.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Columns {
    text: usize,
    text_b: Option<usize>,
    answer: Option<usize>,
    /// The answer is a score even if all are integers.
    score: bool,
}

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

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Csv,
    Tsv,
    Json,
    Lines,
}

/// The kind of table, by the file's name or else by its first line.
fn kind_of(path: &Path, text: &str) -> Kind {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let first = text.lines().next().unwrap_or_default();
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv") => Kind::Csv,
        Some("tsv") => Kind::Tsv,
        Some("txt") => Kind::Lines,
        _ if first.trim_start().starts_with(['{', '[']) => Kind::Json,
        _ if first.contains('\t') => Kind::Tsv,
        _ => Kind::Csv,
    }
}

impl Table {
    pub(super) fn open(path: &Path, bytes: &[u8], options: &Options) -> Result<Table> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() as u64 + 1;
            Error::Row { path: path.into(), line, what: "is not UTF-8 text; convert the file first".into() }
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let at = |(line, what): (u64, String)| Error::Row { path: path.into(), line, what };
        let (records, columns) = match kind_of(path, text) {
            Kind::Csv => delimited(text, b',', options),
            Kind::Tsv => delimited(text, b'\t', options),
            Kind::Json => json(text, options),
            Kind::Lines => Ok(lines(text)),
        }
        .map_err(at)?;
        if records.is_empty() {
            return Err(Error::file(path, "holds no examples"));
        }
        let (targets, classes) = targets(&records, columns, options).map_err(at)?;
        let rows = records.into_iter().zip(targets).map(|(mut record, target)| {
            let mut take = |i: usize| std::mem::take(&mut record.fields[i]);
            let (text, text_b) = (take(columns.text), columns.text_b.map(take));
            Row { line: record.line, text, text_b, target }
        });
        Ok(Table { path: path.into(), rows: rows.collect(), classes })
    }
}

type Parsed<T> = std::result::Result<T, (u64, String)>;

fn lines(text: &str) -> (Vec<Record>, Columns) {
    let record = |(i, line): (usize, &str)| Record { line: i as u64 + 1, fields: vec![line.to_string()] };
    let records = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(record);
    (records.collect(), Columns { text: 0, text_b: None, answer: None, score: false })
}

fn delimited(text: &str, delimiter: u8, options: &Options) -> Parsed<(Vec<Record>, Columns)> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        .from_reader(text.as_bytes());
    let mut records: Vec<Record> = Vec::new();
    let mut header: Option<Vec<String>> = None;
    let mut record = StringRecord::new();
    loop {
        let more = reader.read_record(&mut record).map_err(|e| {
            let line = e.position().map_or(0, csv::Position::line);
            (line, e.to_string())
        })?;
        if !more {
            break;
        }
        // The reader counts from before the empty lines that it skips.
        let position = record.position();
        let skipped = position.map_or(0, |p| {
            let rest = text.as_bytes().get(p.byte() as usize..).unwrap_or_default();
            rest.iter().take_while(|b| matches!(b, b'\r' | b'\n')).filter(|&&b| b == b'\n').count() as u64
        });
        let line = position.map_or(0, csv::Position::line) + skipped;
        let fields: Vec<String> = record.iter().map(str::to_string).collect();
        let width = header.as_ref().or(records.first().map(|r| &r.fields)).map(Vec::len);
        if let Some(width) = width.filter(|&width| width != fields.len()) {
            return Err((line, format!("has {} fields, the first row has {width}", fields.len())));
        }
        if width.is_none() && is_header(&fields, options) {
            header = Some(fields);
        } else {
            records.push(Record { line, fields });
        }
    }
    let columns = match header {
        Some(names) => by_name(&names, options).map_err(|what| (1, what))?,
        None => by_place(&records, options)?,
    };
    Ok((records, columns))
}

/// Does a row hold names of columns?
fn is_header(fields: &[String], options: &Options) -> bool {
    let given = [&options.text, &options.text_b, &options.label, &options.score];
    let usual = [TEXT, TEXT_A, TEXT_B, LABEL, SCORE].concat();
    fields.iter().map(|field| field.trim()).any(|field| {
        usual.iter().any(|name| name.eq_ignore_ascii_case(field))
            || given.iter().any(|name| name.as_deref() == Some(field))
    })
}

/// The column of a name that was given, else of the first usual name that is there.
fn find(names: &[String], given: Option<&str>, usual: &[&str]) -> std::result::Result<Option<usize>, String> {
    let position = |wanted: &str| names.iter().position(|name| name.trim().eq_ignore_ascii_case(wanted));
    match given {
        None => Ok(usual.iter().find_map(|wanted| position(wanted))),
        Some(wanted) => match position(wanted) {
            Some(i) => Ok(Some(i)),
            None => Err(format!("there is no column {wanted:?} among {}", names.join(", "))),
        },
    }
}

fn by_name(names: &[String], options: &Options) -> std::result::Result<Columns, String> {
    let text_b = find(names, options.text_b.as_deref(), TEXT_B)?;
    let text = match text_b {
        Some(_) => find(names, options.text.as_deref(), &[TEXT_A, TEXT].concat())?,
        None => find(names, options.text.as_deref(), &[TEXT, TEXT_A].concat())?,
    };
    let Some(text) = text else {
        return Err(format!("none of the columns {} is known to be the text; name it", names.join(", ")));
    };
    let label = match (&options.label, &options.score) {
        (None, Some(_)) => None,
        (label, _) => find(names, label.as_deref(), LABEL)?,
    };
    let score = find(names, options.score.as_deref(), SCORE)?;
    Ok(Columns { text, text_b, answer: label.or(score), score: label.is_none() && score.is_some() })
}

/// The columns of a table without names: text; text and answer, in either order; two texts and answer.
fn by_place(records: &[Record], options: &Options) -> Parsed<Columns> {
    let Some(first) = records.first() else {
        return Ok(Columns { text: 0, text_b: None, answer: None, score: false });
    };
    let given = [&options.text, &options.text_b, &options.label, &options.score];
    if let Some(name) = given.into_iter().flatten().next() {
        return Err((first.line, format!("there is no header row with a column {name:?}")));
    }
    let numbers = |column: usize| records.iter().all(|r| r.fields[column].trim().parse::<f64>().is_ok());
    match first.fields.len() {
        1 => Ok(Columns { text: 0, text_b: None, answer: None, score: false }),
        2 if numbers(0) && !numbers(1) => {
            Ok(Columns { text: 1, text_b: None, answer: Some(0), score: false })
        }
        2 => {
            let named = || records.iter().map(|r| r.fields[1].as_str());
            let once = named().filter(|name| *name == first.fields[1]).count() == 1;
            if !numbers(1) && (once || named().collect::<HashSet<_>>().len() > MAX_GUESSED_CLASSES) {
                let what = "has two columns without known names, the second neither numbers nor class names that \
                            come again; put a header row with known names first, or name the columns";
                return Err((first.line, what.into()));
            }
            Ok(Columns { text: 0, text_b: None, answer: Some(1), score: false })
        }
        3 if numbers(2) => Ok(Columns { text: 0, text_b: Some(1), answer: Some(2), score: false }),
        n => Err((
            first.line,
            format!("has {n} columns without known names; put a header row first, or name them"),
        )),
    }
}

fn json(text: &str, options: &Options) -> Parsed<(Vec<Record>, Columns)> {
    let mut records = Vec::new();
    let mut header: Option<(Vec<String>, Columns)> = None;
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = i as u64 + 1;
        if line.trim_start().starts_with('[') {
            return Err((number, "is a JSON array; write one JSON object a line".into()));
        }
        let object: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| (number, format!("is not a JSON object: {e}")))?;
        let (names, columns) = match &header {
            Some(header) => header,
            None => {
                let names: Vec<String> = object.keys().cloned().collect();
                let columns = by_name(&names, options).map_err(|what| (number, what))?;
                header.insert((names, columns))
            }
        };
        let field = |(i, name): (usize, &String)| match object.get(name) {
            _ if i != columns.text && Some(i) != columns.text_b && Some(i) != columns.answer => {
                Ok(String::new())
            }
            Some(Value::String(text)) => Ok(text.clone()),
            Some(number @ Value::Number(_)) => Ok(number.to_string()),
            Some(Value::Bool(yes)) => Ok(yes.to_string()),
            Some(_) => Err((number, format!("{name:?} is neither a text nor a number"))),
            None => Err((number, format!("lacks {name:?}"))),
        };
        let fields = names.iter().enumerate().map(field).collect::<Parsed<_>>()?;
        records.push(Record { line: number, fields });
    }
    let columns = header.map_or(Columns { text: 0, text_b: None, answer: None, score: false }, |h| h.1);
    Ok((records, columns))
}

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
