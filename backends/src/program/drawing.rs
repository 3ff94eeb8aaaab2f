//! A replay as a drawing: the guest's bus and beside it, at the same height, the host's windows.
//!
//! Ranges of 1 KiB and of 2^59 bytes share one axis, so it is not linear: it is cut at every border there is, a
//! stretch between two borders is as high as its size has binary digits, and never lower than a line of text. That
//! keeps the order and makes every label fit.

mod palette;

use std::collections::BTreeMap;
use std::path::Path;

use dmaspace::listener::Fate;
use svg::node::element::{Group, Line, Rectangle, Style, Text, Title};
use svg::{Document, Node};

use crate::program::outcome::{AddressesOf, HostWindow, Judged};
use crate::program::replay::Replay;
use crate::program::text::page_sizes;
use crate::program::units::in_units;
use palette::Part;

const WIDTH: f64 = 1000.0;
const MARGIN: f64 = 20.0;
/// The right end of the labels of borders.
const AXIS: f64 = 170.0;
const GUEST: Column = Column { left: 180.0, width: 380.0 };
const HOST: Column = Column { left: 680.0, width: 300.0 };
/// The left end of the fates, between the two columns.
const FATE: f64 = 572.0;
/// The height of a line of text.
const LINE: f64 = 18.0;
/// The width of a letter at [`FONT_SIZE`] in a font whose letters are all alike.
const LETTER: f64 = 7.0;
const FONT_SIZE: f64 = 11.5;
/// From the middle of a letter to where it stands.
const HALF_LETTER: f64 = 4.0;

#[derive(Clone, Copy)]
struct Column {
    left: f64,
    width: f64,
}

/// Draws a replay.
pub(crate) fn of(replay: &Replay) -> Document {
    let outcome = &replay.outcome;
    let pci = sections_of(&outcome.sections, AddressesOf::Pci);
    let memory = sections_of(&outcome.sections, AddressesOf::Memory);
    let mut sheet = Sheet { group: Group::new(), y: MARGIN + LINE, title: title(replay) };
    sheet.heading();
    sheet.stretch("The PCI address space", &pci, &outcome.windows);
    if !memory.is_empty() {
        sheet.stretch("System memory, behind the guest's windows", &memory, &[]);
    }
    sheet.document()
}

fn sections_of(sections: &[Judged], space: AddressesOf) -> Vec<&Judged> {
    sections.iter().filter(|judged| judged.space == space).collect()
}

/// The title. The name of the file is enough: where it lies is the business of its owner alone.
fn title(replay: &Replay) -> String {
    let input = &replay.outcome.input;
    let name = Path::new(&input.file).file_name().map_or(input.file.as_str().into(), |name| name.to_string_lossy());
    format!("{name}: {}, on {}, through {}", input.address_space, replay.host, replay.outcome.backend)
}

/// The part drawn so far, and its height.
struct Sheet {
    group: Group,
    y: f64,
    title: String,
}

impl Sheet {
    fn heading(&mut self) {
        let heading = label(MARGIN, self.y, &self.title, WIDTH - 2.0 * MARGIN).set("font-weight", "bold");
        self.put(heading);
        self.y += 2.0 * LINE;
    }

    /// One address space from bottom to top, downwards.
    fn stretch(&mut self, title: &str, sections: &[&Judged], windows: &[HostWindow]) {
        self.put(label(GUEST.left, self.y, title, GUEST.width).set("font-weight", "bold"));
        if !windows.is_empty() {
            self.put(label(HOST.left, self.y, "The host's windows", HOST.width).set("font-weight", "bold"));
        }
        self.y += LINE;
        let scale = Scale::of(sections, windows, self.y);
        let reach = if windows.is_empty() { GUEST.left } else { HOST.left };
        for (border, y) in &scale.borders {
            self.border(*border, *y, reach);
        }
        for judged in sections {
            self.section(judged, &scale);
        }
        for window in windows {
            self.window(window, &scale);
        }
        self.y = scale.end + 2.0 * LINE;
    }

