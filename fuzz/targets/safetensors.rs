//! Reads any bytes as a safetensors file: `cargo fuzz run safetensors`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if std::io::Write::write_all(&mut file, bytes).is_ok() {
        let _ = format::safetensors::read_file(file.path());
    }
});
