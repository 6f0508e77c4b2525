//! The loop: what happened goes into the machine, what it wants is started.
//!
//! One task owns the source, the machine and the link to the output: no locks, one place for
//! order. Nothing in here decides anything about an event.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use millrace_connectors::{Happening, Source};
use millrace_core::intake::Intake;
use millrace_core::intake::io::{CallId, Effect, Fact, Input, Link, Operator};
use millrace_core::intake::state::{RecordState, State};
use millrace_core::outcome::Outcome;
use millrace_core::position::{Partition, Position};
use millrace_core::time::Time;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::app_client::AppClient;
use crate::publish_client::{News, Publisher};

/// Ends of calls that one turn takes at most.
const ENDS_PER_TURN: usize = 512;
/// Questions and orders that wait for the driver.
pub(crate) const COMMANDS_QUEUED_MAX: usize = 16;
/// How often the machine is told where the logs end.
const LOOK_AT_ENDS: Duration = Duration::from_secs(1);
/// A machine that waits for nothing is still asked this often.
const IDLE: Duration = Duration::from_secs(5);

/// Questions and orders of the admin pages and of the process.
pub(crate) enum Command {
    /// A snapshot.
    State(oneshot::Sender<State>),
    /// One event in flight.
    Record(Partition, Position, oneshot::Sender<Option<RecordState>>),
    /// An operator's word.
    Operate(Operator),
    /// Stop by then.
    Drain { deadline: Duration },
}

/// What the driver tells the health pages.
pub(crate) trait Watch: Send {
    /// The loop turned.
    fn turned(&mut self);
    /// Ends of the logs that are read; `None` while the brokers do not tell.
    fn log_ends(&self) -> Option<HashMap<Partition, Position>>;
    /// The brokers were reached, or not any more.
    fn brokers(&mut self, reachable: bool, message: &str);
}

/// Everything that the driver owns.
pub(crate) struct Driver<S, W> {
    pub(crate) source: S,
    pub(crate) intake: Intake,
    pub(crate) app: AppClient,
    pub(crate) publisher: Publisher,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) watch: W,
    pub(crate) clock: fn() -> Time,
    /// Whether a broker is connected.
    pub(crate) reachable: bool,
}

impl<S: Source, W: Watch> Driver<S, W> {
    /// Runs until the machine has stopped; then leaves the group.
    pub(crate) async fn run(mut self) {
        let (done, mut ended) = mpsc::channel::<(CallId, Outcome)>(ENDS_PER_TURN);
        let (probed, mut probes) = mpsc::channel::<bool>(1);
        let mut ends = Vec::with_capacity(ENDS_PER_TURN);
        let mut effects = Vec::new();
        let mut wake = pin!(tokio::time::sleep(IDLE));
        let mut look = tokio::time::interval(LOOK_AT_ENDS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Whoever can run runs first: what ends meanwhile is told in one turn.
            tokio::task::yield_now().await;
            let now = (self.clock)();
            let rest = self
                .intake
                .deadline()
                .map_or(IDLE, |at| at.since(now).min(IDLE));
            wake.as_mut().reset(tokio::time::Instant::now() + rest);
            self.watch.turned();
            // Ends come first: they make room. Events come only as long as there is room, so
            // nothing starves.
            let input = tokio::select! {
                biased;
                _ = look.tick() => Input::LogEnds(self.log_ends()),
                _ = ended.recv_many(&mut ends, ENDS_PER_TURN) => Input::Answered(std::mem::take(&mut ends)),
                news = self.publisher.next() => link(news),
                happening = self.source.next() => match self.input(happening) {
                    Some(input) => input,
                    None => continue,
                },
                Some(ready) = probes.recv() => Input::AppProbed { ready },
                Some(command) = self.commands.recv() => match self.obey(command, now) {
                    Some(input) => input,
                    None => continue,
                },
                () = &mut wake => Input::Tick,
            };
            self.intake.on((self.clock)(), input, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Call(call) => self.app.start(call, (self.clock)(), &done),
                    Effect::Publish(frame) => self.publisher.send(&frame),
                    Effect::ProbeApp => probe(&self.app, &probed),
                    Effect::ReadTokens(partition) => self.source.read_tokens(partition),
                    Effect::Assign(starts) => self.source.assign(starts),
                    Effect::Unassign(partitions) => self.source.unassign(partitions),
                    Effect::Seek {
                        partition,
                        position,
                    } => self.source.seek(partition, position),
                    Effect::Pause(partition) => self.source.pause(partition),
                    Effect::Resume(partition) => self.source.resume(partition),
                    Effect::Commit(commit) => self.source.commit(commit),
                    Effect::ReadGroupMetadata { commit, partitions } => {
                        self.source.read_group_metadata(commit, partitions);
                    }
                    Effect::Rejoin => self.source.rejoin(),
                    Effect::Report(fact) => report(&fact),
                    Effect::Stop => {
                        self.source.close().await;
                        info!("stopped: everything open has ended and is committed");
                        return;
                    }
                }
            }
        }
    }

    fn log_ends(&self) -> Option<Vec<(Partition, Position)>> {
        let ends = self.watch.log_ends().filter(|_| self.reachable)?;
        Some(ends.into_iter().collect())
    }

    /// What a happening means to the machine; `None` if only people are told.
    fn input(&mut self, happening: Happening) -> Option<Input> {
        Some(match happening {
            Happening::Assigned {
                partitions,
                membership,
            } => Input::Assigned {
                partitions,
                membership,
            },
            Happening::Revoking(partitions) => Input::Revoking(partitions),
            Happening::Lost(partitions) => Input::Lost(partitions),
            Happening::Fetched(batches) => Input::Fetched { batches },
            Happening::OutOfRange {
                partition,
                log_start,
                log_end,
            } => Input::OutOfRange {
                partition,
                log_start,
                log_end,
            },
            Happening::TokensRead { partition, read } => {
                if let Err(error) = &read {
                    warn!(%partition, %error, "tokens could not be read, will try again");
                }
                Input::TokensRead { partition, read }
            }
            Happening::Committed { commit, outcome } => Input::Committed { commit, outcome },
            Happening::GroupMetadata { commit, read } => Input::GroupMetadata { commit, read },
            Happening::Rejoined => Input::Rejoined,
            Happening::Brokers { reachable, message } => {
                if reachable {
                    info!("the brokers can be reached");
                } else {
                    warn!(error = %message, "the brokers cannot be reached, trying on");
                }
                self.reachable = reachable;
                self.watch.brokers(reachable, &message);
                return None;
            }
            Happening::Misconfigured(message) => {
                error!(error = %message, "the input cannot work until this is changed; trying on");
                self.watch.brokers(false, &message);
                return None;
            }
        })
    }

    fn obey(&mut self, command: Command, now: Time) -> Option<Input> {
        match command {
            Command::State(answer) => {
                // Whoever asked may have gone.
                let _gone = answer.send(self.intake.state());
                None
            }
            Command::Record(partition, position, answer) => {
                let _gone = answer.send(self.intake.record(&partition, position));
                None
            }
            Command::Operate(operator) => Some(Input::Operator(operator)),
            Command::Drain { deadline } => Some(Input::Drain {
                deadline: now.plus(deadline),
            }),
        }
    }
}

