//! The topics of the broker: created, grown, configured, deleted.

use std::collections::BTreeMap;
use std::io;

use kafka_protocol::ResponseError;

use crate::ids::random_id;
use crate::journal::Entry;
use crate::limits::{PARTITIONS_MAX, TOPIC_NAME_LETTERS_MAX, TOPICS_MAX};
use crate::log::Log;
use crate::settings::{self, Settings, TOPIC_ID};
use crate::state::State;

#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) configs: BTreeMap<String, String>,
    pub(crate) settings: Settings,
    pub(crate) logs: Vec<Log>,
}

/// Why a change to a topic is refused.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The name has letters other than `a-z A-Z 0-9 . _ -`, or is too long.
    #[error("{0:?} is not a valid topic name")]
    Name(String),
    /// There is such a topic.
    #[error("topic {0} exists")]
    Exists(String),
    /// There is no such topic.
    #[error("there is no topic {0}")]
    Unknown(String),
    /// The number of partitions is out of range, or smaller than it was.
    #[error("topic {topic} cannot have {partitions} partitions")]
    Partitions {
        /// Of which topic.
        topic: String,
        /// How many were asked for.
        partitions: i32,
    },
    /// There is one node, so there is one replica.
    #[error("{0} replicas are not possible on a single node")]
    Replicas(i16),
    /// A configuration value is not valid.
    #[error("{0}")]
    Config(String),
    /// The broker has as many topics as it can.
    #[error("the broker has no room for more topics")]
    TooMany,
    /// The change could not be written down.
    #[error("failed to write the change of topic {topic}")]
    Storage {
        /// Of which topic.
        topic: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl TopicError {
    pub(crate) fn code(&self) -> ResponseError {
        match self {
            TopicError::Name(_) => ResponseError::InvalidTopicException,
            TopicError::Exists(_) => ResponseError::TopicAlreadyExists,
            TopicError::Unknown(_) => ResponseError::UnknownTopicOrPartition,
            TopicError::Partitions { .. } => ResponseError::InvalidPartitions,
            TopicError::Replicas(_) => ResponseError::InvalidReplicationFactor,
            TopicError::Config(_) => ResponseError::InvalidConfig,
            TopicError::TooMany => ResponseError::PolicyViolation,
            TopicError::Storage { .. } => ResponseError::KafkaStorageError,
        }
    }
}

pub(crate) fn is_valid_name(name: &str) -> bool {
    (1..=TOPIC_NAME_LETTERS_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|letter| letter.is_ascii_alphanumeric() || b"._-".contains(&letter))
}

fn storage(topic: &str) -> impl FnOnce(io::Error) -> TopicError + '_ {
    move |source| TopicError::Storage {
        topic: topic.to_string(),
        source,
    }
}

impl State {
    pub(crate) fn log(&self, topic: &str, partition: i32) -> Option<&Log> {
        self.topics
            .get(topic)?
            .logs
            .get(usize::try_from(partition).ok()?)
    }

    pub(crate) fn log_mut(&mut self, topic: &str, partition: i32) -> Option<&mut Log> {
        self.topics
            .get_mut(topic)?
            .logs
            .get_mut(usize::try_from(partition).ok()?)
    }

    /// Checks a creation without doing it, and says how many partitions it would make.
    pub(crate) fn check_creation(
        &self,
        name: &str,
        partitions: i32,
        configs: &BTreeMap<String, String>,
    ) -> Result<usize, TopicError> {
        if !is_valid_name(name) {
            return Err(TopicError::Name(name.to_string()));
        }
        if self.topics.contains_key(name) {
            return Err(TopicError::Exists(name.to_string()));
        }
        if self.topics.len() >= TOPICS_MAX {
            return Err(TopicError::TooMany);
        }
        let partitions = if partitions == -1 {
            self.limits.default_partitions
        } else {
            partitions
        };
        for (name, value) in configs {
            settings::check(name, value).map_err(|error| TopicError::Config(error.to_string()))?;
        }
        usize::try_from(partitions)
            .ok()
            .filter(|_| (1..=PARTITIONS_MAX).contains(&partitions))
            .ok_or_else(|| TopicError::Partitions {
                topic: name.to_string(),
                partitions,
            })
    }

