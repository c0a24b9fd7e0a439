//! Which positions a halt closes when it does not close all: selected once, then followed until they are closed. Pure.

use std::cmp::Reverse;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use rust_decimal::Decimal;
use sha2::{Digest, Sha256};
use standfast_crds::v1alpha1::{
    CloseMatching, CloseState, HaltPositions, PositionAction, PositionSelection, PositionSide, PositionSummary,
    ReduceTo, ReductionOrder, SelectedPosition, UnjudgedPosition, Venue, shorten,
};

use crate::calls::{
    Item,
    number::{exact, text},
    template,
};

/// Positions of one venue that can be selected at most: the status has to hold them.
pub const LIMIT: usize = 500;
/// Positions that are listed as not judged, of one venue.
const UNJUDGED: usize = 100;
/// How far a venue's clock may be ahead of ours, in seconds.
const AHEAD: i64 = 300;

/// A venue's account, as it was read.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// All of its positions.
    pub positions: &'a [PositionSummary],
    /// What it is worth; an error when that is not known.
    pub equity: Result<&'a str, &'a str>,
    /// The smallest step of a quantity, if parts of a position can be closed.
    pub step: Option<&'a str>,
    /// When the positions were read.
    pub as_of: Timestamp,
}

/// A position with what is certain of it.
struct Held<'a> {
    summary: &'a PositionSummary,
    symbol: &'a str,
    side: PositionSide,
    /// Without a sign.
    quantity: Decimal,
}

/// What is said of one position.
enum Judged {
    Yes(String),
    No,
    /// It is not known: why.
    Unknown(String),
}

/// Selects what the halt asks for. An error says why nothing can be selected.
pub fn select(asked: &HaltPositions, account: &Account<'_>) -> Result<PositionSelection, String> {
    let mut selection = PositionSelection {
        evaluated_at: MicroTime(account.as_of),
        equity: None,
        exposure: None,
        closes: vec![],
        not_judged: vec![],
        not_judged_more: 0,
    };
    let held = certain(account.positions, &mut selection);
    match (&asked.close_matching, &asked.reduce_to) {
        (Some(asked), _) => matching(asked, &held, account.as_of, &mut selection)?,
        (None, Some(asked)) => reduce(asked, &held, account, &mut selection)?,
        (None, None) => return Err("the halt does not say which positions are to be closed".into()),
    }
    if selection.closes.len() > LIMIT {
        return Err(format!(
            "{} positions would be selected, and a halt can hold {LIMIT}: create a halt with CloseAll",
            selection.closes.len()
        ));
    }
    Ok(selection)
}

/// Those of which symbol, side and quantity are certain; the others are listed as not judged.
fn certain<'a>(positions: &'a [PositionSummary], selection: &mut PositionSelection) -> Vec<Held<'a>> {
    let mut certain: Vec<Held<'a>> = vec![];
    let same = |a: &PositionSummary, b: &PositionSummary| a.symbol == b.symbol && a.side == b.side;
    for summary in positions {
        let quantity = summary.quantity.as_deref().and_then(exact).map(|q| q.abs());
        let why = match (&summary.symbol, summary.side, quantity) {
            (None, ..) => "it has no symbol",
            (_, _, None) => "its quantity is not a number",
            (_, None, _) => "whether it is long or short is not known",
            _ if positions.iter().filter(|p| same(p, summary)).count() > 1 => "it is listed more than once",
            (Some(symbol), Some(side), Some(quantity)) => {
                certain.push(Held { summary, symbol, side, quantity });
                continue;
            }
        };
        unjudged(selection, summary, why.into());
    }
    certain
}

fn unjudged(selection: &mut PositionSelection, summary: &PositionSummary, why: String) {
    if selection.not_judged.len() >= UNJUDGED {
        selection.not_judged_more += 1;
        return;
    }
    selection.not_judged.push(UnjudgedPosition {
        symbol: summary.symbol.clone().unwrap_or_else(|| "?".into()),
        quantity: summary.quantity.clone(),
        why: shorten(&why),
    });
}

fn close(held: &Held<'_>, quantity: Decimal, why: &str) -> SelectedPosition {
    SelectedPosition {
        symbol: held.symbol.into(),
        side: held.side,
        held: text(held.quantity),
        quantity: text(quantity),
        why: shorten(why),
        state: CloseState::Selected,
        attempts: 0,
        closed: None,
        still_held: None,
    }
}

