//! `millrace dlq unpark`: tells an input proxy to let parked keys go on (D-L5).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http::Method;
use millrace_service::{config, secret};
use serde_json::{Map, Value, json};

use super::super::document_or_complaint;
use crate::Ending;
use crate::http::{Address, Call, once};
use crate::screen::Screen;

/// How long the input may take; it answers from memory.
const WITHIN: Duration = Duration::from_secs(5);
/// Bytes of its answer that are read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Let parked keys go on (deadLetter.onDeadLetter: ParkKey)
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace dlq unpark block.yaml --key customer-17
  millrace dlq unpark block.yaml --topic orders --partition 3
  millrace dlq unpark --at http://10.0.3.7:9400 --token-file admin-token

The input proxy that owns the partition has to be asked; with several, ask each of them. What was
dead-lettered while the key was parked stays in the dead-letter topic: replay it before, or after.")]
pub(super) struct Unpark {
    /// The block document: its admin.inputPort and admin.token
    #[arg(value_name = "BLOCK")]
    block: Option<PathBuf>,
    /// Where the input proxy's admin port is, instead of 127.0.0.1 and admin.inputPort
    #[arg(long, value_name = "URL")]
    at: Option<Address>,
    /// File with the token of the admin port, instead of admin.token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Only keys of this input topic's partition
    #[arg(long, requires = "partition")]
    topic: Option<String>,
    /// Only keys of this partition
    #[arg(long, requires = "topic", value_name = "N")]
    partition: Option<i32>,
    /// Only this key
    #[arg(long, conflicts_with = "key_base64")]
    key: Option<String>,
    /// Only this key, in base64
    #[arg(long, value_name = "BASE64")]
    key_base64: Option<String>,
}

impl Unpark {
    pub(super) async fn run(&self, screen: Screen) -> anyhow::Result<Ending> {
        let document = match &self.block {
            None => None,
            Some(file) => match document_or_complaint(file, screen)? {
                Ok(document) => Some(document),
                Err(ending) => return Ok(ending),
            },
        };
        let admin = document.as_ref().map(|document| &document.block.admin);
        let port = admin.map(|admin| admin.input_port.number);
        let address = match (&self.at, port) {
            (Some(address), _) => address.clone(),
            (None, Some(port)) if port > 0 => Address::local(port),
            (None, _) => {
                screen.complain(
                    "say where the input proxy is: a block document with admin.inputPort, or --at",
                );
                return Ok(Ending::Wrong);
            }
        };
        let mut headers = vec![("content-type".to_owned(), b"application/json".to_vec())];
        let token = match (
            &self.token_file,
            admin.and_then(|admin| admin.token.as_ref()),
        ) {
            (Some(file), _) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("{} cannot be read", file.display()))?;
                Some(text.trim_end().to_owned())
            }
            (None, Some(token)) => {
                let environment = config::environment();
                Some(secret::read(token, &environment)?.expose().to_owned())
            }
            (None, None) => None,
        };
        if let Some(token) = token {
            let value = format!("Bearer {token}").into_bytes();
            headers.push(("authorization".to_owned(), value));
        }
        let call = Call {
            method: Method::POST,
            path: "/v1/unpark".to_owned(),
            headers,
            body: Bytes::from(self.body().to_string()),
        };
        let answer = once(&address, &call, WITHIN, ANSWER_BYTES_MAX)
            .await
            .with_context(|| format!("the input proxy at {address} could not be asked"))?;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status != 200 {
            let message = body["error"]["message"]
                .as_str()
                .unwrap_or("no reason given");
            screen.complain(&format!(
                "the input proxy at {address} answered {}: {message}",
                answer.status
            ));
            return Ok(Ending::Failed);
        }
        let lanes = body["unparked"].as_u64().unwrap_or(0);
        let plural = if lanes == 1 { "key goes" } else { "keys go" };
        screen.print(&format!("{lanes} parked {plural} on\n"))?;
        Ok(Ending::Ok)
    }

    fn body(&self) -> Value {
        let mut body = Map::new();
        if let (Some(topic), Some(partition)) = (&self.topic, self.partition) {
            body.insert("topic".into(), json!(topic));
            body.insert("partition".into(), json!(partition));
        }
        let key = self.key.as_ref().map(|key| STANDARD.encode(key));
        if let Some(key) = key.or_else(|| self.key_base64.clone()) {
            body.insert("keyBase64".into(), json!(key));
        }
        Value::Object(body)
    }
}
