//! The pages of one column of one row group, unpacked. What a page claims about itself is held against its bytes before
//! it is decoded: the decoders of the `parquet` crate take its word for it.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use flate2::Crc;
use flate2::read::MultiGzDecoder;
use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;

use super::thrift::{I32, STRUCT, Thrift};
use super::{Told, delta};
use crate::data::source::read_up_to;

/// No page has more bytes once unpacked.
const MAX_PAGE: usize = 512 << 20;
/// Pages that one batch of nested values is made of have no more of them, nulls included.
const MAX_LEVELS: usize = 1 << 25;
const HEADER: usize = 1 << 12;
/// Bytes that are given to brotli at a time.
const BROTLI_BUFFER: usize = 1 << 12;

/// The ways to pack pages that are known here.
pub(super) fn unpacks(packed: Compression) -> bool {
    use Compression::{BROTLI, GZIP, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
    matches!(packed, UNCOMPRESSED | SNAPPY | GZIP(_) | BROTLI(_) | ZSTD(_) | LZ4_RAW)
}

/// Where the pages of a column lie in the file: its first byte and the one behind its last.
pub(super) fn range(column: &ColumnChunkMetaData) -> Option<(u64, u64)> {
    let first = column.data_page_offset();
    let start = match column.dictionary_page_offset() {
        Some(dictionary) if dictionary > 0 => first.min(dictionary),
        _ => first,
    };
    let start = u64::try_from(start).ok()?;
    Some((start, start.checked_add(u64::try_from(column.compressed_size()).ok()?)?))
}

/// The pages, one after the other.
pub(super) struct Pages {
    file: Arc<File>,
    at: u64,
    end: u64,
    packed: Compression,
    kind: Type,
    /// Bytes of a value of a fixed length.
    width: usize,
    max_repeated: i16,
    max_defined: i16,
    dictionary: bool,
    /// Set to zero by who reads a batch; adds up the values of the pages that go into it.
    levels: Arc<AtomicUsize>,
    /// The header of the next page, when it was looked at.
    next: Option<Header>,
}

/// What a page says about itself.
#[derive(Clone, Copy)]
struct Header {
    kind: i64,
    unpacked: usize,
    packed: usize,
    checksum: Option<i64>,
    /// The numbers of the header that its kind has of its own.
    own: [Option<i64>; 16],
}

const DATA: i64 = 0;
const INDEX: i64 = 1;
const DICTIONARY: i64 = 2;
const DATA_V2: i64 = 3;

impl Header {
    fn read(from: &mut Thrift<impl std::io::BufRead>) -> Told<Header> {
        let (mut numbers, mut own, mut last) = ([None; 5], None, 0);
        while let Some(field) = from.field(&mut last)? {
            match field {
                (id @ 1..=4, I32) => numbers[id as usize] = Some(from.integer()?),
                (id @ (5..=8), STRUCT) => own = Some((id, from.numbers()?)),
                (_, kind) => from.skip(kind)?,
            }
        }
        let [_, kind, unpacked, packed, checksum] = numbers;
        let size = |number: Option<i64>| number.and_then(|n| usize::try_from(n).ok());
        let (Some(kind), Some(unpacked), Some(packed)) = (kind, size(unpacked), size(packed)) else {
            return Err("does not say what it is and how long".into());
        };
        let own = match (own, kind) {
            (Some((5, own)), DATA) | (Some((7, own)), DICTIONARY) | (Some((8, own)), DATA_V2) => own,
            (_, INDEX) => [None; 16],
            _ => return Err(format!("is of the unknown kind {kind}, or lacks a header of its kind")),
        };
        Ok(Header { kind, unpacked, packed, checksum, own })
    }

    fn number(&self, field: usize) -> Told<u32> {
        let number = self.own[field].and_then(|n| i32::try_from(n).ok()).and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| format!("lacks a number in its header (field {field})"))
    }

    fn encoding(&self, field: usize) -> Told<Encoding> {
        #[expect(deprecated)]
        const CODES: [(u32, Encoding); 9] = [
            (0, Encoding::PLAIN),
            (2, Encoding::PLAIN_DICTIONARY),
            (3, Encoding::RLE),
            (4, Encoding::BIT_PACKED),
            (5, Encoding::DELTA_BINARY_PACKED),
            (6, Encoding::DELTA_LENGTH_BYTE_ARRAY),
            (7, Encoding::DELTA_BYTE_ARRAY),
            (8, Encoding::RLE_DICTIONARY),
            (9, Encoding::BYTE_STREAM_SPLIT),
        ];
        let code = self.number(field)?;
        let known = CODES.iter().find(|(known, _)| *known == code).map(|(_, encoding)| *encoding);
        known.ok_or_else(|| format!("has encoding {code}, which is not known here"))
    }
}

