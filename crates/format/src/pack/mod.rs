//! A file made smaller by entropy coding, that unpacks bit for bit to what it was.
//!
//! A packed file is `LSNP`, a byte for the version, a sealed head, and sealed parts. *Sealed* is: the length (LEB128),
//! the bytes, and the CRC-32 of both. The head holds the length of the whole file (8 bytes), its CRC-32, the number of
//! parts and the length of the layout (LEB128), and the layout as a stream. The layout has three numbers (LEB128) for
//! each piece of the file: the bytes since the piece before it, its own, and the part that it is in. Part 0 is all that
//! is in no piece. A part is all its pieces in a row: a byte for their form, and a stream for the bytes, or for each
//! plane (all first bytes of the elements, all second ones ..). A *stream* is a byte for its coding, its length and it.
//!
//! Which stretches are pieces, which of them share a part (and so a table of frequencies), the form, and the coding of
//! each stream are the packer's choice: by the type of a tensor's elements, by entropy, and by trial.

mod model;
pub mod rans;

use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use self::model::{Class, Piece};
use crate::{Error, Result, file};

const MAGIC: &[u8] = b"LSNP";
const VERSION: u8 = 1;
/// How many parts the pieces of one class are sorted into.
const MOST_PARTS: usize = 16;
/// What a part costs beside its streams, and a stream beside its table and its words, in bits.
const PART_COST: f64 = 64.0;
const STREAM_COST: f64 = 160.0;
/// What a symbol costs in a table, in bits.
const SYMBOL_COST: f64 = 12.0;

const BYTES: u8 = 0;
const NIBBLES: u8 = 1;
const DEFLATE: u8 = 2;

/// What is wrong with packed bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(String);

impl Fault {
    fn new(what: impl Into<String>) -> Fault {
        Fault(what.into())
    }
}

/// Whether bytes are a packed file, by their start.
pub fn is_packed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Packs a file, whatever is in it. ONNX models with their weights in the same file become smallest.
pub fn pack(bytes: &[u8]) -> Vec<u8> {
    let pieces = model::pieces(bytes);
    let groups = group(bytes, &pieces);
    let mut parts = vec![Vec::new(); groups.len() + 1];
    let mut layout = Vec::new();
    let mut end = 0;
    let mut members = vec![0; pieces.len()];
    for (part, group) in groups.iter().enumerate() {
        for &i in &group.pieces {
            members[i] = part + 1;
        }
    }
    for (piece, &part) in pieces.iter().zip(&members) {
        parts[0].extend_from_slice(&bytes[end..piece.range.start]);
        parts[part].extend_from_slice(&bytes[piece.range.clone()]);
        for n in [piece.range.start - end, piece.range.len(), part] {
            put_varint(&mut layout, n);
        }
        end = piece.range.end;
    }
    parts[0].extend_from_slice(&bytes[end..]);

    let mut head = Vec::new();
    head.extend((bytes.len() as u64).to_le_bytes());
    head.extend(checksum(bytes).to_le_bytes());
    put_varint(&mut head, parts.len());
    put_varint(&mut head, layout.len());
    put_stream(&mut head, &layout);
    let mut out = [MAGIC, &[VERSION]].concat();
    seal(&mut out, &head);
    let forms = std::iter::once(Form::PLAIN).chain(groups.iter().map(|g| g.form));
    for (part, form) in parts.iter().zip(forms) {
        let mut body = vec![form.tag()];
        for plane in form.split(part) {
            put_stream(&mut body, &plane);
        }
        seal(&mut out, &body);
    }
    out
}

/// The length of the file that packed bytes unpack to, as their checked head claims it.
///
/// # Errors
/// When the bytes are no packed file, of a later version, or their head is broken.
pub fn unpacked_len(bytes: &[u8]) -> std::result::Result<u64, Fault> {
    Ok(read_head(bytes)?.len)
}

