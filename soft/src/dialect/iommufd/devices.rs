//! Devices: bound, attached to page tables, moved, and closed (linux: drivers/iommu/iommufd/device.c).
//!
//! Page tables that the kernel made are created for the first device that needs one and removed with the last; those
//! that were allocated by request stay until they are destroyed.

use dmaspace_core::IovaRange;
use dmaspace_core::door::Errno;

use super::ioas::{Ioas, Owner};
use super::page_table::PageTable;
use super::{Context, DeviceIndex, Object, ioas_of};
use crate::dialect::{System, require};
use crate::facts::Iommu;

/// The destination of an attach.
#[derive(Clone, Copy, Debug)]
struct Target {
    ioas: u32,
    /// One of its page tables; `None` leaves the choice to the kernel.
    chosen: Option<u32>,
    /// The IOMMU in front of the device.
    iommu: Iommu,
}

impl Context {
    /// iommufd_device_bind, after the owner is claimed: returns the device's id.
    pub(crate) fn bind(&mut self, group: u32) -> u32 {
        let id = self.free_id();
        self.objects.insert(id, Object::Device(group));
        id
    }

    /// iommufd_device_unbind.
    pub(crate) fn unbind(&mut self, system: &mut System, id: u32, device: DeviceIndex, group: u32) {
        self.detach(system, device, group);
        self.objects.remove(&id);
    }

    /// iommufd_device_attach and iommufd_device_replace: to a page table, or to an address space, for which the kernel
    /// uses or makes one. Returns the page table.
    pub(crate) fn attach(
        &mut self,
        system: &mut System,
        device: DeviceIndex,
        group: u32,
        to: u32,
    ) -> Result<u32, Errno> {
        let (ioas, chosen) = match self.objects.get(&to).ok_or(Errno::ENOENT)? {
            Object::Ioas(_) => (to, None),
            Object::PageTable(ioas) => (*ioas, Some(to)),
            Object::Device(_) => return Err(Errno::EINVAL),
        };
        let target = Target { ioas, chosen, iommu: system.facts.iommu(group) };
        let attached = self.groups.get(&group).is_some_and(|attachment| attachment.devices.contains(&device));
        if attached { self.replace(system, group, target) } else { self.attach_anew(system, device, group, target) }
    }

    /// iommufd_hw_pagetable_attach: the device's reserved ranges first, then the page table.
    fn attach_anew(
        &mut self,
        system: &mut System,
        device: DeviceIndex,
        group: u32,
        target: Target,
    ) -> Result<u32, Errno> {
        system.facts.attach(group)?;
        let current = self.groups.get(&group).and_then(|attachment| attachment.page_table);
        require(current.is_none() || current == self.found(target)?, Errno::EINVAL)?;
        self.ioas_mut(target.ioas)?.reserve(system.facts.reserved(group), Owner::Device(device))?;
        let page_table = match self.page_table_of(system, target) {
            Ok(page_table) => page_table,
            Err(errno) => {
                self.unreserve(target.ioas, &[device]);
                return Err(errno);
            }
        };
        let attachment = self.groups.entry(group).or_default();
        attachment.page_table = Some(page_table);
        attachment.devices.push(device);
        Ok(page_table)
    }

    /// iommufd_device_do_replace: the whole group moves.
    fn replace(&mut self, system: &mut System, group: u32, target: Target) -> Result<u32, Errno> {
        let page_table = self.page_table_of(system, target)?;
        let attachment = self.groups.entry(group).or_default();
        let Some(old) = attachment.page_table.filter(|old| *old != page_table) else { return Ok(page_table) };
        let devices = attachment.devices.clone();
        let old_ioas = self.ioas_of_page_table(old)?.1;
        for device in devices.iter().filter(|_| old_ioas != target.ioas) {
            let reserved = self.ioas_mut(target.ioas)?.reserve(system.facts.reserved(group), Owner::Device(*device));
            if let Err(errno) = reserved {
                self.unreserve(target.ioas, &devices);
                self.drop_if_unused(system, page_table);
                return Err(errno);
            }
        }
        if old_ioas != target.ioas {
            self.unreserve(old_ioas, &devices);
        }
        self.groups.entry(group).or_default().page_table = Some(page_table);
        self.drop_if_unused(system, old);
        Ok(page_table)
    }

