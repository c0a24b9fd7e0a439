//! Closing positions: whether it is allowed, when it may begin, what is sent, and what may be said of it. Pure.

use standfast_crds::v1alpha1::{
    CloseState, HaltPolicy, PositionAction, PositionSelection, TradingHaltSpec, TradingHaltStatus, halt_conditions as c,
};

use super::{
    approvals::Approved,
    decide::{Effect, Facts, ITEMS_PER_TICK, SYSTEM_UNREADABLE, VenueFacts, Verdict},
    selection::{self, Account},
};

/// Reason of `PositionsClosed` when what was selected is closed.
pub const SELECTION_CLOSED: &str = "SelectionClosed";
/// Reason of `PositionsClosed` when some positions could not be judged, and were kept.
pub const NOT_JUDGED: &str = "NotJudged";
/// Reason of `PositionsClosed` when the halt may not do what it asks for.
pub const NOT_ALLOWED: &str = "NotAllowed";
/// Reason of `PositionsClosed` when a venue does not declare what selecting needs.
pub const SELECTION_NOT_POSSIBLE: &str = "SelectionNotPossible";

/// What lets a halt do something to positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedBy {
    /// `haltPolicy.allowedPositionActions` of the TradingSystem.
    Policy,
    /// People, each by an Approval.
    Approvals,
}

/// Whether a halt may do to positions what it asks for, and by what. `None` also where it asks for nothing. Everything
/// that closes positions asks here and nowhere else.
pub fn allowed(spec: &TradingHaltSpec, policy: &HaltPolicy, approved: bool) -> Option<AllowedBy> {
    let action = spec.positions.action;
    match action {
        PositionAction::Keep => None,
        _ if policy.allowed_position_actions.contains(&action) => Some(AllowedBy::Policy),
        _ => approved.then_some(AllowedBy::Approvals),
    }
}

/// Whether a verdict means that positions are kept for good, and a person decides what becomes of them.
pub fn keeps(verdict: &Verdict) -> bool {
    verdict.2 == NOT_ALLOWED || verdict.2 == NOT_JUDGED
}

/// Whether a halt has done with positions all that it ever will by itself, as far as its status tells.
pub fn finished(status: &TradingHaltStatus) -> bool {
    let said = status.conditions.iter().find(|x| x.type_ == c::POSITIONS_CLOSED);
    said.is_some_and(|x| x.status == "True" || [NOT_JUDGED, SELECTION_NOT_POSSIBLE].contains(&x.reason.as_str()))
}

/// Adds the closes, and tells whether closing is still under way at this venue.
pub(super) fn closes(
    spec: &TradingHaltSpec,
    policy: &HaltPolicy,
    venue: &VenueFacts,
    facts: &Facts,
    effects: &mut Vec<Effect>,
) -> bool {
    if allowed(spec, policy, facts.approved.granted()).is_none() {
        return false;
    }
    if spec.positions.action.selects() {
        return close_selected(spec, policy, venue, facts, effects);
    }
    let Some(Ok(positions)) = &venue.positions else { return true };
    if positions.open == 0 {
        return venue.flat_reads < policy.verify_reads;
    }
    let due = if venue.close_intended {
        venue.stable_reads >= policy.verify_reads
    } else {
        venue.clean_reads >= 1 && venue.positions_current
    };
    if due && may_close(venue, facts) {
        if must_allow(venue) {
            allow(venue, effects);
        } else if venue.offers.close_all > 0 {
            effects.extend((0..venue.offers.close_all).map(|n| Effect::CloseAll(venue.name.clone(), n)));
        } else if venue.offers.close_one {
            let items = positions.items.iter().take(ITEMS_PER_TICK).cloned();
            effects.extend(items.map(|i| Effect::CloseOne(venue.name.clone(), i)));
        }
    }
    true
}

/// The same where only some are closed: they are selected once, then that is carried out.
fn close_selected(
    spec: &TradingHaltSpec,
    policy: &HaltPolicy,
    venue: &VenueFacts,
    facts: &Facts,
    effects: &mut Vec<Effect>,
) -> bool {
    if venue.selection_lacks.is_some() {
        return false;
    }
    if !matches!(venue.positions, Some(Ok(_))) {
        return true;
    }
    let stable = venue.stable_reads >= policy.verify_reads;
    let name = || venue.name.clone();
    if let Some(selection) = &venue.selection {
        let items = selection::due(selection, stable && settled(venue), &venue.lost);
        // One that was never sent holds nothing, but orders of the bot might be back.
        let cancelled = venue.clean_reads >= 1 && venue.positions_current;
        if !items.is_empty() && cancelled && may_close_beside(venue, facts) {
            if must_allow(venue) {
                allow(venue, effects);
            } else {
                effects.extend(items.into_iter().take(ITEMS_PER_TICK).map(|i| Effect::CloseOne(name(), i)));
            }
        }
        return !closed(selection);
    }
    // Another halt's closes may still change what is held.
    let due = venue.clean_reads >= policy.verify_reads && venue.positions_current && (!venue.close_intended || stable);
    let unhindered = facts.stopped() && settled(venue) && !venue.closing_elsewhere;
    let Some(Ok(selection)) = (due && unhindered).then(|| select(spec, venue)) else { return true };
    let items = selection::due(&selection, false, &[]);
    if items.is_empty() {
        effects.push(Effect::Select(name(), Box::new(selection)));
    } else if venue.close_hindrance.is_some() {
        // Selected when it can be carried out: until then what is held changes its worth.
    } else if must_allow(venue) {
        allow(venue, effects);
    } else {
        effects.push(Effect::Select(name(), Box::new(selection)));
        effects.extend(items.into_iter().take(ITEMS_PER_TICK).map(|i| Effect::CloseOne(name(), i)));
    }
    true
}

