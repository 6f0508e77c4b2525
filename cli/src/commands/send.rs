//! `millrace send`: lines or JSON objects become records, byte by byte.
//!
//! Invariant: every line is either acknowledged by the broker or reported with its number.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use millrace_connectors::{AppendClass, Delivery, Record, Sink};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::Ending;
use crate::connect::Connect;
use crate::records::{Draft, Header, parse_json, parse_line};
use crate::screen::{Format, Progress, Screen};

/// Bad lines that are shown; the rest is counted.
const COMPLAINTS_MAX: u64 = 20;

/// Records that may be under way at once.
const UNDER_WAY_MAX: u64 = 50_000;

/// Lines that are handed over at once, and how many such bundles may wait.
const BUNDLE_LINES: usize = 256;
const BUNDLES_MAX: usize = 16;

/// Longest line; Kafka takes no larger record anyway.
const LINE_BYTES_MAX: usize = 256 << 20;

/// Send events to a topic: one per line, from a file or standard input
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace send orders --file orders.txt
  echo 'cust-1:{\"total\":3}' | millrace send orders --key-separator :
  python events.py --count 20000 | millrace send orders --json --rate 500
  millrace tail orders --from earliest --json | millrace send orders-copy --json --create 4
  millrace send images --whole --file cat.jpg --key cat

With --json each line is an object:
  {\"key\":\"cust-1\",\"value_json\":{\"total\":3},\"headers\":[[\"source\",\"web\"]],\"timestamp\":1767225600000}
  `key` or `key_base64`; one of `value` (text, or null for a tombstone), `value_json` and
  `value_base64`; `headers`, `partition` and `timestamp` (epoch ms) may be left out.

A line that cannot be sent is reported with its number, the others are sent; exit code 1.")]
pub struct Arguments {
    /// Where to send to
    topic: String,
    #[command(flatten)]
    connect: Connect,
    /// Read this file; - is standard input
    #[arg(short, long, default_value = "-")]
    file: PathBuf,
    /// Each line is a JSON object
    #[arg(long, conflicts_with_all = ["key_separator", "whole"])]
    json: bool,
    /// What stands between key and value in each line
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new(), conflicts_with = "whole")]
    key_separator: Option<String>,
    /// The whole input is the value of one event
    #[arg(long)]
    whole: bool,
    /// Key of all events that bring none
    #[arg(long)]
    key: Option<String>,
    /// Header of all events, in front of their own
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Partition of all events that bring none; otherwise the key decides
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Send at most this many events a second
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,
    /// Stop after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Create the topic with this many partitions if it is missing
    #[arg(long, value_name = "PARTITIONS", value_parser = clap::value_parser!(i32).range(1..))]
    create: Option<i32>,
    /// How long a record may take to be acknowledged
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = super::seconds)]
    timeout: Duration,
    /// How to print the summary
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What became of the lines.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
struct Summary {
    /// Acknowledged by the broker.
    sent: u64,
    /// Read, but not acknowledged.
    failed: u64,
    /// Not events.
    bad_lines: u64,
    seconds: f64,
    per_second: f64,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let cluster = arguments.connect.open()?;
    let (topic, create) = (&arguments.topic, arguments.create);
    match (cluster.partitions(topic).await?, create) {
        (Some(_), _) => {}
        (None, Some(partitions)) => cluster.create_topic(topic, partitions).await?,
        (None, None) => anyhow::bail!(
            "topic `{topic}` does not exist at {}; create it with --create PARTITIONS",
            cluster.address()
        ),
    }
    let sink = cluster.sink(arguments.timeout)?;
    let mut lines = read(&arguments.file, arguments.whole)?;
    let mut sending = Sending {
        topic: arguments.topic.as_str().into(),
        headers: arguments
            .header
            .iter()
            .map(|(name, value)| (Bytes::from(name.clone()), Some(Bytes::from(value.clone()))))
            .collect(),
        progress: screen.progress("sent", arguments.count),
        sink,
        screen,
        under_way: 0,
        appended: 0,
        sent: 0,
        failed: 0,
        bad_lines: 0,
        complaints: 0,
        hopeless: None,
        done: Vec::new(),
    };
    let limit = arguments.count.unwrap_or(u64::MAX);
    let started = Instant::now();
    'reading: while let Some(bundle) = lines.recv().await {
        for (number, line) in bundle? {
            if sending.appended >= limit || sending.hopeless.is_some() {
                break 'reading;
            }
            let draft = match arguments.parse(&line) {
                Ok(Some(draft)) => draft,
                Ok(None) => continue,
                Err(problem) => {
                    sending.bad_lines += 1;
                    sending.complain(&format!("line {number}: {problem}"));
                    continue;
                }
            };
            if let Some(rate) = arguments.rate {
                let due = Duration::from_secs_f64(sending.appended as f64 / rate);
                sending.wait_until(started + due).await;
            }
            sending.append(number, draft).await;
        }
    }
    sending.finish().await;
    let seconds = started.elapsed().as_secs_f64();
    let summary = Summary {
        sent: sending.sent,
        failed: sending.failed,
        bad_lines: sending.bad_lines,
        seconds,
        per_second: sending.sent as f64 / seconds.max(1e-9),
    };
    let hopeless = sending.hopeless.take();
    drop(sending);
    summary.print(&arguments, screen)?;
    if let Some(why) = hopeless {
        anyhow::bail!("nothing more can be sent to `{}`: {why}", arguments.topic);
    }
    Ok(if summary.failed + summary.bad_lines == 0 {
        Ending::Ok
    } else {
        Ending::Failed
    })
}

