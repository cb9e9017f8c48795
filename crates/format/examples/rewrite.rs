//! Reads models and writes them again: `rewrite IN OUT [VERSION]`, or one such line a model on standard input, the
//! words apart by tabs. With a version, ONNX's own operators are raised to it. For each line it says `ok`, or what
//! is wrong.

use std::io::BufRead;
use std::path::Path;

use lessen_format as format;

fn rewrite(words: &[&str]) -> Result<(), String> {
    let [input, output, version @ ..] = words else { return Err("rewrite IN OUT [VERSION]".into()) };
    let mut model = format::open(Path::new(input)).map_err(|e| e.to_string())?;
    if let [version] = version {
        let version = version.parse().map_err(|_| format!("{version:?} is no version"))?;
        format::onnx::upgrade(&mut model, version).map_err(|e| e.to_string())?;
    }
    format::save(&model, Path::new(output)).map_err(|e| e.to_string())
}

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if !words.is_empty() {
        return rewrite(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        match rewrite(&line.split('\t').collect::<Vec<_>>()) {
            Ok(()) => println!("ok"),
            Err(e) => println!("{}", e.replace('\n', " ")),
        }
    }
    Ok(())
}
