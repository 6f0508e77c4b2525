//! The calls into librdkafka that the rdkafka crate lacks or does with text instead of bytes.
//!
//! The only module with `unsafe` (architecture invariant 15). Each function takes a live,
//! borrowed client, message or list and returns owned values, so no pointer leaves this file.
#![expect(
    unsafe_code,
    reason = "the crate panics on header names and metadata that are not UTF-8, and lacks group metadata as bytes, topic ids, and new secrets and tokens for a running client"
)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::time::Duration;

use millrace_core::auth_token::AuthToken;
use millrace_core::position::Partition;
use millrace_core::time::Time;
use rdkafka::TopicPartitionList;
use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// One line of a topic-partition list, byte-exact.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) partition: Partition,
    pub(super) offset: i64,
    pub(super) metadata: Vec<u8>,
    /// `None` is success.
    pub(super) error: Option<RDKafkaErrorCode>,
}

/// The lines of a list; the crate's accessor panics on metadata that is not UTF-8.
pub(super) fn entries(list: &TopicPartitionList) -> Vec<Entry> {
    let count = list.count();
    // SAFETY: `list` owns a valid native list for as long as it is borrowed; its `elems` hold
    // `cnt` initialised elements, topics are C strings, and `metadata` is `metadata_size` bytes
    // or null.
    unsafe {
        let native = list.ptr();
        (0..count)
            .map(|index| {
                let element = &*(*native).elems.add(index);
                let metadata = if element.metadata.is_null() {
                    Vec::new()
                } else {
                    std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size)
                        .to_vec()
                };
                Entry {
                    partition: Partition::new(
                        CStr::from_ptr(element.topic).to_string_lossy().into_owned(),
                        element.partition,
                    ),
                    offset: element.offset,
                    metadata,
                    error: error(element.err),
                }
            })
            .collect()
    }
}

fn error(code: RDKafkaRespErr) -> Option<RDKafkaErrorCode> {
    (code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| code.into())
}

/// The headers of a message in order; the crate's iterator panics on names that are not UTF-8.
/// librdkafka keeps names as C strings, so a name ends at its first zero byte.
pub(super) fn headers<'a>(message: &'a BorrowedMessage<'_>) -> Headers<'a> {
    let mut native = ptr::null_mut();
    // SAFETY: the message is alive while borrowed; the headers belong to it and live as long.
    let found = unsafe { sys::rd_kafka_message_headers(message.ptr(), &raw mut native) };
    if error(found).is_some() {
        native = ptr::null_mut();
    }
    Headers {
        native,
        index: 0,
        message: PhantomData,
    }
}

/// Iterates over the headers of a message.
pub(super) struct Headers<'a> {
    native: *const sys::rd_kafka_headers_t,
    index: usize,
    message: PhantomData<&'a ()>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.native.is_null() {
            return None;
        }
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the headers live as long as the message that `'a` borrows; an index past the
        // end is answered with an error; name is a C string, value is `size` bytes or null.
        unsafe {
            let found = sys::rd_kafka_header_get_all(
                self.native,
                self.index,
                &raw mut name,
                &raw mut value,
                &raw mut size,
            );
            if error(found).is_some() {
                return None;
            }
            self.index += 1;
            let value =
                (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), size));
            Some((CStr::from_ptr(name).to_bytes(), value))
        }
    }
}

/// Epoch of the leader that took a message; `None` from brokers that do not tell.
pub(super) fn leader_epoch(message: &BorrowedMessage<'_>) -> Option<i32> {
    // SAFETY: the message is alive while borrowed.
    let epoch = unsafe { sys::rd_kafka_message_leader_epoch(message.ptr()) };
    (epoch >= 0).then_some(epoch)
}

/// Moves the one partition of `list` in its assigned consumer. With an epoch, librdkafka asks the
/// leader whether its log holds the epoch up to there, and reports `LogTruncation` if not.
pub(super) fn seek<C: ClientContext>(
    client: &Client<C>,
    list: &TopicPartitionList,
    leader_epoch: Option<i32>,
    timeout: Duration,
) -> Result<(), RDKafkaErrorCode> {
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: client and list are alive while borrowed, and librdkafka writes only the errors of
    // the list's elements; the error object is ours until destroyed.
    unsafe {
        if let (Some(epoch), 1..) = (leader_epoch, (*list.ptr()).cnt) {
            sys::rd_kafka_topic_partition_set_leader_epoch((*list.ptr()).elems, epoch);
        }
        let failed = sys::rd_kafka_seek_partitions(client.native_ptr(), list.ptr(), timeout);
        if !failed.is_null() {
            let code = sys::rd_kafka_error_code(failed);
            sys::rd_kafka_error_destroy(failed);
            return Err(code.into());
        }
    }
    entries(list)
        .into_iter()
        .find_map(|entry| entry.error)
        .map_or(Ok(()), Err)
}

