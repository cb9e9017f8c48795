//! Threads: parallel regions that cost a microsecond or two, because workers spin a little before they sleep.
//!
//! One region at a time is shared out. The state word of the pool holds whether a region is open, how many
//! workers are inside, and the region's number; a worker may read the region's closure only while it is
//! counted inside, and the caller leaves only when the region is closed and nobody is inside. Workers that
//! come too late are never waited for.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks for the next region, and a caller for the last worker, before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// State bit: workers may enter.
const OPEN: u64 = 1;
/// State bit: the pool is gone.
const STOP: u64 = 2;
/// One worker inside; the count takes the bits below [`REGION`].
const INSIDE: u64 = 4;
/// One region; its number takes the upper bits.
const REGION: u64 = 1 << 32;

/// A fixed set of threads that share out the tasks of one call at a time. Cheap to clone.
///
/// Results must not depend on the number of threads: tasks are handed out in any order, so each task has to
/// write its own part of the output.
#[derive(Clone)]
pub struct Pool(Option<Arc<Workers>>);

struct Workers {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    state: Line<AtomicU64>,
    next: Line<AtomicUsize>,
    /// A caller owns the region; others run their work themselves.
    busy: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Written by the owner of `busy` while the region is closed and empty; read by workers inside.
    region: UnsafeCell<Option<Region>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `region` is guarded by the state word as described at its field; the closure behind it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

struct Region {
    work: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    caller: Thread,
}

impl Pool {
    /// A pool of `threads` threads, the calling one included; 0 means one for each core. With 1, or when the
    /// system refuses more threads, everything runs on the caller.
    pub fn new(threads: usize) -> Pool {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, |n| n.get()),
            n => n.min(1024),
        };
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            next: Line(AtomicUsize::new(0)),
            busy: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            region: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let handles: Vec<_> = (1..threads)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().name(format!("lessen-{i}")).spawn(move || shared.serve()).ok()
            })
            .collect();
        Pool((!handles.is_empty()).then(|| Arc::new(Workers { shared, handles })))
    }

    /// A pool of the caller alone.
    pub(crate) fn solo() -> Pool {
        Pool(None)
    }

    /// The number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.0.as_ref().map_or(1, |workers| workers.handles.len() + 1)
    }

    /// Calls `work(i)` for each `i` in `0..tasks`, on the pool's threads and the caller; returns when all are
    /// done. A call from within a task, or while another thread's call is under way, runs on the caller alone.
    ///
    /// # Panics
    /// When a task panics: with the first panic seen, after all threads have left; tasks not yet begun are
    /// dropped.
    pub fn run(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        let shared = match &self.0 {
            Some(workers) if tasks > 1 => &workers.shared,
            _ => return (0..tasks).for_each(work),
        };
        if shared.busy.compare_exchange(false, true, Acquire, Relaxed).is_err() {
            return (0..tasks).for_each(work);
        }
        shared.share_out(tasks, &work);
    }

    /// Calls `work` on ranges that together are `0..len`, each starting at a multiple of `grain` and at least
    /// `grain` long but for the last. There are a few ranges for each thread, so `work` must give each item
    /// the same result in whatever range it comes.
    pub fn split(&self, len: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
        let grains = len.div_ceil(grain.max(1));
        let parts = if self.threads() == 1 { grains.min(1) } else { grains.min(self.threads() * 4) };
        let start = |part: usize| (grains * part / parts * grain.max(1)).min(len);
        self.run(parts, |part| work(start(part)..start(part + 1)));
    }

    /// Calls `work(i, chunk)` for each chunk of `chunk_len` items of `data` (the last may be shorter), in
    /// parallel, as `chunks_mut` does in order.
    ///
    /// # Panics
    /// When `chunk_len` is 0.
    pub fn for_chunks_mut<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(chunk_len > 0, "chunks of no items");
        let len = data.len();
        let base = Shares::new(data);
        self.run(len.div_ceil(chunk_len), |i| {
            let start = i * chunk_len;
            let count = chunk_len.min(len - start);
            // SAFETY: chunk `i` is in bounds, and no other task has it.
            work(i, unsafe { std::slice::from_raw_parts_mut(base.at(start), count) });
        });
    }

    /// What `work` makes of each number of `0..tasks`, in order, in parallel as [`Pool::run`].
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn map<T: Send>(&self, tasks: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let mut made: Vec<Option<T>> = (0..tasks).map(|_| None).collect();
        self.for_chunks_mut(&mut made, 1, |i, made| made[0] = Some(work(i)));
        made.into_iter().flatten().collect()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.state.0.fetch_or(STOP, SeqCst);
        self.shared.rouse();
        for handle in self.handles.drain(..) {
            // A worker never unwinds: it catches every panic of a task.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// The caller's part of a region; `busy` is ours.
    fn share_out(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let region = Region {
            // SAFETY: this only widens the lifetime; nobody uses the pointer after this function has seen the
            // region closed and empty.
            work: unsafe {
                std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync + 'static)>(work)
            },
            tasks,
            caller: thread::current(),
        };
        // SAFETY: we own `busy`, and the last region was left closed and empty.
        unsafe { *self.region.get() = Some(region) };
        self.next.0.store(0, Relaxed);
        self.state.0.fetch_add(REGION | OPEN, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            self.rouse();
        }
        let mine = catch_unwind(AssertUnwindSafe(|| self.take_tasks(tasks, work)));
        self.next.0.store(tasks, Relaxed);
        let mut state = self.state.0.fetch_and(!OPEN, SeqCst) & !OPEN;
        let mut spin = Spin::new();
        while inside(state) {
            if !spin.again() {
                thread::park_timeout(Duration::from_millis(10));
            }
            state = self.state.0.load(Acquire);
        }
        let theirs = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Release);
        if let Some(payload) = mine.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    fn take_tasks(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        loop {
            let task = self.next.0.fetch_add(1, Relaxed);
            if task >= tasks {
                return;
            }
            work(task);
        }
    }

    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            let state = self.wait(seen);
            if state & STOP != 0 {
                return;
            }
            if self.state.0.compare_exchange(state, state + INSIDE, Acquire, Relaxed).is_err() {
                continue;
            }
            seen = state / REGION;
            // SAFETY: we are counted inside an open region, so `region` is set and stays as it is.
            let Some(region) = (unsafe { &*self.region.get() }) else { return };
            let caller = region.caller.clone();
            // SAFETY: the caller keeps the closure alive while anyone is inside.
            let work = unsafe { &*region.work };
            let tasks = region.tasks;
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(tasks, work))) {
                self.next.0.store(tasks, Relaxed);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            let left = self.state.0.fetch_sub(INSIDE, SeqCst) - INSIDE;
            if left & OPEN == 0 && !inside(left) {
                caller.unpark();
            }
        }
    }

    /// The state once it holds an open region other than `seen`, or the order to stop.
    fn wait(&self, seen: u64) -> u64 {
        let due = |state: u64| state & STOP != 0 || (state & OPEN != 0 && state / REGION != seen);
        let mut spin = Spin::new();
        loop {
            let state = self.state.0.load(Acquire);
            if due(state) {
                return state;
            }
            if !spin.again() {
                break;
            }
        }
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, SeqCst);
        let state = loop {
            let state = self.state.0.load(SeqCst);
            if due(state) {
                break state;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        state
    }

    fn rouse(&self) {
        drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

fn inside(state: u64) -> bool {
    state % REGION >= INSIDE
}

/// A busy wait with an end.
struct Spin {
    rounds: u32,
    since: Option<Instant>,
}

impl Spin {
    fn new() -> Spin {
        Spin { rounds: 0, since: None }
    }

    /// Waits a moment; false when it has been long enough.
    fn again(&mut self) -> bool {
        std::hint::spin_loop();
        self.rounds += 1;
        if !self.rounds.is_multiple_of(32) {
            return true;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}

/// The start of a slice whose parts go to different tasks.
pub(crate) struct Shares<T>(*mut T);

// SAFETY: only the pointer moves; each use states why its part is its own.
unsafe impl<T: Send> Send for Shares<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shares<T> {}

impl<T> Shares<T> {
    pub(crate) fn new(data: &mut [T]) -> Shares<T> {
        Shares(data.as_mut_ptr())
    }

    /// As `new`, for a slice that is known by its start.
    pub(crate) fn from_ptr(start: *mut T) -> Shares<T> {
        Shares(start)
    }

    /// The address of item `i`, to be used only when `i` is within the slice.
    pub(crate) fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 100, 1000] {
                for _ in 0..50 {
                    let seen: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                    pool.run(tasks, |i| {
                        seen[i].fetch_add(1, Relaxed);
                    });
                    assert!(seen.iter().all(|n| n.load(Relaxed) == 1));
                }
            }
        }
        assert_eq!(Pool::new(3).clone().threads(), 3);
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(2));
            let meet = std::sync::Barrier::new(2);
            pool.run(2, |_| {
                meet.wait();
            });
        }
    }

    #[test]
    fn nested_and_simultaneous_calls_run_inline() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(4, |_| {
                            pool.run(5, |_| {
                                count.fetch_add(1, Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(count.load(Relaxed), 4 * 100 * 20);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for culprit in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, |i| {
                    if i == culprit {
                        panic!("task {i}");
                    }
                    thread::sleep(Duration::from_micros(20));
                })
            }));
            let payload = caught.unwrap_err();
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {culprit}")));
            let count = AtomicUsize::new(0);
            pool.run(10, |_| {
                count.fetch_add(1, Relaxed);
            });
            assert_eq!(count.load(Relaxed), 10);
        }
    }

    #[test]
    fn ranges_and_chunks_cover_everything_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for (len, grain) in [(0, 4), (1, 4), (17, 4), (1000, 1), (1000, 7), (3, 0)] {
                let seen: Vec<AtomicU32> = (0..len).map(|_| AtomicU32::new(0)).collect();
                pool.split(len, grain, |range| {
                    assert!(range.start % grain.max(1) == 0 && !range.is_empty());
                    range.for_each(|i| {
                        seen[i].fetch_add(1, Relaxed);
                    })
                });
                assert!(seen.iter().all(|n| n.load(Relaxed) == 1));
            }
            let mut data = vec![0usize; 103];
            pool.for_chunks_mut(&mut data, 10, |i, chunk| chunk.fill(i + 1));
            assert!(data.iter().enumerate().all(|(i, &v)| v == i / 10 + 1));
            for tasks in [0, 1, 50] {
                let squares: Vec<String> = (0..tasks).map(|i| (i * i).to_string()).collect();
                assert_eq!(pool.map(tasks, |i| (i * i).to_string()), squares);
            }
        }
    }
}
