//! The program, run as people and scripts run it: arguments in, text and exit status out.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

mod running;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use running::{DATA, command_in, fed, json, program, status, stderr, stdout};

/// `dmaspace replay` with these arguments, in the directory of the test data.
fn replay(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program is there")
}

fn command(arguments: &[&str]) -> Command {
    command_in(DATA, &[&["replay"], arguments].concat())
}

fn replay_text(text: &[u8], arguments: &[&str]) -> Output {
    fed(command(&[arguments, &["-"]].concat()), text)
}

/// What becomes of each range, as one word each.
fn fates(object: &Value) -> String {
    let sections = object["sections"].as_array().expect("a list");
    sections.iter().map(|section| section["fate"].as_str().expect("a word")).collect::<Vec<_>>().join(" ")
}

/// The host's windows as text: `0x0..=0xfff: 4096`.
fn windows(object: &Value) -> Vec<String> {
    let window = |window: &Value| {
        let sizes: Vec<_> = window["page_sizes"].as_array().expect("a list").iter().map(Value::to_string).collect();
        format!("{}..={}: {}", window["first"].as_str().unwrap(), window["last"].as_str().unwrap(), sizes.join(" "))
    };
    object["windows"].as_array().expect("a list").iter().map(window).collect()
}

fn numbers<const N: usize>(object: &Value, fields: [&str; N]) -> [u64; N] {
    fields.map(|field| object[field].as_u64().unwrap_or_else(|| panic!("{field} in {object}")))
}

/// map, unmap, register, unregister, create and remove windows.
fn calls(object: &Value) -> [u64; 6] {
    numbers(&object["calls"], ["map", "unmap", "register", "unregister", "create_window", "remove_window"])
}

/// mapped, pinned, tables, disturbed.
fn bytes(object: &Value) -> [u64; 4] {
    numbers(&object["bytes"], ["mapped", "pinned", "tables", "disturbed"])
}

/// A file on a host, and everything that has to come out.
struct Case {
    file: &'static str,
    on: &'static [&'static str],
    backend: &'static str,
    windows: &'static [&'static str],
    fates: &'static str,
    calls: [u64; 6],
    bytes: [u64; 4],
}

impl Case {
    fn check(&self) {
        let file = format!("mtree/{}.mtree", self.file);
        let output = replay(&[&[file.as_str(), "--json"], self.on].concat());
        let object = json(&output);
        let what = format!("{} on {:?}: {object}", self.file, self.on);
        let refused = self.fates.contains("refused");
        assert_eq!(status(&output), i32::from(refused), "{what}");
        assert_eq!(object["ok"], !refused, "{what}");
        assert_eq!(object["input"]["file"], file, "{what}");
        assert_eq!(object["backend"], self.backend, "{what}");
        assert_eq!(windows(&object), self.windows, "{what}");
        assert_eq!(fates(&object), self.fates, "{what}");
        assert_eq!(calls(&object), self.calls, "{what}");
        assert_eq!(bytes(&object), self.bytes, "{what}");
    }
}

const VTD_TYPE1: &[&str] = &["--host", "vtd", "--backend", "type1"];
const VTD_IOMMUFD: &[&str] = &["--host", "vtd", "--backend", "iommufd"];
const POWERNV9: &[&str] = &["--host", "powernv9"];
const POWERNV9_64K: &[&str] = &["--host", "powernv9-64k"];
const PSERIES: &[&str] = &["--host", "pseries"];

const WINDOWS_OF_TYPE1: &[&str] =
    &["0x0..=0xfedfffff: 4096 2097152 1073741824", "0xfef00000..=0xffffffffffff: 4096 2097152 1073741824"];
const WINDOWS_OF_IOMMUFD: &[&str] = &["0x0..=0xfedfffff: 4096", "0xfef00000..=0xffffffffffff: 4096"];

const PC: &str = "mapped mapped mapped mapped skipped skipped msi mapped";
const Q35: &str = "mapped mapped mapped mapped skipped skipped msi mapped mapped";
const Q35_WITH_IOMMU: &str = "mapped mapped mapped mapped skipped skipped skipped msi mapped mapped";
const Q35_WITH_BAR: &str =
    "mapped mapped mapped mapped mapped skipped mapped skipped skipped skipped skipped msi mapped";
const Q35_WITHOUT_BAR: &str =
    "mapped mapped mapped mapped mapped skipped skipped skipped skipped skipped skipped msi mapped";

/// 3 GiB and 256 KiB of firmware, 8 GiB likewise, 256 MiB likewise, the BAR.
const RAM_3G: u64 = 0xc000_0000 + 0x4_0000;
const RAM_8G: u64 = 0x2_0000_0000 + 0x4_0000;
const RAM_256M: u64 = 0x1000_0000 + 0x4_0000;
const BAR: u64 = 0x10_0000;

/// Firmware that is seen twice is registered once.
const SEEN_TWICE: u64 = 0x2_0000;

