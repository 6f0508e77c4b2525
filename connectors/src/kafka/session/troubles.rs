//! What a session tells its driver about brokers that are away, or that let nobody in.
//!
//! Invariant: whoever was told that brokers or tokens are missing is told when they are back.

use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use tokio::time::Instant;

use super::Session;
use crate::Happening;
use crate::kafka::classify;

/// How often the same trouble is reported.
const REPORT_EVERY: Duration = Duration::from_secs(10);

impl Session<'_> {
    pub(super) fn tell_of_brokers(&mut self) {
        // Who has no token is not well, whoever is connected.
        let back = self.around.unreachable.get() && !self.around.unauthenticated.get();
        let (reachable, message) = {
            let group = self.client.context().group();
            match group.alone {
                Some(0) if back => (true, String::new()),
                // A single one may be a reconnect.
                Some(2..) if !self.around.unreachable.get() => {
                    let without = self.around.settings.missing_token();
                    (false, without.unwrap_or_else(|| group.last_error.clone()))
                }
                Some(_) | None => return,
            }
        };
        self.around.unreachable.set(!reachable);
        self.around
            .mailbox
            .push_once(Happening::Brokers { reachable, message });
    }

    /// Without a token the brokers let nobody in, sooner or later (D-P2).
    pub(super) fn tell_of_tokens(&mut self) {
        let around = self.around;
        match around.settings.missing_token() {
            Some(reason) => {
                if !around.unauthenticated.replace(true) {
                    self.report(reason);
                }
            }
            None => {
                if around.unauthenticated.replace(false) && !around.unreachable.get() {
                    around.mailbox.push_once(Happening::Brokers {
                        reachable: true,
                        message: String::new(),
                    });
                }
            }
        }
    }

    pub(super) fn trouble(&mut self, code: RDKafkaErrorCode, reason: String) {
        if !classify::misconfigured(code) {
            return;
        }
        if classify::not_let_in(code) {
            // Only what the next statistics say can end it.
            self.around.unreachable.set(true);
            self.client.context().group().alone = None;
        }
        // With a token that has ended they only say that they do not let us in.
        let without = self.around.settings.missing_token();
        self.report(without.unwrap_or(reason));
    }

    pub(super) fn report(&mut self, message: String) {
        let now = Instant::now();
        self.reported
            .retain(|_, reported| now.duration_since(*reported) < REPORT_EVERY);
        if self.reported.insert(message.clone(), now).is_none() {
            self.around
                .mailbox
                .push_once(Happening::Misconfigured(message));
        }
    }
}
