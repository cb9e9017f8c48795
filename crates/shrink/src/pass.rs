//! What surrounds a change of the whole graph: the data, through the judge, and the processor.

use kernel::Cpu;

use crate::walk::Example;
use crate::{Judge, Result};

/// What a pass may use.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Who has the data and judges models.
    pub judge: &'a dyn Judge,
    /// Instruction set and threads.
    pub cpu: &'a Cpu,
}

impl Context<'_> {
    /// The calibration examples as named inputs, batch by batch; none when there are no data.
    ///
    /// # Errors
    /// When an example cannot be read.
    pub fn examples(&self) -> Result<Vec<Example>> {
        let mut examples = Vec::new();
        if self.judge.can_calibrate() {
            self.judge.calibration(&mut |example| {
                examples.push(example);
                Ok(())
            })?;
        }
        Ok(examples)
    }

    /// Tells what is being done, in a few words.
    pub fn progress(&self, what: &str) {
        self.judge.progress(what);
    }
}
