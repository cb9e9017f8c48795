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
        }
    }
}

/// What a file counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Microjoules, which start again at 0 after this many.
    Counter { range: u64 },
    /// Microwatts.
    Power,
    /// Microamperes and, in another file, microvolts.
    Current,
}

/// One number of a sensor.
#[derive(Debug)]
struct Part {
    name: String,
    files: Vec<PathBuf>,
    kind: Kind,
    last: f64,
    at: Instant,
    joules: f64,
    /// Could it be read each time?
    whole: bool,
}

/// A sensor that is read from time to time.
#[derive(Debug)]
pub struct Sensor {
    name: &'static str,
    parts: Vec<Part>,
}

impl Sensor {
    /// The best there is: powercap's packages and memory, else hwmon's counters, else a battery.
    ///
    /// # Errors
    /// When there is none, or none may be read.
    pub fn find(class: &Path) -> Result<Sensor, Unread> {
        let mut why = Unread::None;
        for (name, parts) in
            [("RAPL (powercap)", powercap(class)), ("hwmon", hwmon(class)), ("battery", battery(class))]
        {
            match parts {
                Ok(parts) if !parts.is_empty() => return Ok(Sensor { name, parts }),
                Ok(_) => {}
                Err(path) => why = Unread::Denied(path),
            }
        }
        Err(why)
    }

    /// Reads all parts.
    pub fn read(&mut self) {
        self.parts.iter_mut().for_each(Part::read);
    }

    /// Forgets what was counted.
    pub fn restart(&mut self) {
        self.parts.iter_mut().for_each(|part| part.joules = 0.0);
    }

    /// Joules since it was made or restarted, up to the last reading.
    pub fn joules(&self) -> f64 {
        self.parts.iter().map(|part| part.joules).sum()
    }

    /// Could all of it be read each time?
    pub fn is_whole(&self) -> bool {
        self.parts.iter().all(|part| part.whole)
    }

    /// What it is.
    pub fn name(&self) -> String {
        let parts: Vec<&str> = self.parts.iter().map(|part| part.name.as_str()).collect();
        format!("{}: {}", self.name, parts.join(", "))
    }

    /// Joules by part.
    pub fn parts(&self) -> Vec<(String, f64)> {
        self.parts.iter().map(|part| (part.name.clone(), part.joules)).collect()
    }
}

impl Part {
    /// `Err` with the file when it is there but may not be read, `Ok(None)` when it is not there or holds no number.
    fn open(name: String, files: Vec<PathBuf>, kind: Kind) -> Result<Option<Part>, PathBuf> {
        for file in &files {
            match fs::read_to_string(file) {
                Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(file.clone()),
                Ok(text) if text.trim().parse::<u64>().is_ok() => {}
                _ => return Ok(None),
            }
        }
        let mut part = Part { name, files, kind, last: 0.0, at: Instant::now(), joules: 0.0, whole: true };
        part.read();
        part.joules = 0.0;
        Ok(Some(part))
    }

    fn value(&self) -> Option<f64> {
        let numbers = self.files.iter().map(|file| number(file));
        let numbers = numbers.collect::<Option<Vec<u64>>>()?;
        Some(match (self.kind, numbers.as_slice()) {
            (Kind::Current, [current, voltage]) => *current as f64 * *voltage as f64 / 1e6,
            (_, [one]) => *one as f64,
            _ => return None,
        })
    }

    fn read(&mut self) {
        let now = Instant::now();
        let Some(value) = self.value() else {
            self.whole = false;
            return;
        };
        let micro = match self.kind {
            Kind::Counter { range } if value < self.last => value + range as f64 - self.last,
            Kind::Counter { .. } => value - self.last,
            Kind::Power | Kind::Current => (value + self.last) / 2.0 * (now - self.at).as_secs_f64(),
        };
        self.joules += micro.max(0.0) / 1e6;
        (self.last, self.at) = (value, now);
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
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

/// The packages and the memory. Cores are parts of packages; the platform (`psys`) counts them again, and is taken only when
/// there is nothing else.
fn powercap(class: &Path) -> Result<Vec<Part>, PathBuf> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let mut seen = Vec::new();
    for zone in entries(&class.join("powercap")) {
        // The zones of a package lie beside it as well as in it, and mmio counts the same as msr.
        let id = zone.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let Some(name) = text(&zone.join("name")) else { continue };
        let package = id.split(':').nth(1).unwrap_or_default().to_owned();
        let label = if name == "dram" { format!("dram-{package}") } else { name };
        if !id.contains("mmio") && !seen.contains(&label) {
            seen.push(label.clone());
            found.push((label, zone));
        }
    }
    let main = |name: &str| name.starts_with("package") || name.starts_with("dram");
    let wanted: Vec<_> = match found.iter().any(|(name, _)| main(name)) {
        true => found.into_iter().filter(|(name, _)| main(name)).collect(),
        false => found.into_iter().filter(|(name, _)| name == "psys").collect(),
    };
    let open = |(name, zone): (String, PathBuf)| {
        let range = number(&zone.join("max_energy_range_uj")).unwrap_or(u64::from(u32::MAX));
        Part::open(name, vec![zone.join("energy_uj")], Kind::Counter { range })
    };
    let parts = wanted.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
    Ok(parts.into_iter().flatten().collect())
}

/// Counters of sockets, as amd_energy has, in microjoules of 64 bits.
fn hwmon(class: &Path) -> Result<Vec<Part>, PathBuf> {
    let mut parts = Vec::new();
    for chip in entries(&class.join("hwmon")) {
        for file in entries(&chip) {
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            let Some(stem) = name.strip_prefix("energy").and_then(|n| n.strip_suffix("_input")) else {
                continue;
            };
            let label = text(&chip.join(format!("energy{stem}_label"))).unwrap_or_default();
            if label.starts_with("Esocket") {
                parts.extend(Part::open(label, vec![file], Kind::Counter { range: u64::MAX })?);
            }
        }
    }
    Ok(parts)
}

/// The power that a battery gives while it is not being filled.
fn battery(class: &Path) -> Result<Vec<Part>, PathBuf> {
    let mut parts = Vec::new();
    for supply in entries(&class.join("power_supply")) {
        let is = |file: &str, value: &str| text(&supply.join(file)).as_deref() == Some(value);
        if !is("type", "Battery") || !is("status", "Discharging") {
            continue;
        }
        let name = supply.file_name().and_then(|n| n.to_str()).unwrap_or("battery").to_owned();
        let power = supply.join("power_now");
        let part = match power.exists() {
            true => Part::open(name, vec![power], Kind::Power)?,
            false => {
                let files = ["current_now", "voltage_now"].map(|file| supply.join(file)).to_vec();
                Part::open(name, files, Kind::Current)?
            }
        };
        parts.extend(part);
    }
    Ok(parts)
}
