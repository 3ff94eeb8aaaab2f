//! Files that were fetched or built once, kept under the user's cache directory and checked before use.
//!
//! An *item* is a folder `<name>/<version>` of files and a `SHA256SUMS` that `sha256sum --check` can read.
//! Invariant: an item's folder appears complete, by a rename, or not at all. A run that is killed half-way leaves
//! nothing that a later run could mistake for an item.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::{env, io};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::progress;

const SUMS: &str = "SHA256SUMS";

/// The start of the name of an item's folder while the folder is being filled.
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
            _ => bail!("neither XDG_CACHE_HOME nor HOME is set: set one, so that kernels can be kept there"),
        };
        Self::at(base.join("dmaspace"))
    }

    fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        Ok(Self { root })
    }

    /// The folder of an item's versions, created if it is missing.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// The newest complete version of the item `name`, which must have `files`. If there is none, `make` fills a folder
    /// and returns the item's version.
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
        // Another process may have made the item while this one waited for the lock.
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

    /// The most recent version that passes its check. A damaged version is reported and skipped.
    fn newest_whole(&self, name: &str, files: &[&str]) -> Result<Option<PathBuf>> {
        for version in versions(&self.root.join(name))? {
            match check(&version, files) {
                Ok(()) => return Ok(Some(version)),
                Err(damage) => progress!("{}: {damage:#}; making the item again", version.display()),
            }
        }
        Ok(None)
    }
}

/// Locks `folder` for changes until the returned file is dropped.
fn exclusive(folder: &Path) -> Result<File> {
    let lock = File::create(folder.join(".lock"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        progress!("waiting for another emulated-host that fills {}", folder.display());
        flock(&lock, FlockOperation::LockExclusive)?;
    }
    Ok(lock)
}

/// The folders of an item's versions, the most recent first.
fn versions(item: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(item) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut versions = Vec::new();
    for read in entries {
        let entry = read?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            versions.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    versions.sort();
    Ok(versions.into_iter().rev().map(|(_, path)| path).collect())
}

/// Removes the folders that processes were filling when they were killed.
fn remove_leftovers(item: &Path) -> io::Result<()> {
    for read in fs::read_dir(item)? {
        let entry = read?;
        if entry.file_name().as_encoded_bytes().starts_with(PARTIAL.as_bytes()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Writes the checksums of `files` into the folder's `SHA256SUMS`.
fn record(folder: &Path, files: &[&str]) -> Result<()> {
    let mut sums = String::new();
    for file in files {
        writeln!(sums, "{}  {file}", checksum(&folder.join(file))?)?;
    }
    fs::write(folder.join(SUMS), sums)?;
    Ok(())
}

/// Fails if one of `files` is missing or has changed since [`record`].
fn check(folder: &Path, files: &[&str]) -> Result<()> {
    let sums = fs::read_to_string(folder.join(SUMS)).context("the checksums cannot be read")?;
    for file in files {
        let Some(expected) = recorded(&sums, file) else {
            bail!("{file} has no checksum");
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

/// The SHA-256 of `content` in hexadecimal digits, as `sha256sum` prints it.
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
    fn a_checksum_equals_that_of_sha256sum() {
        let of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), of_nothing);
    }

    #[test]
    fn a_complete_item_is_not_made_again() -> Outcome {
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
    fn an_item_without_a_wanted_file_is_refused() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        let old = made_once(&cache, "first")?;
        let damage = check(&old, &["vmlinux", "vfio.ko"]).map_err(|error| error.to_string());
        assert_eq!(damage, Err("vfio.ko has no checksum".to_owned()));
        Ok(())
    }

    #[test]
    fn the_folder_of_a_killed_process_is_removed() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        let leftover = cache.folder("kernel/.partial-of-a-killed-process")?;
        made_once(&cache, "first")?;
        assert!(!leftover.exists());
        Ok(())
    }

    #[test]
    fn a_failed_make_leaves_no_item() -> Outcome {
        let root = tempfile::tempdir()?;
        let cache = Cache::at(root.path().to_owned())?;
        let failed = cache.item("kernel", &["vmlinux"], |_| bail!("no network"));
        assert!(failed.is_err());
        assert_eq!(versions(&root.path().join("kernel"))?, [] as [PathBuf; 0]);
        Ok(())
    }
}
