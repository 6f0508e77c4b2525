//! One client of a group member, from its join to its destruction, on the poll thread.
//!
//! Invariant: the client's main queue is served at least twice a second whatever the driver does
//! (D-G1), so commit callbacks and rebalances always arrive.
//! Invariant: an unassign waits until a commit that touches its partitions has ended (R4b); a
//! commit ends by its callback or by the destruction of the client, never by time (R4c).
//! Invariant: a rebalance is completed once, when the driver has let go of all it asked for.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use millrace_core::event::EventsBuilder;
use millrace_core::intake::io::{CommitId, CommitOutcome, Fetched, Membership, StartAt};
use millrace_core::limits::{FETCH_BYTES_MAX, FETCH_RECORDS_MAX};
use millrace_core::position::{Partition, Position};
use rdkafka::consumer::Consumer;
use rdkafka::{Message, Offset};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::auth_tokens::Registration;
use super::ends::{Ends, Read};
use super::partition::{Drained, Reading, Target};
use super::poll_thread::Command;
use super::rebalance::{self, MemberContext, Seen, SharedClient};
use super::settings::Settings;
use super::token_reader::TokenReader;
use super::{classify, ffi};
use crate::Happening;
use crate::mailbox::{Mailbox, Wish};

mod commits;
mod troubles;

/// How long the thread waits when nothing happens; D-G1 allows twice that.
const TURN: Duration = Duration::from_millis(500);

/// How soon something that did not work is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// How long a stop leaves a queue unread before fetching stops too, which frees its memory but
/// means fetching again (B-K6).
const FETCH_PAUSE_AFTER: Duration = Duration::from_secs(10);

/// How long a seek may keep the thread; librdkafka answers at once or not at all.
const SEEK_TIMEOUT: Duration = Duration::from_millis(500);

struct OpenCommit {
    id: CommitId,
    partitions: Vec<Partition>,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// The driver wants a new client (R4c, D-G6).
    Rejoin,
    /// The driver is done.
    Close(Option<oneshot::Sender<()>>),
}

/// What a session needs from outside.
pub(super) struct Surroundings {
    pub(super) commands: Receiver<Command>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) tokens: TokenReader,
    pub(super) turns: Arc<AtomicU64>,
    pub(super) ends: Ends,
    /// How long we may not have polled and still be sure that we are a member (D-G7).
    pub(super) silence_max: Duration,
    /// Whether the driver was told that no broker can be reached.
    pub(super) unreachable: Cell<bool>,
    /// What clients are made of.
    pub(super) settings: Settings,
    /// Whether the driver was told that there is no auth token.
    pub(super) unauthenticated: Cell<bool>,
}

/// A client and what is known about its membership.
pub(super) struct Session<'a> {
    around: &'a Surroundings,
    /// Given back before the client is dropped, whose last handle has to be ours.
    registration: Registration,
    client: SharedClient,
    readings: HashMap<Partition, Reading<MemberContext>>,
    /// Partitions in the order of their turns.
    order: Vec<Partition>,
    open: Option<OpenCommit>,
    /// Who the driver was told that we are.
    member: Option<ffi::Identity>,
    polled: Instant,
    /// We were silent for too long: lost, whatever the client says (D-G7).
    silent: bool,
    stops_checked: Instant,
    reported: HashMap<String, Instant>,
}

impl<'a> Session<'a> {
    pub(super) fn new(around: &'a Surroundings, client: SharedClient) -> Self {
        let now = Instant::now();
        Self {
            around,
            registration: around.settings.register(&client),
            client,
            readings: HashMap::new(),
            order: Vec::new(),
            open: None,
            member: None,
            polled: now,
            silent: false,
            stops_checked: now,
            reported: HashMap::new(),
        }
    }

    /// Serves the client until the driver wants no more of it, then destroys it.
    pub(super) fn run(mut self) -> Ending {
        loop {
            self.around.turns.fetch_add(1, Ordering::Relaxed);
            if let Some(ending) = self.obey() {
                self.destroy();
                return ending;
            }
            self.poll();
            self.release();
            let retry = self.seek_all();
            self.pause_long_stops();
            if !self.fetch() {
                self.around
                    .mailbox
                    .bell
                    .wait(if retry { RETRY } else { TURN });
            }
        }
    }

    /// Carries out what the driver asked for.
    fn obey(&mut self) -> Option<Ending> {
        loop {
            match self.around.commands.try_recv() {
                Ok(Command::Assign(starts)) => self.assign(&starts),
                Ok(Command::Unassign(partitions)) => self.let_go(&partitions),
                Ok(Command::Seek(partition, position)) => self.seek(&partition, position),
                Ok(Command::Commit(commit)) => self.commit(commit),
                Ok(Command::ReadGroupMetadata(commit, partitions)) => {
                    self.read_group_metadata(commit, &partitions);
                }
                Ok(Command::Rejoin) => return Some(Ending::Rejoin),
                Ok(Command::Close(closed)) => return Some(Ending::Close(closed)),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(Ending::Close(None)),
            }
        }
    }

