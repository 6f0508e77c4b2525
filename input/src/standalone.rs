//! Gives a block without a controller its first tokens (D-G12). What to write is decided in
//! `core/src/seeding.rs`.

use millrace_connectors::kafka::KafkaTokenStore;
use millrace_connectors::{StoreError, TokenStore};
use millrace_core::contract::block::{Identity, KafkaInput, StartAt};
use millrace_core::contract::commit::UnknownKeys;
use millrace_core::contract::grant::{self, Grant};
use millrace_core::intake::io::{CommitOutcome, Committed};
use millrace_core::position::{Partition, Position};
use millrace_core::seeding::{Found, live, plan};
use millrace_core::token::ReleaseId;
use tracing::info;

/// Why nothing was seeded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker did not answer or refused.
    #[error("failed to seed the tokens of topic {topic}")]
    Store {
        /// Which.
        topic: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// Somebody else wrote into the registry's group.
    #[error("the registry {group} of topic {topic} cannot be read; who else uses this group?")]
    Registry {
        /// The registry's group.
        group: String,
        /// Which topic.
        topic: String,
        /// What is wrong with it.
        #[source]
        source: grant::Error,
    },
    /// A commit to an empty group was refused.
    #[error("the broker refused to seed {group}: {message}; is another starter running?")]
    Refused {
        /// Whose offsets.
        group: String,
        /// The broker's word.
        message: String,
    },
}

/// Who is seeded.
pub(crate) struct Starter<'a> {
    pub(crate) store: &'a KafkaTokenStore,
    pub(crate) identity: &'a Identity,
    pub(crate) release: &'a ReleaseId,
    pub(crate) input: &'a KafkaInput,
}

impl Starter<'_> {
    /// Seeds a topic with so many partitions, if it needs that.
    pub(crate) async fn seed(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        let (group, registry) = (
            self.identity.group(self.release.as_str()),
            self.identity.registry_group(),
        );
        let store = |source| Error::Store {
            topic: topic.to_owned(),
            source,
        };
        let all: Vec<Partition> = (0..partitions).map(|p| Partition::new(topic, p)).collect();
        let grant = self.store.fetch(&registry, &all[0]).await.map_err(store)?;
        let known = self
            .store
            .fetch_all(&group, all.clone())
            .await
            .map_err(store)?;
        let found = Found {
            registry: grant
                .map(|grant| Grant::decode(&grant.metadata, UnknownKeys::Ignore))
                .transpose()
                .map_err(|source| Error::Registry {
                    group: registry.clone(),
                    topic: topic.to_owned(),
                    source,
                })?,
            committed: all.iter().map(|p| known.contains_key(p)).collect(),
        };
        let Some(seeds) = plan(&found, self.release) else {
            return Ok(());
        };
        self.grant(&registry, &all[0], &seeds.seeding).await?;
        let mut offsets = Vec::new();
        for number in seeds.partitions {
            let partition = Partition::new(topic, number);
            let position = self.start(&partition).await.map_err(store)?;
            offsets.push((partition, live(position, None)));
        }
        let count = offsets.len();
        if count > 0 {
            self.write(&group, offsets).await?;
        }
        self.grant(&registry, &all[0], &seeds.seeded).await?;
        info!(topic, partitions = count, %group, "seeded: this release answers live");
        Ok(())
    }

    /// Where a new group begins (D-G9).
    async fn start(&self, partition: &Partition) -> Result<Position, StoreError> {
        if let Some(group) = &self.input.adopt_group
            && let Some(adopted) = self.store.fetch(group, partition).await?
        {
            return Ok(adopted.position);
        }
        let (first, end) = self.store.log_range(partition).await?;
        match self.input.start_at {
            StartAt::Earliest => Ok(first),
            StartAt::Latest => Ok(end),
            StartAt::Time { timestamp_ms } => self.store.position_at(partition, timestamp_ms).await,
        }
    }

    async fn grant(
        &self,
        registry: &str,
        partition: &Partition,
        grant: &Grant,
    ) -> Result<(), Error> {
        let committed = Committed {
            position: Position::START,
            metadata: grant.encode(),
        };
        self.write(registry, vec![(partition.clone(), committed)])
            .await
    }

    async fn write(&self, group: &str, offsets: Vec<(Partition, Committed)>) -> Result<(), Error> {
        let topic = offsets
            .first()
            .map_or_else(String::new, |(p, _)| p.topic().to_owned());
        let outcome = self.store.commit_if_empty(group, offsets).await;
        match outcome.map_err(|source| Error::Store { topic, source })? {
            CommitOutcome::Done => Ok(()),
            CommitOutcome::Retriable(message)
            | CommitOutcome::NotOwner(message)
            | CommitOutcome::Unknown(message) => Err(Error::Refused {
                group: group.to_owned(),
                message,
            }),
        }
    }
}
