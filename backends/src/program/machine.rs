//! A machine as `probe` and `doctor` see it: the library's facts, and more from its files.
//!
//! Nothing here changes the machine. On this host nodes are opened for a moment, to see whether they can be; on a copy
//! of another host's files their owners tell. Where something cannot be seen, the machine remembers it, with the right
//! that it would take.

mod access;
mod modules;
mod pci;
mod units;

use std::sync::Arc;

use dmaspace::facts::{Facts, HostFiles as _};
use dmaspace::pci::PciAddress;
use dmaspace::{LinuxDoor, PageSize};
use serde::Serialize;

use crate::program::failure::Failure;
use crate::program::root::Root;

pub(crate) use access::{Access, User};
pub(crate) use modules::{Modules, State};
pub(crate) use pci::{Bar, Function};
pub(crate) use units::{Unit, UnitKind};

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) root: Root,
    pub(crate) facts: Facts,
    /// The door to the kernel, if this is the host this program runs on.
    pub(crate) door: Option<Arc<LinuxDoor>>,
    pub(crate) modules: Modules,
    /// The IOMMUs that the kernel lists.
    pub(crate) units: Vec<Unit>,
    /// The words of the kernel's command line.
    pub(crate) command_line: Vec<String>,
    pub(crate) user: User,
    /// The things that could not be seen.
    pub(crate) unseen: Vec<Unseen>,
}

/// Something that could not be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Unseen {
    /// The thing.
    pub(crate) what: String,
    /// The right or the file that it would take.
    pub(crate) needs: String,
}

impl Machine {
    /// Reads a machine's files.
    ///
    /// # Errors
    /// Files of a host that cannot be read or understood.
    pub(crate) fn of(root: Root) -> Result<Self, Failure> {
        if !root.exists("sys".as_ref()) {
            return Err(Failure::Input("expected the files of a host: there is no /sys among them".to_owned()));
        }
        let mut unseen = Vec::new();
        let (facts, door) = match root.is_here {
            true => {
                let door = Arc::new(LinuxDoor::new());
                let facts = Facts::of_this_host(&*door).map_err(|error| Failure::host(&error))?;
                (facts, Some(door))
            }
            false => {
                let page = page_of(&root, &mut unseen);
                let facts = Facts::of_files(&root, page).map_err(|error| Failure::Input(error.to_string()))?;
                (facts, None)
            }
        };
        let modules = Modules::of(&root, &facts.kernel);
        let units = units::read(&root);
        let parameters = root.text("proc/cmdline").unwrap_or_default();
        if !root.exists("proc/cmdline".as_ref()) {
            unseen.push(Unseen::new("the kernel's command line", "/proc/cmdline in the copy"));
        }
        if !root.has_nodes() {
            unseen.push(Unseen::new(
                "the nodes in /dev and their owners, sysfs tells which there are",
                "/dev in the copy",
            ));
        }
        let user = User::of(&root);
        let command_line = parameters.split_whitespace().map(str::to_owned).collect();
        Ok(Self { root, facts, door, modules, units, command_line, user, unseen })
    }

    /// The name of the machine.
    pub(crate) fn name(&self) -> String {
        let name = self.root.text("proc/sys/kernel/hostname").filter(|name| !matches!(name.as_str(), "" | "(none)"));
        name.unwrap_or_else(|| "this-host".to_owned())
    }

    /// The kernel's name for the architecture.
    pub(crate) fn architecture(&self) -> String {
        let name = self.root.text("proc/sys/kernel/arch").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        if name == "powerpc64" { "ppc64le".to_owned() } else { name }
    }

    /// The IOMMU in front of a device, as a place in the list.
    pub(crate) fn unit_of(&self, address: PciAddress) -> Option<usize> {
        let name = self.root.link(format!("sys/bus/pci/devices/{address}/iommu"))?;
        self.units.iter().position(|unit| unit.name == name)
    }

    /// The value of a parameter on the kernel's command line: `on` of `intel_iommu=on`. The last one counts.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let mut values = self.command_line.iter().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.next_back()
    }

    /// Returns whether a parameter of a module is set.
    pub(crate) fn is_set(&self, module: &str, parameter: &str) -> bool {
        let text = self.root.text(format!("sys/module/{module}/parameters/{parameter}"));
        text.is_some_and(|text| matches!(text.as_str(), "Y" | "1"))
    }

    /// Returns whether the firmware describes an IOMMU, whatever the kernel makes of it.
    pub(crate) fn has_table(&self) -> bool {
        ["DMAR", "IVRS", "IORT"]
            .iter()
            .any(|table| self.root.exists(format!("sys/firmware/acpi/tables/{table}").as_ref()))
    }
}

impl Unseen {
    pub(crate) fn new(what: impl Into<String>, needs: impl Into<String>) -> Self {
        Self { what: what.into(), needs: needs.into() }
    }
}

/// The page of a host whose files these are. No file says it plainly; some files show it.
fn page_of(root: &Root, unseen: &mut Vec<Unseen>) -> PageSize {
    let in_kib = |text: &str| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
    let smaps = root.text("proc/self/smaps").unwrap_or_default();
    let told = smaps.lines().find_map(|line| in_kib(line.strip_prefix("KernelPageSize:")?));
    if let Some(page) = told.and_then(|kib| PageSize::from_bytes(kib << 10)) {
        return page;
    }
    let kernel = root.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let architecture = root.text("proc/sys/kernel/arch").unwrap_or_default();
    match architecture.as_str() {
        "x86_64" | "s390x" => return PageSize::K4,
        _ if kernel.contains("64k") => return PageSize::K64,
        _ if kernel.contains("16k") => return PageSize::from_shift(14).unwrap_or(PageSize::K4),
        _ => {}
    }
    // A large page is as many small ones as a small one has entries of 8 bytes (arm64).
    if root.exists("sys/kernel/mm/hugepages/hugepages-524288kB".as_ref()) && architecture == "aarch64" {
        return PageSize::K64;
    }
    unseen.push(Unseen::new("the size of the host's pages, 4K is assumed", "/proc/self/smaps in the copy"));
    PageSize::K4
}
