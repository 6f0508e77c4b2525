//! The start-up test of exactly-once: brokers that take offsets from a forged group generation
//! would take them from a zombie too (D-E2).
//!
//! Invariant: no result is produced in exactly-once before the test has passed.

use std::time::Duration;

use millrace_connectors::kafka::{self, TransactionSettings};
use millrace_core::contract::block::Block;
use millrace_core::position::Partition;
use millrace_service::admin::{Health, Readiness};
use millrace_service::telemetry::chain;
use tracing::{info, warn};

use crate::connection::Broker;

/// Pause between two tries.
const AGAIN: Duration = Duration::from_secs(2);

/// How long one try may take before the probes are told that something moves.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Waits until the brokers have refused a forged generation.
pub(crate) async fn proved(
    block: &Block,
    broker: &Broker,
    transactions: &TransactionSettings,
    health: &Health,
) {
    let probe = format!("{}.probe", block.identity.registry_group());
    let transactions = TransactionSettings {
        id: format!("{}.probe", transactions.id),
        ..transactions.clone()
    };
    let mut told = String::new();
    loop {
        let partition = Partition::new(broker.output.topic.as_str(), 0);
        let mut test = std::pin::pin!(kafka::prove_fencing(
            &broker.settings,
            transactions.clone(),
            &probe,
            partition,
        ));
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let tested = loop {
            tokio::select! {
                tested = &mut test => break tested,
                _ = heartbeat.tick() => health.progressed(),
            }
        };
        let text = match tested {
            Ok(()) => {
                info!("the brokers refuse a forged group generation: exactly-once holds here");
                return;
            }
            Err(error) => chain(&error).to_string(),
        };
        health.set(Readiness::Waiting(text.clone()));
        if text != told {
            warn!("{text}; trying again");
            told = text;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
