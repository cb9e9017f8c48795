//! The receipt as one HTML page that needs nothing else: a table before/after, and a bar for each weight.

use std::fmt::Write as _;
use std::path::Path;

use lessen::receipt::bytes;
use lessen::shrink::{Choice, Receipt};

/// Writes the page. It is complete or not there at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write(receipt: &Receipt, path: &Path) -> lessen::Result<()> {
    let json = serde_json::to_string_pretty(receipt).unwrap_or_default();
    lessen::write_file(path, page(receipt, &json).as_bytes())
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;width:100%}\
td,th{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
.met{color:#176639}.missed{color:#a32020}small{color:#666}pre{background:#f6f6f6;padding:1em;overflow:auto}\
svg text{font:12px system-ui,sans-serif}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(receipt: &Receipt, json: &str) -> String {
    let name = escape(&receipt.original);
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Receipt: {name}</title><style>{STYLE}</style>\
         <h1>Receipt for {name}</h1>"
    );
    match receipt.met {
        true => html += "<p class=\"met\">All that was asked for holds.</p>",
        false => {
            for missed in &receipt.missed {
                let _ = write!(html, "<p class=\"missed\">Missed: {}</p>", escape(missed));
            }
        }
    }
    table(&mut html, receipt);
    if let Some(shares) = &receipt.data {
        let _ = write!(
            html,
            "<p><small>{}. {} examples to calibrate, {} to decide on, {} for the numbers above; none is in two of \
             these. Seed {}. Intervals are of 95 %, over the same examples for both models. Measured, not \
             estimated, on: {}.</small></p>",
            escape(&shares.data),
            shares.calibration,
            shares.search,
            shares.verify,
            shares.seed,
            escape(&receipt.machine.to_string())
        );
    }
    weights(&mut html, receipt);
    let _ = writeln!(html, "<h2>All numbers</h2><pre>{}</pre></html>", escape(json));
    html
}

fn table(html: &mut String, receipt: &Receipt) {
    let mut row = |what: &str, before: String, after: String, change: String| {
        let what = escape(what);
        let _ = write!(html, "<tr><td>{what}</td><td>{before}</td><td>{after}</td><td>{change}</td></tr>");
    };
    row("", "<b>before</b>".into(), "<b>after</b>".into(), String::new());
    let size = |n: f64| bytes(n as u64);
    let (before, after) = (size(receipt.bytes_before.value), size(receipt.bytes_after.value));
    row("Size of the file", before, after, format!("{:.2} times smaller", receipt.smaller.value));
    if let Some(q) = &receipt.quality {
        let digits = if q.before.unit == "%" { 2 } else { 4 };
        let metric = format!("{}, {} examples", q.metric, q.examples);
        let lost = format!("lost {:.digits$}", q.lost);
        row(&metric, format!("{:.digits$}", q.before), format!("{:.digits$}", q.after), lost);
    }
    if let Some(s) = &receipt.speed {
        let what = format!("Time of one run, {} threads", s.threads);
        let faster = format!("{:.2} times faster", s.faster.value);
        row(&what, format!("{:.3}", s.before), format!("{:.3}", s.after), faster);
    }
    let start = html.find("<tr>").unwrap_or(html.len());
    html.insert_str(start, "<table>");
    html.push_str("</table>");
}

/// A bar for each weight: as long as its number of elements (a square root, so that small ones are seen), dark for
/// what stays f32.
fn weights(html: &mut String, receipt: &Receipt) {
    let steps = &receipt.plan.steps;
    let Some(most) = steps.iter().map(|s| s.elements).max() else { return };
    let height = 18 * steps.len();
    let _ = write!(
        html,
        "<h2>Weights</h2><p><small>Length: number of elements (square root). Error: squared, relative to the \
         weight.</small></p><svg viewBox=\"0 0 900 {height}\" width=\"100%\" role=\"img\" \
         aria-label=\"weights, what was done to each\">"
    );
    for (i, step) in steps.iter().enumerate() {
        let (y, length) = (18 * i, 330.0 * (step.elements as f64 / most as f64).sqrt());
        let (colour, what) = match step.choice {
            Choice::Keep => ("#444", "f32"),
            Choice::Int8Static => ("#3b7dd8", "int8"),
            Choice::Int8Dynamic => ("#2a9d6f", "int8, dynamic"),
            Choice::Int8Rows => ("#b8860b", "int8 rows"),
        };
        let error =
            if step.choice == Choice::Keep { String::new() } else { format!(", error {:.1e}", step.error) };
        let label: String = step.node.chars().take(46).collect();
        let _ = write!(
            html,
            "<text x=\"0\" y=\"{}\">{}</text><rect x=\"330\" y=\"{}\" width=\"{length:.1}\" height=\"12\" \
             fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{}\">{} {what}{error}</text>",
            y + 13,
            escape(&label),
            y + 3,
            336.0 + length,
            y + 13,
            step.elements
        );
    }
    *html += "</svg>";
}
