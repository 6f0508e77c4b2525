//! Record batches as bytes: reads the 61-byte header of a v2 batch and patches it in place.
//!
//! The broker stores what the producer sent. Base offset and leader epoch lie before the
//! checksummed part, so patching them keeps the producer's checksum valid.

use bytes::{Bytes, BytesMut};

/// Bytes before the first record.
pub(crate) const HEADER_BYTES: usize = 61;

/// Bytes before the counted part of a batch: base offset and length.
const PREFIX_BYTES: usize = 12;

/// Where the checksummed part begins.
const CHECKED_FROM: usize = 21;

const TIMESTAMP_TYPE_BIT: i16 = 0b1000;
const TRANSACTIONAL_BIT: i16 = 0b1_0000;
const CONTROL_BIT: i16 = 0b10_0000;
const COMPRESSION_BITS: i16 = 0b111;

/// The header of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) base_offset: i64,
    /// Length of the whole batch, prefix included.
    pub(crate) bytes: usize,
    pub(crate) leader_epoch: i32,
    pub(crate) checksum: u32,
    pub(crate) attributes: i16,
    pub(crate) last_offset_delta: i32,
    pub(crate) base_timestamp: i64,
    pub(crate) max_timestamp: i64,
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) records: i32,
}

/// Why some bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the batch ends after {0} bytes")]
    Short(usize),
    #[error("batch format {0} is not supported, only 2 is")]
    Magic(i8),
    #[error("the batch says it is {0} bytes long")]
    Length(i32),
    #[error("the batch claims {records} records and a last offset delta of {delta}")]
    Count { records: i32, delta: i32 },
    #[error("the checksum does not fit the batch")]
    Checksum,
}

/// The end of a transaction, as written into a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    Abort,
    Commit,
}

fn at<const N: usize>(bytes: &[u8], from: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[from..from + N]);
    out
}

impl Header {
    /// Reads a header. Needs [`HEADER_BYTES`] bytes; the rest of the batch may be missing.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Header, Malformed> {
        if bytes.len() < HEADER_BYTES {
            return Err(Malformed::Short(bytes.len()));
        }
        let magic = i8::from_be_bytes(at(bytes, 16));
        if magic != 2 {
            return Err(Malformed::Magic(magic));
        }
        let length = i32::from_be_bytes(at(bytes, 8));
        let total = usize::try_from(length)
            .map_err(|_| Malformed::Length(length))?
            .saturating_add(PREFIX_BYTES);
        if total < HEADER_BYTES {
            return Err(Malformed::Length(length));
        }
        let header = Header {
            base_offset: i64::from_be_bytes(at(bytes, 0)),
            bytes: total,
            leader_epoch: i32::from_be_bytes(at(bytes, 12)),
            checksum: u32::from_be_bytes(at(bytes, 17)),
            attributes: i16::from_be_bytes(at(bytes, 21)),
            last_offset_delta: i32::from_be_bytes(at(bytes, 23)),
            base_timestamp: i64::from_be_bytes(at(bytes, 27)),
            max_timestamp: i64::from_be_bytes(at(bytes, 35)),
            producer_id: i64::from_be_bytes(at(bytes, 43)),
            producer_epoch: i16::from_be_bytes(at(bytes, 51)),
            base_sequence: i32::from_be_bytes(at(bytes, 53)),
            records: i32::from_be_bytes(at(bytes, 57)),
        };
        if header.records < 1 || header.last_offset_delta != header.records - 1 {
            return Err(Malformed::Count {
                records: header.records,
                delta: header.last_offset_delta,
            });
        }
        Ok(header)
    }

    /// Reads and checks a whole batch that fills `bytes` exactly.
    pub(crate) fn parse_whole(bytes: &[u8]) -> Result<Header, Malformed> {
        let header = Header::parse(bytes)?;
        if header.bytes != bytes.len() {
            return Err(Malformed::Short(bytes.len()));
        }
        if checksum(bytes) != header.checksum {
            return Err(Malformed::Checksum);
        }
        Ok(header)
    }

    pub(crate) fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.attributes & COMPRESSION_BITS != 0
    }

    pub(crate) fn is_zstd(&self) -> bool {
        self.attributes & COMPRESSION_BITS == 4
    }

    pub(crate) fn has_append_time(&self) -> bool {
        self.attributes & TIMESTAMP_TYPE_BIT != 0
    }

    /// The sequence of the last record. Sequences wrap from the largest number to zero.
    pub(crate) fn last_sequence(&self) -> i32 {
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        let wrapped = last % (i64::from(i32::MAX) + 1);
        i32::try_from(wrapped).expect("a remainder of 2^31 fits into 31 bits")
    }
}

fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[CHECKED_FROM..])
}

/// Gives a batch its place in the log.
pub(crate) fn patch_place(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Marks a batch as timed by the broker. This changes checksummed bytes.
pub(crate) fn patch_append_time(batch: &mut [u8], attributes: i16, now_ms: i64) {
    let attributes = attributes | TIMESTAMP_TYPE_BIT;
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    batch[35..43].copy_from_slice(&now_ms.to_be_bytes());
    let sum = checksum(batch);
    batch[17..21].copy_from_slice(&sum.to_be_bytes());
}

/// Builds the control batch that ends a transaction of one producer in one partition.
pub(crate) fn marker_batch(
    producer_id: i64,
    producer_epoch: i16,
    marker: Marker,
    now_ms: i64,
) -> BytesMut {
    let mut batch = BytesMut::with_capacity(HEADER_BYTES + 17);
    let kind: i16 = match marker {
        Marker::Abort => 0,
        Marker::Commit => 1,
    };
    batch.extend_from_slice(&[0; 8]); // base offset, patched when appended
    batch.extend_from_slice(&66i32.to_be_bytes()); // bytes after this field
    batch.extend_from_slice(&[0; 4]); // leader epoch, patched when appended
    batch.extend_from_slice(&[2]);
    batch.extend_from_slice(&[0; 4]); // checksum, below
    batch.extend_from_slice(&(TRANSACTIONAL_BIT | CONTROL_BIT).to_be_bytes());
    batch.extend_from_slice(&0i32.to_be_bytes());
    batch.extend_from_slice(&now_ms.to_be_bytes());
    batch.extend_from_slice(&now_ms.to_be_bytes());
    batch.extend_from_slice(&producer_id.to_be_bytes());
    batch.extend_from_slice(&producer_epoch.to_be_bytes());
    batch.extend_from_slice(&(-1i32).to_be_bytes());
    batch.extend_from_slice(&1i32.to_be_bytes());
    // One record: length 16, attributes, time delta, offset delta, a 4-byte key (version
    // and kind), a 6-byte value (version and coordinator epoch), no headers. Lengths are
    // zigzag numbers.
    batch.extend_from_slice(&[32, 0, 0, 0, 8]);
    batch.extend_from_slice(&0i16.to_be_bytes());
    batch.extend_from_slice(&kind.to_be_bytes());
    batch.extend_from_slice(&[12]);
    batch.extend_from_slice(&0i16.to_be_bytes());
    batch.extend_from_slice(&0i32.to_be_bytes());
    batch.extend_from_slice(&[0]);
    let length = i32::try_from(batch.len() - PREFIX_BYTES).expect("a marker is small");
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let sum = checksum(&batch);
    batch[17..21].copy_from_slice(&sum.to_be_bytes());
    batch
}

/// What a control batch says. `None` for control batches that do not end a transaction.
pub(crate) fn read_marker(batch: &[u8]) -> Option<Marker> {
    let mut rest = batch.get(HEADER_BYTES..)?;
    read_varint(&mut rest)?; // record length
    rest = rest.get(1..)?; // attributes
    read_varint(&mut rest)?; // time delta
    read_varint(&mut rest)?; // offset delta
    if read_varint(&mut rest)? < 4 {
        return None;
    }
    match i16::from_be_bytes(at(rest.get(..4)?, 2)) {
        0 => Some(Marker::Abort),
        1 => Some(Marker::Commit),
        _ => None,
    }
}

/// The first record of an uncompressed batch that is not older than `timestamp`: its
/// offset and its timestamp.
pub(crate) fn find_time(header: &Header, batch: &Bytes, timestamp: i64) -> Option<(i64, i64)> {
    let mut rest = batch.get(HEADER_BYTES..)?;
    for _ in 0..header.records {
        let length = usize::try_from(read_varint(&mut rest)?).ok()?;
        let mut record = rest.get(..length)?;
        rest = rest.get(length..)?;
        record = record.get(1..)?;
        let time = header
            .base_timestamp
            .checked_add(read_varint(&mut record)?)?;
        let offset = header.base_offset.checked_add(read_varint(&mut record)?)?;
        if time >= timestamp {
            return Some((offset, time));
        }
    }
    None
}

/// Reads a zigzag number of at most ten bytes.
fn read_varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for shift in (0..70).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            let magnitude = (value >> 1).cast_signed();
            return Some(if value & 1 == 0 {
                magnitude
            } else {
                !magnitude
            });
        }
    }
    None
}

