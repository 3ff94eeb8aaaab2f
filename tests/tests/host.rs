//! Everything, on the real kernel of an emulated host. Inside one nothing is skipped: no device, group or node is a failure. Outside
//! there is nothing to run.

use std::process::ExitCode;
#[cfg(target_arch = "x86_64")]
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::open::{Host, OpenError};
use dmaspace::pci::PciAddress;
#[cfg(target_arch = "x86_64")]
use dmaspace::{facts::Facts, kvm::KvmVfio, linux::LinuxDoor};
#[cfg(target_arch = "x86_64")]
use dmaspace_core::Iova;
use dmaspace_soft::conformance::{Dialect, Leaves, Row};
use dmaspace_soft::profile::Platform;
use dmaspace_tests::conformance;
use dmaspace_tests::contract::Field;
use dmaspace_tests::edu::Edu;
use dmaspace_tests::ledger::{Ledger, OfThisProcess, have_locked_memory_counted};
use dmaspace_tests::live;
use dmaspace_tests::logged;
use dmaspace_tests::plays;
use dmaspace_tests::power::{self, Machine};
use dmaspace_tests::process;
use dmaspace_tests::recovery::pe_is_recovered;
use dmaspace_tests::reserved::device_refused_while_memory_lies_over_its_interrupts;
use dmaspace_tests::stage::Stage;
use dmaspace_tests::{files, options, sharing};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    if live::is_heir() {
        live::take_over();
        return ExitCode::SUCCESS;
    }
    if process::is_another() {
        process::have_this_one_charged();
        return ExitCode::SUCCESS;
    }
    // One at a time: what is left of one must not be mistaken for another's.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = match std::env::var("EMULATED_HOST") {
        Ok(host) => {
            if !arguments.list {
                have_locked_memory_counted();
            }
            trials_on(&host)
        }
        Err(_) => Vec::new(),
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The host whose kernel is newer than Debian's.
const NEWEST: &str = "vtd-iommufd-newest";

/// What a newer kernel could answer otherwise, and what only it has. `DMASPACE_ALL_TRIALS=1` plays there all that vtd-iommufd plays, too.
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
        other => panic!("nobody said what the host {other} has"),
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
        #[cfg(target_arch = "x86_64")]
        if has_kvm(host) {
            let name = format!("{backend}::kvm_is_told_of_the_device");
            trials.push(Trial::test(name, move || on_stage_of(|| open_with_kvm(*backend), reaches_memory)));
        }
        let name = format!("{backend}::locked_memory_is_counted_and_given_back");
        trials.push(Trial::test(name, move || {
            let before = Ledger::now();
            on_stage(*backend, |stage| locks_memory(stage, &before))
        }));
        if *backend == BackendKind::Type1 {
            let name = format!("{backend}::a_vmm_makes_way_for_another");
            trials.push(Trial::test(name, || {
                leaving_nothing(|| {
                    live::a_vmm_makes_way_for_another(first_device()?);
                    Ok(())
                })
            }));
        }
        if *backend == BackendKind::SpaprV1 {
            let name = format!("{backend}::the_window_is_charged_and_no_map");
            // An entry has 8 bytes; bare metal keeps its address in the process beside it.
            let entry = if host == "pseries" { 8 } else { 16 };
            trials.push(Trial::test(name, move || on_stage(*backend, |stage| charges_the_window(stage, entry))));
        }
        if *backend == BackendKind::Iommufd {
            let name = format!("{backend}::device_refused_while_memory_lies_over_its_interrupts");
            trials.push(Trial::test(name, || {
                leaving_nothing(|| {
                    device_refused_while_memory_lies_over_its_interrupts(&Host::this()?, first_device()?);
                    Ok(())
                })
            }));
        }
        if backend.is_of_power() {
            let expected = host != "pseries";
            let recovered = move |stage: &mut Stage| pe_is_recovered(stage, expected);
            trials.push(Trial::test(format!("{backend}::pe_is_recovered"), move || on_stage(*backend, recovered)));
        }
        if *backend == BackendKind::Spapr {
            trials.extend(power_trials(host));
            #[cfg(target_arch = "powerpc64")]
            if host != "pseries" {
                trials.extend(power::WITH_KVM.iter().map(|trial| power_trial("kvm", trial)));
            }
        }
        if *backend == BackendKind::Iommufd {
            for play in plays::on(*backend) {
                let name = format!("pool::{}", play.name);
                trials.push(Trial::test(name, move || on_stage_of(open_in_a_pool, |stage| play.play(stage))));
            }
            trials.push(Trial::test("iommufd::a_pool_pins_once", || with_two_devices(sharing::a_pool_pins_once)));
            let name = "iommufd::options_are_kept";
            trials.push(Trial::test(name, || with_a_device(options::options_are_kept)));
            let name = "iommufd::what_the_kernel_says_to_options";
            trials.push(Trial::test(name, || with_a_device(options::what_the_kernel_says_to_options)));
            let name = "iommufd::mapping_again_pins_twice";
            trials.push(Trial::test(name, || with_two_devices(sharing::mapping_again_pins_twice)));
        }
        for play in plays::on(*backend) {
            let name = format!("{backend}::{}", play.name);
            trials.push(Trial::test(name, move || on_stage(*backend, |stage| play.play(stage))));
        }
    }
    if host == NEWEST {
        trials.extend(file_trials());
        if std::env::var_os("DMASPACE_ALL_TRIALS").is_none() {
            trials.retain(tells_of_the_kernel);
        }
    }
    trials
}

fn power_trials(host: &str) -> impl Iterator<Item = Trial> {
    let more = match host {
        "powernv9" => power::LARGE,
        "pseries" => power::HUGE,
        _ => &[],
    };
    power::ALL.iter().chain(more).map(|trial| power_trial("power", trial))
}

