//! Every cap of the system, with its reason (architecture invariant 14: no cap, no design).

use std::time::Duration;

/// Records that one fetch hands to the machine at most; keeps one turn of the driver short.
pub const FETCH_RECORDS_MAX: usize = 512;

/// Bytes after which a fetch is handed over although more records wait. One larger record
/// passes alone.
pub const FETCH_BYTES_MAX: usize = 1 << 20;

/// Largest `delivery.window`: keeps the commit metadata below [`COMMIT_METADATA_BYTES_MAX`] (E2).
pub const WINDOW_POSITIONS_MAX: u64 = 16_384;

/// Positions that a commit names at once while it is looked for an event that kills the pod
/// (D-B7): enough that a window takes few commits, few enough to go one at a time afterwards.
pub const POD_CRASH_GROUP: u64 = 64;

/// Largest commit metadata string (D-W4, E2): brokers allow 4,096 bytes by default.
pub const COMMIT_METADATA_BYTES_MAX: usize = 4_000;

/// Events whose attempts a ledger carries (D-W4).
pub const LEDGER_ATTEMPTS_MAX: usize = 16;

/// Parked lanes that a ledger carries (D-W4).
pub const LEDGER_PARKED_MAX: usize = 32;

/// Largest publish frame (P-2).
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// Bytes of results that the input may send before the output gives more (P-2, kind 6).
pub const PUBLISH_CREDIT_BYTES: u64 = 8 << 20;

/// Bytes of results that one frame collects before the next one starts; keeps the output busy
/// while the input still encodes.
pub const RESULTS_FRAME_BYTES: usize = 256 << 10;

/// Events whose results leave at once although a frame has just left.
pub const COLLECT_EVENTS: usize = 256;

/// How long fewer results wait for company after a frame.
pub const COLLECT_TIME: Duration = Duration::from_millis(1);

/// Headers of the app's answer that are read (A-S4); more make the answer malformed.
pub const ANSWER_HEADERS_MAX: usize = 100;

/// Bytes of `Millrace-Headers` and of the `Millrace-Header-*` together (A-S2).
pub const FORWARDED_HEADER_BYTES_MAX: usize = 8 << 10;

/// Bytes of an error message in a dead letter (D-D1).
pub const DEAD_LETTER_MESSAGE_BYTES_MAX: usize = 1 << 10;

/// Bytes of an error body in a dead letter (D-D1).
pub const DEAD_LETTER_BODY_BYTES_MAX: usize = 4 << 10;

/// Bytes of the value that a truncated dead letter keeps (D-D5, `deadLetter.oversized: Truncate`).
pub const DEAD_LETTER_TRUNCATED_VALUE_BYTES: usize = 64 << 10;

/// Earlier dead-letterings that `millrace-dlq-prev` lists (D-D1).
pub const DEAD_LETTER_PREVIOUS_MAX: usize = 8;

/// Longest wait that a `Retry-After` can ask for (D-B5 with retry.respectRetryAfter).
pub const RETRY_AFTER_SECONDS_MAX: u64 = 300;

/// Malformed success bodies in a row that make an app misconfigured (class table of delivery.md).
pub const MALFORMED_IN_A_ROW_MAX: u32 = 10;

/// Largest block document that is read.
pub const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// How long a watermark may stand still although there is work and no pause (D-H2): longer than
/// any call, and well before anybody is woken up by the lag.
pub const STALL_AFTER: Duration = Duration::from_secs(5 * 60);

/// Frames that wait for one publish connection on either side; credit bounds their bytes.
pub const PUBLISH_FRAMES_QUEUED_MAX: usize = 1_024;

/// Commands that wait for the poll thread of a source.
pub const SOURCE_COMMANDS_QUEUED_MAX: usize = 4_096;

/// Happenings of a source that wait for the driver; each holds at most one fetch.
pub const SOURCE_HAPPENINGS_QUEUED_MAX: usize = 4;

/// Bytes of a train: records of one lane that enter the producer together. Well below a produce
/// batch (1,000,000 bytes), so that they are stored or expire together (P-3).
pub const TRAIN_BYTES_MAX: usize = 256 << 10;

/// Records of a train.
pub const TRAIN_RECORDS_MAX: usize = 1_000;

/// Topics beside the configured ones that apps may name during one life of the output; each
/// has counters.
pub const NAMED_TOPICS_MAX: usize = 1_000;

