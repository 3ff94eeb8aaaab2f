//! Commits, and questions to a listener.

use dmaspace_core::{Access, Iova, IovaRange};
use dmaspace_listener::{FrontEnd, Listener, Section, Update};

use crate::host::{self, Kind};
use crate::measure::Work;
use crate::work::guest::power_listener;

const LEN: u64 = 0x10_0000;
const GAP: u64 = 0x10_0000;
const HOST: u64 = 0x10_0000_0000;

/// `count` sections of RAM, apart from each other or one run.
fn sections(count: u64, apart: bool) -> Vec<Section> {
    let section = |n: u64| {
        let at = n * (if apart { LEN + GAP } else { LEN });
        let memory = host::unit_of_ram(HOST + at, LEN, 0);
        Section::ram("ram", Iova::new(at), memory, Access::READ_WRITE).expect("a range")
    };
    (0..count).map(section).collect()
}

fn listener(sections: &[Section]) -> Listener {
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(host::served(Kind::Mappings)).expect("nothing is refused");
    let update = sections.iter().cloned().fold(Update::new(), Update::adding);
    listener.commit(update).expect("nothing is refused");
    listener
}

/// Removing the last section but one and adding it again, in two commits.
pub(crate) fn changes(count: u64, apart: bool) -> Box<dyn Work> {
    let sections = sections(count, apart);
    let mut listener = listener(&sections);
    let changing = sections[sections.len() / 2].clone();
    Box::new(move |n| {
        for _ in 0..n {
            listener.commit(Update::new().removing(changing.clone())).expect("it is there");
            listener.commit(Update::new().adding(changing.clone())).expect("nothing is refused");
        }
    })
}

/// Adding and removing an emulated section on POWER, beside `targets` pieces of target memory.
pub(crate) fn emulated(targets: u64) -> Box<dyn Work> {
    let mut listener = power_listener(targets);
    let range = IovaRange::with_len(Iova::new(1 << 40), 0x1000).expect("a range");
    let section = Section::nothing("emulated", range);
    Box::new(move |n| {
        for _ in 0..n {
            listener.commit(Update::new().adding(section.clone())).expect("nothing is refused");
            listener.commit(Update::new().removing(section.clone())).expect("it is there");
        }
    })
}

/// Commits of nothing on POWER, beside `targets` pieces of target memory.
pub(crate) fn nothing(targets: u64) -> Box<dyn Work> {
    let mut listener = power_listener(targets);
    Box::new(move |n| {
        for _ in 0..n {
            listener.commit(Update::new()).expect("nothing is refused");
        }
    })
}

/// The difference between the list in force and itself: for each section.
pub(crate) fn whole_list(count: u64) -> Box<dyn Work> {
    let sections = sections(count, true);
    let listener = listener(&sections);
    Box::new(move |n| {
        for _ in 0..n / count {
            assert!(listener.update_to(&sections, &[]).is_empty(), "nothing changed");
        }
    })
}

/// Explaining an update of nothing.
pub(crate) fn explain(count: u64) -> Box<dyn Work> {
    let listener = listener(&sections(count, true));
    Box::new(move |n| {
        for _ in 0..n {
            assert!(listener.explain(&Update::new()).is_ok(), "nothing is wrong with it");
        }
    })
}

/// Explaining an update that removes a section.
pub(crate) fn explain_removal(count: u64) -> Box<dyn Work> {
    let sections = sections(count, true);
    let listener = listener(&sections);
    let update = Update::new().removing(sections[sections.len() / 2].clone());
    Box::new(move |n| {
        for _ in 0..n {
            assert!(listener.explain(&update).is_ok(), "it is there");
        }
    })
}

/// Looking up the section at an address.
pub(crate) fn lookups(count: u64) -> Box<dyn Work> {
    let listener = listener(&sections(count, true));
    Box::new(move |n| {
        for step in 0..n {
            // Far from the section before, and every section in turn.
            let number = step * 61 % count;
            assert!(listener.section_at(Iova::new(number * (LEN + GAP) + 1)).is_some(), "each is there");
        }
    })
}

/// Audits: for each section.
pub(crate) fn audits(count: u64) -> Box<dyn Work> {
    let listener = listener(&sections(count, true));
    Box::new(move |n| {
        for _ in 0..n / count {
            assert_eq!(listener.audit(), []);
        }
    })
}

/// States: for each section.
pub(crate) fn states(count: u64) -> Box<dyn Work> {
    let listener = listener(&sections(count, true));
    Box::new(move |n| {
        for _ in 0..n / count {
            assert_eq!(listener.state().spaces.len(), 1);
        }
    })
}
