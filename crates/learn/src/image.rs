//! From images to a model's input: resize, centre crop, channels, scale, mean and standard deviation, layout.
//! The same steps in the same arithmetic as torchvision's usual transforms over PIL.

use std::fmt;
use std::str::FromStr;

use ::image::DynamicImage;
use graph::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub mod augment;
mod resize;

/// The key of a model's metadata that holds a [`Preprocess`] as JSON.
pub const METADATA_KEY: &str = "lessen.preprocess";

/// Mean and standard deviation of ImageNet's channels, for pixels in 0..1.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// No side, asked for or given, is longer, in pixels.
const MAX_SIDE: u32 = 16_384;

/// To which size an image is brought, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side gets this length; the longer one follows, rounded down.
    Shorter(u32),
    /// Height and width.
    Exact(u32, u32),
}

/// How pixels are mixed when the size changes: as PIL does it, wide enough to average when an image shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// A triangle.
    #[default]
    Bilinear,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

/// The channels and their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Color {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel: brightness after ITU-R 601.
    Gray,
}

/// The order of the axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[1, channels, height, width]`.
    #[default]
    Nchw,
    /// `[1, height, width, channels]`.
    Nhwc,
}

/// What is done to an image before a model sees it, in the order of the fields. Written as JSON under
/// [`METADATA_KEY`], or as flags such as
/// `resize=256,filter=bilinear,crop=224x224,color=rgb,scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=nchw`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocess {
    /// The new size, if any.
    pub resize: Option<Resize>,
    /// How pixels are mixed for it.
    pub filter: Filter,
    /// Height and width of the part kept from the middle, if not all.
    pub crop: Option<(u32, u32)>,
    /// The channels.
    pub color: Color,
    /// Are bytes 0..255 scaled to 0..1?
    pub unit: bool,
    /// What is taken from each channel; one number for all, or none.
    pub mean: Vec<f32>,
    /// What each channel is then divided by; one number for all, or none.
    pub std: Vec<f32>,
    /// The order of the axes.
    pub layout: Layout,
}

impl Default for Preprocess {
    /// RGB in 0..1, NCHW, at the image's own size.
    fn default() -> Preprocess {
        Preprocess {
            resize: None,
            filter: Filter::default(),
            crop: None,
            color: Color::default(),
            unit: true,
            mean: Vec::new(),
            std: Vec::new(),
            layout: Layout::default(),
        }
    }
}

impl Preprocess {
    /// The input of shape `[1, C, H, W]` or `[1, H, W, C]`, f32, for an image. Transparency is dropped.
    ///
    /// # Errors
    /// [`Error::Input`] when the settings contradict themselves, the image is smaller than the crop, or a side is
    /// out of 1..=16 384 pixels.
    pub fn apply(&self, image: &DynamicImage) -> Result<Tensor> {
        let (mean, std) = self.affine()?;
        let channels = self.channels();
        let mut pixels = Pixels {
            width: image.width() as usize,
            height: image.height() as usize,
            channels,
            bytes: match self.color {
                Color::Gray => gray(image),
                Color::Rgb | Color::Bgr => image.to_rgb8().into_raw(),
            },
        };
        if let Some((height, width)) = self.new_size(image)? {
            pixels = resize::resize(&pixels, height, width, self.filter);
        }
        if let Some((height, width)) = self.crop {
            pixels = pixels.crop(height as usize, width as usize)?;
        }
        let Pixels { width, height, bytes, .. } = pixels;
        let scale = if self.unit { 255.0 } else { 1.0 };
        let value = |pixel: usize, channel: usize| {
            let from = if self.color == Color::Bgr { channels - 1 - channel } else { channel };
            (f32::from(bytes[pixel * channels + from]) / scale - mean[channel]) / std[channel]
        };
        let area = width * height;
        Ok(match self.layout {
            Layout::Nchw => Tensor::build(&[1, channels, height, width], |out| {
                out.iter_mut().enumerate().for_each(|(i, v)| *v = value(i % area, i / area));
                Ok(())
            }),
            Layout::Nhwc => Tensor::build(&[1, height, width, channels], |out| {
                out.iter_mut().enumerate().for_each(|(i, v)| *v = value(i / channels, i % channels));
                Ok(())
            }),
        }?)
    }

