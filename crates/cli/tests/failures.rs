//! What goes wrong ends with exit code 1 and one clear line, and leaves nothing half-written.

mod here;

use graph::Dim;
use here::{Place, example, lessen, lessen_into, run};
use lessen::Tensor;

fn relu(place: &Place) -> String {
    place.model("m.onnx", "Relu", vec![Dim::named("n"), Dim::Is(3)], &[])
}

fn x(values: &[f32]) -> Tensor {
    Tensor::new(&[values.len() / 3, 3], values).unwrap()
}

#[test]
fn files_that_are_no_models() {
    let place = Place::new();
    let digits = std::fs::read(example("digits.onnx")).unwrap();
    let noise: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases = [
        (place.path("missing.onnx"), "missing.onnx"),
        (place.file("empty.onnx", b""), "empty"),
        (place.file("noise.onnx", &noise), "noise.onnx"),
        (place.file("text.onnx", b"this is not a model"), "text.onnx"),
        (place.file("half.onnx", &digits[..digits.len() / 2]), "half.onnx"),
        (place.path(""), "config.json"),
    ];
    let (data, out) = (example("test.npz"), place.path("out.onnx"));
    for (path, word) in &cases {
        lessen(&["inspect", path]).fails(&[word]);
        lessen(&["run", path, "--input", &data]).fails(&[word]);
        lessen(&["eval", path, "--data", &data]).fails(&[word]);
        lessen(&["compare", path, &example("digits.onnx"), "--data", &data]).fails(&[word]);
        lessen(&["convert", path, &out]).fails(&[word]);
        lessen(&["bench", path]).fails(&[word]);
    }
    assert!(!place.names().contains(&"out.onnx".to_string()));
}

#[test]
fn errors_are_json_too() {
    let answer = lessen(&["inspect", "/no/such/file", "--json"]);
    answer.fails(&["/no/such/file"]);
    let value: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert!(value["error"].as_str().unwrap().contains("/no/such/file"));
}

#[test]
fn inputs_that_do_not_fit() {
    let place = Place::new();
    let model = relu(&place);
    let run =
        |name: &str, arrays: &[(&str, Tensor)]| lessen(&["run", &model, "--input", &place.npz(name, arrays)]);
    run("a.npz", &[("y", x(&[1.0; 3]))]).fails(&["\"y\"", "it has x"]);
    run("b.npz", &[("label", Tensor::vector(&[1i64]))]).fails(&["\"x\"", "float[n, 3]", "missing"]);
    run("c.npz", &[("x", Tensor::vector(&[1f32; 3]))]).fails(&["\"x\"", "float[n, 3]", "float[3]"]);
    run("d.npz", &[("x", Tensor::new(&[1, 3], &[1i64; 3]).unwrap())]).fails(&["float[n, 3]", "int64[1, 3]"]);
    run("e.npz", &[("x", x(&[1.0; 3])), ("label", Tensor::vector(&[1i64]))]).text();
    lessen(&["run", &model]).fails(&["--input", "\"x\" (float[n, 3])"]);
    lessen(&["run", &model, "--input", &place.path("no.npz")]).fails(&["no.npz"]);
    lessen(&["run", &model, "--input", &place.file("bad.npz", b"PK nothing")]).fails(&["bad.npz"]);
    lessen(&["run", &model, "--text", "hello"]).fails(&["--tokenizer"]);
    let good = place.npz("f.npz", &[("x", x(&[1.0; 3]))]);
    lessen(&["run", &model, "--input", &good, "--output-name", "z"]).fails(&["\"z\"", "it has y"]);
    lessen(&["run", &model, &good, &good]).fails(&["only input"]);
    lessen(&["run", &model, &place.picture("p.bmp")]).fails(&["does not take images"]);
}

#[test]
fn nan_in_the_input() {
    let place = Place::new();
    let model = relu(&place);
    let input = place.npz("nan.npz", &[("x", x(&[1.0, 2.0, 3.0, 4.0, f32::NAN, 6.0]))]);
    lessen(&["run", &model, "--input", &input]).fails(&["\"x\"", "NaN", "[1, 1]", "--allow-nan"]);
    lessen(&["run", &model, "--input", &input, "--allow-nan"]).text();
    lessen(&["eval", &model, "--data", &input, "--task", "classify"]).fails(&["NaN"]);
}

#[test]
fn operators_that_nobody_knows() {
    let place = Place::new();
    let model = place.model("m.onnx", "NoSuchThing", vec![Dim::Is(1)], &[]);
    let input = place.npz("in.npz", &[("x", Tensor::vector(&[1f32]))]);
    lessen(&["run", &model, "--input", &input]).fails(&["not supported", "NoSuchThing"]);
    lessen(&["bench", &model]).fails(&["NoSuchThing"]);
}

