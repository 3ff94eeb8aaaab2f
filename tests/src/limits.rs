//! A limit on locked memory that is met in the middle of a commit: the error names the wanted, allowed and locked
//! bytes, and everything is as it was, in the space and in the kernel's count.

use dmaspace_core::contract::{Mapping, Snapshot};
use dmaspace_core::error::Kind;
use dmaspace_core::words::locked::{AccountingMode, Allowance, LockedMemory, PinLimit};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange};
use dmaspace_listener::section::FrontEnd;
use dmaspace_listener::{CommitError, Update};
use dmaspace_listener::{Listener, Section};

use crate::fixture::Fixture;

const MIB: u64 = 1 << 20;

/// The section in force before the limit is met. It lies last on the bus: on POWER its window has room for the others
/// below it.
const FIRST: u64 = 15 * MIB;

/// The sections added in one commit, a MiB each. Between them lies memory that is not the guest's, or POWER would
/// register them together.
const MORE: [u64; 3] = [0, 2 * MIB, 4 * MIB];

/// The limit on a process's locked memory.
pub trait LockLimit {
    /// Its limit and its locked bytes, as its kernel counts.
    fn locked(&self) -> LockedMemory;

    /// From now on it may lock so many bytes.
    fn limit(&self, bytes: u64);
}

/// Three sections come where two can be locked.
pub fn limit_met_in_the_middle_of_a_commit(fixture: &mut Fixture) {
    let ram = fixture.ram.clone();
    let section = |at: u64| {
        Section::ram("ram", Iova::new(at), ram.slice(at, MIB), Access::READ_WRITE).expect("a section of the scenario")
    };
    let all = MORE.iter().fold(Update::new(), |update, at| update.adding(section(*at)));
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(fixture.space.clone()).expect("an empty view fits every host");
    listener.commit(Update::new().adding(section(FIRST))).expect("nothing is in its way");

    let before = Held::by(fixture);
    let allowed = before.taken + 3 * MIB - 0x1_0000;
    fixture.lock_limit.limit(allowed);
    let refusal = listener.commit(all.clone()).expect_err("two of three fit");
    let CommitError::Step { error, fenced } = &refusal else { panic!("a step was to fail: {refusal}") };
    let (taken, payer) = (before.taken + 2 * MIB, before.payer);
    let allowance = Some(Allowance::new(Some(allowed), taken, payer));
    assert_eq!(error.kind(), Kind::PinLimit(PinLimit::new(Some(MIB), allowance)), "{error}");
    let short = format!("{MIB} bytes more do not fit into the {allowed} bytes that may be locked (RLIMIT_MEMLOCK)");
    assert!(error.to_string().contains(&format!("{short}, {taken} of them taken")), "{error}");
    assert_eq!((fenced.as_slice(), error.fenced()), (&[][..], &[][..]), "{error}");
    assert_eq!(Held::by(fixture), before, "after {error}");

    fixture.show_results_at(Iova::new(FIRST + 0x1_0000), ram.slice(FIRST + 0x1_0000, 0x1000));
    fixture.assert_range(section(FIRST).range(), &ram.slice(FIRST, MIB), true);
    for at in MORE.iter() {
        fixture.assert_unreached(Iova::new(*at));
    }

    fixture.lock_limit.limit(allowed + 0x1_0000);
    listener.commit(all).expect("all of it fits");
    for at in MORE {
        fixture.assert_range(section(at).range(), &ram.slice(at, MIB), true);
    }
    let space = fixture.space.clone();
    listener.detach(&space).expect("everything can be taken out");
}

/// The mappings and registrations of a space, and the bytes that the kernel counts for it.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    taken: u64,
    payer: AccountingMode,
    mappings: Vec<Mapping>,
    windows: Snapshot,
    registered: Vec<HostMemory>,
}

impl Held {
    fn by(fixture: &Fixture) -> Self {
        let locked = fixture.lock_limit.locked();
        let on_iommufd = fixture.space.describe().backend.ends_with("iommufd");
        let account = if on_iommufd { LockedMemory::of_user } else { LockedMemory::of_process };
        let Allowance { taken, payer, .. } = account(locked);
        Self {
            taken,
            payer,
            mappings: fixture.space.mappings(IovaRange::all()),
            windows: fixture.space.windows(),
            registered: fixture.space.powers().registration.map(|power| power.registered()).unwrap_or_default(),
        }
    }
}