    /// A guess for a model's input shape (`None` where a size is not fixed), and a sentence that says what was
    /// guessed. Colour images of 96 pixels and more are taken for ImageNet's, smaller ones for plain 0..1.
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is not one of images.
    pub fn guess(shape: &[Option<usize>]) -> Result<(Preprocess, String)> {
        let (layout, channels, height, width) = match *shape {
            [_, Some(c @ (1 | 3)), h, w] => (Layout::Nchw, c, h, w),
            [_, h, w, Some(c @ (1 | 3))] => (Layout::Nhwc, c, h, w),
            _ => return Err(Error::input(format!("an input of shape {shape:?} does not take images"))),
        };
        let color = if channels == 1 { Color::Gray } else { Color::Rgb };
        let side = |size: Option<usize>| size.and_then(|s| u32::try_from(s).ok()).filter(|s| *s <= MAX_SIDE);
        let mut guess = Preprocess { color, layout, ..Preprocess::default() };
        if let (Some(h), Some(w)) = (side(height), side(width)) {
            if h == w && h >= 96 && channels == 3 {
                guess.resize = Some(Resize::Shorter((f64::from(h) / 0.875).round() as u32));
                guess.crop = Some((h, w));
                (guess.mean, guess.std) = (IMAGENET.0.to_vec(), IMAGENET.1.to_vec());
            } else {
                guess.resize = Some(Resize::Exact(h, w));
            }
        }
        guess.affine()?;
        let told =
            format!("how the model's images are prepared is not known; guessed from its input: {guess}");
        Ok((guess, told))
    }

    fn channels(&self) -> usize {
        if self.color == Color::Gray { 1 } else { 3 }
    }

    /// Mean and standard deviation of each channel, after a check of all settings.
    fn affine(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let channels = self.channels();
        let each = |values: &[f32], none: f32, name: &str| match values {
            [] => Ok(vec![none; channels]),
            [one] => Ok(vec![*one; channels]),
            all if all.len() == channels => Ok(all.to_vec()),
            all => Err(Error::input(format!("{name} has {} numbers for {channels} channels", all.len()))),
        };
        let (mean, std) = (each(&self.mean, 0.0, "mean")?, each(&self.std, 1.0, "std")?);
        if !mean.iter().all(|m| m.is_finite()) || !std.iter().all(|s| s.is_normal()) {
            return Err(Error::input("mean and std must be finite numbers, std not 0"));
        }
        let sizes = match self.resize {
            Some(Resize::Shorter(side)) => vec![side],
            Some(Resize::Exact(height, width)) => vec![height, width],
            None => vec![],
        };
        let crop = self.crop.map_or(vec![], |(height, width)| vec![height, width]);
        match sizes.iter().chain(&crop).find(|size| !(1..=MAX_SIDE).contains(*size)) {
            Some(size) => Err(Error::input(format!("a size of {size} pixels is not in 1..={MAX_SIDE}"))),
            None => Ok((mean, std)),
        }
    }

    /// Height and width after resizing; `None` when the image has them already.
    fn new_size(&self, image: &DynamicImage) -> Result<Option<(usize, usize)>> {
        let (width, height) = (image.width(), image.height());
        if width == 0 || height == 0 {
            return Err(Error::input("the image has no pixels"));
        }
        let long = |short: u32, a: u32, b: u32| u64::from(short) * u64::from(a) / u64::from(b);
        let (new_height, new_width) = match self.resize {
            None => return Ok(None),
            Some(Resize::Exact(height, width)) => (height.into(), width.into()),
            Some(Resize::Shorter(side)) if width <= height => (long(side, height, width), side.into()),
            Some(Resize::Shorter(side)) => (side.into(), long(side, width, height)),
        };
        if new_height.max(new_width) > MAX_SIDE.into() {
            return Err(Error::input(format!(
                "an image of {width}x{height} pixels would become {new_width}x{new_height}; it is too long and thin"
            )));
        }
        let size = (new_height as usize, new_width as usize);
        Ok((size != (height as usize, width as usize)).then_some(size))
    }
}

/// Brightness after ITU-R 601, in PIL's arithmetic.
fn gray(image: &DynamicImage) -> Vec<u8> {
    match image {
        DynamicImage::ImageLuma8(gray) => gray.as_raw().clone(),
        DynamicImage::ImageLumaA8(_) | DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) => {
            image.to_luma8().into_raw()
        }
        _ => {
            let luma = |p: &[u8; 3]| {
                let [r, g, b] = p.map(u32::from);
                ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
            };
            image.to_rgb8().into_raw().as_chunks::<3>().0.iter().map(luma).collect()
        }
    }
}

/// Bytes of an image, row by row, channels innermost.
pub(crate) struct Pixels {
    width: usize,
    height: usize,
    channels: usize,
    bytes: Vec<u8>,
}