/// Who a consumer is in its group at this moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    /// -1: not in a generation.
    pub(super) generation: i32,
    /// Empty: not a member.
    pub(super) member: String,
}

/// Generation and member id of a consumer; `None` without a group.
pub(super) fn identity<C: ClientContext>(client: &Client<C>) -> Option<Identity> {
    // SAFETY: the client is alive while borrowed; the metadata is ours until destroyed, and the
    // member id is a C string inside it.
    unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata(client.native_ptr());
        if metadata.is_null() {
            return None;
        }
        let member = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
        let identity = Identity {
            generation: sys::rd_kafka_consumer_group_metadata_generation_id(metadata),
            member: CStr::from_ptr(member).to_string_lossy().into_owned(),
        };
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        Some(identity)
    }
}

/// Who a consumer is in its group, and the same as librdkafka writes it down for a producer in
/// another process (D-E2). `None` without a group.
pub(super) fn group_metadata<C: ClientContext>(
    client: &Client<C>,
) -> Result<Option<(Identity, Vec<u8>)>, TransactionError> {
    // SAFETY: the client is alive while borrowed; the metadata is ours until destroyed, and the
    // member id is a C string inside it.
    unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata(client.native_ptr());
        if metadata.is_null() {
            return Ok(None);
        }
        let member = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
        let identity = Identity {
            generation: sys::rd_kafka_consumer_group_metadata_generation_id(metadata),
            member: CStr::from_ptr(member).to_string_lossy().into_owned(),
        };
        let written = written(metadata);
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        Ok(Some((identity, written?)))
    }
}

/// Group metadata of a member that does not exist, for the proof that brokers refuse it (D-E2).
pub(super) fn forged_group_metadata(
    group: &CStr,
    generation: i32,
    member: &CStr,
) -> Result<Vec<u8>, TransactionError> {
    // SAFETY: the strings are alive for the call and copied; the metadata is ours until destroyed.
    unsafe {
        let metadata = sys::rd_kafka_consumer_group_metadata_new_with_genid(
            group.as_ptr(),
            generation,
            member.as_ptr(),
            ptr::null(),
        );
        let written = written(metadata);
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        written
    }
}

/// # Safety
/// `metadata` is live group metadata.
unsafe fn written(
    metadata: *const sys::rd_kafka_consumer_group_metadata_t,
) -> Result<Vec<u8>, TransactionError> {
    let (mut buffer, mut size) = (ptr::null_mut::<c_void>(), 0);
    // SAFETY: on success `buffer` holds `size` bytes that are ours; they are copied and freed.
    unsafe {
        transaction_result(sys::rd_kafka_consumer_group_metadata_write(
            metadata,
            &raw mut buffer,
            &raw mut size,
        ))?;
        let bytes = std::slice::from_raw_parts(buffer.cast::<u8>(), size).to_vec();
        sys::rd_kafka_mem_free(ptr::null_mut(), buffer);
        Ok(bytes)
    }
}

/// What a transactional call came to, if not to success.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct TransactionError {
    pub(super) code: RDKafkaErrorCode,
    pub(super) message: String,
    /// The same call may be made again, and goes on where it was.
    pub(super) retriable: bool,
    /// The transaction can only be aborted.
    pub(super) aborts: bool,
}

/// # Safety
/// `error` is null or an error that is ours.
unsafe fn transaction_result(error: *mut sys::rd_kafka_error_t) -> Result<(), TransactionError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the error is ours until destroyed, its text lives as long, and is copied.
    unsafe {
        let told = TransactionError {
            code: sys::rd_kafka_error_code(error).into(),
            message: CStr::from_ptr(sys::rd_kafka_error_string(error))
                .to_string_lossy()
                .into_owned(),
            retriable: sys::rd_kafka_error_is_retriable(error) != 0,
            aborts: sys::rd_kafka_error_txn_requires_abort(error) != 0,
        };
        sys::rd_kafka_error_destroy(error);
        Err(told)
    }
}

/// Makes offsets part of the open transaction, as the consumer that `group` describes; blocks up
/// to `timeout`. The crate's own call takes no metadata that came from another process.
pub(super) fn send_offsets<C: ClientContext>(
    client: &Client<C>,
    offsets: &TopicPartitionList,
    group: &[u8],
    timeout: Duration,
) -> Result<(), TransactionError> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut metadata = ptr::null_mut();
    // SAFETY: client, list and bytes are alive while borrowed, and librdkafka copies them. What
    // it reads from the bytes is ours until destroyed; bytes that are none it refuses.
    unsafe {
        transaction_result(sys::rd_kafka_consumer_group_metadata_read(
            &raw mut metadata,
            group.as_ptr().cast(),
            group.len(),
        ))?;
        let sent = transaction_result(sys::rd_kafka_send_offsets_to_transaction(
            client.native_ptr(),
            offsets.ptr(),
            metadata,
            timeout_ms,
        ));
        sys::rd_kafka_consumer_group_metadata_destroy(metadata);
        sent
    }
}

