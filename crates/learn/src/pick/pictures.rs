//! Pictures that show the same, whatever their size, brightness, contrast and compression: small grey sketches of them, held
//! against those of all others, say which may; that they differ nowhere when looked at more closely decides.

use image::DynamicImage;
use image::imageops::{FilterType, resize, thumbnail};

/// The side of a sketch in pixels.
const SIDE: u32 = 16;
/// The numbers of a sketch.
pub const NUMBERS: usize = (SIDE * SIDE) as usize;
/// The least cosine of the sketches of pictures that may show the same.
pub const ALIKE: f32 = 0.985;

/// The side of what is looked at more closely, in pixels, and of the squares that it is made of.
const CLOSE: u32 = 32;
const SQUARE: u32 = 8;
/// The greatest mean of the squared differences in one of these, for pictures of variance 1. `tests/pictures.rs` says how many
/// photographs that were compressed stay below, and how many digits that different people wrote.
const APART: f32 = 0.12;

/// A picture in [`NUMBERS`] numbers: small, grey, of mean 0 and length 1. Nothing of a picture that is all one colour, for
/// it looks like any other.
pub fn sketch(image: &DynamicImage) -> Option<Vec<f32>> {
    let mut numbers = standard(thumbnail(&image.to_luma8(), SIDE, SIDE).into_raw())?;
    numbers.iter_mut().for_each(|x| *x /= SIDE as f32);
    Some(numbers)
}

/// Do these pictures, whose sketches are alike, show the same wherever one looks?
pub fn same(a: &DynamicImage, b: &DynamicImage) -> bool {
    let close = |image: &DynamicImage| {
        standard(resize(&image.to_luma8(), CLOSE, CLOSE, FilterType::Triangle).into_raw())
    };
    let (Some(a), Some(b)) = (close(a), close(b)) else { return false };
    let across = CLOSE / SQUARE;
    let mut apart = vec![0f32; (across * across) as usize];
    for (at, (a, b)) in (0..).zip(a.iter().zip(&b)) {
        let (row, column) = (at / CLOSE / SQUARE, at % CLOSE / SQUARE);
        apart[(row * across + column) as usize] += (a - b).powi(2) / (SQUARE * SQUARE) as f32;
    }
    apart.iter().all(|apart| *apart <= APART)
}

/// Grey values of mean 0 and variance 1; nothing when they differ by no more than rounding.
fn standard(grey: Vec<u8>) -> Option<Vec<f32>> {
    let count = grey.len() as f32;
    let mean = grey.iter().map(|x| f32::from(*x)).sum::<f32>() / count;
    let variance = grey.iter().map(|x| (f32::from(*x) - mean).powi(2)).sum::<f32>() / count;
    (variance >= 1.0).then(|| grey.iter().map(|x| (f32::from(*x) - mean) / variance.sqrt()).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::codecs::jpeg::JpegEncoder;

    use super::*;
    use crate::made::picture;
    use crate::pick::dot;

    fn cosine(a: &DynamicImage, b: &DynamicImage) -> f32 {
        dot(&sketch(a).unwrap(), &sketch(b).unwrap())
    }

    #[test]
    fn a_picture_is_known_by_its_sketch() {
        for index in 0..20 {
            let of = picture(5, index, 96, 128);
            let mut jpeg = Vec::new();
            of.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, 60)).unwrap();
            let jpeg = image::load(Cursor::new(jpeg), image::ImageFormat::Jpeg).unwrap();
            let changed = [
                ("compressed", jpeg),
                ("smaller", of.resize_exact(64, 48, FilterType::Triangle)),
                ("larger", of.resize_exact(500, 500, FilterType::CatmullRom)),
                ("grey", of.grayscale()),
                ("of more colours", of.to_rgb16().into()),
            ];
            for (how, other) in changed {
                assert!(cosine(&of, &other) > ALIKE, "{how}, {index}: {}", cosine(&of, &other));
                assert!(same(&of, &other), "{how}, {index}");
            }
            let other = picture(5, index + 1, 96, 128);
            assert!(cosine(&of, &other) < ALIKE, "{index}: {}", cosine(&of, &other));
            assert!(cosine(&of, &of.fliph()) < ALIKE, "{index}: its mirror image is another");
        }
    }

    #[test]
    fn one_thing_that_is_elsewhere_makes_another_picture() {
        // A camera that stands still, and something small before it.
        let scene = |at: i64| {
            let mut image = picture(6, 3, 120, 160).to_rgb8();
            let thing = image::RgbImage::from_pixel(16, 16, image::Rgb([255, 30, 0]));
            image::imageops::overlay(&mut image, &thing, at, 70);
            DynamicImage::from(image)
        };
        let (one, other) = (scene(30), scene(100));
        assert!(cosine(&one, &other) > 0.9, "{}", cosine(&one, &other));
        assert!(!same(&one, &other) && same(&one, &scene(30)));
    }

    #[test]
    fn great_sums_stay_right() {
        let mut half = image::ImageBuffer::<image::Luma<u16>, _>::new(4_400, 4_400);
        half.rows_mut().take(2_200).flatten().for_each(|pixel| pixel.0 = [u16::MAX]);
        let numbers = sketch(&half.into()).unwrap();
        let want = 1.0 / SIDE as f32;
        assert!(numbers[..NUMBERS / 2].iter().all(|x| (x - want).abs() < 1e-3), "{:?}", &numbers[..4]);
        assert!(numbers[NUMBERS / 2..].iter().all(|x| (x + want).abs() < 1e-3));
    }

    #[test]
    fn what_shows_nothing_has_no_sketch() {
        assert!(sketch(&DynamicImage::new_rgb8(40, 30)).is_none());
        let mut dot = image::GrayImage::from_pixel(16, 16, image::Luma([90]));
        dot.put_pixel(3, 4, image::Luma([101]));
        assert!(sketch(&dot.clone().into()).is_none());
        dot.put_pixel(3, 4, image::Luma([190]));
        let numbers = sketch(&dot.into()).unwrap();
        assert_eq!(numbers.len(), NUMBERS);
        assert!((numbers.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(sketch(&DynamicImage::new_luma8(1, 1)).is_none());
    }
}