#[test]
fn a_pc_on_a_pc() {
    // 64 of the calls are the 4 KiB pieces of 0xc0000..=0xfffff, and long stretches are cut at every GiB.
    let case = |file, on, fates, calls, bytes| {
        let type1 = on == VTD_TYPE1;
        let (backend, windows) = if type1 { ("type1", WINDOWS_OF_TYPE1) } else { ("iommufd", WINDOWS_OF_IOMMUFD) };
        Case { file, on, backend, windows, fates, calls: [calls, 0, 0, 0, 0, 0], bytes }
    };
    for on in [VTD_TYPE1, VTD_IOMMUFD] {
        case("pc-3g", on, PC, 69, [RAM_3G, RAM_3G, 0, 0]).check();
        case("q35-8g", on, Q35, 74, [RAM_8G, RAM_8G, 0, 0]).check();
        case("q35-vtd-8g", on, Q35_WITH_IOMMU, 74, [RAM_8G, RAM_8G, 0, 0]).check();
    }
    case("q35-256m-vfio-bar", VTD_TYPE1, Q35_WITH_BAR, 68, [RAM_256M + BAR, RAM_256M, 0, 0]).check();
    case("q35-256m-vfio-bar", VTD_IOMMUFD, Q35_WITHOUT_BAR, 67, [RAM_256M, RAM_256M, 0, 0]).check();
}

#[test]
fn a_pc_on_a_power_host() {
    let case = |file, on, fates, window, calls, bytes| Case {
        file,
        on,
        backend: "spapr",
        windows: window,
        fates,
        calls,
        bytes,
    };
    let window_4g: &[&str] = &["0x0..=0xffffffff: 4096"];
    let window_16g: &[&str] = &["0x0..=0x3ffffffff: 4096"];
    // Two levels of tables in blocks of a host page at least, twice.
    let (table_4g, table_16g) = (0x100_4000, 0x400_8000);
    let pinned = |ram| ram - SEEN_TWICE;
    case("pc-3g", POWERNV9, PC, window_4g, [5, 0, 4, 0, 1, 1], [RAM_3G, pinned(RAM_3G), table_4g, 0]).check();
    case("q35-8g", POWERNV9, Q35, window_16g, [6, 0, 4, 0, 1, 1], [RAM_8G, pinned(RAM_8G), table_16g, 0]).check();
    let bytes = [RAM_256M, RAM_256M, table_4g, 0];
    case("q35-256m-vfio-bar", POWERNV9, Q35_WITHOUT_BAR, window_4g, [6, 0, 2, 0, 1, 1], bytes).check();
}

#[test]
fn a_pc_without_hints_gets_larger_pages_where_its_ranges_allow() {
    let on: &[&str] = &["--host", "powernv9-64k", "--no-hints"];
    let object = json(&replay(&[&["mtree/q35-8g.mtree", "--json"], on].concat()));
    assert_eq!(windows(&object), ["0x0..=0x3ffffffff: 65536"]);
    let object = json(&replay(&[&["mtree/q35-256m-vfio-bar.mtree", "--json"], on].concat()));
    assert_eq!(windows(&object), ["0x0..=0xffffffff: 4096"]);
}

#[test]
fn a_pc_on_a_host_whose_one_large_window_lies_high_is_refused() {
    let refused = PC.replace("mapped", "refused");
    let output = replay(&["mtree/pc-3g.mtree", "--json", "--host", "pseries"]);
    assert_eq!((status(&output), fates(&json(&output))), (1, refused));
    assert_eq!(bytes(&json(&output)), [0; 4]);
}

#[test]
fn a_pseries_guest_on_power_hosts() {
    const LOW: &str = "0x0..=0x3fffffff: 4096";
    let (one, two) = ("window msi registered", "window msi window registered");
    let (calls_one, calls_two) = ([0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 2, 1]);
    let case = |file, on, windows, fates, calls, tables| Case {
        file,
        on,
        backend: "spapr",
        windows,
        fates,
        calls,
        bytes: [0, 1 << 32, tables, 0],
    };
    let high: &[&str] = &[LOW, "0x800000000000000..=0x80000003fffffff: 4096"];
    let high_64k: &[&str] = &[LOW, "0x800000000000000..=0x80000003fffffff: 65536"];
    for (on, table) in [(POWERNV9, 0x40_2000), (POWERNV9_64K, 0x40_0000), (PSERIES, 0x20_0000)] {
        case("pseries-4g-reset", on, &[LOW], one, calls_one, table).check();
    }
    case("pseries-4g-two-windows", POWERNV9, high, two, calls_two, 2 * 0x40_2000).check();
    case("pseries-4g-two-windows", POWERNV9_64K, high_64k, two, calls_two, 0x40_0000 + 0x4_0000).check();
    case("pseries-4g-two-windows", PSERIES, high, two, calls_two, 2 * 0x20_0000).check();
}

#[test]
fn a_pseries_guest_on_a_pc() {
    for (on, backend, windows) in [(VTD_TYPE1, "type1", WINDOWS_OF_TYPE1), (VTD_IOMMUFD, "iommufd", WINDOWS_OF_IOMMUFD)]
    {
        let case = |file, fates| Case { file, on, backend, windows, fates, calls: [0; 6], bytes: [0; 4] };
        case("pseries-4g-reset", "window msi skipped").check();
        case("pseries-4g-two-windows", "window msi refused skipped").check();
    }
    let output = replay(&["mtree/pseries-4g-two-windows.mtree", "--json", "--host", "vtd"]);
    let reason = json(&output)["sections"][2]["reason"].as_str().expect("a reason").to_owned();
    assert_eq!(reason, "above the host's top address 0xffffffffffff; 0x100000000..=0x13fffffff would do");
    assert!(stderr(&output).contains(&reason));
}

