//! Questions about the cluster, and the few changes that are ours to make: what preflight asks.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::auth_tokens::Registration;
use super::rebalance::QuietContext;
use super::secrets::Renewing;
use super::settings::{self, Error, Role, Settings};
use super::{classify, ffi};
use crate::StoreError;

/// How long brokers may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long one look at the cluster's id waits, and how many there are.
const LOOK_MAX: Duration = Duration::from_millis(100);
const LOOKS_MAX: usize = 100;

/// Events of a connection that are looked at after a missing answer.
const EVENTS_AT_ONCE_MAX: usize = 200;

/// The topic config that tells a recreated topic of the embedded broker from its predecessor.
const TOPIC_ID: &str = "millrace.topic.id";

/// A topic that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicInfo {
    /// Its number of partitions.
    pub partitions: i32,
}

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The member id.
    pub id: String,
    /// What it calls itself; ours are called [`Settings::client_id`].
    pub client_id: String,
    /// Where it is.
    pub host: String,
    /// The rebalance protocol of its group, such as `cooperative-sticky`.
    pub protocol: String,
}

/// Asks a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    kept: Arc<Kept>,
}

/// The clients, made anew when their secrets want that.
struct Kept {
    settings: Settings,
    inner: Mutex<Arc<Inner>>,
}

struct Inner {
    made_at: u64,
    renewing: [Renewing; 2],
    settings: Settings,
    /// Before the clients, which end here then.
    _registrations: [Registration; 2],
    client: Arc<AdminClient<QuietContext>>,
    /// A consumer's metadata requests never create topics.
    reader: Arc<BaseConsumer<AskingContext>>,
}

/// Remembers why brokers do not let us in: answers only say that none came.
#[derive(Clone, Default)]
struct AskingContext {
    refusal: Arc<Mutex<Option<String>>>,
}

impl ClientContext for AskingContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        QuietContext.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // TLS alerts of the broker look like a broken connection; their text is all there is.
        let lasting = error
            .rdkafka_error_code()
            .is_some_and(classify::misconfigured)
            || reason.contains("certificate");
        if lasting {
            *self.refusal.lock().expect("no holder panics") = Some(reason.to_owned());
        }
        QuietContext.error(error, reason);
    }
}

