//! Models that do not fit here, by calculation: from parameters, bits, machines and traffic to sizes, joules and carbon,
//! before and after shrinking. Everything is an estimate, and the assumptions are part of the answer.

use serde::{Deserialize, Serialize};

use crate::payback;

/// A model, the machines it runs on, and what is to become of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// Number of parameters.
    pub parameters: f64,
    /// Part of them that a token uses; less than 1 for mixtures of experts.
    #[serde(default = "one")]
    pub active: f64,
    /// Bits of a parameter.
    pub bits: f64,
    /// How it was trained; nothing is said of training without it.
    pub training: Option<Training>,
    /// The machines it runs on.
    pub machine: Machines,
    /// What it is asked.
    pub traffic: Traffic,
    /// What it becomes.
    pub after: After,
}

/// A training: its energy, or what that is worked out from.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Kilowatt-hours that it took, with what the building took; in the place of the four after it.
    pub kwh: Option<f64>,
    /// Tokens that were seen.
    pub tokens: Option<f64>,
    /// Operations a second that a device really did.
    pub operations_per_second: Option<f64>,
    /// Watts of a device, with its share of the machine around it.
    pub watts: Option<f64>,
    /// Energy that the building took for each that its machines took; 1 when it is not given.
    pub pue: Option<f64>,
    /// Grams of CO2 equivalent a kilowatt-hour there.
    pub intensity: f64,
}

/// Devices that run a model.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machines {
    /// Gigabytes of memory of a device.
    pub memory_gb: f64,
    /// Gigabytes a second that it reads.
    pub gb_per_second: f64,
    /// Operations a second that it can do.
    pub operations_per_second: f64,
    /// Part of both that is reached.
    #[serde(default = "half")]
    pub reached: f64,
    /// Watts of a device under load, with its share of the machine around it.
    pub watts: f64,
    /// Joules that a token was measured to take before shrinking, without what the building takes; it is worked out from watts
    /// and speed when it is not given.
    #[serde(default)]
    pub joules_per_token: Option<f64>,
    /// Energy that the building takes for each that its machines take.
    #[serde(default = "one")]
    pub pue: f64,
    /// Grams of CO2 equivalent a kilowatt-hour.
    pub intensity: f64,
    /// Money an hour of a device.
    #[serde(default)]
    pub per_hour: f64,
}

/// What a model is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// What is counted, for people; whatever the case gives of a token is then of this.
    #[serde(default = "tokens")]
    pub unit: String,
    /// Tokens a day.
    pub tokens_per_day: f64,
    /// Texts that are written at once, for which weights are read once.
    #[serde(default = "one")]
    pub batch: f64,
    /// Days that the model is in use.
    #[serde(default = "year")]
    pub days: f64,
}

/// What a model becomes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct After {
    /// Bits of a parameter.
    pub bits: f64,
    /// Part of the parameters that is gone.
    #[serde(default)]
    pub removed: f64,
    /// Parameters that share a scale of 16 bits.
    #[serde(default)]
    pub group: Option<f64>,
    /// Kilowatt-hours that shrinking takes.
    #[serde(default)]
    pub kwh: f64,
}

fn one() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

fn tokens() -> String {
    "tokens".into()
}

fn year() -> f64 {
    365.0
}

/// What a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Takes {
    /// Bytes of its weights.
    pub bytes: f64,
    /// Devices that hold them.
    pub devices: f64,
    /// Tokens a second of all devices together.
    pub tokens_per_second: f64,
    /// Are the weights' bytes what it waits for? Else it is the arithmetic.
    pub waits_for_memory: bool,
    /// Joules a million tokens, with what the building takes.
    pub joules_per_million: f64,
    /// Kilograms of CO2 equivalent a million tokens.
    pub co2_per_million: f64,
    /// Money a million tokens.
    pub money_per_million: f64,
}

/// What a training took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trained {
    /// Megawatt-hours.
    pub mwh: f64,
    /// Tonnes of CO2 equivalent.
    pub tonnes: f64,
    /// After so many tokens running has taken as much.
    pub parity_tokens: f64,
    /// Part of all energy that running takes over the days that the model is in use.
    pub share_of_running: f64,
}

