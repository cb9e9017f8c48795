//! Arrays in NumPy's `.npy` format, versions 1 to 3
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use bytes::Bytes;
use graph::{DType, Tensor};

use super::source;
use crate::{Error, Result};

/// The first bytes of every `.npy` file.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// A header longer than this is refused; NumPy writes some hundred bytes.
const MAX_HEADER: usize = 1 << 16;

/// NumPy never makes arrays of more dimensions.
const MAX_RANK: usize = 64;

/// (kind and size in bytes, type)
const TYPES: [(&str, DType); 14] = [
    ("b1", DType::Bool),
    ("i1", DType::I8),
    ("i2", DType::I16),
    ("i4", DType::I32),
    ("i8", DType::I64),
    ("u1", DType::U8),
    ("u2", DType::U16),
    ("u4", DType::U32),
    ("u8", DType::U64),
    ("f2", DType::F16),
    ("f4", DType::F32),
    ("f8", DType::F64),
    ("c8", DType::C64),
    ("c16", DType::C128),
];

/// Reads an array file.
///
/// # Errors
/// When the file cannot be read, is damaged, holds more than `limit` bytes, or has an element type that is no
/// number (objects are never read: they are programs).
pub fn read(path: &Path, limit: u64) -> Result<Tensor> {
    let mut reader = BufReader::new(source::open(path)?);
    read_from(&mut reader, limit).map_err(|what| Error::file(path, what))
}

/// Writes an array file: to a temporary name, synced to disk, then renamed.
///
/// # Errors
/// When the file cannot be written, or the format has no such element type.
pub fn write(path: &Path, tensor: &Tensor) -> Result<()> {
    let header = header_of(tensor).map_err(|what| Error::file(path, what))?;
    write_file(path, |file| {
        file.write_all(&header)?;
        file.write_all(tensor.bytes())
    })
}

/// Calls `fill` with a new file beside `path`, which takes the place of `path` once all is on disk. A device or a
/// pipe cannot be replaced: it is written to.
pub(super) fn write_file(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        let mut file = File::options().write(true).open(path).map_err(Error::io(path))?;
        return fill(&mut file).map_err(Error::io(path));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lessen-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(Error::io(path))?;
    fill(file.as_file_mut()).map_err(Error::io(path))?;
    file.as_file().sync_all().map_err(Error::io(path))?;
    file.persist(path).map_err(|e| e.error).map_err(Error::io(path))?;
    Ok(())
}

/// The bytes before the elements.
pub(super) fn header_of(tensor: &Tensor) -> std::result::Result<Vec<u8>, String> {
    let Some((code, _)) = TYPES.iter().find(|row| row.1 == tensor.dtype()) else {
        return Err(format!(
            "elements of type {} cannot be written as .npy; cast them first",
            tensor.dtype()
        ));
    };
    let order = if tensor.dtype().bits() == 8 { '|' } else { '<' };
    let sizes: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
    let sizes = if tensor.rank() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({sizes}), }}");
    let padding = 63 - (MAGIC.len() + 4 + text.len()) % 64;
    text.extend(std::iter::repeat_n(' ', padding));
    text.push('\n');
    let length = u16::try_from(text.len()).map_err(|_| "too many dimensions for .npy".to_string())?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

/// Reads an array to the end of `reader`; messages are without the name of the file.
pub(super) fn read_from(reader: &mut impl Read, limit: u64) -> std::result::Result<Tensor, String> {
    let text = read_header(reader)?;
    let header = parse(&text)?;
    let (big, dtype) = element_type(&header.descr)?;
    let total = graph::tensor::count(&header.shape)
        .ok()
        .and_then(|n| dtype.bytes_for(n))
        .ok_or_else(|| format!("an array of shape {:?} cannot exist", header.shape))?;
    if total as u64 > limit {
        return Err(source::too_big(limit));
    }
    let mut bytes = source::read_up_to(reader, total as u64 + 1).map_err(|e| e.to_string())?;
    if bytes.len() != total {
        let found = if bytes.len() > total { "more" } else { &format!("only {}", bytes.len()) };
        return Err(format!("{dtype}{:?} takes {total} bytes, but there are {found}", header.shape));
    }
    if big {
        swap_bytes(&mut bytes, dtype);
    }
    if header.fortran {
        bytes = transpose(&bytes, &header.shape, dtype.bits() / 8);
    }
    let tensor = Tensor::from_bytes(dtype, &header.shape, Bytes::from(bytes)).map_err(|e| e.to_string())?;
    Ok(tensor.aligned())
}

