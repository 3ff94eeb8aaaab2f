#![no_main]

use dmaspace_tests::attack::kernel_replies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dmaspace_fuzz::attack(kernel_replies::attack, bytes));