/// Starts a commit whose end comes to the consumer's queue, and so to its `commit_callback`. The
/// crate's asynchronous commit asks for no answer at all.
pub(super) fn commit<C: ClientContext>(
    client: &Client<C>,
    offsets: &TopicPartitionList,
) -> Result<(), RDKafkaErrorCode> {
    // SAFETY: client and list are alive while borrowed, and librdkafka copies the list. The
    // queue handle is ours and is given back; the queue itself lives as long as the client.
    unsafe {
        let native = client.native_ptr();
        let queue = sys::rd_kafka_queue_get_consumer(native);
        if queue.is_null() {
            return Err(RDKafkaErrorCode::UnknownGroup);
        }
        let started =
            sys::rd_kafka_commit_queue(native, offsets.ptr(), queue, None, ptr::null_mut());
        sys::rd_kafka_queue_destroy(queue);
        error(started).map_or(Ok(()), Err)
    }
}

/// Gives a running client another user and password, which it uses at its next authentication.
pub(super) fn set_credentials<C: ClientContext>(
    client: &Client<C>,
    username: &str,
    password: &str,
) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "it holds a zero byte".to_owned());
    let (username, password) = (text(username)?, text(password)?);
    // SAFETY: the client is alive while borrowed, and librdkafka copies both texts. The error, if
    // there is one, is ours until destroyed; its text is copied before.
    unsafe {
        let error = sys::rd_kafka_sasl_set_credentials(
            client.native_ptr(),
            username.as_ptr(),
            password.as_ptr(),
        );
        if error.is_null() {
            return Ok(());
        }
        let message = CStr::from_ptr(sys::rd_kafka_error_string(error));
        let message = message.to_string_lossy().into_owned();
        sys::rd_kafka_error_destroy(error);
        Err(message)
    }
}

/// An auth token as librdkafka takes it.
pub(super) struct BearerToken {
    text: CString,
    principal: CString,
    /// Epoch milliseconds.
    ends_ms: i64,
    /// Names and values in turn.
    extensions: Vec<CString>,
}

impl BearerToken {
    /// Of a token that has arrived now.
    pub(super) fn new(
        token: &AuthToken,
        now: Time,
        extensions: &[(CString, CString)],
    ) -> Result<Self, String> {
        let text = |text: &str| CString::new(text).map_err(|_| "it holds a zero byte".to_owned());
        let pairs = extensions.iter();
        Ok(Self {
            text: text(&token.text)?,
            principal: text(&token.principal)?,
            ends_ms: now.plus(token.life).wall_ms,
            extensions: pairs
                .flat_map(|(name, value)| [name.clone(), value.clone()])
                .collect(),
        })
    }
}

#[cfg(test)]
impl BearerToken {
    pub(super) fn text(&self) -> &CStr {
        &self.text
    }
}

/// Gives a running client an auth token, which wakes connections that wait for one; those that
/// are open show it when brokers ask again.
pub(super) fn set_token<C: ClientContext>(
    client: &Client<C>,
    token: &BearerToken,
) -> Result<(), String> {
    let mut extensions: Vec<*const c_char> =
        token.extensions.iter().map(|text| text.as_ptr()).collect();
    let mut error_text = [0 as c_char; 512];
    // SAFETY: the client is alive while borrowed; all texts are C strings that live for the call,
    // and librdkafka copies them. The error text ends within its buffer.
    unsafe {
        let code = sys::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            token.text.as_ptr(),
            token.ends_ms,
            token.principal.as_ptr(),
            extensions.as_mut_ptr(),
            extensions.len(),
            error_text.as_mut_ptr(),
            error_text.len(),
        );
        if error(code).is_none() {
            return Ok(());
        }
        let message = CStr::from_ptr(error_text.as_ptr());
        Err(message.to_string_lossy().into_owned())
    }
}

/// A record as librdkafka takes it.
pub(super) struct Produce<'a> {
    pub(super) topic: &'a CStr,
    /// -1: chosen by the partitioner.
    pub(super) partition: i32,
    /// 0: now.
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: &'a [(bytes::Bytes, Option<bytes::Bytes>)],
    /// Comes back with the delivery report.
    pub(super) ticket: usize,
}

