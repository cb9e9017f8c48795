//! Images changed at random in ways that leave what they show as it is: turned left to right, and moved a little.

use graph::{DType, Tensor};

use crate::Result;
use crate::random::Random;

/// An image moves by at most one in so many of its pixels.
const MOVE: usize = 8;
/// Most channels of what is taken for an image.
const CHANNELS: usize = 4;

/// Turns about half of the images of a batch, `[N, C, H, W]` or `[N, H, W, C]` of f32, left to right, and moves each by
/// up to an eighth of its size; pixels at the edge are repeated. What is no such batch stays as it is; says whether it
/// was one.
///
/// # Errors
/// When memory is short.
pub fn augment(batch: &mut Tensor, random: &mut Random) -> Result<bool> {
    let &[_, a, b, c] = batch.shape() else { return Ok(false) };
    if batch.dtype() != DType::F32 || batch.is_empty() {
        return Ok(false);
    }
    let (planes, height, width, depth) = match () {
        () if a <= CHANNELS && b > CHANNELS && c > CHANNELS => (a, b, c, 1),
        () if c <= CHANNELS && a > CHANNELS && b > CHANNELS => (1, a, b, c),
        () => return Ok(false),
    };
    let plane = height * width * depth;
    let mut old = vec![0f32; planes * plane];
    for image in batch.as_mut_slice::<f32>()?.chunks_exact_mut(planes * plane) {
        let flip = random.below(2) == 1;
        let mut shift = |size: usize| random.below(2 * (size / MOVE) + 1) as isize - (size / MOVE) as isize;
        let (down, right) = (shift(height), shift(width));
        old.copy_from_slice(image);
        let from =
            |at: usize, by: isize, size: usize| (at as isize - by).clamp(0, size as isize - 1) as usize;
        for (new, old) in image.chunks_exact_mut(plane).zip(old.chunks_exact(plane)) {
            for (y, row) in new.chunks_exact_mut(width * depth).enumerate() {
                let old = &old[from(y, down, height) * width * depth..][..width * depth];
                for (x, pixel) in row.chunks_exact_mut(depth).enumerate() {
                    let x = from(x, right, width);
                    let x = if flip { width - 1 - x } else { x };
                    pixel.copy_from_slice(&old[x * depth..][..depth]);
                }
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_move_together_and_stay_what_they_are() {
        // Each pixel holds its place; the second channel is the first plus a thousand.
        let place = |y: usize, x: usize| (y * 16 + x) as f32;
        let first: Vec<f32> = (0..2).flat_map(|c| (0..256).map(move |i| (i + 1000 * c) as f32)).collect();
        let images: Vec<f32> = (0..40).flat_map(|_| first.clone()).collect();
        let mut batch = Tensor::new(&[40, 2, 16, 16], &images).unwrap();
        assert!(augment(&mut batch, &mut Random::new(3)).unwrap());
        let (mut flips, mut moves) = (0, std::collections::HashSet::new());
        for image in batch.as_slice::<f32>().unwrap().chunks(512) {
            let (a, b) = image.split_at(256);
            assert!(a.iter().zip(b).all(|(a, b)| a + 1000.0 == *b));
            // The middle tells where all came from.
            let at = |y: usize, x: usize| (a[y * 16 + x] as usize / 16, a[y * 16 + x] as usize % 16);
            let ((y, x), (_, next)) = (at(8, 8), at(8, 9));
            let flip = next < x;
            let (down, right) = (8 - y as isize, 8 - if flip { 15 - x } else { x } as isize);
            assert!(down.abs() <= 2 && right.abs() <= 2);
            flips += usize::from(flip);
            moves.insert((down, right));
            for (y, x) in (0..16).flat_map(|y| (0..16).map(move |x| (y, x))) {
                let clamp = |v: isize| v.clamp(0, 15) as usize;
                let (fy, fx) = (clamp(y as isize - down), clamp(x as isize - right));
                assert_eq!(a[y * 16 + x], place(fy, if flip { 15 - fx } else { fx }));
            }
        }
        assert!((10..30).contains(&flips) && moves.len() > 10, "{flips} {moves:?}");
        // With the channels last it is the same; the same seed does the same.
        let last: Vec<f32> =
            (0..40).flat_map(|_| (0..256).flat_map(|i| [i as f32, (i + 1000) as f32])).collect();
        let mut turned = Tensor::new(&[40, 16, 16, 2], &last).unwrap();
        assert!(augment(&mut turned, &mut Random::new(3)).unwrap());
        let (a, b) = (batch.as_slice::<f32>().unwrap(), turned.as_slice::<f32>().unwrap());
        assert!((0..40 * 256).all(|i| a[i / 256 * 512 + i % 256] == b[i * 2]));
    }

    #[test]
    fn what_is_no_image_stays() {
        for shape in [&[2, 8, 8][..], &[2, 8, 8, 8], &[2, 1, 1, 1], &[0, 3, 8, 8]] {
            let mut batch = Tensor::zeros(DType::F32, shape).unwrap();
            assert!(!augment(&mut batch, &mut Random::new(1)).unwrap(), "{shape:?}");
        }
        let mut bytes = Tensor::zeros(DType::U8, &[1, 3, 8, 8]).unwrap();
        assert!(!augment(&mut bytes, &mut Random::new(1)).unwrap());
    }
}
