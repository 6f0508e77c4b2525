//! The only list of keys, as data: where each stands, what it may hold, what it means.
//!
//! The checker ([`super::walk`]), the JSON Schema, the reference page and the environment
//! overrides all walk this list, so that none of them can know a key that the others do not.
//!
//! Invariant: a parent stands before its children, and the order is that of the reference page.

use std::sync::OnceLock;

mod app;
mod data;
mod delivery;
mod process;
mod release;

/// One key of the document.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted, `<name>` for names that people choose, `[]` for the items of a list.
    pub path: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// What holds when it is absent.
    pub default: Absent,
    /// One sentence.
    pub says: &'static str,
    /// The version that knew it first.
    pub since: &'static str,
    /// The rule that it serves, or nothing.
    pub rule: &'static str,
    /// What of it this version does not do yet.
    pub later: Later,
}

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Further keys.
    Section,
    /// Sections under names that people choose.
    Named,
    /// A list of sections.
    Sections,
    /// Either one of these words, or a section.
    WordOrSection(&'static [&'static str]),
    /// One of these words.
    Word(&'static [&'static str]),
    /// Either one of these words, or something else.
    WordOr(&'static [&'static str], &'static Kind),
    /// One of these words each; none twice.
    Words(&'static [&'static str]),
    /// Text of a certain form.
    Text(Form),
    /// A list of such texts.
    Texts(Form),
    /// true or false.
    Flag,
    /// A whole number, its unit, and its bounds.
    Whole(&'static str, u64, u64),
    /// A number and its bounds.
    Number(f64, f64),
    /// `10s`; whether it may be 0.
    Duration(Zero),
    /// `8Mi`, and its lower bound in bytes.
    Size(u64),
    /// `25%`.
    Percentage,
    /// `25%` or `8Mi`.
    SizeOrPercentage,
    /// RFC 3339.
    Instant,
    /// `{file: FILE}` or `{env: NAME}`.
    Secret,
    /// librdkafka's properties.
    Properties,
    /// Anything, handed on as it is.
    Anything,
}

/// Whether a duration may be 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zero {
    /// It may.
    Allowed,
    /// It may not.
    Refused,
}

/// What text must look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Anything.
    Any,
    /// Anything but nothing.
    Filled,
    /// `weu/scoring/fraud-score`.
    Identity,
    /// A topic or event hub: at most 249 of letters, digits, `.`, `_`, `-`.
    Topic,
    /// The same, or nothing.
    TopicOrNothing,
    /// `host:port`.
    Address,
    /// `127.0.0.1`.
    Ip,
    /// `/process`.
    HttpPath,
    /// A file or folder.
    File,
    /// `http://…` or `https://…`.
    Url,
    /// The same, or nothing.
    UrlOrNothing,
    /// `az://…` or `file:///…`.
    BlobUrl,
    /// The name of an environment variable.
    Variable,
    /// ASCII that may stand in an HTTP header's name.
    HeaderName,
}

/// What holds when a key is absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absent {
    /// The document is refused.
    Required,
    /// The feature is off, or the defaults below it hold.
    Nothing,
    /// As if this stood there; JSON.
    Json(&'static str),
    /// It depends; told in words.
    Depends(&'static str),
}

/// What this version does not do yet, although the key is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Later {
    /// It does everything.
    No,
    /// It does not do these words.
    Words(&'static [&'static str]),
    /// It does not do anything but the default.
    Set,
}

const fn key(path: &'static str, kind: Kind, default: Absent, says: &'static str) -> Key {
    Key {
        path,
        kind,
        default,
        says,
        since: "0.1.0",
        rule: "",
        later: Later::No,
    }
}

impl Key {
    const fn rule(mut self, rule: &'static str) -> Self {
        self.rule = rule;
        self
    }

    const fn later(mut self, later: Later) -> Self {
        self.later = later;
        self
    }

    /// The last part of the path, without `[]`.
    pub fn name(&self) -> &'static str {
        let last = self
            .path
            .rsplit('.')
            .next()
            .expect("rsplit gives at least one part");
        last.strip_suffix("[]").unwrap_or(last)
    }

    /// The path of the section it stands in; empty at the top.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    /// What may stand here, in words.
    pub fn allowed(&self) -> String {
        self.kind.allowed()
    }
}

