//! Every example is accepted by a real API server, strictly validated.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use standfast_e2e::{controlplane::checkout, world::World};

use crate::plane::world;

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

/// Applies one document as the user whom it names, without keeping it.
async fn accepted(world: &World, document: &Value) -> Result<()> {
    let user = document.pointer("/spec/requestedBy").and_then(Value::as_str).unwrap_or("admin");
    let namespace = document.pointer("/metadata/namespace").and_then(Value::as_str).context("no namespace")?;
    let namespace = format!("--namespace={namespace}");
    let who = format!("--as={user}");
    let args =
        ["apply", "--dry-run=server", "--validate=strict", &namespace, &who, "--as-group=system:masters", "-f", "-"];
    let (done, said) = world.kubectl(&args, &document.to_string()).await?;
    ensure!(done, "{said}");
    Ok(())
}

#[tokio::test]
async fn every_example_is_accepted() -> Result<()> {
    let world = world("examples").await?;
    let files = files()?;
    let (namespaces, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| f.ends_with("namespace.yaml"));
    for file in &namespaces {
        let (done, said) =
            world.kubectl(&["apply", "--validate=strict", "-f", &file.display().to_string()], "").await?;
        assert!(done, "{}: {said}", file.display());
    }
    assert!(namespaces.len() >= 6 && others.len() >= 15, "{namespaces:?} {others:?}");
    let (mut kinds, mut wrong) = (std::collections::BTreeSet::new(), vec![]);
    for file in &others {
        for document in documents(file)? {
            kinds.insert(document["kind"].as_str().unwrap_or_default().to_owned());
            if let Err(error) = accepted(&world, &document).await {
                wrong.push(format!("{}: {error:#}", file.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    for kind in ["TradingSystem", "TradingHalt", "TradingResume"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    Ok(())
}
