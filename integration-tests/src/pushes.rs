//! How the scripted app posts its results in push mode, and what it heard.

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{Asked, Out};

/// How long an output may take to answer a post.
const ANSWERED: Duration = Duration::from_secs(30);

/// One post of the app.
#[derive(Clone, Debug)]
pub struct Posted {
    /// The event that it answers.
    pub id: String,
    /// The value.
    pub value: Vec<u8>,
    /// What the output answered; `None`: nothing.
    pub status: Option<u16>,
    /// With which body.
    pub body: Vec<u8>,
}

/// Posts one result to the output on `port`.
pub(crate) async fn post_result(port: u16, asked: &Asked, out: &Out, echo: bool) -> Posted {
    let mut headers: Vec<(String, String)> = Vec::new();
    if let Some(correlation) = asked.header("millrace-correlation").filter(|_| echo) {
        headers.push(("Millrace-Correlation".into(), correlation.into()));
    }
    if let Some(key) = &out.key {
        let key = URL_SAFE_NO_PAD.encode(key);
        headers.push(("Millrace-Out-Key".into(), key));
    }
    for (name, value) in &out.headers {
        headers.push((format!("Millrace-Out-Header-{name}"), value.clone()));
    }
    if out.value.is_none() {
        headers.push(("Millrace-Out-Tombstone".into(), "true".into()));
    }
    let value = out.value.clone().unwrap_or_default();
    let answer = post(port, "POST", "/", &headers, &value).await;
    let (status, body) = answer.map_or((None, Vec::new()), |(status, body)| (Some(status), body));
    Posted {
        id: asked.id.clone(),
        value,
        status,
        body,
    }
}

/// One request to an output, on a connection of its own; `None`: it broke.
pub async fn post(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Option<(u16, Vec<u8>)> {
    let talk = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).await.ok()?;
        // An output that refuses the head alone does not read the body.
        let sent = stream.write_all(body).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n");
        let Some(end) = end else {
            drop((sent, read));
            return None;
        };
        let head = std::str::from_utf8(&answer[..end]).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer[end + 4..].to_vec()))
    };
    tokio::time::timeout(ANSWERED, talk).await.ok().flatten()
}
