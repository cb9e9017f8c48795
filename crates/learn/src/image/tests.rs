use ::image::{GrayImage, RgbImage};

use super::*;

/// An image of 9 x 7 pixels whose resized forms were computed with Pillow 13.
fn sample() -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_fn(9, 7, |x, y| {
        ::image::Rgb([0, 1, 2].map(|c| ((x * 37 + y * 91 + c * 53 + x * y * 7) % 256) as u8))
    }))
}

/// The first bytes, and a sum in which each byte counts by its place.
fn digest(preprocess: &Preprocess, image: &DynamicImage) -> (Vec<u8>, usize) {
    let plain = Preprocess { unit: false, layout: Layout::Nhwc, ..preprocess.clone() };
    let tensor = plain.apply(image).unwrap();
    let bytes: Vec<u8> = tensor.as_slice::<f32>().unwrap().iter().map(|&v| v as u8).collect();
    let sum = bytes.iter().enumerate().map(|(i, &b)| (i + 1) * usize::from(b)).sum();
    (bytes[..12].to_vec(), sum)
}

#[test]
fn resizes_as_pillow() {
    use Filter::*;
    for (filter, height, width, first, sum) in [
        (Bilinear, 3, 4, [103, 132, 143, 123, 127, 146, 127, 138, 130, 105, 129, 140], 86112),
        (Bilinear, 16, 20, [0, 53, 106, 6, 59, 112, 23, 76, 129, 40, 93, 146], 59621613),
        (Bilinear, 7, 5, [21, 74, 127, 79, 132, 185, 148, 201, 194, 169, 94, 67], 720224),
        (Bilinear, 5, 9, [30, 83, 136, 70, 123, 176, 109, 162, 130, 148, 116, 169], 1184667),
        (Bicubic, 3, 4, [99, 130, 143, 122, 130, 148, 129, 135, 132, 103, 128, 138], 86261),
        (Bicubic, 16, 20, [0, 41, 94, 0, 48, 101, 12, 65, 116, 31, 84, 138], 59600208),
        (Bicubic, 7, 5, [16, 69, 122, 80, 133, 193, 153, 212, 197, 179, 95, 59], 720224),
        (Bicubic, 5, 9, [22, 75, 141, 60, 127, 180, 113, 166, 130, 151, 116, 169], 1183833),
    ] {
        let resize = Some(Resize::Exact(height, width));
        let preprocess = Preprocess { resize, filter, ..Preprocess::default() };
        assert_eq!(digest(&preprocess, &sample()), (first.to_vec(), sum), "{filter:?} {height}x{width}");
    }
    let gray = Preprocess { color: Color::Gray, ..Preprocess::default() };
    assert_eq!(
        digest(&gray, &sample()),
        (vec![43, 80, 117, 154, 191, 199, 86, 46, 83, 134, 178, 193], 268629)
    );
}

#[test]
fn channels_scale_and_layout() {
    let image = DynamicImage::ImageRgb8(RgbImage::from_raw(2, 1, vec![255, 0, 51, 102, 153, 204]).unwrap());
    let apply = |flags: &str| flags.parse::<Preprocess>().unwrap().apply(&image).unwrap();
    let rgb = apply("");
    assert_eq!(rgb.shape(), [1, 3, 1, 2]);
    assert_eq!(rgb.as_slice::<f32>().unwrap(), [1.0, 0.4, 0.0, 0.6, 0.2, 0.8]);
    let bgr = apply("color=bgr,layout=nhwc,scale=none,mean=1:2:3,std=2");
    assert_eq!(bgr.shape(), [1, 1, 2, 3]);
    assert_eq!(bgr.as_slice::<f32>().unwrap(), [25.0, -1.0, 126.0, 101.5, 75.5, 49.5]);
    assert_eq!(apply("color=gray").shape(), [1, 1, 1, 2]);
    let gray = DynamicImage::ImageLuma8(GrayImage::from_raw(1, 1, vec![51]).unwrap());
    let three = Preprocess::default().apply(&gray).unwrap();
    assert_eq!(three.as_slice::<f32>().unwrap(), [0.2; 3]);
}

#[test]
fn shorter_side_and_crop() {
    let preprocess: Preprocess = "resize=14,crop=6x5,color=gray".parse().unwrap();
    assert_eq!(preprocess.new_size(&sample()).unwrap(), Some((14, 18)));
    assert_eq!(preprocess.apply(&sample()).unwrap().shape(), [1, 1, 6, 5]);
    let rows = GrayImage::from_fn(1, 5, |_, y| ::image::Luma([y as u8]));
    let crop: Preprocess = "crop=2x1,color=gray,scale=none".parse().unwrap();
    let tensor = crop.apply(&DynamicImage::ImageLuma8(rows)).unwrap();
    assert_eq!(tensor.as_slice::<f32>().unwrap(), [2.0, 3.0], "1.5 rounds to 2 as in Python");
    assert!(crop.apply(&DynamicImage::new_luma8(1, 1)).unwrap_err().to_string().contains("resize it first"));
    let thin: Preprocess = "resize=256".parse().unwrap();
    assert!(thin.apply(&DynamicImage::new_luma8(1, 1000)).unwrap_err().to_string().contains("long and thin"));
    assert!(thin.apply(&DynamicImage::new_luma8(0, 0)).is_err());
}

#[test]
fn flags_and_json_survive() {
    for flags in [
        "",
        "imagenet,resize=256,crop=224",
        "resize=32x48,filter=bicubic,color=bgr,scale=none,mean=127.5,std=1:2:3,layout=nhwc",
    ] {
        let preprocess: Preprocess = flags.parse().unwrap();
        assert_eq!(preprocess.to_string().parse::<Preprocess>().unwrap(), preprocess);
        let json = serde_json::to_string(&preprocess).unwrap();
        assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), preprocess);
    }
    for bad in [
        "resize=0",
        "resize=99999",
        "crop=3x",
        "color=cmyk",
        "std=0",
        "mean=1:2",
        "mean=nan",
        "scale=2",
        "size=3",
        "resize",
    ] {
        assert!(bad.parse::<Preprocess>().is_err(), "{bad}");
    }
    let hostile: Preprocess = serde_json::from_str("{\"std\": [0.0]}").unwrap();
    assert!(hostile.apply(&sample()).is_err());
    assert!(serde_json::from_str::<Preprocess>("{\"resise\": null}").is_err());
}

#[test]
fn guesses() {
    let guess = |shape: [Option<usize>; 4]| Preprocess::guess(&shape).unwrap().0.to_string();
    let imagenet: Preprocess = "imagenet,resize=256,crop=224".parse().unwrap();
    assert_eq!(guess([None, Some(3), Some(224), Some(224)]), imagenet.to_string());
    let small = "resize=28x28,filter=bilinear,color=gray,scale=1/255,layout=nhwc";
    assert_eq!(guess([Some(1), Some(28), Some(28), Some(1)]), small);
    assert_eq!(guess([None, Some(3), None, None]), "color=rgb,scale=1/255,layout=nchw");
    assert!(Preprocess::guess(&[None, Some(128)]).is_err());
    assert!(Preprocess::guess(&[None, Some(12), Some(4), Some(4)]).is_err());
}
