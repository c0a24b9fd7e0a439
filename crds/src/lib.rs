//! API types of `standfast.dev/v1alpha1`, and the admission policies that guard them.
//!
//! The crate needs neither a client nor a runtime, so that other programs can use the types cheaply.
//! `cargo run -p standfast-crds --example crdgen` writes the manifests beside it.

// One attribute a rule: the derive reads them all.
#![allow(clippy::duplicated_attributes)]

pub mod evidence;
pub mod guardrails;
pub mod hash;
pub mod held;
pub mod v1alpha1;