/// Events whose stored records the output remembers after a partial failure, so that only the
/// failed ones are sent again (D-O2). Beyond it events are sent again as a whole.
pub const PARTLY_STORED_MAX: usize = 1_024;

/// Calls of push mode that may be announced at one time; far above `app.contract.maxInFlight`.
pub const PUSH_CALLS_MAX: usize = 8_192;

/// Results that the app may have on their way to the output at one time; each holds a connection.
pub const PUSHES_OPEN_MAX: usize = 256;

/// Bytes of pushed results that are read or wait to be stored. One larger result passes alone.
pub const PUSH_BYTES_MAX: usize = 32 << 20;

/// Bytes of the value of one record of the verification topic that are written and read (J1).
/// A larger answer is written as its fingerprint. What brokers take by default.
pub const EVIDENCE_RECORD_BYTES_MAX: usize = 1_000_000;

/// Depth of the JSON values that are compared (J2); deeper ones are compared as bytes.
pub const EVIDENCE_JSON_DEPTH_MAX: usize = 64;

/// Source partitions that one comparison follows (J1): the most that a document may ask for.
pub const EVIDENCE_PARTITIONS_MAX: usize = 10_000;

/// Events of one partition that wait for the other release's answer (J1).
pub const EVIDENCE_WAITING_EVENTS_MAX: usize = 8_192;

/// Bytes of all answers that wait for their counterpart (J1), shared evenly by the partitions.
pub const EVIDENCE_WAITING_BYTES_MAX: usize = 128 << 20;

/// Words of 64 positions in which settled events of one partition are remembered, so that
/// repeats are recognised (J1): no crash repeats more than [`WINDOW_POSITIONS_MAX`].
pub const EVIDENCE_SETTLED_WORDS_MAX: usize = 256;

/// Numeric fields whose drift is followed (J5).
pub const EVIDENCE_FIELDS_MAX: usize = 64;

/// Bytes of a path in evidence; a field with a longer one is not followed (J5).
pub const EVIDENCE_PATH_BYTES_MAX: usize = 256;

/// Bins of one histogram (J5): beyond it neighbours are merged.
pub const EVIDENCE_BINS_MAX: usize = 1_024;

/// Labels that the confusion matrix tells apart (J2).
pub const EVIDENCE_LABELS_MAX: usize = 32;

/// Disagreements that are kept (J6).
pub const EVIDENCE_WORST_MAX: usize = 50;

/// Fields that one kept disagreement shows (J6).
pub const EVIDENCE_SHOWN_FIELDS_MAX: usize = 16;

/// Bytes of one shown value, label or name (J6).
pub const EVIDENCE_SHOWN_BYTES_MAX: usize = 128;

/// Bytes of the evidence document (J8).
pub const EVIDENCE_DOCUMENT_BYTES_MAX: usize = 64 << 10;

/// How long the live release may be too slow before its candidate is paused (J9).
pub const GUARD_SLOW_FOR: Duration = Duration::from_secs(60);

/// How long it must be quiet before the candidate goes on (J9).
pub const GUARD_QUIET_FOR: Duration = Duration::from_secs(5 * 60);

/// Which pause is the last one: the comparison is then inconclusive (J9).
pub const GUARD_PAUSES_MAX: u32 = 3;

/// Time without samples after which the guard knows nothing of what was before (J9).
pub const GUARD_SAMPLE_GAP_MAX: Duration = Duration::from_secs(60);

/// Bytes of an auth token: brokers take half a megabyte of authentication, proxies in front of
/// them far less.
pub const AUTH_TOKEN_BYTES_MAX: usize = 64 << 10;

/// Bytes of the answer of a token endpoint, which may hold more than the token.
pub const TOKEN_ANSWER_BYTES_MAX: usize = 256 << 10;

/// How long a token endpoint may take to answer, connecting included.
pub const TOKEN_ANSWER_MAX: Duration = Duration::from_secs(10);

/// Longest life of an auth token that is believed; a longer one ends then for us.
pub const AUTH_TOKEN_LIFE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Bounds of the pause before a token endpoint is asked again after a failure (D-P2): it doubles
/// from the first to the last, and each pause lies between its half and all of it.
pub const AUTH_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Characters of what a token endpoint says about a refusal.
pub const TOKEN_REFUSAL_CHARS_MAX: usize = 200;
