//! `millrace tap`: watch what passes the app of a running block.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use clap::Args;
use http::Request;
use http::header::{AUTHORIZATION, HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

use crate::Ending;
use crate::http::Address;
use crate::screen::{Format, Screen};

/// How long the proxy may take to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// Bytes of one message; the proxy cuts what it shows.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Watch what passes the app of a running block: every event, what came of it, how long it took
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace tap
  millrace tap http://127.0.0.1:9400 --filter outcome=failed
  millrace tap --filter topic=orders,partition=3 --rate 100 -o json
  millrace tap --payloads --count 5

Events are sampled: more than --rate a second are skipped, and their number is told. Keys and
values are shown only with --payloads, and only where the block says admin.tapPayloads: true.
Nobody who watches holds up the block.")]
pub struct Arguments {
    /// The admin port of the input proxy
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:9400")]
    address: Address,
    /// Only these: terms such as outcome=failed,partition=3 of topic, partition, offset, outcome
    /// (emitted, filtered, failed)
    #[arg(long, value_name = "TERMS", default_value = "")]
    filter: String,
    /// Events a second at most
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Keys and values, too
    #[arg(long)]
    payloads: bool,
    /// End after so many
    #[arg(long)]
    count: Option<u64>,
    /// File with the bearer token of the admin port (admin.token)
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How to print events
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    tokio::select! {
        ended = watch(&arguments, screen) => ended,
        stopped = super::asked_to_stop() => stopped.map(|()| Ending::Ok),
    }
}

async fn watch(arguments: &Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let begun = timeout(BEGIN, begin(arguments)).await;
    let mut body = begun
        .with_context(|| format!("{} does not answer", arguments.address))?
        .with_context(|| format!("cannot watch {}", arguments.address))?;
    let mut left = arguments.count.unwrap_or(u64::MAX);
    let mut messages = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the proxy has gone")?.into_data() {
            messages.extend_from_slice(&data);
        }
        while let Some(message) = next(&mut messages) {
            let Some(event) = event(&message)? else {
                continue;
            };
            match arguments.output {
                Format::Json => screen.print(&format!("{event}\n"))?,
                Format::Text => screen.print(&text(&event))?,
            }
            left -= 1;
            if left == 0 {
                return Ok(Ending::Ok);
            }
        }
        if messages.len() > MESSAGE_BYTES_MAX {
            bail!("{} sends no server-sent events", arguments.address);
        }
    }
    Ok(Ending::Ok)
}

/// Asks, and returns the answer's body, which goes on.
async fn begin(arguments: &Arguments) -> anyhow::Result<Incoming> {
    let stream = arguments.address.connect().await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // How it ended is told to whoever reads the body.
    tokio::spawn(async move { drop(connection.await) });
    let path = format!(
        "/v1/tap?rate={}&payloads={}&filter={}",
        arguments.rate,
        arguments.payloads,
        encoded(&arguments.filter)
    );
    let mut request = Request::get(path).header(HOST, arguments.address.server().to_string());
    if let Some(file) = &arguments.token_file {
        let token = fs::read_to_string(file)
            .with_context(|| format!("cannot read the token in {}", file.display()))?;
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let answer = sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    let (head, body) = answer.into_parts();
    if head.status != 200 {
        let said = Limited::new(body, 64 << 10).collect().await;
        let said = said.map(|said| said.to_bytes()).unwrap_or_default();
        let error: Value = serde_json::from_slice(&said).unwrap_or_default();
        let message = error["error"]["message"].as_str().map_or_else(
            || String::from_utf8_lossy(&said).into_owned(),
            str::to_owned,
        );
        bail!("it answers {}: {message}", head.status.as_u16());
    }
    Ok(body)
}

/// A text as a part of a query.
fn encoded(text: &str) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~,".contains(&c);
    let mut encoded = String::new();
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The next whole message.
fn next(messages: &mut BytesMut) -> Option<BytesMut> {
    let end = messages.windows(2).position(|two| two == b"\n\n")?;
    Some(messages.split_to(end + 2))
}

/// The event of a message; comments have none.
fn event(message: &[u8]) -> anyhow::Result<Option<Value>> {
    let Some(data) = message.strip_prefix(b"data: ") else {
        return Ok(None);
    };
    Ok(Some(
        serde_json::from_slice(data).context("the proxy sends what is no JSON")?,
    ))
}

/// `orders/3/1042  emitted  12 ms  142 -> 31 bytes`
fn text(event: &Value) -> String {
    let word = |name: &str| event[name].as_str().unwrap_or_default();
    let bytes = |value: &Value| value.as_u64().map_or("null".to_owned(), |n| n.to_string());
    let mut line = format!(
        "{}/{}/{}  {}",
        word("topic"),
        event["partition"],
        event["offset"],
        word("outcome")
    );
    if !event["code"].is_null() {
        line.push_str(&format!(" {} {}", word("class"), word("code")));
    }
    line.push_str(&format!("  {} ms", event["tookMs"]));
    if event["attempt"].as_u64() > Some(1) {
        line.push_str(&format!("  attempt {}", event["attempt"]));
    }
    let results = event["resultBytes"].as_array();
    let results: Vec<String> = results.into_iter().flatten().map(bytes).collect();
    line.push_str(&format!("  {}", bytes(&event["valueBytes"])));
    if !results.is_empty() {
        line.push_str(&format!(" -> {}", results.join(", ")));
    }
    line.push_str(" bytes");
    if let Some(value) = event.get("value") {
        line.push_str(&format!("\n  {} {value}", event["key"]));
        for result in event["results"].as_array().into_iter().flatten() {
            line.push_str(&format!("\n  -> {result}"));
        }
    }
    if let Some(skipped) = event["skipped"].as_u64() {
        line.insert_str(0, &format!("({skipped} skipped)\n"));
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_cut_at_empty_lines_and_comments_say_nothing() {
        let mut bytes = BytesMut::from(&b": hello\n\ndata: {\"a\":1}\n\ndata: {"[..]);
        assert_eq!(event(&next(&mut bytes).unwrap()).unwrap(), None);
        assert_eq!(
            event(&next(&mut bytes).unwrap()).unwrap(),
            Some(json!({"a": 1}))
        );
        assert!(next(&mut bytes).is_none());
        assert!(event(b"data: {\n\n").is_err());
    }

    #[test]
    fn an_event_is_one_line_without_payloads() {
        let emitted = json!({
            "topic": "orders", "partition": 3, "offset": 7, "outcome": "emitted", "tookMs": 12,
            "attempt": 1, "valueBytes": 14, "resultBytes": [15, null],
        });
        assert_eq!(
            text(&emitted),
            "orders/3/7  emitted  12 ms  14 -> 15, null bytes\n"
        );
        let failed = json!({
            "topic": "orders", "partition": 3, "offset": 7, "outcome": "failed", "tookMs": 1,
            "attempt": 2, "valueBytes": 14, "class": "Transient", "code": "503", "skipped": 4,
        });
        assert_eq!(
            text(&failed),
            "(4 skipped)\norders/3/7  failed Transient 503  1 ms  attempt 2  14 bytes\n"
        );
    }

    #[test]
    fn a_filter_travels_in_the_query() {
        assert_eq!(
            encoded("outcome=failed,topic=a b"),
            "outcome%3Dfailed,topic%3Da%20b"
        );
    }
}
