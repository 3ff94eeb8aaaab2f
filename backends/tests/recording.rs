//! Recordings of a listener's input: written, read and replayed.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

use dmaspace_core::HostAddress;
use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex};

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::contract::Mapping;
use dmaspace::listener::{CommitError, Update};
use dmaspace::recording::{Asked, BadRecording, Ending, Event, JsonLines, Numbered, Reader};
use dmaspace::section::TargetMemory;
use dmaspace::{
    Access, Facts, FrontEnd, Host, HostMemory, Iova, IovaRange, Listener, Opened, PageSize, Section, SystemAddress,
};
use dmaspace_soft::{Profile, SoftHost};

const PAGE: u64 = 0x1000;

type Lines = Arc<Mutex<JsonLines<Vec<u8>>>>;

fn open(backend: BackendKind) -> Opened {
    let profile = if backend == BackendKind::Spapr { Profile::powernv9() } else { Profile::vtd() };
    let machine = SoftHost::new(profile).expect("a preset");
    let facts = Facts::of_soft(machine.profile());
    let address = facts.devices.keys().next().copied().expect("a preset has devices");
    let request = OpenRequest::device(address).with_backend(backend);
    Host::new(machine, facts).open(&request).expect("a preset has it")
}

/// A listener whose every word is written down.
fn recorded(front: FrontEnd) -> (Listener, Lines) {
    let lines = Arc::new(Mutex::new(JsonLines::new(Vec::new())));
    let mut listener = Listener::new(front);
    listener.record_to(Box::new(lines.clone()));
    (listener, lines)
}

fn text(lines: &Lines) -> String {
    String::from_utf8(lines.lock().unwrap().get_ref().clone()).expect("text")
}

fn events(text: &str) -> Vec<Event> {
    Reader::new(text.as_bytes(), Asked::unbacked).map(|event| event.expect("a good recording").event).collect()
}

fn unbacked(address: u64, len: u64) -> HostMemory {
    HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(len).expect("not empty")).expect("no wrap")
}

fn ram(at: u64, memory: HostMemory) -> Section {
    Section::ram("ram", Iova::new(at), memory, Access::READ_WRITE).expect("a section")
}

fn mappings(opened: &Opened) -> Vec<Mapping> {
    opened.space.space().mappings(IovaRange::all())
}

/// Replays a recording on a host of its own, and checks that the recorded failures fail again.
fn replayed(text: &str, on: &Opened) -> Listener {
    let mut listener = Listener::default();
    for event in events(text) {
        match event {
            Event::Begins { front, in_force, .. } => {
                listener = Listener::new(front);
                listener.attach(on.space.space().clone()).expect("nothing is in force");
                listener.commit(in_force).expect("it was in force");
            }
            Event::Commits { update, outcome } => {
                let ended = listener.commit(update);
                assert_eq!(Some(Ending::of(ended.err().as_ref())), outcome.map(|outcome| outcome.result));
            }
            Event::Joins { .. } | Event::Leaves { .. } => {}
        }
    }
    listener
}

/// Memory of three owners, two of them side by side, a ROM and a BAR: distinct memory must stay distinct.
fn many_kinds() -> Update {
    let zeroed = |pages: usize| HostMemory::zeroed(NonZeroUsize::new(pages * 0x1000).unwrap(), PageSize::K4).unwrap();
    let (one, other) = (zeroed(4), zeroed(2));
    let (low, high) = (one.slice(0, 2 * PAGE).unwrap(), one.slice(2 * PAGE, 2 * PAGE).unwrap());
    let rom = Section::ram("rom", Iova::new(0x10_0000), zeroed(1).host_read_only(), Access::READ).unwrap();
    let bar = Section::device_memory("BAR", Iova::new(0xf000_0000), zeroed(1), Access::READ_WRITE).unwrap();
    let msi = IovaRange::new(Iova::new(0xfee0_0000), Iova::new(0xfeef_ffff)).unwrap();
    Update::new()
        .adding(ram(0, low))
        .adding(ram(2 * PAGE, high))
        .adding(ram(4 * PAGE, other))
        .adding(rom)
        .adding(bar)
        .adding(Section::msi("msi", msi))
        .adding(Section::nothing("hpet", IovaRange::with_len(Iova::new(0xfed0_0000), 0x400).unwrap()))
}