#[test]
fn the_json_object_keeps_its_documented_form() {
    let output = replay(&["mtree/pseries-4g-reset.mtree", "--json", "--host", "powernv9"]);
    let expected = concat!(
        r#"{"schema":"dmaspace/replay","version":1,"ok":true,"#,
        r#""input":{"file":"mtree/pseries-4g-reset.mtree","address_space":"pci@800000020000000"},"#,
        r#""backend":"spapr","windows":[{"first":"0x0","last":"0x3fffffff","page_sizes":[4096]}],"sections":["#,
        r#"{"space":"pci","first":"0x0","last":"0x3fffffff","name":"tce-iommu-80000000","kind":"i/o","fate":"window","#,
        r#""reason":"the host's window 0x0..=0x3fffffff with 4K pages, which are the guest's","#,
        r#""lost_head":0,"lost_tail":0},"#,
        r#"{"space":"pci","first":"0x40000000000","last":"0x40000000fff","name":"msi","kind":"i/o","fate":"msi","#,
        r#""reason":"a write here is an interrupt","lost_head":0,"lost_tail":0},"#,
        r#"{"space":"memory","first":"0x0","last":"0xffffffff","name":"ppc_spapr.ram","kind":"ram","#,
        r#""fate":"registered","#,
        r#""reason":"entries may point to it","lost_head":0,"lost_tail":0}],"#,
        r#""calls":{"map":0,"unmap":0,"register":1,"unregister":0,"create_window":1,"remove_window":1},"#,
        r#""bytes":{"mapped":0,"pinned":4294967296,"tables":4202496,"disturbed":0}}"#,
        "\n"
    );
    assert_eq!(stdout(&output), expected);
}

#[test]
fn ranges_are_told_one_by_one_with_the_words_of_the_file() {
    let object = json(&replay(&["mtree/q35-256m-vfio-bar.mtree", "--json"]));
    let of = |field: &str| -> Vec<String> {
        object["sections"].as_array().unwrap().iter().map(|section| section[field].as_str().unwrap().into()).collect()
    };
    let kinds = "ram rom ram rom ram i/o ramd i/o i/o i/o i/o i/o rom";
    assert_eq!(of("kind").join(" "), kinds);
    assert_eq!(of("name")[6], "0000:00:03.0 BAR 0 mmaps[0]");
    assert_eq!((of("first")[6].as_str(), of("last")[6].as_str()), ("0xfea00000", "0xfeafffff"));
    assert!(of("reason").iter().all(|reason| !reason.is_empty()));
    assert!(of("space").iter().all(|space| space == "pci"));
}

