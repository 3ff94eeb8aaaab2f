//! The bounds of the readers: time that grows as the text does, and memory that is a multiple of the text.
//!
//! The memory is counted, without the text itself: bytes that live at once, for lines as long as QEMU's. A list that
//! grows counts twice while it moves. The time is that of this thread's processor, at a length and at four times the
//! length. Both are of a debug build.

use std::time::Instant;

use super::Content;

/// A kind of text, and the bytes that its reader may take for each byte of the text.
struct Kind {
    name: &'static str,
    text: fn(usize) -> String,
    most: f64,
}

/// Memory that does not depend on the text.
const ALWAYS: u64 = 64 << 10;

const SMALL: usize = 96 << 10;
const LARGE: usize = 4 * SMALL;

const KINDS: [Kind; 24] = [
    // All of the content is kept: a range, an event of memory, a failure.
    Kind { name: "flat view", text: views, most: 2.5 },
    Kind {
        name: "flat view in a reply of QMP",
        text: |len| format!("{{\"return\": \"{}\"}}", views(len).replace('\n', "\\r\\n")),
        most: 2.5,
    },
    Kind {
        name: "flat view in UTF-8 that is broken",
        text: |len| views(len).replace("prio 1", "\u{fffd}prio 1"),
        most: 3.5,
    },
    Kind { name: "trace", text: trace_of_updates, most: 3.0 },
    Kind { name: "log of failures", text: failures, most: 2.5 },
    Kind { name: "recording", text: recording, most: 4.0 },
    // Nothing of the content is kept.
    Kind {
        name: "prose",
        text: |len| lines(len, |n| format!("{n} is a number, and the text around it is only there to be passed over")),
        most: 0.0,
    },
    Kind {
        name: "JSON log",
        text: |len| lines(len, |n| format!("{{\"level\":\"info\",\"msg\":\"say \\\"{n}\\\" again\\n\"}}")),
        most: 0.0,
    },
    Kind { name: "colours", text: |len| "\u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7}\n".repeat(len / 32), most: 0.0 },
    Kind { name: "HTML", text: |len| "<p>a &lt; b</p><br>\n".repeat(len / 20), most: 0.0 },
    Kind { name: "empty lines", text: |len| "\n".repeat(len), most: 0.0 },
    Kind { name: "carriage returns", text: |len| "a\r".repeat(len / 2), most: 0.0 },
    // One line, of which a copy is held for each string in a string, and around it.
    Kind { name: "one line", text: |len| "x".repeat(len), most: 1.0 },
    Kind { name: "one line of blanks", text: |len| " ".repeat(len), most: 1.0 },
    Kind { name: "one line of quotes", text: |len| ">".repeat(len), most: 1.0 },
    Kind { name: "one line of tags", text: |len| "<br>".repeat(len / 4), most: 1.0 },
    Kind { name: "one line of brackets", text: |len| format!("</{}", "<".repeat(len)), most: 3.0 },
    Kind { name: "one line of colours", text: |len| "\u{1b}[31m".repeat(len / 5), most: 1.0 },
    Kind {
        name: "one range without an end",
        text: |len| format!("0-0 (prio 0, ram): {}", "@x".repeat(len / 2)),
        most: 3.0,
    },
    Kind {
        name: "one event without an end",
        text: |len| format!("vfio_region_mmap Region {}", " [0x0 - 0x".repeat(len / 10)),
        most: 3.0,
    },
    Kind { name: "deep JSON", text: |len| "[{\"a\":".repeat(len / 6), most: 3.0 },
    Kind { name: "strings in strings", text: |len| format!("{{\"{}\"}}", "\\\\\\\"".repeat(len / 4)), most: 4.0 },
    Kind { name: "lists of bytes without an end", text: |len| format!("{{\"M\":{}", "[1".repeat(len / 2)), most: 3.0 },
    Kind { name: "fields of a table", text: |len| format!("a,{}\"b\"", "\"\",".repeat(len / 3)), most: 3.0 },
];

/// Lines, as many as fit.
fn lines(len: usize, line: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for n in 0.. {
        text.push_str(&line(n));
        text.push('\n');
        if text.len() >= len {
            break;
        }
    }
    text
}

