//! Files that were fetched or built once, kept under the user's cache directory and checked before use.
//!
//! An *item* is a folder `<name>/<version>` of files beside a `SHA256SUMS` that `sha256sum --check`
//! understands. Invariant: an item's folder appears whole, by a rename, or not at all; so a run that
//! is killed half-way leaves nothing that could be mistaken for an item.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::{env, io};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::progress;

const SUMS: &str = "SHA256SUMS";

/// Starts the name of an item's folder that is still being filled.
const PARTIAL: &str = ".partial-";

/// The cache directory of this project.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/dmaspace`, by default `~/.cache/dmaspace`.
    pub(crate) fn of_user() -> Result<Self> {
        let base = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
            (_, Some(home)) => PathBuf::from(home).join(".cache"),
            _ => bail!("neither XDG_CACHE_HOME nor HOME is set: no place to keep kernels"),
        };
        Self::at(base.join("dmaspace"))
    }

    fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        Ok(Self { root })
    }

    /// The folder of an item's versions.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// The item `name`, which must hold `files`. When there is none that is whole, `make` fills a
    /// folder and answers the version it found.
    pub(crate) fn item(
        &self,
        name: &str,
        files: &[&str],
        make: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<PathBuf> {
        if let Some(whole) = self.newest_whole(name, files)? {
            return Ok(whole);
        }
        let _lock = exclusive(&self.folder(name)?)?;
        // The process that held the lock until now may have made it.
        match self.newest_whole(name, files)? {
            Some(whole) => Ok(whole),
            None => self.make(name, files, make),
        }
    }

    fn make(&self, name: &str, files: &[&str], make: impl FnOnce(&Path) -> Result<String>) -> Result<PathBuf> {
        let item = self.folder(name)?;
        remove_leftovers(&item)?;
        let partial = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&item)?;
        let version = make(partial.path())?;
        record(partial.path(), files)?;

        let whole = item.join(version);
        if whole.exists() {
            fs::remove_dir_all(&whole)?;
        }
        fs::rename(partial.keep(), &whole)?;
        Ok(whole)
    }

    /// The most recent version that passes its check; a damaged one is named and passed over.
    fn newest_whole(&self, name: &str, files: &[&str]) -> Result<Option<PathBuf>> {
        for version in versions(&self.root.join(name))? {
            match check(&version, files) {
                Ok(()) => return Ok(Some(version)),
                Err(damage) => progress!("{}: {damage:#}; making it anew", version.display()),
            }
        }
        Ok(None)
    }
}

/// The right to change the files in `folder`, until the result is dropped.
fn exclusive(folder: &Path) -> Result<File> {
    let lock = File::create(folder.join(".lock"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        progress!("waiting for another emulated-host that is busy in {}", folder.display());
        flock(&lock, FlockOperation::LockExclusive)?;
    }
    Ok(lock)
}

/// The versions of an item, the most recent first.
fn versions(item: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(item) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut versions = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            versions.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    versions.sort();
    Ok(versions.into_iter().rev().map(|(_, path)| path).collect())
}

/// Removes what makers that were killed have left.
fn remove_leftovers(item: &Path) -> io::Result<()> {
    for entry in fs::read_dir(item)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(PARTIAL.as_bytes()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Writes down the checksums of `files` beside them.
fn record(folder: &Path, files: &[&str]) -> Result<()> {
    let mut sums = String::new();
    for file in files {
        writeln!(sums, "{}  {file}", checksum(&folder.join(file))?)?;
    }
    fs::write(folder.join(SUMS), sums)?;
    Ok(())
}

/// Are all of `files` there, unchanged since [`record`]?
fn check(folder: &Path, files: &[&str]) -> Result<()> {
    let sums = fs::read_to_string(folder.join(SUMS)).context("its checksums are missing")?;
    for file in files {
        let Some(expected) = recorded(&sums, file) else {
            bail!("{file} is not in it");
        };
        if checksum(&folder.join(file))? != expected {
            bail!("{file} is damaged");
        }
    }
    Ok(())
}

fn recorded<'a>(sums: &'a str, file: &str) -> Option<&'a str> {
    let mut lines = sums.lines().filter_map(|line| line.split_once("  "));
    lines.find(|(_, name)| *name == file).map(|(sum, _)| sum)
}

fn checksum(file: &Path) -> Result<String> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(sha256(&content))
}

/// The SHA-256 of some bytes, in the hexadecimal of `sha256sum`.
pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<()>;

    fn made_once(cache: &Cache, content: &str) -> Result<PathBuf> {
        cache.item("kernel", &["vmlinux"], |folder| {
            fs::write(folder.join("vmlinux"), content)?;
            Ok("6.12".to_owned())
        })
    }

    fn content(item: &Path) -> Result<String> {
        Ok(fs::read_to_string(item.join("vmlinux"))?)
    }

    #[test]
    fn checksums_are_those_of_sha256sum() {
        let of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), of_nothing);
    }

    #[test]
    fn a_whole_item_is_not_made_again() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        made_once(&cache, "first")?;
        assert_eq!(content(&made_once(&cache, "second")?)?, "first");
        Ok(())
    }

    #[test]
    fn a_damaged_item_is_made_again() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        fs::write(made_once(&cache, "first")?.join("vmlinux"), "fire damage")?;
        assert_eq!(content(&made_once(&cache, "second")?)?, "second");
        Ok(())
    }

    #[test]
    fn an_item_that_lacks_a_file_asked_for_is_made_again() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        let old = made_once(&cache, "first")?;
        let damage = check(&old, &["vmlinux", "vfio.ko"]).map_err(|error| error.to_string());
        assert_eq!(damage, Err("vfio.ko is not in it".to_owned()));
        Ok(())
    }

    #[test]
    fn what_a_killed_maker_left_is_removed() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        let leftover = cache.folder("kernel/.partial-of-a-killed-maker")?;
        made_once(&cache, "first")?;
        assert!(!leftover.exists());
        Ok(())
    }

    #[test]
    fn a_maker_that_fails_leaves_no_item() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        let failed = cache.item("kernel", &["vmlinux"], |_| bail!("no network"));
        assert!(failed.is_err());
        assert_eq!(versions(&root.path().join("kernel"))?, [] as [PathBuf; 0]);
        Ok(())
    }
}
