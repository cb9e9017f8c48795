//! As much of Thrift's compact protocol as it takes to look at what a Parquet file claims before anything believes it.

use std::io::{BufRead, ErrorKind};

use super::Told;

const TRUE: u8 = 1;
const FALSE: u8 = 2;
pub(super) const I32: u8 = 5;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;
/// No struct or list lies in more of them.
const DEPTH: usize = 32;

/// What is read, and how many bytes of it were.
pub(super) struct Thrift<R> {
    source: R,
    pub at: u64,
}

impl<R: BufRead> Thrift<R> {
    pub(super) fn new(source: R) -> Thrift<R> {
        Thrift { source, at: 0 }
    }

    fn byte(&mut self) -> Told<u8> {
        let mut byte = [0];
        self.source.read_exact(&mut byte).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => "ends too early".to_owned(),
            _ => e.to_string(),
        })?;
        self.at += 1;
        Ok(byte[0])
    }

    /// An integer that is not negative.
    pub(super) fn unsigned(&mut self) -> Told<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("holds a number of more than 64 bits".into())
    }

    /// An integer of 16, 32 or 64 bits.
    pub(super) fn integer(&mut self) -> Told<i64> {
        let number = self.unsigned()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// The number and the type of a struct's next field; `last` is the number of the one before, and 0 at first.
    pub(super) fn field(&mut self, last: &mut i64) -> Told<Option<(i64, u8)>> {
        let head = self.byte()?;
        if head & 0xf == 0 {
            return Ok(None);
        }
        *last = match head >> 4 {
            0 => self.integer()?,
            more => last.saturating_add(i64::from(more)),
        };
        Ok(Some((*last, head & 0xf)))
    }

    /// The number of elements that a list claims to have, and their type.
    pub(super) fn list(&mut self) -> Told<(u64, u8)> {
        let head = self.byte()?;
        Ok(match head >> 4 {
            15 => (self.unsigned()?, head & 0xf),
            len => (u64::from(len), head & 0xf),
        })
    }

    /// A struct's integers of 16 bits and more and its truth values, by the numbers of their fields.
    pub(super) fn numbers(&mut self) -> Told<[Option<i64>; 16]> {
        let (mut numbers, mut last) = ([None; 16], 0);
        while let Some((id, kind)) = self.field(&mut last)? {
            let number = match kind {
                TRUE => 1,
                FALSE => 0,
                4..=6 => self.integer()?,
                _ => {
                    self.skip(kind)?;
                    continue;
                }
            };
            if let Some(place) = usize::try_from(id).ok().and_then(|id| numbers.get_mut(id)) {
                *place = Some(number);
            }
        }
        Ok(numbers)
    }

    /// Goes on behind the value of a field.
    pub(super) fn skip(&mut self, kind: u8) -> Told<()> {
        match kind {
            TRUE | FALSE => Ok(()),
            kind => self.skip_value(kind, DEPTH),
        }
    }

    fn skip_value(&mut self, kind: u8, depth: usize) -> Told<()> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(format!("is nested more than {DEPTH} deep"));
        };
        match kind {
            TRUE | FALSE | 3 => self.byte().map(drop),
            4..=6 => self.unsigned().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let len = self.unsigned()?;
                self.skip_bytes(len)
            }
            LIST | 10 => {
                let (len, kind) = self.list()?;
                (0..len).try_for_each(|_| self.skip_value(kind, depth))
            }
            11 => {
                let len = self.unsigned()?;
                let kinds = if len > 0 { self.byte()? } else { 0 };
                (0..len).try_for_each(|_| {
                    self.skip_value(kinds >> 4, depth)?;
                    self.skip_value(kinds & 0xf, depth)
                })
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    if !matches!(kind, TRUE | FALSE) {
                        self.skip_value(kind, depth)?;
                    }
                }
                Ok(())
            }
            13 => self.skip_bytes(16),
            kind => Err(format!("holds a value of the unknown type {kind}")),
        }
    }

    fn skip_bytes(&mut self, mut len: u64) -> Told<()> {
        while len > 0 {
            let there = self.source.fill_buf().map_err(|e| e.to_string())?.len() as u64;
            if there == 0 {
                return Err("ends too early".into());
            }
            let step = there.min(len);
            self.source.consume(step as usize);
            self.at += step;
            len -= step;
        }
        Ok(())
    }
}
