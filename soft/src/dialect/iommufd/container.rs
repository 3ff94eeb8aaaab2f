//! An iommufd in a container's place: type1's requests to `/dev/iommu` (linux: drivers/iommu/iommufd/vfio_compat.c).
//!
//! The requests concern one address space of the iommufd, which the first group that joins creates. Devices are
//! attached to it when they are opened, not when their group joins, and it keeps its mappings when the last of them is
//! closed.
//!
//! Limits: the address space cannot be chosen (IOMMU_VFIO_IOAS); the size beside an error is not written back; a
//! capability that has room is not written when another one has none.

use std::mem::offset_of;

use dmaspace_abi::type1::{self, DmaAvailable, Info, IovaRanges};
use dmaspace_abi::vfio::{self, Extension, IommuType, MapDma, UnmapDma};
use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange};
use zerocopy::IntoBytes;

use super::ioas::{Ioas, Place};
use super::{Context, DeviceIndex, Object, ioas_of};
use crate::dialect::call::Call;
use crate::dialect::type1::{access_of, chain_of, header, page_sizes, span_of};
use crate::dialect::{System, require};

impl Context {
    /// iommufd_vfio_compat_ioas_create: a group joined.
    pub(crate) fn join(&mut self) {
        if self.container.is_none() {
            let id = self.free_id();
            self.objects.insert(id, Object::Ioas(Ioas::default()));
            self.container = Some(id);
        }
    }

    /// vfio_iommufd_compat_attach_ioas: a device was opened through its group.
    pub(crate) fn attach_opened(&mut self, system: &mut System, device: DeviceIndex, group: u32) -> Result<(), Errno> {
        let ioas = self.container.ok_or(Errno::ENODEV)?;
        self.attach(system, device, group, ioas).map(drop)
    }

