//! `dmaspace plan`: a guest's fates on a host, and its budget there, before either exists.
//!
//! The guest's memory map is QEMU's for a machine ([`machine`]), or is read from a file. It is replayed on the host
//! without that host's limits, in as many spaces as there are containers: the fates are the listener's, and the
//! claims are the host's own count. A guest that the host's addresses refuse is replayed once more without holes,
//! so that the budget is that of the guest as it will be when the cures have helped.

mod arguments;
mod budget;
mod lenient;
mod machine;
mod tables;
mod text;

use std::num::NonZeroU32;
use std::path::Path;

use dmaspace_soft::Profile;
use serde::Serialize;

pub(crate) use arguments::Plan;

use crate::program::answer::{Causes, Cure};
use crate::program::failure::{Failure, Status};
use crate::program::host::Place;
use crate::program::mtree::FlatViews;
use crate::program::outcome::{HostWindow, Judged};
use crate::program::replay::Replay;
use crate::program::schema::Form;
use crate::program::units::exactly;
use crate::program::{
    Content, content_of, drawing, print, probe, replay_content, replay_flat_views, stage, tell_remarks,
};
use arguments::{AmdHole, Machine};
use budget::Budget;
use machine::Shape;

/// The plan of one guest.
#[derive(Debug, Serialize)]
struct Planned {
    /// `true` if the guest fits.
    ok: bool,
    /// The guest.
    guest: Guest,
    /// The host.
    host: String,
    /// The devices to pass through.
    devices: u32,
    /// Their containers.
    containers: u32,
    /// The way to the host's IOMMU.
    backend: &'static str,
    /// The host's windows with the guest in them, ascending.
    windows: Vec<HostWindow>,
    /// The fate of every range.
    sections: Vec<Judged>,
    /// The budget; nothing if the guest could be mapped on no host of this kind.
    budget: Option<Budget>,
    /// One cure for each cause for which it does not fit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cures: Vec<Cure>,
    /// Remarks on how the input was read, and on the plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// The guest of a plan.
#[derive(Clone, Debug, Serialize)]
struct Guest {
    /// The guest in words, or its file.
    name: String,
    /// The machine, if it was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<&'static str>,
    /// The bytes of memory at the start, if they were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    /// The bytes of memory that may be plugged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugged: Option<u64>,
}

/// Plans, and prints the plans.
///
/// # Errors
/// When the input makes no sense, or the host cannot be had.
pub(crate) fn run(arguments: &Plan) -> Result<Status, Failure> {
    let input = Input::of(arguments)?;
    let host = host(arguments, &input)?;
    let planning = Planning { containers: containers(arguments, &host), arguments, host };
    let found = planning.find(&input)?;
    if arguments.svg.is_some() && found.len() > 1 {
        let n = found.len();
        return Err(Failure::Input(format!("{}: expected one address space with --svg, not {n}", input.name())));
    }
    let mut worst = Status::Good;
    for found in &found {
        let planned = planning.planned(&input, found);
        planning.report(&found.fates, &planned)?;
        worst = worst.max(if planned.ok { Status::Good } else { Status::Refused });
    }
    Ok(worst)
}

/// The replays that make the plan of one guest.
struct Found {
    /// The guest on the host, without its limits.
    fates: Replay,
    /// The guest in all containers, where nothing refuses it; nothing where the one above is that.
    need: Option<Replay>,
    /// The guest in one container; nothing where there is only one.
    alone: Option<Replay>,
}

impl Found {
    fn need(&self) -> &Replay {
        self.need.as_ref().unwrap_or(&self.fates)
    }

    fn alone(&self) -> &Replay {
        self.alone.as_ref().unwrap_or_else(|| self.need())
    }
}

/// The guest to plan for.
enum Input {
    /// A machine of QEMU's.
    Machine(Guest, FlatViews),
    /// A file, and its content.
    File(String, Content),
}

impl Input {
    fn of(arguments: &Plan) -> Result<Self, Failure> {
        match &arguments.file {
            Some(path) => content_of(path, arguments.guest_page).map(|(file, content)| Self::File(file, content)),
            None => {
                let shape = shape(arguments)?;
                let views = shape.views().map_err(|error| Failure::Input(error.to_string()))?;
                Ok(Self::Machine(guest(&shape), views))
            }
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Machine(guest, _) => &guest.name,
            Self::File(file, _) => file,
        }
    }

