//! Adapters: what training has added to weights, as two small factors each, in the files of PEFT
//! (<https://huggingface.co/docs/peft>): `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use format::safetensors;
use graph::{DType, Tensor};
use learn::fit::lora;
use serde_json::{Value, json};

use crate::{Error, Model, Result, write_file};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What names begin with in the file.
const PREFIX: &str = "base_model.model.";

/// What is added to a weight.
#[derive(Clone, Debug)]
pub struct Factors {
    /// The module: the name of the weight without `.weight`.
    pub module: String,
    /// `[inputs, rank]`.
    pub down: Tensor,
    /// `[rank, outputs]`.
    pub up: Tensor,
    /// What their product is multiplied by.
    pub scale: f32,
}

/// What is added to the weights of a model.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    /// By module, in order of their names.
    pub factors: Vec<Factors>,
}

impl Adapter {
    /// Reads a folder of PEFT with an adapter of the kind LoRA.
    ///
    /// # Errors
    /// When a file cannot be read, the adapter is of another kind, or a factor lacks its other.
    pub fn read(folder: &Path) -> Result<Adapter> {
        let path = folder.join(CONFIG);
        let config = safetensors::read_json(&path)?;
        let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
        let kind = config["peft_type"].as_str().unwrap_or("no kind");
        if kind != "LORA" {
            return Err(wrong(format!("it is an adapter of {kind}; those of LORA can be added")));
        }
        for (key, what) in
            [("use_dora", "DoRA"), ("fan_in_fan_out", "transposed weights"), ("use_qalora", "QA-LoRA")]
        {
            if config[key].as_bool() == Some(true) {
                return Err(wrong(format!("adapters with {what} ({key}) cannot be added")));
            }
        }
        let number = |key: &str| {
            let value = config[key].as_f64().filter(|x| x.is_finite() && *x > 0.0);
            value.ok_or_else(|| wrong(format!("{key:?} is {}, not a number above 0", config[key])))
        };
        let (rank, alpha) = (number("r")?, number("lora_alpha")?);
        let root = config["use_rslora"].as_bool() == Some(true);
        let mut found: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        for (name, tensor) in safetensors::read_file(&folder.join(WEIGHTS))? {
            let place = [".lora_A.", ".lora_B."].iter().position(|part| name.contains(part));
            let module =
                name.strip_prefix(PREFIX).unwrap_or(&name).split(".lora_").next().unwrap_or_default();
            match place.filter(|_| tensor.rank() == 2 && name.ends_with(".weight")) {
                Some(place) => found.entry(module.to_owned()).or_default()[place] = Some(tensor),
                None => return Err(wrong(format!("tensor {name:?} is no factor of a product's weight"))),
            }
        }
        let mut factors = Vec::new();
        for (module, pair) in found {
            let [Some(a), Some(b)] = pair else {
                return Err(wrong(format!("{module:?} has one of lora_A and lora_B, not both")));
            };
            // Patterns are the ends of modules' names.
            let special = |key: &str, usual: f64| {
                let patterns = config[key].as_object();
                let mut of = patterns.into_iter().flatten();
                of.find(|(end, _)| module.ends_with(end.as_str()))
                    .and_then(|(_, x)| x.as_f64())
                    .unwrap_or(usual)
            };
            let (rank, alpha) = (special("rank_pattern", rank), special("alpha_pattern", alpha));
            if a.shape()[0] != b.shape()[1]
                || a.shape()[0] as f64 != rank
                || rank <= 0.0
                || !alpha.is_finite()
            {
                return Err(wrong(format!(
                    "{module:?} has factors of {:?} and {:?}, which are not of rank {rank}",
                    a.shape(),
                    b.shape()
                )));
            }
            let scale = (alpha / if root { rank.sqrt() } else { rank }) as f32;
            factors.push(Factors { module, down: turned(&a)?, up: turned(&b)?, scale });
        }
        if factors.is_empty() {
            return Err(wrong("the adapter holds no factors".into()));
        }
        Ok(Adapter { factors })
    }

