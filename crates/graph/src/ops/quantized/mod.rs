//! Operators on quantised numbers. A code `q` stands for `scale * (q - zero)`; codes are made by dividing,
//! rounding halves to even, and saturating. <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>

pub mod codes;
pub mod concat;
pub mod conv;
pub mod dequantize;
pub mod dynamic;
pub mod gather;
pub mod matmul;
pub mod nbits;
pub mod normal_float;
pub mod pair;
pub mod pool;
pub mod quantize;
pub mod softmax;
pub mod table;

mod grid;
mod rows;
pub mod slots;
