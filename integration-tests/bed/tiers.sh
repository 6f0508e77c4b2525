#!/usr/bin/env bash
# Runs the tiers of `make test` in order, a line for each, then one line with the total.
#
#   tiers.sh                 all tiers
#   tiers.sh core broker     only these (`prerequisites` and `build` come along when needed)
#
# Everything is compiled once, by one cargo command for the whole workspace: selecting single
# packages would give shared dependencies other features and compile librdkafka twice. Each tier
# then runs its share of the test binaries, as `cargo test` would. What a tier printed is kept in
# test-artifacts/<tier>.log and shown in full when it fails.
#
# A test that cannot run here prints `skipped: <reason>` and is counted as skipped, not as passed.
# A tier that cannot run here ends with status 77; the last line of its log is the reason. With CI
# set in the environment nothing may be skipped for want of a program.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH=$HOME/.cargo/bin:$PATH
# Only the tier that started a broker may say where it is.
unset MILLRACE_TEST_KAFKA MILLRACE_TEST_KAFKA_SECURE MILLRACE_TEST_KAFKA_CA MILLRACE_TEST_KAFKA_PID

bed=integration-tests/bed
artifacts=$PWD/test-artifacts
binaries=$artifacts/binaries.tsv
# No single test binary may hang the whole run.
binary_seconds_max=1200
cannot_run=77

all=(prerequisites lints build core broker service connectors proxies local app-template stories kafka)

tier_prerequisites() { "$bed/prerequisites.sh" build lints python kcat; }

tier_lints() {
    cargo fmt --all --check &&
        cargo clippy --workspace --all-targets -- -D warnings
}

# Also lists the test binaries: package, folder, target, path.
tier_build() {
    cargo build --workspace --lib --bins --tests --message-format=json-render-diagnostics \
        >"$artifacts/build.json" || return
    "${MILLRACE_PYTHON:-python3}" - "$artifacts/build.json" >"$binaries" <<'PYTHON'
import json, os, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message["reason"] != "compiler-artifact" or not message["profile"]["test"] or not message["executable"]:
        continue
    folder = os.path.dirname(message["manifest_path"])
    package = "millrace-" + os.path.basename(folder)
    print(package, folder, message["target"]["name"], message["executable"], sep="\t")
PYTHON
    echo "$(wc -l <"$binaries") test binaries"
}

tier_core() { run_tests millrace-core millrace-sim millrace-model; }
tier_broker() { run_tests millrace-broker; }
tier_service() { run_tests millrace-service; }
tier_connectors() { run_tests millrace-connectors; }
tier_proxies() { run_tests millrace-output millrace-input; }
tier_local() { run_tests millrace-local millrace-cli; }
tier_app-template() { make -C app-template/python-sklearn test PYTHON="${MILLRACE_PYTHON:-python3}"; }
# Stories mostly wait, so more of them run beside each other than there are cores.
tier_stories() { RUST_TEST_THREADS=6 run_tests millrace-integration-tests; }

# Test files named `*_kafka.rs` want a real broker, which they find in the environment.
tier_kafka() {
    if ! "$bed/prerequisites.sh" kafka; then
        [[ -z ${CI:-} ]] || return 1
        echo "no real Kafka: it needs Java 17 and Maven (integration-tests/bed/prerequisites.sh kafka)"
        return "$cannot_run"
    fi
    trap 'cp "$artifacts/kafka/kafka.log" "$artifacts/kafka-broker.log"; "$bed/kafka.sh" wipe' EXIT
    "$bed/kafka.sh" wipe
    local addresses; addresses=$("$bed/kafka.sh" start) || return
    local line; while read -r line; do export "${line?}"; done <<<"$addresses"
    broker=kafka run_tests millrace-connectors millrace-integration-tests
}

# Runs the test binaries of the named packages, each in its package's folder; all of them, also
# when one fails.
run_tests() {
    local failed=0 package folder target path status wanted needs
    for wanted in "$@"; do
        while IFS=$'\t' read -r package folder target path; do
            needs=embedded
            [[ $target != *_kafka ]] || needs=kafka
            [[ $package == "$wanted" && $needs == "${broker:-embedded}" ]] || continue
            echo "== $package, $target"
            (cd "$folder" && CARGO_MANIFEST_DIR=$folder \
                timeout -k 10 "$binary_seconds_max" "$path" --show-output </dev/null)
            status=$?
            ((status == 0)) || failed=1
            # 101 is what a test binary returns after it has counted its failures itself.
            ((status == 0 || status == 101)) ||
                echo "test result: $target of $package ended with status $status; 0 passed; 1 failed; 0 ignored"
        done <"$binaries"
    done
    return "$failed"
}

