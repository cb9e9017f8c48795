//! Tables read row by row, however long they are: CSV (RFC 4180), TSV without quotes, one JSON object a line, plain lines,
//! Parquet. Each row says where it stands in the file, so that it can be copied as it is.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use csv_core::{ReadRecordResult, Reader as Splitter, ReaderBuilder};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::{Options, Several, parquet, source};
use crate::{Error, Place, Result};

const TEXT: &[&str] = &["text", "sentence", "tweet", "review", "content"];
const TEXT_A: &[&str] = &["text_a", "sentence1", "premise", "question1"];
const TEXT_B: &[&str] = &["text_b", "sentence2", "hypothesis", "question2"];
const LABEL: &[&str] = &["label", "class", "category", "sentiment"];
const SCORE: &[&str] = &["score", "similarity", "similarity_score"];

/// More class names than this, without a header that says so, are taken for texts.
const MAX_GUESSED_CLASSES: usize = 1000;
/// Rows that are looked at when a stream does not name its columns.
const GUESSED_FROM: usize = 10_000;
/// No row has more bytes.
pub(super) const MAX_ROW: usize = 64 << 20;
const BUFFER: usize = 1 << 18;

/// One row of a table: where it starts, and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub place: Place,
    /// The first byte, of the file as it is unpacked; in Parquet the number of the row.
    pub start: u64,
    pub fields: Vec<String>,
}

/// Where the text, the second text and the answer are among a row's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// `None` for a table of numbers: all but the answer are shown.
    pub text: Option<usize>,
    pub text_b: Option<usize>,
    pub answer: Option<usize>,
    /// The answer is a score even if all are integers.
    pub score: bool,
    /// The columns of labels, one each.
    pub several: Vec<usize>,
}

impl Columns {
    /// Does this column hold an answer?
    pub fn is_answer(&self, column: usize) -> bool {
        self.answer == Some(column) || self.several.contains(&column)
    }

    /// Is this column shown to a model, or an answer?
    pub fn reads(&self, column: usize) -> bool {
        self.text.is_none() || [self.text, self.text_b].contains(&Some(column)) || self.is_answer(column)
    }
}

/// How the rows of a table are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Commas between fields, which may be quoted; lines may end within quotes.
    Csv,
    /// Tabs between fields, without quotes.
    Tsv,
    /// An object a line.
    Json,
    /// A text a line.
    Lines,
    /// Columns of cells in groups of rows.
    Parquet,
}

impl Kind {
    /// How the rows of a table at `path` are told apart, by its name or its first bytes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn at(path: &Path) -> Result<Kind> {
        Ok(Kind::of(path, &source::head(path)?))
    }

    /// By the file's name, or else by its first bytes.
    fn of(path: &Path, head: &[u8]) -> Kind {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let first = head.split(|b| *b == b'\n').next().unwrap_or_default();
        match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("csv") => Kind::Csv,
            Some("tsv") => Kind::Tsv,
            Some("txt") => Kind::Lines,
            Some("parquet") => Kind::Parquet,
            _ if head.starts_with(parquet::MAGIC) => Kind::Parquet,
            _ if first.trim_ascii_start().starts_with(b"{") => Kind::Json,
            _ if first.trim_ascii_start().starts_with(b"[") => Kind::Json,
            _ if first.contains(&b'\t') => Kind::Tsv,
            _ => Kind::Csv,
        }
    }

    fn delimiter(self) -> Option<u8> {
        match self {
            Kind::Csv => Some(b','),
            Kind::Tsv => Some(b'\t'),
            Kind::Json | Kind::Lines | Kind::Parquet => None,
        }
    }
}

/// A row as it is streamed: the texts and what stands in the column of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where it stands, for people.
    pub place: Place,
    /// Its first byte, of the file as it is unpacked; in Parquet its number. It goes on to the next row's.
    pub start: u64,
    /// The text, or the first one of a pair; of a table of numbers all of them but the answer, as short as they can be.
    pub text: String,
    /// The second text of a pair.
    pub text_b: Option<String>,
    /// The label or score, as it is written.
    pub answer: Option<String>,
}