impl Pages {
    pub(super) fn new(
        file: &Arc<File>,
        column: &ColumnChunkMetaData,
        levels: &Arc<AtomicUsize>,
    ) -> Told<Pages> {
        let (at, end) = range(column).ok_or("lies outside of the file")?;
        let described = column.column_descr();
        Ok(Pages {
            file: file.clone(),
            at,
            end,
            packed: column.compression(),
            kind: described.physical_type(),
            width: usize::try_from(described.type_length()).unwrap_or(0),
            max_repeated: described.max_rep_level(),
            max_defined: described.max_def_level(),
            dictionary: false,
            levels: levels.clone(),
            next: None,
        })
    }

    fn header(&mut self) -> Told<Option<Header>> {
        while self.next.is_none() && self.at < self.end {
            let mut file = &*self.file;
            file.seek(SeekFrom::Start(self.at)).map_err(|e| e.to_string())?;
            let mut from = Thrift::new(BufReader::with_capacity(HEADER, file.take(self.end - self.at)));
            let header = Header::read(&mut from)?;
            self.at += from.at;
            if header.packed as u64 > self.end - self.at {
                return Err(format!("claims {} bytes, but its column ends before", header.packed));
            }
            match header.kind {
                INDEX => self.at += header.packed as u64,
                _ => self.next = Some(header),
            }
        }
        Ok(self.next)
    }

