//! Recorded hosts: the files of tests/data/hosts/recorded, each the files of a host and the commands to run on it.

use std::collections::BTreeMap;
use std::path::Path;

use super::DATA;

/// A file of a recorded host.
#[derive(Clone, Debug)]
enum Entry {
    File(Vec<u8>),
    Link(String),
    Folder,
    Node { mode: u32, uid: u64, gid: u64 },
}

/// A recorded host: its files, and the commands to run on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    files: BTreeMap<String, Entry>,
    pub(crate) commands: Vec<String>,
}

impl Recorded {
    /// The recorded host of that name.
    pub(crate) fn named(name: &str) -> Self {
        let path = format!("{DATA}/hosts/recorded/{name}.host");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut host = Self::default();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let mut below = Vec::new();
            while let Some(line) = lines.peek().and_then(|line| line.strip_prefix("    ")) {
                below.push(line.to_owned());
                lines.next();
            }
            host.read(line, &below);
        }
        host
    }

    /// Reads a line and the indented lines below it.
    fn read(&mut self, line: &str, below: &[String]) {
        let file =
            |lines: &[String]| Entry::File(lines.iter().flat_map(|line| [line, "\n"]).collect::<String>().into());
        if line.is_empty() || line.starts_with('#') {
        } else if let Some(name) = line.strip_prefix("include ") {
            self.files = Self::named(name).files;
        } else if let Some(command) = line.strip_prefix("$ ") {
            self.commands.push(command.to_owned());
        } else if let Some(prefix) = line.strip_prefix("- ") {
            self.files.retain(|path, _| !path.starts_with(prefix));
        } else if let Some(path) = line.strip_suffix('/') {
            self.add(path, Entry::Folder);
        } else if let Some((path, target)) = line.split_once(" -> ") {
            self.add(path, Entry::Link(format!("../to/{target}")));
        } else if let Some((path, words)) = line.split_once(" [") {
            self.add(path, node(words));
        } else if let Some((path, bytes)) = line.split_once(" = ") {
            self.add(path, Entry::File(hexadecimal(bytes)));
        } else if let Some(path) = line.strip_suffix(':') {
            self.add(path, file(below));
        } else {
            let (path, value) = line.split_once(": ").unwrap_or_else(|| panic!("what is this: {line}"));
            self.add(path, file(&[value.to_owned()]));
        }
    }

    fn add(&mut self, path: &str, entry: Entry) {
        self.files.insert(path.to_owned(), entry);
    }

    /// The host as an archive.
    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(0);
            match entry {
                Entry::File(content) => {
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, path, content.as_slice()).expect("in memory");
                }
                Entry::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, target).expect("in memory");
                }
                Entry::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, path, [].as_slice()).expect("in memory");
                }
                Entry::Node { mode, uid, gid } => {
                    header.set_entry_type(tar::EntryType::Char);
                    header.set_mode(*mode);
                    header.set_uid(*uid);
                    header.set_gid(*gid);
                    tar.append_data(&mut header, path, [].as_slice()).expect("in memory");
                }
            }
        }
        tar.into_inner().expect("in memory")
    }

    /// The host in a folder, without the owners of nodes, which only an archive can hold.
    pub(crate) fn unpack(&self, root: &Path) {
        for (path, entry) in &self.files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            match entry {
                Entry::File(content) => std::fs::write(path, content).expect("written"),
                Entry::Link(target) => std::os::unix::fs::symlink(target, path).expect("linked"),
                Entry::Folder => std::fs::create_dir_all(path).expect("made"),
                Entry::Node { .. } => std::fs::write(path, "").expect("written"),
            }
        }
    }
}

/// `0660 0:104]`.
fn node(words: &str) -> Entry {
    let (mode, owner) = words.trim_end_matches(']').split_once(' ').expect("mode and owner");
    let (uid, gid) = owner.split_once(':').expect("user and group");
    let number = |text: &str| text.parse().expect("a number");
    Entry::Node { mode: u32::from_str_radix(mode, 8).expect("a mode"), uid: number(uid), gid: number(gid) }
}

fn hexadecimal(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("two digits");
    digits.chunks(2).map(byte).collect()
}

/// The names of all recorded hosts.
pub(crate) fn names() -> Vec<String> {
    let files = std::fs::read_dir(format!("{DATA}/hosts/recorded")).expect("test data").flatten();
    let names = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".host")?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}
