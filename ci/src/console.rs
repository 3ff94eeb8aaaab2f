//! The output of an emulated host: one stream, in which its init (`init.sh`) marks the phases.
//!
//! firmware, kernel → `run` → the test's output → `exit …` → the kernel's log of the run → `end`
//!
//! A mark starts with a byte that no test prints. The test's output is therefore forwarded byte by byte, without
//! waiting for the end of a line: libtest writes `test x ... ` long before it writes `ok`. On powernv the firmware
//! writes to the same console at any time, even in the middle of a line; [`Firmware`] removes its messages.

use std::collections::VecDeque;
use std::io::{self, Write};

/// The first byte of a mark. A newline ends the mark.
const MARK: u8 = 0x1e;

/// The number of lines of a boot that are kept, to be shown if the boot fails.
const BOOT_LINES: usize = 30;

/// The end of the binary's run inside the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The binary's exit status, as a shell reports it.
    pub(crate) status: u8,
    /// The kernel's taint flags before and after the run.
    pub(crate) taint: [u64; 2],
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Boot,
    Run,
    KernelLog,
    End,
}

/// The console of one host, with the state of the output read so far.
#[derive(Debug)]
pub(crate) struct Console {
    phase: Phase,
    firmware: Firmware,
    /// The mark that is being read, without its first byte.
    mark: Option<Vec<u8>>,
    line: Vec<u8>,
    boot_line: Vec<u8>,
    boot: VecDeque<String>,
    kernel_log: String,
    exit: Option<Exit>,
    panic: Option<String>,
    setup_failure: Option<String>,
    shows_everything: bool,
}

impl Console {
    /// A console without any output yet. If `shows_everything`, the output of the firmware and the kernel is forwarded
    /// as well.
    pub(crate) fn new(shows_everything: bool) -> Self {
        Self {
            phase: Phase::Boot,
            firmware: Firmware::default(),
            mark: None,
            line: Vec::new(),
            boot_line: Vec::new(),
            boot: VecDeque::new(),
            kernel_log: String::new(),
            exit: None,
            panic: None,
            setup_failure: None,
            shows_everything,
        }
    }

    /// Reads the next bytes of the console and writes the test's output among them to `out`.
    pub(crate) fn read(&mut self, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        // The console is a terminal: its lines end with a carriage return and a newline.
        for &byte in bytes.iter().filter(|byte| **byte != b'\r') {
            self.remember_boot(byte);
            if self.shows_everything {
                out.write_all(&[byte])?;
            }
            for byte in self.firmware.sift(byte) {
                self.read_byte(byte, out)?;
            }
        }
        out.flush()
    }