impl ConsumerContext for AskingContext {}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// Makes the clients; fails only if the settings are unusable.
    pub fn connect(settings: &Settings) -> Result<Self, Error> {
        let inner = Mutex::new(Arc::new(Inner::connect(settings)?));
        let settings = settings.clone();
        Ok(Self {
            kept: Arc::new(Kept { settings, inner }),
        })
    }

    /// The clients as they have to be now.
    fn inner(&self) -> Arc<Inner> {
        let settings = &self.kept.settings;
        let mut inner = self.kept.inner.lock().expect("no holder panics");
        if inner.made_at != settings.remakes() {
            match Inner::connect(settings) {
                Ok(new) => *inner = Arc::new(new),
                Err(error) => {
                    warn!(%error, "the client cannot be made anew, going on with the old one")
                }
            }
        }
        inner.renewing[0].apply(inner.client.inner());
        inner.renewing[1].apply(inner.reader.client());
        Arc::clone(&inner)
    }

    /// The cluster's id.
    pub async fn cluster_id(&self) -> Result<String, StoreError> {
        self.blocking(Inner::cluster_id).await
    }

    /// The topics of these that exist.
    pub async fn topics(&self, names: &[&str]) -> Result<HashMap<String, TopicInfo>, StoreError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.blocking(move |inner| inner.topics(&names)).await
    }

    /// Creates topics with the broker's replication; those that exist stay as they are.
    pub async fn create_topics(&self, topics: &[(&str, i32)]) -> Result<(), StoreError> {
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|(name, partitions)| NewTopic::new(name, *partitions, TopicReplication::Fixed(-1)))
            .collect();
        let created = self
            .inner()
            .client
            .create_topics(&new, &options())
            .await
            .map_err(|error| classify::store_error(&error))?;
        for result in created {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(StoreError::Refused(format!(
                        "topic {topic} was not created: {code}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Deletes a topic with everything in it.
    pub async fn delete_topic(&self, topic: &str) -> Result<(), StoreError> {
        let deleted = self
            .inner()
            .client
            .delete_topics(&[topic], &options())
            .await
            .map_err(|error| classify::store_error(&error))?;
        match deleted.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some((topic, code)) => Err(StoreError::Refused(format!(
                "topic {topic} was not deleted: {code}"
            ))),
        }
    }

    /// `max.message.bytes` of those topics that tell (D-O3).
    pub async fn max_message_bytes(
        &self,
        topics: &[&str],
    ) -> Result<HashMap<String, u64>, StoreError> {
        let configs = self.topic_config(topics, "max.message.bytes").await?;
        Ok(configs
            .into_iter()
            .filter_map(|(topic, value)| Some((topic, value.parse().ok()?)))
            .collect())
    }

    /// The members of a group; none if there is no such group.
    pub async fn members(&self, group: &str) -> Result<Vec<Member>, StoreError> {
        let group = group.to_owned();
        self.blocking(move |inner| inner.members(&group)).await
    }

    /// First four bytes of SHA-256(cluster id `/` topic id), for topics whose id is known (E1,
    /// key `t`).
    pub async fn topic_identities(
        &self,
        topics: &[&str],
    ) -> Result<HashMap<String, u32>, StoreError> {
        let names: Vec<String> = topics.iter().map(|name| (*name).to_owned()).collect();
        let admin = self.clone();
        self.blocking(move |_| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            admin.topic_identities_blocking(&names)
        })
        .await
    }

    /// The same, for callers that may block.
    pub(super) fn topic_identities_blocking(
        &self,
        topics: &[&str],
    ) -> Result<HashMap<String, u32>, StoreError> {
        let inner = self.inner();
        let mut ids = inner.topic_ids(topics)?;
        let rest: Vec<&str> = topics
            .iter()
            .copied()
            .filter(|topic| !ids.contains_key(*topic))
            .collect();
        if !rest.is_empty() {
            ids.extend(block_on(self.topic_config(&rest, TOPIC_ID))?);
        }
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let cluster = inner.cluster_id()?;
        Ok(ids
            .into_iter()
            .map(|(topic, id)| (topic, identity(&cluster, &id)))
            .collect())
    }

    /// One config of those topics that have it and tell.
    async fn topic_config(
        &self,
        topics: &[&str],
        name: &str,
    ) -> Result<HashMap<String, String>, StoreError> {
        let mut found = HashMap::new();
        for topic in topics {
            // One request per topic: a refusal of one must not hide the others.
            let specifier = [ResourceSpecifier::Topic(topic)];
            let described = self
                .inner()
                .client
                .describe_configs(&specifier, &options())
                .await
                .map_err(|error| classify::store_error(&error))?;
            for resource in described {
                match resource {
                    Ok(resource) => {
                        if let Some(value) = value(&resource, name) {
                            found.insert((*topic).to_owned(), value);
                        }
                    }
                    Err(
                        RDKafkaErrorCode::TopicAuthorizationFailed
                        | RDKafkaErrorCode::ClusterAuthorizationFailed
                        | RDKafkaErrorCode::UnknownTopicOrPartition
                        | RDKafkaErrorCode::UnsupportedVersion,
                    ) => {}
                    Err(code) => return Err(classify::store_error_of(code)),
                }
            }
        }
        Ok(found)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if let Some(reason) = self.kept.settings.missing_token() {
            // It would wait for an answer that cannot come. Whoever asks again finds out.
            return Err(StoreError::Refused(reason));
        }
        let inner = self.inner();
        tokio::task::spawn_blocking(move || question(&inner))
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))?
    }
}

impl Inner {
    fn connect(settings: &Settings) -> Result<Self, Error> {
        let made_at = settings.remakes();
        let renewing = [Renewing::of(settings), Renewing::of(settings)];
        let client: AdminClient<_> = settings::client_config(settings, Role::Admin)?
            .create_with_context(QuietContext)
            .map_err(|error| Error::Client(error.to_string()))?;
        let reader: BaseConsumer<_> = settings::client_config(settings, Role::Outsider(None))?
            .create_with_context(AskingContext::default())
            .map_err(|error| Error::Client(error.to_string()))?;
        let (client, reader) = (Arc::new(client), Arc::new(reader));
        Ok(Self {
            made_at,
            renewing,
            settings: settings.clone(),
            _registrations: [settings.register(&client), settings.register(&reader)],
            client,
            reader,
        })
    }

    fn cluster_id(&self) -> Result<String, StoreError> {
        // librdkafka looks, and only then waits for news: an answer between the two is noticed when
        // the wait is over. So it looks often.
        let look = |_| self.client.inner().fetch_cluster_id(LOOK_MAX);
        if let Some(id) = (0..LOOKS_MAX).find_map(look) {
            return Ok(id);
        }
        // That answer gives no reason; this one does.
        match self.reader.fetch_metadata(None, ANSWER_MAX) {
            Err(error) => Err(self.why(classify::store_error(&error))),
            Ok(_) => Err(StoreError::Unavailable(
                "the cluster did not tell its id".to_owned(),
            )),
        }
    }

