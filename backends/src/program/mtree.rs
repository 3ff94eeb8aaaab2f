//! QEMU's `info mtree -f`: the flat views of a guest's address spaces, as text.
//!
//! What counts as such a text is what people have at hand: the monitor's output by itself, or a whole monitor session with its
//! banner, its prompts, the commands typed and what other commands said; with line ends of any kind and with what QEMU appends to a
//! range when it is asked for more (owners, the accelerator, dispatch tables). Everything else is refused, with the line and what
//! was expected there: a line that is guessed at would show up much later, as a range that is mapped wrongly.
//!
//! The format is QEMU's own (qemu: system/memory.c, mtree_print_flatview):
//!
//! ```text
//! FlatView #1
//!  AS "memory", root: system
//!  Root memory region: system
//!   0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000
//! ```

use std::fmt;

/// A flat view: what address spaces that share it look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlatView {
    /// The line of its heading.
    pub(crate) line: usize,
    /// The address spaces, never none.
    pub(crate) spaces: Vec<AddressSpace>,
    /// The ranges, ascending and disjoint.
    pub(crate) ranges: Vec<Range>,
}

/// An address space by its two names. Several may share one: every function behind an emulated IOMMU has a `vtd-root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressSpace {
    /// Its own.
    pub(crate) name: String,
    /// The name of the memory region at its root.
    pub(crate) root: String,
}

/// A range of a flat view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// Its line.
    pub(crate) line: usize,
    /// The first address.
    pub(crate) first: u64,
    /// The last address, which is inside.
    pub(crate) last: u64,
    /// What is behind it.
    pub(crate) kind: Kind,
    /// The name of the memory region behind it.
    pub(crate) name: String,
    /// Where in that region the range begins.
    pub(crate) offset: u64,
}

/// What is behind a range, in QEMU's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Whether it outlives the guest's power (`nv-`).
    pub(crate) nonvolatile: bool,
    /// The rest of the word.
    pub(crate) what: What,
}

/// What can be behind a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// `ram`.
    Ram,
    /// `rom`: memory the guest may only read, perhaps only for now.
    Rom,
    /// `ramd`: a device's memory, mmapped into QEMU.
    RamDevice,
    /// `romd`: reads like memory, writes go to a device model.
    RomDevice,
    /// `i/o`: a device model, and every translating region.
    Io,
}

impl What {
    const ALL: [Self; 5] = [Self::Ram, Self::Rom, Self::RamDevice, Self::RomDevice, Self::Io];

    const fn word(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Rom => "rom",
            Self::RamDevice => "ramd",
            Self::RomDevice => "romd",
            Self::Io => "i/o",
        }
    }
}

impl Kind {
    fn of(word: &str) -> Option<Self> {
        let (nonvolatile, word) = word.strip_prefix("nv-").map_or((false, word), |rest| (true, rest));
        let what = What::ALL.into_iter().find(|what| what.word() == word)?;
        Some(Self { nonvolatile, what })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.nonvolatile { "nv-" } else { "" }, self.what.word())
    }
}

/// A line that is not what it has to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}{}", instead(.found))]
pub(crate) struct BadLine {
    /// Its number, from 1; one past the last when the text ends too early.
    pub(crate) line: usize,
    /// What it has to be.
    pub(crate) expected: String,
    /// What it is; nothing at the end of the text.
    pub(crate) found: Option<String>,
}

/// As much of a line as is worth repeating.
const REPEATED: usize = 60;

fn instead(line: &Option<String>) -> String {
    match line {
        None => ", but the text ends".to_owned(),
        Some(line) if line.chars().count() <= REPEATED => format!(", found {line:?}"),
        Some(line) => format!(", found {:?}…", line.chars().take(REPEATED).collect::<String>()),
    }
}

const VIEW: &str =
    "`FlatView #<number>`, as QEMU's `info mtree -f` begins; or a trace of QEMU's VFIO events, or a recording";
