//! Preparations before the weights are put in few bits: those that are asked for, or those that are measured to help.

use std::collections::HashMap;

use super::Goal;
use super::bits::Harms;
use super::codes::Codes;
use super::work::Work;
use crate::pass::Pass;
use crate::plan::Choice;
use crate::prepare::{Method, Preparations, decide};
use crate::quantize::coded::{Form, Rounding};
use crate::quantize::weight_only;
use crate::weights::Weight;
use crate::{Error, Result};

/// What is done to the weight at the input of a node of this name.
type Bits = HashMap<(String, usize), Choice>;

/// The model prepared as the goal says. `before` is the size of the original's file.
pub(super) fn prepare<'a>(mut work: Work<'a>, goal: &Goal, before: usize) -> Result<Work<'a>> {
    match &goal.prepare {
        Preparations::These(methods) => {
            for &method in methods {
                if method == Method::Rotate && goal.zeros.is_some() {
                    let what = "rotations would fill the zeros that are asked for; do without one of them";
                    return Err(Error::Plan(what.into()));
                }
                let what = format!("{method} for {:?} {:?} bytes", goal.ranges, goal.bytes(before));
                let chosen = work.chosen(&what, |work| {
                    let mut work = work.clone();
                    let bits = match method {
                        Method::Awq => bits(&mut work, goal, before)?,
                        _ => Bits::new(),
                    };
                    pass(&work, goal, method, &bits)
                })?;
                work.pass(&chosen)?;
            }
            Ok(work)
        }
        Preparations::Measured => measured(work, goal, before),
    }
}

fn pass(work: &Work, goal: &Goal, method: Method, bits: &Bits) -> Result<Pass> {
    let form = |weight: &Weight| {
        let form = match choice(bits, weight) {
            Choice::Keep | Choice::Int8Rows => return None,
            Choice::Int8Static | Choice::Int8Dynamic => Form { bits: 8, group: 0 },
            Choice::Bits(form) => form,
            Choice::Table(form) => form.codes,
        };
        Some((weight.node, form))
    };
    let forms = work.weights.iter().filter_map(form).collect();
    Ok(Pass::Prepare(decide(&work.base.graph, method, &forms, goal.ranges, &work.context())?))
}

/// The bits that the weights would get without any preparation: 8, or as few as the size asks for.
fn bits(work: &mut Work, goal: &Goal, before: usize) -> Result<Bits> {
    work.calibrate()?;
    let mut choices = work.defaults();
    if let Some(target) = goal.bytes(before).filter(|_| work.version >= weight_only::MIN_OPSET) {
        let eight = work.finish(work.build(&choices, &Codes::default())?.0)?;
        if work.judge.bytes(&eight)? > target {
            choices = Harms::new(work)?.choose(work, target)?;
        }
    }
    Ok(work.weights.iter().map(|w| (w.name.clone(), w.used.input)).zip(choices).collect())
}

fn choice(bits: &Bits, weight: &Weight) -> Choice {
    bits.get(&(weight.name.clone(), weight.used.input)).copied().unwrap_or(Choice::Keep)
}

/// Tries each preparation on top of those that were kept, and keeps those that bring the answers nearer to the
/// original's when the weights are in their bits.
fn measured<'a>(mut work: Work<'a>, goal: &Goal, before: usize) -> Result<Work<'a>> {
    let bits = bits(&mut work, goal, before)?;
    // Learning to round takes long, and says little about what comes before.
    let rounding = match goal.rounding {
        Rounding::Learned => Rounding::Sweep,
        other => other,
    };
    let distance = |work: &mut Work| -> Result<Option<f64>> {
        work.calibrate()?;
        let choices: Vec<Choice> = work.weights.iter().map(|w| choice(&bits, w)).collect();
        let made = work.make(&choices, rounding, goal.ranges)?;
        work.distance(&made)
    };
    let none = || {
        let what = "what preparations do cannot be measured without data; give some with --data";
        Error::Calibration(what.into())
    };
    let mut best = distance(&mut work)?.ok_or_else(none)?;
    for method in Method::ALL {
        if work.judge.out_of_time() {
            break;
        }
        if method == Method::Rotate && goal.zeros.is_some() {
            continue;
        }
        let mut tried = work.clone();
        match pass(&tried, goal, method, &bits).and_then(|pass| tried.pass(&pass)) {
            Ok(()) => {}
            Err(Error::Plan(why)) => {
                tracing::debug!("{why}");
                continue;
            }
            Err(other) => return Err(other),
        }
        work.judge.progress(&format!("measuring what {method} does"));
        let apart = distance(&mut tried)?.ok_or_else(none)?;
        tracing::info!("{method}: distance {apart:.6}, without it {best:.6}");
        if apart < best {
            (work, best) = (tried, apart);
        }
    }
    Ok(work)
}
