//! Test clusters and the paper venue.

pub mod venue;
