#!/usr/bin/env bash
# Runs a real Apache Kafka (KRaft, one node) on this machine for tests, without a container and
# without a release download: its jars come from Maven Central once and stay in the user's cache.
#
#   kafka.sh start     starts it when it is not running; prints NAME=VALUE lines for `export`:
#                        MILLRACE_TEST_KAFKA         host:port, plain
#                        MILLRACE_TEST_KAFKA_SECURE  host:port, TLS and SASL (PLAIN, SCRAM-SHA-256/512)
#                        MILLRACE_TEST_KAFKA_CA      the certificate to trust for it
#                        MILLRACE_TEST_KAFKA_PID     the process, for tests that pause or kill it
#   kafka.sh status    the same lines, or exit 1 when it is not running
#   kafka.sh stop      stops it and keeps its data; a later start takes the same ports again
#   kafka.sh wipe      stops it and removes its data
#
# On the secure port the user is `millrace` and the password `millrace-test`.
#
# MILLRACE_KAFKA_VERSION (4.1.1) and MILLRACE_KAFKA_DATA (test-artifacts/kafka) choose another
# version or place, so that several can run beside each other.
set -euo pipefail

version=${MILLRACE_KAFKA_VERSION:-4.1.1}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
data=${MILLRACE_KAFKA_DATA:-$root/test-artifacts/kafka}
jars=${XDG_CACHE_HOME:-$HOME/.cache}/millrace-kafka/jars-$version
start_seconds_max=120
stop_seconds_max=30
user=millrace
password=millrace-test

say() { printf 'kafka: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# By the command line too: after a reboot the number may belong to a stranger.
running() { [[ -f $data/pid ]] && grep -qF "$data/server.properties" "/proc/$(<"$data/pid")/cmdline" 2>/dev/null; }

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Waits until the command succeeds, at most the given seconds.
wait_until() {
    local end=$((SECONDS + $1)); shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

print_address() {
    local port; port=$(<"$data/port")
    printf 'MILLRACE_TEST_KAFKA=127.0.0.1:%d\n' "$port"
    printf 'MILLRACE_TEST_KAFKA_SECURE=127.0.0.1:%d\n' "$((port + 2))"
    printf 'MILLRACE_TEST_KAFKA_CA=%s\n' "$data/ca.pem"
    printf 'MILLRACE_TEST_KAFKA_PID=%d\n' "$(<"$data/pid")"
}

# Fills a folder beside the final one and renames it, so that a half-fetched cache never counts.
fetch_jars() {
    [[ -d $jars ]] && return
    say "fetching Apache Kafka $version from Maven Central (once)"
    local work; work=$(mktemp -d)
    cat >"$work/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>dev.millrace</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
POM
    mkdir -p "$(dirname "$jars")"
    local fetched; fetched=$(mktemp -d "$jars.XXXXXX")
    mvn -q -B -f "$work/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$fetched" >&2 ||
        fail "Maven could not fetch Apache Kafka $version; is repo.maven.apache.org reachable?"
    chmod 755 "$fetched"
    rm -rf "$work"
    mv -T "$fetched" "$jars"
}

# Three neighbouring ports below the range that the system gives to clients.
choose_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 4000 * 3))
        if ! answers "$port" && ! answers $((port + 1)) && ! answers $((port + 2)); then
            echo "$port" >"$data/port"
            return
        fi
    done
    fail "found no free port between 20000 and 32000"
}

make_certificate() {
    [[ -f $data/ca.pem ]] && return
    keytool -genkeypair -noprompt -alias broker -keyalg EC -groupname secp256r1 -validity 3650 \
        -dname CN=millrace-test-kafka -ext san=ip:127.0.0.1,dns:localhost -ext bc:c \
        -storetype PKCS12 -storepass "$password" -keystore "$data/keystore.p12" 2>/dev/null >&2
    keytool -exportcert -rfc -alias broker -storetype PKCS12 -storepass "$password" \
        -keystore "$data/keystore.p12" -file "$data/ca.pem.new" 2>/dev/null >&2
    mv "$data/ca.pem.new" "$data/ca.pem"
}

# Small and quick: one node is broker and controller, few internal partitions, no join delay.
write_settings() {
    local port=$1 scram=org.apache.kafka.common.security.scram.ScramLoginModule
    cat >"$data/server.properties" <<SETTINGS
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listeners=PLAIN://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1)),SECURE://127.0.0.1:$((port + 2))
advertised.listeners=PLAIN://127.0.0.1:$port,SECURE://127.0.0.1:$((port + 2))
listener.security.protocol.map=PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
listener.name.secure.ssl.keystore.type=PKCS12
listener.name.secure.ssl.keystore.location=$data/keystore.p12
listener.name.secure.ssl.keystore.password=$password
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$user="$password";
listener.name.secure.scram-sha-256.sasl.jaas.config=$scram required;
listener.name.secure.scram-sha-512.sasl.jaas.config=$scram required;
log.dirs=$data/logs
num.partitions=4
auto.create.topics.enable=true
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
SETTINGS
}

kafka_tool() {
    local class=$1; shift
    java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*" "$class" "$@"
}

format_storage() {
    [[ -f $data/logs/meta.properties ]] && return
    local id; id=$(kafka_tool kafka.tools.StorageTool random-uuid | tail -n 1)
    kafka_tool kafka.tools.StorageTool format --cluster-id "$id" --config "$data/server.properties" \
        --add-scram "SCRAM-SHA-256=[name=$user,password=$password]" \
        --add-scram "SCRAM-SHA-512=[name=$user,password=$password]" >&2
}

start() {
    if running; then print_address; return; fi
    command -v java >/dev/null || fail "java is missing; run integration-tests/bed/prerequisites.sh kafka"
    if [[ ! -d $jars ]] && ! command -v mvn >/dev/null; then
        fail "mvn is missing; run integration-tests/bed/prerequisites.sh kafka"
    fi
    local began=$SECONDS
    mkdir -p "$data"
    fetch_jars
    [[ -f $data/port ]] || choose_port
    local port; port=$(<"$data/port")
    make_certificate
    write_settings "$port"
    format_storage
    # Its own session: a Ctrl-C at the tests must not take the broker down under them.
    setsid java -Xms64m -Xmx512m -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
        -cp "$jars/*" kafka.Kafka "$data/server.properties" \
        </dev/null >"$data/kafka.log" 2>&1 &
    echo $! >"$data/pid"
    ready() { ! running || answers $((port + 2)); }
    if ! wait_until "$start_seconds_max" ready || ! running; then
        tail -n 20 "$data/kafka.log" >&2
        stop
        rm -f "$data/port"
        fail "Kafka did not start; its whole log is $data/kafka.log"
    fi
    say "Apache Kafka $version is up after $((SECONDS - began)) s, log in $data/kafka.log"
    print_address
}

stop() {
    if running; then
        local pid; pid=$(<"$data/pid")
        # A test may have left it paused.
        kill -CONT "$pid"; kill "$pid"
        gone() { ! kill -0 "$pid" 2>/dev/null; }
        wait_until "$stop_seconds_max" gone || { say "does not stop, killing $pid"; kill -9 "$pid"; }
    fi
    rm -f "$data/pid"
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    status) running && print_address ;;
    wipe) stop; rm -rf "$data" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
