use std::fs;
use std::path::Path;

use super::estimate::UNKNOWN;
use super::*;

fn zone(class: &Path, id: &str, name: &str, energy: u64, range: u64) {
    let zone = class.join("powercap").join(id);
    fs::create_dir_all(&zone).unwrap();
    fs::write(zone.join("name"), format!("{name}\n")).unwrap();
    fs::write(zone.join("energy_uj"), format!("{energy}\n")).unwrap();
    fs::write(zone.join("max_energy_range_uj"), format!("{range}\n")).unwrap();
}

fn set(class: &Path, id: &str, energy: u64) {
    fs::write(class.join("powercap").join(id).join("energy_uj"), energy.to_string()).unwrap();
}

/// Two packages with memory; cores, the platform and a second way to the same package, which must not count again.
fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path();
    zone(class, "intel-rapl:0", "package-0", 1_000_000, 10_000_000);
    zone(class, "intel-rapl:0:0", "core", 500_000, 10_000_000);
    zone(class, "intel-rapl:0:1", "dram", 0, 10_000_000);
    zone(class, "intel-rapl:1", "package-1", 9_000_000, 10_000_000);
    zone(class, "intel-rapl:1:1", "dram", 0, 10_000_000);
    zone(class, "intel-rapl:2", "psys", 0, 10_000_000);
    zone(class, "intel-rapl-mmio:0", "package-0", 7, 10_000_000);
    fs::create_dir_all(class.join("powercap/intel-rapl")).unwrap();
    folder
}

fn here() -> Processor {
    Processor { name: "Any".into(), watts_each: 5.0, basis: "a guess", threads: 2, memory: 8.0 }
}

#[test]
fn packages_and_memory_are_counted_once_and_go_round() {
    let folder = tree();
    let class = folder.path();
    let mut sensor = Sensor::find(class).unwrap();
    assert_eq!(sensor.name(), "RAPL (powercap): package-0, dram-0, package-1, dram-1");
    set(class, "intel-rapl:0", 3_000_000);
    set(class, "intel-rapl:0:0", 9_000_000);
    set(class, "intel-rapl:0:1", 250_000);
    // Round once: 9 to 10, then 0 to 2.
    set(class, "intel-rapl:1", 2_000_000);
    set(class, "intel-rapl:2", 9_000_000);
    sensor.read();
    assert!((sensor.joules() - (2.0 + 0.25 + 3.0)).abs() < 1e-9, "{}", sensor.joules());
    set(class, "intel-rapl:1", 6_500_000);
    sensor.read();
    set(class, "intel-rapl:1", 1_000_000);
    sensor.read();
    assert!((sensor.parts()[2].1 - 12.0).abs() < 1e-9, "round twice: {:?}", sensor.parts());
    assert_eq!(sensor.fault(), None);
}

#[test]
fn the_platform_is_taken_when_there_is_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    zone(folder.path(), "intel-rapl:1", "psys", 0, 1_000);
    assert_eq!(Sensor::find(folder.path()).unwrap().name(), "RAPL (powercap): psys");
}

#[test]
fn sockets_of_amd_are_read_from_hwmon() {
    let folder = tempfile::tempdir().unwrap();
    let chip = folder.path().join("hwmon/hwmon3");
    fs::create_dir_all(&chip).unwrap();
    for (stem, label, energy) in [(1, "Ecore000", 5), (2, "Esocket0", 7_000_000)] {
        fs::write(chip.join(format!("energy{stem}_label")), label).unwrap();
        fs::write(chip.join(format!("energy{stem}_input")), format!("{energy}\n")).unwrap();
    }
    let mut sensor = Sensor::find(folder.path()).unwrap();
    assert_eq!(sensor.name(), "hwmon: Esocket0; memory is not in it");
    fs::write(chip.join("energy2_input"), "9500000\n").unwrap();
    sensor.read();
    assert_eq!((sensor.joules(), sensor.fault()), (2.5, None));
}

#[test]
fn what_is_no_number_is_named() {
    let folder = tree();
    let file = folder.path().join("powercap/intel-rapl:1/energy_uj");
    fs::write(&file, "many\n").unwrap();
    assert_eq!(Sensor::find(folder.path()).unwrap_err(), Unread::Broken(file), "half of it is not all of it");
}

