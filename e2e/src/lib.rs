//! Test clusters and the paper venue.
