//! Texts that are written by the lengths of what differs from the one before (DELTA_LENGTH_BYTE_ARRAY and
//! DELTA_BYTE_ARRAY), as the plain encoding has them. They may grow far beyond what they are read from.

use parquet::basic::Encoding;

use super::Told;
use super::thrift::Thrift;

pub(super) fn is_of_texts(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY)
}

/// No more than `most` texts, all of `width` bytes if it is given, as no more than `limit` bytes.
pub(super) fn plain(
    encoding: Encoding,
    bytes: &[u8],
    most: usize,
    width: Option<usize>,
    limit: usize,
) -> Told<Vec<u8>> {
    let mut rest = bytes;
    let shared = match encoding {
        Encoding::DELTA_BYTE_ARRAY => integers(&mut rest, most)?,
        _ => Vec::new(),
    };
    let lengths = integers(&mut rest, most)?;
    if encoding == Encoding::DELTA_BYTE_ARRAY && shared.len() != lengths.len() {
        return Err(format!("has {} prefixes for {} texts", shared.len(), lengths.len()));
    }
    let mut plain = Vec::new();
    let mut before = 0..0;
    for (i, len) in lengths.into_iter().enumerate() {
        let shared = shared.get(i).copied().unwrap_or(0);
        let (own, others) = rest.split_at_checked(len).ok_or("ends within a text")?;
        rest = others;
        if shared > before.len() || width.is_some_and(|width| width != shared + len) {
            return Err("has a text of a wrong length".into());
        }
        if plain.len() + 4 + shared + len > limit {
            return Err(format!("holds more than {limit} bytes; write the table again with smaller pages"));
        }
        if width.is_none() {
            plain.extend(((shared + len) as u32).to_le_bytes());
        }
        let start = plain.len();
        plain.extend_from_within(before.start..before.start + shared);
        plain.extend(own);
        before = start..plain.len();
    }
    Ok(plain)
}

/// Lengths in DELTA_BINARY_PACKED, no more than `most`; `bytes` go on behind them.
fn integers(bytes: &mut &[u8], most: usize) -> Told<Vec<usize>> {
    let mut from = Thrift::new(*bytes);
    let [block, parts, count] = [from.unsigned()?, from.unsigned()?, from.unsigned()?];
    let mut value = from.integer()?;
    *bytes = &bytes[from.at as usize..];
    let each = block.checked_div(parts).filter(|each| each % 8 == 0 && *each > 0 && each * parts == block);
    let (Some(each), Ok(parts)) = (each, usize::try_from(parts)) else {
        return Err(format!("has lengths in blocks of {block} in {parts} parts"));
    };
    if count > most as u64 {
        return Err(format!("claims {count} lengths for {most} values"));
    }
    let count = count as usize;
    let mut integers = Vec::new();
    let mut push = |value: i64| match usize::try_from(value) {
        Ok(len) if len <= i32::MAX as usize => {
            integers.push(len);
            Ok(integers.len())
        }
        _ => Err(format!("has a text of {value} bytes")),
    };
    let mut done = if count > 0 { push(value)? } else { 0 };
    let short = "ends within its lengths";
    while done < count {
        let mut from = Thrift::new(*bytes);
        let least = from.integer()?;
        let (widths, rest) = bytes[from.at as usize..].split_at_checked(parts).ok_or(short)?;
        *bytes = rest;
        for &width in widths {
            if done == count {
                break;
            }
            if width > 32 {
                return Err(format!("has lengths of {width} bits"));
            }
            let len = usize::try_from(each / 8 * u64::from(width)).map_err(|_| short)?;
            let (part, rest) = bytes.split_at_checked(len).ok_or(short)?;
            *bytes = rest;
            let (mut bits, mut held, mut part) = (0u64, 0, part.iter());
            for _ in 0..each.min((count - done) as u64) {
                while held < width {
                    bits |= u64::from(*part.next().ok_or(short)?) << held;
                    held += 8;
                }
                let more = bits & ((1 << width) - 1);
                (bits, held) = (bits >> width, held - width);
                value = value.wrapping_add(least).wrapping_add(more as i64);
                done = push(value)?;
            }
        }
    }
    Ok(integers)
}