    /// Serves the main queue until it is empty, then tells the driver what was seen.
    fn poll(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.polled) > self.around.silence_max {
            self.silent = true;
        }
        self.polled = now;
        let client = Arc::clone(&self.client);
        client.context().renewing.apply(client.client());
        loop {
            let served = client.context().served();
            match client.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    // A record from before its queue was split.
                    let partition = Partition::new(message.topic(), message.partition());
                    let position = Position::new(message.offset());
                    let reading = self.readings.get_mut(&partition);
                    if reading
                        .is_some_and(|reading| reading.seek.is_none() && reading.accept(position))
                    {
                        let mut records = EventsBuilder::default();
                        super::partition::copy(&message, &mut records);
                        self.around.mailbox.push_fetched(vec![Fetched {
                            partition,
                            leader_epoch: ffi::leader_epoch(&message),
                            events: records.finish(),
                        }]);
                    }
                }
                Some(Err(_)) => {} // seen by the error callback
                None if client.context().served() == served => break,
                None => {}
            }
        }
        self.tell();
        self.tell_of_brokers();
        self.tell_of_tokens();
        self.tell_how_far();
    }

    /// Where the records end that were handed over, if all were.
    fn tell_how_far(&self) {
        let Some(drained) = self.client.context().group().drained.take() else {
            return;
        };
        let read = drained.into_iter().filter_map(|(partition, until)| {
            let next = self.readings.get(&partition)?.next();
            Some((partition, Read { next, until }))
        });
        self.around.ends.read(read.collect());
    }

    fn tell(&mut self) {
        let seen = std::mem::take(&mut self.client.context().group().seen);
        for seen in seen {
            match seen {
                Seen::Assigned(partitions, identity) => {
                    for partition in &partitions {
                        self.around.mailbox.open(partition.clone());
                    }
                    self.silent = false;
                    let membership = Membership {
                        generation: identity.generation,
                        member: member_hash(&identity.member),
                    };
                    self.member = Some(identity);
                    self.around.mailbox.push(Happening::Assigned {
                        partitions,
                        membership,
                    });
                }
                Seen::Revoking(partitions) => {
                    self.around.mailbox.push(Happening::Revoking(partitions));
                }
                Seen::Lost(partitions) => {
                    self.forget(&partitions);
                    self.around.mailbox.drop_lanes(&partitions);
                    self.around.mailbox.push(Happening::Lost(partitions));
                }
                Seen::Committed { result, entries } => self.committed(result, &entries),
                Seen::Error(code, reason) => self.trouble(code, reason),
            }
        }
    }

    /// Starts partitions. One with an epoch is also moved to where it starts, because librdkafka
    /// compares epochs in a seek and not in an assign.
    fn assign(&mut self, starts: &[StartAt]) {
        let client = Arc::clone(&self.client);
        let mut group = client.context().group();
        // A partition may have been taken back since the driver decided.
        let starts: Vec<&StartAt> = starts
            .iter()
            .filter(|StartAt { partition, .. }| {
                group.granted.contains(partition) && !group.assigned.contains(partition)
            })
            .collect();
        if starts.is_empty() {
            return;
        }
        // Split before the assign, so that no record reaches the main queue, and again after
        // it, because an assign may undo the split (R4).
        for start in &starts {
            let partition = &start.partition;
            match Reading::split(&client, partition, start.position) {
                Some(mut reading) => {
                    if start.leader_epoch.is_some() {
                        let target = Target {
                            position: start.position,
                            leader_epoch: start.leader_epoch,
                        };
                        reading.seek = Some((target, None));
                        self.around.mailbox.seek(partition.clone());
                    }
                    self.readings.insert(partition.clone(), reading);
                    if !self.order.contains(partition) {
                        self.order.push(partition.clone());
                    }
                }
                None => warn!(%partition, "the client has no queue for this partition"),
            }
        }
        let list = rebalance::list(starts.iter().map(|start| {
            let offset = Offset::Offset(start.position.offset());
            (&start.partition, offset)
        }));
        if let Err(error) = client.incremental_assign(&list) {
            warn!(%error, "the client did not assign");
            drop(group);
            for StartAt { partition, .. } in &starts {
                self.forget(std::slice::from_ref(partition));
            }
            self.around
                .mailbox
                .push_once(Happening::Misconfigured(format!(
                    "the client did not assign: {error}"
                )));
            return;
        }
        for StartAt { partition, .. } in &starts {
            group.assigned.insert(partition.clone());
            if let Some(reading) = self.readings.get_mut(partition) {
                let mailbox = Arc::clone(&self.around.mailbox);
                reading.arm(&client, partition, move || mailbox.bell.ring());
            }
        }
    }

    /// The driver lets go of partitions; the rebalance is completed by [`Self::release`].
    fn let_go(&mut self, partitions: &[Partition]) {
        let client = Arc::clone(&self.client);
        let mut group = client.context().group();
        if let Some(revoking) = &mut group.revoking {
            for partition in partitions {
                if revoking.asked.contains(partition) {
                    revoking.released.insert(partition.clone());
                }
            }
        }
    }

    /// Completes a rebalance once everything it asked for was let go of, and no commit that
    /// touches it is open.
    fn release(&mut self) {
        let client = Arc::clone(&self.client);
        let gone: Vec<Partition> = {
            let mut group = client.context().group();
            let Some(revoking) = &group.revoking else {
                return;
            };
            let open = self.open.as_ref().is_some_and(|open| {
                open.partitions
                    .iter()
                    .any(|partition| revoking.asked.contains(partition))
            });
            if open || revoking.released.len() < revoking.asked.len() {
                return;
            }
            let gone: Vec<Partition> = revoking.asked.iter().cloned().collect();
            group.revoking = None;
            for partition in &gone {
                group.granted.remove(partition);
            }
            rebalance::unassign(&client, &mut group, &gone);
            gone
        };
        self.around.mailbox.drop_lanes(&gone);
        self.forget(&gone);
    }

    /// Drops what is known of partitions. It serves their queues, so nobody may hold the group:
    /// the error callback takes it.
    fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(reading) = self.readings.remove(partition) {
                reading.discard();
            }
            self.order.retain(|other| other != partition);
        }
    }

    fn seek(&mut self, partition: &Partition, position: Position) {
        let target = Target {
            position,
            leader_epoch: None,
        };
        match self.readings.get_mut(partition) {
            Some(reading) => {
                // A second seek replaces the first; both were counted.
                if reading.seek.replace((target, None)).is_some() {
                    self.around.mailbox.sought(partition);
                }
            }
            None => self.around.mailbox.sought(partition),
        }
    }

    /// Does what seeks are due. Whether one has to be tried again.
    fn seek_all(&mut self) -> bool {
        let now = Instant::now();
        let due: Vec<(Partition, Target)> = self
            .readings
            .iter()
            .filter_map(|(partition, reading)| {
                let (target, tried) = reading.seek?;
                let due = tried.is_none_or(|tried| now.duration_since(tried) >= RETRY);
                due.then(|| (partition.clone(), target))
            })
            .collect();
        for (partition, target) in due {
            let broken = self
                .readings
                .get(&partition)
                .is_some_and(|reading| reading.broken);
            let done = if broken {
                self.restart(&partition, target.position)
            } else {
                self.seek_now(&partition, target)
            };
            // The restart may have lost it.
            let Some(reading) = self.readings.get_mut(&partition) else {
                continue;
            };
            if done {
                reading.seek = None;
                reading.reset(target.position);
                self.around.mailbox.sought(&partition);
            } else if !broken && reading.gave_up() && target.leader_epoch.is_some() {
                // The position itself is not in the log: no need to ask for its epoch.
                reading.seek = None;
                self.around.mailbox.sought(&partition);
                self.around.tokens.out_of_range(&partition);
            } else {
                reading.seek = Some((target, Some(now)));
            }
        }
        self.readings.values().any(|reading| reading.seek.is_some())
    }

    fn seek_now(&self, partition: &Partition, target: Target) -> bool {
        let list = rebalance::list([(partition, Offset::Offset(target.position.offset()))]);
        let sought = ffi::seek(
            self.client.client(),
            &list,
            target.leader_epoch,
            SEEK_TIMEOUT,
        );
        if let Err(error) = &sought {
            debug!(%partition, %error, "the client cannot seek yet");
        }
        sought.is_ok()
    }

    /// Moves a partition that librdkafka has given up: taken out and put in again.
    fn restart(&mut self, partition: &Partition, position: Position) -> bool {
        let client = Arc::clone(&self.client);
        {
            let mut group = client.context().group();
            if group.revoking.is_some() || !group.assigned.contains(partition) {
                return false;
            }
            group.restarting = true;
            rebalance::unassign(&client, &mut group, [partition]);
        }
        // A revocation that was queued before the unassign has just been answered by it, and
        // arrives now.
        self.poll();
        client.context().group().restarting = false;
        if let Some(reading) = self.readings.get_mut(partition) {
            reading.discard();
            reading.broken = false;
            reading.fetch_paused = false;
        }
        self.assign(&[StartAt::position(partition.clone(), position)]);
        client.context().group().assigned.contains(partition)
    }

    /// Stops the fetching of partitions that the driver has not wanted for long, and starts it
    /// again.
    fn pause_long_stops(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.stops_checked) < TURN / 2 {
            return;
        }
        self.stops_checked = now;
        let wishes = self.around.mailbox.wishes(self.readings.keys());
        for ((partition, reading), wish) in self.readings.iter_mut().zip(wishes) {
            let long = match wish {
                Wish::Paused(since) => now.duration_since(since) >= FETCH_PAUSE_AFTER,
                Wish::Read | Wish::Full | Wish::Seek => false,
            };
            if long == reading.fetch_paused {
                continue;
            }
            let list = rebalance::list([(partition, Offset::Invalid)]);
            let changed = if long {
                self.client.pause(&list)
            } else {
                self.client.resume(&list)
            };
            match changed {
                Ok(()) => reading.fetch_paused = long,
                Err(error) => warn!(%partition, %error, "fetching could not be paused or resumed"),
            }
        }
    }

    /// Hands over one fetch of what is wanted and there. Whether there may be more.
    fn fetch(&mut self) -> bool {
        // While a rebalance waits for the driver, librdkafka has taken back what it had fetched;
        // nothing is lost by not reading, and it reads on afterwards.
        if self.client.context().group().revoking.is_some() {
            return false;
        }
        let ready: Vec<&Partition> = self
            .order
            .iter()
            .filter(|partition| {
                let reading = self.readings.get(*partition);
                reading.is_some_and(|reading| reading.ready() && reading.seek.is_none())
            })
            .collect();
        if ready.is_empty() {
            return false;
        }
        let wishes = self.around.mailbox.wishes(ready.iter().copied());
        let wanted: Vec<Partition> = ready
            .into_iter()
            .zip(wishes)
            .filter(|(_, wish)| *wish == Wish::Read)
            .map(|(partition, _)| partition.clone())
            .collect();
        if wanted.is_empty() {
            return false;
        }
        let mut records = EventsBuilder::default();
        let mut shares = Vec::with_capacity(wanted.len());
        let mut more = false;
        let turns = wanted.len();
        for (turn, partition) in wanted.into_iter().enumerate() {
            let left = FETCH_RECORDS_MAX - records.len();
            if left == 0 || records.bytes() >= FETCH_BYTES_MAX {
                break;
            }
            let share = left.div_ceil(turns - turn);
            let Some(reading) = self.readings.get_mut(&partition) else {
                continue;
            };
            let before = records.len();
            match reading.drain(&mut records, share) {
                Drained::OutOfRange => self.around.tokens.out_of_range(&partition),
                Drained::Enough => more = true,
                Drained::Empty | Drained::AtEnd => {}
            }
            shares.push((partition, reading.leader_epoch, records.len() - before));
        }
        // The first one is the last one next time.
        self.order.rotate_left(1);
        more |= !records.is_empty();
        let mut events = records.finish().into_iter();
        let fetched = shares
            .into_iter()
            .filter(|(_, _, count)| *count > 0)
            .map(|(partition, leader_epoch, count)| Fetched {
                partition,
                leader_epoch,
                events: events.by_ref().take(count).collect(),
            })
            .collect();
        self.around.mailbox.push_fetched(fetched);
        more
    }

    /// Destroys the client completely; it leaves the group on the way. May take as long as a
    /// session, because an open commit is given that time.
    fn destroy(mut self) {
        let context = Arc::clone(self.client.context());
        {
            let mut group = context.group();
            group.closing = true;
            // A close waits for a revocation that we have not answered.
            if let Some(revoking) = group.revoking.take() {
                rebalance::unassign(&self.client, &mut group, &revoking.asked);
            }
        }
        self.readings.clear();
        drop(self.registration);
        let client = Arc::into_inner(self.client)
            .expect("only the queues and the register held it too, and a client that lives on ends no commit");
        drop(client);
        let seen = std::mem::take(&mut context.group().seen);
        let Some(open) = self.open else {
            return;
        };
        let ended = seen.into_iter().find_map(|seen| match seen {
            Seen::Committed { result, entries } => Some(commits::error(result, &entries)),
            Seen::Assigned(..) | Seen::Revoking(_) | Seen::Lost(_) | Seen::Error(..) => None,
        });
        let outcome = match ended {
            Some(code) => classify::commit_outcome(code),
            None => CommitOutcome::Unknown("the client was destroyed first".to_owned()),
        };
        self.around.mailbox.push(Happening::Committed {
            commit: open.id,
            outcome,
        });
    }
}

fn member_hash(member: &str) -> u32 {
    let digest = Sha256::digest(member.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}
