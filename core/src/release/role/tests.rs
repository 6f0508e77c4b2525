//! One test for each branch, named by its rule, and the laws of V3.

use proptest::prelude::*;

use super::super::sample::{at, intent, live, partition, release, sealed, shadow};
use super::*;
use crate::contract::intent::Partitions;

/// What release `y` sees; `x` is the other one.
#[derive(Clone, Default, Debug)]
struct Seen {
    me: Option<Token>,
    others: Vec<(ReleaseId, Token)>,
    grant: Option<Granted>,
    intent: Option<Intent>,
}

impl Seen {
    fn me(token: Token) -> Self {
        Self {
            me: Some(token),
            ..Self::default()
        }
    }

    fn x(mut self, token: Token) -> Self {
        self.others.push((release("x"), token));
        self
    }

    fn z(mut self, token: Token) -> Self {
        self.others.push((release("z"), token));
        self
    }

    fn granted(mut self, token: Token) -> Self {
        self.grant = Some(granted(token));
        self
    }

    fn asked(mut self, epoch: u64, target: &str) -> Self {
        self.intent = Some(intent(epoch, target, Partitions::of(&[partition(0)])));
        self
    }

    fn role_of(&self, partition: &Partition) -> Role {
        role(&View {
            this: &release("y"),
            partition,
            me: self.me.as_ref(),
            others: &self.others,
            grant: self.grant.as_ref(),
            intent: self.intent.as_ref(),
        })
    }
}

fn granted(token: Token) -> Granted {
    Granted {
        release: release("y"),
        token,
    }
}

fn check(seen: Seen, expect: Role) {
    assert_eq!(seen.role_of(&partition(0)), expect);
}

fn adopt(from: i64, epoch: u64, of: &str) -> Role {
    Role::Adopt {
        from: at(from),
        epoch,
        of: release(of),
    }
}

#[test]
fn r9_a_missing_token_without_a_grant_halts() {
    check(Seen::default(), Role::Halt(Halt::TokenMissing));
    check(
        Seen::default().x(sealed(9, 5, "y")),
        Role::Halt(Halt::TokenMissing),
    );
}

#[test]
fn r13_a_granted_shadow_is_taken_whoever_answers() {
    check(
        Seen::default().x(live(9, 0)).granted(shadow(3)),
        Role::Take(granted(shadow(3))),
    );
}

#[test]
fn r13_a_granted_live_token_is_taken_only_above_every_tenure() {
    check(
        Seen::default().x(sealed(3, 5, "-")).granted(live(4, 5)),
        Role::Take(granted(live(4, 5))),
    );
    check(
        Seen::default().granted(live(1, 0)),
        Role::Take(granted(live(1, 0))),
    );
    for newest in [live(4, 0), sealed(5, 5, "y")] {
        check(
            Seen::default().x(newest).granted(live(4, 5)),
            Role::Halt(Halt::TokenMissing),
        );
    }
}

#[test]
fn i1_live_below_another_tenure_is_a_conflict() {
    check(
        Seen::me(live(4, 0)).x(live(5, 9)),
        Role::Halt(Halt::Conflict),
    );
    check(
        Seen::me(live(4, 0)).x(sealed(5, 9, "y")).asked(6, "y"),
        Role::Halt(Halt::Conflict),
    );
}

#[test]
fn r13_a_newer_grant_replaces_a_live_token() {
    check(
        Seen::me(live(4, 0)).granted(live(5, 7)).asked(6, "x"),
        Role::Take(granted(live(5, 7))),
    );
    check(Seen::me(live(4, 0)).granted(live(4, 7)), Role::Live);
}

#[test]
fn r1_a_newer_intent_for_another_release_asks_for_a_seal() {
    check(
        Seen::me(live(4, 0)).x(shadow(4)).asked(5, "x"),
        Role::Sealing {
            to: release("x"),
            epoch: 5,
        },
    );
}

#[test]
fn r8_an_overtaken_intent_can_no_longer_seal() {
    check(Seen::me(live(5, 0)).x(shadow(4)).asked(5, "x"), Role::Live);
    check(Seen::me(live(6, 0)).x(shadow(4)).asked(5, "x"), Role::Live);
}

#[test]
fn e3_partitions_that_an_intent_leaves_out_stay_live() {
    let seen = Seen::me(live(4, 0)).asked(5, "x");
    assert_eq!(seen.role_of(&partition(1)), Role::Live);
    check(Seen::me(live(4, 0)).asked(5, "y"), Role::Live);
}

#[test]
fn r3_the_newest_seal_to_this_release_is_adopted() {
    check(
        Seen::me(shadow(4)).x(sealed(5, 812, "y")),
        adopt(812, 5, "x"),
    );
    // It sealed earlier itself, and gets the partition back.
    check(
        Seen::me(sealed(5, 812, "x")).x(sealed(6, 900, "y")),
        adopt(900, 6, "x"),
    );
    check(
        Seen::me(shadow(4))
            .z(sealed(3, 700, "y"))
            .x(sealed(5, 812, "y")),
        adopt(812, 5, "x"),
    );
}

