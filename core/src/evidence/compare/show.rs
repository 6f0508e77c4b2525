//! What is kept of a disagreement for people: the fields that differ, then those that
//! `compare.redact.keep` lists, then other compared fields, up to a bound (J6).
//!
//! Invariant: a field that is not compared stays only if `redact.keep` lists it.
//! Invariant: bytes that cannot be shown field by field, keys among them, stay as their length.

use std::collections::BTreeSet;

use super::values::Difference;
use super::{Body, Comparator, Mode, ReadResult, Reading, cut};
use crate::evidence::json::Json;
use crate::evidence::path::{At, Place};
use crate::limits::{EVIDENCE_PATH_BYTES_MAX, EVIDENCE_SHOWN_FIELDS_MAX};

/// One field of a kept disagreement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// Of which result.
    pub result: usize,
    /// Where it stands; `(key)`, `(topic)` and `(value)` stand for a part as a whole.
    pub path: String,
    /// What Green said; `None`: nothing.
    pub green: Option<String>,
    /// What Blue said.
    pub blue: Option<String>,
    /// Whether this is where they disagree.
    pub differs: bool,
}

struct Shown {
    fields: Vec<Field>,
    seen: BTreeSet<(usize, String)>,
}

impl Shown {
    fn is_full(&self) -> bool {
        self.fields.len() >= EVIDENCE_SHOWN_FIELDS_MAX
    }

    fn add(&mut self, field: Field) {
        let new = !self.is_full()
            && field.path.len() <= EVIDENCE_PATH_BYTES_MAX
            && self.seen.insert((field.result, field.path.clone()));
        if new {
            self.fields.push(field);
        }
    }
}

impl Comparator {
    /// The fields of two answers that may be stored.
    pub fn show(&self, green: &Reading<'_>, blue: &Reading<'_>) -> Vec<Field> {
        let mut shown = Shown {
            fields: Vec::new(),
            seen: BTreeSet::new(),
        };
        let of = |reading: &'_ Reading<'_>| reading.results.as_ref().map_or(0, Vec::len);
        for i in 0..of(green).max(of(blue)).min(EVIDENCE_SHOWN_FIELDS_MAX) {
            self.show_differing(i, at(green, i), at(blue, i), &mut shown);
        }
        for compared in [false, true] {
            for i in 0..of(green).max(of(blue)).min(EVIDENCE_SHOWN_FIELDS_MAX) {
                self.show_others(i, (at(green, i), at(blue, i)), compared, &mut shown);
            }
        }
        shown.fields
    }

    fn show_differing(
        &self,
        result: usize,
        green: Option<&ReadResult<'_>>,
        blue: Option<&ReadResult<'_>>,
        shown: &mut Shown,
    ) {
        let mut differing = |path: String, green, blue| {
            shown.add(Field {
                result,
                path,
                green,
                blue,
                differs: true,
            });
        };
        if let (Some(green), Some(blue)) = (green, blue) {
            if green.body.topic != blue.body.topic {
                let topic = |of: &ReadResult<'_>| of.body.topic.as_deref().map(cut);
                differing("(topic)".to_owned(), topic(green), topic(blue));
            }
            if !matches!(self.mode, Mode::Label(_)) && green.body.key != blue.body.key {
                let key = |of: &ReadResult<'_>| of.body.key.as_ref().map(length);
                differing("(key)".to_owned(), key(green), key(blue));
            }
        }
        let value =
            |of: Option<&ReadResult<'_>>| of.and_then(|of| of.body.value.as_ref()).map(length);
        match (&self.mode, json(green), json(blue)) {
            (Mode::Json, Some(green), Some(blue)) => {
                self.differences(green, blue, &mut |place, Difference { green, blue, .. }| {
                    differing(place.to_string(), text(green), text(blue));
                });
            }
            (Mode::Label(path), green, blue) => {
                let label = |of: Option<&Json>| text(of.and_then(|of| of.find(path)));
                let mut place = Place::default();
                path.steps().for_each(|step| place.enter(step));
                if label(green) != label(blue) {
                    differing(place.to_string(), label(green), label(blue));
                }
            }
            _ => {
                let raw = |of: Option<&ReadResult<'_>>| of.map(|of| of.body.value.clone());
                if raw(green) != raw(blue) {
                    differing("(value)".to_owned(), value(green), value(blue));
                }
            }
        }
    }

    /// Leaves that do not differ: those to keep, or else the compared ones.
    fn show_others(
        &self,
        result: usize,
        (green, blue): (Option<&ReadResult<'_>>, Option<&ReadResult<'_>>),
        compared: bool,
        shown: &mut Shown,
    ) {
        for side in [json(green), json(blue)].into_iter().flatten() {
            let mut place = Place::default();
            leaves(side, &mut place, &mut |place, _| {
                let stays = if compared {
                    self.mode == Mode::Json && !self.is_ignored(place)
                } else {
                    self.keep.iter().any(|path| path.covers(place))
                };
                if stays {
                    let find = |of| text(json(of).and_then(|of| stands_at(of, place)));
                    shown.add(Field {
                        result,
                        path: place.to_string(),
                        green: find(green),
                        blue: find(blue),
                        differs: false,
                    });
                }
                !shown.is_full()
            });
        }
    }
}

fn at<'r, 'a>(reading: &'r Reading<'a>, i: usize) -> Option<&'r ReadResult<'a>> {
    reading.results.as_ref()?.get(i)
}

fn json<'r>(of: Option<&'r ReadResult<'_>>) -> Option<&'r Json> {
    match &of?.value {
        Body::Json(json) => Some(json),
        Body::Null | Body::Bytes(_) => None,
    }
}

fn text(value: Option<&Json>) -> Option<String> {
    value.map(|value| cut(&value.to_string()))
}

fn length(bytes: &bytes::Bytes) -> String {
    format!("{} bytes", bytes.len())
}

fn stands_at<'v>(value: &'v Json, place: &Place<'_>) -> Option<&'v Json> {
    place
        .steps()
        .try_fold(value, |value, step| match (value, step) {
            (Json::Map(map), At::Name(name)) => map.get(*name),
            (Json::List(list), At::Index(index)) => list.get(*index),
            _ => None,
        })
}

/// Tells each value that is neither list nor object, until told to stop.
pub(in crate::evidence) fn leaves<'v>(
    value: &'v Json,
    place: &mut Place<'v>,
    each: &mut dyn FnMut(&Place<'v>, &'v Json) -> bool,
) -> bool {
    match value {
        Json::List(list) => list.iter().enumerate().all(|(i, value)| {
            place.enter(At::Index(i));
            let on = leaves(value, place, each);
            place.leave();
            on
        }),
        Json::Map(map) => map.iter().all(|(name, value)| {
            place.enter(At::Name(name));
            let on = leaves(value, place, each);
            place.leave();
            on
        }),
        Json::Null | Json::Flag(_) | Json::Number(_) | Json::Text(_) => each(place, value),
    }
}
