//! A real Linux guest's own calls, as QEMU saw them, on a POWER host in software: the same answers, the same
//! translations, and how few calls the host gets.
//!
//! What QEMU's events leave out: the entries of a list but the last. Linux's lists continue it backwards (linux:
//! arch/powerpc/platforms/pseries/iommu.c, tce_buildmulti_pSeriesLP, tce_setrange_multi_pSeriesLP), and the
//! translations tell if not.

use dmaspace::choose::BackendKind;
use dmaspace_core::{Access, Iova, PageSizes};
use dmaspace_spapr_guest::{Layout, Liobn};
use dmaspace_tests::soft::{host, open};
use dmaspace_tests::spapr_guest::{SpaprGuest, UNIT, windows_of};

const MAP: &str = "VFIO_IOMMU_MAP_DMA";
const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

const MIB: u64 = 1 << 20;

/// A trace, line by line, in full.
fn lines(trace: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some(again) = line.strip_prefix("again ") else {
            out.push(line.to_owned());
            continue;
        };
        let (times, step) = again.split_once(" times, each 0x").expect("how often and how far");
        let step = hex(step.strip_suffix(" further").expect("how far"));
        let first = out.last().expect("a line before").clone();
        let at = field(&first, "ioba");
        for n in 1..=times.parse::<u64>().expect("a number") {
            out.push(first.replace(&format!("ioba={at:#x} "), &format!("ioba={:#x} ", at + n * step)));
        }
    }
    out
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number")
}

/// The number after `name=`: in hexadecimal with 0x before it, else in decimal.
fn field(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("no {name}: {line}"));
    let number = rest.split([' ', ',']).next().expect("there is always one");
    number.strip_prefix("0x").map_or_else(|| number.parse().expect("a number"), hex)
}

/// A guest that replays a trace, and the calls that it took.
struct Replay {
    guest: SpaprGuest,
    /// Calls that QEMU would make: one for each entry that is written, whatever was there (qemu: hw/ppc/spapr_iommu.c,
    /// put_tce_emu; hw/vfio/listener.c, vfio_iommu_map_notify).
    one_by_one: u64,
    hypercalls: u64,
    translations: u64,
}

impl Replay {
    fn page(&self, liobn: u64) -> u64 {
        let windows = self.guest.windows();
        let window = windows.iter().find(|window| u64::from(window.liobn.get()) == liobn).expect("it is there");
        window.page.bytes()
    }

    /// Replays a line, and finds the result that is in it.
    fn play(&mut self, line: &str) {
        let (event, rest) = line.split_once(' ').expect("an event");
        match event {
            "spapr_iommu_pci_put" => {
                let (liobn, ioba, tce) = (field(rest, "liobn"), field(rest, "ioba"), field(rest, "tce"));
                self.count(1);
                assert_eq!(self.guest.put(liobn, ioba, tce), field(rest, "ret") as i64, "{line}");
            }
            "spapr_iommu_pci_indirect" => {
                let (liobn, ioba, list) = (field(rest, "liobn"), field(rest, "ioba"), field(rest, "tcelist"));
                let (last, page) = (field(rest, "iobaN"), self.page(liobn));
                let entries: Vec<_> = (0..=last).map(|n| field(rest, "tceN") - (last - n) * page).collect();
                self.count(last + 1);
                assert_eq!(self.guest.put_list(liobn, ioba, list, &entries), field(rest, "ret") as i64, "{line}");
            }
            "spapr_iommu_pci_stuff" => {
                let (liobn, count) = (field(rest, "liobn"), field(rest, "npages"));
                // QEMU prints where it ended.
                let ioba = field(rest, "ioba") - count * self.page(liobn);
                self.count(count);
                let code = self.guest.stuff(liobn, ioba, field(rest, "tcevalue"), count);
                assert_eq!(code, field(rest, "ret") as i64, "{line}");
            }
            "spapr_iommu_xlate" => self.translate(rest),
            // The guest's log of the same call has more details.
            "spapr_iommu_ddw_query" => assert_eq!(self.guest.query()[1].to_string(), between(rest, ", ", " windows")),
            "spapr_iommu_ddw_create" => {}
            "guest" => self.call(rest),
            _ => panic!("not an event of these: {line}"),
        }
    }

    fn count(&mut self, entries: u64) {
        self.hypercalls += 1;
        self.one_by_one += entries;
    }

