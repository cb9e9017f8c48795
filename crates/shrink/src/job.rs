//! Work that survives being killed: finished results lie in a folder, each under a key that says what it is made of.
//! Who starts again finds them there. A [`Store`] holds results; a [`Job`] is a store with a note of what was asked for,
//! so that results of another request are not mixed in.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use graph::Graph;
use learn::fit::Checkpoints;
use sha2::{Digest, Sha256};

use crate::gram::Gram;
use crate::matrix::Matrix;
use crate::{Error, Result};

/// How files begin: what they are, and the version of their form.
const MAGIC: [u8; 8] = *b"lessen\x00\x01";
/// Magic, length of the result, its hash.
const HEAD: usize = 8 + 8 + 32;
/// How names of unfinished files begin.
const UNFINISHED: &str = ".unfinished-";
/// Nobody writes a result for so long.
const ABANDONED: Duration = Duration::from_secs(3600);
const ASKED: &str = "asked.toml";
const LOCK: &str = "lock";

/// What a result is made of, as a hash: equal parts, equal key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of these parts, in this order. Parts do not run together.
    pub fn of(parts: &[&[u8]]) -> Key {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize().into())
    }

    /// The key of this and of bytes more.
    pub fn with(&self, bytes: &[u8]) -> Key {
        Key::of(&[&self.0, bytes])
    }

    /// The key of a part of what has this key.
    pub fn part(&self, name: &str) -> Key {
        Key::of(&[&self.0, name.as_bytes()])
    }

    /// The key of this and a graph: its nodes, and all that its constants hold.
    pub fn graph(&self, graph: &Graph) -> Key {
        let mut key = *self;
        for (_, node) in graph.nodes() {
            key = key.part(&format!("{:?} {} {:?} {:?}", node.op, node.name, node.inputs, node.outputs));
        }
        for (_, value) in graph.values() {
            if let Some(tensor) = &value.constant {
                key = key.part(&value.name).with(tensor.bytes());
            }
        }
        key
    }

    /// The key of this, a matrix, and what its inputs are like.
    pub fn matrix(&self, matrix: &Matrix, gram: &Gram) -> Key {
        let sums: Vec<u8> = gram.sums().flat_map(f64::to_le_bytes).collect();
        Key::of(&[&self.0, &matrix.rows.to_le_bytes(), &matrix.write(), &sums])
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Results in a folder, a file each, that is complete or not there.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// What all results depend on.
    base: Option<Key>,
}

impl Store {
    /// The store in a folder, which is made when it is not there. Results that were being written when their process was killed
    /// are removed after an hour; before, another process may be writing them.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made.
    pub fn open(folder: &Path) -> Result<Store> {
        let store = Store::at(folder)?;
        for entry in fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
            let written = entry.metadata().and_then(|m| m.modified());
            let old = written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED));
            if old && entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                // Another process may have been faster.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(store)
    }

    fn at(folder: &Path) -> Result<Store> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(Store { folder: folder.into(), base: None })
    }

    /// The same for results that also depend on what has this key.
    pub fn within(&self, base: Key) -> Store {
        Store { folder: self.folder.clone(), base: Some(base) }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, key: &Key) -> PathBuf {
        let key = self.base.map_or(*key, |base| base.with(&key.0));
        self.folder.join(format!("{key}.part"))
    }

    /// True when there is a result under this key.
    pub fn has(&self, key: &Key) -> bool {
        self.path(key).is_file()
    }

    /// The result under a key; `None` when there is none, or only one that is damaged.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    pub fn get(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        let path = self.path(key);
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path)(e)),
        };
        let sound = bytes.split_at_checked(HEAD).is_some_and(|(head, body)| {
            head[..8] == MAGIC
                && head[8..16] == (body.len() as u64).to_le_bytes()
                && head[16..] == Sha256::digest(body)[..]
        });
        if !sound {
            tracing::warn!("{} is damaged; what it held is made again", path.display());
            return Ok(None);
        }
        bytes.drain(..HEAD);
        Ok(Some(bytes))
    }

    /// Keeps a result. It is synced before it has its name: a crash leaves all of it or nothing. A full disk is an error
    /// that costs only this result.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn put(&self, key: &Key, bytes: &[u8]) -> Result<()> {
        let hash = Sha256::digest(bytes);
        let head = [&MAGIC[..], &(bytes.len() as u64).to_le_bytes(), &hash[..]].concat();
        replace(&self.path(key), &[&head, bytes])
    }

    /// Forgets a result.
    ///
    /// # Errors
    /// [`Error::Io`] when it is there and cannot be removed.
    pub fn remove(&self, key: &Key) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(&path)(e)),
            _ => Ok(()),
        }
    }

    /// Keeps what is only to save time; when that fails it is said in the log.
    pub fn keep(&self, key: &Key, bytes: &[u8]) {
        if let Err(e) = self.put(key, bytes) {
            tracing::warn!("what was found cannot be kept for another run: {e}");
        }
    }

    /// The result under a key, made and kept when there is none.
    ///
    /// # Errors
    /// What `make` returns, and as [`Store::get`] and [`Store::put`].
    pub fn once(&self, key: &Key, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        if let Some(bytes) = self.get(key)? {
            return Ok(bytes);
        }
        let bytes = make()?;
        self.put(key, &bytes)?;
        Ok(bytes)
    }
}

