//! `lessen pack` and `lessen unpack`: a file made smaller by entropy coding, and back, bit for bit.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use lessen::pack::{pack_file, unpack_file};
use lessen::receipt::bytes;
use serde_json::json;

use super::Done;

/// The ending of packed files.
const ENDING: &str = "lsn";

/// Code a file by the frequencies of what is in it; unpack gives it back bit for bit.
#[derive(Debug, Args)]
#[command(
    after_help = "Weights of few bits are not equally likely: coded by their frequencies (rANS) they take a tenth to a third
less. Every file can be packed; ONNX models with their weights inside become smallest.

Examples:
  lessen pack small.onnx                  (writes small.onnx.lsn)
  lessen unpack small.onnx.lsn            (writes small.onnx)"
)]
pub struct Pack {
    /// The file.
    file: PathBuf,
    /// The packed file [default: FILE.lsn].
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
}

/// Give back a file that was packed.
#[derive(Debug, Args)]
pub struct Unpack {
    /// The packed file.
    file: PathBuf,
    /// The file to write [default: FILE without .lsn].
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Refuse files that would become larger than this many MiB.
    #[arg(long, value_name = "MIB", default_value_t = 8192)]
    limit: usize,
}

fn distinct(from: &Path, to: &Path) -> Result<()> {
    let same = matches!((from.canonicalize(), to.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same {
        bail!("{} is the file itself; name another one with -o", to.display());
    }
    Ok(())
}

impl Pack {
    pub fn run(self) -> Result<Done> {
        let output = self.output.unwrap_or_else(|| {
            let mut name = self.file.clone().into_os_string();
            name.push(format!(".{ENDING}"));
            name.into()
        });
        distinct(&self.file, &output)?;
        let (before, after) = pack_file(&self.file, &output)?;
        let smaller = before as f64 / after.max(1) as f64;
        let text = format!(
            "{} -> {}: {smaller:.2} times smaller\nwritten: {}\n",
            bytes(before),
            bytes(after),
            output.display()
        );
        let json = json!({ "bytes_before": before, "bytes_after": after, "smaller": smaller,
                           "output": output.display().to_string() });
        Done::new(text, json)
    }
}

impl Unpack {
    pub fn run(self) -> Result<Done> {
        let output = match self.output {
            Some(output) => output,
            None if self.file.extension().is_some_and(|e| e == ENDING) => self.file.with_extension(""),
            None => {
                bail!("{} does not end in .{ENDING}; name the file to write with -o", self.file.display())
            }
        };
        distinct(&self.file, &output)?;
        unpack_file(&self.file, &output, self.limit.saturating_mul(1 << 20))?;
        let size = std::fs::metadata(&output)?.len();
        let text = format!("written: {}, {}\n", output.display(), bytes(size));
        Done::new(text, json!({ "bytes": size, "output": output.display().to_string() }))
    }
}
