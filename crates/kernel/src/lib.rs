//! CPU kernels: slices in, slices out.
//!
//! This crate holds all SIMD and all `unsafe` of the workspace. It knows no graph, no tensor, no file
//! format, and has no error type: a caller hands in slices whose lengths it has checked, and a kernel
//! panics (with `assert!`) when they do not fit, before it touches memory.
//!
//! Every kernel takes a [`Cpu`]: the instruction set to use and the threads to use it on. For each kernel
//! the scalar code is the specification; the other instruction sets must agree with it.

pub mod act;
pub mod attention;
pub mod back;
pub mod buf;
pub mod conv;
pub mod cpu;
pub mod f32;
pub mod few;
pub mod grid;
pub mod isa;
mod lanes;
pub mod map;
mod math;
pub mod matmul;
pub mod norm;
pub mod pool;
pub mod pool2d;
pub mod q8;
pub mod reduce;
pub mod softmax;
pub mod transpose;
pub mod vec;
mod wide;

pub use act::Act;
pub use buf::{ALIGN, Arena, Buf};
pub use cpu::Cpu;
pub use isa::Isa;
pub use map::Map;
pub use pool::Pool;
