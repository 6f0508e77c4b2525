//! The outline of each request: walked over before the codec decodes it.
//!
//! The codec allocates an array as long as the request says it is. A broken or hostile
//! length would abort the process, which no handler can catch, so every length is checked
//! against the bytes that are really there first.
//!
//! Invariant: a request that passes has no array longer than its own items and than
//! `ARRAY_ITEMS_MAX`, and no bytes behind its end.

use kafka_protocol::messages::ApiKey;

use crate::limits::ARRAY_ITEMS_MAX;

/// One field of a request.
#[derive(Debug)]
enum Field {
    /// So many bytes.
    Fixed(usize),
    Text,
    Blob,
    /// An array of structures.
    Structs(&'static [Part]),
    /// An array of plain fields.
    Items(&'static Field),
}

/// A field, and the versions that have it.
#[derive(Debug)]
struct Part(i16, i16, Field);

/// A request, and the first version in which lengths are varints and tags follow.
#[derive(Debug)]
struct Shape {
    flexible_from: i16,
    parts: &'static [Part],
}

const fn all(field: Field) -> Part {
    Part(0, i16::MAX, field)
}

const fn from(version: i16, field: Field) -> Part {
    Part(version, i16::MAX, field)
}

const fn until(version: i16, field: Field) -> Part {
    Part(0, version, field)
}

const INT8: Field = Field::Fixed(1);
const INT16: Field = Field::Fixed(2);
const INT32: Field = Field::Fixed(4);
const INT64: Field = Field::Fixed(8);
const TEXT: Field = Field::Text;
const BLOB: Field = Field::Blob;
const NEVER: i16 = i16::MAX;

const fn shape(flexible_from: i16, parts: &'static [Part]) -> Shape {
    Shape {
        flexible_from,
        parts,
    }
}

const PLACES: &[Part] = &[all(TEXT), all(Field::Items(&INT32))];

static API_VERSIONS: Shape = shape(3, &[from(3, TEXT), from(3, TEXT)]);
static METADATA: Shape = shape(
    9,
    &[
        all(Field::Structs(&[all(TEXT)])),
        from(4, INT8),
        from(8, INT8),
        from(8, INT8),
    ],
);
static PRODUCE: Shape = shape(
    9,
    &[
        all(TEXT),
        all(INT16),
        all(INT32),
        all(Field::Structs(&[
            all(TEXT),
            all(Field::Structs(&[all(INT32), all(BLOB)])),
        ])),
    ],
);
static FETCH: Shape = shape(
    12,
    &[
        all(INT32),
        all(INT32),
        all(INT32),
        all(INT32),
        all(INT8),
        from(7, INT32),
        from(7, INT32),
        all(Field::Structs(&[
            all(TEXT),
            all(Field::Structs(&[
                all(INT32),
                from(9, INT32),
                all(INT64),
                from(12, INT32),
                from(5, INT64),
                all(INT32),
            ])),
        ])),
        from(7, Field::Structs(PLACES)),
        from(11, TEXT),
    ],
);
static LIST_OFFSETS: Shape = shape(
    6,
    &[
        all(INT32),
        from(2, INT8),
        all(Field::Structs(&[
            all(TEXT),
            all(Field::Structs(&[all(INT32), from(4, INT32), all(INT64)])),
        ])),
    ],
);
static FIND_COORDINATOR: Shape = shape(
    3,
    &[until(3, TEXT), from(1, INT8), from(4, Field::Items(&TEXT))],
);
static JOIN_GROUP: Shape = shape(
    6,
    &[
        all(TEXT),
        all(INT32),
        from(1, INT32),
        all(TEXT),
        from(5, TEXT),
        all(TEXT),
        all(Field::Structs(&[all(TEXT), all(BLOB)])),
        from(8, TEXT),
    ],
);
static SYNC_GROUP: Shape = shape(
    4,
    &[
        all(TEXT),
        all(INT32),
        all(TEXT),
        from(3, TEXT),
        from(5, TEXT),
        from(5, TEXT),
        all(Field::Structs(&[all(TEXT), all(BLOB)])),
    ],
);
static HEARTBEAT: Shape = shape(4, &[all(TEXT), all(INT32), all(TEXT), from(3, TEXT)]);
static LEAVE_GROUP: Shape = shape(
    4,
    &[
        all(TEXT),
        until(2, TEXT),
        from(3, Field::Structs(&[all(TEXT), all(TEXT), from(5, TEXT)])),
    ],
);
static OFFSET_COMMIT: Shape = shape(
    8,
    &[
        all(TEXT),
        all(INT32),
        all(TEXT),
        from(7, TEXT),
        until(4, INT64),
        all(Field::Structs(&[
            all(TEXT),
            all(Field::Structs(&[
                all(INT32),
                all(INT64),
                from(6, INT32),
                all(TEXT),
            ])),
        ])),
    ],
);
static OFFSET_FETCH: Shape = shape(
    6,
    &[
        until(7, TEXT),
        until(7, Field::Structs(PLACES)),
        from(8, Field::Structs(&[all(TEXT), all(Field::Structs(PLACES))])),
        from(7, INT8),
    ],
);
static OFFSET_DELETE: Shape = shape(NEVER, &[all(TEXT), all(Field::Structs(PLACES))]);
static INIT_PRODUCER_ID: Shape = shape(2, &[all(TEXT), all(INT32), from(3, INT64), from(3, INT16)]);
static ADD_PARTITIONS_TO_TXN: Shape = shape(
    3,
    &[
        all(TEXT),
        all(INT64),
        all(INT16),
        all(Field::Structs(PLACES)),
    ],
);
static ADD_OFFSETS_TO_TXN: Shape = shape(3, &[all(TEXT), all(INT64), all(INT16), all(TEXT)]);
static TXN_OFFSET_COMMIT: Shape = shape(
    3,
    &[
        all(TEXT),
        all(TEXT),
        all(INT64),
        all(INT16),
        from(3, INT32),
        from(3, TEXT),
        from(3, TEXT),
        all(Field::Structs(&[
            all(TEXT),
            all(Field::Structs(&[
                all(INT32),
                all(INT64),
                from(2, INT32),
                all(TEXT),
            ])),
        ])),
    ],
);
static END_TXN: Shape = shape(3, &[all(TEXT), all(INT64), all(INT16), all(INT8)]);
static CREATE_TOPICS: Shape = shape(
    5,
    &[
        all(Field::Structs(&[
            all(TEXT),
            all(INT32),
            all(INT16),
            all(Field::Structs(&[all(INT32), all(Field::Items(&INT32))])),
            all(Field::Structs(&[all(TEXT), all(TEXT)])),
        ])),
        all(INT32),
        all(INT8),
    ],
);
static DELETE_TOPICS: Shape = shape(4, &[all(Field::Items(&TEXT)), all(INT32)]);
static CREATE_PARTITIONS: Shape = shape(
    2,
    &[
        all(Field::Structs(&[
            all(TEXT),
            all(INT32),
            all(Field::Structs(&[all(Field::Items(&INT32))])),
        ])),
        all(INT32),
        all(INT8),
    ],
);
static DELETE_RECORDS: Shape = shape(
    2,
    &[
        all(Field::Structs(&[
            all(TEXT),
            all(Field::Structs(&[all(INT32), all(INT64)])),
        ])),
        all(INT32),
    ],
);
static DESCRIBE_CONFIGS: Shape = shape(
    4,
    &[
        all(Field::Structs(&[
            all(INT8),
            all(TEXT),
            all(Field::Items(&TEXT)),
        ])),
        all(INT8),
        from(3, INT8),
    ],
);
static ALTER_CONFIGS: Shape = shape(
    2,
    &[
        all(Field::Structs(&[
            all(INT8),
            all(TEXT),
            all(Field::Structs(&[all(TEXT), all(TEXT)])),
        ])),
        all(INT8),
    ],
);
static INCREMENTAL_ALTER_CONFIGS: Shape = shape(
    1,
    &[
        all(Field::Structs(&[
            all(INT8),
            all(TEXT),
            all(Field::Structs(&[all(TEXT), all(INT8), all(TEXT)])),
        ])),
        all(INT8),
    ],
);
static LIST_GROUPS: Shape = shape(3, &[from(4, Field::Items(&TEXT))]);
static DESCRIBE_GROUPS: Shape = shape(5, &[all(Field::Items(&TEXT)), from(3, INT8)]);
static DELETE_GROUPS: Shape = shape(2, &[all(Field::Items(&TEXT))]);
static OFFSET_FOR_LEADER_EPOCH: Shape = shape(
    4,
    &[
        from(3, INT32),
        all(Field::Structs(&[
            all(TEXT),
            all(Field::Structs(&[all(INT32), from(2, INT32), all(INT32)])),
        ])),
    ],
);
static DESCRIBE_CLUSTER: Shape = shape(0, &[all(INT8), from(1, INT8)]);

fn of(api: ApiKey) -> Option<&'static Shape> {
    Some(match api {
        ApiKey::ApiVersions => &API_VERSIONS,
        ApiKey::Metadata => &METADATA,
        ApiKey::Produce => &PRODUCE,
        ApiKey::Fetch => &FETCH,
        ApiKey::ListOffsets => &LIST_OFFSETS,
        ApiKey::FindCoordinator => &FIND_COORDINATOR,
        ApiKey::JoinGroup => &JOIN_GROUP,
        ApiKey::SyncGroup => &SYNC_GROUP,
        ApiKey::Heartbeat => &HEARTBEAT,
        ApiKey::LeaveGroup => &LEAVE_GROUP,
        ApiKey::OffsetCommit => &OFFSET_COMMIT,
        ApiKey::OffsetFetch => &OFFSET_FETCH,
        ApiKey::OffsetDelete => &OFFSET_DELETE,
        ApiKey::InitProducerId => &INIT_PRODUCER_ID,
        ApiKey::AddPartitionsToTxn => &ADD_PARTITIONS_TO_TXN,
        ApiKey::AddOffsetsToTxn => &ADD_OFFSETS_TO_TXN,
        ApiKey::TxnOffsetCommit => &TXN_OFFSET_COMMIT,
        ApiKey::EndTxn => &END_TXN,
        ApiKey::CreateTopics => &CREATE_TOPICS,
        ApiKey::DeleteTopics => &DELETE_TOPICS,
        ApiKey::CreatePartitions => &CREATE_PARTITIONS,
        ApiKey::DeleteRecords => &DELETE_RECORDS,
        ApiKey::DescribeConfigs => &DESCRIBE_CONFIGS,
        ApiKey::AlterConfigs => &ALTER_CONFIGS,
        ApiKey::IncrementalAlterConfigs => &INCREMENTAL_ALTER_CONFIGS,
        ApiKey::ListGroups => &LIST_GROUPS,
        ApiKey::DescribeGroups => &DESCRIBE_GROUPS,
        ApiKey::DeleteGroups => &DELETE_GROUPS,
        ApiKey::OffsetForLeaderEpoch => &OFFSET_FOR_LEADER_EPOCH,
        ApiKey::DescribeCluster => &DESCRIBE_CLUSTER,
        _ => return None,
    })
}

/// Whether `body` has the outline of a request of this kind and version.
pub(crate) fn fits(api: ApiKey, version: i16, body: &[u8]) -> bool {
    let Some(shape) = of(api) else {
        return false;
    };
    let mut walk = Walk {
        rest: body,
        version,
        flexible: version >= shape.flexible_from,
    };
    walk.parts(shape.parts).is_some() && walk.rest.is_empty()
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
}

impl Walk<'_> {
    fn parts(&mut self, parts: &[Part]) -> Option<()> {
        for Part(from, until, field) in parts {
            if (*from..=*until).contains(&self.version) {
                self.field(field)?;
            }
        }
        if self.flexible {
            for _ in 0..self.varint()? {
                self.varint()?;
                let bytes = usize::try_from(self.varint()?).ok()?;
                self.skip(bytes)?;
            }
        }
        Some(())
    }

