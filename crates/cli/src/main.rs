//! The `lessen` command.
//!
//! Exit codes: 0 for success, 1 for an error, 2 when a promised bound is missed, 101 for a fault of lessen itself.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;

mod cmd;
mod flags;
mod page;
mod parse;

use cmd::{Command, Done};

/// Makes trained models small, and proves that they still do their job.
#[derive(Debug, Parser)]
#[command(name = "lessen", version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    common: flags::Common,
    #[command(subcommand)]
    command: Command,
}

/// The exit code of a wrong file, a wrong input, or a wrong flag.
const FAILED: u8 = 1;
/// The exit code of a fault of lessen itself.
const FAULT: u8 = 101;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |at| format!(" at {at}"));
        let what = panic.payload_as_str().unwrap_or("no message");
        let _ = writeln!(
            std::io::stderr(),
            "error: this is a fault of lessen itself{place}: {what}. Please report it with the command and, if \
             you can, the model."
        );
    }));
    match std::panic::catch_unwind(run) {
        Ok(code) => code.into(),
        Err(_) => FAULT.into(),
    }
}

fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            let _ = error.print();
            return if failed { FAILED } else { 0 };
        }
    };
    let common = cli.common;
    let filter = tracing_subscriber::EnvFilter::try_from_env("LESSEN_LOG")
        .unwrap_or_else(|_| if common.quiet { "error".into() } else { "warn".into() });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let result = cli.command.run(&common).and_then(|done| {
        let Done { text, json, code } = done;
        let out = if common.json { serde_json::to_string(&json)? } else { text };
        print(&out)?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            let message = one_line(&error);
            let _ = writeln!(std::io::stderr(), "error: {message}");
            if common.json {
                let _ = print(&serde_json::json!({ "error": message }).to_string());
            }
            FAILED
        }
    }
}

/// Writes to stdout. A reader that has seen enough is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.trim_end().as_bytes()).and_then(|()| out.write_all(b"\n"));
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("the result cannot be written to stdout"))
        }
        _ => Ok(()),
    }
}

/// An error and its causes in one line; a cause that the line has already said is not said again.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let said = cause.to_string();
        if line.is_empty() {
            line = said;
        } else if !line.contains(&said) {
            line = format!("{line}: {said}");
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
