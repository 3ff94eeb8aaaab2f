//! A tar of another machine's files, held in memory: nothing of it is ever written to a disk.
//!
//! Its names are those of sysfs, whose links lead up and down the tree; they are followed inside the archive alone.
//! GNU tar pads the files of sysfs, whose sizes are not true, with zero bytes, which are dropped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use dmaspace::facts::HostFiles;

use super::Owner;

/// The files of an archive.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    entries: Arc<BTreeMap<PathBuf, Entry>>,
}

#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    owner: Owner,
}

#[derive(Clone, Debug)]
enum Kind {
    File(Vec<u8>),
    Link(PathBuf),
    Folder,
    /// A node of `/dev`, or another special file.
    Node,
}

/// No file of sysfs that matters here is larger.
const LARGEST_FILE: u64 = 4 << 20;
/// The most bytes of files that are kept.
const MOST_BYTES: u64 = 256 << 20;
/// The most bytes of an archive that are read.
const LARGEST_ARCHIVE: u64 = 4 << 30;
/// The most entries.
const MOST_ENTRIES: usize = 1 << 20;
/// The most links that lead to a file, as in the kernel (linux: include/linux/namei.h, MAXSYMLINKS).
const MOST_LINKS: usize = 40;

impl Archive {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        match path == Path::new("-") {
            true => Self::parse(io::stdin().lock()),
            false => Self::parse(File::open(path)?),
        }
    }

    fn parse(mut source: impl Read) -> io::Result<Self> {
        let mut start = [0; 2];
        source.read_exact(&mut start).map_err(|_| io::Error::other("it is empty"))?;
        if start == [0x1f, 0x8b] {
            return Err(io::Error::other("it is compressed: gunzip -c FILE | dmaspace … --root -"));
        }
        let source = start.as_slice().chain(source).take(LARGEST_ARCHIVE);
        let mut entries = BTreeMap::new();
        let mut kept = 0;
        for entry in tar::Archive::new(source).entries()? {
            let mut entry = entry?;
            let Some(path) = normal(&entry.path()?) else { continue };
            let owner = owner_of(entry.header());
            let kind = kind_of(&mut entry)?;
            if let Kind::File(content) = &kind {
                kept += content.len() as u64;
            }
            if kept > MOST_BYTES || entries.len() >= MOST_ENTRIES {
                return Err(io::Error::other("it has more files than /sys and /proc of a machine"));
            }
            add_folders_above(&mut entries, &path);
            entries.insert(path, Entry { kind, owner });
        }
        Ok(Self { entries: Arc::new(entries) })
    }

    pub(super) fn owner(&self, path: &Path) -> Option<Owner> {
        Some(self.entry(path).ok()?.1.owner)
    }

    /// The entry at the end of a path, after all links, and its own path.
    fn entry(&self, path: &Path) -> io::Result<(PathBuf, &Entry)> {
        let mut path = normal(path).ok_or_else(absent)?;
        for _ in 0..MOST_LINKS {
            match self.first_link(&path) {
                Some((link, target, rest)) => {
                    let base = link.parent().unwrap_or(Path::new(""));
                    path = normal(&base.join(target).join(rest)).ok_or_else(absent)?;
                }
                None => {
                    let entry = self.entries.get(&path).ok_or_else(absent)?;
                    return Ok((path, entry));
                }
            }
        }
        Err(io::Error::from_raw_os_error(libc::ELOOP))
    }

    /// The first link on a path, its target, and the path behind it.
    fn first_link<'a>(&'a self, path: &'a Path) -> Option<(&'a Path, &'a Path, &'a Path)> {
        let mut above: Vec<&Path> = path.ancestors().collect();
        above.reverse();
        above.into_iter().find_map(|part| match &self.entries.get(part)?.kind {
            Kind::Link(target) => Some((part, target.as_path(), path.strip_prefix(part).ok()?)),
            _ => None,
        })
    }
}

fn add_folders_above(entries: &mut BTreeMap<PathBuf, Entry>, path: &Path) {
    const OWNER: Owner = Owner { mode: 0o755, uid: 0, gid: 0 };
    for folder in path.ancestors().skip(1) {
        entries.entry(folder.to_owned()).or_insert(Entry { kind: Kind::Folder, owner: OWNER });
    }
}

