//! The four hypercalls, by argument.
//!
//! All arguments are checked before anything is written, and a call that is refused has written nothing. For
//! H_PUT_TCE_INDIRECT that is PAPR's rule: it copies the list first, so that the guest cannot change it meanwhile, and
//! fills the table if all entries are right. KVM checks first and reads the list twice (linux:
//! arch/powerpc/kvm/book3s_64_vio.c, kvmppc_h_put_tce_indirect); QEMU keeps the entries that it wrote before the first
//! wrong one (qemu: hw/ppc/spapr_iommu.c, h_put_tce_indirect).
//!
//! A VMM passes the registers of a call to [`TceTables::hypercall`]. The calls by name take arguments of four different
//! types.

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod limits;

use std::cell::Cell;
use std::sync::Arc;

use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{HostMemory, Iova, PageSize, SystemAddress};

use crate::entry::Tce;
use crate::liobn::Liobn;
use crate::refusal::Refusal;
use crate::stretch::{Stretch, cut};
use crate::table::{Geometry, same_entries};
use crate::tables::{NamedTable, TceTables};

/// The token of H_GET_TCE (linux: arch/powerpc/include/asm/hvcall.h, here and below).
pub const H_GET_TCE: u64 = 0x1c;
/// The token of H_PUT_TCE.
pub const H_PUT_TCE: u64 = 0x20;
/// The token of H_STUFF_TCE.
pub const H_STUFF_TCE: u64 = 0x138;
/// The token of H_PUT_TCE_INDIRECT.
pub const H_PUT_TCE_INDIRECT: u64 = 0x13c;

/// The most entries that H_PUT_TCE_INDIRECT takes, and H_STUFF_TCE with an entry other than zero.
///
/// PAPR has H_STUFF_TCE refuse more, zeros included. Firmware took more for a long time, so older Linux guests clear
/// any number at once (linux: commit 9d2ccf00bddc, "powerpc/iommu: Limit number of TCEs to 512 for H_STUFF_TCE hcall"),
/// and after a refusal they have live entries that they believe are cleared. QEMU and KVM take any number.
/// [`TceTables`] takes any number of zeros, whose cost does not grow with the number.
pub const MOST_ENTRIES: u64 = 512;

/// The bytes of an entry in a list.
const ENTRY: usize = size_of::<u64>();

/// The entries of the longest list.
const LIST: usize = 512;
const _: () = assert!(LIST as u64 == MOST_ENTRIES);

/// Room for the entries of a call: a list as it is in the guest's memory, and stretches.
#[derive(Debug)]
struct Room {
    list: [[u8; ENTRY]; LIST],
    stretches: Vec<Stretch>,
}

thread_local! {
    /// The room for a call, one for each processor of the guest that has made one: to clear other room for each call
    /// would cost more than all else that is done with a list.
    static ROOM: Cell<Option<Box<Room>>> = const { Cell::new(None) };
}

/// The guest's memory, as hypercalls and RTAS calls use it. Called without any lock of this crate's.
pub trait SystemMemory {
    /// Returns true if all of `range` is memory that the guest may map for devices.
    fn holds(&self, range: SystemRange) -> bool;

    /// Reads all of `into` from `at` on. Returns false if there is no memory.
    fn read(&self, at: SystemAddress, into: &mut [u8]) -> bool;

    /// Writes all of `from` at `at`. Returns false, and must have written nothing, if there is no writable memory. Only
    /// RTAS calls write, to their buffers.
    fn write(&self, at: SystemAddress, from: &[u8]) -> bool;
}

/// A guest's RAM in one piece, from system address 0 on.
impl SystemMemory for HostMemory {
    fn holds(&self, range: SystemRange) -> bool {
        range.last().get() < self.len().get()
    }

    fn read(&self, at: SystemAddress, into: &mut [u8]) -> bool {
        HostMemory::read(self, at.get(), into).is_ok()
    }

    fn write(&self, at: SystemAddress, from: &[u8]) -> bool {
        HostMemory::write(self, at.get(), from).is_ok()
    }
}

