//! Weights in few bits: a code for each element, a scale and a zero point for each group of neighbours in a row.

use std::fmt;
use std::str::FromStr;

use kernel::Cpu;
use serde::{Deserialize, Serialize};

use super::descend::{descend, products, stretch};
use super::grid::{Grid, Kind, search};
use crate::Result;
use crate::gram::{DAMP, Gram};
use crate::matrix::Matrix;
use crate::obs::{Zeros, sweep};

/// The form of a weight in few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// Bits of a code: 1 to 8.
    pub bits: u32,
    /// Neighbours in a row that share a scale and a zero point; 0 for the whole row.
    pub group: usize,
}

impl Form {
    /// Length of the groups of a row of so many elements.
    pub fn group_of(&self, cols: usize) -> usize {
        if self.group == 0 { cols.max(1) } else { self.group.min(cols.max(1)) }
    }

    /// Groups of a row of so many elements.
    pub fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group_of(cols))
    }

    /// Bytes of a weight in this form: codes, f32 scales, and zero points of as many bits as the codes.
    pub fn bytes(&self, rows: usize, cols: usize) -> usize {
        let grids = rows * self.groups(cols);
        (rows * cols * self.bits as usize).div_ceil(8) + 4 * grids + (grids * self.bits as usize).div_ceil(8)
    }
}

/// A weight in few bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    /// Its form.
    pub form: Form,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// A code for each element, row by row.
    pub codes: Vec<u8>,
    /// A scale for each group, row by row.
    pub scales: Vec<f32>,
    /// The code of 0 for each group, row by row.
    pub zeros: Vec<u8>,
}

impl Coded {
    /// Codes, zeros and scales as bytes.
    pub fn write(&self) -> Vec<u8> {
        let scales = self.scales.iter().flat_map(|s| s.to_le_bytes());
        self.codes.iter().copied().chain(self.zeros.iter().copied()).chain(scales).collect()
    }

    /// What [`Coded::write`] wrote of a weight of this form and size; `None` when it did not.
    pub fn read(form: Form, rows: usize, cols: usize, bytes: &[u8]) -> Option<Coded> {
        let (elements, groups) = (rows.checked_mul(cols)?, rows.checked_mul(form.groups(cols))?);
        let (codes, rest) = bytes.split_at_checked(elements)?;
        let (zeros, rest) = rest.split_at_checked(groups)?;
        let (scales, left) = rest.as_chunks::<4>();
        let most = (1u32 << form.bits.min(8)) - 1;
        let sound = left.is_empty()
            && scales.len() == groups
            && codes.iter().chain(zeros).all(|&code| u32::from(code) <= most);
        let scales = scales.iter().map(|s| f32::from_le_bytes(*s)).collect();
        sound.then(|| Coded { form, rows, cols, codes: codes.to_vec(), scales, zeros: zeros.to_vec() })
    }

    /// The weight in f32.
    pub fn decode(&self) -> Matrix {
        let group = self.form.group_of(self.cols);
        let groups = self.form.groups(self.cols);
        let at = |k: usize, code: &u8| {
            let g = k / self.cols * groups + k % self.cols / group;
            f32::from(i16::from(*code) - i16::from(self.zeros[g])) * self.scales[g]
        };
        Matrix::new(
            self.rows,
            self.cols,
            self.codes.iter().enumerate().map(|(k, code)| at(k, code)).collect(),
        )
    }

    /// Weights whose rows follow one another, in one: the groups of a convolution. All have the same form and columns.
    pub fn stack(parts: Vec<Coded>) -> Option<Coded> {
        parts.into_iter().reduce(|mut all, part| {
            all.rows += part.rows;
            all.codes.extend(part.codes);
            all.scales.extend(part.scales);
            all.zeros.extend(part.zeros);
            all
        })
    }

