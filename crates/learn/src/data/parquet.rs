//! Parquet: columns of cells in groups of rows, read as the rows of a table, and written again without some of them.
//!
//! The `parquet` crate decodes values and writes files. It believes what a file claims, so claims are looked at here
//! before: those of the footer in [`File::open`], those of pages in [`pages`].

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    AsBytes, BoolType, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type,
    Int64Type, Int96Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::ColumnDescriptor;

use self::pages::Pages;
use self::thrift::{LIST, STRUCT, Thrift};
use super::rows::{Columns, MAX_ROW, Record, by_name};
use super::{Options, source};
use crate::{Error, Place, Result};

mod delta;
mod pages;
mod thrift;

/// The first and the last bytes of a file.
pub(super) const MAGIC: &[u8] = b"PAR1";
/// No footer has more bytes.
const MAX_FOOTER: u64 = 64 << 20;
/// Bytes that a byte of the footer may take in memory.
const GROWS: usize = 256;
/// Columns do not lie in more groups than so many.
const DEPTH: usize = 64;
/// As many rows as gzip could put in a byte of a table of lines; texts that differ take more.
const ROWS_OF_A_BYTE: u64 = 1024;
/// Records that are read at once at most, and about how many bytes.
const BATCH: usize = 1 << 12;
const BATCH_BYTES: usize = 4 << 20;

/// A result whose error says what is wrong, but not yet where.
type Told<T> = std::result::Result<T, String>;

/// A file whose footer was read.
struct File {
    path: PathBuf,
    file: Arc<fs::File>,
    about: ParquetMetaData,
    rows: u64,
}

impl File {
    fn open(path: &Path) -> Result<File> {
        let mut file = source::open(path)?;
        let about = footer(&mut file).map_err(|what| Error::file(path, what))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let mut rows = 0u64;
        for (i, group) in about.row_groups().iter().enumerate() {
            sound(group, size).map_err(|what| {
                Error::file(
                    path,
                    format!("row group {i}: {what}; the file is damaged, get or write it again"),
                )
            })?;
            rows = rows.saturating_add(group.num_rows() as u64);
        }
        let claimed = about.file_metadata().num_rows();
        if u64::try_from(claimed) != Ok(rows) {
            let what = format!("claims {claimed} rows, but its groups have {rows}; the file is damaged");
            return Err(Error::file(path, what));
        }
        if rows / ROWS_OF_A_BYTE > size || rows > u64::from(u32::MAX) {
            return Err(Error::file(path, format!("claims {rows} rows in {size} bytes, which is absurd")));
        }
        Ok(File { path: path.into(), file: Arc::new(file), about, rows })
    }

    /// The error of what is wrong in a column of a group.
    fn wrong(&self, group: usize, column: usize, what: &str) -> Error {
        let name = self.about.file_metadata().schema_descr().column(column).path().string();
        let what = format!("row group {group}, column {name:?}: {what}; get or write the file again");
        Error::file(&self.path, what)
    }
}

/// What the end of a file says about the rest.
fn footer(file: &mut fs::File) -> Told<ParquetMetaData> {
    let told = |e: std::io::Error| e.to_string();
    let size = file.metadata().map_err(told)?.len();
    let mut read = |from: u64, len: u64| {
        file.seek(SeekFrom::Start(from)).map_err(told)?;
        source::read_up_to(&mut &*file, len).map_err(told)
    };
    let none =
        "is no Parquet file, or was cut off; if it is another kind of table, name it .csv, .tsv or .jsonl";
    let tail = size.checked_sub(8).filter(|at| *at >= MAGIC.len() as u64).ok_or(none)?;
    let [head, last] = [read(0, 4)?, read(tail, 8)?];
    let (Some(len), magic) = (last.first_chunk::<4>(), last.get(4..).unwrap_or_default()) else {
        return Err(none.into());
    };
    if magic == b"PARE" {
        return Err("is encrypted; write it without encryption".into());
    }
    if head != MAGIC || magic != MAGIC {
        return Err(none.into());
    }
    let len = u64::from(u32::from_le_bytes(*len));
    if len > MAX_FOOTER || len > tail - 4 {
        return Err(format!("claims a footer of {len} bytes in {size}; the file is damaged, or cut off"));
    }
    let bytes = read(tail - len, len)?;
    let damaged = |what| format!("its footer {what}; the file is damaged, get or write it again");
    plausible(&bytes).map_err(damaged)?;
    if Vec::<u8>::new().try_reserve_exact(bytes.len() * GROWS).is_err() {
        return Err(format!("its footer of {len} bytes takes more memory than there is"));
    }
    guarded(|| ParquetMetaDataReader::decode_metadata(&bytes)).map_err(damaged)
}