/// Enqueues a record, copying it; header names are bytes, which the crate does not allow.
pub(super) fn produce<C: ClientContext>(
    client: &Client<C>,
    record: &Produce<'_>,
) -> Result<(), RDKafkaErrorCode> {
    fn parts(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
        bytes.map_or((ptr::null_mut(), 0), |bytes| {
            (bytes.as_ptr().cast_mut().cast(), bytes.len())
        })
    }
    let (key, key_size) = parts(record.key);
    let (value, value_size) = parts(record.value);
    // SAFETY: all pointers are valid for the call, and librdkafka copies key and value (F_COPY)
    // and header names and values. The headers become librdkafka's on success and are destroyed
    // here otherwise. The varargs follow the types that rdkafka.h documents for each tag.
    unsafe {
        let headers = native_headers(record.headers)?;
        let code = sys::rd_kafka_producev(
            client.native_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TOPIC,
            record.topic.as_ptr(),
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
            record.partition,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
            sys::RD_KAFKA_MSG_F_COPY,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
            value,
            value_size,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
            key,
            key_size,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
            record.ticket as *mut c_void,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TIMESTAMP,
            record.timestamp_ms,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
            headers,
            sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
        );
        match error(code) {
            None => Ok(()),
            Some(code) => {
                if !headers.is_null() {
                    sys::rd_kafka_headers_destroy(headers);
                }
                Err(code)
            }
        }
    }
}

/// # Safety
/// The caller owns the result and must hand it to librdkafka or destroy it.
unsafe fn native_headers(
    headers: &[(bytes::Bytes, Option<bytes::Bytes>)],
) -> Result<*mut sys::rd_kafka_headers_t, RDKafkaErrorCode> {
    if headers.is_empty() {
        return Ok(ptr::null_mut());
    }
    // SAFETY: names and values are valid for their lengths, and librdkafka copies them.
    unsafe {
        let native = sys::rd_kafka_headers_new(headers.len());
        for (name, value) in headers {
            let (bytes, size) = value.as_ref().map_or((ptr::null(), 0), |value| {
                (value.as_ptr(), value.len().cast_signed())
            });
            let added = sys::rd_kafka_header_add(
                native,
                name.as_ptr().cast::<c_char>(),
                name.len().cast_signed(),
                bytes.cast(),
                size,
            );
            if let Some(code) = error(added) {
                sys::rd_kafka_headers_destroy(native);
                return Err(code);
            }
        }
        Ok(native)
    }
}

/// The ids of topics as 16 bytes in base64, where the broker tells; blocks up to `timeout`.
pub(super) fn topic_ids<C: ClientContext>(
    client: &Client<C>,
    topics: &[CString],
    timeout: Duration,
) -> Result<Vec<Option<String>>, RDKafkaErrorCode> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut names: Vec<*const c_char> = topics.iter().map(|topic| topic.as_ptr()).collect();
    let mut error_text = [0 as c_char; 256];
    // SAFETY: the client is alive while borrowed. Collection, options, queue and event are made
    // here and destroyed here, the queue last; everything read from the event is copied before.
    unsafe {
        let native = client.native_ptr();
        let collection =
            sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let options = sys::rd_kafka_AdminOptions_new(
            native,
            sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        sys::rd_kafka_AdminOptions_set_request_timeout(
            options,
            timeout_ms,
            error_text.as_mut_ptr(),
            error_text.len(),
        );
        let queue = sys::rd_kafka_queue_new(native);
        sys::rd_kafka_DescribeTopics(native, collection, options, queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_TopicCollection_destroy(collection);
        let event = sys::rd_kafka_queue_poll(queue, timeout_ms.saturating_add(1_000));
        let ids = described_ids(event, topics);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        ids
    }
}

/// # Safety
/// `event` is null or a live event.
unsafe fn described_ids(
    event: *mut sys::rd_kafka_event_t,
    topics: &[CString],
) -> Result<Vec<Option<String>>, RDKafkaErrorCode> {
    if event.is_null() {
        return Err(RDKafkaErrorCode::OperationTimedOut);
    }
    // SAFETY: the descriptions live as long as the event, and so do their names and ids.
    unsafe {
        if let Some(code) = error(sys::rd_kafka_event_error(event)) {
            return Err(code);
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(RDKafkaErrorCode::Fail);
        }
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        let mut ids = vec![None; topics.len()];
        for index in 0..count {
            let topic = *described.add(index);
            let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic));
            let id = sys::rd_kafka_TopicDescription_topic_id(topic);
            let zero = id.is_null()
                || (sys::rd_kafka_Uuid_least_significant_bits(id) == 0
                    && sys::rd_kafka_Uuid_most_significant_bits(id) == 0);
            if zero {
                continue;
            }
            let text = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(id));
            if let Some(at) = topics.iter().position(|asked| asked.as_c_str() == name) {
                ids[at] = Some(text.to_string_lossy().into_owned());
            }
        }
        Ok(ids)
    }
}
