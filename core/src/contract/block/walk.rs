//! Checks a document against the table of keys: unknown keys, types, forms, bounds, required
//! keys. What passes is collected by path for [`super::read`].
//!
//! Invariant: a value is either collected or has a problem, never both; so later checks can tell
//! a value that was refused from one that was left out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::keys::{self, Absent, Form, Key, Kind, Later, Zero};
use super::problem::Problem;
use super::{properties, values};

/// Bytes of a value that a problem shows at most.
const SHOWN_BYTES_MAX: usize = 80;

/// What a document holds.
#[derive(Default, Debug)]
pub(super) struct Found<'d> {
    /// Valid values by path; nulls count as absent.
    pub(super) values: BTreeMap<String, &'d Value>,
    /// Paths of refused values.
    pub(super) refused: BTreeSet<String>,
    /// Everything that is wrong.
    pub(super) problems: Vec<Problem>,
    /// Everything that this version does not do.
    pub(super) later: Vec<Problem>,
}

/// Walks the spec of a block.
pub(super) fn spec(spec: &Value) -> Found<'_> {
    let mut found = Found::default();
    match spec {
        Value::Object(map) => found.section("", "", map),
        other => found.refuse("", shown(other), "the block document, a section".to_owned()),
    }
    found
}

impl<'d> Found<'d> {
    fn refuse(&mut self, path: &str, what: String, allowed: String) {
        self.refused.insert(path.to_owned());
        self.problems.push(Problem::new(path, what, allowed));
    }

    fn section(&mut self, pattern: &str, path: &str, map: &'d Map<String, Value>) {
        for key in keys::children(pattern) {
            let child = join(path, key.name());
            match map.get(key.name()).filter(|value| !value.is_null()) {
                Some(value) => self.key(key, &child, value),
                None if key.default == Absent::Required => {
                    self.refuse(
                        &child,
                        "nothing".to_owned(),
                        format!("{} (required)", key.allowed()),
                    );
                    self.explain(key);
                }
                None => {}
            }
        }
        let mut unknown: Vec<_> = map.keys().filter(|name| !is_child(pattern, name)).collect();
        unknown.sort();
        for name in unknown {
            self.unknown(pattern, path, name);
        }
    }

    fn unknown(&mut self, pattern: &str, path: &str, name: &str) {
        let names: Vec<_> = keys::children(pattern).map(Key::name).collect();
        self.refuse(
            &join(path, name),
            "an unknown key".to_owned(),
            if names.is_empty() {
                "nothing below".to_owned()
            } else {
                names.join(", ")
            },
        );
        let sibling = keys::nearest(name, names.iter().copied()).map(|near| join(path, near));
        // A key that stands in the wrong section is meant where it belongs.
        let elsewhere = || {
            let mut same = keys::all()
                .iter()
                .filter(|key| key.name().eq_ignore_ascii_case(name));
            same.next().map(|key| key.path.to_owned())
        };
        if let Some(problem) = self.problems.last_mut() {
            problem.nearest = sibling.or_else(elsewhere);
        }
    }

    fn explain(&mut self, key: &Key) {
        if let Some(problem) = self.problems.last_mut().filter(|_| !key.rule.is_empty()) {
            problem.reason = Some(format!("rule {}", key.rule));
        }
    }

    fn key(&mut self, key: &Key, path: &str, value: &'d Value) {
        match (key.kind, value) {
            (Kind::Section | Kind::WordOrSection(_), Value::Object(map)) => {
                self.section(key.path, path, map);
            }
            (Kind::Named, Value::Object(map)) => self.named(key, path, map),
            (Kind::Sections, Value::Array(items)) => self.items(key, path, items),
            (Kind::Properties, Value::Object(map)) => {
                let problems = properties::check(path, map);
                self.refused
                    .extend(problems.iter().map(|problem| problem.path.clone()));
                self.problems.extend(problems);
            }
            (kind, value) if fits(kind, value) => {}
            (kind, value) => {
                let what = if is_secret(kind) {
                    "a value that is not shown".to_owned()
                } else {
                    shown(value)
                };
                self.refuse(path, what, key.allowed());
                self.explain(key);
                return;
            }
        }
        self.values.insert(path.to_owned(), value);
        self.note_later(key, path, value);
    }

