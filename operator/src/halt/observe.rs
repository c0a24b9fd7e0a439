//! Looks at everything that a held halt claims, live.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Resource, ResourceExt,
    core::{Selector, SelectorExt},
};
use standfast_crds::v1alpha1::{
    LatchedWorkload, TradingHalt, TradingHaltStatus, TradingSystem, Venue, VenueStatus, Workload, WorkloadKind, shorten,
};
use tokio::time::Instant;

use super::{
    HaltReconciler, act,
    approvals::Approved,
    commit::{VENUE_LIMIT, WORKLOAD_LIMIT},
    decide::{ActiveWorkload, Facts, Known, LatchFact, Pods},
    latch,
    memory::Memory,
    others::Others,
    venues::{JOB_PATIENCE, cancels_needed, judge_venue, life},
};
use crate::{client, workloads::Key};

/// The longest that a list of pods may take.
const LIST_DEADLINE: Duration = Duration::from_secs(10);
/// A pod whose grace period is over for longer than this is not ending: its node may be cut off.
const OVERDUE: i64 = 30;
/// The longest that all reads of one venue may take in one look.
const READS: Duration = Duration::from_secs(8);

/// What was seen, and how it is shown.
pub struct Observed {
    /// For the decision.
    pub facts: Facts,
    /// For the status.
    pub venues: Vec<VenueStatus>,
    /// Jobs of halted CronJobs that are active, by CronJob.
    pub jobs: BTreeMap<String, Vec<String>>,
    /// The moment that all of it is at least as new as: Jobs that read answer seldom.
    pub as_of: Timestamp,
    /// How long it counts.
    pub life: SignedDuration,
    /// What the system's other halts did at each venue before the reads.
    pub others: BTreeMap<String, Others>,
}

/// Jobs of halted CronJobs that have not ended: CronJob, Job, whether it is suspended.
#[derive(Default)]
struct Jobs(Vec<(String, String, bool)>);

impl Jobs {
    /// Those that are not suspended, by CronJob.
    fn active(self) -> BTreeMap<String, Vec<String>> {
        let mut active: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (cron_job, job, _) in self.0.into_iter().filter(|(_, _, suspended)| !suspended) {
            active.entry(cron_job).or_default().push(job);
        }
        active
    }
}

