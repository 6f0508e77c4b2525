//! Takes rights on a topic away and gives them back, on a real Kafka with an authorizer.
//!
//! The client library has no call for this, so the two requests are spoken here.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::delete_acls_request::DeleteAclsFilter;
use kafka_protocol::messages::{
    ApiKey, CreateAclsRequest, DeleteAclsRequest, RequestHeader, RequestKind, ResponseKind,
};
use kafka_protocol::protocol::{Encodable, StrBytes};

const VERSION: i16 = 2;
const TOPIC: i8 = 2;
const LITERAL: i8 = 3;
const ANY: i8 = 1;
const ALL: i8 = 2;
const WRITE: i8 = 4;
const DENY: i8 = 2;
const ALLOW: i8 = 3;
const ANSWER: Duration = Duration::from_secs(10);

/// Nobody may write to this topic; everything else is allowed as before.
pub fn forbid_writing(bootstrap: &str, topic: &str) {
    let rule = |operation, permission| {
        AclCreation::default()
            .with_resource_type(TOPIC)
            .with_resource_name(StrBytes::from_string(topic.to_owned()))
            .with_resource_pattern_type(LITERAL)
            .with_principal(StrBytes::from_static_str("User:*"))
            .with_host(StrBytes::from_static_str("*"))
            .with_operation(operation)
            .with_permission_type(permission)
    };
    // A topic with any rule allows nothing that no rule allows.
    let rules = vec![rule(WRITE, DENY), rule(ALL, ALLOW)];
    let request = CreateAclsRequest::default().with_creations(rules);
    let request = RequestKind::CreateAcls(request);
    let ResponseKind::CreateAcls(answer) = ask(bootstrap, ApiKey::CreateAcls, &request) else {
        unreachable!("asked for this kind");
    };
    assert!(
        answer.results.iter().all(|r| r.error_code == 0),
        "{answer:?}"
    );
}

/// Every rule about this topic is gone.
pub fn permit_everything(bootstrap: &str, topic: &str) {
    let filter = DeleteAclsFilter::default()
        .with_resource_type_filter(TOPIC)
        .with_resource_name_filter(Some(StrBytes::from_string(topic.to_owned())))
        .with_pattern_type_filter(LITERAL)
        .with_principal_filter(None)
        .with_host_filter(None)
        .with_operation(ANY)
        .with_permission_type(ANY);
    let request = DeleteAclsRequest::default().with_filters(vec![filter]);
    let request = RequestKind::DeleteAcls(request);
    let ResponseKind::DeleteAcls(answer) = ask(bootstrap, ApiKey::DeleteAcls, &request) else {
        unreachable!("asked for this kind");
    };
    let all_well = answer.filter_results.iter().all(|r| r.error_code == 0);
    assert!(all_well, "{answer:?}");
}

fn ask(bootstrap: &str, api: ApiKey, request: &RequestKind) -> ResponseKind {
    let mut frame = BytesMut::new();
    frame.put_u32(0);
    RequestHeader::default()
        .with_request_api_key(api as i16)
        .with_request_api_version(VERSION)
        .with_correlation_id(1)
        .encode(&mut frame, api.request_header_version(VERSION))
        .expect("a header");
    request.encode(&mut frame, VERSION).expect("a request");
    let length = u32::try_from(frame.len() - 4).expect("short");
    frame[..4].copy_from_slice(&length.to_be_bytes());
    let mut broker = TcpStream::connect(bootstrap).expect("the broker accepts");
    broker.set_read_timeout(Some(ANSWER)).expect("a time-out");
    broker.write_all(&frame).expect("the broker reads");
    let mut length = [0; 4];
    broker.read_exact(&mut length).expect("an answer");
    let length = usize::try_from(u32::from_be_bytes(length)).expect("a small number");
    let mut answer = vec![0; length];
    broker.read_exact(&mut answer).expect("a whole answer");
    let header = 4 + usize::from(api.response_header_version(VERSION) >= 1);
    let mut body = Bytes::from(answer).slice(header..);
    ResponseKind::decode(api, &mut body, VERSION).expect("an answer of this kind")
}