/// What comes out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// What the model is called.
    pub name: String,
    /// What is counted where the numbers say tokens.
    pub unit: String,
    /// Its training.
    pub trained: Option<Trained>,
    /// What it takes as it is.
    pub before: Takes,
    /// What it takes once shrunk.
    pub after: Takes,
    /// Kilowatt-hours that are saved over the days that the model is in use, shrinking subtracted.
    pub saved_kwh: f64,
    /// Tonnes of CO2 equivalent of those.
    pub saved_tonnes: f64,
    /// After so many tokens shrinking is won back; `None` when it saves nothing.
    pub payback_tokens: Option<f64>,
    /// What all of it rests on.
    pub assumptions: Vec<String>,
}

/// Works a case out.
///
/// # Errors
/// When a number makes no sense, alone or with the others; it is named.
pub fn what_if(case: &Case) -> Result<Answer, String> {
    check(case)?;
    let training = case.training.map(|t| Ok::<_, String>((joules_of(&t, case)?, t))).transpose()?;
    let (machine, traffic) = (&case.machine, &case.traffic);
    let mut before = takes(case, case.bits, 0.0, None);
    let mut after = takes(case, case.after.bits, case.after.removed, case.after.group);
    if let Some(joules) = machine.joules_per_token {
        let factor = joules * machine.pue * 1e6 / before.joules_per_million;
        for takes in [&mut before, &mut after] {
            takes.joules_per_million *= factor;
            takes.co2_per_million *= factor;
        }
    }
    let tokens = traffic.tokens_per_day * traffic.days;
    let saved =
        (before.joules_per_million - after.joules_per_million) * tokens / 1e6 / 3.6e6 - case.after.kwh;
    let spent = case.after.kwh * 3.6e6;
    let each = (before.joules_per_million / 1e6, after.joules_per_million / 1e6);
    let trained = training.map(|(joules, t)| Trained {
        mwh: joules / 3.6e9,
        tonnes: joules / 3.6e6 * t.intensity / 1e6,
        parity_tokens: payback::parity(joules, each.0).unwrap_or(f64::INFINITY),
        share_of_running: payback::share_of_running(joules, each.0, tokens),
    });
    let answer = Answer {
        name: case.name.clone(),
        unit: traffic.unit.clone(),
        trained,
        before,
        after,
        saved_kwh: saved,
        saved_tonnes: saved * machine.intensity / 1e6,
        payback_tokens: payback::runs(spent, each.0, each.1),
        assumptions: assumptions(case),
    };
    answer.check()?;
    Ok(answer)
}

/// Joules that a training took.
fn joules_of(training: &Training, case: &Case) -> Result<f64, String> {
    let Training { kwh, tokens, operations_per_second, watts, pue, .. } = *training;
    match (kwh, tokens, operations_per_second, watts) {
        (Some(kwh), None, None, None) if pue.is_none() => Ok(kwh * 3.6e6),
        (Some(_), ..) => {
            Err("training.kwh has all of it: leave out tokens, operations_per_second, watts and pue, or kwh"
                .into())
        }
        (None, Some(tokens), Some(speed), Some(watts)) => {
            // Two operations forward and four backward, for each parameter and token (Kaplan et al., 2020).
            let operations = 6.0 * case.parameters * case.active * tokens;
            Ok(operations / speed * watts * pue.unwrap_or(1.0))
        }
        _ => Err("training: give kwh, or tokens, operations_per_second and watts".into()),
    }
}