#[test]
fn a_bar_that_is_skipped_is_worth_a_warning_and_nothing_else() {
    let output = replay(&["mtree/q35-256m-vfio-bar.mtree", "--host", "vtd", "--backend", "iommufd"]);
    assert_eq!(status(&output), 0);
    let warning = "warning: 0xfea00000..=0xfeafffff (0000:00:03.0 BAR 0 mmaps[0]): skipped: iommufd cannot map";
    assert!(stderr(&output).starts_with(warning), "{output:?}");
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn ends_that_are_no_whole_pages_are_lost_and_named() {
    let text = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  \
                0000000000000000-00000000000013ff (prio 0, ram): mem\n  \
                0000000000100800-0000000000101fff (prio 0, ramd): 0000:00:03.0 BAR 0 mmaps[1] @0000000000000800\n";
    let output = replay_text(text.as_bytes(), &["--json", "--host", "vtd", "--backend", "type1"]);
    let object = json(&output);
    assert_eq!((status(&output), fates(&object)), (0, "mapped mapped".to_owned()));
    let lost = |n: usize| numbers(&object["sections"][n], ["lost_head", "lost_tail"]);
    assert_eq!((lost(0), lost(1)), ([0, 0x400], [0x800, 0]));
    assert_eq!(bytes(&object)[..2], [0x2000, 0x1000]);
    assert_eq!(stderr(&output).lines().filter(|line| line.starts_with("warning: ")).count(), 2);
}

#[test]
fn without_hints_a_mapping_is_as_long_as_its_range() {
    let object = json(&replay(&["mtree/q35-8g.mtree", "--json", "--host", "vtd", "--no-hints"]));
    assert_eq!(calls(&object)[0], 6);
}

#[test]
fn a_guest_is_replayed_on_the_host_of_its_kind_unless_the_user_names_another() {
    let backend = |file: &str| json(&replay(&[file, "--json"]))["backend"].clone();
    assert_eq!(backend("mtree/pseries-4g-reset.mtree"), "spapr");
    assert_eq!(backend("mtree/q35-8g.mtree"), "iommufd");
}

#[test]
fn the_guests_page_can_be_said() {
    let page = |page: &str| {
        let on = ["mtree/pseries-4g-two-windows.mtree", "--json", "--host", "powernv9-64k", "--guest-page", page];
        windows(&json(&replay(&on)))[1].clone()
    };
    assert!(page("4K").ends_with(": 4096"));
    assert!(page("16M").ends_with(": 65536"));
    assert_eq!(status(&replay(&["mtree/q35-8g.mtree", "--guest-page", "5K"])), 2);
}

#[test]
fn an_address_space_can_be_chosen() {
    let on = ["mtree/q35-vtd-8g.mtree", "--json", "--address-space"];
    let of = |name| json(&replay(&[&on[..], &[name]].concat()));
    let object = of("vtd-root");
    assert_eq!((object["input"]["address_space"].as_str(), fates(&object)), (Some("vtd-root"), Q35_WITH_IOMMU.into()));
    let empty = of("edu");
    assert_eq!((fates(&empty), calls(&empty), bytes(&empty)), (String::new(), [0; 6], [0; 4]));
    let unknown = replay(&[&on[..], &["vtd"]].concat());
    assert_eq!(status(&unknown), 2);
    assert!(stderr(&unknown).contains("there are: memory, cpu-memory-0, vtd-root, mch,"), "{unknown:?}");
}

#[test]
fn an_emulated_iommus_range_is_a_window_as_far_as_the_host_reaches() {
    let text = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  \
                0000000000000000-000000007fffffff (prio 0, ram): pc.ram\n\n\
                FlatView #1\n AS \"vtd-root\", root: vtd-03.0\n Root memory region: vtd-03.0\n  \
                0000000000000000-00000000fedfffff (prio 0, i/o): vtd-03.0-dmar\n  \
                00000000fee00000-00000000feefffff (prio 1, i/o): vtd-ir\n  \
                00000000fef00000-ffffffffffffffff (prio 0, i/o): vtd-03.0-dmar @00000000fef00000\n";
    let object = json(&replay_text(text.as_bytes(), &["--json", "--host", "vtd", "--address-space", "vtd-root"]));
    assert_eq!(fates(&object), "window msi window skipped");
    let reason = object["sections"][2]["reason"].as_str().expect("a reason");
    assert!(reason.contains("0xfef00000..=0xffffffffffff"), "{reason}");
}

#[test]
fn six_tebibytes_replay_at_once() {
    let text = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  \
                0000000000000000-000000007fffffff (prio 0, ram): mem\n  \
                0000000100000000-000006007fffffff (prio 0, ram): mem @0000000080000000\n";
    for on in [VTD_TYPE1, VTD_IOMMUFD, POWERNV9] {
        let begun = Instant::now();
        let output = replay_text(text.as_bytes(), &[&["--json"], on].concat());
        assert!(begun.elapsed() < Duration::from_secs(20), "{on:?}: {:?}", begun.elapsed());
        assert_eq!((status(&output), bytes(&json(&output))[0]), (0, 6 << 40), "{on:?}");
    }
}

#[test]
fn a_failing_call_takes_everything_back_and_is_counted() {
    let host = "hosts/vtd-with-little-locked-memory.json";
    let output = replay(&["mtree/q35-256m-vfio-bar.mtree", "--json", "--host", host]);
    let object = json(&output);
    assert_eq!((status(&output), object["ok"].as_bool()), (1, Some(false)));
    let expected =
        "refused refused refused refused refused skipped skipped skipped skipped skipped skipped msi refused";
    assert_eq!(fates(&object), expected);
    assert_eq!((calls(&object)[0], bytes(&object)[0]), (66, 0));
    assert!(stderr(&output).contains("VFIO_IOMMU_MAP_DMA: ENOMEM"), "{output:?}");
    let reason = object["sections"][4]["reason"].as_str().expect("a reason");
    let shortage = "map 0x100000..=0xfffffff: 267386880 bytes more do not fit into the 67108864 bytes that may be \
                    locked (RLIMIT_MEMLOCK), 1048576 of them taken";
    assert!(reason.starts_with(shortage), "{reason}");

    let host = "hosts/powernv9-with-little-locked-memory.json";
    let output = replay(&["mtree/pseries-4g-reset.mtree", "--json", "--host", host]);
    assert_eq!((status(&output), fates(&json(&output))), (1, "refused msi refused".to_owned()));
    let [_, _, register, _, create, _] = calls(&json(&output));
    assert_eq!((register, create), (1, 0));
}

#[test]
fn bad_input_is_named_with_file_line_and_the_expected_form() {
    let directory = tempfile::tempdir().expect("a directory");
    let good = std::fs::read_to_string(format!("{DATA}/mtree/q35-8g.mtree")).expect("test data");
    let cases: [(&str, String, &str); 7] = [
        ("empty", String::new(), ":1: expected `FlatView #<number>`"),
        ("picture", "\u{0}PNG\n".to_owned(), ":1: expected text without control characters"),
        ("essay", "Dear all,\n".to_owned(), ":1: expected `FlatView #<number>`"),
        (
            "kind",
            good.replacen("(prio 0, ram)", "(prio 0, tape)", 1),
            ":4: expected the kind ram, rom, ramd, romd or i/o",
        ),
        ("digits", good.replacen("0000000000000000-", "00000000z0000000-", 1), ":4: expected a range"),
        ("order", good.replacen("00000000000c0000-", "0000000000010000-", 1), ":5: expected a range that begins after"),
        ("memory", good.replace("AS \"memory\"", "AS \"ram\""), ": expected an address space \"memory\""),
    ];
    for (name, text, expected) in cases {
        let file = directory.path().join(name);
        std::fs::write(&file, text).expect("a file");
        let output = replay(&[file.to_str().expect("a name"), "--json"]);
        assert_eq!((status(&output), stdout(&output)), (2, ""), "{name}");
        let place = format!("error: {}:", file.display());
        assert!(stderr(&output).starts_with(&place) && stderr(&output).contains(expected), "{name}: {output:?}");
    }
    let missing = replay(&["mtree/missing.mtree"]);
    assert_eq!(status(&missing), 2);
    assert!(stderr(&missing).starts_with("error: mtree/missing.mtree: expected a file to read"));
}

#[test]
fn a_host_that_makes_no_sense_is_bad_input() {
    let directory = tempfile::tempdir().expect("a directory");
    let good = std::fs::read_to_string(format!("{DATA}/hosts/vtd-with-little-locked-memory.json")).expect("test data");
    let cases = [
        (good.replace("\"kernel\"", "\"colonel\""), "unknown field `colonel`"),
        (good.replace("0x1000\"", "0x1001\""), "host_page"),
        (good.replace("\"0000:00:03.0\"", "\"03\""), "groups[0].devices[0].address"),
        (good.replace("\"groups\": [", "\"groups\": [],\n  \"spare\": ["), "spare"),
    ];
    for (text, expected) in cases {
        let file = directory.path().join("host.json");
        std::fs::write(&file, text).expect("a file");
        let output = replay(&["mtree/q35-8g.mtree", "--host", file.to_str().expect("a name")]);
        assert_eq!(status(&output), 2, "{expected}");
        assert!(stderr(&output).contains("host.json:") && stderr(&output).contains(expected), "{output:?}");
    }
    for host in ["mtree/q35-8g.mtree", "nowhere"] {
        assert_eq!(status(&replay(&["mtree/q35-8g.mtree", "--host", host])), 2);
    }
}

#[test]
fn a_host_that_cannot_create_windows_is_reached_the_older_way() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = std::fs::read_to_string(format!("{DATA}/hosts/powernv9-with-little-locked-memory.json")).expect("data");
    let file = directory.path().join("old.json");
    let text = text.replace("\"windows\": 2", "\"windows\": 0").replace("1073741824", "null");
    std::fs::write(&file, text).expect("a file");
    let old = file.to_str().expect("a name");
    for host in [&["--host", old][..], &["--host", "powernv9", "--backend", "spapr-v1"]] {
        let output = replay(&[&["mtree/pseries-4g-reset.mtree", "--json"], host].concat());
        let object = json(&output);
        assert_eq!((status(&output), object["backend"].as_str()), (0, Some("spapr-v1")), "{output:?}");
        assert_eq!(object["windows"][0]["last"].as_str(), Some("0x7fffffff"));
        let output = replay(&[&["mtree/pseries-4g-two-windows.mtree", "--json"], host].concat());
        assert_eq!((status(&output), fates(&json(&output))), (1, "window msi refused skipped".to_owned()));
    }
}

