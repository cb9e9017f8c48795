//! Files as bytes, and files that are complete or not there.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;

use crate::{Error, Result};

/// The bytes of a file, mapped, not read.
///
/// # Errors
/// When the file cannot be opened, or is empty.
pub fn map(path: &Path) -> Result<Bytes> {
    if std::fs::metadata(path).map_err(Error::io(path))?.len() == 0 {
        return Err(Error::broken(path, "the file is empty"));
    }
    Ok(Bytes::from_owner(kernel::Map::open(path).map_err(Error::io(path))?))
}

/// Writes a file under a temporary name in the same folder, syncs it, and gives it its name. When something fails,
/// nothing is left behind and an older file of that name stays as it was. A device or a pipe is written to.
///
/// # Errors
/// When the folder cannot be written to or is full.
pub fn write(path: &Path, fill: impl FnOnce(&mut (dyn Write + Send)) -> std::io::Result<()>) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        let file = std::fs::File::options().write(true).open(path).map_err(Error::io(path))?;
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
        return fill(&mut out).and_then(|()| out.flush()).map_err(Error::io(path));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o644));
    }
    let mut file = builder.prefix(".lessen-").tempfile_in(folder).map_err(Error::io(path))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file.as_file_mut());
    fill(&mut out).and_then(|()| out.flush()).map_err(Error::io(path))?;
    drop(out);
    file.as_file().sync_all().map_err(Error::io(path))?;
    file.persist(path).map_err(|e| Error::Io { path: path.into(), source: e.error })?;
    Ok(())
}
