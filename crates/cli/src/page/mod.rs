//! The receipt as one HTML page that needs nothing else: no script, no font, no picture from elsewhere. Light or dark as
//! the reader's system is; on narrow screens rows become blocks. All that comes from files is escaped.

mod detail;
mod draw;
mod part;

use std::path::Path;

use lessen::receipt::{Number, bytes};
use lessen::shrink::Receipt;
use serde_json::Value;

const STYLE: &str = include_str!("style.css");

/// Writes the page. It is complete or not there at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write(receipt: &Receipt, path: &Path) -> lessen::Result<()> {
    lessen::write_file(path, page(receipt).as_bytes())
}

fn page(receipt: &Receipt) -> String {
    let path = escape(&receipt.original);
    let name = Path::new(&receipt.original).file_name().map(|n| escape(&n.to_string_lossy()));
    let name = name.unwrap_or_else(|| "a model".into());
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\">\n<title>Receipt: {name}</title>\n<style>\n{STYLE}</style>\n\
         <header><p class=\"kind\">Receipt</p><h1>{name}</h1><small>{path}</small></header>\n<main>\n"
    );
    html += &part::verdict(receipt);
    html += &part::tiles(receipt);
    html += &part::compared(receipt);
    html += &part::frontier(receipt);
    html += &part::weighed(receipt);
    html += &detail::answers(receipt);
    html += &detail::classes(receipt);
    html += &detail::worst(receipt);
    html += &detail::changes(receipt);
    html += &detail::weights(receipt);
    html += &detail::provenance(receipt);
    html += &format!(
        "<h2>All numbers</h2>\n<details><summary>as JSON</summary><pre>{}</pre></details>\n</main>\n</html>\n",
        escape(&json(receipt))
    );
    html
}

/// The receipt as JSON, without the pictures, which the page has already.
fn json(receipt: &Receipt) -> String {
    let mut value = serde_json::to_value(receipt).unwrap_or_default();
    let worst = value.pointer_mut("/verification/worst").and_then(Value::as_array_mut);
    for example in worst.into_iter().flatten() {
        if let Some(example) = example.as_object_mut() {
            example.remove("image");
        }
    }
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

/// A text as it can stand anywhere in the page.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c => safe.push(c),
        }
    }
    safe
}

/// Decimal places of a number of this unit.
fn places(unit: &str) -> usize {
    match unit {
        "%" | "points" | "x" => 2,
        "ms" => 3,
        _ => 4,
    }
}

/// A number with its unit, without its interval.
fn plain(n: &Number) -> String {
    match n.unit {
        "bytes" => bytes(n.value as u64),
        "" => format!("{:.*}", places(n.unit), n.value),
        unit => format!("{:.*} {unit}", places(unit), n.value),
    }
}

/// The interval of a number, when it has one.
fn interval(n: &Number) -> Option<String> {
    let digits = places(n.unit);
    let (low, high) = n.low.zip(n.high)?;
    // Past a tenth of a unit in the last place nothing is to be seen.
    let zero = |v: f64| if v.abs() < 0.5 * 0.1f64.powi(digits as i32) { 0.0 } else { v };
    let (low, high) = (zero(low), zero(high));
    Some(format!("{low:.digits$} to {high:.digits$}").replace('-', "−"))
}

/// A number with its interval below, as HTML.
fn shown(n: &Number) -> String {
    let number = plain(n).replace('-', "−");
    match interval(n) {
        Some(interval) => format!("{number}<span class=\"ci\">{interval}</span>"),
        None => number,
    }
}

#[cfg(test)]
mod tests;
