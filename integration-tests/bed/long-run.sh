#!/usr/bin/env bash
# Runs what takes minutes: `long-run.sh soak`, `long-run.sh outage`. Builds what it needs, starts a
# real Kafka of its own unless one is named or BROKER=embedded, and takes it down again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bed=integration-tests/bed
bin=${CARGO_TARGET_DIR:-target}/debug
"$bed/prerequisites.sh" build
# One command for the whole workspace, as the tiers do: otherwise shared dependencies are
# compiled twice.
cargo build -q --workspace --lib --bins --tests
if [[ ${BROKER:-kafka} == kafka && -z ${MILLRACE_TEST_KAFKA:-} ]]; then
    "$bed/prerequisites.sh" kafka
    export MILLRACE_KAFKA_DATA=$PWD/test-artifacts/kafka-$1
    trap '"$bed/kafka.sh" wipe' EXIT
    "$bed/kafka.sh" wipe
    addresses=$("$bed/kafka.sh" start)
    while read -r line; do export "${line?}"; done <<<"$addresses"
fi
"$bin/$1"