fn link(news: News) -> Input {
    match news {
        News::Up { credit, .. } => Input::Link(Link::Up { credit }),
        News::Down => Input::Link(Link::Down),
        News::Replies(replies) => Input::Replies(replies),
    }
}

/// Asks the app's health; one question is out at a time, as the machine promises.
fn probe(app: &AppClient, probed: &mpsc::Sender<bool>) {
    let (app, probed) = (app.clone(), probed.clone());
    tokio::spawn(async move {
        let _gone = probed.send(app.healthy().await.is_ok()).await;
    });
}

/// What one operator would tell another.
fn report(fact: &Fact) {
    match fact {
        Fact::Started {
            partition,
            position,
            remembered,
            added,
        } => {
            info!(%partition, %position, remembered, "partition started");
            if *added {
                warn!(
                    %partition,
                    "this partition was added to its topic: it is read from its beginning; keys \
                     may have moved here from other partitions, whose earlier events of these \
                     keys may be answered later"
                );
            }
        }
        Fact::Halted { partition, reason } => error!(%partition, %reason, "partition halted"),
        Fact::Released {
            partition,
            unfinished,
        } => info!(%partition, unfinished, "partition released"),
        Fact::Lost {
            partition,
            unfinished,
        } => {
            warn!(%partition, unfinished, "partition lost; its next owner reads on from the last commit")
        }
        Fact::DataLoss {
            partition,
            from,
            to,
        } => error!(%partition, %from, %to, "the log lost events"),
        Fact::Breaker {
            state,
            cause,
            message,
        } => warn!(state, cause, last_failure = %message, "breaker"),
        Fact::AppUnreachable { message } => {
            warn!(error = %message, "the app cannot be reached, asking its health every second")
        }
        Fact::AppReachable => info!("the app is back"),
        Fact::CommitsFail { times, message } => {
            error!(times, error = %message, "commits are refused again and again")
        }
        Fact::Rejoining { reason } => warn!(%reason, "leaving the group to join it anew"),
        Fact::Stalled {
            partition,
            unmoved,
            waits_for,
            details,
        } => {
            warn!(%partition, seconds = unmoved.as_secs(), waits_for, %details, "partition stands still although there is work")
        }
        Fact::PodCrashes {
            partition,
            times,
            until,
        } => {
            warn!(%partition, times, %until, "owners of this partition ended uncleanly; its events are answered one at a time until this position, to find the one that kills the pod")
        }
        Fact::ParkingFull {
            partition,
            position,
        } => {
            error!(%partition, %position, "as many keys are parked as a commit can name; this event and its key wait (millrace dlq unpark)")
        }
        Fact::StoreFailed { partition, message } => {
            warn!(%partition, error = %message, "results were not stored, sending them again")
        }
        Fact::DeadLettered {
            partition,
            position,
            reason,
            message,
        } => {
            warn!(%partition, %position, reason, %message, "event dead-lettered (further ones of this reason within 10 s are only counted)")
        }
    }
}

#[cfg(test)]
mod tests;