    /// A line at the height of an address, from its label to as far as anything can begin or end there.
    fn border(&mut self, border: u128, y: f64, reach: f64) {
        let line = Line::new().set("x1", AXIS + 4.0).set("x2", reach).set("y1", y).set("y2", y);
        self.put(line.set("class", Part::Border.class()));
        let address = label(AXIS, y + HALF_LETTER, &format!("{border:#x}"), AXIS);
        self.put(address.set("text-anchor", "end").set("class", Part::Address.class()));
    }

    fn section(&mut self, judged: &Judged, scale: &Scale) {
        let (top, bottom) = scale.span(judged.first.0, judged.last.0);
        let text = format!("{} ({}), {}", judged.name, judged.kind, size(judged.first.0, judged.last.0));
        let range = format!("{text}\n{}..={}: {}", judged.first, judged.last, judged.reason);
        self.boxed(GUEST, (top, bottom), &text, &range, Part::of(judged.fate));
        let lost = if judged.lost_head + judged.lost_tail > 0 { ", trimmed" } else { "" };
        self.put(label(FATE, (top + bottom) / 2.0 + HALF_LETTER, &format!("{}{lost}", judged.fate), HOST.left - FATE));
    }

    fn window(&mut self, window: &HostWindow, scale: &Scale) {
        let (top, bottom) = scale.span(window.first.0, window.last.0);
        let pages = page_sizes(&window.page_sizes);
        let text = format!("{}, in {pages} pages", size(window.first.0, window.last.0));
        let range = format!("{}..={}", window.first, window.last);
        self.boxed(HOST, (top, bottom), &text, &range, Part::of(Fate::Window));
    }

    /// A box with a text in it. A browser shows `more` under the pointer.
    fn boxed(&mut self, column: Column, (top, bottom): (f64, f64), text: &str, more: &str, part: Part) {
        let Column { left, width } = column;
        let class = format!("{} {}", part.class(), Part::Frame.class());
        let area = Rectangle::new().set("x", left).set("y", top).set("width", width).set("height", bottom - top);
        self.put(area.set("class", class).set("stroke-width", 0.8).add(Title::new(more)));
        self.put(label(left + 8.0, (top + bottom) / 2.0 + HALF_LETTER, text, width - 16.0));
    }

    fn put(&mut self, node: impl Node) {
        self.group.append(node);
    }

    fn document(self) -> Document {
        let height = self.y + MARGIN;
        let class = Part::Paper.class();
        let paper = Rectangle::new().set("width", WIDTH).set("height", height).set("class", class);
        let size = (0.0, 0.0, WIDTH, height);
        let group = self.group.set("font-family", "DejaVu Sans Mono, monospace").set("font-size", FONT_SIZE);
        let document = Document::new().set("viewBox", size).set("width", WIDTH).set("height", height);
        let document = document.set("role", "img").add(Title::new(self.title));
        document.add(Style::new(palette::style())).add(paper).add(group)
    }
}

/// The heights of addresses on the sheet.
struct Scale {
    /// Every address where something begins or ends, and its height.
    borders: BTreeMap<u128, f64>,
    /// The height of the last one.
    end: f64,
}

impl Scale {
    fn of(sections: &[&Judged], windows: &[HostWindow], top: f64) -> Self {
        let of_sections = sections.iter().map(|judged| (judged.first.0, judged.last.0));
        let of_windows = windows.iter().map(|window| (window.first.0, window.last.0));
        let ends = of_sections.chain(of_windows).flat_map(|(first, last)| [first.into(), end(last)]);
        let mut borders: BTreeMap<u128, f64> = ends.map(|border| (border, top)).collect();
        let (mut y, mut before) = (top, None);
        for (border, place) in &mut borders {
            y += before.map_or(0.0, |before| height(before, *border, sections));
            (*place, before) = (y, Some(*border));
        }
        Self { borders, end: y }
    }

