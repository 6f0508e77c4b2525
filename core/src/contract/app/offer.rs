//! What an app says about itself under `/.well-known/millrace`, and whether it fits the block
//! (app-contract.md, Negotiation).
//!
//! Invariant: a list that the app leaves out or empty refuses nothing.

use serde::Deserialize;

use crate::contract::block::{AppContract, Content, ContractMode, RequestKind};

/// Where an app describes itself.
pub const OFFER_PATH: &str = "/.well-known/millrace";

/// The contract that the proxies speak.
pub const CONTRACT: &str = "1";

/// The document of an app. Members that are not known are ignored.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Offer {
    /// Number of the contract.
    pub contract: String,
    /// `reply`, `push`.
    #[serde(default)]
    pub modes: Vec<String>,
    /// `single`, `batch`.
    #[serde(default)]
    pub requests: Vec<String>,
    /// `raw`, `cloudevents`.
    #[serde(default)]
    pub content: Vec<String>,
    /// Most events of a batch.
    pub max_batch: Option<usize>,
    /// Whether equal requests have comparable answers.
    #[serde(default)]
    pub idempotent: bool,
}

/// A setting of the block that the app does not offer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Another contract.
    #[error("the app speaks contract {0:?}; this version speaks {CONTRACT:?}")]
    Contract(String),
    /// A value that it does not list.
    #[error("{key} is {configured}, but the app offers only: {}", offered.join(", "))]
    Setting {
        /// Key of the block document.
        key: &'static str,
        /// Its value.
        configured: &'static str,
        /// What the app lists.
        offered: Vec<String>,
    },
    /// No batch can be that small.
    #[error("the app's max_batch is 0: no batch can be that small")]
    NoBatch,
}

impl Offer {
    /// Reads a document.
    ///
    /// # Errors
    /// If it is no JSON object with a `contract`, or a known member has another type.
    pub fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// Everything that the block asks for and the app does not offer.
    pub fn refusals(&self, wanted: &AppContract) -> Vec<Refusal> {
        if self.contract != CONTRACT {
            // What its other members mean is not known.
            return vec![Refusal::Contract(self.contract.clone())];
        }
        let (mode, mode_word) = match wanted.mode {
            ContractMode::Reply => ("Reply", "reply"),
            ContractMode::Push => ("Push", "push"),
        };
        let (request, request_word) = match wanted.request {
            RequestKind::Single => ("Single", "single"),
            RequestKind::Batch => ("Batch", "batch"),
        };
        let (content, content_word) = match wanted.content {
            Content::Raw => ("Raw", "raw"),
            Content::CloudEvents => ("CloudEvents", "cloudevents"),
        };
        let settings = [
            ("app.contract.mode", mode, mode_word, &self.modes),
            (
                "app.contract.request",
                request,
                request_word,
                &self.requests,
            ),
            ("app.contract.content", content, content_word, &self.content),
        ];
        let mut refusals: Vec<Refusal> = settings
            .into_iter()
            .filter(|(_, _, word, offered)| {
                !offered.is_empty() && !offered.iter().any(|one| one.eq_ignore_ascii_case(word))
            })
            .map(|(key, configured, _, offered)| Refusal::Setting {
                key,
                configured,
                offered: offered.clone(),
            })
            .collect();
        if wanted.request == RequestKind::Batch && self.max_batch == Some(0) {
            refusals.push(Refusal::NoBatch);
        }
        refusals
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::block::{ContentType, EmptyBody, Transport};

    fn wanted(mode: ContractMode, request: RequestKind, content: Content) -> AppContract {
        AppContract {
            mode,
            request,
            content,
            structured: false,
            content_type: ContentType::Always,
            timeout: Duration::from_secs(30),
            max_in_flight: 1,
            transport: Transport::Tcp,
            empty_body: EmptyBody::Error,
        }
    }

    fn refusals(document: &str, wanted: &AppContract) -> Vec<String> {
        let offer = Offer::read(document.as_bytes()).unwrap();
        offer
            .refusals(wanted)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_the_app_lists_fits_and_what_it_leaves_out_refuses_nothing() {
        let plain = wanted(ContractMode::Reply, RequestKind::Batch, Content::Raw);
        for document in [
            r#"{"contract":"1"}"#,
            r#"{"contract":"1","modes":[],"future":{"x":1}}"#,
            r#"{"contract":"1","modes":["reply"],"requests":["single","batch"],"content":["raw","cloudevents"],"max_batch":200,"idempotent":true}"#,
        ] {
            assert_eq!(refusals(document, &plain), Vec::<String>::new());
        }
    }

    #[test]
    fn a_setting_that_is_not_listed_is_named_with_its_key_and_both_values() {
        let all = wanted(ContractMode::Push, RequestKind::Batch, Content::CloudEvents);
        let document = r#"{"contract":"1","modes":["reply"],"requests":["single"],"content":["raw"],"max_batch":0}"#;
        assert_eq!(
            refusals(document, &all),
            [
                "app.contract.mode is Push, but the app offers only: reply",
                "app.contract.request is Batch, but the app offers only: single",
                "app.contract.content is CloudEvents, but the app offers only: raw",
                "the app's max_batch is 0: no batch can be that small",
            ]
        );
    }

    #[test]
    fn another_contract_is_refused_whatever_else_it_says() {
        let plain = wanted(ContractMode::Reply, RequestKind::Single, Content::Raw);
        assert_eq!(
            refusals(r#"{"contract":"2","modes":["streams"]}"#, &plain),
            ["the app speaks contract \"2\"; this version speaks \"1\""]
        );
    }

    #[test]
    fn what_is_no_such_document_is_no_offer() {
        for body in ["", "ok", "{}", "[]", r#"{"contract":1}"#] {
            assert!(Offer::read(body.as_bytes()).is_err(), "{body}");
        }
    }
}
