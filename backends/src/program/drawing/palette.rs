//! The colours of a drawing, on light paper and on dark.
//!
//! The drawing is read in a browser that shows light pages or dark ones, or in a document of either kind: its style
//! has both. A viewer that knows no preference shows the light one.

use std::fmt::Write as _;

use dmaspace::listener::Fate;

/// A thing that has a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The paper.
    Paper,
    /// Letters.
    Ink,
    /// The letters of addresses, which are not the first thing to read.
    Address,
    /// The frames of boxes.
    Frame,
    /// The lines at the heights of addresses.
    Border,
    /// A box of memory that devices reach.
    Reached,
    /// A box of memory that windows may show.
    Registered,
    /// A box of a window.
    Window,
    /// A box of interrupts.
    Interrupts,
    /// A box of a refused range.
    Refused,
    /// A box of anything else.
    Nothing,
}

impl Part {
    const ALL: [Self; 11] = [
        Self::Paper,
        Self::Ink,
        Self::Address,
        Self::Frame,
        Self::Border,
        Self::Reached,
        Self::Registered,
        Self::Window,
        Self::Interrupts,
        Self::Refused,
        Self::Nothing,
    ];

    /// The box of a range with that fate.
    pub(super) fn of(fate: Fate) -> Self {
        match fate {
            Fate::Mapped | Fate::Discardable => Self::Reached,
            Fate::Registered | Fate::PinsShared => Self::Registered,
            Fate::Window => Self::Window,
            Fate::Msi => Self::Interrupts,
            Fate::Refused => Self::Refused,
            _ => Self::Nothing,
        }
    }

    /// The name of its class.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Ink => "ink",
            Self::Address => "address",
            Self::Frame => "frame",
            Self::Border => "border",
            Self::Reached => "reached",
            Self::Registered => "registered",
            Self::Window => "window",
            Self::Interrupts => "interrupts",
            Self::Refused => "refused",
            Self::Nothing => "nothing",
        }
    }

    /// The colours on light paper and on dark.
    fn colours(self) -> [u32; 2] {
        match self {
            Self::Paper => [0xff_ffff, 0x1b_1d21],
            Self::Ink => [0x1a_1a1a, 0xf0_f0f0],
            Self::Address => [0x55_5555, 0xb4_b8be],
            Self::Frame => [0x44_4444, 0x9a_a0a8],
            Self::Border => [0xd0_d0d0, 0x44_4850],
            Self::Reached => [0xb7_dfb0, 0x2c_5a2b],
            Self::Registered => [0xa9_dcd6, 0x1f_5650],
            Self::Window => [0xc9_d8f0, 0x2e_4568],
            Self::Interrupts => [0xf3_e3a3, 0x5e_5014],
            Self::Refused => [0xf0_b0a8, 0x7a_2b24],
            Self::Nothing => [0xe8_e8e8, 0x3a_3d43],
        }
    }

    /// The property of its class that has the colour.
    fn property(self) -> &'static str {
        if matches!(self, Self::Frame | Self::Border) { "stroke" } else { "fill" }
    }
}

/// The style of a drawing.
pub(super) fn style() -> String {
    let [light, dark] = [0, 1].map(rules);
    format!(":root {{ color-scheme: light dark }}\n{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n")
}

fn rules(paper: usize) -> String {
    let mut rules = String::new();
    for part in Part::ALL {
        let colour = part.colours().get(paper).copied().unwrap_or_default();
        // A string takes all.
        let _ = writeln!(rules, ".{} {{ {}: #{colour:06x} }}", part.class(), part.property());
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The brightness of a colour as people see it (WCAG 2, relative luminance).
    fn luminance(colour: u32) -> f64 {
        let part = |shift: u32| {
            let part = f64::from((colour >> shift) & 0xff) / 255.0;
            if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(16) + 0.7152 * part(8) + 0.0722 * part(0)
    }

    fn contrast(a: u32, b: u32) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn letters_are_legible_on_everything_they_stand_on() {
        /// What WCAG 2 asks of small text.
        const LEAST: f64 = 4.5;
        let boxes = Part::ALL.into_iter().filter(|part| part.property() == "fill");
        let ground = boxes.filter(|part| !matches!(part, Part::Ink | Part::Address));
        for part in ground {
            for paper in [0, 1] {
                let on = part.colours()[paper];
                let letters = if part == Part::Paper { &[Part::Ink, Part::Address][..] } else { &[Part::Ink] };
                for letter in letters {
                    let seen = contrast(letter.colours()[paper], on);
                    assert!(seen >= LEAST, "{letter:?} on {part:?}, paper {paper}: {seen:.2}");
                }
            }
        }
    }

    #[test]
    fn frames_are_seen_on_the_paper() {
        /// What WCAG 2 asks of graphics.
        const LEAST: f64 = 3.0;
        for paper in [0, 1] {
            let seen = contrast(Part::Frame.colours()[paper], Part::Paper.colours()[paper]);
            assert!(seen >= LEAST, "{seen:.2}");
        }
    }

    #[test]
    fn a_style_has_every_class_twice() {
        for part in Part::ALL {
            assert_eq!(style().matches(&format!(".{} {{", part.class())).count(), 2, "{part:?}");
        }
    }
}
