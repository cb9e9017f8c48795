//! The operator tests of the Python package onnx: `tests/onnx_nodes/export.py` writes them as files, `LESSEN_ONNX_NODES`
//! names the folder. `onnx_nodes/passing.txt` lists those that pass; it may only grow (`LESSEN_BLESS=1` writes it).
//! `LESSEN_NODE=relu` runs only tests with that in their name, and says why they fail.

mod cases;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use lessen_format as format;

fn run(folder: &Path) -> Result<(), String> {
    let model = format::open(&folder.join("model.onnx")).map_err(|e| e.to_string())?;
    // What was read is written and read again first, so that both ways are tested on all operators.
    let again = format::onnx::to_bytes(&model).map_err(|e| format!("write: {e}"))?;
    let model = format::onnx::read_bytes(again.into()).map_err(|e| format!("read again: {e}"))?;
    cases::run(folder, model.graph)
}

#[test]
fn operator_tests_of_onnx() {
    let Ok(folder) = std::env::var("LESSEN_ONNX_NODES") else {
        return println!(
            "skipped: LESSEN_ONNX_NODES does not name the folder that onnx_nodes/export.py writes"
        );
    };
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx_nodes/passing.txt");
    let filter = std::env::var("LESSEN_NODE").unwrap_or_default();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder can be read")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.contains(&filter))
        .collect();
    names.sort();
    let (mut passed, mut failed, mut crashed) = (BTreeSet::new(), Vec::new(), Vec::new());
    std::panic::set_hook(Box::new(|_| {}));
    for name in &names {
        match catch_unwind(AssertUnwindSafe(|| run(&Path::new(&folder).join(name)))) {
            Ok(Ok(())) => {
                passed.insert(name.clone());
            }
            Ok(Err(why)) => failed.push(format!("{name}: {why}")),
            Err(_) => crashed.push(name.clone()),
        }
    }
    let _ = std::panic::take_hook();
    println!("{} of {} operator tests pass, {} crash", passed.len(), names.len(), crashed.len());
    if !filter.is_empty() || std::env::var("LESSEN_NODE_FAILURES").is_ok() {
        failed.iter().for_each(|f| println!("{}", f.chars().take(400).collect::<String>()));
    }
    assert!(crashed.is_empty(), "these panic: {crashed:?}");
    let old = std::fs::read_to_string(&list).unwrap_or_default();
    let lost: Vec<&str> = old.lines().filter(|n| n.contains(&filter) && !passed.contains(*n)).collect();
    if std::env::var("LESSEN_BLESS").is_ok() && filter.is_empty() {
        std::fs::write(&list, passed.iter().map(|n| format!("{n}\n")).collect::<String>())
            .expect("the list is written");
    } else {
        assert!(lost.is_empty(), "these passed before: {lost:?}");
    }
}