    /// Writes such a folder, which is made when it is not there.
    ///
    /// # Errors
    /// When there are no factors, they are of several ranks, or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let first = self.factors.first().ok_or_else(|| Error::input("there is no adapter to write"))?;
        let (rank, scale) = (first.up.shape()[0], first.scale);
        if self.factors.iter().any(|f| f.up.shape()[0] != rank || f.scale != scale) {
            return Err(Error::input("adapters of several ranks are not written"));
        }
        std::fs::create_dir_all(folder).map_err(|e| Error::input(format!("{}: {e}", folder.display())))?;
        let modules: Vec<&str> = self.factors.iter().map(|f| f.module.as_str()).collect();
        let config = json!({
            "peft_type": "LORA",
            "task_type": "FEATURE_EXTRACTION",
            "base_model_name_or_path": Value::Null,
            "inference_mode": true,
            "r": rank,
            "lora_alpha": f64::from(scale) * rank as f64,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "use_dora": false,
            "target_modules": modules,
            "modules_to_save": Value::Null,
        });
        let mut tensors = BTreeMap::new();
        for f in &self.factors {
            tensors.insert(format!("{PREFIX}{}.lora_A.weight", f.module), turned(&f.down)?);
            tensors.insert(format!("{PREFIX}{}.lora_B.weight", f.module), turned(&f.up)?);
        }
        safetensors::write_file(&folder.join(WEIGHTS), &tensors)?;
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::input(e.to_string()))?;
        write_file(&folder.join(CONFIG), text.as_bytes())
    }

    /// Adds the adapter, times `share`, to the weights of a model.
    ///
    /// # Errors
    /// When the model has no weight of a module's name, or of another shape.
    pub fn add_to(&self, model: &mut Model, share: f32) -> Result<()> {
        let graph = &mut model.inner_mut().graph;
        for factors in &self.factors {
            let module = &factors.module;
            // A task's model has its encoder under a name of its own, such as `bert.`.
            let ends: Vec<&str> = module.match_indices('.').map(|(at, _)| &module[at + 1..]).collect();
            let names = std::iter::once(module.as_str()).chain(ends);
            let found = names.filter(|name| !name.is_empty()).find_map(|name| {
                let id = graph.find(&format!("{name}.weight"))?;
                graph.constant(id).is_some().then_some(id)
            });
            let Some(id) = found else {
                return Err(Error::input(format!(
                    "the model has no weight of the adapter's module {module:?}"
                )));
            };
            let Some(weight) = graph.constant(id) else { continue };
            if weight.dtype() != DType::F32 {
                return Err(Error::input(format!(
                    "weight {module:?} is {:?}; adapters are added to weights of f32, before they are shrunk",
                    weight.dtype()
                )));
            }
            let (inputs, outputs) = (factors.down.shape()[0], factors.up.shape()[1]);
            let transposed = match (used_transposed(graph, id), weight.shape()) {
                (Some(transposed), _) => transposed,
                (None, shape) => shape == [outputs, inputs],
            };
            let sum = lora::merged(weight, &factors.down, &factors.up, share * factors.scale, transposed)
                .map_err(|e| Error::input(format!("module {module:?}: {e}")))?;
            graph.set_constant(id, sum);
        }
        Ok(())
    }
}

/// Is this weight `[outputs, inputs]` where it is used? `None` when no product reads it.
fn used_transposed(graph: &graph::Graph, weight: graph::ValueId) -> Option<bool> {
    graph.nodes().find_map(|(_, node)| {
        let used = node.op.weight().filter(|w| node.input(w.input) == Some(weight))?;
        Some(matches!(used.out_axis, 0 | -2))
    })
}

