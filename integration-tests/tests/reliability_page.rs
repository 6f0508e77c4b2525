//! `docs/explanation/reliability.md` names every scenario and every test of one, no more and no
//! less. `UPDATE=1 cargo test -p millrace-integration-tests --test reliability_page` writes the
//! names of the tests again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Scenarios of the table.
const SCENARIOS: u32 = 27;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a readable folder");
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found
}

/// Names of the tests of each scenario; those on a real Kafka are marked.
fn tests() -> BTreeMap<u32, BTreeSet<String>> {
    let mut found: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for path in rust_files(&here().join("tests")) {
        let text = fs::read_to_string(&path).expect("readable UTF-8");
        let kafka = path.ends_with("stories_kafka.rs")
            || path
                .components()
                .any(|part| part.as_os_str() == "stories_kafka");
        let names = text
            .split("#[test]\n")
            .skip(1)
            .filter_map(|rest| rest.split_once("fn ")?.1.split('(').next());
        for name in names {
            let number = name
                .strip_prefix("f_")
                .and_then(|rest| rest.split('_').next()?.parse().ok());
            if let Some(number) = number {
                let mark = if kafka { " *Kafka*" } else { "" };
                found
                    .entry(number)
                    .or_default()
                    .insert(format!("`{name}`{mark}"));
            }
        }
    }
    found
}

#[test]
fn the_page_names_every_test_of_every_scenario() {
    let tests = tests();
    let path = here().join("../docs/explanation/reliability.md");
    let kept = fs::read_to_string(&path).expect("the page");
    let gaps = kept
        .split("## What is not covered")
        .nth(1)
        .expect("a section about gaps");
    let mut numbers = Vec::new();
    let mut page = String::new();
    for line in kept.lines() {
        let row = line.strip_prefix("| F-");
        let number = row.and_then(|row| row.split(' ').next()?.parse::<u32>().ok());
        let Some(number) = number else {
            page.push_str(line);
            page.push('\n');
            continue;
        };
        numbers.push(number);
        let text = line.split(" | ").nth(1).expect("what goes wrong");
        let names = tests.get(&number).cloned().unwrap_or_default();
        assert!(
            !names.is_empty() || gaps.contains(&format!("- F-{number}:")),
            "F-{number} has neither a test nor a place among the gaps"
        );
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        page.push_str(&format!("| F-{number} | {text} | {names} |\n"));
    }
    let all: Vec<u32> = (1..=SCENARIOS).collect();
    assert_eq!(numbers, all, "rows of the table");
    let strangers: Vec<&u32> = tests.keys().filter(|n| !all.contains(n)).collect();
    assert!(
        strangers.is_empty(),
        "tests of unknown scenarios {strangers:?}"
    );
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).expect("written");
    }
    assert!(
        fs::read_to_string(&path).is_ok_and(|kept| kept == page),
        "docs/explanation/reliability.md is old; UPDATE=1 cargo test -p \
         millrace-integration-tests --test reliability_page"
    );
}

#[test]
fn every_scenario_says_its_name_and_its_rules() {
    let sources: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|folder| rust_files(&here().join(folder)))
        .map(|path| fs::read_to_string(path).expect("readable UTF-8"))
        .collect();
    for number in tests().keys() {
        let says = |text: &String| {
            let calls = text.split("scenario(\n").skip(1);
            let named = format!("\"F-{number}\"");
            calls
                .into_iter()
                .any(|call| call.trim_start().starts_with(&named))
        };
        assert!(
            sources.iter().any(says),
            "no test of F-{number} calls scenario(\"F-{number}\", ..)"
        );
    }
}
