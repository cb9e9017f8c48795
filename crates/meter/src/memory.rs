//! Memory of this process, from Linux's `/proc/self` (proc(5)); elsewhere it is not known.

use std::fs;

/// Bytes of memory that this process holds now (`VmRSS`); mapped files count as far as they have been read.
pub fn now() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// The most bytes of memory that this process has held (`VmHWM`) since its start or the last [`reset_peak`].
pub fn peak() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// Lets the peak start again from what is held now; `None` when the system cannot.
pub fn reset_peak() -> Option<()> {
    fs::write("/proc/self/clear_refs", "5").ok()
}

/// The bytes of a line such as `VmHWM:      1234 kB`.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_status() {
        let text = "Name:\tVmRSS\nVmHWMx:\t1 kB\nVmHWM:\t    2048 kB\nVmRSS:\t many kB\n";
        assert_eq!(field(text, "VmHWM"), Some(2048 * 1024));
        assert_eq!(field(text, "VmRSS"), None);
        assert_eq!(field("VmHWM: 99999999999999999999 kB", "VmHWM"), None);
        assert_eq!(field(&format!("VmHWM: {} kB", u64::MAX), "VmHWM"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_follows_an_allocation() {
        let Some(before) = now() else {
            eprintln!("skipped: this system does not tell");
            return;
        };
        let block = vec![1u8; 64 << 20];
        let held = std::hint::black_box(&block).iter().step_by(4096).map(|&b| u64::from(b)).sum::<u64>();
        assert_eq!(held, 16384);
        assert!(peak().unwrap() >= before + (48 << 20));
        drop(block);
        if reset_peak().is_some() {
            assert!(peak().unwrap() < before + (48 << 20));
        }
    }
}
