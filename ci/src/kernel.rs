//! The kernels and the busybox of the emulated hosts: unpacked from Debian's packages, or built from Debian's source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, ensure};

use crate::apt::{self, answer_of};
use crate::cache::{Cache, sha256};
use crate::host::{Architecture, Host, KernelSource, Source, modules_of};
use crate::progress;

/// The options that are added to `tinyconfig` so that the tests run. None of Debian's kernels has iommufd.
const IOMMUFD_FRAGMENT: &str = include_str!("../iommufd-kernel.fragment");

/// The options with which a new enough kernel exports BARs as dma-bufs.
const DMABUF_FRAGMENT: &str = include_str!("../iommufd-dmabuf.fragment");

/// The packages that the build of a kernel needs.
const BUILD_TOOLS: &[&str] = &["gcc", "make", "flex", "bison", "bc", "libelf-dev", "libssl-dev", "xz-utils", "perl"];

/// The name of the file that QEMU boots, in a kernel's item of the cache.
const IMAGE: &str = "image";

/// A kernel in the cache.
#[derive(Debug)]
pub(crate) struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The kernel of `host`, which is fetched or built if it is not in the cache.
    pub(crate) fn of(host: &Host, cache: &Cache) -> Result<Self> {
        let item = match host.kernel {
            KernelSource::Debian { flavour } => debian(flavour, host, cache),
            KernelSource::WithIommufd(source) => with_iommufd(source, cache),
        };
        let folder = item.with_context(|| format!("there is no kernel for {}", host.name))?;
        Ok(Self { folder })
    }

    /// The file that QEMU boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    /// The content of one of the kernel's modules.
    pub(crate) fn module(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.folder.join(module_file(name))).with_context(|| format!("cannot read {name}.ko"))
    }

    /// The kernel's version, which is the name of its folder in the cache.
    pub(crate) fn version(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The path of a busybox that needs no shared libraries.
pub(crate) fn busybox(architecture: Architecture, cache: &Cache) -> Result<PathBuf> {
    let item = format!("busybox-{}", architecture.debian());
    let folder = cache.item(&item, &["busybox"], |folder| {
        let scratch = tempfile::tempdir_in(folder)?;
        let package = apt::fetch("busybox-static", architecture, scratch.path())?;
        package.unpack(&["*/bin/busybox".to_owned()], scratch.path())?;
        let unpacked = found(scratch.path(), |name| name == "busybox")?;
        fs::rename(unpacked, folder.join("busybox"))?;
        Ok(package.version)
    })?;
    Ok(folder.join("busybox"))
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

        progress!("building a kernel with iommufd (takes minutes; the kernel is kept)");
        let jobs = available_parallelism().map_or(1, usize::from);
        answer_of(make(&tree).arg(format!("-j{jobs}")).arg("bzImage"))?;
        fs::rename(tree.join("arch/x86/boot/bzImage"), folder.join(IMAGE))?;
        Ok(package.version)
    })
}

/// Configures a kernel with `tinyconfig` and the fragment. Fails if make drops an option of the fragment.
fn configure(tree: &Path, fragment: &str) -> Result<()> {
    fs::write(tree.join("kernel/configs/dmaspace.config"), fragment)?;
    answer_of(make(tree).args(["tinyconfig", "dmaspace.config"]))?;
    let dropped = dropped_options(fragment, &fs::read_to_string(tree.join(".config"))?);
    ensure!(dropped.is_empty(), "this kernel does not support {}", dropped.join(", "));
    Ok(())
}

/// The options of a fragment that are missing from a configuration.
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

/// The first file below `folder` whose name `matches`.
fn found(folder: &Path, matches: impl Fn(&str) -> bool + Copy) -> Result<PathBuf> {
    search(folder, matches)?
        .with_context(|| format!("an expected file of a package is missing below {}", folder.display()))
}

fn search(folder: &Path, matches: impl Fn(&str) -> bool + Copy) -> Result<Option<PathBuf>> {
    for read in fs::read_dir(folder)? {
        let entry = read?;
        if entry.file_type()?.is_dir() {
            if let Some(deeper) = search(&entry.path(), matches)? {
                return Ok(Some(deeper));
            }
        } else if entry.file_name().to_str().is_some_and(matches) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_a_kernel_does_not_support_is_named() {
        let configuration = "CONFIG_PCI=y\n# CONFIG_IOMMUFD is not set\nCONFIG_VFIO=m\n";
        let dropped = dropped_options("# why\nCONFIG_PCI=y\nCONFIG_IOMMUFD=y\nCONFIG_VFIO=y\n", configuration);
        assert_eq!(dropped, ["CONFIG_IOMMUFD=y", "CONFIG_VFIO=y"]);
    }

    #[test]
    fn a_file_is_found_in_nested_folders() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir_all(root.path().join("lib/modules"))?;
        fs::write(root.path().join("lib/modules/vfio.ko.xz"), "")?;
        let module = found(root.path(), |name| name.strip_suffix(".xz") == Some("vfio.ko"))?;
        assert_eq!(module, root.path().join("lib/modules/vfio.ko.xz"));
        Ok(())
    }
}
