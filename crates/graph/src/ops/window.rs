//! Windows that move over the spatial axes of a tensor `[N, C, D1, D2, ..]`: what convolutions and poolings share.
//! <https://onnx.ai/onnx/operators/onnx__Conv.html>

use crate::{Attr, Attrs, Dim, Error, Result};

/// How `auto_pad` chooses the padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoPad {
    /// As many outputs as the stride allows; what is left over is padded at the end.
    SameUpper,
    /// The same, padded at the beginning.
    SameLower,
    /// No padding.
    Valid,
}

/// The attributes of a window, as they were read; lists that are absent have defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Taps along each axis.
    pub kernel: Option<Vec<usize>>,
    /// Steps from one window to the next; 1 when absent.
    pub strides: Option<Vec<usize>>,
    /// Padding before all axes, then after all axes; 0 when absent.
    pub pads: Option<Vec<usize>>,
    /// Steps from one tap to the next; 1 when absent.
    pub dilations: Option<Vec<usize>>,
    /// How the padding is chosen when not by `pads`; the attribute "NOTSET" is kept as absent.
    pub auto_pad: Option<AutoPad>,
    /// Whether a last window that reaches over the end counts; for poolings only.
    pub ceil: bool,
}

/// A window along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Size of the input.
    pub size: usize,
    /// Taps.
    pub kernel: usize,
    /// Steps from one window to the next.
    pub stride: usize,
    /// Steps from one tap to the next.
    pub dilation: usize,
    /// Padding before.
    pub begin: usize,
    /// Padding after.
    pub end: usize,
    /// Number of windows.
    pub out: usize,
}

impl Axis {
    /// The taps of window `o` that lie on the input: the first tap, how many, and the first input position.
    pub fn taps(&self, o: usize) -> (usize, usize, usize) {
        let start = o * self.stride;
        let first = self.begin.saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
        let at = (start + first * self.dilation).saturating_sub(self.begin);
        let fit = if at < self.size { (self.size - 1 - at) / self.dilation + 1 } else { 0 };
        (first, fit.min(self.kernel - first), at)
    }
}

fn sizes(attrs: &Attrs, name: &str, least: usize) -> Result<Option<Vec<usize>>> {
    let one = |v: i64| {
        usize::try_from(v)
            .ok()
            .filter(|&v| v >= least && v < 1 << 40)
            .ok_or_else(|| Error::invalid(format!("{name} must not hold {v}")))
    };
    attrs.opt_ints(name)?.map(|list| list.into_iter().map(one).collect()).transpose()
}

fn ints(list: &[usize]) -> Attr {
    Attr::Ints(list.iter().map(|&v| v as i64).collect())
}

impl Window {
    /// Reads the attributes of a window.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes that cannot be; [`Error::Unsupported`] for negative padding.
    pub fn read(attrs: &Attrs) -> Result<Window> {
        let auto_pad = match attrs.text_or("auto_pad", "NOTSET")? {
            "NOTSET" | "" => None,
            "SAME_UPPER" => Some(AutoPad::SameUpper),
            "SAME_LOWER" => Some(AutoPad::SameLower),
            "VALID" => Some(AutoPad::Valid),
            other => return Err(Error::invalid(format!("there is no auto_pad {other:?}"))),
        };
        if attrs.opt_ints("pads")?.is_some_and(|p| p.iter().any(|&p| p < 0)) {
            return Err(Error::unsupported("negative padding"));
        }
        Ok(Window {
            kernel: sizes(attrs, "kernel_shape", 1)?,
            strides: sizes(attrs, "strides", 1)?,
            pads: sizes(attrs, "pads", 0)?,
            dilations: sizes(attrs, "dilations", 1)?,
            auto_pad,
            ceil: attrs.flag_or("ceil_mode", false)?,
        })
    }

    /// Writes what [`Window::read`] reads.
    pub fn write(&self, attrs: Attrs) -> Attrs {
        let auto_pad = self.auto_pad.map(|p| match p {
            AutoPad::SameUpper => "SAME_UPPER",
            AutoPad::SameLower => "SAME_LOWER",
            AutoPad::Valid => "VALID",
        });
        attrs
            .maybe("auto_pad", auto_pad.map(Attr::from))
            .maybe("ceil_mode", self.ceil.then_some(Attr::Int(1)))
            .maybe("dilations", self.dilations.as_deref().map(ints))
            .maybe("kernel_shape", self.kernel.as_deref().map(ints))
            .maybe("pads", self.pads.as_deref().map(ints))
            .maybe("strides", self.strides.as_deref().map(ints))
    }

    /// The kernel attribute, which must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not.
    pub fn need_kernel(&self) -> Result<&[usize]> {
        self.kernel.as_deref().ok_or_else(|| Error::invalid("attribute \"kernel_shape\" is missing"))
    }

    /// Checks that all lists have the length that so many axes need.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one has not.
    pub fn check(&self, axes: usize) -> Result<()> {
        let lists = [
            ("kernel_shape", &self.kernel, 1),
            ("strides", &self.strides, 1),
            ("pads", &self.pads, 2),
            ("dilations", &self.dilations, 1),
        ];
        for (name, list, per) in lists {
            if list.as_ref().is_some_and(|l| l.len() != axes * per) {
                return Err(Error::invalid(format!("{name} {list:?} does not fit {axes} spatial axes")));
            }
        }
        Ok(())
    }

