//! Pictures in the way of "dead leaves": shapes of all sizes, small ones most often, that lie over one another on a
//! ground of noise with less in each finer octave. Together they have the spectrum of natural images, 1/f, and the shapes
//! have their edges. A. Lee, D. Mumford and J. Huang, *Occlusion models for natural images*, 2001; the use of such
//! pictures in the place of photographs: M. Baradad et al., *Learning to see by looking at noise*, 2021.

use ::image::{DynamicImage, RgbImage};

use super::random;
use crate::random::Random;

/// Brightness of a picture: the mean of its mean and how that varies, as parts of white.
const LIGHT: (f64, f64) = (0.47, 0.09);
/// How far colours vary around a picture's mean: in brightness, between red and blue, between green and both.
const COLOURS: [f64; 3] = [0.26, 0.09, 0.045];
/// The smallest radius of a shape, in pixels of a picture whose shorter side has 32.
const LEAST: f64 = 2.0;
/// The greatest radius, as a part of the shorter side.
const MOST: f64 = 0.6;
/// Most shapes of a picture.
const SHAPES: usize = 40;
/// Brightness of each octave of noise, relative to the one of twice the size.
const FALL: f64 = 0.72;

/// Picture `index` of this seed, of so many pixels; sides of 0 are taken for 1.
pub fn picture(seed: u64, index: usize, height: u32, width: u32) -> DynamicImage {
    let (height, width) = (height.max(1), width.max(1));
    let mut random = random(seed, index);
    let noise = Noise::new(&mut random, height as usize, width as usize);
    let mut shapes = vec![Shape::ground(&mut random, height, width)];
    let count = random.below(SHAPES + 1);
    shapes.extend((0..count).map(|_| Shape::leaf(&mut random, height, width)));
    // What a picture is of is great and near the middle, more often than not.
    if random.unit() < 0.6 {
        let at = random.below(shapes.len()) + 1;
        shapes.insert(at, Shape::subject(&mut random, height, width));
    }
    let grain = 0.015 * random.unit();
    let light = (LIGHT.0 + LIGHT.1 * random.normal()).clamp(0.1, 0.9);
    let contrast = 0.5 + 0.8 * random.unit();
    let image = RgbImage::from_fn(width, height, |x, y| {
        let mut colour = [0.0; 3];
        for shape in &shapes {
            let cover = shape.cover(f64::from(x), f64::from(y));
            if cover > 0.0 {
                let own = shape.colour(f64::from(x), f64::from(y), &noise);
                colour.iter_mut().zip(own).for_each(|(c, own)| *c += cover * (own - *c));
            }
        }
        let [bright, red, green] = colour;
        let rgb = [bright + red + green, bright - green, bright - red + green];
        let mut value = |v: f64| light + contrast * v + grain * random.normal();
        ::image::Rgb(rgb.map(|v| (255.0 * value(v)).round().clamp(0.0, 255.0) as u8))
    });
    DynamicImage::ImageRgb8(image)
}

/// An ellipse, a rectangle, or all there is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Ground,
    Ellipse,
    Rectangle,
}

/// A part of a picture with a colour, a slope of brightness and a texture.
#[derive(Debug)]
struct Shape {
    form: Form,
    centre: [f64; 2],
    /// Half the length along both axes, in pixels.
    radius: [f64; 2],
    /// The direction of the first axis, of length 1.
    axis: [f64; 2],
    colour: [f64; 3],
    slope: [f64; 2],
    texture: f64,
    /// Where in the noise its texture begins.
    shift: [usize; 2],
}

impl Shape {
    fn ground(random: &mut Random, height: u32, width: u32) -> Shape {
        let ground = Shape::new(random, [height, width], 1.0);
        let [bright, red, green] = ground.colour;
        let colour = [0.4 * bright, red, green];
        Shape { form: Form::Ground, colour, texture: 0.05 + 0.3 * random.unit(), ..ground }
    }

    /// A shape whose radius r has a density that falls with the third power of r.
    fn leaf(random: &mut Random, height: u32, width: u32) -> Shape {
        let least = (LEAST / 32.0 / MOST).powi(-2);
        let radius = 1.0 / (1.0 + random.unit() * (least - 1.0)).sqrt();
        Shape::new(random, [height, width], radius)
    }

    fn subject(random: &mut Random, height: u32, width: u32) -> Shape {
        let radius = 0.4 + 0.4 * random.unit();
        let mut shape = Shape::new(random, [height, width], radius);
        for (centre, side) in shape.centre.iter_mut().zip([width, height]) {
            *centre = f64::from(side) * (0.5 + 0.1 * random.normal());
        }
        shape
    }

    /// `radius` is a part of the greatest one.
    fn new(random: &mut Random, [height, width]: [u32; 2], radius: f64) -> Shape {
        let side = f64::from(height.min(width));
        let radius = radius * MOST * side;
        let axis = direction(random);
        let slope = 0.3 * random.normal() / side;
        let [across, down] = direction(random);
        Shape {
            form: if random.unit() < 0.6 { Form::Ellipse } else { Form::Rectangle },
            centre: [f64::from(width) * random.unit(), f64::from(height) * random.unit()],
            radius: [radius, radius * (0.3 + 0.7 * random.unit())],
            axis,
            colour: COLOURS.map(|spread| spread * random.normal()),
            slope: [slope * across, slope * down],
            texture: 0.15 * random.unit() * random.unit(),
            shift: [random.below(width as usize), random.below(height as usize)],
        }
    }

