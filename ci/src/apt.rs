//! Debian's packages: fetched and unpacked for the emulated hosts, or installed on this machine to run the hosts.
//!
//! Every call of apt goes through `ci/apt`, which has package sources and lists of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::Architecture;
use crate::progress;

/// A package file that was fetched.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) file: PathBuf,
    pub(crate) version: String,
}

/// Installs the missing ones of `packages`. The caller must be root if there is one.
pub(crate) fn install_missing(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| installed(package).is_none()).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs the newest version of `packages`. The caller must be root.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    ensure!(rustix::process::geteuid().is_root(), "packages are missing; as root: ci/apt apt-get install {names}");
    progress!("installing {names}");
    let mut install = apt("apt-get");
    install.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    answer_of(&mut install).map(|_| ())
}

/// Fetches a package into `folder` without installing it.
pub(crate) fn fetch(package: &str, architecture: Architecture, folder: &Path) -> Result<Package> {
    let package = format!("{package}:{}", architecture.debian());
    progress!("fetching {package}");
    answer_of(apt("apt-get").args(["download", &package]).current_dir(folder))?;

    let entry = fs::read_dir(folder)?.next().context("apt-get download left no file")?;
    let file = entry?.path();
    let version = answer_of(Command::new("dpkg-deb").arg("--field").arg(&file).arg("Version"))?;
    Ok(Package { file, version: version.trim().to_owned() })
}

/// The package that a metapackage stands for today: `linux-image-amd64` → `linux-image-6.12.95+deb12-amd64`.
pub(crate) fn behind(metapackage: &str, architecture: Architecture) -> Result<String> {
    let package = format!("{metapackage}:{}", architecture.debian());
    let answer = answer_of(apt("apt-cache").args(["depends", "--important", &package]))?;
    first_dependency(&answer).with_context(|| format!("Debian has no {package}"))
}

/// The package `<name>-<version>` with the lowest version that is at least `version`: `linux-source`, `7.2` →
/// `linux-source-7.2`, or `linux-source-7.4` if Debian has no version between the two.
pub(crate) fn first_since(name: &str, version: &str) -> Result<String> {
    let pattern = format!("^{name}-[0-9.]*$");
    let answer = answer_of(apt("apt-cache").args(["search", "--names-only", &pattern]))?;
    oldest_since(&answer, name, version).with_context(|| format!("Debian has no {name} of version {version} or later"))
}

fn apt(program: &str) -> Command {
    let mut apt = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/apt"));
    apt.arg(program).arg("--quiet");
    apt
}

impl Package {
    /// Unpacks the files that match `patterns`, in the sense of tar's wildcards.
    pub(crate) fn unpack(&self, patterns: &[String], into: &Path) -> Result<()> {
        let mut package = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&self.file)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run dpkg-deb")?;
        let archive = package.stdout.take().context("dpkg-deb has no output")?;
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--wildcards").args(patterns).stdin(archive);
        let unpacked = answer_of(tar.current_dir(into));
        package.wait()?;
        unpacked.map(|_| ())
    }
}

/// The version of a package that is installed here.
pub(crate) fn installed(package: &str) -> Option<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status} ${Version}", package]);
    let answer = answer_of(&mut query).ok()?;
    answer.strip_prefix("installed ").map(str::to_owned)
}

/// Returns `true` if `version` is `oldest` or later, as dpkg compares versions.
pub(crate) fn at_least(version: &str, oldest: &str) -> bool {
    let mut compare = Command::new("dpkg");
    answer_of(compare.args(["--compare-versions", version, "ge", oldest])).is_ok()
}

/// Runs a program and returns its standard output. If the program fails, the error contains its message.
pub(crate) fn answer_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{program} failed ({}): {}", output.status, gist(&complaints));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The most useful line of a program's standard error: the first error, or else the last line that is not empty.
fn gist(complaints: &str) -> &str {
    let error = complaints.lines().find(|line| line.starts_with("E: ") || line.contains("rror: "));
    let last = complaints.lines().rfind(|line| !line.trim().is_empty());
    error.or(last).unwrap_or("it printed no reason").trim()
}

fn first_dependency(apt_cache_depends: &str) -> Option<String> {
    let mut lines = apt_cache_depends.lines();
    let name = lines.find_map(|line| line.trim().strip_prefix("Depends: "))?;
    Some(name.split(':').next().unwrap_or(name).to_owned())
}

/// The package `<name>-<version>` with the lowest version from `since` on, in the output of `apt-cache search`.
fn oldest_since(apt_cache_search: &str, name: &str, since: &str) -> Option<String> {
    let wanted = numbers(since)?;
    let packages =
        apt_cache_search.lines().filter_map(|line| line.split_once(" - ")).map(|(package, _)| package.trim());
    let versions =
        packages.filter_map(|package| Some((numbers(package.strip_prefix(name)?.strip_prefix('-')?)?, package)));
    let (_, oldest) = versions.filter(|(version, _)| *version >= wanted).min()?;
    Some(oldest.to_owned())
}

/// The numbers of a version, which compare one by one: 10.2 is later than 7.3.
fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_packages_are_compared_number_by_number() {
        let answer = "linux-source-6.12 - Linux kernel source\nlinux-source-10.2 - Linux kernel source\n\
                      linux-source-7.3 - Linux kernel source\nlinux-source-7.x - no version\n";
        let table = [
            ("7.2", Some("linux-source-7.3")),
            ("6.2", Some("linux-source-6.12")),
            ("7.10", Some("linux-source-10.2")),
            ("11", None),
        ];
        for (since, expected) in table {
            assert_eq!(oldest_since(answer, "linux-source", since).as_deref(), expected, "since {since}");
        }
    }

    #[test]
    fn the_package_behind_a_metapackage_is_named_without_its_architecture() {
        let answer = "linux-image-powerpc64le:ppc64el\n  Depends: linux-image-6.12.95-powerpc64le:ppc64el\n";
        assert_eq!(first_dependency(answer).as_deref(), Some("linux-image-6.12.95-powerpc64le"));
        assert_eq!(first_dependency("linux-image-vax\n"), None);
    }

    #[test]
    fn the_gist_is_the_first_error_or_else_the_last_line() {
        assert_eq!(gist("W: slow\nE: no such package\nW: bye\n"), "E: no such package");
        assert_eq!(gist("tar: x\ntar: giving up\n\n"), "tar: giving up");
        assert_eq!(gist(""), "it printed no reason");
    }
}
