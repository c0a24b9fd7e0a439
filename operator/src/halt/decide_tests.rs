//! Tables and properties of what is done and said.

use std::time::Duration;

use proptest::prelude::*;
use rstest::rstest;
use standfast_crds::v1alpha1::{
    CancelOrders, HaltOrders, HaltPhase, HaltPolicy, HaltPositions, LocalReference, PositionAction, TradingHaltSpec,
    WorkloadKind, halt_conditions as c,
};

use super::*;

fn spec(cancel: CancelOrders, action: PositionAction) -> TradingHaltSpec {
    TradingHaltSpec {
        system_ref: Some(LocalReference { name: "bot".into() }),
        system_selector: None,
        reason: "test".into(),
        requested_by: None,
        orders: HaltOrders { cancel },
        positions: HaltPositions::of(action),
    }
}

fn policy(closing: bool) -> HaltPolicy {
    let mut policy = HaltPolicy::default();
    if closing {
        policy.allowed_position_actions.push(PositionAction::CloseAll);
    }
    policy
}

fn offers() -> Offers {
    Offers {
        removed: false,
        cancel_all: 1,
        cancel_one: true,
        close_all: 1,
        close_one: true,
        reads_orders: true,
        reads_positions: true,
        suspend: 1,
        allow: 1,
        suspend_blocks_closing: true,
    }
}

/// A venue at which everything is proven.
fn venue() -> VenueFacts {
    VenueFacts {
        name: "alpaca".into(),
        offers: offers(),
        orders: Some(Ok(Orders::default())),
        positions: Some(Ok(Positions::default())),
        suspended: Some(Ok(true)),
        suspended_elsewhere: false,
        allow_done: false,
        closing_elsewhere: false,
        clean_reads: 3,
        stable_reads: 3,
        flat_reads: 3,
        cancelled_after_stop: true,
        orders_awaited: false,
        positions_awaited: false,
        positions_current: true,
        cancel_due: true,
        cancel_removed: false,
        suspend_done: true,
        close_intended: false,
        close_hindrance: None,
        ..VenueFacts::default()
    }
}

/// A halt of which everything is proven.
fn proven() -> Facts {
    Facts {
        elapsed: Duration::from_secs(5),
        stopped_for: Duration::from_secs(5),
        closing_for: None,
        system: Ok(()),
        missing: vec![],
        active: vec![],
        jobs: Ok(vec![]),
        pods: Ok(Pods::default()),
        latch_written: Ok(true),
        latch: LatchFact::Proven,
        venues: vec![venue()],
        application_retry: false,
        approved: Approved::NotAsked,
    }
}

fn key() -> Key {
    Key { namespace: "ns".into(), kind: WorkloadKind::Deployment, name: "bot".into() }
}

fn item(symbol: &str) -> Item {
    Item { id: format!("id-{symbol}"), symbol: symbol.into(), quantity: "1".into(), ..Item::default() }
}

#[test]
fn what_is_proven_is_halted_and_left_alone() {
    for cancel in [CancelOrders::All, CancelOrders::NonProtective, CancelOrders::None] {
        let spec = spec(cancel, PositionAction::Keep);
        let judgement = judge(&spec, &policy(false), &proven());
        assert_eq!(judgement.phase, HaltPhase::Halted, "{cancel:?}: {judgement:?}");
        assert_eq!(effects(&spec, &policy(false), &proven()), [], "{cancel:?}");
    }
}