#[test]
fn r3_a_seal_that_is_old_or_for_somebody_else_is_not_adopted() {
    check(Seen::me(shadow(4)).x(sealed(5, 812, "z")), Role::Shadow);
    check(Seen::me(shadow(4)).x(sealed(5, 812, "-")), Role::Shadow);
    // Own tenure is as new.
    check(
        Seen::me(sealed(5, 812, "x")).x(sealed(5, 812, "y")),
        Role::Shadow,
    );
    // Somebody has answered since.
    check(
        Seen::me(shadow(4)).x(sealed(5, 812, "y")).z(live(6, 900)),
        Role::Shadow,
    );
}

#[test]
fn r7_a_candidate_shadows_whatever_the_intent_says() {
    check(
        Seen::me(shadow(4)).x(live(4, 0)).asked(9, "y"),
        Role::Shadow,
    );
    check(Seen::me(sealed(5, 3, "x")).asked(9, "y"), Role::Shadow);
}

#[test]
fn r8_live_owners_stamp_the_newest_epoch_unless_asked_to_seal() {
    let stamp = |intent: &Intent| {
        let view = View {
            this: &release("y"),
            partition: &partition(0),
            me: None,
            others: &[],
            grant: None,
            intent: Some(intent),
        };
        stamped(&view, 5)
    };
    assert_eq!(stamp(&intent(7, "y", Partitions::All)), 7);
    assert_eq!(stamp(&intent(4, "y", Partitions::All)), 5);
    assert_eq!(stamp(&intent(7, "x", Partitions::All)), 5);
    assert_eq!(stamp(&intent(7, "x", Partitions::of(&[partition(1)]))), 7);
}

fn any_token() -> impl Strategy<Value = Token> {
    let name = prop::sample::select(vec!["x", "y", "z"]);
    (0..3_u8, 0..6_u64, 0..6_i64, proptest::option::of(name)).prop_map(|(kind, epoch, from, to)| {
        let peer = to.map(release);
        match kind {
            0 => Token::Shadow {
                epoch,
                at: at(from),
                peer,
            },
            1 => Token::Live {
                epoch,
                from: at(from),
                peer,
            },
            _ => Token::Sealed {
                epoch,
                at: at(from),
                to: peer,
            },
        }
    })
}

prop_compose! {
    fn any_seen()(
        me in proptest::option::of(any_token()),
        others in proptest::collection::vec(any_token(), 0..3),
        grant in proptest::option::of(any_token()),
        asked in proptest::option::of((0..8_u64, prop::sample::select(vec!["x", "y", "z"]))),
    ) -> Seen {
        let grant = grant.filter(|token| !matches!(token, Token::Sealed { .. }));
        let mut seen = Seen {
            me,
            others: ["x", "z"].into_iter().map(release).zip(others).collect(),
            grant: grant.map(granted),
            intent: None,
        };
        if let Some((epoch, target)) = asked {
            seen = seen.asked(epoch, target);
        }
        seen
    }
}

proptest! {
    #[test]
    fn v3_nobody_is_live_or_sealing_without_a_live_token(seen in any_seen()) {
        let role = seen.role_of(&partition(0));
        let live = matches!(seen.me, Some(Token::Live { .. }));
        let answers = matches!(role, Role::Live | Role::Sealing { .. });
        let follows = matches!(role, Role::Shadow | Role::Adopt { .. });
        prop_assert!(live || !answers, "{role:?}");
        prop_assert!(!live || !follows, "{role:?}");
    }

    #[test]
    fn v3_what_is_adopted_is_a_seal_to_this_release_above_its_own_tenure(seen in any_seen()) {
        if let Role::Adopt { from, epoch, of } = seen.role_of(&partition(0)) {
            let seal = Token::Sealed { epoch, at: from, to: Some(release("y")) };
            prop_assert!(seen.others.contains(&(of, seal)));
            prop_assert!(seen.me.as_ref().unwrap().tenure() < Some(epoch));
        }
    }

    #[test]
    fn v3_of_two_releases_that_see_each_other_at_most_one_is_live_or_adopts(
        mine in any_token(), yours in any_token(),
    ) {
        // Equal Live epochs cannot come about: an epoch has one receiver (R8).
        prop_assume!(mine.tenure() != yours.tenure() || mine.tenure().is_none());
        let (x, y) = (release("x"), release("y"));
        let ask = |this: &ReleaseId, me: &Token, other: &ReleaseId, token: &Token| role(&View {
            this,
            partition: &partition(0),
            me: Some(me),
            others: &[(other.clone(), token.clone())],
            grant: None,
            intent: None,
        });
        let answers = [ask(&y, &mine, &x, &yours), ask(&x, &yours, &y, &mine)];
        let count = answers.iter().filter(|role| matches!(role, Role::Live | Role::Adopt { .. })).count();
        prop_assert!(count <= 1, "{answers:?}");
    }
}