impl HaltReconciler {
    /// Looks at everything, pods first: a read of a venue counts only if it began after the last pod was gone.
    pub(super) async fn observe(
        &self,
        halt: &TradingHalt,
        status: &TradingHaltStatus,
        system: &Known<TradingSystem>,
        memory: &mut Memory,
    ) -> Observed {
        let namespace = halt.namespace().unwrap_or_default();
        let begun = Timestamp::now();
        let latch_name = latch::name(&halt.name_any());
        let data = latch::data(halt, &status.workloads, self.workloads.kinds());
        let (jobs, latch_written) = tokio::join!(
            self.unfinished_jobs(&namespace, &status.workloads),
            self.latches.written(&namespace, &latch_name, &data)
        );
        let pods = self.running_pods(&namespace, &status.workloads, &jobs).await;
        let jobs = jobs.map(Jobs::active);
        let active = self.active(&namespace, &status.workloads);
        let missing = system.as_ref().map_or_else(|_| vec![], |s| self.missing(&namespace, s, status));
        let mut facts = Facts {
            elapsed: memory.moving_since.elapsed(),
            stopped_for: Duration::ZERO,
            closing_for: memory.closing_since.map(|at| at.elapsed()),
            system: system.as_ref().map(drop).map_err(Clone::clone),
            missing,
            active,
            jobs: jobs.as_ref().map(|j| j.values().flatten().cloned().collect()).map_err(Clone::clone),
            pods,
            latch_written,
            latch: LatchFact::Unknown("not tried yet".into()),
            venues: vec![],
            application_retry: memory.application.is_some_and(|r| r.at <= Instant::now()),
            approved: Approved::NotAsked,
        };
        let stopped = facts.stopped();
        memory.note_stopped(stopped, Instant::now());
        facts.elapsed = memory.moving_since.elapsed();
        facts.stopped_for = memory.stopped_since.map(|at| at.elapsed()).unwrap_or_default();

        let latch_due = memory.latch_due(Instant::now());
        let keys =
            status.workloads.iter().map(|w| Key { namespace: namespace.clone(), kind: w.kind, name: w.name.clone() });
        // One of each kind: they are held by rules of their own.
        let mut tried: Vec<Key> = vec![];
        for key in keys.clone().filter(|key| self.workloads.get(key).is_some()) {
            if !tried.iter().any(|t| t.kind == key.kind) {
                tried.push(key);
            }
        }
        let trial = async {
            match &facts.latch_written {
                // Another halt's latch would refuse it too.
                Ok(false) => Some(LatchFact::Open("the latch ConfigMap is not there as it should be".into())),
                Err(why) => Some(LatchFact::Unknown(why.clone())),
                Ok(true) if tried.is_empty() => {
                    Some(LatchFact::Unknown("no trading workload is known that could be raised for a trial".into()))
                }
                Ok(true) if latch_due => {
                    let found = join_all(tried.iter().map(|key| self.latches.trial(key))).await;
                    found.into_iter().find(|fact| *fact != LatchFact::Proven).or(Some(LatchFact::Proven))
                }
                Ok(true) => None,
            }
        };
        // As they were before the reads: what another halt closes meanwhile is not closed here too.
        let halts = self.halts.read_namespace(&namespace);
        let names: Vec<_> = status.venues.iter().map(|v| v.name.clone()).collect();
        let venues = names
            .iter()
            .map(|name| system.as_ref().ok().and_then(|s| s.spec.venues.iter().find(|v| v.name == *name)).cloned());
        let venues: Vec<_> = venues.collect();
        let reads = join_all(venues.iter().map(|venue| async {
            match venue {
                Some(venue) => {
                    // What a Job says counts only if it began after the last pod was gone and orders were cancelled
                    // once more, and it is not soon repeated.
                    let cancels = cancels_needed(halt, venue, act::close_attempts(status, &venue.name) > 0);
                    let settled = memory.cancelled_after_stop(&venue.name, cancels);
                    let begin = settled || facts.elapsed > JOB_PATIENCE;
                    let jobs = (&memory.job_reads, begin);
                    Some(self.read_venue_in_time(&namespace, halt, venue, jobs, READS).await)
                }
                None => None,
            }
        }));
        let (trial, reads) = tokio::join!(trial, reads);
        if let Some(fact) = trial {
            memory.latch = Some((Instant::now(), fact));
        }
        if let Some((_, fact)) = &memory.latch {
            facts.latch = fact.clone();
        }
        let policy = system.as_ref().map(|s| s.spec.halt_policy.clone()).unwrap_or_default();
        let (mut shown, mut as_of, mut other) = (vec![], begun, BTreeMap::new());
        for ((name, venue), read) in names.into_iter().zip(&venues).zip(reads) {
            let before = status.venues.iter().find(|v| v.name == name).cloned().unwrap_or_default();
            let others = Others::at(&name, &halts, halt, &policy);
            other.insert(name.clone(), others.clone());
            as_of = read.as_ref().map_or(as_of, |read| as_of.min(read.as_of()));
            let seen = (stopped, others, policy.verify_reads);
            let (fact, mut status) = judge_venue(halt, status, before, venue.as_ref(), read, memory, seen);
            if let Err(why) = system {
                status.last_error = Some(shorten(why));
            }
            facts.venues.push(fact);
            shown.push(status);
        }
        let jobs = jobs.unwrap_or_default();
        Observed { facts, venues: shown, jobs, as_of, life: life(&venues), others: other }
    }

    /// What the system names, is not there, and was not there when the halt latched: what was deleted since is stopped
    /// for good.
    fn missing(&self, namespace: &str, system: &TradingSystem, status: &TradingHaltStatus) -> Vec<String> {
        // Which labels a workload had that is gone is not known any more: one of its kind that is gone may be it.
        let gone = |w: &LatchedWorkload| {
            self.workloads.get(&Key { namespace: namespace.into(), kind: w.kind, name: w.name.clone() }).is_none()
        };
        let latched = |entry: &Workload| {
            status
                .workloads
                .iter()
                .any(|w| w.kind == entry.kind && entry.name.as_ref().map_or_else(|| gone(w), |name| *name == w.name))
        };
        let entries = system.spec.workloads.iter().filter(|entry| !latched(entry));
        let missing = entries.flat_map(|entry| self.workloads.trading(namespace, std::slice::from_ref(entry)).1);
        let (all, _) = self.workloads.trading(namespace, &system.spec.workloads);
        let left = all.len().saturating_sub(WORKLOAD_LIMIT);
        let too_many = (left > 0).then(|| {
            format!("{left} trading workloads are not latched: a halt holds at most {WORKLOAD_LIMIT}; split the TradingSystem")
        });
        // What is not listed any more, or not yet, is not seen, and is not stopped for that.
        let seen = |kind| self.workloads.kinds().resource(kind).map(drop).and_then(|()| self.workloads.known(kind));
        let kinds = status.workloads.iter().filter_map(|w| seen(w.kind).err());
        let unknown = |v: &&Venue| !status.venues.iter().any(|known| known.name == v.name);
        let venues = system.spec.venues.iter().filter(unknown).map(|v| {
            format!("venue {} is not covered: a halt covers at most {VENUE_LIMIT}, with those it had before", v.name)
        });
        kinds.chain(missing).chain(too_many).chain(venues).collect()
    }

