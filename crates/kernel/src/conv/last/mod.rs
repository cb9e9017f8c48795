//! Convolutions of images whose channels come last (NHWC), in `f32` and in 8 bits.
mod depth;
mod driver;
mod float;
mod int8;
mod tile;

pub use float::PackedConv;
pub use int8::PackedByteConv;

#[cfg(test)]
mod tests;