/// Does a footer have all the elements that its lists claim, and do its columns make a tree that is not too deep?
fn plausible(footer: &[u8]) -> Told<()> {
    let (mut from, mut last) = (Thrift::new(footer), 0);
    while let Some((id, kind)) = from.field(&mut last)? {
        if (id, kind) != (2, LIST) {
            from.skip(kind)?;
            continue;
        }
        let (len, kind) = from.list()?;
        if kind != STRUCT {
            return Err("has no list of columns".into());
        }
        // Children that are still to come, of each group around.
        let (mut around, mut children) = (Vec::<u64>::new(), 0u64);
        for i in 0..len {
            let own = from.numbers()?[5].unwrap_or(0);
            let own = u64::try_from(own).map_err(|_| format!("has a group of {own} columns"))?;
            children = children.saturating_add(own);
            match around.last_mut() {
                Some(left) => *left -= 1,
                None if i == 0 => {}
                None => return Err("has columns outside of its table".into()),
            }
            if own > 0 {
                around.push(own);
            }
            while around.last() == Some(&0) {
                around.pop();
            }
            if children >= len || around.len() > DEPTH {
                return Err(format!("claims groups of {children} columns, {} deep", around.len()));
            }
        }
        if !around.is_empty() {
            return Err("lacks columns".into());
        }
    }
    Ok(())
}

/// Can a group be read as the footer has it?
fn sound(group: &RowGroupMetaData, size: u64) -> Told<()> {
    let rows = u64::try_from(group.num_rows()).map_err(|_| format!("claims {} rows", group.num_rows()))?;
    for column in group.columns() {
        let name = || column.column_path().string();
        if pages::range(column).is_none_or(|(_, end)| end > size) {
            return Err(format!("column {:?} lies outside of the file", name()));
        }
        if column.column_descr().max_rep_level() == 0 && u64::try_from(column.num_values()) != Ok(rows) {
            return Err(format!("column {:?} has {} values for {rows} rows", name(), column.num_values()));
        }
        if !pages::unpacks(column.compression()) {
            let known = "SNAPPY, GZIP, BROTLI, ZSTD and LZ4_RAW are";
            return Err(format!(
                "column {:?} is packed with {}; {known} known",
                name(),
                column.compression()
            ));
        }
    }
    Ok(())
}

/// What the `parquet` crate makes, though it panics on some damaged files.
fn guarded<T>(make: impl FnOnce() -> parquet::errors::Result<T>) -> Told<T> {
    match catch_unwind(AssertUnwindSafe(make)) {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(ParquetError::General(what))) => Err(what),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("is damaged".into()),
    }
}

/// Some records of a column: the values that are there, and levels that say where none is, and where lists go on.
struct Batch<T: DataType> {
    reader: ColumnReaderImpl<T>,
    /// Values that pages of this batch have, which are not to be too many.
    begun: Arc<AtomicUsize>,
    max_defined: i16,
    max_repeated: i16,
    defined: Vec<i16>,
    repeated: Vec<i16>,
    values: Vec<T::T>,
    levels: usize,
    /// Records that are read next.
    next: usize,
}

impl<T: DataType> Batch<T> {
    fn new(file: &File, group: usize, column: usize) -> Told<Batch<T>> {
        let begun = Arc::new(AtomicUsize::new(0));
        let about = file.about.row_group(group).column(column);
        let pages = Pages::new(&file.file, about, &begun)?;
        let described = about.column_descr_ptr();
        Ok(Batch {
            begun,
            max_defined: described.max_def_level(),
            max_repeated: described.max_rep_level(),
            reader: ColumnReaderImpl::new(described, Box::new(pages)),
            defined: Vec::new(),
            repeated: Vec::new(),
            values: Vec::new(),
            levels: 0,
            next: 1,
        })
    }

