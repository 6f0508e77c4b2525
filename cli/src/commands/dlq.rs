//! `millrace dlq`: looks at dead letters, and sends them again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use millrace_connectors::kafka::Until;
use millrace_connectors::{Delivery, Sink};
use millrace_core::contract::block::OutputSink;
use millrace_core::event::Event;
use millrace_core::position::Partition;

mod unpark;

use self::unpark::Unpark;
use super::document_or_complaint;
use crate::Ending;
use crate::connect::{Brokers, Cluster, From};
use crate::dead_letters::Obituary;
use crate::records::{Shown, spell, write_json};
use crate::screen::{Format, Screen};

/// `deadLetter.maxRedrives` if no document says otherwise.
const REDRIVES_MAX: u32 = 3;

/// Look at dead letters, and send them again
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace dlq ls block.yaml
  millrace dlq show block.yaml 0/17
  millrace dlq replay block.yaml --reason retries_exhausted
  millrace dlq unpark block.yaml --key customer-17")]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Ls(List),
    Show(Show),
    Export(Export),
    Replay(Replay),
    Unpark(Unpark),
}

/// List dead letters: where, why, and from where
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace dlq ls block.yaml
  millrace dlq ls block.yaml --reason permanent --from 2026-01-01T00:00:00Z
  millrace dlq ls --topic orders.dlq -o json")]
struct List {
    #[command(flatten)]
    choice: Choice,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Show everything about dead letters: headers, error, value
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace dlq show block.yaml 0/17
  millrace dlq show --topic orders.dlq 0/17 3/2")]
struct Show {
    #[command(flatten)]
    choice: Choice,
}

/// Print dead letters as JSON lines, byte by byte, as `millrace send --json` reads them
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace dlq export block.yaml > dead-letters.jsonl
  millrace dlq export block.yaml --reason oversized")]
struct Export {
    #[command(flatten)]
    choice: Choice,
}

/// Send dead letters to the topic that they came from; the app answers them anew
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace dlq replay block.yaml 0/17
  millrace dlq replay block.yaml --reason retries_exhausted --dry-run
  millrace dlq replay block.yaml --all

The events keep their ids, so a reader that remembers millrace-id sees no copy. They also stay in
the dead-letter topic, and a second replay sends them a second time.")]
struct Replay {
    #[command(flatten)]
    choice: Choice,
    /// Send all of them
    #[arg(long)]
    all: bool,
    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,
    /// Refuse events that were sent again so often, instead of deadLetter.maxRedrives
    #[arg(long, value_name = "N")]
    max_redrives: Option<u32>,
}

/// Which dead letters.
#[derive(Args, Debug)]
struct Choice {
    #[command(flatten)]
    brokers: Brokers,
    /// The block document, and dead letters as PARTITION/OFFSET
    #[arg(value_name = "BLOCK | PLACE", num_args = 0..)]
    words: Vec<String>,
    /// The dead-letter topic, instead of a block document
    #[arg(long)]
    topic: Option<String>,
    /// Only those with this reason
    #[arg(long)]
    reason: Option<String>,
    /// Only those that died at this stage: input, app or output
    #[arg(long)]
    stage: Option<String>,
    /// Begin there: earliest, an offset, -N or a time
    #[arg(
        long,
        value_name = "PLACE",
        default_value = "earliest",
        allow_hyphen_values = true
    )]
    from: From,
}

/// What a choice leads to.
struct Chosen {
    from: Cluster,
    to: Cluster,
    topic: String,
    places: Vec<(i32, i64)>,
    redrives_max: u32,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let choice = match &arguments.verb {
        Verb::Ls(list) => &list.choice,
        Verb::Show(show) => &show.choice,
        Verb::Export(export) => &export.choice,
        Verb::Replay(replay) => &replay.choice,
        Verb::Unpark(unpark) => return unpark.run(screen).await,
    };
    let chosen = match choice.open(screen)? {
        Ok(chosen) => chosen,
        Err(ending) => return Ok(ending),
    };
    match &arguments.verb {
        Verb::Ls(list) => ls(list, &chosen, screen).await,
        Verb::Show(show) if chosen.places.is_empty() => {
            let first = show
                .choice
                .words
                .first()
                .map_or("--topic TOPIC", String::as_str);
            screen.complain(&format!(
                "say which: millrace dlq show {first} PARTITION/OFFSET"
            ));
            Ok(Ending::Wrong)
        }
        Verb::Show(show) => self::show(show, &chosen, screen).await,
        Verb::Export(export) => self::export(export, &chosen, screen).await,
        Verb::Replay(replay) => {
            let choice = &replay.choice;
            let any = choice.reason.is_some() || choice.stage.is_some();
            if !any && chosen.places.is_empty() && !replay.all {
                screen.complain("say which: PARTITION/OFFSET, --reason, --stage or --all");
                return Ok(Ending::Wrong);
            }
            self::replay(replay, &chosen, screen).await
        }
        Verb::Unpark(_) => unreachable!("it reads no topic and has returned"),
    }
}

