//! What is said on the command line: sizes, times, shares and names of methods.

use std::time::Duration;

use lessen::shrink::{Allocation, Ranges, Rounding, Rule};

/// How weights are put in codes.
pub fn rounding(text: &str) -> Result<Rounding, String> {
    match text {
        "sweep" => Ok(Rounding::Sweep),
        "learned" => Ok(Rounding::Learned),
        "gptq" => Ok(Rounding::Gptq),
        "nearest" => Ok(Rounding::Nearest),
        _ => Err("say sweep, learned, gptq or nearest".into()),
    }
}

/// What grids cover.
pub fn ranges(text: &str) -> Result<Ranges, String> {
    match text {
        "searched" => Ok(Ranges::Searched),
        "min-max" => Ok(Ranges::MinMax),
        _ => Err("say searched or min-max".into()),
    }
}

/// How zeros are shared out.
pub fn allocation(text: &str) -> Result<Allocation, String> {
    match text {
        "harm" => Ok(Allocation::Harm),
        "outliers" => Ok(Allocation::Outliers),
        "even" => Ok(Allocation::Even),
        _ => Err("say harm, outliers or even".into()),
    }
}

/// Which elements become 0.
pub fn rule(text: &str) -> Result<Rule, String> {
    match text {
        "magnitude" => Ok(Rule::Magnitude),
        "wanda" => Ok(Rule::Wanda),
        "surgeon" => Ok(Rule::Surgeon),
        "best" => Ok(Rule::Best),
        _ => Err("say best, wanda, surgeon or magnitude".into()),
    }
}

/// A number and its unit, the longest that fits.
fn unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let (number, factor) = units.iter().find_map(|(unit, factor)| {
        let end = text.len().checked_sub(unit.len())?;
        let fits = text.is_char_boundary(end) && text[end..].eq_ignore_ascii_case(unit);
        fits.then(|| (text[..end].trim(), *factor))
    })?;
    number.parse::<f64>().ok().map(|n| n * factor).filter(|n| n.is_finite() && *n > 0.0)
}

/// Bytes: 25MB, 25 MiB, 25000.
pub fn size(text: &str) -> Result<usize, String> {
    let units = [
        ("kib", 1024.0),
        ("mib", 1048576.0),
        ("gib", 1073741824.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("k", 1e3),
        ("m", 1e6),
        ("g", 1e9),
        ("b", 1.0),
        ("", 1.0),
    ];
    match unit(text, &units) {
        Some(n) if (1.0..1e18).contains(&n) => Ok(n as usize),
        _ => Err(format!("{text:?} is no size; say 25MB or 800kB")),
    }
}

/// A time: 90s, 10m, 2h.
pub fn duration(text: &str) -> Result<Duration, String> {
    match unit(text, &[("s", 1.0), ("m", 60.0), ("min", 60.0), ("h", 3600.0)]) {
        Some(n) if n < 1e9 => Ok(Duration::from_secs_f64(n)),
        _ => Err(format!("{text:?} is no time; say 90s, 10m or 2h")),
    }
}

/// A share: 50% or 0.5.
pub fn share(text: &str) -> Result<f64, String> {
    match unit(text, &[("%", 0.01), ("", 1.0)]) {
        Some(n) if n < 1.0 => Ok(n),
        _ => Err(format!("{text:?} is no share; say 50% or 0.5")),
    }
}

/// A number above 0: 4 or 4x.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.trim_end_matches(['x', 'X']).parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 => Ok(n),
        _ => Err(format!("{text:?} is not a number above 0")),
    }
}
