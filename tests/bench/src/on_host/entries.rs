//! Entries of a TCE table: sPAPR.

use dmaspace_core::contract::{MapRequest, Unit};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Section, Update};
use dmaspace_spapr_guest::{Liobn, Tce, TceTable, TceTables};

use crate::compare::{Tried, compare, instructions};
use crate::{Bench, PAGE};

/// The guest's window: the library's entries are in its lower half, those of the raw calls in its upper half.
const WINDOW: u64 = 1 << 30;
const RAW: u64 = WINDOW / 2;
const LIOBN: Liobn = Liobn::new(0x8000_0000);
/// The entries of one H_PUT_TCE_INDIRECT, and the place of its list in the guest's memory.
const LIST: u64 = 512;
const LIST_AT: u64 = 0;
/// The target of the lists that continue each other.
const TARGET: u64 = 16 << 20;
const READ_WRITE: u64 = 3;
const N: u64 = 200;

/// A guest with a window on this host.
struct Guest<'a> {
    bench: &'a Bench,
    listener: Listener,
    tables: TceTables,
    ram: HostMemory,
}

/// All comparisons.
pub(crate) fn measure(bench: &Bench) -> Tried {
    let guest = Guest::new(bench)?;
    let kind = bench.opened.space.backend();
    guest.pairs(&format!("{kind}: map + unmap of a page"))?;
    guest.put_and_clear(&format!("{kind}: put + clear of one TCE through the window"))?;
    guest.puts(&format!("{kind}: H_PUT_TCE of an entry and of none"))?;
    for n in 0..30_000 {
        guest.put(LIST + 2 * n, n)?;
    }
    guest.puts(&format!("{kind}: H_PUT_TCE of an entry and of none beside 30,000"))?;
    guest.stuff(0, WINDOW / 2 / PAGE)?;
    guest.lists(&format!("{kind}: H_PUT_TCE_INDIRECT of 512 + H_STUFF_TCE, contiguous, an entry"), false)?;
    guest.lists(&format!("{kind}: H_PUT_TCE_INDIRECT of 512 + H_STUFF_TCE, scattered, an entry"), true)?;
    guest.clear(&format!("{kind}: flush of 30,000 scattered entries, an entry"))
}

impl<'a> Guest<'a> {
    fn new(bench: &'a Bench) -> Tried<Self> {
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(bench.opened.space.space().clone())?;
        let range = IovaRange::with_len(Iova::new(0), WINDOW)?;
        let target = TargetMemory::new("ram", SystemAddress::new(0), bench.ram.clone())?;
        let section = Section::translated("window", range, PageSize::K4);
        listener.commit(Update::new().adding(section).adding_target(target))?;
        let window = listener.translated(Iova::new(0)).ok_or("the section is there")?;
        let tables = TceTables::new();
        tables.add(LIOBN, TceTable::new(Iova::new(0), PageSize::K4, WINDOW / PAGE)?)?;
        tables.connect(LIOBN, window)?;
        Ok(Self { bench, listener, tables, ram: bench.ram.clone() })
    }

    fn put(&self, n: u64, target: u64) -> Tried {
        let tce = Tce::new(crate::offset(target) | READ_WRITE);
        Ok(self.tables.h_put_tce(&self.ram, LIOBN, Iova::new(n * PAGE), tce)?)
    }

    fn stuff(&self, n: u64, count: u64) -> Tried {
        Ok(self.tables.h_stuff_tce(&self.ram, LIOBN, Iova::new(n * PAGE), Tce::NONE, count)?)
    }

    fn raw_pairs(&self) -> Tried {
        for n in 0..N {
            self.bench.raw.map(RAW, self.bench.page(n), PAGE)?;
            self.bench.raw.unmap(RAW, PAGE)?;
        }
        Ok(())
    }

    /// Through the space, without a guest.
    fn pairs(&self, work: &str) -> Tried {
        let space = self.bench.opened.space.space();
        let range = IovaRange::with_len(Iova::new(0), PAGE)?;
        let memory = self.bench.memory(1)?;
        let ours = || {
            for _ in 0..N {
                let request = MapRequest::new(range.first(), &memory, Access::READ_WRITE);
                space.map(request.with_unit(Unit::Pages(PageSize::K4)))?;
                space.unmap(range)?;
            }
            Ok(())
        };
        compare(work, N, || instructions(|| self.raw_pairs()), || instructions(ours))
    }

    /// Through the handle of the window, as an emulated IOMMU of any kind puts an entry.
    fn put_and_clear(&self, work: &str) -> Tried {
        let window = self.listener.translated(Iova::new(0)).ok_or("the section is there")?;
        let range = IovaRange::with_len(Iova::new(0), PAGE)?;
        let ours = || {
            for n in 0..N {
                window.put(range.first(), SystemAddress::new(crate::offset(n)), Access::READ_WRITE)?;
                window.clear(range)?;
            }
            Ok(())
        };
        compare(work, N, || instructions(|| self.raw_pairs()), || instructions(ours))
    }

    fn puts(&self, work: &str) -> Tried {
        let ours = || {
            for n in 0..N {
                self.put(0, n)?;
                self.tables.h_put_tce(&self.ram, LIOBN, Iova::new(0), Tce::NONE)?;
            }
            Ok(())
        };
        compare(work, N, || instructions(|| self.raw_pairs()), || instructions(ours))
    }

    /// The raw loop makes a call for each entry, as QEMU does.
    fn lists(&self, work: &str, scattered: bool) -> Tried {
        for n in 0..LIST {
            let target = if scattered { crate::offset(n) } else { TARGET + n * PAGE };
            self.ram.write(LIST_AT + 8 * n, &(target | READ_WRITE).to_be_bytes())?;
        }
        let raw = || {
            for n in 0..LIST {
                self.bench.raw.map(RAW + n * PAGE, self.bench.page(n), PAGE)?;
            }
            for n in 0..LIST {
                self.bench.raw.unmap(RAW + n * PAGE, PAGE)?;
            }
            Ok(())
        };
        let ours = || {
            let list = SystemAddress::new(LIST_AT);
            self.tables.h_put_tce_indirect(&self.ram, LIOBN, Iova::new(0), list, LIST)?;
            self.stuff(0, LIST)
        };
        compare(work, LIST, || instructions(raw), || instructions(ours))
    }

    /// The raw loop clears entry by entry.
    fn clear(&self, work: &str) -> Tried {
        const LIVE: u64 = 30_000;
        let raw = || {
            for n in 0..LIVE {
                self.bench.raw.map(RAW + 2 * n * PAGE, self.bench.page(n), PAGE)?;
            }
            instructions(|| {
                for n in 0..LIVE {
                    self.bench.raw.unmap(RAW + 2 * n * PAGE, PAGE)?;
                }
                Ok(())
            })
        };
        let ours = || {
            for n in 0..LIVE {
                self.put(2 * n, n)?;
            }
            instructions(|| self.stuff(0, 2 * LIVE))
        };
        compare(work, LIVE, raw, ours)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let space = self.bench.opened.space.space();
        if let Err(error) = self.listener.detach(space) {
            eprintln!("dmaspace-bench-on-host: {error}");
        }
    }
}