impl Arguments {
    /// A line as a record; `None`: an empty line between JSON objects.
    fn parse(&self, line: &[u8]) -> Result<Option<Draft>, crate::records::Problem> {
        let mut draft = if self.json {
            if line.iter().all(u8::is_ascii_whitespace) {
                return Ok(None);
            }
            parse_json(line)?
        } else {
            parse_line(line, self.key_separator.as_deref())?
        };
        draft.key = draft.key.or_else(|| self.key.clone().map(Bytes::from));
        draft.partition = draft.partition.or(self.partition);
        Ok(Some(draft))
    }
}

impl Summary {
    fn print(&self, arguments: &Arguments, screen: Screen) -> anyhow::Result<()> {
        if arguments.output == Format::Json {
            return screen.print_json(self);
        }
        let mut text = format!(
            "sent {} events to {} in {:.1} s ({:.0}/s)",
            self.sent, arguments.topic, self.seconds, self.per_second
        );
        for (count, what) in [
            (self.failed, "not acknowledged"),
            (self.bad_lines, "bad lines"),
        ] {
            if count > 0 {
                text.push_str(&screen.bad(&format!(", {count} {what}")));
            }
        }
        text.push('\n');
        Ok(screen.print(&text)?)
    }
}

struct Sending<S> {
    topic: std::sync::Arc<str>,
    headers: Vec<Header>,
    sink: S,
    screen: Screen,
    progress: Progress,
    under_way: u64,
    appended: u64,
    sent: u64,
    failed: u64,
    bad_lines: u64,
    complaints: u64,
    /// Why going on makes no sense.
    hopeless: Option<String>,
    done: Vec<(u64, Delivery)>,
}

impl<S: Sink> Sending<S> {
    async fn append(&mut self, line: u64, draft: Draft) {
        let bytes =
            draft.key.as_ref().map_or(0, Bytes::len) + draft.value.as_ref().map_or(0, Bytes::len);
        let mut headers = self.headers.clone();
        headers.extend(draft.headers);
        let mut record = Record {
            topic: std::sync::Arc::clone(&self.topic),
            partition: draft.partition,
            timestamp_ms: draft.timestamp_ms,
            key: draft.key,
            value: draft.value,
            headers,
        };
        while self.under_way >= UNDER_WAY_MAX {
            self.deliveries().await;
        }
        while let Err(back) = self.sink.append(line, record) {
            record = back;
            self.deliveries().await;
        }
        self.under_way += 1;
        self.appended += 1;
        self.progress.add(1, bytes as u64);
    }

