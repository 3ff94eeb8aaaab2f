//! Kernels to boot and the busybox to boot into: Debian's, unpacked; one of our own, built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, ensure};

use crate::apt::{self, answer_of};
use crate::cache::{Cache, sha256};
use crate::host::{Architecture, Host, KernelSource, Source, modules_of};
use crate::progress;

/// The options that `tinyconfig` needs added to run the tests. None of Debian's kernels has iommufd.
const IOMMUFD_FRAGMENT: &str = include_str!("../iommufd-kernel.fragment");

/// The options that let a new enough kernel export BARs as dma-bufs.
const DMABUF_FRAGMENT: &str = include_str!("../iommufd-dmabuf.fragment");

/// The packages that building a kernel takes.
const BUILD_TOOLS: &[&str] = &["gcc", "make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils", "perl"];

/// The file in a kernel's item that QEMU boots.
const IMAGE: &str = "image";

/// A kernel in the cache.
#[derive(Debug)]
pub(crate) struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The kernel `host` boots, fetched or built if need be.
    pub(crate) fn of(host: &Host, cache: &Cache) -> Result<Self> {
        let folder = match host.kernel {
            KernelSource::Debian { flavour } => debian(flavour, host, cache),
            KernelSource::WithIommufd(source) => with_iommufd(source, cache),
        };
        let folder = folder.with_context(|| format!("no kernel for {}", host.name))?;
        Ok(Self { folder })
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    /// The code of one of its modules.
    pub(crate) fn module(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.folder.join(module_file(name))).with_context(|| format!("cannot read {name}.ko"))
    }

    /// Its version, as the cache keeps it.
    pub(crate) fn version(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// A busybox that needs no libraries.
pub(crate) fn busybox(architecture: Architecture, cache: &Cache) -> Result<Vec<u8>> {
    let item = format!("busybox-{}", architecture.debian());
    let folder = cache.item(&item, &["busybox"], |folder| {
        let scratch = tempfile::tempdir_in(folder)?;
        let package = apt::fetch("busybox-static", architecture, scratch.path())?;
        package.unpack(&["*/bin/busybox".to_owned()], scratch.path())?;
        let unpacked = found(scratch.path(), |name| name == "busybox")?;
        fs::rename(unpacked, folder.join("busybox"))?;
        Ok(package.version)
    })?;
    Ok(fs::read(folder.join("busybox"))?)
}

fn debian(flavour: &str, host: &Host, cache: &Cache) -> Result<PathBuf> {
    let modules = modules_of(host.kernel);
    let files: Vec<String> = modules.iter().map(|module| module_file(module)).collect();
    let mut contents: Vec<&str> = files.iter().map(String::as_str).collect();
    contents.push(IMAGE);

    cache.item(&format!("linux-{flavour}"), &contents, |folder| {
        apt::install_missing(&["xz-utils"])?;
        let package = apt::behind(&format!("linux-image-{flavour}"), host.architecture)?;
        let scratch = tempfile::tempdir_in(folder)?;
        let package = apt::fetch(&package, host.architecture, scratch.path())?;

        let mut patterns = vec!["./boot/vmlinu*".to_owned()];
        patterns.extend(files.iter().map(|file| format!("*/{file}*")));
        package.unpack(&patterns, scratch.path())?;

        let image = found(scratch.path(), |name| name.starts_with("vmlinu"))?;
        fs::rename(image, folder.join(IMAGE))?;
        for file in &files {
            let module = found(scratch.path(), |name| name.strip_suffix(".xz") == Some(file))?;
            answer_of(Command::new("xz").arg("--decompress").arg(&module))?;
            fs::rename(module.with_extension(""), folder.join(file))?;
        }
        Ok(package.version)
    })
}

fn with_iommufd(source: Source, cache: &Cache) -> Result<PathBuf> {
    let (name, fragment) = match source {
        Source::Preferred => ("linux-iommufd".to_owned(), IOMMUFD_FRAGMENT.to_owned()),
        Source::Since(version) => (format!("linux-iommufd-{version}"), [IOMMUFD_FRAGMENT, DMABUF_FRAGMENT].concat()),
    };
    let hash = sha256(fragment.as_bytes());
    cache.item(&format!("{name}-{hash:.12}"), &[IMAGE], |folder| {
        apt::install_missing(BUILD_TOOLS)?;
        let source = match source {
            Source::Preferred => apt::behind("linux-source", Architecture::X86_64)?,
            Source::Since(version) => apt::first_since("linux-source", version)?,
        };
        let scratch = tempfile::tempdir_in(folder)?;
        let package = apt::fetch(&source, Architecture::X86_64, scratch.path())?;
        package.unpack(&["*.tar.xz".to_owned()], scratch.path())?;

        progress!("unpacking {source}");
        let archive = scratch.path().join("usr/src").join(format!("{source}.tar.xz"));
        answer_of(Command::new("tar").arg("-xJf").arg(archive).current_dir(scratch.path()))?;
        let tree = scratch.path().join(&source);
        configure(&tree, &fragment)?;

        progress!("building a kernel with iommufd (minutes, once)");
        let jobs = available_parallelism().map_or(1, usize::from);
        answer_of(make(&tree).arg(format!("-j{jobs}")).arg("bzImage"))?;
        fs::rename(tree.join("arch/x86/boot/bzImage"), folder.join(IMAGE))?;
        Ok(package.version)
    })
}

/// `tinyconfig` and the fragment; every line of it, or the kernel is not the one asked for.
fn configure(tree: &Path, fragment: &str) -> Result<()> {
    fs::write(tree.join("kernel/configs/dmaspace.config"), fragment)?;
    answer_of(make(tree).args(["tinyconfig", "dmaspace.config"]))?;
    let dropped = dropped_options(fragment, &fs::read_to_string(tree.join(".config"))?);
    ensure!(dropped.is_empty(), "this kernel does not take {}", dropped.join(", "));
    Ok(())
}

/// The options of a fragment that did not make it into a configuration.
fn dropped_options<'a>(fragment: &'a str, configuration: &str) -> Vec<&'a str> {
    let wanted = fragment.lines().filter(|line| line.starts_with("CONFIG_"));
    wanted.filter(|option| !configuration.lines().any(|line| line == *option)).collect()
}

fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("--silent").env("LC_ALL", "C").current_dir(tree);
    make
}

fn module_file(module: &str) -> String {
    format!("{module}.ko")
}

/// The one file below `folder` whose name pleases.
fn found(folder: &Path, pleases: impl Fn(&str) -> bool + Copy) -> Result<PathBuf> {
    search(folder, pleases)?.with_context(|| format!("a package lacks a file looked for in {}", folder.display()))
}

fn search(folder: &Path, pleases: impl Fn(&str) -> bool + Copy) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(deeper) = search(&entry.path(), pleases)? {
                return Ok(Some(deeper));
            }
        } else if entry.file_name().to_str().is_some_and(pleases) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_a_kernel_does_not_take_is_named() {
        let configuration = "CONFIG_PCI=y\n# CONFIG_IOMMUFD is not set\nCONFIG_VFIO=m\n";
        let dropped = dropped_options("# why\nCONFIG_PCI=y\nCONFIG_IOMMUFD=y\nCONFIG_VFIO=y\n", configuration);
        assert_eq!(dropped, ["CONFIG_IOMMUFD=y", "CONFIG_VFIO=y"]);
    }

    #[test]
    fn a_file_is_found_however_deep_it_lies() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir_all(root.path().join("lib/modules"))?;
        fs::write(root.path().join("lib/modules/vfio.ko.xz"), "")?;
        let found = found(root.path(), |name| name.strip_suffix(".xz") == Some("vfio.ko"))?;
        assert_eq!(found, root.path().join("lib/modules/vfio.ko.xz"));
        Ok(())
    }
}
