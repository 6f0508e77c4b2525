#!/usr/bin/env bash
# Runs a real Apache Kafka (KRaft, one node or three) on this machine for tests, without a container and
# without a release download: its jars come from Maven Central once and stay in the user's cache.
#
#   kafka.sh start     starts it when it is not running; prints NAME=VALUE lines for `export`:
#                        MILLRACE_TEST_KAFKA         host:port, plain
#                        MILLRACE_TEST_KAFKA_SECURE  host:port, TLS and SASL (PLAIN, SCRAM-SHA-256/512)
#                        MILLRACE_TEST_KAFKA_CA      the certificate to trust for it
#                        MILLRACE_TEST_KAFKA_TOKENS  host:port, SASL OAUTHBEARER: unsigned tokens (alg none)
#                                                    whose subject is anybody; who stays shows
#                                                    a new one every four seconds
#                        MILLRACE_TEST_KAFKA_MUTUAL  host:port, TLS that asks for our certificate
#                        MILLRACE_TEST_KAFKA_CLIENT  a certificate and its key for it, in one file
#                        MILLRACE_TEST_KAFKA_PID     the process, for tests that pause or kill it
#   kafka.sh kill N    kills node N with signal 9
#   kafka.sh revive N  starts it again, as it was
#   kafka.sh status    the same lines, or exit 1 when it is not running
#   kafka.sh stop      stops it and keeps its data; a later start takes the same ports again
#   kafka.sh wipe      stops it and removes its data
#
# On the secure port the user is `millrace` and the password `millrace-test`.
#
# MILLRACE_KAFKA_VERSION (4.1.1) and MILLRACE_KAFKA_DATA (test-artifacts/kafka) choose another
# version or place, so that several can run beside each other. MILLRACE_KAFKA_NODES=3 makes a cluster
# of three, each broker and controller; MILLRACE_TEST_KAFKA then names all three, in order.
set -euo pipefail

version=${MILLRACE_KAFKA_VERSION:-4.1.1}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
data=${MILLRACE_KAFKA_DATA:-$root/test-artifacts/kafka}
nodes=${MILLRACE_KAFKA_NODES:-1}
jars=${XDG_CACHE_HOME:-$HOME/.cache}/millrace-kafka/jars-$version
start_seconds_max=120
stop_seconds_max=30
user=millrace
password=millrace-test

say() { printf 'kafka: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# The files of the first node have the plain names: server.properties, logs, pid.
of() { (($2 == 1)) && echo "$data/$1" || echo "$data/$1-$2"; }

node_port() { echo $(($(<"$data/port") + 5 * ($1 - 1))); }

# By the command line too: after a reboot the number may belong to a stranger.
node_runs() {
    local pid; pid=$(of pid "$1")
    [[ -f $pid ]] && grep -qzxF "$(of server.properties "$1")" "/proc/$(<"$pid")/cmdline" 2>/dev/null
}

running() {
    local node
    for ((node = 1; node <= nodes; node++)); do node_runs "$node" || return 1; done
}

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
    local port node all=""; port=$(<"$data/port")
    for ((node = 1; node <= nodes; node++)); do all+=,127.0.0.1:$(node_port "$node"); done
    printf 'MILLRACE_TEST_KAFKA=%s\n' "${all#,}"
    printf 'MILLRACE_TEST_KAFKA_SECURE=127.0.0.1:%d\n' "$((port + 2))"
    printf 'MILLRACE_TEST_KAFKA_CA=%s\n' "$data/ca.pem"
    printf 'MILLRACE_TEST_KAFKA_TOKENS=127.0.0.1:%d\n' "$((port + 3))"
    printf 'MILLRACE_TEST_KAFKA_MUTUAL=127.0.0.1:%d\n' "$((port + 4))"
    printf 'MILLRACE_TEST_KAFKA_CLIENT=%s\n' "$data/client.pem"
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

# Five neighbouring ports per node, below the range that the system gives to clients.
choose_port() {
    local port next free
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 2400 * 5)) free=1
        for ((next = port; next < port + 5 * nodes; next++)); do
            ! answers "$next" || free=0
        done
        if ((free)); then
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
    # Who has this one may come in: the broker trusts nobody else.
    keytool -genkeypair -noprompt -alias client -keyalg EC -groupname secp256r1 -validity 3650 \
        -dname CN=millrace-test-client -ext bc:c \
        -storetype PKCS12 -storepass "$password" -keystore "$data/client.p12" 2>/dev/null >&2
    keytool -exportcert -rfc -alias client -storetype PKCS12 -storepass "$password" \
        -keystore "$data/client.p12" -file "$data/client.crt" 2>/dev/null >&2
    keytool -importcert -noprompt -alias client -file "$data/client.crt" \
        -storetype PKCS12 -storepass "$password" -keystore "$data/truststore.p12" 2>/dev/null >&2
    openssl pkcs12 -in "$data/client.p12" -passin "pass:$password" -nodes -out "$data/client.pem" 2>/dev/null >&2
    mv "$data/ca.pem.new" "$data/ca.pem"
}

