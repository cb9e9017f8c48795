//! Broken files: none may bring the program down or make it ask for memory that the file does not back.

#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/small.rs"]
mod small;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use graph::run::Session;
use graph::{Model, tidy};
use kernel::Cpu;
use lessen_format as format;
use lessen_format::onnx::proto::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use prost::Message;
use small::*;

/// Memory that reading may take beyond the size of the file.
const SPARE: usize = 64 << 20;

/// Plans the model as it is, and tidied.
fn plan(model: Model, cpu: &Cpu) -> graph::Result<()> {
    Session::new(model.graph.clone(), cpu)?;
    let mut graph = model.graph;
    tidy::run(&mut graph, tidy::RUN, cpu)?;
    Session::new(graph, cpu)?;
    Ok(())
}

/// Reads and plans; says what is wrong with that, and whether it could be read.
fn survive(read: impl FnOnce() -> Result<Model, String>, size: usize, cpu: &Cpu) -> Result<bool, String> {
    let done = memory::watched(|| {
        catch_unwind(AssertUnwindSafe(|| match read() {
            Ok(model) => {
                let _ = format::onnx::upgrade(&mut model.clone(), 21);
                // What is read can also be written and read again, or the writer says why not.
                if let Ok(written) = format::onnx::to_bytes(&model)
                    && let Err(e) = format::onnx::read_bytes(written.into())
                {
                    return Err(format!("what was written cannot be read: {e}"));
                }
                let _ = plan(model, cpu);
                Ok(true)
            }
            Err(_) => Ok(false),
        }))
    });
    match done {
        (Err(_), _) => Err("it panics".into()),
        (_, peak) if peak > size + SPARE => Err(format!("it takes {peak} bytes for a file of {size}")),
        (Ok(read), _) => read,
    }
}

/// Numbers that are the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// A broken copy: bits turned, bytes replaced, pieces cut out, blown up, doubled or swapped.
fn broken(good: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=dice.below(3) {
        let n = bytes.len();
        if n < 8 {
            break;
        }
        let (at, run) = (dice.below(n - 4), 1 + dice.below(16));
        let end = (at + run).min(n);
        match dice.below(8) {
            0 | 1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes[at..end].iter_mut().for_each(|b| *b = dice.below(256) as u8),
            3 => bytes[at..end].fill([0, 255, 127, 128][dice.below(4)]),
            4 => bytes.truncate(at.max(4)),
            // A length or number of many bytes in place of one.
            5 => drop(bytes.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 7 | ((run as u8 & 1) << 7), 0x01])),
            6 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let to = dice.below(n - run.min(n - 1));
                for i in 0..run.min(n - at.max(to)) {
                    bytes.swap(at + i, to + i);
                }
            }
        }
    }
    bytes
}

