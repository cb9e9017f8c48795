//! Examples that are no table: images and arrays, one after the other.

use std::collections::HashMap;

use kernel::Cpu;
use learn::Input;
use learn::data::{Dataset, Target};

use super::{All, Request, Verdict};
use crate::eval::name_of;
use crate::features::print;

/// Examples that are decoded at once.
const PART: usize = 64;

/// Reads all examples; of those that are the same the first stays.
pub(super) fn scan(data: &dyn Dataset, request: &Request, cpu: &Cpu) -> All {
    let mut first: HashMap<[u8; 32], u32> = HashMap::new();
    let (mut verdicts, mut answers, mut contradictions) = (Vec::new(), Vec::new(), 0);
    let rows: Vec<usize> = (0..data.len()).collect();
    for part in rows.chunks(PART) {
        let prints = cpu.pool().map(part.len(), |i| data.get(part[i]).map(|example| print(&example.input)));
        for (&row, print) in part.iter().zip(prints) {
            answers.push(match data.target(row) {
                Target::Class(class) => class as u32,
                _ => u32::MAX,
            });
            verdicts.push(match print {
                Err(_) => Verdict::Unreadable,
                Ok(print) => match *first.entry(print).or_insert(row as u32) {
                    of if of as usize == row => Verdict::Kept,
                    of => {
                        contradictions += usize::from(answers[of as usize] != answers[row]);
                        Verdict::Same(of)
                    }
                },
            });
        }
        (request.progress)(&format!("{} of {} examples read", verdicts.len(), data.len()));
    }
    let names = data.classes().map(<[String]>::to_vec).unwrap_or_default();
    let describe = data.describe();
    All { describe, verdicts, answers, names, contradictions, starts: Vec::new() }
}

/// What these examples are called.
pub(super) fn told(data: &dyn Dataset, rows: &[usize]) -> Vec<(String, Option<String>)> {
    let text = |row: usize| match data.get(row).ok()?.input {
        Input::Text(text) => Some(text),
        Input::Pair(a, b) => Some(format!("{a} | {b}")),
        _ => None,
    };
    rows.iter().map(|&row| (name_of(data, row), text(row))).collect()
}
