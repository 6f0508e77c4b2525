//! Reads and writes offsets of groups that this process has not joined (release.md E6).
//!
//! librdkafka reads committed offsets only of a client's own group, so there is one
//! never-subscribed client per group: at most [`CLIENTS_MAX`], closed when unused for
//! [`UNUSED_MAX`]. They read stable offsets only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use millrace_core::intake::io::{CommitOutcome, Committed};
use millrace_core::position::{Partition, Position};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::auth_tokens::Registration;
use super::rebalance::{QuietContext, list};
use super::secrets::Renewing;
use super::settings::{self, Role, Settings};
use super::{classify, ffi};
use crate::{StoreError, TokenStore};

/// Groups that have a client at the same time.
const CLIENTS_MAX: usize = 4;

/// A client without work is closed after this.
const UNUSED_MAX: Duration = Duration::from_secs(30);

/// How long brokers may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The same for ends of logs, which are asked for again and again.
const ENDS_MAX: Duration = Duration::from_secs(3);

/// How long a commit's end is awaited; librdkafka ends it earlier (session time-out 6 s).
const COMMIT_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct OutsiderContext {
    renewing: Renewing,
    committed: Mutex<Option<Option<RDKafkaErrorCode>>>,
}

impl OutsiderContext {
    fn committed(&self) -> MutexGuard<'_, Option<Option<RDKafkaErrorCode>>> {
        self.committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for OutsiderContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::rebalance::log(level, facility, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        QuietContext.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        QuietContext.error(error, reason);
    }
}

impl ConsumerContext for OutsiderContext {
    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let whole = result.err().map(|error| {
            error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::Unknown)
        });
        let code = whole.or_else(|| {
            ffi::entries(offsets)
                .into_iter()
                .find_map(|entry| entry.error)
        });
        *self.committed() = Some(code);
    }
}

type Client = BaseConsumer<OutsiderContext>;

/// A client that one question at a time goes through.
struct Asked {
    /// Before the client, which ends here then.
    _registration: Registration,
    client: Arc<Client>,
}

struct Kept {
    /// `None`: of no group; for positions only.
    group: Option<String>,
    client: Arc<Mutex<Asked>>,
    used: Instant,
    /// The remakes of the settings when it was made.
    made_at: u64,
}

/// The clients, for callers that may block.
pub(super) struct Groups {
    settings: Settings,
    kept: Mutex<Vec<Kept>>,
}

