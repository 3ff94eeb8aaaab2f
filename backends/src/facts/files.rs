//! Reading the files of procfs and sysfs below a root.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A file that could not be read, or whose text could not be understood.
#[derive(Debug)]
#[non_exhaustive]
pub struct FactsError {
    /// The file or directory.
    pub path: PathBuf,
    /// The fault.
    pub problem: Problem,
}

/// The fault of a file.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// It could not be read.
    Unreadable(io::Error),
    /// Its text has another form than such a file has.
    Unexpected {
        /// The text.
        found: String,
        /// The expected form.
        expected: &'static str,
    },
}

impl fmt::Display for FactsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reading {}: {}", self.path.display(), self.problem)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "{error}"),
            Self::Unexpected { found, expected } => write!(f, "{found:?} where {expected} was expected"),
        }
    }
}

/// [`source`](std::error::Error::source) is `None`: the text contains the cause.
impl std::error::Error for FactsError {}

/// Files below a root.
pub(super) struct Files<'a> {
    pub(super) root: &'a Path,
}

impl Files<'_> {
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let absolute = path.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    pub(super) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// The text of a file, without white space at its end. `None` for a file that does not exist.
    pub(super) fn text(&self, path: &str) -> Result<Option<String>, FactsError> {
        let path = self.path(path);
        present(std::fs::read_to_string(&path), path).map(|text| text.map(|text| text.trim_end().to_owned()))
    }

    /// The value that the text of a file stands for. `None` for a file that does not exist.
    pub(super) fn parsed<T>(
        &self,
        path: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, FactsError> {
        let Some(text) = self.text(path)? else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(FactsError { path: self.path(path), problem: Problem::Unexpected { found: text, expected } }),
        }
    }

    /// The names in a directory, sorted. Empty for a directory that does not exist.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>, FactsError> {
        let path = self.path(path);
        let Some(entries) = present(std::fs::read_dir(&path), path.clone())? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => names.extend(entry.file_name().into_string()),
                Err(error) => return Err(FactsError { path, problem: Problem::Unreadable(error) }),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The last component of a symbolic link's target.
    pub(super) fn target(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// Turns the errors of files that do not exist, or that vanish at this moment, into `None`.
fn present<T>(result: io::Result<T>, path: PathBuf) -> Result<Option<T>, FactsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO)) =>
        {
            Ok(None)
        }
        Err(error) => Err(FactsError { path, problem: Problem::Unreadable(error) }),
    }
}