#[test]
fn a_backend_the_host_does_not_have_is_bad_input_with_the_reason() {
    let output = replay(&["mtree/q35-8g.mtree", "--host", "vtd", "--backend", "spapr"]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("not spapr: x86_64 machines have none"), "{output:?}");
}

#[test]
fn a_device_that_is_not_there_is_a_failure_with_the_reason() {
    let output = replay(&["mtree/pseries-4g-reset.mtree", "--device", "fffe:ff:1f.7"]);
    assert_eq!((status(&output), stdout(&output)), (1, ""));
    assert!(stderr(&output).contains("there is no device fffe:ff:1f.7"), "{output:?}");
    assert_eq!(status(&replay(&["mtree/q35-8g.mtree", "--device", "03"])), 2);
    assert_eq!(status(&replay(&["mtree/q35-8g.mtree", "--device", "00:03.0", "--host", "vtd"])), 2);
}

#[test]
fn several_files_are_replayed_one_by_one_and_the_worst_decides() {
    let files = ["mtree/pseries-4g-two-windows.mtree", "mtree/q35-8g.mtree"];
    let output = replay(&[&files[..], &["--json", "--host", "vtd"]].concat());
    let objects: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("one each")).collect();
    let named: Vec<_> =
        objects.iter().map(|object| (object["input"]["file"].as_str(), object["ok"].as_bool())).collect();
    assert_eq!(named, [(Some(files[0]), Some(false)), (Some(files[1]), Some(true))]);
    assert_eq!(status(&output), 1);
    let output = replay(&["nowhere", files[1], "--json"]);
    assert_eq!((status(&output), stdout(&output).lines().count()), (2, 1));
}

#[test]
fn people_get_a_hundred_columns_and_exact_numbers() {
    let files = ["pc-3g", "q35-8g", "q35-vtd-8g", "q35-256m-vfio-bar", "pseries-4g-reset", "pseries-4g-two-windows"];
    let files = files.map(|file| format!("mtree/{file}.mtree"));
    for host in ["vtd", "powernv9", "powernv9-64k", "pseries"] {
        let arguments: Vec<_> = files.iter().map(String::as_str).chain(["--host", host]).collect();
        let output = replay(&arguments);
        let too_wide = |line: &&str| line.chars().count() > 100 || line.ends_with(' ');
        assert_eq!(stdout(&output).lines().filter(too_wide).collect::<Vec<_>>(), [""; 0]);
    }
    let output = replay(&["mtree/q35-256m-vfio-bar.mtree", "--host", "vtd", "--backend", "type1"]);
    for line in [
        "mtree/q35-256m-vfio-bar.mtree: memory",
        "on the soft host vtd, through type1",
        "  0xfef00000  0xffffffffffff  4 KiB, 2 MiB, 1 GiB",
        "  0xfea00000  0xfeafffff  ramd  0000:00:03.0 BAR 0 mmaps[0]  mapped   read-write with 4K pages",
        "  68 map",
        "  mapped     257.2 MiB (269746176)",
        "Every required section is provided.",
    ] {
        assert!(stdout(&output).lines().any(|there| there == line), "{line} in\n{}", stdout(&output));
    }
}

#[test]
fn a_drawing_has_every_range_and_every_window() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("map.svg");
    let draw = |input: &str, host: &str| {
        let output = replay(&[input, "--host", host, "--svg", file.to_str().expect("a name")]);
        (status(&output), std::fs::read_to_string(&file).expect("a drawing"))
    };
    let (status_of_good, drawing) = draw("mtree/pseries-4g-two-windows.mtree", "powernv9");
    assert_eq!(status_of_good, 0);
    for text in ["tce-iommu-80000000", "tce-iommu-80000001", "msi (i/o)", "ppc_spapr.ram", "0x800000000000000"] {
        assert!(drawing.contains(text), "{text}");
    }
    assert_eq!(drawing.matches("in 4 KiB pages").count(), 2);
    let text =
        "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  0-fff (prio 0, ram): <a> & b\n";
    assert_eq!(status(&replay_text(text.as_bytes(), &["--svg", file.to_str().expect("a name")])), 0);
    assert!(std::fs::read_to_string(&file).expect("a drawing").contains("&lt;a&gt; &amp; b (ram), 4 KiB"));
    // What is refused is drawn as well.
    assert_eq!(draw("mtree/pseries-4g-two-windows.mtree", "vtd").0, 1);
    let nowhere = Path::new("/nonexistent/map.svg");
    let output = replay(&["mtree/q35-8g.mtree", "--svg", nowhere.to_str().expect("a name")]);
    assert_eq!(status(&output), 2);
    assert_eq!(status(&replay(&["mtree/q35-8g.mtree", "mtree/pc-3g.mtree", "--svg", "map.svg"])), 2);
}

