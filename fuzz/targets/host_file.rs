#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dmaspace_fuzz::host_file(bytes));
