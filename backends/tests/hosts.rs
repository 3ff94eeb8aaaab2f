//! `probe`, `doctor` and `explain` on recorded hosts, and host files.
//!
//! Each file of tests/data/hosts/recorded lists the files of a host and the commands to run on it; the file of the same
//! name with `.out` has their output. `UPDATE_DOCS=1 cargo test -p dmaspace --all-features --test hosts` writes it
//! anew.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

mod running;

use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use running::recorded::{Recorded, names};
use running::{DATA, run, status, stderr, stdout};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

/// The commands that are run on every recorded host, besides those in its file. HOST is the host as a host file,
/// MACHINE the machine that its guests have.
const COMMANDS: [&str; 2] = ["probe", "plan --machine MACHINE --memory 8G --host HOST"];

/// A recorded host as an archive and as a host file, in a folder of their own.
struct OnDisk {
    _folder: TempDir,
    archive: PathBuf,
    host_file: PathBuf,
}

impl OnDisk {
    fn new(recorded: &Recorded) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (archive, host_file) = (folder.path().join("host.tar"), folder.path().join("host.json"));
        std::fs::write(&archive, recorded.archive()).expect("written");
        let disk = Self { _folder: folder, archive, host_file };
        let written = disk.run(&format!("probe -o {}", disk.host_file.display()));
        assert_eq!((status(&written), stdout(&written), stderr(&written)), (0, "", ""));
        disk
    }

    /// The machine of QEMU that guests have there.
    fn machine(&self) -> &'static str {
        let file = std::fs::read_to_string(&self.host_file).expect("written");
        match () {
            () if file.contains("\"aarch64\"") => "virt",
            () if file.contains("\"ppc64le\"") => "pseries",
            () => "q35",
        }
    }

    fn run(&self, command: &str) -> Output {
        let (archive, host) = (self.archive.to_str().expect("text"), self.host_file.to_str().expect("text"));
        let mut words: Vec<&str> = command.split(' ').map(|word| if word == "HOST" { host } else { word }).collect();
        if matches!(words.first(), Some(&"probe" | &"doctor")) {
            words.extend(["--root", archive]);
        }
        run(&words)
    }
}

#[test]
fn every_recorded_host_is_told_as_it_is() {
    let mut wrong = Vec::new();
    for name in names() {
        let recorded = Recorded::named(&name);
        let disk = OnDisk::new(&recorded);
        let mut told = String::new();
        let machine = disk.machine();
        for command in COMMANDS.into_iter().chain(recorded.commands.iter().map(String::as_str)) {
            let command = command.replace("MACHINE", machine);
            let output = disk.run(&command);
            let (status, out, err) = (status(&output), stdout(&output), stderr(&output));
            told += &format!("$ dmaspace {command}\n{out}{err}[exit status {status}]\n\n");
        }
        let file = std::fs::read_to_string(&disk.host_file).expect("written");
        told += &format!("$ dmaspace probe -o host.json; cat host.json\n{file}");
        let path = format!("{DATA}/hosts/recorded/{name}.out");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &told).expect("written");
        }
        if std::fs::read_to_string(&path).is_ok_and(|known| known == told) {
            continue;
        }
        wrong.push(format!("{name}:\n{told}"));
    }
    let hint = "UPDATE_DOCS=1 cargo test -p dmaspace --all-features --test hosts";
    assert!(wrong.is_empty(), "{}\nif that is as it should be: {hint}", wrong.join("\n"));
    assert!(names().len() >= 12);
}

#[test]
fn a_folder_tells_the_same_as_an_archive() {
    for name in ["intel-server-rmrr", "pseries-guest", "no-iommu"] {
        let recorded = Recorded::named(name);
        let (disk, folder) = (OnDisk::new(&recorded), tempfile::tempdir().expect("a folder"));
        recorded.unpack(folder.path());
        for command in ["probe", "probe --json", "doctor 0000:03:00.0"] {
            let words: Vec<&str> =
                command.split(' ').chain(["--root", folder.path().to_str().expect("text")]).collect();
            assert_eq!(stdout(&run(&words)), stdout(&disk.run(command)), "{name}: {command}");
        }
    }
}

#[test]
fn a_probed_host_is_read_back_and_runs_a_guest() {
    for name in names() {
        let disk = OnDisk::new(&Recorded::named(&name));
        let file = std::fs::read_to_string(&disk.host_file).expect("written");
        let again = run(&["probe", "--host", disk.host_file.to_str().expect("text"), "--json"]);
        let again: Value = serde_json::from_str(stdout(&again)).expect("JSON");
        let host: Value = serde_json::from_str(&file).expect("JSON");
        assert_eq!(again, host, "{name}");
        let view = if host["tce"].is_object() { "mtree/pseries-4g-two-windows.mtree" } else { "mtree/q35-8g.mtree" };
        let replayed = run(&["replay", view, "--host", disk.host_file.to_str().expect("text"), "--json"]);
        let has = |list: &str| host[list].as_array().is_some_and(|list| !list.is_empty());
        if has("groups") && has("backends") {
            assert!(status(&replayed) < 2, "{name}: {}", stderr(&replayed));
        } else {
            assert_eq!(status(&replayed), 2, "{name}");
        }
    }
}