impl Choice {
    fn open(&self, screen: Screen) -> anyhow::Result<Result<Chosen, Ending>> {
        let mut words = self.words.iter();
        let document = match (&self.topic, words.as_slice().first()) {
            (Some(_), _) => None,
            (None, Some(file)) => {
                words.next();
                match document_or_complaint(&PathBuf::from(file), screen)? {
                    Ok(document) => Some(document),
                    Err(ending) => return Ok(Err(ending)),
                }
            }
            (None, None) => {
                screen.complain("give a block document, or --topic");
                return Ok(Err(Ending::Wrong));
            }
        };
        let mut places = Vec::new();
        for word in words {
            let Some(place) = place(word) else {
                screen.complain(&format!("`{word}` is no place; write it as 0/17"));
                return Ok(Err(Ending::Wrong));
            };
            places.push(place);
        }
        let block = document.as_ref().map(|document| &document.block);
        let topic = match (&self.topic, block.map(|block| &block.output.sink)) {
            (Some(topic), _) => topic.clone(),
            (None, Some(OutputSink::Kafka(output))) => output.dead_letter.clone(),
            (None, _) => bail!("this version reads dead letters from Kafka topics only"),
        };
        let connection = |input: bool| {
            let of = document.as_ref().map(|document| {
                let block = &document.block;
                let connection = if input {
                    block.input_connection()
                } else {
                    block.output_connection()
                };
                (document, connection)
            });
            self.brokers.open(of)
        };
        Ok(Ok(Chosen {
            from: connection(false)?,
            to: connection(true)?,
            topic,
            places,
            redrives_max: block.map_or(REDRIVES_MAX, |block| block.dead_letter.max_redrives),
        }))
    }

    fn wants(&self, chosen: &Chosen, partition: &Partition, event: &Event, of: &Obituary) -> bool {
        let place = (partition.number(), event.position().offset());
        (chosen.places.is_empty() || chosen.places.contains(&place))
            && self
                .reason
                .as_ref()
                .is_none_or(|reason| *reason == of.reason)
            && self.stage.as_ref().is_none_or(|stage| *stage == of.stage)
    }

