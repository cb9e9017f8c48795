//! Where the taps of a kernel find their pixels.

/// The planes that a tile is copied into, and the taps that read them.
///
/// Plane `p` holds at `(r, c)` the input pixel `(r, c) * stride + origin[p]`, counted from the first one that
/// the tile's first output sees; tap `t` of output `(r, c)` reads plane `taps[t].plane` at
/// `(r + taps[t].shift[0], c + taps[t].shift[1])`.
pub(super) struct Field {
    /// The first pixel of each plane.
    pub origins: Vec<[usize; 2]>,
    /// In the order of the weights: from the kernel's first row to its last.
    pub taps: Vec<Tap>,
    /// The greatest shift on each axis: how much larger than the tile a plane is.
    pub margin: [usize; 2],
}

/// A plane and a shift in it.
pub(super) struct Tap {
    pub plane: usize,
    pub shift: [usize; 2],
}

/// The taps along one axis: for each its origin's index and its shift.
struct Axis {
    origins: Vec<usize>,
    taps: Vec<[usize; 2]>,
    margin: usize,
}

impl Axis {
    /// One plane for each residue of the stride that a tap needs.
    fn shared(kernel: usize, dilation: usize, stride: usize) -> Axis {
        let mut origins = Vec::new();
        let mut taps = Vec::with_capacity(kernel);
        for at in (0..kernel).map(|k| k * dilation) {
            let residue = at % stride;
            let index = origins.iter().position(|&o| o == residue).unwrap_or_else(|| {
                origins.push(residue);
                origins.len() - 1
            });
            taps.push([index, at / stride]);
        }
        let margin = kernel.saturating_sub(1) * dilation / stride;
        Axis { origins, taps, margin }
    }

    /// One plane for each tap.
    fn separate(kernel: usize, dilation: usize) -> Axis {
        let origins = (0..kernel).map(|k| k * dilation).collect();
        Axis { origins, taps: (0..kernel).map(|k| [k, 0]).collect(), margin: 0 }
    }

    /// The one that copies less for a tile of `out` outputs.
    fn of(kernel: usize, dilation: usize, stride: usize, out: usize) -> Axis {
        let phases = stride.min(kernel);
        let margin = kernel.saturating_sub(1) * dilation / stride;
        match (out + margin).saturating_mul(phases) > out * kernel {
            true => Axis::separate(kernel, dilation),
            false => Axis::shared(kernel, dilation, stride),
        }
    }
}

impl Field {
    /// Planes for a kernel. With `packed > 1`, that many taps of a kernel row stand in one word, and a plane
    /// begins at the first of them.
    pub fn new(
        kernel: [usize; 2],
        dilation: [usize; 2],
        stride: [usize; 2],
        out: [usize; 2],
        packed: usize,
    ) -> Field {
        let y = Axis::of(kernel[0], dilation[0], stride[0], out[0].clamp(1, 16));
        let x = match packed {
            0 | 1 => Axis::of(kernel[1], dilation[1], stride[1], out[1].clamp(1, 64)),
            _ => Axis::separate(kernel[1].div_ceil(packed), dilation[1] * packed),
        };
        let origins = y.origins.iter().flat_map(|&oy| x.origins.iter().map(move |&ox| [oy, ox])).collect();
        let tap = |[py, sy]: [usize; 2], [px, sx]: [usize; 2]| Tap {
            plane: py * x.origins.len() + px,
            shift: [sy, sx],
        };
        let taps = y.taps.iter().flat_map(|&ty| x.taps.iter().map(move |&tx| tap(ty, tx))).collect();
        Field { origins, taps, margin: [y.margin, x.margin] }
    }
}
