//! The world of one plan: what the operator is put through, and what must never be.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
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
    faults::{Faults, Outcome, Recorded},
    process::Process,
    proxy::{self, Living},
    venue::{Behaviour, Decimal, Effect, NewOrder, PaperVenue, Side, What},
    world::{KEY, Operator, World, merge},
};
use standfast_operator::{
    client::{Clients, retry_reads},
    halt::evidence,
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    Plan, Scenario, TURNS,
    books::Books,
    gated::{self, People},
    verdict::{End, in_order},
};

/// The longest that a plan may take from its beginning to its end.
const LIMIT: Duration = Duration::from_secs(150);
/// The longest that a status may stay without an end before it is taken at its word.
const PATIENCE: Duration = Duration::from_secs(100);
/// Pause between two looks at the world.
const SAMPLE: Duration = Duration::from_millis(10);
/// Bots and their replicas.
pub const BOTS: [(&str, i32); 2] = [("bot", 2), ("scalper", 1)];
/// What is held of MSFT and TSLA where it is reduced, at 100 each: 1,100,000 long and short, of an equity of 1,500,000.
const REDUCED: (i64, i64) = (8000, -3000);
/// A half of that equity.
const HALF: i64 = 750_000;
/// How often the check fails before it passes, in a resume.
pub const FAILURES: u32 = 1;
/// Name of the halt.
pub const HALT: &str = "halt";
/// Name of the resume.
pub const RESUME: &str = "resume";

/// Where the operator runs, and what cutting it off means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In this process: its runtime is dropped.
    Here,
    /// The program that users run, behind proxies: it is killed.
    Process,
}

/// An operator, cut off when it is dropped.
pub enum Life {
    /// In this process.
    Here { _operator: Operator },
    /// As a process.
    Process { _operator: Process },
}

/// What a process is started with.
struct Fronts {
    kubeconfig: PathBuf,
    log: PathBuf,
    living: Living,
}

/// How a plan went.
pub struct Run {
    pub end: End,
    pub calls: Vec<Recorded>,
    pub struck: bool,
    /// Why a person is asked for.
    pub asks: Option<String>,
}