fn matching(
    asked: &CloseMatching,
    held: &[Held<'_>],
    as_of: Timestamp,
    selection: &mut PositionSelection,
) -> Result<(), String> {
    let limit = match &asked.unrealized_loss_below_percent {
        Some(percent) => Some(exact(percent).ok_or_else(|| format!("{percent:?} is not a percentage"))?),
        None => None,
    };
    for position in held {
        let loss = limit.map(|limit| losing(position.summary, limit));
        let age = asked.held_longer_than.map(|limit| old(position.summary, limit, as_of));
        let (mut reasons, mut unknown, mut no) = (vec![], vec![], false);
        for judged in loss.into_iter().chain(age) {
            match judged {
                Judged::Yes(why) => reasons.push(why),
                Judged::Unknown(why) => unknown.push(why),
                Judged::No => no = true,
            }
        }
        match (no, unknown.is_empty()) {
            // One that does not hold is enough: what the other would say does not matter.
            (true, _) => {}
            (false, false) => unjudged(selection, position.summary, unknown.join(", ")),
            (false, true) => selection.closes.push(close(position, position.quantity, &reasons.join(", "))),
        }
    }
    Ok(())
}

fn losing(position: &PositionSummary, limit: Decimal) -> Judged {
    match position.unrealized_loss_percent.as_deref().and_then(exact) {
        Some(loss) if loss > limit => Judged::Yes(format!("loses {} %, more than {} %", text(loss), text(limit))),
        Some(_) => Judged::No,
        None => Judged::Unknown("its unrealized loss is not known".into()),
    }
}

fn old(position: &PositionSummary, limit: standfast_crds::v1alpha1::Duration, as_of: Timestamp) -> Judged {
    let Some(opened) = &position.opened_at else { return Judged::Unknown("its age is not known".into()) };
    let age = as_of.duration_since(opened.0);
    if age.as_secs() < -AHEAD {
        return Judged::Unknown(format!("it says that it was opened in the future, at {}", opened.0));
    }
    if !age.is_negative() && age.unsigned_abs() > limit.get() {
        return Judged::Yes(format!("held since {:.0}, longer than {limit}", opened.0));
    }
    Judged::No
}

fn reduce(
    asked: &ReduceTo,
    held: &[Held<'_>],
    account: &Account<'_>,
    selection: &mut PositionSelection,
) -> Result<(), String> {
    let large = || "the numbers are too large to calculate with".to_owned();
    let mut valued: Vec<(Decimal, &Held<'_>)> = vec![];
    for position in held {
        match position.summary.market_value.as_deref().and_then(exact) {
            Some(value) => valued.push((value.abs(), position)),
            None => unjudged(selection, position.summary, "what it is worth is not known".into()),
        }
    }
    // What cannot be closed counts too.
    let values = account.positions.iter().filter_map(|p| p.market_value.as_deref().and_then(exact));
    let exposure = values.map(|v| v.abs()).try_fold(Decimal::ZERO, |sum, v| sum.checked_add(v)).ok_or_else(large)?;
    selection.exposure = Some(text(exposure));
    if account.positions.is_empty() {
        return Ok(());
    }
    let equity = account.equity.map_err(str::to_owned)?;
    selection.equity = Some(equity.into());
    let equity = exact(equity).filter(|equity| *equity > Decimal::ZERO).ok_or_else(|| {
        format!("the equity is {equity}: no share of it can be held; create a halt with CloseAll to close everything")
    })?;
    let percent =
        exact(&asked.exposure_percent).ok_or_else(|| format!("{:?} is not a percentage", asked.exposure_percent))?;
    let step = match account.step {
        Some(step) => Some(
            exact(step)
                .filter(|step| *step > Decimal::ZERO)
                .ok_or_else(|| format!("quantityStep is {step:?}, which is not a positive number"))?,
        ),
        None => None,
    };
    let target = equity.checked_mul(percent).ok_or_else(large)? / Decimal::ONE_HUNDRED;
    match asked.order {
        ReductionOrder::LargestFirst => valued.sort_by_key(|(value, held)| (Reverse(*value), held.symbol, held.side)),
    }
    let mut left = exposure;
    for (value, position) in valued {
        if left <= target || value.is_zero() {
            break;
        }
        let quantity = enough(position.quantity, value, left - target, step).ok_or_else(large)?;
        let why =
            format!("worth {}, the largest first: exposure {} is above {}", text(value), text(exposure), text(target));
        selection.closes.push(close(position, quantity, &why));
        if quantity < position.quantity {
            break;
        }
        left -= value;
    }
    Ok(())
}

/// How much of a position has to be closed so that at least `wanted` of its value is gone, in whole steps; all of it
/// where it has no parts or they do not suffice. `None` when the numbers are too large.
fn enough(held: Decimal, value: Decimal, wanted: Decimal, step: Option<Decimal>) -> Option<Decimal> {
    let Some(step) = step.filter(|_| wanted < value) else { return Some(held) };
    let exactly = wanted.checked_mul(held)?.checked_div(value)?;
    let mut quantity = exactly.checked_div(step)?.ceil().checked_mul(step)?;
    // The divisions may have been rounded, either way.
    let suffices = |quantity: Decimal| Some(quantity.checked_mul(value)? >= wanted.checked_mul(held)?);
    if !suffices(quantity)? {
        quantity = quantity.checked_add(step)?;
    } else if quantity > step && suffices(quantity - step)? {
        quantity -= step;
    }
    Some(quantity.min(held))
}

/// A selected position that cannot be followed any more. It is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its symbol.
    pub symbol: String,
    /// Which way it went.
    pub side: PositionSide,
    /// Why.
    pub why: String,
}

/// The selection, brought up to date with positions that were read; and those of it that cannot be followed any more.
/// `settled` says that what was read did not change for long enough, with no order of our own closing open.
pub fn follow(
    selection: &PositionSelection,
    positions: &[PositionSummary],
    settled: bool,
) -> (PositionSelection, Vec<Lost>) {
    let mut followed = selection.clone();
    let mut lost = vec![];
    for item in followed.closes.iter_mut().filter(|item| item.state != CloseState::Closed) {
        match still_held(item, positions) {
            Ok(now) => {
                let before = exact(item.still_held.as_deref().unwrap_or(&item.held)).unwrap_or(now);
                if now < before {
                    let closed = item.closed.as_deref().and_then(exact).unwrap_or_default();
                    item.closed = Some(text(closed.saturating_add(before - now)));
                }
                item.still_held = Some(text(now));
                if settled && left_of(item).is_zero() {
                    item.state = CloseState::Closed;
                }
            }
            Err(why) => lost.push(Lost { symbol: item.symbol.clone(), side: item.side, why }),
        }
    }
    (followed, lost)
}

/// How much of a selected position is there.
fn still_held(item: &SelectedPosition, positions: &[PositionSummary]) -> Result<Decimal, String> {
    let held = exact(&item.held).ok_or("its recorded quantity is not a number")?;
    let mut now = Decimal::ZERO;
    for position in positions.iter().filter(|p| p.symbol.as_deref() == Some(item.symbol.as_str())) {
        match (position.side, position.quantity.as_deref().and_then(exact)) {
            (Some(side), Some(quantity)) if side == item.side => now = now.saturating_add(quantity.abs()),
            // The other way round: nothing is left of what was selected.
            (Some(_), Some(_)) => {}
            _ => return Err("its quantity or side is not known any more".into()),
        }
    }
    if now > held {
        return Err(format!("it grew from {} to {}: somebody trades it", text(held), text(now)));
    }
    Ok(now)
}

/// How much of a selected position is still to be closed.
fn left_of(item: &SelectedPosition) -> Decimal {
    let number = |text: &str| exact(text).unwrap_or_default();
    (number(&item.quantity) - item.closed.as_deref().map_or(Decimal::ZERO, number)).max(Decimal::ZERO)
}

/// What is to be sent now: what was never sent and, when nothing has moved for long enough, what was and is not closed.
/// Those in `lost` are left alone.
pub fn due(selection: &PositionSelection, settled: bool, lost: &[Lost]) -> Vec<Item> {
    let sent = |item: &SelectedPosition| item.state == CloseState::Closing;
    let waits = |item: &&SelectedPosition| item.state != CloseState::Closed && (settled || !sent(item));
    let known = |item: &&SelectedPosition| !lost.iter().any(|l| (&l.symbol, l.side) == (&item.symbol, item.side));
    let left = selection.closes.iter().filter(waits).filter(known).filter(|item| !left_of(item).is_zero());
    left.map(|item| Item {
        id: item.symbol.clone(),
        symbol: item.symbol.clone(),
        quantity: text(left_of(item)),
        side: closing_side(item.side).into(),
        client_order_id: String::new(),
    })
    .collect()
}

/// Which way an order goes that closes a position.
pub fn closing_side(side: PositionSide) -> &'static str {
    match side {
        PositionSide::Long => "sell",
        PositionSide::Short => "buy",
    }
}

/// Takes note that a close is going to be sent.
pub fn attempt(selection: &mut PositionSelection, item: &Item) {
    if let Some(item) = find(selection, item) {
        item.attempts += 1;
        item.state = CloseState::Closing;
    }
}

/// How often a close of this position was recorded.
pub fn attempts(selection: &PositionSelection, item: &Item) -> i64 {
    let found = selection.closes.iter().find(|s| s.symbol == item.symbol && closing_side(s.side) == item.side);
    found.map_or(0, |s| s.attempts)
}

fn find<'a>(selection: &'a mut PositionSelection, item: &Item) -> Option<&'a mut SelectedPosition> {
    selection.closes.iter_mut().find(|s| s.symbol == item.symbol && closing_side(s.side) == item.side)
}

