//! Aligned, zero-initialised byte buffers.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of every [`Buf`], in bytes: one cache line and one AVX-512 register.
pub const ALIGN: usize = 64;

/// Stands for an address aligned to [`ALIGN`].
#[repr(align(64))]
struct Line;

/// A block of bytes aligned to [`ALIGN`], so that it can be viewed as a slice of any number type.
pub struct Buf {
    ptr: NonNull<u8>,
    len: usize,
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
        if len == 0 {
            return Some(Buf { ptr: NonNull::<Line>::dangling().cast(), len: 0 });
        }
        let layout = Layout::from_size_align(len, ALIGN).ok()?;
        // SAFETY: `layout` has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) };
        Some(Buf { ptr: NonNull::new(raw)?, len })
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
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl AsMut<[u8]> for Buf {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and `&mut self` makes the slice unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the memory came from `alloc_zeroed` with this same layout.
            unsafe { dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.len, ALIGN)) }
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
        assert!(Buf::try_zeroed(usize::MAX).is_none());
        assert!(Buf::try_zeroed(isize::MAX as usize - 64).is_none());
        assert_eq!(Buf::copy_of(&[1, 2, 3]).as_ref(), &[1, 2, 3]);
    }
}
