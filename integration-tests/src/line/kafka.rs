//! The frames of the Kafka protocol on a line: where the broker is said to be, errors and
//! throttle times in its answers, requests and answers that never arrive.
//!
//! Invariant: an answer that no edit is about passes as the bytes that the broker sent.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, ResponseKind};
use kafka_protocol::protocol::StrBytes;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

/// No broker of a test sends more at once.
const FRAME_MAX: usize = 256 << 20;

/// How often an edit happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Times {
    /// So many times.
    Count(u64),
    /// Until [`Edits::clear`].
    Always,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// The broker did it, and the answer says that it failed.
    Error(i16),
    /// The broker did it, and the connection ends without an answer.
    LoseAnswer,
    /// The connection ends before the broker hears of it.
    LoseRequest,
}

#[derive(Debug)]
struct Edit {
    api: ApiKey,
    what: What,
    left: Times,
}

/// Requests of one connection that wait for their answer.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<HashMap<i32, (ApiKey, i16)>>);

/// What a line changes, and what it saw.
#[derive(Debug)]
pub struct Edits {
    /// Port of a node, port of the line before it.
    faces: Vec<(u16, u16)>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    edits: Vec<Edit>,
    throttle: Duration,
    requests: HashMap<ApiKey, u64>,
}

impl Edits {
    pub(super) fn new(faces: Vec<(u16, u16)>) -> Self {
        Self {
            faces,
            state: Mutex::new(State::default()),
        }
    }

    /// Answers to these requests say that they failed, although they did not.
    ///
    /// # Panics
    /// If no answer of this kind has a place for an error that is known here.
    pub fn fail(&self, api: ApiKey, error: ResponseError, times: Times) {
        assert!(FAILING.contains(&api), "{api:?} cannot be failed");
        self.add(api, What::Error(error.code()), times);
    }

    /// The connection ends instead of an answer; the broker has done what it was asked.
    pub fn lose_answer(&self, api: ApiKey, times: Times) {
        self.add(api, What::LoseAnswer, times);
    }

    /// The connection ends instead of a request.
    pub fn lose_request(&self, api: ApiKey, times: Times) {
        self.add(api, What::LoseRequest, times);
    }

    /// Every answer says that its client is throttled, and its next request is not read for so
    /// long.
    pub fn throttle(&self, length: Duration) {
        self.state().throttle = length;
    }

    /// Nothing is changed any more.
    pub fn clear(&self) {
        let mut state = self.state();
        state.edits.clear();
        state.throttle = Duration::ZERO;
    }

    /// How many requests of this kind there were.
    pub fn requests(&self, api: ApiKey) -> u64 {
        self.state().requests.get(&api).copied().unwrap_or(0)
    }

    /// Whether every edit that happens a number of times has happened so often.
    pub fn are_done(&self) -> bool {
        let state = self.state();
        state.edits.iter().all(|edit| edit.left == Times::Always)
    }

