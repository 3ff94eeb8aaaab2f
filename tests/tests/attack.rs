//! The attacks on generated inputs, and on inputs that once failed. The fuzz targets in `fuzz` go further.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use dmaspace_tests::attack::{chains, generated, guest_calls, handovers, kernel_replies};

/// The most bytes that an attack holds at once.
const MOST_BYTES: u64 = 64 << 20;

/// Runs an attack on the inputs in `tests/data/attack/NAME` and on `count` generated inputs, or on that of one seed if
/// DMASPACE_ATTACK_SEED is set. With DMASPACE_ATTACK_TALK the kernel's answers are printed.
fn run(name: &str, attack: fn(&[u8]), count: u64, len: usize) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/attack").join(name);
    for entry in fs::read_dir(&kept).into_iter().flatten() {
        let path = entry.expect("the folder can be read").path();
        try_one(&path.display().to_string(), attack, &fs::read(&path).expect("an input"));
    }
    let only = std::env::var("DMASPACE_ATTACK_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..count, |seed: u64| seed..seed + 1) {
        let bytes = generated(seed, len / 4 + usize::try_from(seed).expect("small") % len);
        try_one(&format!("{name} of seed {seed}"), attack, &bytes);
    }
}

fn try_one(input: &str, attack: fn(&[u8]), bytes: &[u8]) {
    let mut result = Ok(());
    let info = allocation_counter::measure(|| result = catch_unwind(AssertUnwindSafe(|| attack(bytes))));
    if let Err(panic) = result {
        eprintln!("the input: {input}");
        resume_unwind(panic);
    }
    assert!(info.bytes_max <= MOST_BYTES, "{input}: {} bytes at once", info.bytes_max);
}

#[test]
fn a_kernel_that_fails_or_lies_breaks_no_promise() {
    run("kernel_replies", kernel_replies::attack, 1500, 1200);
}

#[test]
fn chains_with_anything_in_them_are_followed_or_refused() {
    run("chains", chains::attack, 20_000, 160);
}

#[test]
fn descriptions_with_anything_in_them_are_adopted_or_refused() {
    run("handovers", handovers::attack, 3000, 64);
}

#[test]
fn a_guest_that_calls_anything_breaks_no_promise() {
    run("guest_calls", guest_calls::attack, 150, 600);
}