/// The rows of a table, one after the other; no more than one is held in memory, but for the first of a table that does
/// not name its columns, and pages of Parquet.
pub struct Rows<'a> {
    path: PathBuf,
    kind: Kind,
    source: Counted<'a>,
    splitter: Splitter,
    /// Fields of a row as they are split, and where each ends.
    fields: Vec<u8>,
    ends: Vec<usize>,
    /// Fields that each row has, once it is known.
    width: Option<usize>,
    /// The names of the columns, when they have names.
    names: Vec<String>,
    columns: Columns,
    ahead: VecDeque<Record>,
    /// What reads Parquet, which has no lines.
    parquet: Option<parquet::Reader>,
}

impl Rows<'static> {
    /// The rows of a table, perhaps packed with gzip, or in Parquet. Where columns have no names, the first 10,000 rows
    /// tell them.
    ///
    /// # Errors
    /// When the file cannot be read, or its columns cannot be told.
    pub fn open(path: &Path, options: &Options) -> Result<Rows<'static>> {
        match Kind::at(path)? {
            Kind::Parquet => {
                let reader = parquet::Reader::open(path, options)?;
                let none = Counted { source: Box::new(std::io::empty()), line: 1, at: 0 };
                let mut rows = Rows::of(path, Kind::Parquet, none);
                (rows.names, rows.columns) = (reader.names.clone(), reader.columns.clone());
                rows.parquet = Some(reader);
                Ok(rows)
            }
            _ => Rows::new(path, unpacked(path)?, options, GUESSED_FROM),
        }
    }
}

/// The bytes of a file, unpacked when they are gzip.
pub(super) fn unpacked(path: &Path) -> Result<Box<dyn BufRead>> {
    let packed = source::head(path)?.starts_with(&[0x1f, 0x8b]);
    let file: File = source::open(path)?;
    Ok(match packed {
        true => {
            let decoder = MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file));
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        false => Box::new(BufReader::with_capacity(BUFFER, file)),
    })
}