fn assumptions(case: &Case) -> Vec<String> {
    let Case { machine, traffic, after, .. } = case;
    let mut all = Vec::new();
    match case.training {
        Some(Training { kwh: Some(kwh), .. }) => all.push(format!("training took {kwh} kWh, as given")),
        Some(_) => all.push("training takes 6 operations for each parameter in use and token".into()),
        None => {}
    }
    all.push(match machine.joules_per_token {
        Some(joules) => format!(
            "{joules} J for each of the {} before shrinking, as given; after it as many times less as time",
            traffic.unit
        ),
        None => {
            "energy is that of devices at work: the same power whatever they wait for, none while idle".into()
        }
    });
    all.push(format!(
        "a device: {} GB, {} GB/s, {:.0} T operations/s, {} W; {:.0} % of its speed are reached",
        machine.memory_gb,
        machine.gb_per_second,
        machine.operations_per_second / 1e12,
        machine.watts,
        machine.reached * 100.0
    ));
    all.push("devices hold weights and nothing else: what a text takes in memory comes on top".into());
    all.push(format!(
        "each of the {} takes 2 operations for each parameter in use; these are read once for {} of them",
        traffic.unit, traffic.batch
    ));
    all.push(format!(
        "PUE {}, {} g CO2e a kWh, {} an hour of a device, {:.3e} {} a day for {} days",
        machine.pue, machine.intensity, machine.per_hour, traffic.tokens_per_day, traffic.unit, traffic.days
    ));
    all.push(format!("shrinking takes {} kWh", after.kwh));
    all.push(
        "parameters that are gone cost neither bytes nor operations: they were cut, not only set to 0".into(),
    );
    all
}

impl Answer {
    /// Sensible numbers far apart can still come to none at all.
    fn check(&self) -> Result<(), String> {
        let of = |t: &Takes| {
            [
                t.bytes,
                t.devices,
                t.tokens_per_second,
                t.joules_per_million,
                t.co2_per_million,
                t.money_per_million,
            ]
        };
        let trained =
            self.trained.map_or([0.0; 4], |t| [t.mwh, t.tonnes, t.parity_tokens, t.share_of_running]);
        let rest = [self.saved_kwh, self.saved_tonnes, self.payback_tokens.unwrap_or(0.0)];
        let all = of(&self.before).into_iter().chain(of(&self.after)).chain(trained).chain(rest);
        match all.into_iter().all(f64::is_finite) {
            true => Ok(()),
            false => {
                Err("its numbers are so great or so small that nothing can be worked out: check their units"
                    .into())
            }
        }
    }
}

fn takes(case: &Case, bits: f64, removed: f64, group: Option<f64>) -> Takes {
    let machine = &case.machine;
    let each = bits + group.map_or(0.0, |group| 16.0 / group);
    let parameters = case.parameters * (1.0 - removed);
    let bytes = parameters * each / 8.0;
    let devices = (bytes / (machine.memory_gb * 1e9)).ceil().max(1.0);
    let in_use = parameters * case.active;
    let reading = in_use * each / 8.0 / (machine.gb_per_second * 1e9 * machine.reached) / case.traffic.batch;
    let working = 2.0 * in_use / (machine.operations_per_second * machine.reached);
    // All devices share the work.
    let seconds = reading.max(working);
    let joules = seconds * machine.watts * machine.pue;
    Takes {
        bytes,
        devices,
        tokens_per_second: devices / seconds,
        waits_for_memory: reading > working,
        joules_per_million: joules * 1e6,
        co2_per_million: joules * 1e6 / 3.6e6 * machine.intensity / 1e3,
        money_per_million: seconds * 1e6 / 3600.0 * machine.per_hour,
    }
}

