//! No key of the table is forgotten by the fixture or by the reader.

use super::*;
use crate::contract::block::keys::{Form, Key, Kind};

#[test]
fn the_full_document_has_every_key_but_alternatives() {
    let document = all();
    let missing: Vec<_> = keys::all()
        .iter()
        .filter(|key| !key.path.contains("[]."))
        .filter(|key| {
            let names = key.path.replace("[]", "");
            let is_there = |name: &str| {
                names
                    .replace("<name>", name)
                    .split('.')
                    .try_fold(&document, |value, name| value.get(name))
                    .is_some()
            };
            !["main", "hub", "local"].into_iter().any(is_there)
        })
        .map(|key| key.path)
        .filter(|path| !path.contains("put.eventHubs") && !path.contains("kafka.tls."))
        .collect();
    assert_eq!(
        missing,
        [
            "release.verification.compare.path",
            "release.rollback.auto.errorRate",
            "release.rollback.auto.for"
        ]
    );
}

/// A value of this key that differs from its default and from the full document.
fn other(key: &Key) -> Value {
    fn of(kind: Kind, now: Option<&Value>) -> Value {
        match kind {
            Kind::Section | Kind::Named | Kind::Sections => Value::Null,
            Kind::WordOrSection(words) | Kind::Word(words) => {
                let other = words
                    .iter()
                    .rev()
                    .find(|word| now.and_then(Value::as_str) != Some(word));
                json!(other.unwrap())
            }
            Kind::WordOr(_, other) => of(*other, now),
            Kind::Words(words) => json!([words[words.len() - 1]]),
            Kind::Text(form) => json!(text(form)),
            Kind::Texts(form) => json!([text(form)]),
            Kind::Flag => json!(now != Some(&json!(true))),
            Kind::Whole(_, min, max) => json!(max.min(min + 17)),
            Kind::Number(min, max) => json!(max.min(min + 0.37)),
            Kind::Duration(_) => json!("4321ms"),
            Kind::Size(min) => json!(min + 4_321),
            Kind::Percentage | Kind::SizeOrPercentage => json!("43%"),
            Kind::Instant => json!("2026-01-31T12:00:00Z"),
            Kind::Secret => json!({"env": "OTHER"}),
            Kind::Properties => json!({"client.id": "me"}),
            Kind::Anything => json!({"other": "thing"}),
        }
    }
    fn text(form: Form) -> &'static str {
        match form {
            Form::Any | Form::Filled | Form::Topic | Form::TopicOrNothing => "other",
            Form::Identity => "some/other",
            Form::Address => "other:1234",
            Form::Ip => "10.0.0.7",
            Form::HttpPath => "/other",
            Form::File => "other.file",
            Form::Url | Form::UrlOrNothing => "http://other",
            Form::BlobUrl => "file:///other",
            Form::Variable => "OTHER",
            Form::HeaderName => "other-name",
        }
    }
    let default = match key.default {
        Absent::Json(text) => serde_json::from_str(text).ok(),
        // The only flag that depends is true in the full document.
        Absent::Required | Absent::Nothing | Absent::Depends(_) => Some(json!(true)),
    };
    of(key.kind, default.as_ref())
}

#[test]
fn every_key_of_the_table_reaches_the_block() {
    for key in keys::all() {
        let value = other(key);
        if value.is_null() {
            continue;
        }
        let mut document = all();
        // Make room where keys exclude each other, then show the key's own effect.
        for (of, path, value) in [
            (
                "connections.<name>.kafka.tls.",
                "connections.main.kafka.tls",
                json!({"cert": "c", "key": "k"}),
            ),
            (
                "connections.<name>.eventHubs.clientSecret",
                "connections.hub.eventHubs.auth",
                json!("ClientSecret"),
            ),
            ("input.eventHubs", "input", json!({"eventHubs": {}})),
            ("output.eventHubs", "output", json!({"eventHubs": {}})),
            ("output.schema", "output", json!({"kafka": {}})),
            ("retry.dropReason", "retry.onExhausted", json!("Drop")),
            (
                "release.verification.compare.path",
                "release.verification.compare.mode",
                json!("Label"),
            ),
            (
                "release.verification.gates[].prometheus",
                "release.verification.gates",
                json!([{"prometheus": {}}]),
            ),
            (
                "release.verification.gates[].webhook",
                "release.verification.gates",
                json!([{"webhook": {}}]),
            ),
            (
                "release.verification.gates[].name",
                "release.verification.gates",
                json!([{"webhook": {}}]),
            ),
        ] {
            if key.path.starts_with(of) {
                set(&mut document, path, value);
            }
        }
        let name = match key.path {
            path if path.contains("s.<name>.eventHubs") => "hub",
            path if path.contains(".embedded") => "local",
            _ => "main",
        };
        let path = key.path.replace("<name>", name);
        let path = path
            .strip_suffix("[]")
            .unwrap_or(&path)
            .replace("[]", "[0]");
        let mut changed = document.clone();
        // A list that the full document leaves empty needs an item first.
        if let Some((list, _)) = path.split_once("[0]") {
            let items = list
                .split('.')
                .try_fold(&document, |value, name| value.get(name));
            if items.and_then(Value::as_array).is_none_or(Vec::is_empty) {
                set(&mut document, list, json!([{}]));
            }
            changed.clone_from(&document);
        }
        set(&mut changed, &path, value.clone());
        let draft = |document: &Value| {
            let found = walk::spec(document);
            let refused: Vec<_> = found
                .problems
                .iter()
                .filter(|problem| problem.path == path && problem.found != "nothing")
                .collect();
            assert!(refused.is_empty(), "{refused:?}");
            Block {
                document: Value::Null,
                ..read::draft(document, &found)
            }
        };
        assert!(
            draft(&document) != draft(&changed),
            "{path} = {value} changes nothing"
        );
    }
}

#[test]
fn every_word_of_the_table_is_known_to_its_type() {
    for key in keys::all() {
        let Kind::Word(words) = key.kind else {
            continue;
        };
        if key.path.contains("[]") || key.path.contains(".eventHubs") {
            continue;
        }
        let drafts: Vec<_> = words
            .iter()
            .map(|word| {
                let mut document = all();
                set(
                    &mut document,
                    &key.path.replace("<name>", "main"),
                    json!(word),
                );
                let block = read::draft(&document, &walk::spec(&document));
                Block {
                    document: Value::Null,
                    ..block
                }
            })
            .collect();
        for (i, draft) in drafts.iter().enumerate() {
            assert!(
                !drafts[..i].contains(draft),
                "{} of {} is read as another word",
                words[i],
                key.path
            );
        }
    }
}