impl Kind {
    /// What may stand here, in words.
    pub fn allowed(self) -> String {
        match self {
            Self::Section => "a section".to_owned(),
            Self::Named => "named sections".to_owned(),
            Self::Sections => "a list of sections".to_owned(),
            Self::WordOrSection(words) => format!("{}, or a section", words.join(", ")),
            Self::Word(words) => words.join(", "),
            Self::WordOr(words, other) => format!("{}, or {}", words.join(", "), other.allowed()),
            Self::Words(words) => format!("a list of {}", words.join(", ")),
            Self::Text(form) => form.allowed().to_owned(),
            Self::Texts(form) => format!("a list; each {}", form.allowed()),
            Self::Flag => "true or false".to_owned(),
            Self::Whole(unit, min, u64::MAX) => format!("a whole number from {min} ({unit})"),
            Self::Whole(unit, min, max) => format!("a whole number from {min} to {max} ({unit})"),
            Self::Number(min, f64::INFINITY) => format!("a number from {min}"),
            Self::Number(min, max) => format!("a number from {min} to {max}"),
            Self::Duration(Zero::Allowed) => {
                "a duration such as 250ms, 10s, 5m, 24h; 0s too".to_owned()
            }
            Self::Duration(Zero::Refused) => {
                "a duration such as 250ms, 10s, 5m, 24h; not 0".to_owned()
            }
            Self::Size(min) => format!("a size such as 64Ki, 8Mi, or bytes; at least {min}"),
            Self::Percentage => "a percentage such as \"25%\", 0% to 100%".to_owned(),
            Self::SizeOrPercentage => {
                "a percentage such as \"25%\", or a size such as 64Mi".to_owned()
            }
            Self::Instant => "an RFC 3339 time such as 2026-01-31T12:00:00Z".to_owned(),
            Self::Secret => "{file: FILE} or {env: NAME}".to_owned(),
            Self::Properties => {
                "librdkafka properties: names with text, numbers or true/false".to_owned()
            }
            Self::Anything => "a section as in a Pod".to_owned(),
        }
    }

    /// The type, in a word or two, for the reference page.
    pub fn type_name(self) -> String {
        match self {
            Self::Section => "section".to_owned(),
            Self::Named => "named sections".to_owned(),
            Self::Sections => "list of sections".to_owned(),
            Self::WordOrSection(words) => format!("{} or section", words.join(" \\| ")),
            Self::Word(words) => words.join(" \\| "),
            Self::WordOr(words, other) => {
                format!("{} \\| {}", words.join(" \\| "), other.type_name())
            }
            Self::Words(words) => format!("list of {}", words.join(" \\| ")),
            Self::Text(_) => "text".to_owned(),
            Self::Texts(_) => "list of text".to_owned(),
            Self::Flag => "true \\| false".to_owned(),
            Self::Whole(..) => "whole number".to_owned(),
            Self::Number(..) => "number".to_owned(),
            Self::Duration(_) => "duration".to_owned(),
            Self::Size(_) => "size".to_owned(),
            Self::Percentage => "percentage".to_owned(),
            Self::SizeOrPercentage => "percentage or size".to_owned(),
            Self::Instant => "RFC 3339 time".to_owned(),
            Self::Secret => "secret reference".to_owned(),
            Self::Properties => "properties".to_owned(),
            Self::Anything => "as in a Pod".to_owned(),
        }
    }

    /// The unit, and the bounds if they matter, for the reference page.
    pub fn unit(self) -> String {
        match self {
            Self::Whole(unit, min, u64::MAX) => format!("{unit}, from {min}"),
            Self::Whole(unit, min, max) => format!("{unit}, {min} to {max}"),
            Self::Number(min, f64::INFINITY) => format!("from {min}"),
            Self::Number(min, max) => format!("{min} to {max}"),
            Self::Duration(_) => "ms, s, m, h".to_owned(),
            Self::Size(_) => "bytes, Ki, Mi, Gi".to_owned(),
            Self::SizeOrPercentage => "%, or bytes, Ki, Mi, Gi".to_owned(),
            Self::Percentage => "%".to_owned(),
            Self::WordOr(_, other) => other.unit(),
            _ => String::new(),
        }
    }
}

