//! The guest time API for C.