/// One doubt at a time: what it makes of the phase, and which condition says why.
#[rstest]
#[case::a_pod_is_left(|f: &mut Facts| f.pods = Ok(Pods { running: 1, overdue: None }), HaltPhase::Fencing, c::WORKLOADS_STOPPED, "False", "PodsEnding")]
#[case::a_pod_is_left_for_too_long(|f: &mut Facts| { f.pods = Ok(Pods { running: 1, overdue: None }); f.elapsed = Duration::from_secs(91) }, HaltPhase::Unverified, c::WORKLOADS_STOPPED, "False", "PodsStillRunning")]
#[case::a_node_is_cut_off(|f: &mut Facts| f.pods = Ok(Pods { running: 1, overdue: Some("pod x on node y".into()) }), HaltPhase::Unverified, c::WORKLOADS_STOPPED, "False", "NodeUnreachable")]
#[case::pods_cannot_be_listed(|f: &mut Facts| f.pods = Err("500".into()), HaltPhase::Unverified, c::WORKLOADS_STOPPED, "Unknown", "PodsNotRead")]
#[case::a_workload_is_up_without_pods(|f: &mut Facts| f.active = vec![ActiveWorkload { key: key(), size: Size::Replicas(2) }], HaltPhase::Fencing, c::WORKLOADS_STOPPED, "False", "ScalingDown")]
#[case::a_job_goes_on(|f: &mut Facts| f.jobs = Ok(vec!["job".into()]), HaltPhase::Fencing, c::WORKLOADS_STOPPED, "False", "PodsEnding")]
#[case::a_workload_is_missing(|f: &mut Facts| f.missing = vec!["Deployment x not found".into()], HaltPhase::Unverified, c::WORKLOADS_STOPPED, "Unknown", "WorkloadNotFound")]
#[case::an_order_is_open(|f: &mut Facts| { f.venues[0].orders = Some(Ok(Orders { to_cancel: 1, ..Orders::default() })); f.venues[0].clean_reads = 0 }, HaltPhase::Fencing, c::ORDERS_CANCELLED, "False", "OrdersOpen")]
#[case::an_order_stays_open(|f: &mut Facts| { f.venues[0].orders = Some(Ok(Orders { to_cancel: 1, ..Orders::default() })); f.venues[0].clean_reads = 0; f.stopped_for = Duration::from_secs(61) }, HaltPhase::Unverified, c::ORDERS_CANCELLED, "False", "OrdersStillOpen")]
#[case::zero_was_read_too_seldom(|f: &mut Facts| f.venues[0].clean_reads = 2, HaltPhase::Verifying, c::ORDERS_CANCELLED, "False", "Verifying")]
#[case::orders_cannot_be_read(|f: &mut Facts| f.venues[0].orders = Some(Err("timeout".into())), HaltPhase::Unverified, c::ORDERS_CANCELLED, "Unknown", "OrdersNotRead")]
#[case::nothing_reads_orders(|f: &mut Facts| f.venues[0].orders = None, HaltPhase::Unverified, c::ORDERS_CANCELLED, "Unknown", "OrdersNotReadable")]
#[case::there_is_no_venue(|f: &mut Facts| f.venues.clear(), HaltPhase::Unverified, c::ORDERS_CANCELLED, "Unknown", "NoVenues")]
#[case::the_venue_was_removed(|f: &mut Facts| f.venues[0].offers.removed = true, HaltPhase::Unverified, c::ORDERS_CANCELLED, "Unknown", "VenueRemoved")]
#[case::what_cancelled_was_removed(|f: &mut Facts| f.venues[0].cancel_removed = true, HaltPhase::Unverified, c::ORDERS_CANCELLED, "Unknown", "CancelRemoved")]
#[case::a_job_has_not_answered_yet(|f: &mut Facts| { f.venues[0].orders = Some(Err("not yet".into())); f.venues[0].orders_awaited = true }, HaltPhase::Verifying, c::ORDERS_CANCELLED, "False", "Verifying")]
#[case::what_is_open_may_be_a_close(|f: &mut Facts| { f.venues[0].orders = Some(Ok(Orders { closing: 1, ..Orders::default() })); f.venues[0].positions = Some(Err("500".into())) }, HaltPhase::Unverified, c::ORDERS_CANCELLED, "Unknown", "PositionsNotRead")]
#[case::the_system_is_gone(|f: &mut Facts| f.system = Err("not found".into()), HaltPhase::Unverified, c::VERIFIED, "Unknown", "SystemUnreadable")]
#[case::the_system_is_gone_and_its_venues_with_it(|f: &mut Facts| { f.system = Err("not found".into()); f.venues[0].offers.removed = true }, HaltPhase::Unverified, c::ORDERS_CANCELLED, "Unknown", "SystemUnreadable")]
fn a_doubt_is_never_halted(
    #[case] doubt: fn(&mut Facts),
    #[case] phase: HaltPhase,
    #[case] condition: &str,
    #[case] status: &str,
    #[case] reason: &str,
) {
    let mut facts = proven();
    doubt(&mut facts);
    let judgement = judge(&spec(CancelOrders::All, PositionAction::Keep), &policy(false), &facts);
    let found = judgement.conditions.iter().find(|v| v.0 == condition).unwrap();
    assert_eq!((judgement.phase, found.1, found.2), (phase, status, reason), "{judgement:?}");
}

