//! The JSON that the program prints has the form that its schemas describe, and the docs describe the schemas.
//!
//! `docs/json.md` is made of the schemas: with `UPDATE_DOCS=1` this test writes it anew.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

mod running;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};

use running::recorded::{self, Recorded};
use running::{DATA, files_in, program, run, run_in, status, stderr, stdout};

/// The commands that print JSON.
const FORMS: [&str; 6] = ["replay", "plan", "survey", "doctor", "probe", "explain"];

fn schema(form: &str) -> Value {
    let output = run(&["schema", form]);
    serde_json::from_str(stdout(&output)).unwrap_or_else(|error| panic!("{form}: {error}"))
}

/// A schema, and the places of it that a value has reached.
struct Check<'a> {
    whole: &'a Value,
    reached: BTreeSet<String>,
}

impl Check<'_> {
    /// The first thing that is wrong with a value, if anything is.
    fn fault(&mut self, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let keywords = schema.as_object().expect("an object");
        keywords.iter().find_map(|(keyword, asked)| self.fault_of(keyword, asked, value, at, keywords))
    }

    fn fault_of(
        &mut self,
        keyword: &str,
        asked: &Value,
        value: &Value,
        at: &str,
        schema: &Map<String, Value>,
    ) -> Option<String> {
        let wrong = |is_wrong: bool| is_wrong.then(|| format!("{at}: {keyword} {asked}, not {value}"));
        match keyword {
            "$schema" | "$id" | "$defs" | "title" | "description" => None,
            "$ref" => self.fault(&self.definition(asked), value, at),
            "type" => wrong(!has_type(asked.as_str().expect("a word"), value)),
            "const" => wrong(asked != value),
            "enum" => wrong(!asked.as_array().expect("a list").contains(value)),
            "minimum" => wrong(value.as_u64() < asked.as_u64()),
            "pattern" => wrong(!is_hexadecimal(asked, value)),
            "anyOf" => {
                let ways = asked.as_array().expect("a list");
                let faults: Vec<_> = ways.iter().map(|way| self.fault(way, value, at)).collect();
                faults
                    .iter()
                    .all(Option::is_some)
                    .then(|| faults.into_iter().flatten().collect::<Vec<_>>().join("; or "))
            }
            "required" => {
                let names = asked.as_array().expect("a list").iter().map(|name| name.as_str().expect("a name"));
                names.filter(|name| value.get(name).is_none()).map(|name| format!("{at}: no {name}")).next()
            }
            "additionalProperties" => {
                assert_eq!(asked, false, "the only way that is needed");
                let known = schema["properties"].as_object().expect("an object");
                let unknown = value.as_object().into_iter().flatten().find(|(name, _)| !known.contains_key(*name));
                unknown.map(|(name, _)| format!("{at}: {name} is not described"))
            }
            "properties" => asked.as_object().expect("an object").iter().find_map(|(name, part)| {
                let value = value.get(name)?;
                self.reached.insert(part["description"].to_string());
                self.fault(part, value, &format!("{at}.{name}"))
            }),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                items.into_iter().find_map(|(n, item)| self.fault(asked, item, &format!("{at}[{n}]")))
            }
            other => panic!("{at}: the keyword {other} is not checked"),
        }
    }

    fn definition(&self, reference: &Value) -> Value {
        let pointer = reference.as_str().expect("text").strip_prefix('#').expect("inside");
        self.whole.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).clone()
    }
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    }
}

fn is_hexadecimal(pattern: &Value, value: &Value) -> bool {
    assert_eq!(pattern, "^0x[0-9a-f]+$", "the only pattern there is");
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
}

