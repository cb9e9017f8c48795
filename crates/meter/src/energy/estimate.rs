//! Energy estimated from what a processor is made for: its thermal design power, shared out among its threads, for the time
//! that they worked, and a tenth of it for those that idle (the model of CodeCarbon's machine mode at both of its ends); and
//! power for memory.

use serde::Serialize;

use super::Energy;
use crate::Machine;

/// Part of the design power that an idle thread takes.
const IDLE: f64 = 0.1;
/// Watts of a thread of a processor that is not in the table.
const UNKNOWN: f64 = 4.0;
/// Watts of a GiB of memory: 3 for each 8.
const MEMORY: f64 = 0.375;

/// Names of processors, or parts of them, their thermal design power in watts and their threads, from the makers' data
/// sheets; the first that fits is taken.
const TABLE: [(&str, f64, f64); 37] = [
    ("EPYC 9654", 360.0, 192.0),
    ("EPYC 9554", 360.0, 128.0),
    ("EPYC 9354", 280.0, 64.0),
    ("EPYC 9B14", 400.0, 192.0),
    ("EPYC 7B13", 240.0, 128.0),
    ("EPYC 7763", 280.0, 128.0),
    ("EPYC 7713", 225.0, 128.0),
    ("EPYC 7R13", 225.0, 96.0),
    ("EPYC 7742", 225.0, 128.0),
    ("EPYC 7571", 200.0, 64.0),
    ("EPYC 7B12", 240.0, 128.0),
    ("EPYC", 240.0, 128.0),
    ("Platinum 8592", 350.0, 128.0),
    ("Platinum 8488C", 385.0, 112.0),
    ("Platinum 8481C", 350.0, 112.0),
    ("Platinum 8480", 350.0, 112.0),
    ("Platinum 8375C", 300.0, 64.0),
    ("Platinum 8380", 270.0, 80.0),
    ("Platinum 8370C", 270.0, 64.0),
    ("Platinum 8272CL", 195.0, 52.0),
    ("Platinum 8259CL", 210.0, 48.0),
    ("Platinum 8175M", 240.0, 48.0),
    ("Gold 6248", 150.0, 40.0),
    ("E5-2686 v4", 145.0, 36.0),
    ("Xeon", 250.0, 80.0),
    ("Ryzen 9 7950X", 170.0, 32.0),
    ("Ryzen 9 5950X", 105.0, 32.0),
    ("Ryzen 7 5800X", 105.0, 16.0),
    ("Ryzen 5 5600", 65.0, 12.0),
    ("i9-14900K", 125.0, 32.0),
    ("i9-13900K", 125.0, 32.0),
    ("i7-12700", 65.0, 20.0),
    ("i7-1165G7", 28.0, 8.0),
    ("i5-12400", 65.0, 12.0),
    ("Neoverse-N1", 250.0, 80.0),
    ("Cortex-A76", 8.0, 4.0),
    ("Cortex-A72", 6.0, 4.0),
];

/// What an estimate is made from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Processor {
    /// Its name.
    pub name: String,
    /// Watts of a thread at full load.
    pub watts_each: f64,
    /// Is the processor in the table? Else its watts are those of any.
    pub known: bool,
    /// Threads that this process may use.
    pub threads: usize,
    /// GiB of memory that are counted.
    pub memory: f64,
}

/// The processor of a machine, and the memory that it may use.
pub fn processor(machine: &Machine) -> Processor {
    let row = TABLE.iter().find(|(name, ..)| machine.cpu.contains(name));
    Processor {
        name: machine.cpu.clone(),
        watts_each: row.map_or(UNKNOWN, |(_, watts, threads)| watts / threads),
        known: row.is_some(),
        threads: machine.threads,
        memory: machine.memory.map_or(0.0, |bytes| bytes as f64 / (1u64 << 30) as f64),
    }
}

/// The energy of so many seconds, in which threads worked so many seconds together; all of them all the time when that is not
/// known.
pub fn estimate(processor: &Processor, seconds: f64, worked: Option<f64>) -> Energy {
    let all = processor.threads as f64 * seconds;
    let worked = worked.unwrap_or(all).min(all);
    let rest = IDLE * processor.watts_each * all;
    let cpu = rest + (1.0 - IDLE) * processor.watts_each * worked;
    let memory = MEMORY * processor.memory * seconds;
    let what = match processor.known {
        true => "its thermal design power",
        false => "it is not in the table",
    };
    Energy {
        joules: cpu + memory,
        idle: Some(rest + memory),
        seconds,
        measured: false,
        source: format!(
            "estimated: {} ({what}), {:.1} W for each of {} threads, {MEMORY} W for each GiB",
            processor.name, processor.watts_each, processor.threads
        ),
        parts: vec![("processor".into(), cpu), ("memory".into(), memory)],
    }
}
