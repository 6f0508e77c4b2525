//! The conformance suite on the embedded broker. `MILLRACE_TEST_ITEM` narrows it to items whose
//! names contain it.

use std::time::Duration;

use millrace_broker::{Broker, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_embedded_broker_conforms() {
    let mut options = Options::memory();
    options.initial_rebalance_delay = Duration::ZERO;
    let broker = Broker::start(options).expect("a broker in memory starts");
    let item = std::env::var("MILLRACE_TEST_ITEM").unwrap_or_default();
    let bootstrap = broker.bootstrap();
    millrace_connectors::conformance::run_some(&bootstrap, |name| name.contains(&item)).await;
}