/// Copies a table byte for byte, but for the rows that are not kept. `starts` says where each row starts, and behind the
/// last one where that ends; what stands before the first is the header. Parquet is written anew: all columns, whatever
/// they hold.
///
/// # Errors
/// When the table cannot be read, or `out` cannot be written.
pub fn copy(
    path: &Path,
    starts: &[u64],
    keep: &dyn Fn(usize) -> bool,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    if Kind::at(path)? == Kind::Parquet {
        return parquet::copy(path, starts.len().saturating_sub(1), keep, out);
    }
    let mut source = unpacked(path)?;
    let mut at = 0;
    let mut to = |end: u64, keep: bool| -> std::io::Result<()> {
        let mut part = source.by_ref().take(end - at);
        let copied = match keep {
            true => std::io::copy(&mut part, out)?,
            false => std::io::copy(&mut part, &mut std::io::sink())?,
        };
        at += copied;
        if at == end { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    };
    let mut copied = || {
        to(starts.first().copied().unwrap_or(0), true)?;
        let mut row = 0;
        while row + 1 < starts.len() {
            let kept = keep(row);
            let mut next = row + 1;
            while next + 1 < starts.len() && keep(next) == kept {
                next += 1;
            }
            to(starts[next], kept)?;
            row = next;
        }
        Ok(())
    };
    copied().map_err(Error::io(path))
}

impl<'a> Rows<'a> {
    /// The rows of a table that this reads; `guessed_from` rows at most tell the columns when they have no names.
    pub(super) fn new(
        path: &Path,
        source: Box<dyn BufRead + 'a>,
        options: &Options,
        guessed_from: usize,
    ) -> Result<Rows<'a>> {
        let mut source = Counted { source, line: 1, at: 0 };
        source.skip_mark().map_err(Error::io(path))?;
        let kind = Kind::of(path, source.source.fill_buf().map_err(Error::io(path))?);
        let mut rows = Rows::of(path, kind, source);
        rows.find_columns(options, guessed_from)?;
        Ok(rows)
    }

    fn of(path: &Path, kind: Kind, source: Counted<'a>) -> Rows<'a> {
        let delimiter = kind.delimiter().unwrap_or(b',');
        let splitter = ReaderBuilder::new().delimiter(delimiter).quoting(delimiter == b',').build();
        let (fields, ends) = (vec![0; 1 << 12], vec![0; 1 << 6]);
        Rows {
            path: path.into(),
            kind,
            source,
            splitter,
            fields,
            ends,
            width: None,
            names: Vec::new(),
            columns: Columns::default(),
            ahead: VecDeque::new(),
            parquet: None,
        }
    }

    fn find_columns(&mut self, options: &Options, guessed_from: usize) -> Result<()> {
        if self.kind == Kind::Lines {
            self.columns.text = Some(0);
            return Ok(());
        }
        let Some(first) = self.read(options)? else { return Ok(()) };
        let at = |rows: &Rows, (place, what)| Error::Row { path: rows.path.clone(), place, what };
        if self.kind == Kind::Json {
            self.ahead.push_back(first);
        } else if is_header(&first.fields, options) {
            self.columns =
                by_name(&first.fields, options).map_err(|what| at(self, (Place::Line(1), what)))?;
            self.names = first.fields.into_iter().map(|name| name.trim().to_owned()).collect();
        } else {
            self.ahead.push_back(first);
            let held = self.source.at;
            while self.ahead.len() < guessed_from
                && (self.source.at - held < MAX_ROW as u64 || guessed_from == usize::MAX)
                && let Some(record) = self.read(options)?
            {
                self.ahead.push_back(record);
            }
            let known = self.ahead.make_contiguous();
            self.columns = by_place(known, options).map_err(|wrong| at(self, wrong))?;
        }
        Ok(())
    }

    /// How the rows are told apart.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The names of the columns; none when they have no names.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Do rows have a second text?
    pub fn pairs(&self) -> bool {
        self.columns.text_b.is_some()
    }

    /// Are there numbers, and no texts?
    pub fn numbers(&self) -> bool {
        self.columns.text.is_none()
    }

    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// When it cannot be read, has another number of fields than the first, or is no UTF-8; says at which line.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        let Some(mut record) = self.next_record()? else { return Ok(None) };
        let mut take = |i: usize| std::mem::take(&mut record.fields[i]);
        let Columns { text, text_b, answer, .. } = self.columns;
        let (text_b, answer) = (text_b.map(&mut take), answer.map(&mut take));
        let text = match text {
            Some(text) => take(text),
            None => {
                let shown = (0..record.fields.len()).filter(|&i| !self.columns.is_answer(i));
                shown.map(|i| shortest(&record.fields[i])).collect::<Vec<_>>().join(" ")
            }
        };
        Ok(Some(Row { place: record.place, start: record.start, text, text_b, answer }))
    }

    pub(super) fn next_record(&mut self) -> Result<Option<Record>> {
        match self.ahead.pop_front() {
            Some(record) => Ok(Some(record)),
            None => self.read(&Options::default()),
        }
    }

    /// The byte behind the last row that was read; in Parquet the number of rows that were.
    pub fn end(&self) -> u64 {
        self.parquet.as_ref().map_or(self.source.at, |parquet| parquet.row)
    }

    fn wrong<T>(&self, place: Place, what: impl Into<String>) -> Result<T> {
        Err(Error::Row { path: self.path.clone(), place, what: what.into() })
    }

    fn read(&mut self, options: &Options) -> Result<Option<Record>> {
        if let Some(parquet) = &mut self.parquet {
            return parquet.next_record();
        }
        loop {
            self.source.skip_ends_of_lines().map_err(Error::io(&self.path))?;
            let (place, start) = (Place::Line(self.source.line), self.source.at);
            let Some(len) = (match self.kind.delimiter() {
                Some(_) => self.split(place)?,
                None => self.line(place)?,
            }) else {
                return Ok(None);
            };
            let text = |range: std::ops::Range<usize>| match str::from_utf8(&self.fields[range]) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err(Error::Row {
                    path: self.path.clone(),
                    place,
                    what: "is not UTF-8 text; convert the file first".into(),
                }),
            };
            let fields = match self.kind {
                Kind::Csv | Kind::Tsv => {
                    let starts = [0].iter().chain(&self.ends[..len]);
                    starts.zip(&self.ends[..len]).map(|(&a, &b)| text(a..b)).collect::<Result<Vec<_>>>()?
                }
                Kind::Lines | Kind::Json | Kind::Parquet => vec![text(0..len)?],
            };
            if fields.len() == 1 && fields[0].trim().is_empty() && self.kind.delimiter().is_none() {
                continue;
            }
            let fields = match self.kind {
                Kind::Json => self.object(&fields[0], place, options)?,
                _ => fields,
            };
            let width = *self.width.get_or_insert(fields.len());
            if width != fields.len() {
                return self.wrong(place, format!("has {} fields, the first row has {width}", fields.len()));
            }
            return Ok(Some(Record { place, start, fields }));
        }
    }

    /// Splits the next row into fields; the number of them.
    fn split(&mut self, place: Place) -> Result<Option<usize>> {
        let (mut filled, mut ended) = (0, 0);
        loop {
            let input = self.source.source.fill_buf().map_err(Error::io(&self.path))?;
            let (result, read, wrote, ends) =
                self.splitter.read_record(input, &mut self.fields[filled..], &mut self.ends[ended..]);
            self.source.consume(read);
            filled += wrote;
            ended += ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull if filled > MAX_ROW => {
                    return self
                        .wrong(place, format!("has more than {MAX_ROW} bytes; is a quote not closed?"));
                }
                ReadRecordResult::OutputFull => self.fields.resize(2 * self.fields.len(), 0),
                ReadRecordResult::OutputEndsFull if ended > MAX_ROW / 64 => {
                    return self.wrong(place, format!("has more than {ended} fields"));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record => return Ok(Some(ended)),
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Reads the next line without its end; the number of bytes.
    fn line(&mut self, place: Place) -> Result<Option<usize>> {
        let mut len = 0;
        loop {
            let input = self.source.source.fill_buf().map_err(Error::io(&self.path))?;
            if input.is_empty() {
                return Ok((len > 0).then_some(len));
            }
            let end = input.iter().position(|b| *b == b'\n');
            let part = end.unwrap_or(input.len());
            if len + part > MAX_ROW {
                return self.wrong(place, format!("has more than {MAX_ROW} bytes"));
            }
            if self.fields.len() < len + part {
                self.fields.resize((len + part).next_power_of_two(), 0);
            }
            self.fields[len..len + part].copy_from_slice(&input[..part]);
            len += part;
            self.source.consume(part + usize::from(end.is_some()));
            if end.is_some() {
                let cut = len - usize::from(len > 0 && self.fields[len - 1] == b'\r');
                return Ok(Some(cut));
            }
        }
    }

    /// The fields of an object, in the order of the first one's.
    fn object(&mut self, text: &str, place: Place, options: &Options) -> Result<Vec<String>> {
        if text.trim_start().starts_with('[') {
            return self.wrong(place, "is a JSON array; write one JSON object a line");
        }
        let object: Map<String, Value> = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(e) => return self.wrong(place, format!("is not a JSON object: {e}")),
        };
        if self.names.is_empty() {
            let names: Vec<String> = object.keys().cloned().collect();
            match by_name(&names, options) {
                Ok(columns) => self.columns = columns,
                Err(what) => return self.wrong(place, what),
            }
            self.names = names;
        }
        let columns = &self.columns;
        let field = |(i, name): (usize, &String)| match object.get(name) {
            _ if !columns.reads(i) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(number @ Value::Number(_)) => Ok(number.to_string()),
            Some(Value::Bool(yes)) => Ok(yes.to_string()),
            Some(_) => self.wrong(place, format!("{name:?} is neither a text nor a number")),
            None => self.wrong(place, format!("lacks {name:?}")),
        };
        self.names.iter().enumerate().map(field).collect()
    }
}

/// A number without what does not change it.
fn shortest(field: &str) -> String {
    let field = field.trim();
    field.parse::<f64>().map_or_else(|_| field.to_owned(), |number| number.to_string())
}

/// Bytes that are counted as they are read, and their lines.
struct Counted<'a> {
    source: Box<dyn BufRead + 'a>,
    line: u64,
    at: u64,
}

