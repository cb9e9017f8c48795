//! What a kernel runs on: an instruction set and threads.

use crate::{Isa, Pool};

/// The instruction set and the threads that kernels use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Pool,
}

impl Cpu {
    /// The best instruction set (or the one `LESSEN_ISA` names), on `threads` threads; 0 means all cores.
    ///
    /// # Errors
    /// A sentence when `LESSEN_ISA` is wrong.
    pub fn new(threads: usize) -> Result<Cpu, String> {
        Ok(Cpu { isa: Isa::from_env()?, pool: Pool::new(threads) })
    }

    /// This instruction set, on `threads` threads; `None` when the processor lacks it.
    pub fn with_isa(isa: Isa, threads: usize) -> Option<Cpu> {
        isa.is_available().then(|| Cpu { isa, pool: Pool::new(threads) })
    }

    /// The instruction set; it is available on this processor.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
