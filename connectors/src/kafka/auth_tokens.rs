//! Keeps the auth token of one connection, and hands it to all of its clients (D-P2, decision
//! 0012).
//!
//! A thread of its own asks the token endpoint when `core::auth_token` says so, and gives each new
//! token to every client that lives; a client that is made later gets the token when it is
//! registered. No poll thread waits for a token, and none is asked for one: librdkafka's own
//! wishes for a refresh come too late or find nobody who polls.
//!
//! Invariant: a client in the register is alive, and is destroyed where its owner drops it: the
//! keeper uses it under the lock of the register only.
//! Invariant: no token and no secret is printed.

use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_core::auth_token::{AuthToken, Keeper, Step, answer};
use millrace_core::time::Time;
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::ffi;
use super::secrets::Password;
use super::token_endpoint::TokenEndpoint;

/// How long the keeper sleeps at most: its timers stand still while the machine sleeps.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A clock for the decisions.
pub type Clock = fn() -> Time;

/// A client that takes tokens.
pub(super) trait TakesTokens: Send + Sync {
    /// Uses this one from now on.
    fn take(&self, token: &ffi::BearerToken) -> Result<(), String>;
}

impl<C: ConsumerContext + 'static> TakesTokens for BaseConsumer<C> {
    fn take(&self, token: &ffi::BearerToken) -> Result<(), String> {
        ffi::set_token(self.client(), token)
    }
}

impl<C: ProducerContext + 'static> TakesTokens for ThreadedProducer<C> {
    fn take(&self, token: &ffi::BearerToken) -> Result<(), String> {
        ffi::set_token(self.client(), token)
    }
}

impl<C: ClientContext + 'static> TakesTokens for AdminClient<C> {
    fn take(&self, token: &ffi::BearerToken) -> Result<(), String> {
        ffi::set_token(self.inner(), token)
    }
}

/// The token of a connection, and its clients. All clones are one; the last one ends the keeper.
#[derive(Clone)]
pub struct AuthTokens(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: TokenEndpoint,
    secret: Password,
    /// Names and values that brokers are told beside the token.
    extensions: Vec<(CString, CString)>,
    clock: Clock,
    state: Mutex<State>,
    /// The secret is another one, or nobody wants tokens any more.
    changed: Notify,
}

struct State {
    keeper: Keeper,
    token: Option<ffi::BearerToken>,
    clients: Vec<(u64, Arc<dyn TakesTokens>)>,
    registered: u64,
    running: bool,
    over: bool,
}

/// A client's place in the register; it leaves when this is dropped. The keeper lives as long.
#[derive(Default)]
pub(super) struct Registration(Option<(AuthTokens, u64)>);

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthTokens")
            .field(&self.0.shared.endpoint)
            .finish()
    }
}

impl PartialEq for AuthTokens {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for AuthTokens {}

impl AuthTokens {
    /// Asks nobody yet: the first client does.
    pub(super) fn new(
        endpoint: TokenEndpoint,
        secret: Password,
        extensions: Vec<(CString, CString)>,
        clock: Clock,
    ) -> Self {
        // Proxies of one pod start together, and processes of one second differ in their numbers.
        let seed = u64::try_from(clock().boot.as_nanos()).unwrap_or(u64::MAX)
            ^ u64::from(std::process::id());
        let state = State {
            keeper: Keeper::new(seed),
            token: None,
            clients: Vec::new(),
            registered: 0,
            running: false,
            over: false,
        };
        let shared = Shared {
            endpoint,
            secret,
            extensions,
            clock,
            state: Mutex::new(state),
            changed: Notify::new(),
        };
        Self(Arc::new(Owner {
            shared: Arc::new(shared),
        }))
    }

    /// Gives the client the token that is there, and each later one until the registration is
    /// dropped, which has to happen before the owner's last handle of the client goes.
    pub(super) fn register(&self, client: Arc<dyn TakesTokens>) -> Registration {
        let shared = &self.0.shared;
        let mut state = shared.state();
        if let Some(token) = &state.token
            && !state.keeper.left((shared.clock)()).is_zero()
        {
            give(&*client, token);
        }
        state.registered += 1;
        let number = state.registered;
        state.clients.push((number, client));
        if !state.running {
            state.running = shared.start();
        }
        drop(state);
        Registration(Some((self.clone(), number)))
    }

    /// Another client secret, to be used at once.
    pub(super) fn renew(&self, secret: &str) -> bool {
        let shared = &self.0.shared;
        if shared.secret.text() == secret {
            return false;
        }
        shared.secret.renew(secret.to_owned());
        shared.changed.notify_one();
        true
    }

    /// Until the end of the token in use; zero without one.
    pub fn left(&self) -> Duration {
        let shared = &self.0.shared;
        shared.state().keeper.left((shared.clock)())
    }

