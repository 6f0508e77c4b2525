//! From the block document to what the machine and the app client are told.

use std::sync::Arc;
use std::time::Duration;

use millrace_core::contract::app::{CallContext, ContentMode, EmptyBody, RequestMode};
use millrace_core::contract::block::{
    self, Block, ContentType, ContractMode, DrainRevoke, InputSource, OnDeadLetter, OrderedResults,
    OversizedDeadLetter, OversizedRequest, RequestKind,
};
use millrace_core::intake::Settings;
use millrace_core::intake::settings::{Guarantee, Names, OnDataLoss, Parking, Push};
use millrace_core::lanes::Ordering;
use millrace_core::limits;
use millrace_core::rules::Rules;
use millrace_core::token::ReleaseId;
use millrace_core::window::Concurrency;
use millrace_core::{batcher, breaker, fate};

/// What the machine is told. `batch_max` is the most events that the app takes at once, if it
/// says so; `secret` is random.
pub(crate) fn intake(
    block: &Block,
    names: Names,
    in_flight_bytes_max: u64,
    batch_max: Option<usize>,
    secret: [u8; 16],
) -> Settings {
    let delivery = &block.delivery;
    let contract = &block.app.contract;
    Settings {
        names,
        guarantee: match delivery.guarantee {
            block::Guarantee::AtLeastOnce => Guarantee::AtLeastOnce,
            block::Guarantee::ExactlyOnce => Guarantee::ExactlyOnce {
                interval: delivery.transaction.interval,
                records: delivery.transaction.records,
            },
        },
        ordering: ordering(block),
        window: delivery.window,
        commit_interval: delivery.commit_interval,
        commit_records: delivery.commit_records,
        lease: delivery.lease,
        drain_revoke: match delivery.drain_revoke {
            DrainRevoke::Auto => delivery.session_timeout / 2,
            DrainRevoke::After(after) => after,
        },
        in_flight_max: size(block.flow.max_in_flight),
        in_flight_bytes_max: size(in_flight_bytes_max),
        concurrency: match block.flow.concurrency {
            block::Concurrency::Adaptive => Concurrency::Adaptive {
                max: contract.max_in_flight,
            },
            block::Concurrency::Fixed(n) => Concurrency::Fixed(n),
        },
        batch: match contract.request {
            RequestKind::Single => batcher::Settings::SINGLE,
            RequestKind::Batch => batcher::Settings {
                records_max: size(block.batch.max_records).min(batch_max.unwrap_or(usize::MAX)),
                bytes_max: size(block.batch.max_bytes),
                linger: block.batch.linger,
                per_lane_max: size(block.batch.max_per_lane),
                target_p99: block.batch.adaptive.then_some(block.batch.target_p99),
            },
        },
        tolerate_reordering: block.batch.ordered_results == OrderedResults::Tolerate,
        retry: retry(block),
        breaker: breaker::Settings {
            failure_ratio: block.breaker.failure_ratio,
            window: block.breaker.window,
            requests_min: block.breaker.min_requests,
            open_min: block.breaker.open_min,
            open_max: block.breaker.open_max,
            storm_ratio: block.storm_guard.ratio,
            storm_window: block.storm_guard.window,
            storm_records_min: u32::try_from(block.storm_guard.min_records).unwrap_or(u32::MAX),
        },
        call_timeout: contract.timeout,
        request_bytes_max: size(block.app.max_request_bytes),
        ttl: block.input.ttl,
        on_data_loss: match &block.input.source {
            InputSource::Kafka(kafka) => data_loss(kafka.on_data_loss),
            InputSource::EventHubs(hub) => data_loss(hub.on_data_loss),
        },
        parking: (block.dead_letter.on_dead_letter == OnDeadLetter::ParkKey).then_some(Parking {
            ttl: block.dead_letter.park_ttl,
            lanes_max: limits::LEDGER_PARKED_MAX,
        }),
        truncate_dead_letters: block.dead_letter.oversized == OversizedDeadLetter::Truncate,
        stall_after: limits::STALL_AFTER,
        push: (contract.mode == ContractMode::Push).then_some(Push {
            correlate: block.app.push.correlate,
            secret,
        }),
        rules: Rules::ALL,
    }
}

/// `delivery.ordering`.
pub(crate) fn ordering(block: &Block) -> Ordering {
    match block.delivery.ordering {
        block::Ordering::Key => Ordering::Key,
        block::Ordering::Partition => Ordering::Partition,
        block::Ordering::None => Ordering::None,
    }
}

/// What the app client is told.
pub(crate) fn calls(block: &Block, release: &ReleaseId, cluster: &str) -> CallContext {
    let app = &block.app;
    CallContext {
        path: app.path.clone(),
        release: release.as_str().to_owned(),
        max_attempts: block.retry.max_attempts.unwrap_or(0),
        forward_headers: app.forward_headers.clone(),
        all_headers: app.all_headers,
        empty_body: match app.contract.empty_body {
            block::EmptyBody::Error => EmptyBody::Error,
            block::EmptyBody::Filter => EmptyBody::Filter,
            block::EmptyBody::Emit => EmptyBody::Emit,
        },
        request: match app.contract.request {
            RequestKind::Single => RequestMode::Single,
            RequestKind::Batch => RequestMode::Batch,
        },
        content: match (app.contract.content, app.contract.structured) {
            (block::Content::Raw, _) => ContentMode::Raw,
            (block::Content::CloudEvents, false) => ContentMode::Binary,
            (block::Content::CloudEvents, true) => ContentMode::Structured,
        },
        cluster: cluster.to_owned(),
        push: app.contract.mode == ContractMode::Push,
        content_type_always: app.contract.content_type == ContentType::Always,
        max_request_bytes: size(app.max_request_bytes),
        max_response_bytes: size(app.max_response_bytes),
    }
}

/// Names that records carry.
pub(crate) fn names(block: &Block, release: &ReleaseId, pod: &str, cluster: &str) -> Names {
    Names {
        release: release.clone(),
        block: block.identity.name().into(),
        pod: pod.into(),
        group: block.identity.group(release.as_str()).into(),
        cluster: cluster.into(),
        proxy_version: Arc::from(env!("CARGO_PKG_VERSION")),
    }
}

fn retry(block: &Block) -> fate::Settings {
    let retry = &block.retry;
    fate::Settings {
        attempts_max: retry.max_attempts.unwrap_or(0),
        age_max: retry.max_age,
        backoff_initial: retry.backoff_initial,
        backoff_multiplier: retry.backoff_multiplier,
        backoff_max: retry.backoff_max.max(Duration::from_millis(1)),
        respect_retry_after: retry.respect_retry_after,
        on_exhausted: match &retry.on_exhausted {
            block::OnExhausted::DeadLetter => fate::OnExhausted::DeadLetter,
            block::OnExhausted::Drop(reason) => fate::OnExhausted::Drop {
                reason: reason.clone(),
            },
            block::OnExhausted::Block => fate::OnExhausted::Block,
        },
        oversized: match block.app.oversized {
            OversizedRequest::DeadLetter => fate::Oversized::DeadLetter,
            OversizedRequest::Block => fate::Oversized::Block,
        },
    }
}

fn data_loss(policy: block::OnDataLoss) -> OnDataLoss {
    match policy {
        block::OnDataLoss::Stop => OnDataLoss::Stop,
        block::OnDataLoss::EarliestWithAlarm => OnDataLoss::Earliest,
        block::OnDataLoss::LatestWithAlarm => OnDataLoss::Latest,
    }
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