    fn guest(&self) -> Guest {
        match self {
            Self::Machine(guest, _) => guest.clone(),
            Self::File(file, _) => Guest { name: file.clone(), machine: None, memory: None, plugged: None },
        }
    }
}

fn shape(arguments: &Plan) -> Result<Shape, Failure> {
    let memory = arguments.memory.unwrap_or_default();
    let plugged = arguments.maxmem.map_or(Some(0), |most| most.checked_sub(memory));
    let plugged = plugged.ok_or_else(|| Failure::Input(machine::NoShape::Plugged.to_string()))?;
    let bars = arguments.bar.repeat(usize::try_from(arguments.devices).unwrap_or(1));
    let amd_hole = match arguments.amd_hole {
        Some(way) => way,
        None if named_host(arguments)?.is_some_and(|host| has_amd_hole(&host)) => AmdHole::Relocate,
        None => AmdHole::Ignore,
    };
    let (machine, slots, phys_bits) = (arguments.machine, arguments.slots, arguments.phys_bits);
    Ok(Shape { machine, memory, plugged, slots, bars, phys_bits, amd_hole })
}

/// Returns whether a host is AMD's, whose guests with its processor know the hole.
fn has_amd_hole(host: &Profile) -> bool {
    const AMD_HOLE: u64 = 0xfd_0000_0000;
    let of_groups = host.groups.iter().flat_map(|group| &group.reserved);
    let mut reserved = host.fixed.iter().flat_map(|fixed| &fixed.reserved).chain(of_groups);
    reserved.any(|reserved| reserved.first == AMD_HOLE)
}

fn guest(shape: &Shape) -> Guest {
    let machine = shape.machine.name();
    let plugged = match shape.plugged {
        0 => String::new(),
        plugged => format!(" and {} that may be plugged in", exactly(plugged)),
    };
    Guest {
        name: format!("{machine} with {}{plugged}", exactly(shape.memory)),
        machine: Some(machine),
        memory: Some(shape.memory),
        plugged: Some(shape.plugged),
    }
}

/// The name that stands for the machine that this program runs on, as a probe sees it.
const THIS_HOST: &str = "here";

/// The host that was named, if one was.
fn named_host(arguments: &Plan) -> Result<Option<Profile>, Failure> {
    let place = match arguments.host.as_deref() {
        None => return Ok(None),
        Some(THIS_HOST) => return this_host().map(Some),
        Some(name) => Place::named(name)?,
    };
    match place {
        Place::Soft(profile) => Ok(Some(*profile)),
        Place::Here(_) => Ok(None),
    }
}

/// This machine, if there is a device that a plan could be about.
fn this_host() -> Result<Profile, Failure> {
    let host = probe::this_host()?;
    let is_able = !host.backends.is_empty() && host.groups.iter().any(|group| !group.held_by_kernel);
    let why = "no device of this machine can be passed through as it is; `dmaspace probe` tells the state of each, and \
               a plan for another host takes --host PRESET";
    if is_able { Ok(host) } else { Err(Failure::Host(why.to_owned())) }
}

/// The host that was named, or one where the guest is at home.
fn host(arguments: &Plan, input: &Input) -> Result<Profile, Failure> {
    if let Some(host) = named_host(arguments)? {
        return Ok(host);
    }
    let home = match input {
        Input::Machine(..) => arguments.machine.home(),
        Input::File(file, content) => home_of_file(file, content, arguments)?,
    };
    home.iter().find_map(|name| Profile::preset(name)).ok_or_else(|| Failure::Input("expected --host".to_owned()))
}

/// A file does not say which machine its guest is: a replay finds out.
fn home_of_file(file: &str, content: &Content, arguments: &Plan) -> Result<&'static [&'static str], Failure> {
    let replays = replay_content(file, content, &wishes(arguments))?;
    let is_of_power = replays.iter().any(|replay| replay.outcome.backend.starts_with("spapr"));
    Ok(if is_of_power { Machine::Pseries } else { Machine::Q35 }.home())
}

/// One container, unless something asks for one for each device.
fn containers(arguments: &Plan, host: &Profile) -> NonZeroU32 {
    let one_each = arguments.viommu || host.tce.is_some();
    let of_devices = NonZeroU32::new(arguments.devices).filter(|_| one_each).unwrap_or(NonZeroU32::MIN);
    arguments.containers.unwrap_or(of_devices)
}