    fn field(&mut self, field: &Field) -> Option<()> {
        match field {
            Field::Fixed(bytes) => self.skip(*bytes),
            Field::Text => {
                let bytes = self.length(|walk| {
                    let (length, rest) = walk.rest.split_first_chunk::<2>()?;
                    walk.rest = rest;
                    Some(i64::from(i16::from_be_bytes(*length)))
                })?;
                self.skip(bytes)
            }
            Field::Blob => {
                let bytes = self.length(Self::int32)?;
                self.skip(bytes)
            }
            Field::Structs(parts) => {
                for _ in 0..self.count()? {
                    self.parts(parts)?;
                }
                Some(())
            }
            Field::Items(item) => {
                for _ in 0..self.count()? {
                    self.field(item)?;
                }
                Some(())
            }
        }
    }

    /// A length; null counts as nothing. A null array is one item shorter than an empty
    /// one in flexible versions, and -1 in the others.
    fn length(&mut self, plain: impl FnOnce(&mut Self) -> Option<i64>) -> Option<usize> {
        let length = if self.flexible {
            i64::from(self.varint()?) - 1
        } else {
            plain(self)?
        };
        match length {
            -1 => Some(0),
            length => usize::try_from(length).ok(),
        }
    }

    fn count(&mut self) -> Option<usize> {
        self.length(Self::int32)
            .filter(|count| *count <= ARRAY_ITEMS_MAX && *count <= self.rest.len())
    }

    fn int32(&mut self) -> Option<i64> {
        let (number, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(i64::from(i32::from_be_bytes(*number)))
    }

    fn varint(&mut self) -> Option<u32> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let (first, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return u32::try_from(value).ok();
            }
        }
        None
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }
}
