//! What goes as a whole: channels until the model is as fast as it must be, and blocks.

use super::work::{Made, Work};
use super::{Goal, Part};
use crate::pass::Pass;
use crate::prune::blocks::{self, Bridge};
use crate::prune::choose::Survey;
use crate::{Error, Result};

/// Shares of the multiply-adds that stay, tried in turn until the model is fast enough.
const STAY: [f64; 7] = [0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1];
/// Batches of examples that channels are judged on.
const PROBE: usize = 2;

/// What channels cost and do in a model.
pub(super) struct Channels(Survey);

impl Channels {
    pub(super) fn new(work: &Work) -> Result<Channels> {
        work.judge.progress("measuring what channels do");
        let examples = work.context().examples()?;
        if examples.is_empty() {
            let what = "channels cannot be chosen without data; give some with --data";
            return Err(Error::Calibration(what.into()));
        }
        Ok(Channels(Survey::new(&work.base.graph, &examples, work.cpu, PROBE)?))
    }

    /// The pass after which so much of the multiply-adds stays.
    pub(super) fn pass(&self, stay: f64) -> Result<Pass> {
        Ok(Pass::Channels { groups: self.0.choose(stay)? })
    }
}

/// The blocks without which the model does best.
pub(super) fn blocks(work: &Work, count: usize) -> Result<Pass> {
    work.judge.progress("looking for the blocks that matter least");
    let graph = &work.base.graph;
    let found = blocks::blocks(graph)?;
    if found.len() <= count {
        let what = format!("the model has {} blocks that could be left out; {count} are to go", found.len());
        return Err(Error::Plan(what));
    }
    let examples = work.context().examples()?;
    let bridge = if examples.is_empty() { Bridge::None } else { Bridge::Linear };
    let mut harm = |graph: &graph::Graph| -> Result<f64> {
        let mut model = work.base.clone();
        model.graph = graph.clone();
        Ok(work.judge.score(&model, Part::Probe)?.map_or(0.0, |score| score.distance))
    };
    let left_out =
        blocks::greedy(graph, &found, bridge, count, f64::INFINITY, &examples, work.cpu, &mut harm)?;
    Ok(Pass::Blocks { blocks: left_out.into_iter().map(|(cut, _)| cut).collect() })
}

/// Cuts channels until 8 bits are so many times faster than the original: as few as will do. What is nearest is given
/// back when nothing is fast enough.
pub(super) fn faster<'a>(work: Work<'a>, made: Made, faster: f64, goal: &Goal) -> Result<(Work<'a>, Made)> {
    let judge = work.judge;
    let enough = |made: &Made| -> Result<bool> { Ok(judge.speed(&made.model)?.is_none_or(|s| s >= faster)) };
    if enough(&made)? || !judge.can_calibrate() {
        return Ok((work, made));
    }
    let channels = Channels::new(&work)?;
    let mut last = (work.clone(), made);
    for stay in STAY {
        if judge.out_of_time() {
            break;
        }
        // More than can go is asked for: what went before is as far as it gets.
        let Ok(pass) = channels.pass(stay) else { break };
        let mut smaller = work.clone();
        smaller.pass(&pass)?;
        smaller.calibrate()?;
        let made = smaller.eight_bits(goal.lose)?;
        let done = enough(&made)?;
        last = (smaller, made);
        if done {
            break;
        }
    }
    Ok(last)
}