const SPACE: &str = "` AS \"<name>\", root: <region>`";
const SPACE_OR_ROOT: &str = "another ` AS \"<name>\", root: <region>`, or ` Root memory region: <name>`";
const RANGE: &str = "a range, `<first>-<last> (prio <number>, <kind>): <name>`, addresses in hexadecimal";
const RANGE_OR_NONE: &str = "a range, `<first>-<last> (prio <number>, <kind>): <name>`, or `No rendered FlatView`";
const RANGE_OR_VIEW: &str =
    "another range, `<first>-<last> (prio <number>, <kind>): <name>`, or the next `FlatView #<number>`";
const KIND: &str = "the kind ram, rom, ramd, romd or i/o, perhaps with nv- before it";

/// Reads a text, bytes as they come.
///
/// # Errors
/// The first line that is not what it has to be.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<FlatView>, BadLine> {
    let mut reader = Reader::default();
    for bytes in text.split(|byte| *byte == b'\n') {
        reader.line += 1;
        let line = std::str::from_utf8(bytes);
        let line = line.map_err(|_| reader.expected("text in UTF-8", &String::from_utf8_lossy(bytes)))?;
        reader.read(line.trim())?;
    }
    reader.finish()
}

/// What was read so far.
#[derive(Debug, Default)]
struct Reader {
    line: usize,
    views: Vec<FlatView>,
    place: Place,
}

/// Where in the text the reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Between views.
    #[default]
    Outside,
    /// In something else that a monitor said.
    Elsewhere,
    /// After a view's heading, before its root.
    Spaces,
    /// After a view's root, before its first range.
    Root,
    /// After a view's first range.
    Ranges,
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<(), BadLine> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(command) = after_prompt(line) {
            return self.end_view(line, if is_ours(command) { Place::Outside } else { Place::Elsewhere });
        }
        if let Some(number) = line.strip_prefix("FlatView #") {
            return self.begin_view(line, number);
        }
        if self.place != Place::Elsewhere && line.contains(char::is_control) {
            return Err(self.expected("text without control characters", line));
        }
        match self.place {
            Place::Elsewhere => Ok(()),
            Place::Outside if is_noise(line) => Ok(()),
            Place::Outside => Err(self.expected(format!("{VIEW}{}", advice(line)), line)),
            Place::Spaces => self.read_space(line),
            Place::Root if line == "No rendered FlatView" => {
                self.place = Place::Outside;
                Ok(())
            }
            Place::Ranges if line == "Dispatch" => self.end_view(line, Place::Elsewhere),
            Place::Root | Place::Ranges => self.read_range(line),
        }
    }

    fn finish(self) -> Result<Vec<FlatView>, BadLine> {
        self.check_view_is_whole(None)?;
        if self.views.is_empty() {
            return Err(BadLine { line: self.line, expected: VIEW.into(), found: None });
        }
        Ok(self.views)
    }

    fn begin_view(&mut self, line: &str, number: &str) -> Result<(), BadLine> {
        self.check_view_is_whole(Some(line))?;
        if number.is_empty() || !number.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(self.expected(VIEW, line));
        }
        self.views.push(FlatView { line: self.line, ..FlatView::default() });
        self.place = Place::Spaces;
        Ok(())
    }

    /// Something else begins.
    fn end_view(&mut self, line: &str, next: Place) -> Result<(), BadLine> {
        self.check_view_is_whole(Some(line))?;
        self.place = next;
        Ok(())
    }

    /// A view that breaks off was cut from a longer text: half of it is worse than none.
    fn check_view_is_whole(&self, found: Option<&str>) -> Result<(), BadLine> {
        let missing = match (self.place, self.views.last()) {
            (Place::Spaces, Some(view)) if view.spaces.is_empty() => SPACE,
            (Place::Spaces, _) => SPACE_OR_ROOT,
            (Place::Root, _) => RANGE_OR_NONE,
            (Place::Outside | Place::Elsewhere | Place::Ranges, _) => return Ok(()),
        };
        Err(BadLine { line: self.line, expected: missing.into(), found: found.map(str::to_owned) })
    }

    fn read_space(&mut self, line: &str) -> Result<(), BadLine> {
        let Some(view) = self.views.last_mut() else { return Ok(()) };
        if let Some(space) = space(line) {
            view.spaces.push(space);
        } else if view.spaces.is_empty() {
            return Err(self.expected(SPACE, line));
        } else if line.starts_with("Root memory region: ") {
            self.place = Place::Root;
        } else {
            return Err(self.expected(SPACE_OR_ROOT, line));
        }
        Ok(())
    }

    fn read_range(&mut self, line: &str) -> Result<(), BadLine> {
        let text = RangeText::of(line).ok_or_else(|| self.expected(self.range_expected(line), line))?;
        let kind = Kind::of(text.kind).ok_or_else(|| self.expected(KIND, line))?;
        let range = text.range(kind, self.line);
        self.check_range(&range).map_err(|expected| self.expected(expected, line))?;
        if let Some(view) = self.views.last_mut() {
            view.ranges.push(range);
        }
        self.place = Place::Ranges;
        Ok(())
    }

    /// Flat views are ascending, disjoint, and inside their regions: QEMU never writes anything else.
    fn check_range(&self, range: &Range) -> Result<(), String> {
        let before = self.views.last().and_then(|view| view.ranges.last());
        if let Some(before) = before.filter(|before| before.last >= range.first) {
            return Err(format!("a range that begins after the one before it, which ends at {:#x}", before.last));
        }
        let Some(reach) = range.last.checked_sub(range.first) else {
            return Err("a last address that does not lie before the first".to_owned());
        };
        match range.offset.checked_add(reach) {
            Some(_) => Ok(()),
            None => Err("an offset at which the range fits into its region".to_owned()),
        }
    }

    fn range_expected(&self, line: &str) -> &'static str {
        let looks_like_one = line.starts_with(|first: char| first.is_ascii_hexdigit());
        match self.place {
            _ if looks_like_one => RANGE,
            Place::Ranges => RANGE_OR_VIEW,
            _ => RANGE_OR_NONE,
        }
    }

    fn expected(&self, expected: impl Into<String>, found: &str) -> BadLine {
        BadLine { line: self.line, expected: expected.into(), found: Some(found.to_owned()) }
    }
}