#[test]
fn a_replay_joins_the_same_memory_as_the_recorded_listener() {
    let opened = open(BackendKind::Type1);
    let (mut listener, lines) = recorded(FrontEnd::pc().reporting_shrinks());
    listener.attach(opened.space.space().clone()).unwrap();
    // Units that touch in the host and on the bus, and are two all the same.
    let touching = Update::new()
        .adding(ram(0x20_0000, unbacked(0x1000_0000, PAGE).in_unit(7)))
        .adding(ram(0x20_1000, unbacked(0x1000_1000, PAGE).in_unit(7)))
        .adding(ram(0x20_2000, unbacked(0x1000_2000, PAGE).in_unit(8)));
    listener.commit(touching).unwrap();
    let change = listener.update_to(&[], &[]);
    listener.commit(many_kinds()).unwrap();
    listener.commit(change).unwrap();
    let again = open(BackendKind::Type1);
    let replay = replayed(&text(&lines), &again);
    let shape = |opened: &Opened| {
        let place = |mapping: &Mapping| (mapping.range, mapping.memory.address(), mapping.access);
        mappings(opened).iter().map(place).collect::<Vec<_>>()
    };
    assert_eq!(shape(&opened), shape(&again));
    assert_eq!(listener.sections().count(), replay.sections().count());
}

#[test]
fn units_that_touch_are_mapped_apart() {
    let opened = open(BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).unwrap();
    let update = Update::new()
        .adding(ram(0, unbacked(0x1000_0000, PAGE).in_unit(7)))
        .adding(ram(PAGE, unbacked(0x1000_1000, PAGE).in_unit(7)))
        .adding(ram(2 * PAGE, unbacked(0x1000_2000, PAGE).in_unit(8)));
    listener.commit(update).unwrap();
    let lens: Vec<_> = mappings(&opened).iter().map(|mapping| mapping.memory.len().get()).collect();
    assert_eq!(lens, [2 * PAGE, PAGE]);
}

#[test]
fn a_test_can_put_real_memory_behind_a_recording() {
    let (mut listener, lines) = recorded(FrontEnd::default());
    let memory = unbacked(0x7f00_0000_0000, 4 * PAGE);
    let (low, high) = (memory.slice(0, PAGE).unwrap(), memory.slice(PAGE, 3 * PAGE).unwrap());
    listener.commit(Update::new().adding(ram(0, low.clone())).adding(ram(PAGE, high))).unwrap();
    listener.commit(Update::new().removing(ram(0, low))).unwrap();

    // One region for each unit, and the recorded addresses as offsets into it.
    let mut regions: BTreeMap<u64, HostMemory> = BTreeMap::new();
    let make = |asked: &Asked| {
        let len = NonZeroUsize::new(4 * 0x1000)?;
        let region = regions.entry(asked.unit).or_insert_with(|| HostMemory::zeroed(len, PageSize::K4).unwrap());
        region.slice(asked.address.get() - 0x7f00_0000_0000, asked.len.get())
    };
    let text = text(&lines);
    let opened = open(BackendKind::Iommufd);
    let mut again = Listener::default();
    again.attach(opened.space.space().clone()).unwrap();
    for event in Reader::new(text.as_bytes(), make) {
        if let Event::Commits { update, .. } = event.unwrap().event {
            again.commit(update).unwrap();
        }
    }
    let [mapping] = &mappings(&opened)[..] else { panic!("one is left") };
    mapping.memory.write(0, &[1, 2, 3]).expect("there is memory");
    assert_eq!(mapping.range.first(), Iova::new(PAGE));
}

