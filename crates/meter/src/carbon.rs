//! From energy to carbon dioxide and money: how much of each a kilowatt-hour takes, here and at the machine.

mod table;

use serde::Serialize;

use crate::Energy;

/// Where a machine stands, and what it costs there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// The country's code; empty when it is not known.
    pub country: String,
    /// The country's name; empty when it is not in the table.
    pub name: String,
    /// The code of the part of the country; empty when it is not known.
    pub region: String,
    /// Grams of CO2 equivalent a kilowatt-hour.
    pub intensity: f64,
    /// Where that is from, for people.
    pub source: String,
    /// Energy that the building takes for each that its machines take: 1 at home, 1.58 on average in data centres (Uptime
    /// Institute's survey of 2023).
    pub pue: f64,
    /// Money a kilowatt-hour.
    pub per_kwh: f64,
    /// Money an hour of the machine.
    pub per_hour: f64,
}

impl Default for Place {
    /// Anywhere: the world's mean, at home, and for nothing.
    fn default() -> Place {
        Place::given("", "", table::WORLD, "the world's mean, as CodeCarbon takes it".into())
    }
}

impl Place {
    /// In a country (its code or its name), or in a part of it (a province of Canada, a subregion of the grid of the United States); the world's mean intensity when both
    /// are empty.
    ///
    /// # Errors
    /// When the country, or its part, is not in the tables; what is there is named.
    pub fn of(country: &str, region: &str) -> Result<Place, String> {
        let (country, region) = (country.trim(), region.trim());
        if country.is_empty() && !region.is_empty() {
            return Err(format!("{region:?} is a part of which country? give its code, too"));
        }
        let is = |code: &str, name: &str, asked: &str| {
            code.eq_ignore_ascii_case(asked) || name.eq_ignore_ascii_case(asked)
        };
        if country.is_empty() {
            return Ok(Place::default());
        }
        let Some((code, name, intensity, year)) =
            table::COUNTRIES.iter().find(|(code, name, ..)| is(code, name, country))
        else {
            let all: Vec<&str> = table::COUNTRIES.iter().map(|(code, ..)| *code).collect();
            return Err(format!(
                "no carbon intensity is known of {country:?}; give it in grams a kilowatt-hour, or one of {}",
                all.join(", ")
            ));
        };
        let parts = table::REGIONS.iter().find(|regions| regions.country == *code);
        let place = match (parts, region) {
            (_, "") => Place::given(code, "", *intensity, format!("{code}, {year}: {}", table::SOURCE)),
            (None, _) => {
                let with: Vec<&str> = table::REGIONS.iter().map(|regions| regions.country).collect();
                return Err(format!(
                    "no carbon intensities are known of parts of {name}, only of those of {}: leave {region:?} out, or give \
                     its intensity in grams a kilowatt-hour",
                    with.join(", ")
                ));
            }
            (Some(parts), _) => {
                let found = parts.all.iter().find(|(code, name, _)| is(code, name, region));
                let Some((part, whole, intensity)) = found else {
                    let all = parts.all.iter().map(|(code, name, _)| format!("{code} ({name})"));
                    return Err(format!(
                        "{region:?} is none of the {} of {name}: {}",
                        parts.kind,
                        all.collect::<Vec<_>>().join(", ")
                    ));
                };
                Place::given(code, part, *intensity, format!("{code} {part}, {whole}: {}", parts.source))
            }
        };
        Ok(Place { name: (*name).into(), ..place })
    }

    /// A place of which the intensity is known, in grams a kilowatt-hour; at home, and for nothing.
    pub fn given(country: &str, region: &str, intensity: f64, source: String) -> Place {
        Place {
            country: country.to_uppercase(),
            name: String::new(),
            region: region.to_uppercase(),
            intensity,
            source,
            pue: 1.0,
            per_kwh: 0.0,
            per_hour: 0.0,
        }
    }

    /// What energy and time come to.
    pub fn cost(&self, energy: &Energy) -> Cost {
        self.cost_of(energy.joules, energy.seconds)
    }

