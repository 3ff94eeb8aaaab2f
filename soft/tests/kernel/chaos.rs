//! Any calls in any order, sensible or not, with faults in some of them: nothing panics, and closing everything
//! releases everything but the memory that kernels themselves leak, which ends with the process.

use crate::setting::{GIB, HIGH, MIB, Opened, PAGE, memory, unbacked};
use dmaspace_abi::{device, iommufd, spapr, type1, vfio};
use dmaspace_core::door::{Command, Door, Errno, Handle, Request};
use dmaspace_core::{Access, HostMemory, Iova};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::{FaultMode, FaultPlan, Profile, SoftHost};
use proptest::prelude::*;
use proptest::sample::{Index, select};

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64, Option<usize>, u8),
    Unmap(u64, u64),
    UnmapAll,
    Copy(u64, u64, u64, u8),
    Register(Option<usize>, u64),
    Unregister(Option<usize>, u64),
    Create(u32, u64, u32),
    Remove(u64),
    Enable(bool),
    /// Lets a group leave and join again, or detaches and attaches a device.
    Rejoin(Index),
    Dma(u64),
    Garbage(Index, Vec<u8>),
    Spoil(FaultMode),
}

fn addresses() -> impl Strategy<Value = u64> {
    let near = (0u64..8, any::<bool>()).prop_map(|(page, odd)| MIB + page * PAGE + u64::from(odd) * 8);
    let far = select(vec![
        0,
        HIGH,
        HIGH + PAGE,
        0xfee0_0000,
        GIB - PAGE,
        2 * GIB - PAGE,
        1 << 48,
        PAGE.wrapping_neg(),
        u64::MAX,
    ]);
    prop_oneof![6 => near, 1 => far]
}

fn sizes() -> impl Strategy<Value = u64> {
    let odd = vec![1, GIB, 1 << 60, u64::MAX, PAGE.wrapping_neg()];
    prop_oneof![8 => (0u64..6).prop_map(|pages| pages * PAGE), 1 => select(odd)]
}

/// One of the run's memories, or none.
fn memories() -> impl Strategy<Value = Option<usize>> {
    proptest::option::weighted(0.9, 0usize..5)
}

fn modes() -> impl Strategy<Value = FaultMode> {
    select(vec![
        FaultMode::FailBefore,
        FaultMode::FailAfter,
        FaultMode::Positive(3),
        FaultMode::ShortSize,
        FaultMode::ZeroWithoutEffect,
        FaultMode::PartialEffect,
    ])
}

/// Page shifts, sizes and levels.
fn windows() -> impl Strategy<Value = (u32, u64, u32)> {
    let shifts = select(vec![0u32, 12, 13, 16, 21, 63, 76, u32::MAX]);
    let sizes = select(vec![0, PAGE, GIB, 3 * GIB, 1 << 40, 1 << 63]);
    (shifts, sizes, 0u32..7)
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (addresses(), sizes(), memories(), 0u8..4)
            .prop_map(|(at, size, memory, access)| Op::Map(at, size, memory, access)),
        4 => (addresses(), sizes()).prop_map(|(at, size)| Op::Unmap(at, size)),
        1 => Just(Op::UnmapAll),
        2 => (addresses(), addresses(), sizes(), 0u8..4)
            .prop_map(|(from, to, size, access)| Op::Copy(from, to, size, access)),
        4 => (memories(), sizes()).prop_map(|(memory, size)| Op::Register(memory, size)),
        2 => (memories(), sizes()).prop_map(|(memory, size)| Op::Unregister(memory, size)),
        2 => windows().prop_map(|(shift, size, levels)| Op::Create(shift, size, levels)),
        1 => addresses().prop_map(Op::Remove),
        1 => any::<bool>().prop_map(Op::Enable),
        1 => any::<Index>().prop_map(Op::Rejoin),
        2 => addresses().prop_map(Op::Dma),
        1 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(request, bytes)| Op::Garbage(request, bytes)),
        1 => modes().prop_map(Op::Spoil),
    ]
}

/// The requests that random bytes are sent as.
const REQUESTS: [Request; 14] = [
    type1::GET_INFO,
    vfio::MAP_DMA,
    vfio::UNMAP_DMA,
    spapr::REGISTER_MEMORY,
    spapr::UNREGISTER_MEMORY,
    spapr::TCE_CREATE,
    spapr::TCE_REMOVE,
    vfio::GROUP_GET_STATUS,
    vfio::GROUP_SET_CONTAINER,
    iommufd::DESTROY,
    iommufd::IOAS_MAP,
    iommufd::IOAS_COPY,
    iommufd::IOAS_IOVA_RANGES,
    device::DEVICE_BIND_IOMMUFD,
];

struct Run {
    opened: Opened,
    memories: Vec<HostMemory>,
}

impl Run {
    fn new(opened: Opened) -> Self {
        let ram = memory(4 * PAGE);
        let memories = vec![
            ram.clone(),
            ram.slice(PAGE, 2 * PAGE).expect("part of it"),
            ram.slice(8, PAGE).expect("part of it"),
            memory(2 * PAGE).device_memory(),
            unbacked(GIB, 4 * PAGE).host_read_only(),
        ];
        Self { opened, memories }
    }