    fn add(&self, api: ApiKey, what: What, left: Times) {
        self.state().edits.push(Edit { api, what, left });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub(super) fn throttled(&self) -> Duration {
        self.state().throttle
    }

    /// A request on its way to the broker; `None`: the connection ends.
    pub(super) fn request(&self, asked: &Asked, frame: Bytes) -> Option<Bytes> {
        let mut head = frame.get(4..12)?;
        let (key, version, correlation) = (head.get_i16(), head.get_i16(), head.get_i32());
        let Ok(api) = ApiKey::try_from(key) else {
            return Some(frame);
        };
        let mut state = self.state();
        *state.requests.entry(api).or_default() += 1;
        if state.take(api, |what| what == What::LoseRequest).is_some() {
            return None;
        }
        drop(state);
        let mut waiting = asked.0.lock().expect("no holder panics");
        waiting.insert(correlation, (api, version));
        Some(frame)
    }

    /// An answer on its way to the client; `None`: the connection ends.
    pub(super) fn answer(&self, asked: &Asked, frame: Bytes) -> Option<Bytes> {
        let correlation = frame.get(4..8)?.get_i32();
        let waiting = asked
            .0
            .lock()
            .expect("no holder panics")
            .remove(&correlation);
        let Some((api, version)) = waiting else {
            return Some(frame);
        };
        let mut state = self.state();
        let edit = state.take(api, |what| what != What::LoseRequest);
        let throttle = state.throttle;
        drop(state);
        if edit == Some(What::LoseAnswer) {
            return None;
        }
        let locates = matches!(
            api,
            ApiKey::Metadata | ApiKey::FindCoordinator | ApiKey::DescribeCluster
        );
        if edit.is_none() && throttle.is_zero() && !locates {
            return Some(frame);
        }
        let header = 8 + usize::from(api.response_header_version(version) >= 1);
        let mut body = frame.slice(header..);
        // The broker answers a version that it does not know in the oldest form.
        let Ok(mut answer) = ResponseKind::decode(api, &mut body, version) else {
            return Some(frame);
        };
        self.relocate(&mut answer);
        if let Some(What::Error(code)) = edit {
            fail(&mut answer, code);
        }
        if let Some(time) = throttle_time(&mut answer)
            && !throttle.is_zero()
        {
            *time = i32::try_from(throttle.as_millis()).expect("a short time");
        }
        let mut out = BytesMut::new();
        out.put_slice(&frame[..header]);
        answer
            .encode(&mut out, version)
            .expect("what was decoded can be encoded");
        let length = u32::try_from(out.len() - 4).expect("a frame");
        out[..4].copy_from_slice(&length.to_be_bytes());
        Some(out.freeze())
    }

    /// Nodes are where their lines are.
    fn relocate(&self, answer: &mut ResponseKind) {
        let face = |host: &mut StrBytes, port: &mut i32| {
            let face = self
                .faces
                .iter()
                .find(|(real, _)| i32::from(*real) == *port);
            if let Some((_, line)) = face {
                *host = StrBytes::from_static_str("127.0.0.1");
                *port = i32::from(*line);
            }
        };
        match answer {
            ResponseKind::Metadata(r) => {
                r.brokers
                    .iter_mut()
                    .for_each(|b| face(&mut b.host, &mut b.port));
            }
            ResponseKind::DescribeCluster(r) => {
                r.brokers
                    .iter_mut()
                    .for_each(|b| face(&mut b.host, &mut b.port));
            }
            ResponseKind::FindCoordinator(r) => {
                face(&mut r.host, &mut r.port);
                r.coordinators
                    .iter_mut()
                    .for_each(|c| face(&mut c.host, &mut c.port));
            }
            _ => {}
        }
    }
}

impl State {
    /// The first edit of this kind that is due, counted.
    fn take(&mut self, api: ApiKey, fits: impl Fn(What) -> bool) -> Option<What> {
        let due =
            |edit: &&mut Edit| edit.api == api && fits(edit.what) && edit.left != Times::Count(0);
        let edit = self.edits.iter_mut().find(due)?;
        let what = edit.what;
        if let Times::Count(left) = &mut edit.left {
            *left -= 1;
        }
        self.edits.retain(|edit| edit.left != Times::Count(0));
        Some(what)
    }
}

/// The kinds that [`fail`] knows.
const FAILING: &[ApiKey] = &[
    ApiKey::Produce,
    ApiKey::Fetch,
    ApiKey::OffsetCommit,
    ApiKey::Heartbeat,
    ApiKey::JoinGroup,
    ApiKey::SyncGroup,
    ApiKey::FindCoordinator,
    ApiKey::InitProducerId,
    ApiKey::AddPartitionsToTxn,
    ApiKey::AddOffsetsToTxn,
    ApiKey::TxnOffsetCommit,
    ApiKey::EndTxn,
];

/// Puts the error wherever the answer has a place for it.
fn fail(answer: &mut ResponseKind, code: i16) {
    match answer {
        ResponseKind::Produce(r) => {
            let topics = r.responses.iter_mut();
            for partition in topics.flat_map(|t| &mut t.partition_responses) {
                partition.error_code = code;
                partition.base_offset = -1;
            }
        }
        ResponseKind::Fetch(r) => {
            for partition in r.responses.iter_mut().flat_map(|t| &mut t.partitions) {
                partition.error_code = code;
                partition.records = None;
            }
        }
        ResponseKind::OffsetCommit(r) => {
            let partitions = r.topics.iter_mut().flat_map(|t| &mut t.partitions);
            partitions.for_each(|p| p.error_code = code);
        }
        ResponseKind::TxnOffsetCommit(r) => {
            let partitions = r.topics.iter_mut().flat_map(|t| &mut t.partitions);
            partitions.for_each(|p| p.error_code = code);
        }
        ResponseKind::AddPartitionsToTxn(r) => {
            let topics = r.results_by_topic_v3_and_below.iter_mut();
            let partitions = topics.flat_map(|t| &mut t.results_by_partition);
            partitions.for_each(|p| p.partition_error_code = code);
        }
        ResponseKind::FindCoordinator(r) => {
            r.error_code = code;
            r.coordinators.iter_mut().for_each(|c| c.error_code = code);
        }
        ResponseKind::Heartbeat(r) => r.error_code = code,
        ResponseKind::JoinGroup(r) => r.error_code = code,
        ResponseKind::SyncGroup(r) => r.error_code = code,
        ResponseKind::InitProducerId(r) => r.error_code = code,
        ResponseKind::AddOffsetsToTxn(r) => r.error_code = code,
        ResponseKind::EndTxn(r) => r.error_code = code,
        other => unreachable!("refused when it was scripted: {other:?}"),
    }
}

/// Where the answer says how long to wait.
fn throttle_time(answer: &mut ResponseKind) -> Option<&mut i32> {
    Some(match answer {
        ResponseKind::Produce(r) => &mut r.throttle_time_ms,
        ResponseKind::Fetch(r) => &mut r.throttle_time_ms,
        ResponseKind::ListOffsets(r) => &mut r.throttle_time_ms,
        ResponseKind::Metadata(r) => &mut r.throttle_time_ms,
        ResponseKind::OffsetCommit(r) => &mut r.throttle_time_ms,
        ResponseKind::OffsetFetch(r) => &mut r.throttle_time_ms,
        ResponseKind::FindCoordinator(r) => &mut r.throttle_time_ms,
        ResponseKind::JoinGroup(r) => &mut r.throttle_time_ms,
        ResponseKind::SyncGroup(r) => &mut r.throttle_time_ms,
        ResponseKind::Heartbeat(r) => &mut r.throttle_time_ms,
        ResponseKind::InitProducerId(r) => &mut r.throttle_time_ms,
        ResponseKind::AddPartitionsToTxn(r) => &mut r.throttle_time_ms,
        ResponseKind::AddOffsetsToTxn(r) => &mut r.throttle_time_ms,
        ResponseKind::TxnOffsetCommit(r) => &mut r.throttle_time_ms,
        ResponseKind::EndTxn(r) => &mut r.throttle_time_ms,
        _ => return None,
    })
}

/// One whole frame with its length; `None` at the end of the connection.
pub(super) async fn read_frame(from: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Option<Bytes> {
    loop {
        if let Some(mut length) = buffer.get(..4) {
            let length = usize::try_from(length.get_u32()).expect("a wide machine");
            assert!(length <= FRAME_MAX, "{length} bytes are no Kafka frame");
            if buffer.len() >= 4 + length {
                return Some(buffer.split_to(4 + length).freeze());
            }
            buffer.reserve(4 + length - buffer.len());
        }
        buffer.reserve(4 << 10);
        match from.read_buf(buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}
