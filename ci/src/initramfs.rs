//! The initramfs: the few files an emulated host consists of, as the newc archive the kernel unpacks.
//!
//! It is left uncompressed: reading a few megabytes costs QEMU nothing, inflating them would cost
//! the emulated processor seconds.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

/// An initramfs in the making.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    folders: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// An empty folder, and those above it.
    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        self.folders_down_to(Path::new(path))
    }

    /// A file anyone may run, and the folders it lies in.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        if let Some(folder) = Path::new(path).parent() {
            self.folders_down_to(folder)?;
        }
        self.entry(path, ModeFileType::Regular, content)
    }

    /// The finished archive.
    pub(crate) fn finish(self) -> io::Result<Vec<u8>> {
        trailer(self.archive)
    }

    /// The kernel creates no parents by itself, and needs them before their files.
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

/// `word` as a shell reads it back: one word, nothing expanded.
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
    fn folders_come_once_and_before_what_they_hold() -> Result<()> {
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
    fn content_survives() -> Result<()> {
        let mut initramfs = Initramfs::default();
        initramfs.file("/init", b"#!/bin/sh\n")?;

        let mut reader = cpio::newc::Reader::new(Cursor::new(initramfs.finish()?))?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        assert_eq!(content, b"#!/bin/sh\n");
        Ok(())
    }

    #[test]
    fn a_quoted_word_keeps_its_quotes_and_spaces() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
