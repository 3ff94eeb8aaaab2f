//! A table of the four RTAS calls' answers to every class of argument: PAPR's, QEMU's, and this crate's. KVM answers
//! none.
//!
//! PAPR's answers are LoPAR's (sec_rtas_dma_window.xml), QEMU's are read in qemu: hw/ppc/spapr_rtas_ddw.c (the four
//! rtas_ibm_…), with the additions of 2022: queries of six results, pages of 2M, the default window's return. The
//! answers of QEMU 10.0 to a Linux guest are in tests/data/pseries-linux-*.trace.

use super::tests::{After, CREATE, FIRST, Guest, HI, LO, PE, QUERY, REMOVE, RESET, SECOND};
use After::{Both, Nowhere, OnlyHigh, Reset, Used};

/// A status of PAPR, QEMU or this crate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Status(i32),
    /// PAPR does not define the status.
    Nothing,
    /// A shift by 64 or more: the status depends on the compiler.
    Anything,
}

const OK: Says = Says::Status(0);
const HARDWARE: Says = Says::Status(-1);
const PARAMETER: Says = Says::Status(-3);
const SILENT: Says = Says::Nothing;
const UNDEFINED: Says = Says::Anything;

/// The calls made before; the token, the arguments, the number of results; the answers of PAPR and QEMU; ours; and the
/// reason for ours where they differ.
type Row = (After, u32, &'static [u32], u32, Says, Says, Says, &'static str);

const COUNTS: &str = "PAPR defines the counts, and no status for other counts";
const ANY_PE: &str = "all devices below a bridge are one PE, here as in QEMU";
const THIRD: &str = "QEMU has no LIOBN left, and reports a failure of its own";
const IN_32_BITS: &str = "QEMU counts a table's entries in 32 bits, and promises 2^37 of them";
const SHIFTS: &str = "QEMU shifts by the guest's number";
const TOO_SMALL: &str = "PAPR does not define the smallest window";
const IN_USE: &str = "PAPR requires of the caller that the window is not used";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    (Reset, QUERY, &[PE, HI, LO], 5, OK, OK, OK, ""),
    (Reset, QUERY, &[PE, HI, LO], 6, OK, OK, OK, ""),
    (Both, QUERY, &[PE, HI, LO], 5, OK, OK, OK, ""),
    (Both, QUERY, &[PE, HI, LO], 6, OK, OK, OK, ""),
    (Nowhere, QUERY, &[PE, HI, LO], 6, OK, OK, OK, ""),
    (Reset, QUERY, &[0xffff_ffff, HI, LO], 5, SILENT, OK, OK, ANY_PE),
    (Reset, QUERY, &[PE, HI, LO + 1], 5, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, QUERY, &[PE, 0, LO], 5, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, QUERY, &[PE, LO, HI], 6, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, QUERY, &[PE, HI, LO], 1, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, QUERY, &[PE, HI, LO], 4, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, QUERY, &[PE, HI, LO], 7, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, QUERY, &[PE, HI], 5, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, QUERY, &[PE, HI, LO, 0], 5, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, QUERY, &[], 5, SILENT, PARAMETER, PARAMETER, COUNTS),
    //
    (Reset, CREATE, &[PE, HI, LO, 12, 30], 4, OK, OK, OK, ""),
    (Reset, CREATE, &[PE, HI, LO, 16, 36], 4, OK, OK, OK, ""),
    (Reset, CREATE, &[PE, HI, LO, 21, 40], 4, OK, OK, OK, ""),
    (Reset, CREATE, &[PE, HI, LO, 24, 24], 4, OK, OK, OK, ""),
    (Reset, CREATE, &[PE, HI, LO, 24, 47], 4, OK, OK, OK, ""),
    (Nowhere, CREATE, &[PE, HI, LO, 16, 31], 4, OK, OK, OK, ""),
    (OnlyHigh, CREATE, &[PE, HI, LO, 12, 30], 4, OK, OK, OK, ""),
    (Reset, CREATE, &[0, HI, LO, 16, 31], 4, SILENT, OK, OK, ANY_PE),
    (Reset, CREATE, &[PE, HI, LO ^ 1, 16, 31], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, !HI, LO, 16, 31], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 0, 31], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 11, 31], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 13, 31], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 30, 31], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 34, 36], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 63, 63], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 76, 80], 4, PARAMETER, UNDEFINED, PARAMETER, SHIFTS),
    (Reset, CREATE, &[PE, HI, LO, u32::MAX, u32::MAX], 4, PARAMETER, UNDEFINED, PARAMETER, SHIFTS),
    // Linux 6.12 asks for this on a machine whose memory cannot grow.
    (Reset, CREATE, &[PE, HI, LO, 24, 0], 4, SILENT, PARAMETER, PARAMETER, TOO_SMALL),
    (Reset, CREATE, &[PE, HI, LO, 16, 12], 4, SILENT, PARAMETER, PARAMETER, TOO_SMALL),
    (Reset, CREATE, &[PE, HI, LO, 12, 40], 4, OK, OK, OK, ""),
    (Reset, CREATE, &[PE, HI, LO, 12, 44], 4, OK, HARDWARE, OK, IN_32_BITS),
    (Reset, CREATE, &[PE, HI, LO, 12, 49], 4, OK, HARDWARE, OK, IN_32_BITS),
    (Reset, CREATE, &[PE, HI, LO, 12, 50], 4, PARAMETER, HARDWARE, PARAMETER, IN_32_BITS),
    (Reset, CREATE, &[PE, HI, LO, 24, 62], 4, PARAMETER, HARDWARE, PARAMETER, IN_32_BITS),
    (Reset, CREATE, &[PE, HI, LO, 24, 63], 4, PARAMETER, HARDWARE, PARAMETER, IN_32_BITS),
    (Reset, CREATE, &[PE, HI, LO, 12, 64], 4, PARAMETER, HARDWARE, PARAMETER, IN_32_BITS),
    (Reset, CREATE, &[PE, HI, LO, 12, 76], 4, PARAMETER, UNDEFINED, PARAMETER, SHIFTS),
    (Reset, CREATE, &[PE, HI, LO, 12, u32::MAX], 4, PARAMETER, UNDEFINED, PARAMETER, SHIFTS),
    (Both, CREATE, &[PE, HI, LO, 16, 31], 4, PARAMETER, HARDWARE, PARAMETER, THIRD),
    (Both, CREATE, &[PE, HI, LO, 11, 31], 4, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, CREATE, &[PE, HI, LO, 16, 31], 3, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, CREATE, &[PE, HI, LO, 16, 31], 5, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, CREATE, &[PE, HI, LO, 16], 4, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, CREATE, &[PE, HI, LO, 16, 31, 0], 4, SILENT, PARAMETER, PARAMETER, COUNTS),
    //
    (Reset, REMOVE, &[FIRST], 1, OK, OK, OK, ""),
    (Both, REMOVE, &[FIRST], 1, OK, OK, OK, ""),
    (Both, REMOVE, &[SECOND], 1, OK, OK, OK, ""),
    (Used, REMOVE, &[SECOND], 1, SILENT, OK, OK, IN_USE),
    (OnlyHigh, REMOVE, &[SECOND], 1, OK, OK, OK, ""),
    (Reset, REMOVE, &[SECOND], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Nowhere, REMOVE, &[FIRST], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, REMOVE, &[0x8000_0002], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, REMOVE, &[0x8000_0100], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, REMOVE, &[0], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, REMOVE, &[u32::MAX], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Reset, REMOVE, &[], 1, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, REMOVE, &[FIRST, 0], 1, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Reset, REMOVE, &[FIRST], 2, SILENT, PARAMETER, PARAMETER, COUNTS),
    //
    (Reset, RESET, &[PE, HI, LO], 1, OK, OK, OK, ""),
    (Both, RESET, &[PE, HI, LO], 1, OK, OK, OK, ""),
    (Used, RESET, &[PE, HI, LO], 1, OK, OK, OK, ""),
    (OnlyHigh, RESET, &[PE, HI, LO], 1, OK, OK, OK, ""),
    (Nowhere, RESET, &[PE, HI, LO], 1, OK, OK, OK, ""),
    (Both, RESET, &[PE ^ 0xff00, HI, LO], 1, SILENT, OK, OK, ANY_PE),
    (Both, RESET, &[PE, HI, !LO], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Both, RESET, &[PE, LO, HI], 1, PARAMETER, PARAMETER, PARAMETER, ""),
    (Both, RESET, &[PE, HI], 1, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Both, RESET, &[PE, HI, LO, 0], 1, SILENT, PARAMETER, PARAMETER, COUNTS),
    (Both, RESET, &[PE, HI, LO], 2, SILENT, PARAMETER, PARAMETER, COUNTS),
];