#[test]
fn help_has_examples_and_the_exit_statuses() {
    let output = replay(&["--help"]);
    assert_eq!(status(&output), 0);
    assert!(stdout(&output).contains("Examples:") && stdout(&output).contains("Exit status:"));
    assert!(stdout(&output).lines().all(|line| line.chars().count() <= 100), "{}", stdout(&output));
}

const BOOT: &str = "traces/q35-256m-type1-boot.trace";
const RESET: &str = "traces/pseries-512m-spapr-v2-reset.trace";

/// What a trace implies, page by page, by reading it as a person would: after each step, which host page is behind
/// which bus page.
struct Implied {
    /// Bytes behind which there is another page than before, or one where there was none, summed over all steps: no
    /// less can be pinned.
    floor: u64,
    /// The bytes in all `add_ram`s: what QEMU's listener maps.
    by_qemu: u64,
    /// The ranges of RAM at the end.
    ram: BTreeMap<u64, u64>,
}

impl Implied {
    fn of(text: &str) -> Self {
        const PAGE: u64 = 0x1000;
        let mut implied = Self { floor: 0, by_qemu: 0, ram: BTreeMap::new() };
        let (mut before, mut pages) = (BTreeMap::new(), BTreeMap::new());
        let mut last_was_del = false;
        let hex = |word: &str| u64::from_str_radix(word.trim_matches(['[', ']']).trim_start_matches("0x"), 16).unwrap();
        let mut settle = |pages: &BTreeMap<u64, u64>| {
            let new = pages.iter().filter(|(at, host)| before.get(*at) != Some(*host)).count() as u64;
            implied.floor += new * PAGE;
            before = pages.clone();
        };
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["vfio_listener_region_add_ram", _, _, first, _, last, host] => {
                    let (first, last, host) = (hex(first), hex(last), hex(host));
                    implied.by_qemu += last - first + 1;
                    implied.ram.insert(first, last);
                    pages.extend((first..last).step_by(0x1000).map(|at| (at, host + (at - first))));
                    last_was_del = false;
                }
                ["vfio_listener_region_del", _, first, _, last] => {
                    if !last_was_del {
                        settle(&pages);
                    }
                    implied.ram.remove(&hex(first));
                    pages.retain(|at, _| !(hex(first)..=hex(last)).contains(at));
                    last_was_del = true;
                }
                _ => {}
            }
        }
        settle(&pages);
        implied
    }
}

fn steps(object: &Value) -> &[Value] {
    object["steps"].as_array().expect("a list")
}

fn address(object: &Value, field: &str) -> u64 {
    let text = object[field].as_str().expect("a string");
    u64::from_str_radix(text.strip_prefix("0x").expect("hexadecimal"), 16).expect("an address")
}

#[test]
fn a_boot_that_qemu_pins_five_times_is_pinned_once_and_never_disturbed() {
    let text = std::fs::read_to_string(format!("{DATA}/{BOOT}")).expect("test data");
    let implied = Implied::of(&text);
    assert_eq!((implied.floor, implied.by_qemu), (270_270_464, 1_343_672_320));
    for on in [VTD_TYPE1, VTD_IOMMUFD] {
        let output = replay(&[&[BOOT, "--json"], on].concat());
        let object = json(&output);
        assert_eq!((status(&output), object["ok"].as_bool()), (0, Some(true)), "{on:?}");
        let disturbed: Vec<_> = steps(&object).iter().map(|step| step["bytes"]["disturbed"].as_u64()).collect();
        assert_eq!(disturbed, [Some(0); 6], "{on:?}");
        let [mapped, pinned, _, disturbed] = bytes(&object);
        assert!(pinned <= implied.floor + (2 << 20), "{on:?}: {pinned}");
        assert_eq!(disturbed, 0, "{on:?}");
        assert_eq!(object["input"]["pinned_there"], implied.by_qemu, "{on:?}");
        // As the last line leaves it.
        let sections = object["sections"].as_array().expect("a list").iter();
        let ram: BTreeMap<_, _> = sections
            .filter(|section| section["fate"] == "mapped")
            .map(|section| (address(section, "first"), address(section, "last")))
            .collect();
        assert_eq!(ram, implied.ram, "{on:?}");
        assert_eq!(mapped, ram.iter().map(|(first, last)| last - first + 1).sum::<u64>(), "{on:?}");
    }
}

#[test]
fn steps_add_up() {
    for (file, on) in [(BOOT, VTD_TYPE1), (BOOT, POWERNV9), (RESET, POWERNV9_64K)] {
        let object = json(&replay(&[&[file, "--json"], on].concat()));
        let pinned: u64 = steps(&object).iter().map(|step| step["bytes"]["pinned"].as_u64().expect("a number")).sum();
        assert_eq!(pinned, bytes(&object)[1], "{file} on {on:?}");
        let maps: u64 = steps(&object).iter().map(|step| calls(step)[0]).sum();
        assert_eq!(maps, calls(&object)[0], "{file} on {on:?}");
    }
}

