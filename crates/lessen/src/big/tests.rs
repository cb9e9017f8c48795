use format::safetensors::compressed::pack_scales;
use format::safetensors::shard::{Piece, write_shard};
use format::safetensors::{Checkpoint, ElementType, read_json};
use kernel::Isa;
use serde_json::json;

use super::work::block_of;
use super::*;

fn cpu(threads: usize) -> Cpu {
    Cpu::with_isa(Isa::best(), threads).unwrap()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn write(path: &Path, tensors: &[(&str, ElementType, &[usize], Vec<f32>)]) {
    let pieces: Vec<Piece> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| Piece { name: (*name).into(), dtype: *dtype, shape: shape.to_vec() })
        .collect();
    write_shard(path, &pieces, |k, out| {
        out.write_all(&pack_scales(&tensors[k].3, tensors[k].1)).map_err(format::Error::io(path))
    })
    .unwrap();
}

const N: usize = 64;

/// Two blocks of two weights, a table and a norm, in two shards.
fn checkpoint(folder: &Path) {
    let mut random = Random(1);
    let mut numbers = |n: usize| (0..n).map(|_| random.next()).collect::<Vec<f32>>();
    let half = ElementType::F16;
    let first = [
        ("model.embed_tokens.weight", half, &[32, N][..], numbers(32 * N)),
        ("model.layers.0.fc1.weight", half, &[96, N], numbers(96 * N)),
        ("model.layers.0.fc1.bias", half, &[96], numbers(96)),
        ("model.layers.0.fc2.weight", half, &[N, 96], numbers(N * 96)),
    ];
    let second = [
        ("model.layers.10.fc1.weight", ElementType::BF16, &[96, N][..], numbers(96 * N)),
        ("model.layers.2.fc1.weight", ElementType::F32, &[40, N], numbers(40 * N)),
        ("model.layers.2.odd.weight", half, &[4, 40], numbers(160)),
        ("model.norm.weight", half, &[N], numbers(N)),
        ("lm_head.weight", half, &[32, N], numbers(32 * N)),
    ];
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    write(&folder.join(names[0]), &first);
    write(&folder.join(names[1]), &second);
    let mut map = serde_json::Map::new();
    first.iter().for_each(|t| drop(map.insert(t.0.into(), names[0].into())));
    second.iter().for_each(|t| drop(map.insert(t.0.into(), names[1].into())));
    fs::write(folder.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    fs::write(folder.join("config.json"), r#"{"model_type":"opt","torch_dtype":"float16"}"#).unwrap();
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    fs::write(folder.join("pytorch_model.bin"), "weights").unwrap();
}

/// Inputs for each kind of statistics.
fn statistics(path: &Path) {
    let mut random = Random(2);
    let half = ElementType::F16;
    let sample: Vec<f32> = (0..20 * N).map(|k| random.next() * if k % N < 5 { 8.0 } else { 1.0 }).collect();
    let wide: Vec<f32> = (0..50 * 96).map(|_| random.next()).collect();
    let product = |i: usize, j: usize| wide.chunks(96).map(|row| row[i] * row[j]).sum::<f32>();
    let blocks: Vec<f32> = (0..2 * 48 * 48)
        .map(|k| (k / 48 / 48 * 48, k / 48 % 48, k % 48))
        .map(|(o, i, j)| product(o + i, o + j))
        .collect();
    let whole: Vec<f32> = (0..N * N).map(|k| f32::from(u8::from(k / N == k % N)) + 0.1).collect();
    let squares: Vec<f32> = (0..N).map(|j| 1.0 + j as f32).collect();
    write(
        path,
        &[
            ("model.layers.0.fc1.weight.sample", half, &[20, N][..], sample),
            ("model.layers.0.fc2.xtx", ElementType::F32, &[2, 48, 48], blocks),
            ("model.layers.2.fc1.weight.xtx", ElementType::F32, &[N, N], whole),
            ("model.layers.10.fc1.weight.diag", ElementType::BF16, &[N], squares),
        ],
    );
}

/// All files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect()
}

fn small(stats: Option<PathBuf>) -> Request {
    Request { group: 32, shard: 8000, stats, ..Request::default() }
}

fn quiet(_: u64, _: u64, _: &str) {}

#[test]
fn a_checkpoint_becomes_small_and_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("in")).unwrap();
    checkpoint(&at("in"));
    statistics(&at("stats.safetensors"));
    for (symmetric, stats) in [(true, None), (false, None), (true, Some(at("stats.safetensors")))] {
        let out = at(&format!("out-{symmetric}-{}", stats.is_some()));
        let request = Request { symmetric, ..small(stats.clone()) };
        let plan = plan(&at("in"), &request, &cpu(1)).unwrap();
        let names: Vec<&str> = plan.lines.iter().map(|l| l.name.as_str()).collect();
        let place = |name: &str| names.iter().position(|n| *n == name).unwrap();
        assert!(place("model.layers.2.fc1.weight") < place("model.layers.10.fc1.weight"));
        assert!(plan.shards > 1 && plan.bytes_after < plan.bytes_before);
        let receipt = quantize(&at("in"), &out, &request, &cpu(2), &quiet).unwrap();
        assert_eq!((receipt.made.len(), receipt.found), (4, 0));
        assert!(receipt.made.iter().all(|m| m.error > 0.0 && m.error < 0.02), "{:?}", receipt.made);
        assert!(!beside(&out).exists());

        let written = files(&out);
        assert!(written.contains_key("tokenizer.json") && !written.contains_key("pytorch_model.bin"));
        let size: u64 = Checkpoint::open(&out).unwrap().entries().map(|e| e.bytes).sum();
        assert_eq!(size, plan.bytes_after);
        let config = read_json(&out.join("config.json")).unwrap();
        assert_eq!(config["torch_dtype"], "float16");
        let ignored = ["lm_head", "model.embed_tokens", "model.layers.2.odd"];
        assert_eq!(config["quantization_config"]["ignore"], json!(ignored));
        let before = format::safetensors::read_folder(&at("in")).unwrap();
        let after = format::safetensors::read_folder(&out).unwrap();
        assert_eq!(after.contains_key("model.layers.0.fc1.weight_zero_point"), !symmetric);
        let after = format::safetensors::compressed::decode(&out, &config, after).unwrap();
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (name, old) in &before {
            let new = &after[name];
            assert_eq!(old.shape(), new.shape());
            let quantized = receipt.made.iter().any(|m| m.name == *name);
            let (old, new) = (old.to_f32().unwrap(), new.to_f32().unwrap());
            let apart = old.iter().zip(new.iter()).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            let norm = old.iter().map(|a| a * a).sum::<f32>();
            match quantized {
                true => assert!(apart > 0.0 && apart < 0.05 * norm, "{name} {apart} {norm}"),
                false => assert_eq!(apart, 0.0, "{name}"),
            }
        }
        let kinds: Vec<What> = plan.lines.iter().map(|l| l.what).filter(|w| w.is_quantized()).collect();
        let known = [What::Sample, What::Products, What::Products, What::Weighed];
        assert_eq!(kinds, if stats.is_some() { known } else { [What::Searched; 4] });
    }
}