    /// How much of a pixel it covers, 0 to 1.
    fn cover(&self, x: f64, y: f64) -> f64 {
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        let [a, b] = self.axis;
        let (u, v) = ((dx * a + dy * b).abs() / self.radius[0], (dy * a - dx * b).abs() / self.radius[1]);
        // How far outside, in radii.
        let outside = match self.form {
            Form::Ground => return 1.0,
            Form::Ellipse => (u * u + v * v).sqrt() - 1.0,
            Form::Rectangle => u.max(v) - 1.0,
        };
        (0.5 - outside * self.radius[1]).clamp(0.0, 1.0)
    }

    fn colour(&self, x: f64, y: f64, noise: &Noise) -> [f64; 3] {
        let at = [x as usize + self.shift[0], y as usize + self.shift[1]];
        let (dx, dy) = (x - self.centre[0], y - self.centre[1]);
        let [bright, red, green] = self.colour;
        [bright + self.slope[0] * dx + self.slope[1] * dy + self.texture * noise.at(at), red, green]
    }
}

/// A direction, all equally likely, of length 1.
fn direction(random: &mut Random) -> [f64; 2] {
    loop {
        let [x, y] = [(); 2].map(|()| 2.0 * random.unit() - 1.0);
        let length = (x * x + y * y).sqrt();
        if (0.1..=1.0).contains(&length) {
            return [x / length, y / length];
        }
    }
}

/// Noise with less in each finer octave, of deviation 1, about; it goes on at its edges.
struct Noise {
    width: usize,
    values: Vec<f64>,
}

impl Noise {
    fn new(random: &mut Random, height: usize, width: usize) -> Noise {
        let mut values = vec![0.0; height * width];
        let mut cell = height.max(width);
        let (mut strength, mut energy) = (1.0, 0.0);
        while cell > 0 {
            octave(random, &mut values, width, cell, strength);
            energy += strength * strength;
            strength *= FALL;
            cell /= 2;
        }
        let scale = f64::sqrt(1.0 / energy);
        values.iter_mut().for_each(|v| *v *= scale);
        Noise { width, values }
    }

    fn at(&self, [x, y]: [usize; 2]) -> f64 {
        let height = self.values.len() / self.width;
        self.values[y % height * self.width + x % self.width]
    }
}

/// Adds normal numbers on a grid of this many pixels, and what lies between them.
fn octave(random: &mut Random, values: &mut [f64], width: usize, cell: usize, strength: f64) {
    let height = values.len() / width;
    let (across, down) = (width / cell + 2, height / cell + 2);
    let grid: Vec<f64> = (0..across * down).map(|_| strength * random.normal()).collect();
    let part = |i: usize| {
        let t = (i % cell) as f64 / cell as f64;
        t * t * (3.0 - 2.0 * t)
    };
    for (i, value) in values.iter_mut().enumerate() {
        let (x, y) = (i % width, i / width);
        let (tx, ty) = (part(x), part(y));
        let corner = y / cell * across + x / cell;
        let row = |at: usize| grid[at] + tx * (grid[at + 1] - grid[at]);
        let (top, bottom) = (row(corner), row(corner + across));
        *value += top + ty * (bottom - top);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_the_same_again_and_differ_by_index_and_seed() {
        let one = picture(1, 7, 24, 32);
        assert_eq!((one.height(), one.width()), (24, 32));
        assert_eq!(one, picture(1, 7, 24, 32));
        assert_ne!(one, picture(1, 8, 24, 32));
        assert_ne!(one, picture(2, 7, 24, 32));
        assert_eq!(picture(1, 1, 1, 0).width(), 1);
    }

    /// The deviation of a picture's brightness, and that of the difference of neighbours, in bytes.
    fn roughness(index: usize) -> (f64, f64) {
        let image = picture(3, index, 32, 32).to_luma8();
        let at = |x: u32, y: u32| f64::from(image.get_pixel(x, y).0[0]);
        let all: Vec<f64> = image.pixels().map(|p| f64::from(p.0[0])).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let spread = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64;
        let steps: Vec<f64> = (0..31)
            .flat_map(|x| (0..32).map(move |y| (x, y)))
            .map(|(x, y)| at(x + 1, y) - at(x, y))
            .collect();
        let step = steps.iter().map(|d| d * d).sum::<f64>() / steps.len() as f64;
        (spread.sqrt(), step.sqrt())
    }

    #[test]
    fn neighbours_are_alike_and_pictures_are_neither_flat_nor_clipped() {
        let all: Vec<(f64, f64)> = (0..100).map(roughness).collect();
        let mean = |f: fn(&(f64, f64)) -> f64| all.iter().map(f).sum::<f64>() / 100.0;
        let (spread, step) = (mean(|r| r.0), mean(|r| r.1));
        assert!((25.0..80.0).contains(&spread), "{spread}");
        // Of white noise the difference would be 1.41 times the deviation.
        assert!(step < 0.65 * spread && step > 0.1 * spread, "{step} of {spread}");
        let bytes: Vec<u8> = (0..50).flat_map(|i| picture(4, i, 32, 32).to_rgb8().into_raw()).collect();
        let clipped = bytes.iter().filter(|b| **b == 0 || **b == 255).count();
        assert!(clipped * 8 < bytes.len(), "{clipped} of {}", bytes.len());
    }
}
