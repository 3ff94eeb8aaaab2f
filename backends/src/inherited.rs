//! Opening from descriptors that another process has handed over, with everything that is mapped in them: the new process's part of a live
//! update. What is handed over and what becomes of it is in [`dmaspace_core::contract::live_update`].
//!
//! Descriptors go from process to process through exec(2), without close-on-exec, or through a socket (`SCM_RIGHTS`). The old process
//! lends its own with [`LinuxDoor::with_descriptor`](crate::LinuxDoor::with_descriptor), the new one adopts them
//! ([`OwnedHandle::adopt`]): the container, its groups, their devices, and the files behind the guest's memory. Here both
//! processes are in software, where descriptors have no numbers:
#![cfg_attr(feature = "soft", doc = "```")]
#![cfg_attr(not(feature = "soft"), doc = "```ignore")]
//! use std::num::NonZeroU64;
//!
//! use dmaspace::contract::{Attachable as _, Unit};
//! use dmaspace::door::OwnedHandle;
//! use dmaspace::live_update::NamedMemory;
//! use dmaspace::{Access, BackendKind, Facts, Host, HostMemory, Iova, OpenRequest};
//! # use dmaspace_soft::{Profile, SoftHost};
//! # let gib = NonZeroU64::new(1 << 30).ok_or("no memory")?;
//!
//! // The old VMM.
//! let old = SoftHost::new(Profile::vtd())?;
//! let host = Host::new(old.clone(), Facts::of_soft(old.profile()));
//! let opened = host.open(&OpenRequest::device("0000:00:03.0".parse()?).with_backend(BackendKind::Type1))?;
//! let space = opened.space.space().clone();
//! let ram = HostMemory::unbacked(0x7f00_0000_0000, gib).ok_or("it wraps")?;
//! space.map(Iova::new(0), &ram, Access::READ_WRITE, Unit::Whole)?;
//!
//! let handover = space.handover().hand_over(&NamedMemory::new().with("ram", ram))?;
//! let device = &opened.devices[0];
//!
//! // The new one, with the same descriptors, and with the same file mapped elsewhere. Devices have been at work all the time.
//! let new = old.fork();
//! let host = Host::new(new.clone(), Facts::of_soft(new.profile()));
//! let owned = |handle| OwnedHandle::simulated(new.clone(), handle).ok_or("a real host");
//! let group = &opened.space.groups()[0];
//! let groups = vec![(group.name(), owned(group.handle())?)];
//! let inherited = host.inherit(BackendKind::Type1, owned(opened.space.handle().ok_or("no container")?)?, groups)?;
//! let nic = inherited.inherit_device(&inherited.groups()[0].clone(), owned(device.handle())?, device.name());
//! let ram = HostMemory::unbacked(0x7e00_0000_0000, gib).ok_or("it wraps")?;
//! let space = inherited.space();
//! // SAFETY: it is the same file under the same name.
//! unsafe { space.handover().adopt(&handover, &NamedMemory::new().with("ram", ram.clone()))? };
//! assert_eq!(space.lookup(Iova::new(0x1000)).map(|mapping| mapping.memory), Some(ram));
//!
//! // The old one ends: it closes what it has, and unmaps nothing.
//! let before = old.calls();
//! drop((opened, host));
//! assert_eq!(new.calls().of("VFIO_IOMMU_UNMAP_DMA"), before.of("VFIO_IOMMU_UNMAP_DMA"));
//! # drop((nic, inherited));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use dmaspace_core::Space;
use dmaspace_core::contract::Attachable;
use dmaspace_core::door::OwnedHandle;
use dmaspace_type1::Type1;

use crate::choose::BackendKind;
use crate::device::Device;
use crate::group::VfioGroup;
use crate::open::{Host, OpenError, OpenSpace};

impl Host {
    /// Makes a space of a container with groups in it, all of them open and inherited from a process that has handed the space over.
    /// Each group goes by the name it was handed over by ([`Handover::devices`](dmaspace_core::contract::live_update::Handover::devices)), and is told
    /// to this host's registry. Until the space has adopted what was described, nothing of it can be changed, and dropping it closes the
    /// descriptors and nothing else.
    ///
    /// # Errors
    /// [`OpenError::NoChoice`] for a backend that hands nothing over, [`OpenError::Registry`], [`OpenError::NotInherited`] for a group
    /// that is in no container, [`OpenError::Refused`], [`OpenError::Attach`]. What was passed in is closed then; what is mapped stays.
    pub fn inherit(
        &self,
        backend: BackendKind,
        container: OwnedHandle,
        groups: Vec<(String, OwnedHandle)>,
    ) -> Result<OpenSpace, OpenError> {
        let door = self.door().clone();
        // Everything has an owner first: whatever fails, all of it is closed.
        let handle = container.handle();
        let type1 = Type1::new(container);
        let members = groups.into_iter().map(|(name, handle)| VfioGroup::new(handle, name, backend));
        let members: Vec<_> = members.collect();
        if backend != BackendKind::Type1 {
            return Err(OpenError::NoChoice {
                backend,
                why: "hands over nothing that a container could be inherited with",
            });
        }
        let members = members.into_iter().map(|member| self.welcome(member).map(Arc::new));
        let members: Vec<Arc<VfioGroup>> = members.collect::<Result<_, _>>()?;
        let devices = members.iter().map(|member| member.clone() as Arc<dyn Attachable>).collect();
        let space = Arc::new(Space::inherited(type1, devices)?);
        Ok(self.share_registry(OpenSpace::at(door, backend, space, handle).with_groups(members)))
    }

    fn welcome(&self, member: VfioGroup) -> Result<VfioGroup, OpenError> {
        let name = member.name();
        if !member.is_in_a_container().map_err(|failure| OpenError::refused(&name, failure))? {
            return Err(OpenError::NotInherited { group: name });
        }
        let known = self.facts().groups.values().find(|group| format!("group {}", group.number) == name);
        let reserved = known.map(|group| self.facts().reserved(group.number, &name)).unwrap_or_default();
        let member = member.with_reserved(reserved);
        match self.registry() {
            Some(registry) => {
                let registered = member.with_registry(registry.clone());
                registered.map_err(|errno| OpenError::Registry { subject: name, errno })
            }
            None => Ok(member),
        }
    }
}

impl OpenSpace {
    /// Takes over an open device of an inherited group. `name` is the one sysfs has for it.
    pub fn inherit_device(&self, group: &Arc<VfioGroup>, device: OwnedHandle, name: &str) -> Device {
        Device::of_group(device, group, name).with_space(self.space().clone())
    }
}
