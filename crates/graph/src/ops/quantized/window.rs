//! The attributes that convolutions and poolings of quantised images share.

use crate::{Attrs, Dim, Error, Result};

/// Kernel sizes, strides, paddings and dilations as attributes give them; empty lists where there are none.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    pads: Vec<i64>,
    dilations: Vec<i64>,
    auto: Auto,
    ceil: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Auto {
    NotSet,
    SameUpper,
    SameLower,
    Valid,
}

/// What happens along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub pads: [usize; 2],
    pub out: usize,
}

impl Window {
    pub fn read(attrs: &Attrs) -> Result<Window> {
        Ok(Window {
            kernel: attrs.ints_or("kernel_shape", &[])?,
            strides: attrs.ints_or("strides", &[])?,
            pads: attrs.ints_or("pads", &[])?,
            dilations: attrs.ints_or("dilations", &[])?,
            auto: match attrs.text_or("auto_pad", "NOTSET")? {
                "NOTSET" | "" => Auto::NotSet,
                "SAME_UPPER" => Auto::SameUpper,
                "SAME_LOWER" => Auto::SameLower,
                "VALID" => Auto::Valid,
                other => return Err(Error::invalid(format!("auto_pad {other:?} is unknown"))),
            },
            ceil: attrs.flag_or("ceil_mode", false)?,
        })
    }

    /// The window over axes of these sizes; `kernel` are the weights' sizes, when there are weights.
    ///
    /// # Errors
    /// When the attributes do not fit.
    pub fn axes(&self, sizes: &[usize], kernel: Option<&[usize]>) -> Result<Vec<Axis>> {
        let rank = sizes.len();
        let list = |values: &[i64], what: &str, least: i64, len: usize| -> Result<Vec<usize>> {
            match values {
                [] => Ok(vec![least as usize; len]),
                v if v.len() == len && v.iter().all(|&x| (least..1 << 30).contains(&x)) => {
                    Ok(v.iter().map(|&x| x as usize).collect())
                }
                v => Err(Error::invalid(format!("{what} {v:?} do not fit {rank} axes"))),
            }
        };
        let own = list(&self.kernel, "kernel sizes", 1, rank)?;
        let kernel = kernel.unwrap_or(&own);
        if !self.kernel.is_empty() && kernel != own {
            return Err(Error::invalid(format!("kernel_shape {own:?} is not that of the weights")));
        }
        let strides = list(&self.strides, "strides", 1, rank)?;
        let dilations = list(&self.dilations, "dilations", 1, rank)?;
        let pads = list(&self.pads, "pads", 0, 2 * rank)?;
        let axis = |i: usize| {
            let mut axis = Axis {
                kernel: kernel[i],
                stride: strides[i],
                dilation: dilations[i],
                pads: [pads[i], pads[rank + i]],
                out: 0,
            };
            axis.settle(sizes[i], self.auto, self.ceil)
        };
        (0..rank).map(axis).collect()
    }

    /// Sizes of the output's axes, as far as those of the input are known.
    pub fn dims(&self, sizes: &[Dim], kernel: Option<&[Dim]>) -> Result<Vec<Dim>> {
        let known: Option<Vec<usize>> = sizes.iter().map(Dim::size).collect();
        let kernel: Option<Option<Vec<usize>>> = kernel.map(|k| k.iter().map(Dim::size).collect());
        match (known, kernel) {
            (None, _) | (_, Some(None)) => Ok(vec![Dim::Unknown; sizes.len()]),
            (Some(sizes), kernel) => {
                let axes = self.axes(&sizes, kernel.flatten().as_deref())?;
                Ok(axes.iter().map(|a| a.out.into()).collect())
            }
        }
    }
}

impl Axis {
    fn settle(&mut self, size: usize, auto: Auto, ceil: bool) -> Result<Axis> {
        let unfit = || Error::invalid(format!("a window of {} does not fit an axis of {size}", self.kernel));
        let reach =
            self.kernel.checked_sub(1).ok_or_else(unfit)?.saturating_mul(self.dilation).saturating_add(1);
        match auto {
            Auto::NotSet => {}
            Auto::Valid => self.pads = [0, 0],
            Auto::SameUpper | Auto::SameLower => {
                let outs = size.div_ceil(self.stride);
                let total = (outs.saturating_sub(1) * self.stride).saturating_add(reach).saturating_sub(size);
                let (less, more) = (total / 2, total - total / 2);
                self.pads = if auto == Auto::SameUpper { [less, more] } else { [more, less] };
            }
        }
        let padded = size.saturating_add(self.pads[0]).saturating_add(self.pads[1]);
        let room = padded.checked_sub(reach).ok_or_else(unfit)?;
        self.out = room / self.stride + 1;
        // A window that begins beyond the input and its leading padding is left out.
        if ceil && !room.is_multiple_of(self.stride) && self.out * self.stride < size + self.pads[0] {
            self.out += 1;
        }
        Ok(*self)
    }
}