#[test]
fn a_pseries_guests_reset_makes_its_window_and_registers_its_memory() {
    let output = replay(&[RESET, "--json", "--host", "powernv9"]);
    let object = json(&output);
    assert_eq!((status(&output), fates(&object)), (0, "window skipped registered".to_owned()));
    assert_eq!(windows(&object), ["0x0..=0x3fffffff: 4096"]);
    assert_eq!((calls(&object), bytes(&object)), ([0, 0, 1, 0, 1, 1], [0, 0x2000_0000, 0x40_2000, 0]));
    assert_eq!(steps(&object).len(), 1);
    // Where such a guest belongs, unless somebody says otherwise; and with the page somebody says.
    assert_eq!(json(&replay(&[RESET, "--json"]))["backend"], "spapr");
    let page = json(&replay(&[RESET, "--json", "--host", "powernv9-64k", "--guest-page", "64K"]));
    assert_eq!(windows(&page), ["0x0..=0x3fffffff: 65536"]);
}

/// The object without what names the file.
fn without_input(output: &Output) -> Value {
    let mut object = json(output);
    object.as_object_mut().expect("an object").remove("input").expect("it is there");
    object
}

#[test]
fn a_recording_replays_to_the_same_outcome() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("recording.jsonl");
    let recording = file.to_str().expect("a name");
    // On the last, steps are refused, and the others go on.
    for (input, on) in [(BOOT, VTD_TYPE1), (BOOT, VTD_IOMMUFD), (BOOT, POWERNV9), (RESET, POWERNV9), (BOOT, PSERIES)] {
        let traced = replay(&[&[input, "--json", "--record", recording], on].concat());
        let recorded = replay(&[&[recording, "--json"], on].concat());
        assert_eq!(without_input(&traced), without_input(&recorded), "{input} on {on:?}");
        assert_eq!((status(&traced), status(&recorded)), (i32::from(on == PSERIES), i32::from(on == PSERIES)));
        let again = directory.path().join("again.jsonl");
        replay(&[&[recording, "--record", again.to_str().expect("a name")], on].concat());
        let text = |path: &Path| std::fs::read_to_string(path).expect("a recording");
        assert_eq!(text(&file), text(&again), "{input} on {on:?}");
    }
    // A flat view becomes a course of one step.
    let flat = json(&replay(&["mtree/q35-8g.mtree", "--json", "--record", recording]));
    let recorded = json(&replay(&[recording, "--json"]));
    assert_eq!((fates(&flat), bytes(&flat), calls(&flat)), (fates(&recorded), bytes(&recorded), calls(&recorded)));
    assert!(flat["steps"].is_null());
}

#[test]
fn a_step_that_is_refused_changes_nothing_and_the_next_one_counts() {
    let text = "vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]\n\
                vfio_listener_region_del region_del 0x0 - 0xfff\n\
                vfio_listener_region_add_ram region_add [ram] 0x0 - 0x1fff [0x7f0000000000]\n\
                vfio_listener_region_add_ram region_add [ram] 0x1000000000000000 - 0x1000000000000fff \
                [0x7f0000100000]\n\
                vfio_listener_region_del region_del 0x0 - 0x1fff\n\
                vfio_listener_region_add_ram region_add [ram] 0x1000 - 0x2fff [0x7f0000200000]\n";
    let output = replay_text(text.as_bytes(), &["--json", "--host", "vtd"]);
    let object = json(&output);
    assert_eq!((status(&output), object["ok"].as_bool()), (1, Some(false)));
    let ok: Vec<_> = steps(&object).iter().map(|step| step["ok"].as_bool().expect("a truth")).collect();
    assert_eq!(ok, [true, false, true]);
    // What the refused step would have taken away goes with the one after it.
    assert_eq!(steps(&object)[2]["removed"][0]["last"], "0xfff");
    assert_eq!((fates(&object), address(&object["sections"][0], "first")), ("mapped".to_owned(), 0x1000));
    assert!(stderr(&output).starts_with("error: step 2: 0x1000000000000000..="), "{output:?}");
    assert!(steps(&object)[1]["errors"][0].as_str().expect("text").contains("above the host's top address"));
    let told = replay_text(text.as_bytes(), &["--host", "vtd"]);
    assert!(stdout(&told).contains("  2: lines 2 to 4; refused, none of it is in force\n"), "{}", stdout(&told));
    assert!(stdout(&told).ends_with("Refused: 1 of 3 steps; nothing of them is in force.\n"), "{}", stdout(&told));
}

#[test]
fn a_step_that_failed_where_it_was_recorded_is_taken_back_where_it_does_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("recording.jsonl");
    let recording = file.to_str().expect("a name");
    replay(&[&[BOOT, "--record", recording], PSERIES].concat());
    let object = json(&replay(&[&[recording, "--json"], VTD_TYPE1].concat()));
    assert_eq!(object["input"]["failed_there"], serde_json::json!([1, 4]));
    assert_eq!(object["ok"], true);
    let there = json(&replay(&[&[recording, "--json"], PSERIES].concat()));
    assert_eq!(object["sections"].as_array().map(Vec::len), there["sections"].as_array().map(Vec::len));
}