    async fn wait_until(&mut self, due: Instant) {
        while Instant::now() < due {
            if self.under_way == 0 {
                sleep_until(due).await;
                return;
            }
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.deliveries() => {}
            }
        }
    }

    async fn deliveries(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.sink.deliveries(&mut done).await;
        for (line, delivery) in done.drain(..) {
            self.under_way -= 1;
            match delivery {
                Delivery::Stored { .. } => self.sent += 1,
                Delivery::Failed {
                    class,
                    code,
                    message,
                } => {
                    self.failed += 1;
                    self.complain(&format!("line {line} was not stored: {code}: {message}"));
                    if matches!(class, AppendClass::Misconfigured | AppendClass::Fatal) {
                        self.hopeless = Some(format!("{code}: {message}"));
                    }
                }
            }
        }
        self.done = done;
    }

    async fn finish(&mut self) {
        while self.under_way > 0 {
            self.deliveries().await;
        }
        if self.complaints > COMPLAINTS_MAX {
            let more = self.complaints - COMPLAINTS_MAX;
            self.screen.complain(&format!("… and {more} more lines"));
        }
    }

    fn complain(&mut self, text: &str) {
        self.complaints += 1;
        if self.complaints <= COMPLAINTS_MAX {
            self.screen.complain(text);
        }
    }
}

type Bundle = io::Result<Vec<(u64, Vec<u8>)>>;

/// Reads on a thread of its own, because files and terminals block.
fn read(file: &Path, whole: bool) -> anyhow::Result<mpsc::Receiver<Bundle>> {
    let (bundles, receiver) = mpsc::channel(BUNDLES_MAX);
    let mut source = BufReader::new(super::open_source(file)?);
    std::thread::Builder::new()
        .name("read lines".to_owned())
        .spawn(move || {
            let read = if whole {
                let mut all = Vec::new();
                let read = source.read_to_end(&mut all);
                read.map(|_| vec![(1, all)])
            } else {
                read_lines(source, &bundles)
            };
            // Nobody listens any more once enough was sent.
            drop(bundles.blocking_send(read));
        })
        .context("cannot start a thread")?;
    Ok(receiver)
}

/// Sends full bundles, and smaller ones when the source has to be waited for: whoever types
/// wants each line to leave at once. Gives back the last bundle.
fn read_lines(
    mut source: BufReader<impl Read>,
    bundles: &mpsc::Sender<Bundle>,
) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut bundle = Vec::new();
    for number in 1_u64.. {
        let mut line = Vec::new();
        let most = LINE_BYTES_MAX as u64 + 1;
        if source.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > LINE_BYTES_MAX {
            let text = format!("line {number} is longer than {LINE_BYTES_MAX} bytes");
            return Err(io::Error::other(text));
        }
        bundle.push((number, line));
        if bundle.len() == BUNDLE_LINES || source.buffer().is_empty() {
            let full = std::mem::take(&mut bundle);
            if bundles.blocking_send(Ok(full)).is_err() {
                break;
            }
        }
    }
    Ok(bundle)
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write a header as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("give a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let (sender, mut receiver) = mpsc::channel(10_000);
        let last = read_lines(BufReader::with_capacity(8, text), &sender).unwrap();
        drop(sender);
        let mut all = Vec::new();
        while let Ok(bundle) = receiver.try_recv() {
            all.extend(bundle.unwrap());
        }
        all.extend(last);
        all
    }

    #[test]
    fn lines_keep_their_bytes_and_their_numbers() {
        let read = lines(b"a\r\n\n\xff\x00 longer than the buffer\nlast");
        assert_eq!(
            read,
            vec![
                (1, b"a\r".to_vec()),
                (2, Vec::new()),
                (3, b"\xff\x00 longer than the buffer".to_vec()),
                (4, b"last".to_vec()),
            ]
        );
        assert!(lines(b"").is_empty());
        assert_eq!(lines(b"\n").len(), 1);
    }

    #[test]
    fn many_lines_arrive_in_full() {
        let text: String = (0..2_000).map(|number| format!("{number}\n")).collect();
        let read = lines(text.as_bytes());
        assert_eq!(read.len(), 2_000);
        assert!(
            read.iter()
                .all(|(n, line)| line == (n - 1).to_string().as_bytes())
        );
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(header("a").is_err());
        assert_eq!(positive("2.5"), Ok(2.5));
        for wrong in ["0", "-1", "NaN", "inf", "x"] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
    }
}
