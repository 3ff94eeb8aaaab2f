//! `dmaspace plan`: memory maps as QEMU makes them, fates as the listener tells them, budgets as kernels count them.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

mod running;

use serde_json::Value;

use running::{files_in, json, run, status, stderr, stdout};

const GIB: u64 = 1 << 30;
const AMD: &str = "field/hosts/amd-epyc.json";

fn plan(arguments: &[&str]) -> Value {
    json(&run(&[&["plan", "--json"], arguments].concat()))
}

/// The ranges that devices can be given, and those where they interrupt: first, last, kind.
fn ranges(object: &Value) -> Vec<[String; 3]> {
    let sections = object["sections"].as_array().expect("a list");
    let matter = sections.iter().filter(|section| section["kind"] != "i/o" || section["fate"] == "msi");
    matter
        .map(|section| ["first", "last", "kind"].map(|field| section[field].as_str().expect("text").to_owned()))
        .collect()
}

#[test]
fn memory_maps_are_those_of_qemu() {
    let cases: [(&str, &[&str]); 12] = [
        ("q35-2815", &["--memory", "2815M"]),
        ("q35-2816", &["--memory", "2816M"]),
        ("pc-3583", &["--machine", "pc", "--memory", "3583M"]),
        ("pc-3584", &["--machine", "pc", "--memory", "3584M"]),
        ("q35-hot", &["--memory", "8G", "--maxmem", "10G", "--slots", "4"]),
        ("microvm", &["--machine", "microvm", "--memory", "8G"]),
        ("microvm-3g", &["--machine", "microvm", "--memory", "3G"]),
        ("q35-amd", &["--memory", "1100G", "--host", AMD]),
        ("q35-amd-edge", &["--memory", "978G", "--host", AMD]),
        ("q35-amd-edge2", &["--memory", "979G", "--host", AMD]),
        ("pc-amd-edge", &["--machine", "pc", "--memory", "1008G", "--host", AMD]),
        ("pc-amd-edge2", &["--machine", "pc", "--memory", "1009G", "--host", AMD]),
    ];
    for (file, arguments) in cases {
        let file = format!("plan/{file}.mtree");
        let expected = ranges(&json(&run(&["replay", "--json", &file])));
        assert_eq!(ranges(&plan(arguments)), expected, "{file}");
    }
}

#[test]
fn room_for_memory_that_is_plugged_in_moves_the_rest() {
    // Of 480 GiB of room, 2 GiB are in use in this view.
    let expected = ranges(&json(&run(&["replay", "--json", "plan/q35-amd-hot.mtree"])));
    let arguments = ["--memory", "500G", "--maxmem", "980G", "--slots", "2", "--host", AMD];
    let planned = ranges(&plan(&arguments));
    assert_eq!(planned.len(), expected.len());
    assert_eq!(planned[..planned.len() - 1], expected[..expected.len() - 1]);
    assert_eq!(planned.last().map(|range| &range[0]), expected.last().map(|range| &range[0]));
}

#[test]
fn an_arm_machine_has_its_memory_at_1_gib_and_bars_in_its_high_window() {
    let expected = ranges(&json(&run(&["replay", "--json", "field/virt-3g-qemu11.mtree"])));
    let object =
        plan(&["--machine", "virt", "--memory", "3G", "--bar", "256M", "--host", "field/hosts/arm64-smmuv3.json"]);
    let planned = ranges(&object);
    let ram = |ranges: &[[String; 3]]| ranges.iter().filter(|range| range[2] == "ram").cloned().collect::<Vec<_>>();
    assert_eq!(ram(&planned), ram(&expected));
    let bar = planned.iter().find(|range| range[2] == "ramd").expect("a BAR");
    assert_eq!(bar[0], "0x8000000000");
    assert_eq!(object["ok"], true);
}

/// The verdict of a plan for one device is that of a replay.
#[test]
fn a_guest_fits_where_its_replay_is_in_force() {
    let (mut fits, mut does_not) = (0, 0);
    for host in files_in("field/hosts").iter().filter(|host| host.ends_with(".json")) {
        let host = format!("field/hosts/{host}");
        for file in
            files_in("field").iter().filter(|file| file.ends_with("qemu11.mtree") || file.ends_with("amd-1t.mtree"))
        {
            let file = format!("field/{file}");
            let replayed = run(&["replay", "--json", &file, "--host", &host]);
            let planned = run(&["plan", "--json", &file, "--host", &host]);
            assert_eq!(status(&planned), status(&replayed), "{file} on {host}: {}", stderr(&planned));
            // Bad input, or a device that the firmware keeps.
            if stdout(&replayed).is_empty() {
                assert_eq!(stderr(&planned), stderr(&replayed), "{file} on {host}");
                continue;
            }
            let fates = |object: &Value| object["sections"].clone();
            let ok = json(&replayed)["ok"] == true;
            if ok {
                assert_eq!(fates(&json(&planned)), fates(&json(&replayed)), "{file} on {host}");
                fits += 1;
            } else {
                does_not += 1;
            }
        }
    }
    assert!(fits > 20 && does_not > 10, "{fits} and {does_not}");
}

fn needed(object: &Value) -> (u64, &str) {
    let locked = &object["budget"]["locked_memory"];
    (locked["needed"].as_u64().expect("a number"), locked["charged_to"].as_str().expect("a word"))
}

