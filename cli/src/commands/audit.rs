//! `millrace audit`: proves from the topics what became of every event.
//!
//! Invariant: what was committed is read first, then the ends of the result and dead-letter
//! topics, then the ends of the input topics. So each settled event's outcome is within what is
//! read (D-V3: stored, then terminal, then committed), and no outcome is without its event.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use millrace_connectors::kafka::Until;
use millrace_core::contract::block::{self, InputSource, OutputSink};
use millrace_core::contract::commit::{Metadata, UnknownKeys};
use millrace_core::contract::grant::Grant;
use millrace_core::contract::result::REDRIVE_OF;
use millrace_core::event::Event;
use millrace_core::intake::io::Committed;
use millrace_core::position::{Partition, Position};
use millrace_core::token::Token;

use super::document_or_complaint;
use crate::Ending;
use crate::audit::{Judge, Ordering, Repeats, Report, Rules, Settled, Source, Unanswered};
use crate::connect::{Brokers, Cluster, Document, From};
use crate::screen::{Format, Progress, Screen};

/// `delivery.window` if no document says otherwise.
const WINDOW: u64 = 5_000;

/// Prove that every event was answered once and in order, or show which was not
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace audit block.yaml
  millrace audit block.yaml --no-filter -o json
  millrace audit block.yaml --allow-duplicates          after a crash: repeats are legal then
  millrace audit --input orders --output scores --dead-letter orders.dlq --settled --no-filter

It reads the topics to the ends that they have when it starts, and what the block's consumer
group has committed. An event is
  answered       a result names it (millrace-src), under the id that is computed for it
  dead_lettered  the dead-letter topic holds it
  filtered       settled (below the committed position), and neither of the two
  lost           the same, but the app does not filter: --no-filter, --filtered N
  pending        not settled and without outcome: it will be read (again)
`duplicated` counts copies beyond the first, `out_of_order` first results that come behind one of
a later event of the same key. The logs alone cannot tell a filtered event from a lost one, so say
--no-filter if your app answers everything.

Memory: about five bytes per event and forty per key. Exit codes: 0 the promise held, 1 it did
not, 2 wrong usage or a wrong document.")]
pub struct Arguments {
    /// The block document
    #[arg(value_name = "BLOCK", required_unless_present_all = ["input", "results"])]
    block: Option<PathBuf>,
    #[command(flatten)]
    brokers: Brokers,
    /// Input topic, instead of those of the document
    #[arg(long, value_name = "TOPIC")]
    input: Vec<String>,
    /// Result topic, besides that of the document
    #[arg(id = "results", long = "output", value_name = "TOPIC")]
    results: Vec<String>,
    /// Dead-letter topic, instead of that of the document
    #[arg(long, value_name = "TOPIC")]
    dead_letter: Vec<String>,
    /// Consumer group whose commits count, instead of those of the block's releases
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Release whose commits count, instead of the one in the registry
    #[arg(
        long,
        value_name = "RELEASE",
        conflicts_with = "group",
        requires = "block"
    )]
    release: Option<String>,
    /// Take every event as settled, whatever was committed: the block has drained
    #[arg(long)]
    settled: bool,
    /// What stays in order, instead of `delivery.ordering`
    #[arg(long, value_enum)]
    ordering: Option<Kept>,
    /// The app never filters: settled events without outcome are lost
    #[arg(long, conflicts_with = "filtered")]
    no_filter: bool,
    /// The app filters exactly N events; what is missing beyond is lost
    #[arg(long, value_name = "N")]
    filtered: Option<u64>,
    /// Copies with equal ids are legal, within the window: something crashed
    #[arg(long)]
    allow_duplicates: bool,
    /// How far back a copy may reach, instead of `delivery.window`
    #[arg(long, value_name = "POSITIONS")]
    window: Option<u64>,
    /// How to print the report
    #[arg(short = 'o', long = "output-format", value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Kept {
    Key,
    Partition,
    None,
}

pub(crate) async fn run(arguments: Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let document = match &arguments.block {
        None => None,
        Some(file) => match document_or_complaint(file, screen)? {
            Ok(document) => Some(document),
            Err(ending) => return Ok(ending),
        },
    };
    let scope = Scope::new(&arguments, document.as_ref())?;
    let report = audit(&scope, screen).await?;
    match arguments.format {
        Format::Json => screen.print_json(&report)?,
        Format::Text => screen.print(&text(&report, screen))?,
    }
    Ok(if report.ok {
        Ending::Ok
    } else {
        Ending::Failed
    })
}

