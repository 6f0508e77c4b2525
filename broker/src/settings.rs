//! The configuration of topics: which keys exist, what they may hold, what they mean here.
//!
//! All keys of Apache Kafka are accepted, so that a script written for it runs. Those that
//! change nothing on a single node without compaction are stored and shown.

use std::collections::BTreeMap;

use crate::options::Options;

/// Set by the broker when a topic is created, so that one that was deleted and created
/// again under the same name can be told apart.
pub(crate) const TOPIC_ID: &str = "millrace.topic.id";

/// The kind of a configuration value, with the number that the protocol has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Boolean = 1,
    Text = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// One known key of a topic.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What applies without a value; `None` where the broker's options say.
    default: Option<&'static str>,
    /// The words that are allowed; empty if any value of the kind is.
    words: &'static [&'static str],
}

const fn key(name: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    Key {
        name,
        kind,
        default,
        words: &[],
    }
}

const MAX_LONG: &str = "9223372036854775807";

pub(crate) const KEYS: &[Key] = &[
    Key {
        words: &["delete", "compact"],
        ..key("cleanup.policy", Kind::List, Some("delete"))
    },
    Key {
        words: &["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"],
        ..key("compression.type", Kind::Text, Some("producer"))
    },
    key("delete.retention.ms", Kind::Long, Some("86400000")),
    key("file.delete.delay.ms", Kind::Long, Some("60000")),
    key("flush.messages", Kind::Long, Some(MAX_LONG)),
    key("flush.ms", Kind::Long, Some(MAX_LONG)),
    key("index.interval.bytes", Kind::Int, Some("4096")),
    key("max.compaction.lag.ms", Kind::Long, Some(MAX_LONG)),
    key("max.message.bytes", Kind::Int, None),
    key(
        "message.timestamp.after.max.ms",
        Kind::Long,
        Some("3600000"),
    ),
    key(
        "message.timestamp.before.max.ms",
        Kind::Long,
        Some(MAX_LONG),
    ),
    Key {
        words: &["CreateTime", "LogAppendTime"],
        ..key("message.timestamp.type", Kind::Text, Some("CreateTime"))
    },
    key("min.cleanable.dirty.ratio", Kind::Double, Some("0.5")),
    key("min.compaction.lag.ms", Kind::Long, Some("0")),
    key("min.insync.replicas", Kind::Int, Some("1")),
    key("preallocate", Kind::Boolean, Some("false")),
    key("retention.bytes", Kind::Long, None),
    key("retention.ms", Kind::Long, None),
    key("segment.bytes", Kind::Int, Some("1073741824")),
    key("segment.index.bytes", Kind::Int, Some("10485760")),
    key("segment.jitter.ms", Kind::Long, Some("0")),
    key("segment.ms", Kind::Long, Some("604800000")),
    key(
        "unclean.leader.election.enable",
        Kind::Boolean,
        Some("false"),
    ),
    key(TOPIC_ID, Kind::Text, Some("")),
];

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("unknown topic configuration {0}")]
    Unknown(String),
    #[error("{0} is set by the broker")]
    ReadOnly(&'static str),
    #[error("{value:?} is not a value of {name}")]
    Value { name: &'static str, value: String },
}

/// Checks one value that a client wants to set.
pub(crate) fn check(name: &str, value: &str) -> Result<(), Invalid> {
    let key = KEYS
        .iter()
        .find(|key| key.name == name)
        .ok_or_else(|| Invalid::Unknown(name.to_string()))?;
    if key.name == TOPIC_ID {
        return Err(Invalid::ReadOnly(TOPIC_ID));
    }
    let word = |word: &str| key.words.is_empty() || key.words.contains(&word);
    let fits = match key.kind {
        Kind::Boolean => value == "true" || value == "false",
        Kind::Text => word(value),
        Kind::Int => value.parse::<i32>().is_ok_and(|number| number >= 0),
        Kind::Long => value.parse::<i64>().is_ok_and(|number| number >= -1),
        Kind::Double => value.parse::<f64>().is_ok_and(|number| number >= 0.0),
        Kind::List => value.split(',').all(|part| word(part.trim())),
    };
    if fits {
        Ok(())
    } else {
        Err(Invalid::Value {
            name: key.name,
            value: value.to_string(),
        })
    }
}

/// What the broker's options say for topics that say nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    message_bytes_max: i32,
    retention_bytes: i64,
    retention_ms: i64,
}

