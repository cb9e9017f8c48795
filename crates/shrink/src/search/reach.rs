//! What can be had: the smallest file within a loss, the file nearest to a goal that cannot be met, the curve of sizes.

use graph::Model;

use super::bits::Harms;
use super::work::{Made, Work};
use super::{Goal, Part, Point, Score};
use crate::Result;

/// Sizes of the curve, in times smaller than the original.
const CURVE: [f64; 8] = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0];
/// What an interval of 95 % with one side is of half of that with two: 1.645 to 1.960 standard errors.
const ONE_SIDE: f64 = 0.84;
/// Most steps of the bisections.
const STEPS: usize = 5;

/// Files of few bits that can be made of a model.
pub(super) struct Reach<'a> {
    pub(super) work: &'a Work<'a>,
    pub(super) harms: &'a Harms<'a>,
    pub(super) goal: &'a Goal,
}

impl Reach<'_> {
    /// The file that has at most so many bytes, or as few as can be.
    pub(super) fn of_size(&self, bytes: usize) -> Result<Made> {
        let choices = self.harms.choose(self.work, bytes)?;
        self.work.make(&choices, self.goal.rounding, self.goal.ranges)
    }

    fn bytes(&self, made: &Made) -> Result<usize> {
        self.work.judge.bytes(&made.model)
    }

    /// Is the loss within the bound in 19 of 20 cases? The interval is of 95 % with two sides, this asks for one.
    fn holds(&self, model: &Model, bound: f64) -> Result<bool> {
        let safe = |s: Score| s.loss() + ONE_SIDE * (s.lost.1 - s.loss()).max(0.0) <= bound;
        Ok(self.work.judge.score(model, Part::Search)?.is_none_or(safe))
    }

    /// The smallest file whose loss is within the bound; `start` when there is none smaller.
    pub(super) fn smallest(&self, bound: f64, start: Made) -> Result<Made> {
        let least = self.work.make(&self.harms.smallest(self.work), self.goal.rounding, self.goal.ranges)?;
        if self.holds(&least.model, bound)? {
            return Ok(least);
        }
        let (low, high) = (self.bytes(&least)?, self.bytes(&start)?);
        Ok(self.between(bound, low, high)?.unwrap_or(start))
    }

    /// The smallest file of more than `low` and less than `high` bytes whose loss is within the bound.
    fn between(&self, bound: f64, low: usize, high: usize) -> Result<Option<Made>> {
        let (mut low, mut high) = ((low as f64).ln(), (high as f64).ln());
        let mut best = None;
        for step in 0..STEPS {
            if self.work.judge.out_of_time() {
                break;
            }
            let middle = 0.5 * (low + high);
            let what = format!("looking for the smallest file within the loss, step {} of {STEPS}", step + 1);
            self.work.judge.progress(&what);
            let made = self.of_size(middle.exp() as usize)?;
            if self.holds(&made.model, bound)? {
                (best, high) = (Some(made), middle);
            } else {
                low = middle;
            }
        }
        Ok(best)
    }

    /// When the loss of a file of `target` bytes is too great: which size could be had within it, in words. That of 8
    /// bits, of `eight` bytes, is known.
    pub(super) fn nearest(
        &self,
        model: &Model,
        (target, eight): (usize, usize),
        before: usize,
    ) -> Result<Option<String>> {
        let Some(bound) = self.goal.lose else { return Ok(None) };
        let lost = self.work.judge.score(model, Part::Search)?;
        if lost.is_none_or(|score| score.loss() <= bound) {
            return Ok(None);
        }
        let (bytes, what) = match self.between(bound, target, eight)? {
            Some(made) => (self.bytes(&made)?, "the nearest that was found within the loss"),
            None => (eight, "nothing nearer than 8 bits was found within the loss"),
        };
        Ok(Some(format!("{what}: {:.2} times smaller", before as f64 / bytes.max(1) as f64)))
    }

    /// Files of many sizes, measured on the examples that nothing is decided on; the smallest first.
    pub(super) fn frontier(&self, before: usize, eight: &Model) -> Result<Vec<Point>> {
        let judge = self.work.judge;
        let mut points = vec![self.point("int8".into(), eight)?];
        for times in CURVE {
            if judge.out_of_time() {
                break;
            }
            judge.progress(&format!("the curve of sizes: {times} times smaller"));
            let made = self.of_size((before as f64 / times) as usize)?;
            let point = self.point(format!("{times}x"), &made.model)?;
            // Beyond the smallest there are only more of the same.
            if points.iter().any(|p| p.bytes == point.bytes) {
                break;
            }
            points.push(point);
        }
        points.sort_by_key(|p| p.bytes);
        Ok(points)
    }

    fn point(&self, name: String, model: &Model) -> Result<Point> {
        let judge = self.work.judge;
        let score = judge.score(model, Part::Verify)?;
        Ok(Point { name, bytes: judge.bytes(model)?, score, speed: judge.speed(model)? })
    }
}
