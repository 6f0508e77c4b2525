//! Reads tokens and ends of logs for a source on a thread of its own, so that the poll thread
//! never waits.
//!
//! What was asked while an answer was under way is read together: one request per group,
//! however many partitions a rebalance brings.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use millrace_core::intake::io::{Committed, TokensRead};
use millrace_core::limits::SOURCE_COMMANDS_QUEUED_MAX;
use millrace_core::position::{Partition, Position};
use tokio::time::Instant;
use tracing::debug;

use super::admin::Admin;
use super::ends::{ASK_EVERY, Ends};
use super::settings::{GroupSettings, Settings};
use super::tokens::Groups;
use crate::mailbox::{Mailbox, Tenure};
use crate::{Happening, StoreError};

/// How long a question that nobody else repeats waits for its next try.
const RETRY: Duration = ASK_EVERY;

#[derive(Debug)]
enum Question {
    Tokens(Partition, Tenure),
    Range(Partition, Tenure),
}

/// Asks the thread. It ends when the last handle is gone.
#[derive(Clone, Debug)]
pub(super) struct TokenReader {
    questions: SyncSender<Question>,
    mailbox: Arc<Mailbox>,
}

impl TokenReader {
    pub(super) fn start(
        settings: Settings,
        group: &GroupSettings,
        mailbox: Arc<Mailbox>,
        ends: Ends,
    ) -> Self {
        let (questions, receiver) = sync_channel(SOURCE_COMMANDS_QUEUED_MAX);
        let worker = Worker {
            groups: Groups::new(settings.clone()),
            settings,
            admin: None,
            own: group.group.clone(),
            registry: group.registry.clone(),
            mailbox: Arc::clone(&mailbox),
            ends,
            ends_asked: None,
        };
        std::thread::Builder::new()
            .name("millrace-tokens".to_owned())
            .spawn(move || worker.run(&receiver))
            .expect("the process can start a thread at its start");
        Self { questions, mailbox }
    }

    /// Ends as [`Happening::TokensRead`].
    pub(super) fn read(&self, partition: Partition) {
        // Without a tenure it was given away meanwhile, and nobody waits for the answer.
        if let Some(tenure) = self.mailbox.tenure(&partition) {
            self.ask(Question::Tokens(partition, tenure));
        }
    }

    /// Ends as [`Happening::OutOfRange`].
    pub(super) fn out_of_range(&self, partition: &Partition) {
        if let Some(tenure) = self.mailbox.tenure(partition) {
            self.ask(Question::Range(partition.clone(), tenure));
        }
    }

    fn ask(&self, question: Question) {
        self.questions
            .send(question)
            .expect("the thread lives as long as a handle to it");
    }
}

struct Worker {
    settings: Settings,
    groups: Groups,
    admin: Option<Admin>,
    own: String,
    registry: String,
    mailbox: Arc<Mailbox>,
    ends: Ends,
    ends_asked: Option<Instant>,
}

/// What was read about several partitions.
struct Read {
    own: HashMap<Partition, Committed>,
    registry: HashMap<Partition, Committed>,
    ranges: HashMap<Partition, (Position, Position)>,
    identities: HashMap<String, u32>,
}

