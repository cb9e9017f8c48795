//! A small picture of an example, as an address that holds the picture itself.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use learn::Input;

/// The longest side in pixels.
const SIDE: u32 = 96;
/// Arrays with a shorter side are no pictures.
const LEAST: usize = 4;

/// A PNG of at most 96 x 96 pixels as a `data:` address, of an image or of an array that can be one: of shape
/// `[1, C, H, W]`, `[1, H, W, C]` or `[1, H, W]` with 1 or 3 channels, the least number black and the greatest white.
pub(crate) fn of(input: &Input) -> Option<String> {
    let image = match input {
        Input::Image(image) => image.clone(),
        Input::Arrays(arrays) => match arrays.as_slice() {
            [(_, tensor)] => picture(tensor.shape(), &tensor.to_f32().ok()?)?,
            _ => return None,
        },
        _ => return None,
    };
    let small = match image.width().max(image.height()) > SIDE {
        true => image.thumbnail(SIDE, SIDE),
        false => image,
    };
    let mut png = Cursor::new(Vec::new());
    let small = match small.color().has_color() {
        true => DynamicImage::ImageRgb8(small.to_rgb8()),
        false => DynamicImage::ImageLuma8(small.to_luma8()),
    };
    small.write_to(&mut png, ImageFormat::Png).ok()?;
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner())))
}

fn picture(shape: &[usize], values: &[f32]) -> Option<DynamicImage> {
    let (channels, height, width, last) = match *shape {
        [1, c @ (1 | 3), h, w] => (c, h, w, false),
        [1, h, w, c @ (1 | 3)] => (c, h, w, true),
        [1, h, w] => (1, h, w, false),
        _ => return None,
    };
    if height < LEAST || width < LEAST || values.len() != channels * height * width {
        return None;
    }
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max));
    let scale = if high > low { 255.0 / (f64::from(high) - f64::from(low)) } else { 0.0 };
    let pixel = |i: usize| ((f64::from(values[i]) - f64::from(low)) * scale).round() as u8;
    let at = |k: usize| match last {
        true => k,
        false => k % channels * height * width + k / channels,
    };
    let pixels: Vec<u8> = (0..values.len()).map(|k| pixel(at(k))).collect();
    let (width, height) = (u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    match channels {
        1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
        _ => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use graph::Tensor;

    fn pixels(shape: &[usize], values: &[f32]) -> DynamicImage {
        picture(shape, values).unwrap()
    }

    #[test]
    fn arrays_become_pictures() {
        let values: Vec<f32> = (0..16).map(|i| i as f32 / 15.0 - 0.5).collect();
        let gray = pixels(&[1, 1, 4, 4], &values).to_luma8();
        assert_eq!(
            (gray.get_pixel(0, 0).0, gray.get_pixel(3, 3).0, gray.get_pixel(1, 0).0),
            ([0], [255], [17])
        );
        // Channels first or last: the same colours.
        let first: Vec<f32> = (0..48).map(|i| i as f32).collect();
        let last: Vec<f32> = (0..48).map(|k| first[k % 3 * 16 + k / 3]).collect();
        assert_eq!(pixels(&[1, 3, 4, 4], &first), pixels(&[1, 4, 4, 3], &last));
        assert_eq!(pixels(&[1, 4, 4], &[f32::NAN; 16]).to_luma8().get_pixel(2, 2).0, [0]);
        for shape in [&[1, 16][..], &[1, 2, 2, 4], &[2, 1, 4, 4], &[1, 1, 4, 5]] {
            assert!(picture(shape, &values).is_none(), "{shape:?}");
        }
    }

    #[test]
    fn addresses_hold_small_pictures() {
        let big = Input::Image(DynamicImage::new_rgb8(400, 200));
        let address = of(&big).unwrap();
        assert!(address.starts_with("data:image/png;base64,iVBOR") && address.len() < 2000);
        let array = Tensor::new(&[1, 1, 4, 4], &[0.5f32; 16]).unwrap();
        assert!(of(&Input::Arrays(vec![("x".into(), array.clone())])).is_some());
        let two = vec![("x".into(), array.clone()), ("y".into(), array)];
        assert!(of(&Input::Arrays(two)).is_none() && of(&Input::Text("t".into())).is_none());
    }
}