    fn page(&mut self) -> Told<Option<Page>> {
        let Some(header) = self.header()? else { return Ok(None) };
        self.next = None;
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(self.at)).map_err(|e| e.to_string())?;
        let bytes = read_up_to(&mut file, header.packed as u64).map_err(|e| e.to_string())?;
        if bytes.len() < header.packed {
            return Err("ends too early".into());
        }
        self.at += header.packed as u64;
        let mut checksum = Crc::new();
        checksum.update(&bytes);
        if header.checksum.is_some_and(|wanted| wanted as u32 != checksum.sum()) {
            return Err("does not have its checksum".into());
        }
        // Levels of the second kind of data pages lie before the values and are not packed.
        let levels = match header.kind {
            DATA_V2 => header.number(5)?.saturating_add(header.number(6)?) as usize,
            _ => 0,
        };
        if header.unpacked > MAX_PAGE {
            return Err(format!(
                "claims {} bytes once unpacked; write the table again with pages of at most {MAX_PAGE}",
                header.unpacked
            ));
        }
        if levels > bytes.len() || levels > header.unpacked {
            return Err(format!("claims {levels} bytes of levels, but does not have so many"));
        }
        let values = header.unpacked - levels;
        let bytes = match header.kind == DATA_V2 && header.own[7] == Some(0) {
            true => bytes,
            false => self.unpack(bytes, levels, values)?,
        };
        if bytes.len() != header.unpacked {
            return Err(format!("claims {} bytes once unpacked, and has {}", header.unpacked, bytes.len()));
        }
        self.checked(header, levels, bytes.into()).map(Some)
    }

    /// The bytes behind the levels, unpacked; memory grows with what really arrives.
    fn unpack(&self, bytes: Vec<u8>, levels: usize, wanted: usize) -> Told<Vec<u8>> {
        if self.packed == Compression::UNCOMPRESSED {
            return Ok(bytes);
        }
        let mut unpacked = bytes[..levels].to_vec();
        let packed = &bytes[levels..];
        if wanted == 0 {
            return Ok(unpacked);
        }
        // A byte of a block stands for no more than so many.
        let most = |each: usize| match wanted / each <= packed.len() {
            true => Ok(vec![0; wanted]),
            false => Err(format!("claims {wanted} bytes, more than {} packed ones can hold", packed.len())),
        };
        let limit = wanted as u64 + 1;
        let damaged = |e: &dyn std::fmt::Display| format!("cannot be unpacked: {e}");
        let values = match self.packed {
            Compression::SNAPPY => {
                let mut values = most(32)?;
                let len =
                    snap::raw::Decoder::new().decompress(packed, &mut values).map_err(|e| damaged(&e))?;
                values.truncate(len);
                values
            }
            Compression::LZ4_RAW => {
                let mut values = most(256)?;
                let len = lz4_flex::block::decompress_into(packed, &mut values).map_err(|e| damaged(&e))?;
                values.truncate(len);
                values
            }
            Compression::GZIP(_) => {
                read_up_to(&mut MultiGzDecoder::new(packed), limit).map_err(|e| damaged(&e))?
            }
            Compression::BROTLI(_) => {
                let mut decoder = brotli::Decompressor::new(packed, BROTLI_BUFFER);
                read_up_to(&mut decoder, limit).map_err(|e| damaged(&e))?
            }
            Compression::ZSTD(_) => {
                let mut decoder = zstd::Decoder::with_buffer(packed).map_err(|e| damaged(&e))?;
                read_up_to(&mut decoder, limit).map_err(|e| damaged(&e))?
            }
            other => return Err(format!("is packed with {other}, which is not known here")),
        };
        unpacked.extend(values);
        Ok(unpacked)
    }

    /// A page that decoders can be shown.
    fn checked(&mut self, header: Header, levels: usize, buf: Bytes) -> Told<Page> {
        let num_values = header.number(1)?;
        if header.kind == DICTIONARY {
            let least = match self.kind {
                Type::BOOLEAN => return Err("is a dictionary of truth values".into()),
                Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4,
                Type::INT64 | Type::DOUBLE => 8,
                Type::INT96 => 12,
                Type::FIXED_LEN_BYTE_ARRAY => self.width.max(1),
            };
            if num_values as usize > buf.len() / least {
                return Err(format!("claims {num_values} values in {} bytes", buf.len()));
            }
            self.dictionary = true;
            return Ok(Page::DictionaryPage {
                buf,
                num_values,
                encoding: header.encoding(2)?,
                is_sorted: false,
            });
        }
        if self.max_repeated > 0
            && self.levels.fetch_add(num_values as usize, Ordering::Relaxed) + num_values as usize
                > MAX_LEVELS
        {
            return Err(format!(
                "has more than {MAX_LEVELS} values for few rows; write the table again with smaller pages"
            ));
        }
        let mut encoding = header.encoding(if header.kind == DATA { 2 } else { 4 })?;
        let dictionary = matches!(encoding, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY);
        if dictionary && !self.dictionary {
            return Err("needs a dictionary, but there is none before".into());
        }
        let mut buf = buf;
        if delta::is_of_texts(encoding) {
            let levels = if header.kind == DATA { self.levels_before(header, &buf)? } else { levels };
            let (levels, values) = buf.split_at_checked(levels).ok_or("ends within its levels")?;
            let width = (self.kind == Type::FIXED_LEN_BYTE_ARRAY).then_some(self.width);
            let plain = delta::plain(encoding, values, MAX_LEVELS.min(num_values as usize), width, MAX_PAGE)?;
            buf = [levels, &plain].concat().into();
            encoding = Encoding::PLAIN;
        }
        Ok(match header.kind {
            DATA => Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding: header.encoding(3)?,
                rep_level_encoding: header.encoding(4)?,
                statistics: None,
            },
            _ => Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls: header.number(2)?,
                num_rows: header.number(3)?,
                def_levels_byte_len: header.number(5)?,
                rep_levels_byte_len: header.number(6)?,
                is_compressed: false,
                statistics: None,
            },
        })
    }

    /// The bytes of the levels that lie before the values of a data page of the first kind.
    fn levels_before(&self, header: Header, bytes: &[u8]) -> Told<usize> {
        let mut at = 0usize;
        for (most, field) in [(self.max_repeated, 4), (self.max_defined, 3)] {
            at += match (most, header.encoding(field)?) {
                (0, _) => 0,
                (_, Encoding::RLE) => {
                    let len = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
                    4 + u32::from_le_bytes(*len.ok_or("ends within its levels")?) as usize
                }
                _ => return Err("has levels in an encoding that is not known here".into()),
            };
        }
        Ok(at)
    }
}

/// What is wrong, as the `parquet` crate takes it.
fn wrong(what: String) -> ParquetError {
    ParquetError::General(format!("a page {what}"))
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.page().map_err(wrong)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let Some(header) = self.header().map_err(wrong)? else { return Ok(None) };
        let number = |kind: i64, field: usize| match header.kind == kind {
            true => header.number(field).map(|n| Some(n as usize)).map_err(wrong),
            false => Ok(None),
        };
        let num_levels = if header.kind == DICTIONARY { None } else { header.own[1].map(|n| n as usize) };
        Ok(Some(PageMetadata {
            num_rows: number(DATA_V2, 3)?,
            num_levels,
            is_dict: header.kind == DICTIONARY,
        }))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        if let Some(header) = self.header().map_err(wrong)? {
            self.at += header.packed as u64;
            self.next = None;
        }
        Ok(())
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}
