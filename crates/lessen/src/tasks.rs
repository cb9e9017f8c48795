//! Several tasks in one model: what it makes of an example is used by several heads, whose answers stand beside each other.
//! The first task's outputs are named as if it were alone; those of each other begin with its name and a dot. What those
//! are for stands in the entry `lessen.tasks`: by their names, `{"task": "classify", "classes": ["no", "yes"]}`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::features::{answering, claim};
use crate::model::{CLASSES, TASK};
use crate::{Error, Model, Result};

/// The entry that says what further tasks are for.
const TASKS: &str = "lessen.tasks";

/// What a task is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Purpose {
    /// As [`TASK`] has it.
    pub task: String,
    /// The names of its classes, when they have names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
}

impl Model {
    fn purposes(&self) -> Result<BTreeMap<String, Purpose>> {
        let Some(text) = self.inner().metadata(TASKS) else { return Ok(BTreeMap::new()) };
        serde_json::from_str(text)
            .map_err(|e| Error::input(format!("the model's entry {TASKS:?} is damaged: {e}")))
    }

    /// The model with the answers to one of its further tasks alone.
    ///
    /// # Errors
    /// When it has no such task.
    pub fn only(&self, name: &str) -> Result<Model> {
        let mut purposes = self.purposes()?;
        let Some(purpose) = purposes.remove(name) else {
            let names: Vec<String> = purposes.into_keys().collect();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(Error::input(format!(
                "the model was not taught a task {name:?}; it has its first, which needs no name, and {names}"
            )));
        };
        let mut inner = self.inner().clone();
        let graph = &mut inner.graph;
        let start = format!("{name}.");
        let of = |id: &graph::ValueId| graph.value(*id).name.starts_with(&start);
        let outputs: Vec<_> = graph.outputs.iter().copied().filter(of).collect();
        if outputs.is_empty() {
            return Err(Error::input(format!("the model has no output {start}*, though it names the task")));
        }
        answering(graph, &outputs);
        for id in outputs {
            let alone = graph.value(id).name[start.len()..].to_owned();
            claim(graph, id, &alone)?;
        }
        self.with_inner(inner).with_purpose(&purpose)
    }

    /// The same for this purpose alone.
    pub(crate) fn with_purpose(&self, purpose: &Purpose) -> Result<Model> {
        let mut inner = self.inner().clone();
        inner.metadata.retain(|(key, _)| !CLASSES.contains(&key.as_str()) && key != TASKS);
        inner.set_metadata(TASK, purpose.task.clone());
        if let Some(classes) = &purpose.classes {
            inner.set_metadata(CLASSES[0], as_json(classes)?);
        }
        Ok(self.with_inner(inner))
    }

    /// Says what a further task is for.
    pub(crate) fn add_task(&mut self, name: &str, purpose: Purpose) -> Result<()> {
        let mut purposes = self.purposes()?;
        purposes.insert(name.into(), purpose);
        let text = as_json(&purposes)?;
        self.inner_mut().set_metadata(TASKS, text);
        Ok(())
    }

    /// Fails unless a further task can have this name.
    pub(crate) fn check_free(&self, name: &str) -> Result<()> {
        let plain = |c: char| c.is_alphanumeric() || "-_".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err(Error::input(format!("{name:?} is no name of a task: say letters, digits, - and _")));
        }
        let taken = self.purposes()?.contains_key(name)
            || self.outputs().iter().any(|(output, _)| output.starts_with(&format!("{name}.")));
        match taken {
            true => Err(Error::input(format!("the model has a task {name:?} already; give another name"))),
            false => Ok(()),
        }
    }
}

fn as_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::input(format!("the classes have odd names: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_and_tasks_that_are_not_there_are_said() {
        let mut model = Model::new(graph::Model::default()).unwrap();
        let said = |model: &Model| model.only("hate").unwrap_err().to_string();
        assert!(said(&model).contains("needs no name, and none"));
        model.add_task("spam", Purpose { task: "classify".into(), classes: None }).unwrap();
        assert!(said(&model).contains("and spam"));
        assert!(model.only("spam").unwrap_err().to_string().contains("no output spam.*"));
        assert!(model.check_free("spam").is_err() && model.check_free("hate").is_ok());
        model.inner_mut().set_metadata(TASKS, "{\"hate\": 3}");
        assert!(said(&model).contains("damaged"));
    }
}
