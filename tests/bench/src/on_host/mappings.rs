//! Whole mappings: type1 and iommufd.

use dmaspace_core::contract::{MapRequest, Unit};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize};

use crate::compare::{Tried, compare, instructions};
use crate::{Bench, PAGE};

/// The bus addresses of the library and, in turns with it, of the raw calls: the kernel's tree of mappings is deeper at
/// one end than at the other.
const BASE: u64 = 1 << 32;
/// The number of scattered mappings: below the 65,535 that type1 allows.
const SCATTERED: u64 = 60_000;
const LIVE: u64 = 30_000;

/// All comparisons on one backend.
pub(crate) fn measure(bench: &Bench) -> Tried {
    let kind = bench.opened.space.backend();
    pairs(bench, &format!("{kind}: map + unmap of a page"), PAGE)?;
    pairs(bench, &format!("{kind}: map + unmap of 2 MiB"), 512 * PAGE)?;
    one_by_one(bench, &format!("{kind}: 60,000 scattered pages mapped and unmapped, a page"))?;
    map_scattered(bench, LIVE)?;
    pairs(bench, &format!("{kind}: map + unmap of a page beside 30,000"), PAGE)?;
    unmap_all(bench, LIVE)?;
    flush(bench, &format!("{kind}: flush of 30,000 scattered pages, a page"))
}

/// Maps a page in that unit, as a guest's IOMMU does, and anything larger whole.
fn map(bench: &Bench, iova: u64, memory: &HostMemory) -> Tried {
    let unit = if memory.len().get() == PAGE { Unit::Pages(PageSize::K4) } else { Unit::Whole };
    let request = MapRequest::new(Iova::new(iova), memory, Access::READ_WRITE).with_unit(unit);
    Ok(bench.opened.space.space().map(request)?)
}

fn unmap(bench: &Bench, iova: u64, length: u64) -> Tried {
    bench.opened.space.space().unmap(IovaRange::with_len(Iova::new(iova), length)?)?;
    Ok(())
}

/// The place of scattered page `n`: every other page.
fn place(n: u64) -> u64 {
    BASE + 2 * n * PAGE
}

/// One mapping, made and unmapped again and again.
fn pairs(bench: &Bench, work: &str, length: u64) -> Tried {
    const N: u64 = 200;
    let memory = bench.ram.slice(0, length).ok_or("inside the RAM")?;
    let raw = || {
        for _ in 0..N {
            bench.raw.map(BASE - length, bench.page(0), length)?;
            bench.raw.unmap(BASE - length, length)?;
        }
        Ok(())
    };
    let ours = || {
        for _ in 0..N {
            map(bench, BASE - length, &memory)?;
            unmap(bench, BASE - length, length)?;
        }
        Ok(())
    };
    compare(work, N, || instructions(raw), || instructions(ours))
}

fn one_by_one(bench: &Bench, work: &str) -> Tried {
    let raw = || {
        map_scattered_raw(bench, SCATTERED)?;
        unmap_scattered_raw(bench, SCATTERED)
    };
    let ours = || {
        map_scattered(bench, SCATTERED)?;
        for n in 0..SCATTERED {
            unmap(bench, place(n), PAGE)?;
        }
        Ok(())
    };
    compare(work, SCATTERED, || instructions(raw), || instructions(ours))
}

/// The raw loop unmaps page by page, as a VMM does that keeps no index; the library is asked for the whole range.
fn flush(bench: &Bench, work: &str) -> Tried {
    let raw = || {
        map_scattered_raw(bench, LIVE)?;
        instructions(|| unmap_scattered_raw(bench, LIVE))
    };
    let ours = || {
        map_scattered(bench, LIVE)?;
        instructions(|| unmap_all(bench, LIVE))
    };
    compare(work, LIVE, raw, ours)
}

fn map_scattered(bench: &Bench, count: u64) -> Tried {
    for n in 0..count {
        map(bench, place(n), &bench.memory(n)?)?;
    }
    Ok(())
}

fn unmap_all(bench: &Bench, count: u64) -> Tried {
    unmap(bench, BASE, 2 * count * PAGE)
}

fn map_scattered_raw(bench: &Bench, count: u64) -> Tried {
    for n in 0..count {
        bench.raw.map(place(n), bench.page(n), PAGE)?;
    }
    Ok(())
}

fn unmap_scattered_raw(bench: &Bench, count: u64) -> Tried {
    for n in 0..count {
        bench.raw.unmap(place(n), PAGE)?;
    }
    Ok(())
}
