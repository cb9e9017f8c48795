//! Aligned byte buffers, and an arena that keeps the memory of those no longer needed for those to come.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::ptr::NonNull;

/// Alignment of every [`Buf`], in bytes: one cache line and one AVX-512 register.
pub const ALIGN: usize = 64;

/// Stands for an address aligned to [`ALIGN`].
#[repr(align(64))]
struct Line;

/// A block of bytes aligned to [`ALIGN`], so that it can be viewed as a slice of any number type.
pub struct Buf {
    block: Block,
    len: usize,
}

/// Memory aligned to [`ALIGN`], all of which has a value.
struct Block {
    ptr: NonNull<u8>,
    size: usize,
    /// Bytes before it that were asked for with it.
    before: usize,
}

/// What allocators align to by themselves. Asked for more, they write zeros instead of taking pages that are zero, which each
/// cost a fault only when they are used.
const USUAL: usize = 16;

impl Block {
    fn empty() -> Block {
        Block { ptr: NonNull::<Line>::dangling().cast(), size: 0, before: 0 }
    }

    fn layout(size: usize) -> Option<Layout> {
        Layout::from_size_align(size.checked_add(ALIGN - USUAL)?, USUAL).ok()
    }

    fn zeroed(size: usize) -> Option<Block> {
        if size == 0 {
            return Some(Block::empty());
        }
        let layout = Block::layout(size)?;
        // SAFETY: `layout` has a size above zero.
        let raw = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let before = raw.addr().get().next_multiple_of(ALIGN) - raw.addr().get();
        // SAFETY: `before` is at most `ALIGN - USUAL`, as `raw` is a multiple of `USUAL`.
        Some(Block { ptr: unsafe { raw.add(before) }, size, before })
    }

    fn free(self) {
        if let Some(layout) = Block::layout(self.size).filter(|_| self.size > 0) {
            // SAFETY: the memory came from `alloc_zeroed` with this same layout, so many bytes before.
            unsafe { dealloc(self.ptr.as_ptr().sub(self.before), layout) }
        }
    }
}

/// The memory of buffers that were dropped, for buffers to come: pages that the system has given once need not be
/// asked for, cleared and mapped again. It never holds more than was in use at one time.
#[derive(Default)]
pub struct Arena(Blocks);

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Arena({} bytes)", self.0.kept)
    }
}

#[derive(Default)]
struct Blocks {
    spare: Vec<Block>,
    /// Bytes of `spare`, of buffers in use, and the most that were in use at one time.
    kept: usize,
    used: usize,
    most: usize,
}

// SAFETY: the blocks belong to the arena alone.
unsafe impl Send for Arena {}

thread_local! {
    static ARENA: RefCell<Option<Blocks>> = const { RefCell::new(None) };
}

/// Smaller buffers are left to the allocator.
const LEAST: usize = 16 << 10;

impl Arena {
    /// Runs `work`; large buffers that it makes or drops on this thread take their memory from the arena, or leave
    /// it there. Within another arena's `work` that one stays in charge.
    pub fn run<R>(&mut self, work: impl FnOnce() -> R) -> R {
        /// Takes the blocks back, also when `work` panics.
        struct Back<'a>(&'a mut Blocks);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                *self.0 = ARENA.take().unwrap_or_default();
            }
        }
        if ARENA.with_borrow(Option::is_some) {
            return work();
        }
        let mut blocks = std::mem::take(&mut self.0);
        blocks.used = 0;
        ARENA.set(Some(blocks));
        let _back = Back(&mut self.0);
        work()
    }
}

impl Blocks {
    /// The smallest block that fits and is not far too large.
    fn take(&mut self, size: usize) -> Option<Block> {
        let fits = size..=size.saturating_mul(2);
        let best = self.spare.iter().enumerate().filter(|(_, block)| fits.contains(&block.size));
        let (at, _) = best.min_by_key(|(_, block)| block.size)?;
        let block = self.spare.swap_remove(at);
        self.kept -= block.size;
        self.use_more(block.size);
        Some(block)
    }

    fn use_more(&mut self, size: usize) {
        self.used = self.used.saturating_add(size);
        self.most = self.most.max(self.used);
        while self.used.saturating_add(self.kept) > self.most && !self.spare.is_empty() {
            let block = self.spare.remove(0);
            self.kept -= block.size;
            block.free();
        }
    }

    fn give(&mut self, block: Block) {
        self.used = self.used.saturating_sub(block.size);
        if self.used + self.kept + block.size > self.most {
            return block.free();
        }
        self.kept += block.size;
        self.spare.push(block);
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.spare.drain(..).for_each(Block::free);
    }
}