# Small and quick: one node is broker and controller, few internal partitions, no join delay.
write_settings() {
    local node=$1 scram=org.apache.kafka.common.security.scram.ScramLoginModule
    local port copies=1 other voters=""
    port=$(node_port "$node")
    ((nodes == 1)) || copies=3
    for ((other = 1; other <= nodes; other++)); do
        voters+=,$other@127.0.0.1:$(($(node_port "$other") + 1))
    done
    cat >"$(of server.properties "$node")" <<SETTINGS
process.roles=broker,controller
node.id=$node
controller.quorum.voters=${voters#,}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listeners=PLAIN://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1)),SECURE://127.0.0.1:$((port + 2)),TOKENS://127.0.0.1:$((port + 3)),MUTUAL://127.0.0.1:$((port + 4))
advertised.listeners=PLAIN://127.0.0.1:$port,SECURE://127.0.0.1:$((port + 2)),TOKENS://127.0.0.1:$((port + 3)),MUTUAL://127.0.0.1:$((port + 4))
listener.security.protocol.map=PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,TOKENS:SASL_PLAINTEXT,MUTUAL:SSL
listener.name.secure.ssl.keystore.type=PKCS12
listener.name.secure.ssl.keystore.location=$data/keystore.p12
listener.name.secure.ssl.keystore.password=$password
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$user="$password";
listener.name.secure.scram-sha-256.sasl.jaas.config=$scram required;
listener.name.secure.scram-sha-512.sasl.jaas.config=$scram required;
listener.name.tokens.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.tokens.oauthbearer.connections.max.reauth.ms=4000
listener.name.tokens.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.keystore.type=PKCS12
listener.name.mutual.ssl.keystore.location=$data/keystore.p12
listener.name.mutual.ssl.keystore.password=$password
listener.name.mutual.ssl.truststore.type=PKCS12
listener.name.mutual.ssl.truststore.location=$data/truststore.p12
listener.name.mutual.ssl.truststore.password=$password
log.dirs=$(of logs "$node")
num.partitions=4
default.replication.factor=$copies
auto.create.topics.enable=true
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
offsets.topic.replication.factor=$copies
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
SETTINGS
    # Everything is allowed until a test takes a right away. Controllers that have to find each
    # other first could not: the authorizer waits for what they would agree on.
    ((nodes > 1)) || cat >>"$(of server.properties "$node")" <<SETTINGS
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
SETTINGS
}

kafka_tool() {
    local class=$1; shift
    java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*" "$class" "$@"
}

format_storage() {
    local node=$1
    [[ -f $(of logs "$node")/meta.properties ]] && return
    [[ -f $data/cluster ]] ||
        kafka_tool kafka.tools.StorageTool random-uuid | tail -n 1 >"$data/cluster"
    kafka_tool kafka.tools.StorageTool format --cluster-id "$(<"$data/cluster")" \
        --config "$(of server.properties "$node")" \
        --add-scram "SCRAM-SHA-256=[name=$user,password=$password]" \
        --add-scram "SCRAM-SHA-512=[name=$user,password=$password]" >&2
}

# Its own session: a Ctrl-C at the tests must not take the broker down under them.
launch() {
    setsid java -Xms64m -Xmx$((nodes == 1 ? 512 : 320))m -XX:+UseSerialGC \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
        -cp "$jars/*" kafka.Kafka "$(of server.properties "$1")" \
        </dev/null >>"$(of kafka.log "$1")" 2>&1 &
    echo $! >"$(of pid "$1")"
    # Until it has become what was asked for, it looks like one that has ended.
    wait_until 10 node_runs "$1" || true
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
    make_certificate
    local node
    for ((node = 1; node <= nodes; node++)); do
        node_runs "$node" && continue
        rm -f "$(of kafka.log "$node")"
        write_settings "$node"
        format_storage "$node"
        launch "$node"
    done
    ready() {
        local node port
        for ((node = 1; node <= nodes; node++)); do
            ! node_runs "$node" || {
                port=$(node_port "$node")
                answers $((port + 2)) && answers $((port + 3)) && answers $((port + 4))
            } || return 1
        done
    }
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
    local node pid
    for ((node = 1; node <= nodes; node++)); do
        if node_runs "$node"; then
            pid=$(<"$(of pid "$node")")
            # A test may have left it paused.
            kill -CONT "$pid"; kill "$pid"
        fi
    done
    for ((node = 1; node <= nodes; node++)); do
        if node_runs "$node"; then
            pid=$(<"$(of pid "$node")")
            gone() { ! kill -0 "$pid" 2>/dev/null; }
            wait_until "$stop_seconds_max" gone || { say "does not stop, killing $pid"; kill -9 "$pid"; }
        fi
        rm -f "$(of pid "$node")"
    done
}

kill_node() { node_runs "$1" && kill -9 "$(<"$(of pid "$1")")"; }

revive_node() { node_runs "$1" || launch "$1"; }

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    status) running && print_address ;;
    kill) kill_node "$2" ;;
    revive) revive_node "$2" ;;
    wipe) stop; rm -rf "$data" ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
