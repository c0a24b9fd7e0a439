//! What is compared with what, resolved when the plan is frozen. The error names what is missing, and what there is.

use serde::{Deserialize, Serialize};
use standfast_crds::v1alpha1::{
    Check, CheckGroup, Compared, Comparison, HttpCheck, NumberRead, OrdersRead, PositionsRead, ResumePolicy,
    TradingSystemSpec, Venue,
};

use super::super::plan::there_are;
use crate::calls::{document::ListPath, extract, template};

/// One comparison with what the venue is asked for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanComparison {
    /// The bot's side, and what is compared.
    pub comparison: Comparison,
    /// Reads of orders or fills.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<OrdersRead>,
    /// Reads of positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub positions: Vec<PositionsRead>,
    /// The read of the balance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<NumberRead>,
    /// The bot's side is told by what the halt stopped: compared when it runs again.
    #[serde(default)]
    pub live: bool,
}

/// The comparisons of a policy.
pub fn resolve(policy: &ResumePolicy, system: &TradingSystemSpec) -> Result<Vec<PlanComparison>, String> {
    policy.reconciliation.iter().map(|comparison| one(comparison, &system.venues)).collect()
}

fn one(comparison: &Comparison, venues: &[Venue]) -> Result<PlanComparison, String> {
    let (name, asked) = (&comparison.name, &comparison.venue);
    let Some(venue) = venues.iter().find(|v| v.name == *asked) else {
        let there = there_are(venues.iter().map(|v| v.name.as_str()));
        return Err(format!("reconciliation {name}: the TradingSystem has no venue {asked}: {there}"));
    };
    let lacks = |read: &str| Err(format!("reconciliation {name}: venue {asked} declares no {read}"));
    let counts = |read: &str| {
        Err(format!(
            "reconciliation {name}: {read} of venue {asked} only counts, so nothing can be compared: leave out count"
        ))
    };
    let (mut orders, mut positions, mut balance) = (vec![], vec![], None);
    match comparison.compare {
        Compared::Positions => positions.clone_from(&venue.open_positions),
        Compared::OpenOrders => orders.clone_from(&venue.open_orders),
        Compared::Fills => orders.extend(venue.fills.clone()),
        Compared::Balance => balance.clone_from(&venue.balance),
    }
    match comparison.compare {
        Compared::Positions if positions.is_empty() => return lacks("openPositions"),
        Compared::OpenOrders if orders.is_empty() => return lacks("openOrders"),
        Compared::Fills if orders.is_empty() => return lacks("fills"),
        Compared::Balance if balance.is_none() => return lacks("balance"),
        _ => {}
    }
    if positions.iter().any(|r| r.count.is_some()) {
        return counts("openPositions");
    }
    if orders.iter().any(|r| r.count.is_some()) {
        return counts(if comparison.compare == Compared::Fills { "fills" } else { "openOrders" });
    }
    if let Some(fills) = orders.first().filter(|_| comparison.compare == Compared::Fills) {
        let takes = fills.http.as_ref().is_some_and(|http| template::takes(http, "since"));
        if !takes {
            return Err(format!(
                "reconciliation {name}: fills of venue {asked} has no place for {{since}} in its url or body"
            ));
        }
    }
    // Paths that cannot be read would keep the gate shut for ever.
    let bad = |why: String| format!("reconciliation {name}: {why}");
    ListPath::parse(comparison.bot.items.as_deref().unwrap_or("$[*]")).map_err(|why| bad(format!("items: {why}")))?;
    for read in &positions {
        extract::position_reader(read).map_err(|why| bad(why.to_string()))?;
    }
    for read in &orders {
        extract::order_reader(read).map_err(|why| bad(why.to_string()))?;
    }
    Ok(PlanComparison { comparison: comparison.clone(), orders, positions, balance, live: false })
}

/// The bot's sides that are asked over HTTP, as questions by the names of the comparisons: it is looked up who answers them.
pub fn questions(comparisons: &[PlanComparison]) -> Vec<Check> {
    let question = |c: &PlanComparison| {
        let request = c.comparison.bot.http.clone()?;
        Some(Check {
            name: c.comparison.name.clone(),
            group: CheckGroup::Data,
            interval: None,
            http: Some(HttpCheck { request, status: vec![], path: None, expect: None }),
            sql: None,
            workload: None,
            tcp: None,
            prometheus: None,
            job: None,
        })
    };
    comparisons.iter().filter_map(question).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn resolved(comparison: Value, venue: Value) -> Result<Vec<PlanComparison>, String> {
        let mut all = json!({"name": "books", "venue": "alpaca", "compare": "Positions",
            "bot": {"sql": {"connectionSecretRef": {"name": "db", "key": "url"}, "query": "SELECT 1"}}});
        for (key, value) in comparison.as_object().unwrap() {
            all[key] = value.clone();
        }
        let policy: ResumePolicy = serde_json::from_value(json!({"reconciliation": [all]})).unwrap();
        let mut known = json!({"name": "alpaca"});
        for (key, value) in venue.as_object().unwrap() {
            known[key] = value.clone();
        }
        let system =
            json!({"workloads": [{"kind": "Deployment", "name": "bot", "role": "Trading"}], "venues": [known]});
        resolve(&policy, &serde_json::from_value(system).unwrap())
    }

    #[rstest]
    #[case(json!({"venue": "kraken"}), json!({}), "the TradingSystem has no venue kraken: there are alpaca")]
    #[case(json!({}), json!({}), "venue alpaca declares no openPositions")]
    #[case(json!({"compare": "OpenOrders"}), json!({}), "venue alpaca declares no openOrders")]
    #[case(json!({"compare": "Balance"}), json!({}), "venue alpaca declares no balance")]
    #[case(json!({"compare": "Fills", "since": "24h"}), json!({}), "venue alpaca declares no fills")]
    #[case(
        json!({"compare": "Fills", "since": "24h"}), json!({"fills": {"http": {"url": "https://a.example/fills"}}}),
        "fills of venue alpaca has no place for {since} in its url or body"
    )]
    #[case(
        json!({}), json!({"openPositions": [{"http": {"url": "https://a.example/p"}, "count": "$.n"}]}),
        "openPositions of venue alpaca only counts, so nothing can be compared: leave out count"
    )]
    #[case(
        json!({"bot": {"http": {"url": "http://books.bots.svc/p"}, "items": "$.rows"}}),
        json!({"openPositions": [{"http": {"url": "https://a.example/p"}}]}),
        "items: $.rows does not name the items of a list: end it with [*] or [?…], and do not use .. in it"
    )]
    fn what_cannot_be_compared_is_refused(#[case] comparison: Value, #[case] venue: Value, #[case] expected: &str) {
        assert_eq!(resolved(comparison, venue).unwrap_err(), format!("reconciliation books: {expected}"));
    }

    #[test]
    fn the_reads_of_the_venue_are_frozen() {
        let venue = json!({"openPositions": [{"http": {"url": "https://a.example/p"}}],
            "balance": {"http": {"url": "https://a.example/a"}, "path": "$.cash"}});
        let found = resolved(json!({}), venue.clone()).unwrap();
        assert_eq!((found[0].positions.len(), found[0].orders.len(), &found[0].balance), (1, 0, &None));
        let found = resolved(json!({"compare": "Balance"}), venue).unwrap();
        assert_eq!(found[0].balance.as_ref().unwrap().path.as_deref(), Some("$.cash"));
    }
}