/// What is audited.
#[derive(Debug)]
pub struct Scope {
    /// The cluster of the input topics.
    pub input: Cluster,
    /// The cluster of the result and dead-letter topics.
    pub output: Cluster,
    /// Input topics.
    pub events: Vec<String>,
    /// Result topics.
    pub results: Vec<String>,
    /// Dead-letter topics.
    pub dead_letters: Vec<String>,
    /// Whose commits count.
    pub commits: Commits,
    /// How to judge.
    pub rules: Rules,
}

/// Whose commits say what is settled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Commits {
    /// Everything is settled.
    Everything,
    /// What these groups have committed.
    Groups(Vec<String>),
    /// What the releases of this block have committed; begin at this one, or at the registry's.
    Block(block::Identity, Option<String>),
}

impl Scope {
    fn new(arguments: &Arguments, document: Option<&Document>) -> anyhow::Result<Self> {
        let connection = |of: fn(&block::Block) -> &block::Connection| {
            let of = document.map(|document| (document, of(&document.block)));
            arguments.brokers.open(of)
        };
        let mut events = arguments.input.clone();
        let mut results = arguments.results.clone();
        let mut dead_letters = arguments.dead_letter.clone();
        let mut ordering = Ordering::Key;
        let mut window = WINDOW;
        if let Some(block) = document.map(|document| &document.block) {
            let (InputSource::Kafka(input), OutputSink::Kafka(output)) =
                (&block.input.source, &block.output.sink)
            else {
                bail!("this version audits Kafka topics only");
            };
            if events.is_empty() {
                events.clone_from(&input.topics);
            }
            results.insert(0, output.topic.clone());
            if dead_letters.is_empty() {
                dead_letters.push(output.dead_letter.clone());
            }
            ordering = match block.delivery.ordering {
                block::Ordering::Key => Ordering::Key,
                block::Ordering::Partition => Ordering::Partition,
                block::Ordering::None => Ordering::None,
            };
            window = block.delivery.window;
        }
        let release = arguments.release.as_deref();
        let commits = match document {
            _ if arguments.settled => Commits::Everything,
            _ if !arguments.group.is_empty() => Commits::Groups(arguments.group.clone()),
            None => Commits::Groups(Vec::new()),
            Some(document) => {
                let release = release.or(document.release()).map(str::to_owned);
                Commits::Block(document.block.identity.clone(), release)
            }
        };
        Ok(Self {
            input: connection(|block| block.input_connection())?,
            output: connection(|block| block.output_connection())?,
            events,
            results,
            dead_letters,
            commits,
            rules: Rules {
                ordering: match arguments.ordering {
                    None => ordering,
                    Some(Kept::Key) => Ordering::Key,
                    Some(Kept::Partition) => Ordering::Partition,
                    Some(Kept::None) => Ordering::None,
                },
                unanswered: match (arguments.no_filter, arguments.filtered) {
                    (true, _) => Unanswered::Expected(0),
                    (false, Some(count)) => Unanswered::Expected(count),
                    (false, None) => Unanswered::Filtered,
                },
                repeats: if arguments.allow_duplicates {
                    Repeats::Allowed
                } else {
                    Repeats::Forbidden
                },
                window: arguments.window.unwrap_or(window),
            },
        })
    }
}

type Ranges = BTreeMap<Partition, (Position, Position)>;

