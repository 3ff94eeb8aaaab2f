//! The kernel's modules: which are there, and which could be loaded.

use std::collections::BTreeSet;

use dmaspace::facts::HostFiles as _;

use crate::program::root::Root;

/// The kernel's modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modules {
    loaded: BTreeSet<String>,
    builtin: BTreeSet<String>,
    /// Those that can be loaded. `None` where the list is missing.
    loadable: Option<BTreeSet<String>>,
}

/// The state of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It is at work, loaded or built in.
    Here,
    /// It can be loaded.
    Loadable,
    /// The kernel does not have it.
    Absent,
    /// The list of modules could not be read.
    Unknown,
}

impl Modules {
    pub(super) fn of(root: &Root, kernel: &str) -> Self {
        let list = |name: &str| {
            let text = root.text(format!("lib/modules/{kernel}/{name}"));
            let text = text.or_else(|| root.text(format!("usr/lib/modules/{kernel}/{name}")));
            text.map(|text| text.lines().filter_map(module_in).collect::<BTreeSet<_>>())
        };
        let loaded = root.names("sys/module".as_ref()).unwrap_or_default();
        Self {
            loaded: loaded.into_iter().collect(),
            builtin: list("modules.builtin").unwrap_or_default(),
            loadable: list("modules.dep"),
        }
    }

    /// The state of the module with that name, with underscores.
    pub(crate) fn state(&self, module: &str) -> State {
        match &self.loadable {
            _ if self.loaded.contains(module) || self.builtin.contains(module) => State::Here,
            Some(loadable) if loadable.contains(module) => State::Loadable,
            Some(_) => State::Absent,
            None => State::Unknown,
        }
    }
}

/// The module in a line of modules.dep or modules.builtin: `kernel/drivers/vfio/pci/vfio-pci.ko.xz: …`.
fn module_in(line: &str) -> Option<String> {
    let path = line.split(':').next()?;
    let name = path.rsplit('/').next()?.split(".ko").next()?;
    Some(name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_their_names_with_underscores() {
        let dep = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz";
        assert_eq!(module_in(dep).as_deref(), Some("vfio_pci"));
        assert_eq!(module_in("kernel/drivers/iommu/iommufd/iommufd.ko").as_deref(), Some("iommufd"));
    }
}
