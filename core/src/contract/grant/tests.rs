//! Golden strings, strictness.

use super::*;
use crate::position::Position;

fn release(name: &str) -> ReleaseId {
    ReleaseId::new(name).unwrap()
}

fn resealed(fields: &str) -> String {
    let mut text = fields.to_owned();
    seal(&mut text);
    text
}

fn live() -> Granted {
    Granted {
        release: release("r12-77ab0e41"),
        token: Token::Live {
            epoch: 24,
            from: Position::START,
            peer: None,
        },
    }
}

fn shadow() -> Granted {
    Granted {
        release: release("r11-9f3c1a2b"),
        token: Token::Shadow {
            epoch: 24,
            at: Position::new(812),
            peer: Some(release("r12-77ab0e41")),
        },
    }
}

#[test]
fn e4_grants_have_their_form() {
    let check = |seeding, grants: Option<Grants>, expect: &str| {
        let grant = Grant {
            root: release("r11-9f3c1a2b"),
            seeding,
            release: grants,
        };
        let text = grant.encode();
        assert_eq!(text, resealed(expect));
        assert_eq!(Grant::decode(&text, UnknownKeys::Refuse), Ok(grant));
    };
    check(None, None, "mg1;root=r11-9f3c1a2b");
    check(
        Some(Seeding::Seeding(4)),
        None,
        "mg1;root=r11-9f3c1a2b;s=seeding:4",
    );
    check(
        Some(Seeding::Seeded(0)),
        Some(Grants {
            first: live(),
            second: None,
        }),
        "mg1;root=r11-9f3c1a2b;s=seeded:0;r=r12-77ab0e41,k=L,e=24,at=0,pr=-",
    );
    check(
        None,
        Some(Grants {
            first: live(),
            second: Some(shadow()),
        }),
        "mg1;root=r11-9f3c1a2b;r=r12-77ab0e41,k=L,e=24,at=0,pr=-|r11-9f3c1a2b,k=S,e=24,at=812,pr=r12-77ab0e41",
    );
}

#[test]
fn e4_the_checksum_of_a_grant_is_part_of_its_form() {
    let grant = Grant {
        root: release("dev"),
        seeding: Some(Seeding::Seeded(4)),
        release: None,
    };
    assert_eq!(grant.encode(), "mg1;root=dev;s=seeded:4;c=6c31b6e2");
}

#[test]
fn r13_each_release_finds_its_grant() {
    let grants = Grants {
        first: live(),
        second: Some(shadow()),
    };
    assert_eq!(grants.of(&release("r12-77ab0e41")), Some(&live()));
    assert_eq!(grants.of(&release("r11-9f3c1a2b")), Some(&shadow()));
    assert_eq!(grants.of(&release("r13")), None);
}

#[test]
fn e4_a_changed_grant_fails_or_is_what_we_write() {
    let grant = Grant {
        root: release("r11-9f3c1a2b"),
        seeding: Some(Seeding::Seeding(12)),
        release: Some(Grants {
            first: live(),
            second: Some(shadow()),
        }),
    };
    let text = grant.encode();
    let fields = text.rsplit_once(";c=").unwrap().0;
    for at in 0..fields.len() {
        for byte in 0..=127_u8 {
            let mut changed = fields.as_bytes().to_vec();
            changed[at] = byte;
            let damaged = format!(
                "{}{}",
                std::str::from_utf8(&changed).unwrap(),
                &text[fields.len()..]
            );
            if damaged != text {
                assert!(
                    Grant::decode(&damaged, UnknownKeys::Ignore).is_err(),
                    "{damaged}"
                );
            }
            let changed = resealed(std::str::from_utf8(&changed).unwrap());
            if let Ok(grant) = Grant::decode(&changed, UnknownKeys::Refuse) {
                assert_eq!(grant.encode(), changed);
            }
        }
    }
}

#[test]
fn e4_nothing_but_the_canonical_form_is_read() {
    let check = |fields: &str| {
        let text = resealed(fields);
        assert!(
            Grant::decode(&text, UnknownKeys::Refuse).is_err(),
            "{fields}"
        );
    };
    check("mg2;root=a");
    check("mr1;root=a");
    check("mg1;root=");
    check("mg1;root=-");
    check("mg1;s=seeded:1");
    check("mg1;root=a;s=seeded:01");
    check("mg1;root=a;s=seeded:-1");
    check("mg1;root=a;s=seed:1");
    check("mg1;root=a;s=seeded:1;s=seeded:1");
    check("mg1;root=a;r=b,k=L,e=1,at=0,pr=-;s=seeded:1");
    check("mg1;root=a;r=b,k=X,e=1,at=0,pr=-");
    check("mg1;root=a;r=b,k=L,e=1,at=0");
    check("mg1;root=a;r=b,k=L,e=1,at=0,pr=-,x=1");
    check("mg1;root=a;r=b,k=L,e=1,at=0,pr=-|");
    check("mg1;root=a;r=b,k=L,e=1,at=0,pr=-|b,k=S,e=1,at=0,pr=-");
    check("mg1;root=a;r=b,k=L,e=1,at=0,pr=-|c,k=S,e=1,at=0,pr=-|d,k=S,e=1,at=0,pr=-");
    check("mg1;root=a;n=1");
    let newer = resealed("mg1;root=a;n=1");
    assert!(Grant::decode(&newer, UnknownKeys::Ignore).is_ok());
}
