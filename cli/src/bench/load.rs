//! A keep-alive load generator: finds how many requests a second an app takes at all.
//!
//! It writes the same bytes again and again and reads no more of an answer than it must, so that
//! on a small machine the app gets the processor, not the generator.

use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::http::{Address, Call};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What a run of the load generator showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// Connections that sent requests side by side.
    pub connections: usize,
    /// Requests that were answered with 2xx.
    pub answered: u64,
    /// For how long.
    pub seconds: f64,
    /// Answered requests per second.
    pub per_second: f64,
    /// Median time of a request.
    pub p50_us: u64,
    /// Time that 99 of 100 requests stay below.
    pub p99_us: u64,
}

/// Why a load could not be put on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error("a request of the load generator failed")]
    Connection(#[from] std::io::Error),
    /// The answer is not one that we read.
    #[error("the app's answer has no Content-Length, or is no HTTP/1.1")]
    Answer,
    /// The app refused.
    #[error("the app answered {0} to the load generator")]
    Status(u16),
}

/// Sends the same request again and again on each of `connections`, for so long.
pub async fn run(
    address: &Address,
    call: &Call,
    connections: usize,
    duration: Duration,
) -> Result<Load, Error> {
    let request: std::sync::Arc<[u8]> = render(address, call).into();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut connection = Connection {
            stream: address.connect().await?,
            received: Vec::new(),
        };
        let request = std::sync::Arc::clone(&request);
        tasks.spawn(async move {
            let end = Instant::now() + duration;
            let mut times = Vec::new();
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok(times);
                }
                let status = connection.exchange(&request).await?;
                if !(200..300).contains(&status) {
                    return Err(Error::Status(status));
                }
                let micros = start.elapsed().as_micros();
                times.push(u32::try_from(micros).unwrap_or(u32::MAX));
            }
        });
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended.expect("a task of the load generator does not panic")?);
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| {
        let last = times.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a length is an index"
        )]
        let index = (last as f64 * share) as usize;
        times.get(index).copied().map_or(0, u64::from)
    };
    Ok(Load {
        connections,
        answered: times.len() as u64,
        seconds,
        per_second: times.len() as f64 / seconds,
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}

fn render(address: &Address, call: &Call) -> Vec<u8> {
    let host = address.to_string();
    let host = host.trim_start_matches("http://");
    let mut bytes = format!(
        "{} {} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n",
        call.method,
        call.path,
        call.body.len()
    )
    .into_bytes();
    for (name, value) in &call.headers {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&call.body);
    bytes
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Sends the request and reads one whole answer; gives back its status.
    async fn exchange(&mut self, request: &[u8]) -> Result<u16, Error> {
        self.stream.write_all(request).await?;
        self.received.clear();
        loop {
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            if let Some((status, length)) = head(&self.received)? {
                let missing = length.saturating_sub(self.received.len());
                self.received.resize(self.received.len() + missing, 0);
                let at = self.received.len() - missing;
                self.stream.read_exact(&mut self.received[at..]).await?;
                return Ok(status);
            }
        }
    }
}

/// Status and whole length of an answer, as soon as its head is there.
fn head(received: &[u8]) -> Result<Option<(u16, usize)>, Error> {
    let end = received.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(end) = end else {
        return if received.len() < 64 << 10 {
            Ok(None)
        } else {
            Err(Error::Answer)
        };
    };
    let head = std::str::from_utf8(&received[..end]).map_err(|_| Error::Answer)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status: u16 = status
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or(Error::Answer)?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    match (status, length) {
        (204 | 304, _) => Ok(Some((status, end + 4))),
        (_, Some(length)) if length <= ANSWER_BYTES_MAX => Ok(Some((status, end + 4 + length))),
        _ => Err(Error::Answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use tokio::net::TcpListener;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-").unwrap(), None);
        let whole = b"HTTP/1.1 200 OK\r\ncontent-Length: 3\r\n\r\nabc";
        assert_eq!(head(whole).unwrap(), Some((200, whole.len())));
        let none = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(head(none).unwrap(), Some((204, none.len())));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(head(b"SSH-2.0-x\r\n\r\n").is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_echo_app_has_a_ceiling_that_can_be_measured() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let app = tokio::spawn(crate::bench::echo::serve(listener));
        let call = Call {
            method: Method::POST,
            path: "/process".to_owned(),
            headers: Vec::new(),
            body: "{}".into(),
        };
        let address = address.parse().unwrap();
        let load = run(&address, &call, 3, Duration::from_millis(200)).await;
        let load = load.unwrap();
        assert!(load.answered > 10, "{load:?}");
        assert!(load.p50_us <= load.p99_us);
        let wrong = Call {
            path: "/other".to_owned(),
            ..call
        };
        let error = run(&address, &wrong, 1, Duration::from_millis(50)).await;
        assert!(matches!(error, Err(Error::Status(404))));
        app.abort();
    }
}