fn check(case: &Case) -> Result<(), String> {
    let Case { machine, traffic, after, .. } = case;
    let training = case.training.unwrap_or_default();
    let more = |least: f64, values: &[(&str, f64)]| match values
        .iter()
        .find(|(_, x)| !(x.is_finite() && *x > least))
    {
        Some((name, value)) => Err(format!("{name} = {value}: it must be more than {least}")),
        None => Ok(()),
    };
    let from = |least: f64, values: &[(&str, f64)]| match values
        .iter()
        .find(|(_, x)| !(x.is_finite() && *x >= least))
    {
        Some((name, value)) => Err(format!("{name} = {value}: it must not be less than {least}")),
        None => Ok(()),
    };
    let most = |most: f64, values: &[(&str, f64)], what: &str| match values.iter().find(|(_, x)| *x > most) {
        Some((name, value)) => Err(format!("{name} = {value}: {what}")),
        None => Ok(()),
    };
    more(
        0.0,
        &[
            ("active", case.active),
            ("bits", case.bits),
            ("machine.memory_gb", machine.memory_gb),
            ("machine.gb_per_second", machine.gb_per_second),
            ("machine.operations_per_second", machine.operations_per_second),
            ("machine.reached", machine.reached),
            ("machine.watts", machine.watts),
            ("machine.joules_per_token", machine.joules_per_token.unwrap_or(1.0)),
            ("after.bits", after.bits),
            ("training.operations_per_second", training.operations_per_second.unwrap_or(1.0)),
        ],
    )?;
    from(
        0.0,
        &[
            ("machine.intensity", machine.intensity),
            ("machine.per_hour", machine.per_hour),
            ("traffic.tokens_per_day", traffic.tokens_per_day),
            ("traffic.days", traffic.days),
            ("after.removed", after.removed),
            ("after.kwh", after.kwh),
            ("training.kwh", training.kwh.unwrap_or(0.0)),
            ("training.tokens", training.tokens.unwrap_or(0.0)),
            ("training.watts", training.watts.unwrap_or(0.0)),
            ("training.intensity", training.intensity),
        ],
    )?;
    from(
        1.0,
        &[
            ("parameters", case.parameters),
            ("machine.pue", machine.pue),
            ("traffic.batch", traffic.batch),
            ("after.group", after.group.unwrap_or(1.0)),
            ("training.pue", training.pue.unwrap_or(1.0)),
        ],
    )?;
    most(64.0, &[("bits", case.bits), ("after.bits", after.bits)], "a number has at most 64 bits")?;
    let shares = [("active", case.active), ("machine.reached", machine.reached)];
    most(1.0, &shares, "it is a part, at most 1")?;
    match after.removed < 1.0 {
        true => Ok(()),
        false => Err(format!("after.removed = {}: it is a part, from 0 and less than 1", after.removed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpt3() -> Case {
        Case {
            name: "GPT-3".into(),
            parameters: 175e9,
            active: 1.0,
            bits: 16.0,
            training: Some(Training {
                kwh: None,
                tokens: Some(300e9),
                operations_per_second: Some(24.6e12),
                watts: Some(330.0),
                pue: Some(1.10),
                intensity: 429.0,
            }),
            machine: Machines {
                memory_gb: 80.0,
                gb_per_second: 2000.0,
                operations_per_second: 312e12,
                reached: 0.5,
                watts: 500.0,
                joules_per_token: None,
                pue: 1.1,
                intensity: 400.0,
                per_hour: 2.0,
            },
            traffic: Traffic { unit: tokens(), tokens_per_day: 1e9, batch: 8.0, days: 365.0 },
            after: After { bits: 4.0, removed: 0.0, group: Some(128.0), kwh: 10.0 },
        }
    }

    /// Patterson et al., *Carbon emissions and large neural network training*, 2021.
    #[test]
    fn what_was_published_of_gpt_3_comes_out() {
        let answer = what_if(&gpt3()).unwrap();
        let trained = answer.trained.unwrap();
        assert!((trained.mwh / 1287.0 - 1.0).abs() < 0.01, "{} MWh", trained.mwh);
        assert!((trained.tonnes / 552.0 - 1.0).abs() < 0.01, "{} t", trained.tonnes);
        assert_eq!(answer.before.bytes, 350e9);
        assert_eq!((answer.before.devices, answer.after.devices), (5.0, 2.0));
        assert!((answer.after.bytes - 175e9 * 4.125 / 8.0).abs() < 1.0);
    }

    #[test]
    fn energy_follows_bytes_while_memory_is_what_it_waits_for() {
        let case = gpt3();
        let answer = what_if(&case).unwrap();
        assert!(answer.before.waits_for_memory);
        // 350 GB at 1,000 GB/s for 8 texts at once: 43.75 ms of a device, at 550 W.
        assert!((answer.before.joules_per_million / 1e6 - 0.04375 * 550.0).abs() < 1e-9);
        let factor = answer.before.joules_per_million / answer.after.joules_per_million;
        assert!((factor - 16.0 / 4.125).abs() < 1e-9);
        let tokens = answer.payback_tokens.unwrap();
        let saved = (answer.before.joules_per_million - answer.after.joules_per_million) / 1e6;
        assert!((tokens * saved - 3.6e7).abs() < 1.0);
        // With so many texts at once that arithmetic is what it waits for, bits save bytes only.
        let many = Case { traffic: Traffic { batch: 1e4, ..case.traffic.clone() }, ..case };
        let answer = what_if(&many).unwrap();
        assert!(!answer.before.waits_for_memory);
        assert_eq!(answer.before.joules_per_million, answer.after.joules_per_million);
        assert_eq!(answer.payback_tokens, None);
        assert!(answer.saved_kwh < 0.0, "shrinking took something");
    }

    /// Luccioni, Jernite and Strubell, 2024: BLOOMz-560M took 10,505 kWh to train and 543 to tune, a run 5.4e-5 kWh: as much
    /// after 204.6 million runs.
    #[test]
    fn what_was_measured_takes_the_place_of_what_is_worked_out() {
        let mut case = gpt3();
        case.training =
            Some(Training { kwh: Some(10_505.0 + 543.0), intensity: 57.0, ..Training::default() });
        case.machine = Machines { joules_per_token: Some(5.4e-5 * 3.6e6), pue: 1.0, ..case.machine };
        case.traffic = Traffic { unit: "runs".into(), tokens_per_day: 204.6e6 / 365.0, ..case.traffic };
        let answer = what_if(&case).unwrap();
        let trained = answer.trained.unwrap();
        assert!((trained.parity_tokens / 1e6 - 204.6).abs() < 0.1, "{}", trained.parity_tokens);
        assert!((trained.share_of_running - 0.5).abs() < 1e-3 && (trained.mwh - 11.048).abs() < 1e-9);
        assert!((answer.before.joules_per_million / 1e6 - 194.4).abs() < 1e-9);
        assert!((answer.before.co2_per_million - 54.0 * 0.4).abs() < 1e-9);
        let factor = answer.before.joules_per_million / answer.after.joules_per_million;
        assert!((factor - 16.0 / 4.125).abs() < 1e-9, "shrinking saves what it would have saved");
        assert!(answer.assumptions.iter().any(|a| a.contains("194.4 J for each of the runs")));
    }

    #[test]
    fn a_training_is_given_in_one_way() {
        let with = |change: fn(&mut Training)| {
            let mut case = gpt3();
            case.training.iter_mut().for_each(change);
            what_if(&case).unwrap_err()
        };
        assert!(with(|t| t.kwh = Some(1.0)).contains("training.kwh"));
        assert!(with(|t| t.watts = None).contains("give kwh"));
        assert!(
            with(|t| *t = Training { kwh: Some(-1.0), ..Training::default() })
                .starts_with("training.kwh = -1")
        );
    }

    #[test]
    fn numbers_without_sense_are_named() {
        let bad = |change: fn(&mut Case)| {
            let mut case = gpt3();
            change(&mut case);
            what_if(&case).unwrap_err()
        };
        assert!(bad(|c| c.bits = 0.0).starts_with("bits = 0"));
        assert!(bad(|c| c.machine.watts = f64::NAN).starts_with("machine.watts"));
        assert!(bad(|c| c.traffic.tokens_per_day = -1.0).starts_with("traffic.tokens_per_day"));
        assert!(bad(|c| c.after.removed = 1.0).starts_with("after.removed"));
        assert!(bad(|c| c.active = 2.0).starts_with("active"));
        assert!(bad(|c| c.bits = 65.0).starts_with("bits = 65"));
        assert!(bad(|c| c.machine.pue = 0.5).starts_with("machine.pue = 0.5"));
        assert!(bad(|c| c.traffic.batch = 0.5).starts_with("traffic.batch"));
        assert!(bad(|c| c.parameters = f64::INFINITY).starts_with("parameters"));
        assert!(bad(|c| c.after.kwh = -2.0).starts_with("after.kwh"));
        assert!(bad(|c| c.parameters = 1e308).contains("check their units"));
        assert!(bad(|c| c.machine.gb_per_second = 1e-310).contains("check their units"));
    }
}
