//! Which program made a thing, where and when.

use serde::{Deserialize, Serialize};
use tch::Device;

/// Which program made a thing, where and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Of this package.
    pub version: String,
    /// The machine.
    pub host: String,
    /// The device that it computed on.
    pub device: String,
    /// UTC, RFC 3339.
    pub time: String,
}

impl Provenance {
    /// Of this process, now.
    #[must_use]
    pub fn here(device: Device) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: common::host(),
            device: format!("{device:?}"),
            time: common::now(),
        }
    }

    /// The same, now.
    #[must_use]
    pub fn now(&self) -> Self {
        Self { time: common::now(), ..self.clone() }
    }
}
