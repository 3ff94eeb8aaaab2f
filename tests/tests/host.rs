//! Everything, on the real kernel of an emulated host. Inside one nothing is skipped: no device, group or node is a
//! failure. Outside there is nothing to run.

use std::panic::{RefUnwindSafe, UnwindSafe, catch_unwind};
use std::process::ExitCode;
#[cfg(target_arch = "x86_64")]
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::open::{Host, OpenError};
use dmaspace::pci::PciAddress;
#[cfg(target_arch = "x86_64")]
use dmaspace::{facts::Facts, kvm::KvmVfio, linux::LinuxDoor};
use dmaspace_conformance::{Bench, CASES};
#[cfg(target_arch = "x86_64")]
use dmaspace_core::Iova;
use dmaspace_soft::conformance::{Dialect, Leaves, Row};
use dmaspace_soft::profile::TceManager;
use dmaspace_tests::conformance;
use dmaspace_tests::domain::{Drive, Stage, from_the_first_device_to_the_last};
use dmaspace_tests::edu::Edu;
use dmaspace_tests::fixture::Fixture;
use dmaspace_tests::interrupts;
use dmaspace_tests::ledger::{OfThisProcess, ProcessLedger, have_locked_memory_counted};
use dmaspace_tests::live_update;
use dmaspace_tests::logged;
use dmaspace_tests::power::{self, Machine};
use dmaspace_tests::process;
use dmaspace_tests::program;
use dmaspace_tests::recovery::pe_is_recovered;
use dmaspace_tests::reserved::device_refused_while_memory_lies_over_its_interrupts;
use dmaspace_tests::{files, options, sharing, subject, suite};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    if live_update::is_successor() {
        live_update::take_over();
        return ExitCode::SUCCESS;
    }
    if process::is_another() {
        process::have_this_one_charged();
        return ExitCode::SUCCESS;
    }
    // One at a time: resources left by one trial must not be mistaken for another's.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = match std::env::var("EMULATED_HOST") {
        Ok(host) => {
            if !arguments.list {
                have_locked_memory_counted();
            }
            let mut trials = trials_on(&host);
            trials.extend(program_trials());
            trials
        }
        Err(_) => Vec::new(),
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The host whose kernel is newer than Debian's.
const NEWEST: &str = "vtd-iommufd-newest";

/// The trials of the program `dmaspace`, on every host.
fn program_trials() -> impl Iterator<Item = Trial> {
    program::ALL.iter().map(|(name, play)| {
        Trial::test(format!("program::{name}"), move || leaving_nothing(|| play(first_device().ok())))
    })
}

/// The trials that a newer kernel could answer otherwise or that only it can run. `DMASPACE_ALL_TRIALS=1` runs there
/// all trials of vtd-iommufd, too.
fn tells_of_the_kernel(trial: &Trial) -> bool {
    let contract = format!("{}::contract::", BackendKind::Iommufd);
    let beginnings = ["conformance::", "iommufd::files::", "iommufd::a_pool_pins_once", &contract];
    beginnings.iter().any(|beginning| trial.name().starts_with(beginning))
}

/// Mappings by file.
fn file_trials() -> Vec<Trial> {
    let name = |name| format!("iommufd::files::{name}");
    vec![
        Trial::test(name("devices_reach_the_file"), || with_a_device(files::devices_reach_the_file)),
        Trial::test(name("devices_of_a_pool_reach_the_file"), || {
            with_a_device(files::devices_of_a_pool_reach_the_file)
        }),
        Trial::test(name("a_device_reaches_the_bar_of_another"), || {
            with_two_devices(files::a_device_reaches_the_bar_of_another)
        }),
        Trial::test(name("another_process_is_charged_once_it_asks"), || {
            leaving_nothing(|| Ok(process::another_process_is_charged_once_it_asks(first_device()?)?))
        }),
    ]
}

/// The backends a host must have.
fn backends_of(host: &str) -> &'static [BackendKind] {
    match host {
        "vtd" => &[BackendKind::Type1],
        "vtd-iommufd" | NEWEST => &[BackendKind::Type1, BackendKind::Iommufd, BackendKind::Type1OnIommufd],
        "powernv9" | "powernv9-64k" | "pseries" => &[BackendKind::Spapr, BackendKind::SpaprV1],
        other => panic!("no entry for the host {other}"),
    }
}

