//! Secrets of a connection that may be renewed while its clients run (C-3).
//!
//! librdkafka takes a new password while it runs, and uses it at the next authentication. The
//! secret of a token endpoint is nobody's but the token keeper's, which uses it at once.
//! Certificates are read only when a client is made, so for them clients are made anew.
//!
//! Invariant: no secret is printed.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::{Client, ClientContext};
use tracing::{info, warn};

use super::auth_tokens::{Registration, TakesTokens};
use super::ffi;
use super::settings::{Sasl, Settings};

/// A secret text that can be renewed. All clones are one.
#[derive(Clone)]
pub struct Password(Arc<Versioned>);

struct Versioned {
    version: AtomicU64,
    text: Mutex<String>,
}

impl Password {
    /// As it is now.
    pub(super) fn text(&self) -> String {
        let text = self.0.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }

    pub(super) fn renew(&self, new: String) {
        let mut text = self.0.text.lock().unwrap_or_else(PoisonError::into_inner);
        *text = new;
        self.0.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }
}

impl<T: Into<String>> From<T> for Password {
    fn from(text: T) -> Self {
        Self(Arc::new(Versioned {
            version: AtomicU64::new(0),
            text: Mutex::new(text.into()),
        }))
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// How often the clients of a connection have to be made anew. All clones are one.
#[derive(Clone, Debug, Default)]
pub struct Remakes(Arc<AtomicU64>);

impl PartialEq for Remakes {
    fn eq(&self, _: &Self) -> bool {
        // It says nothing about what the connection is.
        true
    }
}

impl Eq for Remakes {}

impl Settings {
    /// Takes what the secret file of the connection says now; a new one is told. Whoever uses it
    /// does so from then on, without being made anew.
    pub fn renew(&self, text: &str) {
        if let Some(sasl) = &self.sasl
            && sasl.password.text() != text
        {
            sasl.password.renew(text.to_owned());
            info!("the password of the connection has changed, the clients use it from now on");
        }
        if let Some(tokens) = &self.auth_tokens
            && tokens.renew(text)
        {
            info!("the secret of the token endpoint has changed, a token is asked for with it");
        }
    }

    /// Registers a client for auth tokens, if the connection has any.
    pub(super) fn register<C: TakesTokens + 'static>(&self, client: &Arc<C>) -> Registration {
        let tokens = self.auth_tokens.as_ref();
        tokens.map_or_else(Registration::default, |tokens| {
            tokens.register(Arc::clone(client) as Arc<dyn TakesTokens>)
        })
    }

    /// Why brokers let nobody in, while there is no auth token that has not ended.
    pub(super) fn missing_token(&self) -> Option<String> {
        self.auth_tokens.as_ref()?.missing()
    }

    /// Clients that are made from now on read the files anew, and those that can end at any time
    /// do.
    pub fn remake(&self) {
        self.remakes.0.fetch_add(1, Ordering::Release);
    }

    /// Tells whether a client that was made earlier is still good.
    pub(super) fn remakes(&self) -> u64 {
        self.remakes.0.load(Ordering::Acquire)
    }
}

/// Gives one running client its renewed password.
#[derive(Debug, Default)]
pub(super) struct Renewing {
    sasl: Option<Sasl>,
    seen: AtomicU64,
}

impl Renewing {
    /// For a client that is made from these settings, afterwards.
    pub(super) fn of(settings: &Settings) -> Self {
        let seen = settings.sasl.as_ref().map_or(0, |s| s.password.version());
        Self {
            sasl: settings.sasl.clone(),
            seen: AtomicU64::new(seen),
        }
    }

    /// Cheap when there is nothing new.
    pub(super) fn apply<C: ClientContext>(&self, client: &Client<C>) {
        let Some(sasl) = &self.sasl else { return };
        let version = sasl.password.version();
        if self.seen.swap(version, Ordering::AcqRel) == version {
            return;
        }
        if let Err(error) = ffi::set_credentials(client, &sasl.username, &sasl.password.text()) {
            warn!(%error, "the client does not take its renewed password");
        }
    }
}