    /// Makes the call, whatever its answer.
    fn step(&self, op: &Op) {
        let Opened { host, context, members } = &self.opened;
        let handle = self.opened.handle();
        match op {
            Op::Map(at, size, n, bits) => {
                let access = Access::from_bits_truncate(*bits);
                ignore(raw::map(&**host, *context, *at, *size, self.memory(*n), access));
            }
            Op::Unmap(at, size) => ignore(raw::unmap(&**host, *context, *at, *size)),
            Op::UnmapAll => ignore(raw::unmap_all(&**host, *context)),
            Op::Copy(from, to, size, bits) => self.copy(*from, *to, *size, Access::from_bits_truncate(*bits)),
            Op::Register(n, size) => ignore(raw::register(&**host, handle, self.memory(*n), *size)),
            Op::Unregister(n, size) => ignore(raw::unregister(&**host, handle, self.memory(*n), *size)),
            Op::Create(shift, size, levels) => ignore(raw::create(&**host, handle, *shift, *size, *levels)),
            Op::Remove(at) => ignore(raw::remove(&**host, handle, *at)),
            Op::Enable(true) => ignore(raw::enable(&**host, handle)),
            Op::Enable(false) => ignore(raw::disable(&**host, handle)),
            Op::Rejoin(member) => self.rejoin(host, members[member.index(members.len())]),
            Op::Dma(at) => {
                let _ = self.opened.device().dma_read(Iova::new(*at), &mut [0; 64]);
                let _ = self.opened.device().dma_write(Iova::new(*at), &[0; 64]);
            }
            Op::Garbage(n, bytes) => self.send(REQUESTS[n.index(REQUESTS.len())], bytes),
            Op::Spoil(mode) => host.plan_faults(&[FaultPlan::nth(1, *mode).with(Errno::ENOMEM)]),
        }
    }

    fn memory(&self, n: Option<usize>) -> Option<&HostMemory> {
        n.map(|n| &self.memories[n])
    }

    #[expect(unsafe_code, reason = "UNSAFETY: the door is not real")]
    fn copy(&self, from: u64, to: u64, size: u64, access: Access) {
        if let Context::Ioas { iommufd, id } = self.opened.context {
            // SAFETY: the door is not real.
            ignore(unsafe { raw::copy(&*self.opened.host, iommufd, (id, from), (id, to), size, access) });
        }
    }

    /// Makes a request with these bytes of every open descriptor.
    fn send(&self, request: Request, bytes: &[u8]) {
        for on in self.opened.members.iter().chain([&self.opened.handle()]) {
            ignore(self.opened.host.ioctl(*on, &mut Command::with_bytes(request, &mut bytes.to_vec())));
        }
    }

    fn rejoin(&self, host: &SoftHost, member: Handle) {
        if let Context::Ioas { id, .. } = self.opened.context {
            ignore(raw::detach(host, member));
            ignore(raw::attach(host, member, id));
        } else {
            ignore(raw::unset_container(host, member));
            ignore(raw::set_container(host, member, self.opened.handle()));
        }
    }
}

fn ignore<T>(result: Result<T, Errno>) {
    drop(result.ok());
}

fn run_all(profile: Profile, dialect: Dialect, members: usize, ops: &[Op]) {
    let host = SoftHost::new(profile).expect("sound");
    let run = Run::new(Opened::on(host.fork(), dialect, members));
    for op in ops {
        run.step(op);
    }
    run.opened.host.plan_faults(&[]);
    run.opened.close();
    let ledger = host.ledger();
    assert_eq!((ledger.locked, ledger.pinned), (ledger.leaked, 0), "{ledger:?}");
    assert_eq!((ledger.mappings, ledger.mapped, ledger.windows, ledger.objects), (0, 0, 0, 0), "{ledger:?}");
    drop(run);
    assert!(host.ledger().is_clear(), "{:?}", host.ledger());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn type1_survives_any_calls(ops in proptest::collection::vec(ops(), 0..40)) {
        run_all(Profile::vtd(), Dialect::Type1, 2, &ops);
        run_all(Profile::vtd(), Dialect::Type1V1, 1, &ops);
    }

    #[test]
    fn iommufd_survives_any_calls(ops in proptest::collection::vec(ops(), 0..40)) {
        run_all(Profile::vtd(), Dialect::Ioas, 2, &ops);
    }

    #[test]
    fn spapr_survives_any_calls(ops in proptest::collection::vec(ops(), 0..40)) {
        run_all(Profile::powernv9(), Dialect::Spapr, 2, &ops);
        run_all(Profile::powernv9(), Dialect::SpaprV1, 1, &ops);
        run_all(Profile::pseries(), Dialect::Spapr, 1, &ops);
        run_all(Profile::powernv9_64k(), Dialect::Spapr, 1, &ops);
    }
}