    /// Reads some of the next `left` records, and says how many.
    fn read(&mut self, left: usize) -> Told<usize> {
        let Batch { reader, defined, repeated, values, .. } = self;
        defined.clear();
        repeated.clear();
        values.clear();
        self.begun.store(0, Ordering::Relaxed);
        let wanted = self.next.min(left);
        let (records, levels, bytes) = guarded(|| {
            let (records, _, levels) = reader.read_records(wanted, Some(defined), Some(repeated), values)?;
            let bytes: usize = values.iter().map(|v| size_of::<T::T>() + v.as_bytes().len()).sum();
            Ok((records, levels, bytes + 4 * levels))
        })?;
        if records == 0 || records > left {
            return Err(format!("has {records} where {left} rows are to come"));
        }
        self.levels = levels;
        self.next = match bytes > BATCH_BYTES {
            true => (self.next / 2).max(1),
            false => (self.next * 2).min(BATCH),
        };
        Ok(records)
    }

    /// Is there a value at a level?
    fn has_value(&self, level: usize) -> bool {
        self.max_defined == 0 || self.defined[level] == self.max_defined
    }

    /// Lets go of records; `keep` is asked for each, from 0.
    fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let (mut record, mut kept, mut value) = (0, false, 0);
        let (mut levels, mut values) = (0, 0);
        for level in 0..self.levels {
            if self.max_repeated == 0 || self.repeated[level] == 0 {
                kept = keep(record);
                record += 1;
            }
            let has_value = self.has_value(level);
            if kept {
                for all in [&mut self.defined, &mut self.repeated] {
                    if !all.is_empty() {
                        all[levels] = all[level];
                    }
                }
                levels += 1;
            }
            if kept && has_value {
                self.values.swap(values, value);
                values += 1;
            }
            value += usize::from(has_value);
        }
        self.defined.truncate(levels);
        self.repeated.truncate(levels);
        self.values.truncate(values);
        self.levels = levels;
    }
}

/// A column of texts or numbers, cell by cell.
trait Cells {
    /// The next cell as it is written in a table of lines; empty where there is none.
    fn next(&mut self) -> Told<String>;
}

struct Written<T: DataType> {
    batch: Batch<T>,
    left: usize,
    level: usize,
    value: usize,
    write: fn(&T::T) -> Told<String>,
}

impl<T: DataType> Cells for Written<T> {
    fn next(&mut self) -> Told<String> {
        if self.level == self.batch.levels {
            self.left -= self.batch.read(self.left)?;
            (self.level, self.value) = (0, 0);
        }
        let has_value = self.batch.has_value(self.level);
        self.level += 1;
        if !has_value {
            return Ok(String::new());
        }
        self.value += 1;
        (self.write)(self.batch.values.get(self.value - 1).ok_or("lacks values")?)
    }
}

/// The cells of a column in a group; `None` when they are neither texts nor numbers.
fn cells(file: &File, group: usize, column: usize) -> Option<Told<Box<dyn Cells>>> {
    fn make<T: DataType>(
        file: &File,
        group: usize,
        column: usize,
        write: fn(&T::T) -> Told<String>,
    ) -> Option<Told<Box<dyn Cells>>> {
        let left = file.about.row_group(group).num_rows() as usize;
        Some(
            Batch::<T>::new(file, group, column).map(|batch| -> Box<dyn Cells> {
                Box::new(Written { batch, left, level: 0, value: 0, write })
            }),
        )
    }
    let described = file.about.file_metadata().schema_descr().column(column);
    Some(match written(&described)? {
        How::Text => make::<ByteArrayType>(file, group, column, |text| {
            let bytes = text.data();
            if bytes.len() > MAX_ROW {
                return Err(format!("has more than {MAX_ROW} bytes"));
            }
            match str::from_utf8(bytes) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err("is not UTF-8 text; convert the file first".into()),
            }
        })?,
        How::Truth => make::<BoolType>(file, group, column, |v| Ok(v.to_string()))?,
        How::Int32 => make::<Int32Type>(file, group, column, |v| Ok(v.to_string()))?,
        How::Int64 => make::<Int64Type>(file, group, column, |v| Ok(v.to_string()))?,
        How::Unsigned32 => make::<Int32Type>(file, group, column, |v| Ok((*v as u32).to_string()))?,
        How::Unsigned64 => make::<Int64Type>(file, group, column, |v| Ok((*v as u64).to_string()))?,
        // With a point where there are no decimals, so that numbers do not become classes.
        How::Float16 => make::<FixedLenByteArrayType>(file, group, column, |v| {
            let bytes = v.data().first_chunk().ok_or("lacks bytes of a number")?;
            Ok(format!("{:?}", f16::from_le_bytes(*bytes).to_f32()))
        })?,
        How::Float32 => make::<FloatType>(file, group, column, |v| Ok(format!("{v:?}")))?,
        How::Float64 => make::<DoubleType>(file, group, column, |v| Ok(format!("{v:?}")))?,
    })
}

