//! When do two answers to one event agree? (J2)
//!
//! Class and number of results come first; then topics that the app named, then keys and values
//! by the configured mode: `Bytes`, `Json` with tolerances, or `Label`, one value at a path.
//!
//! Invariant: an answer never disagrees with itself, and who is asked first does not matter.
//! Invariant: what cannot be compared is said to be so; it counts neither for nor against.

use std::cmp::Ordering;

use bytes::Bytes;

use super::json::Json;
use super::path::{Malformed, Path, Place};
use super::record::{Answer, Class, Fingerprint, ResultBody, Results};
use crate::contract::block::{Compare, CompareMode};
use crate::limits::EVIDENCE_SHOWN_BYTES_MAX;

mod numbers;
mod show;
mod values;

pub use numbers::Tolerance;
pub use show::Field;
pub(super) use show::leaves;

/// Compares answers as `release.verification.compare` says.
#[derive(Clone, Debug)]
pub struct Comparator {
    mode: Mode,
    ignore: Vec<Path>,
    general: Tolerance,
    fields: Vec<(Path, Tolerance)>,
    keep: Vec<Path>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Mode {
    Bytes,
    Json,
    Label(Path),
}

/// A path of the document that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{key}: {problem}")]
    Path {
        /// The configuration key.
        key: String,
        /// What is wrong.
        problem: Malformed,
    },
    /// The label must stand at one place.
    #[error(
        "release.verification.compare.path: {path:?} names several places; a label stands at one, without `*`"
    )]
    SeveralLabels {
        /// What was given.
        path: String,
    },
}

/// What a comparison showed.
#[derive(Clone, PartialEq, Debug)]
pub enum Comparison {
    /// The same answer.
    Agree,
    /// Another answer, so bad at its worst place.
    Disagree(Severity),
    /// Nobody can say.
    Impossible(Obstacle),
}

/// Why two answers cannot be compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Obstacle {
    /// One of them was too large for a record, and the fingerprints differ: tolerances cannot
    /// be applied.
    TooLarge,
    /// Neither has a label at the path.
    NoLabel,
}

/// How bad a disagreement is. The worse is the greater (J6).
#[derive(Clone, Copy, Debug)]
pub enum Severity {
    /// A number is beyond its tolerance, by this factor; finite.
    Number(f64),
    /// Another label, text, type, key or topic, or something is missing.
    Value,
    /// Another class or number of results.
    Class,
}

impl Severity {
    /// As evidence spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Number(_) => "number",
            Self::Value => "value",
            Self::Class => "class",
        }
    }
}

impl Ord for Severity {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |severity: &Self| match severity {
            Self::Number(excess) => (0, *excess),
            Self::Value => (1, 0.0),
            Self::Class => (2, 0.0),
        };
        let ((a, x), (b, y)) = (rank(self), rank(other));
        a.cmp(&b).then(x.total_cmp(&y))
    }
}

impl PartialOrd for Severity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Severity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Severity {}

/// An answer, read for comparing. Made once, used for agreement, drift and labels.
#[derive(Clone, Debug)]
pub struct Reading<'a> {
    class: Class,
    results: Option<Vec<ReadResult<'a>>>,
    fingerprint: Fingerprint,
}

#[derive(Clone, Debug)]
pub(super) struct ReadResult<'a> {
    body: &'a ResultBody,
    value: Body<'a>,
}

/// A value, as far as it can be understood.
#[derive(Clone, Debug)]
enum Body<'a> {
    Null,
    Json(Json),
    Bytes(&'a Bytes),
}

impl<'a> Reading<'a> {
    /// Reads the values of an answer.
    pub fn of(answer: &'a Answer) -> Self {
        let read = |body: &'a ResultBody| ReadResult {
            body,
            value: match &body.value {
                None => Body::Null,
                Some(bytes) => Json::parse(bytes).map_or(Body::Bytes(bytes), Body::Json),
            },
        };
        let (results, fingerprint) = match &answer.results {
            Results::Whole(results) => (
                Some(results.iter().map(read).collect()),
                Fingerprint::of(results),
            ),
            Results::Cut(fingerprint) => (None, *fingerprint),
        };
        Self {
            class: answer.class,
            results,
            fingerprint,
        }
    }

    /// What came of the event.
    pub fn class(&self) -> Class {
        self.class
    }

    /// How many results it has.
    pub fn count(&self) -> u64 {
        self.fingerprint.results
    }

    /// The values that are JSON.
    pub(super) fn values(&self) -> impl Iterator<Item = &Json> {
        let results = self.results.iter().flatten();
        results.filter_map(|result| match &result.value {
            Body::Json(json) => Some(json),
            Body::Null | Body::Bytes(_) => None,
        })
    }
}

