//! `/v1/tap`: what passes the app right now, as server-sent events, for somebody who watches
//! (D-H3).
//!
//! Invariant: it costs one load per call while nobody watches, and never holds up a call: who
//! cannot follow misses events, and is told how many.
//! Invariant: keys and values are shown only if they are asked for and `admin.tapPayloads` allows
//! it; without that not even copies of them are made.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use millrace_core::intake::io::{Call, Called};
use millrace_core::outcome::{Item, Outcome, Output};
use millrace_service::shutdown::Shutdown;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, interval};

/// Watchers at once; one more is refused.
pub(crate) const WATCHERS_MAX: usize = 4;
/// Events that wait for a watcher; then the oldest are missed.
const SEEN_QUEUED_MAX: usize = 256;
/// Lines that wait for a slow connection.
const LINES_QUEUED_MAX: usize = 16;
/// Bytes of a key or value that are shown.
const SHOWN_BYTES_MAX: usize = 1 << 10;
/// Results of one event that are shown.
const RESULTS_SHOWN_MAX: usize = 10;
/// Events a second that a watcher gets unless it says otherwise.
const RATE_DEFAULT: u32 = 10;
/// Events a second that a watcher may ask for.
const RATE_MAX: u32 = 1_000;
/// A silent connection is kept by a comment this often.
const KEEP: Duration = Duration::from_secs(15);

/// The place that calls pass. All clones are one.
#[derive(Clone)]
pub(crate) struct Tap(Arc<Shared>);

struct Shared {
    watchers: AtomicUsize,
    with_payloads: AtomicUsize,
    seen: broadcast::Sender<Arc<Seen>>,
}

/// One event and what the app said.
struct Seen {
    topic: String,
    partition: i32,
    offset: i64,
    outcome: &'static str,
    /// Everything but payloads.
    line: Value,
    payloads: Option<Payloads>,
}

struct Payloads {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    results: Vec<Option<Vec<u8>>>,
}

impl Tap {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            watchers: AtomicUsize::new(0),
            with_payloads: AtomicUsize::new(0),
            seen: broadcast::Sender::new(SEEN_QUEUED_MAX),
        }))
    }

    /// A call has ended.
    pub(crate) fn saw(&self, call: &Call, outcome: &Outcome, took: Duration) {
        if self.0.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let payloads = self.0.with_payloads.load(Ordering::Relaxed) > 0;
        for (index, called) in call.events.iter().enumerate() {
            let seen = Seen::of(call, called, of_event(outcome, index), took, payloads);
            // Nobody watches any more if this fails.
            let _gone = self.0.seen.send(Arc::new(seen));
        }
    }

    /// A watcher more; `None` if there are enough.
    pub(crate) fn watch(&self, wish: Wish, shutdown: Shutdown) -> Option<Lines> {
        let watching = Watching::begin(Arc::clone(&self.0), wish.payloads)?;
        let (lines, received) = mpsc::channel(LINES_QUEUED_MAX);
        let seen = self.0.seen.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = tell(seen, &wish, lines) => {}
                // Its connection must not hold up the end of the process.
                () = shutdown.when_drained() => {}
            }
            drop(watching);
        });
        Some(Lines(received))
    }
}

/// Counts a watcher for as long as it lives.
struct Watching {
    shared: Arc<Shared>,
    payloads: bool,
}

