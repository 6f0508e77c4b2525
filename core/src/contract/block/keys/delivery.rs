//! Keys of guarantees, flow, batches, failures and size.

use super::Absent::{Depends, Json, Nothing};
use super::Form::Any;
use super::Kind::{
    Duration, Flag, Number, Section, Size, SizeOrPercentage, Text, Whole, Word, WordOr,
};
use super::{Key, Zero, key};
use crate::limits::WINDOW_POSITIONS_MAX;

pub(super) const KEYS: &[Key] = &[
    key("delivery", Section, Nothing, "Guarantees, and the times that uphold them."),
    key("delivery.guarantee", Word(&["AtLeastOnce", "ExactlyOnce"]), Json("\"AtLeastOnce\""), "Whether a crash may repeat results. ExactlyOnce needs Kafka on both sides over one connection and readers with isolation.level=read_committed.").rule("D-E1"),
    key("delivery.ordering", Word(&["Key", "Partition", "None"]), Json("\"Key\""), "What keeps its order: events of one key, of one partition, or nothing.").rule("D-L1"),
    key("delivery.window", Whole("positions", 1, WINDOW_POSITIONS_MAX), Json("5000"), "W: how far beyond the last commit events are answered; what a crash may repeat.").rule("R5"),
    key("delivery.commitInterval", Duration(Zero::Refused), Json("\"1s\""), "Longest time between two commits.").rule("D-W2"),
    key("delivery.commitRecords", Whole("events", 1, WINDOW_POSITIONS_MAX), Json("2500"), "Terminal events after which a commit is made at once.").rule("D-W2"),
    key("delivery.sessionTimeout", Duration(Zero::Refused), Depends("20s; ExactlyOnce: 10s; preset EventHubs: 30s"), "After which silence the group gives the partitions to others.").rule("D-G2"),
    key("delivery.lease", Duration(Zero::Refused), Depends("8s; preset EventHubs: 10s"), "L: how long one commit permits live answers; at-least-once only.").rule("R4"),
    key("delivery.messageTimeout", Duration(Zero::Refused), Depends("7s; preset EventHubs: 15s"), "How long the producer tries one record before it reports.").rule("R4"),
    key("delivery.drainRevoke", WordOr(&["Auto"], &Duration(Zero::Allowed)), Json("\"Auto\""), "How long a revoke waits for acknowledgements; Auto: min(2 × app p99 + 2 s, sessionTimeout / 2).").rule("D-G4"),
    key("delivery.transaction", Section, Nothing, "Transactions, with ExactlyOnce."),
    key("delivery.transaction.interval", Duration(Zero::Refused), Json("\"200ms\""), "Longest time between two transaction commits.").rule("D-E3"),
    key("delivery.transaction.records", Whole("records", 1, 100_000), Json("1000"), "Records after which a transaction is committed at once.").rule("D-E3"),
    key("delivery.transaction.timeout", Duration(Zero::Refused), Json("\"30s\""), "After which the broker aborts a transaction.").rule("D-E3"),

    key("flow", Section, Nothing, "How much may be open at once."),
    key("flow.maxInFlight", Whole("events", 1, 1_000_000), Json("1024"), "Events that are read and not yet terminal.").rule("D-C1"),
    key("flow.maxInFlightBytes", SizeOrPercentage, Json("\"25%\""), "Their bytes; a percentage is of the cgroup's memory limit.").rule("D-C1"),
    key("flow.concurrency", WordOr(&["Adaptive"], &Whole("requests", 1, 4_096)), Json("\"Adaptive\""), "Requests open at the app: found by trying up to app.contract.maxInFlight, or a fixed number.").rule("D-C2"),

    key("batch", Section, Nothing, "How batches are put together, with app.contract.request: Batch."),
    key("batch.maxRecords", Whole("events", 1, 10_000), Json("100"), "Events of one batch.").rule("D-C3"),
    key("batch.maxBytes", Size(1), Json("\"1Mi\""), "Bytes of the events of one batch; one larger event goes alone.").rule("D-C3"),
    key("batch.linger", Duration(Zero::Allowed), Json("\"5ms\""), "How long the first event waits for more while calls are open.").rule("D-C3"),
    key("batch.maxPerLane", Whole("events", 1, 10_000), Json("1"), "Events of one lane in a batch.").rule("D-C3"),
    key("batch.adaptive", Flag, Json("false"), "Whether the size of batches follows the app's latency.").rule("D-C3"),
    key("batch.targetP99", Duration(Zero::Refused), Json("\"1s\""), "The latency that adaptive batches aim at.").rule("D-C3"),
    key("batch.orderedResults", Word(&["Strict", "Tolerate"]), Json("\"Strict\""), "After an item that asks for a retry: discard the later results of its lane, or keep them.").rule("A-B4"),

    key("retry", Section, Nothing, "When a failed event is tried again."),
    key("retry.maxAttempts", Whole("attempts; 0 is unlimited", 0, 1_000_000), Json("5"), "Attempts of one event.").rule("D-R2"),
    key("retry.maxAge", Duration(Zero::Refused), Json("\"10m\""), "Time from the first attempt; survives restarts.").rule("D-W5"),
    key("retry.backoff", Section, Nothing, "Waits between attempts, with full jitter."),
    key("retry.backoff.initial", Duration(Zero::Refused), Json("\"200ms\""), "The first wait."),
    key("retry.backoff.multiplier", Number(1.0, 100.0), Json("2.0"), "From one wait to the next."),
    key("retry.backoff.max", Duration(Zero::Refused), Json("\"30s\""), "The longest wait."),
    key("retry.respectRetryAfter", Flag, Json("true"), "Whether the app's Retry-After counts, up to 5 minutes.").rule("D-B5"),
    key("retry.onExhausted", Word(&["DeadLetter", "Drop", "Block"]), Json("\"DeadLetter\""), "What then: store the event with the reason, forget it, or hold its lane and alert.").rule("D-R3"),
    key("retry.dropReason", Text(Any), Json("\"\""), "Why forgetting is right; required with Drop.").rule("D-R3"),

    key("breaker", Section, Nothing, "When to stop calling the app for a while.").rule("D-B1"),
    key("breaker.failureRatio", Number(0.01, 1.0), Json("0.5"), "Share of failed requests that opens it.").rule("D-B1"),
    key("breaker.window", Duration(Zero::Refused), Json("\"20s\""), "Time over which the share is taken.").rule("D-B1"),
    key("breaker.minRequests", Whole("requests", 1, 1_000_000), Json("20"), "Requests below which it stays closed.").rule("D-B1"),
    key("breaker.openMin", Duration(Zero::Refused), Json("\"5s\""), "Time until the first probe; doubles up to openMax.").rule("D-B1"),
    key("breaker.openMax", Duration(Zero::Refused), Json("\"60s\""), "Longest time between probes.").rule("D-B1"),

    key("stormGuard", Section, Nothing, "When too many events at once would be dead-lettered.").rule("D-B3"),
    key("stormGuard.ratio", Number(0.0, 1.0), Json("0.1"), "Share of would-be dead letters above which they are held.").rule("D-B3"),
    key("stormGuard.window", Duration(Zero::Refused), Json("\"1m\""), "Time over which the share is taken.").rule("D-B3"),
    key("stormGuard.minRecords", Whole("events", 1, u64::MAX), Json("100"), "Would-be dead letters below which it stays quiet.").rule("D-B3"),

    key("deadLetter", Section, Nothing, "What becomes of events that could not be answered."),
    key("deadLetter.onDeadLetter", Word(&["Continue", "ParkKey"]), Json("\"Continue\""), "Whether the lane goes on, or its later events are dead-lettered too.").rule("D-L5"),
    key("deadLetter.parkTtl", Duration(Zero::Refused), Json("\"24h\""), "How long a key stays parked.").rule("D-L5"),
    key("deadLetter.oversized", Word(&["Block", "Truncate"]), Json("\"Block\""), "When the event does not fit even without the error: hold the partition, or cut the value.").rule("D-D5"),
    key("deadLetter.maxRedrives", Whole("times", 0, 1_000), Json("3"), "How often a dead letter may be sent again.").rule("D-D6"),

    key("replicas", Whole("pods", 0, 10_000), Json("1"), "Pods of the live release."),
    key("proxies", Section, Nothing, "The proxies themselves."),
    key("proxies.version", Text(Any), Json("\"\""), "Image tag of the proxies; a change rolls them and is not a release."),
];
