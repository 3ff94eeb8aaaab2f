//! The program on what users of passed-through devices have at hand: layouts, traces, logs and hosts of the field,
//! each as it was shown.
//!
//! `docs/field.md` is what it prints of them: with `UPDATE_DOCS=1` this test writes it anew.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

mod running;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use running::{command_in, fed, json, status, stderr, stdout};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/field");

/// `dmaspace replay` with these arguments, in the directory of the field's data.
fn replay(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program is there")
}

fn command(arguments: &[&str]) -> Command {
    command_in(DATA, &[&["replay"], arguments].concat())
}

fn replay_text(text: &[u8], arguments: &[&str]) -> Output {
    fed(command(&[arguments, &["-"]].concat()), text)
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(format!("{DATA}/{file}")).expect("test data")
}

/// The files of the field, without the hosts.
fn files() -> Vec<String> {
    let entries = std::fs::read_dir(DATA).expect("test data").flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut names: Vec<_> = files.map(|entry| entry.file_name().into_string().expect("text")).collect();
    names.retain(|name| name != "README.md");
    names.sort();
    names
}

/// The fates of all sections, as one word each.
fn fates(object: &Value) -> String {
    let sections = object["sections"].as_array().expect("a list");
    sections.iter().map(|section| section["fate"].as_str().expect("a word")).collect::<Vec<_>>().join(" ")
}

/// The replays of the docs: each file where such a guest belongs, and some on the host on which they failed.
fn commands() -> Vec<Vec<String>> {
    const ELSEWHERE: [&[&str]; 21] = [
        &["bar-380000000000.mtree", "--host", "hosts/vtd-39bit.json", "--backend", "type1"],
        &["ivshmem-382000000000.mtree", "--host", "hosts/vtd-39bit.json"],
        &["rtx5070ti.mtree", "--host", "hosts/vtd-39bit.json", "--backend", "type1"],
        &["unvme-39.mtree", "--host", "hosts/vtd-39bit.json"],
        &["msix-tdi.mtree", "--host", "hosts/vtd-39bit.json", "--backend", "type1"],
        &["error-lines-only.log", "--host", "hosts/vtd-39bit.json"],
        &["failed-map.trace", "--host", "hosts/vtd-39bit.json"],
        &["amd-1t.mtree", "--host", "hosts/amd-epyc.json"],
        &["amd-1t-relocated.mtree", "--host", "hosts/amd-epyc.json"],
        &["error-region.log", "--host", "hosts/amd-epyc.json"],
        &["virt-3g-qemu11.mtree", "--host", "hosts/arm64-smmuv3.json"],
        &["kata-arm64-dimm.trace", "--host", "hosts/arm64-smmuv3.json"],
        &["q35-qemu11.mtree", "--host", "hosts/arm64-64k-as-x86.json"],
        &["q35-hyperv-gpu.mtree", "--host", "vtd-64k"],
        &["q35-gpu-tpm.mtree", "--host", "vtd-64k", "--backend", "type1"],
        &["q35-qemu11.mtree", "--host", "hosts/memlock-3g.json"],
        &["harvester.mtree", "--host", "hosts/memlock-8g.json"],
        &["q35-qemu11.mtree", "--host", "hosts/hp-rmrr.json"],
        &["q35-qemu11.mtree", "--host", "hosts/usb-rmrr-relaxable.json"],
        &["q35-qemu11.mtree", "--host", "hosts/lx2160a-as-x86.json"],
        &["q35-qemu11.mtree", "--host", "hosts/pve-kernel.json"],
    ];
    let at_home = files().into_iter().map(|file| vec![file]);
    let elsewhere = ELSEWHERE.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect());
    at_home.chain(elsewhere).collect()
}

/// A row of the table: the command, the verdict, and what the program says.
fn row(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let output = replay(&words);
    let verdict = match status(&output) {
        0 if stdout(&output).contains(": a log of failures") => "answered",
        0 => "in force",
        1 => "**refused**",
        _ => "**not read**",
    };
    format!("| `{}` | {verdict} | {} |\n", words.join(" "), said(&output).replace('|', "\\|"))
}

/// The heading, the remarks, warnings and errors, the failures of a log, and the causes that have a cure.
fn said(output: &Output) -> String {
    let mut said = Vec::new();
    let (mut is_cure, mut is_failure) = (false, false);
    for line in stdout(output).lines() {
        let entry = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '));
        if !line.starts_with(' ') {
            (is_cure, is_failure) = (line == "What to do", line.starts_with("Failures where"));
        }
        match entry {
            Some(cause) if is_cure => said.push(format!("cure: {cause}")),
            Some(failure) if is_failure => said.push(failure.to_owned()),
            _ => {}
        }
        if let Some((_, heading)) = line.split_once(": ").filter(|_| said.is_empty() && !line.starts_with(' ')) {
            said.push(heading.to_owned());
        }
    }
    said.extend(stderr(output).lines().map(str::to_owned));
    said.join("<br>")
}

