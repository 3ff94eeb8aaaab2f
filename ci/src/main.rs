//! A cargo runner that boots an emulated host and runs one binary in it.
//!
//! ```text
//! EMULATED_HOST=powernv9 cargo test -p dmaspace-tests --test host --target powerpc64le-unknown-linux-gnu
//! ```
//!
//! makes cargo call `ci/runner`, which calls this program with the host's name, the test binary and its
//! arguments. It puts a kernel ([`kernel`]), a busybox and the binary into an initramfs ([`initramfs`]),
//! starts the [`host`]'s machine ([`qemu`]), passes on the test's output ([`console`]) and judges how
//! it ended ([`verdict`]). Kernels come from Debian's packages ([`apt`]) and are kept in a [`cache`].
//!
//! Environment: `EMULATED_HOST_TIMEOUT` (seconds, default 900), `EMULATED_HOST_QEMU` (more arguments for
//! QEMU), `EMULATED_HOST_KERNEL` (more for the kernel's command line), `EMULATED_HOST_CONSOLE=1` (shows
//! firmware and kernel too). `RUST_BACKTRACE`, `RUST_LOG`, and what starts with `DMASPACE_` or
//! `PROPTEST_` reach the binary.
//!
//! Exit status: the binary's; 120 the host did not run it, 121 its kernel panicked, 122 its kernel
//! complained though the binary was content, 124 the time limit passed.

mod apt;
mod cache;
mod console;
mod host;
mod initramfs;
mod kernel;
mod qemu;
mod verdict;

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
       emulated-host list";

const INIT: &[u8] = include_bytes!("init.sh");

const DEFAULT_TIME_LIMIT: u64 = 900;

/// Older ones were not tried.
const OLDEST_QEMU: &str = "1:10";

/// Reports progress on stderr.
macro_rules! progress {
    ($($what:tt)*) => { eprintln!("emulated-host: {}", format_args!($($what)*)) };
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

/// Fetches, installs and builds what hosts need; all of them, when none is named.
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

/// ProcessRegistrations a binary in a host.
fn run(host: &str, binary: &Path, arguments: &[&str]) -> Result<u8> {
    let host = Host::named(host)?;
    let content = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    check_architecture(host, &content)?;
    let limit = time_limit()?;
    let extras = extras();

    let cache = Cache::of_user()?;
    install_qemu(host)?;
    let kernel = Kernel::of(host, &cache)?;
    let mut initramfs = base(host, &kernel, &kernel::busybox(host.architecture, &cache)?)?;
    initramfs.file("/binary", &content)?;
    initramfs.file("/run", command(arguments).as_bytes())?;
    for library in libraries(host, binary)? {
        let path = library.to_str().context("a library's path is not UTF-8")?;
        initramfs.file(path, &fs::read(&library)?)?;
    }

    progress!("booting {} (Linux {})", host.name, kernel.version());
    let start = Instant::now();
    let machine = Machine::start(host, &kernel.image(), &initramfs.finish()?, &extras)?;
    let mut console = Console::new(extras.shows_everything);
    let stop = machine.watch(limit, &mut console, &mut std::io::stdout())?;
    let verdict = Verdict::on(&console, stop);
    explain(&verdict, &console);
    progress!("{}: {}, after {:.1} s", host.name, verdict.line(), start.elapsed().as_secs_f32());
    Ok(verdict.status())
}

/// Shows details that the verdict's line does not tell.
fn explain(verdict: &Verdict, console: &Console) {
    match verdict {
        Verdict::KernelComplained { complaint, .. } => eprintln!("{complaint}"),
        Verdict::BootFailed(_) => console.last_of_boot().for_each(|line| eprintln!("{line}")),
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
        Some(_) => bail!("{} needs another binary: cargo … --target {}", host.name, wanted.triple()),
        None => bail!("not a binary that any emulated host could run"),
    }
}

/// All of a host's files but the binary and its libraries.
fn base(host: &Host, kernel: &Kernel, busybox: &[u8]) -> Result<Initramfs> {
    let mut initramfs = Initramfs::default();
    for mount_point in ["/dev", "/proc", "/sys", "/tmp"] {
        initramfs.folder(mount_point)?;
    }
    initramfs.file("/bin/busybox", busybox)?;
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

/// The script that becomes the binary, with the environment it is to see.
fn command(arguments: &[&str]) -> String {
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in env::vars().filter(|(name, _)| reaches_the_binary(name)) {
        script += &format!("export {name}={}\n", quoted(&value));
    }
    // The device is one, and so is the processor. libtest's own option still has its way.
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

/// The shared libraries to take along. A binary for another processor has to be static.
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
        Ok(text) => text.parse().with_context(|| format!("EMULATED_HOST_TIMEOUT={text} is no number of seconds"))?,
        Err(_) => DEFAULT_TIME_LIMIT,
    };
    Ok(Duration::from_secs(seconds))
}

fn extras() -> Extras {
    let variable = |name| env::var(name).unwrap_or_default();
    Extras {
        qemu_arguments: variable("EMULATED_HOST_QEMU").split_whitespace().map(str::to_owned).collect(),
        kernel_arguments: variable("EMULATED_HOST_KERNEL"),
        shows_everything: !variable("EMULATED_HOST_CONSOLE").is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd_loader_included() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                   \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries_in(ldd), expected);
        assert_eq!(libraries_in("\tstatically linked\n"), [] as [PathBuf; 0]);
    }

    #[test]
    fn arguments_reach_the_binary_as_they_are() {
        assert!(command(&["--exact", "a b"]).ends_with("exec /binary '--exact' 'a b'\n"));
    }

    #[test]
    fn only_what_tests_look_at_reaches_them() {
        assert!(reaches_the_binary("PROPTEST_CASES"));
        assert!(!reaches_the_binary("PATH"));
        assert!(!reaches_the_binary("DMASPACE_$(reboot)"));
    }
}