/// Symbols in which an open order may be one of our own closes.
pub fn closing_symbols(selection: &PositionSelection) -> Vec<String> {
    let closing = selection.closes.iter().filter(|item| item.state == CloseState::Closing);
    closing.map(|item| item.symbol.clone()).collect()
}

const PREFIX: &str = "sf-";

/// The id of an order that closes a position: at most 36 characters that every venue takes, the same for the same
/// attempt of the same halt, and never given twice.
pub fn client_order_id(halt_uid: &str, venue: &str, item: &Item, attempt: i64) -> String {
    let digest = Sha256::digest(format!("{halt_uid}/{venue}/{}/{}", item.symbol, item.side));
    let digest: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    let uid: String = halt_uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    format!("{PREFIX}{uid}-{digest}-{attempt}")
}

/// Whether an order was sent by a halt, to close a position.
pub fn is_ours(client_order_id: &str) -> bool {
    let Some(parts) = client_order_id.strip_prefix(PREFIX) else { return false };
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(*parts.split('-').collect::<Vec<_>>(), [uid, digest, attempt]
        if hex(uid, 8) && hex(digest, 12) && attempt.parse::<u32>().is_ok())
}

/// What a venue does not declare and the halt needs to select and close positions there, in words.
pub fn lacks(venue: &Venue, asked: &HaltPositions) -> Option<String> {
    let reads = &venue.open_positions;
    let fields =
        |declared: fn(&standfast_crds::v1alpha1::PositionFields) -> bool| reads.iter().all(|r| declared(&r.fields));
    let matching = asked.close_matching.as_ref();
    let reduces = asked.action == PositionAction::ReduceTo;
    let close = venue.close_position.as_ref().map(|a| &a.http);
    let names_quantity = close.is_some_and(|http| template::uses(http, "{quantity}"));
    let needs = [
        (close.is_none(), "closePosition"),
        (reads.is_empty(), "openPositions"),
        (reads.iter().any(|r| r.count.is_some()), "openPositions that list them (count only counts)"),
        (
            matching.is_some_and(|m| m.unrealized_loss_below_percent.is_some())
                && !fields(|f| f.unrealized_loss.is_some()),
            "openPositions.fields.unrealizedLoss",
        ),
        (
            matching.is_some_and(|m| m.held_longer_than.is_some()) && !fields(|f| f.opened_at.is_some()),
            "openPositions.fields.openedAt",
        ),
        (reduces && venue.equity.is_none(), "equity"),
        (
            reduces && venue.quantity_step.is_some() && close.is_some() && !names_quantity,
            "{quantity} in closePosition, which quantityStep is for",
        ),
    ];
    let lacking: Vec<_> = needs.into_iter().filter(|(lacks, _)| *lacks).map(|(_, what)| what).collect();
    (!lacking.is_empty()).then(|| lacking.join(" and "))
}

