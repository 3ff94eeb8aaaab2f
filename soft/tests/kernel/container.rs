//! An iommufd in a container's place, on the soft host: when devices are attached, the state after they leave, and its
//! answers.

use crate::setting::{MIB, Opened, PAGE, RW, device, memory, open, open_group};
use dmaspace_abi::type1::{CAP_DMA_AVAIL, GET_INFO, Info};
use dmaspace_abi::vfio::{Extension, IommuType};
use dmaspace_core::Iova;
use dmaspace_core::door::{Door, Errno, Handle, HandleKind};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::profile::KernelInterface;
use dmaspace_soft::{Profile, SoftHost};
use std::sync::Arc;

/// The address at which a PC's devices write interrupts.
const MSI: u64 = 0xfee0_0000;

/// A host, its iommufd, and its first group.
fn joined() -> (Arc<SoftHost>, Handle, Handle) {
    let host = SoftHost::new(Profile::vtd()).expect("a preset");
    let iommufd = open(&host, "/dev/iommu", HandleKind::Iommufd);
    let group = open_group(&host, 3);
    raw::set_container(&*host, group, iommufd).expect("joins");
    (host, iommufd, group)
}

fn info(host: &SoftHost, iommufd: Handle) -> Result<Info, Errno> {
    let mut info = Info { argsz: Info::SIZE, ..Info::default() };
    raw::ask(host, iommufd, GET_INFO, &mut info).map(|_| info)
}

#[test]
fn an_iommufd_without_a_group_answers_enodev_but_knows_its_extensions() {
    let host = SoftHost::new(Profile::vtd()).expect("a preset");
    let iommufd = open(&host, "/dev/iommu", HandleKind::Iommufd);
    assert_eq!(raw::set_iommu(&*host, iommufd, IommuType::TYPE1_V2), Err(Errno::ENODEV));
    assert_eq!(info(&host, iommufd).map(drop), Err(Errno::ENODEV));
    assert_eq!(raw::unmap_all(&*host, Context::Compat(iommufd)), Err(Errno::ENODEV));
    for (extension, answer) in
        [(IommuType::TYPE1_V2.extension(), 1), (Extension::UNMAP_ALL, 1), (Extension::UPDATE_VADDR, 0)]
    {
        assert_eq!(raw::check_extension(&*host, iommufd, extension), Ok(answer), "{extension:?}");
    }
}

#[test]
fn a_device_is_attached_when_it_is_opened_and_until_its_last_descriptor_is_closed() {
    let (host, iommufd, group) = joined();
    raw::set_iommu(&*host, iommufd, IommuType::TYPE1_V2).expect("type1 it is");
    assert_eq!(raw::set_iommu(&*host, iommufd, IommuType::SPAPR_TCE_V2), Err(Errno::EINVAL));
    let ram = memory(PAGE);
    raw::map(&*host, Context::Compat(iommufd), MIB, PAGE, Some(&ram), RW).expect("no device is there yet");
    assert_eq!(host.ledger().pinned, 0);
    let devices = [(); 2].map(|()| raw::open_device(&*host, group, "0000:00:03.0").expect("opens"));
    assert_eq!(host.ledger().pinned, PAGE);
    raw::unset_container(&*host, group).expect("open devices do not matter");
    let reads = || device(&host, 0).dma_read(Iova::new(MIB), &mut [0]).is_ok();
    host.close(devices[0]).expect("open");
    assert!(reads(), "a descriptor is left");
    host.close(devices[1]).expect("open");
    assert!(!reads());
    assert_eq!((host.ledger().pinned, host.ledger().mappings), (0, 1), "the mapping stays");
    host.close(iommufd).expect("open");
    host.close(group).expect("open");
    assert!(host.ledger().is_clear());
}

#[test]
fn a_device_does_not_open_over_a_mapping_in_its_msi_range() {
    let (host, iommufd, group) = joined();
    raw::map(&*host, Context::Compat(iommufd), MSI, PAGE, Some(&memory(PAGE)), RW).expect("nothing is reserved yet");
    assert_eq!(raw::open_device(&*host, group, "0000:00:03.0"), Err(Errno::EADDRINUSE));
    raw::unmap_all(&*host, Context::Compat(iommufd)).expect("it goes");
    raw::open_device(&*host, group, "0000:00:03.0").expect("now it opens");
}

#[test]
fn info_in_a_containers_place_has_no_mapping_limit_and_names_its_size() {
    let opened = Opened::new(Profile::vtd(), Dialect::Compat);
    let host = &*opened.host;
    let short = info(host, opened.handle()).expect("there is a device");
    assert_eq!((short.iova_pgsizes, short.cap_offset, short.argsz), (0x4020_1000, 0, 24 + 16 + 48));
    let mut bytes = vec![0; 256];
    bytes[..4].copy_from_slice(&256_u32.to_ne_bytes());
    let mut command = dmaspace_core::door::Command::with_bytes(GET_INFO, &mut bytes);
    assert_eq!(host.ioctl(opened.handle(), &mut command), Ok(0));
    assert_eq!(bytes[..4], short.argsz.to_ne_bytes(), "less than there was room for");
    assert_eq!((bytes[24..26].to_vec(), bytes[32..36].to_vec()), (CAP_DMA_AVAIL.to_ne_bytes().to_vec(), vec![0xff; 4]));
    opened.close();
    assert!(host.ledger().is_clear());
}

#[test]
fn an_iommufd_stands_in_for_a_container_on_a_host_without_containers() {
    let host = SoftHost::new(Profile::vtd().with_backends(vec![KernelInterface::Iommufd])).expect("a sound profile");
    assert_eq!(host.open("/dev/vfio/vfio".as_ref(), HandleKind::Container), Err(Errno::ENOENT));
    Opened::on(host.clone(), Dialect::Compat, 2).close();
    assert!(host.ledger().is_clear());
}
