use proptest::prelude::*;

use super::reader::VIEW;
use super::*;
use crate::program::surroundings::Text;

pub(crate) const Q35_WITH_BAR: &str = include_str!("../../../tests/data/mtree/q35-256m-vfio-bar.mtree");
pub(crate) const Q35_WITH_IOMMU: &str = include_str!("../../../tests/data/mtree/q35-vtd-8g.mtree");
pub(crate) const PSERIES: &str = include_str!("../../../tests/data/mtree/pseries-4g-two-windows.mtree");
const REAL: [&str; 6] = [
    include_str!("../../../tests/data/mtree/pc-3g.mtree"),
    include_str!("../../../tests/data/mtree/pseries-4g-reset.mtree"),
    PSERIES,
    Q35_WITH_BAR,
    include_str!("../../../tests/data/mtree/q35-8g.mtree"),
    Q35_WITH_IOMMU,
];

/// A view with one range, which is `line`.
pub(crate) fn view_of(line: &str) -> String {
    format!("FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  {line}\n\n")
}

/// The views in a text.
fn parsed(text: &[u8]) -> Result<Vec<FlatView>, BadLine> {
    parse(&Text::of(text)).map(|read| read.views)
}

fn range_of(line: &str) -> Range {
    let views = parsed(view_of(line).as_bytes()).expect("a range");
    views[0].ranges[0].clone()
}

fn refusal(text: &str) -> BadLine {
    parsed(text.as_bytes()).expect_err("it makes no sense")
}

#[test]
fn real_texts_are_read_to_the_last_range() {
    let ranges = |text: &str| text.lines().filter(|line| line.contains("(prio ")).count();
    for text in REAL {
        let views = parsed(text.as_bytes()).expect("QEMU wrote it");
        assert_eq!(views.len(), text.matches("FlatView #").count());
        assert_eq!(views.iter().map(|view| view.ranges.len()).sum::<usize>(), ranges(text));
        assert_eq!(views.iter().map(|view| view.spaces.len()).sum::<usize>(), text.matches(" AS \"").count());
    }
}

#[test]
fn a_range_is_read_with_all_its_parts() {
    let kind = Kind::volatile(What::RamDevice);
    let range =
        range_of("00000000fea01000-00000000feafffff (prio 0, ramd): 0000:00:03.0 BAR 0 mmaps[0] @0000000000001000");
    let name = "0000:00:03.0 BAR 0 mmaps[0]".into();
    assert_eq!(range, Range { line: 4, first: 0xfea0_1000, last: 0xfeaf_ffff, kind, name, offset: 0x1000 });
}

#[test]
fn marks_that_qemu_appends_are_no_part_of_a_name() {
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
        assert_eq!((&*range.name, range.offset), ("mem 0", 0x2000), "{appended:?}");
        let range = range_of(&format!("0000000000001000-0000000000001fff (prio -1, nv-ram): mem 0{appended}"));
        assert_eq!((&*range.name, range.offset), ("mem 0", 0), "{appended:?}");
        assert_eq!(range.kind.to_string(), "nv-ram");
    }
}

