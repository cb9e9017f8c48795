//! Weights that are worth a product of two smaller ones: where a low rank in more bits does less harm than the whole
//! weight in the bits that the size allows it.

use std::collections::HashMap;

use graph::ValueId;

use super::codes::Candidate;
use super::work::Work;
use crate::Result;
use crate::factor::{Cut, Form, fits};
use crate::pass::Pass;
use crate::plan::Choice;
use crate::weights::weights;

/// Energies of the outputs of weights in their best directions, in descending order.
pub(super) type Spectra = HashMap<ValueId, Vec<f64>>;

/// Weights with more outputs than this are not looked at: their directions take too long to find.
pub(super) const WIDE: usize = 1024;
/// Ranks are multiples of this, so that codes fill bytes.
const STEP: usize = 8;
/// What rounding does to a product of two weights is more than what it does to one: once for each.
const FACTORS: f64 = 2.0;
/// What a low rank must at least spare of the harm, to be tried at all.
const GAIN: f64 = 0.8;

/// The weights that should have a low rank, when each is to have these bytes: `None` when there are none.
pub(super) fn worth(
    work: &Work,
    candidates: &[Candidate],
    chosen: &[usize],
    spectra: &Spectra,
) -> Result<Option<Pass>> {
    let graph = &work.base.graph;
    let all = weights(graph)?;
    let mut cuts = Vec::new();
    for (c, &at) in candidates.iter().zip(chosen) {
        let Some(spectrum) = spectra.get(&c.weight.value) else { continue };
        let Some(rank) = best(c, at, spectrum) else { continue };
        let form = Form::Rank(rank);
        if fits(graph, &all, c.weight, form).is_ok() {
            let weight = graph.value(c.weight.value).name.clone();
            cuts.push(Cut { node: c.weight.name.clone(), weight, form });
        }
    }
    Ok((!cuts.is_empty()).then_some(Pass::Rank { weights: cuts }))
}

/// The rank that does least harm within the bytes of an offer, when it does clearly less than the offer.
fn best(c: &Candidate, at: usize, spectrum: &[f64]) -> Option<usize> {
    let (rows, cols) = (c.layout.rows, c.layout.cols);
    let (_, now) = *c.offers.get(at)?;
    let all: f64 = spectrum.iter().sum();
    let mut found: Option<(f64, usize)> = None;
    for (choice, offer) in &c.offers {
        let Choice::Bits(form) = choice else { continue };
        let most = (1..=rows.min(cols) / STEP).map(|k| k * STEP);
        let fits = |rank: &usize| form.bytes(*rank, cols) + form.bytes(rows, *rank) <= now.bytes;
        let Some(rank) = most.take_while(fits).last() else { continue };
        let lost: f64 = spectrum.iter().skip(rank).sum::<f64>() / all.max(f64::MIN_POSITIVE);
        let harm = c.whole * lost + FACTORS * offer.harm;
        if harm < GAIN * now.harm && found.is_none_or(|(least, _)| harm < least) {
            found = Some((harm, rank));
        }
    }
    found.map(|(_, rank)| rank)
}

#[cfg(test)]
mod tests {
    use graph::op::{Reader, ramp};
    use graph::{Attrs, DType, Dim, Fact, Graph, Node};

    use super::*;
    use crate::allocate::Offer;
    use crate::matrix::Layout;
    use crate::quantize::coded;

    #[test]
    fn a_low_rank_is_worth_it_where_energy_lies_in_few_directions() {
        let mut graph = Graph::new("product");
        let x = graph.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(2), Dim::Is(64)])).unwrap();
        let w = graph.add_constant("w", ramp(&[64, 64]));
        let reader = Reader { attrs: &Attrs::new(), version: 13, inputs: 2, outputs: 1 };
        let node = Node::new(graph::ops::read("", "MatMul", &reader).unwrap(), vec![Some(x), Some(w)]);
        graph.add_with_outputs("product", node, 1, None).unwrap();
        let all = weights(&graph).unwrap();
        let layout = Layout::of(&graph, &all[0]).unwrap();
        let mut c = Candidate { weight: &all[0], layout, offers: Vec::new(), whole: 1.0 };
        c.offers = [(2, 0.4), (3, 0.1), (4, 0.02), (8, 0.0001)]
            .map(|(bits, harm)| {
                let form = coded::Form { bits, group: 0 };
                (Choice::Bits(form), Offer { bytes: form.bytes(64, 64), harm })
            })
            .into();
        let mut steep = vec![1e-4; 64];
        steep[..8].fill(1.0);
        // Eight directions in 8 bits take less than all in 2.
        assert_eq!(best(&c, 0, &steep), Some(8));
        assert_eq!(best(&c, 0, &[1.0; 64]), None, "energy in all directions");
        assert_eq!(best(&c, 3, &steep), None, "8 bits do no harm");
    }
}
