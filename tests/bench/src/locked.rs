//! Locked instructions in a dump of callgrind: each of them has a cache line for its processor alone.
//!
//! The dump has the address of every instruction that was executed, and its count; the program and its libraries have
//! the bytes there. Locked are the instructions of x86-64 with the prefix `lock`, and an exchange with memory, which
//! has no need of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// The prefix `lock`.
const LOCK: u8 = 0xf0;
/// Prefixes that may stand before it: sizes, segments, repetitions.
const OTHERS: [u8; 10] = [0x66, 0x67, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0xf2, 0xf3];

/// The number of locked instructions of one dump, which was made with addresses and without compression.
pub(crate) fn total(dump: &Path) -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string(dump)?;
    let mut objects: BTreeMap<&str, Object> = BTreeMap::new();
    let (mut object, mut is_call, mut sum) = ("", false, 0);
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("ob=") {
            object = path;
        } else if line.starts_with("calls=") {
            // The next line has the cost of the callee, which is counted in its place.
            is_call = true;
        } else if let Some(costs) = line.strip_prefix("0x") {
            let is_own = !std::mem::take(&mut is_call);
            let mut words = costs.split(' ');
            let (Some(address), Some(count)) = (words.next(), words.nth(1)) else { continue };
            if !objects.contains_key(object) {
                objects.insert(object, Object::read(Path::new(object)).unwrap_or_default());
            }
            let address = u64::from_str_radix(address, 16)?;
            if is_own && objects.get(object).is_some_and(|object| is_locked(object.bytes_at(address))) {
                sum += count.parse::<u64>()?;
            }
        }
    }
    Ok(sum)
}

/// A program or a library.
#[derive(Default)]
struct Object {
    file: Vec<u8>,
    segments: Vec<Segment>,
}

/// A part of the file, and the address that it is loaded at.
struct Segment {
    offset: u64,
    address: u64,
    len: u64,
}

impl Object {
    /// Reads the program headers of an ELF file of 64 bits.
    fn read(path: &Path) -> Option<Self> {
        let file = fs::read(path).ok()?;
        let word = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?));
        let table = usize::try_from(word(32)?).ok()?;
        let (size, count) = (usize::from(half(&file, 54)?), usize::from(half(&file, 56)?));
        let mut segments = Vec::new();
        for header in (0..count).map(|n| table + n * size) {
            segments.push(Segment { offset: word(header + 8)?, address: word(header + 16)?, len: word(header + 32)? });
        }
        Some(Self { file, segments })
    }

    fn bytes_at(&self, address: u64) -> &[u8] {
        let found = self.segments.iter().find(|part| (part.address..part.address + part.len).contains(&address));
        let place =
            found.map(|part| address - part.address + part.offset).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.file.get(place..)).unwrap_or_default()
    }
}

fn half(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?))
}

fn is_locked(bytes: &[u8]) -> bool {
    let prefixes = bytes.iter().take_while(|byte| OTHERS.contains(byte)).count();
    match bytes.get(prefixes..).unwrap_or_default() {
        [LOCK, ..] => true,
        // An exchange, with or without a prefix for wide registers; the last byte names a register or memory.
        [0x40..=0x4f, 0x86 | 0x87, operands, ..] | [0x86 | 0x87, operands, ..] => operands >> 6 != 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_instructions_are_told_by_their_bytes() {
        assert!(is_locked(&[0xf0, 0x0f, 0xb1, 0x0e]), "lock cmpxchg %ecx,(%rsi)");
        assert!(is_locked(&[0x66, 0xf0, 0xff, 0x00]), "a prefix before it");
        assert!(is_locked(&[0x87, 0x07]), "xchg %eax,(%rdi)");
        assert!(is_locked(&[0x48, 0x87, 0x07]), "xchg %rax,(%rdi)");
        assert!(!is_locked(&[0x48, 0x87, 0xc7]), "xchg %rax,%rdi");
        assert!(!is_locked(&[0x89, 0xf0]), "mov %esi,%eax");
        assert!(!is_locked(&[]), "nothing");
    }
}