impl Groups {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            kept: Mutex::new(Vec::new()),
        }
    }

    /// Closes clients that were not used for a while.
    pub(super) fn close_unused(&self) {
        let now = Instant::now();
        let unused: Vec<Kept> = self
            .kept()
            .extract_if(.., |kept| now.duration_since(kept.used) >= UNUSED_MAX)
            .collect();
        drop(unused);
    }

    /// What `group` committed for `partitions`; without a commit a partition is left out.
    pub(super) fn fetch(
        &self,
        group: &str,
        partitions: &[Partition],
    ) -> Result<HashMap<Partition, Committed>, StoreError> {
        let asked = list(
            partitions
                .iter()
                .map(|partition| (partition, Offset::Invalid)),
        );
        let answered = self.ask(Some(group), |client| {
            client.committed_offsets(asked, ANSWER_MAX)
        })?;
        let mut found = HashMap::new();
        for entry in ffi::entries(&answered) {
            if let Some(code) = entry.error {
                return Err(classify::store_error_of(code));
            }
            if entry.offset >= 0 {
                // A metadata that is not text is not a token; decoding refuses it (R9).
                let metadata = String::from_utf8_lossy(&entry.metadata).into_owned();
                let position = Position::new(entry.offset);
                found.insert(entry.partition, Committed { position, metadata });
            }
        }
        Ok(found)
    }

    /// Commits as nobody's member; brokers refuse it while the group has members.
    pub(super) fn commit(
        &self,
        group: &str,
        offsets: &[(Partition, Committed)],
    ) -> Result<CommitOutcome, StoreError> {
        if offsets.is_empty() {
            return Ok(CommitOutcome::Done);
        }
        let client = self.client(Some(group))?;
        let outcome = {
            let asked = client.lock().unwrap_or_else(PoisonError::into_inner);
            commit(&asked.client, offsets)
        };
        if matches!(outcome, Ok(CommitOutcome::Unknown(_))) {
            // Only the destruction of the client ends a commit that has not ended (R4c).
            self.forget(&client);
        }
        outcome
    }

    /// First and end position of each log; partitions that do not exist are left out.
    pub(super) fn ranges(
        &self,
        partitions: &[Partition],
    ) -> Result<HashMap<Partition, (Position, Position)>, StoreError> {
        let starts = self.positions(partitions, Offset::Beginning)?;
        let mut ends = self.positions(partitions, Offset::End)?;
        Ok(starts
            .into_iter()
            .filter_map(|(partition, start)| {
                let end = ends.remove(&partition)?;
                Some((partition, (start, end)))
            })
            .collect())
    }

    /// The end of each log whose leader answers. Asked every second, so an outage must not cost a
    /// new client each time, as [`Self::ask`] would.
    pub(super) fn ends(
        &self,
        partitions: &[Partition],
    ) -> Result<HashMap<Partition, Position>, StoreError> {
        let client = self.client(None)?;
        let held = client.lock().unwrap_or_else(PoisonError::into_inner);
        let client = &held.client;
        serve(client);
        let asked = list(partitions.iter().map(|partition| (partition, Offset::End)));
        let answered = client
            .offsets_for_times(asked, ENDS_MAX)
            .map_err(|error| classify::store_error(&error))?;
        Ok(ffi::entries(&answered)
            .into_iter()
            .filter(|entry| entry.error.is_none() && entry.offset >= 0)
            .map(|entry| (entry.partition, Position::new(entry.offset)))
            .collect())
    }

    /// The first position whose record is not older, else the end.
    pub(super) fn position_at(
        &self,
        partition: &Partition,
        timestamp_ms: i64,
    ) -> Result<Position, StoreError> {
        let asked = std::slice::from_ref(partition);
        let mut found = self.positions(asked, Offset::Offset(timestamp_ms.max(0)))?;
        if let Some(position) = found.remove(partition) {
            return Ok(position);
        }
        self.positions(asked, Offset::End)?
            .remove(partition)
            .ok_or_else(|| StoreError::Refused(format!("{partition} does not exist")))
    }

    /// Positions by time; the beginning and the end are times too in this request.
    fn positions(
        &self,
        partitions: &[Partition],
        at: Offset,
    ) -> Result<HashMap<Partition, Position>, StoreError> {
        let asked = list(partitions.iter().map(|partition| (partition, at)));
        let answered = self.ask(None, |client| client.offsets_for_times(asked, ANSWER_MAX))?;
        let mut found = HashMap::new();
        for entry in ffi::entries(&answered) {
            if let Some(code) = entry.error {
                return Err(classify::store_error_of(code));
            }
            if entry.offset >= 0 {
                found.insert(entry.partition, Position::new(entry.offset));
            }
        }
        Ok(found)
    }

    /// One question. Whoever gets no answer may know of leaders only that are gone, so the next
    /// question goes through a new client.
    fn ask<T>(
        &self,
        group: Option<&str>,
        question: impl FnOnce(&Client) -> KafkaResult<T>,
    ) -> Result<T, StoreError> {
        let client = self.client(group)?;
        let answer = {
            let asked = client.lock().unwrap_or_else(PoisonError::into_inner);
            serve(&asked.client);
            question(&asked.client)
        };
        answer.map_err(|error| {
            let error = classify::store_error(&error);
            if !matches!(error, StoreError::Unavailable(_)) {
                return error;
            }
            self.forget(&client);
            // Brokers say nothing to somebody whom they do not let in.
            self.settings
                .missing_token()
                .map_or(error, StoreError::Refused)
        })
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, group: Option<&str>) -> Result<Arc<Mutex<Asked>>, StoreError> {
        let mut kept = self.kept();
        let now = Instant::now();
        let remakes = self.settings.remakes();
        let outdated: Vec<Kept> = kept
            .extract_if(.., |kept| kept.made_at != remakes)
            .collect();
        if let Some(known) = kept.iter_mut().find(|kept| kept.group.as_deref() == group) {
            known.used = now;
            return Ok(Arc::clone(&known.client));
        }
        let context = OutsiderContext {
            renewing: Renewing::of(&self.settings),
            ..OutsiderContext::default()
        };
        let made_at = self.settings.remakes();
        let client: Client = settings::client_config(&self.settings, Role::Outsider(group))
            .map_err(|error| StoreError::Refused(error.to_string()))?
            .create_with_context(context)
            .map_err(|error| StoreError::Refused(error.to_string()))?;
        let client = Arc::new(client);
        let client = Arc::new(Mutex::new(Asked {
            _registration: self.settings.register(&client),
            client,
        }));
        kept.push(Kept {
            group: group.map(str::to_owned),
            client: Arc::clone(&client),
            used: now,
            made_at,
        });
        // The one of no group is not a group's.
        let groups = kept.iter().filter(|kept| kept.group.is_some()).count();
        let oldest = kept
            .iter()
            .enumerate()
            .filter(|(_, kept)| kept.group.is_some())
            .min_by_key(|(_, kept)| kept.used)
            .map(|(index, _)| index);
        let surplus = oldest
            .filter(|_| groups > CLIENTS_MAX)
            .map(|index| kept.remove(index));
        drop(kept);
        // Closing takes a moment; nobody else waits for it.
        drop((surplus, outdated));
        Ok(client)
    }

    /// Closes all clients.
    pub(super) fn forget_all(&self) {
        let gone = std::mem::take(&mut *self.kept());
        drop(gone);
    }

    fn forget(&self, client: &Arc<Mutex<Asked>>) {
        let gone: Vec<Kept> = self
            .kept()
            .extract_if(.., |kept| Arc::ptr_eq(&kept.client, client))
            .collect();
        drop(gone);
    }
}