/// A tensor of two axes, transposed, in f32.
fn turned(tensor: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (tensor.shape()[0], tensor.shape()[1]);
    let values = tensor.to_f32()?;
    let turned: Vec<f32> = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect();
    Ok(Tensor::new(&[cols, rows], &turned)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use graph::op::ramp;
    use graph::{Attrs, Dim, Fact, Graph};

    fn model() -> Model {
        let mut graph = Graph::new("test");
        let x = graph.add_input("x", Fact::tensor(DType::F32, vec![Dim::named("n"), Dim::Is(3)])).unwrap();
        let w = graph.add_constant("layer.0.query.weight", ramp(&[3, 4]));
        let y = graph.append("y", "MatMul", 13, &Attrs::new(), &[x, w]).unwrap();
        graph.outputs.push(y);
        let mut inner = graph::Model { graph, ir_version: 8, ..graph::Model::default() };
        inner.opsets.insert(String::new(), 17);
        Model::new(inner).unwrap()
    }

    fn weight(model: &Model) -> Vec<f32> {
        let graph = &model.inner().graph;
        let id = graph.find("layer.0.query.weight").unwrap();
        graph.constant(id).unwrap().to_f32().unwrap().into_owned()
    }

    fn adapter() -> Adapter {
        let down = Tensor::new(&[3, 1], &[1f32, 2., 3.]).unwrap();
        let up = Tensor::new(&[1, 4], &[1f32, 0., -1., 0.5]).unwrap();
        Adapter { factors: vec![Factors { module: "layer.0.query".into(), down, up, scale: 2.0 }] }
    }

    #[test]
    fn what_is_written_is_read_again_and_added() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("adapter");
        adapter().write(&folder).unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(folder.join(CONFIG)).unwrap()).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(1), &json!(2.0)));
        let tensors = safetensors::read_file(&folder.join(WEIGHTS)).unwrap();
        let shapes: Vec<(&str, &[usize])> = tensors.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
        // As torch's layers have them.
        assert_eq!(
            shapes,
            [
                ("base_model.model.layer.0.query.lora_A.weight", &[1, 3][..]),
                ("base_model.model.layer.0.query.lora_B.weight", &[4, 1][..])
            ]
        );
        let (before, mut whole, mut half) = (weight(&model()), model(), model());
        let read = Adapter::read(&folder).unwrap();
        read.add_to(&mut whole, 1.0).unwrap();
        let want: Vec<f32> = [1f32, 2., 3.]
            .iter()
            .flat_map(|a| [1f32, 0., -1., 0.5].map(|b| 2.0 * a * b))
            .zip(&before)
            .map(|(add, w)| add + w)
            .collect();
        assert_eq!(weight(&whole), want);
        // Two halves are a whole.
        read.add_to(&mut half, 0.5).unwrap();
        read.add_to(&mut half, 0.5).unwrap();
        assert!(weight(&half).iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5));
        // Under another name of the encoder it is the same module.
        let mut other = read.clone();
        other.factors[0].module = "bert.layer.0.query".into();
        let mut again = model();
        other.add_to(&mut again, 1.0).unwrap();
        assert_eq!(weight(&again), want);
    }

    #[test]
    fn other_adapters_and_other_models_are_refused() {
        let place = tempfile::tempdir().unwrap();
        adapter().write(place.path()).unwrap();
        let path = place.path().join(CONFIG);
        let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let fails = |key: &str, value: Value, said: &str| {
            let mut other = config.clone();
            other[key] = value;
            std::fs::write(&path, other.to_string()).unwrap();
            let error = Adapter::read(place.path()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        };
        fails("peft_type", json!("IA3"), "IA3");
        fails("use_dora", json!(true), "DoRA");
        fails("r", json!(0), "\"r\" is 0");
        fails("r", json!(2), "not of rank 2");
        fails("lora_alpha", json!("many"), "lora_alpha");
        let mut odd = adapter();
        odd.factors[0].module = "layer.1.query".into();
        assert!(odd.add_to(&mut model(), 1.0).unwrap_err().to_string().contains("layer.1.query"));
        odd.factors[0].module = "layer.0.query".into();
        odd.factors[0].down = ramp(&[5, 1]);
        assert!(odd.add_to(&mut model(), 1.0).unwrap_err().to_string().contains("do not fit"));
        let tensors = BTreeMap::from([("x.lora_A.weight".to_owned(), ramp(&[1, 3]))]);
        std::fs::write(&path, config.to_string()).unwrap();
        safetensors::write_file(&place.path().join(WEIGHTS), &tensors).unwrap();
        assert!(Adapter::read(place.path()).unwrap_err().to_string().contains("not both"));
        assert!(Adapter::default().write(place.path()).is_err());
    }
}