/// How values are written.
#[derive(Clone, Copy)]
enum How {
    Text,
    Truth,
    Int32,
    Int64,
    Unsigned32,
    Unsigned64,
    Float16,
    Float32,
    Float64,
}

fn written(column: &ColumnDescriptor) -> Option<How> {
    use ConvertedType as C;
    let (logical, converted) = (column.logical_type_ref(), column.converted_type());
    let unsigned = match logical {
        Some(LogicalType::Integer(of)) => Some(!of.is_signed),
        Some(_) => None,
        None => match converted {
            C::NONE | C::INT_8 | C::INT_16 | C::INT_32 | C::INT_64 => Some(false),
            C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64 => Some(true),
            _ => None,
        },
    };
    let text = match logical {
        Some(logical) => matches!(logical, LogicalType::String | LogicalType::Enum | LogicalType::Json),
        None => matches!(converted, C::NONE | C::UTF8 | C::ENUM | C::JSON),
    };
    match (column.physical_type(), unsigned) {
        (Type::BYTE_ARRAY, _) if text => Some(How::Text),
        (Type::BOOLEAN, _) => Some(How::Truth),
        (Type::INT32, Some(false)) => Some(How::Int32),
        (Type::INT64, Some(false)) => Some(How::Int64),
        (Type::INT32, Some(true)) => Some(How::Unsigned32),
        (Type::INT64, Some(true)) => Some(How::Unsigned64),
        (Type::FIXED_LEN_BYTE_ARRAY, _) if logical == Some(&LogicalType::Float16) => Some(How::Float16),
        (Type::FLOAT, _) => Some(How::Float32),
        (Type::DOUBLE, _) => Some(How::Float64),
        _ => None,
    }
}

/// The rows of a file, one after the other. Columns that are neither shown nor answers are left empty.
pub(super) struct Reader {
    file: File,
    pub names: Vec<String>,
    pub columns: Columns,
    chosen: Vec<Chosen>,
    /// The next group, and the rows before it.
    group: usize,
    end: u64,
    /// The next row.
    pub row: u64,
}

/// A column that is read.
struct Chosen {
    /// Where it is among a row's fields, and among the columns without groups of columns.
    field: usize,
    column: usize,
    /// What is left of it in this group.
    cells: Option<Box<dyn Cells>>,
}

impl Reader {
    pub(super) fn open(path: &Path, options: &Options) -> Result<Reader> {
        let file = File::open(path)?;
        let about = file.about.file_metadata().schema_descr();
        let roots = about.root_schema().get_fields();
        let names: Vec<String> = roots.iter().map(|root| root.name().to_owned()).collect();
        let columns = by_name(&names, options).map_err(|what| Error::file(path, what))?;
        let mut chosen = Vec::new();
        for (field, root) in roots.iter().enumerate().filter(|(field, _)| columns.reads(*field)) {
            let single = root.is_primitive() && root.get_basic_info().repetition() != Repetition::REPEATED;
            let column = (0..about.num_columns()).find(|&column| about.get_column_root_idx(column) == field);
            let Some(column) = column.filter(|&column| single && written(&about.column(column)).is_some())
            else {
                let what =
                    "is neither texts nor numbers (it is nested, dates, bytes, ..); name another column";
                return Err(Error::file(path, format!("column {:?} {what}", root.name())));
            };
            chosen.push(Chosen { field, column, cells: None });
        }
        Ok(Reader { file, names, columns, chosen, group: 0, end: 0, row: 0 })
    }