#[test]
fn presets_are_written_as_files_and_read_back() {
    for preset in dmaspace_soft::Profile::PRESETS {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("host.json");
        let path = path.to_str().expect("text");
        let written = run(&["probe", "--host", preset, "-o", path]);
        assert_eq!((status(&written), stdout(&written)), (0, ""), "{preset}");
        let [tables, again] = [vec!["probe", "--host", preset], vec!["probe", "--host", path]].map(|words| run(&words));
        assert_eq!(stdout(&tables), stdout(&again), "{preset}");
    }
}

/// The pieces of JSON in the documentation of host files.
fn examples() -> Vec<String> {
    let text = std::fs::read_to_string(format!("{DOCS}/host-file.md")).expect("the docs are there");
    let pieces = text.split("```json\n").skip(1);
    pieces.map(|piece| piece.split("```").next().expect("an end").to_owned()).collect()
}

#[test]
fn every_example_of_the_documentation_is_a_host() {
    let examples = examples();
    assert!(examples.len() >= 6);
    for example in examples {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("host.json");
        std::fs::write(&path, &example).expect("written");
        let view =
            if example.contains("\"tce\"") { "mtree/pseries-4g-two-windows.mtree" } else { "mtree/q35-8g.mtree" };
        let replayed = run(&["replay", view, "--host", path.to_str().expect("text"), "--json"]);
        assert!(status(&replayed) < 2, "{example}: {}", stderr(&replayed));
    }
}

#[test]
fn every_field_is_in_the_documentation() {
    let text = std::fs::read_to_string(format!("{DOCS}/host-file.md")).expect("the docs are there");
    let mut fields = Vec::new();
    for preset in ["vtd", "powernv9"] {
        let profile = dmaspace_soft::Profile::preset(preset).expect("a preset");
        collect(&serde_json::to_value(profile).expect("plain data"), &mut fields);
    }
    for field in fields {
        assert!(text.contains(&format!("`{field}`")), "{field}");
    }
}

fn collect(value: &Value, fields: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                fields.push(name.clone());
                collect(value, fields);
            }
        }
        Value::Array(list) => {
            for value in list {
                collect(value, fields);
            }
        }
        _ => {}
    }
}

#[test]
fn an_archive_that_is_none_and_a_folder_that_is_no_host_are_bad_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    for content in
        [b"".as_slice(), b"\x1f\x8b\x08\x00", b"no tar at all, but longer than a block".repeat(40).as_slice()]
    {
        std::fs::write(&file, content).expect("written");
        let output = run(&["probe", "--root", file.to_str().expect("text")]);
        assert_eq!(status(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
    }
    let empty = run(&["doctor", "0000:00:03.0", "--root", folder.path().to_str().expect("text")]);
    assert_eq!(
        (status(&empty), stderr(&empty)),
        (2, "error: expected the files of a host: there is no /sys among them\n")
    );
    assert_eq!(status(&run(&["doctor", "here"])), 2);
    assert_eq!(status(&run(&["explain", "nothing"])), 2);
}

#[test]
fn doctor_in_json_has_the_same_findings_as_in_text() {
    let disk = OnDisk::new(&Recorded::named("neighbour"));
    let output = disk.run("doctor 0000:41:00.0 --json");
    let object: Value = serde_json::from_str(stdout(&output)).expect("JSON");
    assert_eq!((status(&output), &object["ok"]), (1, &Value::from(false)));
    let text = disk.run("doctor 0000:41:00.0");
    for finding in object["findings"].as_array().expect("a list") {
        let code = finding["code"].as_str().expect("a word");
        assert!(stdout(&text).replace('\n', " ").contains(&format!("[{code}]")), "{code}");
        assert_eq!(status(&run(&["explain", code])), 0, "{code}");
    }
}

#[test]
fn everything_runs_on_this_machine_too() {
    let probed = run(&["probe"]);
    assert_eq!(status(&probed), 0, "{}", stderr(&probed));
    let file = run(&["probe", "--json"]);
    assert!(serde_json::from_str::<Value>(stdout(&file)).is_ok());
    let doctored = run(&["doctor", "ffff:ff:1f.7"]);
    assert_eq!(status(&doctored), 1);
    assert!(stdout(&doctored).contains("[no-device]"));
}

#[test]
#[ignore = "fuzz/run takes the archives as seeds: DMASPACE_ARCHIVES is their folder"]
fn every_recorded_host_is_written_as_an_archive() {
    let folder = std::env::var_os("DMASPACE_ARCHIVES").expect("DMASPACE_ARCHIVES");
    let folder = std::path::Path::new(&folder);
    let files = std::fs::read_dir(format!("{DATA}/hosts/recorded")).expect("test data").flatten();
    for path in files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "host")) {
        let name = path.file_stem().expect("a name").to_str().expect("text");
        std::fs::write(folder.join(format!("{name}.tar")), Recorded::named(name).archive()).expect("written");
    }
}