    /// Why brokers let nobody in, while there is no token that has not ended.
    pub fn missing(&self) -> Option<String> {
        let shared = &self.0.shared;
        let state = shared.state();
        let reason = state.keeper.missing((shared.clock)())?;
        Some(format!(
            "there is no SASL OAUTHBEARER token for this connection: token endpoint {}: {reason}",
            shared.endpoint
        ))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_one();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some((tokens, number)) = self.0.take() else {
            return;
        };
        let shared = &tokens.0.shared;
        let gone: Vec<_> = shared
            .state()
            .clients
            .extract_if(.., |(other, _)| *other == number)
            .collect();
        // After the lock: if this was the last handle, the client ends here.
        drop(gone);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the keeper runs now.
    fn start(self: &Arc<Self>) -> bool {
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("millrace-auth".to_owned())
            .spawn(move || shared.run());
        if let Err(error) = &started {
            error!(%error, "no thread can be started to keep auth tokens");
        }
        started.is_ok()
    }

    fn run(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => {
                runtime.block_on(self.keep());
                // A name that is still being looked up holds nobody up.
                runtime.shutdown_background();
            }
            Err(error) => {
                error!(%error, "no runtime can be made to keep auth tokens");
                let reason = format!("this process cannot ask it: {error}");
                let mut state = self.state();
                state.keeper.failed((self.clock)(), reason);
                // The next client tries again.
                state.running = false;
            }
        }
    }

    async fn keep(&self) {
        let mut used = self.secret.version();
        let mut outage = false;
        loop {
            let step = {
                let mut state = self.state();
                if state.over {
                    return;
                }
                let now = (self.clock)();
                let version = self.secret.version();
                if version != used {
                    used = version;
                    state.keeper.secret_changed(now);
                }
                let missing = state.keeper.missing(now).is_some();
                if missing && !outage {
                    error!(
                        endpoint = %self.endpoint,
                        "there is no SASL OAUTHBEARER token any more, brokers will let nobody in; trying on"
                    );
                }
                outage = missing;
                state.keeper.step(now)
            };
            match step {
                Step::Ask => self.ask().await,
                Step::Wait(wait) => {
                    tokio::select! {
                        () = tokio::time::sleep(wait.min(LOOK_AGAIN)) => {}
                        () = self.changed.notified() => {}
                    }
                }
            }
        }
    }

    async fn ask(&self) {
        let secret = self.secret.text();
        let answer = self.endpoint.ask(&secret).await;
        let now = (self.clock)();
        let read = match answer {
            Ok((status, body)) => answer::read(status, &body, self.endpoint.client(), now)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(token) => self.hand_out(&token, now),
            Err(reason) => {
                let mut state = self.state();
                let first = state.keeper.failures() == 0;
                state.keeper.failed(now, reason.clone());
                let left_seconds = state.keeper.left(now).as_secs();
                drop(state);
                if first {
                    warn!(
                        endpoint = %self.endpoint, %reason, left_seconds,
                        "the token endpoint gave no SASL OAUTHBEARER token; the old one serves until its end, trying on"
                    );
                } else {
                    debug!(endpoint = %self.endpoint, %reason, left_seconds, "still no new token");
                }
            }
        }
    }

