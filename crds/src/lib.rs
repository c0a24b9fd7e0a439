//! API types of `standfast.dev/v1alpha1`.
