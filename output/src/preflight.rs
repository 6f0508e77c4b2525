//! Before the first record: the broker is reached, the topics exist, their limits are known
//! (D-S1, D-D4, D-O3).
//!
//! Invariant: nothing here gives up. What is missing is named with its remedy, in the log and in
//! `/readyz`, and looked for again.

use std::time::Duration;

use millrace_connectors::StoreError;
use millrace_connectors::kafka::Admin;
use millrace_core::contract::block::{Block, ContractMode, InputSource};
use millrace_core::store::Limits;
use millrace_service::admin::{Health, Readiness};
use tracing::{info, warn};

use crate::connection::Broker;

/// First and longest pause between two looks.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What Kafka allows where nobody says otherwise.
const MESSAGE_BYTES_USUAL: u64 = 1_048_588;

/// Why the output cannot start yet, with what to do about it.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error(
        "the brokers {bootstrap} of connections.{connection} cannot be reached ({source}); check that they run, that the address is right, and tls and sasl"
    )]
    Broker {
        connection: String,
        bootstrap: String,
        source: StoreError,
    },
    #[error(
        "the brokers {bootstrap} of connections.{connection} refuse us ({source}); check user, password, certificate and rights of this connection"
    )]
    Rights {
        connection: String,
        bootstrap: String,
        source: StoreError,
    },
    #[error(
        "topic {topic} ({key}) does not exist on connections.{connection}; create it, or set topics.create: Missing"
    )]
    Topic {
        topic: String,
        key: &'static str,
        connection: String,
    },
    #[error(
        "topic {topic} ({key}) cannot be created on connections.{connection} ({source}); create it yourself, or grant the right to"
    )]
    NotCreated {
        topic: String,
        key: &'static str,
        connection: String,
        source: StoreError,
    },
}

/// Waits until everything is there.
pub(crate) async fn wait(admin: &Admin, block: &Block, broker: &Broker, health: &Health) -> Limits {
    let (mut pause, longest) = LOOK_AGAIN;
    let mut told = String::new();
    loop {
        health.progressed();
        match look(admin, block, broker).await {
            Ok(limits) => {
                info!(
                    topic = broker.output.topic,
                    dead_letter = broker.output.dead_letter,
                    record_bytes_max = limits.output,
                    "the output topics are there"
                );
                return limits;
            }
            Err(missing) => {
                let text = missing.to_string();
                health.set(Readiness::Waiting(text.clone()));
                if text == told {
                    tracing::debug!("{text}");
                } else {
                    warn!("{text}; looking again until it is so");
                    told = text;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

async fn look(admin: &Admin, block: &Block, broker: &Broker) -> Result<Limits, Missing> {
    let output = &broker.output;
    let refused = |source| match source {
        StoreError::Unavailable(_) => Missing::Broker {
            connection: broker.name.clone(),
            bootstrap: broker.settings.bootstrap.join(","),
            source,
        },
        StoreError::Refused(_) => Missing::Rights {
            connection: broker.name.clone(),
            bootstrap: broker.settings.bootstrap.join(","),
            source,
        },
    };
    // Nothing is verified before there is a candidate, so that topic may be missing.
    let verification = (output.verification.as_str(), "output.kafka.verification");
    let mut needed = vec![
        (output.topic.as_str(), "output.kafka.topic"),
        (output.dead_letter.as_str(), "output.kafka.deadLetter"),
    ];
    let copies = match block.app.contract.mode {
        ContractMode::Push => &block.app.push.copies[..],
        ContractMode::Reply => &[],
    };
    needed.extend(copies.iter().map(|copy| (copy.as_str(), "app.push.copies")));
    let wanted: Vec<_> = needed.iter().copied().chain([verification]).collect();
    let names: Vec<&str> = wanted.iter().map(|(topic, _)| *topic).collect();
    let mut known = admin.topics(&names).await.map_err(refused)?;
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(topic, _)| !known.contains_key(*topic))
        .collect();
    if !missing.is_empty() && block.creates_topics(block.output_connection()) {
        let partitions = i32::try_from(block.topics.partitions).unwrap_or(i32::MAX);
        let dead_letter_partitions = input_partitions(admin, block).await.unwrap_or(partitions);
        for (topic, key) in &missing {
            let partitions = if *topic == output.dead_letter {
                dead_letter_partitions
            } else {
                partitions
            };
            admin
                .create_topics(&[(topic, partitions)])
                .await
                .map_err(|source| Missing::NotCreated {
                    topic: (*topic).to_owned(),
                    key,
                    connection: broker.name.clone(),
                    source,
                })?;
            info!(topic, partitions, "created a topic");
        }
        known = admin.topics(&names).await.map_err(refused)?;
    }
    for (topic, key) in &needed {
        if !known.contains_key(*topic) {
            return Err(Missing::Topic {
                topic: (*topic).to_owned(),
                key,
                connection: broker.name.clone(),
            });
        }
    }
    let existing: Vec<&str> = names
        .into_iter()
        .filter(|topic| known.contains_key(*topic))
        .collect();
    let told = admin.max_message_bytes(&existing).await.map_err(refused)?;
    let limit = |topic: &str| told.get(topic).copied().unwrap_or(MESSAGE_BYTES_USUAL);
    let ours = output.max_bytes.unwrap_or(u64::MAX);
    Ok(Limits {
        output: copies
            .iter()
            .map(|copy| limit(copy))
            .fold(limit(&output.topic), u64::min)
            .min(ours),
        dead_letter: limit(&output.dead_letter).min(ours),
        verification: limit(&output.verification).min(ours),
        verification_partitions: known
            .get(&output.verification)
            .map_or(0, |topic| topic.partitions),
    })
}

/// Partitions of the first input topic, where it can be seen over this connection: the
/// dead-letter topic gets as many.
async fn input_partitions(admin: &Admin, block: &Block) -> Option<i32> {
    let InputSource::Kafka(input) = &block.input.source else {
        return None;
    };
    if input.connection != block.output.sink.connection() {
        return None;
    }
    let topic = input.topics.first()?;
    Some(admin.topics(&[topic]).await.ok()?.get(topic)?.partitions)
}
