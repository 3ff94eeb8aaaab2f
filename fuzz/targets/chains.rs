#![no_main]

use dmaspace_tests::attack::chains;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dmaspace_fuzz::attack(chains::attack, bytes));
