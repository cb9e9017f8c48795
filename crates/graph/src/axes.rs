//! Which axes of a node's inputs and outputs move together: when an index of one is taken away, which indices of the
//! others must go with it. From this alone structured pruning finds the groups of channels of a whole graph
//! (dependency graphs: Fang et al., "DepGraph", <https://arxiv.org/abs/2301.12900>).

use std::ops::Range;
use std::sync::Arc;

use crate::op::{Facts, Reader};
use crate::{Attr, Dim, Error, Fact, Op, Result};

/// An input or an output of a node, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// An input.
    Input(usize),
    /// An output.
    Output(usize),
}

use Port::{Input, Output};

/// An axis of an input or an output, counted from the first.
pub type End = (Port, usize);

/// Indices of two axes that stay or go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// The axes. When one has size 1 and the other has not, it is repeated along it, and nothing is tied.
    pub ends: [End; 2],
    /// Which indices: `None` when each index of one goes with the same index of the other.
    pub part: Option<Part>,
}

/// Index `start[0] + i * step[0]` of the first axis goes with `start[1] + i * step[1]` of the second, for `i < len`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Part {
    pub start: [usize; 2],
    pub step: [usize; 2],
    pub len: usize,
}

/// An axis that lies in memory as several axes: index `i_0` of the first, `i_1` of the second, .. together are one index
/// of the whole, the last of them fastest. Indices of one of the parts can be taken away, of the others then cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// The one axis.
    pub whole: End,
    /// The axes that it is made of, with their sizes.
    pub parts: Vec<(End, usize)>,
}

/// Where an operator holds a number that counts indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An element of an input of integers.
    Input(usize, usize),
    /// An integer attribute.
    Attr(&'static str),
    /// An element of an attribute of integers.
    Attrs(&'static str, usize),
}

/// A number that changes when indices go: how many of them there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Where the number stands.
    pub place: Place,
    /// The axis whose indices it counts.
    pub of: End,
    /// Of these indices; `None`: of all.
    pub range: Option<Range<usize>>,
}

/// How many of these indices of an axis are left (`None` for the range: of all); `None` when none went.
pub type Left<'a> = dyn Fn(End, Option<&Range<usize>>) -> Option<usize> + 'a;

/// How the axes of a node move together. Indices of axes that are not named here cannot be taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axes {
    /// Indices that go together.
    pub ties: Vec<Tie>,
    /// Axes that lie in memory as several.
    pub folds: Vec<Fold>,
    /// Numbers that count indices.
    pub counts: Vec<Count>,
}

impl Axes {
    /// None that move.
    pub fn new() -> Axes {
        Axes::default()
    }

    /// Each index of one axis goes with the same of the other.
    pub fn tie(&mut self, a: End, b: End) -> &mut Axes {
        self.ties.push(Tie { ends: [a, b], part: None });
        self
    }

    /// `len` indices of an axis go with as many of another, each from its start on.
    pub fn part(&mut self, a: (End, usize), b: (End, usize), len: usize) -> &mut Axes {
        self.strided((a.0, a.1, 1), (b.0, b.1, 1), len)
    }

    /// `len` indices of an axis go with as many of another, each from a start on by a step.
    pub fn strided(&mut self, a: (End, usize, usize), b: (End, usize, usize), len: usize) -> &mut Axes {
        let part = Part { start: [a.1, b.1], step: [a.2, b.2], len };
        self.ties.push(Tie { ends: [a.0, b.0], part: Some(part) });
        self
    }

    /// A number that counts all indices of an axis.
    pub fn size(&mut self, place: Place, of: End) -> &mut Axes {
        self.counts.push(Count { place, of, range: None });
        self
    }

    /// A number that counts some indices of an axis.
    pub fn count(&mut self, place: Place, of: End, range: Range<usize>) -> &mut Axes {
        self.counts.push(Count { place, of, range: Some(range) });
        self
    }

    /// Each axis of an input goes with one of an output.
    pub fn along(&mut self, pairs: impl IntoIterator<Item = (usize, usize)>) -> &mut Axes {
        for (x, y) in pairs {
            self.tie((Input(0), x), (Output(0), y));
        }
        self
    }