impl TceTables {
    /// Answers a hypercall by its token and the registers R4 to R7, with any numbers in them. Returns the value for R4,
    /// which is the entry for H_GET_TCE and 0 otherwise; `None` for a token of another call. The return code for R3 is
    /// [`ReturnCode::of`](crate::ReturnCode::of) the result.
    pub fn hypercall(
        &self,
        memory: &dyn SystemMemory,
        token: u64,
        registers: [u64; 4],
    ) -> Option<Result<u64, Refusal>> {
        const CALLS: [u64; 4] = [H_GET_TCE, H_PUT_TCE, H_STUFF_TCE, H_PUT_TCE_INDIRECT];
        CALLS.contains(&token).then(|| self.answer(memory, token, registers))
    }

    fn answer(&self, memory: &dyn SystemMemory, token: u64, [liobn, ioba, r6, r7]: [u64; 4]) -> Result<u64, Refusal> {
        if token == H_PUT_TCE_INDIRECT && (liobn as i64) < 0 {
            return Err(Refusal::SeveralTables(liobn as i64));
        }
        let liobn = Liobn::from_register(liobn).ok_or(Refusal::NoSuchTable(liobn))?;
        let ioba = Iova::new(ioba);
        match token {
            H_GET_TCE => return Ok(self.h_get_tce(liobn, ioba)?.get()),
            H_PUT_TCE => self.h_put_tce(memory, liobn, ioba, Tce::new(r6))?,
            H_PUT_TCE_INDIRECT => self.h_put_tce_indirect(memory, liobn, ioba, SystemAddress::new(r6), r7)?,
            _ => {
                debug_assert_eq!(token, H_STUFF_TCE, "only the four calls are answered");
                self.h_stuff_tce(memory, liobn, ioba, Tce::new(r6), r7)?;
            }
        }
        Ok(0)
    }

    /// H_GET_TCE: reads an entry.
    ///
    /// # Errors
    /// [`Refusal::NoSuchTable`], [`Refusal::MisalignedAddress`], [`Refusal::OutsideTable`].
    pub fn h_get_tce(&self, liobn: Liobn, ioba: Iova) -> Result<Tce, Refusal> {
        let named = self.named_by(liobn)?;
        check_alignment(&named.geometry, ioba)?;
        Ok(named.table().get(ioba)?)
    }

    /// H_PUT_TCE: writes an entry. An entry without a right clears; one over a live entry replaces it.
    ///
    /// # Errors
    /// As [`TceTables::h_get_tce`], then [`Refusal::MisalignedEntry`], [`Refusal::NotMemory`], [`Refusal::Host`].
    pub fn h_put_tce(&self, memory: &dyn SystemMemory, liobn: Liobn, ioba: Iova, tce: Tce) -> Result<(), Refusal> {
        let named = self.named_by(liobn)?;
        check_place(&named.geometry, ioba, 1)?;
        check_entry(memory, named.geometry.page, tce)?;
        named.write_one(ioba, tce)
    }

    /// H_PUT_TCE_INDIRECT: writes `count` entries from the page at `list`, where they are big-endian.
    ///
    /// # Errors
    /// [`Refusal::LongList`], [`Refusal::MisalignedList`], then as [`TceTables::h_get_tce`], then [`Refusal::NoList`],
    /// and for any of the entries as [`TceTables::h_put_tce`].
    pub fn h_put_tce_indirect(
        &self,
        memory: &dyn SystemMemory,
        liobn: Liobn,
        ioba: Iova,
        list: SystemAddress,
        count: u64,
    ) -> Result<(), Refusal> {
        if count > MOST_ENTRIES {
            return Err(Refusal::LongList(count));
        }
        if !PageSize::K4.divides(list.get()) {
            return Err(Refusal::MisalignedList(list));
        }
        let named = self.named_by(liobn)?;
        check_place(&named.geometry, ioba, count)?;
        with_room(|room| {
            room.read(memory, list, count, named.geometry.page)?;
            check_entries(memory, named.geometry.page, &room.stretches)?;
            named.write(ioba, &room.stretches)
        })
    }