#[test]
fn the_docs_have_every_file_of_the_field() {
    let mut table = String::from(
        "# What people have at hand, and what the program says\n\n\
         Layouts, traces, log lines and hosts as users of passed-through devices showed them. Each row is a run of \
         `dmaspace replay` in\n\
         `backends/tests/data/field`; the last column has the heading of its report, the failures of a log, the causes \
         for which it names a\ncure, and everything on the standard error.\n\n\
         | `dmaspace replay …` | | what it says |\n|---|---|---|\n",
    );
    for words in commands() {
        table.push_str(&row(&words));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/field.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &table).expect("the docs can be written");
    }
    let known = std::fs::read_to_string(path).expect("the docs are there");
    assert_eq!(table, known, "if that is as it should be: UPDATE_DOCS=1 cargo test -p dmaspace --test field");
}

#[test]
fn every_capture_is_read_to_its_last_range() {
    for file in files().iter().filter(|file| file.ends_with("qemu11.mtree")) {
        let text = String::from_utf8(read(file)).expect("text");
        let views: Vec<_> = text.split("FlatView #").collect();
        let object = json(&replay(&[file.as_str(), "--json"]));
        let chosen = object["input"]["address_space"].as_str().expect("a name");
        let view = views.iter().find(|view| view.contains(&format!(" AS \"{chosen}\""))).expect("it is there");
        let ranges = view.lines().filter(|line| line.contains("(prio ")).count();
        let sections = object["sections"].as_array().expect("a list");
        let pci = sections.iter().filter(|section| section["space"] == "pci").count();
        assert_eq!(pci, ranges, "{file}");
    }
}

#[test]
fn one_view_in_different_wrappings_is_one_view() {
    let of = |file: &str| {
        let mut object = json(&replay(&[file, "--json"]));
        object["input"] = Value::Null;
        object
    };
    for files in [
        &["q35-hyperv-gpu.mtree", "q35-hyperv-gpu-qmp.json", "q35-hyperv-gpu-escaped-quotes.mtree"][..],
        &[
            "utf8-bom.mtree",
            "utf16le.mtree",
            "telnet-iac.mtree",
            "markdown-fence.txt",
            "proxmox-web.txt",
            "gdb-monitor.txt",
        ],
        &["both-commands.txt", "virsh-shell.txt", "qm-monitor.txt", "hmp-wrapped-json-pretty.json"],
    ] {
        for file in files {
            assert_eq!(of(file), of(files[0]), "{file}");
        }
    }
}

#[test]
fn a_scrap_of_ram_refuses_no_guest() {
    for host in ["vtd", "vtd-64k", "hosts/vtd-39bit.json"] {
        for file in ["q35-gpu-tpm.mtree", "q35-hyperv-gpu.mtree"] {
            let output = replay(&[file, "--json", "--host", host, "--backend", "type1"]);
            let expected = i32::from(file == "q35-gpu-tpm.mtree" && host == "hosts/vtd-39bit.json");
            let refused = json(&output)["sections"].as_array().expect("a list").clone();
            let refused: Vec<_> = refused.iter().filter(|section| section["fate"] == "refused").collect();
            // A shared memory device that lies above 39 bits is no scrap.
            assert!(refused.iter().all(|section| section["name"] == "looking-glass"), "{file} on {host}: {refused:?}");
            assert!(status(&output) <= expected, "{file} on {host}");
        }
    }
}

#[test]
fn a_graphics_cards_hole_disturbs_nothing() {
    for backend in ["type1", "iommufd"] {
        for file in ["lp1879175-igd.trace", "libvfio439.trace", "libvfio439-tail.trace"] {
            let object = json(&replay(&[file, "--json", "--host", "vtd", "--backend", backend]));
            assert_eq!(object["bytes"]["disturbed"], 0, "{file} through {backend}");
        }
    }
}

#[test]
fn failed_events_are_answered_and_not_put_into_force() {
    for file in ["failed-map.trace", "failed-map-iommufd-only.trace"] {
        let object = json(&replay(&[file, "--json"]));
        assert_eq!(
            (fates(&object).as_str(), object["input"]["pinned_there"].as_u64()),
            ("mapped", Some(1 << 31)),
            "{file}"
        );
        let findings = object["findings"].as_array().expect("a list");
        let errors: Vec<_> = findings.iter().map(|finding| finding["errno"].as_str().expect("a name")).collect();
        assert_eq!(errors, ["EFAULT", "EINVAL"], "{file}");
        assert!(findings.iter().all(|finding| finding["is_device_memory"] == true), "{file}");
    }
}