/// The inverse of [`pack`]. A file of up to `limit` bytes is unpacked; memory for about three times as much is taken
/// when the head claims it, and never more.
///
/// # Errors
/// When the bytes are no packed file, are of a later version or broken in any place, or claim more than `limit`.
pub fn unpack(bytes: &[u8], limit: usize) -> std::result::Result<Vec<u8>, Fault> {
    let head = read_head(bytes)?;
    let len = usize::try_from(head.len).ok().filter(|&n| n <= limit).ok_or_else(|| {
        Fault::new(format!("the packed file unpacks to {} bytes, and {limit} are allowed", head.len))
    })?;
    let (pieces, lens) = head.layout(len)?;
    let mut rest = head.rest;
    let mut parts = Vec::new();
    for (i, &len) in lens.iter().enumerate() {
        let at = |fault: Fault| Fault::new(format!("part {i}: {fault}"));
        parts.push(read_part(unseal(&mut rest).map_err(at)?, len).map_err(at)?);
    }
    if !rest.is_empty() {
        return Err(Fault::new(format!("{} bytes follow the last part", rest.len())));
    }
    let mut out = zeros(len)?;
    let mut sources: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let mut end = 0;
    // The lengths of the parts are the sums of what is taken here.
    let mut copy = |part: usize, range: Range<usize>| -> Option<()> {
        let (now, later) = sources.get(part)?.split_at_checked(range.len())?;
        sources[part] = later;
        out.get_mut(range)?.copy_from_slice(now);
        Some(())
    };
    let lacking = || Fault::new("the layout does not fit the parts");
    for (range, part) in pieces {
        copy(0, end..range.start).ok_or_else(lacking)?;
        end = range.end;
        copy(part, range).ok_or_else(lacking)?;
    }
    copy(0, end..len).ok_or_else(lacking)?;
    if checksum(&out) != head.checksum {
        return Err(Fault::new("the unpacked file is not the one that was packed: its checksum differs"));
    }
    Ok(out)
}

/// Packs a file into another, which is complete or not there at all. Gives the sizes of both.
///
/// # Errors
/// When the one cannot be read or is empty, or the other cannot be written.
pub fn pack_file(from: &Path, to: &Path) -> Result<(u64, u64)> {
    let bytes = file::map(from)?;
    let packed = pack(&bytes);
    file::write(to, |out| out.write_all(&packed))?;
    Ok((bytes.len() as u64, packed.len() as u64))
}

/// Unpacks a file of up to `limit` unpacked bytes into another, which is complete or not there at all.
///
/// # Errors
/// When the one cannot be read, is no packed file, is broken or larger, or the other cannot be written.
pub fn unpack_file(from: &Path, to: &Path, limit: usize) -> Result<()> {
    let bytes = unpack(&file::map(from)?, limit).map_err(|e| Error::broken(from, e.to_string()))?;
    file::write(to, |out| out.write_all(&bytes))
}

/// How the elements of a part are laid out in streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    /// The bytes of an element, each of which has a stream: 1, 2, 4 or 8.
    width: usize,
    /// Whether the sign is moved behind the mantissa, so that the exponent is less spread over bytes.
    rotated: bool,
}

impl Form {
    const PLAIN: Form = Form { width: 1, rotated: false };

    fn rotated(width: usize) -> Form {
        Form { width, rotated: true }
    }

    fn tag(self) -> u8 {
        self.width as u8 | if self.rotated { 0x80 } else { 0 }
    }

    fn read(tag: u8) -> Option<Form> {
        let form = Form { width: usize::from(tag & 0x7f), rotated: tag & 0x80 != 0 };
        matches!(form.width, 1 | 2 | 4 | 8).then_some(form)
    }

    /// The forms to try for a piece of this length.
    fn all(class: Class, len: usize) -> impl Iterator<Item = Form> {
        let more = match class {
            Class::Bytes => vec![],
            Class::Whole(width) => vec![Form { width: width.into(), rotated: false }],
            Class::Float(width) => vec![Form::rotated(width.into())],
            Class::Unknown => vec![Form::rotated(2), Form::rotated(4)],
        };
        more.into_iter().filter(move |f| len.is_multiple_of(f.width)).chain([Form::PLAIN])
    }

