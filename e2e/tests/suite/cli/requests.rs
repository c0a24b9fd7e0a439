//! How few requests an emergency takes, and what happens when their answers are lost.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use http::{HeaderValue, Method, StatusCode, header};
use kube::Client;
use serde_json::json;
use standfast_e2e::world::World;
use tokio::{net::TcpListener, task::JoinSet};

use super::{halts, trading};

/// Requests as they came in.
type Log = Arc<Mutex<Vec<String>>>;

/// Stands before the API server and writes down what is asked. The answers to the first `lost` creations of a halt are
/// lost after they took effect.
async fn before(world: &World, tasks: &mut JoinSet<()>, lost: usize) -> Result<Log> {
    let log = Log::default();
    let (seen, client) = (Arc::clone(&log), world.client.clone());
    let handler = move |request: Request| {
        let (seen, client) = (Arc::clone(&seen), client.clone());
        async move {
            let creates = request.method() == Method::POST && request.uri().path().ends_with("/tradinghalts");
            let before = {
                let mut seen = seen.lock().unwrap();
                seen.push(format!("{} {}", request.method(), request.uri().path()));
                seen.iter().filter(|line| line.ends_with("/tradinghalts") && line.starts_with("POST")).count()
            };
            let answer = forward(client, request).await;
            if creates && before <= lost { failed(StatusCode::SERVICE_UNAVAILABLE) } else { answer }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = format!("http://{}", listener.local_addr()?);
    tasks.spawn(async move {
        let _ = axum::serve(listener, Router::new().fallback(handler)).await;
    });
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        "users": [{"name": "proxy", "user": {}}]});
    std::fs::write(kubeconfig(world), config.to_string())?;
    Ok(log)
}

fn kubeconfig(world: &World) -> std::path::PathBuf {
    world.kubeconfig().with_file_name(format!("kubeconfig-{}", world.namespace))
}

async fn forward(client: Client, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let body = to_bytes(body, 8 << 20).await.unwrap_or_default();
    head.uri = head.uri.path_and_query().map_or("/", |p| p.as_str()).parse().unwrap();
    let content = head.headers.remove(header::CONTENT_TYPE);
    head.headers.clear();
    head.headers.insert(header::CONTENT_TYPE, content.unwrap_or(HeaderValue::from_static("application/json")));
    match client.send(Request::from_parts(head, kube::client::Body::from(body.to_vec()))).await {
        Ok(answer) => {
            let (mut head, body) = answer.into_parts();
            head.headers.remove(header::TRANSFER_ENCODING);
            Response::from_parts(head, Body::new(body))
        }
        Err(_) => failed(StatusCode::BAD_GATEWAY),
    }
}

fn failed(status: StatusCode) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

async fn halt(world: &World) -> Result<(Option<i32>, String)> {
    let args = ["halt", "system", "--reason", "prices are stale", "--no-wait"];
    let output = world.standfast(&args)?.env("KUBECONFIG", kubeconfig(world)).output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// No discovery: who asks is found out, and then the halt is created.
#[tokio::test]
async fn a_halt_is_the_second_request() -> Result<()> {
    let world = trading("cli-requests").await?;
    let mut tasks = JoinSet::new();
    let log = before(&world, &mut tasks, 0).await?;
    let (code, said) = halt(&world).await?;
    assert_eq!(code, Some(0), "{said}");
    let log = log.lock().unwrap().clone();
    let halts = format!("POST /apis/standfast.dev/v1alpha1/namespaces/{}/tradinghalts", world.namespace);
    assert_eq!(log[0], "POST /apis/authentication.k8s.io/v1/selfsubjectreviews", "{log:?}");
    // The system is read at the same time: either may come in first.
    let position = log.iter().position(|l| *l == halts);
    assert!(position.is_some_and(|p| p <= 2) && log.len() == 3, "{log:?}");
    Ok(())
}

/// An answer that is lost is asked for again under the same name.
#[tokio::test]
async fn a_lost_answer_makes_no_second_halt() -> Result<()> {
    let world = trading("cli-lost").await?;
    let mut tasks = JoinSet::new();
    before(&world, &mut tasks, 1).await?;
    let (code, said) = halt(&world).await?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("trying again") && said.contains("no second one is made"), "{said}");
    assert_eq!(halts(&world).await?.len(), 1);
    Ok(())
}
