//! A pod that kills the program of another one with SIGKILL. Deleting that pod would not do: even with `--force` the
//! kubelet sends SIGTERM first, and the operator then hands its lease over. Only kubectl is needed, so it works on any
//! cluster.

use std::thread;

use serde_json::{Value, json};

use super::cluster::Site;

/// What the pod runs.
const SCRIPT: &str = include_str!("killer.py");
/// The file for which it waits.
const BEGIN: &str = "/begin";

/// The pod, ready to strike. It goes with this value.
pub struct Killer<'a> {
    site: &'a Site,
}

impl<'a> Killer<'a> {
    /// Starts it beside the pod, in the namespace of the site.
    pub fn new(site: &'a Site, pod: &Value, program: &str) -> Self {
        // The demo's namespace takes restricted pods only.
        let privileged = "pod-security.kubernetes.io/enforce=privileged";
        site.kubectl(&["label", "namespace", &site.namespace, privileged, "--overwrite"]);
        let container = json!({
            "name": "killer", "image": "localhost/standfast-demo-bot:dev", "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", SCRIPT, pod["metadata"]["uid"], program, BEGIN],
            "securityContext": {"privileged": true, "runAsUser": 0},
        });
        let killer = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "killer"}, "spec": {
            "nodeName": pod["spec"]["nodeName"], "hostPID": true, "containers": [container], "restartPolicy": "Never",
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
            // Should nobody be left to delete it.
            "activeDeadlineSeconds": 600,
        }});
        let this = Self { site };
        site.try_kubectl_with(&["create", "-f", "-"], Some(&killer.to_string())).unwrap();
        site.kubectl(&["wait", "pod/killer", "--for=condition=Ready", "--timeout=180s"]);
        this
    }

    /// From now on the program is killed, also when the kubelet has started it again.
    pub fn strike(&self) {
        self.site.kubectl(&["exec", "killer", "--", "touch", BEGIN]);
    }
}

impl Drop for Killer<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let (Ok(said) | Err(said)) = self.site.try_kubectl(&["logs", "killer"]);
            eprintln!("the killer: {said}");
        }
        let deleted = self.site.try_kubectl(&["delete", "pod", "killer", "--ignore-not-found", "--timeout=60s"]);
        if let Err(error) = deleted {
            eprintln!("{error}");
        }
    }
}