    /// Any weight in this form, another one for each seed: to find out how many bytes it takes in a file.
    pub fn sample(form: Form, rows: usize, cols: usize, seed: usize) -> Coded {
        let grids = rows * form.groups(cols);
        let mut state = seed as u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as u32
        };
        let mask = (1u32 << form.bits) - 1;
        Coded {
            form,
            rows,
            cols,
            codes: (0..rows * cols).map(|_| (next() & mask) as u8).collect(),
            scales: (0..grids).map(|_| 1.0 + next() as f32).collect(),
            zeros: (0..grids).map(|_| (next() & mask) as u8).collect(),
        }
    }

    fn new(form: Form, w: &Matrix, grids: &[Grid], fixed: &Matrix) -> Coded {
        let (group, groups) = (form.group_of(w.cols), form.groups(w.cols));
        let code = |(k, &x): (usize, &f32)| grids[k / w.cols * groups + k % w.cols / group].code(x) as u8;
        Coded {
            form,
            rows: w.rows,
            cols: w.cols,
            codes: fixed.data.iter().enumerate().map(code).collect(),
            scales: grids.iter().map(|g| g.scale).collect(),
            zeros: grids.iter().map(|g| g.zero as u8).collect(),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            0 => write!(f, "w{}", self.bits),
            group => write!(f, "w{}-g{group}", self.bits),
        }
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Form, String> {
        let (bits, group) = text.split_once("-g").unwrap_or((text, "0"));
        let bits = bits.strip_prefix('w').and_then(|b| b.parse().ok()).filter(|b| (1..=8).contains(b));
        let group = group.parse().ok().filter(|g| (0..=1 << 20).contains(g));
        match (bits, group) {
            (Some(bits), Some(group)) => Ok(Form { bits, group }),
            _ => Err(format!("{text:?} is no form of a weight; say w4 or w4-g128, for 1 to 8 bits")),
        }
    }
}

/// How the grid of a group is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ranges {
    /// From the least to the greatest weight.
    MinMax,
    /// Searched for the least error, weighed by the importance of the inputs when it is known.
    #[default]
    Searched,
}

/// Times that scales are fitted to the codes, and codes to the scales, after a sweep.
pub(super) const STRETCHES: usize = 2;

/// How weights go to their grids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// Each to the nearest code.
    Nearest,
    /// Column by column, the free ones making up for the errors: GPTQ, columns in the order of falling importance, and
    /// biases take what is lost on the mean.
    #[default]
    Sweep,
    /// GPTQ as it was published, for comparison: columns in their own order, biases left alone. Tables are swept as
    /// ever. Frantar et al., "GPTQ" (2022).
    Gptq,
    /// That, and then all codes of the model together, by gradients: see [`learned`](super::learned).
    Learned,
}

/// The grids of all groups of a weight. `importance` has a number for each column, or is empty.
pub fn grids(cpu: &Cpu, w: &Matrix, importance: &[f64], form: Form, ranges: Ranges) -> Vec<Grid> {
    let (group, groups) = (form.group_of(w.cols), form.groups(w.cols));
    let mut grids = vec![Grid::from_range(0.0, 0.0, Kind::unsigned(form.bits)); w.rows * groups];
    cpu.pool().for_chunks_mut(&mut grids, groups.max(1), |row, out| {
        for (g, grid) in out.iter_mut().enumerate() {
            let columns = g * group..((g + 1) * group).min(w.cols);
            let part = &w.row(row)[columns.clone()];
            *grid = match ranges {
                Ranges::Searched => search(cpu, part, importance.get(columns).unwrap_or_default(), form.bits),
                Ranges::MinMax => {
                    let (low, high) = part.iter().fold((0f32, 0f32), |(l, h), &w| (l.min(w), h.max(w)));
                    Grid::from_range(low, high, Kind::unsigned(form.bits))
                }
            };
        }
    });
    grids
}

/// Each element goes to the nearest code. `importance` has a number for each column, or is empty.
pub fn nearest(cpu: &Cpu, w: &Matrix, importance: &[f64], form: Form, ranges: Ranges) -> Coded {
    Coded::new(form, w, &grids(cpu, w, importance, form, ranges), w)
}