/// Reads everything and judges it.
pub async fn audit(scope: &Scope, screen: Screen) -> anyhow::Result<Report> {
    let mut notes = Vec::new();
    let inputs = partitions(&scope.input, &scope.events).await?;
    let results = partitions(&scope.output, &scope.results).await?;
    let mut dead_letters = Vec::new();
    for topic in &scope.dead_letters {
        match scope.output.partitions(topic).await? {
            Some(partitions) => dead_letters.extend(partitions),
            None => notes.push(format!("dead-letter topic `{topic}` does not exist")),
        }
    }
    // In this order; see the head of this file.
    let settled = settled(scope, &inputs, &mut notes).await?;
    let results = ranges(&scope.output, results).await?;
    let dead_letters = ranges(&scope.output, dead_letters).await?;
    let inputs = ranges(&scope.input, inputs).await?;

    let sources = inputs
        .iter()
        .map(|(partition, (log_start, log_end))| Source {
            partition: partition.clone(),
            log_start: *log_start,
            log_end: *log_end,
        });
    let mut judge = Judge::new(scope.rules, &scope.input.id().await?, sources.collect());
    let total = [&inputs, &results, &dead_letters]
        .into_iter()
        .map(size)
        .sum();
    let mut progress = screen.progress("audited", Some(total));
    read(&scope.input, &inputs, &mut progress, |partition, event| {
        let redrive_of = event.header(REDRIVE_OF).flatten();
        judge.event(partition, event.position(), event.key(), redrive_of);
    })
    .await?;
    read(&scope.output, &results, &mut progress, |place, event| {
        judge.result(place, event.position(), |name| text_of(event, name));
    })
    .await?;
    read(
        &scope.output,
        &dead_letters,
        &mut progress,
        |place, event| {
            judge.dead_letter(place, event.position(), |name| text_of(event, name));
        },
    )
    .await?;
    drop(progress);
    match settled {
        None => {
            for (partition, (_, end)) in &inputs {
                let all = Settled {
                    watermark: *end,
                    above: Vec::new(),
                };
                judge.settled(partition, &all);
            }
        }
        Some(settled) => {
            for (partition, settled) in &settled {
                judge.settled(partition, settled);
            }
        }
    }
    let mut report = judge.verdict();
    report.notes.extend(notes);
    Ok(report)
}

async fn read(
    cluster: &Cluster,
    ranges: &Ranges,
    progress: &mut Progress,
    mut tell: impl FnMut(&Partition, &Event),
) -> anyhow::Result<()> {
    let partitions: Vec<Partition> = ranges.keys().cloned().collect();
    let mut reader = cluster
        .read(partitions, From::Earliest, Until::Ends)
        .await?;
    while let Some(batch) = reader.next().await {
        for fetched in batch.map_err(|error| cluster.explain(error))? {
            let (_, end) = ranges[&fetched.partition];
            let mut bytes = 0;
            for event in &fetched.events {
                bytes += event.bytes() as u64;
                if event.position() < end {
                    tell(&fetched.partition, event);
                }
            }
            progress.add(fetched.events.len() as u64, bytes);
        }
    }
    Ok(())
}

fn text_of(event: &Event, name: &[u8]) -> Option<Vec<u8>> {
    event.header(name).flatten().map(<[u8]>::to_vec)
}

fn size(ranges: &Ranges) -> u64 {
    ranges.values().map(|(start, end)| end.since(*start)).sum()
}

async fn partitions(cluster: &Cluster, topics: &[String]) -> anyhow::Result<Vec<Partition>> {
    let mut all = BTreeSet::new();
    for topic in topics {
        all.extend(cluster.need_topic(topic).await?);
    }
    Ok(all.into_iter().collect())
}

async fn ranges(cluster: &Cluster, partitions: Vec<Partition>) -> anyhow::Result<Ranges> {
    if partitions.is_empty() {
        return Ok(Ranges::new());
    }
    cluster.ranges(partitions).await
}

/// What commits say; `None`: everything is settled.
async fn settled(
    scope: &Scope,
    partitions: &[Partition],
    notes: &mut Vec<String>,
) -> anyhow::Result<Option<Vec<(Partition, Settled)>>> {
    let (mut groups, identity) = match &scope.commits {
        Commits::Everything => return Ok(None),
        Commits::Groups(groups) => (groups.clone(), None),
        Commits::Block(identity, release) => {
            let releases = match release {
                Some(release) => vec![release.clone()],
                None => registered(scope, identity, partitions, notes).await?,
            };
            let groups = releases.iter().map(|release| identity.group(release));
            (groups.collect(), Some(identity))
        }
    };
    if groups.is_empty() {
        notes.push("no commits are known, so nothing counts as settled (--settled)".to_owned());
    }
    let mut settled = Vec::new();
    let mut seen = BTreeSet::new();
    while let Some(group) = groups.pop() {
        if !seen.insert(group.clone()) {
            continue;
        }
        let committed = fetch(&scope.input, &group, partitions).await?;
        if committed.is_empty() {
            notes.push(format!("group `{group}` has committed nothing"));
        }
        for (partition, committed) in committed {
            match Metadata::decode(&committed.metadata, UnknownKeys::Ignore) {
                Ok(metadata) => {
                    let peer = peer(&metadata.token);
                    groups.extend(identity.zip(peer).map(|(of, peer)| of.group(peer)));
                    if metadata.token.tenure().is_some() {
                        settled.push((partition, settled_by(&committed, &metadata)));
                    }
                }
                Err(error) => {
                    if !committed.metadata.is_empty() {
                        let place = format!("the token of {partition} in `{group}`");
                        notes.push(format!("{place} cannot be read: {error}"));
                    }
                    let watermark = committed.position;
                    let above = Vec::new();
                    settled.push((partition, Settled { watermark, above }));
                }
            }
        }
    }
    Ok(Some(settled))
}