    /// The planes of a part, whose length is a multiple of the width.
    fn split(self, part: &[u8]) -> Vec<Vec<u8>> {
        let mut planes = vec![Vec::with_capacity(part.len() / self.width); self.width];
        let mut buffer = [0; 8];
        for element in part.chunks_exact(self.width) {
            let element = self.turn(element, &mut buffer, 1);
            for (plane, &b) in planes.iter_mut().zip(element) {
                plane.push(b);
            }
        }
        planes
    }

    /// The inverse of [`Form::split`] for planes of the same length.
    fn join(self, planes: &[Vec<u8>], len: usize) -> std::result::Result<Vec<u8>, Fault> {
        let mut out = zeros(len)?;
        let mut buffer = [0; 8];
        for (plane, values) in planes.iter().enumerate() {
            for (element, &b) in out.chunks_exact_mut(self.width).zip(values) {
                element[plane] = b;
            }
        }
        if self.rotated {
            for element in out.chunks_exact_mut(self.width) {
                let mut copy = [0; 8];
                copy[..self.width].copy_from_slice(element);
                let turned = self.turn(&copy[..self.width], &mut buffer, self.width as u32 * 8 - 1);
                element.copy_from_slice(turned);
            }
        }
        Ok(out)
    }

    /// The element with its bits rotated to the left within its width, or as it is.
    fn turn<'a>(self, element: &'a [u8], buffer: &'a mut [u8; 8], bits: u32) -> &'a [u8] {
        if !self.rotated {
            return element;
        }
        buffer.fill(0);
        buffer[..self.width].copy_from_slice(element);
        let width = self.width as u32 * 8;
        let x = u64::from_le_bytes(*buffer);
        *buffer = (x << bits | x >> (width - bits)).to_le_bytes();
        &buffer[..self.width]
    }

    /// How often each byte occurs in each plane.
    fn histograms(self, part: &[u8]) -> Vec<[u64; 256]> {
        let mut counts = vec![[0; 256]; self.width];
        let mut buffer = [0; 8];
        for element in part.chunks_exact(self.width) {
            for (counts, &b) in counts.iter_mut().zip(self.turn(element, &mut buffer, 1)) {
                counts[usize::from(b)] += 1;
            }
        }
        counts
    }
}

/// Pieces of one form that share a part.
struct Group {
    form: Form,
    class: Class,
    pieces: Vec<usize>,
    counts: Vec<[u64; 256]>,
    /// About how many bits the streams are long.
    bits: f64,
}

/// Sorts pieces into parts: each into the one that grows least, or into one of its own.
fn group(bytes: &[u8], pieces: &[Piece]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (i, Piece { range, class }) in pieces.iter().enumerate() {
        let options = Form::all(*class, range.len()).map(|form| {
            let counts = form.histograms(&bytes[range.clone()]);
            Group { form, class: *class, pieces: vec![i], bits: bits(&counts), counts }
        });
        let Some(own) = options.min_by(|a, b| a.bits.total_cmp(&b.bits)) else { continue };
        let alike = groups.iter_mut().filter(|g| g.class == own.class && g.form == own.form);
        let mut number = 0;
        let mut best: Option<(f64, &mut Group, Vec<[u64; 256]>)> = None;
        for group in alike {
            number += 1;
            let counts: Vec<_> = group.counts.iter().zip(&own.counts).map(|(a, b)| sum(a, b)).collect();
            let bits = bits(&counts);
            let growth = bits - group.bits;
            if best.as_ref().is_none_or(|(b, _, _)| growth < *b) {
                best = Some((growth, group, counts));
            }
        }
        match best {
            Some((growth, group, counts)) if growth < own.bits + PART_COST || number >= MOST_PARTS => {
                group.bits += growth;
                group.counts = counts;
                group.pieces.push(i);
            }
            _ => groups.push(own),
        }
    }
    groups
}

fn sum(a: &[u64; 256], b: &[u64; 256]) -> [u64; 256] {
    std::array::from_fn(|i| a[i] + b[i])
}