/// A world that is ready for its scenario, and what watches it.
pub struct Stage {
    pub world: World,
    pub faults: Faults,
    scenario: Scenario,
    halt: watch::Receiver<Option<TradingHalt>>,
    resume: watch::Receiver<Option<TradingResume>>,
    system: watch::Receiver<Option<TradingSystem>>,
    books: Arc<Books>,
    people: People,
    /// Where the operator runs as a process.
    fronts: Option<Fronts>,
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
    pub async fn new(plane: &Arc<ControlPlane>, plan: &Plan, place: Where) -> Result<Self> {
        let mut world = World::new(plane, "sweep").await?;
        let mut tasks = JoinSet::new();
        let books = Arc::new(Books::default());
        let mut url = Arc::clone(&books).serve(&mut tasks).await?;
        let faults = Faults::new(plan.strike.clone());
        let fronts = match place {
            Where::Here => None,
            Where::Process => {
                let living = Living::new(faults.operator());
                url = proxy::http(&mut tasks, url, living.clone()).await?;
                world.venue_url = proxy::http(&mut tasks, world.venue.url(), living.clone()).await?;
                let server = proxy::api_server(&mut tasks, plane.client().await?, living.clone()).await?;
                let kubeconfig = plane.folder().join(format!("{}.kubeconfig", world.namespace));
                let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "e2e",
                    "clusters": [{"name": "e2e", "cluster": {"server": server}}],
                    "users": [{"name": "nobody", "user": {}}],
                    "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "nobody"}}]});
                tokio::fs::write(&kubeconfig, config.to_string()).await?;
                Some(Fronts { kubeconfig, log: plane.logs().join(format!("{}.log", world.namespace)), living })
            }
        };
        world.venue.set_behaviour(Behaviour {
            fill_delay_ms: 30,
            steps: 2,
            step_interval_ms: 30,
            cancel_delay_ms: 20,
            ..Behaviour::default()
        });
        let (msft, tsla) = if plan.scenario == Scenario::Reduce { REDUCED } else { (5, -3) };
        world.venue.set_position(KEY, "MSFT", msft, 90);
        world.venue.set_position(KEY, "TSLA", tsla, 110);
        // Holds the quantity that is to be closed.
        let _ = world.venue.place_order(KEY, &NewOrder::limit("MSFT", Side::Sell, 5, 200));
        for (name, replicas) in BOTS {
            world.deployment(name, replicas).await?;
        }
        world
            .create::<HorizontalPodAutoscaler>(json!({"metadata": {"name": "bot"}, "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bot"},
                "minReplicas": if plan.scenario == Scenario::Gated { 1 } else { 2 }, "maxReplicas": 4,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 50}}}]}}))
            .await?;
        let check = json!({"name": "books", "group": "trading", "interval": "1h", "http": {
            "request": {"url": format!("{url}/health"), "timeout": "2s"}, "path": "$.ok", "expect": {"equals": true}}});
        let venue = if plan.scenario == Scenario::Reduce { world.selecting_venue() } else { world.venue_spec() };
        let mut spec = json!({
            "checks": [check],
            "syncPositions": {"http": {"method": "POST", "url": format!("{url}/sync"), "timeout": "2s"}},
            "venues": [venue],
            "haltPolicy": {"allowedPositionActions": ["Keep", "CloseAll", "ReduceTo"]}
        });
        if plan.scenario == Scenario::Gated {
            merge(&mut spec, gated::prepare(&world, &url).await?);
            books.limits.follow(&world, &mut tasks);
        }
        world.system(&BOTS.map(|b| b.0), spec).await?;
        let (halt, resume, system) =
            (newest(&world, &mut tasks), newest(&world, &mut tasks), newest(&world, &mut tasks));
        let (scenario, people) = (plan.scenario, People::new());
        Ok(Self { world, faults, scenario, halt, resume, system, books, people, fronts, _tasks: tasks })
    }

    /// Starts an operator behind the faults. Watches, and the lists that go with them, pass them by.
    async fn operator(&self) -> Result<Life> {
        let layers = self.faults.operator();
        if let Some(Fronts { kubeconfig, log, living }) = &self.fronts {
            living.replace(layers);
            let namespace = &self.world.namespace;
            return Ok(Life::Process { _operator: Process::start(kubeconfig, namespace, namespace, log)? });
        }
        let transport = layers.clone();
        let operator = self
            .world
            .operator_of(
                move |plain| Clients { watch: plain.clone(), ..Clients::same(&retry_reads(layers.client(plain)), 64) },
                move |inner| transport.transport(inner),
            )
            .await?;
        Ok(Life::Here { _operator: operator })
    }

    /// Waits for `goal`, and starts the operator again when it was cut off.
    async fn drive<T>(&self, operator: &mut Option<Life>, goal: impl Future<Output = Result<T>>) -> Result<T> {
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
    pub async fn trade(&self) {
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
            () if self.scenario == Scenario::Reduce && self.exposure() > HALF => {
                Some(format!("what is held is worth {}", self.exposure()))
            }
            () => None,
        }
    }

    /// What is held is worth so much, long and short added up.
    fn exposure(&self) -> i64 {
        let held = self.world.venue.positions(KEY).into_iter();
        let worth = held.map(|p| (p.qty * p.current_price).abs()).sum::<Decimal>();
        worth.ceil().try_into().unwrap_or(i64::MAX)
    }

    /// Ends when the status says `Halted` and the world says otherwise.
    async fn sample(&self) -> anyhow::Error {
        loop {
            tokio::time::sleep(SAMPLE).await;
            if self.scenario == Scenario::Gated {
                match gated::too_many(&self.world, &self.books.limits, &self.faults).await {
                    Ok(None) | Err(_) => {}
                    Ok(Some(why)) => return anyhow::anyhow!(why),
                }
            }
            let halted = |h: &&TradingHalt| phase(h) == HaltPhase::Halted;
            let said = self.halt.borrow().as_ref().filter(halted).map(|h| h.resource_version());
            let Some(said) = said else { continue };
            let Some(why) = self.contradiction() else { continue };
            // It said so before, and if it is still the same word it said so all along.
            match self.world.api::<TradingHalt>().get(HALT).await {
                Ok(still) if still.resource_version() == said => {
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
    pub async fn until_halted(&self) -> Result<Option<String>> {
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

    /// Waits until the halt is released, and tells how many calls were made by then.
    pub async fn until_released(&self) -> Result<usize> {
        let mut halt = self.halt.clone();
        let released = halt.wait_for(|h| phase_of(h) == HaltPhase::Released);
        tokio::time::timeout(PATIENCE, released).await.context("the halt is not released")??;
        Ok(self.faults.log().len())
    }

    /// Waits until the resume has ended. Else the reason why a person is asked for.
    pub async fn until_resumed(&self) -> Result<Option<String>> {
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
    pub async fn prepared(&self) -> Result<()> {
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
        self.faults.any(|c| c.kind == "POST /sync" && c.outcome == Outcome::Faulted(409))
    }

    /// Waits until the halt is proven, and still when the operator is gone. One that had just begun counts anew, and a look
    /// that went wrong loses the proof: whoever comes back has to give it again.
    async fn until_held(&self, mut operator: Option<Life>) -> Result<Option<String>> {
        loop {
            let asks = self.drive(&mut operator, self.until_halted()).await?;
            drop(operator.take());
            if asks.is_some() || self.world.halt_status(HALT).await?.phase == HaltPhase::Halted {
                return Ok(asks);
            }
            operator = Some(self.operator().await?);
        }
    }

    async fn play(&self) -> Result<Option<String>> {
        let mut operator = Some(self.operator().await?);
        self.prepared().await?;
        match self.scenario {
            Scenario::Halt => {
                self.faults.arm();
                self.world.halt(HALT, json!({"positions": {"action": "CloseAll"}})).await?;
                self.until_held(operator).await
            }
            Scenario::Reduce => {
                self.faults.arm();
                let half = json!({"positions": {"action": "ReduceTo", "reduceTo": {"exposurePercent": "50"}}});
                self.world.halt(HALT, half).await?;
                self.until_held(operator).await
            }
            Scenario::Resume | Scenario::Gated => {
                self.world.halt(HALT, json!({})).await?;
                ensure!(self.until_halted().await?.is_none(), "the halt is not proven");
                self.faults.arm();
                self.books.failures.store(FAILURES, Ordering::SeqCst);
                self.world.resume(RESUME, HALT).await?;
                let resumed = async {
                    let decided = async {
                        if self.scenario == Scenario::Gated {
                            let calls = || self.faults.log().len();
                            self.people.decide(&self.world, self.resume.clone(), calls).await?;
                        }
                        std::future::pending::<Result<Option<String>>>().await
                    };
                    tokio::select! {
                        resumed = self.until_resumed() => resumed,
                        failed = decided => failed,
                    }
                };
                self.drive(&mut operator, resumed).await
            }
        }
    }

    pub async fn end(&self) -> Result<End> {
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
        let resumed = self.scenario.resumes();
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
            gates: match self.scenario {
                Scenario::Gated => gated::end(&resume, &self.books.limits),
                _ => String::new(),
            },
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

/// Runs one plan in a world of its own.
pub async fn run(plane: &Arc<ControlPlane>, plan: &Plan, place: Where) -> Result<Run> {
    let _turn = TURNS.acquire().await?;
    let stage = Stage::new(plane, plan, place).await.context("setting the world up")?;
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
        if plan.scenario == Scenario::Gated {
            stage.people.check(&stage.books.limits, &calls)?;
        }
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
