//! Paths into JSON values, as `compare.ignore`, `compare.path`, `compare.fields[].path` and
//! `compare.redact.keep` write them: `model.scores[0]`, `scores[*]`, `meta.*`, `["odd.name"]`.
//!
//! Invariant: a [`Place`] written as text and read as a [`Path`] matches that place and no other.

use std::fmt::{self, Write as _};

/// Where something stands in a value; may hold wildcards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Name(Box<str>),
    AnyName,
    Index(usize),
    AnyIndex,
}

/// A text that is no path.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{path:?} is no path: at character {at} {wants}; paths look like `model.scores[0].label`, `scores[*]` or `[\"a.b\"]`"
)]
pub struct Malformed {
    /// What was given.
    pub path: String,
    /// Where it went wrong, counted from 1.
    pub at: usize,
    /// What should stand there.
    pub wants: &'static str,
}

impl Path {
    /// Reads a path. A leading `$` for the whole value is optional.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let malformed = |rest: &str, wants| Malformed {
            path: text.to_owned(),
            at: text[..text.len() - rest.len()].chars().count() + 1,
            wants,
        };
        let mut steps = Vec::new();
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut bare = rest.len() == text.len();
        if text.is_empty() {
            return Err(malformed(rest, "a name is missing"));
        }
        while !rest.is_empty() {
            if rest.starts_with('[') {
                let (step, after) = bracket(rest).map_err(|(at, wants)| malformed(at, wants))?;
                steps.push(step);
                rest = after;
            } else {
                if !bare {
                    rest = rest
                        .strip_prefix('.')
                        .ok_or_else(|| malformed(rest, "a `.` or `[` is missing"))?;
                }
                let end = rest.find(['.', '[', ']', '"']).unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                if name.is_empty() {
                    return Err(malformed(rest, "a name is missing"));
                }
                steps.push(match name {
                    "*" => Step::AnyName,
                    name => Step::Name(name.into()),
                });
                rest = after;
            }
            bare = false;
        }
        Ok(Self { steps })
    }

    /// Whether the place is this path's, or lies below it.
    pub fn covers(&self, place: &Place<'_>) -> bool {
        self.steps.len() <= place.steps.len()
            && self
                .steps
                .iter()
                .zip(&place.steps)
                .all(|(step, at)| match (step, at) {
                    (Step::AnyName, At::Name(_)) | (Step::AnyIndex, At::Index(_)) => true,
                    (Step::Name(step), At::Name(name)) => **step == **name,
                    (Step::Index(step), At::Index(index)) => step == index,
                    _ => false,
                })
    }

    /// Whether it names exactly one place.
    pub fn is_single(&self) -> bool {
        !self
            .steps
            .iter()
            .any(|step| matches!(step, Step::AnyName | Step::AnyIndex))
    }

    /// The steps down to the place, for a path without wildcards.
    pub(super) fn steps(&self) -> impl Iterator<Item = At<'_>> {
        self.steps.iter().filter_map(|step| match step {
            Step::Name(name) => Some(At::Name(name)),
            Step::Index(index) => Some(At::Index(*index)),
            Step::AnyName | Step::AnyIndex => None,
        })
    }
}

/// `[0]`, `[*]` or `["name"]`, and what follows.
fn bracket(text: &str) -> Result<(Step, &str), (&str, &'static str)> {
    let inside = &text[1..];
    let (step, after) = if inside.starts_with('"') {
        let mut values = serde_json::Deserializer::from_str(inside).into_iter::<String>();
        let Some(Ok(name)) = values.next() else {
            return Err((inside, "a quoted name is missing"));
        };
        (Step::Name(name.into()), &inside[values.byte_offset()..])
    } else if let Some(after) = inside.strip_prefix('*') {
        (Step::AnyIndex, after)
    } else {
        let end = inside
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(inside.len());
        let index = inside[..end]
            .parse()
            .map_err(|_| (inside, "an index, `*` or a quoted name is missing"))?;
        (Step::Index(index), &inside[end..])
    };
    match after.strip_prefix(']') {
        Some(after) => Ok((step, after)),
        None => Err((after, "a `]` is missing")),
    }
}

/// One step down into a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum At<'v> {
    /// Into a member.
    Name(&'v str),
    /// Into an element.
    Index(usize),
}