#[test]
fn threads_and_interruptions_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("in")).unwrap();
    checkpoint(&at("in"));
    statistics(&at("stats.safetensors"));
    let request = small(Some(at("stats.safetensors")));
    quantize(&at("in"), &at("whole"), &request, &cpu(1), &quiet).unwrap();
    let whole = files(&at("whole"));

    // Stops at each of the places where it tells something, as if killed there; goes on with other threads.
    let steps = std::cell::Cell::new(0);
    quantize(&at("in"), &at("count"), &request, &cpu(3), &|_, _, _| steps.set(steps.get() + 1)).unwrap();
    assert_eq!(files(&at("count")), whole);
    let mut found = Vec::new();
    for stop in 1..=steps.get() {
        let out = at(&format!("stopped-{stop}"));
        let seen = std::cell::Cell::new(0);
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let tell = |_: u64, _: u64, _: &str| {
                seen.set(seen.get() + 1);
                assert!(seen.get() < stop, "stop here");
            };
            quantize(&at("in"), &out, &request, &cpu(1), &tell)
        }));
        assert!(stopped.is_err() && !out.exists());
        let receipt = quantize(&at("in"), &out, &request, &cpu(2), &quiet).unwrap();
        assert_eq!(files(&out), whole, "stopped at {stop}");
        found.push(receipt.found);
    }
    assert!(found.is_sorted() && found.contains(&1) && found.last() == Some(&4), "{found:?}");
    // All is done: nothing is done again.
    let again = quantize(&at("in"), &at("whole"), &request, &cpu(1), &quiet).unwrap();
    assert!(again.complete_before && again.made.len() == 4);
}