    pub(super) fn next_record(&mut self) -> Result<Option<Record>> {
        let Reader { file, chosen, .. } = self;
        while self.row == self.end {
            if self.group == file.about.num_row_groups() {
                return Ok(None);
            }
            for Chosen { column, cells: left, .. } in &mut *chosen {
                let made = cells(file, self.group, *column).unwrap_or_else(|| Err("is no text".into()));
                *left = Some(made.map_err(|what| file.wrong(self.group, *column, &what))?);
            }
            self.end += file.about.row_group(self.group).num_rows() as u64;
            self.group += 1;
        }
        let mut fields = vec![String::new(); self.names.len()];
        for Chosen { field, column, cells } in &mut *chosen {
            let Some(cells) = cells else { continue };
            fields[*field] = cells
                .next()
                .map_err(|what| file.wrong(self.group - 1, *column, &format!("row {}: {what}", self.row)))?;
        }
        self.row += 1;
        Ok(Some(Record { place: Place::Row(self.row - 1), start: self.row - 1, fields }))
    }
}

/// Writes a file of the same columns without the rows that are not kept; there are so many `rows`. Groups have no more
/// rows than the greatest had.
pub(super) fn copy(
    path: &Path,
    rows: usize,
    keep: &dyn Fn(usize) -> bool,
    out: &mut (dyn Write + Send),
) -> Result<()> {
    let file = File::open(path)?;
    if file.rows != rows as u64 {
        return Err(Error::file(path, "changed while it was read"));
    }
    let about = &file.about;
    let schema = about.file_metadata().schema_descr();
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("lessen ", env!("CARGO_PKG_VERSION")).into())
        .set_key_value_metadata(about.file_metadata().key_value_metadata().cloned());
    for column in about.row_groups().first().map_or(&[][..], |group| group.columns()) {
        properties = properties.set_column_compression(column.column_path().clone(), column.compression());
    }
    let mut start = 0;
    let groups: Vec<Range<usize>> = about
        .row_groups()
        .iter()
        .map(|group| {
            let rows = start..start + group.num_rows() as usize;
            start = rows.end;
            rows
        })
        .collect();
    let kept: Vec<usize> = groups.iter().map(|rows| rows.clone().filter(|&row| keep(row)).count()).collect();
    let most = groups.iter().map(Range::len).max().unwrap_or(0);
    let failed = |what: String| Error::file(path, format!("its rows cannot be written: {what}"));
    let mut writer =
        guarded(|| SerializedFileWriter::new(out, schema.root_schema_ptr(), Arc::new(properties.build())))
            .map_err(failed)?;
    let mut next = 0;
    while next < groups.len() {
        let (first, mut sum) = (next, 0);
        while next < groups.len() && (sum + kept[next] <= most) {
            sum += kept[next];
            next += 1;
        }
        if sum == 0 {
            continue;
        }
        let mut group = guarded(|| writer.next_row_group()).map_err(failed)?;
        for column in 0..schema.num_columns() {
            let Some(mut to) = guarded(|| group.next_column()).map_err(failed)? else { break };
            for from in (first..next).filter(|&from| kept[from] > 0) {
                let copy = match schema.column(column).physical_type() {
                    Type::BOOLEAN => copy_column::<BoolType>,
                    Type::INT32 => copy_column::<Int32Type>,
                    Type::INT64 => copy_column::<Int64Type>,
                    Type::INT96 => copy_column::<Int96Type>,
                    Type::FLOAT => copy_column::<FloatType>,
                    Type::DOUBLE => copy_column::<DoubleType>,
                    Type::BYTE_ARRAY => copy_column::<ByteArrayType>,
                    Type::FIXED_LEN_BYTE_ARRAY => copy_column::<FixedLenByteArrayType>,
                };
                copy(&file, from, column, groups[from].clone(), keep, &mut to)
                    .map_err(|what| file.wrong(from, column, &what))?;
            }
            guarded(|| to.close()).map_err(failed)?;
        }
        guarded(|| group.close()).map_err(failed)?;
    }
    guarded(|| writer.close()).map_err(failed)?;
    Ok(())
}

fn copy_column<T: DataType>(
    file: &File,
    group: usize,
    column: usize,
    rows: Range<usize>,
    keep: &dyn Fn(usize) -> bool,
    to: &mut SerializedColumnWriter,
) -> Told<()> {
    let mut batch = Batch::<T>::new(file, group, column)?;
    let mut row = rows.start;
    while row < rows.end {
        let read = batch.read(rows.end - row)?;
        batch.retain(|i| keep(row + i));
        row += read;
        if batch.levels > 0 {
            let defined = (batch.max_defined > 0).then_some(&batch.defined[..]);
            let repeated = (batch.max_repeated > 0).then_some(&batch.repeated[..]);
            guarded(|| to.typed::<T>().write_batch(&batch.values, defined, repeated))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
