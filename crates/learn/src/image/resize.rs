//! Resampling as PIL does it for images of bytes: each output pixel is a weighted mean of the input pixels under a
//! filter that widens with the reduction; weights in fixed point of 22 bits; rows first, then columns, rounded to
//! bytes in between (Pillow, `Resample.c`, and its documentation of `Image.resize`).

use super::{Filter, Pixels};

const BITS: u32 = 22;

/// The input pixels of one output pixel: where they start, and their weights.
struct Span {
    start: usize,
    weights: Vec<i64>,
}

fn weight(filter: Filter, x: f64) -> f64 {
    let x = x.abs();
    match filter {
        Filter::Bilinear => (1.0 - x).max(0.0),
        Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Filter::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        Filter::Bicubic => 0.0,
    }
}

fn spans(from: usize, to: usize, filter: Filter) -> Vec<Span> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let radius = stretch * if filter == Filter::Bicubic { 2.0 } else { 1.0 };
    let span = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let start = (centre - radius + 0.5).max(0.0) as usize;
        let end = ((centre + radius + 0.5) as usize).min(from).max(start + 1);
        let raw: Vec<f64> =
            (start..end).map(|x| weight(filter, (x as f64 - centre + 0.5) / stretch)).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |w: f64| (w / sum * f64::from(1u32 << BITS)).round() as i64;
        Span { start, weights: raw.into_iter().map(fixed).collect() }
    };
    (0..to).map(span).collect()
}

fn round(sum: i64) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

/// The image at another size; both sizes are at least 1.
pub(super) fn resize(pixels: &Pixels, height: usize, width: usize, filter: Filter) -> Pixels {
    let channels = pixels.channels;
    let mut wide = Vec::with_capacity(pixels.height * width * channels);
    if width == pixels.width {
        wide.extend_from_slice(&pixels.bytes);
    } else {
        let columns = spans(pixels.width, width, filter);
        for row in pixels.bytes.chunks_exact(pixels.width * channels) {
            for span in &columns {
                for channel in 0..channels {
                    let inputs = row[span.start * channels + channel..].iter().step_by(channels);
                    wide.push(round(inputs.zip(&span.weights).map(|(&p, w)| i64::from(p) * w).sum()));
                }
            }
        }
    }
    if height == pixels.height {
        return Pixels { width, height, channels, bytes: wide };
    }
    let mut bytes = Vec::with_capacity(height * width * channels);
    let length = width * channels;
    let mut sums = vec![0i64; length];
    for span in spans(pixels.height, height, filter) {
        sums.fill(0);
        for (row, w) in wide[span.start * length..].chunks_exact(length).zip(&span.weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &p)| *sum += i64::from(p) * w);
        }
        bytes.extend(sums.iter().map(|&sum| round(sum)));
    }
    Pixels { width, height, channels, bytes }
}