/// About how many bits the streams of planes are long, without deflate.
fn bits(planes: &[[u64; 256]]) -> f64 {
    let by_nibbles = |counts: &[u64; 256]| {
        let mut nibbles = [0; 16];
        for (b, &c) in counts.iter().enumerate() {
            nibbles[b & 15] += c;
            nibbles[b >> 4] += c;
        }
        entropy(&nibbles)
    };
    let stored = |counts: &[u64; 256]| 8.0 * counts.iter().sum::<u64>() as f64;
    planes.iter().map(|p| stored(p).min(entropy(p)).min(by_nibbles(p))).sum()
}

/// The bits of a run of symbols, each at its entropy, with their table.
fn entropy(counts: &[u64]) -> f64 {
    let all = counts.iter().sum::<u64>() as f64;
    let each = |&c: &u64| if c == 0 { 0.0 } else { SYMBOL_COST + c as f64 * (all / c as f64).log2() };
    STREAM_COST + counts.iter().map(each).sum::<f64>()
}

/// Adds data in the coding that makes them smallest.
fn put_stream(out: &mut Vec<u8>, data: &[u8]) {
    let nibbles: Vec<u8> = data.iter().flat_map(|b| [b & 15, b >> 4]).collect();
    let codes = [(BYTES, rans::encode(data)), (NIBBLES, rans::encode(&nibbles)), (DEFLATE, deflate(data))];
    if let Some((coding, code)) = codes.into_iter().min_by_key(|(_, code)| code.len()) {
        out.push(coding);
        put_varint(out, code.len());
        out.extend(code);
    }
}

/// Reads a stream of data of `len` bytes.
fn read_stream(rest: &mut &[u8], len: usize) -> std::result::Result<Vec<u8>, Fault> {
    let coding = *rest.split_off_first().ok_or_else(cut_off)?;
    let size = read_varint(rest)?;
    let code = rest.split_off(..size).ok_or_else(cut_off)?;
    match coding {
        BYTES => rans::decode(code, len),
        NIBBLES => {
            let twice = len.checked_mul(2).ok_or_else(|| Fault::new("a stream is too long"))?;
            let mut nibbles = rans::decode(code, twice)?;
            for i in 0..len {
                let (low, high) = (nibbles[2 * i], nibbles[2 * i + 1]);
                if low | high > 15 {
                    return Err(Fault::new("a nibble is above 15"));
                }
                nibbles[i] = low | high << 4;
            }
            nibbles.truncate(len);
            nibbles.shrink_to_fit();
            Ok(nibbles)
        }
        DEFLATE => {
            let mut out = zeros(len)?;
            let mut decoder = DeflateDecoder::new(code);
            let broken = |e| Fault::new(format!("a deflated stream is broken: {e}"));
            decoder.read_exact(&mut out).map_err(broken)?;
            match decoder.read(&mut [0]).map_err(broken)? {
                0 => Ok(out),
                _ => Err(Fault::new(format!("a deflated stream is longer than {len} bytes"))),
            }
        }
        other => Err(Fault::new(format!("a stream has the unknown coding {other}"))),
    }
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail; if it did, an empty code would be no code, so that the data are taken as they are.
    match encoder.write_all(data).and_then(|()| encoder.finish()) {
        Ok(code) => code,
        Err(_) => data.to_vec(),
    }
}

/// A part of `len` bytes.
fn read_part(mut body: &[u8], len: usize) -> std::result::Result<Vec<u8>, Fault> {
    let tag = *body.split_off_first().ok_or_else(cut_off)?;
    let form = Form::read(tag).filter(|f| len.is_multiple_of(f.width));
    let form = form.ok_or_else(|| Fault::new(format!("form {tag} does not fit a part of {len} bytes")))?;
    let mut planes = Vec::new();
    for _ in 0..form.width {
        planes.push(read_stream(&mut body, len / form.width)?);
    }
    if !body.is_empty() {
        return Err(Fault::new("bytes follow the last stream"));
    }
    match planes.as_mut_slice() {
        [only] if !form.rotated => Ok(std::mem::take(only)),
        planes => form.join(planes, len),
    }
}

/// What the head of a packed file says.
struct Head<'a> {
    /// The length of the unpacked file.
    len: u64,
    checksum: u32,
    parts: usize,
    layout_len: usize,
    /// The stream of the layout.
    layout: &'a [u8],
    /// The parts.
    rest: &'a [u8],
}

