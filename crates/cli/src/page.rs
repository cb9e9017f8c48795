//! The receipt as one HTML page that needs nothing else: a table before/after, and a bar for each weight. Light
//! or dark, as the reader's system is; bars are left out on narrow screens.

use std::fmt::Write as _;
use std::path::Path;

use lessen::receipt::bytes;
use lessen::shrink::{Choice, Form, Receipt};

/// Writes the page. It is complete or not there at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write(receipt: &Receipt, path: &Path) -> lessen::Result<()> {
    let json = serde_json::to_string_pretty(receipt).unwrap_or_default();
    lessen::write_file(path, page(receipt, &json).as_bytes())
}

const STYLE: &str = ":root{color-scheme:light dark;--text:#222;--soft:#666;--back:#fff;--line:#ddd;--box:#f6f6f6;\
--met:#176639;--missed:#a32020;--f32:#777;--static:#3b7dd8;--dynamic:#2a9d6f;--rows:#b8860b;--bits:#7a4fb5}\
@media(prefers-color-scheme:dark){:root{--text:#e4e4e4;--soft:#a0a0a0;--back:#16181b;--line:#3a3d42;--box:#202327;\
--met:#6fd39a;--missed:#ff8a80;--f32:#8a8a8a}}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:var(--text);\
background:var(--back)}h1{font-size:1.5em;margin-bottom:0}h2{font-size:1.15em;margin-top:2em}h1,small,.weights td:first-child\
{overflow-wrap:anywhere}table{border-collapse:collapse;width:100%}td,th{padding:.3em .7em;text-align:right;\
border-bottom:1px solid var(--line);font-weight:normal}thead th{color:var(--soft)}td:first-child,th:first-child\
{text-align:left;padding-left:0}.met{color:var(--met)}.missed{color:var(--missed)}small{color:var(--soft)}\
.weights{font-size:.85em}.weights td{padding-top:.1em;padding-bottom:.1em;white-space:nowrap}.weights td:first-child\
{white-space:normal;width:38%}.bar{width:30%}.bar i{display:block;height:.8em;min-width:1px;border-radius:2px}\
.f32{background:var(--f32)}.static{background:var(--static)}.dynamic{background:var(--dynamic)}.rows{background:var(--rows)}\
.bits{background:var(--bits)}\
summary{cursor:pointer}pre{background:var(--box);padding:1em;overflow:auto;font-size:.8em}\
@media(max-width:40em){td,th{padding:.3em}.bar{display:none}.weights td:first-child{width:auto}}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(receipt: &Receipt, json: &str) -> String {
    let path = escape(&receipt.original);
    let name = Path::new(&receipt.original).file_name().map(|n| escape(&n.to_string_lossy()));
    let name = name.unwrap_or_else(|| "a model".into());
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Receipt: {name}</title><style>{STYLE}</style>\
         <h1>Receipt for {name}</h1><small>{path}</small>"
    );
    let lessen::shrink::Asked { smaller, size, faster, lose } = receipt.asked;
    let asked = smaller.is_some() || size.is_some() || faster.is_some() || lose.is_some();
    match receipt.met {
        true if !asked => {}
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
    if let Some(proof) = &receipt.proof {
        let class = if proof.holds { "met" } else { "soft" };
        let _ = write!(html, "<p class=\"{class}\">{}</p>", escape(&proof.words()));
    }
    weights(&mut html, receipt);
    let _ = writeln!(
        html,
        "<h2>All numbers</h2><details><summary>as JSON</summary><pre>{}</pre></details></html>",
        escape(json)
    );
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
        row(&what, format!("{:.3}", s.before), format!("{:.3}", s.after), s.words());
    }
    let start = html.find("<tr>").unwrap_or(html.len());
    html.insert_str(start, "<table>");
    html.push_str("</table>");
}

/// A form of few bits in words.
fn bits(form: Form) -> String {
    match form.group {
        0 => format!("{} bits", form.bits),
        group => format!("{} bits, groups of {group}", form.bits),
    }
}

/// A row with a bar for each weight: as long as its number of elements (a square root, so that small ones are seen).
fn weights(html: &mut String, receipt: &Receipt) {
    let steps = &receipt.plan.steps;
    let Some(most) = steps.iter().map(|s| s.elements).max() else { return };
    *html += "<h2>Weights</h2><p><small>Length of a bar: number of elements (square root). Error: squared, relative \
              to the weight, or to what comes out of it where the weight was adapted to the calibration data.</small></p><table class=\"weights\"><thead><tr><th>node</th><th class=\"bar\"></th>\
              <th>elements</th><th>now</th><th>error</th></tr></thead>";
    for step in steps {
        let length = 100.0 * (step.elements as f64 / most as f64).sqrt();
        let (class, what) = match step.choice {
            Choice::Keep => ("f32", "f32".into()),
            Choice::Int8Static => ("static", "int8".into()),
            Choice::Int8Dynamic => ("dynamic", "int8, dynamic".into()),
            Choice::Int8Rows => ("rows", "int8 rows".into()),
            Choice::Bits(form) => ("bits", bits(form)),
        };
        let error = if step.choice == Choice::Keep { String::new() } else { format!("{:.1e}", step.error) };
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"bar\"><i class=\"{class}\" style=\"width:{length:.1}%\"></i></td><td>{}</td>\
             <td>{what}</td><td>{error}</td></tr>",
            escape(&step.node),
            step.elements
        );
    }
    *html += "</table>";
}