    /// Returns `true` once the rest of the output has no effect on the verdict.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::End || self.setup_failure.is_some()
    }

    /// Returns `true` once init has started the binary.
    pub(crate) fn has_booted(&self) -> bool {
        self.phase != Phase::Boot
    }

    /// The end of the binary, once it has ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// The reason of the kernel's panic, if the kernel panicked.
    pub(crate) fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// The step of init that failed, if one did.
    pub(crate) fn setup_failure(&self) -> Option<&str> {
        self.setup_failure.as_deref()
    }

    /// The kernel's log while the binary ran.
    pub(crate) fn kernel_log(&self) -> &str {
        &self.kernel_log
    }

    /// The last lines of the boot, before init started the binary.
    pub(crate) fn last_of_boot(&self) -> impl Iterator<Item = &str> {
        self.boot.iter().map(String::as_str)
    }

    fn read_byte(&mut self, byte: u8, out: &mut dyn Write) -> io::Result<()> {
        match &mut self.mark {
            Some(mark) if byte == b'\n' => {
                let mark = text(mark);
                self.mark = None;
                self.read_mark(&mark);
            }
            Some(mark) => mark.push(byte),
            None if byte == MARK => self.mark = Some(Vec::new()),
            None => {
                if self.phase == Phase::Run && !self.shows_everything {
                    out.write_all(&[byte])?;
                }
                self.read_text(byte);
            }
        }
        Ok(())
    }

    fn read_mark(&mut self, mark: &str) {
        let mut words = mark.split(' ');
        match words.next() {
            Some("run") => self.phase = Phase::Run,
            Some("exit") => {
                self.exit = exit_of(words);
                self.phase = Phase::KernelLog;
            }
            Some("end") => self.phase = Phase::End,
            Some("failed") => self.setup_failure = Some(words.collect::<Vec<_>>().join(" ")),
            _ => {}
        }
        self.line.clear();
    }

    fn read_text(&mut self, byte: u8) {
        if byte != b'\n' {
            self.line.push(byte);
            return;
        }
        let line = text(&mut self.line);
        if let Some((_, reason)) = line.split_once("Kernel panic - not syncing: ") {
            self.panic.get_or_insert_with(|| reason.to_owned());
        }
        if self.phase == Phase::KernelLog {
            self.kernel_log.push_str(&line);
            self.kernel_log.push('\n');
        }
    }

    /// Keeps the last lines of the boot. The firmware's messages are kept too: they can explain a failed boot.
    fn remember_boot(&mut self, byte: u8) {
        if self.phase != Phase::Boot {
            return;
        }
        if byte != b'\n' {
            self.boot_line.push(byte);
            return;
        }
        self.boot.push_back(text(&mut self.boot_line));
        if self.boot.len() > BOOT_LINES {
            self.boot.pop_front();
        }
    }
}

/// Empties a buffer and returns its bytes as text.
fn text(bytes: &mut Vec<u8>) -> String {
    String::from_utf8_lossy(&std::mem::take(bytes)).into_owned()
}

/// A filter that removes the firmware's messages, each with its newline, such as
/// `[   83.070300110,3] PHB#0000[0:0]: Unexpected slot state 00000104`.
#[derive(Debug, Default)]
struct Firmware {
    /// Bytes that may be the start of a time stamp of the firmware.
    stamp: Vec<u8>,
    /// The filter is inside a message of the firmware.
    speaks: bool,
}

