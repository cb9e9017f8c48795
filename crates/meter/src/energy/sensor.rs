//! Sensors of energy under `/sys/class`: the counters of powercap (RAPL of Intel and AMD), those of hwmon, a battery that is
//! being emptied.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Why no sensor can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// There is none.
    None,
    /// There is one, but the system does not let us.
    Denied(PathBuf),
    /// There is one, but it gives no number.
    Broken(PathBuf),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unread::None => f.write_str("this system has no sensor of energy that could be read"),
            Unread::Denied(path) => write!(
                f,
                "{} may not be read: run as root, or let the group read it (chmod g+r)",
                path.display()
            ),
            Unread::Broken(path) => write!(f, "{} gives no number", path.display()),
        }
    }
}

/// What a file counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Microjoules, which start again at 0 after this many, when that is known.
    Counter { range: Option<f64> },
    /// Microwatts.
    Power,
    /// Microamperes and, in another file, microvolts.
    Current,
}

/// One number that a system shows: its name, where it stands, what it counts.
#[derive(Debug)]
struct Listed {
    name: String,
    files: Vec<PathBuf>,
    kind: Kind,
}

/// One number of a sensor.
#[derive(Debug)]
struct Part {
    what: Listed,
    last: f64,
    at: Instant,
    joules: f64,
}

/// All that a folder shows of one kind of sensor.
type List = fn(&Path) -> Vec<Listed>;

/// Kinds of sensors, the best first.
const KINDS: [(&str, List); 3] = [("RAPL (powercap)", powercap), ("hwmon", hwmon), ("battery", battery)];

/// A sensor that is read from time to time.
#[derive(Debug)]
pub struct Sensor {
    name: &'static str,
    class: PathBuf,
    list: List,
    parts: Vec<Part>,
    fault: Option<String>,
}