    /// A device's translation. QEMU counts from the window's first byte, and prints the page that is reached.
    fn translate(&mut self, rest: &str) {
        let liobn = Liobn::new(u32::try_from(field(rest, "liobn")).expect("a LIOBN"));
        let [_, at, _, target, ..] = rest.split(' ').collect::<Vec<_>>()[..] else { panic!("no translation: {rest}") };
        let (at, target, mask) = (hex(at), hex(target), field(rest, "mask"));
        let windows = self.guest.windows();
        let window = windows.iter().find(|window| window.liobn == liobn).expect("it is there");
        assert_eq!(window.page.bytes() - 1, mask, "{rest}");
        let mut access = Access::empty();
        access.set(Access::READ, field(rest, "perm") & 1 != 0);
        access.set(Access::WRITE, field(rest, "perm") & 2 != 0);
        let at = Iova::new(window.range.first().get() + at);
        let translated = self.guest.bridge().tables().translate(liobn, at, access).expect("it is there");
        let translated = translated.map(|(reached, allowed)| (reached.get() & !mask, allowed));
        assert_eq!(translated, Ok((target, access)), "{rest}");
        self.translations += 1;
    }

    /// A call as the guest's log has it: name, token, arguments, result.
    fn call(&mut self, text: &str) {
        let (call, results) = text.split_once(" returned ").expect("a result");
        let (name, arguments) = call.split_once(") ").expect("a token and arguments");
        let token = u32::try_from(hex(between(name, "(", ""))).expect("a token");
        let arguments: Vec<_> = arguments.split(' ').map(|text| u32::try_from(hex(text)).expect("a cell")).collect();
        assert_eq!(arguments[1..3], UNIT);
        if name.starts_with("ibm,query") {
            let (answer, _) = self.guest.rtas(token, &arguments, 6);
            let most = (u64::from(answer[2]) << 32) | u64::from(answer[3]);
            let said = format!("{}, lb={most:x} ps={:x} wn={}", answer[0] as i32, answer[4], answer[1]);
            assert_eq!(said, results, "{text}");
        } else {
            let (answer, why) = self.guest.rtas(token, &arguments, 4);
            // Linux prints old values of its variables when there is no result.
            let shown = if answer[0] == 0 { [answer[1], answer[2], answer[3]] } else { [0; 3] };
            let [liobn, high, low] = shown;
            let said = format!("{} (liobn = {liobn:#x} starting addr = {high:x} {low:x})", answer[0] as i32);
            assert_eq!(said, results, "{text}: {why:?}");
        }
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).expect("the text before it");
    if after.is_empty() { rest } else { rest.split_once(after).expect("the text after it").0 }
}

/// The calls that a trace took.
#[derive(Debug, PartialEq)]
struct Took {
    hypercalls: u64,
    translations: u64,
    one_by_one: u64,
    maps: u64,
    unmaps: u64,
    /// The host's windows at the end.
    windows: usize,
}

/// Plays a trace on a POWER host, for a guest that is offered pages of those sizes.
fn replay(trace: &str, page_sizes: u64) -> Took {
    let soft = host("powernv9");
    let opened = open(&soft, BackendKind::Spapr);
    let space = opened.space.space().as_ref();
    let mut layout = Layout::pseries(0);
    layout.page_sizes = PageSizes::from_mask(page_sizes).expect("some");
    let mut guest = SpaprGuest::with_ram(layout, 512 * MIB);
    guest.attach(&opened).expect("an empty view fits");
    assert_eq!(guest.reset(), 0);
    soft.reset_calls();
    let mut replay = Replay { guest, one_by_one: 0, hypercalls: 0, translations: 0 };
    for (number, line) in lines(trace).iter().enumerate() {
        replay.play(line);
        if number % 64 == 0 {
            assert_eq!(replay.guest.says(), replay.guest.has(space), "{line}");
        }
    }
    assert_eq!(replay.guest.says(), replay.guest.has(space));
    let (calls, windows) = (soft.calls(), windows_of(space).len());
    let Replay { one_by_one, hypercalls, translations, .. } = replay;
    let took = Took { hypercalls, translations, one_by_one, maps: calls.of(MAP), unmaps: calls.of(UNMAP), windows };
    println!("{took:?}");
    took
}

#[test]
fn linux_that_maps_page_by_page_gets_qemu_s_answers_in_fewer_calls() {
    let took = replay(include_str!("../data/pseries-linux-4k.trace"), 0x121_1000);
    let (maps, unmaps) = (618, 309);
    let counted = Took { hypercalls: 1439, translations: 582, one_by_one: 263_856, maps, unmaps, windows: 1 };
    assert_eq!(took, counted);
}

#[test]
fn linux_that_maps_all_of_its_memory_at_once_gets_it_in_one_call() {
    let took = replay(include_str!("../data/pseries-linux-16m.trace"), 0x121_1000);
    let (maps, unmaps) = (1, 0);
    assert_eq!(took, Took { hypercalls: 513, translations: 3, one_by_one: 262_176, maps, unmaps, windows: 2 });
}

#[test]
fn linux_that_maps_all_of_its_memory_in_lists_gets_each_in_one_call() {
    let took = replay(include_str!("../data/pseries-linux-64k.trace"), 0x1_1000);
    let (maps, unmaps) = (16, 0);
    assert_eq!(took, Took { hypercalls: 528, translations: 35, one_by_one: 270_336, maps, unmaps, windows: 2 });
}