fn trials_on(host: &str) -> Vec<Trial> {
    match host {
        "iommufd-mock" => return mock_trials(),
        "powernv9-64k-hash" => return power::HUGE.iter().map(|trial| power_trial("power", trial)).collect(),
        _ => {}
    }
    let mut trials = conformance(host);
    for backend in backends_of(host) {
        trials.extend(trials_of(host, *backend));
    }
    if host == NEWEST {
        trials.extend(file_trials());
        if std::env::var_os("DMASPACE_ALL_TRIALS").is_none() {
            trials.retain(tells_of_the_kernel);
        }
    }
    trials
}

/// All trials of one backend.
fn trials_of(host: &str, backend: BackendKind) -> Vec<Trial> {
    let mut trials = vec![locked_memory_trial(backend)];
    #[cfg(target_arch = "x86_64")]
    if has_kvm(host) {
        trials.push(kvm_trial(backend));
    }
    trials.push(domain_trial(backend));
    match backend {
        BackendKind::Type1 => {
            trials.push(live_update_trial());
            trials.extend(device_trials(backend));
        }
        BackendKind::Iommufd => trials.extend(iommufd_trials()),
        BackendKind::Spapr => {
            trials.push(recovery_trial(host, backend));
            trials.extend(power_trials(host));
            trials.extend(kvm_trials_on_power(host));
        }
        BackendKind::SpaprV1 => trials.extend([recovery_trial(host, backend), charged_window_trial(host)]),
        _ => {}
    }
    for scenario in suite::scenarios_on(backend) {
        let name = format!("{backend}::{}", scenario.name);
        trials.push(Trial::test(name, move || on_fixture(backend, scenario.run)));
    }
    trials.extend(contract_trials(&backend.to_string(), move || subject::on_this_host(backend, &devices())));
    trials
}

/// The cases of the contract that apply. On a host that opens no space all of them run, and fail.
fn contract_trials<F>(prefix: &str, open: F) -> Vec<Trial>
where
    F: Fn() -> Result<Bench, OpenError> + Clone + Send + UnwindSafe + RefUnwindSafe + 'static,
{
    let opened = move || open().unwrap_or_else(|error| panic!("the host opens no space: {error}"));
    let asked = opened.clone();
    let cases = catch_unwind(move || suite::cases_for(&asked)).unwrap_or_else(|_| CASES.iter().collect());
    let mut trials = Vec::new();
    for case in cases {
        let open = opened.clone();
        trials.push(Trial::test(format!("{prefix}::{}", suite::name_of(case)), move || {
            case.run(&open);
            Ok(())
        }));
    }
    trials
}

fn locked_memory_trial(backend: BackendKind) -> Trial {
    Trial::test(format!("{backend}::locked_memory_is_counted_and_given_back"), move || {
        let before = ProcessLedger::now();
        on_fixture(backend, |fixture| locks_memory(fixture, &before))
    })
}

fn domain_trial(backend: BackendKind) -> Trial {
    Trial::test(format!("{backend}::a_domain_serves_its_devices_from_the_first_to_the_last"), move || {
        leaving_nothing(|| {
            let devices = [device(0)?, device(1)?];
            let drive: Drive = Box::new(|device| Box::new(Edu::new(device)));
            let stage = Stage { host: Host::this()?, backend, devices, drive, lock_limit: Box::new(OfThisProcess) };
            Ok(from_the_first_device_to_the_last(stage)?)
        })
    })
}

#[cfg(target_arch = "x86_64")]
fn kvm_trial(backend: BackendKind) -> Trial {
    Trial::test(format!("{backend}::kvm_is_told_of_the_device"), move || {
        on_fixture_of(|| open_with_kvm(backend), reaches_memory)
    })
}

fn live_update_trial() -> Trial {
    Trial::test("type1::a_vmm_makes_way_for_another", || {
        leaving_nothing(|| {
            live_update::a_vmm_makes_way_for_another(first_device()?);
            Ok(())
        })
    })
}

fn charged_window_trial(host: &str) -> Trial {
    // An entry has 8 bytes; bare metal keeps its address in the process beside it.
    let entry = if host == "pseries" { 8 } else { 16 };
    let backend = BackendKind::SpaprV1;
    Trial::test(format!("{backend}::the_window_is_charged_and_no_map"), move || {
        on_fixture(backend, |fixture| charges_the_window(fixture, entry))
    })
}

fn recovery_trial(host: &str, backend: BackendKind) -> Trial {
    let expected = host != "pseries";
    Trial::test(format!("{backend}::pe_is_recovered"), move || {
        on_fixture(backend, |fixture| pe_is_recovered(fixture, expected))
    })
}