/// What was typed after the last prompt of a line.
fn after_prompt(line: &str) -> Option<&str> {
    line.rsplit_once("(qemu)").map(|(_, command)| command.trim())
}

/// Whether flat views may follow a prompt with this behind it. A terminal's echo of what was typed is full of escape sequences.
fn is_ours(command: &str) -> bool {
    command.is_empty() || command.contains('\u{1b}') || command.contains("info mtree")
}

/// What QEMU and shells say before the monitor says anything.
fn is_noise(line: &str) -> bool {
    let banner = line.starts_with("QEMU ") && line.contains(" monitor ");
    banner || line.starts_with("qemu-system-") || line.starts_with("info mtree -f")
}

/// `info mtree` without `-f` is the mistake that will be made.
fn advice(line: &str) -> &'static str {
    let tree = line.starts_with("address-space: ") || line.starts_with("memory-region: ");
    if tree { "; `info mtree` prints trees, with `-f` it prints flat views" } else { "" }
}

/// `AS "memory", root: system`, perhaps with `, alias <region>` behind it.
fn space(line: &str) -> Option<AddressSpace> {
    let (name, root) = line.strip_prefix("AS \"")?.split_once("\", root: ")?;
    let root = root.split_once(", alias ").map_or(root, |(root, _)| root);
    Some(AddressSpace { name: name.to_owned(), root: root.to_owned() })
}

/// The parts of a range's line.
struct RangeText<'a> {
    first: u64,
    last: u64,
    kind: &'a str,
    name: &'a str,
    offset: u64,
}

impl<'a> RangeText<'a> {
    /// `00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios @0000000000020000`, and what else QEMU may say.
    fn of(line: &'a str) -> Option<Self> {
        let (first, rest) = line.split_once('-')?;
        let (last, rest) = rest.split_once(" (prio ")?;
        let (priority, rest) = rest.split_once(", ")?;
        let (kind, region) = rest.split_once("):")?;
        priority.parse::<i32>().ok()?;
        let region = without_owner(without_accelerator(region)).trim();
        let (name, offset) = match region.rsplit_once('@').and_then(|(name, text)| Some((name, hexadecimal(text)?))) {
            Some((name, offset)) if name.is_empty() || name.ends_with(' ') => (name.trim(), offset),
            _ => (region, 0),
        };
        Some(Self { first: hexadecimal(first)?, last: hexadecimal(last)?, kind, name, offset })
    }

