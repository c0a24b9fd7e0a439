//! The crash sweep: every call that an operator makes in a halt and in a resume goes wrong once, in every way.
//!
//! A clean run tells which calls there are. Then each of them is cut off, refused or lost in a world of its own, the
//! operator is started again where it was cut off, and the end must be that of the clean run, or the status must ask for
//! a person. What must never be, not even for a moment, is looked for all the time, on the world and not in the status.
//!
//! `STANDFAST_SWEEP=all` runs every plan, `STANDFAST_SWEEP=<plan>` one of them, as a failure names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Write,
    net::Ipv4Addr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use axum::{Json, Router, routing};
use futures::{StreamExt, stream};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{
    Resource, ResourceExt,
    api::DeleteParams,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::json;
use standfast_crds::v1alpha1::{
    HaltPhase, ResumePhase, TradingHalt, TradingHaltStatus, TradingResume, TradingSystem, condition, halt_conditions,
};
use standfast_e2e::{
    controlplane::ControlPlane,
    faults::{Fault, Faults, Outcome, Recorded, Strike},
    venue::{Behaviour, Effect, NewOrder, PaperVenue, Side, What},
    world::{KEY, Operator, World},
};
use standfast_operator::{
    client::{Clients, retry_reads},
    halt::evidence,
};
use tokio::{sync::watch, task::JoinSet};

use crate::plane::plane;

/// Worlds that are under way at a time.
const WORLDS: usize = 12;
/// The longest that a plan may take from its beginning to its end.
const LIMIT: Duration = Duration::from_secs(150);
/// The longest that a status may stay without an end before it is taken at its word.
const PATIENCE: Duration = Duration::from_secs(100);
/// Pause between two looks at the world.
const SAMPLE: Duration = Duration::from_millis(10);
/// Bots and their replicas.
const BOTS: [(&str, i32); 2] = [("bot", 2), ("scalper", 1)];
const HALT: &str = "halt";
const RESUME: &str = "resume";

/// What an operator is put through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scenario {
    /// A halt that cancels and closes, beside an autoscaler.
    Halt,
    /// A resume, with a check and a sync, of a halt that is proven.
    Resume,
}

impl Scenario {
    const ALL: [Self; 2] = [Self::Halt, Self::Resume];

    const fn name(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::Resume => "resume",
        }
    }
}

/// A scenario and what goes wrong in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    scenario: Scenario,
    strike: Option<Strike>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.strike {
            Some(strike) => write!(f, "{}/{strike}", self.scenario.name()),
            None => write!(f, "{}/clean", self.scenario.name()),
        }
    }
}

impl FromStr for Plan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let usage = "a plan reads like halt/PATCH deployments/bot/scale#1/cut-after";
        let (scenario, rest) = text.split_once('/').context(usage)?;
        let scenario = Scenario::ALL.into_iter().find(|s| s.name() == scenario).context(usage)?;
        let (key, fault) = rest.rsplit_once('/').unwrap_or(("", rest));
        let strike = match fault {
            "clean" => None,
            fault => Some(Strike { key: key.into(), fault: fault.parse()? }),
        };
        Ok(Self { scenario, strike })
    }
}

/// What a world looks like when all is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct End {
    halt: String,
    resume: String,
    /// What each bot is set to.
    replicas: BTreeMap<String, i32>,
    /// What the halt says that they go back to.
    recorded: BTreeMap<String, i64>,
    latches: usize,
    open_orders: usize,
    positions: BTreeMap<String, String>,
    suspended: bool,
    /// For each symbol: closing orders, and how much of them was filled.
    closes: BTreeMap<String, (usize, String)>,
    /// How often the venue was told to accept orders again.
    allowed: usize,
    autoscaler: String,
}

/// How a plan went.
struct Run {
    end: End,
    calls: Vec<Recorded>,
    struck: bool,
    /// Why a person is asked for.
    asks: Option<String>,
}

/// The bot's books: a check that can fail, and a sync.
#[derive(Default)]
struct Books {
    /// How many answers are still to be failures.
    failures: AtomicU32,
    asked: AtomicU32,
}