fn iommufd_trials() -> Vec<Trial> {
    let mut trials = contract_trials("pool", || subject::in_a_pool_of_this_host(&devices()));
    for scenario in suite::scenarios_on(BackendKind::Iommufd) {
        let name = format!("pool::{}", scenario.name);
        trials.push(Trial::test(name, move || on_fixture_of(open_in_a_pool, scenario.run)));
    }
    let name = |name| format!("iommufd::{name}");
    trials.extend([
        Trial::test(name("device_refused_while_memory_lies_over_its_interrupts"), || {
            leaving_nothing(|| {
                device_refused_while_memory_lies_over_its_interrupts(&Host::this()?, first_device()?);
                Ok(())
            })
        }),
        Trial::test(name("a_pool_pins_once"), || with_two_devices(sharing::a_pool_pins_once)),
        Trial::test(name("options_are_kept"), || with_a_device(options::options_are_kept)),
        Trial::test(name("options_that_the_kernel_accepts_and_refuses"), || {
            with_a_device(options::options_that_the_kernel_accepts_and_refuses)
        }),
        Trial::test(name("mapping_again_pins_twice"), || with_two_devices(sharing::mapping_again_pins_twice)),
    ]);
    trials
}

/// The trials of interrupts, resets and descriptions.
fn device_trials(backend: BackendKind) -> impl Iterator<Item = Trial> {
    interrupts::ALL.iter().map(move |(name, play)| {
        Trial::test(format!("device::{name}"), move || {
            leaving_nothing(|| Ok(play(&Host::this()?, backend, first_device()?)?))
        })
    })
}

fn power_trials(host: &str) -> impl Iterator<Item = Trial> {
    let more = match host {
        "powernv9" => power::LARGE,
        "pseries" => power::HUGE,
        _ => &[],
    };
    power::ALL.iter().chain(more).map(|trial| power_trial("power", trial))
}

/// The trials of KVM, on hosts of POWER that have it.
fn kvm_trials_on_power(host: &str) -> Vec<Trial> {
    #[cfg(target_arch = "powerpc64")]
    if host != "pseries" {
        return power::WITH_KVM.iter().map(|trial| power_trial("kvm", trial)).collect();
    }
    let _ = host;
    Vec::new()
}

fn power_trial(room: &str, trial: &'static power::Trial) -> Trial {
    Trial::test(format!("{room}::{}", trial.name), move || {
        leaving_nothing(|| {
            (trial.run)(&Machine::real(vec![device(0)?, device(1)?])?);
            Ok(())
        })
    })
}

