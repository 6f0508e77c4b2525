//! `millrace broker`: the embedded broker in the foreground.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use millrace_broker::{Broker, Listen, Options, Retention, Storage};

use super::{bytes, seconds};
use crate::Ending;
use crate::screen::{Screen, human_bytes};

/// Run a Kafka broker on this machine, for development and tests
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace broker                          in memory, on port 9092 if it is free
  millrace broker --path .millrace/broker  in files, which the next start finds again
  millrace broker --port 9192 --memory 2Gi --topic orders:8 --no-auto-create

The first line that it prints is its address; then it serves until Ctrl-C. It listens on
127.0.0.1 only. Production is Kafka or Event Hubs.")]
pub struct Arguments {
    /// Listen on exactly this port (0: any free one); without it 9092 if free, else any
    #[arg(long)]
    port: Option<u16>,
    /// Keep records in this folder; without it they live in memory
    #[arg(long, value_name = "FOLDER", conflicts_with = "memory")]
    path: Option<PathBuf>,
    /// Wait until the data is on the device before answering
    #[arg(long, requires = "path")]
    fsync: bool,
    /// Most bytes of records in memory; more are refused, never dropped
    #[arg(long, value_name = "SIZE", default_value = "1Gi", value_parser = bytes)]
    memory: u64,
    /// Partitions of a topic that is created without a number
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Create this topic at the start; NAME or NAME:PARTITIONS
    #[arg(long, value_name = "NAME[:N]")]
    topic: Vec<String>,
    /// Refuse clients that ask for a topic that does not exist
    #[arg(long)]
    no_auto_create: bool,
    /// Delete records above this many bytes per partition
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    retention_bytes: Option<u64>,
    /// Delete records older than this
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    retention: Option<Duration>,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let mut options = match &arguments.path {
        Some(path) => Options::files(path),
        None => Options::memory(),
    };
    options.listen = match arguments.port {
        None => Listen::Preferred(9092),
        Some(port) => Listen::Exact(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
    };
    options.storage = match arguments.path {
        Some(path) => Storage::Files {
            path,
            fsync: arguments.fsync,
        },
        None => Storage::Memory {
            bytes_max: arguments.memory,
        },
    };
    let storage = describe(&options.storage);
    options.auto_create_topics = !arguments.no_auto_create;
    options.default_partitions = arguments.partitions;
    options.retention = Retention {
        bytes: arguments.retention_bytes,
        age: arguments.retention,
    };
    let topics = arguments
        .topic
        .iter()
        .map(|text| topic(text, arguments.partitions))
        .collect::<Result<Vec<_>, _>>();
    let topics = match topics {
        Ok(topics) => topics,
        Err(wrong) => {
            screen.complain(&wrong);
            return Ok(Ending::Wrong);
        }
    };
    let broker = Broker::start(options).context("the broker cannot start")?;
    for (name, partitions) in topics {
        // With files the topic may be there already.
        if broker.topics().iter().any(|topic| topic.name == name) {
            continue;
        }
        broker
            .create_topic(&name, partitions, &[])
            .with_context(|| format!("topic {name} cannot be created"))?;
    }
    screen.print(&format!("{}\n", broker.bootstrap()))?;
    screen.remark(&format!("the broker serves {storage}; Ctrl-C stops it"));
    super::asked_to_stop().await?;
    tokio::task::spawn_blocking(move || broker.shutdown())
        .await?
        .context("the broker did not stop cleanly")?;
    Ok(Ending::Ok)
}

fn describe(storage: &Storage) -> String {
    match storage {
        Storage::Memory { bytes_max } => format!("from memory, up to {}", human_bytes(*bytes_max)),
        Storage::Files { path, .. } => format!("from files in {}", path.display()),
    }
}

fn topic(text: &str, partitions: i32) -> Result<(String, i32), String> {
    let Some((name, number)) = text.split_once(':') else {
        return Ok((text.to_owned(), partitions));
    };
    match number.parse() {
        Ok(number) if number > 0 => Ok((name.to_owned(), number)),
        _ => Err(format!(
            "--topic {text}: write it as NAME or NAME:PARTITIONS"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_may_say_how_many_partitions_it_wants() {
        assert_eq!(topic("a", 4), Ok(("a".to_owned(), 4)));
        assert_eq!(topic("a:8", 4), Ok(("a".to_owned(), 8)));
        assert!(topic("a:0", 4).is_err());
        assert!(topic("a:x", 4).is_err());
    }
}