#[test]
fn a_battery_counts_while_it_is_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let battery = folder.path().join("power_supply/BAT0");
    fs::create_dir_all(&battery).unwrap();
    let write = |name: &str, text: &str| fs::write(battery.join(name), text).unwrap();
    write("type", "Battery\n");
    write("status", "Charging\n");
    write("current_now", "2000000\n");
    write("voltage_now", "10000000\n");
    assert_eq!(Sensor::find(folder.path()).unwrap_err(), Unread::None);
    write("status", "Discharging\n");
    let watch = Stopwatch::start();
    let mut sensor = Sensor::find(folder.path()).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    sensor.read();
    let most = 20.0 * watch.seconds();
    assert!(sensor.joules() > 20.0 * 0.029 && sensor.joules() <= most, "{} {most}", sensor.joules());
    assert_eq!(sensor.fault(), None);
    // What flows into it from now on is not what the machine takes.
    write("status", "Charging\n");
    sensor.read();
    assert_eq!(sensor.fault(), Some("BAT0 went away"));
}

#[test]
fn what_leaves_a_battery_may_be_negative() {
    let folder = tempfile::tempdir().unwrap();
    let battery = folder.path().join("power_supply/BAT1");
    fs::create_dir_all(&battery).unwrap();
    for (name, text) in [("type", "Battery"), ("status", "Discharging"), ("power_now", "-10000000")] {
        fs::write(battery.join(name), text).unwrap();
    }
    let mut sensor = Sensor::find(folder.path()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    sensor.read();
    assert!(sensor.joules() >= 10.0 * 0.02, "{}", sensor.joules());
}

#[cfg(unix)]
#[test]
fn what_may_not_be_read_is_named_and_estimated() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tree();
    let file = folder.path().join("powercap/intel-rapl:0/energy_uj");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_to_string(&file).is_ok() {
        eprintln!("skipped: root may read everything");
        return;
    }
    assert_eq!(Sensor::find(folder.path()).unwrap_err(), Unread::Denied(file));
    let energy = Meter::start(folder.path(), Duration::ZERO).stop(&here());
    assert!(!energy.measured && energy.source.contains("run as root"), "{}", energy.source);
}

/// What comes of a tree to which this happens while it is read.
fn after(change: impl FnOnce(&Path)) -> Energy {
    let folder = tree();
    let meter = Meter::start(folder.path(), Duration::ZERO);
    change(folder.path());
    meter.stop(&here())
}

#[test]
fn what_is_not_counted_whole_is_not_called_measured() {
    let estimated = |energy: Energy, why: &str| {
        assert!(!energy.measured && energy.source.contains(why), "{}", energy.source);
    };
    let went = after(|class| fs::remove_dir_all(class.join("powercap/intel-rapl:1")).unwrap());
    estimated(went, "package-1 could not be read any more");
    let came = after(|class| zone(class, "intel-rapl:3", "package-2", 5, 10_000_000));
    estimated(came, "package-2 came");
    // Away and back: its counter starts anew.
    let back = after(|class| {
        fs::remove_dir_all(class.join("powercap/intel-rapl:1")).unwrap();
        zone(class, "intel-rapl:1", "package-1", 8_900_000, 10_000_000);
    });
    estimated(back, "package-1 was set back");
    let broken = after(|class| fs::write(class.join("powercap/intel-rapl:0/energy_uj"), "").unwrap());
    estimated(broken, "package-0 could not be read any more");
    // Virtual machines show counters that always stand still.
    estimated(after(|_| ()), "did not move");
    let whole = after(|class| set(class, "intel-rapl:0", 1_500_000));
    assert!(whole.measured && whole.joules == 0.5, "{whole:?}");
}

#[cfg(unix)]
#[test]
fn what_is_closed_while_it_is_read_is_not_called_measured() {
    use std::os::unix::fs::PermissionsExt;
    let energy = after(|class| {
        let file = class.join("powercap/intel-rapl:0/energy_uj");
        set(class, "intel-rapl:1", 9_500_000);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read_to_string(&file).is_ok() {
            eprintln!("skipped: root may read everything");
            fs::write(&file, "closed").unwrap();
        }
    });
    assert!(!energy.measured && energy.source.contains("package-0 could not be read"), "{}", energy.source);
}

