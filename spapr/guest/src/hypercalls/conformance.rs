//! A table of the four hypercalls' answers to every class of argument: PAPR's, QEMU's, KVM's, and this crate's.
//!
//! PAPR's answers are LoPAR's (ch_lpar_option.xml, "Translation Control Entry Access"), QEMU's and KVM's are read in
//! qemu: hw/ppc/spapr_iommu.c (h_get_tce, h_put_tce, h_put_tce_indirect, h_stuff_tce, put_tce_emu) and linux:
//! arch/powerpc/kvm/book3s_64_vio.c (kvmppc_h_get_tce, kvmppc_h_put_tce, kvmppc_h_put_tce_indirect, kvmppc_h_stuff_tce,
//! kvmppc_tce_validate) with arch/powerpc/kernel/iommu.c (iommu_tce_check_ioba).

use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Iova, PageSize, SystemAddress};
use dmaspace_listener::EntryRun;

use super::{H_GET_TCE, H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE};
use crate::{Entries, Liobn, Refusal, ReturnCode, SystemMemory, Tce, TceTable, TceTables};

/// An answer of PAPR, QEMU, KVM or this crate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Code(ReturnCode),
    /// PAPR does not define the answer.
    Nothing,
    /// `H_TOO_HARD`: KVM passes the call to the VMM.
    AskTheVmm,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    /// LIOBN, IOBA.
    Get(u64, u64),
    /// LIOBN, IOBA, TCE.
    Put(u64, u64, u64),
    /// LIOBN, IOBA, list, count; and the entries in the list, which zeros follow.
    List(u64, u64, u64, u64, &'static [u64]),
    /// LIOBN, IOBA, TCE, count.
    Stuff(u64, u64, u64, u64),
}

const OK: Says = Says::Code(ReturnCode::Success);
const PARAMETER: Says = Says::Code(ReturnCode::Parameter);
const FUNCTION: Says = Says::Code(ReturnCode::Function);
const P4: Says = Says::Code(ReturnCode::P4);
const SILENT: Says = Says::Nothing;
const VMM: Says = Says::AskTheVmm;

/// A table of 1 GiB at 0 in pages of 4K, with one live entry, at LIVE.
const LOW: u64 = 0x8000_0000;
/// A table of 64 GiB at HB in pages of 64K.
const HIGH: u64 = 0x8000_0001;
const NONE: u64 = 0x8000_0007;
const WIDE: u64 = (1 << 32) | LOW;

const GIB: u64 = 1 << 30;
const LIVE: u64 = 0x5000;
const HB: u64 = 1 << 59;
const HIGH_LEN: u64 = 1 << 36;
/// The end of the guest's memory.
const RAM: u64 = 0x1000_0000;
const LIST: u64 = 0x10_1000;
const TOP: u64 = 0xffff_ffff_ffff_f000;

use Call::{Get, List, Put, Stuff};