/// Where one stands in a value while walking through it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place<'v> {
    steps: Vec<At<'v>>,
}

impl<'v> Place<'v> {
    /// Goes down.
    pub(super) fn enter(&mut self, step: At<'v>) {
        self.steps.push(step);
    }

    /// Goes back up.
    pub(super) fn leave(&mut self) {
        self.steps.pop();
    }

    /// The steps down to here.
    pub(super) fn steps(&self) -> impl Iterator<Item = &At<'v>> {
        self.steps.iter()
    }

    /// Whether the way here leads through a list.
    pub(super) fn in_a_list(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, At::Index(_)))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            return f.write_char('$');
        }
        for (i, step) in self.steps.iter().enumerate() {
            match step {
                At::Index(index) => write!(f, "[{index}]")?,
                At::Name(name) => {
                    let odd = name.is_empty()
                        || *name == "*"
                        || name.contains(['.', '[', ']', '"'])
                        || (i == 0 && name.starts_with('$'));
                    if odd {
                        let name = serde_json::Value::from(*name);
                        write!(f, "[{name}]")?;
                    } else {
                        let dot = if i == 0 { "" } else { "." };
                        write!(f, "{dot}{name}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place<'v>(steps: &[At<'v>]) -> Place<'v> {
        Place {
            steps: steps.to_vec(),
        }
    }

    #[test]
    fn j2_a_path_covers_its_place_and_what_lies_below() {
        use At::{Index, Name};
        let check = |path: &str, steps: &[At<'_>], expect: bool| {
            let path = Path::parse(path).unwrap();
            assert_eq!(path.covers(&place(steps)), expect, "{path:?} {steps:?}");
        };
        check("a", &[Name("a")], true);
        check("a", &[Name("a"), Name("b")], true);
        check("a.b", &[Name("a")], false);
        check("a", &[Name("ab")], false);
        check("$.a[0]", &[Name("a"), Index(0)], true);
        check("a[0]", &[Name("a"), Index(1)], false);
        check("a[*].x", &[Name("a"), Index(7), Name("x")], true);
        check("a[*]", &[Name("a"), Name("x")], false);
        check("a.*", &[Name("a"), Name("x")], true);
        check("a.*", &[Name("a"), Index(0)], false);
        check("[\"a.b\"]", &[Name("a.b")], true);
        check("[\"*\"]", &[Name("x")], false);
        check("[2].x", &[Index(2), Name("x")], true);
        check("$", &[], true);
        check("$", &[Name("x")], true);
    }

    #[test]
    fn j2_a_text_that_is_no_path_is_refused_with_the_place() {
        for (text, at, wants) in [
            ("", 1, "name is missing"),
            ("a.", 3, "name is missing"),
            (".a", 1, "name is missing"),
            ("a..b", 3, "name is missing"),
            ("a[", 3, "an index"),
            ("a[0", 4, "`]`"),
            ("a[x]", 3, "an index"),
            ("a[-1]", 3, "an index"),
            ("a[\"b]", 3, "quoted name"),
            ("a]", 2, "`.` or `[`"),
            ("$a", 2, "`.` or `[`"),
            ("é[", 3, "an index"),
        ] {
            let error = Path::parse(text).unwrap_err();
            assert_eq!(error.at, at, "{error}");
            assert!(error.to_string().contains(wants), "{error}");
        }
        assert!(!Path::parse("a[*]").unwrap().is_single());
        assert!(!Path::parse("*").unwrap().is_single());
        assert!(Path::parse("[\"*\"].a[3]").unwrap().is_single());
    }

    proptest! {
        #[test]
        fn j2_a_place_reads_back_as_its_own_path(
            names in prop::collection::vec(prop_oneof![
                "[a-z.*$\\[\\]\"\\\\é ]{0,6}".prop_map(Ok),
                (0_usize..20).prop_map(Err),
            ], 0..5)
        ) {
            let steps: Vec<_> = names.iter().map(|step| match step {
                Ok(name) => At::Name(name),
                Err(index) => At::Index(*index),
            }).collect();
            let place = place(&steps);
            let path = Path::parse(&place.to_string()).unwrap();
            prop_assert!(path.is_single());
            prop_assert_eq!(path.steps().collect::<Vec<_>>(), steps);
            prop_assert!(path.covers(&place));
        }
    }
}