fn settled_by(committed: &Committed, metadata: &Metadata) -> Settled {
    let bits = metadata.ledger.terminal.len() as u64 * 8;
    let above = (0..bits).filter(|bit| metadata.ledger.is_terminal(*bit));
    Settled {
        watermark: committed.position,
        above: above.map(|bit| committed.position.plus(bit)).collect(),
    }
}

fn peer(token: &Token) -> Option<&str> {
    match token {
        Token::Shadow { peer, .. } | Token::Live { peer, .. } => peer.as_ref(),
        Token::Sealed { to, .. } => to.as_ref(),
    }
    .map(|release| release.as_str())
}

/// The releases that the registry knows.
async fn registered(
    scope: &Scope,
    identity: &block::Identity,
    partitions: &[Partition],
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<String>> {
    let group = identity.registry_group();
    let mut releases = BTreeSet::new();
    for committed in fetch(&scope.input, &group, partitions).await?.into_values() {
        match Grant::decode(&committed.metadata, UnknownKeys::Ignore) {
            Ok(grant) => {
                releases.insert(grant.root.as_str().to_owned());
                if let Some(grants) = grant.release {
                    let granted = [Some(grants.first), grants.second];
                    let granted = granted.into_iter().flatten();
                    releases.extend(granted.map(|granted| granted.release.as_str().to_owned()));
                }
            }
            Err(error) => notes.push(format!("the registry `{group}` cannot be read: {error}")),
        }
    }
    if releases.is_empty() {
        notes.push(format!(
            "the registry `{group}` names no release: has the block ever run?"
        ));
    }
    Ok(releases.into_iter().collect())
}

async fn fetch(
    cluster: &Cluster,
    group: &str,
    partitions: &[Partition],
) -> anyhow::Result<HashMap<Partition, Committed>> {
    let fetched = cluster.store()?.fetch_all(group, partitions.to_vec()).await;
    fetched.map_err(|error| cluster.explain(error))
}

fn text(report: &Report, screen: Screen) -> String {
    let counts = &report.counts;
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for partition in &report.partitions {
        let watermark = partition.watermark;
        let watermark = watermark.map_or_else(|| "-".to_owned(), |mark| mark.to_string());
        line(&screen.faint(&format!(
            "{} watermark={watermark} pending={} {}",
            partition.partition, partition.counts.pending, partition.counts
        )));
    }
    for (release, results) in &report.releases {
        line(&screen.faint(&format!(
            "release {release}: {results} results and dead letters"
        )));
    }
    if counts.duplicated > 0 {
        let span = report.repeat_span_max;
        line(&format!("the furthest copy reaches {span} positions back"));
    }
    for offender in &report.offenders {
        let record = offender.record.as_deref();
        let record = record
            .map(|record| format!(" by {record}"))
            .unwrap_or_default();
        line(&screen.bad(&format!(
            "{}: {}{record}: {}",
            offender.offence, offender.event, offender.detail
        )));
    }
    for (count, what) in [
        (counts.wrong_id, "results with a wrong id"),
        (counts.unknown_event, "results of unknown events"),
        (counts.two_releases, "answers of a second release"),
        (counts.beyond_window, "copies from beyond the window"),
    ] {
        if count > 0 {
            line(&screen.bad(&format!("{count} {what}")));
        }
    }
    for note in &report.notes {
        line(&format!("note: {note}"));
    }
    if counts.pending > 0 {
        line(&format!("pending={}", counts.pending));
    }
    let verdict = format!("audit: {counts}");
    line(&if report.ok {
        screen.good(&verdict)
    } else {
        screen.bad(&verdict)
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_w4_a_ledger_settles_positions_above_the_watermark() {
        let committed = Committed {
            position: Position::new(100),
            metadata: String::new(),
        };
        let token = Token::Live {
            epoch: 1,
            from: Position::START,
            peer: None,
        };
        let mut metadata = Metadata::of_outsider(token, None);
        metadata.ledger.set_terminal(3);
        metadata.ledger.set_terminal(9);
        let settled = settled_by(&committed, &metadata);
        assert_eq!(settled.watermark, Position::new(100));
        assert_eq!(settled.above, vec![Position::new(103), Position::new(109)]);
    }
}
