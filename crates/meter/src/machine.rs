//! The machine that numbers were measured on, as text for receipts: from `/proc` and `/sys` on Linux, as far as
//! known elsewhere.

use std::fmt;
use std::fs;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::memory;

/// Instruction sets worth telling, by their names in `/proc/cpuinfo`.
const ISA: [&str; 26] = [
    "sse4_1",
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "sme",
];

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name; its architecture when the name is not known.
    pub cpu: String,
    /// Threads that this process may run at once.
    pub threads: usize,
    /// Cores of the whole machine, without counting hyper-threads twice, when known.
    pub cores: Option<usize>,
    /// Bytes of memory this process may use: the machine's, or less when its group is limited.
    pub memory: Option<u64>,
    /// The operating system.
    pub os: String,
    /// Instruction sets that matter here, by Linux's names.
    pub isa: Vec<String>,
}

impl Machine {
    /// This machine.
    pub fn this() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let total = memory::field(&read("/proc/meminfo"), "MemTotal");
        let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
            .iter()
            .find_map(|path| read(path).trim().parse().ok());
        Machine {
            cpu: cpu(&info).unwrap_or_else(|| std::env::consts::ARCH.into()),
            threads: thread::available_parallelism().map_or(1, usize::from),
            cores: cores(&info),
            memory: total.map(|total| group.map_or(total, |group: u64| group.min(total))),
            os: os(&read("/etc/os-release"), &read("/proc/sys/kernel/osrelease")),
            isa: isa(&info),
        }
    }
}

/// The values of `name : value` in `/proc/cpuinfo`, one for each thread.
fn values<'a>(info: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(move |(key, _)| key.trim() == name)
        .map(|(_, v)| v.trim())
}

fn cpu(info: &str) -> Option<String> {
    let named = ["model name", "Model", "Hardware"].iter().find_map(|name| values(info, name).next());
    let part = || {
        let (maker, part) = (values(info, "CPU implementer").next()?, values(info, "CPU part").next()?);
        Some(format!("Arm maker {maker} part {part}"))
    };
    named
        .filter(|name| !name.is_empty())
        .map(|name| name.split_whitespace().collect::<Vec<_>>().join(" "))
        .or_else(part)
}

fn cores(info: &str) -> Option<usize> {
    let mut cores: Vec<_> = values(info, "physical id").zip(values(info, "core id")).collect();
    cores.sort_unstable();
    cores.dedup();
    let threads = values(info, "processor").count();
    match (cores.len(), threads) {
        (0, 0) => None,
        (0, threads) => Some(threads),
        (cores, _) => Some(cores),
    }
}

fn isa(info: &str) -> Vec<String> {
    let Some(flags) = values(info, "flags").chain(values(info, "Features")).next() else {
        return Vec::new();
    };
    let flags: Vec<&str> = flags.split_whitespace().collect();
    ISA.iter().filter(|name| flags.contains(name)).map(|name| name.to_string()).collect()
}

fn os(release: &str, kernel: &str) -> String {
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = pretty.map_or(std::env::consts::OS, |name| name.trim().trim_matches('"'));
    match kernel.trim() {
        "" => name.into(),
        kernel => format!("{name}, kernel {kernel}"),
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} threads", self.cpu, self.threads)?;
        if let Some(cores) = self.cores {
            write!(f, " ({cores} cores)")?;
        }
        if let Some(memory) = self.memory {
            write!(f, ", {:.1} GiB", memory as f64 / (1u64 << 30) as f64)?;
        }
        write!(f, ", {}", self.os)?;
        if !self.isa.is_empty() {
            write!(f, ", {}", self.isa.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: &str = "processor\t: 0\nmodel name\t: Some(R)  CPU @ 2.00GHz\nphysical id\t: 0\ncore id\t\t: 0\n\
                       flags\t\t: fpu avx avx2 fma avx512f avx512_vnni\n\nprocessor\t: 1\nmodel name\t: Some(R)\n\
                       physical id\t: 0\ncore id\t\t: 0\nflags\t\t: fpu avx\n";
    const ARM: &str = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n\
                       processor\t: 1\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";

    #[test]
    fn two_families() {
        assert_eq!(cpu(X86).unwrap(), "Some(R) CPU @ 2.00GHz");
        assert_eq!(cores(X86), Some(1));
        assert_eq!(isa(X86), ["avx", "fma", "avx2", "avx512f", "avx512_vnni"]);
        assert_eq!(cpu(ARM).unwrap(), "Arm maker 0x41 part 0xd0c");
        assert_eq!(cores(ARM), Some(2));
        assert_eq!(isa(ARM), ["asimd", "asimddp"]);
        assert_eq!((cpu(""), cores(""), isa("")), (None, None, vec![]));
        assert_eq!(os("ID=x\nPRETTY_NAME=\"An OS 3\"\n", "6.1\n"), "An OS 3, kernel 6.1");
        assert_eq!(os("", ""), std::env::consts::OS);
    }

    #[test]
    fn this_one() {
        let machine = Machine::this();
        assert!(machine.threads >= 1 && !machine.cpu.is_empty() && !machine.os.is_empty());
        let shown = machine.to_string();
        assert!(shown.starts_with(&machine.cpu) && shown.contains("threads"), "{shown}");
        eprintln!("{shown}");
    }
}
