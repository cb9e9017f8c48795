//! Tables of texts or numbers, streamed: what is in memory is some numbers for each row.

use std::collections::HashMap;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use kernel::Cpu;
use learn::data::rows::{Kind, Row, Rows, copy as copy_rows};
use learn::pick::duplicates::{Duplicates, Fate, JOINT, Near, Sketches, joined};
use learn::pick::resemblance::Resemblance;
use shrink::job::{Key, Store, kept};

use super::{All, Request, Verdict};
use crate::{Error, Result};

/// Rows that are read at once, and about as many bytes at most.
const PART: usize = 1 << 14;
const PART_BYTES: usize = 64 << 20;
/// Labels that are told apart, and the bytes that one may have; what goes beyond has no label.
const LABELS: usize = 1 << 16;
const LABEL_BYTES: usize = 256;
/// Characters of a text that people are shown.
const TEXT: usize = 160;

/// Reads all rows; of those that are the same, or nearly so, the first stays. What rows are compared by is kept, part by part,
/// and found again by what their texts are: a run that was killed makes it of the other rows alone.
pub(super) fn scan(request: &Request, cpu: &Cpu) -> Result<All> {
    let mut rows = Rows::open(request.path, request.options)?;
    // Numbers are no words: those that share some are not nearly the same.
    let near = request.near.filter(|_| !rows.numbers()).unwrap_or(Near::EXACT);
    let mut duplicates = Duplicates::new(near)?;
    let store = request.cache.filter(|_| near != Near::EXACT).map(Store::open).transpose().map_err(|e| {
        Error::input(format!("what rows are compared by cannot be kept: {e}; name another folder"))
    })?;
    let (mut starts, mut answers) = (Vec::new(), Vec::new());
    let mut labels: HashMap<String, u32> = HashMap::new();
    loop {
        let part = part(&mut rows)?;
        if part.is_empty() {
            break;
        }
        for row in &part {
            starts.push(row.start);
            answers.push(match &row.answer {
                Some(label)
                    if label.len() <= LABEL_BYTES
                        && (labels.len() < LABELS || labels.contains_key(label.trim())) =>
                {
                    let next = labels.len() as u32;
                    *labels.entry(label.trim().to_owned()).or_insert(next)
                }
                _ => u32::MAX,
            });
        }
        let texts: Vec<String> = part.into_iter().map(whole).collect();
        let key = || {
            let measure = format!("{} {:?}", env!("CARGO_PKG_VERSION"), Near { similarity: 1.0, ..near });
            let texts = texts.iter().map(String::as_bytes);
            Key::of(&std::iter::once(measure.as_bytes()).chain(texts).collect::<Vec<_>>())
        };
        let read = |bytes: &[u8]| Sketches::read(bytes, texts.len(), near);
        let make = || Ok(duplicates.sketches(&texts, cpu));
        let sketches = kept(store.as_ref(), key, read, Sketches::to_bytes, make)?;
        duplicates.take(sketches)?;
        (request.progress)(&format!("{} rows read", starts.len()));
    }
    if starts.is_empty() {
        return Err(Error::input(format!("{} holds no examples", request.path.display())));
    }
    starts.push(rows.end());
    (request.progress)("looking for what is there twice");
    let mut contradictions = 0;
    let mut other = |row: usize, of: usize| contradictions += usize::from(answers[row] != answers[of]);
    let fates = duplicates.fates(cpu);
    let verdict = |(row, fate)| match fate {
        Fate::Kept => Verdict::Kept,
        Fate::Same(of) => {
            other(row, of);
            Verdict::Same(of as u32)
        }
        Fate::Alike(of, similarity) => Verdict::Near(of as u32, similarity as f32),
    };
    let verdicts: Vec<Verdict> = fates.into_iter().enumerate().map(verdict).collect();
    let mut names: Vec<(u32, String)> = labels.into_iter().map(|(name, at)| (at, name)).collect();
    names.sort();
    let mut names: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
    // A reader of all of them gives classes their numbers by name, unless they are numbers.
    if let Some((_, wanted)) = &request.model {
        let classes = wanted.data.classes().map(<[String]>::to_vec);
        names = classes.unwrap_or_default();
        answers = (0..verdicts.len())
            .map(|row| match wanted.data.target(row) {
                learn::Target::Class(class) => class as u32,
                _ => u32::MAX,
            })
            .collect();
        if wanted.data.len() != verdicts.len() {
            return Err(Error::input(format!("{} changed while it was read", request.path.display())));
        }
    }
    let kind = match rows.kind() {
        Kind::Csv => "CSV",
        Kind::Tsv => "TSV",
        Kind::Json => "JSON lines",
        Kind::Lines => "lines",
        Kind::Parquet => "Parquet",
    };
    let what = match (rows.numbers(), rows.pairs()) {
        (true, _) => "rows of numbers",
        (false, true) => "pairs of texts",
        (false, false) => "texts",
    };
    let describe = format!("{}: {} {what} ({kind})", request.path.display(), verdicts.len());
    Ok(All { describe, verdicts, answers, names, contradictions, starts })
}

