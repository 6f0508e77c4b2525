//! A few requests in bytes, for what a client library would never send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use millrace_core::position::Partition;

/// Error codes of the protocol.
pub(super) const NONE: i16 = 0;
/// The generation is not the current one.
pub(super) const ILLEGAL_GENERATION: i16 = 22;
/// No such member.
pub(super) const UNKNOWN_MEMBER_ID: i16 = 25;

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn i16(mut self, value: i16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn i32(mut self, value: i32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn i64(mut self, value: i64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn text(self, value: &str) -> Self {
        let mut this = self.i16(i16::try_from(value.len()).unwrap());
        this.0.extend_from_slice(value.as_bytes());
        this
    }
}

async fn ask(address: &str, key: i16, version: i16, body: Bytes) -> Vec<u8> {
    let head = Bytes::default().i16(key).i16(version).i32(7).text("raw");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let size = u32::try_from(head.0.len() + body.0.len()).unwrap();
    stream.write_all(&size.to_be_bytes()).await.unwrap();
    stream.write_all(&head.0).await.unwrap();
    stream.write_all(&body.0).await.unwrap();
    let size = stream.read_u32().await.unwrap();
    assert_eq!(
        stream.read_i32().await.unwrap(),
        7,
        "the answer is to our question"
    );
    let mut answer = vec![0; size as usize - 4];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

/// Commits one offset as this member of this generation (OffsetCommit v7); the error code.
pub(super) async fn offset_commit(
    coordinator: &str,
    group: &str,
    generation: i32,
    member: &str,
    partition: &Partition,
    offset: i64,
) -> i16 {
    let body = Bytes::default()
        .text(group)
        .i32(generation)
        .text(member)
        .i16(-1) // no static member
        .i32(1)
        .text(partition.topic())
        .i32(1)
        .i32(partition.number())
        .i64(offset)
        .i32(-1) // no leader epoch
        .text("raw");
    let answer = ask(coordinator, 8, 7, body).await;
    i16::from_be_bytes(answer[answer.len() - 2..].try_into().unwrap())
}

/// Takes a member out of its group (LeaveGroup v1); the error code.
pub(super) async fn leave_group(coordinator: &str, group: &str, member: &str) -> i16 {
    let answer = ask(
        coordinator,
        13,
        1,
        Bytes::default().text(group).text(member),
    )
    .await;
    i16::from_be_bytes(answer[answer.len() - 2..].try_into().unwrap())
}

/// The coordinator of a group as `host:port` (FindCoordinator v1).
pub(super) async fn coordinator(bootstrap: &str, group: &str) -> String {
    super::bench::eventually("the coordinator is known", async || {
        let mut body = Bytes::default().text(group);
        body.0.push(0); // a group
        let answer = ask(bootstrap, 10, 1, body).await;
        // Throttle time, error, message, node, host, port.
        if i16::from_be_bytes(answer[4..6].try_into().unwrap()) != NONE {
            return None;
        }
        let message = i16::from_be_bytes(answer[6..8].try_into().unwrap());
        let host = 8 + usize::try_from(message.max(0)).unwrap() + 4;
        let length = i16::from_be_bytes(answer[host..host + 2].try_into().unwrap());
        let end = host + 2 + usize::try_from(length).unwrap();
        let name = String::from_utf8(answer[host + 2..end].to_vec()).unwrap();
        let port = i32::from_be_bytes(answer[end..end + 4].try_into().unwrap());
        Some(format!("{name}:{port}"))
    })
    .await
}
