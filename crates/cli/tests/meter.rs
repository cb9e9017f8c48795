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
    // As CodeCarbon writes them: energies with what the building takes, powers without.
    let cell = |name: &str| {
        let at = lines[0].split(',').position(|column| column == name).unwrap();
        lines[1].split(',').nth(at).unwrap().to_owned()
    };
    let number = |name: &str| cell(name).parse::<f64>().unwrap();
    assert!((number("energy_consumed") - kwh).abs() < 1e-9 * kwh);
    assert!((number("cpu_energy") + number("ram_energy") - kwh).abs() < 1e-9 * kwh);
    assert!((number("cpu_power") * number("duration") - 7.0).abs() < 1e-9);
    assert_eq!((cell("country_name"), cell("country_iso_code")), ("France".into(), "FRA".into()));
}

#[test]
fn lines_are_added_to_a_table_of_codecarbon() {
    let place = Place::new();
    let none = place.path("none");
    let meter = |file: &str, more: &[&str]| {
        lessen(&[&["meter", "--sensors", &none, "--csv", file], more, &["--", "true"]].concat())
    };
    // Columns of other versions, in another order, and no end of the last line.
    let file = place.file(
        "emissions.csv",
        b"run_id,emissions,wue,duration,energy_consumed,country_iso_code\n1,2,3,4,5,FRA",
    );
    meter(&file, &["--country", "CAN", "--region", "QC"]).text();
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((lines.len(), lines[1].join(",")), (3, "1,2,3,4,5,FRA".into()));
    assert_eq!((lines[2].len(), lines[2][2], lines[2][5]), (6, "", "CAN"));
    assert!(lines[2][1].parse::<f64>().unwrap() > 0.0);
    // What cannot be added to is said before the command runs, not after.
    let (other, ran) = (place.file("other.csv", b"a,b\n1,2\n"), place.path("ran"));
    let touch = |flag: &str, file: &str| lessen(&["meter", flag, file, "--", "touch", &ran]);
    touch("--csv", &other).fails(&["other.csv", "no column", "name another file"]);
    touch("--csv", &place.path("no/such/folder.csv")).fails(&["folder.csv", "cannot be added to"]);
    touch("--prometheus", &place.path("no/such.prom")).fails(&["such.prom", "folder is not there"]);
    assert!(!std::path::Path::new(&ran).exists());
}

/// A shell that counts works on one core; it says itself what time the system counted for it.
#[cfg(target_os = "linux")]
#[test]
fn an_estimate_follows_the_time_that_the_system_counted() {
    use lessen::meter::{Machine, energy::processor};
    let place = Place::new();
    let script = "i=0; while [ $i -lt 1500000 ]; do i=$((i+1)); done; times";
    let answer = lessen(&["meter", "--sensors", &place.path("none"), "--json", "--", "sh", "-c", script]);
    let report = answer.json();
    let seconds = |text: &str| -> f64 {
        let (minutes, rest) = text.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + rest.parse::<f64>().unwrap()
    };
    let times = answer.err.lines().find(|line| line.split_whitespace().count() == 2).unwrap();
    let worked: f64 = times.split_whitespace().map(seconds).sum();
    assert!(worked > 0.1, "too short to say anything: {}", answer.err);
    let here = processor(&Machine::this());
    let energy = &report["energy"];
    assert_eq!(energy["measured"], false);
    let took = energy["seconds"].as_f64().unwrap();
    let joules = energy["parts"][0][1].as_f64().unwrap();
    // The threads that do nothing take a tenth.
    let rest = 0.1 * here.watts_each * (here.threads as f64 * took - worked);
    let (found, want) = (joules - rest, here.watts_each * worked);
    // The system counts in hundredths of a second, and starting the shell is work, too.
    assert!((found / want - 1.0).abs() < 0.05 + 0.05 / worked, "{found} J, {want} J for {worked} s");
}