    /// The channels of a convolution from `x` to `y` with a weight of `[outs, units, ..]`, of which the axis of the
    /// units is `w`. Groups of one unit go whole, and the attribute `group` counts them; others all lose the same
    /// places. `None` when a size is not known.
    pub(crate) fn grouped(
        &mut self,
        groups: usize,
        [x, w, y]: [End; 3],
        units: Option<usize>,
        outs: Option<usize>,
    ) -> Option<&mut Axes> {
        if groups == 1 {
            return Some(self.tie(x, w));
        }
        let (units, outs) = (units?, outs?.checked_div(groups)?);
        if units == 1 {
            (0..outs).for_each(|k| _ = self.strided((x, 0, 1), (y, k, outs), groups));
            return Some(self.size(Place::Attr("group"), x));
        }
        for group in 0..groups {
            self.part((x, group * units), (w, 0), units).part((y, group * outs), (y, 0), outs);
        }
        Some(self)
    }

    /// The operator with its attributes counted anew, when any counts, after indices went. `sizes` are the numbers of
    /// its inputs and outputs.
    ///
    /// # Errors
    /// When an attribute is not the number that it should be.
    pub fn recount(&self, op: &Arc<dyn Op>, sizes: [usize; 2], left: &Left) -> Result<Option<Arc<dyn Op>>> {
        let mut attrs = op.attrs();
        let mut changed = false;
        for count in &self.counts {
            let Some(number) = left(count.of, count.range.as_ref()) else { continue };
            let number = i64::try_from(number).map_err(|_| Error::invalid("a size is too big"))?;
            match count.place {
                Place::Input(..) => continue,
                Place::Attr(name) => attrs.set(name, Attr::Int(number)),
                Place::Attrs(name, at) => {
                    let mut list = attrs.ints_or(name, &[])?;
                    let wrong = || Error::invalid(format!("attribute {name:?} has no element {at}"));
                    *list.get_mut(at).ok_or_else(wrong)? = number;
                    attrs.set(name, Attr::Ints(list));
                }
            }
            changed = true;
        }
        let def = op.def();
        let [inputs, outputs] = sizes;
        let reader = Reader { attrs: &attrs, version: def.since, inputs, outputs };
        changed.then(|| (def.read)(&reader)).transpose()
    }

    /// Those of an operator whose inputs are broadcast against each other to its outputs; `None` when a rank is
    /// not known.
    pub fn elementwise(inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        let mut axes = Axes::new();
        let rank = outputs.first()?.rank()?;
        for i in (0..inputs.len()).filter(|&i| inputs.get(i).is_some()) {
            axes.aligned(Input(i), inputs.rank(i)?, rank)?;
        }
        for (i, fact) in outputs.iter().enumerate().skip(1) {
            axes.aligned(Output(i), fact.rank()?, rank)?;
        }
        Some(axes)
    }

    /// The axes of a port go with those of the first output, the last with the last.
    fn aligned(&mut self, port: Port, rank: usize, out: usize) -> Option<&mut Axes> {
        let skipped = out.checked_sub(rank)?;
        (0..rank).for_each(|axis| _ = self.tie((port, axis), (Output(0), axis + skipped)));
        Some(self)
    }

    /// The axes of the first input and the first output when both hold the same elements in the same order.
    pub fn reshaped(x: &[Dim], y: &[Dim]) -> Axes {
        let mut axes = Axes::new();
        // Axes of size 1 are nowhere and everywhere.
        let long = |dims: &[Dim]| -> Vec<(usize, Dim)> {
            dims.iter().cloned().enumerate().filter(|(_, d)| *d != Dim::Is(1)).collect()
        };
        let (x, y) = (long(x), long(y));
        let (mut i, mut j) = (0, 0);
        while let Some((n, m)) = block(&x[i..], &y[j..], false) {
            axes.join(&x[i..i + n], &y[j..j + m]);
            (i, j) = (i + n, j + m);
        }
        let (mut x, mut y) = (&x[i..], &y[j..]);
        while let Some((n, m)) = block(x, y, true) {
            let ((left, mine), (right, yours)) = (x.split_at(x.len() - n), y.split_at(y.len() - m));
            axes.join(mine, yours);
            (x, y) = (left, right);
        }
        axes
    }

