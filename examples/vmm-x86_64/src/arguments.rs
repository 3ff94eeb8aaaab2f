//! The command line.

use std::path::PathBuf;

use dmaspace::{BackendKind, PciAddress};

use crate::Result;

/// The help.
pub(crate) const USAGE: &str = "\
usage: vmm-x86_64 --kernel FILE [OPTION]…
  --kernel FILE       a Linux kernel (bzImage)
  --initrd FILE       its initial RAM disk
  --append TEXT       its command line (console=ttyS0)
  --memory MIB        the guest's RAM (256)
  --module MIB        a memory module, a multiple of 128 MiB, which a line `plug` on the standard input plugs
  --device ADDRESS    a PCI device that is bound to vfio-pci, such as 0000:01:00.0
  --backend NAME      type1 or iommufd (the better one that the host offers)
  --unmapped          the device cannot reach the guest's RAM: the control of a test
The guest's console is the standard output.";

/// The bytes of a MiB.
const MIB: u64 = 1 << 20;

/// The command line's values.
#[derive(Debug, PartialEq)]
pub(crate) struct Arguments {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) append: String,
    /// In bytes.
    pub(crate) memory: u64,
    /// In bytes; 0 without a memory module.
    pub(crate) module: u64,
    pub(crate) device: Option<PciAddress>,
    pub(crate) backend: Option<BackendKind>,
    pub(crate) unmapped: bool,
}

impl Arguments {
    /// Reads the command line. `None` if it is empty or asks for the help.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut kernel = None;
        let mut found = Self {
            kernel: PathBuf::new(),
            initrd: None,
            append: "console=ttyS0".into(),
            memory: 256 * MIB,
            module: 0,
            device: None,
            backend: None,
            unmapped: false,
        };
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{option} needs a value"));
            match option.as_str() {
                "--help" => return Ok(None),
                "--kernel" => kernel = Some(value()?.into()),
                "--initrd" => found.initrd = Some(value()?.into()),
                "--append" => found.append = value()?,
                "--memory" => found.memory = mebibytes(&value()?)?,
                "--module" => found.module = mebibytes(&value()?)?,
                "--device" => found.device = Some(value()?.parse()?),
                "--backend" => found.backend = Some(backend(&value()?)?),
                "--unmapped" => found.unmapped = true,
                _ => return Err(format!("unknown option {option}; see --help").into()),
            }
        }
        let Some(kernel) = kernel else { return Ok(None) };
        Ok(Some(Self { kernel, ..found }))
    }
}

fn mebibytes(text: &str) -> Result<u64> {
    let number: u64 = text.parse().map_err(|_| format!("{text:?} is no number of MiB"))?;
    number.checked_mul(MIB).ok_or_else(|| format!("{text} MiB are too many").into())
}

fn backend(name: &str) -> Result<BackendKind> {
    match name {
        "type1" => Ok(BackendKind::Type1),
        "iommufd" => Ok(BackendKind::Iommufd),
        _ => Err(format!("unknown backend {name:?}: type1 or iommufd").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Arguments>> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_command_line_has_defaults_and_a_device() {
        let arguments = parse("--kernel k --device 0000:01:00.0 --module 128").expect("right").expect("a kernel");
        assert_eq!((arguments.memory, arguments.module), (256 << 20, 128 << 20));
        assert_eq!(arguments.device.map(|device| device.to_string()), Some("0000:01:00.0".into()));
    }

    #[test]
    fn without_a_kernel_there_is_help() {
        assert_eq!(parse("--memory 64").expect("right"), None);
    }

    #[test]
    fn a_wrong_line_is_an_error() {
        for line in
            ["--kernel", "--kernel k --memory much", "--kernel k --device 1", "--kernel k --backend vhost", "-x"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
