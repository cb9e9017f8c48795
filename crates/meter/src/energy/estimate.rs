//! Energy estimated from what a processor is made for: its thermal design power, shared out among its threads, for the time
//! that they worked, and a tenth of it for those that idle (the model of CodeCarbon's machine mode at both of its ends); and
//! power for memory.

use serde::Serialize;

use super::Energy;
use crate::Machine;

/// Part of the design power that an idle thread takes.
const IDLE: f64 = 0.1;
/// Watts of a thread of a processor that is not in the table.
pub(super) const UNKNOWN: f64 = 4.0;
/// Watts of a GiB of memory: 3 for each 8.
const MEMORY: f64 = 0.375;

/// Names of processors, or parts of them, their thermal design power in watts and their threads, as their makers publish
/// them; the first that fits is taken. What clouds have made for them alone is not published.
pub(super) const TABLE: [(&str, f64, f64); 65] = [
    ("EPYC 9654", 360.0, 192.0),
    ("EPYC 9554", 360.0, 128.0),
    ("EPYC 9354", 280.0, 64.0),
    ("EPYC 9755", 500.0, 256.0),
    ("EPYC 9754", 360.0, 256.0),
    ("EPYC 9334", 210.0, 64.0),
    ("EPYC 9124", 200.0, 32.0),
    ("EPYC 7763", 280.0, 128.0),
    ("EPYC 7713", 225.0, 128.0),
    ("EPYC 7742", 225.0, 128.0),
    ("EPYC 7702", 200.0, 128.0),
    ("EPYC 7543", 225.0, 64.0),
    ("EPYC 7452", 155.0, 64.0),
    ("EPYC 7302", 155.0, 32.0),
    ("Platinum 8592+", 350.0, 128.0),
    ("Platinum 8480+", 350.0, 112.0),
    ("Platinum 8380", 270.0, 80.0),
    ("Platinum 8352Y", 205.0, 64.0),
    ("Platinum 8280", 205.0, 56.0),
    ("Platinum 8180", 205.0, 56.0),
    ("Platinum 8160 ", 150.0, 48.0),
    ("Gold 6338 ", 205.0, 64.0),
    ("Gold 6330 ", 205.0, 56.0),
    ("Gold 6248R", 205.0, 48.0),
    ("Gold 6248 ", 150.0, 40.0),
    ("Gold 6226R", 150.0, 32.0),
    ("Gold 6148 ", 150.0, 40.0),
    ("E5-2690 v4", 135.0, 28.0),
    ("E5-2680 v4", 120.0, 28.0),
    ("E5-2650 v4", 105.0, 24.0),
    ("E5-2620 v4", 85.0, 16.0),
    ("Threadripper 3970X", 280.0, 64.0),
    ("Ryzen 9 9950X", 170.0, 32.0),
    ("Ryzen 9 7950X3D", 120.0, 32.0),
    ("Ryzen 9 7950X", 170.0, 32.0),
    ("Ryzen 9 7900X3D", 120.0, 24.0),
    ("Ryzen 9 7900X", 170.0, 24.0),
    ("Ryzen 7 7800X3D", 120.0, 16.0),
    ("Ryzen 7 7700X", 105.0, 16.0),
    ("Ryzen 5 7600X", 105.0, 12.0),
    ("Ryzen 9 5950X", 105.0, 32.0),
    ("Ryzen 9 5900X", 105.0, 24.0),
    ("Ryzen 7 5800X", 105.0, 16.0),
    ("Ryzen 7 5700X ", 65.0, 16.0),
    ("Ryzen 5 5600", 65.0, 12.0),
    ("Ryzen 9 3900X", 105.0, 24.0),
    ("Ryzen 7 3700X", 65.0, 16.0),
    ("Ryzen 5 3600 ", 65.0, 12.0),
    ("Ryzen 7 7840U", 28.0, 16.0),
    ("Ryzen 7 5800H ", 45.0, 16.0),
    ("Ryzen 7 4800H ", 45.0, 16.0),
    ("i9-14900K", 125.0, 32.0),
    ("i9-13900K", 125.0, 32.0),
    ("i7-12700K", 125.0, 20.0),
    ("i7-12700", 65.0, 20.0),
    ("i7-10700K", 125.0, 16.0),
    ("i9-9900K ", 95.0, 16.0),
    ("i7-8700K ", 95.0, 12.0),
    ("i7-1165G7", 28.0, 8.0),
    ("i5-1135G7", 28.0, 8.0),
    ("i7-10510U", 15.0, 8.0),
    ("i7-8550U", 15.0, 8.0),
    ("i5-12400", 65.0, 12.0),
    ("i5-8250U", 15.0, 8.0),
    ("(R) N100", 6.0, 4.0),
];

/// Families of processors, and the watts of a thread of such servers: those of the first of their rows in the table.
const FAMILIES: [(&str, f64); 2] = [("EPYC", 360.0 / 192.0), ("Xeon", 350.0 / 128.0)];

/// What an estimate is made from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Processor {
    /// Its name.
    pub name: String,
    /// Watts of a thread at full load.
    pub watts_each: f64,
    /// Where those come from, in words.
    pub basis: &'static str,
    /// Threads that this process may use.
    pub threads: usize,
    /// GiB of memory that are counted.
    pub memory: f64,
}

/// The processor of a machine, and the memory that it may use.
pub fn processor(machine: &Machine) -> Processor {
    let own = TABLE.iter().find(|(name, ..)| machine.cpu.contains(name));
    let family = FAMILIES.iter().find(|(name, _)| machine.cpu.contains(name));
    let (watts_each, basis) = match (own, family) {
        (Some((_, watts, threads)), _) => (watts / threads, "its thermal design power"),
        (None, Some((_, watts))) => (*watts, "the thermal design power of others of its family"),
        (None, None) => (UNKNOWN, "it is not known"),
    };
    Processor {
        name: machine.cpu.clone(),
        watts_each,
        basis,
        threads: machine.threads,
        memory: machine.memory.map_or(0.0, |bytes| bytes as f64 / (1u64 << 30) as f64),
    }
}

/// The energy of so many seconds, in which threads worked so many seconds together; all of them all the time when that is not
/// known.
pub fn estimate(processor: &Processor, seconds: f64, worked: Option<f64>) -> Energy {
    let all = processor.threads as f64 * seconds;
    let load = if worked.is_none() { "; their load is not known and taken for full" } else { "" };
    let worked = worked.unwrap_or(all).min(all);
    let rest = IDLE * processor.watts_each * all;
    let cpu = rest + (1.0 - IDLE) * processor.watts_each * worked;
    let memory = MEMORY * processor.memory * seconds;
    Energy {
        joules: cpu + memory,
        idle: Some(rest + memory),
        seconds,
        measured: false,
        source: format!(
            "estimated: {}, {:.1} W for each of {} threads ({}){load}, {MEMORY} W for each GiB",
            processor.name, processor.watts_each, processor.threads, processor.basis
        ),
        parts: vec![("processor".into(), cpu), ("memory".into(), memory)],
    }
}
