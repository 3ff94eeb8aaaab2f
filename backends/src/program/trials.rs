//! Trials: everything that the program reads, with any bytes there.
//!
//! The targets of `fuzz/` call these functions with inputs that a fuzzer makes, and the unit tests below with the
//! test data, with each input that once failed a target, and with damaged copies of both. A trial returns nothing:
//! it fails by a panic, by a debug assertion, by the time it takes or by the memory it needs.

use std::num::NonZeroU32;
use std::path::PathBuf;

use dmaspace_soft::Profile;

use crate::program::arguments::Replay as Arguments;
use crate::program::failure::Failure;
use crate::program::guest::Guest;
use crate::program::host::{self, Place};
use crate::program::machine::Machine;
use crate::program::replay::Replay;
use crate::program::root::Root;
use crate::program::schema::Form;
use crate::program::stage::Setting;
use crate::program::surroundings::Text;
use crate::program::values::Backend;
use crate::program::{Content, doctor, drawing, mtree, printable, probe, replay, replay_content, text, traced};

/// Any file that `dmaspace replay` may be given: flat views, a trace, a log, a recording, in any surroundings.
pub(crate) fn whole_input(bytes: &[u8]) {
    check(replay_text("input", bytes, &arguments(bytes)));
}

/// Error lines, and the events among them, even where the text looks like something else.
pub(crate) fn error_lines(bytes: &[u8]) {
    let content = traced("input", &Text::of(bytes), None);
    check(content.and_then(|content| replay_content("input", &content, &arguments(bytes))));
}

fn replay_text(file: &str, bytes: &[u8], arguments: &Arguments) -> Result<Vec<Replay>, Failure> {
    let content = Content::of(file, bytes, arguments.guest_page)?;
    replay_content(file, &content, arguments)
}

/// A file that describes a host, and a small guest on that host.
pub(crate) fn host_file(bytes: &[u8]) {
    if let Ok(profile) = host::file::parse("host", bytes) {
        try_host(profile);
    }
}

/// A small guest on a host.
fn try_host(profile: Profile) {
    const GUEST: &str = include_str!("../../tests/data/mtree/q35-256m-vfio-bar.mtree");
    if profile.check().is_err() {
        return;
    }
    let place = Place::Soft(Box::new(profile));
    let setting = Setting { place, backend: None, spaces: NonZeroU32::MIN, hints: true, record: None };
    let Ok(views) = mtree::parse(&Text::of(GUEST.as_bytes())) else { return };
    let Ok(guest) = Guest::of(&views, None, None) else { return };
    check(replay::replay("guest", &guest, &setting).map(|replay| vec![replay]));
}

/// An archive of another machine's /sys and /proc: its probe, its devices' diagnoses, and a small guest on it.
pub(crate) fn sys_tar(bytes: &[u8]) {
    const MOST_DEVICES: usize = 4;
    let path = Shelved::new(bytes);
    let Ok(machine) = Root::of(Some(&path.0)).and_then(Machine::of) else { return };
    let found = probe::probe(&machine);
    for device in machine.facts.devices.keys().take(MOST_DEVICES) {
        let diagnosis = doctor::diagnose(&machine, *device, Some(1 << 33));
        debug_assert_eq!(diagnosis.device, *device);
    }
    let written = Form::Probe.page(&found.profile).unwrap_or_default();
    let read = host::file::parse("host", written.as_bytes());
    debug_assert_eq!(read.as_ref(), Ok(&found.profile), "a host file that is read as another");
    try_host(found.profile);
}

/// A file that is removed again: the program takes archives by their paths.
struct Shelved(PathBuf);

impl Shelved {
    fn new(bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("dmaspace-trial-{}.tar", std::process::id()));
        let written = std::fs::write(&path, bytes);
        debug_assert!(written.is_ok(), "{written:?}");
        Self(path)
    }
}