    /// Stride, dilation and explicit padding along one axis.
    pub fn step(&self, axis: usize) -> (usize, usize, [usize; 2]) {
        let at = |list: &Option<Vec<usize>>, i: usize, default| {
            list.as_ref().and_then(|l| l.get(i)).copied().unwrap_or(default)
        };
        let axes = self.pads.as_ref().map_or(0, |p| p.len() / 2);
        let pads = match self.auto_pad {
            None => [at(&self.pads, axis, 0), at(&self.pads, axis + axes, 0)],
            Some(_) => [0, 0],
        };
        (at(&self.strides, axis, 1), at(&self.dilations, axis, 1), pads)
    }

    /// The window along one axis of an input of this size.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it does not fit.
    pub fn axis(&self, axis: usize, size: usize, kernel: usize) -> Result<Axis> {
        let too_big = || Error::invalid("a window is too big");
        let (stride, dilation, [mut begin, mut end]) = self.step(axis);
        if kernel == 0 || stride == 0 || dilation == 0 {
            return Err(Error::invalid("kernel, strides and dilations must be positive"));
        }
        let extent = (kernel - 1).checked_mul(dilation).and_then(|n| n.checked_add(1)).ok_or_else(too_big)?;
        if let Some(AutoPad::SameUpper | AutoPad::SameLower) = self.auto_pad {
            let out = size.div_ceil(stride);
            let reach = out.saturating_sub(1).checked_mul(stride).and_then(|n| n.checked_add(extent));
            let total = reach.ok_or_else(too_big)?.saturating_sub(size);
            let small = total / 2;
            (begin, end) = match self.auto_pad {
                Some(AutoPad::SameLower) => (total - small, small),
                _ => (small, total - small),
            };
        }
        let padded = size.checked_add(begin).and_then(|n| n.checked_add(end)).ok_or_else(too_big)?;
        let room = padded.checked_sub(extent).ok_or_else(|| {
            Error::invalid(format!("a window of {extent} does not fit {size} + {begin} + {end} positions"))
        })?;
        let mut out = room / stride + 1;
        // A window more, unless it would begin in the padding at the end.
        if self.ceil && room % stride != 0 && out * stride < size + begin {
            out += 1;
        }
        Ok(Axis { size, kernel, stride, dilation, begin, end, out })
    }

    /// The window along all axes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it does not fit.
    pub fn place(&self, size: &[usize], kernel: &[usize]) -> Result<Vec<Axis>> {
        self.check(size.len())?;
        if kernel.len() != size.len() {
            return Err(Error::invalid(format!("a kernel {kernel:?} for {} spatial axes", size.len())));
        }
        size.iter().zip(kernel).enumerate().map(|(i, (&n, &k))| self.axis(i, n, k)).collect()
    }

    /// Number of windows along all axes, as far as it is known.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is certain that they do not fit.
    pub fn infer(&self, size: &[Dim], kernel: &[Dim]) -> Result<Vec<Dim>> {
        self.check(size.len())?;
        let one = |(i, n): (usize, &Dim)| {
            let kernel = kernel.get(i).and_then(Dim::size);
            let Some(kernel) = kernel else { return Ok(Dim::Unknown) };
            if let Some(n) = n.size() {
                return Ok(self.axis(i, n, kernel)?.out.into());
            }
            let (stride, dilation, [begin, end]) = self.step(i);
            let same = matches!(self.auto_pad, Some(AutoPad::SameUpper | AutoPad::SameLower));
            let kept = Some(begin + end) == kernel.saturating_sub(1).checked_mul(dilation);
            Ok(if stride == 1 && (same || kept) { n.clone() } else { Dim::Unknown })
        };
        size.iter().enumerate().map(one).collect()
    }
}

/// The output sizes of all axes.
pub(crate) fn outs(axes: &[Axis]) -> Vec<usize> {
    axes.iter().map(|a| a.out).collect()
}

/// Steps an index through a shape in row-major order; false when it has come round.
pub(crate) fn advance(index: &mut [usize], shape: &[usize]) -> bool {
    for (i, &size) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < size {
            return true;
        }
        *i = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_those_on_the_input() {
        for (size, kernel, stride, dilation, begin, end) in
            [(5, 3, 1, 1, 1, 1), (7, 3, 2, 2, 3, 4), (4, 2, 3, 1, 0, 2), (3, 5, 1, 1, 4, 4)]
        {
            let window = Window {
                strides: Some(vec![stride]),
                dilations: Some(vec![dilation]),
                pads: Some(vec![begin, end]),
                ..Window::default()
            };
            let axis = window.axis(0, size, kernel).unwrap();
            for o in 0..axis.out {
                let places: Vec<(usize, usize)> = (0..kernel)
                    .filter_map(|k| Some((k, (o * stride + k * dilation).checked_sub(begin)?)))
                    .filter(|p| p.1 < size)
                    .collect();
                let (first, count, at) = axis.taps(o);
                let found: Vec<(usize, usize)> = (0..count).map(|j| (first + j, at + j * dilation)).collect();
                assert_eq!(found, places);
            }
        }
    }

    #[test]
    fn same_padding_and_ceil() {
        let same = Window { strides: Some(vec![2]), auto_pad: Some(AutoPad::SameLower), ..Window::default() };
        let axis = same.axis(0, 5, 4).unwrap();
        assert_eq!((axis.begin, axis.end, axis.out), (2, 1, 3));
        let ceil = Window { strides: Some(vec![2]), ceil: true, ..Window::default() };
        assert_eq!(ceil.axis(0, 4, 3).unwrap().out, 2);
        // The third window would begin beyond the input.
        let ceil = Window { pads: Some(vec![0, 3]), strides: Some(vec![2]), ceil: true, ..Window::default() };
        assert_eq!(ceil.axis(0, 2, 2).unwrap().out, 2);
        assert!(ceil.axis(0, 2, 9).is_err());
        assert!(ceil.axis(0, usize::MAX, 9).is_err());
    }
}
