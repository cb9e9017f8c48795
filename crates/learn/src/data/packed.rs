//! Small images packed as rows: each row of pixels of `NAME_0.png`, `NAME_1.png`.. is one square image, its rows
//! one after another; `labels.u8` holds one byte for each.

use std::path::{Path, PathBuf};

use ::image::{DynamicImage, RgbImage};

use super::{
    Dataset, Example, Input, Options, Target, class_number, describe_targets, folder, no_such, source,
};
use crate::{Error, Result};

const LABELS: &str = "labels.u8";

/// The number at the end of a name such as `test_12.png`.
fn number(path: &Path) -> Option<u32> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".png")?;
    stem.rsplit_once('_')?.1.parse().ok()
}

/// Is this a folder of packed images?
pub(super) fn is_packed(root: &Path) -> bool {
    root.join(LABELS).is_file()
        && folder::entries(root).is_ok_and(|paths| paths.iter().any(|path| number(path).is_some()))
}

pub(super) struct Packed {
    root: PathBuf,
    /// Where each image comes from: the sheet and the row in it.
    rows: Vec<(usize, u32)>,
    sheets: Vec<(String, RgbImage)>,
    side: u32,
    targets: Vec<Target>,
    classes: Option<Vec<String>>,
}

impl Packed {
    pub(super) fn open(root: &Path, options: &Options) -> Result<Packed> {
        let mut files: Vec<_> = folder::entries(root)?.into_iter().filter(|p| number(p).is_some()).collect();
        files.sort_by_key(|path| number(path));
        let mut sheets: Vec<(String, RgbImage)> = Vec::with_capacity(files.len());
        let mut rows = Vec::new();
        let mut left = options.limit;
        for file in &files {
            let sheet = folder::read_image(file)?.into_rgb8();
            let width = sheet.width();
            if width.isqrt().pow(2) != width || sheets.first().is_some_and(|first| first.1.width() != width) {
                let what =
                    format!("is {width} pixels wide; a row must be one square image in every file alike");
                return Err(Error::file(file, what));
            }
            left = left
                .checked_sub(sheet.as_raw().len() as u64)
                .ok_or_else(|| Error::file(root, source::too_big(options.limit)))?;
            rows.extend((0..sheet.height()).map(|row| (sheets.len(), row)));
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sheets.push((name, sheet));
        }
        let file = root.join(LABELS);
        let labels = source::load(&file, options.limit)?;
        if labels.len() != rows.len() {
            let what = format!("holds {} labels for {} images", labels.len(), rows.len());
            return Err(Error::file(&file, what));
        }
        let classes = options.classes.clone();
        let target = |label: u8| class_number(label.into(), classes.as_deref()).map(Target::Class);
        let targets: std::result::Result<_, _> = labels.into_iter().map(target).collect();
        let targets = targets.map_err(|what| Error::file(&file, what))?;
        let side = sheets.first().map_or(0, |sheet| sheet.1.width().isqrt());
        Ok(Packed { root: root.into(), rows, sheets, side, targets, classes })
    }
}

impl Dataset for Packed {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&self, i: usize) -> Result<Example> {
        let &(sheet, row) = self.rows.get(i).ok_or_else(|| no_such(i, self.len()))?;
        let (name, sheet) = &self.sheets[sheet];
        let width = sheet.width() as usize * 3;
        let pixels = sheet.as_raw()[row as usize * width..][..width].to_vec();
        let image = RgbImage::from_raw(self.side, self.side, pixels)
            .ok_or_else(|| Error::file(&self.root, "holds an image of an impossible size"))?;
        let input = Input::Image(DynamicImage::ImageRgb8(image));
        Ok(Example { id: format!("{name} row {row}"), input, target: self.target(i) })
    }

    fn target(&self, i: usize) -> Target {
        self.targets.get(i).cloned().unwrap_or(Target::None)
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn describe(&self) -> String {
        let targets = describe_targets(self.targets.iter().cloned(), self.classes());
        let side = self.side;
        format!("{}: {} images {side}x{side}, {targets}", self.root.display(), self.len())
    }
}
