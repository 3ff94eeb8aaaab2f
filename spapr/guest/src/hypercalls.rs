//! The four hypercalls, by argument.
//!
//! Arguments are registers: 64 bits of the guest's, whatever they should be. All of them are checked before anything is written, and a call
//! that is refused has written nothing. For H_PUT_TCE_INDIRECT that is PAPR's way too: it copies the list, so that the guest cannot change
//! it meanwhile, and fills the table when all entries were found right. KVM checks first and reads the list twice (linux:
//! arch/powerpc/kvm/book3s_64_vio.c, kvmppc_h_put_tce_indirect); QEMU keeps what it wrote before the first bad entry (qemu:
//! hw/ppc/spapr_iommu.c, h_put_tce_indirect).

use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Iova, PageSize, SystemAddress};

use super::entry::Tce;
use super::refusal::Refusal;
use super::table::{Entries, TceTable};
use super::tables::TceTables;

/// The token of H_GET_TCE (linux: arch/powerpc/include/asm/hvcall.h, here and below).
pub const H_GET_TCE: u64 = 0x1c;
/// The token of H_PUT_TCE.
pub const H_PUT_TCE: u64 = 0x20;
/// The token of H_STUFF_TCE.
pub const H_STUFF_TCE: u64 = 0x138;
/// The token of H_PUT_TCE_INDIRECT.
pub const H_PUT_TCE_INDIRECT: u64 = 0x13c;

/// The most entries that H_PUT_TCE_INDIRECT takes, and H_STUFF_TCE that writes anything but zeros.
///
/// PAPR has H_STUFF_TCE refuse more, zeros included. Firmware did not for long, so older Linux guests clear any number at once
/// (linux: commit 9d2ccf00bddc, "powerpc/iommu: Limit number of TCEs to 512 for H_STUFF_TCE hcall"), and a refusal leaves them with
/// entries they believe are gone. QEMU and KVM take any number. So does this for zeros, whose cost does not grow with the number.
pub const MOST_ENTRIES: u64 = 512;

/// The bytes of an entry in a list.
const ENTRY: usize = size_of::<u64>();

/// What hypercalls and RTAS calls have to know of the guest's memory.
pub trait SystemMemory {
    /// Whether all of `range` is memory that the guest may let devices reach.
    fn holds(&self, range: SystemRange) -> bool;

    /// Reads all of `into` from `at` on, or answers false.
    fn read(&self, at: SystemAddress, into: &mut [u8]) -> bool;

    /// Writes all of `from` at `at`, or answers false and has written nothing. Only RTAS calls write, to their buffers.
    fn write(&self, at: SystemAddress, from: &[u8]) -> bool;
}

impl TceTables {
    /// H_GET_TCE: reads an entry, for R4.
    ///
    /// # Errors
    /// [`Refusal::NoSuchTable`], [`Refusal::MisalignedAddress`], [`Refusal::OutsideTable`].
    pub fn h_get_tce(&self, liobn: u64, ioba: u64) -> Result<u64, Refusal> {
        let slot = self.slot(liobn)?;
        let table = slot.table();
        let at = aligned(&table, ioba)?;
        Ok(table.get(at)?.get())
    }

    /// H_PUT_TCE: writes an entry. One without a right clears; one over a live one replaces it.
    ///
    /// # Errors
    /// As [`TceTables::h_get_tce`], then [`Refusal::MisalignedEntry`], [`Refusal::NotMemory`], [`Refusal::Host`].
    pub fn h_put_tce(&self, memory: &dyn SystemMemory, liobn: u64, ioba: u64, tce: u64) -> Result<(), Refusal> {
        let slot = self.slot(liobn)?;
        let table = slot.table();
        let at = aligned(&table, ioba)?;
        table.check(at, 1)?;
        let tce = Tce::new(tce);
        check_entry(memory, table.page(), tce)?;
        drop(table);
        slot.write(at, Entries::List(&[tce]))
    }

    /// H_PUT_TCE_INDIRECT: writes `count` entries from the page at `list`, where they are big-endian.
    ///
    /// # Errors
    /// [`Refusal::SeveralTables`], [`Refusal::LongList`], [`Refusal::MisalignedList`], then as [`TceTables::h_get_tce`], then
    /// [`Refusal::NoList`], and for any of the entries as [`TceTables::h_put_tce`].
    pub fn h_put_tce_indirect(
        &self,
        memory: &dyn SystemMemory,
        liobn: u64,
        ioba: u64,
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        let several = liobn as i64;
        if several < 0 {
            return Err(Refusal::SeveralTables(several));
        }
        if count > MOST_ENTRIES {
            return Err(Refusal::LongList(count));
        }
        let list = SystemAddress::new(list);
        if !PageSize::K4.divides(list.get()) {
            return Err(Refusal::MisalignedList(list));
        }
        let slot = self.slot(liobn)?;
        let table = slot.table();
        let at = aligned(&table, ioba)?;
        table.check(at, count)?;
        let page = table.page();
        drop(table);
        let entries = read_list(memory, list, count)?;
        entries.iter().try_for_each(|tce| check_entry(memory, page, *tce))?;
        slot.write(at, Entries::List(&entries))
    }

    /// H_STUFF_TCE: writes one entry to `count` consecutive places.
    ///
    /// # Errors
    /// As [`TceTables::h_put_tce`], and [`Refusal::LongStuff`] for more than [`MOST_ENTRIES`].
    pub fn h_stuff_tce(
        &self,
        memory: &dyn SystemMemory,
        liobn: u64,
        ioba: u64,
        tce: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        let slot = self.slot(liobn)?;
        let table = slot.table();
        let at = aligned(&table, ioba)?;
        table.check(at, 0)?;
        let tce = Tce::new(tce);
        let inside = table.check(at, count);
        if count > MOST_ENTRIES && (tce != Tce::NONE || inside.is_err()) {
            return Err(Refusal::LongStuff(count));
        }
        inside?;
        check_entry(memory, table.page(), tce)?;
        drop(table);
        slot.write(at, Entries::Same(tce, count))
    }
}

/// PAPR does not say what becomes of the bits below the page; KVM refuses them (linux: arch/powerpc/kernel/iommu.c,
/// iommu_tce_check_ioba), QEMU ignores them.
fn aligned(table: &TceTable, ioba: u64) -> Result<Iova, Refusal> {
    let at = Iova::new(ioba);
    if table.page().divides(ioba) { Ok(at) } else { Err(Refusal::MisalignedAddress(at, table.page())) }
}

/// Whether an entry may be written: any without a right, and those for a page of the guest's memory.
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

/// Reads the list once. A list of none must be there, too: PAPR copies its page before it looks at the number.
fn read_list(memory: &dyn SystemMemory, list: SystemAddress, count: u64) -> Result<Vec<Tce>, Refusal> {
    let count = usize::try_from(count).map_err(|_| Refusal::LongList(count))?;
    let mut bytes = vec![0; ENTRY * count.max(1)];
    if !memory.read(list, &mut bytes) {
        return Err(Refusal::NoList(list));
    }
    let entries = bytes.chunks_exact(ENTRY).take(count).filter_map(|entry| entry.try_into().ok());
    Ok(entries.map(|entry| Tce::new(u64::from_be_bytes(entry))).collect())
}