#[test]
fn bars_are_no_pinned_ram() {
    for (file, pinned) in
        [("gb200-dmabuf.trace", 0), ("journald.trace", 0x100_1000), ("skip-iommu-map.trace", 1_u64 << 31)]
    {
        let object = json(&replay(&[file, "--json", "--host", "vtd"]));
        assert_eq!(object["input"]["pinned_there"], pinned, "{file}");
        assert_eq!(object["bytes"]["pinned"], pinned, "{file}");
    }
}

#[test]
fn the_total_of_locked_memory_is_one_cure() {
    let object = json(&replay(&["q35-qemu11.mtree", "--json", "--host", "hosts/memlock-3g.json"]));
    let cures = object["cures"].as_array().expect("a list");
    let [cure] = &cures[..] else { panic!("{cures:?}") };
    assert!(cure["cure"].as_str().expect("text").contains("ulimit -l 4210816,"), "{cure}");
    assert_eq!(cure["count"], 1);
}

/// A flat view with so many ranges of 2 MiB, of one region or each of its own.
fn heap(n: u64, of_one: bool) -> String {
    const SIZE: u64 = 2 << 20;
    let mut text = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n".to_owned();
    for piece in 0..n {
        let (first, offset) = (0x2000_0000_0000 + piece * SIZE, piece * SIZE);
        let (name, offset) = if of_one {
            ("heap".to_owned(), format!(" @{offset:016x}"))
        } else {
            (format!("heap-{piece}"), String::new())
        };
        let last = first + SIZE - 1;
        writeln!(text, "  {first:016x}-{last:016x} (prio 0, ram): {name}{offset}").expect("a string takes all");
    }
    text
}

#[test]
fn many_ranges_with_one_cause_are_a_few_lines() {
    const MOST_LINES: usize = 60;
    for of_one in [true, false] {
        let text = heap(4096, of_one);
        for host in ["vtd", "hosts/vtd-39bit.json"] {
            let output = replay_text(text.as_bytes(), &["--host", host, "--backend", "type1"]);
            let lines = stdout(&output).lines().count() + stderr(&output).lines().count();
            assert!(lines < MOST_LINES, "{lines} lines on {host}: {}", stderr(&output));
            assert_eq!(status(&output), i32::from(host != "vtd"), "{host}: {}", stderr(&output));
        }
    }
}

#[test]
fn more_mappings_than_the_kernel_takes_have_one_cure() {
    // One more than a container of type1 takes.
    let text = heap(65_536, false);
    let object = json(&replay_text(text.as_bytes(), &["--json", "--host", "vtd", "--backend", "type1"]));
    assert_eq!((object["ok"].as_bool(), object["sections"].as_array().map(Vec::len)), (Some(false), Some(65_536)));
    let cures = object["cures"].as_array().expect("a list");
    let [cure] = &cures[..] else { panic!("{cures:?}") };
    assert!(cure["cure"].as_str().expect("text").contains("dma_entry_limit=131072"), "{cure}");
}

#[test]
fn a_long_log_is_counted_line_by_line() {
    const N: usize = 20_000;
    let mut log = String::new();
    for n in 0..N {
        writeln!(log, "2026-01-02T13:26:19.{n:06}Z qemu-system-x86_64: warning: \"{n}\" \\n is nothing")
            .expect("a string");
        let first = 0x1_0000_0000 + n as u64 * 0x20_0000;
        writeln!(
            log,
            "4242@1.{n:06}:vfio_listener_region_add_ram region_add [ram] {first:#x} - {:#x} [{:#x}]",
            first + 0xf_ffff,
            first
        )
        .expect("a string");
        if n % 2 == 1 {
            writeln!(log, "4242@1.{n:06}:vfio_listener_region_del region_del {first:#x} - {:#x}", first + 0xf_ffff)
                .expect("a string");
        }
    }
    let object = json(&replay_text(log.as_bytes(), &["--json", "--host", "vtd"]));
    assert_eq!((object["input"]["ignored"].as_u64(), object["ok"].as_bool()), (Some(N as u64), Some(true)));
    assert_eq!(object["sections"].as_array().map(Vec::len), Some(N / 2));
    assert_eq!(object["steps"].as_array().map(Vec::len), Some(N / 2 + 1));
}

