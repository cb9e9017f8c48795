//! Energy: read from sensors where the system lets us, else estimated from the processor's thermal design power and the time
//! that it worked. Which of both it was is always said.

mod estimate;
mod sensor;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Stopwatch;
pub use estimate::{Processor, estimate, processor};
pub use sensor::{Sensor, Unread};

/// How often sensors are read. Their counters go round in minutes at the least.
const EVERY: Duration = Duration::from_millis(500);

/// Where Linux shows sensors.
pub const SENSORS: &str = "/sys/class";

/// Energy that something took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// All of it, in joules.
    pub joules: f64,
    /// What the machine would have taken in the same time without the work; `None` when it is not known.
    pub idle: Option<f64>,
    /// Seconds that it took.
    pub seconds: f64,
    /// Was it read from a sensor? Else it is estimated.
    pub measured: bool,
    /// Where it comes from, for people.
    pub source: String,
    /// Joules by part, such as `package-0` and `dram`.
    pub parts: Vec<(String, f64)>,
}

impl Energy {
    /// Mean power, in watts; 0 for no time.
    pub fn watts(&self) -> f64 {
        if self.seconds > 0.0 { self.joules / self.seconds } else { 0.0 }
    }

    /// What the work took beyond an idle machine; `None` when that is not known.
    pub fn above_idle(&self) -> Option<f64> {
        self.idle.map(|idle| (self.joules - idle).max(0.0))
    }

    /// Kilowatt-hours.
    pub fn kwh(&self) -> f64 {
        self.joules / 3.6e6
    }

    /// In words: see [`words`].
    pub fn words(&self) -> String {
        words(self.joules, self.measured, self.above_idle())
    }
}

/// Joules in words: whether they are measured, and how many of them are beyond what an idle machine takes.
pub fn words(joules: f64, measured: bool, above_idle: Option<f64>) -> String {
    let how = if measured { "measured" } else { "estimated" };
    let idle = match above_idle {
        Some(above) => format!("{above:.0} J of it beyond an idle machine"),
        None => "what an idle machine takes is in it".into(),
    };
    format!("{joules:.0} J ({how}; {idle})")
}

/// Reads a sensor, if there is one, from the moment it is made.
#[derive(Debug)]
pub struct Meter {
    watch: Stopwatch,
    reader: Option<(Sender<()>, JoinHandle<Sensor>)>,
    /// Why nothing can be read, when nothing can.
    unread: Option<Unread>,
    idle_watts: Option<f64>,
    cpu_seconds: Option<f64>,
}

impl Meter {
    /// Starts. `class` is `/sys/class`; with `rest` the sensor is read so long before, on a machine that does nothing else, to
    /// know what idling takes.
    pub fn start(class: &Path, rest: Duration) -> Meter {
        let mut idle_watts = None;
        let found = Sensor::find(class).map(|mut sensor| {
            if !rest.is_zero() {
                let watch = Stopwatch::start();
                std::thread::sleep(rest);
                sensor.read();
                let watts = sensor.joules() / watch.seconds();
                idle_watts = Some(watts).filter(|watts| *watts > 0.0);
                sensor.restart();
            }
            let (stop, stopped) = channel::<()>();
            let reader = std::thread::spawn(move || {
                while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    sensor.read();
                }
                sensor.read();
                sensor
            });
            (stop, reader)
        });
        let (reader, unread) = match found {
            Ok(reader) => (Some(reader), None),
            Err(unread) => (None, Some(unread)),
        };
        Meter { watch: Stopwatch::start(), reader, unread, idle_watts, cpu_seconds: crate::time::cpu() }
    }

    /// Stops. Where nothing could be read, or not all of it, the energy is estimated for this processor.
    pub fn stop(self, processor: &Processor) -> Energy {
        let seconds = self.watch.seconds();
        let worked = crate::time::cpu().zip(self.cpu_seconds).map(|(now, before)| (now - before).max(0.0));
        let sensor = self.reader.and_then(|(stop, reader)| {
            drop(stop);
            reader.join().ok()
        });
        let why = match (&sensor, self.unread) {
            (Some(sensor), _) => match sensor.fault() {
                Some(fault) => format!("{} was not counted whole: {fault}", sensor.name()),
                None if sensor.joules() == 0.0 => format!("{} did not move", sensor.name()),
                None => {
                    return Energy {
                        joules: sensor.joules(),
                        idle: self.idle_watts.map(|watts| watts * seconds),
                        seconds,
                        measured: true,
                        source: sensor.name(),
                        parts: sensor.parts(),
                    };
                }
            },
            (None, Some(unread)) => unread.to_string(),
            (None, None) => "the sensor could not be read".into(),
        };
        let mut energy = estimate(processor, seconds, worked);
        energy.source = format!("{}; {why}", energy.source);
        energy
    }
}
