//! One drain: broker, app, input and output as processes, until every preloaded event has a
//! result in the output topic.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use millrace_connectors::{Delivery, Record, Sink};
use millrace_core::position::{Partition, Position};
use millrace_core::token::Stamp;
use millrace_service::telemetry::usage::{self, Usage};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::children::{Process, RELEASE, free_port};
use super::load::{self, Load};
use super::report::Drain;
use crate::check_app::Requests;
use crate::connect::Cluster;
use crate::http::{Address, Call, once};
use crate::records::Draft;
use crate::screen::Screen;

/// How often the ends of the output topic are looked at.
const LOOK: Duration = Duration::from_millis(25);

/// How long nothing may come before the drain is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is preloaded.
#[derive(Clone, Copy, Debug)]
pub struct Preload {
    /// How many events.
    pub events: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Distinct keys.
    pub keys: u64,
    /// Partitions.
    pub partitions: i32,
}

impl Preload {
    /// The key and value of an event.
    pub fn event(&self, number: u64) -> Draft {
        let mut value = format!("{{\"number\":{number},\"pad\":\"");
        let pad = self.value_bytes.saturating_sub(value.len() + 2);
        value.extend(noise(number).take(pad));
        value.push_str("\"}");
        Draft {
            key: Some(Bytes::from(format!("key-{}", number % self.keys))),
            value: Some(Bytes::from(value)),
            ..Draft::default()
        }
    }

    /// Appends all events.
    pub async fn append(
        &self,
        cluster: &Cluster,
        topic: &str,
        screen: Screen,
    ) -> anyhow::Result<()> {
        let mut sink = cluster.sink(Duration::from_secs(60))?;
        let mut progress = screen.progress("preloaded", Some(self.events));
        let mut ends = Vec::new();
        let mut open = 0;
        for number in 0..self.events {
            let draft = self.event(number);
            let mut record = Record {
                topic: topic.into(),
                partition: None,
                timestamp_ms: None,
                key: draft.key,
                value: draft.value,
                headers: Vec::new(),
            };
            while let Err(back) = sink.append(number, record) {
                record = back;
                sink.deliveries(&mut ends).await;
                open -= settle(&mut ends)?;
            }
            open += 1;
            progress.add(1, self.value_bytes as u64);
        }
        while open > 0 {
            sink.deliveries(&mut ends).await;
            open -= settle(&mut ends)?;
        }
        Ok(())
    }
}

/// Letters and digits that do not compress well, as real values do not; equal for equal seeds.
fn noise(seed: u64) -> impl Iterator<Item = char> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(char::from(LETTERS[(state >> 58) as usize]))
    })
}

fn settle(ends: &mut Vec<(u64, Delivery)>) -> anyhow::Result<usize> {
    for (_, end) in ends.iter() {
        if let Delivery::Failed { code, message, .. } = end {
            bail!("an event could not be preloaded: {code}: {message}");
        }
    }
    Ok(ends.drain(..).count())
}

/// An echo app in a process of its own.
#[derive(Debug)]
pub struct App {
    process: Process,
    address: Address,
    port: u16,
}

impl App {
    /// Starts it.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        let listen = format!("127.0.0.1:{port}");
        let arguments = ["echo-app", "--listen", &listen];
        let mut process = Process::start("millrace", &arguments, folder)?;
        let address: Address = process.first_line().await?.parse()?;
        once(
            &address,
            &Call::get("/healthz"),
            Duration::from_secs(1),
            1 << 10,
        )
        .await?;
        Ok(Self {
            process,
            address,
            port,
        })
    }

    /// Puts load on it, with requests as the input proxy makes them.
    pub async fn ceiling(
        &self,
        batch: Option<u64>,
        preload: &Preload,
        connections: usize,
        duration: Duration,
    ) -> Result<Load, load::Error> {
        let requests = Requests::new();
        let drafts: Vec<Draft> = (0..batch.unwrap_or(1)).map(|n| preload.event(n)).collect();
        let drafts: Vec<&Draft> = drafts.iter().collect();
        let call = if batch.is_some() {
            requests.batch(&drafts, Stamp::Live)
        } else {
            requests.single(drafts[0], Stamp::Live)
        };
        load::run(&self.address, &call, connections, duration).await
    }
}

/// What to drain and how.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where the broker is.
    pub cluster: &'a Cluster,
    /// Its process.
    pub broker: u32,
    /// Where the events are.
    pub from: &'a str,
    /// Where results go.
    pub to: &'a str,
    /// Events per request; `None`: single requests.
    pub batch: Option<u64>,
    /// `delivery.guarantee: ExactlyOnce`.
    pub once: bool,
    /// `app.contract.maxInFlight`.
    pub connections: usize,
    /// What was preloaded.
    pub preload: Preload,
    /// For files of this run.
    pub folder: &'a Path,
}