/// The commands whose objects are checked.
fn commands(form: &str) -> Vec<Vec<String>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match form {
        "replay" => {
            let of = |directory: &str| {
                let files = files_in(directory).into_iter();
                files.map(|file| words(&["replay", "--json", &format!("{directory}/{file}")])).collect::<Vec<_>>()
            };
            let on_39_bits = of("field").into_iter().map(|mut command| {
                command.extend(words(&["--host", "field/hosts/vtd-39bit.json", "--backend", "type1"]));
                command
            });
            [of("field"), of("mtree"), of("traces"), on_39_bits.collect()].concat()
        }
        "plan" => vec![
            words(&["plan", "--json", "--memory", "8G", "--backend", "type1", "--bar", "1G", "--devices", "2"]),
            words(&["plan", "--json", "--memory", "4G", "--maxmem", "8G", "--host", "field/hosts/memlock-3g.json"]),
            words(&["plan", "--json", "--memory", "8G", "--machine", "pseries", "--devices", "2"]),
            words(&["plan", "--json", "--memory", "8G", "--machine", "pseries", "--backend", "spapr-v1"]),
            words(&["plan", "--json", "traces/q35-256m-type1-boot.trace"]),
        ],
        "survey" => vec![words(&["survey", "--json", "mtree/q35-8g.mtree", "mtree/pseries-4g-two-windows.mtree"])],
        "doctor" => recorded::names().iter().flat_map(|name| doctored(name)).collect(),
        "probe" => {
            let presets = dmaspace_soft::Profile::PRESETS.into_iter();
            let presets = presets.map(|preset| words(&["probe", "--json", "--host", preset]));
            presets.chain(recorded::names().iter().map(|name| probed(name))).collect()
        }
        "explain" => vec![words(&["explain", "--json"]), words(&["explain", "--json", "locked-memory"])],
        other => panic!("{other}"),
    }
}

/// The options that have a recorded host's archive read, which is among the build's temporary files.
fn on_recorded(host: &Recorded, name: &str) -> [String; 3] {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("recorded");
    std::fs::create_dir_all(&folder).expect("a folder");
    let archive = folder.join(format!("{name}.tar"));
    std::fs::write(&archive, host.archive()).expect("written");
    ["--json", "--root", archive.to_str().expect("text")].map(str::to_owned)
}

/// The probe's command on a recorded host.
fn probed(name: &str) -> Vec<String> {
    let on = on_recorded(&Recorded::named(name), name);
    ["probe".to_owned()].into_iter().chain(on).collect()
}

/// The doctor's commands on a recorded host.
fn doctored(name: &str) -> Vec<Vec<String>> {
    let host = Recorded::named(name);
    let on = on_recorded(&host, name);
    let commands = host.commands.iter().filter(|command| command.starts_with("doctor "));
    commands.map(|command| command.split(' ').map(str::to_owned).chain(on.clone()).collect()).collect()
}

#[test]
fn every_object_has_the_form_of_its_schema() {
    for form in FORMS {
        let schema = schema(form);
        let mut check = Check { whole: &schema, reached: BTreeSet::new() };
        let mut objects = 0;
        for command in commands(form) {
            let output = run(&command.iter().map(String::as_str).collect::<Vec<_>>());
            for object in serde_json::Deserializer::from_str(stdout(&output)).into_iter::<Value>() {
                let object = object.unwrap_or_else(|error| panic!("{command:?}: {error}"));
                assert_eq!(check.fault(&schema, &object, form), None, "{command:?}");
                objects += 1;
            }
        }
        assert!(objects > 0, "{form}");
        let described = descriptions(&schema);
        let missed: Vec<_> = described.difference(&check.reached).collect();
        assert!(missed.is_empty(), "{form}: no object has {missed:?}");
    }
}

/// The descriptions of all fields.
fn descriptions(schema: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut open = vec![schema];
    while let Some(schema) = open.pop() {
        match schema {
            Value::Object(parts) => {
                let fields = parts.get("properties").and_then(Value::as_object).into_iter().flatten();
                all.extend(fields.map(|(_, part)| part["description"].to_string()));
                open.extend(parts.values());
            }
            Value::Array(parts) => open.extend(parts),
            _ => {}
        }
    }
    all
}

#[test]
fn every_command_with_json_has_a_schema() {
    let help = run(&["help"]);
    let names = stdout(&help).lines().skip_while(|line| *line != "Commands:").skip(1);
    let names: Vec<_> =
        names.take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"replay") && names.contains(&"schema"), "{names:?}");
    for name in names {
        let output = run(&["help", name]);
        if stdout(&output).lines().any(|line| line.trim() == "--json") {
            assert!(FORMS.contains(&name), "{name} prints JSON, and has no schema");
        }
    }
}

#[test]
fn the_docs_describe_every_form() {
    let mut page = String::from(
        "# The JSON that `dmaspace … --json` prints\n\n\
         One object on a line of the standard output; remarks and errors are on the standard error, and the exit \
         status tells how it went.\nA run that fails before there is a result prints no object.\n\n\
         `schema` names the form of an object, `version` is the form's version: it is raised when a field goes or \
         changes its meaning, and a\nnew field leaves it. `dmaspace schema COMMAND` prints a form as a JSON Schema \
         (2020-12), of which this page is made.\n\n\
         `dmaspace probe --json` prints a host file, on many lines, for people to edit: \
         [host-file.md](host-file.md) tells which fields\nmay be left out, and the other ways to write them.\n",
    );
    for form in FORMS {
        page.push_str(&section(&schema(form)));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("the docs can be written");
    }
    let known = std::fs::read_to_string(path).expect("the docs are there");
    assert_eq!(page, known, "if that is as it should be: UPDATE_DOCS=1 cargo test -p dmaspace --test schema");
}

