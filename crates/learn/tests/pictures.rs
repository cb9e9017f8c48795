//! Which pictures are taken for the same, of real ones. They are in `data` of the folder that `LESSEN_SHARED` names; without
//! them nothing is tested.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use image::codecs::jpeg::JpegEncoder;
use kernel::Cpu;
use lessen_learn::Input;
use lessen_learn::data::{Options, open};
use lessen_learn::pick::nearest;
use lessen_learn::pick::pictures::{ALIKE, NUMBERS, same, sketch};

/// The first pictures of a data set.
fn pictures(name: &str, count: usize) -> Option<Vec<DynamicImage>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let path = std::env::var_os("LESSEN_SHARED").map_or(beside, PathBuf::from).join("data").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    let data = open(&path, &Options::default()).unwrap();
    let picture = |i: usize| match data.get(i).unwrap().input {
        Input::Image(image) => image,
        other => panic!("a picture, not {other:?}"),
    };
    Some((0..count.min(data.len())).map(picture).collect())
}

/// How many of these pictures are taken for one of the others.
fn taken(pictures: &[DynamicImage], others: &[DynamicImage]) -> usize {
    let sketches =
        |all: &[DynamicImage]| all.iter().flat_map(|image| sketch(image).unwrap()).collect::<Vec<_>>();
    let found = nearest(&sketches(pictures), &sketches(others), NUMBERS, &Cpu::new(2).unwrap());
    let is =
        |(image, (at, cosine)): &(&DynamicImage, (usize, f32))| *cosine >= ALIKE && same(image, &others[*at]);
    pictures.iter().zip(found).filter(is).count()
}

#[test]
fn photographs_are_known_when_they_were_compressed() {
    let Some(photographs) = pictures("cifar10-test", 2_000) else { return };
    let compressed = |image: &DynamicImage| {
        let mut jpeg = Vec::new();
        image.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, 60)).unwrap();
        image::load(Cursor::new(jpeg), image::ImageFormat::Jpeg).unwrap()
    };
    let copies: Vec<DynamicImage> = photographs.iter().map(compressed).collect();
    let known = taken(&copies, &photographs);
    eprintln!("{known} of {} are known", copies.len());
    assert!(known >= copies.len() * 9 / 10, "{known}");
}

#[test]
fn digits_that_were_written_twice_are_seldom_taken_for_the_same() {
    let Some(digits) = pictures("mnist/t10k-images-idx3-ubyte.gz", 10_000) else { return };
    let (some, others) = digits.split_at(2_000);
    let wrong = taken(some, others);
    eprintln!("{wrong} of {} are taken for others", some.len());
    assert!(wrong <= some.len() / 200, "{wrong}");
}