/// Orders hold the quantity that is to be closed: none may be open, neither the bot's nor one of our own closes.
fn settled(venue: &VenueFacts) -> bool {
    matches!(&venue.orders, Some(Ok(o)) if o.to_cancel == 0 && o.closing == 0)
}

fn may_close(venue: &VenueFacts, facts: &Facts) -> bool {
    settled(venue) && may_close_beside(venue, facts)
}

/// The same while orders of our own closing are open, in other symbols.
fn may_close_beside(venue: &VenueFacts, facts: &Facts) -> bool {
    let cancelled = matches!(&venue.orders, Some(Ok(o)) if o.to_cancel == 0);
    facts.stopped() && cancelled && venue.close_hindrance.is_none() && !venue.closing_elsewhere
}

/// Whether trading is suspended at a venue that takes no closes then.
fn must_allow(venue: &VenueFacts) -> bool {
    let suspended = match &venue.suspended {
        Some(Ok(suspended)) => *suspended,
        // Nobody says: what was asked for is taken for done.
        Some(Err(_)) | None => !venue.allow_done && (venue.suspend_done || venue.suspended_elsewhere),
    };
    venue.offers.suspend_blocks_closing && suspended
}

/// Closed in a later tick, when the venue says that it takes orders.
fn allow(venue: &VenueFacts, effects: &mut Vec<Effect>) {
    effects.extend((0..venue.offers.allow).map(|n| Effect::Allow(venue.name.clone(), n)));
}

fn select(spec: &TradingHaltSpec, venue: &VenueFacts) -> Result<PositionSelection, String> {
    let Some(Ok(positions)) = &venue.positions else { return Err("the positions are not known".into()) };
    if positions.held.len() != positions.open {
        return Err("the venue counts positions and does not list them".into());
    }
    let equity = match &venue.equity {
        Some(Ok(equity)) => Ok(equity.as_str()),
        Some(Err(why)) => Err(why.as_str()),
        None => Err("the venue's equity is not known"),
    };
    let step = venue.quantity_step.as_deref();
    selection::select(&spec.positions, &Account { positions: &positions.held, equity, step, as_of: venue.as_of })
}

/// Whether all that was selected is closed.
fn closed(selection: &PositionSelection) -> bool {
    selection.closes.iter().all(|item| item.state == CloseState::Closed)
}

/// What may be said of the positions.
pub(super) fn verdict(spec: &TradingHaltSpec, policy: &HaltPolicy, facts: &Facts) -> Verdict {
    let verdict = |status, reason, message| (c::POSITIONS_CLOSED, status, reason, message);
    let action = spec.positions.action;
    if action == PositionAction::Keep {
        return verdict("True", "NotRequested", "positions are kept, as the halt asks".into());
    }
    // Whether closing is allowed is not known either.
    if let Err(why) = &facts.system {
        return verdict("Unknown", SYSTEM_UNREADABLE, why.clone());
    }
    let name = action.as_str();
    if allowed(spec, policy, facts.approved.granted()).is_none() {
        if let Some(venue) = facts.venues.iter().find(|v| v.close_intended) {
            let message = format!(
                "venue {}: closing was begun, and {name} was taken from haltPolicy.allowedPositionActions since",
                venue.name
            );
            return verdict("Unknown", "NotAllowedAnyMore", message);
        }
        let by = match &facts.approved {
            Approved::Wanting(why) => format!(", and {why}"),
            _ => String::new(),
        };
        let list = "the TradingSystem's haltPolicy.allowedPositionActions";
        return verdict("False", NOT_ALLOWED, format!("positions were kept: {name} is not among {list}{by}"));
    }
    if facts.venues.is_empty() {
        let message = "the TradingSystem names no venue: whether positions are open is not known";
        return verdict("Unknown", "NoVenues", message.into());
    }
    for venue in &facts.venues {
        if let (true, Some(lacks)) = (action.selects(), &venue.selection_lacks) {
            let message = format!("venue {} lacks {lacks}: what {name} is to close cannot be told", venue.name);
            return verdict("Unknown", SELECTION_NOT_POSSIBLE, message);
        }
        match &venue.positions {
            Some(Ok(_)) => {}
            Some(Err(why)) if venue.positions_awaited => {
                return verdict("False", "Closing", format!("venue {}: {why}", venue.name));
            }
            Some(Err(why)) => return verdict("Unknown", "PositionsNotRead", format!("venue {}: {why}", venue.name)),
            None => {
                let message = format!("venue {} has no openPositions: whether it is flat is not known", venue.name);
                return verdict("Unknown", "PositionsNotReadable", message);
            }
        }
        if venue.offers.close_all == 0 && !venue.offers.close_one {
            let message = format!("venue {} has neither closePositions nor closePosition", venue.name);
            return verdict("Unknown", "CloseNotPossible", message);
        }
    }
    if action.selects() { selected(spec, policy, facts) } else { flat(policy, facts) }
}

