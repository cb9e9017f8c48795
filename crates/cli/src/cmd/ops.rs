//! `lessen ops`: the operators that can be run.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use lessen::inspect::full_domain;
use serde_json::json;

use super::Done;
use crate::flags::Common;

/// List the operators that can be run, with the versions since which they are read differently.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen ops
  lessen ops --domain com.microsoft --json")]
pub struct Ops {
    /// Only this domain.
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
}

impl Ops {
    pub fn run(self, _: &Common) -> Result<Done> {
        let mut domains: BTreeMap<&str, BTreeMap<&str, Vec<i64>>> = BTreeMap::new();
        for op in lessen::operators().filter(|op| op.domain != "lessen") {
            let domain = full_domain(op.domain);
            if self.domain.as_ref().is_none_or(|d| d == domain) {
                domains.entry(domain).or_default().entry(op.name).or_default().push(op.since);
            }
        }
        let mut text = String::new();
        for (domain, ops) in &mut domains {
            text += &format!("{domain}: {} operators\n", ops.len());
            for (name, since) in ops.iter_mut() {
                since.sort_unstable();
                let since: Vec<String> = since.iter().map(i64::to_string).collect();
                text += &format!("  {name} (since {})\n", since.join(", "));
            }
        }
        if domains.is_empty() {
            anyhow::bail!("no operator of domain {:?} can be run", self.domain.unwrap_or_default());
        }
        let list: Vec<_> = domains
            .iter()
            .flat_map(|(domain, ops)| {
                ops.iter().map(move |(name, since)| json!({"domain": domain, "name": name, "since": since}))
            })
            .collect();
        Done::new(text, json!({ "operators": list }))
    }
}
