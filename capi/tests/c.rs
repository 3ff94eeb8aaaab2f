//! C programs on hosts in software: the example, and the answers to arguments that no call can take. A compiler is
//! needed: `cc`, or the one that `CC` names.
#![expect(clippy::expect_used, reason = "a failing arrangement is a failing test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The directory with the shared library, which cargo builds beside the tests.
fn library() -> PathBuf {
    let program = std::env::current_exe().expect("a test is a program");
    let beside = program.parent().expect("in a directory");
    let places = [beside, beside.parent().expect("in another")];
    let place = places.into_iter().find(|place| place.join("libdmaspace_capi.so").exists());
    place.expect("cargo builds libdmaspace_capi.so").to_owned()
}

/// Compiles a program of this crate and runs it.
fn run(source: &str, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = Path::new(source).file_stem().expect("a name").to_string_lossy();
    let place = tempfile::tempdir().expect("a directory");
    let program = place.path().join(&*name);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let compiled = Command::new(compiler)
        .args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"])
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join(source))
        .arg("-L")
        .arg(library())
        .args(["-ldmaspace_capi", "-o"])
        .arg(&program)
        .output()
        .expect("a C compiler is installed");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Command::new(program).args(arguments).env("LD_LIBRARY_PATH", library()).output().expect("it runs")
}

fn standard_output(output: &Output) -> String {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}: {text}{errors}", output.status);
    text.into_owned()
}

#[test]
fn the_example_plugs_a_device_and_memory_and_takes_both_back() {
    for (host, device, backend) in [
        ("soft:vtd", "0000:00:03.0", "iommufd"),
        ("soft:powernv9", "0000:01:00.0", "spapr"),
        ("soft:pseries", "0000:00:05.0", "spapr"),
    ] {
        let output = standard_output(&run("examples/guest.c", &[host, device]));
        assert!(output.starts_with("1 pending\n"), "{host}: {output}");
        assert!(output.contains("0x1000 is byte 0x1000 of the memory, access 3\n"), "{host}: {output}");
        assert!(output.contains(&format!("{backend}: 0x1000000..=0x10fffff (ram): mapped")), "{host}: {output}");
        assert!(output.contains("translate: -2: nothing is mapped at 0x1000\n"), "{host}: {output}");
        assert!(output.ends_with("done\n"), "{host}: {output}");
    }
}

#[test]
fn arguments_that_no_call_can_take_are_answered() {
    let output = standard_output(&run("tests/arguments.c", &[]));
    assert!(output.ends_with("all answered\n"), "{output}");
}