#[test]
fn every_class_of_argument_gets_its_status_and_a_refusal_changes_nothing() {
    // Each row costs Miri seconds: it runs every 17th.
    let step = if cfg!(miri) { 17 } else { 1 };
    for (before, token, arguments, results, _, _, ours, _) in ROWS.iter().step_by(step) {
        let mut guest = Guest::after(*before);
        let state = guest.state();
        let answer = guest.call(*token, arguments, *results).expect("a buffer");
        let status = guest.results(arguments.len(), 1)[0] as i32;
        assert_eq!(Says::Status(status), *ours, "{before:?} {token:x} {arguments:x?} {results}: {answer:?}");
        assert!(status == 0 || guest.state() == state, "{before:?} {token:x} {arguments:x?}");
        // The cell behind the results is unchanged.
        let behind = guest.results(arguments.len() + *results as usize, 1);
        assert_eq!(behind, [0xeeee_eeee], "{token:x} {arguments:x?} {results}");
    }
}

#[test]
fn our_status_is_papr_s_then_qemu_s_and_reasons_are_given_where_they_differ() {
    for (_, token, arguments, _, papr, qemu, ours, why) in ROWS {
        let rule = if *papr == SILENT { *qemu } else { *papr };
        assert_eq!(rule, *ours, "{token:x} {arguments:x?}");
        let agreed = [papr, qemu].iter().all(|says| *says == ours);
        assert_eq!(agreed, why.is_empty(), "{token:x} {arguments:x?}");
    }
}
