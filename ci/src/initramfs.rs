//! The initramfs: the files of an emulated host, as a newc archive that the kernel unpacks.
//!
//! The archive is not compressed. QEMU reads a few megabytes in no time, while the emulated processor would need
//! seconds to decompress them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

/// An initramfs that is being written.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    folders: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Adds an empty folder and its parents.
    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        self.folders_down_to(Path::new(path))
    }

    /// Adds an executable file and the folders above it.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        if let Some(folder) = Path::new(path).parent() {
            self.folders_down_to(folder)?;
        }
        self.entry(path, ModeFileType::Regular, content)
    }

    /// Adds all files below a folder, each by the rest of its path. A link becomes the file behind it.
    pub(crate) fn tree(&mut self, folder: &Path) -> Result<()> {
        self.part_of_tree(folder, Path::new("/"))
    }

    fn part_of_tree(&mut self, folder: &Path, place: &Path) -> Result<()> {
        let read = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut entries = read.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (source, target) = (entry.path(), place.join(entry.file_name()));
            let path = target.to_str().context("a path in the initramfs is not UTF-8")?;
            if fs::metadata(&source)?.is_dir() {
                self.folder(path)?;
                self.part_of_tree(&source, &target)?;
            } else {
                let content = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
                self.file(path, &content)?;
            }
        }
        Ok(())
    }

    /// Ends the archive and returns its bytes.
    pub(crate) fn finish(self) -> io::Result<Vec<u8>> {
        trailer(self.archive)
    }

    /// Adds a folder and its parents, each once. The kernel does not create parents, and needs an entry for a folder
    /// before the entries of its files (linux: init/initramfs.c, do_name).
    fn folders_down_to(&mut self, folder: &Path) -> Result<()> {
        let mut above: Vec<&Path> = folder.ancestors().filter(|path| path.parent().is_some()).collect();
        above.reverse();
        for path in above {
            if self.folders.insert(path.to_owned()) {
                let name = path.to_str().context("a path in the initramfs is not UTF-8")?;
                self.entry(name, ModeFileType::Directory, &[])?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, kind: ModeFileType, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too big for an initramfs"))?;
        let header = Builder::new(path.trim_start_matches('/')).mode(0o755).set_mode_file_type(kind);
        let mut entry = header.write(&mut self.archive, size);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }
}

/// Quotes `word` for a shell, which reads it as one word and expands nothing in it.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Read as _};

    fn names_and_modes(archive: Vec<u8>) -> Result<Vec<(String, u32)>> {
        let mut archive = Cursor::new(archive);
        let mut entries = Vec::new();
        loop {
            let reader = cpio::newc::Reader::new(archive)?;
            if reader.entry().is_trailer() {
                return Ok(entries);
            }
            entries.push((reader.entry().name().to_owned(), reader.entry().mode()));
            archive = reader.finish()?;
        }
    }

    #[test]
    fn a_folder_is_added_once_and_before_its_files() -> Result<()> {
        let mut initramfs = Initramfs::default();
        initramfs.file("/lib64/ld.so", b"loader")?;
        initramfs.file("/lib64/libc.so", b"libc")?;
        initramfs.folder("/sys")?;

        let expected = [
            ("lib64".to_owned(), 0o040_755),
            ("lib64/ld.so".to_owned(), 0o100_755),
            ("lib64/libc.so".to_owned(), 0o100_755),
            ("sys".to_owned(), 0o040_755),
        ];
        assert_eq!(names_and_modes(initramfs.finish()?)?, expected);
        Ok(())
    }

    #[test]
    fn the_files_of_a_folder_have_the_rest_of_their_paths() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir(root.path().join("lib"))?;
        fs::write(root.path().join("lib/libc.so"), "libc")?;
        fs::write(root.path().join("init"), "#!/bin/sh")?;
        let mut initramfs = Initramfs::default();
        initramfs.tree(root.path())?;
        let expected = [("init", 0o100_755), ("lib", 0o040_755), ("lib/libc.so", 0o100_755)];
        assert_eq!(names_and_modes(initramfs.finish()?)?, expected.map(|(name, mode)| (name.to_owned(), mode)));
        Ok(())
    }

    #[test]
    fn the_content_of_a_file_is_in_the_archive() -> Result<()> {
        let mut initramfs = Initramfs::default();
        initramfs.file("/init", b"#!/bin/sh\n")?;

        let mut reader = cpio::newc::Reader::new(Cursor::new(initramfs.finish()?))?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        assert_eq!(content, b"#!/bin/sh\n");
        Ok(())
    }

    #[test]
    fn a_word_with_quotes_and_spaces_is_quoted_as_one_word() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
