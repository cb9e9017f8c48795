//! The weights of a convolution, packed for one instruction set, in whatever order suits their form.

use super::depth::{self, DepthPanels, Weave};
use super::driver::{self, Geometry, Panels};
use super::tile::{Tile, Words};
use super::{ConvShape, elements};
use crate::{Cpu, Isa, Pool};

/// Packed weights of any convolution.
pub(super) struct Weights {
    form: Form,
    isa: Isa,
    kernel: [usize; 2],
    groups: usize,
}

enum Form {
    Dense(Panels),
    Depth(DepthPanels),
}

/// Groups of output channels: how many there are, the channels of each, and the lanes that these fill.
#[derive(Clone, Copy)]
pub(super) struct Lined {
    pub groups: usize,
    pub channels: usize,
    pub padded: usize,
}

impl Lined {
    pub fn of(panels: &Panels) -> Lined {
        Lined { groups: panels.groups, channels: panels.channels, padded: panels.padded() }
    }

    /// Values of each output channel where the tiles' vectors have them.
    pub fn line<T: Copy + Default>(&self, values: &[T]) -> Vec<T> {
        let mut lined = vec![T::default(); self.groups * self.padded];
        for (to, from) in lined.chunks_exact_mut(self.padded).zip(values.chunks_exact(self.channels)) {
            to[..self.channels].copy_from_slice(from);
        }
        lined
    }
}

impl Weights {
    /// Packs `weight(output channel, tap, input channel of the group)`, as the bits of a lane of a word.
    pub fn new(
        cpu: &Cpu,
        shape: &ConvShape,
        words: Words,
        weight: impl Fn(usize, usize, usize) -> u32,
    ) -> Weights {
        let (inputs, channels) = per_group(shape);
        let tile = Tile::select(cpu.isa(), words);
        let form = match shape.groups > 1 && inputs == 1 && channels == 1 {
            true => Form::Depth(DepthPanels::new(tile, words, shape.groups, shape.kernel, |channel, tap| {
                weight(channel, tap, 0)
            })),
            false => {
                let sizes = [channels, inputs, shape.kernel[0] * shape.kernel[1]];
                Form::Dense(Panels::new(tile, words, shape.groups, sizes, weight))
            }
        };
        Weights { form, isa: cpu.isa(), kernel: shape.kernel, groups: shape.groups }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn words(&self) -> Words {
        match &self.form {
            Form::Dense(panels) => panels.kind,
            Form::Depth(panels) => panels.kind,
        }
    }

    pub fn lined(&self) -> Lined {
        match &self.form {
            Form::Dense(panels) => Lined::of(panels),
            Form::Depth(panels) => Lined { groups: 1, channels: panels.channels, padded: panels.padded() },
        }
    }

    /// The sizes of a run on an input of this many elements.
    ///
    /// # Panics
    /// When `shape` is impossible or does not fit the weights or the input.
    pub fn geometry(&self, shape: &ConvShape, input: usize) -> Geometry {
        let Some(out_size) = shape.out_size() else { panic!("an impossible convolution: {shape:?}") };
        let packed = match &self.form {
            Form::Dense(panels) => (panels.inputs, panels.channels),
            Form::Depth(_) => (1, 1),
        };
        assert!(
            per_group(shape) == packed && self.groups == shape.groups && self.kernel == shape.kernel,
            "the shape fits the packed weights"
        );
        assert_eq!(input, shape.in_len(), "length of the input");
        Geometry::new(shape, out_size)
    }

    /// Computes the convolution.
    pub fn run(&self, pool: &Pool, geometry: Geometry, body: &impl Weave) {
        match &self.form {
            Form::Dense(panels) => driver::run(pool, panels, geometry, body),
            Form::Depth(panels) => depth::run(pool, panels, &geometry, body),
        }
    }
}

/// Input and output channels of a group.
///
/// # Panics
/// When the channels are no positive multiple of the groups, or the weights are absurdly many.
pub(super) fn per_group(shape: &ConvShape) -> (usize, usize) {
    let (inputs, outputs, groups) = (shape.in_channels, shape.out_channels, shape.groups);
    assert!(
        groups > 0
            && inputs > 0
            && outputs > 0
            && inputs.is_multiple_of(groups)
            && outputs.is_multiple_of(groups),
        "{inputs} and {outputs} channels are positive multiples of {groups} groups"
    );
    assert!(elements(&[inputs, outputs, shape.kernel[0], shape.kernel[1]]).is_some(), "too many weights");
    (inputs / groups, outputs / groups)
}
