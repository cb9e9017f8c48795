//! From energy to carbon dioxide and money: how much of each a kilowatt-hour takes, here and at the machine.

use serde::Serialize;

use crate::Energy;

/// The year that the intensities of countries are of.
const YEAR: u32 = 2023;
/// The source of them.
const SOURCE: &str = "CodeCarbon's table of energy mixes, from Our World in Data";
/// Grams of CO2 equivalent a kilowatt-hour in a country that is not in the table: the world's.
const WORLD: f64 = 475.0;

/// Grams of CO2 equivalent a kilowatt-hour, by the country's code of three letters (ISO 3166).
const COUNTRIES: [(&str, f64); 30] = [
    ("AUS", 548.7),
    ("AUT", 110.8),
    ("BEL", 138.1),
    ("BRA", 98.3),
    ("CAN", 170.0),
    ("CHE", 34.8),
    ("CHN", 582.3),
    ("CZE", 449.7),
    ("DEU", 381.0),
    ("DNK", 151.7),
    ("ESP", 174.1),
    ("EST", 416.7),
    ("FIN", 79.2),
    ("FRA", 56.0),
    ("GBR", 237.6),
    ("IND", 713.4),
    ("IRL", 290.8),
    ("ISL", 27.7),
    ("ITA", 330.7),
    ("JPN", 485.4),
    ("KOR", 430.6),
    ("NLD", 267.6),
    ("NOR", 30.1),
    ("POL", 661.9),
    ("RUS", 441.0),
    ("SGP", 470.8),
    ("SWE", 40.7),
    ("TWN", 642.4),
    ("USA", 369.5),
    ("ZAF", 707.7),
];

/// Where a machine stands, and what it costs there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// The country's code; empty when it is not known.
    pub country: String,
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

impl Place {
    /// In a country; the world's mean intensity when it is empty.
    ///
    /// # Errors
    /// When the country is not in the table; all that are are named.
    pub fn of(country: &str) -> Result<Place, String> {
        let code = country.to_uppercase();
        let row = COUNTRIES.iter().find(|(name, _)| *name == code);
        let (intensity, source) = match (row, code.as_str()) {
            (Some((_, intensity)), _) => (*intensity, format!("{code}, {YEAR}: {SOURCE}")),
            (None, "") => (WORLD, "the world's mean, as CodeCarbon takes it".into()),
            (None, _) => {
                let all: Vec<&str> = COUNTRIES.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "no carbon intensity is known of {country:?}; give it in grams a kilowatt-hour, or one of {}",
                    all.join(", ")
                ));
            }
        };
        Ok(Place { country: code, intensity, source, pue: 1.0, per_kwh: 0.0, per_hour: 0.0 })
    }

    /// What energy and time come to.
    pub fn cost(&self, energy: &Energy) -> Cost {
        let kwh = energy.kwh() * self.pue;
        Cost {
            kwh,
            co2: kwh * self.intensity / 1000.0,
            money: kwh * self.per_kwh + energy.seconds / 3600.0 * self.per_hour,
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
        let place = Place { pue: 1.5, per_kwh: 0.3, per_hour: 2.0, ..Place::of("deu").unwrap() };
        let cost = place.cost(&energy);
        assert!((cost.kwh - 3.0).abs() < 1e-12 && (cost.co2 - 1.143).abs() < 1e-12);
        assert!((cost.money - 1.9).abs() < 1e-12);
        assert_eq!(Place::of("").unwrap().intensity, WORLD);
        assert!(Place::of("XYZ").unwrap_err().contains("FRA"));
        assert!(COUNTRIES.windows(2).all(|w| w[0].0 < w[1].0));
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
        let cost = Place { intensity: 429.0, ..Place::of("").unwrap() }.cost(&energy);
        assert!((cost.co2 / 1000.0 - 552.0).abs() < 1.0, "{cost:?}");
    }
}