impl Books {
    async fn serve(self: Arc<Self>, tasks: &mut JoinSet<()>) -> Result<String> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let health = async move || {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let left = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            Json(json!({"ok": left.is_err()}))
        };
        let app = Router::new()
            .route("/health", routing::get(health))
            .route("/sync", routing::post(async || Json(json!({}))));
        tasks.spawn(async move { drop(axum::serve(listener, app).await) });
        Ok(url)
    }
}

/// A world that is ready for its scenario, and what watches it.
struct Stage {
    world: World,
    faults: Faults,
    scenario: Scenario,
    halt: watch::Receiver<Option<TradingHalt>>,
    resume: watch::Receiver<Option<TradingResume>>,
    system: watch::Receiver<Option<TradingSystem>>,
    /// Serves and watches until it is dropped.
    _tasks: JoinSet<()>,
}

/// The newest state of the one object of a kind.
fn newest<K>(world: &World, tasks: &mut JoinSet<()>) -> watch::Receiver<Option<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (sender, receiver) = watch::channel(None);
    let api = world.api::<K>();
    tasks.spawn(async move {
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            if let Ok(Event::Apply(object) | Event::InitApply(object)) = event {
                sender.send_replace(Some(object));
            }
        }
    });
    receiver
}

impl Stage {
    async fn new(plane: &Arc<ControlPlane>, plan: &Plan) -> Result<Self> {
        let world = World::new(plane, "sweep").await?;
        let mut tasks = JoinSet::new();
        let url = Arc::new(Books::default()).serve(&mut tasks).await?;
        world.venue.set_behaviour(Behaviour {
            fill_delay_ms: 30,
            steps: 2,
            step_interval_ms: 30,
            cancel_delay_ms: 20,
            ..Behaviour::default()
        });
        world.venue.set_position(KEY, "MSFT", 5, 90);
        world.venue.set_position(KEY, "TSLA", -3, 110);
        // Holds the quantity that is to be closed.
        let _ = world.venue.place_order(KEY, &NewOrder::limit("MSFT", Side::Sell, 5, 200));
        for (name, replicas) in BOTS {
            world.deployment(name, replicas).await?;
        }
        world
            .create::<HorizontalPodAutoscaler>(json!({"metadata": {"name": "bot"}, "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bot"},
                "minReplicas": 2, "maxReplicas": 4,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 50}}}]}}))
            .await?;
        let check = json!({"name": "books", "group": "trading", "interval": "1h", "http": {
            "request": {"url": format!("{url}/health"), "timeout": "2s"}, "path": "$.ok", "expect": {"equals": true}}});
        world
            .system(
                &BOTS.map(|b| b.0),
                json!({
                    "checks": [check],
                    "syncPositions": {"http": {"method": "POST", "url": format!("{url}/sync"), "timeout": "2s"}},
                    "haltPolicy": {"allowedPositionActions": ["Keep", "CloseAll"]}
                }),
            )
            .await?;
        let (halt, resume, system) =
            (newest(&world, &mut tasks), newest(&world, &mut tasks), newest(&world, &mut tasks));
        let faults = Faults::new(plan.strike.clone());
        Ok(Self { world, faults, scenario: plan.scenario, halt, resume, system, _tasks: tasks })
    }

    /// Starts an operator behind the faults. Watches, and the lists that go with them, pass them by.
    async fn operator(&self) -> Result<Operator> {
        let layers = self.faults.operator();
        let transport = layers.clone();
        self.world
            .operator_of(
                move |plain| Clients { watch: plain.clone(), ..Clients::same(&retry_reads(layers.client(plain)), 64) },
                move |inner| transport.transport(inner),
            )
            .await
    }

    /// Waits for `goal`, and starts the operator again when it was cut off.
    async fn drive<T>(&self, operator: &mut Option<Operator>, goal: impl Future<Output = Result<T>>) -> Result<T> {
        let mut goal = std::pin::pin!(goal);
        loop {
            tokio::select! {
                done = &mut goal => return done,
                () = self.faults.cut() => {
                    drop(operator.take());
                    *operator = Some(self.operator().await?);
                }
            }
        }
    }

    /// What processes of bots do as long as they run: place orders.
    async fn trade(&self) {
        let venue = &self.world.venue;
        loop {
            self.world.node.as_process(|| {
                if venue.open_orders(KEY).len() < 6 {
                    // A suspended venue refuses it.
                    let _ = venue.place_order(KEY, &NewOrder::limit("AAPL", Side::Buy, 1, 50));
                }
            });
            tokio::time::sleep(SAMPLE * 3).await;
        }
    }

    /// Why the world is not as it must be under `Halted`.
    fn contradiction(&self) -> Option<String> {
        let venue = &self.world.venue;
        let alive = self.world.node.alive();
        let orders = venue.open_orders(KEY).len();
        let positions = venue.positions(KEY).len();
        let closes = self.scenario == Scenario::Halt;
        match () {
            () if !alive.is_empty() => Some(format!("pods run: {}", alive.join(", "))),
            () if orders > 0 => Some(format!("{orders} orders are open")),
            () if closes && positions > 0 => Some(format!("{positions} positions are open")),
            () => None,
        }
    }

    /// Ends when the status says `Halted` and the world says otherwise.
    async fn sample(&self) -> anyhow::Error {
        loop {
            tokio::time::sleep(SAMPLE).await;
            let said = self.halt.borrow().clone();
            let Some(said) = said.filter(|h| phase(h) == HaltPhase::Halted) else { continue };
            let Some(why) = self.contradiction() else { continue };
            // It said so before, and if it is still the same word it said so all along.
            match self.world.api::<TradingHalt>().get(HALT).await {
                Ok(still) if still.resource_version() == said.resource_version() => {
                    return anyhow::anyhow!("the status says Halted, but {why}");
                }
                _ => {}
            }
        }
    }

    fn halt_status(&self) -> TradingHaltStatus {
        self.halt.borrow().as_ref().and_then(|h| h.status.clone()).unwrap_or_default()
    }

    /// Waits until the halt is proven and was verified again since. Else the reason why a person is asked for.
    async fn until_halted(&self) -> Result<Option<String>> {
        let mut halt = self.halt.clone();
        let proven = async {
            loop {
                halt.wait_for(|h| h.as_ref().is_some_and(|h| phase(h) == HaltPhase::Halted)).await?;
                let seen = self.order_reads();
                let again = |venue: &PaperVenue| (order_reads(venue) >= seen + 2).then_some(());
                self.world.venue.until(PATIENCE, again).await.context("the halt is not verified again")?;
                if phase_of(&halt.borrow()) == HaltPhase::Halted {
                    return Ok(None);
                }
            }
        };
        match tokio::time::timeout(PATIENCE, proven).await {
            Ok(proven) => proven,
            Err(_) => {
                let status = self.halt_status();
                let said = condition(&status.conditions, halt_conditions::HALTED);
                match (status.phase, said) {
                    (HaltPhase::Unverified, Some(c)) if !c.reason.is_empty() => {
                        Ok(Some(format!("Unverified, {}: {}", c.reason, c.message)))
                    }
                    _ => bail!("neither halted nor asking for a person: {}", show(&status)),
                }
            }
        }
    }

    fn order_reads(&self) -> usize {
        order_reads(&self.world.venue)
    }

    /// Waits until the resume has ended. Else the reason why a person is asked for.
    async fn until_resumed(&self) -> Result<Option<String>> {
        let mut resume = self.resume.clone();
        let ended = resume.wait_for(|r| r.as_ref().and_then(|r| r.status.as_ref()?.finished_at.as_ref()).is_some());
        let ended = tokio::time::timeout(PATIENCE, ended).await.map(|e| e.map(|r| r.clone()));
        let now = || show(&self.resume.borrow().as_ref().and_then(|r| r.status.clone()));
        let ended = ended.map_err(|_| anyhow::anyhow!("the resume does not end: {}", now()))??;
        let status = ended.and_then(|r| r.status).unwrap_or_default();
        let said = condition(&status.conditions, "Completed").map(|c| c.message.clone()).unwrap_or_default();
        match status.phase {
            ResumePhase::Completed => {
                // The bots trade: what they were stopped for is over.
                let trades = |v: &PaperVenue| (!v.open_orders(KEY).is_empty()).then_some(());
                self.world.venue.until(PATIENCE, trades).await.context("resumed, and no bot trades")?;
                Ok(None)
            }
            ResumePhase::Indeterminate if !said.is_empty() => Ok(Some(format!("Indeterminate: {said}"))),
            // The one way to fail that is meant: what was refused is not tried again, and nothing was released.
            ResumePhase::Failed if self.sync_refused() && said.starts_with("not released: ") => {
                ensure!(self.until_halted().await?.is_none(), "the resume failed, and the halt is not proven");
                ensure!(self.world.venue.suspended(KEY), "the resume failed, and the venue accepts orders");
                Ok(Some(format!("Failed: {said}")))
            }
            _ => bail!("the resume ended otherwise: {}", show(&status)),
        }
    }

    /// Waits until the bots run and the operator has looked at their system.
    async fn prepared(&self) -> Result<()> {
        let mut system = self.system.clone();
        let looked_at = |system: &Option<TradingSystem>| {
            let conditions = system.iter().flat_map(|s| &s.status).flat_map(|s| &s.conditions);
            conditions.into_iter().any(|c| c.type_ == "Prepared" && c.status != "Unknown")
        };
        let pods: i32 = BOTS.iter().map(|b| b.1).sum();
        let all = async {
            system.wait_for(looked_at).await?;
            while self.world.node.alive().len() < pods as usize {
                tokio::time::sleep(SAMPLE).await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, all).await.context("the bots do not run, or their system is not looked at")?
    }

    fn sync_refused(&self) -> bool {
        self.faults.log().iter().any(|c| c.kind == "POST /sync" && c.outcome == Outcome::Faulted(409))
    }

    async fn play(&self) -> Result<Option<String>> {
        let mut operator = Some(self.operator().await?);
        self.prepared().await?;
        match self.scenario {
            Scenario::Halt => {
                self.faults.arm();
                self.world.halt(HALT, json!({"positions": {"action": "CloseAll"}})).await?;
                self.drive(&mut operator, self.until_halted()).await
            }
            Scenario::Resume => {
                self.world.halt(HALT, json!({})).await?;
                ensure!(self.until_halted().await?.is_none(), "the halt is not proven");
                self.faults.arm();
                self.world.resume(RESUME, HALT).await?;
                self.drive(&mut operator, self.until_resumed()).await
            }
        }
    }

    async fn end(&self) -> Result<End> {
        let (world, venue) = (&self.world, &self.world.venue);
        let status = world.halt_status(HALT).await?;
        evidence::verify(&status.evidence).map_err(anyhow::Error::msg)?;
        let mut replicas = BTreeMap::new();
        for (name, _) in BOTS {
            replicas.insert(name.to_owned(), world.replicas(name).await?);
        }
        let recorded = status.workloads.iter().map(|w| (w.name.clone(), w.replicas.unwrap_or(-1).into())).collect();
        let autoscaler = world.api::<HorizontalPodAutoscaler>().get("bot").await?;
        // Best effort: it would be looked at by the control plane for as long as that runs.
        let _ = world.api::<HorizontalPodAutoscaler>().delete("bot", &DeleteParams::default()).await;
        let resumed = self.scenario == Scenario::Resume;
        let resume = self.resume.borrow().as_ref().and_then(|r| r.status.clone()).unwrap_or_default();
        let allowing = |what: &What| match what {
            What::Request(request) => request.effects.contains(&Effect::Suspended { suspended: false }),
            _ => false,
        };
        Ok(End {
            halt: status.phase.as_str().into(),
            resume: if resumed { format!("{:?}", resume.phase) } else { String::new() },
            replicas,
            recorded,
            latches: world.latches().await?.len(),
            // Bots that trade have orders.
            open_orders: if resumed { 0 } else { venue.open_orders(KEY).len() },
            positions: venue.positions(KEY).iter().map(|p| (p.symbol.clone(), p.qty.to_string())).collect(),
            suspended: venue.suspended(KEY),
            closes: venue
                .closes(KEY)
                .into_iter()
                .map(|(symbol, c)| (symbol, (c.orders, c.filled.normalize().to_string())))
                .collect(),
            allowed: venue.ledger().iter().filter(|e| allowing(&e.what)).count(),
            autoscaler: serde_json::to_string(&autoscaler.spec)?,
        })
    }
}