impl Plan<'_> {
    /// The block document; it stays valid until the folder goes.
    pub fn write_block(&self, app: &App) -> anyhow::Result<PathBuf> {
        let request = if self.batch.is_some() {
            "Batch"
        } else {
            "Single"
        };
        let block = json!({
            "identity": self.identity(),
            "connections": {"main": {"kafka": {
                "bootstrap": [self.cluster.address()],
                "tls": "Off",
            }}},
            "input": {"kafka": {
                "connection": "main",
                "topics": [self.from],
                "startAt": "Earliest",
            }},
            "output": {"kafka": {"connection": "main", "topic": self.to}},
            "topics": {"create": "Missing", "partitions": self.preload.partitions},
            "batch": {"maxRecords": self.batch.unwrap_or(100)},
            "delivery": {
                "guarantee": if self.once { "ExactlyOnce" } else { "AtLeastOnce" },
                "transaction": {"records": (self.in_flight_max() / 2).max(1_000)},
            },
            "flow": {"maxInFlight": self.in_flight_max()},
            "app": {
                "port": app.port,
                "shadow": "Safe",
                "contract": {"request": request, "maxInFlight": self.connections},
            },
            "admin": {"inputPort": free_port()?, "outputPort": free_port()?},
            "publish": {"socket": self.folder.join(format!("{}.sock", self.to))},
            "telemetry": {"logLevel": "warn"},
        });
        let file = self.folder.join(format!("{}.yaml", self.to));
        // JSON is YAML.
        std::fs::write(&file, block.to_string()).context("cannot write the block document")?;
        Ok(file)
    }

    /// As docs/operate advises: every connection full, and as much again on its way to and from
    /// the app; at least the default.
    fn in_flight_max(&self) -> u64 {
        let at_the_app = self.connections as u64 * self.batch.unwrap_or(1);
        (2 * at_the_app).max(1_024)
    }

    /// How many events are answered, give or take marks of transactions; `None` as long as that
    /// cannot be known.
    async fn stored(&self) -> Option<u64> {
        let partitions = |topic: &str| -> Vec<Partition> {
            let numbers = 0..self.preload.partitions;
            numbers
                .map(|number| Partition::new(topic, number))
                .collect()
        };
        // Until the output has created it, there is no such topic.
        let ranges = self.cluster.ranges(partitions(self.to)).await.ok()?;
        let written = ranges.values().map(|(start, end)| end.since(*start)).sum();
        if !self.once || written < self.preload.events {
            return Some(written);
        }
        // The marks of transactions, a few in a thousand, are positions of the output topic too.
        // The end is known by what is committed of the input, which readers of committed results
        // see; asked sooner, the answer would wait for the open transaction.
        let group = format!("millrace.{}.{RELEASE}", self.identity());
        let committed = self.cluster.committed(&group, partitions(self.from)).await;
        let committed = committed.ok()?;
        Some(committed.values().map(|at| at.since(Position::START)).sum())
    }

    fn identity(&self) -> String {
        format!("local/bench/{}", self.to)
    }

    /// Runs the proxies until everything is there, then stops them in good order.
    pub async fn run(&self, app: &App, block: &Path, screen: Screen) -> anyhow::Result<Drain> {
        let block = block.display().to_string();
        let mut output = Process::start("millrace-output", &[&block], self.folder)?;
        let arguments = ["--standalone", &block];
        let mut input = Process::start("millrace-input", &arguments, self.folder)?;
        let processes = [input.pid(), output.pid(), app.process.pid(), self.broker];
        let usage_of_all = || processes.map(|pid| usage::of(pid).unwrap_or(NOTHING));
        let mut progress = screen.progress("drained", Some(self.preload.events));
        let mut first = None;
        let mut last = (0, Instant::now());
        let (start, end) = loop {
            sleep(LOOK).await;
            output.alive()?;
            input.alive()?;
            if last.1.elapsed() > SILENCE_MAX {
                bail!(
                    "the proxies stopped at {} of {} events; see the logs in {}",
                    last.0,
                    self.preload.events,
                    self.folder.display()
                );
            }
            let Some(stored) = self.stored().await else {
                continue;
            };
            let look = (stored, Instant::now(), usage_of_all());
            if stored > last.0 {
                progress.add(stored - last.0, 0);
                last = (stored, look.1);
                let start = *first.get_or_insert(look);
                if stored >= self.preload.events {
                    break (start, look);
                }
            }
        };
        drop(progress);
        // Input first: it commits what is stored, and leaves its group.
        input.stop().await?;
        output.stop().await?;
        let events = end.0 - start.0;
        let seconds = (end.1 - start.1).as_secs_f64();
        let cost = |index: usize| {
            let spent: Duration = end.2[index].cpu.saturating_sub(start.2[index].cpu);
            spent.as_secs_f64() * 1e6 / (events.max(1) as f64)
        };
        Ok(Drain {
            events,
            seconds,
            per_second: events as f64 / seconds.max(1e-9),
            input_us_per_event: cost(0),
            output_us_per_event: cost(1),
            app_us_per_event: cost(2),
            broker_us_per_event: cost(3),
            input_resident_bytes: end.2[0].resident_bytes,
            output_resident_bytes: end.2[1].resident_bytes,
        })
    }
}

const NOTHING: Usage = Usage {
    cpu: Duration::ZERO,
    resident_bytes: 0,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preloaded_events_have_their_size_and_are_json() {
        let preload = Preload {
            events: 10,
            value_bytes: 200,
            keys: 3,
            partitions: 1,
        };
        let event = preload.event(7);
        assert_eq!(event.key.as_deref(), Some(&b"key-1"[..]));
        let value = event.value.unwrap();
        assert_eq!(value.len(), 200);
        let parsed: serde_json::Value = serde_json::from_slice(&value).unwrap();
        assert_eq!(parsed["number"], 7);
        assert_ne!(preload.event(8).value, Some(value));
        let tiny = Preload {
            value_bytes: 1,
            ..preload
        };
        let value = tiny.event(0).value.unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&value).is_ok());
    }
}