fn wishes(arguments: &Plan) -> crate::program::arguments::Replay {
    crate::program::arguments::Replay {
        backend: arguments.backend,
        guest_page: arguments.guest_page,
        no_hints: arguments.no_hints,
        ..Default::default()
    }
}

/// A plan in the making.
struct Planning<'a> {
    arguments: &'a Plan,
    host: Profile,
    containers: NonZeroU32,
}

impl Planning<'_> {
    /// Makes all replays: one plan for each address space that a file tells of.
    fn find(&self, input: &Input) -> Result<Vec<Found>, Failure> {
        let (unlimited, all) = (lenient::without_limits(&self.host), self.containers);
        let fates = self.replays(input, &unlimited, all)?;
        let (is_in_force, is_one) = (fates.iter().all(|replay| replay.outcome.ok), all == NonZeroU32::MIN);
        let empty = lenient::without_holes(&self.host);
        let need = if is_in_force { Vec::new() } else { self.replays(input, &empty, all)? };
        let alone = if is_one { Vec::new() } else { self.replays(input, &empty, NonZeroU32::MIN)? };
        let (mut need, mut alone) = (need.into_iter(), alone.into_iter());
        Ok(fates.into_iter().map(|fates| Found { fates, need: need.next(), alone: alone.next() }).collect())
    }

    /// Replays the guest on `host`, in so many spaces.
    fn replays(&self, input: &Input, host: &Profile, spaces: NonZeroU32) -> Result<Vec<Replay>, Failure> {
        let place = Some(Place::Soft(Box::new(host.clone())));
        let wishes = crate::program::arguments::Replay { place, spaces: Some(spaces), ..wishes(self.arguments) };
        match input {
            Input::Machine(guest, views) => replay_flat_views(&guest.name, views, &wishes),
            Input::File(file, content) => replay_content(file, content, &wishes),
        }
    }

    /// The plan that replays make.
    fn planned(&self, input: &Input, found: &Found) -> Planned {
        let (containers, outcome, need) = (self.containers.get(), &found.fates.outcome, found.need());
        let budget = need.outcome.ok.then(|| Budget::of(need, found.alone(), containers, &self.host));
        let mut causes = Causes::default();
        for cause in budget.iter().flat_map(Budget::causes) {
            causes.add(cause);
        }
        Planned {
            ok: outcome.ok && budget.as_ref().is_some_and(Budget::fits),
            guest: input.guest(),
            host: self.host.name.clone(),
            devices: self.arguments.devices.max(containers),
            containers,
            backend: outcome.backend,
            windows: outcome.windows.clone(),
            sections: outcome.sections.clone(),
            budget,
            cures: outcome.cures.iter().cloned().chain(causes.cures()).collect(),
            notes: outcome.notes.iter().cloned().chain(self.notes(input)).collect(),
        }
    }

    /// Remarks on the assumptions of a plan.
    fn notes(&self, input: &Input) -> Vec<String> {
        let mut notes = Vec::new();
        if matches!(input, Input::Machine(..)) && !self.arguments.bar.is_empty() {
            notes.extend(note_on_bars(self.arguments));
        }
        if self.arguments.viommu {
            notes.push(
                "behind an emulated IOMMU the guest decides what is mapped, and how finely; the plan has all of its \
                 memory mapped for each device, in large pieces"
                    .to_owned(),
            );
        }
        notes
    }

    fn report(&self, replay: &Replay, planned: &Planned) -> Result<(), Failure> {
        if let Some(path) = &self.arguments.svg {
            save_drawing(path, replay)?;
        }
        tell_remarks(&planned.notes, replay);
        let result = if self.arguments.json { Form::Plan.line(planned)? } else { text::plan(planned) };
        print(&result)
    }
}

fn save_drawing(path: &Path, replay: &Replay) -> Result<(), Failure> {
    svg::save(path, &drawing::of(replay)).map_err(|error| stage::unwritable(path, &error))
}

fn note_on_bars(arguments: &Plan) -> Option<String> {
    match (arguments.machine, arguments.phys_bits) {
        (Machine::Pseries, _) => Some(
            "a POWER guest's devices see no BARs: each has only windows onto memory, so --bar changes nothing"
                .to_owned(),
        ),
        (Machine::Q35 | Machine::Pc, None) => Some(
            "BARs are planned right above the guest's memory; newer firmware puts them at the upper end of the \
             processors' addresses: see --phys-bits"
                .to_owned(),
        ),
        _ => None,
    }
}