/// A flat view, of ranges as short as QEMU writes them.
fn views(len: usize) -> String {
    let heading = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n";
    let ranges = lines(len, |n| {
        let (first, last) = (n * 0x1000, n * 0x1000 + 0xfff);
        match n % 2 {
            0 => format!("  {first:016x}-{last:016x} (prio 0, ram): pc.ram @{first:016x} KVM"),
            _ => format!("  {first:016x}-{last:016x} (prio 1, i/o): vfio-{}", n % 100),
        }
    });
    heading.to_owned() + &ranges
}

/// A trace in which a hundred ranges come and go.
fn trace_of_updates(len: usize) -> String {
    lines(len, |n| {
        let (first, last) = (n % 100 * 0x1000, n % 100 * 0x1000 + 0xfff);
        match n / 100 % 2 {
            0 => {
                format!("1@17.1:vfio_listener_region_add_ram region_add [ram] {first:#x} - {last:#x} [0x7f0000000000]")
            }
            _ => format!("1@17.1:vfio_listener_region_del region_del {first:#x} - {last:#x}"),
        }
    })
}

fn failures(len: usize) -> String {
    lines(len, |n| {
        format!(
            "qemu: vfio_container_dma_map(0x55d0c0ffee00, {:#x}, 0x1000, 0x7f0000000000) = -22 (Invalid argument)",
            n * 0x1000
        )
    })
}

fn recording(len: usize) -> String {
    let begin = "{\"event\":\"begin\",\"version\":1,\"shrink\":\"report\",\"cuts\":[],\"in_force\":[],\"spaces\":[]}\n";
    let updates = lines(len, |n| {
        let piece = "{\"space\":\"pci\",\"first\":\"0x0\",\"last\":\"0xfff\",\"name\":\"ram\",\"kind\":\"ram\",\
                     \"access\":\"read-write\",\"host\":\"0x7f0000000000\",\"unit\":0}";
        let (removed, added) = if n % 2 == 0 { ("", piece) } else { (piece, "") };
        format!(
            "{{\"event\":\"update\",\"removed\":[{removed}],\"added\":[{added}]}}\n\
             {{\"event\":\"ended\",\"result\":\"ok\"}}"
        )
    });
    begin.to_owned() + &updates
}

/// Reads a text in every way. The results do not matter.
fn read(text: &str) {
    let _ = Content::of("text", text.as_bytes(), None);
}

/// The nanoseconds that this thread has run; the time that passed, on a kernel that does not tell.
fn nanoseconds(start: Instant) -> u128 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let run = told.and_then(|text| text.split(' ').next()?.parse().ok()).filter(|run| *run > 0);
    run.unwrap_or_else(|| start.elapsed().as_nanos())
}

/// The shortest of a few readings.
fn time_of(text: &str) -> u128 {
    const TIMES: usize = 2;
    let readings = (0..TIMES).map(|_| {
        let start = Instant::now();
        let before = nanoseconds(start);
        read(text);
        nanoseconds(start).saturating_sub(before)
    });
    readings.min().unwrap_or_default()
}

#[test]
fn readers_take_a_multiple_of_the_text_and_nothing_for_lines_that_are_passed_over() {
    for Kind { name, text, most } in KINDS {
        for len in [SMALL, LARGE] {
            let text = text(len);
            let taken = allocation_counter::measure(|| read(&text)).bytes_max;
            let times = taken.saturating_sub(ALWAYS) as f64 / text.len() as f64;
            assert!(times <= most, "{name}: {taken} bytes for {}, {times:.2} times as many", text.len());
        }
    }
}

#[test]
fn readers_take_four_times_as_long_for_a_text_of_four_times_the_length() {
    /// Sixteen, if the time grew with the square.
    const MOST: u128 = 8;
    for Kind { name, text, .. } in KINDS {
        let (small, large) = (time_of(&text(SMALL)), time_of(&text(LARGE)));
        assert!(large <= small * MOST, "{name}: {small} ns, and {large} ns for four times the text");
    }
}