/// Serves log lines and errors that wait; takes a renewed password.
fn serve(client: &Client) {
    client.context().renewing.apply(client.client());
    while client.poll(Duration::ZERO).is_some() {}
}

fn commit(
    client: &Client,
    offsets: &[(Partition, Committed)],
) -> Result<CommitOutcome, StoreError> {
    serve(client);
    let list =
        list(offsets.iter().map(|(partition, committed)| {
            (partition, Offset::Offset(committed.position.offset()))
        }));
    for (partition, committed) in offsets {
        if let Some(mut element) = list.find_partition(partition.topic(), partition.number()) {
            element.set_metadata(&committed.metadata);
        }
    }
    let context = client.context();
    *context.committed() = None;
    ffi::commit(client.client(), &list).map_err(classify::store_error_of)?;
    let asked = Instant::now();
    loop {
        // Returns as soon as the callback was served.
        client.poll(Duration::from_millis(100));
        if let Some(code) = context.committed().take() {
            return match code {
                // The answer to an outsider of a group that is not empty.
                Some(code @ RDKafkaErrorCode::RebalanceInProgress) => {
                    Ok(CommitOutcome::NotOwner(code.to_string()))
                }
                Some(code) if classify::misconfigured(code) => {
                    Err(StoreError::Refused(code.to_string()))
                }
                code => Ok(classify::commit_outcome(code)),
            };
        }
        if asked.elapsed() >= COMMIT_MAX {
            return Ok(CommitOutcome::Unknown("no answer".to_owned()));
        }
    }
}

/// Tokens in the commit metadata of Kafka's groups.
#[derive(Clone)]
pub struct KafkaTokenStore {
    groups: Arc<Groups>,
    /// Whether a task closes unused clients.
    janitor: Arc<AtomicBool>,
}

impl KafkaTokenStore {
    /// Makes no client yet; fails only if the settings are unusable.
    pub fn new(settings: Settings) -> Result<Self, settings::Error> {
        settings::client_config(&settings, Role::Outsider(None))?;
        Ok(Self {
            groups: Arc::new(Groups::new(settings)),
            janitor: Arc::default(),
        })
    }

    /// What `group` committed for each of `partitions`, in one request.
    pub async fn fetch_all(
        &self,
        group: &str,
        partitions: Vec<Partition>,
    ) -> Result<HashMap<Partition, Committed>, StoreError> {
        let group = group.to_owned();
        self.ask(move |groups| groups.fetch(&group, &partitions))
            .await
    }

    /// First and end position of each log, in two requests.
    pub async fn log_ranges(
        &self,
        partitions: Vec<Partition>,
    ) -> Result<HashMap<Partition, (Position, Position)>, StoreError> {
        self.ask(move |groups| groups.ranges(&partitions)).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Groups) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let groups = Arc::clone(&self.groups);
        let answer = tokio::task::spawn_blocking(move || question(&groups))
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        if !self.janitor.swap(true, Ordering::Relaxed) {
            tokio::spawn(close_unused(
                Arc::downgrade(&self.groups),
                Arc::clone(&self.janitor),
            ));
        }
        answer
    }
}

/// Closes clients without work until there are none.
async fn close_unused(groups: Weak<Groups>, janitor: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(UNUSED_MAX / 2).await;
        let Some(groups) = groups.upgrade() else {
            return;
        };
        let left = tokio::task::spawn_blocking(move || {
            groups.close_unused();
            groups.kept().len()
        });
        if left.await.unwrap_or(0) == 0 {
            janitor.store(false, Ordering::Relaxed);
            return;
        }
    }
}

impl TokenStore for KafkaTokenStore {
    async fn fetch(
        &self,
        group: &str,
        partition: &Partition,
    ) -> Result<Option<Committed>, StoreError> {
        let mut found = self.fetch_all(group, vec![partition.clone()]).await?;
        Ok(found.remove(partition))
    }

    async fn commit_if_empty(
        &self,
        group: &str,
        offsets: Vec<(Partition, Committed)>,
    ) -> Result<CommitOutcome, StoreError> {
        let group = group.to_owned();
        self.ask(move |groups| groups.commit(&group, &offsets))
            .await
    }

    async fn log_range(&self, partition: &Partition) -> Result<(Position, Position), StoreError> {
        self.log_ranges(vec![partition.clone()])
            .await?
            .remove(partition)
            .ok_or_else(|| StoreError::Refused(format!("{partition} does not exist")))
    }

    async fn position_at(
        &self,
        partition: &Partition,
        timestamp_ms: i64,
    ) -> Result<Position, StoreError> {
        let partition = partition.clone();
        self.ask(move |groups| groups.position_at(&partition, timestamp_ms))
            .await
    }
}