impl Counted<'_> {
    fn consume(&mut self, bytes: usize) {
        if let Ok(buffer) = self.source.fill_buf() {
            let read = &buffer[..bytes.min(buffer.len())];
            self.line += read.iter().filter(|b| **b == b'\n').count() as u64;
        }
        self.source.consume(bytes);
        self.at += bytes as u64;
    }

    /// The mark of UTF-8 that some programs write first.
    fn skip_mark(&mut self) -> std::io::Result<()> {
        if self.source.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
            self.consume(3);
        }
        Ok(())
    }

    fn skip_ends_of_lines(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.source.fill_buf()?;
            let ends = buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            if ends == 0 {
                return Ok(());
            }
            self.consume(ends);
        }
    }
}

type Parsed<T> = std::result::Result<T, (Place, String)>;

/// Does a row hold names of columns?
fn is_header(fields: &[String], options: &Options) -> bool {
    let several = options.several.iter().flat_map(Several::names);
    let given = [&options.text, &options.text_b, &options.label, &options.score].into_iter().flatten();
    let given: Vec<&String> = given.chain(several).collect();
    let usual = [TEXT, TEXT_A, TEXT_B, LABEL, SCORE].concat();
    fields.iter().map(|field| field.trim()).any(|field| {
        usual.iter().any(|name| name.eq_ignore_ascii_case(field)) || given.iter().any(|name| *name == field)
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

pub(super) fn by_name(names: &[String], options: &Options) -> std::result::Result<Columns, String> {
    let text_b = find(names, options.text_b.as_deref(), TEXT_B)?;
    let text = match text_b {
        Some(_) => find(names, options.text.as_deref(), &[TEXT_A, TEXT].concat())?,
        None => find(names, options.text.as_deref(), &[TEXT, TEXT_A].concat())?,
    };
    let at = |name: &String| Ok(find(names, Some(name), &[])?.unwrap_or(0));
    let (label, several) = match (&options.several, &options.label, &options.score) {
        (Some(Several::Listed(name)), ..) => (Some(at(name)?), Vec::new()),
        (Some(Several::Columns(of)), ..) => {
            (None, of.iter().map(at).collect::<std::result::Result<_, String>>()?)
        }
        (None, None, Some(_)) => (None, Vec::new()),
        (None, label, _) => (find(names, label.as_deref(), LABEL)?, Vec::new()),
    };
    let score = if options.several.is_some() { None } else { find(names, options.score.as_deref(), SCORE)? };
    let answer = label.or(score);
    if text.is_none() {
        let answers = several.len() + usize::from(answer.is_some());
        if answers == 0 || answers == names.len() || text_b.is_some() {
            return Err(format!(
                "none of the columns {} is known to be the text; name it, or the label of a table of numbers",
                names.join(", ")
            ));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.trim())) {
            return Err(format!("two columns are called {twice:?}; rename one, or leave it out"));
        }
    }
    Ok(Columns { text, text_b, answer, score: label.is_none() && score.is_some(), several })
}

/// The columns of a table without names: text; text and answer, in either order; two texts and answer.
fn by_place(records: &[Record], options: &Options) -> Parsed<Columns> {
    let Some(first) = records.first() else {
        return Ok(Columns { text: Some(0), ..Columns::default() });
    };
    let given = [&options.text, &options.text_b, &options.label, &options.score].into_iter().flatten();
    if let Some(name) = given.chain(options.several.iter().flat_map(Several::names)).next() {
        return Err((first.place, format!("there is no header row with a column {name:?}")));
    }
    let numbers = |column: usize| records.iter().all(|r| r.fields[column].trim().parse::<f64>().is_ok());
    match first.fields.len() {
        1 => Ok(Columns { text: Some(0), ..Columns::default() }),
        2 if numbers(0) && !numbers(1) => {
            Ok(Columns { text: Some(1), answer: Some(0), ..Columns::default() })
        }
        2 => {
            let named = || records.iter().map(|r| r.fields[1].as_str());
            let once = named().filter(|name| *name == first.fields[1]).count() == 1;
            if !numbers(1) && (once || named().collect::<HashSet<_>>().len() > MAX_GUESSED_CLASSES) {
                let what = "has two columns without known names, the second neither numbers nor class names that \
                            come again; put a header row with known names first, or name the columns";
                return Err((first.place, what.into()));
            }
            Ok(Columns { text: Some(0), answer: Some(1), ..Columns::default() })
        }
        3 if numbers(2) => {
            Ok(Columns { text: Some(0), text_b: Some(1), answer: Some(2), ..Columns::default() })
        }
        n => Err((
            first.place,
            format!("has {n} columns without known names; put a header row first, or name them"),
        )),
    }
}