fn part(rows: &mut Rows) -> Result<Vec<Row>> {
    let mut part = Vec::new();
    let mut bytes = 0;
    while part.len() < PART
        && bytes < PART_BYTES
        && let Some(row) = rows.next_row()?
    {
        bytes +=
            row.text.len() + [&row.text_b, &row.answer].into_iter().flatten().map(String::len).sum::<usize>();
        part.push(row);
    }
    Ok(part)
}

/// The text of a row; of a pair, both.
fn whole(row: Row) -> String {
    match row.text_b {
        Some(b) => joined(&row.text, &b),
        None => row.text,
    }
}

/// How much these rows, in ascending order, resemble the texts of the target.
pub(super) fn weights(request: &Request, target: &Path, wanted: &[usize]) -> Result<Vec<f64>> {
    if !learn::data::is_table(request.path)? || Rows::open(request.path, request.options)?.numbers() {
        return Err(Error::input("only texts resemble those of a --target"));
    }
    let mut resemblance = Resemblance::default();
    let each = |path: &Path, see: &mut dyn FnMut(usize, String)| -> Result<()> {
        let mut rows = Rows::open(path, request.options)?;
        let mut at = 0;
        while let Some(row) = rows.next_row()? {
            see(at, whole(row));
            at += 1;
        }
        Ok(())
    };
    (request.progress)("counting the words of the target and of the data");
    let mut texts = 0;
    each(target, &mut |_, text| {
        texts += 1;
        resemblance.add_target(&text);
    })?;
    if texts == 0 {
        return Err(Error::input(format!("{} holds no texts to resemble", target.display())));
    }
    each(request.path, &mut |_, text| resemblance.add(&text))?;
    let of = resemblance.weights();
    let mut weights = Vec::with_capacity(wanted.len());
    let mut next = wanted.iter().peekable();
    each(request.path, &mut |row, text| {
        if next.next_if_eq(&&row).is_some() {
            weights.push(of.of(&text));
        }
    })?;
    Ok(weights)
}

/// What these rows, in ascending order, are called and say.
pub(super) fn told(request: &Request, wanted: &[usize]) -> Result<Vec<(String, Option<String>)>> {
    let mut rows = Rows::open(request.path, request.options)?;
    let mut told = Vec::new();
    let mut at = 0;
    for &row in wanted {
        while let Some(found) = rows.next_row()? {
            at += 1;
            if at == row + 1 {
                let place = found.place.to_string();
                let text = whole(found).replace(JOINT, "|");
                let short: String = text.chars().take(TEXT).collect();
                told.push((place, Some(if short.len() < text.len() { short + " .." } else { short })));
                break;
            }
        }
    }
    Ok(told)
}

/// Fails when rows of Parquet would become lines, or lines Parquet.
pub(super) fn fits(path: &Path, out: &Path) -> Result<()> {
    let named = out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
    let what = match (Kind::at(path)?, named) {
        (Kind::Parquet, false) => {
            "rows of Parquet are written as Parquet; name a file that ends with .parquet"
        }
        (Kind::Parquet, true) | (_, false) => return Ok(()),
        (_, true) => "lines are not written as Parquet; name a file that ends as that of the data does",
    };
    Err(Error::input(format!("{}: {what}", out.display())))
}

/// Writes the header and the rows that stay, byte for byte; packed when the name ends with `.gz`. Parquet is written anew.
pub(super) fn copy(path: &Path, all: &All, out: &Path) -> Result<()> {
    let keep = |row: usize| all.verdicts[row] == Verdict::Kept;
    let failed = |e: learn::Error| std::io::Error::other(e);
    crate::write_file_with(out, |file| {
        if out.extension().is_none_or(|extension| extension != "gz") {
            return copy_rows(path, &all.starts, &keep, file).map_err(failed);
        }
        let mut packed = GzEncoder::new(file, Compression::default());
        copy_rows(path, &all.starts, &keep, &mut packed).map_err(failed)?;
        packed.finish().map(|_| ())
    })
}