    /// iommufd_device_detach. Does nothing for a device that is not attached.
    pub(crate) fn detach(&mut self, system: &mut System, device: DeviceIndex, group: u32) {
        let Some(attachment) = self.groups.get_mut(&group) else { return };
        attachment.devices.retain(|other| *other != device);
        let page_table = attachment.page_table;
        if attachment.devices.is_empty() {
            self.groups.remove(&group);
        }
        let Some(page_table) = page_table else { return };
        if let Ok((_, ioas)) = self.ioas_of_page_table(page_table) {
            self.unreserve(ioas, &[device]);
        }
        self.drop_if_unused(system, page_table);
    }

    /// The existing page table of a destination.
    fn found(&self, target: Target) -> Result<Option<u32>, Errno> {
        let mut known = self.ioas(target.ioas)?.page_tables.iter();
        if target.chosen.is_some() {
            return Ok(target.chosen);
        }
        let shared = known.find(|(_, page_table)| page_table.is_automatic && page_table.fits(target.iommu));
        Ok(shared.map(|(id, _)| *id))
    }

    /// The page table of a destination, made if an address space has none (linux: iommufd_device_auto_get_domain).
    fn page_table_of(&mut self, system: &mut System, target: Target) -> Result<u32, Errno> {
        if let Some(id) = self.found(target)? {
            let fits = self.page_table_mut(id)?.fits(target.iommu);
            return require(fits, Errno::EINVAL).map(|()| id);
        }
        let id = self.free_id();
        self.add_page_table(system, target.ioas, id, PageTable::automatic(target.iommu))?;
        Ok(id)
    }

    pub(super) fn add_page_table(
        &mut self,
        system: &mut System,
        ioas: u32,
        id: u32,
        page_table: PageTable,
    ) -> Result<(), Errno> {
        ioas_of(&mut self.objects, ioas)?.add_page_table(system, &mut self.pages, id, page_table)?;
        self.objects.insert(id, Object::PageTable(ioas));
        Ok(())
    }

    pub(super) fn remove_page_table(&mut self, system: &mut System, id: u32) {
        let Some(Object::PageTable(ioas)) = self.objects.remove(&id) else { return };
        if let Ok(ioas) = ioas_of(&mut self.objects, ioas) {
            ioas.remove_page_table(system, &mut self.pages, id);
        }
    }

    pub(super) fn is_in_use(&self, page_table: u32) -> bool {
        self.groups.values().any(|attachment| attachment.page_table == Some(page_table))
    }

    /// iommufd_hw_pagetable_put: removes a page table that the kernel made, with its last device.
    fn drop_if_unused(&mut self, system: &mut System, id: u32) {
        let automatic = self.page_table_mut(id).is_ok_and(|page_table| page_table.is_automatic);
        if automatic && !self.is_in_use(id) {
            self.remove_page_table(system, id);
        }
    }

    /// The address space that a page table maps, and its id.
    pub(super) fn ioas_of_page_table(&mut self, id: u32) -> Result<(&mut Ioas, u32), Errno> {
        let Some(&Object::PageTable(ioas)) = self.objects.get(&id) else { return Err(Errno::ENOENT) };
        Ok((self.ioas_mut(ioas)?, ioas))
    }

    pub(super) fn page_table_mut(&mut self, id: u32) -> Result<&mut PageTable, Errno> {
        self.ioas_of_page_table(id)?.0.page_tables.get_mut(&id).ok_or(Errno::ENOENT)
    }

    /// A device of `group` wrote in `range`, which lies in one mapping.
    pub(crate) fn note_write(&mut self, system: &System, group: u32, range: IovaRange) {
        let page_table = self.groups.get(&group).and_then(|attachment| attachment.page_table);
        if let Some((id, Ok((ioas, _)))) = page_table.map(|id| (id, self.ioas_of_page_table(id))) {
            ioas.note_write(system, id, range);
        }
    }

    fn unreserve(&mut self, ioas: u32, devices: &[DeviceIndex]) {
        if let Ok(ioas) = self.ioas_mut(ioas) {
            for device in devices {
                ioas.unreserve(Owner::Device(*device));
            }
        }
    }
}