impl Defaults {
    pub(crate) fn new(options: &Options) -> Defaults {
        let long = |number: Option<u128>| {
            number.map_or(-1, |number| i64::try_from(number).unwrap_or(i64::MAX))
        };
        Defaults {
            message_bytes_max: options.message_bytes_max,
            retention_bytes: long(options.retention.bytes.map(u128::from)),
            retention_ms: long(options.retention.age.map(|age| age.as_millis())),
        }
    }

    pub(crate) fn value(&self, key: &Key) -> String {
        match (key.default, key.name) {
            (Some(default), _) => default.to_string(),
            (None, "max.message.bytes") => self.message_bytes_max.to_string(),
            (None, "retention.bytes") => self.retention_bytes.to_string(),
            (None, _) => self.retention_ms.to_string(),
        }
    }
}

/// Who gives a record its timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timestamps {
    Producer {
        before_max_ms: i64,
        after_max_ms: i64,
    },
    Broker,
}

/// The configuration of a topic as the broker acts on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) message_bytes_max: usize,
    pub(crate) timestamps: Timestamps,
    /// `None`: kept for ever, which also holds for compacted topics.
    pub(crate) retention_bytes: Option<u64>,
    pub(crate) retention_ms: Option<i64>,
}

impl Settings {
    /// Reads checked values.
    pub(crate) fn new(values: &BTreeMap<String, String>, defaults: &Defaults) -> Settings {
        let text = |name: &str| {
            values.get(name).cloned().unwrap_or_else(|| {
                KEYS.iter()
                    .find(|key| key.name == name)
                    .map_or_else(String::new, |key| defaults.value(key))
            })
        };
        let number = |name: &str| text(name).parse::<i64>().unwrap_or(-1);
        let deletes = text("cleanup.policy")
            .split(',')
            .any(|part| part.trim() == "delete");
        let limit = |name: &str| Some(number(name)).filter(|number| deletes && *number >= 0);
        Settings {
            message_bytes_max: usize::try_from(number("max.message.bytes")).unwrap_or(usize::MAX),
            timestamps: if text("message.timestamp.type") == "LogAppendTime" {
                Timestamps::Broker
            } else {
                Timestamps::Producer {
                    before_max_ms: number("message.timestamp.before.max.ms"),
                    after_max_ms: number("message.timestamp.after.max.ms"),
                }
            },
            retention_bytes: limit("retention.bytes").and_then(|bytes| u64::try_from(bytes).ok()),
            retention_ms: limit("retention.ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults::new(&Options::memory())
    }

    #[test]
    fn values_are_checked_by_kind() {
        for (name, value, good) in [
            ("retention.ms", "-1", true),
            ("retention.ms", "soon", false),
            ("cleanup.policy", "compact,delete", true),
            ("cleanup.policy", "compress", false),
            ("message.timestamp.type", "LogAppendTime", true),
            ("preallocate", "yes", false),
            ("min.insync.replicas", "-1", false),
            (TOPIC_ID, "x", false),
            ("no.such.key", "1", false),
        ] {
            assert_eq!(check(name, value).is_ok(), good, "{name}={value}");
        }
    }

    #[test]
    fn every_default_is_a_valid_value() {
        for key in KEYS.iter().filter(|key| key.name != TOPIC_ID) {
            assert_eq!(
                check(key.name, &defaults().value(key)),
                Ok(()),
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn a_compacted_topic_is_never_deleted_from() {
        let values = [("cleanup.policy", "compact"), ("retention.bytes", "1")]
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .into();
        let settings = Settings::new(&values, &defaults());
        assert_eq!(settings.retention_bytes, None);
    }
}