#[test]
fn names_may_be_empty_or_look_like_offsets() {
    assert_eq!(&*range_of("0000-0fff (prio 0, i/o): ").name, "");
    let range = range_of("0000-0fff (prio 0, i/o): pci@800000020000000");
    assert_eq!((&*range.name, range.offset), ("pci@800000020000000", 0));
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
                "QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) info mtree -f\r\n{text}(qemu) \
                 quit\r\n"
            )
        },
        |text| format!("(qemu) i\u{1b}[K\u{1b}[Din\u{1b}[K\r\n{text}(qemu) "),
        |text| format!("(qemu) info pci\n  Bus  0, device   0, function 0:\n(qemu) info mtree -f\n{text}"),
        |text| format!("{text}(qemu) info qtree\nbus: main-system-bus\n  type System\n(qemu) \n"),
        |text| format!("qemu-system-x86_64: warning: no such feature\ninfo mtree -f\n{text}"),
    ];
    for text in REAL {
        let expected: Vec<_> = parsed(text.as_bytes())
            .expect("QEMU wrote it")
            .into_iter()
            .map(|view| (view.spaces, view.ranges.len()))
            .collect();
        for session in sessions {
            let read = parsed(session(text).as_bytes()).expect("a session");
            assert_eq!(read.into_iter().map(|view| (view.spaces, view.ranges.len())).collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn a_container_may_be_called_like_the_memory_in_it() {
    // QEMU 11's musca-b1.
    let views = parsed(
        view_of("0000-0fff (prio 0, romd): eflash1\n  1000-1fff (prio -1, container): eflash1 @0000000000001000")
            .as_bytes(),
    );
    assert_eq!(views.expect("QEMU wrote it")[0].ranges.len(), 2);
}

#[test]
fn dispatch_trees_are_passed_over() {
    let range = "0000-0fff (prio 0, ram): mem\n";
    let text = format!(
        "{}  Dispatch\n    Physical sections\n      #0 @0000..ffff (noname) [unassigned]\n\n{}",
        view_of(range),
        view_of(range)
    );
    assert_eq!(parsed(text.as_bytes()).expect("two views").len(), 2);
}

#[test]
fn errors_have_the_line_and_the_expected_form() {
    let range = |line: &str| view_of(line);
    let cases: [(String, usize, &str); 15] = [
        (String::new(), 1, "`FlatView #<number>`"),
        ("\n\n".to_owned(), 3, "`FlatView #<number>`"),
        ("hello\n".to_owned(), 1, "`FlatView #<number>`"),
        ("address-space: memory\n".to_owned(), 1, "with `-f` it prints flat views"),
        ("FlatView #x\n".to_owned(), 1, "`FlatView #<number>`"),
        (range("0000-0fff (prio 0, ram)"), 4, "a range"),
        (range("0000-0xfff (prio 0, ram): mem"), 4, "a range"),
        (range("0000-00000000000000fff (prio 0, ram): mem"), 4, "a range"),
        (range("0000-0fff (prio low, ram): mem"), 4, "a range"),
        (range("0000000100000000-00000001"), 4, "a range"),
        (range("0000000100000000-00000001ffffffff (pri"), 4, "a range"),
        (range("1000-0fff (prio 0, ram): mem"), 4, "does not lie before the first"),
        (range("0000-0fff (prio 0, ram): mem @fffffffffffff001"), 4, "fits into its region"),
        (range("0000-0fff (prio 0, ram): mem\n 0fff-1fff (prio 0, ram): mem"), 5, "which ends at 0xfff"),
        (range("0000-0fff (prio 0, ram): mem\n lost\n 0fff-1fff (prio 0, ram): mem"), 6, "which ends at 0xfff"),
    ];
    for (text, line, expected) in cases {
        let bad = refusal(&text);
        assert_eq!(bad.line, line, "{text:?}: {bad}");
        assert!(bad.expected.contains(expected), "{text:?}: {bad}");
    }
}

#[test]
fn a_word_that_is_not_known_is_kept_as_it_is() {
    let range = range_of("0000000000000000-0000000000000fff (prio 0, container): io @0000000000000022");
    assert_eq!((range.kind.to_string().as_str(), &*range.name), ("container", "io"));
    assert_eq!(range_of("0000-0fff (prio 0, nv-tape): io").kind.to_string(), "nv-tape");
    let misspelt = view_of("0000-0fff (prio 0, rum): mem\n  1000-1fff (prio 0, ram): mem @0000000000001000");
    assert_eq!(refusal(&misspelt).line, 4);
}

#[test]
fn a_mark_behind_an_offset_is_part_of_no_name() {
    let text = view_of("0000-0fff (prio 0, ram): mem 0 zap\n  1000-1fff (prio 0, ram): mem 0 @0000000000001000 zap");
    let views = parsed(text.as_bytes()).expect("two ranges");
    let names: Vec<_> = views[0].ranges.iter().map(|range| &*range.name).collect();
    assert_eq!(names, ["mem 0", "mem 0"]);
    for line in ["0000-0fff (prio 0, ram): mem 0 kvm", "0000-0fff (prio 0, ram): mem 0 kvm:tcg @0000000000000000"] {
        assert_eq!(&*range_of(line).name, "mem 0");
    }
}

#[test]
fn views_are_found_inside_their_surroundings() {
    let plain = view_of(
        "0000000000000000-00000000bfffffff (prio 0, ram): pc.ram\n  \
                         00000000c0000000-00000000c0000fff (prio 0, rom): pc.ram @00000000c0000000",
    );
    let prefixed = |prefix: &str| plain.lines().map(|line| format!("{prefix}{line}\n")).collect::<Vec<_>>().concat();
    let logfmt = |line: &str| format!("time=1 msg=\"{}\" pid=1\n", line.replace('"', "\\\""));
    let wrapped = [
        prefixed("> "),
        prefixed(">>> "),
        prefixed("2026-01-02T13:26:19.5Z "),
        prefixed("Jun 04 07:25:13 host QEMU[3989]: "),
        plain.lines().map(logfmt).collect(),
        format!("{{\"return\": \"{}\"}}\n", plain.replace('"', "\\\"").replace('\n', "\\r\\n")),
        plain.replace('"', "\\\""),
        plain.replace(" @0", "\n@0"),
        plain.replace(" (prio", "\n(prio"),
        format!("Dear all,\n\n```\n{plain}```\nregards\n"),
        plain.lines().map(|line| format!("\u{1b}[32m{line}\u{1b}[0m\r\n")).collect::<Vec<_>>().concat(),
        plain.replace(' ', "\u{a0}"),
    ];
    let expected = parsed(plain.as_bytes()).expect("a view");
    for text in wrapped {
        let views = parsed(text.as_bytes()).unwrap_or_else(|bad| panic!("{bad} in\n{text}"));
        assert_eq!(views.len(), 1, "{text}");
        let told = |range: &Range| (range.first, range.last, range.kind.clone(), range.name.clone(), range.offset);
        let told_of = |view: &FlatView| view.ranges.iter().map(told).collect::<Vec<_>>();
        assert_eq!((told_of(&views[0]), &views[0].spaces), (told_of(&expected[0]), &expected[0].spaces), "{text}");
    }
}

#[test]
fn found_text_is_repeated_up_to_a_limit() {
    assert_eq!(refusal("hello").to_string(), format!("expected {VIEW}, found \"hello\""));
    assert!(refusal(&"x".repeat(1000)).to_string().len() < 200);
    assert!(refusal("").to_string().ends_with("but the text ends"));
    let bad = refusal("\u{1b}[2Jhello\n");
    assert_eq!((bad.line, bad.expected.as_str()), (1, "text without control characters"));
    let views = parsed(view_of("0000-0fff (prio 0, ram): a\u{1b}[2Jb\u{7}").as_bytes()).expect("a range");
    assert_eq!(&*views[0].ranges[0].name, "ab");
}

/// Damage that texts take on their way.
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
        match parsed(&text) {
            Ok(views) => for view in views {
                prop_assert!(!view.spaces.is_empty());
                prop_assert!(view.ranges.is_sorted_by(|one, next| one.last < next.first));
            },
            Err(bad) => prop_assert!((1..=lines + 1).contains(&bad.line), "{}: {bad}", bad.line),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(text in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parsed(&text);
    }
}
