//! Which weights may become zero together, and the masks that follow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::matrix::Matrix;

/// The shape that zeros have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Pattern {
    /// Anywhere in the matrix.
    Anywhere,
    /// As many in each row.
    Rows,
    /// `keep` of each `of` neighbours in a row stay: 2:4, 4:8.
    Neighbours {
        /// How many stay.
        keep: usize,
        /// Of so many.
        of: usize,
    },
    /// Blocks of so many rows and columns: 4x1, 16x1.
    Blocks {
        /// Rows: outputs.
        rows: usize,
        /// Columns: inputs.
        cols: usize,
    },
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Anywhere => f.write_str("anywhere"),
            Pattern::Rows => f.write_str("rows"),
            Pattern::Neighbours { keep, of } => write!(f, "{keep}:{of}"),
            Pattern::Blocks { rows, cols } => write!(f, "{rows}x{cols}"),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Pattern, String> {
        text.parse()
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let pair = |sign| {
            let (a, b) = text.split_once(sign)?;
            let number = |t: &str| t.parse().ok().filter(|n| (1..=1024).contains(n));
            Some((number(a)?, number(b)?))
        };
        match (text, pair(':'), pair('x')) {
            ("anywhere", ..) => Ok(Pattern::Anywhere),
            ("rows", ..) => Ok(Pattern::Rows),
            (_, Some((keep, of)), _) if keep <= of => Ok(Pattern::Neighbours { keep, of }),
            (_, _, Some((rows, cols))) => Ok(Pattern::Blocks { rows, cols }),
            _ => Err(format!("{text:?} is no pattern of zeros; say anywhere, rows, 2:4 or 4x1")),
        }
    }
}

impl Pattern {
    /// Which elements stay, row by row: those with the greatest scores. `share` of all go (what is asked for is met
    /// to the nearest number); with [`Pattern::Neighbours`] the pattern says how many. Of equal scores the first goes;
    /// one that is not a number stays.
    pub fn mask(self, scores: &Matrix, share: f64) -> Vec<bool> {
        let (rows, cols) = (scores.rows, scores.cols);
        let mut mask = vec![true; rows * cols];
        match self {
            Pattern::Anywhere => {
                let all: Vec<usize> = (0..rows * cols).collect();
                drop_least(&mut mask, &all, |&k| scores.data[k], count(all.len(), share));
            }
            Pattern::Rows => {
                for row in 0..rows {
                    let all: Vec<usize> = (row * cols..(row + 1) * cols).collect();
                    drop_least(&mut mask, &all, |&k| scores.data[k], count(cols, share));
                }
            }
            Pattern::Neighbours { keep, of } => {
                for row in 0..rows {
                    for start in (0..cols).step_by(of.max(1)) {
                        let all: Vec<usize> =
                            (start..(start + of).min(cols)).map(|j| row * cols + j).collect();
                        // At the ragged end as many go as in any other group, as far as there are so many.
                        let go = (of - keep.min(of)).min(all.len());
                        drop_least(&mut mask, &all, |&k| scores.data[k], go);
                    }
                }
            }
            Pattern::Blocks { rows: high, cols: wide } => {
                let (high, wide) = (high.max(1), wide.max(1));
                let across = cols.div_ceil(wide);
                let blocks: Vec<usize> = (0..rows.div_ceil(high) * across).collect();
                let cells = |block: usize| {
                    let (top, left) = (block / across * high, block % across * wide);
                    let columns = left..(left + wide).min(cols);
                    (top..(top + high).min(rows))
                        .flat_map(move |i| columns.clone().map(move |j| i * cols + j))
                };
                let mean = |&block: &usize| {
                    let sum: f32 = cells(block).map(|k| scores.data[k].powi(2)).sum();
                    sum / cells(block).count().max(1) as f32
                };
                let mut whole = vec![true; blocks.len()];
                drop_least(&mut whole, &blocks, mean, count(blocks.len(), share));
                for block in blocks.into_iter().filter(|&b| !whole[b]) {
                    cells(block).for_each(|k| mask[k] = false);
                }
            }
        }
        mask
    }
}

fn count(all: usize, share: f64) -> usize {
    (all as f64 * share.clamp(0.0, 1.0)).round() as usize
}

fn drop_least(mask: &mut [bool], all: &[usize], score: impl Fn(&usize) -> f32, go: usize) {
    let mut order: Vec<(f32, usize)> = all.iter().map(|k| (score(k), *k)).collect();
    order.iter_mut().filter(|o| o.0.is_nan()).for_each(|o| o.0 = f32::INFINITY);
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    order.iter().take(go).for_each(|&(_, k)| mask[k] = false);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(rows: usize, cols: usize) -> Matrix {
        Matrix::new(rows, cols, (0..rows * cols).map(|i| (i * 37 % 101) as f32).collect())
    }

    #[test]
    fn as_many_go_as_are_asked_for() {
        let s = scores(9, 14);
        let gone = |mask: &[bool]| mask.iter().filter(|keep| !**keep).count();
        assert_eq!(gone(&Pattern::Anywhere.mask(&s, 0.5)), 63);
        let mask = Pattern::Rows.mask(&s, 0.5);
        assert!(mask.chunks(14).all(|row| gone(row) == 7));
        let mask = "2:4".parse::<Pattern>().unwrap().mask(&s, 0.9);
        assert!(
            mask.chunks(14).all(|row| row[..12].chunks(4).all(|g| gone(g) == 2) && gone(&row[12..]) == 2)
        );
        let mask = "4x1".parse::<Pattern>().unwrap().mask(&s, 0.5);
        for j in 0..14 {
            assert!((0..2).all(|b| (1..4).all(|i| mask[(4 * b + i) * 14 + j] == mask[4 * b * 14 + j])));
        }
        assert_eq!(gone(&Pattern::Rows.mask(&Matrix::zeros(3, 8), 0.25)), 6);
        assert_eq!(gone(&Pattern::Anywhere.mask(&s, 2.0)), 126);
        assert!(Pattern::Blocks { rows: 16, cols: 3 }.mask(&scores(0, 5), 0.5).is_empty());
    }

    #[test]
    fn the_least_go_and_what_is_no_number_stays() {
        let s = Matrix::new(1, 5, vec![3.0, f32::NAN, 1.0, 2.0, 1.0]);
        assert_eq!(Pattern::Rows.mask(&s, 0.6), [true, true, false, false, false]);
        assert_eq!(Pattern::Rows.mask(&s, 0.2), [true, true, false, true, true]);
    }

    #[test]
    fn patterns_are_written_as_they_are_read() {
        for text in ["anywhere", "rows", "2:4", "8:16", "16x1"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        for bad in ["", "4:2", "0:4", "x1", "2:", "1x0", "-1:4"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