impl Drop for Shelved {
    /// A file that stays is harmless.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The host and the backend are drawn from the input itself, so that one input is one trial.
fn arguments(bytes: &[u8]) -> Arguments {
    const BACKENDS: [Option<Backend>; 4] = [None, None, Some(Backend::Type1), Some(Backend::Iommufd)];
    let sum = bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let host = Profile::PRESETS.get(sum % (Profile::PRESETS.len() + 1)).map(|name| (*name).to_owned());
    let backend = BACKENDS.get(sum / 16 % BACKENDS.len()).copied().flatten();
    Arguments { host, backend, no_hints: sum / 64 % 2 == 1, ..Arguments::default() }
}

/// Everything that may be printed of a replay is made, and nothing of it steers a terminal.
fn check(replayed: Result<Vec<Replay>, Failure>) {
    for replay in replayed.unwrap_or_default() {
        let object = Form::Replay.line(&replay.outcome).unwrap_or_default();
        debug_assert!(serde_json::from_str::<serde_json::Value>(&object).is_ok(), "no JSON: {object}");
        let shown = printable::shown(&text::replay(&replay)).into_owned() + &object;
        debug_assert!(!shown.contains(|letter: char| letter.is_control() && letter != '\n'), "{shown:?}");
        debug_assert!(!drawing::of(&replay).to_string().is_empty(), "no drawing");
        debug_assert!(!replay.outcome.ok || replay.errors.is_empty(), "{:?}", replay.errors);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::program::mtree::FlatViews;
    use crate::program::outcome::AddressesOf;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/regressions");

    /// Every file below `folder`, in a fixed order.
    fn files_below(folder: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let below = paths.into_iter().map(|path| if path.is_dir() { files_below(&path) } else { vec![path] });
        below.flatten().collect()
    }

    /// The test data for a target and each input that once failed it.
    fn corpus(target: &str, data: &[&str]) -> Vec<Vec<u8>> {
        let folders = data.iter().map(|folder| Path::new(DATA).join(folder));
        let files = folders.chain([Path::new(REGRESSIONS).join(target)]).flat_map(|folder| files_below(&folder));
        files.map(|file| fs::read(file).expect("test data")).collect()
    }

    /// A copy of `seed` with some damage, as far as `numbers` have it: a part is cut out, doubled or overwritten.
    fn damaged(seed: &[u8], numbers: &mut impl FnMut() -> usize) -> Vec<u8> {
        let mut copy = seed.to_vec();
        for _ in 0..=numbers() % 3 {
            let first = numbers() % (copy.len() + 1);
            let last = (first + numbers() % 24).min(copy.len());
            let part = copy[first..last].to_vec();
            let filler = vec![b"0f\n \"{@-\x1b\xff"[numbers() % 10]; numbers() % 4];
            match numbers() % 3 {
                0 => drop(copy.splice(first..last, [])),
                1 => drop(copy.splice(first..first, part)),
                _ => drop(copy.splice(first..last, filler)),
            }
        }
        copy
    }

    /// Tries each seed, and damaged copies of it.
    fn try_all(trial: fn(&[u8]), seeds: &[Vec<u8>], copies: usize) {
        assert!(!seeds.is_empty());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut numbers = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            usize::try_from(state >> 40).unwrap_or_default()
        };
        for seed in seeds {
            trial(seed);
            for _ in 0..copies {
                trial(&damaged(seed, &mut numbers));
            }
        }
    }

    #[test]
    fn every_seed_and_every_input_that_once_failed_is_answered() {
        let seeds = corpus("whole_input", &["field", "mtree", "traces"]);
        try_all(whole_input, &seeds, 2);
    }

    #[test]
    fn error_lines_are_answered_wherever_they_stand() {
        try_all(error_lines, &corpus("error_lines", &["field"]), 2);
    }

    #[test]
    fn hosts_are_taken_or_refused() {
        try_all(host_file, &corpus("host_file", &["hosts", "field/hosts"]), 20);
    }

    #[test]
    fn archives_are_probed_or_refused() {
        let mut seeds = corpus("sys_tar", &[]);
        for (path, content) in [
            ("sys/bus/pci/devices/0000:00:03.0/class", "0x020000\n"),
            ("sys/kernel/iommu_groups/0/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n"),
            ("proc/sys/kernel/osrelease", "6.12.48\n"),
        ] {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content.as_bytes()).expect("in memory");
            seeds.push(tar.into_inner().expect("in memory"));
        }
        try_all(sys_tar, &seeds, 20);
    }

    /// The lines of a flat view that a look at their first letters tells.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Counts {
        views: usize,
        spaces: usize,
        ranges: usize,
        others: usize,
    }

    impl Counts {
        fn of(text: &str) -> Self {
            let mut counts = Self::default();
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
                match line {
                    _ if line.starts_with("FlatView #") => counts.views += 1,
                    _ if line.starts_with("AS \"") => counts.spaces += 1,
                    _ if line.contains(" (prio ") => counts.ranges += 1,
                    _ if line.starts_with("Root memory region: ") || line == "No rendered FlatView" => {}
                    _ => counts.others += 1,
                }
            }
            counts
        }

        fn read(views: &FlatViews) -> Self {
            Self {
                views: views.views.len(),
                spaces: views.views.iter().map(|view| view.spaces.len()).sum(),
                ranges: views.views.iter().map(|view| view.ranges.len()).sum(),
                others: views.passed_over,
            }
        }
    }

    /// Reads a monitor's session with three commands, each by itself and all in one.
    fn check_session(file: &str, session: &str) {
        let mut parts = vec![String::new()];
        for line in session.lines() {
            if line.starts_with("(qemu)") {
                parts.push(String::new());
            }
            parts.last_mut().expect("never empty").push_str(&format!("{line}\n"));
        }
        parts.retain(|part| part.contains("FlatView #"));
        assert_eq!(parts.len(), 3, "{file}: `info mtree -f`, with -o and with -d");
        for part in &parts {
            let views = mtree::parse(&Text::of(part.as_bytes())).unwrap_or_else(|bad| panic!("{file}: {bad:?}"));
            assert_eq!(Counts::read(&views), Counts::of(part), "{file}");
        }
        let replays = replay_text(file, session.as_bytes(), &Arguments::default());
        let replays = replays.unwrap_or_else(|failure| panic!("{failure}"));
        let chosen = &replays[0].outcome.input.address_space;
        let view = parts[0].split("FlatView #").find(|view| view.contains(&format!(" AS \"{chosen}\"")));
        let ranges = view.map(|view| Counts::of(view).ranges);
        let judged = replays[0].outcome.sections.iter().filter(|judged| judged.space == AddressesOf::Pci).count();
        assert_eq!(Some(judged), ranges, "{file}: {chosen}");
        assert!(replays[0].outcome.ok || !file.contains("powernv"), "{file}: {:?}", replays[0].errors);
    }

    #[test]
    #[ignore = "`ci/check views` makes the files: DMASPACE_VIEWS is their folder"]
    fn every_view_of_every_qemu_is_read_to_its_last_range() {
        let folder = std::env::var_os("DMASPACE_VIEWS").expect("DMASPACE_VIEWS");
        let files = files_below(Path::new(&folder));
        assert!(!files.is_empty(), "no views");
        for path in files {
            let session = fs::read(&path).expect("a session");
            check_session(&path.file_name().expect("a file").to_string_lossy(), &String::from_utf8_lossy(&session));
        }
    }
}
