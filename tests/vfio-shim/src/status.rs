//! The counts of a container's calls, in a file that is rewritten after each call: a VMM may end without closing
//! anything, and a script may want to compare the bytes with the kernel's while the VMM runs.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The length of the file: lines of different lengths overwrite each other completely.
const WIDTH: usize = 160;

/// The counts of one container.
#[derive(Debug, Default)]
pub(crate) struct Status {
    file: Option<File>,
    pub(crate) maps: Count,
    pub(crate) unmaps: Count,
    pub(crate) refused: Count,
    pub(crate) swallowed: Count,
    pub(crate) mapped_bytes: Count,
    pub(crate) registered_bytes: Count,
    pub(crate) windows: Count,
}

/// A number that threads change.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, number: u64) {
        self.0.fetch_sub(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Status {
    /// No calls yet. `path` is the file to keep; a file that cannot be made is reported and left out.
    pub(crate) fn kept_in(path: Option<&Path>) -> Self {
        let file = path.and_then(|path| match File::create(path) {
            Ok(file) => Some(file),
            Err(error) => {
                eprintln!("dmaspace-vfio-shim: {}: {error}", path.display());
                None
            }
        });
        Self { file, ..Self::default() }
    }

    /// Notes that the kernel has forgotten all mappings, registrations and windows.
    pub(crate) fn forget_mappings(&self) {
        for count in [&self.mapped_bytes, &self.registered_bytes, &self.windows] {
            count.0.store(0, Ordering::Relaxed);
        }
    }

    /// Writes the counts to the file.
    pub(crate) fn write(&self) {
        let Some(file) = &self.file else { return };
        let line = format!("{self:WIDTH$}\n");
        if let Err(error) = file.write_all_at(line.as_bytes(), 0) {
            eprintln!("dmaspace-vfio-shim: the status cannot be written: {error}");
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!(
            "maps={} unmaps={} refused={} swallowed={} mapped={} registered={} windows={}",
            self.maps.get(),
            self.unmaps.get(),
            self.refused.get(),
            self.swallowed.get(),
            self.mapped_bytes.get(),
            self.registered_bytes.get(),
            self.windows.get(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_line_overwrites_a_longer_one() {
        let path = std::env::temp_dir().join(format!("dmaspace-shim-status-{}", std::process::id()));
        let status = Status::kept_in(Some(&path));
        status.mapped_bytes.add(1 << 40);
        status.write();
        status.mapped_bytes.subtract((1 << 40) - 1);
        status.write();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let expected = "maps=0 unmaps=0 refused=0 swallowed=0 mapped=1 registered=0 windows=0";
        assert_eq!((text.trim(), text.len()), (expected, WIDTH + 1));
    }
}