#[test]
fn other_requests_and_changed_sources_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("in")).unwrap();
    checkpoint(&at("in"));
    let request = small(None);
    let stop = |_: u64, _: u64, _: &str| panic!("stop here");
    let begin = || {
        let run = || quantize(&at("in"), &at("out"), &request, &cpu(1), &stop);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    };
    begin();
    let other = Request { bits: 8, ..request.clone() };
    let error = quantize(&at("in"), &at("out"), &other, &cpu(1), &quiet).unwrap_err().to_string();
    assert!(error.contains("bits was 4, is 8") && error.contains("start anew"), "{error}");
    // The source is written anew.
    checkpoint(&at("in"));
    let error = quantize(&at("in"), &at("out"), &request, &cpu(1), &quiet).unwrap_err().to_string();
    assert!(error.contains("source model-00001-of-00002.safetensors was"), "{error}");
    let restart = Request { restart: true, ..other };
    assert_eq!(quantize(&at("in"), &at("out"), &restart, &cpu(1), &quiet).unwrap().found, 0);
    // What is there is not of this request.
    let error = quantize(&at("in"), &at("out"), &request, &cpu(1), &quiet).unwrap_err().to_string();
    assert!(error.contains("no result of this request"), "{error}");
}

#[test]
fn what_cannot_be_quantized_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("in")).unwrap();
    checkpoint(&at("in"));
    let fails = |request: &Request, word: &str| {
        let error = quantize(&at("in"), &at("out"), request, &cpu(1), &quiet).unwrap_err().to_string();
        assert!(error.contains(word), "no {word:?} in: {error}");
        assert!(!at("out").exists());
    };
    fails(&Request { bits: 3, ..small(None) }, "3 bits");
    fails(&Request { group: 0, ..small(None) }, "groups of 0");
    fails(&Request { group: 1000, ..small(None) }, "multiple of 1000");
    fails(&Request { keep: vec!["layers".into()], ..small(None) }, "no weight");
    fails(&Request { stats: Some(at("none")), ..small(None) }, "none");
    let half = ElementType::F16;
    write(&at("bad.safetensors"), &[("model.layers.0.fc1.diag", half, &[N + 1][..], vec![1.0; N + 1])]);
    fails(&small(Some(at("bad.safetensors"))), "do not fit");
    write(&at("bad.safetensors"), &[("model.layers.0.fc1.diag", half, &[N][..], vec![f32::NAN; N])]);
    fails(&small(Some(at("bad.safetensors"))), "not finite");
    fs::remove_dir_all(beside(&at("out"))).unwrap();
    let nan: Vec<f32> = (0..96 * N).map(|k| if k == 5 * N + 1 { f32::INFINITY } else { 1.0 }).collect();
    fs::create_dir(at("nan")).unwrap();
    write(&at("nan/model.safetensors"), &[("layers.0.w.weight", half, &[96, N][..], nan)]);
    fs::write(at("nan/config.json"), "{}").unwrap();
    let error = quantize(&at("nan"), &at("out"), &small(None), &cpu(1), &quiet).unwrap_err().to_string();
    assert!(error.contains("inf in row 5"), "{error}");
    for (config, word) in [
        (r#"{"quantization_config":{}}"#, "already"),
        (r#"{"model_type":"gpt2"}"#, "turned"),
        ("[]", "no JSON object"),
        ("{", "not JSON"),
    ] {
        fs::write(at("in/config.json"), config).unwrap();
        fails(&small(None), word);
    }
    fs::remove_file(at("in/config.json")).unwrap();
    fails(&small(None), "config.json");
}

#[test]
fn projections_count_blocks_and_what_lies_outside_once() {
    let line = |name: &str, before, after, what| Line {
        name: name.into(),
        block: block_of(name),
        shape: vec![],
        bytes_before: before,
        bytes_after: after,
        what,
    };
    let plan = Plan {
        lines: vec![
            line("embed.weight", 100, 100, What::Delicate),
            line("h.0.w.weight", 40, 10, What::Searched),
            line("h.1.w.weight", 60, 20, What::Searched),
        ],
        bytes_before: 200,
        bytes_after: 130,
        memory: 0,
        disk: 0,
        shards: 1,
        seconds: None,
    };
    let made = |name: &str, seconds| Made { name: name.into(), error: 0.1, seconds };
    let mut receipt = Receipt {
        plan,
        made: vec![made("h.0.w.weight", Some(2.0)), made("h.1.w.weight", Some(4.0))],
        found: 0,
        seconds: 6.0,
        energy: None,
        peak_memory: None,
        complete_before: false,
    };
    let p = receipt.project(96).unwrap();
    assert_eq!((p.seconds_per_block, p.seconds), (3.0, 288.0));
    assert_eq!((p.bytes_before, p.bytes_after), (100 + 48 * 100, 100 + 48 * 30));
    receipt.made[0].seconds = None;
    assert!(receipt.project(96).is_none());
}
