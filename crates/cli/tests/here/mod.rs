//! What the tests through the command share: the command, its answer, small models.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use graph::op::Reader;
use graph::{Attrs, DType, Dim, Fact, Graph, Model, Node};
use lessen::Tensor;
use lessen::data::npz;

/// What the command answered.
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    fn of(output: Output) -> Answer {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Answer { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// It went well; the JSON object on stdout.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}", self.err);
        let value: serde_json::Value = serde_json::from_str(&self.out).expect("one JSON object");
        assert!(value.is_object());
        value
    }

    /// It went well; what it printed.
    pub fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{}", self.err);
        &self.out
    }

    /// It failed with exit code 1 and one line that has all these words.
    pub fn fails(&self, words: &[&str]) {
        assert_eq!(self.code, 1, "{}{}", self.out, self.err);
        let lines: Vec<&str> = self.err.lines().filter(|l| l.starts_with("error:")).collect();
        assert_eq!(lines.len(), 1, "{}", self.err);
        for word in words {
            assert!(lines[0].contains(word), "no {word:?} in: {}", lines[0]);
        }
    }
}

pub fn lessen(args: &[&str]) -> Answer {
    run(env!("CARGO_BIN_EXE_lessen"), args)
}

/// Any program.
pub fn run(program: &str, args: &[&str]) -> Answer {
    Answer::of(Command::new(program).args(args).stdin(Stdio::null()).output().unwrap())
}

/// The command with its stdout going into this file.
pub fn lessen_into(args: &[&str], file: std::fs::File) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lessen"));
    command.args(args).stdin(Stdio::null()).stdout(file).stderr(Stdio::piped());
    Answer::of(command.output().unwrap())
}

pub fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits").join(name);
    path.to_str().unwrap().into()
}

/// A file of the folder of big models and data, which not every machine has.
pub fn shared(name: &str) -> Option<String> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("LESSEN_SHARED").map_or(beside, PathBuf::from);
    let path = folder.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path.to_str().unwrap().into())
}

/// A folder of its own for a test.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().into()
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn npz(&self, name: &str, arrays: &[(&str, Tensor)]) -> String {
        let path = self.path(name);
        let arrays: Vec<_> = arrays.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        npz::write(Path::new(&path), &arrays).unwrap();
        path
    }

    /// Names of all that is in the folder.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A model of one operator on one input of this shape.
    pub fn model(&self, name: &str, op: &str, shape: Vec<Dim>, entries: &[(&str, &str)]) -> String {
        let mut model = one(op, 17, shape, 1);
        for (key, value) in entries {
            model.set_metadata(key, *value);
        }
        self.save(name, &model)
    }

    /// A model of one operator of an old version on an input of unknown sizes.
    pub fn old_model(&self, name: &str, op: &str, version: i64, outputs: usize) -> String {
        let shape = vec![Dim::named("n"), Dim::named("a"), Dim::named("b")];
        self.save(name, &one(op, version, shape, outputs))
    }

    fn save(&self, name: &str, model: &Model) -> String {
        let path = self.path(name);
        format::save(model, Path::new(&path)).unwrap();
        path
    }

    /// A picture of 2x2 pixels (BMP, 24 bits).
    pub fn picture(&self, name: &str) -> String {
        let mut bytes = b"BM".to_vec();
        for number in [70u32, 0, 54, 40, 2, 2, 0x0018_0001, 0, 16, 2835, 2835, 0, 0] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([10, 20, 30, 40, 50, 60, 0, 0, 70, 80, 90, 100, 110, 120, 0, 0]);
        self.file(name, &bytes)
    }
}

fn one(op: &str, version: i64, shape: Vec<Dim>, outputs: usize) -> Model {
    let mut graph = Graph::new("test");
    let x = graph.add_input("x", Fact::tensor(DType::F32, shape)).unwrap();
    let attrs = Attrs::new();
    let reader = Reader { attrs: &attrs, version, inputs: 1, outputs };
    let op: Arc<dyn graph::Op> = graph::ops::read("", op, &reader).unwrap();
    let (_, made) = graph.add_with_outputs("y", Node::new(op, vec![Some(x)]), outputs, None).unwrap();
    graph.outputs = made;
    let mut model = Model { graph, ir_version: 8, ..Model::default() };
    model.opsets.insert(String::new(), version);
    model
}