fn owner_of(header: &tar::Header) -> Owner {
    Owner {
        mode: header.mode().unwrap_or_default() & 0o7777,
        uid: header.uid().unwrap_or_default(),
        gid: header.gid().unwrap_or_default(),
    }
}

fn kind_of<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Kind> {
    let kind = entry.header().entry_type();
    if kind.is_dir() {
        return Ok(Kind::Folder);
    }
    if kind.is_symlink() {
        return Ok(entry.link_name()?.map_or(Kind::Node, |target| Kind::Link(target.into_owned())));
    }
    if kind.is_hard_link() {
        let target = entry.link_name()?.map(|target| Path::new("/").join(target));
        return Ok(target.map_or(Kind::Node, Kind::Link));
    }
    if !kind.is_file() {
        return Ok(Kind::Node);
    }
    let mut content = Vec::new();
    entry.take(LARGEST_FILE).read_to_end(&mut content)?;
    let len = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let is_text = content.get(..len).is_some_and(|text| !text.contains(&0));
    if is_text {
        content.truncate(len);
    }
    Ok(Kind::File(content))
}

/// A path from the root without `.` and `..`. `..` at the root leads to the root, as in the kernel.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::RootDir => parts.clear(),
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}

fn absent() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

impl HostFiles for Archive {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match &self.entry(path)?.1.kind {
            Kind::File(content) => Ok(content.clone()),
            _ => Err(absent()),
        }
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let (folder, _) = self.entry(path)?;
        let below = self.entries.range(folder.clone()..).skip(1).take_while(|(path, _)| path.starts_with(&folder));
        let names = below.filter(|(path, _)| path.parent() == Some(&folder));
        Ok(names.filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn target(&self, path: &Path) -> io::Result<PathBuf> {
        let path = normal(path).ok_or_else(absent)?;
        let (folder, _) = self.entry(path.parent().ok_or_else(absent)?)?;
        let own = folder.join(path.file_name().ok_or_else(absent)?);
        match self.entries.get(&own).map(|entry| &entry.kind) {
            Some(Kind::Link(target)) => Ok(target.clone()),
            Some(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            None => Err(absent()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        self.entry(path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl Fn(&mut tar::Builder<Vec<u8>>)) -> Archive {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        Archive::parse(builder.into_inner().expect("in memory").as_slice()).expect("an archive")
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).expect("in memory");
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, path: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, path, target).expect("in memory");
    }

    #[test]
    fn links_lead_to_files_inside_the_archive_alone() {
        let archive = archive(|tar| {
            file(tar, "sys/devices/pci0000:00/0000:00:03.0/vendor", b"0x8086\n\0\0\0");
            link(tar, "sys/bus/pci/devices/0000:00:03.0", "../../../devices/pci0000:00/0000:00:03.0");
            link(tar, "sys/loop", "loop");
            link(tar, "sys/out", "/../../../../etc/passwd");
            file(tar, "proc/12/status", b"Name:\tcat\n");
            link(tar, "proc/self", "12");
        });
        let read = |path: &str| archive.read(Path::new(path));
        assert_eq!(read("sys/bus/pci/devices/0000:00:03.0/vendor").expect("a file"), b"0x8086\n");
        assert_eq!(read("proc/self/status").expect("a file"), b"Name:\tcat\n");
        assert_eq!(archive.names(Path::new("sys/bus/pci/devices")).expect("a folder"), ["0000:00:03.0"]);
        let target = archive.target(Path::new("sys/bus/pci/devices/0000:00:03.0")).expect("a link");
        assert_eq!(target.file_name().and_then(|name| name.to_str()), Some("0000:00:03.0"));
        assert_eq!(read("sys/loop").expect_err("a loop").raw_os_error(), Some(libc::ELOOP));
        assert_eq!(read("sys/out").expect_err("not there").raw_os_error(), Some(libc::ENOENT));
        assert_eq!(read("sys").expect_err("a folder").raw_os_error(), Some(libc::ENOENT));
        assert!(archive.exists(Path::new("sys/devices")));
    }

    #[test]
    fn no_archive_makes_the_program_fall_over() {
        let texts: [&[u8]; 4] = [b"", b"x", b"\x1f\x8b\x08", &[0xff; 2000]];
        for text in texts {
            assert!(Archive::parse(text).is_err(), "{text:?}");
        }
        assert!(Archive::parse([0; 1024].as_slice()).is_ok_and(|archive| archive.entries.is_empty()));
    }
}