#[test]
fn nothing_of_a_file_steers_the_terminal() {
    let name = "a\u{1b}]0;title\u{7}b\u{202e}c\u{9b}2J";
    let view = format!(
        "FlatView #0\n AS \"{name}\", root: {name}\n Root memory region: {name}\n  0-fff (prio 0, ram): {name}\n"
    );
    let recording = format!(
        "{{\"event\":\"begin\",\"version\":1,\"shrink\":\"report\",\"cuts\":[],\"in_force\":[],\"spaces\":[]}}\n\
         {{\"event\":\"update\",\"removed\":[],\"added\":[{{\"space\":\"pci\",\"first\":\"0x0\",\
         \"last\":\"0xfff\",\"name\":{},\"kind\":\"ram\",\"access\":\"read-write\",\
         \"host\":\"0x7f0000000000\",\"unit\":0}}]}}\n",
        serde_json::to_string(name).expect("a string")
    );
    let trace = format!("vfio_listener_region_add_iommu region_add [iommu] {name} 0x0 - 0xfff\n");
    let steers = |letter: char| (letter.is_control() && letter != '\n') || ('\u{202a}'..='\u{202e}').contains(&letter);
    for text in [view, recording, trace, format!("{name}\n"), format!("vfio_listener_region_del {name}\n")] {
        for arguments in [&["--host", "vtd"][..], &["--host", "vtd", "--json"]] {
            let output = replay_text(text.as_bytes(), arguments);
            let shown = [stdout(&output), stderr(&output)].concat();
            assert!(!shown.contains(steers), "{shown:?}");
        }
    }
}

#[test]
fn an_error_repeats_little_of_its_input() {
    let long = "x".repeat(100_000);
    for text in [
        long.clone(),
        format!("FlatView #0\n AS \"{long}\", root: system\n Root memory region: system\n  0-fff (prio 0, ram): mem\n"),
        format!(
            "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  0-fff (prio {long}, ram): mem\n"
        ),
        format!("vfio_listener_region_del {long}"),
        format!("{{\"event\":\"{long}\"}}"),
    ] {
        let output = replay_text(text.as_bytes(), &["--host", "vtd"]);
        assert!(status(&output) == 2 && stderr(&output).len() < 3000, "{}: {}", status(&output), stderr(&output).len());
    }
}

/// A text in the wrapping of that name.
fn wrapped(wrapping: &str, text: &str) -> String {
    let lines = |wrap: &dyn Fn(&str) -> String| text.lines().map(wrap).collect::<Vec<_>>().join("\n") + "\n";
    let quoted = |line: &str| serde_json::to_string(line).expect("a string");
    let as_html = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    match wrapping {
        "HTML" => format!("<pre class=\"code\"><code>{}</code></pre>\n", as_html(text)),
        "HTML with breaks" => format!("<p>{}</p>", as_html(text).replace('\n', "<br>\n")),
        "code" => lines(&|line| format!("- `{line}`")),
        "a difference" => lines(&|line| format!("+{line}")),
        "a table" => lines(&|line| format!("1,\"{}\"", line.replace('"', "\"\""))),
        "a list of Python" => {
            format!("['{}']\n", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n', '"))
        }
        "JSON with more fields" => lines(&|line| format!("{{\"log\":{},\"stream\":\"x\"}}", quoted(line))),
        "the journal's bytes" => lines(&|line| format!("{{\"MESSAGE\":{:?},\"_PID\":\"1\"}}", line.as_bytes())),
        "the journal's export" => lines(&|line| format!("__CURSOR=s=1\nPRIORITY=6\nMESSAGE={line}\n_PID=12\n")),
        "fields behind" => lines(&|line| format!("2026-01-02T10:00:00Z\tINFO\tqemu\t{line}\t{{\"pid\": 12}}")),
        "a field" => lines(&|line| format!("I0102 10:00:00.1 1 qemu.go:123] \"output\" line={}", quoted(line))),
        "a prefix with a blank" => lines(&|line| format!("2026/01/02 10:00:00 {line}")),
        "a terminal of 80 columns" => {
            let cut =
                |line: &str| line.as_bytes().chunks(80).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
            lines(&cut)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn the_surroundings_of_a_text_change_nothing() {
    const WRAPPINGS: [&str; 13] = [
        "HTML",
        "HTML with breaks",
        "code",
        "a difference",
        "a table",
        "a list of Python",
        "JSON with more fields",
        "the journal's bytes",
        "the journal's export",
        "fields behind",
        "a field",
        "a prefix with a blank",
        "a terminal of 80 columns",
    ];
    let told = |text: &str| {
        let mut object = json(&replay_text(text.as_bytes(), &["--json", "--host", "vtd"]));
        object["input"] = Value::Null;
        object["steps"] = Value::Null;
        for finding in object["findings"].as_array_mut().into_iter().flatten() {
            finding["line"] = Value::Null;
        }
        object
    };
    for file in ["q35-gpu-tpm.mtree", "bar-380000000000.mtree", "failed-map.trace", "libvfio439.trace"] {
        let text = String::from_utf8(read(file)).expect("text");
        let plain = told(&text);
        for wrapping in WRAPPINGS {
            assert!(told(&wrapped(wrapping, &text)) == plain, "{file} in {wrapping}");
        }
    }
}
