//! The broker as its owner sees it: started, asked, stopped.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::faults::Faults;
use crate::keeper::OpenError;
use crate::limits::STOP_WAIT_MAX;
use crate::log::Log;
use crate::options::{Listen, Options};
use crate::server;
use crate::settings::TOPIC_ID;
use crate::state::{Shared, State};
use crate::topics::TopicError;

/// A running broker. It has its own thread and its own runtime, so that a busy program
/// cannot starve the heartbeats of its own consumers. Dropping it stops it.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be bound.
    #[error("failed to listen on {address}")]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The broker has no passwords, so it serves its own machine only.
    #[error("{0} is not a loopback address; the embedded broker serves its own machine only")]
    NotLoopback(SocketAddr),
    /// The listener that was handed over cannot be used.
    #[error("failed to use the listener")]
    Listener(#[source] io::Error),
    /// The storage cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The operating system gives no thread or event loop.
    #[error("failed to start the broker's thread")]
    Thread(#[source] io::Error),
}

/// Why a broker could not stop cleanly. Its files are as after a crash, which it recovers
/// from.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The last writes failed.
    #[error("failed to write the broker's files")]
    Write(#[from] io::Error),
    /// The broker's thread had ended in a panic.
    #[error("the broker's thread had ended in a panic")]
    Panicked,
}

/// A topic as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub name: String,
    /// Its id, which is also its configuration `millrace.topic.id`.
    pub id: String,
    /// Its partitions, in their order.
    pub partitions: Vec<PartitionSummary>,
}

/// A partition as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionSummary {
    /// The first offset that can be read.
    pub start: i64,
    /// The offset of the next record.
    pub end: i64,
    /// The first offset that is not decided yet; equal to `end` without open transactions.
    pub stable_end: i64,
    /// Stored bytes.
    pub bytes: u64,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// The string that was committed with it.
    pub metadata: String,
}

fn bind(listen: Listen) -> Result<TcpListener, StartError> {
    let exact = |address: SocketAddr| {
        TcpListener::bind(address).map_err(|source| StartError::Bind { address, source })
    };
    match listen {
        Listen::Bound(listener) => Ok(listener),
        Listen::Exact(address) if !address.ip().is_loopback() => {
            Err(StartError::NotLoopback(address))
        }
        Listen::Exact(address) => exact(address),
        Listen::Preferred(port) => exact((Ipv4Addr::LOCALHOST, port).into())
            .or_else(|_| exact((Ipv4Addr::LOCALHOST, 0).into())),
    }
}

impl Broker {
    /// Starts a broker. When this returns, clients can connect.
    pub fn start(options: Options) -> Result<Broker, StartError> {
        let state = State::open(&options)?;
        let listener = bind(options.listen)?;
        let address = listener.local_addr().map_err(StartError::Listener)?;
        if !address.ip().is_loopback() {
            return Err(StartError::NotLoopback(address));
        }
        listener
            .set_nonblocking(true)
            .map_err(StartError::Listener)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("millrace-broker")
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let listener = {
            let _guard = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(StartError::Listener)?
        };
        let shared = Shared::new(state, address.ip().to_string(), address.port());
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::Builder::new()
            .name("millrace-broker".to_string())
            .spawn(move || {
                runtime.block_on(server::serve(serving, listener, stopped));
                // Connections have ended with `serve`; only a sync may still be running.
                runtime.shutdown_timeout(STOP_WAIT_MAX);
            })
            .map_err(StartError::Thread)?;
        tracing::info!(%address, cluster = %shared.lock().cluster_id, "the embedded broker serves");
        Ok(Broker {
            shared,
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What clients take as `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// Where the broker listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The id of the cluster. With files it stays the same over restarts.
    pub fn cluster_id(&self) -> String {
        self.shared.lock().cluster_id.clone()
    }

    /// The faults of this broker, for tests.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Creates a topic, with configuration as in Kafka (`retention.ms`, …).
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<(), TopicError> {
        let configs: BTreeMap<String, String> = configs
            .iter()
            .map(|(name, value)| ((*name).to_string(), (*value).to_string()))
            .collect();
        self.shared.lock().create_topic(name, partitions, configs)?;
        self.settle(name)
    }

    /// Deletes a topic with everything in it, committed offsets included.
    pub fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        self.shared.lock().delete_topic(name)?;
        self.shared.data.notify_waiters();
        self.settle(name)
    }

    fn settle(&self, topic: &str) -> Result<(), TopicError> {
        self.shared
            .sync_now()
            .map_err(|source| TopicError::Storage {
                topic: topic.to_string(),
                source,
            })
    }

    /// All topics.
    pub fn topics(&self) -> Vec<TopicSummary> {
        let state = self.shared.lock();
        state
            .topics
            .iter()
            .map(|(name, topic)| TopicSummary {
                name: name.clone(),
                id: topic.configs.get(TOPIC_ID).cloned().unwrap_or_default(),
                partitions: topic.logs.iter().map(summary).collect(),
            })
            .collect()
    }

    /// One partition, if it is there.
    pub fn partition(&self, topic: &str, partition: i32) -> Option<PartitionSummary> {
        self.shared.lock().log(topic, partition).map(summary)
    }

    /// What a group has committed for a partition. Offsets of open transactions are not
    /// committed.
    pub fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<CommittedOffset> {
        let state = self.shared.lock();
        let committed = state.groups.get(group)?.offsets.get(topic, partition)?;
        Some(CommittedOffset {
            offset: committed.offset,
            metadata: committed.metadata.clone(),
        })
    }

    /// Member ids of a group, in order.
    pub fn members(&self, group: &str) -> Vec<String> {
        let state = self.shared.lock();
        state
            .groups
            .get(group)
            .map(|group| group.members.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// Stops serving, writes everything to the device and lets go of the files.
    pub fn shutdown(mut self) -> Result<(), StopError> {
        self.halt()?;
        self.shared.lock().close().map_err(StopError::Write)
    }

    /// Stops as a crash of the process would: nothing is flushed, nothing is said. For
    /// tests of recovery.
    pub fn kill(mut self) {
        if let Err(error) = self.halt() {
            tracing::error!(%error, "the embedded broker was not alive");
        }
    }

    /// Ends all connections and the thread.
    fn halt(&mut self) -> Result<(), StopError> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(StopError::Panicked),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        let outcome = self
            .halt()
            .and_then(|()| self.shared.lock().close().map_err(StopError::Write));
        if let Err(error) = outcome {
            tracing::error!(%error, "the embedded broker did not stop cleanly");
        }
    }
}

fn summary(log: &Log) -> PartitionSummary {
    PartitionSummary {
        start: log.start(),
        end: log.end(),
        stable_end: log.stable_end(),
        bytes: log.bytes(),
    }
}
