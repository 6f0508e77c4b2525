//! The target of the embedded broker: whatever a client sends, the process and its other clients
//! do not notice.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_broker::{Broker, Options};

/// An answer that takes longer is a wait that the client asked for.
const ANSWER: Duration = Duration::from_millis(20);

/// Metadata, version 1, of no topic: what a bystander asks.
const QUESTION: &[u8] = b"\0\0\0\x0e\0\x03\0\x01\0\0\0\x07\xff\xff\0\0\0\0";

static PANICKED: AtomicBool = AtomicBool::new(false);

fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(|| {
        // A connection that panics ends alone, so nobody else would notice.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.store(true, Ordering::SeqCst);
            hook(info);
        }));
        let broker = Broker::start(Options::memory()).expect("a broker in memory");
        broker.create_topic("orders", 2, &[]).expect("a topic");
        broker
    })
}

/// One request; its length is added here, so that mutation does not have to guess it.
pub fn broker_frames(data: &[u8]) {
    let broker = broker();
    let mut client = connect(broker);
    let length = u32::try_from(data.len()).expect("a small frame");
    // The broker may close before it has read everything.
    let sent = client
        .write_all(&length.to_be_bytes())
        .and_then(|()| client.write_all(data));
    if sent.is_ok() {
        drop(client.shutdown(Shutdown::Write));
        drop(client.read_to_end(&mut Vec::new()));
    }
    assert!(!PANICKED.load(Ordering::SeqCst), "a connection panicked");
}

/// A bystander is still served.
pub fn broker_is_well() {
    let mut bystander = connect(broker());
    bystander
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a time-out");
    bystander.write_all(QUESTION).expect("the broker reads");
    let mut answer = [0; 8];
    bystander
        .read_exact(&mut answer)
        .expect("the broker answers");
    assert_eq!(&answer[4..], [0, 0, 0, 7]);
}

fn connect(broker: &Broker) -> TcpStream {
    let client = TcpStream::connect(broker.address()).expect("the broker accepts");
    client.set_read_timeout(Some(ANSWER)).expect("a time-out");
    client.set_nodelay(true).expect("a socket");
    client
}
