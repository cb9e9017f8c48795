//! Image files, one sub-folder a class.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use ::image::{DynamicImage, ImageFormat, ImageReader, Limits};

use super::{Dataset, Example, Input, Options, Target, class_index, describe_targets, no_such, source};
use crate::{Error, Result};

const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "gif", "webp"];

/// No image file is bigger, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// No image is wider or higher, in pixels.
const MAX_SIDE: u32 = 32_768;

/// No image takes more memory once decoded, in bytes.
const MAX_DECODED: u64 = 1 << 30;

/// Does a file that starts so hold an image?
pub(super) fn is_image(head: &[u8]) -> bool {
    match ::image::guess_format(head) {
        // Two letters are too few to tell a picture from a text; the reserved field is 0.
        Ok(ImageFormat::Bmp) => head.get(6..10) == Some(&[0; 4]),
        Ok(format) => format.reading_enabled(),
        Err(_) => false,
    }
}

/// Decodes an image file that was read into memory: PNG, JPEG, BMP, GIF (its first picture) or WebP, whatever it
/// is called. The orientation that cameras note down is not applied.
///
/// # Errors
/// A sentence when the bytes are no such image, are damaged, or hold one of more than 32 768 pixels a side or
/// 1 GiB.
pub fn decode(bytes: &[u8]) -> std::result::Result<DynamicImage, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    if !reader.format().is_some_and(|format: ImageFormat| format.reading_enabled()) {
        return Err("is not an image in PNG, JPEG, BMP, GIF or WebP format".into());
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    reader.decode().map_err(|e| format!("cannot be decoded: {e}"))
}

/// Reads and decodes an image file.
pub(super) fn read_image(path: &Path) -> Result<DynamicImage> {
    let bytes = source::read_up_to(&mut source::open(path)?, MAX_FILE + 1).map_err(Error::io(path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::file(path, source::too_big(MAX_FILE)));
    }
    decode(&bytes).map_err(|what| Error::file(path, what))
}

/// What a folder holds that is not hidden, sorted by name.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn has_image_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Images of a folder; one is decoded when it is asked for.
pub(super) struct Folder {
    root: PathBuf,
    files: Vec<(PathBuf, Target)>,
    classes: Option<Vec<String>>,
}

impl Folder {
    pub(super) fn open(root: &Path, options: &Options) -> Result<Folder> {
        let (folders, loose): (Vec<_>, Vec<_>) = entries(root)?.into_iter().partition(|path| path.is_dir());
        let mut files: Vec<_> =
            loose.into_iter().filter(|p| has_image_name(p)).map(|p| (p, Target::None)).collect();
        if !files.is_empty() {
            for folder in folders {
                if entries(&folder)?.iter().any(|p| has_image_name(p)) {
                    let what = "holds images both itself and in sub-folders; move them to one place";
                    return Err(Error::file(root, what));
                }
            }
            return Ok(Folder { root: root.into(), files, classes: options.classes.clone() });
        }
        let mut names = Vec::with_capacity(folders.len());
        for folder in &folders {
            let name = folder.file_name().and_then(|n| n.to_str());
            names.push(name.ok_or_else(|| Error::file(folder, "has a name that is not UTF-8"))?.to_string());
        }
        let classes = options.classes.clone().unwrap_or_else(|| names.clone());
        for (folder, name) in folders.iter().zip(&names) {
            let images: Vec<_> = entries(folder)?.into_iter().filter(|p| has_image_name(p)).collect();
            if images.is_empty() && options.classes.is_none() {
                let what = "holds no images, but its place among the sub-folders would count as a class; remove \
                            it or give the classes in order";
                return Err(Error::file(folder, what));
            }
            if !images.is_empty() {
                let class = class_index(&classes, name).map_err(|what| Error::file(folder, what))?;
                files.extend(images.into_iter().map(|path| (path, Target::Class(class))));
            }
        }
        match files.is_empty() {
            true => Err(Error::file(root, "holds no images (.png .jpg .jpeg .bmp .gif .webp)")),
            false => Ok(Folder { root: root.into(), files, classes: Some(classes) }),
        }
    }

    /// A data set of one image file.
    pub(super) fn single(path: &Path) -> Result<Folder> {
        let root = path.parent().unwrap_or(Path::new("")).into();
        Ok(Folder { root, files: vec![(path.into(), Target::None)], classes: None })
    }
}

impl Dataset for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn get(&self, i: usize) -> Result<Example> {
        let (path, target) = self.files.get(i).ok_or_else(|| no_such(i, self.len()))?;
        let id = path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        Ok(Example { id, input: Input::Image(read_image(path)?), target: target.clone() })
    }

    fn target(&self, i: usize) -> Target {
        self.files.get(i).map_or(Target::None, |file| file.1.clone())
    }

    fn file(&self, i: usize) -> Option<PathBuf> {
        self.files.get(i).map(|file| file.0.clone())
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn describe(&self) -> String {
        let targets = match self.files.iter().any(|file| file.1 != Target::None) {
            true => describe_targets(self.files.iter().map(|file| file.1.clone()), self.classes()),
            false => "no labels".into(),
        };
        format!("{}: {} images, {targets}", self.root.display(), self.len())
    }
}
