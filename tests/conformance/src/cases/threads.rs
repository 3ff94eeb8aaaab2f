//! Threads: every verb may be called from any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dmaspace_core::{Access, IovaRange};

use crate::bench::{Bench, WHOLE, map_in};

const RW: Access = Access::READ_WRITE;
const THREADS: u64 = 4;
const ROUNDS: u64 = 25;

pub(super) fn threads_map_beside_each_other(bench: &mut Bench) {
    let space = bench.space().as_ref();
    thread::scope(|scope| {
        for n in 0..THREADS {
            let (at, memory, range) = (bench.at(8 * n), bench.ram(8 * n, 4), bench.range(8 * n, 4));
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    map_in(space, at, &memory, RW, WHOLE).expect("no other thread maps there");
                    assert_eq!(space.unmap(range).expect("the unit is whole"), memory.len().get());
                }
            });
        }
    });
    assert_eq!((bench.live(), bench.fences()), (vec![], vec![]));
}

pub(super) fn of_threads_that_map_one_range_one_succeeds(bench: &mut Bench) {
    for round in 0..ROUNDS {
        let (at, space) = (bench.at(2 * round), bench.space().as_ref());
        let pieces: Vec<_> = (0..THREADS).map(|n| bench.ram(n, 1)).collect();
        let winners: Vec<u64> = thread::scope(|scope| {
            let maps: Vec<_> =
                pieces.iter().map(|memory| scope.spawn(move || map_in(space, at, memory, RW, WHOLE).is_ok())).collect();
            let results = maps.into_iter().map(|map| map.join().expect("a map does not panic"));
            (0..THREADS).zip(results).filter(|(_, won)| *won).map(|(n, _)| n).collect()
        });
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(bench.lookup(at).map(|mapping| mapping.memory), Some(bench.ram(winners[0], 1)));
    }
}

pub(super) fn a_lookup_during_changes_finds_a_whole_mapping_or_none(bench: &mut Bench) {
    let (space, range, done) = (bench.space().as_ref(), bench.range(4, 4), AtomicBool::new(false));
    let (at, memory) = (bench.at(4), bench.ram(4, 4));
    thread::scope(|scope| {
        for n in 4..8 {
            let (looked, done, memory) = (bench.at(n), &done, &memory);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    if let Some(found) = space.lookup(looked) {
                        assert_eq!((found.range, &found.memory), (range, memory));
                    }
                }
            });
        }
        for _ in 0..ROUNDS {
            map_in(space, at, &memory, RW, WHOLE).expect("no other thread maps there");
            space.unmap(range).expect("the unit is whole");
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(bench.live(), []);
}

pub(super) fn an_unmap_of_everything_meets_threads_that_map(bench: &mut Bench) {
    let space = bench.space().as_ref();
    let (mapped, unmapped) = thread::scope(|scope| {
        let mappers: Vec<_> = (0..THREADS)
            .map(|n| {
                let places: Vec<_> = (0..8).map(|k| (bench.at(8 * n + k), bench.ram(8 * n + k, 1))).collect();
                scope.spawn(move || {
                    let mut bytes = 0;
                    for (at, memory) in &places {
                        map_in(space, *at, memory, RW, WHOLE).expect("no other thread maps there");
                        bytes += memory.len().get();
                    }
                    bytes
                })
            })
            .collect();
        let mut unmapped = 0;
        for _ in 0..ROUNDS {
            unmapped += space.unmap(IovaRange::all()).expect("every unit is whole");
        }
        (mappers.into_iter().map(|mapper| mapper.join().expect("a map does not panic")).sum::<u64>(), unmapped)
    });
    let rest = space.unmap(IovaRange::all()).expect("every unit is whole");
    assert_eq!(unmapped + rest, mapped, "every byte is unmapped once");
    assert_eq!(bench.live(), []);
}
