//! A cargo runner that boots an emulated host and runs one binary in it.
//!
//! ```text
//! EMULATED_HOST=powernv9 cargo test -p dmaspace-tests --test host --target powerpc64le-unknown-linux-gnu
//! ```
//!
//! With this command, cargo calls `ci/runner`, which calls this program with the host's name, the test binary and its
//! arguments. This program puts a kernel ([`kernel`]), a busybox and the binary into an initramfs ([`initramfs`]),
//! starts the [`host`]'s machine ([`qemu`]), forwards the test's output ([`console`]) and judges the end of the run
//! ([`verdict`]). Kernels come from Debian's packages ([`apt`]) and are kept in a [`cache`].
//!
//! `emulated-host boot HOST FOLDER SCRIPT` runs a script with the files of a folder instead (`ci/vmm/run`). The host's
//! clock is then this machine's, since the script runs guests: with the clock that counts instructions ([`qemu`]) a
//! guest's boot of 10 s takes more than 14 minutes.
//!
//! # Environment
//! - `EMULATED_HOST_TIMEOUT`: the time limit of a run, in seconds; 900 by default.
//! - `EMULATED_HOST_PROGRAM`: a program that the binary runs, as `/dmaspace`. `ci/runner` builds it.
//! - `EMULATED_HOST_QEMU`: further arguments for QEMU.
//! - `EMULATED_HOST_KERNEL`: further arguments for the kernel's command line.
//! - `EMULATED_HOST_CONSOLE=1`: shows the output of the firmware and the kernel as well.
//!
//! The binary sees `RUST_BACKTRACE`, `RUST_LOG`, and the variables whose names start with `DMASPACE_` or `PROPTEST_`.
//!
//! # Exit status
//! The exit status is the binary's, except for these:
//! - 120: the host did not run the binary to its end.
//! - 121: the host's kernel panicked.
//! - 122: the host's kernel complained, although the binary succeeded.
//! - 124: the binary was still running when the time limit passed.

mod apt;
mod cache;
mod console;
mod host;
mod initramfs;
mod kernel;
mod qemu;
mod verdict;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache::Cache;
use crate::console::Console;
use crate::host::{Architecture, Host};
use crate::initramfs::{Initramfs, quoted};
use crate::kernel::Kernel;
use crate::qemu::{Extras, Machine};
use crate::verdict::Verdict;

const USAGE: &str = "usage: emulated-host run HOST BINARY [ARGUMENT]…
       emulated-host prepare [HOST]…
       emulated-host list
       emulated-host boot HOST FOLDER SCRIPT
       emulated-host pack FOLDER FILE     writes an initramfs with the files of FOLDER
       emulated-host image HOST           prints the path of the host's kernel; its modules are beside it
       emulated-host busybox HOST         prints the path of the host's busybox";

const INIT: &[u8] = include_bytes!("init.sh");

const DEFAULT_TIME_LIMIT: u64 = 900;

/// The oldest version of Debian's QEMU packages that was tried.
const OLDEST_QEMU: &str = "1:10";

/// Reports progress on stderr.
macro_rules! progress {
    ($($message:tt)*) => { eprintln!("emulated-host: {}", format_args!($($message)*)) };
}
pub(crate) use progress;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["run", host, binary, arguments @ ..] => run(host, Path::new(binary), arguments),
        ["prepare", hosts @ ..] => prepare(hosts).map(|()| 0),
        ["list"] => {
            println!("{}", host::names().join("\n"));
            Ok(0)
        }
        ["boot", host, folder, script] => boot_files(host, Path::new(folder), script),
        ["pack", folder, file] => pack(Path::new(folder), Path::new(file)).map(|()| 0),
        ["image", host] => print_path(image(host)).map(|()| 0),
        ["busybox", host] => print_path(busybox(host)).map(|()| 0),
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            progress!("{error:#}");
            ExitCode::from(120)
        }
    }
}

/// Fetches, installs and builds the QEMU, the busybox and the kernel of each host that is named, or of all hosts.
fn prepare(names: &[&str]) -> Result<()> {
    let cache = Cache::of_user()?;
    let all = host::names();
    for name in if names.is_empty() { &all } else { names } {
        let host = Host::named(name)?;
        install_qemu(host)?;
        kernel::busybox(host.architecture, &cache)?;
        Kernel::of(host, &cache)?;
    }
    Ok(())
}