#[test]
fn data_that_do_not_fit() {
    let place = Place::new();
    let model = relu(&place);
    let eval = |data: &str, more: &[&str]| {
        let mut args = vec!["eval", &model, "--data", data];
        args.extend(more);
        lessen(&args)
    };
    eval(&place.path("no"), &[]).fails(&["no"]);
    eval(&place.npz("a.npz", &[("x", x(&[1.0; 3]))]), &[]).fails(&["neither labels nor scores"]);
    let label = |l: i64| place.npz("b.npz", &[("x", x(&[1.0; 3])), ("label", Tensor::vector(&[l]))]);
    eval(&label(7), &[]).fails(&["class 7", "only 3 classes"]);
    eval(&label(-1), &[]).fails(&["-1"]);
    eval(&label(1), &["--task", "similarity"]).fails(&["two texts"]);
    let named =
        place.npz("c.npz", &[("z", x(&[1.0; 3])), ("w", x(&[1.0; 3])), ("label", Tensor::vector(&[1i64]))]);
    eval(&named, &[]).fails(&["\"x\"", "missing"]);

    let image = vec![Dim::Is(1), Dim::Is(3), Dim::Is(2), Dim::Is(2)];
    let model = place.model("i.onnx", "Relu", image, &[("classes", "[\"cat\", \"dog\"]")]);
    place.picture("pictures/cat/1.bmp");
    place.picture("pictures/horse/1.bmp");
    lessen(&["eval", &model, "--data", &place.path("pictures")]).fails(&["horse"]);
}

#[test]
fn shapes_that_nobody_knows() {
    let place = Place::new();
    let model = place.model("m.onnx", "Relu", vec![Dim::Is(1), Dim::named("width")], &[]);
    lessen(&["bench", &model]).fails(&["--shape x=1x224", "width"]);
    lessen(&["bench", &model, "--shape", "x=1x5", "--runs", "5"]).text();
    lessen(&["bench", &model, "--shape", "y=1x5"]).fails(&["\"y\""]);
}

#[test]
fn wrong_flags_are_no_missed_bound() {
    for args in
        [&["nonsense"][..], &["run"], &["eval", "m", "--task", "x"], &["bench", "m", "--shape", "1x2"]]
    {
        let answer = lessen(args);
        assert_eq!(answer.code, 1, "{args:?}: {}", answer.err);
        assert!(answer.err.contains("error:") || answer.err.contains("Usage"), "{}", answer.err);
    }
}

#[test]
fn outputs_that_cannot_be_written() {
    let place = Place::new();
    let model = relu(&place);
    let input = place.npz("in.npz", &[("x", x(&[1.0; 3]))]);
    let nowhere = place.path("no/such/folder/out");
    lessen(&["run", &model, "--input", &input, "--output", &nowhere]).fails(&["cannot be written"]);
    lessen(&["convert", &model, &nowhere]).fails(&["cannot be written"]);
    // The name is taken by a folder.
    let before = place.names().len();
    std::fs::create_dir(place.path("taken")).unwrap();
    lessen(&["convert", &model, &place.path("taken")]).fails(&["taken"]);
    lessen(&["run", &model, "--input", &input, "-o", &place.path("taken")]).fails(&["taken"]);
    assert_eq!(place.names().len(), before + 1, "{:?}", place.names());
}

#[cfg(target_os = "linux")]
#[test]
fn full_disks() {
    let place = Place::new();
    let model = relu(&place);
    let input = place.npz("in.npz", &[("x", x(&[1.0; 3]))]);
    lessen(&["convert", &model, "/dev/full"]).fails(&["/dev/full", "No space left"]);
    lessen(&["run", &model, "--input", &input, "-o", "/dev/full"]).fails(&["/dev/full", "No space left"]);
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    lessen_into(&["ops"], full()).fails(&["stdout"]);
}

#[cfg(target_os = "linux")]
#[test]
fn disks_that_fill_up_while_shrinking() {
    let (place, spill) = (Place::new(), Place::new());
    let out = place.path("small.onnx");
    // Files may have one block: as on a full disk, but for the words of the system.
    let shrink = |flags: &[&str]| {
        let (model, data) = (example("digits.onnx"), example("test.npz"));
        let args = [&["shrink", &model, "--data", &data, "--smaller", "6", "-o", &out], flags].concat();
        let shell = r#"trap '' XFSZ; ulimit -f 1; exec "$0" "$@""#;
        let command = ["-c", shell, env!("CARGO_BIN_EXE_lessen")].into_iter().chain(args);
        run("sh", &command.collect::<Vec<_>>())
    };
    shrink(&["--spill", &spill.path("")]).fails(&["cannot be kept", "make room", "--spill"]);
    shrink(&[]).fails(&["small.onnx", "cannot be written"]);
    let left: Vec<String> = place.names();
    assert!(left.iter().all(|name| name.ends_with(".partial")), "{left:?}");
    assert!(spill.names().is_empty(), "{:?}", spill.names());
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::{Command, Stdio};
    let command = Command::new(env!("CARGO_BIN_EXE_lessen"))
        .arg("ops")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = command.unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}
