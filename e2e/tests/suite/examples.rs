//! Every example is accepted by a real API server, strictly validated.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use standfast_e2e::controlplane::checkout;

use crate::plane::plane;

/// The YAML files below `examples/`.
fn files() -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    for folder in fs::read_dir(checkout().join("examples"))? {
        let folder = folder?.path();
        if folder.is_dir() {
            for file in fs::read_dir(&folder)? {
                files.push(file?.path());
            }
        }
    }
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    Ok(files)
}

fn documents(file: &PathBuf) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file)?;
    serde_saphyr::from_multiple(&text).with_context(|| file.display().to_string())
}

/// Applies documents as a user, without keeping them: what kubectl said if it did not take them all.
async fn refused(user: &str, documents: &[Value]) -> Result<Option<String>> {
    let (who, list) = (format!("--as={user}"), json!({"apiVersion": "v1", "kind": "List", "items": documents}));
    let args = ["apply", "--dry-run=server", "--validate=strict", &who, "--as-group=system:masters", "-f", "-"];
    let (done, said) = plane().await?.run_kubectl(&args, &list.to_string()).await?;
    Ok((!done).then_some(said))
}

#[tokio::test]
async fn every_example_is_accepted() -> Result<()> {
    let files = files()?;
    let (namespaces, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| f.ends_with("namespace.yaml"));
    for file in &namespaces {
        let (done, said) =
            plane().await?.run_kubectl(&["apply", "--validate=strict", "-f", &file.display().to_string()], "").await?;
        assert!(done, "{}: {said}", file.display());
    }
    assert!(namespaces.len() >= 6 && others.len() >= 15, "{namespaces:?} {others:?}");
    let (mut kinds, mut by_user) = (BTreeSet::new(), BTreeMap::<String, Vec<Value>>::new());
    for file in &others {
        for document in documents(file)? {
            kinds.insert(document["kind"].as_str().unwrap_or_default().to_owned());
            // Who asks, or decides, must be the user who creates the object.
            let by = ["/spec/requestedBy", "/spec/approver"].iter().find_map(|p| document.pointer(p)?.as_str());
            let user = by.unwrap_or("admin");
            by_user.entry(user.into()).or_default().push(document);
        }
    }
    for (user, documents) in &by_user {
        assert_eq!(refused(user, documents).await?, None, "as {user}");
    }
    for kind in ["TradingSystem", "TradingHalt", "TradingResume", "Approval"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    Ok(())
}