/// What is kept under a key of what `read` understands, or what `make` gives, which is kept then.
///
/// # Errors
/// What `make` returns.
pub fn kept<T>(
    store: Option<&Store>,
    key: impl FnOnce() -> Key,
    read: impl FnOnce(&[u8]) -> Option<T>,
    write: impl FnOnce(&T) -> Vec<u8>,
    make: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(store) = store else { return make() };
    let key = key();
    if let Ok(Some(bytes)) = store.get(&key)
        && let Some(found) = read(&bytes)
    {
        return Ok(found);
    }
    let made = make()?;
    store.keep(&key, &write(&made));
    Ok(made)
}

/// Where the state of a training is kept after each epoch.
pub struct Epochs<'a> {
    /// The store.
    pub store: &'a Store,
    /// What the training depends on.
    pub key: Key,
}

impl Checkpoints for Epochs<'_> {
    fn load(&self) -> Option<Vec<u8>> {
        self.store.get(&self.key).ok().flatten()
    }

    fn save(&mut self, state: &[u8]) -> learn::Result<()> {
        self.store.keep(&self.key, state);
        Ok(())
    }
}

/// Writes a file under another name, syncs it, and gives it its name.
fn replace(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = folder.join(format!("{UNFINISHED}{}-{name}", std::process::id()));
    let write = || {
        let mut file = File::create(&unfinished)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        sync_folder(folder)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&unfinished);
        Error::io(path)(e)
    })
}

/// Makes new names in a folder survive a crash of the machine, where the system can.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// A store with a note of what was asked for. One process at a time works on it.
#[derive(Debug)]
pub struct Job {
    store: Store,
    /// Held as long as the job lives; the system lets go of it however the process ends.
    _lock: File,
}

impl Job {
    /// Begins the job in a folder, or goes on with it. `asked` says all that results depend on, by name. What another
    /// run left unfinished is removed.
    ///
    /// # Errors
    /// [`Error::Job`] when the folder holds results of another request, or other files, or another process works on
    /// it; [`Error::Io`].
    pub fn open(folder: &Path, asked: &BTreeMap<String, String>) -> Result<Job> {
        let note = folder.join(ASKED);
        if folder.exists() && !note.exists() && !is_bare(folder)? {
            return Err(Error::Job(format!(
                "{} is in the way: it is no folder of unfinished work; move it away",
                folder.display()
            )));
        }
        let store = Store::at(folder)?;
        let lock_path = folder.join(LOCK);
        let lock =
            File::options().create(true).append(true).open(&lock_path).map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("another process works on {}; wait for it", folder.display());
                return Err(Error::Job(what));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&lock_path)(e)),
        }
        clear(folder, |name| name.starts_with(UNFINISHED))?;
        if note.exists() {
            let text = fs::read_to_string(&note).map_err(Error::io(&note))?;
            let before: BTreeMap<String, String> = toml::from_str(&text)
                .map_err(|e| Error::Job(format!("{} cannot be read: {}", note.display(), e.message())))?;
            let differ: Vec<String> = before
                .keys()
                .chain(asked.keys().filter(|name| !before.contains_key(*name)))
                .filter(|name| before.get(*name) != asked.get(*name))
                .map(|name| {
                    let of =
                        |all: &BTreeMap<String, String>| all.get(name).cloned().unwrap_or("nothing".into());
                    format!("{name} was {}, is {}", of(&before), of(asked))
                })
                .collect();
            if !differ.is_empty() {
                return Err(Error::Job(format!(
                    "{} holds unfinished work of another request ({}); finish that one, or start anew",
                    folder.display(),
                    differ.join("; ")
                )));
            }
        } else {
            let text = toml::to_string(asked).map_err(|e| Error::Job(e.to_string()))?;
            replace(&note, &[text.as_bytes()])?;
        }
        Ok(Job { store, _lock: lock })
    }

    /// Removes what is kept in a folder of unfinished work, if it is one.
    ///
    /// # Errors
    /// [`Error::Job`] when it is another folder, or another process works on it; [`Error::Io`].
    pub fn discard(folder: &Path) -> Result<()> {
        if !folder.exists() {
            return Ok(());
        }
        if !folder.join(ASKED).is_file() {
            return Err(Error::Job(format!(
                "{} is no folder of unfinished work, and is left as it is",
                folder.display()
            )));
        }
        let lock_path = folder.join(LOCK);
        if let Ok(lock) = File::open(&lock_path)
            && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
        {
            return Err(Error::Job(format!("another process works on {}; wait for it", folder.display())));
        }
        fs::remove_dir_all(folder).map_err(Error::io(folder))
    }

    /// Where its results are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Leaves the job for another run to go on with; one without results leaves no folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn leave(self) -> Result<()> {
        let folder = &self.store.folder;
        for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
            let name = entry.map_err(Error::io(folder))?.file_name();
            if name != ASKED && name != LOCK {
                return Ok(());
            }
        }
        self.finish()
    }

    /// Ends the job: the results that are left, the note and the lock are removed, and the folder, unless the caller
    /// has put something into it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        let folder = &self.store.folder;
        clear(folder, |name| name.ends_with(".part"))?;
        clear(folder, |name| name == ASKED || name == LOCK)?;
        match fs::remove_dir(folder) {
            Err(e) if e.kind() != ErrorKind::DirectoryNotEmpty => Err(Error::io(folder)(e)),
            _ => Ok(()),
        }
    }
}