    /// Workloads of the halt that are not stopped, as the cache sees them.
    pub(super) fn active(&self, namespace: &str, workloads: &[LatchedWorkload]) -> Vec<ActiveWorkload> {
        workloads
            .iter()
            .filter_map(|w| {
                let key = Key { namespace: namespace.into(), kind: w.kind, name: w.name.clone() };
                let view = self.workloads.get(&key)?;
                view.active().then(|| ActiveWorkload { size: view.size(), key })
            })
            .collect()
    }

    async fn unfinished_jobs(&self, namespace: &str, workloads: &[LatchedWorkload]) -> Known<Jobs> {
        let cron_jobs: Vec<_> = workloads.iter().filter(|w| w.kind == WorkloadKind::CronJob).map(|w| &w.name).collect();
        let mut unfinished = Jobs::default();
        if cron_jobs.is_empty() {
            return Ok(unfinished);
        }
        for job in self.list::<Job>(namespace, "Jobs").await? {
            let owner = job.owner_references().iter().find(|o| o.kind == "CronJob" && cron_jobs.contains(&&o.name));
            let ended = job.status.as_ref().and_then(|s| s.conditions.as_ref()).is_some_and(|conditions| {
                conditions.iter().any(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")
            });
            let suspended = job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false);
            if let (Some(owner), false) = (owner, ended) {
                unfinished.0.push((owner.name.clone(), job.name_any(), suspended));
            }
        }
        Ok(unfinished)
    }

    async fn list<K>(&self, namespace: &str, what: &str) -> Known<Vec<K>>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("listing {what} of namespace {namespace}");
        client::read(LIST_DEADLINE, what, client::list_all(&api)).await.map_err(|e| e.to_string())
    }

    async fn running_pods(&self, namespace: &str, workloads: &[LatchedWorkload], jobs: &Known<Jobs>) -> Known<Pods> {
        let mut selectors = vec![];
        for workload in workloads {
            let labels =
                workload.match_labels.clone().map(|l| LabelSelector { match_labels: Some(l), match_expressions: None });
            let key = Key { namespace: namespace.into(), kind: workload.kind, name: workload.name.clone() };
            let selector = labels.or_else(|| self.workloads.get(&key).and_then(|v| v.selector));
            match selector.map(Selector::try_from) {
                Some(Ok(selector)) => selectors.push(selector),
                None if workload.kind == WorkloadKind::CronJob => {}
                Some(Err(_)) | None => {
                    return Err(format!("which pods belong to {key} is not known: its selector cannot be read"));
                }
            }
        }
        // A suspended Job's pods are on their way out, and count until they are gone.
        let unfinished = jobs.as_ref().map_err(Clone::clone)?.0.iter().map(|(_, job, _)| job);
        // One that was deleted under the halt leaves its pods for a while.
        let jobs: Vec<_> = unfinished.chain(workloads.iter().flat_map(|w| &w.suspended_jobs)).collect();
        let now = Timestamp::now();
        let mut found = Pods::default();
        for pod in self.list::<Pod>(namespace, "pods").await? {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
            let ours = selectors.iter().any(|s| s.matches(pod.labels()))
                || pod.owner_references().iter().any(|o| o.kind == "Job" && jobs.contains(&&o.name));
            if !ours || matches!(phase, "Succeeded" | "Failed") {
                continue;
            }
            found.running += 1;
            let until = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0.as_second());
            if until.is_some_and(|t| now.as_second() > t + OVERDUE) && found.overdue.is_none() {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("?");
                found.overdue = Some(format!(
                    "pod {} on node {node} should have ended: if the node cannot be reached it may go on trading; look at \
                     the node before deleting the pod by force",
                    pod.name_any()
                ));
            }
        }
        Ok(found)
    }
}