#[test]
fn what_is_measured_has_what_idling_takes_beside() {
    let folder = tree();
    let class = folder.path().to_owned();
    let resting = {
        let class = class.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            set(&class, "intel-rapl:0", 1_010_000);
        })
    };
    let meter = Meter::start(&class, Duration::from_millis(200));
    resting.join().unwrap();
    set(&class, "intel-rapl:0", 5_010_000);
    let energy = meter.stop(&here());
    assert!(energy.measured && (energy.joules - 4.0).abs() < 1e-9, "{energy:?}");
    // 0.01 J in 0.2 s or a little more.
    let watts = energy.idle.unwrap() / energy.seconds;
    assert!(watts > 0.0 && watts <= 0.05, "{watts}");
    assert_eq!(energy.above_idle(), Some((4.0 - energy.idle.unwrap()).max(0.0)));
    assert!(
        energy.words().starts_with("4 J (measured; ") && energy.words().ends_with("beyond an idle machine)")
    );
    let unknown = Energy { idle: None, ..energy };
    assert_eq!(unknown.words(), "4 J (measured; what an idle machine takes is in it)");
}

#[test]
fn estimates_follow_the_load() {
    let busy = estimate(&here(), 10.0, Some(20.0));
    // Two threads of 5 W, and 8 GiB of 0.375 W.
    assert!((busy.joules - (100.0 + 30.0)).abs() < 1e-9 && !busy.measured);
    let half = estimate(&here(), 10.0, Some(10.0));
    assert!((half.joules - (10.0 + 45.0 + 30.0)).abs() < 1e-9);
    assert!((half.above_idle().unwrap() - 45.0).abs() < 1e-9);
    // More work than threads can do is an error of clocks.
    assert_eq!(estimate(&here(), 10.0, Some(1e9)).joules, busy.joules);
    let unknown = estimate(&here(), 10.0, None);
    assert!(unknown.joules == busy.joules && unknown.source.contains("taken for full"), "{}", unknown.source);
    assert!((busy.watts() - 13.0).abs() < 1e-9 && (busy.kwh() - 130.0 / 3.6e6).abs() < 1e-12);
}

#[test]
fn processors_are_found_by_their_names() {
    let machine = |cpu: &str| crate::Machine {
        cpu: cpu.into(),
        threads: 2,
        cores: None,
        memory: Some(1 << 30),
        os: String::new(),
        isa: Vec::new(),
    };
    let known = processor(&machine("Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz"));
    assert!(known.basis == "its thermal design power" && known.watts_each == 270.0 / 80.0);
    let faster = |name| processor(&machine(name)).watts_each;
    assert!(faster("12th Gen Intel(R) Core(TM) i7-12700K") > faster("12th Gen Intel(R) Core(TM) i7-12700"));
    let stacked = "AMD Ryzen 9 7950X3D 16-Core Processor";
    assert_eq!(faster(stacked), 120.0 / 32.0, "not that of the 7950X");
    let family = processor(&machine("AMD EPYC 7Y99"));
    assert!(family.basis.contains("family") && family.watts_each == 360.0 / 192.0);
    let other = processor(&machine("Some CPU"));
    assert!(other.basis.contains("not known") && other.watts_each == UNKNOWN && other.memory == 1.0);
    for (name, watts, threads) in estimate::TABLE {
        assert_eq!(
            processor(&machine(&format!("A {name} B"))).watts_each,
            watts / threads,
            "{name} is hidden"
        );
    }
}

#[test]
fn a_known_load_is_seen() {
    let Some(before) = crate::time::cpu() else {
        eprintln!("skipped: this system does not tell what time threads have worked");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let meter = Meter::start(folder.path(), Duration::ZERO);
    let watch = Stopwatch::start();
    let mut x = 1u64;
    while crate::time::cpu().unwrap() - before < 0.3 && watch.seconds() < 20.0 {
        (0..100_000).for_each(|i| x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i)));
    }
    let energy = meter.stop(&here());
    // At least 0.25 seconds of one thread of 5 W beyond idling; other tests may work at the same time.
    assert!(energy.above_idle().unwrap() >= 0.25 * 4.5, "{energy:?} {x}");
}
