//! Each command as a user calls it, on the example model and on small models made here.

mod here;

use graph::Dim;
use here::{Place, example, lessen, shared};
use lessen::Tensor;

fn three() -> Vec<Dim> {
    vec![Dim::named("n"), Dim::Is(3)]
}

#[test]
fn inspect_counts_what_is_there() {
    let found = lessen(&["inspect", &example("digits.onnx"), "--json"]).json();
    let conv = found["operators"].as_array().unwrap().iter().find(|o| o["name"] == "Conv").unwrap();
    assert_eq!((conv["count"].as_u64(), conv["supported"].as_bool()), (Some(6), Some(true)));
    // 16·9·64 + 16·9·64 + 16·32·64 + 32·48·9·16 + 2·48·48·9·16 + 48·10, and nothing for the rest.
    assert_eq!(found["cost"]["multiply_adds"], 936_416);
    assert_eq!(found["weights"][0]["bytes"], 48 * 48 * 9 * 4);
    let names: Vec<_> = found["shrinkers"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["int8-dynamic", "int8-static"]);
    assert!(lessen(&["inspect", &example("digits.onnx")]).text().contains("BatchNormalization  6"));
}

#[test]
fn inspect_asks_for_sizes_and_names_what_it_cannot_run() {
    let place = Place::new();
    let open = vec![Dim::Is(1), Dim::Unknown];
    let model = place.model("m.onnx", "NoSuchThing", open, &[]);
    let found = lessen(&["inspect", &model, "--json"]).json();
    assert_eq!(found["operators"][0]["supported"], false);
    assert!(found["cost_unknown"].as_str().unwrap().contains("--shape x=1x224"));
    let found = lessen(&["inspect", &model, "--json", "--shape", "x=1x5"]).json();
    assert_eq!(found["cost"]["shapes"]["x"], serde_json::json!([1, 5]));
    lessen(&["inspect", &model, "--shape", "x=2x5"]).fails(&["\"x\"", "2x5"]);
}

#[test]
fn run_writes_arrays_by_name() {
    let place = Place::new();
    let model = place.model("m.onnx", "Relu", three(), &[]);
    let x = Tensor::new(&[2, 3], &[1f32, -2.0, 3.0, -4.0, 5.0, -6.0]).unwrap();
    let (input, output) = (place.npz("in.npz", &[("x", x)]), place.path("out.npz"));
    let told = lessen(&["run", &model, "--input", &input, "--output", &output, "--json"]).json();
    assert_eq!(told["arrays"][0]["shape"], serde_json::json!([2, 3]));
    let arrays = lessen::data::npz::read(output.as_ref(), 1 << 20).unwrap();
    assert_eq!(arrays.len(), 1);
    assert_eq!(arrays[0].0, "y");
    assert_eq!(arrays[0].1.as_slice::<f32>().unwrap(), [1.0, 0.0, 3.0, 0.0, 5.0, 0.0]);

    let printed = lessen(&["run", &model, "--input", &input]);
    assert!(printed.text().contains("least 0.00000, greatest 5.00000, mean 1.50000"), "{}", printed.out);
    let found = lessen(&["run", &model, "--input", &input, "--json"]).json();
    assert_eq!(found["results"][0]["outputs"][0]["values"][4], 5.0);
}

#[test]
fn run_names_classes() {
    let found = lessen(&["run", &example("digits.onnx"), &example("test.npz"), "--json"]).json();
    let top = found["results"][0]["top"].as_array().unwrap();
    assert_eq!((top.len(), top[0].as_array().unwrap().len()), (899, 5));
    assert_eq!(top[0][0]["name"], "5");
    assert!(top[0][0]["share"].as_f64().unwrap() > 0.99);
    let shown = lessen(&["run", &example("digits.onnx"), &example("test.npz")]);
    assert!(shown.text().contains("and 889 rows more"));
}

#[test]
fn run_takes_pictures() {
    let place = Place::new();
    let image = vec![Dim::Is(1), Dim::Is(3), Dim::Is(2), Dim::Is(2)];
    let model = place.model("m.onnx", "Relu", image, &[]);
    let picture = place.picture("a.bmp");
    let args = ["run", &model, &picture, "--json", "--preprocess", "color=bgr,scale=none,layout=nchw"];
    let found = lessen(&args).json();
    // BMP holds rows from the bottom up, and blue first.
    assert_eq!(
        found["results"][0]["outputs"][0]["values"],
        serde_json::json!([70, 100, 10, 40, 80, 110, 20, 50, 90, 120, 30, 60].map(f64::from))
    );
    let guessed = lessen(&["run", &model, &picture]);
    guessed.text();
    assert!(guessed.err.contains("guessed"), "{}", guessed.err);
}

#[test]
fn eval_gives_accuracy_with_an_interval() {
    let found = lessen(&["eval", &example("digits.onnx"), "--data", &example("test.npz"), "--json"]).json();
    assert_eq!(found["task"], "classify");
    let value = &found["value"];
    assert!((value["value"].as_f64().unwrap() - 100.0 * 894.0 / 899.0).abs() < 1e-9);
    assert!(value["low"].as_f64().unwrap() < 99.0 && value["high"].as_f64().unwrap() > 99.5);
    assert_eq!(value["unit"], "%");
    assert_eq!(found["classes"].as_array().unwrap().len(), 10);
}