    fn named(&mut self, parent: &Key, path: &str, map: &'d Map<String, Value>) {
        let mut names: Vec<_> = map.iter().collect();
        names.sort_by_key(|(name, _)| *name);
        if names.is_empty() {
            self.refuse(
                path,
                "nothing".to_owned(),
                "at least one named section".to_owned(),
            );
        }
        for (name, value) in names {
            let child = join(path, name);
            if name.is_empty()
                || !name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            {
                self.refuse(
                    &child,
                    format!("the name {name:?}"),
                    "letters, digits, `-` and `_`".to_owned(),
                );
            } else if let Some(key) = keys::children(parent.path).next() {
                self.key(key, &child, value);
            }
        }
    }

    fn items(&mut self, key: &Key, path: &str, items: &'d [Value]) {
        for (i, item) in items.iter().enumerate() {
            let child = format!("{path}[{i}]");
            match item {
                Value::Object(map) => {
                    self.values.insert(child.clone(), item);
                    self.section(key.path, &child, map);
                }
                other => self.refuse(&child, shown(other), "a section".to_owned()),
            }
        }
    }

    fn note_later(&mut self, key: &Key, path: &str, value: &Value) {
        let default = match key.default {
            Absent::Json(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            Absent::Required | Absent::Nothing | Absent::Depends(_) => Value::Null,
        };
        let allowed = match key.later {
            Later::No => return,
            Later::Words(words) => {
                if !value.as_str().is_some_and(|word| words.contains(&word)) {
                    return;
                }
                let Kind::Word(all) = key.kind else { return };
                let now: Vec<_> = all
                    .iter()
                    .filter(|word| !words.contains(word))
                    .copied()
                    .collect();
                now.join(", ")
            }
            Later::Set if *value == default => return,
            Later::Set if default.is_null() => "nothing".to_owned(),
            Later::Set => shown(&default),
        };
        let what = if value.is_object() {
            "a section".to_owned()
        } else {
            shown(value)
        };
        self.later
            .push(Problem::new(path, what, allowed).because("not in this version"));
    }
}

fn is_secret(kind: Kind) -> bool {
    matches!(kind, Kind::Secret)
}

fn is_child(pattern: &str, name: &str) -> bool {
    keys::children(pattern).any(|key| key.name() == name)
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// A value as a problem shows it: JSON on one line, cut.
pub(super) fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > SHOWN_BYTES_MAX {
        let cut = (0..=SHOWN_BYTES_MAX)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// Whether `value` is of this kind. Sections are not: they are walked.
fn fits(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Section | Kind::Named | Kind::Sections | Kind::Properties => false,
        Kind::WordOrSection(words) | Kind::Word(words) => is_word(words, value),
        Kind::WordOr(words, other) => is_word(words, value) || fits(*other, value),
        Kind::Words(words) => is_list(value, |item| is_word(words, item)),
        Kind::Text(form) => is_text(form, value),
        Kind::Texts(form) => match value {
            Value::Array(items) => items.iter().all(|item| is_text(form, item)),
            _ => false,
        },
        Kind::Flag => value.is_boolean(),
        Kind::Whole(_, min, max) => value.as_u64().is_some_and(|n| (min..=max).contains(&n)),
        Kind::Number(min, max) => value.as_f64().is_some_and(|n| (min..=max).contains(&n)),
        Kind::Duration(zero) => values::duration(value)
            .is_some_and(|duration| !duration.is_zero() || zero == Zero::Allowed),
        Kind::Size(min) => values::size(value).is_some_and(|bytes| bytes >= min),
        Kind::Percentage => values::percentage(value).is_some(),
        Kind::SizeOrPercentage => {
            values::percentage(value).is_some_and(|share| share > 0.0)
                || values::size(value).is_some_and(|bytes| bytes > 0)
        }
        Kind::Instant => values::instant(value).is_some(),
        Kind::Secret => values::secret(value).is_some(),
        Kind::Anything => value.is_object(),
    }
}

fn is_word(words: &[&str], value: &Value) -> bool {
    value.as_str().is_some_and(|word| words.contains(&word))
}

fn is_text(form: Form, value: &Value) -> bool {
    value.as_str().is_some_and(|text| form.fits(text))
}

/// A list that is not empty and holds nothing twice.
fn is_list(value: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|items| {
        !items.is_empty()
            && items.iter().all(fits)
            && items
                .iter()
                .enumerate()
                .all(|(i, item)| !items[..i].contains(item))
    })
}