/// A batch of one record of the given size, not readable by a client.
#[cfg(test)]
pub(crate) fn test_batch(bytes: usize, timestamp: i64, transactional: bool) -> BytesMut {
    let mut batch = marker_batch(1, 0, Marker::Commit, timestamp);
    batch.resize(HEADER_BYTES + bytes, 7);
    let length = i32::try_from(batch.len() - PREFIX_BYTES).expect("small");
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let attributes = if transactional { TRANSACTIONAL_BIT } else { 0 };
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    if !transactional {
        batch[43..51].copy_from_slice(&(-1i64).to_be_bytes());
    } else {
        batch[53..57].copy_from_slice(&0i32.to_be_bytes());
    }
    let sum = checksum(&batch);
    batch[17..21].copy_from_slice(&sum.to_be_bytes());
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b_e3_a_marker_is_a_valid_batch_that_says_what_it_marks() {
        for marker in [Marker::Abort, Marker::Commit] {
            let batch = marker_batch(7, 3, marker, 1_000);
            let header = Header::parse_whole(&batch).expect("valid");
            assert_eq!(header.producer_id, 7);
            assert_eq!(header.producer_epoch, 3);
            assert_eq!(header.records, 1);
            assert!(header.is_control() && header.is_transactional());
            assert_eq!(read_marker(&batch), Some(marker));
        }
    }

    #[test]
    fn b_e3_patching_the_place_keeps_the_checksum_valid() {
        let mut batch = marker_batch(7, 3, Marker::Commit, 1_000);
        patch_place(&mut batch, 1 << 40, 9);
        let header = Header::parse_whole(&batch).expect("still valid");
        assert_eq!((header.base_offset, header.leader_epoch), (1 << 40, 9));
    }

    #[test]
    fn append_time_is_written_and_checksummed() {
        let mut batch = marker_batch(7, 3, Marker::Commit, 1_000);
        let before = Header::parse_whole(&batch).expect("valid");
        patch_append_time(&mut batch, before.attributes, 5_000);
        let after = Header::parse_whole(&batch).expect("valid again");
        assert!(!before.has_append_time() && after.has_append_time());
        assert_eq!(after.max_timestamp, 5_000);
    }

    #[test]
    fn broken_batches_are_refused() {
        let good = marker_batch(7, 3, Marker::Commit, 1_000);
        let with = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            Header::parse_whole(&bad)
        };
        assert_eq!(Header::parse_whole(&good[..60]), Err(Malformed::Short(60)));
        assert_eq!(Header::parse_whole(&good[..70]), Err(Malformed::Short(70)));
        assert_eq!(with(16, 1), Err(Malformed::Magic(1)));
        assert_eq!(with(8, 0xff), Err(Malformed::Length(-16_777_150)));
        assert_eq!(with(70, 0xff), Err(Malformed::Checksum));
        assert!(matches!(with(60, 2), Err(Malformed::Count { .. })));
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let batch = marker_batch(7, 3, Marker::Commit, 0);
        let mut header = Header::parse(&batch).expect("valid");
        header.base_sequence = i32::MAX;
        header.last_offset_delta = 2;
        assert_eq!(header.last_sequence(), 1);
    }

    #[test]
    fn varints_read_zigzag() {
        for (bytes, value) in [
            (&[0u8][..], 0i64),
            (&[1][..], -1),
            (&[2][..], 1),
            (&[0x80, 0x01][..], 64),
            (
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..],
                i64::MIN,
            ),
        ] {
            assert_eq!(read_varint(&mut &*bytes), Some(value));
        }
        assert_eq!(read_varint(&mut &[0x80u8; 12][..]), None);
    }
}
