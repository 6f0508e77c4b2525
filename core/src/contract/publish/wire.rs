//! The primitives of a frame: little-endian integers, byte strings with null, lists.

use std::ops::Range;

use super::{FateCode, Malformed};
use crate::position::{Partition, Position};
use crate::token::Stamp;

/// The length that stands for null (P-2).
pub(super) const NULL: u32 = u32::MAX;

/// Appends a byte string.
pub(super) fn put_bytes(into: &mut Vec<u8>, bytes: Option<&[u8]>) {
    let length = bytes.map_or(NULL, |b| {
        u32::try_from(b.len()).expect("a frame is at most 64 Mi")
    });
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(bytes.unwrap_or_default());
}

/// Appends a text.
pub(super) fn put_text(into: &mut Vec<u8>, text: &str) {
    put_bytes(into, Some(text.as_bytes()));
}

/// Appends the number of items that follow.
pub(super) fn put_count(into: &mut Vec<u8>, count: usize) {
    into.extend_from_slice(
        &u32::try_from(count)
            .expect("a frame holds at most 64 Mi items")
            .to_le_bytes(),
    );
}

/// Appends an index, or that there is none.
pub(super) fn put_index(into: &mut Vec<u8>, index: Option<u32>) {
    into.extend_from_slice(&index.unwrap_or(NULL).to_le_bytes());
}

/// Appends a topic and a partition number.
pub(super) fn put_partition(into: &mut Vec<u8>, partition: &Partition) {
    put_text(into, partition.topic());
    into.extend_from_slice(&partition.number().to_le_bytes());
}

/// Appends a list of topic-partitions.
pub(super) fn put_partitions(into: &mut Vec<u8>, partitions: &[Partition]) {
    put_count(into, partitions.len());
    for partition in partitions {
        put_partition(into, partition);
    }
}

/// Appends a list of numbers.
pub(super) fn put_numbers(into: &mut Vec<u8>, numbers: &[u64]) {
    put_count(into, numbers.len());
    for number in numbers {
        into.extend_from_slice(&number.to_le_bytes());
    }
}

/// The byte of a stamp.
pub(super) fn stamp_byte(stamp: Stamp) -> u8 {
    match stamp {
        Stamp::Live => 0,
        Stamp::Shadow => 1,
        Stamp::Baseline => 2,
    }
}

/// Reads a frame from front to back. Every method fails rather than read past the end.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Fails if something is left over.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err("bytes are left over")
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or("it ends too early")?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn index(&mut self) -> Result<Option<u32>, Malformed> {
        self.u32().map(|index| (index != NULL).then_some(index))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// Sixteen bytes that mean nothing to us.
    pub(super) fn sixteen(&mut self) -> Result<[u8; 16], Malformed> {
        self.array()
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or("it ends too early")?;
        self.rest = rest;
        Ok(head)
    }

    /// A byte string; `None` is null.
    pub(super) fn bytes(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let length = self.u32()?;
        if length == NULL {
            return Ok(None);
        }
        self.take(length as usize).map(Some)
    }

    /// A byte string that may not be null.
    pub(super) fn some_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        self.bytes()?.ok_or("a byte string is null")
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.some_bytes()?).map_err(|_| "a text is not UTF-8")
    }

    pub(super) fn string(&mut self) -> Result<String, Malformed> {
        self.text().map(str::to_owned)
    }

    /// A list; each item takes at least one byte, so the frame bounds the list.
    pub(super) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub(super) fn partition(&mut self) -> Result<Partition, Malformed> {
        let topic = self.text()?;
        let number = self.i32()?;
        if number < 0 {
            return Err("a partition number is negative");
        }
        Ok(Partition::new(topic, number))
    }

    pub(super) fn position(&mut self) -> Result<Position, Malformed> {
        self.i64().map(Position::new)
    }

    pub(super) fn range(&mut self) -> Result<Range<u32>, Malformed> {
        let range = self.u32()?..self.u32()?;
        if range.is_empty() {
            return Err("a range is empty");
        }
        Ok(range)
    }

    pub(super) fn stamp(&mut self) -> Result<Stamp, Malformed> {
        match self.u8()? {
            0 => Ok(Stamp::Live),
            1 => Ok(Stamp::Shadow),
            2 => Ok(Stamp::Baseline),
            _ => Err("the stamp is unknown"),
        }
    }

    pub(super) fn fate(&mut self) -> Result<FateCode, Malformed> {
        match self.u8()? {
            0 => Ok(FateCode::Emitted),
            1 => Ok(FateCode::Filtered),
            2 => Ok(FateCode::DeadLettered),
            3 => Ok(FateCode::FailedInShadow),
            _ => Err("the fate is unknown"),
        }
    }
}
