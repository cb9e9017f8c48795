//! IDX files, the format of MNIST (<http://yann.lecun.com/exdb/mnist>): a magic number with element type and rank,
//! big-endian sizes, elements.

use std::path::{Path, PathBuf};

use ::image::{DynamicImage, GrayImage};
use bytes::Bytes;
use graph::{DType, Tensor};

use super::arrays::{Arrays, classes_of};
use super::{Dataset, Example, Input, Options, Target, describe_targets, folder, no_such, npy, source};
use crate::{Error, Result};

/// (code, type)
const TYPES: [(u8, DType); 6] = [
    (0x08, DType::U8),
    (0x09, DType::I8),
    (0x0b, DType::I16),
    (0x0c, DType::I32),
    (0x0d, DType::F32),
    (0x0e, DType::F64),
];

/// Do these bytes start as an IDX file does?
pub(super) fn is_idx(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, code, 1..=8, ..] if TYPES.iter().any(|row| row.0 == *code))
}

/// The only IDX file of images in a folder, by the usual names; `None` when there is none.
pub(super) fn images_in(root: &Path) -> Result<Option<PathBuf>> {
    let is_images = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        path.is_file() && (name.contains("idx3-ubyte") || name.contains("idx4-ubyte"))
    };
    let found: Vec<PathBuf> = folder::entries(root)?.into_iter().filter(is_images).collect();
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, second, ..] => Err(Error::file(
            root,
            format!(
                "holds several IDX files of images; name one: {} or {}",
                first.display(),
                second.display()
            ),
        )),
    }
}

fn parse(bytes: Vec<u8>) -> std::result::Result<Tensor, String> {
    let cut = || "ends within its header".to_string();
    if !is_idx(&bytes) {
        return Err("is not an IDX file".into());
    }
    let dtype = TYPES.iter().find(|row| row.0 == bytes[2]).ok_or_else(cut)?.1;
    let start = 4 + 4 * usize::from(bytes[3]);
    let sizes = bytes.get(4..start).ok_or_else(cut)?.as_chunks::<4>().0;
    let shape: Vec<usize> = sizes.iter().map(|&size| u32::from_be_bytes(size) as usize).collect();
    let mut elements = bytes[start..].to_vec();
    npy::swap_bytes(&mut elements, dtype);
    let tensor = Tensor::from_bytes(dtype, &shape, Bytes::from(elements)).map_err(|e| e.to_string())?;
    Ok(tensor.aligned())
}

/// The file of labels that belongs to a file of images: `..-images-idx3-ubyte` and `..-labels-idx1-ubyte`.
fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let name = name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    [plain.to_string(), format!("{plain}.gz")]
        .iter()
        .map(|name| images.with_file_name(name))
        .find(|path| path != images && path.is_file())
}

/// A data set of an IDX file's bytes: images when it holds u8 of rank 3, else arrays.
pub(super) fn open(path: &Path, bytes: Vec<u8>, options: &Options) -> Result<Box<dyn Dataset>> {
    let tensor = parse(bytes).map_err(|what| Error::file(path, what))?;
    let len = tensor.shape().first().copied().unwrap_or(0);
    let label = match options.labels.clone().or_else(|| labels_beside(path)) {
        Some(file) => {
            let labels =
                parse(source::load(&file, options.limit)?).map_err(|what| Error::file(&file, what))?;
            if labels.shape() != [len] {
                let what = format!("shape {:?} is not one label for each of {len} examples", labels.shape());
                return Err(Error::file(&file, what));
            }
            Some((file, labels))
        }
        None => None,
    };
    let [_, height, width] = *tensor.shape() else {
        let mut arrays = vec![("input".to_string(), tensor)];
        arrays.extend(label.map(|(_, labels)| ("label".to_string(), labels)));
        return Ok(Box::new(Arrays::open(path, arrays, &Options { label: None, ..options.clone() })?));
    };
    if tensor.dtype() != DType::U8 || tensor.is_empty() {
        let what =
            format!("holds {}{:?}; images are of type uint8, at least one", tensor.dtype(), tensor.shape());
        return Err(Error::file(path, what));
    }
    let targets = match label {
        Some((file, labels)) => {
            classes_of(&labels, options.classes.as_deref(), len).map_err(|what| Error::file(&file, what))?
        }
        None => vec![Target::None; len],
    };
    let (width, height) = (width as u32, height as u32);
    let classes = options.classes.clone();
    Ok(Box::new(Images { path: path.into(), tensor, width, height, targets, classes }))
}

struct Images {
    path: PathBuf,
    tensor: Tensor,
    width: u32,
    height: u32,
    targets: Vec<Target>,
    classes: Option<Vec<String>>,
}

impl Dataset for Images {
    fn len(&self) -> usize {
        self.targets.len()
    }

    fn get(&self, i: usize) -> Result<Example> {
        let target = self.targets.get(i).ok_or_else(|| no_such(i, self.len()))?.clone();
        let size = self.width as usize * self.height as usize;
        let pixels = self.tensor.bytes()[i * size..(i + 1) * size].to_vec();
        let image = GrayImage::from_raw(self.width, self.height, pixels)
            .ok_or_else(|| Error::file(&self.path, "holds an image of an impossible size"))?;
        Ok(Example { id: format!("row {i}"), input: Input::Image(DynamicImage::ImageLuma8(image)), target })
    }

    fn target(&self, i: usize) -> Target {
        self.targets.get(i).cloned().unwrap_or(Target::None)
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn describe(&self) -> String {
        let targets = describe_targets(self.targets.iter().cloned(), self.classes());
        format!(
            "{}: {} gray images {}x{}, {targets}",
            self.path.display(),
            self.len(),
            self.width,
            self.height
        )
    }
}
