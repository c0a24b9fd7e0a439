//! Jobs that run the user's own code.