    fn hand_out(&self, token: &AuthToken, now: Time) {
        let bearer = match ffi::BearerToken::new(token, now, &self.extensions) {
            Ok(bearer) => bearer,
            Err(reason) => return self.state().keeper.failed(now, reason),
        };
        let mut state = self.state();
        let again = state.keeper.failures() > 0;
        let first = state.token.is_none();
        state.keeper.given(now, token.life);
        for (_, client) in &state.clients {
            give(&**client, &bearer);
        }
        state.token = Some(bearer);
        drop(state);
        let life_seconds = token.life.as_secs();
        if first || again {
            info!(endpoint = %self.endpoint, life_seconds, "there is a SASL OAUTHBEARER token");
        } else {
            debug!(endpoint = %self.endpoint, life_seconds, "the token was renewed");
        }
    }
}

fn give(client: &dyn TakesTokens, token: &ffi::BearerToken) {
    if let Err(error) = client.take(token) {
        warn!(%error, "a client does not take its token");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use tokio::time::Instant;

    use super::super::rebalance::QuietContext;
    use super::super::settings::{Role, Settings, client_config};
    use super::super::token_endpoint::Roots;
    use super::*;

    /// A client that remembers its tokens.
    #[derive(Default)]
    struct Taker(Mutex<Vec<CString>>);

    impl TakesTokens for Taker {
        fn take(&self, token: &ffi::BearerToken) -> Result<(), String> {
            self.0.lock().unwrap().push(token.text().to_owned());
            Ok(())
        }
    }

    impl Taker {
        fn taken(&self) -> Vec<CString> {
            self.0.lock().unwrap().clone()
        }
    }

    fn clock() -> Time {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Time {
            boot: START.get_or_init(Instant::now).elapsed(),
            wall_ms: i64::try_from(since_1970.unwrap().as_millis()).unwrap(),
        }
    }

    /// An endpoint that gives a new token of one second to whoever knows the secret.
    fn endpoint() -> (TokenEndpoint, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            let login = format!("Basic {}", STANDARD.encode("me:secret"));
            for mut stream in listener.incoming().flatten() {
                let mut request = String::new();
                while !request.ends_with("client_credentials") {
                    let mut part = [0; 1_024];
                    let read = stream.read(&mut part).unwrap();
                    request.push_str(std::str::from_utf8(&part[..read]).unwrap());
                }
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (status, body) = if request.contains(&login) {
                    let body = format!(r#"{{"access_token": "token-{number}", "expires_in": 1}}"#);
                    ("200 OK", body)
                } else {
                    ("401 No", r#"{"error": "invalid_client"}"#.to_owned())
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
                // A keeper that has ended does not read it.
                drop(stream.write_all(answer.as_bytes()));
            }
        });
        let endpoint = TokenEndpoint::new(&url, "me", None, Roots::System).unwrap();
        (endpoint, asked)
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "not within 60 s: {what}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn d_p2_each_token_goes_to_every_client_and_to_later_ones_at_once() {
        let (endpoint, asked) = endpoint();
        let tokens = AuthTokens::new(endpoint, "secret".into(), Vec::new(), clock);
        assert_eq!(tokens.left(), Duration::ZERO);
        let early = Arc::new(Taker::default());
        let first = tokens.register(Arc::clone(&early) as Arc<dyn TakesTokens>);
        until("tokens are renewed", || early.taken().len() >= 3).await;
        assert!(tokens.left() <= Duration::from_secs(1));
        assert_eq!(tokens.missing(), None);
        let late = Arc::new(Taker::default());
        let second = tokens.register(Arc::clone(&late) as Arc<dyn TakesTokens>);
        until("the later one has the same", || {
            late.taken().last() == early.taken().last()
        })
        .await;
        drop(second);
        assert_eq!(Arc::strong_count(&late), 1, "its owner has the last handle");
        // The settings may go before the clients.
        drop(tokens);
        let before = early.taken().len();
        until("the keeper goes on", || early.taken().len() > before).await;
        assert_eq!(
            early.taken().len(),
            asked.load(Ordering::SeqCst),
            "one question for each token, however many clients there are"
        );
        drop(first);
        assert_eq!(Arc::strong_count(&early), 1);
    }

    #[tokio::test]
    async fn c3_a_changed_secret_is_used_at_once_and_what_was_missing_is_said() {
        let (endpoint, _) = endpoint();
        let tokens = AuthTokens::new(endpoint, "wrong".into(), Vec::new(), clock);
        let client = Arc::new(Taker::default());
        let _registration = tokens.register(Arc::clone(&client) as Arc<dyn TakesTokens>);
        until("the endpoint refuses", || tokens.missing().is_some()).await;
        let reason = tokens.missing().unwrap();
        assert!(
            reason.contains("OAUTHBEARER") && reason.contains("401: invalid_client"),
            "{reason}"
        );
        assert!(!reason.contains("wrong") && !format!("{tokens:?}").contains("wrong"));
        assert!(!tokens.renew("wrong"), "that is no other one");
        assert!(tokens.renew("secret"));
        until("a token is there", || !client.taken().is_empty()).await;
        assert_eq!(tokens.missing(), None);
    }

    #[test]
    fn librdkafka_takes_a_token_and_its_extensions_while_the_client_lives() {
        let (endpoint, _) = endpoint();
        let mut settings = Settings::plain("127.0.0.1:1", "test");
        let token = AuthToken {
            text: "token".to_owned(),
            principal: "me".to_owned(),
            life: Duration::from_secs(60),
        };
        let extensions = [(c"logicalCluster".to_owned(), c"lkc-1".to_owned())];
        let token = ffi::BearerToken::new(&token, clock(), &extensions).unwrap();
        let client = |settings: &Settings| -> BaseConsumer<QuietContext> {
            let config = client_config(settings, Role::Outsider(None)).unwrap();
            config.create_with_context(QuietContext).unwrap()
        };
        let refused = client(&settings).take(&token).unwrap_err();
        assert!(refused.contains("OAUTHBEARER"), "{refused}");
        let tokens = AuthTokens::new(endpoint, "secret".into(), Vec::new(), clock);
        settings.auth_tokens = Some(tokens);
        client(&settings).take(&token).unwrap();
    }
}