fn read_head(bytes: &[u8]) -> std::result::Result<Head<'_>, Fault> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| Fault::new("this is not a packed file"))?;
    let (&version, mut rest) = rest.split_first().ok_or_else(cut_off)?;
    if version != VERSION {
        return Err(Fault::new(format!(
            "a packed file of version {version}; only version {VERSION} is known"
        )));
    }
    let at = |fault: Fault| Fault::new(format!("head: {fault}"));
    let mut head = unseal(&mut rest).map_err(at)?;
    let len = *head.split_first_chunk::<8>().ok_or_else(cut_off)?.0;
    head = &head[8..];
    let checksum = *head.split_first_chunk::<4>().ok_or_else(cut_off)?.0;
    head = &head[4..];
    let parts = read_varint(&mut head).map_err(at)?;
    let layout_len = read_varint(&mut head).map_err(at)?;
    Ok(Head {
        len: u64::from_le_bytes(len),
        checksum: u32::from_le_bytes(checksum),
        parts,
        layout_len,
        layout: head,
        rest,
    })
}

/// The range of a piece in the file, and its part.
type Place = (Range<usize>, usize);

impl Head<'_> {
    /// The pieces of the file of `len` bytes, and the lengths of the parts, which sum to `len`.
    fn layout(&self, len: usize) -> std::result::Result<(Vec<Place>, Vec<usize>), Fault> {
        // Every part takes bytes of the packed file; every piece is 64 bytes or more, and at most 4 in the layout, or
        // follows a gap that is longer than the number that says it.
        if self.parts == 0 || self.parts > self.rest.len() || self.layout_len > len / 16 {
            return Err(Fault::new(format!(
                "{} parts and a layout of {} cannot be",
                self.parts, self.layout_len
            )));
        }
        let mut stream = self.layout;
        let layout = read_stream(&mut stream, self.layout_len)?;
        if !stream.is_empty() {
            return Err(Fault::new("bytes follow the layout"));
        }
        let mut layout = layout.as_slice();
        let mut lens = vec![0; self.parts];
        let mut pieces = Vec::new();
        let mut end = 0_usize;
        let outside = || Fault::new("the layout goes beyond the file");
        while !layout.is_empty() {
            let [gap, size, part] =
                [read_varint(&mut layout)?, read_varint(&mut layout)?, read_varint(&mut layout)?];
            let start = end.checked_add(gap).ok_or_else(outside)?;
            end = start.checked_add(size).filter(|&e| e <= len).ok_or_else(outside)?;
            *lens.get_mut(part).ok_or_else(|| Fault::new(format!("the layout names part {part}")))? += size;
            lens[0] += gap;
            pieces.push((start..end, part));
        }
        lens[0] += len - end;
        Ok((pieces, lens))
    }
}

/// Adds bytes with their length and the checksum of both.
fn seal(out: &mut Vec<u8>, body: &[u8]) {
    let start = out.len();
    put_varint(out, body.len());
    out.extend_from_slice(body);
    out.extend(checksum(&out[start..]).to_le_bytes());
}

/// Takes sealed bytes from the start of `rest`.
fn unseal<'a>(rest: &mut &'a [u8]) -> std::result::Result<&'a [u8], Fault> {
    let whole = *rest;
    let len = read_varint(rest)?;
    let body = rest.split_off(..len).ok_or_else(cut_off)?;
    let covered = &whole[..whole.len() - rest.len()];
    let (stored, later) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
    *rest = later;
    if checksum(covered) != u32::from_le_bytes(*stored) {
        return Err(Fault::new("the packed file is damaged: a checksum differs"));
    }
    Ok(body)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn cut_off() -> Fault {
    Fault::new("the packed file is cut off")
}

/// That many zeros, or an error where there is no memory for them.
fn zeros(len: usize) -> std::result::Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| Fault::new(format!("there is no memory for {len} bytes")))?;
    out.resize(len, 0);
    Ok(out)
}

