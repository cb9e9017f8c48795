//! ONNX: <https://github.com/onnx/onnx/blob/main/docs/IR.md>

mod external;
mod functions;
#[rustfmt::skip]
pub mod proto;
mod read;
mod tensor;
mod upgrade;
mod write;

pub use read::{files, from_proto, read, read_bytes};
pub use tensor::{tensor_from_proto, tensor_to_proto};
pub use upgrade::{needed, upgrade};
pub use write::{size, to_bytes, to_proto, write, write_beside};
