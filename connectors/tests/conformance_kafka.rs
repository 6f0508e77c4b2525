//! The conformance suite on a real Apache Kafka, whose bootstrap address stands in
//! `MILLRACE_TEST_KAFKA`. `MILLRACE_TEST_ITEM` narrows it to items whose names contain it.

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn apache_kafka_conforms() {
    let Ok(bootstrap) = std::env::var("MILLRACE_TEST_KAFKA") else {
        assert!(
            std::env::var_os("CI").is_none(),
            "MILLRACE_TEST_KAFKA must name a Kafka in CI"
        );
        println!("skipped: MILLRACE_TEST_KAFKA does not name a Kafka");
        return;
    };
    let item = std::env::var("MILLRACE_TEST_ITEM").unwrap_or_default();
    millrace_connectors::conformance::run_some(&bootstrap, |name| name.contains(&item)).await;
}