    /// The reason behind a missing answer, if brokers gave one to the connection: wrong user,
    /// password or certificate.
    fn why(&self, error: StoreError) -> StoreError {
        if !matches!(error, StoreError::Unavailable(_)) {
            return error;
        }
        if let Some(reason) = self.settings.missing_token() {
            return StoreError::Refused(reason);
        }
        let refusal = || {
            self.reader
                .context()
                .refusal
                .lock()
                .expect("no holder panics")
                .take()
        };
        let mut found = None;
        for _ in 0..EVENTS_AT_ONCE_MAX {
            // Hands one event to the context. Log lines look like an empty queue, so go on.
            drop(self.reader.poll(Duration::ZERO));
            found = refusal();
            if found.is_some() {
                break;
            }
        }
        found.map_or(error, StoreError::Refused)
    }

    fn topics(&self, names: &[String]) -> Result<HashMap<String, TopicInfo>, StoreError> {
        let mut found = HashMap::new();
        for name in names {
            let metadata = self
                .reader
                .fetch_metadata(Some(name), ANSWER_MAX)
                .map_err(|error| self.why(classify::store_error(&error)))?;
            for topic in metadata
                .topics()
                .iter()
                .filter(|topic| topic.name() == name)
            {
                match topic.error().map(RDKafkaErrorCode::from) {
                    None => {
                        let partitions = i32::try_from(topic.partitions().len())
                            .expect("a topic's partitions are numbered with i32");
                        found.insert(name.clone(), TopicInfo { partitions });
                    }
                    Some(
                        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
                    ) => {}
                    Some(code) => return Err(classify::store_error_of(code)),
                }
            }
        }
        Ok(found)
    }

    fn members(&self, group: &str) -> Result<Vec<Member>, StoreError> {
        let groups = match self.reader.fetch_group_list(Some(group), ANSWER_MAX) {
            Ok(groups) => groups,
            Err(KafkaError::GroupListFetch(RDKafkaErrorCode::GroupIdNotFound)) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(classify::store_error(&error)),
        };
        Ok(groups
            .groups()
            .iter()
            .filter(|found| found.name() == group)
            .flat_map(|found| {
                found.members().iter().map(|member| Member {
                    id: member.id().to_owned(),
                    client_id: member.client_id().to_owned(),
                    host: member.client_host().to_owned(),
                    protocol: found.protocol().to_owned(),
                })
            })
            .collect())
    }

    /// Ids that the broker tells by itself.
    fn topic_ids(&self, topics: &[&str]) -> Result<HashMap<String, String>, StoreError> {
        let Ok(names) = topics
            .iter()
            .map(|topic| CString::new(*topic))
            .collect::<Result<Vec<CString>, _>>()
        else {
            return Err(StoreError::Refused(
                "a topic's name holds a zero byte".to_owned(),
            ));
        };
        match ffi::topic_ids(self.client.inner(), &names, ANSWER_MAX) {
            Ok(ids) => Ok(topics
                .iter()
                .zip(ids)
                .filter_map(|(topic, id)| Some(((*topic).to_owned(), id?)))
                .collect()),
            // A broker from before topic ids, or one that does not let us look.
            Err(
                RDKafkaErrorCode::UnsupportedFeature
                | RDKafkaErrorCode::UnsupportedVersion
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => Ok(HashMap::new()),
            Err(code) => Err(classify::store_error_of(code)),
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(ANSWER_MAX))
        .operation_timeout(Some(ANSWER_MAX))
}

fn value(resource: &ConfigResource, name: &str) -> Option<String> {
    resource
        .get(name)?
        .value
        .clone()
        .filter(|value| !value.is_empty())
}

fn identity(cluster: &str, topic_id: &str) -> u32 {
    let digest = Sha256::digest(format!("{cluster}/{topic_id}").as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Waits for a future on this thread, outside of any runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>(_: T) {}

    #[test]
    fn questions_can_be_asked_from_tasks() {
        let admin = Admin::connect(&Settings::plain("127.0.0.1:1", "test")).unwrap();
        is_send(admin.cluster_id());
        is_send(admin.topics(&["t"]));
        is_send(admin.create_topics(&[("t", 1)]));
        is_send(admin.delete_topic("t"));
        is_send(admin.max_message_bytes(&["t"]));
        is_send(admin.members("g"));
        is_send(admin.topic_identities(&["t"]));
    }

    #[test]
    fn e1_an_identity_depends_on_cluster_and_topic_id() {
        assert_eq!(identity("c", "t"), identity("c", "t"));
        assert_ne!(identity("c", "t"), identity("c", "u"));
        assert_ne!(identity("c", "t"), identity("d", "t"));
    }
}
