//! The harness itself: a line does what its script says, to real clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;
use tempfile::TempDir;

use super::{Line, Times};
use crate::broker::{BrokerKind, RunningBroker};
use crate::records::{Cluster, Event};
use crate::wait::{Deadline, wait_until};

/// Says everything back, each connection on a thread of its own; ends with the test process.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                std::io::copy(&mut stream, &mut copy)
            });
        }
    });
    port
}

fn client(line: &Line) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, line.port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    stream
}

/// What comes back; an error if nothing does within the read time-out.
fn say(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
    stream.write_all(text.as_bytes())?;
    hear(stream, text.len())
}

fn hear(stream: &mut TcpStream, length: usize) -> std::io::Result<String> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8(bytes).unwrap())
}

fn is_silence(heard: &std::io::Result<String>) -> bool {
    let silent =
        |e: &std::io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    heard.as_ref().is_err_and(silent)
}

#[test]
fn a_line_that_is_cut_refuses_and_comes_back_on_its_port() {
    let line = Line::to(echo());
    let mut old = client(&line);
    assert_eq!(say(&mut old, "one").unwrap(), "one");
    line.cut();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, line.port)).is_err());
    let heard = say(&mut old, "two");
    assert!(heard.is_err() && !is_silence(&heard), "{heard:?}");
    line.mend();
    assert_eq!(say(&mut client(&line), "three").unwrap(), "three");
}

#[test]
fn a_line_that_stalls_keeps_everything_until_it_goes_on() {
    let line = Line::to(echo());
    let mut stream = client(&line);
    line.stall();
    assert!(is_silence(&say(&mut stream, "one")));
    line.mend();
    assert_eq!(hear(&mut stream, 3).unwrap(), "one");
}

#[test]
fn a_line_that_delays_is_slow_and_complete() {
    let line = Line::to(echo());
    let mut stream = client(&line);
    line.delay(Duration::from_millis(60));
    let time = Deadline::after(Duration::ZERO);
    assert_eq!(say(&mut stream, "one").unwrap(), "one");
    assert!(time.elapsed() >= Duration::from_millis(120), "both ways");
}

#[test]
fn a_connection_that_lost_bytes_stays_half_open_while_new_ones_work() {
    for requests in [true, false] {
        let line = Line::to(echo());
        let mut stream = client(&line);
        if requests {
            line.swallow_requests();
        } else {
            line.swallow_answers();
        }
        assert!(is_silence(&say(&mut stream, "one")));
        line.listen_again();
        assert!(is_silence(&say(&mut stream, "two")));
        assert_eq!(say(&mut client(&line), "three").unwrap(), "three");
    }
}

#[test]
fn a_connection_that_was_idle_is_forgotten_silently() {
    let line = Line::to(echo());
    let mut stream = client(&line);
    line.forget_idle(Duration::from_millis(200));
    assert_eq!(say(&mut stream, "one").unwrap(), "one");
    // Silence of 300 ms: the time-out of reading.
    assert!(is_silence(&hear(&mut stream, 1)));
    assert!(is_silence(&say(&mut stream, "two")));
    assert_eq!(say(&mut client(&line), "three").unwrap(), "three");
}

/// A broker behind a line, and a cluster that only knows the line.
fn broker() -> (RunningBroker, Line, Cluster, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let broker = RunningBroker::start(&BrokerKind::Memory, folder.path());
    let line = Line::to_kafka(&broker.bootstrap);
    let cluster = Cluster::at(&line.address());
    (broker, line, cluster, folder)
}

#[test]
fn clients_of_a_broker_behind_a_line_never_go_round_it() {
    let (_broker, line, cluster, _folder) = broker();
    cluster.create_topic("t", 2, &[]);
    let writer = cluster.writer("t");
    (0..100).for_each(|n| writer.write(&Event::of("k", n.to_string())));
    assert_eq!(writer.flush(), 100);
    assert_eq!(cluster.read("t").len(), 100);
    // The coordinator of a group is behind the line too.
    assert!(cluster.commits("nobody").of("t", &[0]).is_some());
    for api in [ApiKey::Produce, ApiKey::Fetch, ApiKey::OffsetFetch] {
        assert!(line.edits().requests(api) > 0, "{api:?} went round");
    }
}

#[test]
fn an_answer_that_says_error_makes_the_client_ask_again() {
    let (_broker, line, cluster, _folder) = broker();
    cluster.create_topic("t", 1, &[]);
    line.edits().fail(
        ApiKey::Produce,
        ResponseError::NotEnoughReplicas,
        Times::Count(2),
    );
    let writer = cluster.writer("t");
    writer.write(&Event::of("k", "once"));
    assert_eq!(writer.flush(), 1);
    assert!(line.edits().are_done());
    assert_eq!(line.edits().requests(ApiKey::Produce), 3);
    assert_eq!(cluster.read("t").len(), 1, "the broker knows repeats");
}

#[test]
fn lost_requests_and_lost_answers_end_the_connection() {
    let (_broker, line, cluster, _folder) = broker();
    cluster.create_topic("t", 1, &[]);
    line.edits().lose_request(ApiKey::Produce, Times::Count(1));
    line.edits().lose_answer(ApiKey::Produce, Times::Count(1));
    let writer = cluster.writer("t");
    writer.write(&Event::of("k", "once"));
    assert_eq!(writer.flush(), 1);
    wait_until("both happened", || line.edits().are_done());
    assert_eq!(cluster.read("t").len(), 1);
}

#[test]
fn a_throttled_client_waits_before_it_asks_again() {
    let (_broker, line, cluster, _folder) = broker();
    cluster.create_topic("t", 1, &[]);
    let writer = cluster.writer("t");
    writer.write(&Event::of("k", "first"));
    assert_eq!(writer.flush(), 1);
    line.edits().throttle(Duration::from_millis(700));
    writer.write(&Event::of("k", "told to wait"));
    assert_eq!(writer.flush(), 2);
    line.edits().clear();
    let time = Deadline::after(Duration::ZERO);
    writer.write(&Event::of("k", "waits"));
    assert_eq!(writer.flush(), 3);
    let waited = time.elapsed();
    assert!(waited >= Duration::from_millis(500), "only {waited:?}");
}