#[test]
fn logs_hold_more_than_a_trace() {
    let text = std::fs::read_to_string(format!("{DATA}/{BOOT}")).expect("test data");
    let line = |(n, line): (usize, &str)| format!("4242@1700000000.{n:06}:{line}\r\n");
    let log: String = text.lines().enumerate().map(line).collect();
    let log = format!("qemu-system-x86_64: warning: something\r\n4242@1.2:vfio_intx_eoi  (0000:00:03.0) EOI\n\n{log}");
    let output = replay_text(log.as_bytes(), &["--json", "--host", "vtd"]);
    assert_eq!(without_input(&output), without_input(&replay(&[BOOT, "--json", "--host", "vtd"])));
    assert_eq!(json(&output)["input"]["ignored"], 2);
    let told = replay_text(log.as_bytes(), &["--host", "vtd"]);
    assert!(stdout(&told).starts_with("-: a trace of 6 steps, 2 lines passed over\n"), "{}", stdout(&told));
}

#[test]
fn a_long_trace_is_told_in_a_few_lines_and_json_has_every_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("long.trace");
    let pairs = (0..1000_u64).map(|n| {
        let (first, last) = (n * 0x1000, n * 0x1000 + 0xfff);
        format!(
            "1@1.1:vfio_listener_region_add_ram region_add [ram] {first:#x} - {last:#x} [0x7f0000000000]\n\
             1@1.2:vfio_listener_region_del region_del {first:#x} - {last:#x}\n"
        )
    });
    std::fs::write(&path, pairs.collect::<String>()).expect("written");
    let file = path.to_str().expect("text");
    let output = replay(&["--no-hints", file]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let folded = "  6 to 1000: lines 10 to 1999; each is like one of the steps above\n     995 map, 995 unmap; pinned";
    assert!(stdout(&output).contains(folded), "{}", stdout(&output));
    assert!(stdout(&output).lines().count() < 50, "{}", stdout(&output));
    let object = json(&replay(&["--no-hints", "--json", file]));
    assert_eq!(object["steps"].as_array().map(Vec::len), Some(1001));
}

#[test]
fn bad_traces_and_recordings_are_named_with_file_line_and_the_expected_form() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("input");
    let name = file.to_str().expect("a name");
    replay(&[BOOT, "--record", name]);
    let recording = std::fs::read_to_string(&file).expect("a recording");
    let trace = std::fs::read_to_string(format!("{DATA}/{BOOT}")).expect("test data");
    let cases = [
        (
            trace.replacen("0x0 - 0xfffffff", "0x0 - fffffff", 1),
            ":1: expected `vfio_listener_region_add_ram region_add",
        ),
        (
            trace.replacen("region_del 0x0 - 0xfffffff", "region_del 0x0 - 0x7ffffff", 1),
            ":7: expected a range that does not cut",
        ),
        (format!("{trace}{trace}"), ":39: expected a range that does not overlap"),
        (recording.replacen("version\":1", "version\":9", 1), ":1: expected a recording of version 1"),
        (
            recording.replacen("\"kind\":\"ram\"", "\"kind\":\"tape\"", 1),
            ":2: expected a line of a recording: unknown variant",
        ),
        (recording.lines().skip(1).collect(), ":1: expected a recording, which begins"),
        ("{".to_owned(), ":1: expected a recording, which begins"),
    ];
    for (text, expected) in cases {
        std::fs::write(&file, text).expect("a file");
        let output = replay(&[name, "--json"]);
        assert_eq!((status(&output), stdout(&output)), (2, ""), "{expected}");
        assert!(stderr(&output).starts_with(&format!("error: {name}{expected}")), "{expected}: {}", stderr(&output));
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let said = |arguments: &[&str]| {
        let output = replay(arguments);
        assert_eq!((status(&output), stdout(&output)), (2, ""), "{arguments:?}");
        stderr(&output).to_owned()
    };
    assert!(said(&[BOOT, "--address-space", "memory"]).contains("a trace has one address space"));
    assert!(said(&[BOOT, "--device", "00:03.0"]).contains("a trace has addresses and no memory"));
    assert!(said(&[BOOT, "--record", "/nonexistent/file"]).contains("/nonexistent/file: expected a file to write"));
    assert!(said(&[BOOT, RESET, "--record", "/nonexistent/file"]).contains("expected one FILE with --record"));
    assert!(said(&[BOOT, "--record", "/dev/full"]).contains("/dev/full: expected a file to write"));
}

#[test]
fn courses_fit_in_a_hundred_columns_and_can_be_drawn() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("map.svg");
    for host in ["vtd", "powernv9", "pseries"] {
        for input in [BOOT, RESET] {
            let output = replay(&[input, "--host", host, "--svg", file.to_str().expect("a name")]);
            let long = stdout(&output).lines().find(|line| line.chars().count() > 100);
            assert_eq!(long, None, "{input} on {host}");
            assert!(std::fs::read_to_string(&file).expect("a drawing").contains("(ram)"), "{input} on {host}");
        }
    }
}

#[test]
fn the_docs_have_the_outcome_of_every_flat_view_on_every_host() {
    let mut files: Vec<_> = std::fs::read_dir(format!("{DATA}/mtree")).expect("test data").flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    let files: Vec<_> = files.iter().map(std::fs::DirEntry::path).collect();
    let (first, rest) = program().split_first().expect("never empty");
    let output = Command::new(first).args(rest).arg("survey").args(&files).output().expect("the program is there");
    assert_eq!((status(&output), stderr(&output)), (0, ""));
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/flat-views.md");
    let known = std::fs::read_to_string(docs).expect("the docs are there");
    let hint = "dmaspace survey backends/tests/data/mtree/*.mtree > docs/flat-views.md";
    assert_eq!(stdout(&output), known, "if that is as it should be: {hint}");
}
