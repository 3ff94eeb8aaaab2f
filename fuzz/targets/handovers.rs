#![no_main]

use dmaspace_tests::attack::handovers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dmaspace_fuzz::attack(handovers::attack, bytes));