#[test]
fn eval_is_the_same_for_each_batch_size_and_thread_count() {
    let of = |args: &[&str]| {
        let (model, data) = (example("digits.onnx"), example("test.npz"));
        let mut all = vec!["eval", &model, "--data", &data, "--json"];
        all.extend(args);
        lessen(&all).json()["value"].clone()
    };
    assert_eq!(of(&["--batch", "1", "--threads", "1"]), of(&["--batch", "64", "--threads", "3"]));
}

#[test]
fn compare_finds_nothing_between_equals_and_much_between_strangers() {
    let (digits, data) = (example("digits.onnx"), example("test.npz"));
    let same = lessen(&["compare", &digits, &digits, "--data", &data, "--json"]).json();
    assert_eq!(same["agreement"]["value"], 100.0);
    assert_eq!(same["distance"]["max_abs"]["value"], 0.0);
    assert_eq!(same["worst"].as_array().unwrap().len(), 0);
    assert_eq!(same["metric"]["difference"]["value"], 0.0);

    let place = Place::new();
    let (a, b) = (place.model("a.onnx", "Relu", three(), &[]), place.model("b.onnx", "Neg", three(), &[]));
    let x = Tensor::new(&[2, 3], &[1f32, 2.0, 3.0, 3.0, -1.0, 0.0]).unwrap();
    let label = Tensor::vector(&[2i64, 1]);
    let data = place.npz("d.npz", &[("x", x), ("label", label)]);
    let found = lessen(&["compare", &a, &b, "--data", &data, "--json"]).json();
    // Relu says 2, 0; Neg says 0, 1; right is 2, 1.
    assert_eq!(found["agreement"]["value"], 0.0);
    let flips = &found["flips"];
    assert_eq!((&flips["changed"], &flips["lost"], &flips["won"]), (&2.into(), &1.into(), &1.into()));
    assert_eq!(found["distance"]["max_abs"]["value"], 6.0);
    // The second row: (-6, 1, 0) away from (3, 0, 0).
    assert_eq!(found["worst"][0]["index"], 1);
    assert!((found["worst"][0]["relative"].as_f64().unwrap() - 37f64.sqrt() / 3.0).abs() < 1e-9);
    assert!(lessen(&["compare", &a, &b, "--data", &data]).text().contains("1 from right to wrong"));
}

#[test]
fn eval_agrees_with_another_model_as_compare_does() {
    let place = Place::new();
    let (a, b) = (place.model("a.onnx", "Relu", three(), &[]), place.model("b.onnx", "Neg", three(), &[]));
    let x = Tensor::new(&[3, 3], &[1f32, 2.0, 3.0, 3.0, -1.0, 0.0, 4.0, -5.0, -5.0]).unwrap();
    let data = place.npz("d.npz", &[("x", x)]);
    let args = ["eval", &b, "--data", &data, "--task", "agree", "--against", &a, "--json"];
    let found = lessen(&args).json();
    assert_eq!(found, lessen(&["compare", &a, &b, "--data", &data, "--json"]).json());
    assert_eq!((&found["task"], &found["flips"]["changed"]), (&"agree".into(), &3.into()));
    assert!(found["metric"].is_null());
    // Labels that the data may have play no part.
    let same = ["eval", &example("digits.onnx"), "--data", &example("test.npz"), "--against"];
    let same = lessen(&[&same[..], &[&example("digits.onnx"), "--json"]].concat()).json();
    assert_eq!((&same["agreement"]["value"], &same["metric"]), (&100.0.into(), &serde_json::Value::Null));

    lessen(&["eval", &b, "--data", &data]).fails(&["neither labels nor scores", "--against MODEL"]);
    lessen(&["eval", &b, "--data", &data, "--task", "agree"]).fails(&["--task agree", "--against MODEL"]);
    let classify = ["eval", &b, "--data", &data, "--task", "classify", "--against", &a];
    lessen(&classify).fails(&["--task agree", "lessen compare"]);
}

#[test]
fn bench_measures_both_models() {
    let digits = example("digits.onnx");
    let args = ["bench", &digits, "--against", &digits, "--runs", "6", "--threads", "1", "--json"];
    let found = lessen(&args).json();
    let models = found["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    for model in models {
        assert_eq!((&model["runs"], &model["threads"]), (&6.into(), &1.into()));
        assert_eq!(model["shapes"]["image"], serde_json::json!([1, 1, 8, 8]));
        assert!(model["latency_median"]["value"].as_f64().unwrap() > 0.0);
        assert_eq!(model["latency_median"]["unit"], "ms");
    }
    assert!(found["speedup"]["value"].as_f64().unwrap() > 0.0);
    assert!(lessen(&["bench", &digits, "--runs", "5"]).text().contains("peak memory"));
}