/// Turns the bytes of each number around (a complex number is two).
pub(super) fn swap_bytes(bytes: &mut [u8], dtype: DType) {
    let width = match dtype {
        DType::C64 => 4,
        DType::C128 => 8,
        other => other.bits() / 8,
    };
    if width > 1 {
        bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
}

/// Column-major elements of `width` bytes in row-major order.
fn transpose(bytes: &[u8], shape: &[usize], width: usize) -> Vec<u8> {
    let mut strides = vec![width; shape.len()];
    for i in 1..shape.len() {
        strides[i] = strides[i - 1] * shape[i - 1];
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = vec![0; shape.len()];
    while out.len() < bytes.len() {
        let from: usize = at.iter().zip(&strides).map(|(i, s)| i * s).sum();
        out.extend_from_slice(&bytes[from..from + width]);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    out
}

/// Is it big-endian, and the type, of a code such as `<f4`.
fn element_type(descr: &str) -> std::result::Result<(bool, DType), String> {
    let unsupported = || match descr.get(1..2) {
        Some("O") => "holds Python objects, which are never read; save plain numbers".to_string(),
        _ => format!("element type {descr:?} is not supported; save numbers or bools"),
    };
    let (order, code) = descr.split_at_checked(1).ok_or_else(unsupported)?;
    let dtype = TYPES.iter().find(|row| row.0 == code).ok_or_else(unsupported)?.1;
    match order {
        "<" | "|" | "=" => Ok((false, dtype)),
        ">" => Ok((true, dtype)),
        _ => Err(unsupported()),
    }
}

fn read_header(reader: &mut impl Read) -> std::result::Result<String, String> {
    let cut = |_| "ends within its header".to_string();
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(cut)?;
    if !start.starts_with(MAGIC) {
        return Err("is not an array in .npy format".into());
    }
    let length = match start[6] {
        1 => {
            let mut length = [0; 2];
            reader.read_exact(&mut length).map_err(cut)?;
            u16::from_le_bytes(length) as usize
        }
        2 | 3 => {
            let mut length = [0; 4];
            reader.read_exact(&mut length).map_err(cut)?;
            u32::from_le_bytes(length) as usize
        }
        version => return Err(format!("is .npy version {version}; versions 1 to 3 are known")),
    };
    if length > MAX_HEADER {
        return Err(format!("claims a header of {length} bytes; more than {MAX_HEADER} are refused"));
    }
    let bytes = source::read_up_to(reader, length as u64).map_err(|e| e.to_string())?;
    if bytes.len() != length {
        return Err(cut(std::io::ErrorKind::UnexpectedEof.into()));
    }
    String::from_utf8(bytes).map_err(|_| "has a header that is not text".into())
}

#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// Parses the header: a Python dictionary of three entries.
fn parse(text: &str) -> std::result::Result<Header, String> {
    let mut rest = Rest(text.trim());
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    rest.expect("{")?;
    while !rest.skip("}") {
        let key = rest.string()?;
        rest.expect(":")?;
        match key {
            "descr" => descr = Some(rest.string()?.to_string()),
            "fortran_order" => fortran = Some(rest.bool()?),
            "shape" => shape = Some(rest.sizes()?),
            other => return Err(format!("has a header with the unknown entry {other:?}")),
        }
        if !rest.skip(",") {
            rest.expect("}")?;
            break;
        }
    }
    match (rest.0.trim(), descr, fortran, shape) {
        ("", Some(descr), Some(fortran), Some(shape)) => Ok(Header { descr, fortran, shape }),
        _ => Err(format!("has a header that cannot be understood: {:?}", text.trim())),
    }
}

/// What is still to be parsed.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn skip(&mut self, token: &str) -> bool {
        let found = self.0.trim_start().strip_prefix(token);
        self.0 = found.unwrap_or(self.0);
        found.is_some()
    }

    fn expect(&mut self, token: &str) -> std::result::Result<(), String> {
        match self.skip(token) {
            true => Ok(()),
            false => Err(format!("has a header with {:?} where {token:?} should be", self.start())),
        }
    }

    fn start(&self) -> String {
        self.0.trim_start().chars().take(20).collect()
    }

    fn string(&mut self) -> std::result::Result<&'a str, String> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
        match quote.and_then(|q| text[1..].split_once(q)) {
            Some((string, rest)) => {
                self.0 = rest;
                Ok(string)
            }
            None if text.starts_with('[') => {
                Err("has fields of several types; save one array for each".into())
            }
            None => Err(format!("has a header with {:?} where a string should be", self.start())),
        }
    }

    fn bool(&mut self) -> std::result::Result<bool, String> {
        match self.skip("True") {
            true => Ok(true),
            false => self.expect("False").map(|()| false),
        }
    }

    fn sizes(&mut self) -> std::result::Result<Vec<usize>, String> {
        let mut sizes = Vec::new();
        self.expect("(")?;
        while !self.skip(")") {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let size = text[..end].parse().map_err(|_| format!("has a bad size at {:?}", self.start()))?;
            sizes.push(size);
            self.0 = &text[end..];
            self.skip("L");
            if !self.skip(",") {
                self.expect(")")?;
                break;
            }
        }
        match sizes.len() > MAX_RANK {
            true => Err(format!("has {} dimensions; more than {MAX_RANK} are refused", sizes.len())),
            false => Ok(sizes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file of version `version` with this header and these elements.
    pub(crate) fn file(version: u8, header: &str, elements: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(elements);
        bytes
    }

    fn parsed(bytes: &[u8]) -> std::result::Result<Tensor, String> {
        read_from(&mut &bytes[..], 1 << 20)
    }

    #[test]
    fn what_numpy_writes() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }       \n";
        let elements: Vec<u8> = [1f32, -2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
        for version in 1..=3 {
            let tensor = parsed(&file(version, header, &elements)).unwrap();
            assert_eq!(tensor, Tensor::vector(&[1f32, -2.5]));
        }
        let scalar = parsed(&file(1, "{'shape':(),'fortran_order':False,'descr':'|u1'}", &[7])).unwrap();
        assert_eq!(scalar, Tensor::scalar(7u8));
        let old =
            parsed(&file(1, "{'descr':\"|b1\",'fortran_order':False,'shape':(2L, 1L)}", &[0, 1])).unwrap();
        assert_eq!(old, Tensor::bools(&[2, 1], &[false, true]).unwrap());
    }

    #[test]
    fn big_endian_and_column_major() {
        let elements: Vec<u8> = [1i16, 4, 2, 5, 3, 6].iter().flat_map(|v| v.to_be_bytes()).collect();
        let header = "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n";
        let tensor = parsed(&file(1, header, &elements)).unwrap();
        assert_eq!(tensor, Tensor::new(&[2, 3], &[1i16, 2, 3, 4, 5, 6]).unwrap());
        let header = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 0), }\n";
        assert_eq!(parsed(&file(1, header, &[])).unwrap().shape(), [2, 0]);
    }

    #[test]
    fn hostile_headers() {
        let with = |descr: &str, shape: &str| {
            let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
            parsed(&file(1, &header, &[0; 8])).unwrap_err()
        };
        assert!(with("<f4", "(1000000000000000000, 1000)").contains("cannot exist"));
        assert!(with("<f4", "(100000000000,)").contains("limit of 1048576"));
        assert!(with("<f4", "(3,)").contains("takes 12 bytes, but there are only 8"));
        assert!(with("<f4", "(1,)").contains("more"));
        assert!(with("<f4", "(-2,)").contains("bad size"));
        assert!(with("<f4", "(99999999999999999999999,)").contains("bad size"));
        assert!(with("|O", "(1,)").contains("objects"));
        assert!(with("<U2", "(1,)").contains("not supported"));
        assert!(with("", "(1,)").contains("not supported"));
        assert!(with("é4", "(1,)").contains("not supported"));
        assert!(with("<f4", &format!("({})", "1,".repeat(70))).contains("70 dimensions"));
        let fields = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}";
        assert!(parsed(&file(1, fields, &[0; 4])).unwrap_err().contains("several types"));
        assert!(parsed(&file(9, "{}", &[])).unwrap_err().contains("version 9"));
        assert!(parsed(b"\x93NUMPY\x02\0\xff\xff\xff\xff").unwrap_err().contains("refused"));
        assert!(parsed(b"\x93NUM").unwrap_err().contains("ends"));
        assert!(parsed(&file(1, "{'descr': '<f4'", &[])).is_err());
        assert!(parsed(&file(1, "{'descr': '<f4', 'shape': (1,)}", &[0; 4])).is_err());
    }

    #[test]
    fn files_survive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        for (_, dtype) in TYPES {
            let tensor = Tensor::zeros(dtype, &[3, 1, 2]).unwrap();
            write(&path, &tensor).unwrap();
            assert_eq!(read(&path, 1000).unwrap(), tensor);
        }
        let bf16 = Tensor::zeros(DType::BF16, &[1]).unwrap();
        assert!(write(&path, &bf16).unwrap_err().to_string().contains("bfloat16"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    proptest! {
        #[test]
        fn arrays_survive(shape in prop::collection::vec(0usize..5, 0..5), seed: u32) {
            let n = shape.iter().product::<usize>();
            let elements: Vec<f32> = (0..n).map(|i| (seed as f32).sin() * i as f32).collect();
            let tensor = Tensor::new(&shape, &elements).unwrap();
            let mut bytes = header_of(&tensor).unwrap();
            prop_assert_eq!(bytes.len() % 64, 0);
            bytes.extend(tensor.bytes());
            prop_assert_eq!(parsed(&bytes).unwrap(), tensor);
        }

        #[test]
        fn any_header_is_safe(header in "[{}()'\":,descrshapfotn_<>0-9 LFTalu\\[\\]é]{0,80}") {
            let _ = parsed(&file(1, &header, &[0; 16]));
        }
    }
}