    /// Axes of the first input and of the first output that hold the same indices.
    fn join(&mut self, x: &[(usize, Dim)], y: &[(usize, Dim)]) {
        let parts = |port: Port, dims: &[(usize, Dim)]| -> Vec<(End, usize)> {
            dims.iter().map(|(axis, dim)| ((port, *axis), dim.size().unwrap_or(0))).collect()
        };
        match (x, y) {
            ([(a, _)], [(b, _)]) => _ = self.tie((Input(0), *a), (Output(0), *b)),
            ([(a, _)], many) => {
                self.folds.push(Fold { whole: (Input(0), *a), parts: parts(Output(0), many) });
            }
            (many, [(b, _)]) => {
                self.folds.push(Fold { whole: (Output(0), *b), parts: parts(Input(0), many) });
            }
            // Several into several others: none of them can lose an index.
            _ => {}
        }
    }
}

/// How many of the first axes of each (the last ones when `back`) hold the same indices; the fewest that do.
fn block(x: &[(usize, Dim)], y: &[(usize, Dim)], back: bool) -> Option<(usize, usize)> {
    let at = |dims: &[(usize, Dim)], i: usize| {
        let i = if back { dims.len().checked_sub(i + 1)? } else { i };
        dims.get(i).map(|d| d.1.clone())
    };
    let (first, second) = (at(x, 0)?, at(y, 0)?);
    if first.same(&second) {
        return Some((1, 1));
    }
    let (mut n, mut m) = (1, 1);
    let (mut a, mut b) = (first.size()?, second.size()?);
    while a != b {
        if a == 0 || b == 0 {
            return None;
        }
        if a < b {
            a = a.checked_mul(at(x, n)?.size()?)?;
            n += 1;
        } else {
            b = b.checked_mul(at(y, m)?.size()?)?;
            m += 1;
        }
    }
    Some((n, m))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(sizes: &[i64]) -> Vec<Dim> {
        sizes.iter().map(|&n| Dim::Is(n)).collect()
    }

    #[test]
    fn reshapes_tie_fold_and_pin() {
        let (n, t) = (Dim::named("n"), Dim::named("t"));
        let x = [vec![n.clone(), t.clone()], dims(&[384])].concat();
        let y = [vec![n.clone(), t.clone()], dims(&[12, 32])].concat();
        let split = Axes::reshaped(&x, &y);
        assert_eq!(split.ties.len(), 2);
        let parts = vec![((Output(0), 2), 12), ((Output(0), 3), 32)];
        assert_eq!(split.folds, [Fold { whole: (Input(0), 2), parts }]);
        let joined = Axes::reshaped(&y, &x);
        let parts = vec![((Input(0), 2), 12), ((Input(0), 3), 32)];
        assert_eq!(joined.folds, [Fold { whole: (Output(0), 2), parts }]);
        // A batch of which nothing is known, and a flattened image behind it.
        let flat = Axes::reshaped(
            &[vec![Dim::Unknown], dims(&[8, 4, 4])].concat(),
            &[vec![Dim::Unknown], dims(&[128])].concat(),
        );
        assert_eq!((flat.ties.len(), flat.folds.len(), flat.folds[0].parts.len()), (0, 1, 3));
        // Axes of size 1 come and go; several into several others are pinned.
        let pooled = Axes::reshaped(&dims(&[2, 64, 1, 1]), &dims(&[2, 64]));
        assert_eq!((pooled.ties.len(), pooled.folds.len()), (2, 0));
        let mixed = Axes::reshaped(&dims(&[3, 4, 6]), &dims(&[3, 8, 3]));
        assert_eq!((mixed.ties.len(), mixed.folds.len()), (1, 0));
        let batched = Axes::reshaped(&[vec![n, t], dims(&[6])].concat(), &dims(&[5, 2, 3]));
        assert_eq!((batched.ties.len(), batched.folds.len()), (0, 1));
        assert!(Axes::reshaped(&dims(&[0, 3]), &dims(&[3, 0])).folds.is_empty());
    }

    #[test]
    fn what_is_broadcast_is_aligned_at_the_end() {
        let facts = [
            Fact::tensor(crate::DType::F32, dims(&[2, 8, 4, 4])),
            Fact::tensor(crate::DType::F32, dims(&[8, 1, 1])),
        ];
        let inputs = [Some(&facts[0]), Some(&facts[1])];
        let axes = Axes::elementwise(&Facts::new(&inputs, 1), &facts[..1]).unwrap();
        assert_eq!(axes.ties.len(), 7);
        assert!(axes.ties.contains(&Tie { ends: [(Input(1), 0), (Output(0), 1)], part: None }));
        let unknown = [Fact::default()];
        assert!(Axes::elementwise(&Facts::new(&inputs, 1), &unknown).is_none());
    }
}
