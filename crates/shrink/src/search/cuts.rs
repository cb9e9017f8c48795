//! What goes as a whole: channels until the model is as fast as it must be, and blocks.

use super::work::Work;
use super::{Part, Speed};
use crate::carry::Examples;
use crate::pass::Pass;
use crate::prune::blocks::{self, Bridge};
use crate::prune::choose::{Effort, Survey, choose};
use crate::{Error, Result};

/// Shares of the multiply-adds that stay, tried in turn until the model is fast enough.
const STAY: [f64; 7] = [0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1];
/// Batches of examples that channels are judged on.
const PROBE: usize = 2;
/// Rounds of cutting and refitting, when it is known how much goes.
const ROUNDS: usize = 2;

/// The calibration examples, which channels and blocks cannot be chosen without.
fn examples(work: &Work, what: &str) -> Result<Examples> {
    let examples = work.context().examples()?;
    match examples.is_empty() {
        true => {
            Err(Error::Calibration(format!("{what} cannot be chosen without data; give some with --data")))
        }
        false => Ok(examples),
    }
}

/// The channels without which there are so many times fewer multiply-adds.
pub(super) fn fewer(work: &Work, times: f64) -> Result<Pass> {
    let examples = examples(work, "channels")?;
    work.judge.progress("measuring what channels do");
    let effort = Effort { probe: PROBE, rounds: ROUNDS };
    Ok(Pass::Channels { groups: choose(&work.base.graph, &examples, work.cpu, 1.0 / times, effort)? })
}

/// The blocks without which the model does best.
pub(super) fn blocks(work: &Work, count: usize) -> Result<Pass> {
    work.judge.progress("looking for the blocks that matter least");
    let graph = &work.base.graph;
    let found = blocks::blocks(graph);
    if found.len() <= count {
        let what = format!("the model has {} blocks that could be left out; {count} are to go", found.len());
        return Err(Error::Plan(what));
    }
    let examples = examples(work, "blocks")?;
    let mut harm = |graph: &graph::Graph| -> Result<f64> {
        let mut model = work.base.clone();
        model.graph = graph.clone();
        Ok(work.judge.score(&model, Part::Probe)?.map_or(0.0, |score| score.distance))
    };
    let left_out = blocks::greedy(
        graph,
        &found,
        Bridge::Linear,
        count,
        f64::INFINITY,
        &examples.all()?,
        work.cpu,
        &mut harm,
    )?;
    Ok(Pass::Blocks { blocks: left_out.into_iter().map(|(cut, _)| cut).collect() })
}

/// Cuts channels until 8 bits are so many times faster than the original: as few as will do, as many as can go, and no
/// more than may be lost. Says what stood in the way when it is not fast enough.
pub(super) fn faster<'a>(
    mut work: Work<'a>,
    faster: f64,
    lose: Option<f64>,
) -> Result<(Work<'a>, Option<String>)> {
    let judge = work.judge;
    let speed = |work: &mut Work| -> Result<Option<Speed>> {
        work.calibrate()?;
        judge.speed(&work.eight_bits(lose)?.model)
    };
    // Sure to be fast enough, whatever the next measurement says.
    let enough = |speed: &Speed| speed.interval.0 >= faster;
    let Some(mut fastest) = speed(&mut work)?.filter(|speed| !enough(speed) && judge.can_calibrate()) else {
        return Ok((work, None));
    };
    judge.progress("measuring what channels do");
    let survey = Survey::new(&work.base.graph, &work.context().examples()?, work.cpu, PROBE)?;
    let uncut = work.clone();
    for stay in STAY {
        if judge.out_of_time() {
            break;
        }
        // When more is asked for than can go, what went before is as far as it gets.
        let Ok(groups) = survey.choose(stay) else { break };
        judge.progress(&format!("trying {:.0} % of the multiply-adds", 100.0 * stay));
        let mut cut = uncut.clone();
        cut.pass(&Pass::Channels { groups })?;
        if let Some(bound) = lose
            && let Some(score) = judge.score(&cut.base, Part::Search)?.filter(|score| score.loss() > bound)
        {
            let what = format!(
                "with {:.0} % of the multiply-adds, {} would fall by {:.4} on the examples of the search: channels stay \
                 that cost more than {bound:.4}, though --tune may win some of it back",
                100.0 * stay,
                score.metric,
                score.loss()
            );
            return Ok((work, Some(what)));
        }
        let Some(now) = speed(&mut cut)? else { break };
        tracing::debug!(stay, ?now, "speed");
        // Nothing goes for what may be noise.
        if enough(&now) || now.interval.0 > fastest.interval.1 {
            (work, fastest) = (cut, now);
        }
        if enough(&now) {
            break;
        }
    }
    Ok((work, None))
}
