//! Puts environment overrides on top of the document.
//!
//! `MILLRACE__FLOW__MAX_IN_FLIGHT=512` sets `flow.maxInFlight`: two underscores per level,
//! matched ignoring case and single underscores, values parsed as YAML.

use config::{Config, ConfigError, Map, Source, Value as Setting, ValueKind};
use millrace_core::contract::block::{Place, Problem, place};
use serde_json::Value;

use super::{Environment, yaml};

const PREFIX: &str = "MILLRACE__";

/// Both layers are kept under one name, because `config` takes dots in top-level names for paths.
const ROOT: &str = "block";

/// The document with its overrides, and what is wrong with these.
pub(super) fn put(document: Value, environment: &Environment) -> (Value, Vec<Problem>) {
    let (mut document, envelope) = unwrap(document);
    if !document.is_object() {
        return (document, Vec::new());
    }
    let (overrides, problems) = overrides(&document, environment);
    if !overrides.is_empty() {
        let layered = Config::builder()
            .add_source(Document(document))
            .add_source(Overrides(overrides))
            .build()
            .and_then(|config| config.get::<Value>(ROOT));
        document = layered.expect("both layers are maps without errors of their own");
    }
    (wrap(document, envelope), problems)
}

/// Takes the spec out of a whole Kubernetes object.
fn unwrap(mut document: Value) -> (Value, Option<Value>) {
    match document.get_mut("spec") {
        Some(spec) => (spec.take(), Some(document)),
        None => (document, None),
    }
}

fn wrap(spec: Value, envelope: Option<Value>) -> Value {
    match envelope {
        None => spec,
        Some(mut document) => {
            document["spec"] = spec;
            document
        }
    }
}

fn overrides(document: &Value, environment: &Environment) -> (Vec<(Place, Setting)>, Vec<Problem>) {
    let (mut found, mut problems) = (Vec::<(Place, Setting)>::new(), Vec::new());
    for (name, text) in environment {
        let Some(rest) = tail(name) else { continue };
        let segments: Vec<_> = rest.split("__").collect();
        match place(&segments, document) {
            Ok(place) if found.iter().any(|(other, _)| *other == place) => problems.push(problem(
                name,
                "a second variable for this key".to_owned(),
                format!("one variable for {}", place.path.join(".")),
            )),
            Ok(place) => match value(&place, text) {
                Ok(value) => found.push((place, setting(value))),
                Err(message) => {
                    problems.push(problem(name, "text that is not YAML".to_owned(), message))
                }
            },
            Err(unknown) => problems.push(Problem {
                path: format!("{name} ({})", unknown.path),
                ..unknown
            }),
        }
    }
    (found, problems)
}

fn problem(name: &str, found: String, allowed: String) -> Problem {
    Problem {
        path: name.to_owned(),
        found,
        allowed,
        nearest: None,
        reason: None,
    }
}

/// What comes after the prefix, whose case does not matter either.
fn tail(name: &str) -> Option<&str> {
    let (head, tail) = name.split_at_checked(PREFIX.len())?;
    head.eq_ignore_ascii_case(PREFIX).then_some(tail)
}

fn value(place: &Place, text: &str) -> Result<Value, String> {
    let value = yaml::read(text)?;
    // A topic named 123 is text, whatever YAML makes of it.
    if place.is_text && (value.is_number() || value.is_boolean()) {
        return Ok(Value::String(text.trim().to_owned()));
    }
    Ok(value)
}

/// The lower layer.
#[derive(Clone, Debug)]
struct Document(Value);

impl Source for Document {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Setting>, ConfigError> {
        Ok(Map::from_iter([(ROOT.to_owned(), setting(self.0.clone()))]))
    }
}

/// The upper layer.
#[derive(Clone, Debug)]
struct Overrides(Vec<(Place, Setting)>);

impl Source for Overrides {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Setting>, ConfigError> {
        let mut cache = Setting::new(None, ValueKind::Table(Map::new()));
        self.collect_to(&mut cache)?;
        cache.into_table()
    }

    /// Merges sections and replaces everything else: half a secret or half a list is nobody's wish.
    fn collect_to(&self, cache: &mut Setting) -> Result<(), ConfigError> {
        for (place, value) in &self.0 {
            let path = std::iter::once(ROOT).chain(place.path.iter().map(String::as_str));
            let target = path.fold(&mut *cache, |at, name| {
                table(at).entry(name.to_owned()).or_insert_with(empty)
            });
            if place.replaces {
                *target = value.clone();
            } else {
                merge(target, value);
            }
        }
        Ok(())
    }
}

fn merge(target: &mut Setting, value: &Setting) {
    match &value.kind {
        ValueKind::Table(map) => {
            let target = table(target);
            for (name, value) in map {
                merge(target.entry(name.clone()).or_insert_with(empty), value);
            }
        }
        _ => *target = value.clone(),
    }
}

fn table(value: &mut Setting) -> &mut Map<String, Setting> {
    if !matches!(value.kind, ValueKind::Table(_)) {
        value.kind = ValueKind::Table(Map::new());
    }
    match &mut value.kind {
        ValueKind::Table(map) => map,
        _ => unreachable!("it was made a table above"),
    }
}

fn empty() -> Setting {
    Setting::new(None, ValueKind::Nil)
}

fn setting(value: Value) -> Setting {
    let kind = match value {
        Value::Null => ValueKind::Nil,
        Value::Bool(flag) => ValueKind::Boolean(flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => ValueKind::I64(number),
            (None, Some(number)) => ValueKind::U64(number),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => ValueKind::String(text),
        Value::Array(items) => ValueKind::Array(items.into_iter().map(setting).collect()),
        Value::Object(map) => ValueKind::Table(
            map.into_iter()
                .map(|(name, value)| (name, setting(value)))
                .collect(),
        ),
    };
    Setting::new(None, kind)
}
