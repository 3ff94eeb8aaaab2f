//! A guest's hypercalls cost its VMM no more memory than the VMM allows.

use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Iova, PageSize, SystemAddress};

use crate::entry::Tce;
use crate::liobn::Liobn;
use crate::refusal::{Refusal, ReturnCode};
use crate::table::{Entries, TceTable};
use crate::tables::TceTables;

use super::SystemMemory;

/// As many entries as a window can have.
const ENTRIES: u64 = 1 << 37;
const ALLOWED: u64 = 1 << 20;

/// An entry without a right, which the guest may read back.
const DEAD: Tce = Tce::new(0xdead_0000_0ffc);
const LIVE: Tce = Tce::new(0x7003);

/// Memory everywhere, and lists of one entry.
struct Memory(Tce);

impl SystemMemory for Memory {
    fn holds(&self, _: SystemRange) -> bool {
        true
    }

    fn read(&self, _: SystemAddress, into: &mut [u8]) -> bool {
        for entry in into.chunks_exact_mut(8) {
            entry.copy_from_slice(&self.0.get().to_be_bytes());
        }
        true
    }

    fn write(&self, _: SystemAddress, _: &[u8]) -> bool {
        false
    }
}

fn name() -> Liobn {
    Liobn::new(0x8000_0000)
}

fn at(index: u64) -> Iova {
    Iova::new(index << 12)
}

fn table() -> TceTable {
    TceTable::new(Iova::new(0), PageSize::K4, ENTRIES).expect("a table of the test")
}

/// A hypercall that writes one entry.
type Call = fn(&TceTables, u64, Tce) -> Result<(), Refusal>;

fn tables() -> TceTables {
    let tables = TceTables::with_most_bytes(ALLOWED);
    tables.add(name(), table()).expect("it is free");
    tables
}

fn put(tables: &TceTables, index: u64, tce: Tce) -> Result<(), Refusal> {
    tables.h_put_tce(&Memory(tce), name(), at(index), tce)
}

/// The number of calls, each far from all others, until one is refused, and the refusal.
fn until_refused(tables: &TceTables, call: impl Fn(&TceTables, u64) -> Result<(), Refusal>) -> (u64, Refusal) {
    let mut refused = (0..1_000_000).map(|n| (n, call(tables, n << 12)));
    let (calls, refusal) = refused.find(|(_, result)| result.is_err()).expect("a guest without bound");
    (calls, refusal.expect_err("it was refused"))
}

#[test]
#[cfg_attr(miri, ignore = "fills memory, for which Miri takes minutes")]
fn entries_of_any_kind_take_no_more_memory_than_the_vmm_allows() {
    for tce in [DEAD, LIVE] {
        let calls: [Call; 3] = [
            put,
            |tables, index, tce| tables.h_stuff_tce(&Memory(tce), name(), at(index), tce, 1),
            |tables, index, tce| tables.h_put_tce_indirect(&Memory(tce), name(), at(index), SystemAddress::new(0), 1),
        ];
        for call in calls {
            let tables = tables();
            let measured = allocation_counter::measure(|| {
                let (calls, refusal) = until_refused(&tables, |tables, index| call(tables, index, tce));
                assert!(calls > ALLOWED / 2000, "{calls}");
                assert_eq!((refusal.code(), &refusal), (ReturnCode::NotEnoughResources, &Refusal::NoRoom(ALLOWED)));
            });
            assert!(tables.allocated() <= ALLOWED && tables.allocated() > ALLOWED - 8_000, "{}", tables.allocated());
            let bytes = u64::try_from(measured.bytes_current).expect("more than there was");
            assert!(bytes <= ALLOWED + 16_384, "{bytes} bytes stay");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "fills memory, for which Miri takes minutes")]
fn a_guest_at_its_limit_reads_replaces_and_clears_its_entries() {
    let tables = tables();
    let (calls, _) = until_refused(&tables, |tables, index| put(tables, index, DEAD));
    let taken = tables.allocated();
    // Where an entry is, others need no memory.
    assert_eq!(put(&tables, 0, LIVE), Ok(()));
    assert_eq!(put(&tables, 1, LIVE), Ok(()));
    assert_eq!(tables.h_get_tce(name(), at(1 << 12)), Ok(DEAD));
    // Clearing is never refused: not by a list, nor where nothing is.
    let none = Memory(Tce::NONE);
    assert_eq!(tables.h_put_tce_indirect(&none, name(), at(calls << 12), SystemAddress::new(0), 512), Ok(()));
    assert_eq!(put(&tables, 0, Tce::NONE), Ok(()));
    assert_eq!(tables.allocated(), taken);
    assert_eq!(tables.h_stuff_tce(&none, name(), at(0), Tce::NONE, ENTRIES), Ok(()));
    assert_eq!(tables.allocated(), 0);
    assert_eq!(until_refused(&tables, |tables, index| put(tables, index, DEAD)).0, calls);
}

#[test]
#[cfg_attr(miri, ignore = "fills memory, for which Miri takes minutes")]
fn tables_share_the_memory_that_the_vmm_allows_and_return_it() {
    let tables = tables();
    let other = Liobn::new(1);
    let mut full = table();
    full.write(at(0), Entries::Same(DEAD, ALLOWED / 16)).expect("inside");
    // A table that is full already may be added: only a hypercall is refused.
    tables.add(other, full).expect("it is free");
    let taken = tables.allocated();
    let (calls, _) = until_refused(&tables, |tables, index| put(tables, index, LIVE));
    assert!(taken > ALLOWED / 2 && calls < ALLOWED / 1000 / 2, "{taken} bytes, {calls} calls");
    assert!(tables.remove(other).is_some_and(|table| table.allocated() == taken));
    assert!(tables.allocated() <= ALLOWED - taken);
    let (more, _) = until_refused(&tables, |tables, index| put(tables, index, LIVE));
    assert!(more > calls);
    tables.remove(name());
    assert_eq!(tables.allocated(), 0);
}
