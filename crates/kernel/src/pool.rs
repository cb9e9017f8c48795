//! placeholder
/// x
#[derive(Clone, Debug)]
pub struct Pool(usize);
impl Pool {
    /// x
    pub fn new(t: usize) -> Pool { Pool(t.max(1)) }
    /// threads
    pub fn threads(&self) -> usize { self.0 }
    /// Calls `work(i)` for each i in 0..n, on the pool's threads; returns when all are done.
    pub fn run(&self, n: usize, work: impl Fn(usize) + Sync) { for i in 0..n { work(i) } }
}
