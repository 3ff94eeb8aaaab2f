#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dmaspace_fuzz::sys_tar(bytes));