/// Columns go to codes one after the other, and the free ones make up for the errors: GPTQ on grids that were found
/// before the sweep, so that the result is an ordinary weight in groups. `published` leaves columns in their own
/// order and codes as the sweep left them; else columns go in the order of falling importance, and then codes move and
/// the scales of searched ranges stretch as long as the outputs' error falls. Elements that are 0 in `w` stay 0 when `keep_zeros` is set.
///
/// # Errors
/// When the statistics cannot be factored.
pub fn gptq(
    cpu: &Cpu,
    w: &Matrix,
    gram: &Gram,
    form: Form,
    ranges: Ranges,
    published: bool,
    keep_zeros: bool,
) -> Result<Coded> {
    let importance = gram.importance();
    let mut grids = grids(cpu, w, &importance, form, ranges);
    let mut order: Vec<usize> = (0..w.cols).collect();
    if !published {
        order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]).then(a.cmp(&b)));
    }
    let factor = gram.inverse_factor(DAMP, &order)?;
    let (group, groups) = (form.group_of(w.cols), form.groups(w.cols));
    let mask: Vec<bool> = if keep_zeros { w.data.iter().map(|x| *x != 0.0).collect() } else { Vec::new() };
    let zeros = if keep_zeros { Zeros::Mask(&mask) } else { Zeros::Free };
    let mut fixed = w.clone();
    let at = |row: usize, col: usize| row * groups + col / group;
    sweep(cpu, &mut fixed, &factor, &order, zeros, &|row, col, x| grids[at(row, col)].round(x));
    if !published {
        let products = products(gram, DAMP);
        for round in 0..=STRETCHES {
            descend(cpu, w, &mut fixed, &products, &|row, col, x, others| {
                let free = !keep_zeros || w.row(row)[col] != 0.0;
                if free { grids[at(row, col)].round(x) } else { others[col] }
            });
            if round < STRETCHES && ranges == Ranges::Searched {
                let factors = stretch(cpu, w, &mut fixed, &products, group);
                grids.iter_mut().zip(factors).for_each(|(grid, factor)| grid.scale *= factor);
            }
        }
    }
    Ok(Coded::new(form, w, &grids, &fixed))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::gram::tests::{cpu, known_gram, known_weights};

    fn relative(gram: &Gram, old: &Matrix, new: &Matrix) -> f64 {
        let (harm, energy) = gram.harm(&cpu(), old, new);
        harm / energy
    }

    #[test]
    fn the_sweep_gives_the_handbooks_codes() {
        // The handbook's grid is symmetric with 7 codes and columns in natural order.
        let (gram, w) = (known_gram(), known_weights());
        let order: Vec<usize> = (0..8).collect();
        let factor = gram.inverse_factor(DAMP, &order).unwrap();
        let scale = [1.0f32 / 3.0, 0.25];
        let code = |row: usize, x: f32| (x / scale[row]).round_ties_even().clamp(-3.0, 3.0);
        let plain = Matrix::new(2, 8, (0..16).map(|k| code(k / 8, w.data[k]) * scale[k / 8]).collect());
        assert!((relative(&gram, &w, &plain) - 0.00617435668).abs() < 1e-6);
        let mut swept = w.clone();
        sweep(&cpu(), &mut swept, &factor, &order, Zeros::Free, &|row, _, x| code(row, x) * scale[row]);
        assert!((relative(&gram, &w, &swept) - 0.00569362496).abs() < 1e-6);
        let codes: Vec<f32> =
            swept.data.iter().enumerate().map(|(k, x)| (x / scale[k / 8]).round()).collect();
        assert_eq!(codes[..8], [-3.0, 2.0, 3.0, -1.0, -2.0, -3.0, 0.0, 3.0]);
        assert_eq!(codes[8..], [1.0, 2.0, -3.0, 3.0, 3.0, -3.0, 2.0, 1.0]);
    }

    /// Inputs that hang together, some of them much greater than others, and a weight.
    pub(crate) fn inputs(rows: usize, n: usize, samples: usize) -> (Vec<f32>, Matrix) {
        let mut seed = 7u64;
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let mix: Vec<f32> = (0..n * 16).map(|_| next()).collect();
        let mut x = vec![0f32; samples * n];
        for row in x.chunks_mut(n) {
            let hidden: Vec<f32> = (0..16).map(|_| next()).collect();
            for (j, v) in row.iter_mut().enumerate() {
                let common: f32 = hidden.iter().zip(&mix[j * 16..]).map(|(a, b)| a * b).sum();
                *v = (common + 0.3 * next()) * if j % 37 == 5 { 12.0 } else { 1.0 };
            }
        }
        (x, Matrix::new(rows, n, (0..rows * n).map(|_| next() + next() + next()).collect()))
    }

    /// What is kept of such inputs, and a weight.
    pub(crate) fn layer(rows: usize, n: usize, samples: usize) -> (Gram, Matrix) {
        let (x, w) = inputs(rows, n, samples);
        let mut gram = Gram::new(n);
        gram.add(&cpu(), &x);
        (gram, w)
    }

    #[test]
    fn searched_grids_with_a_sweep_beat_all_else() {
        let (gram, w) = layer(48, 160, 2000);
        for bits in [2, 3, 4] {
            let form = Form { bits, group: 64 };
            let of = |coded: Coded| relative(&gram, &w, &coded.decode());
            let importance = gram.importance();
            let plain = of(nearest(&cpu(), &w, &[], form, Ranges::MinMax));
            let weighed = of(nearest(&cpu(), &w, &importance, form, Ranges::Searched));
            let swept = of(gptq(&cpu(), &w, &gram, form, Ranges::MinMax, false, false).unwrap());
            let best = of(gptq(&cpu(), &w, &gram, form, Ranges::Searched, false, false).unwrap());
            let published = of(gptq(&cpu(), &w, &gram, form, Ranges::MinMax, true, false).unwrap());
            assert!(weighed < 0.6 * plain, "{bits}: {weighed} {plain}");
            assert!(swept < 0.6 * plain, "{bits}: {swept} {plain}");
            assert!(best < swept && best < 0.6 * weighed, "{bits}: {best} {swept} {weighed}");
            assert!(published < plain && best < 0.5 * published, "{bits}: {best} {published} {plain}");
        }
    }

    #[test]
    fn forms_are_written_as_they_are_read() {
        for form in [Form { bits: 3, group: 0 }, Form { bits: 8, group: 128 }] {
            assert_eq!(form.to_string().parse(), Ok(form));
        }
        for bad in ["", "w", "w0", "w9", "4", "w4-g", "w4-g-1", "w4g32"] {
            assert!(bad.parse::<Form>().is_err(), "{bad}");
        }
    }

    #[test]
    fn zeros_are_kept_and_codes_fit() {
        let (gram, mut w) = layer(8, 100, 500);
        w.data.iter_mut().step_by(3).for_each(|x| *x = 0.0);
        for (bits, group) in [(1, 0), (3, 32), (8, 0), (4, 1000)] {
            let form = Form { bits, group };
            let coded = gptq(&cpu(), &w, &gram, form, Ranges::Searched, false, true).unwrap();
            assert!(coded.codes.iter().all(|&c| u32::from(c) < 1 << bits));
            assert_eq!(coded.scales.len(), 8 * form.groups(100));
            let back = coded.decode();
            assert!(back.data.iter().step_by(3).all(|x| *x == 0.0));
        }
        assert_eq!(Form { bits: 3, group: 32 }.groups(100), 4);
        assert_eq!(Form { bits: 4, group: 0 }.bytes(10, 100), 500 + 40 + 5);
    }
}