/// The call; the answers of PAPR, QEMU and KVM; ours; and the reason for ours where they differ.
type Row = (Call, Says, Says, Says, Says, &'static str);

const MASKS: &str = "QEMU drops the bits below the page, KVM refuses them";
const UNKNOWN: &str = "KVM passes calls on unknown tables to the VMM, which does not know them either";
const NOT_RAM: &str = "QEMU stores addresses without memory";
const CROOKED: &str =
    "QEMU drops bits of another page's address; KVM's real mode refused them, KVM now passes the call on";
const ONE_PAGE: &str = "KVM looks at the first page only";
const NONE_TO_DO: &str = "QEMU answers with a refusal unless an entry was written";
const ZEROS: &str = "older Linux guests clear any number at once, and lose track when refused";

const ROWS: &[Row] = &[
    (Get(LOW, 0), OK, OK, OK, OK, ""),
    (Get(LOW, LIVE), OK, OK, OK, OK, ""),
    (Get(LOW, GIB - 0x1000), OK, OK, OK, OK, ""),
    (Get(LOW, GIB), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Get(LOW, HB), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Get(LOW, TOP), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Get(LOW, LIVE + 1), SILENT, OK, PARAMETER, PARAMETER, MASKS),
    (Get(HIGH, HB), OK, OK, OK, OK, ""),
    (Get(HIGH, HB + 0x1000), SILENT, OK, PARAMETER, PARAMETER, MASKS),
    (Get(HIGH, HB - 0x1_0000), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Get(HIGH, 0), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Get(HIGH, HB + HIGH_LEN), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Get(NONE, 0), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    (Get(WIDE, 0), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    (Get(u64::MAX, 0), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    //
    (Put(LOW, 0, 0x3), OK, OK, OK, OK, ""),
    (Put(LOW, 0, 0x7001), OK, OK, OK, OK, ""),
    (Put(LOW, 0, 0x7002), OK, OK, OK, OK, ""),
    (Put(LOW, LIVE, 0x7003), OK, OK, OK, OK, ""),
    (Put(LOW, LIVE, 0), OK, OK, OK, OK, ""),
    (Put(LOW, 0x6000, 0), OK, OK, OK, OK, ""),
    (Put(LOW, 0, RAM), OK, OK, OK, OK, ""),
    (Put(LOW, 0, 0xffc), OK, OK, OK, OK, ""),
    (Put(LOW, GIB - 0x1000, 0x7003), OK, OK, OK, OK, ""),
    (Put(LOW, GIB, 0x7003), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Put(LOW, TOP, 0), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Put(LOW, LIVE + 0x800, 0x7003), SILENT, OK, PARAMETER, PARAMETER, MASKS),
    (Put(LOW, 0, RAM - 0x1000 + 3), OK, OK, OK, OK, ""),
    (Put(LOW, 0, RAM + 3), PARAMETER, OK, VMM, PARAMETER, NOT_RAM),
    (Put(LOW, 0, RAM + 1), PARAMETER, OK, VMM, PARAMETER, NOT_RAM),
    (Put(LOW, 0, TOP + 3), PARAMETER, OK, VMM, PARAMETER, NOT_RAM),
    (Put(LOW, 0, 0x7007), SILENT, OK, VMM, PARAMETER, CROOKED),
    (Put(HIGH, HB, 0x1_0003), OK, OK, OK, OK, ""),
    (Put(HIGH, HB + HIGH_LEN - 0x1_0000, 0x1_0003), OK, OK, OK, OK, ""),
    (Put(HIGH, HB, 0x1_1003), SILENT, OK, VMM, PARAMETER, CROOKED),
    (Put(HIGH, HB + 0x8000, 0x1_0003), SILENT, OK, PARAMETER, PARAMETER, MASKS),
    (Put(HIGH, HB - 0x1_0000, 0x1_0003), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Put(NONE, 0, 0x7003), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    (Put(WIDE, 0, 0x7003), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    (Put(u64::MAX, u64::MAX, u64::MAX), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    //
    (List(LOW, 0, LIST, 2, &[0x7003, 0x8003]), OK, OK, OK, OK, ""),
    (List(LOW, LIVE, LIST, 3, &[0x7001, 0, RAM]), OK, OK, OK, OK, ""),
    (List(LOW, 0, LIST, 512, &[0x7003]), OK, OK, OK, OK, ""),
    (List(LOW, 0, LIST, 513, &[]), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (List(LOW, 0, LIST, u64::MAX, &[]), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (List(LOW, 0, LIST, 0, &[0x7003]), OK, PARAMETER, OK, OK, NONE_TO_DO),
    (List(LOW, GIB, LIST, 0, &[]), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (List(LOW, 0, RAM, 0, &[]), PARAMETER, PARAMETER, VMM, PARAMETER, "PAPR copies the page whatever the number"),
    (List(LOW, 0, LIST + 8, 1, &[]), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (List(LOW, 0, LIST + 0x800, 1, &[]), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (List(LOW, LIVE, RAM, 1, &[]), PARAMETER, OK, VMM, PARAMETER, "QEMU reads zeros where there is no memory"),
    (List(LOW, LIVE, TOP, 1, &[]), PARAMETER, OK, VMM, PARAMETER, "QEMU reads zeros where there is no memory"),
    (List(LOW, LIVE + 0x800, LIST, 1, &[0x7003]), SILENT, OK, PARAMETER, PARAMETER, MASKS),
    (List(LOW, GIB, LIST, 1, &[0x7003]), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (List(LOW, GIB - 0x1000, LIST, 1, &[0x7003]), OK, OK, OK, OK, ""),
    (List(LOW, GIB - 0x1000, LIST, 2, &[0x7003, 0x8003]), PARAMETER, PARAMETER, OK, PARAMETER, ONE_PAGE),
    (List(LOW, LIVE, LIST, 2, &[0x7003, RAM + 3]), PARAMETER, OK, VMM, PARAMETER, NOT_RAM),
    (List(LOW, LIVE, LIST, 2, &[0x7003, 0x8007]), SILENT, OK, VMM, PARAMETER, CROOKED),
    (List(HIGH, HB, LIST, 2, &[0x1_0003, 0x2_0003]), OK, OK, OK, OK, ""),
    (List(HIGH, HB, LIST, 2, &[0x1_0003, 0x1_1003]), SILENT, OK, VMM, PARAMETER, CROOKED),
    (List(HIGH, HB - 0x1_0000, LIST, 2, &[]), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (List(NONE, 0, LIST, 1, &[]), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    (List(WIDE, 0, LIST, 1, &[]), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    (
        List(u64::MAX, 0, LIST, 1, &[]),
        FUNCTION,
        PARAMETER,
        VMM,
        FUNCTION,
        "negative means several tables, which no platform offers",
    ),
    (List((!0 << 32) | LOW, 0, LIST, 1, &[]), FUNCTION, PARAMETER, VMM, FUNCTION, "a sign-extended one, too"),
    //
    (Stuff(LOW, 0, 0, 1), OK, OK, OK, OK, ""),
    (Stuff(LOW, 0, 0, 512), OK, OK, OK, OK, ""),
    (Stuff(LOW, 0, 0, 0), OK, PARAMETER, OK, OK, NONE_TO_DO),
    (Stuff(LOW, 0, 0, 513), P4, OK, OK, OK, ZEROS),
    (Stuff(LOW, 0, 0, GIB >> 12), P4, OK, OK, OK, ZEROS),
    (Stuff(HIGH, HB, 0, HIGH_LEN >> 16), P4, OK, OK, OK, ZEROS),
    (Stuff(LOW, 0, 0, (GIB >> 12) + 1), P4, PARAMETER, OK, P4, ONE_PAGE),
    (Stuff(LOW, 0x1000, 0, GIB >> 12), P4, PARAMETER, OK, P4, ONE_PAGE),
    (Stuff(LOW, 0, 0x7003, 4), OK, OK, PARAMETER, OK, "KVM stuffs no entry with a right"),
    (Stuff(LOW, 0, 0x7003, 512), OK, OK, PARAMETER, OK, "KVM stuffs no entry with a right"),
    (Stuff(LOW, 0, 0x7003, 513), P4, OK, PARAMETER, P4, "QEMU's limit is the table"),
    (Stuff(LOW, 0, RAM, 512), OK, OK, OK, OK, ""),
    (Stuff(LOW, 0, RAM, 513), P4, OK, OK, P4, "only zeros cost nothing"),
    (Stuff(LOW, 0, RAM + 3, 1), PARAMETER, OK, PARAMETER, PARAMETER, NOT_RAM),
    (Stuff(LOW, 0, RAM + 3, 0), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Stuff(LOW, 0, 0x7007, 1), SILENT, OK, PARAMETER, PARAMETER, CROOKED),
    (Stuff(LOW, GIB - 0x1000, 0, 1), OK, OK, OK, OK, ""),
    (Stuff(LOW, GIB - 0x1000, 0, 2), PARAMETER, PARAMETER, OK, PARAMETER, ONE_PAGE),
    (Stuff(LOW, GIB, 0, 1), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Stuff(LOW, GIB, 0, 513), PARAMETER, PARAMETER, PARAMETER, PARAMETER, ""),
    (Stuff(LOW, LIVE + 0x800, 0, 1), SILENT, OK, PARAMETER, PARAMETER, MASKS),
    (Stuff(NONE, 0, 0, 1), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
    (Stuff(WIDE, 0, 0, 1), PARAMETER, PARAMETER, VMM, PARAMETER, UNKNOWN),
];

/// Memory from 0 to RAM. Every address holds the list.
struct Memory(&'static [u64]);

impl SystemMemory for Memory {
    fn holds(&self, range: SystemRange) -> bool {
        range.last().get() < RAM
    }

    fn read(&self, at: SystemAddress, into: &mut [u8]) -> bool {
        let there = SystemRange::with_len(at, into.len() as u64).is_ok_and(|range| self.holds(range));
        let list = self.0.iter().flat_map(|entry| entry.to_be_bytes()).chain(std::iter::repeat(0));
        into.iter_mut().zip(list).for_each(|(byte, new)| *byte = new);
        there
    }

    fn write(&self, _: SystemAddress, _: &[u8]) -> bool {
        false
    }
}

fn liobn(raw: u64) -> Liobn {
    Liobn::new(u32::try_from(raw).expect("a LIOBN of the test"))
}

fn tables() -> TceTables {
    let tables = TceTables::new();
    let mut low = TceTable::new(Iova::new(0), PageSize::K4, GIB >> 12).expect("a table of the test");
    low.write(Iova::new(LIVE), Entries::List(&[Tce::new(0x9003)])).expect("inside");
    let high = TceTable::new(Iova::new(HB), PageSize::K64, HIGH_LEN >> 16).expect("a table of the test");
    tables.add(liobn(LOW), low).expect("it is free");
    tables.add(liobn(HIGH), high).expect("it is free");
    tables
}

fn live(tables: &TceTables) -> [Vec<EntryRun>; 2] {
    [LOW, HIGH].map(|raw| tables.live(liobn(raw)).expect("it is there"))
}

/// Makes a call as a guest does: by its token and the registers.
fn make(tables: &TceTables, memory: &Memory, token: u64, registers: [u64; 4]) -> Result<u64, Refusal> {
    tables.hypercall(memory, token, registers).expect("one of the four calls")
}

fn answer(tables: &TceTables, call: Call) -> Result<u64, Refusal> {
    let none = Memory(&[]);
    match call {
        Get(liobn, ioba) => make(tables, &none, H_GET_TCE, [liobn, ioba, 7, 7]),
        Put(liobn, ioba, tce) => make(tables, &none, H_PUT_TCE, [liobn, ioba, tce, 7]),
        List(liobn, ioba, at, count, list) => make(tables, &Memory(list), H_PUT_TCE_INDIRECT, [liobn, ioba, at, count]),
        Stuff(liobn, ioba, tce, count) => make(tables, &none, H_STUFF_TCE, [liobn, ioba, tce, count]),
    }
}

#[test]
fn every_class_of_argument_gets_its_answer_and_a_refusal_changes_nothing() {
    // Each row costs Miri seconds: it runs every 17th.
    let step = if cfg!(miri) { 17 } else { 1 };
    for (call, _, _, _, ours, _) in ROWS.iter().step_by(step) {
        let tables = tables();
        let before = live(&tables);
        let result = answer(&tables, *call);
        assert_eq!(Says::Code(ReturnCode::of(&result)), *ours, "{call:x?}: {result:?}");
        assert!(result.is_ok() || live(&tables) == before, "{call:x?}");
    }
}

#[test]
fn our_answer_is_papr_s_then_kvm_s_and_reasons_are_given_where_they_differ() {
    for (call, papr, qemu, kvm, ours, why) in ROWS {
        let rule = if *papr == SILENT { *kvm } else { *papr };
        assert!(rule == *ours || rule == VMM || *why == ZEROS, "{call:x?}");
        let agreed = [papr, qemu, kvm].iter().all(|says| *says == ours);
        assert_eq!(agreed, why.is_empty(), "{call:x?}");
    }
}

#[test]
fn codes_are_the_numbers_of_the_architecture() {
    use ReturnCode::{Function, Hardware, NotEnoughResources, P4, Parameter, Success};
    let codes = [Success, Hardware, Function, Parameter, NotEnoughResources, P4];
    assert_eq!(codes.map(ReturnCode::get), [0, -1, -2, -4, -44, -57]);
}

#[test]
fn calls_of_other_tokens_are_not_answered() {
    assert_eq!(tables().hypercall(&Memory(&[]), 0xf000, [LOW, 0, 0, 0]), None);
}

#[test]
fn an_entry_reads_as_it_was_put() {
    let tables = tables();
    let (name, at, next) = (liobn(LOW), Iova::new(LIVE), Iova::new(LIVE + 0x1000));
    let none = Memory(&[]);
    for tce in [0x7001, 0x8002, 0x9003, 0xdead_0000_0ffc, 0].map(Tce::new) {
        assert_eq!(tables.h_put_tce(&none, name, at, tce), Ok(()));
        assert_eq!(tables.h_get_tce(name, at), Ok(tce));
    }
    let list = Memory(&[0x7001, 0x8002]);
    assert_eq!(tables.h_put_tce_indirect(&list, name, at, SystemAddress::new(LIST), 2), Ok(()));
    let both = (tables.h_get_tce(name, at), tables.h_get_tce(name, next));
    assert_eq!(both, (Ok(Tce::new(0x7001)), Ok(Tce::new(0x8002))));
    assert_eq!(tables.h_stuff_tce(&none, name, at, Tce::new(0xa003), 2), Ok(()));
    let both = (tables.h_get_tce(name, at), tables.h_get_tce(name, next));
    assert_eq!(both, (Ok(Tce::new(0xa003)), Ok(Tce::new(0xa003))));
}

#[test]
fn no_numbers_in_registers_cause_a_panic() {
    let odd = [0, 1, 7, 512, 513, LIVE, GIB, HB, LOW, HIGH, RAM + 3, TOP + 3, u64::MAX - 1, u64::MAX];
    let tables = tables();
    let none = Memory(&[]);
    // Miri runs 14 of the 2,744 triples, each number in each place in one of them.
    let step = if cfg!(miri) { 211 } else { 1 };
    for liobn in [LOW, HIGH, u64::MAX] {
        for number in (0..odd.len().pow(3)).step_by(step) {
            let [a, b, c] = [1, odd.len(), odd.len().pow(2)].map(|place| odd[number / place % odd.len()]);
            for token in [H_GET_TCE, H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE] {
                let _ = tables.hypercall(&none, token, [liobn, a, b, c]);
            }
        }
    }
}
