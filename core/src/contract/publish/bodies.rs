//! The bodies of all frames but `Results`.

use std::time::Duration;

use bytes::Bytes;

use super::results::NO_TIMESTAMP;
use super::wire::{
    Reader, put_bytes, put_count, put_index, put_partition, put_partitions, put_text, stamp_byte,
};
use super::{
    Announce, Answered, Fault, GroupMetadata, Hello, Lease, Malformed, Mode, Ready, StoreClass,
    StoreFailure, Stored, Transaction, TransactionEnding, TransactionOffset,
};
use crate::identity::EventId;

impl Hello {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.version.to_le_bytes());
        put_text(into, &self.block);
        put_text(into, &self.release);
        put_text(into, &self.pod);
        into.extend_from_slice(&self.session.to_le_bytes());
        into.push(match self.mode {
            Mode::AtLeastOnce => 0,
            Mode::ExactlyOnce => 1,
        });
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version: reader.u32()?,
            block: reader.string()?,
            release: reader.string()?,
            pod: reader.string()?,
            session: reader.u64()?,
            mode: match reader.u8()? {
                0 => Mode::AtLeastOnce,
                1 => Mode::ExactlyOnce,
                _ => return Err("the mode is unknown"),
            },
        })
    }
}

impl Lease {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        let until = u64::try_from(self.until.as_nanos()).unwrap_or(u64::MAX);
        into.extend_from_slice(&self.generation.to_le_bytes());
        into.extend_from_slice(&until.to_le_bytes());
        put_partitions(into, &self.partitions);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            generation: reader.i32()?,
            until: Duration::from_nanos(reader.u64()?),
            partitions: reader.list(Reader::partition)?,
        })
    }
}

impl Announce {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.call.to_le_bytes());
        into.extend_from_slice(&self.correlation);
        into.push(stamp_byte(self.stamp));
        into.extend_from_slice(&self.generation.to_le_bytes());
        put_partition(into, &self.partition);
        into.extend_from_slice(&self.position.offset().to_le_bytes());
        into.extend_from_slice(&self.lane.to_le_bytes());
        into.extend_from_slice(&self.epoch.to_le_bytes());
        put_text(into, self.id.as_str());
        into.extend_from_slice(&self.timestamp_ms.unwrap_or(NO_TIMESTAMP).to_le_bytes());
        put_bytes(into, self.key.as_deref());
        put_count(into, self.headers.len());
        for (name, value) in &self.headers {
            put_bytes(into, Some(name));
            put_bytes(into, value.as_deref());
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            call: reader.u64()?,
            correlation: reader.sixteen()?,
            stamp: reader.stamp()?,
            generation: reader.i32()?,
            partition: reader.partition()?,
            position: reader.position()?,
            lane: reader.u64()?,
            epoch: reader.u64()?,
            id: EventId::parse(reader.some_bytes()?).ok_or("the event's id is none")?,
            timestamp_ms: Some(reader.i64()?).filter(|ms| *ms != NO_TIMESTAMP),
            key: reader.bytes()?.map(Bytes::copy_from_slice),
            headers: reader.list(|r| {
                let name = Bytes::copy_from_slice(r.some_bytes()?);
                Ok((name, r.bytes()?.map(Bytes::copy_from_slice)))
            })?,
        })
    }
}

impl Transaction {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.seq.to_le_bytes());
        let (group_metadata, offsets) = match &self.ending {
            TransactionEnding::Commit {
                group_metadata,
                offsets,
            } => (Some(&group_metadata.as_bytes()[..]), offsets.as_slice()),
            TransactionEnding::Abort => (None, [].as_slice()),
        };
        put_bytes(into, group_metadata);
        put_count(into, offsets.len());
        for offset in offsets {
            put_partition(into, &offset.partition);
            into.extend_from_slice(&offset.position.offset().to_le_bytes());
            put_text(into, &offset.metadata);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let seq = reader.u64()?;
        let group_metadata = reader
            .bytes()?
            .map(|bytes| GroupMetadata::new(Bytes::copy_from_slice(bytes)))
            .transpose()
            .map_err(|_| "the group metadata is empty")?;
        let offsets = reader.list(|r| {
            Ok(TransactionOffset {
                partition: r.partition()?,
                position: r.position()?,
                metadata: r.string()?,
            })
        })?;
        let ending = match group_metadata {
            Some(group_metadata) => TransactionEnding::Commit {
                group_metadata,
                offsets,
            },
            None if offsets.is_empty() => TransactionEnding::Abort,
            None => return Err("there are offsets and no group metadata"),
        };
        Ok(Self { seq, ending })
    }
}

impl Ready {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.version.to_le_bytes());
        into.extend_from_slice(&self.credit.to_le_bytes());
        put_count(into, self.limits.len());
        for (topic, bytes) in &self.limits {
            put_text(into, topic);
            into.extend_from_slice(&bytes.to_le_bytes());
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version: reader.u32()?,
            credit: reader.u64()?,
            limits: reader.list(|r| Ok((r.string()?, r.u64()?)))?,
        })
    }
}

impl Stored {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.seq.to_le_bytes());
        put_count(into, self.stored.len());
        for range in &self.stored {
            into.extend_from_slice(&range.start.to_le_bytes());
            into.extend_from_slice(&range.end.to_le_bytes());
        }
        put_failures(into, &self.failures);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            seq: reader.u64()?,
            stored: reader.list(Reader::range)?,
            failures: reader.list(StoreFailure::decode)?,
        })
    }
}

impl Answered {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.call.to_le_bytes());
        into.extend_from_slice(&self.stored.to_le_bytes());
        put_failures(into, &self.failures);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            call: reader.u64()?,
            stored: reader.u32()?,
            failures: reader.list(StoreFailure::decode)?,
        })
    }
}

fn put_failures(into: &mut Vec<u8>, failures: &[StoreFailure]) {
    put_count(into, failures.len());
    for failure in failures {
        into.extend_from_slice(&failure.event.to_le_bytes());
        put_index(into, failure.record);
        into.push(match failure.class {
            StoreClass::Transient => 0,
            StoreClass::Rejected => 1,
            StoreClass::Misconfigured => 2,
            StoreClass::Lease => 3,
            StoreClass::Revoked => 4,
            StoreClass::Unknown => 5,
        });
        put_text(into, &failure.code);
        put_text(into, &failure.message);
    }
}

impl StoreFailure {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            event: reader.u32()?,
            record: reader.index()?,
            class: match reader.u8()? {
                0 => StoreClass::Transient,
                1 => StoreClass::Rejected,
                2 => StoreClass::Misconfigured,
                3 => StoreClass::Lease,
                4 => StoreClass::Revoked,
                5 => StoreClass::Unknown,
                _ => return Err("the class of a failure is unknown"),
            },
            code: reader.string()?,
            message: reader.string()?,
        })
    }
}

impl Fault {
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        put_text(into, &self.code);
        put_text(into, &self.message);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            code: reader.string()?,
            message: reader.string()?,
        })
    }
}
