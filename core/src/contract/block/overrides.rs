//! Which key an environment override means: `FLOW`, `MAX_IN_FLIGHT` is `flow.maxInFlight`.
//!
//! Names match ignoring case and single underscores, because environments are often upper case
//! and always without dots.

use serde_json::Value;

use super::keys::{self, Kind};
use super::problem::Problem;
use super::walk::join;

/// Where an override belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Keys from the top, in their own spelling.
    pub path: Vec<String>,
    /// The value is text even if it looks like a number.
    pub is_text: bool,
    /// The value replaces what stands there as a whole, rather than being merged into it.
    pub replaces: bool,
}

/// Finds the place that `segments` name; `spec` tells the names that people chose.
///
/// # Errors
/// If there is no such key.
pub fn place(segments: &[&str], spec: &Value) -> Result<Place, Problem> {
    let mut path: Vec<String> = Vec::new();
    let mut pattern = String::new();
    let mut kind = Kind::Section;
    for (at, segment) in segments.iter().enumerate() {
        match kind {
            Kind::Section | Kind::WordOrSection(_) => {
                let key = keys::children(&pattern)
                    .find(|key| same(key.name(), segment))
                    .ok_or_else(|| unknown(&pattern, &path, segment))?;
                path.push(key.name().to_owned());
                key.path.clone_into(&mut pattern);
                kind = key.kind;
            }
            Kind::Named => {
                path.push(chosen(spec, &path, segment).unwrap_or_else(|| segment.to_lowercase()));
                pattern = join(&pattern, "<name>");
                kind = Kind::Section;
            }
            Kind::Properties => {
                // librdkafka's names have dots, which environments do not allow.
                path.push(
                    chosen(spec, &path, segment)
                        .unwrap_or_else(|| segment.to_lowercase().replace('_', ".")),
                );
                kind = Kind::Text(keys::Form::Any);
            }
            Kind::Secret => {
                path.push(segment.to_lowercase());
                kind = Kind::Text(keys::Form::Any);
            }
            Kind::Anything => {
                path.extend(segments[at..].iter().map(|&segment| segment.to_owned()));
                return Ok(Place {
                    path,
                    is_text: false,
                    replaces: true,
                });
            }
            _ => return Err(unknown(&pattern, &path, segment)),
        }
    }
    Ok(Place {
        is_text: matches!(kind, Kind::Text(_) | Kind::Texts(_)),
        replaces: !matches!(
            kind,
            Kind::Section | Kind::WordOrSection(_) | Kind::Named | Kind::Properties
        ),
        path,
    })
}

fn unknown(pattern: &str, path: &[String], segment: &str) -> Problem {
    let names: Vec<_> = keys::children(pattern).map(keys::Key::name).collect();
    let above = path.join(".");
    let nearest = keys::nearest(segment, names.iter().copied()).map(|name| join(&above, name));
    let allowed = if names.is_empty() {
        format!("nothing below {above}; override it as a whole")
    } else {
        names.join(", ")
    };
    Problem {
        nearest,
        ..Problem::new(join(&above, segment), "an unknown key", allowed)
    }
}

/// A name that the document has at `path` already, in its spelling.
fn chosen(spec: &Value, path: &[String], segment: &str) -> Option<String> {
    let section = path.iter().try_fold(spec, |value, name| value.get(name))?;
    section
        .as_object()?
        .keys()
        .find(|name| same(name, segment))
        .cloned()
}

fn same(name: &str, segment: &str) -> bool {
    let plain = |text: &str| {
        text.chars()
            .filter(|c| c.is_ascii_alphanumeric())
            .collect::<String>()
            .to_ascii_lowercase()
    };
    plain(name) == plain(segment)
}