/// What a venue does not declare and this action always needs; it may need more, as its halt says.
pub fn unprepared(venue: &Venue, action: PositionAction) -> Option<String> {
    let by = |close_matching| HaltPositions { action, close_matching: Some(close_matching), reduce_to: None };
    match action {
        PositionAction::Keep | PositionAction::CloseAll => None,
        PositionAction::ReduceTo => lacks(venue, &HaltPositions::of(action)),
        PositionAction::CloseMatching => {
            let age = Some(standfast_crds::v1alpha1::Duration::from_secs(1));
            let loss = CloseMatching { unrealized_loss_below_percent: Some("0".into()), held_longer_than: None };
            let age = lacks(venue, &by(CloseMatching { unrealized_loss_below_percent: None, held_longer_than: age }))?;
            let loss = lacks(venue, &by(loss))?;
            let both = loss.ends_with("unrealizedLoss") && age.ends_with("openedAt");
            Some(if both { format!("{loss} or openedAt") } else { loss })
        }
    }
}

/// What was selected, in words.
pub fn describe(selection: &PositionSelection) -> String {
    let close = |c: &SelectedPosition| match c.quantity == c.held {
        true => format!("{} {}", c.symbol, c.quantity),
        false => format!("{} {} of {}", c.symbol, c.quantity, c.held),
    };
    let closes: Vec<_> = selection.closes.iter().map(close).collect();
    let mut said = if closes.is_empty() { "none".into() } else { closes.join(", ") };
    if let (Some(exposure), Some(equity)) = (&selection.exposure, &selection.equity) {
        said = format!("{said} (exposure {exposure}, equity {equity})");
    }
    said
}

/// Symbols of what was not judged, in words; `None` if all was.
pub fn describe_unjudged(selection: &PositionSelection) -> Option<String> {
    let first = selection.not_judged.first()?;
    let symbols: Vec<_> = selection.not_judged.iter().map(|p| p.symbol.as_str()).collect();
    Some(format!("{} ({})", symbols.join(", "), first.why))
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
