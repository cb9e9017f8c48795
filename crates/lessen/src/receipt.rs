//! Numbers as reports give them: with their unit, and with an interval wherever chance has a part in them.

use std::fmt;

use serde::Serialize;

use crate::storage::Storage;

/// A number with its unit and, when chance has a part in it, its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Number {
    /// The number.
    pub value: f64,
    /// Its unit, such as `%`, `ms`, `bytes`; "" for pure numbers.
    pub unit: &'static str,
    /// The lower end of the 95 % interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// The upper end of the 95 % interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// How it is known.
    pub how: How,
}

/// How a number is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Counted: chance has no part in it.
    Exact,
    /// Measured: another time, or on other examples, it would be a little different.
    Measured,
    /// Worked out from sizes, not measured.
    Estimated,
}

impl Number {
    /// A number that chance has no part in.
    pub fn exact(value: f64, unit: &'static str) -> Number {
        Number { value, unit, low: None, high: None, how: How::Exact }
    }

    /// A number that was measured, without an interval.
    pub fn measured(value: f64, unit: &'static str) -> Number {
        Number { how: How::Measured, ..Number::exact(value, unit) }
    }

    /// A number that was worked out, not measured.
    pub fn estimated(value: f64, unit: &'static str) -> Number {
        Number { how: How::Estimated, ..Number::exact(value, unit) }
    }

    /// A number with its 95 % interval.
    pub fn within(value: f64, low: f64, high: f64, unit: &'static str) -> Number {
        Number { value, unit, low: Some(low), high: Some(high), how: How::Measured }
    }

    /// The number and both ends of its interval times `factor`, in another unit.
    pub fn scaled(self, factor: f64, unit: &'static str) -> Number {
        Number {
            value: self.value * factor,
            unit,
            low: self.low.map(|v| v * factor),
            high: self.high.map(|v| v * factor),
            how: self.how,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(f, "{:.digits$}", self.value)?;
        if !self.unit.is_empty() {
            write!(f, " {}", self.unit)?;
        }
        match (self.low, self.high) {
            (Some(low), Some(high)) => write!(f, " ({low:.digits$} to {high:.digits$})"),
            _ => Ok(()),
        }
    }
}

/// The most memory held at once for one run, in bytes. Where it was measured: by a process of its own for each model,
/// with the model's file and the program itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// By the original.
    pub before: Number,
    /// By the result.
    pub after: Number,
}

/// Where the bytes of both files are: see [`Storage`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Weighed {
    /// Of the original; empty when its file holds the weights in another form than it has in memory.
    pub before: Vec<Storage>,
    /// Of the result.
    pub after: Vec<Storage>,
}

/// A number of bytes for people: 233 kB, 1.25 MB; powers of ten.
pub fn bytes(n: u64) -> String {
    let (n, unit) = scale(n as f64, &["bytes", "kB", "MB", "GB", "TB"]);
    format!("{n} {unit}")
}

/// A count for people: 570 k, 1.24 M.
pub fn count(n: u64) -> String {
    let (n, unit) = scale(n as f64, &["", "k", "M", "G", "T"]);
    format!("{n} {unit}").trim_end().into()
}

/// Three digits and the greatest unit that leaves at least one of them before the point.
fn scale<'a>(mut n: f64, units: &[&'a str]) -> (String, &'a str) {
    let mut at = 0;
    while n >= 999.5 && at + 1 < units.len() {
        n /= 1000.0;
        at += 1;
    }
    let digits = match n {
        _ if at == 0 => 0,
        n if n < 9.995 => 2,
        n if n < 99.95 => 1,
        _ => 0,
    };
    (format!("{n:.digits$}"), units[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(233_123), "233 kB");
        assert_eq!(bytes(999_700), "1.00 MB");
        assert_eq!(count(57_002), "57.0 k");
        assert_eq!(Number::within(91.731, 91.18, 92.25, "%").to_string(), "91.73 % (91.18 to 92.25)");
        assert_eq!(format!("{:.4}", Number::exact(0.82414, "")), "0.8241");
        assert_eq!(Number::within(1.0, 0.0, 2.0, "").scaled(2.0, "%").how, How::Measured);
        let json = serde_json::to_value(Number::estimated(3.0, "bytes")).unwrap();
        assert_eq!(json, serde_json::json!({ "value": 3.0, "unit": "bytes", "how": "estimated" }));
    }
}