impl Comparator {
    /// Reads the paths of the configuration.
    pub fn new(compare: &Compare) -> Result<Self, Error> {
        let under = "release.verification.compare";
        let path = |key: String, text: &str| {
            Path::parse(text).map_err(|problem| Error::Path { key, problem })
        };
        let paths = |key: &str, texts: &[String]| {
            let texts = texts.iter().enumerate();
            texts
                .map(|(i, text)| path(format!("{under}.{key}[{i}]"), text))
                .collect::<Result<Vec<_>, _>>()
        };
        let general = Tolerance {
            abs: compare.numeric_abs,
            rel: compare.numeric_rel,
        };
        let field = |(i, rule): (usize, &crate::contract::block::FieldRule)| {
            let tolerance = Tolerance {
                abs: rule.abs.unwrap_or(general.abs),
                rel: rule.rel.unwrap_or(general.rel),
            };
            Ok((
                path(format!("{under}.fields[{i}].path"), &rule.path)?,
                tolerance,
            ))
        };
        Ok(Self {
            mode: match &compare.mode {
                CompareMode::Bytes => Mode::Bytes,
                CompareMode::Json => Mode::Json,
                CompareMode::Label(text) => {
                    let label = path(format!("{under}.path"), text)?;
                    if !label.is_single() {
                        return Err(Error::SeveralLabels { path: text.clone() });
                    }
                    Mode::Label(label)
                }
            },
            ignore: paths("ignore", &compare.ignore)?,
            general,
            fields: compare
                .fields
                .iter()
                .enumerate()
                .map(field)
                .collect::<Result<_, _>>()?,
            keep: paths("redact.keep", &compare.redact_keep)?,
        })
    }

    /// Whether two answers agree.
    pub fn compare(&self, green: &Reading<'_>, blue: &Reading<'_>) -> Comparison {
        if green.class != blue.class || green.count() != blue.count() {
            return Comparison::Disagree(Severity::Class);
        }
        let (Some(greens), Some(blues)) = (&green.results, &blue.results) else {
            return if green.fingerprint == blue.fingerprint {
                Comparison::Agree
            } else {
                Comparison::Impossible(Obstacle::TooLarge)
            };
        };
        let mut worst = None;
        let mut labels = 0;
        for (green, blue) in greens.iter().zip(blues) {
            let found = match &self.mode {
                Mode::Bytes => {
                    let same =
                        green.body.key == blue.body.key && green.body.value == blue.body.value;
                    (!same).then_some(Severity::Value)
                }
                Mode::Json => self.compare_json(green, blue),
                Mode::Label(path) => {
                    let (green, blue) = (green.label(path), blue.label(path));
                    labels += usize::from(green.is_some() || blue.is_some());
                    (!same_label(green, blue)).then_some(Severity::Value)
                }
            };
            let moved = (green.body.topic != blue.body.topic).then_some(Severity::Value);
            worst = worst.max(found).max(moved);
        }
        match worst {
            Some(severity) => Comparison::Disagree(severity),
            None if matches!(self.mode, Mode::Label(_)) && labels < greens.len() => {
                Comparison::Impossible(Obstacle::NoLabel)
            }
            None => Comparison::Agree,
        }
    }

    fn compare_json(&self, green: &ReadResult<'_>, blue: &ReadResult<'_>) -> Option<Severity> {
        let values = match (&green.value, &blue.value) {
            (Body::Null, Body::Null) => None,
            (Body::Json(green), Body::Json(blue)) => {
                let mut worst = None;
                self.differences(green, blue, &mut |_, difference| {
                    worst = worst.max(Some(difference.severity));
                });
                worst
            }
            (Body::Bytes(green), Body::Bytes(blue)) => (green != blue).then_some(Severity::Value),
            _ => Some(Severity::Value),
        };
        let key = (green.body.key != blue.body.key).then_some(Severity::Value);
        values.max(key)
    }

    /// The labels of each result, for the confusion matrix: Green's and Blue's. Nothing in other
    /// modes, and where the answers have not the same class and number of results.
    pub fn labels(
        &self,
        green: &Reading<'_>,
        blue: &Reading<'_>,
        each: &mut dyn FnMut(String, String),
    ) {
        let (Mode::Label(path), Some(greens), Some(blues)) =
            (&self.mode, &green.results, &blue.results)
        else {
            return;
        };
        if greens.len() != blues.len() {
            return;
        }
        let shown = |label: Option<&Json>| match label {
            Some(Json::Text(text)) => cut(text),
            Some(label) => cut(&label.to_string()),
            None => "(none)".to_owned(),
        };
        for (green, blue) in greens.iter().zip(blues) {
            each(shown(green.label(path)), shown(blue.label(path)));
        }
    }

    /// Whether a field of `Json` values counts.
    pub(super) fn is_ignored(&self, place: &Place<'_>) -> bool {
        self.ignore.iter().any(|path| path.covers(place))
    }

    /// Whether a field rule names the place.
    pub(super) fn is_named(&self, place: &Place<'_>) -> bool {
        self.fields.iter().any(|(path, _)| path.covers(place))
    }
}

impl ReadResult<'_> {
    fn label(&self, path: &Path) -> Option<&Json> {
        match &self.value {
            Body::Json(json) => json.find(path),
            Body::Null | Body::Bytes(_) => None,
        }
    }
}

/// Labels are equal or not; tolerances are for measurements.
fn same_label(green: Option<&Json>, blue: Option<&Json>) -> bool {
    match (green, blue) {
        (Some(green), Some(blue)) => values::equal(green, blue),
        (None, None) => true,
        _ => false,
    }
}

/// The beginning of a text that is shown.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= EVIDENCE_SHOWN_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = EVIDENCE_SHOWN_BYTES_MAX - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
