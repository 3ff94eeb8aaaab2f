#![no_main]

use dmaspace_tests::attack::guest_calls;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dmaspace_fuzz::attack(guest_calls::attack, bytes));
