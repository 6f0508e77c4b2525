//! A keep-alive load generator: finds how many requests a second an app takes at all.

use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::http::{Address, Call, CallError, Connection};

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
    /// No answer.
    #[error("a request of the load generator failed")]
    Call(#[from] CallError),
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
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut connection = Connection::open(address).await?;
        let call = call.clone();
        tasks.spawn(async move {
            let end = Instant::now() + duration;
            let mut times = Vec::new();
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok(times);
                }
                let within = Duration::from_secs(30);
                let answer = connection.call(&call, within, ANSWER_BYTES_MAX).await?;
                if !(200..300).contains(&answer.status) {
                    return Err(Error::Status(answer.status));
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

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use tokio::net::TcpListener;

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
