//! Bad frames close their connection, and nothing else.

use bytes::{Buf, BufMut, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse, MetadataRequest};
use kafka_protocol::protocol::Decodable;
use std::io::{Read, Write};
use std::net::SocketAddr;

use millrace_broker::{Broker, Listen, Options, StartError};

use crate::client::*;

fn is_closed(client: &mut Client) -> bool {
    // A reset is as good as an end.
    matches!(client.stream.read(&mut [0; 64]), Ok(0) | Err(_))
}

#[test]
fn b_e5_a_bad_frame_closes_its_connection_and_no_other() {
    let broker = memory();
    broker.create_topic("orders", 1, &[]).unwrap();
    let mut bystander = Client::new(&broker);
    bystander.produce("orders", 0, &["a"]);
    let mut lying_array = BytesMut::new();
    lying_array.put_i16(ApiKey::Metadata as i16);
    lying_array.put_i16(1);
    lying_array.put_i32(1);
    lying_array.put_i16(-1);
    lying_array.put_i32(i32::MAX);
    let frame = |body: &[u8]| {
        let mut out = BytesMut::new();
        out.put_i32(i32::try_from(body.len()).unwrap());
        out.put_slice(body);
        out.to_vec()
    };
    let bad: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        (-1i32).to_be_bytes().to_vec(),
        i32::MAX.to_be_bytes().to_vec(),
        frame(&[]),
        frame(&[0, 3]),
        frame(&[0xff; 20]),
        frame(&[0, 3, 0, 99, 0, 0, 0, 1, 0xff, 0xff]),
        frame(&lying_array),
    ];
    for bytes in bad {
        let mut client = Client::new(&broker);
        client.stream.write_all(&bytes).unwrap();
        assert!(is_closed(&mut client), "{bytes:?}");
    }
    assert_eq!(bystander.values("orders", 0, false), ["a"]);
}

#[test]
fn b_e5_random_bytes_never_end_the_broker() {
    let broker = memory();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..2_000 {
        let mut client = Client::new(&broker);
        let mut body = BytesMut::new();
        body.put_i16(i16::try_from(next() % 65).unwrap());
        body.put_i16(i16::try_from(next() % 10).unwrap());
        body.put_i32(1);
        let length = next() % 60;
        for _ in 0..length {
            // Small numbers make more of a request look right.
            let byte = u8::try_from(next() % 256).unwrap();
            body.put_u8(if next() % 2 == 0 { byte % 4 } else { byte });
        }
        client.send_raw(&body);
    }
    let mut client = Client::new(&broker);
    assert_eq!(client.call(&MetadataRequest::default()).brokers.len(), 1);
}

#[test]
fn b_e1_an_unsupported_version_of_api_versions_is_answered_in_version_0() {
    let broker = memory();
    let mut client = Client::new(&broker);
    client.send(&ApiVersionsRequest::default(), 4);
    let mut body = client.receive_raw().unwrap();
    assert_eq!(body.get_i32(), 1);
    let answer = ApiVersionsResponse::decode(&mut body, 0).unwrap();
    assert!(!body.has_remaining());
    assert_eq!(answer.error_code, 35);
    let range = |list: &[ApiVersion], api: ApiKey| {
        let found = list.iter().find(|one| one.api_key == api as i16).unwrap();
        (found.min_version, found.max_version)
    };
    assert_eq!(range(&answer.api_keys, ApiKey::ApiVersions), (0, 3));
    // The client asks again, on the same connection.
    let answer = client.call(&ApiVersionsRequest::default());
    assert_eq!(answer.error_code, 0);
    for (api, versions) in [
        (ApiKey::Produce, (0, 9)),
        (ApiKey::Fetch, (4, 12)),
        (ApiKey::Metadata, (0, 9)),
        (ApiKey::AddPartitionsToTxn, (0, 3)),
        (ApiKey::EndTxn, (0, 3)),
        (ApiKey::TxnOffsetCommit, (0, 3)),
    ] {
        assert_eq!(range(&answer.api_keys, api), versions, "{api:?}");
    }
}

#[test]
fn b_e5_the_broker_listens_and_advertises_on_loopback_only() {
    let broker = memory();
    assert!(broker.bootstrap().starts_with("127.0.0.1:"));
    let answer = Client::new(&broker).call(&MetadataRequest::default());
    assert_eq!(answer.brokers[0].host.as_str(), "127.0.0.1");
    assert_eq!(answer.brokers[0].port, i32::from(broker.address().port()));
    let mut options = Options::memory();
    options.listen = Listen::Exact(SocketAddr::from(([0, 0, 0, 0], 0)));
    assert!(matches!(
        Broker::start(options),
        Err(StartError::NotLoopback(_))
    ));
}

#[test]
fn a_taken_port_is_replaced_if_it_was_only_preferred() {
    let first = memory();
    let mut options = Options::memory();
    options.listen = Listen::Preferred(first.address().port());
    let second = Broker::start(options).unwrap();
    assert_ne!(first.address(), second.address());
    let mut options = Options::memory();
    options.listen = Listen::Exact(first.address());
    assert!(matches!(
        Broker::start(options),
        Err(StartError::Bind { .. })
    ));
}

#[test]
fn requests_of_one_connection_are_answered_in_order() {
    let broker = memory();
    let mut client = Client::new(&broker);
    for _ in 0..50 {
        client.send(&ApiVersionsRequest::default(), 0);
    }
    for number in 1..=50 {
        let mut body = client.receive_raw().unwrap();
        assert_eq!(body.get_i32(), number);
    }
}