#[test]
fn everything_is_told_before_it_is_done_and_how_it_ended() {
    let opened = open(BackendKind::Type1);
    let space = opened.space.space().clone();
    let mut listener = Listener::new(FrontEnd::default());
    listener.commit(Update::new().adding(ram(0, unbacked(PAGE, PAGE)))).unwrap();
    let lines: Lines = Arc::new(Mutex::new(JsonLines::new(Vec::new())));
    listener.record_to(Box::new(lines.clone()));
    listener.attach(space.clone()).unwrap();
    let too_far = ram(1 << 60, unbacked(PAGE, PAGE));
    assert!(matches!(listener.commit(Update::new().adding(too_far)), Err(CommitError::Refused(_))));
    let absent = ram(PAGE, unbacked(PAGE, PAGE));
    assert!(matches!(listener.commit(Update::new().removing(absent)), Err(CommitError::Update(_))));
    listener.detach(&space).unwrap();
    listener.detach(&space).expect_err("it left");
    listener.sync().unwrap();
    assert!(listener.stop_recording().is_some());
    listener.sync().unwrap();

    let told = events(&text(&lines));
    let Event::Begins { in_force, spaces, .. } = &told[0] else { panic!("{told:?}") };
    assert_eq!((in_force.added().len(), spaces.len()), (1, 0));
    let Event::Joins { space, outcome } = &told[1] else { panic!("{told:?}") };
    assert_eq!((space.backend.as_str(), space.windows.len()), ("type1", 2));
    assert_eq!(outcome.as_ref().map(|outcome| outcome.result), Some(Ending::Ok));
    let Event::Commits { outcome: Some(refused), .. } = &told[2] else { panic!("{told:?}") };
    assert_eq!(refused.result, Ending::Refused);
    assert!(refused.text.contains("above the host's top address"), "{refused:?}");
    let Event::Commits { outcome: Some(error), .. } = &told[3] else { panic!("{told:?}") };
    assert_eq!(error.result, Ending::Error);
    assert!(matches!(&told[4], Event::Leaves { place: 0, outcome: Some(outcome) } if outcome.result == Ending::Ok));
    assert!(matches!(&told[5], Event::Commits { update, .. } if update.is_empty()));
    assert_eq!(told.len(), 6);
}

#[test]
fn translated_windows_and_target_memory_come_back() {
    let opened = open(BackendKind::Spapr);
    let (mut listener, lines) = recorded(FrontEnd::default());
    listener.attach(opened.space.space().clone()).unwrap();
    let window = IovaRange::with_len(Iova::new(0), 1 << 30).unwrap();
    let target = TargetMemory::new("ram", SystemAddress::new(0), unbacked(1 << 32, 1 << 29)).unwrap();
    let update = Update::new().adding(Section::translated("dma", window, PageSize::K4)).adding_target(target);
    listener.commit(update).unwrap();
    let again = open(BackendKind::Spapr);
    let replay = replayed(&text(&lines), &again);
    assert_eq!(again.space.space().windows().windows.as_ref(), opened.space.space().windows().windows.as_ref());
    assert_eq!(replay.targets().collect::<Vec<_>>(), listener.targets().collect::<Vec<_>>());
}

#[test]
fn a_writer_in_trouble_stops_and_says_so() {
    #[derive(Debug)]
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut listener = Listener::default();
    let lines = Arc::new(Mutex::new(JsonLines::new(Full)));
    listener.record_to(Box::new(lines.clone()));
    listener.commit(Update::new().adding(ram(0, unbacked(PAGE, PAGE)))).expect("a guest is worth more");
    assert_eq!(lines.lock().unwrap().error().map(std::io::Error::kind), Some(std::io::ErrorKind::StorageFull));
}

/// A good recording of a few steps.
fn good() -> String {
    let (mut listener, lines) = recorded(FrontEnd::pc());
    listener.commit(many_kinds()).unwrap();
    let window = IovaRange::with_len(Iova::new(1 << 40), 1 << 30).unwrap();
    let target = TargetMemory::new("ram", SystemAddress::new(0), unbacked(1 << 32, 1 << 29)).unwrap();
    let update = Update::new().adding(Section::translated("dma", window, PageSize::K4)).adding_target(target);
    listener.commit(update.clone()).unwrap();
    listener.commit(update.reversed()).unwrap();
    text(&lines)
}

fn refused(text: &str) -> BadRecording {
    let mut reader = Reader::new(text.as_bytes(), Asked::unbacked);
    let bad = reader.find_map(Result::err).unwrap_or_else(|| panic!("nothing wrong with {text}"));
    assert!(reader.next().is_none(), "nothing after an error");
    bad
}