impl Form {
    fn allowed(self) -> &'static str {
        match self {
            Self::Any => "text",
            Self::Filled => "text, not empty",
            Self::Identity => {
                "segments joined by `/`, each of a-z, 0-9 and `-`, such as weu/scoring/fraud-score"
            }
            Self::Topic => "a name of at most 249 letters, digits, `.`, `_` and `-`",
            Self::TopicOrNothing => {
                "a name of at most 249 letters, digits, `.`, `_` and `-`, or \"\""
            }
            Self::Address => "host:port",
            Self::Ip => "an IP address such as 127.0.0.1",
            Self::HttpPath => "a path that begins with `/`, without spaces, `?` and `#`",
            Self::File => "a path",
            Self::Url => "a URL that begins with http:// or https://",
            Self::UrlOrNothing => "a URL that begins with http:// or https://, or \"\"",
            Self::BlobUrl => "az://account/container/prefix or file:///folder",
            Self::Variable => "the name of an environment variable: letters, digits and `_`",
            Self::HeaderName => "a header name: letters, digits, `-`, `_`, `.`",
        }
    }

    /// Whether `text` looks like that.
    pub(super) fn fits(self, text: &str) -> bool {
        let word = |extra: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        let url = || {
            ["http://", "https://"].iter().any(|scheme| {
                text.strip_prefix(scheme).is_some_and(|rest| {
                    !rest.is_empty() && !rest.starts_with('/') && !text.contains(' ')
                })
            })
        };
        match self {
            Self::Any => true,
            Self::Filled => !text.trim().is_empty(),
            Self::Identity => text.len() <= 200 && text.split('/').all(is_label),
            Self::Topic => word("._-") && text.len() <= 249 && !matches!(text, "." | ".."),
            Self::TopicOrNothing => text.is_empty() || Self::Topic.fits(text),
            Self::Address => text.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(' ')
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            }),
            Self::Ip => text.parse::<std::net::IpAddr>().is_ok(),
            Self::HttpPath => {
                text.starts_with('/')
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_graphic() && !b"?#".contains(&b))
            }
            Self::File => !text.is_empty() && !text.contains('\0'),
            Self::Url => url(),
            Self::UrlOrNothing => text.is_empty() || url(),
            Self::BlobUrl => {
                text.strip_prefix("az://")
                    .is_some_and(|rest| rest.contains('/'))
                    || text
                        .strip_prefix("file:///")
                        .is_some_and(|rest| !rest.is_empty())
            }
            Self::Variable => word("_") && !text.starts_with(|c: char| c.is_ascii_digit()),
            Self::HeaderName => word("-_."),
        }
    }

    /// A pattern for the JSON Schema that is nowhere stricter than [`Form::fits`].
    pub(super) fn pattern(self) -> Option<&'static str> {
        match self {
            Self::Any | Self::Ip => None,
            Self::Filled => Some(r"\S"),
            Self::Identity => {
                Some("^[a-z0-9]([a-z0-9-]*[a-z0-9])?(/[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$")
            }
            Self::Topic => Some("^[a-zA-Z0-9._-]{1,249}$"),
            Self::TopicOrNothing => Some("^[a-zA-Z0-9._-]{0,249}$"),
            Self::Address => Some("^[^ ]+:[0-9]{1,5}$"),
            Self::HttpPath => Some("^/[^ ?#]*$"),
            Self::File => Some("^.+$"),
            Self::Url => Some("^https?://[^ ]+$"),
            Self::UrlOrNothing => Some("^(https?://[^ ]+)?$"),
            Self::BlobUrl => Some("^(az://.+/.*|file:///.+)$"),
            Self::Variable => Some("^[A-Za-z_][A-Za-z0-9_]*$"),
            Self::HeaderName => Some("^[A-Za-z0-9._-]+$"),
        }
    }
}

fn is_label(segment: &str) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !segment.is_empty()
        && segment.len() <= 63
        && segment.chars().all(inside)
        && !segment.starts_with('-')
        && !segment.ends_with('-')
}

/// Every key, in the order of the reference page.
pub fn all() -> &'static [Key] {
    static ALL: OnceLock<Vec<Key>> = OnceLock::new();
    ALL.get_or_init(|| {
        [
            data::KEYS,
            delivery::KEYS,
            app::KEYS,
            release::KEYS,
            process::KEYS,
        ]
        .concat()
    })
}

/// The keys that stand directly in the section with this path; "" is the top.
pub fn children(parent: &str) -> impl Iterator<Item = &'static Key> {
    all().iter().filter(move |key| key.parent() == parent)
}

/// The key with this path.
pub fn find(path: &str) -> Option<&'static Key> {
    all().iter().find(|key| key.path == path)
}

/// The key in `candidates` that is closest to `name`, if any is close enough to be meant.
pub(super) fn nearest(
    name: &str,
    candidates: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let meant = plain(name);
    candidates
        .map(|candidate| (distance(&meant, &plain(candidate)), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= candidate.len().max(meant.len()).div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// How many characters must be typed, deleted, replaced or swapped to get from one to the other.
fn distance(from: &str, to: &str) -> usize {
    // More than any key has; keeps the work small for a hostile document.
    const CHARACTERS_MAX: usize = 64;
    let from: Vec<char> = from.chars().take(CHARACTERS_MAX).collect();
    let to: Vec<char> = to.chars().take(CHARACTERS_MAX).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let replace = rows[i][j] + usize::from(a != b);
            let mut least = replace.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c4_every_key_has_a_sentence_a_version_and_a_parent_that_stands_before_it() {
        for (i, key) in all().iter().enumerate() {
            assert!(
                key.says.ends_with('.') && key.says.len() > 10,
                "{}",
                key.path
            );
            assert!(!key.since.is_empty(), "{}", key.path);
            let parent = key.parent();
            assert!(
                parent.is_empty() || all()[..i].iter().any(|other| other.path == parent),
                "{} stands before its parent",
                key.path
            );
            let same = all().iter().filter(|other| other.path == key.path).count();
            assert_eq!(same, 1, "{} is there twice", key.path);
        }
    }

    #[test]
    fn c1_the_nearest_key_is_the_one_that_was_meant() {
        let names = || children("flow").map(Key::name);
        for (typed, meant) in [
            ("maxInflight", Some("maxInFlight")),
            ("max_in_flight", Some("maxInFlight")),
            ("concurency", Some("concurrency")),
            ("maxInFlightByte", Some("maxInFlightBytes")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(typed, names()), meant, "{typed}");
        }
    }
}
