//! The values between a model's blocks, in which a model that is tuned is to be near to the original as well as in its
//! answers. (Romero et al., *FitNets: hints for thin deep nets*, 2015.)

use graph::run::Session;
use graph::{Attrs, DType, Graph, Tensor, ValueId};
use kernel::Cpu;
use learn::fit::Inputs;

use crate::Result;
use crate::prune::blocks::blocks;

/// A value of the changed graph, and what it is compared with.
#[derive(Debug)]
pub(super) struct Hint {
    pub own: ValueId,
    pub original: ValueId,
    /// The slices along an axis of the original that the changed graph still has, when it has not all.
    pub keep: Option<(usize, Vec<i64>)>,
}

impl Hint {
    /// Adds to the original what is compared.
    pub fn add(&self, original: &mut Graph) -> Result<ValueId> {
        let Some((axis, keep)) = &self.keep else { return Ok(self.original) };
        let keep = original.add_constant("hint", Tensor::new(&[keep.len()], keep)?);
        let attrs = Attrs::new().int("axis", *axis as i64);
        Ok(original.append("hint", "Gather", 13, &attrs, &[self.original, keep])?)
    }
}

/// The values between the original's blocks that the changed graph has too, by their names. Where slices along an axis
/// were cut away, those that are left are told by what they hold for some examples.
pub(super) fn hints(
    graph: &Graph,
    original: &Graph,
    outputs: &[ValueId],
    examples: &Inputs,
    cpu: &Cpu,
) -> Result<Vec<Hint>> {
    let mut found = Vec::new();
    for block in blocks(original) {
        let theirs = original.value(block.output);
        let Some(own) = graph.find(&theirs.name).filter(|own| !outputs.contains(own)) else { continue };
        let made = graph.producer(own).is_some() && graph.constant(own).is_none();
        if made
            && theirs.fact.dtype() == Some(DType::F32)
            && graph.value(own).fact.dtype() == Some(DType::F32)
        {
            found.push((own, block.output));
        }
    }
    let run = |graph: &Graph, values: Vec<ValueId>| {
        let mut graph = graph.clone();
        graph.outputs = values;
        graph::tidy::run(&mut graph, graph::tidy::RUN, cpu)?;
        let session = Session::new(graph, cpu)?;
        session.run(examples.iter().map(|(name, datum)| (name.as_str(), datum.clone())).collect())
    };
    let own = run(graph, found.iter().map(|f| f.0).collect())?;
    let theirs = run(original, found.iter().map(|f| f.1).collect())?;
    let mut hints = Vec::new();
    for ((&(value, from), own), theirs) in found.iter().zip(&own).zip(&theirs) {
        let (own, theirs) = (own.tensor()?, theirs.tensor()?);
        let cut: Vec<usize> = match own.rank() == theirs.rank() {
            true => (0..own.rank()).filter(|&a| own.shape()[a] != theirs.shape()[a]).collect(),
            false => continue,
        };
        let keep = match cut.as_slice() {
            [] => None,
            &[axis] if axis > 0 => match kept(own, theirs, axis)? {
                Some(keep) => Some((axis, keep)),
                None => continue,
            },
            _ => continue,
        };
        hints.push(Hint { own: value, original: from, keep });
    }
    Ok(hints)
}

/// For each slice of the first tensor that of the second which is nearest, when these are different ones in the same
/// order.
fn kept(own: &Tensor, theirs: &Tensor, axis: usize) -> Result<Option<Vec<i64>>> {
    let (less, all) = (own.shape()[axis], theirs.shape()[axis]);
    if less >= all {
        return Ok(None);
    }
    let inner: usize = own.shape()[axis + 1..].iter().product();
    let (own, theirs) = (own.as_slice::<f32>()?, theirs.as_slice::<f32>()?);
    let outer = own.len() / (less * inner).max(1);
    let mut keep: Vec<i64> = Vec::new();
    for a in 0..less {
        let apart = |b: usize| -> f64 {
            let rows = (0..outer).map(|o| {
                let (x, y) =
                    (&own[(o * less + a) * inner..][..inner], &theirs[(o * all + b) * inner..][..inner]);
                x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
            });
            rows.sum()
        };
        let least = keep.last().map_or(0, |last| *last as usize + 1);
        // Enough are left for the slices that follow.
        let nearest = (least..=all - (less - a)).map(|b| (apart(b), b)).min_by(|a, b| a.0.total_cmp(&b.0));
        match nearest {
            Some((_, b)) => keep.push(b as i64),
            None => return Ok(None),
        }
    }
    Ok(Some(keep))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_that_are_left_are_told_by_what_they_hold() {
        let slice = |i: usize| (0..6).map(move |k| ((i * 7 + k * 5) % 11) as f32);
        let tensor = |picks: &[usize], off: f32| {
            let rows = [0, 100]
                .into_iter()
                .flat_map(|row| picks.iter().flat_map(move |&i| slice(i).map(move |x| x + row as f32 + off)));
            Tensor::new(&[2, picks.len(), 6], &rows.collect::<Vec<f32>>()).unwrap()
        };
        let all = tensor(&[0, 1, 2, 3, 4], 0.0);
        for picks in [&[0, 3][..], &[1, 2, 4], &[4], &[0, 1, 2, 3]] {
            let want: Vec<i64> = picks.iter().map(|&i| i as i64).collect();
            // What is left needs not be quite the same.
            assert_eq!(kept(&tensor(picks, 0.2), &all, 1).unwrap(), Some(want));
        }
        assert_eq!(kept(&all, &all, 1).unwrap(), None);
        // The order stays, and each is taken once.
        assert_eq!(kept(&tensor(&[3, 3, 3], 0.0), &all, 1).unwrap().unwrap().len(), 3);
    }
}