/// The section of a form: its fields, and those of the objects in it.
fn section(schema: &Value) -> String {
    let title = schema["title"].as_str().expect("text");
    let mut text = format!("\n## `{title}`\n\n{}\n", schema["description"].as_str().expect("text"));
    text.push_str(&table(schema));
    for (name, part) in schema["$defs"].as_object().expect("an object") {
        if part["properties"].is_object() {
            write!(text, "\n### {title}: {name}\n\n{}\n", part["description"].as_str().expect("text"))
                .expect("a string");
            text.push_str(&table(part));
        } else {
            write!(text, "\n**{name}**: {}\n", part["description"].as_str().expect("text")).expect("a string");
        }
    }
    text
}

fn table(schema: &Value) -> String {
    let mut text = String::from("\n| field | | |\n|---|---|---|\n");
    rows(schema, "", &mut text);
    text
}

fn rows(schema: &Value, before: &str, text: &mut String) {
    let required = schema["required"].as_array().expect("a list");
    for (name, part) in schema["properties"].as_object().expect("an object") {
        let is_optional = !required.iter().any(|known| known == name);
        let description = part["description"].as_str().unwrap_or_default().replace('|', "\\|");
        let optional = if is_optional { "may be absent; " } else { "" };
        writeln!(text, "| `{before}{name}` | {optional}{} | {description} |", kind(part)).expect("a string");
        let inner = [part].into_iter().chain(part["anyOf"].as_array().into_iter().flatten());
        for inner in inner.filter(|inner| inner["properties"].is_object()) {
            rows(inner, &format!("{before}{name}."), text);
        }
    }
}

/// The type of a field, in words.
fn kind(part: &Value) -> String {
    if let Some(reference) = part["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(ways) = part["anyOf"].as_array() {
        return ways.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    if let Some(words) = part["enum"].as_array() {
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    match (&part["const"], part["type"].as_str()) {
        (Value::Null, Some("array")) => format!("list of {}", kind(&part["items"])),
        (Value::Null, Some(name)) => name.to_owned(),
        (Value::Null, None) => panic!("{part}"),
        (only, _) => format!("`{only}`"),
    }
}

#[test]
fn objects_say_of_which_form_they_are_first() {
    for (form, command) in [("replay", &["replay", "mtree/q35-8g.mtree"][..]), ("plan", &["plan", "--memory", "1G"])] {
        let output = run(&[command, &["--json"]].concat());
        let start = format!("{{\"schema\":\"dmaspace/{form}\",\"version\":1,\"ok\":true,");
        assert!(stdout(&output).starts_with(&start), "{}", stdout(&output));
    }
}

#[test]
fn a_host_file_names_its_form_and_version_first_and_a_newer_one_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("host.json");
    let path = path.to_str().expect("text");
    assert_eq!(status(&run(&["probe", "--host", "vtd", "-o", path])), 0);
    let file = std::fs::read_to_string(path).expect("written");
    let version = "{\n  \"schema\": \"dmaspace/host\",\n  \"version\": 1,\n";
    assert!(file.starts_with(version), "{file}");
    for (written, answer) in [
        ("\"version\": 2", "host.json:3: expected a host's description: version 2 of a host file is newer than 1, the"),
        (
            "\"schema\": \"dmaspace/plan\"",
            "host.json:2: expected a host's description: the file is of the form `dmaspace",
        ),
    ] {
        let field = written.split(':').next().expect("a name");
        let spoilt =
            file.lines().map(|line| if line.contains(field) { format!("  {written},\n") } else { format!("{line}\n") });
        std::fs::write(path, spoilt.collect::<String>()).expect("written");
        let output = run(&["probe", "--host", path]);
        assert_eq!(status(&output), 2);
        assert!(stderr(&output).contains(answer), "{}", stderr(&output));
    }
}

#[test]
fn nothing_but_remarks_is_on_a_standard_error_that_is_no_terminal() {
    let output = run_in(DATA, &["survey", "mtree/q35-8g.mtree"]);
    assert_eq!(stderr(&output), "");
    assert!(!program().is_empty());
}
