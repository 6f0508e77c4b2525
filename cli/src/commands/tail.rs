//! `millrace tail`: shows the records of a topic, byte by byte.

use std::io::Write;

use clap::Args;
use millrace_connectors::kafka::Until;
use millrace_core::event::Event;
use millrace_core::position::Partition;

use crate::Ending;
use crate::connect::{Connect, From};
use crate::records::{Shown, write_json};
use crate::screen::Screen;

/// Bytes that are collected before they are written out.
const CHUNK_BYTES: usize = 256 << 10;

/// Show the events of a topic: from a place on, up to the end or for ever
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace tail orders-scored                        everything that comes from now on
  millrace tail orders-scored --from earliest        everything that is there
  millrace tail orders-scored --from -5 --json       the last five of each partition
  millrace tail orders --from 1042 --partition 3 --count 1 --verbose
  millrace tail orders --from earliest --json > backup.jsonl

Without --json each value is a line, as it is; a null value is an empty line. On a terminal,
control characters are shown as \\xNN.")]
pub struct Arguments {
    /// What to read
    topic: String,
    #[command(flatten)]
    connect: Connect,
    /// Where to begin in each partition: earliest, latest, an offset, or -N for the last N
    #[arg(
        long,
        value_name = "PLACE",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    from: From,
    /// Only this partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Stop after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Go on when the end is reached; without --from, this is what tail does anyway
    #[arg(long)]
    follow: bool,
    /// One JSON object a line, as `millrace send --json` reads them
    #[arg(long, conflicts_with_all = ["key_separator", "verbose"])]
    json: bool,
    /// Print the key and this text in front of the value
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// Print place, time, key and headers in front of the value
    #[arg(short, long, conflicts_with = "key_separator")]
    verbose: bool,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let cluster = arguments.connect.open()?;
    let mut partitions = cluster.need_topic(&arguments.topic).await?;
    if let Some(number) = arguments.partition {
        partitions.retain(|partition| partition.number() == number);
        if partitions.is_empty() {
            anyhow::bail!("topic `{}` has no partition {number}", arguments.topic);
        }
    }
    let until = if arguments.follow || arguments.from == From::Latest {
        Until::Forever
    } else {
        Until::Ends
    };
    let mut reader = cluster.read(partitions, arguments.from, until).await?;
    let limit = arguments.count.unwrap_or(u64::MAX);
    let escaped = screen.is_terminal() && !arguments.json;
    let mut shown = 0;
    let mut chunk = Vec::new();
    let stop = super::asked_to_stop();
    tokio::pin!(stop);
    while shown < limit {
        let more = tokio::select! {
            more = reader.next() => more.transpose().map_err(|error| cluster.explain(error))?,
            ended = &mut stop => {
                ended?;
                None
            }
        };
        let Some(batch) = more else { break };
        let events = batch.iter().flat_map(|fetched| {
            fetched
                .events
                .iter()
                .map(|event| (&fetched.partition, event))
        });
        for (partition, event) in events {
            if shown == limit {
                break;
            }
            shown += 1;
            if escaped {
                let mut plain = Vec::new();
                arguments.write(&mut plain, partition, event);
                escape(&mut chunk, &plain);
            } else {
                arguments.write(&mut chunk, partition, event);
            }
            chunk.push(b'\n');
            if chunk.len() >= CHUNK_BYTES {
                flush(&mut chunk)?;
            }
        }
        flush(&mut chunk)?;
    }
    Ok(Ending::Ok)
}

impl Arguments {
    fn write(&self, into: &mut Vec<u8>, partition: &Partition, event: &Event) {
        let (at, timestamp) = (event.position().offset(), event.timestamp());
        let (timestamp_ms, timestamp_type) = crate::records::spell(timestamp);
        if self.json {
            let record = Shown {
                topic: partition.topic(),
                partition: partition.number(),
                offset: at,
                timestamp_ms,
                timestamp_type,
                key: event.key(),
                value: event.value(),
                headers: event.headers(),
            };
            write_json(into, record);
            return;
        }
        if self.verbose {
            let mut place = format!("{}@{at}", partition);
            if let Some(ms) = timestamp_ms {
                place.push_str(&format!(" {timestamp_type}={ms}"));
            }
            into.extend_from_slice(place.as_bytes());
            into.extend_from_slice(b" key=");
            into.extend_from_slice(event.key().unwrap_or(b"(null)"));
            for (name, value) in event.headers() {
                into.push(b' ');
                into.extend_from_slice(name);
                into.push(b'=');
                into.extend_from_slice(value.unwrap_or(b"(null)"));
            }
            into.extend_from_slice(b" value=");
            into.extend_from_slice(event.value().unwrap_or(b"(null)"));
            return;
        }
        if let Some(separator) = &self.key_separator {
            into.extend_from_slice(event.key().unwrap_or_default());
            into.extend_from_slice(separator.as_bytes());
        }
        into.extend_from_slice(event.value().unwrap_or_default());
    }
}

/// What comes from others must not steer the reader's terminal.
fn escape(into: &mut Vec<u8>, bytes: &[u8]) {
    for part in bytes.utf8_chunks() {
        for character in part.valid().chars() {
            if character.is_control() && character != '\t' {
                let mut utf8 = [0; 4];
                for byte in character.encode_utf8(&mut utf8).bytes() {
                    into.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
                }
            } else {
                let mut utf8 = [0; 4];
                into.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
            }
        }
        for byte in part.invalid() {
            into.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
    }
}

fn flush(chunk: &mut Vec<u8>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(chunk)?;
    chunk.clear();
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut shown = Vec::new();
        escape(&mut shown, b"a\x1b[31m\xff\xc3\xbc\tb\x07");
        assert_eq!(
            String::from_utf8(shown).unwrap(),
            "a\\x1b[31m\\xffü\tb\\x07"
        );
    }
}