fn put_varint(out: &mut Vec<u8>, mut n: usize) {
    while n > 127 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The LEB128 number at the start, and how many bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (i, &b) in bytes.iter().enumerate().take(10) {
        value |= u64::from(b & 0x7f) << (7 * i);
        if b < 128 {
            return Some((value, i + 1));
        }
    }
    None
}

/// Takes a LEB128 number from the start of `rest`.
fn read_varint(rest: &mut &[u8]) -> std::result::Result<usize, Fault> {
    let (value, len) = varint(rest).ok_or_else(cut_off)?;
    *rest = &rest[len..];
    usize::try_from(value).map_err(|_| Fault::new(format!("the number {value} is too large")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, TensorProto};

    const LIMIT: usize = 1 << 24;

    fn model(tensors: &[(i32, Vec<u8>)]) -> Vec<u8> {
        let tensor = |(i, (data_type, bytes)): (usize, &(i32, Vec<u8>))| TensorProto {
            name: Some(format!("layer.{i}.weight")),
            data_type: Some(*data_type),
            raw_data: Some(bytes.clone().into()),
            ..Default::default()
        };
        let graph = GraphProto {
            initializer: tensors.iter().enumerate().map(tensor).collect(),
            ..Default::default()
        };
        ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec()
    }

    /// Numbers of a bell curve, by the sum of twelve uniform ones.
    fn normals(n: usize) -> Vec<f32> {
        let mut seed = 7_u64;
        let mut uniform = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 24) as f32
        };
        (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    fn small() -> Vec<u8> {
        let floats = normals(60).iter().flat_map(|x| x.to_le_bytes()).collect();
        model(&[(1, floats), (3, (0..120).map(|i| i % 5).collect()), (22, vec![0x11; 70])])
    }

    #[test]
    fn weights_become_smaller() {
        let x = normals(20_000);
        let floats: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let nibbles: Vec<u8> = x
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[a, b]| {
                let code = |x: &f32| (x * 1.75).round().clamp(-8.0, 7.0) as i8 as u8 & 15;
                code(a) | code(b) << 4
            })
            .collect();
        for (data_type, bytes, bound) in [(1, floats, 0.86), (22, nibbles, 0.75)] {
            let file = model(&[(data_type, bytes.clone()), (data_type, bytes)]);
            let packed = pack(&file);
            assert!((packed.len() as f64) < bound * file.len() as f64, "{} of {}", packed.len(), file.len());
            assert_eq!(unpack(&packed, LIMIT).unwrap(), file);
        }
    }

    #[test]
    fn rotated_planes_come_back() {
        let data: Vec<u8> = (0..64_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
        for width in [1, 2, 4, 8] {
            for rotated in [false, true] {
                let form = Form { width, rotated };
                assert_eq!(Form::read(form.tag()), Some(form));
                assert_eq!(form.join(&form.split(&data), data.len()).unwrap(), data, "{form:?}");
            }
        }
        // The whole exponent of a 32-bit number is in the last plane.
        let planes = Form::rotated(4).split(&(-1.5_f32).to_le_bytes());
        assert_eq!(planes, [[1], [0], [0x80], [127]]);
    }

    #[test]
    fn a_flipped_byte_is_an_error() {
        let packed = pack(&small());
        for i in 0..packed.len() {
            for flip in [1, 0x80, 0xff] {
                let mut broken = packed.clone();
                broken[i] ^= flip;
                assert!(unpack(&broken, LIMIT).is_err(), "byte {i} of {}", packed.len());
            }
        }
    }

    #[test]
    fn a_truncated_or_longer_file_is_an_error() {
        let mut packed = pack(&small());
        for len in 0..packed.len() {
            assert!(unpack(&packed[..len], LIMIT).is_err(), "{len}");
        }
        packed.push(0);
        assert!(unpack(&packed, LIMIT).is_err());
    }

    /// A packed file with a sound checksum around this head.
    fn forged(len: u64, parts: usize, layout_len: usize, layout: &[usize], part_len: usize) -> Vec<u8> {
        let mut head = Vec::new();
        head.extend(len.to_le_bytes());
        head.extend([0; 4]);
        put_varint(&mut head, parts);
        put_varint(&mut head, layout_len);
        let mut numbers = Vec::new();
        for &n in layout {
            put_varint(&mut numbers, n);
        }
        put_stream(&mut head, &numbers);
        let mut out = [MAGIC, &[VERSION]].concat();
        seal(&mut out, &head);
        let mut body = vec![1];
        put_stream(&mut body, &vec![0; part_len]);
        seal(&mut out, &body);
        out
    }

    #[test]
    fn absurd_claims_are_errors() {
        let claims = [
            forged(u64::MAX, 1, 0, &[], 8),
            forged(LIMIT as u64 + 1, 1, 0, &[], 8),
            forged(100, 0, 0, &[], 8),
            forged(100, usize::MAX, 0, &[], 8),
            forged(100, 1, usize::MAX, &[], 8),
            forged(100, 1, 3, &[10, 200, 0], 8),
            forged(100, 1, 3, &[10, 20, 7], 8),
            forged(100, 2, 12, &[1, usize::MAX, 1], 8),
            forged(100, 1, 2, &[1, 2], 8),
        ];
        for (i, packed) in claims.iter().enumerate() {
            assert!(unpack(packed, LIMIT).is_err(), "claim {i}");
        }
        assert_eq!(unpacked_len(&claims[1]).unwrap(), LIMIT as u64 + 1);
        assert!(unpack(&pack(&[0; 100]), 99).is_err());
        assert_eq!(unpack(&pack(&[0; 100]), 100).unwrap(), [0; 100]);
    }

    #[test]
    fn files_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let [from, packed, to] = ["a.onnx", "a.packed", "b.onnx"].map(|name| folder.path().join(name));
        std::fs::write(&from, small()).unwrap();
        let (before, after) = pack_file(&from, &packed).unwrap();
        assert_eq!(before, std::fs::metadata(&from).unwrap().len());
        assert_eq!(after, std::fs::metadata(&packed).unwrap().len());
        assert!(is_packed(&std::fs::read(&packed).unwrap()) && !is_packed(&small()));
        unpack_file(&packed, &to, LIMIT).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), small());
        let error = unpack_file(&from, &to, LIMIT).unwrap_err().to_string();
        assert!(error.contains("a.onnx") && error.contains("not a packed file"), "{error}");
    }

    #[test]
    fn nothing_and_a_large_unknown_file_come_back() {
        assert!(unpack(&pack(&[]), 0).unwrap().is_empty());
        let halves: Vec<u8> =
            normals(50_001).iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
        let packed = pack(&halves);
        assert!(packed.len() < halves.len() * 95 / 100, "{} of {}", packed.len(), halves.len());
        assert_eq!(unpack(&packed, LIMIT).unwrap(), halves);
    }

    proptest! {
        #[test]
        fn every_file_comes_back(file in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(unpack(&pack(&file), file.len()).unwrap(), file);
        }

        #[test]
        fn models_and_their_beginnings_come_back(
            tensors in prop::collection::vec((0..30_i32, prop::collection::vec(0..9_u8, 0..400)), 0..8),
            keep in 0.0..1.0_f64,
        ) {
            let file = model(&tensors);
            prop_assert_eq!(&unpack(&pack(&file), LIMIT).unwrap(), &file);
            let start = &file[..(file.len() as f64 * keep) as usize];
            prop_assert_eq!(unpack(&pack(start), LIMIT).unwrap(), start);
        }

        #[test]
        fn garbage_behind_a_sound_seal_is_no_panic(
            head in prop::collection::vec(any::<u8>(), 0..60),
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut out = [MAGIC, &[VERSION]].concat();
            let mut sound = 50_u64.to_le_bytes().to_vec();
            sound.extend([0, 0, 0, 0, 2]);
            sound.extend(head);
            seal(&mut out, &sound);
            seal(&mut out, &body);
            seal(&mut out, &body);
            let _ = unpack(&out, LIMIT);
            for form in [1, 2, 0x84] {
                let mut body = body.clone();
                body.insert(0, form);
                let _ = read_part(&body, 32);
            }
        }
    }
}
