//! Descriptions of a hand-over, with anything in them.

use dmaspace::choose::BackendKind;
use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::contract::{MapRequest, Mapping, Unit};
use dmaspace_core::{Access, Iova, IovaRange, PageSize, PciAddressSpace};
use serde_json::{Number, Value};

use super::input::Input;
use crate::owned;
use crate::soft::{host, memory, open};

const UNIT: u64 = 0x1_0000;
/// The most bytes of an error, however long the description is.
const LONGEST_ERROR: usize = 400;

/// Changes a description that a space wrote, and has the space adopt it: the space adopts what the kernel maps, or
/// refuses and can adopt the right description.
///
/// # Panics
/// If a promise does not hold.
pub fn attack(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let soft = host("vtd");
    let opened = open(&soft, BackendKind::Type1);
    let space = &**opened.space.space();
    let names = NamedMemory::new().with("ram", memory(1 << 45, 64 * UNIT)).with("rom", memory(1 << 46, UNIT));
    map(space, &names);
    let before = space.mappings(IovaRange::all());
    let handover = space.powers().live_update.hand_over(&names).expect("type1 moves addresses");
    let text = changed(&handover, &mut input);
    match serde_json::from_str::<Handover>(&text) {
        Err(error) => {
            assert!(error.to_string().len() <= LONGEST_ERROR, "{} bytes", error.to_string().len());
            space.powers().live_update.take_back().expect("nothing adopted it");
        }
        Ok(changed) => adopt(space, &changed, &handover, &names),
    }
    let after = space.mappings(IovaRange::all());
    assert_eq!(facts(&after), facts(&before), "of {text}");
    assert_eq!(space.unmap(IovaRange::all()), Ok(6 * UNIT));
    drop(opened);
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

/// Maps one thing of each kind.
fn map(space: &dyn PciAddressSpace, names: &NamedMemory) {
    let part = |name, offset, len| names.get(name).and_then(|all| all.slice(offset, len)).expect("inside the memory");
    let (whole, rom, pages) = (part("ram", 0, UNIT), part("rom", 0, UNIT), part("ram", 8 * UNIT, 4 * UNIT));
    let requests = [
        MapRequest::new(Iova::new(0), &whole, Access::READ_WRITE),
        MapRequest::new(Iova::new(UNIT), &rom, Access::READ),
        MapRequest::new(Iova::new(1 << 32), &pages, Access::READ_WRITE).with_unit(Unit::Pages(PageSize::K64)),
    ];
    for request in requests {
        space.map(request).expect("the host maps it");
    }
}

/// The facts that the kernel knows, too.
fn facts(mappings: &[Mapping]) -> Vec<(IovaRange, Access, Unit)> {
    mappings.iter().map(|mapping| (mapping.range, mapping.access, mapping.unit)).collect()
}

fn adopt(space: &dyn PciAddressSpace, changed: &Handover, right: &Handover, names: &NamedMemory) {
    let written = serde_json::to_string(changed).expect("it can be written");
    assert_eq!(serde_json::from_str::<Handover>(&written).expect("it can be read"), *changed);
    if owned::adopt(space, changed, names).is_err() {
        assert!(space.powers().live_update.is_handed_over(), "it refused, and is not handed over any more");
        owned::adopt(space, right, names).expect("the right description");
    }
}

/// The description with a few changes, as a text.
fn changed(handover: &Handover, input: &mut Input) -> String {
    let mut value = serde_json::to_value(handover).expect("it can be written");
    for _ in 0..input.below(4) {
        change(&mut value, input);
    }
    let mut text = serde_json::to_string(&value).expect("it can be written").into_bytes();
    for _ in 0..input.below(3) {
        let at = usize::try_from(input.word()).unwrap_or_default() % text.len();
        text[at] = input.byte();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Changes one value somewhere in a value.
fn change(value: &mut Value, input: &mut Input) {
    match value {
        Value::Array(items) if !items.is_empty() && !input.once_in(4) => {
            let at = input.index(items.len());
            match input.below(8) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.reverse(),
                _ => change(&mut items[at], input),
            }
        }
        Value::Object(fields) if !fields.is_empty() && !input.once_in(8) => {
            let at = input.index(fields.len());
            let name = fields.keys().nth(at).cloned().unwrap_or_default();
            match fields.get_mut(&name) {
                Some(field) if !input.once_in(8) => change(field, input),
                _ => drop(fields.remove(&name)),
            }
        }
        _ => *value = other_value(input),
    }
}

fn other_value(input: &mut Input) -> Value {
    let near = input.below(4) * UNIT + input.below(2) * 0x1000;
    match input.below(10) {
        0 => Value::Null,
        1 => Value::Bool(true),
        2 => Value::Number(Number::from(input.edge())),
        3 => Value::Number(Number::from(near)),
        4 => Value::String(format!("{:#x}", input.edge())),
        5 => Value::String(format!("{near:#x}")),
        6 => Value::String(input.choose(&["ram", "rom", "read", "write", "read-write", "type1", "\u{1b}[2J"]).into()),
        7 => Value::String("x".repeat(usize::from(input.byte()) * 40)),
        8 => Value::Array(vec![Value::Null; input.index(4)]),
        _ => Value::Number(Number::from(-1)),
    }
}
