//! The listener against a naive model ([`dmaspace_tests::model`]): random guests on random hosts, on all dialects of
//! the soft host.
//!
//! After every step the spaces map the memory of the model, and the soft host's devices reach exactly that. A step that
//! fails leaves everything as it was, but for ranges it names as fenced. A mapping that is the same before and after a
//! step was not touched in between.
//!
//! Every world comes from a seed of its own. A failure names it, with the fewest steps that still fail:
//!
//! ```text
//! MODEL_STEPS=1000000 cargo test -p dmaspace-tests --test model        # more steps than the usual 100,000
//! MODEL_SEED=123 cargo test -p dmaspace-tests --test model type1       # this world of that test, and no other
//! ```

mod bus;
mod checks;
mod dma;
mod entries;
mod host_under_test;
mod members;
mod setting;
mod step;
mod test_host;
mod update_builder;
mod updates;
mod world;

use std::cell::Cell;
use std::env;

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use bus::{GuestMemory, Upper};
use host_under_test::HostKind::{self, Iommufd, PSeries, Pool, PowerNv, PowerNvV1, Type1};
use world::World;

/// The starts of the upper slots: a PC's memory above its hole, the top of all, POWER's second window.
const PC: &[Upper] = &[Upper::At(1 << 32), Upper::Top];
const POWER: &[Upper] = &[Upper::At(1 << 59)];

#[test]
fn type1() {
    play("type1", 25, &[&[Type1]], PC);
}

#[test]
fn iommufd() {
    play("iommufd", 20, &[&[Iommufd]], PC);
}

#[test]
fn pool() {
    play("pool", 15, &[&[Pool], &[Pool, Pool], &[Type1, Pool]], PC);
}

#[test]
fn spapr() {
    play("spapr", 25, &[&[PowerNv], &[PSeries]], POWER);
}

#[test]
fn spapr_v1() {
    play("spapr_v1", 10, &[&[PowerNvV1]], POWER);
}

#[test]
fn several_spaces() {
    play("several_spaces", 20, &[&[Type1, Iommufd], &[Iommufd, Type1], &[Type1, Iommufd, Type1]], PC);
}

#[test]
fn all_dialects() {
    play(
        "all_dialects",
        10,
        &[&[PowerNv, Type1], &[Iommufd, PowerNv], &[PowerNv, PSeries], &[PowerNvV1, PowerNv]],
        POWER,
    );
}

/// Plays worlds with these hosts, until so many of a hundred steps are taken.
fn play(name: &str, percent: u64, hosts: &'static [&'static [HostKind]], uppers: &'static [Upper]) {
    let number = |name: &str| env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let most = number("MODEL_STEPS").unwrap_or(100_000) * percent / 100;
    let seeds = number("MODEL_SEED").map_or(0..u64::MAX, |seed| seed..seed + 1);
    let (memory_of_guest, taken) = (GuestMemory::new(), Cell::new(0));
    let worlds = (setting::setting(hosts, uppers), step::steps());
    for seed in seeds.take_while(|_| taken.get() < most) {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let result = runner.run(&worlds, |(setting, steps)| {
            let mut world = World::new(setting, memory_of_guest.clone())?;
            for step in &steps {
                world.take(step)?;
                taken.set(taken.get() + 1);
            }
            world.end()
        });
        if let Err(TestError::Fail(why, (setting, steps))) = result {
            let steps: Vec<_> = steps.iter().map(|step| format!("{step:?}")).collect();
            panic!("MODEL_SEED={seed} of {name}: {why}\n{setting:?}\n{}", steps.join("\n"));
        }
    }
}
