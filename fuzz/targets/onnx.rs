//! Reads any bytes as an ONNX model, and plans and writes what can be read: `cargo fuzz run onnx`.
#![no_main]

use graph::{run::Session, tidy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = format::onnx::read_bytes(bytes.to_vec().into()) else { return };
    let _ = format::onnx::upgrade(&mut model.clone(), 21);
    if let Ok(written) = format::onnx::to_bytes(&model) {
        format::onnx::read_bytes(written.into()).expect("what is written can be read");
    }
    let Ok(cpu) = kernel::Cpu::new(1) else { return };
    let mut graph = model.graph;
    if tidy::run(&mut graph, tidy::RUN, &cpu).is_ok() {
        let _ = Session::new(graph, &cpu);
    }
});