#[test]
fn a_latch_that_does_not_hold_is_said_and_does_not_hide_what_is_proven() {
    let facts = Facts { latch: LatchFact::Open("raising would be allowed".into()), ..proven() };
    let judgement = judge(&spec(CancelOrders::All, PositionAction::Keep), &policy(false), &facts);
    assert_eq!((judgement.phase, judgement.status(c::LATCHED)), (HaltPhase::Halted, "False"));
    let halted = judgement.conditions.iter().find(|v| v.0 == c::HALTED).unwrap();
    assert!(halted.3.contains("not latched"), "{}", halted.3);
}

/// S0-34, S1-31: closing only where the policy allows it.
#[rstest]
#[case(false, HaltPhase::Halted, "False", "NotAllowed")]
#[case(true, HaltPhase::Closing, "False", "Closing")]
fn s0_34_positions_are_closed_only_where_the_policy_allows_it(
    #[case] allowed: bool,
    #[case] phase: HaltPhase,
    #[case] status: &str,
    #[case] reason: &str,
) {
    let mut facts = proven();
    facts.venues[0].positions = Some(Ok(Positions { open: 1, items: vec![item("AAPL")], ..Positions::default() }));
    (facts.venues[0].flat_reads, facts.venues[0].suspended) = (0, Some(Ok(false)));
    let spec = spec(CancelOrders::All, PositionAction::CloseAll);
    let judgement = judge(&spec, &policy(allowed), &facts);
    let found = judgement.conditions.iter().find(|v| v.0 == c::POSITIONS_CLOSED).unwrap();
    assert_eq!((judgement.phase, found.1, found.2), (phase, status, reason));
    let closes = effects(&spec, &policy(allowed), &facts).iter().any(Effect::needs_intent);
    assert_eq!(closes, allowed);
}

/// The policy is gone with the system: it is not taken for one that forbids closing.
#[test]
fn without_its_system_nobody_knows_whether_positions_may_be_closed() {
    let facts = Facts { system: Err("not found".into()), ..proven() };
    let judgement = judge(&spec(CancelOrders::All, PositionAction::CloseAll), &policy(false), &facts);
    let found = judgement.conditions.iter().find(|v| v.0 == c::POSITIONS_CLOSED).unwrap();
    assert_eq!((judgement.phase, found.1, found.2), (HaltPhase::Unverified, "Unknown", "SystemUnreadable"));
}

/// When a close may be sent: not while anything runs, not while an order holds the quantity, not twice.
#[rstest]
#[case::everything_settled(|_: &mut Facts| {}, true)]
#[case::a_pod_runs(|f: &mut Facts| f.pods = Ok(Pods { running: 1, overdue: None }), false)]
#[case::an_order_is_open(|f: &mut Facts| f.venues[0].orders = Some(Ok(Orders { to_cancel: 1, ..Orders::default() })), false)]
#[case::orders_are_not_known(|f: &mut Facts| f.venues[0].orders = Some(Err("timeout".into())), false)]
#[case::positions_are_not_known(|f: &mut Facts| f.venues[0].positions = Some(Err("timeout".into())), false)]
#[case::no_clean_read_yet(|f: &mut Facts| f.venues[0].clean_reads = 0, false)]
#[case::the_market_is_closed(|f: &mut Facts| f.venues[0].close_hindrance = Some("closed".into()), false)]
#[case::just_closed(|f: &mut Facts| { f.venues[0].close_intended = true; f.venues[0].stable_reads = 2 }, false)]
#[case::our_close_is_open(|f: &mut Facts| { f.venues[0].close_intended = true; f.venues[0].orders = Some(Ok(Orders { closing: 1, ..Orders::default() })) }, false)]
#[case::closed_and_nothing_moves(|f: &mut Facts| f.venues[0].close_intended = true, true)]
#[case::an_older_halt_closes(|f: &mut Facts| f.venues[0].closing_elsewhere = true, false)]
#[case::positions_are_older_than_the_last_order(|f: &mut Facts| f.venues[0].positions_current = false, false)]
fn a_close_is_sent_only_when_it_can_neither_flip_nor_double(#[case] change: fn(&mut Facts), #[case] closes: bool) {
    let mut facts = proven();
    facts.venues[0].positions = Some(Ok(Positions { open: 1, items: vec![item("AAPL")], ..Positions::default() }));
    (facts.venues[0].flat_reads, facts.venues[0].suspended) = (0, Some(Ok(false)));
    change(&mut facts);
    let effects = effects(&spec(CancelOrders::All, PositionAction::CloseAll), &policy(true), &facts);
    assert_eq!(effects.iter().any(Effect::needs_intent), closes, "{effects:?}");
}

