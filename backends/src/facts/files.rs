//! The files of procfs and sysfs: of this host, below a root, or wherever else a caller has them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The files of a host. Paths are relative to the host's root: `sys/kernel/iommu_groups`.
///
/// [`Directory`] has those below a directory; a program may have them from an archive.
pub trait HostFiles: fmt::Debug {
    /// The content of a file.
    ///
    /// # Errors
    /// The reason why it cannot be read; `ENOENT`, `ENOTDIR`, `ENODEV` and `ENXIO` mean that it does not exist.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// As [`HostFiles::read`].
    fn names(&self, path: &Path) -> io::Result<Vec<String>>;

    /// The target of a symbolic link, as it is written in the link.
    ///
    /// # Errors
    /// As [`HostFiles::read`]; another error for a file that is no link.
    fn target(&self, path: &Path) -> io::Result<PathBuf>;

    /// Returns `true` if there is a file or a directory at the end of `path`.
    fn exists(&self, path: &Path) -> bool;
}

/// The files of a host below a directory.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// The host whose `/` is `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
}

impl HostFiles for Directory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(self.root.join(path))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.join(path))? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn target(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(self.root.join(path))
    }

    fn exists(&self, path: &Path) -> bool {
        self.root.join(path).exists()
    }
}

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

/// The files of a host, and errors that name them.
pub(super) struct Files<'a> {
    pub(super) files: &'a dyn HostFiles,
}

/// A path relative to the root.
pub(super) fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

impl Files<'_> {
    pub(super) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.files.exists(relative(path.as_ref()))
    }

    /// The text of a file, without white space at its end. `None` for a file that does not exist.
    pub(super) fn text(&self, path: &str) -> Result<Option<String>, FactsError> {
        let bytes = present(self.files.read(relative(Path::new(path))), path)?;
        let text = bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData)));
        match text.transpose() {
            Ok(text) => Ok(text.map(|text| text.trim_end().to_owned())),
            Err(error) => Err(FactsError { path: Path::new("/").join(path), problem: Problem::Unreadable(error) }),
        }
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
            None => Err(FactsError {
                path: Path::new("/").join(path),
                problem: Problem::Unexpected { found: text, expected },
            }),
        }
    }

    /// The names in a directory, sorted. Empty for a directory that does not exist.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>, FactsError> {
        let mut names = present(self.files.names(relative(Path::new(path))), path)?.unwrap_or_default();
        names.sort_unstable();
        Ok(names)
    }

    /// The last component of a symbolic link's target.
    pub(super) fn target(&self, path: &str) -> Option<String> {
        let target = self.files.target(relative(Path::new(path))).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// Turns the errors of files that do not exist, or that vanish at this moment, into `None`.
fn present<T>(result: io::Result<T>, path: &str) -> Result<Option<T>, FactsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO)) =>
        {
            Ok(None)
        }
        Err(error) => Err(FactsError { path: Path::new("/").join(path), problem: Problem::Unreadable(error) }),
    }
}