/// Lets the arena of this thread, if there is one, see to a block.
fn with_arena<R>(size: usize, work: impl FnOnce(&mut Blocks) -> R) -> Option<R> {
    if size < LEAST {
        return None;
    }
    // Buffers may also be dropped while the thread ends.
    ARENA.try_with(|arena| arena.borrow_mut().as_mut().map(work)).ok().flatten()
}

// SAFETY: `Buf` owns its memory exclusively, as `Box<[u8]>` does.
unsafe impl Send for Buf {}
// SAFETY: a shared `Buf` only hands out shared slices.
unsafe impl Sync for Buf {}

impl Buf {
    /// A buffer of `len` zero bytes. Aborts the process when memory is exhausted, as `Vec` does; use
    /// [`Buf::try_zeroed`] for a length that comes from outside.
    pub fn zeroed(len: usize) -> Buf {
        match Buf::try_zeroed(len) {
            Some(buf) => buf,
            None => std::alloc::handle_alloc_error(
                Layout::from_size_align(len.min(isize::MAX as usize - ALIGN), ALIGN)
                    .unwrap_or(Layout::new::<u8>()),
            ),
        }
    }

    /// A buffer of `len` zero bytes, or `None` when the system refuses that much memory.
    pub fn try_zeroed(len: usize) -> Option<Buf> {
        if let Some(Some(block)) = with_arena(len, |arena| arena.take(len)) {
            let mut buf = Buf { block, len };
            buf.as_mut().fill(0);
            return Some(buf);
        }
        let block = Block::zeroed(len)?;
        with_arena(len, |arena| arena.use_more(len));
        Some(Buf { block, len })
    }

    /// A buffer of `len` bytes that may be anything, or `None` when the system refuses that much memory: for those
    /// who write all of it. In debug builds the bytes are such that whoever does not is found out.
    pub fn try_any(len: usize) -> Option<Buf> {
        let mut buf = match with_arena(len, |arena| arena.take(len)) {
            Some(Some(block)) => Buf { block, len },
            _ => Buf::try_zeroed(len)?,
        };
        if cfg!(debug_assertions) {
            buf.as_mut().fill(0xff);
        }
        Some(buf)
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Buf {
        let mut buf = Buf::zeroed(bytes.len());
        buf.as_mut().copy_from_slice(bytes);
        buf
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `ptr` points to `len` initialised bytes owned by `self` (or is dangling and `len` is 0).
        unsafe { std::slice::from_raw_parts(self.block.ptr.as_ptr(), self.len) }
    }
}

impl AsMut<[u8]> for Buf {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and `&mut self` makes the slice unique.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let mut block = Some(std::mem::replace(&mut self.block, Block::empty()));
        let size = block.as_ref().map_or(0, |block| block.size);
        with_arena(size, |arena| block.take().map(|block| arena.give(block)));
        if let Some(block) = block {
            block.free();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_refuse_absurd_sizes() {
        for len in [0, 1, 63, 64, 65, 4096] {
            let buf = Buf::zeroed(len);
            assert_eq!(buf.as_ref().as_ptr() as usize % ALIGN, 0);
            assert!(buf.as_ref().iter().all(|&b| b == 0) && buf.len() == len);
        }
        assert!(Buf::try_zeroed(usize::MAX).is_none() && Buf::try_any(usize::MAX).is_none());
        assert!(Buf::try_zeroed(isize::MAX as usize - 64).is_none());
        assert_eq!(Buf::copy_of(&[1, 2, 3]).as_ref(), &[1, 2, 3]);
    }

    #[test]
    fn an_arena_gives_memory_again_and_keeps_no_more_than_was_in_use() {
        let mut arena = Arena::default();
        let first = arena.run(|| {
            let buf = Buf::try_any(100_000).unwrap();
            drop(Buf::zeroed(60_000));
            buf.as_ref().as_ptr() as usize
        });
        assert_eq!((arena.0.kept, arena.0.most), (160_000, 160_000));
        arena.run(|| {
            let mut again = Buf::try_any(90_000).unwrap();
            assert_eq!(again.as_ref().as_ptr() as usize, first);
            again.as_mut().fill(1);
            drop(again);
            assert!(Buf::zeroed(90_000).as_ref().iter().all(|&b| b == 0));
            // Too large for the blocks at hand: these make room.
            drop(Buf::zeroed(150_000));
        });
        assert!(arena.0.kept <= arena.0.most && arena.0.most == 160_000, "{}", arena.0.kept);
        // What outlives the run is freed outside.
        let out = arena.run(|| Buf::zeroed(50_000));
        drop(out);
    }
}