    /// What so many joules and seconds come to.
    pub fn cost_of(&self, joules: f64, seconds: f64) -> Cost {
        let kwh = joules / 3.6e6 * self.pue;
        Cost {
            kwh,
            co2: kwh * self.intensity / 1000.0,
            money: kwh * self.per_kwh + seconds / 3600.0 * self.per_hour,
        }
    }
}

/// What something costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Kilowatt-hours, with what the building takes.
    pub kwh: f64,
    /// Kilograms of CO2 equivalent.
    pub co2: f64,
    /// Money, of the kind that prices are given in.
    pub money: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_becomes_carbon_and_money() {
        let energy = Energy {
            joules: 7.2e6,
            idle: None,
            seconds: 1800.0,
            measured: true,
            source: String::new(),
            parts: Vec::new(),
        };
        let place = Place { pue: 1.5, per_kwh: 0.3, per_hour: 2.0, ..Place::of("deu", "").unwrap() };
        let cost = place.cost(&energy);
        assert!((cost.kwh - 3.0).abs() < 1e-12 && (cost.co2 - 1.143).abs() < 1e-12);
        assert!((cost.money - 1.9).abs() < 1e-12);
    }

    #[test]
    fn places_are_found_by_code_or_name() {
        assert_eq!(Place::of("", "").unwrap().intensity, 475.0);
        let germany = Place::of(" germany", "").unwrap();
        assert_eq!((germany.country.as_str(), germany.intensity), ("DEU", 381.0));
        assert_eq!(germany, Place::of("deu", "").unwrap());
        let iceland = Place::of("ISL", "").unwrap();
        assert!(iceland.source.starts_with("ISL, 2022"), "each has its own year: {}", iceland.source);
        let quebec = Place::of("can", "qc").unwrap();
        assert_eq!((quebec.intensity, quebec.region.as_str()), (1.9, "QC"));
        assert!(quebec.source.contains("Quebec") && quebec.source.contains("2026"), "{}", quebec.source);
        assert_eq!(Place::of("USA", "CAMX").unwrap(), Place::of("usa", "wecc california").unwrap());
        let wrong = |country, region| Place::of(country, region).unwrap_err();
        assert!(wrong("XYZ", "").contains("FRA"));
        assert!(wrong("USA", "ZZ").contains("CAMX (WECC California)"));
        assert!(wrong("FRA", "Bretagne").contains("CAN, USA"));
        assert!(wrong("", "CAMX").contains("which country"));
    }

    #[test]
    fn tables_are_in_order_and_make_sense() {
        assert!(table::COUNTRIES.windows(2).all(|w| w[0].0 < w[1].0));
        assert!(
            table::COUNTRIES.iter().all(|(code, _, g, year)| code.len() == 3 && *g > 0.0 && *year >= 2022)
        );
        for regions in &table::REGIONS {
            assert!(regions.all.windows(2).all(|w| w[0].0 < w[1].0));
            let whole = Place::of(regions.country, "").unwrap().intensity;
            let least = regions.all.iter().map(|r| r.2).fold(f64::INFINITY, f64::min);
            let most = regions.all.iter().map(|r| r.2).fold(0.0, f64::max);
            assert!(least < whole && whole < most, "{}: {least} {whole} {most}", regions.country);
        }
    }

    /// Patterson et al., *Carbon emissions and large neural network training*, 2021: GPT-3's 1,287 MWh, 552 t.
    #[test]
    fn what_was_published_of_a_training_comes_out() {
        let energy = Energy {
            joules: 1.287e6 * 3.6e6,
            idle: None,
            seconds: 0.0,
            measured: false,
            source: String::new(),
            parts: Vec::new(),
        };
        let cost = Place { intensity: 429.0, ..Place::of("", "").unwrap() }.cost(&energy);
        assert!((cost.co2 / 1000.0 - 552.0).abs() < 1.0, "{cost:?}");
    }
}