impl Sensor {
    /// The best there is: powercap's packages and memory, else hwmon's counters, else a battery.
    ///
    /// # Errors
    /// When there is none, or none may be read.
    pub fn find(class: &Path) -> Result<Sensor, Unread> {
        let mut why = Unread::None;
        for (name, list) in KINDS {
            match list(class).into_iter().map(Part::open).collect::<Result<Vec<_>, _>>() {
                Ok(parts) if !parts.is_empty() => {
                    return Ok(Sensor { name, class: class.into(), list, parts, fault: None });
                }
                Ok(_) => {}
                Err(unread) if why == Unread::None => why = unread,
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// Reads all parts, and looks whether they are still all there is.
    pub fn read(&mut self) {
        let faults: Vec<String> = self.parts.iter_mut().filter_map(|part| part.read().err()).collect();
        let names: Vec<String> = (self.list)(&self.class).into_iter().map(|listed| listed.name).collect();
        let other = || {
            let had = |name: &String| self.parts.iter().any(|part| part.what.name == *name);
            let came = names.iter().find(|name| !had(name)).map(|name| format!("{name} came"));
            let went = self.parts.iter().find(|part| !names.contains(&part.what.name));
            came.or(went.map(|part| format!("{} went away", part.what.name)))
        };
        let fault = faults.into_iter().next().or_else(other);
        self.fault = self.fault.take().or(fault);
    }

    /// Forgets what was counted.
    pub fn restart(&mut self) {
        self.parts.iter_mut().for_each(|part| part.joules = 0.0);
    }

    /// Joules since it was made or restarted, up to the last reading.
    pub fn joules(&self) -> f64 {
        self.parts.iter().map(|part| part.joules).sum()
    }

    /// Why what was counted is not all of it, when it is not: a part went away, came or was set back meanwhile.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// What it is, and whether memory is left out: processors often count none.
    pub fn name(&self) -> String {
        let parts: Vec<&str> = self.parts.iter().map(|part| part.what.name.as_str()).collect();
        let is = |start: &str| parts.iter().any(|name| name.starts_with(start));
        let memory = if (is("package") || is(SOCKET)) && !is("dram") { "; memory is not in it" } else { "" };
        format!("{}: {}{memory}", self.name, parts.join(", "))
    }

    /// Joules by part.
    pub fn parts(&self) -> Vec<(String, f64)> {
        self.parts.iter().map(|part| (part.what.name.clone(), part.joules)).collect()
    }
}

impl Part {
    fn open(what: Listed) -> Result<Part, Unread> {
        for file in &what.files {
            match fs::read_to_string(file) {
                Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                    return Err(Unread::Denied(file.clone()));
                }
                Ok(text) if parsed(&text).is_some() => {}
                _ => return Err(Unread::Broken(file.clone())),
            }
        }
        let broken = Unread::Broken(what.files.first().cloned().unwrap_or_default());
        let mut part = Part { what, last: 0.0, at: Instant::now(), joules: 0.0 };
        part.last = part.value().ok_or(broken)?;
        Ok(part)
    }

    fn value(&self) -> Option<f64> {
        let numbers = self.what.files.iter().map(|file| number(file));
        let numbers = numbers.collect::<Option<Vec<f64>>>()?;
        // Drivers do not agree on the sign of what leaves a battery.
        match (self.what.kind, numbers.as_slice()) {
            (Kind::Current, [current, voltage]) => Some((current * voltage).abs() / 1e6),
            (Kind::Power, [power]) => Some(power.abs()),
            (Kind::Counter { .. }, [count]) => Some(*count),
            _ => None,
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let name = &self.what.name;
        let value = self.value().ok_or_else(|| format!("{name} could not be read any more"))?;
        let micro = match self.what.kind {
            Kind::Counter { range } if value < self.last => {
                // It goes round in minutes, and is read twice a second: who seems to have gone most of the way was set back,
                // as sleep does.
                let round = |range: f64| Some(value + range - self.last).filter(|step| *step <= range / 2.0);
                range.and_then(round).ok_or_else(|| format!("{name} was set back"))?
            }
            Kind::Counter { .. } => value - self.last,
            Kind::Power | Kind::Current => (value + self.last) / 2.0 * (now - self.at).as_secs_f64(),
        };
        self.joules += micro.max(0.0) / 1e6;
        (self.last, self.at) = (value, now);
        Ok(())
    }
}

fn number(path: &Path) -> Option<f64> {
    parsed(&fs::read_to_string(path).ok()?)
}

fn parsed(text: &str) -> Option<f64> {
    text.trim().parse::<i64>().ok().map(|n| n as f64)
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The entries of a folder, in order.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = read.map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// What hwmon calls the counters of sockets.
const SOCKET: &str = "Esocket";

/// The packages and the memory. Cores are parts of packages; the platform (`psys`) counts them again, and is taken only when
/// there is nothing else.
fn powercap(class: &Path) -> Vec<Listed> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for zone in entries(&class.join("powercap")) {
        // The zones of a package lie beside it as well as in it, and mmio counts the same as msr.
        let id = zone.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let Some(name) = text(&zone.join("name")) else { continue };
        let package = id.split(':').nth(1).unwrap_or_default().to_owned();
        let label = if name == "dram" { format!("dram-{package}") } else { name };
        if !id.contains("mmio") && !found.iter().any(|(known, _)| *known == label) {
            found.push((label, zone));
        }
    }
    let main = |name: &str| name.starts_with("package") || name.starts_with("dram");
    let any = found.iter().any(|(name, _)| main(name));
    let wanted = found.into_iter().filter(|(name, _)| if any { main(name) } else { name == "psys" });
    let listed = wanted.map(|(name, zone)| {
        let kind = Kind::Counter { range: number(&zone.join("max_energy_range_uj")) };
        Listed { name, files: vec![zone.join("energy_uj")], kind }
    });
    listed.collect()
}

/// Counters of sockets, as amd_energy has, in microjoules; 64 bits do not go round.
fn hwmon(class: &Path) -> Vec<Listed> {
    let mut listed = Vec::new();
    for chip in entries(&class.join("hwmon")) {
        for file in entries(&chip) {
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            let Some(stem) = name.strip_prefix("energy").and_then(|n| n.strip_suffix("_input")) else {
                continue;
            };
            let name = text(&chip.join(format!("energy{stem}_label"))).unwrap_or_default();
            if name.starts_with(SOCKET) {
                listed.push(Listed { name, files: vec![file], kind: Kind::Counter { range: None } });
            }
        }
    }
    listed
}

/// The power that a battery gives while it is being emptied.
fn battery(class: &Path) -> Vec<Listed> {
    let mut listed = Vec::new();
    for supply in entries(&class.join("power_supply")) {
        let is = |file: &str, value: &str| text(&supply.join(file)).as_deref() == Some(value);
        if !is("type", "Battery") || !is("status", "Discharging") {
            continue;
        }
        let name = supply.file_name().and_then(|n| n.to_str()).unwrap_or("battery").to_owned();
        let power = supply.join("power_now");
        let (files, kind) = match power.exists() {
            true => (vec![power], Kind::Power),
            false => (["current_now", "voltage_now"].map(|file| supply.join(file)).to_vec(), Kind::Current),
        };
        listed.push(Listed { name, files, kind });
    }
    listed
}