/// Where an earlier halt has suspended trading and the venue takes no closes then, it is allowed first, and only as long
/// as there is something to close and nothing runs that could trade.
#[rstest]
#[case::suspended(|_: &mut Facts| {}, "allow")]
#[case::not_suspended(|f: &mut Facts| f.venues[0].suspended = Some(Ok(false)), "close")]
#[case::a_pod_runs(|f: &mut Facts| f.pods = Ok(Pods { running: 1, overdue: None }), "")]
#[case::nothing_to_close(|f: &mut Facts| f.venues[0].positions = Some(Ok(Positions::default())), "")]
#[case::an_order_is_open(|f: &mut Facts| f.venues[0].orders = Some(Ok(Orders { to_cancel: 1, ..Orders::default() })), "")]
#[case::no_request_to_allow(|f: &mut Facts| f.venues[0].offers.allow = 0, "")]
#[case::suspension_does_not_block(|f: &mut Facts| f.venues[0].offers.suspend_blocks_closing = false, "close")]
#[case::nobody_says_and_it_was_suspended_before(|f: &mut Facts| { f.venues[0].suspended = None; f.venues[0].suspend_done = false; f.venues[0].suspended_elsewhere = true }, "allow")]
#[case::nobody_says_and_it_was_allowed_since(|f: &mut Facts| { f.venues[0].suspended = None; f.venues[0].allow_done = true; f.venues[0].suspended_elsewhere = true }, "close")]
#[case::nobody_says_and_nobody_suspended(|f: &mut Facts| { f.venues[0].suspended = None; f.venues[0].suspend_done = false }, "close")]
fn a_suspended_venue_is_opened_only_to_close(#[case] change: fn(&mut Facts), #[case] expected: &str) {
    let mut facts = proven();
    facts.venues[0].positions = Some(Ok(Positions { open: 1, items: vec![item("AAPL")], ..Positions::default() }));
    facts.venues[0].flat_reads = 0;
    change(&mut facts);
    let spec = spec(CancelOrders::All, PositionAction::CloseAll);
    let effects = effects(&spec, &policy(true), &facts);
    let done: Vec<_> = effects
        .iter()
        .filter_map(|e| match e {
            Effect::Allow(..) => Some("allow"),
            Effect::CloseAll(..) | Effect::CloseOne(..) => Some("close"),
            _ => None,
        })
        .collect();
    assert_eq!(done.concat(), expected, "{effects:?}");
    assert!(expected != "allow" || !effects.iter().any(|e| matches!(e, Effect::Suspend(..))), "{effects:?}");
    if facts.venues[0].offers.allow == 0 {
        let said = judge(&spec, &policy(true), &facts).conditions.iter().find(|v| v.0 == c::POSITIONS_CLOSED).cloned();
        assert!(said.as_ref().is_some_and(|v| v.2 == "CannotCloseNow" && v.3.contains("allowTrading")), "{said:?}");
    }
}

/// Closing that was begun under the policy is not forgotten when the policy changes.
#[test]
fn closing_that_was_begun_and_is_not_allowed_any_more_is_unknown() {
    let mut facts = proven();
    facts.venues[0].positions = Some(Ok(Positions { open: 1, items: vec![item("AAPL")], ..Positions::default() }));
    let spec = spec(CancelOrders::All, PositionAction::CloseAll);
    assert_eq!(judge(&spec, &policy(false), &facts).phase, HaltPhase::Halted, "nothing was begun");
    facts.venues[0].close_intended = true;
    let judgement = judge(&spec, &policy(false), &facts);
    let found = judgement.conditions.iter().find(|v| v.0 == c::POSITIONS_CLOSED).unwrap();
    assert_eq!((judgement.phase, found.1, found.2), (HaltPhase::Unverified, "Unknown", "NotAllowedAnyMore"));
}

#[test]
fn a_venue_that_was_asked_a_moment_ago_is_given_time_to_cancel() {
    let mut facts = proven();
    facts.venues[0].orders = Some(Ok(Orders { to_cancel: 2, ..Orders::default() }));
    let cancels = |facts: &Facts| {
        let effects = effects(&spec(CancelOrders::All, PositionAction::Keep), &policy(false), facts);
        effects.iter().any(|e| matches!(e, Effect::CancelAll(..)))
    };
    assert!(cancels(&facts));
    facts.venues[0].cancel_due = false;
    assert!(!cancels(&facts));
}