    /// Tells the chosen dead letters, and how many records of the topic are none of ours.
    async fn read(
        &self,
        chosen: &Chosen,
        tell: &mut dyn FnMut(&Partition, &Event, Obituary) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let partitions = chosen.from.need_topic(&chosen.topic).await?;
        let mut reader = chosen.from.read(partitions, self.from, Until::Ends).await?;
        let mut others = 0;
        while let Some(batch) = reader.next().await {
            for fetched in batch.map_err(|error| chosen.from.explain(error))? {
                for event in &fetched.events {
                    match Obituary::read(&fetched.partition, event) {
                        None => others += 1,
                        Some(of) if self.wants(chosen, &fetched.partition, event, &of) => {
                            tell(&fetched.partition, event, of)?;
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        Ok(others)
    }
}

fn place(word: &str) -> Option<(i32, i64)> {
    let (partition, offset) = word.rsplit_once('/')?;
    // Also as `ls` prints it, with the topic in front.
    let partition = partition.rsplit('/').next()?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

async fn ls(list: &List, chosen: &Chosen, screen: Screen) -> anyhow::Result<Ending> {
    let mut found = Vec::new();
    let mut tell = |_: &Partition, _: &Event, obituary| {
        found.push(obituary);
        Ok(())
    };
    let others = list.choice.read(chosen, &mut tell).await?;
    if list.output == Format::Json {
        screen.print_json(&found)?;
        return Ok(Ending::Ok);
    }
    let mut text = String::new();
    let mut reasons = BTreeMap::<&str, u64>::new();
    for of in &found {
        *reasons.entry(of.reason.as_str()).or_default() += 1;
        let message: String = of.message.chars().take(100).collect();
        let message = message.replace(char::is_control, " ");
        writeln!(
            text,
            "{} {} ({}) attempts={} redrives={} {} {message}",
            of.place,
            of.reason,
            of.stage,
            of.attempts,
            of.redrives,
            screen.faint(&format!("{}/{}/{}", of.topic, of.partition, of.offset)),
        )?;
    }
    let reasons = reasons
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"));
    let reasons: Vec<String> = reasons.collect();
    writeln!(text, "{} dead letters: {}", found.len(), reasons.join(", "))?;
    if others > 0 {
        writeln!(text, "{others} other records in {}", chosen.topic)?;
    }
    screen.print(&text)?;
    Ok(Ending::Ok)
}

async fn show(show: &Show, chosen: &Chosen, screen: Screen) -> anyhow::Result<Ending> {
    let mut found = 0;
    let mut tell = |_: &Partition, event: &Event, of: Obituary| {
        found += 1;
        let mut text = format!("{}\n", of.place);
        let mut line = |name: &str, value: Option<&[u8]>| {
            let value = value.map_or_else(
                || screen.faint("(null)"),
                |value| value.escape_ascii().to_string(),
            );
            writeln!(text, "  {name}: {value}")
        };
        line("key", event.key())?;
        for (name, value) in event.headers() {
            line(&name.escape_ascii().to_string(), value)?;
        }
        line("value", event.value())?;
        Ok(screen.print(&text)?)
    };
    show.choice.read(chosen, &mut tell).await?;
    if found < chosen.places.len() {
        bail!(
            "{} of {} places hold no dead letter",
            chosen.places.len() - found,
            chosen.places.len()
        );
    }
    Ok(Ending::Ok)
}

async fn export(export: &Export, chosen: &Chosen, screen: Screen) -> anyhow::Result<Ending> {
    let mut tell = |partition: &Partition, event: &Event, _: Obituary| {
        let (timestamp_ms, timestamp_type) = spell(event.timestamp());
        let mut line = Vec::new();
        let record = Shown {
            topic: partition.topic(),
            partition: partition.number(),
            offset: event.position().offset(),
            timestamp_ms,
            timestamp_type,
            key: event.key(),
            value: event.value(),
            headers: event.headers(),
        };
        write_json(&mut line, record);
        line.push(b'\n');
        Ok(screen.print(&String::from_utf8_lossy(&line))?)
    };
    export.choice.read(chosen, &mut tell).await?;
    Ok(Ending::Ok)
}

async fn replay(replay: &Replay, chosen: &Chosen, screen: Screen) -> anyhow::Result<Ending> {
    let most = replay.max_redrives.unwrap_or(chosen.redrives_max);
    let mut records = Vec::new();
    let mut refused = 0;
    let mut tell = |_: &Partition, event: &Event, of: Obituary| {
        match of.redrive(event, most) {
            Ok(record) => records.push((of, record)),
            Err(why) => {
                refused += 1;
                screen.complain(&format!("{} is not sent again: {why}", of.place));
            }
        }
        Ok(())
    };
    replay.choice.read(chosen, &mut tell).await?;
    let found = records.len();
    if replay.dry_run {
        for (of, _) in &records {
            screen.print(&format!("{} to {}/{}\n", of.place, of.topic, of.partition))?;
        }
        screen.print(&format!("{found} would be sent again, {refused} refused\n"))?;
        return Ok(Ending::Ok);
    }
    let mut sink = chosen.to.sink(Duration::from_secs(30))?;
    let mut progress = screen.progress("sent again", Some(found as u64));
    let mut places = Vec::new();
    let mut open = 0;
    let mut failed = 0;
    let mut done = Vec::new();
    for (of, mut record) in records {
        let ticket = places.len() as u64;
        places.push(of.place);
        while let Err(back) = sink.append(ticket, record) {
            record = back;
            sink.deliveries(&mut done).await;
            open -= done.len();
            failed += settle(&mut done, &places, screen);
        }
        open += 1;
        progress.add(1, 0);
    }
    while open > 0 {
        sink.deliveries(&mut done).await;
        open -= done.len();
        failed += settle(&mut done, &places, screen);
    }
    drop(progress);
    let sent = found - failed;
    screen.print(&format!(
        "{sent} sent again, {refused} refused, {failed} failed\n"
    ))?;
    Ok(if refused + failed == 0 {
        Ending::Ok
    } else {
        Ending::Failed
    })
}

fn settle(done: &mut Vec<(u64, Delivery)>, places: &[String], screen: Screen) -> usize {
    let mut failed = 0;
    for (ticket, delivery) in done.drain(..) {
        if let Delivery::Failed { code, message, .. } = delivery {
            failed += 1;
            let place = usize::try_from(ticket)
                .ok()
                .and_then(|ticket| places.get(ticket));
            let place = place.map_or("?", String::as_str);
            screen.complain(&format!("{place} was not stored: {code}: {message}"));
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_with_and_without_their_topic() {
        assert_eq!(place("0/17"), Some((0, 17)));
        assert_eq!(place("orders.dlq/3/2"), Some((3, 2)));
        assert_eq!(place("17"), None);
        assert_eq!(place("a/b"), None);
    }
}
