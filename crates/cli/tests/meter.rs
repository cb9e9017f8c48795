//! `lessen meter` as a user calls it, on sensors made here.

mod here;

use here::{Place, example, lessen};

/// A package whose counter stands at this many microjoules.
fn sensors(place: &Place, energy: u64) -> String {
    place.file("class/powercap/intel-rapl:0/name", b"package-0\n");
    place.file("class/powercap/intel-rapl:0/max_energy_range_uj", b"100000000\n");
    place.file("class/powercap/intel-rapl:0/energy_uj", format!("{energy}\n").as_bytes());
    place.path("class")
}

#[test]
fn joules_are_read_and_priced() {
    let place = Place::new();
    let class = sensors(&place, 99_000_000);
    // The command lets the counter go round: from 99 to 100, and from 0 to 6.
    let counter = place.path("class/powercap/intel-rapl:0/energy_uj");
    let script = format!("echo 6000000 > {counter}; echo said; exit 3");
    let (csv, text) = (place.path("emissions.csv"), place.path("lessen.prom"));
    let args = [
        "meter",
        "--sensors",
        &class,
        "--country",
        "fra",
        "--pue",
        "2",
        "--per-kwh",
        "0.5",
        "--csv",
        &csv,
        "--prometheus",
        &text,
        "--json",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let answer = lessen(&args);
    assert_eq!(answer.code, 3, "the command's own: {}", answer.err);
    let report: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert!(answer.err.contains("said"));
    assert_eq!(report["energy"]["measured"], true);
    assert_eq!(report["energy"]["joules"], 7.0);
    assert_eq!(report["energy"]["idle"], serde_json::Value::Null);
    let kwh = 2.0 * 7.0 / 3.6e6;
    let near = |key: &str, want: f64| {
        let found = report["cost"][key].as_f64().unwrap();
        assert!((found - want).abs() < 1e-9 * want, "{key}: {found} {want}");
    };
    near("kwh", kwh);
    near("co2", kwh * 0.056);
    near("money", kwh * 0.5);
    let prom = std::fs::read_to_string(&text).unwrap();
    assert!(prom.contains("# TYPE lessen_energy_joules gauge\nlessen_energy_joules 7\n"), "{prom}");
    assert!(prom.contains("lessen_energy_is_measured 1"));
    // A second run adds a line.
    assert_eq!(lessen(&args).code, 3);
    let lines = std::fs::read_to_string(&csv).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines[0]
            .starts_with("timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,")
    );
    assert_eq!(lines[1].split(',').nth(1), Some("sh"));
}

#[test]
fn what_cannot_be_read_is_estimated_and_called_so() {
    let place = Place::new();
    let none = place.path("nothing");
    let seen = lessen(&["meter", "--sensors", &none, "--", "sh", "-c", "exit 0"]);
    let text = seen.text();
    assert!(text.contains("estimated") && !text.contains("measured"), "{text}");
    assert!(text.contains("no sensor of energy") && text.contains("g/kWh"), "{text}");
    let report = lessen(&["meter", "--sensors", &none, "--json", "--", "sh", "-c", "exit 0"]).json();
    assert_eq!(report["energy"]["measured"], false);
}

#[test]
fn wrong_flags_are_named() {
    lessen(&["meter", "--", "no-such-program-anywhere"])
        .fails(&["no-such-program-anywhere", "cannot be run"]);
    lessen(&["meter", "--country", "Atlantis", "--", "true"]).fails(&["Atlantis", "DEU"]);
    lessen(&["meter", "--pue=0.5", "--", "true"]).fails(&["--pue", "from 1"]);
    lessen(&["meter", "--intensity=NaN", "--", "true"]).fails(&["--intensity"]);
    assert_eq!(lessen(&["meter"]).code, 1);
}

#[test]
fn a_model_that_does_not_fit_is_worked_out() {
    let case = example("../what-if/gpt3.toml");
    let found = lessen(&["meter", "--what-if", &case, "--json"]).json();
    assert_eq!(found["before"]["bytes"], 350e9);
    let mwh = found["trained"]["mwh"].as_f64().unwrap();
    assert!((mwh / 1287.0 - 1.0).abs() < 0.01, "{mwh}");
    let text = lessen(&["meter", "--what-if", &case]);
    assert!(text.text().contains("estimated") && text.text().contains("assumed:"));
    let place = Place::new();
    let bad = place.file("bad.toml", b"name = \"x\"\nparameter = 1\n");
    lessen(&["meter", "--what-if", &bad]).fails(&["bad.toml"]);
    lessen(&["meter", "--what-if", &place.path("none.toml")]).fails(&["none.toml"]);
}

#[cfg(unix)]
#[test]
fn a_signal_is_an_exit_code_as_in_a_shell() {
    assert_eq!(lessen(&["meter", "--", "sh", "-c", "kill -9 $$"]).code, 128 + 9);
}

#[test]
fn where_an_intensity_is_from_is_said() {
    let said = |flags: &[&str]| lessen(&[&["meter"], flags, &["--", "true"]].concat()).text().to_owned();
    assert!(said(&[]).contains("475 g/kWh (the world's"));
    assert!(said(&["--country", "swe"]).contains("40.7 g/kWh (SWE, 2023"));
    assert!(said(&["--country", "swe", "--intensity", "12"]).contains("12 g/kWh (given)"));
}

/// As another user, for whom the counter is closed: tests often run as root, who may read everything.
#[cfg(unix)]
#[test]
fn a_counter_that_may_not_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let place = Place::new();
    let class = sensors(&place, 5);
    let open = |path: &str, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(&place.path("."), 0o755);
    open(&place.path("class/powercap/intel-rapl:0/energy_uj"), 0o000);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lessen"));
    command.args(["meter", "--sensors", &class, "--", "true"]).uid(65534).gid(65534);
    let output = match command.output() {
        Ok(output) if output.status.success() => output,
        other => return eprintln!("skipped: another user cannot run this program: {other:?}"),
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("estimated") && text.contains("energy_uj may not be read: run as root"), "{text}");
}