/// A halt that keeps positions does not suspend trading while another one of its system closes them.
#[rstest]
#[case(true, false)]
#[case(false, true)]
fn a_halt_does_not_suspend_where_another_one_closes(#[case] elsewhere: bool, #[case] suspends: bool) {
    let mut facts = proven();
    (facts.venues[0].suspended, facts.venues[0].closing_elsewhere) = (Some(Ok(false)), elsewhere);
    let effects = effects(&spec(CancelOrders::All, PositionAction::Keep), &policy(true), &facts);
    assert_eq!(effects.iter().any(|e| matches!(e, Effect::Suspend(..))), suspends, "{effects:?}");
}

/// Which cancels follow from what was read.
/// S4-10.
#[rstest]
#[case::none_asked(CancelOrders::None, Ok(2), true, false, &[])]
#[case::all_open(CancelOrders::All, Ok(2), true, false, &["all"])]
#[case::not_known(CancelOrders::All, Err(()), true, false, &["all"])]
#[case::zero_but_only_before_the_stop(CancelOrders::All, Ok(0), false, false, &["all"])]
#[case::zero_after_the_stop(CancelOrders::All, Ok(0), true, false, &[])]
#[case::one_by_one(CancelOrders::NonProtective, Ok(2), true, false, &["one", "one"])]
#[case::reappeared_while_closing(CancelOrders::All, Ok(1), true, true, &["one"])]
#[case::not_known_while_closing(CancelOrders::All, Err(()), true, true, &[])]
fn s4_10_cancels(
    #[case] cancel: CancelOrders,
    #[case] open: Result<usize, ()>,
    #[case] after_stop: bool,
    #[case] closing: bool,
    #[case] expected: &[&str],
) {
    let mut facts = proven();
    let venue = &mut facts.venues[0];
    venue.orders = Some(match open {
        Ok(n) => Ok(Orders {
            to_cancel: n,
            closing: usize::from(closing),
            items: (0..n).map(|i| item(&format!("S{i}"))).collect(),
            ..Orders::default()
        }),
        Err(()) => Err("timeout".into()),
    });
    (venue.cancelled_after_stop, venue.close_intended) = (after_stop, closing);
    let effects = effects(&spec(cancel, PositionAction::Keep), &policy(false), &facts);
    let found: Vec<_> = effects
        .iter()
        .filter_map(|e| match e {
            Effect::CancelAll(..) => Some("all"),
            Effect::CancelOne(..) => Some("one"),
            _ => None,
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_first_wave_looks_at_nothing_and_leaves_nothing_out() {
    let active = vec![ActiveWorkload { key: key(), size: Size::Replicas(3) }];
    let venues = [("alpaca".to_owned(), offers())];
    let wave = first_wave(&spec(CancelOrders::All, PositionAction::Keep), false, active, &venues, true);
    let expected = [
        Effect::CancelAll("alpaca".into(), 0),
        Effect::Suspend("alpaca".into(), 0),
        Effect::WriteLatch,
        Effect::ApplicationHalt,
        Effect::Stop(key(), Size::Replicas(3)),
    ];
    assert_eq!(wave, expected);
    // Where suspending would stop the closing, it comes after it.
    let wave = first_wave(&spec(CancelOrders::All, PositionAction::CloseAll), true, vec![], &venues, false);
    assert!(!wave.iter().any(|e| matches!(e, Effect::Suspend(..))), "{wave:?}");
    assert!(!wave.iter().any(Effect::needs_intent), "a close is never in the first wave");
}

fn known<T: Clone + std::fmt::Debug + 'static>(value: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Known<T>> {
    prop_oneof![3 => value.prop_map(Ok), 1 => Just(Err("not known".to_owned()))].boxed()
}

prop_compose! {
    fn any_venue()(
        orders in proptest::option::weighted(0.9, known((0..3_usize, 0..2_usize, 0..2_usize))),
        positions in proptest::option::weighted(0.9, known(0..3_usize)),
        suspended in proptest::option::of(known(any::<bool>())),
        counts in (0..5_u32, 0..5_u32, 0..5_u32),
        flags in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        jobs in (proptest::bool::weighted(0.2), proptest::bool::weighted(0.2)),
        reads in (any::<bool>(), any::<bool>(), proptest::bool::weighted(0.1)),
        others in (any::<bool>(), any::<bool>(), any::<bool>()),
        removed in proptest::bool::weighted(0.1),
    ) -> VenueFacts {
        let orders = orders.map(|o| o.map(|(to_cancel, kept, closing)| Orders {
            to_cancel, kept, closing, items: (0..to_cancel).map(|n| item(&format!("S{n}"))).collect(),
        }));
        let positions = positions.map(|p| p.map(|open| Positions { open, items: (0..open).map(|n| item(&format!("S{n}"))).collect(), ..Positions::default() }));
        VenueFacts {
            name: "v".into(),
            offers: Offers { removed, ..offers() },
            orders, positions, suspended,
            suspended_elsewhere: others.0, allow_done: others.1, closing_elsewhere: others.2,
            clean_reads: counts.0, stable_reads: counts.1, flat_reads: counts.2,
            cancelled_after_stop: flags.0, suspend_done: flags.1, close_intended: flags.2,
            close_hindrance: flags.3.then(|| "closed".to_owned()),
            orders_awaited: jobs.0, positions_awaited: jobs.1,
            positions_current: reads.0, cancel_due: reads.1, cancel_removed: reads.2,
            ..VenueFacts::default()
        }
    }
}

prop_compose! {
    fn any_facts()(
        elapsed in 0..200_u64,
        system in known(Just(())),
        missing in proptest::bool::weighted(0.1),
        active in any::<bool>(),
        jobs in known(0..2_usize),
        pods in known((0..2_usize, any::<bool>())),
        latch_written in known(any::<bool>()),
        venues in proptest::collection::vec(any_venue(), 0..3),
    ) -> Facts {
        Facts {
            elapsed: Duration::from_secs(elapsed),
            stopped_for: Duration::from_secs(elapsed),
            closing_for: Some(Duration::from_secs(elapsed)),
            system,
            missing: missing.then(|| "missing".to_owned()).into_iter().collect(),
            active: active.then(|| ActiveWorkload { key: key(), size: Size::Replicas(1) }).into_iter().collect(),
            jobs: jobs.map(|n| (0..n).map(|n| n.to_string()).collect()),
            pods: pods.map(|(running, late)| Pods { running, overdue: (running > 0 && late).then(|| "late".to_owned()) }),
            latch_written,
            latch: LatchFact::Proven,
            venues,
            application_retry: false,
        approved: Approved::NotAsked,
        }
    }
}

fn any_spec() -> impl Strategy<Value = TradingHaltSpec> {
    let cancel = prop_oneof![Just(CancelOrders::All), Just(CancelOrders::NonProtective), Just(CancelOrders::None)];
    let action = prop_oneof![Just(PositionAction::Keep), Just(PositionAction::CloseAll)];
    (cancel, action).prop_map(|(cancel, action)| spec(cancel, action))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn halted_means_what_it_says(spec in any_spec(), closing in any::<bool>(), facts in any_facts()) {
        let judgement = judge(&spec, &policy(closing), &facts);
        prop_assert_eq!(judgement.phase == HaltPhase::Halted, judgement.status(c::HALTED) == "True");
        if judgement.phase == HaltPhase::Halted {
            prop_assert!(facts.stopped() && facts.missing.is_empty() && facts.system.is_ok());
            for venue in &facts.venues {
                if spec.orders.cancel != CancelOrders::None {
                    prop_assert!(matches!(&venue.orders, Some(Ok(o)) if o.to_cancel == 0));
                    prop_assert!(venue.clean_reads >= 3);
                }
                if closing && spec.positions.action == PositionAction::CloseAll {
                    prop_assert!(matches!(&venue.positions, Some(Ok(p)) if p.open == 0));
                }
            }
        }
    }

    #[test]
    fn nothing_irreversible_happens_on_doubt(spec in any_spec(), closing in any::<bool>(), facts in any_facts()) {
        for effect in effects(&spec, &policy(closing), &facts) {
            match effect {
                Effect::CloseAll(..) | Effect::CloseOne(..) | Effect::Allow(..) => {
                    prop_assert!(closing && spec.positions.action == PositionAction::CloseAll && facts.stopped());
                }
                Effect::CancelAll(..) | Effect::CancelOne(..) => prop_assert!(spec.orders.cancel != CancelOrders::None),
                Effect::CancelListed(_) => prop_assert!(false, "only the first wave lists by itself"),
                _ => {}
            }
        }
    }

    #[test]
    fn the_same_facts_give_the_same_answer(spec in any_spec(), closing in any::<bool>(), facts in any_facts()) {
        prop_assert_eq!(judge(&spec, &policy(closing), &facts), judge(&spec, &policy(closing), &facts));
        prop_assert_eq!(effects(&spec, &policy(closing), &facts), effects(&spec, &policy(closing), &facts));
    }
}
