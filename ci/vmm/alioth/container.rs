//! In place of alioth's src/vfio/container.rs (alioth 0.12.0, Apache-2.0), with the interface that its other files use.
//! A container is a domain of dmaspace: it opens and attaches devices, and keeps the host's IOMMU in step with the
//! guest's memory.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use dmaspace::listener::Update;
use dmaspace::{
    Access, BackendKind, Device, Domain, FrontEnd, Host, HostMemory, Iova, IovaRange, MemoryFile, Section,
};

use crate::errors::BoxTrace;
use crate::mem::mapped::ArcMemPages;
use crate::mem::{self, LayoutChanged};
use crate::vfio::Result;

#[derive(Debug)]
pub struct Container {
    domain: Domain,
}

impl Container {
    /// The library opens the container's node itself, when it adds the first device.
    pub fn new(_vfio_dev: impl AsRef<Path>) -> Result<Self> {
        let host = Host::this().map_err(io::Error::other)?;
        Ok(Container { domain: Domain::new(host, FrontEnd::pc()).with_backend(BackendKind::Type1) })
    }

    /// Opens and attaches a device. All of the guest's memory is mapped then.
    pub fn add(&self, id: &str) -> Result<Device> {
        let address = id.parse().map_err(io::Error::other)?;
        let added = self.domain.add(address).map_err(io::Error::from)?;
        for verdict in added.report.spaces.iter().flat_map(|space| &space.sections) {
            eprintln!("dmaspace: {verdict}");
        }
        Ok(added.device)
    }

    pub fn remove(&self, device: Device) -> Result<()> {
        self.domain.remove(device).map_err(io::Error::from)?;
        Ok(())
    }

    /// Maps memory for all devices, present and future.
    fn map(&self, gpa: u64, pages: &ArcMemPages) -> Result<()> {
        if std::env::var_os("DMASPACE_SWALLOW").is_some() {
            return Ok(()); // the control, whose guest must find wrong data
        }
        let memory = host_memory(pages)?;
        let section = Section::ram(&format!("RAM at {gpa:#x}"), Iova::new(gpa), memory, Access::READ_WRITE);
        let update = Update::new().adding(section.map_err(io::Error::other)?);
        self.domain.commit(update).map_err(io::Error::from)?;
        Ok(())
    }

    fn unmap(&self, gpa: u64, size: u64) -> Result<()> {
        let range = IovaRange::with_len(Iova::new(gpa), size).map_err(io::Error::other)?;
        self.domain.remove_range(range).map_err(io::Error::from)?;
        Ok(())
    }
}

/// The guest's memory, which the library keeps alive while it is mapped, and its file.
fn host_memory(pages: &ArcMemPages) -> io::Result<HostMemory> {
    let base = NonNull::new(pages.addr() as *mut u8);
    let len = NonZeroUsize::new(pages.size() as usize);
    let (Some(base), Some(len)) = (base, len) else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: `pages` keeps the mapping.
    let memory = unsafe { HostMemory::held_by(base, len, Arc::new(pages.clone())) };
    let memory = memory.ok_or(io::ErrorKind::InvalidInput)?;
    let Some((fd, offset)) = pages.fd() else { return Ok(memory) };
    let file = MemoryFile::new(Arc::new(File::from(fd.try_clone_to_owned()?)));
    Ok(match file {
        Some(file) => memory.in_file(file, offset),
        None => memory,
    })
}

#[derive(Debug)]
pub struct UpdateContainerMapping {
    pub container: Arc<Container>,
}

impl LayoutChanged for UpdateContainerMapping {
    fn ram_added(&self, gpa: u64, pages: &ArcMemPages) -> mem::Result<()> {
        let ret = self.container.map(gpa, pages);
        ret.box_trace(mem::error::ChangeLayout)?;
        Ok(())
    }

    fn ram_removed(&self, gpa: u64, pages: &ArcMemPages) -> mem::Result<()> {
        let ret = self.container.unmap(gpa, pages.size());
        ret.box_trace(mem::error::ChangeLayout)?;
        Ok(())
    }
}