fn power_trial(room: &str, trial: &'static power::Trial) -> Trial {
    let act = || {
        (trial.play)(&Machine::real(vec![device(0)?, device(1)?])?);
        Ok(())
    };
    Trial::test(format!("{room}::{}", trial.name), move || leaving_nothing(act))
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
        trial("what_is_mapped_is_found_where_it_is", logged::what_is_mapped_is_found_where_it_is),
        trial("k1_a_question_over_a_hole_loses_pages", logged::k1_a_question_over_a_hole_loses_pages),
        trial("exactly_what_was_written_is_told", logged::exactly_what_was_written_is_told),
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
        "pseries" => (&[Dialect::Spapr, Dialect::SpaprV1], Some(Platform::PSeries)),
        _ => (&[Dialect::Spapr, Dialect::SpaprV1], Some(Platform::PowerNv)),
    };
    let rows = dialects.iter().flat_map(|dialect| conformance::rows(*dialect, platform));
    let rows = rows.filter(|row| host != NEWEST || row.leaves != Leaves::WarningSince72);
    let trial = |row: &'static Row| {
        let name = format!("conformance::{:?}::{}", row.dialect, row.name.replace(' ', "_"));
        Trial::test(name, move || Ok(conformance::play(row, first_device()?, platform)?))
    };
    rows.map(trial).collect()
}

/// Plays on a fresh space, and sees that nothing of it is left.
fn on_stage(backend: BackendKind, play: impl FnOnce(&mut Stage)) -> Result<(), Failed> {
    on_stage_of(|| open(Host::this()?, backend), play)
}

fn on_stage_of(open: impl FnOnce() -> Result<Stage, Failed>, play: impl FnOnce(&mut Stage)) -> Result<(), Failed> {
    leaving_nothing(|| {
        play(&mut open()?);
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

/// Sees that nothing is left of what was done.
fn leaving_nothing(act: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    let before = Ledger::now();
    act()?;
    let after = Ledger::now();
    if before == after { Ok(()) } else { Err(format!("left behind: {before:?} became {after:?}").into()) }
}

/// The measure itself: if nothing were counted since there was no space, giving it back would prove nothing.
fn locks_memory(stage: &mut Stage, before: &Ledger) {
    Field::new(stage).map_something();
    assert_ne!(Ledger::now().locked, before.locked, "a MiB is mapped, and the kernel counts no locked memory");
}

/// All that could be mapped is charged when the device comes, and the window's table, whose entries have so many bytes.
fn charges_the_window(stage: &mut Stage, entry: u128) {
    let window = *stage.space.windows().windows.iter().next().expect("there is one");
    let before = Ledger::now();
    let locked = before.locked.iter().find_map(|line| line.strip_prefix("VmLck:")?.trim().strip_suffix(" kB"));
    let locked = locked.expect("the kernel says it in KiB").parse::<u128>().expect("a number") * 1024;
    let table = entry * (window.range.bytes() >> window.granule().shift());
    assert_eq!(locked, window.range.bytes() + table, "for {window}");
    Field::new(stage).map_something();
    assert_eq!(Ledger::now().locked, before.locked);
}

fn open(host: Host, backend: BackendKind) -> Result<Stage, Failed> {
    let mut opened = host.open(&OpenRequest::device(first_device()?).with_backend(backend))?;
    let device = Edu::new(opened.devices.remove(0));
    let space = opened.space.space().clone();
    Ok(Stage::new(space, Box::new(device), Box::new(OfThisProcess)).keeping(opened))
}

fn open_in_a_pool() -> Result<Stage, Failed> {
    let host = Host::this()?;
    let mut opened = host.open_in(&host.open_pool()?, &OpenRequest::device(first_device()?))?;
    let device = Edu::new(opened.devices.remove(0));
    Ok(Stage::new(opened.space.space().clone(), Box::new(device), Box::new(OfThisProcess)).keeping(opened))
}

/// Debian's kernel for the PC comes without its KVM modules loaded; the small one has KVM built in.
#[cfg(target_arch = "x86_64")]
fn has_kvm(host: &str) -> bool {
    matches!(host, "vtd-iommufd" | NEWEST)
}

/// KVM's VFIO device hears of every group or device before it is used, and forgets it afterwards.
#[cfg(target_arch = "x86_64")]
fn open_with_kvm(backend: BackendKind) -> Result<Stage, Failed> {
    let door = Arc::new(LinuxDoor::new());
    let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
    let kvm = KvmVfio::new(door.clone(), &vm)?;
    let facts = Facts::of_this_host(&*door)?;
    let stage = open(Host::new(door, facts).with_registry(Arc::new(kvm)), backend)?;
    Ok(stage.keeping(vm))
}

/// The device reads and writes the first MiB, as ever.
#[cfg(target_arch = "x86_64")]
fn reaches_memory(stage: &mut Stage) {
    Field::new(stage).map_something();
    let memory = stage.ram.slice(0, 0x10_0000);
    stage.show_results_at(Iova::new(0x8_0000), stage.ram.slice(0x8_0000, 0x1000));
    stage.assert_readable(Iova::new(0), &memory);
    stage.assert_writable(Iova::new(0), &memory);
}

fn first_device() -> Result<PciAddress, Failed> {
    device(0)
}

fn device(n: usize) -> Result<PciAddress, Failed> {
    let devices = std::env::var("EMULATED_DEVICES").map_err(|_| "the host names no devices: EMULATED_DEVICES")?;
    let device = devices.split_whitespace().nth(n).ok_or("the host has too few devices: EMULATED_DEVICES")?;
    Ok(device.parse()?)
}