#[test]
fn bad_recordings_are_refused_with_the_line_and_the_expected_form() {
    let good = good();
    let change = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} in {good}");
        good.replacen(from, to, 1)
    };
    let cases: [(String, usize, &str); 15] = [
        (String::new(), 0, "expected a recording, which begins"),
        ("{}\n".into(), 1, "expected a recording, which begins"),
        (change(r#""version":1"#, r#""version":2"#), 1, "expected a recording of version 1, found version 2"),
        (change(r#""shrink":"refuse","#, ""), 1, "missing field `shrink`"),
        (change(r#""step":4096"#, r#""step":4095"#), 1, "expected a power of two as `step`"),
        (change(r#""last":"0xfffff""#, r#""last":"0xffffffffffffffff""#), 1, "expected cuts into at most 65536 pieces"),
        (change(r#""first":"0x0""#, r#""first":"0""#), 2, "expected an address as a string"),
        (change(r#""first":"0x0""#, r#""first":"0x+1""#), 2, "expected an address as a string"),
        (change(r#""kind":"msi""#, r#""kind":"msi","page":4096"#), 2, "expected no `page` with this kind"),
        (change(r#""kind":"msi""#, r#""kind":"msi","colour":"red""#), 2, "unknown field `colour`"),
        (change(r#""first":"0x2000""#, r#""first":"0x1fff""#), 2, "not to overlap"),
        (change(r#"{"event":"ended","result":"ok"}"#, r#"{"event":"leave","space":0}"#), 3, "expected the `ended` of"),
        (change(r#""removed":[{"#, r#""removed":[{"unit":5,"#), 6, "to be in force as it is removed"),
        (
            good.replace(
                r#""removed":[{"space":"pci","first":"0x10000000000","#,
                r#""removed":[{"space":"pci","first":"0x10000001000","#,
            ),
            6,
            "to be in force as it is removed",
        ),
        (format!("{good}{good}"), 8, "another one begins here"),
    ];
    for (text, line, expected) in cases {
        let bad = refused(&text);
        assert_eq!(bad.line, line, "{bad}");
        assert!(bad.what.contains(expected) && bad.what.starts_with("expected"), "{expected}: {bad}");
    }
}

#[test]
fn a_recording_may_end_before_its_last_update_did() {
    let good = good();
    let cut = good.rsplit_once(r#"{"event":"ended""#).expect("it is there").0;
    let last = events(cut).pop().expect("there are some");
    assert!(matches!(last, Event::Commits { outcome: None, .. }));
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any recording is read or refused; a recording that is read can be committed, as far as it makes
        /// sense.
        #[test]
        fn damaged_recordings_are_read_or_refused(
            changed in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            numbers in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..4),
        ) {
            let mut text = good();
            for (place, number) in numbers {
                // An address of another size.
                let places: Vec<_> = text.match_indices("\"0x").map(|(at, _)| at + 1).collect();
                let at = places[place.index(places.len())];
                let end = at + text[at..].find('"').expect("a string ends");
                text.replace_range(at..end, &format!("{number:#x}"));
            }
            let mut text = text.into_bytes();
            for (place, byte) in changed {
                let place = place.index(text.len());
                text[place] = byte;
            }
            let mut listener = Listener::default();
            for event in Reader::new(&text[..], Asked::unbacked) {
                match event {
                    Ok(Numbered { event: Event::Commits { update, outcome: Some(outcome) }, .. }) => {
                        prop_assert_eq!(listener.commit(update).is_ok(), outcome.result == Ending::Ok);
                    }
                    Ok(Numbered { event: Event::Begins { in_force, .. }, .. }) => {
                        prop_assert!(listener.commit(in_force).is_ok());
                    }
                    Ok(_) => {}
                    Err(bad) => prop_assert!(bad.what.starts_with("expected"), "{}", bad),
                }
            }
        }
    }
}

#[test]
fn the_state_is_json_with_whose_everything_is() {
    let opened = open(BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    listener.commit(Update::new().adding(ram(0, unbacked(1 << 45, 2 * PAGE)))).expect("it fits");
    let state = serde_json::to_value(listener.state()).expect("nothing in it cannot be written");
    let expected = serde_json::json!({
        "in_force": [{"space": "pci", "first": "0x0", "last": "0x1fff", "name": "ram", "kind": "ram",
                      "access": "read-write", "host": "0x200000000000", "unit": 0}],
        "translated": [],
        "discardable": [],
        "spaces": [{
            "backend": "type1",
            "devices": ["group 3"],
            "windows": [
                {"first": "0x0", "last": "0xfedfffff", "page_sizes": [4096, 2_097_152, 1_073_741_824]},
                {"first": "0xfef00000", "last": "0xffffffffffff", "page_sizes": [4096, 2_097_152, 1_073_741_824]},
            ],
            "mappings": [{"first": "0x0", "last": "0x1fff", "host": "0x200000000000", "access": "read-write",
                          "unit": null, "owners": ["ram"]}],
            "registrations": [],
            "fences": [],
            "mappings_left": 65_534,
            "commits": 2,
            "pinned": 8192,
            "shared": 0,
            "disturbed": 0,
            "warnings": [],
        }],
    });
    assert_eq!(state, expected);
}
