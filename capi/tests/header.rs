//! The header and the exports agree: the same names, with as many parameters.
#![expect(clippy::expect_used, reason = "a failing arrangement is a failing test")]

use std::collections::BTreeMap;

const HEADER: &str = include_str!("../include/dmaspace.h");
const EXPORTS: &str = include_str!("../src/exports.rs");
const MAN: &str = include_str!("../man/libdmaspace.3");

/// The text behind `name(` up to the parenthesis that closes it.
fn parameters(text: &str) -> &str {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '[' | '<' => depth += 1,
            ')' if depth == 0 => return &text[..at],
            ')' | ']' | '>' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// The number of parameters in a list, of C or of Rust.
fn count(list: &str) -> usize {
    let mut depth = 0;
    let mut commas = 0;
    for letter in list.chars() {
        match letter {
            '(' | '<' => depth += 1,
            ')' | '>' => depth -= 1,
            ',' if depth == 0 => commas += 1,
            _ => {}
        }
    }
    if ["", "void"].contains(&list.trim()) { 0 } else { commas + 1 }
}

/// The number of parameters of each function, by its name.
fn functions(text: &str, before: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (at, _) in text.match_indices(before) {
        let rest = &text[at + before.len() - "dms_".len()..];
        let Some((name, list)) = rest.split_once('(') else { continue };
        if name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_') {
            let list = parameters(list).trim().trim_end_matches(',').to_owned();
            found.insert(name.to_owned(), count(&list));
        }
    }
    found
}

/// The header without its comments.
fn code() -> String {
    let mut code = String::new();
    for (n, part) in HEADER.split("/*").enumerate() {
        code += if n == 0 { part } else { part.split_once("*/").expect("a comment ends").1 };
    }
    code
}

#[test]
fn each_function_of_the_header_is_exported_with_as_many_parameters() {
    let mut declared = functions(&code(), " dms_");
    declared.extend(functions(&code(), "*dms_"));
    let exported = functions(EXPORTS, " fn dms_");
    assert_eq!(declared, exported);
    assert!(declared.len() >= 40, "{} functions", declared.len());
}

#[test]
fn the_man_page_names_functions_that_exist() {
    let exported = functions(EXPORTS, " fn dms_");
    let words = MAN.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '_'));
    for word in words.filter(|word| word.starts_with("dms_")) {
        assert!(exported.contains_key(word), "{word}");
    }
}
