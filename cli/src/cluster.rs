//! The way to the API server, with the user's own kubeconfig and rights. Only ordinary resources are read and created.

use std::{fmt::Debug, future::Future, time::Duration};

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Client, Config, Resource,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    args::Global,
    failure::{Attempt, Failure, explain},
    text::quoted,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The name under which objects are created.
const FIELD_MANAGER: &str = "kubectl-standfast";

/// A namespace of a cluster.
pub struct Cluster {
    client: Client,
    /// The namespace.
    pub namespace: String,
    /// How commands are told to people.
    pub say: Say,
}

/// Who the API server takes the caller for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Me {
    /// The user's name.
    pub user: String,
    /// The groups.
    pub groups: Vec<String>,
}

/// Objects of a kind, and those that cannot be read: one odd object hides no other.
pub struct Listed<K> {
    /// The objects.
    pub items: Vec<K>,
    /// What cannot be read, and why.
    pub odd: Vec<String>,
}

/// Writes commands that reach the same cluster.
#[derive(Clone, Debug, Default)]
pub struct Say {
    namespace: String,
    flags: String,
}

impl Say {
    /// For a namespace, with the arguments that led to the cluster.
    pub fn new(global: &Global, namespace: &str) -> Self {
        let mut flags = String::new();
        let file = global.kubeconfig.as_ref().map(|f| f.display().to_string());
        for (flag, value) in [("--context", &global.context), ("--kubeconfig", &file)] {
            if let Some(value) = value {
                flags.push_str(&format!(" {flag} {}", quoted(value)));
            }
        }
        Self { namespace: namespace.into(), flags }
    }

    /// A command of this program.
    pub fn standfast(&self, command: &str) -> String {
        format!("kubectl standfast {command} -n {}{}", self.namespace, self.flags)
    }

    /// A command of kubectl.
    pub fn kubectl(&self, command: &str) -> String {
        format!("kubectl -n {}{} {command}", self.namespace, self.flags)
    }
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is asked of the API server.
    pub async fn connect(global: &Global) -> Result<Self, Failure> {
        let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
        let wrong = |e: &dyn std::error::Error| Failure::new(format!("reading the kubeconfig: {e}"));
        let from_file = match &global.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let mut config = match from_file {
            Ok(file) => Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(&e))?,
            // In a pod there is no file.
            Err(error) if global.kubeconfig.is_none() && global.context.is_none() => {
                Config::incluster().map_err(|_| wrong(&error))?
            }
            Err(error) => return Err(wrong(&error)),
        };
        // What may be asked again is asked again here, where it is known.
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(5));
        if let Some(user) = &global.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = (!global.as_group.is_empty()).then(|| global.as_group.clone());
        }
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|e| Failure::new(format!("setting up the connection: {e}")))?;
        Ok(Self { client, say: Say::new(global, &namespace), namespace })
    }

    /// Who the API server takes the caller for.
    pub async fn whoami(&self) -> Result<Me, Failure> {
        let attempt = Attempt {
            verb: "create",
            resource: "selfsubjectreviews",
            kind: "SelfSubjectReview",
            name: "",
            namespace: "",
        };
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let answer = asked(&attempt, api.create(&PostParams::default(), &SelfSubjectReview::default())).await?;
        let info = answer.status.and_then(|s| s.user_info).unwrap_or_default();
        let user = info.username.filter(|u| !u.is_empty());
        let user = user.ok_or_else(|| Failure::new("the API server does not say who you are"))?;
        Ok(Me { user, groups: info.groups.unwrap_or_default() })
    }

    fn dynamic<K: Kind>(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<K>(&()))
    }

    /// The object of this name, if there is one.
    pub async fn get<K: Kind>(&self, name: &str) -> Result<Option<K>, Failure> {
        let (resource, kind) = (K::plural(&()), K::kind(&()));
        let attempt = Attempt { verb: "get", resource: &resource, kind: &kind, name, namespace: &self.namespace };
        let found = asked(&attempt, self.dynamic::<K>().get_opt(name)).await?;
        found.map(|o| decode(o).map_err(|why| Failure::new(format!("{attempt}: {why}")))).transpose()
    }

    /// All objects of a kind.
    pub async fn list<K: Kind>(&self) -> Result<Listed<K>, Failure> {
        let (resource, kind) = (K::plural(&()), K::kind(&()));
        let attempt = Attempt { verb: "list", resource: &resource, kind: &kind, name: "", namespace: &self.namespace };
        let found = asked(&attempt, self.dynamic::<K>().list(&ListParams::default())).await?;
        let mut listed = Listed { items: vec![], odd: vec![] };
        for object in found {
            let name = object.metadata.name.clone().unwrap_or_default();
            match decode(object) {
                Ok(object) => listed.items.push(object),
                Err(why) => listed.odd.push(format!("{kind} {name}: {why}")),
            }
        }
        Ok(listed)
    }

    /// Creates an object with this name and spec. `None`: there is one of this name.
    pub async fn create<K: Kind>(&self, name: &str, spec: &Value, dry_run: bool) -> Result<Option<K>, Failure> {
        let (resource, kind) = (K::plural(&()), K::kind(&()));
        let attempt = Attempt { verb: "create", resource: &resource, kind: &kind, name, namespace: &self.namespace };
        let object = json!({"apiVersion": K::api_version(&()), "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace}, "spec": spec});
        let wrong = |why: String| Failure::new(format!("{attempt}: {why}"));
        let object: DynamicObject = serde_json::from_value(object).map_err(|e| wrong(e.to_string()))?;
        let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER.into()) };
        let api = self.dynamic::<K>();
        match tokio::time::timeout(PATIENCE, api.create(&params, &object)).await {
            Err(_) => Err(Failure::late(&attempt, PATIENCE)),
            Ok(Ok(created)) => decode(created).map(Some).map_err(wrong),
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(None),
            Ok(Err(error)) => Err(explain(&error, &attempt)),
        }
    }

    /// Deletes an object, if it is still the one with this uid.
    pub async fn delete<K: Kind>(&self, name: &str, uid: Option<String>) -> Result<(), Failure> {
        let (resource, kind) = (K::plural(&()), K::kind(&()));
        let attempt = Attempt { verb: "delete", resource: &resource, kind: &kind, name, namespace: &self.namespace };
        let only = Preconditions { uid, resource_version: None };
        let params = DeleteParams::default().preconditions(only);
        asked(&attempt, self.dynamic::<K>().delete(name, &params)).await.map(drop)
    }

    /// An object of another namespace, if it is there and may be read.
    pub async fn glance<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        tokio::time::timeout(Duration::from_secs(2), api.get_opt(name)).await.ok()?.ok()?
    }
}

/// Kinds of Standfast.
pub trait Kind: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned {}
impl<K> Kind for K where K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned
{}

async fn asked<T>(attempt: &Attempt<'_>, asking: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Err(_) => Err(Failure::late(attempt, PATIENCE)),
        Ok(answer) => answer.map_err(|error| explain(&error, attempt)),
    }
}

fn decode<K: DeserializeOwned>(object: DynamicObject) -> Result<K, String> {
    let odd = |e: serde_json::Error| format!("this version cannot read it: {e}");
    serde_json::from_value(serde_json::to_value(object).map_err(odd)?).map_err(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_reach_the_same_cluster() {
        let global = Global { context: Some("my cluster".into()), ..Global::default() };
        let say = Say::new(&global, "fx");
        assert_eq!(say.standfast("resume bot"), "kubectl standfast resume bot -n fx --context 'my cluster'");
        assert_eq!(say.kubectl("get pods"), "kubectl -n fx --context 'my cluster' get pods");
    }
}
