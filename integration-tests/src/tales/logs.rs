//! The input's log changes under the block: partitions are added, topics made anew, records gone.

use std::time::Duration;

use crate::records::Commits;
use crate::wait::{Deadline, wait_for, wait_until};
use crate::world::Running;
use crate::{App, Event, Say, World, scenario};

/// The state page of the only pod says this about one of its partitions.
fn halted_because(world: &Running, reason: &str) -> bool {
    let state = world.pods[0].state();
    let partitions = state["partitions"].as_array().cloned().unwrap_or_default();
    let says = |p: &serde_json::Value| {
        p["phase"] == "halted" && p["reason"].as_str().is_some_and(|r| r.contains(reason))
    };
    partitions.iter().any(says)
}

/// Partitions come while events keep coming.
pub fn partitions_are_added(world: World) {
    scenario(
        "F-14",
        &["D-G11", "D-G12"],
        "added partitions are found, read from their beginning, and people are told that keys moved",
    );
    let mut world = world
        .partitions(2)
        .property("topic.metadata.refresh.interval.ms", 500)
        .app(App::doubler())
        .start();
    let load = world.load(200, 40);
    world.has_results(100);
    world.add_partitions(4);
    world.send_numbers(1_200, 60);
    let time = Deadline::after(Duration::ZERO);
    wait_until("all six are worked on", || {
        world.pods[0].partitions().len() == 6
    });
    println!("found after {:?}", time.elapsed());
    world.input().says_all(&["partition was added", "keys"]);
    let sent = load.stop();
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(
        (verdict.answered, verdict.dead_lettered),
        (sent as usize + 1_200, 0)
    );
    let moved = world.events().iter().filter(|e| e.partition >= 2).count();
    assert!(moved > 0, "nothing reached the new partitions");
}

/// The topic is deleted and made anew under its name while the block runs.
pub fn topic_is_made_anew(world: World) {
    scenario(
        "F-15",
        &["R9", "D-G11", "D-I1"],
        "a topic made anew under its name is noticed by its id; its partitions halt",
    );
    let mut world = world
        .partitions(2)
        .property("topic.metadata.refresh.interval.ms", 500)
        .app(App::doubler())
        .start();
    world.send_numbers(400, 20);
    world.settles();
    let topic = world.topic("in");
    world.cluster.delete_topic(&topic);
    world.create_topic("in");
    let before = world.results_count();
    // More than there were before, so that the old positions lie inside the new log.
    world.send_numbers(2_000, 20);
    wait_until("its partitions halt", || {
        halted_because(&world, "TopicIdentityChanged")
    });
    world.input().says("TopicIdentityChanged");
    assert_eq!(
        world.results_count(),
        before,
        "events of the new topic were answered as if they followed the old ones"
    );
    // The operator decides: a start begins with the new topic, and nothing of it is lost.
    assert!(world.input().end().success());
    world.input().start();
    world.settles();
    assert_eq!(world.results_count(), before + 2_000);
}

/// The topic is deleted and made anew while the block stands, and somebody restores the commits
/// that the brokers forgot with it.
pub fn commits_of_another_topic_are_restored(world: World) {
    scenario(
        "F-15",
        &["R9", "E1", "D-W5"],
        "a commit that belongs to the topic's predecessor halts the partition, its ledger is ignored",
    );
    let mut world = world.partitions(1).app(App::doubler()).start();
    world.send_numbers(400, 20);
    world.settles();
    assert!(world.input().end().success());
    let topic = world.topic("in");
    let registry = world.group().replace(crate::pod::RELEASE, "registry");
    let groups = [world.group().to_owned(), registry].map(|g| world.cluster.commits(&g));
    let kept = groups.each_ref().map(|commits| committed(commits, &topic));
    world.cluster.delete_topic(&topic);
    world.create_topic("in");
    let before = world.results_count();
    world.send_numbers(1_000, 20);
    for (commits, (offset, metadata)) in groups.iter().zip(&kept) {
        commits.overwrite(&topic, 0, *offset, metadata);
    }
    world.input().start();
    wait_until("its partition halts", || {
        halted_because(&world, "TopicIdentityChanged")
    });
    assert_eq!(world.results_count(), before);
}