/// A kernel with a mock device and no other.
fn mock_trials() -> Vec<Trial> {
    let trial = |name: &str, play: fn()| {
        Trial::test(format!("mock::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        trial("mapped_memory_is_found_at_its_address", logged::mapped_memory_is_found_at_its_address),
        trial("k1_a_question_over_a_hole_loses_pages", logged::k1_a_question_over_a_hole_loses_pages),
        trial("exactly_the_written_pages_are_reported", logged::exactly_the_written_pages_are_reported),
        trial(
            "a_device_that_cannot_log_makes_everything_count",
            logged::a_device_that_cannot_log_makes_everything_count,
        ),
    ]
}

/// The rows of the conformance table that this host's kernel has an answer for.
fn conformance(host: &str) -> Vec<Trial> {
    let (dialects, platform): (&[Dialect], _) = match host {
        "vtd" => (&[Dialect::Type1, Dialect::Type1V1], None),
        "vtd-iommufd" | NEWEST => {
            (&[Dialect::Type1, Dialect::Type1V1, Dialect::Ioas, Dialect::Compat, Dialect::CompatV1], None)
        }
        "pseries" => (&[Dialect::Spapr, Dialect::SpaprV1], Some(TceManager::PSeries)),
        _ => (&[Dialect::Spapr, Dialect::SpaprV1], Some(TceManager::PowerNv)),
    };
    let rows = dialects.iter().flat_map(|dialect| conformance::rows(*dialect, platform));
    let rows = rows.filter(|row| host != NEWEST || row.leaves != Leaves::WarningSince72);
    let trial = |row: &'static Row| {
        let name = format!("conformance::{:?}::{}", row.dialect, row.name.replace(' ', "_"));
        Trial::test(name, move || Ok(conformance::play(row, first_device()?, platform)?))
    };
    rows.map(trial).collect()
}

/// Runs on a fresh space, and checks that nothing of it is left.
fn on_fixture(backend: BackendKind, run: impl FnOnce(&mut Fixture)) -> Result<(), Failed> {
    on_fixture_of(|| open(Host::this()?, backend), run)
}

fn on_fixture_of(open: impl FnOnce() -> Result<Fixture, Failed>, run: impl FnOnce(&mut Fixture)) -> Result<(), Failed> {
    leaving_nothing(|| {
        run(&mut open()?);
        Ok(())
    })
}

/// Plays with the host's first device.
fn with_a_device(play: fn(&Host, PciAddress) -> Result<(), OpenError>) -> Result<(), Failed> {
    leaving_nothing(|| Ok(play(&Host::this()?, first_device()?)?))
}

/// Plays with the host's first two devices.
fn with_two_devices(play: fn(&Host, [PciAddress; 2]) -> Result<(), OpenError>) -> Result<(), Failed> {
    leaving_nothing(|| Ok(play(&Host::this()?, [device(0)?, device(1)?])?))
}

/// Checks that `act` leaves nothing behind.
fn leaving_nothing(act: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    let before = ProcessLedger::now();
    act()?;
    let after = ProcessLedger::now();
    if before == after { Ok(()) } else { Err(format!("left behind: {before:?} became {after:?}").into()) }
}

/// The measure itself: if nothing were counted since there was no space, giving it back would prove nothing.
fn locks_memory(fixture: &mut Fixture, before: &ProcessLedger) {
    fixture.map_first_mib();
    assert_ne!(ProcessLedger::now().locked, before.locked, "a MiB is mapped, and the kernel counts no locked memory");
}

/// All that could be mapped is charged when the device comes, and the window's table, whose entries have so many bytes.
fn charges_the_window(fixture: &mut Fixture, entry: u128) {
    let window = *fixture.space.windows().windows.iter().next().expect("there is one");
    let before = ProcessLedger::now();
    let locked = before.locked.iter().find_map(|line| line.strip_prefix("VmLck:")?.trim().strip_suffix(" kB"));
    let locked = locked.expect("the kernel says it in KiB").parse::<u128>().expect("a number") * 1024;
    let table = entry * (window.range.bytes() >> window.granule().shift());
    assert_eq!(locked, window.range.bytes() + table, "for {window}");
    fixture.map_first_mib();
    assert_eq!(ProcessLedger::now().locked, before.locked);
}

fn open(host: Host, backend: BackendKind) -> Result<Fixture, Failed> {
    let mut opened = host.open(&OpenRequest::device(first_device()?).with_backend(backend))?;
    let device = Edu::new(opened.devices.remove(0));
    let space = opened.space.space().clone();
    Ok(Fixture::new(space, Box::new(device), Box::new(OfThisProcess)).keeping(opened))
}

fn open_in_a_pool() -> Result<Fixture, Failed> {
    let host = Host::this()?;
    let mut opened = host.open_in(&host.open_pool()?, &OpenRequest::device(first_device()?))?;
    let device = Edu::new(opened.devices.remove(0));
    Ok(Fixture::new(opened.space.space().clone(), Box::new(device), Box::new(OfThisProcess)).keeping(opened))
}

/// Debian's kernel for the PC comes without its KVM modules loaded; the small one has KVM built in.
#[cfg(target_arch = "x86_64")]
fn has_kvm(host: &str) -> bool {
    matches!(host, "vtd-iommufd" | NEWEST)
}

/// KVM's VFIO device hears of every group or device before it is used, and forgets it afterwards.
#[cfg(target_arch = "x86_64")]
fn open_with_kvm(backend: BackendKind) -> Result<Fixture, Failed> {
    let door = Arc::new(LinuxDoor::new());
    let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
    let kvm = KvmVfio::new(door.clone(), &vm)?;
    let facts = Facts::of_this_host(&*door)?;
    let fixture = open(Host::new(door, facts).with_registry(Arc::new(kvm)), backend)?;
    Ok(fixture.keeping(vm))
}

/// The device reads and writes the first MiB, as ever.
#[cfg(target_arch = "x86_64")]
fn reaches_memory(fixture: &mut Fixture) {
    fixture.map_first_mib();
    let memory = fixture.ram.slice(0, 0x10_0000);
    fixture.show_results_at(Iova::new(0x8_0000), fixture.ram.slice(0x8_0000, 0x1000));
    fixture.assert_readable(Iova::new(0), &memory);
    fixture.assert_writable(Iova::new(0), &memory);
}

/// All devices that the host names.
fn devices() -> Vec<PciAddress> {
    (0..).map_while(|n| device(n).ok()).collect()
}

fn first_device() -> Result<PciAddress, Failed> {
    device(0)
}

fn device(n: usize) -> Result<PciAddress, Failed> {
    let devices = std::env::var("EMULATED_DEVICES").map_err(|_| "the host names no devices: EMULATED_DEVICES")?;
    let device = devices.split_whitespace().nth(n).ok_or("the host has too few devices: EMULATED_DEVICES")?;
    Ok(device.parse()?)
}