/// Writes an initramfs with the files of a folder, for a guest of a host.
fn pack(folder: &Path, file: &Path) -> Result<()> {
    let mut initramfs = Initramfs::default();
    initramfs.tree(folder)?;
    fs::write(file, initramfs.finish()?).with_context(|| format!("cannot write {}", file.display()))
}

fn image(host: &str) -> Result<PathBuf> {
    Ok(Kernel::of(Host::named(host)?, &Cache::of_user()?)?.image())
}

fn busybox(host: &str) -> Result<PathBuf> {
    kernel::busybox(Host::named(host)?.architecture, &Cache::of_user()?)
}

fn print_path(path: Result<PathBuf>) -> Result<()> {
    println!("{}", path?.display());
    Ok(())
}

/// Runs a binary in a host and returns the exit status of this program.
fn run(host: &str, binary: &Path, arguments: &[&str]) -> Result<u8> {
    let host = Host::named(host)?;
    let content = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    check_architecture(host, &content)?;

    let cache = Cache::of_user()?;
    install_qemu(host)?;
    let kernel = Kernel::of(host, &cache)?;
    let mut initramfs = base(host, &kernel, &cache)?;
    initramfs.file("/binary", &content)?;
    initramfs.file("/run", command(arguments).as_bytes())?;
    let mut all_libraries: BTreeSet<PathBuf> = libraries(host, binary)?.into_iter().collect();
    if let Some(program) = env::var_os("EMULATED_HOST_PROGRAM").map(PathBuf::from) {
        let content = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        check_architecture(host, &content)?;
        initramfs.file("/dmaspace", &content)?;
        all_libraries.extend(libraries(host, &program)?);
    }
    for library in all_libraries {
        let path = library.to_str().context("the path of a shared library is not UTF-8")?;
        initramfs.file(path, &fs::read(&library)?)?;
    }

    boot(host, &kernel, initramfs, &extras_of_user())
}

/// Runs a script in a host that has the files of a folder, and returns the exit status of this program.
fn boot_files(host: &str, folder: &Path, script: &str) -> Result<u8> {
    let host = Host::named(host)?;
    let cache = Cache::of_user()?;
    install_qemu(host)?;
    let kernel = Kernel::of(host, &cache)?;
    let mut initramfs = base(host, &kernel, &cache)?;
    initramfs.tree(folder)?;
    initramfs.file("/run", format!("#!/bin/sh\nexec sh {}\n", quoted(script)).as_bytes())?;
    boot(host, &kernel, initramfs, &Extras { has_real_time: true, ..extras_of_user() })
}

/// Boots a host that runs `/run`, and returns the exit status of this program.
fn boot(host: &Host, kernel: &Kernel, initramfs: Initramfs, extras: &Extras) -> Result<u8> {
    let limit = time_limit()?;
    progress!("booting {} (Linux {})", host.name, kernel.version());
    let start = Instant::now();
    let machine = Machine::start(host, &kernel.image(), &initramfs.finish()?, extras)?;
    let mut console = Console::new(extras.shows_everything);
    let stop = machine.watch(limit, &mut console, &mut std::io::stdout())?;
    let verdict = Verdict::on(&console, stop);
    explain(&verdict, &console);
    progress!("{}: {}, after {:.1} s", host.name, verdict.line(), start.elapsed().as_secs_f32());
    Ok(verdict.status())
}

/// Prints the evidence for a verdict, which its line does not contain.
fn explain(verdict: &Verdict, console: &Console) {
    match verdict {
        Verdict::KernelComplained { complaint, .. } => eprintln!("{complaint}"),
        Verdict::BootFailed(_) => {
            for line in console.last_of_boot() {
                eprintln!("{line}");
            }
        }
        _ => {}
    }
}

fn install_qemu(host: &Host) -> Result<()> {
    let (_, package) = host.architecture.qemu();
    match apt::installed(package) {
        Some(version) if apt::at_least(&version, OLDEST_QEMU) => Ok(()),
        _ => apt::install(&[package]),
    }
}