impl Worker {
    fn run(mut self, questions: &Receiver<Question>) {
        let mut ranges = BTreeMap::new();
        loop {
            // Ranges that could not be read are asked for again: nobody else does, and the
            // partition stands still until they are known.
            let first = match questions.recv_timeout(RETRY) {
                Ok(question) => Some(question),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut tokens = BTreeMap::new();
            for question in first.into_iter().chain(questions.try_iter()) {
                match question {
                    Question::Tokens(partition, tenure) => tokens.insert(partition, tenure),
                    Question::Range(partition, tenure) => ranges.insert(partition, tenure),
                };
            }
            if !tokens.is_empty() {
                self.answer(&tokens);
            }
            ranges.retain(|partition, tenure| !self.range(partition, *tenure));
            self.ask_for_ends();
            self.groups.close_unused();
        }
    }

    /// Asks where the logs end; not more often than [`ASK_EVERY`], however many questions come.
    fn ask_for_ends(&mut self) {
        let now = Instant::now();
        let recent = |asked: Instant| now.duration_since(asked) < ASK_EVERY / 2;
        let partitions = self.mailbox.partitions();
        if partitions.is_empty() || self.ends_asked.is_some_and(recent) {
            return;
        }
        self.ends_asked = Some(now);
        match self.groups.ends(&partitions) {
            Ok(ends) => self.ends.told(now, ends),
            Err(error) => debug!(%error, "the ends of the logs are not known"),
        }
    }

    fn answer(&mut self, asked: &BTreeMap<Partition, Tenure>) {
        let partitions: Vec<Partition> = asked.keys().cloned().collect();
        let read = self.read(&partitions);
        if let Err(StoreError::Unavailable(_)) = &read {
            // After nodes have died each client may know of one only that is gone, and each would
            // cost a time-out to find that out: the next question goes through new ones.
            self.admin = None;
            self.groups.forget_all();
        }
        if let Err(StoreError::Refused(message)) = &read {
            self.mailbox
                .push_once(Happening::Misconfigured(message.clone()));
        }
        for (partition, tenure) in asked {
            let answer = match &read {
                Err(error) => Err(error.to_string()),
                Ok(read) => read.of(partition),
            };
            let happening = Happening::TokensRead {
                partition: partition.clone(),
                read: answer,
            };
            self.mailbox.push_about(partition, *tenure, happening);
        }
    }

    fn read(&mut self, partitions: &[Partition]) -> Result<Read, StoreError> {
        // Log ends come after the tokens, so that they are never below a committed position.
        let topics: BTreeSet<&str> = partitions.iter().map(Partition::topic).collect();
        let mut registry: BTreeSet<Partition> = partitions.iter().cloned().collect();
        registry.extend(topics.iter().map(|topic| Partition::new(*topic, 0)));
        let registry: Vec<Partition> = registry.into_iter().collect();
        Ok(Read {
            own: self.groups.fetch(&self.own, partitions)?,
            registry: self.groups.fetch(&self.registry, &registry)?,
            ranges: self.groups.ranges(partitions)?,
            identities: self.identities(&topics)?,
        })
    }

    fn identities(&mut self, topics: &BTreeSet<&str>) -> Result<HashMap<String, u32>, StoreError> {
        let admin = match &mut self.admin {
            Some(admin) => admin,
            none => none.insert(
                Admin::connect(&self.settings)
                    .map_err(|error| StoreError::Refused(error.to_string()))?,
            ),
        };
        let names: Vec<&str> = topics.iter().copied().collect();
        admin.topic_identities_blocking(&names)
    }

    /// Whether the range is known now, or nobody waits for it any more.
    fn range(&self, partition: &Partition, tenure: Tenure) -> bool {
        if self.mailbox.tenure(partition) != Some(tenure) {
            return true;
        }
        let range = match self.groups.ranges(std::slice::from_ref(partition)) {
            Ok(ranges) => ranges.get(partition).copied(),
            Err(error) => {
                debug!(%partition, %error, "the range of the log is not known yet");
                None
            }
        };
        if let Some((log_start, log_end)) = range {
            let happening = Happening::OutOfRange {
                partition: partition.clone(),
                log_start,
                log_end,
            };
            self.mailbox
                .push_behind(partition.clone(), tenure, happening);
        }
        range.is_some()
    }
}

impl Read {
    fn of(&self, partition: &Partition) -> Result<TokensRead, String> {
        let (log_start, log_end) = self
            .ranges
            .get(partition)
            .copied()
            .ok_or_else(|| "the broker did not tell the ends of the log".to_owned())?;
        Ok(TokensRead {
            own: self.own.get(partition).cloned(),
            registry: self.registry.get(partition).cloned(),
            seeding: self
                .registry
                .get(&Partition::new(partition.shared_topic(), 0))
                .cloned(),
            log_start,
            log_end,
            topic_identity: self.identities.get(partition.topic()).copied(),
        })
    }
}