    /// iommufd_vfio_ioctl.
    pub(super) fn container_ioctl(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        match call.number() {
            number if number == vfio::GET_API_VERSION.number => Ok(vfio::API_VERSION),
            number if number == vfio::CHECK_EXTENSION.number => self.check_extension(Extension(call.value()?)),
            number if number == vfio::SET_IOMMU.number => self.set_iommu(IommuType(call.value()?)),
            number if number == type1::GET_INFO.number => self.get_info(system, call),
            number if number == vfio::MAP_DMA.number => self.map_dma(system, call),
            number if number == vfio::UNMAP_DMA.number => self.unmap_dma(system, call),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// iommufd_vfio_check_extension. No IOMMU of this host enforces coherency, so the extension is reported only while
    /// there is no page table.
    fn check_extension(&mut self, extension: Extension) -> Result<i32, Errno> {
        const ALWAYS: [Extension; 3] =
            [IommuType::TYPE1.extension(), IommuType::TYPE1_V2.extension(), Extension::UNMAP_ALL];
        Ok(match extension {
            Extension::DMA_CC => i32::from(self.meant()?.page_tables.is_empty()),
            other => i32::from(ALWAYS.contains(&other)),
        })
    }

    /// iommufd_vfio_set_iommu. As type1 v1 it can cut mappings, and so uses no large pages.
    fn set_iommu(&mut self, version: IommuType) -> Result<i32, Errno> {
        require([IommuType::TYPE1, IommuType::TYPE1_V2].contains(&version), Errno::EINVAL)?;
        let ioas = self.meant()?;
        if version == IommuType::TYPE1 {
            ioas.disable_large_pages()?;
        }
        Ok(0)
    }

    /// iommufd_vfio_iommu_get_info: `argsz` returns the size that everything needs, whether or not it was written.
    fn get_info(&mut self, system: &System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let least = offset_of!(Info, cap_offset);
        let mut info: Info = call.read_prefix(least)?;
        let asked = info.argsz as usize;
        require(asked >= least && call.bytes()?.len() >= asked, Errno::EINVAL)?;
        let ioas = self.meant()?;
        let any_page = !(system.page().bytes() - 1);
        info.iova_pgsizes = if ioas.page_tables.is_empty() { any_page } else { page_sizes(system) };
        info.flags = type1::INFO_PAGE_SIZES | type1::INFO_CAPABILITIES;
        let chain = capabilities(ioas);
        let wanted = size_of::<Info>() + chain.len();
        info.cap_offset = 0;
        if asked >= wanted {
            call.write_at(size_of::<Info>(), &chain);
            info.cap_offset = Info::SIZE;
        }
        info.argsz = u32::try_from(wanted).map_err(|_| Errno::E2BIG)?;
        call.write_prefix(&info, asked.min(size_of::<Info>()));
        Ok(0)
    }

    /// iommufd_vfio_map_dma: accepts a map without access; a page table refuses it.
    fn map_dma(&mut self, system: &mut System, call: &Call<'_, '_>) -> Result<i32, Errno> {
        let map: MapDma = call.read()?;
        let known = map.argsz >= MapDma::SIZE && map.flags & !(vfio::MAP_READ | vfio::MAP_WRITE) == 0;
        require(known, Errno::EINVAL)?;
        system.cut.take().map_or(Ok(()), Err)?;
        let access = access_of(map.flags);
        let id = self.container.ok_or(Errno::ENODEV)?;
        let ioas = ioas_of(&mut self.objects, id)?;
        let memory = call.memory(offset_of!(MapDma, vaddr), map.vaddr);
        let piece = self.pages.add(call.by, system.page(), &memory, map.size, access.contains(Access::WRITE))?;
        let place = Place::At(Iova::new(map.iova));
        let mapped = ioas.map(system, &mut self.pages, vec![piece.clone()], place, access);
        self.pages.put(system, &piece);
        mapped.map(|_| 0)
    }

    /// iommufd_vfio_unmap_dma: an empty range is no error here, and a mapping that would be cut is `ENOENT`.
    fn unmap_dma(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let mut unmap: UnmapDma = call.read()?;
        require(unmap.argsz >= UnmapDma::SIZE && unmap.flags & !type1::UNMAP_ALL == 0, Errno::EINVAL)?;
        let id = self.container.ok_or(Errno::ENODEV)?;
        let ioas = ioas_of(&mut self.objects, id)?;
        let range = if unmap.flags & type1::UNMAP_ALL != 0 {
            require(unmap.iova == 0 && unmap.size == 0, Errno::EINVAL)?;
            IovaRange::all()
        } else {
            require(unmap.size > 0, Errno::EINVAL)?;
            let range = IovaRange::with_len(Iova::new(unmap.iova), unmap.size).map_err(|_| Errno::EOVERFLOW)?;
            ioas.cut_at_ends(&mut self.pages, range)?;
            range
        };
        unmap.size = ioas.unmap(system, &mut self.pages, range)?;
        call.write(&unmap);
        Ok(0)
    }

    /// The address space that stands in for a container.
    fn meant(&mut self) -> Result<&mut Ioas, Errno> {
        let id = self.container.ok_or(Errno::ENODEV)?;
        ioas_of(&mut self.objects, id)
    }
}

/// iommufd_fill_cap_dma_avail and iommufd_fill_cap_iova, in their order.
fn capabilities(ioas: &Ioas) -> Vec<u8> {
    let available = DmaAvailable { header: header(type1::CAP_DMA_AVAIL), avail: u32::MAX };
    let usable = ioas.usable();
    let nr_iovas = u32::try_from(usable.len()).unwrap_or(u32::MAX);
    let ranges = IovaRanges { header: header(type1::CAP_IOVA_RANGE), nr_iovas, reserved: 0 };
    let spans: Vec<_> = usable.iter().map(span_of).collect();
    chain_of(&[&[available.as_bytes()], &[ranges.as_bytes(), spans.as_bytes()]])
}
