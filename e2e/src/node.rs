//! A pretended node: marks the pods of one namespace as running, and ends them when they are deleted. Real kubelets run
//! in the tests on real clusters; this one serves where hundreds of small worlds run side by side.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::{
    api::core::v1::{Container, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// How soon it notices that it is allowed to end pods again, or repeats what failed.
const TICK: Duration = Duration::from_millis(50);
/// How long it waits for the watch to tell that what it did is done.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub struct Node {
    task: JoinHandle<()>,
    stubborn: Arc<AtomicBool>,
    alive: Processes,
    idle: Arc<AtomicBool>,
    programs: Programs,
}

/// What images do that end by themselves, by the image's name: the exit code and the termination message.
type Programs = Arc<Mutex<HashMap<String, (i32, String)>>>;

/// Names of the pods whose processes run.
type Processes = Arc<Mutex<BTreeSet<String>>>;

impl Node {
    /// Runs the pods of `namespace`.
    pub fn start(client: Client, namespace: &str) -> Self {
        let (stubborn, idle) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let alive = Processes::default();
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let programs = Programs::default();
        let kubelet = Kubelet {
            pods,
            stubborn: Arc::clone(&stubborn),
            idle: Arc::clone(&idle),
            alive: Arc::clone(&alive),
            programs: Arc::clone(&programs),
        };
        Self { task: tokio::spawn(kubelet.run()), stubborn, idle, alive, programs }
    }

    /// Lets pods of this image end at once, with this exit code and termination message.
    pub fn set_program(&self, image: &str, exit_code: i32, message: &str) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.insert(image.into(), (exit_code, message.into()));
    }

    /// Whether new pods are left waiting, as on a node without room.
    pub fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
    }

    /// Whether pods go on although they were deleted, as on a node that cannot be reached.
    pub fn set_stubborn(&self, stubborn: bool) {
        self.stubborn.store(stubborn, Ordering::SeqCst);
    }

    /// The pods whose processes run now. A pod is not gone before its process is.
    pub fn alive(&self) -> Vec<String> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Does what a process of a pod does, if one runs. None ends in between.
    pub fn as_process<R>(&self, act: impl FnOnce() -> R) -> Option<R> {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        (!alive.is_empty()).then(act)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Kubelet {
    pods: Api<Pod>,
    stubborn: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
    alive: Processes,
    programs: Programs,
}

/// What a pod needs next.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    Bind,
    Start,
    End,
}

/// The status of a pod whose processes run.
fn running() -> Value {
    json!({"status": {"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]}})
}

/// The status of a pod whose only container has ended.
fn ended(container: &Container, exit_code: i32, message: &str) -> Value {
    let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
    json!({"status": {"phase": phase, "containerStatuses": [{"name": container.name, "image": container.image,
        "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {
            "exitCode": exit_code, "message": message, "finishedAt": Timestamp::now()}}}]}})
}

/// The node that a DaemonSet's pod is made for.
fn meant_for(pod: &Pod) -> Option<&str> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    Some(fields.find(|f| f.key == "metadata.name")?.values.as_ref()?.first()?)
}

impl Kubelet {
    async fn run(self) {
        let events = watcher(self.pods.clone(), watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut tick = tokio::time::interval(TICK);
        let mut known: HashMap<String, Pod> = HashMap::new();
        let mut done: HashMap<String, (Need, Instant)> = HashMap::new();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) => drop(known.insert(pod.name_any(), pod)),
                    Some(Ok(Event::Delete(pod))) => self.forget(&mut known, &pod.name_any()),
                    Some(Ok(Event::Init)) => known.clear(),
                    // A server that is down has none to tell of.
                    Some(Ok(Event::InitDone) | Err(_)) => {}
                    None => return,
                },
                _ = tick.tick() => {}
            }
            for (name, pod) in &known {
                let Some(need) = self.need(pod) else { continue };
                let uid = pod.uid().unwrap_or_default();
                if done.get(&uid).is_some_and(|(what, at)| *what == need && at.elapsed() < AGAIN) {
                    continue;
                }
                done.insert(uid, (need, Instant::now()));
                self.act(name, pod, need).await;
            }
        }
    }

    fn need(&self, pod: &Pod) -> Option<Need> {
        let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let started = matches!(phase, Some("Running" | "Succeeded" | "Failed"));
        match pod.metadata.deletion_timestamp {
            Some(_) => (!self.stubborn.load(Ordering::SeqCst)).then_some(Need::End),
            None if self.idle.load(Ordering::SeqCst) => None,
            None if !bound => Some(Need::Bind),
            None => (!started).then_some(Need::Start),
        }
    }

    /// What fails is tried again.
    async fn act(&self, name: &str, pod: &Pod, need: Need) {
        match need {
            Need::Bind => {
                let target = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                    "target": {"kind": "Node", "name": meant_for(pod).unwrap_or("pretended")}});
                let params = PostParams::default();
                let _ = self.pods.create_subresource::<_, serde_json::Value>("binding", name, &params, &target).await;
            }
            Need::Start => {
                let status = self.result(pod).unwrap_or_else(|| {
                    self.alive.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
                    running()
                });
                let _ = self.pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await;
            }
            Need::End => {
                self.alive.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                let _ = self.pods.delete(name, &DeleteParams::default().grace_period(0)).await;
            }
        }
    }

    /// What is left of a pod that ends by itself.
    fn result(&self, pod: &Pod) -> Option<Value> {
        let container = pod.spec.as_ref()?.containers.first()?;
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let (exit_code, message) = programs.get(container.image.as_ref()?)?;
        Some(ended(container, *exit_code, message))
    }

    fn forget(&self, known: &mut HashMap<String, Pod>, name: &str) {
        known.remove(name);
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