impl Pixels {
    /// The middle of the image; an odd margin is halved as Python rounds, to even.
    fn crop(&self, height: usize, width: usize) -> Result<Pixels> {
        if self.height < height || self.width < width {
            return Err(Error::input(format!(
                "the crop of {width}x{height} is bigger than the image of {}x{}; resize it first",
                self.width, self.height
            )));
        }
        let margin = |whole: usize, part: usize| ((whole - part) as f64 / 2.0).round_ties_even() as usize;
        let (top, left) = (margin(self.height, height), margin(self.width, width));
        let mut bytes = Vec::with_capacity(height * width * self.channels);
        for y in top..top + height {
            let start = (y * self.width + left) * self.channels;
            bytes.extend_from_slice(&self.bytes[start..start + width * self.channels]);
        }
        Ok(Pixels { width, height, channels: self.channels, bytes })
    }
}

const FILTERS: [(&str, Filter); 2] = [("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic)];
const COLORS: [(&str, Color); 3] = [("rgb", Color::Rgb), ("bgr", Color::Bgr), ("gray", Color::Gray)];
const LAYOUTS: [(&str, Layout); 2] = [("nchw", Layout::Nchw), ("nhwc", Layout::Nhwc)];

fn word<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|row| row.1 == value).map_or("", |row| row.0)
}

impl fmt::Display for Preprocess {
    /// The flags that make it, with all defaults spelled out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resize {
            Some(Resize::Shorter(side)) => {
                write!(f, "resize={side},filter={},", word(&FILTERS, self.filter))?
            }
            Some(Resize::Exact(h, w)) => write!(f, "resize={h}x{w},filter={},", word(&FILTERS, self.filter))?,
            None => {}
        }
        if let Some((h, w)) = self.crop {
            write!(f, "crop={h}x{w},")?;
        }
        let scale = if self.unit { "1/255" } else { "none" };
        write!(f, "color={},scale={scale},", word(&COLORS, self.color))?;
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if !values.is_empty() {
                let values: Vec<String> = values.iter().map(f32::to_string).collect();
                write!(f, "{name}={},", values.join(":"))?;
            }
        }
        write!(f, "layout={}", word(&LAYOUTS, self.layout))
    }
}

impl FromStr for Preprocess {
    type Err = Error;

    /// Parses flags `name=value` with commas between, as [`Preprocess`] describes them; sizes are `SIDE` or
    /// `HEIGHTxWIDTH`. The word `imagenet` stands for ImageNet's mean and std.
    fn from_str(text: &str) -> Result<Preprocess> {
        let mut all = Preprocess::default();
        for flag in text.split(',').map(str::trim).filter(|flag| !flag.is_empty()) {
            if flag == "imagenet" {
                (all.mean, all.std) = (IMAGENET.0.to_vec(), IMAGENET.1.to_vec());
                continue;
            }
            let bad = |hint: &str| Error::input(format!("image flag {flag:?}: {hint}"));
            let (name, value) = flag.split_once('=').ok_or_else(|| bad("expected name=value or imagenet"))?;
            match name {
                "resize" => {
                    all.resize = Some(sizes(value).ok_or_else(|| bad("expected SIDE or HEIGHTxWIDTH"))?)
                }
                "crop" => {
                    all.crop =
                        Some(match sizes(value).ok_or_else(|| bad("expected SIDE or HEIGHTxWIDTH"))? {
                            Resize::Shorter(side) => (side, side),
                            Resize::Exact(height, width) => (height, width),
                        });
                }
                "filter" => all.filter = parse_word(&FILTERS, value).map_err(|hint| bad(&hint))?,
                "color" => all.color = parse_word(&COLORS, value).map_err(|hint| bad(&hint))?,
                "layout" => all.layout = parse_word(&LAYOUTS, value).map_err(|hint| bad(&hint))?,
                "scale" => {
                    all.unit =
                        parse_word(&[("1/255", true), ("none", false)], value).map_err(|hint| bad(&hint))?;
                }
                "mean" | "std" => {
                    let numbers: std::result::Result<Vec<f32>, _> =
                        value.split(':').map(str::parse).collect();
                    let numbers = numbers.map_err(|_| bad("expected numbers with : between"))?;
                    *(if name == "mean" { &mut all.mean } else { &mut all.std }) = numbers;
                }
                _ => {
                    return Err(bad(
                        "known are resize, filter, crop, color, scale, mean, std, layout, imagenet",
                    ));
                }
            }
        }
        all.affine()?;
        Ok(all)
    }
}

fn sizes(text: &str) -> Option<Resize> {
    match text.split_once('x') {
        Some((height, width)) => Some(Resize::Exact(height.parse().ok()?, width.parse().ok()?)),
        None => Some(Resize::Shorter(text.parse().ok()?)),
    }
}

fn parse_word<T: Copy>(table: &[(&str, T)], text: &str) -> std::result::Result<T, String> {
    table.iter().find(|row| row.0 == text).map(|row| row.1).ok_or_else(|| {
        let words: Vec<_> = table.iter().map(|row| row.0).collect();
        format!("expected {}", words.join(" or "))
    })
}

#[cfg(test)]
mod tests;