impl Firmware {
    /// Reads `byte` and returns the bytes that are now known not to be the firmware's.
    fn sift(&mut self, byte: u8) -> Vec<u8> {
        if self.speaks {
            self.speaks = byte != b'\n';
            return Vec::new();
        }
        if byte == b'[' {
            // A stamp has one opening bracket, its first byte: the bytes kept so far are not the start of a stamp.
            return std::mem::replace(&mut self.stamp, vec![byte]);
        }
        if self.stamp.is_empty() {
            return vec![byte];
        }
        self.stamp.push(byte);
        match stamp(&self.stamp) {
            Stamp::Partial => Vec::new(),
            Stamp::Whole => {
                self.stamp.clear();
                self.speaks = true;
                Vec::new()
            }
            Stamp::Other => std::mem::take(&mut self.stamp),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Stamp {
    Partial,
    Whole,
    Other,
}

/// Compares bytes with the firmware's time stamp, which has nine decimals and a log level. The kernel's time stamp has
/// six decimals and no log level.
fn stamp(bytes: &[u8]) -> Stamp {
    let seconds = bytes.iter().skip(1).take_while(|byte| matches!(byte, b' ' | b'0'..=b'9')).count();
    let decimals = bytes.iter().skip(1 + seconds);
    let shape = b".000000000,0] ";
    match decimals.len() {
        length if length > shape.len() || !decimals.zip(shape).all(|(byte, place)| fits(*byte, *place)) => Stamp::Other,
        length if length == shape.len() => Stamp::Whole,
        _ => Stamp::Partial,
    }
}

/// Returns `true` if `byte` can stand at a place of the stamp's shape, where `0` means any digit.
fn fits(byte: u8, place: u8) -> bool {
    if place == b'0' { byte.is_ascii_digit() } else { byte == place }
}

fn exit_of<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Exit> {
    let status = words.next()?.parse().ok()?;
    let before = words.next()?.parse().ok()?;
    let after = words.next()?.parse().ok()?;
    Some(Exit { status, taint: [before, after] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(stream: &[u8]) -> (Console, String) {
        let mut console = Console::new(false);
        let mut shown = Vec::new();
        assert!(console.read(stream, &mut shown).is_ok());
        (console, String::from_utf8_lossy(&shown).into_owned())
    }

    #[test]
    fn only_the_output_of_the_test_is_forwarded() {
        let stream = b"skiboot\r\n\x1erun\r\ntest a ... ok\r\n\x1eexit 0 0 0\r\n[1.0] vfio\r\n\x1eend\r\n";
        let (console, shown) = after(stream);
        assert_eq!(shown, "test a ... ok\n");
        assert_eq!(console.kernel_log(), "[1.0] vfio\n");
        assert_eq!(console.exit(), Some(Exit { status: 0, taint: [0, 0] }));
        assert!(console.is_over());
    }

    #[test]
    fn a_line_is_forwarded_before_it_ends() {
        let (console, shown) = after(b"\x1erun\ntest a ... ");
        assert_eq!(shown, "test a ... ");
        assert!(!console.is_over());
    }

    #[test]
    fn a_mark_is_recognized_in_the_middle_of_a_line() {
        let (console, shown) = after(b"\x1erun\nno newline\x1eexit 3 0 512\n");
        assert_eq!(shown, "no newline");
        assert_eq!(console.exit(), Some(Exit { status: 3, taint: [0, 512] }));
    }

    #[test]
    fn a_mark_may_be_read_in_pieces() {
        let mut console = Console::new(false);
        let mut shown = Vec::new();
        for byte in b"\x1erun\nhello" {
            assert!(console.read(&[*byte], &mut shown).is_ok());
        }
        assert_eq!(shown, b"hello");
    }

    #[test]
    fn the_reason_of_a_panic_is_kept() {
        let (console, _) = after(b"\x1erun\n[ 2.0] Kernel panic - not syncing: sysrq triggered crash\n");
        assert_eq!(console.panic(), Some("sysrq triggered crash"));
    }

    #[test]
    fn the_last_lines_of_a_long_boot_are_kept() {
        let boot: Vec<String> = (0..100).map(|line| format!("line {line}\n")).collect();
        let (console, shown) = after(boot.concat().as_bytes());
        assert_eq!(console.last_of_boot().last(), Some("line 99"));
        assert_eq!(console.last_of_boot().count(), BOOT_LINES);
        assert_eq!(shown, "");
    }

    #[test]
    fn messages_of_the_firmware_are_removed_from_a_line() {
        let stream = b"\x1erun\ntest a ... [   83.070300110,3] PHB#0000[0:0]: Unexpected slot state\r\n\
                       [   83.070666377,3] SLOT-0: Error -6 on hot reset\r\nok\r\n";
        assert_eq!(after(stream).1, "test a ... ok\n");
    }

    #[test]
    fn a_message_of_the_firmware_is_removed_from_a_mark() {
        let (console, _) = after(b"\x1erun\n\x1eexit 1[   83.070300110,3] PHB#0000\n01 0 0\n");
        assert_eq!(console.exit(), Some(Exit { status: 101, taint: [0, 0] }));
    }

    #[test]
    fn text_that_resembles_a_message_of_the_firmware_is_forwarded() {
        let said = "left: [255, 255] [[1.5], [   1.234567] vfio: [ 12.000000000,3 ]\n";
        let stream = format!("\x1erun\n{said}");
        assert_eq!(after(stream.as_bytes()).1, said);
    }

    #[test]
    fn a_failed_step_of_init_ends_the_run() {
        let (console, _) = after(b"\x1efailed insmod vfio\n");
        assert_eq!(console.setup_failure(), Some("insmod vfio"));
        assert!(console.is_over());
    }
}