/// A package whose counter goes on until this is dropped: 20 mJ every few milliseconds.
struct Going(std::sync::Arc<std::sync::atomic::AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Going {
    fn new(place: &Place) -> Going {
        let (counter, next) = (place.path("class/powercap/intel-rapl:0/energy_uj"), place.path("class/next"));
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut energy = 0u64;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                energy += 20_000;
                // A reader finds the old file or the new one, never half of one.
                std::fs::write(&next, energy.to_string()).unwrap();
                std::fs::rename(&next, &counter).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        Going(stop, Some(thread))
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.1.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn bench_takes_the_energy_of_runs() {
    let place = Place::new();
    let (digits, none, class) = (example("digits.onnx"), place.path("none"), sensors(&place, 0));
    let bench = |sensors: &str, more: &[&str]| {
        let args =
            ["bench", &digits, "--runs", "5", "--seconds", "2", "--threads", "1", "--sensors", sensors];
        lessen(&[&args, more].concat())
    };
    let report = bench(&none, &["--against", &digits, "--energy", "--country", "FRA", "--json"]).json();
    let energy = |at: usize| report["models"][at]["energy"].clone();
    assert_eq!(energy(0)["total"]["how"], "estimated");
    assert!(energy(0)["above_idle"]["value"].as_f64() < energy(0)["total"]["value"].as_f64());
    assert!(energy(1)["runs"].as_f64().unwrap() >= 5.0 && report["frugality"]["how"] == "estimated");
    let kwh = energy(0)["total"]["value"].as_f64().unwrap() * 1e6 / 3.6e6;
    let co2 = report["million"][0]["co2"].as_f64().unwrap();
    assert!((co2 / (kwh * 0.056) - 1.0).abs() < 1e-9, "{co2} {kwh}");
    let said = bench(&none, &["--energy"]);
    assert!(said.text().contains("), estimated") && !said.text().contains("measured"), "{}", said.text());

    let going = Going::new(&place);
    let report = bench(&class, &["--energy", "--idle", "0.5", "--json"]).json();
    let energy = &report["models"][0]["energy"];
    assert_eq!(energy["total"]["how"], "measured", "{energy}");
    assert!(energy["total"]["value"].as_f64().unwrap() > 0.0 && energy["above_idle"]["how"] == "measured");
    assert!(energy["source"].as_str().unwrap().contains("package-0; memory is not in it"));
    let report = bench(&class, &["--energy", "--json"]).json();
    assert!(report["models"][0]["energy"]["above_idle"].is_null(), "idling was not measured");
    drop(going);
    // A counter that stands still measures nothing.
    let report = bench(&class, &["--energy", "--json"]).json();
    assert_eq!(report["models"][0]["energy"]["total"]["how"], "estimated");

    assert!(bench(&none, &["--json"]).json()["models"][0]["energy"].is_null());
    bench(&none, &["--country", "FRA"]).fails(&["--energy"]);
    bench(&none, &["--energy", "--idle", "-1"]).fails(&["--idle -1", "from 0"]);
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
    lessen(&["meter", "--intensity", "-5", "--", "true"]).fails(&["--intensity -5", "from 0"]);
    lessen(&["meter", "--per-kwh", "-0.3", "--", "true"]).fails(&["--per-kwh -0.3", "from 0"]);
    lessen(&["meter", "--per-hour", "-1", "--", "true"]).fails(&["--per-hour -1", "from 0"]);
    lessen(&["meter", "--idle", "-1", "--", "true"]).fails(&["--idle -1", "from 0"]);
    lessen(&["meter", "--idle", "1e30", "--", "true"]).fails(&["--idle is too long"]);
    lessen(&["meter", "--country", "USA", "--region", "Utopia", "--", "true"]).fails(&["Utopia", "CAMX"]);
    lessen(&["meter", "--country", "DEU", "--region", "BY", "--", "true"]).fails(&["Germany", "CAN, USA"]);
    lessen(&["meter", "--region", "CAMX", "--", "true"]).fails(&["CAMX", "which country"]);
    let nothing = lessen(&["meter"]);
    assert!(nothing.err.contains("COMMAND"), "{}", nothing.err);
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
    let case = std::fs::read_to_string(&case).unwrap();
    let absurd = |from: &str, to: &str| {
        assert!(case.contains(from));
        let file = place.file("absurd.toml", case.replace(from, to).as_bytes());
        lessen(&["meter", "--what-if", &file])
    };
    absurd("175e9", "-3").fails(&["absurd.toml", "parameters = -3"]);
    absurd("bits = 16", "bits = 1e6").fails(&["bits = 1000000", "at most 64"]);
    absurd("175e9", "1e300").fails(&["check their units"]);
    absurd("pue = 1.1\n", "pue = 0.2\n").fails(&["machine.pue = 0.2"]);
    absurd("watts = 330", "watts = \"many\"").fails(&["absurd.toml", "watts"]);
    absurd("tokens = 300e9", "tokens = 300e9\nkwh = 1e6").fails(&["training.kwh"]);
}

/// Luccioni, Jernite and Strubell, 2024: 204.6 million runs.
#[test]
fn what_was_published_of_parity_comes_out() {
    let case = example("../what-if/bloomz-560m.toml");
    let report = lessen(&["meter", "--what-if", &case, "--json"]).json();
    let parity = report["trained"]["parity_tokens"].as_f64().unwrap();
    assert!((parity / 1e6 - 204.6).abs() < 0.1, "{parity}");
    // Two million runs a day for a year: most of all its energy.
    let share = report["trained"]["share_of_running"].as_f64().unwrap();
    assert!((0.7..0.9).contains(&share), "{share}");
    let said = lessen(&["meter", "--what-if", &case]);
    assert!(said.text().contains("after 2.046e8 runs, 78 % of all"), "{}", said.text());
    assert!(said.text().contains("kJ a million runs") && !said.text().contains("tokens"), "{}", said.text());
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
    assert!(said(&["--country", "isl"]).contains("27.7 g/kWh (ISL, 2022"));
    let region = said(&["--country", "usa", "--region", "camx"]);
    assert!(region.contains("226.5 g/kWh (USA CAMX, WECC California: EPA, eGRID2022"), "{region}");
    let province = said(&["--country", "Canada", "--region", "Quebec"]);
    assert!(province.contains("1.9 g/kWh (CAN QC, Quebec: Environment"), "{province}");
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