# Prints "passed failed skipped" of a log that cargo's test binaries or pytest wrote.
count() {
    awk '
        function number_before(word,   found) {
            if (!match($0, "[0-9]+ " word)) return 0
            found = substr($0, RSTART, RLENGTH)
            return found + 0
        }
        { gsub(/\033\[[0-9;]*m/, "") }
        /^test result: / {
            passed += number_before("passed"); failed += number_before("failed"); skipped += number_before("ignored")
        }
        /^skipped: / { passed--; skipped++ }
        /^=* ?[0-9]+ (passed|failed|error|skipped).* in [0-9.]+s/ {
            passed += number_before("passed"); failed += number_before("failed") + number_before("error")
            skipped += number_before("skipped")
        }
        END { printf "%d %d %d\n", passed, failed, skipped }
    ' "$1"
}

# On a terminal, the last line of the log while the tier runs.
show_progress() {
    local name=$1 log=$2 line
    while sleep 1; do
        line=$(tail -c 2000 "$log" 2>/dev/null | tr '\r\t' '\n ' | sed 's/\x1b\[[0-9;]*m//g' | grep -v '^ *$' | tail -n 1)
        printf '\r\033[Ktier %s ... %.*s' "$name" "$((${COLUMNS:-80} - 12 - ${#name}))" "$line"
    done
}

passed=0 failed=0 skipped=0
watcher=""
# Ctrl-C does not reach what a script runs in the background.
trap '[[ -z $watcher ]] || kill "$watcher" 2>/dev/null' EXIT

run_tier() {
    local name=$1 log=$artifacts/$1.log status took
    local began=${EPOCHREALTIME/[.,]/}
    printf 'tier %s ... ' "$name"
    : >"$log"
    if [[ -t 1 ]]; then show_progress "$name" "$log" 9>&- & watcher=$!; fi
    # Not even a broker that a tier left behind may keep the lock.
    ("tier_$name") >"$log" 2>&1 9>&-
    status=$?
    if [[ -n $watcher ]]; then
        kill "$watcher"; wait "$watcher" 2>/dev/null
        watcher=""
        printf '\r\033[Ktier %s ... ' "$name"
    fi
    took=$(((${EPOCHREALTIME/[.,]/} - began) / 100000))
    took="$((took / 10)).$((took % 10)) s"

    local p f s; read -r p f s < <(count "$log")
    if ((status == cannot_run)); then
        printf 'skipped: %s (%s)\n' "$(tail -n 1 "$log")" "$took"
        ((s > 0)) || s=1
    elif ((status == 0 && f == 0)); then
        printf 'ok (%s%s)\n' "$took" "$( ((p + s == 0)) || printf ', %d passed' "$p"; ((s == 0)) || printf ', %d skipped' "$s")"
        grep '^skipped: ' "$log" | sort | uniq -c | sed 's/^ *\([0-9]*\) skipped: /     \1 skipped: /'
    else
        printf 'FAILED (%s)\n' "$took"
        ((f > 0)) || f=1
        sed 's/^/    /' "$log"
        printf 'tier %s FAILED; the output above is kept in %s\n' "$name" "${log#"$PWD"/}"
        status=1
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    ((status == 0 || status == cannot_run))
}

chosen=("$@")
(($# > 0)) || chosen=("${all[@]}")
for name in "${chosen[@]}"; do
    [[ " ${all[*]} " == *" $name "* ]] || { echo "no tier '$name'; there are: ${all[*]}" >&2; exit 2; }
done
# Tests need the binaries, the binaries need the compilers.
for name in "${chosen[@]}"; do
    case $name in prerequisites | lints | build | app-template) ;; *) chosen=(build "${chosen[@]}"); break ;; esac
done
chosen=(prerequisites "${chosen[@]}")

mkdir -p "$artifacts"
# Two runs in one folder would share logs and the real Kafka, and end it under each other.
exec 9>"$artifacts/lock"
if ! flock -n 9; then
    echo "another run of the tests is going on in this folder; waiting for its end"
    flock 9
fi
for name in "${all[@]}"; do
    [[ " ${chosen[*]} " == *" $name "* ]] || continue
    # Without compilers or binaries the rest would only repeat the same failure.
    run_tier "$name" || [[ $name != prerequisites && $name != build ]] || break
done
echo "$passed passed, $failed failed, $skipped skipped" | tee "$artifacts/total"
((failed == 0))