fn check_architecture(host: &Host, binary: &[u8]) -> Result<()> {
    let wanted = host.architecture;
    match Architecture::of_elf(binary) {
        Some(found) if found == wanted => Ok(()),
        Some(_) => bail!(
            "the binary is for another processor than that of {}: build it with --target {}",
            host.name,
            wanted.triple()
        ),
        None => bail!("the file is not an ELF binary for a processor of an emulated host"),
    }
}

/// The initramfs of a host without the binary and its libraries.
fn base(host: &Host, kernel: &Kernel, cache: &Cache) -> Result<Initramfs> {
    let mut initramfs = Initramfs::default();
    for mount_point in ["/dev", "/proc", "/sys", "/tmp"] {
        initramfs.folder(mount_point)?;
    }
    initramfs.file("/bin/busybox", &fs::read(kernel::busybox(host.architecture, cache)?)?)?;
    for module in host.modules {
        initramfs.file(&format!("/modules/{module}.ko"), &kernel.module(module)?)?;
    }
    initramfs.file("/settings", settings(host).as_bytes())?;
    initramfs.file("/init", INIT)?;
    Ok(initramfs)
}

fn settings(host: &Host) -> String {
    let skip = if host.skips_device_reset { "yes" } else { "" };
    let modules = host.modules.join(" ");
    format!("EMULATED_HOST={}\nMODULES='{modules}'\nSKIP_DEVICE_RESET={skip}\n", host.name)
}

/// The script `/run` of a host: exports the binary's environment, then becomes the binary (`exec`).
fn command(arguments: &[&str]) -> String {
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in env::vars().filter(|(name, _)| reaches_the_binary(name)) {
        script += &format!("export {name}={}\n", quoted(&value));
    }
    // The tests share one device and one processor. libtest's `--test-threads` still overrides the variable.
    script += "export RUST_TEST_THREADS=1\nexec /binary";
    for argument in arguments {
        script += &format!(" {}", quoted(argument));
    }
    script + "\n"
}

fn reaches_the_binary(variable: &str) -> bool {
    let plain = variable.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    let wanted = ["DMASPACE_", "PROPTEST_"].iter().any(|prefix| variable.starts_with(prefix));
    plain && (wanted || ["RUST_BACKTRACE", "RUST_LOG"].contains(&variable))
}

/// The shared libraries of a binary for this machine's processor. A binary for another processor must be static.
fn libraries(host: &Host, binary: &Path) -> Result<Vec<PathBuf>> {
    if host.architecture.triple().split('-').next() != Some(env::consts::ARCH) {
        return Ok(Vec::new());
    }
    let ldd = Command::new("ldd").arg(binary).env("LC_ALL", "C").output().context("cannot run ldd")?;
    let answer = String::from_utf8_lossy(&ldd.stdout).into_owned();
    ensure!(!answer.contains("not found"), "{} lacks a shared library", binary.display());
    Ok(libraries_in(&answer))
}

fn libraries_in(ldd: &str) -> Vec<PathBuf> {
    let paths = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

fn time_limit() -> Result<Duration> {
    let seconds = match env::var("EMULATED_HOST_TIMEOUT") {
        Ok(text) => text.parse().with_context(|| format!("EMULATED_HOST_TIMEOUT={text} is not a number of seconds"))?,
        Err(_) => DEFAULT_TIME_LIMIT,
    };
    Ok(Duration::from_secs(seconds))
}

/// The value of an environment variable; empty if it is not set.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// The user's additions to the machine, read from the environment.
fn extras_of_user() -> Extras {
    Extras {
        qemu_arguments: variable("EMULATED_HOST_QEMU").split_whitespace().map(str::to_owned).collect(),
        kernel_arguments: variable("EMULATED_HOST_KERNEL"),
        has_real_time: false,
        shows_everything: !variable("EMULATED_HOST_CONSOLE").is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_the_output_of_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                   \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries_in(ldd), expected);
        assert_eq!(libraries_in("\tstatically linked\n"), [] as [PathBuf; 0]);
    }

    #[test]
    fn arguments_reach_the_binary_unchanged() {
        assert!(command(&["--exact", "a b"]).ends_with("exec /binary '--exact' 'a b'\n"));
    }

    #[test]
    fn only_variables_that_tests_read_reach_the_binary() {
        assert!(reaches_the_binary("PROPTEST_CASES"));
        assert!(!reaches_the_binary("PATH"));
        assert!(!reaches_the_binary("DMASPACE_$(reboot)"));
    }
}