/// The beginning of the log is gone, beyond the block's position.
pub fn records_are_gone(world: World, policy: &str) {
    scenario(
        "F-16",
        &["D-G9", "D-G10"],
        "a position that the log lost is reported as data loss, and the policy is followed",
    );
    let mut world = world
        .partitions(1)
        .set("input.kafka.onDataLoss", policy)
        .app(App::doubler())
        .start();
    world.send_numbers(50, 5);
    world.settles();
    assert!(world.input().end().success());
    world.send_numbers(100, 5);
    world.cluster.delete_records(&world.topic("in"), 0, 90);
    world.input().start();
    if policy == "Stop" {
        wait_until("it halts", || halted_because(&world, "data loss"));
        world
            .input()
            .says_all(&["not in the log any more", "onDataLoss"]);
        assert_eq!(world.results_count(), 50);
    } else {
        world.settles();
        assert_eq!(world.results_count(), 50 + 60);
    }
    let lost = || world.pods[0].metric("millrace_data_loss_records_total");
    wait_until("the loss is counted", || lost() > 0.5);
    assert!((lost() - 40.0).abs() < 0.5, "{} lost, not 40", lost());
}

/// A commit with a key that only a newer version knows.
pub fn newer_metadata(world: World) {
    scenario(
        "F-25",
        &["E1", "D-W7"],
        "at-least-once reads past keys of a newer version, and keeps everything it knows",
    );
    let mut world = world.partitions(1).app(App::doubler()).start();
    world.send_numbers(200, 10);
    world.settles();
    assert!(world.input().end().success());
    let commits = world.cluster.commits(world.group());
    let (offset, metadata) = committed(&commits, &world.topic("in"));
    // The newer version had answered two events beyond the watermark: bits 1 and 2.
    let (body, _) = metadata.rsplit_once(";c=").expect("a checksum (E1)");
    let body = format!("{body};d=Bg;zz=something-new");
    let newer = format!("{body};c={:08x}", crc32c::crc32c(body.as_bytes()));
    commits.overwrite(&world.topic("in"), 0, offset, &newer);
    world.send((0..10).map(|n| Event::of("k", (1_000 + n).to_string())));
    world.input().start();
    let settled = || {
        let (position, _) = committed(&commits, &world.topic("in"));
        position == offset + 10
    };
    wait_until("the rest is answered", settled);
    assert_eq!(
        world.results_of("k").len(),
        8,
        "what the newer version had answered was answered again"
    );
    let (_, after) = committed(&commits, &world.topic("in"));
    assert!(!after.contains("zz="), "{after}");
}

fn committed(commits: &Commits, topic: &str) -> (i64, String) {
    wait_for("the commit", || commits.with_metadata(topic, 0))
}

/// Another program is a member of the group.
pub fn foreign_member(world: World) {
    scenario(
        "F-26",
        &["D-P5"],
        "a group that another program uses is not joined; who it is, is said",
    );
    let mut world = world.partitions(2).app(App::doubler()).prepare();
    world.send_numbers(100, 10);
    let stranger = world.cluster.commits(world.group());
    stranger.join(&world.topic("in"));
    world.pods[0].start();
    world.input().says_all(&["ForeignMembers", "rdkafka"]);
    let (code, body) = world.pods[0].ask_input("/readyz").expect("it answers");
    assert!(
        code != 200 && body.contains("ForeignMembers"),
        "{code} {body}"
    );
    assert_eq!(world.results_count(), 0);
    drop(stranger);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!(verdict.answered, 100);
}

/// Dead letters cannot be stored for a while.
pub fn dead_letters_cannot_be_stored(
    world: World,
    break_it: impl FnOnce(&Running),
    mend_it: impl FnOnce(&Running),
) {
    scenario(
        "F-13",
        &["D-D3", "D-O4", "D-W1"],
        "a dead letter that cannot be stored holds its lane, is alerted, and is never committed past",
    );
    let app = App::saying(|asked| match asked.text().as_str() {
        "poison" => Say::status(422),
        text => Say::value(text),
    });
    let world = world
        .partitions(1)
        .short_sessions()
        .property("topic.metadata.refresh.interval.ms", 500)
        .property("topic.metadata.propagation.max.ms", 500)
        .app(app)
        .start();
    world.send_numbers(10, 5);
    world.settles();
    break_it(&world);
    world.send([
        Event::of("k", "poison"),
        Event::of("k", "next"),
        Event::of("other", "x"),
    ]);
    wait_until("the alert", || {
        world.pods[0].output_metric("millrace_dlq_produce_failures_total") > 0.5
    });
    wait_until("other lanes go on", || {
        !world.results_of("other").is_empty()
    });
    assert!(
        world.results_of("k").is_empty(),
        "the lane passed its event"
    );
    let watermark = world.pods[0].metric("millrace_watermark_offset");
    assert!(
        (watermark - 10.0).abs() < 0.5,
        "committed past: {watermark}"
    );
    mend_it(&world);
    let verdict = world.assert_each_event_answered_once();
    assert_eq!((verdict.answered, verdict.dead_lettered), (12, 1));
}
