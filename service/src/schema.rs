//! JSON Schemas for event values and results (D-F4).
//!
//! Invariant: a schema is compiled once, from one file; references to other files or to the
//! network are not followed.
//! Invariant: what a violation says does not quote the value: logs show no payloads.

use std::path::{Path, PathBuf};

use millrace_core::contract::block::Block;
use millrace_core::limits::DOCUMENT_BYTES_MAX;
use serde_json::Value;

/// A schema that is ready to use.
#[derive(Debug)]
pub struct Schema(jsonschema::Validator);

/// Why there is no schema.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such file, or no right to read it.
    #[error("{key}: failed to read the schema {}", path.display())]
    Unreadable {
        /// Key of the block document.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nobody writes such a schema.
    #[error("{key}: the schema {} is larger than {DOCUMENT_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// Key of the block document.
        key: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// It is not JSON.
    #[error("{key}: the schema {} is not JSON", path.display())]
    NotJson {
        /// Key of the block document.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// It is JSON, but no schema that can be used.
    #[error("{key}: the schema {} cannot be used: {message}", path.display())]
    Unusable {
        /// Key of the block document.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
}

impl Error {
    /// The key of the block document that names the schema.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Unreadable { key, .. }
            | Self::TooLarge { key, .. }
            | Self::NotJson { key, .. }
            | Self::Unusable { key, .. } => key,
        }
    }
}

impl Schema {
    /// Reads and compiles the schema that a key names.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(key: &'static str, path: &Path) -> Result<Self, Error> {
        let path_buf = || path.to_owned();
        let unreadable = |source| Error::Unreadable {
            key,
            path: path_buf(),
            source,
        };
        let length = std::fs::metadata(path).map_err(unreadable)?.len();
        if length > DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge {
                key,
                path: path_buf(),
            });
        }
        let text = std::fs::read(path).map_err(unreadable)?;
        let schema: Value = serde_json::from_slice(&text).map_err(|source| Error::NotJson {
            key,
            path: path_buf(),
            source,
        })?;
        let validator = jsonschema::validator_for(&schema).map_err(|error| Error::Unusable {
            key,
            path: path_buf(),
            message: format!("{error} at {:?}", error.instance_path().as_str()),
        })?;
        Ok(Self(validator))
    }

    /// Whether a value follows the schema; if not, where and why not.
    ///
    /// # Errors
    /// The first violation, for people.
    pub fn check(&self, value: &[u8]) -> Result<(), String> {
        let value: Value =
            serde_json::from_slice(value).map_err(|error| format!("it is no JSON: {error}"))?;
        self.0.validate(&value).map_err(|error| {
            let path = error.instance_path().as_str();
            let place = if path.is_empty() { "the value" } else { path };
            format!("{place}: {}", error.masked())
        })
    }
}

/// The schemas of a block.
#[derive(Debug, Default)]
pub struct Schemas {
    /// `input.schema`.
    pub event: Option<Schema>,
    /// `output.schema`.
    pub result: Option<Schema>,
}

impl Schemas {
    /// Compiles what the document names.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load(block: &Block) -> Result<Self, Vec<Error>> {
        let mut errors = Vec::new();
        let mut load = |key, path: &Option<PathBuf>| {
            let loaded = path.as_deref().map(|path| Schema::load(key, path));
            loaded
                .transpose()
                .map_err(|error| errors.push(error))
                .ok()
                .flatten()
        };
        let schemas = Self {
            event: load("input.schema", &block.input.schema),
            result: load("output.schema", &block.output.schema),
        };
        if errors.is_empty() {
            Ok(schemas)
        } else {
            Err(errors)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    fn load(text: &str) -> Result<Schema, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.json");
        std::fs::write(&path, text).unwrap();
        Schema::load("input.schema", &path).map_err(|error| chain(&error).to_string())
    }

    const ORDER: &str = r##"{
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object", "required": ["id"],
        "properties": {"id": {"type": "string"}, "n": {"$ref": "#/$defs/count"}},
        "$defs": {"count": {"type": "integer", "minimum": 0}}
    }"##;

    #[test]
    fn a_violation_says_where_and_why_without_the_value() {
        let schema = load(ORDER).unwrap();
        for good in [r#"{"id":"a"}"#, r#"{"id":"a","n":3,"more":[]}"#] {
            assert_eq!(schema.check(good.as_bytes()), Ok(()));
        }
        let check = |value: &str, parts: &[&str]| {
            let why = schema.check(value.as_bytes()).unwrap_err();
            assert!(parts.iter().all(|part| why.contains(part)), "{why}");
            assert!(!why.contains("secret"), "{why}");
        };
        check(r#"{"n":1}"#, &["the value", "id"]);
        check(r#"{"id":"a","n":"secret"}"#, &["/n", "integer"]);
        check(r#"{"id":"a","n":-1}"#, &["/n", "minimum"]);
        check("secret", &["no JSON"]);
        check("", &["no JSON"]);
        assert!(schema.check(b"\xff").is_err());
    }

    #[test]
    fn a_schema_that_cannot_be_used_is_named_with_its_key() {
        let check = |text: &str, part: &str| {
            let why = load(text).unwrap_err();
            assert!(
                why.contains("input.schema") && why.contains("s.json") && why.contains(part),
                "{why}"
            );
        };
        check("{", "not JSON");
        check(r#"{"type":"objekt"}"#, "cannot be used");
        check(r##"{"$ref":"#/nowhere"}"##, "cannot be used");
        let missing = Schema::load("output.schema", Path::new("/nowhere/s.json")).unwrap_err();
        assert!(chain(&missing).to_string().contains("output.schema"));
    }

    #[test]
    fn references_to_the_network_and_to_files_are_not_followed() {
        for uri in ["http://127.0.0.1:1/s.json", "file:///etc/hostname"] {
            let why = load(&format!(r#"{{"$ref":"{uri}"}}"#)).unwrap_err();
            assert!(why.contains("cannot be used"), "{why}");
        }
    }
}