/// True for a folder with nothing in it, or only what a job that was killed at its very start leaves.
fn is_bare(folder: &Path) -> Result<bool> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        if name != LOCK && !name.to_string_lossy().starts_with(UNFINISHED) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn clear(folder: &Path, which: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if which(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(Error::io(&entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(bits: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("bits".to_owned(), bits.to_owned()), ("model".into(), "m".into())])
    }

    #[test]
    fn keys_are_hashes_of_parts_that_do_not_run_together() {
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        assert_ne!(Key::of(&[b"a"]), Key::of(&[b"a", b""]));
        assert_eq!(Key::of(&[b"a", b"b"]), Key::of(&[b"a", b"b"]));
        assert_ne!(Key::of(&[b"a"]).part("x"), Key::of(&[b"a"]).part("y"));
        // SHA-256 of eight zero bytes: one empty part.
        let text = Key::of(&[b""]).to_string();
        assert_eq!(text, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc");
    }

    #[test]
    fn results_are_kept_and_damaged_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a/b")).unwrap();
        let key = Key::of(&[b"weight"]);
        assert_eq!(store.get(&key).unwrap(), None);
        store.put(&key, b"codes").unwrap();
        assert!(store.has(&key));
        assert_eq!(store.get(&key).unwrap().unwrap(), b"codes");
        assert_eq!(store.once(&key, || panic!("it is there")).unwrap(), b"codes");
        let path = store.path(&key);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(store.get(&key).unwrap(), None, "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(store.get(&key).unwrap(), None, "cut at {at}");
        }
        assert_eq!(store.once(&key, || Ok(b"again".to_vec())).unwrap(), b"again");
        assert_eq!(store.get(&key).unwrap().unwrap(), b"again");
        store.remove(&key).unwrap();
        store.remove(&key).unwrap();
        assert!(!store.has(&key));
        store.put(&key, b"").unwrap();
        assert_eq!(store.get(&key).unwrap().unwrap(), b"");
    }

    #[test]
    fn jobs_go_on_and_refuse_other_requests() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out.partial");
        let key = Key::of(&[b"x"]);
        let job = Job::open(&folder, &asked("4")).unwrap();
        job.store().put(&key, b"1").unwrap();
        // One process at a time.
        let busy = Job::open(&folder, &asked("4")).unwrap_err().to_string();
        assert!(busy.contains("another process"), "{busy}");
        assert!(Job::discard(&folder).is_err());
        drop(job);
        fs::write(folder.join(format!("{UNFINISHED}7-x")), b"half").unwrap();
        let job = Job::open(&folder, &asked("4")).unwrap();
        assert!(!folder.join(format!("{UNFINISHED}7-x")).exists());
        assert_eq!(job.store().get(&key).unwrap().unwrap(), b"1");
        drop(job);
        let other = Job::open(&folder, &asked("3")).unwrap_err().to_string();
        assert!(other.contains("bits was 4, is 3") && !other.contains("model"), "{other}");
        Job::discard(&folder).unwrap();
        Job::discard(&folder).unwrap();
        let job = Job::open(&folder, &asked("3")).unwrap();
        assert!(!job.store().has(&key));
        job.store().put(&key, b"2").unwrap();
        fs::write(folder.join("result"), b"r").unwrap();
        job.finish().unwrap();
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["result"]);
        // A folder of someone else is left alone.
        assert!(Job::open(&folder, &asked("3")).is_err());
        assert!(Job::discard(&folder).is_err());
        assert!(folder.join("result").exists());
    }

    #[test]
    fn what_was_left_half_written_long_ago_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new, other] = [".unfinished-7-x", ".unfinished-8-x", "x"].map(|name| dir.path().join(name));
        let ago = std::time::SystemTime::now() - 2 * ABANDONED;
        for path in [&old, &other] {
            File::create(path).unwrap().set_modified(ago).unwrap();
        }
        File::create(&new).unwrap();
        Store::open(dir.path()).unwrap();
        assert_eq!([old, new, other].map(|path| path.exists()), [false, true, true]);
    }

    #[test]
    fn a_result_that_cannot_be_written_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Key::of(&[b"x"]);
        // A folder has the name.
        fs::create_dir_all(store.path(&key).join("y")).unwrap();
        assert!(matches!(store.put(&key, b"1"), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(store.get(&key), Err(Error::Io { .. })));
    }
}
