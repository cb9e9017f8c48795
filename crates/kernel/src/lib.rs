//! CPU kernels: slices in, slices out.
//!
//! This crate holds all SIMD and all `unsafe` of the workspace. It knows no graph, no tensor, no file
//! format, and has no error type: a caller hands in slices whose lengths it has checked, and a kernel
//! panics (with `assert!`) when they do not fit, before it touches memory.
//!
//! Every kernel takes a [`Cpu`]: the instruction set to use and the threads to use it on. For each kernel
//! the scalar code is the specification; the other instruction sets must agree with it.

pub mod buf;
pub mod conv;
pub mod cpu;
pub mod f32;
pub mod isa;
pub mod map;
pub mod matmul;
pub mod pool;
pub mod q8;
mod wide;

pub use buf::{ALIGN, Buf};
pub use cpu::Cpu;
pub use isa::Isa;
pub use map::Map;
pub use pool::Pool;