impl Watching {
    fn begin(shared: Arc<Shared>, payloads: bool) -> Option<Self> {
        let more = |n: usize| (n < WATCHERS_MAX).then_some(n + 1);
        let watchers = &shared.watchers;
        watchers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        if payloads {
            shared.with_payloads.fetch_add(1, Ordering::Relaxed);
        }
        Some(Self { shared, payloads })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.shared.watchers.fetch_sub(1, Ordering::Relaxed);
        if self.payloads {
            self.shared.with_payloads.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What a watcher wants to see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wish {
    filter: BTreeMap<&'static str, String>,
    rate: u32,
    payloads: bool,
}

/// What can stand in a filter.
const FILTERS: [&str; 4] = ["topic", "partition", "offset", "outcome"];
/// What an outcome can be.
const OUTCOMES: [&str; 3] = ["emitted", "filtered", "failed"];

impl Wish {
    /// Reads a query: `filter=outcome=failed,partition=3`, `rate=50`, `payloads=true`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(crate) fn read(query: &BTreeMap<String, String>, allowed: bool) -> Result<Self, String> {
        let mut filter = BTreeMap::new();
        let text = query.get("filter").map_or("", String::as_str);
        for term in text.split(',').filter(|term| !term.is_empty()) {
            let known = term.split_once('=').and_then(|(name, value)| {
                let name = FILTERS.into_iter().find(|known| *known == name.trim())?;
                Some((name, value.trim().to_owned()))
            });
            let (name, value) = known.ok_or_else(|| {
                format!(
                    "filter: {term:?}; write terms such as outcome=failed,partition=3 of {}",
                    FILTERS.join(", ")
                )
            })?;
            if name == "outcome" && !OUTCOMES.contains(&value.as_str()) {
                return Err(format!("filter: outcome is one of {}", OUTCOMES.join(", ")));
            }
            filter.insert(name, value);
        }
        let rate = match query.get("rate") {
            None => RATE_DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|rate| (1..=RATE_MAX).contains(rate))
                .ok_or_else(|| format!("rate: events a second, 1 to {RATE_MAX}"))?,
        };
        let payloads = query.get("payloads").is_some_and(|word| word == "true");
        if payloads && !allowed {
            return Err("payloads: not allowed here; set admin.tapPayloads: true".to_owned());
        }
        Ok(Self {
            filter,
            rate,
            payloads,
        })
    }

    fn wants(&self, seen: &Seen) -> bool {
        self.filter.iter().all(|(name, value)| match *name {
            "topic" => seen.topic == *value,
            "partition" => seen.partition.to_string() == *value,
            "offset" => seen.offset.to_string() == *value,
            _ => seen.outcome == value,
        })
    }
}

/// Turns what is seen into lines until the connection ends.
async fn tell(mut seen: broadcast::Receiver<Arc<Seen>>, wish: &Wish, lines: mpsc::Sender<Bytes>) {
    let mut skipped = 0u64;
    let mut keep = interval(KEEP);
    let mut second = Instant::now();
    let mut told = 0;
    loop {
        let next = tokio::select! {
            next = seen.recv() => next,
            () = lines.closed() => return,
            _ = keep.tick() => {
                if lines.send(Bytes::from_static(b": still here\n\n")).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let seen = match next {
            Ok(seen) => seen,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                skipped += missed;
                continue;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if !wish.wants(&seen) {
            continue;
        }
        if second.elapsed() >= Duration::from_secs(1) {
            second = Instant::now();
            told = 0;
        }
        if told == wish.rate {
            skipped += 1;
            continue;
        }
        told += 1;
        let line = seen.line(wish.payloads, std::mem::take(&mut skipped));
        let line = Bytes::from(format!("data: {line}\n\n"));
        if lines.send(line).await.is_err() {
            return;
        }
    }
}

/// What a call's outcome says about one of its events.
enum Said<'o> {
    Results(&'o [Output]),
    Failed(&'o millrace_core::outcome::Failure),
    Nothing,
}

fn of_event(outcome: &Outcome, index: usize) -> Said<'_> {
    match outcome {
        Outcome::Items(items) => match items.get(index) {
            Some(Item::Emit(output)) => Said::Results(std::slice::from_ref(output)),
            Some(Item::EmitMany(outputs)) => Said::Results(outputs),
            Some(Item::Failed(failure)) => Said::Failed(failure),
            Some(Item::Filter) | None => Said::Results(&[]),
        },
        Outcome::Failed(failure) | Outcome::TooLarge(failure) => Said::Failed(failure),
        Outcome::Abandoned => Said::Nothing,
    }
}

impl Seen {
    fn of(call: &Call, called: &Called, said: Said<'_>, took: Duration, payloads: bool) -> Self {
        let event = &called.event;
        let results: &[Output] = match &said {
            Said::Results(results) => results,
            Said::Failed(_) | Said::Nothing => &[],
        };
        let outcome = match &said {
            Said::Results([]) => "filtered",
            Said::Results(_) => "emitted",
            Said::Failed(_) | Said::Nothing => "failed",
        };
        let mut line = json!({
            "topic": called.partition.topic(),
            "partition": called.partition.number(),
            "offset": event.position().offset(),
            "timestamp": event.timestamp().ms,
            "id": called.id.as_str(),
            "mode": call.stamp.as_str(),
            "attempt": called.attempt,
            "together": call.events.len(),
            "tookMs": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "keyBytes": event.key().map(<[u8]>::len),
            "valueBytes": event.value().map(<[u8]>::len),
            "outcome": outcome,
        });
        let shown = results.iter().take(RESULTS_SHOWN_MAX);
        match &said {
            Said::Results(_) => {
                let sizes = shown.clone().map(|r| r.value.as_ref().map(Bytes::len));
                line["resultBytes"] = sizes.collect();
            }
            Said::Failed(failure) => {
                line["class"] = format!("{:?}", failure.class).into();
                line["code"] = failure.code.as_str().into();
            }
            Said::Nothing => {}
        }
        Self {
            topic: called.partition.topic().to_owned(),
            partition: called.partition.number(),
            offset: event.position().offset(),
            outcome,
            line,
            // Copies: a part of the event would keep the whole fetch in memory.
            payloads: payloads.then(|| Payloads {
                key: event.key().map(beginning),
                value: event.value().map(beginning),
                results: shown
                    .map(|result| result.value.as_deref().map(beginning))
                    .collect(),
            }),
        }
    }

    fn line(&self, payloads: bool, skipped: u64) -> Value {
        let mut line = self.line.clone();
        if skipped > 0 {
            line["skipped"] = skipped.into();
        }
        if let Some(shown) = self.payloads.as_ref().filter(|_| payloads) {
            line["key"] = text(&shown.key);
            line["value"] = text(&shown.value);
            line["results"] = shown.results.iter().map(text).collect();
        }
        line
    }
}

fn beginning(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len().min(SHOWN_BYTES_MAX)].to_vec()
}

fn text(bytes: &Option<Vec<u8>>) -> Value {
    let readable = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    bytes.as_ref().map(readable).into()
}

/// The body of an answer that goes on.
pub(crate) struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(context);
        next.map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::event::{EventsBuilder, Timestamp, TimestampKind};
    use millrace_core::identity::PartitionIdentity;
    use millrace_core::intake::io::CallId;
    use millrace_core::outcome::Failure;
    use millrace_core::position::{Partition, Position};
    use millrace_core::time::Time;
    use millrace_core::token::Stamp;

    use super::*;

    fn call(value: &[u8]) -> Call {
        let mut events = EventsBuilder::default();
        let at = Timestamp {
            ms: 5,
            kind: TimestampKind::Create,
        };
        events.push(Position::new(7), at, Some(b"who"), Some(value), []);
        let now = Time {
            boot: Duration::ZERO,
            wall_ms: 0,
        };
        Call {
            id: CallId(1),
            correlation: None,
            stamp: Stamp::Live,
            deadline: now,
            events: vec![Called {
                partition: Partition::new("orders", 3),
                id: PartitionIdentity::new("c", "orders", 3).event_id(Position::new(7)),
                attempt: 1,
                first_attempt_ms: 0,
                event: events.finish().remove(0),
            }],
        }
    }

    fn emitted(value: &'static [u8]) -> Outcome {
        Outcome::Items(vec![Item::Emit(Output {
            value: Some(Bytes::from_static(value)),
            ..Output::default()
        })])
    }

    fn wish(query: &[(&str, &str)], allowed: bool) -> Result<Wish, String> {
        let query = query
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Wish::read(&query.collect(), allowed)
    }

    async fn data(lines: &mut Lines) -> Value {
        loop {
            let line = lines.0.recv().await.expect("a line");
            let text = String::from_utf8(line.to_vec()).unwrap();
            if let Some(data) = text.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    }

    const TOOK: Duration = Duration::from_millis(12);

    #[tokio::test]
    async fn nobody_sees_payloads_who_did_not_ask_or_must_not() {
        assert!(wish(&[("payloads", "true")], false).is_err());
        let tap = Tap::new();
        let mut plain = tap
            .watch(wish(&[], true).unwrap(), Shutdown::new())
            .unwrap();
        tap.saw(&call(b"secret"), &emitted(b"answer"), TOOK);
        let seen = data(&mut plain).await;
        assert_eq!(seen["outcome"], "emitted");
        assert_eq!(
            (&seen["valueBytes"], &seen["resultBytes"][0]),
            (&json!(6), &json!(6))
        );
        assert!(!seen.to_string().contains("secret") && !seen.to_string().contains("answer"));
        let asked = wish(&[("payloads", "true")], true).unwrap();
        let mut asked = tap.watch(asked, Shutdown::new()).unwrap();
        tap.saw(&call(b"secret"), &emitted(b"answer"), TOOK);
        let seen = data(&mut asked).await;
        assert_eq!(
            (&seen["key"], &seen["value"], &seen["results"]),
            (&json!("who"), &json!("secret"), &json!(["answer"]))
        );
        // The other one watches beside it, and still sees none.
        assert!(data(&mut plain).await.get("value").is_none());
    }

    #[tokio::test]
    async fn a_filter_chooses_and_a_rate_skips_and_says_so() {
        let tap = Tap::new();
        let failed = wish(&[("filter", "outcome=failed,partition=3")], false).unwrap();
        let mut failed = tap.watch(failed, Shutdown::new()).unwrap();
        let mut slow = tap
            .watch(wish(&[("rate", "1")], false).unwrap(), Shutdown::new())
            .unwrap();
        tap.saw(&call(b"1"), &emitted(b"1"), TOOK);
        tap.saw(&call(b"2"), &Outcome::Failed(Failure::timeout()), TOOK);
        let seen = data(&mut failed).await;
        assert_eq!(
            (&seen["outcome"], &seen["code"]),
            (&json!("failed"), &json!("timeout"))
        );
        assert_eq!(data(&mut slow).await["outcome"], "emitted");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(2)).await;
        tap.saw(&call(b"3"), &emitted(b"3"), TOOK);
        assert_eq!(data(&mut slow).await["skipped"], 1);
    }

    #[tokio::test]
    async fn a_watcher_that_goes_away_costs_nothing_any_more() {
        let tap = Tap::new();
        let watchers: Vec<_> = (0..WATCHERS_MAX)
            .map(|_| {
                tap.watch(wish(&[], false).unwrap(), Shutdown::new())
                    .unwrap()
            })
            .collect();
        assert!(
            tap.watch(wish(&[], false).unwrap(), Shutdown::new())
                .is_none()
        );
        drop(watchers);
        let gone = async {
            while tap.0.watchers.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .unwrap();
        tap.saw(&call(b"1"), &emitted(b"1"), TOOK);
        assert_eq!(tap.0.seen.len(), 0);
    }

    #[test]
    fn a_wrong_wish_is_told() {
        for (query, part) in [
            (("filter", "colour=red"), "outcome"),
            (("filter", "outcome=good"), "emitted"),
            (("rate", "0"), "1000"),
            (("rate", "many"), "1000"),
        ] {
            let error = wish(&[query], false).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