    /// Creates a topic; -1 partitions stand for the default.
    pub(crate) fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        mut configs: BTreeMap<String, String>,
    ) -> Result<(), TopicError> {
        let count = self.check_creation(name, partitions, &configs)?;
        configs.insert(TOPIC_ID.to_string(), random_id());
        self.keeper
            .record(&Entry::TopicCreated {
                name: name.to_string(),
                partitions: count,
                configs: configs.clone(),
            })
            .map_err(storage(name))?;
        let logs = (0..count)
            .map(|partition| self.keeper.create_log(name, partition, self.leader_epoch))
            .collect::<io::Result<Vec<Log>>>()
            .map_err(storage(name))?;
        let settings = Settings::new(&configs, &self.defaults);
        self.topics.insert(
            name.to_string(),
            Topic {
                configs,
                settings,
                logs,
            },
        );
        Ok(())
    }

    pub(crate) fn delete_topic(&mut self, name: &str) -> Result<(), TopicError> {
        if !self.topics.contains_key(name) {
            return Err(TopicError::Unknown(name.to_string()));
        }
        self.keeper
            .record(&Entry::TopicDeleted {
                name: name.to_string(),
            })
            .map_err(storage(name))?;
        if let Some(topic) = self.topics.remove(name) {
            for partition in 0..topic.logs.len() {
                self.keeper.remove_log(name, partition);
            }
        }
        for group in self.groups.values_mut() {
            group.offsets.delete_topic(name);
        }
        self.transactions.forget_topic(name);
        Ok(())
    }

    /// Grows a topic, or only checks it.
    pub(crate) fn set_partitions(
        &mut self,
        name: &str,
        partitions: i32,
        only_check: bool,
    ) -> Result<(), TopicError> {
        let Some(topic) = self.topics.get_mut(name) else {
            return Err(TopicError::Unknown(name.to_string()));
        };
        let count = usize::try_from(partitions)
            .ok()
            .filter(|count| *count > topic.logs.len() && partitions <= PARTITIONS_MAX)
            .ok_or_else(|| TopicError::Partitions {
                topic: name.to_string(),
                partitions,
            })?;
        if only_check {
            return Ok(());
        }
        self.keeper
            .record(&Entry::PartitionsSet {
                name: name.to_string(),
                partitions: count,
            })
            .map_err(storage(name))?;
        for partition in topic.logs.len()..count {
            let log = self
                .keeper
                .create_log(name, partition, self.leader_epoch)
                .map_err(storage(name))?;
            topic.logs.push(log);
        }
        Ok(())
    }

    /// Replaces what clients have set on a topic; the topic's id stays.
    pub(crate) fn set_configs(
        &mut self,
        name: &str,
        mut configs: BTreeMap<String, String>,
        only_check: bool,
    ) -> Result<(), TopicError> {
        let Some(topic) = self.topics.get_mut(name) else {
            return Err(TopicError::Unknown(name.to_string()));
        };
        let id = topic.configs.get(TOPIC_ID).cloned();
        if configs.get(TOPIC_ID) == id.as_ref() {
            configs.remove(TOPIC_ID);
        }
        for (name, value) in &configs {
            settings::check(name, value).map_err(|error| TopicError::Config(error.to_string()))?;
        }
        if only_check {
            return Ok(());
        }
        configs.extend(id.map(|id| (TOPIC_ID.to_string(), id)));
        self.keeper
            .record(&Entry::ConfigsSet {
                name: name.to_string(),
                configs: configs.clone(),
            })
            .map_err(storage(name))?;
        topic.settings = Settings::new(&configs, &self.defaults);
        topic.configs = configs;
        Ok(())
    }

    /// Deletes records below `offset`; -1 stands for all of them. Returns the new start.
    pub(crate) fn delete_records(
        &mut self,
        name: &str,
        partition: i32,
        offset: i64,
    ) -> Result<i64, ResponseError> {
        let log = self
            .log(name, partition)
            .ok_or(ResponseError::UnknownTopicOrPartition)?;
        let start = if offset == -1 { log.end() } else { offset };
        if start < 0 || start > log.end() {
            return Err(ResponseError::OffsetOutOfRange);
        }
        self.move_start(name, partition, start).map_err(|error| {
            tracing::error!(topic = name, partition, error = %error, "cannot delete records");
            ResponseError::KafkaStorageError
        })?;
        Ok(self.log(name, partition).map_or(start, Log::start))
    }

    fn move_start(&mut self, name: &str, partition: i32, start: i64) -> io::Result<()> {
        let Some(log) = self.log(name, partition) else {
            return Ok(());
        };
        if start <= log.start() {
            return Ok(());
        }
        self.keeper.record(&Entry::LogStart {
            name: name.to_string(),
            partition: usize::try_from(partition).unwrap_or_default(),
            offset: start,
        })?;
        match self.log_mut(name, partition) {
            Some(log) => log.delete_before(start),
            None => Ok(()),
        }
    }

    /// Deletes what retention no longer keeps.
    pub(crate) fn retain(&mut self, now_ms: i64) {
        let mut moves = Vec::new();
        for (name, topic) in &mut self.topics {
            let oldest = topic
                .settings
                .retention_ms
                .map(|age| now_ms.saturating_sub(age));
            for (log, partition) in topic.logs.iter_mut().zip(0i32..) {
                log.expire_producers(now_ms);
                if let Some(start) = log.retained_start(topic.settings.retention_bytes, oldest) {
                    moves.push((name.clone(), partition, start));
                }
            }
        }
        for (name, partition, start) in moves {
            if let Err(error) = self.move_start(&name, partition, start) {
                tracing::warn!(topic = name, partition, %error, "cannot apply retention");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_kafka() {
        for (name, good) in [
            ("orders", true),
            ("a.b_c-D9", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("ä", false),
        ] {
            assert_eq!(is_valid_name(name), good, "{name}");
        }
        assert!(!is_valid_name(&"x".repeat(250)));
    }
}