#[test]
fn type1_pins_once_for_each_container_and_charges_the_process() {
    let one = plan(&["--memory", "8G", "--devices", "2", "--backend", "type1"]);
    let two = plan(&["--memory", "8G", "--devices", "2", "--backend", "type1", "--viommu"]);
    let (bytes, payer) = needed(&one);
    assert!(bytes > 8 * GIB && bytes < 8 * GIB + (1 << 20), "{bytes}");
    assert_eq!((payer, needed(&two)), ("process", (2 * bytes, "process")));
    assert_eq!(two["budget"]["locked_memory"]["one_container"], bytes);
    assert_eq!((&one["containers"], &two["containers"]), (&Value::from(1), &Value::from(2)));
    assert_eq!(one["budget"]["mappings"], two["budget"]["mappings"]);
    assert_eq!(one["budget"]["mappings"]["limit"], 65_535);
}

#[test]
fn iommufd_charges_the_user_and_limits_no_mappings() {
    let object = plan(&["--memory", "8G", "--backend", "iommufd"]);
    assert_eq!(needed(&object).1, "user");
    assert_eq!(object["budget"]["mappings"], Value::Null);
    assert_eq!(object["budget"]["tce_tables"], Value::Null);
}

/// Memory is registered once for a process; tables are charged for each container (linux: drivers/vfio/
/// vfio_iommu_spapr_tce.c, tce_iommu_create_table; arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc).
#[test]
fn power_registers_memory_once_and_charges_the_tables_of_each_bridge() {
    const TABLES_OF_ONE: u64 = (4096 + 262_272) << 10;
    for (devices, count) in [("1", 1), ("4", 4)] {
        let object = plan(&["--machine", "pseries", "--memory", "512G", "--maxmem", "1T", "--devices", devices]);
        assert_eq!(object["budget"]["tce_tables"]["bytes"], count * TABLES_OF_ONE);
        assert_eq!(needed(&object), ((1 << 40) + count * TABLES_OF_ONE, "process"));
        let levels: Vec<_> = object["budget"]["tce_tables"]["each"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|table| &table["levels"])
            .collect();
        assert_eq!(levels, [1, 2]);
    }
}

#[test]
fn the_older_backend_of_power_is_charged_its_whole_window() {
    let object = plan(&["--machine", "pseries", "--memory", "4G", "--host", "powernv9", "--backend", "spapr-v1"]);
    // Its one window has no room for the one that Linux asks for.
    assert_eq!((&object["ok"], &object["budget"]), (&Value::from(false), &Value::Null));
}

#[test]
fn a_limit_that_is_too_low_is_named_with_its_cure() {
    let output = run(&["plan", "--memory", "4G", "--host", "field/hosts/memlock-3g.json"]);
    let text = stdout(&output);
    assert_eq!(status(&output), 1);
    assert!(text.contains("only 3 GiB (3221225472) are allowed") && text.contains("ulimit -l 4194560,"), "{text}");
    assert!(text.ends_with("\nThe guest does not fit: the host allows too little.\n"), "{text}");
}

#[test]
fn a_guest_in_the_hole_has_a_budget_for_when_it_is_cured() {
    let object = plan(&["--memory", "1100G", "--host", AMD, "--amd-hole", "ignore"]);
    assert_eq!((object["ok"].as_bool(), needed(&object).0 >> 30), (Some(false), 1100));
    let cure = object["cures"][0]["cure"].as_str().expect("text");
    assert!(cure.contains("pc-q35-7.1"), "{cure}");
    assert_eq!(plan(&["--memory", "1100G", "--host", AMD])["ok"], true);
}

#[test]
fn large_bars_are_out_of_reach_where_firmware_puts_them_high() {
    let on = [
        "--memory",
        "32G",
        "--devices",
        "2",
        "--bar",
        "16G",
        "--host",
        "field/hosts/vtd-39bit.json",
        "--backend",
        "type1",
    ];
    let low = run(&[&["plan"], &on[..]].concat());
    let high = run(&[&["plan", "--phys-bits", "46"], &on[..]].concat());
    assert!(stdout(&low).ends_with("\nThe guest fits.\n"), "{}", stdout(&low));
    assert!(stdout(&high).contains("0x380000000000") && stdout(&high).contains("host-phys-bits-limit=39"));
    assert!(stdout(&high).ends_with("The guest fits, but 2 BARs will be out of the other devices' reach.\n"));
}

#[test]
fn an_impossible_machine_is_bad_input() {
    for arguments in [
        &["--memory", "1M"][..],
        &["--memory", "8G", "--maxmem", "4G"],
        &["--memory", "8G", "--bar", "3G"],
        &["--memory", "8G", "--machine", "microvm", "--maxmem", "9G"],
        &[
            "--memory", "1024T", "--maxmem", "1024T", "--bar", "1024T", "--bar", "1024T", "--bar", "1024T", "--bar",
            "1024T",
        ],
        &["--memory", "8G", "--devices", "0"],
        &["--memory", "8"],
        &[],
    ] {
        let output = run(&[&["plan"], arguments].concat());
        assert_eq!((status(&output), stdout(&output)), (2, ""), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty());
    }
}

/// Whatever this machine is.
#[test]
fn this_machine_is_a_host_or_the_reason_is_told() {
    let output = run(&["plan", "--memory", "1G", "--host", "here"]);
    let told = if status(&output) == 0 { "The guest fits" } else { "" };
    assert!(stdout(&output).contains(told) && status(&output) < 2, "{output:?}");
    assert!(!stdout(&output).is_empty() || stderr(&output).starts_with("error: "), "{output:?}");
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    for arguments in [
        &[
            "--memory",
            "1100G",
            "--host",
            AMD,
            "--amd-hole",
            "ignore",
            "--backend",
            "type1",
            "--devices",
            "8",
            "--viommu",
        ][..],
        &["--machine", "pseries", "--memory", "1T", "--devices", "3"],
    ] {
        let output = run(&[&["plan"], arguments].concat());
        for line in stdout(&output).lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}