    /// H_STUFF_TCE: writes one entry to `count` consecutive pages.
    ///
    /// # Errors
    /// As [`TceTables::h_put_tce`], and [`Refusal::LongStuff`] for more than [`MOST_ENTRIES`].
    pub fn h_stuff_tce(
        &self,
        memory: &dyn SystemMemory,
        liobn: Liobn,
        ioba: Iova,
        tce: Tce,
        count: u64,
    ) -> Result<(), Refusal> {
        let named = self.named_by(liobn)?;
        check_place(&named.geometry, ioba, 0)?;
        let inside = named.geometry.check(ioba, count);
        if count > MOST_ENTRIES && (tce != Tce::NONE || inside.is_err()) {
            return Err(Refusal::LongStuff(count));
        }
        inside?;
        check_entry(memory, named.geometry.page, tce)?;
        with_room(|room| {
            room.stretches.clear();
            room.stretches.extend(same_entries(tce, count));
            named.write(ioba, &room.stretches)
        })
    }

    fn named_by(&self, liobn: Liobn) -> Result<Arc<NamedTable>, Refusal> {
        self.find(liobn).ok_or(Refusal::NoSuchTable(liobn.get().into()))
    }
}

/// Refuses a bus address unless a page begins there from which on there are `count` entries.
fn check_place(geometry: &Geometry, ioba: Iova, count: u64) -> Result<(), Refusal> {
    check_alignment(geometry, ioba)?;
    Ok(geometry.check(ioba, count)?)
}

/// PAPR does not define the bits below the page. KVM refuses them (linux: arch/powerpc/kernel/iommu.c,
/// iommu_tce_check_ioba), QEMU ignores them.
fn check_alignment(geometry: &Geometry, ioba: Iova) -> Result<(), Refusal> {
    let page = geometry.page;
    if page.divides(ioba.get()) { Ok(()) } else { Err(Refusal::MisalignedAddress(ioba, page)) }
}

/// Refuses an entry with a right unless it maps a page of the guest's memory.
fn check_entry(memory: &dyn SystemMemory, page: PageSize, tce: Tce) -> Result<(), Refusal> {
    if !tce.is_live() {
        return Ok(());
    }
    if !tce.is_aligned_to(page) {
        return Err(Refusal::MisalignedEntry(tce, page));
    }
    let range = SystemRange::with_len(tce.target(page), page.bytes());
    if range.is_ok_and(|range| memory.holds(range)) { Ok(()) } else { Err(Refusal::NotMemory(tce)) }
}

/// Refuses a list in which an entry would be refused. The memory of a stretch is looked up as one range; if that is not
/// all memory, each entry is looked up by itself, so that the first bad one is named.
fn check_entries(memory: &dyn SystemMemory, page: PageSize, stretches: &[Stretch]) -> Result<(), Refusal> {
    for stretch in stretches {
        if !is_good(memory, page, *stretch) {
            for tce in stretch.entries(page) {
                check_entry(memory, page, tce)?;
            }
        }
    }
    Ok(())
}

/// Returns true if all entries of a stretch would be taken, as one look shows.
fn is_good(memory: &dyn SystemMemory, page: PageSize, Stretch { first, count }: Stretch) -> bool {
    if !first.is_live() {
        return true;
    }
    let range = SystemRange::with_len(first.target(page), count << page.shift());
    first.is_aligned_to(page) && range.is_ok_and(|range| memory.holds(range))
}

/// Does `work` in this thread's room.
fn with_room<T>(work: impl FnOnce(&mut Room) -> T) -> T {
    let mut room = ROOM.take().unwrap_or_default();
    let done = work(&mut room);
    ROOM.set(Some(room));
    done
}

impl Default for Room {
    fn default() -> Self {
        Self { list: [[0; ENTRY]; LIST], stretches: Vec::new() }
    }
}

impl Room {
    /// Reads the `count` entries at `list` once, and cuts them into stretches for a table of `page`. A list without
    /// entries must be in memory, too: PAPR copies its page before it looks at the number.
    fn read(
        &mut self,
        memory: &dyn SystemMemory,
        list: SystemAddress,
        count: u64,
        page: PageSize,
    ) -> Result<(), Refusal> {
        let count = usize::try_from(count).map_err(|_| Refusal::LongList(count))?;
        let entries = self.list.get_mut(..count.max(1)).ok_or(Refusal::LongList(count as u64))?;
        if !memory.read(list, entries.as_flattened_mut()) {
            return Err(Refusal::NoList(list));
        }
        self.stretches.clear();
        self.stretches.extend(cut(entries.get(..count).unwrap_or_default(), page));
        Ok(())
    }
}
