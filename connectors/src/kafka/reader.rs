//! Reads partitions from given positions to their ends, without a group: for `audit`, `tail`
//! and `dlq`.
//!
//! Invariant: a partition is reported as ended only behind its last record.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_core::event::EventsBuilder;
use millrace_core::intake::io::Fetched;
use millrace_core::limits::{FETCH_BYTES_MAX, FETCH_RECORDS_MAX};
use millrace_core::position::{Partition, Position};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::mpsc;

use super::partition::{Drained, Reading};
use super::rebalance::{QuietContext, list};
use super::settings::{self, Role, Settings};
use super::tokens::Groups;
use crate::StoreError;
use crate::mailbox::Bell;

/// Fetches that wait for whoever reads.
const FETCHES_QUEUED_MAX: usize = 16;

/// How long the thread waits when there is nothing to read.
const TURN: Duration = Duration::from_millis(200);

/// Where to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// The first position of the log.
    Earliest,
    /// Its end.
    Latest,
    /// Here, or at the first position of the log if that is later.
    At(Position),
    /// The first record that is not older than this (epoch milliseconds).
    Time(i64),
}

/// Where to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// At the ends that the partitions have when the reading begins.
    Ends,
    /// Never.
    Forever,
}

/// Reads partitions.
#[derive(Debug)]
pub struct Reader {
    fetched: mpsc::Receiver<Result<Vec<Fetched>, StoreError>>,
    stop: Arc<Stop>,
}

#[derive(Debug, Default)]
struct Stop {
    stopped: AtomicBool,
    bell: Bell,
}

impl Reader {
    /// Starts to read. Trouble comes out of [`Reader::next`].
    pub fn open(settings: Settings, starts: Vec<(Partition, Start)>, until: Until) -> Self {
        let (sender, fetched) = mpsc::channel(FETCHES_QUEUED_MAX);
        let stop = Arc::new(Stop::default());
        let work = Arc::clone(&stop);
        let failed = sender.clone();
        let started = std::thread::Builder::new()
            .name("millrace-reader".to_owned())
            .spawn(move || {
                if let Err(error) = read(settings, starts, until, &sender, &work) {
                    // Nobody reads any more if this fails.
                    let _unread = sender.blocking_send(Err(error));
                }
            });
        if let Err(error) = started {
            let error = StoreError::Unavailable(format!("no thread can be started: {error}"));
            // The channel is empty, and its receiver is here.
            let _sent = failed.try_send(Err(error));
        }
        Self { fetched, stop }
    }

    /// The next records, per partition in position order; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Vec<Fetched>, StoreError>> {
        self.fetched.recv().await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.stopped.store(true, Ordering::Relaxed);
        self.stop.bell.ring();
    }
}

/// Where each partition begins and ends; empty ones are left out of a reading to the ends.
fn plan(
    settings: &Settings,
    starts: &[(Partition, Start)],
    until: Until,
) -> Result<HashMap<Partition, (Position, Position)>, StoreError> {
    let groups = Groups::new(settings.clone());
    let partitions: Vec<Partition> = starts
        .iter()
        .map(|(partition, _)| partition.clone())
        .collect();
    if partitions.is_empty() {
        return Ok(HashMap::new());
    }
    let ranges = groups.ranges(&partitions)?;
    let mut plan = HashMap::new();
    for (partition, start) in starts {
        let Some(&(first, end)) = ranges.get(partition) else {
            return Err(StoreError::Refused(format!("{partition} does not exist")));
        };
        let start = match start {
            Start::Earliest => first,
            Start::Latest => end,
            Start::At(position) => (*position).max(first),
            Start::Time(ms) => groups.position_at(partition, *ms)?,
        };
        if until == Until::Forever || start < end {
            plan.insert(partition.clone(), (start, end));
        }
    }
    Ok(plan)
}

fn read(
    settings: Settings,
    starts: Vec<(Partition, Start)>,
    until: Until,
    sender: &mpsc::Sender<Result<Vec<Fetched>, StoreError>>,
    stop: &Arc<Stop>,
) -> Result<(), StoreError> {
    let plan = plan(&settings, &starts, until)?;
    if plan.is_empty() {
        return Ok(());
    }
    let refused = |error: String| StoreError::Refused(error);
    let client: BaseConsumer<QuietContext> = settings::client_config(&settings, Role::Reader)
        .map_err(|error| refused(error.to_string()))?
        .create_with_context(QuietContext)
        .map_err(|error| refused(error.to_string()))?;
    let client = Arc::new(client);
    let _registration = settings.register(&client);
    let mut readings = HashMap::new();
    for (partition, (start, _)) in &plan {
        let reading = Reading::split(&client, partition, *start)
            .ok_or_else(|| refused(format!("{partition} cannot be read")))?;
        readings.insert(partition.clone(), reading);
    }
    let assignment = list(
        plan.iter()
            .map(|(partition, (start, _))| (partition, Offset::Offset(start.offset()))),
    );
    client
        .assign(&assignment)
        .map_err(|error| refused(error.to_string()))?;
    for (partition, reading) in &mut readings {
        let stop = Arc::clone(stop);
        reading.arm(&client, partition, move || stop.bell.ring());
    }
    while !readings.is_empty() && !stop.stopped.load(Ordering::Relaxed) {
        client.poll(Duration::ZERO);
        let (fetched, ended) = fetch(&mut readings, &plan, until)?;
        let idle = fetched.is_empty() && ended.is_empty();
        if !fetched.is_empty() && sender.blocking_send(Ok(fetched)).is_err() {
            return Ok(());
        }
        for partition in ended {
            readings.remove(&partition);
        }
        if idle {
            stop.bell.wait(TURN);
        }
    }
    Ok(())
}

type Fetch = (Vec<Fetched>, Vec<Partition>);

/// One round over the partitions, and those that are at their ends.
fn fetch(
    readings: &mut HashMap<Partition, Reading<QuietContext>>,
    plan: &HashMap<Partition, (Position, Position)>,
    until: Until,
) -> Result<Fetch, StoreError> {
    let mut fetched = Vec::new();
    let mut ended = Vec::new();
    for (partition, reading) in readings {
        if !reading.ready() {
            continue;
        }
        let mut records = EventsBuilder::default();
        let mut at_end = false;
        while records.len() < FETCH_RECORDS_MAX && records.bytes() < FETCH_BYTES_MAX {
            match reading.drain(&mut records, FETCH_RECORDS_MAX) {
                Drained::Empty | Drained::Enough => break,
                // More may have been appended since; the end that counts is the planned one.
                Drained::AtEnd if until == Until::Forever => {}
                Drained::AtEnd => {
                    at_end = true;
                    break;
                }
                Drained::OutOfRange => {
                    return Err(StoreError::Refused(format!(
                        "{partition} was cut while it was read"
                    )));
                }
            }
        }
        let mut events = records.finish();
        if until == Until::Ends {
            let end = plan[partition].1;
            let before = events.len();
            events.retain(|event| event.position() < end);
            let last = events.last().map(|event| event.position().next());
            if at_end || events.len() < before || last.is_some_and(|last| last >= end) {
                ended.push(partition.clone());
            }
        }
        if !events.is_empty() {
            fetched.push(Fetched {
                partition: partition.clone(),
                leader_epoch: reading.leader_epoch,
                events,
            });
        }
    }
    Ok((fetched, ended))
}
