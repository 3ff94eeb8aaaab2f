//! The files of the host that is examined: this one's, a folder's, or an archive's (`--root`).
//!
//! A copy of `/sys` and `/proc` has no `/dev`. The kernel makes the nodes of VFIO, iommufd and KVM from devices that
//! sysfs lists, so where there is no `/dev` at all, sysfs tells which nodes there are.

mod archive;

use std::io;
use std::path::{Path, PathBuf};

use dmaspace::facts::{Directory, HostFiles};

use crate::program::failure::Failure;
use archive::Archive;

/// The files of a host.
#[derive(Debug)]
pub(crate) struct Root {
    files: Box<dyn HostFiles>,
    archive: Option<Archive>,
    /// `false` for a copy without `/dev`.
    has_nodes: bool,
    /// `true` for the host this program runs on.
    pub(crate) is_here: bool,
}

/// The owner of a node, and the rights to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
}

impl Root {
    /// The host this program runs on, or the one whose files are in that folder or archive; `-` is an archive from the
    /// standard input.
    ///
    /// # Errors
    /// A folder or an archive that cannot be read.
    pub(crate) fn of(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            let files = Box::new(Directory::new("/"));
            return Ok(Self { files, archive: None, has_nodes: true, is_here: true });
        };
        if path.is_dir() {
            let files = Box::new(Directory::new(path));
            let has_nodes = files.exists(Path::new("dev"));
            return Ok(Self { files, archive: None, has_nodes, is_here: false });
        }
        let archive = Archive::read(path).map_err(|error| {
            Failure::Input(format!("{}: expected a folder, or a tar of /sys and /proc: {error}", path.display()))
        })?;
        let has_nodes = archive.exists(Path::new("dev"));
        Ok(Self { files: Box::new(archive.clone()), archive: Some(archive), has_nodes, is_here: false })
    }

    /// The text of a file, without white space at its end. `None` where there is none, or none that can be read.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = self.files.read(path.as_ref()).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.files.read(path.as_ref()).ok()
    }

    /// The names in a directory, sorted.
    pub(crate) fn sorted_names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let mut names = self.files.names(path.as_ref()).unwrap_or_default();
        names.sort_unstable();
        names
    }

    /// The last name in the target of a link.
    pub(crate) fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = self.files.target(path.as_ref()).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Returns whether the nodes below `/dev` are known as such, and not from sysfs.
    pub(crate) fn has_nodes(&self) -> bool {
        self.has_nodes
    }

    /// Returns whether the kernel has the device of a node, whether or not the node exists.
    pub(crate) fn has_device_of(&self, node: &Path) -> bool {
        device_of(node).is_some_and(|device| self.files.exists(&device))
    }

    /// The owner of a node, where it is known.
    pub(crate) fn owner(&self, node: &Path) -> Option<Owner> {
        if self.is_here {
            use std::os::unix::fs::MetadataExt as _;
            let found = std::fs::metadata(node).ok()?;
            return Some(Owner { mode: found.mode() & 0o7777, uid: found.uid().into(), gid: found.gid().into() });
        }
        self.archive.as_ref()?.owner(node.strip_prefix("/").unwrap_or(node))
    }
}

/// The device in sysfs for which the kernel makes a node.
fn device_of(node: &Path) -> Option<PathBuf> {
    let node = node.strip_prefix("/").unwrap_or(node);
    let name = node.file_name()?.to_str()?;
    match node.parent()?.to_str()? {
        "dev/vfio/devices" => Some(Path::new("sys/class/vfio-dev").join(name)),
        "dev/vfio" if name == "vfio" => Some(PathBuf::from("sys/class/misc/vfio")),
        "dev/vfio" => Some(Path::new("sys/class/vfio").join(name)),
        "dev" if matches!(name, "iommu" | "kvm") => Some(Path::new("sys/class/misc").join(name)),
        _ => None,
    }
}

impl HostFiles for Root {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files.read(path)
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        self.files.names(path)
    }

    fn target(&self, path: &Path) -> io::Result<PathBuf> {
        self.files.target(path)
    }

    fn exists(&self, path: &Path) -> bool {
        match device_of(path) {
            Some(device) if !self.has_nodes => self.files.exists(&device),
            _ => self.files.exists(path),
        }
    }
}