#[test]
fn convert_keeps_the_model() {
    let place = Place::new();
    let out = place.path("out.onnx");
    let told = lessen(&["convert", &example("digits.onnx"), &out, "--json"]).json();
    assert_eq!(told["changes"].as_array().unwrap().len(), 0);
    assert_eq!(place.names(), ["out.onnx"]);
    let same =
        lessen(&["compare", &example("digits.onnx"), &out, "--data", &example("test.npz"), "--json"]).json();
    assert_eq!(same["distance"]["max_abs"]["value"], 0.0);
}

#[test]
fn convert_raises_the_version() {
    let place = Place::new();
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    let out = place.path("out.onnx");
    let told = lessen(&["convert", &model, &out, "--opset", "24", "--json"]).json();
    assert!(told["changes"].to_string().contains("versions"), "{told}");
    assert_eq!(lessen(&["inspect", &out, "--json"]).json()["opsets"]["ai.onnx"], 24);
    let same = lessen(&["compare", &model, &out, "--data", &data, "--json"]).json();
    assert_eq!(same["distance"]["max_abs"]["value"], 0.0);

    let before = std::fs::read(&out).unwrap();
    lessen(&["convert", &out, &out, "--opset", "21"]).fails(&["version 24", "raised, not lowered to 21"]);
    lessen(&["convert", &model, &out, "--opset", "29"]).fails(&["version 29", "13 to 28"]);
    assert_eq!(std::fs::read(&out).unwrap(), before);
}

#[test]
fn convert_rewrites_what_changed_and_names_what_cannot_be() {
    let place = Place::new();
    let old = place.old_model("old.onnx", "Softmax", 11, 1);
    let new = place.path("new.onnx");
    let told = lessen(&["convert", &old, &new, "--opset", "13", "--json"]).json();
    assert!(told["changes"].to_string().contains("operator Flatten"), "{told}");
    let x = Tensor::new(&[2, 3, 1], &[1f32, 2.0, 3.0, 3.0, -1.0, 0.0]).unwrap();
    let data = place.npz("d.npz", &[("x", x)]);
    let same = lessen(&["compare", &old, &new, "--data", &data, "--json"]).json();
    assert_eq!(same["distance"]["max_abs"]["value"], 0.0);

    let stuck = place.old_model("stuck.onnx", "Dropout", 7, 2);
    lessen(&["convert", &stuck, &new, "--opset", "21"]).fails(&["version 21", "Dropout", "mask"]);
}

#[test]
fn convert_puts_weights_beside() {
    let place = Place::new();
    let (model, out) = (example("digits.onnx"), place.path("out.onnx"));
    let told = lessen(&["convert", &model, &out, "--external", "--json"]).json();
    let mut names = place.names();
    names.sort();
    assert_eq!(names, ["out.onnx", "out.onnx.data"]);
    assert_eq!(told["changes"].as_array().unwrap().len(), 0);
    let size = |name: &str| std::fs::metadata(place.path(name)).unwrap().len();
    assert!(size("out.onnx") < size("out.onnx.data"));
    assert_eq!(told["bytes"]["after"], size("out.onnx") + size("out.onnx.data"));
    let data = example("test.npz");
    let same = lessen(&["compare", &model, &out, "--data", &data, "--json"]).json();
    assert_eq!(same["distance"]["max_abs"]["value"], 0.0);
}

#[test]
fn ops_lists_what_can_be_run() {
    let found = lessen(&["ops", "--json"]).json();
    let ops = found["operators"].as_array().unwrap();
    assert!(ops.iter().any(|o| o["name"] == "Conv" && o["domain"] == "ai.onnx"));
    assert!(lessen(&["ops", "--domain", "ai.onnx"]).text().contains("  Relu (since"));
}

#[test]
fn every_command_explains_itself() {
    for command in ["inspect", "run", "eval", "compare", "bench", "convert", "ops"] {
        assert!(lessen(&[command, "--help"]).text().contains("Examples:"), "{command}");
    }
    assert!(lessen(&["--version"]).text().starts_with("lessen "));
}

#[test]
fn real_models_are_as_good_as_they_should_be() {
    let preprocess = "mean=0.485:0.456:0.406,std=0.229:0.224:0.225";
    for (model, accuracy) in [("models/resnet20.onnx", 91.73), ("models/resnet56.onnx", 93.39)] {
        let (Some(model), Some(data)) = (shared(model), shared("data/cifar10-test")) else { return };
        let found = lessen(&["eval", &model, "--data", &data, "--preprocess", preprocess, "--json"]).json();
        assert!((found["value"]["value"].as_f64().unwrap() - accuracy).abs() < 0.005, "{model}");
    }
}

#[test]
fn a_tokenizer_beside_a_model_of_pictures_is_none_of_its_business() {
    let place = Place::new();
    let model = place.file("digits.onnx", &std::fs::read(example("digits.onnx")).unwrap());
    place.file("tokenizer.json", b"{}");
    let found = lessen(&["eval", &model, "--data", &example("test.npz"), "--json"]).json();
    assert!(found["value"]["value"].as_f64().unwrap() > 98.0);
}