    /// From where to where a range reaches.
    fn span(&self, first: u64, last: u64) -> (f64, f64) {
        (self.place_of(first.into()), self.place_of(end(last)))
    }

    fn place_of(&self, border: u128) -> f64 {
        self.borders.get(&border).copied().unwrap_or(self.end)
    }
}

fn size(first: u64, last: u64) -> String {
    in_units(end(last) - u128::from(first))
}

fn end(last: u64) -> u128 {
    u128::from(last) + 1
}

/// The height of the stretch between two neighbouring borders. A line will do where the guest has nothing.
fn height(from: u128, to: u128, sections: &[&Judged]) -> f64 {
    const A_DIGIT: f64 = 1.5;
    const SMALL: u32 = 12;
    let begun = sections.partition_point(|judged| u128::from(judged.first.0) <= from);
    let inside = begun.checked_sub(1).and_then(|n| sections.get(n)).is_some_and(|judged| from < end(judged.last.0));
    let digits = (to - from).max(1).ilog2().saturating_sub(SMALL);
    if inside { LINE + A_DIGIT * f64::from(digits) } else { LINE }
}

fn fits(letters: usize, room: f64) -> bool {
    LETTER * letters as f64 <= room
}

/// A line of text that ends where its room ends.
fn label(x: f64, y: f64, text: &str, room: f64) -> Text {
    let letters = text.chars().count();
    let shown = if fits(letters, room) {
        text.to_owned()
    } else {
        let kept = (0..letters).rfind(|kept| fits(kept + 1, room)).unwrap_or(0);
        text.chars().take(kept).chain(['…']).collect()
    };
    Text::new(shown).set("x", x).set("y", y).set("class", Part::Ink.class())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::program::guest::Guest;
    use crate::program::guest::tests::views;
    use crate::program::host::Place;
    use crate::program::mtree::tests::view_of;
    use crate::program::stage::Setting;

    /// A drawing of one range of that name, in a file of that name.
    fn drawn(file: &str, name: &str) -> String {
        let views = views(&view_of(&format!("0000000000000000-0000000000ffffff (prio 0, ram): {name}")));
        let guest = Guest::of(&views, None, None).expect("a guest");
        let place = Place::named("vtd").expect("a preset");
        let setting = Setting { place, backend: None, spaces: NonZeroU32::MIN, hints: true, record: None };
        of(&crate::program::replay::replay(file, &guest, &setting).expect("a replay")).to_string()
    }

    #[test]
    fn a_drawing_is_well_formed_whatever_the_names_are() {
        let drawing = drawn("x&y<z>.mtree", "</text><script>alert('\"&amp;')</script>");
        assert!(!drawing.contains("<script"), "{drawing}");
        let mut open = Vec::new();
        for event in svg::read(&drawing).expect("a drawing") {
            match event {
                svg::parser::Event::Tag(name, svg::node::element::tag::Type::Start, _) => open.push(name),
                svg::parser::Event::Tag(name, svg::node::element::tag::Type::End, _) => {
                    assert_eq!(open.pop(), Some(name));
                }
                svg::parser::Event::Error(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_title_has_the_name_of_the_file_and_not_its_path() {
        let drawing = drawn("/home/me/secret/guest.mtree", "pc.ram");
        assert!(
            drawing.contains("guest.mtree: memory, on the soft host vtd") && !drawing.contains("secret"),
            "{drawing}"
        );
    }

    #[test]
    fn every_class_has_a_colour() {
        let drawing = drawn("guest.mtree", "pc.ram");
        let classes = drawing.split("class=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for class in classes.flat_map(|names| names.split(' ')) {
            assert_eq!(drawing.matches(&format!(".{class} {{")).count(), 2, "{class}");
        }
    }
}