/// Why what is open at a venue cannot be closed now.
fn hindrance(venue: &VenueFacts) -> Option<String> {
    venue.close_hindrance.clone().or_else(|| {
        (must_allow(venue) && venue.offers.allow == 0).then(|| {
            format!("venue {} takes no closes while trading is suspended, and has no allowTrading", venue.name)
        })
    })
}

fn flat(policy: &HaltPolicy, facts: &Facts) -> Verdict {
    let verdict = |status, reason, message| (c::POSITIONS_CLOSED, status, reason, message);
    let open_at = |venue: &VenueFacts| matches!(&venue.positions, Some(Ok(p)) if p.open > 0);
    let open = facts.venues.iter().filter_map(|v| v.positions.as_ref()?.as_ref().ok()).map(|p| p.open).sum::<usize>();
    let flat = facts.venues.iter().all(|v| v.flat_reads >= policy.verify_reads);
    if open == 0 && flat {
        return verdict("True", "Flat", format!("{} reads in a row found no position", policy.verify_reads));
    }
    let left = format!("{open} positions are open");
    if let Some(why) = facts.venues.iter().filter(|v| open_at(v)).find_map(hindrance) {
        return verdict("False", "CannotCloseNow", format!("{left}: {why}"));
    }
    if open > 0 && facts.closing_for.is_some_and(|d| d > policy.close_deadline.get()) {
        return verdict("False", "DeadlinePassed", format!("{left} after {}; closing goes on", policy.close_deadline));
    }
    verdict("False", "Closing", left)
}

fn selected(spec: &TradingHaltSpec, policy: &HaltPolicy, facts: &Facts) -> Verdict {
    let verdict = |status, reason, message| (c::POSITIONS_CLOSED, status, reason, message);
    let (mut left, mut unjudged, mut done) = (vec![], vec![], vec![]);
    let (mut hindered, mut late, mut waits) = (None, false, None);
    for venue in &facts.venues {
        let at = |what: &str| format!("{} {what}", venue.name);
        let Some(selection) = &venue.selection else {
            match select(spec, venue) {
                Err(why) if venue.equity_awaited => waits = Some(at(&format!("is not known yet: {why}"))),
                Err(why) => return verdict("Unknown", "PositionsNotJudged", format!("venue {}: {why}", venue.name)),
                Ok(selection) => {
                    waits = waits.or(Some(at("is selected when no order is open any more")));
                    if !selection.closes.is_empty() {
                        hindered = hindered.or(hindrance(venue));
                    }
                    left.extend(selection.closes.iter().map(|c| at(&c.symbol)));
                }
            }
            continue;
        };
        if let Some(lost) = venue.lost.first() {
            let message = format!("venue {}: {} cannot be followed any more: {}", venue.name, lost.symbol, lost.why);
            return verdict("Unknown", "PositionChanged", message);
        }
        if !closed(selection) {
            let open = selection.closes.iter().filter(|item| item.state != CloseState::Closed);
            left.extend(open.map(|item| at(&item.symbol)));
            hindered = hindered.or(hindrance(venue));
            let age = venue.as_of.duration_since(selection.evaluated_at.0);
            late |= !age.is_negative() && age.unsigned_abs() > policy.close_deadline.get();
        }
        done.push(at(&selection::describe(selection)));
        unjudged.extend(selection::describe_unjudged(selection).map(|what| at(&what)));
    }
    let open = format!("{} positions are to be closed: {}", left.len(), left.join(", "));
    match (left.is_empty(), hindered, waits) {
        (false, Some(why), _) => verdict("False", "CannotCloseNow", format!("{why}; {open}")),
        (false, None, _) if late => {
            let message = format!("after {} {open}; closing goes on", policy.close_deadline);
            verdict("False", "DeadlinePassed", message)
        }
        (false, None, _) => verdict("False", "Closing", open),
        (true, _, Some(waits)) => verdict("False", "Closing", format!("what is to be closed at {waits}")),
        (true, _, None) if !unjudged.is_empty() => {
            let message = format!("positions were kept that could not be judged: {}", unjudged.join("; "));
            verdict("False", NOT_JUDGED, message)
        }
        (true, _, None) => verdict("True", SELECTION_CLOSED, format!("closed as selected: {}", done.join("; "))),
    }
}

#[cfg(test)]
#[path = "closing_tests.rs"]
mod tests;