fn order_reads(venue: &PaperVenue) -> usize {
    venue.requests("GET", "/v2/orders").len()
}

fn phase(halt: &TradingHalt) -> HaltPhase {
    halt.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

fn phase_of(halt: &Option<TradingHalt>) -> HaltPhase {
    halt.as_ref().map(phase).unwrap_or_default()
}

fn show(status: &impl serde::Serialize) -> String {
    serde_json::to_string(status).unwrap_or_default()
}

/// What the order of the calls must be, whatever went wrong.
fn in_order(scenario: Scenario, calls: &[Recorded]) -> Result<()> {
    let index = |found: &dyn Fn(&Recorded) -> bool| calls.iter().position(found);
    if scenario == Scenario::Halt {
        return Ok(());
    }
    let is = |call: &Recorded, kind: &str| call.armed && call.kind.starts_with(kind);
    if let Some(release) = index(&|c| is(c, "DELETE configmaps/standfast-latch-") && c.outcome != Outcome::NotSent) {
        let before = &calls[..release];
        let check = before.iter().rev().find(|c| is(c, "GET /health"));
        ensure!(check.is_some_and(|c| c.outcome.was_heard()), "released although the last check did not pass");
        let synced = before.iter().any(|c| is(c, "POST /sync") && c.outcome.was_heard());
        ensure!(synced, "released although no sync succeeded");
    }
    let allow = r#"PATCH /v2/account/configurations {"suspend_trade":false}"#;
    if let Some(allow) = index(&|c| is(c, allow) && c.outcome != Outcome::NotSent) {
        for (bot, _) in BOTS {
            let scale = format!("PATCH deployments/{bot}/scale");
            // One that was under way when the process ended may have arrived; what is not restored shows at the end.
            let sent = |c: &Recorded| c.outcome.took_effect() || c.outcome == Outcome::Open;
            let restored = calls[..allow].iter().any(|c| c.armed && c.kind == scale && sent(c));
            ensure!(restored, "the venue accepts orders again before {bot} was restored");
        }
    }
    Ok(())
}

/// Runs one plan in a world of its own.
async fn run(plane: &Arc<ControlPlane>, plan: &Plan) -> Result<Run> {
    let stage = Stage::new(plane, plan).await.context("setting the world up")?;
    let played = async {
        tokio::select! {
            played = stage.play() => played,
            broken = stage.sample() => Err(broken),
            () = stage.trade() => unreachable!("it goes on for ever"),
            () = tokio::time::sleep(LIMIT) => Err(anyhow::anyhow!("not over after {} s", LIMIT.as_secs())),
        }
    };
    let played = played.await;
    let calls = stage.faults.log();
    let checked = async {
        let asks = played?;
        in_order(plan.scenario, &calls)?;
        Ok::<_, anyhow::Error>((asks, stage.end().await?))
    };
    let (asks, end) = checked.await.with_context(|| history(&stage, &calls))?;
    Ok(Run { end, calls, struck: stage.faults.struck(), asks })
}

/// What was called, for people.
fn history(stage: &Stage, calls: &[Recorded]) -> String {
    let calls: Vec<_> =
        calls.iter().filter(|c| c.armed && (c.mutating || !matches!(c.outcome, Outcome::Answered(_)))).collect();
    let lines: Vec<_> = calls.iter().map(|c| format!("    {} {:?}", c.key, c.outcome)).collect();
    format!("in {}, after the calls\n{}", stage.world.namespace, lines.join("\n"))
}

/// Calls of clean runs, in the order in which they came, each with whether it changes something and in how many runs it
/// was there.
fn keys(runs: &[Run]) -> Vec<(String, bool, usize)> {
    let mut found: Vec<(String, bool, usize)> = vec![];
    for run in runs {
        for call in run.calls.iter().filter(|c| c.armed) {
            match found.iter_mut().find(|f| f.0 == call.key) {
                Some(known) => known.2 += 1,
                None => found.push((call.key.clone(), call.mutating, 1)),
            }
        }
    }
    found
}

fn say(line: &str) {
    // Past the capture of the test's output: it is to be seen when all is well.
    let _ = writeln!(std::io::stderr(), "{line}");
}

async fn sweep(scenario: Scenario) -> Result<()> {
    let plane = plane().await?;
    let wish = std::env::var("STANDFAST_SWEEP").unwrap_or_default();
    let one: Option<Plan> = match wish.as_str() {
        "" | "all" => None,
        wish => Some(wish.parse()?),
    };
    if one.as_ref().is_some_and(|p| p.scenario != scenario) {
        return Ok(());
    }
    let begun = Instant::now();
    let clean = Plan { scenario, strike: None };
    let runs = stream::iter(0..3).map(|_| run(plane, &clean)).buffer_unordered(3).collect::<Vec<_>>().await;
    let runs = runs.into_iter().collect::<Result<Vec<_>>>().context("a clean run")?;
    let expected = runs[0].end.clone();
    for run in &runs {
        ensure!(run.asks.is_none(), "a clean run asks for a person: {:?}", run.asks);
        ensure!(run.end == expected, "two clean runs end differently:\n{:#?}\n{:#?}", expected, run.end);
    }
    let keys = keys(&runs);
    if let Some(plan) = one {
        let run = run(plane, &plan).await?;
        for call in run.calls.iter().filter(|c| c.armed) {
            say(&format!("{} {:?}", call.key, call.outcome));
        }
        say(&format!("{plan}: struck: {}, asks: {:?}", run.struck, run.asks));
        ensure!(run.asks.is_some() || run.end == expected, "ends as {:#?}\nwanted {expected:#?}", run.end);
        return Ok(());
    }
    let mut plans = vec![];
    for (place, (key, mutating, _)) in keys.iter().enumerate() {
        let faults = match (mutating, wish == "all", key.ends_with("#1")) {
            (true, ..) | (_, true, _) => Fault::ALL.to_vec(),
            // Over all reads every fault has its turn.
            (false, false, true) => vec![Fault::ALL[place % Fault::ALL.len()]],
            (false, false, false) => vec![],
        };
        let strike = |fault| Some(Strike { key: key.clone(), fault });
        plans.extend(faults.into_iter().map(|f| Plan { scenario, strike: strike(f) }));
    }
    let mutating = keys.iter().filter(|k| k.1).count();
    let unsteady: BTreeSet<_> = keys.iter().filter(|k| k.1 && k.2 < runs.len()).map(|k| k.0.as_str()).collect();
    say(&format!(
        "{}: {} calls in {} clean runs, {mutating} of them change something, {} of those not in every run; {} plans",
        scenario.name(),
        keys.len(),
        runs.len(),
        unsteady.len(),
        plans.len()
    ));
    for key in &unsteady {
        say(&format!("  not in every run: {key}"));
    }
    let worlds = std::env::var("STANDFAST_SWEEP_WORLDS").ok().and_then(|n| n.parse().ok()).unwrap_or(WORLDS);
    let (expected, all) = (&expected, plans.len());
    let results = stream::iter(plans)
        .map(|plan| async move {
            let judged = run(plane, &plan).await.and_then(|run| {
                let same = run.asks.is_some() || run.end == *expected;
                ensure!(same, "ends as {:#?}\nwanted {expected:#?}", run.end);
                Ok((run.struck, run.asks))
            });
            (plan, judged)
        })
        .buffer_unordered(worlds);
    let mut results = std::pin::pin!(results);
    let (mut ran, mut missed, mut asked, mut failed) = (0, vec![], vec![], vec![]);
    while let Some((plan, judged)) = results.next().await {
        ran += 1;
        if ran % 50 == 0 {
            say(&format!("{}: {ran} of {all} plans, {} s", scenario.name(), begun.elapsed().as_secs()));
        }
        match judged {
            Ok((_, Some(why))) => asked.push(format!("{plan}: {why}")),
            Ok((false, None)) => missed.push(plan.to_string()),
            Ok((true, None)) => {}
            Err(error) => {
                say(&format!(
                    "{plan}: {error:?}\n  again: STANDFAST_SWEEP='{plan}' cargo test -p standfast-e2e --test suite sweep"
                ));
                failed.push(plan.to_string());
            }
        }
    }
    missed.sort();
    say(&format!(
        "{}: {ran} plans run in {} s: {} ended as the clean run, {} asked for a person, {} were not reached, {} failed",
        scenario.name(),
        begun.elapsed().as_secs(),
        ran - failed.len() - asked.len() - missed.len(),
        asked.len(),
        missed.len(),
        failed.len()
    ));
    for (what, plans) in [("asked for a person", &asked), ("not reached", &missed), ("failed", &failed)] {
        for plan in plans {
            say(&format!("  {what}: {plan}"));
        }
    }
    ensure!(failed.is_empty(), "{} of {ran} plans failed", failed.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_halt() -> Result<()> {
    sweep(Scenario::Halt).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep_of_a_resume() -> Result<()> {
    sweep(Scenario::Resume).await
}

/// A second operator, whose watches are dead, still takes the halt for held when the first one has released it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_a_watch_missed_is_not_undone() -> Result<()> {
    let stage = Stage::new(plane().await?, &Plan { scenario: Scenario::Resume, strike: None }).await?;
    let _leader = stage.world.operator().await?;
    let layers = stage.faults.operator();
    let transport = layers.clone();
    let _deaf = stage
        .world
        .operator_of(
            move |plain| Clients { watch: layers.watches(plain.clone()), ..Clients::same(&layers.client(plain), 64) },
            move |inner| transport.transport(inner),
        )
        .await?;
    stage.prepared().await?;
    stage.world.halt(HALT, json!({})).await?;
    ensure!(stage.until_halted().await?.is_none(), "the halt is not proven");
    let looks = || stage.faults.log().iter().filter(|c| c.kind == "GET configmaps/standfast-latch-halt").count();
    let before = looks();
    stage.world.until("the second operator looks at the halt", async || Ok((looks() > before).then_some(()))).await?;
    stage.faults.deafen();
    stage.faults.arm();
    stage.world.resume(RESUME, HALT).await?;
    let resumed = async {
        tokio::select! {
            resumed = stage.until_resumed() => resumed,
            () = stage.trade() => unreachable!("it goes on for ever"),
        }
    };
    ensure!(resumed.await?.is_none(), "the resume asks for a person");
    // It sees that the latch is gone, and asks for the halt before it does anything about that. Of the calls only its
    // own are recorded.
    let asked = || stage.faults.log().iter().any(|c| c.armed && c.kind == "GET tradinghalts/halt");
    stage.world.until("the second operator looks again", async || Ok(asked().then_some(()))).await?;
    let end = stage.end().await?;
    assert_eq!((end.halt.as_str(), end.latches, end.suspended), ("Released", 0, false));
    assert_eq!(end.replicas, BOTS.map(|(name, replicas)| (name.to_owned(), replicas)).into());
    let of_halt = |c: &Recorded| c.armed && c.mutating && !c.kind.contains("tradingsystems");
    let did = stage.faults.log().into_iter().filter(|c| of_halt(c) && c.outcome.took_effect());
    let did: Vec<_> = did.map(|c| c.key).collect();
    assert!(did.is_empty(), "the second operator acted: {did:?}");
    Ok(())
}