    fn range(self, kind: Kind, line: usize) -> Range {
        let Self { first, last, name, offset, .. } = self;
        Range { line, first, last, kind, name: name.to_owned(), offset }
    }
}

/// KVM's name stands behind ranges that it knows, once for each address space of the view.
fn without_accelerator(mut region: &str) -> &str {
    while let Some(rest) = region.strip_suffix(" KVM") {
        region = rest;
    }
    region
}

/// Whose the region is: ` owner:{dev id=net0} parent:{obj path=/machine}`, or ` orphan` (`info mtree -f -o`).
fn without_owner(mut region: &str) -> &str {
    region = region.strip_suffix(" orphan").unwrap_or(region);
    for label in [" parent:{", " owner:{"] {
        if region.ends_with('}') {
            region = region.rsplit_once(label).map_or(region, |(rest, _)| rest);
        }
    }
    region
}

/// Sixteen digits as QEMU writes them; fewer from people.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = (1..=16).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    if digits { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const Q35_WITH_BAR: &str = include_str!("../../tests/data/mtree/q35-256m-vfio-bar.mtree");
    pub(crate) const Q35_WITH_IOMMU: &str = include_str!("../../tests/data/mtree/q35-vtd-8g.mtree");
    pub(crate) const PSERIES: &str = include_str!("../../tests/data/mtree/pseries-4g-two-windows.mtree");
    const REAL: [&str; 6] = [
        include_str!("../../tests/data/mtree/pc-3g.mtree"),
        include_str!("../../tests/data/mtree/pseries-4g-reset.mtree"),
        PSERIES,
        Q35_WITH_BAR,
        include_str!("../../tests/data/mtree/q35-8g.mtree"),
        Q35_WITH_IOMMU,
    ];

    /// A view with one range, which is `line`.
    pub(crate) fn view_of(line: &str) -> String {
        format!("FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  {line}\n\n")
    }

    fn range_of(line: &str) -> Range {
        let views = parse(view_of(line).as_bytes()).expect("a range");
        views[0].ranges[0].clone()
    }

    fn refusal(text: &str) -> BadLine {
        parse(text.as_bytes()).expect_err("it makes no sense")
    }

    #[test]
    fn real_texts_are_read_to_the_last_range() {
        let ranges = |text: &str| text.lines().filter(|line| line.contains("(prio ")).count();
        for text in REAL {
            let views = parse(text.as_bytes()).expect("QEMU wrote it");
            assert_eq!(views.len(), text.matches("FlatView #").count());
            assert_eq!(views.iter().map(|view| view.ranges.len()).sum::<usize>(), ranges(text));
            assert_eq!(views.iter().map(|view| view.spaces.len()).sum::<usize>(), text.matches(" AS \"").count());
        }
    }

    #[test]
    fn a_range_is_read_with_all_its_parts() {
        let kind = Kind { nonvolatile: false, what: What::RamDevice };
        let range =
            range_of("00000000fea01000-00000000feafffff (prio 0, ramd): 0000:00:03.0 BAR 0 mmaps[0] @0000000000001000");
        let name = "0000:00:03.0 BAR 0 mmaps[0]".to_owned();
        assert_eq!(range, Range { line: 4, first: 0xfea0_1000, last: 0xfeaf_ffff, kind, name, offset: 0x1000 });
    }

    #[test]
    fn what_qemu_appends_is_not_taken_for_a_name() {
        for appended in [
            "",
            " KVM",
            " KVM KVM",
            " owner:{dev id=net0}",
            " owner:{obj path=/machine/unattached/device[3]} parent:{dev path=/machine/q35} KVM",
            " orphan",
        ] {
            let range = range_of(&format!(
                "0000000000001000-0000000000001fff (prio -1, nv-ram): mem 0 @0000000000002000{appended}"
            ));
            assert_eq!((range.name.as_str(), range.offset), ("mem 0", 0x2000), "{appended:?}");
            let range = range_of(&format!("0000000000001000-0000000000001fff (prio -1, nv-ram): mem 0{appended}"));
            assert_eq!((range.name.as_str(), range.offset), ("mem 0", 0), "{appended:?}");
            assert_eq!(range.kind.to_string(), "nv-ram");
        }
    }

    #[test]
    fn names_may_be_empty_or_look_like_offsets() {
        assert_eq!(range_of("0000-0fff (prio 0, i/o): ").name, "");
        let range = range_of("0000-0fff (prio 0, i/o): pci@800000020000000");
        assert_eq!((range.name.as_str(), range.offset), ("pci@800000020000000", 0));
    }

    #[test]
    fn everything_there_is_is_one_range() {
        let range = range_of("0000000000000000-ffffffffffffffff (prio 0, i/o): vtd-03.0-dmar");
        assert_eq!((range.first, range.last), (0, u64::MAX));
    }

    #[test]
    fn whole_monitor_sessions_are_read() {
        let sessions: [fn(&str) -> String; 8] = [
            |text| text.replace('\n', "\r\n"),
            |text| text.replace('\n', "\r\r\n"),
            |text| text.trim_end().to_owned(),
            |text| {
                format!(
                    "QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) info mtree -f\r\n{text}(qemu) quit\r\n"
                )
            },
            |text| format!("(qemu) i\u{1b}[K\u{1b}[Din\u{1b}[K\r\n{text}(qemu) "),
            |text| format!("(qemu) info pci\n  Bus  0, device   0, function 0:\n(qemu) info mtree -f\n{text}"),
            |text| format!("{text}(qemu) info qtree\nbus: main-system-bus\n  type System\n(qemu) \n"),
            |text| format!("qemu-system-x86_64: warning: no such feature\ninfo mtree -f\n{text}"),
        ];
        for text in REAL {
            let expected: Vec<_> = parse(text.as_bytes())
                .expect("QEMU wrote it")
                .into_iter()
                .map(|view| (view.spaces, view.ranges.len()))
                .collect();
            for session in sessions {
                let read = parse(session(text).as_bytes()).expect("a session");
                assert_eq!(read.into_iter().map(|view| (view.spaces, view.ranges.len())).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn dispatch_trees_are_passed_over() {
        let range = "0000-0fff (prio 0, ram): mem\n";
        let text = format!(
            "{}  Dispatch\n    Physical sections\n      #0 @0000..ffff (noname) [unassigned]\n\n{}",
            view_of(range),
            view_of(range)
        );
        assert_eq!(parse(text.as_bytes()).expect("two views").len(), 2);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_what_was_expected() {
        let range = |line: &str| view_of(line);
        let cases: [(String, usize, &str); 19] = [
            (String::new(), 1, "`FlatView #<number>`"),
            ("\n\n".to_owned(), 3, "`FlatView #<number>`"),
            ("hello\n".to_owned(), 1, "`FlatView #<number>`"),
            ("address-space: memory\n".to_owned(), 1, "with `-f` it prints flat views"),
            ("{\"return\": \"FlatView #0\"}\n".to_owned(), 1, "`FlatView #<number>`"),
            ("FlatView #x\n".to_owned(), 1, "`FlatView #<number>`"),
            ("FlatView #0\n Root memory region: system\n".to_owned(), 2, "` AS "),
            ("FlatView #0\n AS memory\n".to_owned(), 2, "` AS "),
            (
                "FlatView #0\n AS \"memory\", root: system\n  0000-0fff (prio 0, ram): mem\n".to_owned(),
                3,
                "another ` AS ",
            ),
            ("FlatView #0\n AS \"memory\", root: system\n(qemu) ".to_owned(), 3, "Root memory region"),
            (
                "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n".to_owned(),
                4,
                "No rendered FlatView",
            ),
            (range("0000-0fff (prio 0, ram)"), 4, "a range"),
            (range("0000-0xfff (prio 0, ram): mem"), 4, "a range"),
            (range("0000-00000000000000fff (prio 0, ram): mem"), 4, "a range"),
            (range("0000-0fff (prio low, ram): mem"), 4, "a range"),
            (range("0000-0fff (prio 0, container): mem"), 4, "the kind ram, rom, ramd, romd or i/o"),
            (range("1000-0fff (prio 0, ram): mem"), 4, "does not lie before the first"),
            (range("0000-0fff (prio 0, ram): mem @fffffffffffff001"), 4, "fits into its region"),
            (range("0000-0fff (prio 0, ram): mem\n 0fff-1fff (prio 0, ram): mem"), 5, "which ends at 0xfff"),
        ];
        for (text, line, expected) in cases {
            let bad = refusal(&text);
            assert_eq!(bad.line, line, "{text:?}: {bad}");
            assert!(bad.expected.contains(expected), "{text:?}: {bad}");
        }
    }

    #[test]
    fn what_was_found_is_repeated_but_not_all_of_it() {
        assert_eq!(refusal("hello").to_string(), format!("expected {VIEW}, found \"hello\""));
        assert!(refusal(&"x".repeat(1000)).to_string().len() < 200);
        assert!(refusal("").to_string().ends_with("but the text ends"));
        let bad = parse(b"FlatView #0\n \xff\n").expect_err("no UTF-8");
        assert_eq!((bad.line, bad.expected.as_str()), (2, "text in UTF-8"));
        let bad = refusal("FlatView #0\n AS \"\u{1b}[2J\", root: system\n");
        assert_eq!((bad.line, bad.expected.as_str()), (2, "text without control characters"));
    }

    /// What happens to texts on their way.
    #[derive(Clone, Debug)]
    pub(crate) enum Damage {
        Byte(usize, u8),
        Insert(usize, Vec<u8>),
        Cut(usize, usize),
        SwapLines(usize, usize),
        Repeat(usize, usize),
    }

    impl Damage {
        fn any() -> impl Strategy<Value = Self> {
            let (at, len) = (any::<usize>(), 0..200_usize);
            let telling = prop::sample::select(&b"0123456789abcdef-():@ \n\r,\"#"[..]);
            prop_oneof![
                (at, prop_oneof![any::<u8>(), telling.clone()]).prop_map(|(at, byte)| Self::Byte(at, byte)),
                (at, prop::collection::vec(telling, 0..20)).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
                (at, len.clone()).prop_map(|(at, len)| Self::Cut(at, len)),
                (at, any::<usize>()).prop_map(|(one, other)| Self::SwapLines(one, other)),
                (at, len).prop_map(|(at, len)| Self::Repeat(at, len)),
            ]
        }

        fn happen_to(&self, text: &mut Vec<u8>) {
            let place = |at: usize| if text.is_empty() { 0 } else { at % text.len() };
            match self {
                Self::Byte(at, byte) => {
                    let at = place(*at);
                    text.splice(at..(at + 1).min(text.len()), [*byte]);
                }
                Self::Insert(at, bytes) => drop(text.splice(place(*at)..place(*at), bytes.iter().copied())),
                Self::Cut(at, len) => drop(text.drain(place(*at)..(place(*at) + len).min(text.len()))),
                Self::Repeat(at, len) => {
                    let again = text[place(*at)..(place(*at) + len).min(text.len())].to_vec();
                    text.splice(place(*at)..place(*at), again);
                }
                Self::SwapLines(one, other) => {
                    let mut lines: Vec<_> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                    let (one, other) = (one % lines.len(), other % lines.len());
                    lines.swap(one, other);
                    *text = lines.join(&b'\n');
                }
            }
        }
    }

    prop_compose! {
        /// A real text, damaged a few times.
        pub(crate) fn damaged()(
            text in prop::sample::select(&REAL[..]),
            damage in prop::collection::vec(Damage::any(), 0..6),
        ) -> Vec<u8> {
            let mut text = text.as_bytes().to_vec();
            damage.iter().for_each(|damage| damage.happen_to(&mut text));
            text
        }
    }

    proptest! {
        #[test]
        fn damaged_texts_are_read_as_views_or_refused_at_one_of_their_lines(text in damaged()) {
            let lines = text.split(|byte| *byte == b'\n').count();
            match parse(&text) {
                Ok(views) => for view in views {
                    prop_assert!(!view.spaces.is_empty());
                    prop_assert!(view.ranges.is_sorted_by(|one, next| one.last < next.first));
                },
                Err(bad) => prop_assert!((1..=lines).contains(&bad.line), "{}: {bad}", bad.line),
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&text);
        }
    }
}
