//! The guest time API.
