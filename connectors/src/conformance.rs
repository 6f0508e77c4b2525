//! What Millrace relies on, as a suite that every broker must pass (B-E6).
//!
//! It runs on the embedded broker and on Apache Kafka. Each item is a claim and has topics and
//! groups of its own, so items run beside each other.
#![expect(
    clippy::unwrap_used,
    reason = "a suite of tests, compiled into the library so that each broker's tests can run it"
)]

mod bench;
mod groups;
mod raw;
mod records;
mod tokens;
mod transactions;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use bench::Bench;

/// How long one item may take.
const ITEM_MAX: Duration = Duration::from_secs(90);

/// Items that run at the same time.
const ITEMS_AT_ONCE: usize = 4;

type Run = fn(Bench) -> Pin<Box<dyn Future<Output = ()>>>;

/// One claim.
#[derive(Clone, Copy)]
pub struct Item {
    /// The claim.
    pub name: &'static str,
    run: Run,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn item(name: &'static str, run: Run) -> Item {
    Item { name, run }
}

/// The whole suite.
pub const ITEMS: &[Item] = &[
    item("d_f1_records_come_back_byte_exact", |b| {
        Box::pin(records::byte_exact(b))
    }),
    item(
        "d_l3_records_of_a_partition_keep_their_order_and_come_once",
        |b| Box::pin(records::in_order_and_once(b)),
    ),
    item("d_o7_a_key_goes_where_java_clients_send_it", |b| {
        Box::pin(records::java_partitions(b))
    }),
    item("d_o4_what_cannot_be_stored_is_told_apart", |b| {
        Box::pin(records::rejections(b))
    }),
    item("b_k4_a_full_queue_gives_the_record_back", |b| {
        Box::pin(records::full_queue(b))
    }),
    item("d_l3_a_purge_ends_every_record", |b| {
        Box::pin(records::purge(b))
    }),
    item("a_reader_ends_at_the_ends", |b| {
        Box::pin(records::reader(b))
    }),
    item("d_g9_positions_by_time", |b| Box::pin(records::by_time(b))),
    item(
        "r2_a_new_group_reads_no_tokens_and_the_range_of_the_log",
        |b| Box::pin(tokens::new_group(b)),
    ),
    item(
        "e2_metadata_of_4000_bytes_is_kept_and_5000_are_refused",
        |b| Box::pin(tokens::metadata_size(b)),
    ),
    item(
        "e6_an_outsider_commits_only_while_the_group_is_empty",
        |b| Box::pin(tokens::outsider(b)),
    ),
    item("e1_a_recreated_topic_has_another_identity", |b| {
        Box::pin(tokens::identity(b))
    }),
    item("f_26_members_are_listed_with_their_client_ids", |b| {
        Box::pin(tokens::members(b))
    }),
    item("d_s1_topics_are_created_once", |b| {
        Box::pin(tokens::topics(b))
    }),
    item(
        "d_g4_a_revoked_partition_is_committed_before_the_next_owner_has_it",
        |b| Box::pin(groups::deferred_unassign(b)),
    ),
    item("r4b_brokers_fence_generations_not_partitions", |b| {
        Box::pin(groups::fencing(b))
    }),
    item(
        "r4b_a_partition_that_was_let_go_of_cannot_be_committed_here",
        |b| Box::pin(groups::released_is_not_committed(b)),
    ),
    item(
        "d_g5_an_evicted_member_learns_that_it_lost_its_partitions",
        |b| Box::pin(groups::evicted(b)),
    ),
    item("r4c_a_rejoin_ends_what_was_open_and_starts_anew", |b| {
        Box::pin(groups::rejoin(b))
    }),
    item("d_g1_pause_resume_and_seek_lose_nothing", |b| {
        Box::pin(groups::pause_and_seek(b))
    }),
    item("d_g1_a_long_pause_loses_nothing", |b| {
        Box::pin(groups::long_pause(b))
    }),
    item(
        "d_g10_a_position_out_of_range_is_reported_and_can_be_left",
        |b| Box::pin(groups::out_of_range(b)),
    ),
    item(
        "d_g10_a_start_with_an_epoch_reads_exactly_from_there",
        |b| Box::pin(groups::start_with_epoch(b)),
    ),
    item(
        "d_g1_a_driver_that_does_not_listen_does_not_lose_its_membership",
        |b| Box::pin(groups::deaf_driver(b)),
    ),
    item(
        "d_e2_records_offset_and_metadata_are_committed_together",
        |b| Box::pin(transactions::together(b)),
    ),
    item("d_e2_a_forged_generation_is_refused", |b| {
        Box::pin(transactions::forged_generation(b))
    }),
    item("d_e2_the_fencing_of_this_broker_is_proved", |b| {
        Box::pin(transactions::fencing_is_proved(b))
    }),
    item("d_e3_what_is_aborted_never_happened", |b| {
        Box::pin(transactions::aborted(b))
    }),
    item("d_e5_a_newer_producer_fences_the_older_one", |b| {
        Box::pin(transactions::newer_producer(b))
    }),
    item("d_e5_an_offset_without_records_is_a_transaction_too", |b| {
        Box::pin(transactions::offsets_alone(b))
    }),
    item("d_s4_close_leaves_the_group_at_once", |b| {
        Box::pin(groups::close(b))
    }),
];

/// Runs all items against a broker; panics with the names of those that fail.
pub async fn run(bootstrap: &str) {
    run_some(bootstrap, |_| true).await;
}

/// Runs the items whose names are wanted.
pub async fn run_some(bootstrap: &str, wanted: impl Fn(&str) -> bool) {
    let bench = Bench::new(bootstrap);
    let mut waiting: Vec<Item> = ITEMS
        .iter()
        .copied()
        .filter(|item| wanted(item.name))
        .collect();
    waiting.reverse();
    let mut running = tokio::task::JoinSet::new();
    let mut failed = Vec::new();
    loop {
        while running.len() < ITEMS_AT_ONCE {
            let Some(item) = waiting.pop() else {
                break;
            };
            let bench = bench.item(item.name);
            let runtime = tokio::runtime::Handle::current();
            running.spawn(async move {
                let task = tokio::task::spawn_blocking(move || {
                    runtime.block_on(async {
                        let limited = tokio::time::timeout(ITEM_MAX, (item.run)(bench));
                        limited.await.expect("an item ends in time");
                    });
                });
                (item.name, task.await.is_ok())
            });
        }
        match running.join_next().await {
            None => break,
            Some(Ok((name, passed))) => {
                tracing::info!(name, passed, "conformance");
                if !passed {
                    failed.push(name);
                }
            }
            Some(Err(error)) => panic!("the suite itself failed: {error}"),
        }
    }
    assert!(failed.is_empty(), "this broker differs: {failed:#?}");
}