/// Broken copies of each model; `LESSEN_HOSTILE_ROUNDS` asks for more.
fn rounds() -> usize {
    std::env::var("LESSEN_HOSTILE_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(250)
}

#[test]
fn mutated_models_are_read_or_refused() {
    let cpu = Cpu::new(1).unwrap();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let rounds = rounds();
    let mut bad = Vec::new();
    for (name, model) in good() {
        let good = model.encode_to_vec();
        let model = format::onnx::read_bytes(good.clone().into()).unwrap_or_else(|e| panic!("{name}: {e}"));
        plan(model, &cpu).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut read = 0;
        for round in 0..rounds {
            let bytes = Bytes::from(broken(&good, &mut dice));
            let size = bytes.len();
            match survive(|| format::onnx::read_bytes(bytes).map_err(|e| e.to_string()), size, &cpu) {
                Ok(was_read) => read += usize::from(was_read),
                Err(what) => bad.push(format!("{name}, round {round}: {what}")),
            }
        }
        assert!(0 < read && read < rounds, "{name}: {read} of {rounds} were read");
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Turns one number, name or operator of a well-formed model into another that is nasty.
fn wild(model: &mut ModelProto, dice: &mut Dice) {
    const NUMBERS: [i64; 14] =
        [0, 1, 2, 3, 7, -1, -2, -3, 64, 1 << 31, 1 << 40, i64::MAX, i64::MIN, i64::MAX / 2];
    let number = NUMBERS[dice.below(NUMBERS.len())];
    let kinds: Vec<&str> = graph::ops::all()
        .filter(|d| d.domain.is_empty() || d.domain == "com.microsoft")
        .map(|d| d.name)
        .collect();
    let Some(graph) = &mut model.graph else { return };
    let mut names: Vec<String> = graph.node.iter().flat_map(|n| n.output.clone()).collect();
    names.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
    names.extend([String::new(), "x".into()]);
    let name = names.swap_remove(dice.below(names.len()));
    let count = graph.node.len();
    let node = &mut graph.node[dice.below(count)];
    let (inputs, attributes) = (node.input.len(), node.attribute.len());
    match dice.below(9) {
        0 if attributes > 0 => {
            let attribute = &mut node.attribute[dice.below(attributes)];
            match dice.below(attribute.ints.len() + 1) {
                0 => attribute.i = Some(number),
                i => attribute.ints[i - 1] = number,
            }
        }
        1 if attributes > 0 => node.attribute[dice.below(attributes)].ints.push(number),
        2 if attributes > 0 => drop(node.attribute.swap_remove(dice.below(attributes))),
        3 if inputs > 0 => node.input[dice.below(inputs)] = name,
        4 if inputs > 0 => drop(node.input.remove(dice.below(inputs))),
        5 => node.input.push(name),
        6 => {
            node.op_type = Some(kinds[dice.below(kinds.len())].into());
            if dice.below(2) == 0 {
                node.attribute
                    .push(list(["axes", "kernel_shape", "perm", "pads"][dice.below(4)], &[number, 1]));
            } else {
                node.attribute.push(int(["axis", "group", "blocksize", "to"][dice.below(4)], number));
            }
        }
        7 => {
            let weights = graph.initializer.len();
            if weights == 0 {
                return;
            }
            let tensor = &mut graph.initializer[dice.below(weights)];
            match tensor.data_type() {
                // The numbers that shapes are computed from.
                INT64 => {
                    tensor.raw_data = Some(tensor.dims.iter().flat_map(|_| number.to_le_bytes()).collect())
                }
                _ => match dice.below(3) {
                    0 => {
                        let size: i64 = tensor.dims.iter().product();
                        tensor.dims = [vec![1, size], vec![size], vec![size, 1, 1, 1]][dice.below(3)].clone();
                    }
                    1 => (tensor.dims, tensor.raw_data) = (vec![0, 3], Some(Bytes::new())),
                    _ => (tensor.dims, tensor.raw_data) = (vec![], Some(vec![0; 4].into())),
                },
            }
        }
        _ => {
            graph.input[0] =
                info("x", [FLOAT, INT64, 8, 10][dice.below(4)], &[number, 2, number, 3][..dice.below(5)])
        }
    }
}

#[test]
fn models_with_wild_numbers_are_planned_or_refused() {
    let cpu = Cpu::new(1).unwrap();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut bad = Vec::new();
    for (name, good) in good() {
        let mut read = 0;
        for round in 0..rounds() {
            let mut model = good.clone();
            (0..=dice.below(3)).for_each(|_| wild(&mut model, &mut dice));
            let bytes = Bytes::from(model.encode_to_vec());
            let size = bytes.len();
            match survive(|| format::onnx::read_bytes(bytes).map_err(|e| e.to_string()), size, &cpu) {
                Ok(was_read) => read += usize::from(was_read),
                Err(what) => bad.push(format!("{name}, round {round}: {what}")),
            }
        }
        assert!(0 < read && read < rounds(), "{name}: {read} were read");
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn mutated_files_are_read_or_refused() {
    let cpu = Cpu::new(1).unwrap();
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let folder = tempfile::tempdir().unwrap();
    let mut model = good().swap_remove(0).1;
    let outside = &mut model.graph.as_mut().unwrap().initializer[0];
    std::fs::write(folder.path().join("w.data"), outside.raw_data.take().unwrap()).unwrap();
    *outside = external(outside.clone(), &[("location", "w.data"), ("offset", "0"), ("length", "216")]);
    let header = br#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]}}"#;
    let tensors = [&(header.len() as u64).to_le_bytes()[..], header, &[7; 30]].concat();
    let path = folder.path().join("model.onnx");
    let mut bad = Vec::new();
    for round in 0..200 {
        let bytes = broken(&model.encode_to_vec(), &mut dice);
        std::fs::write(&path, &bytes).unwrap();
        if let Err(what) = survive(|| format::open(&path).map_err(|e| e.to_string()), bytes.len(), &cpu) {
            bad.push(format!("external, round {round}: {what}"));
        }
        let bytes = broken(&tensors, &mut dice);
        let path = folder.path().join("some.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        let read = || match format::safetensors::read_file(&path) {
            Ok(_) => Ok(Model::default()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(what) = survive(read, bytes.len(), &cpu) {
            bad.push(format!("safetensors, round {round}: {what}"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

fn external(mut tensor: TensorProto, entries: &[(&str, &str)]) -> TensorProto {
    tensor.raw_data = None;
    tensor.data_location = Some(1);
    let entry =
        |&(k, v): &(&str, &str)| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
    tensor.external_data = entries.iter().map(entry).collect();
    tensor
}

/// The error of reading and planning; all of what it takes is watched.
fn refusal(name: &str, bytes: Vec<u8>) -> String {
    let size = bytes.len();
    let cpu = Cpu::new(1).unwrap();
    let read = || format::onnx::read_bytes(bytes.into()).and_then(|m| plan(m, &cpu));
    let (result, peak) = memory::watched(|| catch_unwind(AssertUnwindSafe(read)));
    assert!(peak < size + SPARE, "{name}: {peak} bytes for a file of {size}");
    match result {
        Ok(Err(e)) => e.to_string(),
        Ok(Ok(())) => panic!("{name}: it is read"),
        Err(_) => panic!("{name}: it panics"),
    }
}

/// A model of these nodes with an input `x` and an output `y`, both 2 by 3.
fn nodes(nodes: Vec<NodeProto>) -> ModelProto {
    model(graph(nodes, vec![info("x", FLOAT, &[2, 3])], vec![info("y", FLOAT, &[2, 3])], Vec::new()))
}

/// An `Add` of `x` and this initializer.
fn weight(tensor: TensorProto) -> ModelProto {
    let mut model = nodes(vec![node("Add", &["x", "w"], &["y"], Vec::new())]);
    model.graph.as_mut().unwrap().initializer.push(tensor);
    model
}

fn nested(depth: usize) -> ModelProto {
    let leaf = graph(
        vec![node("Relu", &["x"], &["o"], Vec::new())],
        Vec::new(),
        vec![info("o", FLOAT, &[2, 3])],
        Vec::new(),
    );
    let wrap = |inner: GraphProto, out: &str| {
        let branches = vec![body("then_branch", inner.clone()), body("else_branch", leaf.clone())];
        node("If", &["c"], &[out], branches)
    };
    let inner = (0..depth).fold(leaf.clone(), |g, _| {
        graph(vec![wrap(g, "o")], Vec::new(), vec![info("o", FLOAT, &[2, 3])], Vec::new())
    });
    let mut model = nodes(vec![wrap(inner, "y")]);
    model.graph.as_mut().unwrap().input.push(info("c", BOOL, &[]));
    model
}

#[test]
fn crafted_models_are_refused_with_a_reason() {
    let relu = |i: &str, o: &str| node("Relu", &[i], &[o], Vec::new());
    let opsets = |imports: Vec<_>| ModelProto { opset_import: imports, ..nodes(vec![relu("x", "y")]) };
    let bomb: Vec<_> = (0..40)
        .map(|i| {
            let inner = format!("F{}", i + 1);
            let calls = vec![call(&inner, &["a"], &["m"]), call(&inner, &["m"], &["b"])];
            function(&format!("F{i}"), calls)
        })
        .chain([function("F40", vec![relu("a", "b")])])
        .collect();
    let ring =
        vec![function("A", vec![call("B", &["a"], &["b"])]), function("B", vec![call("A", &["a"], &["b"])])];
    let mut sparse_claim = nodes(vec![node("Add", &["x", "w"], &["y"], Vec::new())]);
    sparse_claim.graph.as_mut().unwrap().sparse_initializer.push(sparse(&[1 << 34]));
    let mut typed = floats("w", &[2, 3]);
    (typed.raw_data, typed.float_data) = (None, vec![1.0; 5]);
    let mut duplicate = weight(floats("w", &[2, 3]));
    duplicate.graph.as_mut().unwrap().initializer.push(floats("w", &[2, 3]));
    let mut two_inputs = nodes(vec![relu("x", "y")]);
    two_inputs.graph.as_mut().unwrap().input.push(info("x", FLOAT, &[1]));
    let mut no_output = nodes(vec![relu("x", "z")]);
    no_output.graph.as_mut().unwrap().output[0] = info("gone", FLOAT, &[1]);
    let mut texts = weight(floats("w", &[1]));
    let t = &mut texts.graph.as_mut().unwrap().initializer[0];
    (t.raw_data, t.data_type, t.string_data) = (None, Some(8), vec![Bytes::from_static(b"\xff\xfe")]);
    let softmax = |a| nodes(vec![node("Softmax", &["x"], &["y"], vec![a])]);
    let cases: Vec<(&str, ModelProto, &[&str])> = vec![
        ("cycle", nodes(vec![node("Add", &["x", "y"], &["z"], vec![]), relu("z", "y")]), &["cycle", "n_z"]),
        ("own tail", nodes(vec![relu("y", "y")]), &["cycle", "n_y"]),
        ("made by nobody", nodes(vec![relu("ghost", "y")]), &["n_y", "ghost"]),
        ("made twice", nodes(vec![relu("x", "y"), relu("x", "y")]), &["n_y", "\"y\""]),
        ("output of nobody", no_output, &["gone"]),
        ("makes an input", nodes(vec![relu("x", "x"), relu("x", "y")]), &["n_x", "\"x\""]),
        ("two inputs of a name", two_inputs, &["\"x\""]),
        ("two weights of a name", duplicate, &["\"w\""]),
        ("huge dims", weight(raw("w", FLOAT, &[1 << 40], vec![0; 8])), &["\"w\"", "1099511627776"]),
        ("dims that overflow", weight(raw("w", FLOAT, &[1 << 40, 1 << 40], vec![])), &["\"w\"", "too big"]),
        ("dims and bytes that overflow", weight(raw("w", 11, &[1 << 62], vec![])), &["\"w\""]),
        ("negative dims", weight(raw("w", FLOAT, &[-2, -3], vec![0; 24])), &["\"w\"", "-2"]),
        ("too few bytes", weight(raw("w", FLOAT, &[2, 3], vec![0; 23])), &["\"w\"", "23"]),
        ("too few elements", weight(typed), &["\"w\"", "20"]),
        ("element type of nobody", weight(raw("w", 99, &[1], vec![0; 8])), &["\"w\"", "99"]),
        ("no element type", weight(raw("w", 0, &[1], vec![0; 8])), &["\"w\"", "element type 0"]),
        (
            "data outside",
            weight(external(floats("w", &[1]), &[("location", "w")])),
            &["\"w\"", "another file"],
        ),
        ("huge sparse tensor", sparse_claim, &["\"w\"", "sparse"]),
        ("text that is none", texts, &["\"w\"", "UTF-8"]),
        ("attribute of another kind", softmax(text("axis", b"1")), &["n_y", "Softmax", "axis", "integer"]),
        (
            "attribute out of range",
            nodes(vec![node("Transpose", &["x"], &["y"], vec![list("perm", &[0, i64::MIN])])]),
            &["n_y", "-9223372036854775808"],
        ),
        (
            "attribute that is no text",
            nodes(vec![node(
                "DepthToSpace",
                &["x"],
                &["y"],
                vec![int("blocksize", 2), text("mode", b"\xff")],
            )]),
            &["n_y", "mode", "UTF-8"],
        ),
        (
            "body that is none",
            nodes(vec![node("If", &["x"], &["y"], vec![int("then_branch", 1)])]),
            &["n_y", "then_branch"],
        ),
        ("constant of nothing", nodes(vec![node("Constant", &[], &["y"], vec![])]), &["n_y", "Constant"]),
        ("no operator set", opsets(vec![]), &["version"]),
        ("operator set 0", opsets(vec![opset("", 0)]), &["version 0"]),
        ("operator set -1", opsets(vec![opset("", -1)]), &["version -1"]),
        (
            "operator set of the far future",
            opsets(vec![opset("", i64::MAX)]),
            &["version 9223372036854775807"],
        ),
        (
            "functions in a ring",
            ModelProto { functions: ring, ..nodes(vec![call("A", &["x"], &["y"])]) },
            &["functions", "n_b"],
        ),
        (
            "functions that explode",
            ModelProto { functions: bomb, ..nodes(vec![call("F0", &["x"], &["y"])]) },
            &["functions", "n_m"],
        ),
        ("deep bodies", nested(40), &["recursion"]),
    ];
    for (name, model, says) in cases {
        let error = refusal(name, model.encode_to_vec());
        for part in says {
            assert!(error.contains(part), "{name}: {error:?} does not say {part:?}");
        }
    }
}

#[test]
fn crafted_bytes_are_refused() {
    // A graph, an initializer, its raw data: each says it has a gigabyte.
    let claims = [
        0x3a, 0x80, 0x80, 0x80, 0x80, 0x04, 0x2a, 0x80, 0x80, 0x80, 0x80, 0x04, 0x4a, 0x80, 0x80, 0x80, 0x80,
        0x04,
    ];
    let packed = [0x3a, 0x09, 0x2a, 0x07, 0x22, 0x80, 0x80, 0x80, 0x80, 0x04, 0x00];
    let mut text = nodes(vec![node("Relu", &["x"], &["y"], vec![])]).encode_to_vec();
    let at = text.windows(4).position(|w| w == b"Relu").unwrap();
    text[at] = 0xff;
    for (name, bytes) in [
        ("empty", vec![]),
        ("zeros", vec![0; 1000]),
        ("ones", vec![255; 1000]),
        ("claims", claims.to_vec()),
        ("packed claims", packed.to_vec()),
        ("name that is no text", text),
        ("json", b"{\"format\": \"none\"}".to_vec()),
    ] {
        let error = refusal(name, bytes);
        assert!(error.contains("not an ONNX model"), "{name}: {error}");
    }
}

#[test]
fn bodies_and_calls_nest_as_deep_as_models_need_and_no_deeper() {
    let cpu = Cpu::new(1).unwrap();
    let read = |model: ModelProto| format::onnx::read_bytes(model.encode_to_vec().into());
    plan(read(nested(15)).unwrap(), &cpu).unwrap();
    // Each function's body holds bodies, and the next call in the innermost.
    let functions: Vec<_> = (0..60)
        .map(|i| {
            let inner = nested(20);
            let mut nodes = inner.graph.unwrap().node;
            fn deepest(nodes: &mut [NodeProto]) -> &mut NodeProto {
                let node = &mut nodes[0];
                match node.op_type() {
                    "If" => deepest(&mut node.attribute[0].g.as_mut().unwrap().node),
                    _ => node,
                }
            }
            *deepest(&mut nodes) = call(&format!("D{}", i + 1), &["x"], &["o"]);
            let mut f = function(&format!("D{i}"), nodes);
            (f.input, f.output) = (strings(&["x", "c"]), strings(&["y"]));
            f
        })
        .collect();
    let mut outer = nodes(vec![call("D0", &["x", "c"], &["y"])]);
    outer.graph.as_mut().unwrap().input.push(info("c", BOOL, &[]));
    let error = read(ModelProto { functions, ..outer }).unwrap_err().to_string();
    assert!(error.contains("deep"), "{error}");
}

fn write_beside(folder: &Path, entries: &[(&str, &str)]) -> Result<Model, String> {
    let path = folder.join("model.onnx");
    std::fs::write(&path, weight(external(floats("w", &[2, 3]), entries)).encode_to_vec()).unwrap();
    format::open(&path).map_err(|e| e.to_string())
}

#[test]
fn data_outside_stay_in_the_folder() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let bytes: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(folder.join("w.data"), &bytes).unwrap();
    std::fs::write(folder.join("none.data"), []).unwrap();
    std::fs::write(outer.path().join("secret"), &bytes).unwrap();
    std::fs::create_dir(folder.join("deeper")).unwrap();
    std::fs::write(folder.join("deeper/w.data"), &bytes).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(outer.path().join("secret"), folder.join("link")).unwrap();
    let absolute = outer.path().join("secret").to_string_lossy().into_owned();
    let first = |model: Model| {
        let id = model.graph.find("w").unwrap();
        model.graph.constant(id).unwrap().values::<f32>().unwrap()[0]
    };
    assert_eq!(first(write_beside(&folder, &[("location", "w.data"), ("length", "24")]).unwrap()), 0.0);
    assert_eq!(first(write_beside(&folder, &[("location", "./w.data"), ("offset", "24")]).unwrap()), 6.0);
    assert_eq!(first(write_beside(&folder, &[("location", "deeper/w.data"), ("offset", "4")]).unwrap()), 1.0);
    let refused: &[(&[(&str, &str)], &str)] = &[
        (&[], "location"),
        (&[("location", "")], "\"\""),
        (&[("location", ".")], "\".\""),
        (&[("location", "deeper")], "\"deeper\""),
        (&[("location", "missing.data")], "missing.data"),
        (&[("location", "../secret")], "outside"),
        (&[("location", "deeper/../../secret")], "outside"),
        (&[("location", &absolute)], "outside"),
        #[cfg(unix)]
        (&[("location", "link")], "outside"),
        (&[("location", "none.data")], "none.data"),
        (&[("location", "w.data"), ("offset", "25")], "25"),
        (&[("location", "w.data"), ("offset", "48")], "outside"),
        (&[("location", "w.data"), ("offset", "18446744073709551615")], "outside"),
        (&[("location", "w.data"), ("offset", "99999999999999999999")], "offset"),
        (&[("location", "w.data"), ("offset", "-4")], "offset"),
        (&[("location", "w.data"), ("length", "20")], "20"),
        (&[("location", "w.data"), ("length", "49")], "outside"),
    ];
    for (entries, says) in refused {
        let error = write_beside(&folder, entries).expect_err(&format!("{entries:?}"));
        assert!(error.contains(says) && error.contains("\"w\""), "{entries:?}: {error}");
    }
}
